//! What the configuration says about networks.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use crate::model::node::Host;

/// Keys `network.*` of the configuration, and what else the net thread needs of it.
#[derive(Clone, PartialEq, Debug)]
pub struct NetworkSettings {
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
    /// How long a removed network with instances lives on.
    pub drain_timeout: Duration,
}

impl Default for NetworkSettings {
    fn default() -> Self {
        Self {
            run_dir: PathBuf::from("/run/aos"),
            hosts: Vec::new(),
            vlan_parent: String::new(),
            dns_responder: true,
            dns_fallback: vec![IpAddr::from([8, 8, 8, 8])],
            firewall: true,
            open_inbound: false,
            bandwidth_optional: false,
            drain_timeout: Duration::from_secs(60),
        }
    }
}
