//! Containers: what a runtime is told (`spec` and the modules it uses), what lies on disk for it
//! (`bundle`, `rootfs`, `record`, `storage`, `remote`), and the runtimes themselves (`crun`, `sealed`,
//! `cgroup`, `enforce`).
//!
//! All of it runs on the exec threads, but for `remote`. Not here: when a container starts or stops (core), in which
//! order its parts are made (jobs).

pub mod cgroup;
pub mod crun;
pub mod spec;

pub mod bundle;
pub mod checks;
pub mod devices;
mod enforce;
pub mod env;
pub mod limits;
pub mod oci;
mod program;
pub mod record;
pub mod remote;
pub mod rootfs;
pub mod sealed;
pub mod storage;
