//! Namespaces of one unit: what its programs do to mounts, links, rules and `/run` stays there and
//! is gone when they are.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};

use super::{host, program};

/// Which control groups are seen.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Groups {
    /// Those of the host.
    Host,
    /// Version 1 alone: crun refuses the hybrid layout of some hosts.
    V1,
}

/// A network and a mount namespace.
#[derive(Debug)]
pub struct Space {
    net: File,
    mounts: File,
}

impl Space {
    pub fn new(groups: Groups) -> Self {
        // The host's controllers, before anything is hidden.
        let hierarchies = host::hierarchies();
        apart(|| {
            unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET).unwrap();
            let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
            mount(None::<&str>, "/", None::<&str>, private, None::<&str>).unwrap();
            // Neither a journal nor network namespaces of the host are seen or touched.
            tmpfs(Path::new("/run"), "mode=755");
            fs::create_dir("/run/netns").unwrap();
            // Values of `net` are those of the namespace the mount was made in.
            mount(Some("sysfs"), "/sys", Some("sysfs"), MsFlags::empty(), None::<&str>).unwrap();
            mount_groups(&hierarchies, groups);
            let up = Command::new("ip").args(["link", "set", "lo", "up"]).status();
            assert!(up.unwrap().success(), "cannot set the loopback interface up");
            let open = |kind: &str| File::open(format!("/proc/thread-self/ns/{kind}")).unwrap();
            Self { net: open("net"), mounts: open("mnt") }
        })
    }

    /// Runs `body` inside, on a thread of its own. Descriptors and processes made there stay
    /// inside.
    pub fn inside<T: Send>(&self, body: impl FnOnce() -> T + Send) -> T {
        apart(|| {
            unshare(CloneFlags::CLONE_FS).unwrap();
            setns(&self.mounts, CloneFlags::CLONE_NEWNS).unwrap();
            setns(&self.net, CloneFlags::CLONE_NEWNET).unwrap();
            body()
        })
    }

    /// Mount points inside.
    pub fn mount_points(&self) -> Vec<String> {
        let text = self.inside(|| fs::read_to_string("/proc/thread-self/mountinfo").unwrap());
        let points = text.lines().filter_map(|line| line.split(' ').nth(4));
        points.map(|point| point.replace("\\134", "\\")).collect()
    }

    /// Network links inside, without the number and state.
    pub fn links(&self) -> Vec<String> {
        self.inside(|| {
            let entries = fs::read_dir("/sys/class/net").unwrap();
            let names = entries.map(|entry| entry.unwrap().file_name());
            let mut names: Vec<_> = names.map(|n| n.to_string_lossy().into_owned()).collect();
            names.sort();
            names
        })
    }

    /// Names in `/run/netns`.
    pub fn network_namespaces(&self) -> Vec<String> {
        self.inside(|| host::names(Path::new("/run/netns")))
    }

    /// Mounts a device directory of its own, with what programs need; `/dev/shm` stays as it is.
    pub fn mount_dev(&self) {
        self.inside(|| {
            let shm = Path::new("/run/shm");
            fs::create_dir(shm).unwrap();
            bind(Path::new("/dev/shm"), shm);
            tmpfs(Path::new("/dev"), "mode=755");
            for (name, minor) in [("null", 3), ("zero", 5), ("random", 8), ("urandom", 9)] {
                let path = Path::new("/dev").join(name);
                mknod(&path, SFlag::S_IFCHR, Mode::empty(), makedev(1, minor)).unwrap();
                fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).unwrap();
            }
            fs::create_dir("/dev/shm").unwrap();
            bind(shm, Path::new("/dev/shm"));
        });
    }

    /// Instances that have counters in the firewall's rules; `None` = no program to list them.
    pub fn counted_instances(&self) -> Option<BTreeSet<String>> {
        let text = self.firewall("counters")?;
        let words = text.split_whitespace();
        let names = words.filter_map(|word| word.strip_prefix("in_").map(str::to_owned));
        Some(names.collect())
    }

    /// What is in the firewall, in the words of `nft list`; `None` = no program to list it, or no
    /// nf_tables in the kernel.
    pub fn firewall(&self, what: &str) -> Option<String> {
        let nft = super::need::program("nft").ok()?;
        let mut list = Command::new(nft);
        list.args(["list", what]).stdin(Stdio::null());
        list.stdout(Stdio::piped()).stderr(Stdio::piped());
        let listed = self.inside(|| list.spawn()).unwrap().wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&listed.stderr);
        assert!(listed.status.success() || said.contains("not supported"), "{said}");
        listed.status.success().then(|| String::from_utf8(listed.stdout).unwrap())
    }

    /// Mounts a small file system of its own.
    pub fn mount_small(&self, at: &Path, size_bytes: u64) {
        fs::create_dir_all(at).unwrap();
        self.inside(|| tmpfs(at, &format!("size={size_bytes}")));
    }

    /// Mounts an ext4 of its own that keeps user quota. The error is that of a kernel that cannot.
    pub fn mount_with_quota(&self, at: &Path, image: &Path) -> Result<(), String> {
        const SIZE_BYTES: u64 = 16 << 20;
        fs::create_dir_all(at).unwrap();
        File::create(image).and_then(|file| file.set_len(SIZE_BYTES)).unwrap();
        let run = |command: &mut Command| {
            let (code, _, text) = self.inside(|| program::run(command));
            if code == Some(0) { Ok(()) } else { Err(text) }
        };
        run(Command::new("mkfs.ext4").args(["-q", "-O", "quota"]).arg(image))?;
        run(Command::new("mount").args(["-o", "loop,usrquota"]).arg(image).arg(at))
    }
}

/// Runs `body` on a new thread: what it does to itself ends with it.
fn apart<T: Send>(body: impl FnOnce() -> T + Send) -> T {
    let joined = std::thread::scope(|scope| {
        let name = super::need::test_name();
        std::thread::Builder::new().name(name).spawn_scoped(scope, body).unwrap().join()
    });
    joined.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

fn bind(source: &Path, target: &Path) {
    mount(Some(source), target, None::<&str>, MsFlags::MS_BIND | MsFlags::MS_REC, None::<&str>)
        .unwrap();
}

fn tmpfs(at: &Path, data: &str) {
    mount(Some("tmpfs"), at, Some("tmpfs"), MsFlags::empty(), Some(data)).unwrap();
}

/// Makes the control groups appear below the new `/sys`.
fn mount_groups(hierarchies: &[host::Hierarchy], groups: Groups) {
    let top = Path::new("/sys/fs/cgroup");
    let is_v2_only = hierarchies.len() == 1 && hierarchies[0].v2;
    if is_v2_only {
        assert_eq!(groups, Groups::Host, "this host has no control groups of version 1");
        mount(Some("cgroup2"), top, Some("cgroup2"), MsFlags::empty(), None::<&str>).unwrap();
        return;
    }
    tmpfs(top, "mode=755");
    for hierarchy in hierarchies.iter().filter(|h| !h.v2 || groups == Groups::Host) {
        let at = top.join(hierarchy.mount_point.file_name().unwrap());
        fs::create_dir(&at).unwrap();
        let kind = if hierarchy.v2 { "cgroup2" } else { "cgroup" };
        let data = (!hierarchy.v2).then_some(hierarchy.options.as_str());
        mount(Some(kind), &at, Some(kind), MsFlags::empty(), data)
            .unwrap_or_else(|e| panic!("cannot mount {hierarchy:?}: {e}"));
    }
}
