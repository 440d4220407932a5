//! The outside as the job scripts and core see it: one narrow trait for each party that has a
//! second implementation (another runtime, the fakes of the simulation).
//!
//! All calls block, take `&self` and use model types only. An adapter has an error enum of its own
//! with operands and sources; at the port it becomes a `Failure`, because all that the callers can
//! use is the whole text and whether trying again makes sense.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::model::desired::InstanceNetwork;
use crate::model::event::Exit;
use crate::model::failure::Failure;
use crate::model::id::{InstanceId, InstanceIdent, NetworkId, PackageKey};
use crate::model::job::{
    Doubt, InstallPlan, Installed, Keep, Record, Row, StartPlan, Started, Verified,
};
use crate::model::node::Host;
use crate::model::service::{InstalledService, Quotas, ServiceImage};
use crate::model::traffic::Traffic;

/// Containers: crun, runc. Every call is bounded in time.
pub trait Runtime: Send + Sync {
    /// Creates the container of a prepared bundle, opens a pidfd of its init and registers it
    /// with the process manager, so that no exit can be missed. Service code does not run yet.
    fn create(&self, id: &InstanceId, bundle: &Path, stdio: Stdio) -> Result<Init, Failure>;
    /// Lets the created container run.
    fn start(&self, id: &InstanceId) -> Result<(), Failure>;
    /// Whether a failure of these two is about the program of the instance.
    fn blames_program(&self, failure: &Failure) -> bool;
    /// Takes over a running container after proving that it is the recorded one, and registers
    /// its pidfd. Never signals a process.
    fn adopt(&self, id: &InstanceId, record: &Record) -> Result<Started, Failure>;
    /// Kills every process in the control groups of these instances and waits, bounded and once for
    /// all of them, until they are empty; those where that failed.
    fn kill(&self, ids: &[InstanceId]) -> BTreeMap<InstanceId, Failure>;
    /// Removes the runtime's state and the control groups. Unknown id = success.
    fn delete(&self, id: &InstanceId) -> Result<(), Failure>;
    /// Ids of everything below our cgroup parent and in the runtime's state directory.
    fn survey(&self) -> Vec<InstanceId>;
}

/// The init of a created container.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Init {
    pub pid: u32,
    /// Field 22 of `/proc/<pid>/stat`.
    pub start_time: u64,
}

/// What a container gets as stdout and stderr; stdin is `/dev/null`.
#[derive(Debug)]
pub struct Stdio {
    pub stdout: OwnedFd,
    pub stderr: OwnedFd,
}

/// Bundles: directory, `config.json`, root file system, record.
pub trait Bundles: Send + Sync {
    /// Makes the bundle directory with an empty `mounts/etc`; an old one is removed first.
    /// Returns the directory.
    fn prepare(&self, id: &InstanceId) -> Result<PathBuf, Failure>;
    /// State file, storage directory, mount points, overlay mount and `config.json`. Returns why
    /// the program may not be executed.
    fn build(&self, plan: &StartPlan) -> Result<Option<Doubt>, Failure>;
    /// Path of the bundle of an instance, whether or not it exists.
    fn path(&self, id: &InstanceId) -> PathBuf;
    /// Writes the record atomically.
    fn record(&self, id: &InstanceId, record: &Record) -> Result<(), Failure>;
    /// Every bundle directory with its record, if that is readable, of this boot, and the root file
    /// system is mounted.
    fn survey(&self) -> Vec<(InstanceId, Option<Record>)>;
    /// Unmounts everything below the bundle and removes it; never crosses into a mount.
    fn remove(&self, id: &InstanceId) -> Result<(), Failure>;
}

/// State file and storage directory of an instance, which may lie on a file system with a server
/// that is silent, and other such file systems.
pub trait InstanceData: Send + Sync {
    /// Fails with `remote_data` when they have to be prepared on the fetch thread. Never touches
    /// such a file system.
    fn check(&self, plan: &StartPlan) -> Result<(), Failure>;
    /// Makes what is missing of them; gives a server that is silent up soon. False = they do not lie
    /// on a server any more, and nothing was done.
    fn prepare_data(&self, plan: &StartPlan) -> Result<bool, Failure>;
    /// Used bytes of the file system that holds `path`; gives a silent server up soon as well.
    fn used_bytes(&self, path: &Path) -> Result<u64, Failure>;
}

/// The network of one instance; the net thread does the work.
pub trait Network: Send + Sync {
    /// Namespace, veth pair, address, route, `hosts` and `resolv.conf`. A leftover is replaced.
    fn attach(&self, plan: &NetworkPlan) -> Result<(), Failure>;
    /// Checks that all of it still stands and takes it over.
    fn adopt(&self, plan: &NetworkPlan) -> Result<(), Failure>;
    /// Removes all of it. Unknown id = success.
    fn detach(&self, id: &InstanceId) -> Result<(), Failure>;
    /// Ids of the namespaces and links that are ours.
    fn survey(&self) -> Vec<InstanceId>;
}

/// Traffic counters; the net thread reads them.
pub trait TrafficSource: Send + Sync {
    /// Replaces `traffic` by the present counters, at most one second old. Waits no longer than
    /// `limit`; on failure `traffic` stays as it is.
    fn traffic(&self, limit: Duration, traffic: &mut Traffic) -> Result<(), Failure>;
}

/// What `Network::attach` needs.
#[derive(Clone, PartialEq, Debug)]
pub struct NetworkPlan {
    pub id: InstanceId,
    pub ident: InstanceIdent,
    pub network_id: NetworkId,
    pub params: InstanceNetwork,
    /// Host name from the service configuration; empty = none.
    pub hostname: String,
    /// Lines for `hosts` from the resources of the service.
    pub hosts: Vec<Host>,
    /// `port[/proto]`, `a-b[/proto]` as the image configuration spells them.
    pub exposed_ports: Vec<String>,
    pub quotas: Quotas,
    /// Directory into which `hosts` and `resolv.conf` are written.
    pub etc_dir: PathBuf,
}

/// Standard streams of containers.
pub trait LogSinks: Send + Sync {
    /// A sink that outlives the daemon and never blocks the container for long.
    fn open(&self, plan: &StartPlan) -> Result<Stdio, Failure>;
    /// The instance is gone: drain what is left and release the spool.
    fn close(&self, id: &InstanceId) -> Result<(), Failure>;
    /// Ids that have a spool.
    fn survey(&self) -> Vec<InstanceId>;
}

/// Asked now and then by work that takes long: true = end it, nobody wants it any more.
pub type Halt<'a> = &'a dyn Fn() -> bool;

/// Installed packages.
pub trait Images: Send + Sync {
    /// One attempt: download, verify, unpack, publish by rename. On failure nothing is left but
    /// what came of a download that may be taken up again. `evicted` gets what had to be removed
    /// to make room, also when the install fails.
    fn install(
        &self,
        plan: &InstallPlan,
        evicted: &mut Vec<PackageKey>,
        halt: Halt<'_>,
    ) -> Result<Installed, Failure>;
    /// Reads and cheaply checks an installed service.
    fn load(&self, service: &InstalledService) -> Result<ServiceImage, Failure>;
    /// Whether the image of a start is still what `load` found, without reading much of it. The
    /// failure names the package that is not.
    fn check(&self, plan: &StartPlan) -> Result<(), Failure>;
    /// Reads all of an installed package. A failure that is not transient: it is damaged.
    fn verify(&self, row: &Row, halt: Halt<'_>) -> Result<Verified, Failure>;
    /// Removes the directory of a package; a missing one is success.
    fn remove(&self, path: &Path) -> Result<(), Failure>;
    /// Empties the staging and download places, removes image directories that are neither in
    /// `known` nor to be kept, and tells which of `known` are no directories (an eviction that was
    /// not recorded any more).
    fn tidy(&self, known: &[PathBuf], keep: &Keep) -> Result<Vec<PathBuf>, Failure>;
}

/// The process manager on the main thread.
pub trait Processes: Send + Sync {
    /// Runs a command to its end; at the deadline its process group is killed.
    fn run(&self, command: Command) -> Result<CommandEnd, Failure>;
    /// Starts a command and does not wait: it ends by itself, when nobody reads its output any more,
    /// or at its deadline. The end of its output tells that it has ended, or could not be started.
    fn start(&self, command: Command) -> Result<(), Failure>;
    /// Supervises the init of an instance: its end becomes `Event::Exited`.
    fn watch(&self, watch: Watch) -> Result<(), Failure>;
}

/// A command: no shell, no environment but `PATH` and what is given, closed descriptors.
#[derive(Debug)]
pub struct Command {
    pub argv: Vec<OsString>,
    /// The file to execute; `None` = the one that the first word names.
    pub program: Option<PathBuf>,
    /// Variables beside `PATH`.
    pub environment: Vec<(&'static str, OsString)>,
    /// `None` = `/dev/null`.
    pub stdout: Option<OwnedFd>,
    /// `None` = `/dev/null`.
    pub stderr: Option<OwnedFd>,
    pub deadline: Duration,
}

impl Command {
    /// A command without outputs.
    pub fn new(argv: Vec<OsString>, deadline: Duration) -> Self {
        let (program, environment) = (None, Vec::new());
        Self { argv, program, environment, stdout: None, stderr: None, deadline }
    }
}

/// How a command ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CommandEnd {
    pub exit: Exit,
    /// It was killed at its deadline.
    pub timed_out: bool,
}

/// An init to supervise.
#[derive(Debug)]
pub struct Watch {
    pub id: InstanceId,
    pub pid: u32,
    pub pidfd: OwnedFd,
    /// Counter file of OOM kills and its value now.
    pub oom: Option<(std::fs::File, u64)>,
    /// Taken over from an earlier life of the daemon: not our child.
    pub adopted: bool,
}

/// Time as core sees it; no other code of core reads a clock.
pub trait Clock: Send + Sync {
    fn now(&self) -> Now;
}

/// One reading of all clocks.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Now {
    /// CLOCK_MONOTONIC.
    pub mono: Duration,
    /// CLOCK_BOOTTIME: goes on while the machine sleeps.
    pub boot: Duration,
    /// Unix time in milliseconds.
    pub wall_ms: i64,
}
