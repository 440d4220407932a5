//! Pure: names of the kernel objects that are ours (interfaces, aliases, Ethernet addresses), and
//! how to recognise them after a crash.

use std::fmt::Write;
use std::net::Ipv4Addr;

use super::rtnl::Mac;
use crate::model::id::{InstanceId, NetworkId};

/// Longest interface name of the kernel.
pub(super) const LINK_NAME_BYTES: usize = 15;
/// Name of an interface.
pub(super) type LinkName = heapless::String<LINK_NAME_BYTES>;

const NETWORK_ALIAS: &str = "aos:net:";
const INSTANCE_ALIAS: &str = "aos:inst:";
/// Longest alias of the kernel is 255; ids beyond this are refused by `plan`.
pub(super) const MAX_ID_BYTES: usize = 200;

/// `br-<network id>` where that is a valid interface name, else a hash. `variant` 0 is the name
/// that is tried first; others avoid a collision with another network.
pub(super) fn bridge(id: &NetworkId, variant: u8) -> LinkName {
    let mut name = LinkName::new();
    let plain = !id.as_str().is_empty() && id.as_str().bytes().all(is_name_byte);
    if variant == 0 && plain && write!(name, "br-{id}").is_ok() {
        return name;
    }
    name.clear();
    write!(name, "br-{:012x}", fnv64(id.as_str(), variant) >> 16).expect("15 characters");
    name
}

/// `vlan-` and a hash of the network id.
pub(super) fn vlan(id: &NetworkId, variant: u8) -> LinkName {
    let mut name = LinkName::new();
    write!(name, "vlan-{:08x}", fnv32(id.as_str(), variant)).expect("13 characters");
    name
}

/// `ve`, a hash of the instance id and a generation, so that the same instance can start again
/// while the kernel still takes its old interface apart.
pub(super) fn veth(id: &InstanceId, generation: u16) -> LinkName {
    let mut name = LinkName::new();
    write!(name, "ve{:08x}{generation:04x}", fnv32(id.as_str(), 0)).expect("14 characters");
    name
}

pub(super) fn network_alias(id: &NetworkId) -> String {
    format!("{NETWORK_ALIAS}{id}")
}

pub(super) fn instance_alias(id: &InstanceId) -> String {
    format!("{INSTANCE_ALIAS}{id}")
}

pub(super) fn network_of_alias(alias: &str) -> Option<NetworkId> {
    alias.strip_prefix(NETWORK_ALIAS).map(NetworkId::new)
}

pub(super) fn instance_of_alias(alias: &str) -> Option<InstanceId> {
    alias.strip_prefix(INSTANCE_ALIAS).map(InstanceId::new)
}

/// Unique inside a network because addresses are, and the same when an address is used again, so
/// that no neighbour keeps a wrong entry.
pub(super) fn mac(address: Ipv4Addr) -> Mac {
    let [a, b, c, d] = address.octets();
    [0x0a, 0xa0, a, b, c, d]
}

/// It was made by `mac`, from some address.
pub(super) fn is_own_mac(mac: Mac) -> bool {
    mac.starts_with(&[0x0a, 0xa0])
}

/// Only such an id may become the name of a file or of an interface.
pub(super) fn is_plain(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= MAX_ID_BYTES
        && !text.starts_with('.')
        && text.bytes().all(is_name_byte)
}

/// Looks like the ids that core gives to instances: a UUID in lower case.
pub(super) fn is_instance_id(text: &str) -> bool {
    text.len() == 36
        && text.bytes().enumerate().all(|(at, byte)| match at {
            8 | 13 | 18 | 23 => byte == b'-',
            _ => byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte),
        })
}

fn is_name_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-')
}

pub(super) fn fnv64(text: &str, variant: u8) -> u64 {
    hashed(text, variant).fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

fn fnv32(text: &str, variant: u8) -> u32 {
    hashed(text, variant)
        .fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}

fn hashed(text: &str, variant: u8) -> impl Iterator<Item = u8> {
    text.bytes().chain((variant > 0).then_some(variant))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bridge_names() {
        let check = |id: &str, variant, expect: &str| {
            assert_eq!(bridge(&NetworkId::new(id), variant).as_str(), expect, "{id}");
        };
        check("net1", 0, "br-net1");
        check("123456789012", 0, "br-123456789012");
        check("1234567890123", 0, "br-a745d94e1c2c");
        check("a/b", 0, "br-e620c3190468");
        check("", 0, "br-cbf29ce48422");
        check("net1", 1, "br-bc0f921e3481");
        check("5ab1c6e1-6d1b-4ac4-8d5c-8d9f8e3e2a51", 0, "br-1149d1838414");
    }

    #[test]
    fn other_names() {
        let id = InstanceId::new("5ab1c6e1-6d1b-4ac4-8d5c-8d9f8e3e2a51");
        assert_eq!(veth(&id, 0xffff).len(), 14);
        assert_eq!(&veth(&id, 10).as_str()[10..], "000a");
        assert_eq!(vlan(&NetworkId::new("a"), 0).as_str(), "vlan-e40c292c");
        assert_eq!(mac(Ipv4Addr::new(172, 17, 0, 2)), [0x0a, 0xa0, 172, 17, 0, 2]);
        assert_eq!(instance_of_alias(&instance_alias(&id)), Some(id));
        let network = NetworkId::new("n x");
        assert_eq!(network_of_alias(&network_alias(&network)), Some(network));
        for foreign in ["", "aos", "aos:inst", "docker"] {
            assert_eq!(instance_of_alias(foreign), None, "{foreign}");
        }
    }

    #[test]
    fn plain_ids() {
        let long = "a".repeat(MAX_ID_BYTES + 1);
        for (text, expect) in [
            ("a-b_c.d", true),
            ("", false),
            (".a", false),
            ("a/b", false),
            ("a b", false),
            (&long, false),
        ] {
            assert_eq!(is_plain(text), expect, "{text}");
        }
        for (text, expect) in [
            ("5ab1c6e1-6d1b-4ac4-8d5c-8d9f8e3e2a51", true),
            ("5AB1c6e1-6d1b-4ac4-8d5c-8d9f8e3e2a51", false),
            ("5ab1c6e1-6d1b-4ac4-8d5c-8d9f8e3e2a5", false),
            ("5ab1c6e1+6d1b-4ac4-8d5c-8d9f8e3e2a51", false),
        ] {
            assert_eq!(is_instance_id(text), expect, "{text}");
        }
    }
}
