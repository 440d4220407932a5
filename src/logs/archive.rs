//! Text of an answer: cut into parts, each one complete gzip stream.
//!
//! Thread `log-out`. Memory is constant: a few parts stay there, the others go to an unlinked file.
//! When there is more than fits, the newest parts stay, and the first line of the answer says what
//! was cut.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use flate2::write::GzEncoder;
use flate2::{Compression, GzBuilder, read::GzDecoder};
use nix::fcntl::{FallocateFlags, OFlag, fallocate};

use crate::logs::{Error, LogSettings};
use crate::sys::progress;

/// Compressed parts that are kept in memory, in bytes.
const MEMORY_BYTES: usize = 256 * 1024;
/// Operating system `unknown` in the gzip header, as Go writes it.
const GZIP_OS: u8 = 255;

/// An answer that is being made.
#[derive(Debug)]
pub(crate) struct Archive {
    max_part_bytes: u64,
    max_parts: usize,
    open: Option<Open>,
    parts: VecDeque<Part>,
    memory_bytes: usize,
    spill: Spill,
    cut: Size,
}

/// The part that still grows.
#[derive(Debug)]
struct Open {
    encoder: GzEncoder<Vec<u8>>,
    size: Size,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Size {
    lines: u64,
    bytes: u64,
}

#[derive(Debug)]
struct Part {
    place: Place,
    size: Size,
}

#[derive(Debug)]
enum Place {
    Memory(Vec<u8>),
    File { at: u64, length: usize },
}

impl Archive {
    pub(crate) fn new(settings: &LogSettings) -> Self {
        Self {
            max_part_bytes: settings.max_part_bytes.max(1),
            max_parts: usize::try_from(settings.max_part_count).unwrap_or(usize::MAX).max(1),
            open: None,
            parts: VecDeque::new(),
            memory_bytes: 0,
            spill: Spill { dir: settings.working_dir.clone(), file: None, end: 0 },
            cut: Size::default(),
        }
    }

    /// Adds a line, which ends with a newline. A part is closed once it is larger than its limit, so
    /// a line is never split.
    pub(crate) fn line(&mut self, text: &[u8]) -> Result<(), Error> {
        let mut open = match self.open.take() {
            Some(open) => open,
            None => {
                self.make_room();
                Open { encoder: encoder(), size: Size::default() }
            }
        };
        open.encoder.write_all(text).map_err(|source| Error::Compress { source })?;
        open.size.lines += 1;
        open.size.bytes += u64::try_from(text.len()).unwrap_or(0);
        if open.size.bytes > self.max_part_bytes {
            return self.close(open);
        }
        self.open = Some(open);
        Ok(())
    }

    /// Gives up the oldest part when the one that begins would be too many.
    fn make_room(&mut self) {
        if self.parts.len() < self.max_parts {
            return;
        }
        if let Some(oldest) = self.parts.pop_front() {
            self.cut.lines += oldest.size.lines;
            self.cut.bytes += oldest.size.bytes;
            match oldest.place {
                Place::Memory(data) => self.memory_bytes -= data.len(),
                Place::File { at, length } => self.spill.free(at, length),
            }
        }
    }

    fn close(&mut self, open: Open) -> Result<(), Error> {
        progress::step();
        let data = open.encoder.finish().map_err(|source| Error::Compress { source })?;
        let place = if self.memory_bytes + data.len() <= MEMORY_BYTES {
            self.memory_bytes += data.len();
            Place::Memory(data)
        } else {
            Place::File { at: self.spill.add(&data)?, length: data.len() }
        };
        self.parts.push_back(Part { place, size: open.size });
        Ok(())
    }

    /// The finished parts.
    pub(crate) fn finish(mut self) -> Result<Parts, Error> {
        if let Some(open) = self.open.take() {
            self.close(open)?;
        }
        Ok(Parts {
            parts: self.parts,
            spill: self.spill,
            cut: self.cut,
            limit: self.max_part_bytes,
        })
    }
}

/// The parts of a finished answer, oldest first.
#[derive(Debug)]
pub(crate) struct Parts {
    parts: VecDeque<Part>,
    spill: Spill,
    cut: Size,
    limit: u64,
}

impl Parts {
    /// How many are left.
    pub(crate) fn len(&self) -> usize {
        self.parts.len()
    }

    /// Takes the next part: one gzip stream.
    pub(crate) fn next(&mut self) -> Result<Option<Vec<u8>>, Error> {
        let Some(part) = self.parts.pop_front() else { return Ok(None) };
        let data = match part.place {
            Place::Memory(data) => data,
            Place::File { at, length } => self.spill.read(at, length)?,
        };
        match std::mem::take(&mut self.cut) {
            Size { lines: 0, .. } => Ok(Some(data)),
            cut => with_notice(&data, cut, self.limit)
                .map(Some)
                .map_err(|source| Error::Compress { source }),
        }
    }
}

/// Puts a line in front that tells how much was cut, and leaves out as many lines as it needs.
fn with_notice(data: &[u8], mut cut: Size, limit: u64) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    GzDecoder::new(data).read_to_end(&mut text)?;
    let mut rest = text.as_slice();
    let mut notice = notice(cut);
    while u64::try_from(notice.len() + rest.len()).unwrap_or(u64::MAX) > limit {
        // The last line stays, so that the part is not empty.
        let Some(end) = rest.iter().position(|byte| *byte == b'\n') else { break };
        if end + 1 == rest.len() {
            break;
        }
        cut.lines += 1;
        cut.bytes += u64::try_from(end + 1).unwrap_or(0);
        rest = &rest[end + 1..];
        notice = self::notice(cut);
    }
    let mut encoder = encoder();
    encoder.write_all(&notice)?;
    encoder.write_all(rest)?;
    encoder.finish()
}

fn notice(cut: Size) -> Vec<u8> {
    format!("[{} older lines ({} bytes) of the range were cut] \n", cut.lines, cut.bytes).into()
}

fn encoder() -> GzEncoder<Vec<u8>> {
    GzBuilder::new().operating_system(GZIP_OS).write(Vec::new(), Compression::best())
}

/// An unlinked file for what does not fit into memory.
#[derive(Debug)]
struct Spill {
    dir: PathBuf,
    file: Option<File>,
    end: u64,
}

impl Spill {
    fn add(&mut self, data: &[u8]) -> Result<u64, Error> {
        let failed = |source| Error::Spill { path: self.dir.clone(), source };
        let file = match self.file.take() {
            Some(file) => file,
            None => unlinked(&self.dir).map_err(failed)?,
        };
        let at = self.end;
        file.write_all_at(data, at).map_err(failed)?;
        self.file = Some(file);
        self.end += u64::try_from(data.len()).unwrap_or(0);
        Ok(at)
    }

    fn read(&self, at: u64, length: usize) -> Result<Vec<u8>, Error> {
        let mut data = vec![0; length];
        let file = self.file.as_ref().ok_or_else(|| io::Error::from(io::ErrorKind::NotFound));
        file.and_then(|file| file.read_exact_at(&mut data, at))
            .map_err(|source| Error::Spill { path: self.dir.clone(), source })?;
        Ok(data)
    }

    /// Returns the space of a part that was given up, where the file system can.
    fn free(&self, at: u64, length: usize) {
        let (Some(file), Ok(at), Ok(length)) =
            (&self.file, i64::try_from(at), i64::try_from(length))
        else {
            return;
        };
        let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        if let Err(err) = fallocate(file, flags, at, length) {
            log::debug!("space of a log part not returned err={err}");
        }
    }
}

/// A file without a name in `dir`.
pub(crate) fn unlinked(dir: &Path) -> io::Result<File> {
    let flags = OFlag::O_TMPFILE.bits();
    OpenOptions::new().read(true).write(true).mode(0o600).custom_flags(flags).open(dir)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::logs::tests::settings;

    pub(crate) fn text(data: &[u8]) -> String {
        let mut text = String::new();
        GzDecoder::new(data).read_to_string(&mut text).unwrap();
        text
    }

    fn parts(max_bytes: u64, max_parts: u64, lines: &[&str]) -> Vec<String> {
        let dir = tempfile::tempdir().unwrap();
        let settings = LogSettings {
            max_part_bytes: max_bytes,
            max_part_count: max_parts,
            ..settings(dir.path())
        };
        let mut archive = Archive::new(&settings);
        for line in lines {
            archive.line(format!("{line}\n").as_bytes()).unwrap();
        }
        let mut parts = archive.finish().unwrap();
        let mut found = Vec::new();
        while let Some(data) = parts.next().unwrap() {
            assert_eq!(data[..10], [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 2, 0xff]);
            found.push(text(&data));
        }
        found
    }

    #[test]
    fn sizes_around_the_limit() {
        let check = |max_bytes, lines: &[&str], expect: &[&str]| {
            assert_eq!(parts(max_bytes, 9, lines), expect, "{lines:?}");
        };
        check(4, &[], &[]);
        check(4, &["abc"], &["abc\n"]);
        check(4, &["abc", "d"], &["abc\nd\n"]); // exactly the limit does not close a part
        check(4, &["abcd", "e"], &["abcd\n", "e\n"]);
        check(4, &["a", "b", "c", "d", "e"], &["a\nb\nc\n", "d\ne\n"]);
        check(4, &["longer than a part", "x"], &["longer than a part\n", "x\n"]);
        check(0, &["a", "b"], &["a\n", "b\n"]);
    }

    #[test]
    fn overflow_keeps_the_newest() {
        let line = |n: usize| format!("{n:099}");
        let lines: Vec<String> = (0..100).map(line).collect();
        let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
        // 11 lines of 100 bytes are the first size above 1000.
        let exact = parts(1000, 5, &lines[..55]);
        assert_eq!(
            exact.concat(),
            lines[..55].iter().map(|l| format!("{l}\n")).collect::<String>()
        );
        let cut = parts(1000, 5, &lines);
        assert_eq!(cut.len(), 5);
        // 10 parts in all; the notice takes the place of two more lines to stay within the limit.
        let mut first = cut[0].lines();
        assert_eq!(first.next(), Some("[57 older lines (5700 bytes) of the range were cut] "));
        assert_eq!(first.next(), Some(lines[57]));
        assert!(cut[0].len() <= 1000);
        assert!(cut.concat().ends_with(&format!("{}\n", lines[99])));
    }

    #[test]
    fn big_answers_go_to_a_file_and_come_back() {
        let dir = tempfile::tempdir().unwrap();
        let mut archive = Archive::new(&LogSettings {
            max_part_bytes: 100_000,
            max_part_count: 8,
            ..settings(dir.path())
        });
        let mut random = vec![0; 6000];
        let mut expect = String::new();
        for _ in 0..300 {
            crate::sys::random::fill(&mut random).unwrap();
            let line: String = random.iter().map(|b| format!("{b:02x}")).collect::<String>() + "\n";
            archive.line(line.as_bytes()).unwrap();
            expect.push_str(&line);
        }
        assert!(archive.memory_bytes <= MEMORY_BYTES);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        let mut parts = archive.finish().unwrap();
        assert_eq!(parts.len(), 8);
        let mut found = String::new();
        while let Some(data) = parts.next().unwrap() {
            found.push_str(&text(&data));
        }
        let (notice, rest) = found.split_once('\n').unwrap();
        assert!(notice.contains("older lines"));
        assert!(expect.ends_with(rest));
        assert!(rest.len() > 600_000);
    }
}
