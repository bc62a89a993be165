//! Tunnels between scripted legs: what a breach ends, and what is sent after the key is free.

use std::collections::VecDeque;

use super::*;
use crate::protocol::Chunk;

/// A leg that sends what it has, then its end if it has one; and takes everything.
#[derive(Default)]
struct Scripted {
    sends: VecDeque<Chunk>,
    sends_end: bool,
    taken: Vec<u8>,
    /// The other endpoint's direction has ended.
    received_end: bool,
    closed: Option<Close>,
}

impl Leg for Scripted {
    fn poll_recv(&mut self, _cx: &mut Context<'_>) -> Poll<Result<Chunk, End>> {
        match self.sends.pop_front() {
            Some(chunk) => Poll::Ready(Ok(chunk)),
            None if self.sends_end => Poll::Ready(Err(End::Finished)),
            None => Poll::Pending,
        }
    }

    fn send_end(&mut self, _cx: &mut Context<'_>) -> bool {
        self.received_end = true;
        true
    }

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), End>> {
        Poll::Ready(Ok(()))
    }

    fn send(&mut self, _cx: &mut Context<'_>, chunk: Chunk) -> Result<(), End> {
        self.taken.extend_from_slice(&chunk.data);
        Ok(())
    }

    fn poll_flush(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), End>> {
        Poll::Ready(Ok(()))
    }

    fn poll_health(&mut self, _cx: &mut Context<'_>) -> Poll<End> {
        Poll::Pending
    }

    fn set_message_limit(&mut self, _bytes: usize) {}

    fn send_close(&mut self, _cx: &mut Context<'_>, close: Close) {
        self.closed = Some(close);
    }

    fn poll_discard(&mut self, _cx: &mut Context<'_>) -> Poll<()> {
        Poll::Ready(())
    }

    fn poll_shutdown(&mut self, _cx: &mut Context<'_>) -> Poll<()> {
        Poll::Ready(())
    }
}

/// Relays one message with these pumps, for a moment.
async fn relay_with(mut pumps: (Pump, Pump)) -> (Option<Breach>, Report, [Scripted; 2]) {
    let (mut first, mut second) = (Scripted::default(), Scripted::default());
    first.sends.push_back(Chunk::text("four".to_owned()));
    let (meter, mut finished_first) = (Meter::default(), None);
    let (stop, patience) = (sleep(Duration::from_millis(50)), Duration::from_secs(1));
    let stop = async {
        stop.await;
        Close::Draining
    };
    let noted = (&meter, &mut finished_first);
    let cause = pump_both(&mut first, &mut second, &mut pumps, noted, stop, patience).await;
    let (forth, back) = pumps;
    let ended = Ended { cause, finished_first, forth, back };
    let breach = ended.breach();
    let report = finish(&mut first, &mut second, ended, patience).await;
    (breach, report, [first, second])
}

#[tokio::test]
async fn a_direction_that_does_not_add_up_ends_its_tunnel_as_a_fault() {
    let lost = Pump::with_accepted(7);
    let (breach, report, legs) = relay_with((lost, Pump::default())).await;
    let breach = breach.expect("a breach").to_string();
    assert_eq!(breach, "11 bytes accepted, 4 delivered, 0 held");
    assert_eq!((report.reason, report.ended_by), (Close::Fault, None));
    assert!(legs.iter().all(|leg| leg.closed == Some(Close::Fault)));
}

#[tokio::test]
async fn a_direction_that_adds_up_is_no_breach() {
    let (breach, report, [_, second]) = relay_with((Pump::default(), Pump::default())).await;
    assert_eq!((breach, report.reason), (None, Close::Draining));
    assert_eq!((second.taken.as_slice(), report.forth.bytes), (&b"four"[..], 4));
}

/// The key of a tunnel is released between `flow` and `finish`.
#[tokio::test]
async fn the_last_end_is_sent_after_the_key_of_the_tunnel_is_free() {
    let (mut first, mut second) = (Scripted::default(), Scripted::default());
    (first.sends_end, second.sends_end) = (true, true);
    second.sends.push_back(Chunk::text("answer".to_owned()));
    let (meter, patience) = (Meter::default(), Duration::from_secs(1));
    let flowing = flow(&mut first, &mut second, &meter, std::future::pending(), patience);
    let ended = timeout(patience, flowing).await.expect("it ends with its second direction");
    assert!(second.received_end, "the first end goes through while data flows the other way");
    assert_eq!((first.received_end, first.closed), (false, None));
    let report = finish(&mut first, &mut second, ended, patience).await;
    assert_eq!(first.closed, Some(Close::OtherLeft));
    assert_eq!(first.taken, b"answer");
    assert_eq!((report.reason, report.ended_by), (Close::OtherLeft, Some(Side::First)));
}
