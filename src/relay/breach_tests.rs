//! A direction whose counts do not add up: the tunnel ends, and both endpoints are told of a fault.

use std::collections::VecDeque;

use super::*;
use crate::protocol::Chunk;

/// A leg that sends what it has, and then nothing more; and takes everything.
#[derive(Default)]
struct Scripted {
    sends: VecDeque<Chunk>,
    taken: Vec<u8>,
    closed: Option<Close>,
}

impl Leg for Scripted {
    fn poll_recv(&mut self, _cx: &mut Context<'_>) -> Poll<Result<Chunk, End>> {
        self.sends.pop_front().map_or(Poll::Pending, |chunk| Poll::Ready(Ok(chunk)))
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
