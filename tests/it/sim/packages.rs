//! Attempts, pauses and damage: what core does about packages.

use std::time::Duration;

use aos_servicemanager::core::package::{MAX_ATTEMPTS, PATIENCE};

use super::unit::{Unit, request};

const A: &str = "file:///a-1.0.0";
const B: &str = "file:///b-1.0.0";

#[test]
fn a_server_that_comes_back_is_waited_for_in_silence() {
    let mut unit = Unit::started(31);
    unit.host.make_flaky(A, 1);
    unit.run(request(&[("a", "1.0.0"), ("b", "1.0.0")]));
    unit.settle();
    // The one that works does not wait for the one that does not.
    assert_eq!(unit.host.take_installs(), [A, B, A]);
    assert_eq!(unit.full_status()["a"], "active 1.0.0");
    assert!(unit.deltas().iter().all(|d| !d.contains("a failed")), "{:?}", unit.deltas());
    assert!(unit.rows.wanted.is_empty());
}

#[test]
fn what_the_first_request_installs_outlives_the_tidying_of_the_survey() {
    for seed in 70..80 {
        let mut unit = Unit::new(seed);
        unit.exec_up = false;
        unit.boot();
        unit.connect();
        unit.run(request(&[("a", "1.0.0"), ("b", "1.0.0")]));
        while !unit.is_installing() && unit.step() {}
        unit.exec_up = true;
        unit.fetch_up = false;
        while unit.step() {}
        unit.fetch_up = true;
        unit.settle();
        unit.kill();
        unit.boot();
        unit.connect();
        unit.settle();
        assert_eq!(unit.full_status()["a"], "active 1.0.0", "{seed}");
        assert_eq!(unit.full_status()["b"], "active 1.0.0", "{seed}");
    }
}

#[test]
fn after_five_attempts_the_next_request_is_waited_for() {
    let mut unit = Unit::started(32);
    unit.patience = Duration::from_secs(300);
    let begun = unit.now.mono;
    unit.host.make_flaky(A, 100);
    unit.run(request(&[("a", "1.0.0"), ("b", "1.0.0")]));
    unit.settle();
    let attempts = unit.host.take_installs();
    let of_a = attempts.iter().filter(|url| *url == A).count();
    assert_eq!(of_a, usize::try_from(MAX_ATTEMPTS).unwrap());
    let took = unit.now.mono - begun;
    assert!(
        took > Duration::from_secs(185) && took < Duration::from_secs(185 * 5 / 4 + 60),
        "{took:?}"
    );
    let expect = "failed 1.0.0 cannot install service a 1.0.0: made-up failure of download";
    assert_eq!(unit.full_status()["a"], expect);
    assert_eq!(unit.host.running().len(), 1);
    unit.host.make_flaky(A, 0);
    unit.run(request(&[("a", "1.0.0"), ("b", "1.0.0")]));
    unit.settle();
    assert_eq!(unit.full_status()["a"], "active 1.0.0");
}

#[test]
fn nobody_waits_for_ever() {
    let mut unit = Unit::started(33);
    unit.patience = Duration::ZERO;
    unit.host.make_flaky(A, 100);
    unit.run(request(&[("a", "1.0.0"), ("b", "1.0.0")]));
    unit.settle();
    let full = unit.full_statuses();
    assert_eq!(unit.host.take_installs(), [A, B]);
    unit.advance(PATIENCE);
    unit.settle();
    // The status of the run names the failure, and the attempts go on behind it.
    assert_eq!(unit.full_statuses(), full + 1);
    assert!(unit.full_status()["a"].starts_with("failed 1.0.0 cannot install"));
    unit.host.make_flaky(A, 0);
    unit.patience = Duration::from_secs(60);
    unit.settle();
    assert_eq!(unit.deltas().last().unwrap(), "a active 1.0.0");
}

#[test]
fn an_altered_image_is_fetched_again_at_its_start() {
    let mut unit = Unit::started(34);
    unit.run(request(&[("a", "1.0.0"), ("b", "1.0.0")]));
    unit.settle();
    unit.host.take_installs();
    let path = unit.rows.services.iter().find(|s| s.key.id.as_str() == "a").unwrap().path.clone();
    unit.host.damage(&path);
    let mut again = request(&[("a", "1.0.0"), ("b", "1.0.0")]);
    again.force_restart = true;
    unit.run(again);
    unit.settle();
    assert_eq!(unit.host.take_installs(), [A]);
    assert_eq!(unit.full_status()["a"], "active 1.0.0");
    assert_eq!(unit.full_status()["b"], "active 1.0.0");
    assert!(unit.host.images().contains(&path) && unit.rows.wanted.is_empty());
}

#[test]
fn the_check_in_the_background_finds_damage() {
    let mut unit = Unit::started(35);
    unit.run(request(&[("a", "1.0.0"), ("b", "1.0.0")]));
    unit.settle();
    unit.host.take_installs();
    let row = |unit: &Unit, id: &str| {
        unit.rows.services.iter().find(|s| s.key.id.as_str() == id).unwrap().path.clone()
    };
    unit.host.damage(&row(&unit, "a"));
    let starts = unit.host.starts();
    for _ in 0..30 {
        unit.advance(Duration::from_secs(60));
        unit.settle();
    }
    assert_eq!(unit.host.take_installs(), [A]);
    assert_eq!(unit.host.starts(), starts + 1, "only the damaged one was started anew");
    assert_eq!(unit.host.running().len(), 2);
    // What cannot be fetched is not used, and not asked for without end.
    unit.host.break_url(B);
    unit.host.damage(&row(&unit, "b"));
    for _ in 0..26 * 60 {
        unit.advance(Duration::from_secs(60));
        unit.settle();
    }
    assert_eq!(unit.host.take_installs(), [B]);
    assert!(unit.deltas().iter().any(|d| d.starts_with("b failed 1.0.0 made-up failure")));
    assert_eq!(unit.host.running().len(), 1);
    unit.host.mend_url(B);
    unit.run(request(&[("a", "1.0.0"), ("b", "1.0.0")]));
    unit.settle();
    assert_eq!(unit.full_status()["b"], "active 1.0.0");
}

#[test]
fn a_newer_request_ends_an_install_that_it_does_not_want() {
    let mut unit = Unit::started(36);
    unit.run(request(&[("b", "1.0.0")]));
    unit.settle();
    unit.host.take_installs();
    let starts = unit.host.starts();
    // The fetch thread is at `a`, and does not come to an end with it.
    unit.fetch_up = false;
    unit.run(request(&[("a", "1.0.0"), ("b", "1.0.0")]));
    unit.settle();
    assert!(unit.is_installing());
    // What has what it needs neither waits nor restarts.
    assert_eq!((unit.host.running().len(), unit.host.starts()), (1, starts));
    unit.run(request(&[("b", "1.0.0"), ("c", "1.0.0")]));
    unit.settle();
    unit.fetch_up = true;
    unit.settle();
    assert_eq!(unit.host.take_installs(), ["file:///c-1.0.0"]);
    assert_eq!(unit.full_status().keys().collect::<Vec<_>>(), ["b", "c"]);
    assert!(unit.rows.wanted.is_empty() && unit.rows.services.len() == 2);
    assert!(unit.deltas().iter().all(|d| !d.contains("failed")), "{:?}", unit.deltas());
}

#[test]
fn an_install_from_elsewhere_begins_anew_and_does_not_count_as_failed() {
    let mut unit = Unit::started(37);
    unit.fetch_up = false;
    unit.run(request(&[("a", "1.0.0")]));
    unit.settle();
    let mut moved = request(&[("a", "1.0.0")]);
    moved.services[0].source.url = "file:///elsewhere".to_owned();
    unit.run(moved.clone());
    // Twice the same is no reason to begin once more.
    unit.run(moved);
    unit.settle();
    unit.fetch_up = true;
    unit.settle();
    assert_eq!(unit.host.take_installs(), ["file:///elsewhere"]);
    assert_eq!(unit.full_status()["a"], "active 1.0.0");
    assert!(unit.rows.wanted.is_empty());
}

#[test]
fn a_disk_that_is_silent_for_a_moment_is_no_damage() {
    let mut unit = Unit::started(38);
    unit.run(request(&[("a", "1.0.0"), ("b", "1.0.0")]));
    unit.settle();
    unit.host.take_installs();
    let path = unit.rows.services.iter().find(|s| s.key.id.as_str() == "a").unwrap().path.clone();
    let starts = unit.host.starts();
    unit.host.make_unreadable(&path, 3);
    unit.patience = Duration::from_secs(60);
    unit.boot();
    unit.connect();
    unit.settle();
    assert!(unit.host.take_installs().is_empty());
    assert_eq!(unit.host.starts(), starts, "both were taken over");
    unit.check_running();
    // One that does not speak again has lost it.
    unit.host.make_unreadable(&path, 5);
    unit.patience = Duration::from_secs(200);
    unit.boot();
    unit.connect();
    unit.settle();
    unit.run(request(&[("a", "1.0.0"), ("b", "1.0.0")]));
    unit.settle();
    assert_eq!(unit.host.take_installs(), [A]);
    unit.check_running();
    assert_eq!(unit.host.running().len(), 2);
}

const HOUR: Duration = Duration::from_secs(3600);

fn paths(unit: &Unit) -> usize {
    unit.host.images().len()
}

#[test]
fn the_time_to_live_begins_when_nobody_wants_it_any_more() {
    let mut unit = Unit::started(39);
    unit.policy.service_ttl = 24 * HOUR;
    unit.boot();
    unit.connect();
    unit.settle();
    unit.run(request(&[("a", "1.0.0"), ("b", "1.0.0")]));
    unit.settle();
    // Long after its installation it is still wanted.
    unit.advance(100 * 24 * HOUR);
    unit.settle();
    assert_eq!(paths(&unit), 2);
    unit.run(request(&[("b", "1.0.0")]));
    unit.settle();
    unit.advance(23 * HOUR);
    unit.settle();
    assert_eq!(paths(&unit), 2, "it may come back");
    // Back and gone again: the time begins anew.
    unit.host.take_installs();
    unit.run(request(&[("a", "1.0.0"), ("b", "1.0.0")]));
    unit.settle();
    assert!(unit.host.take_installs().is_empty());
    unit.run(request(&[("b", "1.0.0")]));
    unit.settle();
    unit.advance(23 * HOUR);
    unit.settle();
    assert_eq!(paths(&unit), 2);
    // A restart does not begin it anew, and a clock that is not set yet removes nothing.
    let now = unit.now.wall_ms;
    unit.now.wall_ms = 0;
    unit.boot();
    unit.connect();
    unit.settle();
    unit.advance(2 * HOUR);
    unit.settle();
    assert_eq!(paths(&unit), 2);
    unit.now.wall_ms = now;
    unit.advance(2 * HOUR);
    unit.settle();
    assert_eq!((paths(&unit), unit.rows.services.len()), (1, 1));
}

#[test]
fn what_runs_is_neither_evicted_nor_outlived() {
    let mut unit = Unit::started(40);
    unit.policy.service_ttl = Duration::ZERO;
    unit.boot();
    unit.connect();
    unit.settle();
    unit.run(request(&[("a", "1.0.0")]));
    unit.settle();
    // The new version does not come, so the old one, which no request names, runs on.
    unit.host.break_url("file:///a-2.0.0");
    unit.run(request(&[("a", "2.0.0"), ("b", "1.0.0"), ("c", "1.0.0")]));
    unit.settle();
    unit.advance(HOUR);
    unit.settle();
    let a = unit.id_of("a");
    assert_eq!(unit.host.running()[&a], "1.0.0");
    assert_eq!(unit.rows.services.len(), 3, "the installs had one less to evict");
    assert!(unit.rows.services.iter().any(|s| s.unused_since_ms.is_some()));
    unit.check_running();
}

#[test]
fn the_highest_of_several_wanted_versions_runs() {
    let mut unit = Unit::started(41);
    let mut both = request(&[("a", "1.9.0"), ("a", "1.10.0-rc1"), ("a", "v1.10")]);
    both.instances.truncate(1);
    unit.run(both);
    unit.settle();
    assert_eq!(unit.full_status()["a"], "active v1.10");
    // What is no version is compared as text.
    let mut odd = request(&[("a", "1.9.0"), ("a", "beta"), ("a", "alpha")]);
    odd.instances.truncate(1);
    unit.run(odd);
    unit.settle();
    assert_eq!(unit.full_status()["a"], "active beta");
}

#[test]
fn the_package_that_is_unused_longest_is_evicted_first() {
    let mut unit = Unit::started(48);
    for wanted in [&["c", "b", "a"][..], &["c", "b"], &["c"]] {
        let services: Vec<_> = wanted.iter().map(|id| (*id, "1.0.0")).collect();
        unit.run(request(&services));
        unit.settle();
        unit.advance(HOUR);
    }
    for expect in [&["b", "c", "d"][..], &["c", "d", "e"]] {
        // The made-up store evicts the first that it is offered.
        let new = expect[2];
        let wanted: Vec<_> =
            ["c", "d", "e"].into_iter().filter(|id| *id <= new).map(|id| (id, "1.0.0")).collect();
        unit.run(request(&wanted));
        unit.settle();
        let mut left: Vec<_> = unit.rows.services.iter().map(|row| row.key.id.as_str()).collect();
        left.sort_unstable();
        assert_eq!(left, expect);
    }
    unit.check_running();
}

/// An install carries a list of what it may evict; a request that comes meanwhile may want it.
#[test]
fn what_a_running_install_may_evict_is_not_started_before_its_end() {
    for (last, installs) in [
        // It is evicted and comes once more.
        (&[("a", "1.0.0"), ("b", "1.0.0"), ("c", "1.0.0")][..], &["file:///c-1.0.0", A][..]),
        // The install is given up and has evicted nothing.
        (&[("a", "1.0.0"), ("b", "1.0.0")], &[]),
    ] {
        let mut unit = Unit::started(49);
        unit.run(request(&[("a", "1.0.0"), ("b", "1.0.0")]));
        unit.settle();
        unit.run(request(&[("b", "1.0.0")]));
        unit.settle();
        unit.host.take_installs();
        unit.fetch_up = false;
        unit.run(request(&[("b", "1.0.0"), ("c", "1.0.0")]));
        unit.settle();
        assert!(unit.is_installing());
        let starts = unit.host.starts();
        unit.run(request(last));
        unit.settle();
        assert_eq!((unit.host.starts(), paths(&unit)), (starts, 2), "its image may go");
        unit.fetch_up = true;
        unit.settle();
        assert_eq!(unit.host.take_installs(), installs);
        let status = unit.full_status();
        assert!(status.values().all(|text| text == "active 1.0.0"), "{status:?}");
        assert_eq!(status.len(), last.len());
        assert!(unit.rows.wanted.is_empty());
        unit.check_running();
    }
}
