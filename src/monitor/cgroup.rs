//! CPU time, memory and OOM kills of one instance, from control group files.
//!
//! Runs on the monitor thread. v1, hybrid and v2: the hierarchy is chosen for each controller. The
//! group of an instance is `<parent>/aos-service@<id>.service` in every hierarchy. Descriptors stay
//! open; a group that was removed and made again under the same name is opened anew.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::model::id::InstanceId;
use crate::monitor::RamFigure;
use crate::monitor::host::number;
use crate::sys::cgroups::Layout;

/// Longest part of a control group file that is read.
pub(crate) const BUFFER_BYTES: usize = 4096;

/// Where the hierarchies are mounted that we read.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Hierarchies {
    cpuacct: Option<PathBuf>,
    memory: Option<PathBuf>,
    unified: Option<PathBuf>,
}

impl Hierarchies {
    /// Those of this host.
    pub(crate) fn read() -> Self {
        let layout = Layout::read().inspect_err(|err| {
            log::error!("cannot find the control groups, instances show no figures err={err}");
        });
        Self::of(&layout.unwrap_or_default())
    }

    /// Version 1 where it has the controller, else the unified hierarchy.
    pub(crate) fn of(layout: &Layout) -> Self {
        Self {
            cpuacct: layout.v1_of("cpuacct").map(Path::to_owned),
            memory: layout.v1_of("memory").map(Path::to_owned),
            unified: layout.v2.as_ref().map(|hierarchy| hierarchy.mount.clone()),
        }
    }
}

/// What one sample of an instance says; `None` = could not be read this time.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Usage {
    pub(crate) cpu: Option<CpuUse>,
    pub(crate) ram_bytes: Option<u64>,
    pub(crate) oom: Option<OomKills>,
}

/// Processes of a group that were killed because it was out of memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct OomKills {
    /// Since the group was made.
    pub(crate) count: u64,
    /// As `CpuUse::fresh`.
    pub(crate) fresh: bool,
}

/// CPU time of a group.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct CpuUse {
    pub(crate) used_us: u64,
    /// The group is another one than at the sample before: the counter began at 0.
    pub(crate) fresh: bool,
}

/// The files of one instance.
#[derive(Debug)]
pub(crate) struct Group {
    cpu: Option<(KeptFile, CpuFormat)>,
    ram: Option<(KeptFile, &'static [u8])>,
    oom: Option<KeptFile>,
}

#[derive(Clone, Copy, Debug)]
enum CpuFormat {
    /// `cpuacct.usage`: nanoseconds.
    Nanoseconds,
    /// `cpu.stat` of v2: `usage_usec <n>`.
    UsageUsec,
}

impl Group {
    /// The group of `id` below `parent`; it need not exist yet.
    pub(crate) fn new(
        hierarchies: &Hierarchies,
        parent: &str,
        id: &InstanceId,
        figure: RamFigure,
    ) -> Self {
        let leaf = format!("{}/aos-service@{id}.service", parent.trim_matches('/'));
        let file = |mount: &Path, name: &str| KeptFile::new(mount.join(&leaf).join(name));
        let (v1, v2) = (hierarchies, hierarchies.unified.as_deref());
        let cpu = match &v1.cpuacct {
            Some(mount) => Some((file(mount, "cpuacct.usage"), CpuFormat::Nanoseconds)),
            None => v2.map(|mount| (file(mount, "cpu.stat"), CpuFormat::UsageUsec)),
        };
        let ram = match (&v1.memory, figure) {
            (Some(mount), RamFigure::Anonymous) => {
                Some((file(mount, "memory.stat"), b"total_rss ".as_slice()))
            }
            (Some(mount), RamFigure::Total) => {
                Some((file(mount, "memory.usage_in_bytes"), b"".as_slice()))
            }
            (None, RamFigure::Anonymous) => {
                v2.map(|mount| (file(mount, "memory.stat"), b"anon ".as_slice()))
            }
            (None, RamFigure::Total) => {
                v2.map(|mount| (file(mount, "memory.current"), b"".as_slice()))
            }
        };
        let oom = match &v1.memory {
            Some(mount) => Some(file(mount, "memory.oom_control")),
            None => v2.map(|mount| file(mount, "memory.events")),
        };
        Self { cpu, ram, oom }
    }

    /// Reads what there is; at most one `pread` for each file of a group that stays.
    pub(crate) fn sample(&mut self, buffer: &mut [u8; BUFFER_BYTES]) -> Usage {
        let cpu = self.cpu.as_mut().and_then(|(file, format)| {
            let (text, fresh) = file.read(buffer)?;
            let used_us = match format {
                CpuFormat::Nanoseconds => number(text.trim_ascii())? / 1000,
                CpuFormat::UsageUsec => field(text, b"usage_usec ")?,
            };
            Some(CpuUse { used_us, fresh })
        });
        let ram_bytes = self.ram.as_mut().and_then(|(file, key)| field(file.read(buffer)?.0, key));
        let oom = self.oom.as_mut().and_then(|file| {
            let (text, fresh) = file.read(buffer)?;
            Some(OomKills { count: field(text, b"oom_kill ")?, fresh })
        });
        Usage { cpu, ram_bytes, oom }
    }
}

/// The number after `key` in the line that begins with it.
fn field(text: &[u8], key: &[u8]) -> Option<u64> {
    text.split(|b| *b == b'\n')
        .find_map(|line| line.strip_prefix(key))
        .and_then(|value| number(value.trim_ascii()))
}

/// A file that is opened when it is first needed and again after its group was replaced.
#[derive(Debug)]
struct KeptFile {
    path: PathBuf,
    file: Option<File>,
    /// It has been open before: opening it once more means another group.
    seen: bool,
}

impl KeptFile {
    fn new(path: PathBuf) -> Self {
        Self { path, file: None, seen: false }
    }

    /// The content, and whether it belongs to a group that took the place of an earlier one.
    fn read<'a>(&mut self, buffer: &'a mut [u8]) -> Option<(&'a [u8], bool)> {
        if let Some(file) = &self.file {
            match file.read_at(buffer, 0) {
                Ok(length) => return Some((&buffer[..length], false)),
                // ENODEV: the group is gone, and this descriptor never works again.
                Err(_) => self.file = None,
            }
        }
        let file = self.open().ok()?;
        let length = file.read_at(buffer, 0).ok()?;
        self.file = Some(file);
        let fresh = std::mem::replace(&mut self.seen, true);
        Some((&buffer[..length], fresh))
    }

    fn open(&self) -> io::Result<File> {
        File::open(&self.path)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::sys;
    use crate::sys::cgroups::Hierarchy;
    use crate::sys::fs::write_plain;

    const PARENT: &str = "/system.slice/system-aos\\x2dservice.slice";
    const LEAF: &str = "system.slice/system-aos\\x2dservice.slice/aos-service@i1.service";

    fn write(root: &Path, file: &str, text: &str) {
        let path = root.join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        write_plain(&path, text.as_bytes(), 0o600).unwrap();
    }

    /// `layout`: mount point below `root` and controllers of each hierarchy.
    fn group(layout: Layout, root: &Path, figure: RamFigure) -> Group {
        let hierarchy = |(point, controllers): &(&str, &str)| Hierarchy {
            mount: root.join(point),
            controllers: controllers.split(',').map(str::to_owned).collect(),
        };
        let is_v2 = |(point, _): &&(&str, &str)| ["", "unified"].contains(point);
        let found = sys::cgroups::Layout {
            v1: layout.iter().filter(|mounted| !is_v2(mounted)).map(hierarchy).collect(),
            v2: layout.iter().find(is_v2).map(hierarchy),
        };
        Group::new(&Hierarchies::of(&found), PARENT, &InstanceId::new("i1"), figure)
    }

    type Layout<'a> = &'a [(&'a str, &'a str)];

    const SPLIT: Layout<'_> = &[
        ("cpu", "cpu"),
        ("cpuacct", "cpuacct"),
        ("memory", "memory"),
        ("systemd", "name=systemd"),
        ("unified", ""),
    ];
    const JOINT: Layout<'_> = &[("cpu,cpuacct", "cpu,cpuacct"), ("memory", "memory")];
    const UNIFIED: Layout<'_> = &[("", "cpu,memory")];
    /// The memory controller has been given to the unified hierarchy.
    const DIVIDED: Layout<'_> = &[("cpuacct", "cpuacct"), ("unified", "memory")];

    const V1_STAT: &str = "cache 100\nrss 7\nshmem 9\ntotal_cache 100\ntotal_rss 4096\n\
        total_rss_huge 0\n";
    const V2_STAT: &str = "anon 8192\nfile 1000\nkernel_stack 0\n";

    #[test]
    fn every_layout() {
        let check = |layout: Layout, files: &[(&str, &str)], figure, expect: (u64, u64, u64)| {
            let root = tempfile::tempdir().unwrap();
            for (file, text) in files {
                let (mount, name) = file.rsplit_once('/').unwrap_or(("", file));
                write(&root.path().join(mount), &format!("{LEAF}/{name}"), text);
            }
            let usage = group(layout, root.path(), figure).sample(&mut [0; BUFFER_BYTES]);
            let expect = Usage {
                cpu: Some(CpuUse { used_us: expect.0, fresh: false }),
                ram_bytes: Some(expect.1),
                oom: Some(OomKills { count: expect.2, fresh: false }),
            };
            assert_eq!(usage, expect, "{layout:?}");
        };
        let v1 = |cpu| {
            [
                (cpu, "5000000\n"),
                ("memory/memory.stat", V1_STAT),
                ("memory/memory.usage_in_bytes", "9999\n"),
                ("memory/memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n"),
            ]
        };
        let v2 = [
            ("cpu.stat", "usage_usec 77\nuser_usec 70\nsystem_usec 7\n"),
            ("memory.stat", V2_STAT),
            ("memory.current", "20000\n"),
            ("memory.events", "low 0\nhigh 0\nmax 4\noom 2\noom_kill 1\n"),
        ];
        check(SPLIT, &v1("cpuacct/cpuacct.usage"), RamFigure::Anonymous, (5000, 4096, 3));
        check(JOINT, &v1("cpu,cpuacct/cpuacct.usage"), RamFigure::Total, (5000, 9999, 3));
        let divided = [
            ("cpuacct/cpuacct.usage", "5000000"),
            ("unified/memory.stat", V2_STAT),
            ("unified/memory.events", "oom_kill 1\n"),
        ];
        check(DIVIDED, &divided, RamFigure::Anonymous, (5000, 8192, 1));
        check(UNIFIED, &v2, RamFigure::Anonymous, (77, 8192, 1));
        check(UNIFIED, &v2, RamFigure::Total, (77, 20000, 1));
    }

    #[test]
    fn missing_files_and_controllers_are_unknown() {
        let root = tempfile::tempdir().unwrap();
        let mut buffer = [0; BUFFER_BYTES];
        let usage = group(SPLIT, root.path(), RamFigure::Anonymous).sample(&mut buffer);
        assert_eq!(usage, Usage::default());
        let usage = group(&[], root.path(), RamFigure::Anonymous).sample(&mut buffer);
        assert_eq!(usage, Usage::default());
        // Hybrid without a v1 memory hierarchy: only the CPU is known.
        let cpu_only = &SPLIT[1..2];
        write(&root.path().join("cpuacct"), &format!("{LEAF}/cpuacct.usage"), "1000");
        let usage = group(cpu_only, root.path(), RamFigure::Anonymous).sample(&mut buffer);
        assert_eq!((usage.cpu.map(|cpu| cpu.used_us), usage.ram_bytes), (Some(1), None));
        write(&root.path().join("cpuacct"), &format!("{LEAF}/cpuacct.usage"), "garbage");
        let usage = group(cpu_only, root.path(), RamFigure::Anonymous).sample(&mut buffer);
        assert_eq!(usage.cpu, None);
    }

    /// A real group: only there a kept descriptor fails when the group goes.
    #[test]
    fn group_that_is_made_again() {
        let hierarchies = Hierarchies::read();
        let mount = hierarchies.cpuacct.clone().or(hierarchies.unified.clone());
        let parent = format!("aos-test-monitor-{}", std::process::id());
        let Some(top) = mount.map(|mount| mount.join(&parent)) else {
            println!("SKIP group_that_is_made_again: no control groups");
            return;
        };
        let leaf = top.join("aos-service@i1.service");
        if fs::create_dir_all(&leaf).is_err() {
            println!("SKIP group_that_is_made_again: control groups cannot be made");
            return;
        }
        let id = InstanceId::new("i1");
        let mut group = Group::new(&hierarchies, &parent, &id, RamFigure::Anonymous);
        let mut buffer = [0; BUFFER_BYTES];
        let mut cpu = || group.sample(&mut buffer).cpu.map(|cpu| cpu.fresh);
        let first = [cpu(), cpu()];
        fs::remove_dir(&leaf).unwrap();
        let gone = cpu();
        fs::create_dir(&leaf).unwrap();
        let again = [cpu(), cpu()];
        // The group may go after its file was opened and before it is read.
        let mut kept = KeptFile::new(leaf.join("cgroup.procs"));
        kept.file = Some(kept.open().unwrap());
        fs::remove_dir(&leaf).unwrap();
        fs::remove_dir(&top).unwrap();
        assert!(kept.read(&mut [0; 64]).is_none() && kept.file.is_none());
        assert_eq!(first, [Some(false), Some(false)]);
        assert_eq!(gone, None);
        assert_eq!(again, [Some(true), Some(false)]);
    }
}
