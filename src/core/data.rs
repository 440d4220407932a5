//! Data of instances on file systems with a server: prepared by the fetch thread, one instance at a
//! time, before the instance may start.
//!
//! ```text
//! start ── "lies on a server" ──> Waiting ──> asked ── done ──> Ready ──> start
//!                                    ^           │ failed, or silent: the status says so
//!                                    └── pause ──┘
//! ```

use std::time::Duration;

use crate::core::Effect;
use crate::core::instance::{Goal, Instance, Phase};
use crate::core::state::State;
use crate::model::failure::Failure;
use crate::model::id::InstanceId;
use crate::model::job::{FetchJob, StartKind};
use crate::model::status::ErrorInfo;
use crate::ports::Now;

/// A server that has not answered for so long is named in the status.
pub const PATIENCE: Duration = Duration::from_secs(20);
/// Data that could not be prepared are tried again after so long.
const PAUSE: Duration = Duration::from_secs(30);

/// State file and storage directory of an instance.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Data {
    /// As far as known, the start itself makes what is missing.
    #[default]
    Local,
    /// To be prepared, since then and not before `after` (CLOCK_MONOTONIC).
    Waiting { since: Duration, after: Duration, asked: bool },
    /// Prepared; whoever touches them may have to wait.
    Ready,
}

impl State {
    /// The start has found data that it must not touch. That is no attempt.
    pub(crate) fn data_are_remote(&mut self, now: Now, id: &InstanceId) {
        let Some(instance) = self.instances.get_mut(id) else { return };
        log::info!("data lie on a file system with a server instance={id}");
        instance.data = Data::Waiting { since: now.mono, after: now.mono, asked: false };
        instance.phase = Phase::Absent;
        instance.next_start = StartKind::Fresh;
        instance.fault = None;
        instance.retry = true;
    }

    pub(crate) fn plan_data(&mut self, now: Now, effects: &mut Vec<Effect>) {
        if self.stopping {
            return;
        }
        for id in self.by_priority() {
            let Some(instance) = self.instances.get_mut(&id) else { continue };
            let Data::Waiting { since, after, asked } = instance.data else { continue };
            let Goal::Run(inputs) = instance.goal.clone() else { continue };
            let late = since + PATIENCE;
            if now.mono >= late && instance.fault.is_none() {
                let text = "state or storage directory: the server of its file system is silent";
                log::warn!("{text} instance={id}");
                instance.fault = Some(ErrorInfo::text(text));
            }
            let wake = if now.mono < late { Some(late) } else { None };
            if !asked && now.mono >= after && !self.data_job {
                instance.data = Data::Waiting { since, after, asked: true };
                let plan = instance.start_plan(&inputs, StartKind::Fresh, 0);
                effects.push(Effect::Fetch(FetchJob::PrepareData(Box::new(plan))));
                self.data_job = true;
            }
            let after = Some(after).filter(|after| !asked && *after > now.mono);
            for at in wake.into_iter().chain(after) {
                self.wake(at);
            }
        }
    }

    pub(crate) fn data_prepared(
        &mut self,
        now: Now,
        id: &InstanceId,
        result: Result<bool, Failure>,
    ) {
        self.data_job = false;
        let Some(instance) = self.instances.get_mut(id) else { return };
        let Data::Waiting { since, asked: true, .. } = instance.data else { return };
        match result {
            Ok(is_remote) => {
                instance.fault = None;
                instance.data = if is_remote { Data::Ready } else { Data::Local };
            }
            Err(failure) => {
                log::error!("data cannot be prepared instance={id} err={failure}");
                instance.fault = Some(ErrorInfo::text(failure.message));
                instance.data = Data::Waiting { since, after: now.mono + PAUSE, asked: false };
            }
        }
    }
}

impl Instance {
    /// A request ends the pause between two attempts.
    pub(crate) fn try_data(&mut self, now: Now) {
        if let Data::Waiting { asked: false, .. } = self.data {
            self.data = Data::Waiting { since: now.mono, after: now.mono, asked: false };
            self.fault = None;
        }
    }

    /// Only its data are missing, and why is known.
    pub(crate) fn lacks_data(&self) -> bool {
        matches!(self.data, Data::Waiting { .. }) && self.fault.is_some()
    }
}
