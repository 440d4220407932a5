//! The one error type of the image store.
//!
//! At the port it becomes a `Failure`; the texts that the cloud may know from the reference keep
//! their wording.

use std::io;
use std::path::PathBuf;

use crate::document;
use crate::image::{download, names, tar};
use crate::model::failure::Failure;

/// Why a package could not be installed, loaded or removed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot get {url}")]
    Source {
        url: String,
        #[source]
        source: download::Error,
    },
    #[error("file size mismatch: {announced} bytes announced, {found} found")]
    SizeMismatch { announced: u64, found: String },
    #[error("checksum sha256 mismatch")]
    Sha256Mismatch,
    #[error("checksum sha512 mismatch")]
    Sha512Mismatch,
    #[error("libcrypto cannot compute SHA-3")]
    Hash(#[from] openssl::error::ErrorStack),
    #[error("a package from the network needs a checksum")]
    NoChecksum,
    #[error("malformed {part} archive")]
    Archive {
        part: &'static str,
        #[source]
        source: tar::Error,
    },
    #[error("{part}: compression {name} is not supported, only plain tar and gzip")]
    Compression { part: &'static str, name: &'static str },
    #[error("{part}: more than {limit} bytes after the end of the archive")]
    Trailing { part: &'static str, limit: u64 },
    #[error("member \"{name}\" is refused")]
    Name {
        name: String,
        #[source]
        source: names::Refused,
    },
    #[error("member \"{name}\" is refused: {reason}")]
    Member { name: String, reason: &'static str },
    #[error("{part}: more than {limit} members")]
    Entries { part: &'static str, limit: u32 },
    #[error("not enough space: {needed} bytes needed, {available} available")]
    NotEnoughSpace { needed: u64, available: u64 },
    #[error("not enough space: no free inodes")]
    NoInodes,
    #[error("not enough space: the disk is full, cannot {action} {path}")]
    DiskFull { action: &'static str, path: PathBuf },
    #[error("cannot {action} {path}")]
    Io {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("blob {digest} is missing")]
    BlobMissing { digest: String },
    #[error("hash missmach: blob {digest}")]
    BlobMismatch { digest: String },
    #[error("{what} is missing")]
    Missing { what: &'static str },
    #[error("{what} is larger than {limit} bytes")]
    TooLarge { what: String, limit: u64 },
    #[error("invalid {what}")]
    Document {
        what: &'static str,
        #[source]
        source: document::Error,
    },
    #[error("invalid {what}: {reason}")]
    Content { what: &'static str, reason: String },
    #[error("no layers in image")]
    NoLayers,
    #[error("layer.json names {found}, the request {announced}")]
    OtherLayer { found: String, announced: String },
    #[error("manifest checksum mismatch")]
    ManifestMismatch,
    #[error("incorrect rootfs checksum")]
    TreeMismatch,
    #[error("the layer is missing")]
    LayerMissing,
    #[error("{path} is no directory of this store")]
    NotOurs { path: PathBuf },
    #[error("it is no longer wanted")]
    Halted,
}

impl Error {
    /// For `map_err` of a call on the file system.
    pub(super) fn io(
        action: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| match source.kind() {
            // Others were faster than the check, or a quota is smaller than the disk.
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                Self::DiskFull { action, path }
            }
            _ => Self::Io { action, path, source },
        }
    }

    /// The host could not do its part, so reading the rest of the package cannot explain it.
    pub(super) fn is_local(&self) -> bool {
        matches!(self, Self::Io { .. }) || self.is_no_space()
    }

    /// Less on the disk would have helped.
    pub(super) fn is_no_space(&self) -> bool {
        matches!(self, Self::NotEnoughSpace { .. } | Self::NoInodes | Self::DiskFull { .. })
    }

    /// While an installed package was read: the disk did not give it, which it may do later. What
    /// is not there, or something else now, is not coming back.
    pub(super) fn is_passing(&self) -> bool {
        match self {
            Self::Io { source, .. } => {
                !matches!(
                    source.kind(),
                    io::ErrorKind::NotFound
                        | io::ErrorKind::NotADirectory
                        | io::ErrorKind::IsADirectory
                        | io::ErrorKind::InvalidInput
                ) && source.raw_os_error() != Some(libc::ELOOP)
            }
            Self::Halted => true,
            _ => false,
        }
    }

    /// The same attempt may succeed later without anybody changing anything.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Source { source, .. } => source.is_transient(),
            Self::Halted => true,
            _ => false,
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let (transient, no_space) = (error.is_transient(), error.is_no_space());
        Self { transient, no_space, ..Self::lasting(&error) }
    }
}
