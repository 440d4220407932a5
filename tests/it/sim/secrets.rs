//! Secrets from IAM: every container has the one that IAM knows, whatever happens in between.

use std::collections::BTreeMap;
use std::time::Duration;

use aos_servicemanager::model::event::{Event, Exit, IamEvent};
use aos_servicemanager::model::job::Permissions;

use super::unit::{Unit, request};

fn permissions(mode: &str) -> Option<Permissions> {
    let of_server = BTreeMap::from([("function".to_owned(), mode.to_owned())]);
    Some(Permissions::from([("server".to_owned(), of_server)]))
}

fn needs(unit: &Unit, mode: &str) {
    unit.host.configure("p", |image| image.service.permissions = permissions(mode));
}

fn running(seed: u64) -> Unit {
    let mut unit = Unit::started(seed);
    needs(&unit, "r");
    unit.run(request(&[("p", "1")]));
    unit.settle();
    check_registrations(&unit);
    unit.reports.clear();
    unit
}

/// Nothing but what runs is registered.
fn check_registrations(unit: &Unit) {
    unit.check_running();
    let running = unit.rows.instances.iter().filter(|r| unit.host.running().contains_key(&r.id));
    assert!(unit.iam.len() <= running.count());
}

fn iam_up(unit: &mut Unit, restarted: bool) {
    unit.iam_up = true;
    unit.event(Event::Iam(IamEvent::Up { restarted }));
}

fn iam_down(unit: &mut Unit) {
    unit.iam_up = false;
    unit.event(Event::Iam(IamEvent::Down));
}

#[test]
fn removed_and_wanted_again_at_once() {
    for seed in 1..20 {
        let mut unit = running(seed);
        unit.run(request(&[]));
        for _ in 0..seed % 4 {
            unit.step();
        }
        unit.run(request(&[("p", "1")]));
        unit.settle();
        assert_eq!(unit.full_status()["p"], "active 1");
        check_registrations(&unit);
    }
}

#[test]
fn new_permissions_come_with_a_new_version() {
    let mut unit = running(1);
    needs(&unit, "rw");
    unit.run(request(&[("p", "2")]));
    unit.settle();
    check_registrations(&unit);
    unit.host.configure("p", |image| image.service.permissions = None);
    unit.run(request(&[("p", "3")]));
    unit.settle();
    assert_eq!(unit.full_status()["p"], "active 3");
    check_registrations(&unit);
}

#[test]
fn permissions_that_change_before_the_first_start() {
    for answered in [false, true] {
        let mut unit = Unit::started(2);
        needs(&unit, "r");
        unit.iam_up = answered;
        unit.net_up = false;
        unit.command(aos_servicemanager::model::command::CmCommand::UpdateNetworks(Vec::new()));
        unit.run(request(&[("p", "1")]));
        unit.settle();
        needs(&unit, "rw");
        unit.run(request(&[("p", "2")]));
        unit.settle();
        assert_eq!(unit.host.starts(), 0);
        unit.net_up = true;
        iam_up(&mut unit, false);
        unit.settle();
        assert_eq!(unit.host.running()[&unit.id_of("p")], "2");
        check_registrations(&unit);
    }
}

#[test]
fn removed_while_iam_is_away() {
    let mut unit = Unit::started(3);
    needs(&unit, "r");
    iam_down(&mut unit);
    unit.run(request(&[("p", "1")]));
    unit.settle();
    assert_eq!(unit.full_status()["p"], "inactive 1");
    unit.run(request(&[]));
    unit.settle();
    iam_up(&mut unit, false);
    unit.settle();
    assert!(unit.iam.is_empty());
}

#[test]
fn a_secret_that_iam_lost_while_the_daemon_was_away() {
    let mut unit = running(4);
    unit.iam.clear();
    unit.boot();
    unit.connect();
    unit.settle();
    assert_eq!(unit.host.starts(), 2);
    assert_eq!(unit.full_status()["p"], "active 1");
    check_registrations(&unit);
}

#[test]
fn a_lost_secret_is_only_logged_if_so_configured() {
    let mut unit = running(5);
    unit.policy.restart_on_secret_change = false;
    unit.iam.clear();
    unit.boot();
    unit.settle();
    assert_eq!(unit.host.starts(), 1);
    assert_eq!(unit.iam.len(), 1, "registered again all the same");
}

#[test]
fn a_refusal_fails_the_start_until_the_next_request() {
    let mut unit = Unit::started(6);
    needs(&unit, "r");
    unit.iam_refuses = true;
    unit.run(request(&[("p", "1"), ("a", "1")]));
    unit.settle();
    assert_eq!(unit.full_status()["p"], "failed 1 cannot register with IAM: refused");
    assert_eq!(unit.full_status()["a"], "active 1");
    unit.iam_refuses = false;
    iam_up(&mut unit, true);
    unit.settle();
    assert_eq!(unit.host.running().len(), 1);
    unit.run(request(&[("p", "1"), ("a", "1")]));
    unit.settle();
    assert_eq!(unit.full_status()["p"], "active 1");
    check_registrations(&unit);
}

#[test]
fn a_silent_iam_holds_the_status_for_a_while_only() {
    let mut unit = Unit::started(7);
    needs(&unit, "r");
    unit.iam_up = false;
    let begin = unit.now.mono;
    unit.run(request(&[("p", "1")]));
    while unit.full_statuses() == 0 {
        assert!(unit.step() || unit.pass(Duration::from_secs(60)));
    }
    assert_eq!(unit.full_status()["p"], "inactive 1");
    assert_eq!(unit.now.mono - begin, Duration::from_secs(20));
}

#[test]
fn an_adopted_instance_restarts_without_iam_and_keeps_its_secret() {
    let mut unit = running(8);
    unit.iam_up = false;
    unit.boot();
    unit.settle();
    unit.host.exit(&unit.id_of("p"), Exit::Code(1));
    unit.settle();
    assert_eq!(unit.host.starts(), 2);
    // And the record of the second container still tells of its secret.
    unit.boot();
    unit.settle();
    assert_eq!((unit.host.starts(), unit.host.running().len()), (2, 1));
    iam_up(&mut unit, false);
    unit.settle();
    check_registrations(&unit);
    assert_eq!(unit.host.starts(), 2);
}

#[test]
fn a_daemon_that_dies_before_iam_has_heard_of_the_end_tells_it_in_its_next_life() {
    for is_wanted_again in [false, true] {
        let mut unit = running(10);
        iam_down(&mut unit);
        unit.run(request(&[]));
        unit.settle();
        assert!(unit.host.present().is_empty());
        assert_eq!((unit.iam.len(), unit.rows.leaving.len()), (1, 1));
        unit.boot();
        unit.connect();
        if is_wanted_again {
            needs(&unit, "rw");
            unit.run(request(&[("p", "2")]));
            assert!(unit.rows.leaving.is_empty(), "from now on the instance's row tells");
        }
        unit.settle();
        iam_up(&mut unit, false);
        unit.settle();
        assert_eq!(unit.iam.len(), usize::from(is_wanted_again));
        assert!(unit.rows.leaving.is_empty());
        check_registrations(&unit);
    }
}

#[test]
fn a_removal_that_did_not_reach_iam_is_asked_for_again_when_it_comes_back() {
    let mut unit = running(11);
    unit.iam_ignores_removals = true;
    unit.run(request(&[]));
    unit.settle();
    assert_eq!((unit.iam.len(), unit.rows.leaving.len()), (1, 1));
    unit.iam_ignores_removals = false;
    unit.advance(Duration::from_secs(3600));
    assert_eq!(unit.iam.len(), 1, "nobody asks all the time");
    iam_up(&mut unit, true);
    unit.settle();
    assert!(unit.iam.is_empty() && unit.rows.leaving.is_empty());
}

#[test]
fn the_registration_of_a_leftover_goes_too() {
    let mut unit = running(9);
    unit.rows.instances.clear();
    unit.boot();
    unit.settle();
    assert!(unit.host.present().is_empty());
    assert!(unit.iam.is_empty());
}
