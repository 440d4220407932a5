//! What a test needs from the machine: `require!(root, crun)` at its beginning.

/// Returns from the test when the machine lacks something, and says so.
///
/// With `SM_TESTS=all` that is a failure: the test machine is expected to have everything named
/// here. Kernel features that a test platform may lack have macros of their own.
macro_rules! require {
    ($($need:ident),+) => {
        $(if let Err(why) = $crate::common::need::$need() {
            let all = std::env::var_os("SM_TESTS").is_some_and(|tests| tests == "all");
            assert!(!all, "{}: {why}", $crate::common::need::test_name());
            println!("SKIP {}: {why}", $crate::common::need::test_name());
            return;
        })+
    };
}
pub(crate) use require;

/// Returns from the test when this platform has another kernel or layout than the test is about,
/// and says so. `ci/test` runs two platforms and fails for a test that was skipped on both.
macro_rules! on_platform {
    ($($need:ident),+) => {
        $(if let Err(why) = $crate::common::need::$need() {
            println!("SKIP {}: {why}", $crate::common::need::test_name());
            return;
        })+
    };
}
pub(crate) use on_platform;

use std::path::Path;
use std::process::Command;

use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};
use nix::sys::statfs::{TMPFS_MAGIC, statfs};
use nix::unistd::Uid;

use super::space::{Groups, Space};
use super::{host, program};

/// The test's thread has its name.
pub fn test_name() -> String {
    std::thread::current().name().unwrap_or("?").to_owned()
}

/// Namespaces, mounts, control groups.
pub fn root() -> Result<(), String> {
    if Uid::effective().is_root() { Ok(()) } else { Err("not root".to_owned()) }
}

pub fn runc() -> Result<(), String> {
    program("runc").map(drop)
}

pub fn crun() -> Result<(), String> {
    program("crun").map(drop)
}

pub const JOURNALD: &str = "/lib/systemd/systemd-journald";

/// A journal without systemd as the first process.
pub fn journald() -> Result<(), String> {
    if Path::new(JOURNALD).is_file() { Ok(()) } else { Err("no systemd-journald".to_owned()) }
}

/// The services of the tests are made of it.
pub fn busybox() -> Result<(), String> {
    program("busybox").map(drop)
}

/// Shows the system calls of the daemon.
pub fn strace() -> Result<(), String> {
    program("strace").map(drop)
}

/// A token in software, tools that write to it, and OpenSSL's engine for it.
pub fn token() -> Result<(), String> {
    program("softhsm2-util")?;
    program("pkcs11-tool")?;
    let engine = std::env::consts::ARCH;
    let engine = format!("/usr/lib/{engine}-linux-gnu/engines-3/pkcs11.so");
    if Path::new(&engine).exists() { Ok(()) } else { Err(format!("no {engine}")) }
}

/// A file system of its own for the unit, as a product has it.
pub fn memory() -> Result<(), String> {
    match statfs(super::unit::MEMORY) {
        Ok(fs) if fs.filesystem_type() == TMPFS_MAGIC => Ok(()),
        _ => Err(format!("{} is no tmpfs", super::unit::MEMORY)),
    }
}

/// A file system whose server is the test.
pub fn fuse() -> Result<(), String> {
    let known = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
    let known = known.lines().any(|line| line.split_whitespace().last() == Some("fuse"));
    if known && Path::new("/dev/fuse").exists() { Ok(()) } else { Err("no FUSE".to_owned()) }
}

/// Control groups of version 2 and no others.
pub fn pure_v2() -> Result<(), String> {
    match host::hierarchies().as_slice() {
        [only] if only.v2 => Ok(()),
        _ => Err("not control groups of version 2 alone".to_owned()),
    }
}

/// Control groups of version 1, and of version 2 with controllers beside them.
pub fn hybrid() -> Result<(), String> {
    let all = host::hierarchies();
    let controllers = |hierarchy: &host::Hierarchy| {
        let file = hierarchy.mount_point.join("cgroup.controllers");
        std::fs::read_to_string(file).is_ok_and(|text| !text.trim().is_empty())
    };
    let mixed = all.iter().any(|h| !h.v2) && all.iter().any(|h| h.v2 && controllers(h));
    if mixed { Ok(()) } else { Err("control groups of both versions are not mixed".to_owned()) }
}

/// Firewall rules.
pub fn netfilter() -> Result<(), String> {
    let netlink =
        |protocol| socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol);
    netlink(SockProtocol::NetlinkNetFilter).map(drop).map_err(|e| format!("no netfilter: {e}"))
}

/// The opposite of `netfilter`.
pub fn no_netfilter() -> Result<(), String> {
    netfilter().map_or(Ok(()), |()| Err("this kernel has netfilter".to_owned()))
}

/// Interfaces of VLANs.
pub fn vlan() -> Result<(), String> {
    let space = Space::new(Groups::Host);
    let ip = |words: &str| {
        let run = || program::run(Command::new("ip").args(words.split(' ')));
        let (code, _, why) = space.inside(run);
        if code == Some(0) { Ok(()) } else { Err(format!("no VLAN: {why}")) }
    };
    // The loopback interface takes none.
    ip("link add probe0 type veth peer name probe1")?;
    ip("link add link probe0 name probe2 type vlan id 5")
}

/// A wall clock that belongs to nobody else: that of user-mode Linux.
pub fn own_clock() -> Result<(), String> {
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let is_own = cpu.contains("User Mode Linux");
    if is_own { Ok(()) } else { Err("the wall clock is that of the machine".to_owned()) }
}

/// Disk quota of users.
pub fn quota() -> Result<(), String> {
    let dir = tempfile::tempdir_in(super::unit::MEMORY).map_err(|e| e.to_string())?;
    let space = Space::new(Groups::Host);
    let mounted = space.mount_with_quota(&dir.path().join("disk"), &dir.path().join("image"));
    mounted.map_err(|e| format!("no disk quota: {e}"))
}

/// systemd as process 1.
pub fn systemd() -> Result<(), String> {
    let first = std::fs::read_to_string("/proc/1/comm").unwrap_or_default();
    let runs = first.trim() == "systemd" && Path::new("/run/systemd/system").is_dir();
    if runs { Ok(()) } else { Err("process 1 is not systemd".to_owned()) }
}

/// The opposite of `vlan`.
pub fn no_vlan() -> Result<(), String> {
    vlan().map_or(Ok(()), |()| Err("this kernel has VLAN".to_owned()))
}

/// The path of an installed program.
pub fn program(name: &str) -> Result<String, String> {
    let places = ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"];
    let mut paths = places.iter().map(|dir| format!("{dir}/{name}"));
    paths.find(|path| Path::new(path).is_file()).ok_or_else(|| format!("no {name}"))
}
