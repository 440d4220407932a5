//! What crosses a port when something went wrong.

use crate::model::status::chain;

/// Why a port call failed.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// The adapter's error with all its causes.
    pub message: String,
    /// The same call may succeed later without anybody changing anything.
    pub transient: bool,
    /// The disk is too full, although everything that may go was removed.
    pub no_space: bool,
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
        Self { message: message.into(), transient: false, no_space: false }
    }
}
