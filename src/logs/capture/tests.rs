//! Sinks and capture together: real spools on tmpfs in a mount namespace of the test's own.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::process::{Child, Command};

use super::*;
use crate::logs::alerts::tests::Collected;
use crate::logs::drain::{BURST_PERIODS, LEAST_SEGMENTS};
use crate::logs::intake::{self, CaptureInbox, Means};
use crate::logs::reader::Reader;
use crate::logs::record::{LINE_MAX, lines};
use crate::logs::segment::SEGMENT_BYTES;
use crate::logs::sink::{self, Sinks};
use crate::logs::testing::RealProcesses;
use crate::logs::tests::{isolated, plan, settings};
use crate::logs::{Backend, store_dir};
use crate::model::service::{Quotas, ServiceImage};
use crate::ports::LogSinks;
use crate::sys::mount::tmpfs;
use crate::sys::time::SystemClock;

/// A daemon's log side without threads: messages are applied when the test says so.
struct Bench {
    settings: LogSettings,
    sinks: Sinks,
    inbox: CaptureInbox,
    id: InstanceId,
    output: Collected,
}

impl Bench {
    fn new(settings: LogSettings) -> Self {
        let (handle, inbox) = intake::inbox().unwrap();
        let sinks = Sinks::new(settings.clone(), handle);
        Self { settings, sinks, inbox, id: InstanceId::new("i1"), output: Collected::default() }
    }

    fn open(&self) -> File {
        File::from(self.sinks.open(&plan("i1")).unwrap().stdout)
    }

    fn capture(&self) -> Capture<'_> {
        Capture::new(&self.settings, &self.output, at(0))
    }

    fn apply_all(&self, capture: &mut Capture<'_>, now: Now) {
        for command in self.inbox.take() {
            capture.apply(command, now);
        }
    }

    fn close(&self) -> CaptureCommand {
        CaptureCommand::Close { id: self.id.clone(), until: u64::MAX }
    }

    /// Kind and text of everything stored besides where starts began.
    fn stored(&self) -> Vec<(Kind, String)> {
        let mut all = self.all();
        all.retain(|(kind, _)| *kind != Kind::Started);
        all
    }

    /// Kind and text of everything stored.
    fn all(&self) -> Vec<(Kind, String)> {
        let mut reader = Reader::open(&store_dir(&self.settings, &self.id));
        let (mut buffer, mut found) = (Vec::new(), Vec::new());
        while let Some(header) = reader.next(&mut buffer) {
            found.extend(
                lines(&buffer)
                    .map(|line| (header.kind, String::from_utf8_lossy(line.text).into_owned())),
            );
        }
        found
    }

    fn spool(&self) -> PathBuf {
        spool_dir(&self.settings, &self.id)
    }
}

fn at(ms: u64) -> Now {
    let mono = Duration::from_secs(1000) + Duration::from_millis(ms);
    Now { mono, boot: mono, wall_ms: 1_700_000_000_000 + i64::try_from(ms).unwrap() }
}

/// A container's process: writes numbered lines of about 20 bytes, whatever becomes of them.
fn writer(stdout: File, first: u32, last: u32) -> Child {
    let script = format!(
        "i={first}; while [ $i -le {last} ]; do echo \"a line of text $i\" 2>/dev/null; i=$((i+1)); done"
    );
    Command::new("sh").args(["-c", &script]).stdout(OwnedFd::from(stdout)).spawn().unwrap()
}

fn numbered(first: u32, last: u32) -> Vec<(Kind, String)> {
    (first..=last).map(|n| (Kind::Lines, format!("a line of text {n}"))).collect()
}

#[test]
fn restarts_of_the_capture_lose_and_double_nothing() {
    isolated("restarts_of_the_capture_lose_and_double_nothing", |root| {
        // 10 000 lines of 20 bytes fit, so nothing may be lost however slow this test is.
        let bench = Bench::new(LogSettings { spool_bytes: 1 << 20, ..settings(root) });
        let mut child = writer(bench.open(), 1, 10_000);
        let mut lives = 0;
        while child.try_wait().unwrap().is_none() || lives < 20 {
            let mut capture = bench.capture();
            bench.apply_all(&mut capture, at(lives));
            // A turn that ends in the middle of the output, and a crash after it.
            capture.drain(&bench.id, 1000, false, at(lives));
            lives += 1;
        }
        assert!(child.wait().unwrap().success());
        let mut capture = bench.capture();
        capture.apply(bench.close(), at(lives));
        let stored: Vec<_> =
            bench.stored().into_iter().filter(|(kind, _)| *kind != Kind::Outage).collect();
        assert_eq!(stored.len(), 10_000);
        assert_eq!(stored, numbered(1, 10_000));
        assert!(!bench.spool().exists());
    });
}

#[test]
fn drained_space_is_given_back() {
    isolated("drained_space_is_given_back", |root| {
        let bench = Bench::new(settings(root));
        let mut out = bench.open();
        let mut capture = bench.capture();
        bench.apply_all(&mut capture, at(0));
        // Five times the size of the spool passes through.
        for round in 0..20 {
            for _ in 0..600 {
                writeln!(out, "{}", "x".repeat(99)).unwrap();
            }
            let blocks = out.metadata().unwrap().blocks();
            assert!(blocks * 512 >= 59_000);
            capture.tick(at(round * 3000));
            let blocks = out.metadata().unwrap().blocks();
            assert!(blocks * 512 <= 4096, "{blocks}");
        }
        assert_eq!(bench.stored(), vec![(Kind::Lines, "x".repeat(99)); 12_000]);
    });
}

#[test]
fn full_spool_neither_blocks_nor_kills_the_writer() {
    isolated("full_spool_neither_blocks_nor_kills_the_writer", |root| {
        let bench = Bench::new(LogSettings { spool_bytes: 64 << 10, ..settings(root) });
        let out = bench.open();
        let mut child = writer(out.try_clone().unwrap(), 1, 10_000);
        // Nobody captures; the writer goes on to its end.
        assert!(child.wait().unwrap().success());
        assert_eq!(out.metadata().unwrap().blocks() * 512, 64 << 10);

        let mut capture = bench.capture();
        bench.apply_all(&mut capture, at(0));
        capture.tick(at(500));
        assert!(writer(out, 20_001, 20_100).wait().unwrap().success());
        capture.apply(bench.close(), at(1000));

        let stored = bench.stored();
        let text = |index: usize| stored[index].1.as_str();
        assert_eq!(text(0), "lines that follow were written while nothing captured them");
        let gap = stored.iter().position(|(kind, _)| *kind == Kind::Gap).unwrap();
        assert_eq!(text(gap), "output was lost: the spool was full");
        let kept = u32::try_from(gap).unwrap() - 1;
        assert!(kept > 3000, "{kept}");
        assert_eq!(stored[1..gap], numbered(1, kept)[..]);
        // The line that was cut when space ran out, then the new ones.
        let tail = &stored[stored.len() - 99..];
        assert_eq!(tail, numbered(20_002, 20_100));
    });
}

#[test]
fn close_and_new_start_do_not_race() {
    isolated("close_and_new_start_do_not_race", |root| {
        let bench = Bench::new(settings(root));
        let mut first = bench.open();
        first.write_all(b"first").unwrap();
        drop(first);
        bench.sinks.close(&bench.id).unwrap();
        let mut second = bench.open();
        second.write_all(b"second\n").unwrap();
        // Only now does the thread get its messages.
        let mut capture = bench.capture();
        bench.apply_all(&mut capture, at(0));
        capture.tick(at(500));
        second.write_all(b"third\n").unwrap();
        capture.tick(at(1000));
        let texts: Vec<_> = bench.stored().into_iter().map(|(_, text)| text).collect();
        assert_eq!(texts[1..], ["first", "second", "third"]);

        // A spool that is still in use goes when it is free.
        bench.sinks.close(&bench.id).unwrap();
        bench.apply_all(&mut capture, at(1500));
        assert!(bench.spool().exists());
        assert!(capture.pause(at(1500)).is_some());
        drop(second);
        capture.tick(at(2000));
        assert!(!bench.spool().exists());
        assert!(bench.sinks.survey().is_empty());
        // Unknown and repeated ids are fine.
        bench.sinks.close(&bench.id).unwrap();
        bench.sinks.close(&InstanceId::new("unknown")).unwrap();
        bench.apply_all(&mut capture, at(2500));
    });
}

#[test]
fn nothing_stays_open_of_a_removed_instance() {
    isolated("nothing_stays_open_of_a_removed_instance", |root| {
        let bench = Bench::new(settings(root));
        let mut capture = bench.capture();
        drop(bench.open());
        bench.apply_all(&mut capture, at(0));
        capture.apply(bench.close(), at(1));
        // The end of the init is noticed late.
        let exit = Exit::Signal(9);
        let exited = CaptureCommand::Exited { id: bench.id.clone(), exit, was_asked: true };
        capture.apply(exited, at(2));
        assert_eq!(bench.stored(), [(Kind::Exited, "killed by signal 9".to_owned())]);
        let target = |fd: fs::DirEntry| fs::read_link(fd.path()).unwrap_or_default();
        let mut open = fs::read_dir("/proc/self/fd").unwrap().flatten().map(target);
        assert!(!open.any(|path| path.starts_with(root)));
    });
}

#[test]
fn spool_that_was_in_use_is_removed_at_the_end() {
    isolated("spool_that_was_in_use_is_removed_at_the_end", |root| {
        let bench = Bench::new(settings(root));
        let mut writer = bench.open();
        let mut capture = bench.capture();
        bench.apply_all(&mut capture, at(0));
        writer.write_all(b"last words\n").unwrap();
        capture.apply(bench.close(), at(1));
        assert!(bench.spool().exists(), "its file is open");
        drop(writer);
        capture.finish(at(2));
        assert!(!bench.spool().exists());
    });
}

#[test]
fn automatic_restart_goes_on_in_the_same_store() {
    isolated("automatic_restart_goes_on_in_the_same_store", |root| {
        let bench = Bench::new(settings(root));
        let mut capture = bench.capture();
        for life in 0..3 {
            let mut out = bench.open();
            bench.apply_all(&mut capture, at(life * 10));
            write!(out, "life {life}").unwrap();
            drop(out);
            capture.apply(CaptureCommand::Started { id: bench.id.clone(), pid: 7 }, at(life * 10));
            let exit = Exit::Code(1);
            let exited = CaptureCommand::Exited { id: bench.id.clone(), exit, was_asked: false };
            capture.apply(exited, at(life * 10 + 5));
        }
        let expect = |life: i32| {
            [
                (Kind::Started, "starting version=1.0.0".to_owned()),
                (Kind::Lines, format!("life {life}")),
                (Kind::Exited, "exited with code 1".to_owned()),
            ]
        };
        assert_eq!(bench.all(), (0..3).flat_map(expect).collect::<Vec<_>>());
        capture.tick(at(500));
        // The files of earlier lives are gone, the newest one stays.
        assert_eq!(spool::generations(&bench.spool()).len(), 1);
    });
}

#[test]
fn unfinished_long_and_truncated_output() {
    isolated("unfinished_long_and_truncated_output", |root| {
        let bench = Bench::new(settings(root));
        let mut out = bench.open();
        let mut capture = bench.capture();
        bench.apply_all(&mut capture, at(0));
        let mut step = |ms, text: &[u8]| {
            out.write_all(text).unwrap();
            let before = bench.stored().len();
            capture.tick(at(ms));
            bench.stored()[before..].iter().map(|(_, text)| text.clone()).collect::<Vec<_>>()
        };
        assert!(step(0, b"no end").is_empty());
        assert!(step(900, b"").is_empty());
        assert!(step(950, b" yet").is_empty());
        assert!(step(1900, b"").is_empty());
        assert_eq!(step(1960, b""), ["no end yet"]);
        assert_eq!(step(2000, b"<3>a\0b\n\n"), ["a", "b"]);
        let long = step(3000, &[b'x'; LINE_MAX + 5]);
        assert_eq!(long, ["x".repeat(LINE_MAX)]);
        assert_eq!(step(3500, b"y\n"), ["xxxxxy"]);
        let name = spool::file_name(spool::generations(&bench.spool())[0]);
        File::options().write(true).truncate(true).open(bench.spool().join(name)).unwrap();
        assert_eq!(step(4000, b"new\n"), ["new", "output was lost: the output was truncated"]);
    });
}

/// What `echo text > /dev/stdout` does each time: no size tells that it has happened.
#[test]
fn output_written_anew_is_noticed_whatever_its_size() {
    isolated("output_written_anew_is_noticed_whatever_its_size", |root| {
        let bench = Bench::new(settings(root));
        let out = bench.open();
        let mut capture = bench.capture();
        bench.apply_all(&mut capture, at(0));
        let name = spool::file_name(spool::generations(&bench.spool())[0]);
        let path = bench.spool().join(name);
        let anew = |text: &str| {
            let mut file = File::options().write(true).truncate(true).open(&path).unwrap();
            file.write_all(text.as_bytes()).unwrap();
        };
        let mut said = Vec::new();
        let mut step = |capture: &mut Capture<'_>, ms| {
            let before = said.len();
            capture.tick(at(ms));
            said = bench.stored();
            said[before..].iter().map(|(_, text)| text.clone()).collect::<Vec<_>>()
        };
        let lost = "output was lost: the output was truncated";
        writeln!(&out, "tick").unwrap();
        assert_eq!(step(&mut capture, 0), ["tick"]);
        // As long, longer, shorter, and empty.
        anew("tick\n");
        assert_eq!(step(&mut capture, 500), ["tick", lost]);
        anew("a longer text\nand another\n");
        assert_eq!(step(&mut capture, 1000), ["a longer text", "and another", lost]);
        anew("x\n");
        assert_eq!(step(&mut capture, 1500), ["x", lost]);
        anew("");
        assert_eq!(step(&mut capture, 2000), [lost]);
        // More than a page, and on in append mode.
        let many = "y".repeat(99) + "\n";
        anew(&many.repeat(100));
        assert_eq!(step(&mut capture, 2500), vec!["y".repeat(99); 100]);
        anew(&many.repeat(101));
        assert_eq!(step(&mut capture, 3000).len(), 102);
        writeln!(&out, "after").unwrap();
        assert_eq!(step(&mut capture, 3500), ["after"]);
        // The next life neither doubles what is stored nor misses what is written anew.
        drop(capture);
        let mut capture = bench.capture();
        assert!(step(&mut capture, 4000).is_empty());
        anew(&many.repeat(102));
        assert_eq!(step(&mut capture, 4500).len(), 103);
    });
}

#[test]
fn noisy_instance_is_limited() {
    isolated("noisy_instance_is_limited", |root| {
        let bench = Bench::new(LogSettings { rate_lines: 30, ..settings(root) });
        let mut out = bench.open();
        let mut capture = bench.capture();
        bench.apply_all(&mut capture, at(0));
        let burst = 30 * usize::try_from(BURST_PERIODS).unwrap();
        for n in 0..burst + 70 {
            writeln!(out, "line {n:03}").unwrap();
        }
        capture.tick(at(0));
        writeln!(out, "later").unwrap();
        capture.tick(at(500)); // half a line's worth has come back: not enough
        writeln!(out, "even later").unwrap();
        capture.tick(at(2000));
        let stored = bench.stored();
        assert_eq!(stored.len(), burst + 3);
        assert_eq!(stored[burst - 1].1, format!("line {}", burst - 1));
        let text = |index: usize| stored[index].1.as_str();
        assert_eq!(text(burst), "70 lines (560 bytes) were lost: the instance writes too fast");
        assert_eq!(text(burst + 1), "1 lines (5 bytes) were lost: the instance writes too fast");
        assert_eq!(text(burst + 2), "even later");
    });
}

#[test]
fn full_disk_costs_lines_and_nothing_else() {
    isolated("full_disk_costs_lines_and_nothing_else", |root| {
        let bench = Bench::new(settings(root));
        std::fs::create_dir(store_root(&bench.settings)).unwrap();
        tmpfs(&store_root(&bench.settings), Some(64 << 10), 0o700).unwrap();
        let ballast = store_root(&bench.settings).join("ballast");
        let mut out = bench.open();
        let mut capture = bench.capture();
        bench.apply_all(&mut capture, at(0));
        crate::sys::fs::write_plain(&ballast, &[0; 36 << 10], 0o600).unwrap();
        let mut step = |ms, lines: usize| {
            for n in 0..lines {
                writeln!(out, "{ms} {n} {}", "x".repeat(90)).unwrap();
            }
            capture.tick(at(ms));
        };
        step(1000, 100);
        let kept = bench.stored().len();
        assert_eq!(kept, 100);
        step(2000, 200);
        step(3000, 10); // nothing is tried again before a minute has passed
        assert_eq!(bench.stored().len(), kept);
        std::fs::remove_file(&ballast).unwrap();
        step(62_001, 1);
        let stored = bench.stored();
        assert_eq!(stored.len(), kept + 2);
        assert!(stored[kept].1.starts_with("62001 0"));
        assert!(stored[kept + 1].1.starts_with("210 lines ("), "{:?}", stored[kept + 1]);
    });
}

#[test]
fn stores_are_bounded() {
    let root = tempfile::tempdir().unwrap();
    let settings = LogSettings {
        instance_store_bytes: 300 << 10,
        store_bytes: 1000 << 10,
        ..settings(root.path())
    };
    let mut capture = Capture::new(&settings, &(), at(0));
    let ids: Vec<InstanceId> = (0..6).map(|n| InstanceId::new(&format!("i{n}"))).collect();
    let sizes = |capture: &Capture<'_>| -> Vec<u64> {
        capture.entries.values().map(|entry| entry.segments.bytes() >> 10).collect()
    };
    for id in &ids {
        capture.entry(id);
        for n in 0..25 {
            for _ in 0..16 {
                capture.work.batch.line(6, &[b'x'; 1024]);
            }
            let entry = capture.entries.get_mut(id).unwrap();
            capture.work.write(entry, Kind::Lines, 0, at(n));
            capture.entries.get_mut(id).unwrap().keep_bound(&settings);
        }
    }
    assert!(sizes(&capture).iter().all(|size| (128..=300).contains(size)), "{:?}", sizes(&capture));
    // Two removed ones give all they have, the older one first; then the largest give.
    capture.close(&ids[3], 0, at(100));
    capture.close(&ids[1], 0, at(200));
    capture.make_room();
    let left = sizes(&capture);
    assert_eq!(left[3], 0);
    assert!(left.iter().sum::<u64>() <= 1000);
    capture.entries.get_mut(&ids[1]).unwrap().removed_ms = None;
    capture.settings =
        Box::leak(Box::new(LogSettings { store_bytes: 100 << 10, ..settings.clone() }));
    capture.make_room();
    let left = sizes(&capture);
    // Nobody loses its last segment.
    assert!(left.iter().filter(|size| **size > 0).count() == 4, "{left:?}");
    assert!(left.iter().all(|size| *size <= 128), "{left:?}");
}

#[test]
fn removed_instances_are_kept_for_the_retention() {
    let root = tempfile::tempdir().unwrap();
    let settings = LogSettings { retention: Duration::from_secs(10), ..settings(root.path()) };
    let id = InstanceId::new("i1");
    let open = |capture: &mut Capture<'_>, now| {
        let (ident, version) = (plan("i1").instance.ident.clone(), Arc::from("1"));
        let id = id.clone();
        capture.apply(CaptureCommand::Open { id, ident, version, spool: None, at: now }, now);
    };
    let mut capture = Capture::new(&settings, &(), at(0));
    assert_eq!(capture.pause(at(0)), None); // no instances, no wake-ups
    open(&mut capture, at(0));
    capture.tick_if_due(at(30_000));
    assert_eq!(capture.pause(at(30_000)), None);
    capture.close(&id, 0, at(1000));
    assert!(capture.pause(at(1000)).is_some());
    // A restart of the daemon remembers when it was removed; a new start revives it.
    let mut capture = Capture::new(&settings, &(), at(2000));
    assert_eq!(capture.entries[&id].removed_ms, Some(at(1000).wall_ms));
    open(&mut capture, at(3000));
    capture.sweep(at(100_000));
    assert!(store_dir(&settings, &id).exists());
    capture.close(&id, 0, at(100_000));
    capture.sweep(at(110_000));
    assert!(store_dir(&settings, &id).exists());
    capture.sweep(at(110_001));
    assert!(!store_dir(&settings, &id).exists());
    assert_eq!(capture.pause(at(110_001)), None);
    // What has no identity goes too; our own lines stay.
    for name in ["orphan", OWN_STORE] {
        std::fs::create_dir(store_root(&settings).join(name)).unwrap();
    }
    let mut capture = Capture::new(&settings, &(), at(200_000));
    capture.sweep(at(210_001));
    assert_eq!(ids_below(&store_root(&settings)), [InstanceId::new(OWN_STORE)]);
}

#[test]
fn of_removed_instances_the_newest_are_kept() {
    let root = tempfile::tempdir().unwrap();
    let settings = settings(root.path());
    let mut capture = Capture::new(&settings, &(), at(0));
    let name = |number: usize| format!("i{number:04}");
    for number in 0..MAX_REMOVED + 4 {
        let id = InstanceId::new(&name(number));
        let (ident, version) = (plan("i1").instance.ident.clone(), Arc::from("1"));
        capture.apply(
            CaptureCommand::Open { id: id.clone(), ident, version, spool: None, at: at(0) },
            at(0),
        );
        // The first one is not removed.
        if number > 0 {
            capture.close(&id, 0, at(number as u64));
        }
    }
    let kept = || ids_below(&store_root(&settings)).len();
    assert_eq!(kept(), MAX_REMOVED + 1);
    let gone = |number: usize| !store_dir(&settings, &InstanceId::new(&name(number))).exists();
    assert_eq!([0, 1, 2, 3, 4].map(gone), [false, true, true, true, false]);
    // A store with more than that, as an earlier release may leave one.
    for number in 0..3 {
        std::fs::create_dir(store_root(&settings).join(format!("orphan{number}"))).unwrap();
    }
    Capture::new(&settings, &(), at(1_000_000));
    assert_eq!(kept(), MAX_REMOVED + 1);
}

#[test]
fn pauses_follow_the_traffic() {
    isolated("pauses_follow_the_traffic", |root| {
        let bench = Bench::new(LogSettings { spool_bytes: 1 << 20, ..settings(root) });
        let mut out = bench.open();
        let mut capture = bench.capture();
        bench.apply_all(&mut capture, at(0));
        let mut check = |ms, kilobytes: usize, expect| {
            for _ in 0..kilobytes {
                writeln!(out, "{}", "x".repeat(1023)).unwrap();
            }
            capture.tick_if_due(at(ms));
            assert_eq!(capture.pause(at(ms)), Some(expect), "at {ms}");
        };
        check(0, 1, PAUSE);
        check(59_900, 0, PAUSE);
        check(60_400, 0, PAUSE_QUIET);
        check(62_400, 900, PAUSE_BUSY); // one turn moves a quarter
        check(62_500, 0, PAUSE_BUSY);
    });
}

#[test]
fn starts_that_nobody_drains_share_the_last_file() {
    isolated("starts_that_nobody_drains_share_the_last_file", |root| {
        let bench = Bench::new(settings(root));
        let starts = 2 * usize::try_from(sink::SPOOL_FILES).unwrap();
        for start in 0..starts {
            writeln!(bench.open(), "start {start}").unwrap();
        }
        let files = spool::generations(&bench.spool()).len();
        assert_eq!(files, usize::try_from(sink::SPOOL_FILES).unwrap());
        let mut capture = bench.capture();
        bench.apply_all(&mut capture, at(0));
        capture.apply(bench.close(), at(0));
        let texts: Vec<_> = bench.stored().into_iter().skip(1).map(|(_, text)| text).collect();
        assert_eq!(texts, (0..starts).map(|n| format!("start {n}")).collect::<Vec<_>>());
    });
}

#[test]
fn spool_size_and_owner() {
    isolated("spool_size_and_owner", |root| {
        let check = |configured, ram, expect: u64| {
            let bench = Bench::new(LogSettings { spool_bytes: configured, ..settings(root) });
            let quotas = Quotas { ram_bytes: ram, ..Quotas::default() };
            let mut plan = plan("i1");
            let mut image = ServiceImage::default();
            image.service.quotas = quotas;
            plan.image = Arc::new(image);
            let out = File::from(bench.sinks.open(&plan).unwrap().stdout);
            let known = out.metadata().unwrap();
            assert_eq!((known.uid(), known.mode() & 0o7777), (plan.instance.uid, 0o600));
            let stat = nix::sys::statvfs::statvfs(bench.spool().as_path()).unwrap();
            assert_eq!(stat.blocks() * stat.fragment_size(), expect);
            drop(out);
            let mut capture = bench.capture();
            bench.apply_all(&mut capture, at(0));
            capture.apply(bench.close(), at(0));
            assert!(!bench.spool().exists());
        };
        check(256 << 10, None, 256 << 10);
        check(1, None, 64 << 10);
        check(1 << 40, None, 4 << 20);
        check(256 << 10, Some(1 << 20), 128 << 10);
        check(256 << 10, Some(1000), 64 << 10);
    });
}

#[test]
fn journald_gets_the_stream_when_it_listens() {
    let root = tempfile::tempdir().unwrap();
    let settings = LogSettings { backend: Backend::Journal, ..settings(root.path()) };
    std::fs::create_dir(&settings.journal_dir).unwrap();
    let bench = Bench::new(settings.clone());
    let failure = bench.sinks.open(&plan("i1")).unwrap_err();
    assert!(failure.transient && failure.message.starts_with("cannot connect to journald"));
    let listener = UnixListener::bind(settings.journal_dir.join("stdout")).unwrap();
    for backend in [Backend::Journal, Backend::Auto] {
        let bench = Bench::new(LogSettings { backend, ..settings.clone() });
        writeln!(bench.open(), "hello").unwrap();
        let lines: Vec<String> =
            BufReader::new(listener.accept().unwrap().0).lines().map(Result::unwrap).collect();
        assert_eq!(lines, ["i1", "aos-service@i1.service", "6", "1", "0", "0", "0", "hello"]);
        let opened = bench.inbox.take();
        assert!(matches!(opened[..], [CaptureCommand::Open { spool: None, .. }]), "{opened:?}");
        assert!(bench.sinks.survey().is_empty());
    }
}

#[test]
fn without_journald_auto_takes_the_store() {
    isolated("without_journald_auto_takes_the_store", |root| {
        let bench = Bench::new(LogSettings { backend: Backend::Auto, ..settings(root) });
        writeln!(bench.open(), "hello").unwrap();
        assert_eq!(bench.sinks.survey(), std::slice::from_ref(&bench.id));
        let mut capture = bench.capture();
        bench.apply_all(&mut capture, at(0));
        capture.apply(bench.close(), at(0));
        assert_eq!(bench.stored().last().unwrap().1, "hello");
    });
}

#[test]
fn thread_drains_and_ends_when_told() {
    isolated("thread_drains_and_ends_when_told", |root| {
        let bench = Bench::new(settings(root));
        let mut out = bench.open();
        let processes = RealProcesses::default();
        let (handle, inbox) = intake::inbox().unwrap();
        bench
            .inbox
            .take()
            .into_iter()
            .for_each(|command| assert_eq!(handle.try_send(command), None));
        let sinks = Sinks::new(bench.settings.clone(), handle.clone());
        std::thread::scope(|scope| {
            let settings = &bench.settings;
            let processes = &processes;
            let thread = scope.spawn(move || {
                let (clock, output) = (&SystemClock, None);
                let means = Means { settings, processes, clock, output, position: None };
                intake::run(&means, inbox);
            });
            writeln!(out, "hello").unwrap();
            drop(out);
            sinks.close(&bench.id).unwrap();
            handle.stop();
            thread.join().unwrap();
        });
        assert!(!bench.spool().exists());
        assert_eq!(bench.stored().last(), Some(&(Kind::Lines, "hello".to_owned())));
    });
}

#[test]
fn own_lines_are_stored_and_bounded() {
    let root = tempfile::tempdir().unwrap();
    let settings = LogSettings { instance_store_bytes: 0, ..settings(root.path()) };
    let mut capture = Capture::new(&settings, &(), at(0));
    for n in 0..300 {
        let text = format!("{n} {}", "x".repeat(4000)).into_boxed_str();
        capture.apply(CaptureCommand::Own { priority: 6, text, is_alert: true }, at(n));
    }
    // They are flushed, although no instance runs.
    assert_eq!(capture.pause(at(300)), Some(settings.sync_period - Duration::from_millis(300)));
    capture.tick_if_due(at(30_000));
    assert_eq!(capture.pause(at(30_000)), None);
    let bytes = capture.entries[&InstanceId::new(OWN_STORE)].segments.bytes();
    assert!((SEGMENT_BYTES..=LEAST_SEGMENTS * SEGMENT_BYTES).contains(&bytes), "{bytes}");
}
