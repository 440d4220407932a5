//! Pure: netlink messages and attributes as bytes, for rtnetlink and nf_tables alike. Any thread.
//!
//! `Messages` is one send: several messages with an operation name each, for error texts. Sequence
//! numbers and the acknowledgement flag are stamped by `rtnl::Channel` when it sends. Reading never
//! panics: what does not fit ends the iteration.

/// Attributes inside are attributes themselves; nf_tables insists on this bit, rtnetlink does not
/// know it everywhere.
const NESTED: u16 = 0x8000;
const KIND_MASK: u16 = 0x3fff;
const MESSAGE_HEADER: usize = 16;
const ATTRIBUTE_HEADER: usize = 4;
const LENGTH_FITS: &str = "attribute lists are cut below 64 KiB by their writers";

/// Messages that are sent together.
#[derive(Clone, Debug, Default)]
pub(super) struct Messages {
    buffer: Vec<u8>,
    parts: Vec<(usize, &'static str)>,
}

impl Messages {
    pub(super) fn new() -> Self {
        Self { buffer: Vec::with_capacity(1024), parts: Vec::with_capacity(8) }
    }

    /// Adds a message. `operation` names it in an error, such as "create bridge".
    pub(super) fn add(
        &mut self,
        operation: &'static str,
        kind: u16,
        flags: u16,
        body: impl FnOnce(&mut Payload<'_>),
    ) {
        let start = self.buffer.len();
        self.parts.push((start, operation));
        self.buffer.extend_from_slice(&[0; 4]);
        self.buffer.extend_from_slice(&kind.to_ne_bytes());
        self.buffer.extend_from_slice(&flags.to_ne_bytes());
        self.buffer.extend_from_slice(&[0; 8]);
        body(&mut Payload(&mut self.buffer));
        let length = u32::try_from(self.buffer.len() - start).expect(LENGTH_FITS);
        self.buffer[start..start + 4].copy_from_slice(&length.to_ne_bytes());
        pad(&mut self.buffer);
    }

    /// Number of messages.
    pub(super) fn len(&self) -> usize {
        self.parts.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }

    pub(super) fn size_bytes(&self) -> usize {
        self.buffer.len()
    }

    pub(super) fn operation(&self, index: usize) -> &'static str {
        self.parts.get(index).map_or("netlink request", |(_, operation)| operation)
    }

    /// Fails if what it is about exists: it creates.
    pub(super) fn is_exclusive(&self, index: usize) -> bool {
        const EXCLUSIVE: u16 = 0x200;
        let start = self.parts.get(index).map(|(start, _)| *start);
        let flags = start.and_then(|start| read_u16(&self.buffer, start + 6));
        flags.is_some_and(|flags| flags & EXCLUSIVE != 0)
    }

    /// Copies of some of the messages, in their order.
    pub(super) fn only(&self, indices: &[usize]) -> Self {
        let mut some = Self::new();
        for (start, operation) in indices.iter().filter_map(|index| self.parts.get(*index)) {
            let length = read_u32(&self.buffer, *start).and_then(|n| usize::try_from(n).ok());
            let end = start + length.unwrap_or(0).next_multiple_of(4);
            some.parts.push((some.buffer.len(), operation));
            some.buffer.extend_from_slice(&self.buffer[*start..end]);
        }
        some
    }

    /// Numbers the messages from `first` on, lets message `acknowledged` be confirmed, and returns
    /// the bytes.
    pub(super) fn stamp(&mut self, first: u32, acknowledged: usize) -> &[u8] {
        const ACK: u8 = 0x04;
        let mut sequence = first;
        for (index, (start, _)) in self.parts.iter().enumerate() {
            let flags = &mut self.buffer[start + 6..start + 8];
            let low = if cfg!(target_endian = "little") { 0 } else { 1 };
            flags[low] = if index == acknowledged { flags[low] | ACK } else { flags[low] & !ACK };
            self.buffer[start + 8..start + 12].copy_from_slice(&sequence.to_ne_bytes());
            sequence = sequence.wrapping_add(1);
        }
        &self.buffer
    }
}

/// Content of a message or of a nested attribute while it is written.
pub(super) struct Payload<'a>(&'a mut Vec<u8>);

impl Payload<'_> {
    /// A fixed header, written as it is and padded.
    pub(super) fn raw(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
        pad(self.0);
    }

    pub(super) fn attribute(&mut self, kind: u16, value: &[u8]) {
        let length = u16::try_from(ATTRIBUTE_HEADER + value.len()).expect(LENGTH_FITS);
        self.0.extend_from_slice(&length.to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.raw(value);
    }

    pub(super) fn u8(&mut self, kind: u16, value: u8) {
        self.attribute(kind, &[value]);
    }

    /// Host order, as rtnetlink wants it.
    pub(super) fn u16(&mut self, kind: u16, value: u16) {
        self.attribute(kind, &value.to_ne_bytes());
    }

    /// Host order, as rtnetlink wants it.
    pub(super) fn u32(&mut self, kind: u16, value: u32) {
        self.attribute(kind, &value.to_ne_bytes());
    }

    /// Big endian, as nf_tables wants it.
    pub(super) fn be32(&mut self, kind: u16, value: u32) {
        self.attribute(kind, &value.to_be_bytes());
    }

    /// Big endian, as nf_tables wants it.
    pub(super) fn be64(&mut self, kind: u16, value: u64) {
        self.attribute(kind, &value.to_be_bytes());
    }

    /// With the terminating zero.
    pub(super) fn text(&mut self, kind: u16, value: &str) {
        let length = u16::try_from(ATTRIBUTE_HEADER + value.len() + 1).expect(LENGTH_FITS);
        self.0.extend_from_slice(&length.to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(value.as_bytes());
        self.0.push(0);
        pad(self.0);
    }

    /// A nested attribute with the nested bit (nf_tables).
    pub(super) fn nested(&mut self, kind: u16, body: impl FnOnce(&mut Payload<'_>)) {
        self.group(kind | NESTED, body);
    }

    /// A nested attribute without the bit (rtnetlink).
    pub(super) fn group(&mut self, kind: u16, body: impl FnOnce(&mut Payload<'_>)) {
        let start = self.0.len();
        self.0.extend_from_slice(&[0; 2]);
        self.0.extend_from_slice(&kind.to_ne_bytes());
        body(&mut Payload(self.0));
        let length = u16::try_from(self.0.len() - start).expect(LENGTH_FITS);
        self.0[start..start + 2].copy_from_slice(&length.to_ne_bytes());
    }
}

fn pad(buffer: &mut Vec<u8>) {
    buffer.resize(buffer.len().next_multiple_of(4), 0);
}

/// A received message.
#[derive(Clone, Copy, Debug)]
pub(super) struct Message<'a> {
    pub(super) kind: u16,
    pub(super) flags: u16,
    pub(super) sequence: u32,
    pub(super) body: &'a [u8],
}

/// The messages of one datagram.
pub(super) fn messages(mut bytes: &[u8]) -> impl Iterator<Item = Message<'_>> {
    std::iter::from_fn(move || {
        let length = usize::try_from(read_u32(bytes, 0)?).ok()?;
        if length < MESSAGE_HEADER || length > bytes.len() {
            return None;
        }
        let message = Message {
            kind: read_u16(bytes, 4)?,
            flags: read_u16(bytes, 6)?,
            sequence: read_u32(bytes, 8)?,
            body: &bytes[MESSAGE_HEADER..length],
        };
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(message)
    })
}

/// The attributes of a message body (behind its fixed header) or of a nested attribute.
pub(super) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(read_u16(bytes, 0)?);
        if length < ATTRIBUTE_HEADER || length > bytes.len() {
            return None;
        }
        let attribute = (read_u16(bytes, 2)? & KIND_MASK, &bytes[ATTRIBUTE_HEADER..length]);
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(attribute)
    })
}

/// The value of the first attribute of this kind.
pub(super) fn find(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes).find(|(k, _)| *k == kind).map(|(_, value)| value)
}

/// Text of an attribute without its terminating zero.
pub(super) fn text(value: &[u8]) -> &str {
    let end = value.iter().position(|b| *b == 0).unwrap_or(value.len());
    std::str::from_utf8(&value[..end]).unwrap_or_default()
}

pub(super) fn read_u16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

pub(super) fn read_u32(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

pub(super) fn read_i32(bytes: &[u8], at: usize) -> Option<i32> {
    Some(i32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn writes_header_nesting_and_padding() {
        let mut messages = Messages::new();
        messages.add("test", 0x1234, 0x0600, |p| {
            p.raw(&[1, 2, 3, 4]);
            p.text(1, "abc");
            p.group(2, |p| p.u8(3, 7));
            p.nested(4, |p| p.be32(5, 0x0102_0304));
        });
        messages.add("second", 1, 0, |_| {});
        let bytes = messages.stamp(0x0a0b_0c0d, 1).to_vec();
        assert_eq!(messages.len(), 2);
        assert_eq!(messages.operation(1), "second");
        let read: Vec<Message<'_>> = super::messages(&bytes).collect();
        assert_eq!((read[0].kind, read[0].flags), (0x1234, 0x0600));
        assert_eq!((read[1].kind, read[1].flags), (1, 4));
        assert_eq!((read[0].sequence, read[1].sequence), (0x0a0b_0c0d, 0x0a0b_0c0e));
        let expected: &[u8] = &[
            1, 2, 3, 4, // header
            8, 0, 1, 0, b'a', b'b', b'c', 0, // text
            12, 0, 2, 0, 5, 0, 3, 0, 7, 0, 0, 0, // group
            12, 0, 4, 0x80, 8, 0, 5, 0, 1, 2, 3, 4, // nested
        ];
        assert_eq!(read[0].body, expected);
        assert_eq!(text(find(&read[0].body[4..], 1).unwrap()), "abc");
        assert_eq!(find(&read[0].body[4..], 9), None);
    }

    #[test]
    fn stamping_again_moves_the_acknowledgement() {
        let mut messages = Messages::new();
        messages.add("a", 1, 0x400, |_| {});
        messages.add("b", 1, 0x400, |_| {});
        messages.stamp(1, 1);
        let bytes = messages.stamp(9, 0).to_vec();
        let flags: Vec<u16> = super::messages(&bytes).map(|m| m.flags).collect();
        assert_eq!(flags, [0x404, 0x400]);
    }

    proptest! {
        #[test]
        fn reading_anything_ends(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            for message in messages(&bytes) {
                for (_, value) in attributes(message.body) {
                    let _ = (text(value), attributes(value).count());
                }
            }
            prop_assert!(attributes(&bytes).count() <= bytes.len());
        }
    }
}
