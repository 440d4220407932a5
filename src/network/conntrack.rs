//! Pure: forgets the connections of an address, so that packets of old ones do not reach the next
//! owner of the address as replies.

use std::net::Ipv4Addr;

use super::channel;
use super::wire::Messages;

/// Subsystem 1, message "delete".
const DELETE: u16 = 0x0102;
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
        messages.add("forget connections", DELETE, channel::REQUEST, |p| {
            p.raw(&[FAMILY_IPV4, 0, 0, 0]);
            p.nested(CTA_TUPLE_ORIG, |p| {
                p.nested(CTA_TUPLE_IP, |p| p.attribute(kind, &address.octets()));
            });
            p.nested(CTA_FILTER, |p| p.u32(CTA_FILTER_ORIG_FLAGS, flag));
        });
    }
}

#[cfg(test)]
mod tests {
    use super::super::wire;
    use super::*;

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
