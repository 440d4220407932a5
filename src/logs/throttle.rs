//! How many alerts log lines may become: repetitions are folded, storms are counted. Pure.
//!
//! Thread `log-in`. A message that repeats within a minute, digits apart, is counted and told with
//! the first one after that minute. Beyond it every source has a small budget, and all together a
//! larger one; what exceeds them is counted per source and reported once a minute.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use crate::model::id::InstanceId;

/// Messages whose repetitions are recognised; the one that was not seen for longest is forgotten.
pub(crate) const MESSAGES: usize = 128;
/// Sources that are accounted for; with more the longest silent one is forgotten.
pub(crate) const SOURCES: usize = 1024;
/// Repetitions of a message are only counted for so long.
pub(crate) const WINDOW: Duration = Duration::from_secs(60);
/// Shortest time between two reports about what a source had suppressed.
pub(crate) const REPORT_PERIOD: Duration = Duration::from_secs(60);
const SOURCE_BUDGET: Limit = Limit { burst: 10, period: Duration::from_secs(6) };
const TOTAL_BUDGET: Limit = Limit { burst: 50, period: Duration::from_millis(200) };

/// Whose messages they are.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) enum Source {
    System,
    Core(Box<str>),
    Instance(InstanceId),
}

/// What becomes of a message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Verdict {
    /// It becomes an alert; it has come so often more since the last one.
    Send { repeated: u64 },
    /// It is counted.
    Count,
}

#[derive(Clone, Copy, Debug)]
struct Limit {
    burst: u32,
    /// One more after each of these.
    period: Duration,
}

/// The state.
#[derive(Debug)]
pub(crate) struct Throttle {
    messages: Vec<Message>,
    sources: BTreeMap<Source, Account>,
    total: Bucket,
}

#[derive(Debug)]
struct Message {
    hash: u64,
    sent_at: Duration,
    seen_at: Duration,
    repeated: u64,
}

#[derive(Debug)]
struct Account {
    bucket: Bucket,
    seen_at: Duration,
    suppressed: u64,
    /// When what was suppressed may be reported.
    report_at: Duration,
}

impl Throttle {
    pub(crate) fn new() -> Self {
        Self { messages: Vec::new(), sources: BTreeMap::new(), total: Bucket::new(TOTAL_BUDGET) }
    }

    /// Decides about one message.
    pub(crate) fn judge(&mut self, source: &Source, text: &str, now: Duration) -> Verdict {
        let hash = hash(source, text);
        let known = self.messages.iter_mut().find(|message| message.hash == hash);
        if let Some(message) = known {
            message.seen_at = now;
            if now.saturating_sub(message.sent_at) < WINDOW {
                message.repeated += 1;
                return Verdict::Count;
            }
        }
        if !self.has_room(source, now) {
            return Verdict::Count;
        }
        Verdict::Send { repeated: self.remember(hash, now) }
    }

    /// Takes one from both budgets, or counts the message as suppressed.
    fn has_room(&mut self, source: &Source, now: Duration) -> bool {
        let account = account(&mut self.sources, source, now);
        account.seen_at = now;
        if account.bucket.has_one(SOURCE_BUDGET, now) && self.total.has_one(TOTAL_BUDGET, now) {
            account.bucket.take();
            self.total.take();
            return true;
        }
        if account.suppressed == 0 {
            account.report_at = account.report_at.max(now + REPORT_PERIOD);
        }
        account.suppressed += 1;
        false
    }

    /// Notes that the message is sent now; returns how often it was counted since the last time.
    fn remember(&mut self, hash: u64, now: Duration) -> u64 {
        if let Some(message) = self.messages.iter_mut().find(|message| message.hash == hash) {
            message.sent_at = now;
            return std::mem::take(&mut message.repeated);
        }
        if self.messages.len() >= MESSAGES {
            let seen = |(_, message): &(usize, &Message)| message.seen_at;
            if let Some((oldest, _)) = self.messages.iter().enumerate().min_by_key(seen) {
                self.messages.swap_remove(oldest);
            }
        }
        self.messages.push(Message { hash, sent_at: now, seen_at: now, repeated: 0 });
        0
    }

    /// Sources whose suppressed messages are to be reported now, with their number.
    pub(crate) fn due(&mut self, now: Duration) -> Vec<(Source, u64)> {
        let mut reports = Vec::new();
        for (source, account) in &mut self.sources {
            if account.suppressed == 0 || now < account.report_at {
                continue;
            }
            if !self.total.has_one(TOTAL_BUDGET, now) {
                break;
            }
            self.total.take();
            account.report_at = now + REPORT_PERIOD;
            reports.push((source.clone(), std::mem::take(&mut account.suppressed)));
        }
        reports
    }

    /// When `due` has something next.
    pub(crate) fn next_report(&self) -> Option<Duration> {
        let waiting = self.sources.values().filter(|account| account.suppressed > 0);
        waiting.map(|account| account.report_at).min()
    }
}

/// The account of a source; one that is full of credit and has nothing to report needs none.
fn account<'a>(
    sources: &'a mut BTreeMap<Source, Account>,
    source: &Source,
    now: Duration,
) -> &'a mut Account {
    if sources.len() >= SOURCES && !sources.contains_key(source) {
        let oldest = sources.iter().min_by_key(|(_, account)| account.seen_at);
        if let Some(oldest) = oldest.map(|(source, _)| source.clone()) {
            sources.remove(&oldest);
        }
    }
    sources.entry(source.clone()).or_insert_with(|| Account {
        bucket: Bucket::new(SOURCE_BUDGET),
        seen_at: now,
        suppressed: 0,
        report_at: Duration::ZERO,
    })
}

/// The same for messages that differ in numbers only.
fn hash(source: &Source, text: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    source.hash(&mut hasher);
    let mut parts = text.split(|c: char| c.is_ascii_digit());
    if let Some(first) = parts.next() {
        hasher.write(first.as_bytes());
    }
    let mut in_digits = false;
    for part in parts {
        if !in_digits {
            hasher.write_u8(b'#');
        }
        in_digits = part.is_empty();
        hasher.write(part.as_bytes());
    }
    hasher.finish()
}

/// Credit that comes back with time.
#[derive(Debug)]
struct Bucket {
    tokens: u32,
    /// Up to when time has been turned into tokens; `None` = it is full.
    at: Option<Duration>,
}

impl Bucket {
    fn new(limit: Limit) -> Self {
        Self { tokens: limit.burst, at: None }
    }

    fn has_one(&mut self, limit: Limit, now: Duration) -> bool {
        let since = *self.at.get_or_insert(now);
        let periods = now.saturating_sub(since).as_millis() / limit.period.as_millis();
        let periods = u32::try_from(periods).unwrap_or(u32::MAX);
        self.tokens = self.tokens.saturating_add(periods).min(limit.burst);
        let full = self.tokens == limit.burst;
        self.at = Some(if full { now } else { since + limit.period.saturating_mul(periods) });
        self.tokens > 0
    }

    fn take(&mut self) {
        self.tokens = self.tokens.saturating_sub(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEND: Verdict = Verdict::Send { repeated: 0 };

    fn core(name: &str) -> Source {
        Source::Core(name.into())
    }

    fn at(ms: u64) -> Duration {
        Duration::from_secs(1000) + Duration::from_millis(ms)
    }

    /// A text of its own for each number: digits do not count.
    fn text(number: usize) -> String {
        format!("{number}").bytes().map(|b| char::from(b - b'0' + b'a')).collect()
    }

    #[test]
    fn repetitions_are_folded() {
        let mut throttle = Throttle::new();
        let mut check = |ms, source: &Source, text: &str, expect| {
            assert_eq!(throttle.judge(source, text, at(ms)), expect, "{text} at {ms}");
        };
        check(0, &Source::System, "error 17 of 20", SEND);
        check(1, &Source::System, "error 3 of 2", Verdict::Count);
        check(2, &Source::System, "error of 2", SEND);
        check(3, &Source::System, "error  of ", SEND);
        check(4, &core("aos-vis"), "error 17 of 20", SEND);
        check(5, &core("aos-vas"), "error 17 of 20", SEND);
        check(59_999, &Source::System, "error 1 of 1", Verdict::Count);
        check(60_000, &Source::System, "error 9 of 9", Verdict::Send { repeated: 2 });
        check(60_001, &Source::System, "error 9 of 9", Verdict::Count);
        check(200_000, &Source::System, "error 9 of 9", Verdict::Send { repeated: 1 });
    }

    #[test]
    fn the_message_not_seen_for_longest_is_forgotten() {
        let mut throttle = Throttle::new();
        // Slowly enough for all budgets.
        let time = |number: usize| at(u64::try_from(number).unwrap() * 400);
        for number in 0..=MESSAGES {
            let source = core(&text(number));
            assert_eq!(throttle.judge(&source, "x", time(number)), SEND);
            // The first one is seen again and again.
            assert_eq!(throttle.judge(&core("a"), "x", time(number)), Verdict::Count);
        }
        assert_eq!(throttle.messages.len(), MESSAGES);
        assert_eq!(throttle.judge(&core("b"), "x", time(MESSAGES)), SEND, "forgotten");
        assert_eq!(throttle.judge(&core("a"), "x", time(MESSAGES)), Verdict::Count);
    }

    #[test]
    fn a_source_has_a_budget() {
        let mut throttle = Throttle::new();
        let sent = |throttle: &mut Throttle, from: usize, number: usize, ms| {
            (from..from + number)
                .filter(|n| throttle.judge(&core("x"), &text(*n), at(ms)) == SEND)
                .count()
        };
        assert_eq!(sent(&mut throttle, 0, 100, 0), 10);
        assert_eq!(throttle.next_report(), Some(at(60_000)));
        assert_eq!(sent(&mut throttle, 100, 10, 5_999), 0);
        assert_eq!(sent(&mut throttle, 200, 10, 12_000), 2);
        assert!(throttle.due(at(59_999)).is_empty());
        assert_eq!(throttle.due(at(60_000)), [(core("x"), 108)]);
        assert_eq!(throttle.next_report(), None);
        // 8 tokens have come back; the next report is a minute later.
        assert_eq!(sent(&mut throttle, 300, 10, 60_000), 8);
        assert_eq!(throttle.next_report(), Some(at(120_000)));
        assert_eq!(sent(&mut throttle, 400, 100, 1_000_000), 10);
    }

    #[test]
    fn all_sources_together_have_a_budget() {
        let mut throttle = Throttle::new();
        let mut sent = |from: usize, number: usize, ms| {
            (from..from + number)
                .filter(|n| throttle.judge(&core(&text(*n)), "x", at(ms)) == SEND)
                .count()
        };
        assert_eq!(sent(0, 100, 0), 50);
        assert_eq!(sent(100, 100, 1000), 5);
        assert_eq!(sent(200, 2000, 2000), 5);
        assert_eq!(throttle.sources.len(), SOURCES);
        // Reports take their place in it too.
        assert_eq!(throttle.due(at(62_000)).len(), 50);
        assert_eq!(throttle.due(at(62_400)).len(), 2);
    }
}
