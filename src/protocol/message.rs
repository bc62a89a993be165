//! The JSON messages (`README.md`, section 1): requests in, responses and notifications out.
//!
//! Every message out is compact JSON with a final line feed; clients look for it.

use serde::Serialize;
use serde_json::{Map, Value};

/// A well-formed request. Method and params are checked by `methods`.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    /// Chosen by the client, echoed in the response.
    pub id: i64,
    /// The part of `method` before the dot.
    pub namespace: String,
    /// The part of `method` after the dot.
    pub method: String,
    /// `params`, empty if there were none.
    pub params: Map<String, Value>,
}

/// The answer to a request that is not accepted; then the connection is closed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The request's id, -1 if it has none.
    pub id: i64,
    /// For the response's `error`.
    pub error: String,
}

impl Refusal {
    pub(super) fn new(id: i64, error: impl Into<String>) -> Self {
        Self { id, error: error.into() }
    }

    /// For input that is no JSON message at all.
    pub(super) fn not_json(why: impl std::fmt::Display) -> Self {
        Self::new(-1, format!("Failed to parse JSON data: {why}"))
    }

    /// The response as sent.
    pub fn to_message(&self) -> String {
        error_response(self.id, &self.error, None)
    }
}

/// Reads one request.
pub fn parse_request(json: &[u8]) -> Result<Request, Refusal> {
    let mut message: Map<String, Value> =
        serde_json::from_slice(json).map_err(|error| Refusal::not_json(position(&error)))?;
    let id = message.get("id").and_then(Value::as_i64).ok_or_else(|| {
        Refusal::new(-1, "Error parsing command. Missing 'id': each request needs an integer 'id'")
    })?;
    let Some((namespace, method)) =
        message.get("method").and_then(Value::as_str).and_then(split_method)
    else {
        let error = "Error parsing method. 'method' must be a string \"Namespace.Method\"";
        return Err(Refusal::new(id, error));
    };
    let (namespace, method) = (namespace.to_owned(), method.to_owned());
    let params = match message.remove("params") {
        None => Map::new(),
        Some(Value::Object(params)) => params,
        Some(_) => return Err(Refusal::new(id, "Invalid params: 'params' must be an object")),
    };
    Ok(Request { id, namespace, method, params })
}

/// The error in some JSON and its position, without the input itself, which may be secret.
fn position(error: &serde_json::Error) -> String {
    let kind = match error.classify() {
        serde_json::error::Category::Eof => "unexpected end",
        _ => "invalid JSON",
    };
    format!("{kind} at line {} column {}", error.line(), error.column())
}

fn split_method(method: &str) -> Option<(&str, &str)> {
    let (namespace, name) = method.split_once('.')?;
    (!namespace.is_empty() && !name.is_empty() && !name.contains('.')).then_some((namespace, name))
}

/// A request as a client sends it, with the order of fields that the original clients use.
pub fn request(id: i64, method: &str, params: Option<Value>) -> String {
    #[derive(Serialize)]
    struct Message<'a> {
        id: i64,
        method: &'a str,
        #[serde(skip_serializing_if = "Option::is_none")]
        params: Option<Value>,
    }
    to_line(&Message { id, method, params })
}

/// A response of status `success`.
pub(super) fn success_response(id: i64, params: Option<Value>) -> String {
    to_line(&Response { id, status: "success", params, error: None })
}

/// A response of status `error`.
pub(super) fn error_response(id: i64, error: &str, params: Option<Value>) -> String {
    to_line(&Response { id, status: "error", params, error: Some(error) })
}

/// A notification; `id` counts per connection.
pub fn notification(id: i64, name: &str, params: Option<Value>) -> String {
    #[derive(Serialize)]
    struct Message<'a> {
        id: i64,
        notification: &'a str,
        #[serde(skip_serializing_if = "Option::is_none")]
        params: Option<Value>,
    }
    to_line(&Message { id, notification: name, params })
}

#[derive(Serialize)]
struct Response<'a> {
    id: i64,
    status: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    params: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'a str>,
}

fn to_line(message: &impl Serialize) -> String {
    let mut line = serde_json::to_string(message).expect("strings and values always serialize");
    line.push('\n');
    line
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn refused(json: &str) -> Refusal {
        parse_request(json.as_bytes()).expect_err(json)
    }

    #[test]
    fn a_request_is_read() {
        let request = parse_request(br#"{"id":7,"method":"A.B","params":{"x":1},"extra":0}"#);
        let request = request.expect("valid");
        assert_eq!((request.id, &*request.namespace, &*request.method), (7, "A", "B"));
        assert_eq!(Value::Object(request.params), json!({"x": 1}));
    }

    #[test]
    fn what_is_not_json_is_refused_with_id_minus_one() {
        for input in ["", "{", "nonsense", "[]", "{\"id\":0,}", "{\"id\":\"\\ud800\"}"] {
            let refusal = refused(input);
            assert_eq!(refusal.id, -1);
            assert!(refusal.error.starts_with("Failed to parse JSON data"), "{refusal:?}");
        }
        assert_eq!(parse_request(b"{\"id\":\xff}").expect_err("not UTF-8").id, -1);
    }

    #[test]
    fn parse_errors_do_not_repeat_the_input() {
        let refusal = refused(r#"{"id":0,"method":"A.B","params":{"token":"geheim"} oops}"#);
        assert!(!refusal.error.contains("geheim") && !refusal.error.contains("oops"));
    }

    #[test]
    fn an_integer_id_is_demanded() {
        for input in [r"{}", r#"{"id":"1"}"#, r#"{"id":1.5}"#, r#"{"id":null}"#] {
            let refusal = refused(input);
            assert_eq!(refusal.id, -1);
            assert!(refusal.error.starts_with("Error parsing command. Missing 'id'"));
        }
    }

    #[test]
    fn a_method_has_one_dot() {
        for method in ["null", "1", "\"\"", "\"A\"", "\"A.\"", "\".B\"", "\"A.B.C\""] {
            let refusal = refused(&format!(r#"{{"id":3,"method":{method}}}"#));
            assert_eq!(refusal.id, 3);
            assert!(refusal.error.starts_with("Error parsing method"));
        }
        assert!(refused(r#"{"id":3}"#).error.starts_with("Error parsing method"));
    }

    #[test]
    fn params_are_an_object() {
        let refusal = refused(r#"{"id":3,"method":"A.B","params":[]}"#);
        assert_eq!(refusal.id, 3);
        assert!(refusal.error.starts_with("Invalid params"));
    }

    #[test]
    fn messages_are_compact_and_end_with_a_line_feed() {
        assert_eq!(success_response(0, None), "{\"id\":0,\"status\":\"success\"}\n");
        assert_eq!(
            error_response(-1, "no", Some(json!({"a": "b"}))),
            "{\"id\":-1,\"status\":\"error\",\"params\":{\"a\":\"b\"},\"error\":\"no\"}\n"
        );
        assert_eq!(notification(1, "A.B", None), "{\"id\":1,\"notification\":\"A.B\"}\n");
        assert_eq!(
            request(4, "A.B", Some(json!({"t": 1}))),
            "{\"id\":4,\"method\":\"A.B\",\"params\":{\"t\":1}}\n"
        );
    }
}
