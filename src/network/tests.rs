//! The net thread against the real kernel, in namespaces of the test's own.

mod dns;
mod faults;
mod life;
mod limits;
mod reach;
mod rig;
mod traffic;
mod vlan;
