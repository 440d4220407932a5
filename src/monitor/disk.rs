//! Used space: partitions of the node by `statvfs`, storage and state of instances by user quota.
//!
//! Runs on the monitor thread. A file system that may hang is told by its kind in `mountinfo` and
//! never touched here; its figures are left unknown.

use std::fs::File;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::quota::{QuotaType, quotactl_get};
use nix::sys::statvfs::statvfs;

use crate::sys::mount::{Mounted, mounts};

/// Becomes urgent to read (`POLLPRI`) when something was mounted or unmounted.
const MOUNT_TABLE: &str = "/proc/self/mountinfo";

/// The mounts of this host, read again only after they changed.
#[derive(Debug)]
pub(crate) struct Disks {
    /// Tells changes; `None` = the mounts stay as they were given.
    changes: Option<File>,
    mounts: Vec<Mounted>,
    /// Devices on which user quota does not work, until the mounts change.
    without_quota: Vec<PathBuf>,
}

impl Disks {
    /// The mounts as they are now, and from now on.
    pub(crate) fn open() -> Self {
        let changes = File::open(MOUNT_TABLE);
        if let Err(err) = &changes {
            log::warn!("changes of mounts go unseen path={MOUNT_TABLE} err={err}");
        }
        let mut disks = Self { changes: changes.ok(), ..Self::fixed(Vec::new()) };
        disks.read();
        disks
    }

    /// These mounts and no others.
    fn fixed(mounts: Vec<Mounted>) -> Self {
        Self { changes: None, mounts, without_quota: Vec::new() }
    }

    pub(crate) fn mounts(&self) -> &[Mounted] {
        &self.mounts
    }

    /// Reads the mounts again if they changed since the last time.
    pub(crate) fn refresh(&mut self) {
        let Some(changes) = &self.changes else { return };
        let mut set = [PollFd::new(changes.as_fd(), PollFlags::POLLPRI)];
        if poll(&mut set, PollTimeout::ZERO).is_ok_and(|ready| ready > 0) {
            self.read();
        }
    }

    fn read(&mut self) {
        match mounts() {
            Ok(mounts) => self.mounts = mounts,
            Err(err) => log::warn!("cannot read the mounts err={err}"),
        }
        self.without_quota.clear();
    }

    /// The mount that holds `path`, by its text alone: a hung file system is not touched.
    fn holder(&self, path: &Path) -> Option<&Mounted> {
        // Of mounts on the same point the newest hides the others; `max_by_key` takes the last.
        self.mounts
            .iter()
            .filter(|mount| path.starts_with(&mount.target))
            .max_by_key(|mount| mount.target.components().count())
    }

    /// The path lies on a file system that may hang.
    pub(crate) fn is_remote(&self, path: &Path) -> bool {
        self.holder(path).is_some_and(|mount| may_hang(&mount.kind))
    }

    /// Used bytes of the file system that holds `path`; `None` = unknown.
    pub(crate) fn used_bytes(&self, path: &Path) -> Option<u64> {
        if self.is_remote(path) {
            return None;
        }
        let stat = statvfs(path).ok()?;
        let blocks = stat.blocks().saturating_sub(stat.blocks_free());
        blocks.checked_mul(stat.fragment_size())
    }

    /// Bytes that belong to `uid` on the file system that holds `path`; 0 without quota, as in the
    /// reference.
    pub(crate) fn quota_bytes(&mut self, path: &Path, uid: u32) -> Option<u64> {
        let device = self.holder(path).map(|mount| PathBuf::from(&mount.source));
        let local = device.filter(|device| device.starts_with("/dev"));
        let Some(device) = local.filter(|device| !self.without_quota.contains(device)) else {
            return Some(0);
        };
        if quotactl_get(QuotaType::USRQUOTA, &device, 0).is_err() {
            log::debug!("no user quota device={}", device.display());
            self.without_quota.push(device);
            return Some(0);
        }
        match quotactl_get(QuotaType::USRQUOTA, &device, uid.cast_signed()) {
            Ok(usage) => Some(usage.occupied_space().unwrap_or(0)),
            // Nothing has been accounted to this id yet.
            Err(nix::errno::Errno::ENOENT) => Some(0),
            Err(_) => None,
        }
    }
}

/// A file system of this kind may hang.
fn may_hang(kind: &str) -> bool {
    kind.starts_with("nfs")
        || kind.starts_with("fuse.")
        || ["cifs", "smb3", "9p", "ceph"].contains(&kind)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn fixed(mounts: Vec<Mounted>) -> Disks {
        Disks::fixed(mounts)
    }

    fn mount(target: &str, kind: &str, source: &str) -> Mounted {
        let (kind, source) = (kind.to_owned(), source.to_owned());
        Mounted { target: PathBuf::from(target), kind, source, ..Mounted::default() }
    }

    #[test]
    fn real_partition() {
        let disks = Disks::open();
        let root = tempfile::tempdir().unwrap();
        let stat = statvfs(root.path()).unwrap();
        let used = disks.used_bytes(root.path()).unwrap();
        assert!(used > 0 && used <= stat.blocks() * stat.fragment_size());
        assert_eq!(disks.used_bytes(&root.path().join("missing")), None);
    }

    #[test]
    fn holder_is_the_deepest_and_newest() {
        let disks = Disks::fixed(vec![
            mount("/", "ext4", "/dev/a"),
            mount("/mnt/net", "nfs4", "server:/x"),
            mount("/mnt", "ext4", "/dev/b"),
            mount("/mnt", "xfs", "/dev/c"),
        ]);
        let check = |path: &str, source: &str, remote: bool| {
            let found = disks.holder(Path::new(path)).map(|mount| mount.source.as_str());
            assert_eq!((found, disks.is_remote(Path::new(path))), (Some(source), remote), "{path}");
        };
        check("/var/aos", "/dev/a", false);
        check("/mnt/x", "/dev/c", false);
        check("/mnt/net/state", "server:/x", true);
        check("/mnt/network", "/dev/c", false);
        assert!(may_hang("fuse.sshfs") && !may_hang("fuseblk"));
        assert_eq!(disks.used_bytes(Path::new("/mnt/net")), None);
    }

    /// A device without quota is asked once, and again after the mounts changed.
    #[test]
    fn quota_is_probed_once_for_each_device() {
        let device = "/dev/aos-no-such-device";
        let mut disks =
            Disks::fixed(vec![mount("/data", "ext4", device), mount("/n", "nfs", "server:/x")]);
        assert_eq!(disks.quota_bytes(Path::new("/n/state"), 5000), Some(0));
        assert_eq!(disks.quota_bytes(Path::new("/data/state"), 5000), Some(0));
        assert_eq!(disks.without_quota, [PathBuf::from(device)]);
        disks.read();
        assert!(disks.without_quota.is_empty());
    }
}
