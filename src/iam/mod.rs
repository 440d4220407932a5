//! The identity and access manager. Being written.

/// Messages of IAM, generated. Only this module and the simulated unit use them.
#[doc(hidden)]
#[allow(unreachable_pub, missing_docs, clippy::all, clippy::pedantic)]
pub mod wire {
    pub mod v5 {
        include!(concat!(env!("OUT_DIR"), "/iam_v5/mod.rs"));
    }
    pub mod version {
        include!(concat!(env!("OUT_DIR"), "/iam_version/mod.rs"));
    }
}
