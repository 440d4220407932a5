//! Being written.

pub mod spec;

pub mod bundle;
pub mod checks;
pub mod devices;
pub mod env;
pub mod limits;
pub mod oci;
pub mod record;
pub mod rootfs;
pub mod storage;
