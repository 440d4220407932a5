//! The real daemon as a process against the simulated unit, over mutual TLS.

mod command_line;
mod database;
mod peers;
mod requests;
mod token;
