//! `--pingpong`: each end sends numbered pings, answers those of the other, and measures.
//!
//! A message is binary: one byte for its kind, the number (big-endian, 8 bytes), and padding. One
//! ping is under way at a time. An end that has all its answers says so and goes on answering
//! until the other has said the same.

use std::io::Write;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use bytes::{BufMut, Bytes, BytesMut};
use futures_util::{SinkExt, StreamExt};
use hdrhistogram::Histogram;
use nymea_remoteproxy::client::{Message, Tunnel, TunnelError};
use tokio::time::{Instant, sleep_until};

use crate::options::Options;

const PING: u8 = b'P';
const ANSWER: u8 = b'A';
const DONE: u8 = b'D';
/// How long an answer, or at the end the other endpoint, may take.
const PATIENCE: Duration = Duration::from_mins(1);

/// Runs until both ends are done, and prints the statistics.
pub(crate) async fn run(mut tunnel: Tunnel, options: &Options) -> anyhow::Result<()> {
    let mut round_trips = Histogram::<u64>::new(3)?;
    let result = play(&mut tunnel, options, &mut round_trips).await;
    writeln!(std::io::stdout(), "{}", report(&round_trips)).context("cannot write the result")?;
    result?;
    match tunnel.close().await {
        // Both are done and close at the same time.
        Ok(()) | Err(TunnelError::OtherLeft) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

async fn play(
    tunnel: &mut Tunnel,
    options: &Options,
    round_trips: &mut Histogram<u64>,
) -> anyhow::Result<()> {
    let (mut number, mut under_way, mut other_done) = (0, false, false);
    let mut sent_at = Instant::now();
    let (mut next, mut heard_at) = (sent_at, sent_at);
    while number < options.count || under_way || !other_done {
        let may_send = !under_way && number < options.count;
        let message = tokio::select! {
            () = sleep_until(next), if may_send => None,
            () = sleep_until(heard_at + PATIENCE), if !may_send => {
                bail!("the other endpoint does not answer")
            }
            message = tunnel.next() => Some(message),
        };
        let Some(message) = message else {
            number += 1;
            under_way = true;
            sent_at = Instant::now();
            heard_at = sent_at;
            next = sent_at + options.interval;
            tunnel.send(message_of(PING, number, options.size)).await?;
            continue;
        };
        let data = message.context("the other endpoint left too early")??.into_data();
        heard_at = Instant::now();
        match parse(&data)? {
            (PING, _) => tunnel.send(answer_to(&data)).await?,
            (ANSWER, answered) => {
                ensure!(under_way && answered == number, "an answer to no ping of ours");
                under_way = false;
                round_trips.record(u64::try_from(sent_at.elapsed().as_nanos())?)?;
                if number == options.count {
                    tunnel.send(message_of(DONE, 0, 0)).await?;
                }
            }
            _ => other_done = true,
        }
    }
    Ok(())
}

fn message_of(kind: u8, number: u64, size: u32) -> Message {
    let mut data = BytesMut::new();
    data.put_u8(kind);
    data.put_u64(number);
    data.resize(data.len().max(size as usize), 0);
    Message::Binary(data.freeze())
}

fn answer_to(ping: &Bytes) -> Message {
    let mut data = BytesMut::from(&ping[..]);
    data[0] = ANSWER;
    Message::Binary(data.freeze())
}

fn parse(data: &[u8]) -> anyhow::Result<(u8, u64)> {
    match data.split_first_chunk::<9>() {
        Some(([kind @ (PING | ANSWER | DONE), number @ ..], _)) => {
            Ok((*kind, u64::from_be_bytes(*number)))
        }
        _ => bail!("the other endpoint does not run --pingpong"),
    }
}

fn report(round_trips: &Histogram<u64>) -> String {
    let ms = |nanos: u64| Duration::from_nanos(nanos).as_secs_f64() * 1000.0;
    format!(
        "{} round trips: min {:.3} ms, p50 {:.3} ms, p99 {:.3} ms, max {:.3} ms",
        round_trips.len(),
        ms(round_trips.min()),
        ms(round_trips.value_at_quantile(0.5)),
        ms(round_trips.value_at_quantile(0.99)),
        ms(round_trips.max()),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ping_and_its_answer_differ_in_their_kind_only() {
        let ping = message_of(PING, 7, 100).into_data();
        assert_eq!((ping.len(), parse(&ping).expect("valid")), (100, (PING, 7)));
        let answer = answer_to(&ping).into_data();
        assert_eq!((answer.len(), parse(&answer).expect("valid")), (100, (ANSWER, 7)));
        assert!(parse(b"hello, is anybody there?").is_err());
        assert!(parse(b"P").is_err());
    }
}
