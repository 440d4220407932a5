//! Pure: forgets the connections of an address, so that packets of old ones do not reach the next
//! owner of the address as replies. A kernel before 5.8 takes no filter: there, all connections are
//! listed and those of the address are deleted one by one.

use std::net::Ipv4Addr;

use super::channel;
use super::wire::{self, Message, Messages};

/// Subsystem 1, messages "new", "get" and "delete".
const NEW: u16 = 0x0100;
const GET: u16 = 0x0101;
const DELETE: u16 = 0x0102;
/// Name of the operation, by which a kernel that takes no filter is recognised.
pub(super) const FORGET: &str = "forget connections";
/// Connections that are deleted in one send.
pub(super) const FLOWS_PER_SEND: usize = 64;
const HEADER: usize = 4;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_ZONE: u16 = 18;
const FAMILY_IPV4: u8 = 2;
const CTA_TUPLE_ORIG: u16 = 1;
const CTA_FILTER: u16 = 25;
const CTA_TUPLE_IP: u16 = 1;
const CTA_IP_V4_SRC: u16 = 1;
const CTA_IP_V4_DST: u16 = 2;
const CTA_FILTER_ORIG_FLAGS: u16 = 1;
const FILTER_SOURCE: u32 = 1;
const FILTER_DESTINATION: u32 = 2;

/// Adds the deletion of what the address began and of what began with it as the target. A kernel
/// that cannot filter (before 5.8) refuses it, because it expects one complete connection.
pub(super) fn forget(messages: &mut Messages, address: Ipv4Addr) {
    for (kind, flag) in [(CTA_IP_V4_SRC, FILTER_SOURCE), (CTA_IP_V4_DST, FILTER_DESTINATION)] {
        messages.add(FORGET, DELETE, channel::REQUEST, |p| {
            p.raw(&[FAMILY_IPV4, 0, 0, 0]);
            p.nested(CTA_TUPLE_ORIG, |p| {
                p.nested(CTA_TUPLE_IP, |p| p.attribute(kind, &address.octets()));
            });
            p.nested(CTA_FILTER, |p| p.u32(CTA_FILTER_ORIG_FLAGS, flag));
        });
    }
}

/// Request for all connections of IPv4.
pub(super) fn list_flows() -> Messages {
    let mut request = Messages::new();
    request.add("list connections", GET, channel::DUMP, |p| p.raw(&[FAMILY_IPV4, 0, 0, 0]));
    request
}

/// What names a connection to the kernel.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Flow {
    original: Vec<u8>,
    zone: Option<Vec<u8>>,
}

/// A listed connection, if one of the addresses has to do with it.
pub(super) fn parse_flow(message: &Message<'_>, addresses: &[Ipv4Addr]) -> Option<Flow> {
    (message.kind == NEW).then_some(())?;
    let attributes = message.body.get(HEADER..)?;
    let concerns = |kind| {
        let ends = wire::find(wire::find(attributes, kind)?, CTA_TUPLE_IP)?;
        let is_it = |kind| {
            let end = wire::find(ends, kind);
            addresses.iter().any(|address| end == Some(&address.octets()[..]))
        };
        Some(is_it(CTA_IP_V4_SRC) || is_it(CTA_IP_V4_DST))
    };
    let concerned =
        concerns(CTA_TUPLE_ORIG) == Some(true) || concerns(CTA_TUPLE_REPLY) == Some(true);
    concerned.then_some(())?;
    Some(Flow {
        original: wire::find(attributes, CTA_TUPLE_ORIG)?.to_vec(),
        zone: wire::find(attributes, CTA_ZONE).map(<[u8]>::to_vec),
    })
}

/// Adds the deletion of one connection.
pub(super) fn delete_flow(messages: &mut Messages, flow: &Flow) {
    messages.add("forget connection", DELETE, channel::REQUEST, |p| {
        p.raw(&[FAMILY_IPV4, 0, 0, 0]);
        p.nested(CTA_TUPLE_ORIG, |p| p.raw(&flow.original));
        if let Some(zone) = &flow.zone {
            p.attribute(CTA_ZONE, zone);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::super::wire;
    use super::*;

    #[test]
    fn listed_flows() {
        let check = |original: [[u8; 4]; 2], reply: [[u8; 4]; 2], expect: bool| {
            let mut messages = Messages::new();
            messages.add("flow", NEW, 0, |p| {
                p.raw(&[2, 0, 0, 0]);
                for (kind, [source, destination]) in [(1, original), (2, reply)] {
                    p.nested(kind, |p| {
                        p.nested(1, |p| {
                            p.attribute(1, &source);
                            p.attribute(2, &destination);
                        });
                        p.nested(2, |p| p.u8(1, 6));
                    });
                }
                p.attribute(CTA_ZONE, &[0, 7]);
            });
            let bytes = messages.stamp(1, 1).to_vec();
            let message = wire::messages(&bytes).next().unwrap();
            let flow = parse_flow(&message, &[Ipv4Addr::new(172, 17, 0, 2)]);
            assert_eq!(flow.is_some(), expect);
            let Some(flow) = flow else { return };
            let mut deletion = Messages::new();
            delete_flow(&mut deletion, &flow);
            let deletion = deletion.stamp(1, 1).to_vec();
            let deletion = wire::messages(&deletion).next().unwrap();
            assert_eq!(deletion.kind, DELETE);
            for kind in [CTA_TUPLE_ORIG, CTA_ZONE] {
                assert_eq!(
                    wire::find(&deletion.body[4..], kind),
                    wire::find(&message.body[4..], kind)
                );
            }
        };
        let (a, b, c) = ([172, 17, 0, 2], [10, 0, 0, 1], [10, 0, 0, 2]);
        check([a, b], [b, c], true);
        check([b, a], [a, b], true);
        check([b, c], [a, b], true);
        check([b, c], [c, b], false);
    }

    #[test]
    fn message_bytes() {
        let mut messages = Messages::new();
        forget(&mut messages, Ipv4Addr::new(172, 17, 0, 2));
        let bytes = messages.stamp(1, 1).to_vec();
        let bodies: Vec<&[u8]> = wire::messages(&bytes).map(|message| message.body).collect();
        let expect = |kind: u8, flag: u8| {
            [
                &[2, 0, 0, 0][..],
                &[16, 0, 1, 0x80, 12, 0, 1, 0x80, 8, 0, kind, 0, 172, 17, 0, 2],
                &[12, 0, 25, 0x80, 8, 0, 1, 0],
                &u32::from(flag).to_ne_bytes(),
            ]
            .concat()
        };
        assert_eq!(bodies, [expect(1, 1), expect(2, 2)]);
    }
}
