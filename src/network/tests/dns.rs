//! Names, asked by instances over their own network.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use mio::{Events, Poll};

use super::super::dns::tcp::{MAX_CONNECTIONS, MAX_OF_ONE};
use super::super::dns::{Dns, MAX_PENDING, Record};
use super::super::names;
use super::super::naming::LinkName;
use super::super::packet::tests::query;
use super::super::packet::{MAX_QUERY, TYPE_A, TYPE_PTR};
use super::peer::Peer;
use super::rig::{OUTSIDE, PATIENCE, Rig, UPLINK, on_a_host};
use crate::model::id::{InstanceId, InstanceIdent, NetworkId, ServiceId, SubjectId};
use crate::ports::{Network, NetworkPlan};
use crate::sys::mount::bind;
use crate::sys::testing::wait_until;
use crate::sys::thread::spawn;

const NET1: (&str, &str, &str) = ("net1", "172.17.0.0/16", "172.17.0.1");
const NET2: (&str, &str, &str) = ("net2", "172.18.0.0/16", "172.18.0.1");
const TYPE_AAAA: u16 = 28;
const TYPE_TXT: u16 = 16;
const NODE1: Ipv4Addr = Ipv4Addr::new(172, 17, 0, 1);
/// More than any datagram and than one piece of a connection.
const LONG: usize = 20_000;

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

/// Another name server has taken all addresses for a while; an instance has the name of its network.
#[test]
fn who_came_before_the_responder_is_known_to_it() {
    on_a_host("dns_late", |rig: &mut Rig| {
        forget_host_servers();
        let taken = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 53)).unwrap();
        rig.update(&[NET1]);
        let [mut a, _] = two(rig);
        a.hostname = "net1".to_owned();
        rig.net.attach(&a).unwrap();
        assert_eq!(rig.file(&a, "resolv.conf"), "nameserver\t8.8.8.8\n");
        drop(taken);
        rig.update(&[("net1", NET1.1, "172.17.0.9")]);
        assert_eq!(rig.file(&a, "resolv.conf"), "nameserver\t172.17.0.9\n");
        for name in ["net1", "0.subj.svc"] {
            let found = ask(&rig.instance(&a), [172, 17, 0, 9], name, TYPE_A);
            assert_eq!(found, (0, 1, [172, 17, 0, 2]), "{name}");
        }
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

/// The answer to a query with that many bytes of data behind the question.
fn long_answer(query: &[u8], data: usize) -> Vec<u8> {
    let mut response = query.to_vec();
    response[2] |= 0x80;
    response.resize(query.len() + data, 7);
    response
}

/// Servers outside that know long answers; over datagrams, strangers are faster than they are.
fn serve_long_answers(rig: &Rig, datagram: usize) {
    let socket = rig.outside().udp(SocketAddr::from((OUTSIDE, 53)));
    let listener = rig.outside().listen(53);
    socket.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    spawn("upstream", move || {
        let mut buffer = [0; 512];
        while let Ok((length, client)) = socket.recv_from(&mut buffer) {
            let right = long_answer(&buffer[..length], datagram);
            let (mut other_id, mut other_question) = (right.clone(), right.clone());
            other_id[0] ^= 1;
            other_question[13] ^= 1;
            for response in [&buffer[..length], &other_id, &other_question, &[], &right] {
                socket.send_to(response, client).unwrap();
            }
        }
    })
    .unwrap();
    spawn("upstream-tcp", move || {
        while let Ok((mut stream, _)) = listener.accept() {
            let query = read_message(&mut stream).unwrap();
            write_message(&mut stream, &long_answer(&query, LONG)).unwrap();
        }
    })
    .unwrap();
}

fn read_message(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut length = [0; 2];
    stream.read_exact(&mut length)?;
    let mut message = vec![0; u16::from_be_bytes(length).into()];
    stream.read_exact(&mut message)?;
    Ok(message)
}

fn write_message(stream: &mut TcpStream, message: &[u8]) -> io::Result<()> {
    let length = u16::try_from(message.len()).unwrap();
    stream.write_all(&[&length.to_be_bytes(), message].concat())
}

fn connect(from: &Peer<'_>) -> TcpStream {
    let stream = from.open(NODE1, 53).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

fn is_closed(stream: &mut TcpStream) -> bool {
    match stream.read(&mut [0; 1]) {
        Ok(length) => length == 0,
        Err(err) => err.kind() == io::ErrorKind::ConnectionReset,
    }
}

#[test]
fn long_answers_come_over_connections() {
    on_a_host("dns_long_answers", |rig: &mut Rig| {
        forget_host_servers();
        rig.add_outside();
        rig.update(&[NET1]);
        let [mut a, _] = two(rig);
        // Nobody listens at the first address.
        a.params.dns_servers = vec![UPLINK.to_string(), OUTSIDE.to_string()];
        rig.net.attach(&a).unwrap();
        serve_long_answers(rig, 600);
        let one = rig.instance(&a);
        let socket = one.udp((Ipv4Addr::UNSPECIFIED, 0).into());
        socket.connect((NODE1, 53)).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut buffer = [0; 2048];
        // Without options a resolver takes 512 bytes; it is told to come again.
        let plain = query(77, "example.com", TYPE_TXT, false);
        socket.send(&plain).unwrap();
        let length = socket.recv(&mut buffer).unwrap();
        assert_eq!((length, buffer[2] & 0x02), (plain.len(), 2));
        // With options that say so it takes more.
        let mut large = query(77, "example.com", TYPE_TXT, true);
        let at = large.len() - 8;
        large[at..at + 2].copy_from_slice(&1232u16.to_be_bytes());
        socket.send(&large).unwrap();
        let length = socket.recv(&mut buffer).unwrap();
        assert_eq!(buffer[..length], long_answer(&large, 600));
        // Any length over a connection, which serves one question after the other.
        let mut stream = connect(&one);
        let own = query(78, "cam.net1", TYPE_A, false);
        for question in [&plain, &own, &plain] {
            write_message(&mut stream, question).unwrap();
        }
        assert_eq!(read_message(&mut stream).unwrap(), long_answer(&plain, LONG));
        let answer = read_message(&mut stream).unwrap();
        assert_eq!(
            (&answer[..2], &answer[answer.len() - 4..]),
            (&[0, 78][..], &[172, 17, 0, 2][..])
        );
        assert_eq!(read_message(&mut stream).unwrap(), long_answer(&plain, LONG));
    });
}

#[test]
fn connections_are_limited_and_bad_ones_end() {
    on_a_host("dns_connections", |rig: &mut Rig| {
        forget_host_servers();
        rig.update(&[NET1]);
        let plans: Vec<NetworkPlan> = (0..5u64)
            .map(|number| rig.plan("net1", NET1.1, &format!("172.17.0.{}", number + 2), number))
            .collect();
        for plan in &plans {
            rig.net.attach(plan).unwrap();
        }
        let own = query(1, "0.subj.svc", TYPE_A, false);
        let works = |stream: &mut TcpStream| {
            write_message(stream, &own).unwrap();
            assert!(read_message(stream).unwrap().ends_with(&[172, 17, 0, 2]));
        };
        let one = rig.instance(&plans[0]);
        let too_long = u16::try_from(MAX_QUERY + 1).unwrap().to_be_bytes();
        for bad in [&[0, 0][..], &too_long, &[255, 255], &[0, 3, 1, 2, 3]] {
            let mut stream = connect(&one);
            stream.write_all(bad).unwrap();
            assert!(is_closed(&mut stream), "{bad:?}");
        }
        // What is no question gets an error, and the connection lives on.
        let mut stream = connect(&one);
        write_message(&mut stream, &[0; 12]).unwrap();
        assert_eq!(read_message(&mut stream).unwrap()[3] & 0x0f, 1);
        works(&mut stream);
        // In pieces, and half of one.
        for byte in [0, u8::try_from(own.len()).unwrap()].iter().chain(&own) {
            stream.write_all(&[*byte]).unwrap();
        }
        assert!(read_message(&mut stream).unwrap().ends_with(&[172, 17, 0, 2]));
        stream.write_all(&[0]).unwrap();
        drop(stream);
        // So many of one address, so many in all. The name server learns of an end a moment later.
        let answers = |stream: &mut TcpStream| {
            write_message(stream, &own).is_ok() && read_message(stream).is_ok()
        };
        let mut open: Vec<TcpStream> = Vec::new();
        for (plan, before) in plans[..4].iter().zip((0..).step_by(MAX_OF_ONE)) {
            let from = rig.instance(plan);
            wait_until("all connections of one address", || {
                let mut stream = connect(&from);
                if answers(&mut stream) {
                    open.push(stream);
                }
                open.len() == before + MAX_OF_ONE
            });
            assert!(is_closed(&mut connect(&from)));
        }
        assert_eq!(open.len(), MAX_CONNECTIONS);
        let last = rig.instance(&plans[4]);
        assert!(is_closed(&mut connect(&last)));
        open.iter_mut().for_each(works);
        open.pop();
        wait_until("room for a connection", || answers(&mut connect(&last)));
        assert_eq!(ask(&last, [172, 17, 0, 1], "subj.svc", TYPE_A).1, 1);
    });
}

fn record(instance: u64, address: [u8; 4], servers: &[IpAddr]) -> Record {
    let (service_id, subject_id) = (ServiceId::new("Svc"), SubjectId::new("subj"));
    let ident = InstanceIdent { service_id, subject_id, instance };
    Record { ident, address: address.into(), servers: servers.to_vec() }
}

/// A name server on loopback whose clock the test sets.
struct Bench {
    dns: Dns,
    poll: Poll,
    zone: NetworkId,
}

impl Bench {
    fn new(servers: &[IpAddr]) -> Self {
        let poll = Poll::new().unwrap();
        let mut dns = Dns::new(poll.registry().try_clone().unwrap(), true);
        let zone = NetworkId::new("net1");
        dns.open_zone(&zone, &LinkName::try_from("lo").unwrap(), Ipv4Addr::LOCALHOST);
        // Its host name looks like a name of another instance.
        let record = record(0, [172, 17, 0, 2], servers);
        let names = names::of_instance(&record.ident, Some("9.subj.svc"), &zone);
        let id = InstanceId::new("i");
        dns.add(&zone, &id, &names::keys(&id, &names, &zone), record);
        Self { dns, poll, zone }
    }

    /// Another network, and somebody in it.
    fn add_far(&mut self, servers: &[IpAddr]) -> UdpSocket {
        let (zone, address) = (NetworkId::new("net2"), Ipv4Addr::new(127, 0, 0, 9));
        self.dns.open_zone(&zone, &LinkName::try_from("lo").unwrap(), address);
        let id = InstanceId::new("j");
        let keys = names::keys(&id, &[], &zone);
        self.dns.add(&zone, &id, &keys, record(1, [172, 18, 0, 2], servers));
        let far = UdpSocket::bind((address, 0)).unwrap();
        far.connect((address, 53)).unwrap();
        far
    }

    /// Serves what is there at this time.
    fn turn(&mut self, now: Duration) {
        let mut events = Events::with_capacity(64);
        // Loopback delivers before a send returns; a second round finds what the first one caused.
        for _ in 0..3 {
            self.poll.poll(&mut events, Some(Duration::ZERO)).unwrap();
            events.iter().for_each(|event| self.dns.ready(event.token(), now));
            self.dns.tick(now);
        }
    }
}

#[test]
fn silent_servers_are_given_up_in_time() {
    on_a_host("dns_silence", |_: &mut Rig| {
        forget_host_servers();
        let silent: [UdpSocket; 2] =
            [2, 3].map(|last| UdpSocket::bind((Ipv4Addr::new(127, 0, 0, last), 53)).unwrap());
        let servers: Vec<IpAddr> = silent.iter().map(|s| s.local_addr().unwrap().ip()).collect();
        let mut bench = Bench::new(&servers);
        let client = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        client.connect((Ipv4Addr::LOCALHOST, 53)).unwrap();
        client.set_nonblocking(true).unwrap();
        silent.iter().for_each(|socket| socket.set_nonblocking(true).unwrap());
        let mut buffer = [0; 512];
        let mut asked = |server: usize| silent[server].recv(&mut buffer).is_ok();
        let at = Duration::from_millis;
        client.send(&query(77, "example.com", TYPE_A, false)).unwrap();
        bench.turn(at(0));
        assert!(asked(0) && !asked(1));
        bench.turn(at(999));
        assert!(!asked(0) && !asked(1));
        bench.turn(at(1000));
        assert!(!asked(0) && asked(1));
        bench.turn(at(4999));
        assert!(client.recv(&mut [0; 512]).is_err());
        bench.turn(at(5000));
        assert_eq!(receive(&client).0, 2);
        // A name that lives in another network is known here, if nobody else can say; but not one
        // that only that network knows.
        let far = bench.add_far(&servers);
        for (start, name, expect) in [
            (10, "0.subj.svc", (0, 1, [172, 17, 0, 2])),
            (20, "SUBJ.svc", (0, 1, [172, 17, 0, 2])),
            (30, "9.subj.svc", (2, 0, [0, 1, 0, 1])),
            (40, "i", (2, 0, [0, 1, 0, 1])),
        ] {
            far.send(&query(77, name, TYPE_A, false)).unwrap();
            (start..=start + 5).for_each(|second| bench.turn(at(second * 1000)));
            assert_eq!(receive(&far), expect, "{name}");
        }
    });
}

/// No way leads to some of them: the next one is asked at once, and without any, what is known here
/// is the answer.
#[test]
fn servers_that_cannot_be_asked_are_passed_over() {
    on_a_host("dns_no_way", |_: &mut Rig| {
        forget_host_servers();
        let [nowhere, elsewhere] = ["2001:db8::1", "192.0.2.1"].map(|ip| ip.parse().unwrap());
        let good = UdpSocket::bind((Ipv4Addr::new(127, 0, 0, 2), 53)).unwrap();
        good.set_nonblocking(true).unwrap();
        let reachable = good.local_addr().unwrap().ip();
        let client = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        client.connect((Ipv4Addr::LOCALHOST, 53)).unwrap();
        let at = Duration::from_millis;
        let mut buffer = [0; 512];
        let mut bench = Bench::new(&[nowhere, elsewhere, reachable, nowhere]);
        client.send(&query(77, "example.com", TYPE_A, false)).unwrap();
        bench.turn(at(0));
        let (length, asker) = good.recv_from(&mut buffer).unwrap();
        // The last one that could be asked has its time, although no other one follows.
        bench.turn(at(4999));
        good.send_to(&long_answer(&buffer[..length], 4), asker).unwrap();
        bench.turn(at(4999));
        assert_eq!(receive(&client), (0, 0, [7; 4]));
        // Nor is it given up because there is nobody at the next one.
        let nobody = Ipv4Addr::new(127, 0, 0, 3).into();
        let mut bench = Bench::new(&[reachable, nobody]);
        client.send(&query(77, "example.com", TYPE_A, false)).unwrap();
        bench.turn(at(0));
        let (length, asker) = good.recv_from(&mut buffer).unwrap();
        bench.turn(at(1000));
        bench.turn(at(1001));
        good.send_to(&long_answer(&buffer[..length], 4), asker).unwrap();
        bench.turn(at(1500));
        assert_eq!(receive(&client), (0, 0, [7; 4]));
        // The cable is pulled.
        let mut bench = Bench::new(&[nowhere, elsewhere]);
        let far = bench.add_far(&[nowhere, elsewhere]);
        for (name, expect) in
            [("0.subj.svc", (0, 1, [172, 17, 0, 2])), ("example.com", (2, 0, [0, 1, 0, 1]))]
        {
            far.send(&query(77, name, TYPE_A, false)).unwrap();
            bench.turn(at(0));
            assert_eq!(receive(&far), expect, "{name}");
        }
    });
}

#[test]
fn slow_connections_end() {
    on_a_host("dns_slow_connections", |_: &mut Rig| {
        forget_host_servers();
        // Takes connections and says nothing.
        let silent = std::net::TcpListener::bind((Ipv4Addr::new(127, 0, 0, 2), 53)).unwrap();
        let mut bench = Bench::new(&[silent.local_addr().unwrap().ip()]);
        let at = Duration::from_secs;
        let open = || {
            let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, 53)).unwrap();
            stream.set_nonblocking(true).unwrap();
            stream
        };
        let mut idle = open();
        bench.turn(at(0));
        // A question that never ends; each byte of it is in time.
        for second in 1..10u8 {
            assert_eq!(idle.write(&[if second == 1 { 0 } else { 30 }]).unwrap(), 1);
            bench.turn(at(second.into()));
        }
        assert!(!is_closed_now(&mut idle));
        bench.turn(at(10));
        assert!(is_closed_now(&mut idle));
        let mut asking = open();
        bench.turn(at(20));
        write_message(&mut asking, &query(7, "example.com", TYPE_A, false)).unwrap();
        bench.turn(at(21));
        let (mut server, _) = silent.accept().unwrap();
        server.set_read_timeout(Some(PATIENCE)).unwrap();
        assert!(read_message(&mut server).is_ok());
        // Behind the last one there is nobody to hurry for.
        bench.turn(at(22));
        assert!(!is_closed_now(&mut asking));
        bench.turn(at(26));
        asking.set_nonblocking(false).unwrap();
        asking.set_read_timeout(Some(PATIENCE)).unwrap();
        assert_eq!(read_message(&mut asking).unwrap()[3] & 0x0f, 2);
        // They end with their network.
        let zone = bench.zone.clone();
        bench.dns.remove_zone(&zone);
        assert!(is_closed(&mut asking));
    });
}

fn is_closed_now(stream: &mut TcpStream) -> bool {
    match stream.read(&mut [0; 1]) {
        Ok(length) => length == 0,
        Err(err) => err.kind() != io::ErrorKind::WouldBlock,
    }
}

/// The resolver of the C library, in the namespace of an instance with its files.
#[test]
fn a_real_resolver_finds_names() {
    on_a_host("dns_getent", |rig: &mut Rig| {
        if Command::new("getent").arg("--version").stdout(Stdio::null()).status().is_err() {
            println!("SKIP dns_getent: the program getent is missing");
            return;
        }
        rig.add_outside();
        rig.update(&[NET1, NET2]);
        let [mut a, b] = two(rig);
        a.params.dns_servers = vec![OUTSIDE.to_string()];
        a.hosts =
            vec![crate::model::node::Host { ip: "10.0.0.100".into(), hostname: "wwwivi".into() }];
        rig.net.attach(&a).unwrap();
        rig.net.attach(&b).unwrap();
        serve_outside(rig, OUTSIDE.into());
        for name in ["hosts", "resolv.conf"] {
            bind(&a.etc_dir.join(name), &Path::new("/etc").join(name)).unwrap();
        }
        let names = tempfile::NamedTempFile::new().unwrap();
        crate::sys::fs::write_plain(names.path(), b"hosts: files dns\n", 0o644).unwrap();
        bind(names.path(), Path::new("/etc/nsswitch.conf")).unwrap();
        let ask = |name: &str| {
            let words = ["ahostsv4", name];
            let output = rig.instance(&a).runs(Command::new("getent").args(words));
            let text = String::from_utf8(output.stdout).unwrap();
            text.split_ascii_whitespace().next().unwrap_or_default().to_owned()
        };
        for (name, expect) in [
            ("cam", "172.17.0.2"),
            ("subj.svc", "172.17.0.2"),
            ("1.subj.svc.net2", "172.18.0.2"),
            (b.id.as_str(), "9.9.9.9"),
            (&format!("{}.net2", b.id), "172.18.0.2"),
            ("example.com", "9.9.9.9"),
            ("wwwivi", "10.0.0.100"),
            ("localhost", "127.0.0.1"),
        ] {
            assert_eq!(ask(name), expect, "{name}");
        }
        let reverse = rig.instance(&a).runs(Command::new("getent").args(["hosts", "172.18.0.2"]));
        let expect = format!("172.18.0.2      {}.net2\n", b.id);
        assert_eq!(String::from_utf8(reverse.stdout).unwrap(), expect);
    });
}
