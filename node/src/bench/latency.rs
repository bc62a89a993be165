//! `latency`: sends a message through a tunnel and back, again and again.

use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use serde_json::json;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::load::Shape;
use crate::report::{Times, merged, per, print};
use crate::target::{SMALL, Target, TargetOptions, Tunnel, allow_connections};
use crate::usage::Meter;
use crate::wire::{Check, Message, Outgoing};

#[derive(Debug, Args)]
pub(crate) struct Options {
    #[command(flatten)]
    shape: Shape,
    /// Tunnels in which a message is under way
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    tunnels: u32,
    /// The size of a message in bytes, of which 8 are its number
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u32).range(8..))]
    size: u32,
    /// Duration of the measurement
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
    /// Duration of round trips before that, to warm up
    #[arg(long, value_name = "SECONDS", default_value_t = 0.5)]
    warm_up: f64,
    /// Keep this many more tunnels idle during the measurement
    #[arg(long, value_name = "TUNNELS", default_value_t = 0)]
    beside: u32,
    #[command(flatten)]
    target: TargetOptions,
}

pub(crate) async fn run(options: &Options) -> anyhow::Result<ExitCode> {
    allow_connections(options.tunnels + options.beside)?;
    let target = Target::new(&options.target, SMALL.max(2 * options.size as usize)).await?;
    let _idle = target.idle(options.beside).await?;
    let message = options.shape.message(&target, options.size);
    let tunnels = target.open_many(options.tunnels).await?;
    let games: Vec<_> = tunnels.into_iter().map(|tunnel| Game::new(tunnel, &message)).collect();
    let (games, _) = play(games, options.warm_up).await?;

    let meter = Meter::start(target.processes())?;
    let (_games, times) = play(games, options.seconds).await?;
    let used = meter.read()?;

    let cost = per(used.cpu_seconds() * 1e6, times.count());
    let cost = cost.filter(|_| !target.processes().is_none());
    let result = json!({
        "case": "latency",
        "tunnels": options.tunnels,
        "beside": options.beside,
        "round_trips": times.count(),
        "cpu_us_per_round_trip": cost,
    });
    let summary = format!(
        "{} round trips: p50 {:.3} ms, p99 {:.3} ms, {} CPU-µs each",
        times.count(),
        times.quantile(0.5),
        times.quantile(0.99),
        cost.map_or("unknown".into(), |cost| format!("{cost:.1}")),
    );
    print(&merged([result, message.fields(), times.fields(), used.fields()]), &summary)?;
    Ok(ExitCode::SUCCESS)
}

/// Each in a task of its own, which runs where its sockets are watched: handing messages from one
/// thread to another would be part of the time.
async fn play(games: Vec<Game>, seconds: f64) -> anyhow::Result<(Vec<Game>, Times)> {
    let end = Instant::now() + Duration::from_secs_f64(seconds);
    let mut playing = JoinSet::new();
    for mut game in games {
        playing.spawn(async move {
            let times = game.play(end).await?;
            anyhow::Ok((game, times))
        });
    }
    let (mut games, mut all) = (Vec::new(), Times::new()?);
    while let Some(played) = playing.join_next().await {
        let (game, times) = played??;
        games.push(game);
        all.add(&times)?;
    }
    Ok((games, all))
}

/// A tunnel, and the next message on it.
struct Game {
    tunnel: Tunnel,
    outgoing: [Outgoing; 2],
    checks: [Check; 2],
}

impl Game {
    fn new(tunnel: Tunnel, message: &Message) -> Self {
        let outgoing = [(); 2].map(|()| Outgoing::new(message, 1));
        Self { tunnel, outgoing, checks: [(); 2].map(|()| Check::new(message)) }
    }

    async fn play(&mut self, end: Instant) -> anyhow::Result<Times> {
        let mut times = Times::new()?;
        let ([one, other], [there, back]) = (&mut self.tunnel.ends, &mut self.outgoing);
        let [at_one, at_other] = &mut self.checks;
        while Instant::now() < end {
            let (began, number) = (Instant::now(), there.sent() + 1);
            one.send(there).await?;
            other.receive(at_other, number).await?;
            other.send(back).await?;
            one.receive(at_one, number).await?;
            times.record(began.elapsed());
        }
        Ok(times)
    }
}
