//! Alerts on their way to the CM: one bounded ring, kept while the CM is away.
//!
//! What the CM is told is throttled: its thread for this node stands still while its own queue is
//! full, and with it every answer that the node waits for.

use std::collections::VecDeque;
use std::time::Duration;

use crate::model::id::InstanceIdent;
use crate::model::status::{Alert, AlertPayload, QuotaStatus};
use crate::ports::Now;

/// Entries of the ring (D19).
pub const MAX_ALERTS: usize = 1024;
/// Text of all entries together, bytes (D19).
pub const MAX_TEXT_BYTES: usize = 256 * 1024;
/// Of them at most so many that were derived from log lines.
pub const MAX_LINES: usize = 64;
/// Alerts that are with cm-tx at a time.
pub const MAX_IN_FLIGHT: usize = 8;
/// So many alerts may leave at once: half of what fits into the queue of the CM.
pub const BURST: u32 = 32;
/// After that one leaves in so long.
pub const PACE: Duration = Duration::from_millis(100);

/// Room for the text of the alert that tells how many were dropped.
const NOTE_BYTES: usize = 64;

/// The ring. When it is full the oldest alert of the lowest class goes.
#[derive(Debug)]
pub struct AlertRing {
    ring: VecDeque<Alert>,
    text_bytes: usize,
    /// The first so many entries are with cm-tx.
    in_flight: usize,
    dropped: u64,
    /// Alerts that may leave now, as it was at `credit_at`, CLOCK_MONOTONIC.
    credit: u32,
    credit_at: Duration,
}

impl Default for AlertRing {
    fn default() -> Self {
        Self {
            ring: VecDeque::new(),
            text_bytes: 0,
            in_flight: 0,
            dropped: 0,
            credit: BURST,
            credit_at: Duration::ZERO,
        }
    }
}

/// Lower is dropped first: log lines, then devices and configurations, then quotas, of which
/// anyway only the newest are kept; among those a `raise` goes last.
fn class(alert: &Alert) -> u8 {
    match &alert.payload {
        AlertPayload::System { .. } | AlertPayload::Instance { .. } => 0,
        AlertPayload::Core { .. } => 1,
        AlertPayload::ResourceValidate { .. } | AlertPayload::DeviceAllocate { .. } => 2,
        AlertPayload::SystemQuota { status, .. } | AlertPayload::InstanceQuota { status, .. } => {
            match status {
                QuotaStatus::Continue => 3,
                QuotaStatus::Fall => 4,
                QuotaStatus::Raise => 5,
            }
        }
    }
}

fn is_line(alert: &Alert) -> bool {
    class(alert) <= 1
}

/// Scope, parameter and status of a quota alert.
fn quota(alert: &Alert) -> Option<(Option<&InstanceIdent>, &str, QuotaStatus)> {
    match &alert.payload {
        AlertPayload::SystemQuota { parameter, status, .. } => Some((None, parameter, *status)),
        AlertPayload::InstanceQuota { ident, parameter, status, .. } => {
            Some((Some(ident), parameter, *status))
        }
        _ => None,
    }
}

/// Is `old` of no more use once `new` is there? A pending `raise` stays until there is a new one.
fn replaces(new: &Alert, old: &Alert) -> bool {
    let (Some((scope, parameter, status)), Some(old)) = (quota(new), quota(old)) else {
        return false;
    };
    let raise = QuotaStatus::Raise;
    (scope, parameter) == (old.0, old.1) && (status == raise || old.2 != raise)
}

fn text_bytes(alert: &Alert) -> usize {
    match &alert.payload {
        AlertPayload::System { message } | AlertPayload::Instance { message, .. } => message.len(),
        AlertPayload::Core { component, message } => component.len() + message.len(),
        AlertPayload::ResourceValidate { name, errors } => {
            name.len() + errors.iter().map(|e| e.message.len()).sum::<usize>()
        }
        AlertPayload::DeviceAllocate { device, message, .. } => device.len() + message.len(),
        AlertPayload::SystemQuota { parameter, .. }
        | AlertPayload::InstanceQuota { parameter, .. } => parameter.len(),
    }
}

impl AlertRing {
    /// Appends an alert, making room if needed.
    pub fn push(&mut self, alert: Alert) {
        if quota(&alert).is_some() {
            self.drop_replaced(&alert);
        }
        let bytes = text_bytes(&alert);
        if bytes > MAX_TEXT_BYTES - NOTE_BYTES {
            self.dropped += 1;
            return;
        }
        while self.is_full(&alert, bytes) {
            if !self.drop_one(class(&alert)) {
                self.dropped += 1;
                return;
            }
        }
        self.text_bytes += bytes;
        self.ring.push_back(alert);
    }

    fn is_full(&self, new: &Alert, bytes: usize) -> bool {
        let lines = || self.ring.iter().filter(|a| is_line(a)).count();
        // The last place is for the alert that tells how many were dropped.
        self.ring.len() >= MAX_ALERTS - 1
            || self.text_bytes + bytes > MAX_TEXT_BYTES - NOTE_BYTES
            || (is_line(new) && lines() >= MAX_LINES)
    }

    /// Takes out waiting quota alerts that a newer one makes useless: not counted as lost.
    fn drop_replaced(&mut self, new: &Alert) {
        let sent = self.in_flight;
        let mut at = 0;
        self.ring.retain(|old| {
            at += 1;
            at <= sent || !replaces(new, old)
        });
        self.text_bytes = self.ring.iter().map(text_bytes).sum();
    }

    /// Drops the oldest waiting alert of the lowest class that is not above `limit`.
    fn drop_one(&mut self, limit: u8) -> bool {
        let waiting = self.ring.iter().enumerate().skip(self.in_flight);
        let Some((at, _)) =
            waiting.filter(|(_, a)| class(a) <= limit).min_by_key(|(i, a)| (class(a), *i))
        else {
            return false;
        };
        if let Some(alert) = self.ring.remove(at) {
            self.text_bytes -= text_bytes(&alert);
        }
        self.dropped += 1;
        true
    }

    /// The alerts that may go to cm-tx now. When nothing is with it and some were lost since the last
    /// time, one tells how many.
    pub fn next_batch(&mut self, now: Now) -> Vec<Alert> {
        if self.in_flight == 0 && self.dropped > 0 {
            self.tell_dropped(now.wall_ms);
        }
        self.earn(now.mono);
        let from = self.in_flight;
        let allowed = from.saturating_add(self.credit as usize);
        let till = self.ring.len().min(MAX_IN_FLIGHT).min(allowed).max(from);
        self.in_flight = till;
        self.credit = self.credit.saturating_sub(u32::try_from(till - from).unwrap_or(u32::MAX));
        self.ring.range(from..till).cloned().collect()
    }

    /// When another alert may leave that must not yet, CLOCK_MONOTONIC.
    pub fn next_time(&self) -> Option<Duration> {
        let waits = self.ring.len().min(MAX_IN_FLIGHT) > self.in_flight;
        (waits && self.credit == 0).then_some(self.credit_at + PACE)
    }

    fn earn(&mut self, now: Duration) {
        let earned = now.saturating_sub(self.credit_at).as_nanos() / PACE.as_nanos();
        let earned = u32::try_from(earned).unwrap_or(u32::MAX);
        self.credit = self.credit.saturating_add(earned);
        self.credit_at += PACE * earned;
        if self.credit >= BURST {
            self.credit = BURST;
            self.credit_at = now;
        }
    }

    fn tell_dropped(&mut self, now_ms: i64) {
        let message = format!("{} alerts were dropped", std::mem::take(&mut self.dropped));
        log::warn!("{message}");
        let payload = AlertPayload::Core { component: "aos-servicemanager".into(), message };
        let alert = Alert { time_ms: now_ms, payload };
        self.text_bytes += text_bytes(&alert);
        self.ring.push_front(alert);
    }

    /// cm-tx has sent the oldest one.
    pub fn sent(&mut self) {
        if self.in_flight == 0 {
            return;
        }
        self.in_flight -= 1;
        if let Some(alert) = self.ring.pop_front() {
            self.text_bytes -= text_bytes(&alert);
        }
    }

    /// The stream is gone: what was with cm-tx is sent again on the next one.
    pub fn stream_lost(&mut self) {
        self.in_flight = 0;
    }

    /// Some alert that was made of a log line is still here.
    pub fn has_lines(&self) -> bool {
        self.ring.iter().any(is_line)
    }

    pub fn is_empty(&self) -> bool {
        self.ring.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use QuotaStatus::{Continue, Fall, Raise};

    fn at(mono_ms: u64) -> Now {
        Now { mono: Duration::from_millis(mono_ms), wall_ms: 5, ..Now::default() }
    }

    fn line(message: &str) -> Alert {
        Alert { time_ms: 0, payload: AlertPayload::System { message: message.into() } }
    }

    fn about(parameter: &str, status: QuotaStatus) -> Alert {
        let payload = AlertPayload::SystemQuota { parameter: parameter.into(), value: 1, status };
        Alert { time_ms: 0, payload }
    }

    fn quota(number: usize) -> Alert {
        about(&number.to_string(), Raise)
    }

    fn lost(count: u64) -> Alert {
        let message = format!("{count} alerts were dropped");
        let payload = AlertPayload::Core { component: "aos-servicemanager".into(), message };
        Alert { time_ms: 5, payload }
    }

    #[test]
    fn at_most_eight_with_the_sender() {
        let mut ring = AlertRing::default();
        (0..20).for_each(|i| ring.push(quota(i)));
        assert_eq!(ring.next_batch(at(0)).len(), MAX_IN_FLIGHT);
        assert!(ring.next_batch(at(0)).is_empty());
        ring.sent();
        assert_eq!(ring.next_batch(at(0)), [quota(8)]);
        ring.stream_lost();
        assert_eq!(ring.next_batch(at(0))[0], quota(1));
    }

    #[test]
    fn of_a_quota_the_newest_and_a_raise_are_kept() {
        let check = |pushed: &[QuotaStatus], kept: &[QuotaStatus]| {
            let mut ring = AlertRing::default();
            pushed.iter().for_each(|status| ring.push(about("cpu", *status)));
            ring.push(about("ram", Fall));
            let mut expect: Vec<Alert> = kept.iter().map(|s| about("cpu", *s)).collect();
            expect.push(about("ram", Fall));
            assert_eq!(ring.next_batch(at(0)), expect, "{pushed:?}");
        };
        check(&[Raise, Continue, Continue], &[Raise, Continue]);
        check(&[Raise, Continue, Fall], &[Raise, Fall]);
        check(&[Raise, Fall, Raise], &[Raise]);
        check(&[Fall, Fall], &[Fall]);
        let mut ring = AlertRing::default();
        ring.push(about("cpu", Fall));
        ring.next_batch(at(0));
        ring.push(about("cpu", Raise));
        assert_eq!(ring.next_batch(at(0)), [about("cpu", Raise)], "what is being sent stays");
    }

    #[test]
    fn full_by_number() {
        let mut ring = AlertRing::default();
        ring.push(line("old"));
        (1..MAX_ALERTS).for_each(|i| ring.push(quota(i)));
        assert_eq!(ring.next_batch(at(0))[..2], [lost(1), quota(1)]);
        assert!(ring.next_batch(at(0)).is_empty());
        assert_eq!(ring.ring.len(), MAX_ALERTS);
    }

    #[test]
    fn full_of_lines() {
        let mut ring = AlertRing::default();
        (0..=MAX_LINES).for_each(|i| ring.push(line(&i.to_string())));
        assert_eq!(ring.next_batch(at(0))[..2], [lost(1), line("1")]);
    }

    #[test]
    fn full_by_text() {
        let mut ring = AlertRing::default();
        (0..5).for_each(|_| ring.push(line(&"x".repeat((MAX_TEXT_BYTES - NOTE_BYTES) / 4))));
        ring.push(line(&"x".repeat(MAX_TEXT_BYTES)));
        let batch = ring.next_batch(at(0));
        assert_eq!((&batch[0], batch.len()), (&lost(2), 5));
    }

    #[test]
    fn a_line_never_displaces_something_higher() {
        let mut ring = AlertRing::default();
        (1..MAX_ALERTS).for_each(|i| ring.push(quota(i)));
        ring.push(line("x"));
        assert_eq!(ring.next_batch(at(0))[..2], [lost(1), quota(1)]);
    }

    /// Nothing takes the place of a raise but a newer one of the same parameter.
    #[test]
    fn a_raise_goes_last() {
        let mut ring = AlertRing::default();
        (2..MAX_ALERTS).for_each(|i| ring.push(quota(i)));
        ring.push(about("x", Continue));
        ring.push(about("y", Fall));
        assert_eq!(ring.ring.back(), Some(&about("y", Fall)));
        ring.push(about("z", Continue));
        assert_eq!(ring.ring.back(), Some(&about("y", Fall)), "the new one is less than all");
        ring.push(about("z", Raise));
        assert_eq!(ring.ring.back(), Some(&about("z", Raise)));
        assert_eq!(ring.next_batch(at(0))[..2], [lost(3), quota(2)]);
    }

    #[test]
    fn a_storm_is_throttled() {
        let mut ring = AlertRing::default();
        (0..100).for_each(|i| ring.push(quota(i)));
        let mut leave = |ms: u64| {
            let mut left = 0;
            loop {
                let batch = ring.next_batch(at(ms)).len();
                (0..batch).for_each(|_| ring.sent());
                left += batch;
                if batch == 0 {
                    return (left, ring.next_time());
                }
            }
        };
        let time = |ms| Some(Duration::from_millis(ms));
        assert_eq!(leave(1000), (32, time(1100)));
        assert_eq!(leave(1050), (0, time(1100)));
        assert_eq!(leave(1100), (1, time(1200)));
        assert_eq!(leave(1350), (2, time(1400)));
        assert_eq!(leave(60_000), (32, time(60_100)));
        assert_eq!(leave(600_000), (32, time(600_100)));
        assert_eq!(leave(600_100), (1, None));
    }
}
