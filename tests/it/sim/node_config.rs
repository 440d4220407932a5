//! The node configuration: bad files and devices, whom a change concerns, how often it is told.

use std::sync::Arc;
use std::time::Duration;

use aos_servicemanager::model::command::CmCommand;
use aos_servicemanager::model::event::Event;
use aos_servicemanager::model::node::{Device, DeviceFault, Host, NodeConfig, Resource};
use aos_servicemanager::model::service::ServiceDevice;
use aos_servicemanager::model::status::{AlertPayload, CmReport, ErrorInfo};

use super::unit::{Unit, request};

fn device(name: &str) -> Device {
    Device { name: name.into(), host_devices: vec![format!("/dev/{name}")], ..Device::default() }
}

fn resource(name: &str) -> Resource {
    Resource { name: name.into(), ..Resource::default() }
}

fn config(devices: &[&str], resources: &[&str]) -> NodeConfig {
    NodeConfig {
        version: "1.0.0".into(),
        devices: devices.iter().map(|name| device(name)).collect(),
        resources: resources.iter().map(|name| resource(name)).collect(),
        ..NodeConfig::default()
    }
}

fn uses(unit: &Unit, service: &str, devices: &[&str], resources: &[&str]) {
    let device = |name: &&str| ServiceDevice { name: (*name).into(), permissions: "rw".into() };
    unit.host.configure(service, |image| {
        image.service.devices = devices.iter().map(device).collect();
        image.service.resources = resources.iter().map(|name| (*name).into()).collect();
    });
}

fn fault(name: &str) -> DeviceFault {
    let errors = vec![format!("device /dev/{name} is not present on system")];
    DeviceFault { device: name.into(), errors }
}

fn started(mut unit: Unit) -> Unit {
    unit.boot();
    unit.connect();
    unit.settle();
    unit
}

/// Text of the alerts about devices that were sent so far.
fn alerts(unit: &Unit) -> Vec<String> {
    let text = |report: &CmReport| match report {
        CmReport::Alert(alert) => match &alert.payload {
            AlertPayload::ResourceValidate { name, errors } => {
                let errors: Vec<_> = errors.iter().map(|e| e.message.as_str()).collect();
                Some(format!("{name}: {}", errors.join(", ")))
            }
            AlertPayload::Core { message, .. } => Some(message.clone()),
            _ => None,
        },
        _ => None,
    };
    unit.reports.iter().filter_map(text).collect()
}

/// Version and error of the newest configuration status.
fn status(unit: &Unit) -> (String, Option<String>) {
    let found = unit.reports.iter().rev().find_map(|report| match report {
        CmReport::NodeConfigStatus(status) => Some(status),
        _ => None,
    });
    let found = found.expect("a configuration status was sent");
    (found.version.clone(), found.error.as_ref().map(|error| error.message.clone()))
}

fn set(unit: &mut Unit, version: &str, json: &str) {
    unit.command(CmCommand::SetNodeConfig { json: json.into(), version: version.into() });
    unit.settle();
}

#[test]
fn a_file_that_cannot_be_used_is_an_alert_and_hides_only_what_it_names() {
    let mut unit = Unit::new(1);
    unit.node_config.error = Some(ErrorInfo::text("node configuration is no JSON object"));
    uses(&unit, "dev", &["camera"], &[]);
    uses(&unit, "res", &[], &["dbus"]);
    let mut unit = started(unit);
    assert_eq!(alerts(&unit), ["node configuration is no JSON object"]);
    let error = Some("node configuration is no JSON object".to_owned());
    assert_eq!(status(&unit), ("0.0.0".to_owned(), error));
    unit.run(request(&[("plain", "1"), ("dev", "1"), ("res", "1")]));
    unit.settle();
    let all = unit.full_status();
    assert_eq!(all["plain"], "active 1");
    let why = "failed 1 node configuration cannot be used: node configuration is no JSON object";
    assert_eq!((&*all["dev"], &*all["res"]), (why, why));
    // The CM sends it again.
    unit.node_config.error = None;
    set(&mut unit, "2.0.0", r#"{"devices":[{"name":"camera"}],"resources":[{"name":"dbus"}]}"#);
    unit.command(CmCommand::GetNodeConfigStatus);
    assert_eq!(status(&unit), ("2.0.0".to_owned(), None));
    unit.run(request(&[("plain", "1"), ("dev", "1"), ("res", "1")]));
    unit.settle();
    assert!(unit.full_status().values().all(|s| s == "active 1"), "{:?}", unit.full_status());
}

#[test]
fn the_backup_of_a_damaged_file_serves_its_devices() {
    let mut unit = Unit::new(2);
    unit.node_config.config = Arc::new(config(&["camera"], &["dbus"]));
    unit.node_config.error = Some(ErrorInfo::text("damaged"));
    uses(&unit, "dev", &["camera"], &["dbus"]);
    uses(&unit, "new", &["radar"], &[]);
    let mut unit = started(unit);
    unit.run(request(&[("dev", "1"), ("new", "1")]));
    unit.settle();
    assert_eq!(unit.full_status()["dev"], "active 1");
    let why = "failed 1 node configuration cannot be used: damaged";
    assert_eq!(unit.full_status()["new"], why);
}

#[test]
fn bad_devices_are_told_at_start_and_the_others_serve() {
    let mut unit = Unit::new(3);
    unit.node_config.config = Arc::new(config(&["camera", "radar", "lidar"], &[]));
    unit.device_faults = vec![fault("radar"), fault("lidar")];
    uses(&unit, "dev", &["camera"], &[]);
    let mut unit = started(unit);
    let texts = ["radar", "lidar"]
        .map(|name| format!("{name}: device /dev/{name} is not present on system"));
    assert_eq!(alerts(&unit), texts, "one alert for each");
    let error = status(&unit).1.unwrap();
    assert_eq!(error, format!("device resources are not valid: {}", texts.join("; ")));
    unit.run(request(&[("dev", "1")]));
    unit.settle();
    assert_eq!(unit.full_status()["dev"], "active 1");
}

#[test]
fn a_fault_is_told_once_in_ten_minutes() {
    let mut unit = Unit::new(4);
    unit.node_config.config = Arc::new(config(&["camera"], &[]));
    unit.device_faults = vec![fault("camera")];
    let mut unit = started(unit);
    // A CM that sets its configuration again and again.
    for _ in 0..3 {
        set(&mut unit, "2.0.0", r#"{"devices":[{"name":"camera"}]}"#);
        let error = status(&unit).1.unwrap();
        assert!(error.starts_with("device resources are not valid: camera: "), "{error}");
    }
    assert_eq!(alerts(&unit).len(), 1);
    unit.device_faults.push(fault("radar"));
    let json = r#"{"devices":[{"name":"camera"},{"name":"radar"}]}"#;
    set(&mut unit, "2.0.0", json);
    assert_eq!(alerts(&unit).len(), 2, "another set of errors");
    unit.event(Event::Reload);
    assert_eq!(alerts(&unit).len(), 2);
    unit.advance(Duration::from_secs(600));
    set(&mut unit, "2.0.0", json);
    assert_eq!(alerts(&unit).len(), 4);
}

/// A unit that is asked for `dev`, whose starts fail for want of its device.
fn without_its_device() -> Unit {
    let mut unit = Unit::new(5);
    unit.node_config.config = Arc::new(config(&["camera"], &[]));
    unit.device_faults = vec![fault("camera")];
    uses(&unit, "dev", &["camera"], &[]);
    let mut unit = started(unit);
    unit.host.fail_starts(true);
    unit.run(request(&[("dev", "1")]));
    unit
}

#[test]
fn a_device_that_comes_back_lets_its_instances_start() {
    let mut unit = without_its_device();
    unit.settle();
    assert!(unit.full_status()["dev"].starts_with("failed 1 start limit reached"));
    unit.host.fail_starts(false);
    unit.event(Event::Reload);
    unit.settle();
    assert!(unit.host.running().is_empty(), "nothing has changed");
    unit.device_faults.clear();
    unit.event(Event::Reload);
    unit.settle();
    assert_eq!(unit.deltas().last().unwrap(), "dev active 1");
}

/// Whatever the series of attempts is doing when the device comes back.
#[test]
fn a_device_that_comes_back_at_any_moment() {
    for moment in 0..60 {
        let mut unit = without_its_device();
        for _ in 0..moment {
            if !unit.step() {
                unit.pass(Duration::from_secs(5));
            }
        }
        unit.host.fail_starts(false);
        unit.device_faults.clear();
        unit.event(Event::Reload);
        unit.settle();
        assert_eq!(unit.host.running().len(), 1, "moment {moment}");
    }
}

#[test]
fn a_change_restarts_exactly_those_it_concerns() {
    let mut unit = Unit::new(6);
    unit.node_config.config = Arc::new(config(&["camera", "radar"], &["dbus", "net"]));
    uses(&unit, "camera", &["camera"], &[]);
    uses(&unit, "radar", &["radar"], &[]);
    uses(&unit, "dbus", &[], &["dbus"]);
    uses(&unit, "net", &[], &["net"]);
    let mut unit = started(unit);
    let wanted = [("camera", "1"), ("radar", "1"), ("dbus", "1"), ("net", "1"), ("plain", "1")];
    unit.run(request(&wanted));
    unit.settle();
    assert_eq!(unit.host.starts(), 5);
    let json = r#"{"devices":[{"name":"camera","hostDevices":["/dev/camera"],"sharedCount":7},
        {"name":"radar","hostDevices":["/dev/radar2"]}],
        "resources":[{"name":"dbus"},{"name":"net","hosts":[{"ip":"1.1.1.1","hostname":"h"}]}]}"#;
    set(&mut unit, "2.0.0", json);
    assert_eq!(unit.host.starts(), 5, "from the next request on");
    let before = unit.host.pids();
    unit.run(request(&wanted));
    unit.settle();
    let after = unit.host.pids();
    for (service, restarted) in
        [("camera", false), ("radar", true), ("dbus", false), ("net", true), ("plain", false)]
    {
        let id = unit.id_of(service);
        assert_eq!(before[&id] != after[&id], restarted, "{service}");
    }
    let host = Host { ip: "1.1.1.1".into(), hostname: "h".into() };
    assert_eq!(unit.node_config.config.resources[1].hosts, [host]);
}

/// A unit whose services `a`, `b` and `c` use a device that so many instances may have.
fn with_shared_device(seed: u64, shared_count: u64) -> Unit {
    let mut unit = Unit::new(seed);
    let shared = Device { shared_count, ..device("dev") };
    unit.node_config.config =
        Arc::new(NodeConfig { devices: vec![shared], ..NodeConfig::default() });
    for service in ["a", "b", "c"] {
        // Named twice, it still counts once.
        uses(&unit, service, &["dev", "dev"], &[]);
    }
    started(unit)
}

#[test]
fn of_equal_priorities_the_same_instances_have_the_device_each_time() {
    let busy = "failed 1 no device available: dev";
    for (shared_count, expect) in [
        (0, ["active 1", "active 1", "active 1"]),
        (1, ["active 1", busy, busy]),
        (2, ["active 1", "active 1", busy]),
        (3, ["active 1", "active 1", "active 1"]),
    ] {
        let mut unit = with_shared_device(7, shared_count);
        // Whoever is installed first may have it until the others are.
        unit.run(request(&[("a", "1"), ("b", "1"), ("c", "1")]));
        unit.settle();
        let before = unit.host.pids();
        for order in [["c", "b", "a"], ["a", "b", "c"], ["b", "c", "a"]] {
            unit.run(request(&order.map(|service| (service, "1"))));
            unit.settle();
            let status = unit.full_status();
            assert_eq!(["a", "b", "c"].map(|s| status[s].as_str()), expect, "{shared_count}");
        }
        assert_eq!(unit.host.pids(), before, "{shared_count}: nothing flaps");
    }
}

#[test]
fn a_held_device_is_granted_only_after_the_stop() {
    for seed in 1..20 {
        let mut unit = with_shared_device(seed, 1);
        unit.host.configure("a", |image| image.image.stop_signal = "SIGTERM".into());
        unit.run(request(&[("a", "1")]));
        unit.settle();
        let mut wanted = request(&[("a", "1"), ("b", "1")]);
        wanted.instances[1].priority = 10;
        unit.run(wanted);
        let mut steps = 0;
        while unit.step() || unit.pass(Duration::from_secs(5)) {
            assert!(unit.host.running().len() <= 1, "two have the device");
            steps += 1;
        }
        assert!(steps > 0);
        let status = unit.full_status();
        assert_eq!(status["a"], "failed 1 no device available: dev");
        assert_eq!(status["b"], "active 1");
        // What is not wanted any more gives it back.
        unit.run(request(&[("a", "1")]));
        unit.settle();
        assert_eq!(unit.full_status()["a"], "active 1");
    }
}

#[test]
fn what_failed_for_want_of_something_starts_when_that_is_named() {
    let unit = Unit::new(8);
    uses(&unit, "dev", &["camera"], &[]);
    uses(&unit, "res", &[], &["dbus"]);
    let mut unit = started(unit);
    unit.run(request(&[("dev", "1"), ("res", "1"), ("plain", "1")]));
    unit.settle();
    let status = unit.full_status();
    assert_eq!(status["dev"], "failed 1 device is not available: camera");
    assert_eq!(status["res"], "failed 1 resource is not available: dbus");
    let before = unit.host.pids();
    set(&mut unit, "2.0.0", r#"{"devices":[{"name":"camera"}],"resources":[{"name":"dbus"}]}"#);
    assert_eq!(unit.deltas()[2..], ["dev active 1", "res active 1"]);
    assert_eq!(unit.host.starts(), 3);
    let plain = unit.id_of("plain");
    assert_eq!(unit.host.pids()[&plain], before[&plain]);
}
