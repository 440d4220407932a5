//! The rules alone, on hosts that have nothing else.

use super::super::accounting::LocalNetworks;
use super::*;
use crate::sys::mount::isolate;
use crate::sys::thread::spawn_sized;

/// On a host that has nothing but our rules.
fn with_rules(test: &'static str, body: fn(&mut Firewall)) {
    let thread = spawn_sized("firewall-test", 512 * 1024, move || {
        if isolate().is_err() {
            println!("SKIP {test}: needs CAP_NET_ADMIN");
            return;
        }
        let local = LocalNetworks::new(&[]);
        let policy = Policy { open_inbound: false, police: false, polled: false, local };
        let mut firewall = Firewall::open(true, policy).unwrap();
        match firewall.start(Volume::default()) {
            Ok(()) => body(&mut firewall),
            Err(err) => println!("SKIP {test}: {err}"),
        }
    });
    thread.unwrap().join().unwrap();
}

/// Otherwise the policy that the OS has just given a chain would be replaced by ours.
#[test]
fn what_others_change_meanwhile_is_looked_at_again() {
    with_rules("what_others_change_meanwhile", |firewall| {
        let seen = firewall.channel.as_mut().and_then(generation).unwrap();
        assert!(firewall.is_settled());
        firewall.rebuild_after(Some(seen)).unwrap();
        let refused = firewall.rebuild_after(Some(seen)).unwrap_err();
        assert!(matches!(&refused, Error::Kernel(r) if r.errno == Errno::ERESTART));
        firewall.rebuild().unwrap();
        assert!(firewall.is_settled());
    });
}

/// The kernel refuses quotas of which more is used than they have, and very large ones.
#[test]
fn a_limit_may_be_lower_than_what_is_used_and_higher_than_a_quota() {
    with_rules("limits_of_any_height", |firewall| {
        let volume = Volume { download_bytes: 1000, upload_bytes: u64::MAX };
        let meter = |limit: u64| Share {
            entries: Vec::new(),
            meters: vec![(
                InstanceId::new("a"),
                Meter {
                    address: Ipv4Addr::new(172, 17, 0, 2),
                    limits: accounting::Limits {
                        download_bytes: Some(limit),
                        upload_bytes: Some(u64::MAX),
                        ..Default::default()
                    },
                    volume,
                },
            )],
        };
        firewall.add(&meter(999)).unwrap();
        for limit in [1, u64::MAX, 1000] {
            firewall.replace(&Share::default(), &meter(limit)).unwrap();
            firewall.rebuild().unwrap();
            firewall.read_counters().unwrap();
            assert_eq!(firewall.volume(&InstanceId::new("a")), Some(volume));
        }
        firewall.reset_counters().unwrap();
        firewall.rebuild().unwrap();
        assert_eq!(firewall.volume(&InstanceId::new("a")), Some(Volume::default()));
    });
}

/// The kernel refuses more keys than a map was made for.
#[test]
fn maps_grow() {
    with_rules("maps_grow", |firewall| {
        let meter = |number: u32| {
            let volume = Volume { download_bytes: number.into(), upload_bytes: 7 };
            let address = Ipv4Addr::from_bits(0xac11_0000 + number);
            let limits = accounting::Limits::default();
            (InstanceId::new(&number.to_string()), Meter { address, limits, volume })
        };
        let meters = |numbers: std::ops::Range<u32>| Share {
            entries: Vec::new(),
            meters: numbers.map(meter).collect(),
        };
        firewall.add(&meters(0..MIN_CAPACITY)).unwrap();
        // Who goes makes room, also for who comes in the same transaction.
        firewall.remove(&meters(0..1)).unwrap();
        firewall.add(&meters(0..1)).unwrap();
        let mut moved = meters(1..2);
        moved.meters[0].1.address = Ipv4Addr::from_bits(0xac12_0000);
        firewall.replace(&meters(1..2), &moved).unwrap();
        assert_eq!(firewall.capacity, MIN_CAPACITY);
        firewall.add(&meters(MIN_CAPACITY..600)).unwrap();
        assert_eq!(firewall.capacity, 1024);
        firewall.read_counters().unwrap();
        let traffic = firewall.traffic();
        assert_eq!(traffic.instances.len(), 600);
        for (id, volume) in &traffic.instances {
            assert_eq!(volume.download_bytes.to_string(), id.as_str());
        }
        firewall.remove(&meters(100..600)).unwrap();
        firewall.rebuild().unwrap();
        assert_eq!(firewall.capacity, MIN_CAPACITY);
    });
}
