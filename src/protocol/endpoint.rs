//! The state machine of one connection, from its first byte until its tunnel stands
//! (sections 2 and 3 of the protocol).
//!
//! Chunks, verdicts, partners and the time go in; [`Action`]s come out of
//! [`Endpoint::poll_action`], to be carried out in order.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::json_stream::{FramingError, JsonStream, is_white_space};
use super::message::{Refusal, error_response, notification, parse_request, success_response};
use super::methods::{
    Authenticate, Call, ESTABLISHED_GENERATION_1, ESTABLISHED_GENERATION_2, ServerInfo, hello,
    introspection, resolve,
};
use super::{Chunk, Close, Kind, PairingKey, Token};

/// Which client generation a connection belongs to, told by what it sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Generation {
    /// The seed: authenticates with a token and maybe a nonce.
    One,
    /// Api 0.3: shows uuid and name, too.
    Two,
}

/// Who an endpoint says it is; empty for generation 1. Nobody vouches for it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// As the client wrote it.
    pub uuid: String,
    /// As the client wrote it.
    pub name: String,
}

impl Identity {
    /// Whether both show the same UUID, however it is written. Showing none is no match.
    fn same_uuid(&self, other: &Self) -> bool {
        let plain = |uuid: &str| uuid.trim_matches(['{', '}']).to_ascii_lowercase();
        !plain(&self.uuid).is_empty() && plain(&self.uuid) == plain(&other.uuid)
    }
}

/// What one endpoint of a tunnel has to know about the other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Profile {
    /// Decides which notification the endpoint gets.
    pub generation: Generation,
    /// Told to the other endpoint.
    pub identity: Identity,
}

/// What came of a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The token is good.
    Valid,
    /// The token is bad.
    Invalid,
    /// The authentication server did not answer in time.
    Timeout,
    /// The authentication server could not be asked or did not make sense.
    Unavailable,
}

/// The limits of this stage of a connection.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// From the start until the connection must have asked for authentication.
    pub inactivity: Duration,
    /// From the start until the connection must be authenticated.
    pub authentication: Duration,
    /// From authentication until the other endpoint must be there.
    pub waiting: Duration,
    /// Requests before authentication.
    pub requests: u32,
}

/// What the driver of an [`Endpoint`] has to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Send this text message.
    Send(String),
    /// Ask whether the token is valid, then call [`Endpoint::authenticated`].
    Authenticate(Token),
    /// Find the other endpoint with this key, then call [`Endpoint::paired`] or
    /// [`Endpoint::close`].
    Offer(PairingKey),
    /// Send what is still to be sent, then close. Nothing follows.
    Close(Close),
}

#[derive(Debug)]
enum State {
    Greeting { inactive_at: Instant, authenticate_by: Instant },
    Authenticating { request: i64, key: PairingKey, profile: Profile, until: Instant },
    Waiting { key: PairingKey, profile: Profile, until: Instant },
    Established,
    Closed,
}

/// One connection's side of the protocol.
#[derive(Debug)]
pub struct Endpoint {
    server: Arc<ServerInfo>,
    rules: Rules,
    state: State,
    inbox: JsonStream,
    /// The message that the inbox holds is complete.
    message_ended: bool,
    requests: u32,
    actions: VecDeque<Action>,
}

impl Endpoint {
    /// A connection that is open since `now`.
    pub fn new(server: Arc<ServerInfo>, rules: Rules, now: Instant) -> Self {
        let state = State::Greeting {
            inactive_at: now + rules.inactivity,
            authenticate_by: now + rules.authentication,
        };
        Self {
            server,
            rules,
            state,
            inbox: JsonStream::default(),
            message_ended: false,
            requests: 0,
            actions: VecDeque::new(),
        }
    }

    /// The next thing to do, until there is none.
    ///
    /// Requests are answered one at a time, when they are asked for: a client that sends many and
    /// reads no answers makes nothing pile up.
    pub fn poll_action(&mut self) -> Option<Action> {
        while self.actions.is_empty() && self.handle_input() {}
        self.actions.pop_front()
    }

    /// When [`Endpoint::handle_timeout`] must be called, if nothing else happens before.
    pub fn deadline(&self) -> Option<Instant> {
        match &self.state {
            State::Greeting { inactive_at, authenticate_by } => {
                Some(*inactive_at.min(authenticate_by))
            }
            State::Authenticating { until, .. } | State::Waiting { until, .. } => Some(*until),
            State::Established | State::Closed => None,
        }
    }

    /// The key and profile to offer, while the other endpoint is being waited for.
    pub fn offer(&self) -> Option<(PairingKey, &Profile)> {
        match &self.state {
            State::Waiting { key, profile, .. } => Some((*key, profile)),
            _ => None,
        }
    }

    /// Whether the connection has proved itself.
    pub fn is_authenticated(&self) -> bool {
        matches!(self.state, State::Waiting { .. } | State::Established)
    }

    /// Whether [`Endpoint::paired`] has led to a tunnel.
    pub fn is_established(&self) -> bool {
        matches!(self.state, State::Established)
    }

    /// Takes a chunk of a message from the client. [`Endpoint::poll_action`] must have had nothing
    /// more to say just before.
    pub fn receive(&mut self, chunk: &Chunk) {
        match self.state {
            State::Greeting { .. } if chunk.kind == Kind::Text => {
                self.inbox.push(&chunk.data);
                self.message_ended = chunk.last;
            }
            State::Greeting { .. } => {
                self.refuse(&Refusal::not_json("it must come in a text message"));
            }
            State::Authenticating { .. } | State::Waiting { .. } if is_trailing_space(chunk) => {}
            State::Authenticating { .. } | State::Waiting { .. } => self.close(Close::EarlyData),
            State::Established | State::Closed => {}
        }
    }

    /// Takes what came of [`Action::Authenticate`].
    pub fn authenticated(&mut self, now: Instant, verdict: Verdict) {
        let State::Authenticating { request, key, profile, .. } = &self.state else { return };
        if verdict == Verdict::Valid {
            let params = match profile.generation {
                Generation::One => None,
                Generation::Two => {
                    Some(json!({ "authenticationError": "AuthenticationErrorNoError" }))
                }
            };
            self.actions.push_back(Action::Send(success_response(*request, params)));
            self.actions.push_back(Action::Offer(*key));
            let (key, profile) = (*key, profile.clone());
            self.state = State::Waiting { key, profile, until: now + self.rules.waiting };
        } else {
            self.refuse_authentication(verdict);
        }
    }

    /// Takes the other endpoint's profile: the tunnel stands, unless it would be a loop.
    pub fn paired(&mut self, other: &Profile) {
        let State::Waiting { profile, .. } = &self.state else { return };
        if profile.identity.same_uuid(&other.identity) {
            self.close(Close::Loop);
            return;
        }
        // Counted from 1 as in the seed; there is no other notification in these generations.
        let id = 1;
        let message = match profile.generation {
            Generation::One => notification(id, ESTABLISHED_GENERATION_1, None),
            Generation::Two => {
                let Identity { uuid, name } = &other.identity;
                let params = json!({ "name": name, "uuid": uuid });
                notification(id, ESTABLISHED_GENERATION_2, Some(params))
            }
        };
        self.actions.push_back(Action::Send(message));
        self.state = State::Established;
    }

    /// Says that [`Endpoint::deadline`] may have passed.
    pub fn handle_timeout(&mut self, now: Instant) {
        if self.deadline().is_none_or(|deadline| now < deadline) {
            return;
        }
        match &self.state {
            State::Greeting { inactive_at, authenticate_by } => {
                let inactive = inactive_at <= authenticate_by;
                if let Err(error) = self.inbox.finish() {
                    self.actions.push_back(Action::Send(Refusal::not_json(error).to_message()));
                }
                self.close(if inactive { Close::Inactive } else { Close::AuthenticationTimeout });
            }
            State::Authenticating { .. } => self.refuse_authentication(Verdict::Timeout),
            State::Waiting { .. } => self.close(Close::NobodyCame),
            State::Established | State::Closed => {}
        }
    }

    /// Ends the connection for a reason from outside (drain, key taken, fault, …).
    pub fn close(&mut self, close: Close) {
        if !matches!(self.state, State::Closed) {
            self.state = State::Closed;
            self.actions.push_back(Action::Close(close));
        }
    }

    /// Handles the next piece of input, false if there is none.
    fn handle_input(&mut self) -> bool {
        match self.state {
            State::Greeting { .. } => self.handle_next_request(),
            State::Authenticating { .. } | State::Waiting { .. } if !self.inbox.is_empty() => {
                self.close(Close::EarlyData);
                true
            }
            _ => false,
        }
    }

    fn handle_next_request(&mut self) -> bool {
        match self.inbox.next_object() {
            Ok(Some(json)) => self.handle_request(&json),
            Ok(None) if self.message_ended => match self.inbox.finish() {
                Ok(()) => return false,
                Err(error) => self.refuse(&Refusal::not_json(error)),
            },
            Ok(None) => return false,
            Err(FramingError::TooLarge) => self.close(Close::RequestTooLarge),
            Err(error) => self.refuse(&Refusal::not_json(error)),
        }
        true
    }

    fn handle_request(&mut self, json: &[u8]) {
        self.requests += 1;
        if self.requests > self.rules.requests {
            return self.close(Close::TooManyRequests);
        }
        let mut request = match parse_request(json) {
            Ok(request) => request,
            Err(refusal) => return self.refuse(&refusal),
        };
        match resolve(&mut request) {
            Ok(Call::Hello) => self.respond(request.id, hello(&self.server)),
            Ok(Call::Introspect) => self.respond(request.id, introspection()),
            Ok(Call::Authenticate(params)) => self.begin_authentication(request.id, params),
            Err(refusal) => self.refuse(&refusal),
        }
    }

    fn begin_authentication(&mut self, request: i64, params: Authenticate) {
        let State::Greeting { authenticate_by: until, .. } = self.state else { return };
        let Authenticate { token, nonce, generation, identity } = params;
        let key = PairingKey::new(&token, nonce.as_deref());
        let profile = Profile { generation, identity };
        self.state = State::Authenticating { request, key, profile, until };
        self.actions.push_back(Action::Authenticate(token));
    }

    fn respond(&mut self, id: i64, params: Value) {
        self.actions.push_back(Action::Send(success_response(id, Some(params))));
    }

    fn refuse(&mut self, refusal: &Refusal) {
        self.actions.push_back(Action::Send(refusal.to_message()));
        self.close(Close::InvalidRequest);
    }

    fn refuse_authentication(&mut self, verdict: Verdict) {
        let State::Authenticating { request, profile, .. } = &self.state else { return };
        let (error, code, close) = match verdict {
            Verdict::Valid | Verdict::Invalid => (
                "Invalid token. You are not allowed to use this server.",
                "AuthenticationErrorAuthenticationFailed",
                Close::TokenRefused,
            ),
            Verdict::Timeout => (
                "The authentication took too long. This is temporary, please try again later.",
                "AuthenticationErrorTimeout",
                Close::AuthenticationUnavailable,
            ),
            Verdict::Unavailable => (
                "The authentication is not available. This is temporary, please try again later.",
                "AuthenticationErrorProxyError",
                Close::AuthenticationUnavailable,
            ),
        };
        let params = match profile.generation {
            Generation::One => None,
            Generation::Two => Some(json!({ "authenticationError": code })),
        };
        self.actions.push_back(Action::Send(error_response(*request, error, params)));
        self.close(close);
    }
}

/// On a byte stream, the white space behind a request may come in a read of its own.
fn is_trailing_space(chunk: &Chunk) -> bool {
    !chunk.last && chunk.data.iter().copied().all(is_white_space)
}

#[cfg(test)]
#[path = "endpoint_tests.rs"]
mod tests;
