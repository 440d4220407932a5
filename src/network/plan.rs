//! Pure: checks what the CM and the packages ask of a network before anything is touched. What
//! comes out needs no further checks; what does not pass is an error with field, value and reason.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;

use log::warn;

use super::accounting::Limits;
use super::error::Error;
use super::names;
use super::naming;
use crate::model::desired::{FirewallRule, NetworkParams};
use crate::model::id::{InstanceId, InstanceIdent, NetworkId};
use crate::model::node::Host;
use crate::ports::NetworkPlan;

/// Exposed ports, and allowed connections, of one instance.
pub(super) const MAX_ENDPOINTS: usize = 1024;
/// Networks of one node: far above the 15 subnets that a CM hands out.
pub(super) const MAX_NETWORKS: usize = 256;
/// Name servers of one instance, and that are asked for one network: a resolver takes three.
pub(super) const MAX_SERVERS: usize = 8;
const MAX_VLAN_ID: u64 = 4094;
const MIN_PREFIX: u8 = 8;
const MAX_PREFIX: u8 = 30;
const PROTOCOL_TCP: u8 = 6;
const PROTOCOL_UDP: u8 = 17;

/// An IPv4 subnet, host bits zero.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Subnet {
    network: Ipv4Addr,
    prefix: u8,
}

impl fmt::Display for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network, self.prefix)
    }
}

impl Subnet {
    /// Reads `a.b.c.d/prefix` with a prefix of 8 to 30 and no host bits.
    pub(super) fn parse(text: &str) -> Result<Self, Error> {
        let invalid = |reason| Error::invalid("subnet", text, reason);
        let (address, prefix) = text
            .split_once('/')
            .ok_or_else(|| invalid("must be an address and a prefix length"))?;
        let network = parse_ipv4("subnet", address)?;
        let digits = !prefix.is_empty() && prefix.bytes().all(|b| b.is_ascii_digit());
        let prefix = prefix.parse().ok().filter(|_| digits);
        let prefix = prefix.ok_or_else(|| invalid("prefix length must be a number"))?;
        if !(MIN_PREFIX..=MAX_PREFIX).contains(&prefix) {
            return Err(invalid("prefix length must be 8 to 30"));
        }
        let subnet = Self { network, prefix };
        if network.to_bits() & !subnet.mask() != 0 {
            return Err(invalid("host bits must be zero"));
        }
        Ok(subnet)
    }

    /// From what the kernel says; any prefix.
    pub(super) fn of_route(network: Ipv4Addr, prefix: u8) -> Self {
        Self { network, prefix: prefix.min(32) }
    }

    fn mask(&self) -> u32 {
        u32::MAX.checked_shl(32 - u32::from(self.prefix)).unwrap_or(0)
    }

    pub(super) fn prefix(&self) -> u8 {
        self.prefix
    }

    pub(super) fn contains(&self, address: Ipv4Addr) -> bool {
        address.to_bits() & self.mask() == self.network.to_bits()
    }

    pub(super) fn first(&self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.network.to_bits() + 1)
    }

    pub(super) fn broadcast(&self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.network.to_bits() | !self.mask())
    }

    pub(super) fn overlaps(&self, other: &Self) -> bool {
        self.contains(other.network) || other.contains(self.network)
    }

    /// Checks that a host may have this address.
    pub(super) fn check_host(&self, address: Ipv4Addr) -> Result<(), Error> {
        let invalid = |reason| Err(Error::invalid("address", &address.to_string(), reason));
        if !self.contains(address) {
            return invalid("lies outside of the subnet");
        }
        if address == self.network || address == self.broadcast() {
            return invalid("is the network or broadcast address of the subnet");
        }
        Ok(())
    }
}

fn parse_ipv4(field: &'static str, text: &str) -> Result<Ipv4Addr, Error> {
    match text.parse() {
        Ok(IpAddr::V4(address)) => Ok(address),
        Ok(IpAddr::V6(_)) => Err(Error::invalid(field, text, "IPv6 is not supported")),
        Err(_) => Err(Error::invalid(field, text, "must be an IPv4 address")),
    }
}

/// A network of this node, checked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Wanted {
    pub(super) id: NetworkId,
    pub(super) subnet: Subnet,
    /// Address of the bridge, which is the gateway of the instances.
    pub(super) gateway: Ipv4Addr,
    /// As the CM sent it, so that an absurd one is reported once per change.
    pub(super) vlan_id: u64,
}

impl Wanted {
    fn check(params: &NetworkParams) -> Result<Self, Error> {
        check_network_id(&params.id)?;
        let subnet = Subnet::parse(&params.subnet)?;
        let gateway = parse_ipv4("ip", &params.ip)?;
        subnet.check_host(gateway)?;
        Ok(Self { id: params.id.clone(), subnet, gateway, vlan_id: params.vlan_id })
    }
}

impl Wanted {
    /// The CM gave a VLAN id that exists.
    pub(super) fn wants_vlan(&self) -> bool {
        (1..=MAX_VLAN_ID).contains(&self.vlan_id)
    }

    /// Another network has addresses of this one.
    pub(super) fn overlap(&self, other: &Self) -> Error {
        Error::Overlap {
            subnet: self.subnet.to_string(),
            other: format!("network {} with {}", other.id, other.subnet),
        }
    }
}

fn check_network_id(id: &NetworkId) -> Result<(), Error> {
    let text = id.as_str();
    if text.is_empty() {
        return Err(Error::invalid("network id", text, "must not be empty"));
    }
    if text.len() > naming::MAX_ID_BYTES {
        return Err(Error::invalid("network id", text, "is longer than 200 bytes"));
    }
    if text.chars().any(char::is_control) {
        return Err(Error::invalid("network id", text, "must not contain control characters"));
    }
    Ok(())
}

/// The valid networks of a list, the last one of each id, and the reasons why others are not.
/// `stands`: who has these addresses already keeps them.
pub(super) fn check_networks(
    list: &[NetworkParams],
    stands: impl Fn(&Wanted) -> bool,
) -> (Vec<Wanted>, Vec<(NetworkId, Error)>) {
    let mut newest: BTreeMap<&NetworkId, &NetworkParams> = BTreeMap::new();
    for params in list {
        newest.insert(&params.id, params);
    }
    let (mut sound, mut failed): (Vec<Wanted>, Vec<(NetworkId, Error)>) = (vec![], vec![]);
    for (id, params) in newest {
        match Wanted::check(params) {
            Ok(network) => sound.push(network),
            Err(error) => failed.push((id.clone(), error)),
        }
    }
    sound.sort_by_key(|network| !stands(network));
    let mut wanted: Vec<Wanted> = Vec::new();
    for network in sound {
        let id = network.id.clone();
        if wanted.len() == MAX_NETWORKS {
            failed.push((id.clone(), Error::invalid("networks", id.as_str(), "are more than 256")));
        } else if let Some(other) = wanted.iter().find(|o| o.subnet.overlaps(&network.subnet)) {
            failed.push((id, network.overlap(other)));
        } else {
            wanted.push(network);
        }
    }
    (wanted, failed)
}

/// A port of a protocol.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(super) struct Endpoint {
    /// Number of the IP protocol.
    pub(super) protocol: u8,
    pub(super) port: u16,
}

/// What an instance is to get, checked.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Attachment {
    pub(super) id: InstanceId,
    pub(super) ident: InstanceIdent,
    pub(super) network: NetworkId,
    /// `None`: the CM could not prepare a network; the instance gets loopback only.
    pub(super) address: Option<(Subnet, Ipv4Addr)>,
    pub(super) dns_servers: Vec<IpAddr>,
    /// Connections into other networks.
    pub(super) allowed: Vec<(Ipv4Addr, Endpoint)>,
    /// Open to the outside.
    pub(super) exposed: Vec<Endpoint>,
    pub(super) hostname: Option<String>,
    /// All names under which the instance is found, without its id.
    pub(super) names: Vec<String>,
    /// Speed limits in kbit/s.
    pub(super) download_kbit: Option<u64>,
    pub(super) upload_kbit: Option<u64>,
    pub(super) limits: Limits,
    /// Lines for `hosts` from resources.
    pub(super) hosts: Vec<Host>,
    pub(super) etc_dir: PathBuf,
}

impl Attachment {
    /// Checks everything that can be checked without knowing the other instances.
    pub(super) fn check(plan: &NetworkPlan) -> Result<Self, Error> {
        if !naming::is_plain(plan.id.as_str()) {
            return Err(Error::invalid("instance id", plan.id.as_str(), "is no plain name"));
        }
        check_network_id(&plan.network_id)?;
        let address = check_address(&plan.params.subnet, &plan.params.ip)?;
        let hostname = (!plan.hostname.is_empty()).then(|| plan.hostname.clone());
        if let Some(name) = &hostname {
            names::check_hostname(name)?;
        }
        plan.hosts.iter().try_for_each(names::check_host)?;
        Ok(Self {
            id: plan.id.clone(),
            ident: plan.ident.clone(),
            network: plan.network_id.clone(),
            address,
            dns_servers: name_servers(&plan.id, &plan.params.dns_servers),
            allowed: allowed(&plan.id, &plan.params.rules, address.map(|(_, ip)| ip))?,
            exposed: exposed(&plan.exposed_ports)?,
            names: names::of_instance(&plan.ident, hostname.as_deref(), &plan.network_id),
            hostname,
            download_kbit: plan.quotas.download_kbit.filter(|kbit| *kbit > 0),
            upload_kbit: plan.quotas.upload_kbit.filter(|kbit| *kbit > 0),
            limits: Limits {
                download_bytes: plan.quotas.download_bytes.filter(|bytes| *bytes > 0),
                upload_bytes: plan.quotas.upload_bytes.filter(|bytes| *bytes > 0),
                ..Limits::default()
            },
            hosts: plan.hosts.clone(),
            etc_dir: plan.etc_dir.clone(),
        })
    }
}

fn check_address(subnet: &str, ip: &str) -> Result<Option<(Subnet, Ipv4Addr)>, Error> {
    if subnet.is_empty() && ip.is_empty() {
        return Ok(None);
    }
    let subnet = Subnet::parse(subnet)?;
    let address = parse_ipv4("ip", ip)?;
    subnet.check_host(address)?;
    Ok(Some((subnet, address)))
}

/// A malformed name server is no reason to keep an instance from running.
fn name_servers(id: &InstanceId, texts: &[String]) -> Vec<IpAddr> {
    let mut servers = Vec::new();
    for text in texts.iter().filter(|text| !text.is_empty()) {
        match text.parse() {
            Ok(_) if servers.len() == MAX_SERVERS => {
                warn!("ignoring name servers beyond the first {MAX_SERVERS} instance={id}");
                break;
            }
            Ok(server) if !servers.contains(&server) => servers.push(server),
            Ok(_) => {}
            Err(_) => warn!("ignoring malformed name server instance={id} server={text:?}"),
        }
    }
    servers
}

/// A rule has the ports as the image of its target writes them: the CM compares texts.
fn allowed(
    id: &InstanceId,
    rules: &[FirewallRule],
    own: Option<Ipv4Addr>,
) -> Result<Vec<(Ipv4Addr, Endpoint)>, Error> {
    let mut allowed = Vec::with_capacity(rules.len().min(MAX_ENDPOINTS));
    for rule in rules {
        let target = parse_ipv4("dst_ip", &rule.dst_ip)?;
        let protocol = parse_protocol(&rule.proto)?;
        let ports = parse_ports("dst_port", &rule.dst_port, MAX_ENDPOINTS - allowed.len())?;
        if !rule.src_ip.is_empty() && rule.src_ip.parse().ok() != own.map(IpAddr::V4) {
            warn!(
                "rule is for another source; using the instance's instance={id} source={:?}",
                rule.src_ip
            );
        }
        allowed.extend(ports.into_iter().map(|port| (target, Endpoint { protocol, port })));
    }
    allowed.sort_unstable();
    allowed.dedup();
    Ok(allowed)
}

/// Reads `80`, `80/tcp`, `1000-1010/udp`, `1000:1010`, `80,443`.
fn exposed(texts: &[String]) -> Result<Vec<Endpoint>, Error> {
    let mut endpoints = Vec::new();
    for text in texts {
        let (ports, protocol) = match text.split_once('/') {
            Some((_, rest)) if rest.contains('/') => {
                return Err(Error::invalid(
                    "exposed port",
                    text,
                    "unsupported ExposedPorts format",
                ));
            }
            Some((ports, protocol)) => (ports, parse_protocol(protocol)?),
            None => (text.as_str(), PROTOCOL_TCP),
        };
        let ports = parse_ports("exposed port", ports, MAX_ENDPOINTS - endpoints.len())?;
        endpoints.extend(ports.into_iter().map(|port| Endpoint { protocol, port }));
    }
    endpoints.sort_unstable();
    endpoints.dedup();
    Ok(endpoints)
}

/// Reads `80`, `1000-1010`, `1000:1010`, `80,443`. No more than `room` are left of `MAX_ENDPOINTS`.
fn parse_ports(field: &'static str, text: &str, room: usize) -> Result<Vec<u16>, Error> {
    let mut ports = Vec::new();
    for range in text.split(',') {
        let (first, last) = parse_range(range)?;
        if usize::from(last - first) + ports.len() >= room {
            return Err(Error::invalid(field, text, "makes more than 1024 ports of the instance"));
        }
        ports.extend(first..=last);
    }
    Ok(ports)
}

fn parse_range(text: &str) -> Result<(u16, u16), Error> {
    let Some((first, last)) = text.split_once(['-', ':']) else {
        let port = parse_port(text)?;
        return Ok((port, port));
    };
    let (first, last) = (parse_port(first)?, parse_port(last)?);
    if first > last {
        return Err(Error::invalid("port", text, "range ends before it begins"));
    }
    Ok((first, last))
}

fn parse_port(text: &str) -> Result<u16, Error> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    match text.parse() {
        Ok(port) if digits && port != 0 => Ok(port),
        _ => Err(Error::invalid("port", text, "must be 1 to 65535")),
    }
}

fn parse_protocol(text: &str) -> Result<u8, Error> {
    match text.to_ascii_lowercase().as_str() {
        "" | "tcp" => Ok(PROTOCOL_TCP),
        "udp" => Ok(PROTOCOL_UDP),
        _ => Err(Error::invalid("protocol", text, "must be tcp or udp")),
    }
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
