//! Pure: what the counters of the node and of its instances say over time. They live in the kernel;
//! here is what of them is known, what of it the database has, and when a period ends.
//!
//! Runs on the net thread, with times as arguments. Counters have the names that the reference
//! gave to its chains, so that a database that was taken over continues. A limit that was reached
//! holds over restarts of the instance: a counter begins with the value that it had.

use std::collections::BTreeMap;
use std::time::Duration;

use super::naming;
use crate::model::id::InstanceId;
use crate::model::traffic::{TrafficRow, Volume};

/// A counter that moved by less is stored after `SLOW_PERIOD` only: flash wears.
const WORTH_STORING_BYTES: u64 = 64 * 1024;
const SLOW_PERIOD: Duration = Duration::from_secs(15 * 60);
/// 2020-01-01: a clock that shows less is not set yet.
const PLAUSIBLE_MS: i64 = 1_577_836_800_000;
const SECOND_MS: i64 = 1000;
const MINUTE_MS: i64 = 60 * SECOND_MS;
const HOUR_MS: i64 = 60 * MINUTE_MS;
const DAY_MS: i64 = 24 * HOUR_MS;

/// After which counters and limits begin again, in UTC.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum TrafficPeriod {
    Minute,
    Hour,
    #[default]
    Day,
    Month,
    Year,
}

impl TrafficPeriod {
    /// Number of the period in which a moment lies; grows with time.
    fn index(self, wall_ms: i64) -> i64 {
        let (year, month) = year_and_month(wall_ms.div_euclid(DAY_MS));
        match self {
            Self::Minute => wall_ms.div_euclid(MINUTE_MS),
            Self::Hour => wall_ms.div_euclid(HOUR_MS),
            Self::Day => wall_ms.div_euclid(DAY_MS),
            Self::Month => year * 12 + month,
            Self::Year => year,
        }
    }

    /// Time until the next period; of months and years no more than until the next day, because
    /// looking again costs nothing.
    fn remaining(self, wall_ms: i64) -> Duration {
        let length = match self {
            Self::Minute => MINUTE_MS,
            Self::Hour => HOUR_MS,
            Self::Day | Self::Month | Self::Year => DAY_MS,
        };
        let left = length - wall_ms.rem_euclid(length);
        Duration::from_millis(u64::try_from(left).unwrap_or(0))
    }
}

/// Year and month (0 to 11) of a day since 1970-01-01, in the Gregorian calendar.
fn year_and_month(day: i64) -> (i64, i64) {
    // Years begin in March here, so that the leap day is the last one; 400 years are an era.
    let day = day + 719_468;
    let era = day.div_euclid(146_097);
    let of_era = day.rem_euclid(146_097);
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let from_march = (5 * of_year + 2) / 153;
    let year = year + era * 400;
    if from_march < 10 { (year, from_march + 2) } else { (year + 1, from_march - 10) }
}

/// Names of the two counters of somebody.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Owner {
    Node,
    Instance(InstanceId),
}

impl Owner {
    /// Names of the counters, download first.
    pub(super) fn chains(&self) -> [Box<str>; 2] {
        ["IN", "OUT"].map(|direction| match self {
            Self::Node => format!("AOS_SYSTEM_{direction}").into(),
            Self::Instance(id) => {
                format!("AOS_{:x}_{direction}", naming::fnv64(id.as_str(), 0)).into()
            }
        })
    }
}

/// One counter.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Counter {
    bytes: u64,
    /// Value in the database; `None` = no row.
    stored: Option<u64>,
    /// Since when `bytes` differs from it.
    differs_since: Option<Duration>,
}

/// All counters, also those of instances that do not run at the moment.
#[derive(Debug)]
pub(super) struct Ledger {
    period: TrafficPeriod,
    store_period: Duration,
    /// Download and upload of each.
    counters: BTreeMap<Owner, [Counter; 2]>,
    /// Wall time at which the counters were valid last; 0 = never.
    valid_ms: i64,
    /// Nobody takes rows if there is no database.
    stores: bool,
    next_store: Duration,
    next_period: Duration,
    gone: Vec<Box<str>>,
}

impl Ledger {
    pub(super) fn new(period: TrafficPeriod, store_period: Duration) -> Self {
        Self {
            period,
            store_period,
            counters: BTreeMap::new(),
            valid_ms: 0,
            stores: false,
            next_store: Duration::ZERO,
            next_period: Duration::ZERO,
            gone: Vec::new(),
        }
    }

    /// Takes the rows of the database; those of instances that are not known any more are to be
    /// removed. Rows of the reference have times of their own: what belongs to a period before that
    /// of the newest one has ended with it.
    pub(super) fn restore(&mut self, rows: Vec<TrafficRow>, known: &[InstanceId]) {
        self.stores = true;
        let instances = known.iter().map(|id| Owner::Instance(id.clone()));
        let mut owners: BTreeMap<Box<str>, (Owner, usize)> = BTreeMap::new();
        for owner in instances.chain([Owner::Node]) {
            let chains = owner.chains().into_iter().enumerate();
            owners.extend(chains.map(|(at, chain)| (chain, (owner.clone(), at))));
        }
        let mut found = Vec::new();
        for TrafficRow { chain, time_ms, bytes } in rows {
            let Some(owner) = owners.remove(&chain) else {
                self.gone.push(chain);
                continue;
            };
            self.valid_ms = self.valid_ms.max(time_ms);
            found.push((owner, time_ms, bytes));
        }
        let present = self.period.index(self.valid_ms);
        for ((owner, at), time_ms, bytes) in found {
            // A clock that was not set says nothing about periods.
            let is_over = time_ms >= PLAUSIBLE_MS && self.period.index(time_ms) < present;
            let mut counter = Counter { bytes, stored: Some(bytes), differs_since: None };
            if is_over {
                (counter.bytes, counter.differs_since) = (0, Some(Duration::ZERO));
            }
            self.counters.entry(owner).or_default()[at] = counter;
        }
    }

    /// Drops the counters of instances that never come back, and their rows with the next ones
    /// that are stored.
    pub(super) fn forget(&mut self, ids: &[InstanceId]) {
        for owner in ids.iter().map(|id| Owner::Instance(id.clone())) {
            if let Some(counters) = self.counters.remove(&owner) {
                let chains = owner.chains().into_iter().zip(counters);
                let stored = chains.filter(|(_, counter)| counter.stored.is_some());
                self.gone.extend(stored.map(|(chain, _)| chain));
            }
        }
    }

    /// What is known of somebody.
    pub(super) fn volume(&self, owner: &Owner) -> Volume {
        let [download, upload] = self.counters.get(owner).copied().unwrap_or_default();
        Volume { download_bytes: download.bytes, upload_bytes: upload.bytes }
    }

    /// Takes values that the kernel counted in the present period.
    pub(super) fn count(&mut self, owner: Owner, volume: Volume, now: Duration) {
        let counters = self.counters.entry(owner).or_default();
        let values = [volume.download_bytes, volume.upload_bytes];
        for (counter, bytes) in counters.iter_mut().zip(values) {
            counter.bytes = bytes;
            if counter.stored == Some(bytes) {
                counter.differs_since = None;
            } else if counter.differs_since.is_none() {
                counter.differs_since = Some(now);
            }
        }
    }

    /// Notes that the counters are valid at this time. True = another period has begun since the
    /// last time: the caller sets the counters of the kernel to zero, here they are already.
    /// A clock that is not set or went back ends no period.
    pub(super) fn advance(&mut self, wall_ms: i64, now: Duration) -> bool {
        self.next_period = now + self.period.remaining(wall_ms);
        if wall_ms < PLAUSIBLE_MS || wall_ms < self.valid_ms {
            return false;
        }
        let (last, present) = (self.period.index(self.valid_ms), self.period.index(wall_ms));
        let ended = self.valid_ms >= PLAUSIBLE_MS && present > last;
        self.valid_ms = wall_ms;
        if ended {
            for counter in self.counters.values_mut().flatten() {
                counter.bytes = 0;
                counter.differs_since = Some(now);
            }
            // These tell the period, whatever their value.
            for counter in self.counters.entry(Owner::Node).or_default() {
                counter.stored = None;
            }
        }
        ended
    }

    /// Rows that are worth storing now; none before the store period has passed.
    pub(super) fn due_rows(&mut self, now: Duration) -> Vec<TrafficRow> {
        if now < self.next_store {
            return Vec::new();
        }
        self.next_store = now + self.store_period;
        self.take_rows(|counter| {
            let moved = counter.bytes.abs_diff(counter.stored.unwrap_or(0));
            let waited = counter.differs_since.is_some_and(|since| now >= since + SLOW_PERIOD);
            moved >= WORTH_STORING_BYTES || waited || counter.stored.is_none()
        })
    }

    /// All rows that differ from the database.
    pub(super) fn all_rows(&mut self) -> Vec<TrafficRow> {
        self.take_rows(|_| true)
    }

    /// Names of rows to remove.
    pub(super) fn take_gone(&mut self) -> Vec<Box<str>> {
        std::mem::take(&mut self.gone)
    }

    fn take_rows(&mut self, worth: impl Fn(&Counter) -> bool) -> Vec<TrafficRow> {
        if !self.stores {
            return Vec::new();
        }
        let mut rows = Vec::new();
        for (owner, counters) in &mut self.counters {
            for (at, counter) in counters.iter_mut().enumerate() {
                if counter.stored == Some(counter.bytes) || !worth(counter) {
                    continue;
                }
                counter.stored = Some(counter.bytes);
                counter.differs_since = None;
                let [download, upload] = owner.chains();
                let chain = if at == 0 { download } else { upload };
                rows.push(TrafficRow { chain, time_ms: self.valid_ms, bytes: counter.bytes });
            }
        }
        rows
    }

    /// When the counters are to be looked at again: for the database, or because a period ends.
    pub(super) fn next_deadline(&self) -> Duration {
        self.next_store.min(self.next_period)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 2026-11-22.
    const NOON: i64 = 20_779 * DAY_MS + 12 * HOUR_MS;

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn volume(download_bytes: u64, upload_bytes: u64) -> Volume {
        Volume { download_bytes, upload_bytes }
    }

    fn row(chain: &str, time_ms: i64, bytes: u64) -> TrafficRow {
        TrafficRow { chain: chain.into(), time_ms, bytes }
    }

    fn instance() -> Owner {
        Owner::Instance(InstanceId::new("5ab1c6e1-6d1b-4ac4-8d5c-8d9f8e3e2a51"))
    }

    #[test]
    fn calendar() {
        for (days, expect) in [
            (0, (1970, 0)),
            (30, (1970, 0)),
            (31, (1970, 1)),
            (-1, (1969, 11)),
            (11016, (2000, 1)), // 2000-02-29
            (11017, (2000, 2)),
            (20779, (2026, 10)),
            (47540, (2100, 1)), // 2100-02-28
            (47541, (2100, 2)), // no leap year
        ] {
            assert_eq!(year_and_month(days), expect, "{days}");
        }
    }

    #[test]
    fn periods() {
        use TrafficPeriod::*;
        let after = |period: TrafficPeriod, ms| period.index(NOON + ms) - period.index(NOON);
        assert_eq!((after(Minute, MINUTE_MS - 1), after(Minute, MINUTE_MS)), (0, 1));
        assert_eq!((after(Hour, HOUR_MS - 1), after(Hour, HOUR_MS)), (0, 1));
        assert_eq!((after(Day, 12 * HOUR_MS - 1), after(Day, 12 * HOUR_MS)), (0, 1));
        assert_eq!((after(Month, 8 * DAY_MS), after(Month, 9 * DAY_MS)), (0, 1));
        assert_eq!((after(Year, 39 * DAY_MS), after(Year, 40 * DAY_MS)), (0, 1));
        assert_eq!(Day.remaining(NOON), at(12 * 3600));
        assert_eq!(Minute.remaining(NOON + 1), Duration::from_millis(59_999));
    }

    #[test]
    fn who_is_gone_leaves_no_row() {
        let mut ledger = Ledger::new(TrafficPeriod::Day, at(60));
        ledger.restore(Vec::new(), &[]);
        ledger.advance(NOON, at(1));
        ledger.count(instance(), volume(1, 2), at(1));
        let Owner::Instance(id) = instance() else { unreachable!() };
        let rows = ledger.all_rows();
        ledger.forget(&[id.clone(), InstanceId::new("unknown")]);
        let chains: Vec<_> = rows.into_iter().map(|row| row.chain).collect();
        assert_eq!(ledger.take_gone(), chains);
        assert_eq!(ledger.volume(&instance()), Volume::default());
        assert!(ledger.counters.is_empty());
        // Without a row there is nothing to remove.
        ledger.count(instance(), volume(1, 2), at(2));
        ledger.forget(&[id]);
        assert!(ledger.take_gone().is_empty() && ledger.all_rows().is_empty());
    }

    #[test]
    fn names_are_those_of_the_reference() {
        let [download, upload] = Owner::Node.chains();
        assert_eq!((&*download, &*upload), ("AOS_SYSTEM_IN", "AOS_SYSTEM_OUT"));
        // FNV-1a-64 of "a".
        let [download, _] = Owner::Instance(InstanceId::new("a")).chains();
        assert_eq!(&*download, "AOS_af63dc4c8601ec8c_IN");
    }

    #[test]
    fn rows_go_out_when_they_are_worth_it() {
        let mut ledger = Ledger::new(TrafficPeriod::Day, at(60));
        ledger.restore(
            vec![
                row("AOS_SYSTEM_IN", NOON, 5),
                row("AOS_SYSTEM_OUT", NOON, 6),
                row("AOS_1_IN", 0, 1),
            ],
            &[],
        );
        assert_eq!(ledger.take_gone(), ["AOS_1_IN".into()]);
        assert!(!ledger.advance(NOON + 1, at(1)));
        assert!(ledger.due_rows(at(1)).is_empty());
        assert_eq!(ledger.next_deadline(), at(61));
        ledger.count(Owner::Node, volume(6, 6 + WORTH_STORING_BYTES), at(2));
        assert_eq!(
            ledger.due_rows(at(61)),
            [row("AOS_SYSTEM_OUT", NOON + 1, 6 + WORTH_STORING_BYTES)]
        );
        let late = at(2) + SLOW_PERIOD;
        assert!(ledger.due_rows(late - at(1)).is_empty() && ledger.due_rows(late).is_empty());
        let late = late + at(60);
        assert_eq!(ledger.due_rows(late), [row("AOS_SYSTEM_IN", NOON + 1, 6)]);
        // A new counter gets its row at once: it tells the period.
        let late = late + at(60);
        ledger.count(instance(), Volume::default(), late);
        assert_eq!(ledger.due_rows(late).len(), 2);
        ledger.count(instance(), volume(1, 0), late);
        assert_eq!(ledger.all_rows().len(), 1);
        assert!(ledger.all_rows().is_empty());
    }

    /// Nobody may begin today with what he used days ago.
    #[test]
    fn rows_of_former_periods_count_nothing() {
        let Owner::Instance(id) = instance() else { unreachable!() };
        let [download, upload] = instance().chains();
        let rows = |time_ms| {
            vec![
                row("AOS_SYSTEM_IN", NOON, 5),
                row("AOS_SYSTEM_OUT", NOON - HOUR_MS, 6),
                row(&download, time_ms, 7),
                row(&upload, NOON, 8),
            ]
        };
        let restored = |time_ms| {
            let mut ledger = Ledger::new(TrafficPeriod::Day, at(60));
            ledger.restore(rows(time_ms), std::slice::from_ref(&id));
            assert_eq!(ledger.volume(&Owner::Node), volume(5, 6));
            ledger
        };
        let mut ledger = restored(NOON - 3 * DAY_MS);
        assert_eq!(ledger.volume(&instance()), volume(0, 8));
        assert!(!ledger.advance(NOON + 1, at(2000)));
        assert_eq!(ledger.due_rows(at(2000)), [row(&download, NOON + 1, 0)]);
        assert!(ledger.all_rows().is_empty());
        // The same day, and a clock that was not set.
        for time_ms in [NOON - 12 * HOUR_MS, 1000] {
            assert_eq!(restored(time_ms).volume(&instance()), volume(7, 8));
        }
    }

    #[test]
    fn without_a_database_nothing_goes_out() {
        let mut ledger = Ledger::new(TrafficPeriod::Day, at(60));
        ledger.count(Owner::Node, volume(1, 1), at(1));
        assert!(ledger.all_rows().is_empty() && ledger.due_rows(at(1000)).is_empty());
    }

    #[test]
    fn a_period_ends_forward_in_time_only() {
        let mut ledger = Ledger::new(TrafficPeriod::Day, at(60));
        ledger.restore(vec![row("AOS_SYSTEM_IN", NOON, 5), row("AOS_SYSTEM_OUT", NOON, 6)], &[]);
        // The clock is not set, then set to yesterday.
        assert!(!ledger.advance(1000, at(1)) && !ledger.advance(NOON - DAY_MS, at(2)));
        assert_eq!(ledger.volume(&Owner::Node), volume(5, 6));
        assert!(ledger.advance(NOON + 12 * HOUR_MS, at(3)));
        assert_eq!(ledger.volume(&Owner::Node), volume(0, 0));
        assert_eq!(ledger.all_rows().len(), 2);
        assert!(!ledger.advance(NOON + 13 * HOUR_MS, at(4)));
        // The first value of all begins a period and ends none.
        let mut fresh = Ledger::new(TrafficPeriod::Minute, at(60));
        fresh.count(Owner::Node, volume(5, 6), at(1));
        assert!(!fresh.advance(NOON, at(2)) && fresh.advance(NOON + MINUTE_MS, at(62)));
    }
}
