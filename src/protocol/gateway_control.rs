//! The JSON messages between a registered gateway and the proxy, in frames with socket address 0
//! (`README.md`, section 4).
//!
//! The session of a gateway takes the frames apart ([`slip::Decoder`](super::slip::Decoder)), hands
//! the data for [`PROXY_ADDRESS`](super::slip::PROXY_ADDRESS) to [`GatewayControl::receive`], and
//! carries out what [`GatewayControl::poll_action`] gives. Which apps there are is not known here.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::call::{Call, resolve};
use super::json_stream::{FramingError, JsonStream};
use super::message::{Refusal, notification, parse_request, success_response};
use super::methods::{
    CLIENT_CONNECTED, CLIENT_DISCONNECTED, CLIENT_RECEIVED, Offered, ServerInfo, hello,
    introspection,
};
use super::tunnel_proxy::{APP_ADDRESSES, App, Gateway, TunnelProxyError, braced};
use super::tunnel_proxy::{disconnect_response, pong, registration_response};
use super::{Close, Rules};

/// An instruction for the driver of a [`GatewayControl`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ControlAction {
    /// Send this message in a frame with address 0.
    Send(String),
    /// Close the app with this address, then call [`GatewayControl::disconnected`].
    Disconnect {
        /// To be handed back.
        request: i64,
        /// One of [`APP_ADDRESSES`].
        address: u16,
    },
    /// Send what is still to be sent, then close the gateway's connection. Nothing follows.
    Close(Close),
}

/// The proxy's side of the conversation.
#[derive(Debug)]
pub struct GatewayControl {
    server: Arc<ServerInfo>,
    offered: Offered,
    flow_control: bool,
    silence: Duration,
    heard_at: Instant,
    inbox: JsonStream,
    /// The frame that the inbox holds is complete.
    frame_ended: bool,
    /// The number of notifications so far.
    notifications: i64,
    actions: VecDeque<ControlAction>,
    closed: bool,
}

impl GatewayControl {
    /// For a gateway that has registered `now`, and may send nothing for as long as `silence`.
    pub fn new(
        server: Arc<ServerInfo>,
        rules: &Rules,
        gateway: &Gateway,
        silence: Duration,
        now: Instant,
    ) -> Self {
        Self {
            flow_control: gateway.flow_control,
            server,
            // A gateway cannot be paired by token any more.
            offered: Offered { authentication: false, ..rules.offered() },
            silence,
            heard_at: now,
            inbox: JsonStream::default(),
            frame_ended: false,
            notifications: 0,
            actions: VecDeque::new(),
            closed: false,
        }
    }

    /// The next thing to do, until there is none.
    ///
    /// Requests are answered one at a time, when they are asked for: a gateway that sends many and
    /// reads no answers makes nothing pile up.
    pub fn poll_action(&mut self) -> Option<ControlAction> {
        while self.actions.is_empty() && !self.closed && self.handle_next_request() {}
        self.actions.pop_front()
    }

    /// When [`GatewayControl::handle_timeout`] must be called, if nothing is heard before.
    pub fn deadline(&self) -> Option<Instant> {
        (!self.closed).then(|| self.heard_at + self.silence)
    }

    /// Records that the gateway has sent something, for any address.
    pub fn heard(&mut self, now: Instant) {
        self.heard_at = now;
    }

    /// Takes data for address 0: a frame, or with more to come a piece of one.
    /// [`GatewayControl::poll_action`] must have returned `None` just before.
    pub fn receive(&mut self, data: &[u8], last: bool) {
        if !self.closed {
            self.inbox.push(data);
            self.frame_ended = last;
        }
    }

    /// Drops the rest of the current frame, which is broken.
    pub fn abandon(&mut self) {
        self.inbox = JsonStream::default();
        self.frame_ended = true;
    }

    /// Notifies the gateway that an app has attached; `peer_address` is the IP address of the app.
    pub fn client_connected(&mut self, app: &App, peer_address: &str, address: u16) {
        let params = json!({
            "clientName": app.name,
            "clientUuid": braced(app.uuid),
            "clientPeerAddress": peer_address,
            "socketAddress": address,
        });
        self.notify(CLIENT_CONNECTED, params);
    }

    /// Notifies the gateway that an app has left, or was closed.
    pub fn client_disconnected(&mut self, address: u16) {
        self.notify(CLIENT_DISCONNECTED, json!({ "socketAddress": address }));
    }

    /// Notifies a gateway with flow control that an app has taken so many bytes.
    pub fn client_received(&mut self, address: u16, bytes: usize) {
        if self.flow_control {
            let params = json!({ "socketAddress": address, "byteCount": bytes });
            self.notify(CLIENT_RECEIVED, params);
        }
    }

    /// Takes the result of [`ControlAction::Disconnect`].
    pub fn disconnected(&mut self, request: i64, result: Result<(), TunnelProxyError>) {
        self.send(disconnect_response(request, result));
    }

    /// To be called when [`GatewayControl::deadline`] may have passed.
    pub fn handle_timeout(&mut self, now: Instant) {
        if self.deadline().is_some_and(|deadline| deadline <= now) {
            self.close(Close::SilentGateway);
        }
    }

    /// Ends the connection for a reason from outside (drain, fault, …).
    pub fn close(&mut self, close: Close) {
        if !self.closed {
            self.closed = true;
            self.actions.push_back(ControlAction::Close(close));
        }
    }

    /// Handles the next request, false if there is none.
    fn handle_next_request(&mut self) -> bool {
        match self.inbox.next_of(self.frame_ended) {
            Ok(Some(json)) => self.handle_request(&json),
            Ok(None) => return false,
            Err(FramingError::TooLarge) => self.close(Close::RequestTooLarge),
            Err(error) => self.refuse(&Refusal::not_json(error)),
        }
        true
    }

    fn handle_request(&mut self, json: &[u8]) {
        let mut request = match parse_request(json) {
            Ok(request) => request,
            Err(refusal) => return self.refuse(&refusal),
        };
        let id = request.id;
        match resolve(&mut request, self.offered) {
            Ok(Call::Hello) => self.respond(id, hello(&self.server, self.offered)),
            Ok(Call::Introspect) => {
                let everything = Offered { authentication: true, ..self.offered };
                self.respond(id, introspection(everything));
            }
            Ok(Call::Register(params)) => {
                let error = TunnelProxyError::AlreadyRegistered;
                self.send(registration_response(id, params.kind, Err(error), None));
                self.close(error.close());
            }
            Ok(Call::DisconnectClient { address }) => self.disconnect(id, address),
            Ok(Call::Ping { timestamp }) => self.respond(id, pong(timestamp)),
            // Not offered, so not resolved.
            Ok(Call::Authenticate(_)) => self.close(Close::ForbiddenCall),
            Err(refusal) => self.refuse(&refusal),
        }
    }

    fn disconnect(&mut self, request: i64, address: u64) {
        match u16::try_from(address).ok().filter(|address| APP_ADDRESSES.contains(address)) {
            Some(address) => {
                self.actions.push_back(ControlAction::Disconnect { request, address });
            }
            None => self.disconnected(request, Err(TunnelProxyError::UnknownSocketAddress)),
        }
    }

    fn notify(&mut self, name: &str, params: Value) {
        if !self.closed {
            self.notifications += 1;
            self.send(notification(self.notifications, name, Some(params)));
        }
    }

    fn respond(&mut self, id: i64, params: Value) {
        self.send(success_response(id, Some(params)));
    }

    fn refuse(&mut self, refusal: &Refusal) {
        self.send(refusal.to_message());
        self.close(Close::InvalidRequest);
    }

    fn send(&mut self, message: String) {
        if !self.closed {
            self.actions.push_back(ControlAction::Send(message));
        }
    }
}

#[cfg(test)]
#[path = "gateway_control_tests.rs"]
mod tests;
