//! What has arrived of a download, kept for the next attempt.
//!
//! Fetch thread. The bytes of a large package from the network go into `<downloadDir>/<hash>.part`
//! as they come, so that an attempt begins where the one before it broke off. A convenience, never
//! a condition: a part goes when the room is needed, when it cannot be written, and at the next
//! start of the daemon. Nothing in it is believed: size and hash of the package are checked over
//! all bytes, wherever they come from. Not here: HTTP.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::sys::statvfs::fstatvfs;

use crate::image::digest::hex;
use crate::image::listing::regular;
use crate::image::space::bytes_above_reserve;
use crate::model::desired::PackageSource;

/// Smaller packages come anew as quickly, and spare the flash a write.
pub(super) const MIN_PACKAGE_BYTES: u64 = 1 << 20;
/// The free space is looked at whenever so much was written.
const CHECK_BYTES: u64 = 1 << 20;
const EXTENSION: &str = "part";

/// Where the part of a package lies, if it may have one.
pub(super) fn place(downloads: &Path, package: &PackageSource) -> Option<PathBuf> {
    let hash = [&package.sha3_256, &package.sha3_512].into_iter().find(|hash| !hash.is_empty())?;
    let large = package.size_bytes >= MIN_PACKAGE_BYTES;
    large.then(|| downloads.join(hex(hash)).with_extension(EXTENSION))
}

/// The part of one package.
pub(super) struct Part<'a> {
    path: &'a Path,
    /// `None` = nothing has arrived yet.
    file: Option<File>,
    length: u64,
    reserve_percent: u64,
    unchecked_bytes: u64,
}

impl<'a> Part<'a> {
    /// Opens what an earlier attempt has left. `None` = nothing can be kept there.
    pub(super) fn open(path: &'a Path, size_bytes: u64, reserve_percent: u64) -> Option<Self> {
        let (file, length) = match open(path, false).and_then(|f| Ok((f.metadata()?.len(), f))) {
            Ok((length, file)) => (Some(file), length),
            Err(error) if error.kind() == io::ErrorKind::NotFound => (None, 0),
            Err(error) => {
                log::debug!("download is not kept path={} err={error}", path.display());
                return None;
            }
        };
        let mut part = Self { path, file, length, reserve_percent, unchecked_bytes: CHECK_BYTES };
        (length <= size_bytes || part.restart()).then_some(part)
    }

    pub(super) fn length(&self) -> u64 {
        self.length
    }

    /// Forgets all of it. False = that is not possible.
    pub(super) fn restart(&mut self) -> bool {
        self.length = 0;
        self.file.as_ref().is_none_or(|file| file.set_len(0).is_ok())
    }

    /// 0 = it has been given up meanwhile.
    pub(super) fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.file.as_ref().map_or(Ok(0), |file| file.read_at(buffer, offset))
    }

    /// Adds what has arrived. False = the part is of no use any more.
    pub(super) fn append(&mut self, bytes: &[u8]) -> bool {
        let kept = self.try_append(bytes);
        if !matches!(kept, Ok(true)) {
            // What was begun must not take the room of others.
            self.restart();
            log::debug!("download is not kept any more err={kept:?}");
        }
        matches!(kept, Ok(true))
    }

    fn try_append(&mut self, bytes: &[u8]) -> io::Result<bool> {
        if self.file.is_none() {
            self.file = Some(open(self.path, true)?);
        }
        let Some(file) = &mut self.file else { return Ok(false) };
        // `release` leaves it shorter than it was.
        if file.metadata()?.len() != self.length {
            return Ok(false);
        }
        self.unchecked_bytes += bytes.len() as u64;
        if self.unchecked_bytes >= CHECK_BYTES {
            self.unchecked_bytes = 0;
            let available = bytes_above_reserve(&fstatvfs(&*file)?, self.reserve_percent);
            if available < CHECK_BYTES {
                return Ok(false);
            }
        }
        file.write_all(bytes)?;
        self.length += bytes.len() as u64;
        Ok(true)
    }
}

fn open(path: &Path, create: bool) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).append(true).create(create).mode(0o600);
    regular(options.custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path)?)
}

/// Removes a part; a missing one is fine.
pub(super) fn remove(path: &Path) {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            log::warn!("cannot remove path={} err={error}", path.display());
        }
        _ => {}
    }
}

/// Removes all parts but these.
pub(super) fn retain(downloads: &Path, keep: &[PathBuf]) {
    parts(downloads).filter(|path| !keep.contains(path)).for_each(|path| remove(&path));
}

/// Gives the room of all parts back, if they lie on this device; false = there was none.
pub(super) fn release(downloads: &Path, device: u64) -> bool {
    let mut freed = false;
    for path in parts(downloads) {
        let there = fs::symlink_metadata(&path).is_ok_and(|metadata| {
            metadata.dev() == device && metadata.is_file() && metadata.blocks() > 0
        });
        // Whoever still has it open notices, and the room is free at once.
        let emptied = || OpenOptions::new().write(true).truncate(true).open(&path);
        if there && emptied().is_ok() {
            log::info!("giving up a download for space path={}", path.display());
            remove(&path);
            freed = true;
        }
    }
    freed
}

fn parts(downloads: &Path) -> impl Iterator<Item = PathBuf> {
    let entries = fs::read_dir(downloads).into_iter().flatten().filter_map(Result::ok);
    let paths = entries.map(|entry| entry.path());
    paths.filter(|path| path.extension() == Some(OsStr::new(EXTENSION)))
}
