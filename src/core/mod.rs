//! The core: one thread that owns all instance state and makes all decisions.
//!
//! Runs on `core`. In: `Event`s of its one inbox. Out: `Effect`s, performed by a `Perform` that
//! never blocks on another thread (the store's commit is the only thing core waits for). Not here:
//! files, processes, sockets, clocks; time comes in as an argument.
//!
//! One turn: `apply` folds an event into `State`, `plan` compares what is wanted with what is and
//! returns effects; planning twice without an event between yields nothing the second time.

pub mod state;
pub mod instance;
pub mod package;
pub mod nameless;
pub mod inputs;
pub mod limiter;
pub mod apply;
pub mod goal;
pub mod plan;
pub mod report;
pub mod secrets;
pub mod data;
pub mod env;
pub mod alerts;
pub mod node_config;
pub mod version;
pub mod stop_signal;

use std::sync::Arc;
use std::time::Duration;

use crossbeam::channel::{Receiver, RecvTimeoutError};

use crate::core::state::State;
use crate::model::command::LogRequest;
use crate::model::desired::NetworkParams;
use crate::model::event::{Event, Exit, IamCommand, Session};
use crate::model::id::{InstanceId, InstanceIdent};
use crate::model::job::{DiskFigures, ExecJob, FetchJob};
use crate::model::node::{AlertRules, NodeConfig, NodeInfo};
use crate::model::status::CmReport;
use crate::model::store::Change;
use crate::ports::Clock;

/// What core wants done. Order within one plan matters: the store comes first.
#[derive(Debug)]
pub enum Effect {
    /// One transaction.
    Store(Vec<Change>),
    NodeConfig(NodeConfigWork),
    /// Does this host have the devices of the configuration in force? Answered by
    /// `Event::DevicesValidated`.
    ValidateDevices(Arc<NodeConfig>),
    Exec(ExecJob),
    Fetch(FetchJob),
    /// The complete set of networks; answered by `Event::NetworksUpdated`.
    Networks(Vec<NetworkParams>),
    /// Everything of ours in the network that belongs to none of these is a leftover.
    KeepNetworks(Vec<InstanceId>),
    /// These instances never come back: what they have transferred is of no interest any more.
    ForgetTraffic(Vec<InstanceId>),
    /// Nothing else is left of a stop: all traffic that is not stored yet is wanted. Answered by
    /// `Event::TrafficCollected`.
    CollectTraffic,
    Iam(IamCommand),
    /// Graceful stop: the signal, or SIGKILL when the init has no handler for it.
    Signal {
        id: InstanceId,
        signal: i32,
    },
    /// New connection to the CM with the newest certificate.
    Reconnect,
    /// New connection to the CM, whatever the certificate: what it knows of the node is wrong.
    Resynchronise,
    Report(Session, CmReport),
    /// The monitor answers the CM itself.
    Average(Session),
    Log(Session, LogRequest),
    /// For the log: where the life of a container begins and ends.
    ContainerStarted {
        id: InstanceId,
        pid: u32,
    },
    ContainerEnded {
        id: InstanceId,
        exit: Exit,
        /// By us, so that it is no crash.
        was_asked: bool,
    },
    /// It reached its start limit.
    ContainerGivenUp {
        id: InstanceId,
    },
    Watch(MonitorTarget),
    Unwatch(InstanceId),
    NodeInfo(NodeInfo),
    /// Alert rules of the node, from its configuration.
    NodeRules(AlertRules),
    /// What is used of file systems that may hang, for the monitor.
    DiskFigures(DiskFigures),
    /// Whether the CM is there to take samples.
    Linked(bool),
    Pong,
}

/// Checks a node configuration against this host and stores it if asked.
#[derive(Clone, PartialEq, Debug)]
pub struct NodeConfigWork {
    pub session: Session,
    pub json: String,
    pub config: NodeConfig,
    pub store: bool,
}

/// What the monitor has to know of a running instance.
#[derive(Clone, PartialEq, Debug)]
pub struct MonitorTarget {
    pub id: InstanceId,
    pub ident: InstanceIdent,
    pub uid: u32,
    pub service_version: std::sync::Arc<str>,
    pub storage_path: std::sync::Arc<str>,
    pub state_path: std::sync::Arc<str>,
    pub alert_rules: AlertRules,
}

/// Carries out effects without waiting for another thread.
pub trait Perform {
    /// Returns what came of the work that was done at once (the node configuration).
    fn perform(&mut self, effects: Vec<Effect>) -> Vec<Event>;

    /// When `perform` wants to be called again, CLOCK_MONOTONIC: something waits for a place in a
    /// queue, or for a disk that can be written again.
    fn next_deadline(&self) -> Option<Duration>;

    /// The loop begins to wait for an event.
    fn rests(&self) {}

    /// The loop goes on.
    fn works(&self) {}
}

/// The loop. Returns when a stop was asked for and nothing is in flight any more.
pub fn run(inbox: &Receiver<Event>, clock: &dyn Clock, mut state: State, mut world: impl Perform) {
    let mut events = Vec::new();
    loop {
        let now = clock.now();
        while let Some(event) = events.pop() {
            state.apply(now, event);
        }
        events = world.perform(state.plan(now));
        if !events.is_empty() {
            continue;
        }
        if state.is_drained() {
            return;
        }
        let deadlines = [state.next_deadline(), world.next_deadline()];
        world.rests();
        let event = match deadlines.into_iter().flatten().min() {
            None => inbox.recv().unwrap_or(Event::Stop),
            Some(at) => {
                let wait = at.saturating_sub(clock.now().mono).max(Duration::from_millis(1));
                match inbox.recv_timeout(wait) {
                    Ok(event) => event,
                    Err(RecvTimeoutError::Timeout) => Event::Tick,
                    Err(RecvTimeoutError::Disconnected) => Event::Stop,
                }
            }
        };
        world.works();
        events.push(event);
    }
}

/// Inputs of a start, shared between goal and instance.
pub type SharedInputs = std::sync::Arc<instance::Inputs>;
