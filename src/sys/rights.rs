//! What the calling thread may do: capabilities, places it may write to, its share of the disk.
//!
//! Capabilities, Landlock and the I/O priority belong to a thread in Linux, so one thread that works
//! on foreign data can have less than the others. Nothing of it can be taken back.

use std::fs::OpenOptions;
use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::errno::Errno;

/// Capabilities by their number in the kernel.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum Capability {
    Chown = 0,
    DacOverride = 1,
    Fowner = 3,
    /// For `trusted` extended attributes.
    SysAdmin = 21,
    Mknod = 27,
}

#[repr(C)]
struct CapHeader {
    version: u32,
    pid: i32,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct CapData {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

const CAP_VERSION_3: u32 = 0x2008_0522;

/// Gives up all capabilities of the calling thread but these; what it does not have it does not
/// get.
pub fn keep_capabilities(keep: &[Capability]) -> io::Result<()> {
    let wanted = keep.iter().fold(0u32, |mask, one| mask | 1 << (*one as u32));
    let header = CapHeader { version: CAP_VERSION_3, pid: 0 };
    let mut data = [CapData::default(); 2];
    // SAFETY: header and data are what version 3 of the call reads and writes.
    Errno::result(unsafe {
        libc::syscall(libc::SYS_capget, &raw const header, data.as_mut_ptr())
    })?;
    let mask = wanted & data[0].permitted;
    data = [CapData { effective: mask, permitted: mask, inheritable: 0 }, CapData::default()];
    // SAFETY: as above; the call only reads.
    Errno::result(unsafe { libc::syscall(libc::SYS_capset, &raw const header, data.as_ptr()) })?;
    Ok(())
}

const IOPRIO_WHO_PROCESS: libc::c_int = 1;
const IOPRIO_CLASS_IDLE: libc::c_int = 3;
const IOPRIO_CLASS_SHIFT: libc::c_int = 13;

/// The disk serves the calling thread when nobody else wants it, where the scheduler knows that.
pub fn idle_io() -> io::Result<()> {
    let priority = IOPRIO_CLASS_IDLE << IOPRIO_CLASS_SHIFT;
    // SAFETY: plain numbers; 0 is the calling thread.
    Errno::result(unsafe { libc::syscall(libc::SYS_ioprio_set, IOPRIO_WHO_PROCESS, 0, priority) })?;
    Ok(())
}

/// Access rights of Landlock (`linux/landlock.h`).
mod access {
    pub(super) const EXECUTE: u64 = 1 << 0;
    pub(super) const WRITE_FILE: u64 = 1 << 1;
    pub(super) const REMOVE_DIR: u64 = 1 << 4;
    pub(super) const REMOVE_FILE: u64 = 1 << 5;
    pub(super) const MAKE_CHAR: u64 = 1 << 6;
    pub(super) const MAKE_DIR: u64 = 1 << 7;
    pub(super) const MAKE_REG: u64 = 1 << 8;
    pub(super) const MAKE_SOCK: u64 = 1 << 9;
    pub(super) const MAKE_FIFO: u64 = 1 << 10;
    pub(super) const MAKE_BLOCK: u64 = 1 << 11;
    pub(super) const MAKE_SYM: u64 = 1 << 12;
    /// Since version 2; without it nothing can be moved between directories.
    pub(super) const REFER: u64 = 1 << 13;
    /// Since version 3.
    pub(super) const TRUNCATE: u64 = 1 << 14;
}

const GRANTED: u64 = access::WRITE_FILE
    | access::REMOVE_DIR
    | access::REMOVE_FILE
    | access::MAKE_CHAR
    | access::MAKE_DIR
    | access::MAKE_REG
    | access::MAKE_SYM
    | access::REFER;
const REFUSED: u64 = access::EXECUTE | access::MAKE_SOCK | access::MAKE_FIFO | access::MAKE_BLOCK;

#[repr(C)]
struct RulesetAttr {
    handled_access_fs: u64,
}

#[repr(C, packed)]
struct PathBeneathAttr {
    allowed_access: u64,
    parent_fd: i32,
}

const LANDLOCK_CREATE_RULESET_VERSION: u32 = 1;
const LANDLOCK_RULE_PATH_BENEATH: u32 = 1;
/// First version that knows moves between directories.
const MIN_VERSION: i64 = 2;
/// First version that knows truncation.
const TRUNCATE_VERSION: i64 = 3;

/// From now on the calling thread creates, changes and removes files below these directories only,
/// and executes nothing. Reading is not restricted. `false` = this kernel cannot do that.
pub fn write_only_beneath(directories: &[&Path]) -> io::Result<bool> {
    let version = landlock_version();
    if version < MIN_VERSION {
        return Ok(false);
    }
    let granted = GRANTED | if version >= TRUNCATE_VERSION { access::TRUNCATE } else { 0 };
    let attr = RulesetAttr { handled_access_fs: granted | REFUSED };
    // SAFETY: the attribute has the size that is stated and outlives the call.
    let ruleset = Errno::result(unsafe {
        libc::syscall(
            libc::SYS_landlock_create_ruleset,
            &raw const attr,
            size_of::<RulesetAttr>(),
            0,
        )
    })?;
    let ruleset = i32::try_from(ruleset).map_err(|_| io::Error::from(Errno::EBADF))?;
    // SAFETY: the kernel has just made this descriptor for us, closed on exec.
    let ruleset = unsafe { OwnedFd::from_raw_fd(ruleset) };
    for directory in directories {
        let flags = libc::O_PATH | libc::O_DIRECTORY;
        let parent = OpenOptions::new().read(true).custom_flags(flags).open(directory)?;
        let attr = PathBeneathAttr { allowed_access: granted, parent_fd: parent.as_raw_fd() };
        // SAFETY: both descriptors are open, and the attribute outlives the call.
        Errno::result(unsafe {
            libc::syscall(
                libc::SYS_landlock_add_rule,
                ruleset.as_raw_fd(),
                LANDLOCK_RULE_PATH_BENEATH,
                &raw const attr,
                0,
            )
        })?;
    }
    // SAFETY: the descriptor is open.
    Errno::result(unsafe {
        libc::syscall(libc::SYS_landlock_restrict_self, ruleset.as_raw_fd(), 0)
    })?;
    Ok(true)
}

/// Whether `write_only_beneath` can be of effect here.
#[cfg(test)]
pub(crate) fn has_landlock() -> bool {
    landlock_version() >= MIN_VERSION
}

fn landlock_version() -> i64 {
    // SAFETY: with this flag nothing is read.
    unsafe {
        libc::syscall(
            libc::SYS_landlock_create_ruleset,
            std::ptr::null::<RulesetAttr>(),
            0,
            LANDLOCK_CREATE_RULESET_VERSION,
        )
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::sys::thread;

    fn in_thread<T: Send + 'static>(test: impl FnOnce() -> T + Send + 'static) -> T {
        thread::spawn("rights", test).unwrap().join().unwrap()
    }

    fn status(field: &str) -> String {
        let text = fs::read_to_string("/proc/thread-self/status").unwrap();
        let line = text.lines().find(|line| line.starts_with(field)).unwrap();
        line.rsplit('\t').next().unwrap().to_owned()
    }

    #[test]
    fn capabilities_are_given_up_by_one_thread() {
        let before = status("CapEff:");
        let all = u64::from_str_radix(&before, 16).unwrap();
        let [effective, permitted] = in_thread(|| {
            keep_capabilities(&[Capability::Chown, Capability::Mknod]).unwrap();
            // Again: nothing comes back.
            keep_capabilities(&[Capability::Chown, Capability::SysAdmin]).unwrap();
            [status("CapEff:"), status("CapPrm:")]
        });
        let expect = format!("{:016x}", all & 1);
        assert_eq!((effective, permitted), (expect.clone(), expect));
        assert_eq!(status("CapEff:"), before);
    }

    #[test]
    fn the_disk_serves_others_first() {
        let priority = in_thread(|| {
            idle_io().unwrap();
            // SAFETY: plain numbers.
            unsafe { libc::syscall(libc::SYS_ioprio_get, IOPRIO_WHO_PROCESS, 0) }
        });
        assert_eq!(priority >> IOPRIO_CLASS_SHIFT, i64::from(IOPRIO_CLASS_IDLE));
    }

    #[test]
    fn writing_is_confined() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["a/x", "b", "c"] {
            fs::create_dir_all(dir.path().join(name)).unwrap();
        }
        let root = dir.path().to_owned();
        in_thread(move || {
            let (a, b, c) = (root.join("a"), root.join("b"), root.join("c"));
            fs::File::create(c.join("file")).unwrap();
            if !write_only_beneath(&[&a, &b]).unwrap() {
                println!("SKIP writing_is_confined: no Landlock of version {MIN_VERSION}");
                return;
            }
            fs::File::create(a.join("x/file")).unwrap();
            fs::rename(a.join("x/file"), a.join("file")).unwrap();
            std::os::unix::fs::symlink("file", a.join("link")).unwrap();
            fs::hard_link(a.join("file"), a.join("x/hard")).unwrap();
            fs::rename(a.join("file"), b.join("file")).unwrap();
            fs::remove_dir_all(a.join("x")).unwrap();
            let refused = |result: io::Result<()>| {
                assert_eq!(result.unwrap_err().kind(), io::ErrorKind::PermissionDenied);
            };
            refused(fs::File::create(c.join("new")).map(drop));
            refused(OpenOptions::new().write(true).open(c.join("file")).map(drop));
            refused(fs::remove_file(c.join("file")));
            refused(fs::create_dir(root.join("d")));
            refused(
                nix::unistd::mkfifo(&b.join("fifo"), nix::sys::stat::Mode::S_IRUSR)
                    .map_err(io::Error::from),
            );
            assert_eq!(fs::read(c.join("file")).unwrap(), b"");
        });
    }
}
