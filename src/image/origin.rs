//! What an image came from, in a small file beside it, so that the image survives its row.
//!
//! Fetch thread. When the database is lost, or the daemon ended between publishing an image and
//! storing its row, the package need not come over the network again: what the next request names
//! is looked for here by the hash of its package file, read completely, and taken if it is what the
//! file says. Services have it as `.package` in their directory, layers as `.package-<hex>` beside
//! theirs, because all of a layer's directory is its content.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::image::digest::hex;
use crate::image::error::Error;
use crate::image::install;
use crate::model::desired::{DesiredLayer, DesiredService};
use crate::model::job::{Keep, Row, Verified};
use crate::model::service::{InstalledLayer, InstalledService};
use crate::sys;

/// Name in the directory of a service.
pub(super) const ORIGIN: &str = ".package";
/// Start of the name beside the directory of a layer.
const BESIDE: &str = ".package-";
/// Far more than the longest one has.
const MAX_BYTES: u64 = 16 << 10;

/// Content of the file.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) struct Origin {
    /// SHA3-256 of the package file, hexadecimal.
    package: String,
    /// Service id and version; the digest and an empty version for a layer.
    id: String,
    version: String,
    gid: u32,
    /// SHA-256 of the manifest, hexadecimal; empty for a layer.
    manifest: String,
    tree: String,
    os_version: String,
    size: u64,
}

impl Origin {
    pub(super) fn of_service(
        wanted: &DesiredService,
        package_digest: &[u8],
        parts: &install::Service,
        size: u64,
    ) -> Self {
        Self {
            package: hex(package_digest),
            id: wanted.key.id.as_str().to_owned(),
            version: wanted.key.version.to_string(),
            gid: wanted.gid,
            manifest: hex(&parts.manifest_digest),
            tree: parts.tree_digest.clone(),
            os_version: String::new(),
            size,
        }
    }

    pub(super) fn of_layer(layer: &InstalledLayer) -> Self {
        Self {
            package: hex(&layer.package_digest),
            id: layer.digest.to_string(),
            version: String::new(),
            gid: install::LAYER_GID,
            manifest: String::new(),
            tree: layer.tree_digest.clone(),
            os_version: layer.os_version.clone(),
            size: layer.size_bytes,
        }
    }

    /// Writes it; the caller flushes.
    pub(super) fn write(&self, path: &Path) -> Result<(), Error> {
        sys::fs::write_plain(path, &self.text(), 0o600).map_err(Error::io("write", path))
    }

    fn text(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("plain structs always serialize")
    }

    pub(super) fn is_wanted(&self, keep: &Keep) -> bool {
        match keep {
            Keep::All => true,
            Keep::Packages(digests) => digests.iter().any(|digest| self.is_from(digest)),
        }
    }

    fn is_from(&self, package_digest: &[u8]) -> bool {
        !package_digest.is_empty() && hex(package_digest) == self.package
    }

    /// The row of a service at `path` if this is what is wanted. Nothing is checked on disk.
    pub(super) fn service(&self, wanted: &DesiredService, path: &Path) -> Option<InstalledService> {
        let same = self.is_from(&wanted.source.sha3_256)
            && self.id == wanted.key.id.as_str()
            && self.version == *wanted.key.version
            && self.gid == wanted.gid;
        same.then(|| InstalledService {
            key: wanted.key.clone(),
            provider_id: wanted.provider_id.clone(),
            gid: self.gid,
            path: path.to_owned(),
            manifest_digest: unhex(&self.manifest),
            tree_digest: self.tree.clone(),
            package_digest: wanted.source.sha3_256.clone(),
            size_bytes: self.size,
            installed_at_ms: sys::time::wall_ms(),
            unused_since_ms: None,
            confirmed: false,
        })
    }

    /// As `service`, for a layer.
    pub(super) fn layer(&self, wanted: &DesiredLayer, path: &Path) -> Option<InstalledLayer> {
        let same = self.is_from(&wanted.source.sha3_256) && self.id == wanted.digest.as_str();
        same.then(|| InstalledLayer {
            digest: wanted.digest.clone(),
            layer_id: wanted.layer_id.clone(),
            version: wanted.version.clone(),
            os_version: self.os_version.clone(),
            path: path.to_owned(),
            package_digest: wanted.source.sha3_256.clone(),
            tree_digest: self.tree.clone(),
            size_bytes: self.size,
            installed_at_ms: sys::time::wall_ms(),
            unused_since_ms: None,
        })
    }
}

/// Writes the file of a package that was taken over without one, as soon as it is known from which
/// package file it came. What cannot be written is written after the next check.
pub(super) fn complete(row: &Row, verified: &Verified) {
    let (package, path) = match row {
        Row::Service(row) => (&row.package_digest, row.path.join(ORIGIN)),
        Row::Layer(row) => (&row.package_digest, beside(&row.path)),
    };
    let missing = fs::symlink_metadata(&path).is_err_and(|e| e.kind() == io::ErrorKind::NotFound);
    if !missing || package.is_empty() || verified.tree_digest.is_empty() {
        return;
    }
    let origin = match row {
        Row::Service(row) => Origin {
            package: hex(package),
            id: row.key.id.as_str().to_owned(),
            version: row.key.version.to_string(),
            gid: row.gid,
            manifest: hex(&row.manifest_digest),
            tree: verified.tree_digest.clone(),
            os_version: String::new(),
            size: row.size_bytes,
        },
        Row::Layer(row) => Origin { tree: verified.tree_digest.clone(), ..Origin::of_layer(row) },
    };
    if let Err(error) = sys::fs::write_atomic(&path, &origin.text(), 0o600) {
        log::warn!("cannot write path={} err={error}", path.display());
    }
}

/// What is known about the service at `path`, if anything.
pub(super) fn of_service(path: &Path) -> Option<Origin> {
    serde_json::from_slice(&read_limited(&path.join(ORIGIN))?).ok()
}

/// What is known about the layer at `path`, if anything. Never asks a file in it.
pub(super) fn of_layer(path: &Path) -> Option<Origin> {
    serde_json::from_slice(&read_limited(&beside(path))?).ok()
}

fn read_limited(path: &Path) -> Option<Vec<u8>> {
    let metadata = fs::symlink_metadata(path).ok()?;
    if !metadata.is_file() || metadata.len() > MAX_BYTES {
        return None;
    }
    fs::read(path).ok()
}

/// Where a layer has its file.
pub(super) fn beside(layer: &Path) -> PathBuf {
    let mut name = OsString::from(BESIDE);
    name.push(layer.file_name().unwrap_or_default());
    layer.with_file_name(name)
}

/// The layer that a file like this is about; `None` = it is no such file.
pub(super) fn owner(path: &Path) -> Option<PathBuf> {
    let name = path.file_name()?.as_bytes().strip_prefix(BESIDE.as_bytes())?;
    Some(path.with_file_name(std::ffi::OsStr::from_bytes(name)))
}

/// Bytes of a hexadecimal text; empty if it is none, which matches no digest.
fn unhex(text: &str) -> Vec<u8> {
    let pairs = text.as_bytes().chunks(2);
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
    pairs.map(byte).collect::<Option<Vec<u8>>>().unwrap_or_default()
}
