//! Instances have no IPv6 but loopback: nothing gives them an address, and nothing lets them out.

use std::net::{Ipv6Addr, SocketAddrV6};
use std::os::fd::AsRawFd;
use std::process::Command;

use nix::sys::socket::{
    self, AddressFamily, SockFlag, SockProtocol, SockType, SockaddrIn6, sockopt,
};

use super::peer::Peer;
use super::rig::{Rig, on_a_host};
use crate::ports::Network;
use crate::sys::testing::wait_until;

const NET1: (&str, &str, &str) = ("net1", "172.17.0.0/16", "172.17.0.1");
const NET2: (&str, &str, &str) = ("net2", "172.18.0.0/16", "172.18.0.7");

fn ip(peer: &Peer<'_>, words: &str) {
    let status = peer.runs(Command::new("ip").args(words.split(' '))).status;
    assert!(status.success(), "{words}");
}

/// A router advertisement with a prefix for addresses and a way out.
fn advertisement() -> Vec<u8> {
    let header = [134, 0, 0, 0, 64, 0, 0x07, 0x08, 0, 0, 0, 0, 0, 0, 0, 0];
    let prefix = [3, 4, 64, 0xc0, 0, 1, 0x51, 0x80, 0, 0, 0x38, 0x40, 0, 0, 0, 0];
    let network = [0xfd, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    [&header[..], &prefix, &network].concat()
}

/// Whoever would take a router advertisement in the bridge takes it; an instance does not.
#[test]
fn routers_do_not_give_addresses_to_instances() {
    on_a_host("reach_advertisement", |rig: &mut Rig| {
        rig.update(&[NET1]);
        let a = rig.plan("net1", NET1.1, "172.17.0.2", 0);
        rig.net.attach(&a).unwrap();
        let Some(before) = rig.instance(&a).file("/proc/thread-self/net/if_inet6") else {
            println!("SKIP reach_advertisement: kernel lacks IPv6");
            return;
        };
        let bridge = rig.links().into_iter().find(|link| link.kind == "bridge").unwrap().index;
        let witness = rig.add_machine("witness", bridge);
        let source = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
        ip(&rig.node(), "-6 addr add fe80::1/64 dev br-net1 nodad");
        let (kind, flags) = (SockType::Raw, SockFlag::SOCK_CLOEXEC);
        let protocol = SockProtocol::IcmpV6;
        let router = socket::socket(AddressFamily::Inet6, kind, flags, protocol).unwrap();
        let address = |ip| SockaddrIn6::from(SocketAddrV6::new(ip, 0, 0, bridge));
        socket::bind(router.as_raw_fd(), &address(source)).unwrap();
        socket::setsockopt(&router, sockopt::Ipv6MulticastHops, &255).unwrap();
        let all = address(Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1));
        wait_until("an address from the router", || {
            let sent = socket::sendto(
                router.as_raw_fd(),
                &advertisement(),
                &all,
                socket::MsgFlags::empty(),
            );
            sent.unwrap();
            witness.file("/proc/thread-self/net/if_inet6").unwrap().contains("fd000009")
        });
        let instance = rig.instance(&a);
        assert_eq!(instance.file("/proc/thread-self/net/if_inet6").unwrap(), before);
        let routes = instance.file("/proc/thread-self/net/ipv6_route").unwrap();
        assert!(!routes.contains("eth0"), "{routes}");
        // Nor to the node.
        let node = rig.node().file("/proc/thread-self/net/if_inet6").unwrap();
        assert!(!node.contains("fd000009"), "{node}");
    });
}

/// Instances have no IPv6 but loopback, and what they could make of it goes nowhere.
#[test]
fn there_is_no_ipv6_between_networks() {
    on_a_host("reach_ipv6", |rig: &mut Rig| {
        rig.update(&[NET1, NET2]);
        let a = rig.plan("net1", NET1.1, "172.17.0.2", 0);
        let b = rig.plan("net2", NET2.1, "172.18.0.2", 1);
        rig.net.attach(&a).unwrap();
        rig.net.attach(&b).unwrap();
        let Some(list) = rig.instance(&a).file("/proc/thread-self/net/if_inet6") else {
            println!("SKIP reach_ipv6: kernel lacks IPv6");
            return;
        };
        let names: Vec<&str> =
            list.lines().filter_map(|line| line.split(' ').next_back()).collect();
        assert_eq!(names, ["lo"], "{list}");
        // Neither does it take what a router announces.
        let switch = "/proc/sys/net/ipv6/conf/eth0/disable_ipv6";
        assert_eq!(rig.instance(&a).file(switch).unwrap(), "1\n");
        let conf =
            |key: &str| rig.node().file(&format!("/proc/sys/net/ipv6/conf/br-net1/{key}")).unwrap();
        assert_eq!(conf("accept_ra"), "0\n");
        // Somebody with more rights than a service has configures it all.
        rig.node().writes("/proc/sys/net/ipv6/conf/all/forwarding", "1").unwrap();
        for (plan, bridge, net) in [(&a, "br-net1", "fd00:1::"), (&b, "br-net2", "fd00:2::")] {
            ip(&rig.node(), &format!("-6 addr add {net}1/64 dev {bridge} nodad"));
            let inside = rig.instance(plan);
            inside.writes(switch, "0").unwrap();
            ip(&inside, &format!("-6 addr add {net}2/64 dev eth0 nodad"));
            ip(&inside, &format!("-6 route add default via {net}1"));
        }
        let (one, far, node) = (rig.instance(&a), rig.instance(&b), rig.node());
        one.is_cut_off_from6(&far, "fd00:2::2");
        // The way is right, it is only closed: the node is reached.
        assert!(one.reaches6(&node, "fd00:1::1"));
    });
}
