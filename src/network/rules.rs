//! Pure: our rules and sets. The rules are installed once; an instance only adds keys to sets, so
//! that verdicts do not depend on the order of instances and cost the same for one or a thousand.
//!
//! Reading of the chain `aos_fwd`, through which everything from or to our bridges goes: what belongs
//! to a connection passes; frames within one bridge (seen with br_netfilter only) pass; garbage is
//! dropped; what
//! comes from a bridge must carry the address of an instance on that bridge; connections that the
//! CM allows pass; any other traffic between networks is dropped; instances reach the outside; the
//! outside reaches exposed ports; the rest is dropped.

use std::net::Ipv4Addr;

use super::accounting::{self, LocalNetworks};
use super::expressions::{self, Program};
use super::naming::{LINK_NAME_BYTES, LinkName};
use super::nft::{self, Content, Hook, NewSet, Place};
use super::plan::{Attachment, Endpoint};
use super::wire::Messages;
use crate::model::traffic::Volume;

/// The table; the image of an OS may bring it along with its own rules.
pub(super) const TABLE: &str = "aos";
/// Comment of our rules in chains that are not ours.
pub(super) const COMMENT: &str = "aos-sm";
/// Prefix of chains and sets that are ours.
pub(super) const PREFIX: &str = "aos_";
/// Chains that the successor generation (9.x) leaves behind.
pub(super) const SUCCESSOR_PREFIX: &str = "instance_";

/// Its table for traffic.
pub(super) const SUCCESSOR_TABLE: &str = "aos-traffic";

pub(super) const FORWARD: &str = "forward";
pub(super) const POSTROUTING: &str = "postrouting";
const FILTER: &str = "aos_fwd";
const DENY: &str = "aos_deny";

/// The base chains; they are made only if they are missing.
pub(super) const BASE_CHAINS: [(&str, Hook); 2] = [
    (FORWARD, Hook { kind: "filter", number: nft::HOOK_FORWARD, priority: 0 }),
    (POSTROUTING, Hook { kind: "nat", number: nft::HOOK_POSTROUTING, priority: 100 }),
];

/// Numbers of sets within a batch: ours are below.
const FIRST_ACCOUNTING_SET: u32 = 16;
/// Longest key: two interface names.
const KEY_BYTES: usize = 32;
/// Key of a set, complete with padding.
pub(super) type Key = heapless::Vec<u8, KEY_BYTES>;

/// Our sets.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Set {
    /// Bridges.
    Bridges,
    /// Each bridge with itself.
    Intra,
    /// Addresses of the instances of this node.
    Instances,
    /// Address of an instance and the bridge that it is attached to.
    Sources,
    /// Connections between networks: source, destination, protocol, port.
    Allowed,
    /// Open to the outside: address, protocol, port.
    Exposed,
}

impl Set {
    pub(super) const ALL: [Self; 6] =
        [Self::Bridges, Self::Intra, Self::Instances, Self::Sources, Self::Allowed, Self::Exposed];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Bridges => "aos_if",
            Self::Intra => "aos_intra",
            Self::Instances => "aos_inst4",
            Self::Sources => "aos_src4",
            Self::Allowed => "aos_allow4",
            Self::Exposed => "aos_expose4",
        }
    }

    /// Type number and bytes of the key.
    pub(super) fn key(self) -> (u32, u32) {
        use nft::{TYPE_INTERFACE, TYPE_IPV4, TYPE_PORT, TYPE_PROTOCOL, concatenated};
        match self {
            Self::Bridges => (TYPE_INTERFACE, 16),
            Self::Intra => (const { concatenated(&[TYPE_INTERFACE, TYPE_INTERFACE]) }, 32),
            Self::Instances => (TYPE_IPV4, 4),
            Self::Sources => (const { concatenated(&[TYPE_IPV4, TYPE_INTERFACE]) }, 20),
            Self::Allowed => {
                (const { concatenated(&[TYPE_IPV4, TYPE_IPV4, TYPE_PROTOCOL, TYPE_PORT]) }, 16)
            }
            Self::Exposed => (const { concatenated(&[TYPE_IPV4, TYPE_PROTOCOL, TYPE_PORT]) }, 12),
        }
    }
}

/// One key in one set.
pub(super) type Entry = (Set, Key);

/// What a network has in the sets.
pub(super) fn network_entries(bridge: &LinkName) -> [Entry; 2] {
    let name = interface(bridge);
    [(Set::Bridges, key(&[&name])), (Set::Intra, key(&[&name, &name]))]
}

/// What an instance has in the sets.
pub(super) fn instance_entries(
    attachment: &Attachment,
    address: Ipv4Addr,
    bridge: &LinkName,
) -> Vec<Entry> {
    let own = address.octets();
    let mut entries =
        vec![(Set::Instances, key(&[&own])), (Set::Sources, key(&[&own, &interface(bridge)]))];
    for (target, endpoint) in &attachment.allowed {
        let [protocol, port] = endpoint_key(endpoint);
        entries.push((Set::Allowed, key(&[&own, &target.octets(), &protocol, &port])));
    }
    for endpoint in &attachment.exposed {
        let [protocol, port] = endpoint_key(endpoint);
        entries.push((Set::Exposed, key(&[&own, &protocol, &port])));
    }
    entries
}

fn interface(name: &LinkName) -> [u8; LINK_NAME_BYTES + 1] {
    let mut bytes = [0; LINK_NAME_BYTES + 1];
    bytes[..name.len()].copy_from_slice(name.as_bytes());
    bytes
}

/// Each component of a key is padded to four bytes.
fn endpoint_key(endpoint: &Endpoint) -> [[u8; 4]; 2] {
    let [high, low] = endpoint.port.to_be_bytes();
    [[endpoint.protocol, 0, 0, 0], [high, low, 0, 0]]
}

fn key(parts: &[&[u8]]) -> Key {
    let mut key = Key::new();
    for part in parts {
        key.extend_from_slice(part).expect("no key is longer than two interface names");
    }
    key
}

/// What the rules depend on.
#[derive(Clone, Debug)]
pub(super) struct Policy {
    /// The outside reaches every port of an instance.
    pub(super) open_inbound: bool,
    /// Speed is limited by dropping packets, because the kernel cannot delay them.
    pub(super) police: bool,
    /// Volume is looked at from time to time, because the kernel cannot compare it with a limit.
    pub(super) polled: bool,
    pub(super) local: LocalNetworks,
}

/// Adds our sets, chains and rules to a batch, as empty as after a start. `missing` says which of
/// the base chains have to be made, `node` what the node has counted so far, `capacity` for how
/// many instances there is to be room.
pub(super) fn install(
    batch: &mut Messages,
    missing: &[&str],
    policy: &Policy,
    node: Volume,
    capacity: u32,
) {
    accounting::install(batch, FIRST_ACCOUNTING_SET, policy, node, capacity);
    for (set, id) in Set::ALL.into_iter().zip(1..) {
        let (key_type, key_bytes) = set.key();
        nft::new_set(
            batch,
            TABLE,
            &NewSet { name: set.name(), key_type, key_bytes, id, content: Content::Keys },
        );
    }
    for (name, hook) in &BASE_CHAINS {
        if missing.contains(name) {
            nft::new_chain(batch, TABLE, name, Some(hook));
        }
    }
    nft::new_chain(batch, TABLE, DENY, None);
    nft::new_chain(batch, TABLE, FILTER, None);
    append_rule(batch, DENY, |p| p.count(accounting::DENIED).drop());
    filter_rules(batch, policy.open_inbound);
    forward_rules(batch);
    postrouting_rules(batch);
}

fn filter_rules(batch: &mut Messages, open_inbound: bool) {
    append_rule(batch, FILTER, |p| p.state(expressions::STATE_REPLY).accept());
    append_rule(batch, FILTER, |p| p.both_interfaces().in_set(Set::Intra.name()).accept());
    append_rule(batch, FILTER, |p| p.state(expressions::STATE_INVALID).go_to(DENY));
    append_rule(batch, FILTER, |p| {
        p.in_interface().in_set(Set::Bridges.name()).ipv4();
        p.source_and_in_interface().not_in_set(Set::Sources.name()).go_to(DENY);
    });
    append_rule(batch, FILTER, |p| p.ipv4().flow().in_set(Set::Allowed.name()).accept());
    append_rule(batch, FILTER, |p| {
        p.in_interface().in_set(Set::Bridges.name());
        p.out_interface().in_set(Set::Bridges.name()).go_to(DENY);
    });
    append_rule(batch, FILTER, |p| {
        p.ipv4().source_and_in_interface().in_set(Set::Sources.name()).accept();
    });
    append_rule(batch, FILTER, |p| p.ipv4().service().in_set(Set::Exposed.name()).accept());
    if open_inbound {
        append_rule(batch, FILTER, |p| {
            p.ipv4().destination().in_set(Set::Instances.name()).accept()
        });
    }
    append_rule(batch, FILTER, |p| p.go_to(DENY));
}

/// The rules of the base chains stand before those of the OS. A rule at the head pushes earlier
/// ones down, so the last one is written first. Nearly all packets are known by the group of a link,
/// which takes a fifth of the time of a name; a bridge that somebody has put into another group
/// is not left open for that.
fn forward_rules(batch: &mut Messages) {
    head_rule(batch, FORWARD, |p| p.out_interface().in_set(Set::Bridges.name()).jump(FILTER));
    head_rule(batch, FORWARD, |p| p.in_interface().in_set(Set::Bridges.name()).jump(FILTER));
    head_rule(batch, FORWARD, |p| p.out_by_own_link().jump(FILTER));
    head_rule(batch, FORWARD, |p| p.in_by_own_link().jump(FILTER));
}

fn postrouting_rules(batch: &mut Messages) {
    const MULTICAST: (Ipv4Addr, u8) = (Ipv4Addr::new(224, 0, 0, 0), 4);
    head_rule(batch, POSTROUTING, |p| {
        p.ipv4().source().in_set(Set::Instances.name()).masquerade();
    });
    head_rule(batch, POSTROUTING, |p| {
        p.ipv4().destination_in(MULTICAST).accept();
    });
    head_rule(batch, POSTROUTING, |p| {
        p.ipv4().source_and_out_interface().in_set(Set::Sources.name()).accept();
    });
}

/// Adds a rule at the end of a chain of ours.
pub(super) fn append_rule(
    batch: &mut Messages,
    chain: &str,
    program: impl FnOnce(&mut Program<'_, '_>),
) {
    nft::new_rule(batch, TABLE, chain, Place::Tail, "", program);
}

fn head_rule(batch: &mut Messages, chain: &str, program: impl FnOnce(&mut Program<'_, '_>)) {
    nft::new_rule(batch, TABLE, chain, Place::Head, COMMENT, program);
}
