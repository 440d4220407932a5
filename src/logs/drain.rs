//! The output of one instance on its way from spool to segments: records, limits, losses.
//!
//! Thread `log-in`. The position up to which a spool is stored stands in the same record as the
//! lines, so a crash between two steps neither loses nor doubles a line. What cannot be stored is
//! counted, and a gap record tells how much it was.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use crate::logs::alerts::Alerts;
use crate::logs::ident::StoredIdent;
use crate::logs::record::{Batch, Cut, Kind, Position, Stamp, gap_priority};
use crate::logs::segment::{SEGMENT_BYTES, Segments};
use crate::logs::spool::{Chunk, Spool};
use crate::logs::{Error, LogSettings, id_bytes, spool_dir, store_dir};
use crate::model::id::InstanceId;
use crate::model::status::chain;
use crate::ports::Now;
use crate::sys::process::boot_id;

/// Period of the limits `rate_lines` and `rate_bytes`.
pub(crate) const RATE_PERIOD: Duration = Duration::from_secs(30);
/// What an instance has not used is kept for so many periods: a start or an incident may be loud for
/// a minute, while what wears the disk is the average.
pub(crate) const BURST_PERIODS: u32 = 12;
/// How long nothing is written after the store could not be written.
const STORE_RETRY: Duration = Duration::from_secs(60);
/// The smallest store of one instance.
pub(crate) const LEAST_SEGMENTS: u64 = 2;

/// One instance, or what is left of a removed one.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) dir: PathBuf,
    pub(crate) id: InstanceId,
    /// Whose it is; `None` = nobody can ask for it.
    pub(crate) stored: Option<StoredIdent>,
    pub(crate) segments: Segments,
    pub(crate) spool: Option<Spool>,
    position: Position,
    budget: Budget,
    lost: Lost,
    /// Unix time in milliseconds at which it was removed.
    pub(crate) removed_ms: Option<i64>,
    /// The spool goes as soon as nobody uses it.
    pub(crate) is_closing: bool,
    pub(crate) is_failing: bool,
}

/// Lines that will never be in the store, since the last gap record.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Lost {
    lines: u64,
    bytes: u64,
    reason: &'static str,
}

/// What all instances share: buffers, the state of the disk, the way of alerts.
#[derive(Debug)]
pub(crate) struct Work<'a> {
    pub(crate) boot: [u8; 16],
    buffer: Vec<u8>,
    pub(crate) batch: Batch,
    pub(crate) alerts: Alerts<'a>,
    /// Nothing is written before this.
    broken_until: Duration,
}

impl Entry {
    /// Takes up what is on disk of the instance.
    pub(crate) fn find(settings: &LogSettings, id: &InstanceId) -> Self {
        let dir = store_dir(settings, id);
        let stored = StoredIdent::read(&dir);
        Self {
            segments: Segments::find(&dir),
            removed_ms: stored.as_ref().and_then(|stored| stored.removed_ms),
            dir,
            id: id.clone(),
            stored,
            spool: None,
            position: Position::default(),
            budget: Budget::default(),
            lost: Lost::default(),
            is_closing: false,
            is_failing: false,
        }
    }

    /// Nobody can ask for it: the daemon died between the spool and the identity of a start.
    pub(crate) fn is_orphan(&self) -> bool {
        self.spool.is_none() && self.stored.is_none()
    }

    /// Opens the spool at the position up to which it is stored.
    pub(crate) fn attach(
        &mut self,
        settings: &LogSettings,
        id: &InstanceId,
        boot: &[u8; 16],
    ) -> Result<(), Error> {
        let path = spool_dir(settings, id);
        self.position = self.segments.position(boot).unwrap_or_default();
        let found = Spool::find(&path, self.position, settings.spool_bytes);
        self.spool = Some(found.map_err(|source| Error::Drain { path, source })?);
        Ok(())
    }

    /// Lets the limits of its rate grow with the time that has passed.
    pub(crate) fn refill(&mut self, settings: &LogSettings, now: Duration) {
        self.budget.refill(settings, now);
    }

    /// Removes the oldest segments beyond the limit of one instance.
    pub(crate) fn keep_bound(&mut self, settings: &LogSettings) {
        let most = settings.instance_store_bytes.max(LEAST_SEGMENTS * SEGMENT_BYTES);
        while self.segments.bytes() > most && self.segments.drop_oldest() {}
    }

    /// Gives the spool back if nobody uses it any more.
    pub(crate) fn release(&mut self, id: &InstanceId) {
        let Some(spool) = &mut self.spool else { return };
        match spool.release() {
            Ok(true) => {
                self.spool = None;
                self.is_closing = false;
            }
            Ok(false) => {}
            Err(err) if !self.is_failing => {
                self.is_failing = true;
                log::warn!("spool not removed instance={id} err={err}");
            }
            Err(_) => {}
        }
    }

    /// Flushes what was stored.
    pub(crate) fn sync(&mut self) {
        if let Err(err) = self.segments.sync() {
            log::warn!("log store not flushed path={} err={err}", self.dir.display());
        }
    }
}

impl<'a> Work<'a> {
    pub(crate) fn new(alerts: Alerts<'a>) -> Self {
        Self {
            boot: boot(),
            buffer: Vec::new(),
            batch: Batch::new(),
            alerts,
            broken_until: Duration::ZERO,
        }
    }

    /// Stores what waits in the spool of `entry`, until about `limit` bytes are moved.
    pub(crate) fn drain(
        &mut self,
        entry: &mut Entry,
        limit: usize,
        is_over: bool,
        now: Now,
    ) -> io::Result<usize> {
        let Some(mut spool) = entry.spool.take() else { return Ok(0) };
        let was_full = spool.is_half_full() && spool.is_full();
        let result = self.drain_spool(&mut spool, entry, limit, is_over, now);
        entry.spool = Some(spool);
        if was_full {
            entry.lost.add(0, 0, "the spool was full");
        }
        if entry.lost != Lost::default() && self.can_write(now) {
            let lost = std::mem::take(&mut entry.lost);
            self.batch.line(gap_priority(), lost.text().as_bytes());
            if !self.write(entry, Kind::Gap, 0, now) {
                entry.lost = lost;
            }
        }
        result
    }

    fn drain_spool(
        &mut self,
        spool: &mut Spool,
        entry: &mut Entry,
        limit: usize,
        is_over: bool,
        now: Now,
    ) -> io::Result<usize> {
        let mut moved = 0;
        while moved < limit {
            let mut buffer = std::mem::take(&mut self.buffer);
            let read = spool.read(&mut buffer, now.mono, is_over);
            let consumed = match read {
                Ok(Some(chunk)) => {
                    if chunk.was_truncated {
                        entry.lost.add(0, 0, "the output was truncated");
                    }
                    if chunk.dropped_bytes > 0 {
                        entry.lost.add(0, chunk.dropped_bytes, "the spool was full");
                    }
                    self.store_lines(&buffer, chunk, entry, now)
                }
                _ => 0,
            };
            self.buffer = buffer;
            read?;
            if consumed == 0 {
                break;
            }
            spool.consume(consumed)?;
            moved += consumed;
        }
        Ok(moved)
    }

    /// Writes the whole lines of `data`; returns how many bytes are dealt with.
    fn store_lines(&mut self, data: &[u8], chunk: Chunk, entry: &mut Entry, now: Now) -> usize {
        let mut cut = Cut::new(data, chunk.is_end);
        let after = |consumed: usize| Position {
            generation: chunk.position.generation,
            offset: chunk.position.offset + u64::try_from(consumed).unwrap_or(0),
        };
        while let Some((priority, text)) = cut.next() {
            if !entry.budget.take(text.len()) {
                entry.lost.add(1, text.len() as u64, "the instance writes too fast");
                continue;
            }
            self.batch.line(priority, text);
            if priority <= self.alerts.settings.system_priority
                && let Some(who) = &entry.stored
            {
                self.alerts.instance((&entry.id, who), text, now.wall_ms, now);
            }
            if self.batch.is_full() {
                entry.position = after(cut.consumed());
                self.write(entry, Kind::Lines, 0, now);
            }
        }
        entry.position = after(cut.consumed());
        if !self.batch.is_empty() {
            self.write(entry, Kind::Lines, 0, now);
        }
        cut.consumed()
    }

    fn can_write(&self, now: Now) -> bool {
        self.broken_until <= now.mono
    }

    /// Writes the batch as one record; false = it is lost. Lost lines are counted.
    pub(crate) fn write(&mut self, entry: &mut Entry, kind: Kind, flags: u8, now: Now) -> bool {
        let can_write = self.can_write(now);
        let stamp = Stamp {
            boot: self.boot,
            real_us: now.wall_ms.saturating_mul(1000),
            mono_us: u64::try_from(now.mono.as_micros()).unwrap_or(u64::MAX),
        };
        let (lines, bytes) = (self.batch.len(), self.batch.text_bytes());
        let written = self.batch.seal(kind, flags, stamp, entry.position, |record| {
            if can_write { entry.segments.append(stamp, record).map(|()| true) } else { Ok(false) }
        });
        let is_written = written.unwrap_or_else(|source| {
            self.broken_until = now.mono + STORE_RETRY;
            let error = Error::Store { path: entry.dir.clone(), source };
            log::error!("logs are lost err={}", chain(&error));
            false
        });
        if !is_written && kind == Kind::Lines {
            entry.lost.add(lines, bytes, "the log store cannot be written");
        }
        is_written
    }
}

impl Lost {
    fn add(&mut self, lines: u64, bytes: u64, reason: &'static str) {
        self.lines += lines;
        self.bytes += bytes;
        self.reason = reason;
    }

    fn text(self) -> String {
        match self {
            Self { lines: 0, bytes: 0, reason } => format!("output was lost: {reason}"),
            Self { lines: 0, bytes, reason } => format!("{bytes} bytes were lost: {reason}"),
            Self { lines, bytes, reason } => {
                format!("{lines} lines ({bytes} bytes) were lost: {reason}")
            }
        }
    }
}

/// Token bucket for lines and bytes; one costs one millisecond of the period's worth.
#[derive(Clone, Copy, Debug, Default)]
struct Budget {
    /// Lines and bytes that may still be stored, each times the milliseconds of `RATE_PERIOD`.
    lines: u128,
    bytes: u128,
    /// When they were counted; `None` = full.
    at: Option<Duration>,
}

impl Budget {
    fn refill(&mut self, settings: &LogSettings, now: Duration) {
        let full = RATE_PERIOD.as_millis() * u128::from(BURST_PERIODS);
        let elapsed = self.at.map_or(full, |at| now.saturating_sub(at).as_millis());
        let filled = |old: u128, rate: u64| {
            let rate = u128::from(rate);
            old.saturating_add(elapsed.saturating_mul(rate)).min(rate * full)
        };
        self.lines = filled(self.lines, settings.rate_lines);
        self.bytes = filled(self.bytes, settings.rate_bytes);
        self.at = Some(now);
    }

    fn take(&mut self, bytes: usize) -> bool {
        let period = RATE_PERIOD.as_millis();
        let cost = bytes as u128 * period;
        if self.lines < period || self.bytes < cost {
            return false;
        }
        self.lines -= period;
        self.bytes -= cost;
        true
    }
}

/// Id of this boot; all zero when the kernel does not tell.
fn boot() -> [u8; 16] {
    id_bytes(&boot_id().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boot_id_is_read() {
        assert_ne!(boot(), [0; 16]);
    }

    #[test]
    fn budget_comes_back_with_time() {
        let root = tempfile::tempdir().unwrap();
        let settings = LogSettings {
            rate_lines: 3,
            rate_bytes: 30,
            ..crate::logs::tests::settings(root.path())
        };
        let mut budget = Budget::default();
        let mut check = |ms, bytes, expect| {
            budget.refill(&settings, Duration::from_millis(ms));
            assert_eq!(budget.take(bytes), expect, "at {ms}");
        };
        check(5000, 340, true);
        check(5000, 21, false); // 20 bytes are left of 12 times 30
        check(5000, 20, true);
        check(5999, 1, false);
        check(6000, 1, true);
        for _ in 0..33 {
            check(6000, 0, true);
        }
        check(6000, 0, false); // 12 times 3 lines are used up as well
        check(16_000, 0, true);
        check(1_000_000, 361, false);
        check(1_000_000, 360, true);
    }

    #[test]
    fn losses_in_words() {
        let check = |lines, bytes, expect: &str| {
            let lost = Lost { lines, bytes, reason: "why" };
            assert_eq!(lost.text(), expect);
        };
        check(0, 0, "output was lost: why");
        check(0, 5, "5 bytes were lost: why");
        check(2, 5, "2 lines (5 bytes) were lost: why");
    }
}
