//! One netlink socket with its sequence numbers: sends messages, waits for the acknowledgement,
//! repeats interrupted dumps. Owned by the net thread; there is one per owner (host links, host
//! nf_tables, inside of a namespace while an instance is attached).

use std::io;
use std::thread::sleep;
use std::time::Duration;

use nix::errno::Errno;

use super::error::{Error, Refusal};
use super::wire::{self, Message, Messages};
use crate::sys::is_errno;
use crate::sys::netlink::{Family, Netlink};

/// A dump datagram of the kernel is at most 32 KiB.
const RECEIVE_BYTES: usize = 32 * 1024;
/// How often a dump is repeated that changes interrupted.
const DUMP_ATTEMPTS: u32 = 8;

/// Pauses before something that the kernel could not do at that moment is tried again.
pub(super) const RETRY_PAUSES: [Duration; 3] =
    [Duration::from_millis(1), Duration::from_millis(5), Duration::from_millis(25)];

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
    /// A test wants these operations refused, once each, without the kernel.
    #[cfg(test)]
    pub(super) refused: Vec<(&'static str, Errno)>,
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
        Self {
            socket,
            next: 1,
            #[cfg(test)]
            refused: Vec::new(),
        }
    }

    /// Sends rtnetlink messages in one call and waits until the last one is done. They are not
    /// atomic: later ones are carried out although an earlier one failed; the first failure is
    /// returned. If that one may go away by itself, it is sent again after a pause, together with
    /// those that failed after it, which may be consequences.
    pub(super) fn execute(&mut self, messages: &mut Messages) -> Result<(), Error> {
        let mut refusals = self.attempt(messages)?;
        for pause in RETRY_PAUSES {
            if !refusals.first().is_some_and(|first| is_passing(first, messages)) {
                break;
            }
            sleep(pause);
            let again: Vec<usize> = refusals.iter().map(|refusal| refusal.index).collect();
            refusals = self.attempt(&mut messages.only(&again))?;
            for refusal in &mut refusals {
                refusal.index = again[refusal.index];
            }
        }
        refusals.into_iter().next().map_or(Ok(()), |refusal| Err(refusal.into()))
    }

    /// One send of rtnetlink messages.
    #[cfg(not(test))]
    fn attempt(&mut self, messages: &mut Messages) -> Result<Vec<Refusal>, Error> {
        let last = messages.len().saturating_sub(1);
        self.run(messages, last, None)
    }

    /// The same without what a test wants refused.
    #[cfg(test)]
    fn attempt(&mut self, messages: &mut Messages) -> Result<Vec<Refusal>, Error> {
        let (mut refusals, mut sent) = (Vec::new(), Vec::new());
        for index in 0..messages.len() {
            let operation = messages.operation(index);
            let Some(at) = self.refused.iter().position(|(name, _)| *name == operation) else {
                sent.push(index);
                continue;
            };
            let errno = self.refused.remove(at).1;
            refusals.push(Refusal { index, operation, errno, text: String::new() });
        }
        let real = self.run(&mut messages.only(&sent), sent.len().saturating_sub(1), None)?;
        let real =
            real.into_iter().map(|refusal| Refusal { index: sent[refusal.index], ..refusal });
        refusals.extend(real);
        refusals.sort_by_key(|refusal| refusal.index);
        Ok(refusals)
    }

    /// What a test wants refused of a batch.
    #[cfg(test)]
    fn refuse_one_of(&mut self, batch: &Messages) -> Result<(), Error> {
        for index in 0..batch.len() {
            let operation = batch.operation(index);
            if let Some(at) = self.refused.iter().position(|(name, _)| *name == operation) {
                let errno = self.refused.remove(at).1;
                return Err(Refusal { index, operation, errno, text: String::new() }.into());
            }
        }
        Ok(())
    }

    /// Sends an nf_tables batch (first message begin, last message end): all or nothing.
    pub(super) fn commit(&mut self, batch: &mut Messages) -> Result<(), Error> {
        #[cfg(test)]
        self.refuse_one_of(batch)?;
        let last = batch.len().saturating_sub(2);
        self.socket
            .make_room(batch.size_bytes())
            .map_err(|source| Error::Socket { operation: "enlarge send buffer", source })?;
        let refusals = self.run(batch, last, Some(0))?;
        refusals.into_iter().next().map_or(Ok(()), |refusal| Err(refusal.into()))
    }

    /// `acknowledged`: message whose answer ends the wait. `fatal`: message whose error ends it,
    /// because it stands for the whole batch. What was refused comes in the order of the messages.
    fn run(
        &mut self,
        messages: &mut Messages,
        acknowledged: usize,
        fatal: Option<usize>,
    ) -> Result<Vec<Refusal>, Error> {
        let mut refusals: Vec<Refusal> = Vec::new();
        if messages.is_empty() {
            return Ok(refusals);
        }
        let first = self.take_sequence(messages.len());
        let name = messages.operation(acknowledged);
        self.send(messages.stamp(first, acknowledged), name)?;
        let mut buffer = [0; RECEIVE_BYTES];
        loop {
            let length = self.receive(&mut buffer, name)?;
            for message in wire::messages(&buffer[..length]) {
                let Some(index) = position(first, messages.len(), &message) else { continue };
                if let Some((errno, text)) = error_of(&message) {
                    let operation = messages.operation(index);
                    refusals.push(Refusal { index, operation, errno, text });
                }
                if index == acknowledged || (Some(index) == fatal && !refusals.is_empty()) {
                    refusals.sort_by_key(|refusal| refusal.index);
                    return Ok(refusals);
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
                    // The end, too, may be one before the list is complete.
                    NLMSG_DONE | NLMSG_ERROR => {
                        if let Some((errno, text)) = error_of(&message) {
                            return Err(Refusal { index: 0, operation, errno, text }.into());
                        }
                        if message.kind == NLMSG_DONE {
                            return Ok((!interrupted).then_some(found));
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
        let no_room =
            |err: &io::Error| is_errno(err, Errno::ENOBUFS) || is_errno(err, Errno::EAGAIN);
        let mut result = self.socket.send(bytes);
        for pause in RETRY_PAUSES {
            if !result.as_ref().is_err_and(no_room) {
                break;
            }
            sleep(pause);
            result = self.socket.send(bytes);
        }
        result.map_err(|source| Error::Socket { operation, source })
    }

    fn receive(&self, buffer: &mut [u8], operation: &'static str) -> Result<usize, Error> {
        self.socket.receive(buffer).map_err(|source| match source.kind() {
            io::ErrorKind::WouldBlock => Error::NoAnswer { operation },
            _ => Error::Socket { operation, source },
        })
    }
}

/// The same message may be carried out a moment later. An index that is in use is "busy", too, and
/// stays so: whoever creates something takes another one.
fn is_passing(refusal: &Refusal, messages: &Messages) -> bool {
    let taken = refusal.errno == Errno::EBUSY && messages.is_exclusive(refusal.index);
    refusal.is_transient() && !taken
}

/// Which message of a send is answered, if any.
fn position(first: u32, count: usize, message: &Message<'_>) -> Option<usize> {
    let index = usize::try_from(message.sequence.wrapping_sub(first)).ok()?;
    (message.kind == NLMSG_ERROR && index < count).then_some(index)
}

/// Error number and text of an acknowledgement or of the end of a list; `None` = success.
pub(super) fn error_of(message: &Message<'_>) -> Option<(Errno, String)> {
    let code = wire::read_i32(message.body, 0)?;
    if code >= 0 {
        return None;
    }
    let text = extended_text(message).unwrap_or_default();
    Some((Errno::from_raw(code.saturating_neg()), text))
}

fn extended_text(message: &Message<'_>) -> Option<String> {
    if message.flags & NLM_F_ACK_TLVS == 0 {
        return None;
    }
    // The request is echoed: its header always, its body unless capped. At the end of a list it is
    // not.
    let echoed = if message.kind == NLMSG_DONE {
        0
    } else if message.flags & NLM_F_CAPPED != 0 {
        MESSAGE_HEADER
    } else {
        usize::try_from(wire::read_u32(message.body, 4)?).ok()?.next_multiple_of(4)
    };
    let attributes = message.body.get(4usize.checked_add(echoed)?..)?;
    Some(wire::text(wire::find(attributes, NLMSGERR_ATTR_MSG)?).to_owned())
}

#[cfg(test)]
mod tests {
    use super::super::naming::LinkName;
    use super::super::rtnl::{self, NewBridge};
    use super::*;
    use crate::sys::mount::isolate;
    use crate::sys::thread::spawn_sized;

    fn error_message(flags: u16, code: i32, echoed: &[u8], tail: &[u8]) -> Vec<u8> {
        message(NLMSG_ERROR, flags, code, echoed, tail)
    }

    fn message(kind: u16, flags: u16, code: i32, echoed: &[u8], tail: &[u8]) -> Vec<u8> {
        let body = [&code.to_ne_bytes(), echoed, tail].concat();
        let length = u32::try_from(16 + body.len()).unwrap();
        let mut bytes = length.to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
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
        // Ends of lists.
        let end = |flags, code, tail: &[u8]| message(NLMSG_DONE, flags | 2, code, &[], tail);
        check(end(0, 0, &[]), None);
        check(end(0, -12, &[]), Some((Errno::ENOMEM, "")));
        check(end(NLM_F_ACK_TLVS, -2, tlv), Some((Errno::ENOENT, "bad")));
        check(end(NLM_F_ACK_TLVS, -2, &[255, 255, 1, 0]), Some((Errno::ENOENT, "")));
        // One without a number.
        check([&16u32.to_ne_bytes()[..], &end(0, -12, &[])[4..16]].concat(), None);
    }

    /// The kernel says at the end of a list that it could not make it.
    #[test]
    fn a_list_that_the_kernel_gives_up_is_an_error() {
        let thread = spawn_sized("list-test", 512 * 1024, || {
            if isolate().is_err() {
                println!("SKIP a_list_that_the_kernel_gives_up_is_an_error: needs CAP_NET_ADMIN");
                return;
            }
            let mut channel = Channel::open(Family::Route).unwrap();
            let mut request = Messages::new();
            // Routes of a table that does not exist; only with strict checking is it looked for.
            request.add("list routes", 26, DUMP, |p| p.raw(&[2, 0, 0, 0, 77, 0, 0, 0, 0, 0, 0, 0]));
            let listed = channel.dump(&mut request, |_| Some(()));
            let Err(Error::Kernel(refusal)) = listed else { panic!("{listed:?}") };
            assert_eq!(refusal.errno, Errno::ENOENT, "{refusal}");
            assert!(refusal.text.contains("does not exist"), "{refusal}");
            // The channel goes on.
            assert_eq!(rtnl::links(&mut channel).unwrap().len(), 1);
        });
        thread.unwrap().join().unwrap();
    }

    /// Messages that the kernel cannot carry out at the moment are sent again, and only those.
    #[test]
    fn what_passes_is_tried_again() {
        let thread = spawn_sized("channel-test", 512 * 1024, || {
            if isolate().is_err() {
                println!("SKIP what_passes_is_tried_again: needs CAP_NET_ADMIN");
                return;
            }
            let mut channel = Channel::open(Family::Route).unwrap();
            let (create, alias, mtu) = ("create bridge", "set alias", "set MTU");
            let mut make = |index: u32, refused: &[(&'static str, Errno)]| {
                let name = &LinkName::try_from(format!("br{index}").as_str()).unwrap();
                let mut messages = Messages::new();
                let bridge = NewBridge { index, name, mac: [2, 0, 0, 0, 0, 1], mtu: 1500 };
                rtnl::new_bridge(&mut messages, &bridge);
                rtnl::set_alias(&mut messages, index, "mine");
                rtnl::set_mtu(&mut messages, index, 1400);
                channel.refused = refused.to_vec();
                let result = channel.execute(&mut messages);
                let left = std::mem::take(&mut channel.refused).len();
                let links = rtnl::links(&mut channel).unwrap();
                let made = links.into_iter().find(|link| link.index == index);
                let made = made.map(|link| (link.alias, link.mtu));
                (result.map_err(|err| err.to_string()), left, made)
            };
            let all = Some(("mine".to_owned(), 1400));
            assert_eq!(make(10, &[]), (Ok(()), 0, all.clone()));
            // What followed failed only because the first one did.
            let once = [(create, Errno::ENOBUFS)];
            assert_eq!(make(11, &once), (Ok(()), 0, all.clone()));
            // Different ones, the last of them three times.
            let some = [
                (alias, Errno::EBUSY),
                (mtu, Errno::EAGAIN),
                (mtu, Errno::ENOBUFS),
                (mtu, Errno::EBUSY),
            ];
            assert_eq!(make(12, &some), (Ok(()), 0, all.clone()));
            // No more than that.
            let often = [(mtu, Errno::EBUSY); 5];
            let (result, left, made) = make(13, &often);
            assert_eq!(result, Err("cannot set MTU: EBUSY: Device or resource busy".to_owned()));
            assert_eq!((left, made), (1, Some(("mine".to_owned(), 1500))));
            // An index that is taken, and what does not pass, is no reason to wait.
            assert_eq!(make(14, &[(create, Errno::EBUSY); 2]).1, 1);
            assert_eq!(make(15, &[(alias, Errno::EPERM); 2]).1, 1);
            let (result, _, made) = make(10, &[]);
            assert!(result.unwrap_err().starts_with("cannot create bridge: E"));
            assert_eq!(made, all);
        });
        thread.unwrap().join().unwrap();
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
