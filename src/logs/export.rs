//! The export format of the journal, parsed piece by piece. Pure.
//!
//! A field is `NAME=value` and a newline or, if its value is no plain text, `NAME`, a newline, the
//! length as 64 bits, the value, a newline; an empty line ends an entry. Of an oversized value the
//! beginning is kept and the rest is skipped without being held in memory.

/// Longest value that is kept of a field; the rest is left out.
pub(crate) const VALUE_MAX: usize = 64 * 1024;
/// Longest name of a field.
const NAME_MAX: usize = 64;

/// One entry.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Entry {
    pub(crate) cursor: String,
    /// Unix time in microseconds.
    pub(crate) real_us: i64,
    pub(crate) mono_us: u64,
    pub(crate) boot: [u8; 16],
    /// Unit of the process that wrote it; empty for messages of the kernel.
    pub(crate) unit: String,
    pub(crate) cgroup: String,
    /// The unit that PID 1 writes about.
    pub(crate) object: String,
    /// Name that a stream was opened with; empty for other transports.
    pub(crate) identifier: String,
    pub(crate) transport: String,
    /// Syslog level.
    pub(crate) priority: Option<u8>,
    pub(crate) message: Option<Vec<u8>>,
    /// Its writer wants no alert to be made of it.
    pub(crate) is_muted: bool,
}

/// Fields that `Entry` is made of besides those that are always there.
pub(crate) const FIELDS: &str = "MESSAGE,PRIORITY,_SYSTEMD_UNIT,_SYSTEMD_CGROUP,UNIT,\
    SYSLOG_IDENTIFIER,_TRANSPORT,AOS_NO_ALERT";

/// Finds entries in a stream of bytes that arrives in pieces.
#[derive(Debug, Default)]
pub(crate) struct Parser {
    entry: Entry,
    is_empty: bool,
    state: State,
    /// Line, name or value so far.
    kept: Vec<u8>,
}

#[derive(Debug, Default)]
enum State {
    /// A name, or a name and a value; ends with a newline.
    #[default]
    Line,
    /// The eight bytes of the length of the value with this name.
    Length {
        name: Vec<u8>,
    },
    /// So many bytes of the value are missing, then comes a newline.
    Value {
        name: Vec<u8>,
        left: u64,
    },
    Newline,
}

impl Parser {
    pub(crate) fn new() -> Self {
        Self { is_empty: true, ..Self::default() }
    }

    /// Takes the next piece and calls `each` with the entries that are complete now.
    pub(crate) fn feed<E>(
        &mut self,
        mut piece: &[u8],
        mut each: impl FnMut(Entry) -> Result<(), E>,
    ) -> Result<(), E> {
        while !piece.is_empty() {
            let used = match &mut self.state {
                State::Line => match piece.iter().position(|byte| *byte == b'\n') {
                    Some(end) => {
                        self.keep(&piece[..end], VALUE_MAX + NAME_MAX);
                        if let Some(entry) = self.line() {
                            each(entry)?;
                        }
                        end + 1
                    }
                    None => {
                        self.keep(piece, VALUE_MAX + NAME_MAX);
                        piece.len()
                    }
                },
                State::Length { name } => {
                    let used = piece.len().min(8 - self.kept.len());
                    self.kept.extend_from_slice(&piece[..used]);
                    if let Ok(length) = <[u8; 8]>::try_from(self.kept.as_slice()) {
                        let left = u64::from_le_bytes(length);
                        let name = std::mem::take(name);
                        self.kept.clear();
                        self.state = State::Value { name, left };
                        self.end_value();
                    }
                    used
                }
                State::Value { left, .. } => {
                    let used = usize::try_from(*left).unwrap_or(usize::MAX).min(piece.len());
                    *left -= u64::try_from(used).unwrap_or(0);
                    self.keep(&piece[..used], VALUE_MAX);
                    self.end_value();
                    used
                }
                State::Newline => {
                    self.state = State::Line;
                    1
                }
            };
            piece = &piece[used..];
        }
        Ok(())
    }

    /// The stream has ended: the entry that it ended with, if that is whole.
    pub(crate) fn end(&mut self) -> Option<Entry> {
        let is_whole = matches!(self.state, State::Line) && self.kept.is_empty() && !self.is_empty;
        is_whole.then(|| self.take())
    }

    /// The stream ended in the middle of something.
    pub(crate) fn is_broken(&self) -> bool {
        !matches!(self.state, State::Line) || !self.kept.is_empty()
    }

    fn keep(&mut self, bytes: &[u8], limit: usize) {
        let room = limit.saturating_sub(self.kept.len());
        self.kept.extend_from_slice(&bytes[..bytes.len().min(room)]);
    }

    fn take(&mut self) -> Entry {
        self.is_empty = true;
        std::mem::take(&mut self.entry)
    }

    /// A line is complete; an empty one ends the entry.
    fn line(&mut self) -> Option<Entry> {
        if self.kept.is_empty() {
            return (!self.is_empty).then(|| self.take());
        }
        let line = std::mem::take(&mut self.kept);
        match line.iter().position(|byte| *byte == b'=') {
            Some(at) => self.field(&line[..at], &line[at + 1..]),
            None => self.state = State::Length { name: line },
        }
        None
    }

    fn end_value(&mut self) {
        let State::Value { name, left: 0 } = &mut self.state else { return };
        let (name, value) = (std::mem::take(name), std::mem::take(&mut self.kept));
        self.state = State::Newline;
        self.field(&name, &value);
    }

    fn field(&mut self, name: &[u8], value: &[u8]) {
        self.is_empty = false;
        let text = || String::from_utf8_lossy(value).into_owned();
        let entry = &mut self.entry;
        match name {
            b"__CURSOR" => entry.cursor = text(),
            b"__REALTIME_TIMESTAMP" => entry.real_us = text().parse().unwrap_or(0),
            b"__MONOTONIC_TIMESTAMP" => entry.mono_us = text().parse().unwrap_or(0),
            b"_BOOT_ID" => entry.boot = crate::logs::id_bytes(&text()),
            b"_SYSTEMD_UNIT" => entry.unit = text(),
            b"_SYSTEMD_CGROUP" => entry.cgroup = text(),
            b"UNIT" => entry.object = text(),
            b"SYSLOG_IDENTIFIER" => entry.identifier = text(),
            b"_TRANSPORT" => entry.transport = text(),
            b"PRIORITY" => entry.priority = text().parse().ok().filter(|level| *level <= 7),
            b"AOS_NO_ALERT" => entry.is_muted = value == b"1",
            b"MESSAGE" => entry.message = Some(value.to_vec()),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Entries of a text that arrives in pieces of this size, and whether it ended in the middle.
    fn entries(text: &[u8], size: usize) -> (Vec<Entry>, bool) {
        let mut parser = Parser::new();
        let mut found = Vec::new();
        for piece in text.chunks(size) {
            let fed = parser.feed(piece, |entry| {
                found.push(entry);
                Ok::<(), std::convert::Infallible>(())
            });
            assert!(fed.is_ok());
        }
        let is_broken = parser.is_broken();
        found.extend(parser.end());
        (found, is_broken)
    }

    fn message(entry: &Entry) -> (i64, &[u8]) {
        (entry.real_us, entry.message.as_deref().unwrap_or(b"none"))
    }

    #[test]
    fn whatever_the_pieces() {
        let mut text = b"__CURSOR=s=1;i=2\n__REALTIME_TIMESTAMP=1700000000123456\nMESSAGE=a=b\n\
            __MONOTONIC_TIMESTAMP=77\n_BOOT_ID=0102030405060708090a0b0c0d0e0f10\n\
            _SYSTEMD_UNIT=x.service\n_SYSTEMD_CGROUP=/x\nUNIT=y\nPRIORITY=3\n_TRANSPORT=stdout\n\
            SYSLOG_IDENTIFIER=id\nAOS_NO_ALERT=1\nOTHER=z\n\n\n\n\
            __REALTIME_TIMESTAMP=5\nPRIORITY=8\n\n__REALTIME_TIMESTAMP=7\nMESSAGE\n"
            .to_vec();
        text.extend_from_slice(&4_u64.to_le_bytes());
        text.extend_from_slice(b"a\n\xff=\n\n__REALTIME_TIMESTAMP=8\nMESSAGE\n");
        let big = VALUE_MAX + 10;
        text.extend_from_slice(&u64::try_from(big).unwrap().to_le_bytes());
        text.extend_from_slice(&vec![b'x'; big]);
        text.extend_from_slice(b"\n\n__REALTIME_TIMESTAMP=9\nMESSAGE\n");
        text.extend_from_slice(&0_u64.to_le_bytes());
        text.extend_from_slice(b"\n\n__REALTIME_TIMESTAMP=10\nMESSAGE=");
        text.extend_from_slice(&vec![b'y'; 1 << 20]);
        text.extend_from_slice(b"\n\n__REALTIME_TIMESTAMP=11\nMESSAGE=last\n");
        for size in [1, 2, 3, 7, 1000, text.len()] {
            let (found, is_broken) = entries(&text, size);
            assert_eq!(found.len(), 7, "{size}");
            assert!(!is_broken);
            let first = Entry {
                cursor: "s=1;i=2".to_owned(),
                real_us: 1_700_000_000_123_456,
                mono_us: 77,
                boot: [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16],
                unit: "x.service".to_owned(),
                cgroup: "/x".to_owned(),
                object: "y".to_owned(),
                identifier: "id".to_owned(),
                transport: "stdout".to_owned(),
                priority: Some(3),
                message: Some(b"a=b".to_vec()),
                is_muted: true,
            };
            assert_eq!(found[0], first);
            assert_eq!((message(&found[1]), found[1].priority), ((5, b"none".as_slice()), None));
            assert_eq!(message(&found[2]), (7, b"a\n\xff=".as_slice()));
            assert_eq!(message(&found[3]), (8, vec![b'x'; VALUE_MAX].as_slice()));
            assert_eq!(message(&found[4]), (9, b"".as_slice()));
            let (real_us, long) = message(&found[5]);
            assert!(real_us == 10 && (VALUE_MAX..=VALUE_MAX + NAME_MAX).contains(&long.len()));
            assert_eq!(message(&found[6]), (11, b"last".as_slice()));
        }
    }

    #[test]
    fn ends_in_the_middle() {
        let check = |text: &[u8], count, expect| {
            let (found, is_broken) = entries(text, 3);
            assert_eq!((found.len(), is_broken), (count, expect), "{text:?}");
        };
        check(b"", 0, false);
        check(b"\n\n", 0, false);
        check(b"MESSAGE=a\n", 1, false);
        check(b"MESSAGE=a", 0, true);
        check(b"MESSAGE\n\x05\0\0", 0, true);
        check(b"MESSAGE\n\x02\0\0\0\0\0\0\0a", 0, true);
        check(b"MESSAGE\n\x01\0\0\0\0\0\0\0a", 0, true);
        check(b"MESSAGE\n\x01\0\0\0\0\0\0\0a\n", 1, false);
        check(b"MESSAGE\n\xff\xff\xff\xff\xff\xff\xff\xff", 0, true);
    }
}
