//! Compares what is wanted with what is and decides what to do next.
//!
//! Idempotent: everything decided is marked in the state (a phase, a flag, a counter), so that a
//! second call finds nothing to do. The rows to store come first in the list of effects.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::core::data::Data;
use crate::core::instance::{Goal, Inputs, Instance, Phase, Secret, Verdict};
use crate::core::limiter;
use crate::core::package::{Image, Removal};
use crate::core::state::{LastTraffic, ONLINE_STORE_PERIOD, StartVerdict, State, Survey, Sweep};
use crate::core::{Effect, MonitorTarget, stop_signal};
use crate::model::id::{InstanceId, PackageKey, ServiceKey};
use crate::model::job::{
    AdoptPlan, ExecJob, FetchJob, LimiterState, Record, StartKind, StartPlan, StopPlan, StopScope,
};
use crate::model::service::ServiceImage;
use crate::model::status::ErrorInfo;
use crate::model::store::Change;
use crate::ports::Now;

/// While offline, the offline time is written so often.
const OFFLINE_STORE_PERIOD: Duration = Duration::from_secs(600);
/// A held verdict is given after so many start intervals, or after `MAX_HOLD` (R3).
const HOLD_INTERVALS: u32 = 3;
/// See `HOLD_INTERVALS`.
const MAX_HOLD: Duration = Duration::from_secs(30);
/// A stop waits no longer for the last values of traffic; their reading takes milliseconds.
const LAST_TRAFFIC_LIMIT: Duration = Duration::from_secs(5);

impl State {
    /// Everything to be done now. Also sets the next deadline.
    pub fn plan(&mut self, now: Now) -> Vec<Effect> {
        self.deadline = None;
        let mut effects = Vec::new();
        self.plan_host(&mut effects);
        self.plan_times(now);
        if self.reads_left && self.exec_jobs < self.policy.max_exec_jobs {
            self.reads_left = false;
            self.stale_goals = true;
        }
        if self.stale_goals {
            self.offline_deadline = None;
            self.online_matters = false;
            self.work_out_goals(now, &mut effects);
        }
        if self.renew_damaged() {
            self.work_out_goals(now, &mut effects);
        }
        if let Some(at) = self.offline_deadline {
            self.wake(now.mono + at.saturating_sub(now.boot));
        }
        self.plan_networks(&mut effects);
        self.plan_instances(now, &mut effects);
        self.plan_data(now, &mut effects);
        if self.reconsider_room() {
            self.work_out_goals(now, &mut effects);
        }
        self.plan_packages(now, &mut effects);
        self.plan_reports(now, &mut effects);
        self.plan_alert_position(now);
        self.plan_last_traffic(now, &mut effects);
        if !self.changes.is_empty() {
            effects.insert(0, Effect::Store(std::mem::take(&mut self.changes)));
        }
        effects
    }

    /// The first jobs after a start, and messages that need no decision.
    fn plan_host(&mut self, effects: &mut Vec<Effect>) {
        if self.survey == Survey::Due {
            self.survey = Survey::Running;
            self.exec_jobs += 1;
            effects.push(Effect::Exec(ExecJob::Survey));
            effects.push(self.tidy());
        }
        if std::mem::take(&mut self.pong_due) {
            effects.push(Effect::Pong);
        }
        if std::mem::take(&mut self.reconnect_due) {
            effects.push(Effect::Reconnect);
        }
        if std::mem::take(&mut self.resynchronise_due) {
            effects.push(Effect::Resynchronise);
        }
        if std::mem::take(&mut self.node_info_due)
            && let Some(node) = &self.node
        {
            effects.push(Effect::NodeInfo(node.clone()));
        }
        if std::mem::take(&mut self.node_rules_due) {
            effects.push(Effect::NodeRules(self.node_config.config.alert_rules.clone()));
        }
        if std::mem::take(&mut self.validation_due) {
            effects.push(Effect::ValidateDevices(self.node_config.config.clone()));
        }
        if let Some(figures) = self.disks_answered.take() {
            effects.push(Effect::DiskFigures(figures));
        }
        if let Some(paths) = self.disks_asked.take().filter(|_| !self.stopping) {
            effects.push(Effect::Fetch(FetchJob::LookAtDisks(paths)));
        }
        let linked = self.cm.session.is_some();
        if std::mem::replace(&mut self.link_told, linked) != linked {
            effects.push(Effect::Linked(linked));
        }
        effects.append(&mut self.lives);
    }

    /// Variables that expire, offline time that passes.
    fn plan_times(&mut self, now: Now) {
        if self.overrides.expire(now.wall_ms) {
            self.changes.push(Change::SetEnvOverrides(self.overrides.list().to_vec()));
            self.stale_goals = true;
        }
        if let Some(at_ms) = self.overrides.next_expiry() {
            self.wake_at_wall(now, at_ms.saturating_add(1));
        }
        if self.offline_deadline.is_some_and(|at| now.boot >= at) {
            self.store_offline(now);
            self.stale_goals = true;
        }
        self.plan_contact(now);
        let mut next = None;
        if self.packages.note_time(now.mono, &mut next) {
            self.stale_goals = true;
        }
        if let Some(at) = next {
            self.wake(at);
        }
        if let Some(by) = self.stop_by.filter(|_| !self.overdue) {
            self.overdue = now.mono >= by;
            self.wake(by);
        }
    }

    /// After everything else of a stop: what was counted until now is to be stored.
    fn plan_last_traffic(&mut self, now: Now, effects: &mut Vec<Effect>) {
        if self.last_traffic != LastTraffic::Unasked || !self.is_quiet() {
            return;
        }
        self.last_traffic = LastTraffic::Asked;
        effects.push(Effect::CollectTraffic);
        let by = now.mono + LAST_TRAFFIC_LIMIT;
        self.stop_by = self.stop_by.map(|at| at.min(by));
        self.wake(by);
    }

    /// Writes how long the cloud has been away, or that it is there, now and then.
    fn plan_contact(&mut self, now: Now) {
        let period = match (self.cloud.online, self.offline_deadline) {
            (true, _) if self.online_matters => ONLINE_STORE_PERIOD,
            (false, Some(_)) => OFFLINE_STORE_PERIOD,
            _ => return,
        };
        if now.boot >= self.cloud.stored_at + period {
            self.store_offline(now);
        }
        let due = self.cloud.stored_at + period;
        self.wake(now.mono + due.saturating_sub(now.boot));
    }

    fn tidy(&self) -> Effect {
        let (known, keep) = (self.packages.paths(), self.packages.keep());
        Effect::Fetch(FetchJob::Tidy { known, keep })
    }

    /// Damaged packages are fetched anew as soon as nothing runs on them.
    fn renew_damaged(&mut self) -> bool {
        if self.stopping || !self.tidied || !self.packages.has_damaged() {
            return false;
        }
        let in_use = self.packages_in_use();
        self.packages.renew_damaged(&in_use, &mut self.changes)
    }

    /// Packages that did not fit may fit now.
    fn reconsider_room(&mut self) -> bool {
        if self.stopping || !self.tidied {
            return false;
        }
        let in_use = self.packages_in_use();
        self.packages.reconsider(&in_use)
    }

    fn wake_at_wall(&mut self, now: Now, at_ms: i64) {
        let wait = u64::try_from(at_ms.saturating_sub(now.wall_ms)).unwrap_or(0);
        self.wake(now.mono + Duration::from_millis(wait));
    }

    fn plan_networks(&mut self, effects: &mut Vec<Effect>) {
        if std::mem::take(&mut self.networks_due) {
            self.networks_unanswered += 1;
            effects.push(Effect::Networks(self.networks.clone()));
        }
    }

    /// Before the first start: net drops what belongs to no instance that is still there.
    fn plan_kept_networks(&mut self, effects: &mut Vec<Effect>) {
        let undecided = |i: &Instance| matches!(i.phase, Phase::Found(_) | Phase::Adopting);
        let adopted = self.survey == Survey::Done && !self.instances.values().any(undecided);
        let decided = adopted && self.nameless.is_empty() && self.leftovers_tried();
        if decided && !self.networks_kept && !self.stopping {
            self.networks_kept = true;
            let present = self.instances.values().filter(|i| i.is_present());
            effects.push(Effect::KeepNetworks(present.map(|i| i.id.clone()).collect()));
        }
    }

    fn plan_packages(&mut self, now: Now, effects: &mut Vec<Effect>) {
        if self.stopping || !self.tidied {
            return;
        }
        if let Some(key) = self.packages.take_cancelled() {
            effects.push(Effect::Fetch(FetchJob::Cancel(key)));
        }
        // What goes with its instances may still be in use.
        if self.survey == Survey::Done && self.leftovers_tried() && self.packages.take_tidy_due() {
            effects.push(self.tidy());
        }
        let in_use = self.packages_in_use();
        if let Some(path) = self.packages.next_discard(&in_use) {
            effects.push(Effect::Fetch(FetchJob::Discard { path }));
        }
        if let Some(plan) = self.packages.next_install(&in_use, now.mono, &mut self.changes) {
            effects.push(Effect::Fetch(FetchJob::Install(Box::new(plan))));
            return;
        }
        if let Some(at) = self.packages.next_retry() {
            self.wake(at);
        }
        let (service_ttl, layer_ttl) = (self.policy.service_ttl, self.policy.layer_ttl);
        match self.packages.next_removal(&in_use, service_ttl, layer_ttl, now.wall_ms) {
            Removal::Now(evictable) => {
                let (key, path) = (evictable.key, evictable.path);
                effects.push(Effect::Fetch(FetchJob::Remove { key, path }));
            }
            Removal::At(at_ms) => self.wake_at_wall(now, at_ms),
            Removal::None => {}
        }
        let mut next = None;
        if let Some(row) = self.packages.next_check(now.mono, &mut next) {
            effects.push(Effect::Fetch(FetchJob::Check(Box::new(row))));
        }
        if let Some(at) = next {
            self.wake(at);
        }
    }

    /// What a running, starting or wanted instance is made from; never evicted.
    fn packages_in_use(&self) -> BTreeSet<PackageKey> {
        if self.survey != Survey::Done {
            // Nobody knows yet what runs.
            return self.packages.keys();
        }
        let mut used = BTreeSet::new();
        let mut add = |key: &ServiceKey, image: &ServiceImage| {
            used.insert(PackageKey::Service(key.clone()));
            used.extend(image.layers.iter().cloned().map(PackageKey::Layer));
        };
        for instance in self.instances.values() {
            let wanted = match &instance.goal {
                Goal::Run(inputs) => Some(inputs),
                _ => None,
            };
            for inputs in wanted.into_iter().chain(&instance.inputs) {
                add(&inputs.service.key, &inputs.image);
            }
        }
        let left = self.instances.values().filter_map(|i| i.left.as_ref());
        for key in left.chain(self.orphans.values().filter_map(|o| o.service.as_ref())) {
            match self.packages.installed_service(key).map(|s| &s.image) {
                Some(Image::Read(image)) => add(key, image),
                // Its layers are not known.
                Some(_) => return self.packages.keys(),
                None => add(key, &ServiceImage::default()),
            }
        }
        used
    }

    fn plan_instances(&mut self, now: Now, effects: &mut Vec<Effect>) {
        let order = self.by_priority();
        self.plan_sweep(effects);
        for id in &order {
            self.plan_leaving(now, id, effects);
        }
        self.plan_orphans(now, effects);
        self.plan_kept_networks(effects);
        self.plan_removals(effects);
        self.plan_forgetting(effects);
        let clear = self.leftovers_tried() && !self.instances.values().any(Instance::is_in_the_way);
        for id in &order {
            self.plan_starting(now, id, clear, effects);
            self.plan_secret(now, id, effects);
        }
        self.unwatch_ended(effects);
    }

    fn plan_forgetting(&mut self, effects: &mut Vec<Effect>) {
        let stays = |i: &Instance| i.wanted || i.is_present() || i.failed_removals > 0;
        let gone = self.instances.values().filter(|i| !stays(i));
        let gone: Vec<InstanceId> = gone.map(|i| i.id.clone()).collect();
        if !gone.is_empty() {
            self.instances.retain(|_, i| stays(i));
            effects.push(Effect::ForgetTraffic(gone));
        }
    }

    fn unwatch_ended(&mut self, effects: &mut Vec<Effect>) {
        for instance in self.instances.values_mut() {
            let running = matches!(instance.phase, Phase::Running | Phase::Grace(_));
            if running && !instance.monitored && instance.phase == Phase::Running {
                instance.monitored = true;
                effects.push(Effect::Watch(instance.monitor_target()));
            }
            if !running && instance.monitored {
                instance.monitored = false;
                effects.push(Effect::Unwatch(instance.id.clone()));
            }
        }
    }

    fn plan_sweep(&mut self, effects: &mut Vec<Effect>) {
        if let Sweep::Due(ids) = &mut self.sweep
            && self.exec_jobs < self.policy.max_exec_jobs
            && !(self.stopping && self.policy.keep_instances_on_exit)
        {
            let ids = std::mem::take(ids);
            self.sweep = Sweep::Running;
            self.exec_jobs += 1;
            effects.push(Effect::Exec(ExecJob::Kill(ids)));
        }
    }

    fn plan_orphans(&mut self, now: Now, effects: &mut Vec<Effect>) {
        if self.leaves_all_running() || self.sweep != Sweep::Done {
            return;
        }
        let mut next = None;
        for (id, orphan) in self.orphans.iter_mut().filter(|(_, o)| !o.removing) {
            if now.mono < orphan.after {
                next = Some(next.map_or(orphan.after, |n: Duration| n.min(orphan.after)));
            } else if self.exec_jobs < self.policy.max_exec_jobs {
                orphan.removing = true;
                self.exec_jobs += 1;
                log::info!("remove leftover instance={id}");
                effects.push(Effect::Exec(stop_job(id, StopScope::Everything)));
            }
        }
        if let Some(at) = next {
            self.wake(at);
        }
    }

    /// The daemon ends and the instances go on: nothing is begun any more.
    fn leaves_all_running(&self) -> bool {
        self.stopping && self.policy.keep_instances_on_exit
    }

    /// Leftovers are removed before anything starts, once.
    fn leftovers_tried(&self) -> bool {
        self.orphans.values().all(|orphan| orphan.failed_removals > 0)
    }

    /// Stops, clean-ups, adoption and verdicts: everything but starts.
    fn plan_leaving(&mut self, now: Now, id: &InstanceId, effects: &mut Vec<Effect>) {
        let room = self.exec_jobs < self.policy.max_exec_jobs;
        if self.leaves_all_running() {
            return;
        }
        let Some(instance) = self.instances.get_mut(id) else { return };
        let unfit = instance.is_unfit();
        match instance.phase.clone() {
            Phase::Found(record) if room => self.plan_found(id, &record, effects),
            Phase::Running if unfit => self.begin_stop(now, id, effects),
            Phase::Running => self.plan_verdict(now, id),
            Phase::Grace(until) if now.mono < until => self.wake(until),
            Phase::Grace(_) if room && self.sweep == Sweep::Done => {
                self.stop_everything(id, effects);
            }
            Phase::Dead if room => {
                let scope = if unfit { StopScope::Everything } else { StopScope::Container };
                instance.phase = if unfit { Phase::Stopping } else { Phase::Cleaning };
                self.exec_jobs += 1;
                effects.push(Effect::Exec(stop_job(id, scope)));
            }
            Phase::Pausing(_) if unfit && room => self.stop_everything(id, effects),
            Phase::Pausing(_) | Phase::Dead | Phase::Cleaning => self.plan_verdict(now, id),
            Phase::Absent | Phase::Failed
                if room && !instance.wanted && instance.failed_removals > 0 =>
            {
                self.stop_everything(id, effects);
            }
            Phase::Residue(until) if now.mono < until => self.wake(until),
            Phase::Residue(_) if room => self.stop_everything(id, effects),
            Phase::Failed if instance.retry && matches!(instance.goal, Goal::Run(_)) => {
                instance.phase = Phase::Absent;
            }
            _ => {}
        }
    }

    /// What an earlier life left is adopted if it is what is wanted, or if it can run on until that
    /// is there; otherwise it goes.
    fn plan_found(&mut self, id: &InstanceId, record: &Record, effects: &mut Vec<Effect>) {
        let Some(instance) = self.instances.get(id) else { return };
        let goal = if instance.goal.keeps() { &instance.stay } else { &instance.goal };
        match goal {
            Goal::Run(inputs) if inputs.digest == record.inputs_digest => {
                let inputs = inputs.clone();
                self.adopt(id, record, inputs, effects);
            }
            Goal::Wait => {}
            _ => self.stop_everything(id, effects),
        }
    }

    fn stop_everything(&mut self, id: &InstanceId, effects: &mut Vec<Effect>) {
        let Some(instance) = self.instances.get_mut(id) else { return };
        instance.phase = Phase::Stopping;
        self.exec_jobs += 1;
        effects.push(Effect::Exec(stop_job(id, StopScope::Everything)));
    }

    /// An image that declares a stop signal gets it and time to react (D5).
    fn begin_stop(&mut self, now: Now, id: &InstanceId, effects: &mut Vec<Effect>) {
        let room = self.exec_jobs < self.policy.max_exec_jobs;
        let stop_timeout = self.policy.stop_timeout;
        let Some(instance) = self.instances.get_mut(id) else { return };
        let image = instance.inputs.as_ref().map(|inputs| &inputs.image.image);
        let signal = image.and_then(|image| stop_signal::number(&image.stop_signal));
        match signal.filter(|_| !stop_timeout.is_zero()) {
            Some(signal) => {
                instance.fault = None;
                let until = now.mono + stop_timeout;
                instance.phase = Phase::Grace(until);
                effects.push(Effect::Signal { id: id.clone(), signal });
                self.wake(until);
            }
            None if room => {
                instance.fault = None;
                self.stop_everything(id, effects);
            }
            None => {}
        }
    }

    fn adopt(
        &mut self,
        id: &InstanceId,
        record: &Record,
        inputs: crate::core::SharedInputs,
        effects: &mut Vec<Effect>,
    ) {
        let Some(instance) = self.instances.get_mut(id) else { return };
        instance.phase = Phase::Adopting;
        instance.resume(record);
        let permissions = inputs.image.service.permissions.clone().map(std::sync::Arc::new);
        instance.resume_secret(record, permissions);
        instance.running_digest = inputs.digest.clone();
        instance.inputs = Some(inputs.clone());
        let plan = instance.start_plan(&inputs, StartKind::Fresh, 0);
        let plan = AdoptPlan { id: id.clone(), record: record.clone(), plan };
        self.exec_jobs += 1;
        effects.push(Effect::Exec(ExecJob::Adopt(Box::new(plan))));
    }

    /// Gives a held verdict when its time has come, and remembers a version that stays up.
    fn plan_verdict(&mut self, now: Now, id: &InstanceId) {
        let reference = self.policy.start_verdict == StartVerdict::Reference;
        let Some(instance) = self.instances.get_mut(id) else { return };
        let Some(inputs) = instance.inputs.clone() else { return };
        let running = instance.phase == Phase::Running;
        let interval = inputs.rules.start_interval;
        let stable_at = instance.running_since + interval;
        let stable = running && now.mono >= stable_at;
        let hold = if reference {
            interval + interval / 5
        } else {
            (interval * HOLD_INTERVALS).min(MAX_HOLD)
        };
        match instance.verdict {
            Verdict::Held { since, .. } if reference && now.mono >= since + hold => {
                instance.verdict = if running { Verdict::Given } else { Verdict::TooOften };
            }
            Verdict::Held { .. } if stable && !reference => instance.verdict = Verdict::Given,
            Verdict::Held { since, exited } if !reference && now.mono >= since + hold => {
                instance.verdict = if exited { Verdict::TooOften } else { Verdict::Given };
            }
            Verdict::TooOften if stable => instance.verdict = Verdict::Given,
            _ => {}
        }
        let instance_verdict = instance.verdict;
        let held_until = match instance_verdict {
            Verdict::Held { since, .. } => Some(since + hold),
            _ => None,
        };
        let unproved = !self.packages.is_confirmed(&inputs.service.key);
        if stable && unproved {
            self.packages.confirm(&inputs.service.key, &mut self.changes);
        }
        let failed_until_stable = instance_verdict == Verdict::TooOften;
        if running && !stable && (unproved || held_until.is_some() || failed_until_stable) {
            self.wake(stable_at);
        }
        if let Some(at) = held_until {
            self.wake(at);
        }
    }

    /// Starts what is to start, as far as everything it needs is there.
    fn plan_starting(&mut self, now: Now, id: &InstanceId, clear: bool, effects: &mut Vec<Effect>) {
        if self.stopping
            || self.survey != Survey::Done
            || self.exec_jobs >= self.policy.max_exec_jobs
        {
            return;
        }
        let Some(instance) = self.instances.get(id) else { return };
        let inputs = match &instance.goal {
            Goal::Run(inputs) => inputs.clone(),
            // The old version is kept alive until the new one is there.
            goal if goal.keeps() && instance.next_start == StartKind::Again => {
                let Some(inputs) = &instance.inputs else { return };
                inputs.clone()
            }
            _ => return,
        };
        match instance.phase {
            Phase::Absent => {}
            Phase::Pausing(until) if now.mono >= until => {}
            Phase::Pausing(until) => return self.wake(until),
            _ => return,
        }
        if instance.next_start == StartKind::Fresh && !(clear && self.may_start_fresh(id, &inputs))
        {
            return;
        }
        self.start(now, id, inputs, effects);
    }

    /// Networks before instances, secret and data before container. (Stops and leftovers before starts is
    /// what `clear` tells.)
    fn may_start_fresh(&self, id: &InstanceId, inputs: &Inputs) -> bool {
        let Some(instance) = self.instances.get(id) else { return false };
        let needs_secret = inputs.image.service.permissions.is_some();
        self.networks_unanswered == 0
            && !self.networks_due
            && !matches!(instance.data, Data::Waiting { .. })
            && (!needs_secret || matches!(instance.secret, Secret::Known(_)))
    }

    fn start(
        &mut self,
        now: Now,
        id: &InstanceId,
        inputs: crate::core::SharedInputs,
        effects: &mut Vec<Effect>,
    ) {
        let immediate = match self.policy.start_verdict {
            StartVerdict::Immediate => true,
            StartVerdict::ConfirmNew => self.packages.is_confirmed(&inputs.service.key),
            StartVerdict::Reference => false,
        };
        let Some(instance) = self.instances.get_mut(id) else { return };
        let first = instance.phase == Phase::Absent;
        if first {
            instance.limiter = LimiterState::default();
            instance.restarts = 0;
            instance.fault = None;
            instance.verdict = if immediate {
                Verdict::Given
            } else {
                Verdict::Held { since: now.mono, exited: false }
            };
        }
        if !limiter::allow(&mut instance.limiter, &inputs.rules, now.mono) {
            return self.give_up(id, &inputs, effects);
        }
        instance.retry = false;
        instance.registered &= inputs.image.service.permissions.is_some();
        instance.restarts += u64::from(!first);
        let kind = instance.next_start;
        let started_at = u64::try_from(now.mono.as_nanos()).unwrap_or(u64::MAX);
        let plan = instance.start_plan(&inputs, kind, started_at);
        instance.running_digest = inputs.digest.clone();
        instance.inputs = Some(inputs);
        instance.next_start = StartKind::Again;
        instance.phase = Phase::Starting(kind);
        self.exec_jobs += 1;
        effects.push(Effect::Exec(ExecJob::Start(Box::new(plan))));
    }

    /// The start limit: no further attempt until the next request.
    fn give_up(&mut self, id: &InstanceId, inputs: &Inputs, effects: &mut Vec<Effect>) {
        let Some(instance) = self.instances.get_mut(id) else { return };
        let last = instance.fault.take().unwrap_or_default();
        let rules = &inputs.rules;
        let message = format!(
            "start limit reached ({} starts in {:?}): {}",
            rules.start_burst, rules.start_interval, last.message
        );
        log::error!("gives up instance={id} ident={} err={message}", instance.desired.ident);
        instance.fault = Some(ErrorInfo { message, ..last });
        instance.verdict = Verdict::Given;
        instance.retry = false;
        instance.give_up = true;
        effects.push(Effect::ContainerGivenUp { id: id.clone() });
        self.stop_everything(id, effects);
    }
}

impl Instance {
    pub(crate) fn start_plan(
        &self,
        inputs: &Inputs,
        kind: StartKind,
        started_at_ns: u64,
    ) -> StartPlan {
        let secret = match &self.secret {
            Secret::Known(secret) => Some(secret.clone()),
            _ => None,
        };
        let record = Record {
            ident: self.desired.ident.clone(),
            service_version: inputs.service.key.version.clone(),
            inputs_digest: inputs.digest.clone(),
            overrides: inputs.overrides.clone(),
            secret_hash: self.secret.in_use_hash(),
            pid: 0,
            start_time: 0,
            limiter: self.limiter,
            restarts: self.restarts,
            started_at_ns,
        };
        StartPlan {
            id: self.id.clone(),
            instance: self.desired.clone(),
            service: inputs.service.clone(),
            image: inputs.image.clone(),
            layers: inputs.layers.clone(),
            secret,
            overrides: inputs.overrides.clone(),
            devices: inputs.devices.clone(),
            resources: inputs.resources.clone(),
            max_dmips: inputs.max_dmips,
            kind,
            data_ready: self.data == Data::Ready,
            record,
        }
    }

    fn monitor_target(&self) -> MonitorTarget {
        let inputs = self.inputs.as_ref();
        MonitorTarget {
            id: self.id.clone(),
            ident: self.desired.ident.clone(),
            uid: self.desired.uid,
            service_version: inputs.map_or_else(|| "".into(), |i| i.service.key.version.clone()),
            storage_path: self.desired.storage_path.clone(),
            state_path: self.desired.state_path.clone(),
            alert_rules: inputs.map(|i| i.image.service.alert_rules.clone()).unwrap_or_default(),
        }
    }
}

fn stop_job(id: &InstanceId, scope: StopScope) -> ExecJob {
    ExecJob::Stop(StopPlan { id: id.clone(), scope })
}
