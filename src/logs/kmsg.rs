//! The ring buffer of the kernel: read once for a request of the system log, and followed for
//! alerts.
//!
//! A request runs on thread `log-out`. [`KernelWatch`] belongs to `log-in`, which polls its
//! descriptor. Each `read` of the device gives one record.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;

use nix::errno::Errno;

use crate::logs::position::Sequence;
use crate::logs::system::SystemLine;
use crate::ports::Now;
use crate::sys::is_errno;

const DEVICE: &str = "/dev/kmsg";
/// The kernel refuses to read a record into less.
const RECORD_BYTES: usize = 8192;
/// Records of one turn, so that a storm delays nothing else for long.
pub(crate) const RECORDS: usize = 256;
/// More than the largest ring holds.
const RING_RECORDS: usize = 1 << 20;
/// Facility of the kernel's own messages; others were written by programs.
const KERNEL: u32 = 0;

fn open() -> io::Result<File> {
    OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(DEVICE)
}

/// Unix time of the boot in microseconds, by the clock as it is now.
fn boot_us(now: Now) -> i64 {
    let mono_us = i64::try_from(now.mono.as_micros()).unwrap_or(0);
    now.wall_ms.saturating_mul(1000).saturating_sub(mono_us)
}

/// Records from the oldest on; ends at the newest one.
#[derive(Debug)]
pub(crate) struct KernelRing {
    file: File,
    buffer: Box<[u8; RECORD_BYTES]>,
    boot_us: i64,
}

impl KernelRing {
    pub(crate) fn open(now: Now) -> io::Result<Self> {
        Ok(Self { file: open()?, buffer: Box::new([0; RECORD_BYTES]), boot_us: boot_us(now) })
    }
}

impl Iterator for KernelRing {
    type Item = SystemLine;

    fn next(&mut self) -> Option<SystemLine> {
        loop {
            match self.file.read(self.buffer.as_mut_slice()) {
                Ok(length) => {
                    if let Some(record) = parse(&self.buffer[..length]) {
                        return Some(SystemLine {
                            real_us: self.boot_us.saturating_add(record.mono_us),
                            unit: "kernel".to_owned(),
                            message: record.message,
                            level: Some(record.level),
                        });
                    }
                }
                // Overwritten while we read, or interrupted: the next one is good again.
                Err(error) if is_errno(&error, Errno::EPIPE) || is_errno(&error, Errno::EINTR) => {}
                Err(_) => return None,
            }
        }
    }
}

/// Follows the kernel's own messages.
#[derive(Debug)]
pub(crate) struct KernelWatch {
    file: File,
    buffer: Box<[u8; RECORD_BYTES]>,
    boot: [u8; 16],
    /// Number of the last record that was read; earlier ones are skipped.
    last: Option<u64>,
    /// There may be more to read although nothing announces it.
    pub(crate) has_more: bool,
}

impl KernelWatch {
    /// From the record after `stored` on, if that is of this boot, else from now on.
    pub(crate) fn open(stored: Option<Sequence>, boot: [u8; 16]) -> io::Result<Self> {
        let last = stored.filter(|stored| stored.boot == boot).map(|stored| stored.number);
        let mut watch = Self::of(open()?, boot, last);
        if last.is_none() {
            watch.skip();
        }
        Ok(watch)
    }

    /// Skips what is there; the number of the last record is the place to begin at next time.
    fn skip(&mut self) {
        for _ in 0..RING_RECORDS {
            match self.file.read(self.buffer.as_mut_slice()) {
                Ok(length) => {
                    let record = parse(&self.buffer[..length]);
                    self.last = record.map(|record| record.sequence).or(self.last);
                }
                Err(error) if is_errno(&error, Errno::EPIPE) || is_errno(&error, Errno::EINTR) => {}
                Err(_) => return,
            }
        }
    }

    fn of(file: File, boot: [u8; 16], last: Option<u64>) -> Self {
        Self { file, buffer: Box::new([0; RECORD_BYTES]), boot, last, has_more: true }
    }

    pub(crate) fn descriptor(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    /// Where it is; `None` = nothing was read yet.
    pub(crate) fn place(&self) -> Option<Sequence> {
        self.last.map(|number| Sequence { boot: self.boot, number })
    }

    /// Calls `each` with time (Unix, milliseconds) and text of the new messages of the kernel at
    /// this level or a more urgent one. False = it cannot be read any more.
    pub(crate) fn read(&mut self, level: u8, now: Now, mut each: impl FnMut(i64, &[u8])) -> bool {
        self.has_more = false;
        for _ in 0..RECORDS {
            let length = match self.file.read(self.buffer.as_mut_slice()) {
                Ok(length) => length,
                Err(error) if is_errno(&error, Errno::EPIPE) => {
                    log::warn!("messages of the kernel were overwritten before they were read");
                    continue;
                }
                Err(error) if is_errno(&error, Errno::EINTR) => continue,
                Err(error) if is_errno(&error, Errno::EAGAIN) => return true,
                Err(_) => return false,
            };
            let Some(record) = parse(&self.buffer[..length]) else { continue };
            if self.last.is_some_and(|last| record.sequence <= last) {
                continue;
            }
            self.last = Some(record.sequence);
            if record.level <= level && record.facility == KERNEL {
                each(boot_us(now).saturating_add(record.mono_us) / 1000, &record.message);
            }
        }
        self.has_more = true;
        true
    }
}

/// One message.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Record {
    level: u8,
    facility: u32,
    sequence: u64,
    mono_us: i64,
    message: Vec<u8>,
}

/// `<prefix>,<sequence>,<monotonic µs>,<flags>[,…];<text>`, then lines with keys.
fn parse(record: &[u8]) -> Option<Record> {
    let end = record.iter().position(|byte| *byte == b'\n').unwrap_or(record.len());
    let semicolon = record[..end].iter().position(|byte| *byte == b';')?;
    let header = std::str::from_utf8(&record[..semicolon]).ok()?;
    let mut fields = header.split(',');
    let prefix: u32 = fields.next()?.parse().ok()?;
    Some(Record {
        level: u8::try_from(prefix & 7).ok()?,
        facility: prefix >> 3,
        sequence: fields.next()?.parse().ok()?,
        mono_us: fields.next()?.parse().ok()?,
        message: unescape(&record[semicolon + 1..end]),
    })
}

/// Resolves `\xNN`.
fn unescape(text: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((first, tail)) = rest.split_first() {
        let digits =
            rest.strip_prefix(b"\\x").and_then(|hex| std::str::from_utf8(hex.get(..2)?).ok());
        match digits.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(byte) => {
                plain.push(byte);
                rest = &rest[4..];
            }
            None => {
                plain.push(*first);
                rest = tail;
            }
        }
    }
    plain
}

#[cfg(test)]
pub(crate) mod tests {
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixDatagram;

    use super::*;
    use crate::ports::Clock;
    use crate::sys::time::SystemClock;

    #[test]
    fn records() {
        let check = |record: &str, expect: Option<(u8, u32, u64, i64, &str)>| {
            let found = parse(record.as_bytes());
            let expect = expect.map(|(level, facility, sequence, mono_us, message)| Record {
                level,
                facility,
                sequence,
                mono_us,
                message: message.into(),
            });
            assert_eq!(found, expect, "{record}");
        };
        let text = "br-net1: entered";
        check("6,906,2152320539,-;br-net1: entered\n", Some((6, 0, 906, 2_152_320_539, text)));
        check("30,1,5,c,caller=T1;a;b\n SUBSYSTEM=net\n", Some((6, 3, 1, 5, "a;b")));
        check("6,1,5,-;tab\\x09 \\x5c \\xzz \\x\n", Some((6, 0, 1, 5, "tab\t \\ \\xzz \\x")));
        check("6,1;no time\n", None);
        check("garbage", None);
        check("", None);
    }

    #[test]
    fn real_ring_ends() {
        let now = SystemClock.now();
        match KernelRing::open(now) {
            Ok(ring) => {
                assert!(
                    ring.take(1 << 20).all(|line| line.real_us <= (now.wall_ms + 60_000) * 1000)
                );
            }
            Err(err) => println!("SKIP real_ring_ends: {err}"),
        }
    }

    /// A ring that a test writes, one record for each message.
    pub(crate) fn ring(last: Option<u64>) -> (UnixDatagram, KernelWatch) {
        let (writer, reader) = UnixDatagram::pair().unwrap();
        reader.set_nonblocking(true).unwrap();
        (writer, KernelWatch::of(OwnedFd::from(reader).into(), [7; 16], last))
    }

    #[test]
    fn urgent_messages_of_the_kernel_after_the_stored_one() {
        let (writer, mut watch) = ring(Some(10));
        let now = Now { wall_ms: 1_700_000_000_000, ..Now::default() };
        let mut check = |records: &[&str], expect: &[(i64, &str)], place: u64| {
            for record in records {
                writer.send(record.as_bytes()).unwrap();
            }
            let mut found = Vec::new();
            assert!(watch.read(3, now, |time, text| {
                found.push((time, String::from_utf8(text.to_vec()).unwrap()));
            }));
            let found: Vec<_> = found.iter().map(|(time, text)| (*time, text.as_str())).collect();
            assert_eq!(found, expect);
            assert_eq!(watch.place(), Some(Sequence { boot: [7; 16], number: place }));
        };
        check(&["3,9,1,-;known", "3,10,1,-;known"], &[], 10);
        check(
            &[
                "3,11,5000,-;error\n",
                "4,12,1,-;warning",
                "11,13,1,-;of a program",
                "0,14,0,-;panic",
            ],
            &[(1_700_000_000_005, "error"), (1_700_000_000_000, "panic")],
            14,
        );
        check(&["garbage", "2,15,0,-;critical"], &[(1_700_000_000_000, "critical")], 15);
    }

    #[test]
    fn the_real_ring_is_followed() {
        let boot = [9; 16];
        match KernelWatch::open(None, boot) {
            // Nothing old is shown, whatever the kernel says at this moment.
            Ok(mut watch) => {
                let before = KernelRing::open(SystemClock.now()).unwrap().count();
                let mut found = 0;
                while watch.has_more {
                    assert!(watch.read(7, SystemClock.now(), |_, _| found += 1));
                }
                assert!(found < before.max(1), "{found} of {before}");
                // From the first record on.
                let stored = Sequence { boot, number: 0 };
                let mut watch = KernelWatch::open(Some(stored), boot).unwrap();
                assert!(watch.read(7, SystemClock.now(), |_, _| {}));
                assert!(before == 0 || watch.place() != Some(stored));
            }
            Err(err) => println!("SKIP the_real_ring_is_followed: {err}"),
        }
    }
}
