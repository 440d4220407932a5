//! Requests over stores that the capture side has written and system log files; those over
//! journals are in `journal`.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::Mutex;

use crossbeam::channel::bounded;

use super::*;
use crate::calendar;
use crate::logs::Backend;
use crate::logs::archive::tests::text as decompressed;
use crate::logs::capture::{Capture, CaptureCommand};
use crate::logs::intake;
use crate::logs::record::{Batch, Position};
use crate::logs::segment::Segments;
use crate::logs::sink::Sinks;
use crate::logs::tests::{isolated, plan, settings};
use crate::model::event::Exit;
use crate::model::failure::Failure;
use crate::ports::{Command, CommandEnd, LogSinks, Watch};
use crate::sys::fs::write_plain;
use crate::sys::testing::wait_until;
use crate::sys::time::SystemClock;

mod journal;

const START_MS: i64 = 1_700_000_000_000; // 2023-11-14 22:13:20

/// Stands for the process manager: answers a command with prepared output.
struct FakeProcesses {
    output: Vec<u8>,
    end: Exit,
    argv: Mutex<Vec<String>>,
}

impl FakeProcesses {
    fn new(output: &[u8], end: Exit) -> Self {
        Self { output: output.to_vec(), end, argv: Mutex::new(Vec::new()) }
    }
}

impl Processes for FakeProcesses {
    fn run(&self, command: Command) -> Result<CommandEnd, Failure> {
        let argv = command.argv.iter().map(|word| word.to_str().unwrap().to_owned());
        *self.argv.lock().unwrap() = argv.collect();
        File::from(command.stdout.unwrap()).write_all(&self.output).unwrap();
        Ok(CommandEnd { exit: self.end, timed_out: false })
    }

    fn start(&self, _: Command) -> Result<(), Failure> {
        Err(Failure::text("not here"))
    }

    fn watch(&self, _: Watch) -> Result<(), Failure> {
        Err(Failure::text("not here"))
    }
}

fn now() -> Now {
    Now { wall_ms: START_MS, ..Now::default() }
}

fn no_processes() -> FakeProcesses {
    FakeProcesses::new(b"", Exit::Code(127))
}

/// A store that is filled record by record.
struct Store<'a> {
    settings: &'a LogSettings,
}

impl Store<'_> {
    fn instance(&self, id: &str) -> &Self {
        let dir = store_dir(self.settings, &InstanceId::new(id));
        StoredIdent::new(&plan(id).instance.ident, "1.0.0").write(&dir).unwrap();
        self
    }

    /// One record with one line, at this many milliseconds after `START_MS`, in this boot.
    fn record(&self, id: &str, kind: Kind, flags: u8, (boot, ms): (u8, i64), text: &str) -> &Self {
        let dir = store_dir(self.settings, &InstanceId::new(id));
        let mono_us = ms.unsigned_abs() * 1000;
        let stamp = Stamp { boot: [boot; 16], real_us: (START_MS + ms) * 1000, mono_us };
        let mut batch = Batch::new();
        batch.line(6, text.as_bytes());
        batch
            .seal(kind, flags, stamp, Position::default(), |record| {
                Segments::find(&dir).append(stamp, record)
            })
            .unwrap();
        self
    }

    fn line(&self, id: &str, ms: i64, text: &str) -> &Self {
        self.record(id, Kind::Lines, 0, (1, ms), text)
    }
}

fn filter(service: Option<&str>, subject: Option<&str>, instance: Option<u64>) -> InstanceFilter {
    let text = |part: Option<&str>| part.map(str::to_owned);
    InstanceFilter { service_id: text(service), subject_id: text(subject), instance }
}

fn request(kind: LogKind, from_ms: Option<i64>, till_ms: Option<i64>) -> LogRequest {
    let at = |ms: Option<i64>| ms.map(|ms| START_MS + ms);
    LogRequest { log_id: "log".to_owned(), kind, from_ms: at(from_ms), till_ms: at(till_ms) }
}

/// All messages that answer a request.
fn answers(
    settings: &LogSettings,
    processes: &FakeProcesses,
    request: &LogRequest,
) -> Vec<LogPart> {
    let desk = Desk { settings, processes, now: now() };
    let mut found = Vec::new();
    send(&request.log_id, desk.answer(request), |part| {
        assert_eq!(part.log_id, request.log_id);
        found.push(part);
        true
    });
    found
}

/// The text of an answer that has parts.
#[track_caller]
fn whole(parts: &[LogPart]) -> String {
    let count = u64::try_from(parts.len()).unwrap();
    parts
        .iter()
        .zip(1..)
        .map(|(part, number)| {
            assert_eq!((part.part_count, part.part), (count, number));
            assert_eq!((part.status, &part.error), (LogStatus::Ok, &None));
            decompressed(&part.data)
        })
        .collect()
}

/// Status, numbers and error text of an answer without parts.
#[track_caller]
fn only(parts: &[LogPart]) -> (LogStatus, u64, u64, &str) {
    let [part] = parts else { panic!("{} messages", parts.len()) };
    assert!(part.data.is_empty());
    let message = part.error.as_ref().map_or("", |error| error.message.as_str());
    (part.status, part.part_count, part.part, message)
}

#[test]
fn instance_log_of_one_and_of_several() {
    let root = tempfile::tempdir().unwrap();
    let settings = settings(root.path());
    let store = Store { settings: &settings };
    store.instance("a").record("a", Kind::Started, 0, (1, 0), "started");
    store.line("a", 1, "one").line("a", 20, "three \u{fffd}");
    store.record("a", Kind::Gap, 0, (1, 30), "output was lost: reason");
    store.record("a", Kind::Exited, FAILURE, (1, 40), "exited with code 1");
    store.instance("b").line("b", 10, "two");
    let log = |service| {
        let kind = LogKind::Instance(filter(service, None, None));
        whole(&answers(&settings, &no_processes(), &request(kind, None, None)))
    };
    assert_eq!(
        log(Some("service-a")),
        "2023-11-14 22:13:20.001 +0000 UTC one \n\
         2023-11-14 22:13:20.02 +0000 UTC three \u{fffd} \n\
         2023-11-14 22:13:20.03 +0000 UTC output was lost: reason \n"
    );
    assert_eq!(
        log(None),
        "2023-11-14 22:13:20.001 +0000 UTC aos-service@a.service one \n\
         2023-11-14 22:13:20.01 +0000 UTC aos-service@b.service two \n\
         2023-11-14 22:13:20.02 +0000 UTC aos-service@a.service three \u{fffd} \n\
         2023-11-14 22:13:20.03 +0000 UTC aos-service@a.service output was lost: reason \n"
    );
}

#[test]
fn ranges() {
    let root = tempfile::tempdir().unwrap();
    let settings = settings(root.path());
    let store = Store { settings: &settings };
    // The clock was set back once: order is that of storage, each line is looked at.
    store.instance("a");
    for (ms, text) in [(100, "a"), (200, "b"), (300, "c"), (150, "d"), (250, "e")] {
        store.line("a", ms, text);
    }
    let check = |from, till, expect: &str| {
        let kind = LogKind::Instance(filter(Some("service-a"), None, None));
        let parts = answers(&settings, &no_processes(), &request(kind, from, till));
        if expect.is_empty() {
            assert_eq!(only(&parts), (LogStatus::Empty, 1, 1, ""), "{from:?} {till:?}");
        } else {
            let found: String =
                whole(&parts).lines().map(|line| line.trim_end().chars().last().unwrap()).collect();
            assert_eq!(found, expect, "{from:?} {till:?}");
        }
    };
    check(None, None, "abcde");
    check(Some(200), None, "bce");
    check(None, Some(200), "abd"); // an entry at the end of the range belongs to it
    check(Some(150), Some(250), "bde");
    check(Some(300), Some(100), ""); // reversed
    check(Some(201), Some(249), "");
    check(Some(10_000), None, ""); // in the future
    check(Some(i64::MIN / 2), Some(i64::MAX / 2), "abcde");
}

#[test]
fn filters() {
    let root = tempfile::tempdir().unwrap();
    let settings = settings(root.path());
    let store = Store { settings: &settings };
    store.instance("a").line("a", 0, "from a");
    store.instance("quo\"te").line("quo\"te", 1, "from quote");
    store.instance("silent");
    // A directory without identity belongs to nobody.
    store.line("nobody", 0, "never shown");
    let check = |filter: InstanceFilter, expect: Result<&[&str], LogStatus>| {
        let kind = LogKind::Instance(filter.clone());
        let parts = answers(&settings, &no_processes(), &request(kind, None, None));
        match expect {
            Ok(texts) => {
                let found = whole(&parts);
                assert_eq!(found.lines().count(), texts.len(), "{filter:?}");
                assert!(
                    found.lines().zip(texts).all(|(line, text)| line.contains(text)),
                    "{found}"
                );
            }
            Err(status) => assert_eq!(only(&parts).0, status, "{filter:?}"),
        }
    };
    check(filter(None, None, None), Ok(&["from a", "from quote"]));
    check(filter(Some("service-a"), Some("subject"), Some(0)), Ok(&["from a"]));
    check(filter(Some("service-quo\"te"), None, None), Ok(&["from quote"]));
    check(filter(Some("service-silent"), None, None), Err(LogStatus::Empty));
    check(filter(Some("service-a"), Some("other"), None), Err(LogStatus::Absent));
    check(filter(Some("service-a"), None, Some(1)), Err(LogStatus::Absent));
    check(filter(Some("service-nobody"), None, None), Err(LogStatus::Absent));
    let kind = LogKind::Instance(filter(Some("unknown"), None, None));
    let parts = answers(&settings, &no_processes(), &request(kind, None, None));
    assert_eq!(only(&parts), (LogStatus::Absent, 1, 1, "no service instance found"));
}

#[test]
fn parts_are_numbered_and_bounded() {
    let root = tempfile::tempdir().unwrap();
    let settings = LogSettings { max_part_bytes: 1024, max_part_count: 5, ..settings(root.path()) };
    let store = Store { settings: &settings };
    store.instance("a");
    let log = || {
        let kind = LogKind::Instance(filter(Some("service-a"), None, None));
        whole(&answers(&settings, &no_processes(), &request(kind, None, None)))
    };
    for n in 1..=60 {
        store.line("a", n, &format!("line {n} of 60"));
    }
    let all = log();
    assert_eq!(all.lines().count(), 60);
    assert!(all.ends_with("line 60 of 60 \n"));
    for n in 1..=200 {
        store.line("a", 60 + n, &format!("line {n} of 200"));
    }
    let newest = log();
    assert!(newest.starts_with('['), "{newest}");
    assert!(newest.ends_with("line 200 of 200 \n"));
    assert!((4500..6000).contains(&newest.len()), "{}", newest.len());
}

/// An answer as the Go service manager 8.0.1 gave it: the text of the part, and how its gzip stream
/// began.
#[test]
fn recorded_answer_is_reproduced() {
    let expect = "2026-11-22 11:53:18.476268 +0000 UTC about to die \n\
        2026-11-22 11:53:18.47667 +0000 UTC fatal: cannot go on \n";
    let root = tempfile::tempdir().unwrap();
    let settings = settings(root.path());
    let mut made = Text::new(&settings, Range::default());
    let second = calendar::parse("2026-11-22T11:53:18Z").unwrap() * 1000;
    made.line(second + 476_268, None, b"about to die").unwrap();
    made.line(second + 476_670, None, b"fatal: cannot go on").unwrap();
    let Ok(Answer::Parts(mut parts)) = made.finish(None) else { panic!("no parts") };
    let data = parts.next().unwrap().unwrap();
    assert_eq!(decompressed(&data), expect);
    assert_eq!(data[..10], [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 2, 0xff]);
}

#[test]
fn crash_windows() {
    let root = tempfile::tempdir().unwrap();
    let settings = settings(root.path());
    let store = Store { settings: &settings };
    store.instance("a");
    let life = |boot, from: i64, name: &str, flags| {
        store.record("a", Kind::Started, 0, (boot, from), "started");
        store.record("a", Kind::Lines, 0, (boot, from + 1), &format!("{name} begins"));
        store.record("a", Kind::Exited, flags, (boot, from + 5), &format!("{name} ends"));
    };
    life(1, 100, "first", FAILURE);
    life(1, 200, "second", FAILURE);
    life(1, 300, "clean", 0);
    // After a reboot the monotonic clock begins anew; the exit has no start of its own boot.
    store.record("a", Kind::Lines, 0, (2, 400), "rebooted");
    store.record("a", Kind::Exited, FAILURE, (2, 405), "lost start");
    let check = |from, till, expect: &[&str]| {
        let kind = LogKind::Crash(filter(Some("service-a"), None, None));
        let parts = answers(&settings, &no_processes(), &request(kind, from, till));
        if expect.is_empty() {
            assert_eq!(only(&parts), (LogStatus::Empty, 1, 1, "no instance crash found"));
        } else {
            let found = whole(&parts);
            let texts: Vec<_> =
                found.lines().map(|line| line.split_once(" UTC ").unwrap().1.trim_end()).collect();
            assert_eq!(texts, expect, "{from:?} {till:?}");
        }
    };
    check(None, None, &["rebooted", "lost start"]);
    check(None, Some(399), &["second begins", "second ends"]);
    check(None, Some(204), &["first begins", "first ends"]);
    check(Some(205), Some(399), &[]); // a crash at the beginning of the range is outside
    check(Some(204), Some(399), &["second begins", "second ends"]);
    check(None, Some(50), &[]);

    store.instance("b").record("b", Kind::Started, 0, (1, 1), "started");
    store.record("b", Kind::Exited, FAILURE, (1, 2), "b ends");
    let kind = LogKind::Crash(filter(None, None, None));
    let parts = answers(&settings, &no_processes(), &request(kind, None, None));
    let found = whole(&parts);
    let units: Vec<_> = found.lines().map(|line| line.split(' ').nth(4).unwrap()).collect();
    assert_eq!(units, ["aos-service@a.service", "aos-service@a.service", "aos-service@b.service"]);
    let kind = LogKind::Crash(filter(Some("unknown"), None, None));
    let parts = answers(&settings, &no_processes(), &request(kind, None, None));
    assert_eq!(only(&parts).0, LogStatus::Absent);
}

/// Status, numbers and error of every situation of which there is something to say.
#[test]
fn statuses() {
    let root = tempfile::tempdir().unwrap();
    let file = root.path().join("messages");
    write_plain(&file, b"Nov 14 22:13:19 host cron[1]: early\n", 0o600).unwrap();
    let no_journal = LogSettings { system_log_files: Some(vec![file]), ..settings(root.path()) };
    Store { settings: &no_journal }.instance("a").line("a", 0, "text").record(
        "a",
        Kind::Exited,
        0,
        (1, 1),
        "exited with code 0",
    );
    let other = tempfile::tempdir().unwrap();
    // A journal that cannot be read.
    let broken = LogSettings { backend: Backend::Journal, ..settings(other.path()) };
    Store { settings: &broken }.instance("a");
    let of = |service| filter(Some(service), None, None);
    let check = |settings: &LogSettings, kind: LogKind, from_ms, expect| {
        let parts = answers(settings, &no_processes(), &request(kind.clone(), from_ms, None));
        assert_eq!(only(&parts), expect, "{kind:?} {from_ms:?}");
    };
    let parts = answers(
        &no_journal,
        &no_processes(),
        &request(LogKind::Instance(of("service-a")), None, None),
    );
    assert!(whole(&parts).ends_with(" text \n"));
    let late = Some(1000);
    let no_crash = "no instance crash found";
    let absent = (LogStatus::Absent, 1, 1, "no service instance found");
    check(&no_journal, LogKind::System, late, (LogStatus::Empty, 1, 1, ""));
    check(&no_journal, LogKind::Instance(of("service-a")), late, (LogStatus::Empty, 1, 1, ""));
    check(&no_journal, LogKind::Crash(of("service-a")), None, (LogStatus::Empty, 1, 1, no_crash));
    check(&no_journal, LogKind::Instance(of("unknown")), None, absent);
    check(&no_journal, LogKind::Crash(of("unknown")), None, absent);
    let failed = (LogStatus::Error, 0, 0, "journalctl failed: exited with code 127");
    check(&broken, LogKind::System, None, failed);
    check(&broken, LogKind::Instance(of("service-a")), None, failed);
    check(&broken, LogKind::Instance(of("unknown")), None, absent);
    check(&broken, LogKind::Crash(of("unknown")), None, absent);
}

#[test]
fn system_log() {
    let root = tempfile::tempdir().unwrap();
    let file = root.path().join("messages");
    let settings =
        LogSettings { system_log_files: Some(vec![file.clone()]), ..settings(root.path()) };
    let log =
        |from, till| answers(&settings, &no_processes(), &request(LogKind::System, from, till));
    write_plain(
        &file,
        b"Nov 14 22:13:19 host kernel: early\nNov 14 22:13:21 host cron[1]: late\n",
        0o600,
    )
    .unwrap();
    assert_eq!(
        whole(&log(None, None)),
        "2023-11-14 22:13:19 +0000 UTC kernel early \n2023-11-14 22:13:21 +0000 UTC cron late \n"
    );
    assert_eq!(whole(&log(Some(0), None)), "2023-11-14 22:13:21 +0000 UTC cron late \n");
    assert_eq!(only(&log(Some(5000), None)), (LogStatus::Empty, 1, 1, ""));
    // Our own lines stand between them.
    Store { settings: &settings }.line("aos-servicemanager", 0, "own");
    assert_eq!(
        whole(&log(None, None)),
        "2023-11-14 22:13:19 +0000 UTC kernel early \n\
         2023-11-14 22:13:20 +0000 UTC aos-servicemanager own \n\
         2023-11-14 22:13:21 +0000 UTC cron late \n"
    );
    // A file that exists and cannot be read is not passed over in silence.
    std::fs::remove_file(&file).unwrap();
    std::fs::create_dir(&file).unwrap();
    let parts = log(None, None);
    let (status, count, _, message) = only(&parts);
    assert_eq!((status, count), (LogStatus::Error, 0));
    assert!(message.starts_with("cannot read "), "{message}");
}

#[test]
fn times_as_go_prints_them() {
    let check = |real_us, expect| assert_eq!(go_time(real_us), expect);
    check(0, "1970-01-01 00:00:00 +0000 UTC");
    check(1_709_294_400_123_456, "2024-03-01 12:00:00.123456 +0000 UTC");
    check(1_709_294_400_100_000, "2024-03-01 12:00:00.1 +0000 UTC");
    check(1_709_294_400_000_001, "2024-03-01 12:00:00.000001 +0000 UTC");
    check(-1, "1969-12-31 23:59:59.999999 +0000 UTC");
}

/// Takes `room` parts, then the stream is gone. There are no other streams but that of session 1.
struct Stream {
    parts: crossbeam::channel::Sender<(Session, LogPart)>,
    room: Mutex<usize>,
}

impl LogOutput for Stream {
    fn is_open(&self, session: Session) -> bool {
        session == Session(1) && *self.room.lock().unwrap() > 0
    }

    fn part(&self, session: Session, part: LogPart) -> bool {
        let mut room = self.room.lock().unwrap();
        if *room == 0 {
            return false;
        }
        *room -= 1;
        self.parts.send((session, part)).unwrap();
        true
    }
}

#[test]
fn thread_answers_in_order_and_drops_what_nobody_wants() {
    let root = tempfile::tempdir().unwrap();
    let settings = LogSettings { max_part_bytes: 1, ..settings(root.path()) };
    let store = Store { settings: &settings };
    store.instance("a").line("a", 1, "one").line("a", 2, "two").line("a", 3, "three");
    let named = |log_id: &str, service: &str| LogCommand::Request {
        session: Session(1),
        request: LogRequest {
            log_id: log_id.to_owned(),
            ..request(LogKind::Instance(filter(Some(service), None, None)), None, None)
        },
    };
    let run_with = |room, commands: Vec<LogCommand>| {
        let (sender, inbox) = bounded(INBOX);
        let (parts, seen) = bounded(64);
        for command in commands {
            sender.send(command).unwrap();
        }
        drop(sender);
        run(
            &settings,
            &inbox,
            &no_processes(),
            &SystemClock,
            &Stream { parts, room: Mutex::new(room) },
        );
        seen.iter().map(|(_, part)| (part.log_id, part.part, part.part_count)).collect::<Vec<_>>()
    };
    let part = |id: &str, part, count| (id.to_owned(), part, count);
    let requests = || vec![named("x", "service-a"), named("y", "unknown"), LogCommand::Stop];
    assert_eq!(
        run_with(99, requests()),
        [part("x", 1, 3), part("x", 2, 3), part("x", 3, 3), part("y", 1, 1)]
    );
    // The stream ends after two parts: the third is not even offered again.
    assert_eq!(run_with(2, requests()), [part("x", 1, 3), part("x", 2, 3)]);
    // A repetition that came while the request was answered is ignored.
    let twice = vec![named("y", "unknown"), named("y", "unknown"), named("z", "unknown")];
    assert_eq!(run_with(99, twice), [part("y", 1, 1), part("z", 1, 1)]);
    // Nobody works for a stream that has ended.
    let mut ended = named("x", "service-a");
    let LogCommand::Request { session, .. } = &mut ended else { panic!("a request") };
    *session = Session(0);
    assert_eq!(run_with(99, vec![ended, named("y", "unknown")]), [part("y", 1, 1)]);
}
