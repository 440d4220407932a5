//! What the thread that unpacks foreign packages may do in the running daemon.

use std::fs;
use std::os::unix::fs::symlink;

use nix::libc;

use crate::common::host;
use crate::common::need::require;
use crate::common::unit::Setup;

/// CHOWN, DAC_OVERRIDE, FOWNER, SYS_ADMIN (for marks of overlayfs) and MKNOD (for whiteouts).
const KEPT: u64 = 1 | 1 << 1 | 1 << 3 | 1 << 21 | 1 << 27;
const CLASS_IDLE: i64 = 3;

/// Name and fields of `status` of all threads of a process.
fn threads(pid: u32) -> Vec<(String, String)> {
    let entries = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let paths = entries.map(|entry| entry.unwrap().path());
    let read = |path: std::path::PathBuf| {
        let name = fs::read_to_string(path.join("comm")).unwrap().trim().to_owned();
        (name, fs::read_to_string(path.join("status")).unwrap())
    };
    paths.map(read).collect()
}

fn field(status: &str, name: &str) -> String {
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    line.unwrap_or_else(|| panic!("no {name}")).trim().to_owned()
}

fn capabilities(status: &str, name: &str) -> u64 {
    u64::from_str_radix(&field(status, name), 16).unwrap()
}

#[test]
fn the_fetch_thread_has_what_unpacking_takes() {
    require!(root, memory, runc, busybox);
    let mut unit = Setup::new().registered();
    unit.sleeper("one");
    unit.say("run");
    unit.say("wait active one");
    let pid = unit.daemon().pid();
    let all = threads(pid);
    let (fetch, others): (Vec<_>, Vec<_>) = all.into_iter().partition(|(name, _)| name == "fetch");
    assert_eq!(fetch.len(), 1);
    let own = &fetch[0].1;
    let before = capabilities(&others[0].1, "CapPrm:");
    assert_eq!(capabilities(own, "CapEff:"), KEPT & before);
    assert_eq!(capabilities(own, "CapPrm:"), KEPT & before);
    assert_eq!(capabilities(own, "CapInh:"), 0);
    for (name, status) in &others {
        assert_eq!(capabilities(status, "CapPrm:"), before, "{name}");
    }
    let thread: libc::c_int = field(own, "Pid:").parse().unwrap();
    // SAFETY: plain numbers.
    #[allow(unsafe_code)]
    let priority = unsafe { libc::syscall(libc::SYS_ioprio_get, 1, thread) };
    assert_eq!(priority >> 13, CLASS_IDLE);
    unit.stop_daemon();
    unit.nothing_left();
}

/// Where the kernel has Landlock, whatever goes wrong while unpacking ends at the store: here it is
/// led to another directory after the start.
#[test]
fn the_fetch_thread_writes_into_the_store_alone() {
    require!(root, memory, runc, busybox);
    let mut unit = Setup::new().registered();
    unit.sleeper("one");
    unit.say("run");
    unit.say("wait active one");
    let lines = unit.daemon().output.all();
    if lines.iter().any(|line| line.contains("not confined by Landlock")) {
        println!("SKIP the_fetch_thread_writes_into_the_store_alone: no Landlock");
        return unit.stop_daemon();
    }
    let one = unit.pid_of("one/subject/0");
    let services = unit.path("sm/work/services");
    let (aside, elsewhere) = (unit.path("aside"), unit.path("elsewhere"));
    fs::rename(&services, &aside).unwrap();
    fs::create_dir(&elsewhere).unwrap();
    symlink(&elsewhere, &services).unwrap();
    unit.sleeper("two");
    unit.look();
    unit.say("run");
    unit.say("wait failed two");
    let line = unit.expect("two/subject/0 version 1.0.0 failed error: ");
    assert!(line.contains("Permission denied"), "{line}");
    assert!(host::names(&elsewhere).is_empty());
    fs::remove_file(&services).unwrap();
    fs::rename(&aside, &services).unwrap();
    unit.say("run");
    unit.say("wait active");
    assert_eq!(unit.pid_of("one/subject/0"), one);
    unit.stop_daemon();
    unit.nothing_left();
}
