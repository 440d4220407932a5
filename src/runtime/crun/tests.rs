//! Command lines and messages with a recorded process manager; everything else with the real
//! runtimes, the real event loop and containers of busybox.

use std::collections::BTreeSet;
use std::sync::Mutex;

use crossbeam::channel::{Receiver, bounded};
use nix::mount::{MsFlags, mount};
use nix::sys::statvfs::{FsFlags, statvfs};
use serde_json::json;

use super::*;
use crate::event_loop::{EventLoop, LoopHandle};
use crate::model::event::Event;
use crate::model::id::{InstanceIdent, ServiceId, SubjectId};
use crate::model::job::LimiterState;
use crate::ports::CommandEnd;
use crate::probe;
use crate::sys::testing::{PATIENCE, in_own_process, kills, wait_until};
use crate::sys::{command, thread};

const ID: &str = "0b0c4f0e-6f0a-4d5e-9d3f-2f1f6a0f8a11";

fn id() -> InstanceId {
    InstanceId::new(ID)
}

/// Answers every command with the same end, and writes what a runtime would write.
struct Recorded {
    lines: Mutex<Vec<String>>,
    end: CommandEnd,
    log: &'static str,
    /// On its error output.
    said: &'static str,
}

impl Processes for Recorded {
    fn run(&self, command: Command) -> Result<CommandEnd, Failure> {
        let words: Vec<&str> = command.argv.iter().map(|word| word.to_str().unwrap()).collect();
        self.lines.lock().unwrap().push(words.join(" "));
        if let Some(log) = words.iter().position(|word| *word == "--log") {
            files::write_plain(Path::new(words[log + 1]), self.log.as_bytes(), 0o600).unwrap();
        }
        if let Some(stderr) = command.stderr {
            std::io::Write::write_all(&mut File::from(stderr), self.said.as_bytes()).unwrap();
        }
        Ok(self.end)
    }

    fn start(&self, _: Command) -> Result<(), Failure> {
        Err(Failure::text("not here"))
    }

    fn watch(&self, _: Watch) -> Result<(), Failure> {
        Ok(())
    }
}

/// A spool that holds something already.
fn spool(dir: &Path) -> Stdio {
    let path = dir.join("spool");
    files::write_plain(&path, b"of an earlier start\n", 0o600).unwrap();
    let open = || File::options().append(true).open(&path).unwrap().into();
    Stdio { stdout: open(), stderr: open() }
}

fn devnull() -> Stdio {
    let open = || File::options().write(true).open("/dev/null").unwrap().into();
    Stdio { stdout: open(), stderr: open() }
}

/// Commands that a create, start and delete give, and the error of the create.
fn recorded(flavour: Flavour, end: CommandEnd, log: &'static str) -> (String, String) {
    let (lines, create, _) = spoken(flavour, end, log, "");
    (lines, create)
}

/// As `recorded`, with something on the error output; the error of the start too.
fn spoken(
    flavour: Flavour,
    end: CommandEnd,
    log: &'static str,
    said: &'static str,
) -> (String, String, String) {
    let dir = tempfile::tempdir().unwrap();
    let run_dir = dir.path().to_owned();
    let binary = match flavour {
        Flavour::Crun => "/usr/bin/crun",
        Flavour::Runc => "/usr/sbin/runc",
    };
    let settings = RuntimeSettings {
        program: Ok(Program { binary: binary.into(), flavour }),
        run_dir: run_dir.clone(),
        cgroup_parent: "/aos".into(),
        layout: Layout::default(),
    };
    let processes = Arc::new(Recorded { lines: Mutex::default(), end, log, said });
    let crun = Crun::new(settings, processes.clone()).unwrap();
    let bundle = run_dir.join("runtime").join(ID);
    fs::create_dir_all(&bundle).unwrap();
    let error = crun.create(&id(), &bundle, spool(dir.path())).unwrap_err();
    assert!(!log_file(&bundle).exists());
    let start = crun.start(&id()).err().map(|failure| failure.message).unwrap_or_default();
    fs::create_dir(crun.state_dir(&id())).unwrap();
    assert_eq!(crun.survey(), [id()]);
    crun.delete(&id()).unwrap();
    fs::remove_dir(&bundle).unwrap();
    fs::create_dir(crun.state_dir(&id())).unwrap();
    crun.delete(&id()).unwrap();
    crun.delete(&id()).unwrap();
    assert_eq!(crun.survey(), []);
    let lines = processes.lines.lock().unwrap().join("\n");
    let run_dir = run_dir.to_str().unwrap();
    let short = |text: String| text.replace(run_dir, "RUN");
    (short(lines).replace(ID, "ID"), short(error.message), short(start))
}

#[test]
fn command_lines() {
    let failed = CommandEnd { exit: Exit::Code(1), timed_out: false };
    let (lines, _) = recorded(Flavour::Crun, failed, "");
    let global = "/usr/bin/crun --root RUN/oci --cgroup-manager=cgroupfs";
    let log = "--log RUN/runtime/ID/runtime.log --log-format json";
    assert_eq!(
        lines,
        format!(
            "{global} {log} create --pid-file RUN/runtime/ID/.pid --bundle RUN/runtime/ID ID\n\
             {global} {log} start ID"
        )
    );
    let (lines, _) = recorded(Flavour::Runc, failed, "");
    let global = "/usr/sbin/runc --root RUN/oci";
    assert_eq!(
        lines,
        format!(
            "{global} {log} create --pid-file RUN/runtime/ID/.pid --bundle RUN/runtime/ID ID\n\
             {global} {log} start ID"
        )
    );
}

#[test]
fn errors_of_commands() {
    let check = |exit, timed_out, log, expect: &str| {
        let (_, error) = recorded(Flavour::Crun, CommandEnd { exit, timed_out }, log);
        assert_eq!(error, expect);
    };
    let line = "{\"msg\":\"first\"}\n{\"level\":\"error\",\"msg\":\"the last\\n\"}\n";
    check(Exit::Code(1), false, line, "crun create exited with code 1: the last");
    check(Exit::Code(7), false, "", "crun create exited with code 7: no message");
    check(Exit::Signal(9), false, "{}", "crun create killed by signal 9: no message");
    check(Exit::Signal(9), true, line, "crun create took longer than 10s: the last");
    check(
        Exit::Code(0),
        false,
        "",
        "cannot read the number of the init from RUN/runtime/0b0c4f0e-6f0a-4d5e-9d3f-\
         2f1f6a0f8a11/.pid: No such file or directory (os error 2)",
    );
}

#[test]
fn messages_of_logs() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    let check = |log: &str, expect: &str| {
        files::write_plain(&path, log.as_bytes(), 0o600).unwrap();
        assert_eq!(take_message(&path).unwrap_or_else(no_message), expect, "{log}");
        assert!(!path.exists());
    };
    check("{\"msg\":\"one\"}", "one");
    check("{\"msg\":\"one\"}\n{\"msg\":\"two\"}\nnonsense\n", "two");
    check("{\"msg\":\"\"}\n", "no message");
    check("plain text\n", "no message");
    let long = format!("{}\n{{\"msg\":\"end\"}}\n", "x".repeat(3 * LOG_MAX));
    check(&long, "end");
    let cut = format!("{{\"msg\":\"{}\"}}\n", "x".repeat(LOG_MAX));
    check(&cut, "no message");
    assert_eq!(take_message(&path), None);
}

#[test]
fn complaints_on_the_error_output() {
    let check = |log: &'static str, said: &'static str, expect: &str| {
        let end = CommandEnd { exit: Exit::Code(127), timed_out: false };
        let (_, create, start) = spoken(Flavour::Crun, end, log, said);
        assert_eq!(create, format!("crun create exited with code 127: {expect}"));
        assert_eq!(start, format!("crun start exited with code 127: {expect}"));
    };
    let loader = "crun: error while loading shared libraries: libyajl.so.2: cannot open";
    check(
        "",
        "\n crun: error while loading shared libraries: libyajl.so.2: cannot open \n",
        loader,
    );
    check("", "one\ntwo\nthree\nfour\n", "two; three; four");
    check("{\"msg\":\"logged\"}", "said\n", "logged");
    check("", " \n", "no message");
    let long: &'static str = Box::leak(format!("{}\nend\n", "x".repeat(3 * LOG_MAX)).into());
    check("", long, &format!("{}; end", "x".repeat(LOG_MAX - 5)));
}

/// A runtime of this host with the real event loop.
struct Bench {
    crun: Crun,
    events: Receiver<Event>,
    dir: tempfile::TempDir,
    parent: String,
}

/// Runs `body` with a runtime that exists on this host.
fn with_runtime(name: &str, flavour: Flavour, body: impl FnOnce(&mut Bench)) {
    thread::block_signals().unwrap();
    if flavour == Flavour::Crun
        && let Err(error) = private_v1_view()
    {
        println!("SKIP {name}: no private view of control groups: {error}");
        return;
    }
    let program = if flavour == Flavour::Crun { "crun" } else { "runc" };
    let found = command::find(program.as_ref()).map(|path| probe::probe(Some(&path)).unwrap());
    let Some((Ok(found), layout)) = found.map(|caps| (caps.runtime, caps.cgroups)) else {
        println!("SKIP {name}: {program} does not work here");
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let parent = format!(r"/aos-test-{}-{}.slice/a\x2db.slice", name, std::process::id());
    let settings = RuntimeSettings {
        program: Ok(Program { binary: found.binary, flavour: found.flavour }),
        run_dir: dir.path().to_owned(),
        cgroup_parent: parent.clone(),
        layout,
    };
    let (event_loop, handle) = EventLoop::new().unwrap();
    let (core, events) = bounded(8);
    let main = thread::spawn("main", move || event_loop.run(&core, &Default::default())).unwrap();
    let processes: Arc<LoopHandle> = Arc::new(handle.clone());
    let crun = Crun::new(settings, processes).unwrap();
    let mut bench = Bench { crun, events, dir, parent };
    body(&mut bench);
    bench.expect_nothing_left();
    handle.stop();
    main.join().unwrap().unwrap();
}

/// crun refuses v1 and v2 together; this thread and those it starts see v1 alone.
fn private_v1_view() -> io::Result<()> {
    use crate::sys::mount::{isolate, tmpfs};
    isolate()?;
    let top = Path::new("/sys/fs/cgroup");
    if crate::sys::cgroups::Layout::read()?.kind() == crate::sys::cgroups::Kind::V2 {
        return Ok(());
    }
    let known = Layout::read()?.v1;
    tmpfs(top, None, 0o755)?;
    for hierarchy in known {
        let joined = hierarchy.controllers.join(",");
        let target = top.join(&joined);
        fs::create_dir(&target)?;
        let options = if joined.contains('=') { format!("none,{joined}") } else { joined };
        let kind = Some("cgroup");
        mount(kind, &target, kind, MsFlags::empty(), Some(options.as_str()))?;
    }
    // What no v1 hierarchy has belongs to v2 until it is mounted.
    let target = top.join("hugetlb");
    if !target.exists() && fs::create_dir(&target).is_ok() {
        let _ = mount(Some("cgroup"), &target, Some("cgroup"), MsFlags::empty(), Some("hugetlb"));
    }
    Ok(())
}

impl Bench {
    fn out(&self) -> PathBuf {
        self.dir.path().join("out")
    }

    /// Writes a bundle that runs these words, with `sh` and its tools from busybox.
    fn bundle(&self, words: &[&str]) -> PathBuf {
        self.bundle_of(&id(), words)
    }

    fn bundle_of(&self, id: &InstanceId, words: &[&str]) -> PathBuf {
        let bundle = self.crun.bundle(id);
        let rootfs = self.dir.path().join("rootfs");
        let bin = rootfs.join("bin");
        for dir in [&bin, &rootfs.join("proc"), &rootfs.join("dev"), &bundle] {
            fs::create_dir_all(dir).unwrap();
        }
        for tool in ["busybox", "sh", "sleep", "tail", "grep", "ls", "tr"] {
            let path = bin.join(tool);
            if !path.exists() {
                fs::copy("/bin/busybox", path).unwrap();
            }
        }
        files::write_plain(&bin.join("unloadable"), b"\x7fELF nonsense", 0o755).unwrap();
        let namespaces =
            ["pid", "network", "ipc", "uts", "mount"].map(|kind| json!({"type": kind}));
        let config = json!({
            "ociVersion": "1.0.2",
            "process": {
                "user": {"uid": 0, "gid": 0}, "args": words, "cwd": "/", "env": ["PATH=/bin", "HOME=/"],
                "noNewPrivileges": true,
            },
            "root": {"path": rootfs},
            "mounts": [{"destination": "/proc", "type": "proc", "source": "proc"},
                       {"destination": "/dev", "type": "tmpfs", "source": "tmpfs"}],
            "linux": {
                "namespaces": namespaces,
                "cgroupsPath": self.crun.groups.leaf(id),
                "resources": {
                    "devices": [{"allow": false, "access": "rwm"}],
                    "memory": {"limit": 16 << 20}, "pids": {"limit": 32},
                },
            },
        });
        files::write_plain(&bundle.join("config.json"), config.to_string().as_bytes(), 0o600)
            .unwrap();
        bundle
    }

    fn stdio(&self) -> Stdio {
        let file = File::options().create(true).append(true).open(self.out()).unwrap();
        Stdio { stdout: file.try_clone().unwrap().into(), stderr: file.into() }
    }

    /// Creates and starts a container.
    fn run(&self, words: &[&str]) -> Init {
        let bundle = self.bundle(words);
        let init = self.crun.create(&id(), &bundle, self.stdio()).unwrap();
        self.crun.start(&id()).unwrap();
        init
    }

    fn expect_exit(&self, expect: Exit) {
        match self.events.recv_timeout(PATIENCE).unwrap() {
            Event::Exited { id: of, exit, .. } => assert_eq!((of, exit), (id(), expect)),
            other => panic!("{other:?}"),
        }
    }

    fn expect_nothing_left(&self) {
        assert_eq!(self.crun.survey(), []);
        assert!(fs::read_dir(&self.crun.state_root).unwrap().next().is_none());
        let first = self.parent.split('/').nth(1).unwrap();
        for mount in self.crun.settings.layout.mounts() {
            assert!(!mount.join(first).exists(), "{} has {first}", mount.display());
        }
        assert!(self.events.try_recv().is_err());
    }
}

impl Drop for Bench {
    /// A test that fails leaves no container either.
    fn drop(&mut self) {
        let _ = self.crun.delete_container(&id());
    }
}

/// The whole life of containers, and what is left of them.
fn containers_live_and_die(bench: &Bench) {
    let crun = &bench.crun;
    // An early output, the state inherited from us, and an exit code.
    let script = "echo hello; grep SigBlk /proc/self/status; umask; tr '\\0' ' ' </proc/1/environ
        ls /proc/1/fd; exit 42";
    let bundle = bench.bundle(&["/bin/sh", "-c", script]);
    let init = crun.create(&id(), &bundle, bench.stdio()).unwrap();
    assert!(crun.groups.contains(&id(), init.pid));
    assert_eq!(process::start_time(init.pid).unwrap(), init.start_time);
    assert_eq!(crun.known_init(&id()), Some(init));
    assert_eq!(crun.survey(), [id()]);
    assert!(bench.events.try_recv().is_err());
    crun.start(&id()).unwrap();
    bench.expect_exit(Exit::Code(42));
    let text = fs::read_to_string(bench.out()).unwrap();
    assert_eq!(text, "hello\nSigBlk:\t0000000000000000\n0022\nPATH=/bin HOME=/ 0\n1\n2\n");
    crun.delete(&id()).unwrap();
    bench.expect_nothing_left();

    // Killed from outside, with all its processes.
    bench.run(&["/bin/sh", "-c", "sleep 1000 & sleep 1000 & wait"]);
    wait_until("three processes", || crun.groups.processes(&id()).unwrap().len() == 3);
    assert!(crun.kill(&[id()]).is_empty());
    assert_eq!(crun.groups.processes(&id()).unwrap(), BTreeSet::new());
    bench.expect_exit(Exit::Signal(9));
    crun.delete(&id()).unwrap();
    bench.expect_nothing_left();

    // Removed while it runs, and while it is only created.
    bench.run(&["/bin/sleep", "1000"]);
    crun.delete(&id()).unwrap();
    bench.expect_exit(Exit::Signal(9));
    crun.create(&id(), &bench.bundle(&["/bin/sleep", "1000"]), bench.stdio()).unwrap();
    crun.delete(&id()).unwrap();
    bench.expect_exit(Exit::Signal(9));
    crun.delete(&id()).unwrap();
    bench.expect_nothing_left();

    // Somebody has put it into other groups.
    let init = bench.run(&["/bin/sleep", "1000"]);
    for mount in crun.settings.layout.mounts() {
        files::write_existing(&mount.join("cgroup.procs"), &init.pid.to_string()).unwrap();
    }
    assert_eq!(crun.groups.processes(&id()).unwrap(), BTreeSet::new());
    crun.delete(&id()).unwrap();
    bench.expect_exit(Exit::Signal(9));
    bench.expect_nothing_left();

    // A left-over of the same id is replaced.
    let first = bench.run(&["/bin/sleep", "1000"]);
    let second = bench.run(&["/bin/sleep", "1000"]);
    assert_ne!(first.pid, second.pid);
    bench.expect_exit(Exit::Signal(9));
    assert!(crun.kill(&[id()]).is_empty());
    bench.expect_exit(Exit::Signal(9));
    crun.delete(&id()).unwrap();
}

/// Every way in which a program can end has its own report.
fn ends_are_told(bench: &Bench) {
    let crun = &bench.crun;
    let trap = "trap 'exit 7' TERM; echo ready; while :; do sleep 0.01; done";
    for (script, signal, expect) in [
        ("exit 0", None, Exit::Code(0)),
        ("exit 1", None, Exit::Code(1)),
        ("exit 255", None, Exit::Code(255)),
        (trap, Some(libc::SIGTERM), Exit::Code(7)),
        ("echo ready; exec sleep 1000", Some(libc::SIGKILL), Exit::Signal(9)),
    ] {
        let _ = fs::remove_file(bench.out());
        let init = bench.run(&["/bin/sh", "-c", script]);
        if let Some(signal) = signal {
            wait_until("a program", || fs::read(bench.out()).is_ok_and(|out| !out.is_empty()));
            let pidfd = pidfd::open(init.pid).unwrap();
            pidfd::send_signal(pidfd.as_fd(), signal).unwrap();
        }
        bench.expect_exit(expect);
        crun.delete(&id()).unwrap();
    }
}

/// Starts that fail and ends that are not normal.
fn failures_are_told(bench: &Bench) {
    let crun = &bench.crun;
    let missing = bench.bundle(&["/bin/missing"]);
    let failure = crun.create(&id(), &missing, bench.stdio()).unwrap_err();
    let told = failure.message.contains("not found") || failure.message.contains("no such file");
    assert!(told, "{failure}");
    bench.expect_nothing_left();

    let bundle = bench.bundle(&["/bin/sh"]);
    fs::remove_file(bundle.join("config.json")).unwrap();
    let failure = crun.create(&id(), &bundle, bench.stdio()).unwrap_err();
    assert!(failure.message.contains("config.json"), "{failure}");
    bench.expect_nothing_left();
    assert!(crun.start(&id()).unwrap_err().message.contains("start exited with"));

    bench.run(&["/bin/unloadable"]);
    bench.expect_exit(Exit::Code(1));
    crun.delete(&id()).unwrap();

    bench.run(&["/bin/tail", "/dev/zero"]);
    bench.expect_exit(Exit::OutOfMemory);
    crun.delete(&id()).unwrap();

    // A child that is killed for want of memory is no end of the container, but explains one.
    bench.run(&["/bin/sh", "-c", "tail /dev/zero; exit $?"]);
    bench.expect_exit(Exit::CodeAfterKills(137));
    crun.delete(&id()).unwrap();
}

fn record(pid: u32, start_time: u64) -> Record {
    let ident = InstanceIdent {
        service_id: ServiceId::new("service"),
        subject_id: SubjectId::new("subject"),
        instance: 0,
    };
    Record {
        ident,
        service_version: "1.0.0".into(),
        inputs_digest: String::new(),
        overrides: Arc::default(),
        secret_hash: String::new(),
        pid,
        start_time,
        limiter: LimiterState::default(),
        restarts: 0,
        started_at_ns: 0,
    }
}

/// A record must name the very process before it is taken over, and no other comes to harm.
fn only_the_recorded_process_is_adopted(bench: &Bench) {
    let crun = &bench.crun;
    let init = bench.run(&["/bin/sleep", "1000"]);
    let own = std::process::id();
    let own_start = process::start_time(own).unwrap();
    let thread = u32::try_from(nix::unistd::gettid().as_raw()).unwrap();
    let check = |pid: u32, start_time: u64, expect: &str| {
        let failure = crun.adopt(&id(), &record(pid, start_time)).unwrap_err();
        assert!(failure.message.contains(expect), "{failure}");
    };
    check(own, own_start, "not in the control group");
    check(init.pid, init.start_time + 1, "not the recorded one");
    check(own, init.start_time, "not the recorded one");
    if thread != own {
        check(thread, own_start, "cannot open init");
    }
    check(u32::MAX >> 2, 1, "has ended");
    check(0, 0, "");
    let inner = bench.crun.groups.processes(&id()).unwrap();
    assert_eq!(inner, [init.pid].into());
    let adopted = crun.adopt(&id(), &record(init.pid, init.start_time)).unwrap();
    assert_eq!(adopted, Started { pid: init.pid, doubt: None });
    assert!(crun.kill(&[id()]).is_empty());
    bench.expect_exit(Exit::Signal(9));
    check(init.pid, init.start_time, "has ended");
    crun.delete(&id()).unwrap();
}

/// Many containers by two workers, as the exec threads do it; nothing may pile up.
fn many_at_once(bench: &Bench, count: usize) {
    let crun = &bench.crun;
    let ids: Vec<InstanceId> = (0..count).map(|n| InstanceId::new(&format!("many-{n}"))).collect();
    let starts = |ids: &[InstanceId]| {
        for id in ids {
            let bundle = bench.bundle_of(id, &["/bin/sh", "-c", "exit 3"]);
            crun.create(id, &bundle, devnull()).unwrap();
            crun.start(id).unwrap();
        }
    };
    bench.bundle(&["/bin/sh"]);
    let (left, right) = ids.split_at(count / 2);
    let mut ended = BTreeSet::new();
    std::thread::scope(|scope| {
        scope.spawn(|| starts(left));
        scope.spawn(|| starts(right));
        while ended.len() < count {
            match bench.events.recv_timeout(PATIENCE).unwrap() {
                Event::Exited { id, exit: Exit::Code(3), .. } => assert!(ended.insert(id)),
                other => panic!("{other:?}"),
            }
        }
    });
    assert_eq!(crun.survey().len(), count);
    std::thread::scope(|scope| {
        for half in [left, right] {
            scope.spawn(|| half.iter().for_each(|id| crun.delete(id).unwrap()));
        }
    });
    wait_until("no child", || own_children().is_empty());
}

/// Numbers of our children, zombies included.
fn own_children() -> Vec<u32> {
    let mut pids = Vec::new();
    for task in fs::read_dir("/proc/self/task").unwrap().flatten() {
        let text = fs::read_to_string(task.path().join("children")).unwrap_or_default();
        pids.extend(text.split_whitespace().map(|pid| pid.parse::<u32>().unwrap()));
    }
    pids
}

/// The runtime is killed at any moment of a create, which takes about `span`: afterwards all can be
/// removed.
fn killed_runtimes_leave_nothing(bench: &Bench, rounds: u32, span: Duration) {
    let crun = &bench.crun;
    let rounds = kills(rounds);
    let bundle = bench.bundle(&["/bin/sleep", "1000"]);
    let (mut failed, mut created) = (0, 0);
    for round in 0..rounds {
        let at = span * round / rounds;
        let result = std::thread::scope(|scope| {
            let create = scope.spawn(|| crun.create(&id(), &bundle, devnull()));
            wait_until("the runtime", || !own_children().is_empty() || create.is_finished());
            let begin = crate::sys::time::monotonic();
            while crate::sys::time::monotonic() < begin + at && !create.is_finished() {
                std::thread::yield_now();
            }
            // The init may be our child by now: it is not the one to kill.
            for pid in own_children() {
                if !crun.groups.contains(&id(), pid) {
                    let _ = pidfd::kill_group(pid);
                }
            }
            create.join().unwrap()
        });
        crun.delete(&id()).unwrap();
        match result {
            Ok(_) => {
                created += 1;
                bench.expect_exit(Exit::Signal(9));
            }
            Err(_) => failed += 1,
        }
        assert_eq!(crun.survey(), [], "round {round}");
        wait_until("no child", || own_children().is_empty());
        // A watch may have been registered before a failure was seen.
        while bench.events.try_recv().is_ok() {}
    }
    assert!(failed > 0, "{created} created");
    println!("rounds={rounds} created={created} failed={failed}");
}

/// A runtime that never comes back is killed, with what it has started.
fn a_hanging_runtime_is_killed(bench: &mut Bench) {
    let script = bench.dir.path().join("hanging");
    files::write_plain(&script, b"#!/bin/sh\nsleep 1000 & sleep 1000\n", 0o755).unwrap();
    let bundle = bench.bundle(&["/bin/sleep", "1000"]);
    let flavour = Flavour::Runc;
    bench.crun.settings.program = Ok(Program { binary: script, flavour });
    bench.crun.deadline = Duration::from_millis(100);
    let failure = bench.crun.create(&id(), &bundle, bench.stdio()).unwrap_err();
    assert_eq!(failure.message, "hanging create took longer than 100ms: no message");
    assert!(failure.transient);
    wait_until("no child", || own_children().is_empty());
    let binary = "/no/runtime".into();
    bench.crun.settings.program = Ok(Program { binary, flavour });
    let failure = bench.crun.create(&id(), &bundle, bench.stdio()).unwrap_err();
    assert!(failure.message.starts_with("runtime create did not run: "), "{failure}");
    bench.crun.settings.program = Err("it is missing".to_owned());
    let failure = bench.crun.create(&id(), &bundle, bench.stdio()).unwrap_err();
    assert_eq!(failure.message, "no container can run on this node: it is missing");
}

/// crun makes no file and no mount to execute itself again if its program is a read-only view; it
/// does for a script, which cannot be executed from there, and a killed one leaves nothing for good.
fn crun_is_executed_once(bench: &mut Bench) {
    let scratch = bench.dir.path().join("crun");
    let files_were_made = |bench: &Bench| {
        let modified = || fs::metadata(&scratch).unwrap().modified().unwrap();
        let before = modified();
        bench.run(&["/bin/sh", "-c", "exit 0"]);
        bench.expect_exit(Exit::Code(0));
        bench.crun.delete(&id()).unwrap();
        modified() != before
    };
    assert!(!files_were_made(bench));
    let Ok(Program { binary, flavour }) = bench.crun.settings.program.clone() else { panic!() };
    let script = bench.dir.path().join("crun.sh");
    let text = format!("#!/bin/sh\nexec {} \"$@\"\n", binary.display());
    files::write_plain(&script, text.as_bytes(), 0o755).unwrap();
    bench.crun.settings.program = Ok(Program { binary: script.clone(), flavour });
    bench.crun.sealed = Some(Sealed::new(&script, scratch.clone()).unwrap());
    // Unless the whole file system of crun is read-only, which it accepts.
    let is_read_only = statvfs(&binary).unwrap().flags().contains(FsFlags::ST_RDONLY);
    assert_eq!(files_were_made(bench), !is_read_only);
    // What a crun leaves that is killed after it has mounted its program.
    let left = scratch.join("crun.XXXXXX");
    files::write_plain(&left, b"", 0o000).unwrap();
    mount::bind(&binary, &left).unwrap();
    Sealed::new(&binary, scratch.clone()).unwrap();
    assert_eq!(fs::read_dir(&scratch).unwrap().count(), 0);
}

/// One test in a process of its own.
macro_rules! real {
    ($($name:ident: $flavour:ident, $body:expr;)*) => {$(
        #[test]
        fn $name() {
            in_own_process(concat!("runtime::crun::tests::", stringify!($name)), || {
                with_runtime(stringify!($name), Flavour::$flavour, $body);
            });
        }
    )*};
}

real! {
    runc_containers_live_and_die: Runc, |bench| containers_live_and_die(bench);
    crun_containers_live_and_die: Crun, |bench| containers_live_and_die(bench);
    runc_ends_are_told: Runc, |bench| ends_are_told(bench);
    crun_ends_are_told: Crun, |bench| ends_are_told(bench);
    runc_failures_are_told: Runc, |bench| failures_are_told(bench);
    crun_failures_are_told: Crun, |bench| failures_are_told(bench);
    runc_only_the_recorded_process_is_adopted: Runc,
        |bench| only_the_recorded_process_is_adopted(bench);
    crun_only_the_recorded_process_is_adopted: Crun,
        |bench| only_the_recorded_process_is_adopted(bench);
    runc_many_at_once: Runc, |bench| many_at_once(bench, 16);
    crun_many_at_once: Crun, |bench| many_at_once(bench, 64);
    runc_killed_at_any_moment: Runc,
        |bench| killed_runtimes_leave_nothing(bench, 80, Duration::from_millis(40));
    crun_killed_at_any_moment: Crun,
        |bench| killed_runtimes_leave_nothing(bench, 120, Duration::from_millis(16));
    crun_executed_once: Crun, crun_is_executed_once;
    runc_hangs: Runc, a_hanging_runtime_is_killed;
}
