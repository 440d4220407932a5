//! CM and IAM that are away, slow, silent, or have a new certificate; the end of the daemon.

use crate::common::need::require;
use crate::common::unit::{Setup, with_a_good_one};

#[test]
fn the_cm_is_away_at_start_and_later() {
    require!(root, memory, runc, busybox);
    let mut unit = Setup::new().start();
    unit.say("link down");
    unit.start_daemon();
    unit.expect("node info read");
    unit.say("link up");
    unit.say("wait registered");
    unit.sleeper("one");
    unit.say("run");
    unit.say("wait active one");
    let pid = unit.pid_of("one/subject/0");

    for (away, back) in [("link down", "link up"), ("link end", "link accept")] {
        unit.look();
        unit.say(away);
        unit.say("wait disconnected");
        unit.say(back);
        unit.say("wait registered");
        unit.expect("node config status: node node0");
        unit.expect("full status: 1 instances");
        unit.expect("one/subject/0 version 1.0.0 active");
        assert_eq!(unit.pid_of("one/subject/0"), pid, "{away}");
    }
    // Refused, and taken again later.
    unit.say("link refuse");
    unit.say("link end");
    unit.look();
    unit.expect("refused: ");
    unit.say("link accept");
    unit.say("wait registered");
    assert_eq!(unit.pid_of("one/subject/0"), pid);
    unit.stop_daemon();
    unit.nothing_left();
}

#[test]
fn iam_is_away_at_start() {
    require!(root, memory, runc, busybox);
    let mut unit = Setup::new().registered();
    unit.sleeper("one");
    unit.say("run");
    unit.say("wait active one");
    unit.stop_daemon();
    unit.nothing_left();

    unit.say("iam down");
    unit.say("link down");
    unit.start_daemon();
    let id = started(&mut unit, "one/subject/0");
    unit.say("iam up");
    unit.say("link up");
    unit.look();
    unit.say("wait registered");
    unit.expect("one/subject/0 version 1.0.0 active");
    assert_eq!(unit.id_of("one/subject/0"), id);
    unit.stop_daemon();
}

/// Waits until an instance runs; its id.
fn started(unit: &mut crate::common::unit::Unit, instance: &str) -> String {
    crate::common::wait_until("a running instance", || {
        !unit.bundles().is_empty() && unit.groups().iter().any(|(_, pids)| !pids.is_empty())
    });
    unit.id_of(instance)
}

#[test]
fn a_new_certificate_makes_a_new_connection() {
    require!(root, memory, runc, busybox);
    let mut unit = Setup::new().registered();
    unit.sleeper("one");
    unit.say("run");
    unit.say("wait active one");
    let pid = unit.pid_of("one/subject/0");
    unit.look();
    unit.say("cert renew");
    unit.expect("stream 1 closed");
    unit.expect("stream 2 from");
    unit.say("wait registered");
    unit.expect("one/subject/0 version 1.0.0 active");
    assert_eq!(unit.pid_of("one/subject/0"), pid);
    unit.stop_daemon();
}

#[test]
fn a_silent_cm_does_not_hold_up_the_end() {
    require!(root, memory, runc);
    let mut unit = Setup::new().start();
    unit.say("link silent");
    unit.start_daemon();
    unit.expect("stream 1 from");
    unit.stop_daemon();
    unit.no_links_left();
}

#[test]
fn a_cm_that_stands_still_does_not_hold_up_the_end() {
    require!(root, memory, runc, busybox);
    let mut unit = Setup::new().set("monitoring.pollPeriod", "1s").registered();
    unit.sleeper("one");
    unit.say("run");
    unit.say("wait active one");
    unit.stand_still();
    unit.stop_daemon();
    unit.go_on();
    unit.nothing_left();
}

#[test]
fn a_download_that_stands_still_does_not_hold_up_the_end() {
    require!(root, memory, runc, busybox);
    let mut unit = with_a_good_one(Setup::new());
    unit.service("slow", "exit 0", "");
    unit.say("instance slow");
    unit.say("fault /service-slow-1.0.0.tar hang");
    unit.say("run");
    unit.expect_log("service-slow-1.0.0.tar");
    unit.say("config get");
    unit.say("wait config");
    unit.stop_daemon();
    unit.nothing_left();
}

#[test]
fn nobody_is_there_at_all() {
    require!(root, memory, runc);
    let mut unit = Setup::new().start();
    unit.say("iam down");
    unit.say("link down");
    unit.start_daemon();
    unit.expect_log("running");
    unit.stop_daemon();
    unit.no_links_left();
}

#[test]
fn further_signals_during_the_end_are_ignored() {
    require!(root, memory, runc, busybox);
    let mut unit = Setup::new().registered();
    unit.sleeper("one");
    unit.say("run");
    unit.say("wait active one");
    for signal in [nix::libc::SIGINT, nix::libc::SIGTERM, nix::libc::SIGINT] {
        unit.daemon().signal(signal);
    }
    let status = unit.daemon().end();
    assert_eq!(status.code(), Some(0), "{status}");
    unit.nothing_left();
}
