//! The OCI runtime configuration as far as the daemon writes it: the shape of `config.json`.
//!
//! Plain data, any thread. Fields stand in the order of the specification; what is empty is not
//! written. Not here: values (`spec`).

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Serialize, Serializer};

/// Version of the specification: the highest that crun 1.8 and runc 1.1 both accept.
pub const VERSION: &str = "1.0.2";

/// A whole `config.json`.
#[derive(Serialize, Clone, PartialEq, Debug)]
#[serde(rename_all = "camelCase")]
pub struct Spec {
    pub oci_version: &'static str,
    pub process: Process,
    pub root: Root,
    pub hostname: String,
    pub mounts: Vec<Mount>,
    pub linux: Linux,
}

impl Spec {
    /// The text of `config.json`, on one line.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("the maps have string keys and no value can fail")
    }
}

#[derive(Serialize, Clone, PartialEq, Debug)]
#[serde(rename_all = "camelCase")]
pub struct Process {
    pub user: User,
    pub args: Vec<String>,
    pub env: Vec<String>,
    pub cwd: String,
    pub capabilities: Capabilities,
    pub rlimits: Vec<Rlimit>,
    pub no_new_privileges: bool,
    pub oom_score_adj: i32,
}

#[derive(Serialize, Clone, PartialEq, Debug)]
#[serde(rename_all = "camelCase")]
pub struct User {
    pub uid: u32,
    pub gid: u32,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub additional_gids: Vec<u32>,
}

#[derive(Serialize, Clone, PartialEq, Debug)]
pub struct Capabilities {
    pub bounding: Vec<&'static str>,
    pub effective: Vec<&'static str>,
    pub permitted: Vec<&'static str>,
}

#[derive(Serialize, Clone, PartialEq, Debug)]
pub struct Rlimit {
    #[serde(rename = "type")]
    pub kind: &'static str,
    pub hard: u64,
    pub soft: u64,
}

#[derive(Serialize, Clone, PartialEq, Debug)]
pub struct Root {
    pub path: String,
}

#[derive(Serialize, Clone, PartialEq, Eq, Debug)]
pub struct Mount {
    pub destination: String,
    #[serde(rename = "type")]
    pub kind: String,
    pub source: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub options: Vec<String>,
}

#[derive(Serialize, Clone, PartialEq, Debug)]
#[serde(rename_all = "camelCase")]
pub struct Linux {
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub sysctl: BTreeMap<String, String>,
    pub resources: Resources,
    pub cgroups_path: String,
    pub namespaces: Vec<Namespace>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub devices: Vec<Device>,
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "shared")]
    pub seccomp: Option<Arc<serde_json::Value>>,
    pub masked_paths: &'static [&'static str],
    pub readonly_paths: &'static [&'static str],
}

fn shared<S: Serializer>(value: &Option<Arc<serde_json::Value>>, to: S) -> Result<S::Ok, S::Error> {
    value.as_deref().serialize(to)
}

#[derive(Serialize, Clone, PartialEq, Debug)]
pub struct Resources {
    pub devices: Vec<DeviceRule>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<Limit>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu: Option<Cpu>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pids: Option<Limit>,
}

#[derive(Serialize, Clone, PartialEq, Debug)]
pub struct DeviceRule {
    pub allow: bool,
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub kind: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub major: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub minor: Option<u64>,
    pub access: String,
}

/// Bytes of memory or number of processes.
#[derive(Serialize, Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limit {
    pub limit: i64,
}

/// CPU time per period, both in microseconds.
#[derive(Serialize, Clone, Copy, PartialEq, Eq, Debug)]
pub struct Cpu {
    pub quota: i64,
    pub period: u64,
}

#[derive(Serialize, Clone, PartialEq, Debug)]
pub struct Namespace {
    #[serde(rename = "type")]
    pub kind: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
}

#[derive(Serialize, Clone, PartialEq, Debug)]
#[serde(rename_all = "camelCase")]
pub struct Device {
    pub path: String,
    /// `b`, `c` or `p`.
    #[serde(rename = "type")]
    pub kind: &'static str,
    pub major: u64,
    pub minor: u64,
    pub file_mode: u32,
    pub uid: u32,
    pub gid: u32,
}
