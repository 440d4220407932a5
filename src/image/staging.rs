//! Directories of the store: staging beside the target, publishing by rename, removal, tidying.
//!
//! Fetch thread. A package is made in `.staging-<number>` and becomes visible by one rename after
//! everything in it is on disk; a removed one disappears by a rename first. So a crash leaves
//! whole packages and staging directories, never half a package under a final name. Only what
//! lies directly in our directories is touched, and no link in them is followed.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use nix::sys::stat::{Mode, mkdirat};

use crate::image::error::Error;
use crate::image::origin::{self, Origin};
use crate::model::job::Keep;
use crate::sys::{self, fault};

/// Start of the names of directories that are removed whenever they are found.
pub(super) const PREFIX: &str = ".staging-";
/// Directories of digests, as the algorithms of OCI are spelled.
const ALGORITHMS: [&str; 3] = ["sha256", "sha384", "sha512"];
/// Made by the file system itself where a directory of ours is a mount point.
const LOST_AND_FOUND: &str = "lost+found";
const STORE_MODE: u32 = 0o755;
/// Of what holds the content of packages: users of the host do not reach it.
const PRIVATE_MODE: u32 = 0o700;
/// Attempts to find a name that is free; the first one is, unless somebody plays with us.
const NAME_ATTEMPTS: u32 = 8;

/// Where packages live.
#[derive(Clone, Debug)]
pub(super) struct Places {
    pub(super) services: PathBuf,
    pub(super) layers: PathBuf,
}

impl Places {
    /// Whether a path is the directory of a package, by its place alone.
    pub(super) fn owns(&self, path: &Path) -> bool {
        let Some(parent) = path.parent().filter(|_| path.file_name().is_some()) else {
            return false;
        };
        parent == self.services || self.layer_directories().any(|directory| parent == directory)
    }

    fn layer_directories(&self) -> impl Iterator<Item = PathBuf> {
        ALGORITHMS.iter().map(|algorithm| self.layers.join(algorithm))
    }
}

/// A directory in which a package is made; removed with everything in it when dropped.
#[derive(Debug)]
pub(super) struct Staging {
    path: PathBuf,
    dir: OwnedFd,
    published: bool,
}

impl Staging {
    /// Makes a new one in `parent`, which is made too if it is missing.
    pub(super) fn new(parent: &Path) -> Result<Self, Error> {
        sys::fs::make_dirs(parent, STORE_MODE).map_err(Error::io("make", parent))?;
        let path =
            unused(parent, PREFIX, |path| sys::retry(|| mkdirat(AT_FDCWD, path, Mode::S_IRWXU)))?;
        let dir = match sys::fs::open_dir(&path) {
            Ok(dir) => dir,
            Err(source) => {
                // Nothing is in it yet, and what stays is removed at the next start.
                let _ = fs::remove_dir(&path);
                return Err(Error::io("open", path)(source));
            }
        };
        Ok(Self { path, dir, published: false })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn dir(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }

    /// Makes directories below and opens the last one.
    pub(super) fn make_dirs(&self, relative: &str) -> Result<OwnedFd, Error> {
        let mode = Mode::from_bits_truncate(STORE_MODE);
        let made = sys::fs::make_dirs_beneath(self.dir(), Path::new(relative), mode);
        made.map_err(Error::io("make", self.path.join(relative)))
    }

    /// Gives the whole directory its final name, a new one in the same parent.
    pub(super) fn publish(mut self, parent: &Path) -> Result<PathBuf, Error> {
        fault::point("before publishing");
        let target = unused(parent, "", |path| rename_to_new(&self.path, path))?;
        fault::point("published");
        self.published = true;
        confirm(parent, target)
    }

    /// Gives one directory below, and before it a file that tells about it, their final names.
    /// What was there goes with the staging directory.
    pub(super) fn publish_part(
        &self,
        (part, target): (&str, &Path),
        (about, about_target): (&str, &Path),
    ) -> Result<(), Error> {
        let parent = target.parent().unwrap_or(target);
        sys::fs::make_dirs(parent, PRIVATE_MODE).map_err(Error::io("make", parent))?;
        close(parent)?;
        if let Some(above) = parent.parent() {
            sys::fs::sync_dir(above).map_err(Error::io("flush", above))?;
        }
        match fs::rename(target, self.path.join("replaced")) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(Error::io("move", target)(error));
            }
            _ => {}
        }
        fault::point("layer replaced");
        let renamed = fs::rename(self.path.join(about), about_target);
        renamed.map_err(Error::io("publish", about_target))?;
        fault::point("layer described");
        rename_to_new(&self.path.join(part), target).map_err(Error::io("publish", target))?;
        confirm(parent, target.to_owned()).map(drop)
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        if self.published {
            return;
        }
        if let Err(error) = sys::fs::remove_tree(&self.path) {
            // It is tried again at the next start.
            log::warn!("cannot remove staging path={} err={error}", self.path.display());
        }
    }
}

/// Takes away the rights that others have in a directory of digests, as the reference made it.
fn close(directory: &Path) -> Result<(), Error> {
    let metadata = fs::symlink_metadata(directory).map_err(Error::io("read", directory))?;
    if metadata.mode() & 0o077 == 0 {
        return Ok(());
    }
    let private = fs::Permissions::from_mode(PRIVATE_MODE);
    fs::set_permissions(directory, private).map_err(Error::io("close", directory))
}

/// Makes the rename durable, or takes it back.
fn confirm(parent: &Path, target: PathBuf) -> Result<PathBuf, Error> {
    fault::point("before confirming");
    let Err(error) = sys::fs::sync_dir(parent) else { return Ok(target) };
    discard(&target)?;
    Err(Error::io("flush", parent)(error))
}

fn rename_to_new(from: &Path, to: &Path) -> io::Result<()> {
    sys::retry(|| renameat2(AT_FDCWD, from, AT_FDCWD, to, RenameFlags::RENAME_NOREPLACE))
}

/// Calls `make` with random names in `parent` until one was free.
fn unused(
    parent: &Path,
    prefix: &str,
    make: impl Fn(&Path) -> io::Result<()>,
) -> Result<PathBuf, Error> {
    let mut attempt = 1;
    loop {
        let mut bytes = [0; 4];
        sys::random::fill(&mut bytes).map_err(Error::io("name a directory in", parent))?;
        let path = parent.join(format!("{prefix}{:010}", u32::from_ne_bytes(bytes)));
        match make(&path) {
            Ok(()) => return Ok(path),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                attempt += 1;
                if attempt > NAME_ATTEMPTS {
                    return Err(Error::io("make", path)(error));
                }
            }
            Err(error) => return Err(Error::io("make", path)(error)),
        }
    }
}

/// Removes the directory of a package: first its name, then its content. A missing one is
/// success.
pub(super) fn discard(path: &Path) -> Result<(), Error> {
    let Some(parent) = path.parent() else {
        return Err(Error::NotOurs { path: path.to_owned() });
    };
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(Error::io("read", path)(error)),
        Ok(_) => {}
    }
    fault::point("before hiding");
    let hidden = unused(parent, PREFIX, |hidden| rename_to_new(path, hidden))?;
    fault::point("hidden");
    let about = origin::beside(path);
    match fs::remove_file(&about) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            log::warn!("cannot remove path={} err={error}", about.display());
        }
        _ => {}
    }
    sys::fs::sync_dir(parent).map_err(Error::io("flush", parent))?;
    sys::fs::remove_tree(&hidden).map_err(Error::io("remove", hidden))
}

/// Removes what no row names and `keep` does not want, and what was left by a crash. Nothing stops
/// it; all errors are returned.
pub(super) fn tidy(places: &Places, known: &[PathBuf], keep: &Keep) -> Vec<Error> {
    let mut errors = Vec::new();
    for directory in [&places.services, &places.layers] {
        let made = sys::fs::make_dirs(directory, STORE_MODE);
        errors.extend(made.map_err(Error::io("make", directory)).err());
    }
    let known = |path: &Path| known.iter().any(|one| one == path);
    let kept = |path: &Path, origin: Option<Origin>| {
        known(path) || (!is_staging(path) && origin.is_some_and(|origin| origin.is_wanted(keep)))
    };
    let services = |path: &Path| !kept(path, origin::of_service(path));
    sweep(&places.services, services, &mut errors);
    sweep(&places.layers, is_staging, &mut errors);
    for directory in places.layer_directories() {
        // The two above may be links that an integrator made; nobody makes these.
        if fs::symlink_metadata(&directory).is_ok_and(|metadata| metadata.is_dir()) {
            // What tells about a layer stays as long as the layer.
            let without = |path: &Path| match origin::owner(path) {
                Some(layer) => fs::symlink_metadata(layer).is_err(),
                None => !kept(path, origin::of_layer(path)),
            };
            sweep(&directory, without, &mut errors);
            sweep(&directory, without, &mut errors);
            errors.extend(close(&directory).err());
        }
    }
    errors
}

fn is_staging(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.as_bytes().starts_with(PREFIX.as_bytes()))
}

/// Removes the entries of a directory for which `remove` says so.
fn sweep(directory: &Path, remove: impl Fn(&Path) -> bool, errors: &mut Vec<Error>) {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) => return errors.push(Error::io("list", directory)(error)),
    };
    for entry in entries {
        let path = match entry {
            Ok(entry) => entry.path(),
            Err(error) => return errors.push(Error::io("list", directory)(error)),
        };
        if path.file_name() == Some(OsStr::new(LOST_AND_FOUND)) || !remove(&path) {
            continue;
        }
        fault::point("orphan");
        log::info!("removing orphan path={}", path.display());
        let removed = sys::fs::remove_tree(&path);
        errors.extend(removed.map_err(Error::io("remove", path)).err());
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn places(dir: &Path) -> Places {
        Places { services: dir.join("services"), layers: dir.join("layers") }
    }

    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(dir)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn own_places() {
        let places = places(Path::new("/s"));
        let check = |path: &str, expect| assert_eq!(places.owns(Path::new(path)), expect, "{path}");
        check("/s/services/123", true);
        check("/s/layers/sha256/abc", true);
        for path in ["/", "/s", "/s/services", "/s/services/1/2", "/s/layers/x", "/etc", ""] {
            check(path, false);
        }
        check("/s/services/..", false);
        check("/s/layers/md5/x", false);
    }

    #[test]
    fn staging_leaves_nothing_or_a_whole_directory() {
        let dir = tempfile::tempdir().unwrap();
        let parent = dir.path().join("made/too");
        let staging = Staging::new(&parent).unwrap();
        staging.make_dirs("a/b").unwrap();
        assert_eq!(names(&parent).len(), 1);
        drop(staging);
        assert!(names(&parent).is_empty());

        let staging = Staging::new(&parent).unwrap();
        staging.make_dirs("content").unwrap();
        let published = staging.publish(&parent).unwrap();
        assert!(published.join("content").is_dir());
        let name = published.file_name().unwrap().to_str().unwrap();
        assert!(name.bytes().all(|byte| byte.is_ascii_digit()), "{name}");
        assert_eq!(names(&parent), [name]);
        discard(&published).unwrap();
        discard(&published).unwrap();
        assert!(names(&parent).is_empty());
    }

    #[test]
    fn a_part_replaces_a_leftover() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("sha256/abc");
        for file in ["old", "new"] {
            let staging = Staging::new(dir.path()).unwrap();
            staging.make_dirs("part").unwrap();
            fs::File::create(staging.path().join("part").join(file)).unwrap();
            fs::File::create(staging.path().join("about")).unwrap();
            let about = origin::beside(&target);
            staging.publish_part(("part", &target), ("about", &about)).unwrap();
        }
        assert_eq!(names(&target), ["new"]);
        assert_eq!(names(&dir.path().join("sha256")), [".package-abc", "abc"]);
        assert_eq!(names(dir.path()), ["sha256"]);
        discard(&target).unwrap();
        assert!(names(&dir.path().join("sha256")).is_empty());
    }

    #[test]
    fn tidying() {
        let dir = tempfile::tempdir().unwrap();
        let places = places(dir.path());
        let outside = dir.path().join("outside");
        for path in [
            "services/1/blobs",
            "services/2/blobs",
            "services/lost+found",
            "services/.staging-5/rootfs",
            "layers/sha256/kept",
            "layers/sha256/orphan/x",
            "layers/.staging-6",
            "layers/other/x",
            "outside/x",
        ] {
            fs::create_dir_all(dir.path().join(path)).unwrap();
        }
        symlink(&outside, places.services.join("link")).unwrap();
        symlink(&outside, places.layers.join("sha512/link").parent().unwrap()).unwrap();
        fs::File::create(places.layers.join("file")).unwrap();
        let known = [places.services.join("1"), places.layers.join("sha256/kept")];
        let errors = tidy(&places, &known, &Keep::All);
        assert!(errors.is_empty(), "{errors:?}");
        assert_eq!(names(&places.services), ["1", "lost+found"]);
        assert_eq!(names(&places.layers), ["file", "other", "sha256", "sha512"]);
        assert_eq!(names(&places.layers.join("sha256")), ["kept"]);
        // As the reference has made it, every user of the host could reach what is in it.
        let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o777;
        assert_eq!(mode(&places.layers.join("sha256")), 0o700);
        assert_eq!(mode(&places.layers.join("other")), 0o755, "not ours");
        assert_eq!(names(&outside), ["x"]);
        assert!(tidy(&self::places(&dir.path().join("fresh")), &[], &Keep::All).is_empty());
        assert!(dir.path().join("fresh/layers").is_dir());
    }
}
