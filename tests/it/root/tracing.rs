//! What the daemon asks of the kernel while instances come and go, as a tracer sees it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::process::{Child, Command};

use crate::common::need::{self, require};
use crate::common::unit::Setup;
use crate::common::{host, wait_until};

const INSTANCES: usize = 16;
/// Messages to the kernel for one instance: link, inside, carrier and rules when it comes; counters,
/// rules, flows and link when it goes.
const MOST_SENDS: usize = 8;
/// Beside them: counters for samples, which are taken at times of their own.
const OTHER_SENDS: usize = 8;
/// All calls of the net thread for one instance that comes and goes: some 50, and 5 more in a build
/// with debug assertions.
const MOST_CALLS: usize = 64;
/// Calls of one attach (network document, section 22), from the request to the reply and whatever
/// the thread does before it waits again.
const MOST_CALLS_OF_AN_ATTACH: usize = 31;
/// Messages of an attach: link, inside, carrier, rules.
const SENDS_OF_AN_ATTACH: usize = 4;
/// A build with debug assertions looks at each descriptor before it closes it.
const OF_DEBUG_BUILDS: &str = "fcntl";
/// How a thread waits, and hears what the kernel announces to everybody.
const WAITING: [&str; 5] = ["epoll_wait", "futex", "recvfrom", "restart_syscall", "sched_yield"];

/// A tracer of a running process and of all that it starts.
struct Tracer(Child);

impl Tracer {
    fn attach(pid: u32, to: &std::path::Path) -> Self {
        let mut command = Command::new(need::program("strace").unwrap());
        command.args(["-f", "-qq", "-s", "256", "-p", &pid.to_string(), "-o"]).arg(to);
        let tracer = Self(command.spawn().unwrap());
        let traced = |thread: &String| {
            let status = fs::read_to_string(format!("/proc/{pid}/task/{thread}/status"));
            status.is_ok_and(|text| !text.contains("TracerPid:\t0"))
        };
        wait_until("the tracer", || threads(pid).iter().all(traced));
        tracer
    }

    fn detach(mut self) {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.0.id()).unwrap());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT).unwrap();
        self.0.wait().unwrap();
    }
}

fn threads(pid: u32) -> Vec<String> {
    host::names(std::path::Path::new(&format!("/proc/{pid}/task")))
}

/// What a trace tells.
#[derive(Default)]
struct Trace {
    /// Processes that each of the traced ones has made.
    children: BTreeMap<String, Vec<String>>,
    /// The first program of each process that runs one.
    programs: BTreeMap<String, String>,
    /// Calls of each thread, by name.
    calls: BTreeMap<String, BTreeMap<String, usize>>,
}

impl Trace {
    fn read(text: &str) -> Self {
        let mut trace = Self::default();
        let mut begun: BTreeMap<&str, &str> = BTreeMap::new();
        for line in text.lines() {
            let Some((thread, rest)) = line.split_once(' ') else { continue };
            let rest = rest.trim_start();
            let whole = match rest.strip_prefix("<... ") {
                // The end of a call: what was asked stands where it began.
                Some(end) => format!("{}{end}", begun.remove(thread).unwrap_or_default()),
                None => {
                    trace.count(thread, rest);
                    rest.to_owned()
                }
            };
            if rest.ends_with("<unfinished ...>") {
                begun.insert(thread, rest);
            }
            trace.note(thread, &whole);
        }
        trace
    }

    fn count(&mut self, thread: &str, call: &str) {
        let Some((name, _)) = call.split_once('(') else { return };
        if !name.starts_with(['-', '+']) {
            let calls = self.calls.entry(thread.to_owned()).or_default();
            *calls.entry(name.to_owned()).or_default() += 1;
        }
    }

    fn note(&mut self, thread: &str, call: &str) {
        let makes = ["clone", "fork", "vfork"].iter().any(|name| call.starts_with(name));
        if makes && !call.contains("CLONE_THREAD") {
            let child = call.rsplit_once("= ").map(|(_, number)| number.to_owned());
            let child = child.filter(|number| number.bytes().all(|byte| byte.is_ascii_digit()));
            self.children.entry(thread.to_owned()).or_default().extend(child);
        }
        if let Some(rest) = call.strip_prefix("execve(\"") {
            let program = rest.split('"').next().unwrap_or_default().to_owned();
            self.programs.entry(thread.to_owned()).or_insert(program);
        }
    }
}

#[test]
fn only_the_runtime_is_run_and_the_network_takes_few_calls() {
    require!(root, memory, crun, busybox, strace);
    let mut unit = Setup::crun().registered();
    unit.service("web", "exec /busybox sleep 10000", "");
    // What is made once is there.
    unit.say("instance web");
    unit.say("run");
    unit.say("wait active");
    unit.say("stop");
    unit.say("wait gone");
    unit.nothing_left();
    let pid = unit.daemon().pid();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("trace");
    let own: BTreeSet<String> = threads(pid).into_iter().collect();
    let comm = |thread: &&String| fs::read_to_string(format!("/proc/{pid}/task/{thread}/comm"));
    let net = own.iter().find(|thread| comm(thread).is_ok_and(|name| name == "net\n")).unwrap();
    let tracer = Tracer::attach(pid, &path);
    unit.say(&format!("instance web count={INSTANCES}"));
    unit.say("run");
    unit.say("wait active");
    assert_eq!(unit.groups().len(), INSTANCES);
    unit.say("stop");
    unit.say("wait gone");
    unit.nothing_left();
    tracer.detach();

    let trace = Trace::read(&String::from_utf8_lossy(&fs::read(&path).unwrap()));
    let children = own.iter().filter_map(|thread| trace.children.get(thread)).flatten();
    let programs: Vec<_> = children.map(|child| trace.programs.get(child)).collect();
    let is_runtime = |program: &Option<&String>| program.is_some_and(|p| p.ends_with("/crun"));
    assert!(programs.iter().all(is_runtime), "{programs:?}");
    // Create and start; the daemon cleans up itself.
    assert_eq!(programs.len(), 2 * INSTANCES);
    assert_eq!(trace.children.get(net), None);

    let calls = &trace.calls[net];
    let working = calls.iter().filter(|(name, _)| !WAITING.contains(&name.as_str()));
    let number: usize = working.map(|(_, number)| number).sum();
    println!("calls of the net thread: {calls:?}");
    assert!(number <= MOST_CALLS * INSTANCES, "{number}: {calls:?}");
    let sends = calls["sendto"];
    assert!(sends <= MOST_SENDS * INSTANCES + OTHER_SENDS, "{sends}: {calls:?}");
    unit.stop_daemon();
}

/// Finds the thread of a process that has this name.
fn thread_named(pid: u32, name: &str) -> String {
    let comm = |thread: &String| fs::read_to_string(format!("/proc/{pid}/task/{thread}/comm"));
    let is_it = |thread: &String| comm(thread).is_ok_and(|comm| comm.trim_end() == name);
    threads(pid).into_iter().find(is_it).unwrap()
}

/// What a thread does between one wait for events and the next: names of calls, and what they say.
type Turn = Vec<(String, String)>;

fn turns(text: &str, thread: &str) -> Vec<Turn> {
    let mut turns = vec![Vec::new()];
    for line in text.lines() {
        let Some(call) = line.strip_prefix(thread).map(str::trim_start) else { continue };
        match call.split_once('(') {
            Some(("epoll_wait" | "epoll_pwait", _)) => turns.push(Vec::new()),
            Some((name, _)) if name == OF_DEBUG_BUILDS => {}
            Some((name, _))
                if name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_') =>
            {
                turns.last_mut().unwrap().push((name.to_owned(), call.to_owned()));
            }
            _ => {}
        }
    }
    turns
}

/// The namespace is one that was made ahead, in a quiet moment: nobody waits for those calls. With
/// them, too, an attach is within the budget.
#[test]
fn one_attach_takes_few_calls() {
    require!(root, memory, crun, busybox, strace);
    let mut unit = Setup::crun().registered();
    unit.service("web", "exec /busybox sleep 10000", "");
    let pid = unit.daemon().pid();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("trace");
    let net = thread_named(pid, "net");
    let tracer = Tracer::attach(pid, &path);
    let trace = || turns(&String::from_utf8_lossy(&fs::read(&path).unwrap()), &net);
    let attaches =
        || of(trace(), &|(_, call)| call.contains("\"/run/netns/") && call.contains("O_CREAT"));
    let made = || of(trace(), &|(name, _)| name == "unshare");
    // What is made once is there after the first one, and the first namespace in reserve.
    for index in 0..2 {
        unit.say(&format!("instance web index={index} dns=10.9.9.9"));
        unit.say("run");
        unit.say("wait active");
        wait_until("another namespace in reserve", || made().len() == index + 2);
    }
    tracer.detach();

    let (attaches, made) = (attaches(), made());
    assert_eq!(attaches.len(), 2);
    let (attach, ahead) = (&attaches[1], &made[2]);
    let names = |turn: &Turn| turn.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>();
    println!("attach: {} calls {:?}", attach.len(), names(attach));
    println!("namespace made ahead: {} calls {:?}", ahead.len(), names(ahead));
    assert!(attach.len() <= MOST_CALLS_OF_AN_ATTACH, "{attach:#?}");
    assert!(!attach.iter().any(|(name, _)| name.starts_with("exec") || name.contains("fork")));
    let sends = attach.iter().filter(|(name, _)| name == "sendto").count();
    assert_eq!(sends, SENDS_OF_AN_ATTACH);
    // The same when no namespace was ready, but for what is said to others.
    let work = |turn: &Turn| turn.iter().filter(|call| !tells_others(call)).count();
    println!("together: {} and {}", work(attach), work(ahead));
    assert!(work(attach) + work(ahead) <= MOST_CALLS_OF_AN_ATTACH, "{attach:#?} {ahead:#?}");
    unit.stop_daemon();
}

/// Lines of the log, and what wakes a thread.
fn tells_others((name, call): &(String, String)) -> bool {
    matches!(name.as_str(), "poll" | "futex")
        || (name == "write" && (call.contains("level=") || call.contains("\\1\\0\\0")))
}

/// The turns in which there is such a call.
fn of(turns: Vec<Turn>, wanted: &dyn Fn(&(String, String)) -> bool) -> Vec<Turn> {
    turns.into_iter().filter(|turn| turn.iter().any(wanted)).collect()
}

/// What a start is made of, as its spans are called.
const SPANS: [&str; 14] = [
    "request", "store", "ordered", "check", "prepare", "sink", "attach", "network", "build",
    "create", "spawn", "run", "start", "send",
];

#[test]
fn spans_tell_where_the_time_of_a_start_goes() {
    require!(root, memory, runc, busybox);
    let mut unit = Setup::new().start();
    unit.start_daemon_as(&["-v", "trace"], &[]);
    unit.say("wait registered");
    unit.sleeper("web");
    unit.say("run");
    unit.say("wait active web");
    let spans = SPANS.map(|name| unit.expect_log(&format!(" name={name} at_us=")));
    let number = |line: &str, key: &str| -> u64 {
        let word = line.split(' ').find_map(|word| word.strip_prefix(key)).unwrap();
        word.parse().unwrap()
    };
    let of = |name: &str| &spans[SPANS.iter().position(|span| *span == name).unwrap()];
    let (start, attach) = (of("start"), of("attach"));
    assert_eq!(start.split("about=").nth(1), attach.split("about=").nth(1));
    // A part lies within the whole.
    let at = |line: &str| (number(line, "at_us="), number(line, "took_us="));
    let ((begun, all), (later, part)) = (at(start), at(attach));
    assert!(begun <= later && later + part <= begun + all, "{start} {attach}");
    unit.stop_daemon();
}
