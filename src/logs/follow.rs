//! Follows the journal: entries that may become alerts, from the place where the last life of the
//! daemon ended, over rotation, vacuum and restarts of journald.
//!
//! Thread `log-in`. A long-lived `journalctl`, made and reaped by the process manager, writes to a
//! pipe in the poll set; it ends when nobody reads that any more. If it ends by itself it is started
//! again after a pause that grows. What an entry is about is decided here (`subject`), whether it
//! becomes an alert in `alerts`.

use std::convert::Infallible;
use std::ffi::OsString;
use std::io::{self, PipeReader, Read};
use std::os::fd::AsRawFd;
use std::time::Duration;

use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};
use nix::fcntl::{FcntlArg, OFlag, fcntl};

use crate::logs::LogSettings;
use crate::logs::export::{Entry, FIELDS, Parser};
use crate::logs::journal::{at, journalctl};
use crate::logs::position::Cursor;
use crate::model::id::InstanceId;
use crate::ports::{Command, Now, Processes};

/// A follower is replaced after so long, whatever it does.
const LIFE: Duration = Duration::from_secs(24 * 3600);
/// Pauses before a follower that has ended is started again.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LAST_PAUSE: Duration = Duration::from_secs(60);
/// One that lived so long begins with the first pause again.
const SOUND_LIFE: Duration = Duration::from_secs(60);
const PIECE_BYTES: usize = 16 * 1024;
/// Pieces of one turn, so that a storm delays nothing else for long.
const PIECES: usize = 16;

/// Names of our components in units, which become core alerts.
pub(crate) const COMPONENTS: [&str; 6] = [
    "aos-servicemanager",
    "aos-updatemanager",
    "aos-iamanager",
    "aos-communicationmanager",
    "aos-vis",
    "aos-messageproxy",
];
/// The unit of PID 1.
const INIT: &str = "init.scope";

/// The follower and where it is.
pub(crate) struct Follower<'a> {
    settings: &'a LogSettings,
    processes: &'a dyn Processes,
    token: Token,
    child: Option<Child>,
    pause: Duration,
    /// When the next one is started; `None` = one runs.
    start_at: Option<Duration>,
    /// The last entry that was read.
    pub(crate) place: Option<Cursor>,
    /// Where to begin while there is no place, Unix time in microseconds.
    pub(crate) since_us: i64,
    /// The last one ended without having read anything: its cursor may be what it cannot find.
    distrusts_cursor: bool,
    /// There may be more to read although nothing announces it.
    pub(crate) has_more: bool,
}

struct Child {
    pipe: PipeReader,
    parser: Parser,
    started_at: Duration,
    /// It has shown an entry.
    is_proven: bool,
}

impl<'a> Follower<'a> {
    /// Follows from `place`, or from a time on, Unix time in microseconds.
    pub(crate) fn new(
        settings: &'a LogSettings,
        processes: &'a dyn Processes,
        token: Token,
        (place, since_us): (Option<Cursor>, i64),
        now: Now,
    ) -> Self {
        Self {
            settings,
            processes,
            token,
            child: None,
            pause: FIRST_PAUSE,
            start_at: Some(now.mono),
            place,
            since_us,
            distrusts_cursor: false,
            has_more: false,
        }
    }

    /// When `start_if_due` has something to do, CLOCK_MONOTONIC.
    pub(crate) fn next_start(&self) -> Option<Duration> {
        self.start_at
    }

    pub(crate) fn start_if_due(&mut self, registry: &Registry, now: Duration) {
        if self.start_at.is_none_or(|at| now < at) {
            return;
        }
        match self.start(registry, now) {
            Ok(()) => self.start_at = None,
            Err(err) => {
                log::warn!("journal is not followed err={err}");
                self.wait(now);
            }
        }
    }

    fn start(&mut self, registry: &Registry, now: Duration) -> io::Result<()> {
        let (pipe, output) = io::pipe()?;
        // Each end has flags of its own: the child's stays blocking.
        fcntl(&pipe, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        let stdout = Some(output.into());
        let command = Command { stdout, ..Command::new(self.argv(), LIFE) };
        self.processes.start(command).map_err(|failure| io::Error::other(failure.message))?;
        registry.register(&mut SourceFd(&pipe.as_raw_fd()), self.token, Interest::READABLE)?;
        self.child = Some(Child { pipe, parser: Parser::new(), started_at: now, is_proven: false });
        self.has_more = true;
        Ok(())
    }

    fn wait(&mut self, now: Duration) {
        self.start_at = Some(now + self.pause);
        self.pause = (self.pause * 2).min(LAST_PAUSE);
    }

    fn argv(&self) -> Vec<OsString> {
        let mut argv = journalctl(self.settings, FIELDS);
        argv.extend(["--follow", "--no-tail"].map(str::to_owned));
        // With its own entry: only that proves that nothing between was removed. The other way to
        // say where to begin cannot be given as well.
        argv.push(match &self.place {
            Some(place) if !self.distrusts_cursor => format!("--cursor={}", place.text),
            Some(place) => format!("--since={}", at(place.real_us)),
            None => format!("--since={}", at(self.since_us)),
        });
        let levels = 0..=self.settings.alerts.system_priority;
        argv.extend(levels.map(|level| format!("PRIORITY={level}")));
        argv.extend(["+".to_owned(), format!("_SYSTEMD_UNIT={INIT}")]);
        argv.into_iter().map(OsString::from).collect()
    }

    /// Calls `each` with the entries that have arrived and were not seen before.
    pub(crate) fn read(&mut self, registry: &Registry, now: Duration, mut each: impl FnMut(Entry)) {
        self.has_more = false;
        let Some(mut child) = self.child.take() else { return };
        let mut piece = [0; PIECE_BYTES];
        let place = &mut self.place;
        for _ in 0..PIECES {
            let length = match child.pipe.read(&mut piece) {
                Ok(length) if length > 0 => length,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.child = Some(child);
                    return;
                }
                ended => return self.ended(registry, &child, ended.err(), now),
            };
            let is_proven = &mut child.is_proven;
            let Ok(()) = child.parser.feed(&piece[..length], |entry| {
                let Some(cursor) = Cursor::parse(&entry.cursor) else { return Ok(()) };
                *is_proven = true;
                if place.as_ref().is_none_or(|place| !cursor.is_up_to(place)) {
                    *place = Some(cursor);
                    each(entry);
                }
                Ok::<(), Infallible>(())
            });
        }
        self.has_more = true;
        self.child = Some(child);
    }

    fn ended(
        &mut self,
        registry: &Registry,
        child: &Child,
        error: Option<io::Error>,
        now: Duration,
    ) {
        let _ = registry.deregister(&mut SourceFd(&child.pipe.as_raw_fd()));
        let age = now.saturating_sub(child.started_at);
        if age >= LIFE {
            log::debug!("another journalctl follows the journal");
            self.pause = FIRST_PAUSE;
            self.start_at = Some(now);
            return;
        }
        let is_sound = age >= SOUND_LIFE;
        if is_sound {
            self.pause = FIRST_PAUSE;
        }
        self.distrusts_cursor = !child.is_proven && !is_sound && !self.distrusts_cursor;
        let why = error.map_or_else(|| "journalctl has ended".to_owned(), |err| err.to_string());
        log::warn!("journal is not followed pause={:?} err={why}", self.pause);
        self.wait(now);
    }
}

/// Whom an entry is about.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Subject {
    System,
    Core(&'static str),
    Instance(InstanceId),
}

/// Whom an alert of this entry would be about; `None` = there is none.
pub(crate) fn subject(
    entry: &Entry,
    settings: &LogSettings,
    is_instance: impl Fn(&InstanceId) -> bool,
) -> Option<Subject> {
    let alerts = &settings.alerts;
    let level = entry.priority?;
    if entry.is_muted {
        return None;
    }
    let is_init = entry.unit == INIT;
    if is_init && level > alerts.service_priority {
        return None;
    }
    let unit = if is_init { &entry.object } else { &entry.unit };
    let named = InstanceId::new(&entry.identifier);
    let parts = [unit.as_str(), if is_init { "" } else { &entry.cgroup }];
    let id = parts.iter().find_map(|part| instance_of(part, settings));
    // A process that was gone before journald looked has no group: the stream has its name.
    let id = id.or_else(|| (entry.transport == "stdout" && is_instance(&named)).then_some(named));
    if let Some(id) = id {
        return Some(Subject::Instance(id));
    }
    let name = parts.into_iter().find(|part| !part.is_empty())?;
    if let Some(component) = COMPONENTS.into_iter().find(|component| name.contains(component)) {
        return Some(Subject::Core(component));
    }
    // PID 1 has something to say about many units: what is no instance counts as any message does.
    (level <= alerts.system_priority).then_some(Subject::System)
}

/// The instance of a unit or control group: of either form, or below one.
fn instance_of(name: &str, settings: &LogSettings) -> Option<InstanceId> {
    if let Some((_, rest)) = name.split_once("aos-service@") {
        let id = rest.split('/').next()?;
        return Some(InstanceId::new(id.strip_suffix(".service").unwrap_or(id)));
    }
    let parent = settings.cgroup_parent.trim_matches('/');
    let rest = name.strip_prefix('/')?.strip_prefix(parent)?.strip_prefix('/')?;
    rest.split('/').next().filter(|id| !id.is_empty()).map(InstanceId::new)
}

#[cfg(test)]
mod tests;
