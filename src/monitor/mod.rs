//! Samples the node and its instances, keeps averages, applies alert rules.
//!
//! Thread `monitor` owns everything here. In: [`MonitorCommand`], at most `INBOX` waiting, and one
//! deadline, the next poll. Out: through [`MonitorOutput`], a sample after every poll, an average at
//! once when it is asked for, alerts. Nothing here may take long: local files are read, network
//! file systems are not; the traffic counters come from net, which has `TRAFFIC_LIMIT` for it.
//! Figures of network file systems are not sampled yet and reported as 0.

mod cgroup;
mod disk;
mod host;
mod meter;
mod rules;
mod window;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crossbeam::channel::{Receiver, RecvTimeoutError};

use crate::model::event::Session;
use crate::model::id::{InstanceId, InstanceIdent};
use crate::model::node::{AlertRules, NodeInfo, Partition};
use crate::model::status::{Alert, AlertPayload, MonitoringData, NodeMonitoring};
use crate::model::traffic::Traffic;
use crate::monitor::cgroup::{BUFFER_BYTES, CpuUse, Group, Hierarchies};
use crate::monitor::disk::Disks;
use crate::monitor::host::{Host, share_of};
use crate::monitor::meter::Meter;
use crate::monitor::rules::{PartitionTotal, Totals};
use crate::ports::{Clock, Now, TrafficSource};
use crate::sys::process;
use crate::sys::residency::Residency;

/// Capacity of the inbox of the monitor thread.
pub const INBOX: usize = 64;
/// Polls faster or slower than this are moved to the nearest end.
pub const POLL_PERIODS: std::ops::RangeInclusive<Duration> =
    Duration::from_secs(1)..=Duration::from_secs(3600);
/// Longest window of the average.
pub const LONGEST_WINDOW: Duration = Duration::from_secs(24 * 3600);
/// Disk figures change slowly: they are sampled no faster than this.
const DISK_PERIOD: Duration = Duration::from_secs(30);
/// The daemon has started and connected: what only that needed can be given back.
const START_DONE: Duration = Duration::from_secs(3);
/// Longest wait for the traffic counters.
const TRAFFIC_LIMIT: Duration = Duration::from_secs(1);
/// Lets the kernel merge our wake-ups with others.
const TIMER_SLACK: Duration = Duration::from_millis(50);

/// Configuration of the monitor thread.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MonitorSettings {
    /// Time between two samples.
    pub poll_period: Duration,
    /// Window of the average.
    pub average_window: Duration,
    pub ram_figure: RamFigure,
    /// Parent of the control groups of the instances, as the key `cgroupParent` spells it.
    pub cgroup_parent: String,
}

/// What counts as RAM of an instance.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum RamFigure {
    /// Anonymous memory.
    #[default]
    Anonymous,
    /// All that is charged to the group, page cache included.
    Total,
}

/// Inbox of the monitor thread.
#[derive(Clone, PartialEq, Debug)]
pub enum MonitorCommand {
    /// Sample this instance too. For a known id the parameters are replaced, the history stays.
    Watch(Box<Target>),
    /// Forget the instance and its history; unknown ids are ignored.
    Unwatch(InstanceId),
    /// DMIPS, RAM and partitions of the node; until the first one CPU is reported as 0.
    NodeInfo(NodeInfo),
    /// Alert rules of the node, from its configuration.
    NodeRules(AlertRules),
    /// Answered at once through `MonitorOutput::average`.
    Average {
        session: Session,
    },
    Stop,
}

/// An instance to sample.
#[derive(Clone, PartialEq, Debug)]
pub struct Target {
    pub id: InstanceId,
    pub ident: InstanceIdent,
    pub service_version: Arc<str>,
    /// Owner of its files, for disk usage by quota.
    pub uid: u32,
    /// Absolute path of the storage directory.
    pub storage: Option<PathBuf>,
    /// Absolute path of the state file.
    pub state: Option<PathBuf>,
    /// From the configuration of the service.
    pub rules: AlertRules,
}

/// Where samples go. No call may block for long.
pub trait MonitorOutput: Send {
    /// The newest sample; it replaces one that was not sent yet.
    fn instant(&self, data: NodeMonitoring);
    /// Answer to a request of `session`.
    fn average(&self, session: Session, data: NodeMonitoring);
    /// A threshold was crossed, or an instance ran out of memory.
    fn alert(&self, alert: Alert);
}

fn give_back(residency: &mut Residency, now: Now) {
    if let Err(err) = residency.look(now.mono) {
        log::debug!("cannot give memory back err={err}");
    }
}

/// Body of the monitor thread; returns on `Stop` or when all senders are gone.
pub fn run(
    settings: &MonitorSettings,
    inbox: &Receiver<MonitorCommand>,
    clock: &dyn Clock,
    traffic: &dyn TrafficSource,
    output: &dyn MonitorOutput,
) {
    let slack = u64::try_from(TIMER_SLACK.as_nanos()).unwrap_or(u64::MAX);
    if let Err(err) = nix::sys::prctl::set_timerslack(slack) {
        log::debug!("cannot set the timer slack err={err}");
    }
    let period = period(settings);
    let mut now = clock.now();
    let mut monitor = Monitor::new(settings, Host::open(Path::new("/proc")), Disks::open(), now);
    // Not a matter of monitoring; this thread is awake regularly and another timer would cost.
    let mut residency = Residency::default();
    let mut started = Some(now.mono + START_DONE.min(period));
    let mut next = now.mono + period;
    loop {
        if started.is_some_and(|at| at <= now.mono) {
            started = None;
            give_back(&mut residency, now);
        }
        if next <= now.mono {
            monitor.read_traffic(traffic);
            monitor.sample(now, output);
            output.instant(monitor.instant());
            give_back(&mut residency, now);
            next = following(next, period, now.mono);
        }
        let wake = started.map_or(next, |at| at.min(next));
        match inbox.recv_timeout(wake.saturating_sub(now.mono)) {
            Err(RecvTimeoutError::Timeout) => now = clock.now(),
            Err(RecvTimeoutError::Disconnected) | Ok(MonitorCommand::Stop) => return,
            Ok(command) => {
                now = clock.now();
                if matches!(command, MonitorCommand::Average { .. }) && !monitor.is_sampled {
                    monitor.read_traffic(traffic);
                }
                monitor.apply(command, now, output);
            }
        }
    }
}

/// The next tick after `now` on the grid of `tick`: what was missed is not caught up.
fn following(tick: Duration, period: Duration, now: Duration) -> Duration {
    let late = now.saturating_sub(tick).as_nanos() / period.as_nanos();
    tick + period.saturating_mul(u32::try_from(late + 1).unwrap_or(u32::MAX))
}

/// State of the thread.
struct Monitor {
    ram_figure: RamFigure,
    cgroup_parent: String,
    /// Samples in a full window of the average.
    window: u32,
    info: NodeInfo,
    node_rules: AlertRules,
    cpus: u64,
    host: Host,
    disks: Disks,
    hierarchies: Hierarchies,
    node: Meter,
    instances: Vec<Watched>,
    buffer: Box<[u8; BUFFER_BYTES]>,
    /// Counters for the next sample; `None` = net did not answer.
    traffic: Option<Traffic>,
    /// When the newest sample was taken.
    sampled_at: Duration,
    /// When disk figures are due again.
    disks_at: Duration,
    is_sampled: bool,
}

/// A sampled instance.
struct Watched {
    target: Target,
    group: Group,
    meter: Meter,
    /// Time of the newest good CPU sample and the counter then.
    cpu_before: Option<(Duration, u64)>,
    oom_kills: Option<u64>,
}

impl Monitor {
    fn new(settings: &MonitorSettings, host: Host, disks: Disks, now: Now) -> Self {
        Self {
            ram_figure: settings.ram_figure,
            cgroup_parent: settings.cgroup_parent.clone(),
            window: window_samples(settings),
            info: NodeInfo::default(),
            node_rules: AlertRules::default(),
            cpus: online_cpus(),
            host,
            hierarchies: Hierarchies::find(disks.mounts()),
            disks,
            node: Meter::default(),
            instances: Vec::new(),
            buffer: Box::new([0; BUFFER_BYTES]),
            traffic: None,
            sampled_at: now.mono,
            disks_at: now.mono,
            is_sampled: false,
        }
    }

    fn apply(&mut self, command: MonitorCommand, now: Now, output: &dyn MonitorOutput) {
        match command {
            MonitorCommand::Watch(target) => self.watch(*target, now),
            MonitorCommand::Unwatch(id) => self.instances.retain(|known| known.target.id != id),
            MonitorCommand::NodeInfo(info) => self.set_node_info(info, now),
            MonitorCommand::NodeRules(rules) => {
                self.node_rules = rules;
                self.resolve_node_rules();
            }
            MonitorCommand::Average { session } => {
                if !self.is_sampled {
                    self.sample(now, output);
                }
                output.average(session, self.average(now.wall_ms));
            }
            // The loop of the thread ends before this.
            MonitorCommand::Stop => {}
        }
    }

    fn set_node_info(&mut self, info: NodeInfo, now: Now) {
        if info.max_dmips == 0 && self.info != info {
            log::warn!("DMIPS of the node are unknown: CPU is reported as 0");
        }
        for partition in info.partitions.iter().filter(|known| self.disks.is_remote(&known.path)) {
            log::info!("partition on a network file system is not sampled name={}", partition.name);
        }
        self.info = info;
        self.cpus = online_cpus();
        self.node.set_partitions(self.info.partitions.iter().map(|known| known.name.clone()));
        self.disks_at = now.mono;
        self.resolve_node_rules();
        for watched in &mut self.instances {
            watched.resolve_rules(&self.info);
        }
    }

    fn resolve_node_rules(&mut self) {
        let total =
            |partition| PartitionTotal { total_bytes: size(partition), name: &partition.name };
        let partitions: Vec<_> = self.info.partitions.iter().map(total).collect();
        self.node.set_rules(&self.node_rules, totals(&self.info, &partitions), "node");
    }

    fn watch(&mut self, target: Target, now: Now) {
        let known = self.instances.iter().position(|known| known.target.id == target.id);
        let (hierarchies, parent) = (&self.hierarchies, &self.cgroup_parent);
        let mut watched = match known {
            Some(index) => Watched { target, ..self.instances.swap_remove(index) },
            None => Watched {
                group: Group::new(hierarchies, parent, &target.id, self.ram_figure),
                target,
                meter: Meter::default(),
                cpu_before: None,
                oom_kills: None,
            },
        };
        watched.meter.set_partitions(watched.target.partitions().map(|(name, _)| name.to_owned()));
        watched.resolve_rules(&self.info);
        watched.meter.time_ms = now.wall_ms;
        if watched.cpu_before.is_none() {
            let usage = watched.group.sample(&mut self.buffer);
            watched.cpu_before = usage.cpu.map(|cpu| (now.mono, cpu.used_us));
            watched.oom_kills = usage.oom_kills;
        }
        self.disks_at = now.mono;
        self.instances.push(watched);
    }

    fn read_traffic(&mut self, source: &dyn TrafficSource) {
        self.traffic = source
            .traffic(TRAFFIC_LIMIT)
            .inspect_err(|err| log::error!("cannot read traffic counters err={err}"))
            .ok();
    }

    /// Takes one sample of everything.
    fn sample(&mut self, now: Now, output: &dyn MonitorOutput) {
        let disks_due = self.disks_at <= now.mono;
        if disks_due {
            self.disks.refresh();
            self.disks_at = now.mono + DISK_PERIOD;
        }
        self.sample_node(now, disks_due);
        for watched in &mut self.instances {
            let usage = watched.group.sample(&mut self.buffer);
            let (max, cpus) = (self.info.max_dmips, self.cpus);
            let cpu = usage
                .cpu
                .and_then(|cpu| watched.cpu_dmips(cpu, now.mono, self.sampled_at, max, cpus));
            watched.meter.time_ms = now.wall_ms;
            watched.meter.cpu.set_or_zero(cpu, self.window);
            watched.meter.ram.set(usage.ram_bytes, self.window);
            // An instance without address is not counted: 0.
            let volume = self
                .traffic
                .as_ref()
                .map(|traffic| traffic.instance(&watched.target.id).unwrap_or_default());
            watched.meter.set_traffic(volume, self.window);
            watched.sample_disks(disks_due.then_some(&mut self.disks), self.window);
            watched.check(now, usage.oom_kills, output);
        }
        self.node.check(now.mono, |parameter, value, status| {
            let parameter = parameter.to_owned();
            let payload = AlertPayload::SystemQuota { parameter, value, status };
            output.alert(Alert { time_ms: now.wall_ms, payload });
        });
        self.sampled_at = now.mono;
        self.is_sampled = true;
    }

    fn sample_node(&mut self, now: Now, disks_due: bool) {
        self.host.sample();
        self.node.time_ms = now.wall_ms;
        let known = self.info.max_dmips > 0;
        let cpu = self.host.cpu_dmips(self.info.max_dmips);
        self.node.cpu.set_or_zero(known.then_some(cpu), self.window);
        self.node.ram.set(Some(self.host.ram_bytes()), self.window);
        self.node.set_traffic(self.traffic.as_ref().map(|traffic| traffic.node), self.window);
        for ((_, gauge), partition) in self.node.partitions.iter_mut().zip(&self.info.partitions) {
            if disks_due {
                gauge.set(self.disks.used_bytes(&partition.path), self.window);
            } else {
                gauge.repeat(self.window);
            }
        }
    }

    fn instant(&self) -> NodeMonitoring {
        self.report(Meter::instant)
    }

    fn average(&self, time_ms: i64) -> NodeMonitoring {
        self.report(|meter| meter.average(time_ms))
    }

    fn report(&self, data: impl Fn(&Meter) -> MonitoringData) -> NodeMonitoring {
        NodeMonitoring {
            node: data(&self.node),
            instances: self
                .instances
                .iter()
                .map(|watched| (watched.target.ident.clone(), data(&watched.meter)))
                .collect(),
        }
    }
}

impl Watched {
    /// CPU use since the sample before, in DMIPS; `None` when there is nothing to compare with.
    fn cpu_dmips(
        &mut self,
        cpu: CpuUse,
        now: Duration,
        tick_before: Duration,
        max_dmips: u64,
        cpus: u64,
    ) -> Option<u64> {
        let before = self.cpu_before.replace((now, cpu.used_us));
        // A new group began to count after the tick before.
        let (since, counter) = if cpu.fresh { (tick_before, 0) } else { before? };
        let used_us = cpu.used_us.checked_sub(counter).unwrap_or(cpu.used_us);
        let elapsed_us = u64::try_from(now.saturating_sub(since).as_micros()).unwrap_or(u64::MAX);
        if elapsed_us == 0 || max_dmips == 0 {
            return None;
        }
        Some(share_of(max_dmips, used_us, elapsed_us.saturating_mul(cpus)))
    }

    /// `disks` is `None` when the figures are not due.
    fn sample_disks(&mut self, mut disks: Option<&mut Disks>, window: u32) {
        let target = &self.target;
        for ((_, gauge), (_, path)) in self.meter.partitions.iter_mut().zip(target.partitions()) {
            match &mut disks {
                Some(disks) => gauge.set(disks.quota_bytes(path, target.uid), window),
                None => gauge.repeat(window),
            }
        }
    }

    fn resolve_rules(&mut self, info: &NodeInfo) {
        let partitions: Vec<_> = self
            .target
            .partitions()
            .map(|(name, path)| PartitionTotal { name, total_bytes: holder_size(info, name, path) })
            .collect();
        let owner = self.target.id.as_str();
        self.meter.set_rules(&self.target.rules, totals(info, &partitions), owner);
    }

    fn check(&mut self, now: Now, oom_kills: Option<u64>, output: &dyn MonitorOutput) {
        let send = |payload| output.alert(Alert { time_ms: now.wall_ms, payload });
        let target = &self.target;
        self.meter.check(now.mono, |parameter, value, status| {
            let (ident, parameter) = (target.ident.clone(), parameter.to_owned());
            send(AlertPayload::InstanceQuota { ident, parameter, value, status });
        });
        let Some(kills) = oom_kills else { return };
        let before = self.oom_kills.replace(kills).unwrap_or(0);
        if let Some(risen) = kills.checked_sub(before).filter(|risen| *risen > 0) {
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

fn online_cpus() -> u64 {
    u64::try_from(process::online_cpus()).unwrap_or(1)
}

fn period(settings: &MonitorSettings) -> Duration {
    settings.poll_period.clamp(*POLL_PERIODS.start(), *POLL_PERIODS.end())
}

fn window_samples(settings: &MonitorSettings) -> u32 {
    let window = settings.average_window.min(LONGEST_WINDOW).as_nanos();
    u32::try_from(window / period(settings).as_nanos()).unwrap_or(u32::MAX).max(1)
}

fn totals<'a>(info: &NodeInfo, partitions: &'a [PartitionTotal<'a>]) -> Totals<'a> {
    Totals { max_dmips: info.max_dmips, ram_bytes: info.total_ram_bytes, partitions }
}

fn size(partition: &Partition) -> Option<u64> {
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
mod tests;
