//! Traffic of the node and of its instances: reads the counters, hands what is worth storing to
//! core, and begins anew when a period ends.
//!
//! Runs on the net thread. The kernel counts and stops at limits by itself; nothing here is in the
//! way of a packet. A counter begins with what the instance had used before, so that a crash loop
//! evades no limit.

use std::time::Duration;

use log::{error, info, warn};

use super::accounting::Meter;
use super::domain::{Domain, chain};
use super::error::Error;
use super::plan::Attachment;
use super::traffic::Owner;
use crate::model::event::Event;
use crate::model::id::InstanceId;
use crate::model::traffic::{Traffic, TrafficRow};
use crate::sys::time::{monotonic, wall_ms};

/// Where the kernel cannot stop traffic at a limit: how often that is done here.
const LIMIT_PERIOD: Duration = Duration::from_secs(5);
/// Counters that were read less than so long ago are not read again; tests do not wait for it.
const FRESH: Duration = Duration::from_secs(if cfg!(test) { 0 } else { 1 });

impl Domain {
    /// The present counters.
    pub(super) fn traffic(&mut self) -> Result<Traffic, Error> {
        let now = monotonic();
        if self.settings.firewall && now >= self.counted_at + FRESH {
            self.read_traffic(now)?;
        }
        Ok(self.firewall.traffic())
    }

    /// Counters of a new instance: they go on where the instance was in this period.
    pub(super) fn meter(&self, attachment: &Attachment, address: std::net::Ipv4Addr) -> Meter {
        let owner = Owner::Instance(attachment.id.clone());
        let mut limits = attachment.limits;
        if !self.caps.tbf && self.caps.limit {
            limits.download_kbit = attachment.download_kbit;
            limits.upload_kbit = attachment.upload_kbit;
        }
        Meter { address, limits, volume: self.ledger.volume(&owner) }
    }

    /// When the counters are to be looked at.
    pub(super) fn traffic_deadline(&self) -> Option<Duration> {
        let polled = self.firewall.has_polled_limits().then(|| self.counted_at + LIMIT_PERIOD);
        let stored = self.settings.firewall.then(|| self.ledger.next_deadline());
        polled.into_iter().chain(stored).min()
    }

    /// Reads the counters; an error is logged.
    pub(super) fn count_traffic(&mut self, now: Duration) {
        if self.settings.firewall
            && let Err(err) = self.read_traffic(now)
        {
            error!("cannot read traffic counters err={}", chain(&err));
        }
    }

    /// Reads the counters and sends to core what is worth storing.
    pub(super) fn store_traffic(&mut self, now: Duration) {
        self.count_traffic(now);
        let rows = self.ledger.due_rows(now);
        self.send_rows(rows);
    }

    /// The same with everything that differs from the database.
    pub(super) fn store_all_traffic(&mut self) {
        self.count_traffic(monotonic());
        let rows = self.ledger.all_rows();
        self.send_rows(rows);
    }

    /// Before instances lose their counters: what they say is remembered and stored.
    pub(super) fn take_traffic_of(&mut self, ids: &[InstanceId]) {
        if !self.settings.firewall {
            return;
        }
        if let Err(err) = self.firewall.read_counters_of(ids) {
            error!("cannot read traffic counters of instances err={}", chain(&err));
        }
        let now = monotonic();
        for id in ids {
            if let Some(volume) = self.firewall.volume(id) {
                self.ledger.count(Owner::Instance(id.clone()), volume, now);
            }
        }
        let rows = self.ledger.all_rows();
        self.send_rows(rows);
    }

    fn read_traffic(&mut self, now: Duration) -> Result<(), Error> {
        // A failure is not repeated at once.
        self.counted_at = now;
        if self.ledger.advance(self.wall_ms(), now) {
            info!("a new traffic period begins");
            self.reset_due = true;
        }
        if self.reset_due {
            self.firewall.reset_counters()?;
            self.reset_due = false;
            let rows = self.ledger.all_rows();
            self.send_rows(rows);
        }
        self.firewall.read_counters()?;
        self.note_traffic(now);
        let stopped = self.firewall.stop_and_release()?;
        if stopped > 0 {
            warn!("traffic limits reached count={stopped}");
        }
        Ok(())
    }

    #[cfg(not(test))]
    fn wall_ms(&self) -> i64 {
        wall_ms()
    }

    #[cfg(test)]
    fn wall_ms(&self) -> i64 {
        wall_ms() + self.ahead_ms.load(std::sync::atomic::Ordering::Relaxed)
    }

    fn note_traffic(&mut self, now: Duration) {
        let traffic = self.firewall.traffic();
        self.ledger.count(Owner::Node, traffic.node, now);
        for (id, volume) in traffic.instances {
            self.ledger.count(Owner::Instance(id), volume, now);
        }
    }

    fn send_rows(&mut self, rows: Vec<TrafficRow>) {
        let gone = self.ledger.take_gone();
        if !rows.is_empty() || !gone.is_empty() {
            self.outbox.push(Event::Traffic { rows, gone });
        }
    }
}
