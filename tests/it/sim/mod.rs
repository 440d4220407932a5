//! Simulation: the real core and the real job scripts on a made-up host, with a virtual clock, on
//! one thread, with seeded disorder, faults and crashes.

mod host;
mod packages;
mod rows;
mod unit;

mod adoption;
mod alerts;
mod clock;
mod crashes;
mod data;
mod node_config;
mod order;
mod requests;
mod secrets;
mod statuses;
mod supervision;
mod table;
