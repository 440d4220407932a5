//! Pure: programs (classic BPF) that the kernel runs on its announcements before it queues them for
//! us. Each attach is announced in some two dozen messages, all about what we have just done; read
//! one by one they would cost a tenth of an attach, and those of many instances would not fit the
//! buffer.

use libc::{
    BPF_ABS, BPF_B, BPF_H, BPF_IMM, BPF_IND, BPF_JEQ, BPF_JMP, BPF_K, BPF_LD, BPF_LDX, BPF_MISC,
    BPF_RET, BPF_TAX, BPF_W, sock_filter,
};

/// Offsets in a message.
const TYPE: u32 = 4;
const SENDER: u32 = 12;
const FAMILY: u32 = 16;
const LINK_ATTRIBUTES: u32 = 32;
/// Behind the header of an attribute.
const VALUE: u32 = 4;
/// `SKF_AD_OFF + SKF_AD_NLATTR`: where in the list that begins at A there is an attribute of type X.
const FIND_ATTRIBUTE: u32 = 0xffff_f000 + 12;
const DROP: u32 = 0;
const PASS: u32 = u32::MAX;

/// Drops messages of this family, and links announced by this message type that have a number as
/// the value of this attribute. What is loaded is in network order.
pub(super) fn without_links(
    family: u8,
    kind: u16,
    (attribute, value): (u16, u32),
) -> [sock_filter; 13] {
    [
        step(BPF_LD | BPF_B | BPF_ABS, FAMILY),
        jump_if(family.into(), 10, 0),
        step(BPF_LD | BPF_H | BPF_ABS, TYPE),
        jump_if(kind.to_be().into(), 0, 7),
        step(BPF_LDX | BPF_W | BPF_IMM, attribute.into()),
        step(BPF_LD | BPF_W | BPF_IMM, LINK_ATTRIBUTES),
        step(BPF_LD | BPF_W | BPF_ABS, FIND_ATTRIBUTE),
        jump_if(0, 3, 0),
        step(BPF_MISC | BPF_TAX, 0),
        step(BPF_LD | BPF_W | BPF_IND, VALUE),
        jump_if(value.to_be(), 1, 0),
        step(BPF_RET | BPF_K, PASS),
        step(BPF_RET | BPF_K, DROP),
    ]
}

/// Drops what the socket with this port number has caused.
pub(super) fn without_sender(port: u32) -> [sock_filter; 4] {
    [
        step(BPF_LD | BPF_W | BPF_ABS, SENDER),
        jump_if(port.to_be(), 1, 0),
        step(BPF_RET | BPF_K, PASS),
        step(BPF_RET | BPF_K, DROP),
    ]
}

fn step(code: u32, k: u32) -> sock_filter {
    let code = u16::try_from(code).expect("codes are constants of two bytes");
    sock_filter { code, jt: 0, jf: 0, k }
}

/// Leaves out so many steps if what was loaded is this, else so many.
fn jump_if(value: u32, jt: u8, jf: u8) -> sock_filter {
    sock_filter { jt, jf, ..step(BPF_JMP | BPF_JEQ | BPF_K, value) }
}
