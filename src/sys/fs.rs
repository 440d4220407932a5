//! Files and directories: atomic writes, removal that cannot leave its tree, opening beneath a
//! directory. Paths come from our own configuration; relative parts from outside go through
//! `open_beneath` and `make_dirs_beneath`.

use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg, OFlag, OpenHow, ResolveFlag, open, openat, openat2};
use nix::sys::stat::{Mode, mkdirat};

use crate::sys::{fault, is_errno, retry};

pub use crate::sys::tree::{clear_dir, remove_tree};

/// Replaces a file so that a crash at any moment leaves the old or the new content: temporary
/// file, fsync, rename, fsync of the directory.
pub fn write_atomic(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    fault::point("file step");
    let flush = |file: &File| {
        fault::point("file step");
        file.sync_all()?;
        fault::point("file step");
        Ok(())
    };
    replace(path, content, mode, flush)?;
    fault::point("file step");
    sync_dir(parent(path))?;
    fault::point("file step");
    Ok(())
}

/// Replaces a file by rename without any flush: for tmpfs, where readers matter but power does
/// not.
pub fn write_volatile(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    replace(path, content, mode, |_| Ok(()))
}

/// Creates or truncates a file and writes it, without flush and without rename.
pub fn write_plain(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    create(path, mode)?.write_all(content)
}

fn replace(
    path: &Path,
    content: &[u8],
    mode: u32,
    flush: impl FnOnce(&File) -> io::Result<()>,
) -> io::Result<()> {
    let mut name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?.to_owned();
    name.push(".tmp");
    let temporary = path.with_file_name(name);
    let written = create(&temporary, mode).and_then(|mut file| {
        file.write_all(content)?;
        flush(&file)
    });
    let renamed = written.and_then(|()| fs::rename(&temporary, path));
    if renamed.is_err() {
        // The first error is the one that matters; the next write truncates what stays.
        let _ = fs::remove_file(&temporary);
    }
    renamed
}

fn create(path: &Path, mode: u32) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(mode);
    options.custom_flags(libc::O_NOFOLLOW).open(path)
}

fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    }
}

/// Makes a directory and its missing parents with this mode; an existing one is success.
pub fn make_dirs(path: &Path, mode: u32) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(mode).create(path)
}

/// Flushes the entries of a directory.
pub fn sync_dir(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// Flushes the whole file system on which `path` lies.
pub fn sync_fs(path: &Path) -> io::Result<()> {
    let file = File::open(path)?;
    retry(|| nix::unistd::syncfs(&file))
}

/// Takes the lock of a lock file for as long as the result lives; `None` = somebody has it.
pub fn try_lock(path: &Path, mode: u32) -> io::Result<Option<Flock<File>>> {
    let mut options = OpenOptions::new();
    let file = options.write(true).create(true).truncate(false).mode(mode).open(path)?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => Ok(Some(lock)),
        Err((_, Errno::EWOULDBLOCK)) => Ok(None),
        Err((_, errno)) => Err(errno.into()),
    }
}

/// Opens a directory for the functions below.
pub fn open_dir(path: &Path) -> io::Result<OwnedFd> {
    retry(|| open(path, DIRECTORY, Mode::empty()))
}

const DIRECTORY: OFlag = OFlag::O_DIRECTORY.union(OFlag::O_RDONLY).union(OFlag::O_CLOEXEC);

/// Opens `relative` below `root` without ever leaving it: no absolute path, no `..`, no symbolic
/// link. `flags` are completed by close-on-exec. `InvalidInput` = the path is not of this form.
pub fn open_beneath(
    root: BorrowedFd<'_>,
    relative: &Path,
    flags: OFlag,
    mode: Mode,
) -> io::Result<OwnedFd> {
    let names = plain_names(relative)?;
    let flags = flags | OFlag::O_CLOEXEC;
    // The kernel refuses a mode without the right to create.
    let mode = if flags.contains(OFlag::O_CREAT) { mode } else { Mode::empty() };
    let how = OpenHow::new().flags(flags).mode(mode).resolve(
        ResolveFlag::RESOLVE_BENEATH
            | ResolveFlag::RESOLVE_NO_SYMLINKS
            | ResolveFlag::RESOLVE_NO_MAGICLINKS,
    );
    let joined: PathBuf = names.iter().collect();
    match retry(|| openat2(root, &joined, how)) {
        // Before Linux 5.6.
        Err(error) if is_errno(&error, Errno::ENOSYS) => walk(root, &names, flags, mode),
        other => other,
    }
}

/// Opens an existing regular file for reading as a process would whose root is `root`: absolute
/// paths and symbolic links begin there. Never waits for the other end of a FIFO.
/// `ENOSYS` = the kernel (before Linux 5.6) cannot.
pub fn open_in_root(root: BorrowedFd<'_>, path: &Path) -> io::Result<File> {
    let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
    let resolve = ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS;
    let how = OpenHow::new().flags(flags).resolve(resolve);
    let file = File::from(retry(|| openat2(root, path, how))?);
    if file.metadata()?.is_file() { Ok(file) } else { Err(Errno::EACCES.into()) }
}

/// `open_beneath` one name at a time.
fn walk(root: BorrowedFd<'_>, names: &[&OsStr], flags: OFlag, mode: Mode) -> io::Result<OwnedFd> {
    let (last, parents) = names.split_last().ok_or(io::ErrorKind::InvalidInput)?;
    let mut at = root.try_clone_to_owned()?;
    for name in parents {
        at = retry(|| openat(&at, *name, DIRECTORY | OFlag::O_NOFOLLOW, Mode::empty()))?;
    }
    let file = retry(|| openat(&at, *last, flags | OFlag::O_NOFOLLOW, mode))?;
    Ok(file)
}

/// Makes the directories of `relative` below `root` where they are missing, with this mode, and
/// opens the last one. Follows no symbolic link.
pub fn make_dirs_beneath(root: BorrowedFd<'_>, relative: &Path, mode: Mode) -> io::Result<OwnedFd> {
    let mut at = root.try_clone_to_owned()?;
    for name in plain_names(relative)? {
        match retry(|| mkdirat(&at, name, mode)) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        at = retry(|| openat(&at, name, DIRECTORY | OFlag::O_NOFOLLOW, Mode::empty()))?;
    }
    Ok(at)
}

/// The names of a relative path that has only names in it, at least one.
fn plain_names(relative: &Path) -> io::Result<Vec<&OsStr>> {
    let invalid = || {
        let text = format!("{} is no plain relative path", relative.display());
        io::Error::new(io::ErrorKind::InvalidInput, text)
    };
    let mut names = Vec::new();
    for component in relative.components() {
        match component {
            Component::Normal(name) => names.push(name),
            Component::CurDir => {}
            _ => return Err(invalid()),
        }
    }
    if names.is_empty() { Err(invalid()) } else { Ok(names) }
}

/// True when both paths lie on the same file system.
pub fn same_file_system(one: &Path, other: &Path) -> io::Result<bool> {
    use std::os::unix::fs::MetadataExt;
    Ok(fs::metadata(one)?.dev() == fs::metadata(other)?.dev())
}

/// Writes to a file that exists already: a control file of `/sys` or `/proc`.
pub fn write_existing(path: &Path, content: &str) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).open(path)?;
    // One write: a control file takes each write as a command of its own.
    let written = retry(|| nix::unistd::write(file.as_fd(), content.as_bytes()))?;
    if written == content.len() { file.flush() } else { Err(io::ErrorKind::WriteZero.into()) }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    #[test]
    fn writes_replace_and_leave_no_temporary_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        for write in [write_atomic, write_volatile, write_plain] {
            for content in ["long content", "short", ""] {
                write(&path, content.as_bytes(), 0o600).unwrap();
                assert_eq!(fs::read_to_string(&path).unwrap(), content);
                assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
                assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
            }
        }
    }

    #[test]
    fn a_failed_write_keeps_the_old_state() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("occupied");
        fs::create_dir(&target).unwrap();
        write_atomic(&target, b"x", 0o600).unwrap_err();
        assert!(target.is_dir());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        write_atomic(&dir.path().join("missing/file"), b"x", 0o600).unwrap_err();
        write_atomic(Path::new("/"), b"x", 0o600).unwrap_err();
    }

    #[test]
    fn nothing_opens_outside_of_the_root() {
        let dir = tempfile::tempdir().unwrap();
        let root_path = dir.path().join("root");
        fs::create_dir_all(root_path.join("a/b")).unwrap();
        fs::create_dir(dir.path().join("outside")).unwrap();
        for name in ["root/a/b/file", "outside/file"] {
            write_plain(&dir.path().join(name), b"x", 0o600).unwrap();
        }
        symlink("../outside", root_path.join("up")).unwrap();
        symlink("a", root_path.join("within")).unwrap();
        let root = open_dir(&root_path).unwrap();
        let check = |relative: &str, expect: bool| {
            let read = OFlag::O_RDONLY;
            let opened = open_beneath(root.as_fd(), Path::new(relative), read, Mode::empty());
            assert_eq!(opened.is_ok(), expect, "{relative}: {opened:?}");
            if let Ok(names) = plain_names(Path::new(relative)) {
                let walked = walk(root.as_fd(), &names, read, Mode::empty());
                assert_eq!(walked.is_ok(), expect, "{relative}: {walked:?}");
            }
        };
        check("a/b/file", true);
        check("./a/b", true);
        check("a/./b//file", true);
        for relative in ["", ".", "..", "/", "/etc/passwd", "a/../../outside/file", "a/..", "a/x"] {
            check(relative, false);
        }
        for relative in ["up/file", "up", "within/b/file", "a/b/file/x"] {
            check(relative, false);
        }
    }

    #[test]
    fn directories_are_made_beneath() {
        let dir = tempfile::tempdir().unwrap();
        symlink("/tmp", dir.path().join("link")).unwrap();
        let root = open_dir(dir.path()).unwrap();
        let make = |relative: &str| {
            make_dirs_beneath(root.as_fd(), Path::new(relative), Mode::from_bits_retain(0o700))
        };
        make("a/b/c").unwrap();
        make("a/b/c").unwrap();
        assert!(dir.path().join("a/b/c").is_dir());
        for relative in ["link/x", "../x", "/x", ""] {
            make(relative).unwrap_err();
        }
        let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_WRONLY;
        let path = Path::new("a/b/new");
        open_beneath(root.as_fd(), path, flags, Mode::from_bits_retain(0o600)).unwrap();
        open_beneath(root.as_fd(), path, flags, Mode::from_bits_retain(0o600)).unwrap_err();
    }

    #[test]
    fn one_holder_of_a_lock() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let first = try_lock(&path, 0o600).unwrap();
        assert!(first.is_some());
        assert!(try_lock(&path, 0o600).unwrap().is_none());
        drop(first);
        assert!(try_lock(&path, 0o600).unwrap().is_some());
    }
}
