//! Metrics as values, for those who show them themselves.

use std::collections::BTreeMap;

use prometheus::proto::{Metric, MetricFamily, MetricType};

/// One metric with its labels.
#[derive(Clone, Debug)]
pub struct Series {
    /// The name in Prometheus.
    pub name: String,
    labels: Vec<(String, String)>,
    /// The present value.
    pub value: Value,
}

/// The value of a metric.
#[derive(Clone, Debug)]
pub enum Value {
    /// A number, that only grows or not.
    Number(f64),
    /// A distribution of times.
    Histogram(Histogram),
}

/// A distribution of times.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Histogram {
    /// The upper bounds of the buckets, in seconds, and how often it took no longer.
    pub buckets: Vec<(f64, u64)>,
    /// The number of measurements.
    pub count: u64,
}

impl Series {
    /// The value of a label, if there is one of this name.
    pub fn label(&self, name: &str) -> Option<&str> {
        self.labels.iter().find(|(it, _)| it == name).map(|(_, value)| value.as_str())
    }

    /// The values of a metric that is a number, by one of its labels.
    pub fn sums(series: &[Self], name: &str, label: &str) -> BTreeMap<String, u64> {
        let mut sums = BTreeMap::new();
        for series in series.iter().filter(|series| series.name == name) {
            if let (Some(label), Value::Number(number)) = (series.label(label), &series.value) {
                *sums.entry(label.to_owned()).or_default() += whole(*number);
            }
        }
        sums
    }

    pub(super) fn all(families: &[MetricFamily]) -> Vec<Self> {
        let of = |family: &MetricFamily, metric: &Metric| Self {
            name: family.name().to_owned(),
            labels: metric
                .get_label()
                .iter()
                .map(|label| (label.name().to_owned(), label.value().to_owned()))
                .collect(),
            value: Value::of(family.get_field_type(), metric),
        };
        let metrics = families
            .iter()
            .flat_map(|family| family.get_metric().iter().map(move |metric| of(family, metric)));
        metrics.collect()
    }
}

/// A metric that counts something, as a count.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "counts are neither")]
fn whole(number: f64) -> u64 {
    number.max(0.0) as u64
}

impl Value {
    fn of(kind: MetricType, metric: &Metric) -> Self {
        match kind {
            MetricType::COUNTER => Self::Number(metric.get_counter().get_value()),
            MetricType::HISTOGRAM => {
                let histogram = metric.get_histogram();
                let buckets = histogram.get_bucket().iter();
                Self::Histogram(Histogram {
                    buckets: buckets
                        .map(|bucket| (bucket.upper_bound(), bucket.cumulative_count()))
                        .filter(|(bound, _)| bound.is_finite())
                        .collect(),
                    count: histogram.get_sample_count(),
                })
            }
            MetricType::GAUGE | MetricType::SUMMARY | MetricType::UNTYPED => {
                Self::Number(metric.get_gauge().get_value())
            }
        }
    }
}

impl Histogram {
    /// The measurements since an earlier state of this one.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let before = |bound: f64| {
            let at = earlier.buckets.iter().find(|(it, _)| it.total_cmp(&bound).is_eq());
            at.map_or(0, |(_, count)| *count)
        };
        let buckets = self.buckets.iter();
        Self {
            buckets: buckets
                .map(|&(bound, count)| (bound, count.saturating_sub(before(bound))))
                .collect(),
            count: self.count.saturating_sub(earlier.count),
        }
    }

    /// The time in seconds that a share of all (from 0 to 1) did not exceed, by linear
    /// interpolation within its bucket; `None` if nothing was measured.
    pub fn quantile(&self, share: f64) -> Option<f64> {
        if self.count == 0 {
            return None;
        }
        #[expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
        let float = |count: u64| count as f64;
        let rank = share * float(self.count);
        let (mut lower, mut below) = (0.0, 0.0);
        for &(bound, count) in &self.buckets {
            let count = float(count);
            if count >= rank && count > below {
                return Some(lower + (bound - lower) * (rank - below) / (count - below));
            }
            (lower, below) = (bound, count);
        }
        // Beyond the last bound, nothing more is known.
        Some(lower)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_interpolated() {
        let histogram = Histogram { buckets: vec![(1.0, 10), (2.0, 20), (4.0, 20)], count: 20 };
        assert_eq!(histogram.quantile(0.5), Some(1.0));
        assert_eq!(histogram.quantile(0.75), Some(1.5));
        assert_eq!(histogram.quantile(1.0), Some(2.0));
        assert_eq!(Histogram::default().quantile(0.5), None);
        let slow = Histogram { buckets: vec![(1.0, 0)], count: 3 };
        assert_eq!(slow.quantile(0.99), Some(1.0));
    }

    #[test]
    fn what_came_since_is_told_apart() {
        let earlier = Histogram { buckets: vec![(1.0, 5), (2.0, 6)], count: 7 };
        let now = Histogram { buckets: vec![(1.0, 5), (2.0, 9)], count: 11 };
        let since = Histogram { buckets: vec![(1.0, 0), (2.0, 3)], count: 4 };
        assert_eq!(now.since(&earlier), since);
    }
}
