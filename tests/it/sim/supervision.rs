//! Exits, restarts, limits, stops: what core decides about one instance over its time, and what the
//! CM is told of it.

use std::time::Duration;

use aos_servicemanager::model::event::{Event, Exit};

use super::unit::{Unit, request};

fn running(seed: u64) -> Unit {
    let mut unit = Unit::started(seed);
    unit.run(request(&[("a", "1"), ("b", "1")]));
    unit.settle();
    unit.reports.clear();
    unit
}

#[test]
fn an_exit_is_reported_at_once_and_the_restart_too() {
    let mut unit = running(1);
    let id = unit.id_of("a");
    unit.host.exit(&id, Exit::Code(3));
    unit.host_events();
    assert_eq!(unit.deltas(), ["a failed(3) 1 exited with code 3"]);
    unit.settle();
    assert_eq!(unit.deltas()[1..], ["a active 1"]);
    assert_eq!(unit.host.starts(), 3);
}

#[test]
fn exit_kinds() {
    for (exit, text) in [
        (Exit::Code(0), "a failed 1 exited with code 0"),
        (Exit::Signal(9), "a failed(137) 1 killed by signal 9"),
        (Exit::OutOfMemory, "a failed(137) 1 out of memory"),
        (
            Exit::CodeAfterKills(137),
            "a failed(137) 1 exited with code 137 after some of its processes ran out of memory",
        ),
        (Exit::Lost, "a failed 1 exit status lost"),
    ] {
        let mut unit = running(2);
        unit.host.exit(&unit.id_of("a"), exit);
        unit.host_events();
        assert_eq!(unit.deltas(), [text]);
    }
}

#[test]
fn a_program_that_looks_bad_explains_code_1() {
    let mut unit = running(2);
    unit.host.doubt_programs("\"/x\" is empty");
    // The running one was looked at before; so was its next container, on the same bundle.
    unit.host.exit(&unit.id_of("a"), Exit::Code(1));
    unit.settle();
    assert_eq!(unit.deltas(), ["a failed(1) 1 exited with code 1", "a active 1"]);
    unit.run(request(&[("a", "1"), ("b", "2")]));
    unit.settle();
    unit.host.exit(&unit.id_of("b"), Exit::Code(2));
    unit.settle();
    // Statuses of one instance are a second apart.
    unit.advance(Duration::from_secs(2));
    unit.host.exit(&unit.id_of("b"), Exit::Code(1));
    unit.host_events();
    let deltas = unit.deltas();
    let why = "b failed(1) 2 exited with code 1, probably because \"/x\" is empty";
    assert!(deltas.contains(&"b failed(2) 2 exited with code 2".to_owned()), "{deltas:?}");
    assert_eq!(deltas.last().map(String::as_str), Some(why));
}

#[test]
fn the_start_limit_ends_a_crash_loop() {
    let mut unit = running(3);
    let id = unit.id_of("a");
    for _ in 0..10 {
        if unit.host.running().contains_key(&id) {
            unit.host.exit(&id, Exit::Code(1));
            unit.host_events();
        }
        while unit.step() {}
        if !unit.pass(Duration::from_secs(2)) {
            break;
        }
        while unit.step() {}
    }
    unit.settle();
    let last = unit.deltas().last().unwrap().clone();
    assert!(
        last.starts_with("a failed(1) 1 start limit reached (3 starts in 5s): exited with code 1"),
        "{last}"
    );
    assert!(!unit.host.present().contains(&id), "nothing of it is left");
    assert_eq!(unit.host.running().len(), 1, "the other one goes on");
    unit.reports.clear();
    unit.run(request(&[("a", "1"), ("b", "1")]));
    unit.settle();
    assert_eq!(unit.full_status()["a"], "active 1", "a new request tries again");
}

#[test]
fn a_request_ends_the_pause_of_a_failed_instance() {
    let mut unit = running(9);
    let id = unit.id_of("a");
    unit.host.exit(&id, Exit::Code(1));
    unit.host_events();
    while unit.step() {}
    unit.reports.clear();
    unit.run(request(&[("a", "1"), ("b", "1")]));
    while unit.step() {}
    assert_eq!(unit.full_status()["a"], "active 1");
    assert_eq!(unit.full_statuses(), 1);
    assert_eq!(unit.host.starts(), 3);
}

#[test]
fn a_new_version_that_dies_at_once_is_failed_in_the_one_full_status() {
    let mut unit = running(4);
    unit.run(request(&[("a", "2"), ("b", "1")]));
    let id = unit.id_of("a");
    for _ in 0..1000 {
        if unit.host.running().get(&id).is_some_and(|v| v == "2") {
            unit.host.exit(&id, Exit::Code(1));
            unit.host_events();
        }
        if unit.full_statuses() > 0 {
            break;
        }
        assert!(unit.step() || unit.pass(Duration::from_secs(60)));
    }
    assert!(
        unit.full_status()["a"].starts_with("failed(1) 2 start limit reached"),
        "{:?}",
        unit.full_status()
    );
    assert_eq!(unit.full_status()["b"], "active 1");
    assert!(unit.deltas().is_empty(), "no delta while a run request is carried out");
}

#[test]
fn a_start_that_always_fails_ends_with_its_reason() {
    let mut unit = Unit::started(5);
    unit.host.fail_starts(true);
    unit.run(request(&[("a", "1")]));
    unit.settle();
    assert!(
        unit.full_status()["a"].contains("made-up failure of start"),
        "{:?}",
        unit.full_status()
    );
    assert!(unit.host.present().is_empty());
}

#[test]
fn delta_statuses_of_one_instance_are_a_second_apart() {
    let mut unit = running(6);
    unit.host.configure("a", |_| {});
    let id = unit.id_of("a");
    unit.host.exit(&id, Exit::Code(1));
    unit.host_events();
    let first = unit.deltas().len();
    unit.disconnect();
    unit.connect();
    unit.settle();
    assert_eq!(first, 1);
    assert_eq!(
        unit.full_status()["a"],
        "failed(1) 1 exited with code 1",
        "the state of that moment"
    );
    assert_eq!(unit.deltas().last().unwrap(), "a active 1");
}

#[test]
fn stop_signal_and_grace() {
    let mut unit = Unit::started(7);
    unit.host.configure("a", |image| image.image.stop_signal = "SIGTERM".into());
    unit.run(request(&[("a", "1")]));
    unit.settle();
    let id = unit.id_of("a");
    unit.run(request(&[]));
    assert_eq!(unit.signals, [(id.clone(), 15)]);
    while unit.step() {}
    assert_eq!(unit.host.running().len(), 1, "it has time");
    unit.host.exit(&id, Exit::Code(0));
    unit.host_events();
    let before = unit.now.mono;
    while unit.step() {}
    assert!(unit.host.present().is_empty());
    assert_eq!(unit.now.mono, before, "no waiting after its end");
}

#[test]
fn grace_ends_with_the_deadline() {
    let mut unit = Unit::started(8);
    unit.host.configure("a", |image| image.image.stop_signal = "TERM".into());
    unit.run(request(&[("a", "1")]));
    unit.settle();
    let begin = unit.now.mono;
    unit.run(request(&[]));
    unit.settle();
    assert!(unit.host.present().is_empty());
    assert_eq!(unit.now.mono - begin, Duration::from_secs(5));
}

#[test]
fn an_unkillable_instance_is_given_up_and_the_others_go_on() {
    let mut unit = running(9);
    let id = unit.id_of("a");
    unit.host.make_unkillable(&id);
    unit.run(request(&[("a", "2"), ("b", "1"), ("c", "1")]));
    unit.settle();
    assert!(unit.full_status()["a"].contains("unkillable"), "{:?}", unit.full_status());
    assert_eq!(unit.full_status()["c"], "active 1");
}

#[test]
fn a_stop_ends_everything_and_keeps_the_rows() {
    let mut unit = running(10);
    unit.event(Event::Stop);
    while unit.step() {}
    assert!(!unit.is_alive(), "drained");
    assert!(unit.host.present().is_empty());
    assert_eq!(unit.rows.instances.len(), 2);
    unit.boot();
    unit.connect();
    unit.settle();
    assert_eq!(unit.host.running().len(), 2);
}

#[test]
fn a_stop_that_keeps_instances_is_followed_by_adoption() {
    let mut unit = running(11);
    unit.policy.keep_instances_on_exit = true;
    unit.boot();
    unit.connect();
    unit.settle();
    unit.event(Event::Stop);
    while unit.step() {}
    assert!(!unit.is_alive());
    assert_eq!(unit.host.running().len(), 2);
    unit.reports.clear();
    unit.boot();
    unit.connect();
    let before = unit.now.mono;
    while unit.step() {}
    assert_eq!(unit.full_status()["a"], "active 1");
    assert_eq!(unit.now.mono, before, "at once");
    assert_eq!(unit.host.starts(), 2);
    unit.host.exit(&unit.id_of("a"), Exit::Lost);
    unit.host_events();
    unit.settle();
    assert_eq!(unit.host.starts(), 3, "adopted ones are supervised");
}

#[test]
fn what_was_counted_last_is_stored_before_the_end() {
    for keep in [false, true] {
        let mut unit = running(16);
        unit.policy.keep_instances_on_exit = keep;
        unit.boot();
        unit.settle();
        assert!(unit.rows.traffic.is_empty());
        unit.event(Event::Stop);
        while unit.step() {}
        assert!(!unit.is_alive());
        assert_eq!(unit.rows.traffic.len(), 1);
        // A thread that gives no answer holds the end for a few seconds only.
        unit.boot();
        unit.settle();
        unit.net_up = false;
        unit.event(Event::Stop);
        while unit.step() {}
        assert!(unit.is_alive());
        unit.advance(Duration::from_secs(5));
        assert!(!unit.is_alive());
    }
}

#[test]
fn a_version_that_restarts_too_often_becomes_active_once_it_stays_up() {
    let mut unit = Unit::started(12);
    let mut wanted = request(&[("a", "1")]);
    let mut second = super::unit::instance("a");
    second.ident.instance = 1;
    wanted.instances.push(second);
    unit.run(wanted);
    while unit.step() {}
    let id = unit.rows.instances.iter().find(|r| r.instance.ident.instance == 1).unwrap();
    let id = id.id.clone();
    for _ in 0..4 {
        let until = unit.now.mono + Duration::from_secs(3);
        while unit.now.mono < until {
            assert!(
                unit.step() || unit.pass(Duration::from_millis(500)) || {
                    unit.advance(Duration::from_millis(500));
                    true
                }
            );
        }
        unit.host.exit(&id, Exit::Code(1));
        unit.host_events();
    }
    unit.settle();
    let deltas = unit.deltas();
    let text = "instance restarts too often: exited with code 1";
    assert!(format!("{:?}", unit.reports).contains(text));
    assert_eq!(deltas.last().unwrap(), "a active 1");
}

#[test]
fn a_failed_start_whose_processes_survive_is_given_up() {
    let mut unit = Unit::started(13);
    unit.host.fail_starts(true);
    unit.run(request(&[("a", "1")]));
    let id = unit.id_of("a");
    unit.host.make_unkillable(&id);
    unit.settle();
    assert!(unit.full_status()["a"].contains("unkillable"), "{:?}", unit.full_status());
    assert!(unit.host.present().contains(&id), "nothing is removed below them");
}

#[test]
fn an_automatic_restart_keeps_network_and_bundle() {
    for adopted in [false, true] {
        let mut unit = running(14);
        if adopted {
            unit.boot();
            unit.settle();
        }
        let attached = unit.host.attached();
        unit.host.exit(&unit.id_of("a"), Exit::Code(1));
        unit.settle();
        assert_eq!((unit.host.starts(), unit.host.attached()), (3, attached));
    }
}

#[test]
fn a_stop_that_keeps_instances_begins_nothing() {
    let mut unit = running(15);
    unit.policy.keep_instances_on_exit = true;
    unit.boot();
    unit.settle();
    let starts = unit.host.starts();
    unit.event(Event::Stop);
    unit.run(request(&[("a", "2"), ("c", "1")]));
    while unit.step() {}
    assert!(!unit.is_alive());
    assert_eq!((unit.host.running().len(), unit.host.starts()), (2, starts));
}
