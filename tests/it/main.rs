//! The one integration-test binary; each module is a level or a group of scenarios.

#![allow(unreachable_pub)] // nobody imports from a test binary
#![allow(clippy::unwrap_used, clippy::print_stdout)] // all of this is tests

#[cfg(feature = "sim")]
mod common;
#[cfg(feature = "sim")]
mod daemon;
mod network;
mod program;
mod readme;
mod required;
mod requirements;
#[cfg(feature = "sim")]
mod root;
mod sim;
#[cfg(feature = "sim")]
mod storage;
mod tidy;
