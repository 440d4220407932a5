//! Threads with a name and a small stack, and the signal mask all of them share.

use std::io;
use std::thread::{Builder, JoinHandle};

use nix::sys::signal::{SigSet, Signal};

/// Stack of a thread in bytes unless a larger one was measured to be necessary.
pub const STACK_BYTES: usize = 256 * 1024;

/// Longest thread name that the kernel shows.
pub const NAME_MAX: usize = 15;

/// Signals that only the main thread takes.
const OURS: [Signal; 5] =
    [Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGUSR1];

/// Starts a thread with a stack of `STACK_BYTES`. The name has at most `NAME_MAX` bytes.
pub fn spawn<T: Send + 'static>(
    name: &'static str,
    body: impl FnOnce() -> T + Send + 'static,
) -> io::Result<JoinHandle<T>> {
    spawn_sized(name, STACK_BYTES, body)
}

/// Starts a thread with a stack of `stack_bytes`, for code that was measured to need more.
pub fn spawn_sized<T: Send + 'static>(
    name: &'static str,
    stack_bytes: usize,
    body: impl FnOnce() -> T + Send + 'static,
) -> io::Result<JoinHandle<T>> {
    debug_assert!(name.len() <= NAME_MAX, "thread name {name} is too long");
    Builder::new().name(name.to_owned()).stack_size(stack_bytes).spawn(body)
}

/// Blocks the signals of the daemon in the calling thread and in all threads it starts from now
/// on. Called by main before the first thread exists, gRPC's included.
pub fn block_signals() -> io::Result<()> {
    ours().thread_block().map_err(io::Error::from)
}

/// Lets the calling thread take the signals of the daemon: the event loop, and nobody else.
pub fn unblock_signals() -> io::Result<()> {
    ours().thread_unblock().map_err(io::Error::from)
}

fn ours() -> SigSet {
    OURS.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_have_their_name_and_inherit_the_mask() {
        let outer = spawn("outer-thread", || {
            block_signals().unwrap();
            spawn("inner", || {
                let name = std::thread::current().name().map(str::to_owned);
                (name, SigSet::thread_get_mask().unwrap())
            })
            .unwrap()
            .join()
            .unwrap()
        });
        let (name, mask) = outer.unwrap().join().unwrap();
        assert_eq!(name.as_deref(), Some("inner"));
        assert!(OURS.iter().all(|signal| mask.contains(*signal)));
        assert!(!mask.contains(Signal::SIGUSR2));
    }
}
