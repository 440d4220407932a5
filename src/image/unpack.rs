//! Unpacks the archive of a root file system or layer into a directory that it cannot leave.
//!
//! Fetch thread. In: a tar stream and an empty directory. Out: the tree and its listing. Every
//! step into a directory is one `openat` of one checked name that must be a real directory, so no
//! link and no `..` is ever resolved by the kernel on our behalf; one directory stays open. Existing entries are replaced by unlinking them, never by writing into them; a
//! directory is never replaced. Owner is 0 and the given group, set-user-id and set-group-id bits
//! go, extended attributes of the archive are dropped, times are clamped. Whiteout markers become
//! what overlayfs understands, at the end, when it is known what else the archive holds.

use std::ffi::OsStr;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use nix::fcntl::{AtFlags, OFlag, openat};
use nix::sys::stat::{Mode, SFlag, UtimensatFlags, fchmod, futimens, mkdirat, mknodat, utimensat};
use nix::sys::time::TimeSpec;
use nix::unistd::{
    Gid, LinkatFlags, Uid, UnlinkatFlags, fchown, fchownat, linkat, symlinkat, unlinkat,
};
use openssl::sha::Sha256;

use crate::image::archive::{Archive, read_error};
use crate::image::error::Error;
use crate::image::listing::{Listing, Node};
use crate::image::names::{self, MAX_PATH_BYTES, Meaning};
use crate::image::space::Space;
use crate::image::tar::{Kind, Member, Reader};
use crate::sys::{self, xattr};

/// Mode of directories that the archive does not mention.
const IMPLICIT_DIRECTORY_MODE: u32 = 0o755;
/// Permission bits that an archive may set.
const MODE_MASK: u32 = 0o1777;
/// Content of a whiteout marker that is read over; it should be empty.
const MAX_MARKER_BYTES: u64 = 64 << 10;
const COPY_BUFFER_BYTES: usize = 64 << 10;

/// What holds for one archive.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rules {
    /// Group of all entries; their user is 0.
    pub(super) gid: u32,
    pub(super) max_entries: u32,
    pub(super) max_depth: usize,
    /// Unix time in seconds: no entry is younger.
    pub(super) now_s: i64,
}

/// Unpacks all of `archive` into the empty directory `root`, whose path serves for messages.
pub(super) fn unpack(
    archive: &mut Archive<'_>,
    root: (OwnedFd, PathBuf),
    rules: Rules,
    space: &mut Space<'_>,
) -> Result<Listing, Error> {
    let part = archive.part();
    let mut reader = Reader::new(archive);
    let mut tree = Tree::new(root, rules, part, space);
    let next =
        |reader: &mut Reader<_>| reader.next().map_err(|source| Error::Archive { part, source });
    while let Some(member) = next(&mut reader)? {
        tree.add(&member, &mut reader)?;
    }
    tree.finish()
}

/// The tree while it grows.
struct Tree<'a, 's> {
    root: OwnedFd,
    root_path: PathBuf,
    rules: Rules,
    part: &'static str,
    space: &'a mut Space<'s>,
    /// The directory that was entered last; none = the root.
    here: Option<OwnedFd>,
    /// Its path.
    at: Vec<u8>,
    listing: Listing,
    /// Paths to hide in lower layers.
    whiteouts: Vec<Vec<u8>>,
    entries: u32,
    buffer: Vec<u8>,
}

impl<'a, 's> Tree<'a, 's> {
    fn new(
        (root, root_path): (OwnedFd, PathBuf),
        rules: Rules,
        part: &'static str,
        space: &'a mut Space<'s>,
    ) -> Self {
        let mut listing = Listing::default();
        listing.0.insert(Vec::new(), IMPLICIT);
        Self {
            root,
            root_path,
            rules,
            part,
            space,
            here: None,
            at: Vec::new(),
            listing,
            whiteouts: Vec::new(),
            entries: 0,
            buffer: vec![0; COPY_BUFFER_BYTES],
        }
    }

    fn add(&mut self, member: &Member, content: &mut impl Read) -> Result<(), Error> {
        self.count()?;
        let refused = |source| Error::Name { name: names::shown(&member.path), source };
        let path = names::normalise(&member.path, self.rules.max_depth).map_err(refused)?;
        if path.is_empty() && member.kind != Kind::Directory {
            return Err(refuse(member, "only a directory can be the target directory"));
        }
        match names::meaning(&path).map_err(refused)? {
            Meaning::Plain => self.add_plain(path, member, content),
            Meaning::Reserved => skip_marker(member),
            marker if member.kind == Kind::File => {
                skip_marker(member)?;
                self.add_marker(&path, marker)
            }
            _ => Err(refuse(member, "a whiteout marker must be a regular file")),
        }
    }

    fn count(&mut self) -> Result<(), Error> {
        self.entries += 1;
        let limit = self.rules.max_entries;
        if self.entries > limit { Err(Error::Entries { part: self.part, limit }) } else { Ok(()) }
    }

    fn add_plain(
        &mut self,
        path: Vec<u8>,
        member: &Member,
        content: &mut impl Read,
    ) -> Result<(), Error> {
        match member.kind {
            Kind::Directory => self.directory(path, member),
            Kind::File => self.file(path, member, content),
            Kind::Symlink => self.symlink(path, member),
            Kind::HardLink => self.hard_link(path, member),
            // How overlayfs itself, and layers made from its upper directories, spell a whiteout.
            Kind::CharDevice if member.device == (0, 0) => {
                self.add_marker(&path.clone(), Meaning::Whiteout(path))
            }
            Kind::CharDevice | Kind::BlockDevice => {
                Err(refuse(member, "device nodes are not allowed"))
            }
            Kind::Fifo => Err(refuse(member, "FIFOs are not allowed")),
        }
    }

    fn add_marker(&mut self, path: &[u8], marker: Meaning) -> Result<(), Error> {
        let (directory, _) = names::split(path);
        self.enter(directory)?;
        match marker {
            Meaning::Whiteout(hidden) => self.whiteouts.push(hidden),
            _ => {
                if let Some(Node::Directory { opaque, .. }) = self.listing.0.get_mut(directory) {
                    *opaque = true;
                }
            }
        }
        Ok(())
    }

    /// Goes into a directory of the tree, making what is missing of it. A link or file on the way
    /// is an error.
    fn enter(&mut self, directory: &[u8]) -> Result<(), Error> {
        if !is_above(&self.at, directory) {
            self.here = None;
            self.at.clear();
        }
        let rest = directory[self.at.len()..].split(|byte| *byte == b'/');
        for name in rest.filter(|name| !name.is_empty()) {
            let path = names::join(&self.at, name);
            match self.listing.0.get(&path) {
                Some(Node::Directory { .. }) => {}
                Some(_) => {
                    let reason = "it lies below an entry that is no directory";
                    return Err(Error::Member { name: names::shown(directory), reason });
                }
                None => {
                    self.count()?;
                    self.make_directory(&path, name)?;
                    self.listing.0.insert(path.clone(), IMPLICIT);
                }
            }
            let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
            let opened = sys::retry(|| openat(self.here(), name, flags, Mode::empty()));
            self.here = Some(opened.map_err(self.failed("open", &path))?);
            self.at = path;
        }
        Ok(())
    }

    fn here(&self) -> BorrowedFd<'_> {
        self.here.as_ref().unwrap_or(&self.root).as_fd()
    }

    fn failed(&self, action: &'static str, path: &[u8]) -> impl FnOnce(io::Error) -> Error {
        let escaped = names::shown(path);
        let path = self.root_path.join(escaped);
        Error::io(action, path)
    }

    fn make_directory(&mut self, path: &[u8], name: &[u8]) -> Result<(), Error> {
        self.space.charge(0)?;
        // Open for us alone until the end, when owner and mode are set.
        let made = sys::retry(|| mkdirat(self.here(), name, Mode::S_IRWXU));
        made.map_err(self.failed("make", path))
    }

    fn directory(&mut self, path: Vec<u8>, member: &Member) -> Result<(), Error> {
        let (parent, name) = names::split(&path);
        let mut hides = false;
        match self.listing.0.get(&path) {
            Some(Node::Directory { opaque, .. }) => hides = *opaque,
            _ => {
                self.enter(parent)?;
                self.make_way(&path, name, member)?;
                self.make_directory(&path, name)?;
            }
        }
        let mode = member.mode & MODE_MASK;
        let mtime_s = Some(member.mtime_s);
        self.listing.0.insert(path, Node::Directory { mode, opaque: hides, mtime_s });
        Ok(())
    }

    fn file(
        &mut self,
        path: Vec<u8>,
        member: &Member,
        content: &mut impl Read,
    ) -> Result<(), Error> {
        let (parent, name) = names::split(&path);
        self.enter(parent)?;
        self.make_way(&path, name, member)?;
        self.space.charge(member.size)?;
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW;
        let flags = flags | OFlag::O_CLOEXEC;
        let private = Mode::S_IRUSR | Mode::S_IWUSR;
        let file = sys::retry(|| openat(self.here(), name, flags, private));
        let mut file = std::fs::File::from(file.map_err(self.failed("create", &path))?);
        let sha256 = self.copy(&path, content, &mut file)?;
        let mode = member.mode & MODE_MASK;
        let finished = self.set_owner(file.as_fd()).and_then(|()| set_mode(file.as_fd(), mode));
        let times = self.clamp(member.mtime_s);
        let finished = finished.and_then(|()| sys::retry(|| futimens(&file, &times, &times)));
        finished.map_err(self.failed("finish", &path))?;
        self.listing.0.insert(path, Node::File { mode, size: member.size, sha256 });
        Ok(())
    }

    fn copy(
        &mut self,
        path: &[u8],
        content: &mut impl Read,
        file: &mut std::fs::File,
    ) -> Result<[u8; 32], Error> {
        let mut sum = Sha256::new();
        loop {
            let read = match content.read(&mut self.buffer) {
                Ok(0) => return Ok(sum.finish()),
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(source) => return Err(read_error(self.part, source)),
            };
            sum.update(&self.buffer[..read]);
            let written = file.write_all(&self.buffer[..read]);
            let written = written.and_then(|()| self.space.wrote(file.as_fd(), read as u64));
            written.map_err(self.failed("write", path))?;
        }
    }

    fn symlink(&mut self, path: Vec<u8>, member: &Member) -> Result<(), Error> {
        let target = &member.link;
        if target.is_empty() || target.len() > MAX_PATH_BYTES || target.contains(&0) {
            return Err(refuse(member, "bad target of a symbolic link"));
        }
        let (parent, name) = names::split(&path);
        self.enter(parent)?;
        self.make_way(&path, name, member)?;
        self.space.charge(0)?;
        let text = OsStr::from_bytes(target);
        let made = sys::retry(|| symlinkat(text, self.here(), name));
        let made = made.and_then(|()| self.set_owner_of_link(name));
        let times = self.clamp(member.mtime_s);
        let made = made.and_then(|()| {
            let flags = UtimensatFlags::NoFollowSymlink;
            sys::retry(|| utimensat(self.here(), name, &times, &times, flags))
        });
        made.map_err(self.failed("link", &path))?;
        self.listing.0.insert(path, Node::Symlink { target: target.clone().into_boxed_slice() });
        Ok(())
    }

    /// Only to a regular file that this archive made: nothing of the host can be named.
    fn hard_link(&mut self, path: Vec<u8>, member: &Member) -> Result<(), Error> {
        let refused = |source| Error::Name { name: names::shown(&member.link), source };
        let target = names::normalise(&member.link, self.rules.max_depth).map_err(refused)?;
        if target == path {
            return Err(refuse(member, "it is a hard link to itself"));
        }
        let Some(node @ Node::File { .. }) = self.listing.0.get(&target) else {
            return Err(refuse(member, "it is a hard link to no file of this archive"));
        };
        let node = node.clone();
        let (target_parent, target_name) = names::split(&target);
        self.enter(target_parent)?;
        let from = self.here().try_clone_to_owned().map_err(self.failed("open", target_parent))?;
        let (parent, name) = names::split(&path);
        self.enter(parent)?;
        self.make_way(&path, name, member)?;
        self.space.charge(0)?;
        let flags = LinkatFlags::empty();
        let linked = sys::retry(|| linkat(&from, target_name, self.here(), name, flags));
        linked.map_err(self.failed("link", &path))?;
        self.listing.0.insert(path, node);
        Ok(())
    }

    /// Removes what an earlier member of the same name made in the directory that was entered.
    fn make_way(&mut self, path: &[u8], name: &[u8], member: &Member) -> Result<(), Error> {
        match self.listing.0.get(path) {
            None => return Ok(()),
            Some(Node::Directory { .. }) => return Err(refuse(member, "it replaces a directory")),
            Some(_) => {}
        }
        let removed = sys::retry(|| unlinkat(self.here(), name, UnlinkatFlags::NoRemoveDir));
        removed.map_err(self.failed("replace", path))?;
        self.listing.0.remove(path);
        Ok(())
    }

    /// Whiteouts, then owner, mode, mark and time of the directories, deepest first.
    fn finish(mut self) -> Result<Listing, Error> {
        for path in std::mem::take(&mut self.whiteouts) {
            // A whiteout is about lower layers; what this layer has itself stays.
            if !self.listing.0.contains_key(&path) {
                self.whiteout(path)?;
            }
        }
        let directories: Vec<Vec<u8>> = self.listing.0.iter().rev().filter_map(directory).collect();
        for path in directories {
            self.finish_directory(&path)?;
        }
        Ok(self.listing)
    }

    fn whiteout(&mut self, path: Vec<u8>) -> Result<(), Error> {
        let (parent, name) = names::split(&path);
        self.enter(parent)?;
        self.space.charge(0)?;
        let made = sys::retry(|| mknodat(self.here(), name, SFlag::S_IFCHR, Mode::empty(), 0));
        let made = made.and_then(|()| self.set_owner_of_link(name));
        made.map_err(self.failed("make", &path))?;
        self.listing.0.insert(path, Node::Whiteout);
        Ok(())
    }

    fn finish_directory(&mut self, path: &[u8]) -> Result<(), Error> {
        let Some(Node::Directory { mode, opaque, mtime_s }) = self.listing.0.get(path) else {
            return Ok(());
        };
        let (mode, opaque, mtime_s) = (*mode, *opaque, *mtime_s);
        self.enter(path)?;
        let finish = || -> io::Result<()> {
            let fd = self.here();
            self.set_owner(fd)?;
            set_mode(fd, mode)?;
            if opaque {
                xattr::set_open(fd, xattr::OPAQUE, b"y")?;
            }
            let Some(mtime_s) = mtime_s else { return Ok(()) };
            let times = self.clamp(mtime_s);
            sys::retry(|| futimens(fd, &times, &times))
        };
        finish().map_err(self.failed("finish", path))
    }

    fn set_owner(&self, fd: BorrowedFd<'_>) -> io::Result<()> {
        sys::retry(|| fchown(fd, Some(Uid::from_raw(0)), Some(Gid::from_raw(self.rules.gid))))
    }

    fn set_owner_of_link(&self, name: &[u8]) -> io::Result<()> {
        let (uid, gid) = (Some(Uid::from_raw(0)), Some(Gid::from_raw(self.rules.gid)));
        sys::retry(|| fchownat(self.here(), name, uid, gid, AtFlags::AT_SYMLINK_NOFOLLOW))
    }

    fn clamp(&self, mtime_s: i64) -> TimeSpec {
        TimeSpec::new(mtime_s.clamp(0, self.rules.now_s.max(0)), 0)
    }
}

const IMPLICIT: Node =
    Node::Directory { mode: IMPLICIT_DIRECTORY_MODE, opaque: false, mtime_s: None };

/// Whether `directory` is `above` or lies below it.
fn is_above(above: &[u8], directory: &[u8]) -> bool {
    match directory.strip_prefix(above) {
        Some(rest) => above.is_empty() || rest.is_empty() || rest.starts_with(b"/"),
        None => false,
    }
}

fn directory((path, node): (&Vec<u8>, &Node)) -> Option<Vec<u8>> {
    matches!(node, Node::Directory { .. }).then(|| path.clone())
}

/// After the owner: changing the owner takes bits away.
fn set_mode(fd: BorrowedFd<'_>, mode: u32) -> io::Result<()> {
    sys::retry(|| fchmod(fd, Mode::from_bits_truncate(mode)))
}

fn skip_marker(member: &Member) -> Result<(), Error> {
    if member.size > MAX_MARKER_BYTES {
        return Err(refuse(member, "a whiteout marker must be empty"));
    }
    Ok(())
}

fn refuse(member: &Member, reason: &'static str) -> Error {
    Error::Member { name: names::shown(&member.path), reason }
}
