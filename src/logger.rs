//! The daemon's own log: `log` records to text lines on stdout, or to the journal.
//!
//! Runs on whichever thread logs. A call never waits: a line has at most 4 KiB and is written only
//! when the sink takes it at once, else it is counted and the count is reported with the next line
//! that gets through. The text of a record is a sentence followed by `key=value` pairs, of which
//! `err` is the last; they become fields. Control characters are escaped, so that no text from a
//! peer can forge a line. Messages are also passed on to whoever keeps them and makes alerts of them
//! (`forward`). Deliberately not here: logs of instances and what becomes an alert (`logs`).

use std::fmt::Write as _;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use env_logger::{Builder, Target, WriteStyle};
use log::{Level, LevelFilter, Record};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::calendar;
use crate::sys::time::wall_ms;

/// Longest line in bytes, newline included; what a pipe takes without blocking when it is ready.
pub const LINE_MAX: usize = 4096;

const JOURNAL_SOCKET: &str = "/run/systemd/journal/socket";
/// Fields that no key of a message may replace.
const RESERVED: [&str; 4] = ["PRIORITY", "SYSLOG_IDENTIFIER", "MESSAGE", "AOS_NO_ALERT"];
const IDENTIFIER: &str = "aos_servicemanager";
/// Stands where a line was cut.
const CUT: &str = "…";
/// Target of messages about the way to the CM that another part than `cm` logs.
pub const DELIVERY: &str = concat!(env!("CARGO_CRATE_NAME"), "::cm");
/// Parts that deliver alerts: an alert about their failure would be the next one to fail.
const NO_ALERTS: [&str; 4] = [
    DELIVERY,
    concat!(env!("CARGO_CRATE_NAME"), "::logs"),
    concat!(env!("CARGO_CRATE_NAME"), "::rpc"),
    "grpcio",
];

/// The last words of the process: nobody of it will make an alert of them, but the next life may.
const PANIC: &str = "panic";

/// Where messages are passed on to, if anywhere.
static FORWARD: OnceLock<Forward> = OnceLock::new();
/// Messages that could not be passed on since the last one that was.
static NOT_FORWARDED: AtomicU64 = AtomicU64::new(0);

struct Forward {
    level: Level,
    take: Box<dyn Fn(OwnMessage) -> bool + Send + Sync>,
}

/// A message of the daemon itself.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct OwnMessage {
    /// Syslog level.
    pub priority: u8,
    pub text: Box<str>,
    /// It may become an alert.
    pub is_alert: bool,
}

/// From now on passes messages of this level and more urgent ones on. `take` is called on whichever
/// thread logs, must not wait and must not log; false = it has no room, which is counted.
pub fn forward(level: Level, take: impl Fn(OwnMessage) -> bool + Send + Sync + 'static) {
    // A second call would be a bug without consequences.
    let _ = FORWARD.set(Forward { level, take: Box::new(take) });
}

/// True = the message has been passed on.
fn pass_on(record: &Record<'_>) -> bool {
    let forward = FORWARD.get().filter(|forward| record.level() <= forward.level);
    let Some(forward) = forward.filter(|_| record.target() != PANIC) else { return false };
    let mut text = String::new();
    push_escaped(&mut text, &record.args().to_string());
    let lost = NOT_FORWARDED.swap(0, Ordering::Relaxed);
    if lost > 0 {
        text = format!("({lost} messages before this were lost) {text}");
    }
    cut(&mut text, LINE_MAX);
    let is_alert = makes_alerts(record.target());
    let message = OwnMessage { priority: priority(record.level()), text: text.into(), is_alert };
    let taken = (forward.take)(message);
    if !taken {
        NOT_FORWARDED.fetch_add(lost + 1, Ordering::Relaxed);
    }
    taken
}

fn makes_alerts(target: &str) -> bool {
    let below = |module: &str| {
        target.strip_prefix(module).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
    };
    !NO_ALERTS.into_iter().any(below)
}

/// As a syslog level.
fn priority(level: Level) -> u8 {
    match level {
        Level::Error => 3,
        Level::Warn => 4,
        Level::Info => 6,
        Level::Debug | Level::Trace => 7,
    }
}

/// A word that is no log level.
#[derive(Debug, thiserror::Error)]
#[error(
    "log level {0:?} is not allowed, expected one of trace, debug, info, warn, error, fatal, panic"
)]
pub struct UnknownLevel(String);

/// Level by its name in Go, in any case; `fatal` and `panic` leave what we call errors.
pub fn parse_level(text: &str) -> Result<LevelFilter, UnknownLevel> {
    match text.to_ascii_lowercase().as_str() {
        "warning" => Ok(LevelFilter::Warn),
        "fatal" | "panic" => Ok(LevelFilter::Error),
        "off" => Err(UnknownLevel(text.to_owned())),
        name => LevelFilter::from_str(name).map_err(|_| UnknownLevel(text.to_owned())),
    }
}

/// Starts the log, at level info: the level itself may be wrong, which must be logged.
pub fn start(journal: bool) -> io::Result<()> {
    let socket = Path::new(JOURNAL_SOCKET);
    let without_journald = journal && !socket.exists();
    let sink = if journal && !without_journald {
        Sink::journal(socket)?
    } else {
        Sink::stream(io::stdout().as_fd().try_clone_to_owned()?)
    };
    let form = sink.form;
    Builder::new()
        .filter_level(LevelFilter::Trace)
        // Of the libraries only what concerns an operator.
        .filter_module("grpcio", LevelFilter::Warn)
        .filter_module("neli", LevelFilter::Warn)
        .write_style(WriteStyle::Never)
        .format(move |line, record| {
            // In the journal it must not become an alert again.
            let is_known = pass_on(record) || !makes_alerts(record.target());
            line.write_all(&form.line(record.level(), record.args(), is_known))
        })
        .target(Target::Pipe(Box::new(sink)))
        .try_init()
        .map_err(io::Error::other)?;
    log::set_max_level(LevelFilter::Info);
    if without_journald {
        log::warn!("journald is not there, logging to stdout socket={JOURNAL_SOCKET}");
    }
    Ok(())
}

/// Makes a panic the last line of the log; the process aborts after the hook.
pub fn log_panics() {
    std::panic::set_hook(Box::new(|info| {
        let thread = std::thread::current();
        let name = thread.name().unwrap_or("?");
        let place = info.location().map(ToString::to_string).unwrap_or_default();
        let payload = info.payload();
        let text = match payload.downcast_ref::<String>() {
            Some(text) => text.as_str(),
            None => payload.downcast_ref::<&str>().copied().unwrap_or("no text"),
        };
        log::error!(target: PANIC, "internal error, aborting thread={name} place={place} err={text}");
    }));
}

/// How a record becomes bytes.
#[derive(Clone, Copy)]
enum Form {
    Text,
    Journal,
}

impl Form {
    /// `is_known`: no alert is to be made of it by whoever reads it.
    fn line(self, level: Level, message: &std::fmt::Arguments<'_>, is_known: bool) -> Vec<u8> {
        let message = message.to_string();
        // What is longer is cut anyway, and need not be searched for fields.
        let message = &message[..boundary(&message, LINE_MAX)];
        match self {
            Self::Text => text_line(wall_ms(), level, message).into_bytes(),
            Self::Journal => journal_entry(level, message, is_known).into_bytes(),
        }
    }
}

/// `time="…" level=info msg="…" key=value`, as the Go releases write it.
fn text_line(now_ms: i64, level: Level, message: &str) -> String {
    let (text, fields) = split_fields(message);
    let mut line = format!("time=\"{}\" level=", calendar::to_log_time(now_ms));
    line.push_str(match level {
        Level::Error => "error",
        Level::Warn => "warning",
        Level::Info => "info",
        Level::Debug => "debug",
        Level::Trace => "trace",
    });
    line.push_str(" msg=");
    push_value(&mut line, text);
    for (key, value) in fields {
        line.push(' ');
        line.push_str(key);
        line.push('=');
        push_value(&mut line, value);
    }
    cut(&mut line, LINE_MAX - 1);
    line.push('\n');
    line
}

/// Fields of the journal's native protocol, one line each.
fn journal_entry(level: Level, message: &str, is_known: bool) -> String {
    let priority = priority(level);
    let mut entry = format!("PRIORITY={priority}\nSYSLOG_IDENTIFIER={IDENTIFIER}\n");
    if is_known {
        entry.push_str("AOS_NO_ALERT=1\n");
    }
    entry.push_str("MESSAGE=");
    push_escaped(&mut entry, message);
    cut(&mut entry, LINE_MAX - 1);
    entry.push('\n');
    for (key, value) in split_fields(message).1 {
        let complete = entry.len();
        let name = key.to_ascii_uppercase();
        if !RESERVED.contains(&name.as_str()) {
            entry.push_str(&name);
            entry.push('=');
            push_escaped(&mut entry, value);
            entry.push('\n');
        }
        if entry.len() > LINE_MAX {
            entry.truncate(complete);
        }
    }
    entry
}

/// Splits `text key=value key=value err=anything to the end`.
fn split_fields(message: &str) -> (&str, Vec<(&str, &str)>) {
    let mut starts = Vec::new();
    for (at, _) in message.match_indices(' ') {
        let Some((key, _)) = message[at + 1..].split_once('=') else { break };
        if is_key(key) {
            starts.push((at, key));
            if key == "err" {
                break;
            }
        }
    }
    let text = starts.first().map_or(message, |(at, _)| &message[..*at]);
    let ends = starts.iter().skip(1).map(|(at, _)| *at).chain([message.len()]);
    let fields = starts.iter().zip(ends);
    (text, fields.map(|((at, key), end)| (*key, &message[at + key.len() + 2..end])).collect())
}

fn is_key(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_lowercase())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

/// The value itself, or quoted where a reader could not find its end.
fn push_value(line: &mut String, value: &str) {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-._/@^+".contains(&b);
    if !value.is_empty() && value.bytes().all(plain) {
        line.push_str(value);
        return;
    }
    line.push('"');
    for part in value.split_inclusive(['"', '\\']) {
        let special = part.ends_with(['"', '\\']);
        let (text, last) = part.split_at(part.len() - usize::from(special));
        push_escaped(line, text);
        if special {
            line.push('\\');
            line.push_str(last);
        }
    }
    line.push('"');
}

fn push_escaped(line: &mut String, text: &str) {
    for c in text.chars() {
        match c {
            '\n' => line.push_str("\\n"),
            '\r' => line.push_str("\\r"),
            '\t' => line.push_str("\\t"),
            c if c.is_control() => {
                // Writing to a String cannot fail.
                let _ = write!(line, "\\x{:02x}", u32::from(c));
            }
            c => line.push(c),
        }
    }
}

/// Shortens a line to at most `max` bytes and marks it as cut.
fn cut(line: &mut String, max: usize) {
    if line.len() > max {
        line.truncate(boundary(line, max - CUT.len()));
        line.push_str(CUT);
    }
}

/// The last character boundary at or before `at`.
fn boundary(text: &str, at: usize) -> usize {
    (0..=at.min(text.len())).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0)
}

/// Where lines go. `Write` is what env_logger wants: one call for each whole line.
struct Sink {
    form: Form,
    way: Way,
    /// Lines since the last report of lost lines.
    lost: u64,
}

enum Way {
    /// A descriptor whose flags are not ours to change, and the rest of a line it took in part.
    Stream { fd: OwnedFd, rest: Vec<u8> },
    /// Addressed anew with each entry, so that a restart of journald does not matter.
    Journal { socket: UnixDatagram, address: PathBuf },
}

impl Sink {
    fn stream(fd: OwnedFd) -> Self {
        Self { form: Form::Text, way: Way::Stream { fd, rest: Vec::new() }, lost: 0 }
    }

    fn journal(address: &Path) -> io::Result<Self> {
        let socket = UnixDatagram::unbound()?;
        socket.set_nonblocking(true)?;
        let way = Way::Journal { socket, address: address.to_owned() };
        Ok(Self { form: Form::Journal, way, lost: 0 })
    }

    fn put(&mut self, line: &[u8]) {
        if self.lost > 0 {
            let count = self.lost;
            let text = format_args!("log lines lost count={count}");
            let report = self.form.line(Level::Warn, &text, true);
            if self.way.take(&report) {
                self.lost = 0;
            }
        }
        if self.lost > 0 || !self.way.take(line) {
            self.lost += 1;
        }
    }
}

impl Way {
    /// False = the line was not taken.
    fn take(&mut self, line: &[u8]) -> bool {
        match self {
            Self::Stream { fd, rest } => {
                if !rest.is_empty() {
                    let written = write_ready(fd, rest);
                    rest.drain(..written);
                }
                if !rest.is_empty() {
                    return false;
                }
                let written = write_ready(fd, line);
                if written > 0 {
                    rest.extend_from_slice(&line[written..]);
                }
                written > 0
            }
            Self::Journal { socket, address } => socket.send_to(line, address).is_ok(),
        }
    }
}

/// Writes what the descriptor takes at once; 0 = nothing, or an error.
fn write_ready(fd: &OwnedFd, bytes: &[u8]) -> usize {
    let mut wait = [PollFd::new(fd.as_fd(), PollFlags::POLLOUT)];
    let ready = poll(&mut wait, PollTimeout::ZERO).is_ok_and(|count| count > 0)
        && wait[0].revents().is_some_and(|events| events.contains(PollFlags::POLLOUT));
    if ready { nix::unistd::write(fd, bytes).unwrap_or(0) } else { 0 }
}

impl Write for Sink {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.put(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn levels() {
        let check = |text: &str, expect: Option<LevelFilter>| {
            assert_eq!(parse_level(text).ok(), expect, "{text}");
        };
        check("trace", Some(LevelFilter::Trace));
        check("debug", Some(LevelFilter::Debug));
        check("info", Some(LevelFilter::Info));
        check("Info", Some(LevelFilter::Info));
        check("WARN", Some(LevelFilter::Warn));
        check("warning", Some(LevelFilter::Warn));
        check("error", Some(LevelFilter::Error));
        check("fatal", Some(LevelFilter::Error));
        check("Panic", Some(LevelFilter::Error));
        check("off", None);
        check("", None);
        check(" info", None);
        check("5", None);
        assert_eq!(
            parse_level("loud").unwrap_err().to_string(),
            "log level \"loud\" is not allowed, expected one of trace, debug, info, warn, error, \
            fatal, panic"
        );
    }

    #[test]
    fn text_lines() {
        let check = |level, message: &str, expect: &str| {
            let line = text_line(1_795_348_472_007, level, message);
            let expect = format!("time=\"2026-11-22 11:54:32.007\" {expect}\n");
            assert_eq!(line, expect);
        };
        check(Level::Info, "started", "level=info msg=started");
        check(Level::Warn, "", "level=warning msg=\"\"");
        check(
            Level::Error,
            "cannot start instance=ab-1 service=a b err=x y=1: z",
            "level=error msg=\"cannot start\" instance=ab-1 service=\"a b\" err=\"x y=1: z\"",
        );
        check(
            Level::Debug,
            "a = b, c=d No=key 1=x k=",
            "level=debug msg=\"a = b,\" c=\"d No=key 1=x\" k=\"\"",
        );
        check(Level::Trace, "x =1  =2 k=v", "level=trace msg=\"x =1  =2\" k=v");
        check(
            Level::Info,
            "a\nlevel=error msg=forged\u{1b}[0m k=\"\\\t\u{85}é",
            "level=info msg=\"a\\nlevel=error\" msg=\"forged\\x1b[0m\" \
            k=\"\\\"\\\\\\t\\x85é\"",
        );
    }

    #[test]
    fn journal_entries() {
        let check = |level, message: &str, expect: &str| {
            assert_eq!(journal_entry(level, message, false), expect, "{message}");
            let muted = expect.replace("\nMESSAGE=", "\nAOS_NO_ALERT=1\nMESSAGE=");
            assert_eq!(journal_entry(level, message, true), muted);
        };
        check(
            Level::Error,
            "cannot start instance=ab err=a\nb",
            "PRIORITY=3\nSYSLOG_IDENTIFIER=aos_servicemanager\n\
            MESSAGE=cannot start instance=ab err=a\\nb\nINSTANCE=ab\nERR=a\\nb\n",
        );
        for (level, priority) in
            [(Level::Warn, 4), (Level::Info, 6), (Level::Debug, 7), (Level::Trace, 7)]
        {
            let expect = format!(
                "PRIORITY={priority}\nSYSLOG_IDENTIFIER=aos_servicemanager\nMESSAGE=m priority=0\n"
            );
            check(level, "m priority=0", &expect);
        }
    }

    #[test]
    fn long_lines_are_cut() {
        for message in ["é".repeat(5000), "\u{1}".repeat(3000), format!("m k={}", "é".repeat(5000))]
        {
            let line = text_line(0, Level::Info, &message);
            assert!(line.len() <= LINE_MAX && line.len() > LINE_MAX - 4, "{}", line.len());
            assert!(line.ends_with("…\n"));
            let entry = journal_entry(Level::Info, &message, false);
            assert!(entry.len() <= LINE_MAX && entry.ends_with("…\n"));
        }
        let fits = "a".repeat(LINE_MAX - text_line(0, Level::Info, "").len() + 2);
        assert_eq!(text_line(0, Level::Info, &fits).len(), LINE_MAX);
    }

    fn set_nonblocking(fd: &OwnedFd) {
        use nix::fcntl::{FcntlArg, OFlag, fcntl};
        fcntl(fd, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
    }

    fn drain(fd: &OwnedFd) -> String {
        let mut file = std::fs::File::from(fd.try_clone().unwrap());
        let mut bytes = Vec::new();
        let error = file.read_to_end(&mut bytes).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        String::from_utf8(bytes).unwrap()
    }

    /// The descriptor itself blocks: a sink that waited would hang here.
    #[test]
    fn a_full_pipe_loses_lines_and_says_so() {
        let (reader, writer) = nix::unistd::pipe().unwrap();
        set_nonblocking(&reader);
        let mut sink = Sink::stream(writer);
        let line = [b"x".repeat(LINE_MAX - 1), b"\n".to_vec()].concat();
        let mut taken = 0_u64;
        while sink.lost == 0 {
            sink.put(&line);
            taken += 1;
        }
        sink.put(b"also lost\n");
        assert_eq!(sink.lost, 2);
        let before = drain(&reader);
        assert_eq!(before.len() as u64, (taken - 1) * LINE_MAX as u64);
        sink.put(b"next\n");
        sink.put(b"last\n");
        let after = drain(&reader);
        let (report, rest) = after.split_once('\n').unwrap();
        assert!(report.ends_with("level=warning msg=\"log lines lost\" count=2"), "{report}");
        assert_eq!(rest, "next\nlast\n");
    }

    #[test]
    fn failures_of_alerts_make_none() {
        let check =
            |target: &str, expect: bool| assert_eq!(makes_alerts(target), expect, "{target}");
        check("aos_servicemanager::cm", false);
        check("aos_servicemanager::cm::sender", false);
        check("aos_servicemanager::logs::intake", false);
        check("aos_servicemanager::rpc", false);
        check("grpcio::channel", false);
        check(DELIVERY, false);
        check("aos_servicemanager::cmx", true);
        check("aos_servicemanager::core::plan", true);
        check("aos_servicemanager", true);
        check(PANIC, true);
    }

    #[test]
    fn a_line_taken_in_part_is_completed_first() {
        let (reader, writer) = nix::unistd::pipe().unwrap();
        set_nonblocking(&reader);
        let mut sink = Sink::stream(writer);
        let Way::Stream { rest, .. } = &mut sink.way else { unreachable!() };
        rest.extend_from_slice(b"end of one\n");
        sink.put(b"two\n");
        assert_eq!(drain(&reader), "end of one\ntwo\n");
    }

    #[test]
    fn a_closed_reader_is_only_counted() {
        let (reader, writer) = nix::unistd::pipe().unwrap();
        drop(reader);
        let mut sink = Sink::stream(writer);
        for _ in 0..3 {
            sink.put(b"line\n");
        }
        assert_eq!(sink.lost, 3);
    }

    #[test]
    fn the_journal_may_be_away_full_or_new() {
        let dir = tempfile::tempdir().unwrap();
        let address = dir.path().join("socket");
        let mut sink = Sink::journal(&address).unwrap();
        sink.put(b"MESSAGE=away\n");
        assert_eq!(sink.lost, 1);
        let receive = |server: &UnixDatagram| {
            let mut bytes = [0; LINE_MAX];
            let size = server.recv(&mut bytes).unwrap();
            String::from_utf8(bytes[..size].to_vec()).unwrap()
        };
        for _ in 0..2 {
            let server = UnixDatagram::bind(&address).unwrap();
            sink.put(b"MESSAGE=here\n");
            assert!(receive(&server).contains("MESSAGE=log lines lost count="));
            assert_eq!(receive(&server), "MESSAGE=here\n");
            while sink.lost == 0 {
                sink.put(b"MESSAGE=flood\n");
            }
            std::fs::remove_file(&address).unwrap();
        }
    }
}
