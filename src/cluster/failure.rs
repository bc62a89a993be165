//! Records the failure of a connection between two nodes: a log line, and a metric.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use h2::Reason;
use tracing::{debug, info, warn};

use super::wire;
use crate::observability::Metrics;

/// Why a connection has ended in no orderly way.
#[derive(Debug)]
pub(super) enum Failure {
    /// The other node has given no sign of life.
    Silent,
    /// HTTP/2, or what is below it.
    Http(h2::Error),
}

/// The severity of a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// The other node has closed the connection as it should.
    Orderly,
    /// The other node or the network between is gone.
    Silent,
    Broken,
    /// One of the two nodes refuses to go on, though both are there: nothing that should happen.
    RefusedHere,
    RefusedThere,
}

/// The reasons in the metric.
pub(super) const REASONS: [&str; 4] = [
    Kind::Silent.label(),
    Kind::Broken.label(),
    Kind::RefusedHere.label(),
    Kind::RefusedThere.label(),
];

impl Kind {
    fn of(failure: &Failure) -> Self {
        match failure {
            Failure::Silent => Self::Silent,
            Failure::Http(error) if error.reason() == Some(Reason::NO_ERROR) => Self::Orderly,
            Failure::Http(error) if error.is_io() => Self::Broken,
            Failure::Http(error) if error.is_remote() => Self::RefusedThere,
            Failure::Http(_) => Self::RefusedHere,
        }
    }

    const fn label(self) -> &'static str {
        match self {
            Self::Orderly => "orderly",
            Self::Silent => "silent",
            Self::Broken => "broken",
            Self::RefusedHere => "refused_here",
            Self::RefusedThere => "refused_there",
        }
    }
}

/// A connection, as far as its end is concerned.
#[derive(Clone)]
pub(super) struct Watched {
    /// The name of the other node, once it is known.
    pub(super) name: Arc<OnceLock<String>>,
    /// The address of the other node.
    pub(super) address: String,
    /// Tunnels on the connection.
    pub(super) tunnels: Arc<AtomicUsize>,
    pub(super) metrics: Arc<Metrics>,
}

impl Watched {
    /// Tunnels on the connection. Asked before it may fail: they end at the same time.
    pub(super) fn tunnels(&self) -> usize {
        self.tunnels.load(Ordering::Relaxed)
    }

    /// Notes what the other node calls itself.
    pub(super) fn named(&self, said: &str) {
        self.name.get_or_init(|| wire::name_of(said).to_owned());
    }

    /// Records that the connection has failed with so many tunnels on it.
    pub(super) fn failed(&self, failure: &Failure, tunnels: usize) {
        let kind = Kind::of(failure);
        let peer = self.name.get().map_or("unknown", String::as_str);
        let (address, reason) = (&self.address, kind.label());
        let error = match failure {
            Failure::Silent => "no sign of life".to_owned(),
            Failure::Http(error) => error.to_string(),
        };
        match kind {
            Kind::Orderly => {
                debug!(peer, address, error, "a node has closed a bridge connection");
                return;
            }
            // As when a node has ended in order.
            Kind::Broken if tunnels == 0 => {
                debug!(peer, address, error, "an unused bridge connection is lost");
                return;
            }
            Kind::RefusedHere | Kind::RefusedThere => warn!(
                peer,
                address,
                tunnels,
                reason,
                error,
                "a bridge connection has ended by an HTTP/2 error, and its tunnels with it"
            ),
            Kind::Silent | Kind::Broken => info!(
                peer,
                address,
                tunnels,
                reason,
                error,
                "a bridge connection is lost, and its tunnels with it"
            ),
        }
        self.metrics.bridge_connection_failed(reason);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_should_not_happen_is_a_refusal() {
        let kind = |error: h2::Error| Kind::of(&Failure::Http(error));
        assert_eq!(kind(Reason::NO_ERROR.into()), Kind::Orderly);
        assert_eq!(kind(Reason::ENHANCE_YOUR_CALM.into()), Kind::RefusedHere);
        assert_eq!(Kind::of(&Failure::Silent), Kind::Silent);
    }
}
