//! What the daemon and system tests share: a simulated unit with one daemon, in namespaces of its
//! own, and a look at what the daemon does to the host.
//!
//! The daemon is `aos_servicemanager` of this build, or the program named by `SM_UNDER_TEST`.

pub mod allocations;
pub mod chance;
pub mod host;
pub mod image;
pub mod need;
pub mod program;
pub mod space;
pub mod unit;

use std::time::Duration;

use aos_servicemanager::sys::time::monotonic;

/// Longest wait for something that has to happen; nothing is ever measured with it.
const PATIENCE: Duration = Duration::from_secs(60);

/// `PATIENCE`, as many times as a slow platform says in `SM_PATIENCE`.
pub fn patience() -> Duration {
    PATIENCE * slowness()
}

/// How many times as long as usual things may take.
pub fn slowness() -> u32 {
    let given = std::env::var("SM_PATIENCE").ok();
    given.and_then(|text| text.parse().ok()).unwrap_or(1)
}

/// Pause between two looks at a state that nothing announces.
const LOOK_PERIOD: Duration = Duration::from_millis(5);

/// Waits for a state of the kernel or a file that nothing announces.
pub fn wait_until(what: &str, mut reached: impl FnMut() -> bool) {
    let end = monotonic() + patience();
    while !reached() {
        assert!(monotonic() < end, "{what}: does not happen");
        std::thread::sleep(LOOK_PERIOD);
    }
}
