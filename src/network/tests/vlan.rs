//! Networks that span several nodes: VLANs on the uplink, and the size of frames. The other node is
//! a namespace with a VLAN interface of its own.

use std::net::Ipv4Addr;

use super::super::NetworkSettings;
use super::super::caps::NetCaps;
use super::super::channel;
use super::super::naming::LinkName;
use super::super::rtnl::{self, Index, LOOPBACK_INDEX, Link, LinkAddress, NewVlan};
use super::super::wire::Messages;
use super::rig::{OUTSIDE, Rig, UPLINK_INDEX, with_caps, with_settings};
use crate::model::desired::NetworkParams;
use crate::model::id::NetworkId;
use crate::model::store::NetworkLinks;
use crate::ports::{Network, NetworkPlan};
use crate::sys::testing::wait_until;

const NET1: (&str, &str, &str) = ("net1", "172.17.0.0/16", "172.17.0.1");
const NODE1: Ipv4Addr = Ipv4Addr::new(172, 17, 0, 1);
const A: Ipv4Addr = Ipv4Addr::new(172, 17, 0, 2);
/// An instance of the same network on the other node.
const FAR: Ipv4Addr = Ipv4Addr::new(172, 17, 0, 100);
/// Another router out there.
const SECOND: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 9);
/// The other node's end of the uplink.
const FAR_PARENT: Index = 2;

/// Without rules: the kernel on which these tests find VLANs has no nf_tables for `inet`.
fn on_a_host(test: &'static str, body: fn(&mut Rig)) {
    with_settings(test, NetworkSettings { firewall: false, ..NetworkSettings::default() }, body);
}

fn skips(rig: &Rig, test: &str) -> bool {
    let skips = !rig.has_vlans();
    if skips {
        println!("SKIP {test}: kernel lacks 8021q (VLAN)");
    }
    skips
}

fn update(rig: &Rig, vlan_id: u64) {
    let (id, subnet, ip) = (NetworkId::new(NET1.0), NET1.1.to_owned(), NET1.2.to_owned());
    let failed = rig.update_params(vec![NetworkParams { id, subnet, ip, vlan_id }]);
    assert!(failed.is_empty(), "{failed:?}");
}

fn attached(rig: &Rig) -> NetworkPlan {
    let plan = rig.plan("net1", NET1.1, "172.17.0.2", 0);
    rig.net.attach(&plan).unwrap();
    plan
}

/// The other node is in the network.
fn add_far(rig: &Rig, index: Index, vlan_id: u16) {
    let name = &LinkName::try_from(format!("far{index}").as_str()).unwrap();
    rig.outside()
        .changes(|messages| {
            let vlan = NewVlan { index, name, parent: FAR_PARENT, bridge: 0, vlan_id };
            rtnl::new_vlan(messages, &vlan);
            let address = LinkAddress { index, address: FAR, prefix: 16 };
            rtnl::new_address(messages, &address, Ipv4Addr::new(172, 17, 255, 255));
        })
        .unwrap();
}

fn vlans(rig: &Rig) -> Vec<Link> {
    rig.links().into_iter().filter(|link| link.kind == "vlan").collect()
}

/// Both ends see the addresses of each other, not that of a node.
fn assert_reached(rig: &Rig, plan: &NetworkPlan) {
    let (one, far) = (rig.instance(plan), rig.outside());
    assert_eq!(one.reaches(&far, FAR).unwrap(), A);
    assert_eq!(far.reaches(&one, A).unwrap(), FAR);
}

#[test]
fn a_network_spans_nodes() {
    on_a_host("vlan_spans", |rig: &mut Rig| {
        if skips(rig, "vlan_spans") {
            return;
        }
        rig.add_outside();
        update(rig, 300);
        let plan = attached(rig);
        add_far(rig, 10, 300);
        assert_reached(rig, &plan);
        assert_eq!(rig.outside().reaches(&rig.node(), NODE1).unwrap(), FAR);
        let [vlan] = &vlans(rig)[..] else { panic!("{:?}", rig.links()) };
        assert_eq!((vlan.vlan_id, vlan.parent, vlan.up), (300, UPLINK_INDEX, true));
        // Another id is another network.
        update(rig, 301);
        assert_eq!(vlans(rig).iter().map(|link| link.vlan_id).collect::<Vec<_>>(), [301]);
        rig.outside().is_cut_off_from(&rig.instance(&plan), A, 80);
        rig.outside().changes(|messages| rtnl::delete_link(messages, 10)).unwrap();
        add_far(rig, 11, 301);
        assert_reached(rig, &plan);
        // Ids that do not exist end the VLAN and leave the network.
        for vlan_id in [4095, 4096, u64::MAX, 0] {
            update(rig, vlan_id);
            assert!(vlans(rig).is_empty());
            assert!(rig.instance(&plan).reaches(&rig.node(), NODE1).is_ok());
        }
        update(rig, 4094);
        assert_eq!(vlans(rig).len(), 1);
        rig.net.detach(&plan.id).unwrap();
        rig.update(&[]);
        rig.wait_for_links(&[]);
    });
}

#[test]
fn vlans_outlive_the_daemon() {
    on_a_host("vlan_restart", |rig: &mut Rig| {
        if skips(rig, "vlan_restart") {
            return;
        }
        rig.add_outside();
        update(rig, 300);
        let plan = attached(rig);
        add_far(rig, 10, 300);
        let mut pair = rig.instance(&plan).connect(&rig.outside(), FAR);
        let before = vlans(rig);
        rig.restart();
        update(rig, 300);
        rig.net.adopt(&plan).unwrap();
        rig.keep(&[&plan.id]);
        pair.works();
        assert_eq!(vlans(rig), before);
        // The id has changed while the daemon was away.
        rig.restart();
        update(rig, 302);
        rig.net.adopt(&plan).unwrap();
        rig.keep(&[&plan.id]);
        assert_eq!(vlans(rig).iter().map(|link| link.vlan_id).collect::<Vec<_>>(), [302]);
    });
}

/// Its VLAN has a random name and no alias.
#[test]
fn the_vlan_of_the_reference_is_taken_over() {
    on_a_host("vlan_reference", |rig: &mut Rig| {
        if skips(rig, "vlan_reference") {
            return;
        }
        rig.add_outside();
        rig.add_bridge(5000, "br-net1", "", Some(NODE1));
        let name = &LinkName::try_from("vlan-00c0ffee").unwrap();
        let vlan = NewVlan { index: 5001, name, parent: UPLINK_INDEX, bridge: 5000, vlan_id: 300 };
        rig.node().changes(|messages| rtnl::new_vlan(messages, &vlan)).unwrap();
        update(rig, 300);
        let [left] = &vlans(rig)[..] else { panic!("{:?}", rig.links()) };
        assert_eq!((left.index, left.alias.as_str(), left.master), (5001, "aos:net:net1", 5000));
        let plan = attached(rig);
        add_far(rig, 10, 300);
        assert_reached(rig, &plan);
    });
}

/// The reference ended before its VLAN was in its bridge; the database has the name.
#[test]
fn the_vlan_of_the_database_is_taken_over() {
    on_a_host("vlan_stored", |rig: &mut Rig| {
        if skips(rig, "vlan_stored") {
            return;
        }
        rig.add_outside();
        let name = &LinkName::try_from("vlan-00c0ffee").unwrap();
        let vlan = NewVlan { index: 5001, name, parent: UPLINK_INDEX, bridge: 0, vlan_id: 300 };
        rig.node().changes(|messages| rtnl::new_vlan(messages, &vlan)).unwrap();
        rig.stored_links = vec![NetworkLinks {
            network: NetworkId::new("net1"),
            vlan: name.to_string(),
            bridge: String::new(),
        }];
        rig.restart();
        update(rig, 300);
        let [left] = &vlans(rig)[..] else { panic!("{:?}", rig.links()) };
        assert_eq!((left.index, left.alias.as_str()), (5001, "aos:net:net1"));
        let plan = attached(rig);
        add_far(rig, 10, 300);
        assert_reached(rig, &plan);
        // The next one has the same name, whatever its id.
        update(rig, 301);
        let [next] = &vlans(rig)[..] else { panic!("{:?}", rig.links()) };
        assert_eq!((next.vlan_id, next.name.as_str()), (301, "vlan-00c0ffee"));
    });
}

#[test]
fn a_foreign_vlan_is_not_touched() {
    on_a_host("vlan_foreign", |rig: &mut Rig| {
        if skips(rig, "vlan_foreign") {
            return;
        }
        rig.add_outside();
        let name = &LinkName::try_from("theirs").unwrap();
        let vlan = NewVlan { index: 5001, name, parent: UPLINK_INDEX, bridge: 0, vlan_id: 300 };
        rig.node().changes(|messages| rtnl::new_vlan(messages, &vlan)).unwrap();
        update(rig, 300);
        let plan = attached(rig);
        assert!(rig.instance(&plan).reaches(&rig.node(), NODE1).is_ok());
        let [theirs] = &vlans(rig)[..] else { panic!("{:?}", rig.links()) };
        assert_eq!((theirs.index, theirs.alias.as_str(), theirs.master), (5001, "", 0));
        // Two networks want the same id: one of them gets it, both work on this node.
        let params = |id: &str, subnet: &str, ip: &str| NetworkParams {
            id: NetworkId::new(id),
            subnet: subnet.to_owned(),
            ip: ip.to_owned(),
            vlan_id: 400,
        };
        let list =
            vec![params("net1", NET1.1, NET1.2), params("net2", "172.18.0.0/16", "172.18.0.1")];
        assert!(rig.update_params(list).is_empty());
        assert_eq!(vlans(rig).iter().filter(|link| link.vlan_id == 400).count(), 1);
        rig.keep(&[&plan.id]);
        assert!(vlans(rig).iter().any(|link| link.index == 5001));
    });
}

#[test]
fn a_vlan_comes_and_goes_with_its_uplink() {
    on_a_host("vlan_uplink", |rig: &mut Rig| {
        if skips(rig, "vlan_uplink") {
            return;
        }
        // No way out yet.
        update(rig, 300);
        let plan = attached(rig);
        assert!(vlans(rig).is_empty());
        for mtu in [1400, 1300] {
            rig.add_outside_with_mtu(mtu);
            wait_until("a VLAN", || vlans(rig).len() == 1);
            add_far(rig, 10, 300);
            assert_reached(rig, &plan);
            rig.remove_outside();
            wait_until("the end of the VLAN", || vlans(rig).is_empty());
            assert!(rig.instance(&plan).reaches(&rig.node(), NODE1).is_ok());
        }
    });
}

/// A way out to which nothing else has led.
struct Way {
    metric: u32,
    router: Option<Ipv4Addr>,
    link: Index,
}

/// `RTM_NEWROUTE` or `RTM_DELROUTE` of a default route.
fn change_route(messages: &mut Messages, kind: u16, way: &Way) {
    let scope = if way.router.is_some() { 0 } else { 253 };
    messages.add("change route", kind, channel::CREATE, |p| {
        p.raw(&[2, 0, 0, 0, 254, 4, scope, 1, 0, 0, 0, 0]);
        way.router.iter().for_each(|router| p.attribute(5, &router.octets()));
        p.u32(4, way.link);
        p.u32(6, way.metric);
    });
}

/// A kernel that has no VLANs says so as soon as it is asked for one.
fn was_asked(rig: &Rig) -> bool {
    !vlans(rig).is_empty() || rig.alerts().iter().any(|text| text.contains("8021q"))
}

/// Also where the kernel has no VLANs.
fn on_a_host_that_may_lack_vlans(test: &'static str, body: fn(&mut Rig)) {
    let settings = NetworkSettings { firewall: false, ..NetworkSettings::default() };
    with_caps(test, settings, Some(NetCaps::ALL), body);
}

const NEW_ROUTE: u16 = 24;
const OLD_ROUTE: u16 = 25;
/// As over a modem: nothing on which a VLAN could be made.
const MODEM: Way = Way { metric: 100, router: None, link: LOOPBACK_INDEX };

/// The best way out is a modem, behind it there is a wire.
fn wire_behind_modem(rig: &Rig) {
    rig.add_outside();
    let wire = |metric| Way { metric, router: Some(OUTSIDE), link: UPLINK_INDEX };
    let changed = rig.node().changes(|messages| {
        change_route(messages, OLD_ROUTE, &wire(0));
        change_route(messages, NEW_ROUTE, &MODEM);
        change_route(messages, NEW_ROUTE, &wire(200));
    });
    changed.unwrap();
    update(rig, 300);
    assert!(!was_asked(rig));
}

#[test]
fn a_vlan_comes_when_a_better_way_goes() {
    on_a_host_that_may_lack_vlans("vlan_route_gone", |rig: &mut Rig| {
        wire_behind_modem(rig);
        rig.node().changes(|messages| change_route(messages, OLD_ROUTE, &MODEM)).unwrap();
        wait_until("a VLAN", || was_asked(rig));
    });
}

/// The kernel does not announce the end of its route.
#[test]
fn a_vlan_comes_when_the_link_of_a_better_way_goes_down() {
    on_a_host_that_may_lack_vlans("vlan_link_down", |rig: &mut Rig| {
        wire_behind_modem(rig);
        rig.node().changes(|messages| rtnl::set_down(messages, MODEM.link)).unwrap();
        wait_until("a VLAN", || was_asked(rig));
    });
}

#[test]
fn a_vlan_comes_with_the_first_of_several_ways() {
    on_a_host_that_may_lack_vlans("vlan_multipath", |rig: &mut Rig| {
        rig.add_outside();
        let wire = Way { metric: 0, router: Some(OUTSIDE), link: UPLINK_INDEX };
        rig.node().changes(|messages| change_route(messages, OLD_ROUTE, &wire)).unwrap();
        update(rig, 300);
        assert!(!was_asked(rig));
        let changed = rig.node().changes(|messages| {
            messages.add("add route", NEW_ROUTE, channel::CREATE, |p| {
                p.raw(&[2, 0, 0, 0, 254, 4, 0, 1, 0, 0, 0, 0]);
                p.group(9, |p| {
                    for (link, router) in [(UPLINK_INDEX, OUTSIDE), (UPLINK_INDEX, SECOND)] {
                        p.raw(&[16, 0, 0, 0]);
                        p.raw(&link.to_ne_bytes());
                        p.attribute(5, &router.octets());
                    }
                });
            });
        });
        if changed.is_err() {
            println!("SKIP vlan_multipath: kernel lacks routes with several ways");
            return;
        }
        wait_until("a VLAN", || was_asked(rig));
    });
}

#[test]
fn a_vlan_comes_when_its_id_is_free() {
    on_a_host("vlan_id_free", |rig: &mut Rig| {
        if skips(rig, "vlan_id_free") {
            return;
        }
        rig.add_outside_with_mtu(1400);
        let name = &LinkName::try_from("theirs").unwrap();
        let vlan = NewVlan { index: 5001, name, parent: UPLINK_INDEX, bridge: 0, vlan_id: 300 };
        let changed = rig.node().changes(|messages| {
            rtnl::new_vlan(messages, &vlan);
            rtnl::set_group(messages, vlan.index, 0);
        });
        changed.unwrap();
        update(rig, 300);
        let plan = attached(rig);
        rig.delete_link(vlan.index);
        wait_until("a VLAN", || vlans(rig).iter().any(|link| link.alias == "aos:net:net1"));
        add_far(rig, 10, 300);
        assert_reached(rig, &plan);
        let mtus: Vec<u32> = rig.links().into_iter().map(|link| link.mtu).collect();
        assert_eq!(mtus, [1400; 3]);
    });
}

#[test]
fn a_configured_parent_is_used() {
    let vlan_parent = "wired0".to_owned();
    let settings = NetworkSettings { vlan_parent, firewall: false, ..NetworkSettings::default() };
    with_settings("vlan_parent", settings, |rig: &mut Rig| {
        if skips(rig, "vlan_parent") {
            return;
        }
        rig.add_outside();
        update(rig, 300);
        assert!(vlans(rig).is_empty());
        // A bridge is as good as any Ethernet interface.
        rig.add_bridge(5000, "wired0", "somebody else's", None);
        wait_until("a VLAN", || vlans(rig).len() == 1);
        assert_eq!(vlans(rig)[0].parent, 5000);
    });
}

/// Frames that are too large for the way to the other node would vanish.
#[test]
fn links_have_the_mtu_of_the_uplink() {
    on_a_host("vlan_mtu", |rig: &mut Rig| {
        if skips(rig, "vlan_mtu") {
            return;
        }
        rig.add_outside_with_mtu(1400);
        update(rig, 300);
        let plan = attached(rig);
        let mtus = |rig: &Rig| -> Vec<u32> {
            let eth0 = rig.instance(&plan).links().into_iter().filter(|link| link.index != 1);
            rig.links().into_iter().chain(eth0).map(|link| link.mtu).collect()
        };
        assert_eq!(mtus(rig), [1400; 4]);
        rig.node().changes(|messages| rtnl::set_mtu(messages, UPLINK_INDEX, 1300)).unwrap();
        wait_until("a smaller MTU", || mtus(rig) == [1300; 4]);
        rig.node().changes(|messages| rtnl::set_mtu(messages, UPLINK_INDEX, 1450)).unwrap();
        wait_until("a larger MTU", || mtus(rig) == [1450; 4]);
        // It has changed while the daemon was away.
        rig.stop();
        rig.node().changes(|messages| rtnl::set_mtu(messages, UPLINK_INDEX, 1350)).unwrap();
        rig.restart();
        update(rig, 300);
        rig.net.adopt(&plan).unwrap();
        rig.keep(&[&plan.id]);
        assert_eq!(mtus(rig), [1350; 4]);
    });
}
