//! Install and run: what the service sees, what the host and the CM see.

use std::fs;
use std::os::unix::fs::MetadataExt;

use crate::common::host;
use crate::common::need::{self, require};
use crate::common::unit::{Setup, Unit};
use crate::common::wait_until;

/// Serves its storage.
const WEB: &str = "exec /busybox httpd -f -p 8080 -h /storage";
/// Fetches for ever and keeps a record.
const CLIENT: &str = "while :; do if /busybox timeout 5 /busybox wget -q -O /storage/got $URL; \
    then echo good; else echo lost; fi >>/storage/record; /busybox sleep 0.05; done";

/// Two services of one provider that share a layer; one fetches from the other.
fn pair(unit: &mut Unit, compression: &str) {
    let shared = unit.path("shared/opt");
    fs::create_dir_all(&shared).unwrap();
    write(&shared.join("shared.txt"), "from the layer\n");
    let layer = unit.path("shared").display().to_string();
    unit.say(&format!("layer shared {layer} {compression}"));
    let page = "/busybox cat /opt/shared.txt >/storage/index.html";
    let more = format!("layer=shared port=8080/tcp {compression}");
    unit.service("web", &format!("{page}; {WEB}"), &more);
    unit.service(
        "client",
        CLIENT,
        &format!("layer=shared {compression} env=URL=http://10.213.0.2:8080/"),
    );
    unit.say("instance web ip=10.213.0.2");
    unit.say("instance client ip=10.213.0.3");
}

fn write(path: &std::path::Path, content: &str) {
    let mut file = fs::File::create(path).unwrap();
    std::io::Write::write_all(&mut file, content.as_bytes()).unwrap();
}

/// Both run, the traffic flows, the node sees the service, and nothing is left in the end.
fn pair_runs(mut unit: Unit, compression: &str) {
    pair(&mut unit, compression);
    unit.say("run");
    unit.say("wait active");
    unit.expect("full status: 2 instances");
    unit.expect_stored("client/subject/0", "record", "good");
    // It is written anew all the time.
    let got = unit.expect_stored("client/subject/0", "got", "from the layer\n");
    assert_eq!(got, "from the layer\n");
    assert_eq!(unit.get("10.213.0.2:8080", "/").as_deref(), Some("from the layer\n"));
    assert_eq!(unit.groups().len(), 2);
    assert!(unit.groups().iter().all(|(_, pids)| !pids.is_empty()));
    assert_eq!(unit.space.network_namespaces().len(), 2);

    unit.say("stop client");
    unit.say("wait gone client");
    assert_eq!(unit.groups().len(), 1);
    assert_eq!(unit.get("10.213.0.2:8080", "/").as_deref(), Some("from the layer\n"));
    unit.say("stop");
    unit.say("wait gone");
    unit.nothing_left();
    unit.stop_daemon();
    unit.nothing_left();
}

#[test]
fn two_services_over_http_gzip() {
    require!(root, memory, runc, busybox);
    pair_runs(Setup::new().registered(), "");
}

#[test]
fn two_services_from_files_plain() {
    require!(root, memory, runc, busybox);
    pair_runs(Setup::new().flag("--by-file").registered(), "compression=plain");
}

#[test]
fn two_services_with_crun() {
    require!(root, memory, crun, busybox);
    pair_runs(Setup::crun().registered(), "");
}

#[test]
fn a_host_without_separate_file_systems() {
    require!(root, runc, busybox);
    pair_runs(Setup::new().on_plain_disk().registered(), "");
}

#[test]
fn what_a_service_sees() {
    require!(root, memory, runc, busybox);
    let mut unit = Setup::new().registered();
    let script = "/busybox env >/storage/env; /busybox id >/storage/id; \
        echo kept >>/state.dat; /busybox ls -1 / >/storage/root; \
        /busybox cat /etc/hosts >/storage/hosts; /busybox cat /etc/resolv.conf >/storage/dns; \
        /busybox ls /sys/class/net >/storage/links; \
        /busybox cp /proc/self/status /storage/process; \
        if echo x >/file; then echo writable; else echo read-only; fi >/storage/file; \
        echo done >/storage/done; exec /busybox sleep 10000";
    unit.service("web", script, "gid=6007 env=OWN=mine env=AOS_SECRET=forged");
    unit.say("instance web subject=user index=3 uid=7001");
    unit.say("run");
    unit.say("wait active web");
    let instance = "web/user/3";
    unit.expect_stored(instance, "done", "done");

    let id = unit.id_of(instance);
    let env = unit.stored(instance, "env").unwrap();
    for expect in [
        "AOS_SERVICE_ID=web",
        "AOS_SUBJECT_ID=user",
        "AOS_INSTANCE_INDEX=3",
        &format!("AOS_INSTANCE_ID={id}"),
        "OWN=mine",
        "TERM=xterm",
    ] {
        assert!(env.lines().any(|line| line == expect), "{expect} is missing in {env}");
    }
    assert!(unit.stored(instance, "id").unwrap().starts_with("uid=7001 gid=6007"));
    let process = unit.stored(instance, "process").unwrap();
    assert!(process.contains("CapEff:\t0000000000000000"), "{process}");
    assert!(process.contains("NoNewPrivs:\t1"), "{process}");
    assert_eq!(unit.stored(instance, "file").unwrap(), "read-only\n");
    let root = unit.stored(instance, "root").unwrap();
    let names: Vec<_> = root.lines().collect();
    assert!(names.contains(&"busybox") && names.contains(&"usr"), "{names:?}");
    for hidden in ["root", "home", "var", "boot"] {
        assert!(!names.contains(&hidden), "{hidden} is seen: {names:?}");
    }
    let links = unit.stored(instance, "links").unwrap();
    assert_eq!(links.split_whitespace().collect::<Vec<_>>(), ["eth0", "lo"]);
    let hosts = unit.stored(instance, "hosts").unwrap();
    assert!(hosts.lines().any(|line| line == "10.213.0.2\tprovider"), "{hosts}");
    let dns = unit.stored(instance, "dns").unwrap();
    assert_eq!(dns.lines().next(), Some("nameserver\t10.213.0.1"), "{dns}");

    let state = unit.path("sm/states/web_user_3_state.dat");
    assert_eq!(fs::read_to_string(&state).unwrap(), "kept\n");
    let meta = fs::metadata(&state).unwrap();
    assert_eq!((meta.uid(), meta.gid(), meta.mode() & 0o777), (7001, 6007, 0o600));
    let meta = fs::metadata(unit.path("sm/storages/web_user_3")).unwrap();
    assert_eq!((meta.uid(), meta.gid(), meta.mode() & 0o777), (7001, 6007, 0o755));

    // The data of an instance outlive it.
    unit.say("stop");
    unit.say("wait gone");
    assert_eq!(fs::read_to_string(&state).unwrap(), "kept\n");
    unit.nothing_left();
    unit.stop_daemon();
}

#[test]
fn instances_find_each_other_by_name() {
    require!(root, memory, runc, busybox);
    let mut unit = Setup::new().registered();
    unit.service("web", &format!("echo found >/storage/index.html; {WEB}"), "port=8080/tcp");
    let script = "until /busybox nslookup 0.subject.web.provider >/storage/names; do \
            /busybox sleep 0.1; done; \
        until /busybox wget -q -O /storage/got http://subject.web:8080/; do \
            /busybox sleep 0.1; done; \
        echo done >/storage/done; exec /busybox sleep 10000";
    unit.service("client", script, "");
    unit.say("instance web ip=10.213.0.2");
    unit.say("instance client ip=10.213.0.3");
    unit.say("run");
    unit.say("wait active");
    unit.expect_stored("client/subject/0", "done", "done");
    assert_eq!(unit.stored("client/subject/0", "got").unwrap(), "found\n");
    let names = unit.stored("client/subject/0", "names").unwrap();
    assert!(names.contains("10.213.0.1") && names.contains("10.213.0.2"), "{names}");
    unit.stop_daemon();
    unit.nothing_left();
}

#[test]
fn an_instance_without_network_storage_and_state() {
    require!(root, memory, runc, busybox);
    let mut unit = Setup::new().registered();
    unit.service("web", "exec /busybox sleep 10000", "");
    unit.say("instance web ip=none storage=none state=none");
    unit.say("run");
    unit.say("wait active web");
    assert!(!unit.path("sm/states").join("web_subject_0_state.dat").exists());
    assert!(!unit.space.links().iter().any(|link| link.starts_with("ve")));
    unit.stop_daemon();
    unit.nothing_left();
}

#[test]
fn the_runtime_is_found() {
    require!(root, memory, runc, busybox);
    let mut unit = Setup::new().set("runtime", "").registered();
    unit.sleeper("one");
    unit.say("run");
    unit.say("wait active one");
    unit.stop_daemon();
    unit.nothing_left();
}

#[test]
fn a_new_version_keeps_the_id() {
    require!(root, memory, runc, busybox);
    let mut unit = Setup::new().registered();
    unit.service("web", "echo old >/storage/version; exec /busybox sleep 10000", "");
    unit.sleeper("other");
    unit.say("instance web");
    unit.say("run");
    unit.say("wait active");
    let (id, other) = (unit.id_of("web/subject/0"), unit.pid_of("other/subject/0"));
    unit.service("web", "echo new >/storage/version; exec /busybox sleep 10000", "version=1.10.0");
    unit.say("run");
    unit.say("wait active web");
    unit.expect("web/subject/0 version 1.10.0 active");
    unit.expect_stored("web/subject/0", "version", "new");
    assert_eq!(unit.id_of("web/subject/0"), id);
    assert_eq!(unit.pid_of("other/subject/0"), other);
    unit.stop_daemon();
    unit.nothing_left();
}

#[test]
fn the_same_request_again_touches_nothing_and_force_restarts() {
    require!(root, memory, runc, busybox);
    let mut unit = Setup::new().registered();
    unit.sleeper("one");
    unit.say("run");
    unit.say("wait active one");
    let pid = unit.pid_of("one/subject/0");
    unit.say("run");
    unit.say("wait full");
    assert_eq!(unit.pid_of("one/subject/0"), pid);
    unit.say("run force");
    unit.say("wait active one");
    assert_ne!(unit.pid_of("one/subject/0"), pid);
    unit.stop_daemon();
    unit.nothing_left();
}

#[test]
fn a_secret_comes_from_iam() {
    require!(root, memory, runc, busybox);
    let mut unit = Setup::new().registered();
    let busybox = need::program("busybox").unwrap();
    let script = "echo $AOS_SECRET. >>/storage/secret; exec /busybox sleep 10000";
    unit.say(&format!(
        "service web {busybox} entrypoint=/busybox cmd=sh cmd=-c cmd='{script}' \
         config='{{\"permissions\":{{\"vis\":{{\"*\":\"rw\"}}}}}}'"
    ));
    unit.say("instance web");
    unit.sleeper("other");
    unit.say("iam down");
    unit.say("run");
    // It waits for IAM; nobody else does.
    wait_until("the other instance", || unit.groups().iter().any(|(_, pids)| !pids.is_empty()));
    assert_eq!(unit.stored("web/subject/0", "secret"), None);
    unit.say("iam up");
    unit.say("wait active");
    unit.expect("registered web/subject/0 for vis with secret-");
    let first = unit.expect_stored("web/subject/0", "secret", "\n");
    assert!(first.starts_with("secret-"), "{first}");
    // IAM keeps secrets in memory alone: with another one the instance starts again.
    unit.say("iam down");
    unit.say("iam up");
    wait_until("another secret", || {
        let all = unit.stored("web/subject/0", "secret").unwrap_or_default();
        all.lines().count() == 2 && !all.ends_with(&first)
    });
    unit.say("stop web");
    unit.expect("unregistered web/subject/0");
    unit.say("wait gone web");
    unit.stop_daemon();
    unit.nothing_left();
}

#[test]
fn variables_are_replaced_in_a_running_instance() {
    require!(root, memory, runc, busybox);
    let mut unit = Setup::new().registered();
    unit.service(
        "web",
        "echo $COLOUR. >>/storage/colour; exec /busybox sleep 10000",
        "env=COLOUR=red",
    );
    unit.say("instance web");
    unit.say("run");
    unit.say("wait active web");
    unit.expect_stored("web/subject/0", "colour", "red.\n");
    unit.say("env web COLOUR=green");
    unit.say("wait env");
    unit.expect("web/*/* COLOUR ok");
    assert_eq!(unit.expect_stored("web/subject/0", "colour", "green.\n"), "red.\ngreen.\n");
    unit.say("env clear");
    unit.expect_stored("web/subject/0", "colour", "green.\nred.\n");
    unit.stop_daemon();
    unit.nothing_left();
}

#[test]
fn the_output_of_an_instance_is_delivered() {
    require!(root, memory, runc, busybox);
    let mut unit = Setup::new().registered();
    unit.service(
        "web",
        "echo a line of output; echo another one >&2; exec /busybox sleep 10000",
        "",
    );
    unit.say("instance web");
    unit.say("run");
    unit.say("wait active web");
    let mut lines = Vec::new();
    wait_until("output in the log", || {
        unit.look();
        unit.say("logs web");
        unit.say("wait logs");
        lines = unit.seen();
        lines.iter().any(|line| line.contains("another one"))
    });
    assert!(lines.iter().any(|line| line.contains("a line of output")), "{lines:?}");
    unit.stop_daemon();
    unit.nothing_left();
}

/// Descriptors of processes that a process holds.
fn watched(pid: u32) -> usize {
    let dir = std::path::PathBuf::from(format!("/proc/{pid}/fd"));
    let target = |name: &String| fs::read_link(dir.join(name)).unwrap_or_default();
    let names = host::names(&dir);
    names.iter().filter(|name| target(name).to_string_lossy().contains("pidfd")).count()
}

/// Network namespaces that a process holds beside its own.
fn namespaces(pid: u32) -> usize {
    let process = std::path::PathBuf::from(format!("/proc/{pid}"));
    let own = fs::read_link(process.join("ns/net")).unwrap();
    let dir = process.join("fd");
    let target = |name: &String| fs::read_link(dir.join(name)).unwrap_or_default();
    let targets = host::names(&dir).iter().map(target).collect::<Vec<_>>();
    targets.iter().filter(|to| **to != own && to.to_string_lossy().starts_with("net:")).count()
}

/// Threads of a process, but those that gRPC starts and ends as it likes.
fn threads(pid: u32) -> usize {
    const OF_GRPC: [&str; 5] =
        ["default-executo", "resolver-execut", "grpc_global_tim", "event_engine", "timer_manager"];
    let tasks = std::path::PathBuf::from(format!("/proc/{pid}/task"));
    let name = |task: &String| fs::read_to_string(tasks.join(task).join("comm")).ok();
    let names = host::names(&tasks).iter().filter_map(name).collect::<Vec<_>>();
    names.iter().filter(|name| !OF_GRPC.contains(&name.trim())).count()
}

/// What the daemon and the kernel hold for it.
fn holdings(unit: &mut Unit) -> [usize; 5] {
    let pid = unit.daemon().pid();
    [
        host::names(&std::path::PathBuf::from(format!("/proc/{pid}/fd"))).len(),
        threads(pid),
        unit.space.mount_points().len(),
        unit.space.links().len(),
        host::tree(&unit.path("run")).len(),
    ]
}

#[test]
fn starts_and_stops_leave_nothing_behind() {
    require!(root, memory, runc, busybox);
    let mut unit = Setup::new().registered();
    unit.service("web", "exec /busybox sleep 10000", "");
    let mut before = None;
    for _ in 0..4 {
        unit.say("instance web count=16");
        unit.say("run");
        unit.say("wait active");
        assert_eq!(unit.groups().len(), 16);
        unit.say("stop");
        unit.say("wait gone");
        unit.nothing_left();
        // Main lets go of an init when it has reaped it, which nobody waits for.
        let pid = unit.daemon().pid();
        wait_until("the end of all children", || host::children(pid).is_empty());
        wait_until("the end of all watches", || watched(pid) == 0);
        // Those of the instances are let go when nobody comes or goes; then one is made in reserve.
        wait_until("a namespace in reserve", || namespaces(pid) == 1);
        // The first round opens what stays open.
        let before = *before.get_or_insert_with(|| holdings(&mut unit));
        wait_until(&format!("no more than {before:?}"), || {
            holdings(&mut unit).iter().zip(before).all(|(now, before)| *now <= before)
        });
    }
    unit.stop_daemon();
}

#[test]
fn resources_are_measured() {
    require!(root, memory, runc, busybox);
    let mut unit = Setup::new().set("monitoring.pollPeriod", "1s").registered();
    unit.sleeper("one");
    unit.say("run");
    unit.say("wait active one");
    let mut line = String::new();
    wait_until("a figure of the instance", || {
        unit.look();
        unit.say("stats");
        unit.say("wait stats");
        let lines = unit.seen();
        let of_instance = lines.iter().find(|line| line.contains("one/subject/0 ram "));
        line = of_instance.cloned().unwrap_or_default();
        !line.is_empty() && !line.contains(" ram 0 ")
    });
    assert!(line.contains(" cpu "), "{line}");
    unit.stop_daemon();
}
