//! Safe wrappers around the kernel and the C library: the only place with `unsafe`.
//!
//! Runs on every thread, owns nothing but what a caller holds. Functions take and return owned or
//! borrowed descriptors, return `io::Result`, retry interrupted calls and set close-on-exec when
//! they create. Deliberately not here: decisions, retries with pauses, logging of errors.

#![allow(unsafe_code)]

pub mod cgroups;
pub mod command;
pub mod cpu_count;
pub mod fault;
pub mod fs;
pub mod malloc;
pub mod mount;
pub mod netlink;
pub mod netns;
pub mod notify;
pub mod pidfd;
pub mod pkcs11;
pub mod process;
pub mod progress;
pub mod random;
pub mod residency;
pub mod rights;
pub mod span;
pub mod thread;
pub mod time;
pub mod tree;
pub mod usage;
pub mod xattr;

#[cfg(test)]
pub(crate) mod testing;

use std::io;

use nix::errno::Errno;

/// Repeats a call for as long as a signal interrupts it.
pub(crate) fn retry<T>(mut call: impl FnMut() -> nix::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(Errno::EINTR) => {}
            other => return other.map_err(io::Error::from),
        }
    }
}

/// True when the error carries this errno.
pub fn is_errno(error: &io::Error, errno: Errno) -> bool {
    error.raw_os_error() == Some(errno as i32)
}
