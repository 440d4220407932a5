//! Requests over journals: what journalctl is asked, and what it says, made up and real.

use super::*;
use crate::logs::testing::{Journald, RealProcesses};

/// The texts of the lines of an answer.
fn texts_of(
    settings: &LogSettings,
    processes: &RealProcesses,
    kind: LogKind,
    till_ms: Option<i64>,
) -> Vec<String> {
    let desk = Desk { settings, processes, now: now() };
    let request = LogRequest { log_id: "log".to_owned(), kind, from_ms: None, till_ms };
    let mut text = String::new();
    send("log", desk.answer(&request), |part| {
        text.push_str(&decompressed(&part.data));
        true
    });
    let message = |line: &str| line.split_once(" +0000 UTC ").unwrap().1.to_owned();
    text.lines().map(message).collect()
}

#[test]
fn journal() {
    let root = tempfile::tempdir().unwrap();
    let settings = LogSettings {
        backend: Backend::Journal,
        journal_dir: root.path().join("journal.test"),
        ..settings(root.path())
    };
    Store { settings: &settings }.instance("a");
    let export = b"__REALTIME_TIMESTAMP=1700000000123456\nMESSAGE=kernel says\n\n\
        __REALTIME_TIMESTAMP=1700000001000000\n_SYSTEMD_UNIT=x.service\nMESSAGE=x says\n\n";
    let processes = FakeProcesses::new(export, Exit::Code(0));
    let parts = answers(&settings, &processes, &request(LogKind::System, Some(0), Some(999)));
    // The unit of kernel messages is empty. What the child prints beyond the range is left out.
    assert_eq!(whole(&parts), "2023-11-14 22:13:20.123456 +0000 UTC  kernel says \n");
    let argv = processes.argv.lock().unwrap().join(" ");
    assert!(argv.starts_with("journalctl --output=export"), "{argv}");
    assert!(argv.contains(" --namespace=test "), "{argv}");
    assert!(argv.contains(" --since=@1700000000.000000 "), "{argv}");
    assert!(argv.ends_with(" --until=@1700000000.999999"), "{argv}");

    let kind = LogKind::Instance(filter(Some("service-a"), None, None));
    let parts = answers(&settings, &processes, &request(kind, None, None));
    assert!(whole(&parts).ends_with("2023-11-14 22:13:21 +0000 UTC x says \n"));
    let argv = processes.argv.lock().unwrap().join(" ");
    let alternatives = "_SYSTEMD_UNIT=aos-service@a.service \
        + _SYSTEMD_CGROUP=/aos.slice/aos-service@a.service + _SYSTEMD_CGROUP=/aos.slice/a \
        + _TRANSPORT=stdout SYSLOG_IDENTIFIER=a";
    assert!(argv.ends_with(alternatives), "{argv}");

    let parts = answers(&settings, &no_processes(), &request(LogKind::System, None, None));
    assert_eq!(only(&parts), (LogStatus::Error, 0, 0, "journalctl failed: exited with code 127"));
}

#[test]
fn real_journal() {
    isolated("real_journal", |root| {
        let Some(journald) = Journald::start("real_journal") else { return };
        let settings = journald.settings(root);
        let processes = RealProcesses::default();
        let desk = Desk { settings: &settings, processes: &processes, now: now() };
        let (handle, _inbox) = intake::inbox().unwrap();
        let sinks = Sinks::new(settings.clone(), handle);
        for id in ["a", "b"] {
            Store { settings: &settings }.instance(id);
            // A process for each: journald tells writers apart by their pids.
            let script = format!("printf '<3>{id} fails\\nbinary \\001 of {id}\\n'");
            let mut writer = std::process::Command::new("sh");
            writer.args(["-c", &script]).stdout(sinks.open(&plan(id)).unwrap().stdout);
            assert!(writer.status().unwrap().success());
        }
        let log = |kind: LogKind| {
            let mut text = String::new();
            send("log", desk.answer(&request(kind, Some(0), None)), |part| {
                if part.status == LogStatus::Ok {
                    text.push_str(&decompressed(&part.data));
                } else {
                    assert_eq!(part.status, LogStatus::Empty, "{:?}", part.error);
                }
                true
            });
            text
        };
        let of = |service: &str| LogKind::Instance(filter(Some(service), None, None));
        wait_until("the last line is in the journal", || log(of("service-b")).contains("binary"));
        let found = log(of("service-a"));
        let lines: Vec<_> =
            found.lines().map(|line| line.split_once(" +0000 UTC ").unwrap().1).collect();
        assert_eq!(lines, ["a fails ", "binary \x01 of a "]);
        assert!(log(LogKind::System).contains("b fails"));
        drop(journald);
    });
}

#[test]
fn crash_of_an_instance_that_writes_to_a_journal() {
    let name = "crash_of_an_instance_that_writes_to_a_journal";
    isolated(name, |root| {
        let Some(journald) = Journald::start(name) else { return };
        let settings = journald.settings(root);
        let processes = RealProcesses::default();
        let (handle, inbox) = intake::inbox().unwrap();
        let sinks = Sinks::new(settings.clone(), handle);
        let mut capture = Capture::new(&settings, &(), SystemClock.now());
        // A life of an instance: what it writes, then how it ends.
        let mut life = |id: &str, text: &str, exit: Exit| {
            let mut writer = std::process::Command::new("sh");
            writer.args(["-c", &format!("echo {text} begins; echo {text} ends")]);
            writer.stdout(sinks.open(&plan(id)).unwrap().stdout);
            inbox.take().into_iter().for_each(|command| capture.apply(command, SystemClock.now()));
            assert!(writer.status().unwrap().success());
            let last = format!("{text} ends");
            wait_until(&last, || journald.control(&["-o", "cat"]).contains(&last));
            let id = InstanceId::new(id);
            let exited = CaptureCommand::Exited { id, exit, was_asked: false };
            capture.apply(exited, SystemClock.now());
        };
        let texts = |service: Option<&str>, till_ms: Option<i64>| {
            let kind = LogKind::Crash(filter(service, None, None));
            texts_of(&settings, &processes, kind, till_ms)
        };
        life("a", "first", Exit::Code(1));
        let between = SystemClock.now().wall_ms;
        life("a", "second", Exit::Signal(9));
        life("b", "other", Exit::Code(3));
        life("a", "clean", Exit::Code(0));
        let second = ["second begins ", "second ends ", "killed by signal 9 "];
        assert_eq!(texts(Some("service-a"), None), second);
        assert_eq!(
            texts(Some("service-a"), Some(between)),
            ["first begins ", "first ends ", "exited with code 1 "]
        );
        let both = texts(None, None);
        let unit = "aos-service@b.service ";
        assert!(both[..3].iter().zip(second).all(|(line, text)| line.ends_with(text)), "{both:?}");
        assert_eq!(
            both[3..],
            ["other begins ", "other ends ", "exited with code 3 "].map(|l| format!("{unit}{l}"))
        );
    });
}

/// The id that the kernel gives to a boot.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

#[test]
fn crashes_in_a_journal_with_two_boots() {
    let name = "crashes_in_a_journal_with_two_boots";
    isolated(name, |root| {
        let Some(mut journald) = Journald::start(name) else { return };
        let settings = journald.settings(root);
        let processes = RealProcesses::default();
        let life = |journald: &Journald, text: &str, code: i32| {
            let (handle, inbox) = intake::inbox().unwrap();
            let sinks = Sinks::new(settings.clone(), handle);
            let mut capture = Capture::new(&settings, &(), SystemClock.now());
            let mut writer = std::process::Command::new("echo");
            writer.arg(text).stdout(sinks.open(&plan("a")).unwrap().stdout);
            inbox.take().into_iter().for_each(|command| capture.apply(command, SystemClock.now()));
            assert!(writer.status().unwrap().success());
            wait_until(text, || journald.control(&["-o", "cat"]).contains(text));
            let (id, exit) = (InstanceId::new("a"), Exit::Code(code));
            let exited = CaptureCommand::Exited { id, exit, was_asked: false };
            capture.apply(exited, SystemClock.now());
            capture.finish(SystemClock.now());
        };
        life(&journald, "in the first boot", 1);
        let between = SystemClock.now().wall_ms;
        journald.stop();
        let boot = Path::new("/run/boot_id");
        write_plain(boot, b"01234567-89ab-4def-8123-456789abcdef\n", 0o444).unwrap();
        let bind = nix::mount::MsFlags::MS_BIND;
        nix::mount::mount(Some(boot), BOOT_ID, None::<&str>, bind, None::<&str>).unwrap();
        journald.restart();
        life(&journald, "in the second boot", 3);
        let boots = journald.control(&["-o", "export", "--output-fields=MESSAGE"]);
        assert!(boots.contains("_BOOT_ID=0123456789ab4def8123456789abcdef"), "{boots}");

        let texts =
            |kind: LogKind, till_ms: Option<i64>| texts_of(&settings, &processes, kind, till_ms);
        let crash = || LogKind::Crash(filter(Some("service-a"), None, None));
        assert_eq!(texts(crash(), None), ["in the second boot ", "exited with code 3 "]);
        assert_eq!(texts(crash(), Some(between)), ["in the first boot ", "exited with code 1 "]);
        let all = texts(LogKind::Instance(filter(Some("service-a"), None, None)), None);
        assert_eq!(all, ["in the first boot ", "in the second boot "]);
    });
}

#[test]
fn unusual_ranges_of_a_journal() {
    isolated("unusual_ranges_of_a_journal", |root| {
        let Some(journald) = Journald::start("unusual_ranges_of_a_journal") else { return };
        let settings = journald.settings(root);
        let processes = RealProcesses::default();
        journald.say("MESSAGE=text\nPRIORITY=6\n");
        wait_until("an entry", || journald.control(&["-o", "cat"]).contains("text"));
        let now_ms = SystemClock.now().wall_ms;
        let desk = Desk { settings: &settings, processes: &processes, now: now() };
        let check = |from_ms: Option<i64>, till_ms: Option<i64>, expect: Result<(), LogStatus>| {
            let kind = LogKind::System;
            let request = LogRequest { log_id: "log".to_owned(), kind, from_ms, till_ms };
            let mut found = Vec::new();
            send("log", desk.answer(&request), |part| {
                found.push(part);
                true
            });
            match expect {
                Ok(()) => assert!(whole(&found).contains(" text \n"), "{from_ms:?} {till_ms:?}"),
                Err(status) => {
                    assert_eq!(only(&found).0, status, "{from_ms:?} {till_ms:?} {found:?}");
                }
            }
        };
        check(None, None, Ok(()));
        check(Some(i64::MIN), Some(i64::MAX), Ok(()));
        check(Some(now_ms - 60_000), Some(now_ms + 60_000), Ok(()));
        check(Some(now_ms + 60_000), Some(now_ms - 60_000), Err(LogStatus::Empty));
        check(Some(now_ms + 3_600_000), None, Err(LogStatus::Empty));
        check(Some(i64::MAX), None, Err(LogStatus::Empty));
        check(None, Some(0), Err(LogStatus::Empty));
        check(None, Some(i64::MIN), Err(LogStatus::Empty));
        // Its files are gone; journald still runs.
        journald.control(&["--rotate"]);
        std::fs::remove_dir_all("/run/log/journal").unwrap();
        check(None, None, Err(LogStatus::Empty));
    });
}
