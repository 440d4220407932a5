//! What the CM wants on this node.

use std::borrow::Cow;
use std::sync::Arc;

use crate::model::id::{Digest, InstanceIdent, NetworkId, ServiceKey};

/// The complete desired state of the node, from one RunInstances.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct RunRequest {
    pub services: Vec<DesiredService>,
    pub layers: Vec<DesiredLayer>,
    pub instances: Vec<DesiredInstance>,
    /// Elements that could not be taken over; each already has its text for the log and, where an
    /// ident is known, for the status.
    pub rejected: Vec<Rejected>,
    /// Stop everything first, then start anew.
    pub force_restart: bool,
}

/// An element of a request that is reported as failed and otherwise ignored.
#[derive(Clone, PartialEq, Debug)]
pub struct Rejected {
    pub ident: Option<InstanceIdent>,
    pub reason: String,
}

/// Where a package comes from and how it is recognised.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct PackageSource {
    /// `file:`, `http:` or `https:`; empty when the package is expected to be installed.
    pub url: String,
    /// SHA3-256 of the package file, raw; empty = not given.
    pub sha3_256: Vec<u8>,
    /// SHA3-512 of the package file, raw; empty = not given (always in v4).
    pub sha3_512: Vec<u8>,
    /// Size of the package file in bytes.
    pub size_bytes: u64,
}

impl PackageSource {
    /// The URL for logs and statuses: without a name and a password, which are refused, but are
    /// secrets all the same.
    pub fn shown_url(&self) -> Cow<'_, str> {
        let Some((scheme, rest)) = self.url.split_once("://") else { return (&self.url).into() };
        let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        match rest[..end].rfind('@') {
            Some(at) => format!("{scheme}://...{}", &rest[at..]).into(),
            None => (&self.url).into(),
        }
    }
}

#[derive(Clone, PartialEq, Debug)]
pub struct DesiredService {
    pub key: ServiceKey,
    /// Names the network of all instances of the service.
    pub provider_id: NetworkId,
    pub gid: u32,
    pub source: PackageSource,
}

#[derive(Clone, PartialEq, Debug)]
pub struct DesiredLayer {
    pub digest: Digest,
    pub layer_id: String,
    pub version: String,
    pub source: PackageSource,
}

#[derive(Clone, PartialEq, Debug)]
pub struct DesiredInstance {
    pub ident: InstanceIdent,
    pub uid: u32,
    /// Higher is more important.
    pub priority: u64,
    /// Relative to the storage directory; empty = none.
    pub storage_path: Arc<str>,
    /// Relative to the state directory; empty = none.
    pub state_path: Arc<str>,
    pub network: InstanceNetwork,
}

/// Address and rules of one instance. All empty when the CM could not prepare a network.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct InstanceNetwork {
    /// CIDR text, such as `172.17.0.0/16`.
    pub subnet: String,
    pub ip: String,
    pub dns_servers: Vec<String>,
    pub rules: Vec<FirewallRule>,
}

/// Traffic that the instance may send to an instance of another network.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct FirewallRule {
    pub dst_ip: String,
    pub dst_port: String,
    pub proto: String,
    pub src_ip: String,
}

/// One network of the node, from UpdateNetworks.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NetworkParams {
    pub id: NetworkId,
    /// CIDR text.
    pub subnet: String,
    /// Address of the node in this network.
    pub ip: String,
    /// 0 = no VLAN.
    pub vlan_id: u64,
}

/// A filter over instances: `None` matches everything.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct InstanceFilter {
    pub service_id: Option<String>,
    pub subject_id: Option<String>,
    pub instance: Option<u64>,
}

impl InstanceFilter {
    pub fn matches(&self, ident: &InstanceIdent) -> bool {
        self.service_id.as_deref().is_none_or(|s| s == ident.service_id.as_str())
            && self.subject_id.as_deref().is_none_or(|s| s == ident.subject_id.as_str())
            && self.instance.is_none_or(|i| i == ident.instance)
    }
}

/// Override variables for the instances that a filter selects.
#[derive(Clone, PartialEq, Debug)]
pub struct EnvOverride {
    pub filter: InstanceFilter,
    pub variables: Vec<EnvVariable>,
}

#[derive(Clone, PartialEq, Debug)]
pub struct EnvVariable {
    pub name: String,
    pub value: String,
    /// Unix time in milliseconds after which the variable is gone.
    pub ttl_ms: Option<i64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_shown_without_secrets() {
        let check = |url: &str, expect: &str| {
            let source = PackageSource { url: url.into(), ..PackageSource::default() };
            assert_eq!(source.shown_url(), expect);
        };
        check("http://user:secret@host:80/a", "http://...@host:80/a");
        check("http://a@b@host?x", "http://...@host?x");
        check("https://host/a@b", "https://host/a@b");
        check("http://host#a@b", "http://host#a@b");
        check("file:///var/a@b", "file:///var/a@b");
        check("user:secret@host", "user:secret@host");
        check("", "");
    }
}
