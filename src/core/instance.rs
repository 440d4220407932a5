//! One instance as core sees it: what is wanted, which phase it is in, what was reported.
//!
//! ```text
//!            found by the survey                          job done
//!  Found ────────────────────────> Adopting ─────────────────────────┐
//!    │ differs                        │ cannot                       v
//!    └──────────> Stopping <──────────┘         ┌── start ─────── Running
//!                    │  ^                       │                  │   │ exit
//!                    v  └── Grace <── stop ─────┼──────────────────┘   v
//!  Absent ──> (waits for package, secret, ──> Starting <── Pausing <─ Cleaning
//!    ^         network, its turn)               │ fails       │ limit          (Dead)
//!    └───────────── stopped ────────────────────┴──> Failed <─┘
//! ```

use std::sync::Arc;
use std::time::Duration;

use crate::core::data::Data;
use crate::core::limiter::RunRules;
use crate::model::desired::DesiredInstance;
use crate::model::event::Exit;
use crate::model::id::{InstanceId, ServiceKey};
use crate::model::job::{LimiterState, Permissions, Record, StartKind};
use crate::model::node::{Device, NodeConfig, Resource};
use crate::model::service::{InstalledService, ServiceImage};
use crate::model::status::{ErrorInfo, RunState};

/// Where the instance is in its life. At most one job is in flight for an instance: exactly in
/// the phases Adopting, Starting, Stopping and Cleaning.
#[derive(Clone, PartialEq, Debug)]
pub enum Phase {
    /// Nothing of it exists on the host.
    Absent,
    /// The survey found it; to be adopted or removed as soon as its inputs are known.
    Found(Box<Record>),
    Adopting,
    Starting(StartKind),
    Running,
    /// Was told to stop and has time until the deadline (CLOCK_MONOTONIC).
    Grace(Duration),
    /// Everything is being removed.
    Stopping,
    /// The container has ended and is to be removed.
    Dead,
    /// The container is being removed, the rest stays for the restart.
    Cleaning,
    /// Waits for its automatic restart (CLOCK_MONOTONIC).
    Pausing(Duration),
    /// Nothing exists; tried again only when a request or its inputs change.
    Failed,
    /// Parts of it could not be removed; tried again at the deadline (CLOCK_MONOTONIC).
    Residue(Duration),
    /// Processes of it cannot be killed: nothing is done with this id before the next request.
    Quarantined,
}

/// What should become of the instance.
#[derive(Clone, PartialEq, Debug)]
pub enum Goal {
    /// Run with these inputs.
    Run(Arc<Inputs>),
    /// Something is on its way; what runs may go on.
    Wait,
    /// As `Wait`, but the new version does not fit on the disk beside the one that runs.
    MakeRoom,
    /// Cannot run for a reason that the status tells; what runs of it is stopped unless `keep`.
    Blocked { error: ErrorInfo, keep: bool },
    /// Not wanted (any more), or the daemon stops.
    Gone,
}

impl Goal {
    /// What runs may go on although it is not what is wanted.
    pub fn keeps(&self) -> bool {
        matches!(self, Self::Wait | Self::Blocked { keep: true, .. })
    }
}

/// Everything one start is made from, resolved.
#[derive(Clone, PartialEq, Debug)]
pub struct Inputs {
    pub service: Arc<InstalledService>,
    pub image: Arc<ServiceImage>,
    pub layers: Vec<std::path::PathBuf>,
    pub devices: Vec<(Device, String)>,
    pub resources: Vec<Resource>,
    pub overrides: Arc<[String]>,
    pub max_dmips: u64,
    pub rules: RunRules,
    pub digest: String,
}

/// The secret from IAM.
#[derive(Clone, PartialEq, Debug)]
pub enum Secret {
    /// Not asked for yet, or not needed.
    None,
    /// Asked with this number at that time (CLOCK_MONOTONIC); the value in use, if the container
    /// already has one, by its hash.
    Asked {
        ask: u64,
        since: Duration,
        in_use_hash: String,
    },
    /// To be asked again, to compare with the one in use.
    Recheck {
        in_use_hash: String,
    },
    Known(Arc<str>),
    /// Of an adopted container: only the hash is known.
    Adopted {
        hash: String,
    },
}

/// Is `active` already the verdict for a running instance?
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// Held since the first start (CLOCK_MONOTONIC); `exited` = it has ended at least once since.
    Held {
        since: Duration,
        exited: bool,
    },
    Given,
    /// It runs, but restarted too often while its verdict was held.
    TooOften,
}

/// What the CM was told last.
#[derive(Clone, PartialEq, Debug)]
pub struct Reported {
    pub state: RunState,
    pub error: Option<ErrorInfo>,
}

#[derive(Clone, PartialEq, Debug)]
pub struct Instance {
    pub id: InstanceId,
    pub desired: Arc<DesiredInstance>,
    /// In the desired list. Otherwise the row is gone and so is this entry, once all is removed.
    pub wanted: bool,
    pub phase: Phase,
    pub goal: Goal,
    /// What an earlier life started it from; none once it is adopted or gone.
    pub left: Option<ServiceKey>,
    /// While what was found waits for another version: whether it can run on as it is.
    pub stay: Goal,
    /// The node configuration that it runs with; a newer one counts from the next request or start
    /// on. `None` = the newest.
    pub node_config: Option<Arc<NodeConfig>>,
    /// The CM knows that a device was refused.
    pub alerted: bool,
    /// Version of the service that the goal is about; empty when unknown.
    pub goal_version: Arc<str>,
    /// Inputs of what runs or is being started.
    pub inputs: Option<Arc<Inputs>>,
    /// Digest of `inputs`, or that of the record of an adopted container.
    pub running_digest: String,
    /// The next start needs everything, or only a new container.
    pub next_start: StartKind,
    /// A request or a change of inputs allows one more series of attempts.
    pub retry: bool,
    /// Stop and start even if nothing changed.
    pub restart: bool,
    /// Removals in a row that left something.
    pub failed_removals: u32,
    /// The series of attempts is over: failed as soon as all is removed.
    pub give_up: bool,
    pub fault: Option<ErrorInfo>,
    pub limiter: LimiterState,
    pub restarts: u64,
    /// Start of the running container, CLOCK_MONOTONIC.
    pub running_since: Duration,
    /// Init of the newest container whose end is not known yet; 0 = none.
    pub pid: u32,
    /// The end of a container whose start job has not answered yet, with its pid.
    pub early_exit: Option<(u32, Exit)>,
    /// Why the kernel may not be able to execute the program of the running container.
    pub doubt: Option<Box<str>>,
    pub verdict: Verdict,
    pub secret: Secret,
    pub data: Data,
    /// IAM knows the instance, or may: it was asked.
    pub registered: bool,
    /// With what IAM was asked.
    pub permissions: Option<Arc<Permissions>>,
    /// The monitor watches it.
    pub monitored: bool,
    pub reported: Option<Reported>,
    /// Earliest time of the next delta status, CLOCK_MONOTONIC.
    pub report_after: Duration,
}

impl Instance {
    pub fn new(id: InstanceId, desired: DesiredInstance) -> Self {
        Self {
            id,
            desired: Arc::new(desired),
            wanted: true,
            phase: Phase::Absent,
            goal: Goal::Wait,
            left: None,
            stay: Goal::Wait,
            node_config: None,
            alerted: false,
            goal_version: Arc::from(""),
            inputs: None,
            running_digest: String::new(),
            next_start: StartKind::Fresh,
            retry: true,
            restart: false,
            failed_removals: 0,
            give_up: false,
            fault: None,
            limiter: LimiterState::default(),
            restarts: 0,
            running_since: Duration::ZERO,
            pid: 0,
            early_exit: None,
            doubt: None,
            verdict: Verdict::Given,
            secret: Secret::None,
            data: Data::Local,
            registered: false,
            permissions: None,
            monitored: false,
            reported: None,
            report_after: Duration::ZERO,
        }
    }

    /// A job for this instance is in flight.
    pub fn is_busy(&self) -> bool {
        matches!(
            self.phase,
            Phase::Adopting | Phase::Starting(_) | Phase::Stopping | Phase::Cleaning
        )
    }

    /// It holds something on this host, or may.
    pub fn is_present(&self) -> bool {
        !matches!(self.phase, Phase::Absent | Phase::Failed)
    }

    /// It must be gone before anything else may start: it holds addresses and devices.
    pub fn is_in_the_way(&self) -> bool {
        match self.phase {
            Phase::Absent | Phase::Failed | Phase::Residue(_) | Phase::Quarantined => false,
            Phase::Stopping | Phase::Grace(_) => true,
            Phase::Found(_) if self.goal.keeps() => self.stay != Goal::Wait,
            _ => self.is_unfit(),
        }
    }

    /// What runs of it, or waits to run again, must go.
    pub fn is_unfit(&self) -> bool {
        match &self.goal {
            Goal::Gone | Goal::MakeRoom | Goal::Blocked { keep: false, .. } => true,
            Goal::Wait | Goal::Blocked { keep: true, .. } => false,
            Goal::Run(inputs) => self.restart || inputs.digest != self.running_digest,
        }
    }

    /// State and error for the CM.
    pub fn status(&self) -> (RunState, Option<ErrorInfo>) {
        if let Goal::Blocked { error, .. } = &self.goal {
            return (RunState::Failed, Some(error.clone()));
        }
        match (&self.phase, self.verdict) {
            (Phase::Running, Verdict::Given) => (RunState::Active, None),
            (Phase::Running, Verdict::Held { exited: false, .. }) => (RunState::Inactive, None),
            (Phase::Running, Verdict::TooOften) => {
                (RunState::Failed, Some(self.restarts_too_often()))
            }
            _ => match &self.fault {
                Some(fault) => (RunState::Failed, Some(fault.clone())),
                None => (RunState::Inactive, None),
            },
        }
    }

    /// It runs at the moment; what it died of last says most.
    fn restarts_too_often(&self) -> ErrorInfo {
        let text = "instance restarts too often";
        match &self.fault {
            Some(last) => {
                ErrorInfo { message: format!("{text}: {}", last.message), ..last.clone() }
            }
            None => ErrorInfo::text(text),
        }
    }

    /// Nothing that concerns the verdict of a run request is on its way.
    pub fn is_settled(&self) -> bool {
        match (&self.goal, &self.phase) {
            (_, Phase::Found(_)) | (Goal::MakeRoom, _) => false,
            (Goal::Gone, phase) => {
                matches!(
                    phase,
                    Phase::Absent | Phase::Failed | Phase::Residue(_) | Phase::Quarantined
                )
            }
            (Goal::Blocked { keep: true, .. }, _) => !self.is_busy(),
            (Goal::Blocked { .. }, _) => !self.is_present() || self.phase == Phase::Quarantined,
            (_, Phase::Quarantined) => true,
            (_, Phase::Failed) => !self.retry,
            (Goal::Wait, _) => false,
            (Goal::Run(inputs), Phase::Running) => {
                !self.restart
                    && self.running_digest == inputs.digest
                    && !matches!(self.verdict, Verdict::Held { .. })
            }
            (
                Goal::Run(_),
                Phase::Dead | Phase::Pausing(_) | Phase::Cleaning | Phase::Starting(_),
            ) => {
                !self.restart
                    && !matches!(self.verdict, Verdict::Held { .. })
                    && self.fault.is_some()
            }
            (Goal::Run(_), Phase::Absent) => self.lacks_data(),
            (Goal::Run(_), _) => false,
        }
    }
}
