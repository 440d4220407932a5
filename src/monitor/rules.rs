//! Thresholds to alerts, with the detector of the v4 generation (6.3). Pure.
//!
//! A detector sees single samples, never averages, and only samples that could be taken. Behind it
//! `continue` is limited to one in `CONTINUE_PERIOD`.

use std::sync::Arc;
use std::time::Duration;

use crate::model::node::{AlertRules, PercentRule, PointsRule};
use crate::model::status::QuotaStatus;
use crate::monitor::window::{float, whole};

/// Shortest time between two `continue` alerts of one rule.
pub(crate) const CONTINUE_PERIOD: Duration = Duration::from_secs(60);

/// What a rule watches.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Metric {
    Cpu,
    Ram,
    /// Index in the list of partitions of the node or instance.
    Partition(usize),
    Download,
    Upload,
}

/// One partition as rules see it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PartitionTotal<'a> {
    pub(crate) name: &'a str,
    /// Size of the node partition that percentages refer to; `None` = unknown.
    pub(crate) total_bytes: Option<u64>,
}

/// What 100 percent is, for the node and for its instances alike.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Totals<'a> {
    pub(crate) max_dmips: u64,
    pub(crate) ram_bytes: u64,
    pub(crate) partitions: &'a [PartitionTotal<'a>],
}

/// A rule with absolute thresholds and its state.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Rule {
    pub(crate) metric: Metric,
    /// Name in the alert.
    pub(crate) parameter: Arc<str>,
    detector: Detector,
    /// When `raise` or `continue` was sent last.
    sent_at: Duration,
}

impl Rule {
    /// Takes a sample; the status is to be sent.
    pub(crate) fn step(&mut self, now: Duration, value: u64) -> Option<QuotaStatus> {
        let status = self.detector.step(now, value)?;
        if status == QuotaStatus::Continue && now < self.sent_at + CONTINUE_PERIOD {
            return None;
        }
        self.sent_at = now;
        Some(status)
    }
}

/// The rules that can work. Each of the others costs one line in the log. Where `before` has a rule
/// for the same parameter, its state goes on.
pub(crate) fn resolve(
    rules: &AlertRules,
    totals: Totals<'_>,
    owner: &str,
    before: &[Rule],
) -> Vec<Rule> {
    let mut found = Vec::new();
    let mut add =
        |metric, parameter: &str, thresholds: Result<Thresholds, &'static str>| match thresholds
            .and_then(Thresholds::checked)
        {
            Ok(thresholds) => found.push(continued(metric, parameter, thresholds, before)),
            Err(why) => log::warn!("alert rule skipped: {why} owner={owner} parameter={parameter}"),
        };
    if let Some(rule) = rules.cpu {
        add(Metric::Cpu, "cpu", percent(rule, totals.max_dmips));
    }
    if let Some(rule) = rules.ram {
        add(Metric::Ram, "ram", percent(rule, totals.ram_bytes));
    }
    for (name, rule) in &rules.partitions {
        let known = totals.partitions.iter().position(|partition| partition.name == name.as_str());
        let total = known.and_then(|index| totals.partitions[index].total_bytes);
        let thresholds = total.ok_or("no such partition").and_then(|total| percent(*rule, total));
        add(Metric::Partition(known.unwrap_or(0)), name, thresholds);
    }
    for (metric, name, rule) in
        [(Metric::Download, "download", rules.download), (Metric::Upload, "upload", rules.upload)]
    {
        if let Some(PointsRule { min_timeout, min, max }) = rule {
            add(metric, name, Ok(Thresholds { min_timeout, min, max }));
        }
    }
    found
}

fn percent(rule: PercentRule, total: u64) -> Result<Thresholds, &'static str> {
    if total == 0 {
        return Err("the total is unknown");
    }
    if rule.min < 0.0 {
        return Err("a threshold is negative");
    }
    let absolute = |percent: f64| whole(float(total) * percent / 100.0);
    let (min, max) = (absolute(rule.min), absolute(rule.max));
    Ok(Thresholds { min_timeout: rule.min_timeout, min, max })
}

fn continued(metric: Metric, parameter: &str, limits: Thresholds, before: &[Rule]) -> Rule {
    // A partition may be called `cpu`.
    let kind = std::mem::discriminant(&metric);
    let same = |rule: &&Rule| {
        *rule.parameter == *parameter && std::mem::discriminant(&rule.metric) == kind
    };
    match before.iter().find(same) {
        Some(rule) => {
            let detector = Detector { limits, ..rule.detector };
            Rule { metric, detector, parameter: Arc::clone(&rule.parameter), ..*rule }
        }
        None => Rule {
            metric,
            parameter: Arc::from(parameter),
            detector: Detector::new(limits),
            sent_at: Duration::ZERO,
        },
    }
}

/// Absolute thresholds.
#[derive(Clone, Copy, PartialEq, Debug)]
struct Thresholds {
    min_timeout: Duration,
    min: u64,
    max: u64,
}

impl Thresholds {
    /// A rule whose thresholds would alert for ever is refused.
    fn checked(self) -> Result<Self, &'static str> {
        match self {
            Self { max: 0, .. } => Err("maxThreshold is 0"),
            Self { min, max, .. } if min > max => Err("minThreshold is above maxThreshold"),
            sane => Ok(sane),
        }
    }
}

/// ```text
///            value >= max for minTimeout: raise
///    quiet ------------------------------------> active --+ continue every minTimeout
///      ^                                           | ^----+
///      +-------------------------------------------+
///            value <= min for minTimeout: fall
/// ```
#[derive(Clone, Copy, PartialEq, Debug)]
struct Detector {
    limits: Thresholds,
    active: bool,
    /// Quiet: since when the value is at or above max. Active: when raised or continued last.
    above_since: Option<Duration>,
    /// Since when the value is at or below min.
    below_since: Option<Duration>,
}

impl Detector {
    fn new(limits: Thresholds) -> Self {
        Self { limits, active: false, above_since: None, below_since: None }
    }

    fn step(&mut self, now: Duration, value: u64) -> Option<QuotaStatus> {
        if self.active { self.step_active(now, value) } else { self.step_quiet(now, value) }
    }

    fn step_quiet(&mut self, now: Duration, value: u64) -> Option<QuotaStatus> {
        if value < self.limits.max {
            self.above_since = None;
            return None;
        }
        let since = *self.above_since.get_or_insert(now);
        if now.saturating_sub(since) < self.limits.min_timeout {
            return None;
        }
        self.active = true;
        self.above_since = Some(now);
        self.below_since = None;
        Some(QuotaStatus::Raise)
    }

    fn step_active(&mut self, now: Duration, value: u64) -> Option<QuotaStatus> {
        let lasted = |since: Duration| now.saturating_sub(since) >= self.limits.min_timeout;
        let low = value <= self.limits.min;
        if low && self.below_since.is_some_and(lasted) {
            self.active = false;
            self.above_since = None;
            self.below_since = Some(now);
            return Some(QuotaStatus::Fall);
        }
        let again = self.above_since.is_none_or(lasted);
        if again {
            self.above_since = Some(now);
        }
        // The reference lets the fall timer run on between min and max; no peer can tell.
        self.below_since = if low { Some(self.below_since.unwrap_or(now)) } else { None };
        again.then_some(QuotaStatus::Continue)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn thresholds(timeout_s: u64, min: u64, max: u64) -> Thresholds {
        Thresholds { min_timeout: Duration::from_secs(timeout_s), min, max }
    }

    #[test]
    fn reference_vector() {
        let values = [
            50, 91, 79, 92, 93, 94, 95, 94, 79, 91, 92, 93, 94, 32, 91, 92, 93, 94, 95, 96, 85, 79,
            77, 76, 75, 74, 73, 72,
        ];
        let mut detector = Detector::new(thresholds(3, 80, 90));
        let seen: Vec<_> = (0..)
            .zip(values)
            .filter_map(|(at, value)| {
                let status = detector.step(Duration::from_secs(at), value)?;
                Some((at, value, status))
            })
            .collect();
        use QuotaStatus::{Continue, Fall, Raise};
        let expect = [
            (6, 95, Raise),
            (9, 91, Continue),
            (12, 94, Continue),
            (15, 92, Continue),
            (18, 95, Continue),
            (21, 79, Continue),
            (24, 75, Fall),
        ];
        assert_eq!(seen, expect);
    }

    #[test]
    fn without_timeout() {
        let mut detector = Detector::new(thresholds(0, 10, 20));
        let mut step = |at, value| detector.step(Duration::from_secs(at), value);
        assert_eq!(step(0, 20), Some(QuotaStatus::Raise));
        assert_eq!(step(1, 5), Some(QuotaStatus::Continue));
        assert_eq!(step(2, 5), Some(QuotaStatus::Fall));
        assert_eq!(step(3, 19), None);
    }

    #[test]
    fn continue_is_limited() {
        let rules = AlertRules {
            ram: Some(PercentRule { min_timeout: Duration::ZERO, min: 10.0, max: 80.5 }),
            ..AlertRules::default()
        };
        let totals = Totals { max_dmips: 0, ram_bytes: 1000, partitions: &[] };
        let mut resolved = resolve(&rules, totals, "node", &[]);
        assert_eq!(resolved[0].detector.limits, thresholds(0, 100, 805));
        let sent: Vec<u64> = (0..=200)
            .filter(|at| resolved[0].step(Duration::from_secs(*at), 900).is_some())
            .collect();
        assert_eq!(sent, [0, 60, 120, 180]);
        // A changed configuration goes on with the state: no second raise.
        let mut again = resolve(&rules, totals, "node", &resolved);
        assert_eq!(again[0].step(Duration::from_secs(201), 900), None);
        assert_eq!(again[0].step(Duration::from_secs(240), 900), Some(QuotaStatus::Continue));
    }

    #[test]
    fn rules_that_cannot_work_are_skipped() {
        let partitions = [
            PartitionTotal { name: "a", total_bytes: Some(1000) },
            PartitionTotal { name: "b", total_bytes: None },
        ];
        let totals = Totals { max_dmips: 1000, ram_bytes: 0, partitions: &partitions };
        let rule = |min, max| PercentRule { min_timeout: Duration::ZERO, min, max };
        let check = |rules: AlertRules, expect: &[(&str, u64, u64)]| {
            let resolved = resolve(&rules, totals, "test", &[]);
            let seen: Vec<_> = resolved
                .iter()
                .map(|r| (&*r.parameter, r.detector.limits.min, r.detector.limits.max))
                .collect();
            assert_eq!(seen, expect);
        };
        let named = |name: &str, rule| (name.to_owned(), rule);
        check(
            AlertRules { cpu: Some(rule(10.0, 90.0)), ..Default::default() },
            &[("cpu", 100, 900)],
        );
        check(AlertRules { cpu: Some(rule(10.0, 0.0)), ..Default::default() }, &[]);
        check(AlertRules { cpu: Some(rule(90.0, 10.0)), ..Default::default() }, &[]);
        check(AlertRules { cpu: Some(rule(-1.0, 10.0)), ..Default::default() }, &[]);
        check(AlertRules { cpu: Some(rule(0.0, f64::NAN)), ..Default::default() }, &[]);
        check(
            AlertRules { cpu: Some(rule(0.0, 1e300)), ..Default::default() },
            &[("cpu", 0, u64::MAX)],
        );
        check(AlertRules { ram: Some(rule(1.0, 2.0)), ..Default::default() }, &[]);
        let partitions = vec![
            named("nowhere", rule(1.0, 2.0)),
            named("b", rule(1.0, 2.0)),
            named("a", rule(1.0, 2.0)),
        ];
        check(AlertRules { partitions, ..Default::default() }, &[("a", 10, 20)]);
        let points = |min, max| Some(PointsRule { min_timeout: Duration::ZERO, min, max });
        let rules =
            AlertRules { download: points(5, 6), upload: points(6, 5), ..Default::default() };
        check(rules, &[("download", 5, 6)]);
    }
}
