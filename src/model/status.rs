//! What is reported to the CM.

use std::sync::Arc;

use crate::model::desired::InstanceFilter;
use crate::model::id::InstanceIdent;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RunState {
    Active,
    Failed,
    /// Stopped without error, or not yet started.
    Inactive,
}

/// Why something failed.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ErrorInfo {
    pub aos_code: i32,
    /// Exit code of the process, 128 + signal, or 0.
    pub exit_code: i32,
    pub message: String,
}

impl ErrorInfo {
    /// An error that has only a text. It becomes one line: names of packages may hold anything.
    pub fn text(message: impl Into<String>) -> Self {
        Self { message: one_line(message.into()), ..Self::default() }
    }

    /// The whole chain of an error, `outer: cause: cause`.
    pub fn of(error: &dyn std::error::Error) -> Self {
        Self::text(chain(error))
    }
}

/// The text with its control characters escaped.
pub fn one_line(text: String) -> String {
    if !text.contains(char::is_control) {
        return text;
    }
    let escaped = |c: char| c.is_control().then(|| c.escape_default());
    let mut line = String::with_capacity(text.len() + 8);
    for c in text.chars() {
        match escaped(c) {
            Some(escaped) => line.extend(escaped),
            None => line.push(c),
        }
    }
    line
}

/// The text of an error and of all its causes.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

#[derive(Clone, PartialEq, Debug)]
pub struct InstanceStatus {
    pub ident: InstanceIdent,
    /// Empty when the service is unknown.
    pub service_version: Arc<str>,
    pub state: RunState,
    /// Only with `Failed`.
    pub error: Option<ErrorInfo>,
}

/// Everything that goes to the CM.
#[derive(Clone, PartialEq, Debug)]
pub enum CmReport {
    /// Answer of the four configuration requests, and the first message of a registration.
    NodeConfigStatus(NodeConfigStatus),
    /// All instances of the node.
    RunStatus(Vec<InstanceStatus>),
    /// Only those whose state changed.
    UpdateStatus(Vec<InstanceStatus>),
    EnvStatus(Vec<EnvStatus>),
    Alert(Alert),
    InstantMonitoring(NodeMonitoring),
    AverageMonitoring(NodeMonitoring),
    Log(LogPart),
}

#[derive(Clone, PartialEq, Debug, Default)]
pub struct NodeConfigStatus {
    pub node_id: String,
    pub node_type: String,
    pub version: String,
    pub error: Option<ErrorInfo>,
}

#[derive(Clone, PartialEq, Debug)]
pub struct EnvStatus {
    pub filter: InstanceFilter,
    /// Name and error of each variable, in the order of the request.
    pub variables: Vec<(String, Option<ErrorInfo>)>,
}

#[derive(Clone, PartialEq, Debug)]
pub struct Alert {
    /// Unix time of the event in milliseconds.
    pub time_ms: i64,
    pub payload: AlertPayload,
}

#[derive(Clone, PartialEq, Debug)]
pub enum AlertPayload {
    System { message: String },
    Core { component: String, message: String },
    Instance { ident: InstanceIdent, service_version: Arc<str>, message: String },
    ResourceValidate { name: String, errors: Vec<ErrorInfo> },
    DeviceAllocate { ident: InstanceIdent, device: String, message: String },
    SystemQuota { parameter: String, value: u64, status: QuotaStatus },
    InstanceQuota { ident: InstanceIdent, parameter: String, value: u64, status: QuotaStatus },
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum QuotaStatus {
    Raise,
    Continue,
    Fall,
}

#[derive(Clone, PartialEq, Debug, Default)]
pub struct NodeMonitoring {
    pub node: MonitoringData,
    pub instances: Vec<(InstanceIdent, MonitoringData)>,
}

#[derive(Clone, PartialEq, Debug, Default)]
pub struct MonitoringData {
    /// Unix time of the sample in milliseconds.
    pub time_ms: i64,
    pub ram_bytes: u64,
    pub cpu_dmips: u64,
    /// Name and used bytes.
    pub partitions: Vec<(Arc<str>, u64)>,
    /// Bytes since the start of the traffic period.
    pub download_bytes: u64,
    pub upload_bytes: u64,
}

#[derive(Clone, PartialEq, Debug, Default)]
pub struct LogPart {
    pub log_id: String,
    /// Number of parts, the same in each.
    pub part_count: u64,
    /// From 1.
    pub part: u64,
    /// One complete gzip stream.
    pub data: Vec<u8>,
    pub error: Option<ErrorInfo>,
    pub status: LogStatus,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum LogStatus {
    #[default]
    Ok,
    Error,
    Empty,
    Absent,
}
