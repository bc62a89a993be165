//! Every message at address 0, frozen as bytes, and when the gateway is closed.

use proptest::prelude::*;

use super::*;
use crate::protocol::MAX_REQUEST;
use crate::protocol::slip::{Decoder, Event, PROXY_ADDRESS, encode};

const SILENCE: Duration = Duration::from_mins(1);
const RULES: Rules = Rules {
    inactivity: Duration::from_secs(8),
    authentication: Duration::from_secs(10),
    waiting: Duration::from_mins(1),
    requests: 5,
    tunnel_proxy: true,
    token_for_gateways: false,
    token_for_apps: false,
    app_window: 4096,
};

struct Fixture {
    control: GatewayControl,
    now: Instant,
}

impl Fixture {
    fn new() -> Self {
        let now = Instant::now();
        let server = Arc::new(ServerInfo { name: "test".into(), version: "1.2.3".into() });
        let gateway = Gateway { uuid: app().gateway, name: String::new(), flow_control: true };
        Self { control: GatewayControl::new(server, &RULES, &gateway, SILENCE, now), now }
    }

    fn frame(&mut self, data: &str) -> Vec<ControlAction> {
        self.piece(data, true)
    }

    fn piece(&mut self, data: &str, last: bool) -> Vec<ControlAction> {
        self.control.receive(data.as_bytes(), last);
        self.actions()
    }

    fn after(&mut self, time: Duration) -> Vec<ControlAction> {
        self.now += time;
        self.control.handle_timeout(self.now);
        self.actions()
    }

    fn actions(&mut self) -> Vec<ControlAction> {
        std::iter::from_fn(|| self.control.poll_action()).collect()
    }
}

fn send(message: &str) -> ControlAction {
    ControlAction::Send(format!("{message}\n"))
}

fn call(id: i64, method: &str, params: &str) -> String {
    format!("{{\"id\":{id},\"method\":\"TunnelProxy.{method}\",\"params\":{{{params}}}}}\n")
}

fn app() -> App {
    let uuid = |text: &str| text.parse().expect("a UUID");
    App {
        uuid: uuid("AAAAAAAA-2222-3333-4444-555555555555"),
        name: "an \"app\"".into(),
        gateway: uuid("66666666-7777-8888-9999-aaaaaaaaaaaa"),
    }
}

#[test]
fn the_notifications_are_counted() {
    let mut fixture = Fixture::new();
    fixture.control.client_connected(&app(), "2001:db8::1", 1);
    fixture.control.client_connected(&app(), "192.0.2.7", 0xFFFE);
    fixture.control.client_received(0xFFFE, 4096);
    fixture.control.client_disconnected(1);
    assert_eq!(
        fixture.actions(),
        [
            send(
                r#"{"id":1,"notification":"TunnelProxy.ClientConnected","params":{"clientName":"an \"app\"","clientPeerAddress":"2001:db8::1","clientUuid":"{aaaaaaaa-2222-3333-4444-555555555555}","socketAddress":1}}"#
            ),
            send(
                r#"{"id":2,"notification":"TunnelProxy.ClientConnected","params":{"clientName":"an \"app\"","clientPeerAddress":"192.0.2.7","clientUuid":"{aaaaaaaa-2222-3333-4444-555555555555}","socketAddress":65534}}"#
            ),
            send(
                r#"{"id":3,"notification":"TunnelProxy.ClientReceived","params":{"byteCount":4096,"socketAddress":65534}}"#
            ),
            send(
                r#"{"id":4,"notification":"TunnelProxy.ClientDisconnected","params":{"socketAddress":1}}"#
            ),
        ]
    );
}

#[test]
fn a_ping_gets_its_timestamp_back() {
    for timestamp in [0, 1_700_000_000, u64::MAX] {
        let ping = call(4, "Ping", &format!(r#""timestamp":{timestamp}"#));
        let answer =
            format!(r#"{{"id":4,"status":"success","params":{{"timestamp":{timestamp}}}}}"#);
        assert_eq!(Fixture::new().frame(&ping), [send(&answer)]);
    }
}

#[test]
fn an_app_is_disconnected() {
    let mut fixture = Fixture::new();
    assert_eq!(
        fixture.frame(&call(2, "DisconnectClient", r#""socketAddress":7"#)),
        [ControlAction::Disconnect { request: 2, address: 7 }]
    );
    fixture.control.disconnected(2, Ok(()));
    assert_eq!(
        fixture.actions(),
        [send(
            r#"{"id":2,"status":"success","params":{"tunnelProxyError":"TunnelProxyErrorNoError"}}"#
        )]
    );
    let unknown = send(
        r#"{"id":2,"status":"success","params":{"tunnelProxyError":"TunnelProxyErrorUnknownSocketAddress"}}"#,
    );
    fixture.control.disconnected(2, Err(TunnelProxyError::UnknownSocketAddress));
    assert_eq!(fixture.actions(), std::slice::from_ref(&unknown));
    for never in [0, 0xFFFF, 0x1_0001, u64::MAX] {
        let params = format!(r#""socketAddress":{never}"#);
        assert_eq!(
            fixture.frame(&call(2, "DisconnectClient", &params)),
            std::slice::from_ref(&unknown)
        );
    }
}

#[test]
fn hello_and_introspect_are_answered_as_before() {
    let mut fixture = Fixture::new();
    assert_eq!(
        fixture.frame(r#"{"id":1,"method":"RemoteProxy.Hello"}"#),
        [send(
            r#"{"id":1,"status":"success","params":{"apiVersion":"0.6","name":"test","server":"nymea-remoteproxy","version":"1.2.3"}}"#
        )]
    );
    let actions = fixture.frame(r#"{"id":2,"method":"RemoteProxy.Introspect"}"#);
    let [ControlAction::Send(answer)] = &actions[..] else { panic!("{actions:?}") };
    assert!(answer.contains("Authentication.Authenticate") && answer.contains("TunnelProxy.Ping"));
}

#[test]
fn a_second_registration_ends_the_connection() {
    let uuid = "{66666666-7777-8888-9999-aaaaaaaaaaaa}";
    let server = format!(r#""serverName":"","serverUuid":"{uuid}""#);
    assert_eq!(
        Fixture::new().frame(&call(3, "RegisterServer", &server)),
        [
            send(
                r#"{"id":3,"status":"success","params":{"slipEnabled":false,"tunnelProxyError":"TunnelProxyErrorAlreadyRegistered"}}"#
            ),
            ControlAction::Close(Close::AlreadyRegistered)
        ]
    );
    let client = format!(r#""clientName":"","clientUuid":"{uuid}","serverUuid":"{uuid}""#);
    assert_eq!(
        Fixture::new().frame(&call(3, "RegisterClient", &client)),
        [
            send(
                r#"{"id":3,"status":"success","params":{"tunnelProxyError":"TunnelProxyErrorAlreadyRegistered"}}"#
            ),
            ControlAction::Close(Close::AlreadyRegistered)
        ]
    );
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
            r#"{"id":4,"method":"Authentication.Authenticate","params":{"token":"t"}}"#,
            r#"{"id":4,"status":"error","error":"No such namespace. There are RemoteProxy, TunnelProxy"}"#,
        ),
        (
            r#"{"id":5,"method":"TunnelProxy.Y"}"#,
            r#"{"id":5,"status":"error","error":"No such method. This namespace has RegisterServer, RegisterClient, DisconnectClient, Ping"}"#,
        ),
        (
            r#"{"id":6,"method":"TunnelProxy.Ping","params":{"a":1}}"#,
            r#"{"id":6,"status":"error","error":"Invalid params: 'timestamp' is missing; 'a' is unknown"}"#,
        ),
    ] {
        let mut fixture = Fixture::new();
        let actions = fixture.frame(input);
        let [ControlAction::Send(sent), ControlAction::Close(Close::InvalidRequest)] = &actions[..]
        else {
            panic!("{input}: {actions:?}")
        };
        assert!(sent.starts_with(answer) && sent.ends_with("}\n"), "{input}: {sent}");
        fixture.control.client_connected(&app(), "", 1);
        fixture.control.disconnected(1, Ok(()));
        fixture.control.close(Close::Draining);
        assert_eq!(fixture.frame(input), [], "closed is closed");
        assert_eq!(fixture.control.deadline(), None);
    }
}

#[test]
fn a_frame_may_hold_several_requests_and_come_in_pieces() {
    let mut fixture = Fixture::new();
    let ping = call(1, "Ping", r#""timestamp":1"#);
    let actions = fixture.frame(&format!(" {ping}{ping}"));
    assert!(matches!(actions[..], [ControlAction::Send(_), ControlAction::Send(_)]));
    let (one, two) = ping.split_at(9);
    assert_eq!(fixture.piece(one, false), []);
    assert!(matches!(fixture.piece(two, true)[..], [ControlAction::Send(_)]));
    assert_eq!(fixture.frame("\n"), []);
    assert_eq!(fixture.frame(""), []);
}

#[test]
fn what_is_left_of_a_broken_frame_is_dropped() {
    let mut fixture = Fixture::new();
    assert_eq!(fixture.piece("{\"id\":1,", false), []);
    fixture.control.abandon();
    assert_eq!(fixture.actions(), []);
    let ping = call(1, "Ping", r#""timestamp":1"#);
    assert!(matches!(fixture.frame(&ping)[..], [ControlAction::Send(_)]));
}

#[test]
fn requests_larger_than_10_kib_end_the_connection() {
    let long = call(1, "Ping", &format!(r#""x":"{}""#, "x".repeat(MAX_REQUEST)));
    let too_large = [ControlAction::Close(Close::RequestTooLarge)];
    assert_eq!(Fixture::new().frame(&long), too_large);
    let mut fixture = Fixture::new();
    let (one, two) = long.split_at(MAX_REQUEST);
    assert_eq!(fixture.piece(one, false), []);
    assert_eq!(fixture.piece(two, false), too_large);
}

#[test]
fn a_silent_gateway_is_closed() {
    let mut fixture = Fixture::new();
    let second = Duration::from_secs(1);
    assert_eq!(fixture.control.deadline(), Some(fixture.now + SILENCE));
    assert_eq!(fixture.after(SILENCE.saturating_sub(second)), []);
    fixture.control.heard(fixture.now);
    assert_eq!(fixture.after(SILENCE.saturating_sub(second)), []);
    assert_eq!(fixture.after(second), [ControlAction::Close(Close::SilentGateway)]);
    assert_eq!(fixture.after(SILENCE), []);
}

proptest! {
    /// The messages from a stream of frames do not depend on where it is cut.
    #[test]
    fn any_split_of_the_stream_gives_the_same_actions(
        frames in prop::collection::vec(prop::sample::select(vec![
            r#"{"id":1,"method":"RemoteProxy.Hello"}"#,
            "{\"id\":2,\"method\":\"TunnelProxy.Ping\",\"params\":{\"timestamp\":1}}\n",
            "{\"id\":3,\"method\":\"TunnelProxy.DisconnectClient\",\"params\":{\"socketAddress\":2}}",
            " \n",
            "{\"id\":4,",
        ]), 0..6),
        cuts in prop::collection::vec(any::<usize>(), 0..20),
    ) {
        let mut stream = bytes::BytesMut::new();
        for frame in &frames {
            encode(PROXY_ADDRESS, frame.as_bytes(), &mut stream);
        }
        let mut cuts: Vec<usize> = cuts.iter().map(|at| at % (stream.len() + 1)).collect();
        cuts.extend([0, stream.len()]);
        cuts.sort_unstable();
        let pieces = cuts.windows(2).map(|pair| &stream[pair[0]..pair[1]]);
        prop_assert_eq!(fed(pieces), fed([&stream[..]]));
    }
}

fn fed<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Vec<ControlAction> {
    let mut fixture = Fixture::new();
    let mut decoder = Decoder::with_limit(16);
    let mut actions = Vec::new();
    for mut piece in pieces {
        while let Some(event) = decoder.next_event(&mut piece) {
            let Event::Data { address: PROXY_ADDRESS, data, last } = event else {
                panic!("{event:?}")
            };
            fixture.control.receive(&data, last);
            actions.extend(fixture.actions());
        }
    }
    actions
}
