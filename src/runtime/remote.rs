//! File systems with a server that may be silent: the port `InstanceData`.
//!
//! Whoever touches such a file system may wait for as long as its server likes, and nobody can end
//! that wait, least of all a thread of the daemon. So a process of its own does it: the same
//! program, started by the process manager, with one errand. Its words come through a pipe; the
//! fetch thread waits for them a moment only. A process that is still out is not followed by
//! another one: there is at most one for each mount, however long its server is silent, and the
//! kernel tells of its end by closing the pipe. Not here: what follows from that (`core::data`).

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::io::{self, PipeReader, Read, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::model::failure::Failure;
use crate::model::job::StartPlan;
use crate::model::status::chain;
use crate::ports::{Command, InstanceData, Processes};
use crate::runtime::bundle::{self, BundleStore};
use crate::runtime::storage::{self, Owner, Place};
use crate::sys::mount::mount_of;
use crate::sys::time::monotonic;
use crate::sys::{progress, retry, usage};

/// How long a server may take before it counts as silent.
pub const PATIENCE: Duration = Duration::from_secs(5);
/// The process is killed after so long, where the kernel lets it.
const ERRAND_LIMIT: Duration = Duration::from_secs(60);
/// Longest words of an errand, in bytes.
const WORDS_MAX: usize = 4096;
/// First argument of the program when it is to run an errand.
const ERRAND: &str = "-errand";
const PROGRAM: &str = "/proc/self/exe";

/// Why an errand failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{path}: the server of its file system is silent")]
    Silent { path: PathBuf },
    #[error("{text}")]
    Refused { text: String },
    #[error("{path}: the process that looks after it has ended without a word")]
    Wordless { path: PathBuf },
    #[error("cannot start a process for {path}: {reason}")]
    Start { path: PathBuf, reason: String },
    #[error("cannot make a pipe for {path}")]
    Pipe {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// One thing to do on such a file system.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Errand {
    /// Used bytes of the file system.
    Used(PathBuf),
    State(Place),
    Storage(Place),
}

impl Errand {
    fn path(&self) -> PathBuf {
        match self {
            Self::Used(path) => path.clone(),
            Self::State(place) | Self::Storage(place) => place.root.join(&place.relative),
        }
    }

    fn to_arguments(&self) -> Vec<OsString> {
        let data = |kind: &str, place: &Place| {
            let Owner { uid, gid } = place.owner;
            let numbers = [uid.to_string(), gid.to_string()].map(OsString::from);
            let mut words: Vec<OsString> =
                vec![kind.into(), (&place.root).into(), (&place.relative).into()];
            words.extend(numbers);
            words
        };
        match self {
            Self::Used(path) => vec!["used".into(), path.into()],
            Self::State(place) => data("state", place),
            Self::Storage(place) => data("storage", place),
        }
    }

    fn parse(words: &[OsString]) -> Option<Self> {
        let number = |word: &OsStr| word.to_str()?.parse().ok();
        Some(match words {
            [kind, path] if kind == "used" => Self::Used(path.into()),
            [kind, root, relative, uid, gid] => {
                let owner = Owner { uid: number(uid)?, gid: number(gid)? };
                let relative = relative.to_str()?.to_owned();
                let place = Place { root: root.into(), relative, owner };
                match kind.to_str()? {
                    "state" => Self::State(place),
                    "storage" => Self::Storage(place),
                    _ => return None,
                }
            }
            _ => return None,
        })
    }

    /// Does it, for as long as the server takes.
    fn run(&self) -> Result<u64, String> {
        let made = |made: Result<PathBuf, storage::Error>| match made {
            Ok(_) => Ok(0),
            Err(error) => Err(chain(&error)),
        };
        match self {
            Self::Used(path) => usage::file_system_bytes(path).map_err(|error| error.to_string()),
            Self::State(at) => made(storage::state_file(&at.root, &at.relative, at.owner)),
            Self::Storage(at) => made(storage::storage_dir(&at.root, &at.relative, at.owner)),
        }
    }
}

/// Runs the errand that the arguments of the program ask for, and says on stdout what came of it.
/// False = they ask for none.
pub fn run_errand(arguments: impl IntoIterator<Item = OsString>) -> bool {
    let mut arguments = arguments.into_iter();
    if arguments.next().is_none_or(|first| first != ERRAND) {
        return false;
    }
    let words: Vec<OsString> = arguments.collect();
    let result = match Errand::parse(&words) {
        Some(errand) => errand.run(),
        None => Err(format!("no errand: {words:?}")),
    };
    let mut out = io::stdout();
    // Whoever asked may have gone.
    let _ = out.write_all(to_words(&result).as_bytes()).and_then(|()| out.flush());
    true
}

fn to_words(result: &Result<u64, String>) -> String {
    match result {
        Ok(number) => format!("ok {number}"),
        Err(text) => format!("failed {text}"),
    }
}

/// `None` = nothing was said.
fn from_words(words: &[u8]) -> Option<Result<u64, String>> {
    let words = String::from_utf8_lossy(words);
    let (kind, rest) = words.split_once(' ')?;
    match kind {
        "ok" => rest.parse().ok().map(Ok),
        _ => Some(Err(rest.to_owned())),
    }
}

/// Data of instances, and figures, on file systems with a server.
pub struct RemoteData {
    bundles: Arc<BundleStore>,
    processes: Arc<dyn Processes>,
    program: PathBuf,
    patience: Duration,
    /// Mounts whose process is still out. The fetch thread alone locks it; the port demands that it
    /// could be shared.
    out: Mutex<BTreeMap<PathBuf, PipeReader>>,
}

impl std::fmt::Debug for RemoteData {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RemoteData").field("out", &self.out).finish_non_exhaustive()
    }
}

impl RemoteData {
    pub fn new(bundles: Arc<BundleStore>, processes: Arc<dyn Processes>) -> Self {
        Self {
            bundles,
            processes,
            program: PROGRAM.into(),
            patience: PATIENCE,
            out: Mutex::default(),
        }
    }

    fn send(&self, errand: &Errand) -> Result<u64, Error> {
        let path = errand.path();
        let mount = mount_of(&path).ok().flatten().map_or_else(|| path.clone(), |m| m.target);
        let mut out = self.out.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(pipe) = out.get_mut(&mount) {
            let mut words = Vec::new();
            // What it says now was asked some time ago.
            if !read_to_end(pipe, Duration::ZERO, &mut words) {
                return Err(Error::Silent { path });
            }
            out.remove(&mount);
        }
        let mut pipe = self.start(errand, &path)?;
        let mut words = Vec::new();
        if !read_to_end(&mut pipe, self.patience, &mut words) {
            out.insert(mount, pipe);
            return Err(Error::Silent { path });
        }
        let answer = from_words(&words).ok_or(Error::Wordless { path })?;
        answer.map_err(|text| Error::Refused { text })
    }

    fn start(&self, errand: &Errand, path: &Path) -> Result<PipeReader, Error> {
        let (pipe, output) =
            io::pipe().map_err(|source| Error::Pipe { path: path.to_owned(), source })?;
        let mut argv = vec![self.program.clone().into(), ERRAND.into()];
        argv.extend(errand.to_arguments());
        let stdout = Some(output.into());
        let command = Command { stdout, ..Command::new(argv, ERRAND_LIMIT) };
        let started = self.processes.start(command);
        started
            .map_err(|failure| Error::Start { path: path.to_owned(), reason: failure.message })?;
        Ok(pipe)
    }
}

/// True = the other end was closed within `limit`.
fn read_to_end(pipe: &mut PipeReader, limit: Duration, words: &mut Vec<u8>) -> bool {
    let end = monotonic() + limit;
    let mut piece = [0; WORDS_MAX];
    loop {
        let left = end.saturating_sub(monotonic()).as_millis();
        let left = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        let mut fds = [PollFd::new(pipe.as_fd(), PollFlags::POLLIN)];
        if !matches!(progress::waiting(|| retry(|| poll(&mut fds, left))), Ok(1..)) {
            return false;
        }
        match pipe.read(&mut piece) {
            Ok(0) | Err(_) => return true,
            Ok(length) => {
                let room = WORDS_MAX - words.len();
                words.extend_from_slice(&piece[..length.min(room)]);
            }
        }
    }
}

impl InstanceData for RemoteData {
    fn check(&self, plan: &StartPlan) -> Result<(), Failure> {
        match self.bundles.remote_path(plan).filter(|_| !plan.data_ready) {
            Some(path) => {
                let error = bundle::Error::Remote { path };
                Err(Failure { remote_data: true, ..Failure::transient(&error) })
            }
            None => Ok(()),
        }
    }

    fn prepare_data(&self, plan: &StartPlan) -> Result<bool, Failure> {
        if self.bundles.remote_path(plan).is_none() {
            return Ok(false);
        }
        let [state, storage] = self.bundles.data_of(plan);
        for errand in state.map(Errand::State).into_iter().chain(storage.map(Errand::Storage)) {
            self.send(&errand).map_err(|error| Failure::transient(&error))?;
        }
        Ok(true)
    }

    fn used_bytes(&self, path: &Path) -> Result<u64, Failure> {
        let errand = Errand::Used(path.to_owned());
        self.send(&errand).map_err(|error| Failure::transient(&error))
    }
}

#[cfg(test)]
mod tests;
