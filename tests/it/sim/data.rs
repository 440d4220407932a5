//! State and storage on file systems with a server: the fetch thread prepares them, and a silent
//! server holds up nobody else.

use std::time::Duration;

use aos_servicemanager::model::desired::RunRequest;

use super::unit::{Unit, request};

/// `r` has its storage on a server, `a` has none.
fn wanted() -> RunRequest {
    let mut wanted = request(&[("a", "1"), ("r", "1")]);
    wanted.instances[1].storage_path = "storage".into();
    wanted
}

fn started(seed: u64) -> Unit {
    let unit = Unit::started(seed);
    unit.host.remote_storage(true);
    unit
}

#[test]
fn data_on_a_server_are_prepared_before_the_start() {
    for seed in 1..20 {
        let mut unit = started(seed);
        unit.run(wanted());
        unit.settle();
        assert!(unit.full_status().values().all(|s| s == "active 1"));
        assert_eq!((unit.full_statuses(), unit.host.starts()), (1, 2));
        unit.run(RunRequest { force_restart: true, ..wanted() });
        unit.settle();
        assert_eq!((unit.full_statuses(), unit.host.starts()), (2, 4));
        // A crash at any time.
        unit.run(request(&[]));
        unit.run(wanted());
        for _ in 0..seed {
            unit.step();
        }
        unit.boot();
        unit.connect();
        unit.settle();
        assert!(unit.full_status().values().all(|s| s == "active 1"));
        unit.check_running();
    }
}

#[test]
fn a_silent_server_is_named_and_the_others_run() {
    let mut unit = started(1);
    unit.run(request(&[("a", "1")]));
    unit.settle();
    unit.reports.clear();
    unit.run(wanted());
    let begin = unit.now.mono;
    // The fetch thread hangs at the data.
    while !unit.prepares_data() {
        assert!(unit.step());
    }
    unit.fetch_up = false;
    while unit.full_statuses() == 0 {
        assert!(unit.step() || unit.pass(Duration::from_secs(60)));
    }
    let silent = "failed 1 state or storage directory: the server of its file system is silent";
    assert_eq!(unit.full_status()["r"], silent);
    assert_eq!(unit.full_status()["a"], "active 1");
    assert_eq!(unit.now.mono - begin, Duration::from_secs(20));
    unit.settle();
    assert_eq!(unit.host.running().len(), 1);
    unit.fetch_up = true;
    unit.settle();
    assert_eq!(unit.deltas().last().unwrap(), "r active 1");
}

#[test]
fn a_server_that_refuses_is_asked_again() {
    let mut unit = started(2);
    unit.patience = Duration::from_secs(10);
    unit.host.refuse_data(true);
    unit.run(wanted());
    unit.settle();
    assert_eq!(unit.full_status()["r"], "failed 1 made-up failure of data");
    assert_eq!(unit.full_status()["a"], "active 1");
    unit.host.refuse_data(false);
    unit.advance(Duration::from_secs(29));
    assert_eq!(unit.host.running().len(), 1);
    unit.settle();
    assert_eq!(unit.deltas().last().unwrap(), "r active 1");
}

#[test]
fn data_that_are_local_again_are_made_by_the_start() {
    let mut unit = started(4);
    unit.patience = Duration::from_secs(10);
    unit.host.refuse_data(true);
    unit.run(wanted());
    unit.settle();
    unit.host.remote_storage(false);
    unit.run(wanted());
    unit.settle();
    assert_eq!(unit.full_status()["r"], "active 1", "a request ends the pause");
}

#[test]
fn no_data_are_prepared_for_what_is_not_wanted_any_more() {
    let mut unit = started(3);
    unit.run(wanted());
    while !unit.prepares_data() {
        assert!(unit.step());
    }
    unit.fetch_up = false;
    unit.run(request(&[("a", "1")]));
    unit.settle();
    assert_eq!(unit.full_status().len(), 1);
    unit.fetch_up = true;
    unit.settle();
    assert_eq!(unit.host.running().len(), 1);
    assert_eq!(unit.host.present().len(), 1);
}
