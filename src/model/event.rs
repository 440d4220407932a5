//! What wakes core, and the small vocabularies of the other threads' inboxes.
//!
//! STYLE puts the inbox enum into the receiver's module; core's stands here instead, because the
//! adapters that send to core must not import it.

use std::path::PathBuf;
use std::sync::Arc;

use crate::model::command::CmCommand;
use crate::model::failure::Failure;
use crate::model::id::{InstanceId, InstanceIdent, NetworkId};
use crate::model::job::{JobDone, Permissions};
use crate::model::node::{DeviceFault, NodeInfo};
use crate::model::status::Alert;
use crate::model::traffic::TrafficRow;

/// Everything that core reacts to.
#[derive(Debug)]
pub enum Event {
    /// A stream to the CM is open and cm-tx has its sending half.
    CmConnected {
        session: Session,
    },
    /// The CM has sent its first message on this stream: a node that it refuses gets none.
    CmAccepted {
        session: Session,
    },
    CmLost {
        session: Session,
    },
    Cm {
        session: Session,
        command: CmCommand,
    },
    /// One alert of the ring has left for the CM.
    AlertSent {
        session: Session,
    },
    Iam(IamEvent),
    Done(JobDone),
    /// The init of an instance has ended. The pid tells a late message about an earlier container
    /// from one about the present one.
    Exited {
        id: InstanceId,
        pid: u32,
        exit: Exit,
    },
    /// Answer to the newest set of networks: those that could not be set up, and those that are not
    /// listed any more but still have instances.
    NetworksUpdated {
        failed: Vec<(NetworkId, Failure)>,
        draining: Vec<NetworkId>,
    },
    /// A network does not exist any more.
    NetworkGone(NetworkId),
    /// A network that could not be set up stands now.
    NetworkReady(NetworkId),
    /// Traffic counters to store, and names of counters to forget.
    Traffic {
        rows: Vec<TrafficRow>,
        gone: Vec<Box<str>>,
    },
    /// All traffic that was counted so far has been sent with the events before.
    TrafficCollected,
    Alert(Alert),
    /// Everything in the journal and the kernel's messages up to here has become alerts, which were
    /// sent before, or was left out on purpose.
    AlertPosition(Box<str>),
    /// The monitor wants to know what is used of file systems that may hang.
    LookAtDisks(Vec<PathBuf>),
    /// A node configuration was checked against this host, and written if that was asked for and
    /// no device has a fault.
    NodeConfigStored {
        session: Session,
        faults: Vec<DeviceFault>,
        result: Result<(), Failure>,
    },
    /// Devices of the configuration in force that this host does not have.
    DevicesValidated(Vec<DeviceFault>),
    /// SIGHUP: devices may have come or gone.
    Reload,
    /// The wall clock was set, or the machine resumed.
    ClockChanged,
    /// The service watchdog asks whether core still turns.
    Ping,
    /// A deadline has come.
    Tick,
    Stop,
}

/// Number of a stream to the CM; what was meant for an older one is dropped.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Session(pub u64);

/// How a process ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Exit {
    Code(i32),
    Signal(i32),
    /// Killed, and the group's counter of OOM kills has risen.
    OutOfMemory,
    /// Ended with this code, which is not 0, and processes of its group were killed for want of
    /// memory since its start.
    CodeAfterKills(i32),
    /// Not our child, and no source of the status was left.
    Lost,
}

impl Exit {
    /// Exit code for the status: the code, 128 + signal, 137, or 0 when unknown.
    pub fn code(self) -> i32 {
        match self {
            Self::Code(code) | Self::CodeAfterKills(code) => code,
            Self::Signal(signal) => 128 + signal,
            Self::OutOfMemory => 137,
            Self::Lost => 0,
        }
    }
}

impl std::fmt::Display for Exit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Code(code) => write!(f, "exited with code {code}"),
            Self::Signal(signal) => write!(f, "killed by signal {signal}"),
            Self::OutOfMemory => f.write_str("out of memory"),
            Self::CodeAfterKills(code) => {
                write!(f, "exited with code {code} after some of its processes ran out of memory")
            }
            Self::Lost => f.write_str("exit status lost"),
        }
    }
}

/// What the iam thread reports.
#[derive(Debug)]
pub enum IamEvent {
    NodeInfo(NodeInfo),
    /// The certificate for the CM is another one now.
    CertChanged,
    /// IAM answers; `restarted` = it was away, so it may have lost its registrations.
    Up {
        restarted: bool,
    },
    Down,
    Registered {
        id: InstanceId,
        /// Number of the question.
        ask: u64,
        result: Result<Arc<str>, Failure>,
    },
    /// The removal with this number is over: IAM has answered, or was not reached (not `done`).
    Unregistered {
        ask: u64,
        done: bool,
    },
}

/// What the iam thread is asked.
#[derive(Clone, PartialEq, Debug)]
pub enum IamCommand {
    /// Answered by `IamEvent::Registered` as soon as IAM answers; kept until then.
    Register {
        id: InstanceId,
        /// Comes back with the answer: an instance may have been stopped and asked for again.
        ask: u64,
        ident: InstanceIdent,
        permissions: Arc<Permissions>,
    },
    /// Answered by `IamEvent::Unregistered`.
    Unregister {
        id: InstanceId,
        ask: u64,
        ident: InstanceIdent,
    },
    Stop,
}
