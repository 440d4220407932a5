//! Samples the node and its instances, keeps averages, applies alert rules.
//!
//! Thread `monitor` owns everything here. In: [`MonitorCommand`], at most `INBOX` waiting, and one
//! deadline, the next poll. Out: through [`MonitorOutput`], a sample after every poll, an average at
//! once when it is asked for, alerts. Nothing here may take long: local files are read, network
//! file systems are looked at by fetch; the traffic counters come from net, which has a second
//! for it.

mod cgroup;
mod disk;
mod host;
mod meter;
mod rules;
mod sampler;
mod watched;
mod window;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crossbeam::channel::{Receiver, RecvTimeoutError};

use crate::model::event::Session;
use crate::model::id::{InstanceId, InstanceIdent};
use crate::model::job::DiskFigures;
use crate::model::node::{AlertRules, NodeInfo};
use crate::model::status::{Alert, NodeMonitoring};
use crate::monitor::cgroup::Hierarchies;
use crate::monitor::disk::Disks;
use crate::monitor::host::Host;
use crate::monitor::sampler::Sampler;
use crate::ports::{Clock, Now, TrafficSource};
use crate::sys::progress;
use crate::sys::residency::Residency;

/// Capacity of the inbox of the monitor thread.
pub const INBOX: usize = 64;
/// Polls faster or slower than this are moved to the nearest end.
pub const POLL_PERIODS: std::ops::RangeInclusive<Duration> =
    Duration::from_secs(1)..=Duration::from_secs(3600);
/// Longest window of the average.
pub const LONGEST_WINDOW: Duration = Duration::from_secs(24 * 3600);
/// The daemon has started and connected: what only that needed can be given back.
const START_DONE: Duration = Duration::from_secs(3);
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
    /// Answer to `MonitorOutput::look_at`: used bytes, or why they are not known.
    Disks(DiskFigures),
    /// Whether the CM is there to take samples; until told so none are made up.
    Linked(bool),
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
    /// A sample that was sent, to be filled again.
    fn spare(&self) -> Option<NodeMonitoring>;
    /// The newest sample; it replaces one that was not sent yet.
    fn instant(&self, data: NodeMonitoring);
    /// Answer to a request of `session`.
    fn average(&self, session: Session, data: NodeMonitoring);
    /// A threshold was crossed, or an instance ran out of memory.
    fn alert(&self, alert: Alert);
    /// These file systems may hang: somebody else reads what is used of them. Answered by
    /// `MonitorCommand::Disks`, at most one question at a time.
    fn look_at(&self, paths: Vec<PathBuf>);
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
    let host = Host::open(Path::new("/proc"));
    let mut sampler = Sampler::new(settings, host, Disks::open(), Hierarchies::read(), now);
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
            sampler.read_traffic(traffic);
            sampler.sample(now, output);
            sampler.send(output);
            give_back(&mut residency, now);
            next = following(next, period, now.mono);
        }
        let wake = started.map_or(next, |at| at.min(next));
        match progress::waiting(|| inbox.recv_timeout(wake.saturating_sub(now.mono))) {
            Err(RecvTimeoutError::Timeout) => now = clock.now(),
            Err(RecvTimeoutError::Disconnected) | Ok(MonitorCommand::Stop) => return,
            Ok(command) => {
                now = clock.now();
                if matches!(command, MonitorCommand::Average { .. }) && !sampler.is_sampled {
                    sampler.read_traffic(traffic);
                }
                sampler.apply(command, now, output);
            }
        }
    }
}

/// The next tick after `now` on the grid of `tick`: what was missed is not caught up.
fn following(tick: Duration, period: Duration, now: Duration) -> Duration {
    let late = now.saturating_sub(tick).as_nanos() / period.as_nanos();
    tick + period.saturating_mul(u32::try_from(late + 1).unwrap_or(u32::MAX))
}

fn period(settings: &MonitorSettings) -> Duration {
    settings.poll_period.clamp(*POLL_PERIODS.start(), *POLL_PERIODS.end())
}

fn window_samples(settings: &MonitorSettings) -> u32 {
    let window = settings.average_window.min(LONGEST_WINDOW).as_nanos();
    u32::try_from(window / period(settings).as_nanos()).unwrap_or(u32::MAX).max(1)
}

#[cfg(test)]
mod tests;
