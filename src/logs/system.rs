//! The system log without a journal: text files of a syslog daemon.
//!
//! Thread `log-out`. The rotated predecessor `<file>.1` of each file is read first. Times without an
//! offset are taken as UTC, times without a year as the newest possible ones.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use crate::calendar::{self, Civil};
use crate::logs::{Error, LogSettings};

/// Files of which the first existing one is read when none are configured.
pub(crate) const DEFAULT_FILES: [&str; 2] = ["/var/log/messages", "/var/log/syslog"];
/// Longest line; the rest is left out.
const LINE_MAX: u64 = 16 * 1024;
/// A time without a year lies at most this far ahead of the clock.
const AHEAD_MS: i64 = 24 * 3600 * 1000;
const MONTHS: [&str; 12] =
    ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];

/// A line of the system log.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct SystemLine {
    pub(crate) real_us: i64,
    /// Name of the program.
    pub(crate) unit: String,
    pub(crate) message: Vec<u8>,
}

/// Calls `each` with all lines, file after file.
pub(crate) fn read(
    settings: &LogSettings,
    now_ms: i64,
    mut each: impl FnMut(&SystemLine) -> Result<(), Error>,
) -> Result<(), Error> {
    let files = files(settings);
    if files.is_empty() {
        return Err(Error::NoSystemLog);
    }
    for path in files {
        let failed = |source| Error::Read { path: path.clone(), source };
        let mut reader = BufReader::new(File::open(&path).map_err(failed)?);
        let mut before = SystemLine::default();
        let mut text = Vec::new();
        while read_line(&mut reader, &mut text).map_err(failed)? {
            let line = parse(&text, now_ms).unwrap_or_else(|| SystemLine {
                message: text.clone(),
                real_us: before.real_us,
                unit: before.unit.clone(),
            });
            each(&line)?;
            before = line;
        }
    }
    Ok(())
}

/// The files that can be opened, older ones first.
fn files(settings: &LogSettings) -> Vec<PathBuf> {
    let configured = settings.system_log_files.clone();
    let defaults = || DEFAULT_FILES.iter().map(PathBuf::from).find(|path| path.exists());
    let newest = configured.unwrap_or_else(|| defaults().into_iter().collect());
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

/// `<time> <host> <program>[<pid>]: <message>`, the time as syslog or RFC 3339 writes it.
fn parse(line: &[u8], now_ms: i64) -> Option<SystemLine> {
    let (time_ms, rest) = syslog_time(line, now_ms).or_else(|| iso_time(line))?;
    let mut words = rest.splitn(3, |byte| *byte == b' ');
    let (_host, tag, message) = (words.next()?, words.next()?, words.next().unwrap_or_default());
    let Some(tag) = tag.strip_suffix(b":") else {
        // No program: all of it is the message.
        let message = rest.splitn(2, |byte| *byte == b' ').nth(1)?.to_vec();
        return Some(SystemLine { real_us: time_ms * 1000, unit: String::new(), message });
    };
    let name = tag.split(|byte| *byte == b'[').next()?;
    let unit = String::from_utf8_lossy(name).into_owned();
    Some(SystemLine { real_us: time_ms * 1000, unit, message: message.to_vec() })
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
            };
            assert_eq!(found, expect, "{line}");
        };
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
        let now_ms = calendar::parse(NOW).unwrap();
        let file = dir.path().join("messages");
        let settings =
            |files| LogSettings { system_log_files: Some(files), ..settings(dir.path()) };
        let missing = read(&settings(vec![file.clone()]), now_ms, |_| Ok(()));
        assert!(matches!(missing, Err(Error::NoSystemLog)));
        let old = dir.path().join("messages.1");
        write_plain(&old, b"Dec 30 10:00:00 host a: old\n  continued\n", 0o600).unwrap();
        let long = format!("Dec 31 10:00:00 host a: new\n{}\nend", "x".repeat(20_000));
        write_plain(&file, long.as_bytes(), 0o600).unwrap();
        let mut found = Vec::new();
        read(&settings(vec![file]), now_ms, |line| {
            found.push((line.real_us, line.message.len()));
            Ok(())
        })
        .unwrap();
        let day = |text| calendar::parse(text).unwrap() * 1000;
        let (first, second) = (day("2025-12-30T10:00:00Z"), day("2025-12-31T10:00:00Z"));
        assert_eq!(found, [(first, 3), (first, 11), (second, 3), (second, 16384), (second, 3)]);
    }
}
