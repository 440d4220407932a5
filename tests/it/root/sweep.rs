//! What a daemon ends at its start because nobody wants it any more: all at once, whatever it is
//! called, and nothing of others.

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command};

use aos_servicemanager::sys::fs::write_existing;

use crate::common::host;
use crate::common::need::require;
use crate::common::unit::{Setup, Unit};
use crate::common::wait_until;

const INSTANCES: usize = 12;

/// Ids of instances that were left with the group name of the reference.
const SHORT: [&str; 2] =
    ["0b0c4f0e-6f0a-4d5e-9d3f-2f1f6a0f8a11", "5d1f6a0f-8a11-4d5e-9d3f-0b0c4f0e6f0a"];

/// A group of somebody else below the same parent.
const FOREIGN: &str = "of-an-integrator";

/// How a thread of the daemon waits for the end of processes.
const WAITS: [&str; 4] = ["poll", "ppoll", "nanosleep", "clock_nanosleep"];

/// A process that ignores SIGTERM in groups of its own, in all hierarchies.
struct Grouped {
    groups: Vec<PathBuf>,
    process: Child,
}

impl Grouped {
    fn new(unit: &Unit, name: &str) -> Self {
        let parent = unit.parent_group().trim_start_matches('/');
        let all = host::hierarchies().into_iter();
        let groups: Vec<_> = all.map(|h| h.mount_point.join(parent).join(name)).collect();
        let script = "trap '' TERM; exec sleep 10000";
        let process = Command::new("sh").args(["-c", script]).spawn().unwrap();
        for group in &groups {
            fs::create_dir(group).unwrap();
            // A new group of this controller has no CPUs for a process.
            if !group.join("cpuset.cpus").exists() || group.join("cgroup.controllers").exists() {
                write_existing(&group.join("cgroup.procs"), &process.id().to_string()).unwrap();
            }
        }
        Self { groups, process }
    }

    fn lives(&mut self) -> bool {
        self.process.try_wait().unwrap().is_none()
    }
}

impl Drop for Grouped {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        for group in &self.groups {
            wait_until("the removal of a group", || {
                !group.exists() || fs::remove_dir(group).is_ok()
            });
        }
    }
}

/// Instances that no row tells of any more, and no daemon.
fn unwanted(unit: &mut Unit) {
    // One process that hears SIGTERM and goes on.
    let script = "trap \"echo heard >>/storage/heard\" TERM; /busybox mkfifo /storage/fifo; \
        echo up >/storage/up; while :; do read line <>/storage/fifo; done";
    unit.service("deaf", script, "stop-signal=SIGTERM");
    unit.say(&format!("instance deaf count={INSTANCES}"));
    unit.say("run");
    let all: Vec<_> = (0..INSTANCES).map(|index| format!("deaf/subject/{index}")).collect();
    all.iter().for_each(|who| drop(unit.expect_stored(who, "up", "up")));
    unit.say("stop");
    all.iter().for_each(|who| drop(unit.expect_stored(who, "heard", "heard")));
    unit.kill_daemon();
    let groups = unit.groups();
    assert_eq!(groups.len(), INSTANCES);
    assert!(groups.iter().all(|(_, pids)| pids.len() == 1), "{groups:?}");
}

/// Names and arguments of the calls of the thread that kills, from the first kill on.
fn calls_since_the_first_kill(trace: &str) -> Vec<(&str, &str)> {
    let calls = trace.lines().filter_map(|line| {
        let (thread, call) = line.split_once(' ')?;
        let (name, rest) = call.trim_start().split_once('(')?;
        Some((thread, name, rest))
    });
    let mut calls = calls.peekable();
    let kills = |name: &str, rest: &str| {
        name == "pidfd_send_signal" && rest.contains("SIGKILL") || rest.contains("/cgroup.kill\"")
    };
    while calls.peek().is_some_and(|(_, name, rest)| !kills(name, rest)) {
        calls.next();
    }
    let killer = calls.peek().map_or("", |(thread, ..)| *thread);
    calls.filter(|(thread, ..)| *thread == killer).map(|(_, name, rest)| (name, rest)).collect()
}

/// Processes and groups that are killed before the thread waits for the first time.
fn killed_at_once(trace: &str) -> usize {
    let calls = calls_since_the_first_kill(trace);
    let burst: Vec<_> = calls.iter().take_while(|(name, _)| !WAITS.contains(name)).collect();
    let signals = burst.iter().filter(|(name, _)| *name == "pidfd_send_signal").count();
    // A process that its whole group was killed with may be gone before it gets a signal.
    let groups = burst.iter().filter(|(_, rest)| rest.contains("/cgroup.kill\""));
    let groups = groups.filter(|(name, _)| *name == "openat").count();
    signals.max(groups)
}

#[test]
fn everything_unwanted_is_killed_before_the_first_wait() {
    require!(root, memory, runc, busybox, strace);
    // They get all the time there is.
    let mut unit = Setup::new().set("stopTimeout", "1h").registered();
    unwanted(&mut unit);
    let mut short = SHORT.map(|id| Grouped::new(&unit, id));
    let mut foreign = Grouped::new(&unit, FOREIGN);

    let path = unit.path("trace");
    let calls = format!("trace=openat,pidfd_send_signal,{}", WAITS.join(","));
    unit.start_daemon_traced(&calls, &path);
    unit.say("wait registered");
    wait_until("the end of all groups", || unit.groups().is_empty());
    for left in &mut short {
        wait_until("the end of a short one", || !left.lives());
        let gone = || left.groups.iter().all(|group| !group.exists());
        wait_until("the end of its groups", gone);
    }
    unit.nothing_left();
    assert!(foreign.lives() && foreign.groups.iter().all(|group| group.exists()));
    unit.stop_daemon();
    let traced = path.to_str().unwrap();
    wait_until("the end of the tracer", || host::processes_of(traced).is_empty());
    let trace = fs::read(&path).unwrap();
    let killed = killed_at_once(&String::from_utf8_lossy(&trace));
    assert_eq!(killed, INSTANCES + SHORT.len());
    assert!(foreign.lives());
}

#[test]
fn a_trace_is_understood() {
    let trace = "1 openat(AT_FDCWD, \"/a\", O_RDONLY) = 3\n\
        2 pidfd_send_signal(7, SIGTERM, NULL, 0) = 0\n\
        3 openat(AT_FDCWD, \"/x/cgroup.kill\", O_WRONLY) = -1 ENOENT (No such file)\n\
        3 pidfd_send_signal(7, SIGKILL, NULL, 0) = 0\n\
        1 poll([{fd=3, events=POLLIN}], 1, 5) = 0\n\
        3 pidfd_send_signal(8, SIGKILL, NULL, 0 <unfinished ...>\n\
        3 <... pidfd_send_signal resumed>) = 0\n\
        3 poll([{fd=3, events=POLLIN}], 1, 5) = 0\n\
        3 pidfd_send_signal(9, SIGKILL, NULL, 0) = 0\n";
    assert_eq!(killed_at_once(trace), 2);
    assert_eq!(killed_at_once(""), 0);
}
