//! What `/proc` tells about a process and its namespaces.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{Outcome, host};

/// Threads that the C-core of gRPC makes, by the beginning of their names.
const FOREIGN: [&str; 6] = [
    "default-executo",
    "resolver-execut",
    "grpc_global_tim",
    "timer_manager",
    "event_engine",
    "grpc",
];

/// Memory of a process in KiB.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Memory {
    pub(crate) pss_kib: u64,
    pub(crate) rss_kib: u64,
    pub(crate) anonymous_kib: u64,
}

/// Proportional set size in KiB if nobody else used what is in `libraries`.
pub(crate) fn pss_alone_kib(pid: u32, libraries: &Path) -> Outcome<u64> {
    let text = read(pid, "smaps")?;
    let libraries = libraries.to_string_lossy();
    let mut is_library = false;
    let mut sum = 0;
    for line in text.lines() {
        let mut words = line.split_ascii_whitespace();
        let (first, second) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        if !first.ends_with(':') {
            is_library = line.contains(&*libraries);
        } else if first == (if is_library { "Rss:" } else { "Pss:" }) {
            sum += second.parse::<u64>()?;
        }
    }
    Ok(sum)
}

/// What could leak.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Counts {
    pub(crate) descriptors: u64,
    pub(crate) threads: u64,
    /// Those that are not of the C-core of gRPC.
    pub(crate) own_threads: u64,
    pub(crate) mounts: u64,
    pub(crate) network_namespaces: u64,
    /// Lines of the rule set; `None` = `nft` is not installed.
    pub(crate) rules: Option<u64>,
    /// Dead children that nobody waited for.
    pub(crate) zombies: u64,
}

impl Memory {
    pub(crate) fn of(pid: u32) -> Outcome<Self> {
        let text = read(pid, "smaps_rollup")?;
        let field = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name));
            let number = line.and_then(|rest| rest.split_ascii_whitespace().next());
            number.and_then(|n| n.parse().ok()).ok_or(format!("smaps_rollup has no {name}"))
        };
        Ok(Self {
            pss_kib: field("Pss:")?,
            rss_kib: field("Rss:")?,
            anonymous_kib: field("Anonymous:")?,
        })
    }
}

impl Counts {
    pub(crate) fn of(pid: u32) -> Outcome<Self> {
        let names = threads(pid)?;
        let is_own = |name: &&String| !FOREIGN.iter().any(|foreign| name.starts_with(foreign));
        Ok(Self {
            descriptors: entries(format!("/proc/{pid}/fd"))?,
            threads: names.len() as u64,
            own_threads: names.values().filter(is_own).count() as u64,
            mounts: read(pid, "mountinfo")?.lines().count() as u64,
            network_namespaces: entries("/run/netns").unwrap_or(0),
            rules: rules(),
            zombies: zombies(pid)?,
        })
    }
}

/// Names of the threads by number.
pub(crate) fn threads(pid: u32) -> Outcome<BTreeMap<u32, String>> {
    let mut names = BTreeMap::new();
    for entry in fs::read_dir(format!("/proc/{pid}/task"))? {
        let entry = entry?;
        let tid = entry.file_name().to_string_lossy().parse()?;
        let name = fs::read_to_string(entry.path().join("comm"))?;
        names.insert(tid, name.trim().to_owned());
    }
    Ok(names)
}

/// How often each thread was switched to, by number.
pub(crate) fn switches(pid: u32) -> Outcome<BTreeMap<u32, u64>> {
    let mut all = BTreeMap::new();
    for tid in threads(pid)?.into_keys() {
        let text = read(pid, &format!("task/{tid}/status"))?;
        let counts = text.lines().filter_map(|line| {
            let (name, count) = line.split_once(':')?;
            name.ends_with("voluntary_ctxt_switches").then(|| count.trim().parse::<u64>().ok())?
        });
        all.insert(tid, counts.sum());
    }
    Ok(all)
}

/// Bytes that were dirtied on disks, and bytes passed to `write`.
pub(crate) fn written(pid: u32) -> Outcome<(u64, u64)> {
    let text = read(pid, "io")?;
    let field = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|n| n.trim().parse().ok()).ok_or(format!("io has no {name}"))
    };
    Ok((field("write_bytes:")?, field("wchar:")?))
}

/// CPU time of a process in milliseconds, by the names of its threads.
pub(crate) fn cpu_ms(pid: u32) -> Outcome<BTreeMap<String, f64>> {
    let mut times = BTreeMap::new();
    for (tid, name) in threads(pid)? {
        let text = read(pid, &format!("task/{tid}/schedstat"))?;
        let nanoseconds = text.split(' ').next().unwrap_or_default().parse::<u64>()?;
        *times.entry(name).or_default() += nanoseconds as f64 / 1e6;
    }
    Ok(times)
}

fn read(pid: u32, file: &str) -> Outcome<String> {
    let path = format!("/proc/{pid}/{file}");
    fs::read_to_string(&path).map_err(|e| format!("{path}: {e}").into())
}

fn entries(dir: impl Into<PathBuf>) -> Outcome<u64> {
    Ok(fs::read_dir(dir.into())?.count() as u64)
}

fn rules() -> Option<u64> {
    let nft = host::find("nft").ok()?;
    let out = Command::new(nft).args(["list", "ruleset"]).output().ok()?;
    Some(out.stdout.split(|&byte| byte == b'\n').count() as u64)
}

fn zombies(parent: u32) -> Outcome<u64> {
    let mut count = 0;
    for entry in fs::read_dir("/proc")?.flatten() {
        let Ok(stat) = fs::read_to_string(entry.path().join("stat")) else { continue };
        // The name is in parentheses and may have any character.
        let Some((_, rest)) = stat.rsplit_once(") ") else { continue };
        let mut fields = rest.split(' ');
        let is_zombie = fields.next() == Some("Z");
        if is_zombie && fields.next() == Some(parent.to_string().as_str()) {
            count += 1;
        }
    }
    Ok(count)
}
