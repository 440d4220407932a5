//! The run calculation of the specification of instances, 19.5, line by line.

use std::collections::BTreeMap;
use std::sync::Arc;

use aos_servicemanager::model::desired::RunRequest;
use aos_servicemanager::model::event::Exit;
use aos_servicemanager::model::id::InstanceId;
use aos_servicemanager::model::node::Device;
use aos_servicemanager::model::service::ServiceDevice;
use aos_servicemanager::model::status::{AlertPayload, CmReport};

use super::unit::{Unit, request};

fn running(seed: u64, change: impl FnOnce(&mut RunRequest)) -> Unit {
    let mut unit = Unit::started(seed);
    let mut wanted = request(&[("a", "1")]);
    change(&mut wanted);
    unit.run(wanted);
    unit.settle();
    assert_eq!(unit.full_status()["a"], "active 1");
    unit.reports.clear();
    unit
}

/// Starts, full statuses and deltas since `running`.
fn counts(unit: &Unit) -> (u64, usize, usize) {
    (unit.host.starts() - 1, unit.full_statuses(), unit.deltas().len())
}

#[test]
fn another_priority_restarts_nothing_and_is_stored() {
    let mut unit = running(1, |wanted| wanted.instances[0].priority = 10);
    let mut wanted = request(&[("a", "1")]);
    wanted.instances[0].priority = 20;
    unit.run(wanted);
    unit.settle();
    assert_eq!(counts(&unit), (0, 1, 0));
    assert_eq!(unit.rows.instances[0].instance.priority, 20);
}

#[test]
fn another_version_is_a_restart_under_the_same_id() {
    let mut unit = running(2, |_| {});
    let id = unit.id_of("a");
    unit.run(request(&[("a", "2")]));
    unit.settle();
    assert_eq!(counts(&unit), (1, 1, 0));
    assert_eq!(unit.host.running()[&id], "2");
    assert_eq!(unit.id_of("a"), id);
}

#[test]
fn a_failed_instance_is_started_anew() {
    let mut unit = running(3, |_| {});
    let id = unit.id_of("a");
    unit.host.stillborn(3);
    unit.host.exit(&id, Exit::Code(1));
    unit.settle();
    assert!(unit.host.running().is_empty());
    let starts = unit.host.starts();
    unit.reports.clear();
    unit.run(request(&[("a", "1")]));
    unit.settle();
    assert_eq!((unit.host.starts() - starts, unit.full_statuses()), (1, 1));
    assert_eq!(unit.full_status()["a"], "active 1");
    assert_eq!(unit.id_of("a"), id);
}

#[test]
fn what_is_not_wanted_any_more_is_stopped_and_forgotten() {
    let mut unit = running(4, |_| {});
    unit.run(RunRequest::default());
    unit.settle();
    assert_eq!(counts(&unit), (0, 1, 0));
    assert!(unit.full_status().is_empty() && unit.rows.instances.is_empty());
    assert!(unit.host.present().is_empty());
}

#[test]
fn the_order_of_dns_servers_and_rules_is_no_difference() {
    use aos_servicemanager::model::desired::FirewallRule;
    let rule = |port: &str| FirewallRule {
        dst_ip: "10.0.0.9".into(),
        dst_port: port.into(),
        proto: "tcp".into(),
        src_ip: "10.0.0.2".into(),
    };
    let wanted = |servers: &[&str], ports: &[&str]| {
        let mut wanted = request(&[("a", "1")]);
        let network = &mut wanted.instances[0].network;
        network.dns_servers = servers.iter().map(|s| (*s).to_owned()).collect();
        network.rules = ports.iter().map(|port| rule(port)).collect();
        wanted
    };
    let mut unit = running(5, |first| *first = wanted(&["x", "y"], &["1", "2"]));
    for (servers, ports, restarts) in [
        (&["y", "x"][..], &["2", "1"][..], 0),
        (&["y", "x", "x"], &["2", "1"], 1),
        (&["x", "y", "x"], &["1", "2"], 1),
        // Not a set of which one half is enough, as in the reference.
        (&["x", "y", "y"], &["1", "2"], 2),
        (&["x", "y", "y"], &["1", "1"], 3),
        (&["y", "x", "y"], &["1", "2"], 4),
    ] {
        unit.run(wanted(servers, ports));
        unit.settle();
        assert_eq!(counts(&unit).0, restarts, "{servers:?} {ports:?}");
    }
}

/// Four users of a device that four may have, of priority 10, 10, 20, 20.
fn four_users(seed: u64) -> Unit {
    let mut unit = Unit::new(seed);
    let device = Device { name: "dev".into(), shared_count: 4, ..Device::default() };
    Arc::make_mut(&mut unit.node_config.config).devices = vec![device];
    for service in ["a", "b", "c", "d", "e", "f"] {
        unit.host.configure(service, |image| {
            image.service.devices =
                vec![ServiceDevice { name: "dev".into(), permissions: "rw".into() }];
        });
    }
    unit.boot();
    unit.connect();
    unit.run(users(&[("a", 10), ("b", 10), ("c", 20), ("d", 20)]));
    unit.settle();
    assert!(unit.full_status().values().all(|s| s == "active 1"));
    unit.reports.clear();
    unit
}

fn users(list: &[(&str, u64)]) -> RunRequest {
    let services: Vec<_> = list.iter().map(|(service, _)| (*service, "1")).collect();
    let mut wanted = request(&services);
    for (instance, (_, priority)) in wanted.instances.iter_mut().zip(list) {
        instance.priority = *priority;
    }
    wanted
}

/// Services of the alerts about a refused device.
fn refused(unit: &Unit) -> Vec<String> {
    let service = |report: &CmReport| match report {
        CmReport::Alert(alert) => match &alert.payload {
            AlertPayload::DeviceAllocate { ident, device, message } => {
                assert_eq!((device.as_str(), message.as_str()), ("dev", NO_DEVICE));
                Some(ident.service_id.to_string())
            }
            _ => None,
        },
        _ => None,
    };
    let mut services: Vec<_> = unit.reports.iter().filter_map(service).collect();
    services.sort();
    services
}

const NO_DEVICE: &str = "no device available: dev";

fn changed(before: &BTreeMap<InstanceId, u32>, unit: &Unit, services: &[&str]) -> Vec<bool> {
    let after = unit.host.pids();
    services.iter().map(|s| before.get(&unit.id_of(s)) != after.get(&unit.id_of(s))).collect()
}

#[test]
fn lower_priorities_do_not_get_a_device_that_others_have() {
    let mut unit = four_users(6);
    let before = unit.host.pids();
    unit.run(users(&[("a", 10), ("b", 10), ("c", 20), ("d", 20), ("e", 0), ("f", 0)]));
    unit.settle();
    let status = unit.full_status();
    for service in ["e", "f"] {
        assert_eq!(status[service], format!("failed 1 {NO_DEVICE}"));
    }
    assert_eq!(changed(&before, &unit, &["a", "b", "c", "d"]), [false; 4]);
    assert_eq!(refused(&unit), ["e", "f"]);
    assert_eq!((unit.full_statuses(), unit.deltas().len()), (1, 0));
}

#[test]
fn higher_priorities_take_a_device_away() {
    let mut unit = four_users(7);
    let before = unit.host.pids();
    unit.run(users(&[("a", 10), ("b", 10), ("c", 20), ("d", 20), ("e", 30), ("f", 30)]));
    unit.settle();
    let status = unit.full_status();
    for service in ["a", "b"] {
        assert_eq!(status[service], format!("failed 1 {NO_DEVICE}"));
    }
    for service in ["c", "d", "e", "f"] {
        assert_eq!(status[service], "active 1");
    }
    assert_eq!(changed(&before, &unit, &["c", "d"]), [false; 2]);
    assert_eq!(unit.host.running().len(), 4);
    assert_eq!(refused(&unit), ["a", "b"]);
    assert_eq!((unit.full_statuses(), unit.deltas().len()), (1, 0));
}

#[test]
fn a_forced_restart_stops_all_before_it_starts_any() {
    let mut unit = running(8, |wanted| *wanted = request(&[("a", "1"), ("b", "1"), ("c", "1")]));
    let ids = ["a", "b", "c"].map(|service| unit.id_of(service));
    let force =
        RunRequest { force_restart: true, ..request(&[("a", "1"), ("b", "1"), ("c", "1")]) };
    unit.run(force);
    let before = unit.host.starts();
    while unit.host.starts() == before {
        assert!(unit.step());
    }
    assert_eq!(unit.host.running().len(), 1, "the first start comes after the last stop");
    unit.settle();
    assert_eq!(unit.host.starts() - before, 3);
    assert_eq!((unit.full_statuses(), unit.deltas().len()), (1, 0));
    assert_eq!(["a", "b", "c"].map(|service| unit.id_of(service)), ids);
}

#[test]
fn an_explicit_stop_opens_a_new_window_of_the_start_limiter() {
    let mut unit = running(9, |_| {});
    let id = unit.id_of("a");
    let die = |unit: &mut Unit| {
        unit.host.exit(&id, Exit::Code(1));
        unit.settle();
    };
    // Three starts within the window, the last one lives.
    die(&mut unit);
    die(&mut unit);
    assert_eq!(counts(&unit).0, 2);
    unit.run(RunRequest { force_restart: true, ..request(&[("a", "1")]) });
    unit.settle();
    assert_eq!(counts(&unit).0, 3);
    die(&mut unit);
    die(&mut unit);
    assert_eq!(counts(&unit).0, 5, "its start was the first of a new window");
    die(&mut unit);
    assert_eq!(counts(&unit).0, 5);
    let last = unit.deltas().last().cloned().unwrap();
    assert!(last.starts_with("a failed(1) 1 start limit reached"), "{last}");
}
