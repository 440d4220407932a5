//! Room for what is being installed: the reserve of the file system, eviction of unused packages,
//! and flushing while writing.
//!
//! Fetch thread; one `Space` per attempt. Before anything is written its size is reserved here, in
//! the budget of the directory and on the file system, which is measured anew each time, so that
//! data, containers and logs of others are seen. Evicted is only what the job allows, in its order,
//! and only if it would help: packages of the same directory for its limit, those of any directory
//! on the same file system for its space.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::sys::statvfs::{Statvfs, fstatvfs};

use crate::image::budget::{Budget, limit_bytes};
use crate::image::error::Error;
use crate::image::part;
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
    /// What is kept of downloads goes before any package.
    pub(super) downloads: &'a Path,
}

/// What the configuration leaves to a directory.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Percent of the file system that stays free.
    pub(super) reserve_percent: u64,
    /// `servicesPartLimit`, `layersPartLimit`; 0 = none.
    pub(super) services_percent: u64,
    pub(super) layers_percent: u64,
    /// Size of what is installed in the directory.
    pub(super) used_bytes: u64,
}

/// Space of the file system on which a package is being unpacked.
pub(super) struct Space<'a> {
    directory: &'a Path,
    file: File,
    reserve_percent: u64,
    eviction: Eviction<'a>,
    budget: Budget,
    unflushed_bytes: u64,
}

/// Where room is missing.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Scope {
    Directory,
    Partition,
}

impl<'a> Space<'a> {
    /// Space for a package in `directory`, which is one of the two of `eviction`'s places.
    pub(super) fn new(
        directory: &'a Path,
        limits: Limits,
        eviction: Eviction<'a>,
    ) -> Result<Self, Error> {
        let file = File::open(directory).map_err(Error::io("open", directory))?;
        let percents = percents(directory, &limits, eviction.places);
        let stat = fstatvfs(&file);
        let stat = stat.map_err(|errno| Error::io("measure", directory)(errno.into()))?;
        let total = stat.blocks().saturating_mul(stat.fragment_size());
        let budget = Budget::new(limit_bytes(total, &percents), limits.used_bytes);
        let reserve_percent = limits.reserve_percent;
        Ok(Self { directory, file, reserve_percent, eviction, budget, unflushed_bytes: 0 })
    }

    /// Reserves room for one more entry with this content.
    pub(super) fn charge(&mut self, content_bytes: u64) -> Result<(), Error> {
        let cost = cost(content_bytes);
        sys::fault::point("charge");
        self.check(cost)?;
        if self.budget.reserve(cost) {
            return Ok(());
        }
        Err(Error::NotEnoughSpace { needed: cost, available: self.budget.left() })
    }

    /// Gives back what was charged for an entry with this content, which is removed.
    pub(super) fn release(&mut self, content_bytes: u64) {
        self.budget.release(cost(content_bytes));
    }

    /// Sum of all that was charged and not given back: what the package takes on disk, roughly.
    pub(super) fn charged_bytes(&self) -> u64 {
        self.budget.reserved()
    }

    /// Fails unless so many bytes can be written now; evicts if that helps.
    pub(super) fn check(&mut self, needed: u64) -> Result<(), Error> {
        loop {
            let (left, available) = (self.budget.left(), self.available()?);
            let (missing, scope) = if needed > left {
                (needed - left, Scope::Directory)
            } else if needed > available {
                (needed - available, Scope::Partition)
            } else {
                return Ok(());
            };
            if !self.evict_one(missing, scope)? {
                return Err(Error::NotEnoughSpace { needed, available: left.min(available) });
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
        Ok(bytes_above_reserve(&stat, self.reserve_percent))
    }

    /// Removes the next candidate that helps, if all of them together free enough. `false` =
    /// nothing more can be done.
    fn evict_one(&mut self, missing: u64, scope: Scope) -> Result<bool, Error> {
        if scope == Scope::Partition && self.release_downloads() {
            return Ok(true);
        }
        let helps = |one: &&Evictable| {
            !self.eviction.evicted.contains(&one.key)
                && self.is_here(&one.path)
                && (scope == Scope::Partition || one.path.starts_with(self.directory))
        };
        let candidates: Vec<&Evictable> = self.eviction.candidates.iter().filter(helps).collect();
        let total = candidates.iter().fold(0u64, |sum, one| sum.saturating_add(one.size_bytes));
        let Some(first) = candidates.first().filter(|_| total >= missing) else {
            return Ok(false);
        };
        log::info!("evicting for space package={}", first.key);
        staging::discard(&first.path)?;
        sys::fault::point("evicted");
        if first.path.starts_with(self.directory) {
            self.budget.evicted(first.size_bytes);
        }
        self.eviction.evicted.push(first.key.clone());
        Ok(true)
    }

    /// After a write has failed for want of space and all of the attempt is gone again: evicts,
    /// first one first, until so many bytes are freed. `false` = there was nothing to evict.
    pub(super) fn make_way(&mut self, bytes: u64) -> Result<bool, Error> {
        let mut freed = 0u64;
        for candidate in self.eviction.candidates {
            let key = &candidate.key;
            if freed >= bytes {
                break;
            }
            if self.is_here(&candidate.path) && !self.eviction.evicted.contains(key) {
                log::info!("evicting because the disk is full package={key}");
                staging::discard(&candidate.path)?;
                self.eviction.evicted.push(key.clone());
                freed = freed.saturating_add(candidate.size_bytes.max(1));
            }
        }
        Ok(freed > 0 || self.release_downloads())
    }

    fn release_downloads(&self) -> bool {
        let device = self.file.metadata().map(|metadata| metadata.dev());
        device.is_ok_and(|device| part::release(self.eviction.downloads, device))
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
        sys::fault::point("before flushing");
        let synced = sys::retry(|| nix::unistd::syncfs(self.file.as_fd()));
        synced.map_err(Error::io("flush", self.directory))
    }
}

/// What an entry with this content takes.
fn cost(content_bytes: u64) -> u64 {
    let rounded = content_bytes.div_ceil(BLOCK_BYTES).saturating_mul(BLOCK_BYTES);
    rounded.saturating_add(BLOCK_BYTES)
}

/// What may be written to a file system without touching its reserve.
pub(super) fn bytes_above_reserve(stat: &Statvfs, reserve_percent: u64) -> u64 {
    let total = stat.blocks().saturating_mul(stat.fragment_size());
    let free = stat.blocks_available().saturating_mul(stat.fragment_size());
    let reserve = (total / 100).saturating_mul(reserve_percent).max(MIN_RESERVE_BYTES);
    free.saturating_sub(reserve)
}

/// Limits of the directories that share the file system of `directory`, its own first.
pub(super) fn percents(directory: &Path, limits: &Limits, places: &Places) -> Vec<u64> {
    let services = (places.services.as_path(), limits.services_percent);
    let layers = (places.layers.as_path(), limits.layers_percent);
    let (own, other) = if directory == layers.0 { (layers, services) } else { (services, layers) };
    match sys::fs::same_file_system(own.0, other.0) {
        Ok(true) => vec![own.1, other.1],
        _ => vec![own.1],
    }
}
