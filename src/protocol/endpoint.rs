//! The state machine of one connection, from its first byte until its tunnel is established or it
//! is registered with the tunnel proxy (`README.md`, sections 2 to 4).
//!
//! Chunks, verdicts, partners and the time go in; [`Action`]s come out of
//! [`Endpoint::poll_action`], to be carried out in order.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use serde_json::{Value, json};

use super::call::{Authenticate, Call, Register, resolve};
use super::json_stream::{FramingError, JsonStream, MAX_REQUEST, is_white_space};
use super::message::{Refusal, error_response, notification, parse_request, success_response};
use super::methods::{
    ESTABLISHED_GENERATION_1, ESTABLISHED_GENERATION_2, ServerInfo, hello, introspection,
};
use super::terms::{Action, Generation, Identity, Profile, Rules, Verdict};
use super::tunnel_proxy::{Role, RoleKind, TunnelProxyError};
use super::tunnel_proxy::{disconnect_response, pong, registration_response};
use super::{Chunk, Close, Kind, PairingKey};

#[derive(Debug)]
enum State {
    Greeting { inactive_at: Instant, authenticate_by: Instant },
    Authenticating { request: i64, key: PairingKey, profile: Profile, until: Instant },
    Waiting { key: PairingKey, profile: Profile, until: Instant },
    Established,
    Registering { request: i64, role: Role, token_unchecked: bool, until: Instant },
    Registered { role: Role },
    Closed,
}

/// The proxy's side of one connection.
#[derive(Debug)]
pub struct Endpoint {
    server: Arc<ServerInfo>,
    rules: Rules,
    state: State,
    inbox: JsonStream,
    /// The last message is complete.
    message_ended: bool,
    /// Bytes of white space, and empty pieces, since the last request.
    blank: usize,
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
            message_ended: true,
            blank: 0,
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

    /// The rules that it keeps.
    pub fn rules(&self) -> &Rules {
        &self.rules
    }

    /// When [`Endpoint::handle_timeout`] must be called, if nothing else happens before.
    pub fn deadline(&self) -> Option<Instant> {
        match &self.state {
            State::Greeting { inactive_at, authenticate_by } => {
                Some(*inactive_at.min(authenticate_by))
            }
            State::Authenticating { until, .. }
            | State::Waiting { until, .. }
            | State::Registering { until, .. } => Some(*until),
            State::Established | State::Registered { .. } | State::Closed => None,
        }
    }

    /// The key and profile to offer, while the other endpoint is being waited for.
    pub fn offer(&self) -> Option<(PairingKey, &Profile)> {
        match &self.state {
            State::Waiting { key, profile, .. } => Some((*key, profile)),
            _ => None,
        }
    }

    /// The role that the connection has registered in.
    pub fn role(&self) -> Option<&Role> {
        match &self.state {
            State::Registered { role } => Some(role),
            _ => None,
        }
    }

    /// Whether the connection has proved itself.
    pub fn is_authenticated(&self) -> bool {
        match self.state {
            State::Waiting { .. } | State::Established | State::Registered { .. } => true,
            State::Greeting { .. }
            | State::Authenticating { .. }
            | State::Registering { .. }
            | State::Closed => false,
        }
    }

    /// Whether [`Endpoint::paired`] has led to a tunnel.
    pub fn is_established(&self) -> bool {
        matches!(self.state, State::Established)
    }

    /// Takes a chunk of a message from the client, until the tunnel is established or the connection
    /// is registered. [`Endpoint::poll_action`] must have returned `None` just before.
    pub fn receive(&mut self, chunk: &Chunk) {
        let belongs_to_request = self.is_trailing_space(chunk);
        self.message_ended = chunk.last;
        match self.state {
            State::Greeting { .. } if chunk.kind != Kind::Binary => {
                self.inbox.push(&chunk.data);
                self.count_blank(chunk);
            }
            State::Greeting { .. } => {
                self.refuse(&Refusal::not_json("it must come in a text message"));
            }
            State::Authenticating { .. } | State::Waiting { .. } | State::Registering { .. } => {
                if belongs_to_request {
                    self.count_blank(chunk);
                } else {
                    self.close(Close::EarlyData);
                }
            }
            State::Established | State::Registered { .. } | State::Closed => {}
        }
    }

    /// Whether this is white space after a request, or an empty frame, in the same message. On a
    /// byte stream, where messages never end, it may come in a read of its own.
    fn is_trailing_space(&self, chunk: &Chunk) -> bool {
        let same_message = !(self.message_ended && chunk.last);
        same_message && chunk.kind != Kind::Binary && is_blank(&chunk.data)
    }

    /// Input that is not part of a request is bounded by the size of the largest request.
    fn count_blank(&mut self, chunk: &Chunk) {
        if chunk.data.is_empty() || (!self.inbox.is_within_object() && is_blank(&chunk.data)) {
            self.blank += chunk.data.len().max(1);
            if self.blank > MAX_REQUEST {
                self.close(Close::RequestTooLarge);
            }
        }
    }

    /// The client sends nothing more, as a byte stream can end: the received data is complete.
    pub fn finished(&mut self) {
        self.message_ended = true;
    }

    /// Takes the result of [`Action::Authenticate`], or of the token in [`Action::Register`].
    pub fn authenticated(&mut self, now: Instant, verdict: Verdict) {
        if verdict != Verdict::Valid {
            return self.refuse_authentication(verdict);
        }
        if self.closes_for_early_data() {
            return;
        }
        if let State::Registering { token_unchecked, .. } = &mut self.state {
            *token_unchecked = false;
        }
        let State::Authenticating { request, key, profile, .. } = &self.state else { return };
        let params = match profile.generation {
            Generation::One => None,
            Generation::Two | Generation::Three => {
                Some(json!({ "authenticationError": "AuthenticationErrorNoError" }))
            }
        };
        self.actions.push_back(Action::Send(success_response(*request, params)));
        self.actions.push_back(Action::Offer(*key));
        let (key, profile) = (*key, profile.clone());
        self.state = State::Waiting { key, profile, until: now + self.rules.waiting };
    }

    /// Takes the profile of the other endpoint: the tunnel is established, unless it would be a loop.
    pub fn paired(&mut self, other: &Profile) {
        let State::Waiting { profile, .. } = &self.state else { return };
        if profile.identity.same_uuid(&other.identity) {
            self.close(Close::Loop);
            return;
        }
        // Notifications are counted from 1, and these generations have no other one.
        let id = 1;
        let message = match profile.generation {
            Generation::One => notification(id, ESTABLISHED_GENERATION_1, None),
            Generation::Two | Generation::Three => {
                let Identity { uuid, name } = &other.identity;
                let params = json!({ "name": name, "uuid": uuid });
                notification(id, ESTABLISHED_GENERATION_2, Some(params))
            }
        };
        self.actions.push_back(Action::Send(message));
        self.state = State::Established;
    }

    /// Takes the result of [`Action::Register`].
    pub fn registered(&mut self, result: Result<(), TunnelProxyError>) {
        if self.closes_for_early_data() {
            return;
        }
        let State::Registering { request, role, token_unchecked, .. } = &self.state else { return };
        let (request, role) = (*request, role.clone());
        // A registration with an unchecked token is refused.
        let forbidden = *token_unchecked && result.is_ok();
        let result = if forbidden { Err(TunnelProxyError::ForbiddenCall) } else { result };
        let flow_control = matches!(&role, Role::Gateway(gateway) if gateway.flow_control);
        let window = (flow_control && result.is_ok()).then_some(self.rules.app_window);
        self.answer_registration(request, role.kind(), result, window);
        if result.is_ok() {
            self.state = State::Registered { role };
        }
    }

    /// To be called when [`Endpoint::deadline`] may have passed.
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
            State::Registering { token_unchecked: true, .. } => {
                self.refuse_authentication(Verdict::Timeout);
            }
            State::Registering { .. } => {
                self.registered(Err(TunnelProxyError::InternalServerError));
            }
            State::Established | State::Registered { .. } | State::Closed => {}
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
            State::Authenticating { .. } | State::Waiting { .. } | State::Registering { .. } => {
                self.closes_for_early_data()
            }
            State::Established | State::Registered { .. } | State::Closed => false,
        }
    }

    /// Closes the connection if there is data after its request. It must not be paired: the partner
    /// would miss that data.
    fn closes_for_early_data(&mut self) -> bool {
        let pending = match self.state {
            State::Authenticating { .. } | State::Waiting { .. } | State::Registering { .. } => {
                true
            }
            State::Greeting { .. }
            | State::Established
            | State::Registered { .. }
            | State::Closed => false,
        };
        let closes = pending && !self.inbox.is_empty();
        if closes {
            self.close(Close::EarlyData);
        }
        closes
    }

    fn handle_next_request(&mut self) -> bool {
        match self.inbox.next_of(self.message_ended) {
            Ok(Some(json)) => self.handle_request(&json),
            Ok(None) => return false,
            Err(FramingError::TooLarge) => self.close(Close::RequestTooLarge),
            Err(error) => self.refuse(&Refusal::not_json(error)),
        }
        true
    }

    fn handle_request(&mut self, json: &[u8]) {
        self.requests += 1;
        self.blank = 0;
        if self.requests > self.rules.requests {
            return self.close(Close::TooManyRequests);
        }
        let mut request = match parse_request(json) {
            Ok(request) => request,
            Err(refusal) => return self.refuse(&refusal),
        };
        let (id, offered) = (request.id, self.rules.offered());
        match resolve(&mut request, offered) {
            Ok(Call::Hello) => self.respond(id, hello(&self.server, offered)),
            Ok(Call::Introspect) => self.respond(id, introspection(offered)),
            Ok(Call::Authenticate(params)) => self.begin_authentication(id, params),
            Ok(Call::Register(params)) => self.begin_registration(id, params),
            Ok(Call::DisconnectClient { .. }) => {
                let message = disconnect_response(id, Err(TunnelProxyError::ForbiddenCall));
                self.actions.push_back(Action::Send(message));
            }
            Ok(Call::Ping { timestamp }) => self.respond(id, pong(timestamp)),
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

    fn begin_registration(&mut self, request: i64, params: Register) {
        let State::Greeting { authenticate_by: until, .. } = self.state else { return };
        let Register { kind, role, token } = params;
        let Some(role) = role else {
            let error = TunnelProxyError::InvalidUuid;
            return self.answer_registration(request, kind, Err(error), None);
        };
        let demanded = match kind {
            RoleKind::Gateway => self.rules.token_for_gateways,
            RoleKind::App => self.rules.token_for_apps,
        };
        let token = token.filter(|_| demanded);
        let token_unchecked = token.is_some();
        self.actions.push_back(Action::Register { role: role.clone(), token });
        self.state = State::Registering { request, role, token_unchecked, until };
    }

    fn answer_registration(
        &mut self,
        request: i64,
        kind: RoleKind,
        result: Result<(), TunnelProxyError>,
        window: Option<u32>,
    ) {
        let message = registration_response(request, kind, result, window);
        self.actions.push_back(Action::Send(message));
        if let Err(error) = result {
            self.close(error.close());
        }
    }

    fn respond(&mut self, id: i64, params: Value) {
        self.actions.push_back(Action::Send(success_response(id, Some(params))));
    }

    fn refuse(&mut self, refusal: &Refusal) {
        self.actions.push_back(Action::Send(refusal.to_message()));
        self.close(Close::InvalidRequest);
    }

    fn refuse_authentication(&mut self, verdict: Verdict) {
        let (request, generation) = match &self.state {
            State::Authenticating { request, profile, .. } => (*request, profile.generation),
            // Its answers have no place for such an error.
            State::Registering { request, .. } => (*request, Generation::One),
            _ => return,
        };
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
            Verdict::NoRoom => (
                "There are too many connections. This is temporary, please try again later.",
                "AuthenticationErrorProxyError",
                Close::NoRoom,
            ),
        };
        let params = match generation {
            Generation::One => None,
            Generation::Two | Generation::Three => Some(json!({ "authenticationError": code })),
        };
        self.actions.push_back(Action::Send(error_response(request, error, params)));
        self.close(close);
    }
}

fn is_blank(data: &[u8]) -> bool {
    data.iter().copied().all(is_white_space)
}

#[cfg(test)]
#[path = "endpoint_tests.rs"]
mod tests;
