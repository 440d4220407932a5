//! The end of the daemon with and without its instances; `-stop-instances`, `-reset`.

use std::process::Command;

use rusqlite::Connection;

use crate::common::host;
use crate::common::need::require;
use crate::common::unit::{Setup, Unit};

/// Two instances, left behind by a daemon that was killed.
fn left_behind() -> Unit {
    let mut unit = Setup::new().registered();
    unit.service("web", "exec /busybox sleep 10000", "");
    unit.say("instance web count=2");
    unit.say("run");
    unit.say("wait active");
    unit.kill_daemon();
    assert_eq!(unit.groups().len(), 2);
    unit
}

#[test]
fn instances_are_stopped_with_the_daemon() {
    require!(root, memory, runc, busybox);
    let mut unit = Setup::new().registered();
    unit.service("web", "exec /busybox sleep 10000", "");
    unit.say("instance web count=8");
    unit.say("run");
    unit.say("wait active");
    unit.stop_daemon();
    unit.nothing_left();
    // The next life starts them again by itself.
    unit.say("wait disconnected");
    unit.look();
    unit.start_daemon();
    unit.say("wait registered");
    unit.expect("full status: 8 instances");
    crate::common::wait_until("eight instances", || {
        unit.groups().iter().filter(|(_, pids)| !pids.is_empty()).count() == 8
    });
    unit.stop_daemon();
    unit.nothing_left();
}

#[test]
fn instances_are_kept_on_exit() {
    require!(root, memory, runc, busybox);
    let mut unit = Setup::new().set("keepInstancesOnExit", "true").registered();
    unit.sleeper("one");
    unit.say("run");
    unit.say("wait active one");
    let pid = unit.pid_of("one/subject/0");
    unit.stop_daemon();
    assert_eq!(unit.pid_of("one/subject/0"), pid);
    assert_eq!(unit.groups().len(), 1);
    unit.say("wait disconnected");
    unit.look();
    unit.start_daemon();
    unit.say("wait registered");
    unit.expect("one/subject/0 version 1.0.0 active");
    assert_eq!(unit.pid_of("one/subject/0"), pid);
    unit.stop_daemon();
    let (code, out, err) = unit.run_to_end(&["-stop-instances"]);
    assert_eq!(code, Some(0), "{out} {err}");
    unit.nothing_left();
}

#[test]
fn stop_instances_leaves_nothing() {
    require!(root, memory, runc, busybox);
    let mut unit = left_behind();
    let rules = |unit: &Unit| unit.space.firewall("ruleset");
    let before = rules(&unit);
    assert!(before.is_none_or(|rules| rules.contains("table inet aos ")));
    let (code, out, err) = unit.run_to_end(&["-stop-instances"]);
    assert_eq!(code, Some(0), "{out} {err}");
    unit.no_links_left();
    assert!(rules(&unit).is_none_or(|rules| rules.is_empty()), "{:?}", rules(&unit));
    assert!(!unit.space.inside(|| std::path::Path::new("/run/netns").exists()));
    assert!(!unit.installed().is_empty(), "packages stay");
    // Again, with nothing to do.
    assert_eq!(unit.run_to_end(&["-stop-instances"]).0, Some(0));
    // They are still wanted.
    unit.look();
    unit.start_daemon();
    unit.say("wait registered");
    unit.expect("full status: 2 instances");
    unit.stop_daemon();
    unit.nothing_left();
}

/// What the database knows of what instances and the node have sent.
fn stored_uploads(unit: &Unit) -> [u64; 2] {
    let db = Connection::open(unit.path("sm/work/servicemanager.db")).unwrap();
    ["chain = 'AOS_SYSTEM_OUT'", "chain LIKE '%_OUT' AND chain <> 'AOS_SYSTEM_OUT'"].map(|which| {
        let query = format!("SELECT coalesce(sum(value), 0) FROM traffic WHERE {which}");
        let sum: i64 = db.query_row(&query, [], |row| row.get(0)).unwrap();
        u64::try_from(sum).unwrap()
    })
}

/// Much less than is stored while the daemon runs, and all of it counts.
#[test]
fn what_was_sent_until_the_end_is_stored() {
    require!(root, memory, runc, busybox, netfilter);
    let local = "[\"203.0.113.0/24\"]";
    let setup = Setup::new().set("keepInstancesOnExit", "true");
    let mut unit = setup.set("network.localNetworks", local).registered();
    for words in [
        "link add up0 type veth peer name far0",
        "link set up0 up",
        "link set far0 up",
        "route add default dev up0",
    ] {
        let ip = || Command::new("ip").args(words.split(' ')).status().unwrap();
        assert!(unit.space.inside(ip).success(), "{words}");
    }
    // Nobody answers there, but each attempt is a packet.
    let script = "while :; do /busybox nc -w 1 192.0.2.1 9; echo sent >>/storage/record; done";
    unit.service("sender", script, "");
    unit.say("instance sender");
    unit.say("run");
    unit.say("wait active sender");
    unit.expect_stored("sender/subject/0", "record", "sent");
    unit.stop_daemon();
    let [node, instances] = stored_uploads(&unit);
    // The node has told the CM its name over TLS, which is not local here.
    assert!(node > 1000 && instances > 30, "{node} {instances}");
    let sent = |unit: &Unit| unit.stored("sender/subject/0", "record").unwrap().lines().count();
    let before = sent(&unit);
    crate::common::wait_until("more packets", || sent(&unit) >= before + 2);
    let (code, out, err) = unit.run_to_end(&["-stop-instances"]);
    assert_eq!(code, Some(0), "{out} {err}");
    let later = stored_uploads(&unit);
    assert!(later[0] >= node && later[1] > instances + 60, "{node} {instances} {later:?}");
    let delete = || Command::new("ip").args(["link", "delete", "up0"]).status().unwrap();
    assert!(unit.space.inside(delete).success());
    unit.no_links_left();
}

#[test]
fn reset_removes_all_but_the_data_of_instances() {
    require!(root, memory, runc, busybox);
    let mut unit = left_behind();
    let (code, out, err) = unit.run_to_end(&["-reset"]);
    assert_eq!(code, Some(0), "{out} {err}");
    unit.nothing_left();
    let work = unit.path("sm/work");
    let left: Vec<_> =
        host::names(&work).into_iter().filter(|n| n.starts_with("servicemanager.db")).collect();
    assert!(left.is_empty(), "{left:?}");
    assert!(unit.installed().is_empty());
    assert!(host::names(&work.join("layers")).is_empty());
    assert!(unit.path("sm/storages/web_subject_0").is_dir());
    assert!(unit.path("sm/states/web_subject_1_state.dat").is_file());
    unit.look();
    unit.start_daemon();
    unit.say("wait registered");
    unit.expect("full status: 0 instances");
    unit.say("run");
    unit.say("wait active");
    unit.stop_daemon();
    unit.nothing_left();
}

#[test]
fn a_record_with_the_number_of_another_process_harms_nobody() {
    require!(root, memory, runc, busybox);
    let mut unit = left_behind();
    let mut foreign = std::process::Command::new("sleep").arg("10000").spawn().unwrap();
    let pid = foreign.id().to_string();
    for id in unit.bundles() {
        let bundle = unit.path("run/runtime").join(&id);
        let text = std::fs::read_to_string(bundle.join(".pid")).unwrap();
        let own = text.trim();
        for name in [".pid", "record.json"] {
            let text = std::fs::read_to_string(bundle.join(name)).unwrap();
            assert!(text.contains(own), "{name}: {text}");
            let file = std::fs::File::create(bundle.join(name));
            std::io::Write::write_all(&mut file.unwrap(), text.replace(own, &pid).as_bytes())
                .unwrap();
        }
    }
    unit.start_daemon();
    unit.say("wait registered");
    unit.say("run");
    unit.say("wait active");
    let groups = unit.groups();
    assert_eq!(groups.len(), 2, "{groups:?}");
    assert!(groups.iter().all(|(_, pids)| pids.len() == 1), "{groups:?}");
    unit.stop_daemon();
    unit.nothing_left();
    assert_eq!(foreign.try_wait().unwrap(), None, "the foreign process was ended");
    foreign.kill().unwrap();
    foreign.wait().unwrap();
}

#[test]
fn left_overs_without_a_record_are_removed_at_start() {
    require!(root, memory, runc, busybox);
    let mut unit = left_behind();
    // One is not known any more, and the records of both are gone.
    for id in unit.bundles() {
        std::fs::remove_file(unit.path("run/runtime").join(&id).join("record.json")).unwrap();
    }
    let before = unit.groups();
    unit.look();
    unit.start_daemon();
    unit.say("wait registered");
    unit.say("run");
    unit.say("wait active");
    let after = unit.groups();
    assert_eq!(after.len(), 2, "{after:?}");
    for ((_, old), (_, new)) in before.iter().zip(&after) {
        assert!(old.is_disjoint(new), "{before:?} {after:?}");
    }
    unit.stop_daemon();
    unit.nothing_left();
}
