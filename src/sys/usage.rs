//! Used space: of a whole file system, and of one user or project on it by quota.
//!
//! Nothing here allocates for paths of ordinary length, and no descriptor is kept: one would pin
//! the mount. A call on a network file system may hang; the caller keeps away from those.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::errno::Errno;
use nix::sys::quota::{QuotaType, quotactl_get};
use nix::sys::statvfs::statvfs;

use crate::sys::{is_errno, retry};

/// `quotactl_fd`, Linux 5.14; the same number on all architectures.
const SYS_QUOTACTL_FD: libc::c_long = 443;
const USRQUOTA: libc::c_int = 0;
const PRJQUOTA: libc::c_int = 2;
/// Files made in the directory belong to its project.
const FS_XFLAG_PROJINHERIT: u32 = 0x200;

/// Attributes of `FS_IOC_FSGETXATTR`.
#[repr(C)]
#[derive(Default)]
struct FsXattr {
    xflags: u32,
    extent_bytes: u32,
    extents: u32,
    project: u32,
    cow_extent_bytes: u32,
    pad: [u8; 8],
}

mod ioctl {
    use super::FsXattr;
    nix::ioctl_read!(fs_get_xattr, b'X', 31, FsXattr);
}

/// Used bytes of the file system that holds `path`.
pub fn file_system_bytes(path: &Path) -> io::Result<u64> {
    let stat = retry(|| statvfs(path))?;
    let blocks = stat.blocks().saturating_sub(stat.blocks_free());
    Ok(blocks.saturating_mul(stat.fragment_size()))
}

/// Who owns the space.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Owner {
    User(u32),
    Project(u32),
}

/// A path whose owners' space is asked for.
#[derive(Debug)]
pub struct Place<'a> {
    file: File,
    /// Block device of its file system, for kernels before 5.14.
    device: &'a Path,
}

impl<'a> Place<'a> {
    /// Opens `path` for the questions below.
    pub fn open(path: &Path, device: &'a Path) -> io::Result<Self> {
        // A service must not be able to stop us with a pipe in the place of its state.
        let file = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
        Ok(Self { file, device })
    }

    /// The project that files made here belong to, if the integrator gave the directory one.
    pub fn project(&self) -> Option<u32> {
        let mut found = FsXattr::default();
        // SAFETY: the kernel writes one `fsxattr`, which `FsXattr` is laid out as.
        let asked = unsafe { ioctl::fs_get_xattr(self.file.as_raw_fd(), &raw mut found) };
        let inherited = found.xflags & FS_XFLAG_PROJINHERIT != 0;
        (asked.is_ok() && inherited && found.project != 0).then_some(found.project)
    }

    /// Bytes that are accounted to `owner` on this file system, 0 when nothing is. An error when
    /// there is no quota of this kind (`ESRCH`, `ENOSYS` and others) or no right to ask.
    pub fn bytes_of(&self, owner: Owner) -> io::Result<u64> {
        static LACKS_CALL: AtomicBool = AtomicBool::new(false);
        let mut result = Err(io::Error::from(Errno::ENOSYS));
        if !LACKS_CALL.load(Ordering::Relaxed) {
            result = self.by_descriptor(owner);
        }
        // Either the kernel lacks the call, or the file system lacks quota.
        if result.as_ref().is_err_and(|error| is_errno(error, Errno::ENOSYS))
            && let Owner::User(uid) = owner
        {
            result = by_device(self.device, uid);
            if result.is_ok() {
                LACKS_CALL.store(true, Ordering::Relaxed);
            }
        }
        match result {
            // Nothing has been accounted to this id yet.
            Err(error) if is_errno(&error, Errno::ENOENT) => Ok(0),
            other => other,
        }
    }

    fn by_descriptor(&self, owner: Owner) -> io::Result<u64> {
        let (kind, id) = match owner {
            Owner::User(id) => (USRQUOTA, id),
            Owner::Project(id) => (PRJQUOTA, id),
        };
        let command = libc::QCMD(libc::Q_GETQUOTA, kind);
        // SAFETY: all bytes 0 are a valid value of this structure of integers.
        let mut usage: libc::dqblk = unsafe { std::mem::zeroed() };
        retry(|| {
            // SAFETY: the kernel writes one `if_dqblk`, which `dqblk` is laid out as.
            Errno::result(unsafe {
                libc::syscall(SYS_QUOTACTL_FD, self.file.as_raw_fd(), command, id, &raw mut usage)
            })
        })?;
        Ok(usage.dqb_curspace)
    }
}

fn by_device(device: &Path, uid: u32) -> io::Result<u64> {
    let usage = retry(|| quotactl_get(QuotaType::USRQUOTA, device, uid.cast_signed()))?;
    Ok(usage.occupied_space().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_whole_file_system() {
        let root = tempfile::tempdir().unwrap();
        crate::sys::fs::write_plain(&root.path().join("file"), &[1; 65536], 0o600).unwrap();
        let stat = statvfs(root.path()).unwrap();
        let used = file_system_bytes(root.path()).unwrap();
        assert!(used > 0 && used <= stat.blocks() * stat.fragment_size());
        assert!(file_system_bytes(&root.path().join("missing")).is_err());
    }

    /// Whatever this file system can, the answer is an amount or one of the known refusals.
    #[test]
    fn quota_of_this_file_system() {
        let root = tempfile::tempdir().unwrap();
        let place = Place::open(root.path(), Path::new("/dev/aos-no-such-device")).unwrap();
        let known = [
            Errno::ESRCH,
            Errno::ENOSYS,
            Errno::ENOTBLK,
            Errno::ENODEV,
            Errno::EOPNOTSUPP,
            Errno::EPERM,
            Errno::ENOENT,
            Errno::EINVAL,
        ];
        for owner in [Owner::User(0), Owner::User(54321), Owner::Project(54321)] {
            if let Err(error) = place.bytes_of(owner) {
                assert!(known.iter().any(|errno| is_errno(&error, *errno)), "{error}");
            }
        }
        assert_eq!(place.project(), None);
    }
}
