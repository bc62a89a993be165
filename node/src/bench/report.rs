//! Results: JSON for programs on stdout, a line for people on stderr.

use std::io::Write;
use std::time::Duration;

use hdrhistogram::Histogram;
use serde_json::{Value, json};

/// One result. `summary` says the most of it in words.
pub(crate) fn print(result: &Value, summary: &str) -> anyhow::Result<()> {
    writeln!(std::io::stderr(), "{summary}")?;
    writeln!(std::io::stdout(), "{result}")?;
    Ok(())
}

/// One object of many: later ones add their fields to the first.
pub(crate) fn merged<const N: usize>(parts: [Value; N]) -> Value {
    let objects = parts.into_iter().filter_map(|part| match part {
        Value::Object(fields) => Some(fields),
        _ => None,
    });
    Value::Object(objects.flatten().collect())
}

/// Rounds to four decimal places: more is noise.
pub(crate) fn rounded(value: f64) -> f64 {
    (value * 1e4).round() / 1e4
}

/// Of an odd number of values, the one in the middle.
pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// As a share of something that is counted; none of nothing.
pub(crate) fn per(value: f64, count: u64) -> Option<f64> {
    #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
    let share = (count > 0).then(|| value / count as f64);
    share.map(rounded)
}

pub(crate) fn close_code(code: Option<u16>) -> String {
    code.map_or_else(|| "without a close code".into(), |code| format!("close code {code}"))
}

/// In nanoseconds: a minute.
const LONGEST: u64 = 60_000_000_000;

/// Times, from a nanosecond to a minute, to three digits.
pub(crate) struct Times(Histogram<u64>);

impl Times {
    pub(crate) fn new() -> anyhow::Result<Self> {
        Ok(Self(Histogram::new_with_bounds(1, LONGEST, 3)?))
    }

    pub(crate) fn record(&mut self, time: Duration) {
        self.0.saturating_record(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
    }

    pub(crate) fn add(&mut self, other: &Self) -> anyhow::Result<()> {
        Ok(self.0.add(&other.0)?)
    }

    pub(crate) fn count(&self) -> u64 {
        self.0.len()
    }

    /// In milliseconds.
    pub(crate) fn quantile(&self, share: f64) -> f64 {
        milliseconds(self.0.value_at_quantile(share))
    }

    pub(crate) fn fields(&self) -> Value {
        json!({
            "p50_ms": self.quantile(0.5),
            "p90_ms": self.quantile(0.9),
            "p99_ms": self.quantile(0.99),
            "p999_ms": self.quantile(0.999),
            "max_ms": milliseconds(self.0.max()),
        })
    }
}

fn milliseconds(nanoseconds: u64) -> f64 {
    rounded(Duration::from_nanos(nanoseconds).as_secs_f64() * 1e3)
}
