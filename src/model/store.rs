//! What the database holds, as core sees it.

use crate::model::desired::{DesiredInstance, EnvOverride, NetworkParams};
use crate::model::id::{Digest, InstanceId, InstanceIdent, NetworkId, PackageKey, ServiceKey};
use crate::model::job::Package;
use crate::model::node::NodeInfo;
use crate::model::service::{InstalledLayer, InstalledService};
use crate::model::traffic::TrafficRow;

/// Content of the database at the start of the daemon.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Snapshot {
    pub node_info: Option<NodeInfo>,
    pub env_overrides: Vec<EnvOverride>,
    pub offline: Option<Offline>,
    pub services: Vec<InstalledService>,
    pub layers: Vec<InstalledLayer>,
    pub wanted: Vec<Wanted>,
    pub instances: Vec<StoredInstance>,
    /// Instances that are not wanted any more, but that IAM may still know.
    pub leaving: Vec<(InstanceId, InstanceIdent)>,
    /// Instances of the last request that were refused, and why.
    pub refused: Vec<(InstanceIdent, String)>,
    pub networks: Vec<NetworkParams>,
    pub network_links: Vec<NetworkLinks>,
    pub traffic: Vec<TrafficRow>,
    /// Up to where the journal and the kernel's messages have become alerts; the text is that of
    /// whoever reads them.
    pub alert_position: Option<Box<str>>,
}

/// Interfaces that an earlier service manager made for a network under names of its own choice.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NetworkLinks {
    pub network: NetworkId,
    /// Empty = none.
    pub vlan: String,
    /// Empty = none.
    pub bridge: String,
}

/// A package that the last request names and that is not installed.
#[derive(Clone, PartialEq, Debug)]
pub struct Wanted {
    pub package: Package,
    /// Install attempts begun and not ended: two mean that the install crashes the daemon.
    pub attempts_begun: u32,
    /// Text of the last failure; empty = none.
    pub last_error: String,
}

#[derive(Clone, PartialEq, Debug)]
pub struct StoredInstance {
    pub id: InstanceId,
    pub instance: DesiredInstance,
}

/// How long the cloud has been away.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Offline {
    /// Time without cloud until `at_ms`, milliseconds.
    pub accumulated_ms: i64,
    /// Unix time of this row in milliseconds.
    pub at_ms: i64,
    pub online: bool,
}

/// One change of the database; a list of them is one transaction.
#[derive(Clone, PartialEq, Debug)]
pub enum Change {
    PutService(InstalledService),
    RemoveService(ServiceKey),
    PutLayer(InstalledLayer),
    RemoveLayer(Digest),
    PutWanted(Wanted),
    RemoveWanted(PackageKey),
    PutInstance(StoredInstance),
    RemoveInstance(InstanceId),
    /// Replaces the whole list.
    SetLeaving(Vec<(InstanceId, InstanceIdent)>),
    /// Replaces the whole list.
    SetRefused(Vec<(InstanceIdent, String)>),
    /// Replaces the whole set.
    SetNetworks(Vec<NetworkParams>),
    SetNodeInfo(NodeInfo),
    /// Replaces the whole list.
    SetEnvOverrides(Vec<EnvOverride>),
    SetOffline(Offline),
    SetAlertPosition(Box<str>),
    PutTraffic(Vec<TrafficRow>),
    /// Counters with these names.
    RemoveTraffic(Vec<Box<str>>),
}
