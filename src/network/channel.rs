//! One netlink socket with its sequence numbers: sends messages, waits for the acknowledgement,
//! repeats interrupted dumps. Owned by the net thread; there is one per owner (host links, host
//! nf_tables, inside of a namespace while an instance is attached).

use std::io;

use nix::errno::Errno;

use super::error::{Error, Refusal};
use super::wire::{self, Message, Messages};
use crate::sys::netlink::{Family, Netlink};

/// A dump datagram of the kernel is at most 32 KiB.
const RECEIVE_BYTES: usize = 32 * 1024;
/// How often a dump is repeated that changes interrupted.
const DUMP_ATTEMPTS: u32 = 8;

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST: u16 = 0x01;
const NLM_F_DUMP: u16 = 0x300;
const NLM_F_DUMP_INTR: u16 = 0x10;
const NLM_F_CAPPED: u16 = 0x100;
const NLM_F_ACK_TLVS: u16 = 0x200;
const NLMSGERR_ATTR_MSG: u16 = 1;
const MESSAGE_HEADER: usize = 16;

/// Request flags of `Messages::add`.
pub(super) const REQUEST: u16 = NLM_F_REQUEST;
pub(super) const CREATE: u16 = NLM_F_REQUEST | 0x400;
pub(super) const CREATE_NEW: u16 = CREATE | 0x200;
pub(super) const CREATE_OR_REPLACE: u16 = CREATE | 0x100;
/// Only for NEWRULE: to the tail instead of the head.
pub(super) const APPEND: u16 = CREATE | 0x800;
pub(super) const DUMP: u16 = NLM_F_REQUEST | NLM_F_DUMP;

/// A socket and its next sequence number.
#[derive(Debug)]
pub(super) struct Channel {
    socket: Netlink,
    next: u32,
}

impl Channel {
    /// A channel that lives as long as the daemon.
    pub(super) fn open(family: Family) -> Result<Self, Error> {
        let socket = Netlink::for_requests(family)
            .map_err(|source| Error::Socket { operation: "open netlink socket", source })?;
        Ok(Self::new(socket))
    }

    /// Takes over a socket, such as one inside a namespace.
    pub(super) fn new(socket: Netlink) -> Self {
        Self { socket, next: 1 }
    }

    /// Sends rtnetlink messages in one call and waits until the last one is done. They are not
    /// atomic: later ones are carried out although an earlier one failed; the first failure is
    /// returned.
    pub(super) fn execute(&mut self, messages: &mut Messages) -> Result<(), Error> {
        let last = messages.len().saturating_sub(1);
        self.run(messages, last, None)
    }

    /// Sends an nf_tables batch (first message begin, last message end): all or nothing.
    pub(super) fn commit(&mut self, batch: &mut Messages) -> Result<(), Error> {
        let last = batch.len().saturating_sub(2);
        self.socket
            .make_room(batch.size_bytes())
            .map_err(|source| Error::Socket { operation: "enlarge send buffer", source })?;
        self.run(batch, last, Some(0))
    }

    /// `acknowledged`: message whose answer ends the wait. `fatal`: message whose error ends it,
    /// because it stands for the whole batch.
    fn run(
        &mut self,
        messages: &mut Messages,
        acknowledged: usize,
        fatal: Option<usize>,
    ) -> Result<(), Error> {
        if messages.is_empty() {
            return Ok(());
        }
        let first = self.take_sequence(messages.len());
        let name = messages.operation(acknowledged);
        self.send(messages.stamp(first, acknowledged), name)?;
        let mut refusal: Option<Refusal> = None;
        let mut buffer = [0; RECEIVE_BYTES];
        loop {
            let length = self.receive(&mut buffer, name)?;
            for message in wire::messages(&buffer[..length]) {
                let Some(index) = position(first, messages.len(), &message) else { continue };
                if let Some((errno, text)) = error_of(&message) {
                    let earlier = refusal.as_ref().is_none_or(|known| index < known.index);
                    if earlier {
                        let operation = messages.operation(index);
                        refusal = Some(Refusal { index, operation, errno, text });
                    }
                }
                if index == acknowledged || (Some(index) == fatal && refusal.is_some()) {
                    return refusal.map_or(Ok(()), |refusal| Err(refusal.into()));
                }
            }
        }
    }

    /// Sends a dump request (one message) and collects what `parse` makes of its answers.
    pub(super) fn dump<T>(
        &mut self,
        request: &mut Messages,
        mut parse: impl FnMut(&Message<'_>) -> Option<T>,
    ) -> Result<Vec<T>, Error> {
        for _ in 0..DUMP_ATTEMPTS {
            if let Some(found) = self.dump_once(request, &mut parse)? {
                return Ok(found);
            }
        }
        let operation = request.operation(0);
        Err(Refusal { index: 0, operation, errno: Errno::EAGAIN, text: String::new() }.into())
    }

    /// `None`: the kernel says that something changed meanwhile.
    fn dump_once<T>(
        &mut self,
        request: &mut Messages,
        parse: &mut impl FnMut(&Message<'_>) -> Option<T>,
    ) -> Result<Option<Vec<T>>, Error> {
        let first = self.take_sequence(1);
        // No message 1 exists: a dump ends with "done" and needs no acknowledgement.
        let operation = request.operation(0);
        self.send(request.stamp(first, 1), operation)?;
        let (mut found, mut interrupted) = (Vec::new(), false);
        let mut buffer = [0; RECEIVE_BYTES];
        loop {
            let length = self.receive(&mut buffer, operation)?;
            for message in wire::messages(&buffer[..length]) {
                if message.sequence != first {
                    continue;
                }
                interrupted |= message.flags & NLM_F_DUMP_INTR != 0;
                match message.kind {
                    NLMSG_DONE => return Ok((!interrupted).then_some(found)),
                    NLMSG_ERROR => {
                        if let Some((errno, text)) = error_of(&message) {
                            return Err(Refusal { index: 0, operation, errno, text }.into());
                        }
                    }
                    _ => found.extend(parse(&message)),
                }
            }
        }
    }

    /// Sends requests of which each is answered by one message or an error, and collects what
    /// `parse` makes of the answers. What does not exist is left out.
    pub(super) fn collect<T>(
        &mut self,
        requests: &mut Messages,
        mut parse: impl FnMut(&Message<'_>) -> Option<T>,
    ) -> Result<Vec<T>, Error> {
        let mut found = Vec::new();
        if requests.is_empty() {
            return Ok(found);
        }
        let first = self.take_sequence(requests.len());
        let last = requests.len() - 1;
        let operation = requests.operation(last);
        self.send(requests.stamp(first, last), operation)?;
        let mut buffer = [0; RECEIVE_BYTES];
        loop {
            let length = self.receive(&mut buffer, operation)?;
            for message in wire::messages(&buffer[..length]) {
                let Some(index) = position(first, requests.len(), &message) else {
                    found.extend(parse(&message));
                    continue;
                };
                match error_of(&message) {
                    Some((errno, text)) if errno != Errno::ENOENT => {
                        return Err(Refusal { index, operation, errno, text }.into());
                    }
                    _ if index == last => return Ok(found),
                    _ => {}
                }
            }
        }
    }

    /// Number by which the kernel calls this socket.
    pub(super) fn port(&self) -> u32 {
        self.socket.port()
    }

    fn take_sequence(&mut self, count: usize) -> u32 {
        let first = self.next;
        // 0 is what the kernel uses for its own notices.
        self.next = first.wrapping_add(u32::try_from(count).unwrap_or(u32::MAX)).max(1);
        first
    }

    fn send(&self, bytes: &[u8], operation: &'static str) -> Result<(), Error> {
        self.socket.send(bytes).map_err(|source| Error::Socket { operation, source })
    }

    fn receive(&self, buffer: &mut [u8], operation: &'static str) -> Result<usize, Error> {
        self.socket.receive(buffer).map_err(|source| match source.kind() {
            io::ErrorKind::WouldBlock => Error::NoAnswer { operation },
            _ => Error::Socket { operation, source },
        })
    }
}

/// Which message of a send is answered, if any.
fn position(first: u32, count: usize, message: &Message<'_>) -> Option<usize> {
    let index = usize::try_from(message.sequence.wrapping_sub(first)).ok()?;
    (message.kind == NLMSG_ERROR && index < count).then_some(index)
}

/// Error number and text of the extended acknowledgement; `None` = success.
pub(super) fn error_of(message: &Message<'_>) -> Option<(Errno, String)> {
    let code = wire::read_i32(message.body, 0)?;
    if code == 0 {
        return None;
    }
    let text = extended_text(message).unwrap_or_default();
    Some((Errno::from_raw(code.saturating_neg()), text))
}

fn extended_text(message: &Message<'_>) -> Option<String> {
    if message.flags & NLM_F_ACK_TLVS == 0 {
        return None;
    }
    // The request is echoed: its header always, its body unless capped.
    let echoed = if message.flags & NLM_F_CAPPED != 0 {
        MESSAGE_HEADER
    } else {
        usize::try_from(wire::read_u32(message.body, 4)?).ok()?.next_multiple_of(4)
    };
    let attributes = message.body.get(4usize.checked_add(echoed)?..)?;
    Some(wire::text(wire::find(attributes, NLMSGERR_ATTR_MSG)?).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error_message(flags: u16, code: i32, echoed: &[u8], tail: &[u8]) -> Vec<u8> {
        let body = [&code.to_ne_bytes(), echoed, tail].concat();
        let length = u32::try_from(16 + body.len()).unwrap();
        let mut bytes = length.to_ne_bytes().to_vec();
        bytes.extend(NLMSG_ERROR.to_ne_bytes());
        bytes.extend(flags.to_ne_bytes());
        bytes.extend(7u32.to_ne_bytes());
        bytes.extend(0u32.to_ne_bytes());
        bytes.extend(body);
        bytes
    }

    #[test]
    fn decodes_errors() {
        let check = |bytes: Vec<u8>, expect: Option<(Errno, &str)>| {
            let message = wire::messages(&bytes).next().unwrap();
            let expect = expect.map(|(errno, text)| (errno, text.to_owned()));
            assert_eq!(error_of(&message), expect);
        };
        let tlv: &[u8] = &[8, 0, 1, 0, b'b', b'a', b'd', 0];
        let mut header = vec![0; 16];
        header[0] = 24;
        let whole = [header.clone(), vec![9; 8]].concat();
        check(error_message(0, 0, &header, &[]), None);
        check(error_message(0, -17, &header, &[]), Some((Errno::EEXIST, "")));
        check(error_message(0x300, -22, &header, tlv), Some((Errno::EINVAL, "bad")));
        check(error_message(0x200, -22, &whole, tlv), Some((Errno::EINVAL, "bad")));
        // Lies about lengths are survived.
        header[..4].copy_from_slice(&u32::MAX.to_ne_bytes());
        check(error_message(0x200, -22, &header, tlv), Some((Errno::EINVAL, "")));
        check(error_message(0, i32::MIN, &header, &[]), Some((Errno::UnknownErrno, "")));
    }

    #[test]
    fn maps_answers_to_messages() {
        let bytes = error_message(0, 0, &[0; 16], &[]);
        let message = wire::messages(&bytes).next().unwrap();
        for (first, count, expect) in
            [(7, 1, Some(0)), (5, 3, Some(2)), (5, 2, None), (8, 5, None), (u32::MAX, 20, Some(8))]
        {
            assert_eq!(position(first, count, &message), expect, "{first} {count}");
        }
    }
}
