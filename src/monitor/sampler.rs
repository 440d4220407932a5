//! State of the monitor thread: takes the samples, keeps the figures, answers.
//!
//! A poll allocates nothing once everything that is watched has been sampled: descriptors and
//! buffers are kept, names are shared, and the message is one that cm-tx has given back.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::model::node::{AlertRules, NodeInfo};
use crate::model::status::{Alert, AlertPayload, MonitoringData, NodeMonitoring};
use crate::model::traffic::Traffic;
use crate::monitor::cgroup::{BUFFER_BYTES, Group, Hierarchies};
use crate::monitor::disk::Disks;
use crate::monitor::host::Host;
use crate::monitor::meter::Meter;
use crate::monitor::rules::PartitionTotal;
use crate::monitor::watched::{Tick, Watched, size, totals};
use crate::monitor::{
    MonitorCommand, MonitorOutput, MonitorSettings, RamFigure, Target, window_samples,
};
use crate::ports::{Now, TrafficSource};
use crate::sys::process;

/// Disk figures change slowly: they are sampled no faster than this.
const DISK_PERIOD: Duration = Duration::from_secs(30);
/// Longest wait for the traffic counters.
pub(crate) const TRAFFIC_LIMIT: Duration = Duration::from_secs(1);
/// The table of instances grows by so many.
const GROWTH: usize = 16;

/// State of the thread.
pub(crate) struct Sampler {
    ram_figure: RamFigure,
    cgroup_parent: String,
    /// Samples in a full window of the average.
    window: u32,
    info: NodeInfo,
    node_rules: AlertRules,
    pub(crate) cpus: u64,
    host: Host,
    disks: Disks,
    hierarchies: Hierarchies,
    node: Meter,
    /// Beside the partitions of `node`.
    partitions: Vec<PartitionState>,
    instances: Vec<Watched>,
    buffer: Box<[u8; BUFFER_BYTES]>,
    /// Counters for the next sample.
    traffic: Traffic,
    /// They could be read.
    traffic_known: bool,
    /// When the newest sample was taken.
    sampled_at: Duration,
    /// When disk figures are due again.
    disks_at: Duration,
    /// Fetch was asked to look at the file systems that may hang, and has not answered.
    looking: bool,
    pub(crate) is_sampled: bool,
    /// Somebody takes the samples.
    linked: bool,
}

/// What is known of a partition of the node besides its figures.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct PartitionState {
    may_hang: bool,
    failing: bool,
    /// Answer of fetch that no sample has taken yet.
    looked_at: Option<u64>,
}

impl Sampler {
    pub(crate) fn new(
        settings: &MonitorSettings,
        host: Host,
        disks: Disks,
        hierarchies: Hierarchies,
        now: Now,
    ) -> Self {
        Self {
            ram_figure: settings.ram_figure,
            cgroup_parent: settings.cgroup_parent.clone(),
            window: window_samples(settings),
            info: NodeInfo::default(),
            node_rules: AlertRules::default(),
            cpus: online_cpus(),
            host,
            disks,
            hierarchies,
            node: Meter::default(),
            partitions: Vec::new(),
            instances: Vec::new(),
            buffer: Box::new([0; BUFFER_BYTES]),
            traffic: Traffic::default(),
            traffic_known: false,
            sampled_at: now.mono,
            disks_at: now.mono,
            looking: false,
            is_sampled: false,
            linked: false,
        }
    }

    pub(crate) fn apply(&mut self, command: MonitorCommand, now: Now, output: &dyn MonitorOutput) {
        match command {
            MonitorCommand::Watch(target) => self.watch(*target, now),
            MonitorCommand::Unwatch(id) => self.instances.retain(|known| known.target.id != id),
            MonitorCommand::NodeInfo(info) => self.set_node_info(info, now),
            MonitorCommand::NodeRules(rules) => {
                self.node_rules = rules;
                self.resolve_node_rules();
            }
            MonitorCommand::Disks(figures) => self.take_disks(&figures),
            MonitorCommand::Linked(linked) => self.linked = linked,
            MonitorCommand::Average { session } => {
                if !self.is_sampled {
                    self.sample(now, output);
                }
                let mut average = NodeMonitoring::default();
                self.fill(&mut average, |meter, data| meter.average(now.wall_ms, data));
                output.average(session, average);
            }
            // The loop of the thread ends before this.
            MonitorCommand::Stop => {}
        }
    }

    fn set_node_info(&mut self, info: NodeInfo, now: Now) {
        self.looking = false;
        if self.info == info {
            return;
        }
        if info.max_dmips == 0 {
            log::warn!("DMIPS of the node are unknown: CPU is reported as 0");
        }
        self.info = info;
        self.cpus = online_cpus();
        self.node.set_partitions(self.info.partitions.iter().map(|p| Arc::from(p.name.as_str())));
        self.partitions.clear();
        self.partitions.resize(self.info.partitions.len(), PartitionState::default());
        self.find_what_may_hang();
        self.disks_at = now.mono;
        self.resolve_node_rules();
        for watched in &mut self.instances {
            watched.resolve_rules(&self.info);
        }
    }

    fn find_what_may_hang(&mut self) {
        for (state, partition) in self.partitions.iter_mut().zip(&self.info.partitions) {
            state.may_hang = self.disks.may_hang(&partition.path);
        }
    }

    fn resolve_node_rules(&mut self) {
        let total =
            |partition| PartitionTotal { total_bytes: size(partition), name: &partition.name };
        let partitions: Vec<_> = self.info.partitions.iter().map(total).collect();
        self.node.set_rules(&self.node_rules, totals(&self.info, &partitions), "node");
    }

    fn watch(&mut self, target: Target, now: Now) {
        let known = self.instances.iter_mut().find(|known| known.target.id == target.id);
        let watched = match known {
            Some(watched) => {
                watched.replace(target);
                watched
            }
            None => {
                let (hierarchies, parent) = (&self.hierarchies, &self.cgroup_parent);
                let group = Group::new(hierarchies, parent, &target.id, self.ram_figure);
                if self.instances.len() == self.instances.capacity() {
                    self.instances.reserve_exact(GROWTH);
                }
                self.instances.push(Watched::new(target, group));
                let Some(watched) = self.instances.last_mut() else { return };
                watched
            }
        };
        watched.prepare(&self.info, now, &mut self.buffer);
        self.disks_at = now.mono;
    }

    pub(crate) fn read_traffic(&mut self, source: &dyn TrafficSource) {
        let read = source.traffic(TRAFFIC_LIMIT, &mut self.traffic);
        if let Err(err) = &read
            && (self.traffic_known || !self.is_sampled)
        {
            log::warn!("cannot read traffic counters, the last ones are reported err={err}");
        }
        self.traffic_known = read.is_ok();
    }

    /// Takes one sample of everything.
    pub(crate) fn sample(&mut self, now: Now, output: &dyn MonitorOutput) {
        let disks_due = self.disks_at <= now.mono;
        if disks_due {
            self.disks_at = now.mono + DISK_PERIOD;
            if self.disks.refresh() {
                self.find_what_may_hang();
            }
            self.look_at_what_may_hang(output);
        }
        self.sample_node(now, disks_due);
        let tick = Tick {
            now,
            before: self.sampled_at,
            window: self.window,
            max_dmips: self.info.max_dmips,
            cpus: self.cpus,
        };
        for watched in &mut self.instances {
            // An instance without address is not counted: 0.
            let volume = self
                .traffic_known
                .then(|| self.traffic.instance(&watched.target.id).unwrap_or_default());
            let disks = disks_due.then_some(&mut self.disks);
            let oom = watched.sample(&tick, volume, disks, &mut self.buffer);
            watched.check(now, oom, output);
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
        let used = self.host.sample();
        self.node.time_ms = now.wall_ms;
        match self.info.max_dmips {
            0 => self.node.cpu.set_or_zero(None, self.window),
            max => self.node.cpu.set(used.busy.map(|busy| busy.dmips(max)), self.window),
        }
        self.node.ram.set(used.ram_bytes, self.window);
        let volume = self.traffic_known.then_some(self.traffic.node);
        self.node.set_traffic(volume, self.window);
        let gauges = self.node.partitions.iter_mut().map(|(_, gauge)| gauge);
        let places = self.partitions.iter_mut().zip(&self.info.partitions);
        for (gauge, (state, partition)) in gauges.zip(places) {
            match (state.may_hang, state.looked_at.take()) {
                (true, Some(used)) => gauge.set(Some(used), self.window),
                (false, _) if disks_due => {
                    let used = self.disks.used_bytes(&partition.path);
                    state.note(&partition.path, used.as_ref().err());
                    gauge.set(used.ok(), self.window);
                }
                _ => gauge.repeat(self.window),
            }
        }
    }

    /// Asks fetch for the figures of network file systems. A hung one only makes figures old.
    fn look_at_what_may_hang(&mut self, output: &dyn MonitorOutput) {
        if self.looking || !self.partitions.iter().any(|state| state.may_hang) {
            return;
        }
        let all = self.partitions.iter().zip(&self.info.partitions);
        let paths = all.filter(|(state, _)| state.may_hang).map(|(_, p)| p.path.clone()).collect();
        self.looking = true;
        output.look_at(paths);
    }

    fn take_disks(&mut self, figures: &[(PathBuf, Result<u64, String>)]) {
        self.looking = false;
        for (state, partition) in self.partitions.iter_mut().zip(&self.info.partitions) {
            let figure = figures.iter().find(|(path, _)| *path == partition.path);
            if let Some((path, used)) = figure {
                state.looked_at = used.as_ref().ok().copied();
                state.note(path, used.as_ref().err());
            }
        }
    }

    /// Fills a used sample again if somebody takes it.
    pub(crate) fn send(&self, output: &dyn MonitorOutput) {
        if !self.linked {
            return;
        }
        let mut sample = output.spare().unwrap_or_default();
        self.fill(&mut sample, Meter::instant);
        output.instant(sample);
    }

    pub(crate) fn fill(
        &self,
        sample: &mut NodeMonitoring,
        figures: impl Fn(&Meter, &mut MonitoringData),
    ) {
        figures(&self.node, &mut sample.node);
        sample.instances.truncate(self.instances.len());
        let filled = sample.instances.len();
        for ((ident, data), watched) in sample.instances.iter_mut().zip(&self.instances) {
            ident.clone_from(&watched.target.ident);
            figures(&watched.meter, data);
        }
        for watched in &self.instances[filled..] {
            let mut data = MonitoringData::default();
            figures(&watched.meter, &mut data);
            sample.instances.push((watched.target.ident.clone(), data));
        }
    }
}

impl PartitionState {
    /// One line whenever it begins to fail or works again.
    fn note(&mut self, path: &Path, error: Option<&impl std::fmt::Display>) {
        match (self.failing, error) {
            (false, Some(err)) => {
                log::warn!("cannot read the use of partition {} err={err}", path.display());
            }
            (true, None) => log::info!("the use of partition {} is known again", path.display()),
            _ => {}
        }
        self.failing = error.is_some();
    }
}

fn online_cpus() -> u64 {
    u64::try_from(process::online_cpus()).unwrap_or(1)
}
