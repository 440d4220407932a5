//! What the host and the rights of the daemon allow for containers.
//!
//! Read once at start, on main. In: `/proc`. Out: `spec::HostLimits`. A daemon without
//! CAP_SYS_RESOURCE (some virtual machines, hardened units) can raise neither limits nor the OOM
//! priority of a child, and a runtime that is asked to fails the start.

use std::fs;
use std::io;

use crate::runtime::spec::HostLimits;
use crate::sys::process;

const CAP_SYS_RESOURCE: u32 = 24;

/// Reads the limits; `cgroup_v2` = the host has the unified hierarchy only.
pub fn read(cgroup_v2: bool) -> io::Result<HostLimits> {
    let bounding = process::bounding_set()?;
    if process::effective_set()? & (1 << CAP_SYS_RESOURCE) != 0 {
        return Ok(HostLimits {
            bounding,
            max_open_files: most_open_files(),
            max_processes: u64::MAX,
            oom_score_adj: 0,
            cgroup_v2,
        });
    }
    let own = process::limits()?;
    let hard = |name| own.iter().find(|limit| limit.name == name).map_or(u64::MAX, |l| l.hard);
    Ok(HostLimits {
        bounding,
        max_open_files: hard("RLIMIT_NOFILE").min(most_open_files()),
        max_processes: hard("RLIMIT_NPROC"),
        oom_score_adj: process::oom_score_adj()?.max(0),
        cgroup_v2,
    })
}

/// No process may have a higher limit, whatever its rights.
fn most_open_files() -> u64 {
    let text = fs::read_to_string("/proc/sys/fs/nr_open").unwrap_or_default();
    text.trim().parse().unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_of_this_host() {
        let limits = read(true).unwrap();
        assert!(limits.cgroup_v2);
        assert!((1..=most_open_files()).contains(&limits.max_open_files));
        assert!(limits.max_processes > 0);
        assert!((0..=1000).contains(&limits.oom_score_adj));
        assert_eq!(limits.bounding, process::bounding_set().unwrap());
    }
}
