//! Simulation: the real core and the real job scripts on a made-up host, with a virtual clock, on
//! one thread, with seeded disorder, faults and crashes.

mod host;
mod rows;
mod unit;

mod crashes;
mod requests;
mod supervision;
