//! What `/proc` says about processes and about ourselves.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::sysinfo::sysinfo;

/// What is used of `/proc/<pid>/stat`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Stat {
    /// `R`, `S`, `Z` and so on.
    pub state: char,
    pub parent: u32,
    /// Field 22, clock ticks since boot.
    pub start_time: u64,
    /// Field 52 in the layout of wait; 0 until the process is a zombie.
    pub wait_status: i32,
}

/// One line of `/proc/<pid>/cgroup`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Membership {
    /// Controllers of a v1 hierarchy (`name=systemd` too); empty for v2.
    pub controllers: Vec<String>,
    pub path: String,
}

/// Reads `/proc/<pid>/stat`. `NotFound` = no such process.
pub fn stat(pid: u32) -> io::Result<Stat> {
    parse_stat(&fs::read(format!("/proc/{pid}/stat"))?).ok_or_else(|| malformed("stat"))
}

/// The command name in parentheses may contain anything, so fields count from its last one.
fn parse_stat(content: &[u8]) -> Option<Stat> {
    let end = content.iter().rposition(|byte| *byte == b')')?;
    let rest = std::str::from_utf8(&content[end + 1..]).ok()?;
    let mut fields = rest.split_ascii_whitespace();
    let state = fields.next()?.chars().next()?;
    let parent = fields.next()?.parse().ok()?;
    // Field 5 comes next; 22 is 17 further on, 52 another 30.
    let start_time = fields.nth(17)?.parse().ok()?;
    let wait_status = fields.nth(29)?.parse().ok()?;
    Some(Stat { state, parent, start_time, wait_status })
}

/// Field 22 of `/proc/<pid>/stat`: clock ticks since boot when the process was started.
pub fn start_time(pid: u32) -> io::Result<u64> {
    Ok(stat(pid)?.start_time)
}

/// Identity of this boot of the machine.
pub fn boot_id() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim_end().to_owned())
}

/// Control groups of a process, one per hierarchy.
pub fn cgroups(pid: u32) -> io::Result<Vec<Membership>> {
    let content = fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
    Ok(content.lines().filter_map(parse_membership).collect())
}

fn parse_membership(line: &str) -> Option<Membership> {
    let mut fields = line.splitn(3, ':').skip(1);
    let controllers = fields.next()?;
    let path = fields.next()?.to_owned();
    let list = controllers.split(',').filter(|name| !name.is_empty());
    Some(Membership { controllers: list.map(str::to_owned).collect(), path })
}

/// Our capability bounding set: bit n = capability n.
pub fn bounding_set() -> io::Result<u64> {
    mask("self", "CapBnd")
}

/// Our effective capabilities: bit n = capability n.
pub fn effective_set() -> io::Result<u64> {
    mask("self", "CapEff")
}

/// Signals for which the process has a handler: bit n − 1 = signal n.
pub fn caught_signals(pid: u32) -> io::Result<u64> {
    mask(&pid.to_string(), "SigCgt")
}

fn mask(pid: &str, key: &str) -> io::Result<u64> {
    let content = fs::read_to_string(format!("/proc/{pid}/status"))?;
    parse_mask(&content, key).ok_or_else(|| malformed("status"))
}

fn parse_mask(content: &str, key: &str) -> Option<u64> {
    let value = content.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
    u64::from_str_radix(value.trim(), 16).ok()
}

/// Our own OOM score adjustment, −1000 to 1000.
pub fn oom_score_adj() -> io::Result<i32> {
    let content = fs::read_to_string("/proc/self/oom_score_adj")?;
    content.trim().parse().map_err(|_| malformed("oom_score_adj"))
}

/// Number of CPUs that are online.
pub fn online_cpus() -> usize {
    use nix::unistd::{SysconfVar, sysconf};
    let count = sysconf(SysconfVar::_NPROCESSORS_ONLN).ok().flatten().unwrap_or(1);
    usize::try_from(count).unwrap_or(1).max(1)
}

/// Memory of the machine in bytes, 0 if unknown.
pub fn total_ram_bytes() -> u64 {
    sysinfo().map_or(0, |info| info.ram_total())
}

/// The limits a container may be given, by the name that the OCI runtime spec uses.
const LIMITS: [(&str, Resource); 15] = [
    ("RLIMIT_AS", Resource::RLIMIT_AS),
    ("RLIMIT_CORE", Resource::RLIMIT_CORE),
    ("RLIMIT_CPU", Resource::RLIMIT_CPU),
    ("RLIMIT_DATA", Resource::RLIMIT_DATA),
    ("RLIMIT_FSIZE", Resource::RLIMIT_FSIZE),
    ("RLIMIT_LOCKS", Resource::RLIMIT_LOCKS),
    ("RLIMIT_MEMLOCK", Resource::RLIMIT_MEMLOCK),
    ("RLIMIT_MSGQUEUE", Resource::RLIMIT_MSGQUEUE),
    ("RLIMIT_NICE", Resource::RLIMIT_NICE),
    ("RLIMIT_NOFILE", Resource::RLIMIT_NOFILE),
    ("RLIMIT_NPROC", Resource::RLIMIT_NPROC),
    ("RLIMIT_RSS", Resource::RLIMIT_RSS),
    ("RLIMIT_RTPRIO", Resource::RLIMIT_RTPRIO),
    ("RLIMIT_SIGPENDING", Resource::RLIMIT_SIGPENDING),
    ("RLIMIT_STACK", Resource::RLIMIT_STACK),
];

/// One of our own resource limits; `u64::MAX` = unlimited.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limit {
    /// Name as in the OCI runtime spec, `RLIMIT_NOFILE`.
    pub name: &'static str,
    pub soft: u64,
    pub hard: u64,
}

/// Our own resource limits, all those a container may be given.
pub fn limits() -> io::Result<Vec<Limit>> {
    let read = |(name, resource)| {
        let (soft, hard) = getrlimit(resource)?;
        Ok(Limit { name, soft, hard })
    };
    LIMITS.into_iter().map(read).collect()
}

/// Raises the soft limit of open files to the hard one and returns it.
pub fn raise_open_files() -> io::Result<u64> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    Ok(hard)
}

/// Processes of a control group that were killed for want of memory, from `memory.oom_control`
/// (v1) or `memory.events` (v2). Reads from the beginning each time.
pub fn oom_kills(counters: &File) -> io::Result<u64> {
    let mut buffer = [0; 512];
    let length = counters.read_at(&mut buffer, 0)?;
    parse_oom_kills(&buffer[..length]).ok_or_else(|| malformed("counter of OOM kills"))
}

fn parse_oom_kills(content: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(content).ok()?;
    text.lines().find_map(|line| line.strip_prefix("oom_kill "))?.trim().parse().ok()
}

fn malformed(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("malformed {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_survives_any_command_name() {
        let numbers: Vec<String> = (5..=52).map(|field| field.to_string()).collect();
        let check = |name: &str, expect| {
            let line = format!("17 ({name}) Z 4 {}\n", numbers.join(" "));
            assert_eq!(parse_stat(line.as_bytes()), expect, "{name}");
        };
        let stat = Stat { state: 'Z', parent: 4, start_time: 22, wait_status: 52 };
        for name in ["sh", "a b", ") S 1 2 3", "(", ""] {
            check(name, Some(stat));
        }
        for line in ["", "17 sh Z 4", "17 (sh) Z", "17 (sh) Z x 5"] {
            assert_eq!(parse_stat(line.as_bytes()), None, "{line}");
        }
    }

    #[test]
    fn memberships() {
        let check = |line: &str, expect: Option<(&[&str], &str)>| {
            let found = parse_membership(line);
            let expect = expect.map(|(controllers, path)| Membership {
                controllers: controllers.iter().map(|name| (*name).to_owned()).collect(),
                path: path.to_owned(),
            });
            assert_eq!(found, expect, "{line}");
        };
        check("0::/a/b", Some((&[], "/a/b")));
        check("4:cpu,cpuacct:/x:y", Some((&["cpu", "cpuacct"], "/x:y")));
        check("9:name=systemd:/", Some((&["name=systemd"], "/")));
        check("nonsense", None);
    }

    #[test]
    fn masks() {
        let status = "Name:\tx\nCapBnd:\t000001ff\nSigCgt:\t0000000000004000\n";
        assert_eq!(parse_mask(status, "CapBnd"), Some(0x1ff));
        assert_eq!(parse_mask(status, "SigCgt"), Some(1 << 14));
        assert_eq!(parse_mask(status, "CapEff"), None);
        assert_eq!(parse_mask("CapBnd: zz", "CapBnd"), None);
    }

    #[test]
    fn counters_of_oom_kills() {
        let check = |content: &str, expect| {
            assert_eq!(parse_oom_kills(content.as_bytes()), expect, "{content}");
        };
        check("oom_kill_disable 0\nunder_oom 0\noom_kill 3\n", Some(3));
        check("low 0\nhigh 0\nmax 5\noom 1\noom_kill 1\noom_group_kill 0\n", Some(1));
        check("low 0\n", None);
        check("oom_kill x\n", None);
    }

    #[test]
    fn our_own_process_is_readable() {
        let own = stat(std::process::id()).unwrap();
        assert_eq!(own.parent, std::os::unix::process::parent_id());
        assert!(own.start_time > 0);
        assert_eq!(boot_id().unwrap().len(), 36);
        assert!(!cgroups(std::process::id()).unwrap().is_empty());
        bounding_set().unwrap();
        oom_score_adj().unwrap();
        assert!(online_cpus() >= 1);
        assert!(limits().unwrap().iter().any(|limit| limit.name == "RLIMIT_NOFILE"));
    }
}
