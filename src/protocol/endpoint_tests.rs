//! Every message of generations 1 and 2, frozen as bytes, and every way through the states.

use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::protocol::Token;

const RULES: Rules = Rules {
    inactivity: Duration::from_secs(8),
    authentication: Duration::from_secs(10),
    waiting: Duration::from_mins(1),
    requests: 5,
    tunnel_proxy: false,
    token_for_gateways: false,
    token_for_apps: false,
    app_window: 4096,
};

#[path = "registration_tests.rs"]
mod registration;

/// A connection on a clock that the test moves.
struct Fixture {
    endpoint: Endpoint,
    now: Instant,
}

impl Fixture {
    fn new() -> Self {
        Self::with_rules(RULES)
    }

    fn with_rules(rules: Rules) -> Self {
        let now = Instant::now();
        let server = ServerInfo { name: "test".into(), version: "1.2.3".into() };
        Self { endpoint: Endpoint::new(Arc::new(server), rules, now), now }
    }

    /// Authenticated and waiting.
    fn waiting(params: &str) -> Self {
        let mut fixture = Self::new();
        let actions = fixture.text(&authenticate(0, params));
        assert!(matches!(actions[..], [Action::Authenticate(_)]), "{actions:?}");
        let actions = fixture.verdict(Verdict::Valid);
        assert!(matches!(actions[..], [Action::Send(_), Action::Offer(_)]), "{actions:?}");
        fixture
    }

    fn text(&mut self, text: &str) -> Vec<Action> {
        self.endpoint.receive(&Chunk::text(text));
        self.actions()
    }

    fn verdict(&mut self, verdict: Verdict) -> Vec<Action> {
        self.endpoint.authenticated(self.now, verdict);
        self.actions()
    }

    fn after(&mut self, time: Duration) -> Vec<Action> {
        self.now += time;
        self.endpoint.handle_timeout(self.now);
        self.actions()
    }

    fn paired_with(&mut self, other: &Self) -> Vec<Action> {
        let (_, profile) = other.endpoint.offer().expect("waiting");
        self.endpoint.paired(&profile.clone());
        self.actions()
    }

    fn actions(&mut self) -> Vec<Action> {
        std::iter::from_fn(|| self.endpoint.poll_action()).collect()
    }
}

fn authenticate(id: i64, params: &str) -> String {
    format!(r#"{{"id":{id},"method":"Authentication.Authenticate","params":{{{params}}}}}"#)
}

fn send(message: &str) -> Action {
    Action::Send(format!("{message}\n"))
}

const GENERATION_1: &str = r#""token":"t""#;
const GENERATION_2: &str = r#""token":"t","uuid":"{AAAA-1}","name":"one""#;

#[test]
fn generation_1_answers() {
    let mut fixture = Fixture::new();
    let token = Token::new("t");
    let key = PairingKey::new(&token, None);
    assert_eq!(fixture.text(&authenticate(4, GENERATION_1)), [Action::Authenticate(token)]);
    assert!(!fixture.endpoint.is_authenticated());
    assert_eq!(
        fixture.verdict(Verdict::Valid),
        [send(r#"{"id":4,"status":"success"}"#), Action::Offer(key)]
    );
    assert!(fixture.endpoint.is_authenticated());
    let other = Fixture::waiting(GENERATION_1);
    assert_eq!(
        fixture.paired_with(&other),
        [send(r#"{"id":1,"notification":"Tunnel.Established"}"#)]
    );
    assert!(fixture.endpoint.is_established());
    assert_eq!(fixture.endpoint.deadline(), None);
}

#[test]
fn requests_may_come_in_a_stream_of_bytes() {
    let request = authenticate(4, GENERATION_1) + " \n";
    for at in 0..request.len() {
        let mut fixture = Fixture::new();
        let mut actions = Vec::new();
        for piece in [&request[..at], &request[at..]] {
            fixture.endpoint.receive(&Chunk::stream(piece.to_owned()));
            actions.extend(fixture.actions());
        }
        assert_eq!(actions, [Action::Authenticate(Token::new("t"))], "cut at {at}");
    }
}

#[test]
fn generation_1_refusals() {
    let refused = |verdict| {
        let mut fixture = Fixture::new();
        fixture.text(&authenticate(0, GENERATION_1));
        fixture.verdict(verdict)
    };
    assert_eq!(
        refused(Verdict::Invalid),
        [
            send(
                r#"{"id":0,"status":"error","error":"Invalid token. You are not allowed to use this server."}"#
            ),
            Action::Close(Close::TokenRefused)
        ]
    );
    assert_eq!(
        refused(Verdict::Timeout),
        [
            send(
                r#"{"id":0,"status":"error","error":"The authentication took too long. This is temporary, please try again later."}"#
            ),
            Action::Close(Close::AuthenticationUnavailable)
        ]
    );
    assert_eq!(
        refused(Verdict::Unavailable),
        [
            send(
                r#"{"id":0,"status":"error","error":"The authentication is not available. This is temporary, please try again later."}"#
            ),
            Action::Close(Close::AuthenticationUnavailable)
        ]
    );
}

#[test]
fn generation_2_answers() {
    let mut fixture = Fixture::new();
    assert_eq!(
        fixture.text(r#"{"id":1,"method":"RemoteProxy.Hello"}"#),
        [send(
            r#"{"id":1,"status":"success","params":{"apiVersion":"0.3","name":"test","server":"nymea-remoteproxy","version":"1.2.3"}}"#
        )]
    );
    let token = Token::new("t");
    let key = PairingKey::new(&token, Some("n"));
    let params = format!(r#"{GENERATION_2},"nonce":"n""#);
    assert_eq!(fixture.text(&authenticate(2, &params)), [Action::Authenticate(token)]);
    assert_eq!(
        fixture.verdict(Verdict::Valid),
        [
            send(
                r#"{"id":2,"status":"success","params":{"authenticationError":"AuthenticationErrorNoError"}}"#
            ),
            Action::Offer(key)
        ]
    );
    let other = Fixture::waiting(r#""token":"t","uuid":"u-2","name":"\"two\"""#);
    assert_eq!(
        fixture.paired_with(&other),
        [send(
            r#"{"id":1,"notification":"RemoteProxy.TunnelEstablished","params":{"name":"\"two\"","uuid":"u-2"}}"#
        )]
    );
}

#[test]
fn generation_2_refusals() {
    for (verdict, code, close) in [
        (Verdict::Invalid, "AuthenticationFailed", Close::TokenRefused),
        (Verdict::Timeout, "Timeout", Close::AuthenticationUnavailable),
        (Verdict::Unavailable, "ProxyError", Close::AuthenticationUnavailable),
    ] {
        let mut fixture = Fixture::new();
        fixture.text(&authenticate(0, GENERATION_2));
        let actions = fixture.verdict(verdict);
        let [Action::Send(answer), Action::Close(reason)] = &actions[..] else {
            panic!("{actions:?}")
        };
        let params =
            format!(r#""params":{{"authenticationError":"AuthenticationError{code}"}},"error":"#);
        assert!(answer.contains(&params), "{answer}");
        assert_eq!(*reason, close);
    }
}

#[test]
fn generations_meet() {
    let mut one = Fixture::waiting(GENERATION_1);
    let mut two = Fixture::waiting(GENERATION_2);
    let seen_by_two = two.endpoint.offer().map(|(_, profile)| profile.clone());
    assert_eq!(
        two.paired_with(&one),
        [send(
            r#"{"id":1,"notification":"RemoteProxy.TunnelEstablished","params":{"name":"","uuid":""}}"#
        )]
    );
    one.endpoint.paired(&seen_by_two.expect("was waiting"));
    assert_eq!(one.actions(), [send(r#"{"id":1,"notification":"Tunnel.Established"}"#)]);
}

#[test]
fn a_loop_is_closed() {
    let mut one = Fixture::waiting(GENERATION_2);
    let same = Fixture::waiting(r#""token":"t","uuid":"aaaa-1","name":"other""#);
    assert_eq!(one.paired_with(&same), [Action::Close(Close::Loop)]);
    let mut nobody = Fixture::waiting(GENERATION_1);
    let nobody_else = Fixture::waiting(GENERATION_1);
    assert!(matches!(nobody.paired_with(&nobody_else)[..], [Action::Send(_)]));
}

#[test]
fn bad_input_is_answered_and_closed() {
    for (input, answer) in [
        ("nonsense", r#"{"id":-1,"status":"error","error":"Failed to parse JSON data"#),
        ("{\"id\":1,", r#"{"id":-1,"status":"error","error":"Failed to parse JSON data"#),
        ("{}", r#"{"id":-1,"status":"error","error":"Error parsing command. Missing 'id'"#),
        (r#"{"id":3}"#, r#"{"id":3,"status":"error","error":"Error parsing method"#),
        (r#"{"id":4,"method":"X.Y"}"#, r#"{"id":4,"status":"error","error":"No such namespace"#),
        (
            r#"{"id":5,"method":"RemoteProxy.Y"}"#,
            r#"{"id":5,"status":"error","error":"No such method"#,
        ),
        (
            r#"{"id":6,"method":"RemoteProxy.Hello","params":{"a":1}}"#,
            r#"{"id":6,"status":"error","error":"Invalid params: 'a' is unknown"}"#,
        ),
    ] {
        let actions = Fixture::new().text(input);
        let [Action::Send(sent), Action::Close(Close::InvalidRequest)] = &actions[..] else {
            panic!("{input}: {actions:?}")
        };
        assert!(sent.starts_with(answer) && sent.ends_with("}\n"), "{input}: {sent}");
    }
}

#[test]
fn binary_is_no_request() {
    let mut fixture = Fixture::new();
    fixture.endpoint.receive(&Chunk::binary(r#"{"id":1,"method":"RemoteProxy.Hello"}"#));
    assert_eq!(
        fixture.actions(),
        [
            send(
                r#"{"id":-1,"status":"error","error":"Failed to parse JSON data: it must come in a text message"}"#
            ),
            Action::Close(Close::InvalidRequest)
        ]
    );
}

#[test]
fn requests_larger_than_10_kib_end_the_connection() {
    let params = format!(r#""token":"{}""#, "x".repeat(MAX_REQUEST));
    assert_eq!(
        Fixture::new().text(&authenticate(0, &params)),
        [Action::Close(Close::RequestTooLarge)]
    );
}

#[test]
fn one_text_message_may_hold_several_requests() {
    let mut fixture = Fixture::new();
    let hello = r#"{"id":1,"method":"RemoteProxy.Hello"}"#;
    let actions = fixture.text(&format!(" {hello}{hello}\n{}\n", authenticate(2, GENERATION_1)));
    assert!(
        matches!(actions[..], [Action::Send(_), Action::Send(_), Action::Authenticate(_)]),
        "{actions:?}"
    );
}

#[test]
fn data_before_the_tunnel_stands_closes() {
    let hello = r#"{"id":1,"method":"RemoteProxy.Hello"}"#;
    let early = [Action::Close(Close::EarlyData)];

    let mut behind = Fixture::new();
    let actions = behind.text(&format!("{}{hello}", authenticate(0, GENERATION_1)));
    assert_eq!(actions[1..], early);

    let mut authenticating = Fixture::new();
    authenticating.text(&authenticate(0, GENERATION_1));
    assert_eq!(authenticating.text("x"), early);
    assert_eq!(authenticating.verdict(Verdict::Valid), [], "closed is closed");

    assert_eq!(Fixture::waiting(GENERATION_1).text(hello), early);
}

#[test]
fn early_data_leads_to_no_partner_however_fast_the_verdict_is() {
    let mut fixture = Fixture::new();
    fixture.endpoint.receive(&Chunk::text(authenticate(0, GENERATION_1) + "x"));
    let authenticating = fixture.endpoint.poll_action();
    assert!(matches!(authenticating, Some(Action::Authenticate(_))), "{authenticating:?}");
    assert_eq!(fixture.verdict(Verdict::Valid), [Action::Close(Close::EarlyData)]);
    assert!(fixture.endpoint.offer().is_none());
}

#[test]
fn white_space_and_empty_frames_after_a_request_belong_to_it() {
    let mut fixture = Fixture::new();
    let request = Chunk { last: false, ..Chunk::text(authenticate(0, GENERATION_1)) };
    fixture.endpoint.receive(&request);
    assert!(matches!(fixture.actions()[..], [Action::Authenticate(_)]));
    for (text, last) in [("\n", false), ("", false), (" ", true)] {
        fixture.endpoint.receive(&Chunk { last, ..Chunk::text(text) });
        assert_eq!(fixture.actions(), [], "{text:?}");
    }
    // That was the end of its message.
    assert_eq!(fixture.text(" "), [Action::Close(Close::EarlyData)]);
}

#[test]
fn what_is_part_of_no_request_has_a_limit() {
    let too_large = [Action::Close(Close::RequestTooLarge)];
    let blank = |length: usize| " ".repeat(length);
    for piece in [blank(1), blank(1000), String::new()] {
        let mut fixture = Fixture::new();
        let pieces = MAX_REQUEST / piece.len().max(1);
        for _ in 0..pieces {
            assert_eq!(fixture.text(&piece), []);
        }
        let hello = r#"{"id":1,"method":"RemoteProxy.Hello"}"#;
        assert!(matches!(fixture.text(hello)[..], [Action::Send(_)]), "it was not too much");
        for _ in 0..pieces {
            assert_eq!(fixture.text(&piece), []);
        }
        assert_eq!(fixture.text(&blank(MAX_REQUEST)), too_large, "{} bytes", piece.len());
    }

    let mut waiting = Fixture::waiting(GENERATION_1);
    let space = Chunk { last: false, ..Chunk::text(blank(MAX_REQUEST)) };
    waiting.endpoint.receive(&space);
    assert_eq!(waiting.actions(), []);
    waiting.endpoint.receive(&space);
    assert_eq!(waiting.actions(), too_large);
}

#[test]
fn a_request_may_be_cut_into_any_number_of_pieces_with_empty_ones_in_between() {
    let mut fixture = Fixture::new();
    let name = "n".repeat(MAX_REQUEST - 200);
    let request = authenticate(0, &format!(r#""token":"t","uuid":"u","name":"{name}""#));
    let mut actions = Vec::new();
    for byte in request.chars() {
        for text in [String::new(), byte.to_string()] {
            fixture.endpoint.receive(&Chunk { last: false, ..Chunk::text(text) });
            actions.extend(fixture.actions());
        }
    }
    assert!(matches!(actions[..], [Action::Authenticate(_)]), "{actions:?}");
}

#[test]
fn requests_before_authentication_are_counted() {
    let mut fixture = Fixture::new();
    for _ in 0..RULES.requests {
        let actions = fixture.text(r#"{"id":1,"method":"RemoteProxy.Hello"}"#);
        assert!(matches!(actions[..], [Action::Send(_)]));
    }
    assert_eq!(
        fixture.text(&authenticate(0, GENERATION_1)),
        [Action::Close(Close::TooManyRequests)]
    );
}

#[test]
fn each_stage_has_its_time() {
    let second = Duration::from_secs(1);
    let mut silent = Fixture::new();
    assert_eq!(silent.after(RULES.inactivity.saturating_sub(second)), []);
    assert_eq!(silent.after(second), [Action::Close(Close::Inactive)]);
    assert_eq!(silent.endpoint.deadline(), None);

    let mut slow = Fixture::new();
    slow.text(&authenticate(0, GENERATION_2));
    assert_eq!(slow.after(RULES.authentication.saturating_sub(second)), []);
    let actions = slow.after(second);
    let [Action::Send(answer), Action::Close(Close::AuthenticationUnavailable)] = &actions[..]
    else {
        panic!("{actions:?}")
    };
    assert!(answer.contains("AuthenticationErrorTimeout"));

    let mut alone = Fixture::waiting(GENERATION_1);
    assert_eq!(alone.after(RULES.waiting.saturating_sub(second)), []);
    assert_eq!(alone.after(second), [Action::Close(Close::NobodyCame)]);
}

#[test]
fn an_unfinished_request_is_answered_when_its_time_is_over() {
    let mut fixture = Fixture::new();
    let chunk = Chunk { last: false, ..Chunk::text("{\"id\":1") };
    fixture.endpoint.receive(&chunk);
    let actions = fixture.after(RULES.inactivity);
    let [Action::Send(answer), Action::Close(Close::Inactive)] = &actions[..] else {
        panic!("{actions:?}")
    };
    assert!(answer.contains("Failed to parse JSON data"));
}

#[test]
fn a_shorter_authentication_time_rules_the_silent_too() {
    let now = Instant::now();
    let server = Arc::new(ServerInfo { name: String::new(), version: String::new() });
    let rules = Rules { authentication: Duration::from_secs(1), ..RULES };
    let mut endpoint = Endpoint::new(server, rules, now);
    endpoint.handle_timeout(now + rules.authentication);
    assert_eq!(endpoint.poll_action(), Some(Action::Close(Close::AuthenticationTimeout)));
}

proptest! {
    /// A byte stream gives the same actions, however it is split into reads.
    #[test]
    fn any_split_of_the_input_gives_the_same_actions(
        requests in prop::collection::vec(prop::sample::select(vec![
            r#"{"id":1,"method":"RemoteProxy.Hello"}"#,
            "{\"id\":2,\"method\":\"RemoteProxy.Hello\",\"params\":{}}\n",
            r#"{"id":3,"method":"Authentication.Authenticate","params":{"token":"}{\"\\"}}"#,
            r#"{"id":"x"}"#,
            " \n",
            "{\"id\":4,",
            "garbage",
        ]), 0..6),
        cuts in prop::collection::vec(0usize..300, 0..20),
    ) {
        let input = requests.concat();
        let mut cuts: Vec<usize> = cuts.into_iter().map(|at| at.min(input.len())).collect();
        cuts.extend([0, input.len()]);
        cuts.sort_unstable();
        let whole = fed(&[input.as_bytes()]);
        let pieces: Vec<&[u8]> = cuts.windows(2).map(|pair| &input.as_bytes()[pair[0]..pair[1]]).collect();
        prop_assert_eq!(fed(&pieces), whole);
    }

    #[test]
    fn arbitrary_input_never_panics(
        pieces in prop::collection::vec(
            (prop::collection::vec(any::<u8>(), 0..300), any::<bool>(), any::<bool>()), 0..8),
    ) {
        let mut fixture = Fixture::new();
        for (data, text, last) in pieces {
            let kind = if text { Kind::Text } else { Kind::Binary };
            fixture.endpoint.receive(&Chunk { kind, data: data.into(), last });
            fixture.actions();
        }
    }
}

/// The actions of a stream that came in these reads.
fn fed(pieces: &[&[u8]]) -> Vec<Action> {
    let mut fixture = Fixture::new();
    let mut actions = Vec::new();
    for piece in pieces.iter().filter(|piece| !piece.is_empty()) {
        let data = bytes::Bytes::copy_from_slice(piece);
        fixture.endpoint.receive(&Chunk { kind: Kind::Text, data, last: false });
        actions.extend(fixture.actions());
    }
    actions
}
