//! Executes commands against the unit, keeps what the service manager has reported, and prints
//! everything that happens.
//!
//! Runs on the main thread. What the servers and the input threads have to say comes through one
//! channel, so that between two lines of the output nothing changes.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs;
use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use aos_servicemanager::cm::wire::v4::servicemanager as wire;
use grpcio::RpcStatusCode;
use protobuf::well_known_types::timestamp::Timestamp;
use wire::smincoming_messages::SMIncomingMessage as In;
use wire::smoutgoing_messages::SMOutgoingMessage as Out;

use crate::print::Printer;
use crate::unit::catalog::selected;
use crate::unit::cm::{Admission, CmEvent};
use crate::unit::files::Fault;
use crate::unit::iam::IamEvent;
use crate::unit::render::{self, Text};
use crate::unit::script::{
    self, Command, Condition, Config, Env, FileFault, Link, LogKind, Logs, Selector, Switch,
};
use crate::unit::table;
use crate::unit::world::{Event, World};

/// Printed lines that `wait text` can still find.
const MAX_RECENT_LINES: usize = 10_000;

/// What arrives on the main thread.
#[derive(Debug)]
pub(crate) enum Input {
    Unit(Event),
    Line(String),
    /// No more lines will come.
    End,
}

/// Why the session ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Verdict {
    Good,
    /// A command or a wait has failed.
    Failed,
}

/// How the session treats its commands.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Manners {
    /// Go on after a command that failed.
    pub(crate) keep_going: bool,
    /// Do not print regular monitoring.
    pub(crate) quiet: bool,
}

type Ident = (String, String, u64);

#[derive(Clone, PartialEq, Eq, Debug)]
struct Status {
    version: String,
    state: String,
    text: String,
}

/// What the service manager has said so far.
#[derive(Debug, Default)]
struct Known {
    /// Number of the stream, while there is one.
    link: Option<u64>,
    /// The first message of the stream is there.
    registered: bool,
    /// A full status came since the stream began.
    reported: bool,
    /// A full status came since the stream began and since the last desired state was sent.
    fresh: bool,
    statuses: BTreeMap<Ident, Status>,
    /// Instances that were reported as failed since somebody last looked.
    failed: BTreeSet<Ident>,
    owed: Owed,
    /// Printed lines since the last successful `wait text`.
    recent: VecDeque<String>,
}

/// Answers that are still to come.
#[derive(Debug, Default)]
struct Owed {
    config: u32,
    stats: u32,
    env: u32,
    logs: BTreeSet<String>,
}

pub(crate) struct Session {
    unit: World,
    input: Receiver<Input>,
    printer: Printer,
    manners: Manners,
    known: Known,
    lines: VecDeque<String>,
    /// Whether lines may still come.
    open: bool,
    overrides: Vec<wire::OverrideInstanceEnvVar>,
    logs_asked: u64,
    /// Regular monitoring is shown as a table.
    table: bool,
    failures: u32,
}

impl Session {
    pub(crate) fn new(
        unit: World,
        input: Receiver<Input>,
        lines: VecDeque<String>,
        printer: Printer,
        manners: Manners,
    ) -> Self {
        Self {
            unit,
            input,
            printer,
            manners,
            known: Known::default(),
            lines,
            open: true,
            overrides: Vec::new(),
            logs_asked: 0,
            table: false,
            failures: 0,
        }
    }

    /// Executes commands until they end.
    pub(crate) fn run(mut self) -> Verdict {
        loop {
            while let Ok(input) = self.input.try_recv() {
                self.take(input);
            }
            let Some(line) = self.lines.pop_front() else {
                if !self.open {
                    break;
                }
                match self.input.recv() {
                    Ok(input) => self.take(input),
                    Err(_) => break,
                }
                continue;
            };
            let begun = Instant::now();
            match script::parse(&line) {
                Ok(None) => {}
                Ok(Some(Command::Quit)) => break,
                Ok(Some(command)) => {
                    let result = self.execute(command);
                    self.report(&line, begun.elapsed(), result);
                }
                Err(e) => self.report(&line, begun.elapsed(), Err(e.to_string())),
            }
            if self.failures > 0 && !self.manners.keep_going {
                break;
            }
        }
        if self.failures == 0 { Verdict::Good } else { Verdict::Failed }
    }

    fn report(&mut self, line: &str, took: Duration, result: Result<(), String>) {
        let line = line.trim();
        match result {
            Ok(()) => {
                self.printer.line("ok", &format!("{line} ({:.3} s)", took.as_secs_f64()));
            }
            Err(why) => {
                self.failures += 1;
                self.printer.line("FAILED", &format!("{line}: {why}"));
            }
        }
    }

    fn execute(&mut self, command: Command) -> Result<(), String> {
        match command {
            Command::Layer(layer) => {
                let line = self.unit.catalog.add_layer(&layer).map_err(chain)?;
                self.printer.line("unit", &format!("layer {line}"));
            }
            Command::Service(service) => {
                let line = self.unit.catalog.add_service(&service).map_err(chain)?;
                self.printer.line("unit", &format!("service {line}"));
            }
            Command::Instance(instance) => {
                for line in self.unit.catalog.add_instances(&instance).map_err(chain)? {
                    self.printer.line("unit", &format!("instance {line}"));
                }
            }
            Command::Network(network) => self.unit.catalog.add_network(&network),
            Command::Clear => self.unit.catalog.clear(),
            Command::Run { force } => self.send_desired(force)?,
            Command::Stop(selectors) => {
                if self.unit.catalog.remove_instances(&selectors) == 0 && !selectors.is_empty() {
                    return Err("no wanted instance is meant".to_owned());
                }
                self.send_desired(false)?;
            }
            Command::Status => self.show_status(),
            Command::Logs(logs) => self.ask_logs(&logs)?,
            Command::Stats => {
                self.send(In::GetAverageMonitoring(wire::GetAverageMonitoring::new()))?;
                self.known.owed.stats += 1;
            }
            Command::Monitor(time) => self.monitor(time),
            Command::Config(config) => self.config(config)?,
            Command::Env(env) => self.override_env(env)?,
            Command::Link(link) => self.link(link)?,
            Command::Iam(Switch::Up) => self.unit.iam.up().map_err(chain)?,
            Command::Iam(Switch::Down) => self.unit.iam.down(),
            Command::Cloud(switch) => {
                // It counts for later registrations also when nobody is there now.
                let _ = self.unit.cm.set_cloud(switch == Switch::Up);
            }
            Command::RenewCert => {
                let identity = self.unit.renew_cert().map_err(chain)?;
                self.printer.line("unit", &format!("certificate {}", identity.cert.display()));
            }
            Command::UseCert { cert_url, key_url } => self.unit.iam.set_cert(cert_url, key_url),
            Command::Fault { path, fault } => self.fault(&path, fault)?,
            Command::Raw(bytes) => self.unit.cm.send_bytes(bytes).map_err(chain)?,
            Command::Wait { condition, limit } => self.wait(&condition, limit)?,
            Command::Sleep(time) => self.sleep(time),
            Command::Echo(text) => self.printer.line("echo", &text),
            Command::Help => self.printer.text(crate::HELP),
            Command::Quit => {}
        }
        Ok(())
    }

    fn send(&mut self, message: In) -> Result<(), String> {
        let text = render::incoming(&message);
        self.unit.cm.send(message).map_err(chain)?;
        self.print("-> sm", &text);
        Ok(())
    }

    fn send_desired(&mut self, force: bool) -> Result<(), String> {
        self.send(In::UpdateNetworks(self.unit.catalog.update_networks()))?;
        self.known.fresh = false;
        self.known.failed.clear();
        self.send(In::RunInstances(self.unit.catalog.run_instances(force)))
    }

    fn show_status(&mut self) {
        let link = match (self.known.link, self.known.registered) {
            (None, _) => "not connected".to_owned(),
            (Some(link), false) => format!("stream {link}, not registered"),
            (Some(link), true) => format!("registered, stream {link}"),
        };
        let age = if self.known.fresh { "" } else { " (older than the last change)" };
        self.printer.line("unit", &format!("service manager {link}{age}"));
        for (ident, status) in &self.known.statuses {
            self.printer.detail(&format!("{} {}", show(ident), status.text));
        }
        for instance in self.unit.catalog.wanted() {
            let ident = (instance.service.clone(), instance.subject.clone(), instance.index);
            if !self.known.statuses.contains_key(&ident) {
                self.printer.detail(&format!("{} wanted, not reported", show(&ident)));
            }
        }
    }

    fn ask_logs(&mut self, logs: &Logs) -> Result<(), String> {
        let log_id = format!("log-{}", self.logs_asked + 1);
        let ago = |age: Option<Duration>| age.map(|age| timestamp(SystemTime::now() - age)).into();
        let (from, till) = (ago(logs.from), ago(logs.till));
        let message = match &logs.kind {
            LogKind::System => {
                let mut m = wire::SystemLogRequest::new();
                (m.log_id, m.from, m.till) = (log_id.clone(), from, till);
                In::SystemLogRequest(m)
            }
            LogKind::Instance(selector) => {
                let mut m = wire::InstanceLogRequest::new();
                (m.log_id, m.from, m.till) = (log_id.clone(), from, till);
                m.instance_filter = Some(filter(selector)).into();
                In::InstanceLogRequest(m)
            }
            LogKind::Crash(selector) => {
                let mut m = wire::InstanceCrashLogRequest::new();
                (m.log_id, m.from, m.till) = (log_id.clone(), from, till);
                m.instance_filter = Some(filter(selector)).into();
                In::InstanceCrashLogRequest(m)
            }
        };
        self.send(message)?;
        self.logs_asked += 1;
        self.unit.answers.ask(&log_id, logs.to.as_deref().map(Path::new));
        self.known.owed.logs.insert(log_id);
        Ok(())
    }

    fn config(&mut self, config: Config) -> Result<(), String> {
        let read =
            |file: &str| fs::read_to_string(file).map_err(|e| format!("cannot read {file}: {e}"));
        let message = match config {
            Config::Get => In::GetNodeConfigStatus(wire::GetNodeConfigStatus::new()),
            Config::Check { file, version } => {
                let mut m = wire::CheckNodeConfig::new();
                (m.node_config, m.version) = (read(&file)?, version);
                In::CheckNodeConfig(m)
            }
            Config::Set { file, version } => {
                let mut m = wire::SetNodeConfig::new();
                (m.node_config, m.version) = (read(&file)?, version);
                In::SetNodeConfig(m)
            }
        };
        self.send(message)?;
        self.known.owed.config += 1;
        Ok(())
    }

    fn override_env(&mut self, env: Env) -> Result<(), String> {
        let mut items = self.overrides.clone();
        match env {
            Env::Clear => items.clear(),
            Env::Add { selector, variables, ttl } => {
                let mut item = wire::OverrideInstanceEnvVar::new();
                item.instance_filter = Some(filter(&selector)).into();
                for (name, value) in variables {
                    let mut variable = wire::EnvVarInfo::new();
                    (variable.name, variable.value) = (name, value);
                    variable.ttl = ttl.map(|ttl| timestamp(SystemTime::now() + ttl)).into();
                    item.variables.push(variable);
                }
                items.push(item);
            }
        }
        let mut message = wire::OverrideEnvVars::new();
        message.env_vars.clone_from(&items);
        self.send(In::OverrideEnvVars(message))?;
        self.overrides = items;
        self.known.owed.env += 1;
        Ok(())
    }

    fn link(&mut self, link: Link) -> Result<(), String> {
        let cm = &mut self.unit.cm;
        match link {
            Link::Up => cm.up().map_err(chain)?,
            Link::Down => cm.down(),
            Link::End => cm.end_stream(None).map_err(chain)?,
            Link::Refuse(text) => cm.set_admission(Admission::Refuse(RpcStatusCode::UNKNOWN, text)),
            Link::Silent => cm.set_admission(Admission::Silent),
            Link::Accept => cm.set_admission(Admission::Accept),
        }
        Ok(())
    }

    fn fault(&mut self, path: &str, fault: FileFault) -> Result<(), String> {
        let files = self.unit.files.as_ref().ok_or("packages are not offered over HTTP")?;
        let fault = match fault {
            FileFault::Break(after_bytes) => Some(Fault::Break { after_bytes }),
            FileFault::Status(code) => Some(Fault::Status(code)),
            FileFault::Slow(bytes_per_second) => Some(Fault::Slow { bytes_per_second }),
            FileFault::Hang => Some(Fault::Hang),
            FileFault::Clear => None,
        };
        files.set_fault(path, fault);
        Ok(())
    }

    fn sleep(&mut self, time: Duration) {
        let end = Instant::now() + time;
        while self.take_until(end) {}
    }

    /// The table of every sample, until the time has come or something is typed.
    fn monitor(&mut self, time: Duration) {
        let (end, waiting) = (Instant::now() + time, self.lines.len());
        self.table = true;
        while self.lines.len() == waiting && self.take_until(end) {}
        self.table = false;
    }

    fn wait(&mut self, condition: &Condition, limit: Duration) -> Result<(), String> {
        let end = Instant::now() + limit;
        loop {
            if self.holds(condition)? {
                self.looked_at(condition);
                return Ok(());
            }
            if !self.take_until(end) {
                self.show_status();
                return Err(format!("not within {:.1} s", limit.as_secs_f64()));
            }
        }
    }

    /// Takes one input; `false` = the time has come, or nothing can come any more.
    fn take_until(&mut self, end: Instant) -> bool {
        let rest = end.saturating_duration_since(Instant::now());
        match self.input.recv_timeout(rest) {
            Ok(input) => {
                self.take(input);
                true
            }
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => false,
        }
    }

    fn holds(&self, condition: &Condition) -> Result<bool, String> {
        let known = &self.known;
        Ok(match condition {
            Condition::Connected => known.registered,
            Condition::Registered => known.registered && known.reported,
            Condition::Disconnected => known.link.is_none(),
            Condition::Active(selector) => {
                let version = |service: &str| self.unit.catalog.version(service).map(str::to_owned);
                self.all_are(selector, |ident, status| {
                    status.state == "active"
                        && version(&ident.0).is_none_or(|v| v == status.version)
                })?
            }
            Condition::Inactive(selector) => {
                self.all_are(selector, |_, status| status.state == "inactive")?
            }
            Condition::Failed(selector) => {
                let wanted = self.wanted(selector)?;
                known.link.is_some() && wanted.iter().all(|ident| known.failed.contains(ident))
            }
            Condition::Gone(selector) => {
                let there = |i: &Ident| selector.matches(&i.0, &i.1, i.2);
                known.fresh && !known.statuses.keys().any(there)
            }
            Condition::Full => known.fresh,
            Condition::Config => known.owed.config == 0,
            Condition::Stats => known.owed.stats == 0,
            Condition::Env => known.owed.env == 0,
            Condition::Logs => known.owed.logs.is_empty(),
            Condition::Text(text) => known.recent.iter().any(|line| line.contains(text)),
        })
    }

    fn wanted(&self, selector: &Selector) -> Result<Vec<Ident>, String> {
        let wanted: Vec<Ident> = selected(self.unit.catalog.wanted(), selector)
            .into_iter()
            .map(|(service, subject, index)| (service.to_owned(), subject.to_owned(), index))
            .collect();
        if wanted.is_empty() {
            return Err(format!("no wanted instance is {selector}"));
        }
        Ok(wanted)
    }

    fn all_are(
        &self,
        selector: &Selector,
        good: impl Fn(&Ident, &Status) -> bool,
    ) -> Result<bool, String> {
        let wanted = self.wanted(selector)?;
        let statuses = &self.known.statuses;
        let is_good = |ident: &Ident| statuses.get(ident).is_some_and(|s| good(ident, s));
        Ok(self.known.fresh && wanted.iter().all(is_good))
    }

    /// What was seen is not seen again by the next wait.
    fn looked_at(&mut self, condition: &Condition) {
        match condition {
            Condition::Active(selector) | Condition::Failed(selector) => {
                self.known.failed.retain(|i| !selector.matches(&i.0, &i.1, i.2));
            }
            Condition::Text(_) => self.known.recent.clear(),
            _ => {}
        }
    }

    fn take(&mut self, input: Input) {
        match input {
            Input::Line(line) => self.lines.push_back(line),
            Input::End => self.open = false,
            Input::Unit(Event::Cm(event)) => self.take_cm(event),
            Input::Unit(Event::Iam(event)) => self.print("iam", &describe_iam(&event)),
            Input::Unit(Event::File(served)) => {
                let line = format!(
                    "{} {} {} {} bytes",
                    served.method, served.path, served.status, served.sent_bytes
                );
                self.print("http", &Text { summary: line, details: Vec::new() });
            }
        }
    }

    fn take_cm(&mut self, event: CmEvent) {
        let line = |summary| Text { summary, details: Vec::new() };
        match event {
            CmEvent::Opened { link, peer, common_name } => {
                self.known.link = Some(link);
                self.known.registered = false;
                self.known.reported = false;
                self.known.fresh = false;
                self.known.owed = Owed::default();
                self.unit.answers.forget();
                let name = common_name.unwrap_or_else(|| "nobody".to_owned());
                self.print("link", &line(format!("stream {link} from {peer} as {name}")));
            }
            CmEvent::Message { link, message } => {
                if self.known.link == Some(link) {
                    self.note(&message);
                }
                self.show(&message);
            }
            CmEvent::Malformed { link, bytes, error } => {
                let size = bytes.len();
                self.print("<- sm", &line(format!("stream {link}: {size} bytes, {error}")));
            }
            CmEvent::Refused { peer, text } => {
                self.print("link", &line(format!("{peer} refused: {text}")));
            }
            CmEvent::Closed { link, reason } => {
                if self.known.link == Some(link) {
                    self.known.link = None;
                    self.known.registered = false;
                    self.known.fresh = false;
                }
                self.print("link", &line(format!("stream {link} closed: {reason}")));
            }
        }
    }

    fn show(&mut self, message: &wire::SMOutgoingMessages) {
        match &message.SMOutgoingMessage {
            Some(Out::InstantMonitoring(sample)) if self.table => {
                self.printer.table(&table::lines(sample, self.unit.max_dmips));
            }
            Some(Out::InstantMonitoring(_)) if self.manners.quiet => {}
            Some(Out::Log(log)) => {
                let mut text = render::outgoing(message);
                if self.unit.answers.is_only_saved(&log.log_id) {
                    text.details.clear();
                }
                self.print("<- sm", &text);
                self.save(log);
            }
            _ => self.print("<- sm", &render::outgoing(message)),
        }
    }

    fn save(&mut self, log: &wire::LogData) {
        let summary = match self.unit.answers.take(log) {
            Ok(None) => return,
            Ok(Some(saved)) => format!(
                "{} with {} lines, {} bytes saved in {}",
                log.log_id,
                saved.lines,
                saved.bytes,
                saved.path.display()
            ),
            Err(error) => format!("{} is not saved: {}", log.log_id, chain(error)),
        };
        self.print("unit", &Text { summary, details: Vec::new() });
    }

    fn note(&mut self, message: &wire::SMOutgoingMessages) {
        let known = &mut self.known;
        let first = !std::mem::replace(&mut known.registered, true);
        match &message.SMOutgoingMessage {
            Some(Out::RunInstancesStatus(full)) => {
                known.statuses.clear();
                known.fresh = true;
                known.reported = true;
                known.update(&full.instances);
            }
            Some(Out::UpdateInstancesStatus(update)) => known.update(&update.instances),
            Some(Out::NodeConfigStatus(_)) if !first => {
                known.owed.config = known.owed.config.saturating_sub(1);
            }
            Some(Out::AverageMonitoring(_)) => {
                known.owed.stats = known.owed.stats.saturating_sub(1);
            }
            Some(Out::OverrideEnvVarStatus(_)) => {
                known.owed.env = known.owed.env.saturating_sub(1);
            }
            Some(Out::Log(log)) if log.part >= log.part_count || log.error.is_some() => {
                known.owed.logs.remove(&log.log_id);
            }
            _ => {}
        }
    }

    fn print(&mut self, tag: &str, text: &Text) {
        self.printer.line(tag, &text.summary);
        for detail in &text.details {
            self.printer.detail(detail);
        }
        let lines = std::iter::once(&text.summary).chain(&text.details).cloned();
        self.known.recent.extend(lines);
        let excess = self.known.recent.len().saturating_sub(MAX_RECENT_LINES);
        self.known.recent.drain(..excess);
    }
}

impl Known {
    fn update(&mut self, instances: &[wire::InstanceStatus]) {
        for instance in instances {
            let i = instance.instance.clone().unwrap_or_default();
            let ident = (i.service_id, i.subject_id, i.instance);
            if instance.run_state == "failed" {
                self.failed.insert(ident.clone());
            }
            let mut text = format!("version {} {}", instance.service_version, instance.run_state);
            if let Some(e) = instance.error_info.as_ref() {
                text += &format!(" ({}, exit code {})", e.message, e.exit_code);
            }
            let status = Status {
                version: instance.service_version.clone(),
                state: instance.run_state.clone(),
                text,
            };
            self.statuses.insert(ident, status);
        }
    }
}

fn describe_iam(event: &IamEvent) -> Text {
    let who = |i: &aos_servicemanager::iam::wire::v5::common::InstanceIdent| {
        format!("{}/{}/{}", i.service_id, i.subject_id, i.instance)
    };
    let summary = match event {
        IamEvent::VersionRead => "version read".to_owned(),
        IamEvent::NodeInfoRead => "node info read".to_owned(),
        IamEvent::CertRead { kind } => format!("certificate {kind} read"),
        IamEvent::Subscribed { kind } => format!("subscribed to certificate {kind}"),
        IamEvent::Registered { instance, servers, secret } => {
            format!("registered {} for {} with {secret}", who(instance), servers.join(" "))
        }
        IamEvent::Unregistered { instance } => format!("unregistered {}", who(instance)),
        IamEvent::PermissionsRead { secret } => format!("permissions of {secret} read"),
    };
    Text { summary, details: Vec::new() }
}

fn show(ident: &Ident) -> String {
    format!("{}/{}/{}", ident.0, ident.1, ident.2)
}

fn filter(selector: &Selector) -> wire::InstanceFilter {
    let mut filter = wire::InstanceFilter::new();
    filter.service_id = selector.service.clone().unwrap_or_default();
    filter.subject_id = selector.subject.clone().unwrap_or_default();
    filter.instance = selector.index.and_then(|i| i64::try_from(i).ok()).unwrap_or(-1);
    filter
}

fn timestamp(time: SystemTime) -> Timestamp {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let mut timestamp = Timestamp::new();
    timestamp.seconds = i64::try_from(since.as_secs()).unwrap_or(i64::MAX);
    timestamp.nanos = i32::try_from(since.subsec_nanos()).unwrap_or(0);
    timestamp
}

/// The error with its causes.
pub(crate) fn chain(error: impl std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(e) = cause {
        text += &format!(": {e}");
        cause = e.source();
    }
    text
}
