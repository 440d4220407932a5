//! Pure: DNS messages as far as a responder and forwarder needs them. Input comes from services
//! and may be hostile: nothing here panics, loops or follows pointers in a question.

use std::net::Ipv4Addr;

const HEADER: usize = 12;
const MAX_LABEL: usize = 63;
const MAX_NAME: usize = 255;
/// Records behind the question that are looked at in search of an OPT record.
const MAX_RECORDS: usize = 8;

const FLAG_RESPONSE: u16 = 0x8000;
const FLAG_AUTHORITATIVE: u16 = 0x0400;
const FLAG_TRUNCATED: u16 = 0x0200;
const FLAG_RECURSION_DESIRED: u16 = 0x0100;
const FLAG_RECURSION_AVAILABLE: u16 = 0x0080;
const OPCODE_MASK: u16 = 0x7800;
const CLASS_IN: u16 = 1;
pub(super) const TYPE_A: u16 = 1;
pub(super) const TYPE_PTR: u16 = 12;
const TYPE_OPT: u16 = 41;
/// Largest question that is read, and largest datagram that we promise to take.
pub(super) const MAX_QUERY: usize = 1232;
const OPT_PAYLOAD: u16 = 1232;
/// What every resolver takes as a datagram.
const LEAST_PAYLOAD: u16 = 512;

/// Response codes.
pub(super) const NO_ERROR: u16 = 0;
pub(super) const FORMAT_ERROR: u16 = 1;
pub(super) const SERVER_FAILURE: u16 = 2;
pub(super) const NO_SUCH_NAME: u16 = 3;
pub(super) const NOT_IMPLEMENTED: u16 = 4;
pub(super) const REFUSED: u16 = 5;

/// A question that can be answered.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Query<'a> {
    id: u16,
    flags: u16,
    /// Lower case, labels joined by dots, no dot at the end; empty for the root and for names that
    /// cannot be written so.
    pub(super) name: String,
    pub(super) kind: u16,
    /// The question section as it came.
    pub(super) question: &'a [u8],
    /// Largest datagram that the resolver takes, if it says so in an OPT record.
    payload: Option<u16>,
}

/// Why a packet is no question for us.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Unfit {
    /// Not even a query: no answer, or two responders could talk to each other for ever.
    Silent,
    /// Answered with this code.
    Code(u16),
}

/// Reads a query.
pub(super) fn parse(packet: &[u8]) -> Result<Query<'_>, Unfit> {
    let header = |at| u16_at(packet, at).ok_or(Unfit::Silent);
    let (id, flags) = (header(0)?, header(2)?);
    let [questions, answers, authorities, additional] =
        [header(4)?, header(6)?, header(8)?, header(10)?];
    if flags & FLAG_RESPONSE != 0 {
        return Err(Unfit::Silent);
    }
    if packet.len() > MAX_QUERY {
        return Err(Unfit::Code(FORMAT_ERROR));
    }
    if flags & OPCODE_MASK != 0 {
        return Err(Unfit::Code(NOT_IMPLEMENTED));
    }
    if (questions, answers, authorities) != (1, 0, 0) {
        return Err(Unfit::Code(FORMAT_ERROR));
    }
    let malformed = Unfit::Code(FORMAT_ERROR);
    let (name, end) = read_name(packet).ok_or(malformed)?;
    let kind = u16_at(packet, end).ok_or(malformed)?;
    let class = u16_at(packet, end + 2).ok_or(malformed)?;
    if class != CLASS_IN {
        return Err(Unfit::Code(NOT_IMPLEMENTED));
    }
    let question = &packet[HEADER..end + 4];
    let payload = options(&packet[end + 4..], additional).ok_or(malformed)?;
    Ok(Query { id, flags, name, kind, question, payload })
}

/// Name of the question and the position behind it.
fn read_name(packet: &[u8]) -> Option<(String, usize)> {
    let (mut name, mut writable, mut at) = (String::new(), true, HEADER);
    loop {
        let length = usize::from(*packet.get(at)?);
        if length == 0 {
            return Some((if writable { name } else { String::new() }, at + 1));
        }
        // The empty label at the end counts, too.
        if length > MAX_LABEL || at + 1 + length - HEADER >= MAX_NAME {
            return None;
        }
        if !name.is_empty() {
            name.push('.');
        }
        for byte in packet.get(at + 1..at + 1 + length)? {
            writable &= byte.is_ascii_graphic() && *byte != b'.';
            name.push(char::from(byte.to_ascii_lowercase()));
        }
        at += 1 + length;
    }
}

/// The payload in an OPT record, if there is one; `None` = the records are malformed.
fn options(mut records: &[u8], count: u16) -> Option<Option<u16>> {
    for _ in 0..usize::from(count).min(MAX_RECORDS) {
        // The name of an OPT record is the root; other records are of no interest.
        if records.first() != Some(&0) {
            return Some(None);
        }
        let data = usize::from(u16_at(records, 9)?);
        let rest = records.get(11..)?.get(data..)?;
        if u16_at(records, 1)? == TYPE_OPT {
            return u16_at(records, 3).map(Some);
        }
        records = rest;
    }
    Some(None)
}

/// Data of an answer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Answer {
    Address(Ipv4Addr),
    /// A name with dots.
    Name(String),
}

impl Query<'_> {
    /// An answer of our own, with or without a record.
    pub(super) fn answer(&self, answer: Option<&Answer>) -> Vec<u8> {
        self.response(FLAG_AUTHORITATIVE | NO_ERROR, answer)
    }

    pub(super) fn refuse(&self, code: u16) -> Vec<u8> {
        self.response(code, None)
    }

    /// Says that the answer does not fit: the resolver asks again over TCP.
    pub(super) fn truncated(&self) -> Vec<u8> {
        self.response(FLAG_TRUNCATED, None)
    }

    /// Largest datagram that the resolver takes.
    pub(super) fn payload(&self) -> usize {
        usize::from(self.payload.unwrap_or(LEAST_PAYLOAD).max(LEAST_PAYLOAD))
    }

    fn response(&self, flags: u16, answer: Option<&Answer>) -> Vec<u8> {
        let recursion = self.flags & FLAG_RECURSION_DESIRED | FLAG_RECURSION_AVAILABLE;
        let data = answer.map(record_data);
        let mut packet = Vec::with_capacity(128);
        for field in [
            self.id,
            FLAG_RESPONSE | recursion | flags,
            1,
            u16::from(data.is_some()),
            0,
            u16::from(self.payload.is_some()),
        ] {
            packet.extend_from_slice(&field.to_be_bytes());
        }
        packet.extend_from_slice(self.question);
        if let Some((kind, data)) = data {
            record(&mut packet, kind, &data);
        }
        if self.payload.is_some() {
            let [high, low] = OPT_PAYLOAD.to_be_bytes();
            packet.extend_from_slice(&[0, 0, 41, high, low, 0, 0, 0, 0, 0, 0]);
        }
        packet
    }
}

/// A record whose name is that of the question, valid for this moment only.
fn record(packet: &mut Vec<u8>, kind: u16, data: &[u8]) {
    packet.extend_from_slice(&[0xc0, 0x0c]);
    packet.extend_from_slice(&kind.to_be_bytes());
    packet.extend_from_slice(&CLASS_IN.to_be_bytes());
    packet.extend_from_slice(&[0; 4]);
    let length = u16::try_from(data.len()).expect("names are cut at 255 bytes");
    packet.extend_from_slice(&length.to_be_bytes());
    packet.extend_from_slice(data);
}

fn record_data(answer: &Answer) -> (u16, Vec<u8>) {
    match answer {
        Answer::Address(address) => (TYPE_A, address.octets().to_vec()),
        Answer::Name(name) => (TYPE_PTR, encode_name(name)),
    }
}

/// What cannot be encoded ends the name.
fn encode_name(name: &str) -> Vec<u8> {
    let mut data = Vec::with_capacity(name.len() + 2);
    for label in name.split('.') {
        let Ok(length) = u8::try_from(label.len()) else { break };
        let fits = data.len() + label.len() + 2 <= MAX_NAME;
        if length == 0 || usize::from(length) > MAX_LABEL || !fits {
            break;
        }
        data.push(length);
        data.extend_from_slice(label.as_bytes());
    }
    data.push(0);
    data
}

/// Answer to a packet that could not be read: its header with a code.
pub(super) fn bare_refusal(packet: &[u8], code: u16) -> Vec<u8> {
    let id = u16_at(packet, 0).unwrap_or(0);
    let flags = u16_at(packet, 2).unwrap_or(0) & (OPCODE_MASK | FLAG_RECURSION_DESIRED);
    let mut response = Vec::with_capacity(HEADER);
    response.extend_from_slice(&id.to_be_bytes());
    response.extend_from_slice(&(FLAG_RESPONSE | flags | code).to_be_bytes());
    response.resize(HEADER, 0);
    response
}

/// Puts another id on a message.
pub(super) fn set_id(packet: &mut [u8], id: u16) {
    if let Some(field) = packet.get_mut(..2) {
        field.copy_from_slice(&id.to_be_bytes());
    }
}

pub(super) fn id(packet: &[u8]) -> u16 {
    u16_at(packet, 0).unwrap_or(0)
}

/// Whether `response` is an answer to the question of a query that was sent with `id`.
pub(super) fn answers(response: &[u8], id: u16, question: &[u8]) -> bool {
    u16_at(response, 0) == Some(id)
        && u16_at(response, 2).is_some_and(|flags| flags & FLAG_RESPONSE != 0)
        && response.get(HEADER..HEADER + question.len()) == Some(question)
}

/// The address in a name such as `2.0.17.172.in-addr.arpa`.
pub(super) fn reverse_address(name: &str) -> Option<Ipv4Addr> {
    let digits = name.strip_suffix(".in-addr.arpa")?;
    let mut octets = [0; 4];
    let mut parts = digits.split('.').rev();
    for octet in &mut octets {
        *octet = parts.next()?.parse().ok()?;
    }
    parts.next().is_none().then(|| Ipv4Addr::from(octets))
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A query as a resolver sends it.
    pub(in super::super) fn query(id: u16, name: &str, kind: u16, options: bool) -> Vec<u8> {
        let mut packet = Vec::new();
        for field in [id, FLAG_RECURSION_DESIRED, 1, 0, 0, u16::from(options)] {
            packet.extend_from_slice(&field.to_be_bytes());
        }
        packet.extend(encode_name(name));
        packet.extend_from_slice(&kind.to_be_bytes());
        packet.extend_from_slice(&CLASS_IN.to_be_bytes());
        if options {
            packet.extend_from_slice(&[0, 0, 41, 2, 0, 0, 0, 0, 0, 0, 0]);
        }
        packet
    }

    #[test]
    fn answers_are_built_byte_for_byte() {
        let packet = query(0x1234, "Cam.net1", TYPE_A, true);
        let query = parse(&packet).unwrap();
        assert_eq!((query.name.as_str(), query.kind), ("cam.net1", TYPE_A));
        let answer = query.answer(Some(&Answer::Address([172, 17, 0, 2].into())));
        let expect = [
            &[0x12, 0x34, 0x85, 0x80, 0, 1, 0, 1, 0, 0, 0, 1][..],
            b"\x03Cam\x04net1\x00\x00\x01\x00\x01",
            &[0xc0, 0x0c, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4, 172, 17, 0, 2],
            &[0, 0, 41, 0x04, 0xd0, 0, 0, 0, 0, 0, 0],
        ]
        .concat();
        assert_eq!(answer, expect);
        let plain = super::tests::query(7, "a", 28, false);
        let nothing = parse(&plain).unwrap().answer(None);
        assert_eq!(nothing[..12], [0, 7, 0x85, 0x80, 0, 1, 0, 0, 0, 0, 0, 0]);
        let refused = parse(&plain).unwrap().refuse(NO_SUCH_NAME);
        assert_eq!(refused[2..4], [0x81, 0x83]);
        let cut = parse(&plain).unwrap().truncated();
        assert_eq!(cut[2..4], [0x83, 0x80]);
        let name = parse(&plain).unwrap().answer(Some(&Answer::Name("i.n".to_owned())));
        assert!(name.ends_with(b"\x00\x05\x01i\x01n\x00"));
    }

    #[test]
    fn unfit_packets() {
        let good = query(1, "a.b", TYPE_A, true);
        let check = |change: &dyn Fn(&mut Vec<u8>), expect: Unfit| {
            let mut packet = good.clone();
            change(&mut packet);
            assert_eq!(parse(&packet), Err(expect));
        };
        check(&|p| p.truncate(11), Unfit::Silent);
        check(&|p| p[2] |= 0x80, Unfit::Silent);
        check(&|p| p[2] |= 0x28, Unfit::Code(NOT_IMPLEMENTED));
        check(&|p| p[5] = 2, Unfit::Code(FORMAT_ERROR));
        check(&|p| p[7] = 1, Unfit::Code(FORMAT_ERROR));
        check(&|p| p[12] = 0xc0, Unfit::Code(FORMAT_ERROR));
        check(&|p| p[12] = 60, Unfit::Code(FORMAT_ERROR));
        check(&|p| p.truncate(18), Unfit::Code(FORMAT_ERROR));
        check(&|p| p[20] = 3, Unfit::Code(NOT_IMPLEMENTED));
        check(&|p| p.truncate(23), Unfit::Code(FORMAT_ERROR));
        check(&|p| p.resize(MAX_QUERY + 1, 0), Unfit::Code(FORMAT_ERROR));
        let refusal = bare_refusal(&good, FORMAT_ERROR);
        assert_eq!(refusal, [0, 1, 0x81, 1, 0, 0, 0, 0, 0, 0, 0, 0]);
        let long = query(1, &vec!["a".repeat(63); 4].join("."), TYPE_A, false);
        assert!(parse(&long).is_err() || parse(&long).unwrap().name.len() <= MAX_NAME);
    }

    #[test]
    fn payloads() {
        let check = |options: bool, size: u16, expect: usize| {
            let mut packet = query(1, "a", TYPE_A, options);
            if options {
                let at = packet.len() - 8;
                packet[at..at + 2].copy_from_slice(&size.to_be_bytes());
            }
            assert_eq!(parse(&packet).unwrap().payload(), expect);
        };
        check(false, 0, 512);
        check(true, 0, 512);
        check(true, 1232, 1232);
        check(true, u16::MAX, 65_535);
    }

    /// A label of another length, or a pointer to somewhere, wherever that is possible.
    #[test]
    fn hostile_names() {
        let good = query(1, "www.example.net1", TYPE_A, false);
        for at in HEADER..good.len() - 4 {
            for byte in 0..=u8::MAX {
                let mut packet = good.clone();
                packet[at] = byte;
                if let Ok(query) = parse(&packet) {
                    assert!(query.name.len() <= MAX_NAME && query.question.len() <= good.len());
                    assert!(parse(&query.answer(None)) == Err(Unfit::Silent));
                }
            }
        }
        // 255 bytes are a name, one more is none.
        for (last, expect) in [(61, true), (62, false)] {
            let labels = [63, 63, 63, last].map(|length| "a".repeat(length)).join(".");
            let mut packet = query(1, "", TYPE_A, false);
            packet.truncate(HEADER);
            for label in labels.split('.') {
                packet.push(u8::try_from(label.len()).unwrap());
                packet.extend_from_slice(label.as_bytes());
            }
            packet.extend_from_slice(&[0, 0, 1, 0, 1]);
            assert_eq!(parse(&packet).is_ok(), expect, "{last}");
        }
        // What cannot be written as text is nobody's name.
        let mut dotted = query(1, "ab", TYPE_A, false);
        dotted[14] = b'.';
        assert_eq!(parse(&dotted).unwrap().name, "");
    }

    #[test]
    fn reverse_names() {
        for (name, expect) in [
            ("2.0.17.172.in-addr.arpa", Some([172, 17, 0, 2])),
            ("2.0.17.in-addr.arpa", None),
            ("1.2.0.17.172.in-addr.arpa", None),
            ("256.0.17.172.in-addr.arpa", None),
            ("2.0.17.172", None),
        ] {
            assert_eq!(reverse_address(name), expect.map(Ipv4Addr::from), "{name}");
        }
    }

    #[test]
    fn responses_must_match() {
        let sent = query(9, "a.b", TYPE_A, false);
        let mut response = sent.clone();
        response[2] |= 0x80;
        let question = &sent[12..];
        assert!(answers(&response, 9, question));
        assert!(!answers(&response, 8, question));
        assert!(!answers(&sent, 9, question));
        response[13] = b'x';
        assert!(!answers(&response, 9, question));
    }

    proptest! {
        #[test]
        fn any_packet_is_survived(packet in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(query) = parse(&packet) {
                let answer = query.answer(Some(&Answer::Name(query.name.clone())));
                prop_assert!(answer.len() < 1024);
            }
        }

        #[test]
        fn damaged_queries_are_survived(at in 0usize..40, byte: u8) {
            let mut packet = query(1, "0.subj.svc.net1", TYPE_A, true);
            if let Some(place) = packet.get_mut(at) {
                *place = byte;
            }
            let _ = parse(&packet).map(|query| query.refuse(REFUSED));
        }
    }
}
