//! Who reaches whom, with real packets.

use std::io::{Read, Write};
use std::net::Ipv4Addr;
use std::time::Duration;

use super::super::NetworkSettings;
use super::super::caps::NetCaps;
use super::super::rtnl::LinkAddress;
use super::super::rules::Set;
use super::rig::{OUTSIDE, PATIENCE, Rig, UPLINK, on_a_host, rule, with_caps, with_settings};
use crate::model::desired::FirewallRule;
use crate::model::node::Host;
use crate::ports::Network;

const NET1: (&str, &str, &str) = ("net1", "172.17.0.0/16", "172.17.0.1");
/// Here the node is not the first one of the network.
const NET2: (&str, &str, &str) = ("net2", "172.18.0.0/16", "172.18.0.7");
const NODE1: Ipv4Addr = Ipv4Addr::new(172, 17, 0, 1);
const A: Ipv4Addr = Ipv4Addr::new(172, 17, 0, 2);
const A2: Ipv4Addr = Ipv4Addr::new(172, 17, 0, 3);
const B: Ipv4Addr = Ipv4Addr::new(172, 18, 0, 2);

#[test]
fn instances_of_one_network_reach_each_other_and_the_node() {
    on_a_host("reach_same_network", |rig: &mut Rig| {
        assert!(rig.update(&[NET1, NET2]).is_empty());
        let mut a = rig.plan("net1", NET1.1, "172.17.0.2", 0);
        a.hostname = "cam".to_owned();
        a.hosts = vec![Host { ip: "10.0.0.100".to_owned(), hostname: "wwwivi".to_owned() }];
        a.params.dns_servers = vec!["10.9.9.9".to_owned()];
        let b = rig.plan("net1", NET1.1, "172.17.0.3", 1);
        rig.net.attach(&a).unwrap();
        rig.net.attach(&b).unwrap();

        let (one, two, node) = (rig.instance(&a), rig.instance(&b), rig.node());
        assert_eq!(one.reaches(&two, A2).unwrap(), A);
        assert_eq!(two.reaches(&one, A).unwrap(), A2);
        assert_eq!(one.reaches(&node, NODE1).unwrap(), A);
        assert_eq!(node.reaches(&one, A).unwrap(), NODE1);
        // To itself, by its own address and by loopback.
        assert_eq!(one.reaches(&one, A).unwrap(), A);
        assert_eq!(one.reaches(&one, Ipv4Addr::LOCALHOST).unwrap(), Ipv4Addr::LOCALHOST);

        let addresses: Vec<(Ipv4Addr, u8)> =
            one.addresses().iter().map(|a| (a.address, a.prefix)).collect();
        assert_eq!(addresses, [(Ipv4Addr::LOCALHOST, 8), (A, 16)]);
        let route = one.routes().into_iter().find(|route| route.prefix == 0).unwrap();
        assert_eq!((route.gateway, route.link), (Some(NODE1), 2));
        let eth0 = one.links().into_iter().find(|link| link.index == 2).unwrap();
        assert_eq!((eth0.name.as_str(), eth0.mtu, eth0.up), ("eth0", 1500, true));

        assert_eq!(
            rig.file(&a, "hosts"),
            "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n\
             172.17.0.2\tnet1 cam\n10.0.0.100\twwwivi\n"
        );
        let expect = "nameserver\t172.17.0.1\nnameserver\t10.9.9.9\n";
        assert_eq!(rig.file(&a, "resolv.conf"), expect);
    });
}

#[test]
fn networks_are_isolated_but_for_allowed_connections() {
    on_a_host("reach_isolation", |rig: &mut Rig| {
        rig.update(&[NET1, NET2]);
        let mut a = rig.plan("net1", NET1.1, "172.17.0.2", 0);
        let range = |dst_port: &str| FirewallRule {
            dst_port: dst_port.to_owned(),
            ..rule("172.17.0.2", "172.18.0.2", 0)
        };
        a.params.rules = vec![rule("172.17.0.2", "172.18.0.2", 80), range("8000:8001")];
        let a2 = rig.plan("net1", NET1.1, "172.17.0.3", 1);
        let mut b = rig.plan("net2", NET2.1, "172.18.0.2", 2);
        b.exposed_ports = vec!["80/tcp".to_owned()];
        // Who came first makes no difference.
        for order in [[&a, &a2, &b], [&b, &a2, &a]] {
            for plan in order {
                rig.net.attach(plan).unwrap();
            }
            let (one, other, far) = (rig.instance(&a), rig.instance(&a2), rig.instance(&b));
            // The target sees an address of the node in its own network.
            let seen = one.reaches_port(&far, B, 80).unwrap();
            assert_eq!(seen, Ipv4Addr::new(172, 18, 0, 7));
            assert!(one.reaches_port(&far, B, 8001).is_ok());
            [81, 8002].into_iter().for_each(|port| one.is_cut_off_from(&far, B, port));
            other.is_cut_off_from(&far, B, 80);
            far.is_cut_off_from(&one, A, 80);
            // Nothing is left that the next owner of the address could use.
            rig.net.detach(&a.id).unwrap();
            assert_eq!(rig.keys(Set::Allowed), 0);
            rig.net.detach(&a2.id).unwrap();
            rig.net.detach(&b.id).unwrap();
        }
    });
}

#[test]
fn the_outside_is_reached_masqueraded_and_reaches_exposed_ports_only() {
    on_a_host("reach_outside", |rig: &mut Rig| {
        rig.add_outside();
        rig.update(&[NET1]);
        let mut a = rig.plan("net1", NET1.1, "172.17.0.2", 0);
        a.exposed_ports = vec!["8080-8081".to_owned()];
        rig.net.attach(&a).unwrap();
        let (one, outside) = (rig.instance(&a), rig.outside());
        assert_eq!(one.reaches(&outside, OUTSIDE).unwrap(), UPLINK);
        assert_eq!(outside.reaches_port(&one, A, 8081).unwrap(), OUTSIDE);
        outside.is_cut_off_from(&one, A, 8082);
        assert_eq!(rig.node().reaches(&outside, OUTSIDE).unwrap(), UPLINK);
    });
}

/// No rule names an uplink: it may come after the instance, and another one after it.
#[test]
fn the_outside_is_reached_over_any_uplink() {
    on_a_host("reach_uplinks", |rig: &mut Rig| {
        rig.update(&[NET1]);
        let a = rig.plan("net1", NET1.1, "172.17.0.2", 0);
        rig.net.attach(&a).unwrap();
        for _ in 0..2 {
            rig.add_outside();
            let (one, outside) = (rig.instance(&a), rig.outside());
            assert_eq!(one.reaches(&outside, OUTSIDE).unwrap(), UPLINK);
            outside.is_cut_off_from(&one, A, 80);
            rig.remove_outside();
        }
    });
}

/// A connection from outside to a port that the next owner of the address does not expose.
fn check_old_connections(rig: &mut Rig) {
    rig.add_outside();
    rig.update(&[NET1]);
    let mut a = rig.plan("net1", NET1.1, "172.17.0.2", 0);
    a.exposed_ports = vec!["8080".to_owned()];
    rig.net.attach(&a).unwrap();
    let (mut client, server) = {
        let listener = rig.instance(&a).listen(8080);
        let client = rig.outside().open(A, 8080).unwrap();
        (client, listener.accept().unwrap().0)
    };
    let next = rig.plan("net1", NET1.1, "172.17.0.2", 1);
    rig.net.detach(&a.id).unwrap();
    rig.net.attach(&next).unwrap();
    // The next owner would refuse the unknown connection; nothing may get so far.
    client.write_all(b"secret").unwrap();
    client.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    let answer = client.read(&mut [0; 8]).unwrap_err();
    assert_eq!(answer.kind(), std::io::ErrorKind::WouldBlock, "{answer}");
    drop(server);
}

#[test]
fn old_connections_do_not_reach_the_next_owner_of_an_address() {
    on_a_host("reach_old_connections", check_old_connections);
    // As on a kernel before 5.8.
    let caps = Some(NetCaps { flow_filter: false, ..NetCaps::ALL });
    with_caps("reach_old_connections", NetworkSettings::default(), caps, check_old_connections);
}

#[test]
fn nobody_sends_with_an_address_that_is_not_his() {
    on_a_host("reach_spoofing", |rig: &mut Rig| {
        rig.add_outside();
        rig.update(&[NET1]);
        let a = rig.plan("net1", NET1.1, "172.17.0.2", 0);
        rig.net.attach(&a).unwrap();
        let one = rig.instance(&a);
        let stolen = Ipv4Addr::new(172, 17, 0, 200);
        one.add_address(LinkAddress { index: 2, address: stolen, prefix: 16 });
        let receiver = rig.outside().udp((OUTSIDE, 7).into());
        receiver.set_read_timeout(Some(PATIENCE)).unwrap();
        for (source, content) in [(stolen, b"bad"), (A, b"own")] {
            one.udp((source, 0).into()).send_to(content, (OUTSIDE, 7)).unwrap();
        }
        // The second one has overtaken nothing: the first one was dropped.
        let mut content = [0; 3];
        receiver.recv(&mut content).unwrap();
        assert_eq!(&content, b"own");
    });
}

#[test]
fn everything_is_open_if_the_configuration_says_so() {
    let settings = NetworkSettings { open_inbound: true, ..NetworkSettings::default() };
    with_settings("reach_open_inbound", settings, |rig: &mut Rig| {
        rig.add_outside();
        rig.update(&[NET1]);
        let a = rig.plan("net1", NET1.1, "172.17.0.2", 0);
        rig.net.attach(&a).unwrap();
        let outside = rig.outside();
        assert_eq!(outside.reaches(&rig.instance(&a), A).unwrap(), OUTSIDE);
    });
}

#[test]
fn an_instance_without_address_has_loopback_only() {
    on_a_host("reach_loopback_only", |rig: &mut Rig| {
        let a = rig.plan("net1", "", "", 0);
        rig.net.attach(&a).unwrap();
        let one = rig.instance(&a);
        assert_eq!(one.reaches(&one, Ipv4Addr::LOCALHOST).unwrap(), Ipv4Addr::LOCALHOST);
        assert_eq!(one.links().len(), 1);
        assert!(rig.links().is_empty());
        assert!(rig.file(&a, "hosts").ends_with("ip6-loopback\n"));
        rig.net.detach(&a.id).unwrap();
        assert!(rig.namespaces().is_empty());
    });
}

/// The whole table of who reaches whom.
fn check_everybody(rig: &mut Rig) {
    rig.update(&[NET1, NET2]);
    let mut a = rig.plan("net1", NET1.1, "172.17.0.2", 0);
    a.params.rules = vec![rule("172.17.0.2", "172.18.0.2", 80)];
    let a2 = rig.plan("net1", NET1.1, "172.17.0.3", 1);
    let mut b = rig.plan("net2", NET2.1, "172.18.0.2", 2);
    b.exposed_ports = vec!["80/tcp".to_owned(), "90".to_owned()];
    for plan in [&a, &a2, &b] {
        rig.net.attach(plan).unwrap();
    }
    let (one, other, far) = (rig.instance(&a), rig.instance(&a2), rig.instance(&b));
    let (node, outside) = (rig.node(), rig.outside());
    // One network, and oneself.
    assert_eq!(one.reaches(&other, A2).unwrap(), A);
    assert_eq!(other.reaches(&one, A).unwrap(), A2);
    assert_eq!(one.reaches(&one, A).unwrap(), A);
    // Two networks: what the CM allows, in its direction.
    assert_eq!(one.reaches_port(&far, B, 80).unwrap(), Ipv4Addr::new(172, 18, 0, 7));
    one.is_cut_off_from(&far, B, 90);
    other.is_cut_off_from(&far, B, 80);
    far.is_cut_off_from(&one, A, 80);
    // The outside.
    for plan in [&one, &other, &far] {
        assert_eq!(plan.reaches(&outside, OUTSIDE).unwrap(), UPLINK);
    }
    for port in [80, 90] {
        assert_eq!(outside.reaches_port(&far, B, port).unwrap(), OUTSIDE);
    }
    outside.is_cut_off_from(&far, B, 81);
    outside.is_cut_off_from(&one, A, 80);
    // The node.
    assert_eq!(one.reaches(&node, NODE1).unwrap(), A);
    assert_eq!(node.reaches(&one, A).unwrap(), NODE1);
    assert_eq!(node.reaches(&far, B).unwrap(), Ipv4Addr::new(172, 18, 0, 7));
    for plan in [&a, &a2, &b] {
        rig.net.detach(&plan.id).unwrap();
    }
}

/// Whether the kernel shows bridged frames to the rules differs from unit to unit.
#[test]
fn rules_hold_with_and_without_filtering_in_bridges() {
    on_a_host("reach_bridge_filter", |rig: &mut Rig| {
        rig.add_outside();
        for value in ["0", "1"] {
            let path = "/proc/sys/net/bridge/bridge-nf-call-iptables";
            if rig.node().writes(path, value).is_err() {
                println!("SKIP reach_bridge_filter: kernel lacks br_netfilter");
                return check_everybody(rig);
            }
            check_everybody(rig);
        }
    });
}

/// The contract of 9.x: the image of the OS brings the table along, closed before we start.
#[test]
fn rules_hold_in_a_table_that_drops() {
    on_a_host("reach_drop_policy", |rig: &mut Rig| {
        rig.stop();
        rig.flush_rules();
        let Some(()) = rig.nft(
            "table inet aos {\n\
             chain forward { type filter hook forward priority filter; policy drop;\n\
               ct state invalid drop\n ct state established,related accept\n }\n\
             chain postrouting { type nat hook postrouting priority srcnat; policy accept; }\n\
             }",
        ) else {
            println!("SKIP reach_drop_policy: the program nft is missing");
            rig.restart();
            return;
        };
        rig.restart();
        rig.add_outside();
        for value in ["0", "1"] {
            // Without the file there is nothing to switch.
            let path = "/proc/sys/net/bridge/bridge-nf-call-iptables";
            let _ = rig.node().writes(path, value);
            check_everybody(rig);
        }
        // What does not concern us is still dropped.
        let table = rig.nft_list("table inet aos");
        assert!(
            table.contains("policy drop") && table.contains("ct state invalid drop"),
            "{table}"
        );
    });
}

#[test]
fn nothing_is_filtered_if_the_configuration_says_so() {
    let settings = NetworkSettings { firewall: false, ..NetworkSettings::default() };
    with_settings("reach_no_firewall", settings, |rig: &mut Rig| {
        rig.update(&[NET1, NET2]);
        let a = rig.plan("net1", NET1.1, "172.17.0.2", 0);
        let b = rig.plan("net2", NET2.1, "172.18.0.2", 1);
        rig.net.attach(&a).unwrap();
        rig.net.attach(&b).unwrap();
        assert_eq!(rig.instance(&a).reaches(&rig.instance(&b), B).unwrap(), A);
        assert_eq!(rig.instance(&a).reaches(&rig.node(), NODE1).unwrap(), A);
        assert_eq!(rig.keys(Set::Instances), 0);
        assert_eq!(super::traffic::all(rig), crate::model::traffic::Traffic::default());
        rig.net.detach(&a.id).unwrap();
    });
}
