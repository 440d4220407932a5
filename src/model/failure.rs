//! What crosses a port when something went wrong.

use crate::model::id::PackageKey;
use crate::model::status::chain;

/// Why a port call failed.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// The adapter's error with all its causes.
    pub message: String,
    /// The same call may succeed later without anybody changing anything.
    pub transient: bool,
    /// There was not enough space on a disk.
    pub no_space: bool,
    /// This installed package is not what it was when it was installed.
    pub damaged: Option<PackageKey>,
    /// Data of the instance lie on a file system with a server: the fetch thread has to prepare
    /// them first.
    pub remote_data: bool,
}

impl Failure {
    /// Of an adapter's error that stays until somebody changes something.
    pub fn lasting(error: &dyn std::error::Error) -> Self {
        Self::text(chain(error))
    }

    /// Of an adapter's error that may go away by itself.
    pub fn transient(error: &dyn std::error::Error) -> Self {
        Self { transient: true, ..Self::text(chain(error)) }
    }

    /// A failure that is complete with its text.
    pub fn text(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            transient: false,
            no_space: false,
            damaged: None,
            remote_data: false,
        }
    }
}
