//! Where the control group hierarchies of this host are mounted, and which kind they are.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use nix::unistd::{AccessFlags, access};

use crate::sys::mount::{Mounted, mounts};
use crate::sys::tree::mount_id;

/// All usable hierarchies.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Layout {
    /// The v1 hierarchies, `name=systemd` included.
    pub v1: Vec<Hierarchy>,
    /// The v2 hierarchy.
    pub v2: Option<Hierarchy>,
}

/// One mounted hierarchy.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Hierarchy {
    pub mount: PathBuf,
    /// v1: of this hierarchy, `name=…` included. v2: those that no v1 hierarchy has.
    pub controllers: Vec<String>,
}

/// What a container runtime has to cope with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Nothing is mounted.
    None,
    V1,
    /// v1, and v2 beside it.
    Hybrid,
    V2,
}

impl Layout {
    /// Reads the mounts of the calling thread's namespace.
    pub fn read() -> io::Result<Self> {
        let visible = |entry: &Mounted| {
            let opened = File::open(&entry.target);
            let id = opened.and_then(|dir| mount_id(dir.as_fd()));
            id.is_ok_and(|id| id == entry.id.to_string())
        };
        Ok(Self::of(mounts()?.iter().filter(|entry| entry.kind.starts_with("cgroup")), visible))
    }

    /// A mount can be hidden below another one, and the same hierarchy mounted twice.
    fn of<'a>(
        mounts: impl Iterator<Item = &'a Mounted>,
        visible: impl Fn(&Mounted) -> bool,
    ) -> Self {
        let mut layout = Self::default();
        for entry in mounts.filter(|entry| entry.root == Path::new("/") && visible(entry)) {
            let mount = entry.target.clone();
            if entry.kind == "cgroup2" {
                if layout.v2.is_none() {
                    let controllers = v2_controllers(&mount);
                    layout.v2 = Some(Hierarchy { mount, controllers });
                }
                continue;
            }
            let controllers = v1_controllers(&entry.super_options);
            if !layout.v1.iter().any(|known| known.controllers == controllers) {
                layout.v1.push(Hierarchy { mount, controllers });
            }
        }
        layout
    }

    pub fn kind(&self) -> Kind {
        match (self.v1.is_empty(), &self.v2) {
            (true, None) => Kind::None,
            (true, Some(_)) => Kind::V2,
            (false, None) => Kind::V1,
            (false, Some(_)) => Kind::Hybrid,
        }
    }

    /// Mount point of the v1 hierarchy that has this controller.
    pub fn v1_of(&self, controller: &str) -> Option<&Path> {
        let has = |hierarchy: &&Hierarchy| hierarchy.controllers.iter().any(|c| c == controller);
        self.v1.iter().find(has).map(|hierarchy| hierarchy.mount.as_path())
    }

    /// The first hierarchy in which no groups can be made, and why.
    pub fn read_only(&self) -> Option<(PathBuf, io::Error)> {
        let refused = |mount: &Path| access(mount, AccessFlags::W_OK).err();
        self.mounts().find_map(|mount| Some((mount.to_owned(), refused(mount)?.into())))
    }

    /// Groups of v2 have this file; false where there is no group but the root, which lacks most.
    pub fn has_v2_file(&self, name: &str) -> bool {
        self.v2.as_ref().is_some_and(|v2| groups_of(&v2.mount).any(|g| g.join(name).exists()))
    }

    /// Limits can count swap.
    pub fn has_swap_accounting(&self) -> bool {
        match self.v1_of("memory") {
            Some(mount) => mount.join("memory.memsw.limit_in_bytes").exists(),
            None => self.has_v2_file("memory.swap.max"),
        }
    }

    /// Mount points of all hierarchies.
    pub fn mounts(&self) -> impl Iterator<Item = &Path> {
        self.v1.iter().chain(&self.v2).map(|hierarchy| hierarchy.mount.as_path())
    }
}

fn groups_of(mount: &Path) -> impl Iterator<Item = PathBuf> {
    let entries = fs::read_dir(mount).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).filter(|path| path.is_dir())
}

/// Options of the file system that are no controllers.
fn v1_controllers(super_options: &str) -> Vec<String> {
    const OTHERS: [&str; 6] = ["rw", "ro", "xattr", "noprefix", "clone_children", "cpuset_v2_mode"];
    let controller = |option: &&str| {
        !OTHERS.contains(option) && !option.starts_with("release_agent=") && !option.is_empty()
    };
    super_options.split(',').filter(controller).map(str::to_owned).collect()
}

fn v2_controllers(mount: &Path) -> Vec<String> {
    let text = fs::read_to_string(mount.join("cgroup.controllers")).unwrap_or_default();
    text.split_ascii_whitespace().map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mounted(target: &str, kind: &str, super_options: &str) -> Mounted {
        Mounted {
            root: "/".into(),
            target: target.into(),
            kind: kind.into(),
            super_options: super_options.into(),
            ..Mounted::default()
        }
    }

    #[test]
    fn layouts() {
        let check = |entries: &[(&str, &str, &str)], kind: Kind, memory: Option<&str>| {
            let mounts: Vec<Mounted> = entries
                .iter()
                .map(|(target, kind, options)| mounted(target, kind, options))
                .collect();
            let layout = Layout::of(mounts.iter(), |entry| !entry.target.starts_with("/hidden"));
            assert_eq!(layout.kind(), kind, "{entries:?}");
            assert_eq!(layout.v1_of("memory"), memory.map(Path::new), "{entries:?}");
        };
        let memory = ("/c/memory", "cgroup", "rw,xattr,memory");
        let systemd = ("/c/systemd", "cgroup", "rw,name=systemd");
        let unified = ("/c/unified", "cgroup2", "rw,nsdelegate");
        check(&[], Kind::None, None);
        check(&[unified], Kind::V2, None);
        check(&[memory, systemd], Kind::V1, Some("/c/memory"));
        check(&[unified, memory], Kind::Hybrid, Some("/c/memory"));
        check(&[("/hidden/u", "cgroup2", "rw"), memory, memory], Kind::V1, Some("/c/memory"));
        let joined = ("/c/cpu,cpuacct", "cgroup", "rw,release_agent=/x,cpu,cpuacct,memory");
        check(&[joined], Kind::V1, Some("/c/cpu,cpuacct"));
    }

    #[test]
    fn controllers_of_v1() {
        for (options, expect) in [
            ("rw,memory", &["memory"][..]),
            ("rw,xattr,name=systemd", &["name=systemd"]),
            ("rw,cpu,cpuacct", &["cpu", "cpuacct"]),
            ("ro,clone_children,release_agent=/a", &[]),
        ] {
            assert_eq!(v1_controllers(options), expect, "{options}");
        }
    }

    #[test]
    fn this_host() {
        let layout = Layout::read().unwrap();
        if layout.kind() == Kind::None {
            println!("SKIP this_host: no control groups");
            return;
        }
        for mount in layout.mounts() {
            assert!(mount.join("cgroup.procs").exists(), "{}", mount.display());
        }
    }
}
