//! The real daemon as a process against the simulated unit, over mutual TLS.

mod command_line;
mod database;
mod node_file;
mod peers;
mod requests;
mod token;
