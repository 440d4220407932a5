//! What the thread `log-in` waits for: its inbox, the journal, the kernel, and the time.
//!
//! In: [`CaptureCommand`], at most `INBOX` waiting; the pipe of a `journalctl`; `/dev/kmsg`; files
//! of a syslog daemon. Out: alerts and how far they have come through [`AlertOutput`], and the work of `capture`. With
//! nothing to capture and nothing to tell it sleeps without a timer.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use crossbeam::channel::{Receiver, Sender, TrySendError, bounded};
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Registry, Token, Waker};

use crate::logs::alerts::AlertOutput;
use crate::logs::capture::{Capture, CaptureCommand};
use crate::logs::export::Entry;
use crate::logs::follow::{COMPONENTS, Follower, Subject, subject};
use crate::logs::kmsg::KernelWatch;
use crate::logs::position::Position;
use crate::logs::syslog::SyslogWatch;
use crate::logs::{LogSettings, OWN_STORE, system};
use crate::ports::{Clock, Now, Processes};
use crate::sys::{self, progress};

/// Capacity of the inbox of the thread.
pub const INBOX: usize = 256;
const COMMANDS: Token = Token(0);
const JOURNAL: Token = Token(1);
const KERNEL: Token = Token(2);
const SYSLOG: Token = Token(3);
const TOKENS: usize = 4;
/// Shortest time between two reports of the position of which nothing became an alert.
const POSITION_PERIOD: Duration = Duration::from_secs(1);

/// Way to the thread.
#[derive(Clone, Debug)]
pub struct CaptureHandle {
    inbox: Sender<CaptureCommand>,
    waker: Arc<Waker>,
}

impl CaptureHandle {
    /// Never blocks; gives the command back when the inbox is full.
    pub fn try_send(&self, command: CaptureCommand) -> Option<CaptureCommand> {
        let returned = self.inbox.try_send(command).err().map(TrySendError::into_inner);
        if returned.is_none() {
            self.wake();
        }
        returned
    }

    /// False = the inbox stayed full, or the thread has ended.
    pub fn send_timeout(&self, command: CaptureCommand, limit: Duration) -> bool {
        let sent = self.inbox.send_timeout(command, limit).is_ok();
        self.wake();
        sent
    }

    /// Ends the thread. Waits while the inbox is full.
    pub fn stop(&self) {
        let _ = self.inbox.send(CaptureCommand::Stop);
        self.wake();
    }

    fn wake(&self) {
        // Fails only if the poll is gone, and then so is the thread.
        let _ = self.waker.wake();
    }
}

/// The thread's end of the way.
#[derive(Debug)]
pub struct CaptureInbox {
    poll: Poll,
    commands: Receiver<CaptureCommand>,
    /// Kept open: closing it with the last handle would lose a wake-up that was not seen yet.
    _waker: Arc<Waker>,
}

/// A way to the thread `log-in`.
pub fn inbox() -> io::Result<(CaptureHandle, CaptureInbox)> {
    let poll = Poll::new()?;
    let waker = Arc::new(Waker::new(poll.registry(), COMMANDS)?);
    let (inbox, commands) = bounded(INBOX);
    Ok((
        CaptureHandle { inbox, waker: waker.clone() },
        CaptureInbox { poll, commands, _waker: waker },
    ))
}

#[cfg(test)]
impl CaptureInbox {
    /// What has arrived.
    pub(crate) fn take(&self) -> Vec<CaptureCommand> {
        self.commands.try_iter().collect()
    }
}

/// Instances started now write to the journal, so that the daemon's own lines need no place.
pub fn uses_journal(settings: &LogSettings) -> bool {
    crate::logs::journal::is_used(settings)
}

/// What the thread works with.
#[derive(Clone, Copy)]
pub struct Means<'a> {
    pub settings: &'a LogSettings,
    pub processes: &'a dyn Processes,
    pub clock: &'a dyn Clock,
    /// `None` = nobody is interested in alerts.
    pub output: Option<&'a dyn AlertOutput>,
    /// Up to where an earlier life has made alerts.
    pub position: Option<&'a str>,
}

impl std::fmt::Debug for Means<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Means").field("settings", self.settings).finish_non_exhaustive()
    }
}

/// Body of the thread; returns on `Stop`, after a last turn.
pub fn run(means: &Means<'_>, mut inbox: CaptureInbox) {
    let output = means.output.unwrap_or(&());
    let mut capture = Capture::new(means.settings, output, means.clock.now());
    let mut sources = Sources::open(means, &capture, inbox.poll.registry());
    sources.turn(&mut capture, inbox.poll.registry(), means.clock.now());
    let mut events = Events::with_capacity(TOKENS);
    loop {
        let now = means.clock.now();
        let pauses = [capture.pause(now), sources.pause(now)];
        let pause = pauses.into_iter().flatten().min();
        match progress::waiting(|| inbox.poll.poll(&mut events, pause)) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => {
                log::error!("logs are not captured any more err={error}");
                break;
            }
            Ok(()) => {}
        }
        events.iter().for_each(|event| sources.note(event.token()));
        let mut is_over = false;
        while let Ok(command) = inbox.commands.try_recv() {
            is_over |= command == CaptureCommand::Stop;
            capture.apply(command, means.clock.now());
        }
        if is_over {
            break;
        }
        sources.turn(&mut capture, inbox.poll.registry(), means.clock.now());
        capture.tick_if_due(means.clock.now());
    }
    capture.finish(means.clock.now());
}

/// Where messages come from besides the instances.
struct Sources<'a> {
    means: &'a Means<'a>,
    journal: Option<Follower<'a>>,
    kernel: Option<KernelWatch>,
    syslog: Option<SyslogWatch>,
    /// What was reported last, and when; at first what an earlier life has left.
    reported: Position,
    reported_at: Option<Duration>,
    /// Messages that were judged up to then.
    judged: u64,
}

impl<'a> Sources<'a> {
    fn open(means: &'a Means<'a>, capture: &Capture<'_>, registry: &Registry) -> Self {
        let stored = means.position.map(Position::parse).unwrap_or_default();
        let wants_kernel =
            means.settings.alerts.kernel.unwrap_or(!capture.uses_journal) && means.output.is_some();
        let kernel = wants_kernel.then(|| {
            let watch = KernelWatch::open(stored.kernel, capture.work.boot)?;
            registry.register(&mut SourceFd(&watch.descriptor()), KERNEL, Interest::READABLE)?;
            Ok::<_, io::Error>(watch)
        });
        let kernel = kernel.and_then(|opened| {
            opened.inspect_err(|err| log::warn!("kernel messages are not read err={err}")).ok()
        });
        let wants_syslog = !capture.uses_journal && means.output.is_some();
        let syslog = wants_syslog.then(|| follow_syslog(means.settings, registry)).flatten();
        Self {
            means,
            journal: None,
            kernel,
            syslog,
            reported: stored,
            reported_at: None,
            judged: 0,
        }
    }

    fn note(&mut self, token: Token) {
        match (token, &mut self.journal, &mut self.kernel) {
            (JOURNAL, Some(journal), _) => journal.has_more = true,
            (KERNEL, _, Some(kernel)) => kernel.has_more = true,
            _ => {}
        }
        if let Some(syslog) = self.syslog.as_mut().filter(|_| token == SYSLOG) {
            syslog.note();
        }
    }

    /// How long to wait; `None` = until something is announced.
    fn pause(&self, now: Now) -> Option<Duration> {
        let is_busy = self.journal.as_ref().is_some_and(|journal| journal.has_more)
            || self.kernel.as_ref().is_some_and(|kernel| kernel.has_more);
        if is_busy {
            return Some(Duration::ZERO);
        }
        let start = self.journal.as_ref().and_then(Follower::next_start);
        let read = self.syslog.as_ref().and_then(SyslogWatch::next_read);
        let next = start.into_iter().chain(read).min();
        next.map(|at| at.saturating_sub(now.mono))
    }

    fn turn(&mut self, capture: &mut Capture<'_>, registry: &Registry, now: Now) {
        if capture.uses_journal && self.journal.is_none() && self.means.output.is_some() {
            self.follow(now);
        }
        let (_, sent) = capture.work.alerts.counts();
        self.read_journal(capture, registry, now);
        self.read_kernel(capture, registry, now);
        self.read_syslog(capture, now);
        let (judged, sent_now) = capture.work.alerts.counts();
        // What no alert could be made of may as well be read again.
        let is_due = |at: Duration| now.mono.saturating_sub(at) >= POSITION_PERIOD;
        let is_news =
            sent_now > sent || (judged > self.judged && self.reported_at.is_none_or(is_due));
        if is_news || self.reported_at.is_none() {
            self.judged = judged;
            self.report(capture, now);
        }
    }

    fn follow(&mut self, now: Now) {
        let Means { settings, processes, .. } = *self.means;
        if sys::command::find("journalctl".as_ref()).is_none() {
            log::warn!("journal is not followed, there is no journalctl");
        }
        let since_us = self.reported.since_us.unwrap_or(now.wall_ms.saturating_mul(1000));
        let place = (self.reported.journal.clone(), since_us);
        self.journal = Some(Follower::new(settings, processes, JOURNAL, place, now));
    }

    fn read_journal(&mut self, capture: &mut Capture<'_>, registry: &Registry, now: Now) {
        let Some(journal) = &mut self.journal else { return };
        journal.start_if_due(registry, now.mono);
        if journal.has_more {
            let settings = self.means.settings;
            journal.read(registry, now.mono, |entry| take(&entry, capture, settings, now));
        }
    }

    fn read_kernel(&mut self, capture: &mut Capture<'_>, registry: &Registry, now: Now) {
        let Some(kernel) = self.kernel.as_mut().filter(|kernel| kernel.has_more) else { return };
        let level = self.means.settings.alerts.system_priority;
        let alerts = &mut capture.work.alerts;
        if !kernel.read(level, now, |time_ms, text| alerts.system(text, time_ms, now)) {
            log::warn!("kernel messages are not read any more");
            let _ = registry.deregister(&mut SourceFd(&kernel.descriptor()));
            self.kernel = None;
        }
    }

    fn read_syslog(&mut self, capture: &mut Capture<'_>, now: Now) {
        let Some(syslog) = &mut self.syslog else { return };
        let level = self.means.settings.alerts.system_priority;
        let has_kernel = self.kernel.is_some();
        syslog.read(now, |line| {
            // The kernel's messages come from the kernel, our own directly.
            let name = line.unit.replace('_', "-");
            let is_known = (has_kernel && name == "kernel") || name == OWN_STORE;
            if is_known || line.level.is_none_or(|found| found > level) {
                return;
            }
            let time_ms = line.real_us / 1000;
            match COMPONENTS.into_iter().find(|component| name.contains(component)) {
                Some(name) => capture.work.alerts.core(name, &line.message, time_ms, now),
                None => capture.work.alerts.system(&line.message, time_ms, now),
            }
        });
    }

    /// Says how far the alerts have come, if that is news.
    fn report(&mut self, capture: &Capture<'_>, now: Now) {
        let journal = self.journal.as_ref().and_then(|journal| journal.place.clone());
        let kernel = self.kernel.as_ref().and_then(KernelWatch::place);
        let since_us = self.journal.as_ref().map(|journal| journal.since_us);
        let journal = journal.or_else(|| self.reported.journal.clone());
        let position = Position {
            since_us: since_us.or(self.reported.since_us).filter(|_| journal.is_none()),
            journal,
            kernel: kernel.or(self.reported.kernel),
        };
        if position != self.reported {
            capture.work.alerts.position(position.to_text());
            self.reported = position;
        }
        self.reported_at = Some(now.mono);
    }
}

fn follow_syslog(settings: &LogSettings, registry: &Registry) -> Option<SyslogWatch> {
    let opened = SyslogWatch::open(system::newest(settings)).and_then(|watch| {
        if let Some(watch) = &watch {
            registry.register(&mut SourceFd(&watch.descriptor()), SYSLOG, Interest::READABLE)?;
        }
        Ok(watch)
    });
    opened.inspect_err(|err| log::warn!("system log files are not read err={err}")).ok().flatten()
}

/// Makes an alert of an entry if it is about something that has one.
fn take(entry: &Entry, capture: &mut Capture<'_>, settings: &LogSettings, now: Now) {
    let Some(message) = &entry.message else { return };
    let time_ms = entry.real_us / 1000;
    match subject(entry, settings, |id| capture.knows(id)) {
        None => {}
        Some(Subject::System) => capture.work.alerts.system(message, time_ms, now),
        Some(Subject::Core(name)) => capture.work.alerts.core(name, message, time_ms, now),
        Some(Subject::Instance(id)) => capture.instance_alert(&id, message, time_ms, now),
    }
}

#[cfg(test)]
mod tests;
