//! What the body of an authentication server's answer means. Called with the whole body of a 200.
//!
//! Whatever is not an explicit yes is never a yes: the body must be one JSON object with one boolean
//! `isValid`.

use serde::de::{Deserialize, Deserializer, Error, IgnoredAny, MapAccess, Visitor};
use serde_json::Value;

use super::{Failure, User, Verdict};

/// Decides by the body of an answer.
pub(super) fn judge(body: &[u8]) -> Result<Verdict, Failure> {
    let body = std::str::from_utf8(body).map_err(|_| Failure::Answer("is not UTF-8"))?;
    if body.trim_ascii().is_empty() {
        return Err(Failure::Answer("is empty, or was cut off"));
    }
    let answer: Answer =
        serde_json::from_str(body).map_err(|_| Failure::Answer("is no JSON object"))?;
    match answer.is_valid.as_slice() {
        [Value::Bool(true)] => Ok(Verdict::Accepted(owner(&answer.verified_data))),
        [Value::Bool(false)] => Ok(Verdict::Refused),
        [] | [_] => Err(Failure::Answer("has no boolean 'isValid'")),
        [..] => Err(Failure::Answer("has more than one 'isValid'")),
    }
}

/// The members of the object that mean something. A derived type would also accept an array.
#[derive(Default)]
struct Answer {
    /// All members of this name.
    is_valid: Vec<Value>,
    verified_data: Value,
}

impl<'de> Deserialize<'de> for Answer {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Members;

        impl<'de> Visitor<'de> for Members {
            type Value = Answer;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Answer, A::Error> {
                let mut answer = Answer::default();
                while let Some(name) = members.next_key::<String>()? {
                    match name.as_str() {
                        "isValid" => answer.is_valid.push(members.next_value()?),
                        "verifiedData" => answer.verified_data = members.next_value()?,
                        _ => {
                            members.next_value::<IgnoredAny>()?;
                        }
                    }
                }
                Ok(answer)
            }
        }

        deserializer.deserialize_map(Members).map_err(D::Error::custom)
    }
}

/// The owner of the token, as far as the answer names one.
fn owner(verified_data: &Value) -> User {
    let token = verified_data.get("verifiedParsedToken");
    let text = |name| token.and_then(|token| token.get(name)?.as_str().map(str::to_owned));
    User { email: text("email"), username: text("cognito:username") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accepted(body: &str) -> Option<User> {
        match judge(body.as_bytes()) {
            Ok(Verdict::Accepted(user)) => Some(user),
            Ok(Verdict::Refused | Verdict::Failed(_)) | Err(_) => None,
        }
    }

    #[test]
    fn answers_are_judged_by_is_valid() {
        assert_eq!(accepted(r#"{"isValid":true,"more":1}"#), Some(User::default()));
        assert_eq!(accepted("\r\n { \"isValid\" : true } \n"), Some(User::default()));
        let user = r#"{"isValid":true,"verifiedData":{"verifiedParsedToken":
            {"email":"a@b","cognito:username":"ab"}}}"#;
        let named = User { email: Some("a@b".into()), username: Some("ab".into()) };
        assert_eq!(accepted(user), Some(named));
        assert_eq!(accepted(r#"{"isValid":true,"verifiedData":7}"#), Some(User::default()));
        assert!(matches!(judge(br#"{"isValid":false}"#), Ok(Verdict::Refused)));
    }

    #[test]
    fn what_is_no_explicit_yes_or_no_is_a_failure() {
        let nonsense = [
            "",
            " ",
            "\r\n",
            "{}",
            r#"{"isValid":"true"}"#,
            r#"{"isValid":1}"#,
            r#"{"isValid":null}"#,
            r#"{"isValid":[true]}"#,
            r#"{"isValid":{"isValid":true}}"#,
            r#"{"answer":{"isValid":true}}"#,
            r#"{"isvalid":true}"#,
            "true",
            "[true]",
            r#"[{"isValid":true}]"#,
            r#""{\"isValid\":true}""#,
            "<p>",
            r#"{"isValid":true"#,
            r#"{"isValid":tr"#,
            r#"{"isValid":true,}"#,
            r#"{"isValid":true}}"#,
            r#"{"isValid":true}{"isValid":false}"#,
            r#"{"isValid":true} x"#,
            r#"{"isValid":false,"isValid":true}"#,
            r#"{"isValid":true,"isValid":false}"#,
            r#"{"isValid":true,"isValid":true}"#,
            r#"{"isValid":false,"\u0069sValid":true}"#,
            r"{'isValid':true}",
            "\u{feff}{\"isValid\":true}",
        ];
        for body in nonsense {
            assert!(matches!(judge(body.as_bytes()), Err(Failure::Answer(_))), "{body}");
        }
        let not_text = b"{\"isValid\":true,\"x\":\"\xff\"}";
        assert!(matches!(judge(not_text), Err(Failure::Answer(_))));
    }
}
