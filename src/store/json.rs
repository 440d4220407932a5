//! JSON texts inside the database: one type for each, beside the model types they hold.
//!
//! Pure, runs on core. Field names are those of the Go releases where they have the same column.
//! What the Go releases wrote is not read here but in `takeover`, by the rules of their decoder.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::calendar;
use crate::model::desired::{
    EnvOverride, EnvVariable, FirewallRule, InstanceFilter, InstanceNetwork,
};
use crate::model::id::{InstanceId, InstanceIdent, ServiceId, SubjectId};
use crate::model::node::{NodeInfo, Partition};
use crate::model::store::Offline;

/// Why a JSON column could not be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error("malformed JSON")]
    Syntax(#[source] serde_json::Error),
    #[error("malformed time {0:?}")]
    Time(String),
}

fn parse<'a, T: Deserialize<'a>>(text: &'a str) -> Result<T, Error> {
    serde_json::from_str(text).map_err(Error::Syntax)
}

fn write<T: Serialize>(value: &T) -> String {
    // Only a map with keys that are no strings, or a failing Serialize, could end here.
    serde_json::to_string(value).expect("plain structs always serialize")
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct NetworkJson {
    subnet: String,
    ip: String,
    dns_servers: Vec<String>,
    firewall_rules: Vec<RuleJson>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct RuleJson {
    dst_ip: String,
    dst_port: String,
    proto: String,
    src_ip: String,
}

pub(super) fn write_network(network: &InstanceNetwork) -> String {
    let rule = |rule: &FirewallRule| RuleJson {
        dst_ip: rule.dst_ip.clone(),
        dst_port: rule.dst_port.clone(),
        proto: rule.proto.clone(),
        src_ip: rule.src_ip.clone(),
    };
    write(&NetworkJson {
        subnet: network.subnet.clone(),
        ip: network.ip.clone(),
        dns_servers: network.dns_servers.clone(),
        firewall_rules: network.rules.iter().map(rule).collect(),
    })
}

pub(super) fn read_network(text: &str) -> Result<InstanceNetwork, Error> {
    let network: NetworkJson = parse(text)?;
    let rule = |rule: RuleJson| FirewallRule {
        dst_ip: rule.dst_ip,
        dst_port: rule.dst_port,
        proto: rule.proto,
        src_ip: rule.src_ip,
    };
    Ok(InstanceNetwork {
        subnet: network.subnet,
        ip: network.ip,
        dns_servers: network.dns_servers,
        rules: network.firewall_rules.into_iter().map(rule).collect(),
    })
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct OverrideJson {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    service_id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    subject_id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    instance: Option<u64>,
    variables: Vec<VariableJson>,
}

#[derive(Serialize, Deserialize)]
struct VariableJson {
    name: String,
    value: String,
    /// RFC 3339, UTC.
    ttl: Option<String>,
}

pub(super) fn write_overrides(overrides: &[EnvOverride]) -> String {
    let variable = |variable: &EnvVariable| VariableJson {
        name: variable.name.clone(),
        value: variable.value.clone(),
        ttl: variable.ttl_ms.map(calendar::to_rfc3339),
    };
    let json = |item: &EnvOverride| OverrideJson {
        service_id: item.filter.service_id.clone(),
        subject_id: item.filter.subject_id.clone(),
        instance: item.filter.instance,
        variables: item.variables.iter().map(variable).collect(),
    };
    write(&overrides.iter().map(json).collect::<Vec<_>>())
}

pub(super) fn read_overrides(text: &str) -> Result<Vec<EnvOverride>, Error> {
    let items: Vec<OverrideJson> = parse(text)?;
    Ok(items.into_iter().map(read_override).collect())
}

/// A variable whose end cannot be read is left out, the others stay.
fn read_override(item: OverrideJson) -> EnvOverride {
    let variable = |variable: VariableJson| {
        let VariableJson { name, value, ttl } = variable;
        match ttl.map(|text| read_time(&text)).transpose() {
            Ok(ttl_ms) => Some(EnvVariable { name, value, ttl_ms }),
            Err(error) => {
                log::error!("override variable is left out name={name:?} err={error}");
                None
            }
        }
    };
    EnvOverride {
        filter: InstanceFilter {
            service_id: item.service_id,
            subject_id: item.subject_id,
            instance: item.instance,
        },
        variables: item.variables.into_iter().filter_map(variable).collect(),
    }
}

pub(super) fn read_time(text: &str) -> Result<i64, Error> {
    calendar::parse(text).ok_or_else(|| Error::Time(text.chars().take(60).collect()))
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct NodeInfoJson {
    node_id: String,
    node_type: String,
    max_dmips: u64,
    total_ram: u64,
    partitions: Vec<PartitionJson>,
    runners: Vec<String>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct PartitionJson {
    name: String,
    types: Vec<String>,
    path: String,
    total_size: u64,
}

pub(super) fn write_node_info(node: &NodeInfo) -> String {
    let partition = |partition: &Partition| PartitionJson {
        name: partition.name.clone(),
        types: partition.types.clone(),
        // Came as text from IAM.
        path: partition.path.to_string_lossy().into_owned(),
        total_size: partition.total_bytes,
    };
    write(&NodeInfoJson {
        node_id: node.node_id.clone(),
        node_type: node.node_type.clone(),
        max_dmips: node.max_dmips,
        total_ram: node.total_ram_bytes,
        partitions: node.partitions.iter().map(partition).collect(),
        runners: node.runners.clone(),
    })
}

pub(super) fn read_node_info(text: &str) -> Result<NodeInfo, Error> {
    let node: NodeInfoJson = parse(text)?;
    let partition = |partition: PartitionJson| Partition {
        name: partition.name,
        types: partition.types,
        path: PathBuf::from(partition.path),
        total_bytes: partition.total_size,
    };
    Ok(NodeInfo {
        node_id: node.node_id,
        node_type: node.node_type,
        max_dmips: node.max_dmips,
        total_ram_bytes: node.total_ram,
        partitions: node.partitions.into_iter().map(partition).collect(),
        runners: node.runners,
    })
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct OfflineJson {
    accumulated_ms: i64,
    at_ms: i64,
    online: bool,
}

pub(super) fn write_offline(offline: &Offline) -> String {
    let Offline { accumulated_ms, at_ms, online } = *offline;
    write(&OfflineJson { accumulated_ms, at_ms, online })
}

pub(super) fn read_offline(text: &str) -> Result<Offline, Error> {
    let OfflineJson { accumulated_ms, at_ms, online } = parse(text)?;
    Ok(Offline { accumulated_ms, at_ms, online })
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct LeavingJson {
    id: String,
    service_id: String,
    subject_id: String,
    instance: u64,
}

pub(super) fn write_leaving(list: &[(InstanceId, InstanceIdent)]) -> String {
    let json = |(id, ident): &(InstanceId, InstanceIdent)| LeavingJson {
        id: id.as_str().to_owned(),
        service_id: ident.service_id.as_str().to_owned(),
        subject_id: ident.subject_id.as_str().to_owned(),
        instance: ident.instance,
    };
    write(&list.iter().map(json).collect::<Vec<_>>())
}

pub(super) fn read_leaving(text: &str) -> Result<Vec<(InstanceId, InstanceIdent)>, Error> {
    let read = |json: LeavingJson| {
        let ident = InstanceIdent {
            service_id: ServiceId::new(&json.service_id),
            subject_id: SubjectId::new(&json.subject_id),
            instance: json.instance,
        };
        (InstanceId::new(&json.id), ident)
    };
    Ok(parse::<Vec<LeavingJson>>(text)?.into_iter().map(read).collect())
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct RefusedJson {
    service_id: String,
    subject_id: String,
    instance: u64,
    error: String,
}

pub(super) fn write_refused(list: &[(InstanceIdent, String)]) -> String {
    let json = |(ident, error): &(InstanceIdent, String)| RefusedJson {
        service_id: ident.service_id.as_str().to_owned(),
        subject_id: ident.subject_id.as_str().to_owned(),
        instance: ident.instance,
        error: error.clone(),
    };
    write(&list.iter().map(json).collect::<Vec<_>>())
}

pub(super) fn read_refused(text: &str) -> Result<Vec<(InstanceIdent, String)>, Error> {
    let read = |json: RefusedJson| {
        let ident = InstanceIdent {
            service_id: ServiceId::new(&json.service_id),
            subject_id: SubjectId::new(&json.subject_id),
            instance: json.instance,
        };
        (ident, json.error)
    };
    Ok(parse::<Vec<RefusedJson>>(text)?.into_iter().map(read).collect())
}
