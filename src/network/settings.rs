//! What the configuration says about networks.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::traffic::TrafficPeriod;
use crate::model::node::Host;

/// Keys `network.*` of the configuration, and what else the net thread needs of it.
#[derive(Clone, PartialEq, Debug)]
pub struct NetworkSettings {
    /// Where the Go service manager kept its state of CNI (`workingDir`); empty = nowhere.
    pub working_dir: PathBuf,
    /// Root of the volatile files (`runDir`).
    pub run_dir: PathBuf,
    /// Lines that go into the `hosts` file of every instance; malformed ones are left out.
    pub hosts: Vec<Host>,
    /// Interface for VLANs; empty = the one of the default route.
    pub vlan_parent: String,
    /// Answer name queries on the address of each bridge.
    pub dns_responder: bool,
    /// Name servers when there are no others; malformed ones are left out.
    pub dns_fallback: Vec<IpAddr>,
    /// `false` = no rules at all and no accounting.
    pub firewall: bool,
    /// Let traffic from outside reach every port of an instance.
    pub open_inbound: bool,
    /// Start although a speed limit cannot be set.
    pub bandwidth_optional: bool,
    /// After which traffic counters and limits begin again.
    pub traffic_period: TrafficPeriod,
    /// Shortest time between stored counters.
    pub traffic_store_period: Duration,
    /// Addresses and prefix lengths that are not counted as traffic.
    pub local_networks: Vec<(IpAddr, u8)>,
    /// How long a removed network with instances lives on.
    pub drain_timeout: Duration,
}

impl Default for NetworkSettings {
    fn default() -> Self {
        Self {
            working_dir: PathBuf::new(),
            run_dir: PathBuf::from("/run/aos"),
            hosts: Vec::new(),
            vlan_parent: String::new(),
            dns_responder: true,
            dns_fallback: vec![IpAddr::from([8, 8, 8, 8])],
            firewall: true,
            open_inbound: false,
            bandwidth_optional: false,
            traffic_period: TrafficPeriod::default(),
            traffic_store_period: Duration::from_secs(60),
            local_networks: default_local_networks(),
            drain_timeout: Duration::from_secs(60),
        }
    }
}

/// Private networks and loopback.
fn default_local_networks() -> Vec<(IpAddr, u8)> {
    vec![
        (IpAddr::from([127, 0, 0, 0]), 8),
        (IpAddr::from([10, 0, 0, 0]), 8),
        (IpAddr::from([192, 168, 0, 0]), 16),
        (IpAddr::from([172, 16, 0, 0]), 12),
    ]
}
