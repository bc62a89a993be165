//! What the log lines of a connection say about it.

use tracing::{Span, error_span};

use crate::ids::{ClientAddr, ConnectionId, OfferId};
use crate::trace_parent::TraceParent;

/// What every line of a connection says of it, as far as it is known.
///
/// This takes less memory than a span. A tunnel may last for hours, and nothing is logged of it
/// between its first line and its last: it has a span for these two only.
#[derive(Clone, Copy)]
pub(super) struct Origin {
    pub(super) id: ConnectionId,
    pub(super) client_addr: Option<ClientAddr>,
    /// The proxy it came through.
    pub(super) proxy_addr: Option<ClientAddr>,
    pub(super) trace: Option<TraceParent>,
}

impl Origin {
    /// The span for what is said of the connection before it has a tunnel.
    pub(super) fn span(&self) -> Span {
        self.span_with(None, None)
    }

    /// The span for what is said of its tunnel, which was set up in this trace.
    pub(super) fn span_of_tunnel(&self, tunnel: OfferId, setup: Option<TraceParent>) -> Span {
        self.span_with(Some(tunnel), setup)
    }

    fn span_with(&self, tunnel: Option<OfferId>, setup: Option<TraceParent>) -> Span {
        // At the highest level, so that lines of any level say where they belong.
        error_span!(
            "connection",
            id = %self.id,
            client_addr = self.client_addr.map(display),
            proxy_addr = self.proxy_addr.map(display),
            trace_id = self.trace.map(|trace| display(trace.trace_id())),
            tunnel = tunnel.map(display),
            tunnel_trace_id = setup.map(|setup| display(setup.trace_id())),
        )
    }
}
