//! What a tree holds, and the digest of that: the canonical listing of all entries.
//!
//! Fetch thread; checks in the background later. A listing comes into being while an archive is
//! unpacked, without reading anything back, or by walking a tree that stands (`scan`). Both give
//! the same digest. Links are never followed and nothing but regular files is opened. Not here:
//! creating entries (`unpack.rs`).

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use nix::dir::Dir;
use nix::fcntl::{AtFlags, OFlag, openat, readlinkat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat, fstatat};
use openssl::sha::Sha256;

use crate::image::digest::hex;
use crate::image::error::Error;
use crate::image::{MOST_ENTRIES, names};
use crate::ports::Halt;
use crate::sys::{self, xattr};

/// Names the algorithm in front of a tree digest, so that another one can follow.
const SCHEME: &str = "tree1:";
/// Most entries that a scan takes in: those of the largest archive, and the tree itself.
const MAX_SCAN_ENTRIES: usize = MOST_ENTRIES as usize + 1;

/// One entry of a tree. Everything in it belongs to user 0 and one group.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Node {
    Directory { mode: u32, opaque: bool, mtime_s: Option<i64> },
    File { mode: u32, size: u64, sha256: [u8; 32] },
    Symlink { target: Box<[u8]> },
    Whiteout,
}

/// All entries by their path; the empty path is the tree itself.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Listing(pub(super) BTreeMap<Vec<u8>, Node>);

impl Listing {
    /// Digest over paths in byte order, types, modes, owners, sizes, contents and link texts.
    /// Times are not in it: they do no harm, and restoring a store loses them.
    pub(super) fn digest(&self, gid: u32) -> String {
        let mut sum = Sha256::new();
        for (path, node) in &self.0 {
            bytes(&mut sum, path);
            sum.update(&gid.to_be_bytes());
            match node {
                Node::Directory { mode, opaque, .. } => {
                    sum.update(b"d");
                    sum.update(&mode.to_be_bytes());
                    sum.update(&[u8::from(*opaque)]);
                }
                Node::File { mode, size, sha256 } => {
                    sum.update(b"f");
                    sum.update(&mode.to_be_bytes());
                    sum.update(&size.to_be_bytes());
                    sum.update(sha256);
                }
                Node::Symlink { target } => {
                    sum.update(b"l");
                    bytes(&mut sum, target);
                }
                Node::Whiteout => sum.update(b"w"),
            }
        }
        format!("{SCHEME}{}", hex(&sum.finish()))
    }

    /// Digest by the rules of the reference, restricted to regular files: the contents in the
    /// order of the paths. It says less, but an image that was taken over has no other.
    pub(super) fn reference_digest(&self) -> String {
        let mut sum = Sha256::new();
        for node in self.0.values() {
            if let Node::File { sha256, .. } = node {
                sum.update(hex(sha256).as_bytes());
                sum.update(b"\n");
            }
        }
        format!("sha256:{}", hex(&sum.finish()))
    }
}

/// Length first, so that no two listings have the same bytes.
fn bytes(sum: &mut Sha256, text: &[u8]) {
    sum.update(&(text.len() as u64).to_be_bytes());
    sum.update(text);
}

/// Lists a tree that stands on disk. Owner and type of every entry are checked on the way: a tree
/// with a foreign owner or a device in it is not one that was installed.
pub(super) fn scan(root: &Path, gid: u32, halt: Halt<'_>) -> Result<Listing, Error> {
    scan_up_to(MAX_SCAN_ENTRIES, root, gid, halt)
}

fn scan_up_to(most: usize, root: &Path, gid: u32, halt: Halt<'_>) -> Result<Listing, Error> {
    let dir = sys::fs::open_dir(root).map_err(Error::io("open", root))?;
    let mut scan = Scan { most, root, gid, halt, listing: Listing::default() };
    let stat = fstat(&dir).map_err(|errno| Error::io("read", root)(errno.into()))?;
    scan.directory(Vec::new(), &stat, dir.as_fd())?;
    // Directories by path, not by descriptor: a deep tree would need as many descriptors.
    let mut pending = vec![Vec::new()];
    while let Some(path) = pending.pop() {
        let dir = scan.open(&path, dir.as_fd())?;
        for name in entries(dir.try_clone()).map_err(Error::io("list", scan.shown(&path)))? {
            let below = names::join(&path, &name);
            if scan.entry(below.clone(), &name, dir.as_fd())? {
                pending.push(below);
            }
        }
    }
    Ok(scan.listing)
}

struct Scan<'a> {
    /// More entries than this are not those of an image.
    most: usize,
    root: &'a Path,
    gid: u32,
    halt: Halt<'a>,
    listing: Listing,
}

impl Scan<'_> {
    fn shown(&self, path: &[u8]) -> PathBuf {
        self.root.join(OsStr::from_bytes(path))
    }

    fn foreign(&self, path: &[u8]) -> Error {
        Error::NotOurs { path: self.shown(path) }
    }

    fn open(&self, path: &[u8], root: BorrowedFd<'_>) -> Result<OwnedFd, Error> {
        let opened = if path.is_empty() {
            root.try_clone_to_owned()
        } else {
            let flags = OFlag::O_DIRECTORY | OFlag::O_RDONLY;
            let relative = Path::new(OsStr::from_bytes(path));
            sys::fs::open_beneath(root, relative, flags, Mode::empty())
        };
        opened.map_err(Error::io("open", self.shown(path)))
    }

    fn directory(
        &mut self,
        path: Vec<u8>,
        stat: &FileStat,
        fd: BorrowedFd<'_>,
    ) -> Result<(), Error> {
        self.check_owner(&path, stat)?;
        let opaque =
            xattr::get_open(fd, xattr::OPAQUE).map_err(Error::io("read", self.shown(&path)))?;
        let mode = stat.st_mode & 0o7777;
        let opaque = opaque.as_deref() == Some(b"y");
        let mtime_s = Some(stat.st_mtime);
        self.listing.0.insert(path, Node::Directory { mode, opaque, mtime_s });
        Ok(())
    }

    fn check_owner(&self, path: &[u8], stat: &FileStat) -> Result<(), Error> {
        let known = stat.st_uid == 0 && stat.st_gid == self.gid;
        if known && self.listing.0.len() < self.most { Ok(()) } else { Err(self.foreign(path)) }
    }

    /// Takes in one entry and says whether it is a directory.
    fn entry(&mut self, path: Vec<u8>, name: &[u8], dir: BorrowedFd<'_>) -> Result<bool, Error> {
        if (self.halt)() {
            return Err(Error::Halted);
        }
        let shown = self.shown(&path);
        let read = |errno: nix::errno::Errno| Error::io("read", &shown)(errno.into());
        let stat = fstatat(dir, name, AtFlags::AT_SYMLINK_NOFOLLOW).map_err(read)?;
        let kind = SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits());
        if kind == SFlag::S_IFDIR {
            let flags = OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
            let fd = openat(dir, name, flags, Mode::empty()).map_err(read)?;
            self.directory(path, &stat, fd.as_fd())?;
            return Ok(true);
        }
        self.check_owner(&path, &stat)?;
        let node = match kind {
            SFlag::S_IFREG => {
                let hashed = hash_file(dir, name, self.halt).map_err(Error::io("read", &shown))?;
                let (sha256, size) = hashed.ok_or(Error::Halted)?;
                Node::File { mode: stat.st_mode & 0o7777, size, sha256 }
            }
            SFlag::S_IFLNK => {
                let target = readlinkat(dir, name).map_err(read)?;
                Node::Symlink { target: target.into_vec().into_boxed_slice() }
            }
            SFlag::S_IFCHR if stat.st_rdev == 0 => Node::Whiteout,
            _ => return Err(self.foreign(&path)),
        };
        self.listing.0.insert(path, node);
        Ok(false)
    }
}

fn entries(dir: io::Result<OwnedFd>) -> io::Result<Vec<Vec<u8>>> {
    let mut dir = Dir::from_fd(dir?)?;
    let mut found = Vec::new();
    for entry in dir.iter() {
        let name = entry?.file_name().to_bytes().to_vec();
        if name != b"." && name != b".." {
            found.push(name);
        }
    }
    Ok(found)
}

/// Hash and size; `None` = halted.
fn hash_file(
    dir: BorrowedFd<'_>,
    name: &[u8],
    halt: Halt<'_>,
) -> io::Result<Option<([u8; 32], u64)>> {
    let mut file = open_regular(dir, name)?;
    let mut buffer = vec![0; 64 << 10];
    let mut sum = Sha256::new();
    let mut size = 0;
    loop {
        let read = file.read(&mut buffer)?;
        if read == 0 {
            return Ok(Some((sum.finish(), size)));
        }
        if halt() {
            return Ok(None);
        }
        sum.update(&buffer[..read]);
        size += read as u64;
    }
}

/// Opens a regular file in a directory; anything else is an error and is not waited for.
pub(super) fn open_regular(dir: BorrowedFd<'_>, name: &[u8]) -> io::Result<File> {
    let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    let fd = sys::retry(|| openat(dir, name, flags, Mode::empty()))?;
    regular(File::from(fd))
}

/// Gives back a file that is a regular one.
pub(super) fn regular(file: File) -> io::Result<File> {
    if file.metadata()?.is_file() {
        Ok(file)
    } else {
        Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    fn write(path: &Path, content: &str, mode: u32) {
        sys::fs::write_plain(path, content.as_bytes(), mode).unwrap();
    }

    fn sample(dir: &Path) -> PathBuf {
        let root = dir.join("root");
        std::fs::create_dir_all(root.join("d/e")).unwrap();
        write(&root.join("d/f"), "content", 0o640);
        write(&root.join("d-g"), "", 0o600);
        symlink("/nowhere", root.join("link")).unwrap();
        root
    }

    #[test]
    fn every_change_changes_the_digest() {
        type Change = fn(&Path);
        let changes: [Change; 9] = [
            |root| write(&root.join("d/f"), "Content", 0o640),
            |root| write(&root.join("d/new"), "", 0o640),
            |root| std::fs::remove_dir(root.join("d/e")).unwrap(),
            |root| std::fs::rename(root.join("d-g"), root.join("d-h")).unwrap(),
            |root| {
                std::fs::remove_file(root.join("link")).unwrap();
                symlink("/elsewhere", root.join("link")).unwrap();
            },
            |root| {
                let mode = std::fs::Permissions::from_mode(0o641);
                std::fs::set_permissions(root.join("d/f"), mode).unwrap();
            },
            |root| {
                let mode = std::fs::Permissions::from_mode(0o700);
                std::fs::set_permissions(root.join("d/e"), mode).unwrap();
            },
            |root| {
                let root = sys::fs::open_dir(root).unwrap();
                xattr::set_open(root.as_fd(), xattr::OPAQUE, b"y").unwrap();
            },
            |root| {
                let (kind, mode) = (SFlag::S_IFCHR, Mode::empty());
                nix::sys::stat::mknod(&root.join("gone"), kind, mode, 0).unwrap();
            },
        ];
        let dir = tempfile::tempdir().unwrap();
        let digest = |root: &Path| scan(root, 0, &|| false).unwrap().digest(0);
        let original = digest(&sample(dir.path()));
        let mut seen = vec![original.clone()];
        for (index, change) in changes.iter().enumerate() {
            let dir = tempfile::tempdir().unwrap();
            let root = sample(dir.path());
            assert_eq!(digest(&root), original);
            change(&root);
            let changed = digest(&root);
            assert!(!seen.contains(&changed), "change {index}");
            seen.push(changed);
        }
    }

    #[test]
    fn foreign_entries_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let root = sample(dir.path());
        assert!(scan(&root, 5, &|| false).is_err(), "other group");
        nix::unistd::mkfifo(&root.join("d/fifo"), Mode::S_IRUSR).unwrap();
        let error = scan(&root, 0, &|| false).unwrap_err().to_string();
        assert!(error.contains("d/fifo"), "{error}");
        assert!(scan(&root.join("missing"), 0, &|| false).is_err());
    }

    #[test]
    fn a_tree_without_end_is_not_taken_in() {
        let dir = tempfile::tempdir().unwrap();
        let root = sample(dir.path());
        let all = scan(&root, 0, &|| false).unwrap();
        assert_eq!(scan_up_to(all.0.len(), &root, 0, &|| false).unwrap(), all);
        let error = scan_up_to(all.0.len() - 1, &root, 0, &|| false).unwrap_err();
        assert!(matches!(error, Error::NotOurs { .. }), "{error}");
    }

    /// The vectors of the storage document.
    #[test]
    fn the_digest_of_the_reference() {
        let check = |files: &[(&str, &str)], expect: &str| {
            let dir = tempfile::tempdir().unwrap();
            for (path, content) in files {
                let path = dir.path().join(path);
                std::fs::create_dir_all(path.parent().unwrap()).unwrap();
                write(&path, content, 0o644);
            }
            let digest = scan(dir.path(), 0, &|| false).unwrap().reference_digest();
            assert_eq!(digest, format!("sha256:{expect}"), "{files:?}");
        };
        check(&[], "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
        let app = "c31379f84f44b97b924ad817e32f750f69cdfaddf08140033bd441056ff7271d";
        check(&[("bin/app", "hello\n")], app);
        let sorted = "bc49a9cac504583a05aee23a77b0fde826f22770138e22d150633e76d9e881c2";
        check(&[("a/b", "1\n"), ("a-b", "2\n")], sorted);
    }
}
