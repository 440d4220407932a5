//! Speed, measured with real packets, and what a kernel without the means does to it.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::time::Duration;

use super::super::NetworkSettings;
use nix::errno::Errno;

use super::super::caps::NetCaps;
use super::super::nft::NEW_LIMIT;
use super::peer::Pair;
use super::rig::{OUTSIDE, PATIENCE, Rig, on_a_host, with_caps, with_refusals};
use super::traffic::{KIB, counted, upload};
use crate::ports::{Network, NetworkPlan};
use crate::sys::thread::spawn;
use crate::sys::time::monotonic;

const NET1: (&str, &str, &str) = ("net1", "172.17.0.0/16", "172.17.0.1");
const A: Ipv4Addr = Ipv4Addr::new(172, 17, 0, 2);
const A2: Ipv4Addr = Ipv4Addr::new(172, 17, 0, 3);
/// A machine that is busy with other tests is given so many tries to be as fast as it may.
const TRIES: u32 = 8;
const NO_TBF: NetCaps = NetCaps { tbf: false, ..NetCaps::ALL };

/// A connection through which bytes flow as fast as they can, from the first end to the second.
struct Flow {
    receiver: TcpStream,
    buffer: Vec<u8>,
}

impl Flow {
    fn start(pair: Pair) -> Self {
        let (mut sender, receiver) = pair.split();
        sender.set_write_timeout(Some(PATIENCE)).unwrap();
        receiver.set_read_timeout(Some(PATIENCE)).unwrap();
        spawn("flood", move || {
            // Ends when the other side is closed.
            while sender.write_all(&[0; 4096]).is_ok() {}
        })
        .unwrap();
        Self { receiver, buffer: vec![0; 64 * 1024] }
    }

    /// Bytes per second, with what is queued at the beginning and at the end left out: the rate is
    /// that of the bytes between two reads.
    fn rate(&mut self, least: Duration) -> f64 {
        let mut bytes = 0;
        let _ = self.receiver.read(&mut self.buffer).unwrap();
        let start = monotonic();
        loop {
            bytes += self.receiver.read(&mut self.buffer).unwrap();
            let passed = monotonic() - start;
            if passed >= least {
                return f64::from(u32::try_from(bytes).unwrap()) / passed.as_secs_f64();
            }
        }
    }

    /// Within a tenth of a rate in bits per second. What a reader that was held up finds at once
    /// does not count: the kernel cannot be faster for long, so the test is repeated.
    fn has_rate(&mut self, bits: f64) {
        let mut seen = Vec::new();
        // Headers are a part of the rate.
        let payload = bits / 8.0 * 1448.0 / 1514.0;
        for _ in 0..TRIES {
            let rate = self.rate(Duration::from_millis(600));
            if rate > payload * 0.9 && rate < payload * 1.1 {
                return;
            }
            seen.push(rate);
        }
        panic!("{seen:?} bytes per second instead of {payload}");
    }
}

fn two(rig: &Rig) -> [NetworkPlan; 2] {
    [rig.plan("net1", NET1.1, "172.17.0.2", 0), rig.plan("net1", NET1.1, "172.17.0.3", 1)]
}

#[test]
fn rates_are_kept_within_a_tenth() {
    on_a_host("limits_rates", |rig: &mut Rig| {
        if !rig.has_tbf() {
            println!("SKIP limits_rates: kernel lacks tbf");
            return;
        }
        rig.update(&[NET1]);
        let [mut a, b] = two(rig);
        rig.net.attach(&b).unwrap();
        for (download_mbit, upload_mbit) in [(1u32, 20u32), (20, 1)] {
            a.quotas.download_kbit = Some(u64::from(download_mbit) * 1000);
            a.quotas.upload_kbit = Some(u64::from(upload_mbit) * 1000);
            rig.net.attach(&a).unwrap();
            let (one, two) = (rig.instance(&a), rig.instance(&b));
            Flow::start(two.connect(&one, A)).has_rate(f64::from(download_mbit) * 1e6);
            Flow::start(one.connect(&two, A2)).has_rate(f64::from(upload_mbit) * 1e6);
        }
    });
}

/// The instance runs on, its connections live on.
#[test]
fn limits_change_while_an_instance_runs() {
    on_a_host("limits_change", |rig: &mut Rig| {
        if !rig.has_tbf() {
            println!("SKIP limits_change: kernel lacks tbf");
            return;
        }
        rig.add_outside();
        rig.update(&[NET1]);
        let [mut a, b] = two(rig);
        rig.net.attach(&a).unwrap();
        rig.net.attach(&b).unwrap();
        let (one, two) = (rig.instance(&a), rig.instance(&b));
        for down in [true, false] {
            let pair = if down { two.connect(&one, A) } else { one.connect(&two, A2) };
            let mut flow = Flow::start(pair);
            for mbit in [8u32, 4] {
                let kbit = Some(u64::from(mbit) * 1000);
                (a.quotas.download_kbit, a.quotas.upload_kbit) =
                    if down { (kbit, None) } else { (None, kbit) };
                rig.net.adopt(&a).unwrap();
                flow.has_rate(f64::from(mbit) * 1e6);
            }
            (a.quotas.download_kbit, a.quotas.upload_kbit) = (None, None);
            for _ in 0..2 {
                rig.net.adopt(&a).unwrap();
            }
            assert!((0..TRIES).any(|_| flow.rate(Duration::from_millis(200)) > 4e6));
        }
        // Volumes and ports as well. What was used counts, though nobody has looked at it.
        assert_eq!(upload(rig, &a, 100 * KIB), 100 * KIB);
        a.quotas.upload_bytes = Some(1);
        a.exposed_ports = vec!["8080".to_owned()];
        rig.net.adopt(&a).unwrap();
        assert!(rig.try_connect(&a).is_none());
        let used = counted(rig, &a).upload_bytes;
        assert!(used > 100 * 1024, "{used}");
        assert_eq!(upload(rig, &b, 50 * KIB), 50 * KIB);
        a.quotas.upload_bytes = None;
        a.exposed_ports = vec!["8081".to_owned()];
        rig.net.adopt(&a).unwrap();
        assert_eq!(upload(rig, &a, 100 * KIB), 100 * KIB);
        a.quotas.upload_bytes = Some(u64::MAX);
        rig.net.adopt(&a).unwrap();
        let used = counted(rig, &a).upload_bytes - used;
        assert!(used > 100 * 1024, "{used}");
        assert!(rig.connects(&a));
        assert!(rig.outside().reaches_port(&rig.instance(&a), A, 8081).is_ok());
        rig.outside().is_cut_off_from(&rig.instance(&a), A, 8080);
    });
}

#[test]
fn without_tbf_the_rules_drop_what_is_too_fast() {
    with_caps("limits_police", NetworkSettings::default(), Some(NO_TBF), |rig: &mut Rig| {
        rig.add_outside();
        rig.update(&[NET1]);
        let [mut a, b] = two(rig);
        rig.net.attach(&b).unwrap();
        assert!(rig.alerts().is_empty());
        a.quotas.download_kbit = Some(8_000);
        a.quotas.upload_kbit = Some(4_000);
        rig.net.attach(&a).unwrap();
        assert_eq!(
            rig.alerts(),
            ["network is degraded: limits of speed drop packets: kernel lacks tbf"]
        );
        // What is dropped is sent again, so that less than the rate may arrive, but never more.
        let slow = |flow: &mut Flow, bits: f64| {
            let mut seen = Vec::new();
            for _ in 0..TRIES {
                let rate = flow.rate(Duration::from_millis(600));
                if rate > bits / 8.0 * 0.3 && rate < bits / 8.0 * 1.1 {
                    return;
                }
                seen.push(rate);
            }
            panic!("{seen:?}");
        };
        let both = |rig: &Rig, a: &NetworkPlan| {
            let outside = rig.outside();
            let (client, server) = rig.instance(a).connect(&outside, OUTSIDE).split();
            slow(&mut Flow::start(Pair::new(server, client)), 8e6);
            slow(&mut Flow::start(rig.instance(a).connect(&outside, OUTSIDE)), 4e6);
        };
        both(rig, &a);
        // Others are not concerned.
        let mut free = Flow::start(rig.instance(&b).connect(&rig.outside(), OUTSIDE));
        assert!((0..TRIES).any(|_| free.rate(Duration::from_millis(200)) > 4e6));
        // The limit stands before the daemon is back, and after somebody deleted the rules.
        rig.restart();
        both(rig, &a);
        rig.update(&[NET1]);
        rig.net.adopt(&a).unwrap();
        rig.keep(&[&a.id]);
        rig.flush_rules();
        crate::sys::testing::wait_until("rules anew", || {
            rig.keys(super::super::rules::Set::Instances) == 1
        });
        both(rig, &a);
        rig.net.detach(&a.id).unwrap();
        assert!(!rig.nft_list("table inet aos").contains("lin_"));
    });
}

/// A kernel that knows limits neither at links nor in rules says so as if the rules were gone.
#[test]
fn rules_without_limits_let_an_instance_run_that_may() {
    const NO_LIMITS: &[(&str, Errno)] = &[(NEW_LIMIT, Errno::ENOENT)];
    fn start(rig: &mut Rig) -> NetworkPlan {
        rig.update(&[NET1]);
        let [mut a, b] = two(rig);
        a.quotas.download_kbit = Some(8_000);
        rig.net.attach(&b).unwrap();
        a
    }
    let settings = NetworkSettings::default();
    with_refusals("limits_no_rules", settings, Some(NO_TBF), NO_LIMITS, |rig: &mut Rig| {
        let mut a = start(rig);
        let failure = rig.net.attach(&a).unwrap_err();
        assert_eq!(failure.message, "kernel lacks tbf and limits of nf_tables");
        assert_eq!(rig.namespaces().len(), 1);
        assert!(rig.alerts().is_empty());
        a.quotas.download_kbit = None;
        rig.net.attach(&a).unwrap();
    });
    let settings = NetworkSettings { bandwidth_optional: true, ..NetworkSettings::default() };
    with_refusals("limits_optional_rules", settings, Some(NO_TBF), NO_LIMITS, |rig: &mut Rig| {
        let a = start(rig);
        let rules = rig.generation();
        rig.net.attach(&a).unwrap();
        rig.net.adopt(&a).unwrap();
        let alerts = rig.alerts();
        assert!(matches!(&alerts[..], [one] if one.contains("speed is not limited")), "{alerts:?}");
        // Nobody else has changed the rules, and nothing is tried in vain.
        assert_eq!(rig.generation(), rules + 1);
        assert!(!rig.nft_list("table inet aos").contains("lin_"));
        rig.add_outside();
        assert!(rig.try_connect(&a).is_some());
        rig.net.detach(&a.id).unwrap();
    });
}

#[test]
fn without_any_limit_an_instance_is_refused_unless_it_may_run_without() {
    let settings = NetworkSettings { firewall: false, ..NetworkSettings::default() };
    with_caps("limits_none", settings.clone(), Some(NO_TBF), |rig: &mut Rig| {
        rig.update(&[NET1]);
        let [mut a, b] = two(rig);
        a.quotas.download_kbit = Some(8_000);
        let failure = rig.net.attach(&a).unwrap_err();
        assert_eq!(failure.message, "kernel lacks tbf and limits of nf_tables");
        assert!(rig.namespaces().is_empty());
        rig.net.attach(&b).unwrap();
    });
    let settings = NetworkSettings { bandwidth_optional: true, ..settings };
    with_caps("limits_optional", settings, Some(NO_TBF), |rig: &mut Rig| {
        rig.update(&[NET1]);
        let [mut a, _] = two(rig);
        a.quotas.download_kbit = Some(8_000);
        rig.net.attach(&a).unwrap();
        let alerts = rig.alerts();
        assert!(alerts[0].contains("speed is not limited"), "{alerts:?}");
        assert!(rig.instance(&a).reaches(&rig.node(), [172, 17, 0, 1].into()).is_ok());
    });
}
