//! Form of the log segments: records with checksums, and the lines in them. Pure.
//!
//! ```text
//! segment   header (32 bytes), records
//! header    magic (8), realtime µs i64, monotonic µs u64, reserved u32, CRC-32C u32 of the 28 bytes
//! record    length u32 (of all after the CRC), CRC-32C u32 (of all after it),
//!           kind u8, flags u8, lines u16, boot id (16), realtime µs i64, monotonic µs u64,
//!           spool generation u64, spool offset after this record u64, lines
//! line      length u16, priority u8, delay µs u32 after the record's time, bytes
//! ```
//! All numbers are little endian. A record is appended by one write; reading ends at the first one
//! whose length or checksum is wrong.

/// Longest line; a longer one is split.
pub(crate) const LINE_MAX: usize = 16 * 1024;
/// A batch is written when it has grown beyond this.
pub(crate) const BATCH_BYTES: usize = 32 * 1024;
/// Longest record: a full batch and one more line.
pub(crate) const RECORD_MAX: usize = RECORD_HEADER + BATCH_BYTES + LINE_HEADER + LINE_MAX;

pub(crate) const SEGMENT_HEADER: usize = 32;
pub(crate) const RECORD_HEADER: usize = 60;
const LINE_HEADER: usize = 7;
const MAGIC: [u8; 8] = *b"AOSLOG\x00\x01";
/// Part of the record header that the checksum does not cover: length and checksum.
const UNCHECKED: usize = 8;
const DEFAULT_PRIORITY: u8 = 6;
const GAP_PRIORITY: u8 = 4;

/// When something was captured.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Stamp {
    pub(crate) boot: [u8; 16],
    /// Unix time in microseconds.
    pub(crate) real_us: i64,
    pub(crate) mono_us: u64,
}

/// How far a spool has been stored.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub(crate) struct Position {
    /// Number in the name of the spool file; grows with time within a boot.
    pub(crate) generation: u64,
    pub(crate) offset: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    Lines = 1,
    /// A container is about to be started, what follows is its output; one line tells the version.
    Started = 2,
    /// The container has ended; one line tells how.
    Exited = 3,
    /// Output was lost; one line tells how much and why.
    Gap = 4,
    /// Nobody captured for a while: what follows may be older than its time.
    Outage = 5,
    /// The instance has reached its start limit.
    GivenUp = 6,
}

/// Flag of `Kind::Exited`: the end was a failure.
pub(crate) const FAILURE: u8 = 1;

impl Kind {
    fn of(byte: u8) -> Option<Self> {
        [Self::Lines, Self::Started, Self::Exited, Self::Gap, Self::Outage, Self::GivenUp]
            .into_iter()
            .find(|kind| *kind as u8 == byte)
    }
}

/// Header of a record.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Header {
    pub(crate) kind: Kind,
    pub(crate) flags: u8,
    pub(crate) stamp: Stamp,
    pub(crate) position: Position,
    /// Bytes of the lines.
    pub(crate) body: usize,
    crc: u32,
}

impl Header {
    /// Reads the fields; `None` = this is no record. The checksum is not looked at.
    pub(crate) fn parse(bytes: &[u8; RECORD_HEADER]) -> Option<Self> {
        let length = usize::try_from(u32::from_le_bytes(array(bytes, 0))).ok()?;
        let body = length.checked_sub(RECORD_HEADER - UNCHECKED)?;
        if RECORD_HEADER + body > RECORD_MAX {
            return None;
        }
        Some(Self {
            kind: Kind::of(bytes[8])?,
            flags: bytes[9],
            stamp: Stamp {
                boot: array(bytes, 12),
                real_us: i64::from_le_bytes(array(bytes, 28)),
                mono_us: u64::from_le_bytes(array(bytes, 36)),
            },
            position: Position {
                generation: u64::from_le_bytes(array(bytes, 44)),
                offset: u64::from_le_bytes(array(bytes, 52)),
            },
            body,
            crc: u32::from_le_bytes(array(bytes, 4)),
        })
    }

    /// The record, header included, is whole.
    pub(crate) fn matches(&self, record: &[u8]) -> bool {
        record.get(UNCHECKED..).is_some_and(|checked| crc32c(checked) == self.crc)
    }
}

/// A record that is being made; its buffer is kept from one to the next.
#[derive(Debug)]
pub(crate) struct Batch {
    bytes: Vec<u8>,
    lines: u16,
}

impl Batch {
    pub(crate) fn new() -> Self {
        Self { bytes: vec![0; RECORD_HEADER], lines: 0 }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.lines == 0
    }

    /// Lines in it.
    pub(crate) fn len(&self) -> u64 {
        u64::from(self.lines)
    }

    /// Bytes of their text.
    pub(crate) fn text_bytes(&self) -> u64 {
        let headers = LINE_HEADER * usize::from(self.lines);
        u64::try_from(self.bytes.len() - RECORD_HEADER - headers).unwrap_or(0)
    }

    /// It has to be written before the next line.
    pub(crate) fn is_full(&self) -> bool {
        self.bytes.len() >= RECORD_HEADER + BATCH_BYTES
    }

    /// Adds a line of at most `LINE_MAX` bytes.
    pub(crate) fn line(&mut self, priority: u8, text: &[u8]) {
        let text = &text[..text.len().min(LINE_MAX)];
        let length = u16::try_from(text.len()).unwrap_or(u16::MAX);
        self.bytes.extend_from_slice(&length.to_le_bytes());
        self.bytes.push(priority);
        self.bytes.extend_from_slice(&0_u32.to_le_bytes());
        self.bytes.extend_from_slice(text);
        self.lines += 1;
    }

    /// Completes the record and empties the batch once `write` has seen it.
    pub(crate) fn seal<T>(
        &mut self,
        kind: Kind,
        flags: u8,
        stamp: Stamp,
        position: Position,
        write: impl FnOnce(&[u8]) -> T,
    ) -> T {
        let length = u32::try_from(self.bytes.len() - UNCHECKED).unwrap_or(u32::MAX);
        let mut header = Vec::with_capacity(RECORD_HEADER);
        header.extend_from_slice(&length.to_le_bytes());
        header.extend_from_slice(&[0; 4]);
        header.extend_from_slice(&[kind as u8, flags]);
        header.extend_from_slice(&self.lines.to_le_bytes());
        header.extend_from_slice(&stamp.boot);
        header.extend_from_slice(&stamp.real_us.to_le_bytes());
        header.extend_from_slice(&stamp.mono_us.to_le_bytes());
        header.extend_from_slice(&position.generation.to_le_bytes());
        header.extend_from_slice(&position.offset.to_le_bytes());
        self.bytes[..RECORD_HEADER].copy_from_slice(&header);
        let crc = crc32c(&self.bytes[UNCHECKED..]);
        self.bytes[4..8].copy_from_slice(&crc.to_le_bytes());
        let result = write(&self.bytes);
        self.bytes.truncate(RECORD_HEADER);
        self.lines = 0;
        result
    }
}

/// The priority of lines about lost output.
pub(crate) const fn gap_priority() -> u8 {
    GAP_PRIORITY
}

/// One stored line.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Line<'a> {
    pub(crate) priority: u8,
    pub(crate) delay_us: u32,
    pub(crate) text: &'a [u8],
}

/// The lines of a record, header included; what is cut off is left out.
pub(crate) fn lines(record: &[u8]) -> impl Iterator<Item = Line<'_>> {
    let mut rest = record.get(RECORD_HEADER..).unwrap_or_default();
    std::iter::from_fn(move || {
        let (header, tail) = rest.split_at_checked(LINE_HEADER)?;
        let length = usize::from(u16::from_le_bytes([header[0], header[1]]));
        let (text, tail) = tail.split_at_checked(length)?;
        rest = tail;
        let delay_us = u32::from_le_bytes(array(header, 3));
        Some(Line { priority: header[2], delay_us, text })
    })
}

/// Header of a new segment.
pub(crate) fn segment_header(stamp: Stamp) -> [u8; SEGMENT_HEADER] {
    let mut header = [0; SEGMENT_HEADER];
    header[..8].copy_from_slice(&MAGIC);
    header[8..16].copy_from_slice(&stamp.real_us.to_le_bytes());
    header[16..24].copy_from_slice(&stamp.mono_us.to_le_bytes());
    let crc = crc32c(&header[..28]);
    header[28..].copy_from_slice(&crc.to_le_bytes());
    header
}

pub(crate) fn is_segment_header(header: &[u8; SEGMENT_HEADER]) -> bool {
    header[..8] == MAGIC && crc32c(&header[..28]) == u32::from_le_bytes(array(header, 28))
}

/// Lines of raw output and where each ends. A line ends at a newline or NUL; empty ones are left
/// out. Without `is_end` an unfinished line stays unread, unless it is too long.
#[derive(Debug)]
pub(crate) struct Cut<'a> {
    data: &'a [u8],
    at: usize,
    is_end: bool,
}

impl<'a> Cut<'a> {
    pub(crate) fn new(data: &'a [u8], is_end: bool) -> Self {
        Self { data, at: 0, is_end }
    }

    /// Bytes that have been cut into lines so far.
    pub(crate) fn consumed(&self) -> usize {
        self.at
    }
}

impl<'a> Iterator for Cut<'a> {
    /// Priority and text.
    type Item = (u8, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let rest = &self.data[self.at..];
            let window = &rest[..rest.len().min(LINE_MAX + 1)];
            let end = window.iter().position(|byte| matches!(byte, b'\n' | 0));
            let (text, skip) = match end {
                Some(end) => (&rest[..end], end + 1),
                None if rest.len() > LINE_MAX => (&rest[..LINE_MAX], LINE_MAX),
                None if self.is_end => (rest, rest.len()),
                None => return None,
            };
            if skip == 0 {
                return None;
            }
            self.at += skip;
            if !text.is_empty() {
                return Some(prefixed(text));
            }
        }
    }
}

/// Takes a prefix off; without one the priority is the default.
fn prefixed(text: &[u8]) -> (u8, &[u8]) {
    prefix(text).unwrap_or((DEFAULT_PRIORITY, text))
}

/// A prefix `<N>` and what follows: priority in the low three bits, a facility above them.
pub(crate) fn prefix(text: &[u8]) -> Option<(u8, &[u8])> {
    let rest = text.strip_prefix(b"<")?;
    let digits = rest.iter().take(4).take_while(|byte| byte.is_ascii_digit()).count();
    if !(1..=3).contains(&digits) || rest.get(digits) != Some(&b'>') {
        return None;
    }
    let value = rest[..digits].iter().fold(0_u32, |v, digit| v * 10 + u32::from(digit - b'0'));
    let priority = u8::try_from(value & 7).unwrap_or(DEFAULT_PRIORITY);
    Some((priority, &rest[digits + 1..]))
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    std::array::from_fn(|index| bytes[at + index])
}

/// CRC-32C (Castagnoli).
fn crc32c(bytes: &[u8]) -> u32 {
    const TABLE: [u32; 256] = table();
    !bytes.iter().fold(!0_u32, |crc, byte| {
        let [low, ..] = crc.to_le_bytes();
        TABLE[usize::from(low ^ byte)] ^ (crc >> 8)
    })
}

const fn table() -> [u32; 256] {
    let mut table = [0; 256];
    let mut index = 0;
    let mut seed = 0_u32;
    while index < table.len() {
        let mut crc = seed;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 1 == 1 { (crc >> 1) ^ 0x82f6_3b78 } else { crc >> 1 };
            bit += 1;
        }
        table[index] = crc;
        index += 1;
        seed += 1;
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksum_vectors() {
        assert_eq!(crc32c(b""), 0);
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
    }

    #[test]
    fn record_round_trip() {
        let stamp = Stamp { boot: [7; 16], real_us: -5, mono_us: 99 };
        let position = Position { generation: 3, offset: 1 << 40 };
        let mut batch = Batch::new();
        batch.line(3, b"first");
        batch.line(6, &[0xff, 0, b'\n']);
        let bytes = batch.seal(Kind::Exited, FAILURE, stamp, position, <[u8]>::to_vec);
        assert!(batch.is_empty());
        let header = Header::parse(bytes[..RECORD_HEADER].try_into().unwrap()).unwrap();
        assert_eq!((header.kind, header.flags), (Kind::Exited, FAILURE));
        assert_eq!((header.stamp, header.position), (stamp, position));
        assert_eq!(RECORD_HEADER + header.body, bytes.len());
        assert!(header.matches(&bytes));
        let found: Vec<_> = lines(&bytes).map(|line| (line.priority, line.text)).collect();
        assert_eq!(found, [(3, b"first".as_slice()), (6, &[0xff, 0, b'\n'])]);
        for at in 0..bytes.len() {
            let mut broken = bytes.clone();
            broken[at] ^= 1;
            let header = Header::parse(broken[..RECORD_HEADER].try_into().unwrap());
            let whole = header.is_some_and(|header| {
                RECORD_HEADER + header.body == broken.len() && header.matches(&broken)
            });
            assert!(!whole, "bit flip at {at} goes unseen");
        }
    }

    #[test]
    fn biggest_record_is_accepted() {
        let mut batch = Batch::new();
        while !batch.is_full() {
            batch.line(6, &[b'x'; LINE_MAX + 5]);
        }
        let bytes =
            batch.seal(Kind::Lines, 0, Stamp::default(), Position::default(), <[u8]>::to_vec);
        assert!(bytes.len() <= RECORD_MAX);
        assert!(Header::parse(bytes[..RECORD_HEADER].try_into().unwrap()).is_some());
        assert!(lines(&bytes).all(|line| line.text.len() == LINE_MAX));
    }

    #[test]
    fn segment_headers() {
        let mut header = segment_header(Stamp { real_us: 5, ..Stamp::default() });
        assert!(is_segment_header(&header));
        header[9] ^= 1;
        assert!(!is_segment_header(&header));
    }

    #[test]
    fn cutting() {
        let check = |data: &[u8], is_end, expect: &[(u8, &[u8])], consumed| {
            let mut cut = Cut::new(data, is_end);
            let lines: Vec<_> = cut.by_ref().collect();
            assert_eq!((lines.as_slice(), cut.consumed()), (expect, consumed), "{data:?}");
        };
        check(b"", false, &[], 0);
        check(b"", true, &[], 0);
        check(b"a\nbc\nrest", false, &[(6, b"a"), (6, b"bc")], 5);
        check(b"a\nrest", true, &[(6, b"a"), (6, b"rest")], 6);
        check(b"\n\0\0a\0", false, &[(6, b"a")], 5);
        check(b"\0\0\0", false, &[], 3);
        check(b"<3>bad\n<13>user\n<191>x\n", false, &[(3, b"bad"), (5, b"user"), (7, b"x")], 23);
        check(
            b"<>a\n<x>a\n<1234>a\n<3\n",
            false,
            &[(6, b"<>a"), (6, b"<x>a"), (6, b"<1234>a"), (6, b"<3")],
            20,
        );
        check(b"\xff\xfe\n", false, &[(6, b"\xff\xfe")], 3);
    }

    #[test]
    fn long_lines_are_split() {
        let data = [b'x'; LINE_MAX * 2 + 10];
        let sizes =
            |is_end| Cut::new(&data, is_end).map(|(_, text)| text.len()).collect::<Vec<_>>();
        assert_eq!(sizes(false), [LINE_MAX, LINE_MAX]);
        assert_eq!(sizes(true), [LINE_MAX, LINE_MAX, 10]);
        let mut exact = vec![b'x'; LINE_MAX];
        assert_eq!(Cut::new(&exact, false).count(), 0);
        exact.push(b'\n');
        assert_eq!(Cut::new(&exact, false).count(), 1);
    }
}
