//! The start limiter: at most `burst` starts in a fixed window that begins with its first start.

use std::time::Duration;

use crate::model::job::LimiterState;
use crate::model::service::RunParameters;

/// Default of v4, `startInterval`.
pub const START_INTERVAL: Duration = Duration::from_secs(5);
/// Default of v4, `startBurst`.
pub const START_BURST: u64 = 3;
/// Default of v4, `restartInterval`.
pub const RESTART_INTERVAL: Duration = Duration::from_secs(1);

/// Run parameters with the defaults filled in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RunRules {
    pub start_interval: Duration,
    pub start_burst: u64,
    pub restart_interval: Duration,
}

impl RunRules {
    /// `None` when an interval is below one microsecond: the start fails (`invalid parameters`).
    pub fn new(parameters: &RunParameters) -> Option<Self> {
        let interval = |ns: Option<i64>, default: Duration| match ns {
            None | Some(0) => Some(default),
            Some(ns) => u64::try_from(ns).ok().filter(|ns| *ns >= 1000).map(Duration::from_nanos),
        };
        Some(Self {
            start_interval: interval(parameters.start_interval_ns, START_INTERVAL)?,
            start_burst: parameters.start_burst.filter(|n| *n != 0).unwrap_or(START_BURST),
            restart_interval: interval(parameters.restart_interval_ns, RESTART_INTERVAL)?,
        })
    }
}

/// Counts a start attempt at `now` (CLOCK_MONOTONIC); false = refused.
pub fn allow(state: &mut LimiterState, rules: &RunRules, now: Duration) -> bool {
    let now_ns = u64::try_from(now.as_nanos()).unwrap_or(u64::MAX);
    let begin = Duration::from_nanos(state.begin_ns);
    if state.count == 0 || now.saturating_sub(begin) > rules.start_interval {
        *state = LimiterState { begin_ns: now_ns, count: 1 };
        return true;
    }
    state.count += 1;
    state.count <= rules.start_burst
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Attempts in milliseconds for an instance that lives `life_ms` each time, up to `max`.
    fn attempts(life_ms: u64, max: usize) -> (Vec<u64>, bool) {
        let rules = RunRules::new(&RunParameters::default()).unwrap();
        let (mut state, mut at, mut done) = (LimiterState::default(), 0, Vec::new());
        while done.len() < max {
            if !allow(&mut state, &rules, Duration::from_millis(at)) {
                return (done, false);
            }
            done.push(at);
            at += life_ms + 1000;
        }
        (done, true)
    }

    #[test]
    fn vectors() {
        assert_eq!(attempts(0, 9), (vec![0, 1000, 2000], false));
        assert_eq!(attempts(2000, 5), (vec![0, 3000, 6000, 9000, 12000], true));
        assert_eq!(attempts(1400, 4), (vec![0, 2400, 4800, 7200], true));
    }

    #[test]
    fn exactly_the_interval_is_inside() {
        let rules =
            RunRules { start_burst: 1, ..RunRules::new(&RunParameters::default()).unwrap() };
        let mut state = LimiterState::default();
        assert!(allow(&mut state, &rules, Duration::from_secs(1)));
        assert!(!allow(&mut state, &rules, Duration::from_secs(6)));
    }

    #[test]
    fn parameters() {
        let rules = |start, burst, restart| {
            RunRules::new(&RunParameters {
                start_interval_ns: start,
                start_burst: burst,
                restart_interval_ns: restart,
            })
        };
        let defaults = rules(None, None, None).unwrap();
        assert_eq!(defaults.start_interval, Duration::from_secs(5));
        assert_eq!(rules(Some(0), Some(0), Some(0)), Some(defaults));
        assert_eq!(rules(Some(-1), None, None), None);
        assert_eq!(rules(None, None, Some(999)), None);
        assert_eq!(rules(Some(1000), None, None).unwrap().start_interval, Duration::from_micros(1));
    }
}
