//! A tunnel from the view of one endpoint: it sends its stream, and checks the other one's.

use std::sync::Arc;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::time::{Instant, sleep, timeout};

use crate::content::{Alphabet, Checker, Ending, Stream};
use crate::wire::{Closing, Reader, Received, Writer};
use crate::world::World;

/// How long the other end may take its data after this one has left in order, in seconds.
const LEAVING: u64 = 60;
/// What a reader takes at once, unless it is slow.
const BLOCK: usize = 64 * 1024;
/// What a slow reader takes at once.
const SLOW_BLOCK: usize = 16 * 1024;

/// How an endpoint behaves in a tunnel.
#[derive(Clone, Copy, Debug)]
pub(super) struct Manner {
    pace: Pace,
    slow_reader: bool,
    /// After what time it leaves; `None`: not by itself.
    leaves_after: Option<Duration>,
    orderly: bool,
}

/// What is sent, and how quickly.
#[derive(Clone, Copy, Debug)]
enum Pace {
    /// Some bytes, now and then.
    Trickle,
    /// Single bytes, one after the other.
    Tiny,
    /// Some KiB at a time.
    Bursts,
    /// Blocks of 64 KiB.
    Bulk,
}

impl Manner {
    pub(super) fn any(random: &mut StdRng) -> Self {
        let pace = match random.random_range(0..10) {
            0..4 => Pace::Trickle,
            4 => Pace::Tiny,
            5..8 => Pace::Bursts,
            _ => Pace::Bulk,
        };
        let leaves_after = match random.random_range(0..10) {
            0..3 => Some(random.random_range(0.0..3.0)),
            3..6 => Some(random.random_range(3.0..40.0)),
            _ => None,
        };
        Self {
            pace,
            slow_reader: random.random_bool(0.15),
            leaves_after: leaves_after.map(Duration::from_secs_f64),
            orderly: random.random_bool(0.7),
        }
    }
}

impl Pace {
    /// How much to send next, and how long to wait before.
    fn next(self, random: &mut StdRng) -> (usize, Duration) {
        let (size, millis) = match self {
            Self::Trickle => (random.random_range(1..300), random.random_range(20..300)),
            Self::Tiny => (1, random.random_range(0..20)),
            Self::Bursts => (random.random_range(1..16_000), random.random_range(50..300)),
            Self::Bulk => (65_536, random.random_range(200..600)),
        };
        (size, Duration::from_millis(millis))
    }
}

/// How a tunnel has ended for this endpoint.
pub(super) enum Finished {
    /// It has left by itself.
    Left,
    /// It was ended.
    Ended(Closing),
    /// What it received was wrong.
    Wrong(String),
}

/// One endpoint in its tunnel.
pub(super) struct Session<'a> {
    pub(super) world: &'a Arc<World>,
    pub(super) manner: Manner,
    /// What this endpoint sends.
    pub(super) own: Arc<Stream>,
    /// The sender of the stream that it must receive.
    pub(super) partner: &'a str,
    pub(super) random: StdRng,
}

impl Session<'_> {
    /// Runs until the tunnel has ended. `met` is called when the other one's stream begins.
    pub(super) async fn run(
        mut self,
        mut reader: Reader,
        mut writer: Writer,
        checker: &mut Checker,
        met: impl FnMut(&Arc<Stream>),
    ) -> Finished {
        let mut reading = StdRng::seed_from_u64(self.random.random());
        let mut writing = StdRng::seed_from_u64(self.random.random());
        let receiving = receive(&self, &mut reader, checker, met, &mut reading);
        tokio::pin!(receiving);
        let left = tokio::select! {
            finished = &mut receiving => Err(finished),
            left = send(self.world, &self.own, self.manner, &mut writer, &mut writing) => {
                Ok(left)
            }
        };
        match left {
            // The end of its own that was confirmed.
            Err(Finished::Ended(_)) if self.own.ending().is_some() => Finished::Left,
            Err(finished) => {
                let ending = match finished {
                    Finished::Ended(_) => Ending::Lost,
                    Finished::Left | Finished::Wrong(_) => Ending::Abrupt,
                };
                self.own.end(ending);
                // Of a stream, only one direction has ended yet.
                let _gone = timeout(Duration::from_secs(5), writer.finish()).await;
                finished
            }
            Ok(Ending::Orderly(_)) => {
                let patience = self.world.options.within(LEAVING);
                match timeout(patience, receiving).await {
                    Ok(Finished::Wrong(what)) => Finished::Wrong(what),
                    Ok(Finished::Ended(_) | Finished::Left) => Finished::Left,
                    Err(_) => {
                        self.world
                            .statistics
                            .count("ends that were left before they were confirmed");
                        Finished::Left
                    }
                }
            }
            Ok(Ending::Abrupt | Ending::Lost) => Finished::Left,
        }
    }
}

async fn receive(
    session: &Session<'_>,
    reader: &mut Reader,
    checker: &mut Checker,
    mut met: impl FnMut(&Arc<Stream>),
    random: &mut StdRng,
) -> Finished {
    let world = session.world;
    let mut since_pause = 0;
    loop {
        let slow = session.manner.slow_reader && !world.leaving.is_cancelled();
        if slow && since_pause >= SLOW_BLOCK {
            since_pause = 0;
            sleep(Duration::from_millis(random.random_range(10..100))).await;
        }
        match reader.read(if slow { SLOW_BLOCK } else { BLOCK }).await {
            Received::Data(bytes) => {
                // Small messages have a cost, too, or a slow reader would lag by minutes.
                since_pause += bytes.len().max(SLOW_BLOCK / 64);
                let knew = checker.stream().is_some();
                if let Err(what) = checker.push(&bytes, &world.streams, session.partner) {
                    return Finished::Wrong(what);
                }
                if let (false, Some(stream)) = (knew, checker.stream()) {
                    met(stream);
                }
            }
            Received::End(closing) => return Finished::Ended(closing),
        }
    }
}

/// Sends until it is time to leave, and leaves. Waits for the reader when the connection broke.
async fn send(
    world: &World,
    own: &Stream,
    manner: Manner,
    writer: &mut Writer,
    random: &mut StdRng,
) -> Ending {
    let until = manner.leaves_after.map(|time| Instant::now() + time);
    let mut sent = writer.write(own.header(), own.alphabet).await;
    while sent.is_ok() {
        let (size, pause) = manner.pace.next(random);
        tokio::select! {
            () = sleep(pause) => {}
            () = world.leaving.cancelled() => {}
        }
        let leaves = world.leaving.is_cancelled();
        if leaves || until.is_some_and(|until| Instant::now() >= until) {
            let ending = if leaves || manner.orderly {
                Ending::Orderly(own.offered())
            } else {
                Ending::Abrupt
            };
            own.end(ending);
            if ending != Ending::Abrupt {
                let _shows_at_the_reader = writer.finish().await;
            }
            return ending;
        }
        let alphabet = match own.alphabet {
            Alphabet::Text if random.random_bool(0.7) => Alphabet::Text,
            Alphabet::Text | Alphabet::Binary => Alphabet::Binary,
        };
        sent = writer.write(own.next(size), alphabet).await;
    }
    std::future::pending().await
}
