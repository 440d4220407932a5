//! The real daemon with real containers, networks and control groups.

mod clock;
mod crashes;
mod data;
mod devices;
mod hostile;
mod hotplug;
mod kills;
mod leaving;
mod logs;
mod noise;
mod packages;
mod peer;
mod platform;
mod run;
mod runtimes;
mod sampling;
mod stuck;
mod supervision;
mod sweep;
mod systemd;
mod tracing;
mod watching;
mod values;
