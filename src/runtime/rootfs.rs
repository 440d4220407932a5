//! Root file system of an instance: mount points and the read-only overlay.
//!
//! Runs on exec threads. In: directories of the layers, the host and the bundle. Out: a mount at
//! `<bundle>/rootfs`. Two forms, which look the same from inside:
//!
//! * whole: one overlay of mount points, service, layers, whiteouts and `/`. The whiteouts hide
//!   every entry of `/` that is not to be seen.
//! * split: `/` cannot be a layer, because the kernel refuses layers that contain each other and
//!   the service lies on the same file system as `/`; or because an allowed entry of `/` is a mount
//!   of its own, which an overlay of `/` does not show. Then the root is an overlay of mount
//!   points, service, layers and a skeleton of the allowed entries, and on each entry that is a
//!   directory of the host lies an overlay of the same layers' directories and that one.
//!
//! Not here: the bundle directory itself (`bundle`), state and storage (`storage`).

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::{Mode, SFlag, fchmod, makedev, mkdirat, mknod};
use openssl::sha::Sha256;

use crate::runtime::oci;
use crate::sys::fs::{make_dirs, open_beneath, open_dir, remove_tree, same_file_system};
use crate::sys::{is_errno, mount, xattr};

/// Most directories of one overlay, a bound of the kernel.
pub const MAX_LAYERS: usize = 500;

/// Most links on the way to a mount point, as in the kernel.
pub const MAX_LINKS: usize = 40;

const DIR_MODE: u32 = 0o755;
const FILE_MODE: u32 = 0o644;

/// Why there is no root file system.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("mount destination {0:?} is not an absolute path without \"..\"")]
    Destination(String),
    #[error("cannot find {path} to be mounted on {destination}")]
    Source {
        path: PathBuf,
        destination: String,
        #[source]
        source: io::Error,
    },
    #[error("cannot make the mount point {destination}")]
    MountPoint {
        destination: String,
        #[source]
        source: io::Error,
    },
    #[error("cannot read {path}")]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot prepare {path}")]
    Prepare {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("more than {MAX_LAYERS} layers")]
    TooManyLayers,
    #[error("cannot mount the root file system on {target} from {layers:?}")]
    Mount {
        target: PathBuf,
        layers: Vec<PathBuf>,
        #[source]
        source: io::Error,
    },
}

/// What instances see of the host, and where the directories stand that shape this view.
#[derive(Clone, Debug)]
pub struct HostView {
    /// `/`; another one in tests.
    pub root: PathBuf,
    /// Names of the entries of `/` that instances see.
    pub visible: BTreeSet<OsString>,
    /// Directory of whiteouts and skeletons, each named by the hash of its content and never
    /// changed, because a mounted overlay may use it.
    pub whiteouts: PathBuf,
}

/// Makes the places below `mounts` on which the runtime will mount: it cannot make them itself on
/// a read-only root. They stand where links of `layers` and of the host lead, as for the runtime;
/// a directory at the place of such a link would hide it.
pub fn make_mount_points(
    mounts: &Path,
    list: &[oci::Mount],
    layers: &[PathBuf],
    host: &HostView,
    known: &[(PathBuf, bool)],
) -> Result<(), Error> {
    let root =
        open_dir(mounts).map_err(|source| Error::Prepare { path: mounts.to_owned(), source })?;
    for mount in list {
        let is_dir = match mount.kind.as_str() {
            "proc" | "tmpfs" | "sysfs" => true,
            "bind" => match known.iter().find(|(path, _)| *path == *mount.source) {
                Some((_, is_dir)) => *is_dir,
                None => source_is_dir(mount)?,
            },
            // Their parents are mounts of the runtime.
            _ => continue,
        };
        let Some(relative) = relative(&mount.destination) else {
            return Err(Error::Destination(mount.destination.clone()));
        };
        let place = settle(relative, layers, host);
        let mode = mode_option(&mount.options);
        make_mount_point(root.as_fd(), &place, is_dir, mode).map_err(|source| {
            Error::MountPoint { destination: mount.destination.clone(), source }
        })?;
    }
    Ok(())
}

fn source_is_dir(mount: &oci::Mount) -> Result<bool, Error> {
    let path = PathBuf::from(&mount.source);
    match fs::metadata(&path) {
        Ok(meta) => Ok(meta.is_dir()),
        Err(source) => Err(Error::Source { path, destination: mount.destination.clone(), source }),
    }
}

/// The destination below the root; `None` = it leaves the root or is the root.
fn relative(destination: &str) -> Option<&Path> {
    let path = Path::new(destination).strip_prefix("/").ok()?;
    let plain = path.components().all(|part| matches!(part, Component::Normal(_)));
    (plain && path != Path::new("")).then_some(path)
}

/// Where a path of the instance leads when the links on its way are followed. Never above the root;
/// after `MAX_LINKS` the rest is taken as it is.
fn settle(relative: &Path, layers: &[PathBuf], host: &HostView) -> PathBuf {
    let mut pending: Vec<OsString> = relative.iter().rev().map(OsStr::to_owned).collect();
    let mut place = PathBuf::new();
    let mut links = 0;
    while let Some(name) = pending.pop() {
        if name == ".." {
            place.pop();
            continue;
        }
        place.push(&name);
        let Some(link) = link_at(&place, layers, host).filter(|_| links < MAX_LINKS) else {
            continue;
        };
        links += 1;
        place.pop();
        if link.is_absolute() {
            place.clear();
        }
        let parts = link.components().rev();
        let steps =
            parts.filter(|part| matches!(part, Component::Normal(_) | Component::ParentDir));
        pending.extend(steps.map(|part| part.as_os_str().to_owned()));
    }
    place
}

/// Target of the link that the instance sees at this path; `None` = something else or nothing.
fn link_at(place: &Path, layers: &[PathBuf], host: &HostView) -> Option<PathBuf> {
    let is_visible = place.iter().next().is_some_and(|name| host.visible.contains(name));
    let host = is_visible.then_some(&host.root);
    let mut candidates = layers.iter().chain(host).map(|layer| layer.join(place));
    let topmost = candidates.find(|path| fs::symlink_metadata(path).is_ok())?;
    fs::read_link(topmost).ok()
}

/// Value of the option `mode=<octal>`.
fn mode_option(options: &[String]) -> Option<u32> {
    let text = options.iter().find_map(|option| option.strip_prefix("mode="))?;
    u32::from_str_radix(text, 8).ok().filter(|mode| *mode <= 0o7777)
}

fn make_mount_point(
    root: BorrowedFd<'_>,
    relative: &Path,
    is_dir: bool,
    mode: Option<u32>,
) -> io::Result<()> {
    let point = if is_dir {
        make_open_dirs(root, relative)?
    } else {
        if let Some(parent) = relative.parent().filter(|parent| *parent != Path::new("")) {
            make_open_dirs(root, parent)?;
        }
        let file = open_beneath(root, relative, OFlag::O_CREAT | OFlag::O_RDONLY, bits(FILE_MODE))?;
        fchmod(&file, bits(FILE_MODE))?;
        file
    };
    if let Some(mode) = mode {
        fchmod(&point, bits(mode))?;
    }
    Ok(())
}

/// Makes missing directories readable for everybody, whatever the umask, and opens the last one.
fn make_open_dirs(root: BorrowedFd<'_>, relative: &Path) -> io::Result<OwnedFd> {
    let flags = OFlag::O_DIRECTORY | OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let mut at = root.try_clone_to_owned()?;
    for name in relative.components() {
        let made = match mkdirat(&at, name.as_os_str(), bits(DIR_MODE)) {
            Err(Errno::EEXIST) => false,
            other => other.map(|()| true)?,
        };
        at = openat(&at, name.as_os_str(), flags, Mode::empty())?;
        if made {
            fchmod(&at, bits(DIR_MODE))?;
        }
    }
    Ok(at)
}

fn bits(mode: u32) -> Mode {
    Mode::from_bits_retain(mode)
}

/// Mounts the root file system on `target`. `layers` are the directories of the instance, the
/// first one on top. Returns the directory below `HostView::whiteouts` that is in use from now on.
pub fn mount(layers: &[PathBuf], host: &HostView, target: &Path) -> Result<PathBuf, Error> {
    let layers = distinct(layers)?;
    if !needs_split(&layers, host)? {
        match mount_whole(&layers, host, target) {
            // Layers that contain each other in a way the device numbers did not tell.
            Err(Error::Mount { source, .. }) if is_errno(&source, Errno::ELOOP) => {
                log::info!("root file system is mounted in parts target={}", target.display());
            }
            other => return other,
        }
    }
    mount_split(&layers, host, target)
}

/// Drops directories that come a second time: they would hide nothing, and the kernel refuses
/// them.
fn distinct(layers: &[PathBuf]) -> Result<Vec<&Path>, Error> {
    let mut seen = BTreeSet::new();
    let mut kept = Vec::new();
    for path in layers {
        let meta = fs::metadata(path).map_err(|source| read(path, source))?;
        if seen.insert((meta.dev(), meta.ino())) {
            kept.push(path.as_path());
        }
    }
    // Two more come from the host.
    if kept.len() + 2 > MAX_LAYERS { Err(Error::TooManyLayers) } else { Ok(kept) }
}

/// True when `/` cannot be a layer, see the head of the file. Asking the kernel instead would put
/// a message into its log for every start.
fn needs_split(layers: &[&Path], host: &HostView) -> Result<bool, Error> {
    for path in layers.iter().copied().chain([host.whiteouts.as_path()]) {
        if same_file_system(path, &host.root).map_err(|source| read(path, source))? {
            return Ok(true);
        }
    }
    for (path, kind) in visible(host)? {
        if kind == Entry::Dir
            && !same_file_system(&path, &host.root).map_err(|source| read(&path, source))?
        {
            return Ok(true);
        }
    }
    Ok(false)
}

fn mount_whole(layers: &[&Path], host: &HostView, target: &Path) -> Result<PathBuf, Error> {
    let whiteouts = whiteouts(host)?;
    let mut stack = layers.to_vec();
    stack.extend([whiteouts.as_path(), host.root.as_path()]);
    overlay(&stack, target)?;
    Ok(whiteouts)
}

fn mount_split(layers: &[&Path], host: &HostView, target: &Path) -> Result<PathBuf, Error> {
    let entries = visible(host)?;
    let skeleton = skeleton(host, &entries)?;
    let mut stack = layers.to_vec();
    stack.push(&skeleton);
    overlay(&stack, target)?;
    for (path, kind) in &entries {
        let Some(name) = path.file_name().filter(|_| *kind == Entry::Dir) else { continue };
        let Some(above) = directories_above(layers, name)? else { continue };
        // The last one is empty: the kernel wants two layers.
        let bottom = skeleton.join(name);
        let mut stack: Vec<&Path> = above.iter().map(PathBuf::as_path).collect();
        stack.extend([path.as_path(), bottom.as_path()]);
        overlay(&stack, &target.join(name))?;
    }
    Ok(skeleton)
}

/// The directories of this name in the layers; `None` = a layer hides the one of the host.
fn directories_above(layers: &[&Path], name: &OsStr) -> Result<Option<Vec<PathBuf>>, Error> {
    let mut found = Vec::new();
    for layer in layers {
        let path = layer.join(name);
        match fs::symlink_metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(source) => return Err(read(&path, source)),
            Ok(meta) if meta.is_dir() => {
                if is_opaque(&path) {
                    return Ok(None);
                }
                found.push(path);
            }
            // A file, a link or a whiteout.
            Ok(_) => return Ok(None),
        }
    }
    Ok(Some(found))
}

fn overlay(stack: &[&Path], target: &Path) -> Result<(), Error> {
    mount::overlay(stack, target).map_err(|source| Error::Mount {
        target: target.to_owned(),
        layers: stack.iter().map(|path| path.to_path_buf()).collect(),
        source,
    })
}

#[derive(Clone, PartialEq, Eq, Debug)]
enum Entry {
    Dir,
    Link(PathBuf),
}

/// The entries of `/` that instances see. Files are not among them: there is no use for one.
fn visible(host: &HostView) -> Result<Vec<(PathBuf, Entry)>, Error> {
    let mut entries = Vec::new();
    for name in &host.visible {
        let path = host.root.join(name);
        match fs::symlink_metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(source) => return Err(read(&path, source)),
            Ok(meta) if meta.is_dir() => entries.push((path, Entry::Dir)),
            Ok(meta) if meta.is_symlink() => {
                let link = fs::read_link(&path).map_err(|source| read(&path, source))?;
                entries.push((path, Entry::Link(link)));
            }
            Ok(_) => {}
        }
    }
    Ok(entries)
}

/// Directory with a whiteout for each entry of `/` that instances do not see.
fn whiteouts(host: &HostView) -> Result<PathBuf, Error> {
    let entries = fs::read_dir(&host.root).map_err(|source| read(&host.root, source))?;
    let mut hidden = BTreeSet::new();
    for entry in entries {
        let name = entry.map_err(|source| read(&host.root, source))?.file_name();
        if !host.visible.contains(&name) {
            hidden.insert(name);
        }
    }
    let mut hash = Sha256::new();
    hash.update(b"hidden");
    for name in &hidden {
        hash.update(&[0]);
        hash.update(name.as_encoded_bytes());
    }
    materialise(&host.whiteouts, hash, |dir| {
        for name in &hidden {
            mknod(&dir.join(name), SFlag::S_IFCHR, Mode::empty(), makedev(0, 0))?;
        }
        Ok(())
    })
}

/// Directory with an empty directory or the link for each entry of `/` that instances see.
fn skeleton(host: &HostView, entries: &[(PathBuf, Entry)]) -> Result<PathBuf, Error> {
    let mut hash = Sha256::new();
    hash.update(b"visible");
    for (path, kind) in entries {
        hash.update(&[0]);
        hash.update(path.file_name().unwrap_or_default().as_encoded_bytes());
        if let Entry::Link(link) = kind {
            hash.update(&[1]);
            hash.update(link.as_os_str().as_encoded_bytes());
        }
    }
    materialise(&host.whiteouts, hash, |dir| {
        for (path, kind) in entries {
            let place = dir.join(path.file_name().unwrap_or_default());
            match kind {
                Entry::Dir => make_dirs(&place, DIR_MODE)?,
                Entry::Link(link) => symlink(link, &place)?,
            }
        }
        Ok(())
    })
}

/// The directory named by the hash; filled beside its place first, so that it is always complete.
fn materialise(
    parent: &Path,
    hash: Sha256,
    fill: impl FnOnce(&Path) -> io::Result<()>,
) -> Result<PathBuf, Error> {
    let name: String = hash.finish()[..16].iter().map(|byte| format!("{byte:02x}")).collect();
    let path = parent.join(name);
    if path.is_dir() {
        return Ok(path);
    }
    let made = tempname(&path).and_then(|temporary| {
        make_dirs(&temporary, DIR_MODE)?;
        let done = fill(&temporary).and_then(|()| fs::rename(&temporary, &path));
        if done.is_err() {
            // The other exec thread may have been faster; otherwise the first error counts.
            let _ = remove_tree(&temporary);
        }
        if path.is_dir() { Ok(()) } else { done }
    });
    made.map(|()| path.clone()).map_err(|source| Error::Prepare { path, source })
}

fn tempname(path: &Path) -> io::Result<PathBuf> {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{}", crate::sys::random::uuid_v4()?));
    Ok(name.into())
}

fn read(path: &Path, source: io::Error) -> Error {
    Error::Read { path: path.to_owned(), source }
}

/// True when an overlay shows nothing below this directory of a layer.
fn is_opaque(path: &Path) -> bool {
    matches!(xattr::get(path, xattr::OPAQUE), Ok(Some(value)) if value == b"y")
}

#[cfg(test)]
mod tests;
