//! Pure: the rtnetlink messages that we send, and links, addresses and routes as the kernel lists
//! them. One function per message; what belongs together is composed in `bridge` and `attach`.

use std::net::Ipv4Addr;

use super::channel::{self, Channel};
use super::error::Error;
use super::filter;
use super::naming::LinkName;
use super::wire::{self, Message, Messages, Payload};

const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_GETLINK: u16 = 18;
const RTM_SETLINK: u16 = 19;
const RTM_NEWADDR: u16 = 20;
const RTM_DELADDR: u16 = 21;
const RTM_GETADDR: u16 = 22;
const RTM_NEWROUTE: u16 = 24;
const RTM_DELROUTE: u16 = 25;
const RTM_GETROUTE: u16 = 26;

const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_LINK: u16 = 5;
const IFLA_MASTER: u16 = 10;
const IFLA_PROTINFO: u16 = 12;
const IFLA_LINKINFO: u16 = 18;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const IFLA_IFALIAS: u16 = 20;
const IFLA_AF_SPEC: u16 = 26;
const IFLA_GROUP: u16 = 27;
const IFLA_NET_NS_FD: u16 = 28;
const IFLA_EXT_MASK: u16 = 29;
const SKIP_STATISTICS: u32 = 8;
const IFLA_NUM_TX_QUEUES: u16 = 31;
const IFLA_NUM_RX_QUEUES: u16 = 32;
const IFLA_BR_FORWARD_DELAY: u16 = 1;
const IFLA_BR_STP_STATE: u16 = 5;
const IFLA_BRPORT_MODE: u16 = 4;
const IFLA_VLAN_ID: u16 = 1;
const VETH_INFO_PEER: u16 = 1;
const IFLA_INET_CONF: u16 = 1;
const DEVCONF_ARP_NOTIFY: u16 = 22;
const IFLA_INET6_ADDR_GEN_MODE: u16 = 8;
const ADDR_GEN_MODE_NONE: u8 = 1;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_BROADCAST: u16 = 4;
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_PRIORITY: u16 = 6;
const RTA_MULTIPATH: u16 = 9;
const RTA_TABLE: u16 = 15;

const AF_UNSPEC: u8 = 0;
const AF_INET: u8 = 2;
const AF_BRIDGE: u8 = 7;
const AF_INET6: u16 = 10;
const IFF_UP: u32 = 1;
const ARPHRD_ETHER: u16 = 1;
const RT_TABLE_MAIN: u8 = 254;
const RT_TABLE_UNSPEC: u8 = 0;
const RTPROT_STATIC: u8 = 4;
const RT_SCOPE_UNIVERSE: u8 = 0;
const RT_SCOPE_LINK: u8 = 253;
const RTN_UNICAST: u8 = 1;
const LINK_HEADER: usize = 16;
const ADDRESS_HEADER: usize = 8;
const ROUTE_HEADER: usize = 12;
const NEXT_HOP_HEADER: usize = 8;

/// Group number of all our links, by which rules and `ip link show group` tell them at a glance.
pub(super) const LINK_GROUP: u32 = 0x0061_6f73;
/// Loopback of a new namespace.
pub(super) const LOOPBACK_INDEX: u32 = 1;
/// Name of the interface of an instance.
pub(super) const INSTANCE_INTERFACE: &str = "eth0";

/// Index of a network interface.
pub(super) type Index = u32;
/// Ethernet address.
pub(super) type Mac = [u8; 6];

/// What a new bridge is.
#[derive(Clone, Copy, Debug)]
pub(super) struct NewBridge<'a> {
    pub(super) index: Index,
    pub(super) name: &'a LinkName,
    pub(super) mac: Mac,
    pub(super) mtu: u32,
}

pub(super) fn new_bridge(messages: &mut Messages, bridge: &NewBridge<'_>) {
    messages.add("create bridge", RTM_NEWLINK, channel::CREATE_NEW, |p| {
        link_header(p, AF_UNSPEC, bridge.index, IFF_UP, IFF_UP);
        p.text(IFLA_IFNAME, bridge.name);
        p.attribute(IFLA_ADDRESS, &bridge.mac);
        p.u32(IFLA_GROUP, LINK_GROUP);
        p.u32(IFLA_MTU, bridge.mtu);
        p.group(IFLA_LINKINFO, |p| {
            p.text(IFLA_INFO_KIND, "bridge");
            p.group(IFLA_INFO_DATA, |p| {
                p.u32(IFLA_BR_STP_STATE, 0);
                p.u32(IFLA_BR_FORWARD_DELAY, 0);
            });
        });
    });
}

/// A request for a link of this kind that the kernel refuses in any case: an Ethernet address of
/// one byte. If it does not know the kind it says so.
pub(super) fn ask_for_kind(messages: &mut Messages, kind: &str) {
    messages.add("ask for link kind", RTM_NEWLINK, channel::CREATE_NEW, |p| {
        link_header(p, AF_UNSPEC, 0, 0, 0);
        p.attribute(IFLA_ADDRESS, &[0]);
        p.group(IFLA_LINKINFO, |p| p.text(IFLA_INFO_KIND, kind));
    });
}

/// What a new VLAN interface is.
#[derive(Clone, Copy, Debug)]
pub(super) struct NewVlan<'a> {
    pub(super) index: Index,
    pub(super) name: &'a LinkName,
    pub(super) parent: Index,
    pub(super) bridge: Index,
    pub(super) vlan_id: u16,
}

pub(super) fn new_vlan(messages: &mut Messages, vlan: &NewVlan<'_>) {
    messages.add("create vlan", RTM_NEWLINK, channel::CREATE_NEW, |p| {
        link_header(p, AF_UNSPEC, vlan.index, IFF_UP, IFF_UP);
        p.text(IFLA_IFNAME, vlan.name);
        p.u32(IFLA_LINK, vlan.parent);
        p.u32(IFLA_MASTER, vlan.bridge);
        p.u32(IFLA_GROUP, LINK_GROUP);
        p.group(IFLA_LINKINFO, |p| {
            p.text(IFLA_INFO_KIND, "vlan");
            p.group(IFLA_INFO_DATA, |p| p.u16(IFLA_VLAN_ID, vlan.vlan_id));
        });
    });
}

/// What a new veth pair is: one end in the bridge, the other inside the instance.
#[derive(Clone, Copy, Debug)]
pub(super) struct NewVeth<'a> {
    pub(super) index: Index,
    pub(super) name: &'a LinkName,
    pub(super) bridge: Index,
    pub(super) mtu: u32,
    pub(super) peer_index: Index,
    pub(super) peer_mac: Mac,
    /// Descriptor of the namespace of the other end.
    pub(super) peer_namespace: i32,
}

pub(super) fn new_veth(messages: &mut Messages, veth: &NewVeth<'_>) {
    messages.add("create veth", RTM_NEWLINK, channel::CREATE_NEW, |p| {
        link_header(p, AF_UNSPEC, veth.index, IFF_UP, IFF_UP);
        p.text(IFLA_IFNAME, veth.name);
        p.u32(IFLA_MTU, veth.mtu);
        p.u32(IFLA_MASTER, veth.bridge);
        one_queue(p);
        p.u32(IFLA_GROUP, LINK_GROUP);
        p.group(IFLA_LINKINFO, |p| {
            p.text(IFLA_INFO_KIND, "veth");
            p.group(IFLA_INFO_DATA, |p| p.group(VETH_INFO_PEER, |p| veth_peer(p, veth)));
        });
    });
}

fn veth_peer(p: &mut Payload<'_>, veth: &NewVeth<'_>) {
    link_header(p, AF_UNSPEC, veth.peer_index, 0, 0);
    p.text(IFLA_IFNAME, INSTANCE_INTERFACE);
    p.u32(IFLA_MTU, veth.mtu);
    p.attribute(IFLA_ADDRESS, &veth.peer_mac);
    one_queue(p);
    p.attribute(IFLA_NET_NS_FD, &veth.peer_namespace.to_ne_bytes());
}

/// One queue per direction saves about 10 kB for each further CPU.
fn one_queue(p: &mut Payload<'_>) {
    p.u32(IFLA_NUM_TX_QUEUES, 1);
    p.u32(IFLA_NUM_RX_QUEUES, 1);
}

/// The kernel ignores an alias in the message that creates a link.
pub(super) fn set_alias(messages: &mut Messages, index: Index, alias: &str) {
    messages.add("set alias", RTM_SETLINK, channel::REQUEST, |p| {
        link_header(p, AF_UNSPEC, index, 0, 0);
        // Not terminated: the kernel takes the whole attribute.
        p.attribute(IFLA_IFALIAS, alias.as_bytes());
    });
}

pub(super) fn set_mac(messages: &mut Messages, index: Index, mac: Mac) {
    messages.add("set Ethernet address", RTM_SETLINK, channel::REQUEST, |p| {
        link_header(p, AF_UNSPEC, index, 0, 0);
        p.attribute(IFLA_ADDRESS, &mac);
    });
}

/// Lets an instance reach its own address through the bridge.
pub(super) fn set_hairpin(messages: &mut Messages, index: Index) {
    messages.add("set hairpin", RTM_SETLINK, channel::REQUEST, |p| {
        link_header(p, AF_BRIDGE, index, 0, 0);
        p.nested(IFLA_PROTINFO, |p| p.u8(IFLA_BRPORT_MODE, 1));
    });
}

pub(super) fn set_up(messages: &mut Messages, index: Index) {
    messages.add("set link up", RTM_NEWLINK, channel::REQUEST, |p| {
        link_header(p, AF_UNSPEC, index, IFF_UP, IFF_UP);
    });
}

/// Puts a link into a bridge and up.
pub(super) fn enslave(messages: &mut Messages, index: Index, bridge: Index) {
    messages.add("enslave link", RTM_SETLINK, channel::REQUEST, |p| {
        link_header(p, AF_UNSPEC, index, IFF_UP, IFF_UP);
        p.u32(IFLA_MASTER, bridge);
    });
}

/// Cuts a link off at once. It stays a port of its bridge, which costs less than leaving.
pub(super) fn set_down(messages: &mut Messages, index: Index) {
    messages.add("cut off link", RTM_SETLINK, channel::REQUEST, |p| {
        link_header(p, AF_UNSPEC, index, 0, IFF_UP);
    });
}

/// Sets what must be set before the interface of an instance goes up: no IPv6 address of its own
/// (only if the kernel has IPv6), and an announcement of its address to the neighbours.
pub(super) fn set_address_modes(messages: &mut Messages, index: Index, ipv6: bool) {
    messages.add("set address modes", RTM_NEWLINK, channel::REQUEST, |p| {
        link_header(p, AF_UNSPEC, index, 0, 0);
        p.group(IFLA_AF_SPEC, |p| {
            if ipv6 {
                p.group(AF_INET6, |p| p.u8(IFLA_INET6_ADDR_GEN_MODE, ADDR_GEN_MODE_NONE));
            }
            p.group(u16::from(AF_INET), |p| {
                p.group(IFLA_INET_CONF, |p| p.u32(DEVCONF_ARP_NOTIFY, 1));
            });
        });
    });
}

/// Asks for a link, whose answer nobody reads: since Linux 6.8 the question makes the kernel finish
/// a change of carrier at once. Otherwise a worker of the kernel does so a little later, and what
/// is sent before then is lost.
pub(super) fn settle_carrier(messages: &mut Messages, index: Index) {
    messages.add("settle carrier", RTM_GETLINK, channel::REQUEST, |p| {
        link_header(p, AF_UNSPEC, index, 0, 0);
        p.u32(IFLA_EXT_MASK, SKIP_STATISTICS);
    });
}

/// Puts a link into a group: ours, or that of nobody in particular.
pub(super) fn set_group(messages: &mut Messages, index: Index, group: u32) {
    messages.add("set group", RTM_SETLINK, channel::REQUEST, |p| {
        link_header(p, AF_UNSPEC, index, 0, 0);
        p.u32(IFLA_GROUP, group);
    });
}

pub(super) fn set_mtu(messages: &mut Messages, index: Index, mtu: u32) {
    messages.add("set MTU", RTM_NEWLINK, channel::REQUEST, |p| {
        link_header(p, AF_UNSPEC, index, 0, 0);
        p.u32(IFLA_MTU, mtu);
    });
}

pub(super) fn delete_link(messages: &mut Messages, index: Index) {
    messages.add("delete link", RTM_DELLINK, channel::REQUEST, |p| {
        link_header(p, AF_UNSPEC, index, 0, 0);
    });
}

/// An IPv4 address of a link.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct LinkAddress {
    pub(super) index: Index,
    pub(super) address: Ipv4Addr,
    pub(super) prefix: u8,
}

pub(super) fn new_address(messages: &mut Messages, address: &LinkAddress, broadcast: Ipv4Addr) {
    messages.add("add address", RTM_NEWADDR, channel::CREATE_OR_REPLACE, |p| {
        p.raw(&address_header(address));
        p.attribute(IFA_LOCAL, &address.address.octets());
        p.attribute(IFA_ADDRESS, &address.address.octets());
        p.attribute(IFA_BROADCAST, &broadcast.octets());
    });
}

pub(super) fn delete_address(messages: &mut Messages, address: &LinkAddress) {
    messages.add("delete address", RTM_DELADDR, channel::REQUEST, |p| {
        p.raw(&address_header(address));
        p.attribute(IFA_LOCAL, &address.address.octets());
        p.attribute(IFA_ADDRESS, &address.address.octets());
    });
}

/// Sets or replaces the default route.
pub(super) fn set_default_route(messages: &mut Messages, gateway: Ipv4Addr, link: Index) {
    messages.add("set default route", RTM_NEWROUTE, channel::CREATE_OR_REPLACE, |p| {
        let (table, protocol, scope) = (RT_TABLE_MAIN, RTPROT_STATIC, RT_SCOPE_UNIVERSE);
        p.raw(&[AF_INET, 0, 0, 0, table, protocol, scope, RTN_UNICAST, 0, 0, 0, 0]);
        p.attribute(RTA_GATEWAY, &gateway.octets());
        p.u32(RTA_OIF, link);
    });
}

fn address_header(address: &LinkAddress) -> [u8; ADDRESS_HEADER] {
    let mut header = [0; ADDRESS_HEADER];
    header[0] = AF_INET;
    header[1] = address.prefix;
    header[4..].copy_from_slice(&address.index.to_ne_bytes());
    header
}

fn link_header(p: &mut Payload<'_>, family: u8, index: Index, flags: u32, change: u32) {
    let mut header = [0; LINK_HEADER];
    header[0] = family;
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    header[8..12].copy_from_slice(&flags.to_ne_bytes());
    header[12..16].copy_from_slice(&change.to_ne_bytes());
    p.raw(&header);
}

/// A link as the kernel lists it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Link {
    pub(super) index: Index,
    pub(super) name: String,
    pub(super) alias: String,
    /// `bridge`, `veth`, `vlan`; empty for hardware.
    pub(super) kind: String,
    /// Index of its bridge, 0 = none.
    pub(super) master: Index,
    pub(super) mtu: u32,
    pub(super) up: bool,
    pub(super) ethernet: bool,
    /// Link that carries it, 0 = none in this namespace.
    pub(super) parent: Index,
    /// Of a VLAN; else 0.
    pub(super) vlan_id: u16,
    /// `LINK_GROUP` = ours, 0 = that of nobody in particular.
    pub(super) group: u32,
    /// Zeros = it has none of this length.
    pub(super) mac: Mac,
}

/// All links of the namespace of the channel.
pub(super) fn links(channel: &mut Channel) -> Result<Vec<Link>, Error> {
    let mut request = Messages::new();
    request.add("list links", RTM_GETLINK, channel::DUMP, |p| {
        link_header(p, AF_UNSPEC, 0, 0, 0);
    });
    channel.dump(&mut request, parse_link)
}

pub(super) fn parse_link(message: &Message<'_>) -> Option<Link> {
    if message.kind != RTM_NEWLINK {
        return None;
    }
    let index = wire::read_u32(message.body, 4)?;
    let up = wire::read_u32(message.body, 8)? & IFF_UP != 0;
    let ethernet = wire::read_u16(message.body, 2)? == ARPHRD_ETHER;
    let mut link = Link { index, up, ethernet, ..Link::default() };
    for (kind, value) in wire::attributes(message.body.get(LINK_HEADER..)?) {
        match kind {
            IFLA_IFNAME => link.name = wire::text(value).to_owned(),
            IFLA_IFALIAS => link.alias = wire::text(value).to_owned(),
            IFLA_MTU => link.mtu = wire::read_u32(value, 0)?,
            IFLA_LINK => link.parent = wire::read_u32(value, 0)?,
            IFLA_MASTER => link.master = wire::read_u32(value, 0)?,
            IFLA_GROUP => link.group = wire::read_u32(value, 0)?,
            IFLA_ADDRESS => link.mac = value.try_into().unwrap_or_default(),
            IFLA_LINKINFO => {
                let kind = wire::find(value, IFLA_INFO_KIND).map(wire::text);
                link.kind = kind.unwrap_or_default().to_owned();
                link.vlan_id = vlan_id(&link.kind, value).unwrap_or(0);
            }
            _ => {}
        }
    }
    Some(link)
}

fn vlan_id(kind: &str, info: &[u8]) -> Option<u16> {
    let data = (kind == "vlan").then(|| wire::find(info, IFLA_INFO_DATA)).flatten()?;
    wire::read_u16(wire::find(data, IFLA_VLAN_ID)?, 0)
}

/// All IPv4 addresses of the namespace of the channel.
pub(super) fn addresses(channel: &mut Channel) -> Result<Vec<LinkAddress>, Error> {
    let mut request = Messages::new();
    request.add("list addresses", RTM_GETADDR, channel::DUMP, |p| {
        p.raw(&[AF_INET, 0, 0, 0, 0, 0, 0, 0]);
    });
    channel.dump(&mut request, parse_address)
}

pub(super) fn parse_address(message: &Message<'_>) -> Option<LinkAddress> {
    if message.kind != RTM_NEWADDR || *message.body.first()? != AF_INET {
        return None;
    }
    let attributes = message.body.get(ADDRESS_HEADER..)?;
    let local =
        wire::find(attributes, IFA_LOCAL).or_else(|| wire::find(attributes, IFA_ADDRESS))?;
    Some(LinkAddress {
        index: wire::read_u32(message.body, 4)?,
        address: ipv4(local)?,
        prefix: *message.body.get(1)?,
    })
}

/// An IPv4 route of the main table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Route {
    pub(super) destination: Ipv4Addr,
    pub(super) prefix: u8,
    /// Of several ways, the first one.
    pub(super) link: Index,
    pub(super) metric: u32,
    pub(super) gateway: Option<Ipv4Addr>,
    /// The destination is reached without a router.
    pub(super) connected: bool,
}

/// The unicast routes of the main table.
pub(super) fn routes(channel: &mut Channel) -> Result<Vec<Route>, Error> {
    let mut request = Messages::new();
    request.add("list routes", RTM_GETROUTE, channel::DUMP, |p| {
        p.raw(&[AF_INET, 0, 0, 0, RT_TABLE_UNSPEC, 0, 0, 0, 0, 0, 0, 0]);
    });
    channel.dump(&mut request, parse_route)
}

pub(super) fn parse_route(message: &Message<'_>) -> Option<Route> {
    if message.kind == RTM_NEWROUTE { read_route(message.body) } else { None }
}

fn read_route(body: &[u8]) -> Option<Route> {
    let header = body.get(..ROUTE_HEADER)?;
    let attributes = body.get(ROUTE_HEADER..)?;
    let table = wire::find(attributes, RTA_TABLE).and_then(|value| wire::read_u32(value, 0));
    let in_main = table.unwrap_or(u32::from(header[4])) == u32::from(RT_TABLE_MAIN);
    if header[0] != AF_INET || header[7] != RTN_UNICAST || !in_main {
        return None;
    }
    let number = |kind| wire::find(attributes, kind).and_then(|value| wire::read_u32(value, 0));
    let ways = wire::find(attributes, RTA_MULTIPATH);
    let (way, gateway) = ways.and_then(first_way).unzip();
    Some(Route {
        destination: wire::find(attributes, RTA_DST)
            .and_then(ipv4)
            .unwrap_or(Ipv4Addr::UNSPECIFIED),
        prefix: header[1],
        link: number(RTA_OIF).or(way)?,
        metric: number(RTA_PRIORITY).unwrap_or(0),
        gateway: wire::find(attributes, RTA_GATEWAY).and_then(ipv4).or(gateway.flatten()),
        connected: header[6] == RT_SCOPE_LINK,
    })
}

/// Link and router of the first one of several ways to the same destination.
fn first_way(ways: &[u8]) -> Option<(Index, Option<Ipv4Addr>)> {
    let length = usize::from(wire::read_u16(ways, 0)?);
    let attributes = ways.get(NEXT_HOP_HEADER..length)?;
    Some((wire::read_u32(ways, 4)?, wire::find(attributes, RTA_GATEWAY).and_then(ipv4)))
}

/// Groups of the kernel for links and IPv4 routes.
pub(super) const NOTICE_GROUPS: [u32; 2] = [1, 7];

/// Lets everything in but changes of our own links, of which each attach makes two dozen, and what
/// bridges say about their ports. That a link of ours is gone does come in.
pub(super) fn notice_filter() -> impl AsRef<[libc::sock_filter]> {
    filter::without_links(AF_BRIDGE, RTM_NEWLINK, (IFLA_GROUP, LINK_GROUP))
}

/// What happened to a link or a route, as the kernel announces it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Notice {
    /// New, or something of it has changed.
    Link(Link),
    LinkGone {
        index: Index,
        ours: bool,
    },
    /// A default route is new, has changed or is gone. Not announced where it ends with its link.
    DefaultRoute,
}

/// `None`: of no interest.
pub(super) fn parse_notice(message: &Message<'_>) -> Option<Notice> {
    // The bridge announces its ports in the same way, under a family of its own.
    let of_link = || (*message.body.first()? == AF_UNSPEC).then_some(());
    match message.kind {
        RTM_NEWLINK => {
            of_link()?;
            parse_link(message).map(Notice::Link)
        }
        RTM_DELLINK => {
            of_link()?;
            let group = wire::find(message.body.get(LINK_HEADER..)?, IFLA_GROUP);
            let ours = group.and_then(|value| wire::read_u32(value, 0)) == Some(LINK_GROUP);
            Some(Notice::LinkGone { index: wire::read_u32(message.body, 4)?, ours })
        }
        RTM_NEWROUTE | RTM_DELROUTE => {
            read_route(message.body).filter(|r| r.prefix == 0).map(|_| Notice::DefaultRoute)
        }
        _ => None,
    }
}

fn ipv4(value: &[u8]) -> Option<Ipv4Addr> {
    Some(Ipv4Addr::from(<[u8; 4]>::try_from(value.get(..4)?).ok()?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn body(write: impl FnOnce(&mut Messages)) -> Vec<u8> {
        let mut messages = Messages::new();
        write(&mut messages);
        let bytes = messages.stamp(1, 0).to_vec();
        wire::messages(&bytes).next().unwrap().body.to_vec()
    }

    /// Not every kernel on which the tests run can make one.
    #[test]
    fn vlan_bytes() {
        let name = LinkName::try_from("vlan-e40c292c").unwrap();
        let vlan = NewVlan { index: 0x000f_4240, name: &name, parent: 2, bridge: 5, vlan_id: 300 };
        let expect = [
            &[0, 0, 0, 0, 0x40, 0x42, 0x0f, 0, 1, 0, 0, 0, 1, 0, 0, 0][..],
            &[18, 0, 3, 0],
            b"vlan-e40c292c\0\0\0",
            &[8, 0, 5, 0, 2, 0, 0, 0, 8, 0, 10, 0, 5, 0, 0, 0],
            &[8, 0, 27, 0, b's', b'o', b'a', 0],
            &[28, 0, 18, 0, 9, 0, 1, 0],
            b"vlan\0\0\0\0",
            &[12, 0, 2, 0, 6, 0, 1, 0, 0x2c, 1, 0, 0],
        ]
        .concat();
        assert_eq!(body(|messages| new_vlan(messages, &vlan)), expect);
    }

    #[test]
    fn listed_vlans_tell_id_and_parent() {
        let name = LinkName::try_from("vlan-e40c292c").unwrap();
        let vlan = NewVlan { index: 7, name: &name, parent: 2, bridge: 5, vlan_id: 300 };
        let bytes = body(|messages| new_vlan(messages, &vlan));
        let kind = RTM_NEWLINK;
        let message = Message { kind, flags: 0, sequence: 0, body: &bytes };
        let link = parse_link(&message).unwrap();
        let seen = (link.index, link.kind.as_str(), link.parent, link.master, link.vlan_id);
        assert_eq!(seen, (7, "vlan", 2, 5, 300));
    }

    #[test]
    fn route_bytes() {
        let expect = [
            &[2, 0, 0, 0, 254, 4, 0, 1, 0, 0, 0, 0][..],
            &[8, 0, 5, 0, 172, 17, 0, 1, 8, 0, 4, 0, 2, 0, 0, 0],
        ]
        .concat();
        let gateway = Ipv4Addr::new(172, 17, 0, 1);
        assert_eq!(body(|messages| set_default_route(messages, gateway, 2)), expect);
    }

    fn message(kind: u16, body: &[u8]) -> Message<'_> {
        Message { kind, flags: 0, sequence: 0, body }
    }

    #[test]
    fn the_first_of_several_ways_counts() {
        let hop = |link: u8, router: u8| {
            [[16, 0, 0, 0], [link, 0, 0, 0], [8, 0, 5, 0], [10, 0, 0, router]].concat()
        };
        let route = |ways: &[u8]| {
            let length = 4 + u8::try_from(ways.len()).unwrap();
            let start = [2, 0, 0, 0, 254, 4, 0, 1, 0, 0, 0, 0, length, 0, 9, 0];
            let bytes = [&start, ways].concat();
            parse_route(&message(RTM_NEWROUTE, &bytes)).map(|route| (route.link, route.gateway))
        };
        let router = Ipv4Addr::new(10, 0, 0, 1);
        assert_eq!(route(&[hop(5, 1), hop(6, 2)].concat()), Some((5, Some(router))));
        assert_eq!(route(&[8, 0, 0, 0, 7, 0, 0, 0]), Some((7, None)));
        assert_eq!(route(&[16, 0, 0, 0, 7, 0, 0, 0]), None);
        assert_eq!(route(&[]), None);
    }

    #[test]
    fn notices_tell_of_default_routes_and_of_links_that_go() {
        let notice = |kind, body: &[u8]| parse_notice(&message(kind, body));
        let router = Ipv4Addr::new(10, 0, 0, 1);
        let default = body(|messages| set_default_route(messages, router, 2));
        for kind in [RTM_NEWROUTE, RTM_DELROUTE] {
            assert_eq!(notice(kind, &default), Some(Notice::DefaultRoute));
            let mut other = default.clone();
            other[1] = 24;
            assert_eq!(notice(kind, &other), None);
        }
        // The list of all routes has none that are gone.
        assert_eq!(parse_route(&message(RTM_DELROUTE, &default)), None);
        for (group, ours) in [(LINK_GROUP, true), (0, false)] {
            let link = body(|messages| set_group(messages, 7, group));
            assert_eq!(notice(RTM_DELLINK, &link), Some(Notice::LinkGone { index: 7, ours }));
        }
    }

    proptest! {
        #[test]
        fn any_answer_is_survived(
            kind in 0u16..64,
            bytes in proptest::collection::vec(any::<u8>(), 0..200),
        ) {
            for kind in [kind, RTM_NEWLINK, RTM_DELLINK, RTM_NEWADDR, RTM_NEWROUTE] {
                let message = Message { kind, flags: 0, sequence: 0, body: &bytes };
                let _ = (parse_link(&message), parse_address(&message), parse_route(&message));
                let _ = parse_notice(&message);
            }
        }
    }
}
