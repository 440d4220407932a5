//! The host as the daemon leaves it: control groups, processes, files.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use aos_servicemanager::sys::pidfd;

use super::wait_until;

/// A mounted hierarchy of control groups.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Hierarchy {
    pub mount_point: PathBuf,
    pub v2: bool,
    /// What a mount of the same hierarchy takes.
    pub options: String,
}

/// All hierarchies of the host.
pub fn hierarchies() -> Vec<Hierarchy> {
    let text = fs::read_to_string("/proc/self/mountinfo").unwrap();
    text.lines().filter_map(hierarchy).collect()
}

fn hierarchy(line: &str) -> Option<Hierarchy> {
    let (front, back) = line.split_once(" - ")?;
    let mut back = back.split(' ');
    let (kind, _source, options) = (back.next()?, back.next(), back.next()?);
    let mut front = front.split(' ').skip(3);
    let (root, mount_point) = (front.next()?, front.next()?);
    if root != "/" || !matches!(kind, "cgroup" | "cgroup2") {
        return None;
    }
    let options = options.split(',').filter(|o| !matches!(*o, "rw" | "ro"));
    let mut options: Vec<_> = options.collect();
    if options.iter().any(|o| o.starts_with("name=")) {
        options.insert(0, "none");
    }
    Some(Hierarchy {
        mount_point: mount_point.into(),
        v2: kind == "cgroup2",
        options: options.join(","),
    })
}

/// Instance id → processes, of all leaves below a parent group in all hierarchies.
pub fn groups(parent: &str) -> BTreeMap<String, BTreeSet<u32>> {
    let mut found: BTreeMap<String, BTreeSet<u32>> = BTreeMap::new();
    for hierarchy in hierarchies() {
        let parent = below(&hierarchy, parent);
        for name in names(&parent) {
            let Some(id) = name.strip_prefix("aos-service@") else { continue };
            let id = id.trim_end_matches(".service").to_owned();
            found.entry(id).or_default().extend(processes(&parent.join(&name)));
        }
    }
    found
}

fn below(hierarchy: &Hierarchy, group: &str) -> PathBuf {
    hierarchy.mount_point.join(group.trim_start_matches('/'))
}

/// Processes of a group and the groups below it.
fn processes(group: &Path) -> Vec<u32> {
    let text = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
    let own = text.lines().filter_map(|line| line.parse().ok());
    own.chain(subgroups(group).iter().flat_map(|g| processes(g))).collect()
}

fn subgroups(group: &Path) -> Vec<PathBuf> {
    let all = names(group).into_iter().map(|name| group.join(name));
    all.filter(|path| path.is_dir()).collect()
}

/// Kills everything below a parent group and removes the groups.
pub fn remove_groups(parent: &str) {
    let all: Vec<_> = hierarchies().iter().map(|h| below(h, parent)).collect();
    for group in &all {
        for pid in processes(group) {
            let _ = pidfd::kill(pid);
        }
    }
    wait_until("the end of killed instances", || all.iter().all(|g| processes(g).is_empty()));
    for group in &all {
        wait_until("the removal of groups", || match remove_group(group) {
            Ok(()) => true,
            Err(error) => error.kind() == io::ErrorKind::NotFound,
        });
    }
}

fn remove_group(group: &Path) -> io::Result<()> {
    for sub in subgroups(group) {
        remove_group(&sub)?;
    }
    fs::remove_dir(group)
}

/// Processes with this argument, or this program.
pub fn processes_of(argument: &str) -> Vec<u32> {
    let numbers = names(Path::new("/proc")).into_iter().filter_map(|name| name.parse().ok());
    let has_it = |pid: &u32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line.split(|byte| *byte == 0).any(|word| word == argument.as_bytes())
    };
    numbers.filter(has_it).collect()
}

/// Children of a process, dead ones that nobody has waited for included.
pub fn children(parent: u32) -> Vec<u32> {
    let numbers = names(Path::new("/proc")).into_iter().filter_map(|name| name.parse().ok());
    let is_child = |pid: &u32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let behind_name = stat.rsplit(") ").next().unwrap_or_default();
        behind_name.split(' ').nth(1) == Some(parent.to_string().as_str())
    };
    numbers.filter(is_child).collect()
}

/// Names in a directory; none when it does not exist.
pub fn names(dir: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    let names =
        entries.filter_map(Result::ok).map(|e| e.file_name().to_string_lossy().into_owned());
    let mut names: Vec<_> = names.collect();
    names.sort();
    names
}

/// Every file and directory below a directory, with the path from there.
pub fn tree(dir: &Path) -> Vec<String> {
    let mut all = Vec::new();
    for name in names(dir) {
        let path = dir.join(&name);
        if path.is_dir() && !path.is_symlink() {
            all.extend(tree(&path).into_iter().map(|below| format!("{name}/{below}")));
        }
        all.push(name);
    }
    all.sort();
    all
}
