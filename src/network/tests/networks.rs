//! Networks that change, go or cannot be made for a while, below instances that run.

use std::net::Ipv4Addr;

use nix::errno::Errno;

use super::super::NetworkSettings;
use super::super::caps::NetCaps;
use super::super::rtnl::Link;
use super::super::rules::Set;
use super::rig::{OUTSIDE, Rig, on_a_host, with_refusals};
use crate::model::desired::NetworkParams;
use crate::model::id::NetworkId;
use crate::ports::{Network, NetworkPlan};
use crate::sys::testing::wait_until;

const SUBNET: &str = "172.17.0.0/16";
const NET1: (&str, &str, &str) = ("net1", SUBNET, "172.17.0.1");
/// The same network with another address of the node.
const MOVED: (&str, &str, &str) = ("net1", SUBNET, "172.17.0.99");
const NODE: Ipv4Addr = Ipv4Addr::new(172, 17, 0, 1);
const MOVED_NODE: Ipv4Addr = Ipv4Addr::new(172, 17, 0, 99);
const INSTANCE: Ipv4Addr = Ipv4Addr::new(172, 17, 0, 2);
/// Somebody else's bridge, and an address by which the subnet is in use there.
const FOREIGN: u32 = 5000;
const IN_THE_WAY: Ipv4Addr = Ipv4Addr::new(172, 17, 200, 1);

fn attached(rig: &Rig) -> NetworkPlan {
    let plan = rig.plan("net1", SUBNET, "172.17.0.2", 0);
    rig.net.attach(&plan).unwrap();
    plan
}

fn gateway(rig: &Rig, plan: &NetworkPlan) -> Option<Ipv4Addr> {
    let routes = rig.instance(plan).routes();
    routes.into_iter().find(|route| route.prefix == 0).and_then(|route| route.gateway)
}

/// Its node, its names and its route are those of the network as it is now.
fn assert_moved(rig: &Rig, plan: &NetworkPlan) {
    assert_eq!(gateway(rig, plan), Some(MOVED_NODE));
    let resolver = format!("nameserver\t{MOVED_NODE}\n");
    assert!(rig.file(plan, "resolv.conf").contains(&resolver), "{}", rig.file(plan, "resolv.conf"));
    assert!(rig.instance(plan).reaches(&rig.node(), MOVED_NODE).is_ok());
}

fn bridge(rig: &Rig) -> Link {
    rig.links().into_iter().find(|link| link.name == "br-net1").unwrap()
}

fn with_vlan((id, subnet, ip): (&str, &str, &str), vlan_id: u64) -> NetworkParams {
    NetworkParams { id: NetworkId::new(id), subnet: subnet.into(), ip: ip.into(), vlan_id }
}

#[test]
fn an_address_that_changed_between_two_lives_reaches_the_instances() {
    on_a_host("networks_moved_between", |rig: &mut Rig| {
        rig.update(&[NET1]);
        let plan = attached(rig);
        rig.restart();
        assert!(rig.update(&[MOVED]).is_empty());
        rig.net.adopt(&plan).unwrap();
        assert_moved(rig, &plan);
    });
}

#[test]
fn an_address_that_cannot_be_had_at_first_reaches_the_instances_later() {
    on_a_host("networks_moved_later", |rig: &mut Rig| {
        rig.update(&[NET1]);
        let plan = attached(rig);
        rig.add_bridge(FOREIGN, "theirs", "theirs", Some(IN_THE_WAY));
        let failed = rig.update(&[MOVED]);
        assert!(failed[0].1.message.contains("172.17.0.0/16 on theirs"), "{failed:?}");
        assert_eq!(gateway(rig, &plan), Some(NODE));
        rig.delete_link(FOREIGN);
        wait_until("another route", || gateway(rig, &plan) == Some(MOVED_NODE));
        assert!(rig.update(&[MOVED]).is_empty());
        assert_moved(rig, &plan);
    });
}

#[test]
fn whoever_makes_a_bridge_anew_puts_the_instances_back() {
    on_a_host("networks_back", |rig: &mut Rig| {
        rig.update(&[NET1]);
        let plan = attached(rig);
        rig.add_bridge(FOREIGN, "theirs", "theirs", Some(IN_THE_WAY));
        rig.delete_link(bridge(rig).index);
        let other = rig.plan("net1", SUBNET, "172.17.0.3", 1);
        assert!(rig.net.attach(&other).is_err());
        rig.delete_link(FOREIGN);
        // Not the notice, which may have to wait for its turn.
        rig.net.attach(&other).unwrap();
        assert!(rig.instance(&other).reaches(&rig.instance(&plan), INSTANCE).is_ok());
        assert!(rig.instance(&plan).reaches(&rig.node(), NODE).is_ok());
    });
}

/// An instance may get the address that the node had.
#[test]
fn the_node_takes_its_ethernet_address_along() {
    on_a_host("networks_mac", |rig: &mut Rig| {
        rig.update(&[NET1]);
        let plan = attached(rig);
        assert!(rig.update(&[MOVED]).is_empty());
        let heir = rig.plan("net1", SUBNET, "172.17.0.1", 1);
        rig.net.attach(&heir).unwrap();
        assert!(rig.instance(&heir).reaches(&rig.node(), MOVED_NODE).is_ok());
        assert!(rig.instance(&plan).reaches(&rig.instance(&heir), NODE).is_ok());
        assert!(rig.instance(&plan).reaches(&rig.node(), MOVED_NODE).is_ok());
    });
}

#[test]
fn an_address_that_somebody_has_added_before_stays() {
    on_a_host("networks_added_before", |rig: &mut Rig| {
        rig.update(&[NET1]);
        let plan = attached(rig);
        rig.add_address(bridge(rig).index, MOVED_NODE, 16);
        assert!(rig.update(&[MOVED]).is_empty());
        assert_moved(rig, &plan);
    });
}

#[test]
fn a_network_of_instances_that_are_not_adopted_yet_is_in_use() {
    on_a_host("networks_before_adoption", |rig: &mut Rig| {
        let far = ("net1", SUBNET, "172.17.0.50");
        rig.update(&[far]);
        let plan = attached(rig);
        let index = bridge(rig).index;
        rig.restart();
        // As the database says, then as the CM says.
        rig.update(&[far]);
        rig.update(&[]);
        rig.net.adopt(&plan).unwrap();
        rig.keep(&[&plan.id]);
        assert_eq!(bridge(rig).index, index);
        assert!(rig.instance(&plan).reaches(&rig.node(), [172, 17, 0, 50].into()).is_ok());
        rig.net.detach(&plan.id).unwrap();
        rig.wait_for_links(&[]);
    });
}

#[test]
fn a_network_that_does_not_stand_leaves_nothing_when_it_goes() {
    on_a_host("networks_remains", |rig: &mut Rig| {
        rig.update(&[NET1]);
        rig.add_bridge(FOREIGN, "theirs", "theirs", Some(IN_THE_WAY));
        assert_eq!(rig.update(&[MOVED]).len(), 1);
        rig.wait_for_links(&["theirs", "br-net1"]);
        assert!(rig.update(&[]).is_empty());
        rig.wait_for_links(&["theirs"]);
        assert_eq!(rig.keys(Set::Bridges), 0);
    });
}

#[test]
fn a_network_that_stands_keeps_its_addresses() {
    on_a_host("networks_overlap", |rig: &mut Rig| {
        let z = ("z", SUBNET, "172.17.0.1");
        let a = ("a", SUBNET, "172.17.0.7");
        assert!(rig.update(&[z]).is_empty());
        let ids = |failed: Vec<(NetworkId, _)>| -> Vec<String> {
            failed.into_iter().map(|(id, _)| id.as_str().to_owned()).collect()
        };
        assert_eq!(ids(rig.update(&[a, z])), ["a"]);
        rig.wait_for_links(&["br-z"]);
        // Also while the CM says nonsense of it.
        assert_eq!(ids(rig.update(&[a, ("z", SUBNET, "nonsense")])), ["z", "a"]);
        rig.wait_for_links(&["br-z"]);
        // Two may change places.
        let b = ("b", "172.18.0.0/16", "172.18.0.1");
        assert!(rig.update(&[z, b]).is_empty());
        assert!(rig.update(&[("b", z.1, z.2), ("z", b.1, b.2)]).is_empty());
        rig.wait_for_links(&["br-b", "br-z"]);
    });
}

#[test]
fn a_vlan_that_nobody_new_wants_cuts_nobody_off() {
    on_a_host("networks_same_vlan", |rig: &mut Rig| {
        let net2 = ("net2", "172.18.0.0/16", "172.18.0.1");
        let absurd = 4095;
        rig.update_params(vec![with_vlan(NET1, absurd), with_vlan(net2, absurd)]);
        let plan = attached(rig);
        rig.update_params(vec![with_vlan(net2, absurd)]);
        assert!(rig.instance(&plan).reaches(&rig.node(), NODE).is_ok());
        rig.net.detach(&plan.id).unwrap();
        rig.wait_for_links(&["br-net2"]);
    });
}

#[test]
fn without_its_vlan_a_network_does_not_have_the_mtu_of_the_parent() {
    let refusals = &[("create vlan", Errno::EEXIST)];
    let (settings, caps) = (NetworkSettings::default(), Some(NetCaps::ALL));
    with_refusals("networks_mtu", settings, caps, refusals, |rig: &mut Rig| {
        rig.add_outside_with_mtu(9000);
        assert!(rig.update_params(vec![with_vlan(NET1, 5)]).is_empty());
        assert_eq!(bridge(rig).mtu, 1500);
        let plan = attached(rig);
        assert!(rig.instance(&plan).reaches(&rig.outside(), OUTSIDE).is_ok());
    });
}
