//! The one integration-test binary; each module is a level or a group of scenarios.

#![allow(unreachable_pub)] // nobody imports from a test binary
#![allow(clippy::unwrap_used)] // a test fails by panicking

mod program;
mod sim;
mod tidy;
