//! Every message that we send, byte for byte as the document of the network manager has it. The
//! expected bytes do not come from our encoder: they were written by another one, from the tables
//! of the document. Those of rules stand in `encoding_rules`. Headers
//! are part of them, with sequence number 1.

use super::super::naming::LinkName;
use super::super::nft::{self, Content, Hook, NewSet, object};
use super::super::rtnl::{self, LinkAddress, NewBridge, NewVeth, NewVlan};
use super::super::rules::Set;
use super::super::shaping;
use super::super::wire::Messages;

const BRIDGE: u32 = 1_000_000;
const VETH: u32 = 1_000_001;
const MAC: [u8; 6] = [0x0a, 0xa0, 172, 17, 0, 1];
const ADDRESS: LinkAddress =
    LinkAddress { index: BRIDGE, address: std::net::Ipv4Addr::new(172, 17, 0, 1), prefix: 16 };
const A: [u8; 4] = [172, 17, 0, 2];
const B: [u8; 4] = [172, 17, 0, 3];
/// TCP, 80
const SERVICE: [u8; 12] = [172, 17, 0, 2, 6, 0, 0, 0, 0, 80, 0, 0];

/// What it is, how it is written, and its bytes.
pub(super) type Case = (&'static str, fn(&mut Messages), &'static str);

fn name(text: &str) -> LinkName {
    LinkName::try_from(text).unwrap()
}

fn new_set(messages: &mut Messages, set: Set, id: u32) {
    let (key_type, key_bytes) = set.key();
    let content = Content::Keys;
    nft::new_set(messages, "aos", &NewSet { name: set.name(), key_type, key_bytes, id, content });
}

pub(super) fn check(cases: &[Case]) {
    if cfg!(target_endian = "big") {
        // Headers and numbers of rtnetlink are in host order.
        return;
    }
    for (what, write, expect) in cases {
        let mut messages = Messages::new();
        write(&mut messages);
        assert_eq!(messages.len(), 1, "{what}");
        // None of them is to be acknowledged.
        let bytes = messages.stamp(1, usize::MAX);
        let text: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(text, expect.replace(' ', ""), "{what}");
    }
}

#[test]
fn links_and_addresses() {
    check(&[
        (
            "bridge",
            |m| {
                rtnl::new_bridge(
                    m,
                    &NewBridge { index: BRIDGE, name: &name("br-net1"), mac: MAC, mtu: 1500 },
                )
            },
            "6c000000 10000106 01000000 00000000 00000000 40420f00 01000000 01000000 0c000300 \
             62722d6e 65743100 0a000100 0aa0ac11 00010000 08001b00 736f6100 08000400 dc050000 \
             24001200 0b000100 62726964 67650000 14000200 08000500 00000000 08000100 00000000",
        ),
        (
            "veth with its peer in a namespace",
            |m| {
                rtnl::new_veth(
                    m,
                    &NewVeth {
                        index: VETH,
                        name: &name("ve0011223300001"),
                        bridge: BRIDGE,
                        mtu: 1400,
                        peer_index: 2,
                        peer_mac: MAC,
                        peer_namespace: 9,
                    },
                )
            },
            "bc000000 10000106 01000000 00000000 00000000 41420f00 01000000 01000000 14000300 \
             76653030 31313232 33333030 30303100 08000400 78050000 08000a00 40420f00 08001f00 \
             01000000 08002000 01000000 08001b00 736f6100 60001200 09000100 76657468 00000000 \
             50000200 4c000100 00000000 02000000 00000000 00000000 09000300 65746830 00000000 \
             08000400 78050000 0a000100 0aa0ac11 00010000 08001f00 01000000 08002000 01000000 \
             08001c00 09000000",
        ),
        (
            "VLAN",
            |m| {
                rtnl::new_vlan(
                    m,
                    &NewVlan {
                        index: VETH,
                        name: &name("vlan-e40c292c"),
                        parent: 2,
                        bridge: BRIDGE,
                        vlan_id: 4094,
                    },
                )
            },
            "68000000 10000106 01000000 00000000 00000000 41420f00 01000000 01000000 12000300 \
             766c616e 2d653430 63323932 63000000 08000500 02000000 08000a00 40420f00 08001b00 \
             736f6100 1c001200 09000100 766c616e 00000000 0c000200 06000100 fe0f0000",
        ),
        (
            "alias",
            |m| rtnl::set_alias(m, VETH, "aos:inst:i"),
            "30000000 13000100 01000000 00000000 00000000 41420f00 00000000 00000000 0e001400 \
             616f733a 696e7374 3a690000",
        ),
        (
            "hairpin",
            |m| rtnl::set_hairpin(m, VETH),
            "2c000000 13000100 01000000 00000000 07000000 41420f00 00000000 00000000 0c000c80 \
             05000400 01000000",
        ),
        (
            "address modes",
            |m| rtnl::set_address_modes(m, 2, true),
            "40000000 10000100 01000000 00000000 00000000 02000000 00000000 00000000 20001a00 \
             0c000a00 05000800 01000000 10000200 0c000100 08001600 01000000",
        ),
        (
            "address modes without IPv6",
            |m| rtnl::set_address_modes(m, 2, false),
            "34000000 10000100 01000000 00000000 00000000 02000000 00000000 00000000 14001a00 \
             10000200 0c000100 08001600 01000000",
        ),
        (
            "up",
            |m| rtnl::set_up(m, 2),
            "20000000 10000100 01000000 00000000 00000000 02000000 01000000 01000000",
        ),
        (
            "into a bridge",
            |m| rtnl::enslave(m, VETH, BRIDGE),
            "28000000 13000100 01000000 00000000 00000000 41420f00 01000000 01000000 08000a00 \
             40420f00",
        ),
        (
            "cut off",
            |m| rtnl::set_down(m, VETH),
            "20000000 13000100 01000000 00000000 00000000 41420f00 00000000 01000000",
        ),
        (
            "MTU",
            |m| rtnl::set_mtu(m, VETH, 1400),
            "28000000 10000100 01000000 00000000 00000000 41420f00 00000000 00000000 08000400 \
             78050000",
        ),
        (
            "end of a link",
            |m| rtnl::delete_link(m, VETH),
            "20000000 11000100 01000000 00000000 00000000 41420f00 00000000 00000000",
        ),
        (
            "address",
            |m| rtnl::new_address(m, &ADDRESS, [172, 17, 255, 255].into()),
            "30000000 14000105 01000000 00000000 02100000 40420f00 08000200 ac110001 08000100 \
             ac110001 08000400 ac11ffff",
        ),
        (
            "end of an address",
            |m| rtnl::delete_address(m, &ADDRESS),
            "28000000 15000100 01000000 00000000 02100000 40420f00 08000200 ac110001 08000100 \
             ac110001",
        ),
        (
            "default route",
            |m| rtnl::set_default_route(m, [172, 17, 0, 1].into(), 2),
            "2c000000 18000105 01000000 00000000 02000000 fe040001 00000000 08000500 ac110001 \
             08000400 02000000",
        ),
        (
            "speed",
            |m| shaping::limit(m, VETH, 1200),
            "60000000 24000105 01000000 00000000 00000000 41420f00 00000100 ffffffff 00000000 \
             08000100 74626600 34000200 28000100 00010000 00000000 f0490200 00000000 00000000 \
             00000000 4c4f0000 55581400 00000000 08000600 00320000",
        ),
        (
            "end of a speed",
            |m| shaping::remove(m, VETH),
            "24000000 25000100 01000000 00000000 00000000 41420f00 00000100 ffffffff 00000000",
        ),
    ]);
}

#[test]
fn tables_sets_and_objects() {
    check(&[
        ("begin", |m| *m = nft::begin(), "14000000 10000100 01000000 00000000 0000000a"),
        (
            "begin after a change",
            |m| *m = nft::begin_after(0x0102_0304),
            "1c000000 10000100 01000000 00000000 0000000a 08000100 01020304",
        ),
        ("end", |m| nft::end(m), "14000000 11000100 01000000 00000000 0000000a"),
        (
            "table",
            |m| nft::new_table(m, "aos"),
            "24000000 000a0104 01000000 00000000 01000000 08000100 616f7300 08000200 00000000",
        ),
        (
            "end of a table",
            |m| nft::delete_table(m, "aos"),
            "1c000000 020a0100 01000000 00000000 01000000 08000100 616f7300",
        ),
        (
            "base chain of a filter",
            |m| {
                nft::new_chain(
                    m,
                    "aos",
                    "aos_acct_fwd",
                    Some(&Hook { kind: "filter", number: nft::HOOK_FORWARD, priority: -10 }),
                )
            },
            "58000000 030a0104 01000000 00000000 01000000 08000100 616f7300 11000300 616f735f \
             61636374 5f667764 00000000 14000480 08000100 00000002 08000200 fffffff6 08000500 \
             00000001 0b000700 66696c74 65720000",
        ),
        (
            "base chain of nat",
            |m| {
                nft::new_chain(
                    m,
                    "aos",
                    "postrouting",
                    Some(&Hook { kind: "nat", number: nft::HOOK_POSTROUTING, priority: 100 }),
                )
            },
            "50000000 030a0104 01000000 00000000 01000000 08000100 616f7300 10000300 706f7374 \
             726f7574 696e6700 14000480 08000100 00000004 08000200 00000064 08000500 00000001 \
             08000700 6e617400",
        ),
        (
            "chain",
            |m| nft::new_chain(m, "aos", "aos_fwd", None),
            "28000000 030a0104 01000000 00000000 01000000 08000100 616f7300 0c000300 616f735f \
             66776400",
        ),
        (
            "end of a chain",
            |m| nft::delete_chain(m, "aos", "aos_fwd"),
            "28000000 050a0100 01000000 00000000 01000000 08000100 616f7300 0c000300 616f735f \
             66776400",
        ),
        (
            "set of interfaces",
            |m| {
                nft::new_set(
                    m,
                    "aos",
                    &NewSet {
                        name: "aos_if",
                        key_type: nft::TYPE_INTERFACE,
                        key_bytes: 16,
                        id: 1,
                        content: Content::Keys,
                    },
                )
            },
            "54000000 090a0104 01000000 00000000 01000000 08000100 616f7300 0b000200 616f735f \
             69660000 08000300 00000000 08000400 00000029 08000500 00000010 08000a00 00000001 \
             0a000d00 00040100 00000000",
        ),
        (
            "set aos_intra",
            |m| new_set(m, Set::Intra, 2),
            "4c000000 090a0104 01000000 00000000 01000000 08000100 616f7300 0e000200 616f735f \
             696e7472 61000000 08000300 00000000 08000400 00000a69 08000500 00000020 08000a00 \
             00000002",
        ),
        (
            "set aos_src4",
            |m| new_set(m, Set::Sources, 2),
            "4c000000 090a0104 01000000 00000000 01000000 08000100 616f7300 0d000200 616f735f \
             73726334 00000000 08000300 00000000 08000400 000001e9 08000500 00000014 08000a00 \
             00000002",
        ),
        (
            "set aos_allow4",
            |m| new_set(m, Set::Allowed, 2),
            "4c000000 090a0104 01000000 00000000 01000000 08000100 616f7300 0f000200 616f735f \
             616c6c6f 77340000 08000300 00000000 08000400 001c730d 08000500 00000010 08000a00 \
             00000002",
        ),
        (
            "set aos_expose4",
            |m| new_set(m, Set::Exposed, 2),
            "4c000000 090a0104 01000000 00000000 01000000 08000100 616f7300 10000200 616f735f \
             6578706f 73653400 08000300 00000000 08000400 0000730d 08000500 0000000c 08000a00 \
             00000002",
        ),
        (
            "set of intervals",
            |m| {
                nft::new_set(
                    m,
                    "aos",
                    &NewSet {
                        name: "aos_local4",
                        key_type: nft::TYPE_IPV4,
                        key_bytes: 4,
                        id: 3,
                        content: Content::Intervals,
                    },
                )
            },
            "4c000000 090a0104 01000000 00000000 01000000 08000100 616f7300 0f000200 616f735f \
             6c6f6361 6c340000 08000300 00000004 08000400 00000007 08000500 00000004 08000a00 \
             00000003",
        ),
        (
            "set of IPv6 intervals",
            |m| {
                nft::new_set(
                    m,
                    "aos",
                    &NewSet {
                        name: "aos_local6",
                        key_type: nft::TYPE_IPV6,
                        key_bytes: 16,
                        id: 3,
                        content: Content::Intervals,
                    },
                )
            },
            "4c000000 090a0104 01000000 00000000 01000000 08000100 616f7300 0f000200 616f735f \
             6c6f6361 6c360000 08000300 00000004 08000400 00000008 08000500 00000010 08000a00 \
             00000003",
        ),
        (
            "map to counters",
            |m| {
                nft::new_set(
                    m,
                    "aos",
                    &NewSet {
                        name: "aos_cin4",
                        key_type: nft::TYPE_IPV4,
                        key_bytes: 4,
                        id: 4,
                        content: Content::Objects { kind: object::COUNTER, capacity: 256 },
                    },
                )
            },
            "60000000 090a0104 01000000 00000000 01000000 08000100 616f7300 0d000200 616f735f \
             63696e34 00000000 08000300 00000040 08000400 00000007 08000500 00000004 0c000980 \
             08000100 00000100 08000a00 00000004 08000f00 00000001",
        ),
        (
            "map to quotas",
            |m| {
                nft::new_set(
                    m,
                    "aos",
                    &NewSet {
                        name: "aos_qin4",
                        key_type: nft::TYPE_IPV4,
                        key_bytes: 4,
                        id: 5,
                        content: Content::Objects { kind: object::QUOTA, capacity: 256 },
                    },
                )
            },
            "60000000 090a0104 01000000 00000000 01000000 08000100 616f7300 0d000200 616f735f \
             71696e34 00000000 08000300 00000040 08000400 00000007 08000500 00000004 0c000980 \
             08000100 00000100 08000a00 00000005 08000f00 00000002",
        ),
        (
            "map to limits",
            |m| {
                nft::new_set(
                    m,
                    "aos",
                    &NewSet {
                        name: "aos_lin4",
                        key_type: nft::TYPE_IPV4,
                        key_bytes: 4,
                        id: 6,
                        content: Content::Objects { kind: object::LIMIT, capacity: 256 },
                    },
                )
            },
            "60000000 090a0104 01000000 00000000 01000000 08000100 616f7300 0d000200 616f735f \
             6c696e34 00000000 08000300 00000040 08000400 00000007 08000500 00000004 0c000980 \
             08000100 00000100 08000a00 00000006 08000f00 00000004",
        ),
        (
            "end of a set",
            |m| nft::delete_set(m, "aos", "aos_if"),
            "28000000 0b0a0100 01000000 00000000 01000000 08000100 616f7300 0b000200 616f735f \
             69660000",
        ),
        (
            "keys",
            |m| nft::new_elements(m, "aos", "aos_inst4", [&A[..], &B[..]].into_iter()),
            "50000000 0c0a0104 01000000 00000000 01000000 08000100 616f7300 0e000200 616f735f \
             696e7374 34000000 24000380 10000180 0c000180 08000100 ac110002 10000180 0c000180 \
             08000100 ac110003",
        ),
        (
            "end of keys",
            |m| nft::delete_elements(m, "aos", "aos_inst4", [&A[..]].into_iter()),
            "40000000 0e0a0100 01000000 00000000 01000000 08000100 616f7300 0e000200 616f735f \
             696e7374 34000000 14000380 10000180 0c000180 08000100 ac110002",
        ),
        (
            "key of a service",
            |m| nft::new_elements(m, "aos", "aos_expose4", [&SERVICE[..]].into_iter()),
            "48000000 0c0a0104 01000000 00000000 01000000 08000100 616f7300 10000200 616f735f \
             6578706f 73653400 1c000380 18000180 14000180 10000100 ac110002 06000000 00500000",
        ),
        (
            "intervals",
            |m| {
                nft::new_intervals(
                    m,
                    "aos",
                    "aos_local4",
                    &[
                        (vec![10, 0, 0, 0], vec![10, 255, 255, 255]),
                        (vec![240, 0, 0, 0], vec![255; 4]),
                    ],
                )
            },
            "80000000 0c0a0104 01000000 00000000 01000000 08000100 616f7300 0f000200 616f735f \
             6c6f6361 6c340000 54000380 18000180 0c000180 08000100 00000000 08000300 00000001 \
             10000180 0c000180 08000100 0a000000 18000180 0c000180 08000100 0b000000 08000300 \
             00000001 10000180 0c000180 08000100 f0000000",
        ),
        (
            "keys with objects",
            |m| nft::new_mappings(m, "aos", "aos_cin4", [(&A[..], "in_a")].into_iter()),
            "4c000000 0c0a0104 01000000 00000000 01000000 08000100 616f7300 0d000200 616f735f \
             63696e34 00000000 20000380 1c000180 0c000180 08000100 ac110002 09000900 696e5f61 \
             00000000",
        ),
        (
            "counter",
            |m| nft::new_counter(m, "aos", "in_a", 5),
            "40000000 120a0104 01000000 00000000 01000000 08000100 616f7300 09000200 696e5f61 \
             00000000 08000300 00000001 10000480 0c000100 00000000 00000005",
        ),
        (
            "quota",
            |m| nft::new_quota(m, "aos", "qin_a", 200_000, 7),
            "54000000 120a0104 01000000 00000000 01000000 08000100 616f7300 0a000200 71696e5f \
             61000000 08000300 00000002 24000480 0c000100 00000000 00030d40 08000200 00000001 \
             0c000400 00000000 00000007",
        ),
        (
            "limit",
            |m| nft::new_limit(m, "aos", "lin_a", 150_000, 20_300),
            "64000000 120a0104 01000000 00000000 01000000 08000100 616f7300 0a000200 6c696e5f \
             61000000 08000300 00000004 34000480 0c000100 00000000 000249f0 0c000200 00000000 \
             00000001 08000300 00004f4c 08000400 00000001 08000500 00000001",
        ),
        (
            "end of an object",
            |m| nft::delete_object(m, "aos", object::QUOTA, "qin_a"),
            "30000000 140a0100 01000000 00000000 01000000 08000100 616f7300 0a000200 71696e5f \
             61000000 08000300 00000002",
        ),
        (
            "end of a rule",
            |m| nft::delete_rule(m, "aos", "forward", Some(7)),
            "34000000 080a0100 01000000 00000000 01000000 08000100 616f7300 0c000200 666f7277 \
             61726400 0c000300 00000000 00000007",
        ),
        (
            "end of all rules",
            |m| nft::delete_rule(m, "aos", "aos_fwd", None),
            "28000000 080a0100 01000000 00000000 01000000 08000100 616f7300 0c000200 616f735f \
             66776400",
        ),
    ]);
}
