//! `iamanager.v5`, spoken by IAM 8.x: paths and translation. Pure, runs on iam and cm-rx.

use std::collections::HashMap;
use std::path::PathBuf;

use protobuf::{Message, MessageField};

use crate::iam::wire::v5::common;
use crate::iam::wire::v5::iamanager as wire;
use crate::model::id::InstanceIdent;
use crate::model::job::Permissions;
use crate::model::node::{NodeInfo, Partition};
use crate::rpc;

/// Public server.
pub const GET_NODE_INFO: &str = "/iamanager.v5.IAMPublicService/GetNodeInfo";
/// Public server.
pub const GET_CERT: &str = "/iamanager.v5.IAMPublicService/GetCert";
/// Public server, a stream of [`CertUrls`].
pub const SUBSCRIBE_CERT_CHANGED: &str = "/iamanager.v5.IAMPublicService/SubscribeCertChanged";
/// Protected server.
pub const REGISTER_INSTANCE: &str = "/iamanager.v5.IAMPermissionsService/RegisterInstance";
/// Protected server.
pub const UNREGISTER_INSTANCE: &str = "/iamanager.v5.IAMPermissionsService/UnregisterInstance";
/// Attribute of the node with the names of its runners.
const NODE_RUNNERS: &str = "NodeRunners";
/// Runners of a node that does not name any.
const DEFAULT_RUNNERS: &str = "crun,runc";

/// An answer that makes no sense.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("malformed answer of {size_bytes} bytes")]
    Malformed {
        size_bytes: usize,
        #[source]
        source: protobuf::Error,
    },
    #[error("answer without {what}")]
    Missing { what: &'static str },
}

/// Where certificate and key are.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CertUrls {
    pub cert_url: String,
    pub key_url: String,
}

fn parsed<M: Message>(answer: &[u8]) -> Result<M, Error> {
    rpc::parse(answer).map_err(|source| Error::Malformed { size_bytes: answer.len(), source })
}

fn bytes(request: &impl Message) -> Vec<u8> {
    // Writing into memory fails only above 2 GiB, or when a required field (proto2) is missing.
    request.write_to_bytes().unwrap_or_default()
}

/// Request of the newest certificate of this type.
pub fn cert_request(cert_type: &str) -> Vec<u8> {
    bytes(&wire::GetCertRequest { type_: cert_type.to_owned(), ..Default::default() })
}

/// Request of the notifications about certificates of this type.
pub fn subscription(cert_type: &str) -> Vec<u8> {
    bytes(&wire::SubscribeCertChangedRequest { type_: cert_type.to_owned(), ..Default::default() })
}

/// Answer of GetCert.
pub fn cert_urls(answer: &[u8]) -> Result<CertUrls, Error> {
    let info: wire::CertInfo = parsed(answer)?;
    if info.cert_url.is_empty() || info.key_url.is_empty() {
        return Err(Error::Missing { what: "certificate and key URL" });
    }
    Ok(CertUrls { cert_url: info.cert_url, key_url: info.key_url })
}

/// Answer of GetNodeInfo. The state of the node is not our business: only the CM acts on it.
pub fn node_info(answer: &[u8]) -> Result<NodeInfo, Error> {
    let info: wire::NodeInfo = parsed(answer)?;
    if info.node_id.is_empty() {
        return Err(Error::Missing { what: "node id" });
    }
    let partition = |partition: wire::PartitionInfo| Partition {
        name: partition.name,
        types: partition.types,
        path: PathBuf::from(partition.path),
        total_bytes: partition.total_size,
    };
    Ok(NodeInfo {
        runners: runners(&info.attrs),
        node_id: info.node_id,
        node_type: info.node_type,
        max_dmips: info.max_dmips,
        total_ram_bytes: info.total_ram,
        partitions: info.partitions.into_iter().map(partition).collect(),
    })
}

fn runners(attributes: &[wire::NodeAttribute]) -> Vec<String> {
    let attribute = attributes.iter().find(|a| a.name.eq_ignore_ascii_case(NODE_RUNNERS));
    let listed = |text: &str| -> Vec<String> {
        text.split(',').map(str::trim).filter(|r| !r.is_empty()).map(str::to_owned).collect()
    };
    match attribute.map(|a| listed(&a.value)) {
        Some(runners) if !runners.is_empty() => runners,
        _ => listed(DEFAULT_RUNNERS),
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

/// Request of a secret for an instance.
pub fn registration(ident: &InstanceIdent, permissions: &Permissions) -> Vec<u8> {
    let functions = |functions: &std::collections::BTreeMap<String, String>| wire::Permissions {
        permissions: functions.iter().map(|(k, v)| (k.clone(), v.clone())).collect(),
        ..Default::default()
    };
    let permissions: HashMap<String, wire::Permissions> =
        permissions.iter().map(|(server, f)| (server.clone(), functions(f))).collect();
    bytes(&wire::RegisterInstanceRequest {
        instance: wire_ident(ident),
        permissions,
        ..Default::default()
    })
}

/// Answer of RegisterInstance.
pub fn secret(answer: &[u8]) -> Result<String, Error> {
    let answer: wire::RegisterInstanceResponse = parsed(answer)?;
    if answer.secret.is_empty() {
        return Err(Error::Missing { what: "secret" });
    }
    Ok(answer.secret)
}

/// Request to forget the secret of an instance.
pub fn removal(ident: &InstanceIdent) -> Vec<u8> {
    bytes(&wire::UnregisterInstanceRequest { instance: wire_ident(ident), ..Default::default() })
}

#[cfg(test)]
mod tests;
