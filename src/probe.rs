//! What this host can do, asked once at start.
//!
//! Runs on main before any other thread exists, so that it may wait for the version calls of the
//! runtimes itself. Out comes `HostCaps`, which the composition root hands to whoever needs a part.
//! Only a kernel without process descriptors is fatal; without a runtime the daemon runs, and
//! every start fails with the reason kept here.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::model::status::chain;
use crate::runtime::crun::Flavour;
use crate::sys::cgroups::{Kind, Layout};
use crate::sys::process::{self, Limit};
use crate::sys::{command, mount, pidfd};

/// How long a runtime may take to tell its version.
const VERSION_DEADLINE: Duration = Duration::from_secs(10);

/// Why the daemon cannot run on this host.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("kernel cannot watch processes by descriptor, Linux 5.4 is needed")]
    Pidfd(#[source] io::Error),
    #[error("cannot read {what}")]
    Read {
        what: &'static str,
        #[source]
        source: io::Error,
    },
}

/// Why a runtime cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    #[error("cannot run {binary} --version")]
    Version {
        binary: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{binary} is neither crun nor runc: {answer:?}")]
    Unknown { binary: PathBuf, answer: String },
    #[error(
        "{binary} does not work while v1 and v2 control groups are mixed and v2 has controllers \
         ({controllers}): mount those as v1, or install runc"
    )]
    Hybrid { binary: PathBuf, controllers: String },
    #[error("no control groups are mounted")]
    NoControlGroups,
    #[error("control groups below {path} cannot be changed")]
    ReadOnlyControlGroups {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("kernel lacks overlayfs")]
    NoOverlay,
    #[error("neither crun nor runc is installed")]
    NotInstalled,
}

/// A runtime that works on this host.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FoundRuntime {
    pub binary: PathBuf,
    pub flavour: Flavour,
    /// First line of its version.
    pub version: String,
}

/// What this host can do.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HostCaps {
    pub cgroups: Layout,
    /// The runtime to use, or why there is none.
    pub runtime: Result<FoundRuntime, String>,
    /// The status of processes that are not our children is known (Linux 6.15).
    pub exit_status_of_others: bool,
    /// Overlays take layers one by one (Linux 6.8).
    pub overlay_single_layers: bool,
    /// Groups of v2 can be killed at once (Linux 5.14).
    pub cgroup_kill: bool,
    /// Swap is accounted to control groups.
    pub swap_accounting: bool,
    /// The kernel tells how long tasks wait for CPU, memory and disk (PSI).
    pub pressure: bool,
    /// Capabilities a container may have: bit n = capability n.
    pub bounding_set: u64,
    /// Limits a container may have at most.
    pub limits: Vec<Limit>,
    /// Own OOM score adjustment.
    pub oom_score_adj: i32,
    /// Own effective capabilities: bit n = capability n.
    pub effective_set: u64,
    /// CPUs that are online.
    pub cpus: usize,
}

/// Asks the host. `configured` = path of the runtime from the configuration; `None` = the first
/// of crun and runc that works.
pub fn probe(configured: Option<&Path>) -> Result<HostCaps, Error> {
    pidfd::check_support().map_err(Error::Pidfd)?;
    let read = |what| move |source| Error::Read { what, source };
    let cgroups = Layout::read().map_err(read("the mounts"))?;
    let runtime = match configured {
        Some(path) => ask(path).and_then(|found| usable(found, &cgroups)),
        None => first_usable(&cgroups),
    };
    let runtime = runtime.and_then(|found| able_host(&cgroups).map(|()| found));
    let caps = HostCaps {
        runtime: runtime.map_err(|error| chain(&error)),
        cgroup_kill: cgroups.has_v2_file("cgroup.kill"),
        swap_accounting: cgroups.has_swap_accounting(),
        pressure: Path::new("/proc/pressure/cpu").exists(),
        cgroups,
        exit_status_of_others: pidfd::tells_exit_status(),
        overlay_single_layers: mount::overlay_takes_single_layers(),
        bounding_set: process::bounding_set().map_err(read("the capabilities"))?,
        effective_set: process::effective_set().map_err(read("the capabilities"))?,
        limits: process::limits().map_err(read("the resource limits"))?,
        oom_score_adj: process::oom_score_adj().map_err(read("the OOM score"))?,
        cpus: process::online_cpus(),
    };
    log_caps(&caps);
    Ok(caps)
}

fn log_caps(caps: &HostCaps) {
    match &caps.runtime {
        Ok(found) => {
            log::info!("runtime found binary={} version={}", found.binary.display(), found.version);
        }
        Err(reason) => log::error!("no instance can run err={reason}"),
    }
    log::debug!(
        "host cgroups={:?} v2_controllers={:?} exit_status_of_others={} overlay_single_layers={} \
         cgroup_kill={} swap_accounting={} pressure={} bounding_set={:x} effective_set={:x} oom_score_adj={} cpus={}",
        caps.cgroups.kind(),
        caps.cgroups.v2.as_ref().map(|v2| &v2.controllers),
        caps.exit_status_of_others,
        caps.overlay_single_layers,
        caps.cgroup_kill,
        caps.swap_accounting,
        caps.pressure,
        caps.bounding_set,
        caps.effective_set,
        caps.oom_score_adj,
        caps.cpus,
    );
    for Limit { name, soft, hard } in &caps.limits {
        log::debug!("host limit name={name} soft={soft} hard={hard}");
    }
}

/// crun before runc, because it needs a third of the time and memory. The error is the one that
/// helps most: of what is installed, rather than that something is not.
fn first_usable(cgroups: &Layout) -> Result<FoundRuntime, RuntimeError> {
    let mut reason = RuntimeError::NotInstalled;
    for name in ["crun", "runc"] {
        let Some(binary) = command::find(name.as_ref()) else { continue };
        match ask(&binary).and_then(|found| usable(found, cgroups)) {
            Ok(found) => return Ok(found),
            Err(error) => reason = error,
        }
    }
    Err(reason)
}

fn ask(binary: &Path) -> Result<FoundRuntime, RuntimeError> {
    let argv = [binary.into(), "--version".into()];
    let answer = command::output(&argv, VERSION_DEADLINE)
        .map_err(|source| RuntimeError::Version { binary: binary.to_owned(), source })?;
    parse_version(binary, &answer)
}

fn parse_version(binary: &Path, answer: &str) -> Result<FoundRuntime, RuntimeError> {
    let version = answer.lines().next().unwrap_or_default();
    let flavour = match version.split_ascii_whitespace().next() {
        Some("crun") => Flavour::Crun,
        Some("runc") => Flavour::Runc,
        _ => {
            let answer = version.chars().take(100).collect();
            return Err(RuntimeError::Unknown { binary: binary.to_owned(), answer });
        }
    };
    Ok(FoundRuntime { binary: binary.to_owned(), flavour, version: version.to_owned() })
}

fn usable(found: FoundRuntime, cgroups: &Layout) -> Result<FoundRuntime, RuntimeError> {
    let controllers = cgroups.v2.as_ref().map(|v2| v2.controllers.join(" ")).unwrap_or_default();
    match (cgroups.kind(), found.flavour) {
        (Kind::None, _) => Err(RuntimeError::NoControlGroups),
        (Kind::Hybrid, Flavour::Crun) if !controllers.is_empty() => {
            Err(RuntimeError::Hybrid { binary: found.binary, controllers })
        }
        _ => Ok(found),
    }
}

/// What instances need of the host besides a runtime.
fn able_host(cgroups: &Layout) -> Result<(), RuntimeError> {
    if let Some((path, source)) = cgroups.read_only() {
        return Err(RuntimeError::ReadOnlyControlGroups { path, source });
    }
    if mount::has_overlay() { Ok(()) } else { Err(RuntimeError::NoOverlay) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::cgroups::Hierarchy;
    use crate::sys::testing::in_own_process;

    fn layout(v1: bool, v2: Option<&[&str]>) -> Layout {
        let hierarchy = |controllers: &[&str]| Hierarchy {
            mount: "/sys/fs/cgroup".into(),
            controllers: controllers.iter().map(|name| (*name).to_owned()).collect(),
        };
        let v1 = if v1 { vec![hierarchy(&["memory"])] } else { Vec::new() };
        Layout { v1, v2: v2.map(hierarchy) }
    }

    #[test]
    fn versions() {
        let check = |answer: &str, expect: Option<(Flavour, &str)>| {
            let found = parse_version(Path::new("/bin/x"), answer).ok();
            let found = found.as_ref().map(|found| (found.flavour, found.version.as_str()));
            assert_eq!(found, expect, "{answer}");
        };
        check("crun version 1.8.1\ncommit: f8a0\n", Some((Flavour::Crun, "crun version 1.8.1")));
        check("runc version 1.1.5+ds1\n", Some((Flavour::Runc, "runc version 1.1.5+ds1")));
        check("youki version 0.1\n", None);
        check("", None);
    }

    #[test]
    fn runtimes_and_layouts() {
        let check = |flavour, layout: &Layout, expect: bool| {
            let found = FoundRuntime { binary: "/x".into(), flavour, version: String::new() };
            let result = usable(found, layout);
            assert_eq!(result.is_ok(), expect, "{flavour:?} {layout:?}");
        };
        for (v1, v2, crun, runc) in [
            (false, None, false, false),
            (true, None, true, true),
            (true, Some(&[][..]), true, true),
            (true, Some(&["hugetlb"][..]), false, true),
            (false, Some(&["cpu", "memory"][..]), true, true),
        ] {
            check(Flavour::Crun, &layout(v1, v2), crun);
            check(Flavour::Runc, &layout(v1, v2), runc);
        }
        let found = parse_version(Path::new("/usr/bin/crun"), "crun version 1").unwrap();
        assert_eq!(
            usable(found, &layout(true, Some(&["hugetlb"]))).unwrap_err().to_string(),
            "/usr/bin/crun does not work while v1 and v2 control groups are mixed and v2 has \
             controllers (hugetlb): mount those as v1, or install runc"
        );
    }

    #[test]
    fn groups_that_cannot_be_changed() {
        in_own_process("probe::tests::groups_that_cannot_be_changed", || {
            let layout = Layout::read().unwrap();
            let Some(path) = layout.mounts().next().map(Path::to_owned) else {
                return println!("SKIP groups_that_cannot_be_changed: no control groups");
            };
            able_host(&layout).unwrap();
            if let Err(error) = mount::isolate().and_then(|()| mount::bind_read_only(&path, &path))
            {
                return println!("SKIP groups_that_cannot_be_changed: no mounts: {error}");
            }
            let error = chain(&able_host(&layout).unwrap_err());
            let expect = format!("control groups below {} cannot be changed: ", path.display());
            assert!(error.starts_with(&expect), "{error}");
        });
    }

    #[test]
    fn this_host() {
        in_own_process("probe::tests::this_host", || {
            let caps = probe(None).unwrap();
            assert!(caps.cpus > 0 && !caps.limits.is_empty());
            let reason = probe(Some(Path::new("/no/crun"))).unwrap().runtime.unwrap_err();
            assert!(reason.starts_with("cannot run /no/crun --version: "), "{reason}");
            let reason = probe(Some(Path::new("/bin/echo"))).unwrap().runtime.unwrap_err();
            assert!(reason.contains("neither crun nor runc"), "{reason}");
        });
    }
}
