//! What an earlier life of the daemon left: kept, replaced, removed.

use aos_servicemanager::model::event::{Event, Exit};

use super::unit::{Unit, request};

fn running(seed: u64) -> Unit {
    let mut unit = Unit::started(seed);
    unit.run(request(&[("a", "1")]));
    unit.settle();
    unit.reports.clear();
    unit
}

#[test]
fn an_old_version_is_supervised_while_the_new_one_is_not_there() {
    let mut unit = running(1);
    unit.fetch_up = false;
    unit.run(request(&[("a", "2")]));
    unit.settle();
    unit.boot();
    unit.connect();
    unit.settle();
    assert_eq!(unit.host.starts(), 1, "adopted");
    unit.check_running();
    let id = unit.id_of("a");
    unit.host.exit(&id, Exit::Code(1));
    unit.settle();
    assert_eq!((unit.host.starts(), &*unit.host.running()[&id]), (2, "1"));
    unit.fetch_up = true;
    unit.settle();
    assert_eq!(unit.host.running()[&id], "2");
    assert_eq!(unit.full_status()["a"], "active 2");
    unit.check_running();
}

#[test]
fn an_old_version_is_adopted_when_the_new_one_cannot_be_installed() {
    let mut unit = running(2);
    unit.host.break_url("file:///a-2");
    unit.run(request(&[("a", "2")]));
    unit.settle();
    unit.boot();
    unit.connect();
    unit.settle();
    unit.check_running();
    assert_eq!(unit.host.starts(), 1);
    assert!(unit.full_status()["a"].starts_with("failed 2 cannot install"));
}

#[test]
fn a_changed_instance_is_replaced() {
    let mut unit = running(3);
    unit.rows.instances[0].instance.uid += 1;
    unit.boot();
    unit.connect();
    unit.settle();
    assert_eq!(unit.host.starts(), 2);
    assert_eq!(unit.full_status()["a"], "active 1");
}

#[test]
fn an_adopted_version_is_confirmed_when_its_time_has_come() {
    let mut unit = Unit::started(4);
    unit.run(request(&[("a", "1")]));
    while unit.step() {}
    assert!(!unit.rows.services[0].confirmed);
    unit.boot();
    unit.connect();
    while unit.step() {}
    assert_eq!(unit.full_status()["a"], "active 1", "at once");
    assert!(!unit.rows.services[0].confirmed);
    unit.settle();
    assert!(unit.rows.services[0].confirmed);
    assert_eq!(unit.host.starts(), 1);
}

#[test]
fn killed_while_it_stops() {
    for steps in 0..8 {
        let mut unit = running(5 + steps);
        unit.run(request(&[]));
        for _ in 0..steps {
            unit.step();
        }
        unit.boot();
        unit.settle();
        assert!(unit.host.present().is_empty());
        unit.check_running();
    }
}

#[test]
fn what_cannot_be_kept_is_killed_together_and_what_survives_is_left_alone() {
    for seed in 40..50 {
        let mut unit = Unit::started(seed);
        unit.run(request(&[("a", "1"), ("b", "1"), ("c", "1")]));
        unit.settle();
        let stuck = unit.id_of("b");
        unit.run(request(&[("d", "1")]));
        // Dead before anything was stopped: nobody wants the three any more.
        unit.boot();
        unit.connect();
        unit.host.make_unkillable(&stuck);
        unit.settle();
        let running: Vec<_> = unit.host.running().into_keys().collect();
        assert!(running.contains(&unit.id_of("d")) && running.contains(&stuck), "{running:?}");
        assert_eq!(running.len(), 2, "{running:?}");
        assert_eq!(unit.full_status()["d"], "active 1");
    }
}

#[test]
fn a_stop_during_the_adoption() {
    for keep in [false, true] {
        for steps in 0..6 {
            let mut unit = running(20 + steps);
            unit.policy.keep_instances_on_exit = keep;
            unit.boot();
            for _ in 0..steps {
                unit.step();
            }
            unit.event(Event::Stop);
            while unit.step() {}
            assert!(!unit.is_alive());
            assert_eq!(unit.host.running().len(), usize::from(keep));
        }
    }
}

#[test]
fn what_runs_survives_a_lost_database() {
    for survey_first in [true, false] {
        let mut unit = Unit::started(21);
        unit.run(request(&[("a", "1"), ("b", "1")]));
        unit.settle();
        let (a, b) = (unit.id_of("a"), unit.id_of("b"));
        let starts = unit.host.starts();
        unit.rows = Default::default();
        unit.exec_up = survey_first;
        unit.boot();
        unit.connect();
        unit.settle();
        assert_eq!(unit.host.running().len(), 2, "nothing is stopped before a request");
        // One of them is still wanted.
        unit.run(request(&[("a", "1")]));
        unit.exec_up = true;
        unit.settle();
        assert_eq!((unit.id_of("a"), unit.host.starts()), (a.clone(), starts), "{survey_first}");
        assert!(!unit.host.present().contains(&b));
        assert_eq!(unit.full_status()["a"], "active 1");
        unit.check_running();
        // From here on it is an instance like any other.
        unit.host.exit(&a, Exit::Code(1));
        unit.settle();
        assert_eq!(unit.host.starts(), starts + 1);
    }
}

#[test]
fn what_nobody_names_ends_with_the_daemon() {
    let mut unit = running(22);
    unit.rows = Default::default();
    unit.boot();
    unit.connect();
    unit.settle();
    assert_eq!(unit.host.running().len(), 1);
    unit.event(Event::Stop);
    unit.settle();
    assert!(unit.host.present().is_empty());
}
