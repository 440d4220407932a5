//! Whether the kernel can execute the program of an instance, as far as one can tell by looking.
//!
//! Runs on exec threads, once the root file system is mounted. A runtime refuses a program that is
//! missing or not executable, but crun does not always say which one. One that the kernel cannot
//! load lets the init end with code 1, and the reason is written to the output of the instance
//! alone. So both are worked out here, for the status. It is a doubt and no refusal: what the
//! runtime mounts is not there yet, and the node may have handlers for other formats.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;

use crate::model::job::Doubt;
use crate::runtime::oci;
use crate::sys::fs::{open_dir, open_in_root};

/// Interpreters of interpreters that are followed; the kernel follows as many.
const MAX_INTERPRETERS: usize = 5;

/// The kernel looks for an interpreter in so many bytes.
const SCRIPT_HEAD: usize = 256;

/// Longest name of a loader.
const MAX_LOADER: usize = 4096;

/// Program headers that are looked at.
const MAX_HEADERS: u64 = 64;

/// Machines of ELF programs that this architecture runs, the kernel's options permitting; empty =
/// unknown.
const MACHINES: &[u16] = if cfg!(target_arch = "x86_64") {
    &[62, 3]
} else if cfg!(target_arch = "aarch64") {
    &[183, 40]
} else {
    &[]
};

/// Why the program of this process, whose root directory is `root`, may not be executed. `mounts`
/// are not there yet: nothing is said of files below them.
pub(super) fn doubt(root: &Path, process: &oci::Process, mounts: &[oci::Mount]) -> Option<Doubt> {
    let root = open_dir(root).ok()?;
    let look = Look { open: &|path| open_in_root(root.as_fd(), path), mounts };
    match look.program(process)? {
        Ok((path, file)) => {
            let why = look.examine(&path, &file, MAX_INTERPRETERS)?;
            Some(Doubt::Unloadable(why.into_boxed_str()))
        }
        Err(why) => Some(Doubt::Refused(why.into_boxed_str())),
    }
}

struct Look<'a> {
    open: &'a dyn Fn(&Path) -> io::Result<File>,
    mounts: &'a [oci::Mount],
}

impl Look<'_> {
    /// The program that a runtime finds, or why it finds none; `None` = that cannot be told.
    fn program(&self, process: &oci::Process) -> Option<Result<(PathBuf, File), String>> {
        let name = process.args.first()?;
        if name.contains('/') {
            let path = Path::new(&process.cwd).join(name);
            if self.is_hidden(&path) {
                return None;
            }
            return match self.executable(&path) {
                Ok(file) => Some(Ok((path, file))),
                Err(error) => Some(Err(format!("{path:?} {}", refusal(&error)?))),
            };
        }
        let places = process.env.iter().find_map(|variable| variable.strip_prefix("PATH="))?;
        let mut hidden = false;
        for path in places.split(':').map(|place| Path::new(place).join(name)) {
            if self.is_hidden(&path) {
                hidden = true;
            } else if let Ok(file) = self.executable(&path) {
                return Some(Ok((path, file)));
            }
        }
        (!hidden).then(|| Err(format!("{name:?} is in no directory of PATH")))
    }

    fn executable(&self, path: &Path) -> io::Result<File> {
        let file = (self.open)(path)?;
        match file.metadata()?.permissions().mode() & 0o111 {
            0 => Err(Errno::EACCES.into()),
            _ => Ok(file),
        }
    }

    fn is_hidden(&self, path: &Path) -> bool {
        self.mounts.iter().any(|mount| path.starts_with(&mount.destination))
    }

    fn examine(&self, path: &Path, file: &File, left: usize) -> Option<String> {
        let mut head = [0; SCRIPT_HEAD];
        let length = file.read_at(&mut head, 0).ok()?;
        match &head[..length] {
            [] => Some(format!("{path:?} is empty")),
            [b'#', b'!', line @ ..] => self.examine_script(path, line, left),
            [0x7f, b'E', b'L', b'F', ..] => self.examine_elf(path, file, &head[..length]),
            _ => Some(format!("{path:?} is neither an ELF program nor a script")),
        }
    }

    fn examine_script(&self, path: &Path, head: &[u8], left: usize) -> Option<String> {
        let line = head.split(|byte| matches!(byte, b'\n' | 0)).next().unwrap_or_default();
        let mut words = line.split(|byte| matches!(byte, b' ' | b'\t'));
        let Some(word) = words.find(|word| !word.is_empty()) else {
            return Some(format!("the script {path:?} names no interpreter"));
        };
        let name = String::from_utf8_lossy(word).into_owned();
        self.examine_needed(path, "interpreter", &name, left)
    }

    /// What has to be there for a program to be executed.
    fn examine_needed(&self, of: &Path, what: &str, name: &str, left: usize) -> Option<String> {
        let path = Path::new(name);
        if left == 0 || !path.is_absolute() || self.is_hidden(path) {
            return None;
        }
        match self.executable(path) {
            Ok(file) if what == "interpreter" => self.examine(path, &file, left - 1),
            Ok(_) => None,
            Err(error) => Some(format!("the {what} {name:?} of {of:?} {}", refusal(&error)?)),
        }
    }

    fn examine_elf(&self, path: &Path, file: &File, head: &[u8]) -> Option<String> {
        let Some(elf) = Elf::parse(head) else {
            return Some(format!("{path:?} is no complete ELF program"));
        };
        if !MACHINES.is_empty() && !MACHINES.contains(&elf.machine) {
            let machine = elf.machine;
            return Some(format!("{path:?} is for another processor (ELF machine {machine})"));
        }
        let loader = elf.loader(file).ok()??;
        self.examine_needed(path, "loader", &loader, 1)
    }
}

/// What this error says about a file that somebody wants to execute; `None` = nothing.
fn refusal(error: &io::Error) -> Option<&'static str> {
    match Errno::from_raw(error.raw_os_error()?) {
        Errno::EACCES => Some("is not executable"),
        Errno::ENOENT | Errno::ENOTDIR => Some("is not there"),
        Errno::ELOOP => Some("is a link without an end"),
        _ => None,
    }
}

/// What is needed of the header of an ELF file with the byte order of this machine.
struct Elf {
    is_64: bool,
    machine: u16,
    /// Place of the program headers, size of one, and their number.
    headers: (u64, u64, u64),
}

impl Elf {
    fn parse(head: &[u8]) -> Option<Self> {
        let native = if cfg!(target_endian = "little") { 1 } else { 2 };
        let is_64 = match head.get(4..6)? {
            [2, order] if *order == native => true,
            [1, order] if *order == native => false,
            // Another byte order: of another processor at any rate.
            _ => return Some(Self { is_64: false, machine: 0, headers: (0, 0, 0) }),
        };
        let machine = u16::try_from(number(head, 18, 2)?).ok()?;
        let (place, size) = if is_64 { ((32, 8), 54) } else { ((28, 4), 42) };
        let headers = match number(head, place.0, place.1) {
            Some(at) => (at, number(head, size, 2)?, number(head, size + 2, 2)?),
            // Too short, which matters only when the processor is the right one.
            None if MACHINES.contains(&machine) => return None,
            None => (0, 0, 0),
        };
        Some(Self { is_64, machine, headers })
    }

    /// Name of the dynamic loader that the program asks for.
    fn loader(&self, file: &File) -> io::Result<Option<String>> {
        const INTERPRETER: u64 = 3;
        let (first, size, count) = self.headers;
        let ((place, width), length) = if self.is_64 { ((8, 8), 32) } else { ((4, 4), 16) };
        for index in 0..count.min(MAX_HEADERS) {
            let mut header = [0; 56];
            let at = first.saturating_add(index * size);
            file.read_at(&mut header, at)?;
            if number(&header, 0, 4) != Some(INTERPRETER) {
                continue;
            }
            let at = number(&header, place, width).unwrap_or_default();
            let length = number(&header, length, width).unwrap_or_default();
            let mut name = vec![0; usize::try_from(length).unwrap_or(MAX_LOADER).min(MAX_LOADER)];
            let read = file.read_at(&mut name, at)?;
            let name = name[..read].split(|byte| *byte == 0).next().unwrap_or_default();
            return Ok(Some(String::from_utf8_lossy(name).into_owned()));
        }
        Ok(None)
    }
}

/// An unsigned number of `width` bytes, at most eight, in the byte order of this machine.
fn number(bytes: &[u8], at: usize, width: usize) -> Option<u64> {
    let bytes = bytes.get(at..at + width)?;
    let mut whole = [0; 8];
    if cfg!(target_endian = "little") {
        whole[..width].copy_from_slice(bytes);
        Some(u64::from_le_bytes(whole))
    } else {
        whole[8 - width..].copy_from_slice(bytes);
        Some(u64::from_be_bytes(whole))
    }
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::sys::fs::{make_dirs, write_plain};

    /// A root directory with these files.
    fn root(files: &[(&str, &[u8], u32)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, content, mode) in files {
            let path = dir.path().join(name);
            make_dirs(path.parent().unwrap(), 0o755).unwrap();
            write_plain(&path, content, 0o644).unwrap();
            std::fs::set_permissions(&path, Permissions::from_mode(*mode)).unwrap();
        }
        dir
    }

    fn doubt_of(root: &Path, args: &[&str]) -> Option<String> {
        let texts = |list: &[&str]| list.iter().map(|text| (*text).to_owned()).collect();
        let process = oci::Process {
            user: oci::User { uid: 0, gid: 0, additional_gids: Vec::new() },
            args: texts(args),
            env: texts(&["TERM=xterm", "PATH=/none:/bin:/usr/bin"]),
            cwd: "/app".into(),
            capabilities: oci::Capabilities {
                bounding: Vec::new(),
                effective: Vec::new(),
                permitted: Vec::new(),
            },
            rlimits: Vec::new(),
            no_new_privileges: true,
            oom_score_adj: 0,
        };
        let mount = oci::Mount {
            destination: "/mounted".into(),
            kind: "bind".into(),
            source: "/x".into(),
            options: Vec::new(),
        };
        doubt(root, &process, &[mount]).map(|doubt| match doubt {
            Doubt::Refused(why) => format!("refused: {why}"),
            Doubt::Unloadable(why) => why.into(),
        })
    }

    /// A program with a loader.
    fn elf(machine: u16, loader: &str) -> Vec<u8> {
        let mut bytes = vec![0; 64];
        bytes[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
        bytes[18..20].copy_from_slice(&machine.to_le_bytes());
        bytes[32] = 64;
        bytes[54] = 56;
        bytes[56] = 2;
        let mut load = [0; 56];
        load[0] = 1;
        let mut interpreter = [0; 56];
        interpreter[0] = 3;
        interpreter[8] = 64 + 2 * 56;
        interpreter[32] = u8::try_from(loader.len() + 1).unwrap();
        for part in [&load[..], &interpreter[..], loader.as_bytes(), b"\0"] {
            bytes.extend_from_slice(part);
        }
        bytes
    }

    #[test]
    fn programs_that_run() {
        let native = MACHINES.first().copied().unwrap_or(62);
        let program = elf(native, "/lib/ld.so");
        let dir = root(&[
            ("bin/sh", &program, 0o755),
            ("lib/ld.so", &program, 0o755),
            ("app/script", b"#! /bin/sh -e\nexit\n", 0o755),
            ("app/mounted", b"#!/mounted/interpreter\n", 0o755),
            ("app/loaded", &elf(native, "/mounted/ld.so"), 0o755),
            ("app/meta", b"#!/app/script\n", 0o755),
        ]);
        symlink("/bin/../../bin/sh", dir.path().join("app/link")).unwrap();
        for program in ["sh", "/bin/sh", "./script", "./link", "/app/link", "../bin/sh"] {
            assert_eq!(doubt_of(dir.path(), &[program, "x"]), None, "{program}");
        }
        for program in ["/app/mounted", "/app/loaded", "/app/meta", "/mounted/bin"] {
            assert_eq!(doubt_of(dir.path(), &[program]), None, "{program}");
        }
        assert_eq!(doubt_of(dir.path(), &[]), None);
        assert_eq!(doubt_of(&dir.path().join("none"), &["/bin/sh"]), None);
        let own = std::env::current_exe().unwrap();
        assert_eq!(doubt_of(Path::new("/"), &[own.to_str().unwrap()]), None);
    }

    #[test]
    fn programs_that_a_runtime_refuses() {
        let dir = root(&[("app/closed", b"#!/app/closed", 0o644), ("bin/closed", b"x", 0o644)]);
        symlink("b", dir.path().join("app/a")).unwrap();
        symlink("a", dir.path().join("app/b")).unwrap();
        let check = |program: &str, expect: &str| {
            let expect = Some(format!("refused: {expect}"));
            assert_eq!(doubt_of(dir.path(), &[program, "x"]), expect, "{program}");
        };
        check("/none", r#""/none" is not there"#);
        check("./none", r#""/app/./none" is not there"#);
        check("/app/closed/none", r#""/app/closed/none" is not there"#);
        check("/app/closed", r#""/app/closed" is not executable"#);
        check("/bin", r#""/bin" is not executable"#);
        check("/app/a", r#""/app/a" is a link without an end"#);
        check("none", r#""none" is in no directory of PATH"#);
        check("closed", r#""closed" is in no directory of PATH"#);
    }

    #[test]
    fn programs_that_do_not_run() {
        let native = MACHINES.first().copied().unwrap_or(62);
        let check = |content: &[u8], expect: &str| {
            let dir = root(&[
                ("app/it", content, 0o755),
                ("app/text", b"x", 0o755),
                ("app/closed", b"x", 0o644),
            ]);
            assert_eq!(doubt_of(dir.path(), &["/app/it"]).as_deref(), Some(expect));
        };
        check(b"", r#""/app/it" is empty"#);
        check(b"echo hello\n", r#""/app/it" is neither an ELF program nor a script"#);
        check(b"\0\0\0\0", r#""/app/it" is neither an ELF program nor a script"#);
        check(b"#!\n", r#"the script "/app/it" names no interpreter"#);
        check(b"#! \t", r#"the script "/app/it" names no interpreter"#);
        check(b"#!/bin/sh\r\nexit\r\n", r#"the interpreter "/bin/sh\r" of "/app/it" is not there"#);
        check(b"#!/app/closed", r#"the interpreter "/app/closed" of "/app/it" is not executable"#);
        check(b"#!/app", r#"the interpreter "/app" of "/app/it" is not executable"#);
        check(b"#!/app/text", r#""/app/text" is neither an ELF program nor a script"#);
        check(b"\x7fELF", r#""/app/it" is no complete ELF program"#);
        check(
            &elf(native, "/lib/ld-musl.so.1"),
            r#"the loader "/lib/ld-musl.so.1" of "/app/it" is not there"#,
        );
        check(&elf(native, "/x")[..40], r#""/app/it" is no complete ELF program"#);
        let other = r#""/app/it" is for another processor (ELF machine 65535)"#;
        check(&elf(0xffff, "/lib/ld.so"), other);
        check(&elf(0xffff, "/lib/ld.so")[..20], other);
        let mut big_endian = elf(native, "/lib/ld.so");
        big_endian[5] = 2;
        check(&big_endian, r#""/app/it" is for another processor (ELF machine 0)"#);
    }

    #[test]
    fn headers_that_make_no_sense() {
        let native = MACHINES.first().copied().unwrap_or(62);
        let with = |change: &dyn Fn(&mut Vec<u8>)| {
            let mut bytes = elf(native, "/lib/ld.so");
            change(&mut bytes);
            let dir = root(&[("app/it", &bytes, 0o755)]);
            doubt_of(dir.path(), &["/app/it"])
        };
        // No loader can be read: nothing is said.
        assert_eq!(with(&|bytes| bytes[32..40].fill(0xff)), None);
        assert_eq!(with(&|bytes| bytes[54..58].fill(0xff)), None);
        assert_eq!(with(&|bytes| bytes[176 - 56 + 8..176 - 56 + 16].fill(0xff)), None);
        // A name without end stops at its limit.
        assert!(with(&|bytes| bytes[176 - 56 + 32..176 - 56 + 40].fill(0x7f)).is_some());
        // It may ask for itself.
        let script = root(&[("app/it", b"#!/app/it\n", 0o755)]);
        assert_eq!(doubt_of(script.path(), &["/app/it"]), None);
    }
}
