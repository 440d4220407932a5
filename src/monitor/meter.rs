//! The figures of the node or of one instance: newest sample, averages and rules. Pure.

use std::sync::Arc;
use std::time::Duration;

use crate::model::node::AlertRules;
use crate::model::status::{MonitoringData, QuotaStatus};
use crate::model::traffic::Volume;
use crate::monitor::rules::{self, Metric, Rule, Totals};
use crate::monitor::window::Average;

/// One figure.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub(crate) struct Gauge {
    now: u64,
    /// The newest sample could be taken.
    known: bool,
    average: Average,
}

impl Gauge {
    /// A sample that failed stays out of averages and rules; the last value is still shown.
    pub(crate) fn set(&mut self, sample: Option<u64>, window: u32) {
        self.known = sample.is_some();
        if let Some(value) = sample {
            self.now = value;
            self.average.add(value, window);
        }
    }

    /// As `set`, but a sample that failed shows 0.
    pub(crate) fn set_or_zero(&mut self, sample: Option<u64>, window: u32) {
        self.set(sample, window);
        if !self.known {
            self.now = 0;
        }
    }

    /// The figure was not due: the last one counts once more, so that the window covers time.
    pub(crate) fn repeat(&mut self, window: u32) {
        if self.known {
            self.average.add(self.now, window);
        }
    }

    fn sample(self) -> Option<u64> {
        self.known.then_some(self.now)
    }
}

/// All figures of one subject.
#[derive(Clone, Debug, Default)]
pub(crate) struct Meter {
    pub(crate) time_ms: i64,
    pub(crate) cpu: Gauge,
    pub(crate) ram: Gauge,
    download: Gauge,
    upload: Gauge,
    pub(crate) partitions: Vec<(Arc<str>, Gauge)>,
    rules: Vec<Rule>,
}

impl Meter {
    /// Takes another list of partitions; those with a known name keep their figures.
    pub(crate) fn set_partitions(&mut self, names: impl Iterator<Item = Arc<str>>) {
        let before = std::mem::take(&mut self.partitions);
        let gauge = |name: &str| {
            before
                .iter()
                .find(|(known, _)| **known == *name)
                .map_or_else(Gauge::default, |(_, g)| *g)
        };
        self.partitions =
            names.map(|name| (gauge(&name), name)).map(|(g, name)| (name, g)).collect();
    }

    /// Takes the traffic counters; `None` = they could not be read, the last ones are shown.
    pub(crate) fn set_traffic(&mut self, volume: Option<Volume>, window: u32) {
        self.download.set(volume.map(|volume| volume.download_bytes), window);
        self.upload.set(volume.map(|volume| volume.upload_bytes), window);
    }

    /// Takes other rules; a rule for the same parameter goes on where it was.
    pub(crate) fn set_rules(&mut self, rules: &AlertRules, totals: Totals<'_>, owner: &str) {
        self.rules = rules::resolve(rules, totals, owner, &self.rules);
    }

    /// Runs the rules over the newest samples.
    pub(crate) fn check(&mut self, now: Duration, mut alert: impl FnMut(&str, u64, QuotaStatus)) {
        for rule in &mut self.rules {
            let gauge = match rule.metric {
                Metric::Cpu => Some(self.cpu),
                Metric::Ram => Some(self.ram),
                Metric::Partition(index) => self.partitions.get(index).map(|(_, gauge)| *gauge),
                Metric::Download => Some(self.download),
                Metric::Upload => Some(self.upload),
            };
            let Some(value) = gauge.and_then(Gauge::sample) else { continue };
            if let Some(status) = rule.step(now, value) {
                alert(&rule.parameter, value, status);
            }
        }
    }

    /// The newest samples.
    pub(crate) fn instant(&self, data: &mut MonitoringData) {
        self.fill(data, self.time_ms, |gauge| gauge.now);
    }

    /// The averages, with the time of the request.
    pub(crate) fn average(&self, time_ms: i64, data: &mut MonitoringData) {
        self.fill(data, time_ms, |gauge| gauge.average.value());
    }

    fn fill(&self, data: &mut MonitoringData, time_ms: i64, figure: impl Fn(&Gauge) -> u64) {
        data.time_ms = time_ms;
        data.ram_bytes = figure(&self.ram);
        data.cpu_dmips = figure(&self.cpu);
        data.partitions.clear();
        let partitions = self.partitions.iter();
        data.partitions.extend(partitions.map(|(name, gauge)| (Arc::clone(name), figure(gauge))));
        data.download_bytes = figure(&self.download);
        data.upload_bytes = figure(&self.upload);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::node::PercentRule;
    use crate::monitor::rules::PartitionTotal;

    fn instant(meter: &Meter) -> MonitoringData {
        let mut data = MonitoringData::default();
        meter.instant(&mut data);
        data
    }

    #[test]
    fn failed_samples_reach_neither_averages_nor_rules() {
        let mut meter = Meter::default();
        meter.set_partitions(["var".into()].into_iter());
        let rule = PercentRule { min_timeout: Duration::ZERO, min: 1.0, max: 10.0 };
        let rules = AlertRules {
            ram: Some(rule),
            partitions: vec![("var".to_owned(), rule)],
            ..AlertRules::default()
        };
        let partitions = [PartitionTotal { name: "var", total_bytes: Some(1000) }];
        let totals = Totals { max_dmips: 0, ram_bytes: 1000, partitions: &partitions };
        meter.set_rules(&rules, totals, "node");
        let mut tick = |at: u64, ram: Option<u64>, disk: Option<u64>| {
            meter.ram.set(ram, 2);
            meter.cpu.set_or_zero(ram, 2);
            meter.partitions[0].1.set(disk, 2);
            let mut alerts = Vec::new();
            meter.check(Duration::from_secs(at), |parameter, value, _| {
                alerts.push((parameter.to_owned(), value));
            });
            let mut average = MonitoringData::default();
            meter.average(at.cast_signed(), &mut average);
            (alerts, instant(&meter), average)
        };
        let (alerts, instant, _) = tick(0, Some(200), Some(99));
        assert_eq!(alerts, [("ram".to_owned(), 200)]);
        assert_eq!((instant.ram_bytes, instant.cpu_dmips), (200, 200));
        let (alerts, instant, average) = tick(100, None, None);
        assert!(alerts.is_empty());
        assert_eq!((instant.ram_bytes, instant.cpu_dmips), (200, 0));
        assert_eq!(instant.partitions, [("var".into(), 99)]);
        assert_eq!((average.ram_bytes, average.cpu_dmips, average.time_ms), (200, 200, 100));
    }

    #[test]
    fn partitions_keep_their_figures() {
        let mut meter = Meter::default();
        meter.set_partitions(["a".into(), "b".into()].into_iter());
        meter.partitions[1].1.set(Some(7), 1);
        meter.set_partitions(["b".into(), "c".into()].into_iter());
        let expect = [("b".into(), 7), ("c".into(), 0)];
        assert_eq!(instant(&meter).partitions, expect);
    }
}
