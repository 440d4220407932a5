//! Namespaces of former instances, kept until a quiet moment.
//!
//! Owned by the net thread. The kernel takes the links of a dead namespace apart in one go with
//! those of all others that are dead by then, and everybody who wants to change a link waits for it
//! meanwhile, some 50 ms for one as for many. So the last reference to a namespace is given up only
//! when nobody has come or gone for a while, for many at once. In: descriptors of namespaces whose
//! names are gone already, so that a death of the daemon ends them, too. Not here: links that do not
//! vanish (`domain`).

use std::fs::File;
use std::time::Duration;

/// Without an attach or a detach for so long, what is kept is let go.
pub(super) const QUIET: Duration = Duration::from_millis(100);
/// The longest time for which a namespace is kept.
pub(super) const LONGEST: Duration = Duration::from_secs(1);
/// Most namespaces that are kept; each is some 300 KiB of the kernel's memory.
pub(super) const MOST: usize = 64;

/// What waits for a quiet moment. Times are those of the monotonic clock.
#[derive(Debug, Default)]
pub(super) struct Ending {
    kept: Vec<File>,
    since: Duration,
    busy_at: Duration,
}

impl Ending {
    /// Somebody comes or goes.
    pub(super) fn busy(&mut self, now: Duration) {
        self.busy_at = now;
    }

    /// Keeps a namespace.
    pub(super) fn keep(&mut self, namespace: File, now: Duration) {
        if self.kept.is_empty() {
            self.since = now;
        }
        self.kept.push(namespace);
        self.busy(now);
        if self.kept.len() >= MOST {
            self.kept.clear();
        }
    }

    /// When it is quiet, if nobody comes or goes until then.
    pub(super) fn quiet_at(&self) -> Duration {
        self.busy_at + QUIET
    }

    /// When `tick` has something to do.
    pub(super) fn deadline(&self) -> Option<Duration> {
        let at = self.quiet_at().min(self.since + LONGEST);
        (!self.kept.is_empty()).then_some(at)
    }

    /// Lets go what is due.
    pub(super) fn tick(&mut self, now: Duration) {
        if self.deadline().is_some_and(|at| at <= now) {
            self.kept.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(1000 + ms)
    }

    fn file() -> File {
        File::open("/dev/null").unwrap()
    }

    #[test]
    fn kept_until_it_is_quiet() {
        let mut ending = Ending::default();
        assert_eq!(ending.deadline(), None);
        ending.keep(file(), ms(0));
        assert_eq!(ending.deadline(), Some(ms(100)));
        ending.busy(ms(60));
        ending.tick(ms(100));
        assert_eq!((ending.kept.len(), ending.deadline()), (1, Some(ms(160))));
        ending.tick(ms(160));
        assert_eq!((ending.kept.len(), ending.deadline()), (0, None));
    }

    #[test]
    fn kept_neither_for_ever_nor_without_end() {
        let mut ending = Ending::default();
        for at in (0..).step_by(50).take(20) {
            ending.keep(file(), ms(at));
            ending.tick(ms(at));
        }
        assert_eq!((ending.kept.len(), ending.deadline()), (20, Some(ms(1000))));
        ending.tick(ms(1000));
        assert_eq!(ending.kept.len(), 0);
        for _ in 0..MOST {
            ending.keep(file(), ms(2000));
            assert!(ending.kept.len() < MOST);
        }
        assert_eq!(ending.deadline(), None);
    }
}
