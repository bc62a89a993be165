//! Who gets in, who gives way, and that nothing is left of those that leave.

use super::*;
use crate::observability::Series;

fn admission(change: impl FnOnce(&mut Limits)) -> Arc<Admission> {
    let mut limits = Limits::default();
    change(&mut limits);
    Admission::new(limits, Metrics::off())
}

fn client(ip: &str) -> ClientAddr {
    let ip: std::net::IpAddr = ip.parse().expect("an address");
    ClientAddr::Ip((ip, 1).into())
}

fn enter(admission: &Arc<Admission>, ip: &str) -> Result<Ticket, Refusal> {
    admission.enter(Some(client(ip)))
}

fn verified(admission: &Arc<Admission>, ip: &str, token: &str) -> Result<Ticket, Refusal> {
    let mut ticket = enter(admission, ip)?;
    ticket.shows(&Token::new(token));
    ticket.is_verified(&auth::User::default())?;
    Ok(ticket)
}

/// Those of many that get in.
fn all<T>(tries: usize, one: impl Fn(usize) -> Result<T, Refusal>) -> (Vec<T>, Option<Refusal>) {
    let mut refusal = None;
    let entered = (0..tries).filter_map(|n| one(n).inspect_err(|why| refusal = Some(*why)).ok());
    (entered.collect(), refusal)
}

fn is_empty(admission: &Admission) -> bool {
    let counts = admission.counts();
    (counts.connections, counts.strangers, counts.registered) == (0, 0, 0)
        && counts.networks.is_empty()
        && counts.users.is_empty()
        && counts.crowd.count() == 0
}

#[test]
fn one_client_with_random_tokens_leaves_room_for_others() {
    let admission = admission(|limits| limits.connections = 600);
    let (greedy, why) = all(700, |n| verified(&admission, "10.0.0.1", &format!("token {n}")));
    assert_eq!((greedy.len(), why), (450, Some(Refusal::Network)));
    let (others, _) = all(90, |n| verified(&admission, "10.0.0.2", &format!("token {n}")));
    assert_eq!(others.len(), 90);
    // The rest is for networks with few.
    let late = verified(&admission, "10.0.0.2", "late").err();
    assert_eq!(late, Some(Refusal::Connections));
    let (few, _) = all(60, |n| verified(&admission, &format!("10.1.0.{}", n / 2), "few"));
    assert_eq!(few.len(), 60);
    assert_eq!(admission.connections().0, 600);
    drop((greedy, others, few));
    assert!(is_empty(&admission));
}

#[test]
fn one_token_with_many_nonces_has_a_share_wherever_it_comes_from() {
    let admission = admission(|limits| limits.connections = 600);
    let (greedy, why) = all(600, |n| verified(&admission, &format!("10.0.0.{}", n % 200), "one"));
    assert_eq!((greedy.len(), why), (300, Some(Refusal::User)));
    assert!(verified(&admission, "10.0.0.1", "another").is_ok());
    drop(greedy);
    assert!(is_empty(&admission));
}

#[test]
fn a_user_is_one_however_many_tokens_it_has() {
    let admission = admission(|limits| limits.connections = 20);
    let user = auth::User { username: Some("somebody".into()), email: None };
    let (greedy, why) = all(20, |n| {
        let mut ticket = enter(&admission, &format!("10.0.0.{n}"))?;
        ticket.shows(&Token::new(format!("token {n}")));
        ticket.is_verified(&user).map(|()| ticket)
    });
    assert_eq!((greedy.len(), why), (10, Some(Refusal::User)));
}

#[test]
fn who_registers_without_a_token_remains_a_stranger() {
    let admission = admission(|limits| limits.unauthenticated_per_ip = 5);
    let registered = |ip: &str| {
        let mut ticket = enter(&admission, ip)?;
        ticket.is_heard();
        ticket.registers().map(|()| ticket)
    };
    let (first, why) = all(200, |_| registered("10.0.0.1"));
    assert_eq!((first.len(), why), (5, Some(Refusal::UnauthenticatedPerIp)));
    assert!(registered("10.0.0.2").is_ok());
    drop(first);
    assert!(is_empty(&admission));
}

#[test]
fn registered_strangers_never_use_up_the_places_of_newcomers() {
    let admission = admission(|limits| limits.unauthenticated = 20);
    let (registered, why) = all(30, |n| {
        let mut ticket = enter(&admission, &format!("10.0.0.{n}"))?;
        ticket.registers().map(|()| ticket)
    });
    assert_eq!((registered.len(), why), (18, Some(Refusal::Unauthenticated)));
    let (newcomers, _) = all(50, |n| verified(&admission, &format!("10.0.1.{n}"), "t"));
    assert_eq!(newcomers.len(), 50);
}

#[test]
fn the_oldest_silent_stranger_of_the_largest_network_goes_before_a_newcomer_is_refused() {
    let admission = admission(|limits| limits.unauthenticated = 10);
    let quiet = enter(&admission, "10.0.0.1").expect("room");
    let (mut greedy, _) = all(9, |_| enter(&admission, "10.0.0.2"));
    greedy[0].is_heard();
    let newcomer = enter(&admission, "10.0.0.3").expect("room");
    let gone: Vec<_> = greedy.iter().map(|ticket| ticket.displaced().is_cancelled()).collect();
    assert_eq!(gone.iter().filter(|gone| **gone).count(), 1);
    assert!(gone[1] && !quiet.displaced().is_cancelled());
    // It is counted no more, and cannot come back in.
    assert_eq!(admission.counts().strangers, 10);
    assert_eq!(greedy[1].is_verified(&auth::User::default()), Err(Refusal::Unauthenticated));
    // Of its own network, none gives way that has only just come.
    assert_eq!(enter(&admission, "10.0.0.2").err(), Some(Refusal::Unauthenticated));
    drop((quiet, greedy, newcomer));
    assert!(is_empty(&admission));
}

#[test]
fn a_stranger_gives_way_when_all_connections_are_taken() {
    let admission = admission(|limits| limits.connections = 3);
    let verified_one = verified(&admission, "10.0.0.1", "t").expect("room");
    let strangers = ["10.0.0.2", "10.0.0.3"].map(|ip| enter(&admission, ip).expect("room"));
    let newcomer = verified(&admission, "10.0.0.4", "t").expect("room");
    assert!(strangers[0].displaced().is_cancelled() && !strangers[1].displaced().is_cancelled());
    let second = verified(&admission, "10.0.0.5", "u").expect("room");
    assert_eq!(enter(&admission, "10.0.0.6").err(), Some(Refusal::Connections));
    drop((verified_one, strangers, newcomer, second));
    assert!(is_empty(&admission));
}

#[test]
fn ipv6_is_counted_at_three_levels() {
    let admission = admission(|limits| limits.unauthenticated_per_ip = 1);
    let in_64 = |n: usize| enter(&admission, &format!("2001:db8::{n}"));
    let (first, why) = all(9, in_64);
    assert_eq!((first.len(), why), (1, Some(Refusal::UnauthenticatedPerIp)));
    let (second, _) = all(9, |n| enter(&admission, &format!("2001:db8:0:{n}::1")));
    assert_eq!(second.len(), 3, "4 in a /56");
    let (third, _) = all(99, |n| enter(&admission, &format!("2001:db8:0:{:x}00::1", n + 1)));
    assert_eq!(third.len(), 12, "16 in a /48");
    assert!(enter(&admission, "2001:db8:1::1").is_ok());
    let _mapped = enter(&admission, "::ffff:10.0.0.1").expect("room");
    assert!(enter(&admission, "10.0.0.1").is_err());
}

#[test]
fn a_client_that_a_load_balancer_names_later_is_counted_once_it_is_known() {
    let admission = admission(|limits| limits.unauthenticated_per_ip = 1);
    let mut first = admission.enter(None).expect("room");
    let mut second = admission.enter(None).expect("room");
    assert_eq!([(); 2].map(|()| first.comes_from(client("10.0.0.1"))), [Ok(()), Ok(())]);
    assert_eq!(second.comes_from(client("10.0.0.1")), Err(Refusal::UnauthenticatedPerIp));
    assert_eq!(admission.connections().0, 1);
    drop((first, second));
    assert!(is_empty(&admission));
}

#[test]
fn programs_on_a_unix_socket_are_not_told_apart() {
    let admission = admission(|limits| {
        limits.unauthenticated_per_ip = 1;
        limits.connections = 10;
    });
    let local = ClientAddr::Unix { process: None };
    let (programs, _) = all(12, |_| admission.enter(Some(local)));
    assert_eq!(programs.len(), 10);
}

#[test]
fn a_place_that_is_returned_twice_is_counted_and_frees_no_other() {
    let metrics = Metrics::new(true, None, &opentelemetry_sdk::Resource::builder_empty().build());
    let admission = Admission::new(Limits::default(), Arc::clone(&metrics));
    let ticket = enter(&admission, "192.0.2.1").expect("room");
    let networks = ticket.networks;
    drop(ticket);
    admission.counts().forget(&networks);
    admission.counts().forget_registered();
    assert!(is_empty(&admission));
    let name = "remoteproxy_invariants_violated_total";
    let violated = Series::sums(&metrics.series(), name, "invariant");
    assert_eq!(violated.get("permit_returned_once"), Some(&3), "{violated:?}");
}
