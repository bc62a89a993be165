//! A leg at one end of a pipe, bare bytes at the other.

use std::future::poll_fn;

use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

use super::*;
use crate::protocol::Kind;
use crate::transport::wire::Plain;

fn leg(io: DuplexStream, stalled: Duration) -> StreamLeg<Plain<DuplexStream>> {
    StreamLeg::new(Plain::new(io), Patience { ping_interval: Duration::from_mins(1), stalled })
}

async fn recv(leg: &mut impl Leg) -> Result<Chunk, End> {
    poll_fn(|cx| leg.poll_recv(cx)).await
}

#[tokio::test]
async fn one_direction_ends_while_the_other_goes_on() {
    let (here, mut there) = duplex(1024);
    let mut leg = leg(here, Duration::from_mins(1));
    there.write_all(b"question").await.expect("sent");
    there.shutdown().await.expect("its end");
    assert_eq!(recv(&mut leg).await.expect("a chunk"), Chunk::stream("question"));
    assert!(matches!(recv(&mut leg).await, Err(End::Finished)));

    poll_fn(|cx| Poll::Ready(leg.send(cx, Chunk::text("answer")))).await.expect("taken");
    assert!(poll_fn(|cx| Poll::Ready(leg.send_end(cx))).await);
    poll_fn(|cx| leg.poll_flush(cx)).await.expect("sent");
    let mut answer = String::new();
    there.read_to_string(&mut answer).await.expect("an end");
    assert_eq!(answer, "answer");
}

#[tokio::test]
async fn a_stream_has_no_boundaries() {
    let (here, mut there) = duplex(64);
    let mut leg = leg(here, Duration::from_mins(1));
    let sent: Vec<u8> = (0..=255).collect::<Vec<u8>>().repeat(40);
    let sending = async {
        there.write_all(&sent).await.expect("sent");
        there.shutdown().await.expect("its end");
    };
    let receiving = async {
        let mut received = Vec::new();
        while let Ok(chunk) = recv(&mut leg).await {
            assert_eq!((chunk.kind, chunk.last), (Kind::Stream, false));
            received.extend_from_slice(&chunk.data);
        }
        received
    };
    let ((), received) = tokio::join!(sending, receiving);
    assert!(received == sent);
}

#[tokio::test]
async fn whoever_takes_nothing_is_given_up_in_the_end() {
    let (here, _there) = duplex(64);
    let mut leg = leg(here, Duration::from_millis(50));
    let nothing_yet = futures_util::poll!(poll_fn(|cx| leg.poll_health(cx)));
    assert!(nothing_yet.is_pending());
    poll_fn(|cx| Poll::Ready(leg.send(cx, Chunk::binary(vec![0; 1000])))).await.expect("taken");
    // As in a tunnel: the health is polled again only when the task is woken.
    let end = poll_fn(|cx| {
        if let Poll::Ready(end) = leg.poll_health(cx) {
            return Poll::Ready(end);
        }
        assert!(leg.poll_flush(cx).is_pending());
        Poll::Pending
    });
    assert!(matches!(end.await, End::Fault(Close::Stalled)));
}

#[tokio::test]
async fn an_idle_leg_keeps_no_block() {
    let (here, mut there) = duplex(1024);
    let mut leg = leg(here, Duration::from_mins(1));
    there.write_all(b"something").await.expect("sent");
    drop(recv(&mut leg).await.expect("a chunk"));
    let nothing = futures_util::poll!(poll_fn(|cx| leg.poll_recv(cx)));
    assert!(nothing.is_pending());
    assert_eq!(leg.inbox.capacity(), 0);
    assert!(leg.timer.is_none());
}
