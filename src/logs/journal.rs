//! The journal: read by `journalctl` for one request, and told about the lives of instances.
//!
//! Requests run on thread `log-out`; the child is made by the process manager and writes to an
//! unlinked file, so that the journal is never mapped into the daemon. Entries about the lives of
//! instances are datagrams, sent by the exec threads and `log-in` without waiting. Following the
//! journal for alerts is in `follow`.

use std::ffi::OsString;
use std::io::{Read, Seek};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::time::Duration;

use crate::logs::archive::unlinked;
use crate::logs::export::{Entry, Parser};
use crate::logs::serve::Range;
use crate::logs::{Backend, Error, LogSettings, unit};
use crate::model::event::Exit;
use crate::model::id::InstanceId;
use crate::ports::{Command, Processes};

/// Time for one request.
const DEADLINE: Duration = Duration::from_secs(60);
/// Newest entries that one request reads.
const MAX_ENTRIES: u32 = 100_000;
/// The last microsecond of the year 9999.
const LATEST_US: i64 = 253_402_300_799_999_999;
/// Bytes that are parsed at a time.
const PIECE_BYTES: usize = 64 * 1024;
/// Fields of an answer.
const FIELDS: &str = "MESSAGE,_SYSTEMD_UNIT,SYSLOG_IDENTIFIER,_TRANSPORT";

/// journald takes connections.
pub(crate) fn is_there(settings: &LogSettings) -> bool {
    UnixStream::connect(settings.journal_dir.join("stdout")).is_ok()
}

/// Instances started now write to the journal.
pub(crate) fn is_used(settings: &LogSettings) -> bool {
    match settings.backend {
        Backend::Journal => true,
        Backend::Store => false,
        Backend::Auto => is_there(settings),
    }
}

/// Reads the journal.
pub(crate) struct Journal<'a> {
    settings: &'a LogSettings,
    processes: &'a dyn Processes,
}

impl<'a> Journal<'a> {
    pub(crate) fn new(settings: &'a LogSettings, processes: &'a dyn Processes) -> Self {
        Self { settings, processes }
    }

    /// Calls `each` with the entries of the range that match, oldest first, without those that have
    /// no message.
    pub(crate) fn read(
        &self,
        range: Range,
        matches: &[String],
        mut each: impl FnMut(&Entry, &[u8]) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let dir = &self.settings.working_dir;
        let failed = |source| Error::Spill { path: dir.clone(), source };
        let mut file = unlinked(dir).map_err(failed)?;
        let stdout = Some(file.try_clone().map_err(failed)?.into());
        let command = Command { stdout, ..Command::new(self.argv(range, matches), DEADLINE) };
        let end = self.processes.run(command);
        let end = end.map_err(|failure| Error::Journalctl { reason: failure.message })?;
        if end.timed_out || end.exit != Exit::Code(0) {
            return Err(Error::Journalctl { reason: end.exit.to_string() });
        }
        file.rewind().map_err(failed)?;
        let mut parser = Parser::new();
        let mut each = |entry: Entry| match &entry.message {
            Some(message) => each(&entry, message),
            None => Ok(()),
        };
        let mut piece = vec![0; PIECE_BYTES];
        loop {
            let length = file.read(&mut piece).map_err(failed)?;
            if length == 0 {
                break;
            }
            parser.feed(&piece[..length], &mut each)?;
        }
        if parser.is_broken() {
            return Err(Error::Journalctl { reason: "its output ends in the middle".to_owned() });
        }
        parser.end().map_or(Ok(()), each)
    }

    fn argv(&self, range: Range, matches: &[String]) -> Vec<OsString> {
        let mut argv = journalctl(self.settings, FIELDS);
        argv.push(format!("--lines={MAX_ENTRIES}"));
        argv.extend(range.from_us.map(|us| format!("--since={}", at(us))));
        argv.extend(range.till_us.map(|us| format!("--until={}", at(us))));
        argv.extend(matches.iter().cloned());
        argv.into_iter().map(OsString::from).collect()
    }
}

/// The beginning of every command line.
pub(crate) fn journalctl(settings: &LogSettings, fields: &str) -> Vec<String> {
    let mut argv: Vec<String> =
        ["journalctl", "--output=export", "--no-pager", "--quiet"].map(str::to_owned).into();
    argv.push(format!("--output-fields={fields}"));
    let name = settings.journal_dir.file_name().and_then(|name| name.to_str());
    if let Some(namespace) = name.and_then(|name| name.strip_prefix("journal.")) {
        argv.push(format!("--namespace={namespace}"));
    }
    argv
}

/// A time as `--since` takes it: one before 1970 is the beginning, one after 9999 the end.
pub(crate) fn at(us: i64) -> String {
    let us = us.clamp(0, LATEST_US);
    format!("@{}.{:06}", us / 1_000_000, us % 1_000_000)
}

/// Alternatives that select the lines of these instances, each with `more` fields.
pub(crate) fn matches(settings: &LogSettings, ids: &[InstanceId], more: &[String]) -> Vec<String> {
    let parent = format!("/{}", settings.cgroup_parent.trim_matches('/'));
    let mut matches = Vec::new();
    for id in ids {
        let unit = unit(id);
        for alternative in [
            vec![format!("_SYSTEMD_UNIT={unit}")],
            vec![format!("_SYSTEMD_CGROUP={parent}/{unit}")],
            vec![format!("_SYSTEMD_CGROUP={parent}/{id}")],
            vec!["_TRANSPORT=stdout".to_owned(), format!("SYSLOG_IDENTIFIER={id}")],
        ] {
            if !matches.is_empty() {
                matches.push("+".to_owned());
            }
            matches.extend(alternative);
            matches.extend(more.iter().cloned());
        }
    }
    matches
}

/// What of an instance's life an entry tells.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Life {
    /// Its container is about to be made: output comes after this.
    Starting,
    Started,
    Exited(Exit),
    GivenUp,
}

impl Life {
    fn name(self) -> &'static str {
        match self {
            Self::Starting => "start",
            Self::Started => "started",
            Self::Exited(_) => "exit",
            Self::GivenUp => "give-up",
        }
    }
}

/// Writes an entry about an instance; never waits, and nothing depends on it. Alerts are made
/// directly, not of this.
pub(crate) fn tell(settings: &LogSettings, id: &InstanceId, life: Life, level: u8, text: &str) {
    let mut entry = format!(
        "MESSAGE={text}\nPRIORITY={level}\nSYSLOG_IDENTIFIER=aos_servicemanager\nUNIT={}\n\
         AOS_INSTANCE_ID={id}\nAOS_EVENT={}\nAOS_NO_ALERT=1\n",
        unit(id),
        life.name(),
    );
    match life {
        Life::Exited(Exit::Code(code) | Exit::CodeAfterKills(code)) => {
            entry.push_str(&format!("AOS_EXIT_CODE={code}\n"));
        }
        Life::Exited(Exit::Signal(signal)) => {
            entry.push_str(&format!("AOS_EXIT_SIGNAL={signal}\n"));
        }
        Life::Exited(Exit::OutOfMemory) => entry.push_str("AOS_EXIT_SIGNAL=9\n"),
        _ => {}
    }
    let path = settings.journal_dir.join("socket");
    let sent = UnixDatagram::unbound().and_then(|socket| {
        socket.set_nonblocking(true)?;
        socket.send_to(entry.as_bytes(), &path)
    });
    if let Err(err) = sent {
        log::debug!("journal not told about an instance instance={id} err={err}");
    }
}
