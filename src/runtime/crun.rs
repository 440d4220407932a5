//! The port `Runtime` for crun and runc: their command lines, files and messages. Nothing else
//! knows them.
//!
//! Runs on the exec threads; commands and watches go to the process manager. In: instance ids and
//! prepared bundles. Out: containers. The control group is the authority over what belongs to an
//! instance; what the runtime says about success of a removal is never trusted.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::unistd::pipe2;
use serde_json::Value;

use crate::model::event::Exit;
use crate::model::failure::Failure;
use crate::model::id::InstanceId;
use crate::model::job::{Record, Started};
use crate::model::status::chain;
use crate::ports::{Command, Init, Processes, Runtime, Stdio, Watch};
use crate::runtime::cgroup::{self, Groups};
use crate::runtime::enforce;
use crate::runtime::sealed::{self, Sealed};
use crate::sys::cgroups::Layout;
use crate::sys::{fs as files, is_errno, mount, pidfd, process};

/// How long one call of the runtime may take.
pub const COMMAND_DEADLINE: Duration = Duration::from_secs(10);

/// How long a process may take from the end of its membership in control groups to its end.
const LAST_MOMENT: Duration = Duration::from_millis(100);

/// How much of the runtime's log is read, in bytes.
pub const LOG_MAX: usize = 4096;

/// Lines of the error output that are reported, the last ones.
const COMPLAINT_LINES: usize = 3;

/// Reported when they have been taken out of the sink before they could be read there.
const IN_THE_LOG: &str = "its words are in the log of the instance";

/// How both runtimes call a program that they cannot execute; crun does not always name it.
const EXECUTABLE: &str = "executable";

/// What a pipe holds at most, in bytes.
const PIPE_MAX: u64 = 64 << 10;

/// Longest file with the state of a container that is read, in bytes.
const STATE_MAX: u64 = 1 << 20;

/// Which command line a runtime speaks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Flavour {
    Crun,
    Runc,
}

/// A runtime that can work on this host.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Program {
    pub binary: PathBuf,
    pub flavour: Flavour,
}

/// What a runtime adapter needs of configuration and host.
#[derive(Clone, Debug)]
pub struct RuntimeSettings {
    /// The runtime, or why there is none: then no container can be created.
    pub program: Result<Program, String>,
    /// `<runDir>`; the state of containers is in `oci/` below it.
    pub run_dir: PathBuf,
    /// Parent of the control groups, below the root of every hierarchy.
    pub cgroup_parent: String,
    pub layout: Layout,
}

/// Why a container could not be handled.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("no container can run on this node: {0}")]
    NoRuntime(String),
    #[error("cannot create {path}")]
    Create {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error(transparent)]
    Scratch(#[from] sealed::Error),
    #[error("{command} {exit}: {message}")]
    Command { command: String, exit: Exit, message: String },
    #[error("{command} took longer than {deadline:?}: {message}")]
    TimedOut { command: String, deadline: Duration, message: String },
    #[error("{command} did not run")]
    NotRun {
        command: String,
        #[source]
        source: Failure,
    },
    #[error("cannot read the number of the init from {path}")]
    PidFile {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot open init {pid}")]
    Open {
        pid: u32,
        #[source]
        source: io::Error,
    },
    #[error("process {pid} is not in the control group of instance {id}")]
    WrongGroup { id: InstanceId, pid: u32 },
    #[error("process {pid} is not the recorded one")]
    WrongProcess { pid: u32 },
    #[error("process {pid} has ended")]
    Ended { pid: u32 },
    #[error("the runtime knows another process than {pid}")]
    WrongState { pid: u32 },
    #[error("init {pid} cannot be watched")]
    Watch {
        pid: u32,
        #[source]
        source: Failure,
    },
    #[error("cannot remove {path}")]
    Remove {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error(transparent)]
    Group(#[from] cgroup::Error),
}

impl Error {
    /// The same call may succeed later without anybody changing anything.
    fn is_transient(&self) -> bool {
        matches!(self, Self::TimedOut { .. } | Self::Group(cgroup::Error::Unkillable { .. }))
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        if error.is_transient() { Self::transient(&error) } else { Self::lasting(&error) }
    }
}

/// crun, or runc, whose command line differs little.
pub struct Crun {
    settings: RuntimeSettings,
    /// `<runDir>/oci`
    state_root: PathBuf,
    groups: Groups,
    /// How crun is executed; runc gains nothing by it, because its init does not get the variables.
    sealed: Option<Sealed>,
    processes: Arc<dyn Processes>,
    /// Of one command.
    deadline: Duration,
}

impl std::fmt::Debug for Crun {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Crun").field("settings", &self.settings).finish_non_exhaustive()
    }
}

impl Crun {
    /// Makes the directory for the state of containers.
    pub fn new(settings: RuntimeSettings, processes: Arc<dyn Processes>) -> Result<Self, Error> {
        let state_root = settings.run_dir.join("oci");
        files::make_dirs(&state_root, 0o700)
            .map_err(|source| Error::Create { path: state_root.clone(), source })?;
        // The table of mounts has real paths, and clean-up looks there.
        let state_root = state_root.canonicalize().unwrap_or(state_root);
        let groups = Groups::new(settings.layout.clone(), &settings.cgroup_parent);
        let program = settings.program.as_ref().ok();
        let crun = program.filter(|program| program.flavour == Flavour::Crun);
        let sealed = crun.map(|crun| Sealed::new(&crun.binary, settings.run_dir.join("crun")));
        let sealed = sealed.transpose()?;
        Ok(Self { settings, state_root, groups, sealed, processes, deadline: COMMAND_DEADLINE })
    }

    fn bundle(&self, id: &InstanceId) -> PathBuf {
        self.settings.run_dir.join("runtime").join(id.as_str())
    }

    fn state_dir(&self, id: &InstanceId) -> PathBuf {
        self.state_root.join(id.as_str())
    }

    /// The arguments in front of every command. The log is left out where its directory is gone.
    fn global_arguments(&self, program: &Program, bundle: &Path) -> Vec<OsString> {
        let mut argv: Vec<OsString> =
            vec![program.binary.clone().into(), "--root".into(), self.state_root.clone().into()];
        if program.flavour == Flavour::Crun {
            // runc has no such option, and this as its default.
            argv.push("--cgroup-manager=cgroupfs".into());
        }
        if bundle.is_dir() {
            let mut log = OsString::new();
            let path = log_file(bundle).into_os_string();
            if program.flavour == Flavour::Crun && path.as_encoded_bytes().contains(&b':') {
                // It takes what stands before the first colon for the kind of log.
                log.push("file:");
            }
            log.push(path);
            argv.extend(["--log".into(), log, "--log-format".into(), "json".into()]);
        }
        argv
    }

    /// Runs one command to its end; the error has what the runtime says about it.
    fn call(
        &self,
        bundle: &Path,
        arguments: Vec<OsString>,
        stdio: Option<Stdio>,
    ) -> Result<(), Error> {
        let program =
            self.settings.program.as_ref().map_err(|why| Error::NoRuntime(why.clone()))?;
        let verb = arguments.first().map(|verb| verb.to_string_lossy().into_owned());
        let name = program.binary.file_name().unwrap_or_default().to_string_lossy();
        let command = format!("{name} {}", verb.unwrap_or_default());
        let mut argv = self.global_arguments(program, bundle);
        argv.extend(arguments);
        let (stdout, stderr, complaint) = match stdio {
            Some(Stdio { stdout, stderr }) => {
                let complaint = Complaint::in_sink(&stderr);
                (Some(stdout), Some(stderr), complaint)
            }
            None => {
                let (complaint, stderr) = Complaint::in_pipe();
                (None, stderr, complaint)
            }
        };
        let mut request = Command { stdout, stderr, ..Command::new(argv, self.deadline) };
        if let Some(sealed) = &self.sealed {
            request.program = sealed.file();
            request.environment = sealed.environment();
        }
        let end = match self.processes.run(request) {
            Ok(end) => end,
            Err(source) => return Err(Error::NotRun { command, source }),
        };
        let logged = take_message(&log_file(bundle));
        let message = || logged.or_else(|| complaint.text()).unwrap_or_else(no_message);
        match end.exit {
            _ if end.timed_out => {
                Err(Error::TimedOut { command, deadline: self.deadline, message: message() })
            }
            Exit::Code(0) => Ok(()),
            exit => Err(Error::Command { command, exit, message: message() }),
        }
    }

    fn create_container(
        &self,
        id: &InstanceId,
        bundle: &Path,
        stdio: Stdio,
    ) -> Result<Init, Error> {
        let pid_file = bundle.join(".pid");
        let arguments = vec![
            "create".into(),
            // crun changes into the bundle first, so this must be absolute.
            "--pid-file".into(),
            pid_file.clone().into(),
            "--bundle".into(),
            bundle.into(),
            id.as_str().into(),
        ];
        self.groups.below_parents(|| self.call(bundle, arguments, Some(stdio)))??;
        let pid = read_pid(&pid_file)
            .map_err(|source| Error::PidFile { path: pid_file.clone(), source })?;
        let (pidfd, start_time) = open_init(pid)?;
        if !self.groups.contains(id, pid) {
            return Err(Error::WrongGroup { id: id.clone(), pid });
        }
        self.watch(id, pid, pidfd)?;
        Ok(Init { pid, start_time })
    }

    /// An init that is not our child, whatever the reason, is watched as an adopted one.
    fn watch(&self, id: &InstanceId, pid: u32, pidfd: OwnedFd) -> Result<(), Error> {
        let parent = process::stat(pid).map_err(|source| Error::Open { pid, source })?.parent;
        let adopted = parent != std::process::id();
        let oom = self.groups.oom_counter(id);
        let watch = Watch { id: id.clone(), pid, pidfd, oom, adopted };
        self.processes.watch(watch).map_err(|source| Error::Watch { pid, source })
    }

    fn adopt_container(&self, id: &InstanceId, record: &Record) -> Result<Started, Error> {
        let pid = record.pid;
        // The descriptor first: it pins the process, and the checks after it prove which one.
        let (pidfd, start_time) = open_init(pid)?;
        if start_time != record.start_time {
            return Err(Error::WrongProcess { pid });
        }
        if !self.groups.contains(id, pid) {
            return Err(Error::WrongGroup { id: id.clone(), pid });
        }
        if self.known_init(id).is_some_and(|known| known.pid != pid) {
            return Err(Error::WrongState { pid });
        }
        if pidfd::has_ended(pidfd.as_fd()).unwrap_or(true) {
            return Err(Error::Ended { pid });
        }
        self.watch(id, pid, pidfd)?;
        self.check_limits(id);
        Ok(Started { pid, doubt: None })
    }

    fn check_limits(&self, id: &InstanceId) {
        enforce::check(&self.settings.layout, &self.groups.leaf(id), id, &self.bundle(id));
    }

    /// The init according to the runtime's own file; `None` = no readable file.
    fn known_init(&self, id: &InstanceId) -> Option<Init> {
        let (name, pid, start_time) = match self.settings.program.as_ref().ok()?.flavour {
            Flavour::Crun => ("status", "pid", "process-start-time"),
            Flavour::Runc => ("state.json", "init_process_pid", "init_process_start"),
        };
        let path = self.state_dir(id).join(name);
        if fs::metadata(&path).ok()?.len() > STATE_MAX {
            return None;
        }
        let state: Value = serde_json::from_slice(&fs::read(path).ok()?).ok()?;
        let number = |key: &str| state.get(key)?.as_u64();
        Some(Init { pid: u32::try_from(number(pid)?).ok()?, start_time: number(start_time)? })
    }

    /// Everything that a runtime makes for a specification of ours is in the control groups and in
    /// its state directory, so both go without a call of it. It is asked only if it knows of a
    /// process that lives outside of the groups.
    fn delete_container(&self, id: &InstanceId) -> Result<(), Error> {
        let state = self.state_dir(id);
        if let Some(error) = self.groups.kill(std::slice::from_ref(id)).remove(id) {
            return Err(error.into());
        }
        if self.known_init(id).is_some_and(lives_on) {
            log::warn!("a container has left its control groups instance={id}");
            let arguments = vec!["delete".into(), "-f".into(), id.as_str().into()];
            if let Err(error) = self.call(&self.bundle(id), arguments, None) {
                log::warn!("{} instance={id}", chain(&error));
            }
        }
        let removed = self.groups.remove(id);
        self.groups.remove_parents();
        remove_state(&state).map_err(|source| Error::Remove { path: state, source })?;
        Ok(removed?)
    }

    /// A predecessor that crashed would share limits and counters with the new container.
    fn clear_leftover(&self, id: &InstanceId) -> Result<(), Error> {
        if self.state_dir(id).exists() || !self.groups.processes(id)?.is_empty() {
            log::warn!("left-over container removed instance={id}");
            self.delete_container(id)?;
        }
        Ok(())
    }
}

impl Runtime for Crun {
    fn create(&self, id: &InstanceId, bundle: &Path, stdio: Stdio) -> Result<Init, Failure> {
        self.clear_leftover(id)?;
        let created = self.create_container(id, bundle, stdio);
        if created.is_err()
            && let Err(error) = self.delete_container(id)
        {
            log::warn!("{} instance={id}", chain(&error));
        }
        Ok(created?)
    }

    fn start(&self, id: &InstanceId) -> Result<(), Failure> {
        self.call(&self.bundle(id), vec!["start".into(), id.as_str().into()], None)?;
        self.check_limits(id);
        Ok(())
    }

    fn blames_program(&self, failure: &Failure) -> bool {
        failure.message.contains(EXECUTABLE)
    }

    fn adopt(&self, id: &InstanceId, record: &Record) -> Result<Started, Failure> {
        Ok(self.adopt_container(id, record)?)
    }

    fn kill(&self, ids: &[InstanceId]) -> BTreeMap<InstanceId, Failure> {
        let failed = self.groups.kill(ids).into_iter();
        failed.map(|(id, error)| (id, Error::Group(error).into())).collect()
    }

    fn delete(&self, id: &InstanceId) -> Result<(), Failure> {
        Ok(self.delete_container(id)?)
    }

    fn survey(&self) -> Vec<InstanceId> {
        let mut ids = self.groups.survey();
        let entries = fs::read_dir(&self.state_root).into_iter().flatten().flatten();
        ids.extend(entries.filter_map(|entry| {
            let is_dir = entry.file_type().is_ok_and(|kind| kind.is_dir());
            entry.file_name().to_str().filter(|_| is_dir).map(InstanceId::new)
        }));
        ids.into_iter().collect()
    }
}

/// A runtime that was killed leaves its own program mounted in there: runc binds it read-only for
/// a moment at each start.
fn remove_state(state: &Path) -> io::Result<()> {
    match files::remove_tree(state) {
        Err(error) if is_errno(&error, Errno::EBUSY) => {
            mount::unmount_below(state)?;
            files::remove_tree(state)
        }
        other => other,
    }
}

/// Tells whether an init is still there when its groups are empty. One that has just been killed
/// leaves them a moment before its end.
fn lives_on(init: Init) -> bool {
    let Ok(pidfd) = pidfd::open(init.pid) else { return false };
    process::start_time(init.pid).is_ok_and(|start_time| start_time == init.start_time)
        && !pidfd::wait_end(pidfd.as_fd(), LAST_MOMENT).unwrap_or(false)
}

fn log_file(bundle: &Path) -> PathBuf {
    bundle.join("runtime.log")
}

fn read_pid(path: &Path) -> io::Result<u32> {
    let text = fs::read_to_string(path)?;
    text.trim().parse().map_err(|_| io::ErrorKind::InvalidData.into())
}

fn open_init(pid: u32) -> Result<(OwnedFd, u64), Error> {
    let ended = |source: io::Error| match is_errno(&source, Errno::ESRCH) {
        true => Error::Ended { pid },
        false => Error::Open { pid, source },
    };
    let pidfd = pidfd::open(pid).map_err(ended)?;
    let start_time = process::start_time(pid).map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => Error::Ended { pid },
        _ => Error::Open { pid, source },
    })?;
    Ok((pidfd, start_time))
}

/// What a runtime writes to its error output: where it has no log yet, that is all it says (a
/// library that is missing, an option that it does not know).
enum Complaint {
    /// Of a command with an output of its own. A full pipe refuses more, so that nothing blocks.
    Pipe(File),
    /// The container's sink, and what it held before.
    Sink(File, u64),
    /// The container's sink cannot be read: it is a stream to the journal.
    Unread,
}

impl Complaint {
    fn in_pipe() -> (Self, Option<OwnedFd>) {
        match pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK) {
            Ok((read, write)) => (Self::Pipe(read.into()), Some(write)),
            Err(_) => (Self::Unread, None),
        }
    }

    fn in_sink(stderr: &OwnedFd) -> Self {
        let again = format!("/proc/self/fd/{}", stderr.as_raw_fd());
        let opened = stderr.try_clone().map(File::from).and_then(|sink| sink.metadata());
        match opened {
            Ok(meta) if meta.is_file() => {
                File::open(again).map_or(Self::Unread, |file| Self::Sink(file, meta.len()))
            }
            _ => Self::Unread,
        }
    }

    /// The end of it, in one line.
    fn text(&self) -> Option<String> {
        let mut buffer = [0; LOG_MAX];
        let length = match self {
            Self::Pipe(pipe) => {
                let mut whole = Vec::new();
                // Ends at once with an error when another process still holds the pipe.
                let _ = pipe.take(PIPE_MAX).read_to_end(&mut whole);
                let end = &whole[whole.len().saturating_sub(LOG_MAX)..];
                buffer[..end.len()].copy_from_slice(end);
                end.len()
            }
            Self::Sink(file, before) => {
                let size = file.metadata().ok()?.len();
                let start = size.saturating_sub(LOG_MAX as u64).max(*before);
                file.read_at(&mut buffer, start).ok()?
            }
            Self::Unread => return None,
        };
        // The log thread may have taken it by now, and leaves zeros.
        let is_taken = length > 0 && buffer[..length].iter().all(|byte| *byte == 0);
        if is_taken {
            return Some(IN_THE_LOG.to_owned());
        }
        let text = String::from_utf8_lossy(&buffer[..length]);
        let lines = text.lines().map(|line| line.trim_matches(['\0', ' ', '\t', '\r']));
        let lines: Vec<&str> = lines.filter(|line| !line.is_empty()).collect();
        let from = lines.len().saturating_sub(COMPLAINT_LINES);
        (!lines.is_empty()).then(|| lines[from..].join("; "))
    }
}

fn no_message() -> String {
    "no message".to_owned()
}

/// Reads the last message of the runtime's log and removes the log.
fn take_message(path: &Path) -> Option<String> {
    let message = File::open(path).and_then(|file| {
        let mut buffer = [0; LOG_MAX];
        let start = file.metadata()?.len().saturating_sub(buffer.len() as u64);
        let length = file.read_at(&mut buffer, start)?;
        Ok(last_message(&String::from_utf8_lossy(&buffer[..length])))
    });
    // One that stays is appended to, and removed with its bundle.
    let _ = fs::remove_file(path);
    message.ok().flatten()
}

fn last_message(log: &str) -> Option<String> {
    let message = |line: &str| {
        let line: Value = serde_json::from_str(line).ok()?;
        Some(line.get("msg")?.as_str()?.trim().to_owned())
    };
    log.lines().rev().find_map(message).filter(|message| !message.is_empty())
}

#[cfg(test)]
mod tests;
