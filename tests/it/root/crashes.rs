//! SIGKILL of the daemon at chosen bad moments: during installs, starts and changes, and while
//! instances run or end. At random ones: `kills.rs`.

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;

use serde_json::{Value, json};

use crate::common::host;
use crate::common::image::{self, Member, Package};
use crate::common::need::{self, require};
use crate::common::unit::{Setup, Unit, with_a_good_one};
use crate::common::wait_until;

/// Waits until every wanted instance runs exactly once: what an earlier life has left may still be
/// on its way out when the others run.
fn each_runs_once(unit: &Unit, count: usize) {
    wait_until(&format!("{count} instances and nothing else"), || {
        let groups = unit.groups();
        let namespaces = unit.space.network_namespaces();
        [groups.len(), unit.bundles().len(), namespaces.len()] == [count; 3]
            && groups.iter().all(|(_, pids)| !pids.is_empty())
    });
}

#[test]
fn killed_while_installing() {
    require!(root, memory, runc, busybox);
    let mut unit = with_a_good_one(Setup::new());
    let good = unit.pid_of("good/subject/0");
    let big = Package::with_root(&[Member::file("big", &vec![0x5a; 1 << 20])]);
    let path = image::write(&unit.path("packages"), "big.tar", &big.bytes());
    unit.say(&format!("service big package={}", path.display()));
    unit.say("instance big");
    // Half of it arrives, the rest never.
    unit.say("fault /big.tar slow=400000");
    unit.say("run");
    let work = unit.path("sm/work");
    let begun = |path: &String| path.contains(".staging-") || path.ends_with(".part");
    wait_until("a download", || host::tree(&work).iter().any(begun));
    unit.kill_daemon();

    unit.say("fault /big.tar clear");
    unit.start_daemon();
    unit.say("wait registered");
    // Without a word from the CM: what was wanted is installed and started.
    wait_until("both instances", || {
        unit.groups().iter().filter(|(_, pids)| !pids.is_empty()).count() == 2
    });
    unit.say("run");
    unit.say("wait active");
    each_runs_once(&unit, 2);
    assert_eq!(unit.pid_of("good/subject/0"), good);
    let left: Vec<_> = host::tree(&work).into_iter().filter(begun).collect();
    assert!(left.is_empty(), "{left:?}");
    unit.stop_daemon();
    unit.nothing_left();
}

#[test]
fn a_package_during_which_the_daemon_dies_twice_is_given_up() {
    require!(root, memory, runc, busybox);
    let mut unit = with_a_good_one(Setup::new());
    let good = unit.pid_of("good/subject/0");
    let path = image::write(&unit.path("packages"), "bad.tar", &Package::good().bytes());
    unit.say(&format!("service bad package={}", path.display()));
    unit.say("instance bad");
    unit.say("fault /bad.tar slow=100000");
    unit.say("run");
    let work = unit.path("sm/work");
    let begun = |path: &String| path.contains(".staging-") || path.ends_with(".part");
    for _ in 0..2 {
        wait_until("an install", || host::tree(&work).iter().any(begun));
        unit.kill_daemon();
        unit.look();
        // What is left is removed at the start; then it begins again.
        for left in host::tree(&work).iter().filter(|path| begun(path)) {
            let path = work.join(left);
            let _ = fs::remove_dir_all(&path).or_else(|_| fs::remove_file(&path));
        }
        unit.start_daemon();
    }
    unit.expect("bad/subject/0 version 1.0.0 failed error: cannot install service bad 1.0.0: installation crashed: the");
    assert_eq!(unit.pid_of("good/subject/0"), good);
    // A request tries once more.
    unit.say("fault /bad.tar clear");
    unit.say("run");
    unit.say("wait active");
    unit.stop_daemon();
    unit.nothing_left();
}

#[test]
fn killed_at_any_moment() {
    require!(root, memory, runc, busybox);
    let mut unit = Setup::new().registered();
    unit.service("web", "exec /busybox sleep 10000", "");
    let mut seed = std::process::id();
    for round in 0..8 {
        unit.say("instance web count=6");
        if round % 2 == 1 {
            unit.say("stop web/*/1 web/*/4");
        } else {
            unit.say("run force");
        }
        // Somewhere within the work of this request.
        seed = seed.wrapping_mul(1_103_515_245).wrapping_add(12_345);
        unit.say(&format!("sleep {}ms", seed / 65_536 % 400));
        unit.kill_daemon();
        unit.start_daemon();
        unit.say("wait registered");
        unit.say("run");
        unit.say("wait active");
        each_runs_once(&unit, if round % 2 == 1 { 4 } else { 6 });
    }
    unit.stop_daemon();
    unit.nothing_left();
}

#[test]
fn killed_while_starting() {
    require!(root, memory, runc, busybox);
    // A runtime that says where it is and then waits for a while before and after its work.
    let dir = tempfile::tempdir().unwrap();
    let runc = need::program("runc").unwrap();
    let path = dir.path().join("runtime.sh");
    let at = dir.path().display();
    let script = format!(
        "#!/bin/sh\nfor word in \"$@\"; do case $word in create|start) step=$word;; esac; done\n\
         if [ -n \"$step\" ] && [ -e {at}/slow ]; then >{at}/$step-before; sleep 1; \
         {runc} \"$@\"; code=$?; >{at}/$step-after; sleep 1; exit $code; fi\nexec {runc} \"$@\"\n"
    );
    fs::File::create(&path).unwrap().write_all(script.as_bytes()).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();

    for moment in ["create-before", "create-after", "start-before", "start-after"] {
        for name in host::names(dir.path()).iter().filter(|name| *name != "runtime.sh") {
            fs::remove_file(dir.path().join(name)).unwrap();
        }
        fs::File::create(dir.path().join("slow")).unwrap();
        let mut unit = Setup::new().set("runtime", path.to_str().unwrap()).registered();
        unit.sleeper("one");
        unit.say("run");
        wait_until(moment, || dir.path().join(moment).exists());
        unit.kill_daemon();
        fs::remove_file(dir.path().join("slow")).unwrap();
        unit.start_daemon();
        unit.say("wait registered");
        unit.say("run");
        unit.say("wait active one");
        each_runs_once(&unit, 1);
        // The killed daemon's runtime still works; what it does must not count in the end.
        let runtime = path.to_str().unwrap();
        wait_until("the end of the old runtime", || host::processes_of(runtime).is_empty());
        each_runs_once(&unit, 1);
        unit.say("wait active one");
        unit.say("stop");
        unit.say("wait gone");
        unit.stop_daemon();
        unit.nothing_left();
    }
}

#[test]
fn killed_with_running_instances() {
    require!(root, memory, runc, busybox);
    adopted(Setup::new().registered());
}

#[test]
fn killed_with_running_instances_of_crun() {
    require!(root, memory, crun, busybox);
    adopted(Setup::crun().registered());
}

/// Numbers of fetches that worked and that did not.
fn fetches(unit: &Unit) -> (usize, usize) {
    let record = unit.stored("client/subject/0", "record").unwrap_or_default();
    let count = |word: &str| record.lines().filter(|line| *line == word).count();
    (count("good"), count("lost"))
}

fn adopted(mut unit: Unit) {
    let page = "echo hello >/storage/index.html; exec /busybox httpd -f -p 8080 -h /storage";
    unit.service("web", page, "port=8080/tcp");
    let fetch = "until /busybox timeout 5 /busybox wget -q -O /storage/got http://10.213.0.2:8080/; \
        do /busybox sleep 0.1; done; while :; do \
        if /busybox timeout 5 /busybox wget -q -O /storage/got http://10.213.0.2:8080/; then echo good; \
        else echo lost; fi >>/storage/record; /busybox sleep 0.05; done";
    unit.service("client", fetch, "");
    unit.say("instance web ip=10.213.0.2");
    unit.say("instance client ip=10.213.0.3");
    unit.say("run");
    unit.say("wait active");
    unit.expect_stored("client/subject/0", "record", "good");
    let pids = |unit: &Unit| (unit.pid_of("web/subject/0"), unit.pid_of("client/subject/0"));
    let before = pids(&unit);

    for _ in 0..3 {
        unit.kill_daemon();
        let (good, _) = fetches(&unit);
        wait_until("a fetch without a daemon", || fetches(&unit).0 > good);
        unit.look();
        unit.start_daemon();
        unit.say("wait registered");
        unit.expect("full status: 2 instances");
        unit.expect(" active");
        unit.expect(" active");
        let (good, _) = fetches(&unit);
        wait_until("a fetch with the new daemon", || fetches(&unit).0 > good);
    }
    assert_eq!(pids(&unit), before);
    assert_eq!(fetches(&unit).1, 0, "fetches were lost");
    // The new daemon watches them.
    unit.look();
    aos_servicemanager::sys::pidfd::kill(before.0).unwrap();
    unit.expect("web/subject/0 version 1.0.0 failed error: ");
    unit.expect("web/subject/0 version 1.0.0 active");
    // And stops them.
    unit.say("stop");
    unit.say("wait gone");
    unit.nothing_left();
    unit.stop_daemon();
    unit.nothing_left();
}

#[test]
fn an_instance_that_ended_while_nobody_watched() {
    require!(root, memory, runc, busybox);
    let mut unit = Setup::new().registered();
    unit.sleeper("one");
    unit.sleeper("two");
    unit.say("run");
    unit.say("wait active");
    let (one, two) = (unit.pid_of("one/subject/0"), unit.pid_of("two/subject/0"));
    unit.kill_daemon();
    aos_servicemanager::sys::pidfd::kill(one).unwrap();
    unit.start_daemon();
    unit.say("wait registered");
    unit.say("run");
    unit.say("wait active");
    assert_ne!(unit.pid_of("one/subject/0"), one);
    assert_eq!(unit.pid_of("two/subject/0"), two);
    each_runs_once(&unit, 2);
    unit.stop_daemon();
    unit.nothing_left();
}

#[test]
fn other_hosts_in_the_configuration_restart_what_runs() {
    require!(root, memory, runc, busybox);
    let mut unit = Setup::new().start();
    let set_hosts = |unit: &Unit, ip: &str| {
        let file = unit.config();
        let mut config: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
        config["hosts"] = json!([{"ip": ip, "hostname": "gateway"}]);
        fs::File::create(&file).unwrap().write_all(config.to_string().as_bytes()).unwrap();
    };
    set_hosts(&unit, "10.9.9.1");
    unit.start_daemon();
    unit.say("wait registered");
    let script = "/busybox cat /etc/hosts >/storage/hosts; exec /busybox sleep 10000";
    unit.service("web", script, "");
    unit.say("instance web");
    unit.say("run");
    unit.say("wait active");
    unit.expect_stored("web/subject/0", "hosts", "10.9.9.1\tgateway");
    let pid = unit.pid_of("web/subject/0");
    // The same ones are no change.
    for (ip, stays) in [("10.9.9.1", true), ("10.9.9.2", false)] {
        unit.kill_daemon();
        set_hosts(&unit, ip);
        unit.look();
        unit.start_daemon();
        unit.expect("full status: 1 instances");
        unit.say("wait active");
        unit.expect_stored("web/subject/0", "hosts", &format!("{ip}\tgateway"));
        assert_eq!(unit.pid_of("web/subject/0") == pid, stays, "{ip}");
    }
    unit.stop_daemon();
    unit.nothing_left();
}
