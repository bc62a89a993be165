//! The spans, with names and attributes: by the OpenTelemetry semantic conventions where
//! they have a name, below `nymea.` otherwise.
//!
//! ```text
//! connection                 each connection's own trace, or its client's
//! ├ tls handshake
//! ├ websocket upgrade        (on WebSocket)
//! └ authenticate
//!
//! tunnel setup               the tunnel's trace; links: both connections
//! ├ offer                    the first endpoint's node queries the rendezvous
//! ├ wait for partner
//! ├ claim                    the second endpoint's node queries it; link: its connection
//! ├ bridge                   the second node calls the first one (only if they are two)
//! │ └ attach                 … which accepts the call
//! ├ introduce                both endpoints are notified, on each node
//! └ tunnel                   from then to the end, on each node; link: tunnel setup
//! ```

use std::time::Instant;

use opentelemetry::KeyValue;
use opentelemetry::trace::SpanKind;

use super::{Span, Tracer};
use crate::ids::{ClientAddr, ConnectionId, OfferId};
use crate::observability::{Kind, TunnelRecord};
use crate::protocol::Close;
use crate::trace_parent::TraceParent;

/// How that transport calls itself.
const WEB_SOCKET: &str = "websocket";

/// A connection from its first byte until it has a tunnel or ends.
pub struct ConnectionTrace {
    tracer: Tracer,
    me: Option<TraceParent>,
    client: Option<TraceParent>,
    began: Instant,
    id: ConnectionId,
    client_addr: ClientAddr,
    transport: &'static str,
    tls: Option<&'static str>,
    told: bool,
}

/// The end of a connection without a tunnel, or its tunnel.
#[derive(Clone, Copy, Debug)]
pub enum Ended {
    /// The connection has a tunnel, with this set-up.
    Paired(Option<TraceParent>),
    /// The connection has registered a gateway.
    Registered,
    /// This node closed it.
    Closed(Close),
    /// The client left.
    Left,
    /// The connection broke.
    Lost,
    /// The connection was dropped without a reason.
    Aborted,
}

impl Tracer {
    /// A connection that can be talked to, over this `transport`. `secured_at` is when TLS was done.
    pub fn upgraded(
        &self,
        (id, client_addr): (ConnectionId, ClientAddr),
        transport: &'static str,
        client: Option<TraceParent>,
        began: Instant,
        tls: Option<(&'static str, Instant)>,
    ) -> ConnectionTrace {
        let trace = ConnectionTrace {
            tracer: self.clone(),
            me: self.connection(client),
            client,
            began,
            id,
            client_addr,
            transport,
            tls: tls.map(|(version, _)| version),
            told: false,
        };
        let now = Instant::now();
        if let Some((_, secured_at)) = tls {
            trace.step("tls handshake", (began, secured_at), Vec::new(), None);
        }
        if transport == WEB_SOCKET {
            let from = tls.map_or(began, |(_, secured_at)| secured_at);
            trace.step("websocket upgrade", (from, now), Vec::new(), None);
        }
        trace
    }

    /// The rendezvous has answered an offer: the first endpoint's, which makes the set-up, or that
    /// of a `claimer` of it.
    pub fn asked(
        &self,
        setup: Option<TraceParent>,
        claimer: Option<TraceParent>,
        (began, ended): (Instant, Instant),
    ) {
        let name = if claimer.is_some() { "claim" } else { "offer" };
        self.part_of(setup, name, SpanKind::Internal, (began, ended), claimer);
    }

    /// Records that an endpoint has been notified of its partner.
    pub fn introduced(&self, setup: Option<TraceParent>, began: Instant) {
        let times = (began, Instant::now());
        self.part_of(setup, "introduce", SpanKind::Internal, times, None);
    }

    /// A tunnel has ended.
    pub fn tunnel(
        &self,
        setup: Option<TraceParent>,
        tunnel: &TunnelRecord,
        began: Instant,
        why: Close,
    ) {
        let Some(setup) = setup else { return };
        let number = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        let [forth, back] = tunnel.meter.get();
        self.tell(Span {
            me: setup.child(),
            parent: Some(setup),
            name: "tunnel",
            kind: SpanKind::Internal,
            began,
            ended: Instant::now(),
            links: vec![setup],
            facts: vec![
                KeyValue::new("nymea.tunnel.id", tunnel.facts.id.to_string()),
                KeyValue::new("nymea.tunnel.kind", tunnel.facts.kind.label()),
                KeyValue::new("nymea.tunnel.generation", tunnel.facts.generation()),
                KeyValue::new("nymea.tunnel.close_reason", why.class()),
                KeyValue::new("nymea.tunnel.forth.bytes", number(forth.bytes)),
                KeyValue::new("nymea.tunnel.forth.messages", number(forth.messages)),
                KeyValue::new("nymea.tunnel.back.bytes", number(back.bytes)),
                KeyValue::new("nymea.tunnel.back.messages", number(back.messages)),
            ],
            error: (why != Close::OtherLeft).then(|| why.class()),
        });
    }

    fn part_of(
        &self,
        whole: Option<TraceParent>,
        name: &'static str,
        kind: SpanKind,
        (began, ended): (Instant, Instant),
        link: Option<TraceParent>,
    ) {
        let Some(whole) = whole else { return };
        self.tell(Span {
            me: whole.child(),
            parent: Some(whole),
            name,
            kind,
            began,
            ended,
            links: link.into_iter().collect(),
            facts: Vec::new(),
            error: None,
        });
    }
}

impl ConnectionTrace {
    /// Its place in the trace; `None` if it is not traced.
    pub fn place(&self) -> Option<TraceParent> {
        self.me
    }

    /// When it came.
    pub fn began(&self) -> Instant {
        self.began
    }

    /// Records that the token was checked; `failure` if it could not be.
    pub fn authenticated(&self, began: Instant, result: &'static str, failure: bool) {
        let facts = vec![KeyValue::new("nymea.authentication.result", result)];
        self.step("authenticate", (began, Instant::now()), facts, failure.then_some(result));
    }

    /// Records that the connection has a tunnel, or has ended.
    pub fn ends(&mut self, ended: Ended) {
        let Some(me) = self.me.filter(|_| !std::mem::replace(&mut self.told, true)) else { return };
        let mut facts = vec![KeyValue::new("nymea.connection.id", self.id.to_string())];
        match self.client_addr {
            ClientAddr::Ip(address) => facts.extend([
                KeyValue::new("network.transport", "tcp"),
                KeyValue::new("network.peer.address", address.ip().to_canonical().to_string()),
                KeyValue::new("network.peer.port", i64::from(address.port())),
            ]),
            ClientAddr::Unix { .. } => facts.push(KeyValue::new("network.transport", "unix")),
        }
        if self.transport == WEB_SOCKET {
            facts.push(KeyValue::new("network.protocol.name", "websocket"));
        }
        if let Some(version) = self.tls {
            facts.push(KeyValue::new("tls.protocol.name", "tls"));
            facts.push(KeyValue::new("tls.protocol.version", version));
        }
        let (outcome, error, setup) = match ended {
            Ended::Paired(setup) => ("paired", None, setup),
            Ended::Registered => ("registered", None, None),
            Ended::Closed(close) => (close.class(), Some(close.class()), None),
            Ended::Left => ("left", None, None),
            Ended::Lost => ("lost", Some("lost"), None),
            Ended::Aborted => ("aborted", Some("aborted"), None),
        };
        facts.push(KeyValue::new("nymea.connection.outcome", outcome));
        if let Some(error) = error {
            facts.push(KeyValue::new("error.type", error));
        }
        self.tracer.tell(Span {
            me,
            parent: self.client,
            name: "connection",
            kind: SpanKind::Server,
            began: self.began,
            ended: Instant::now(),
            links: setup.into_iter().collect(),
            facts,
            error,
        });
    }

    fn step(
        &self,
        name: &'static str,
        (began, ended): (Instant, Instant),
        facts: Vec<KeyValue>,
        error: Option<&'static str>,
    ) {
        let Some(me) = self.me else { return };
        self.tracer.tell(Span {
            me: me.child(),
            parent: Some(me),
            name,
            kind: SpanKind::Internal,
            began,
            ended,
            links: Vec::new(),
            facts,
            error,
        });
    }
}

impl Drop for ConnectionTrace {
    fn drop(&mut self) {
        self.ends(Ended::Aborted);
    }
}

/// The set-up of a tunnel, on the node of its first endpoint: the root of the tunnel's trace.
#[derive(Clone)]
pub struct Setup {
    tracer: Tracer,
    me: Option<TraceParent>,
    first: Option<TraceParent>,
    began: Instant,
}

impl Setup {
    /// An endpoint is about to be offered. Sampled if its connection is.
    pub fn new(tracer: &Tracer, first: Option<TraceParent>) -> Self {
        let me = first.map(|first| TraceParent::new(first.sampled));
        Self { tracer: tracer.clone(), me, first, began: Instant::now() }
    }

    /// The trace context for the rendezvous and other nodes.
    pub fn place(&self) -> Option<TraceParent> {
        self.me
    }

    /// When the endpoint was offered.
    pub fn began(&self) -> Instant {
        self.began
    }

    /// The partner is there.
    pub fn waited(&self, since: Instant) {
        let times = (since, Instant::now());
        self.tracer.part_of(self.me, "wait for partner", SpanKind::Internal, times, None);
    }

    /// The set-up is over. `second` is the other connection.
    pub fn ends(
        &self,
        tunnel: OfferId,
        second: Option<TraceParent>,
        outcome: Result<Kind, &'static str>,
    ) {
        let Some(me) = self.me else { return };
        let mut facts = vec![KeyValue::new("nymea.tunnel.id", tunnel.to_string())];
        match outcome {
            Ok(kind) => facts.push(KeyValue::new("nymea.tunnel.kind", kind.label())),
            Err(error) => facts.push(KeyValue::new("error.type", error)),
        }
        self.tracer.tell(Span {
            me,
            parent: None,
            name: "tunnel setup",
            kind: SpanKind::Internal,
            began: self.began,
            ended: Instant::now(),
            links: self.first.into_iter().chain(second).collect(),
            facts,
            error: outcome.err(),
        });
    }
}

/// Fetching the first endpoint from its node.
#[derive(Clone)]
pub struct Bridging {
    tracer: Tracer,
    me: Option<TraceParent>,
    setup: Option<TraceParent>,
    second: Option<TraceParent>,
    began: Instant,
}

impl Bridging {
    /// The other node is about to be called.
    pub fn new(tracer: &Tracer, setup: Option<TraceParent>, second: Option<TraceParent>) -> Self {
        let me = setup.map(TraceParent::child);
        Self { tracer: tracer.clone(), me, setup, second, began: Instant::now() }
    }

    /// The trace context for the other node.
    pub fn place(&self) -> Option<TraceParent> {
        self.me
    }

    /// The trace context of the connection for which the other node is called.
    pub fn connection(&self) -> Option<TraceParent> {
        self.second
    }

    /// When it began.
    pub fn began(&self) -> Instant {
        self.began
    }

    /// Records the answer of the other node, or its absence.
    pub fn ends(&self, address: &str, error: Option<&'static str>) {
        let Some(me) = self.me else { return };
        let (host, port) = address.rsplit_once(':').unwrap_or((address, ""));
        let mut facts = rpc();
        facts.push(KeyValue::new("server.address", host.to_owned()));
        facts.extend(port.parse::<i64>().ok().map(|port| KeyValue::new("server.port", port)));
        facts.extend(error.map(|error| KeyValue::new("error.type", error)));
        self.tracer.tell(Span {
            me,
            parent: self.setup,
            name: "bridge",
            kind: SpanKind::Client,
            began: self.began,
            ended: Instant::now(),
            links: self.second.into_iter().collect(),
            facts,
            error,
        });
    }
}

/// A call of another node, which fetches an endpoint here.
#[derive(Clone, Copy, Debug)]
pub struct Attaching {
    /// The call.
    pub call: Option<TraceParent>,
    /// The connection for which it calls.
    pub second: Option<TraceParent>,
    /// When it came.
    pub began: Instant,
}

impl Attaching {
    /// Records the answer; `refused` is the reason of a refusal.
    pub fn ends(&self, tracer: &Tracer, refused: Option<&'static str>) {
        let Some(call) = self.call else { return };
        let mut facts = rpc();
        facts.extend(refused.map(|error| KeyValue::new("error.type", error)));
        tracer.tell(Span {
            me: call.child(),
            parent: Some(call),
            name: "attach",
            kind: SpanKind::Server,
            began: self.began,
            ended: Instant::now(),
            links: self.second.into_iter().collect(),
            facts,
            error: refused,
        });
    }
}

fn rpc() -> Vec<KeyValue> {
    vec![
        KeyValue::new("rpc.system", "grpc"),
        KeyValue::new("rpc.service", "nymea.remoteproxy.bridge.v1.Bridge"),
        KeyValue::new("rpc.method", "Tunnel"),
    ]
}
