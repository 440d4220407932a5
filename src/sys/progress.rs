//! Whether threads make progress: each says when it goes on with its work and when it waits again;
//! the main thread looks at what they said, if a service manager wants to know.
//!
//! Any thread. A thread that waits, for its inbox, for another thread, for a peer or a child, is not
//! stuck: that wait has a limit of its own, or whoever it waits for is looked at as well. A thread
//! that works says so again at least with each piece of its work. Looking wakes nobody. Without a
//! service manager no thread has a mark, and nothing is noted. Deliberately not here: what is done
//! about a thread that is stuck (`event_loop`).

use std::cell::OnceCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::sys::fault;
use crate::sys::time::monotonic;

thread_local! {
    static MINE: OnceCell<Arc<Mark>> = const { OnceCell::new() };
}

/// What one thread says of itself.
#[derive(Debug)]
struct Mark {
    name: &'static str,
    /// Since when it works, milliseconds of CLOCK_MONOTONIC, or `WAITS`.
    since_ms: AtomicU64,
}

const WAITS: u64 = 0;

/// Reads the marks of all threads.
#[derive(Debug, Default)]
pub struct Board {
    marks: Vec<Arc<Mark>>,
}

/// The mark of a thread that has not begun.
#[derive(Debug)]
pub struct Place(Arc<Mark>);

/// A thread that gave no sign for too long.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Stuck {
    pub thread: &'static str,
    /// Since its last sign.
    pub silence: Duration,
}

impl Board {
    /// A mark for one more thread.
    pub fn add(&mut self, name: &'static str) -> Place {
        let mark = Arc::new(Mark { name, since_ms: AtomicU64::new(WAITS) });
        self.marks.push(mark.clone());
        Place(mark)
    }

    /// The thread that works longest without a sign, if for longer than `limit`. Others may only
    /// wait for it.
    pub fn stuck(&self, limit: Duration, now: Duration) -> Option<Stuck> {
        let working = self.marks.iter().filter_map(|mark| {
            let since_ms = mark.since_ms.load(Ordering::Relaxed);
            let silence = now.saturating_sub(Duration::from_millis(since_ms));
            (since_ms != WAITS).then_some(Stuck { thread: mark.name, silence })
        });
        working.max_by_key(|stuck| stuck.silence).filter(|stuck| stuck.silence > limit)
    }
}

impl Place {
    /// The calling thread is the one, and begins to work.
    pub fn take(self) {
        let taken = MINE.with(|mine| mine.set(self.0).is_ok());
        debug_assert!(taken, "a thread has one mark");
        works();
    }
}

/// The calling thread goes on after a wait.
pub fn works() {
    if let Some(name) = note(now_ms) {
        fault::point(name);
    }
}

/// One piece of long work is done.
pub fn step() {
    note(now_ms);
}

/// The calling thread waits, or has ended.
pub fn rests() {
    note(|| WAITS);
}

/// Waits.
pub fn waiting<T>(wait: impl FnOnce() -> T) -> T {
    rests();
    let result = wait();
    works();
    result
}

/// The name of the thread, if it has a mark.
fn note(value: impl FnOnce() -> u64) -> Option<&'static str> {
    MINE.with(|mine| {
        let mark = mine.get()?;
        mark.since_ms.store(value(), Ordering::Relaxed);
        Some(mark.name)
    })
}

fn now_ms() -> u64 {
    u64::try_from(monotonic().as_millis()).unwrap_or(u64::MAX).max(WAITS + 1)
}

#[cfg(test)]
mod tests {
    use crossbeam::channel::bounded;

    use super::*;
    use crate::sys::thread::spawn;

    const LIMIT: Duration = Duration::from_secs(10);
    const LATER: Duration = Duration::from_secs(11);

    fn name(board: &Board, later: Duration) -> Option<&'static str> {
        board.stuck(LIMIT, monotonic() + later).map(|stuck| stuck.thread)
    }

    #[test]
    fn a_thread_that_works_too_long_is_named() {
        let mut board = Board::default();
        let place = board.add("one");
        board.add("never-begun");
        let (orders, inbox) = bounded::<fn()>(0);
        let (done, heard) = bounded(0);
        let thread = spawn("one", move || {
            place.take();
            while let Ok(order) = waiting(|| inbox.recv()) {
                order();
                done.send(()).unwrap();
            }
            rests();
        });
        let order = |order: fn()| {
            orders.send(order).unwrap();
            heard.recv().unwrap();
        };
        order(|| {});
        // It waits, or is about to.
        order(rests);
        // Here it works, and says so.
        orders.send(step).unwrap();
        while name(&board, LATER).is_none() {
            std::thread::yield_now();
        }
        assert_eq!(name(&board, LATER), Some("one"));
        assert_eq!(name(&board, Duration::ZERO), None);
        heard.recv().unwrap();
        drop(orders);
        thread.unwrap().join().unwrap();
        assert_eq!(name(&board, LATER), None);
    }

    #[test]
    fn the_longest_silence_counts() {
        let mut board = Board::default();
        let set = |place: Place, since_ms| place.0.since_ms.store(since_ms, Ordering::Relaxed);
        set(board.add("waits-for-it"), 5_000);
        set(board.add("stuck"), 3_000);
        set(board.add("waits"), WAITS);
        let stuck = |at_ms| board.stuck(LIMIT, Duration::from_millis(at_ms));
        assert_eq!(stuck(13_000), None);
        let expect = Stuck { thread: "stuck", silence: Duration::from_millis(13_000) };
        assert_eq!(stuck(16_000), Some(expect));
        // A clock that was read before the mark was set.
        assert_eq!(stuck(0), None);
    }

    #[test]
    fn without_a_mark_nothing_is_noted() {
        assert_eq!(note(now_ms), None);
        assert_eq!(waiting(|| 5), 5);
    }
}
