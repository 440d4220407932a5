//! The end for good, as before the daemon is removed from a machine.

use super::super::channel::Channel;
use super::super::{NetworkSettings, listing, rules};
use super::rig::{Rig, on_a_host};
use crate::ports::Network;
use crate::sys::netlink::Family;
use crate::sys::netns;

const NET1: (&str, &str, &str) = ("net1", "172.17.0.0/16", "172.17.0.1");

/// Names of all tables of the family that ours is in.
fn tables() -> Vec<String> {
    let mut channel = Channel::open(Family::Netfilter).unwrap();
    let tables = channel.dump(&mut listing::list_tables(), listing::parse_table).unwrap();
    tables.into_iter().map(|(name, _)| name).collect()
}

fn run_instances(rig: &Rig) {
    assert!(rig.update(&[NET1]).is_empty());
    for (number, ip) in [(0, "172.17.0.2"), (1, "172.17.0.3")] {
        rig.net.attach(&rig.plan("net1", NET1.1, ip, number)).unwrap();
    }
    assert_eq!(tables(), [rules::TABLE]);
}

fn clear(rig: &Rig) {
    assert!(rig.net.try_clear());
    rig.net.survey();
}

#[test]
fn nothing_of_ours_is_left() {
    on_a_host("clear_all", |rig: &mut Rig| {
        run_instances(rig);
        // As `-stop-instances` does it: another process, which finds them.
        rig.restart();
        clear(rig);
        rig.wait_for_links(&[]);
        assert!(tables().is_empty(), "{:?}", tables());
        assert!(!std::path::Path::new(netns::DIR).exists());
        // Not even at the end of the thread, and again with nothing to do.
        clear(rig);
        rig.stop();
        assert!(tables().is_empty(), "{:?}", tables());
        // The next life makes it anew.
        rig.restart();
        run_instances(rig);
    });
}

/// Each makes the table one that is not ours alone.
const PARTS: [&str; 6] = [
    "chain mine { }",
    "set theirs { type ipv4_addr; }",
    "counter theirs { }",
    "chain forward { type filter hook forward priority 0; policy drop; }",
    "chain postrouting { type nat hook postrouting priority 100; ip saddr 10.9.0.0/16 accept; }",
    "chain input { type filter hook input priority 0; }",
];

#[test]
fn what_the_os_has_in_our_table_stays() {
    on_a_host("clear_foreign", |rig: &mut Rig| {
        for part in PARTS {
            rig.stop();
            rig.flush_rules();
            let Some(()) = rig.nft(&format!("table inet aos {{\n{part}\n}}\ntable ip other {{ }}"))
            else {
                println!("SKIP what_the_os_has_in_our_table_stays: the program nft is missing");
                rig.restart();
                return;
            };
            let other = rig.nft_list("table ip other");
            rig.restart();
            run_instances(rig);
            clear(rig);
            let left = rig.nft_list("table inet aos");
            for word in ["theirs", "mine", "10.9.0.0/16", "policy drop", "chain input"] {
                assert!(!part.contains(word) || left.contains(word), "{part}: {left}");
            }
            assert!(!left.contains("aos_") && !left.contains("aos-sm"), "{part}: {left}");
            assert_eq!(rig.nft_list("table ip other"), other);
        }
    });
}

/// Rules of a life that had them would drop what comes from instances that they do not know.
#[test]
fn rules_go_when_they_are_switched_off() {
    on_a_host("clear_switched_off", |rig: &mut Rig| {
        run_instances(rig);
        rig.settings = NetworkSettings { firewall: false, ..NetworkSettings::default() };
        rig.restart();
        assert!(tables().is_empty(), "{:?}", tables());
        let plan = rig.plan("net1", NET1.1, "172.17.0.4", 2);
        rig.net.attach(&plan).unwrap();
        assert!(rig.instance(&plan).reaches(&rig.node(), [172, 17, 0, 1].into()).is_ok());
    });
}
