//! Violations that the counts themselves notice: nothing panics, a gauge stays as it is, and the
//! metric and the log speak of it.

use std::sync::Arc;

use opentelemetry_sdk::Resource;

use super::super::metrics::Stage;
use super::super::recurring::logged;
use super::super::{Series, Value};
use super::*;

fn metrics() -> Arc<Metrics> {
    Metrics::new(true, None, &Resource::builder_empty().build())
}

fn violations(metrics: &Metrics) -> Vec<(String, u64)> {
    let sums =
        Series::sums(&metrics.series(), "remoteproxy_invariants_violated_total", "invariant");
    sums.into_iter().filter(|(_, count)| *count > 0).collect()
}

fn gauge(metrics: &Metrics, name: &str) -> f64 {
    let series = metrics.series();
    let values = series.iter().filter(|it| it.name == name).map(|it| match it.value {
        Value::Number(number) => number,
        Value::Histogram(_) => 0.0,
    });
    values.sum()
}

#[test]
fn all_invariants_are_in_the_metrics_from_the_start() {
    let metrics = metrics();
    let name = "remoteproxy_invariants_violated_total";
    let sums = Series::sums(&metrics.series(), name, "invariant");
    assert_eq!(sums.len(), Invariant::ALL.len());
    assert!(Invariant::ALL.iter().all(|it| sums.get(it.label()) == Some(&0)), "{sums:?}");
}

#[test]
fn a_gauge_never_becomes_negative() {
    let metrics = metrics();
    let lines = logged(|| {
        let mut connection = metrics.connection("websocket");
        connection.enter(Stage::Tunnel);
        // Its guard will do so once more.
        connection.count(-1);
        drop(connection);
    });
    assert!(gauge(&metrics, "remoteproxy_connections").abs() < f64::EPSILON);
    assert_eq!(violations(&metrics), [("gauge_not_negative".to_owned(), 1)]);
    assert!(
        lines[0].contains("ERROR") && lines[0].contains("connections would be -1"),
        "{lines:?}"
    );
    let again = metrics.connection("websocket");
    assert!((gauge(&metrics, "remoteproxy_connections") - 1.0).abs() < f64::EPSILON);
    drop(again);
}

#[test]
fn what_is_returned_twice_is_a_violation_and_no_panic() {
    let (metrics, mut count) = (metrics(), 1);
    let lines = logged(|| {
        for _ in 0..3 {
            metrics.returned(&mut count, "the right to be connected");
        }
    });
    assert_eq!(count, 0);
    assert_eq!(violations(&metrics), [("permit_returned_once".to_owned(), 2)]);
    // Not more than one line in a second: what is wrong once may be so very often.
    assert_eq!(lines.len(), 1, "{lines:?}");
}
