//! The journal, read by `journalctl` for one request.
//!
//! Thread `log-out`; the child is made by the process manager and writes to an unlinked file, so
//! that the journal is never mapped into the daemon. Following the journal for alerts is not here.

use std::ffi::OsString;
use std::io::{self, BufRead, BufReader, Read, Seek};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use crate::logs::archive::unlinked;
use crate::logs::serve::Range;
use crate::logs::{Error, LogSettings, unit};
use crate::model::event::Exit;
use crate::model::id::InstanceId;
use crate::ports::{Command, Processes};

/// Time for one request.
const DEADLINE: Duration = Duration::from_secs(60);
/// Newest entries that one request reads.
const MAX_ENTRIES: u32 = 100_000;
/// Longest value that is kept of a field; the rest is left out.
const FIELD_MAX: u64 = 64 * 1024;
/// Longest name of a field.
const NAME_MAX: u64 = 64;

/// Reads the journal.
pub(crate) struct Journal<'a> {
    settings: &'a LogSettings,
    processes: &'a dyn Processes,
}

/// One entry.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Entry {
    pub(crate) real_us: i64,
    /// Empty for messages of the kernel.
    pub(crate) unit: String,
    pub(crate) message: Vec<u8>,
}

impl<'a> Journal<'a> {
    pub(crate) fn new(settings: &'a LogSettings, processes: &'a dyn Processes) -> Self {
        Self { settings, processes }
    }

    /// journald takes connections.
    pub(crate) fn is_there(&self) -> bool {
        UnixStream::connect(self.settings.journal_dir.join("stdout")).is_ok()
    }

    /// Calls `each` with the entries of the range that match, oldest first.
    pub(crate) fn read(
        &self,
        range: Range,
        matches: &[String],
        mut each: impl FnMut(&Entry) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let dir = &self.settings.working_dir;
        let failed = |source| Error::Spill { path: dir.clone(), source };
        let mut file = unlinked(dir).map_err(failed)?;
        let command = Command {
            argv: self.argv(range, matches),
            stdout: Some(file.try_clone().map_err(failed)?.into()),
            stderr: None,
            deadline: DEADLINE,
        };
        let end = self.processes.run(command);
        let end = end.map_err(|failure| Error::Journalctl { reason: failure.message })?;
        if end.timed_out || end.exit != Exit::Code(0) {
            return Err(Error::Journalctl { reason: end.exit.to_string() });
        }
        file.rewind().map_err(failed)?;
        let mut entries = Export(BufReader::new(file));
        while let Some(entry) = entries.next().map_err(failed)? {
            each(&entry)?;
        }
        Ok(())
    }

    fn argv(&self, range: Range, matches: &[String]) -> Vec<OsString> {
        let mut argv: Vec<String> =
            ["journalctl", "--output=export", "--no-pager", "--quiet"].map(str::to_owned).into();
        argv.push("--output-fields=MESSAGE,_SYSTEMD_UNIT".to_owned());
        argv.push(format!("--lines={MAX_ENTRIES}"));
        let name = self.settings.journal_dir.file_name().and_then(|name| name.to_str());
        if let Some(namespace) = name.and_then(|name| name.strip_prefix("journal.")) {
            argv.push(format!("--namespace={namespace}"));
        }
        let at = |us: i64| format!("@{}.{:06}", us.div_euclid(1_000_000), us.rem_euclid(1_000_000));
        argv.extend(range.from_us.map(|us| format!("--since={}", at(us))));
        argv.extend(range.till_us.map(|us| format!("--until={}", at(us))));
        argv.extend(matches.iter().cloned());
        argv.into_iter().map(OsString::from).collect()
    }
}

/// Alternatives that select the lines of these instances.
pub(crate) fn matches(settings: &LogSettings, ids: &[InstanceId]) -> Vec<String> {
    let parent = format!("/{}", settings.cgroup_parent.trim_matches('/'));
    let mut matches = Vec::new();
    for id in ids {
        let unit = unit(id);
        for alternative in [
            vec![format!("_SYSTEMD_UNIT={unit}")],
            vec![format!("_SYSTEMD_CGROUP={parent}/{unit}")],
            vec!["_TRANSPORT=stdout".to_owned(), format!("SYSLOG_IDENTIFIER={id}")],
        ] {
            if !matches.is_empty() {
                matches.push("+".to_owned());
            }
            matches.extend(alternative);
        }
    }
    matches
}

/// The export format: fields, an empty line after each entry.
struct Export<R>(R);

impl<R: BufRead> Export<R> {
    /// The next entry that has a message.
    fn next(&mut self) -> io::Result<Option<Entry>> {
        let mut entry = Entry::default();
        let mut has_message = false;
        loop {
            let mut line = Vec::new();
            if self.limited_line(&mut line)? == 0 {
                return Ok(has_message.then_some(entry));
            }
            if line == b"\n" {
                if has_message {
                    return Ok(Some(entry));
                }
                entry = Entry::default();
                continue;
            }
            let line = line.trim_suffix_newline();
            let (name, value) = match line.iter().position(|byte| *byte == b'=') {
                Some(at) => (&line[..at], line[at + 1..].to_vec()),
                None => (line, self.binary()?),
            };
            match name {
                b"__REALTIME_TIMESTAMP" => {
                    let text = String::from_utf8_lossy(&value);
                    entry.real_us = text.parse().unwrap_or(0);
                }
                b"_SYSTEMD_UNIT" => entry.unit = String::from_utf8_lossy(&value).into_owned(),
                b"MESSAGE" => {
                    entry.message = value;
                    has_message = true;
                }
                _ => {}
            }
        }
    }

    /// A line with its newline; of a longer one the beginning.
    fn limited_line(&mut self, line: &mut Vec<u8>) -> io::Result<usize> {
        let length = self.0.by_ref().take(FIELD_MAX + NAME_MAX).read_until(b'\n', line)?;
        if length > 0 && line.last() != Some(&b'\n') {
            self.0.skip_until(b'\n')?;
        }
        Ok(length)
    }

    /// A value with its length in front and a newline behind.
    fn binary(&mut self) -> io::Result<Vec<u8>> {
        let mut length = [0; 8];
        self.0.read_exact(&mut length)?;
        let length = u64::from_le_bytes(length);
        let mut value = Vec::new();
        self.0.by_ref().take(length.min(FIELD_MAX)).read_to_end(&mut value)?;
        let rest = length.saturating_sub(FIELD_MAX).saturating_add(1);
        io::copy(&mut self.0.by_ref().take(rest), &mut io::sink())?;
        Ok(value)
    }
}

trait TrimNewline {
    fn trim_suffix_newline(&self) -> &[u8];
}

impl TrimNewline for Vec<u8> {
    fn trim_suffix_newline(&self) -> &[u8] {
        self.strip_suffix(b"\n").unwrap_or(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(text: &[u8]) -> Vec<(i64, String, Vec<u8>)> {
        let mut export = Export(BufReader::new(text));
        let mut found = Vec::new();
        while let Some(entry) = export.next().unwrap() {
            found.push((entry.real_us, entry.unit, entry.message));
        }
        found
    }

    #[test]
    fn export_format() {
        let mut text = b"__CURSOR=s=1\n__REALTIME_TIMESTAMP=1700000000123456\nMESSAGE=a=b\n\
            _SYSTEMD_UNIT=x.service\n\n__REALTIME_TIMESTAMP=5\nPRIORITY=6\n\n\
            __REALTIME_TIMESTAMP=7\nMESSAGE\n"
            .to_vec();
        text.extend_from_slice(&4_u64.to_le_bytes());
        text.extend_from_slice(b"a\n\xff=\n\n__REALTIME_TIMESTAMP=8\nMESSAGE\n");
        let big = usize::try_from(FIELD_MAX).unwrap() + 10;
        text.extend_from_slice(&u64::try_from(big).unwrap().to_le_bytes());
        text.extend_from_slice(&vec![b'x'; big]);
        text.extend_from_slice(b"\n\n__REALTIME_TIMESTAMP=9\nMESSAGE=last\n");
        let found = entries(&text);
        assert_eq!(found[0], (1_700_000_000_123_456, "x.service".to_owned(), b"a=b".to_vec()));
        // The entry without a message is skipped.
        assert_eq!(found[1], (7, String::new(), b"a\n\xff=".to_vec()));
        assert_eq!((found[2].0, found[2].2.len()), (8, big - 10));
        assert_eq!(found[3], (9, String::new(), b"last".to_vec()));
        assert_eq!(found.len(), 4);
        assert!(entries(b"").is_empty());
    }

    #[test]
    fn broken_export_is_an_error() {
        assert!(Export(BufReader::new(b"MESSAGE\n\x05\0\0".as_slice())).next().is_err());
    }
}
