//! Run requests: what is kept, stopped, started and reported, when they follow each other, and when
//! packages, secrets or the cloud are missing.

use std::sync::Arc;
use std::time::Duration;

use aos_servicemanager::core::state::StartVerdict;
use aos_servicemanager::model::command::CmCommand;
use aos_servicemanager::model::desired::{DesiredLayer, PackageSource, RunRequest};
use aos_servicemanager::model::event::{Event, IamEvent};
use aos_servicemanager::model::id::Digest;
use aos_servicemanager::model::node::Device;
use aos_servicemanager::model::service::ServiceDevice;

use super::unit::{Unit, instance, request};

#[test]
fn a_new_service_is_installed_started_and_confirmed() {
    let mut unit = Unit::started(1);
    unit.run(request(&[("a", "1.0.0")]));
    unit.settle();
    assert_eq!(unit.full_status()["a"], "active 1.0.0");
    assert_eq!(unit.full_statuses(), 1);
    assert!(unit.rows.services[0].confirmed);
    assert!(unit.rows.wanted.is_empty());
    assert_eq!(unit.host.running().len(), 1);
    assert!(unit.deltas().is_empty());
}

#[test]
fn registration_always_gets_a_full_status() {
    let mut unit = Unit::new(2);
    unit.boot();
    unit.connect();
    unit.settle();
    assert_eq!(unit.full_statuses(), 1);
    assert!(unit.full_status().is_empty());
    unit.disconnect();
    unit.connect();
    assert_eq!(unit.full_statuses(), 2);
}

#[test]
fn an_equal_request_touches_nothing() {
    let mut unit = Unit::started(3);
    unit.run(request(&[("a", "1.0.0")]));
    unit.settle();
    let mut again = request(&[("a", "1.0.0")]);
    again.instances[0].priority = 20;
    unit.run(again);
    unit.settle();
    assert_eq!(unit.host.starts(), 1);
    assert_eq!(unit.full_statuses(), 2);
    assert_eq!(unit.rows.instances[0].instance.priority, 20);
}

#[test]
fn a_new_version_replaces_the_old_one_under_the_same_id() {
    let mut unit = Unit::started(4);
    unit.run(request(&[("a", "1.0.0")]));
    unit.settle();
    let id = unit.id_of("a");
    unit.run(request(&[("a", "1.10.0")]));
    unit.settle();
    assert_eq!(unit.full_status()["a"], "active 1.10.0");
    assert_eq!(unit.host.running()[&id], "1.10.0");
    let old = unit.rows.services.iter().find(|s| &*s.key.version == "1.0.0").unwrap();
    assert!(old.unused_since_ms.is_some());
}

#[test]
fn a_failed_install_keeps_the_old_version_running_and_says_why() {
    let mut unit = Unit::started(5);
    unit.run(request(&[("a", "1.0.0"), ("b", "1.0.0")]));
    unit.settle();
    unit.host.break_url("file:///a-2.0.0");
    unit.run(request(&[("a", "2.0.0"), ("b", "1.0.0")]));
    unit.settle();
    assert_eq!(
        unit.full_status()["a"],
        "failed 2.0.0 cannot install service a 2.0.0: made-up failure of download"
    );
    assert_eq!(unit.full_status()["b"], "active 1.0.0");
    assert_eq!(unit.host.running()[&unit.id_of("a")], "1.0.0");
    assert_eq!(unit.rows.wanted[0].last_error, "made-up failure of download");
    // The CM reverts: nothing is restarted.
    unit.run(request(&[("a", "1.0.0"), ("b", "1.0.0")]));
    unit.settle();
    assert_eq!(unit.full_status()["a"], "active 1.0.0");
    assert_eq!(unit.host.starts(), 2);
}

#[test]
fn a_later_request_tries_a_failed_install_again() {
    let mut unit = Unit::started(6);
    unit.host.break_url("file:///a-1.0.0");
    unit.run(request(&[("a", "1.0.0")]));
    unit.settle();
    assert!(unit.full_status()["a"].starts_with("failed 1.0.0 cannot install"));
    unit.host.mend_url("file:///a-1.0.0");
    unit.run(request(&[("a", "1.0.0")]));
    unit.settle();
    assert_eq!(unit.full_status()["a"], "active 1.0.0");
}

#[test]
fn unknown_services_and_layers() {
    let mut unit = Unit::started(7);
    let mut wanted = request(&[("a", "1.0.0")]);
    wanted.instances.push(instance("ghost"));
    unit.host.configure("a", |image| {
        let hex = "0".repeat(64);
        image.layers =
            vec![aos_servicemanager::model::id::Digest::parse(&format!("sha256:{hex}")).unwrap()];
    });
    unit.run(wanted);
    unit.settle();
    assert_eq!(unit.full_status()["ghost"], "failed  service not exist");
    assert!(unit.full_status()["a"].starts_with("failed 1.0.0 layer does not exist"));
}

#[test]
fn a_layer_that_cannot_be_installed_is_the_reason_why_its_service_does_not_run() {
    let mut unit = Unit::started(47);
    let digest = Digest::parse(&format!("sha256:{}", "1".repeat(64))).unwrap();
    let layer = DesiredLayer {
        digest: digest.clone(),
        layer_id: "base".to_owned(),
        version: "1".to_owned(),
        source: PackageSource { url: "file:///base".to_owned(), ..PackageSource::default() },
    };
    unit.host.configure("a", |image| image.layers = vec![digest.clone()]);
    unit.host.break_url("file:///base");
    let wanted = RunRequest { layers: vec![layer], ..request(&[("a", "1.0.0"), ("b", "1.0.0")]) };
    unit.run(wanted.clone());
    unit.settle();
    let expect =
        format!("failed 1.0.0 layer does not exist: {digest}: made-up failure of download");
    assert_eq!(unit.full_status()["a"], expect);
    assert_eq!(unit.full_status()["b"], "active 1.0.0");
    unit.host.mend_url("file:///base");
    unit.run(wanted);
    unit.settle();
    assert_eq!(unit.full_status()["a"], "active 1.0.0");
}

#[test]
fn an_empty_request_stops_everything() {
    let mut unit = Unit::started(8);
    unit.run(request(&[("a", "1.0.0"), ("b", "1.0.0")]));
    unit.settle();
    unit.run(RunRequest::default());
    unit.settle();
    assert!(unit.full_status().is_empty());
    assert!(unit.host.present().is_empty());
    assert!(unit.rows.instances.is_empty());
}

#[test]
fn force_restart_stops_all_first() {
    let mut unit = Unit::started(9);
    unit.run(request(&[("a", "1.0.0"), ("b", "1.0.0")]));
    unit.settle();
    let id = unit.id_of("a");
    let force = RunRequest { force_restart: true, ..request(&[("a", "1.0.0"), ("b", "1.0.0")]) };
    unit.run(force);
    unit.settle();
    assert_eq!(unit.host.starts(), 4);
    assert_eq!(unit.id_of("a"), id);
    assert_eq!(unit.full_statuses(), 2);
}

#[test]
fn a_newer_request_supersedes_one_that_is_being_carried_out() {
    let mut unit = Unit::started(10);
    unit.run(request(&[("a", "1.0.0"), ("b", "1.0.0")]));
    for _ in 0..3 {
        unit.step();
    }
    unit.run(request(&[("b", "1.0.0"), ("c", "1.0.0")]));
    unit.settle();
    assert_eq!(unit.full_statuses(), 1);
    assert_eq!(unit.full_status().keys().collect::<Vec<_>>(), ["b", "c"]);
    assert_eq!(unit.host.running().len(), 2);
    assert_eq!(unit.host.present().len(), 2);
}

#[test]
fn thousand_instances_and_one_more_than_allowed() {
    let mut unit = Unit::started(11);
    unit.policy.max_instances = 1000;
    unit.boot();
    unit.connect();
    unit.settle();
    let mut wanted = request(&[("a", "1.0.0")]);
    let mut copy = |index| {
        let mut one = instance("a");
        one.ident.instance = index;
        wanted.instances.push(one);
    };
    (1..=1000).for_each(&mut copy);
    unit.run(wanted);
    unit.settle();
    assert_eq!(unit.host.running().len(), 1000);
    let failed = unit.reports.iter().rev().find_map(|r| match r {
        aos_servicemanager::model::status::CmReport::RunStatus(list) => {
            Some(list.iter().filter_map(|s| s.error.clone()).collect::<Vec<_>>())
        }
        _ => None,
    });
    assert_eq!(
        failed.unwrap().into_iter().map(|e| e.message).collect::<Vec<_>>(),
        ["more than 1000 instances"]
    );
}

fn with_device(unit: &mut Unit, names: &[&str], shared_count: u64) {
    Arc::make_mut(&mut unit.node_config.config).devices =
        vec![Device { name: "dev".into(), shared_count, ..Device::default() }];
    for name in names {
        unit.host.configure(name, |image| {
            image.service.devices =
                vec![ServiceDevice { name: "dev".into(), permissions: "rw".into() }];
        });
    }
}

#[test]
fn devices_go_by_priority() {
    let mut unit = Unit::new(12);
    with_device(&mut unit, &["a", "b", "c"], 2);
    unit.boot();
    unit.connect();
    unit.settle();
    let wanted = |services: &[(&str, &str, u64)]| {
        let list: Vec<(&str, &str)> = services.iter().map(|(id, v, _)| (*id, *v)).collect();
        let mut wanted = request(&list);
        for (instance, (_, _, priority)) in wanted.instances.iter_mut().zip(services) {
            instance.priority = *priority;
        }
        wanted
    };
    unit.run(wanted(&[("a", "1", 10), ("b", "1", 20)]));
    unit.settle();
    assert_eq!(unit.host.running().len(), 2);
    unit.run(wanted(&[("a", "1", 10), ("b", "1", 20), ("c", "1", 0)]));
    unit.settle();
    assert_eq!(unit.full_status()["c"], "failed 1 no device available: dev");
    assert_eq!(unit.host.starts(), 2);
    unit.run(wanted(&[("a", "1", 10), ("b", "1", 20), ("c", "1", 30)]));
    unit.settle();
    assert_eq!(unit.full_status()["c"], "active 1");
    assert_eq!(unit.full_status()["a"], "failed 1 no device available: dev");
    let alerts = unit
        .reports
        .iter()
        .filter(|r| matches!(r, aos_servicemanager::model::status::CmReport::Alert(_)));
    assert_eq!(alerts.count(), 2);
}

#[test]
fn verdict_policies() {
    for (verdict, wait) in [
        (StartVerdict::ConfirmNew, Duration::from_secs(5)),
        (StartVerdict::Immediate, Duration::ZERO),
        (StartVerdict::Reference, Duration::from_secs(6)),
    ] {
        let mut unit = Unit::new(13);
        unit.policy.start_verdict = verdict;
        unit.boot();
        unit.connect();
        unit.settle();
        unit.reports.clear();
        let begin = unit.now.mono;
        unit.run(request(&[("a", "1")]));
        while unit.full_statuses() == 0 {
            assert!(unit.step() || unit.pass(Duration::from_secs(60)));
        }
        assert_eq!(unit.full_status()["a"], "active 1");
        assert_eq!(unit.now.mono - begin, wait, "{verdict:?}");
    }
}

#[test]
fn permissions_wait_for_iam_and_hold_nobody_else() {
    let mut unit = Unit::started(14);
    unit.host.configure("p", |image| image.service.permissions = Some(Default::default()));
    unit.iam_up = false;
    unit.event(Event::Iam(IamEvent::Down));
    unit.run(request(&[("a", "1"), ("p", "1")]));
    unit.settle();
    assert_eq!(unit.full_status()["a"], "active 1");
    assert_eq!(unit.full_status()["p"], "inactive 1");
    unit.iam_up = true;
    unit.event(Event::Iam(IamEvent::Up { restarted: false }));
    unit.settle();
    assert_eq!(unit.host.running().len(), 2);
    assert_eq!(unit.deltas().last().unwrap(), "p active 1");
}

#[test]
fn a_restarted_iam_restarts_those_whose_secret_changed() {
    let mut unit = Unit::started(15);
    unit.host.configure("p", |image| image.service.permissions = Some(Default::default()));
    unit.run(request(&[("a", "1"), ("p", "1")]));
    unit.settle();
    unit.event(Event::Iam(IamEvent::Up { restarted: true }));
    unit.settle();
    assert_eq!(unit.host.starts(), 2, "the same secret: nothing restarts");
    unit.iam.clear();
    unit.event(Event::Iam(IamEvent::Up { restarted: true }));
    unit.settle();
    assert_eq!(unit.host.starts(), 3);
}

#[test]
fn override_variables_restart_only_those_concerned() {
    use aos_servicemanager::model::desired::{EnvOverride, EnvVariable, InstanceFilter};
    let mut unit = Unit::started(16);
    unit.run(request(&[("a", "1"), ("b", "1")]));
    unit.settle();
    let variable = EnvVariable {
        name: "X".into(),
        value: "1".into(),
        ttl_ms: Some(unit.now.wall_ms + 120_000),
    };
    let filter = InstanceFilter { service_id: Some("b".into()), ..Default::default() };
    unit.command(CmCommand::OverrideEnvVars(vec![EnvOverride {
        filter,
        variables: vec![variable],
    }]));
    unit.settle();
    assert_eq!(unit.host.starts(), 3);
    unit.advance(Duration::from_secs(121));
    unit.settle();
    assert_eq!(unit.host.starts(), 4, "the variable has expired");
    assert!(unit.rows.env_overrides.is_empty());
}

#[test]
fn offline_too_long_stops_and_the_cloud_brings_back() {
    let mut unit = Unit::started(17);
    unit.patience = Duration::from_secs(30);
    unit.host.configure("t", |image| image.service.offline_ttl = Some(Duration::from_secs(600)));
    unit.command(CmCommand::ConnectionStatus { online: true });
    unit.run(request(&[("a", "1"), ("t", "1")]));
    unit.settle();
    unit.command(CmCommand::ConnectionStatus { online: false });
    unit.advance(Duration::from_secs(599));
    unit.settle();
    assert_eq!(unit.host.running().len(), 1, "the deadline is a second away and was waited for");
    assert_eq!(unit.deltas().last().unwrap(), "t failed 1 offline timeout");
    unit.command(CmCommand::ConnectionStatus { online: true });
    unit.settle();
    assert_eq!(unit.host.running().len(), 2);
}

#[test]
fn an_install_that_crashed_the_daemon_twice_waits_for_the_next_request() {
    let mut unit = Unit::started(18);
    unit.run(request(&[("a", "1")]));
    for _ in 0..2 {
        assert!(unit.is_installing());
        unit.kill();
        unit.boot();
        unit.connect();
        while !unit.is_installing() && unit.step() {}
    }
    assert!(!unit.is_installing());
    unit.settle();
    assert_eq!(
        unit.full_status()["a"],
        "failed 1 cannot install service a 1: installation crashed: the daemon ended twice while \
         installing it"
    );
    unit.run(request(&[("a", "1")]));
    unit.settle();
    assert_eq!(unit.full_status()["a"], "active 1");
}

#[test]
fn a_request_during_an_install_does_not_hide_that_it_crashes() {
    let mut unit = Unit::started(19);
    unit.run(request(&[("a", "1")]));
    unit.run(request(&[("a", "1")]));
    assert_eq!(unit.rows.wanted[0].attempts_begun, 1);
}

#[test]
fn an_orderly_stop_during_an_install_is_no_crash() {
    let mut unit = Unit::started(20);
    unit.fetch_up = false;
    unit.run(request(&[("a", "1")]));
    unit.event(Event::Stop);
    while unit.step() {}
    assert!(!unit.is_alive(), "nobody waits for the install");
    assert_eq!(unit.rows.wanted[0].attempts_begun, 0);
    unit.fetch_up = true;
    unit.boot();
    unit.connect();
    unit.settle();
    assert_eq!(unit.full_status()["a"], "active 1");
}

#[test]
fn a_long_time_online_does_not_count_as_offline_after_a_crash() {
    let mut unit = Unit::started(21);
    unit.host.configure("t", |image| image.service.offline_ttl = Some(Duration::from_secs(600)));
    unit.command(CmCommand::ConnectionStatus { online: true });
    unit.run(request(&[("t", "1")]));
    unit.settle();
    for _ in 0..100 {
        unit.advance(Duration::from_secs(3600));
        unit.settle();
    }
    unit.boot();
    unit.connect();
    while unit.step() {}
    assert_eq!(unit.full_status()["t"], "active 1");
    assert_eq!(unit.host.starts(), 1);
}

#[test]
fn time_without_power_counts_as_offline() {
    let mut unit = Unit::started(22);
    unit.host.configure("t", |image| image.service.offline_ttl = Some(Duration::from_secs(600)));
    unit.run(request(&[("t", "1")]));
    unit.settle();
    assert_eq!(unit.full_status()["t"], "active 1");
    unit.disconnect();
    unit.kill();
    unit.now.wall_ms += 700_000;
    unit.boot();
    unit.connect();
    unit.settle();
    assert_eq!(unit.full_status()["t"], "failed 1 offline timeout");
    assert!(unit.host.present().is_empty());
}

#[test]
fn a_clock_that_is_not_set_removes_no_package() {
    let mut unit = Unit::started(23);
    unit.run(request(&[("a", "1"), ("b", "1")]));
    unit.settle();
    let set = unit.now.wall_ms;
    unit.rows.services.iter_mut().for_each(|row| row.installed_at_ms = set);
    unit.now.wall_ms = 0;
    unit.boot();
    unit.connect();
    unit.settle();
    unit.run(request(&[("a", "1")]));
    unit.settle();
    unit.now.wall_ms = set + 1000;
    unit.event(Event::ClockChanged);
    unit.settle();
    assert_eq!(unit.rows.services.len(), 2);
    unit.advance(Duration::from_secs(30 * 24 * 3600 + 1));
    unit.settle();
    assert_eq!(unit.rows.services.len(), 1, "its time has passed");
}

#[test]
fn an_old_version_makes_room_for_a_new_one_that_does_not_fit_beside_it() {
    for (capacity, status) in [
        (3, "active 2"),
        (2, "active 2"),
        (1, "failed 2 cannot install service a 2: made-up failure of space"),
    ] {
        let mut unit = Unit::started(24);
        unit.run(request(&[("a", "1"), ("b", "1")]));
        unit.settle();
        unit.host.capacity(capacity);
        unit.run(request(&[("a", "2"), ("b", "1")]));
        unit.settle();
        assert_eq!(unit.full_status()["a"], status);
        assert_eq!((unit.full_statuses(), unit.deltas().len()), (2, 0));
        assert_eq!(unit.full_status()["b"], "active 1");
        let old = unit.rows.services.iter().any(|r| r.path.ends_with("service a 1"));
        assert_eq!(old, capacity == 3);
    }
}
