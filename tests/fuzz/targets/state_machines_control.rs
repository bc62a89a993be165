//! The model of what a registered gateway and the proxy say to each other.

use std::time::{Duration, Instant};

use nymea_remoteproxy::protocol::{Close, Rules, TunnelProxyError};

use super::items::{Item, Reader};
use super::model::{Expected, Message, demands_token, error, plain_answer, registration};

pub(crate) const SILENCE: Duration = Duration::from_mins(1);

/// The proxy and a registered gateway.
pub(crate) struct Control {
    rules: Rules,
    heard_at: Instant,
    notifications: i64,
    closed: bool,
    out: Vec<Expected>,
}

impl Control {
    pub(crate) fn new(rules: Rules, now: Instant) -> Self {
        Self { rules, heard_at: now, notifications: 0, closed: false, out: Vec::new() }
    }

    pub(crate) fn deadline(&self) -> Option<Instant> {
        if self.closed { None } else { Some(self.heard_at + SILENCE) }
    }

    pub(crate) fn heard(&mut self, now: Instant) {
        self.heard_at = now;
    }

    pub(crate) fn hears(&mut self, reader: &mut Reader, cut: usize, last: bool) -> Vec<Expected> {
        reader.takes(cut);
        while !self.closed
            && let Some(item) = reader.next()
        {
            self.handles(item);
        }
        if !self.closed && last && reader.has_more() {
            self.refuses(-1, "Failed to parse JSON data");
        }
        std::mem::take(&mut self.out)
    }

    fn handles(&mut self, item: Item) {
        match item {
            Item::Garbage => self.refuses(-1, "Failed to parse JSON data"),
            Item::TooLarge => self.ends(Close::RequestTooLarge),
            Item::One | Item::Two => self.refuses(item.id(), "No such namespace"),
            Item::RegisterServer { token, .. } | Item::RegisterClient { token, .. } => {
                if demands_token(&self.rules, item) && !token {
                    return self.refuses(item.id(), "Invalid params: 'token' is missing");
                }
                self.out.push(registration(item.id(), "AlreadyRegistered"));
                self.ends(Close::AlreadyRegistered);
            }
            Item::Disconnect(address @ 1..=0xFFFE) => {
                let address = u16::try_from(address).expect("in range");
                self.out.push(Expected::Disconnect { request: item.id(), address });
            }
            Item::Disconnect(_) => self.out.push(registration(item.id(), "UnknownSocketAddress")),
            Item::Bad(_, id, begins) => self.refuses(id, begins),
            Item::BadForTunnelProxy(_, begins) => self.refuses(item.id(), begins),
            Item::Hello | Item::Introspect | Item::Ping => self.out.push(plain_answer(item, true)),
            Item::Space | Item::Unfinished => {}
        }
    }

    pub(crate) fn client_connected(&mut self) -> Vec<Expected> {
        self.notifies("TunnelProxy.ClientConnected")
    }

    pub(crate) fn client_disconnected(&mut self) -> Vec<Expected> {
        self.notifies("TunnelProxy.ClientDisconnected")
    }

    fn notifies(&mut self, name: &'static str) -> Vec<Expected> {
        if self.closed {
            return Vec::new();
        }
        self.notifications += 1;
        let id = self.notifications;
        vec![Expected::Message(Message::Notification { id, name })]
    }

    pub(crate) fn disconnected(&mut self, result: Result<(), TunnelProxyError>) -> Vec<Expected> {
        let error = result.err().map_or("NoError".to_owned(), |error| format!("{error:?}"));
        if self.closed { Vec::new() } else { vec![registration(7, &error)] }
    }

    pub(crate) fn clock(&mut self, now: Instant) -> Vec<Expected> {
        if now >= self.heard_at + SILENCE {
            self.ends(Close::SilentGateway);
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
        if !self.closed {
            self.closed = true;
            self.out.push(Expected::Close(close));
        }
    }
}
