//! Log answers: gathers the parts of each request and saves the whole as a readable file.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use aos_servicemanager::cm::wire::v4::servicemanager as wire;
use flate2::read::MultiGzDecoder;

/// Longest text of one part, in bytes.
const MAX_PART_TEXT: u64 = 64 << 20;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("part {part} of {log_id} is not gzip")]
    Unpack { log_id: String, part: u64, source: io::Error },
    #[error("{log_id} ended with part {part} of {part_count}, but {there} have come")]
    Incomplete { log_id: String, part: u64, part_count: u64, there: usize },
    #[error("cannot write {path}")]
    Write { path: PathBuf, source: io::Error },
}

/// A whole answer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Saved {
    pub path: PathBuf,
    pub lines: usize,
    pub bytes: usize,
}

/// The answers that are still to come.
#[derive(Debug)]
pub struct Answers {
    dir: PathBuf,
    open: BTreeMap<String, Answer>,
}

#[derive(Debug)]
struct Answer {
    to: PathBuf,
    /// The reader wants the file alone.
    only_saved: bool,
    /// Unpacked, by number.
    parts: BTreeMap<u64, Vec<u8>>,
}

impl Answers {
    /// Files go into `dir` unless a request names another place.
    pub fn new(dir: &Path) -> Self {
        Self { dir: dir.to_owned(), open: BTreeMap::new() }
    }

    /// A request was sent.
    pub fn ask(&mut self, log_id: &str, to: Option<&Path>) {
        let path = to.map_or_else(|| self.dir.join(format!("{log_id}.log")), Path::to_owned);
        let answer = Answer { to: path, only_saved: to.is_some(), parts: BTreeMap::new() };
        self.open.insert(log_id.to_owned(), answer);
    }

    /// Its lines are not to be printed.
    pub fn is_only_saved(&self, log_id: &str) -> bool {
        self.open.get(log_id).is_some_and(|answer| answer.only_saved)
    }

    /// One part; the last one that was missing completes the file. Nothing is saved of a request
    /// that failed or found nothing.
    pub fn take(&mut self, log: &wire::LogData) -> Result<Option<Saved>, Error> {
        let Some(answer) = self.open.get_mut(&log.log_id) else { return Ok(None) };
        let failed = log.error.is_some() || (log.data.is_empty() && log.part_count <= 1);
        if failed {
            self.open.remove(&log.log_id);
            return Ok(None);
        }
        let text = unpack(&log.data).map_err(|source| Error::Unpack {
            log_id: log.log_id.clone(),
            part: log.part,
            source,
        })?;
        answer.parts.insert(log.part, text);
        if log.part < log.part_count {
            return Ok(None);
        }
        let Some(answer) = self.open.remove(&log.log_id) else { return Ok(None) };
        let there = answer.parts.len();
        if u64::try_from(there) != Ok(log.part_count) {
            let (log_id, part) = (log.log_id.clone(), log.part);
            return Err(Error::Incomplete { log_id, part, part_count: log.part_count, there });
        }
        save(answer).map(Some)
    }

    /// The stream ended: nothing more comes.
    pub fn forget(&mut self) {
        self.open.clear();
    }
}

fn unpack(data: &[u8]) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    MultiGzDecoder::new(data).take(MAX_PART_TEXT).read_to_end(&mut text)?;
    Ok(text)
}

/// What is no text becomes so: the file is for an editor.
fn save(answer: Answer) -> Result<Saved, Error> {
    let whole: Vec<u8> = answer.parts.into_values().flatten().collect();
    let text = String::from_utf8_lossy(&whole);
    let path = answer.to;
    let made = path.parent().map_or(Ok(()), fs::create_dir_all);
    made.and_then(|()| fs::write(&path, text.as_bytes()))
        .map_err(|source| Error::Write { path: path.clone(), source })?;
    Ok(Saved { path, lines: text.lines().count(), bytes: text.len() })
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn part(log_id: &str, (part, part_count): (u64, u64), text: &[u8]) -> wire::LogData {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(text).unwrap();
        let mut log = wire::LogData::new();
        (log.log_id, log.part, log.part_count) = (log_id.into(), part, part_count);
        log.data = encoder.finish().unwrap();
        log
    }

    #[test]
    fn parts_become_one_file() {
        let dir = tempfile::tempdir().unwrap();
        let mut answers = Answers::new(&dir.path().join("logs"));
        answers.ask("log-1", None);
        answers.ask("log-2", Some(&dir.path().join("other")));
        assert!(!answers.is_only_saved("log-1") && answers.is_only_saved("log-2"));
        assert_eq!(answers.take(&part("log-1", (1, 2), b"one\ntw")).unwrap(), None);
        assert_eq!(answers.take(&part("unknown", (1, 1), b"x")).unwrap(), None);
        let saved = answers.take(&part("log-1", (2, 2), b"o\n\xff\n")).unwrap().unwrap();
        assert_eq!(saved.path, dir.path().join("logs/log-1.log"));
        assert_eq!((saved.lines, saved.bytes), (3, "one\ntwo\n\u{fffd}\n".len()));
        assert_eq!(fs::read_to_string(&saved.path).unwrap(), "one\ntwo\n\u{fffd}\n");
        let saved = answers.take(&part("log-2", (1, 1), b"x")).unwrap().unwrap();
        assert_eq!(saved.path, dir.path().join("other"));
    }

    #[test]
    fn what_is_no_answer_is_not_saved() {
        let dir = tempfile::tempdir().unwrap();
        let mut answers = Answers::new(dir.path());
        let mut check = |log: wire::LogData| {
            answers.ask("log", None);
            answers.take(&log).map(|saved| saved.is_some()).map_err(|error| error.to_string())
        };
        let mut absent = wire::LogData::new();
        (absent.log_id, absent.part, absent.part_count) = ("log".into(), 1, 1);
        assert_eq!(check(absent.clone()), Ok(false));
        absent.data = b"plain".to_vec();
        assert_eq!(check(absent), Err("part 1 of log is not gzip".to_owned()));
        let late = check(part("log", (2, 2), b"x"));
        assert_eq!(late, Err("log ended with part 2 of 2, but 1 have come".to_owned()));
        let unwritable = Answers::new(Path::new("/proc/none"));
        let mut answers = unwritable;
        answers.ask("log", None);
        let error = answers.take(&part("log", (1, 1), b"x")).unwrap_err();
        assert_eq!(error.to_string(), "cannot write /proc/none/log.log");
    }
}
