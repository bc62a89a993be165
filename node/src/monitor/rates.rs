//! Transfer rates of connections per second, from one report to the next.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use nymea_remoteproxy::monitor::Report;

/// Bytes per second.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Rate {
    /// From the client.
    pub(crate) received: f64,
    /// To the client.
    pub(crate) sent: f64,
}

impl Rate {
    /// Both directions together.
    pub(crate) fn sum(self) -> f64 {
        self.received + self.sent
    }
}

/// Which connection: ids tell gateways apart, and the apps of one gateway.
type Connection = (String, Option<String>);

/// The last report's numbers, and what has become of those of the one before.
#[derive(Default)]
pub(crate) struct Rates {
    at: Option<Instant>,
    counts: HashMap<Connection, (u64, u64)>,
    per_second: HashMap<Connection, Rate>,
}

impl Rates {
    /// A report came.
    pub(crate) fn update(&mut self, report: &Report, now: Instant) {
        let passed = self.at.map(|at| now.saturating_duration_since(at));
        let counts = counts(report);
        self.per_second = match passed {
            Some(passed) if !passed.is_zero() => counts
                .iter()
                .filter_map(|(connection, now)| {
                    let before = self.counts.get(connection)?;
                    Some((connection.clone(), rate(*before, *now, passed)))
                })
                .collect(),
            _ => HashMap::new(),
        };
        (self.at, self.counts) = (Some(now), counts);
    }

    /// Nothing is known: the node may be another one when it is back.
    pub(crate) fn forget(&mut self) {
        *self = Self::default();
    }

    /// Of a gateway, or of one of its apps. None, if it has only just come.
    pub(crate) fn of(&self, gateway: &str, app: Option<&str>) -> Rate {
        let connection = (gateway.to_owned(), app.map(str::to_owned));
        self.per_second.get(&connection).copied().unwrap_or_default()
    }
}

fn counts(report: &Report) -> HashMap<Connection, (u64, u64)> {
    let mut counts = HashMap::new();
    for gateway in &report.tunnel_proxy.gateways {
        counts.insert((gateway.id.clone(), None), (gateway.received, gateway.sent));
        for app in &gateway.apps {
            let connection = (gateway.id.clone(), Some(app.id.clone()));
            counts.insert(connection, (app.received, app.sent));
        }
    }
    counts
}

fn rate(before: (u64, u64), now: (u64, u64), passed: Duration) -> Rate {
    #[expect(clippy::cast_precision_loss, reason = "it is shown with three digits")]
    let per_second =
        |before: u64, now: u64| now.saturating_sub(before) as f64 / passed.as_secs_f64();
    Rate { received: per_second(before.0, now.0), sent: per_second(before.1, now.1) }
}

#[cfg(test)]
mod tests {
    use nymea_remoteproxy::monitor::{App, Gateway};

    use super::*;

    fn report(gateway: u64, app: u64) -> Report {
        let app = App { id: "b".into(), received: app, ..App::default() };
        let mut report = Report::default();
        let apps = vec![app];
        report.tunnel_proxy.gateways =
            vec![Gateway { id: "a".into(), sent: gateway, apps, ..Gateway::default() }];
        report
    }

    #[test]
    fn rates_are_between_two_reports() {
        let mut rates = Rates::default();
        let began = Instant::now();
        rates.update(&report(1000, 10), began);
        assert_eq!(rates.of("a", None), Rate::default());
        rates.update(&report(3000, 10), began + Duration::from_secs(2));
        assert_eq!(rates.of("a", None), Rate { received: 0.0, sent: 1000.0 });
        assert_eq!(rates.of("a", Some("b")), Rate::default());
        rates.update(&report(0, 40), began + Duration::from_millis(2500));
        assert_eq!(rates.of("a", None), Rate::default(), "another connection with its id");
        assert_eq!(rates.of("a", Some("b")), Rate { received: 60.0, sent: 0.0 });
        rates.forget();
        assert_eq!(rates.of("a", Some("b")), Rate::default());
    }
}
