//! The spool of one instance, drained: files `stdio.<generation>` in a directory of its own.
//!
//! Thread `log-in` alone reads and removes. A container appends to its file and never waits for us;
//! what has been stored is given back by punching holes, so offsets only grow and nobody races. A hole
//! ends exactly where the stored output does: text in front of that place tells that somebody has
//! truncated the file and written again, however much. The file of an earlier generation has no
//! writer any more and is removed once it is drained.

use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::mount::{MntFlags, umount2};
use nix::sys::statvfs::statvfs;
use nix::unistd::{Whence, lseek};

use crate::logs::record::Position;
use crate::sys::is_errno;

/// Bytes that are read at once.
pub(crate) const STEP_BYTES: usize = 64 * 1024;
/// An unfinished line is taken as it is when nothing was added for this long.
const UNFINISHED: Duration = Duration::from_secs(1);
/// Unit in which consumed space is given back.
const PAGE: u64 = 4096;
const PREFIX: &str = "stdio.";

/// Name of a spool file.
pub(crate) fn file_name(generation: u64) -> String {
    format!("{PREFIX}{generation}")
}

/// Generations of the spool files in `dir`, oldest first.
pub(crate) fn generations(dir: &Path) -> Vec<u64> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let mut found: Vec<u64> = entries
        .filter_map(|entry| entry.file_name().to_str()?.strip_prefix(PREFIX)?.parse().ok())
        .collect();
    found.sort_unstable();
    found
}

/// The spool files of one instance.
#[derive(Debug)]
pub(crate) struct Spool {
    dir: PathBuf,
    /// Oldest first.
    files: VecDeque<SpoolFile>,
    /// What fits, in bytes.
    limit_bytes: u64,
    /// The limit is the kernel's; else it is only kept while we drain.
    is_bounded: bool,
}

#[derive(Debug)]
struct SpoolFile {
    generation: u64,
    file: File,
    consumed: u64,
    /// Up to here there are only zeros.
    punched: u64,
    /// Size with an unfinished line at the end, and since when.
    unfinished: Option<(u64, Duration)>,
}

/// What was read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Chunk {
    /// Where it begins.
    pub(crate) position: Position,
    /// Nothing will be added to its last line.
    pub(crate) is_end: bool,
    /// The file was truncated since the last time: output was lost.
    pub(crate) was_truncated: bool,
    /// Output before it had to be dropped to keep a limit that the kernel does not keep.
    pub(crate) dropped_bytes: u64,
}

impl Spool {
    /// Opens what is in `dir` and goes on at `stored`; `soft_limit_bytes` counts where the
    /// directory has no mount of its own.
    pub(crate) fn find(dir: &Path, stored: Position, soft_limit_bytes: u64) -> io::Result<Self> {
        let is_bounded = is_mount(dir)?;
        let limit_bytes = if is_bounded {
            let stat = statvfs(dir)?;
            stat.blocks().saturating_mul(stat.fragment_size())
        } else {
            soft_limit_bytes
        };
        let files = VecDeque::new();
        let mut spool = Self { dir: dir.to_owned(), files, limit_bytes, is_bounded };
        for generation in generations(dir) {
            if generation < stored.generation {
                fs::remove_file(dir.join(file_name(generation)))?;
                continue;
            }
            let offset = if generation == stored.generation { stored.offset } else { 0 };
            spool.open(generation, offset)?;
        }
        Ok(spool)
    }

    /// Takes a new file up; a known one is left alone.
    pub(crate) fn add(&mut self, generation: u64) -> io::Result<()> {
        if self.files.iter().any(|file| file.generation == generation) {
            return Ok(());
        }
        self.open(generation, 0)
    }

    fn open(&mut self, generation: u64, consumed: u64) -> io::Result<()> {
        let path = self.dir.join(file_name(generation));
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        let punched = consumed - consumed % PAGE;
        let mut file = SpoolFile { generation, file, consumed, punched, unfinished: None };
        // An earlier life may have ended between storing and punching.
        if file.file.metadata()?.len() >= consumed {
            file.punch()?;
        }
        self.files.push_back(file);
        Ok(())
    }

    /// The newest generation that is known here, 0 = none.
    pub(crate) fn newest(&self) -> u64 {
        self.files.back().map_or(0, |file| file.generation)
    }

    /// Bytes that wait to be drained.
    pub(crate) fn waiting_bytes(&self) -> u64 {
        self.files.iter().map(SpoolFile::waiting_bytes).sum()
    }

    /// More than half of the space is used.
    pub(crate) fn is_half_full(&self) -> bool {
        self.waiting_bytes() > self.limit_bytes / 2
    }

    /// No space is left, so writes of the container have probably failed.
    pub(crate) fn is_full(&self) -> bool {
        self.is_bounded && statvfs(self.dir.as_path()).is_ok_and(|stat| stat.blocks_free() == 0)
    }

    /// Reads the next output, at most `STEP_BYTES`, into `buffer`; `None` = there is none.
    /// `is_over`: nothing writes any more.
    pub(crate) fn read(
        &mut self,
        buffer: &mut Vec<u8>,
        now: Duration,
        is_over: bool,
    ) -> io::Result<Option<Chunk>> {
        let soft_limit = (!self.is_bounded).then_some(self.limit_bytes);
        let mut was_truncated = false;
        loop {
            let has_next = self.files.len() > 1;
            let Some(file) = self.files.front_mut() else { return Ok(None) };
            let size = file.file.metadata()?.len();
            was_truncated |= file.restart_if_truncated(size)?;
            let dropped_bytes = soft_limit.map_or(0, |limit| file.drop_beyond(limit, size));
            if file.skip_hole(size)? {
                if has_next {
                    self.remove_front()?;
                    continue;
                }
                if !was_truncated {
                    return Ok(None);
                }
            }
            buffer.resize(STEP_BYTES, 0);
            let length = file.file.read_at(buffer, file.consumed)?;
            buffer.truncate(length);
            let position = Position { generation: file.generation, offset: file.consumed };
            let at_size = file.consumed + u64::try_from(length).unwrap_or(0) >= size;
            let is_end = at_size && (is_over || has_next || file.is_stale(size, now));
            return Ok(Some(Chunk { position, is_end, was_truncated, dropped_bytes }));
        }
    }

    /// Gives back the space of `bytes` more, which are stored now.
    pub(crate) fn consume(&mut self, bytes: usize) -> io::Result<()> {
        let Some(file) = self.files.front_mut() else { return Ok(()) };
        file.consumed += u64::try_from(bytes).unwrap_or(0);
        file.punch()
    }

    fn remove_front(&mut self) -> io::Result<()> {
        let Some(file) = self.files.pop_front() else { return Ok(()) };
        fs::remove_file(self.dir.join(file_name(file.generation)))
    }

    /// Removes the files that are known here, then mount and directory. False = a new generation
    /// has come, or the mount is still in use; the call can be repeated.
    pub(crate) fn release(&mut self) -> io::Result<bool> {
        while !self.files.is_empty() {
            match self.remove_front() {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        if !generations(&self.dir).is_empty() {
            return Ok(false);
        }
        remove_dir(&self.dir)
    }
}

/// Unmounts and removes an empty spool directory; false = it is in use.
pub(crate) fn remove_dir(dir: &Path) -> io::Result<bool> {
    // Never lazily: whoever makes a new file there holds the directory open and makes this fail.
    match umount2(dir, MntFlags::UMOUNT_NOFOLLOW) {
        Err(Errno::EBUSY) => return Ok(false),
        // Not a mount point.
        Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => {}
        Err(errno) => return Err(errno.into()),
    }
    match fs::remove_dir(dir) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
        Err(error) if is_errno(&error, Errno::ENOTEMPTY) || is_errno(&error, Errno::EBUSY) => {
            Ok(false)
        }
        Err(error) => Err(error),
    }
}

/// Something is mounted on `dir` that does not hold its parent.
pub(crate) fn is_mount(dir: &Path) -> io::Result<bool> {
    let parent = dir.parent().ok_or(io::ErrorKind::InvalidInput)?;
    Ok(fs::metadata(dir)?.dev() != fs::metadata(parent)?.dev())
}

impl SpoolFile {
    fn waiting_bytes(&self) -> u64 {
        self.file.metadata().map_or(0, |known| known.len().saturating_sub(self.consumed))
    }

    /// Somebody truncated the file, as `> /dev/stdout` in a shell does: its output begins anew.
    fn restart_if_truncated(&mut self, size: u64) -> io::Result<bool> {
        let is_truncated = size < self.consumed || self.is_overwritten()?;
        if is_truncated {
            (self.consumed, self.punched) = (0, 0);
        }
        Ok(is_truncated)
    }

    /// There is text again where a hole was made.
    fn is_overwritten(&self) -> io::Result<bool> {
        if self.consumed == 0 || self.punched != self.consumed {
            return Ok(false);
        }
        let mut last = [0];
        let length = self.file.read_at(&mut last, self.consumed - 1)?;
        Ok(length > 0 && last != [0])
    }

    fn drop_beyond(&mut self, limit: u64, size: u64) -> u64 {
        let dropped = (size - self.consumed).saturating_sub(limit);
        self.consumed += dropped;
        dropped
    }

    /// Moves to the next byte that is there; true = there is none.
    fn skip_hole(&mut self, size: u64) -> io::Result<bool> {
        if self.consumed >= size {
            return Ok(true);
        }
        let from = i64::try_from(self.consumed).map_err(|_| io::ErrorKind::InvalidData)?;
        let next = match lseek(&self.file, from, Whence::SeekData) {
            Ok(at) => u64::try_from(at).unwrap_or(self.consumed),
            Err(Errno::ENXIO) => size,
            Err(errno) => return Err(errno.into()),
        };
        if self.punched == self.consumed {
            self.punched = next;
        }
        self.consumed = next;
        Ok(self.consumed >= size)
    }

    /// The unfinished line at the end has been so for `UNFINISHED`.
    fn is_stale(&mut self, size: u64, now: Duration) -> bool {
        match self.unfinished {
            Some((known, since)) if known == size => now.saturating_sub(since) >= UNFINISHED,
            _ => {
                self.unfinished = Some((size, now));
                false
            }
        }
    }

    /// Makes zeros of what is consumed, and gives back its whole pages.
    fn punch(&mut self) -> io::Result<()> {
        // A page is given back only by a hole that covers all of it.
        let start = self.punched - self.punched % PAGE;
        let length = self.consumed - start;
        let (Ok(from), Ok(length)) = (i64::try_from(start), i64::try_from(length)) else {
            return Ok(());
        };
        if self.consumed > self.punched {
            let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
            fallocate(&self.file, flags, from, length)?;
            self.punched = self.consumed;
        }
        Ok(())
    }
}
