//! Alerts on their way to the CM: one bounded ring, kept while the CM is away.

use std::collections::VecDeque;

use crate::model::status::{Alert, AlertPayload};

/// Entries of the ring (D19).
pub const MAX_ALERTS: usize = 1024;
/// Text of all entries together, bytes (D19).
pub const MAX_TEXT_BYTES: usize = 256 * 1024;
/// Alerts that are with cm-tx at a time.
pub const MAX_IN_FLIGHT: usize = 8;

/// The ring. When it is full the oldest alert of the lowest class goes.
#[derive(Debug, Default)]
pub struct AlertRing {
    ring: VecDeque<Alert>,
    text_bytes: usize,
    /// The first so many entries are with cm-tx.
    in_flight: usize,
    dropped: u64,
}

/// Lower is dropped first: log lines, then quota crossings, then everything else.
fn class(alert: &Alert) -> u8 {
    match alert.payload {
        AlertPayload::System { .. } | AlertPayload::Instance { .. } => 0,
        AlertPayload::Core { .. } => 1,
        AlertPayload::SystemQuota { .. } | AlertPayload::InstanceQuota { .. } => 2,
        AlertPayload::ResourceValidate { .. } | AlertPayload::DeviceAllocate { .. } => 3,
    }
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
        let bytes = text_bytes(&alert);
        while self.ring.len() >= MAX_ALERTS || self.text_bytes + bytes > MAX_TEXT_BYTES {
            if !self.drop_one(class(&alert)) {
                self.dropped += 1;
                return;
            }
        }
        self.text_bytes += bytes;
        self.ring.push_back(alert);
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

    /// The alerts that may go to cm-tx now.
    pub fn next_batch(&mut self) -> Vec<Alert> {
        let from = self.in_flight;
        let till = self.ring.len().min(MAX_IN_FLIGHT);
        self.in_flight = self.in_flight.max(till);
        self.ring.range(from.min(till)..till).cloned().collect()
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

    /// Alerts lost to the limits since the last call.
    pub fn take_dropped(&mut self) -> u64 {
        std::mem::take(&mut self.dropped)
    }

    pub fn is_empty(&self) -> bool {
        self.ring.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::status::QuotaStatus;

    fn line(message: &str) -> Alert {
        Alert { time_ms: 0, payload: AlertPayload::System { message: message.into() } }
    }

    fn quota(value: u64) -> Alert {
        let payload = AlertPayload::SystemQuota {
            parameter: "cpu".into(),
            value,
            status: QuotaStatus::Raise,
        };
        Alert { time_ms: 0, payload }
    }

    #[test]
    fn at_most_eight_with_the_sender() {
        let mut ring = AlertRing::default();
        (0..20).for_each(|i| ring.push(quota(i)));
        assert_eq!(ring.next_batch().len(), MAX_IN_FLIGHT);
        assert!(ring.next_batch().is_empty());
        ring.sent();
        assert_eq!(ring.next_batch(), [quota(8)]);
        ring.stream_lost();
        assert_eq!(ring.next_batch()[0], quota(1));
    }

    #[test]
    fn full_by_number_drops_lines_before_quotas() {
        let mut ring = AlertRing::default();
        ring.push(quota(1));
        (0..MAX_ALERTS).for_each(|i| ring.push(line(&i.to_string())));
        assert_eq!(ring.take_dropped(), 1);
        assert_eq!(ring.next_batch()[..2], [quota(1), line("1")]);
    }

    #[test]
    fn full_by_text() {
        let mut ring = AlertRing::default();
        (0..5).for_each(|_| ring.push(line(&"x".repeat(MAX_TEXT_BYTES / 4))));
        assert_eq!(ring.take_dropped(), 1);
        ring.push(line(&"x".repeat(MAX_TEXT_BYTES + 1)));
        assert!(ring.is_empty());
    }

    #[test]
    fn a_line_never_displaces_something_higher() {
        let mut ring = AlertRing::default();
        (0..MAX_ALERTS as u64).for_each(|i| ring.push(quota(i)));
        ring.push(line("x"));
        assert_eq!(ring.take_dropped(), 1);
        assert_eq!(ring.next_batch()[0], quota(0));
    }
}
