//! The whole thread: instances, a real journald or none, restarts of the daemon.

use std::fs::File;
use std::io::Write;
use std::process::{Command, Stdio};
use std::sync::Arc;

use super::*;
use crate::logs::alerts::tests::Collected;
use crate::logs::sink::Sinks;
use crate::logs::testing::{Journald, RealProcesses};
use crate::logs::tests::{isolated, plan, settings};
use crate::model::event::Exit;
use crate::model::id::InstanceId;
use crate::ports::LogSinks;
use crate::sys::testing::{wait_until, wait_within};
use crate::sys::time::SystemClock;

/// Ends the thread also when a test fails.
struct Stop(CaptureHandle);

impl Drop for Stop {
    fn drop(&mut self) {
        self.0.stop();
    }
}

/// One life of the daemon's thread.
fn life(
    settings: &LogSettings,
    output: &Collected,
    position: Option<&str>,
    body: impl FnOnce(&CaptureHandle, &Sinks),
) {
    let processes = RealProcesses::default();
    let (handle, inbox) = inbox().unwrap();
    let sinks = Sinks::new(settings.clone(), handle.clone());
    std::thread::scope(|scope| {
        let processes = &processes;
        let thread = scope.spawn(move || {
            let (clock, output) = (&SystemClock, Some(output as &dyn AlertOutput));
            run(&Means { settings, processes, clock, output, position }, inbox);
        });
        let stop = Stop(handle.clone());
        if uses_journal(settings) && position.is_none() {
            // From here on nothing is missed.
            wait_until("a first position", || !output.positions.lock().unwrap().is_empty());
        }
        body(&handle, &sinks);
        drop(stop);
        thread.join().unwrap();
    });
}

fn open(sinks: &Sinks, id: &str) -> File {
    File::from(sinks.open(&plan(id)).unwrap().stdout)
}

fn wait_for(output: &Collected, text: &str) {
    wait_until(text, || output.texts().iter().any(|found| found == text));
}

/// A process of a container that writes this with `printf`.
fn writes(stdout: File, text: &str) {
    let mut writer = Command::new("sh");
    writer.args(["-c", &format!("printf '{text}'")]).stdout(Stdio::from(stdout));
    assert!(writer.status().unwrap().success());
}

#[test]
fn alerts_from_a_journal() {
    isolated("alerts_from_a_journal", |root| {
        let Some(journald) = Journald::start("alerts_from_a_journal") else { return };
        let mut settings = journald.settings(root);
        settings.alerts.filter = vec!["^ignore".to_owned(), "[".to_owned()];
        let output = Collected::default();
        life(&settings, &output, None, |handle, sinks| {
            writes(open(sinks, "i1"), r"<3>one fails\n<4>a warning\n<2>bad \377 byte\n");
            journald.say_as("cron.service", "<3>ignore this");
            journald.say_as("cron.service", "<2>a disk fails");
            journald.say_as("aos-vis.service", "<3>no sensor");
            // The journal says who wrote it: neither a unit nor a group.
            journald.say("PRIORITY=3\nMESSAGE=of nobody\n");
            wait_for(&output, "service-i1 1.0.0: one fails");
            wait_for(&output, "service-i1 1.0.0: bad \u{fffd} byte");
            wait_for(&output, "system: a disk fails");
            wait_for(&output, "aos-vis: no sensor");
            let exited = CaptureCommand::Exited {
                id: InstanceId::new("i1"),
                exit: Exit::Code(1),
                was_asked: false,
            };
            assert_eq!(handle.try_send(exited), None);
            wait_for(
                &output,
                "service-i1 1.0.0: aos-service@i1.service: Failed with result 'exit-code'.",
            );
            let own = |is_alert, text: &str| CaptureCommand::Own {
                priority: 3,
                text: text.into(),
                is_alert,
            };
            assert_eq!(handle.try_send(own(false, "about alerts")), None);
            assert_eq!(handle.try_send(own(true, "cannot do it")), None);
            wait_for(&output, "aos-servicemanager: cannot do it");
        });
        let said = output.texts();
        assert_eq!(said.len(), 6, "{said:?}");
        // Tools find what PID 1 would have written.
        let about = journald.control(&["-o", "cat", "UNIT=aos-service@i1.service"]);
        assert!(about.starts_with("Starting aos-service@i1.service...\n"), "{about}");
        assert!(about.contains("Main process exited, code=exited, status=1/FAILURE"), "{about}");
        let exits = journald.control(&["-o", "cat", "AOS_EVENT=exit", "AOS_EXIT_CODE=1"]);
        assert_eq!(exits.lines().count(), 2, "{exits}");
    });
}

#[test]
fn the_next_life_goes_on_where_the_last_one_ended() {
    let name = "the_next_life_goes_on_where_the_last_one_ended";
    isolated(name, |root| {
        let Some(journald) = Journald::start(name) else { return };
        let settings = journald.settings(root);
        let mut position: Option<Box<str>> = None;
        let said = |output: &Collected| {
            let mut texts = output.texts();
            texts.retain(|text| text.starts_with("system: "));
            texts
        };
        for life_number in ["one", "two", "three", "four"] {
            let output = Collected::default();
            life(&settings, &output, position.as_deref(), |_, _| {
                if position.is_some() {
                    wait_for(&output, "system: while away");
                }
                journald.say_as("cron.service", &format!("<3>in life {life_number}"));
                wait_for(&output, &format!("system: in life {life_number}"));
            });
            let expect = [
                position.is_some().then(|| "system: while away".to_owned()),
                Some(format!("system: in life {life_number}")),
            ];
            assert_eq!(said(&output), expect.into_iter().flatten().collect::<Vec<_>>());
            position = output.positions.lock().unwrap().last().cloned();
            journald.say_as("cron.service", "<3>while away");
        }
    });
}

/// Longest time to read a storm.
const STORM_LIMIT: Duration = Duration::from_secs(60);

/// What the CM would get of a storm: `write` is the noise, the last line is `the end`.
fn storm(settings: &LogSettings, write: impl FnOnce(File)) -> Vec<String> {
    let output = Collected::default();
    life(settings, &output, None, |_, sinks| {
        write(open(sinks, "i1"));
        writes(open(sinks, "i2"), r"<3>the end\n");
        let end = "service-i2 1.0.0: the end";
        wait_within(STORM_LIMIT, end, || output.texts().iter().any(|text| text == end));
    });
    output.texts()
}

/// 20 000 lines that differ in more than numbers, a line of 1 MiB, and bytes that are no text.
fn noise(mut out: File, settle: impl Fn()) {
    let letters = |n: u32| n.to_string().bytes().map(|b| char::from(b + 49)).collect::<String>();
    for n in 0..20_000 {
        writeln!(out, "<3>error {}", letters(n)).unwrap();
        if n % 1000 == 0 {
            settle();
        }
    }
    settle();
    out.write_all(b"<3>").unwrap();
    for _ in 0..16 {
        out.write_all(&[b'x'; 64 << 10]).unwrap();
        settle();
    }
    out.write_all(b"\n<3>\xff\xfe\x00\x01\x02\n").unwrap();
}

fn check_storm(said: &[String]) {
    assert_eq!(said[0], "service-i1 1.0.0: error a");
    assert_eq!(said[9], "service-i1 1.0.0: error j");
    // Ten at once, then one in six seconds: the test does not take minutes.
    assert!(said.len() < 60, "{}", said.len());
    assert!(said.iter().all(|text| text.len() < 9000));
}

#[test]
fn a_storm_in_the_journal() {
    isolated("a_storm_in_the_journal", |root| {
        let Some(journald) = Journald::start("a_storm_in_the_journal") else { return };
        check_storm(&storm(&journald.settings(root), |out| noise(out, || {})));
    });
}

#[test]
fn a_storm_in_the_store() {
    isolated("a_storm_in_the_store", |root| {
        let settings = LogSettings { spool_bytes: 4 << 20, ..settings(root) };
        let spool = crate::logs::spool_dir(&settings, &InstanceId::new("i1"));
        let settle = || {
            wait_until("the spool is drained", || {
                let stat = nix::sys::statvfs::statvfs(spool.as_path()).unwrap();
                stat.blocks_free() > stat.blocks() / 2
            });
        };
        check_storm(&storm(&settings, |out| noise(out, settle)));
    });
}

#[test]
fn alerts_without_a_journal() {
    isolated("alerts_without_a_journal", |root| {
        let settings = settings(root);
        let output = Collected::default();
        life(&settings, &output, None, |handle, sinks| {
            let mut out = open(sinks, "i1");
            writeln!(out, "<3>one fails\n<4>a warning\nplain").unwrap();
            wait_for(&output, "service-i1 1.0.0: one fails");
            drop(out);
            let send = |command| assert_eq!(handle.try_send(command), None);
            let id = InstanceId::new("i1");
            send(CaptureCommand::Started { id: id.clone(), pid: 7 });
            let exit = Exit::Signal(11);
            send(CaptureCommand::Exited { id: id.clone(), exit, was_asked: true });
            send(CaptureCommand::Exited { id: id.clone(), exit, was_asked: false });
            send(CaptureCommand::GivenUp { id });
            send(CaptureCommand::GivenUp { id: InstanceId::new("unknown") });
            let text = Arc::<str>::from("an own error");
            send(CaptureCommand::Own { priority: 3, text: (&*text).into(), is_alert: true });
            send(CaptureCommand::Own { priority: 4, text: "a warning".into(), is_alert: true });
        });
        let unit = "service-i1 1.0.0: aos-service@i1.service: ";
        assert_eq!(
            output.texts(),
            [
                "service-i1 1.0.0: one fails".to_owned(),
                format!("{unit}Main process exited, code=dumped, status=11/SEGV"),
                format!("{unit}Failed with result 'core-dump'."),
                format!("{unit}Start request repeated too quickly."),
                "service-i1 1.0.0: Failed to start aos-service@i1.service.".to_owned(),
                "aos-servicemanager: an own error".to_owned(),
            ]
        );
        assert!(crate::logs::store_dir(&settings, &InstanceId::new("aos-servicemanager")).exists());
    });
}

#[test]
fn kernel_messages() {
    use crate::logs::kmsg::tests::ring;
    isolated("kernel_messages", |root| {
        let mut settings = settings(root);
        settings.alerts.filter = vec!["^audit".to_owned()];
        let output = Collected::default();
        let (writer, watch) = ring(None);
        let means = Means {
            settings: &settings,
            processes: &RealProcesses::default(),
            clock: &SystemClock,
            output: Some(&output),
            position: None,
        };
        let mut capture = Capture::new(&settings, &output, SystemClock.now());
        let poll = Poll::new().unwrap();
        let mut sources = Sources::open(&means, &capture, poll.registry());
        sources.kernel = Some(watch);
        let mut turn = |sources: &mut Sources<'_>, records: &[&str]| {
            for record in records {
                writer.send(record.as_bytes()).unwrap();
            }
            sources.note(KERNEL);
            assert_eq!(sources.pause(SystemClock.now()), Some(Duration::ZERO));
            sources.turn(&mut capture, poll.registry(), SystemClock.now());
            assert_eq!(sources.pause(SystemClock.now()), None);
        };
        turn(&mut sources, &["3,1,1,-;I/O error on sda", "3,2,1,-;audit: lost", "6,3,1,-;info"]);
        assert_eq!(output.texts(), ["system: I/O error on sda"]);
        let position = output.positions.lock().unwrap().last().cloned().unwrap();
        assert_eq!(&*position, "kmsg=07070707070707070707070707070707:3");
        // Nothing that matters: no new position for the database.
        let before = output.positions.lock().unwrap().len();
        turn(&mut sources, &["6,4,1,-;info"]);
        assert_eq!(output.positions.lock().unwrap().len(), before);
        // Its other end is gone: it is given up, and nothing else.
        drop(writer);
        sources.note(KERNEL);
        sources.turn(&mut capture, poll.registry(), SystemClock.now());
    });
}

#[test]
fn restarts_of_the_daemon_cost_no_line_of_a_journal() {
    let name = "restarts_of_the_daemon_cost_no_line_of_a_journal";
    isolated(name, |root| {
        let Some(journald) = Journald::start(name) else { return };
        let settings = journald.settings(root);
        let mut child = None;
        let mut lives = 0;
        while child.as_mut().is_none_or(|child: &mut std::process::Child| {
            child.try_wait().unwrap().is_none() || lives < 20
        }) {
            let output = Collected::default();
            life(&settings, &output, None, |_, sinks| {
                child.get_or_insert_with(|| {
                    let script = "i=1; while [ $i -le 5000 ]; do echo line $i; i=$((i+1)); done";
                    let mut command = Command::new("sh");
                    command.args(["-c", script]).stdout(Stdio::from(open(sinks, "i1")));
                    command.spawn().unwrap()
                });
            });
            lives += 1;
        }
        assert!(child.unwrap().wait().unwrap().success());
        let lines = || journald.control(&["-o", "cat", "SYSLOG_IDENTIFIER=i1"]);
        wait_until("the last line", || lines().ends_with("line 5000\n"));
        let expect: String = (1..=5000).map(|n| format!("line {n}\n")).collect();
        assert!(lines() == expect, "lines are missing or doubled");
    });
}

#[test]
fn messages_of_a_syslog_daemon() {
    let root = tempfile::tempdir().unwrap();
    let file = root.path().join("messages");
    let append = |text: &str| {
        let mut out = File::options().append(true).create(true).open(&file).unwrap();
        writeln!(out, "Nov 25 10:00:00 host {text}").unwrap();
    };
    append("daemon.err cron[1]: before");
    let files = Some(vec![file.clone()]);
    let settings = LogSettings { system_log_files: files, ..settings(root.path()) };
    let output = Collected::default();
    let means = Means {
        settings: &settings,
        processes: &RealProcesses::default(),
        clock: &SystemClock,
        output: Some(&output),
        position: None,
    };
    let mut capture = Capture::new(&settings, &output, SystemClock.now());
    let mut poll = Poll::new().unwrap();
    let mut sources = Sources::open(&means, &capture, poll.registry());
    append("daemon.err cron[1]: no room");
    append("daemon.warn cron[1]: a warning");
    append("daemon.err aos_servicemanager[7]: our own");
    append("user.crit aos_vis[8]: no sensor");
    append("kern.err kernel: I/O error");
    append("cron[1]: without a level");
    let mut events = Events::with_capacity(TOKENS);
    wait_until("an announcement", || {
        poll.poll(&mut events, Some(Duration::ZERO)).unwrap();
        events.iter().any(|event| event.token() == SYSLOG)
    });
    let now = SystemClock.now();
    sources.note(SYSLOG);
    assert_eq!(sources.pause(now), Some(Duration::ZERO));
    sources.turn(&mut capture, poll.registry(), now);
    assert_eq!(sources.pause(now), None);
    let expect = ["system: no room", "aos-vis: no sensor", "system: I/O error"];
    assert_eq!(output.texts(), expect);
}

#[test]
fn a_full_inbox_gives_back() {
    let (handle, inbox) = inbox().unwrap();
    let own = || CaptureCommand::Own { priority: 3, text: "x".into(), is_alert: true };
    for _ in 0..INBOX {
        assert_eq!(handle.try_send(own()), None);
    }
    assert_eq!(handle.try_send(own()), Some(own()));
    assert!(!handle.send_timeout(own(), Duration::from_millis(1)));
    assert_eq!(inbox.take().len(), INBOX);
    drop(inbox);
    assert_eq!(handle.try_send(own()), Some(own()));
}
