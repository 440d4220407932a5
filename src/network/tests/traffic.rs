//! What counts, what is stopped at a limit, and what is remembered: with real packets.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::time::Duration;

use super::super::caps::NetCaps;
use super::super::rules::Set;
use super::super::{NetworkSettings, TrafficPeriod};
use super::rig::{OUTSIDE, PATIENCE, Rig, on_a_host, with_caps, with_settings};
use crate::model::traffic::{Traffic, TrafficRow, Volume};
use crate::ports::{Network, NetworkPlan, TrafficSource};
use crate::sys::testing::wait_until;
use crate::sys::thread::spawn;
use crate::sys::time::wall_ms;

const NET1: (&str, &str, &str) = ("net1", "172.17.0.0/16", "172.17.0.1");
const A: Ipv4Addr = Ipv4Addr::new(172, 17, 0, 2);
const A2: Ipv4Addr = Ipv4Addr::new(172, 17, 0, 3);
pub(super) const KIB: usize = 1024;
/// Headers and acknowledgements add less than a tenth.
const HEADERS: f64 = 1.1;
/// Two segments of a connection that is aggregated on its way.
const SEGMENTS: u64 = 2 * 65_536;
const HOUR_MS: i64 = 3_600_000;
const MINUTE_MS: i64 = 60_000;

fn one(rig: &Rig) -> NetworkPlan {
    rig.plan("net1", NET1.1, "172.17.0.2", 0)
}

/// A connection over which nothing comes for so long was stopped at a limit.
const STOPPED: Duration = Duration::from_secs(1);

/// Sends bytes over a new connection; how many arrive.
fn send(pair: (TcpStream, TcpStream), bytes: usize) -> usize {
    send_until_silent(pair, bytes, PATIENCE)
}

/// Sends bytes over a new connection; how many arrive before it stands still for this long.
fn send_until_silent(pair: (TcpStream, TcpStream), bytes: usize, silence: Duration) -> usize {
    let (mut sender, mut receiver) = pair;
    sender.set_write_timeout(Some(silence)).unwrap();
    receiver.set_read_timeout(Some(silence)).unwrap();
    let writer = spawn("writer", move || {
        // Ends with an error when the other side does not take it any more.
        let _ = sender.write_all(&vec![7; bytes]);
        sender
    });
    let (mut buffer, mut received) = (vec![0; 64 * KIB], 0);
    while received < bytes {
        match receiver.read(&mut buffer) {
            Ok(0) => break,
            Ok(length) => received += length,
            Err(err) if err.kind() == io::ErrorKind::WouldBlock => break,
            Err(err) => panic!("{err}"),
        }
    }
    drop(writer.unwrap().join().unwrap());
    received
}

pub(super) fn upload(rig: &Rig, plan: &NetworkPlan, bytes: usize) -> usize {
    send(rig.instance(plan).connect(&rig.outside(), OUTSIDE).split(), bytes)
}

fn download(rig: &Rig, plan: &NetworkPlan, bytes: usize) -> usize {
    let (client, server) = rig.instance(plan).connect(&rig.outside(), OUTSIDE).split();
    send((server, client), bytes)
}

/// `download` of more than a limit lets through.
fn download_until_stopped(rig: &Rig, plan: &NetworkPlan, bytes: usize) -> usize {
    let (client, server) = rig.instance(plan).connect(&rig.outside(), OUTSIDE).split();
    send_until_silent((server, client), bytes, STOPPED)
}

/// Counters of an instance.
pub(super) fn counted(rig: &Rig, plan: &NetworkPlan) -> Volume {
    all(rig).instance(&plan.id).unwrap_or_default()
}

/// All counters.
pub(super) fn all(rig: &Rig) -> Traffic {
    let mut traffic = Traffic::default();
    rig.net.traffic_reader().traffic(PATIENCE, &mut traffic).unwrap();
    traffic
}

/// What is left below a limit can be used; nothing gets beyond it.
fn stays_below(rig: &Rig, plan: &NetworkPlan, limit: u64) {
    for _ in 0..2 {
        if let Some(pair) = rig.try_connect(plan) {
            let (client, server) = pair.split();
            let received = send_until_silent((server, client), 400 * KIB, STOPPED);
            assert!(u64::try_from(received).unwrap() < limit, "{received}");
        }
        let volume = counted(rig, plan);
        assert!(volume.download_bytes <= limit, "{volume:?}");
        assert!(volume.download_bytes + SEGMENTS > limit, "{volume:?}");
    }
}

fn assert_about(what: u64, payload: usize) {
    let payload = u64::try_from(payload).unwrap();
    #[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    let most = (payload as f64 * HEADERS) as u64 + 2000;
    assert!(what >= payload && what <= most, "{what} instead of {payload}");
}

#[test]
fn traffic_with_the_outside_is_counted() {
    on_a_host("traffic_counted", |rig: &mut Rig| {
        rig.add_outside();
        rig.update(&[NET1]);
        let a = one(rig);
        let b = rig.plan("net1", NET1.1, "172.17.0.3", 1);
        rig.net.attach(&a).unwrap();
        rig.net.attach(&b).unwrap();
        assert_eq!(upload(rig, &a, 300 * KIB), 300 * KIB);
        let volume = counted(rig, &a);
        assert_about(volume.upload_bytes, 300 * KIB);
        assert!(volume.download_bytes > 0 && volume.download_bytes < 30_000, "{volume:?}");
        assert_eq!(download(rig, &a, 200 * KIB), 200 * KIB);
        assert_about(counted(rig, &a).download_bytes, 200 * KIB);
        // Neither neighbours nor the node are the outside, and nobody pays for somebody else.
        let before = counted(rig, &a);
        let near = rig.instance(&a).connect(&rig.instance(&b), A2).split();
        assert_eq!(send(near, 100 * KIB), 100 * KIB);
        assert_eq!(counted(rig, &a), before);
        assert_eq!(counted(rig, &b), Volume::default());
        // What it forwards is not the node's; bridges announce themselves to multicast groups.
        let node = all(rig).node;
        assert!(node.download_bytes == 0 && node.upload_bytes < 1000, "{node:?}");
        let far = rig.node().connect(&rig.outside(), OUTSIDE).split();
        assert_eq!(send(far, 50 * KIB), 50 * KIB);
        let node = all(rig).node;
        assert_about(node.upload_bytes, 50 * KIB);
        assert_eq!(counted(rig, &a), before);
    });
}

#[test]
fn limits_cut_off_and_neighbours_stay() {
    on_a_host("traffic_limits", |rig: &mut Rig| {
        rig.add_outside();
        rig.update(&[NET1]);
        let mut a = one(rig);
        a.quotas.download_bytes = Some(300_000);
        let b = rig.plan("net1", NET1.1, "172.17.0.3", 1);
        rig.net.attach(&a).unwrap();
        rig.net.attach(&b).unwrap();
        let received = download_until_stopped(rig, &a, 900 * KIB);
        assert!(received < 300_000, "{received}");
        let volume = counted(rig, &a);
        assert!(volume.download_bytes <= 300_000, "{volume:?}");
        assert!(volume.download_bytes + SEGMENTS > 300_000, "{volume:?}");
        // Neighbours, and other instances with the outside.
        let near = rig.instance(&a).connect(&rig.instance(&b), A2).split();
        assert_eq!(send(near, 100 * KIB), 100 * KIB);
        assert_eq!(download(rig, &b, 400 * KIB), 400 * KIB);
        // Core hears of it at once.
        let rows = rig.stored_rows(|rows| rows.iter().any(|row| row.bytes > 200_000));
        assert!(rows.iter().all(|row| row.bytes <= 300_000), "{rows:?}");
        // A crash loop evades no limit.
        rig.net.attach(&a).unwrap();
        assert!(counted(rig, &a).download_bytes + 10_000 > volume.download_bytes);
        stays_below(rig, &a, 300_000);
        rig.net.detach(&a.id).unwrap();
        rig.net.attach(&a).unwrap();
        stays_below(rig, &a, 300_000);
        // Neither does a restart of the daemon.
        rig.restart();
        rig.update(&[NET1]);
        rig.net.adopt(&a).unwrap();
        stays_below(rig, &a, 300_000);
        // Nor does somebody who deletes the rules.
        rig.flush_rules();
        let fresh = rig.plan("net1", NET1.1, "172.17.0.4", 2);
        rig.net.attach(&fresh).unwrap();
        stays_below(rig, &a, 300_000);
        assert!(download(rig, &fresh, 400 * KIB) == 400 * KIB);
        // One that is lowered below what was used is used up, also if the instance
        // starts anew, and a very high one lets everything through.
        a.quotas.download_bytes = Some(100_000);
        rig.net.attach(&a).unwrap();
        assert!(rig.try_connect(&a).is_none());
        a.quotas.download_bytes = Some(u64::MAX);
        rig.net.attach(&a).unwrap();
        assert_eq!(download(rig, &a, 50 * KIB), 50 * KIB);
    });
}

/// A kernel without quotas: what was read last is compared with the limits.
#[test]
fn without_quotas_limits_act_when_counters_are_read() {
    let settings = NetworkSettings { traffic_period: TrafficPeriod::Hour, ..Default::default() };
    let caps = NetCaps { quota: false, ..NetCaps::ALL };
    with_caps("traffic_polled", settings, Some(caps), |rig: &mut Rig| {
        let hour = wall_ms() + 2 * HOUR_MS - wall_ms().rem_euclid(HOUR_MS);
        rig.add_outside();
        rig.update(&[NET1]);
        rig.set_clock(hour + MINUTE_MS);
        assert_eq!(all(rig).instances.len(), 0);
        assert!(rig.alerts()[0].contains("lacks quotas of nf_tables"));
        let mut a = one(rig);
        a.quotas.download_bytes = Some(300_000);
        let b = rig.plan("net1", NET1.1, "172.17.0.3", 1);
        rig.net.attach(&a).unwrap();
        rig.net.attach(&b).unwrap();
        assert_eq!(download(rig, &a, 200 * KIB), 200 * KIB);
        // More than the limit, and nobody has read the counters: it acts within seconds.
        download_until_stopped(rig, &a, 200 * KIB);
        wait_until("a limit that acts", || rig.try_connect(&a).is_none());
        assert!(rig.connects(&b));
        let near = rig.instance(&a).connect(&rig.instance(&b), A2).split();
        assert_eq!(send(near, 100 * KIB), 100 * KIB);
        // Neither a crash loop nor a restart of the daemon nor one of the rules evades it.
        rig.net.attach(&a).unwrap();
        assert!(rig.try_connect(&a).is_none());
        rig.restart();
        rig.update(&[NET1]);
        rig.net.adopt(&a).unwrap();
        rig.net.adopt(&b).unwrap();
        assert!(rig.try_connect(&a).is_none());
        rig.flush_rules();
        wait_until("rules anew", || rig.keys(Set::Instances) == 2);
        assert!(rig.try_connect(&a).is_none());
        rig.set_clock(hour + HOUR_MS + MINUTE_MS);
        counted(rig, &a);
        assert_eq!(download(rig, &a, 50 * KIB), 50 * KIB);
        rig.net.detach(&a.id).unwrap();
        rig.net.detach(&b.id).unwrap();
    });
}

#[test]
fn a_new_period_opens_what_a_limit_has_closed() {
    let settings = NetworkSettings { traffic_period: TrafficPeriod::Hour, ..Default::default() };
    with_settings("traffic_period", settings, |rig: &mut Rig| {
        rig.add_outside();
        rig.update(&[NET1]);
        let mut a = one(rig);
        a.quotas.download_bytes = Some(100_000);
        rig.net.attach(&a).unwrap();
        let received = download_until_stopped(rig, &a, 400 * KIB);
        assert!(received < 100_000, "{received}");
        stays_below(rig, &a, 100_000);
        // The daemon was away while the period ended: its rows are of an hour ago.
        let rows = rig.stored_rows(|rows| rows.iter().any(|row| row.bytes > 0));
        assert!(!rows.is_empty());
        rig.stop();
        let mut old = rig.rows();
        for row in &mut old {
            row.time_ms = wall_ms() - HOUR_MS;
        }
        rig.restart_with(old, &[&a]);
        rig.update(&[NET1]);
        rig.net.adopt(&a).unwrap();
        // Nothing but what the other side of the stopped connection tries once more.
        assert!(counted(rig, &a).download_bytes < 40_000);
        assert!(download(rig, &a, 50 * KIB) == 50 * KIB);
        assert!(counted(rig, &a).download_bytes > 50_000);
        let rows = rig.rows();
        let node = rows.iter().filter(|row| row.chain.starts_with("AOS_SYSTEM"));
        assert_eq!(node.filter(|row| row.time_ms > wall_ms() - HOUR_MS).count(), 2, "{rows:?}");
    });
}

#[test]
fn a_limit_opens_again_while_the_daemon_runs() {
    let settings = NetworkSettings { traffic_period: TrafficPeriod::Hour, ..Default::default() };
    with_settings("traffic_period_runs", settings, |rig: &mut Rig| {
        let limit = 100_000;
        let hour = wall_ms() + 2 * HOUR_MS - wall_ms().rem_euclid(HOUR_MS);
        rig.add_outside();
        rig.update(&[NET1]);
        rig.set_clock(hour + MINUTE_MS);
        assert_eq!(all(rig).instances.len(), 0);
        let mut a = one(rig);
        a.quotas.download_bytes = Some(limit);
        rig.net.attach(&a).unwrap();
        let received = download_until_stopped(rig, &a, 400 * KIB);
        assert!(received < 100_000, "{received}");
        stays_below(rig, &a, limit);
        // The same hour, also if somebody sets the clock back.
        for passed in [HOUR_MS - MINUTE_MS, -MINUTE_MS] {
            rig.set_clock(hour + passed);
            stays_below(rig, &a, limit);
        }
        // Its end is noticed without a question.
        rig.set_clock(hour + HOUR_MS - 300);
        counted(rig, &a);
        wait_until("an open limit", || rig.try_connect(&a).is_some());
        assert_eq!(download(rig, &a, 50 * KIB), 50 * KIB);
        // The new hour has the same limit.
        let received = download_until_stopped(rig, &a, 400 * KIB);
        assert!(received < 100_000, "{received}");
        stays_below(rig, &a, limit);
        let rows = rig.stored_rows(|rows| rows.iter().any(|row| row.time_ms >= hour + HOUR_MS));
        assert!(rows.iter().all(|row| row.bytes <= limit), "{rows:?}");
    });
}

#[test]
fn counters_survive_daemon_and_node() {
    on_a_host("traffic_restart", |rig: &mut Rig| {
        rig.add_outside();
        rig.update(&[NET1]);
        let a = one(rig);
        rig.net.attach(&a).unwrap();
        assert_eq!(upload(rig, &a, 200 * KIB), 200 * KIB);
        let before = counted(rig, &a);
        // Restart of the daemon: the kernel goes on counting.
        rig.restart_with(vec![], &[&a]);
        assert_eq!(upload(rig, &a, 100 * KIB), 100 * KIB);
        rig.update(&[NET1]);
        rig.net.adopt(&a).unwrap();
        let after = counted(rig, &a);
        assert_about(after.upload_bytes - before.upload_bytes, 100 * KIB);
        // Restart of the node: nothing is in the kernel, the database knows.
        rig.net.detach(&a.id).unwrap();
        let rows = rig.rows();
        rig.stop();
        rig.flush_rules();
        let foreign = TrafficRow { chain: "AOS_1_IN".into(), time_ms: wall_ms(), bytes: 1 };
        rig.restart_with([rows, vec![foreign]].concat(), &[&a]);
        rig.update(&[NET1]);
        rig.net.attach(&a).unwrap();
        assert_eq!(counted(rig, &a), after);
        assert_eq!(rig.gone(), ["AOS_1_IN".into()]);
        assert_eq!(rig.instance(&a).reaches(&rig.node(), [172, 17, 0, 1].into()).unwrap(), A);
    });
}

/// What the configuration calls local is not counted, and nothing else is local any more.
#[test]
fn local_networks_are_those_of_the_configuration() {
    let local_networks = vec![("203.0.113.0".parse().unwrap(), 24)];
    let settings = NetworkSettings { local_networks, ..Default::default() };
    with_settings("traffic_local", settings, |rig: &mut Rig| {
        rig.add_outside();
        rig.update(&[NET1, ("net2", "172.18.0.0/16", "172.18.0.1")]);
        let mut a = one(rig);
        a.params.rules = vec![super::rig::rule("172.17.0.2", "172.18.0.2", 80)];
        a.quotas.upload_bytes = Some(100_000);
        let b = rig.plan("net2", "172.18.0.0/16", "172.18.0.2", 1);
        rig.net.attach(&a).unwrap();
        rig.net.attach(&b).unwrap();
        assert_eq!(upload(rig, &a, 300 * KIB), 300 * KIB);
        assert_eq!(counted(rig, &a), Volume::default());
        let listener = rig.instance(&b).listen(80);
        let client = rig.instance(&a).open([172, 18, 0, 2].into(), 80).unwrap();
        let pair = (client, listener.accept().unwrap().0);
        let received = send_until_silent(pair, 300 * KIB, STOPPED);
        assert!(received < 100_000, "{received}");
        assert!(counted(rig, &b).download_bytes > 0);
    });
}

/// Of a prefix, only as much is compared as it has; the kernel has a way of its own for each of these.
#[test]
fn local_networks_end_where_their_prefix_does() {
    const AROUND: [(&str, u8); 6] = [
        ("0.0.0.0", 0),
        ("203.0.0.0", 8),
        ("203.0.0.0", 12),
        ("203.0.0.0", 16),
        ("203.0.113.0", 24),
        ("203.0.113.1", 32),
    ];
    const BESIDE: [(&str, u8); 7] = [
        ("202.0.0.0", 8),
        ("204.0.0.0", 8),
        ("203.16.0.0", 12),
        ("203.1.0.0", 16),
        ("203.0.112.0", 24),
        ("203.0.113.0", 32),
        ("127.0.0.0", 8),
    ];
    fn send_some(rig: &Rig) -> (Volume, Volume) {
        rig.add_outside();
        rig.update(&[NET1]);
        let a = one(rig);
        rig.net.attach(&a).unwrap();
        assert_eq!(upload(rig, &a, 300 * KIB), 300 * KIB);
        let (client, server) = rig.node().connect(&rig.outside(), OUTSIDE).split();
        assert_eq!(send((client, server), 300 * KIB), 300 * KIB);
        let traffic = all(rig);
        (traffic.instance(&a.id).unwrap_or_default(), traffic.node)
    }
    let settings = |networks: &[(&str, u8)]| {
        let local = networks.iter().map(|(address, prefix)| (address.parse().unwrap(), *prefix));
        NetworkSettings { local_networks: local.collect(), ..Default::default() }
    };
    for network in AROUND {
        with_settings("traffic_around", settings(&[network]), |rig: &mut Rig| {
            let (instance, node) = send_some(rig);
            assert_eq!(instance, Volume::default());
            // The kernel tells the group of routers (224.0.0.22) what it listens to.
            assert!(node.upload_bytes < 1000 && node.download_bytes == 0, "{node:?}");
        });
    }
    with_settings("traffic_beside", settings(&BESIDE), |rig: &mut Rig| {
        let (instance, node) = send_some(rig);
        for volume in [instance, node] {
            assert!(volume.upload_bytes > 300 * 1024 && volume.download_bytes > 0, "{volume:?}");
        }
    });
}
