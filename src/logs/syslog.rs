//! Text files of a syslog daemon, followed for alerts where there is no journal.
//!
//! Thread `log-in`. The daemon that writes them is not touched: what it appends is read, over
//! rotation by renaming or by truncation. Only lines that tell their level can become alerts, as
//! busybox writes them (`daemon.err`) or with a number in front (`<27>`). However busy the log is,
//! it wakes the thread once a second at most: the kernel folds equal announcements that nobody has
//! fetched, so they are not fetched before that.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

use crate::logs::system::{self, SystemLine};
use crate::ports::Now;

/// Shortest time between two readings.
const HOLD: Duration = Duration::from_secs(1);
/// How often a file that has gone is looked for.
const RETRY: Duration = Duration::from_secs(60);
/// Bytes of one file in one reading.
const TURN_BYTES: u64 = 1 << 20;
const PIECE_BYTES: usize = 16 * 1024;
/// Longest line; the rest is left out.
const LINE_MAX: usize = 16 * 1024;

/// The files.
#[derive(Debug)]
pub(crate) struct SyslogWatch {
    inotify: Inotify,
    files: Vec<Followed>,
    /// Something was announced.
    is_due: bool,
    /// Not before this.
    next_at: Duration,
}

#[derive(Debug)]
struct Followed {
    path: PathBuf,
    file: Option<File>,
    /// What was read of it, in bytes.
    offset: u64,
    /// The beginning of an unfinished line.
    rest: Vec<u8>,
}

impl SyslogWatch {
    /// From the present ends of the files on; `None` = there are none.
    pub(crate) fn open(paths: Vec<PathBuf>) -> io::Result<Option<Self>> {
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
        let mut watch = Self { inotify, files: Vec::new(), is_due: false, next_at: Duration::ZERO };
        for path in paths {
            let mut followed = Followed { path, file: None, offset: 0, rest: Vec::new() };
            if watch.take_up(&mut followed) {
                followed.offset = size(&followed);
                watch.files.push(followed);
            }
        }
        Ok(Some(watch).filter(|watch| !watch.files.is_empty()))
    }

    pub(crate) fn descriptor(&self) -> RawFd {
        self.inotify.as_fd().as_raw_fd()
    }

    /// Something was announced.
    pub(crate) fn note(&mut self) {
        self.is_due = true;
    }

    /// When `read` has something to do, CLOCK_MONOTONIC.
    pub(crate) fn next_read(&self) -> Option<Duration> {
        let is_missing = self.files.iter().any(|followed| followed.file.is_none());
        (self.is_due || is_missing).then_some(self.next_at)
    }

    /// Calls `each` with the lines that have been added.
    pub(crate) fn read(&mut self, now: Now, mut each: impl FnMut(SystemLine)) {
        if self.next_read().is_none_or(|at| now.mono < at) {
            return;
        }
        self.is_due = false;
        // What they say is of no interest: all files are looked at.
        while self.inotify.read_events().is_ok_and(|events| !events.is_empty()) {}
        let mut files = std::mem::take(&mut self.files);
        for followed in &mut files {
            self.is_due |= followed.read(now, &mut each);
            if followed.was_replaced() {
                followed.finish(now, &mut each);
                // The new file's beginning comes with the next reading.
                self.is_due |= self.take_up(followed);
            }
        }
        self.files = files;
        let is_missing = self.files.iter().any(|followed| followed.file.is_none());
        self.next_at = now.mono + if is_missing && !self.is_due { RETRY } else { HOLD };
    }

    /// Opens a file at its beginning; false = it is not there.
    fn take_up(&self, followed: &mut Followed) -> bool {
        let flags = AddWatchFlags::IN_MODIFY
            | AddWatchFlags::IN_ATTRIB
            | AddWatchFlags::IN_MOVE_SELF
            | AddWatchFlags::IN_DELETE_SELF;
        followed.offset = 0;
        followed.rest.clear();
        followed.file = File::open(&followed.path).ok();
        followed.file.is_some() && self.inotify.add_watch(&followed.path, flags).is_ok()
    }
}

fn size(followed: &Followed) -> u64 {
    followed.file.as_ref().and_then(|file| file.metadata().ok()).map_or(0, |known| known.len())
}

impl Followed {
    /// Reads what was added, at most `TURN_BYTES`; true = there is more.
    fn read(&mut self, now: Now, each: &mut impl FnMut(SystemLine)) -> bool {
        let size = size(self);
        if size < self.offset {
            self.offset = 0;
            self.rest.clear();
        }
        let end = size.min(self.offset.saturating_add(TURN_BYTES));
        let mut piece = [0; PIECE_BYTES];
        while self.offset < end {
            let Some(file) = &mut self.file else { return false };
            let room = usize::try_from(end - self.offset).unwrap_or(PIECE_BYTES).min(PIECE_BYTES);
            let read =
                file.seek(SeekFrom::Start(self.offset)).and_then(|_| file.read(&mut piece[..room]));
            let Ok(length @ 1..) = read else { return false };
            self.offset += u64::try_from(length).unwrap_or(0);
            self.take(&piece[..length], now, each);
        }
        end < size
    }

    fn take(&mut self, piece: &[u8], now: Now, each: &mut impl FnMut(SystemLine)) {
        for part in piece.split_inclusive(|byte| *byte == b'\n') {
            let (text, is_end) = match part.strip_suffix(b"\n") {
                Some(text) => (text, true),
                None => (part, false),
            };
            let room = LINE_MAX.saturating_sub(self.rest.len());
            self.rest.extend_from_slice(&text[..text.len().min(room)]);
            if is_end {
                if let Some(line) = system::parse(&self.rest, now.wall_ms) {
                    each(line);
                }
                self.rest.clear();
            }
        }
    }

    /// The path leads to another file now, or nowhere.
    fn was_replaced(&self) -> bool {
        let identity = |known: &fs::Metadata| (known.dev(), known.ino());
        let open = self.file.as_ref().and_then(|file| file.metadata().ok());
        let there = path_metadata(&self.path);
        open.as_ref().map(identity) != there.as_ref().map(identity) || open.is_none()
    }

    /// Reads the last lines of a file that was replaced.
    fn finish(&mut self, now: Now, each: &mut impl FnMut(SystemLine)) {
        self.read(now, each);
        self.file = None;
    }
}

fn path_metadata(path: &Path) -> Option<fs::Metadata> {
    fs::metadata(path).ok()
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn append(path: &Path, text: &str) {
        let mut file = File::options().append(true).create(true).open(path).unwrap();
        file.write_all(text.as_bytes()).unwrap();
    }

    #[test]
    fn over_rotation_and_truncation() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("messages");
        assert!(SyslogWatch::open(vec![path.clone()]).unwrap().is_none());
        append(&path, "Nov 25 10:00:00 host daemon.err old[1]: old\n");
        let mut watch = SyslogWatch::open(vec![path.clone()]).unwrap().unwrap();
        assert_eq!(watch.next_read(), None);
        let mut now = Now { wall_ms: 1_700_000_000_000, ..Now::default() };
        let mut check = |expect: &[&str]| {
            let mut found = Vec::new();
            // Announced or not: a reading finds what is there.
            for _ in 0..3 {
                watch.note();
                now.mono += HOLD;
                watch.read(now, |line| found.push(String::from_utf8(line.message).unwrap()));
            }
            assert_eq!(found, expect);
        };
        check(&[]);
        append(
            &path,
            "Nov 25 10:00:01 host daemon.err x[1]: one\nNov 25 10:00:01 host daemon.err x: t",
        );
        check(&["one"]);
        append(&path, "wo\n");
        check(&["two"]);
        // Renamed, with a last line that comes late; the new file has one already.
        let old = dir.path().join("messages.0");
        fs::rename(&path, &old).unwrap();
        append(&old, "Nov 25 10:00:02 host daemon.err x: three\n");
        append(&path, "Nov 25 10:00:03 host daemon.err x: four\n");
        check(&["three", "four"]);
        // Truncated in place.
        File::options().write(true).truncate(true).open(&path).unwrap();
        append(&path, "Nov 25 10:00:04 host x: 5\n");
        check(&["5"]);
        // Gone for a while.
        fs::remove_file(&path).unwrap();
        check(&[]);
        append(&path, "Nov 25 10:00:05 host daemon.err x: six\n");
        now.mono += RETRY;
        let mut found = 0;
        for _ in 0..2 {
            watch.read(now, |_| found += 1);
            now.mono += RETRY;
        }
        assert_eq!(found, 1);
        // A line without an end is held back, and only its beginning.
        append(&path, &format!("Nov 25 10:00:05 host x: {}", "y".repeat(100_000)));
        now.mono += HOLD;
        watch.note();
        watch.read(now, |_| panic!("it has no end"));
        assert_eq!(watch.files[0].rest.len(), LINE_MAX);
    }

    #[test]
    fn announced_once_a_second() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("messages");
        append(&path, "");
        let mut watch = SyslogWatch::open(vec![path.clone()]).unwrap().unwrap();
        let now = Now { mono: Duration::from_secs(10), ..Now::default() };
        append(&path, "a line without a time\n");
        watch.note();
        assert_eq!(watch.next_read(), Some(Duration::ZERO));
        watch.read(now, |_| {});
        assert_eq!(watch.next_read(), None);
        append(&path, "another one\n");
        watch.note();
        assert_eq!(watch.next_read(), Some(now.mono + HOLD));
    }
}
