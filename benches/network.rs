//! What the network part of an instance costs: attach and detach, many at once, name answers,
//! counters, memory of the name server, and what the rules cost the traffic, compared with bare
//! links in the same run. Everything happens in namespaces of its own.
//!
//!     cargo bench --features sim --bench network [-- FLAGS]
//!
//! `--json FILE`, `--rounds N` attaches and detaches (100), `--counted N` instances (256),
//! `--pairs N` rounds of transfers to compare (60), `--milliseconds N` for each of them (250), `--part NAME` of `attach`, `many`, `names`, `counters`,
//! `throughput` alone.
//!
//! Throughput is compared in rounds of short transfers, one after the other and in turns from either
//! end: what else the machine does meets both. Judged is an instance against a bare link on
//! a host without bridge and netfilter. Beside it stands which part of that our rules, counters and
//! limits take, compared with a host that has the same bridge and link, masquerades, and has no rule
//! besides: the rest is the kernel's. Senders are not paced (`reno`), so that what a packet costs is
//! not hidden by pauses.
//!
//! Beside attaches stands what the kernel alone takes for a named namespace and a link into it with
//! both ends up: no address, no bridge, no rules, no files.
#![allow(clippy::print_stdout, clippy::print_stderr, clippy::disallowed_methods)] // not the daemon
#![allow(clippy::cast_precision_loss)]
#![allow(dead_code)] // the shared part has more than one bench needs

mod unit;

use std::fs::File;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use aos_servicemanager::model::desired::{InstanceNetwork, NetworkParams};
use aos_servicemanager::model::event::Event;
use aos_servicemanager::model::id::{InstanceId, InstanceIdent, NetworkId, ServiceId, SubjectId};
use aos_servicemanager::model::service::Quotas;
use aos_servicemanager::model::traffic::Traffic;
use aos_servicemanager::network::{NetHandle, NetThread, NetworkSettings};
use aos_servicemanager::ports::{Network, NetworkPlan, TrafficSource};
use aos_servicemanager::sys::malloc;
use aos_servicemanager::sys::mount::{isolate, tmpfs};
use aos_servicemanager::sys::netlink::{Family, Netlink};
use aos_servicemanager::sys::netns::{self, HostNs};
use crossbeam::channel::{Receiver, bounded};
use unit::table::{Bar, Table};
use unit::{Outcome, PATIENCE, args, median, milliseconds, percentile};

/// After so long the kernel has taken apart what was detached.
const CLEAN_UP: Duration = Duration::from_millis(400);
/// Messages with their flags: request and acknowledgement, create and exclusive.
const NEW_LINK: (u16, u16) = (16, 0x605);
const SET_LINK: (u16, u16) = (19, 0x5);
const IFLA_IFNAME: u16 = 3;
const IFLA_LINKINFO: u16 = 18;
const IFLA_NET_NS_FD: u16 = 28;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const VETH_INFO_PEER: u16 = 1;
/// Index of the end in the namespace.
const PEER_INDEX: u32 = 2;
/// Neither the kernel nor the net thread counts from here.
const FIRST_BARE_INDEX: u32 = 2_000_000;
const OWN_NAMESPACE: &str = "/proc/thread-self/ns/net";
/// Attached at once.
const MANY: u64 = 64;
/// Names asked for, one after the other.
const QUERIES: usize = 2000;
/// Until a new connection is as fast as it gets.
const RUN_UP: Duration = Duration::from_millis(50);
const CONGESTION: &str = "/proc/sys/net/ipv4/tcp_congestion_control";
const FORWARD: &str = "/proc/sys/net/ipv4/ip_forward";
/// Whether the kernel shows frames within a bridge to the firewall, if it can: a setting of the node
/// that is none of ours, off where nobody has loaded `br_netfilter`.
const BRIDGES_FILTERED: &str = "/proc/sys/net/bridge/bridge-nf-call-iptables";

/// The least share of the throughput of a bare link that an instance has.
const LEAST_SHARE: f64 = 0.95;
const NETWORK: (&str, &str) = ("net1", "172.17.0.0/16");
const NODE: Ipv4Addr = Ipv4Addr::new(172, 17, 0, 1);
/// Hosts to compare with, the first one with a bridge, and the namespaces at both ends of them.
const PLAIN: [&str; 3] = ["plain", "plain-guest", "plain-outside"];
const BARE: [&str; 3] = ["bare", "bare-guest", "bare-outside"];
/// Not a private address: traffic with it is counted and masqueraded.
const OUTSIDE: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);

fn main() -> ExitCode {
    // The rights to namespaces belong to a thread.
    let result = thread::spawn(|| -> Result<bool, String> {
        isolate()
            .and_then(|()| tmpfs(Path::new("/run"), None, 0o755))
            .map_err(|err| format!("needs CAP_NET_ADMIN and CAP_SYS_ADMIN: {err}"))?;
        measure().map_err(|err| err.to_string())
    });
    match result.join() {
        Ok(Ok(true)) => ExitCode::SUCCESS,
        Ok(Ok(false)) => ExitCode::FAILURE,
        Ok(Err(err)) => {
            eprintln!("bench failed: {err}");
            ExitCode::FAILURE
        }
        Err(_) => ExitCode::FAILURE,
    }
}

fn measure() -> Outcome<bool> {
    ip("link set lo up")?;
    let mut table = Table::new("network");
    let host = Place::start(true)?;
    let only = args::value("--part")?;
    type Part = fn(&Place, &mut Table) -> Outcome<()>;
    let parts: [(&str, Part); 5] = [
        ("attach", attach_and_detach),
        ("many", many_at_once),
        ("names", names),
        ("counters", counters),
        ("throughput", throughput),
    ];
    for (name, part) in parts {
        if only.as_ref().is_none_or(|only| only == name) {
            part(&host, &mut table)?;
        }
    }
    host.stop()?;
    table.finish(args::value("--json")?.as_deref())
}

/// A net thread and its files, which are on a tmpfs as those of the daemon are.
struct Place {
    net: NetHandle,
    events: Receiver<Event>,
    thread: JoinHandle<()>,
    etc: tempfile::TempDir,
    ns: HostNs,
}

impl Place {
    fn start(dns_responder: bool) -> Outcome<Self> {
        let settings = NetworkSettings { dns_responder, ..NetworkSettings::default() };
        let (mut thread, net) = NetThread::new(settings)?;
        thread.restore(vec![], &[]);
        // As core does, somebody takes what is reported.
        let (sender, events) = bounded(100_000);
        let thread = thread::spawn(move || thread.run(sender));
        let place =
            Self { net, events, thread, etc: tempfile::tempdir_in("/run")?, ns: HostNs::open()? };
        let (id, subnet) = (NetworkId::new(NETWORK.0), NETWORK.1.to_owned());
        let params = NetworkParams { id, subnet, ip: NODE.to_string(), vlan_id: 0 };
        place.net.try_update(vec![params]);
        loop {
            match place.events.recv_timeout(PATIENCE)? {
                Event::NetworksUpdated { failed, .. } if failed.is_empty() => return Ok(place),
                Event::NetworksUpdated { failed, .. } => {
                    return Err(failed[0].1.message.clone().into());
                }
                _ => {}
            }
        }
    }

    fn stop(self) -> Outcome<()> {
        self.net.stop();
        self.thread.join().map_err(|_| "net thread has failed".into())
    }

    fn plan(&self, number: u64) -> Outcome<NetworkPlan> {
        let id = InstanceId::new(&format!("00000000-0000-4000-8000-{number:012x}"));
        let etc_dir = self.etc.path().join(id.as_str());
        std::fs::create_dir_all(&etc_dir)?;
        let ip = Ipv4Addr::from_bits(NODE.to_bits() + 1 + u32::try_from(number)?).to_string();
        Ok(NetworkPlan {
            id,
            ident: InstanceIdent {
                service_id: ServiceId::new("8d9f8e3e-2a51-4c6b-9d2f-0a1b2c3d4e5f"),
                subject_id: SubjectId::new("1b4ac4d8-c58d-4f8e-b3e2-a510a1b2c3d4"),
                instance: number,
            },
            network_id: NetworkId::new(NETWORK.0),
            params: InstanceNetwork { subnet: NETWORK.1.into(), ip, ..Default::default() },
            hostname: format!("host{number}"),
            hosts: vec![],
            exposed_ports: vec!["80/tcp".to_owned(), "8080-8087/udp".to_owned()],
            quotas: Quotas {
                download_bytes: Some(1 << 50),
                upload_bytes: Some(1 << 50),
                ..Quotas::default()
            },
            etc_dir,
        })
    }

    fn plans(&self, count: u64) -> Outcome<Vec<NetworkPlan>> {
        (0..count).map(|number| self.plan(number)).collect()
    }

    fn detach_all(&self, plans: &[NetworkPlan]) -> Outcome<()> {
        plans.iter().try_for_each(|plan| self.net.detach(&plan.id))?;
        // The kernel takes links apart in its own time; it is not to disturb the next figure.
        thread::sleep(Duration::from_secs(2));
        Ok(())
    }

    fn enter<T>(&self, plan: &NetworkPlan, act: impl FnOnce() -> T) -> Outcome<T> {
        Ok(self.ns.enter(plan.id.as_str(), act)?)
    }
}

fn ip(arguments: &str) -> Outcome<()> {
    let status = Command::new("ip").args(arguments.split(' ')).status()?;
    if status.success() { Ok(()) } else { Err(format!("ip {arguments} failed").into()) }
}

/// The kernel takes a former link apart some time after its end and keeps everybody else waiting
/// meanwhile: first without that, then as it is for an instance that comes back at once.
fn attach_and_detach(host: &Place, table: &mut Table) -> Outcome<()> {
    let rounds = args::number("--rounds", 100)?;
    let mut bare = Vec::new();
    let mut links = BareLinks::new()?;
    for _ in 0..rounds {
        bare.push(links.make(&host.ns, 1)?);
        links.remove()?;
    }
    let (attach, detach) = rounds_of(host, rounds, CLEAN_UP)?;
    let bare = milliseconds(median(&bare));
    let bars = (1.5, 3.0);
    table.judge("attach, p50", "ms", milliseconds(median(&attach)), bars, Bar::Soft);
    table.judge("attach, p99", "ms", milliseconds(percentile(&attach, 0.99)), bars, Bar::Soft);
    table.note("  bare namespace and link, p50", "ms", bare);
    table.note("  ratio", "x", milliseconds(median(&attach)) / bare);
    let bars = (1.0, 3.0);
    table.judge("detach, p50", "ms", milliseconds(median(&detach)), bars, Bar::Soft);
    table.judge("detach, p99", "ms", milliseconds(percentile(&detach, 0.99)), bars, Bar::Soft);
    let (attach, detach) = rounds_of(host, rounds, Duration::ZERO)?;
    for (name, times) in [("attach", &attach), ("detach", &detach)] {
        table.note(format!("{name} again at once, p50"), "ms", milliseconds(median(times)));
        table.note("  p99", "ms", milliseconds(percentile(times, 0.99)));
    }
    thread::sleep(CLEAN_UP);
    Ok(())
}

fn rounds_of(
    host: &Place,
    count: usize,
    pause: Duration,
) -> Outcome<(Vec<Duration>, Vec<Duration>)> {
    let plan = host.plan(0)?;
    let (mut attach, mut detach) = (Vec::new(), Vec::new());
    for _ in 0..count {
        let start = Instant::now();
        host.net.attach(&plan)?;
        attach.push(start.elapsed());
        let start = Instant::now();
        host.net.detach(&plan.id)?;
        detach.push(start.elapsed());
        thread::sleep(pause);
    }
    Ok((attach, detach))
}

/// All callers ask at the same time, as a start of the daemon does.
fn many_at_once(host: &Place, table: &mut Table) -> Outcome<()> {
    let plans = host.plans(MANY)?;
    let (mut rounds, mut bare) = (Vec::new(), Vec::new());
    let mut links = BareLinks::new()?;
    for _ in 0..5 {
        bare.push(links.make(&host.ns, MANY)?);
        links.remove()?;
        let start = Instant::now();
        let results: Vec<_> = thread::scope(|scope| {
            let asks: Vec<_> =
                plans.iter().map(|plan| scope.spawn(|| host.net.attach(plan))).collect();
            asks.into_iter().map(|ask| ask.join()).collect()
        });
        for result in results {
            result.map_err(|_| "an attach has panicked")??;
        }
        rounds.push(start.elapsed());
        host.detach_all(&plans)?;
    }
    let (took, bare) = (milliseconds(median(&rounds)), milliseconds(median(&bare)));
    table.judge("64 attaches at once", "ms", took, (60.0, 120.0), Bar::Soft);
    table.note("  64 bare namespaces and links", "ms", bare);
    table.note("  ratio", "x", took / bare);
    Ok(())
}

/// Namespaces with links that only the kernel's own work goes into.
struct BareLinks {
    outside: Netlink,
    made: Vec<String>,
    next: u32,
}

impl BareLinks {
    fn new() -> Outcome<Self> {
        let outside = Netlink::for_few_requests(Family::Route)?;
        Ok(Self { outside, made: Vec::new(), next: FIRST_BARE_INDEX })
    }

    /// Returns how long it took.
    fn make(&mut self, ns: &HostNs, count: u64) -> Outcome<Duration> {
        let start = Instant::now();
        for _ in 0..count {
            let (index, name) = (self.next, format!("bare{}", self.next));
            self.next += 1;
            let (inside, namespace) = ns.create(&name, || {
                Ok((Netlink::for_few_requests(Family::Route)?, File::open(OWN_NAMESPACE)?))
            })?;
            self.made.push(name.clone());
            ask(&self.outside, &new_veth(index, namespace.as_raw_fd()))?;
            ask(&inside, &link_message(SET_LINK, link_header(PEER_INDEX, true)))?;
        }
        Ok(start.elapsed())
    }

    fn remove(&mut self) -> Outcome<()> {
        for name in self.made.drain(..) {
            netns::remove(&name)?;
        }
        thread::sleep(CLEAN_UP);
        Ok(())
    }
}

/// Sends one message and waits for its acknowledgement.
fn ask(socket: &Netlink, message: &[u8]) -> Outcome<()> {
    let mut answer = [0; 4096];
    socket.send(message)?;
    let length = socket.receive(&mut answer)?;
    match answer[..length].get(16..20) {
        Some([0, 0, 0, 0]) => Ok(()),
        code => Err(format!("the kernel refuses a bare link: {code:?}").into()),
    }
}

/// `RTM_NEWLINK` of a pair; the other end goes into a namespace.
fn new_veth(index: u32, namespace: i32) -> Vec<u8> {
    let name = |name: &str| attribute(IFLA_IFNAME, &[name.as_bytes(), &[0]].concat());
    let mut peer = link_header(PEER_INDEX, false);
    peer.extend(name("eth0"));
    peer.extend(attribute(IFLA_NET_NS_FD, &namespace.to_ne_bytes()));
    let mut info = attribute(IFLA_INFO_KIND, b"veth");
    info.extend(attribute(IFLA_INFO_DATA, &attribute(VETH_INFO_PEER, &peer)));
    let mut body = link_header(index, true);
    body.extend(name(&format!("b{index}")));
    body.extend(attribute(IFLA_LINKINFO, &info));
    link_message(NEW_LINK, body)
}

/// `struct ifinfomsg`.
fn link_header(index: u32, up: bool) -> Vec<u8> {
    let up = u32::from(up);
    [[0; 4], index.to_ne_bytes(), up.to_ne_bytes(), up.to_ne_bytes()].concat()
}

/// A message that wants an acknowledgement.
fn link_message((kind, flags): (u16, u16), body: Vec<u8>) -> Vec<u8> {
    let length = u32::try_from(16 + body.len()).unwrap_or(u32::MAX).to_ne_bytes();
    let kind = [kind.to_ne_bytes(), flags.to_ne_bytes()].concat();
    [&length[..], &kind, &1_u32.to_ne_bytes(), &[0; 4], &body].concat()
}

fn attribute(kind: u16, data: &[u8]) -> Vec<u8> {
    let length = u16::try_from(4 + data.len()).unwrap_or(u16::MAX);
    let mut bytes = [&length.to_ne_bytes()[..], &kind.to_ne_bytes(), data].concat();
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

fn names(host: &Place, table: &mut Table) -> Outcome<()> {
    let plans = host.plans(args::number("--counted", 256)?)?;
    for plan in &plans {
        host.net.attach(plan)?;
    }
    let socket = host.enter(&plans[0], || UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)))??;
    socket.connect((NODE, 53))?;
    socket.set_read_timeout(Some(PATIENCE))?;
    let mut answers = Vec::new();
    for number in 0..QUERIES {
        let query = query(&format!("host{}", number % plans.len()));
        let mut buffer = [0; 512];
        let start = Instant::now();
        socket.send(&query)?;
        let length = socket.recv(&mut buffer)?;
        answers.push(start.elapsed());
        if length < 4 || buffer[3] & 0x0f != 0 || buffer[7] != 1 {
            return Err(format!("no answer for host{number}").into());
        }
    }
    table.note("name answer, p50", "ms", milliseconds(median(&answers)));
    let p99 = milliseconds(percentile(&answers, 0.99));
    table.judge("name answer, p99", "ms", p99, (0.2, 1.0), Bar::Soft);
    host.detach_all(&plans)?;
    let kib = |bytes: usize| bytes as f64 / 1024.0;
    let (with, without) = (memory(true)?, memory(false)?);
    let used = kib(with.saturating_sub(without));
    table.judge("memory of the name server, 256 instances", "KiB", used, (128.0, 256.0), Bar::Hard);
    Ok(())
}

/// Live memory of a net thread with many instances, with or without name server.
fn memory(dns_responder: bool) -> Outcome<usize> {
    ip("link del br-net1")?;
    let before = malloc::live_bytes();
    let place = Place::start(dns_responder)?;
    for plan in place.plans(256)? {
        place.net.attach(&plan)?;
    }
    let used = malloc::live_bytes().saturating_sub(before);
    let plans = place.plans(256)?;
    place.detach_all(&plans)?;
    place.stop()?;
    Ok(used)
}

/// A question for an address.
fn query(name: &str) -> Vec<u8> {
    let mut packet = vec![0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        packet.push(u8::try_from(label.len()).unwrap_or(63));
        packet.extend_from_slice(label.as_bytes());
    }
    packet.extend_from_slice(&[0, 0, 1, 0, 1]);
    packet
}

fn counters(host: &Place, table: &mut Table) -> Outcome<()> {
    let plans = host.plans(args::number("--counted", 256)?)?;
    for plan in &plans {
        host.net.attach(plan)?;
    }
    let reader = host.net.traffic_reader();
    let mut traffic = Traffic::default();
    let mut reads = Vec::new();
    for _ in 0..10 {
        // Younger counters come from memory.
        thread::sleep(Duration::from_millis(1100));
        let start = Instant::now();
        reader.traffic(PATIENCE, &mut traffic)?;
        reads.push(start.elapsed());
        if traffic.instances.len() != plans.len() {
            return Err(format!("{} instances counted", traffic.instances.len()).into());
        }
    }
    let took = milliseconds(median(&reads));
    table.judge("counters of 256 instances", "ms", took, (1.0, 2.0), Bar::Soft);
    host.detach_all(&plans)
}

/// The same path three times: namespace, host, outside. Once with bridge and all rules, once with
/// what the kernel needs for that without any rule, once bare.
fn throughput(host: &Place, table: &mut Table) -> Outcome<()> {
    let plan = host.plan(0)?;
    host.net.attach(&plan)?;
    host.ns.create("outside", || Ok(()))?;
    link(None, "up0", "203.0.113.2/24", "outside", "203.0.113.1/24")?;
    for [router, guest, outside] in [PLAIN, BARE] {
        for name in [router, guest, outside] {
            host.ns.create(name, || Ok(()))?;
        }
        host.ns.enter(router, || std::fs::write(FORWARD, "1"))??;
        link(Some(router), "up0", "203.0.113.2/24", outside, "203.0.113.1/24")?;
        link(Some(router), "guest0", "172.17.0.1/16", guest, "172.17.0.2/16")?;
    }
    host.ns.enter(PLAIN[0], bridge_and_masquerade)??;
    for sender in [plan.id.as_str(), PLAIN[1], BARE[1]] {
        host.ns.enter(sender, || std::fs::write(CONGESTION, "reno"))??;
    }

    let ways = |node: bool| {
        let way = |guest, host, outside| match node {
            true => Way { from: guest, to: host, address: NODE },
            false => Way { from: guest, to: Some(outside), address: OUTSIDE },
        };
        [
            way(plan.id.as_str(), None, "outside"),
            way(PLAIN[1], Some(PLAIN[0]), PLAIN[2]),
            way(BARE[1], Some(BARE[0]), BARE[2]),
        ]
    };
    let places = [None, Some(PLAIN[0])];
    let settings: &[(&str, &str)] = match Path::new(BRIDGES_FILTERED).exists() {
        true => &[("", "0"), (", bridges filtered", "1")],
        false => &[("", "")],
    };
    for (about, filtered) in settings {
        for place in places.iter().filter(|_| !filtered.is_empty()) {
            let set = || std::fs::write(BRIDGES_FILTERED, filtered);
            match place {
                Some(name) => host.ns.enter(name, set)??,
                None => set()?,
            }
        }
        compare(host, table, &format!("to the node{about}"), ways(true))?;
        compare(host, table, &format!("to the outside{about}"), ways(false))?;
    }
    host.net.detach(&plan.id)?;
    Ok(())
}

/// In the namespace of the thread: what the kernel has for such a network, and nothing else.
fn bridge_and_masquerade() -> Outcome<()> {
    for command in [
        "link add br0 type bridge",
        "addr flush dev guest0",
        "link set guest0 master br0",
        "link set br0 up",
        "addr add 172.17.0.1/16 dev br0",
    ] {
        ip(command)?;
    }
    let rule = "add table ip nat; \
                add chain ip nat out { type nat hook postrouting priority 100; }; \
                add rule ip nat out oifname up0 masquerade";
    let status = Command::new("nft").arg(rule).status().map_err(|err| format!("nft: {err}"))?;
    if status.success() { Ok(()) } else { Err("nft cannot masquerade".into()) }
}

/// Who sends, where the receiver is (`None` = this host), and its address.
#[derive(Clone, Copy)]
struct Way<'a> {
    from: &'a str,
    to: Option<&'a str>,
    address: Ipv4Addr,
}

/// Puts a link between a host (`None` = this one) and a namespace that has its default route there.
fn link(host: Option<&str>, name: &str, here: &str, there: &str, address: &str) -> Outcome<()> {
    let at = |host: Option<&str>| host.map_or_else(String::new, |host| format!("-n {host} "));
    let (host, space) = (at(host), at(Some(there)));
    let gateway = here.split('/').next().unwrap_or(here);
    for command in [
        format!("{host}link add {name} type veth peer name eth0 netns {there}"),
        format!("{host}link set {name} up"),
        format!("{host}addr add {here} dev {name}"),
        format!("{space}link set lo up"),
        format!("{space}addr add {address} dev eth0"),
        format!("{space}link set eth0 up"),
        format!("{space}route add default via {gateway}"),
    ] {
        ip(&command)?;
    }
    Ok(())
}

fn compare(
    host: &Place,
    table: &mut Table,
    about: &str,
    [instance, plain, bare]: [Way<'_>; 3],
) -> Outcome<()> {
    let ways = [instance, plain, bare];
    let mut rates = [const { Vec::new() }; 3];
    for number in 0..args::number("--pairs", 60)? {
        let mut turns = [0, 1, 2];
        if number % 2 == 1 {
            turns.reverse();
        }
        for turn in turns {
            rates[turn].push(transfer(host, ways[turn])?);
        }
    }
    let [ruled, unruled, apart] = rates;
    // What one transfer finds, its neighbours find, too.
    let ratio = |others: &[f64], own: &[f64]| {
        middle(others.iter().zip(own).map(|(other, own)| other / own).collect())
    };
    let (whole, kernel, rules) =
        (ratio(&apart, &ruled), ratio(&apart, &unruled), ratio(&unruled, &ruled));
    let bars = (1.0, 1.0 / LEAST_SHARE);
    table.judge(format!("throughput, bare link / instance, {about}"), "×", whole, bars, Bar::Soft);
    table.note("  bare link / bridge and masquerade without rules", "×", kernel);
    table.note("  the same without rules / instance", "×", rules);
    table.note("  bare link", "Gbit/s", middle(apart));
    table.note("  bridge and masquerade without rules", "Gbit/s", middle(unruled));
    table.note("  instance", "Gbit/s", middle(ruled));
    Ok(())
}

fn middle(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Gbit/s from a namespace to a server.
fn transfer(host: &Place, Way { from, to, address }: Way<'_>) -> Outcome<f64> {
    let listen = || TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0));
    let listener = match to {
        Some(name) => host.ns.enter(name, listen)??,
        None => listen()?,
    };
    let target = SocketAddr::from((address, listener.local_addr()?.port()));
    let mut sender = host.ns.enter(from, || TcpStream::connect_timeout(&target, PATIENCE))??;
    let (mut receiver, _) = listener.accept()?;
    let length = Duration::from_millis(args::number("--milliseconds", 250)?);
    let flood = thread::spawn(move || {
        let chunk = vec![7; 128 * 1024];
        // Ends when the other side is closed.
        while sender.write_all(&chunk).is_ok() {}
    });
    let (mut buffer, mut bytes) = (vec![0; 256 * 1024], 0usize);
    let mut take = || match receiver.read(&mut buffer)? {
        0 => Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof)),
        length => Ok(length),
    };
    let begun = Instant::now();
    while begun.elapsed() < RUN_UP {
        take()?;
    }
    let start = Instant::now();
    while start.elapsed() < length {
        bytes += take()?;
    }
    let rate = bytes as f64 * 8.0 / start.elapsed().as_secs_f64() / 1e9;
    drop(receiver);
    flood.join().map_err(|_| "sender panicked")?;
    Ok(rate)
}
