//! The parts of a simulated unit: certificates, package builder, file server, IAM and CM servers,
//! the catalogue of what the unit should run, and the language of its scripts.
//!
//! Everything here is free of the program's own state, so that tests include this directory with
//! `#[path]` and use the parts in their own process. It is an independent peer: of the daemon it
//! knows the published messages and package formats, and nothing else. The rules about threads
//! and channels of the daemon do not apply; still every handler of a server only translates
//! between a call and a channel and never blocks.
#![allow(dead_code, unreachable_pub)] // tests and the program each use a part of it
#![allow(clippy::disallowed_methods)]

pub mod answers;
pub mod catalog;
pub mod certs;
pub mod cm;
pub mod files;
pub mod iam;
pub mod package;
pub mod render;
pub mod script;
pub mod server;
pub mod table;
pub mod world;
mod words;
