//! The communication manager. Being written.

/// Messages of the CM, generated. Only this module and the simulated unit use them.
#[doc(hidden)]
#[allow(unreachable_pub, missing_docs, clippy::all, clippy::pedantic)]
pub mod wire {
    pub mod v4 {
        include!(concat!(env!("OUT_DIR"), "/cm_v4/mod.rs"));
    }
}
