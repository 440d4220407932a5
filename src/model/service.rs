//! An installed service version, decoded: what its package says about how to run it.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use crate::model::id::{Digest, NetworkId, ServiceKey};
use crate::model::node::AlertRules;

/// Row of an installed service version.
#[derive(Clone, PartialEq, Debug)]
pub struct InstalledService {
    pub key: ServiceKey,
    pub provider_id: NetworkId,
    pub gid: u32,
    /// Directory of the image.
    pub path: PathBuf,
    /// SHA-256 of `manifest.json`, raw.
    pub manifest_digest: Vec<u8>,
    /// Digest of the unpacked root file system; empty when taken over without one.
    pub tree_digest: String,
    /// SHA3-256 (v4) of the package file it came from, raw; empty = unknown.
    pub package_digest: Vec<u8>,
    pub size_bytes: u64,
    /// Unix time, milliseconds.
    pub installed_at_ms: i64,
    /// Unix time, milliseconds, since when no request names it; `None` = wanted.
    pub unused_since_ms: Option<i64>,
    /// One instance of this version has been up for its start interval once.
    pub confirmed: bool,
}

/// Row of an installed layer.
#[derive(Clone, PartialEq, Debug)]
pub struct InstalledLayer {
    pub digest: Digest,
    pub layer_id: String,
    pub version: String,
    pub os_version: String,
    pub path: PathBuf,
    pub package_digest: Vec<u8>,
    /// Digest of the unpacked content; empty when taken over or from an earlier release.
    pub tree_digest: String,
    pub size_bytes: u64,
    pub installed_at_ms: i64,
    pub unused_since_ms: Option<i64>,
}

/// The parsed content of an installed image: manifest, image config and service config.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct ServiceImage {
    /// Root file system of the service itself.
    pub rootfs: PathBuf,
    /// Digests of the shared layers; an earlier one hides a later one.
    pub layers: Vec<Digest>,
    pub image: ImageConfig,
    pub service: ServiceConfig,
    /// By what a change of the image is noticed without reading it; empty = unknown.
    pub stamp: Vec<Stamp>,
}

/// What the file system says about a file: another value means that it was touched.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Stamp {
    pub device: u64,
    pub inode: u64,
    pub size_bytes: u64,
    /// Seconds and nanoseconds of the last change of the content and of the inode.
    pub modified: (i64, i64),
    pub changed: (i64, i64),
}

/// What is used of the OCI image configuration.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct ImageConfig {
    pub os: String,
    pub entrypoint: Vec<String>,
    pub cmd: Vec<String>,
    pub working_dir: String,
    pub env: Vec<String>,
    /// Keys such as `80/tcp`.
    pub exposed_ports: Vec<String>,
    /// Name with or without `SIG`, or a number; empty = none.
    pub stop_signal: String,
}

/// What is used of the Aos service configuration.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct ServiceConfig {
    pub hostname: String,
    pub sysctl: BTreeMap<String, String>,
    pub run_parameters: RunParameters,
    /// How long an instance may run without the cloud; `None` = for ever.
    pub offline_ttl: Option<Duration>,
    pub quotas: Quotas,
    pub devices: Vec<ServiceDevice>,
    pub resources: Vec<String>,
    /// Functional server to function to permission string; `None` = no registration with IAM.
    pub permissions: Option<BTreeMap<String, BTreeMap<String, String>>>,
    pub alert_rules: AlertRules,
}

/// The start limiter and the pause between restarts. `None` = default of the generation.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct RunParameters {
    /// Signed nanoseconds: a negative value is an error of the start, not of the package.
    pub start_interval_ns: Option<i64>,
    pub start_burst: Option<u64>,
    pub restart_interval_ns: Option<i64>,
}

/// Limits of one instance. `None` = not limited.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Quotas {
    pub cpu_dmips: Option<u64>,
    /// v3: percent of all CPUs.
    pub cpu_percent: Option<u64>,
    pub ram_bytes: Option<u64>,
    pub pids: Option<u64>,
    pub open_files: Option<u64>,
    pub tmp_bytes: Option<u64>,
    pub state_bytes: Option<u64>,
    pub storage_bytes: Option<u64>,
    pub upload_kbit: Option<u64>,
    pub download_kbit: Option<u64>,
    pub upload_bytes: Option<u64>,
    pub download_bytes: Option<u64>,
}

#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ServiceDevice {
    pub name: String,
    /// Subset of `rwm`.
    pub permissions: String,
}
