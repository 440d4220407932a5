//! A simulated unit with one daemon, and what a test says to them.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use aos_servicemanager::cm::wire::v4::servicemanager::SMIncomingMessages;
use protobuf::Message;
use serde_json::Value;
use tempfile::TempDir;

use super::program::{self, Program};
use super::space::{Groups, Space};
use super::{host, need, slowness, wait_until};

/// A file system that is not the one of `/`, as in a product.
pub const MEMORY: &str = "/dev/shm";

/// Longest time for one command of the unit, beyond what it names itself: its own waits end earlier.
const COMMAND_LIMIT: Duration = Duration::from_secs(90);

/// Run parameters with which a crash loop ends within a second.
pub const QUICK: &str = r#"{"runParameters":{"startInterval":"500ms","restartInterval":"100ms"}}"#;

/// The program under test.
pub fn daemon_program() -> PathBuf {
    let given = std::env::var_os("SM_UNDER_TEST");
    given.map_or_else(|| env!("CARGO_BIN_EXE_aos_servicemanager").into(), PathBuf::from)
}

/// How a unit is set up.
#[derive(Debug)]
pub struct Setup {
    place: &'static str,
    groups: Groups,
    flags: Vec<String>,
    small: Option<(&'static str, u64)>,
    own_dev: bool,
    quota: Option<&'static str>,
    /// End of the name of the unit's directory.
    tail: &'static str,
}

impl Setup {
    /// In memory, with the runtime that the daemon would choose, every instance is `active` as soon
    /// as it runs.
    pub fn new() -> Self {
        let setup = Self {
            place: MEMORY,
            groups: Groups::Host,
            flags: Vec::new(),
            small: None,
            own_dev: false,
            quota: None,
            tail: "",
        };
        let setup = setup.set("startVerdict", "immediate");
        let setup = match need::netfilter() {
            Ok(()) => setup,
            Err(_) => setup.set("network.firewall", "none"),
        };
        let name = if need::pure_v2().is_ok() { "crun" } else { "runc" };
        match need::program(name) {
            Ok(runtime) => setup.set("runtime", &runtime),
            Err(_) => setup,
        }
    }

    /// With crun, which needs to see control groups of version 1 alone.
    pub fn crun() -> Self {
        let setup = Self::new().set("runtime", &need::program("crun").unwrap());
        let has_v1 = host::hierarchies().iter().any(|h| !h.v2);
        Self { groups: if has_v1 { Groups::V1 } else { Groups::Host }, ..setup }
    }

    /// On the file system of `/`.
    pub fn on_plain_disk(self) -> Self {
        Self { place: "/var/tmp", ..self }
    }

    /// A member of the daemon's configuration.
    pub fn set(self, key: &str, value: &str) -> Self {
        self.flag("--set").flag(&format!("{key}={value}"))
    }

    /// An argument of the unit.
    pub fn flag(mut self, flag: &str) -> Self {
        self.flags.push(flag.to_owned());
        self
    }

    /// A file system of its own for a directory below the unit's.
    pub fn small(mut self, directory: &'static str, size_bytes: u64) -> Self {
        self.small = Some((directory, size_bytes));
        self
    }

    /// A `/dev` in which a test may make and remove nodes.
    pub fn with_own_dev(self) -> Self {
        Self { own_dev: true, ..self }
    }

    /// The name of the unit's directory, which all paths have in them, ends with this.
    pub fn with_tail(self, tail: &'static str) -> Self {
        Self { tail, ..self }
    }

    /// A file system that keeps quota for a directory below the unit's.
    pub fn quota(mut self, directory: &'static str) -> Self {
        self.quota = Some(directory);
        self
    }

    /// Starts the unit without the daemon.
    pub fn start(self) -> Unit {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("aos-test-{}-{number}", std::process::id());
        let mut builder = tempfile::Builder::new();
        let dir = builder.prefix(&name).suffix(self.tail).tempdir_in(self.place).unwrap();
        let space = Space::new(self.groups);
        if let Some((below, size_bytes)) = self.small {
            space.mount_small(&dir.path().join(below), size_bytes);
        }
        if self.own_dev {
            space.mount_dev();
        }
        if let Some(below) = self.quota {
            let at = dir.path().join(below);
            space.mount_with_quota(&at, &dir.path().join("quota.img")).unwrap();
        }
        let group = format!("/{name}");
        let mut command = Command::new(env!("CARGO_BIN_EXE_aos_unit_sim"));
        command.arg("--dir").arg(dir.path()).args(["--keep-going", "--quiet"]);
        command.arg("--set").arg(format!("cgroupParent={group}")).args(&self.flags);
        let links = space.links();
        let sim = Program::start(&space, &mut command);
        let unit = Unit { dir, group, links, sim, daemon: None, cursor: Cell::new(0), space };
        unit.expect("CM port");
        unit
    }

    /// Starts the unit and the daemon, and waits until they know each other.
    pub fn registered(self) -> Unit {
        let mut unit = self.start();
        unit.start_daemon();
        unit.say("wait registered");
        unit
    }
}

/// A unit with the instance `good/subject/0`, which what follows must not hurt.
pub fn with_a_good_one(setup: Setup) -> Unit {
    let mut unit = setup.registered();
    unit.sleeper("good");
    unit.say("run");
    unit.say("wait active good");
    unit
}

/// A running unit. Whatever is left of it ends with it.
#[derive(Debug)]
pub struct Unit {
    dir: TempDir,
    /// Parent of the control groups of its instances.
    group: String,
    /// Network links that there were before the daemon.
    links: Vec<String>,
    sim: Program,
    daemon: Option<Program>,
    /// First line of the unit's output that `expect` has not passed.
    cursor: Cell<usize>,
    pub space: Space,
}

impl Unit {
    pub fn path(&self, below: &str) -> PathBuf {
        self.dir.path().join(below)
    }

    pub fn config(&self) -> PathBuf {
        self.path("aos_servicemanager.cfg")
    }

    /// Gives the unit a command and waits until it is done; what was printed meanwhile.
    pub fn say(&mut self, command: &str) -> Vec<String> {
        let (lines, result) = self.tell(command);
        assert!(tag(&result) == "ok", "{result}");
        lines
    }

    fn tell(&mut self, command: &str) -> (Vec<String>, String) {
        let start = self.sim.output.len();
        self.sim.write(&with_limit(command));
        let is_result = |line: &str| matches!(tag(line), "ok" | "FAILED");
        let limit = COMMAND_LIMIT * slowness() + named_time(command).unwrap_or_default();
        let end = self.sim.output.find(start, limit, is_result);
        let end = end.unwrap_or_else(|| panic!("{command}: no result"));
        let mut lines = self.sim.output.from(start);
        lines.truncate(end - start + 1);
        let result = lines.pop().unwrap_or_default();
        (lines, result)
    }

    /// Lets the CM send a message as it is.
    pub fn send(&mut self, message: &SMIncomingMessages) {
        let bytes = message.write_to_bytes().unwrap();
        let digits: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        self.say(&format!("raw {digits}"));
    }

    /// Waits until the unit prints this text; the line. Text before it is passed.
    pub fn expect(&self, text: &str) -> String {
        let at = self.sim.expect(self.cursor.get(), text);
        self.cursor.set(at + 1);
        self.sim.output.from(at).swap_remove(0)
    }

    /// From here on `expect` sees only what is printed later.
    pub fn look(&self) {
        self.cursor.set(self.sim.output.len());
    }

    /// Everything the unit has printed since the last `look` or `expect`.
    pub fn seen(&self) -> Vec<String> {
        self.sim.output.from(self.cursor.get())
    }

    /// The same state again, in a full status of its own: `service/subject/index` and what is
    /// said of it.
    pub fn statuses(&mut self) -> Vec<String> {
        let lines = self.say("status");
        // What came in meanwhile has details too.
        let is_answer = |line: &String| tag(line) == "unit" && line.contains(" service manager ");
        let answer = lines.iter().position(is_answer).expect("an answer");
        let details = lines[answer + 1..].iter().take_while(|line| tag(line).is_empty());
        details.map(|line| line.trim().to_owned()).collect()
    }

    /// A service that is busybox with a script.
    pub fn service(&mut self, id: &str, script: &str, more: &str) {
        let busybox = need::program("busybox").unwrap();
        self.say(&format!(
            "service {id} {busybox} entrypoint=/busybox cmd=sh cmd=-c cmd='{script}' \
             config='{QUICK}' {more}"
        ));
    }

    /// As `sleeper`, but its first attempt to start is the last.
    pub fn sleeper_with_one_try(&mut self, id: &str) {
        let busybox = need::program("busybox").unwrap();
        let config = r#"config='{"runParameters":{"startBurst":1,"startInterval":"120s"}}'"#;
        self.say(&format!(
            "service {id} {busybox} entrypoint=/busybox cmd=sleep cmd=10000 {config}"
        ));
        self.say(&format!("instance {id}"));
    }

    /// A service that runs until it is stopped, with one instance.
    pub fn sleeper(&mut self, id: &str) {
        self.service(id, "exec /busybox sleep 10000", "");
        self.say(&format!("instance {id}"));
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(daemon_program());
        command.args(arguments).current_dir(self.dir.path());
        command
    }

    pub fn start_daemon(&mut self) {
        self.start_daemon_with(&[]);
    }

    /// Starts the daemon with these variables in its environment.
    pub fn start_daemon_with(&mut self, variables: &[(&str, &str)]) {
        self.start_daemon_as(&[], variables);
    }

    /// Starts the daemon with further flags and these variables.
    pub fn start_daemon_as(&mut self, flags: &[&str], variables: &[(&str, &str)]) {
        assert!(self.daemon.is_none(), "there is a daemon already");
        let config = self.config();
        let mut command = self.command(&["-v", "debug", "-c"]);
        command.arg(config).args(flags).envs(variables.iter().copied());
        self.daemon = Some(Program::start(&self.space, &mut command));
    }

    /// Starts the daemon with a tracer, which is no parent of it and writes these system calls to a
    /// file.
    pub fn start_daemon_traced(&mut self, calls: &str, to: &Path) {
        assert!(self.daemon.is_none(), "there is a daemon already");
        let mut command = Command::new(need::program("strace").unwrap());
        command.args(["-D", "-f", "-qq", "-s", "256", "-e", calls, "-o"]).arg(to);
        command.arg(daemon_program()).args(["-v", "debug", "-c"]).arg(self.config());
        command.current_dir(self.dir.path());
        self.daemon = Some(Program::start(&self.space, &mut command));
    }

    /// Runs the program with flags and the unit's configuration to its end.
    pub fn run_to_end(&self, flags: &[&str]) -> (Option<i32>, String, String) {
        let mut command = self.command(flags);
        command.arg("-c").arg(self.config());
        self.space.inside(|| program::run(&mut command))
    }

    pub fn daemon(&mut self) -> &mut Program {
        self.daemon.as_mut().unwrap()
    }

    /// Waits until the daemon has logged this text.
    pub fn expect_log(&mut self, text: &str) -> String {
        let daemon = self.daemon();
        let at = daemon.expect(0, text);
        daemon.output.from(at).swap_remove(0)
    }

    /// SIGTERM, and the orderly end.
    pub fn stop_daemon(&mut self) {
        self.daemon().signal(nix::libc::SIGTERM);
        let status = self.daemon().end();
        assert_eq!(status.code(), Some(0), "{status}");
        self.daemon = None;
    }

    /// SIGKILL. Its stream to the CM has ended too: no later wait takes it for the next one.
    pub fn kill_daemon(&mut self) {
        assert!(!self.daemon().has_ended(), "the daemon has ended by itself");
        self.daemon().kill();
        self.daemon = None;
        self.say("wait disconnected");
    }

    /// The daemon has ended by itself.
    pub fn daemon_is_dead(&mut self) -> bool {
        self.daemon().has_ended()
    }

    /// Another daemon may be started after one that has ended by itself, and its stream with it.
    pub fn bury_daemon(&mut self) {
        assert!(self.daemon().has_ended(), "the daemon lives");
        self.daemon = None;
        self.say("wait disconnected");
    }

    /// As `say`, but it may fail.
    pub fn try_say(&mut self, command: &str) -> bool {
        tag(&self.tell(command).1) == "ok"
    }

    /// The unit's program stops: its ports are open, and nobody reads or answers.
    pub fn stand_still(&self) {
        self.sim.signal(nix::libc::SIGSTOP);
    }

    pub fn go_on(&self) {
        self.sim.signal(nix::libc::SIGCONT);
    }

    /// Ids of the instances that have a bundle.
    pub fn bundles(&self) -> Vec<String> {
        host::names(&self.path("run/runtime"))
    }

    /// Runtime configurations of the instances that have one: `service/subject/index`, id, content.
    fn configurations(&self) -> impl Iterator<Item = (String, String, Value)> {
        self.bundles().into_iter().filter_map(|id| {
            let file = self.path("run/runtime").join(&id).join("config.json");
            let config: Value = serde_json::from_slice(&fs::read(file).ok()?).ok()?;
            Some((ident_in(&config)?, id, config))
        })
    }

    /// The runtime configuration of an instance, by `service/subject/index`.
    fn bundle(&self, instance: &str) -> Option<(String, Value)> {
        let found = self.configurations().find(|(ident, ..)| ident == instance);
        found.map(|(_, id, config)| (id, config))
    }

    /// Ids of all instances that have a bundle, by `service/subject/index`.
    pub fn ids(&self) -> BTreeMap<String, String> {
        self.configurations().map(|(ident, id, _)| (ident, id)).collect()
    }

    /// Id of an instance, by `service/subject/index`, if it has a bundle.
    pub fn find_id(&self, instance: &str) -> Option<String> {
        self.bundle(instance).map(|(id, _)| id)
    }

    pub fn id_of(&self, instance: &str) -> String {
        self.bundle(instance).unwrap_or_else(|| panic!("{instance} has no bundle")).0
    }

    /// Number of the init process of an instance.
    pub fn pid_of(&self, instance: &str) -> u32 {
        let file = self.path("run/runtime").join(self.id_of(instance)).join(".pid");
        let text = fs::read_to_string(&file).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
        text.trim().parse().unwrap()
    }

    /// Number of the simulated unit's process, which is in the namespaces of the daemon.
    pub fn simulator_pid(&self) -> u32 {
        self.sim.pid()
    }

    /// Parent of the control groups of the instances.
    pub fn parent_group(&self) -> &str {
        &self.group
    }

    /// Processes in the control groups of the instances, by instance id.
    pub fn groups(&self) -> Vec<(String, BTreeSet<u32>)> {
        host::groups(&self.group).into_iter().collect()
    }

    /// A file of an instance's storage, when it is there.
    pub fn stored(&self, instance: &str, file: &str) -> Option<String> {
        let storage = self.path("sm/storages").join(instance.replace('/', "_"));
        fs::read_to_string(storage.join(file)).ok()
    }

    /// Waits for a file of an instance's storage with this text; all of it.
    pub fn expect_stored(&self, instance: &str, file: &str, text: &str) -> String {
        let mut last = None;
        wait_until(&format!("{text:?} in {file} of {instance}"), || {
            last = self.stored(instance, file);
            last.as_deref().is_some_and(|content| content.contains(text))
        });
        last.unwrap_or_default()
    }

    /// The body of an answer over HTTP, asked from the node's side.
    pub fn get(&self, address: &str, path: &str) -> Option<String> {
        let address = address.parse().unwrap();
        let limit = Duration::from_secs(10);
        let mut stream = self.space.inside(|| TcpStream::connect_timeout(&address, limit)).ok()?;
        stream.set_read_timeout(Some(limit)).unwrap();
        write!(stream, "GET {path} HTTP/1.0\r\n\r\n").ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned())
    }

    /// Directories below the image store, staging ones included.
    pub fn installed(&self) -> Vec<String> {
        host::names(&self.path("sm/work/services"))
    }

    /// Everything that instances have on the host must be gone; links only when there is no
    /// network any more either.
    pub fn nothing_left(&self) {
        if self.daemon.is_some() {
            // The last output is stored by another thread than the one that reports the end.
            wait_until("the end of the spools", || host::names(&self.path("run/log")).is_empty());
        }
        let groups = self.groups();
        assert!(groups.is_empty(), "control groups are left: {groups:?}");
        let run = self.path("run");
        let below = |point: &String| Path::new(point).starts_with(&run);
        let mounts: Vec<_> = self.space.mount_points().into_iter().filter(below).collect();
        assert!(mounts.is_empty(), "mounts are left: {mounts:?}");
        let namespaces = self.space.network_namespaces();
        assert!(namespaces.is_empty(), "network namespaces are left: {namespaces:?}");
        for name in ["runtime", "oci", "log"] {
            let left = host::tree(&run.join(name));
            assert!(left.is_empty(), "left in {name}: {left:?}");
        }
        // A pair of links ends with its namespace, some time after the namespace was given up.
        wait_until("the end of the links", || {
            !self.space.links().iter().any(|link| link.starts_with("ve"))
        });
    }

    /// As `nothing_left`, and no bridge either.
    pub fn no_links_left(&self) {
        self.nothing_left();
        assert_eq!(self.space.links(), self.links);
    }

    /// What a failed test shows.
    fn dump(&self) {
        println!("--- the unit in {}", self.dir.path().display());
        for line in self.sim.output.all() {
            println!("{line}");
        }
        if let Some(daemon) = &self.daemon {
            println!("--- the daemon, process {}", daemon.pid());
            for line in daemon.output.all() {
                println!("{line}");
            }
        }
        println!("--- the host: {:?} {:?}", self.groups(), self.space.links());
        for path in host::tree(&self.path("run")) {
            println!("{path}");
        }
    }
}

impl Drop for Unit {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.dump();
        }
        if let Some(daemon) = &mut self.daemon {
            daemon.kill();
        }
        self.sim.kill();
        host::remove_groups(&self.group);
    }
}

/// The instance that a runtime configuration is for.
fn ident_in(config: &Value) -> Option<String> {
    let variables = config["process"]["env"].as_array()?;
    let value = |name: &str| variables.iter().find_map(|v| v.as_str()?.strip_prefix(name));
    let ident =
        [value("AOS_SERVICE_ID=")?, value("AOS_SUBJECT_ID=")?, value("AOS_INSTANCE_INDEX=")?];
    Some(ident.join("/"))
}

/// A wait without a limit of its own gets one that suits the platform.
fn with_limit(command: &str) -> String {
    const USUAL_SECONDS: u32 = 30;
    let has_limit = named_time(command).is_some();
    if slowness() == 1 || has_limit || !command.starts_with("wait ") {
        return command.to_owned();
    }
    format!("{command} {}s", USUAL_SECONDS * slowness())
}

/// The time at the end of a command, if there is one: `90s`, `200ms`.
fn named_time(command: &str) -> Option<Duration> {
    let last = command.rsplit(' ').next()?;
    let (number, unit) = last.split_at(last.find(|c: char| !c.is_ascii_digit())?);
    let number = number.parse().ok()?;
    match unit {
        "ms" => Some(Duration::from_millis(number)),
        "s" => Some(Duration::from_secs(number)),
        "m" => Some(Duration::from_secs(60 * number)),
        "h" => Some(Duration::from_secs(3600 * number)),
        _ => None,
    }
}

/// Who speaks in a line of the unit's output; empty for details.
fn tag(line: &str) -> &str {
    line.get(13..19).unwrap_or_default().trim()
}
