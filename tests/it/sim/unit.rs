//! One simulated unit: host, database and CM outlive the daemon, core and its queues do not.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use aos_servicemanager::core::node_config::NodeConfigState;
use aos_servicemanager::core::state::{Policy, State};
use aos_servicemanager::core::{Effect, NodeConfigWork};
use aos_servicemanager::jobs::{self, Ports};
use aos_servicemanager::model::command::CmCommand;
use aos_servicemanager::model::desired::*;
use aos_servicemanager::model::event::{Event, IamCommand, IamEvent, Session};
use aos_servicemanager::model::failure::Failure;
use aos_servicemanager::model::id::*;
use aos_servicemanager::model::job::{ExecJob, FetchJob, JobDone, Permissions};
use aos_servicemanager::model::node::{DeviceFault, NodeInfo};
use aos_servicemanager::model::status::{CmReport, InstanceStatus, RunState};
use aos_servicemanager::model::store::Snapshot;
use aos_servicemanager::model::traffic::TrafficRow;
use aos_servicemanager::ports::Now;

use super::host::{Crash, Host, next_random};
use super::rows;

pub struct Unit {
    pub host: Arc<Host>,
    pub rows: Snapshot,
    /// Networks that net still has although the CM lists them no more.
    pub draining: Vec<NetworkId>,
    pub policy: Policy,
    pub now: Now,
    pub reports: Vec<CmReport>,
    /// What IAM knows: secret and permissions.
    pub iam: BTreeMap<InstanceIdent, (String, Permissions)>,
    pub iam_up: bool,
    /// IAM answers registrations with an error.
    pub iam_refuses: bool,
    /// IAM is not reached for removals.
    pub iam_ignores_removals: bool,
    /// The threads net, fetch and exec get on with their work.
    pub net_up: bool,
    pub fetch_up: bool,
    pub exec_up: bool,
    /// Ends of containers reach core before the answer of the job during which they ended.
    pub exits_overtake: bool,
    /// Node configurations are not valid on this host.
    pub refuses_config: bool,
    /// Devices that this host does not have.
    pub device_faults: Vec<DeviceFault>,
    /// What the monitor watches.
    pub watched: BTreeSet<InstanceId>,
    pub signals: Vec<(InstanceId, i32)>,
    /// How often the stream to the CM was to begin anew.
    pub new_streams: u32,
    pub node_config: NodeConfigState,
    /// Deadlines further away than this do not hold `settle`.
    pub patience: Duration,
    /// The daemon dies when so many more effects have been carried out.
    pub dies_after_effects: Option<u64>,
    state: Option<State>,
    exec: Vec<ExecJob>,
    fetch: VecDeque<FetchJob>,
    iam_queue: VecDeque<IamCommand>,
    network_answers: usize,
    /// Core waits for the last values of traffic.
    collecting: bool,
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
            data: host.clone(),
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
            draining: Vec::new(),
            policy: Policy::default(),
            now,
            reports: Vec::new(),
            iam: BTreeMap::new(),
            iam_up: true,
            iam_refuses: false,
            iam_ignores_removals: false,
            net_up: true,
            fetch_up: true,
            exec_up: true,
            exits_overtake: false,
            refuses_config: false,
            device_faults: Vec::new(),
            watched: BTreeSet::new(),
            signals: Vec::new(),
            new_streams: 0,
            node_config: NodeConfigState::default(),
            patience: Duration::from_secs(60),
            dies_after_effects: None,
            state: None,
            exec: Vec::new(),
            fetch: VecDeque::new(),
            iam_queue: VecDeque::new(),
            network_answers: 0,
            collecting: false,
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
        self.collecting = false;
        self.watched.clear();
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

    /// The CM takes the node.
    pub fn connect(&mut self) {
        self.open();
        self.event(Event::CmAccepted { session: Session(self.session) });
    }

    /// A stream to a CM that has not answered yet.
    pub fn open(&mut self) {
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

    /// SIGKILL.
    pub fn kill(&mut self) {
        self.state = None;
    }

    /// An install has been handed to the fetch thread.
    pub fn is_installing(&self) -> bool {
        self.fetch.iter().any(|job| matches!(job, FetchJob::Install(_)))
    }

    /// Data of an instance are to be prepared by the fetch thread.
    pub fn prepares_data(&self) -> bool {
        self.fetch.iter().any(|job| matches!(job, FetchJob::PrepareData(_)))
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
        let mut events = Vec::new();
        for effect in effects {
            self.perform(effect, &mut events);
            if let Some(left) = &mut self.dies_after_effects {
                *left -= 1;
                if *left == 0 {
                    self.dies_after_effects = None;
                    return self.kill();
                }
            }
        }
        self.one_job_per_instance();
        for event in events {
            self.turn(Some(event));
        }
        if self.state.as_ref().is_some_and(State::is_drained) {
            self.state = None;
        }
    }

    fn perform(&mut self, effect: Effect, events: &mut Vec<Event>) {
        match effect {
            Effect::Store(changes) => {
                changes.into_iter().for_each(|c| rows::change(&mut self.rows, c))
            }
            Effect::Exec(job) => {
                self.exec.push(job);
                assert!(
                    self.exec.len() <= self.policy.max_exec_jobs,
                    "the queue of exec overflows"
                );
            }
            Effect::Fetch(job) => self.fetch.push_back(job),
            Effect::Networks(_) => self.network_answers += 1,
            Effect::Iam(command) => self.ask_iam(command),
            Effect::Signal { id, signal } => self.signals.push((id, signal)),
            Effect::Resynchronise => self.new_streams += 1,
            Effect::Report(_, report) => self.reports.push(report),
            Effect::NodeConfig(work) => events.push(self.set_config(work)),
            Effect::ValidateDevices(_) => {
                events.push(Event::DevicesValidated(self.device_faults.clone()));
            }
            Effect::Watch(target) => assert!(self.watched.insert(target.id), "watched twice"),
            Effect::Unwatch(id) => assert!(self.watched.remove(&id), "not watched"),
            Effect::ForgetTraffic(ids) => {
                let row = self.rows.instances.iter().find(|row| ids.contains(&row.id));
                assert!(row.is_none(), "its counters may be wanted again: {row:?}");
            }
            Effect::CollectTraffic => {
                assert!(!self.collecting, "asked twice");
                let kept = self.policy.keep_instances_on_exit;
                assert!(self.exec.is_empty() && (kept || self.host.running().is_empty()));
                self.collecting = true;
            }
            Effect::KeepNetworks(_)
            | Effect::Reconnect
            | Effect::Average(_)
            | Effect::Log(..)
            | Effect::ContainerStarted { .. }
            | Effect::ContainerEnded { .. }
            | Effect::ContainerGivenUp { .. }
            | Effect::NodeInfo(_)
            | Effect::NodeRules(_)
            | Effect::DiskFigures(_)
            | Effect::Linked(_)
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
                ExecJob::Survey | ExecJob::Load(_) | ExecJob::Kill(_) => continue,
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
        let (exec, fetch) = (usize::from(self.exec_up), usize::from(self.fetch_up));
        choices.extend(std::iter::repeat_n(0, exec * self.exec.len().min(2)));
        choices.extend(std::iter::repeat_n(1, fetch * self.fetch.len().min(1)));
        choices
            .extend(std::iter::repeat_n(2, usize::from(self.net_up && self.network_answers > 0)));
        choices.extend(std::iter::repeat_n(5, usize::from(self.net_up && self.collecting)));
        choices.extend(std::iter::repeat_n(4, usize::from(self.host.has_events())));
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
                self.job(move || Some(jobs::exec(job, &ports)));
            }
            1 => {
                let job = self.fetch.pop_front().expect("chosen because it is there");
                let ports = self.ports.clone();
                let is_cancelled = match &job {
                    FetchJob::Install(plan) => {
                        let key = plan.package.key();
                        let cancels =
                            |job: &FetchJob| matches!(job, FetchJob::Cancel(k) if *k == key);
                        self.fetch.iter().any(cancels)
                    }
                    _ => false,
                };
                self.job(move || jobs::fetch(job, &ports, &|| is_cancelled));
            }
            2 => {
                self.network_answers -= 1;
                let (failed, draining) = (self.host.bad_networks(), self.draining.clone());
                self.event(Event::NetworksUpdated { failed, draining });
            }
            3 => self.iam_answer(),
            5 => {
                self.collecting = false;
                let time_ms = self.now.wall_ms;
                let row = TrafficRow { chain: "AOS_SYSTEM_IN".into(), time_ms, bytes: 4711 };
                self.event(Event::Traffic { rows: vec![row], gone: vec![] });
                self.event(Event::TrafficCollected);
            }
            _ => {
                let event = self.host.next_event().expect("chosen because it is there");
                self.event(event);
            }
        }
        true
    }

    fn job(&mut self, job: impl FnOnce() -> Option<JobDone>) {
        match catch_unwind(AssertUnwindSafe(job)) {
            Ok(None) => {}
            Ok(Some(done)) => {
                if self.exits_overtake {
                    self.host_events();
                }
                self.event(Event::Done(done));
            }
            Err(payload) if payload.is::<Crash>() => self.state = None,
            Err(payload) => std::panic::resume_unwind(payload),
        }
    }

    pub fn host_events(&mut self) {
        while let Some(event) = self.host.next_event() {
            self.event(event);
        }
    }

    /// As the iam thread does: the newest wish for an instance replaces an older registration.
    fn ask_iam(&mut self, command: IamCommand) {
        let (IamCommand::Register { id: of, .. } | IamCommand::Unregister { id: of, .. }) =
            &command
        else {
            return;
        };
        self.iam_queue.retain(|c| !matches!(c, IamCommand::Register { id, .. } if id == of));
        self.iam_queue.push_back(command);
    }

    /// A registration that exists keeps its secret and its permissions.
    fn iam_answer(&mut self) {
        match self.iam_queue.pop_front() {
            Some(IamCommand::Register { id, ask, ident, permissions }) => {
                self.secrets += 1;
                let new = (format!("secret-{}", self.secrets), (*permissions).clone());
                let result = if self.iam_refuses {
                    Err(Failure::text("refused"))
                } else {
                    Ok(self.iam.entry(ident).or_insert(new).0.as_str().into())
                };
                self.event(Event::Iam(IamEvent::Registered { id, ask, result }));
            }
            Some(IamCommand::Unregister { ident, ask, .. }) => {
                let done = !self.iam_ignores_removals;
                if done {
                    self.iam.remove(&ident);
                }
                self.event(Event::Iam(IamEvent::Unregistered { ask, done }));
            }
            Some(IamCommand::Stop) | None => {}
        }
    }

    fn set_config(&mut self, work: NodeConfigWork) -> Event {
        let refused = self.refuses_config || !self.device_faults.is_empty();
        if work.store && !refused {
            self.node_config.version.clone_from(&work.config.version);
            self.node_config.config = Arc::new(work.config);
        }
        let result = if refused { Err(Failure::text("not valid")) } else { Ok(()) };
        let faults = self.device_faults.clone();
        Event::NodeConfigStored { session: work.session, faults, result }
    }

    /// Every running instance is watched and has the secret and the permissions that IAM knows.
    pub fn check_running(&self) {
        let running: BTreeSet<InstanceId> = self.host.running().into_keys().collect();
        assert_eq!(running, self.watched, "the monitor watches what runs");
        for row in self.rows.instances.iter().filter(|row| running.contains(&row.id)) {
            let ident = &row.instance.ident;
            let wanted = self.host.config(ident.service_id.as_str()).service.permissions;
            let told = self.iam.get(ident);
            assert_eq!(self.host.secret_of(&row.id).as_ref(), told.map(|t| &t.0), "{ident}");
            assert_eq!(wanted.as_ref(), told.map(|t| &t.1), "{ident}");
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
