//! What can go wrong with a network, and which of it may go away by itself.

use std::io;
use std::net::Ipv4Addr;
use std::path::PathBuf;

use nix::errno::Errno;

use super::shaping::LIMIT_SPEED;
use crate::model::failure::Failure;
use crate::model::id::{InstanceId, NetworkId};

/// Why a network operation failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("network parameter {field} {value:?}: {reason}")]
    Invalid { field: &'static str, value: String, reason: &'static str },
    #[error("subnet {subnet} overlaps {other}")]
    Overlap { subnet: String, other: String },
    #[error("network {id} is not usable: {reason}")]
    RefusedNetwork { id: NetworkId, reason: String },
    #[error("address {address} is used by instance {owner}")]
    AddressInUse { address: Ipv4Addr, owner: InstanceId },
    #[error("hostname {0} already exists")]
    HostnameInUse(String),
    #[error("interface {name} exists and is not ours")]
    ForeignLink { name: String },
    #[error("no free interface name or index after {attempts} attempts")]
    NoFreeLink { attempts: u32 },
    #[error("{0} of the instance is gone")]
    Vanished(&'static str),
    #[error("kernel lacks {feature}")]
    Unsupported {
        feature: &'static str,
        #[source]
        source: Refusal,
    },
    #[error("kernel lacks {0}")]
    Missing(&'static str),
    #[error(transparent)]
    Kernel(#[from] Refusal),
    #[error("cannot {operation}")]
    Socket {
        operation: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("no answer of the kernel to {operation}")]
    NoAnswer { operation: &'static str },
    #[error("cannot {operation} {path}")]
    File {
        operation: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("network thread has ended")]
    Closed,
    #[error("network thread did not answer in time")]
    Timeout,
}

/// A message that the kernel answered with an error.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("cannot {operation}: {errno}{}{text}", if text.is_empty() { "" } else { ": " })]
pub struct Refusal {
    /// Position of the message in its send.
    pub index: usize,
    pub operation: &'static str,
    pub errno: Errno,
    /// Extended acknowledgement of the kernel; often empty.
    pub text: String,
}

impl Refusal {
    /// The errno class of a kernel that does not have the feature.
    pub(super) fn is_unsupported(&self) -> bool {
        matches!(
            self.errno,
            Errno::EOPNOTSUPP | Errno::EPROTONOSUPPORT | Errno::EAFNOSUPPORT | Errno::ENOSYS
        )
    }

    pub(super) fn is_transient(&self) -> bool {
        matches!(self.errno, Errno::EBUSY | Errno::EAGAIN | Errno::ENOBUFS | Errno::ENOMEM)
    }
}

impl Error {
    /// The same call may succeed later without anybody changing anything.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Kernel(refusal) => refusal.is_transient(),
            Self::Timeout | Self::NoAnswer { .. } => true,
            _ => false,
        }
    }

    pub(super) fn invalid(field: &'static str, value: &str, reason: &'static str) -> Self {
        // The text ends in a status message: hostile values are cut.
        Self::Invalid { field, value: value.chars().take(80).collect(), reason }
    }

    /// A kernel without a queueing discipline says "no such entry".
    pub(super) fn is_missing_shaper(&self) -> bool {
        matches!(self, Self::Kernel(refusal)
            if refusal.operation == LIMIT_SPEED && refusal.errno == Errno::ENOENT)
    }

    /// Turns the "unknown kind" answers of the kernel into an error that names the feature.
    pub(super) fn lacking(self, feature: &'static str) -> Self {
        let unsupported = matches!(&self, Self::Kernel(refusal) if refusal.is_unsupported());
        if unsupported { self.naming(feature) } else { self }
    }

    /// A refusal that means that the kernel lacks a feature.
    pub(super) fn naming(self, feature: &'static str) -> Self {
        match self {
            Self::Kernel(source) => Self::Unsupported { feature, source },
            other => other,
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        if error.is_transient() { Self::transient(&error) } else { Self::lasting(&error) }
    }
}
