//! How a connection registers with the tunnel proxy: every message frozen as bytes, and every way
//! through the states.

use uuid::Uuid;

use super::*;
use crate::protocol::{App, Gateway};

const RULES: Rules = Rules { tunnel_proxy: true, ..super::RULES };
const ONE: &str = "{11111111-2222-3333-4444-5555555555ab}";
const TWO: &str = "{66666666-7777-8888-9999-aaaaaaaaaaaa}";

fn fixture() -> Fixture {
    Fixture::with_rules(RULES)
}

fn call(id: i64, method: &str, params: &str) -> String {
    format!(r#"{{"id":{id},"method":"TunnelProxy.{method}","params":{{{params}}}}}"#)
}

fn register_server(id: i64) -> String {
    call(id, "RegisterServer", &format!(r#""serverName":"gateway","serverUuid":"{ONE}""#))
}

fn register_client(id: i64) -> String {
    let params = format!(r#""clientName":"app","clientUuid":"{TWO}","serverUuid":"{ONE}""#);
    call(id, "RegisterClient", &params)
}

fn uuid(text: &str) -> Uuid {
    text.parse().expect("a UUID")
}

fn gateway() -> Role {
    Role::Gateway(Gateway { uuid: uuid(ONE), name: "gateway".into(), flow_control: false })
}

fn app() -> Role {
    Role::App(App { uuid: uuid(TWO), name: "app".into(), gateway: uuid(ONE) })
}

impl Fixture {
    fn registered(&mut self, result: Result<(), TunnelProxyError>) -> Vec<Action> {
        self.endpoint.registered(result);
        self.actions()
    }
}

#[test]
fn a_gateway_registers() {
    let mut fixture = fixture();
    assert_eq!(
        fixture.text(&register_server(3)),
        [Action::Register { role: gateway(), token: None }]
    );
    assert_eq!((fixture.endpoint.role(), fixture.endpoint.is_authenticated()), (None, false));
    assert_eq!(
        fixture.registered(Ok(())),
        [send(
            r#"{"id":3,"status":"success","params":{"slipEnabled":true,"tunnelProxyError":"TunnelProxyErrorNoError"}}"#
        )]
    );
    assert_eq!(fixture.endpoint.role(), Some(&gateway()));
    assert!(fixture.endpoint.is_authenticated() && !fixture.endpoint.is_established());
    assert_eq!(fixture.endpoint.deadline(), None);
    assert_eq!(fixture.text("anything"), [], "no business of this state machine");
}

#[test]
fn a_gateway_with_flow_control_is_told_its_window() {
    let params = format!(r#""serverName":"gateway","serverUuid":"{ONE}","flowControl":true"#);
    let mut fixture = fixture();
    let actions = fixture.text(&call(3, "RegisterServer", &params));
    let [Action::Register { role: Role::Gateway(gateway), .. }] = &actions[..] else {
        panic!("{actions:?}")
    };
    assert!(gateway.flow_control);
    assert_eq!(
        fixture.registered(Ok(())),
        [send(
            r#"{"id":3,"status":"success","params":{"clientWindow":4096,"slipEnabled":true,"tunnelProxyError":"TunnelProxyErrorNoError"}}"#
        )]
    );
}

#[test]
fn an_app_registers() {
    let mut fixture = fixture();
    assert_eq!(fixture.text(&register_client(0)), [Action::Register { role: app(), token: None }]);
    assert_eq!(
        fixture.registered(Ok(())),
        [send(
            r#"{"id":0,"status":"success","params":{"tunnelProxyError":"TunnelProxyErrorNoError"}}"#
        )]
    );
    assert_eq!(fixture.endpoint.role(), Some(&app()));
}

#[test]
fn uuids_may_be_written_without_braces_and_in_upper_case() {
    let params = r#""clientName":"app","clientUuid":"66666666-7777-8888-9999-AAAAAAAAAAAA","serverUuid":"11111111-2222-3333-4444-5555555555AB""#;
    assert_eq!(
        fixture().text(&call(0, "RegisterClient", params)),
        [Action::Register { role: app(), token: None }]
    );
}

#[test]
fn a_refused_registration_is_a_success_with_an_error_and_then_closed() {
    use TunnelProxyError::{
        AlreadyRegistered, ForbiddenCall, InternalServerError, InvalidUuid, ServerNotFound,
    };
    for (error, label, close) in [
        (InvalidUuid, "InvalidUuid", Close::InvalidUuid),
        (InternalServerError, "InternalServerError", Close::RegistrationUnavailable),
        (ServerNotFound, "ServerNotFound", Close::GatewayNotFound),
        (ForbiddenCall, "ForbiddenCall", Close::ForbiddenCall),
        (AlreadyRegistered, "AlreadyRegistered", Close::AlreadyRegistered),
    ] {
        let mut fixture = fixture();
        fixture.text(&register_client(7));
        let answer = format!(
            r#"{{"id":7,"status":"success","params":{{"tunnelProxyError":"TunnelProxyError{label}"}}}}"#
        );
        assert_eq!(fixture.registered(Err(error)), [send(&answer), Action::Close(close)]);
        assert_eq!(fixture.endpoint.role(), None);

        let mut fixture = self::fixture();
        fixture.text(&register_server(7));
        let answer = format!(
            r#"{{"id":7,"status":"success","params":{{"slipEnabled":false,"tunnelProxyError":"TunnelProxyError{label}"}}}}"#
        );
        assert_eq!(fixture.registered(Err(error)), [send(&answer), Action::Close(close)]);
        assert_eq!(fixture.registered(Ok(())), [], "closed is closed");
    }
}

#[test]
fn a_uuid_that_is_none_is_refused() {
    for invalid in ["", "{}", "x", "00000000-0000-0000-0000-000000000000", "{1111}"] {
        let closed = Action::Close(Close::InvalidUuid);
        let server =
            call(1, "RegisterServer", &format!(r#""serverName":"","serverUuid":"{invalid}""#));
        let answer = send(
            r#"{"id":1,"status":"success","params":{"slipEnabled":false,"tunnelProxyError":"TunnelProxyErrorInvalidUuid"}}"#,
        );
        assert_eq!(fixture().text(&server), [answer, closed.clone()]);
        for (client, gateway) in [(invalid, ONE), (TWO, invalid)] {
            let params =
                format!(r#""clientName":"","clientUuid":"{client}","serverUuid":"{gateway}""#);
            let answer = send(
                r#"{"id":1,"status":"success","params":{"tunnelProxyError":"TunnelProxyErrorInvalidUuid"}}"#,
            );
            let actions = fixture().text(&call(1, "RegisterClient", &params));
            assert_eq!(actions, [answer, closed.clone()]);
        }
    }
}

#[test]
fn every_fault_in_the_params_is_named() {
    let refused = |method, params| {
        let actions = fixture().text(&call(2, method, params));
        let [Action::Send(answer), Action::Close(Close::InvalidRequest)] = &actions[..] else {
            panic!("{actions:?}")
        };
        let answer: Value = serde_json::from_str(answer).expect("JSON");
        assert_eq!((&answer["id"], &answer["status"]), (&json!(2), &json!("error")));
        answer["error"].as_str().map(str::to_owned).expect("an error")
    };
    for (method, params, faults) in [
        ("RegisterServer", "", "'serverName' is missing; 'serverUuid' is missing"),
        (
            "RegisterServer",
            r#""serverName":1,"serverUuid":null,"token":2,"x":3"#,
            "'serverName' must be of type String; 'serverUuid' must be of type Uuid; \
             'token' must be of type String; 'x' is unknown",
        ),
        (
            "RegisterClient",
            r#""serverName":"n""#,
            "'clientName' is missing; 'clientUuid' is missing; 'serverUuid' is missing; \
             'serverName' is unknown",
        ),
        ("DisconnectClient", r#""socketAddress":-1"#, "'socketAddress' must be of type UInt"),
        ("Ping", r#""timestamp":1.5"#, "'timestamp' must be of type UInt"),
        ("Ping", "", "'timestamp' is missing"),
    ] {
        assert_eq!(refused(method, params), format!("Invalid params: {faults}"));
    }
}

#[test]
fn a_ping_gets_its_timestamp_back() {
    let mut fixture = fixture();
    for timestamp in [0, 1_700_000_000, 9_007_199_254_740_993, u64::MAX] {
        let ping = call(5, "Ping", &format!(r#""timestamp":{timestamp}"#));
        let answer =
            format!(r#"{{"id":5,"status":"success","params":{{"timestamp":{timestamp}}}}}"#);
        assert_eq!(fixture.text(&ping), [send(&answer)]);
    }
    assert!(matches!(fixture.text(&register_server(6))[..], [Action::Register { .. }]));
}

#[test]
fn only_gateways_disconnect_clients() {
    let mut fixture = fixture();
    assert_eq!(
        fixture.text(&call(8, "DisconnectClient", r#""socketAddress":1"#)),
        [send(
            r#"{"id":8,"status":"success","params":{"tunnelProxyError":"TunnelProxyErrorForbiddenCall"}}"#
        )]
    );
    assert!(matches!(fixture.text(&register_server(9))[..], [Action::Register { .. }]));
}

#[test]
fn hello_and_introspect_know_of_the_tunnel_proxy() {
    let mut fixture = fixture();
    assert_eq!(
        fixture.text(r#"{"id":1,"method":"RemoteProxy.Hello"}"#),
        [send(
            r#"{"id":1,"status":"success","params":{"apiVersion":"0.6","name":"test","server":"nymea-remoteproxy","version":"1.2.3"}}"#
        )]
    );
    let actions = fixture.text(r#"{"id":2,"method":"RemoteProxy.Introspect"}"#);
    let [Action::Send(answer)] = &actions[..] else { panic!("{actions:?}") };
    assert!(answer.contains("TunnelProxy.RegisterServer"));
    assert!(answer.contains("TunnelProxy.ClientConnected"));
}

#[test]
fn without_the_tunnel_proxy_there_is_no_such_namespace() {
    let actions = Fixture::new().text(&register_server(1));
    let [Action::Send(answer), Action::Close(Close::InvalidRequest)] = &actions[..] else {
        panic!("{actions:?}")
    };
    assert!(answer.contains("No such namespace. There are Authentication, RemoteProxy"));
    let actions = Fixture::new().text(r#"{"id":2,"method":"RemoteProxy.Introspect"}"#);
    let [Action::Send(answer)] = &actions[..] else { panic!("{actions:?}") };
    assert!(!answer.contains("TunnelProxy."));
}

#[test]
fn a_token_is_taken_and_dropped_unless_it_is_demanded() {
    let params = format!(r#""serverName":"gateway","serverUuid":"{ONE}","token":"t""#);
    let request = call(1, "RegisterServer", &params);
    let role = gateway();
    assert_eq!(fixture().text(&request), [Action::Register { role, token: None }]);

    let rules = Rules { token_for_gateways: true, ..RULES };
    let mut demanding = Fixture::with_rules(rules);
    let (role, token) = (gateway(), Some(Token::new("t")));
    assert_eq!(demanding.text(&request), [Action::Register { role, token }]);
    assert_eq!(demanding.verdict(Verdict::Valid), []);
    assert!(matches!(demanding.registered(Ok(()))[..], [Action::Send(_)]));
    assert_eq!(demanding.endpoint.role(), Some(&gateway()));

    let mut unchecked = Fixture::with_rules(rules);
    unchecked.text(&request);
    let actions = unchecked.registered(Ok(()));
    assert!(matches!(actions[..], [Action::Send(_), Action::Close(Close::ForbiddenCall)]));
}

#[test]
fn a_demanded_token_must_be_there() {
    let missing = |rules, request: &str| {
        let actions = Fixture::with_rules(rules).text(request);
        match &actions[..] {
            [Action::Send(answer), Action::Close(Close::InvalidRequest)] => {
                assert!(answer.contains("Invalid params: 'token' is missing"), "{answer}");
                true
            }
            [Action::Register { token: None, .. }] => false,
            other => panic!("{other:?}"),
        }
    };
    let gateways = Rules { token_for_gateways: true, ..RULES };
    let apps = Rules { token_for_apps: true, ..RULES };
    assert!(missing(gateways, &register_server(1)) && !missing(gateways, &register_client(1)));
    assert!(missing(apps, &register_client(1)) && !missing(apps, &register_server(1)));
}

#[test]
fn a_token_that_is_not_accepted_ends_the_registration() {
    let rules = Rules { token_for_apps: true, ..RULES };
    let params =
        format!(r#""clientName":"","clientUuid":"{TWO}","serverUuid":"{ONE}","token":"t""#);
    for (verdict, error, close) in [
        (
            Verdict::Invalid,
            "Invalid token. You are not allowed to use this server.",
            Close::TokenRefused,
        ),
        (
            Verdict::Timeout,
            "The authentication took too long. This is temporary, please try again later.",
            Close::AuthenticationUnavailable,
        ),
        (
            Verdict::Unavailable,
            "The authentication is not available. This is temporary, please try again later.",
            Close::AuthenticationUnavailable,
        ),
    ] {
        let mut fixture = Fixture::with_rules(rules);
        fixture.text(&call(4, "RegisterClient", &params));
        let answer = format!(r#"{{"id":4,"status":"error","error":"{error}"}}"#);
        assert_eq!(fixture.verdict(verdict), [send(&answer), Action::Close(close)]);
        assert_eq!(fixture.registered(Ok(())), []);
    }

    let mut slow = Fixture::with_rules(rules);
    slow.text(&call(4, "RegisterClient", &params));
    let actions = slow.after(rules.authentication);
    let [Action::Send(answer), Action::Close(Close::AuthenticationUnavailable)] = &actions[..]
    else {
        panic!("{actions:?}")
    };
    assert!(answer.contains("The authentication took too long"), "{answer}");
}

#[test]
fn a_registration_has_its_time() {
    let mut slow = fixture();
    slow.text(&register_client(1));
    assert_eq!(slow.endpoint.deadline(), Some(slow.now + RULES.authentication));
    assert_eq!(
        slow.after(RULES.authentication),
        [
            send(
                r#"{"id":1,"status":"success","params":{"tunnelProxyError":"TunnelProxyErrorInternalServerError"}}"#
            ),
            Action::Close(Close::RegistrationUnavailable)
        ]
    );
    let mut silent = fixture();
    silent.text(&call(1, "Ping", r#""timestamp":1"#));
    assert_eq!(silent.after(RULES.inactivity), [Action::Close(Close::Inactive)]);
}

#[test]
fn data_before_the_answer_closes() {
    let mut fixture = fixture();
    fixture.text(&register_server(1));
    let space = Chunk { last: false, ..Chunk::text("\n") };
    fixture.endpoint.receive(&space);
    assert_eq!(fixture.actions(), [], "it belongs to the request");
    fixture.endpoint.receive(&Chunk::binary(&b"\xC0"[..]));
    assert_eq!(fixture.actions(), [Action::Close(Close::EarlyData)]);

    let mut twice = Fixture::with_rules(RULES);
    let actions = twice.text(&format!("{}\n{}", register_client(1), register_client(2)));
    assert_eq!(actions[1..], [Action::Close(Close::EarlyData)]);
}
