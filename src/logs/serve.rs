//! Answers log requests.
//!
//! Thread `log-out`. In: [`LogCommand`], at most `INBOX` waiting. Out: parts through [`LogOutput`],
//! one at a time; when a stream ended, the rest of its answer and its other requests are dropped.
//! Every other request gets an answer: parts, or one message that says why there are none.

use std::fmt::Write as _;
use std::slice::from_ref;

use crossbeam::channel::Receiver;

use crate::calendar::Civil;
use crate::logs::archive::{Archive, Parts};
use crate::logs::export::Entry;
use crate::logs::ident::StoredIdent;
use crate::logs::journal::{self, Journal};
use crate::logs::reader::Reader;
use crate::logs::record::{self, FAILURE, Header, Kind, Stamp};
use crate::logs::{Error, LogSettings, ids_below, store_dir, store_root, system, unit};
use crate::model::command::{LogKind, LogRequest};
use crate::model::desired::InstanceFilter;
use crate::model::event::Session;
use crate::model::id::InstanceId;
use crate::model::status::{ErrorInfo, LogPart, LogStatus};
use crate::ports::{Clock, Now, Processes};
use crate::sys::progress;

/// Requests that may wait; further ones are refused by whoever would send them.
pub const INBOX: usize = 8;

const ABSENT: &str = "no service instance found";
const NO_CRASH: &str = "no instance crash found";

/// Inbox of the thread.
#[derive(Clone, PartialEq, Debug)]
pub enum LogCommand {
    Request { session: Session, request: LogRequest },
    Stop,
}

/// Where parts go.
pub trait LogOutput: Send {
    /// Whether the stream of `session` is still there.
    fn is_open(&self, session: Session) -> bool;
    /// Hands one part over and waits until there is room for the next. False = the stream of
    /// `session` has ended.
    fn part(&self, session: Session, part: LogPart) -> bool;
}

/// Body of the thread; returns on `Stop` or when all senders are gone.
pub fn run(
    settings: &LogSettings,
    inbox: &Receiver<LogCommand>,
    processes: &dyn Processes,
    clock: &dyn Clock,
    output: &dyn LogOutput,
) {
    // Requests that came while one with the same id was being answered are repetitions of it.
    let mut repeated = 0;
    let mut answered = None;
    while let Ok(LogCommand::Request { session, request }) = progress::waiting(|| inbox.recv()) {
        let key = (session, request.log_id.clone());
        if repeated > 0 {
            repeated -= 1;
            if answered.as_ref() == Some(&key) {
                log::debug!("log request repeated log_id={}", request.log_id);
                continue;
            }
        }
        if !output.is_open(session) {
            log::debug!("log request of an ended stream dropped log_id={}", request.log_id);
            continue;
        }
        let desk = Desk { settings, processes, now: clock.now() };
        send(&request.log_id, desk.answer(&request), |part| output.part(session, part));
        repeated = inbox.len();
        answered = Some(key);
    }
}

/// What the CM gets.
enum Answer {
    Parts(Parts),
    Empty(Option<&'static str>),
    Absent,
}

fn send(log_id: &str, answer: Result<Answer, Error>, mut part: impl FnMut(LogPart) -> bool) {
    let log_id = log_id.to_owned();
    let single =
        |status, error| LogPart { part_count: 1, part: 1, status, error, ..LogPart::default() };
    let failed = |error: &Error| {
        log::warn!("log request failed log_id={log_id} err={}", crate::model::status::chain(error));
        LogPart {
            status: LogStatus::Error,
            error: Some(ErrorInfo::of(error)),
            ..LogPart::default()
        }
    };
    let text = |message: &str| Some(ErrorInfo::text(message));
    let only = match answer {
        Ok(Answer::Parts(parts)) => match send_parts(&log_id, parts, &mut part) {
            Ok(()) => return,
            Err(error) => failed(&error),
        },
        Ok(Answer::Empty(message)) => single(LogStatus::Empty, message.and_then(text)),
        Ok(Answer::Absent) => single(LogStatus::Absent, text(ABSENT)),
        Err(error) => failed(&error),
    };
    part(LogPart { log_id, ..only });
}

fn send_parts(
    log_id: &str,
    mut parts: Parts,
    send: &mut impl FnMut(LogPart) -> bool,
) -> Result<(), Error> {
    let part_count = u64::try_from(parts.len()).unwrap_or(u64::MAX);
    let mut part = 0;
    while let Some(data) = parts.next()? {
        part += 1;
        let log_id = log_id.to_owned();
        if !send(LogPart { log_id, part_count, part, data, ..LogPart::default() }) {
            log::debug!("rest of a log answer dropped part={part} parts={part_count}");
            return Ok(());
        }
    }
    Ok(())
}

/// One request at work.
struct Desk<'a> {
    settings: &'a LogSettings,
    processes: &'a dyn Processes,
    now: Now,
}

impl Desk<'_> {
    fn answer(&self, request: &LogRequest) -> Result<Answer, Error> {
        let range = Range::of(request);
        match &request.kind {
            LogKind::System => self.system(range),
            LogKind::Instance(filter) => self.instances(filter, range),
            LogKind::Crash(filter) => self.crashes(filter, range),
        }
    }

    /// The journal, if that is where logs go.
    fn journal(&self) -> Option<Journal<'_>> {
        let journal = Journal::new(self.settings, self.processes);
        journal::is_used(self.settings).then_some(journal)
    }

    fn system(&self, range: Range) -> Result<Answer, Error> {
        let mut text = Text::new(self.settings, range);
        match self.journal() {
            _ if range.is_reversed() => {}
            Some(journal) => journal.read(range, &[], |entry, message| {
                text.line(entry.real_us, Some(&entry.unit), message)
            })?,
            None => system::read(self.settings, self.now, |line| {
                text.line(line.real_us, Some(&line.unit), &line.message)
            })?,
        }
        text.finish(None)
    }

    fn instances(&self, filter: &InstanceFilter, range: Range) -> Result<Answer, Error> {
        let ids = self.matching(filter);
        if ids.is_empty() {
            return Ok(Answer::Absent);
        }
        let mut text = Text::new(self.settings, range);
        let is_labelled = ids.len() > 1;
        if let Some(journal) = self.journal().filter(|_| !range.is_reversed()) {
            let matches = journal::matches(self.settings, &ids, &[]);
            journal.read(range, &matches, |entry, message| {
                let label = is_labelled.then(|| label_of(entry));
                text.line(entry.real_us, label.as_deref(), message)
            })?;
        }
        let label = |id| is_labelled.then(|| unit(id));
        let sources =
            ids.iter().map(|id| (Reader::open(&store_dir(self.settings, id)), label(id))).collect();
        merge(sources, |header, lines, label| {
            if matches!(header.kind, Kind::Started | Kind::Exited | Kind::GivenUp) {
                return Ok(());
            }
            record::lines(lines).try_for_each(|line| {
                let real_us = header.stamp.real_us.saturating_add(i64::from(line.delay_us));
                text.line(real_us, label, line.text)
            })
        })?;
        text.finish(None)
    }

    /// Windows from the start of an instance to its newest failure in the range, one after another.
    fn crashes(&self, filter: &InstanceFilter, range: Range) -> Result<Answer, Error> {
        let ids = self.matching(filter);
        if ids.is_empty() {
            return Ok(Answer::Absent);
        }
        let mut text = Text::new(self.settings, Range::default());
        let is_labelled = ids.len() > 1;
        for id in &ids {
            let reader = Reader::open(&store_dir(self.settings, id));
            if let Some(window) = Window::find(reader, range) {
                let label = is_labelled.then(|| unit(id));
                self.crash(id, &window, label.as_deref(), &mut text)?;
            }
        }
        text.finish(Some(NO_CRASH))
    }

    /// What one instance wrote before its crash, then how it ended. The times of start and end are
    /// our own with either backend; where its output went to journald, its lines are there.
    fn crash(
        &self,
        id: &InstanceId,
        window: &Window,
        label: Option<&str>,
        text: &mut Text,
    ) -> Result<(), Error> {
        if let Some(journal) = self.journal() {
            let boot: String = window.boot.iter().map(|byte| format!("{byte:02x}")).collect();
            let matches =
                journal::matches(self.settings, from_ref(id), &[format!("_BOOT_ID={boot}")]);
            journal.read(window.journal_range(), &matches, |entry, message| {
                match window.holds_entry(entry) {
                    true => text.line(entry.real_us, label, message),
                    false => Ok(()),
                }
            })?;
        }
        let mut reader = Reader::open(&store_dir(self.settings, id));
        let mut buffer = Vec::new();
        while let Some(header) = reader.next(&mut buffer) {
            if !window.shows(&header) {
                continue;
            }
            for line in record::lines(&buffer) {
                text.line(header.stamp.real_us, label, line.text)?;
            }
        }
        Ok(())
    }

    /// Ids of present and removed instances that the filter selects.
    fn matching(&self, filter: &InstanceFilter) -> Vec<InstanceId> {
        let mut ids = ids_below(&store_root(self.settings));
        ids.retain(|id| {
            StoredIdent::read(&store_dir(self.settings, id))
                .is_some_and(|stored| filter.matches(&stored.ident()))
        });
        ids.sort_unstable();
        ids
    }
}

/// Calls `each` with all records of the sources in the order of their times. Within one source the
/// order is that of storage, whatever the clock did.
fn merge(
    mut sources: Vec<(Reader, Option<String>)>,
    mut each: impl FnMut(&Header, &[u8], Option<&str>) -> Result<(), Error>,
) -> Result<(), Error> {
    let mut buffer = Vec::new();
    loop {
        let mut next: Option<(i64, usize)> = None;
        for (index, (reader, _)) in sources.iter_mut().enumerate() {
            let Some(header) = reader.peek() else { continue };
            if next.is_none_or(|(time, _)| header.stamp.real_us < time) {
                next = Some((header.stamp.real_us, index));
            }
        }
        let Some((_, index)) = next else { return Ok(()) };
        let (reader, label) = &mut sources[index];
        if let Some(header) = reader.next(&mut buffer) {
            each(&header, &buffer, label.as_deref())?;
        }
    }
}

/// Whose line it is, where several instances are shown.
fn label_of(entry: &Entry) -> String {
    match entry.unit.as_str() {
        "" => unit(&InstanceId::new(&entry.identifier)),
        unit => unit.to_owned(),
    }
}

/// What of the logs belongs to one crash: records of one boot between two times.
#[derive(Debug)]
struct Window {
    boot: [u8; 16],
    from_us: u64,
    till_us: u64,
    /// Wall clock at both ends.
    real_us: (i64, i64),
    /// The next start, CLOCK_MONOTONIC: what journald has stamped until then belongs to this crash.
    next_us: Option<u64>,
}

/// journald may stamp the last words of an instance so long after its end.
const LATE_US: u64 = 1_000_000;
/// Wall clock times of the same moment may differ so much between journald and us.
const SKEW_US: i64 = 2_000_000;

impl Window {
    /// From the start before the newest failure in the range, or from the boot, to that failure.
    fn find(mut reader: Reader, range: Range) -> Option<Self> {
        let mut buffer = Vec::new();
        let mut started: Option<Stamp> = None;
        let mut window = None;
        while let Some(header) = reader.next(&mut buffer) {
            let stamp = header.stamp;
            let is_crash = header.kind == Kind::Exited && header.flags & FAILURE != 0;
            if header.kind == Kind::Started {
                started = Some(stamp);
                if let Some(window) = window.as_mut().filter(|window: &&mut Self| {
                    window.next_us.is_none() && window.boot == stamp.boot
                }) {
                    window.next_us = Some(stamp.mono_us);
                }
            } else if is_crash && range.holds(stamp.real_us) && range.from_us != Some(stamp.real_us)
            {
                let before = started.filter(|start| start.boot == stamp.boot);
                let from_us = before.map_or(0, |start| start.mono_us);
                let from_real_us = before.map_or(stamp.real_us, |start| start.real_us);
                window = Some(Self {
                    boot: stamp.boot,
                    from_us,
                    till_us: stamp.mono_us,
                    real_us: (from_real_us, stamp.real_us),
                    next_us: None,
                });
            }
        }
        window
    }

    fn shows(&self, header: &Header) -> bool {
        let is_inside = header.stamp.boot == self.boot
            && (self.from_us..=self.till_us).contains(&header.stamp.mono_us);
        is_inside && !matches!(header.kind, Kind::Started | Kind::GivenUp)
    }

    fn holds_entry(&self, entry: &Entry) -> bool {
        let till_us = self.till_us.saturating_add(LATE_US);
        let till_us = self.next_us.map_or(till_us, |next| till_us.min(next.saturating_sub(1)));
        entry.boot == self.boot && (self.from_us..=till_us).contains(&entry.mono_us)
    }

    /// Wall clock times between which all of its entries lie, unless the clock was set more than
    /// once meanwhile. Without a start of this boot: from the beginning on.
    fn journal_range(&self) -> Range {
        let (from_us, till_us) = self.real_us;
        let (first, last) = (from_us.min(till_us), from_us.max(till_us));
        let from_us = (self.from_us > 0).then(|| first.saturating_sub(SKEW_US));
        Range { from_us, till_us: Some(last.saturating_add(SKEW_US)) }
    }
}

/// Times that a request asks for, Unix time in microseconds, both ends included.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Range {
    pub(crate) from_us: Option<i64>,
    pub(crate) till_us: Option<i64>,
}

impl Range {
    fn of(request: &LogRequest) -> Self {
        let us = |ms: i64| ms.saturating_mul(1000);
        Self {
            from_us: request.from_ms.map(us),
            // A request carries milliseconds: the whole last one belongs to it.
            till_us: request.till_ms.map(|ms| us(ms).saturating_add(999)),
        }
    }

    /// Nothing can be in it.
    fn is_reversed(&self) -> bool {
        matches!((self.from_us, self.till_us), (Some(from), Some(till)) if till < from)
    }

    pub(crate) fn holds(&self, real_us: i64) -> bool {
        self.from_us.is_none_or(|from| from <= real_us)
            && self.till_us.is_none_or(|till| real_us <= till)
    }
}

/// The text of an answer.
struct Text {
    archive: Archive,
    range: Range,
    line: Vec<u8>,
    is_empty: bool,
}

impl Text {
    fn new(settings: &LogSettings, range: Range) -> Self {
        Self { archive: Archive::new(settings), range, line: Vec::new(), is_empty: true }
    }

    /// Adds a line if its time is asked for: `<time> [<unit> ]<message> \n`.
    fn line(&mut self, real_us: i64, unit: Option<&str>, message: &[u8]) -> Result<(), Error> {
        if !self.range.holds(real_us) {
            return Ok(());
        }
        self.is_empty = false;
        self.line.clear();
        self.line.extend_from_slice(go_time(real_us).as_bytes());
        self.line.push(b' ');
        if let Some(unit) = unit {
            self.line.extend_from_slice(unit.as_bytes());
            self.line.push(b' ');
        }
        self.line.extend_from_slice(message);
        self.line.extend_from_slice(b" \n");
        self.archive.line(&self.line)
    }

    fn finish(self, nothing: Option<&'static str>) -> Result<Answer, Error> {
        if self.is_empty {
            return Ok(Answer::Empty(nothing));
        }
        self.archive.finish().map(Answer::Parts)
    }
}

/// A time as Go prints it, in UTC: `2024-03-01 12:00:00.1234 +0000 UTC`.
pub(crate) fn go_time(real_us: i64) -> String {
    let t = Civil::from_unix_ms(real_us.div_euclid(1000));
    let mut text = format!(
        "{:04}-{:02}-{:02} {:02}:{:02}:{:02}",
        t.year, t.month, t.day, t.hour, t.minute, t.second
    );
    let fraction = real_us.rem_euclid(1_000_000);
    if fraction > 0 {
        // Writing to a string cannot fail.
        let _ = write!(text, ".{fraction:06}");
        text.truncate(text.trim_end_matches('0').len());
    }
    text.push_str(" +0000 UTC");
    text
}

#[cfg(test)]
mod tests;
