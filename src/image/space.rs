//! Room for what is being installed: the reserve of the file system, eviction of unused packages,
//! and flushing while writing.
//!
//! Fetch thread; one `Space` per attempt. Before anything is written its size is asked for here,
//! and the file system is measured anew each time, so that data, containers and logs of others are
//! seen. Evicted is only what the job allows, in its order, and only if it would help. Limits per
//! directory come with the reservations of a later step.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::sys::statvfs::fstatvfs;

use crate::image::error::Error;
use crate::image::staging::{self, Places};
use crate::model::id::PackageKey;
use crate::model::job::Evictable;
use crate::sys;

/// Kept free for database and logs whatever the percentage says, in bytes.
pub(super) const MIN_RESERVE_BYTES: u64 = 16 << 20;
/// Inodes that stay free, where the file system counts them.
pub(super) const MIN_FREE_INODES: u64 = 64;
/// Written bytes after which they are flushed, so that no commit of the database waits behind a
/// large backlog.
const FLUSH_BYTES: u64 = 4 << 20;
/// What a file or directory costs besides its content, and the unit in which content is charged.
const BLOCK_BYTES: u64 = 4096;

/// What may be removed to make room.
pub(super) struct Eviction<'a> {
    /// First one first.
    pub(super) candidates: &'a [Evictable],
    /// Gets what was removed.
    pub(super) evicted: &'a mut Vec<PackageKey>,
    /// Nothing outside of these is ever removed.
    pub(super) places: &'a Places,
}

/// Space of the file system on which a package is being unpacked.
pub(super) struct Space<'a> {
    directory: &'a Path,
    file: File,
    reserve_percent: u64,
    eviction: Eviction<'a>,
    next_candidate: usize,
    charged_bytes: u64,
    unflushed_bytes: u64,
}

impl<'a> Space<'a> {
    pub(super) fn new(
        directory: &'a Path,
        reserve_percent: u64,
        eviction: Eviction<'a>,
    ) -> Result<Self, Error> {
        let file = File::open(directory).map_err(Error::io("open", directory))?;
        Ok(Self {
            directory,
            file,
            reserve_percent,
            eviction,
            next_candidate: 0,
            charged_bytes: 0,
            unflushed_bytes: 0,
        })
    }

    /// Asks for room for one more entry with this content.
    pub(super) fn charge(&mut self, content_bytes: u64) -> Result<(), Error> {
        let rounded = content_bytes.div_ceil(BLOCK_BYTES).saturating_mul(BLOCK_BYTES);
        let cost = rounded.saturating_add(BLOCK_BYTES);
        self.check(cost)?;
        self.charged_bytes = self.charged_bytes.saturating_add(cost);
        Ok(())
    }

    /// Sum of all that was charged: what the package takes on disk, roughly.
    pub(super) fn charged_bytes(&self) -> u64 {
        self.charged_bytes
    }

    /// Fails unless so many bytes can be written now; evicts if that helps.
    pub(super) fn check(&mut self, needed: u64) -> Result<(), Error> {
        loop {
            let available = self.available()?;
            if needed <= available {
                return Ok(());
            }
            if !self.evict_one(needed - available)? {
                return Err(Error::NotEnoughSpace { needed, available });
            }
        }
    }

    /// Bytes above the reserve.
    fn available(&self) -> Result<u64, Error> {
        let stat = fstatvfs(&self.file);
        let stat = stat.map_err(|errno| Error::io("measure", self.directory)(errno.into()))?;
        // File systems without a table of inodes report 0 of 0.
        if stat.files() > 0 && stat.files_available() < MIN_FREE_INODES {
            return Err(Error::NoInodes);
        }
        let total = stat.blocks().saturating_mul(stat.fragment_size());
        let free = stat.blocks_available().saturating_mul(stat.fragment_size());
        let reserve = (total / 100).saturating_mul(self.reserve_percent).max(MIN_RESERVE_BYTES);
        Ok(free.saturating_sub(reserve))
    }

    /// Removes the next candidate on this file system if all of them together free enough.
    /// `false` = nothing more can be done.
    fn evict_one(&mut self, missing: u64) -> Result<bool, Error> {
        let candidates = &self.eviction.candidates[self.next_candidate..];
        let helpful = |candidate: &&Evictable| self.is_here(&candidate.path);
        let total: u64 = candidates.iter().filter(helpful).map(|one| one.size_bytes).sum();
        if total < missing {
            return Ok(false);
        }
        for candidate in candidates {
            self.next_candidate += 1;
            if self.is_here(&candidate.path) {
                log::info!("evicting for space package={}", candidate.key);
                staging::discard(&candidate.path)?;
                self.eviction.evicted.push(candidate.key.clone());
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn is_here(&self, path: &Path) -> bool {
        if !self.eviction.places.owns(path) {
            return false;
        }
        let device = |metadata: std::fs::Metadata| metadata.dev();
        let here = self.file.metadata().map(device);
        let there = std::fs::symlink_metadata(path).map(device);
        matches!((here, there), (Ok(here), Ok(there)) if here == there)
    }

    /// Counts bytes that were written to `file` and flushes them from time to time.
    pub(super) fn wrote(&mut self, file: BorrowedFd<'_>, bytes: u64) -> std::io::Result<()> {
        self.unflushed_bytes += bytes;
        if self.unflushed_bytes >= FLUSH_BYTES {
            self.unflushed_bytes = 0;
            // Small files came before, so the flush is for all of them.
            sys::retry(|| nix::unistd::syncfs(file))?;
        }
        Ok(())
    }

    /// Flushes everything; after this a rename can make the package visible.
    pub(super) fn flush(&mut self) -> Result<(), Error> {
        self.unflushed_bytes = 0;
        let synced = sys::retry(|| nix::unistd::syncfs(self.file.as_fd()));
        synced.map_err(Error::io("flush", self.directory))
    }
}
