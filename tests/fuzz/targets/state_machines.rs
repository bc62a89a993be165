//! The state machines of the protocol: an `Endpoint`, and after the registration of a gateway its
//! `GatewayControl`, act like a model that is too simple to be wrong (`state_machines_model.rs`),
//! for requests good and bad (`state_machines_items.rs`), cut anyhow, among verdicts, timeouts and goodbyes.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use nymea_remoteproxy::protocol::{
    Action, App, Chunk, Close, ControlAction, Endpoint, GatewayControl, Generation, Identity, Kind,
    Profile, Role, Rules, ServerInfo, TunnelProxyError, Verdict,
};
use serde_json::Value;

#[path = "state_machines_control.rs"]
mod control;
#[path = "state_machines_items.rs"]
mod items;
#[path = "state_machines_model.rs"]
mod model;

use control::{Control, SILENCE};
use items::{Item, Reader, UUID};
use model::{Expected, Greeter, INACTIVITY, REQUESTS};

const ERRORS: [TunnelProxyError; 5] = [
    TunnelProxyError::InvalidUuid,
    TunnelProxyError::InternalServerError,
    TunnelProxyError::ServerNotFound,
    TunnelProxyError::ForbiddenCall,
    TunnelProxyError::AlreadyRegistered,
];

/// The first byte says what is switched on, the others what happens.
pub(crate) fn run(input: &[u8]) {
    let mut script = Script { bytes: input.iter(), now: Instant::now() };
    let Some(switches) = script.next() else { return };
    let rules = Rules {
        inactivity: INACTIVITY,
        authentication: model::AUTHENTICATION,
        waiting: model::WAITING,
        requests: REQUESTS,
        tunnel_proxy: switches & 1 == 0,
        token_for_gateways: switches & 2 != 0,
        token_for_apps: switches & 4 != 0,
        app_window: 1,
    };
    let is_stream = switches & 8 != 0;
    let server = Arc::new(ServerInfo { name: "name".into(), version: "1".into() });
    let mut endpoint = Endpoint::new(Arc::clone(&server), rules, script.now);
    let mut greeter = Greeter::new(rules, script.now);
    while let Some(step) = script.next() {
        greet(step, &mut script, is_stream, &mut endpoint, &mut greeter);
        assert_eq!(endpoint.deadline(), greeter.deadline());
        assert_eq!(endpoint.is_authenticated(), greeter.is_authenticated());
        if let Some(Role::Gateway(gateway)) = endpoint.role() {
            assert!(greeter.is_gateway());
            assert_eq!(gateway.uuid, UUID);
            let control = GatewayControl::new(server, &rules, gateway, SILENCE, script.now);
            let model = Control::new(rules, script.now);
            return converse(&mut script, control, model);
        }
    }
}

/// What happens, byte by byte.
struct Script<'a> {
    bytes: std::slice::Iter<'a, u8>,
    now: Instant,
}

impl Script<'_> {
    fn next(&mut self) -> Option<u8> {
        self.bytes.next().copied()
    }

    fn byte(&mut self) -> u8 {
        self.next().unwrap_or(0)
    }

    fn wait(&mut self) {
        let seconds = u64::from(self.byte()) % 70;
        self.now += Duration::from_secs(seconds);
    }

    fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[usize::from(self.byte()) % of.len()]
    }

    /// Up to three requests, and where the text of them is cut.
    fn text(&mut self) -> (Reader, Vec<usize>) {
        let shape = self.byte();
        let mut items: Vec<_> = (0..=shape % 3).map(|_| Item::pick(self.byte())).collect();
        // Later input would belong to it.
        let finished = items.iter().position(|item| *item == Item::Unfinished);
        items.truncate(finished.map_or(items.len(), |at| at + 1));
        let reader = Reader::new(&items);
        let size = reader.text.len();
        let cuts = (0..shape / 3 % 4).map(|_| usize::from(self.byte()) * 41 % (size + 1));
        let mut cuts: Vec<_> = cuts.collect();
        cuts.push(size);
        cuts.sort_unstable();
        cuts.dedup();
        (reader, cuts)
    }
}

/// One step before the connection is registered or its tunnel is established.
fn greet(
    step: u8,
    script: &mut Script<'_>,
    is_stream: bool,
    endpoint: &mut Endpoint,
    greeter: &mut Greeter,
) {
    match step % 12 {
        // The end of an unfinished request is unknown.
        0..=5 if greeter.has_part => {}
        0..=5 => {
            let (mut reader, cuts) = script.text();
            let mut from = 0;
            for cut in cuts {
                let last = !is_stream && cut == reader.text.len();
                let kind = if is_stream { Kind::Stream } else { Kind::Text };
                let data = Bytes::copy_from_slice(&reader.text.as_bytes()[from..cut]);
                endpoint.receive(&Chunk { kind, data, last });
                from = cut;
                check(endpoint, greeter.hears(&mut reader, cut, last));
            }
        }
        6 => {
            endpoint.receive(&Chunk::binary(&b"{}"[..]));
            check(endpoint, greeter.hears_binary());
        }
        7 => {
            let verdict = script.pick(&[
                Verdict::Valid,
                Verdict::Valid,
                Verdict::Invalid,
                Verdict::Timeout,
                Verdict::Unavailable,
                Verdict::NoRoom,
            ]);
            endpoint.authenticated(script.now, verdict);
            check(endpoint, greeter.verdict(script.now, verdict));
        }
        8 => {
            let error = script.byte();
            let result = match error % 8 {
                0..=2 => Ok(()),
                other => Err(ERRORS[usize::from(other) - 3]),
            };
            endpoint.registered(result);
            check(endpoint, greeter.registered(result));
        }
        9 => {
            let uuid = script.pick(&["", "{AAAA}", "aaaa", "b"]).to_owned();
            let identity = Identity { uuid: uuid.clone(), name: "\"".into() };
            endpoint.paired(&Profile { generation: Generation::Two, identity });
            check(endpoint, greeter.paired(&uuid));
        }
        10 => {
            script.wait();
            endpoint.handle_timeout(script.now);
            check(endpoint, greeter.clock(script.now));
        }
        _ => {
            endpoint.close(Close::Draining);
            check(endpoint, greeter.close(Close::Draining));
        }
    }
}

fn check(endpoint: &mut Endpoint, expected: Vec<Expected>) {
    let mut expected = expected.into_iter();
    while let Some(action) = endpoint.poll_action() {
        let expected = expected.next();
        let fits = match (&expected, &action) {
            (Some(Expected::Message(message)), Action::Send(sent)) => message.fits(&parsed(sent)),
            (Some(Expected::Authenticate), Action::Authenticate(token)) => token.reveal() == "t",
            (Some(Expected::Offer), Action::Offer(_)) => true,
            (
                Some(Expected::Register { gateway, token }),
                Action::Register { role, token: its },
            ) => matches!(role, Role::Gateway(_)) == *gateway && its.is_some() == *token,
            (Some(Expected::Close(close)), Action::Close(its)) => close == its,
            _ => false,
        };
        assert!(fits, "expected {expected:?}, not {action:?}");
    }
    assert!(expected.next().is_none(), "something is missing");
}

/// The rest of the script, with a registered gateway.
fn converse(script: &mut Script<'_>, mut control: GatewayControl, mut model: Control) {
    while let Some(step) = script.next() {
        match step % 12 {
            0..=5 => {
                let (mut reader, cuts) = script.text();
                let abandoned = step % 12 == 5;
                let mut from = 0;
                for cut in cuts {
                    let last = cut == reader.text.len();
                    if last && abandoned {
                        control.abandon();
                        check_control(&mut control, Vec::new());
                        break;
                    }
                    control.receive(&reader.text.as_bytes()[from..cut], last);
                    from = cut;
                    check_control(&mut control, model.hears(&mut reader, cut, last));
                }
            }
            6 => {
                let app = App { uuid: UUID, name: "\u{1F4F1}\n".into(), gateway: UUID };
                let address = u16::from(script.byte());
                control.client_connected(&app, "::1", address);
                check_control(&mut control, model.client_connected());
            }
            7 => {
                let address = u16::from(script.byte());
                control.client_disconnected(address);
                check_control(&mut control, model.client_disconnected());
            }
            8 => {
                let result = script.pick(&[Ok(()), Err(TunnelProxyError::UnknownSocketAddress)]);
                control.disconnected(7, result);
                check_control(&mut control, model.disconnected(result));
            }
            9 => {
                control.heard(script.now);
                model.heard(script.now);
            }
            10 => {
                script.wait();
                control.handle_timeout(script.now);
                check_control(&mut control, model.clock(script.now));
            }
            _ => {
                control.close(Close::Draining);
                check_control(&mut control, model.close(Close::Draining));
            }
        }
        assert_eq!(control.deadline(), model.deadline());
    }
}

fn check_control(control: &mut GatewayControl, expected: Vec<Expected>) {
    let mut expected = expected.into_iter();
    while let Some(action) = control.poll_action() {
        let expected = expected.next();
        let fits = match (&expected, &action) {
            (Some(Expected::Message(message)), ControlAction::Send(sent)) => {
                message.fits(&parsed(sent))
            }
            (
                Some(Expected::Disconnect { request, address }),
                ControlAction::Disconnect { request: its, address: and },
            ) => (request, address) == (its, and),
            (Some(Expected::Close(close)), ControlAction::Close(its)) => close == its,
            _ => false,
        };
        assert!(fits, "expected {expected:?}, not {action:?}");
    }
    assert!(expected.next().is_none(), "something is missing");
}

/// A message as clients find it: compact, and at its end the line feed that they look for.
fn parsed(sent: &str) -> Value {
    let json = sent.strip_suffix("}\n").expect("a line feed behind a bracket");
    assert!(!json.contains('\n'));
    serde_json::from_str(&sent[..sent.len() - 1]).expect("JSON")
}
