//! The translation of messages, without the connections. The files are links to the daemon's: the
//! modules below them are found by their place.

pub mod dialect;
pub mod fuzzing;
pub mod v4;

#[allow(clippy::all)]
pub mod wire {
    pub mod v4 {
        include!(concat!(env!("OUT_DIR"), "/cm_v4/mod.rs"));
    }
}
