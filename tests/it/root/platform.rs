//! What differs from kernel to kernel: layouts of control groups, VLAN, disk quota; and what the
//! daemon owes its instances on each of them.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use aos_servicemanager::sys::fs::write_plain;

use crate::common::host;
use crate::common::need::{self, on_platform, require};
use crate::common::program;
use crate::common::unit::{Setup, Unit};
use crate::common::wait_until;

#[test]
fn crun_alone_on_mixed_control_groups_is_one_clear_error() {
    on_platform!(hybrid);
    require!(root, memory, crun, busybox);
    let crun = need::program("crun").unwrap();
    let mut unit = Setup::new().set("runtime", &crun).registered();
    unit.sleeper_with_one_try("one");
    unit.say("run");
    let line = unit.expect("one/subject/0 version 1.0.0 failed error: start limit reached");
    assert!(line.contains("control groups are mixed and v2 has controllers ("), "{line}");
    assert!(line.contains("mount those as v1, or install runc"), "{line}");
    wait_until("the removal of a failed start", || unit.bundles().is_empty());
    unit.nothing_left();
    let told = unit.daemon().output.all();
    let told = told.iter().filter(|line| line.contains("no instance can run")).count();
    assert_eq!(told, 1);
    unit.stop_daemon();
    unit.nothing_left();
}

/// A group of the freezer in which processes do not even die. Thawed and gone in the end.
struct Ice(PathBuf);

impl Ice {
    /// `None` = the freezer of version 2 lets processes die.
    fn new() -> Option<Self> {
        let is_freezer = |h: &host::Hierarchy| h.options.split(',').any(|o| o == "freezer");
        let freezer = host::hierarchies().into_iter().find(is_freezer)?;
        let group = freezer.mount_point.join(format!(
            "aos-test-{}-{}",
            std::process::id(),
            need::test_name().replace("::", "-")
        ));
        fs::create_dir(&group).unwrap();
        Some(Self(group))
    }

    fn put(&self, name: &str, value: &str) {
        use aos_servicemanager::sys::fs::write_existing;
        write_existing(&self.0.join(name), value).unwrap();
    }

    fn freeze(&self, pid: u32) {
        self.put("cgroup.procs", &pid.to_string());
        self.put("freezer.state", "FROZEN");
        let state = || fs::read_to_string(self.0.join("freezer.state")).unwrap();
        wait_until("a frozen process", || state().trim() == "FROZEN");
    }

    fn thaw(&self) {
        self.put("freezer.state", "THAWED");
    }
}

impl Drop for Ice {
    fn drop(&mut self) {
        self.thaw();
        wait_until("the end of what was frozen", || fs::remove_dir(&self.0).is_ok());
    }
}

#[test]
fn an_instance_that_cannot_be_killed_is_given_up_alone() {
    require!(root, memory, runc, busybox);
    let Some(ice) = Ice::new() else {
        println!("SKIP an_instance_that_cannot_be_killed_is_given_up_alone: no freezer of v1");
        return;
    };
    let mut unit = Setup::new().registered();
    unit.sleeper("stuck");
    unit.sleeper("good");
    unit.say("run");
    unit.say("wait active");
    let pid = |unit: &Unit, who: &str| unit.pid_of(&format!("{who}/subject/0"));
    let (stuck, good) = (pid(&unit, "stuck"), pid(&unit, "good"));
    ice.freeze(stuck);
    unit.look();
    unit.say("run force");
    unit.expect("stuck/subject/0 version 1.0.0 failed error: unkillable");
    unit.say("wait active good");
    assert_ne!(pid(&unit, "good"), good);
    // Nothing was taken away below it, and nothing else waits for it.
    assert_eq!(pid(&unit, "stuck"), stuck);
    unit.sleeper("third");
    unit.say("run");
    unit.say("wait active third");

    ice.thaw();
    wait_until("the end of the killed process", || !Path::new(&format!("/proc/{stuck}")).exists());
    unit.say("run");
    unit.say("wait active");
    assert_ne!(pid(&unit, "stuck"), stuck);
    unit.stop_daemon();
    unit.nothing_left();
}

#[test]
fn left_overs_that_cannot_be_killed_do_not_keep_the_rest_from_running() {
    require!(root, memory, runc, busybox);
    let Some(ice) = Ice::new() else {
        println!(
            "SKIP left_overs_that_cannot_be_killed_do_not_keep_the_rest_from_running: no freezer \
             of v1"
        );
        return;
    };
    let mut unit = Setup::new().registered();
    unit.service("web", "exec /busybox sleep 10000", "");
    unit.say("instance web count=4");
    unit.say("run");
    unit.say("wait active");
    let stuck = unit.pid_of("web/subject/3");
    unit.kill_daemon();
    ice.freeze(stuck);
    // Without records nobody knows them.
    for id in unit.bundles() {
        fs::remove_file(unit.path("run/runtime").join(&id).join("record.json")).unwrap();
    }
    unit.look();
    unit.start_daemon();
    unit.say("wait registered");
    unit.expect("web/subject/3 version 1.0.0 failed error: unkillable");
    unit.say("wait active web/*/0");
    unit.say("wait active web/*/1");
    unit.say("wait active web/*/2");
    unit.kill_daemon();
    assert_eq!(unit.run_to_end(&["-stop-instances"]).0, Some(0));
    let groups = unit.groups();
    assert_eq!(groups.len(), 1, "{groups:?}");
    ice.thaw();
    wait_until("the end of the killed process", || !Path::new(&format!("/proc/{stuck}")).exists());
    assert_eq!(unit.run_to_end(&["-stop-instances"]).0, Some(0));
    unit.nothing_left();
}

/// Control file of an instance.
fn control_file(unit: &Unit, instance: &str, controller: &str, v1: &str, v2: &str) -> PathBuf {
    let all = host::hierarchies();
    let has = |h: &&host::Hierarchy| !h.v2 && h.options.split(',').any(|o| o == controller);
    let (hierarchy, name) = match all.iter().find(has) {
        Some(hierarchy) => (hierarchy, v1),
        None => (all.iter().find(|h| h.v2).unwrap(), v2),
    };
    let leaf = format!("aos-service@{}.service", unit.id_of(instance));
    hierarchy.mount_point.join(unit.parent_group().trim_start_matches('/')).join(leaf).join(name)
}

fn lost_limits_come_back(mut unit: Unit) {
    let busybox = need::program("busybox").unwrap();
    let config = r#"config='{"quotas":{"ramLimit":33554432,"cpuLimit":5000,"pidsLimit":17}}'"#;
    unit.say(&format!("service web {busybox} entrypoint=/busybox cmd=sleep cmd=10000 {config}"));
    unit.say("instance web");
    unit.say("run");
    unit.say("wait active web");
    let who = "web/subject/0";
    let memory = control_file(&unit, who, "memory", "memory.limit_in_bytes", "memory.max");
    let pids = control_file(&unit, who, "pids", "pids.max", "pids.max");
    let cpu = control_file(&unit, who, "cpu", "cpu.cfs_quota_us", "cpu.max");
    let values =
        || [&memory, &pids, &cpu].map(|f| fs::read_to_string(f).unwrap().trim().to_owned());
    let set = values();
    assert_eq!([&set[0], &set[1]], ["33554432", "17"]);
    assert!(!set[2].starts_with("max") && !set[2].starts_with('-'), "{set:?}");

    unit.kill_daemon();
    let is_v2 = memory.ends_with("memory.max");
    for (file, none) in [(&memory, "-1"), (&pids, "max"), (&cpu, "-1")] {
        let none = if is_v2 { "max" } else { none };
        aos_servicemanager::sys::fs::write_existing(file, none).unwrap();
    }
    assert_ne!(values(), set);
    let pid = unit.pid_of(who);
    unit.start_daemon();
    unit.say("wait registered");
    unit.say("wait active web");
    assert_eq!(unit.pid_of(who), pid, "adopted");
    assert_eq!(values(), set);
    for file in ["memory.", "pids.max", "cpu."] {
        unit.expect_log(&format!("file={file}"));
    }
    unit.stop_daemon();
    unit.nothing_left();
}

#[test]
fn limits_that_were_lost_come_back_with_the_next_life() {
    require!(root, memory, runc, busybox);
    lost_limits_come_back(Setup::new().registered());
}

/// Fields of `/proc/<pid>/status`.
fn status(pid: u32) -> BTreeMap<String, String> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let field = |line: &str| {
        let (name, value) = line.split_once(':')?;
        Some((name.to_owned(), value.trim().to_owned()))
    };
    text.lines().filter_map(field).collect()
}

fn nothing_is_inherited(setup: Setup) {
    let mut unit = setup.start();
    // A daemon that has more, and less, than an instance should have.
    unit.start_daemon_with(&[("AOS_TEST_LEAK", "x")]);
    unit.say("wait registered");
    let daemon = unit.daemon().pid();
    unit.sleeper("one");
    unit.say("run");
    unit.say("wait active one");
    let pid = unit.pid_of("one/subject/0");
    let program = || fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap();
    wait_until("the program of the service", || program().ends_with("sleep\0\x310000\0"));
    let (of_init, of_daemon) = (status(pid), status(daemon));
    assert_eq!(of_init["SigBlk"], "0".repeat(16));
    assert_eq!(of_init["Umask"], "0022");
    assert_eq!(of_init["Cpus_allowed"], of_daemon["Cpus_allowed"]);
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let nice = text.rsplit(") ").next().unwrap().split(' ').nth(16).unwrap();
    assert_eq!(nice, "0");
    assert_eq!(host::names(Path::new(&format!("/proc/{pid}/fd"))), ["0", "1", "2"]);
    let score = |pid: u32| -> i32 {
        let text = fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).unwrap();
        text.trim().parse().unwrap()
    };
    assert_eq!(score(pid), score(daemon).max(0));
    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    let files = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    assert_eq!(files.split_whitespace().skip(3).take(2).collect::<Vec<_>>(), ["1024", "1024"]);
    let environment = fs::read_to_string(format!("/proc/{pid}/environ")).unwrap();
    let names: Vec<_> =
        environment.split('\0').filter_map(|v| Some(v.split_once('=')?.0)).collect();
    let known = ["PATH", "TERM", "HOME", "PWD", "SHLVL", "OLDPWD", "HOSTNAME"];
    let strange: Vec<_> =
        names.iter().filter(|n| !known.contains(n) && !n.starts_with("AOS_")).collect();
    assert!(strange.is_empty() && !names.contains(&"AOS_TEST_LEAK"), "{names:?}");
    unit.stop_daemon();
    unit.nothing_left();
}

#[test]
fn an_instance_inherits_nothing_from_the_daemon() {
    require!(root, memory, runc, busybox);
    nothing_is_inherited(Setup::new());
}

#[test]
fn an_instance_of_crun_inherits_nothing_from_the_daemon() {
    require!(root, memory, crun, busybox);
    nothing_is_inherited(Setup::crun());
}

fn system_calls_are_filtered(setup: Setup) {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("profile.json");
    // Other architectures would cost time at each start, and are left out.
    let profile = r#"{"defaultAction":"SCMP_ACT_ALLOW",
        "architectures":["SCMP_ARCH_X86_64","SCMP_ARCH_X86","SCMP_ARCH_X32","SCMP_ARCH_AARCH64"],
        "syscalls":[{"names":["mkdir","mkdirat"],"action":"SCMP_ACT_ERRNO"}]}"#;
    write_plain(&file, profile.as_bytes(), 0o600).unwrap();
    let mut unit = setup.set("seccompProfile", file.to_str().unwrap()).registered();
    let script = "/busybox mkdir /storage/dir; echo code $? >/storage/said; \
        exec /busybox sleep 10000";
    unit.service("web", script, "");
    unit.say("instance web");
    unit.say("run");
    unit.say("wait active web");
    assert_eq!(unit.expect_stored("web/subject/0", "said", "\n"), "code 1\n");
    let status = status(unit.pid_of("web/subject/0"));
    assert_eq!((&*status["Seccomp"], &*status["NoNewPrivs"]), ("2", "1"));
    let bundle = unit.path("run/runtime").join(unit.id_of("web/subject/0"));
    let config = fs::read_to_string(bundle.join("config.json")).unwrap();
    assert_eq!(config.matches("SCMP_ARCH_").count(), 1);
    unit.stop_daemon();
    unit.nothing_left();
}

#[test]
fn system_calls_are_filtered_with_runc() {
    require!(root, memory, runc, busybox);
    system_calls_are_filtered(Setup::new());
}

#[test]
fn system_calls_are_filtered_with_crun() {
    require!(root, memory, crun, busybox);
    system_calls_are_filtered(Setup::crun());
}

/// Voluntary switches of the main thread and of those that start, stop and decide.
fn switches(daemon: u32) -> BTreeMap<String, String> {
    let tasks = PathBuf::from(format!("/proc/{daemon}/task"));
    let mut found = BTreeMap::new();
    for task in host::names(&tasks) {
        let read = |file: &str| fs::read_to_string(tasks.join(&task).join(file)).unwrap();
        let name = read("comm").trim().to_owned();
        if task == daemon.to_string() || ["core", "exec-1", "exec-2", "net"].contains(&&*name) {
            let status = read("status");
            let count = status.lines().find(|line| line.starts_with("voluntary_ctxt_switches"));
            found.insert(name, count.unwrap().to_owned());
        }
    }
    found
}

/// While instances just run, nothing wakes up but what samples and collects output: sampling asks
/// net, which tells core, so the test makes it rare.
fn nothing_wakes(daemon: u32) {
    const WINDOW: Duration = Duration::from_secs(10);
    assert_eq!(switches(daemon).len(), 5, "{:?}", switches(daemon));
    let mut last = (BTreeMap::new(), BTreeMap::new());
    for _ in 0..6 {
        let before = switches(daemon);
        std::thread::sleep(WINDOW);
        last = (before, switches(daemon));
        if last.0 == last.1 {
            return;
        }
    }
    panic!("threads that have nothing to do wake up: {last:?}");
}

#[test]
fn sixty_four_instances_come_and_go() {
    require!(root, memory, runc, busybox);
    let mut unit = Setup::new().set("monitoring.pollPeriod", "10m").registered();
    unit.service("web", "exec /busybox sleep 10000", "");
    let points = unit.space.mount_points();
    let count = 64;
    unit.say(&format!("instance web count={count}"));
    unit.say("run");
    unit.say("wait active 120s");
    let groups = unit.groups();
    assert_eq!(groups.len(), count);
    assert!(groups.iter().all(|(_, pids)| !pids.is_empty()), "{groups:?}");
    // Every child is an init: no runtime, nothing dead.
    let inits: Vec<u32> = groups.iter().flat_map(|(_, pids)| pids.clone()).collect();
    let children = host::children(unit.daemon().pid());
    assert_eq!(children.len(), count);
    assert!(children.iter().all(|pid| inits.contains(pid)), "{children:?} {inits:?}");
    assert!(children.iter().all(|pid| !status(*pid)["State"].starts_with('Z')));
    nothing_wakes(unit.daemon().pid());
    unit.say("stop");
    unit.say("wait gone 120s");
    unit.nothing_left();
    // Main lets go of an init when it has reaped it, which nobody waits for.
    let pid = unit.daemon().pid();
    wait_until("the end of all children", || host::children(pid).is_empty());
    assert_eq!(unit.space.mount_points(), points);
    unit.stop_daemon();
    unit.nothing_left();
}

/// A way out for VLANs; the names of the unit's links and the text about the VLAN.
fn with_vlan(unit: &mut Unit) -> String {
    let ip = |unit: &Unit, arguments: &str| {
        let words = arguments.split(' ');
        let (code, text, error) =
            unit.space.inside(|| program::run(Command::new("ip").args(words)));
        assert_eq!(code, Some(0), "{arguments}: {error}");
        text
    };
    ip(unit, "link add up0 type veth peer name far0");
    ip(unit, "link set up0 mtu 1400 up");
    ip(unit, "link set far0 up");
    unit.start_daemon();
    unit.say("wait registered");
    unit.say("network provider 10.213.0.0/24 10.213.0.1 vlan=7");
    let script = "/busybox cat /sys/class/net/eth0/mtu >/storage/mtu; exec /busybox sleep 10000";
    unit.service("web", script, "");
    unit.say("instance web ip=10.213.0.2");
    unit.say("run");
    unit.say("wait active web");
    ip(unit, "-d link show")
}

#[test]
fn a_network_between_nodes_is_a_vlan() {
    on_platform!(vlan);
    require!(root, memory, runc, busybox);
    let mut unit = Setup::new().set("network.vlanParent", "up0").start();
    let links = with_vlan(&mut unit);
    let vlan = unit.space.links().into_iter().find(|name| name.starts_with("vlan-"));
    let vlan = vlan.unwrap_or_else(|| panic!("no VLAN: {links}"));
    let text = links.split_once(&format!("{vlan}@up0")).unwrap().1;
    for expect in ["mtu 1400", "master br-provider", "vlan protocol 802.1Q id 7 "] {
        assert!(text.contains(expect), "{expect}: {text}");
    }
    assert_eq!(unit.expect_stored("web/subject/0", "mtu", "\n"), "1400\n");
    // It comes back with its way out.
    let delete = ["link", "delete", "up0"];
    unit.space.inside(|| Command::new("ip").args(delete).status()).unwrap();
    let has_vlan = |unit: &Unit| unit.space.links().iter().any(|name| name.starts_with("vlan-"));
    wait_until("the end of the VLAN", || !has_vlan(&unit));
    let again = "link add up0 type veth peer name far0";
    unit.space.inside(|| Command::new("ip").args(again.split(' ')).status()).unwrap();
    unit.space.inside(|| Command::new("ip").args(["link", "set", "up0", "up"]).status()).unwrap();
    wait_until("another VLAN", || has_vlan(&unit));
    unit.say("stop");
    unit.say("wait gone");
    unit.nothing_left();
    unit.stop_daemon();
}

#[test]
fn a_network_without_vlan_works_on_this_node() {
    on_platform!(no_vlan);
    require!(root, memory, runc, busybox);
    let mut unit = Setup::new().set("network.vlanParent", "up0").start();
    with_vlan(&mut unit);
    unit.expect_log("no networks between nodes: kernel lacks 8021q (VLAN)");
    let told = unit.daemon().output.all();
    assert_eq!(told.iter().filter(|line| line.contains("8021q")).count(), 1, "said once");
    assert!(unit.space.links().contains(&"br-provider".to_owned()));
    unit.expect_stored("web/subject/0", "mtu", "\n");
    unit.stop_daemon();
    unit.nothing_left();
}

/// The figure of an instance for one of its partitions, from the newest averages.
fn disk_figure(unit: &mut Unit, instance: &str, partition: &str) -> Option<u64> {
    unit.look();
    unit.say("stats");
    unit.say("wait stats");
    let lines = unit.seen();
    let line = lines.iter().rev().find(|line| line.contains(&format!("{instance} ram ")))?;
    let rest = line.split_once(&format!(" {partition} "))?.1;
    rest.split(' ').next()?.parse().ok()
}

#[test]
fn disk_use_is_measured_where_quota_is_kept() {
    on_platform!(quota);
    require!(root, memory, runc, busybox);
    let setup = Setup::new().set("monitoring.pollPeriod", "1s");
    let mut unit = setup.set("monitoring.averageWindow", "1s").quota("sm/storages").registered();
    let script = "/busybox dd if=/dev/zero of=/storage/data bs=1024 count=2048; \
        exec /busybox sleep 10000";
    unit.service("big", script, "");
    unit.sleeper("small");
    unit.say("instance big");
    unit.say("run");
    unit.say("wait active");
    wait_until("the figure of the big one", || {
        disk_figure(&mut unit, "big/subject/0", "storage").is_some_and(|bytes| bytes >= 2 << 20)
    });
    // Another uid: its directory and nothing else.
    let small = disk_figure(&mut unit, "small/subject/0", "storage").unwrap();
    assert!(small < 1 << 20, "{small}");
    // The other partition keeps none, and that is said once, whatever is mounted later.
    assert_eq!(disk_figure(&mut unit, "big/subject/0", "state"), Some(0));
    let told = unit.daemon().output.all();
    let told: Vec<_> = told.iter().filter(|line| line.contains("no user quota")).collect();
    assert_eq!(told.len(), 1, "{told:?}");
    unit.stop_daemon();
    unit.nothing_left();
}

#[test]
fn disk_use_is_unknown_where_no_quota_is_kept() {
    require!(root, memory, runc, busybox);
    let setup = Setup::new().set("monitoring.pollPeriod", "1s");
    let mut unit = setup.set("monitoring.averageWindow", "1s").registered();
    unit.sleeper("one");
    unit.say("run");
    unit.say("wait active one");
    let line = unit.expect_log("no user quota, disk use of instances is reported as 0");
    assert!(line.contains("level=warning"), "{line}");
    wait_until("a figure", || disk_figure(&mut unit, "one/subject/0", "storage") == Some(0));
    unit.sleeper("two");
    unit.say("run");
    unit.say("wait active two");
    wait_until("a figure", || disk_figure(&mut unit, "two/subject/0", "storage") == Some(0));
    let told = unit.daemon().output.all();
    let told: Vec<_> = told.iter().filter(|line| line.contains("no user quota")).collect();
    // Both directories are on one file system.
    assert_eq!(told.len(), 1, "{told:?}");
    unit.stop_daemon();
    unit.nothing_left();
}

#[test]
fn a_kernel_without_firewall_runs_nothing_unfiltered() {
    on_platform!(no_netfilter);
    require!(root, memory, crun, busybox);
    let mut unit = Setup::new().set("network.firewall", "nft").registered();
    unit.sleeper("one");
    unit.say("instance one index=1 ip=none");
    unit.say("run");
    unit.say("wait failed one/*/0");
    let line = unit.expect("one/subject/0 version 1.0.0 failed error: ");
    assert!(line.contains("kernel lacks nf_tables"), "{line}");
    // What has no network needs no rules.
    unit.say("wait active one/*/1");
    unit.stop_daemon();
    unit.nothing_left();
}
