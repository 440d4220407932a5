//! The segments of one instance, read: by the thread `log-out` for requests and by `log-in` when it
//! takes a store up again.
//!
//! A reader sees the segments that existed when it was made, up to their end at that time or later,
//! and needs no help of the writer: a record that is not whole yet ends its segment, a segment that
//! was removed in the meantime is skipped.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::logs::record::{Header, RECORD_HEADER, SEGMENT_HEADER, is_segment_header};
use crate::logs::segment;

/// Sequence numbers and sizes of the segments in `dir`, oldest first.
pub(crate) fn list(dir: &Path) -> Vec<(u64, u64)> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let mut found: Vec<(u64, u64)> = entries
        .filter_map(|entry| {
            let name = entry.file_name();
            let sequence = name.to_str()?.strip_suffix(".log")?.parse().ok()?;
            Some((sequence, entry.metadata().ok()?.len()))
        })
        .collect();
    found.sort_unstable();
    found
}

/// All records of an instance in the order in which they were stored.
#[derive(Debug)]
pub(crate) struct Reader {
    waiting: VecDeque<PathBuf>,
    current: Option<Cursor>,
}

/// An open segment.
#[derive(Debug)]
struct Cursor {
    file: File,
    at: u64,
    /// The record at `at`.
    header: Header,
}

impl Reader {
    pub(crate) fn open(dir: &Path) -> Self {
        let waiting = list(dir).into_iter().map(|(number, _)| segment::path(dir, number)).collect();
        Self { waiting, current: None }
    }

    /// The header of the next record, not verified.
    pub(crate) fn peek(&mut self) -> Option<Header> {
        while self.current.is_none() {
            let path = self.waiting.pop_front()?;
            self.current = File::open(path).ok().and_then(Cursor::first);
        }
        self.current.as_ref().map(|cursor| cursor.header)
    }

    /// Reads the next whole record, header included, into `buffer`.
    pub(crate) fn next(&mut self, buffer: &mut Vec<u8>) -> Option<Header> {
        loop {
            let header = self.peek()?;
            let cursor = self.current.take()?;
            if cursor.read(buffer).is_some() {
                self.current = cursor.following();
                return Some(header);
            }
        }
    }
}

impl Cursor {
    fn first(file: File) -> Option<Self> {
        let mut header = [0; SEGMENT_HEADER];
        file.read_exact_at(&mut header, 0).ok()?;
        let start = u64::try_from(SEGMENT_HEADER).ok()?;
        is_segment_header(&header).then_some(())?;
        Self::at(file, start)
    }

    fn at(file: File, at: u64) -> Option<Self> {
        let mut header = [0; RECORD_HEADER];
        file.read_exact_at(&mut header, at).ok()?;
        Some(Self { file, at, header: Header::parse(&header)? })
    }

    fn read(&self, buffer: &mut Vec<u8>) -> Option<()> {
        buffer.resize(RECORD_HEADER + self.header.body, 0);
        self.file.read_exact_at(buffer, self.at).ok()?;
        self.header.matches(buffer).then_some(())
    }

    fn end(&self) -> u64 {
        self.at + u64::try_from(RECORD_HEADER + self.header.body).unwrap_or(u64::MAX)
    }

    fn following(self) -> Option<Self> {
        let end = self.end();
        Self::at(self.file, end)
    }
}

/// What of a segment is whole.
#[derive(Debug)]
pub(crate) struct Scan {
    /// Up to here everything is whole; 0 = not even the header.
    pub(crate) valid_bytes: u64,
    /// The last whole record.
    pub(crate) newest: Option<Header>,
}

impl Scan {
    pub(crate) fn of(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        let mut header = [0; SEGMENT_HEADER];
        let mut scan = Self { valid_bytes: 0, newest: None };
        match file.read_exact_at(&mut header, 0) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(scan),
            other => other?,
        }
        if !is_segment_header(&header) {
            return Ok(scan);
        }
        scan.valid_bytes = u64::try_from(SEGMENT_HEADER).unwrap_or(0);
        let mut buffer = Vec::new();
        let mut cursor = Cursor::first(file);
        while let Some(found) = cursor.take().filter(|found| found.read(&mut buffer).is_some()) {
            scan.valid_bytes = found.end();
            scan.newest = Some(found.header);
            cursor = found.following();
        }
        Ok(scan)
    }
}
