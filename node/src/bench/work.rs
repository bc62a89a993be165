//! `work`: a fixed amount of work in fixed steps, so that its cost for the node does not depend on the
//! speed of the generator. A step is a burst of messages, and the next one begins when the last
//! message has arrived; set-ups follow one another.

use std::process::ExitCode;

use clap::Args;
use serde_json::json;

use crate::load::Shape;
use crate::report::{merged, print};
use crate::setup::close;
use crate::target::{LARGE, Target, TargetOptions};
use crate::wire::{Check, Outgoing};

#[derive(Debug, Args)]
pub(crate) struct Options {
    #[command(flatten)]
    shape: Shape,
    /// Tunnels to set up and close
    #[arg(long, default_value_t = 0)]
    setups: u32,
    /// Bursts from the first end to the second, each with one message back, on one more tunnel
    #[arg(long, default_value_t = 0)]
    bursts: u64,
    /// Messages in a burst
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..))]
    burst: u16,
    /// The size of a message in bytes, of which 8 are its number
    #[arg(long, default_value_t = 16 * 1024, value_parser = clap::value_parser!(u32).range(8..))]
    size: u32,
    #[command(flatten)]
    target: TargetOptions,
}

pub(crate) async fn run(options: &Options) -> anyhow::Result<ExitCode> {
    let target = Target::new(&options.target, LARGE).await?;
    for _ in 0..options.setups {
        close(target.open().await?).await?;
    }
    let message = options.shape.message(&target, options.size);
    if options.bursts > 0 {
        let mut tunnel = target.open().await?;
        let [one, other] = &mut tunnel.ends;
        let mut there = Outgoing::new(&message, usize::from(options.burst));
        let mut back = Outgoing::new(&message, 1);
        let [mut at_one, mut at_other] = [Check::new(&message), Check::new(&message)];
        for number in 1..=options.bursts {
            let count = number * u64::from(options.burst);
            tokio::try_join!(one.send(&mut there), other.receive(&mut at_other, count))?;
            other.send(&mut back).await?;
            one.receive(&mut at_one, number).await?;
        }
        close(tunnel).await?;
    }
    let result = json!({
        "case": "work",
        "setups": options.setups,
        "bursts": options.bursts,
        "burst": options.burst,
    });
    print(&merged([result, message.fields()]), "done")?;
    Ok(ExitCode::SUCCESS)
}
