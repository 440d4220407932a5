//! Moves the output of containers from their spools into bounded segments on disk.
//!
//! Thread `log-in` owns spools (the reading side) and segments. In: [`CaptureCommand`], through
//! `intake`, and one timer while there are spools: half a second, less when one fills up, more when
//! all are quiet. Out: files, and what becomes alerts. The position up to which a spool is stored stands in
//! the same record as the lines, so a crash between two steps neither loses nor doubles a line.
//! A store that cannot be written costs lines, counted, and never a container.

use std::collections::BTreeMap;
use std::fs;
use std::sync::Arc;
use std::time::Duration;

use crate::logs::alerts::{self, AlertOutput, Alerts};
use crate::logs::drain::{Entry, Work};
use crate::logs::ident::StoredIdent;
use crate::logs::journal::{self, Life};
use crate::logs::record::{FAILURE, Kind, gap_priority};
use crate::logs::spool::{self, Spool};
use crate::logs::{
    Error, LogSettings, OWN_STORE, ids_below, spool_dir, spool_root, store_root, unit,
};
use crate::model::event::Exit;
use crate::model::id::{InstanceId, InstanceIdent};
use crate::model::status::chain;
use crate::ports::Now;

/// What one spool may move in one turn, so that a noisy instance delays no other.
const TURN_BYTES: usize = 256 * 1024;
const PAUSE: Duration = Duration::from_millis(500);
/// While a spool is more than half full, or a turn was not enough.
const PAUSE_BUSY: Duration = Duration::from_millis(100);
/// When nothing has arrived for `QUIET_AFTER`.
const PAUSE_QUIET: Duration = Duration::from_secs(2);
const QUIET_AFTER: Duration = Duration::from_secs(60);
/// How often logs of removed instances are looked at.
const SWEEP_PERIOD: Duration = Duration::from_secs(3600);
/// Level of our own messages that become alerts, and of more urgent ones.
const OWN_ALERT: u8 = 3;
/// Removed instances of which logs are kept: each takes a directory and about a kilobyte of memory,
/// and an ident that comes and goes is another instance each time.
pub(crate) const MAX_REMOVED: usize = 128;

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
        /// Before this it has not written anything.
        at: Now,
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
    /// It has reached its start limit.
    GivenUp {
        id: InstanceId,
    },
    /// It is gone: drain the rest, release the spool, begin the retention. An unknown id is fine.
    /// `until` = newest generation of its spool then: a newer one belongs to another start.
    Close {
        id: InstanceId,
        until: u64,
    },
    /// A line of the daemon's own log, for the system log without a journal; `is_alert` = it may
    /// become one.
    Own {
        priority: u8,
        text: Box<str>,
        is_alert: bool,
    },
    Stop,
}

/// State of the thread.
#[derive(Debug)]
pub(crate) struct Capture<'a> {
    settings: &'a LogSettings,
    entries: BTreeMap<InstanceId, Entry>,
    pub(crate) work: Work<'a>,
    /// Instances started now write to the journal.
    pub(crate) uses_journal: bool,
    next_tick: Duration,
    next_sync: Duration,
    next_sweep: Duration,
    /// When output arrived last.
    active_at: Duration,
}

impl<'a> Capture<'a> {
    pub(crate) fn new(settings: &'a LogSettings, output: &'a dyn AlertOutput, now: Now) -> Self {
        let mut capture = Self {
            settings,
            entries: BTreeMap::new(),
            work: Work::new(Alerts::new(&settings.alerts, output)),
            uses_journal: journal::is_used(settings),
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
        for (id, entry) in &mut capture.entries {
            if id.as_str() != OWN_STORE && entry.is_orphan() {
                entry.removed_ms = Some(now.wall_ms);
            }
        }
        capture.forget_surplus();
        capture
    }

    fn entry(&mut self, id: &InstanceId) -> &mut Entry {
        let settings = self.settings;
        self.entries.entry(id.clone()).or_insert_with(|| Entry::find(settings, id))
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

    pub(crate) fn apply(&mut self, command: CaptureCommand, now: Now) {
        match command {
            CaptureCommand::Open { id, ident, version, spool, at } => {
                self.open(&id, StoredIdent::new(&ident, &version), spool);
                let text = format!("starting version={version}");
                self.mark(&id, Kind::Started, 0, &text, at);
                self.uses_journal |= spool.is_none();
                self.active_at = now.mono;
                self.next_tick = self.next_tick.min(now.mono + PAUSE);
            }
            CaptureCommand::Started { id, pid } => {
                log::debug!("container runs instance={id} pid={pid}");
                self.announce(&id, Life::Started, &[(6, format!("Started {}.", unit(&id)))], now);
            }
            CaptureCommand::Exited { id, exit, was_asked } => {
                self.drain(&id, usize::MAX, true, now);
                let flags = if was_asked || exit == Exit::Code(0) { 0 } else { FAILURE };
                self.mark(&id, Kind::Exited, flags, &exit.to_string(), now);
                let texts = alerts::end_of(&unit(&id), exit);
                let is_alert = !was_asked;
                self.tell(&id, Life::Exited(exit), &texts);
                if is_alert {
                    self.alert(&id, &texts, now);
                }
            }
            CaptureCommand::GivenUp { id } => {
                self.mark(&id, Kind::GivenUp, 0, "start limit reached", now);
                self.announce(&id, Life::GivenUp, &alerts::given_up(&unit(&id)), now);
            }
            CaptureCommand::Close { id, until } => self.close(&id, until, now),
            CaptureCommand::Own { priority, text, is_alert } => {
                if is_alert && priority <= OWN_ALERT {
                    self.work.alerts.core(OWN_STORE, text.as_bytes(), now.wall_ms, now);
                }
                if !self.uses_journal {
                    self.own(priority, &text, now);
                }
            }
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

    fn open(&mut self, id: &InstanceId, stored: StoredIdent, generation: Option<u64>) {
        let (settings, boot) = (self.settings, self.work.boot);
        let entry = self.entry(id);
        (entry.removed_ms, entry.is_closing) = (None, false);
        if let Err(err) = stored.write(&entry.dir) {
            log::warn!("log identity not written instance={id} err={err}");
        }
        entry.stored = Some(stored);
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
        let is_over = entry.removed_ms.is_some();
        if flags & FAILURE != 0 || is_over {
            entry.sync();
        }
        // A stop may be done before the end of the init is noticed, and nothing comes after that.
        if is_over {
            entry.segments.close();
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
        if let Some(stored) = &mut entry.stored {
            stored.removed_ms = entry.removed_ms;
            if let Err(err) = stored.write(&entry.dir) {
                log::warn!("log identity not written instance={id} err={err}");
            }
        }
        entry.sync();
        entry.segments.close();
        entry.release(id);
        self.forget_surplus();
    }

    /// Tells the journal, where that is what instances write to, and makes alerts.
    fn announce(&mut self, id: &InstanceId, life: Life, texts: &[(u8, String)], now: Now) {
        self.tell(id, life, texts);
        self.alert(id, texts, now);
    }

    fn tell(&self, id: &InstanceId, life: Life, texts: &[(u8, String)]) {
        let has_spool = self.entries.get(id).is_some_and(|entry| entry.spool.is_some());
        if self.uses_journal && !has_spool {
            for (level, text) in texts {
                journal::tell(self.settings, id, life, *level, text);
            }
        }
    }

    fn alert(&mut self, id: &InstanceId, texts: &[(u8, String)], now: Now) {
        let Some(who) = self.entries.get(id).and_then(|entry| entry.stored.as_ref()) else {
            return;
        };
        let limit = self.settings.alerts.service_priority;
        for (_, text) in texts.iter().filter(|(level, _)| *level <= limit) {
            self.work.alerts.instance((id, who), text.as_bytes(), now.wall_ms, now);
        }
    }

    /// Something has written this about an instance; one that nobody can ask for is left out.
    pub(crate) fn instance_alert(&mut self, id: &InstanceId, text: &[u8], time_ms: i64, now: Now) {
        match self.entries.get(id).and_then(|entry| entry.stored.as_ref()) {
            Some(who) => self.work.alerts.instance((id, who), text, time_ms, now),
            None => log::debug!("message of an unknown instance instance={id}"),
        }
    }

    pub(crate) fn knows(&self, id: &InstanceId) -> bool {
        self.entries.contains_key(id)
    }

    /// How long to wait; `None` = until there is a message.
    pub(crate) fn pause(&self, now: Now) -> Option<Duration> {
        let any = |test: fn(&Entry) -> bool| self.entries.values().any(test);
        let is_dirty = self.syncs() && any(|entry| entry.segments.is_dirty());
        let deadlines = [
            any(|entry| entry.spool.is_some()).then_some(self.next_tick),
            is_dirty.then_some(self.next_sync),
            any(|entry| entry.removed_ms.is_some()).then_some(self.next_sweep),
            self.work.alerts.next_report(),
        ];
        let next = deadlines.into_iter().flatten().min()?;
        Some(next.saturating_sub(now.mono))
    }

    fn syncs(&self) -> bool {
        !self.settings.sync_period.is_zero()
    }

    pub(crate) fn tick_if_due(&mut self, now: Now) {
        let entries = &self.entries;
        self.work.alerts.report(now, |id| entries.get(id)?.stored.as_ref());
        if self.next_tick <= now.mono {
            self.tick(now);
        }
        if self.syncs() && self.next_sync <= now.mono {
            self.entries.values_mut().for_each(Entry::sync);
            self.next_sync = now.mono + self.settings.sync_period;
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
        entry.refill(self.settings, now.mono);
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
            delete_store(id, entry);
            false
        });
    }

    /// Of removed instances the newest `MAX_REMOVED` stay.
    fn forget_surplus(&mut self) {
        loop {
            let removed =
                self.entries.iter().filter(|(_, e)| e.removed_ms.is_some() && e.spool.is_none());
            if removed.clone().count() <= MAX_REMOVED {
                return;
            }
            let oldest = removed.min_by_key(|(_, entry)| entry.removed_ms);
            let Some(id) = oldest.map(|(id, _)| id.clone()) else { return };
            if let Some(entry) = self.entries.remove(&id) {
                delete_store(&id, &entry);
            }
        }
    }

    /// A last turn; the spools stay for the next life of the daemon.
    /// A child of the daemon that has just been made holds all descriptors until it executes its
    /// program, so a spool can be in use at `Close`; now there are no such children any more.
    pub(crate) fn finish(&mut self, now: Now) {
        self.tick(now);
        self.entries.values_mut().for_each(Entry::sync);
    }
}

fn delete_store(id: &InstanceId, entry: &Entry) {
    log::info!("logs of a removed instance deleted instance={id}");
    if let Err(err) = fs::remove_dir_all(&entry.dir) {
        log::warn!("log store not removed path={} err={err}", entry.dir.display());
    }
}

#[cfg(test)]
mod tests;
