//! What an app and its gateway send each other: a question and an answer of known lengths, at the
//! same time, and then one of them leaves.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rand::RngExt;
use rand::rngs::StdRng;
use tokio::time::{sleep, timeout};

use crate::content::{Alphabet, Answer, Checker, Ending, HEADER, Stream};
use crate::wire::{Closing, Reader, Received, Writer};
use crate::world::World;

/// How long the last step may take, in seconds.
const END: u64 = 30;
/// How long an app may be silent at first, in seconds.
const BEGIN: u64 = 30;

/// How much is sent, and who ends it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plan {
    question: u64,
    answer: u64,
    piece: usize,
    pause: Duration,
    end: End,
    alphabet: Alphabet,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    App,
    /// The app drops its connection in the middle.
    AppAbruptly,
    Gateway,
}

impl Plan {
    pub(super) fn any(random: &mut StdRng) -> Self {
        let end = match random.random_range(0..10) {
            0..5 => End::App,
            5..7 => End::AppAbruptly,
            _ => End::Gateway,
        };
        let alphabet = if random.random_bool(0.5) { Alphabet::Text } else { Alphabet::Binary };
        Self {
            question: random.random_range(1..100_000),
            answer: random.random_range(1..100_000),
            piece: random.random_range(1000..16_000),
            pause: Duration::from_millis(random.random_range(20..600)),
            end,
            alphabet,
        }
    }
}

/// How an exchange has ended.
pub(super) enum Outcome {
    /// All was sent and received.
    Done,
    /// This side has left before.
    Left,
    /// The connection has ended before.
    Ended(Closing),
    /// What was received was wrong.
    Wrong(String),
}

/// Who takes part.
pub(super) struct Question {
    pub(super) name: String,
    pub(super) node: usize,
    pub(super) gateway: String,
    pub(super) gateway_node: usize,
    pub(super) tries: Arc<AtomicU64>,
}

/// The side of the app. `met` is called when the answer begins.
pub(super) async fn question(
    world: &Arc<World>,
    who: &Question,
    plan: Plan,
    (mut reader, mut writer): (Reader, Writer),
    checker: &mut Checker,
    mut met: impl FnMut(&Arc<Stream>),
) -> Outcome {
    let own = world.streams.create(&who.name, who.node, plan.alphabet);
    let answer = world.streams.create(&who.gateway, who.gateway_node, plan.alphabet);
    let total = HEADER as u64 + plan.answer;
    own.wants(Answer {
        stream: answer,
        question_bytes: HEADER as u64 + plan.question,
        length: total,
        closed_by_gateway: plan.end == End::Gateway,
        number: who.tries.load(Ordering::Acquire),
        tries: Arc::clone(&who.tries),
    });
    let length = match plan.end {
        End::AppAbruptly => plan.question / 2,
        End::App | End::Gateway => plan.question,
    };
    let both = async {
        let receiving = async {
            let sender = &who.gateway;
            match receive(world, &mut reader, checker, sender, Some(total), &mut met).await {
                Outcome::Done => Ok(()),
                other => Err(other),
            }
        };
        let sending = async {
            send(&mut writer, &own, length, plan.piece, plan.pause).await;
            if plan.end == End::AppAbruptly { Err(Outcome::Left) } else { Ok(()) }
        };
        tokio::try_join!(receiving, sending)
    };
    let ended = tokio::select! {
        ended = both => ended.err(),
        () = world.leaving.cancelled() => None,
    };
    match ended {
        Some(outcome) => {
            own.end(if matches!(outcome, Outcome::Ended(_)) {
                Ending::Lost
            } else {
                Ending::Abrupt
            });
            return outcome;
        }
        None if plan.end == End::Gateway && !world.leaving.is_cancelled() => {}
        None if world.leaving.is_cancelled() => {
            // In the middle of a piece, perhaps.
            own.end(Ending::Abrupt);
            let _gone = timeout(Duration::from_secs(5), writer.finish()).await;
            return Outcome::Left;
        }
        None => {
            own.end(Ending::Orderly(own.offered()));
            let _shows_at_the_reader = writer.finish().await;
        }
    }
    // Nothing but the end may be received.
    let rest = receive(world, &mut reader, checker, &who.gateway, None, &mut met);
    let patience = world.options.within(END);
    tokio::select! {
        rest = timeout(patience, rest) => match rest {
            Ok(Outcome::Wrong(what)) => Outcome::Wrong(what),
            Ok(Outcome::Done | Outcome::Left | Outcome::Ended(_)) => Outcome::Done,
            Err(_) => {
                world.statistics.count("apps: the end of an exchange did not arrive");
                Outcome::Done
            }
        },
        () = world.leaving.cancelled() => Outcome::Done,
    }
}

/// The side of the gateway.
pub(super) async fn answer(
    world: &Arc<World>,
    app: &str,
    (mut reader, mut writer): (Reader, Writer),
) -> (Outcome, Checker) {
    let mut checker = Checker::default();
    let begun = begin(&mut reader, &mut checker, world, app);
    let begun = timeout(world.options.within(BEGIN), begun).await;
    let answer = match begun {
        Ok(Ok(answer)) => answer,
        Ok(Err(outcome)) => return (outcome, checker),
        Err(_) => return (Outcome::Left, checker),
    };
    let own = Arc::clone(&answer.stream);
    let length = answer.length - HEADER as u64;
    let total = Some(answer.question_bytes);
    let both = async {
        let mut nothing = |_: &Arc<Stream>| {};
        let receiving = async {
            match receive(world, &mut reader, &mut checker, app, total, &mut nothing).await {
                Outcome::Done => Ok(()),
                other => Err(other),
            }
        };
        let sending = async {
            send(&mut writer, &own, length, 4000, Duration::from_millis(30)).await;
            Ok(())
        };
        tokio::try_join!(receiving, sending)
    };
    if let Err(outcome) = both.await {
        return (outcome, checker);
    }
    if answer.closed_by_gateway {
        own.end(Ending::Orderly(own.offered()));
        let _shows_at_the_reader = writer.finish().await;
    }
    let mut nothing = |_: &Arc<Stream>| {};
    let rest = receive(world, &mut reader, &mut checker, app, None, &mut nothing);
    let outcome = match timeout(world.options.within(2 * END), rest).await {
        Ok(outcome) => outcome,
        Err(_) => Outcome::Left,
    };
    (outcome, checker)
}

/// Reads until it is known what to answer.
async fn begin(
    reader: &mut Reader,
    checker: &mut Checker,
    world: &World,
    app: &str,
) -> Result<Answer, Outcome> {
    loop {
        match reader.read(4096).await {
            Received::Data(bytes) => {
                checker.push(&bytes, &world.streams, app).map_err(Outcome::Wrong)?;
                if let Some(stream) = checker.stream() {
                    let answer = stream.answer().cloned();
                    return answer.ok_or_else(|| Outcome::Wrong("nothing to answer".into()));
                }
            }
            Received::End(closing) => return Err(Outcome::Ended(closing)),
        }
    }
}

/// Sends the header and so much more. Where the connection broke, the reader notices.
async fn send(writer: &mut Writer, own: &Stream, length: u64, piece: usize, pause: Duration) {
    let mut sent = writer.write(own.header(), own.alphabet).await;
    let mut left = usize::try_from(length).unwrap_or(usize::MAX);
    while left > 0 && sent.is_ok() {
        sleep(pause).await;
        let size = left.min(piece);
        left -= size;
        sent = writer.write(own.next(size), own.alphabet).await;
    }
}

/// Receives until there is so much in all, or until the end.
async fn receive(
    world: &World,
    reader: &mut Reader,
    checker: &mut Checker,
    sender: &str,
    total: Option<u64>,
    met: &mut impl FnMut(&Arc<Stream>),
) -> Outcome {
    loop {
        if total.is_some_and(|total| checker.received() >= total) {
            return Outcome::Done;
        }
        match reader.read(16 * 1024).await {
            Received::Data(bytes) => {
                let knew = checker.stream().is_some();
                if let Err(what) = checker.push(&bytes, &world.streams, sender) {
                    return Outcome::Wrong(what);
                }
                if let (false, Some(stream)) = (knew, checker.stream()) {
                    met(stream);
                }
            }
            Received::End(closing) => return Outcome::Ended(closing),
        }
    }
}
