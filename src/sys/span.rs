//! Where time goes: what the parts of a start take, as lines of the log.
//!
//! Any thread. A span is one piece of work with its begin and length, a mark is a moment; times are
//! microseconds of CLOCK_MONOTONIC, so that lines of different threads can be put in order. Spans
//! are a level of the log of their own, below debug: `log` leaves trace messages out of release
//! builds, and these are for the node as it is. Switched off, a span costs one comparison and reads
//! no clock. Deliberately not here: what is made of the lines (`benches/lifecycle.rs --spans`).

use std::fmt::Display;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::sys::time::monotonic;

/// Set once, before there are threads.
static SHOWN: AtomicBool = AtomicBool::new(false);

/// From now on spans are logged.
pub fn show() {
    SHOWN.store(true, Ordering::Relaxed);
}

fn are_shown() -> bool {
    SHOWN.load(Ordering::Relaxed)
}

/// Does a piece of work of, or for, `about`.
pub fn span<T>(name: &'static str, about: &dyn Display, work: impl FnOnce() -> T) -> T {
    if !are_shown() {
        return work();
    }
    let begun = monotonic();
    let result = work();
    let took = monotonic().saturating_sub(begun);
    log::debug!("{}", line(name, about, begun, took));
    result
}

/// A moment.
pub fn mark(name: &'static str, about: &dyn Display) {
    if are_shown() {
        log::debug!("{}", line(name, about, monotonic(), Duration::ZERO));
    }
}

fn line(name: &str, about: &dyn Display, at: Duration, took: Duration) -> String {
    format!("span name={name} at_us={} took_us={} about={about}", at.as_micros(), took.as_micros())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_its_fields() {
        let line = line("attach", &"i1", Duration::from_millis(5), Duration::from_micros(7));
        assert_eq!(line, "span name=attach at_us=5000 took_us=7 about=i1");
    }

    #[test]
    fn the_work_is_done() {
        assert_eq!(span("attach", &"i1", || 5), 5);
    }
}
