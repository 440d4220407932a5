//! crun's program as the daemon executes it: from a read-only view of its directory.
//!
//! A runtime must defend its own file against the containers that it makes, which reach it through
//! `/proc` (CVE-2019-5736). Unless it finds itself on a read-only file system, crun binds its
//! program read-only under a temporary name, executes itself again from there and takes the mount
//! away, at each call: half of the time of a short call, a change of the host's mounts that every
//! watcher of them hears, and a file in `/tmp` if it is killed meanwhile. The view is the same
//! defence made once. The variables are those by which crun and runc agree about it with
//! themselves.
//!
//! Made at the start, asked on the exec threads before each call. In: the path of the program. Out:
//! the file to execute, and the variables for it.
//!
//! Where there can be no view (before Linux 5.12, or the program is a script), crun does as before,
//! but in a directory of ours, where the next life of the daemon finds what was left behind.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::sys::{fs as files, mount};

/// Tells crun that it need not execute itself again if its file system is read-only.
const IS_CLONED: &str = "_LIBCONTAINER_CLONED_BINARY";

/// The directory for crun's temporary files.
const SCRATCH: &str = "_LIBCONTAINER_STATEDIR";

/// How a program begins that needs no interpreter, which could not open the script: the view is
/// closed when a program is executed.
const ELF: [u8; 4] = *b"\x7fELF";

/// The directory for temporary files cannot be made empty.
#[derive(Debug, thiserror::Error)]
#[error("cannot prepare {path}")]
pub struct Error {
    path: PathBuf,
    #[source]
    source: io::Error,
}

/// A program, and how it is executed.
#[derive(Debug)]
pub struct Sealed {
    /// Free of symbolic links.
    binary: PathBuf,
    /// Of the directory with the program.
    view: Option<OwnedFd>,
    scratch: PathBuf,
}

impl Sealed {
    /// Makes the view, and the directory `scratch` anew. A runtime that an earlier life of the
    /// daemon has started may still run: it does without its file.
    pub fn new(binary: &Path, scratch: PathBuf) -> Result<Self, Error> {
        if let Err(source) = make_empty(&scratch) {
            return Err(Error { path: scratch, source });
        }
        let binary = binary.canonicalize().unwrap_or_else(|_| binary.to_owned());
        let dir = binary.parent().unwrap_or(Path::new("/"));
        let view = mount::read_only_view(dir);
        if let Err(err) = &view {
            log::debug!("runtime has to copy its program binary={} err={err}", binary.display());
        }
        Ok(Self { view: view.ok(), binary, scratch })
    }

    /// The file to execute; `None` = the program itself. Asked for each call: the program may have
    /// been replaced by an upgrade.
    pub fn file(&self) -> Option<PathBuf> {
        let view = format!("/proc/self/fd/{}", self.view.as_ref()?.as_raw_fd());
        let file = Path::new(&view).join(self.binary.file_name()?);
        let identity = |path: &Path| fs::metadata(path).map(|file| (file.dev(), file.ino())).ok();
        // Something else may have been mounted over its directory.
        let is_same = identity(&file)? == identity(&self.binary)?;
        (is_same && is_elf(&file)).then_some(file)
    }

    /// The variables that belong to a call, with or without a view.
    pub fn environment(&self) -> Vec<(&'static str, OsString)> {
        vec![(IS_CLONED, "1".into()), (SCRATCH, self.scratch.clone().into())]
    }
}

fn is_elf(file: &Path) -> bool {
    let mut start = [0; ELF.len()];
    File::open(file).and_then(|mut file| file.read_exact(&mut start)).is_ok() && start == ELF
}

/// A runtime that was killed leaves its program mounted in there.
fn make_empty(dir: &Path) -> io::Result<()> {
    if dir.exists() {
        mount::unmount_below(&dir.canonicalize()?)?;
        files::remove_tree(dir)?;
    }
    files::make_dirs(dir, 0o700)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_program_itself_is_executed_from_the_view() {
        let dir = tempfile::tempdir().unwrap();
        let (bin, scratch) = (dir.path().join("bin"), dir.path().join("a/scratch"));
        fs::create_dir(&bin).unwrap();
        let put = |content: &[u8]| {
            let new = bin.join("new");
            files::write_plain(&new, content, 0o755).unwrap();
            fs::rename(new, bin.join("crun")).unwrap();
        };
        put(b"\x7fELF and so on");
        std::os::unix::fs::symlink(bin.join("crun"), dir.path().join("link")).unwrap();
        let sealed = Sealed::new(&dir.path().join("link"), scratch.clone()).unwrap();
        assert_eq!(sealed.environment()[1], (SCRATCH, scratch.clone().into()));
        if sealed.view.is_none() {
            println!("SKIP only_the_program_itself_is_executed_from_the_view: no view");
            return;
        }
        let file = sealed.file().unwrap();
        assert_eq!(file.file_name(), Some("crun".as_ref()));
        assert!(fs::read(&file).unwrap().starts_with(&ELF));
        // An upgrade is seen; a script is executed as what it is.
        put(b"\x7fELF, a later one");
        assert!(fs::read(sealed.file().unwrap()).unwrap().ends_with(b"later one"));
        put(b"#!/bin/sh");
        assert_eq!(sealed.file(), None);
        put(b"");
        assert_eq!(sealed.file(), None);
        // Another directory in its place.
        fs::rename(&bin, dir.path().join("old")).unwrap();
        fs::create_dir(&bin).unwrap();
        put(b"\x7fELF, elsewhere");
        assert_eq!(sealed.file(), None);
    }

    #[test]
    fn a_scratch_directory_that_cannot_be_made() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let error = Sealed::new(Path::new("/bin/sh"), file.path().join("x")).unwrap_err();
        assert!(error.to_string().starts_with("cannot prepare "), "{error}");
    }
}
