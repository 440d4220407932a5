//! The net thread against the real kernel, in namespaces of the test's own; and the bytes of
//! what it says.

mod clear;
mod dns;
mod encoding;
mod encoding_rules;
mod faults;
mod ipv6;
mod life;
mod limits;
mod networks;
mod peer;
mod reach;
mod rig;
mod traffic;
mod vlan;
