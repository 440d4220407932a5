//! Named network namespaces below `/run/netns`.
//!
//! Entering a namespace is a property of a thread. Every function here that enters one returns
//! to the host's before it ends; a thread that cannot return would work in the wrong namespace,
//! so the process is aborted instead.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};

use crate::sys::{is_errno, mount::mounts};

/// Where named namespaces live, by the convention of `ip netns`.
pub const DIR: &str = "/run/netns";

/// Namespace of the calling thread, as a file.
const OWN: &str = "/proc/thread-self/ns/net";

/// Path of a namespace, whether or not it exists.
pub fn path(name: &str) -> PathBuf {
    Path::new(DIR).join(name)
}

/// The network namespace in which the daemon was started; opened once by the thread that enters
/// others.
#[derive(Debug)]
pub struct HostNs(OwnedFd);

impl HostNs {
    /// Opens the namespace of the calling thread.
    pub fn open() -> io::Result<Self> {
        Ok(Self(File::open(OWN)?.into()))
    }

    /// Makes a namespace without a name, runs `inside` in it and returns to the host. The kernel
    /// destroys it with the last descriptor of it or in it.
    pub fn unnamed<T>(&self, inside: impl FnOnce() -> io::Result<T>) -> io::Result<(File, T)> {
        unshare(CloneFlags::CLONE_NEWNET)?;
        let _return = Return(self);
        Ok((File::open(OWN)?, inside()?))
    }

    /// Makes a namespace with this name, runs `inside` in it and returns to the host. Nothing is
    /// left when either fails; a name in use is `AlreadyExists`.
    pub fn create<T>(&self, name: &str, inside: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        let (namespace, result) = self.unnamed(inside)?;
        give_name(name, namespace.as_fd())?;
        Ok(result)
    }

    /// Runs `inside` in the namespace with this name and returns to the host.
    pub fn enter<T>(&self, name: &str, inside: impl FnOnce() -> T) -> io::Result<T> {
        let target = File::open(path(name))?;
        setns(target.as_fd(), CloneFlags::CLONE_NEWNET)?;
        let _return = Return(self);
        Ok(inside())
    }
}

/// Brings the thread back to the host's namespace, also when the closure panics.
struct Return<'a>(&'a HostNs);

impl Drop for Return<'_> {
    fn drop(&mut self) {
        if let Err(errno) = setns(self.0.0.as_fd(), CloneFlags::CLONE_NEWNET) {
            log::error!("cannot return to the host network namespace err={errno}");
            std::process::abort();
        }
    }
}

/// Gives a namespace a name. Nothing is left when that fails; a name in use is `AlreadyExists`.
pub fn give_name(name: &str, namespace: BorrowedFd<'_>) -> io::Result<()> {
    let path = path(name);
    match new_file(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            prepare()?;
            new_file(&path)?;
        }
        other => drop(other?),
    }
    let source = format!("/proc/thread-self/fd/{}", namespace.as_raw_fd());
    let none = None::<&str>;
    let mounted = mount(Some(source.as_str()), &path, none, MsFlags::MS_BIND, none);
    if mounted.is_err() {
        // Already failing: what matters is the first error, and the sweep finds the rest.
        let _ = remove(name);
    }
    mounted.map_err(io::Error::from)
}

/// A descriptor that keeps a namespace alive; `None` = there is none of this name.
pub fn open(name: &str) -> io::Result<Option<File>> {
    match File::open(path(name)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        other => other.map(Some),
    }
}

/// Removes the name. The kernel destroys the namespace when nothing uses it any more; an unknown
/// name is success.
pub fn remove(name: &str) -> io::Result<()> {
    let path = path(name);
    match umount2(&path, MntFlags::MNT_DETACH) {
        // EINVAL: a file without a mount, left by a crash between the two steps of `create`.
        Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => {}
        Err(errno) => return Err(errno.into()),
    }
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Names of all entries below `/run/netns`, ours and others'.
pub fn list() -> io::Result<Vec<String>> {
    let entries = match fs::read_dir(DIR) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other?,
    };
    let mut names = Vec::new();
    for entry in entries {
        if let Ok(name) = entry?.file_name().into_string() {
            names.push(name);
        }
    }
    Ok(names)
}

fn new_file(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create_new(true).mode(0o444).open(path)
}

/// Makes `/run/netns` a shared mount, so that namespaces are visible in other mount namespaces.
/// Once at a start: it reads the table of all mounts.
pub fn prepare() -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o755).create(DIR)?;
    if mounts()?.iter().any(|entry| entry.target == Path::new(DIR)) {
        return Ok(());
    }
    let none = None::<&str>;
    mount(Some(DIR), DIR, none, MsFlags::MS_BIND | MsFlags::MS_REC, none)?;
    mount(none, DIR, none, MsFlags::MS_SHARED | MsFlags::MS_REC, none).map_err(io::Error::from)
}

/// Undoes `prepare`, unless there are namespaces; whoever makes one prepares it again.
pub fn give_up() -> io::Result<()> {
    if !list()?.is_empty() {
        return Ok(());
    }
    match umount2(DIR, MntFlags::empty()) {
        // EINVAL: no mount.
        Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => {}
        Err(errno) => return Err(errno.into()),
    }
    match fs::remove_dir(DIR) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// True when the error says that a namespace of this name exists.
pub fn is_taken(error: &io::Error) -> bool {
    is_errno(error, Errno::EEXIST)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;
    use crate::sys::mount::{isolate, tmpfs};
    use crate::sys::thread::spawn;

    fn own_inode() -> u64 {
        fs::metadata(OWN).unwrap().ino()
    }

    /// Runs a test in namespaces of its own; false when this needs rights that are missing.
    fn in_private(body: fn()) {
        let thread = spawn("netns-test", move || {
            if isolate().and_then(|()| tmpfs(Path::new("/run"), None, 0o755)).is_err() {
                println!("SKIP netns: needs CAP_SYS_ADMIN");
                return;
            }
            body();
        });
        thread.unwrap().join().unwrap();
    }

    #[test]
    fn a_namespace_lives_from_create_to_remove() {
        in_private(|| {
            let host = HostNs::open().unwrap();
            let outside = own_inode();
            assert_eq!(list().unwrap(), Vec::<String>::new());
            let inside = host.create("one", || Ok(own_inode())).unwrap();
            assert_ne!(inside, outside);
            assert_eq!(own_inode(), outside);
            assert_eq!(host.enter("one", own_inode).unwrap(), inside);
            assert_eq!(own_inode(), outside);
            assert_eq!(list().unwrap(), ["one"]);
            assert!(is_taken(&host.create("one", || Ok(())).unwrap_err()));
            remove("one").unwrap();
            remove("one").unwrap();
            assert_eq!(list().unwrap(), Vec::<String>::new());
            assert!(host.enter("one", || ()).is_err());
        });
    }

    #[test]
    fn the_directory_stays_as_long_as_somebody_uses_it() {
        in_private(|| {
            let host = HostNs::open().unwrap();
            give_up().unwrap();
            host.create("one", || Ok(())).unwrap();
            give_up().unwrap();
            assert_eq!(list().unwrap(), ["one"]);
            remove("one").unwrap();
            give_up().unwrap();
            assert!(!Path::new(DIR).exists());
            host.create("one", || Ok(())).unwrap();
            remove("one").unwrap();
        });
    }

    #[test]
    fn a_failed_create_leaves_nothing() {
        in_private(|| {
            let host = HostNs::open().unwrap();
            let outside = own_inode();
            host.create("two", || Err::<(), _>(io::Error::other("no"))).unwrap_err();
            assert_eq!(own_inode(), outside);
            assert_eq!(list().unwrap(), Vec::<String>::new());
        });
    }
}
