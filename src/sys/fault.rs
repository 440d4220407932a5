//! Fault points: places at which a test lets the daemon die as in a power cut.
//!
//! Only in builds with debug assertions, and only if the environment asks for it:
//! `AOS_FAULT_AT=<name>:<n>` ends the process by SIGKILL when it passes a point of this name for the
//! n-th time in its life; the names are those of the calls. In a release build a point is nothing.

/// Passes a point.
#[cfg(not(debug_assertions))]
#[inline(always)]
pub fn point(_name: &'static str) {}

/// Passes a point.
#[cfg(debug_assertions)]
pub fn point(name: &'static str) {
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU64, Ordering};

    /// Name and number of the deadly point; `None` = there is none.
    static DEADLY: OnceLock<Option<(String, u64)>> = OnceLock::new();
    /// Points of this name that were passed, by all threads.
    static PASSED: AtomicU64 = AtomicU64::new(0);

    let deadly = DEADLY.get_or_init(|| {
        let text = std::env::var("AOS_FAULT_AT").ok()?;
        let (name, number) = text.rsplit_once(':')?;
        Some((name.to_owned(), number.parse().ok()?))
    });
    let Some((_, deadly)) = deadly.as_ref().filter(|(deadly, _)| deadly == name) else { return };
    let passed = PASSED.fetch_add(1, Ordering::Relaxed) + 1;
    if passed == *deadly {
        // Nothing can be done if that fails, and nothing after it is reached.
        let _ = nix::sys::signal::kill(nix::unistd::Pid::this(), nix::sys::signal::Signal::SIGKILL);
        // The signal may take a moment to arrive; nothing more must happen in this thread.
        loop {
            std::thread::park();
        }
    }
    log::trace!("passed fault point number={passed} name={name}");
}
