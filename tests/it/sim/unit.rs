//! One simulated unit: host, database and CM outlive the daemon, core and its queues do not.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use aos_servicemanager::core::Effect;
use aos_servicemanager::core::node_config::NodeConfigState;
use aos_servicemanager::core::state::{Policy, State};
use aos_servicemanager::jobs::{self, Ports};
use aos_servicemanager::model::command::CmCommand;
use aos_servicemanager::model::desired::*;
use aos_servicemanager::model::event::{Event, IamCommand, IamEvent, Session};
use aos_servicemanager::model::id::*;
use aos_servicemanager::model::job::{ExecJob, FetchJob};
use aos_servicemanager::model::node::NodeInfo;
use aos_servicemanager::model::status::{CmReport, InstanceStatus, RunState};
use aos_servicemanager::model::store::Snapshot;
use aos_servicemanager::ports::Now;

use super::host::{Crash, Host, next_random};
use super::rows;

pub struct Unit {
    pub host: Arc<Host>,
    pub rows: Snapshot,
    pub policy: Policy,
    pub now: Now,
    pub reports: Vec<CmReport>,
    pub iam: BTreeMap<InstanceId, String>,
    pub iam_up: bool,
    pub signals: Vec<(InstanceId, i32)>,
    pub node_config: NodeConfigState,
    /// Deadlines further away than this do not hold `settle`.
    pub patience: Duration,
    state: Option<State>,
    exec: Vec<ExecJob>,
    fetch: VecDeque<FetchJob>,
    iam_queue: VecDeque<IamCommand>,
    network_answers: usize,
    session: u64,
    random: u64,
    ports: Ports,
    secrets: u64,
}

static NEXT_ID: AtomicU64 = AtomicU64::new(1);

fn new_id() -> InstanceId {
    InstanceId::new(&format!("id-{:06}", NEXT_ID.fetch_add(1, Ordering::Relaxed)))
}

impl Unit {
    pub fn new(seed: u64) -> Self {
        let host = Arc::new(Host::default());
        host.seed(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        let ports = Ports {
            runtime: host.clone(),
            bundles: host.clone(),
            network: host.clone(),
            sinks: host.clone(),
            images: host.clone(),
        };
        let now = Now {
            mono: Duration::from_secs(1000),
            boot: Duration::from_secs(1000),
            wall_ms: 1_700_000_000_000,
        };
        Self {
            host,
            rows: Snapshot::default(),
            policy: Policy::default(),
            now,
            reports: Vec::new(),
            iam: BTreeMap::new(),
            iam_up: true,
            signals: Vec::new(),
            node_config: NodeConfigState::default(),
            patience: Duration::from_secs(60),
            state: None,
            exec: Vec::new(),
            fetch: VecDeque::new(),
            iam_queue: VecDeque::new(),
            network_answers: 0,
            session: 0,
            random: seed.wrapping_add(77) | 1,
            ports,
            secrets: 0,
        }
    }

    /// A unit whose daemon runs and is registered, with nothing installed.
    pub fn started(seed: u64) -> Self {
        let mut unit = Self::new(seed);
        unit.boot();
        unit.connect();
        unit.settle();
        unit.reports.clear();
        unit
    }

    /// The daemon starts, with what the database holds.
    pub fn boot(&mut self) {
        self.host.revive();
        self.exec.clear();
        self.fetch.clear();
        self.iam_queue.clear();
        self.network_answers = 0;
        let state = State::new(
            self.policy.clone(),
            self.rows.clone(),
            self.node_config.clone(),
            self.now.boot,
            self.now.wall_ms,
            new_id,
        );
        self.state = Some(state);
        self.turn(None);
        if self.iam_up {
            let node = NodeInfo {
                node_id: "node".into(),
                node_type: "main".into(),
                max_dmips: 1000,
                ..NodeInfo::default()
            };
            self.event(Event::Iam(IamEvent::NodeInfo(node)));
            self.event(Event::Iam(IamEvent::Up { restarted: false }));
        }
    }

    pub fn connect(&mut self) {
        self.session += 1;
        self.event(Event::CmConnected { session: Session(self.session) });
    }

    pub fn disconnect(&mut self) {
        self.event(Event::CmLost { session: Session(self.session) });
    }

    pub fn command(&mut self, command: CmCommand) {
        self.event(Event::Cm { session: Session(self.session), command });
    }

    pub fn run(&mut self, request: RunRequest) {
        self.command(CmCommand::RunInstances(request));
    }

    pub fn event(&mut self, event: Event) {
        self.turn(Some(event));
    }

    pub fn is_alive(&self) -> bool {
        self.state.is_some()
    }

    /// Does one turn of core and notes its effects. A second plan must be empty.
    fn turn(&mut self, event: Option<Event>) {
        let Some(state) = &mut self.state else { return };
        if let Some(event) = event {
            state.apply(self.now, event);
        }
        let effects = state.plan(self.now);
        let again = state.plan(self.now);
        assert!(again.is_empty(), "a second plan finds something to do: {again:?}");
        for effect in effects {
            self.perform(effect);
        }
        self.one_job_per_instance();
        if self.state.as_ref().is_some_and(State::is_drained) {
            self.state = None;
        }
    }

    fn perform(&mut self, effect: Effect) {
        match effect {
            Effect::Store(changes) => {
                changes.into_iter().for_each(|c| rows::change(&mut self.rows, c))
            }
            Effect::Exec(job) => self.exec.push(job),
            Effect::Fetch(job) => self.fetch.push_back(job),
            Effect::Networks(_) => self.network_answers += 1,
            Effect::Iam(command) => self.iam_queue.push_back(command),
            Effect::Signal { id, signal } => self.signals.push((id, signal)),
            Effect::Report(_, report) => self.reports.push(report),
            Effect::NodeConfig(_)
            | Effect::KeepNetworks(_)
            | Effect::Reconnect
            | Effect::Average(_)
            | Effect::Log(..)
            | Effect::ContainerStarted { .. }
            | Effect::ContainerEnded { .. }
            | Effect::Watch(_)
            | Effect::Unwatch(_)
            | Effect::NodeInfo(_)
            | Effect::NodeRules(_)
            | Effect::Pong => {}
        }
    }

    fn one_job_per_instance(&self) {
        let mut ids = BTreeSet::new();
        for job in &self.exec {
            let id = match job {
                ExecJob::Start(plan) => &plan.id,
                ExecJob::Stop(plan) => &plan.id,
                ExecJob::Adopt(plan) => &plan.id,
                ExecJob::Survey | ExecJob::Load(_) => continue,
            };
            assert!(ids.insert(id.clone()), "two jobs for {id}");
        }
    }

    /// Does one thing that is pending, chosen at random; false = nothing is.
    pub fn step(&mut self) -> bool {
        if self.state.is_none() {
            return false;
        }
        let mut choices: Vec<u8> = Vec::new();
        choices.extend(std::iter::repeat_n(0, self.exec.len().min(2)));
        choices.extend(std::iter::repeat_n(1, self.fetch.len().min(1)));
        choices.extend(std::iter::repeat_n(2, usize::from(self.network_answers > 0)));
        choices
            .extend(std::iter::repeat_n(3, usize::from(self.iam_up && !self.iam_queue.is_empty())));
        if choices.is_empty() {
            return false;
        }
        let pick = next_random(&mut self.random);
        match choices[usize::try_from(pick % choices.len() as u64).unwrap()] {
            0 => {
                let among = self.exec.len().min(2) as u64;
                let job = self.exec.remove(usize::try_from(pick / 7 % among).unwrap());
                let ports = self.ports.clone();
                self.job(move || jobs::exec(job, &ports));
            }
            1 => {
                let job = self.fetch.pop_front().expect("chosen because it is there");
                let ports = self.ports.clone();
                self.job(move || jobs::fetch(job, &ports));
            }
            2 => {
                self.network_answers -= 1;
                self.event(Event::NetworksUpdated { failed: Vec::new() });
            }
            _ => self.iam_answer(),
        }
        self.host_events();
        true
    }

    fn job(&mut self, job: impl FnOnce() -> aos_servicemanager::model::job::JobDone) {
        match catch_unwind(AssertUnwindSafe(job)) {
            Ok(done) => {
                self.host_events();
                self.event(Event::Done(done));
            }
            Err(payload) if payload.is::<Crash>() => self.state = None,
            Err(payload) => std::panic::resume_unwind(payload),
        }
    }

    pub fn host_events(&mut self) {
        for event in self.host.take_events() {
            self.event(event);
        }
    }

    fn iam_answer(&mut self) {
        match self.iam_queue.pop_front() {
            Some(IamCommand::Register { id, .. }) => {
                self.secrets += 1;
                let secret = format!("secret-{}", self.secrets);
                let secret = self.iam.entry(id.clone()).or_insert(secret).clone();
                self.event(Event::Iam(IamEvent::Registered {
                    id,
                    result: Ok(secret.as_str().into()),
                }));
            }
            Some(IamCommand::Unregister { id, .. }) => {
                self.iam.remove(&id);
            }
            Some(IamCommand::Stop) | None => {}
        }
    }

    /// Time passes, up to the next deadline at most `limit` away; false = there is none.
    pub fn pass(&mut self, limit: Duration) -> bool {
        let Some(at) = self.state.as_ref().and_then(State::next_deadline) else { return false };
        let wait = at.saturating_sub(self.now.mono);
        if wait > limit {
            return false;
        }
        self.advance(wait.max(Duration::from_millis(1)));
        true
    }

    pub fn advance(&mut self, time: Duration) {
        self.now.mono += time;
        self.now.boot += time;
        self.now.wall_ms += i64::try_from(time.as_millis()).unwrap();
        self.event(Event::Tick);
    }

    /// Goes on until nothing is pending and no deadline is near.
    pub fn settle(&mut self) {
        for _ in 0..100_000 {
            if !self.step() && !self.pass(self.patience) {
                return;
            }
        }
        panic!("does not settle: {:#?}", self.state);
    }

    pub fn id_of(&self, service: &str) -> InstanceId {
        let row =
            self.rows.instances.iter().find(|r| r.instance.ident.service_id.as_str() == service);
        row.expect("the instance has a row").id.clone()
    }

    /// The newest full status by service id, as `state`, `state message` or `state(code) message`.
    pub fn full_status(&self) -> BTreeMap<String, String> {
        let full = self.reports.iter().rev().find_map(|r| match r {
            CmReport::RunStatus(list) => Some(list),
            _ => None,
        });
        full.expect("a full status was sent")
            .iter()
            .map(|s| (s.ident.service_id.to_string(), text(s)))
            .collect()
    }

    /// All delta statuses in order.
    pub fn deltas(&self) -> Vec<String> {
        let deltas = self.reports.iter().filter_map(|r| match r {
            CmReport::UpdateStatus(list) => Some(list),
            _ => None,
        });
        deltas.flatten().map(|s| format!("{} {}", s.ident.service_id, text(s))).collect()
    }

    pub fn full_statuses(&self) -> usize {
        self.reports.iter().filter(|r| matches!(r, CmReport::RunStatus(_))).count()
    }
}

fn text(status: &InstanceStatus) -> String {
    let state = match status.state {
        RunState::Active => "active",
        RunState::Failed => "failed",
        RunState::Inactive => "inactive",
    };
    match &status.error {
        None => format!("{state} {}", status.service_version),
        Some(e) if e.exit_code == 0 => format!("{state} {} {}", status.service_version, e.message),
        Some(e) => format!("{state}({}) {} {}", e.exit_code, status.service_version, e.message),
    }
}

/// A request for one instance of each service, given as `(service, version)`.
pub fn request(services: &[(&str, &str)]) -> RunRequest {
    let key =
        |id: &str, version: &str| ServiceKey { id: ServiceId::new(id), version: version.into() };
    RunRequest {
        services: services
            .iter()
            .map(|(id, version)| DesiredService {
                key: key(id, version),
                provider_id: NetworkId::new("provider"),
                gid: 5000,
                source: PackageSource {
                    url: format!("file:///{id}-{version}"),
                    ..PackageSource::default()
                },
            })
            .collect(),
        instances: services.iter().map(|(id, _)| instance(id)).collect(),
        ..RunRequest::default()
    }
}

pub fn instance(service: &str) -> DesiredInstance {
    DesiredInstance {
        ident: InstanceIdent {
            service_id: ServiceId::new(service),
            subject_id: SubjectId::new("subject"),
            instance: 0,
        },
        uid: 5001,
        priority: 0,
        storage_path: "".into(),
        state_path: "".into(),
        network: InstanceNetwork::default(),
    }
}
