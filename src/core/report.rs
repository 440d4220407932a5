//! What the CM is told: registration, full status, changes, answers, alerts.
//!
//! Statuses are level-triggered: what is sent is worked out from the state when it may be sent, so
//! nothing queues up while the CM is away and a new registration gets the full picture.

use std::sync::Arc;
use std::time::Duration;

use crate::core::instance::{Goal, Instance, Reported};
use crate::core::state::{Round, State, Survey};
use crate::core::{Effect, NodeConfigWork};
use crate::document::{NumberUnit, node_config};
use crate::model::command::CmCommand;
use crate::model::event::Session;
use crate::model::status::{CmReport, ErrorInfo, InstanceStatus, NodeConfigStatus, RunState};
use crate::model::store::Change;
use crate::ports::Now;

/// A registration gets its full status after so long even if instances are still on their way
/// (D26).
const FULL_STATUS_LIMIT: Duration = Duration::from_secs(30);
/// A run request gets its full status after so long even if installs or starts still go on: the CM
/// gives up after ten minutes, and until then it hears nothing of the others.
const ROUND_LIMIT: Duration = Duration::from_secs(9 * 60);
/// Shortest time between two positions of the alerts in the store.
const POSITION_PERIOD: Duration = Duration::from_secs(60);
/// Shortest time between two delta statuses of one instance (R24).
const DELTA_PERIOD: Duration = Duration::from_secs(1);

impl State {
    pub(crate) fn plan_reports(&mut self, now: Now, effects: &mut Vec<Effect>) {
        let round_ended = self.round != Round::Done && self.is_settled(now);
        if round_ended {
            self.round = Round::Done;
        }
        if let Round::Running { by } = &mut self.round {
            by.get_or_insert(now.mono + ROUND_LIMIT);
        }
        if !self.stopping {
            self.plan_registration(now, effects);
        }
        let Some(session) = self.cm.session.filter(|_| self.cm.registered) else {
            self.cm.answers.clear();
            return;
        };
        self.plan_answers(session, effects);
        if self.stopping {
            // The last full status stands: what a stop does to instances is no news of theirs.
            return;
        }
        self.plan_full_status(now, session, round_ended, effects);
        if self.full_status_at().is_none() {
            self.plan_changes(now, session, effects);
        }
        if self.cm.accepted {
            self.plan_alerts(now, session, effects);
        }
    }

    /// Nothing that the next full status should wait for is on its way.
    fn is_settled(&mut self, now: Now) -> bool {
        let patience = self.instances.values().filter_map(Instance::iam_patience_ends);
        if let Some(at) = patience.filter(|at| *at > now.mono).min() {
            self.wake(at);
        }
        let settled = |i: &Instance| i.is_settled() || i.waits_for_iam(self.iam_up, now);
        self.survey == Survey::Done && self.instances.values().all(settled)
    }

    fn plan_registration(&mut self, now: Now, effects: &mut Vec<Effect>) {
        let (Some(session), Some(_)) = (self.cm.session, &self.node) else { return };
        if self.cm.registered {
            return;
        }
        self.cm.registered = true;
        self.cm.full_status_by = Some(now.mono + FULL_STATUS_LIMIT);
        let hello = CmReport::NodeConfigStatus(self.node_config_status());
        effects.push(Effect::Report(session, hello));
    }

    fn node_config_status(&self) -> NodeConfigStatus {
        NodeConfigStatus {
            node_id: self.node.as_ref().map(|n| n.node_id.clone()).unwrap_or_default(),
            node_type: self.node.as_ref().map(|n| n.node_type.clone()).unwrap_or_default(),
            version: self.node_config.version.clone(),
            error: self.node_config.status_error(),
        }
    }

    /// The CM waits for these; they go out in the order of the requests.
    fn plan_answers(&mut self, session: Session, effects: &mut Vec<Effect>) {
        for (asked_on, report) in std::mem::take(&mut self.cm.answers) {
            if asked_on == session {
                effects.push(Effect::Report(session, report));
            }
        }
        while !self.node_config.busy {
            let Some((asked_on, command)) = self.cm.requests.pop_front() else { return };
            if asked_on == session {
                self.answer(session, command, effects);
            }
        }
    }

    fn answer(&mut self, session: Session, command: CmCommand, effects: &mut Vec<Effect>) {
        match command {
            CmCommand::GetNodeConfigStatus => {
                let status = CmReport::NodeConfigStatus(self.node_config_status());
                effects.push(Effect::Report(session, status));
            }
            CmCommand::CheckNodeConfig { json, version } => {
                self.answer_config(session, json, version, false, effects);
            }
            CmCommand::SetNodeConfig { json, version } => {
                self.answer_config(session, json, version, true, effects);
            }
            CmCommand::GetAverageMonitoring => effects.push(Effect::Average(session)),
            CmCommand::Log(request) => effects.push(Effect::Log(session, request)),
            // State messages are taken over by `apply`.
            CmCommand::RunInstances(_)
            | CmCommand::UpdateNetworks(_)
            | CmCommand::OverrideEnvVars(_)
            | CmCommand::ConnectionStatus { .. } => {}
        }
    }

    fn answer_config(
        &mut self,
        session: Session,
        json: String,
        version: String,
        store: bool,
        effects: &mut Vec<Effect>,
    ) {
        match node_config::parse_new(&json, NumberUnit::Seconds) {
            Ok(mut config) => {
                config.version = version;
                self.node_config.busy = true;
                self.node_config.candidate = store.then(|| config.clone());
                effects.push(Effect::NodeConfig(NodeConfigWork { session, json, config, store }));
            }
            Err(error) => {
                let status =
                    NodeConfigStatus { error: Some(ErrorInfo::of(&error)), ..Default::default() };
                effects.push(Effect::Report(session, CmReport::NodeConfigStatus(status)));
            }
        }
    }

    /// When the next full status is sent at the latest; until then there are no deltas. That of a
    /// registration does not wait for a request that comes after it.
    fn full_status_at(&self) -> Option<Duration> {
        self.cm.full_status_by.or(self.round.ends_by())
    }

    fn plan_full_status(
        &mut self,
        now: Now,
        session: Session,
        round_ended: bool,
        effects: &mut Vec<Effect>,
    ) {
        let due = match self.full_status_at() {
            Some(at) => now.mono >= at || self.round == Round::Done,
            None => round_ended,
        };
        if due {
            self.cm.full_status_by = None;
            if self.round.ends_by().is_some_and(|by| now.mono >= by) {
                self.round = Round::Late;
            }
        }
        if let Some(at) = self.full_status_at() {
            self.wake(at);
        }
        if !due {
            return;
        }
        let mut statuses = Vec::with_capacity(self.instances.len() + self.rejected.len());
        for instance in self.instances.values_mut().filter(|i| i.wanted) {
            statuses.push(instance.report());
        }
        let unnamed = self.rejected.iter().filter(|(ident, _)| !self.by_ident.contains_key(ident));
        statuses.extend(unnamed.map(|(ident, reason)| InstanceStatus {
            ident: ident.clone(),
            service_version: "".into(),
            state: RunState::Failed,
            error: Some(ErrorInfo::text(reason.clone())),
        }));
        effects.push(Effect::Report(session, CmReport::RunStatus(statuses)));
    }

    fn plan_changes(&mut self, now: Now, session: Session, effects: &mut Vec<Effect>) {
        let mut changed = Vec::new();
        let mut next = None;
        for instance in self.instances.values_mut().filter(|i| i.wanted && i.has_news()) {
            if now.mono >= instance.report_after {
                instance.report_after = now.mono + DELTA_PERIOD;
                changed.push(instance.report());
            } else {
                next = Some(
                    next.map_or(instance.report_after, |n: Duration| n.min(instance.report_after)),
                );
            }
        }
        if let Some(at) = next {
            self.wake(at);
        }
        if !changed.is_empty() {
            effects.push(Effect::Report(session, CmReport::UpdateStatus(changed)));
        }
    }

    fn plan_alerts(&mut self, now: Now, session: Session, effects: &mut Vec<Effect>) {
        for alert in self.alerts.next_batch(now) {
            effects.push(Effect::Report(session, CmReport::Alert(alert)));
        }
        if let Some(at) = self.alerts.next_time() {
            self.wake(at);
        }
    }

    /// Stores up to where log lines have become alerts, once all of them have reached the CM: alerts
    /// live in memory alone, so what is not stored here is read again after a crash.
    pub(crate) fn plan_alert_position(&mut self, now: Now) {
        if self.alert_position.is_none() || self.alerts.has_lines() {
            return;
        }
        if now.mono < self.alert_position_due && !self.stopping {
            return self.wake(self.alert_position_due);
        }
        if let Some(text) = self.alert_position.take() {
            self.alert_position_due = now.mono + POSITION_PERIOD;
            self.changes.push(Change::SetAlertPosition(text));
        }
    }
}

impl Instance {
    /// The status for the CM; remembers that it was told.
    fn report(&mut self) -> InstanceStatus {
        let (state, error) = self.status();
        self.reported = Some(Reported { state, error: error.clone() });
        InstanceStatus {
            ident: self.desired.ident.clone(),
            service_version: self.reported_version(),
            state,
            error,
        }
    }

    /// While a new version is on its way, the status is that of the old one, which goes on.
    fn reported_version(&self) -> Arc<str> {
        match &self.inputs {
            Some(inputs) if self.goal == Goal::Wait => inputs.service.key.version.clone(),
            _ => self.goal_version.clone(),
        }
    }

    /// The CM knows something else.
    fn has_news(&self) -> bool {
        let (state, error) = self.status();
        self.reported.as_ref().is_none_or(|told| told.state != state || told.error != error)
    }
}
