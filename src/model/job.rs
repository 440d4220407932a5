//! Jobs that core hands to the worker threads, and what comes of them.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use crate::model::desired::{DesiredInstance, DesiredLayer, DesiredService, PackageSource};
use crate::model::failure::Failure;
use crate::model::id::{InstanceId, InstanceIdent, PackageKey, ServiceKey};
use crate::model::node::{Device, Resource};
use crate::model::service::{InstalledLayer, InstalledService, ServiceImage};

/// Work of the exec threads: local disk, commands and short kernel work; never a peer, a grace
/// period or a pause.
#[derive(Clone, Debug)]
pub enum ExecJob {
    /// What is on this host from an earlier life of the daemon? The first job after a start.
    Survey,
    /// Read manifest and configurations of an installed service and check them cheaply.
    Load(Arc<InstalledService>),
    Start(Box<StartPlan>),
    Stop(StopPlan),
    /// Kill the processes of all these, before each is removed by a `Stop`.
    Kill(Vec<InstanceId>),
    /// Take over a container that an earlier life of the daemon left running.
    Adopt(Box<AdoptPlan>),
}

/// Work of the fetch thread: downloads, unpacking, removal, network file systems.
#[derive(Clone, Debug)]
pub enum FetchJob {
    /// Empty the staging places, remove image directories that no row names.
    Tidy {
        known: Vec<PathBuf>,
        keep: Keep,
    },
    Install(Box<InstallPlan>),
    Remove {
        key: PackageKey,
        path: PathBuf,
    },
    /// Make state file and storage directory of an instance on a file system that may hang.
    PrepareData(Box<StartPlan>),
    /// Remove a damaged image that has no row any more.
    Discard {
        path: PathBuf,
    },
    /// Read all of an installed package and compare it with its digest. Gives way to any other
    /// job.
    Check(Box<Row>),
    /// Used bytes of file systems that may hang.
    LookAtDisks(Vec<PathBuf>),
    /// The running install is not wanted any more. The only job without an answer: the install
    /// has one.
    Cancel(PackageKey),
}

/// Which complete packages without a row stay, so that they need not be fetched again.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Keep {
    /// Nothing is known about what is wanted.
    All,
    /// Those that came from package files with one of these SHA3-256 values.
    Packages(Vec<Vec<u8>>),
}

/// Row of an installed package.
#[derive(Clone, PartialEq, Debug)]
pub enum Row {
    Service(Arc<InstalledService>),
    Layer(InstalledLayer),
}

impl Row {
    pub fn key(&self) -> PackageKey {
        match self {
            Self::Service(row) => PackageKey::Service(row.key.clone()),
            Self::Layer(row) => PackageKey::Layer(row.digest.clone()),
        }
    }
}

/// Everything that one start of an instance needs; nothing is looked up while it runs.
#[derive(Clone, PartialEq, Debug)]
pub struct StartPlan {
    pub id: InstanceId,
    pub instance: Arc<DesiredInstance>,
    pub service: Arc<InstalledService>,
    pub image: Arc<ServiceImage>,
    /// Directories of the shared layers in manifest order; an earlier one hides a later one.
    pub layers: Vec<PathBuf>,
    /// Value of `AOS_SECRET`; `None` = the service has no permissions.
    pub secret: Option<Arc<str>>,
    /// Override variables as `NAME=value`, in the order of application.
    pub overrides: Arc<[String]>,
    /// Devices with the access (`rwm` subset) that the service asks for.
    pub devices: Vec<(Device, String)>,
    pub resources: Vec<Resource>,
    /// 0 = unknown: no CPU quota.
    pub max_dmips: u64,
    /// `Again` = automatic restart: bundle, mounts, network and spool are still there.
    pub kind: StartKind,
    /// State file and storage directory exist, although on a file system that may hang: they are
    /// not touched.
    pub data_ready: bool,
    /// What the record file of the instance will say.
    pub record: Record,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum StartKind {
    Fresh,
    Again,
}

/// State of one running instance on tmpfs, with which the next life of the daemon adopts it.
#[derive(Clone, PartialEq, Debug)]
pub struct Record {
    pub ident: InstanceIdent,
    pub service_version: Arc<str>,
    /// Digest of all inputs of the runtime spec (without the secret) and of the network.
    pub inputs_digest: String,
    /// Override variables in use, `NAME=value`.
    pub overrides: Arc<[String]>,
    /// Hash of the secret in use, hex; empty = none.
    pub secret_hash: String,
    /// Init of the container, 0 while it is being created.
    pub pid: u32,
    /// Field 22 of `/proc/<pid>/stat`, clock ticks since boot.
    pub start_time: u64,
    pub limiter: LimiterState,
    /// Automatic restarts so far.
    pub restarts: u64,
    /// When the running container was started, CLOCK_MONOTONIC in nanoseconds.
    pub started_at_ns: u64,
}

/// The window of the start limiter, CLOCK_MONOTONIC in nanoseconds; `count` 0 = no window.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct LimiterState {
    pub begin_ns: u64,
    pub count: u64,
}

#[derive(Clone, PartialEq, Debug)]
pub struct StopPlan {
    pub id: InstanceId,
    pub scope: StopScope,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum StopScope {
    /// Container and control group; the rest stays for an automatic restart.
    Container,
    /// All that the instance has on this host.
    Everything,
}

#[derive(Clone, PartialEq, Debug)]
pub struct AdoptPlan {
    pub id: InstanceId,
    /// The record that the survey found; its digest is the expected one.
    pub record: Record,
    /// Parameters of the instance as they would be for a fresh start.
    pub plan: StartPlan,
}

#[derive(Clone, PartialEq, Debug)]
pub struct InstallPlan {
    pub package: Package,
    /// What may be removed to make room, first one first.
    pub evictable: Vec<Evictable>,
    /// Size of all installed packages of this kind, evictable ones included.
    pub used_bytes: u64,
    /// All packages that are still to be installed: what has arrived of them is kept.
    pub unfinished: Vec<PackageSource>,
}

#[derive(Clone, PartialEq, Debug)]
pub enum Package {
    Service(DesiredService),
    Layer(DesiredLayer),
}

impl Package {
    pub fn key(&self) -> PackageKey {
        match self {
            Self::Service(service) => PackageKey::Service(service.key.clone()),
            Self::Layer(layer) => PackageKey::Layer(layer.digest.clone()),
        }
    }

    pub fn source(&self) -> &PackageSource {
        match self {
            Self::Service(service) => &service.source,
            Self::Layer(layer) => &layer.source,
        }
    }
}

#[derive(Clone, PartialEq, Debug)]
pub struct Evictable {
    pub key: PackageKey,
    pub path: PathBuf,
    pub size_bytes: u64,
}

/// A package that was read completely and found right.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Verified {
    /// Digest of its tree; empty = it cannot have one of ours.
    pub tree_digest: String,
}

/// What an install made.
#[derive(Clone, PartialEq, Debug)]
pub enum Installed {
    Service(Box<InstalledService>, Box<ServiceImage>),
    Layer(Box<InstalledLayer>),
}

/// Answers of the workers.
#[derive(Clone, Debug)]
pub enum JobDone {
    Surveyed(Vec<Found>),
    Loaded {
        key: ServiceKey,
        result: Result<Box<ServiceImage>, Failure>,
    },
    Started {
        id: InstanceId,
        result: Result<Started, Failure>,
        /// The start failed and its processes are still there: nothing was removed below them.
        unkillable: bool,
    },
    Stopped {
        id: InstanceId,
        scope: StopScope,
        outcome: StopOutcome,
    },
    /// Those whose processes do not end.
    Killed {
        failed: Vec<InstanceId>,
    },
    /// `None` = it cannot be adopted and has to be removed.
    Adopted {
        id: InstanceId,
        result: Result<Started, Failure>,
    },
    /// Known directories that do not exist.
    Tidied {
        missing: Vec<PathBuf>,
    },
    Discarded,
    /// False = they are local by now.
    DataPrepared {
        id: InstanceId,
        result: Result<bool, Failure>,
    },
    /// A failure that is not transient: the package is damaged.
    Checked {
        key: PackageKey,
        result: Result<Verified, Failure>,
    },
    Installed {
        key: PackageKey,
        evicted: Vec<PackageKey>,
        result: Result<Installed, Failure>,
    },
    Removed {
        key: PackageKey,
        result: Result<(), Failure>,
    },
    LookedAtDisks(DiskFigures),
}

/// Used bytes of file systems by path, or why they are not known.
pub type DiskFigures = Vec<(PathBuf, Result<u64, String>)>;

/// What a look at the program of an instance tells before anybody executes it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Doubt {
    /// Why a runtime refuses it.
    Refused(Box<str>),
    /// Why the kernel may not be able to execute it although the runtime finds it.
    Unloadable(Box<str>),
}

/// A running container.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Started {
    pub pid: u32,
    /// Why the kernel may not be able to execute its program; told by fresh starts alone.
    pub doubt: Option<Box<str>>,
}

/// Teardown goes on after errors; all of them are here.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct StopOutcome {
    pub errors: Vec<String>,
    /// Processes of the instance are still there: nothing more may be started under this id.
    pub unkillable: bool,
}

/// An instance of which something exists on this host.
#[derive(Clone, PartialEq, Debug)]
pub struct Found {
    pub id: InstanceId,
    /// Readable record of this boot.
    pub record: Option<Record>,
}

/// Permissions of a service as IAM takes them.
pub type Permissions = BTreeMap<String, BTreeMap<String, String>>;
