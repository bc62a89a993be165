//! What happens to connections, tunnels, gateways and apps: each fact is recorded once, here, and its
//! log line, metric, journal entry and span follow from it side by side.
//!
//! Lines that strangers can cause any number of times go through [`Telemetry::recurs`]: the first one
//! is logged, the following ones are summed up. What is of use to developers only is DEBUG.

use std::fmt;
use std::net::IpAddr;
use std::time::Instant;

use tracing::{Span, debug, info, warn};
use uuid::Uuid;

use super::metrics::Step;
use super::trace::{ConnectionTrace, Ended};
use super::{
    Endpoint, EventKind, GatewayRecord, Occurrence, Severity, Telemetry, Traffic, TunnelFacts,
    TunnelRecord,
};
use crate::ids::OfferId;
use crate::printable::Printable;
use crate::protocol::{Close, TunnelProxyError};
use crate::trace_parent::TraceParent;

/// The target of these lines in the log.
const TARGET: &str = "nymea_remoteproxy::session";

/// Something that has happened, with what is needed to record it.
pub enum Fact<'a> {
    /// There is no room for a connection.
    ConnectionRefused {
        /// A short constant name.
        label: &'static str,
        /// The reason, for people.
        reason: &'a dyn fmt::Display,
        /// The address of the client, if it has one.
        client: Option<IpAddr>,
    },
    /// TLS, the upgrade or the PROXY header failed.
    HandshakeFailed {
        /// A short constant name.
        label: &'static str,
        /// What failed.
        error: &'a dyn fmt::Display,
    },
    /// A connection without a tunnel ends.
    ConnectionEnded {
        /// How it ends.
        end: ConnectionEnd<'a>,
        /// The address of the client, if it has one.
        client: Option<IpAddr>,
        /// Its span.
        trace: &'a mut ConnectionTrace,
    },
    /// The authenticator has answered.
    TokenChecked {
        /// A short constant name of the answer.
        label: &'static str,
        /// The answer.
        check: TokenCheck<'a>,
        /// When it was queried.
        since: Instant,
        /// The address of the client, if it has one.
        client: Option<IpAddr>,
        /// The span of the connection.
        trace: &'a ConnectionTrace,
    },
    /// A gateway or an app was answered that it is registered, or why it is not.
    RegistrationAnswered {
        /// `gateway` or `app`.
        role: &'static str,
        /// Why it is not registered.
        error: Option<TunnelProxyError>,
    },
    /// The holder of a UUID was probed for a rival.
    HolderProbed {
        /// What both have registered.
        uuid: Uuid,
        /// The registration of the holder.
        holder: OfferId,
        /// What its node knows of it, as a short constant name.
        life: &'static str,
        /// The holder has ended: the UUID is free.
        is_free: bool,
    },
    /// A node cannot be reached for a tunnel.
    BridgeFailed {
        /// Its bridge address.
        address: &'a str,
        /// The offer or registration that was to be reached.
        offer: OfferId,
        /// What failed.
        error: &'a dyn fmt::Display,
    },
    /// A bridge of another node is refused.
    BridgeRefused {
        /// The offer, or the app and its gateway.
        of: Bridge,
        /// The reason, for people.
        refusal: &'a dyn fmt::Display,
    },
    /// Two endpoints were paired and must not meet.
    TunnelRefused {
        /// Its id.
        tunnel: OfferId,
        /// The reason.
        close: Close,
    },
    /// A tunnel is established.
    TunnelEstablished {
        /// What is known of it.
        facts: &'a TunnelFacts,
        /// The span of its lines.
        span: &'a Span,
    },
    /// A tunnel has ended.
    TunnelEnded(TunnelEnd<'a>),
    /// A gateway is registered.
    GatewayRegistered(&'a GatewayRecord),
    /// A gateway has ended.
    GatewayEnded {
        /// The gateway.
        record: &'a GatewayRecord,
        /// A short constant name of the reason.
        reason: &'static str,
    },
    /// A frame of a gateway is broken.
    FrameBroken {
        /// The gateway.
        gateway: OfferId,
        /// Of the frame, if it was read.
        address: Option<u16>,
        /// What is wrong.
        fault: &'a dyn fmt::Display,
    },
    /// An app takes its data too slowly, and is closed.
    AppTooSlow {
        /// Its gateway.
        gateway: OfferId,
        /// The app.
        app: OfferId,
    },
}

/// How a connection without a tunnel ends.
pub enum ConnectionEnd<'a> {
    /// The node closes it.
    Closed(Close),
    /// The node drops it without a close, for many at once are closed for this reason.
    Dropped(Close),
    /// The client has closed it.
    Left,
    /// It broke.
    Lost(&'a dyn fmt::Display),
}

/// What the authenticator has answered.
pub enum TokenCheck<'a> {
    /// The token is valid, and its owner has these names.
    Accepted {
        /// As sent by the authentication server.
        email: Option<&'a str>,
        /// As sent by the authentication server.
        username: Option<&'a str>,
    },
    /// The token is not valid.
    Refused,
    /// It is not known whether the token is valid.
    Failed(&'a dyn fmt::Display),
}

/// What a bridge of another node is for.
#[derive(Clone, Copy, Debug)]
pub enum Bridge {
    /// The offer of an endpoint of this node.
    Offer(OfferId),
    /// An app of the other node and a gateway of this one.
    App {
        /// The gateway.
        gateway: OfferId,
        /// The app.
        app: OfferId,
    },
}

/// What a tunnel has done.
pub struct TunnelEnd<'a> {
    /// What is known of it.
    pub record: &'a TunnelRecord,
    /// Its set-up, if that is traced.
    pub setup: Option<TraceParent>,
    /// When it was established.
    pub since: Instant,
    /// Why it ended.
    pub reason: Close,
    /// The side that ended it, if not the node.
    pub ended_by: &'a dyn fmt::Debug,
    /// From the first endpoint to the second one.
    pub forth: Traffic,
    /// From the second endpoint to the first one.
    pub back: Traffic,
}

impl Telemetry {
    /// Records a fact.
    pub fn record(&self, fact: Fact<'_>) {
        match fact {
            Fact::ConnectionRefused { label, reason, client } => {
                self.metrics.connection_refused(label);
                let refused = Occurrence::refused("connection refused", reason.to_string());
                if self.recurs(&refused.from(client)) {
                    info!(target: TARGET, %reason, "connection refused");
                }
            }
            Fact::HandshakeFailed { label, error } => {
                self.metrics.handshake_failed(label);
                debug!(target: TARGET, %error, "handshake failed");
            }
            Fact::ConnectionEnded { end, client, trace } => {
                self.record_connection_end(&end, client, trace);
            }
            Fact::TokenChecked { label, check, since, client, trace } => {
                self.metrics.authenticated(label, since.elapsed());
                self.metrics.step(Step::Authenticate, since.elapsed());
                trace.authenticated(since, label, matches!(check, TokenCheck::Failed(_)));
                self.record_token_check(label, &check, client);
            }
            Fact::RegistrationAnswered { role, error } => {
                self.metrics
                    .registration(role, error.map_or("registered", TunnelProxyError::class));
                if let Some(error) = error {
                    let reason = format!("{role}, {}", error.class());
                    if self.recurs(&Occurrence::refused("registration refused", reason)) {
                        info!(target: TARGET, role, reason = %error, "registration refused");
                    }
                }
            }
            Fact::HolderProbed { uuid, holder, life, is_free } => {
                self.metrics.probed(life);
                let taken = "a UUID is registered already";
                if is_free {
                    info!(target: TARGET, %uuid, %holder, "the former holder of a UUID is gone");
                } else if self.recurs(&Occurrence::refused(taken, life)) {
                    info!(target: TARGET, %uuid, %holder, life, "{taken}");
                }
            }
            Fact::BridgeFailed { address, offer, error } => {
                self.record_bridge_failure(address, offer, error);
            }
            Fact::BridgeRefused { of, refusal } => self.record_bridge_refusal(of, refusal),
            Fact::TunnelRefused { tunnel, close } => {
                self.metrics.connection_closed(close.class());
                if self.recurs(&Occurrence::refused("tunnel refused", close.class())) {
                    info!(target: TARGET, %tunnel, reason = %close, "tunnel refused");
                }
            }
            Fact::TunnelEstablished { facts, span } => {
                let (id, kind) = (facts.id, facts.kind.label());
                let second = match &facts.second {
                    Endpoint::Here { connection, .. } => Some(tracing::field::display(connection)),
                    Endpoint::There { .. } => None,
                };
                info!(target: TARGET, parent: span, kind, second, "tunnel established");
                let text = format!("tunnel {id} established, {kind}");
                self.journal.note(EventKind::Tunnel, text);
            }
            Fact::TunnelEnded(end) => self.record_tunnel_end(&end),
            Fact::GatewayRegistered(record) => {
                let (gateway, name) = (record.id, Printable::name(&record.name).to_string());
                info!(target: TARGET, %gateway, uuid = %record.uuid, name, "gateway registered");
                self.journal.note(EventKind::Gateway, format!("gateway {gateway} registered"));
            }
            Fact::GatewayEnded { record, reason } => {
                let (gateway, bytes) = (record.id, &record.bytes);
                self.metrics.gateway_ended(reason, record.since.elapsed().unwrap_or_default());
                info!(
                    target: TARGET,
                    %gateway,
                    reason,
                    bytes_received = bytes.received(),
                    bytes_sent = bytes.sent(),
                    "gateway gone"
                );
                self.journal.note(EventKind::Gateway, format!("gateway {gateway} gone: {reason}"));
            }
            Fact::FrameBroken { gateway, address, fault } => {
                self.metrics.frame_broken();
                debug!(target: TARGET, %gateway, ?address, %fault, "a frame is broken");
            }
            Fact::AppTooSlow { gateway, app } => {
                self.metrics.backlog_full();
                let what = "an app takes its data too slowly";
                if self.recurs(&Occurrence::trouble(what, "backlog")) {
                    warn!(target: TARGET, %gateway, %app, "{what} and is closed");
                }
            }
        }
    }

    fn record_connection_end(
        &self,
        end: &ConnectionEnd<'_>,
        client: Option<IpAddr>,
        trace: &mut ConnectionTrace,
    ) {
        match end {
            ConnectionEnd::Closed(close) => {
                self.metrics.connection_closed(close.class());
                let closed = Occurrence::refused("connection closed", close.class());
                if self.recurs(&closed.from(client)) {
                    info!(target: TARGET, reason = %close, "connection closed");
                }
                trace.ends(Ended::Closed(*close));
            }
            ConnectionEnd::Dropped(close) => {
                self.metrics.connection_closed(close.class());
                trace.ends(Ended::Closed(*close));
            }
            ConnectionEnd::Left => {
                self.metrics.connection_closed("left");
                debug!(target: TARGET, "client left");
                trace.ends(Ended::Left);
            }
            ConnectionEnd::Lost(error) => {
                self.metrics.connection_closed("lost");
                debug!(target: TARGET, %error, "connection lost");
                trace.ends(Ended::Lost);
            }
        }
    }

    fn record_token_check(
        &self,
        label: &'static str,
        check: &TokenCheck<'_>,
        from: Option<IpAddr>,
    ) {
        match check {
            TokenCheck::Accepted { email, username } => {
                let shown = |text: &str| Printable::name(text).to_string();
                let (email, username) = (email.map(shown), username.map(shown));
                info!(target: TARGET, email, username, "authenticated");
            }
            TokenCheck::Refused => {
                let refused = Occurrence::refused("token refused", "not valid");
                if self.recurs(&refused.from(from)) {
                    info!(target: TARGET, "token refused");
                }
            }
            TokenCheck::Failed(error) => {
                let failed = Occurrence::trouble("a token could not be checked", label);
                if self.recurs(&failed.from(from)) {
                    warn!(target: TARGET, %error, "a token could not be checked");
                }
            }
        }
    }

    /// One warning for each node, however many endpoints try to get there and however often.
    fn record_bridge_failure(&self, address: &str, offer: OfferId, error: &dyn fmt::Display) {
        let node_addr = address.escape_debug().to_string();
        let failed = Occurrence::trouble("no bridge to another node", node_addr.clone());
        if self.recurs(&Occurrence { severity: Severity::Info, ..failed }) {
            warn!(target: TARGET, node_addr, %offer, %error, "no bridge to another node");
        } else {
            debug!(target: TARGET, node_addr, %offer, %error, "no bridge to another node");
        }
    }

    fn record_bridge_refusal(&self, of: Bridge, refusal: &dyn fmt::Display) {
        let what = "a bridge call was refused";
        if self.recurs(&Occurrence::refused(what, refusal.to_string())) {
            match of {
                Bridge::Offer(tunnel) => info!(target: TARGET, %tunnel, %refusal, "{what}"),
                Bridge::App { gateway, app } => {
                    info!(target: TARGET, %gateway, %app, %refusal, "{what}");
                }
            }
        }
    }

    fn record_tunnel_end(&self, end: &TunnelEnd<'_>) {
        let TunnelEnd { record, setup, since, reason, ended_by, forth, back } = end;
        let TunnelFacts { id, kind, .. } = record.facts;
        info!(
            target: TARGET,
            kind = kind.label(),
            generation = record.facts.generation(),
            %reason,
            ?ended_by,
            bytes_forth = forth.bytes,
            bytes_back = back.bytes,
            messages_forth = forth.messages,
            messages_back = back.messages,
            duration_ms = u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX),
            "tunnel ended"
        );
        let moved = forth.bytes + back.bytes;
        let text = format!("tunnel {id} ended after {moved} bytes: {reason}");
        self.journal.note(EventKind::Tunnel, text);
        self.tracer.tunnel(*setup, record, *since, *reason);
    }
}
