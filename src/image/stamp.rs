//! Stamps of an installed image: what the file system says about its parts.
//!
//! Exec and fetch threads. Taken when an image was read and found right, compared before each
//! start: two calls instead of reading everything. A touched image is read anew; what no stamp can
//! show (a flipped bit on the medium, a file deep in the tree) is found by the check in the
//! background.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::image::MANIFEST;
use crate::model::service::Stamp;

/// Stamps of the manifest and the root file system of the image at `path`. What is missing has
/// none.
pub(super) fn of(path: &Path, rootfs: &Path) -> Vec<Stamp> {
    let parts = [path.join(MANIFEST), path.join(rootfs)];
    parts.iter().filter_map(|part| fs::symlink_metadata(part).ok()).map(|m| stamp(&m)).collect()
}

fn stamp(metadata: &fs::Metadata) -> Stamp {
    Stamp {
        device: metadata.dev(),
        inode: metadata.ino(),
        size_bytes: metadata.size(),
        modified: (metadata.mtime(), metadata.mtime_nsec()),
        changed: (metadata.ctime(), metadata.ctime_nsec()),
    }
}
