//! Folds one event into the state. No decisions: what follows from it is for `plan`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use crate::core::Effect;
use crate::core::data::Data;
use crate::core::instance::{Goal, Inputs, Instance, Phase, Secret, Verdict};
use crate::core::secrets::Leaving;
use crate::core::state::{LastTraffic, Orphan, Round, State, Survey, Sweep};
use crate::model::command::CmCommand;
use crate::model::desired::{DesiredInstance, EnvOverride, NetworkParams, RunRequest};
use crate::model::event::{Event, Exit, IamEvent, Session};
use crate::model::failure::Failure;
use crate::model::id::{InstanceId, InstanceIdent, NetworkId, ServiceKey};
use crate::model::job::{
    Found, JobDone, LimiterState, Record, StartKind, Started, StopOutcome, StopScope,
};
use crate::model::node::NodeInfo;
use crate::model::status::{AlertPayload, CmReport, ErrorInfo};
use crate::model::store::{Change, StoredInstance};
use crate::model::traffic::TrafficRow;
use crate::ports::Now;

/// Attempts to remove an instance that leaves something each time; then the next start of the
/// daemon finds it.
const MAX_REMOVALS: u32 = 4;
/// Time between them.
const REMOVAL_PERIOD: Duration = Duration::from_secs(10);
/// Refused instances that outlive the daemon; a CM that asks for more has lost its way.
const MAX_STORED_REFUSALS: usize = 1024;
/// What an orderly stop may take; a job that hangs is left to the end of the process.
const STOP_LIMIT: Duration = Duration::from_secs(60);

impl State {
    /// Takes note of an event.
    pub fn apply(&mut self, now: Now, event: Event) {
        match event {
            Event::CmConnected { session } => self.cm_connected(now, session),
            Event::CmAccepted { session } => {
                self.cm.accepted |= self.cm.session == Some(session);
            }
            Event::CmLost { session } => self.cm_lost(now, session),
            Event::Cm { session, command } => self.cm_command(now, session, command),
            Event::AlertSent { session } if self.cm.session == Some(session) => self.alerts.sent(),
            Event::AlertSent { .. } | Event::Tick => {}
            Event::Iam(event) => self.iam_event(event),
            Event::Done(done) => self.job_done(now, done),
            Event::Exited { id, pid, exit } => self.exited(now, &id, pid, exit),
            Event::NetworksUpdated { failed, draining } => {
                self.networks_updated(now, failed, &draining);
            }
            Event::NetworkGone(id) => self.networks_left(|leaving| leaving.id != id),
            Event::NetworkReady(id) => self.network_ready(&id),
            Event::Traffic { rows, gone } => self.traffic_counted(rows, gone),
            Event::TrafficCollected => self.last_traffic = LastTraffic::Here,
            Event::Alert(alert) => self.alerts.push(alert),
            Event::NodeConfigStored { session, faults, result } => {
                self.node_config_done(now, session, &faults, result);
            }
            Event::DevicesValidated(faults) => self.devices_validated(now, faults),
            Event::Reload => self.validation_due = true,
            Event::LookAtDisks(paths) => self.disks_asked = Some(paths),
            Event::AlertPosition(text) => self.alert_position = Some(text),
            Event::ClockChanged => {
                // After a crash the difference to the stored time counts as time without power.
                self.store_offline(now);
                self.stale_goals = true;
            }
            Event::Ping => self.pong_due = true,
            Event::Stop => self.stop(now),
        }
    }

    /// No message answers a set of networks: an alert names each one that could not be set up, once
    /// per reason. A start that needs it tries again, and fails with the reason.
    fn networks_updated(
        &mut self,
        now: Now,
        failed: Vec<(NetworkId, Failure)>,
        draining: &[NetworkId],
    ) {
        self.networks_unanswered = self.networks_unanswered.saturating_sub(1);
        if self.networks_unanswered > 0 {
            // Of a set that was replaced meanwhile.
            return;
        }
        self.networks_left(|leaving| draining.contains(&leaving.id));
        let told = std::mem::take(&mut self.networks_failed);
        for (id, failure) in failed {
            if told.get(&id) != Some(&failure.message) {
                let component = "aos-servicemanager".to_owned();
                let message = format!("cannot set up network {id}: {failure}");
                self.alert(now.wall_ms, AlertPayload::Core { component, message });
            }
            self.networks_failed.insert(id, failure.message);
        }
    }

    /// Of the networks that are not listed any more, only these still have instances.
    fn networks_left(&mut self, is_there: impl Fn(&NetworkParams) -> bool) {
        let before = self.networks_leaving.len();
        self.networks_leaving.retain(is_there);
        if self.networks_leaving.len() != before {
            self.store_networks();
        }
    }

    /// Also those that are still needed: after a restart of the daemon they are as they were.
    fn store_networks(&mut self) {
        let stored = self.networks.iter().chain(&self.networks_leaving).cloned().collect();
        self.changes.push(Change::SetNetworks(stored));
    }

    /// Instances that could not start without it are tried again.
    fn network_ready(&mut self, id: &NetworkId) {
        self.networks_failed.remove(id);
        for instance in self.instances.values_mut() {
            let inside = |inputs: &Inputs| inputs.service.provider_id == *id;
            if matches!(&instance.goal, Goal::Run(inputs) if inside(inputs)) {
                instance.cause_has_gone();
            }
        }
    }

    fn traffic_counted(&mut self, rows: Vec<TrafficRow>, gone: Vec<Box<str>>) {
        if !rows.is_empty() {
            self.changes.push(Change::PutTraffic(rows));
        }
        if !gone.is_empty() {
            self.changes.push(Change::RemoveTraffic(gone));
        }
    }

    fn cm_connected(&mut self, now: Now, session: Session) {
        if let Some(old) = self.cm.session {
            self.cm_lost(now, old);
        }
        self.cm.session = Some(session);
        self.cm.registered = false;
        self.cm.accepted = false;
        self.cm.full_status_by = None;
    }

    fn cm_lost(&mut self, now: Now, session: Session) {
        if self.cm.session != Some(session) {
            return;
        }
        self.cm.session = None;
        self.cm.registered = false;
        self.cm.requests.clear();
        self.alerts.stream_lost();
        self.set_online(now, false);
    }

    fn cm_command(&mut self, now: Now, session: Session, command: CmCommand) {
        match command {
            CmCommand::RunInstances(request) => self.run_request(now, request),
            CmCommand::UpdateNetworks(networks) => {
                // The CM lists a network once for every service of its provider; the last one counts.
                let newest: BTreeMap<NetworkId, NetworkParams> =
                    networks.into_iter().map(|network| (network.id.clone(), network)).collect();
                self.networks_leaving.append(&mut self.networks);
                self.networks_leaving.retain(|old| !newest.contains_key(&old.id));
                self.networks = newest.into_values().collect();
                self.store_networks();
                self.networks_due = true;
            }
            CmCommand::OverrideEnvVars(list) => self.override_env(now, session, list),
            CmCommand::ConnectionStatus { online } => {
                if self.cm.session == Some(session) {
                    self.set_online(now, online);
                }
            }
            command => self.cm.requests.push_back((session, command)),
        }
    }

    /// Offline time counts while no CM says that it is connected to the cloud.
    fn set_online(&mut self, now: Now, online: bool) {
        if self.cloud.online == online {
            return;
        }
        self.cloud.online = online;
        self.cloud.accumulated = Duration::ZERO;
        self.cloud.since = now.boot;
        self.store_offline(now);
        self.stale_goals = true;
    }

    pub(crate) fn store_offline(&mut self, now: Now) {
        self.cloud.stored_at = now.boot;
        let accumulated = self.cloud.offline_for(now.boot).as_millis();
        self.changes.push(Change::SetOffline(crate::model::store::Offline {
            accumulated_ms: i64::try_from(accumulated).unwrap_or(i64::MAX),
            at_ms: now.wall_ms,
            online: self.cloud.online,
        }));
    }

    fn override_env(&mut self, now: Now, session: Session, list: Vec<EnvOverride>) {
        let answer = self.overrides.replace(list, self.by_ident.keys(), now.wall_ms);
        self.changes.push(Change::SetEnvOverrides(self.overrides.list().to_vec()));
        self.stale_goals = true;
        self.cm.answers.push_back((session, CmReport::EnvStatus(answer)));
    }

    fn run_request(&mut self, now: Now, request: RunRequest) {
        log::info!(
            "run request services={} layers={} instances={} force_restart={}",
            request.services.len(),
            request.layers.len(),
            request.instances.len(),
            request.force_restart
        );
        self.packages.want(&request, now.wall_ms, &mut self.changes);
        let refused_before = std::mem::take(&mut self.rejected);
        for instance in self.instances.values_mut().filter(|i| i.phase == Phase::Quarantined) {
            instance.phase = Phase::Grace(Duration::ZERO);
        }
        for rejected in request.rejected {
            log::error!("element of the run request refused reason={}", rejected.reason);
            if let Some(ident) = rejected.ident {
                self.rejected.push((ident, rejected.reason));
            }
        }
        let named: BTreeSet<InstanceIdent> =
            request.instances.iter().map(|i| i.ident.clone()).collect();
        self.drop_unnamed(&named);
        for desired in request.instances {
            self.want_instance(now, desired, request.force_restart);
        }
        if self.rejected != refused_before {
            let kept = self.rejected.iter().take(MAX_STORED_REFUSALS).cloned().collect();
            self.changes.push(Change::SetRefused(kept));
        }
        self.give_up_nameless();
        self.round = Round::Running { by: None };
        self.stale_goals = true;
    }

    fn drop_unnamed(&mut self, named: &BTreeSet<InstanceIdent>) {
        let gone: Vec<InstanceIdent> =
            self.by_ident.keys().filter(|ident| !named.contains(*ident)).cloned().collect();
        for ident in gone {
            let Some(id) = self.by_ident.remove(&ident) else { continue };
            self.changes.push(Change::RemoveInstance(id.clone()));
            let Some(instance) = self.instances.get_mut(&id) else { continue };
            instance.wanted = false;
            if instance.registered {
                self.leaves_iam(id, ident);
            }
        }
    }

    fn want_instance(&mut self, now: Now, desired: DesiredInstance, force_restart: bool) {
        let ident = desired.ident.clone();
        if let Some(instance) = self.by_ident.get(&ident).and_then(|id| self.instances.get_mut(id))
        {
            if *instance.desired != desired {
                let row = StoredInstance { id: instance.id.clone(), instance: desired.clone() };
                self.changes.push(Change::PutInstance(row));
                instance.desired = Arc::new(desired);
                instance.data = Data::Local;
            }
            instance.retry = true;
            // A failed instance starts anew, also when it only waits for its next restart.
            let waits = matches!(instance.phase, Phase::Dead | Phase::Cleaning | Phase::Pausing(_));
            instance.restart |= waits || (force_restart && instance.is_present());
            instance.alerted = false;
            instance.node_config = None;
            instance.try_data(now);
            return;
        }
        if self.by_ident.len() >= self.policy.max_instances {
            let text = format!("more than {} instances", self.policy.max_instances);
            self.rejected.push((ident, text));
            return;
        }
        if let Some(instance) = self.take_nameless(&desired) {
            return drop(self.instances.insert(instance.id.clone(), instance));
        }
        let id = (self.new_id)();
        self.changes.push(Change::PutInstance(StoredInstance {
            id: id.clone(),
            instance: desired.clone(),
        }));
        // What IAM may still know of an earlier instance goes before this one is registered.
        let registered = self.comes_back(&ident);
        self.by_ident.insert(ident, id.clone());
        let instance = Instance { registered, ..Instance::new(id.clone(), desired) };
        self.instances.insert(id, instance);
    }

    fn iam_event(&mut self, event: IamEvent) {
        match event {
            IamEvent::NodeInfo(node) => self.node_info(node),
            IamEvent::CertChanged => self.reconnect_due = true,
            IamEvent::Up { restarted } => {
                self.iam_up = true;
                if restarted {
                    self.secrets_lost();
                }
                self.recheck_adopted_secrets();
                self.leaving.values_mut().for_each(Leaving::ask_again);
            }
            IamEvent::Down => self.iam_up = false,
            IamEvent::Registered { id, ask, result } => self.registered(&id, ask, result),
            IamEvent::Unregistered { ask, done } => self.unregistered(ask, done),
        }
    }

    /// A stream stays what it was registered as, so that another node needs another one.
    fn node_info(&mut self, node: NodeInfo) {
        if self.node.as_ref() == Some(&node) {
            return;
        }
        self.resynchronise_due |= self.cm.registered
            && self.node.as_ref().is_some_and(|old| {
                (&old.node_id, &old.node_type) != (&node.node_id, &node.node_type)
            });
        self.changes.push(Change::SetNodeInfo(node.clone()));
        self.node = Some(node);
        self.node_info_due = true;
        self.stale_goals = true;
    }

    fn job_done(&mut self, now: Now, done: JobDone) {
        match done {
            JobDone::Surveyed(found) => self.surveyed(found),
            JobDone::Loaded { key, result } => {
                self.exec_ended();
                self.packages.read(&key, result, now.mono);
                self.stale_goals = true;
            }
            JobDone::Started { id, result, unkillable } => {
                self.started(now, &id, result, unkillable);
            }
            JobDone::Stopped { id, scope, outcome } => self.stopped(now, &id, scope, outcome),
            JobDone::Killed { failed } => self.swept(now, &failed),
            JobDone::Adopted { id, result } => self.adopted(now, &id, result),
            JobDone::Tidied { missing } => {
                self.tidied = true;
                self.packages.forget_missing(&missing, &mut self.changes);
                self.stale_goals = true;
            }
            JobDone::Discarded => self.packages.discarded(),
            JobDone::LookedAtDisks(figures) => self.disks_answered = Some(figures),
            JobDone::DataPrepared { id, result } => self.data_prepared(now, &id, result),
            JobDone::Checked { key, result } => {
                self.stale_goals |=
                    self.packages.checked(&key, result, now.mono, &mut self.changes);
            }
            JobDone::Installed { key, evicted, result } => {
                self.packages.installed(&key, &evicted, result, now, &mut self.changes);
                self.stale_goals = true;
            }
            JobDone::Removed { key, result } => {
                self.packages.removed(&key, result, now.wall_ms, &mut self.changes);
                self.stale_goals = true;
            }
        }
    }

    fn exec_ended(&mut self) {
        debug_assert!(self.exec_jobs > 0, "an answer to no job");
        self.exec_jobs = self.exec_jobs.saturating_sub(1);
    }

    fn surveyed(&mut self, found: Vec<Found>) {
        self.exec_ended();
        self.survey = Survey::Done;
        self.stale_goals = true;
        let mut lost = Vec::new();
        for Found { id, record } in found {
            let service = record.as_ref().map(Record::service);
            let Some(instance) = self.instances.get_mut(&id) else {
                let Some(record) = self.keep_nameless(&id, record) else { continue };
                if let Some(record) = record.filter(|r| !r.secret_hash.is_empty())
                    && !self.by_ident.contains_key(&record.ident)
                {
                    self.leaves_iam(id.clone(), record.ident);
                }
                lost.push(id.clone());
                self.orphans.insert(id, Orphan { service, ..Orphan::default() });
                continue;
            };
            instance.left = service;
            instance.phase = match record {
                Some(record) => Phase::Found(Box::new(record)),
                None => {
                    lost.push(id);
                    Phase::Grace(Duration::ZERO)
                }
            };
        }
        if !lost.is_empty() {
            self.sweep = Sweep::Due(lost);
        }
    }

    /// What could not be killed together is not tried again one by one.
    fn swept(&mut self, now: Now, failed: &[InstanceId]) {
        self.exec_ended();
        self.sweep = Sweep::Done;
        for id in failed {
            if let Some(instance) = self.instances.get_mut(id) {
                instance.quarantine();
            } else if let Some(orphan) = self.orphans.get_mut(id) {
                orphan.failed_removals += 1;
                orphan.after = now.mono + REMOVAL_PERIOD;
            }
        }
    }

    fn started(
        &mut self,
        now: Now,
        id: &InstanceId,
        result: Result<Started, Failure>,
        unkillable: bool,
    ) {
        self.exec_ended();
        let Some(instance) = self.instances.get_mut(id) else { return };
        let early_exit = instance.early_exit.take();
        match result {
            Ok(Started { pid, doubt }) => {
                log::info!("started instance={id} ident={} pid={pid}", instance.desired.ident);
                if instance.phase == Phase::Starting(StartKind::Fresh) {
                    instance.doubt = doubt;
                }
                instance.phase = Phase::Running;
                instance.failed_removals = 0;
                instance.running_since = now.mono;
                instance.pid = pid;
                self.lives.push(Effect::ContainerStarted { id: id.clone(), pid });
                if let Some((pid, exit)) = early_exit {
                    self.exited(now, id, pid, exit);
                }
            }
            Err(failure) if failure.remote_data => self.data_are_remote(now, id),
            Err(failure) => {
                log::error!(
                    "cannot start instance={id} ident={} err={failure}",
                    instance.desired.ident
                );
                if let Some(key) = &failure.damaged {
                    self.packages.note_damage(key, failure.clone());
                    self.stale_goals = true;
                }
                let exit_code = early_exit.map_or(0, |(_, exit)| exit.code());
                instance.fault = Some(ErrorInfo { exit_code, ..ErrorInfo::text(failure.message) });
                instance.note_exit();
                if unkillable {
                    return instance.quarantine();
                }
                if instance.phase == Phase::Starting(StartKind::Fresh) {
                    // The job has undone all of it.
                    instance.next_start = StartKind::Fresh;
                }
                instance.phase = Phase::Pausing(now.mono + instance.restart_interval());
            }
        }
    }

    fn adopted(&mut self, now: Now, id: &InstanceId, result: Result<Started, Failure>) {
        self.exec_ended();
        let Some(instance) = self.instances.get_mut(id) else { return };
        let early_exit = instance.early_exit.take();
        match result {
            Ok(Started { pid, .. }) => {
                log::info!("adopted instance={id} ident={} pid={pid}", instance.desired.ident);
                instance.phase = Phase::Running;
                instance.left = None;
                instance.next_start = StartKind::Again;
                instance.verdict = Verdict::Given;
                instance.pid = pid;
                if let Some((pid, exit)) = early_exit {
                    self.exited(now, id, pid, exit);
                }
            }
            Err(failure) => {
                log::warn!("not adopted, will be started anew instance={id} err={failure}");
                instance.phase = Phase::Grace(Duration::ZERO);
            }
        }
    }

    fn exited(&mut self, now: Now, id: &InstanceId, pid: u32, exit: Exit) {
        let Some(instance) = self.instances.get_mut(id) else { return };
        if instance.pid != pid {
            if matches!(instance.phase, Phase::Starting(_) | Phase::Adopting) {
                instance.early_exit = Some((pid, exit));
            }
            return;
        }
        instance.pid = 0;
        let was_asked = instance.phase != Phase::Running;
        self.lives.push(Effect::ContainerEnded { id: id.clone(), exit, was_asked });
        match instance.phase {
            Phase::Grace(_) => instance.phase = Phase::Grace(Duration::ZERO),
            Phase::Running => {
                let up = now.mono.saturating_sub(instance.running_since);
                log::warn!(
                    "ended instance={id} ident={} exit={exit} up_ms={}",
                    instance.desired.ident,
                    up.as_millis()
                );
                instance.fault = Some(instance.fault_of(exit));
                instance.note_exit();
                instance.phase = Phase::Dead;
            }
            // A container that was killed by a job, or is removed already.
            _ => {}
        }
    }

    fn stopped(&mut self, now: Now, id: &InstanceId, scope: StopScope, outcome: StopOutcome) {
        self.exec_ended();
        for error in &outcome.errors {
            log::error!("clean-up instance={id} err={error}");
        }
        let Some(instance) = self.instances.get_mut(id) else {
            return self.orphan_removed(now, id, &outcome);
        };
        if outcome.unkillable {
            return instance.quarantine();
        }
        match scope {
            StopScope::Container => {
                instance.phase = Phase::Pausing(now.mono + instance.restart_interval());
            }
            StopScope::Everything => {
                let registered = instance.registered.then(|| instance.desired.ident.clone());
                let clean = outcome.errors.is_empty();
                instance.all_gone();
                instance.failed_removals = if clean { 0 } else { instance.failed_removals + 1 };
                // A fresh start replaces what is left; without one it has to be removed.
                if instance.failed_removals >= MAX_REMOVALS {
                    instance.failed_removals = 0;
                }
                if instance.failed_removals > 0 && !instance.wanted {
                    instance.phase = Phase::Residue(now.mono + REMOVAL_PERIOD);
                }
                if let Some(ident) = registered {
                    self.unregister.push((id.clone(), ident));
                }
                log::info!("stopped instance={id}");
            }
        }
    }

    fn orphan_removed(&mut self, now: Now, id: &InstanceId, outcome: &StopOutcome) {
        let Some(orphan) = self.orphans.get_mut(id) else { return };
        orphan.removing = false;
        orphan.failed_removals += 1;
        orphan.after = now.mono + REMOVAL_PERIOD;
        if outcome.errors.is_empty() || orphan.failed_removals >= MAX_REMOVALS {
            self.orphans.remove(id);
        }
    }

    fn stop(&mut self, now: Now) {
        if self.stopping {
            return;
        }
        self.stop_by = Some(now.mono + self.policy.stop_timeout + STOP_LIMIT);
        log::info!("stopping keep_instances={}", self.policy.keep_instances_on_exit);
        self.stopping = true;
        self.packages.interrupt(&mut self.changes);
        if self.cloud.online {
            self.store_offline(now);
        }
        if self.survey == Survey::Due {
            self.survey = Survey::Done;
        }
        if !self.policy.keep_instances_on_exit {
            self.give_up_nameless();
        }
        self.stale_goals = true;
    }
}

impl Record {
    pub(crate) fn service(&self) -> ServiceKey {
        ServiceKey { id: self.ident.service_id.clone(), version: self.service_version.clone() }
    }
}

impl Instance {
    /// A series of attempts has failed for good; nothing of it is left.
    pub(crate) fn fail(&mut self, error: ErrorInfo) {
        self.fault = Some(error);
        self.retry = false;
        self.registered = false;
        self.secret = Secret::None;
        if matches!(self.phase, Phase::Absent | Phase::Pausing(_)) {
            self.phase = Phase::Failed;
        }
    }

    /// What it may have failed for is there now: what does not run gets new attempts, also when the
    /// last one of a series is on its way.
    pub(crate) fn cause_has_gone(&mut self) {
        if self.phase != Phase::Running {
            self.retry = true;
            self.limiter = LimiterState::default();
        }
    }

    /// Nothing is removed or started where processes survive SIGKILL.
    fn quarantine(&mut self) {
        log::error!("processes cannot be killed, the instance is given up instance={}", self.id);
        self.phase = Phase::Quarantined;
        self.fault = Some(ErrorInfo::text("unkillable: its processes do not end after SIGKILL"));
    }

    /// A program that the kernel cannot load looks like one that ends with code 1.
    fn fault_of(&self, exit: Exit) -> ErrorInfo {
        let text = match &self.doubt {
            Some(doubt) if exit == Exit::Code(1) => format!("{exit}, probably because {doubt}"),
            _ => exit.to_string(),
        };
        ErrorInfo { exit_code: exit.code(), ..ErrorInfo::text(text) }
    }

    fn note_exit(&mut self) {
        if let Verdict::Held { exited, .. } = &mut self.verdict {
            *exited = true;
        }
    }

    fn restart_interval(&self) -> Duration {
        self.inputs
            .as_ref()
            .map_or(crate::core::limiter::RESTART_INTERVAL, |i| i.rules.restart_interval)
    }

    /// Everything was removed: fresh for the next start, or failed if that was the end of a series.
    fn all_gone(&mut self) {
        self.phase = if self.give_up { Phase::Failed } else { Phase::Absent };
        self.give_up = false;
        self.next_start = StartKind::Fresh;
        self.inputs = None;
        self.left = None;
        self.running_digest.clear();
        self.restart = false;
        self.registered = false;
        self.secret = Secret::None;
        self.data = Data::Local;
        self.limiter = Default::default();
        self.early_exit = None;
        self.doubt = None;
        if self.phase == Phase::Absent {
            self.restarts = 0;
        }
    }

    /// Continues the life that the record tells of.
    pub(crate) fn resume(&mut self, record: &Record) {
        self.limiter = record.limiter;
        self.restarts = record.restarts;
        self.running_since = Duration::from_nanos(record.started_at_ns);
    }
}
