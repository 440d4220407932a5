//! One sampled instance: what is read of it, and what its rules say.
//!
//! Runs on the monitor thread, called once a poll by `sampler`.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::model::node::{NodeInfo, Partition};
use crate::model::status::{Alert, AlertPayload};
use crate::model::traffic::Volume;
use crate::monitor::cgroup::{BUFFER_BYTES, CpuUse, Group, OomKills};
use crate::monitor::disk::Disks;
use crate::monitor::host::share_of;
use crate::monitor::meter::Meter;
use crate::monitor::rules::{PartitionTotal, Totals};
use crate::monitor::{MonitorOutput, Target};
use crate::ports::Now;

/// Over a shorter time CPU use means nothing: the kernel updates its counters in batches, and a poll
/// may come right after the start of an instance.
const SHORTEST_SPAN: Duration = Duration::from_millis(100);

/// A sampled instance.
#[derive(Debug)]
pub(crate) struct Watched {
    pub(crate) target: Target,
    pub(crate) group: Group,
    pub(crate) meter: Meter,
    /// Time of the newest good CPU sample and the counter then.
    cpu_before: Option<(Duration, u64)>,
    oom_kills: Option<u64>,
}

/// What all instances of one poll have in common.
pub(crate) struct Tick {
    pub(crate) now: Now,
    /// CLOCK_MONOTONIC of the poll before.
    pub(crate) before: Duration,
    /// Samples in a full window of the average.
    pub(crate) window: u32,
    pub(crate) max_dmips: u64,
    pub(crate) cpus: u64,
}

impl Watched {
    pub(crate) fn new(target: Target, group: Group) -> Self {
        Self { target, group, meter: Meter::default(), cpu_before: None, oom_kills: None }
    }

    /// Other parameters for the same instance; its history stays.
    pub(crate) fn replace(&mut self, target: Target) {
        self.target = target;
    }

    /// Takes over the parameters, and the counters that the first sample is compared with.
    pub(crate) fn prepare(&mut self, info: &NodeInfo, now: Now, buffer: &mut [u8; BUFFER_BYTES]) {
        self.meter.set_partitions(self.target.partitions().map(|(name, _)| Arc::from(name)));
        self.resolve_rules(info);
        self.meter.time_ms = now.wall_ms;
        if self.cpu_before.is_none() {
            let usage = self.group.sample(buffer);
            self.cpu_before = usage.cpu.map(|cpu| (now.mono, cpu.used_us));
            self.oom_kills = usage.oom.map(|oom| oom.count);
        }
    }

    /// Takes one sample. `volume` is `None` when the traffic is unknown, `disks` when its figures
    /// are not due.
    pub(crate) fn sample(
        &mut self,
        tick: &Tick,
        volume: Option<Volume>,
        disks: Option<&mut Disks>,
        buffer: &mut [u8; BUFFER_BYTES],
    ) -> Option<OomKills> {
        let usage = self.group.sample(buffer);
        let cpu = usage.cpu.and_then(|cpu| self.cpu_dmips(cpu, tick));
        let window = tick.window;
        self.meter.time_ms = tick.now.wall_ms;
        self.meter.cpu.set_or_zero(cpu, window);
        self.meter.ram.set(usage.ram_bytes, window);
        self.meter.set_traffic(volume, window);
        self.sample_disks(disks, window);
        usage.oom
    }

    /// CPU use since the sample before, in DMIPS; `None` when there is nothing to compare with.
    fn cpu_dmips(&mut self, cpu: CpuUse, tick: &Tick) -> Option<u64> {
        let now = tick.now.mono;
        // A new group began to count after the tick before.
        let before = if cpu.fresh { Some((tick.before, 0)) } else { self.cpu_before };
        let (since, counter) = *self.cpu_before.insert(before.unwrap_or((now, cpu.used_us)));
        let elapsed = now.saturating_sub(since);
        if elapsed < SHORTEST_SPAN || tick.max_dmips == 0 {
            return None;
        }
        self.cpu_before = Some((now, cpu.used_us));
        let used_us = cpu.used_us.checked_sub(counter).unwrap_or(cpu.used_us);
        let elapsed_us = u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX);
        Some(share_of(tick.max_dmips, used_us, elapsed_us.saturating_mul(tick.cpus)))
    }

    fn sample_disks(&mut self, mut disks: Option<&mut Disks>, window: u32) {
        let target = &self.target;
        for ((_, gauge), (_, path)) in self.meter.partitions.iter_mut().zip(target.partitions()) {
            match &mut disks {
                Some(disks) => gauge.set(disks.quota_bytes(path, target.uid), window),
                None => gauge.repeat(window),
            }
        }
    }

    pub(crate) fn resolve_rules(&mut self, info: &NodeInfo) {
        let partitions: Vec<_> = self
            .target
            .partitions()
            .map(|(name, path)| PartitionTotal { name, total_bytes: holder_size(info, name, path) })
            .collect();
        let owner = self.target.id.as_str();
        self.meter.set_rules(&self.target.rules, totals(info, &partitions), owner);
    }

    /// Runs the rules over the newest sample and tells of processes that were killed.
    pub(crate) fn check(&mut self, now: Now, oom: Option<OomKills>, output: &dyn MonitorOutput) {
        let send = |payload| output.alert(Alert { time_ms: now.wall_ms, payload });
        let target = &self.target;
        self.meter.check(now.mono, |parameter, value, status| {
            let (ident, parameter) = (target.ident.clone(), parameter.to_owned());
            send(AlertPayload::InstanceQuota { ident, parameter, value, status });
        });
        let Some(oom) = oom else { return };
        let before = self.oom_kills.replace(oom.count).unwrap_or(0);
        let before = if oom.fresh { 0 } else { before };
        if let Some(risen) = oom.count.checked_sub(before).filter(|risen| *risen > 0) {
            send(AlertPayload::Instance {
                ident: target.ident.clone(),
                service_version: Arc::clone(&target.service_version),
                message: format!("out of memory: {risen} processes of the instance were killed"),
            });
        }
    }
}

impl Target {
    /// Names and paths of its partitions, in the order in which they are reported.
    fn partitions(&self) -> impl Iterator<Item = (&'static str, &Path)> {
        let storage = self.storage.as_deref().map(|path| ("storage", path));
        let state = self.state.as_deref().map(|path| ("state", path));
        storage.into_iter().chain(state)
    }
}

pub(crate) fn totals<'a>(info: &NodeInfo, partitions: &'a [PartitionTotal<'a>]) -> Totals<'a> {
    Totals { max_dmips: info.max_dmips, ram_bytes: info.total_ram_bytes, partitions }
}

pub(crate) fn size(partition: &Partition) -> Option<u64> {
    (partition.total_bytes > 0).then_some(partition.total_bytes)
}

/// Size of the node partition on which `storage` or `state` lies: the deepest one that holds the
/// path, else the one of the type `storages` or `states`.
fn holder_size(info: &NodeInfo, name: &str, path: &Path) -> Option<u64> {
    let by_path = info
        .partitions
        .iter()
        .filter(|known| path.starts_with(&known.path))
        .max_by_key(|known| known.path.components().count());
    let kind = format!("{name}s");
    let by_type = || info.partitions.iter().find(|known| known.types.contains(&kind));
    by_path.or_else(by_type).and_then(size)
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::sync::Mutex;

    use super::*;
    use crate::model::event::Session;
    use crate::model::id::{InstanceId, InstanceIdent, ServiceId, SubjectId};
    use crate::model::node::AlertRules;
    use crate::model::status::NodeMonitoring;
    use crate::monitor::RamFigure;
    use crate::monitor::cgroup::Hierarchies;

    fn watched() -> Watched {
        let id = InstanceId::new("i");
        let target = Target {
            id: id.clone(),
            ident: InstanceIdent {
                service_id: ServiceId::new("s"),
                subject_id: SubjectId::new("u"),
                instance: 0,
            },
            service_version: Arc::from("1"),
            uid: 1,
            storage: None,
            state: None,
            rules: AlertRules::default(),
        };
        let group = Group::new(&Hierarchies::default(), "/p", &id, RamFigure::Total);
        Watched::new(target, group)
    }

    #[test]
    fn a_moment_is_too_short_to_tell_a_load() {
        let mut watched = watched();
        let mut check = |used_us, now_ms, expect| {
            let now = Now { mono: Duration::from_millis(now_ms), ..Now::default() };
            let tick = Tick { now, before: Duration::ZERO, window: 1, max_dmips: 1000, cpus: 1 };
            assert_eq!(watched.cpu_dmips(CpuUse { used_us, fresh: false }, &tick), expect);
        };
        check(0, 1000, None);
        check(10_000, 1005, None);
        check(10_000, 1099, None);
        check(10_000, 1100, Some(100));
    }

    #[test]
    fn new_group_counts_from_the_tick_before() {
        let cpu = |used_us, fresh| CpuUse { used_us, fresh };
        let mut watched = watched();
        let mut check = |used, now, before, expect| {
            let (mono, before) = (Duration::from_secs(now), Duration::from_secs(before));
            let now = Now { mono, ..Now::default() };
            let tick = Tick { now, before, window: 1, max_dmips: 1000, cpus: 1 };
            assert_eq!(watched.cpu_dmips(used, &tick), expect);
        };
        check(cpu(9_000_000, false), 10, 0, None); // first sample: a baseline
        check(cpu(14_000_000, false), 20, 10, Some(500));
        check(cpu(2_000_000, true), 30, 20, Some(200)); // replaced
        check(cpu(2_000_000, false), 30, 30, None); // no time has passed
        check(cpu(7_000_000, false), 40, 30, Some(500));
    }

    #[derive(Default)]
    struct Told(Mutex<Vec<String>>);

    impl MonitorOutput for Told {
        fn spare(&self) -> Option<NodeMonitoring> {
            None
        }
        fn instant(&self, _: NodeMonitoring) {}
        fn average(&self, _: Session, _: NodeMonitoring) {}
        fn alert(&self, alert: Alert) {
            let AlertPayload::Instance { message, .. } = alert.payload else { return };
            self.0.lock().unwrap().push(message);
        }
        fn look_at(&self, _: Vec<PathBuf>) {}
    }

    #[test]
    fn a_new_group_counts_its_kills_from_0() {
        let mut watched = watched();
        let told = Told::default();
        let kills = |count, fresh| Some(OomKills { count, fresh });
        for oom in [kills(0, false), kills(2, false), kills(2, false), None, kills(1, true)] {
            watched.check(Now::default(), oom, &told);
        }
        let message =
            |count| format!("out of memory: {count} processes of the instance were killed");
        assert_eq!(told.0.into_inner().unwrap(), [message(2), message(1)]);
    }

    #[test]
    fn rules_of_instance_partitions_find_their_total() {
        let partition = |name: &str, kind: &str, path: &str, total_bytes| Partition {
            name: name.to_owned(),
            types: vec![kind.to_owned()],
            path: PathBuf::from(path),
            total_bytes,
        };
        let info = NodeInfo {
            partitions: vec![
                partition("var", "generic", "/var", 10),
                partition("storages", "storages", "/var/aos/storages", 20),
                partition("states", "states", "/mnt/states", 30),
            ],
            ..NodeInfo::default()
        };
        let check =
            |name, path, expect| assert_eq!(holder_size(&info, name, Path::new(path)), expect);
        check("storage", "/var/aos/storages/x", Some(20));
        check("storage", "/var/lib/x", Some(10));
        check("state", "/elsewhere/x", Some(30));
        check("storage", "/elsewhere/x", Some(20));
    }
}
