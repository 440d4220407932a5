//! Logs and alerts of log lines as the CM gets them, with a real journald and without one.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use aos_servicemanager::sys::fs::write_plain;

use crate::common::need::{self, require};
use crate::common::program::{self, Program};
use crate::common::unit::{Setup, Unit};
use crate::common::wait_until;

/// Ends at once, so that the start limit comes soon.
pub(super) const CRASHES: &str = "echo it begins; echo \"<3>cannot go on\"; exit 3";

/// A journald of the unit's own namespaces.
pub(super) struct Journald(Program);

pub(super) const SOCKETS: &str = "/run/systemd/journal.aosit";

impl Journald {
    pub(super) fn start(unit: &Unit) -> Self {
        let dropins = Path::new("/run/systemd/journald@aosit.conf.d");
        let text = "[Journal]\nStorage=volatile\nRuntimeMaxUse=32M\nReadKMsg=no\nAudit=no\n\
            RateLimitIntervalSec=0\nMaxRetentionSec=1day\n";
        unit.space.inside(|| {
            fs::create_dir_all(dropins).unwrap();
            write_plain(&dropins.join("test.conf"), text.as_bytes(), 0o644).unwrap();
        });
        let mut command = Command::new(need::JOURNALD);
        let program = Program::start(&unit.space, command.arg("aosit"));
        wait_until("journald listens", || {
            unit.space.inside(|| {
                let path = format!("{SOCKETS}/stdout");
                std::os::unix::net::UnixStream::connect(path).is_ok()
            })
        });
        Self(program)
    }

    pub(super) fn stop(mut self) {
        self.0.kill();
    }
}

/// A registered unit whose containers write to a journal.
pub(super) fn with_journal() -> (Unit, Journald) {
    let mut unit = Setup::new().set("logging.journalDir", SOCKETS).start();
    let journald = Journald::start(&unit);
    unit.start_daemon();
    unit.say("wait registered");
    (unit, journald)
}

/// The answer to a request, and nothing that comes in meanwhile.
fn logs(unit: &mut Unit, what: &str) -> Vec<String> {
    unit.look();
    // A daemon that has just started may not be there yet.
    unit.say("wait registered");
    unit.say(&format!("logs {what}"));
    unit.say("wait logs");
    let mut is_answer = false;
    let mut lines = unit.seen();
    lines.retain(|line| {
        let is_detail = line.starts_with("    ");
        is_answer = line.contains(" <- sm  log log-") || is_answer && is_detail;
        is_answer
    });
    lines
}

pub(super) fn logs_with(unit: &mut Unit, what: &str, text: &str) -> Vec<String> {
    let mut lines = Vec::new();
    wait_until(text, || {
        lines = logs(unit, what);
        lines.iter().any(|line| line.contains(text))
    });
    lines
}

pub(super) fn has(lines: &[String], text: &str) -> bool {
    lines.iter().any(|line| line.contains(text))
}

fn a_crash_and_what_is_said_of_it(mut unit: Unit) -> Unit {
    let busybox = need::program("busybox").unwrap();
    // So that the limit is reached on a slow machine too.
    let config = r#"config='{"runParameters":{"startInterval":"60s","restartInterval":"50ms"}}'"#;
    unit.say(&format!(
        "service web {busybox} entrypoint=/busybox cmd=sh cmd=-c cmd='{CRASHES}' {config}"
    ));
    unit.say("instance web");
    unit.look();
    unit.say("run");
    let of_instance = "serviceInstanceAlert: web/subject/0 version 1.0.0: ";
    let expect = [
        format!("{of_instance}cannot go on"),
        format!("{of_instance}aos-service@"),
        // At the start limit, with our own message.
        "coreAlert: aos-servicemanager: gives up instance=".to_owned(),
        "Start request repeated too quickly.".to_owned(),
    ];
    wait_until("all alerts", || {
        let seen = unit.seen();
        expect.iter().all(|text| has(&seen, text))
    });
    let lines = logs_with(&mut unit, "crash web", "exited with code 3");
    assert!(has(&lines, " it begins ") && has(&lines, " cannot go on "), "{lines:?}");
    // Of several crashes the newest.
    assert_eq!(lines.iter().filter(|line| line.contains("it begins")).count(), 1, "{lines:?}");
    let lines = logs_with(&mut unit, "web", "cannot go on");
    assert!(!has(&lines, "exited with code"), "{lines:?}");
    let lines = logs(&mut unit, "crash unknown");
    assert!(has(&lines, "no service instance found"), "{lines:?}");
    unit
}

#[test]
fn a_crash_without_a_journal() {
    require!(root, memory, runc, busybox);
    let mut unit = a_crash_and_what_is_said_of_it(Setup::new().registered());
    let lines = logs_with(&mut unit, "system", "gives up");
    assert!(has(&lines, " aos-servicemanager gives up instance="), "{lines:?}");
    unit.stop_daemon();
    unit.nothing_left();
}

#[test]
fn a_crash_with_a_journal() {
    require!(root, memory, runc, busybox, journald);
    let (unit, journald) = with_journal();
    let mut unit = a_crash_and_what_is_said_of_it(unit);
    let lines = logs_with(&mut unit, "system", "Start request repeated too quickly.");
    assert!(has(&lines, " cannot go on "), "{lines:?}");
    unit.stop_daemon();
    unit.nothing_left();
    journald.stop();
}

/// Some process of the only group is still there.
fn lives_on(before: &[(String, BTreeSet<u32>)], after: &[(String, BTreeSet<u32>)]) -> bool {
    let [(_, before)] = before else { return false };
    after.iter().any(|(_, after)| !after.is_disjoint(before))
}

/// Numbers in the log of the instance.
fn numbers(lines: &[String]) -> BTreeSet<u32> {
    let number = |line: &String| line.split("number ").nth(1)?.split(' ').next()?.parse().ok();
    lines.iter().filter_map(number).collect()
}

/// The daemon is killed again and again under an instance that writes all the time.
fn killed_while_an_instance_writes(mut unit: Unit) -> Unit {
    let script = "i=0; while :; do i=$((i+1)); echo number $i; /busybox usleep 20000; done";
    unit.service("web", script, "");
    unit.say("instance web");
    unit.say("run");
    unit.say("wait active web");
    let before = unit.groups();
    for _ in 0..20 {
        let last = numbers(&logs_with(&mut unit, "web", "number")).pop_last().unwrap();
        unit.kill_daemon();
        unit.start_daemon();
        unit.say("wait registered");
        let more = format!("number {} ", last + 10);
        let found = numbers(&logs_with(&mut unit, "web", &more));
        let all: BTreeSet<u32> = (1..=found.last().copied().unwrap()).collect();
        assert_eq!(found, all, "lines are missing");
    }
    let after = unit.groups();
    assert!(lives_on(&before, &after), "{before:?} {after:?}");
    unit.say("stop");
    unit.say("wait gone");
    // What it has written can still be asked for.
    let lines = logs(&mut unit, "web");
    assert!(has(&lines, "number 1 "), "{} lines", lines.len());
    unit
}

#[test]
fn restarts_of_the_daemon_cost_no_line_without_a_journal() {
    require!(root, memory, runc, busybox);
    let mut unit = killed_while_an_instance_writes(Setup::new().registered());
    unit.stop_daemon();
    unit.nothing_left();
}

#[test]
fn restarts_of_the_daemon_cost_no_line_with_a_journal() {
    require!(root, memory, runc, busybox, journald);
    let (unit, journald) = with_journal();
    let mut unit = killed_while_an_instance_writes(unit);
    unit.stop_daemon();
    unit.nothing_left();
    journald.stop();
}

#[test]
fn an_alert_of_the_journal_waits_for_the_daemon() {
    require!(root, memory, runc, busybox, journald);
    let (mut unit, journald) = with_journal();
    let script = "while [ ! -e /storage/now ]; do /busybox sleep 0.1; done; \
        echo \"<3>while nobody looked\"; exec /busybox sleep 10000";
    unit.service("web", script, "");
    unit.say("instance web");
    unit.say("run");
    unit.say("wait active web");
    unit.kill_daemon();
    write_plain(&unit.path("sm/storages/web_subject_0/now"), b"", 0o644).unwrap();
    wait_until("the line is in the journal", || {
        unit.space.inside(|| {
            let mut command = Command::new("journalctl");
            command.args(["--namespace=aosit", "-o", "cat"]);
            program::run(&mut command).1.contains("nobody looked")
        })
    });
    unit.start_daemon();
    unit.say("wait text 'serviceInstanceAlert: web/subject/0 version 1.0.0: while nobody looked'");
    unit.stop_daemon();
    unit.nothing_left();
    journald.stop();
}

#[test]
fn an_instance_survives_the_end_of_journald() {
    require!(root, memory, runc, busybox, journald);
    let (mut unit, journald) = with_journal();
    unit.service("web", "while :; do echo text; /busybox usleep 10000; done", "");
    unit.say("instance web");
    unit.say("run");
    unit.say("wait active web");
    logs_with(&mut unit, "web", "text");
    let before = unit.groups();
    journald.stop();
    unit.space.inside(|| fs::remove_dir_all(SOCKETS).unwrap());
    // The next start takes the store; requests are answered from there.
    unit.sleeper("other");
    unit.say("run");
    unit.say("wait active");
    let after = unit.groups();
    assert!(lives_on(&before, &after), "{before:?} {after:?}");
    let lines = logs(&mut unit, "other");
    assert!(!has(&lines, "journalctl"), "{lines:?}");
    unit.stop_daemon();
    unit.nothing_left();
}
