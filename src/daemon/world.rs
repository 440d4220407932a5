//! Carries out what core decides: writes the store and hands everything else to the threads.
//!
//! Runs on core. Never blocks on a thread: every hand-over is `try_send`. What bursts of many
//! instances have for a small inbox waits here for its place. What cannot be handed over otherwise
//! is either impossible by the limits core keeps (a bug, logged), or makes the stream to the CM
//! begin anew, which gets the full picture.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crossbeam::channel::{Receiver, Sender, TrySendError, bounded};

use crate::cm::CmRxCommand;
use crate::cm::sender::CmTxCommand;
use crate::core::{Effect, MonitorTarget, NodeConfigWork, Perform};
use crate::daemon::backlog::{MonitorBacklog, offer};
use crate::daemon::deltas::Deltas;
use crate::event_loop::LoopHandle;
use crate::logger::DELIVERY;
use crate::logs::alerts::AlertOutput;
use crate::logs::capture::CaptureCommand;
use crate::logs::intake::CaptureHandle;
use crate::logs::serve::{LogCommand, LogOutput};
use crate::model::command::LogRequest;
use crate::model::desired::NetworkParams;
use crate::model::event::{Event, IamCommand, Session};
use crate::model::failure::Failure;
use crate::model::id::InstanceId;
use crate::model::job::{ExecJob, FetchJob};
use crate::model::node::{Device, DeviceFault, NodeConfig};
use crate::model::status::{
    Alert, AlertPayload, CmReport, EnvStatus, ErrorInfo, LogPart, LogStatus, NodeMonitoring, chain,
};
use crate::model::store::Change;
use crate::monitor::{MonitorCommand, MonitorOutput, Target};
use crate::network::NetHandle;
use crate::ports::Clock;
use crate::rpc::InboxSender;
use crate::runtime::devices;
use crate::store::Store;
use crate::store::node_file::NodeFile;
use crate::sys::{fault, progress, span};

/// A part of a log waits so long for its place in the stream.
const LOG_PART_LIMIT: Duration = Duration::from_secs(60);
/// Rows that could not be written are tried again after so long.
const STORE_RETRY: Duration = Duration::from_secs(10);
/// What waits for a place in a queue is offered again after so long.
const BACKLOG_RETRY: Duration = Duration::from_millis(20);
/// Beginnings and ends of containers that wait for the thread log-in.
const MAX_LIVES: usize = 4096;
/// Rows kept for another try; beyond that the oldest are given up.
const MAX_UNSAVED: usize = 16 * 1024;

/// What world needs of the configuration.
#[derive(Debug)]
pub(super) struct Places {
    pub(super) storage_dir: PathBuf,
    pub(super) state_dir: PathBuf,
    pub(super) node_config_file: PathBuf,
}

/// Ways to all threads.
pub(super) struct WorldParts {
    pub(super) places: Places,
    pub(super) store: Store,
    pub(super) exec: Sender<ExecJob>,
    pub(super) fetch: Sender<FetchJob>,
    pub(super) net: NetHandle,
    pub(super) iam: InboxSender<IamCommand>,
    pub(super) cm_rx: InboxSender<CmRxCommand>,
    pub(super) cm_tx: Sender<CmTxCommand>,
    pub(super) monitor: Sender<MonitorCommand>,
    pub(super) capture: CaptureHandle,
    pub(super) logs: Sender<LogCommand>,
    pub(super) main: LoopHandle,
    pub(super) clock: Arc<dyn Clock>,
}

pub(super) struct World {
    parts: WorldParts,
    unsaved: Vec<Change>,
    /// Why they could not be saved; empty = all is saved.
    store_error: String,
    retry_at: Duration,
    iam_backlog: VecDeque<IamCommand>,
    monitor_backlog: MonitorBacklog,
    signal_backlog: VecDeque<(InstanceId, i32)>,
    capture_backlog: VecDeque<CaptureCommand>,
    networks: Option<Vec<NetworkParams>>,
    /// Instances whose traffic net is still to forget.
    forgotten: Vec<InstanceId>,
    traffic_due: bool,
    pong_due: bool,
    /// cm-rx is still to be told that the stream is of no use any more.
    begin_anew: bool,
    deltas: Deltas,
}

/// Tells the threads that would not end by themselves.
pub(super) struct Ends {
    net: NetHandle,
    iam: InboxSender<IamCommand>,
    cm_rx: InboxSender<CmRxCommand>,
    capture: CaptureHandle,
}

impl Ends {
    /// Core has returned: nobody needs these threads any more. cm-rx says goodbye to the CM, and
    /// cm-tx ends with the last of those that send to it.
    pub(super) fn stop_all(self) {
        let _ = self.cm_rx.send(CmRxCommand::Stop);
        let _ = self.iam.send(IamCommand::Stop);
        self.capture.stop();
        self.net.stop();
    }
}

impl World {
    pub(super) fn new(parts: WorldParts) -> Self {
        Self {
            parts,
            unsaved: Vec::new(),
            store_error: String::new(),
            retry_at: Duration::ZERO,
            iam_backlog: VecDeque::new(),
            monitor_backlog: MonitorBacklog::default(),
            signal_backlog: VecDeque::new(),
            capture_backlog: VecDeque::new(),
            networks: None,
            forgotten: Vec::new(),
            traffic_due: false,
            pong_due: false,
            begin_anew: false,
            deltas: Deltas::default(),
        }
    }

    pub(super) fn ends(&self) -> Ends {
        let parts = &self.parts;
        Ends {
            net: parts.net.clone(),
            iam: parts.iam.clone(),
            cm_rx: parts.cm_rx.clone(),
            capture: parts.capture.clone(),
        }
    }

    fn effect(&mut self, effect: Effect, events: &mut Vec<Event>) {
        let parts = &self.parts;
        match effect {
            Effect::Store(changes) => self.store(changes, events),
            Effect::NodeConfig(work) => self.node_config(work, events),
            Effect::ValidateDevices(config) => {
                events.push(Event::DevicesValidated(device_faults(&config)));
            }
            Effect::Exec(job) => {
                if let ExecJob::Start(plan) = &job {
                    span::mark("ordered", &plan.id);
                }
                queued("exec", parts.exec.try_send(job).is_ok());
            }
            Effect::Fetch(job) => queued("fetch", parts.fetch.try_send(job).is_ok()),
            Effect::Networks(networks) => {
                if self.networks.replace(networks).is_some() {
                    // The newest set counts; core waits for an answer to each.
                    events
                        .push(Event::NetworksUpdated { failed: Vec::new(), draining: Vec::new() });
                }
            }
            Effect::ForgetTraffic(mut ids) => self.forgotten.append(&mut ids),
            Effect::CollectTraffic => self.traffic_due = true,
            Effect::KeepNetworks(ids) => queued("net", parts.net.try_keep(ids)),
            Effect::Iam(command) => self.iam_backlog.push_back(command),
            Effect::Signal { id, signal } => self.signal_backlog.push_back((id, signal)),
            Effect::Reconnect => {
                // A full inbox holds an order to begin anew already.
                let _ = parts.cm_rx.try_send(CmRxCommand::Reconnect);
            }
            Effect::Resynchronise => self.begin_anew = true,
            Effect::Report(session, report) => self.report(session, report),
            Effect::Average(session) => {
                let asked = self.monitor_backlog.ask(session);
                self.answer(asked);
            }
            Effect::Log(session, request) => self.log(session, request),
            Effect::ContainerStarted { id, pid } => {
                self.note_life(CaptureCommand::Started { id, pid });
            }
            Effect::ContainerEnded { id, exit, was_asked } => {
                self.note_life(CaptureCommand::Exited { id, exit, was_asked });
            }
            Effect::ContainerGivenUp { id } => self.note_life(CaptureCommand::GivenUp { id }),
            Effect::Watch(target) => {
                let target = Box::new(self.target(target));
                self.monitor_backlog.push(MonitorCommand::Watch(target));
            }
            Effect::Unwatch(id) => self.monitor_backlog.push(MonitorCommand::Unwatch(id)),
            Effect::NodeInfo(node) => self.monitor_backlog.push(MonitorCommand::NodeInfo(node)),
            Effect::NodeRules(rules) => self.monitor_backlog.push(MonitorCommand::NodeRules(rules)),
            Effect::DiskFigures(figures) => {
                self.monitor_backlog.push(MonitorCommand::Disks(figures))
            }
            Effect::Linked(linked) => self.monitor_backlog.push(MonitorCommand::Linked(linked)),
            Effect::Pong => self.pong_due = true,
        }
    }

    /// Writes rows in one transaction, together with those that could not be written before.
    fn store(&mut self, changes: Vec<Change>, events: &mut Vec<Event>) {
        let first_failure = self.unsaved.is_empty();
        self.unsaved.extend(changes);
        let rows = self.unsaved.len();
        match span::span("store", &rows, || self.parts.store.apply(&self.unsaved)) {
            Ok(()) => {
                self.unsaved.clear();
                self.store_error.clear();
            }
            Err(error) => {
                let text = chain(&error);
                self.store_error.clone_from(&text);
                self.retry_at = self.parts.clock.now().mono + STORE_RETRY;
                if first_failure {
                    log::error!("database cannot be written, will be tried again err={text}");
                    events.push(Event::Alert(
                        self.own_alert(format!("database cannot be written: {text}")),
                    ));
                }
                let surplus = self.unsaved.len().saturating_sub(MAX_UNSAVED);
                self.unsaved.drain(..surplus);
                if surplus > 0 {
                    log::error!("changes are lost with the next end of the daemon rows={surplus}");
                }
            }
        }
    }

    fn own_alert(&self, message: String) -> Alert {
        let payload = AlertPayload::Core { component: "aos-servicemanager".to_owned(), message };
        Alert { time_ms: self.parts.clock.now().wall_ms, payload }
    }

    /// Lost marks only make crash logs less exact, so a thread that hangs may cost the oldest ones.
    fn note_life(&mut self, command: CaptureCommand) {
        if self.capture_backlog.len() >= MAX_LIVES {
            self.capture_backlog.pop_front();
        }
        self.capture_backlog.push_back(command);
    }

    /// Hands on what waits for a place. Core asks once per instance, so that each backlog is bounded
    /// by their number.
    fn flush(&mut self) {
        self.send_deltas();
        let parts = &self.parts;
        if self.pong_due {
            self.pong_due = !parts.main.pong();
        }
        if self.begin_anew {
            self.begin_anew = parts.cm_rx.try_send(CmRxCommand::Resynchronise).is_err();
        }
        if let Some(networks) = self.networks.take()
            && !parts.net.try_update(networks.clone())
        {
            self.networks = Some(networks);
        }
        if !self.forgotten.is_empty() && parts.net.try_forget(self.forgotten.clone()) {
            self.forgotten.clear();
        }
        if self.traffic_due {
            self.traffic_due = !parts.net.try_collect();
        }
        offer(&mut self.iam_backlog, |command| {
            parts.iam.try_send(command).err().map(|e| e.into_inner())
        });
        self.monitor_backlog
            .offer(|command| parts.monitor.try_send(command).err().map(|e| e.into_inner()));
        offer(&mut self.capture_backlog, |command| parts.capture.try_send(command));
        offer(&mut self.signal_backlog, |(id, signal)| {
            (!parts.main.try_signal(&id, signal)).then_some((id, signal))
        });
    }

    fn has_backlog(&self) -> bool {
        self.pong_due
            || self.begin_anew
            || !self.deltas.is_empty()
            || self.networks.is_some()
            || !self.forgotten.is_empty()
            || self.traffic_due
            || !self.iam_backlog.is_empty()
            || !self.monitor_backlog.is_empty()
            || !self.signal_backlog.is_empty()
            || !self.capture_backlog.is_empty()
    }

    fn report(&mut self, session: Session, mut report: CmReport) {
        match &mut report {
            CmReport::EnvStatus(items) if !self.store_error.is_empty() => {
                not_stored(items, &self.store_error);
            }
            CmReport::RunStatus(_) => self.deltas.forget(),
            CmReport::UpdateStatus(statuses) => {
                self.deltas.merge(session, std::mem::take(statuses));
                return self.send_deltas();
            }
            _ => {}
        }
        let command = CmTxCommand::Report { session, report };
        self.answer(self.parts.cm_tx.try_send(command).is_ok());
    }

    /// Statuses are merged while the stream is slow, not queued.
    fn send_deltas(&mut self) {
        let Some((session, statuses)) = self.deltas.take() else { return };
        let report = CmReport::UpdateStatus(statuses);
        let sent = self.parts.cm_tx.try_send(CmTxCommand::Report { session, report });
        if let Err(TrySendError::Full(CmTxCommand::Report { session, report })) = sent
            && let CmReport::UpdateStatus(statuses) = report
        {
            self.deltas.merge(session, statuses);
        }
    }

    /// A message that the CM waits for, or that changes its picture, must not be lost silently.
    fn answer(&mut self, queued: bool) {
        if !queued {
            log::error!(
                target: DELIVERY,
                "a message for the CM cannot be queued, the connection begins anew"
            );
            self.begin_anew = true;
        }
    }

    fn log(&mut self, session: Session, request: LogRequest) {
        let log_id = request.log_id.clone();
        if self.parts.logs.try_send(LogCommand::Request { session, request }).is_err() {
            let error = ErrorInfo::text("too many log requests at a time");
            self.report(session, CmReport::Log(refused(log_id, error)));
        }
    }

    fn target(&self, target: MonitorTarget) -> Target {
        let below = |root: &PathBuf, path: &str| (!path.is_empty()).then(|| root.join(path));
        Target {
            id: target.id,
            ident: target.ident,
            service_version: target.service_version,
            uid: target.uid,
            storage: below(&self.parts.places.storage_dir, &target.storage_path),
            state: below(&self.parts.places.state_dir, &target.state_path),
            rules: target.alert_rules,
        }
    }

    /// Checks the devices of a node configuration against this host; stores it if asked.
    fn node_config(&mut self, work: NodeConfigWork, events: &mut Vec<Event>) {
        let faults = device_faults(&work.config);
        let mut result = Ok(());
        if faults.is_empty() && work.store {
            let file = &self.parts.places.node_config_file;
            result = NodeFile::write(file, &work.json, &work.config.version)
                .map_err(|e| Failure::lasting(&e));
        }
        events.push(Event::NodeConfigStored { session: work.session, faults, result });
    }
}

/// What this host lacks of the devices of a configuration.
fn device_faults(config: &NodeConfig) -> Vec<DeviceFault> {
    let fault = |device: &Device| {
        let errors = device_errors(device);
        (!errors.is_empty()).then(|| DeviceFault { device: device.name.clone(), errors })
    };
    config.devices.iter().filter_map(fault).collect()
}

fn device_errors(device: &Device) -> Vec<String> {
    let missing = device.host_devices.iter().filter_map(|entry| {
        let host = entry.split_once(':').map_or(entry.as_str(), |(host, _)| host);
        let there = host.starts_with("/dev/")
            && !host.split('/').any(|part| part == "..")
            && std::fs::symlink_metadata(host).is_ok();
        (!there).then(|| format!("device {host} is not present on system"))
    });
    let group = |name: &String| {
        let known =
            devices::groups(std::iter::once(name.as_str()), &devices::Places::host(Vec::new()))
                .is_ok();
        (!known).then(|| format!("{name} group is not present on system"))
    };
    missing.chain(device.groups.iter().filter_map(group)).collect()
}

impl Perform for World {
    fn perform(&mut self, effects: Vec<Effect>) -> Vec<Event> {
        let mut events = Vec::new();
        if !self.unsaved.is_empty() && self.parts.clock.now().mono >= self.retry_at {
            self.store(Vec::new(), &mut events);
        }
        for effect in effects {
            fault::point("effect");
            self.effect(effect, &mut events);
            fault::point("effect");
        }
        self.flush();
        // The loop takes the newest event first.
        events.reverse();
        events
    }

    fn next_deadline(&self) -> Option<Duration> {
        let backlog = self.has_backlog().then(|| self.parts.clock.now().mono + BACKLOG_RETRY);
        let store = (!self.unsaved.is_empty()).then_some(self.retry_at);
        backlog.into_iter().chain(store).min()
    }

    fn rests(&self) {
        progress::rests();
    }

    fn works(&self) {
        progress::works();
    }
}

/// Override variables that would not survive a restart are in force, but the CM gets to know it.
fn not_stored(items: &mut [EnvStatus], error: &str) {
    for (_, status) in items.iter_mut().flat_map(|item| &mut item.variables) {
        status.get_or_insert_with(|| ErrorInfo::text(format!("cannot be stored: {error}")));
    }
}

/// Core keeps the limits of the queues; a full one is a bug.
fn queued(thread: &str, queued: bool) {
    debug_assert!(queued, "the queue of {thread} is full");
    if !queued {
        log::error!("queue is full thread={thread}");
    }
}

fn refused(log_id: String, error: ErrorInfo) -> LogPart {
    LogPart { log_id, error: Some(error), status: LogStatus::Error, ..LogPart::default() }
}

/// Where the monitor's figures go.
pub(super) struct MonitorOut {
    cm_tx: Sender<CmTxCommand>,
    cm_rx: InboxSender<CmRxCommand>,
    events: Sender<Event>,
    /// Samples that cm-tx has done with.
    spare: Receiver<NodeMonitoring>,
}

impl MonitorOut {
    pub(super) fn new(
        cm_tx: Sender<CmTxCommand>,
        cm_rx: InboxSender<CmRxCommand>,
        events: Sender<Event>,
        spare: Receiver<NodeMonitoring>,
    ) -> Self {
        Self { cm_tx, cm_rx, events, spare }
    }
}

impl MonitorOutput for MonitorOut {
    fn spare(&self) -> Option<NodeMonitoring> {
        self.spare.try_recv().ok()
    }

    fn instant(&self, data: NodeMonitoring) {
        // The next sample is as good as this one.
        let _ = self.cm_tx.try_send(CmTxCommand::Monitoring(data));
    }

    fn average(&self, session: Session, data: NodeMonitoring) {
        let report = CmReport::AverageMonitoring(data);
        if self.cm_tx.try_send(CmTxCommand::Report { session, report }).is_err() {
            log::error!(
                target: DELIVERY,
                "average monitoring cannot be queued, the connection begins anew"
            );
            let _ = self.cm_rx.try_send(CmRxCommand::Resynchronise);
        }
    }

    fn alert(&self, alert: Alert) {
        let _ = self.events.send(Event::Alert(alert));
    }

    fn look_at(&self, paths: Vec<PathBuf>) {
        let _ = self.events.send(Event::LookAtDisks(paths));
    }
}

/// Where alerts of log lines go.
pub(super) struct AlertOut {
    events: Sender<Event>,
}

impl AlertOut {
    pub(super) fn new(events: Sender<Event>) -> Self {
        Self { events }
    }
}

impl AlertOutput for AlertOut {
    fn alert(&self, alert: Alert) {
        // Core has gone at the end of the daemon: the position tells the next life where to begin.
        let _ = self.events.send(Event::Alert(alert));
    }

    fn position(&self, text: Box<str>) {
        let _ = self.events.send(Event::AlertPosition(text));
    }
}

/// Where parts of logs go, one at a time.
pub(super) struct LogOut {
    cm_tx: Sender<CmTxCommand>,
}

impl LogOut {
    pub(super) fn new(cm_tx: Sender<CmTxCommand>) -> Self {
        Self { cm_tx }
    }
}

impl LogOut {
    /// The answer of cm-tx to a command that was made with the way for it.
    fn ask<T>(&self, command: impl FnOnce(Sender<T>) -> CmTxCommand) -> Option<T> {
        let (reply, answer) = bounded(1);
        progress::waiting(|| self.cm_tx.send_timeout(command(reply), LOG_PART_LIMIT).ok())?;
        progress::waiting(|| answer.recv_timeout(LOG_PART_LIMIT)).ok()
    }
}

impl LogOutput for LogOut {
    fn is_open(&self, session: Session) -> bool {
        self.ask(|reply| CmTxCommand::IsOpen { session, reply }) == Some(true)
    }

    fn part(&self, session: Session, part: LogPart) -> bool {
        matches!(self.ask(|reply| CmTxCommand::LogPart { session, part, reply }), Some(Ok(())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::desired::InstanceFilter;

    #[test]
    fn variables_that_were_not_stored() {
        let own = || Some(ErrorInfo::text("expired"));
        let variables = vec![("A".to_owned(), None), ("B".to_owned(), own())];
        let mut items = [EnvStatus { filter: InstanceFilter::default(), variables }];
        not_stored(&mut items, "disk full");
        let stored = Some(ErrorInfo::text("cannot be stored: disk full"));
        assert_eq!(items[0].variables, [("A".to_owned(), stored), ("B".to_owned(), own())]);
    }

    #[test]
    fn devices_of_a_node_configuration() {
        let check = |host: &str, group: &str, expect: &[&str]| {
            let device = Device {
                host_devices: vec![host.into()],
                groups: vec![group.into()],
                ..Device::default()
            };
            assert_eq!(device_errors(&device), expect);
        };
        check("/dev/null", "root", &[]);
        check("/dev/null:/dev/nothing", "root", &[]);
        check("/dev/no-such", "root", &["device /dev/no-such is not present on system"]);
        check("/etc/passwd", "root", &["device /etc/passwd is not present on system"]);
        let outside = "/dev/../etc/passwd";
        check(outside, "root", &[&format!("device {outside} is not present on system")]);
        check("/dev/null", "no-such", &["no-such group is not present on system"]);
        check("/dev/null", "", &[" group is not present on system"]);
    }
}
