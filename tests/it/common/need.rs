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

use std::path::Path;

use nix::sys::statfs::{TMPFS_MAGIC, statfs};
use nix::unistd::Uid;

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

/// The path of an installed program.
pub fn program(name: &str) -> Result<String, String> {
    let places = ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"];
    let mut paths = places.iter().map(|dir| format!("{dir}/{name}"));
    paths.find(|path| Path::new(path).is_file()).ok_or_else(|| format!("no {name}"))
}
