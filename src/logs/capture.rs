//! Moves the output of containers from their spools into bounded segments on disk.
//!
//! Thread `log-in` owns spools (the reading side) and segments. In: [`CaptureCommand`], at most
//! `INBOX` waiting, and one timer while there are spools: half a second, less when one fills up,
//! more when all are quiet. Out: files only. The position up to which a spool is stored stands in
//! the same record as the lines, so a crash between two steps neither loses nor doubles a line.
//! A store that cannot be written costs lines, counted, and never a container.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crossbeam::channel::{Receiver, RecvTimeoutError};

use crate::logs::ident::StoredIdent;
use crate::logs::record::{Batch, Cut, FAILURE, Kind, Position, Stamp, gap_priority};
use crate::logs::segment::{SEGMENT_BYTES, Segments};
use crate::logs::spool::{self, Spool};
use crate::logs::{
    Error, LogSettings, OWN_STORE, ids_below, spool_dir, spool_root, store_dir, store_root,
};
use crate::model::event::Exit;
use crate::model::id::{InstanceId, InstanceIdent};
use crate::model::status::chain;
use crate::ports::{Clock, Now};
use crate::sys::process::boot_id;

/// Capacity of the inbox of the thread.
pub const INBOX: usize = 256;
/// Period of the limits `rate_lines` and `rate_bytes`.
pub const RATE_PERIOD: Duration = Duration::from_secs(30);
/// What one spool may move in one turn, so that a noisy instance delays no other.
const TURN_BYTES: usize = 256 * 1024;
const PAUSE: Duration = Duration::from_millis(500);
/// While a spool is more than half full, or a turn was not enough.
const PAUSE_BUSY: Duration = Duration::from_millis(100);
/// When nothing has arrived for `QUIET_AFTER`.
const PAUSE_QUIET: Duration = Duration::from_secs(2);
const QUIET_AFTER: Duration = Duration::from_secs(60);
/// How long nothing is written after the store could not be written.
const STORE_RETRY: Duration = Duration::from_secs(60);
/// How often logs of removed instances are looked at.
const SWEEP_PERIOD: Duration = Duration::from_secs(3600);
/// The smallest store of one instance.
const LEAST_SEGMENTS: u64 = 2;

/// Inbox of the thread.
#[derive(Clone, PartialEq, Debug)]
pub enum CaptureCommand {
    /// An instance is about to start; `spool` is the generation of its spool file, `None` = its
    /// output goes to journald.
    Open {
        id: InstanceId,
        ident: InstanceIdent,
        version: Arc<str>,
        spool: Option<u64>,
    },
    /// Its container runs.
    Started {
        id: InstanceId,
        pid: u32,
    },
    /// Its container has ended; `was_asked` = we stopped it, so it is no crash.
    Exited {
        id: InstanceId,
        exit: Exit,
        was_asked: bool,
    },
    /// It is gone: drain the rest, release the spool, begin the retention. An unknown id is fine.
    /// `until` = newest generation of its spool then: a newer one belongs to another start.
    Close {
        id: InstanceId,
        until: u64,
    },
    /// A line of the daemon's own log, for the system log without a journal.
    Own {
        priority: u8,
        text: Box<str>,
    },
    Stop,
}

/// Body of the thread; returns on `Stop` or when all senders are gone, after a last turn.
pub fn run(settings: &LogSettings, inbox: &Receiver<CaptureCommand>, clock: &dyn Clock) {
    let mut capture = Capture::new(settings, clock.now());
    loop {
        let received = match capture.pause(clock.now()) {
            Some(pause) => inbox.recv_timeout(pause),
            None => inbox.recv().map_err(|_| RecvTimeoutError::Disconnected),
        };
        match received {
            Err(RecvTimeoutError::Disconnected) | Ok(CaptureCommand::Stop) => break,
            Ok(command) => capture.apply(command, clock.now()),
            Err(RecvTimeoutError::Timeout) => {}
        }
        capture.tick_if_due(clock.now());
    }
    capture.finish(clock.now());
}

/// State of the thread.
#[derive(Debug)]
struct Capture<'a> {
    settings: &'a LogSettings,
    entries: BTreeMap<InstanceId, Entry>,
    work: Work,
    next_tick: Duration,
    next_sync: Duration,
    next_sweep: Duration,
    /// When output arrived last.
    active_at: Duration,
}

/// One instance, or what is left of a removed one.
#[derive(Debug)]
struct Entry {
    dir: PathBuf,
    segments: Segments,
    spool: Option<Spool>,
    position: Position,
    budget: Budget,
    lost: Lost,
    /// Unix time in milliseconds at which it was removed.
    removed_ms: Option<i64>,
    /// The spool goes as soon as nobody uses it.
    is_closing: bool,
    is_failing: bool,
}

/// Lines that will never be in the store, since the last gap record.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Lost {
    lines: u64,
    bytes: u64,
    reason: &'static str,
}

/// What all instances share: buffers and the state of the disk.
#[derive(Debug)]
struct Work {
    boot: [u8; 16],
    buffer: Vec<u8>,
    batch: Batch,
    /// Nothing is written before this.
    broken_until: Duration,
}

impl<'a> Capture<'a> {
    fn new(settings: &'a LogSettings, now: Now) -> Self {
        let work = Work {
            boot: boot(),
            buffer: Vec::new(),
            batch: Batch::new(),
            broken_until: Duration::ZERO,
        };
        let mut capture = Self {
            settings,
            entries: BTreeMap::new(),
            work,
            next_tick: now.mono,
            next_sync: now.mono + settings.sync_period,
            next_sweep: now.mono,
            active_at: now.mono,
        };
        for id in ids_below(&store_root(settings)) {
            capture.entry(&id);
        }
        for id in ids_below(&spool_root(settings)) {
            capture.take_up(&id, now);
        }
        capture
    }

    fn entry(&mut self, id: &InstanceId) -> &mut Entry {
        let settings = self.settings;
        self.entries.entry(id.clone()).or_insert_with(|| {
            let dir = store_dir(settings, id);
            Entry {
                segments: Segments::find(&dir),
                removed_ms: StoredIdent::read(&dir).and_then(|stored| stored.removed_ms),
                dir,
                spool: None,
                position: Position::default(),
                budget: Budget::default(),
                lost: Lost::default(),
                is_closing: false,
                is_failing: false,
            }
        })
    }

    /// A spool that an earlier life of the daemon left.
    fn take_up(&mut self, id: &InstanceId, now: Now) {
        let (settings, boot) = (self.settings, self.work.boot);
        let entry = self.entry(id);
        if let Err(error) = entry.attach(settings, id, &boot) {
            return log::warn!("spool not taken up instance={id} err={}", chain(&error));
        }
        if entry.spool.as_ref().is_some_and(|spool| spool.waiting_bytes() > 0) {
            let text = b"lines that follow were written while nothing captured them";
            self.work.batch.line(gap_priority(), text);
            let Some(entry) = self.entries.get_mut(id) else { return };
            self.work.write(entry, Kind::Outage, 0, now);
        }
    }

    fn apply(&mut self, command: CaptureCommand, now: Now) {
        match command {
            CaptureCommand::Open { id, ident, version, spool } => {
                self.open(&id, &StoredIdent::new(&ident, &version), spool);
                self.next_tick = self.next_tick.min(now.mono + PAUSE);
            }
            CaptureCommand::Started { id, pid } => {
                let text = format!("started pid={pid}");
                self.mark(&id, Kind::Started, 0, &text, now);
            }
            CaptureCommand::Exited { id, exit, was_asked } => {
                self.drain(&id, usize::MAX, true, now);
                let flags = if was_asked || exit == Exit::Code(0) { 0 } else { FAILURE };
                self.mark(&id, Kind::Exited, flags, &exit.to_string(), now);
            }
            CaptureCommand::Close { id, until } => self.close(&id, until, now),
            CaptureCommand::Own { priority, text } => self.own(priority, &text, now),
            // The loop of the thread ends before this.
            CaptureCommand::Stop => {}
        }
    }

    fn own(&mut self, priority: u8, text: &str, now: Now) {
        let id = InstanceId::new(OWN_STORE);
        self.entry(&id);
        let Some(entry) = self.entries.get_mut(&id) else { return };
        self.work.batch.line(priority, text.as_bytes());
        self.work.write(entry, Kind::Lines, 0, now);
        entry.keep_bound(self.settings);
    }

    fn open(&mut self, id: &InstanceId, stored: &StoredIdent, generation: Option<u64>) {
        let (settings, boot) = (self.settings, self.work.boot);
        let entry = self.entry(id);
        (entry.removed_ms, entry.is_closing) = (None, false);
        if let Err(err) = stored.write(&entry.dir) {
            log::warn!("log identity not written instance={id} err={err}");
        }
        let Some(generation) = generation else { return };
        let result = match &mut entry.spool {
            Some(spool) => spool
                .add(generation)
                .map_err(|source| Error::Drain { path: spool_dir(settings, id), source }),
            None => entry.attach(settings, id, &boot),
        };
        if let Err(error) = result {
            log::error!("log of an instance is not captured instance={id} err={}", chain(&error));
        }
    }

    /// Writes a record about the life of an instance.
    fn mark(&mut self, id: &InstanceId, kind: Kind, flags: u8, text: &str, now: Now) {
        // Without an entry the instance has never been opened: nothing to relate the record to.
        let Some(entry) = self.entries.get_mut(id) else { return };
        self.work.batch.line(gap_priority(), text.as_bytes());
        self.work.write(entry, kind, flags, now);
        if flags & FAILURE != 0 {
            entry.sync();
        }
    }

    fn close(&mut self, id: &InstanceId, until: u64, now: Now) {
        let Some(entry) = self.entries.get(id) else {
            if let Err(err) = spool::remove_dir(&spool_dir(self.settings, id)) {
                log::warn!("spool not removed instance={id} err={err}");
            }
            return;
        };
        // The survey at our start has already seen the file of a start that came after this.
        if entry.spool.as_ref().is_some_and(|spool| spool.newest() > until) {
            return;
        }
        self.drain(id, usize::MAX, true, now);
        let Some(entry) = self.entries.get_mut(id) else { return };
        entry.is_closing = true;
        entry.removed_ms = Some(now.wall_ms);
        if let Some(mut stored) = StoredIdent::read(&entry.dir) {
            stored.removed_ms = entry.removed_ms;
            if let Err(err) = stored.write(&entry.dir) {
                log::warn!("log identity not written instance={id} err={err}");
            }
        }
        entry.sync();
        entry.segments.close();
        entry.release(id);
    }

    /// How long to wait; `None` = until there is a message.
    fn pause(&self, now: Now) -> Option<Duration> {
        let live = self.entries.values().any(|entry| entry.spool.is_some());
        let dead = self.entries.values().any(|entry| entry.removed_ms.is_some());
        let next = match (live, dead) {
            (true, _) => self.next_tick,
            (false, true) => self.next_sweep,
            (false, false) => return None,
        };
        Some(next.saturating_sub(now.mono))
    }

    fn tick_if_due(&mut self, now: Now) {
        if self.next_tick <= now.mono {
            self.tick(now);
        }
        if self.next_sweep <= now.mono {
            self.sweep(now);
        }
    }

    /// One turn for each spool.
    fn tick(&mut self, now: Now) {
        let ids: Vec<InstanceId> = self.with_spool().collect();
        let mut moved = 0;
        let mut is_busy = false;
        for id in &ids {
            let bytes = self.drain(id, TURN_BYTES, false, now);
            moved += bytes;
            is_busy |= bytes >= TURN_BYTES;
            let Some(entry) = self.entries.get_mut(id) else { continue };
            is_busy |= entry.spool.as_ref().is_some_and(Spool::is_half_full);
            if entry.is_closing {
                entry.release(id);
            }
        }
        if moved > 0 {
            self.active_at = now.mono;
            self.make_room();
        }
        if !self.settings.sync_period.is_zero() && self.next_sync <= now.mono {
            self.entries.values_mut().for_each(Entry::sync);
            self.next_sync = now.mono + self.settings.sync_period;
        }
        let is_quiet = now.mono.saturating_sub(self.active_at) >= QUIET_AFTER;
        let pause = if is_busy {
            PAUSE_BUSY
        } else if is_quiet {
            PAUSE_QUIET
        } else {
            PAUSE
        };
        self.next_tick = now.mono + pause;
    }

    fn with_spool(&self) -> impl Iterator<Item = InstanceId> {
        self.entries.iter().filter(|(_, entry)| entry.spool.is_some()).map(|(id, _)| id.clone())
    }

    /// Moves output of one instance; returns how much.
    fn drain(&mut self, id: &InstanceId, limit: usize, is_over: bool, now: Now) -> usize {
        let Some(entry) = self.entries.get_mut(id) else { return 0 };
        if entry.spool.is_none() {
            return 0;
        }
        entry.budget.refill(self.settings, now.mono);
        let result = self.work.drain(entry, limit, is_over, now);
        let failed = result.as_ref().err().map(|source| format!("{source}"));
        if let Some(err) = failed.as_ref().filter(|_| !entry.is_failing) {
            log::error!("log of an instance is not captured instance={id} err={err}");
        }
        entry.is_failing = failed.is_some();
        entry.keep_bound(self.settings);
        result.unwrap_or(0)
    }

    /// Keeps all stores together below their limit: removed instances give first, the oldest one
    /// completely, then the largest store its oldest segment.
    fn make_room(&mut self) {
        let total = |entries: &BTreeMap<_, Entry>| -> u64 {
            entries.values().map(|entry| entry.segments.bytes()).sum()
        };
        while total(&self.entries) > self.settings.store_bytes {
            let dead = self
                .entries
                .values_mut()
                .filter(|entry| entry.removed_ms.is_some() && entry.segments.bytes() > 0)
                .min_by_key(|entry| entry.removed_ms);
            if let Some(entry) = dead {
                entry.segments.clear();
                continue;
            }
            let largest = self.entries.values_mut().max_by_key(|entry| entry.segments.bytes());
            if !largest.is_some_and(|entry| entry.segments.drop_oldest()) {
                return;
            }
        }
    }

    /// Forgets instances that were removed longer ago than the retention.
    fn sweep(&mut self, now: Now) {
        self.next_sweep = now.mono + SWEEP_PERIOD;
        let retention = i64::try_from(self.settings.retention.as_millis()).unwrap_or(i64::MAX);
        self.entries.retain(|id, entry| {
            let is_old =
                entry.removed_ms.is_some_and(|at| now.wall_ms.saturating_sub(at) > retention);
            if !is_old || entry.spool.is_some() {
                return true;
            }
            log::info!("logs of a removed instance deleted instance={id}");
            if let Err(err) = fs::remove_dir_all(&entry.dir) {
                log::warn!("log store not removed path={} err={err}", entry.dir.display());
            }
            false
        });
    }

    /// A last turn; the spools stay for the next life of the daemon.
    fn finish(&mut self, now: Now) {
        let ids: Vec<InstanceId> = self.with_spool().collect();
        for id in ids {
            self.drain(&id, TURN_BYTES, false, now);
        }
        self.entries.values_mut().for_each(Entry::sync);
    }
}

impl Entry {
    /// Opens the spool at the position up to which it is stored.
    fn attach(
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

    fn keep_bound(&mut self, settings: &LogSettings) {
        let most = settings.instance_store_bytes.max(LEAST_SEGMENTS * SEGMENT_BYTES);
        while self.segments.bytes() > most && self.segments.drop_oldest() {}
    }

    /// Gives the spool back if nobody uses it any more.
    fn release(&mut self, id: &InstanceId) {
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

    fn sync(&mut self) {
        if let Err(err) = self.segments.sync() {
            log::warn!("log store not flushed path={} err={err}", self.dir.display());
        }
    }
}

impl Work {
    /// Stores what waits in the spool of `entry`, until about `limit` bytes are moved.
    fn drain(
        &mut self,
        entry: &mut Entry,
        limit: usize,
        is_over: bool,
        now: Now,
    ) -> std::io::Result<usize> {
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
    ) -> std::io::Result<usize> {
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
    fn store_lines(
        &mut self,
        data: &[u8],
        chunk: spool::Chunk,
        entry: &mut Entry,
        now: Now,
    ) -> usize {
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
    fn write(&mut self, entry: &mut Entry, kind: Kind, flags: u8, now: Now) -> bool {
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

/// Token bucket for lines and bytes; one line costs one millisecond of the period's worth.
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
        let period = RATE_PERIOD.as_millis();
        let elapsed = self.at.map_or(period, |at| now.saturating_sub(at).as_millis());
        let filled = |old: u128, rate: u64| {
            let rate = u128::from(rate);
            old.saturating_add(elapsed.saturating_mul(rate)).min(rate * period)
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
    let text = boot_id().unwrap_or_default();
    let digits: Vec<u8> =
        text.chars().filter_map(|c| c.to_digit(16)).filter_map(|d| u8::try_from(d).ok()).collect();
    std::array::from_fn(|index| match digits.get(2 * index..2 * index + 2) {
        Some([high, low]) => high << 4 | low,
        _ => 0,
    })
}

#[cfg(test)]
mod tests;
