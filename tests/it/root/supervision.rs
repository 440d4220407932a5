//! Ends of instances as the CM hears of them, their restarts up to the start limit, and stops with
//! and without a signal of their own.

use aos_servicemanager::sys::pidfd;

use crate::common::need::require;
use crate::common::unit::{Setup, Unit};
use crate::common::wait_until;

const STAY: &str = "exec /busybox sleep 10000";

/// A script that behaves differently the first time.
fn first_time(then: &str) -> String {
    format!("if [ ! -e /storage/again ]; then >/storage/again; {then}; fi; {STAY}")
}

/// Runs a service that ends once and checks what is said of it; it runs again afterwards.
fn ends_once(mut unit: Unit, then: &str, more: &str, expect: &str) {
    unit.service("web", &first_time(then), more);
    unit.sleeper("other");
    unit.say("instance web");
    unit.look();
    unit.say("run");
    unit.say("wait full");
    unit.expect(&format!("web/subject/0 version 1.0.0 failed error: {expect}"));
    unit.say("wait active");
    assert_eq!(unit.groups().len(), 2);
    unit.stop_daemon();
    unit.nothing_left();
}

#[test]
fn an_exit_code_is_reported() {
    require!(root, memory, runc, busybox);
    // The full status has gone out before.
    let then = "/busybox sleep 0.5; exit 42";
    ends_once(Setup::new().registered(), then, "", "exited with code 42 (exit code 42)");
}

#[test]
fn an_exit_code_is_reported_with_crun() {
    require!(root, memory, crun, busybox);
    let then = "/busybox sleep 0.5; exit 255";
    ends_once(Setup::crun().registered(), then, "", "exited with code 255 (exit code 255)");
}

#[test]
fn other_exit_codes() {
    require!(root, memory, runc, busybox);
    let mut unit = Setup::new().registered();
    for (code, expect) in [(0, "code 0"), (1, "code 1 (exit code 1)"), (255, "code 255 (exit")] {
        let id = format!("web{code}");
        let then = format!("/busybox sleep 0.5; exit {code}");
        unit.service(&id, &first_time(&then), "");
        unit.say(&format!("instance {id}"));
        unit.look();
        unit.say("run");
        unit.expect(&format!("{id}/subject/0 version 1.0.0 failed error: exited with {expect}"));
        unit.say("wait active");
    }
    unit.stop_daemon();
    unit.nothing_left();
}

#[test]
fn a_signal_is_reported() {
    require!(root, memory, runc, busybox);
    let mut unit = Setup::new().registered();
    unit.sleeper("one");
    unit.sleeper("other");
    unit.say("run");
    unit.say("wait active");
    let (pid, other) = (unit.pid_of("one/subject/0"), unit.pid_of("other/subject/0"));
    let id = unit.id_of("one/subject/0");
    unit.look();
    pidfd::kill(pid).unwrap();
    unit.expect("one/subject/0 version 1.0.0 failed error: killed by signal 9 (exit code 137)");
    unit.expect("one/subject/0 version 1.0.0 active");
    assert_ne!(unit.pid_of("one/subject/0"), pid);
    assert_eq!(unit.id_of("one/subject/0"), id);
    assert_eq!(unit.pid_of("other/subject/0"), other);
    unit.stop_daemon();
    unit.nothing_left();
}

const HUNGRY: &str = r#"config='{"quotas":{"ramLimit":16777216},
    "runParameters":{"startInterval":"500ms","restartInterval":"100ms"}}'"#;

#[test]
fn out_of_memory_is_reported() {
    require!(root, memory, runc, busybox);
    let mut unit = Setup::new().registered();
    let eat = "/busybox sleep 0.5; exec /busybox dd if=/dev/zero of=/dev/null bs=64M count=1";
    hungry(&mut unit, eat);
    unit.stop_daemon();
    unit.nothing_left();
}

#[test]
fn out_of_memory_is_reported_with_crun() {
    require!(root, memory, crun, busybox);
    let mut unit = Setup::crun().registered();
    let eat = "/busybox sleep 0.5; exec /busybox dd if=/dev/zero of=/dev/null bs=64M count=1";
    hungry(&mut unit, eat);
    unit.stop_daemon();
    unit.nothing_left();
}

fn hungry(unit: &mut Unit, eat: &str) {
    let busybox = crate::common::need::program("busybox").unwrap();
    let config = HUNGRY.replace("\n    ", "");
    unit.say(&format!(
        "service hungry {busybox} entrypoint=/busybox cmd=sh cmd=-c cmd='{}' {config}",
        first_time(eat)
    ));
    unit.say("instance hungry");
    unit.look();
    unit.say("run");
    unit.expect("hungry/subject/0 version 1.0.0 failed error: out of memory (exit code 137)");
    unit.say("wait active hungry");
}

#[test]
fn the_start_limit_ends_a_crash_loop() {
    require!(root, memory, runc, busybox);
    let mut unit = Setup::new().registered();
    let busybox = crate::common::need::program("busybox").unwrap();
    // So that the limit is reached on a slow machine too.
    let config = r#"config='{"runParameters":{"startInterval":"60s","restartInterval":"50ms"}}'"#;
    unit.say(&format!(
        "service web {busybox} entrypoint=/busybox cmd=sh cmd=-c \
         cmd='echo start >>/storage/starts; exit 7' {config}"
    ));
    unit.say("instance web");
    unit.sleeper("other");
    unit.look();
    unit.say("run");
    let line = unit.expect("failed error: start limit reached");
    assert!(line.contains("web/subject/0") && line.contains("(exit code 7)"), "{line}");
    assert!(line.contains("exited with code 7"), "{line}");
    assert_eq!(unit.stored("web/subject/0", "starts").unwrap(), "start\n".repeat(3));
    // Nothing of it is left; the other one runs.
    let id = unit.id_of("other/subject/0");
    wait_until("the removal of the failed instance", || unit.bundles() == [id.clone()]);
    assert_eq!(unit.groups().len(), 1);
    // Each request tries again.
    unit.look();
    unit.say("run");
    unit.expect("failed error: start limit reached");
    assert_eq!(unit.stored("web/subject/0", "starts").unwrap(), "start\n".repeat(6));
    unit.stop_daemon();
    unit.nothing_left();
}

#[test]
fn a_new_version_that_dies_at_once_is_failed_in_the_full_status() {
    require!(root, memory, runc, busybox);
    let mut unit = Setup::new().set("startVerdict", "confirm-new").registered();
    unit.expect("full status");
    unit.service("web", "exit 1", "");
    unit.service("good", STAY, "");
    unit.say("instance web");
    unit.say("instance good");
    unit.say("run");
    unit.expect("full status: 2 instances");
    unit.say("wait failed web");
    unit.say("wait full");
    let lines = unit.statuses();
    let of = |who: &str| lines.iter().find(|l| l.starts_with(who)).cloned().unwrap_or_default();
    assert!(of("web").contains(" failed "), "{lines:?}");
    assert!(of("good").ends_with(" active"), "{lines:?}");
    unit.stop_daemon();
    unit.nothing_left();
}

#[test]
fn a_stop_signal_is_heard() {
    require!(root, memory, runc, busybox);
    let mut unit = Setup::new().registered();
    let script = "trap \"echo bye >/storage/bye; exit 0\" TERM; echo up >/storage/up; \
        while :; do /busybox sleep 0.05; done";
    unit.service("polite", script, "stop-signal=SIGTERM");
    unit.sleeper("deaf");
    unit.say("instance polite");
    unit.say("run");
    unit.say("wait active");
    unit.expect_stored("polite/subject/0", "up", "up");
    unit.say("stop");
    unit.say("wait gone");
    unit.nothing_left();
    assert_eq!(unit.stored("polite/subject/0", "bye").as_deref(), Some("bye\n"));
    unit.stop_daemon();
}

#[test]
fn every_process_of_an_instance_ends_with_it() {
    require!(root, memory, runc, busybox);
    let mut unit = Setup::new().registered();
    unit.service(
        "many",
        "for i in 1 2 3 4; do /busybox sleep 10000 & done; exec /busybox sleep 10000",
        "",
    );
    unit.say("instance many");
    unit.say("run");
    unit.say("wait active many");
    wait_until("five processes", || unit.groups().iter().any(|(_, pids)| pids.len() == 5));
    unit.say("stop");
    unit.say("wait gone");
    unit.nothing_left();
    unit.stop_daemon();
}
