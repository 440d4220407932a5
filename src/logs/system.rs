//! The system log without a journal: the daemon's own lines, and the text files of a syslog daemon
//! or, where there are none, the ring buffer of the kernel, merged by time.
//!
//! Thread `log-out`. The rotated predecessor `<file>.1` of each file is read first. Times without an
//! offset are taken as UTC, times without a year as the newest possible ones.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::iter::Peekable;
use std::path::{Path, PathBuf};

use crate::calendar::{self, Civil};
use crate::logs::kmsg::KernelRing;
use crate::logs::reader::Reader;
use crate::logs::{Error, LogSettings, OWN_STORE, record, store_dir};
use crate::model::id::InstanceId;
use crate::ports::Now;

/// Files of which the first existing one is read when none are configured.
pub(crate) const DEFAULT_FILES: [&str; 2] = ["/var/log/messages", "/var/log/syslog"];
/// Longest line; the rest is left out.
const LINE_MAX: u64 = 16 * 1024;
/// A time without a year lies at most this far ahead of the clock.
const AHEAD_MS: i64 = 24 * 3600 * 1000;
const MONTHS: [&str; 12] =
    ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];

/// Names of the syslog levels from 0 on.
const LEVELS: [&[&str]; 8] = [
    &["emerg", "panic"],
    &["alert"],
    &["crit"],
    &["err", "error"],
    &["warning", "warn"],
    &["notice"],
    &["info"],
    &["debug"],
];

/// A line of the system log.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct SystemLine {
    pub(crate) real_us: i64,
    /// Name of the program.
    pub(crate) unit: String,
    pub(crate) message: Vec<u8>,
    /// Syslog level, if the line tells it.
    pub(crate) level: Option<u8>,
}

type Lines = Box<dyn Iterator<Item = Result<SystemLine, Error>>>;

/// Calls `each` with all lines in the order of their times.
pub(crate) fn read(
    settings: &LogSettings,
    now: Now,
    mut each: impl FnMut(&SystemLine) -> Result<(), Error>,
) -> Result<(), Error> {
    let mut sources = sources(settings, now);
    if sources.is_empty() {
        return Err(Error::NoSystemLog);
    }
    while let Some(source) = oldest(&mut sources) {
        if let Some(line) = source.next() {
            each(&line?)?;
        }
    }
    Ok(())
}

fn sources(settings: &LogSettings, now: Now) -> Vec<Peekable<Lines>> {
    let mut sources: Vec<Lines> = Vec::new();
    let mut own = OwnLines::open(settings);
    if own.reader.peek().is_some() {
        sources.push(Box::new(own.map(Ok)));
    }
    let files = files(settings);
    if !files.is_empty() {
        sources.push(Box::new(FileLines::new(files, now.wall_ms)));
    } else if let Ok(ring) = KernelRing::open(now) {
        sources.push(Box::new(ring.map(Ok)));
    }
    sources.into_iter().map(Iterator::peekable).collect()
}

/// The source whose next line is the oldest; one that failed comes first. `None` = all have ended.
fn oldest(sources: &mut [Peekable<Lines>]) -> Option<&mut Peekable<Lines>> {
    let time = |source: &mut Peekable<Lines>| {
        let next = source.peek()?;
        Some(next.as_ref().map_or(i64::MIN, |line| line.real_us))
    };
    let (_, index) = sources
        .iter_mut()
        .enumerate()
        .filter_map(|(index, source)| Some((time(source)?, index)))
        .min()?;
    sources.get_mut(index)
}

/// What the daemon itself has logged.
struct OwnLines {
    reader: Reader,
    buffer: Vec<u8>,
    waiting: VecDeque<SystemLine>,
}

impl OwnLines {
    fn open(settings: &LogSettings) -> Self {
        let reader = Reader::open(&store_dir(settings, &InstanceId::new(OWN_STORE)));
        Self { reader, buffer: Vec::new(), waiting: VecDeque::new() }
    }
}

impl Iterator for OwnLines {
    type Item = SystemLine;

    fn next(&mut self) -> Option<SystemLine> {
        while self.waiting.is_empty() {
            let header = self.reader.next(&mut self.buffer)?;
            self.waiting.extend(record::lines(&self.buffer).map(|line| SystemLine {
                real_us: header.stamp.real_us,
                unit: OWN_STORE.to_owned(),
                message: line.text.to_vec(),
                level: Some(line.priority),
            }));
        }
        self.waiting.pop_front()
    }
}

/// The lines of text files, one file after another.
struct FileLines {
    waiting: VecDeque<PathBuf>,
    current: Option<(PathBuf, BufReader<File>)>,
    now_ms: i64,
    before: SystemLine,
    text: Vec<u8>,
}

impl FileLines {
    fn new(files: Vec<PathBuf>, now_ms: i64) -> Self {
        let before = SystemLine::default();
        Self { waiting: files.into(), current: None, now_ms, before, text: Vec::new() }
    }

    /// The next line; one without a time belongs to the one before it.
    fn line(&mut self) -> Result<Option<SystemLine>, Error> {
        loop {
            let (path, mut reader) = match self.current.take() {
                Some(current) => current,
                None => {
                    let Some(path) = self.waiting.pop_front() else { return Ok(None) };
                    let file = File::open(&path)
                        .map_err(|source| Error::Read { path: path.clone(), source })?;
                    (path, BufReader::new(file))
                }
            };
            let read = read_line(&mut reader, &mut self.text);
            if !read.map_err(|source| Error::Read { path: path.clone(), source })? {
                continue;
            }
            self.current = Some((path, reader));
            let line = parse(&self.text, self.now_ms).unwrap_or_else(|| SystemLine {
                message: self.text.clone(),
                ..self.before.clone()
            });
            self.before = SystemLine { message: Vec::new(), ..line.clone() };
            return Ok(Some(line));
        }
    }
}

impl Iterator for FileLines {
    type Item = Result<SystemLine, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        self.line().transpose()
    }
}

/// The files that are written now.
pub(crate) fn newest(settings: &LogSettings) -> Vec<PathBuf> {
    let configured = settings.system_log_files.clone();
    let defaults = || DEFAULT_FILES.iter().map(PathBuf::from).find(|path| path.exists());
    configured.unwrap_or_else(|| defaults().into_iter().collect())
}

/// The files that can be opened, older ones first.
fn files(settings: &LogSettings) -> Vec<PathBuf> {
    let newest = newest(settings);
    let rotated = |path: &Path| {
        let mut name = path.as_os_str().to_owned();
        name.push(".1");
        PathBuf::from(name)
    };
    newest
        .into_iter()
        .flat_map(|path| [rotated(&path), path])
        .filter(|path| File::open(path).is_ok())
        .collect()
}

fn read_line(reader: &mut impl BufRead, text: &mut Vec<u8>) -> io::Result<bool> {
    text.clear();
    let length = reader.by_ref().take(LINE_MAX).read_until(b'\n', text)?;
    match text.last() {
        Some(b'\n') => {
            text.pop();
        }
        Some(_) => {
            reader.skip_until(b'\n')?;
        }
        None => {}
    }
    Ok(length > 0)
}

/// `[<number>]<time> <host> [<facility>.<level>] <program>[<pid>]: <message>`, the time as syslog or
/// RFC 3339 writes it, the number as a syslog daemon gets it.
pub(crate) fn parse(line: &[u8], now_ms: i64) -> Option<SystemLine> {
    let (number, line) = match record::prefix(line) {
        Some((level, rest)) => (Some(level), rest),
        None => (None, line),
    };
    let (time_ms, rest) = syslog_time(line, now_ms).or_else(|| iso_time(line))?;
    let real_us = time_ms * 1000;
    let (_host, rest) = word(rest);
    let (level, rest) = match named_level(word(rest).0) {
        Some(level) => (Some(level), word(rest).1),
        None => (number, rest),
    };
    let (tag, message) = word(rest);
    let Some(tag) = tag.strip_suffix(b":") else {
        // No program: all of it is the message.
        let message = rest.to_vec();
        return (!message.is_empty()).then(|| SystemLine {
            real_us,
            message,
            level,
            ..SystemLine::default()
        });
    };
    let name = tag.split(|byte| *byte == b'[').next()?;
    let unit = String::from_utf8_lossy(name).into_owned();
    Some(SystemLine { real_us, unit, message: message.to_vec(), level })
}

/// The first word, and what follows the blank after it.
fn word(text: &[u8]) -> (&[u8], &[u8]) {
    match text.iter().position(|byte| *byte == b' ') {
        Some(end) => (&text[..end], &text[end + 1..]),
        None => (text, &[]),
    }
}

/// Level of `<facility>.<level>`, as busybox writes it.
fn named_level(word: &[u8]) -> Option<u8> {
    let (facility, level) = std::str::from_utf8(word).ok()?.split_once('.')?;
    let is_facility = !facility.is_empty() && facility.bytes().all(|b| b.is_ascii_alphanumeric());
    let at = LEVELS.iter().position(|names| names.contains(&level)).filter(|_| is_facility)?;
    u8::try_from(at).ok()
}

/// `Nov 25 14:38:42`; the day of the month may have a blank in place of its first digit.
fn syslog_time(line: &[u8], now_ms: i64) -> Option<(i64, &[u8])> {
    let (stamp, rest) = line.split_at_checked(16)?;
    let text = std::str::from_utf8(stamp.strip_suffix(b" ")?).ok()?;
    let month = MONTHS.iter().position(|name| text.starts_with(name))? + 1;
    let day = text.get(4..6)?.trim_start();
    let time = text.get(7..)?;
    let at = |year: i64| calendar::parse(&format!("{year:04}-{month:02}-{day:0>2} {time}"));
    let year = Civil::from_unix_ms(now_ms).year;
    let this_year = at(year).filter(|ms| *ms <= now_ms.saturating_add(AHEAD_MS));
    Some((this_year.or_else(|| at(year - 1))?, rest))
}

fn iso_time(line: &[u8]) -> Option<(i64, &[u8])> {
    let end = line.iter().position(|byte| *byte == b' ')?;
    let text = std::str::from_utf8(&line[..end]).ok()?;
    Some((calendar::parse(text)?, &line[end + 1..]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::logs::tests::settings;
    use crate::sys::fs::write_plain;

    const NOW: &str = "2026-01-02T00:00:00Z";

    #[test]
    fn lines() {
        let now_ms = calendar::parse(NOW).unwrap();
        let check = |line: &str, time: &str, unit: &str, message: &str| {
            let found = parse(line.as_bytes(), now_ms).unwrap();
            let expect = SystemLine {
                real_us: calendar::parse(time).unwrap() * 1000,
                unit: unit.to_owned(),
                message: message.into(),
                level: None,
            };
            assert_eq!(found, expect, "{line}");
        };
        let level = |line: &str| {
            let found = parse(line.as_bytes(), now_ms).unwrap();
            (found.level, found.unit, String::from_utf8(found.message).unwrap())
        };
        let expect = |level, unit: &str, text: &str| (level, unit.to_owned(), text.to_owned());
        let busybox = "Dec 31 23:59:58 host daemon.err cron[42]: no more room";
        assert_eq!(level(busybox), expect(Some(3), "cron", "no more room"));
        let busybox = "Dec 31 23:59:58 host local0.emerg no program";
        assert_eq!(level(busybox), expect(Some(0), "", "no program"));
        let number = "<27>Dec 31 23:59:58 host cron: text";
        assert_eq!(level(number), expect(Some(3), "cron", "text"));
        let other = "Dec 31 23:59:58 host www.example.org: text";
        assert_eq!(level(other), expect(None, "www.example.org", "text"));
        let line = "Dec 31 23:59:58 host cron[42]: (root) CMD";
        check(line, "2025-12-31T23:59:58Z", "cron", "(root) CMD");
        check("Jan  1 00:00:00 host kernel: [1.0] x", "2026-01-01T00:00:00Z", "kernel", "[1.0] x");
        let line = "2025-11-25T14:38:42.123456+01:00 host prog: text";
        check(line, "2025-11-25T13:38:42.123Z", "prog", "text");
        check("Jan  1 00:00:00 host no program", "2026-01-01T00:00:00Z", "", "no program");
        for line in ["", "continued line", "Jan 32 00:00:00 h p: x", "Xan  1 00:00:00 h p: x"] {
            assert_eq!(parse(line.as_bytes(), now_ms), None, "{line}");
        }
    }

    #[test]
    fn files_and_continued_lines() {
        let dir = tempfile::tempdir().unwrap();
        let now = Now { wall_ms: calendar::parse(NOW).unwrap(), ..Now::default() };
        let file = dir.path().join("messages");
        let settings =
            |files| LogSettings { system_log_files: Some(files), ..settings(dir.path()) };
        let old = dir.path().join("messages.1");
        write_plain(&old, b"Dec 30 10:00:00 host a: old\n  continued\n", 0o600).unwrap();
        let long = format!("Dec 31 10:00:00 host a: new\n{}\nend", "x".repeat(20_000));
        write_plain(&file, long.as_bytes(), 0o600).unwrap();
        let mut found = Vec::new();
        read(&settings(vec![file]), now, |line| {
            found.push((line.real_us, line.message.len()));
            Ok(())
        })
        .unwrap();
        let day = |text| calendar::parse(text).unwrap() * 1000;
        let (first, second) = (day("2025-12-30T10:00:00Z"), day("2025-12-31T10:00:00Z"));
        assert_eq!(found, [(first, 3), (first, 11), (second, 3), (second, 16384), (second, 3)]);
    }
}
