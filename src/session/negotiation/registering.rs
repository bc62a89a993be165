//! Tokens and registrations: what the authenticator and the directory answer.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Instant;

use super::stage::Stage;
use super::{Negotiation, Outcome, Step};
use crate::auth;
use crate::observability::{Fact, TokenCheck};
use crate::protocol::{Role, Token, TunnelProxyError, Verdict};
use crate::session::ErrorChain;
use crate::session::enrolment::{self, Enrolled};

impl<'a> Negotiation<'a> {
    /// Has a token checked; for a registration, if there is a role.
    pub(super) fn authenticate(&mut self, token: Token, role: Option<Role>) {
        self.session.ticket.shows(&token);
        let verdict = Arc::clone(&self.shared.authenticator).authenticate(token);
        self.stage = Stage::Authenticating { verdict, since: Instant::now(), role };
    }

    /// Applies the verdict on a token.
    pub(super) fn apply_verdict(mut self, verdict: &auth::Verdict) -> Self {
        self.input.has_actions = true;
        let stage = self.take_stage();
        let Stage::Authenticating { since, role, .. } = stage else {
            self.stage = stage;
            return self;
        };
        self.record_verdict(verdict, since);
        let verdict = self.admit(verdict);
        self.session.endpoint.authenticated(Instant::now(), verdict);
        match role {
            Some(role) if verdict == Verdict::Valid => self.register(role, None),
            Some(_) | None => self,
        }
    }

    /// Registers the endpoint with the tunnel proxy, once its token is checked if it has one.
    pub(super) fn register(mut self, role: Role, token: Option<Token>) -> Self {
        if let Some(token) = token {
            self.authenticate(token, Some(role));
            return self;
        }
        let label = match role {
            Role::Gateway(_) => "gateway",
            Role::App(_) => "app",
        };
        if let Err(refusal) = self.session.ticket.registers() {
            self.shared.record_refusal(refusal, self.session.client_addr);
            let error = TunnelProxyError::InternalServerError;
            let answered = Fact::RegistrationAnswered { role: label, error: Some(error) };
            self.shared.telemetry.record(answered);
            self.session.endpoint.registered(Err(error));
            self.stage = Stage::Greeting;
            return self;
        }
        let (session, enrolling) = enrolment::enrol(self.session, role, self.shared);
        let stage = Stage::Registering { enrolling, role: label };
        Self { session, stage, ..self }
    }

    /// Has the endpoint answer that it is registered, before anything else can reach it; or why it is
    /// not, upon which the endpoint closes the connection.
    pub(super) async fn apply_registration(
        mut self,
        result: Result<Enrolled, TunnelProxyError>,
    ) -> Step<'a> {
        self.input.has_actions = true;
        let refused = result.as_ref().err().copied();
        if let Stage::Registering { role, .. } = self.take_stage() {
            let answered = Fact::RegistrationAnswered { role, error: refused };
            self.shared.telemetry.record(answered);
        }
        self.session.endpoint.registered(refused.map_or(Ok(()), Err));
        let Ok(enrolled) = result else { return ControlFlow::Continue(self) };
        ControlFlow::Break(match self.session.send_remaining().await {
            Some(close) => self.close(Some(close)).await,
            None => Outcome::Enrolled { session: self.session, enrolled },
        })
    }

    /// Counts the connection as that of a user, if its token is accepted and there is room for one
    /// more of the same user. Returns the verdict in the terms of the protocol.
    fn admit(&mut self, verdict: &auth::Verdict) -> Verdict {
        match verdict {
            auth::Verdict::Accepted(user) => match self.session.ticket.is_verified(user) {
                Ok(()) => Verdict::Valid,
                Err(refusal) => {
                    self.shared.record_refusal(refusal, self.session.client_addr);
                    Verdict::NoRoom
                }
            },
            auth::Verdict::Refused => Verdict::Invalid,
            auth::Verdict::Failed(auth::Failure::Timeout(_)) => Verdict::Timeout,
            auth::Verdict::Failed(
                auth::Failure::Busy
                | auth::Failure::Unreachable(_)
                | auth::Failure::Status(_)
                | auth::Failure::Answer(_),
            ) => Verdict::Unavailable,
        }
    }

    fn record_verdict(&self, verdict: &auth::Verdict, since: Instant) {
        let chain;
        let check = match verdict {
            auth::Verdict::Accepted(user) => TokenCheck::Accepted {
                email: user.email.as_deref(),
                username: user.username.as_deref(),
            },
            auth::Verdict::Refused => TokenCheck::Refused,
            auth::Verdict::Failed(failure) => {
                chain = ErrorChain(failure);
                TokenCheck::Failed(&chain)
            }
        };
        self.shared.telemetry.record(Fact::TokenChecked {
            label: verdict.label(),
            check,
            since,
            client: self.session.client_addr.ip(),
            trace: &self.session.trace,
        });
    }
}
