//! The server's end of a WebSocket at one end of a pipe, bare frames at the other.

use std::future::poll_fn;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

use super::*;
use crate::transport::Patience;
use crate::transport::wire::{Plain, STAGE};

fn leg(io: DuplexStream) -> WebSocketLeg<Plain<DuplexStream>> {
    let patience =
        Patience { ping_interval: Duration::from_mins(1), stalled: Duration::from_mins(1) };
    let keepalive = Keepalive::new(patience, Instant::now());
    WebSocketLeg::new(Plain::new(io), BytesMut::new(), keepalive)
}

/// A frame of a client with a mask of zeros.
fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let length = u8::try_from(payload.len()).expect("a short one");
    [&[first, 0x80 + length, 0, 0, 0, 0], payload].concat()
}

#[tokio::test]
async fn pongs_do_not_pile_up_for_a_client_that_takes_none() {
    let (here, mut there) = duplex(64 * 1024);
    let mut leg = leg(here);
    let pings = frame(0x89, &[7; 125]).repeat(400);
    let pinging = async {
        for _ in 0..20 {
            there.write_all(&pings).await.expect("it is read");
        }
    };
    tokio::select! {
        () = pinging => {}
        received = poll_fn(|cx| leg.poll_recv(cx)) => panic!("{received:?}"),
    }
    assert!(leg.wire.staged() < STAGE + 200, "{} bytes", leg.wire.staged());
    let mut pong = [0; 127];
    there.read_exact(&mut pong).await.expect("a pong");
    assert_eq!(pong[..3], [0x8a, 125, 7]);
}

/// The next frame that the leg has sent: the first byte, and the payload, which is short.
async fn sent(there: &mut DuplexStream) -> (u8, Vec<u8>) {
    let [first, length] =
        [there.read_u8().await, there.read_u8().await].map(|it| it.expect("a frame"));
    let mut payload = vec![0; length.into()];
    there.read_exact(&mut payload).await.expect("a payload");
    (first, payload)
}

/// Does something that needs a task, and does not wait.
async fn now(mut act: impl FnMut(&mut Context<'_>)) {
    poll_fn(|cx| {
        act(cx);
        Poll::Ready(())
    })
    .await;
}

async fn send(leg: &mut WebSocketLeg<Plain<DuplexStream>>, chunk: Chunk) {
    poll_fn(|cx| Poll::Ready(leg.send(cx, chunk.clone()))).await.expect("taken");
    poll_fn(|cx| leg.poll_flush(cx)).await.expect("sent");
}

/// All that the leg has sent, as far as it is there.
async fn frames(there: &mut DuplexStream) -> Vec<(u8, usize)> {
    let mut frames = Vec::new();
    while let Ok(first) = tokio::time::timeout(Duration::from_millis(50), there.read_u8()).await {
        let length = match there.read_u8().await.expect("a length") {
            126 => there.read_u16().await.expect("a length").into(),
            127 => there.read_u64().await.expect("a length"),
            length => length.into(),
        };
        let length = usize::try_from(length).expect("small");
        there.read_exact(&mut vec![0; length]).await.expect("a payload");
        frames.push((first.expect("a frame"), length));
    }
    frames
}

#[tokio::test]
async fn a_pong_goes_between_two_pieces_of_a_message_for_a_slow_client() {
    let (here, mut there) = duplex(8 * 1024);
    let mut leg = leg(here);
    let mut unread = 10 + 64 * 1024;
    now(|cx| leg.send(cx, Chunk::binary(vec![1; 64 * 1024])).expect("taken")).await;
    let reading_slowly = async {
        while unread > 0 {
            tokio::time::sleep(Duration::from_millis(60)).await;
            unread -= there.read(&mut [0; 8 * 1024]).await.expect("data");
        }
    };
    let (flushed, ()) = tokio::join!(poll_fn(|cx| leg.poll_flush(cx)), reading_slowly);
    flushed.expect("sent");

    now(|cx| leg.send(cx, Chunk::binary(vec![2; 64 * 1024])).expect("taken")).await;
    there.write_all(&frame(0x89, b"?")).await.expect("it is read");
    now(|cx| assert!(leg.poll_recv(cx).is_pending())).await;
    now(|cx| assert!(leg.poll_ready(cx).is_pending(), "more data would be in front of it")).await;
    let flushing = poll_fn(|cx| leg.poll_flush(cx));
    let (flushed, frames) = tokio::join!(flushing, frames(&mut there));
    flushed.expect("sent");
    let piece = 16 * 1024;
    let pieces = [(0x02, piece), (0x8a, 1), (0x00, piece), (0x00, piece), (0x80, piece)];
    assert_eq!(frames, pieces);
}

#[tokio::test]
async fn a_pong_goes_out_though_there_is_no_other_data() {
    let (here, mut there) = duplex(100);
    let mut leg = leg(here);
    now(|cx| leg.send(cx, Chunk::binary(vec![1; 98])).expect("taken")).await;
    poll_fn(|cx| leg.poll_flush(cx)).await.expect("sent");
    there.write_all(&frame(0x89, b"?")).await.expect("it is read");
    now(|cx| assert!(leg.poll_recv(cx).is_pending())).await;
    let health = poll_fn(|cx| leg.poll_health(cx));
    tokio::select! {
        end = health => panic!("{end:?}"),
        seen = frames(&mut there) => assert_eq!(seen, [(0x82, 98), (0x8a, 1)]),
    }
}

#[tokio::test]
async fn a_stream_becomes_text_and_other_bytes_binary() {
    let (here, mut there) = duplex(64 * 1024);
    let mut leg = leg(here);
    for (piece, frame) in [(&b"a\xc3"[..], (0x81, &b"a"[..])), (b"\xbcb", (0x81, "üb".as_bytes()))]
    {
        send(&mut leg, Chunk::stream(piece)).await;
        assert_eq!(sent(&mut there).await, (frame.0, frame.1.to_vec()));
    }
    send(&mut leg, Chunk::stream(&b"\xff\x00"[..])).await;
    assert_eq!(sent(&mut there).await, (0x82, vec![0xff, 0]));

    // The rest of a code point does not come: not in time, not before something else, never.
    send(&mut leg, Chunk::stream(&b"\xe2\x82"[..])).await;
    tokio::select! {
        frame = sent(&mut there) => assert_eq!(frame, (0x82, vec![0xe2, 0x82])),
        end = poll_fn(|cx| leg.poll_health(cx)) => panic!("{end:?}"),
    }
    send(&mut leg, Chunk::stream(&b"\xe2"[..])).await;
    send(&mut leg, Chunk::text("x")).await;
    assert_eq!(sent(&mut there).await, (0x82, vec![0xe2]));
    assert_eq!(sent(&mut there).await, (0x81, b"x".to_vec()));
    send(&mut leg, Chunk::stream(&b"\xe2"[..])).await;
    now(|cx| leg.send_close(cx, Close::OtherLeft)).await;
    assert_eq!(sent(&mut there).await, (0x82, vec![0xe2]));
    assert_eq!(sent(&mut there).await.0, 0x88);
}

#[tokio::test]
async fn a_probe_ends_a_client_that_is_silent() {
    let (here, mut there) = duplex(64 * 1024);
    let mut leg = leg(here);
    let within = Duration::from_millis(50);
    poll_fn(|cx| {
        assert!(leg.poll_recv(cx).is_pending());
        leg.probe(cx, within);
        Poll::Ready(())
    })
    .await;
    assert_eq!(sent(&mut there).await, (0x89, Vec::new()));
    there.write_all(&frame(0x8a, b"")).await.expect("it is read");
    let no_data = futures_util::poll!(poll_fn(|cx| leg.poll_recv(cx)));
    assert!(no_data.is_pending());
    now(|cx| leg.probe(cx, within)).await;
    let end = poll_fn(|cx| {
        let health = leg.poll_health(cx);
        assert!(leg.poll_recv(cx).is_pending());
        health
    });
    assert!(matches!(end.await, End::Fault(Close::Unresponsive)));
}
