//! Pure: the expressions of one rule of nf_tables, as steps of a small program that the kernel runs
//! for each packet. What rules there are stands in `rules` and `accounting`.

use std::net::Ipv4Addr;

use super::nft::{
    DATA_VALUE, DATA_VERDICT, EXPRESSION_DATA, EXPRESSION_NAME, LIST_ELEMENT, object,
};
use super::rtnl::LINK_GROUP;
use super::wire::Payload;

/// Expressions of one rule, in the order of evaluation.
pub(super) struct Program<'a, 'b>(pub(super) &'a mut Payload<'b>);

/// Full registers of 16 bytes.
const REG_1: u32 = 1;
const REG_2: u32 = 2;
/// Parts of 4 bytes; `REG_1` is the parts 8 to 11.
const PART_9: u32 = 9;
const PART_10: u32 = 10;
const PART_11: u32 = 11;

const META_IN_NAME: u32 = 6;
const META_OUT_NAME: u32 = 7;
const META_FAMILY: u32 = 15;
const META_PROTOCOL: u32 = 16;
const META_IN_GROUP: u32 = 21;
const META_OUT_GROUP: u32 = 22;
const PAYLOAD_NETWORK: u32 = 1;
const PAYLOAD_TRANSPORT: u32 = 2;
const SOURCE: u32 = 12;
const DESTINATION: u32 = 16;
const SOURCE6: u32 = 8;
const DESTINATION6: u32 = 24;
const CMP_EQUAL: u32 = 0;
pub(super) const CMP_DIFFERENT: u32 = 1;
/// `ct state` bits.
pub(super) const STATE_INVALID: u32 = 1;
pub(super) const STATE_REPLY: u32 = 2 | 4;

const VERDICT_DROP: i32 = 0;
const VERDICT_ACCEPT: i32 = 1;
const VERDICT_JUMP: i32 = -3;
const VERDICT_GOTO: i32 = -4;
const VERDICT_RETURN: i32 = -5;

impl Program<'_, '_> {
    fn expression(&mut self, name: &str, data: impl FnOnce(&mut Payload<'_>)) -> &mut Self {
        self.0.nested(LIST_ELEMENT, |p| {
            p.text(EXPRESSION_NAME, name);
            p.nested(EXPRESSION_DATA, data);
        });
        self
    }

    fn meta(&mut self, key: u32, register: u32) -> &mut Self {
        self.expression("meta", |p| {
            p.be32(1, register);
            p.be32(2, key);
        })
    }

    fn compare(&mut self, operator: u32, value: &[u8]) -> &mut Self {
        self.expression("cmp", |p| {
            p.be32(1, REG_1);
            p.be32(2, operator);
            p.nested(3, |p| p.attribute(DATA_VALUE, value));
        })
    }

    fn payload(&mut self, register: u32, base: u32, offset: u32, length: u32) -> &mut Self {
        self.expression("payload", |p| {
            p.be32(1, register);
            p.be32(2, base);
            p.be32(3, offset);
            p.be32(4, length);
        })
    }

    fn mask(&mut self, mask: [u8; 4]) -> &mut Self {
        self.expression("bitwise", |p| {
            p.be32(1, REG_1);
            p.be32(2, REG_1);
            p.be32(3, 4);
            p.nested(4, |p| p.attribute(DATA_VALUE, &mask));
            p.nested(5, |p| p.attribute(DATA_VALUE, &[0; 4]));
        })
    }

    fn verdict(&mut self, code: i32, target: &str) -> &mut Self {
        self.expression("immediate", |p| {
            p.be32(1, 0);
            p.nested(2, |p| {
                p.nested(DATA_VERDICT, |p| {
                    p.attribute(1, &code.to_be_bytes());
                    if !target.is_empty() {
                        p.text(2, target);
                    }
                });
            });
        })
    }

    /// Continues if what the registers hold from the first one on is a key of the set.
    pub(super) fn in_set(&mut self, set: &str) -> &mut Self {
        self.expression("lookup", |p| {
            p.text(1, set);
            p.be32(2, REG_1);
        })
    }

    /// Continues if it is no key of the set.
    pub(super) fn not_in_set(&mut self, set: &str) -> &mut Self {
        self.expression("lookup", |p| {
            p.text(1, set);
            p.be32(2, REG_1);
            p.be32(5, 1);
        })
    }

    pub(super) fn in_interface(&mut self) -> &mut Self {
        self.meta(META_IN_NAME, REG_1)
    }

    pub(super) fn out_interface(&mut self) -> &mut Self {
        self.meta(META_OUT_NAME, REG_1)
    }

    pub(super) fn both_interfaces(&mut self) -> &mut Self {
        self.meta(META_IN_NAME, REG_1).meta(META_OUT_NAME, REG_2)
    }

    /// Continues for IPv4 packets only.
    pub(super) fn ipv4(&mut self) -> &mut Self {
        self.meta(META_FAMILY, REG_1).compare(CMP_EQUAL, &[2])
    }

    pub(super) fn source(&mut self) -> &mut Self {
        self.payload(REG_1, PAYLOAD_NETWORK, SOURCE, 4)
    }

    pub(super) fn destination(&mut self) -> &mut Self {
        self.payload(REG_1, PAYLOAD_NETWORK, DESTINATION, 4)
    }

    /// Continues for IPv6 packets only.
    pub(super) fn ipv6(&mut self) -> &mut Self {
        self.meta(META_FAMILY, REG_1).compare(CMP_EQUAL, &[10])
    }

    pub(super) fn source6(&mut self) -> &mut Self {
        self.payload(REG_1, PAYLOAD_NETWORK, SOURCE6, 16)
    }

    pub(super) fn destination6(&mut self) -> &mut Self {
        self.payload(REG_1, PAYLOAD_NETWORK, DESTINATION6, 16)
    }

    pub(super) fn source_and_in_interface(&mut self) -> &mut Self {
        self.source().meta(META_IN_NAME, PART_9)
    }

    pub(super) fn source_and_out_interface(&mut self) -> &mut Self {
        self.source().meta(META_OUT_NAME, PART_9)
    }

    /// Source, destination, protocol, port.
    pub(super) fn flow(&mut self) -> &mut Self {
        self.source()
            .payload(PART_9, PAYLOAD_NETWORK, DESTINATION, 4)
            .meta(META_PROTOCOL, PART_10)
            .payload(PART_11, PAYLOAD_TRANSPORT, 2, 2)
    }

    /// Destination, protocol, port.
    pub(super) fn service(&mut self) -> &mut Self {
        self.destination().meta(META_PROTOCOL, PART_9).payload(PART_10, PAYLOAD_TRANSPORT, 2, 2)
    }

    /// Continues if it came in by a link of ours.
    pub(super) fn in_by_own_link(&mut self) -> &mut Self {
        self.meta(META_IN_GROUP, REG_1).compare(CMP_EQUAL, &LINK_GROUP.to_ne_bytes())
    }

    /// Continues if it leaves by a link of ours.
    pub(super) fn out_by_own_link(&mut self) -> &mut Self {
        self.meta(META_OUT_GROUP, REG_1).compare(CMP_EQUAL, &LINK_GROUP.to_ne_bytes())
    }

    /// Continues if the source is in the network.
    pub(super) fn source_in(&mut self, network: (Ipv4Addr, u8)) -> &mut Self {
        self.address_in(SOURCE, network)
    }

    /// Continues if the destination is in the network.
    pub(super) fn destination_in(&mut self, network: (Ipv4Addr, u8)) -> &mut Self {
        self.address_in(DESTINATION, network)
    }

    /// The kernel has the quickest steps for these: a few bytes from the packet, a mask if they are
    /// not all of the prefix, a comparison.
    fn address_in(&mut self, offset: u32, (network, prefix): (Ipv4Addr, u8)) -> &mut Self {
        let (bytes, whole): (u8, _) = match prefix {
            8 => (1, true),
            16 => (2, true),
            other => (4, other == 32),
        };
        self.payload(REG_1, PAYLOAD_NETWORK, offset, bytes.into());
        if !whole {
            let mask = u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0);
            self.mask(mask.to_be_bytes());
        }
        self.compare(CMP_EQUAL, &network.octets()[..bytes.into()])
    }

    /// Continues if the connection is in one of these states.
    pub(super) fn state(&mut self, states: u32) -> &mut Self {
        self.expression("ct", |p| {
            p.be32(1, REG_1);
            p.be32(2, 0);
        })
        .mask(states.to_ne_bytes())
        .compare(CMP_DIFFERENT, &[0; 4])
    }

    pub(super) fn accept(&mut self) {
        self.verdict(VERDICT_ACCEPT, "");
    }

    pub(super) fn drop(&mut self) {
        self.verdict(VERDICT_DROP, "");
    }

    pub(super) fn jump(&mut self, chain: &str) {
        self.verdict(VERDICT_JUMP, chain);
    }

    pub(super) fn go_to(&mut self, chain: &str) {
        self.verdict(VERDICT_GOTO, chain);
    }

    /// Back to the rule behind the one that led here.
    pub(super) fn back(&mut self) {
        self.verdict(VERDICT_RETURN, "");
    }

    pub(super) fn masquerade(&mut self) {
        self.expression("masq", |_| {});
    }

    /// Counts in a named counter.
    pub(super) fn count(&mut self, counter: &str) -> &mut Self {
        self.expression("objref", |p| {
            p.be32(1, object::COUNTER);
            p.text(2, counter);
        })
    }

    /// Counts in the object to which a map leads from the first register. Continues if there is
    /// one and, being a quota, it is used up.
    /// The same holds for a limit: continues if it is exceeded.
    pub(super) fn count_in(&mut self, map: &str) -> &mut Self {
        self.expression("objref", |p| {
            p.be32(3, REG_1);
            p.text(4, map);
        })
    }
}
