//! Mounts: read-only overlays, tmpfs, binds, and the table of what is mounted.

use std::ffi::{CStr, CString};
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::Mode;

use crate::sys::retry;

/// Longest text that `fsconfig` takes as a value.
const VALUE_MAX: usize = 255;

/// Longest data of the classic mount call, which cuts it silently.
const DATA_MAX: usize = 4095;

const FSOPEN_CLOEXEC: libc::c_uint = 1;
const FSMOUNT_CLOEXEC: libc::c_uint = 1;
const FSCONFIG_SET_STRING: libc::c_uint = 1;
const FSCONFIG_CMD_CREATE: libc::c_uint = 6;
const MOUNT_ATTR_NOSUID: libc::c_uint = 2;
const MOUNT_ATTR_NODEV: libc::c_uint = 4;
const MOUNT_ATTR_RDONLY: u64 = 1;
const MS_PRIVATE: u64 = 1 << 18;
const OPEN_TREE_CLONE: libc::c_uint = 1;
const MOVE_MOUNT_F_EMPTY_PATH: libc::c_uint = 4;

/// Mounts a read-only overlay, `nosuid` and `nodev`. The first of `lower` hides the later ones;
/// the kernel wants at least two. Works with any number of layers and any path.
pub fn overlay(lower: &[&Path], target: &Path) -> io::Result<()> {
    let layers = Layers::open(lower)?;
    if overlay_takes_single_layers() {
        overlay_new(&layers, target)
    } else {
        overlay_classic(&layers, target)
    }
}

/// The layers, held open.
struct Layers {
    /// As the table of mounts shall show them, or the short name where that could not be passed.
    names: Vec<CString>,
    /// Short and free of what needs escaping: a descriptor each, named below `/proc`.
    short_names: Vec<CString>,
    /// What the short names lead to.
    _open: Vec<OwnedFd>,
}

impl Layers {
    fn open(lower: &[&Path]) -> io::Result<Self> {
        let mut layers = Self { names: Vec::new(), short_names: Vec::new(), _open: Vec::new() };
        for path in lower {
            let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
            let fd = retry(|| open(*path, flags, Mode::empty()))?;
            let short_name = CString::new(format!("/proc/self/fd/{}", fd.as_raw_fd()))?;
            let path = CString::new(path.as_os_str().as_encoded_bytes())?;
            let special = path.to_bytes().iter().any(|byte| b":,\\".contains(byte));
            let plain = !special && path.count_bytes() <= VALUE_MAX;
            layers.names.push(if plain { path } else { short_name.clone() });
            layers.short_names.push(short_name);
            layers._open.push(fd);
        }
        Ok(layers)
    }
}

/// By `fsopen`, layer by layer.
fn overlay_new(layers: &Layers, target: &Path) -> io::Result<()> {
    let context = fs_open(c"overlay")?;
    for name in &layers.names {
        fs_set(&context, c"lowerdir+", name).map_err(|error| explained(&context, error))?;
    }
    fs_create(&context).map_err(|error| explained(&context, error))?;
    let mounted = fs_mount(&context, MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV)?;
    move_mount(&mounted, target)
}

/// By `mount`, whose data are cut at one page.
fn overlay_classic(layers: &Layers, target: &Path) -> io::Result<()> {
    let mut data = b"lowerdir=".to_vec();
    for name in &layers.short_names {
        data.extend_from_slice(name.to_bytes());
        data.push(b':');
    }
    data.pop();
    if data.len() > DATA_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "too many layers"));
    }
    let data = CString::new(data)?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_RDONLY;
    mount(Some(c"overlay"), target, Some(c"overlay"), flags, Some(data.as_c_str()))
        .map_err(io::Error::from)
}

/// True when the kernel can stack directories at all; loads the module if there is one.
pub fn has_overlay() -> bool {
    let listed =
        || fs::read_to_string("/proc/filesystems").is_ok_and(|l| l.contains("\toverlay\n"));
    listed() || fs_open(c"overlay").is_ok()
}

/// True when the kernel takes layers one by one (`lowerdir+`, Linux 6.8). Asked once.
pub fn overlay_takes_single_layers() -> bool {
    static ANSWER: OnceLock<bool> = OnceLock::new();
    // Before the file system knew the new calls they took every option, and it complained in the
    // kernel log when the mount was made: only those that refuse nonsense mean what they say.
    let ask = || {
        let context = fs_open(c"overlay")?;
        fs_set(&context, c"lowerdir+", c"/")?;
        Ok::<bool, io::Error>(fs_set(&context, c"no-such-option", c"x").is_err())
    };
    *ANSWER.get_or_init(|| ask().unwrap_or(false))
}

/// Logs what the kernel says about a failed step; the errno alone is often misleading.
fn explained(context: &OwnedFd, error: io::Error) -> io::Error {
    let mut buffer = [0; 512];
    while let Ok(length) = nix::unistd::read(context, &mut buffer) {
        let text = String::from_utf8_lossy(&buffer[..length]);
        log::warn!("kernel refuses a mount err={error} message={}", text.trim());
    }
    error
}

fn fs_open(kind: &CStr) -> io::Result<OwnedFd> {
    owned(|| {
        // SAFETY: `kind` is a terminated string that outlives the call.
        unsafe { libc::syscall(libc::SYS_fsopen, kind.as_ptr(), FSOPEN_CLOEXEC) }
    })
}

fn fs_set(context: &OwnedFd, key: &CStr, value: &CStr) -> io::Result<()> {
    debug_assert!(value.count_bytes() <= VALUE_MAX, "the kernel would refuse the value");
    let fd = context.as_raw_fd();
    retry(|| {
        // SAFETY: `key` and `value` are terminated strings that outlive the call.
        Errno::result(unsafe {
            libc::syscall(
                libc::SYS_fsconfig,
                fd,
                FSCONFIG_SET_STRING,
                key.as_ptr(),
                value.as_ptr(),
                0,
            )
        })
    })?;
    Ok(())
}

fn fs_create(context: &OwnedFd) -> io::Result<()> {
    let (fd, none) = (context.as_raw_fd(), std::ptr::null::<libc::c_char>());
    // SAFETY: this command takes no key and no value, null is what it wants.
    Errno::result(unsafe {
        libc::syscall(libc::SYS_fsconfig, fd, FSCONFIG_CMD_CREATE, none, none, 0)
    })?;
    Ok(())
}

fn fs_mount(context: &OwnedFd, attributes: libc::c_uint) -> io::Result<OwnedFd> {
    let fd = context.as_raw_fd();
    owned(|| {
        // SAFETY: numbers only; the descriptor is open.
        unsafe { libc::syscall(libc::SYS_fsmount, fd, FSMOUNT_CLOEXEC, attributes) }
    })
}

/// A read-only mount of `dir` that only the descriptor leads to: it is in no table of mounts, and
/// gone with the descriptor. What is mounted below `dir` is not in it. Since Linux 5.12.
pub fn read_only_view(dir: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(dir.as_os_str().as_encoded_bytes())?;
    let flags = OPEN_TREE_CLONE | libc::O_CLOEXEC.cast_unsigned();
    let view = owned(|| {
        // SAFETY: `path` is a terminated string that outlives the call.
        unsafe { libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, path.as_ptr(), flags) }
    })?;
    let mut attributes = libc::mount_attr {
        attr_set: MOUNT_ATTR_RDONLY,
        attr_clr: 0,
        propagation: MS_PRIVATE,
        userns_fd: 0,
    };
    // SAFETY: the empty string together with the flag names the open descriptor; the kernel reads
    // as many bytes of `attributes` as it is told.
    Errno::result(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            view.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw mut attributes,
            size_of::<libc::mount_attr>(),
        )
    })?;
    Ok(view)
}

fn move_mount(mounted: &OwnedFd, target: &Path) -> io::Result<()> {
    let fd = mounted.as_raw_fd();
    let target = CString::new(target.as_os_str().as_encoded_bytes())?;
    // SAFETY: both strings are terminated and outlive the call; the empty one together with the
    // flag names the descriptor itself.
    Errno::result(unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            fd,
            c"".as_ptr(),
            libc::AT_FDCWD,
            target.as_ptr(),
            MOVE_MOUNT_F_EMPTY_PATH,
        )
    })?;
    Ok(())
}

/// Result of a system call that creates a descriptor.
fn owned(mut call: impl FnMut() -> libc::c_long) -> io::Result<OwnedFd> {
    let fd = retry(|| Errno::result(call()))?;
    let fd = i32::try_from(fd).map_err(|_| io::ErrorKind::InvalidData)?;
    // SAFETY: the kernel has just created this descriptor for us and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Mounts a tmpfs, `nosuid` and `nodev`; `size_bytes` `None` = the kernel's default of half the
/// memory.
pub fn tmpfs(target: &Path, size_bytes: Option<u64>, mode: u32) -> io::Result<()> {
    let mut data = format!("mode={mode:o}");
    if let Some(size) = size_bytes {
        data.push_str(&format!(",size={size}"));
    }
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(Some("tmpfs"), target, Some("tmpfs"), flags, Some(data.as_str())).map_err(io::Error::from)
}

/// Shows `source` at `target` too, without the mounts below it.
pub fn bind(source: &Path, target: &Path) -> io::Result<()> {
    mount(Some(source), target, None::<&str>, MsFlags::MS_BIND, None::<&str>)
        .map_err(io::Error::from)
}

/// Shows `source` at `target` too, read-only there.
pub fn bind_read_only(source: &Path, target: &Path) -> io::Result<()> {
    bind(source, target)?;
    let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
    mount(None::<&str>, target, None::<&str>, flags, None::<&str>).map_err(|errno| {
        // The first error is the one that matters.
        let _ = unmount(target);
        io::Error::from(errno)
    })
}

/// Unmounts what is on top at `target`, lazily if it is in use. Nothing mounted there, or no such
/// path, is success.
pub fn unmount(target: &Path) -> io::Result<()> {
    let plain = umount2(target, MntFlags::UMOUNT_NOFOLLOW);
    let result = match plain {
        Err(Errno::EBUSY) => umount2(target, MntFlags::UMOUNT_NOFOLLOW | MntFlags::MNT_DETACH),
        other => other,
    };
    match result {
        Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

/// Unmounts what is on top at `target` and all that is mounted on it, at once; what is still in use
/// goes when it no longer is. Nothing mounted there, or no such path, is success.
pub fn detach(target: &Path) -> io::Result<()> {
    match umount2(target, MntFlags::UMOUNT_NOFOLLOW | MntFlags::MNT_DETACH) {
        Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

/// Unmounts everything at or below `dir`, the newest first. Goes on after an error and returns
/// the first one.
pub fn unmount_below(dir: &Path) -> io::Result<()> {
    let mut result = Ok(());
    for entry in mounts()?.iter().rev().filter(|entry| entry.target.starts_with(dir)) {
        result = result.and(unmount(&entry.target));
    }
    result
}

/// One line of `/proc/thread-self/mountinfo`.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Mounted {
    pub id: u64,
    pub parent: u64,
    /// Directory of the file system that is the root of this mount.
    pub root: PathBuf,
    pub target: PathBuf,
    /// Of this mount, such as `rw,nosuid`.
    pub options: String,
    pub kind: String,
    pub source: String,
    /// Of the file system; names the controllers of a cgroup hierarchy.
    pub super_options: String,
}

/// All mounts of the calling thread's namespace, in the order of the kernel: a mount comes after
/// those it lies on.
pub fn mounts() -> io::Result<Vec<Mounted>> {
    let content = fs::read("/proc/thread-self/mountinfo")?;
    let lines = content.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    Ok(lines.filter_map(parse_mount).collect())
}

/// The mount that holds `path`, which must be absolute and free of symbolic links.
pub fn mount_of(path: &Path) -> io::Result<Option<Mounted>> {
    let mut best: Option<Mounted> = None;
    for entry in mounts()? {
        let longer = |best: &Mounted| entry.target.starts_with(&best.target);
        if path.starts_with(&entry.target) && best.as_ref().is_none_or(longer) {
            best = Some(entry);
        }
    }
    Ok(best)
}

/// Whether `path` lies on a file system whose server may be silent, so that whoever touches it may
/// wait for ever. Asks the table of mounts alone.
pub fn is_remote(path: &Path) -> bool {
    mount_of(path).ok().flatten().is_some_and(|mounted| is_remote_kind(&mounted.kind))
}

/// Whether file systems of this kind have a server.
pub fn is_remote_kind(kind: &str) -> bool {
    kind.starts_with("nfs")
        || kind == "fuse"
        || kind.starts_with("fuse.")
        || ["cifs", "smb3", "9p", "ceph"].contains(&kind)
}

fn parse_mount(line: &[u8]) -> Option<Mounted> {
    let mut fields = line.split(|byte| *byte == b' ');
    let number = |field: &[u8]| std::str::from_utf8(field).ok()?.parse().ok();
    let text = |field: &[u8]| String::from_utf8_lossy(&unescape(field)).into_owned();
    let path = |field: &[u8]| PathBuf::from(std::ffi::OsString::from_vec(unescape(field)));
    let (id, parent) = (number(fields.next()?)?, number(fields.next()?)?);
    let (root, target) = (path(fields.nth(1)?), path(fields.next()?));
    let options = text(fields.next()?);
    // Optional fields (propagation) end with a single dash.
    fields.find(|field| *field == b"-")?;
    let (kind, source) = (text(fields.next()?), text(fields.next()?));
    let super_options = text(fields.next().unwrap_or_default());
    Some(Mounted { id, parent, root, target, options, kind, source, super_options })
}

/// Blanks, tabs, line ends and backslashes stand there as three octal digits.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, tail)) = rest.split_first() {
        let digits = tail.get(..3).and_then(|octal| std::str::from_utf8(octal).ok());
        match digits.and_then(|octal| u8::from_str_radix(octal, 8).ok()) {
            Some(byte) if *first == b'\\' => {
                plain.push(byte);
                rest = &tail[3..];
            }
            _ => {
                plain.push(*first);
                rest = tail;
            }
        }
    }
    plain
}

/// Gives the calling thread a mount and network namespace of its own whose mounts nobody else
/// sees: for tests, which then need no clean-up of the kernel's state.
pub fn isolate() -> io::Result<()> {
    unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET)?;
    let flags = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(None::<&str>, "/", None::<&str>, flags, None::<&str>).map_err(io::Error::from)
}

/// Magic number of the file system on which `path` lies.
pub fn magic(path: &Path) -> io::Result<i64> {
    let file = File::open(path)?;
    Ok(nix::sys::statfs::fstatfs(&file)?.filesystem_type().0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::fs::write_plain;
    use crate::sys::is_errno;
    use crate::sys::thread::spawn;

    #[test]
    fn lines_of_mountinfo() {
        let check = |line: &str, expect: Option<(&str, &str, &str, &str)>| {
            let found = parse_mount(line.as_bytes());
            let found = found.as_ref().map(|mount| {
                let target = mount.target.to_str().unwrap();
                (target, mount.kind.as_str(), mount.source.as_str(), mount.super_options.as_str())
            });
            assert_eq!(found, expect, "{line}");
        };
        check(
            "36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue",
            Some(("/mnt2", "ext3", "/dev/root", "rw,errors=continue")),
        );
        check("41 31 0:38 / /u rw - cgroup2 cgroup2 rw", Some(("/u", "cgroup2", "cgroup2", "rw")));
        check(
            r"1 2 0:1 / /a\040b\134c rw shared:1 master:2 - tmpfs none rw,size=1k",
            Some((r"/a b\c", "tmpfs", "none", "rw,size=1k")),
        );
        check("1 2 0:1 / /x rw - tmpfs none", Some(("/x", "tmpfs", "none", "")));
        for line in ["", "1", "1 2 0:1 / /x rw", "x 2 0:1 / /x rw - tmpfs none rw"] {
            check(line, None);
        }
    }

    /// Runs a test in a mount namespace of its own, on a tmpfs.
    fn in_private(body: impl FnOnce(&Path) + Send + 'static) {
        let thread = spawn("mount-test", move || {
            let dir = tempfile::tempdir().unwrap();
            if isolate().and_then(|()| tmpfs(dir.path(), None, 0o755)).is_err() {
                println!("SKIP mount: needs CAP_SYS_ADMIN");
                return;
            }
            body(dir.path());
            unmount_below(dir.path()).unwrap();
        });
        thread.unwrap().join().unwrap();
    }

    /// Layers `0` to `count − 1`, each with a file of its own name and one that all have.
    fn layers(dir: &Path, count: usize, tail: &str) -> Vec<PathBuf> {
        let make = |index: usize| {
            let layer = dir.join(format!("{index}-{tail}"));
            fs::create_dir(&layer).unwrap();
            write_plain(&layer.join(index.to_string()), b"own", 0o644).unwrap();
            write_plain(&layer.join("all"), index.to_string().as_bytes(), 0o644).unwrap();
            layer
        };
        (0..count).map(make).collect()
    }

    fn check_overlay(mount: fn(&[&Path], &Path) -> io::Result<()>, count: usize, tail: &str) {
        let tail = tail.to_owned();
        in_private(move |dir| {
            let layers = layers(dir, count, &tail);
            let lower: Vec<&Path> = layers.iter().map(PathBuf::as_path).collect();
            let target = dir.join("target");
            fs::create_dir(&target).unwrap();
            mount(&lower, &target).unwrap();
            assert_eq!(fs::read_dir(&target).unwrap().count(), count + 1);
            assert_eq!(fs::read_to_string(target.join("all")).unwrap(), "0");
            write_plain(&target.join("new"), b"x", 0o600).unwrap_err();
            let entry = mount_of(&target.join("all")).unwrap().unwrap();
            assert_eq!(entry.kind, "overlay");
            assert!(entry.options.contains("nosuid") && entry.options.contains("nodev"));
            let held = File::open(target.join("all")).unwrap();
            unmount(&target).unwrap();
            unmount(&target).unwrap();
            assert_eq!(fs::read_dir(&target).unwrap().count(), 0);
            drop(held);
        });
    }

    #[test]
    fn overlays_of_few_and_many_layers() {
        if fs_open(c"overlay").is_err_and(|error| is_errno(&error, Errno::ENODEV)) {
            println!("SKIP overlays_of_few_and_many_layers: no overlay file system");
            return;
        }
        let classic =
            |lower: &[&Path], target: &Path| overlay_classic(&Layers::open(lower)?, target);
        for count in [2, 40, 100] {
            for tail in [String::new(), "0".repeat(250), "x,:y\\".repeat(20)] {
                check_overlay(overlay, count, &tail);
                check_overlay(classic, count, &tail);
            }
        }
    }

    #[test]
    fn errors_of_overlays() {
        in_private(|dir| {
            let missing = dir.join("missing");
            assert!(overlay(&[dir, &missing], dir).is_err());
            let one = layers(dir, 1, "");
            assert!(overlay(&[&one[0], &one[0]], dir).is_err());
            let many = vec![dir; 300];
            let classic = overlay_classic(&Layers::open(&many).unwrap(), dir);
            assert_eq!(classic.unwrap_err().kind(), io::ErrorKind::InvalidInput);
        });
    }

    #[test]
    fn binds_and_sweeps() {
        in_private(|dir| {
            let (source, one, two) = (dir.join("source"), dir.join("one"), dir.join("two"));
            for path in [&source, &one, &two] {
                fs::create_dir(path).unwrap();
            }
            bind(&source, &one).unwrap();
            bind_read_only(&source, &two).unwrap();
            write_plain(&one.join("file"), b"x", 0o600).unwrap();
            assert_eq!(fs::read_to_string(two.join("file")).unwrap(), "x");
            write_plain(&two.join("other"), b"x", 0o600).unwrap_err();
            fs::create_dir(one.join("deep")).unwrap();
            tmpfs(&one.join("deep"), Some(4096), 0o700).unwrap();
            let count = || {
                let mounts = mounts().unwrap();
                mounts.iter().filter(|entry| entry.target.starts_with(dir)).count()
            };
            assert_eq!(count(), 4);
            unmount_below(&one).unwrap();
            assert_eq!(count(), 2);
            unmount_below(&two).unwrap();
            assert_eq!(count(), 1);
            unmount(&dir.join("missing")).unwrap();
        });
    }

    #[test]
    fn read_only_views() {
        in_private(|dir| {
            write_plain(&dir.join("file"), b"x", 0o600).unwrap();
            let known = mounts().unwrap();
            let view = read_only_view(dir).unwrap();
            assert_eq!(mounts().unwrap(), known);
            let seen = PathBuf::from(format!("/proc/self/fd/{}", view.as_raw_fd()));
            assert_eq!(fs::read_to_string(seen.join("file")).unwrap(), "x");
            let refused = write_plain(&seen.join("file"), b"y", 0o600).unwrap_err();
            assert!(is_errno(&refused, Errno::EROFS), "{refused}");
            // The place itself stays as it is, and what is put there can be seen.
            write_plain(&dir.join("new"), b"z", 0o600).unwrap();
            assert_eq!(fs::read_to_string(seen.join("new")).unwrap(), "z");
            read_only_view(&dir.join("missing")).unwrap_err();
        });
    }
}
