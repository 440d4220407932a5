//! Control groups of instances: the authority over which processes belong to an instance.
//!
//! Runs on the exec threads. The group of an instance is `<parent>/aos-service@<id>.service` in
//! every hierarchy; the spelling of the reference, `<parent>/<id>`, counts as ours when something
//! is to be killed or removed. The runtime creates the groups, this module removes them. Not here:
//! limits (written by the runtime from the spec) and figures (monitor).

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::CStr;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::RwLock;
use std::time::Duration;

use nix::errno::Errno;

use crate::model::id::InstanceId;
use crate::sys::cgroups::Layout;
use crate::sys::time::monotonic;
use crate::sys::{fs as files, is_errno, pidfd, process, progress, xattr};

/// How long killed processes may take to disappear.
pub const KILL_DEADLINE: Duration = Duration::from_secs(2);

/// How long an emptied group may stay busy.
pub const REMOVE_DEADLINE: Duration = Duration::from_secs(1);

/// First pause between two looks at a group; doubles up to `LONGEST_PAUSE`.
const PAUSE: Duration = Duration::from_millis(1);
const LONGEST_PAUSE: Duration = Duration::from_millis(20);

/// Processes whose end is awaited after one round of kills; the others are looked for again.
const AWAITED: usize = 16;

/// What a directory counts as links: itself, its name, and the name of each directory in it.
const LINKS_WITHOUT_SUBGROUPS: u64 = 2;

/// Deepest group that a service may have made in its own.
const MAX_DEPTH: usize = 32;

/// Marks the parents that we made, so that no others are removed.
const MARK: &CStr = c"trusted.aos.made";

/// Why a group is not as it should be.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot create control group {path}")]
    Create {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot read control group {path}")]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{count} processes of instance {id} cannot be killed")]
    Unkillable { id: InstanceId, count: usize },
    #[error("cannot remove control group {path}")]
    Remove {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// How processes are killed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Round {
    /// Enough for a container: the kernel ends a process namespace with its init.
    Plain,
    /// The group is frozen meanwhile, so that nothing multiplies faster than it is killed.
    Frozen,
}

/// The groups of all instances.
#[derive(Debug)]
pub struct Groups {
    layout: Layout,
    /// Absolute, without a slash at its end.
    parent: String,
    /// Read: a runtime is about to make a group below the parents. Write: the parents are being
    /// removed. A channel could not do this, because the two exec threads exclude each other for
    /// the length of a call.
    parents_in_use: RwLock<()>,
}

impl Groups {
    /// `parent` as the key `cgroupParent` spells it.
    pub fn new(layout: Layout, parent: &str) -> Self {
        let parent = format!("/{}", parent.trim_matches('/'));
        let parent = if parent == "/" { String::new() } else { parent };
        Self { layout, parent, parents_in_use: RwLock::new(()) }
    }

    /// Path of the group of an instance below the root of every hierarchy.
    pub fn leaf(&self, id: &InstanceId) -> String {
        format!("{}/aos-service@{id}.service", self.parent)
    }

    /// Makes the parents and keeps them while `body` makes a group below them.
    pub fn below_parents<T>(&self, body: impl FnOnce() -> T) -> Result<T, Error> {
        let _used = self.parents_in_use.read().unwrap_or_else(|poisoned| poisoned.into_inner());
        for mount in self.layout.mounts() {
            for path in self.parents(mount) {
                make_parent(&path)?;
            }
        }
        Ok(body())
    }

    /// Removes the parents that we made and that are empty. Never waits for a start.
    pub fn remove_parents(&self) {
        let Ok(_alone) = self.parents_in_use.try_write() else { return };
        for mount in self.layout.mounts() {
            for path in self.parents(mount).iter().rev() {
                // The common case with one look: other instances are in there.
                if fs::metadata(path).is_ok_and(|meta| meta.nlink() > LINKS_WITHOUT_SUBGROUPS) {
                    break;
                }
                let ours = xattr::get(path, MARK).is_ok_and(|mark| mark.is_some());
                if !ours || fs::remove_dir(path).is_err() {
                    break;
                }
            }
        }
    }

    /// The parents in one hierarchy, the highest first.
    fn parents(&self, mount: &Path) -> Vec<PathBuf> {
        let mut paths = Vec::new();
        let mut path = mount.to_owned();
        for name in self.parent.split('/').filter(|name| !name.is_empty()) {
            path.push(name);
            paths.push(path.clone());
        }
        paths
    }

    /// The groups of an instance that exist, in all hierarchies and both spellings, each after
    /// those inside it.
    fn existing(&self, id: &InstanceId) -> Result<Vec<PathBuf>, Error> {
        let mut found = Vec::new();
        for mount in self.layout.mounts() {
            for leaf in [self.leaf(id), format!("{}/{id}", self.parent)] {
                collect(mount.join(leaf.trim_start_matches('/')), 0, &mut found)?;
            }
        }
        Ok(found)
    }

    /// Processes in the groups of an instance.
    pub fn processes(&self, id: &InstanceId) -> Result<BTreeSet<u32>, Error> {
        let mut pids = BTreeSet::new();
        for group in self.existing(id)? {
            let path = group.join("cgroup.procs");
            match read_pids(&path, &mut pids) {
                Err(error) if !is_gone(&error) => return Err(Error::Read { path, source: error }),
                _ => {}
            }
        }
        Ok(pids)
    }

    /// True when the process is in a group of the instance.
    pub fn contains(&self, id: &InstanceId, pid: u32) -> bool {
        let leaves = [self.leaf(id), format!("{}/{id}", self.parent)];
        let within = |path: &str| {
            leaves.iter().any(|leaf| {
                path.strip_prefix(leaf.as_str())
                    .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
            })
        };
        process::cgroups(pid).is_ok_and(|groups| groups.iter().any(|group| within(&group.path)))
    }

    /// Counter file of the processes of an instance that were killed for want of memory, and its
    /// value; `None` = there is none.
    pub fn oom_counter(&self, id: &InstanceId) -> Option<(File, u64)> {
        let leaf = self.leaf(id);
        let v1 = self.layout.v1_of("memory").map(|mount| (mount, "memory.oom_control"));
        let v2 = self.layout.v2.as_ref().map(|v2| (v2.mount.as_path(), "memory.events"));
        let (mount, name) = v1.or(v2)?;
        let file = File::open(mount.join(leaf.trim_start_matches('/')).join(name)).ok()?;
        let count = process::oom_kills(&file).ok()?;
        Some((file, count))
    }

    /// Kills every process of these instances and waits, once for all of them, until their groups
    /// are empty; those where that failed. As many as there are take no longer than one.
    pub fn kill(&self, ids: &[InstanceId]) -> BTreeMap<InstanceId, Error> {
        let end = monotonic() + KILL_DEADLINE;
        let mut pause = PAUSE;
        let mut round = Round::Plain;
        let mut failed = BTreeMap::new();
        let mut left: Vec<&InstanceId> = ids.iter().collect();
        loop {
            let late = monotonic() >= end;
            let mut killed = Vec::new();
            left.retain(|id| match self.kill_round(id, round, late, &mut killed) {
                Ok(empty) => !empty,
                Err(error) => {
                    failed.insert((*id).clone(), error);
                    false
                }
            });
            if left.is_empty() {
                return failed;
            }
            await_ends(&killed, pause);
            round = Round::Frozen;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// True when there is nothing left to kill; after the deadline that is an error. Adds
    /// descriptors of some processes that were killed.
    fn kill_round(
        &self,
        id: &InstanceId,
        round: Round,
        late: bool,
        killed: &mut Vec<OwnedFd>,
    ) -> Result<bool, Error> {
        let pids = self.processes(id)?;
        match pids.len() {
            0 => return Ok(true),
            count if late => return Err(Error::Unkillable { id: id.clone(), count }),
            _ => {}
        }
        self.kill_all(id, &pids, round, killed)?;
        Ok(false)
    }

    fn kill_all(
        &self,
        id: &InstanceId,
        pids: &BTreeSet<u32>,
        round: Round,
        killed: &mut Vec<OwnedFd>,
    ) -> Result<(), Error> {
        let groups = self.existing(id)?;
        // The kernel kills a whole v2 group at once.
        for group in groups.iter().filter(|group| self.is_v2(group)) {
            control(group, "cgroup.kill", "1");
        }
        if round == Round::Frozen {
            self.freeze(&groups, true);
        }
        for pid in pids {
            let fd = self.kill_one(id, *pid);
            if killed.len() < AWAITED {
                killed.extend(fd);
            }
        }
        if round == Round::Frozen {
            self.freeze(&groups, false);
        }
        Ok(())
    }

    fn is_v2(&self, group: &Path) -> bool {
        self.layout.v2.as_ref().is_some_and(|v2| group.starts_with(&v2.mount))
    }

    fn freeze(&self, groups: &[PathBuf], frozen: bool) {
        let freezer = self.layout.v1_of("freezer");
        for group in groups {
            if self.is_v2(group) && !group.join("cgroup.kill").exists() {
                control(group, "cgroup.freeze", if frozen { "1" } else { "0" });
            } else if freezer.is_some_and(|mount| group.starts_with(mount)) {
                control(group, "freezer.state", if frozen { "FROZEN" } else { "THAWED" });
            }
        }
    }

    /// The descriptor first, the check after it: a number that went to another process is spared.
    fn kill_one(&self, id: &InstanceId, pid: u32) -> Option<OwnedFd> {
        let fd = pidfd::open(pid).ok()?;
        if !self.contains(id, pid) {
            return None;
        }
        match pidfd::send_signal(fd.as_fd(), libc::SIGKILL) {
            Err(error) if !is_errno(&error, Errno::ESRCH) => {
                log::warn!("cannot kill a process instance={id} pid={pid} err={error}");
                None
            }
            _ => Some(fd),
        }
    }

    /// Removes the emptied groups of an instance in every hierarchy. Goes on after an error and
    /// returns the first one.
    pub fn remove(&self, id: &InstanceId) -> Result<(), Error> {
        let end = monotonic() + REMOVE_DEADLINE;
        let mut result = Ok(());
        for path in self.existing(id)? {
            let removed = remove_group(&path, end);
            result = result.and(removed.map_err(|source| Error::Remove { path, source }));
        }
        result
    }

    /// Ids of all groups below the parent, in either spelling.
    pub fn survey(&self) -> BTreeSet<InstanceId> {
        let mut ids = BTreeSet::new();
        for mount in self.layout.mounts() {
            let Ok(entries) = fs::read_dir(mount.join(self.parent.trim_start_matches('/'))) else {
                continue;
            };
            for entry in entries.flatten() {
                let name = entry.file_name();
                let is_dir = entry.file_type().is_ok_and(|kind| kind.is_dir());
                ids.extend(name.to_str().filter(|_| is_dir).and_then(instance_of));
            }
        }
        ids
    }
}

/// The instance to which a group name belongs. The short spelling is ours only if it is a UUID:
/// an integrator may have groups of his own there.
fn instance_of(name: &str) -> Option<InstanceId> {
    let long = name.strip_prefix("aos-service@").and_then(|rest| rest.strip_suffix(".service"));
    let id = long.or_else(|| Some(name).filter(|name| is_uuid(name)))?;
    (!id.is_empty()).then(|| InstanceId::new(id))
}

fn is_uuid(text: &str) -> bool {
    let fits = |(index, byte): (usize, u8)| match index {
        8 | 13 | 18 | 23 => byte == b'-',
        _ => byte.is_ascii_hexdigit() && !byte.is_ascii_uppercase(),
    };
    text.len() == 36 && text.bytes().enumerate().all(fits)
}

fn make_parent(path: &Path) -> Result<(), Error> {
    match fs::create_dir(path) {
        Ok(()) => {
            if let Err(error) = xattr::set(path, MARK, b"1") {
                log::debug!("parent group stays for ever path={} err={error}", path.display());
            }
            Ok(())
        }
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(source) => Err(Error::Create { path: path.to_owned(), source }),
    }
}

/// Adds a group to `found`, after the groups inside it.
fn collect(path: PathBuf, depth: usize, found: &mut Vec<PathBuf>) -> Result<(), Error> {
    let links = match fs::metadata(&path) {
        Err(error) if is_gone(&error) => return Ok(()),
        Err(source) => return Err(Error::Read { path, source }),
        Ok(meta) => meta.nlink(),
    };
    if depth < MAX_DEPTH && links != LINKS_WITHOUT_SUBGROUPS {
        let entries = match fs::read_dir(&path) {
            Err(error) if is_gone(&error) => return Ok(()),
            Err(source) => return Err(Error::Read { path, source }),
            Ok(entries) => entries,
        };
        for entry in entries.flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                collect(entry.path(), depth + 1, found)?;
            }
        }
    }
    found.push(path);
    Ok(())
}

/// Adds the numbers in a `cgroup.procs`: most have one or none.
fn read_pids(path: &Path, pids: &mut BTreeSet<u32>) -> io::Result<()> {
    let mut file = File::open(path)?;
    let mut first = [0; 1024];
    let length = file.read(&mut first)?;
    let mut text = first[..length].to_vec();
    if length > 0 {
        file.read_to_end(&mut text)?;
    }
    let text = String::from_utf8_lossy(&text);
    pids.extend(text.lines().filter_map(|line| line.parse::<u32>().ok()));
    Ok(())
}

/// Waits until these processes have ended, or a while.
fn await_ends(pidfds: &[OwnedFd], limit: Duration) {
    let end = monotonic() + limit;
    if pidfds.is_empty() {
        // Nobody to wait for: they are about to disappear, or to appear.
        return progress::waiting(|| std::thread::sleep(limit));
    }
    for pidfd in pidfds {
        let left = end.saturating_sub(monotonic());
        // Whatever is wrong with a descriptor, the next look at the group tells more.
        if !progress::waiting(|| pidfd::wait_end(pidfd.as_fd(), left)).unwrap_or(true) {
            return;
        }
    }
}

/// A group that disappears while it is read gives one of these.
fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || is_errno(error, Errno::ENODEV)
}

/// Writes a control file that not every hierarchy has.
fn control(group: &Path, name: &str, value: &str) {
    match files::write_existing(&group.join(name), value) {
        Err(error) if !is_gone(&error) => {
            log::debug!("cannot write {name} group={} err={error}", group.display());
        }
        _ => {}
    }
}

/// A group is busy for a moment after its last process has gone.
fn remove_group(path: &Path, end: Duration) -> io::Result<()> {
    let mut pause = PAUSE;
    loop {
        match fs::remove_dir(path) {
            Err(error) if is_gone(&error) => return Ok(()),
            Err(error) if is_errno(&error, Errno::EBUSY) && monotonic() < end => {}
            other => return other,
        }
        progress::waiting(|| std::thread::sleep(pause));
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::command;
    use crate::sys::testing::{in_own_process, wait_until};

    const UUID: &str = "0b0c4f0e-6f0a-4d5e-9d3f-2f1f6a0f8a11";

    #[test]
    fn names_of_groups() {
        let check = |name: &str, expect: Option<&str>| {
            assert_eq!(instance_of(name), expect.map(InstanceId::new), "{name}");
        };
        check("aos-service@one.service", Some("one"));
        check(&format!("aos-service@{UUID}.service"), Some(UUID));
        check(UUID, Some(UUID));
        for name in ["", "one", "aos-service@.service", "aos-service@one", "user.slice"] {
            check(name, None);
        }
        check(&UUID.to_uppercase(), None);
        check(&UUID[1..], None);
    }

    #[test]
    fn leaves() {
        for (parent, expect) in [
            (
                r"/system.slice/system-aos\x2dservice.slice",
                r"/system.slice/system-aos\x2dservice.slice/",
            ),
            ("/aos/", "/aos/"),
            ("aos", "/aos/"),
            ("/", "/"),
        ] {
            let groups = Groups::new(Layout::default(), parent);
            let leaf = groups.leaf(&InstanceId::new("i"));
            assert_eq!(leaf, format!("{expect}aos-service@i.service"), "{parent}");
        }
    }

    /// Groups below a parent that only this test uses; `None` = this host cannot.
    fn groups(test: &str) -> Option<Groups> {
        let parent = format!(r"/aos-test-{test}-{}/a\x2db", std::process::id());
        let groups = Groups::new(Layout::read().unwrap(), &parent);
        let made = groups.layout.mounts().next().is_some() && groups.below_parents(|| ()).is_ok();
        if !made {
            println!("SKIP {test}: control groups cannot be made");
        }
        made.then_some(groups)
    }

    fn paths(groups: &Groups, leaf: &str) -> Vec<PathBuf> {
        groups.layout.mounts().map(|mount| mount.join(leaf.trim_start_matches('/'))).collect()
    }

    /// Starts a shell that makes more processes, and puts all of them into the groups.
    fn populate(paths: &[PathBuf], count: usize) -> u32 {
        let joins: Vec<String> = paths
            .iter()
            .map(|path| format!("echo $$ > '{}/cgroup.procs'", path.display()))
            .collect();
        let script = format!(
            "{}; i=0; while [ $i -lt {count} ]; do sleep 1000 & i=$((i+1)); done; wait",
            joins.join("; ")
        );
        command::spawn(&["/bin/sh".into(), "-c".into(), script.into()], None, None).unwrap()
    }

    /// Stands in for the process manager.
    fn reap_all() {
        while let Ok(Some(pid)) = pidfd::ended_child() {
            pidfd::reap(pid).unwrap();
        }
    }

    #[test]
    fn a_group_is_found_killed_and_removed() {
        in_own_process("runtime::cgroup::tests::a_group_is_found_killed_and_removed", || {
            let Some(groups) = groups("kill") else { return };
            pidfd::become_subreaper().unwrap();
            let (long, short) = (InstanceId::new("one"), InstanceId::new(UUID));
            let leaves = [groups.leaf(&long), format!("{}/{UUID}", groups.parent)];
            for (leaf, id) in leaves.iter().zip([long, short]) {
                let paths = paths(&groups, leaf);
                let make = || {
                    for path in &paths {
                        fs::create_dir_all(path.join("inner/most")).unwrap();
                    }
                };
                groups.below_parents(make).unwrap();
                assert_eq!(groups.survey(), [id.clone()].into());
                let inner: Vec<PathBuf> = paths.iter().map(|path| path.join("inner")).collect();
                let pids = [populate(&paths, 20), populate(&inner, 3)];
                wait_until("full groups", || groups.processes(&id).unwrap().len() == 25);
                assert!(pids.iter().all(|pid| groups.contains(&id, *pid)));
                assert!(!groups.contains(&id, std::process::id()));
                assert!(!groups.contains(&InstanceId::new("on"), pids[0]));
                groups.remove(&id).unwrap_err();
                groups.remove_parents();
                let ids = [id.clone(), InstanceId::new("nobody")];
                assert!(groups.kill(&ids).is_empty());
                assert!(groups.kill(&ids).is_empty());
                reap_all();
                groups.remove(&id).unwrap();
                groups.remove(&id).unwrap();
                assert_eq!(groups.survey(), BTreeSet::new());
                assert!(paths.iter().all(|path| !path.exists()));
            }
            groups.remove_parents();
            for mount in groups.layout.mounts() {
                assert!(groups.parents(mount).iter().all(|path| !path.exists()));
            }
        });
    }

    #[test]
    fn parents_of_others_stay() {
        let layout = Layout::read().unwrap();
        let mount = layout.mounts().next().map(Path::to_owned);
        let foreign = format!("aos-test-foreign-{}", std::process::id());
        let Some(path) = mount.map(|mount| mount.join(&foreign)) else {
            println!("SKIP parents_of_others_stay: no control groups");
            return;
        };
        if fs::create_dir(&path).is_err() {
            println!("SKIP parents_of_others_stay: control groups cannot be made");
            return;
        }
        let first = Layout { v1: layout.v1.into_iter().take(1).collect(), v2: None };
        let groups = Groups::new(first, &format!("{foreign}/ours"));
        let during = groups.below_parents(|| {
            // A start is under way on the other exec thread.
            groups.remove_parents();
            path.join("ours").exists()
        });
        assert!(during.unwrap() || groups.layout.v1.is_empty());
        groups.remove_parents();
        assert!(path.exists() && !path.join("ours").exists());
        fs::remove_dir(&path).unwrap();
    }
}
