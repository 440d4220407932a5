//! The net thread against the real kernel, in namespaces of the test's own.

mod dns;
mod faults;
mod life;
mod reach;
mod rig;
mod traffic;
