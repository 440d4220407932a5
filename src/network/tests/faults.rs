//! Bad input and foreign objects: a clear error, and nothing else changes.

use std::time::Duration;

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};

use super::super::NetworkSettings;
use super::super::caps::NetCaps;
use super::super::rtnl::{self, LINK_GROUP, Link};
use super::super::rules::Set;
use super::rig::{
    Rig, on_a_host, touch_rules, with_caps, with_refusals, with_settings, without_nf_tables,
};
use crate::model::desired::NetworkParams;
use crate::model::id::NetworkId;
use crate::model::store::NetworkLinks;
use crate::ports::{Network, NetworkPlan};
use crate::sys::netlink::{Family, Netlink};
use crate::sys::testing::{wait_until, wait_within};
use crate::sys::time::monotonic;

const NET1: (&str, &str, &str) = ("net1", "172.17.0.0/16", "172.17.0.1");
const NET2: (&str, &str, &str) = ("net2", "172.18.0.0/16", "172.18.0.1");

fn refused(rig: &Rig, plan: &NetworkPlan, expect: &str) {
    let failure = rig.net.attach(plan).unwrap_err();
    assert!(failure.message.contains(expect), "{failure}");
}

#[test]
fn bad_instances_leave_nothing() {
    on_a_host("faults_instances", |rig: &mut Rig| {
        rig.update(&[NET1]);
        let mut a = rig.plan("net1", NET1.1, "172.17.0.2", 0);
        a.hostname = "cam".to_owned();
        rig.net.attach(&a).unwrap();
        let check = |change: &dyn Fn(&mut NetworkPlan), expect: &str| {
            let mut plan = rig.plan("net1", NET1.1, "172.17.0.3", 1);
            change(&mut plan);
            refused(rig, &plan, expect);
        };
        check(&|p| p.params.subnet = "172.17.0.0".to_owned(), "subnet \"172.17.0.0\"");
        check(&|p| p.params.ip = "172.18.0.3".to_owned(), "lies outside of the subnet");
        check(&|p| p.params.ip = "172.17.0.2".to_owned(), "172.17.0.2 is used by instance");
        check(&|p| p.params.ip = "172.17.0.1".to_owned(), "is the address of the node");
        check(&|p| p.params.ip = "fd00::3".to_owned(), "IPv6 is not supported");
        check(&|p| p.hostname = "CAM".to_owned(), "hostname CAM already exists");
        check(&|p| p.hostname = "Cam.NET1".to_owned(), "hostname Cam.NET1 already exists");
        check(&|p| p.hostname = a.id.to_string(), "already exists");
        check(&|p| p.hostname = "a\nb".to_owned(), "hostname");
        check(&|p| p.ident.instance = 0, "hostname 0.subj.svc already exists");
        check(&|p| p.exposed_ports = vec!["x".to_owned()], "port \"x\"");
        check(&|p| p.etc_dir = "/nonexistent/etc".into(), "cannot write /nonexistent/etc/hosts");
        assert_eq!(rig.keys(Set::Instances), 1);
        assert_eq!(rig.namespaces(), [a.id.as_str()]);
        let veths = rig.links().iter().filter(|link| link.kind == "veth").count();
        assert_eq!(veths, 1);
        rig.net.attach(&rig.plan("net1", NET1.1, "172.17.0.3", 1)).unwrap();
    });
}

#[test]
fn bad_networks_do_not_stop_good_ones() {
    on_a_host("faults_networks", |rig: &mut Rig| {
        rig.add_outside();
        let failed = rig.update(&[
            ("bad", "172.18.0.0/99", "172.18.0.1"),
            ("route", "203.0.0.0/16", "203.0.0.1"),
            NET1,
            NET1,
            ("overlap", "172.17.128.0/17", "172.17.128.1"),
        ]);
        let ids: Vec<&str> = failed.iter().map(|(id, _)| id.as_str()).collect();
        assert_eq!(ids, ["bad", "overlap", "route"]);
        assert!(failed[2].1.message.contains("203.0.113.0/24 on uplink0"), "{}", failed[2].1);
        rig.wait_for_links(&["br-net1"]);
        // What is in such a network fails for the same reason; nobody makes one up.
        for (network, expect) in [
            ("bad", "network bad is not usable: network parameter subnet"),
            ("overlap", "network overlap is not usable: subnet 172.17.128.0/17 overlaps"),
            ("route", "subnet 203.0.0.0/16 overlaps"),
        ] {
            let subnet = if network == "route" { "203.0.0.0/16" } else { "172.31.0.0/16" };
            let ip = if network == "route" { "203.0.0.2" } else { "172.31.0.2" };
            refused(rig, &rig.plan(network, subnet, ip, 9), expect);
        }
        assert!(rig.namespaces().is_empty());
        // Also the host keeps its route.
        assert!(rig.node().reaches(&rig.outside(), super::rig::OUTSIDE).is_ok());
        // An entry that became wrong does not tear down what stands.
        assert_eq!(rig.update(&[("net1", "x", "y")]).len(), 1);
        rig.wait_for_links(&["br-net1"]);
    });
}

#[test]
fn vlans_are_optional() {
    on_a_host("faults_vlan", |rig: &mut Rig| {
        rig.add_outside();
        for vlan_id in [0, 5, 4095, 4096, u64::MAX] {
            let (id, subnet, ip) = (NetworkId::new("net1"), NET1.1.to_owned(), NET1.2.to_owned());
            let failed = rig.update_params(vec![NetworkParams { id, subnet, ip, vlan_id }]);
            assert!(failed.is_empty(), "{failed:?}");
            assert!(rig.links().iter().any(|link| link.name == "br-net1" && link.up));
        }
    });
}

#[test]
fn foreign_links_are_not_touched() {
    on_a_host("faults_foreign_link", |rig: &mut Rig| {
        rig.add_bridge(5000, "br-net1", "somebody else's", None);
        rig.add_bridge(5001, "br-net2", "", Some([10, 1, 1, 1].into()));
        // What the reference leaves: the plain name, no alias, the same address or none.
        rig.add_bridge(5002, "br-net3", "", Some([172, 19, 0, 1].into()));
        let failed = rig.update(&[
            NET1,
            ("net2", "172.18.0.0/16", "172.18.0.1"),
            ("net3", "172.19.0.0/16", "172.19.0.1"),
        ]);
        assert_eq!(failed.len(), 2);
        for (id, failure) in &failed {
            let expect = format!("interface br-{id} exists and is not ours");
            assert_eq!(failure.message, expect);
        }
        let plan = rig.plan("net1", NET1.1, "172.17.0.2", 0);
        refused(rig, &plan, "interface br-net1 exists and is not ours");
        assert!(rig.namespaces().is_empty());
        rig.update(&[]);
        rig.keep(&[]);
        let links = rig.links();
        let names: Vec<&str> = links.iter().map(|link| link.name.as_str()).collect();
        assert_eq!(names, ["br-net1", "br-net2"]);
        assert_eq!(links[0].alias, "somebody else's");
    });
}

/// Nobody sends the networks again.
#[test]
fn a_network_comes_when_what_was_in_its_way_has_gone() {
    on_a_host("faults_later", |rig: &mut Rig| {
        rig.add_bridge(200, "br-net1", "somebody", None);
        let failed = rig.update(&[NET1]);
        assert!(failed[0].1.message.contains("exists and is not ours"), "{failed:?}");
        let plan = rig.plan("net1", NET1.1, "172.17.0.2", 0);
        refused(rig, &plan, "exists and is not ours");
        assert!(rig.ready().is_empty());
        rig.delete_link(200);
        // Core hears of it, and starts the instance again.
        wait_until("a network that stands", || rig.ready() == [NetworkId::new("net1")]);
        rig.net.attach(&plan).unwrap();
        assert!(rig.update(&[NET1]).is_empty());
        assert_eq!(rig.ready().len(), 1);
    });
}

/// Whoever chose the name of a bridge at random has left it in the database.
#[test]
fn the_bridge_of_the_database_is_taken_over() {
    on_a_host("faults_stored_bridge", |rig: &mut Rig| {
        let name = "br-00c0ffee";
        rig.add_bridge(5000, name, "", Some([172, 17, 0, 1].into()));
        let failed = rig.update(&[NET1]);
        assert!(failed[0].1.message.contains("172.17.0.0/16 on br-00c0ffee"), "{failed:?}");
        let (network, vlan) = (NetworkId::new("net1"), String::new());
        rig.stored_links = vec![NetworkLinks { network, vlan, bridge: name.to_owned() }];
        rig.restart();
        assert!(rig.update(&[NET1]).is_empty());
        let links = rig.links();
        assert_eq!((links[0].index, links[0].alias.as_str()), (5000, "aos:net:net1"));
        let plan = rig.plan("net1", NET1.1, "172.17.0.2", 0);
        rig.net.attach(&plan).unwrap();
        assert!(rig.instance(&plan).reaches(&rig.node(), [172, 17, 0, 1].into()).is_ok());
        rig.net.detach(&plan.id).unwrap();
        rig.update(&[]);
        rig.wait_for_links(&[]);
        // After a restart of the node it has the same name again, unless somebody else has it.
        rig.update(&[NET1]);
        rig.wait_for_links(&[name]);
        rig.update(&[]);
        rig.add_bridge(5001, name, "somebody else's", None);
        rig.update(&[NET1]);
        rig.wait_for_links(&[name, "br-net1"]);
    });
}

#[test]
fn a_deleted_bridge_is_made_again() {
    on_a_host("faults_deleted_bridge", |rig: &mut Rig| {
        rig.update(&[NET1]);
        let index = rig.links()[0].index;
        rig.delete_link(index);
        let plan = rig.plan("net1", NET1.1, "172.17.0.2", 0);
        rig.net.attach(&plan).unwrap();
        assert!(rig.instance(&plan).reaches(&rig.node(), [172, 17, 0, 1].into()).is_ok());
    });
}

/// The quick rules know bridges by their group.
#[test]
fn a_bridge_stays_in_its_group() {
    on_a_host("faults_group", |rig: &mut Rig| {
        rig.update(&[NET1, NET2]);
        let a = rig.plan("net1", NET1.1, "172.17.0.2", 0);
        let b = rig.plan("net2", NET2.1, "172.18.0.2", 1);
        rig.net.attach(&a).unwrap();
        rig.net.attach(&b).unwrap();
        let bridges = |rig: &Rig| -> Vec<Link> {
            rig.links().into_iter().filter(|link| link.kind == "bridge").collect()
        };
        let is_settled = |rig: &Rig| bridges(rig).iter().all(|link| link.group == LINK_GROUP);
        rig.set_group(bridges(rig)[0].index, 7);
        wait_until("the bridge is in its group", || is_settled(rig));
        // Networks are apart all the same while nobody is there to put it right.
        rig.stop();
        bridges(rig).iter().for_each(|link| rig.set_group(link.index, 7));
        rig.instance(&a).is_cut_off_from(&rig.instance(&b), [172, 18, 0, 2].into(), 80);
        rig.restart_with(vec![], &[&a, &b]);
        rig.update(&[NET1, NET2]);
        wait_until("the bridge is in its group", || is_settled(rig));
    });
}

/// What it could do a moment later fails nothing.
#[test]
fn a_busy_kernel_is_asked_again() {
    const BUSY: &[(&str, Errno)] = &[
        ("create bridge", Errno::ENOBUFS),
        ("set alias", Errno::EBUSY),
        ("add address", Errno::EAGAIN),
        ("create veth", Errno::ENOBUFS),
        ("create veth", Errno::EAGAIN),
        ("create veth", Errno::ENOBUFS),
        ("set hairpin", Errno::EBUSY),
        ("cut off link", Errno::EBUSY),
        ("delete link", Errno::EBUSY),
    ];
    with_refusals("faults_busy", NetworkSettings::default(), None, BUSY, |rig: &mut Rig| {
        assert!(rig.update(&[NET1]).is_empty());
        let plan = rig.plan("net1", NET1.1, "172.17.0.2", 0);
        rig.net.attach(&plan).unwrap();
        assert!(rig.instance(&plan).reaches(&rig.node(), [172, 17, 0, 1].into()).is_ok());
        rig.net.detach(&plan.id).unwrap();
        rig.update(&[]);
        rig.wait_for_links(&[]);
    });
    // Not for ever: the reason is told, and nothing is left.
    const STUCK: &[(&str, Errno)] = &[("create veth", Errno::ENOBUFS); 8];
    with_refusals("faults_stuck", NetworkSettings::default(), None, STUCK, |rig: &mut Rig| {
        rig.update(&[NET1]);
        let plan = rig.plan("net1", NET1.1, "172.17.0.2", 0);
        // After a look at the bridge everything is tried once more.
        refused(rig, &plan, "cannot create veth: ENOBUFS");
        assert!(rig.namespaces().is_empty());
        rig.wait_for_links(&["br-net1"]);
        rig.net.attach(&plan).unwrap();
        rig.net.detach(&plan.id).unwrap();
    });
}

/// Nobody attaches anything: the kernel says what happened.
#[test]
fn what_others_delete_comes_back() {
    on_a_host("faults_notices", |rig: &mut Rig| {
        rig.update(&[NET1]);
        let plans =
            [rig.plan("net1", NET1.1, "172.17.0.2", 0), rig.plan("net1", NET1.1, "172.17.0.3", 1)];
        for plan in &plans {
            rig.net.attach(plan).unwrap();
        }
        let (a, b) = (rig.instance(&plans[0]), rig.instance(&plans[1]));
        for _ in 0..2 {
            rig.flush_rules();
            wait_until("rules anew", || rig.keys(Set::Instances) == 2);
            assert_eq!(rig.keys(Set::Bridges), 1);
        }
        let bridge = rig.links().into_iter().find(|link| link.kind == "bridge").unwrap().index;
        rig.delete_link(bridge);
        wait_until("ports of a new bridge", || {
            let links = rig.links();
            let bridge = links.iter().find(|link| link.kind == "bridge").map(|link| link.index);
            let ports = links.iter().filter(|link| Some(link.master) == bridge && link.up);
            bridge.is_some() && ports.count() == 2
        });
        assert!(a.reaches(&b, [172, 17, 0, 3].into()).is_ok());
        assert!(a.reaches(&rig.node(), [172, 17, 0, 1].into()).is_ok());
        // The link of an instance, and then both it and its bridge.
        let links = |rig: &Rig, kind: &str| -> Vec<u32> {
            rig.links().iter().filter(|link| link.kind == kind).map(|link| link.index).collect()
        };
        for kinds in [&["veth"][..], &["veth", "bridge"]] {
            let before: Vec<u32> = kinds.iter().map(|kind| links(rig, kind)[0]).collect();
            before.iter().for_each(|index| rig.delete_link(*index));
            wait_until("another link", || links(rig, "veth").len() == 2);
            rig.update(&[NET1]);
            assert!(a.reaches(&b, [172, 17, 0, 3].into()).is_ok());
            assert!(a.reaches(&rig.node(), [172, 17, 0, 1].into()).is_ok());
        }
        for plan in &plans {
            rig.net.detach(&plan.id).unwrap();
        }
        rig.wait_for_links(&["br-net1"]);
    });
}

/// One transaction that is larger than what a socket sends by itself.
#[test]
fn many_rules_are_made_anew_at_once() {
    const LONG: Duration = Duration::from_secs(60);
    on_a_host("faults_many_rules", |rig: &mut Rig| {
        rig.update(&[NET1]);
        let instances: u8 = 100;
        for number in 1..=instances {
            let ip = format!("172.17.1.{number}");
            let mut plan = rig.plan("net1", NET1.1, &ip, number.into());
            plan.exposed_ports = vec!["1001-2024/tcp".to_owned()];
            rig.net.attach(&plan).unwrap();
        }
        let ports = usize::from(instances) * 1024;
        // A list that is read while the kernel enlarges the set lacks some.
        wait_within(LONG, "all rules", || rig.keys(Set::Exposed) == ports);
        rig.flush_rules();
        wait_within(LONG, "rules anew", || rig.keys(Set::Exposed) == ports);
        // That once: announcements of it that are lost are no reason to do it again.
        let (generation, end) = (rig.generation(), monotonic() + Duration::from_millis(1500));
        while monotonic() < end {
            rig.net.survey();
        }
        assert!(rig.generation() <= generation + 1);
        rig.restart();
        // A machine that is busy with other tests may need longer than a caller waits.
        assert!((0..3).any(|_| rig.net.survey().len() == usize::from(instances)));
        wait_within(LONG, "all rules after a restart", || rig.keys(Set::Exposed) == ports);
    });
}

/// The boot scripts of the OS load their rules while ours are made, again and again.
#[test]
fn rules_come_about_while_others_change_theirs() {
    on_a_host("faults_rules_meanwhile", |rig: &mut Rig| {
        rig.update(&[NET1]);
        let plan = rig.plan("net1", NET1.1, "172.17.0.2", 0);
        rig.net.attach(&plan).unwrap();
        let (stop, stopped) = crossbeam::channel::bounded::<()>(0);
        std::thread::scope(|scope| {
            scope.spawn(move || {
                // Ends when the other end is dropped.
                while stopped.try_recv() == Err(crossbeam::channel::TryRecvError::Empty) {
                    touch_rules().unwrap();
                }
            });
            for _ in 0..10 {
                rig.flush_rules();
                wait_until("rules anew", || rig.keys(Set::Instances) == 1);
            }
            drop(stop);
        });
        assert!(rig.alerts().is_empty(), "{:?}", rig.alerts());
    });
}

/// The table may be there already with a policy of drop, and other tables, too.
#[test]
fn rules_stand_beside_those_of_the_os() {
    on_a_host("faults_foreign_rules", |rig: &mut Rig| {
        let Some(()) = rig.nft(
            "table inet aos {\n\
             chain forward { type filter hook forward priority 0; policy drop; ct state established,related accept; }\n\
             chain postrouting { type nat hook postrouting priority 100; }\n\
             chain mine { }\n\
             }\n\
             table ip other { set s { type ipv4_addr; elements = { 1.2.3.4 }; }\n chain c { }\n }",
        ) else {
            println!("SKIP faults_foreign_rules: the program nft is missing");
            return;
        };
        let foreign = rig.nft_list("table ip other");
        rig.restart();
        rig.add_outside();
        rig.update(&[NET1]);
        let mut a = rig.plan("net1", NET1.1, "172.17.0.2", 0);
        a.exposed_ports = vec!["80".to_owned()];
        rig.net.attach(&a).unwrap();
        let (one, outside) = (rig.instance(&a), rig.outside());
        assert!(one.reaches(&outside, super::rig::OUTSIDE).is_ok());
        assert!(outside.reaches_port(&one, [172, 17, 0, 2].into(), 80).is_ok());
        rig.restart();
        rig.update(&[]);
        rig.keep(&[]);
        assert_eq!(rig.nft_list("table ip other"), foreign);
        let table = rig.nft_list("table inet aos");
        for kept in ["policy drop", "chain mine", "ct state established,related accept"] {
            assert!(table.contains(kept), "{table}");
        }
        assert_eq!(table.matches("aos-sm").count(), 7, "{table}");
    });
}

/// As in a container that may not change the kernel's settings.
#[test]
fn forwarding_that_cannot_be_enabled_is_an_error() {
    on_a_host("faults_forwarding", |rig: &mut Rig| {
        let path = std::path::Path::new("/proc/sys/net/ipv4/ip_forward");
        let fixed = tempfile::NamedTempFile::new().unwrap();
        let fix = |value: &str| {
            crate::sys::fs::write_plain(fixed.path(), value.as_bytes(), 0o444).unwrap();
            crate::sys::mount::bind(fixed.path(), path).unwrap();
            let flags = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY;
            mount(None::<&str>, path, None::<&str>, flags, None::<&str>).unwrap();
        };
        fix("0\n");
        let failed = rig.update(&[NET1]);
        assert!(failed[0].1.message.contains("cannot enable forwarding in"), "{failed:?}");
        let plan = rig.plan("net1", NET1.1, "172.17.0.2", 0);
        refused(rig, &plan, "cannot enable forwarding in");
        // What is tried again from time to time leaves nothing, and its announcements are no reason
        // to try again.
        wait_until("a moment without a link", || rig.links().is_empty());
        assert!(rig.namespaces().is_empty());
        let notices = Netlink::for_notices(Family::Route, &rtnl::NOTICE_GROUPS).unwrap();
        let (mut heard, end) = (0, monotonic() + Duration::from_millis(500));
        while monotonic() < end {
            heard += usize::from(notices.receive(&mut [0; 32 * 1024]).is_ok());
        }
        assert!(heard < 50, "{heard}");
        // Somebody else has done it.
        fix("1\n");
        rig.net.attach(&plan).unwrap();
    });
}

#[test]
fn a_kernel_without_vlans_is_reported_once() {
    let caps = Some(NetCaps { vlan: false, ..NetCaps::ALL });
    let settings = NetworkSettings { firewall: false, ..NetworkSettings::default() };
    with_caps("faults_no_vlan", settings, caps, |rig: &mut Rig| {
        rig.add_outside();
        rig.update(&[NET1]);
        assert!(rig.alerts().is_empty());
        for (id, vlan_id) in [("net1", 5), ("net2", 6), ("net1", 7)] {
            let third = if id == "net1" { 17 } else { 18 };
            let failed = rig.update_params(vec![NetworkParams {
                id: NetworkId::new(id),
                subnet: format!("172.{third}.0.0/16"),
                ip: format!("172.{third}.0.1"),
                vlan_id,
            }]);
            assert!(failed.is_empty(), "{failed:?}");
        }
        let expect = "network is degraded: no networks between nodes: kernel lacks 8021q (VLAN)";
        assert_eq!(rig.alerts(), [expect]);
    });
}

#[test]
fn a_kernel_without_bridges_or_pairs_is_reported() {
    let caps = Some(NetCaps { bridge: false, veth: false, ..NetCaps::ALL });
    let settings = NetworkSettings { firewall: false, ..NetworkSettings::default() };
    with_caps("faults_no_bridge", settings, caps, |rig: &mut Rig| {
        rig.update(&[]);
        let alerts = rig.alerts();
        assert_eq!(alerts.len(), 2);
        assert!(alerts[0].ends_with("instances get no network: kernel lacks bridge"));
        let plan = rig.plan("net1", NET1.1, "172.17.0.2", 0);
        refused(rig, &plan, "kernel lacks bridge");
        assert!(rig.namespaces().is_empty());
    });
}

/// What the 9.x generation has set up, beside what the image of the OS has.
#[test]
fn rules_of_the_successor_go() {
    on_a_host("faults_successor", |rig: &mut Rig| {
        rig.stop();
        rig.flush_rules();
        let Some(()) = rig.nft(
            "table inet aos {\n\
             chain instance_a {\n ip daddr 172.17.0.0/16 accept\n ip saddr 172.17.0.2 accept\n }\n\
             chain forward {\n type filter hook forward priority filter; policy drop;\n\
               ct state invalid drop\n ip daddr 172.17.0.2 jump instance_a\n }\n\
             chain postrouting {\n type nat hook postrouting priority srcnat; policy accept;\n\
               ip saddr 172.17.0.0/16 oifname != \"br-00c0ffee\" masquerade\n\
               ip saddr 10.9.0.0/16 oifname \"theirs\" masquerade\n }\n\
             }\n\
             table inet aos-traffic {\n chain in_a {\n counter\n }\n\
             chain forward {\n type filter hook forward priority 0;\n jump in_a\n }\n }\n\
             table ip aos-traffic {\n chain c {\n counter\n }\n }\n",
        ) else {
            println!("SKIP faults_successor: the program nft is missing");
            rig.restart();
            return;
        };
        rig.restart();
        assert!(rig.update(&[NET1]).is_empty());
        let all = rig.nft_list("ruleset");
        for gone in ["instance_a", "table inet aos-traffic", "br-00c0ffee"] {
            assert!(!all.contains(gone), "{gone}: {all}");
        }
        for kept in ["table ip aos-traffic", "10.9.0.0/16", "policy drop", "ct state invalid drop"]
        {
            assert!(all.contains(kept), "{kept}: {all}");
        }
    });
}

/// Another name server of the host has taken all addresses.
#[test]
fn a_network_works_without_its_name_server() {
    on_a_host("faults_port_53", |rig: &mut Rig| {
        let _taken = std::net::UdpSocket::bind(("0.0.0.0", 53)).unwrap();
        assert!(rig.update(&[NET1]).is_empty());
        assert!(rig.alerts()[0].contains("names of network net1 are not served"));
        let mut plan = rig.plan("net1", NET1.1, "172.17.0.2", 0);
        plan.params.dns_servers = (1..=20).map(|last| format!("10.0.0.{last}")).collect();
        rig.net.attach(&plan).unwrap();
        let expect: String = (1..=8).map(|last| format!("nameserver\t10.0.0.{last}\n")).collect();
        assert_eq!(rig.file(&plan, "resolv.conf"), expect);
        assert!(rig.instance(&plan).reaches(&rig.node(), [172, 17, 0, 1].into()).is_ok());
    });
}

/// Nothing runs unfiltered by accident.
#[test]
fn a_kernel_without_nf_tables_is_reported() {
    without_nf_tables("faults_no_nf_tables", |rig: &mut Rig| {
        let expect = "kernel lacks nf_tables with nat, masquerade and conntrack";
        let failed = rig.update(&[NET1]);
        assert!(failed[0].1.message.contains(expect), "{failed:?}");
        refused(rig, &rig.plan("net1", NET1.1, "172.17.0.2", 0), expect);
        assert!(rig.links().is_empty() && rig.namespaces().is_empty());
        let alerts = rig.alerts();
        assert!(alerts.iter().any(|alert| alert.contains(expect)), "{alerts:?}");
    });
    let settings = NetworkSettings { firewall: false, ..NetworkSettings::default() };
    with_settings("faults_no_nf_tables", settings, |rig: &mut Rig| {
        assert!(rig.update(&[NET1]).is_empty());
        let plan = rig.plan("net1", NET1.1, "172.17.0.2", 0);
        rig.net.attach(&plan).unwrap();
        assert!(rig.instance(&plan).reaches(&rig.node(), [172, 17, 0, 1].into()).is_ok());
        assert!(rig.alerts().is_empty());
    });
}
