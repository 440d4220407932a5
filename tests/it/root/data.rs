//! Data of instances on a file system whose server is silent: FUSE, with nobody who answers.

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::path::Path;

use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::common::need::{self, require};
use crate::common::unit::{QUICK, Setup, Unit};

/// Mounts a file system there that answers nothing until the returned file is closed; then every
/// access fails.
fn silent(unit: &Unit, at: &Path) -> File {
    unit.space.inside(|| {
        let server = File::options().read(true).write(true).open("/dev/fuse").unwrap();
        let data = format!("fd={},rootmode=40000,user_id=0,group_id=0", server.as_raw_fd());
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        mount(Some("silent"), at, Some("fuse"), flags, Some(data.as_str())).unwrap();
        server
    })
}

/// Processes that the daemon has sent to such a file system.
fn errands(daemon: u32) -> Vec<u32> {
    let children = fs::read_to_string(format!("/proc/{daemon}/task/{daemon}/children")).unwrap();
    let children = children.split_whitespace().map(|pid| pid.parse().unwrap());
    let is_errand = |pid: &u32| {
        fs::read(format!("/proc/{pid}/cmdline"))
            .is_ok_and(|line| line.split(|byte| *byte == 0).any(|argument| argument == b"-errand"))
    };
    children.filter(is_errand).collect()
}

#[test]
fn a_silent_server_of_storages_holds_up_nobody_else() {
    require!(root, memory, runc, busybox, fuse);
    let mut unit = Setup::new().registered();
    let busybox = need::program("busybox").unwrap();
    for id in ["remote", "local"] {
        unit.say(&format!(
            "service {id} {busybox} entrypoint=/busybox cmd=sleep cmd=10000 config='{QUICK}'"
        ));
    }
    unit.say("instance remote storage=none state=none");
    unit.say("instance local storage=none state=none");
    unit.say("run");
    unit.say("wait active");
    let storages = unit.path("sm/storages");
    let server = silent(&unit, &storages);
    unit.say("instance remote index=1 state=none");
    unit.say("instance local index=1 storage=none state=none");
    unit.look();
    unit.say("run");
    unit.say("wait active local 30s");
    unit.say("wait active remote/subject/0 30s");
    unit.say("wait failed remote/subject/1 60s");
    unit.expect("the server of its file system is silent");
    // Stops, starts and installs go on.
    unit.say("stop local/subject/1");
    unit.say("wait gone local/subject/1 30s");
    unit.say("instance local index=2 storage=none state=none");
    unit.say(&format!("service late {busybox} entrypoint=/busybox cmd=sleep cmd=10000"));
    unit.say("instance late storage=none state=none");
    unit.say("run");
    unit.say("wait active local 30s");
    unit.say("wait active late 30s");
    // Nobody waits for the server but processes of its own, of which there is one.
    assert!(errands(unit.daemon().pid()).len() <= 1);
    // The server ends: the reason is another one now.
    unit.look();
    drop(server);
    let line = unit.expect("remote/subject/1 version 1.0.0 failed error: ");
    assert!(line.contains("cannot prepare storage directory"), "{line}");
    // It is back, and the next request tries again.
    unit.space.inside(|| umount2(&storages, MntFlags::MNT_DETACH).unwrap());
    unit.say("run");
    unit.say("wait active");
    unit.stop_daemon();
    unit.nothing_left();
}

#[test]
fn a_silent_server_does_not_hold_up_a_start_of_the_daemon() {
    require!(root, memory, runc, busybox, fuse);
    let mut unit = Setup::new().registered();
    let busybox = need::program("busybox").unwrap();
    unit.say(&format!(
        "service local {busybox} entrypoint=/busybox cmd=sleep cmd=10000 config='{QUICK}'"
    ));
    unit.say("instance local storage=none state=none");
    unit.say("run");
    unit.say("wait active");
    let pid = unit.pid_of("local/subject/0");
    unit.kill_daemon();
    let storages = unit.path("sm/storages");
    let server = silent(&unit, &storages);
    unit.start_daemon();
    unit.say("wait registered");
    unit.say("wait active local 30s");
    assert_eq!(unit.pid_of("local/subject/0"), pid);
    drop(server);
    unit.space.inside(|| umount2(&storages, MntFlags::MNT_DETACH).unwrap());
    unit.stop_daemon();
    unit.nothing_left();
}
