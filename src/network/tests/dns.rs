//! Names, asked by instances over their own network.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::path::Path;
use std::time::Duration;

use super::super::dns::MAX_PENDING;
use super::super::packet::tests::query;
use super::super::packet::{TYPE_A, TYPE_PTR};
use super::rig::{OUTSIDE, PATIENCE, Peer, Rig, UPLINK, on_a_host};
use crate::ports::{Network, NetworkPlan};
use crate::sys::mount::bind;
use crate::sys::thread::spawn;

const NET1: (&str, &str, &str) = ("net1", "172.17.0.0/16", "172.17.0.1");
const NET2: (&str, &str, &str) = ("net2", "172.18.0.0/16", "172.18.0.1");
const TYPE_AAAA: u16 = 28;

/// Response code, number of answers, and the last four bytes of the message.
type Reply = (u8, u8, [u8; 4]);

fn two(rig: &Rig) -> [NetworkPlan; 2] {
    let mut a = rig.plan("net1", NET1.1, "172.17.0.2", 0);
    a.hostname = "Cam".to_owned();
    let b = rig.plan("net2", NET2.1, "172.18.0.2", 1);
    [a, b]
}

/// The host has no name servers.
fn forget_host_servers() {
    let empty = tempfile::NamedTempFile::new().unwrap();
    bind(empty.path(), Path::new("/etc/resolv.conf")).unwrap();
}

fn ask(from: &Peer<'_>, server: [u8; 4], name: &str, kind: u16) -> Reply {
    let socket = from.udp((Ipv4Addr::UNSPECIFIED, 0).into());
    socket.connect((Ipv4Addr::from(server), 53)).unwrap();
    socket.send(&query(77, name, kind, false)).unwrap();
    receive(&socket)
}

fn receive(socket: &UdpSocket) -> Reply {
    let mut buffer = [0; 512];
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let length = socket.recv(&mut buffer).unwrap();
    assert_eq!(&buffer[..2], [0, 77]);
    let data = buffer[length - 4..length].try_into().unwrap();
    (buffer[3] & 0x0f, buffer[7], data)
}

/// A server that knows one address for everything.
fn serve_outside(rig: &Rig, address: IpAddr) {
    let socket = rig.outside().udp(SocketAddr::from((address, 53)));
    socket.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    spawn("upstream", move || {
        let mut buffer = [0; 512];
        while let Ok((length, client)) = socket.recv_from(&mut buffer) {
            let mut response = buffer[..length].to_vec();
            response[2] |= 0x80;
            response[7] = 1;
            response.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4, 9, 9, 9, 9]);
            socket.send_to(&response, client).unwrap();
        }
    })
    .unwrap();
}

#[test]
fn names_of_the_node_are_known() {
    on_a_host("dns_names", |rig: &mut Rig| {
        forget_host_servers();
        rig.update(&[NET1, NET2]);
        let [a, b] = two(rig);
        rig.net.attach(&a).unwrap();
        rig.net.attach(&b).unwrap();
        assert_eq!(rig.file(&a, "resolv.conf"), "nameserver\t172.17.0.1\n");
        let (one, two) = (rig.instance(&a), rig.instance(&b));
        let (node1, node2) = ([172, 17, 0, 1], [172, 18, 0, 1]);
        let id = a.id.as_str();
        for name in [
            "cam",
            "CAM",
            "cam.net1",
            "0.subj.svc",
            "subj.svc",
            "0.subj.svc.net1",
            "subj.svc.NET1",
            id,
            &format!("{id}.net1"),
        ] {
            assert_eq!(ask(&one, node1, name, TYPE_A), (0, 1, [172, 17, 0, 2]), "{name}");
            assert_eq!(ask(&one, node1, name, TYPE_AAAA).1, 0, "{name}");
        }
        // From another network only with the domain.
        assert_eq!(ask(&two, node2, "cam.net1", TYPE_A), (0, 1, [172, 17, 0, 2]));
        assert_eq!(ask(&two, node2, "cam", TYPE_A).0, 5);
        assert_eq!(ask(&one, node1, "nobody.net1", TYPE_A).0, 3);
        assert_eq!(ask(&one, node1, "example.com", TYPE_A).0, 5);
        let reverse = ask(&two, node2, "2.0.17.172.in-addr.arpa", TYPE_PTR);
        assert_eq!(reverse, (0, 1, *b"et1\0"));
        rig.net.detach(&a.id).unwrap();
        assert_eq!(ask(&two, node2, "cam.net1", TYPE_A).0, 3);
        // After a restart the names are those of the adopted instances.
        rig.net.attach(&a).unwrap();
        rig.restart();
        rig.update(&[NET1, NET2]);
        rig.net.adopt(&a).unwrap();
        assert_eq!(ask(&rig.instance(&a), node1, "cam", TYPE_A), (0, 1, [172, 17, 0, 2]));
        // The node has another address.
        rig.update(&[("net1", NET1.1, "172.17.0.9"), NET2]);
        assert_eq!(rig.file(&a, "resolv.conf"), "nameserver\t172.17.0.9\n");
        let one = rig.instance(&a);
        assert_eq!(ask(&one, [172, 17, 0, 9], "cam", TYPE_A), (0, 1, [172, 17, 0, 2]));
    });
}

#[test]
fn other_names_are_asked_upstream() {
    on_a_host("dns_upstream", |rig: &mut Rig| {
        forget_host_servers();
        rig.add_outside();
        rig.update(&[NET1]);
        let [mut a, _] = two(rig);
        // Nobody listens at the first address: the second one is asked at once.
        a.params.dns_servers = vec![UPLINK.to_string(), OUTSIDE.to_string()];
        rig.net.attach(&a).unwrap();
        serve_outside(rig, OUTSIDE.into());
        let one = rig.instance(&a);
        for name in ["example.com", "1.subj.svc.net1"] {
            assert_eq!(ask(&one, [172, 17, 0, 1], name, TYPE_A), (0, 1, [9, 9, 9, 9]), "{name}");
        }
        assert_eq!(ask(&one, [172, 17, 0, 1], "cam", TYPE_A), (0, 1, [172, 17, 0, 2]));
    });
}

#[test]
fn queries_under_way_are_limited() {
    on_a_host("dns_limit", |rig: &mut Rig| {
        forget_host_servers();
        rig.add_outside();
        rig.update(&[NET1]);
        let [mut a, _] = two(rig);
        a.params.dns_servers = vec![OUTSIDE.to_string()];
        rig.net.attach(&a).unwrap();
        let _silent = rig.outside().udp((OUTSIDE, 53).into());
        let socket = rig.instance(&a).udp((Ipv4Addr::UNSPECIFIED, 0).into());
        socket.connect(("172.17.0.1", 53)).unwrap();
        for _ in 0..=MAX_PENDING {
            socket.send(&query(77, "example.com", TYPE_A, true)).unwrap();
        }
        assert_eq!(receive(&socket).0, 2);
        // Garbage is survived.
        for garbage in [&b""[..], b"x", &[0; 12], &[0xff; 300]] {
            socket.send(garbage).unwrap();
        }
        let mut refusal = [0; 64];
        let length = socket.recv(&mut refusal).unwrap();
        assert_eq!((length, refusal[3] & 0x0f), (12, 1));
        assert_eq!(ask(&rig.instance(&a), [172, 17, 0, 1], "cam", TYPE_A).1, 1);
    });
}
