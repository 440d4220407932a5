//! Output of instances: caught without the daemon's help, kept bounded, delivered on request.
//!
//! A container writes either to journald or to a spool of its own, a file on a small tmpfs
//! (`sink`, on the exec threads). The thread `log-in` (`intake`, `capture`) moves spools into
//! segments on disk (`segment`, `record`) and makes alerts (`alerts`) of what instances, journal
//! (`follow`), kernel (`kmsg`) and the daemon itself say; the thread `log-out` (`serve`) answers log
//! requests from the segments, from system log files or from the journal. The two share nothing but
//! the files: a reader needs no help of the writer.

pub mod alerts;
mod archive;
pub mod capture;
mod drain;
mod export;
mod follow;
mod ident;
pub mod intake;
mod journal;
mod kmsg;
mod position;
mod reader;
mod record;
mod segment;
pub mod serve;
pub mod sink;
mod spool;
mod syslog;
mod system;
#[cfg(test)]
mod testing;
mod throttle;

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::logs::alerts::AlertSettings;
use crate::model::id::InstanceId;

/// Configuration of everything in this module; sizes in bytes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LogSettings {
    /// Where container output goes.
    pub backend: Backend,
    /// Directory of the sockets of journald.
    pub journal_dir: PathBuf,
    /// Parent of the control groups of the instances, as the key `cgroupParent` spells it.
    pub cgroup_parent: String,
    /// Root of all volatile files; spools are made in `log/` below it.
    pub run_dir: PathBuf,
    /// Root of the permanent files; segments are kept in `logs/` below it.
    pub working_dir: PathBuf,
    /// Spool of one instance, moved into `sink::SPOOL_BYTES`.
    pub spool_bytes: u64,
    /// Store of one instance, at least two segments.
    pub instance_store_bytes: u64,
    /// Store of all instances together.
    pub store_bytes: u64,
    /// How long logs of a removed instance are kept.
    pub retention: Duration,
    /// How often a dirty segment is flushed; zero = only at the end of a segment.
    pub sync_period: Duration,
    /// Lines that one instance may write in `drain::RATE_PERIOD`, on average over
    /// `drain::BURST_PERIODS` of them.
    pub rate_lines: u64,
    /// Bytes, likewise.
    pub rate_bytes: u64,
    /// Text of one part of an answer, before compression; one line may exceed it.
    pub max_part_bytes: u64,
    /// Parts of one answer.
    pub max_part_count: u64,
    /// Files of the system log; `None` = the first existing one of `system::DEFAULT_FILES`.
    pub system_log_files: Option<Vec<PathBuf>>,
    /// What becomes an alert.
    pub alerts: AlertSettings,
}

/// Where container output goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Backend {
    /// journald if it takes connections at the start of an instance, else the store.
    #[default]
    Auto,
    Journal,
    Store,
}

/// What went wrong with logs.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot connect to journald at {path}")]
    Journal { path: PathBuf, source: io::Error },
    #[error("cannot make the spool {path}")]
    Spool { path: PathBuf, source: io::Error },
    #[error("cannot read the spool {path}")]
    Drain { path: PathBuf, source: io::Error },
    #[error("cannot write to the log store {path}")]
    Store { path: PathBuf, source: io::Error },
    #[error("cannot read {path}")]
    Read { path: PathBuf, source: io::Error },
    #[error("cannot keep the parts of an answer in {path}")]
    Spill { path: PathBuf, source: io::Error },
    #[error("cannot compress a part")]
    Compress { source: io::Error },
    #[error("there is no system log: no journal, and no log file is readable")]
    NoSystemLog,
    #[error("journalctl failed: {reason}")]
    Journalctl { reason: String },
    #[error("the thread that captures logs does not answer")]
    NoCapture,
}

/// Name of the store of the daemon's own lines, and of their unit.
const OWN_STORE: &str = "aos-servicemanager";

/// Name of the unit that log lines of an instance belong to.
fn unit(id: &InstanceId) -> String {
    format!("aos-service@{id}.service")
}

/// All spools.
fn spool_root(settings: &LogSettings) -> PathBuf {
    settings.run_dir.join("log")
}

/// The spool of an instance: a mount point.
fn spool_dir(settings: &LogSettings, id: &InstanceId) -> PathBuf {
    spool_root(settings).join(id.as_str())
}

/// All segments.
fn store_root(settings: &LogSettings) -> PathBuf {
    settings.working_dir.join("logs")
}

/// Segments and `ident` of an instance.
fn store_dir(settings: &LogSettings, id: &InstanceId) -> PathBuf {
    store_root(settings).join(id.as_str())
}

/// The 16 bytes of an id that is written as hexadecimal digits, with or without dashes; zeros where
/// there are none.
fn id_bytes(text: &str) -> [u8; 16] {
    let digits: Vec<u8> =
        text.chars().filter_map(|c| c.to_digit(16)).filter_map(|d| u8::try_from(d).ok()).collect();
    std::array::from_fn(|index| match digits.get(2 * index..2 * index + 2) {
        Some([high, low]) => high << 4 | low,
        _ => 0,
    })
}

/// Ids that have a directory below `root`; nothing when it does not exist.
fn ids_below(root: &Path) -> Vec<InstanceId> {
    let entries = std::fs::read_dir(root).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .filter_map(|entry| entry.file_name().to_str().map(InstanceId::new))
        .collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::model::desired::{DesiredInstance, InstanceNetwork};
    use crate::model::id::{InstanceIdent, NetworkId, ServiceId, ServiceKey, SubjectId};
    use crate::model::job::{LimiterState, Record, StartKind, StartPlan};
    use crate::model::service::{InstalledService, ServiceImage};
    use crate::sys::mount::isolate;

    /// Runs the body where it may mount; what it mounts goes with the thread.
    pub(crate) fn isolated(name: &str, body: impl FnOnce(&Path) + Send) {
        // Removed when the mounts in it are gone with the thread.
        let root = tempfile::tempdir().unwrap();
        let path = root.path();
        std::thread::scope(|scope| {
            let thread = scope.spawn(move || match isolate() {
                Ok(()) => body(path),
                Err(err) => println!("SKIP {name}: no mount namespace: {err}"),
            });
            if let Err(panic) = thread.join() {
                std::panic::resume_unwind(panic);
            }
        });
    }

    /// Start of an instance of the service `service-<id>`.
    pub(crate) fn plan(id: &str) -> StartPlan {
        let ident = InstanceIdent {
            service_id: ServiceId::new(&format!("service-{id}")),
            subject_id: SubjectId::new("subject"),
            instance: 0,
        };
        let key = ServiceKey { id: ident.service_id.clone(), version: Arc::from("1.0.0") };
        StartPlan {
            id: InstanceId::new(id),
            instance: Arc::new(DesiredInstance {
                ident: ident.clone(),
                uid: 5000,
                priority: 0,
                storage_path: Arc::from(""),
                state_path: Arc::from(""),
                network: InstanceNetwork::default(),
            }),
            service: Arc::new(InstalledService {
                key,
                provider_id: NetworkId::new("provider"),
                gid: 0,
                path: PathBuf::new(),
                manifest_digest: Vec::new(),
                tree_digest: String::new(),
                package_digest: Vec::new(),
                size_bytes: 0,
                installed_at_ms: 0,
                unused_since_ms: None,
                confirmed: false,
            }),
            image: Arc::new(ServiceImage::default()),
            layers: Vec::new(),
            secret: None,
            overrides: Arc::default(),
            devices: Vec::new(),
            resources: Vec::new(),
            max_dmips: 0,
            kind: StartKind::Fresh,
            data_ready: false,
            record: Record {
                ident,
                service_version: Arc::from("1.0.0"),
                inputs_digest: String::new(),
                overrides: Arc::default(),
                secret_hash: String::new(),
                pid: 0,
                start_time: 0,
                limiter: LimiterState::default(),
                restarts: 0,
                started_at_ns: 0,
            },
        }
    }

    /// Settings of a daemon with all its files below `root`.
    pub(crate) fn settings(root: &Path) -> LogSettings {
        LogSettings {
            backend: Backend::Store,
            journal_dir: root.join("journal"),
            cgroup_parent: "/aos.slice".to_owned(),
            run_dir: root.join("run"),
            working_dir: root.to_owned(),
            spool_bytes: 256 << 10,
            instance_store_bytes: 2 << 20,
            store_bytes: 32 << 20,
            retention: Duration::from_secs(7 * 24 * 3600),
            sync_period: Duration::from_secs(30),
            rate_lines: 10_000,
            rate_bytes: 4 << 20,
            max_part_bytes: 512 << 10,
            max_part_count: 20,
            system_log_files: None,
            alerts: crate::logs::alerts::tests::settings(),
        }
    }
}
