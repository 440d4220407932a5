//! Removal of directory trees that follows no link, crosses no mount and has bounds.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, OpenHow, ResolveFlag, openat, openat2};
use nix::sys::stat::Mode;
use nix::unistd::{UnlinkatFlags, unlinkat};

use crate::sys::{fault, is_errno, progress, retry};

/// Deepest tree that is removed; each level holds a descriptor.
pub const MAX_DEPTH: usize = 512;

/// Most entries of one tree: more means that somebody keeps creating them.
pub const MAX_ENTRIES: usize = 16 << 20;

/// Names that are read from a directory before they are removed.
const BATCH: usize = 256;

const DIRECTORY: OFlag = OFlag::O_DIRECTORY
    .union(OFlag::O_RDONLY)
    .union(OFlag::O_CLOEXEC)
    .union(OFlag::O_NOFOLLOW)
    .union(OFlag::O_NONBLOCK);

/// Removes a file, or a directory with everything in it. A missing path is success. A mount point
/// in the tree is an error and stays with what is in it; the rest is removed, and the first error
/// is returned.
pub fn remove_tree(path: &Path) -> io::Result<()> {
    let name = match path.file_name() {
        Some(name) => CString::new(name.as_encoded_bytes())?,
        None => return Err(io::ErrorKind::InvalidInput.into()),
    };
    let parent = path.parent().filter(|parent| *parent != Path::new(""));
    let flags = OFlag::O_DIRECTORY | OFlag::O_RDONLY | OFlag::O_CLOEXEC;
    let parent = match retry(|| openat(AT_FDCWD, parent.unwrap_or(Path::new(".")), flags, NONE)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    let mut removal = Removal { limits: LIMITS, entries: 0, first_error: None };
    removal.run(parent, vec![name])
}

/// Removes everything in a directory and keeps it; a missing directory is success.
pub fn clear_dir(path: &Path) -> io::Result<()> {
    let flags = OFlag::O_DIRECTORY | OFlag::O_RDONLY | OFlag::O_CLOEXEC;
    let dir = match retry(|| openat(AT_FDCWD, path, flags, NONE)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    let mut removal = Removal { limits: LIMITS, entries: 0, first_error: None };
    loop {
        let names = read_names(dir.as_fd(), &[])?;
        if names.is_empty() {
            return Ok(());
        }
        removal.run(dir.try_clone()?, names)?;
    }
}

const NONE: Mode = Mode::empty();

const LIMITS: Limits = Limits { depth: MAX_DEPTH, entries: MAX_ENTRIES };

#[derive(Clone, Copy)]
struct Limits {
    depth: usize,
    entries: usize,
}

struct Removal {
    limits: Limits,
    entries: usize,
    first_error: Option<io::Error>,
}

/// A directory that is being emptied.
struct Level {
    dir: OwnedFd,
    /// Name in the directory above; empty for the first level, which itself is kept.
    name: CString,
    /// Read and not yet removed.
    pending: Vec<CString>,
    /// Could not be removed; not tried again.
    stuck: Vec<CString>,
}

impl Removal {
    /// Removes `names` from `dir`, depth first, without recursion.
    fn run(&mut self, dir: OwnedFd, names: Vec<CString>) -> io::Result<()> {
        let mut levels =
            vec![Level { dir, name: CString::default(), pending: names, stuck: Vec::new() }];
        loop {
            let depth = levels.len();
            let Some(level) = levels.last_mut() else { break };
            if let Some(name) = level.pending.pop() {
                self.entries += 1;
                if self.entries > self.limits.entries {
                    return Err(io::Error::other("too many entries to remove"));
                }
                match self.take(level.dir.as_fd(), &name, depth) {
                    Ok(None) => {}
                    Ok(Some(below)) => levels.push(below),
                    Err(error) => self.note(levels.last_mut(), name, error),
                }
            } else if depth == 1 {
                break;
            } else {
                self.refill_or_leave(&mut levels);
            }
        }
        self.first_error.take().map_or(Ok(()), Err)
    }

    /// Removes one entry, or returns it as the next level if it is a directory.
    fn take(&self, dir: BorrowedFd<'_>, name: &CString, depth: usize) -> io::Result<Option<Level>> {
        fault::point("tree entry");
        progress::step();
        let file = retry(|| unlinkat(dir, name.as_c_str(), UnlinkatFlags::NoRemoveDir));
        match file {
            Ok(()) => return Ok(None),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            // Linux says EISDIR, POSIX (and some file systems) EPERM.
            Err(error) if is_errno(&error, Errno::EISDIR) || is_errno(&error, Errno::EPERM) => {}
            Err(error) => return Err(error),
        }
        if depth > self.limits.depth {
            return Err(io::Error::other("directory tree is too deep to remove"));
        }
        let below = open_same_mount(dir, name)?;
        let pending = read_names(below.as_fd(), &[])?;
        Ok(Some(Level { dir: below, name: name.clone(), pending, stuck: Vec::new() }))
    }

    /// The lowest level has no more names: read again, or remove the directory itself.
    fn refill_or_leave(&mut self, levels: &mut Vec<Level>) {
        let Some(mut level) = levels.pop() else { return };
        let read = read_names(level.dir.as_fd(), &level.stuck);
        match read {
            Ok(names) if !names.is_empty() => {
                level.pending = names;
                levels.push(level);
                return;
            }
            Err(error) => return self.note(levels.last_mut(), level.name, error),
            Ok(_) => {}
        }
        let Some(above) = levels.last_mut() else { return };
        let name = level.name.as_c_str();
        let removed = retry(|| unlinkat(&above.dir, name, UnlinkatFlags::RemoveDir));
        match removed {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                self.note(Some(above), level.name, error);
            }
            _ => {}
        }
    }

    fn note(&mut self, level: Option<&mut Level>, name: CString, error: io::Error) {
        if let Some(level) = level {
            level.stuck.push(name);
        }
        self.first_error.get_or_insert(error);
    }
}

/// Up to `BATCH` names of a directory, without those to skip.
fn read_names(dir: BorrowedFd<'_>, skip: &[CString]) -> io::Result<Vec<CString>> {
    let mut names = Vec::new();
    let mut entries = retry(|| Dir::openat(dir, ".", DIRECTORY, NONE))?;
    for entry in entries.iter() {
        let name = entry?.file_name().to_owned();
        if name.as_bytes() == b"." || name.as_bytes() == b".." || skip.contains(&name) {
            continue;
        }
        names.push(name);
        if names.len() == BATCH {
            break;
        }
    }
    Ok(names)
}

/// Opens a directory in `dir`; `EXDEV` when something is mounted on it.
fn open_same_mount(dir: BorrowedFd<'_>, name: &CString) -> io::Result<OwnedFd> {
    let resolve = ResolveFlag::RESOLVE_NO_XDEV
        | ResolveFlag::RESOLVE_NO_SYMLINKS
        | ResolveFlag::RESOLVE_BENEATH;
    let how = OpenHow::new().flags(DIRECTORY).resolve(resolve);
    match retry(|| openat2(dir, name.as_c_str(), how)) {
        // Before Linux 5.6.
        Err(error) if is_errno(&error, Errno::ENOSYS) => open_comparing(dir, name),
        other => other,
    }
}

/// `open_same_mount` by comparing the mount ids of both descriptors.
fn open_comparing(dir: BorrowedFd<'_>, name: &CString) -> io::Result<OwnedFd> {
    let below = retry(|| openat(dir, name.as_c_str(), DIRECTORY, NONE))?;
    if mount_id(below.as_fd())? == mount_id(dir)? { Ok(below) } else { Err(Errno::EXDEV.into()) }
}

/// Id of the mount in which a descriptor was opened, as `mountinfo` spells it.
pub(crate) fn mount_id(fd: BorrowedFd<'_>) -> io::Result<String> {
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_raw_fd()))?;
    let id = info.lines().find_map(|line| line.strip_prefix("mnt_id:"));
    id.map(|id| id.trim().to_owned()).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::sys::fs::{open_dir, write_plain};
    use crate::sys::mount::{isolate, tmpfs, unmount};
    use crate::sys::thread::spawn;

    fn fill(dir: &Path, files: usize) {
        fs::create_dir_all(dir).unwrap();
        for index in 0..files {
            write_plain(&dir.join(index.to_string()), b"x", 0o600).unwrap();
        }
    }

    #[test]
    fn trees_go_and_what_links_point_to_stays() {
        let dir = tempfile::tempdir().unwrap();
        let tree = dir.path().join("tree");
        let kept = dir.path().join("kept");
        fill(&kept, 3);
        fill(&tree.join("big"), 3 * BATCH + 1);
        fill(&tree.join("a/b/c"), 2);
        symlink(&kept, tree.join("link")).unwrap();
        symlink("/nowhere", tree.join("a/dangling")).unwrap();
        remove_tree(&tree).unwrap();
        assert!(!tree.exists());
        assert_eq!(fs::read_dir(&kept).unwrap().count(), 3);
        remove_tree(&tree).unwrap();
        remove_tree(&dir.path().join("no/such")).unwrap();
        remove_tree(&kept.join("0")).unwrap();
        clear_dir(&kept).unwrap();
        assert_eq!(fs::read_dir(&kept).unwrap().count(), 0);
        clear_dir(&tree).unwrap();
        remove_tree(Path::new("/")).unwrap_err();
    }

    #[test]
    fn limits_of_a_tree() {
        let check = |depth: usize, files: usize, limits: Limits, expect: bool| {
            let dir = tempfile::tempdir().unwrap();
            fill(&dir.path().join("d/".repeat(depth)), files);
            let mut removal = Removal { limits, entries: 0, first_error: None };
            let names = vec![CString::new("d").unwrap()];
            let result = removal.run(open_dir(dir.path()).unwrap(), names);
            assert_eq!(result.is_ok(), expect, "{depth} {files}: {result:?}");
        };
        check(5, 5, Limits { depth: 5, entries: 10 }, true);
        check(6, 5, Limits { depth: 5, entries: 11 }, false);
        check(5, 6, Limits { depth: 5, entries: 10 }, false);
        check(MAX_DEPTH, 1, LIMITS, true);
    }

    #[test]
    fn mounts_are_not_crossed() {
        let thread = spawn("tree-test", || {
            let dir = tempfile::tempdir().unwrap();
            let tree = dir.path().join("tree");
            let inner = tree.join("mounted");
            fill(&inner, 0);
            fill(&tree.join("other"), 4);
            if isolate().and_then(|()| tmpfs(&inner, None, 0o755)).is_err() {
                println!("SKIP mounts_are_not_crossed: needs CAP_SYS_ADMIN");
                return;
            }
            fill(&inner, 2);
            remove_tree(&tree).unwrap_err();
            assert_eq!(fs::read_dir(&inner).unwrap().count(), 2);
            assert!(!tree.join("other").exists());
            let (root, name) = (open_dir(&tree).unwrap(), CString::new("mounted").unwrap());
            for open in [open_same_mount, open_comparing] {
                assert!(is_errno(&open(root.as_fd(), &name).unwrap_err(), Errno::EXDEV));
            }
            unmount(&inner).unwrap();
            remove_tree(&tree).unwrap();
            assert!(!tree.exists());
        });
        thread.unwrap().join().unwrap();
    }
}
