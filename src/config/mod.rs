//! The configuration file: the keys of 7.x and 8.x, and our own (DESIGN section 5).
//!
//! Read once by main, before any thread exists; a JSON file in, a `Config` with every default
//! filled in out. Wrong values end the start with one line that names key, value and what is
//! allowed; values that the Go releases accepted and that make no sense are corrected with a
//! warning. Deliberately not here: whether files, devices and peers that are named exist.

mod decode;

use std::fs::File;
use std::io::{self, Read};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::document::{self, Object};
use crate::model::node::{Host, Partition};

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot read configuration file {path}")]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("configuration file {path} is not valid")]
    Invalid {
        path: PathBuf,
        #[source]
        source: document::Error,
    },
    #[error("cannot find out the current directory for relative paths")]
    CurrentDirectory {
        #[source]
        source: io::Error,
    },
}

/// All keys, with defaults. Directories and files are absolute paths.
#[derive(Clone, PartialEq, Debug)]
pub struct Config {
    /// PEM file with the roots for IAM and CM; empty = not set.
    pub ca_cert: PathBuf,
    /// Type of the certificate that IAM is asked for (key `certStorage`).
    pub cert_type: String,
    /// `host:port`; empty = no CM.
    pub cm_server_url: String,
    /// `host:port` with mutual TLS; empty = no registration of instances.
    pub iam_protected_server_url: String,
    /// `host:port`
    pub iam_public_server_url: String,
    /// Longest pause between attempts to connect.
    pub cm_reconnect_timeout: Duration,

    pub working_dir: PathBuf,
    pub storage_dir: PathBuf,
    pub state_dir: PathBuf,
    pub services_dir: PathBuf,
    pub layers_dir: PathBuf,
    pub download_dir: PathBuf,
    /// Emptied at start, otherwise unused.
    pub extract_dir: PathBuf,
    /// v4: configuration of this node.
    pub node_config_file: PathBuf,
    /// v3: configuration of the unit.
    pub unit_config_file: PathBuf,
    /// Root of all volatile files.
    pub run_dir: PathBuf,

    /// Percent of the partition, 0 = no limit.
    pub services_part_limit: u64,
    /// Percent of the partition, 0 = no limit.
    pub layers_part_limit: u64,
    /// How long an unused service stays.
    pub service_ttl: Duration,
    /// How long an unused layer stays.
    pub layer_ttl: Duration,
    /// Percent of a partition that installs leave free.
    pub disk_reserve_percent: u64,
    pub install: Install,

    pub instances: Instances,
    pub network: Network,
    pub monitoring: Monitoring,
    pub logging: Logging,
    pub journal_alerts: JournalAlerts,
    /// PKCS#11 library when a URL names none; empty = softhsm.
    pub pkcs11_module: String,
    /// v3: images are fetched over HTTP instead of from files.
    pub remote_node: bool,
    /// v3: names of the runners.
    pub runner_features: Vec<String>,
}

/// Limits of one archive.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Install {
    pub max_entries: u64,
    pub max_depth: u64,
}

/// How instances are run.
#[derive(Clone, PartialEq, Debug)]
pub struct Instances {
    /// crun or runc; `None` = the first usable one.
    pub runtime: Option<PathBuf>,
    /// Absolute, below the root of each hierarchy.
    pub cgroup_parent: PathBuf,
    pub start_verdict: StartVerdict,
    pub keep_on_exit: bool,
    /// Time between a declared stop signal and SIGKILL.
    pub stop_timeout: Duration,
    pub restart_on_secret_change: bool,
    pub max_instances: u64,
    pub allow_root_uid: bool,
    /// File with an OCI seccomp object.
    pub seccomp_profile: Option<PathBuf>,
    /// Host devices that are refused otherwise.
    pub allowed_devices: Vec<PathBuf>,
    /// Names of directories of `/` that instances see.
    pub host_binds: Vec<String>,
    /// Lines for `/etc/hosts` of every instance.
    pub hosts: Vec<Host>,
}

/// When an instance counts as active.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum StartVerdict {
    ConfirmNew,
    Immediate,
    Reference,
}

#[derive(Clone, PartialEq, Debug)]
pub struct Network {
    /// VLAN parent; empty = interface of the default route.
    pub vlan_parent: String,
    /// Serve names on the bridge address.
    pub dns_builtin: bool,
    /// Name servers when there are no others.
    pub dns_fallback: Vec<IpAddr>,
    /// Rules and accounting by nf_tables.
    pub firewall: bool,
    /// Let traffic from outside to every port.
    pub open_inbound: bool,
    /// Start an instance although its speed limit cannot be set.
    pub bandwidth_optional: bool,
    pub traffic_period: TrafficPeriod,
    /// Shortest time between stored counters.
    pub traffic_persist_period: Duration,
    /// Not counted as traffic.
    pub local_networks: Vec<Cidr>,
    /// Life of a removed network that still has instances.
    pub drain_timeout: Duration,
}

/// Period of traffic counters and limits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TrafficPeriod {
    Minute,
    Hour,
    Day,
    Month,
    Year,
}

/// A network in CIDR notation; the host bits are zero.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Cidr {
    pub address: IpAddr,
    pub prefix: u8,
}

#[derive(Clone, PartialEq, Debug)]
pub struct Monitoring {
    /// Between samples: 1 s to 1 h.
    pub poll_period: Duration,
    /// One poll period to 24 h.
    pub average_window: Duration,
    /// v3: between messages.
    pub send_period: Duration,
    pub ram_figure: RamFigure,
    /// v3: partitions of the node; their sizes are measured.
    pub partitions: Vec<Partition>,
}

/// Text of one part of a log answer: with one more line (64 KiB at most) and what compression may
/// add it still fits into a message, of which peers accept 4 MiB.
pub const MAX_PART_SIZE_BYTES: u64 = 3840 * 1024;

/// What is reported as RAM of an instance.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RamFigure {
    Anonymous,
    Total,
}

#[derive(Clone, PartialEq, Debug)]
pub struct Logging {
    /// Bytes of text in one part of an answer.
    pub max_part_size_bytes: u64,
    pub max_part_count: u64,
    pub backend: LogBackend,
    /// Directory of journald's sockets.
    pub journal_dir: PathBuf,
    pub spool_size_bytes: u64,
    pub instance_store_size_bytes: u64,
    pub store_size_bytes: u64,
    /// How long logs of removed instances stay.
    pub retention: Duration,
    /// Between flushes of a segment, zero = never.
    pub sync_period: Duration,
    /// Per instance and 30 s.
    pub rate_lines: u64,
    /// Per instance and 30 s.
    pub rate_bytes: u64,
    /// System log without journald, all of them; empty = the first usual one that exists.
    pub system_log_files: Vec<PathBuf>,
}

/// Where the output of containers goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LogBackend {
    Auto,
    Journal,
    Store,
}

#[derive(Clone, PartialEq, Debug)]
pub struct JournalAlerts {
    /// Regular expressions of messages without alert.
    pub filter: Vec<String>,
    /// Syslog level 0 to 7.
    pub service_alert_priority: u8,
    /// Syslog level 0 to 7.
    pub system_alert_priority: u8,
    /// Kernel messages as system alerts; `None` = only with the log store.
    pub kernel: Option<bool>,
}

impl Config {
    /// Reads and checks the file; logs what was corrected.
    pub fn load(path: &Path) -> Result<Self, Error> {
        let text = read(path).map_err(|source| Error::Read { path: path.to_owned(), source })?;
        let base = std::env::current_dir().map_err(|source| Error::CurrentDirectory { source })?;
        let invalid = |source| Error::Invalid { path: path.to_owned(), source };
        let document = Object::parse(&text).map_err(invalid)?;
        let (config, warnings) = decode::config(&document, &base).map_err(invalid)?;
        for warning in warnings {
            log::warn!("{warning} file={}", path.display());
        }
        Ok(config)
    }

    /// Path of the database.
    pub fn database(&self) -> PathBuf {
        self.working_dir.join(crate::store::FILE_NAME)
    }

    /// Path of the lock of the one daemon.
    pub fn lock_file(&self) -> PathBuf {
        self.run_dir.join("sm.lock")
    }
}

/// At most one byte more than the decoder takes, so that it refuses an endless file.
fn read(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    let limit = document::MAX_SIZE_BYTES as u64 + 1;
    File::open(path)?.take(limit).read_to_string(&mut text)?;
    Ok(text)
}

#[cfg(test)]
mod tests;
