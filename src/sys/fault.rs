//! Fault points: places at which a test lets the daemon die as in a power cut, or hang.
//!
//! Only in builds with debug assertions, and only if the environment asks for it:
//! `AOS_FAULT_AT=<name>:<n>` ends the process by SIGKILL when it passes a point of this name for the
//! n-th time in its life, `AOS_HANG_AT=<name>:<n>` stops the thread there for good; the names are
//! those of the calls. In a release build a point is nothing.

/// Passes a point.
#[cfg(not(debug_assertions))]
#[inline(always)]
pub fn point(_name: &'static str) {}

/// Passes a point.
#[cfg(debug_assertions)]
pub fn point(name: &'static str) {
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU64, Ordering};

    /// Where it is and what happens there.
    struct Fault {
        name: String,
        number: u64,
        kills: bool,
    }

    fn from_env(variable: &str, kills: bool) -> Option<Fault> {
        let text = std::env::var(variable).ok()?;
        let (name, number) = text.rsplit_once(':')?;
        Some(Fault { name: name.to_owned(), number: number.parse().ok()?, kills })
    }

    /// `None` = there is none.
    static FAULT: OnceLock<Option<Fault>> = OnceLock::new();
    /// Points of this name that were passed, by all threads.
    static PASSED: AtomicU64 = AtomicU64::new(0);

    let fault =
        FAULT.get_or_init(|| from_env("AOS_FAULT_AT", true).or(from_env("AOS_HANG_AT", false)));
    let Some(fault) = fault.as_ref().filter(|fault| fault.name == name) else { return };
    let passed = PASSED.fetch_add(1, Ordering::Relaxed) + 1;
    if passed == fault.number {
        if fault.kills {
            // Nothing can be done if that fails, and nothing after it is reached.
            let signal = nix::sys::signal::Signal::SIGKILL;
            let _ = nix::sys::signal::kill(nix::unistd::Pid::this(), signal);
        }
        // The signal may take a moment to arrive; nothing more must happen in this thread.
        loop {
            std::thread::park();
        }
    }
    log::trace!("passed fault point number={passed} name={name}");
}
