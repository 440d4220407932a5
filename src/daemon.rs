//! Composition root: picks the adapters, makes all channels and threads, joins them.
//!
//! Runs on main, which then becomes the event loop. In: the configuration. Out: a daemon that has
//! ended in good order, or the reason why it could not start. The only file that knows every part;
//! nothing is decided here.
//!
//! Shutdown: core drains and returns, the event loop is told to stop, and from there every thread
//! ends by a command of its own or because the last sender of its inbox was dropped. Whatever does
//! not end in time is left to the end of the process; nothing of it matters any more.

mod backlog;
mod deltas;
mod settings;
mod world;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam::channel::{Receiver, Sender, bounded};

use crate::cm::sender::CmTxCommand;
use crate::cm::{self, CmRxCommand};
use crate::config::Config;
use crate::core;
use crate::core::node_config::NodeConfigState;
use crate::core::state::State;
use crate::daemon::world::{AlertOut, LogOut, MonitorOut, World, WorldParts};
use crate::event_loop::{self, EventLoop, LoopHandle};
use crate::iam::{self, Certificates};
use crate::image::{self, ImageStore};
use crate::jobs::{self, Ports};
use crate::logger::{self, OwnMessage};
use crate::logs::LogSettings;
use crate::logs::alerts::AlertOutput;
use crate::logs::capture::CaptureCommand;
use crate::logs::intake::{self, CaptureHandle, CaptureInbox, Means};
use crate::logs::serve::{self, LogCommand};
use crate::logs::sink::Sinks;
use crate::model::event::{Event, IamCommand};
use crate::model::id::InstanceId;
use crate::model::job::{ExecJob, FetchJob, StopScope};
use crate::model::node::NodeConfig;
use crate::model::status::{ErrorInfo, chain};
use crate::model::store::Change;
use crate::monitor::{self, MonitorCommand};
use crate::network::{self, NetHandle, NetThread};
use crate::ports::Clock;
use crate::probe::{self, HostCaps};
use crate::rpc;
use crate::runtime::bundle::{self, BundleStore};
use crate::runtime::crun::{self, Crun};
use crate::runtime::remote::RemoteData;
use crate::store::node_file::{self, NodeFile};
use crate::store::{self, Store};
use crate::sys::progress::{self, Board};
use crate::sys::time::SystemClock;
use crate::sys::{random, thread};

/// Inbox of core; any thread may wait while it is full.
const CORE_INBOX: usize = 256;
/// Queue of the exec threads; core never has more jobs in flight.
const EXEC_QUEUE: usize = 64;
/// Queue of the fetch thread: core has one install or removal in flight, and damaged images.
const FETCH_QUEUE: usize = 64;
/// Commands for iam: at most one per instance, in bursts.
const IAM_INBOX: usize = 64;
/// Threads that start and stop instances (platform document P2).
const EXEC_THREADS: usize = 2;
/// The compressor builds its tables on the stack before it boxes them: 300 KiB without
/// optimisation. Only touched pages count.
const COMPRESS_STACK_BYTES: usize = 1024 * 1024;
/// All threads together have so long to end after core has returned.
const JOIN_LIMIT: Duration = Duration::from_secs(5);

/// Why the daemon cannot run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot create {path}")]
    Directory {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error(transparent)]
    Probe(#[from] probe::Error),
    #[error(transparent)]
    EventLoop(#[from] event_loop::Error),
    #[error(transparent)]
    Store(#[from] store::Error),
    #[error(transparent)]
    Network(#[from] network::Error),
    #[error(transparent)]
    Bundle(#[from] bundle::Error),
    #[error("cannot use seccompProfile {path}: {reason}")]
    Seccomp { path: PathBuf, reason: String },
    #[error("cannot read what the daemon may give to containers")]
    Limits {
        #[source]
        source: io::Error,
    },
    #[error(transparent)]
    Runtime(#[from] crun::Error),
    #[error("cannot make the inbox of the thread that captures logs")]
    LogInbox {
        #[source]
        source: io::Error,
    },
    #[error("cannot start thread {name}")]
    Thread {
        name: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("cannot remove {path}")]
    Remove {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// Threads with a way to learn that they have ended.
struct Threads {
    /// `None` = nobody wants to know whether they make progress.
    board: Option<Board>,
    handles: Vec<(&'static str, JoinHandle<()>)>,
    ended: (Sender<&'static str>, Receiver<&'static str>),
}

/// Threads of the daemon besides main; the capacity of the channel that tells of their ends.
const MAX_THREADS: usize = 16;

impl Threads {
    fn new(is_supervised: bool) -> Self {
        let board = is_supervised.then(Board::default);
        Self { board, handles: Vec::new(), ended: bounded(MAX_THREADS) }
    }

    fn spawn(
        &mut self,
        name: &'static str,
        body: impl FnOnce() + Send + 'static,
    ) -> Result<(), Error> {
        self.spawn_sized(name, thread::STACK_BYTES, body)
    }

    fn spawn_sized(
        &mut self,
        name: &'static str,
        stack_bytes: usize,
        body: impl FnOnce() + Send + 'static,
    ) -> Result<(), Error> {
        let ended = self.ended.0.clone();
        let place = self.board.as_mut().map(|board| board.add(name));
        let handle = thread::spawn_sized(name, stack_bytes, move || {
            if let Some(place) = place {
                place.take();
            }
            body();
            progress::rests();
            let _ = ended.try_send(name);
        })
        .map_err(|source| Error::Thread { name, source })?;
        self.handles.push((name, handle));
        Ok(())
    }

    /// Joins what ends within the limit, names the others.
    fn join(mut self) {
        let until = crate::sys::time::now() + JOIN_LIMIT;
        while !self.handles.is_empty() {
            let Ok(name) = self.ended.1.recv_deadline(until) else { break };
            if let Some(at) = self.handles.iter().position(|(n, _)| *n == name) {
                // A panic would have ended the process.
                let _ = self.handles.swap_remove(at).1.join();
            }
        }
        for (name, _) in self.handles {
            log::warn!("thread does not end thread={name}");
        }
    }
}

/// What acts on this host, with its threads: everything that `-stop-instances` needs as well.
struct Host {
    event_loop: EventLoop,
    loop_handle: LoopHandle,
    net: NetHandle,
    net_thread: NetThread,
    capture: (CaptureHandle, CaptureInbox),
    ports: Ports,
}

impl Host {
    fn new(config: &Config) -> Result<Self, Error> {
        make_directories(config)?;
        let caps = probe::probe(config.instances.runtime.as_deref())?;
        let (event_loop, loop_handle) = EventLoop::new()?;
        let (net_thread, net) = NetThread::new(settings::network(config))?;
        let capture = intake::inbox().map_err(|source| Error::LogInbox { source })?;
        let bundles = Arc::new(BundleStore::new(settings::bundles(config, &caps)?)?);
        let ports = Ports {
            runtime: Arc::new(Crun::new(
                settings::runtime(config, &caps),
                Arc::new(loop_handle.clone()),
            )?),
            bundles: bundles.clone(),
            data: Arc::new(RemoteData::new(bundles, Arc::new(loop_handle.clone()))),
            network: Arc::new(net.clone()),
            sinks: Arc::new(Sinks::new(settings::logs(config), capture.0.clone())),
            images: Arc::new(ImageStore::new(settings::images(config))),
        };
        log_host(&caps);
        Ok(Self { event_loop, loop_handle, net, net_thread, capture, ports })
    }
}

fn log_host(caps: &HostCaps) {
    log::debug!("host capabilities={caps:?}");
}

/// Runs the daemon until it was told to stop and has stopped.
pub fn run(config: &Config) -> Result<(), Error> {
    let mut host = Host::new(config)?;
    let clock = Arc::new(SystemClock);
    let (store, mut stored) = Store::open(&config.database())?;
    let position = stored.alert_position.take();
    let known: Vec<InstanceId> = stored.instances.iter().map(|row| row.id.clone()).collect();
    host.net_thread.restore(std::mem::take(&mut stored.traffic), &known);
    host.net_thread.recognise(std::mem::take(&mut stored.network_links));
    let now = clock.now();
    let state = State::new(
        settings::policy(config, EXEC_QUEUE),
        stored,
        node_config(config),
        now.boot,
        now.wall_ms,
        new_id,
    );
    let (core_tx, core_rx) = bounded(CORE_INBOX);
    let mut threads = Threads::new(host.event_loop.is_supervised());
    let world = start_threads(config, &host, store, &core_tx, &clock, &mut threads)?;
    let capturing = Capturing {
        settings: settings::logs(config),
        inbox: host.capture.1,
        processes: host.loop_handle.clone(),
        output: Some(Box::new(AlertOut::new(core_tx.clone()))),
        position,
    };
    start_host_threads(host.net_thread, capturing, &core_tx, &mut threads)?;
    forward_messages(&settings::logs(config), host.capture.0.clone());
    let (loop_handle, ends) = (host.loop_handle.clone(), world.ends());
    threads.spawn("core", move || {
        core::run(&core_rx, &*clock, state, world);
        ends.stop_all();
        loop_handle.stop();
    })?;
    host.loop_handle.ready();
    log::info!("running version={}", crate::cli::VERSION);
    drop(host.ports);
    host.event_loop.run(&core_tx, &threads.board.take().unwrap_or_default())?;
    drop(core_tx);
    threads.join();
    log::info!("stopped");
    Ok(())
}

fn new_id() -> InstanceId {
    let id = random::uuid_v4().expect("getrandom has no errors for a valid buffer");
    InstanceId::new(&id)
}

fn start_threads(
    config: &Config,
    host: &Host,
    store: Store,
    core: &Sender<Event>,
    clock: &Arc<SystemClock>,
    threads: &mut Threads,
) -> Result<World, Error> {
    let (exec_tx, exec_rx) = bounded::<ExecJob>(EXEC_QUEUE);
    let (fetch_tx, fetch_rx) = bounded::<FetchJob>(FETCH_QUEUE);
    for name in ["exec-1", "exec-2"].into_iter().take(EXEC_THREADS) {
        let (inbox, ports, events) = (exec_rx.clone(), host.ports.clone(), core.clone());
        threads.spawn(name, move || jobs::run_exec(&inbox, &ports, &events))?;
    }
    let (ports, events) = (host.ports.clone(), core.clone());
    let images = settings::images(config);
    threads.spawn("fetch", move || {
        image::confine(&images);
        jobs::run_fetch(&fetch_rx, &ports, &events);
    })?;

    let (cm_tx, cm_tx_rx) = bounded::<CmTxCommand>(cm::sender::INBOX_CAPACITY);
    let events = core.clone();
    let (spare, spare_rx) = bounded(1);
    threads.spawn("cm-tx", move || {
        cm::sender::run(cm::sender::SEND_LIMIT, &cm_tx_rx, &events, &spare);
    })?;
    let (iam, cm_rx) = start_peers(config, core, &cm_tx, threads)?;

    let (monitor, monitor_rx) = bounded::<MonitorCommand>(monitor::INBOX);
    let output = MonitorOut::new(cm_tx.clone(), cm_rx.clone(), core.clone(), spare_rx);
    let (monitor_settings, monitor_clock) = (settings::monitor(config), clock.clone());
    let traffic = host.net.traffic_reader();
    threads.spawn("monitor", move || {
        monitor::run(&monitor_settings, &monitor_rx, &*monitor_clock, &traffic, &output);
    })?;
    let (logs, logs_rx) = bounded::<LogCommand>(serve::INBOX);
    let output = LogOut::new(cm_tx.clone());
    let (log_settings, log_clock) = (settings::logs(config), clock.clone());
    let processes = host.loop_handle.clone();
    threads.spawn_sized("log-out", COMPRESS_STACK_BYTES, move || {
        serve::run(&log_settings, &logs_rx, &processes, &*log_clock, &output);
    })?;

    Ok(World::new(WorldParts {
        places: settings::places(config),
        store,
        exec: exec_tx,
        fetch: fetch_tx,
        net: host.net.clone(),
        iam,
        cm_rx,
        cm_tx,
        monitor,
        capture: host.capture.0.clone(),
        logs,
        main: host.loop_handle.clone(),
        clock: clock.clone(),
    }))
}

/// The gRPC environment and the two threads that wait in it.
fn start_peers(
    config: &Config,
    core: &Sender<Event>,
    cm_tx: &Sender<CmTxCommand>,
    threads: &mut Threads,
) -> Result<(rpc::InboxSender<IamCommand>, rpc::InboxSender<CmRxCommand>), Error> {
    let env = rpc::Env::start();
    let iam_settings = settings::iam(config);
    let certs = Certificates::new(iam_settings.clone(), env.clone(), settings::tokens(config));
    let (iam_tx, iam_rx) = rpc::inbox(IAM_INBOX);
    let watching = iam::watch::Watching {
        settings: iam_settings,
        env: env.clone(),
        certs: certs.clone(),
        inbox: iam_rx,
        events: core.clone(),
    };
    threads.spawn("iam", move || watching.run())?;
    let (cm_rx_tx, cm_rx_rx) = rpc::inbox(cm::INBOX_CAPACITY);
    let receiving = cm::Receiving {
        settings: settings::cm(config),
        env,
        certs,
        inbox: cm_rx_rx,
        events: core.clone(),
        tx: cm_tx.clone(),
    };
    threads.spawn("cm-rx", move || receiving.run())?;
    Ok((iam_tx, cm_rx_tx))
}

/// What the thread log-in is made of.
struct Capturing {
    settings: LogSettings,
    inbox: CaptureInbox,
    processes: LoopHandle,
    /// `None` = nobody is interested.
    output: Option<Box<dyn AlertOutput + Send>>,
    /// Up to where an earlier life has made alerts.
    position: Option<Box<str>>,
}

impl Capturing {
    fn run(self) {
        let means = Means {
            settings: &self.settings,
            processes: &self.processes,
            clock: &SystemClock,
            output: self.output.as_deref().map(|output| output as &dyn AlertOutput),
            position: self.position.as_deref(),
        };
        intake::run(&means, self.inbox);
    }
}

fn start_host_threads(
    net: NetThread,
    capturing: Capturing,
    core: &Sender<Event>,
    threads: &mut Threads,
) -> Result<(), Error> {
    let events = core.clone();
    threads.spawn("net", move || net.run(events))?;
    threads.spawn("log-in", move || capturing.run())
}

/// Lets the daemon's own messages become alerts and, where there is no journal, part of the system
/// log.
fn forward_messages(settings: &LogSettings, capture: CaptureHandle) {
    let level = if intake::uses_journal(settings) { log::Level::Error } else { log::Level::Info };
    logger::forward(level, move |OwnMessage { priority, text, is_alert }| {
        capture.try_send(CaptureCommand::Own { priority, text, is_alert }).is_none()
    });
}

/// Stops and removes everything that instances have on this host, without a daemon.
pub fn stop_instances(config: &Config) -> Result<(), Error> {
    let mut host = Host::new(config)?;
    let (core_tx, core_rx) = bounded(CORE_INBOX);
    let mut threads = Threads::new(false);
    let store = open_for_traffic(config, &mut host.net_thread);
    // Nobody decides anything here, but whoever reports must not wait for room.
    threads.spawn("core", move || store_traffic(&core_rx, store))?;
    let capturing = Capturing {
        settings: settings::logs(config),
        inbox: host.capture.1,
        processes: host.loop_handle.clone(),
        output: None,
        position: None,
    };
    start_host_threads(host.net_thread, capturing, &core_tx, &mut threads)?;
    let (ports, main, net, capture) = (host.ports, host.loop_handle, host.net, host.capture.0);
    threads.spawn("exec-1", move || {
        let is_clear = sweep(&ports);
        if !net.try_collect() {
            log::warn!("last traffic of the node is not stored");
        }
        // Bridges and rules are of no use before the next start, which makes them anew.
        if is_clear && !net.try_clear() {
            log::warn!("networks are left");
        }
        net.stop();
        capture.stop();
        main.stop();
    })?;
    host.event_loop.run(&core_tx, &Board::default())?;
    drop(core_tx);
    threads.join();
    Ok(())
}

/// The database for what instances have transferred until now, if there is one.
fn open_for_traffic(config: &Config, net: &mut NetThread) -> Option<Store> {
    match Store::open_own(&config.database()) {
        Ok(Some((store, stored))) => {
            let known: Vec<InstanceId> = stored.instances.into_iter().map(|row| row.id).collect();
            net.restore(stored.traffic, &known);
            Some(store)
        }
        Ok(None) => None,
        Err(error) => {
            log::warn!("last traffic of instances is not stored err={}", chain(&error));
            None
        }
    }
}

/// In place of core: takes all events until nobody sends any more, and stores what was counted.
fn store_traffic(events: &Receiver<Event>, mut store: Option<Store>) {
    while let Ok(event) = events.recv() {
        let mut changes = Vec::new();
        for event in std::iter::once(event).chain(events.try_iter()) {
            if let Event::Traffic { rows, gone } = event {
                changes.extend([Change::PutTraffic(rows), Change::RemoveTraffic(gone)]);
            }
        }
        if let Some(store) = &mut store
            && let Err(error) = store.apply(&changes)
        {
            log::error!("cannot store traffic err={}", chain(&error));
        }
    }
}

/// Ends all instances. False = some cannot be killed.
fn sweep(ports: &Ports) -> bool {
    let found = jobs::adopt::survey(ports);
    let ids: Vec<_> = found.iter().map(|found| found.id.clone()).collect();
    let unkillable = ports.runtime.kill(&ids);
    for (id, failure) in &unkillable {
        log::error!("cannot stop instance={id} err={failure}");
    }
    // Nothing is taken away below living processes.
    for found in found.iter().filter(|found| !unkillable.contains_key(&found.id)) {
        log::info!("stop instance={}", found.id);
        let outcome = jobs::stop::stop(ports, &found.id, StopScope::Everything);
        for error in outcome.errors {
            log::error!("clean-up instance={} err={error}", found.id);
        }
    }
    unkillable.is_empty()
}

/// Stops all instances and removes services, layers, database and node configuration. Errors are
/// logged; the rest is removed all the same.
pub fn reset(config: &Config) -> Result<(), Error> {
    stop_instances(config)?;
    let mut first = Ok(());
    let mut note = |path: &Path, result: io::Result<()>| {
        if let Err(source) = result {
            log::error!("cannot remove path={} err={source}", path.display());
            if first.is_ok() {
                first = Err(Error::Remove { path: path.to_owned(), source });
            }
        }
    };
    for dir in [&config.services_dir, &config.layers_dir] {
        note(dir, crate::sys::fs::remove_tree(dir));
    }
    for file in [&config.node_config_file, &config.unit_config_file] {
        note(file, node_file::NodeFile::remove(file).map_err(io::Error::other));
    }
    let database = config.database();
    note(&database, store::remove(&database).map_err(io::Error::other));
    first
}

/// The stored node configuration, its backup where that cannot be used, or why there is none.
fn node_config(config: &Config) -> NodeConfigState {
    let unusable = |message: String| {
        log::error!("node configuration cannot be used err={message}");
        NodeConfigState { error: Some(ErrorInfo::text(message)), ..NodeConfigState::default() }
    };
    let decode = |json: &str| settings::decode_node_config(json);
    let (file, decoded) = match NodeFile::read_decoded(&config.node_config_file, decode) {
        Ok(Some(found)) => found,
        Ok(None) => return NodeConfigState::default(),
        Err(error) => return unusable(ErrorInfo::of(&error).message),
    };
    let mut state = match file.damage {
        Some(message) => unusable(message),
        None => NodeConfigState::default(),
    };
    state.config = Arc::new(NodeConfig { version: file.version.clone(), ..decoded });
    state.version = file.version;
    state
}

fn make_directories(config: &Config) -> Result<(), Error> {
    for (path, mode) in settings::directories(config) {
        crate::sys::fs::make_dirs(path, mode)
            .map_err(|source| Error::Directory { path: path.to_owned(), source })?;
    }
    Ok(())
}
