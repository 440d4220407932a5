//! The ring buffer of the kernel, read once for a request of the system log.
//!
//! Thread `log-out`. Following it for alerts is not here.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;

use nix::errno::Errno;

use crate::logs::system::SystemLine;
use crate::ports::Now;
use crate::sys::is_errno;

const DEVICE: &str = "/dev/kmsg";
/// The kernel refuses to read a record into less.
const RECORD_BYTES: usize = 8192;

/// Records from the oldest on; ends at the newest one.
#[derive(Debug)]
pub(crate) struct KernelRing {
    file: File,
    buffer: Box<[u8; RECORD_BYTES]>,
    /// Unix time of the boot in microseconds, by the clock as it is now.
    boot_us: i64,
}

impl KernelRing {
    pub(crate) fn open(now: Now) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        let file = options.read(true).custom_flags(libc::O_NONBLOCK).open(DEVICE)?;
        let mono_us = i64::try_from(now.mono.as_micros()).unwrap_or(0);
        let boot_us = now.wall_ms.saturating_mul(1000).saturating_sub(mono_us);
        Ok(Self { file, buffer: Box::new([0; RECORD_BYTES]), boot_us })
    }
}

impl Iterator for KernelRing {
    type Item = SystemLine;

    fn next(&mut self) -> Option<SystemLine> {
        loop {
            match self.file.read(self.buffer.as_mut_slice()) {
                Ok(length) => {
                    if let Some(line) = parse(&self.buffer[..length], self.boot_us) {
                        return Some(line);
                    }
                }
                // Overwritten while we read, or interrupted: the next one is good again.
                Err(error) if is_errno(&error, Errno::EPIPE) || is_errno(&error, Errno::EINTR) => {}
                Err(_) => return None,
            }
        }
    }
}

/// `<prefix>,<sequence>,<monotonic µs>,<flags>[,…];<text>`, then lines with keys.
fn parse(record: &[u8], boot_us: i64) -> Option<SystemLine> {
    let end = record.iter().position(|byte| *byte == b'\n').unwrap_or(record.len());
    let semicolon = record[..end].iter().position(|byte| *byte == b';')?;
    let header = std::str::from_utf8(&record[..semicolon]).ok()?;
    let mono_us: i64 = header.split(',').nth(2)?.parse().ok()?;
    Some(SystemLine {
        real_us: boot_us.saturating_add(mono_us),
        unit: "kernel".to_owned(),
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
mod tests {
    use super::*;
    use crate::ports::Clock;
    use crate::sys::time::SystemClock;

    #[test]
    fn records() {
        let check = |record: &str, expect: Option<(i64, &str)>| {
            let found = parse(record.as_bytes(), 1000);
            let expect = expect.map(|(real_us, message)| SystemLine {
                real_us,
                unit: "kernel".to_owned(),
                message: message.into(),
            });
            assert_eq!(found, expect, "{record}");
        };
        check("6,906,2152320539,-;br-net1: entered\n", Some((2_152_321_539, "br-net1: entered")));
        check("30,1,5,c,caller=T1;a;b\n SUBSYSTEM=net\n", Some((1005, "a;b")));
        check("6,1,5,-;tab\\x09 \\x5c \\xzz \\x\n", Some((1005, "tab\t \\ \\xzz \\x")));
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
}
