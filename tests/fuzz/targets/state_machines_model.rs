//! The model of the state machines: what each request leads to is written down beside it, so that
//! nothing has to be parsed, and states are followed one message at a time.

use std::time::{Duration, Instant};

use nymea_remoteproxy::protocol::{Close, Rules, TunnelProxyError, Verdict};
use serde_json::{Value, json};

use super::items::{Item, Reader};

pub(crate) const INACTIVITY: Duration = Duration::from_secs(8);
pub(crate) const AUTHENTICATION: Duration = Duration::from_secs(10);
pub(crate) const WAITING: Duration = Duration::from_mins(1);
pub(crate) const REQUESTS: u32 = 6;

/// What is to come out.
#[derive(Debug)]
pub(crate) enum Expected {
    Message(Message),
    Authenticate,
    Offer,
    Register { gateway: bool, token: bool },
    Disconnect { request: i64, address: u16 },
    Close(Close),
}

/// The kind of a message, and what of it is known.
#[derive(Debug)]
pub(crate) enum Message {
    /// With this value at a place in it (a JSON pointer), or without any params.
    Success {
        id: i64,
        holds: Option<(&'static str, Value)>,
    },
    Error {
        id: i64,
        begins: &'static str,
        code: Option<&'static str>,
    },
    Notification {
        id: i64,
        name: &'static str,
    },
}

impl Message {
    pub(crate) fn fits(&self, message: &Value) -> bool {
        match self {
            Self::Success { id, holds } => {
                message["id"] == *id
                    && message["status"] == "success"
                    && message.get("error").is_none()
                    && match holds {
                        Some((place, value)) => message.pointer(place) == Some(value),
                        None => message.get("params").is_none(),
                    }
            }
            Self::Error { id, begins, code } => {
                let error = message["error"].as_str();
                let its_code = message["params"]["authenticationError"].as_str();
                message["id"] == *id
                    && message["status"] == "error"
                    && error.is_some_and(|error| error.starts_with(begins))
                    && its_code == *code
            }
            Self::Notification { id, name } => {
                message["id"] == *id && message["notification"] == *name
            }
        }
    }
}

#[derive(Debug)]
enum State {
    Greeting,
    Authenticating { two: bool },
    Waiting { two: bool, until: Instant },
    Established,
    Registering { id: i64, gateway: bool, unchecked: bool },
    Registered { gateway: bool },
    Closed,
}

/// An endpoint until its tunnel is established or it is registered.
pub(crate) struct Greeter {
    rules: Rules,
    since: Instant,
    state: State,
    requests: u32,
    /// The message that came last is complete.
    message_ended: bool,
    /// A request has begun and not ended.
    pub(crate) has_part: bool,
    out: Vec<Expected>,
}

impl Greeter {
    pub(crate) fn new(rules: Rules, since: Instant) -> Self {
        let state = State::Greeting;
        let (message_ended, has_part, out) = (true, false, Vec::new());
        Self { rules, since, state, requests: 0, message_ended, has_part, out }
    }

    pub(crate) fn deadline(&self) -> Option<Instant> {
        match self.state {
            State::Greeting => Some(self.since + INACTIVITY),
            State::Authenticating { .. } | State::Registering { .. } => {
                Some(self.since + AUTHENTICATION)
            }
            State::Waiting { until, .. } => Some(until),
            State::Established | State::Registered { .. } | State::Closed => None,
        }
    }

    pub(crate) fn is_authenticated(&self) -> bool {
        matches!(self.state, State::Waiting { .. } | State::Established | State::Registered { .. })
    }

    pub(crate) fn is_gateway(&self) -> bool {
        matches!(self.state, State::Registered { gateway: true })
    }

    fn is_pending(&self) -> bool {
        matches!(
            self.state,
            State::Authenticating { .. } | State::Waiting { .. } | State::Registering { .. }
        )
    }

    /// Takes a piece of text.
    pub(crate) fn hears(&mut self, reader: &mut Reader, cut: usize, last: bool) -> Vec<Expected> {
        let from = reader.takes(cut);
        // The rest of the request's message, or white space on a stream.
        let same_message = !(std::mem::replace(&mut self.message_ended, last) && last);
        if self.is_pending() && (!same_message || reader.has_data(from)) {
            self.ends(Close::EarlyData);
        }
        while let State::Greeting = self.state
            && let Some(item) = reader.next()
        {
            self.handles(item);
        }
        if self.is_pending() && reader.done > from && reader.has_more() {
            self.ends(Close::EarlyData);
        }
        self.has_part = matches!(self.state, State::Greeting) && reader.has_more();
        if self.has_part && last {
            self.refuses(-1, "Failed to parse JSON data");
        }
        std::mem::take(&mut self.out)
    }

    pub(crate) fn hears_binary(&mut self) -> Vec<Expected> {
        self.message_ended = true;
        if let State::Greeting = self.state {
            self.refuses(-1, "Failed to parse JSON data");
        } else if self.is_pending() {
            self.ends(Close::EarlyData);
        }
        std::mem::take(&mut self.out)
    }

    fn handles(&mut self, item: Item) {
        match item {
            Item::Garbage => return self.refuses(-1, "Failed to parse JSON data"),
            Item::TooLarge => return self.ends(Close::RequestTooLarge),
            _ => {}
        }
        self.requests += 1;
        if self.requests > REQUESTS {
            return self.ends(Close::TooManyRequests);
        }
        if !self.rules.tunnel_proxy && item.is_of_tunnel_proxy() {
            return self.refuses(item.id(), "No such namespace");
        }
        match item {
            Item::One | Item::Two => {
                self.out.push(Expected::Authenticate);
                self.state = State::Authenticating { two: item == Item::Two };
            }
            Item::RegisterServer { valid, token } | Item::RegisterClient { valid, token } => {
                let gateway = matches!(item, Item::RegisterServer { .. });
                let unchecked = demands_token(&self.rules, item);
                if unchecked && !token {
                    return self.refuses(item.id(), "Invalid params: 'token' is missing");
                }
                if !valid {
                    self.out.push(registration(item.id(), "InvalidUuid"));
                    return self.ends(Close::InvalidUuid);
                }
                self.out.push(Expected::Register { gateway, token: unchecked });
                self.state = State::Registering { id: item.id(), gateway, unchecked };
            }
            Item::Disconnect(_) => self.out.push(registration(item.id(), "ForbiddenCall")),
            Item::Bad(_, id, begins) => self.refuses(id, begins),
            Item::BadForTunnelProxy(_, begins) => self.refuses(item.id(), begins),
            Item::Hello | Item::Introspect | Item::Ping => {
                self.out.push(plain_answer(item, self.rules.tunnel_proxy));
            }
            Item::Space | Item::Unfinished | Item::Garbage | Item::TooLarge => {}
        }
    }

    pub(crate) fn verdict(&mut self, now: Instant, verdict: Verdict) -> Vec<Expected> {
        match (&mut self.state, verdict) {
            (State::Authenticating { two }, Verdict::Valid) => {
                let two = *two;
                let code = ("/params/authenticationError", json!("AuthenticationErrorNoError"));
                let holds = two.then_some(code);
                self.out.push(Expected::Message(Message::Success { id: 3, holds }));
                self.out.push(Expected::Offer);
                self.state = State::Waiting { two, until: now + WAITING };
            }
            (State::Registering { unchecked, .. }, Verdict::Valid) => *unchecked = false,
            _ => self.is_not_authenticated(verdict),
        }
        std::mem::take(&mut self.out)
    }

    fn is_not_authenticated(&mut self, verdict: Verdict) {
        let (id, two) = match self.state {
            State::Authenticating { two } => (3, two),
            State::Registering { id, .. } => (id, false),
            _ => return,
        };
        let (begins, code, close) = match verdict {
            Verdict::Valid => return,
            Verdict::Invalid => (
                "Invalid token. You are not allowed to use this server.",
                "AuthenticationErrorAuthenticationFailed",
                Close::TokenRefused,
            ),
            Verdict::Timeout => (
                "The authentication took too long",
                "AuthenticationErrorTimeout",
                Close::AuthenticationUnavailable,
            ),
            Verdict::Unavailable => (
                "The authentication is not available",
                "AuthenticationErrorProxyError",
                Close::AuthenticationUnavailable,
            ),
            Verdict::NoRoom => {
                ("There are too many connections", "AuthenticationErrorProxyError", Close::NoRoom)
            }
        };
        let code = two.then_some(code);
        self.out.push(Expected::Message(Message::Error { id, begins, code }));
        self.ends(close);
    }

    pub(crate) fn registered(&mut self, result: Result<(), TunnelProxyError>) -> Vec<Expected> {
        if let State::Registering { id, gateway, unchecked } = self.state {
            let result =
                if unchecked { result.and(Err(TunnelProxyError::ForbiddenCall)) } else { result };
            match result {
                Ok(()) => {
                    self.out.push(registration(id, "NoError"));
                    self.state = State::Registered { gateway };
                }
                Err(error) => {
                    self.out.push(registration(id, &format!("{error:?}")));
                    self.ends(match error {
                        TunnelProxyError::InvalidUuid => Close::InvalidUuid,
                        TunnelProxyError::InternalServerError => Close::RegistrationUnavailable,
                        TunnelProxyError::ServerNotFound => Close::GatewayNotFound,
                        TunnelProxyError::AlreadyRegistered => Close::AlreadyRegistered,
                        _ => Close::ForbiddenCall,
                    });
                }
            }
        }
        std::mem::take(&mut self.out)
    }

    pub(crate) fn paired(&mut self, uuid: &str) -> Vec<Expected> {
        if let State::Waiting { two, .. } = self.state {
            if two && uuid.to_lowercase().contains("aaaa") {
                self.ends(Close::Loop);
            } else {
                let name = if two { "RemoteProxy.TunnelEstablished" } else { "Tunnel.Established" };
                self.out.push(Expected::Message(Message::Notification { id: 1, name }));
                self.state = State::Established;
            }
        }
        std::mem::take(&mut self.out)
    }

    pub(crate) fn clock(&mut self, now: Instant) -> Vec<Expected> {
        if self.deadline().is_some_and(|deadline| deadline <= now) {
            match self.state {
                State::Greeting => {
                    if self.has_part {
                        self.out.push(error(-1, "Failed to parse JSON data"));
                    }
                    self.ends(Close::Inactive);
                }
                State::Waiting { .. } => self.ends(Close::NobodyCame),
                State::Registering { unchecked: false, .. } => {
                    return self.registered(Err(TunnelProxyError::InternalServerError));
                }
                _ => self.is_not_authenticated(Verdict::Timeout),
            }
        }
        std::mem::take(&mut self.out)
    }

    pub(crate) fn close(&mut self, close: Close) -> Vec<Expected> {
        self.ends(close);
        std::mem::take(&mut self.out)
    }

    fn refuses(&mut self, id: i64, begins: &'static str) {
        self.out.push(error(id, begins));
        self.ends(Close::InvalidRequest);
    }

    fn ends(&mut self, close: Close) {
        if !matches!(self.state, State::Closed) {
            self.out.push(Expected::Close(close));
            self.state = State::Closed;
        }
    }
}

pub(crate) fn demands_token(rules: &Rules, item: Item) -> bool {
    match item {
        Item::RegisterServer { .. } => rules.token_for_gateways,
        Item::RegisterClient { .. } => rules.token_for_apps,
        _ => false,
    }
}

pub(crate) fn error(id: i64, begins: &'static str) -> Expected {
    Expected::Message(Message::Error { id, begins, code: None })
}

/// An answer that says what came of something, with the name of the error.
pub(crate) fn registration(id: i64, error: &str) -> Expected {
    let label = format!("TunnelProxyError{error}").into();
    let holds = Some(("/params/tunnelProxyError", label));
    Expected::Message(Message::Success { id, holds })
}

pub(crate) fn plain_answer(item: Item, tunnel_proxy: bool) -> Expected {
    let holds = match item {
        Item::Introspect => {
            ("/params/types/AuthenticationError/0", json!("AuthenticationErrorNoError"))
        }
        Item::Ping => ("/params/timestamp", json!(u64::MAX)),
        _ => ("/params/apiVersion", json!(if tunnel_proxy { "0.6" } else { "0.3" })),
    };
    Expected::Message(Message::Success { id: item.id(), holds: Some(holds) })
}
