//! Answers of Redis that arrive late, or after the node has decided by itself.

use super::super::scripts::Owner;
use super::*;
use crate::protocol::Token;

const HERE: &str = "here";

fn offers<const N: usize>(local: &mut Local) -> [Offer; N] {
    let key = PairingKey::new(&Token::new("t"), None);
    [(); N].map(|()| {
        let offer = Offer::new(key, None);
        assert!(!local.enter(&offer));
        local.ask(&offer);
        offer
    })
}

fn claimed(offer: &Offer, node: &str) -> Told {
    let owner = Owner { offer: offer.id, node: node.into(), epoch: "0".into() };
    Told::Claimed { owner, address: "there:1".into(), secret: offer.secret, trace: None }
}

fn taken(offer: &Offer) -> Told {
    let owner = Owner { offer: offer.id, node: HERE.into(), epoch: "0".into() };
    Told::Taken { owner, address: "there:1".into(), claimer: "-".into(), claimer_node: HERE.into() }
}

fn here(offer: &Offer) -> Answer {
    Answer::Claimed(Waiting { id: offer.id, home: Home::Here })
}

fn answer(alone: Alone) -> Option<Answer> {
    match alone {
        Alone::Answer(answer) => Some(answer),
        Alone::Waiting(_) => None,
    }
}

fn next(local: &mut Local) -> Vec<Errand> {
    let errands = local.errands(10);
    for (key, errands) in &errands {
        local.done(*key, errands.len());
    }
    errands.into_iter().flat_map(|(_, errands)| errands).collect()
}

#[test]
fn the_claim_may_be_known_before_the_wait() {
    let mut local = Local::default();
    let [first, second, third] = offers(&mut local);
    assert_eq!(local.conclude(&second, claimed(&first, HERE), HERE), here(&first));
    assert_eq!(local.conclude(&first, Told::Wait, HERE), Answer::Wait);
    assert_eq!(local.conclude(&third, taken(&first), HERE), Answer::Taken);
    assert_eq!(next(&mut local), []);
    local.release(second.key, second.id);
    assert_eq!(next(&mut local), []);
    local.release(first.key, first.id);
    assert_eq!(next(&mut local), [Errand::Release(first.id, Role::Either)]);
}

#[test]
fn the_bridge_may_come_before_the_wait() {
    let mut local = Local::default();
    let [first, third] = offers(&mut local);
    assert!(local.stands(&first));
    assert!(local.stands(&first), "asked again");
    // The session has its partner, and the answer is dropped. Redis may lose the entry.
    local.assert_all();
    assert_eq!(next(&mut local), [Errand::Stand]);
    assert_eq!(local.tell(&first.key).map(|tunnel| tunnel.offer.id), Some(first.id));
    assert_eq!(local.known(&third), Some(Answer::Taken));
    local.release(first.key, first.id);
    let releases = [third, first].map(|offer| Errand::Release(offer.id, Role::Either));
    assert_eq!(next(&mut local), releases);
    assert!(local.tell(&first.key).is_none());
}

#[test]
fn no_bridge_joins_an_offer_beside_a_tunnel_of_its_key() {
    let mut local = Local::default();
    let [stored, first, second] = offers(&mut local);
    assert_eq!(answer(local.alone(&first)), None);
    assert_eq!(answer(local.alone(&second)), Some(here(&first)));
    assert!(!local.stands(&stored));
    assert_eq!(local.conclude(&stored, Told::Wait, HERE), Answer::Taken);
}

#[test]
fn alone_two_pair_and_redis_is_told() {
    let mut local = Local::default();
    let [first, second, third] = offers(&mut local);
    assert_eq!(answer(local.alone(&first)), None);
    assert_eq!(answer(local.alone(&second)), Some(here(&first)));
    assert_eq!(answer(local.alone(&second)), Some(here(&first)));
    assert_eq!(answer(local.alone(&first)), Some(Answer::Wait));
    assert_eq!(answer(local.alone(&third)), Some(Answer::Taken));
    // Third may have been stored before its answer was lost.
    assert_eq!(next(&mut local), [Errand::Stand, Errand::Release(third.id, Role::Either)]);
    assert_eq!(local.tell(&first.key).and_then(|tunnel| tunnel.claimer), Some(second.id));
}

#[test]
fn what_waits_without_redis_gives_way_to_what_redis_has() {
    let mut local = Local::default();
    let [first, second] = offers(&mut local);
    assert_eq!(answer(local.alone(&first)), None);
    assert_eq!(local.conclude(&second, Told::Wait, HERE), Answer::Wait);
    assert_eq!(local.conclude(&first, claimed(&second, HERE), HERE), here(&second));
    assert_eq!(next(&mut local), []);
}

#[test]
fn a_claim_elsewhere_is_given_back_by_who_has_a_partner_here() {
    let mut local = Local::default();
    let [first, second, elsewhere] = offers(&mut local);
    assert_eq!(answer(local.alone(&first)), None);
    assert_eq!(answer(local.alone(&second)), Some(here(&first)));
    assert_eq!(next(&mut local), [Errand::Stand]);
    assert_eq!(local.conclude(&first, claimed(&elsewhere, "there"), HERE), Answer::Wait);
    assert_eq!(next(&mut local), [Errand::Stand]);
}

#[test]
fn nothing_is_said_of_what_redis_never_heard_of() {
    let mut local = Local::default();
    let offer = Offer::new(PairingKey::new(&Token::new("t"), None), None);
    local.enter(&offer);
    assert_eq!(answer(local.alone(&offer)), None);
    local.release(offer.key, offer.id);
    assert!(!local.has_errands());
}

#[test]
fn errands_come_up_until_they_are_done() {
    let mut local = Local::default();
    let [first, second] = offers(&mut local);
    local.release(first.key, first.id);
    let taken = local.errands(10);
    assert_eq!(taken.len(), 1);
    // While one errand is being run, another one is added.
    local.release(second.key, second.id);
    assert!(!local.has_errands());
    assert_eq!(local.released(&first.key), [second.id, first.id]);
    local.done(first.key, 0);
    assert_eq!(local.errands(10).remove(0).1.len(), 2);
    local.start_over();
    let releases = [first, second].map(|offer| Errand::Release(offer.id, Role::Either));
    assert_eq!(next(&mut local), releases);
    assert!(local.released(&first.key).is_empty());
}

#[test]
fn there_is_an_end_to_errands() {
    let mut local = Local::default();
    let key = PairingKey::new(&Token::new("t"), None);
    for _ in 0..MAX_ERRANDS + 10 {
        local.release(key, OfferId::random());
    }
    assert_eq!(local.errands(1).remove(0).1.len(), MAX_ERRANDS);
    assert_eq!(local.released(&key).len(), MAX_GONE);
}

/// A key of its own.
fn numbered(number: usize) -> Offer {
    let key = PairingKey::new(&Token::new(number.to_string()), None);
    Offer::new(key, None)
}

#[test]
fn what_begins_and_ends_while_redis_is_away_leaves_nothing_to_tell() {
    let mut local = Local::default();
    for number in 0..MAX_ERRANDS + 10 {
        let (first, second) = (numbered(number), numbered(number));
        for offer in [&first, &second] {
            local.enter(offer);
            let _answer = local.alone(offer);
        }
        local.release(second.key, second.id);
        local.release(first.key, first.id);
    }
    assert_eq!(local.backlog(), (0, 0));
    while local.has_errands() {
        assert!(local.errands(128).is_empty());
    }
}

#[test]
fn a_tunnel_that_there_was_no_room_for_is_written_later() {
    let mut local = Local::default();
    let mut waiting = Vec::new();
    for number in 0..MAX_ERRANDS + 10 {
        let offer = numbered(number);
        local.enter(&offer);
        local.ask(&offer);
        waiting.push(offer);
    }
    for offer in waiting {
        local.release(offer.key, offer.id);
    }
    assert_eq!(local.backlog(), (MAX_ERRANDS, 10), "ten are dropped");
    let (first, second) = (numbered(0), numbered(0));
    for offer in [&first, &second] {
        local.enter(offer);
        let _answer = local.alone(offer);
    }
    let (age, mut written) = (Duration::from_hours(1), 0);
    local.assert_older_than(age);
    while local.has_errands() {
        for (key, errands) in local.errands(128) {
            written += errands.iter().filter(|errand| **errand == Errand::Stand).count();
            local.done(key, errands.len());
        }
        local.assert_older_than(age);
    }
    assert_eq!((written, local.backlog()), (1, (0, 10)));
}
