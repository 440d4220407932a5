//! All that core knows. Built from the store at start; changed only by `apply` and `plan`.

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::time::Duration;

use crate::core::alerts::AlertRing;
use crate::core::env::Overrides;
use crate::core::instance::{Instance, Phase};
use crate::core::nameless::Nameless;
use crate::core::node_config::NodeConfigState;
use crate::core::package::Packages;
use crate::core::secrets::Leaving;
use crate::model::command::CmCommand;
use crate::model::desired::NetworkParams;
use crate::model::event::Session;
use crate::model::id::{InstanceId, InstanceIdent, NetworkId, ServiceKey};
use crate::model::job::DiskFigures;
use crate::model::node::{Host, NodeInfo};
use crate::model::status::{Alert, AlertPayload, CmReport};
use crate::model::store::{Change, Offline, Snapshot};

/// While online, the time of the last contact with the cloud is written so often, if an instance
/// depends on it.
pub(crate) const ONLINE_STORE_PERIOD: Duration = Duration::from_secs(3600);

/// A wall clock before this time, 2020-01-01 in milliseconds, has not been set since the boot.
pub(crate) const CLOCK_SET_MS: i64 = 1_577_836_800_000;

/// When an instance counts as active (D3).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum StartVerdict {
    /// At once, except for the first start of a service version.
    #[default]
    ConfirmNew,
    Immediate,
    /// After 1.2 × start interval, as the reference.
    Reference,
}

/// What the configuration says about decisions.
#[derive(Clone, Debug)]
pub struct Policy {
    pub start_verdict: StartVerdict,
    pub keep_instances_on_exit: bool,
    pub stop_timeout: Duration,
    pub restart_on_secret_change: bool,
    pub max_instances: usize,
    pub service_ttl: Duration,
    pub layer_ttl: Duration,
    /// Jobs that may be with the exec threads at a time; the capacity of their queue.
    pub max_exec_jobs: usize,
    /// Lines for the `/etc/hosts` of every instance.
    pub hosts: Vec<Host>,
}

impl Default for Policy {
    fn default() -> Self {
        let month = Duration::from_secs(30 * 24 * 3600);
        Self {
            start_verdict: StartVerdict::default(),
            keep_instances_on_exit: false,
            stop_timeout: Duration::from_secs(5),
            restart_on_secret_change: true,
            max_instances: 1024,
            service_ttl: month,
            layer_ttl: month,
            max_exec_jobs: 64,
            hosts: Vec::new(),
        }
    }
}

/// The stream to the CM.
#[derive(Debug, Default)]
pub struct CmLink {
    pub session: Option<Session>,
    /// The registration message of this session has been sent.
    pub registered: bool,
    /// The CM has answered: what is sent now does not vanish in a stream that it refuses.
    pub accepted: bool,
    /// Full status owed to this session; sent when all has settled, at the latest then.
    pub full_status_by: Option<Duration>,
    /// Requests that wait for the next plan, with their session.
    pub requests: VecDeque<(Session, CmCommand)>,
    /// Answers that are ready.
    pub answers: VecDeque<(Session, CmReport)>,
}

/// Time without the cloud, for the offline TTL.
#[derive(Debug, Default)]
pub struct Cloud {
    /// The CM said that it is connected, on the present stream.
    pub online: bool,
    /// Offline time up to `since` (CLOCK_BOOTTIME).
    pub accumulated: Duration,
    pub since: Duration,
    /// When the row was written last, CLOCK_BOOTTIME.
    pub stored_at: Duration,
}

impl Cloud {
    /// Time without the cloud until `boot`.
    pub fn offline_for(&self, boot: Duration) -> Duration {
        if self.online {
            Duration::ZERO
        } else {
            self.accumulated + boot.saturating_sub(self.since)
        }
    }
}

/// What the survey at start is about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Survey {
    Due,
    Running,
    Done,
}

/// Whether a run request, or the initial start, has settled.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Round {
    Done,
    /// No delta statuses. A full status follows when it has settled, and in any case at `by`,
    /// CLOCK_MONOTONIC; the next plan sets it.
    Running {
        by: Option<Duration>,
    },
    /// It has taken so long that it got a full status before it has settled, and the others their
    /// deltas again.
    Late,
}

impl Round {
    /// When it gets a full status although it has not settled.
    pub fn ends_by(self) -> Option<Duration> {
        match self {
            Self::Running { by } => by,
            Self::Done | Self::Late => None,
        }
    }
}

/// Left by an earlier life of the daemon.
#[derive(Clone, Debug, Default)]
pub struct Orphan {
    /// What it runs from.
    pub service: Option<ServiceKey>,
    /// A job removes it.
    pub removing: bool,
    pub failed_removals: u32,
    /// Not before, CLOCK_MONOTONIC.
    pub after: Duration,
}

/// The kill of everything that will be removed after a start.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum Sweep {
    Due(Vec<InstanceId>),
    Running,
    #[default]
    Done,
}

/// Traffic that is not stored yet when all else has ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum LastTraffic {
    #[default]
    Unasked,
    Asked,
    Here,
}

#[derive(Debug)]
pub struct State {
    pub policy: Policy,
    pub node: Option<NodeInfo>,
    pub node_config: NodeConfigState,
    pub cm: CmLink,
    pub cloud: Cloud,
    pub packages: Packages,
    pub networks: Vec<NetworkParams>,
    /// Networks that are not listed any more and may still have instances.
    pub networks_leaving: Vec<NetworkParams>,
    /// Sets of networks that net has not answered yet, and whether one must be sent.
    pub networks_unanswered: usize,
    pub networks_due: bool,
    /// Those that could not be set up, and what the CM was told about it.
    pub networks_failed: BTreeMap<NetworkId, String>,
    /// Leftovers in the network may be removed once adoption is decided.
    pub networks_kept: bool,
    pub instances: BTreeMap<InstanceId, Instance>,
    pub by_ident: BTreeMap<InstanceIdent, InstanceId>,
    /// Idents of the last request that could not even be taken over.
    pub rejected: Vec<(InstanceIdent, String)>,
    /// Things found on the host that belong to nothing we want.
    pub orphans: BTreeMap<InstanceId, Orphan>,
    /// Found on the host while the database is empty.
    pub nameless: Nameless,
    /// What is left of an earlier life and cannot be kept: all of it is killed together, before one
    /// after the other is removed.
    pub sweep: Sweep,
    pub overrides: Overrides,
    pub alerts: AlertRing,
    /// Up to where alerts were made of log lines, if that is not stored yet.
    pub alert_position: Option<Box<str>>,
    /// When it may be stored next, CLOCK_MONOTONIC.
    pub(crate) alert_position_due: Duration,
    pub survey: Survey,
    pub tidied: bool,
    pub round: Round,
    /// Goals must be worked out anew.
    pub stale_goals: bool,
    /// Exec jobs in flight.
    pub exec_jobs: usize,
    pub iam_up: bool,
    pub stopping: bool,
    /// When a stop ends although jobs still run, CLOCK_MONOTONIC; and that it has come.
    pub stop_by: Option<Duration>,
    pub overdue: bool,
    pub last_traffic: LastTraffic,
    pub pong_due: bool,
    /// Beginnings and ends of containers, for the log.
    pub(crate) lives: Vec<crate::core::Effect>,
    /// Rows to be written with the next plan.
    pub changes: Vec<Change>,
    /// Events that plan turns into effects without a decision.
    pub reconnect_due: bool,
    pub resynchronise_due: bool,
    pub node_info_due: bool,
    pub node_rules_due: bool,
    /// The devices of the node configuration are to be looked up on this host.
    pub validation_due: bool,
    /// File systems that the monitor asks about, and the answer.
    pub disks_asked: Option<Vec<PathBuf>>,
    pub disks_answered: Option<DiskFigures>,
    /// What the monitor knows of the connection to the CM.
    pub link_told: bool,
    /// Questions that IAM was asked so far.
    pub asks: u64,
    /// Images that could not be read yet because the exec threads have enough to do.
    pub reads_left: bool,
    /// The fetch thread prepares data of an instance.
    pub data_job: bool,
    /// Registrations to be dropped at IAM.
    pub unregister: Vec<(InstanceId, InstanceIdent)>,
    /// Instances that are not wanted any more, but that IAM may still know; a row names them.
    pub leaving: BTreeMap<InstanceIdent, Leaving>,
    pub(crate) deadline: Option<Duration>,
    /// When the first offline TTL ends, CLOCK_BOOTTIME; worked out with the goals.
    pub(crate) offline_deadline: Option<Duration>,
    /// An instance has an offline TTL; worked out with the goals.
    pub(crate) online_matters: bool,
    /// Random ids for new instances.
    pub new_id: fn() -> InstanceId,
}

impl State {
    /// The state at the start of the daemon.
    pub fn new(
        policy: Policy,
        stored: Snapshot,
        node_config: NodeConfigState,
        boot: Duration,
        wall_ms: i64,
        new_id: fn() -> InstanceId,
    ) -> Self {
        let mut changes = Vec::new();
        let mut alerts = AlertRing::default();
        if let Some(error) = &node_config.error {
            let component = "aos-servicemanager".to_owned();
            let payload = AlertPayload::Core { component, message: error.message.clone() };
            alerts.push(Alert { time_ms: wall_ms, payload });
        }
        if stored.offline.is_none() {
            // The time without the cloud begins with the database.
            let begin = Offline { accumulated_ms: 0, at_ms: wall_ms, online: false };
            changes.push(Change::SetOffline(begin));
        }
        let nameless = Nameless::new(&stored);
        let mut instances = BTreeMap::new();
        let mut by_ident = BTreeMap::new();
        for row in stored.instances {
            by_ident.insert(row.instance.ident.clone(), row.id.clone());
            // An earlier life may have registered it and ended before it left a record.
            let instance = Instance { registered: true, ..Instance::new(row.id, row.instance) };
            instances.insert(instance.id.clone(), instance);
        }
        Self {
            policy,
            node_info_due: stored.node_info.is_some(),
            node: stored.node_info,
            node_config,
            cm: CmLink::default(),
            cloud: offline_since(stored.offline, boot, wall_ms),
            packages: Packages::new(stored.services, stored.layers, stored.wanted),
            networks_due: !stored.networks.is_empty(),
            networks: stored.networks,
            networks_leaving: Vec::new(),
            networks_unanswered: 0,
            networks_failed: BTreeMap::new(),
            networks_kept: false,
            instances,
            by_ident,
            rejected: stored.refused,
            orphans: BTreeMap::new(),
            nameless,
            sweep: Sweep::default(),
            overrides: Overrides::new(stored.env_overrides),
            alerts,
            alert_position: None,
            alert_position_due: Duration::ZERO,
            survey: Survey::Due,
            tidied: false,
            round: Round::Running { by: None },
            stale_goals: true,
            exec_jobs: 0,
            iam_up: false,
            stopping: false,
            stop_by: None,
            overdue: false,
            last_traffic: LastTraffic::default(),
            pong_due: false,
            lives: Vec::new(),
            changes,
            reconnect_due: false,
            resynchronise_due: false,
            node_rules_due: true,
            validation_due: true,
            disks_asked: None,
            disks_answered: None,
            link_told: false,
            asks: 0,
            reads_left: false,
            data_job: false,
            unregister: Vec::new(),
            leaving: Leaving::of(stored.leaving),
            deadline: None,
            offline_deadline: None,
            online_matters: false,
            new_id,
        }
    }

    /// When `plan` wants to be called again, CLOCK_MONOTONIC.
    pub fn next_deadline(&self) -> Option<Duration> {
        self.deadline
    }

    /// Remembers that something is due at `at`.
    pub(crate) fn wake(&mut self, at: Duration) {
        self.deadline = Some(self.deadline.map_or(at, |d| d.min(at)));
    }

    /// A stop was asked for and nothing is left to do.
    pub fn is_drained(&self) -> bool {
        self.overdue || (self.is_quiet() && self.last_traffic == LastTraffic::Here)
    }

    /// A stop was asked for, and no instance and no job is in its way any more.
    pub(crate) fn is_quiet(&self) -> bool {
        let quiet = |i: &Instance| {
            !i.is_busy()
                && (self.policy.keep_instances_on_exit
                    || !i.is_present()
                    || matches!(i.phase, Phase::Quarantined | Phase::Residue(_)))
        };
        let idle = self.exec_jobs == 0 && self.survey != Survey::Running;
        self.stopping && idle && self.instances.values().all(quiet)
    }

    /// The instance of an id, if it is (still) known.
    pub fn instance(&self, id: &InstanceId) -> Option<&Instance> {
        self.instances.get(id)
    }

    /// Ids in the order of starts and device allocation: priority, then ident.
    pub fn by_priority(&self) -> Vec<InstanceId> {
        let mut order: Vec<&Instance> = self.instances.values().collect();
        order.sort_by(|a, b| {
            let key = |i: &Instance| std::cmp::Reverse(i.desired.priority);
            key(a).cmp(&key(b)).then_with(|| a.desired.ident.cmp(&b.desired.ident))
        });
        order.into_iter().map(|i| i.id.clone()).collect()
    }

    pub(crate) fn alert(&mut self, time_ms: i64, payload: AlertPayload) {
        self.alerts.push(Alert { time_ms, payload });
    }
}

/// The stored offline time, plus the power-off if the wall clock is plausible now and was so when
/// the row was written.
fn offline_since(stored: Option<Offline>, boot: Duration, wall_ms: i64) -> Cloud {
    let accumulated = stored.map_or(0, |row| {
        let was_set = row.at_ms >= CLOCK_SET_MS;
        let off = if was_set { wall_ms.saturating_sub(row.at_ms).max(0) } else { 0 };
        if row.online {
            // The row tells of the cloud being there only so often.
            let period = i64::try_from(ONLINE_STORE_PERIOD.as_millis()).unwrap_or(i64::MAX);
            off.saturating_sub(period).max(0)
        } else {
            row.accumulated_ms.max(0).saturating_add(off)
        }
    });
    let accumulated = Duration::from_millis(u64::try_from(accumulated).unwrap_or(0));
    Cloud { online: false, accumulated, since: boot, stored_at: boot }
}
