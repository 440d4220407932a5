//! The end of the daemon with and without its instances; `-stop-instances`, `-reset`.

use crate::common::host;
use crate::common::need::require;
use crate::common::unit::{Setup, Unit};

/// Two instances, left behind by a daemon that was killed.
fn left_behind() -> Unit {
    let mut unit = Setup::new().registered();
    unit.service("web", "exec /busybox sleep 10000", "");
    unit.say("instance web count=2");
    unit.say("run");
    unit.say("wait active");
    unit.kill_daemon();
    unit.say("wait disconnected");
    assert_eq!(unit.groups().len(), 2);
    unit
}

#[test]
fn instances_are_stopped_with_the_daemon() {
    require!(root, memory, runc, busybox);
    let mut unit = Setup::new().registered();
    unit.service("web", "exec /busybox sleep 10000", "");
    unit.say("instance web count=8");
    unit.say("run");
    unit.say("wait active");
    unit.stop_daemon();
    unit.nothing_left();
    // The next life starts them again by itself.
    unit.say("wait disconnected");
    unit.look();
    unit.start_daemon();
    unit.say("wait registered");
    unit.expect("full status: 8 instances");
    crate::common::wait_until("eight instances", || {
        unit.groups().iter().filter(|(_, pids)| !pids.is_empty()).count() == 8
    });
    unit.stop_daemon();
    unit.nothing_left();
}

#[test]
fn instances_are_kept_on_exit() {
    require!(root, memory, runc, busybox);
    let mut unit = Setup::new().set("keepInstancesOnExit", "true").registered();
    unit.sleeper("one");
    unit.say("run");
    unit.say("wait active one");
    let pid = unit.pid_of("one/subject/0");
    unit.stop_daemon();
    assert_eq!(unit.pid_of("one/subject/0"), pid);
    assert_eq!(unit.groups().len(), 1);
    unit.say("wait disconnected");
    unit.look();
    unit.start_daemon();
    unit.say("wait registered");
    unit.expect("one/subject/0 version 1.0.0 active");
    assert_eq!(unit.pid_of("one/subject/0"), pid);
    unit.stop_daemon();
    let (code, out, err) = unit.run_to_end(&["-stop-instances"]);
    assert_eq!(code, Some(0), "{out} {err}");
    unit.nothing_left();
}

#[test]
fn stop_instances_leaves_nothing() {
    require!(root, memory, runc, busybox);
    let mut unit = left_behind();
    let (code, out, err) = unit.run_to_end(&["-stop-instances"]);
    assert_eq!(code, Some(0), "{out} {err}");
    unit.nothing_left();
    assert!(!unit.installed().is_empty(), "packages stay");
    // Again, with nothing to do.
    assert_eq!(unit.run_to_end(&["-stop-instances"]).0, Some(0));
    // They are still wanted.
    unit.look();
    unit.start_daemon();
    unit.say("wait registered");
    unit.expect("full status: 2 instances");
    unit.stop_daemon();
    unit.nothing_left();
}

#[test]
fn reset_removes_all_but_the_data_of_instances() {
    require!(root, memory, runc, busybox);
    let mut unit = left_behind();
    let (code, out, err) = unit.run_to_end(&["-reset"]);
    assert_eq!(code, Some(0), "{out} {err}");
    unit.nothing_left();
    let work = unit.path("sm/work");
    let left: Vec<_> =
        host::names(&work).into_iter().filter(|n| n.starts_with("servicemanager.db")).collect();
    assert!(left.is_empty(), "{left:?}");
    assert!(unit.installed().is_empty());
    assert!(host::names(&work.join("layers")).is_empty());
    assert!(unit.path("sm/storages/web_subject_0").is_dir());
    assert!(unit.path("sm/states/web_subject_1_state.dat").is_file());
    unit.look();
    unit.start_daemon();
    unit.say("wait registered");
    unit.expect("full status: 0 instances");
    unit.say("run");
    unit.say("wait active");
    unit.stop_daemon();
    unit.nothing_left();
}

#[test]
fn left_overs_without_a_record_are_removed_at_start() {
    require!(root, memory, runc, busybox);
    let mut unit = left_behind();
    // One is not known any more, and the records of both are gone.
    for id in unit.bundles() {
        std::fs::remove_file(unit.path("run/runtime").join(&id).join("record.json")).unwrap();
    }
    let before = unit.groups();
    unit.look();
    unit.start_daemon();
    unit.say("wait registered");
    unit.say("run");
    unit.say("wait active");
    let after = unit.groups();
    assert_eq!(after.len(), 2, "{after:?}");
    for ((_, old), (_, new)) in before.iter().zip(&after) {
        assert!(old.is_disjoint(new), "{before:?} {after:?}");
    }
    unit.stop_daemon();
    unit.nothing_left();
}
