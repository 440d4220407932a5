//! Where a bench runs: namespaces of its own for mounts, network and processes. It meets nobody,
//! and when it ends, however it ends, nothing is left but empty control groups, which are removed.

use std::collections::BTreeSet;
use std::env;
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use aos_servicemanager::sys::cgroups::{Kind, Layout};
use nix::mount::{MsFlags, mount};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{DAEMON, Outcome};

/// Set inside the namespaces; the value is a name that nobody else uses.
const INSIDE: &str = "AOS_BENCH_NAME";

/// What the bench has inside its namespaces.
#[derive(Debug)]
pub(crate) struct Host {
    /// A directory on a tmpfs.
    pub(crate) dir: PathBuf,
    /// A directory on a disk.
    pub(crate) disk: PathBuf,
    pub(crate) cgroup_parent: String,
    /// Copies of the shared libraries that only the daemon and one peer, the simulated unit, use,
    /// so that the daemon's share of their pages does not depend on who else runs. The C library
    /// is not among them: everybody has it.
    pub(crate) libraries: PathBuf,
    /// The hierarchies as they were found.
    found: Layout,
}

/// Runs `body` inside namespaces of its own and returns its exit code.
pub(crate) fn isolated(body: impl FnOnce(&Host) -> Outcome<bool>) -> ExitCode {
    let outcome = match env::var(INSIDE) {
        Ok(name) => Host::new(&name).and_then(|host| body(&host)),
        Err(_) => outside(),
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(e) => {
            eprintln!("bench: {e}");
            ExitCode::FAILURE
        }
    }
}

/// Runs this program again, inside; its processes die with it.
fn outside() -> Outcome<bool> {
    if !nix::unistd::geteuid().is_root() {
        return Err("root is needed".into());
    }
    // The terminal's Ctrl-C reaches the program inside; here is cleaned up behind it.
    let interrupted = Arc::new(AtomicBool::new(false));
    signal_hook::flag::register(signal_hook::consts::SIGINT, interrupted)?;
    let name = format!("aos-bench-{}", std::process::id());
    let status = Command::new("unshare")
        .args(["--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"])
        .args(["--propagation", "private", "--"])
        .arg(env::current_exe()?)
        .args(env::args_os().skip(1))
        .env(INSIDE, &name)
        .status()?;
    for mount in Layout::read()?.mounts() {
        remove_groups(&mount.join(&name));
    }
    let _ = fs::remove_dir_all(disk_dir(&name));
    if let Some(signal) = status.signal() {
        return Err(format!("ended by signal {signal}").into());
    }
    Ok(status.success())
}

fn disk_dir(name: &str) -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join(name)
}

fn remove_groups(group: &Path) {
    let Ok(entries) = fs::read_dir(group) else { return };
    for entry in entries.flatten().filter(|e| e.path().is_dir()) {
        remove_groups(&entry.path());
    }
    let _ = fs::remove_dir(group);
}

impl Host {
    fn new(name: &str) -> Outcome<Self> {
        let found = Layout::read()?;
        // Neither the system's journal nor its network namespaces are seen.
        tmpfs("/run")?;
        // What it shows is of the network namespace that it is mounted in.
        mount(Some("sysfs"), "/sys", Some("sysfs"), MsFlags::empty(), None::<&str>)?;
        run("ip", &["link", "set", "lo", "up"])?;
        let dir = PathBuf::from("/run/bench");
        let disk = disk_dir(name);
        let libraries = disk.join("lib");
        fs::create_dir_all(&dir)?;
        fs::create_dir_all(&libraries)?;
        copy_libraries(&libraries)?;
        let cgroup_parent = format!("/{name}");
        let host = Self { dir, disk, cgroup_parent, libraries, found };
        host.mount_groups(host.found.kind())?;
        Ok(host)
    }

    /// crun refuses the hybrid layout of some hosts; it gets one of version 1 alone.
    pub(crate) fn prepare_for(&self, runtime: &Path) -> Outcome<()> {
        let is_crun = runtime.file_name().is_some_and(|name| name == "crun");
        if is_crun && self.found.kind() == Kind::Hybrid {
            self.mount_groups(Kind::V1)?;
        }
        Ok(())
    }

    fn mount_groups(&self, kind: Kind) -> Outcome<()> {
        let top = Path::new("/sys/fs/cgroup");
        let Some(v2) = &self.found.v2 else { return self.mount_v1(top) };
        if kind == Kind::V2 {
            return Ok(mount(
                Some("cgroup2"),
                top,
                Some("cgroup2"),
                MsFlags::empty(),
                None::<&str>,
            )?);
        }
        self.mount_v1(top)?;
        if kind == Kind::Hybrid {
            let at = top.join(v2.mount.file_name().unwrap_or("unified".as_ref()));
            fs::create_dir(&at)?;
            mount(Some("cgroup2"), &at, Some("cgroup2"), MsFlags::empty(), None::<&str>)?;
        }
        Ok(())
    }

    fn mount_v1(&self, top: &Path) -> Outcome<()> {
        tmpfs(top)?;
        for hierarchy in &self.found.v1 {
            let options = hierarchy.controllers.join(",");
            let at = top.join(hierarchy.mount.file_name().unwrap_or(options.as_ref()));
            fs::create_dir(&at)?;
            let options = match options.strip_prefix("name=") {
                Some(_) => format!("none,{options}"),
                None => options,
            };
            mount(Some("cgroup"), &at, Some("cgroup"), MsFlags::empty(), Some(options.as_str()))?;
        }
        Ok(())
    }
}

fn tmpfs(at: impl AsRef<Path>) -> Outcome<()> {
    let options = Some("mode=755");
    Ok(mount(Some("tmpfs"), at.as_ref(), Some("tmpfs"), MsFlags::empty(), options)?)
}

/// Copies what the dynamic linker loads for the daemon.
fn copy_libraries(to: &Path) -> Outcome<()> {
    let out = Command::new("ldd").arg(DAEMON).output()?;
    for line in String::from_utf8_lossy(&out.stdout).lines() {
        let Some((name, rest)) = line.trim().split_once(" => ") else { continue };
        let Some(path) = rest.split_whitespace().next() else { continue };
        if !name.starts_with("libc.so") {
            fs::copy(path, to.join(name))?;
        }
    }
    Ok(())
}

fn run(program: &str, arguments: &[&str]) -> Outcome<()> {
    let status = Command::new(program).args(arguments).status();
    match status {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!("{program} {arguments:?} ended with {status}").into()),
        Err(e) => Err(format!("cannot run {program}: {e}").into()),
    }
}

/// Path of an installed program.
pub(crate) fn find(program: &str) -> Outcome<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let places = env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]);
    let found = places.map(|dir| dir.join(program)).find(|file| file.is_file());
    found.ok_or_else(|| format!("{program} is not installed").into())
}

pub(crate) fn signal(pid: u32, signal: Signal) -> Outcome<()> {
    Ok(kill(Pid::from_raw(i32::try_from(pid)?), signal)?)
}

/// Takes the exit codes of dead processes that nobody else waits for: the bench is the first
/// process of its namespace, so the orphans are its children.
pub(crate) fn reap(pids: impl IntoIterator<Item = u32>) {
    let pids: BTreeSet<u32> = pids.into_iter().collect();
    for pid in pids {
        if let Ok(pid) = i32::try_from(pid) {
            let _ = nix::sys::wait::waitpid(Pid::from_raw(pid), None);
        }
    }
}
