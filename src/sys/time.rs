//! Clocks, deadlines, and a descriptor that becomes readable when the wall clock is set.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::time::{TimeSpec, TimeValLike};
use nix::sys::timerfd::{
    ClockId as TimerClock, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags,
};
use nix::time::{ClockId, clock_gettime};

use crate::ports::{Clock, Now};

/// Expiration of the timer that watches the wall clock, seconds: a time that never comes.
const NEVER_SECS: i64 = i64::MAX / 1_000_000_000;

/// The clocks of the kernel.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Now {
        Now { mono: monotonic(), boot: read(ClockId::CLOCK_BOOTTIME), wall_ms: wall_ms() }
    }
}

/// CLOCK_MONOTONIC.
pub fn monotonic() -> Duration {
    read(ClockId::CLOCK_MONOTONIC)
}

/// Unix time in milliseconds.
pub fn wall_ms() -> i64 {
    clock_gettime(ClockId::CLOCK_REALTIME).map_or(0, |time| time.num_milliseconds())
}

/// The moment as the standard library counts it, on the same clock as `monotonic`.
#[allow(clippy::disallowed_methods)]
pub fn now() -> Instant {
    Instant::now()
}

/// A deadline on CLOCK_MONOTONIC as the standard library and channels want it.
pub fn instant_of(mono: Duration) -> Instant {
    now() + mono.saturating_sub(monotonic())
}

fn read(clock: ClockId) -> Duration {
    // Reading a clock that exists since before the oldest supported kernel cannot fail.
    clock_gettime(clock).map_or(Duration::ZERO, Duration::from)
}

/// Readable after each jump of the wall clock, resume from suspend included.
#[derive(Debug)]
pub struct ClockJumps {
    timer: TimerFd,
}

impl ClockJumps {
    /// Begins to watch. Costs nothing until the clock is set.
    pub fn watch() -> io::Result<Self> {
        let flags = TimerFlags::TFD_CLOEXEC | TimerFlags::TFD_NONBLOCK;
        let jumps = Self { timer: TimerFd::new(TimerClock::CLOCK_REALTIME, flags)? };
        jumps.arm()?;
        Ok(jumps)
    }

    /// Takes the pending notification and says whether there was one.
    pub fn take(&self) -> io::Result<bool> {
        match self.timer.wait() {
            Ok(()) | Err(Errno::ECANCELED) => {
                self.arm()?;
                Ok(true)
            }
            Err(Errno::EAGAIN) => Ok(false),
            Err(errno) => Err(errno.into()),
        }
    }

    fn arm(&self) -> io::Result<()> {
        let flags = TimerSetTimeFlags::TFD_TIMER_ABSTIME
            | TimerSetTimeFlags::from_bits_retain(libc::TFD_TIMER_CANCEL_ON_SET);
        let never = Expiration::OneShot(TimeSpec::new(NEVER_SECS, 0));
        self.timer.set(never, flags).map_err(io::Error::from)
    }
}

impl AsFd for ClockJumps {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.timer.as_fd()
    }
}

impl AsRawFd for ClockJumps {
    fn as_raw_fd(&self) -> RawFd {
        self.timer.as_fd().as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clocks_are_plausible_and_do_not_go_back() {
        let (first, second) = (SystemClock.now(), SystemClock.now());
        assert!(first.mono <= second.mono && first.boot <= second.boot);
        assert!(first.boot >= first.mono);
        assert!(first.wall_ms > 1_600_000_000_000);
    }

    #[test]
    fn a_deadline_keeps_its_distance() {
        let ahead = instant_of(monotonic() + Duration::from_secs(100)) - now();
        assert!(ahead > Duration::from_secs(99) && ahead <= Duration::from_secs(101));
        assert!(instant_of(Duration::ZERO) <= now());
    }

    #[test]
    fn no_jump_no_notification() {
        assert!(!ClockJumps::watch().unwrap().take().unwrap());
    }
}
