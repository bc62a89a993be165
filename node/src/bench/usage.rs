//! Resource usage of processes and this machine, as counted by Linux.

use std::fs;
use std::time::Instant;

use anyhow::Context;
use procfs::process::Process;
use procfs::{CurrentSI, KernelStats};
use serde_json::{Value, json};

use crate::report::rounded;

/// The processes under test. All figures are sums over them.
#[derive(Clone, Debug)]
pub(crate) struct Processes(Vec<u32>);

impl Processes {
    pub(crate) fn new(ids: Vec<u32>) -> Self {
        Self(ids)
    }

    pub(crate) fn is_none(&self) -> bool {
        self.0.is_empty()
    }

    /// Resident memory in KiB. The kernel's quick count can be off by some hundred KiB, so this is
    /// the slow one.
    pub(crate) fn resident_kib(&self) -> anyhow::Result<u64> {
        Ok(self.resident_kib_of_each()?.into_iter().sum())
    }

    pub(crate) fn resident_kib_of_each(&self) -> anyhow::Result<Vec<u64>> {
        self.0.iter().map(|id| field(*id, "smaps_rollup", "Rss:")).collect()
    }

    /// The most since [`Processes::forget_peak`].
    pub(crate) fn peak_kib(&self) -> anyhow::Result<u64> {
        self.0.iter().map(|id| field(*id, "status", "VmHWM:")).sum()
    }

    /// From now on, the peak is that of what follows.
    pub(crate) fn forget_peak(&self) -> anyhow::Result<()> {
        for id in &self.0 {
            let file = format!("/proc/{id}/clear_refs");
            fs::write(&file, "5").with_context(|| format!("cannot write {file}"))?;
        }
        Ok(())
    }

    fn cpu_seconds(&self) -> anyhow::Result<Vec<f64>> {
        self.0.iter().map(|id| cpu_seconds(*id)).collect()
    }
}

/// What a process has used of the processors, in seconds, in steps of 10 ms.
pub(crate) fn cpu_seconds(pid: u32) -> anyhow::Result<f64> {
    let stat = Process::new(i32::try_from(pid)?)?.stat()?;
    #[expect(clippy::cast_precision_loss, reason = "far below 2^52 ticks")]
    let seconds = (stat.utime + stat.stime) as f64 / procfs::ticks_per_second() as f64;
    Ok(seconds)
}

fn field(pid: u32, file: &str, name: &str) -> anyhow::Result<u64> {
    let file = format!("/proc/{pid}/{file}");
    let text = fs::read_to_string(&file).with_context(|| format!("cannot read {file}"))?;
    kib(&text, name).with_context(|| format!("no {name} in {file}"))
}

fn kib(text: &str, name: &str) -> Option<u64> {
    let value = text.lines().find_map(|line| line.strip_prefix(name))?;
    value.trim().strip_suffix(" kB")?.parse().ok()
}

/// Begins to count.
pub(crate) struct Meter<'a> {
    processes: &'a Processes,
    began: Instant,
    cpu: Vec<f64>,
    own: f64,
    machine: (u64, u64),
}

impl<'a> Meter<'a> {
    pub(crate) fn start(processes: &'a Processes) -> anyhow::Result<Self> {
        Ok(Self {
            processes,
            began: Instant::now(),
            cpu: processes.cpu_seconds()?,
            own: cpu_seconds(std::process::id())?,
            machine: machine()?,
        })
    }

    /// What was used since.
    pub(crate) fn read(&self) -> anyhow::Result<Used> {
        let seconds = self.began.elapsed().as_secs_f64();
        let now = self.processes.cpu_seconds()?;
        let (busy, all) = machine()?;
        #[expect(clippy::cast_precision_loss, reason = "far below 2^52 ticks")]
        let share = (busy - self.machine.0) as f64 / (all - self.machine.1).max(1) as f64;
        Ok(Used {
            seconds,
            cpu_of_each: now.iter().zip(&self.cpu).map(|(now, then)| now - then).collect(),
            own_cpu_seconds: cpu_seconds(std::process::id())? - self.own,
            machine_busy: share,
        })
    }
}

/// Ticks in which the machine was busy, and all of them.
fn machine() -> anyhow::Result<(u64, u64)> {
    let total = KernelStats::current()?.total;
    let idle = total.idle + total.iowait.unwrap_or_default();
    let others = [total.irq, total.softirq, total.steal].into_iter().flatten().sum::<u64>();
    let busy = total.user + total.nice + total.system + others;
    Ok((busy, busy + idle))
}

/// What was used in a stretch of time.
pub(crate) struct Used {
    pub(crate) seconds: f64,
    cpu_of_each: Vec<f64>,
    own_cpu_seconds: f64,
    machine_busy: f64,
}

impl Used {
    /// Of all processes under test.
    pub(crate) fn cpu_seconds(&self) -> f64 {
        self.cpu_of_each.iter().sum()
    }

    /// Fields for the result. If the machine was busy all the time, generator and server have
    /// shared it: then costs say more than speeds.
    pub(crate) fn fields(&self) -> Value {
        let each: Vec<_> = self.cpu_of_each.iter().map(|cpu| rounded(*cpu)).collect();
        json!({
            "seconds": rounded(self.seconds),
            "server_cpu_s": each,
            "generator_cpu_s": rounded(self.own_cpu_seconds),
            "machine_busy": rounded(self.machine_busy),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_is_found() {
        let text = "Name:\tx\nVmRSS:\t    1234 kB\nVmData:\t 1 kB\n";
        assert_eq!(kib(text, "VmRSS:"), Some(1234));
        assert_eq!(kib(text, "VmHWM:"), None);
    }

    #[test]
    fn this_process_uses_something() {
        let processes = Processes::new(vec![std::process::id()]);
        assert!(processes.resident_kib().expect("counted") > 100);
        assert!(processes.peak_kib().expect("counted") > 100);
        let meter = Meter::start(&processes).expect("counted");
        let used = meter.read().expect("counted");
        assert!(used.cpu_seconds() >= 0.0 && used.seconds < 60.0);
    }
}
