//! Figures of the whole node: `/proc/stat` and `/proc/meminfo`.
//!
//! Runs on the monitor thread. Descriptors stay open and are read with `pread` into the caller's
//! buffer; nothing is allocated after the start. A read that fails leaves the previous figures and
//! is logged once until it works again.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// The first line of `/proc/stat` fits; the kernel formats the rest for nothing, we do not read it.
const STAT_BYTES: usize = 256;
/// All lines that are used stand in the first kilobytes of `/proc/meminfo`.
const MEMINFO_BYTES: usize = 2048;

/// What the node uses.
#[derive(Debug)]
pub(crate) struct Host {
    stat: Source,
    meminfo: Source,
    previous: Option<CpuTime>,
}

/// One sample; `None` = could not be read this time.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct HostUse {
    pub(crate) busy: Option<Busy>,
    pub(crate) ram_bytes: Option<u64>,
}

/// Share of the time that was busy between the two newest samples, as two counters.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Busy {
    part: u64,
    whole: u64,
}

impl Busy {
    /// CPU use of the whole node, which has `max_dmips`.
    pub(crate) fn dmips(self, max_dmips: u64) -> u64 {
        share_of(max_dmips, self.part, self.whole)
    }
}

impl Host {
    /// Opens the files below `proc` and takes the first CPU baseline.
    pub(crate) fn open(proc: &Path) -> Self {
        let mut host = Self {
            stat: Source::open(&proc.join("stat")),
            meminfo: Source::open(&proc.join("meminfo")),
            previous: None,
        };
        host.sample();
        host
    }

    /// Reads all figures once.
    pub(crate) fn sample(&mut self) -> HostUse {
        let mut buffer = [0; MEMINFO_BYTES];
        let now = self.stat.read(&mut buffer[..STAT_BYTES], cpu_time);
        let before = self.previous;
        self.previous = now.or(before);
        let busy = now.zip(before).map(|(now, before)| busy_share(before, now));
        HostUse { busy, ram_bytes: self.meminfo.read(&mut buffer, used_ram) }
    }
}

/// `round(total * part / whole)`, at most `total`.
pub(crate) fn share_of(total: u64, part: u64, whole: u64) -> u64 {
    let whole = u128::from(whole.max(1));
    let share = (u128::from(total) * u128::from(part) + whole / 2) / whole;
    u64::try_from(share).unwrap_or(u64::MAX).min(total)
}

/// A kept descriptor that logs once per change between working and failing.
#[derive(Debug)]
struct Source {
    file: Option<File>,
    name: Box<str>,
    failing: bool,
}

impl Source {
    fn open(path: &Path) -> Self {
        Self { file: File::open(path).ok(), name: path.to_string_lossy().into(), failing: false }
    }

    fn read<T>(&mut self, buffer: &mut [u8], parse: fn(&[u8]) -> Option<T>) -> Option<T> {
        let length = self.file.as_ref().and_then(|file| file.read_at(buffer, 0).ok());
        let parsed = length.and_then(|length| parse(&buffer[..length]));
        if parsed.is_none() != self.failing {
            self.failing = parsed.is_none();
            if self.failing {
                log::warn!("cannot read {}: node figures stay at their last values", self.name);
            }
        }
        parsed
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct CpuTime {
    busy: u64,
    all: u64,
}

/// First line of `/proc/stat`. Guest time is part of user and nice and not added again.
fn cpu_time(text: &[u8]) -> Option<CpuTime> {
    let line = text.split(|b| *b == b'\n').next()?.strip_prefix(b"cpu ")?;
    let mut fields = line.split(|b| *b == b' ').filter(|field| !field.is_empty()).map(number);
    let mut column = || fields.next().flatten();
    let (user, nice, system, idle) = (column()?, column()?, column()?, column()?);
    // iowait, irq, softirq, steal; old kernels have fewer columns.
    let rest = (0..4).map_while(|_| column()).fold(0_u64, u64::saturating_add);
    let busy = user.saturating_add(nice).saturating_add(system).saturating_add(rest);
    Some(CpuTime { busy, all: busy.saturating_add(idle) })
}

/// Busy and whole time between two samples; counters that ran backwards count as idle.
fn busy_share(before: CpuTime, now: CpuTime) -> Busy {
    if now.busy <= before.busy {
        return Busy { part: 0, whole: 1 };
    }
    if now.all <= before.all {
        return Busy { part: 1, whole: 1 };
    }
    Busy { part: now.busy - before.busy, whole: now.all - before.all }
}

/// `MemTotal - MemFree - Buffers - Cached - SReclaimable` of `/proc/meminfo`, in bytes.
fn used_ram(text: &[u8]) -> Option<u64> {
    let value = |name: &[u8]| kilobytes(text, name);
    let free = [b"MemFree".as_slice(), b"Buffers", b"Cached"];
    let mut used = value(b"MemTotal")?;
    for name in free {
        used = used.saturating_sub(value(name)?);
    }
    // Missing before Linux 2.6.19.
    used = used.saturating_sub(value(b"SReclaimable").unwrap_or(0));
    used.checked_mul(1024)
}

fn kilobytes(text: &[u8], name: &[u8]) -> Option<u64> {
    let line = text
        .split(|b| *b == b'\n')
        .find_map(|line| line.strip_prefix(name).and_then(|rest| rest.strip_prefix(b":")))?;
    line.split(|b| *b == b' ').find(|field| !field.is_empty()).and_then(number)
}

/// A decimal number and nothing else.
pub(crate) fn number(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0_u64, |value, digit| {
        let digit = digit.is_ascii_digit().then(|| u64::from(digit - b'0'))?;
        value.checked_mul(10)?.checked_add(digit)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::fs::write_plain;

    const MEMINFO: &str = "MemTotal:        8000000 kB\nMemFree:         1000000 kB\n\
        MemAvailable:    5000000 kB\nBuffers:          200000 kB\nCached:          3000000 kB\n\
        SwapCached:            0 kB\nSReclaimable:     300000 kB\nSUnreclaim:        90000 kB\n";

    #[test]
    fn stat_lines() {
        let check = |text: &str, expect: Option<(u64, u64)>| {
            let expect = expect.map(|(busy, all)| CpuTime { busy, all });
            assert_eq!(cpu_time(text.as_bytes()), expect, "{text:?}");
        };
        check("cpu  145143 2100 33070 34065 686 0 116 167 0 0\ncpu0 1 2", Some((181_282, 215_347)));
        check("cpu  10 0 10 80 0 0 0 0 10 5\n", Some((20, 100))); // guest is inside user and nice
        check("cpu  10 0 10 80\n", Some((20, 100)));
        check("cpu  10 0 10\n", None);
        check("cpu0 10 0 10 80\n", None);
        check("", None);
        check("cpu  x 0 10 80\n", None);
    }

    #[test]
    fn share_between_samples() {
        let check = |before: (u64, u64), now: (u64, u64), dmips: u64| {
            let time = |(busy, all)| CpuTime { busy, all };
            let busy = busy_share(time(before), time(now));
            assert_eq!(busy.dmips(1000), dmips, "{before:?} {now:?}");
        };
        check((10, 100), (20, 200), 100);
        check((10, 100), (10, 200), 0);
        check((10, 100), (5, 200), 0);
        check((10, 100), (20, 100), 1000);
        check((0, 0), (2, 3), 667);
        assert_eq!(share_of(u64::MAX, u64::MAX, 1), u64::MAX);
        assert_eq!(share_of(0, 5, 0), 0);
    }

    #[test]
    fn meminfo() {
        assert_eq!(used_ram(MEMINFO.as_bytes()), Some(3_500_000 * 1024));
        assert_eq!(
            used_ram(MEMINFO.replace("SReclaimable", "x").as_bytes()),
            Some(3_800_000 * 1024)
        );
        assert_eq!(used_ram(MEMINFO.replace("MemFree", "x").as_bytes()), None);
        assert_eq!(used_ram(MEMINFO.replace("1000000", "9999999").as_bytes()), Some(0));
    }

    #[test]
    fn a_failing_source_is_unknown_until_it_works_again() {
        let root = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            write_plain(&root.path().join(name), text.as_bytes(), 0o600).unwrap();
        };
        write("stat", "cpu  10 0 10 80\n");
        write("meminfo", MEMINFO);
        let mut host = Host::open(root.path());
        let mut sample = || {
            let used = host.sample();
            (used.busy.map(|busy| busy.dmips(1000)), used.ram_bytes)
        };
        assert_eq!(sample(), (Some(0), Some(3_500_000 << 10)));
        write("stat", "cpu  60 0 10 130\n");
        assert_eq!(sample().0, Some(500));
        write("stat", "garbage");
        write("meminfo", "");
        assert_eq!(sample(), (None, None));
        // What was used meanwhile belongs to the next sample.
        write("stat", "cpu  60 0 10 330\n");
        write("meminfo", MEMINFO);
        assert_eq!(sample(), (Some(0), Some(3_500_000 << 10)));
        let mut missing = Host::open(&root.path().join("missing"));
        assert_eq!(missing.sample(), HostUse::default());
    }
}
