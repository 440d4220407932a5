//! The node: what IAM says about it and its configuration from the CM.

use std::path::PathBuf;
use std::time::Duration;

/// What IAM says about this node.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct NodeInfo {
    pub node_id: String,
    pub node_type: String,
    /// Dhrystone MIPS of the whole node; 0 = unknown: no CPU quota, CPU reported as 0.
    pub max_dmips: u64,
    pub total_ram_bytes: u64,
    pub partitions: Vec<Partition>,
    /// Names of usable runners (attribute `NodeRunners`); missing = crun, runc.
    pub runners: Vec<String>,
}

#[derive(Clone, PartialEq, Debug)]
pub struct Partition {
    pub name: String,
    pub types: Vec<String>,
    pub path: PathBuf,
    pub total_bytes: u64,
}

/// Node configuration (v4) or unit configuration (v3), decoded.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct NodeConfig {
    pub node_type: String,
    pub version: String,
    pub devices: Vec<Device>,
    pub resources: Vec<Resource>,
    pub alert_rules: AlertRules,
    pub labels: Vec<String>,
    pub priority: u64,
}

#[derive(Clone, PartialEq, Debug, Default)]
pub struct Device {
    pub name: String,
    /// 0 = any number of users.
    pub shared_count: u64,
    pub groups: Vec<String>,
    /// `host[:container]`
    pub host_devices: Vec<String>,
}

/// Why a device of the configuration cannot be used on this host as it is now.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DeviceFault {
    pub device: String,
    pub errors: Vec<String>,
}

#[derive(Clone, PartialEq, Debug, Default)]
pub struct Resource {
    pub name: String,
    pub groups: Vec<String>,
    pub mounts: Vec<Mount>,
    /// `NAME=value`
    pub env: Vec<String>,
    pub hosts: Vec<Host>,
}

#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Mount {
    pub destination: String,
    /// Empty = `bind`.
    pub kind: String,
    pub source: String,
    pub options: Vec<String>,
}

/// A line of `/etc/hosts`.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Host {
    pub ip: String,
    pub hostname: String,
}

/// Thresholds of the node or of one instance.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct AlertRules {
    pub ram: Option<PercentRule>,
    pub cpu: Option<PercentRule>,
    pub partitions: Vec<(String, PercentRule)>,
    pub download: Option<PointsRule>,
    pub upload: Option<PointsRule>,
}

/// In percent of the total.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct PercentRule {
    pub min_timeout: Duration,
    pub min: f64,
    pub max: f64,
}

/// In bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct PointsRule {
    pub min_timeout: Duration,
    pub min: u64,
    pub max: u64,
}
