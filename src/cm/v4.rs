//! `servicemanager.v4`, spoken by the CM 8.x. Pure, runs on cm-rx and cm-tx.
//!
//! Incoming messages are taken over as far as they make sense: a bad element is set aside in
//! `RunRequest::rejected`, the rest of its message counts. Outgoing messages stay below the
//! receive limit of a Go peer.

mod figures;

use std::collections::{HashMap, HashSet};
use std::hash::Hash;
use std::sync::Arc;

use protobuf::well_known_types::timestamp::Timestamp;
use protobuf::{EnumOrUnknown, Message, MessageField};

use crate::calendar;
use crate::cm::dialect::{Dialect, Error, cut};
use crate::cm::wire::v4::common;
use crate::cm::wire::v4::servicemanager as wire;
use crate::cm::wire::v4::servicemanager::alert::AlertItem;
use crate::cm::wire::v4::servicemanager::smincoming_messages::SMIncomingMessage;
use crate::cm::wire::v4::servicemanager::smoutgoing_messages::SMOutgoingMessage;
use crate::model::command::{CmCommand, LogKind, LogRequest};
use crate::model::desired::{
    DesiredInstance, DesiredLayer, DesiredService, EnvOverride, EnvVariable, FirewallRule,
    InstanceFilter, InstanceNetwork, NetworkParams, PackageSource, Rejected, RunRequest,
};
use crate::model::id::{Digest, InstanceIdent, NetworkId, ServiceId, ServiceKey, SubjectId};
use crate::model::status::{
    Alert, AlertPayload, CmReport, EnvStatus, ErrorInfo, InstanceStatus, LogPart, LogStatus,
    NodeConfigStatus, NodeMonitoring, QuotaStatus, RunState,
};
use crate::rpc;

/// gRPC path of the stream.
pub const PATH: &str = "/servicemanager.v4.SMService/RegisterSM";
/// A Go peer ends the stream at 4 MiB; the difference is room for what frames a message.
pub const MESSAGE_LIMIT_BYTES: usize = (4 << 20) - 4096;
/// Text of an error or alert, bytes.
pub const TEXT_LIMIT_BYTES: usize = 8192;
/// The same when a message would be too large otherwise.
pub const SHORT_TEXT_LIMIT_BYTES: usize = 256;
/// In filters: any instance.
const ANY_INSTANCE: i64 = -1;

/// The translation, with the one policy that it needs.
#[derive(Clone, Copy, Debug, Default)]
pub struct V4 {
    /// Instances may run as root.
    pub allow_root_uid: bool,
}

impl Dialect for V4 {
    fn path(&self) -> &'static str {
        PATH
    }

    fn decode(&self, message: &[u8]) -> Result<Option<CmCommand>, Error> {
        let parsed = rpc::parse::<wire::SMIncomingMessages>(message)
            .map_err(|source| Error::Malformed { size_bytes: message.len(), source })?;
        let Some(member) = parsed.SMIncomingMessage else { return Ok(None) };
        Ok(match member {
            SMIncomingMessage::GetNodeConfigStatus(_) => Some(CmCommand::GetNodeConfigStatus),
            SMIncomingMessage::CheckNodeConfig(m) => {
                Some(CmCommand::CheckNodeConfig { json: m.node_config, version: m.version })
            }
            SMIncomingMessage::SetNodeConfig(m) => {
                Some(CmCommand::SetNodeConfig { json: m.node_config, version: m.version })
            }
            SMIncomingMessage::RunInstances(m) => {
                Some(CmCommand::RunInstances(self.run_request(m)))
            }
            SMIncomingMessage::OverrideEnvVars(m) => {
                Some(CmCommand::OverrideEnvVars(m.env_vars.into_iter().map(env_override).collect()))
            }
            SMIncomingMessage::SystemLogRequest(m) => {
                Some(log_request(m.log_id, LogKind::System, &m.from, &m.till))
            }
            SMIncomingMessage::InstanceLogRequest(m) => {
                let kind = LogKind::Instance(filter(m.instance_filter));
                Some(log_request(m.log_id, kind, &m.from, &m.till))
            }
            SMIncomingMessage::InstanceCrashLogRequest(m) => {
                let kind = LogKind::Crash(filter(m.instance_filter));
                Some(log_request(m.log_id, kind, &m.from, &m.till))
            }
            SMIncomingMessage::GetAverageMonitoring(_) => Some(CmCommand::GetAverageMonitoring),
            SMIncomingMessage::ConnectionStatus(m) => Some(CmCommand::ConnectionStatus {
                online: m.cloud_status == EnumOrUnknown::new(wire::ConnectionEnum::CONNECTED),
            }),
            SMIncomingMessage::UpdateNetworks(m) => {
                let networks = m.networks.into_iter().map(network).collect();
                Some(CmCommand::UpdateNetworks(networks))
            }
            // Answers to requests that a service manager never sends.
            SMIncomingMessage::ImageContentInfo(_)
            | SMIncomingMessage::ImageContent(_)
            | SMIncomingMessage::ClockSync(_) => None,
        })
    }

    fn encode(&self, report: CmReport) -> Result<Vec<u8>, Error> {
        let kind = kind(&report);
        let mut message = match outgoing(report, TEXT_LIMIT_BYTES) {
            Outgoing::Message(message) => message,
            Outgoing::Bytes(bytes) => return fitting(kind, bytes),
        };
        let mut size_bytes = size(&message);
        if size_bytes > MESSAGE_LIMIT_BYTES {
            shorten(&mut message);
            size_bytes = size(&message);
        }
        if size_bytes > MESSAGE_LIMIT_BYTES {
            return Err(Error::TooLarge { kind, size_bytes });
        }
        message.write_to_bytes().map_err(|source| Error::Malformed { size_bytes, source })
    }

    fn encode_instant(&self, sample: &NodeMonitoring) -> Result<Vec<u8>, Error> {
        fitting("monitoring", figures::encode(figures::INSTANT, sample))
    }
}

fn fitting(kind: &'static str, message: Vec<u8>) -> Result<Vec<u8>, Error> {
    let size_bytes = message.len();
    if size_bytes > MESSAGE_LIMIT_BYTES {
        return Err(Error::TooLarge { kind, size_bytes });
    }
    Ok(message)
}

fn size(message: &wire::SMOutgoingMessages) -> usize {
    usize::try_from(message.compute_size()).unwrap_or(usize::MAX)
}

impl V4 {
    fn run_request(&self, message: wire::RunInstances) -> RunRequest {
        let mut request =
            RunRequest { force_restart: message.force_restart, ..RunRequest::default() };
        let mut seen = HashSet::new();
        for service in message.services {
            match desired_service(service) {
                Ok(service) if is_new(&mut seen, &service.key) => request.services.push(service),
                Ok(service) => log::warn!("listed twice, the first counts service={}", service.key),
                Err(reason) => request.rejected.push(Rejected { ident: None, reason }),
            }
        }
        let mut seen = HashSet::new();
        for layer in message.layers {
            match desired_layer(layer) {
                Ok(layer) if is_new(&mut seen, &layer.digest) => request.layers.push(layer),
                Ok(layer) => log::warn!("listed twice, the first counts layer={}", layer.digest),
                Err(reason) => request.rejected.push(Rejected { ident: None, reason }),
            }
        }
        self.instances(message.instances, &mut request);
        request
    }

    /// An instance that is listed twice counts with its last entry, whether that is good or bad.
    fn instances(&self, listed: Vec<wire::InstanceInfo>, request: &mut RunRequest) {
        let mut at: HashMap<InstanceIdent, usize> = HashMap::new();
        let mut taken: Vec<Result<DesiredInstance, Rejected>> = Vec::with_capacity(listed.len());
        for info in listed {
            let entry = self.desired_instance(info);
            let ident = match &entry {
                Ok(instance) => Some(&instance.ident),
                Err(rejected) => rejected.ident.as_ref(),
            };
            match ident.and_then(|ident| at.get(ident).copied()) {
                Some(earlier) => {
                    log::warn!("listed twice, the last counts instance={}", name(ident));
                    taken[earlier] = entry;
                }
                None => {
                    if let Some(ident) = ident {
                        at.insert(ident.clone(), taken.len());
                    }
                    taken.push(entry);
                }
            }
        }
        for entry in taken {
            match entry {
                Ok(instance) => request.instances.push(instance),
                Err(rejected) => request.rejected.push(rejected),
            }
        }
    }

    fn desired_instance(&self, info: wire::InstanceInfo) -> Result<DesiredInstance, Rejected> {
        let Some(ident) = info.instance.into_option().map(ident) else {
            return Err(Rejected { ident: None, reason: "instance without identity".into() });
        };
        if ident.service_id.as_str().is_empty() {
            let reason = "instance without service id".into();
            return Err(Rejected { ident: Some(ident), reason });
        }
        if info.uid == 0 && !self.allow_root_uid {
            let reason = "uid 0 is not allowed".into();
            return Err(Rejected { ident: Some(ident), reason });
        }
        let network = info.network_parameters.into_option().map(instance_network);
        Ok(DesiredInstance {
            ident,
            uid: info.uid,
            priority: info.priority,
            storage_path: Arc::from(info.storage_path),
            state_path: Arc::from(info.state_path),
            network: network.unwrap_or_default(),
        })
    }
}

fn is_new<T: Clone + Eq + Hash>(seen: &mut HashSet<T>, item: &T) -> bool {
    seen.insert(item.clone())
}

fn name(ident: Option<&InstanceIdent>) -> String {
    ident.map(ToString::to_string).unwrap_or_default()
}

fn ident(wire: common::InstanceIdent) -> InstanceIdent {
    InstanceIdent {
        service_id: ServiceId::new(&wire.service_id),
        subject_id: SubjectId::new(&wire.subject_id),
        instance: wire.instance,
    }
}

fn desired_service(wire: wire::ServiceInfo) -> Result<DesiredService, String> {
    if wire.service_id.is_empty() {
        return Err("service without id".into());
    }
    if wire.version.is_empty() {
        return Err(format!("service {} without version", wire.service_id));
    }
    let id = ServiceId::new(&wire.service_id);
    Ok(DesiredService {
        key: ServiceKey { id, version: Arc::from(wire.version) },
        provider_id: NetworkId::new(&wire.provider_id),
        gid: wire.gid,
        source: source(wire.url, wire.sha256, wire.size),
    })
}

fn desired_layer(wire: wire::LayerInfo) -> Result<DesiredLayer, String> {
    let digest = Digest::parse(&wire.digest)
        .map_err(|malformed| format!("layer {}: {malformed}", wire.layer_id))?;
    Ok(DesiredLayer {
        digest,
        layer_id: wire.layer_id,
        version: wire.version,
        source: source(wire.url, wire.sha256, wire.size),
    })
}

fn source(url: String, sha3_256: Vec<u8>, size_bytes: u64) -> PackageSource {
    PackageSource { url, sha3_256, sha3_512: Vec::new(), size_bytes }
}

fn instance_network(wire: wire::NetworkParameters) -> InstanceNetwork {
    let rule = |rule: wire::FirewallRule| FirewallRule {
        dst_ip: rule.dst_ip,
        dst_port: rule.dst_port,
        proto: rule.proto,
        src_ip: rule.src_ip,
    };
    InstanceNetwork {
        subnet: wire.subnet,
        ip: wire.ip,
        dns_servers: wire.dns_servers,
        rules: wire.rules.into_iter().map(rule).collect(),
    }
}

/// As listed: which of several entries of one network counts is for core.
fn network(wire: wire::NetworkParameters) -> NetworkParams {
    NetworkParams {
        id: NetworkId::new(&wire.network_id),
        subnet: wire.subnet,
        ip: wire.ip,
        vlan_id: wire.vlan_id,
    }
}

/// An absent filter selects everything.
fn filter(wire: MessageField<wire::InstanceFilter>) -> InstanceFilter {
    let Some(wire) = wire.into_option() else { return InstanceFilter::default() };
    let some = |text: String| (!text.is_empty()).then_some(text);
    InstanceFilter {
        service_id: some(wire.service_id),
        subject_id: some(wire.subject_id),
        instance: match wire.instance {
            ANY_INSTANCE => None,
            // No instance has such a number, so that the filter selects nothing.
            index => Some(u64::try_from(index).unwrap_or(u64::MAX)),
        },
    }
}

fn env_override(wire: wire::OverrideInstanceEnvVar) -> EnvOverride {
    let variable = |variable: wire::EnvVarInfo| EnvVariable {
        name: variable.name,
        value: variable.value,
        // What ends after the year 9999 has no end.
        ttl_ms: variable.ttl.as_ref().map(unix_ms).filter(|ttl| *ttl <= calendar::LAST_MS),
    };
    EnvOverride {
        filter: filter(wire.instance_filter),
        variables: wire.variables.into_iter().map(variable).collect(),
    }
}

fn log_request(
    log_id: String,
    kind: LogKind,
    from: &MessageField<Timestamp>,
    till: &MessageField<Timestamp>,
) -> CmCommand {
    let bound = |time: &MessageField<Timestamp>| {
        let time = time.as_ref()?;
        let valid = time.seconds > 0 && (0..1_000_000_000).contains(&time.nanos);
        valid.then(|| unix_ms(time))
    };
    CmCommand::Log(LogRequest { log_id, kind, from_ms: bound(from), till_ms: bound(till) })
}

fn unix_ms(time: &Timestamp) -> i64 {
    let ms = i64::from(time.nanos.clamp(0, 999_999_999)) / 1_000_000;
    time.seconds.saturating_mul(1000).saturating_add(ms)
}

fn timestamp(unix_ms: i64) -> MessageField<Timestamp> {
    let nanos = i32::try_from(unix_ms.rem_euclid(1000)).unwrap_or(0) * 1_000_000;
    MessageField::some(Timestamp {
        seconds: unix_ms.div_euclid(1000),
        nanos,
        ..Timestamp::default()
    })
}

fn kind(report: &CmReport) -> &'static str {
    match report {
        CmReport::NodeConfigStatus(_) => "node config status",
        CmReport::RunStatus(_) => "full status",
        CmReport::UpdateStatus(_) => "changed status",
        CmReport::EnvStatus(_) => "override status",
        CmReport::Alert(_) => "alert",
        CmReport::InstantMonitoring(_) => "monitoring",
        CmReport::AverageMonitoring(_) => "average monitoring",
        CmReport::Log(_) => "log part",
    }
}

/// A translated report.
enum Outgoing {
    Message(wire::SMOutgoingMessages),
    /// Written directly.
    Bytes(Vec<u8>),
}

fn outgoing(report: CmReport, limit: usize) -> Outgoing {
    let member = match report {
        CmReport::NodeConfigStatus(status) => {
            SMOutgoingMessage::NodeConfigStatus(node_config_status(status, limit))
        }
        CmReport::RunStatus(instances) => {
            SMOutgoingMessage::RunInstancesStatus(wire::RunInstancesStatus {
                instances: instances.into_iter().map(|i| instance_status(i, limit)).collect(),
                ..Default::default()
            })
        }
        CmReport::UpdateStatus(instances) => {
            SMOutgoingMessage::UpdateInstancesStatus(wire::UpdateInstancesStatus {
                instances: instances.into_iter().map(|i| instance_status(i, limit)).collect(),
                ..Default::default()
            })
        }
        CmReport::EnvStatus(items) => {
            SMOutgoingMessage::OverrideEnvVarStatus(wire::OverrideEnvVarStatus {
                env_vars_status: items.into_iter().map(|i| env_status(i, limit)).collect(),
                ..Default::default()
            })
        }
        CmReport::Alert(item) => SMOutgoingMessage::Alert(alert(item, limit)),
        CmReport::InstantMonitoring(sample) => {
            return Outgoing::Bytes(figures::encode(figures::INSTANT, &sample));
        }
        CmReport::AverageMonitoring(sample) => {
            return Outgoing::Bytes(figures::encode(figures::AVERAGE, &sample));
        }
        CmReport::Log(part) => SMOutgoingMessage::Log(log_data(part, limit)),
    };
    let message =
        wire::SMOutgoingMessages { SMOutgoingMessage: Some(member), ..Default::default() };
    Outgoing::Message(message)
}

/// Only lists of statuses can grow beyond the limit through their texts.
fn shorten(message: &mut wire::SMOutgoingMessages) {
    let short = |error: &mut MessageField<common::ErrorInfo>| {
        if let Some(error) = error.as_mut() {
            error.message = cut(std::mem::take(&mut error.message), SHORT_TEXT_LIMIT_BYTES);
        }
    };
    match &mut message.SMOutgoingMessage {
        Some(SMOutgoingMessage::RunInstancesStatus(status)) => {
            status.instances.iter_mut().for_each(|i| short(&mut i.error_info));
        }
        Some(SMOutgoingMessage::UpdateInstancesStatus(status)) => {
            status.instances.iter_mut().for_each(|i| short(&mut i.error_info));
        }
        Some(SMOutgoingMessage::OverrideEnvVarStatus(status)) => {
            let statuses = status.env_vars_status.iter_mut().flat_map(|s| &mut s.statuses);
            statuses.for_each(|s| short(&mut s.error));
        }
        _ => {}
    }
}

fn wire_ident(ident: &InstanceIdent) -> MessageField<common::InstanceIdent> {
    MessageField::some(common::InstanceIdent {
        service_id: ident.service_id.as_str().to_owned(),
        subject_id: ident.subject_id.as_str().to_owned(),
        instance: ident.instance,
        ..Default::default()
    })
}

fn error_info(error: ErrorInfo, limit: usize) -> common::ErrorInfo {
    common::ErrorInfo {
        aos_code: error.aos_code,
        exit_code: error.exit_code,
        message: cut(error.message, limit),
        ..Default::default()
    }
}

fn optional_error(error: Option<ErrorInfo>, limit: usize) -> MessageField<common::ErrorInfo> {
    error.map(|error| error_info(error, limit)).into()
}

fn node_config_status(status: NodeConfigStatus, limit: usize) -> wire::NodeConfigStatus {
    wire::NodeConfigStatus {
        node_id: status.node_id,
        node_type: status.node_type,
        version: status.version,
        error: optional_error(status.error, limit),
        ..Default::default()
    }
}

fn instance_status(status: InstanceStatus, limit: usize) -> wire::InstanceStatus {
    let (run_state, error) = match status.state {
        RunState::Active => ("active", None),
        RunState::Inactive => ("inactive", None),
        // The reference always sends the error with this state, if need be an empty one.
        RunState::Failed => ("failed", Some(status.error.unwrap_or_default())),
    };
    wire::InstanceStatus {
        instance: wire_ident(&status.ident),
        service_version: status.service_version.as_ref().to_owned(),
        run_state: run_state.to_owned(),
        error_info: optional_error(error, limit),
        ..Default::default()
    }
}

fn env_status(status: EnvStatus, limit: usize) -> wire::EnvVarInstanceStatus {
    let variable = |(name, error): (String, Option<ErrorInfo>)| wire::EnvVarStatus {
        name,
        error: optional_error(error, limit),
        ..Default::default()
    };
    wire::EnvVarInstanceStatus {
        instance_filter: MessageField::some(wire_filter(status.filter)),
        statuses: status.variables.into_iter().map(variable).collect(),
        ..Default::default()
    }
}

fn wire_filter(filter: InstanceFilter) -> wire::InstanceFilter {
    wire::InstanceFilter {
        service_id: filter.service_id.unwrap_or_default(),
        subject_id: filter.subject_id.unwrap_or_default(),
        instance: match filter.instance {
            None => ANY_INSTANCE,
            Some(index) => i64::try_from(index).unwrap_or(i64::MAX),
        },
        ..Default::default()
    }
}

fn alert(alert: Alert, limit: usize) -> wire::Alert {
    let (tag, item) = match alert.payload {
        AlertPayload::System { message } => (
            "systemAlert",
            AlertItem::SystemAlert(wire::SystemAlert {
                message: cut(message, limit),
                ..Default::default()
            }),
        ),
        AlertPayload::Core { component, message } => (
            "coreAlert",
            AlertItem::CoreAlert(wire::CoreAlert {
                core_component: component,
                message: cut(message, limit),
                ..Default::default()
            }),
        ),
        AlertPayload::Instance { ident, service_version, message } => (
            "serviceInstanceAlert",
            AlertItem::InstanceAlert(wire::InstanceAlert {
                instance: wire_ident(&ident),
                service_version: service_version.as_ref().to_owned(),
                message: cut(message, limit),
                ..Default::default()
            }),
        ),
        AlertPayload::ResourceValidate { name, errors } => (
            "resourceValidateAlert",
            AlertItem::ResourceValidateAlert(wire::ResourceValidateAlert {
                name,
                errors: errors.into_iter().map(|e| error_info(e, limit)).collect(),
                ..Default::default()
            }),
        ),
        AlertPayload::DeviceAllocate { ident, device, message } => (
            "deviceAllocateAlert",
            AlertItem::DeviceAllocateAlert(wire::DeviceAllocateAlert {
                instance: wire_ident(&ident),
                device,
                message: cut(message, limit),
                ..Default::default()
            }),
        ),
        AlertPayload::SystemQuota { parameter, value, status } => (
            "systemQuotaAlert",
            AlertItem::SystemQuotaAlert(wire::SystemQuotaAlert {
                parameter,
                value,
                status: quota_status(status).to_owned(),
                ..Default::default()
            }),
        ),
        AlertPayload::InstanceQuota { ident, parameter, value, status } => (
            "instanceQuotaAlert",
            AlertItem::InstanceQuotaAlert(wire::InstanceQuotaAlert {
                instance: wire_ident(&ident),
                parameter,
                value,
                status: quota_status(status).to_owned(),
                ..Default::default()
            }),
        ),
    };
    wire::Alert {
        timestamp: timestamp(alert.time_ms),
        tag: tag.to_owned(),
        AlertItem: Some(item),
        ..Default::default()
    }
}

fn quota_status(status: QuotaStatus) -> &'static str {
    match status {
        QuotaStatus::Raise => "raise",
        QuotaStatus::Continue => "continue",
        QuotaStatus::Fall => "fall",
    }
}

fn log_data(part: LogPart, limit: usize) -> wire::LogData {
    let status = match part.status {
        LogStatus::Ok => "ok",
        LogStatus::Error => "error",
        LogStatus::Empty => "empty",
        LogStatus::Absent => "absent",
    };
    wire::LogData {
        log_id: part.log_id,
        part_count: part.part_count,
        part: part.part,
        data: part.data,
        status: status.to_owned(),
        error: optional_error(part.error, limit),
        ..Default::default()
    }
}

#[cfg(test)]
mod tests;
