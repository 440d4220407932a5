//! What has to wait for what: stops, networks, devices, reads; and that jobs fit into the queues.

use std::sync::Arc;
use std::time::Duration;

use aos_servicemanager::model::command::CmCommand;
use aos_servicemanager::model::desired::{NetworkParams, RunRequest};
use aos_servicemanager::model::event::{Event, Exit};
use aos_servicemanager::model::id::NetworkId;
use aos_servicemanager::model::node::{Device, NodeConfig};
use aos_servicemanager::model::service::ServiceDevice;
use aos_servicemanager::model::status::{AlertPayload, CmReport};

use super::unit::{Unit, request};

/// One instance of a service with a fixed address.
fn at_address(service: &str) -> RunRequest {
    let mut wanted = request(&[(service, "1")]);
    wanted.instances[0].network.ip = "10.0.0.2".into();
    wanted
}

#[test]
fn an_address_is_free_before_the_next_instance_gets_it() {
    for seed in 1..60 {
        let mut unit = Unit::started(seed);
        unit.run(at_address("a"));
        for _ in 0..seed % 7 {
            unit.step();
        }
        unit.run(at_address("b"));
        for _ in 0..seed % 5 {
            unit.step();
        }
        unit.run(at_address("a"));
        unit.settle();
        assert_eq!(unit.full_status()["a"], "active 1");
        assert_eq!(unit.host.present().len(), 1);
        unit.check_running();
    }
}

#[test]
fn nothing_starts_before_the_networks_are_there() {
    let mut unit = Unit::started(1);
    unit.net_up = false;
    unit.command(CmCommand::UpdateNetworks(Vec::new()));
    unit.command(CmCommand::UpdateNetworks(Vec::new()));
    unit.run(request(&[("a", "1")]));
    unit.settle();
    assert_eq!(unit.host.starts(), 0);
    unit.net_up = true;
    unit.settle();
    assert_eq!(unit.full_status()["a"], "active 1");
}

/// Texts of the alerts since the last look.
fn alerts(unit: &mut Unit) -> Vec<String> {
    let new = unit.reports.drain(..).filter_map(|report| match report {
        CmReport::Alert(alert) => Some(alert.payload),
        _ => None,
    });
    let text = |alert| match alert {
        AlertPayload::Core { message, .. } => message,
        other => panic!("{other:?}"),
    };
    new.map(text).collect()
}

#[test]
fn a_network_that_cannot_be_set_up_is_told_once_and_fails_its_instances() {
    let mut unit = Unit::started(3);
    let mut wanted = request(&[("a", "1"), ("b", "1")]);
    wanted.services[0].provider_id = NetworkId::new("bad");
    let told = "cannot set up network bad: subnet overlaps";
    unit.host.break_networks(&[("bad", "subnet overlaps")]);
    // The CM sends the set before each request; of two that wait the last one counts.
    for expect in [&[told][..], &[]] {
        unit.command(CmCommand::UpdateNetworks(Vec::new()));
        unit.command(CmCommand::UpdateNetworks(Vec::new()));
        unit.run(wanted.clone());
        unit.settle();
        let status = unit.full_status();
        assert_eq!(status["b"], "active 1");
        assert!(status["a"].starts_with("failed 1 "), "{status:?}");
        assert!(status["a"].ends_with(": subnet overlaps"), "{status:?}");
        assert_eq!(alerts(&mut unit), expect);
    }
    // Another reason is news, and so is the same one after it had gone.
    unit.host.break_networks(&[("bad", "address in use")]);
    unit.command(CmCommand::UpdateNetworks(Vec::new()));
    unit.settle();
    assert_eq!(alerts(&mut unit), ["cannot set up network bad: address in use"]);
    unit.host.break_networks(&[]);
    unit.command(CmCommand::UpdateNetworks(Vec::new()));
    unit.run(wanted.clone());
    unit.settle();
    assert_eq!(unit.full_status()["a"], "active 1");
    assert!(alerts(&mut unit).is_empty());
    unit.host.break_networks(&[("bad", "subnet overlaps")]);
    unit.command(CmCommand::UpdateNetworks(Vec::new()));
    unit.settle();
    assert_eq!(alerts(&mut unit), [told]);
}

/// The CM lists a network once for every service of its provider.
#[test]
fn the_last_entry_of_a_network_counts() {
    let mut unit = Unit::started(3);
    let network = |id: &str, ip: &str, vlan_id| NetworkParams {
        id: NetworkId::new(id),
        subnet: "172.17.0.0/16".into(),
        ip: ip.into(),
        vlan_id,
    };
    let (old, other, new) = (network("a", "1", 1), network("b", "2", 2), network("a", "3", 3));
    unit.command(CmCommand::UpdateNetworks(vec![old, other.clone(), new.clone()]));
    unit.settle();
    assert_eq!(unit.rows.networks, [new, other]);
}

/// After a restart of the daemon instances still have their network as it was.
#[test]
fn a_network_is_stored_until_its_last_instance_has_gone() {
    let mut unit = Unit::started(6);
    let network = |id: &str| NetworkParams {
        id: NetworkId::new(id),
        subnet: "172.17.0.0/16".into(),
        ip: "172.17.0.1".into(),
        vlan_id: 300,
    };
    let [a, b, c] = ["a", "b", "c"].map(network);
    unit.command(CmCommand::UpdateNetworks(vec![a.clone(), b.clone(), c.clone()]));
    unit.settle();
    unit.draining = vec![a.id.clone(), b.id.clone()];
    unit.command(CmCommand::UpdateNetworks(vec![c.clone()]));
    assert_eq!(unit.rows.networks, [c.clone(), a.clone(), b.clone()], "net has not answered");
    unit.settle();
    assert_eq!(unit.rows.networks, [c.clone(), a.clone(), b.clone()]);
    unit.event(Event::NetworkGone(b.id.clone()));
    assert_eq!(unit.rows.networks, [c.clone(), a.clone()]);
    // One that is listed again is not left any more, whatever is heard of an earlier end.
    unit.draining.clear();
    unit.command(CmCommand::UpdateNetworks(vec![a.clone()]));
    unit.settle();
    unit.event(Event::NetworkGone(a.id.clone()));
    assert_eq!(unit.rows.networks, [a]);
}

/// The cause goes away by itself, and nobody sends anything.
#[test]
fn instances_of_a_network_that_comes_later_start() {
    let mut unit = Unit::started(4);
    let mut wanted = request(&[("a", "1"), ("b", "1")]);
    wanted.services[0].provider_id = NetworkId::new("bad");
    unit.host.break_networks(&[("bad", "address in use")]);
    unit.command(CmCommand::UpdateNetworks(Vec::new()));
    unit.run(wanted);
    unit.settle();
    assert!(unit.full_status()["a"].starts_with("failed 1 start limit reached"));
    assert_eq!(alerts(&mut unit), ["cannot set up network bad: address in use"]);
    unit.host.break_networks(&[]);
    unit.event(Event::NetworkReady(NetworkId::new("other")));
    unit.settle();
    assert!(unit.deltas().is_empty());
    unit.event(Event::NetworkReady(NetworkId::new("bad")));
    unit.settle();
    assert_eq!(unit.deltas().last().map(String::as_str), Some("a active 1"));
    assert!(alerts(&mut unit).is_empty());
    // The same trouble is news again.
    unit.host.break_networks(&[("bad", "address in use")]);
    unit.command(CmCommand::UpdateNetworks(Vec::new()));
    unit.settle();
    assert_eq!(alerts(&mut unit), ["cannot set up network bad: address in use"]);
}

#[test]
fn late_ends_of_killed_containers_are_no_ends_of_their_successors() {
    for seed in 1..60 {
        let mut unit = Unit::started(seed);
        unit.run(request(&[("a", "1"), ("b", "1")]));
        unit.settle();
        unit.reports.clear();
        let force = RunRequest { force_restart: true, ..request(&[("a", "1"), ("b", "1")]) };
        unit.run(force);
        unit.settle();
        assert_eq!(unit.host.starts(), 4, "seed {seed}");
        assert!(unit.deltas().is_empty());
        unit.check_running();
    }
}

#[test]
fn containers_that_end_before_their_start_is_known() {
    for overtake in [false, true] {
        let mut unit = Unit::started(2);
        unit.exits_overtake = overtake;
        unit.host.stillborn(2);
        unit.run(request(&[("a", "1")]));
        unit.settle();
        assert_eq!(unit.host.starts(), 3);
        assert_eq!(unit.full_status()["a"], "active 1");
        unit.host.stillborn(9);
        unit.run(request(&[("b", "1")]));
        unit.settle();
        let text = "failed(7) 1 start limit reached (3 starts in 5s): exited with code 7";
        assert_eq!(unit.full_status()["b"], text);
        unit.check_running();
    }
}

#[test]
fn many_images_are_read_a_queue_full_at_a_time() {
    let names: Vec<String> = (0..150).map(|i| format!("s{i}")).collect();
    let list: Vec<(&str, &str)> = names.iter().map(|n| (n.as_str(), "1")).collect();
    let mut unit = Unit::started(3);
    unit.run(request(&list));
    unit.settle();
    unit.boot();
    unit.connect();
    unit.settle();
    assert_eq!(unit.host.starts(), 150);
    assert!(unit.full_status().values().all(|s| s == "active 1"));
    unit.check_running();
}

fn device(name: &str, shared_count: u64) -> NodeConfig {
    let devices = vec![Device { name: name.into(), shared_count, ..Device::default() }];
    NodeConfig { devices, ..NodeConfig::default() }
}

fn uses_device(unit: &Unit, services: &[&str]) {
    for service in services {
        unit.host.configure(service, |image| {
            image.service.devices =
                vec![ServiceDevice { name: "dev".into(), permissions: "rw".into() }];
        });
    }
}

#[test]
fn a_device_goes_to_the_same_instance_after_a_restart() {
    for seed in 1..30 {
        let mut unit = Unit::new(seed);
        unit.node_config.config = Arc::new(device("dev", 1));
        uses_device(&unit, &["a", "b"]);
        unit.boot();
        unit.connect();
        unit.settle();
        let mut wanted = request(&[("a", "1"), ("b", "1")]);
        wanted.instances[1].priority = 10;
        unit.run(wanted);
        unit.settle();
        let starts = unit.host.starts();
        unit.boot();
        unit.connect();
        unit.settle();
        assert_eq!(unit.host.starts(), starts, "nothing flaps");
        assert_eq!(unit.full_status()["a"], "failed 1 no device available: dev");
        assert_eq!(unit.full_status()["b"], "active 1");
    }
}

#[test]
fn an_old_version_holds_its_device_while_the_new_one_is_installed() {
    let mut unit = Unit::new(4);
    unit.node_config.config = Arc::new(device("dev", 1));
    uses_device(&unit, &["a", "b"]);
    unit.boot();
    unit.connect();
    unit.settle();
    unit.run(request(&[("a", "1")]));
    unit.settle();
    unit.host.break_url("file:///a-2");
    unit.run(request(&[("a", "2"), ("b", "1")]));
    unit.settle();
    assert_eq!(unit.full_status()["b"], "failed 1 no device available: dev");
    assert_eq!(unit.host.running().len(), 1);
}

#[test]
fn a_new_node_configuration_counts_from_the_next_request_on() {
    let mut unit = Unit::new(5);
    unit.node_config.config = Arc::new(device("dev", 0));
    uses_device(&unit, &["a", "b"]);
    unit.boot();
    unit.connect();
    unit.settle();
    unit.run(request(&[("a", "1")]));
    unit.settle();
    let json = r#"{"devices":[{"name":"dev","sharedCount":0,"hostDevices":["/dev/null"]}]}"#;
    unit.command(CmCommand::SetNodeConfig { json: json.into(), version: "2".into() });
    unit.settle();
    unit.host.exit(&unit.id_of("a"), Exit::Code(1));
    unit.settle();
    assert_eq!(unit.host.starts(), 2, "the automatic restart alone");
    unit.run(request(&[("a", "1"), ("b", "1")]));
    unit.settle();
    assert_eq!(unit.host.starts(), 4);
    let json = r#"{"devices":[]}"#;
    unit.command(CmCommand::SetNodeConfig { json: json.into(), version: "3".into() });
    unit.settle();
    assert_eq!(unit.host.running().len(), 2);
    unit.run(request(&[("a", "1"), ("b", "1")]));
    unit.settle();
    assert_eq!(unit.full_status()["a"], "failed 1 device is not available: dev");
    assert!(unit.host.running().is_empty());
}

#[test]
fn a_refused_device_is_an_alert_with_each_request() {
    let mut unit = Unit::started(6);
    uses_device(&unit, &["a"]);
    for _ in 0..2 {
        unit.run(request(&[("a", "1")]));
        unit.settle();
        unit.event(Event::ClockChanged);
        unit.settle();
    }
    let alerts = format!("{:?}", unit.reports).matches("DeviceAllocate").count();
    assert_eq!(alerts, 2);
}

#[test]
fn a_hanging_job_does_not_hold_the_end_of_the_daemon() {
    let mut unit = Unit::started(7);
    unit.run(request(&[("a", "1")]));
    unit.settle();
    unit.exec_up = false;
    let begin = unit.now.mono;
    unit.event(Event::Stop);
    unit.event(Event::Stop);
    while unit.is_alive() {
        assert!(unit.pass(Duration::from_secs(100)));
    }
    assert_eq!(unit.now.mono - begin, Duration::from_secs(65));
}
