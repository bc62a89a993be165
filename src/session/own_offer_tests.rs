//! The entry of a tunnel belongs to the endpoint that waited, and to no other.

use super::*;
use crate::auth::AcceptAny;
use crate::config::Config;
use crate::ids::NodeId;
use crate::lifecycle::Lifecycle;
use crate::observability::{Series, Telemetry};
use crate::protocol::{ServerInfo, Token};
use crate::rendezvous::MemoryRendezvous;

fn shared() -> Arc<Shared> {
    let (config, memory) = (Config::default(), Arc::<MemoryRendezvous>::default());
    let node = NodeId::started("node");
    let telemetry = Telemetry::start(&config.telemetry, &node, "node").expect("telemetry");
    let server = ServerInfo { name: "node".into(), version: "1".into() };
    Arc::new(Shared::new(
        Arc::new(AcceptAny),
        (Arc::clone(&memory) as _, memory),
        None,
        server,
        (Lifecycle::default(), telemetry),
        (config.timeouts, config.limits, config.tunnel_proxy),
    ))
}

fn offer(shared: &Arc<Shared>) -> Box<OwnOffer> {
    OwnOffer::new(PairingKey::new(&Token::new("t"), None), None, shared)
}

fn violations(shared: &Shared, invariant: Invariant) -> u64 {
    let series = shared.telemetry.metrics.series();
    let sums = Series::sums(&series, "remoteproxy_invariants_violated_total", "invariant");
    sums[invariant.label()]
}

#[test]
fn a_key_has_one_tunnel_until_its_entry_is_released() {
    let shared = shared();
    let (mut first, mut second) = (offer(&shared), offer(&shared));
    assert_eq!(first.establish(), Ok(()));
    assert_eq!(second.establish(), Err(Close::Fault));
    assert_eq!(violations(&shared, Invariant::TwoLegsPerKey), 1);
    drop(second);
    let mut third = offer(&shared);
    assert_eq!(third.establish(), Err(Close::Fault), "the first one still stands");
    drop(first);
    assert_eq!(third.establish(), Ok(()));
    drop(third);
    assert_eq!(violations(&shared, Invariant::ReleasedByOwner), 0);
}

#[test]
fn an_entry_that_another_has_released_is_a_violation() {
    let shared = shared();
    let mut first = offer(&shared);
    assert_eq!(first.establish(), Ok(()));
    // A fault: it is released without its owner, and another tunnel begins.
    assert_eq!(shared.registry.disestablish(&first.offer), Ok(()));
    let mut second = offer(&shared);
    assert_eq!(second.establish(), Ok(()));
    drop(first);
    assert_eq!(violations(&shared, Invariant::ReleasedByOwner), 1);
    // The one that is not concerned keeps its key.
    drop(second);
    assert_eq!(violations(&shared, Invariant::ReleasedByOwner), 1);
}
