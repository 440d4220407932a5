//! The segments of one instance, written: append, rotate, recover after a crash.
//!
//! Thread `log-in` alone writes. `<dir>/<sequence>.log`, append only. A crash leaves at most one
//! record unfinished; it is cut off before the next one is written.

use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use crate::logs::reader::{self, Scan};
use crate::logs::record::{Position, SEGMENT_HEADER, Stamp, segment_header};
use crate::sys::fs::make_dirs;

/// A segment is closed when the next record would make it larger.
pub(crate) const SEGMENT_BYTES: u64 = 128 * 1024;
/// Digits of the sequence number in a file name, so that names sort by age.
const SEQUENCE_DIGITS: usize = 10;

/// Writer of the segments of one instance.
#[derive(Debug)]
pub(crate) struct Segments {
    dir: PathBuf,
    /// Sequence number and size of all segments, oldest first; the last one is being written.
    list: VecDeque<(u64, u64)>,
    /// The last of the list, when it is open for writing.
    file: Option<File>,
    is_dirty: bool,
}

impl Segments {
    /// Takes what is in `dir`, which need not exist. Nothing is opened yet.
    pub(crate) fn find(dir: &Path) -> Self {
        let list = reader::list(dir).into_iter().collect();
        Self { dir: dir.to_owned(), list, file: None, is_dirty: false }
    }

    /// Bytes of all segments.
    pub(crate) fn bytes(&self) -> u64 {
        self.list.iter().map(|(_, size)| size).sum()
    }

    /// Where the newest record says that a spool of this boot has been stored up to.
    pub(crate) fn position(&self, boot: &[u8; 16]) -> Option<Position> {
        let newest = |(sequence, _): &(u64, u64)| {
            let scan = Scan::of(&path(&self.dir, *sequence)).ok()?;
            scan.newest.map(|header| (header.stamp.boot, header.position))
        };
        let (found, position) = self.list.iter().rev().find_map(newest)?;
        (found == *boot).then_some(position)
    }

    /// Appends a whole record. After an error the segment is as it was.
    pub(crate) fn append(&mut self, stamp: Stamp, record: &[u8]) -> io::Result<()> {
        let length = u64::try_from(record.len()).unwrap_or(u64::MAX);
        let room = |size: u64| size.saturating_add(length) <= SEGMENT_BYTES;
        let fits = self.list.back().is_some_and(|(_, size)| room(*size));
        let mut file = match self.file.take() {
            Some(file) if fits => file,
            Some(file) => {
                file.sync_data()?;
                self.start_segment(stamp)?
            }
            None => match self.reopen()? {
                Some(file) if self.list.back().is_some_and(|(_, size)| room(*size)) => file,
                _ => self.start_segment(stamp)?,
            },
        };
        let size = self.list.back().map_or(0, |(_, size)| *size);
        if let Err(error) = file.write_all(record) {
            // Half a record would hide everything after it.
            file.set_len(size)?;
            self.file = Some(file);
            return Err(error);
        }
        if let Some((_, known)) = self.list.back_mut() {
            *known = size + length;
        }
        self.file = Some(file);
        self.is_dirty = true;
        Ok(())
    }

    /// Opens the newest segment and cuts off what a crash left unfinished.
    fn reopen(&mut self) -> io::Result<Option<File>> {
        let Some((sequence, size)) = self.list.back_mut() else { return Ok(None) };
        let path = path(&self.dir, *sequence);
        let scan = match Scan::of(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.list.pop_back();
                return Ok(None);
            }
            other => other?,
        };
        if scan.valid_bytes == 0 {
            fs::remove_file(&path)?;
            self.list.pop_back();
            return Ok(None);
        }
        let file = OpenOptions::new().append(true).open(&path)?;
        if scan.valid_bytes != *size {
            file.set_len(scan.valid_bytes)?;
            *size = scan.valid_bytes;
        }
        Ok(Some(file))
    }

    fn start_segment(&mut self, stamp: Stamp) -> io::Result<File> {
        make_dirs(&self.dir, 0o700)?;
        let sequence = self.list.back().map_or(0, |(sequence, _)| sequence + 1);
        let path = path(&self.dir, sequence);
        let mut file = OpenOptions::new().append(true).create_new(true).mode(0o600).open(&path)?;
        if let Err(error) = file.write_all(&segment_header(stamp)) {
            // The next attempt makes it anew.
            let _ = fs::remove_file(&path);
            return Err(error);
        }
        self.list.push_back((sequence, u64::try_from(SEGMENT_HEADER).unwrap_or(0)));
        Ok(file)
    }

    /// Removes the oldest segment unless it is the only one; true when there is less than before.
    pub(crate) fn drop_oldest(&mut self) -> bool {
        if self.list.len() < 2 {
            return false;
        }
        let Some((sequence, _)) = self.list.pop_front() else { return false };
        remove(&path(&self.dir, sequence));
        true
    }

    /// Removes all segments.
    pub(crate) fn clear(&mut self) {
        self.file = None;
        while self.drop_oldest() {}
        if let Some((sequence, _)) = self.list.pop_back() {
            remove(&path(&self.dir, sequence));
        }
    }

    /// Something was written since the last flush.
    pub(crate) fn is_dirty(&self) -> bool {
        self.is_dirty && self.file.is_some()
    }

    /// Flushes what was written since the last time.
    pub(crate) fn sync(&mut self) -> io::Result<()> {
        match &self.file {
            Some(file) if std::mem::take(&mut self.is_dirty) => file.sync_data(),
            _ => Ok(()),
        }
    }

    /// Gives the descriptor back; the next record opens the segment again.
    pub(crate) fn close(&mut self) {
        self.file = None;
    }
}

fn remove(path: &Path) {
    if let Err(err) = fs::remove_file(path) {
        log::warn!("cannot remove a log segment path={} err={err}", path.display());
    }
}

/// Path of one segment.
pub(crate) fn path(dir: &Path, sequence: u64) -> PathBuf {
    dir.join(format!("{sequence:0SEQUENCE_DIGITS$}.log"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::logs::reader::Reader;
    use crate::logs::record::{Batch, Kind, lines};

    fn record(text: &str, position: Position) -> Vec<u8> {
        let mut batch = Batch::new();
        batch.line(6, text.as_bytes());
        batch.seal(Kind::Lines, 0, Stamp { boot: [1; 16], ..Stamp::default() }, position, |bytes| {
            bytes.to_vec()
        })
    }

    fn texts(dir: &Path) -> Vec<String> {
        let mut reader = Reader::open(dir);
        let mut buffer = Vec::new();
        let mut found = Vec::new();
        while reader.next(&mut buffer).is_some() {
            found.extend(lines(&buffer).map(|line| String::from_utf8(line.text.to_vec()).unwrap()));
        }
        found
    }

    #[test]
    fn append_reopen_rotate() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("new/i1");
        let mut segments = Segments::find(&dir);
        assert_eq!((segments.bytes(), segments.position(&[1; 16])), (0, None));
        let long = "x".repeat(10_000);
        for index in 0..40_u64 {
            let position = Position { generation: 1, offset: index };
            segments
                .append(Stamp::default(), &record(&format!("{index} {long}"), position))
                .unwrap();
            if index % 7 == 0 {
                segments = Segments::find(&dir);
            }
        }
        assert_eq!(texts(&dir).len(), 40);
        assert!(segments.list.len() >= 4);
        assert!(segments.list.iter().all(|(_, size)| *size <= SEGMENT_BYTES));
        assert_eq!(segments.position(&[1; 16]), Some(Position { generation: 1, offset: 39 }));
        assert_eq!(segments.position(&[2; 16]), None);
        while segments.drop_oldest() {}
        assert_eq!(segments.list.len(), 1);
        assert!(texts(&dir).last().unwrap().starts_with("39 "));
        assert_eq!(segments.bytes(), Segments::find(&dir).bytes());
    }

    /// A power cut at any byte of the last record: everything before stays, writing goes on.
    #[test]
    fn cut_at_every_byte_of_the_last_record() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path();
        let mut segments = Segments::find(dir);
        let position = |offset| Position { generation: 9, offset };
        segments.append(Stamp::default(), &record("first", position(1))).unwrap();
        let whole = segments.bytes();
        segments.append(Stamp::default(), &record("second", position(2))).unwrap();
        let all = fs::read(path(dir, 0)).unwrap();
        for length in 0..all.len() {
            crate::sys::fs::write_plain(&path(dir, 0), &all[..length], 0o600).unwrap();
            let mut segments = Segments::find(dir);
            let survives = u64::try_from(length).unwrap() >= whole;
            let before = if survives { vec!["first"] } else { vec![] };
            assert_eq!(texts(dir), before, "cut at {length}");
            assert_eq!(segments.position(&[1; 16]), survives.then(|| position(1)));
            segments.append(Stamp::default(), &record("third", position(3))).unwrap();
            let mut expect = before;
            expect.push("third");
            assert_eq!(texts(dir), expect, "cut at {length}");
            while segments
                .list
                .pop_back()
                .is_some_and(|(n, _)| fs::remove_file(path(dir, n)).is_ok())
            {}
        }
    }
}
