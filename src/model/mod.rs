//! What the daemon talks about: identities, what the CM wants, what is reported back.
//!
//! Plain data, runs on every thread. No input or output, no clocks, no wire types and no serde:
//! whoever stores or sends one of these has a type of its own beside the adapter.

pub mod command;
pub mod desired;
pub mod event;
pub mod failure;
pub mod id;
pub mod job;
pub mod node;
pub mod service;
pub mod status;
pub mod store;
pub mod traffic;
