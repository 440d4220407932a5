//! State file and storage directory of an instance, which the CM chooses and owns.
//!
//! Runs on exec threads, or in a process of its own (`remote`). In: root directory of the configuration and the relative path from the
//! CM. Out: the absolute path for the bind mount. What exists is left as it is, because the CM
//! watches it and writes it in place; what is missing is created for the instance. Nothing is ever
//! renamed or removed here.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use nix::fcntl::OFlag;
use nix::sys::stat::{Mode, SFlag, fchmod, fstat};
use nix::unistd::{Gid, Uid, fchown};

use crate::sys::fs::{make_dirs, make_dirs_beneath, open_beneath, open_dir};

/// Why the data of an instance cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{what} path {path:?} is not a relative path below its directory")]
    Path { what: &'static str, path: String },
    #[error("cannot prepare {what} {path}")]
    Prepare {
        what: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{path} is no {what}")]
    Kind { what: &'static str, path: PathBuf },
}

/// Where data are, and whose.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Place {
    /// Directory of the configuration.
    pub root: PathBuf,
    /// From the CM.
    pub relative: String,
    pub owner: Owner,
}

/// Who the data belong to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Owner {
    pub uid: u32,
    pub gid: u32,
}

/// The state file at `relative` below `root`, created empty (0600) when missing.
pub fn state_file(root: &Path, relative: &str, owner: Owner) -> Result<PathBuf, Error> {
    const WHAT: &str = "state file";
    let relative = checked(WHAT, relative)?;
    let path = root.join(relative);
    let fail = |source| Error::Prepare { what: WHAT, path: path.clone(), source };
    let root = prepared_root(root).map_err(fail)?;
    let read = OFlag::O_RDONLY | OFlag::O_NONBLOCK;
    let file = match open_beneath(root.as_fd(), relative, read, Mode::empty()) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return create_file(root.as_fd(), relative, owner).map(|()| path.clone()).map_err(fail);
        }
        other => other.map_err(fail)?,
    };
    if !is(&file, SFlag::S_IFREG).map_err(fail)? {
        return Err(Error::Kind { what: WHAT, path });
    }
    repair_owner(&file, &path, owner);
    Ok(path)
}

/// The storage directory at `relative` below `root`, created (0755) when missing.
pub fn storage_dir(root: &Path, relative: &str, owner: Owner) -> Result<PathBuf, Error> {
    const WHAT: &str = "storage directory";
    let relative = checked(WHAT, relative)?;
    let path = root.join(relative);
    let fail = |source| Error::Prepare { what: WHAT, path: path.clone(), source };
    let root = prepared_root(root).map_err(fail)?;
    let read = OFlag::O_RDONLY | OFlag::O_NONBLOCK;
    let dir = match open_beneath(root.as_fd(), relative, read, Mode::empty()) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return create_dir(root.as_fd(), relative, owner).map(|()| path.clone()).map_err(fail);
        }
        other => other.map_err(fail)?,
    };
    if !is(&dir, SFlag::S_IFDIR).map_err(fail)? {
        return Err(Error::Kind { what: WHAT, path });
    }
    repair_owner(&dir, &path, owner);
    Ok(path)
}

/// A relative path of names only.
fn checked<'a>(what: &'static str, relative: &'a str) -> Result<&'a Path, Error> {
    let path = Path::new(relative);
    let plain = path.components().all(|part| matches!(part, Component::Normal(_)));
    if relative.is_empty() || !plain || relative.contains('\0') {
        return Err(Error::Path { what, path: relative.to_owned() });
    }
    Ok(path)
}

fn prepared_root(root: &Path) -> io::Result<OwnedFd> {
    make_dirs(root, 0o755)?;
    open_dir(root)
}

fn create_file(root: BorrowedFd<'_>, relative: &Path, owner: Owner) -> io::Result<()> {
    if let Some(parent) = relative.parent().filter(|parent| *parent != Path::new("")) {
        make_dirs_beneath(root, parent, Mode::from_bits_retain(0o755))?;
    }
    let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_WRONLY;
    let file = open_beneath(root, relative, flags, Mode::from_bits_retain(0o600))?;
    own(&file, owner)
}

fn create_dir(root: BorrowedFd<'_>, relative: &Path, owner: Owner) -> io::Result<()> {
    let mode = Mode::from_bits_retain(0o755);
    let dir = make_dirs_beneath(root, relative, mode)?;
    fchmod(&dir, mode)?;
    own(&dir, owner)
}

fn own(file: &OwnedFd, owner: Owner) -> io::Result<()> {
    let (uid, gid) = (Uid::from_raw(owner.uid), Gid::from_raw(owner.gid));
    fchown(file, Some(uid), Some(gid)).map_err(io::Error::from)
}

/// The CM may have given the instance another uid. On a network file system without root rights
/// that cannot be put right here, and the CM has done it there.
fn repair_owner(file: &OwnedFd, path: &Path, owner: Owner) {
    let is_other = fstat(file).is_ok_and(|stat| stat.st_uid != owner.uid);
    if let Some(error) = is_other.then(|| own(file, owner).err()).flatten() {
        let Owner { uid, gid } = owner;
        log::warn!(
            "cannot change the owner path={} uid={uid} gid={gid} err={error}",
            path.display()
        );
    }
}

fn is(file: &OwnedFd, kind: SFlag) -> io::Result<bool> {
    let stat = fstat(file)?;
    Ok(SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT == kind)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt, symlink};

    use nix::sys::stat::mknod;

    use super::*;
    use crate::sys::fs::write_plain;

    const OWNER: Owner = Owner { uid: 5003, gid: 5001 };

    fn is_root() -> bool {
        let root = Uid::effective().is_root();
        if !root {
            println!("SKIP storage: needs root to change owners");
        }
        root
    }

    /// `uid:gid mode` of a path.
    fn look(path: &Path) -> String {
        let meta = fs::metadata(path).unwrap();
        format!("{}:{} {:o}", meta.uid(), meta.gid(), meta.mode() & 0o7777)
    }

    #[test]
    fn missing_data_are_created_for_the_instance() {
        if !is_root() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("new/root");
        let state = state_file(&root, "a/b/state.dat", OWNER).unwrap();
        assert_eq!(state, root.join("a/b/state.dat"));
        assert_eq!(look(&state), "5003:5001 600");
        assert_eq!(look(&root.join("a")), "0:0 755");
        assert_eq!(fs::metadata(&state).unwrap().len(), 0);
        let storage = storage_dir(&root, "c/d", OWNER).unwrap();
        assert_eq!(look(&storage), "5003:5001 755");
        assert_eq!(look(&root.join("c")), "0:0 755");
    }

    #[test]
    fn existing_data_keep_inode_content_and_mode() {
        if !is_root() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("state");
        write_plain(&state, b"content", 0o640).unwrap();
        let inode = fs::metadata(&state).unwrap().ino();
        for owner in [OWNER, OWNER, Owner { uid: 6000, gid: 6001 }] {
            state_file(dir.path(), "state", owner).unwrap();
            assert_eq!(fs::read_to_string(&state).unwrap(), "content");
            assert_eq!(fs::metadata(&state).unwrap().ino(), inode);
            assert_eq!(look(&state), format!("{}:{} 640", owner.uid, owner.gid));
        }
        let storage = dir.path().join("storage");
        fs::create_dir(&storage).unwrap();
        write_plain(&storage.join("file"), b"x", 0o600).unwrap();
        storage_dir(dir.path(), "storage", OWNER).unwrap();
        assert_eq!(look(&storage), "5003:5001 755");
        assert_eq!(look(&storage.join("file")), "0:0 600");
    }

    #[test]
    fn nothing_outside_of_the_root() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        fs::create_dir_all(root.join("real")).unwrap();
        symlink("/etc", root.join("etc")).unwrap();
        symlink("../outside", root.join("up")).unwrap();
        symlink("real", root.join("within")).unwrap();
        for bad in ["", "..", "/", "/etc/x", "../x", "a/../../x", "a/..", ".", "./a", "a\0b"] {
            let state = state_file(&root, bad, OWNER);
            assert!(matches!(state, Err(Error::Path { .. })), "{bad:?} {state:?}");
            assert!(matches!(storage_dir(&root, bad, OWNER), Err(Error::Path { .. })), "{bad:?}");
        }
        for bad in ["etc/passwd", "etc/new", "up", "up/x", "within/x", "etc"] {
            state_file(&root, bad, OWNER).unwrap_err();
            storage_dir(&root, bad, OWNER).unwrap_err();
        }
        assert!(!Path::new("/etc/new").exists() && !dir.path().join("outside").exists());
        assert_eq!(fs::read_dir(root.join("real")).unwrap().count(), 0);
    }

    #[test]
    fn what_is_of_another_kind_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("dir")).unwrap();
        write_plain(&dir.path().join("file"), b"", 0o600).unwrap();
        mknod(&dir.path().join("fifo"), SFlag::S_IFIFO, Mode::from_bits_retain(0o600), 0).unwrap();
        for bad in ["dir", "fifo"] {
            assert!(matches!(state_file(dir.path(), bad, OWNER), Err(Error::Kind { .. })));
        }
        for bad in ["file", "fifo"] {
            assert!(matches!(storage_dir(dir.path(), bad, OWNER), Err(Error::Kind { .. })));
        }
        assert!(state_file(dir.path(), "file/x", OWNER).is_err());
    }
}
