//! What the CM can ask: the union of the generations.

use crate::model::desired::{EnvOverride, InstanceFilter, NetworkParams, RunRequest};

#[derive(Clone, PartialEq, Debug)]
pub enum CmCommand {
    GetNodeConfigStatus,
    CheckNodeConfig {
        json: String,
        version: String,
    },
    SetNodeConfig {
        json: String,
        version: String,
    },
    RunInstances(RunRequest),
    UpdateNetworks(Vec<NetworkParams>),
    OverrideEnvVars(Vec<EnvOverride>),
    /// Is the CM connected to the cloud?
    ConnectionStatus {
        online: bool,
    },
    GetAverageMonitoring,
    Log(LogRequest),
}

#[derive(Clone, PartialEq, Debug)]
pub struct LogRequest {
    pub log_id: String,
    pub kind: LogKind,
    /// Unix times in milliseconds; `None` = unbounded.
    pub from_ms: Option<i64>,
    pub till_ms: Option<i64>,
}

#[derive(Clone, PartialEq, Debug)]
pub enum LogKind {
    System,
    Instance(InstanceFilter),
    Crash(InstanceFilter),
}
