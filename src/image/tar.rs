//! Strict reader of tar archives: v7, ustar, GNU long names, PAX.
//!
//! Runs on the fetch thread. In: a byte stream. Out: one `Member` after the other, the content of
//! the current one through `Read`. Own code instead of the crate `tar`, which keeps extended
//! headers of any size in memory, takes negative sizes and believes global headers; here every
//! number is checked and every extended header has a limit before it is read. Not here: what names
//! and types are allowed (`names.rs`, `unpack.rs`), decompression (`archive.rs`).

use std::io::{self, Read};

const BLOCK: usize = 512;
/// Largest extended header (PAX record block or GNU long name), in bytes.
pub(super) const MAX_EXTENDED_BYTES: u64 = 64 << 10;
/// Extended headers in front of one member, together, in bytes.
pub(super) const MAX_EXTENDED_TOTAL_BYTES: u64 = 1 << 20;

/// Why an archive cannot be read on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot read the archive")]
    Read {
        #[source]
        source: io::Error,
    },
    #[error("the archive is empty")]
    Empty,
    #[error("the archive ends in the middle of a member")]
    Truncated,
    #[error("malformed tar header: {what}")]
    Header { what: &'static str },
    #[error("extended header of {size} bytes is too large")]
    ExtendedTooLarge { size: u64 },
    #[error("tar members of type {:?} are not supported", char::from(*.flag))]
    Type { flag: u8 },
    #[error("sparse tar members are not supported")]
    Sparse,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    File,
    HardLink,
    Symlink,
    CharDevice,
    BlockDevice,
    Directory,
    Fifo,
}

/// Header of one member, with what extended headers said about it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Member {
    /// As it stands in the archive: not checked.
    pub(super) path: Vec<u8>,
    pub(super) kind: Kind,
    /// Permission bits, 12 of them.
    pub(super) mode: u32,
    /// Unix time in seconds, saturated.
    pub(super) mtime_s: i64,
    /// Bytes of content; 0 for everything but files.
    pub(super) size: u64,
    /// Target of a link, not checked.
    pub(super) link: Vec<u8>,
    /// Major and minor number of a device.
    pub(super) device: (u32, u32),
}

/// The archive. Reading from it gives the content of the member that `next` returned last.
pub(super) struct Reader<R> {
    input: R,
    content_left: u64,
    /// Bytes from the end of the content to the next block.
    padding: u64,
    started: bool,
}

/// What extended headers say about the next member.
#[derive(Default)]
struct Extended {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    mtime_s: Option<i64>,
    total_bytes: u64,
}

impl<R: Read> Reader<R> {
    pub(super) fn new(input: R) -> Self {
        Self { input, content_left: 0, padding: 0, started: false }
    }

    /// The next member; what was not read of the current one is skipped. `None` = end mark, or
    /// the end of the input between two members.
    pub(super) fn next(&mut self) -> Result<Option<Member>, Error> {
        let mut extended = Extended::default();
        loop {
            self.skip_content()?;
            let Some(header) = self.header()? else { return Ok(None) };
            let size = size_of(field(&header, 124, 12))?;
            match header[156] {
                b'x' => parse_pax(&self.extended(size, &mut extended)?, &mut extended)?,
                // What global headers say (path, size) could only be wrong for all members.
                b'g' => drop(self.extended(size, &mut extended)?),
                b'L' => extended.path = Some(until_nul(self.extended(size, &mut extended)?)),
                b'K' => extended.link = Some(until_nul(self.extended(size, &mut extended)?)),
                flag => {
                    let member = member(&header, flag, size, extended)?;
                    self.content_left = member.size;
                    self.padding = padding(member.size);
                    return Ok(Some(member));
                }
            }
        }
    }

    /// A checked header block. `None` = end of the archive.
    fn header(&mut self) -> Result<Option<[u8; BLOCK]>, Error> {
        let mut block = [0; BLOCK];
        let mut filled = 0;
        while filled < BLOCK {
            match self.input.read(&mut block[filled..]) {
                Ok(0) if filled == 0 && self.started => return Ok(None),
                Ok(0) if filled == 0 => return Err(Error::Empty),
                Ok(0) => return Err(Error::Truncated),
                Ok(read) => filled += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => return Err(Error::Read { source }),
            }
        }
        self.started = true;
        if block.iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        check_sum(&block)?;
        Ok(Some(block))
    }

    /// Content of an extended header.
    fn extended(&mut self, size: u64, extended: &mut Extended) -> Result<Vec<u8>, Error> {
        extended.total_bytes = extended.total_bytes.saturating_add(size);
        let too_large =
            size > MAX_EXTENDED_BYTES || extended.total_bytes > MAX_EXTENDED_TOTAL_BYTES;
        if too_large {
            return Err(Error::ExtendedTooLarge { size });
        }
        self.content_left = size;
        self.padding = padding(size);
        let mut content = Vec::new();
        self.read_to_end(&mut content).map_err(read_error)?;
        Ok(content)
    }

    fn skip_content(&mut self) -> Result<(), Error> {
        self.content_left += self.padding;
        self.padding = 0;
        let mut scratch = [0; 8 << 10];
        while self.content_left > 0 {
            self.read(&mut scratch).map_err(read_error)?;
        }
        Ok(())
    }
}

/// Content of the current member. An early end of the archive is `UnexpectedEof`.
impl<R: Read> Read for Reader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let wanted = usize::try_from(self.content_left).unwrap_or(usize::MAX).min(buffer.len());
        if wanted == 0 {
            return Ok(0);
        }
        let read = self.input.read(&mut buffer[..wanted])?;
        if read == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, Error::Truncated));
        }
        self.content_left -= read as u64;
        Ok(read)
    }
}

/// Gives an error of `Read` back its own kind.
pub(super) fn read_error(source: io::Error) -> Error {
    let truncated = |error: &(dyn std::error::Error + Send + Sync + 'static)| {
        matches!(error.downcast_ref(), Some(Error::Truncated))
    };
    match source.get_ref() {
        Some(error) if truncated(error) => Error::Truncated,
        _ => Error::Read { source },
    }
}

fn padding(size: u64) -> u64 {
    size.next_multiple_of(BLOCK as u64) - size
}

fn field(header: &[u8; BLOCK], at: usize, length: usize) -> &[u8] {
    &header[at..at + length]
}

/// Unsigned and signed sum are both in use.
fn check_sum(header: &[u8; BLOCK]) -> Result<(), Error> {
    let malformed = Error::Header { what: "checksum" };
    let Some(expected) = number(field(header, 148, 8)) else { return Err(malformed) };
    let mut unsigned: i128 = 8 * i128::from(b' ');
    let mut signed = unsigned;
    for byte in header[..148].iter().chain(&header[156..]) {
        unsigned += i128::from(*byte);
        signed += i128::from(byte.cast_signed());
    }
    if expected == unsigned || expected == signed { Ok(()) } else { Err(malformed) }
}

/// Octal text, or base-256 (two's complement) when the top bit is set. `None` = malformed.
fn number(field: &[u8]) -> Option<i128> {
    let first = *field.first()?;
    if first & 0x80 != 0 {
        let start = if first & 0x40 != 0 { -1 } else { 0 };
        let top = i128::from(first & 0x7f) | (start << 7);
        return Some(field[1..].iter().fold(top, |sum, byte| (sum << 8) | i128::from(*byte)));
    }
    let blank = |byte: &u8| *byte == b' ' || *byte == 0;
    let start = field.iter().position(|byte| !blank(byte)).unwrap_or(field.len());
    let end = field.iter().rposition(|byte| !blank(byte)).map_or(start, |last| last + 1);
    let mut value = 0;
    for byte in &field[start..end] {
        let digit = byte.wrapping_sub(b'0');
        if digit > 7 {
            return None;
        }
        value = value * 8 + i128::from(digit);
    }
    Some(value)
}

fn size_of(field: &[u8]) -> Result<u64, Error> {
    let size = number(field).and_then(|size| i64::try_from(size).ok());
    let size = size.and_then(|size| u64::try_from(size).ok());
    size.ok_or(Error::Header { what: "size" })
}

fn until_nul(mut text: Vec<u8>) -> Vec<u8> {
    text.truncate(text.iter().position(|byte| *byte == 0).unwrap_or(text.len()));
    text
}

fn member(header: &[u8; BLOCK], flag: u8, size: u64, extended: Extended) -> Result<Member, Error> {
    let path = extended.path.unwrap_or_else(|| header_path(header));
    let kind = match flag {
        // An archive without a type for directories marks them by their name.
        0 | b'0' | b'7' if path.ends_with(b"/") => Kind::Directory,
        0 | b'0' | b'7' => Kind::File,
        b'1' => Kind::HardLink,
        b'2' => Kind::Symlink,
        b'3' => Kind::CharDevice,
        b'4' => Kind::BlockDevice,
        b'5' => Kind::Directory,
        b'6' => Kind::Fifo,
        b'S' => return Err(Error::Sparse),
        flag => return Err(Error::Type { flag }),
    };
    let mode = number(field(header, 100, 8)).ok_or(Error::Header { what: "mode" })?;
    let mtime_s = match extended.mtime_s {
        Some(mtime_s) => mtime_s,
        None => saturate(number(field(header, 136, 12)).ok_or(Error::Header { what: "mtime" })?),
    };
    let device = match kind {
        Kind::CharDevice | Kind::BlockDevice => {
            (device_number(field(header, 329, 8))?, device_number(field(header, 337, 8))?)
        }
        _ => (0, 0),
    };
    Ok(Member {
        path,
        kind,
        mode: u32::try_from(mode & 0o7777).unwrap_or_default(),
        mtime_s,
        // Some writers fill in the size of the file that a hard link means; no content follows.
        size: if kind == Kind::File { extended.size.unwrap_or(size) } else { 0 },
        link: extended.link.unwrap_or_else(|| until_nul(field(header, 157, 100).to_vec())),
        device,
    })
}

fn header_path(header: &[u8; BLOCK]) -> Vec<u8> {
    let name = until_nul(field(header, 0, 100).to_vec());
    // GNU archives (`ustar` and two blanks) keep other things in the place of the prefix.
    let prefix = if field(header, 257, 6) == b"ustar\0" { field(header, 345, 155) } else { &[] };
    let mut path = until_nul(prefix.to_vec());
    if path.is_empty() {
        return name;
    }
    path.push(b'/');
    path.extend(name);
    path
}

fn device_number(field: &[u8]) -> Result<u32, Error> {
    let number = number(field).and_then(|number| u32::try_from(number).ok());
    number.ok_or(Error::Header { what: "device number" })
}

fn saturate(number: i128) -> i64 {
    i64::try_from(number).unwrap_or(if number < 0 { i64::MIN } else { i64::MAX })
}

/// Records `<length> <key>=<value>\n`. Unknown keys, among them all extended attributes, are
/// dropped; of several equal keys the last one wins.
fn parse_pax(mut records: &[u8], extended: &mut Extended) -> Result<(), Error> {
    let malformed = || Error::Header { what: "PAX record" };
    while !records.is_empty() {
        let blank = records.iter().position(|byte| *byte == b' ').ok_or_else(malformed)?;
        let length = decimal(&records[..blank]).ok_or_else(malformed)?;
        let length = usize::try_from(length).map_err(|_| malformed())?;
        let record = records.get(blank + 1..length).ok_or_else(malformed)?;
        let (record, end) = record.split_at(record.len().saturating_sub(1));
        if end != b"\n" {
            return Err(malformed());
        }
        let equals = record.iter().position(|byte| *byte == b'=').ok_or_else(malformed)?;
        take_record(&record[..equals], &record[equals + 1..], extended)?;
        records = &records[length..];
    }
    Ok(())
}

fn take_record(key: &[u8], value: &[u8], extended: &mut Extended) -> Result<(), Error> {
    match key {
        // An empty value takes back what an earlier record said.
        b"path" => extended.path = Some(value.to_vec()).filter(|path| !path.is_empty()),
        b"linkpath" => extended.link = Some(value.to_vec()).filter(|link| !link.is_empty()),
        b"size" if value.is_empty() => extended.size = None,
        b"size" => {
            let size = decimal(value).filter(|size| i64::try_from(*size).is_ok());
            extended.size = Some(size.ok_or(Error::Header { what: "PAX size" })?);
        }
        b"mtime" => extended.mtime_s = pax_time(value),
        _ if key.starts_with(b"GNU.sparse.") => return Err(Error::Sparse),
        _ => {}
    }
    Ok(())
}

/// Digits only. `None` = malformed or too large.
fn decimal(text: &[u8]) -> Option<u64> {
    if text.is_empty() || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// Seconds with an optional sign and fraction. Times do no harm, so nonsense is the latest time
/// (clamped later) instead of an error.
fn pax_time(text: &[u8]) -> Option<i64> {
    let (negative, digits) = match text.strip_prefix(b"-") {
        Some(digits) => (true, digits),
        None => (false, text),
    };
    let whole = digits.split(|byte| *byte == b'.').next()?;
    if whole.is_empty() {
        return None;
    }
    let seconds = decimal(whole).and_then(|seconds| i64::try_from(seconds).ok());
    let seconds = seconds.unwrap_or(i64::MAX);
    Some(if negative { -seconds } else { seconds })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A header block with a right checksum.
    fn header(name: &str, flag: u8, size_field: &[u8]) -> [u8; BLOCK] {
        let mut block = [0; BLOCK];
        block[..name.len()].copy_from_slice(name.as_bytes());
        block[100..107].copy_from_slice(b"0000644");
        block[124..124 + size_field.len()].copy_from_slice(size_field);
        block[136..147].copy_from_slice(b"00000000012");
        block[156] = flag;
        block[257..263].copy_from_slice(b"ustar\0");
        seal(&mut block);
        block
    }

    fn seal(block: &mut [u8; BLOCK]) {
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    }

    fn octal(size: usize) -> Vec<u8> {
        format!("{size:011o}").into_bytes()
    }

    fn archive(members: &[(&str, u8, &[u8])]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (name, flag, content) in members {
            bytes.extend(header(name, *flag, &octal(content.len())));
            bytes.extend(*content);
            bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
        }
        bytes.resize(bytes.len() + 2 * BLOCK, 0);
        bytes
    }

    /// Paths, sizes and contents of all members, or the error.
    fn list(bytes: &[u8]) -> Result<Vec<(String, Vec<u8>)>, String> {
        let mut reader = Reader::new(bytes);
        let mut found = Vec::new();
        loop {
            match reader.next().map_err(|error| error.to_string())? {
                None => return Ok(found),
                Some(member) => {
                    let mut content = Vec::new();
                    reader.read_to_end(&mut content).map_err(|error| error.to_string())?;
                    assert_eq!(content.len() as u64, member.size);
                    found.push((String::from_utf8_lossy(&member.path).into_owned(), content));
                }
            }
        }
    }

    fn pax(records: &[(&str, &str)]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (key, value) in records {
            let rest = key.len() + value.len() + 3;
            let mut length = rest + 1;
            while rest + length.to_string().len() != length {
                length += 1;
            }
            bytes.extend(format!("{length} {key}={value}\n").into_bytes());
        }
        bytes
    }

    #[test]
    fn members_and_names() {
        let long = "d/".repeat(120) + "file";
        let record = pax(&[("path", "wrong"), ("path", "right"), ("SCHILY.xattr.user.a", "b")]);
        let bytes = archive(&[
            ("a", b'0', b"content"),
            ("pax", b'x', &record),
            ("ignored", b'0', b""),
            ("././@LongLink", b'L', format!("{long}\0").as_bytes()),
            ("ignored", b'0', b"x"),
            ("global", b'g', &pax(&[("path", "../escape")])),
            ("plain", 0, b"y"),
            ("dir/", 0, b""),
        ]);
        let expect =
            [("a", "content"), ("right", ""), (long.as_str(), "x"), ("plain", "y"), ("dir/", "")];
        let expect = expect.map(|(path, content)| (path.to_owned(), content.as_bytes().to_vec()));
        assert_eq!(list(&bytes).unwrap(), expect);
    }

    #[test]
    fn content_that_is_not_read_is_skipped() {
        let big = vec![7; 3000];
        let bytes = archive(&[("big", b'0', &big), ("next", b'0', b"n")]);
        let mut reader = Reader::new(bytes.as_slice());
        assert_eq!(reader.next().unwrap().unwrap().size, 3000);
        assert_eq!(reader.next().unwrap().unwrap().path, b"next");
        assert!(reader.next().unwrap().is_none());
    }

    #[test]
    fn ends_of_an_archive() {
        let bytes = archive(&[("a", b'0', b"content")]);
        let check = |length: usize, expect: Result<usize, &str>| {
            let got = list(&bytes[..length]).map(|members| members.len());
            assert_eq!(got, expect.map_err(str::to_owned), "{length}");
        };
        check(0, Err("the archive is empty"));
        check(100, Err("the archive ends in the middle of a member"));
        check(512 + 3, Err("the archive ends in the middle of a member"));
        check(512 + 7, Err("the archive ends in the middle of a member"));
        check(1024, Ok(1));
        check(1024 + 512, Ok(1));
        check(2048, Ok(1));
        check(1024 + 100, Err("the archive ends in the middle of a member"));
    }

    #[test]
    fn malformed_headers() {
        let check = |bytes: Vec<u8>, expect: &str| assert_eq!(list(&bytes).unwrap_err(), expect);
        let one = |flag: u8, size: &[u8]| header("a", flag, size).to_vec();
        check(one(b'0', &[0xff; 12]), "malformed tar header: size");
        check(
            one(b'0', b"\x80\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"),
            "malformed tar header: size",
        );
        check(one(b'0', b"-0000000001"), "malformed tar header: size");
        check(one(b'0', b"0000000009"), "malformed tar header: size");
        check(one(b'Z', b"0"), "tar members of type 'Z' are not supported");
        check(one(b'S', b"0"), "sparse tar members are not supported");
        let mut altered = header("a", b'0', b"0");
        altered[0] = b'b';
        check(altered.to_vec(), "malformed tar header: checksum");
        check(b"plain text ".repeat(100), "malformed tar header: checksum");

        let record = |record: &[u8]| archive(&[("p", b'x', record), ("a", b'0', b"")]);
        for text in ["", "5", "x path=a\n", "99 path=a\n", "9 path=a", "8 path=a", "0 a=b\n"] {
            if text.is_empty() {
                assert!(list(&record(b"")).is_ok());
            } else {
                check(record(text.as_bytes()), "malformed tar header: PAX record");
            }
        }
        for size in ["-5", "1x", " 1", "9223372036854775808"] {
            check(record(&pax(&[("size", size)])), "malformed tar header: PAX size");
        }
        check(record(&pax(&[("GNU.sparse.major", "1")])), "sparse tar members are not supported");
    }

    #[test]
    fn limits_of_extended_headers() {
        let comment = |bytes: usize| pax(&[("comment", &"c".repeat(bytes))]);
        let limit = usize::try_from(MAX_EXTENDED_BYTES).unwrap();
        let at_limit = comment(limit - comment(0).len() - 3);
        assert_eq!(at_limit.len(), limit);
        assert!(list(&archive(&[("p", b'x', &at_limit), ("a", b'0', b"")])).is_ok());
        let over = comment(limit);
        let error = format!("extended header of {} bytes is too large", over.len());
        for flag in [b'x', b'g', b'L', b'K'] {
            assert_eq!(list(&archive(&[("p", flag, &over)])).unwrap_err(), error);
        }
        let repeated = |count: usize| {
            let mut members = vec![("p", b'x', at_limit.as_slice()); count];
            members.push(("a", b'0', b""));
            list(&archive(&members))
        };
        assert!(repeated(16).is_ok());
        assert_eq!(
            repeated(17).unwrap_err(),
            format!("extended header of {limit} bytes is too large")
        );
        // The announced size alone is refused: nothing of it has to be there.
        let huge = header("p", b'x', b"\x80\0\0\0\0\0\x01\0\0\0\0\0").to_vec();
        assert_eq!(list(&huge).unwrap_err(), "extended header of 1099511627776 bytes is too large");
    }

    #[test]
    fn numbers() {
        let check = |field: &[u8], expect| assert_eq!(number(field), expect, "{field:?}");
        check(b"0000644\0", Some(0o644));
        check(b"   644 \0", Some(0o644));
        check(b"\0\0\0\0", Some(0));
        check(b"", None);
        check(b"64 4", None);
        check(b"0x10", None);
        check(&[0x80, 0, 0, 1, 0], Some(256));
        check(&[0xff, 0xff, 0xff], Some(-1));
        check(&[0xff, 0xff, 0xfe], Some(-2));
        for (text, expect) in [
            ("12.75", Some(12)),
            ("-3.5", Some(-3)),
            ("100000000000000000000", Some(i64::MAX)),
            ("1e20", Some(i64::MAX)),
            ("", None),
        ] {
            assert_eq!(pax_time(text.as_bytes()), expect, "{text}");
        }
    }
}
