//! Used space: partitions of the node, and storage and state of instances by quota.
//!
//! Runs on the monitor thread. A file system that may hang is told by its kind in `mountinfo` and
//! never touched here: fetch looks at it. Nothing is allocated unless the mounts have changed.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::sys::mount::{Mounted, is_remote_kind, mounts};
use crate::sys::usage::{self, Owner, Place};

/// Becomes urgent to read (`POLLPRI`) when something was mounted or unmounted.
const MOUNT_TABLE: &str = "/proc/self/mountinfo";

/// The mounts of this host, read again only after they changed.
#[derive(Debug)]
pub(crate) struct Disks {
    /// Tells changes; `None` = the mounts stay as they were given.
    changes: Option<File>,
    /// By path; of mounts on the same one the newest, which hides the others.
    mounts: Vec<Mount>,
    /// What quota can do, by number of the mount, until the mounts change.
    quotas: Vec<(u64, Quota)>,
    /// Mount points of file systems of which it was said that they keep no quota.
    told: Vec<Box<Path>>,
}

/// What has to be known of a mount.
#[derive(Debug)]
struct Mount {
    id: u64,
    target: Box<Path>,
    may_hang: bool,
    /// Block device; without one there is no quota.
    device: Option<Box<Path>>,
}

/// Kinds of quota that work on a file system.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Quota {
    users: bool,
    projects: bool,
}

impl Disks {
    /// The mounts as they are now, and from now on.
    pub(crate) fn open() -> Self {
        let changes = File::open(MOUNT_TABLE);
        if let Err(err) = &changes {
            log::warn!("changes of mounts go unseen path={MOUNT_TABLE} err={err}");
        }
        let mut disks = Self { changes: changes.ok(), ..Self::fixed(&[]) };
        disks.read();
        disks
    }

    /// These mounts and no others.
    fn fixed(mounts: &[Mounted]) -> Self {
        Self { changes: None, mounts: sorted(mounts), quotas: Vec::new(), told: Vec::new() }
    }

    /// Reads the mounts again if they changed since the last time; true = they did.
    pub(crate) fn refresh(&mut self) -> bool {
        let Some(changes) = &self.changes else { return false };
        let mut set = [PollFd::new(changes.as_fd(), PollFlags::POLLPRI)];
        let changed = poll(&mut set, PollTimeout::ZERO).is_ok_and(|ready| ready > 0);
        if changed {
            self.read();
        }
        changed
    }

    fn read(&mut self) {
        match mounts() {
            Ok(mounts) => self.mounts = sorted(&mounts),
            Err(err) => log::warn!("cannot read the mounts err={err}"),
        }
        self.quotas.clear();
    }

    /// The mount that holds `path`, by its text alone: a hung file system is not touched.
    fn holder(&self, path: &Path) -> Option<&Mount> {
        path.ancestors().find_map(|above| {
            let found =
                self.mounts.binary_search_by(|mount| bytes(&mount.target).cmp(bytes(above)));
            found.ok().map(|at| &self.mounts[at])
        })
    }

    /// The path lies on a file system that may hang.
    pub(crate) fn may_hang(&self, path: &Path) -> bool {
        self.holder(path).is_some_and(|mount| mount.may_hang)
    }

    /// Used bytes of the file system that holds `path`, which must not be one that may hang.
    pub(crate) fn used_bytes(&self, path: &Path) -> io::Result<u64> {
        usage::file_system_bytes(path)
    }

    /// Bytes that belong to an instance on the file system that holds `path`: those of the project
    /// that the integrator gave to the directory, else those of `uid`. 0 without quota, as in the
    /// reference, after one warning for each file system; `None` = unknown this time.
    pub(crate) fn quota_bytes(&mut self, path: &Path, uid: u32) -> Option<u64> {
        let Some(Mount { id, device: Some(device), .. }) = self.holder(path) else {
            self.tell_without_quota(path);
            return Some(0);
        };
        let known = self.quotas.iter().find(|(mount, _)| mount == id).map(|(_, quota)| *quota);
        if known.is_some_and(|quota| !quota.users && !quota.projects) {
            return Some(0);
        }
        let place = Place::open(path, device).ok()?;
        let quota = known.unwrap_or_else(|| Quota::probe(&place));
        let project = quota.projects.then(|| place.project()).flatten();
        let used = match project {
            Some(project) => place.bytes_of(Owner::Project(project)).ok(),
            None if quota.users => place.bytes_of(Owner::User(uid)).ok(),
            None => Some(0),
        };
        if known.is_none() {
            log::debug!("quota of {} {quota:?}", device.display());
            let id = *id;
            self.quotas.push((id, quota));
            if !quota.users && !quota.projects {
                self.tell_without_quota(path);
            }
        }
        used
    }

    /// Once for each file system, however often it is asked again.
    fn tell_without_quota(&mut self, path: &Path) {
        let Some(Mount { target, .. }) = self.holder(path) else { return };
        if !self.told.contains(target) {
            log::warn!(
                "no user quota, disk use of instances is reported as 0 path={}",
                target.display()
            );
            let target = target.clone();
            self.told.push(target);
        }
    }
}

impl Quota {
    /// Asks for id 0, as the reference does; an error means that this kind is not there.
    fn probe(place: &Place<'_>) -> Self {
        Self {
            users: place.bytes_of(Owner::User(0)).is_ok(),
            projects: place.bytes_of(Owner::Project(0)).is_ok(),
        }
    }
}

fn bytes(path: &Path) -> &[u8] {
    path.as_os_str().as_bytes()
}

fn sorted(mounts: &[Mounted]) -> Vec<Mount> {
    let mut sorted: Vec<Mount> = Vec::with_capacity(mounts.len());
    // Newest first: of equal paths the first one stays.
    for mount in mounts.iter().rev() {
        let device = Path::new(&mount.source);
        sorted.push(Mount {
            id: mount.id,
            target: mount.target.as_path().into(),
            may_hang: may_hang(&mount.kind),
            device: device.starts_with("/dev").then(|| device.into()),
        });
    }
    sorted.sort_by(|a, b| bytes(&a.target).cmp(bytes(&b.target)));
    sorted.dedup_by(|later, first| later.target == first.target);
    sorted
}

/// A file system of this kind may hang.
fn may_hang(kind: &str) -> bool {
    is_remote_kind(kind)
}

#[cfg(test)]
pub(crate) mod tests {
    use std::path::PathBuf;

    use super::*;

    pub(crate) fn fixed(mounts: &[Mounted]) -> Disks {
        Disks::fixed(mounts)
    }

    pub(crate) fn mount(target: &str, kind: &str, source: &str) -> Mounted {
        let (kind, source) = (kind.to_owned(), source.to_owned());
        Mounted { target: PathBuf::from(target), kind, source, ..Mounted::default() }
    }

    #[test]
    fn holder_is_the_deepest_and_newest() {
        let disks = fixed(&[
            mount("/", "ext4", "/dev/a"),
            mount("/mnt/net", "nfs4", "server:/x"),
            mount("/mnt", "ext4", "/dev/b"),
            mount("/mnt", "xfs", "/dev/c"),
            mount("/mnt/net/x", "9p", "share"),
        ]);
        let check = |path: &str, device: Option<&str>, hangs: bool| {
            let found = disks.holder(Path::new(path)).unwrap();
            assert_eq!(found.device.as_deref(), device.map(Path::new), "{path}");
            assert_eq!(disks.may_hang(Path::new(path)), hangs, "{path}");
        };
        check("/var/aos", Some("/dev/a"), false);
        check("/mnt/x", Some("/dev/c"), false);
        check("/mnt", Some("/dev/c"), false);
        check("/mnt/net/state", None, true);
        check("/mnt/network", Some("/dev/c"), false);
        check("/mnt/net/x/y", None, true);
        check("/", Some("/dev/a"), false);
        assert!(may_hang("fuse.sshfs") && may_hang("cifs") && !may_hang("fuseblk"));
        assert!(fixed(&[]).holder(Path::new("/")).is_none());
    }

    #[test]
    fn missing_quota_is_told_once() {
        // What is no block device keeps none.
        let mounts = [mount("/proc", "ext4", "/dev/null"), mount("/ram", "tmpfs", "tmpfs")];
        let mut disks = Disks::fixed(&mounts);
        for _ in 0..2 {
            for path in ["/proc/sys", "/proc/self", "/ram/storage", "/ram/state"] {
                assert_eq!(disks.quota_bytes(Path::new(path), 5000), Some(0), "{path}");
            }
            disks.quotas.clear();
        }
        assert_eq!(disks.told, ["/proc", "/ram"].map(|path| Path::new(path).into()));
    }

    /// A file system without quota is asked once, and again after the mounts changed.
    #[test]
    fn quota_is_probed_once_for_each_file_system() {
        let root = tempfile::tempdir().unwrap();
        let target = root.path().to_str().unwrap();
        let mounted =
            [mount(target, "tmpfs", "/dev/aos-no-such-device"), mount("/n", "nfs", "s:/x")];
        let mut disks = fixed(&mounted);
        assert_eq!(disks.quota_bytes(Path::new("/n/state"), 5000), Some(0));
        assert!(disks.quotas.is_empty(), "a file system without a device was touched");
        assert_eq!(disks.quota_bytes(&root.path().join("missing"), 5000), None);
        let used = disks.quota_bytes(root.path(), 54321);
        assert_eq!(used, Some(0));
        assert_eq!(disks.quotas.len(), 1);
        let (_, quota) = disks.quotas[0];
        if !quota.users && !quota.projects {
            // Nothing is opened any more.
            assert_eq!(disks.quota_bytes(&root.path().join("missing"), 5000), Some(0));
        }
        disks.read();
        assert!(disks.quotas.is_empty());
    }

    #[test]
    fn mounts_of_this_host() {
        let mut disks = Disks::open();
        assert!(disks.holder(Path::new("/proc/self")).is_some());
        assert!(!disks.refresh() || !disks.refresh(), "the mounts change all the time");
    }
}
