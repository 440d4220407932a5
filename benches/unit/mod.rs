//! What the whole-process benches share: a place of their own (`host`), the simulated unit and the
//! daemon as child processes (`sim`, this file), figures from `/proc` (`proc`), the bare runtime to
//! compare with (`bare`), and the table (`table`).

pub(crate) mod args;
pub(crate) mod bare;
pub(crate) mod host;
pub(crate) mod proc;
pub(crate) mod sim;
pub(crate) mod spans;
pub(crate) mod table;

use std::error::Error;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::sys::signal::SIGKILL;
use serde_json::Value;

use host::Host;
use proc::{Counts, Memory};
use sim::Sim;
use table::{Bar, Table};

pub(crate) type Outcome<T> = Result<T, Box<dyn Error>>;

/// The program under test; the bench profile strips it as the release profile does.
pub(crate) const DAEMON: &str = env!("CARGO_BIN_EXE_aos_servicemanager");

/// Service whose instances only sleep.
pub(crate) const SERVICE: &str = "sleeper";

/// How long anything may take before the bench gives up.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Regular monitoring in seconds.
pub(crate) const POLL_SECONDS: u64 = 10;

/// Instances that are started and stopped together by `cycles`.
const BATCH: usize = 16;

/// Captured output is put away after an instance has been reported as gone.
const AFTERWARDS: Duration = Duration::from_secs(2);

/// A simulated unit and the daemon that belongs to it.
#[derive(Debug)]
pub(crate) struct Unit {
    pub(crate) sim: Sim,
    pub(crate) runtime: PathBuf,
    dir: PathBuf,
    libraries: PathBuf,
    daemon: Option<Child>,
    /// Level of the log of the daemons that are started.
    pub(crate) level: &'static str,
}

/// One running instance, as its bundle tells.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct Instance {
    pub(crate) id: String,
    pub(crate) index: u64,
    pub(crate) pid: u32,
}

/// Takes a measurement with each of these runtimes and a daemon of its own; what the table says
/// in the end. `--disk` puts the database on a disk.
pub(crate) fn with_each(
    host: &Host,
    title: &'static str,
    mut runtimes: Vec<PathBuf>,
    measure: fn(&mut Unit, &mut Table) -> Outcome<()>,
) -> Outcome<bool> {
    let mut table = Table::new(title);
    // Last the one that may need another view of the control groups.
    runtimes.sort_by_key(|runtime| runtime.ends_with("crun"));
    for runtime in runtimes {
        host.prepare_for(&runtime)?;
        let name = runtime.file_name().unwrap_or_default().to_string_lossy().into_owned();
        println!("--- {name}");
        table.about(&name);
        let work = args::is_set("--disk").then(|| host.disk.join(&name));
        let mut unit = Unit::start(host, &runtime, work.as_deref())?;
        unit.start_daemon()?;
        measure(&mut unit, &mut table)?;
    }
    table.finish(args::value("--json")?.as_deref())
}

impl Unit {
    /// Starts a unit whose service manager uses `runtime`, with the directory of the database in
    /// `work` (default: on a tmpfs). The daemon is not started.
    pub(crate) fn start(host: &Host, runtime: &Path, work: Option<&Path>) -> Outcome<Self> {
        Self::start_with(host, runtime, work, &[])
    }

    /// The same with further members of the daemon's configuration.
    pub(crate) fn start_with(
        host: &Host,
        runtime: &Path,
        work: Option<&Path>,
        more: &[String],
    ) -> Outcome<Self> {
        let name = runtime.file_name().unwrap_or_default().to_string_lossy().into_owned();
        // Another unit of the same bench may still have files open.
        let number = fs::read_dir(&host.dir)?.count();
        let dir = host.dir.join(format!("{name}-{number}"));
        let mut settings = vec![
            format!("runtime={}", runtime.display()),
            format!("cgroupParent={}", host.cgroup_parent),
            "startVerdict=immediate".to_owned(),
            format!("monitoring.pollPeriod={POLL_SECONDS}s"),
        ];
        settings.extend_from_slice(more);
        if let Some(work) = work {
            fs::create_dir_all(work)?;
            settings.push(format!("workingDir={}", work.display()));
        }
        let mut sim = Sim::start(&dir, &host.libraries, &settings)?;
        let busybox = host::find("busybox")?;
        sim.command("network bench 10.213.0.0/16 10.213.0.1")?;
        sim.command(&format!(
            "service {SERVICE} {} provider=bench entrypoint=/busybox cmd=sleep cmd=1000000",
            busybox.display()
        ))?;
        let libraries = host.libraries.clone();
        Ok(Self { sim, runtime: runtime.to_owned(), dir, libraries, daemon: None, level: "info" })
    }

    /// Starts the daemon and waits until it is registered; returns the time from the start to its
    /// first message.
    pub(crate) fn start_daemon(&mut self) -> Outcome<Duration> {
        let log = File::options().create(true).append(true).open(self.dir.join("daemon.log"))?;
        let from = self.sim.position();
        let begun = Instant::now();
        let child = Command::new(DAEMON)
            .args(["-v", self.level, "-c"])
            .arg(self.dir.join("aos_servicemanager.cfg"))
            .env("LD_LIBRARY_PATH", &self.libraries)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        self.daemon = Some(child);
        let first = self.sim.find(from, PATIENCE, |line| line.contains("<- sm"));
        let Some(first) = first else {
            return Err(format!("the daemon does not register:\n{}", self.log_tail()).into());
        };
        self.sim.command("wait registered")?;
        Ok(first.at.saturating_duration_since(begun))
    }

    /// Ends the daemon as a service manager of the system does; returns how long it took.
    pub(crate) fn stop_daemon(&mut self) -> Outcome<Duration> {
        let begun = Instant::now();
        let Some(mut child) = self.daemon.take() else { return Err("no daemon runs".into()) };
        host::signal(child.id(), nix::sys::signal::SIGTERM)?;
        let status = child.wait()?;
        if !status.success() {
            return Err(format!("the daemon ended with {status}:\n{}", self.log_tail()).into());
        }
        self.sim.command("wait disconnected")?;
        Ok(begun.elapsed())
    }

    /// Ends the daemon without notice; its instances go on.
    pub(crate) fn kill_daemon(&mut self) -> Outcome<()> {
        let Some(mut child) = self.daemon.take() else { return Err("no daemon runs".into()) };
        child.kill()?;
        child.wait()?;
        self.sim.command("wait disconnected")?;
        Ok(())
    }

    /// Number of the daemon's process; an error when it has ended.
    pub(crate) fn pid(&mut self) -> Outcome<u32> {
        let Some(child) = &mut self.daemon else { return Err("no daemon runs".into()) };
        if let Some(status) = child.try_wait()? {
            return Err(format!("the daemon ended with {status}:\n{}", self.log_tail()).into());
        }
        Ok(child.id())
    }

    /// Makes `count` instances wanted and waits until all of them are active; returns the time
    /// from the request to the last status.
    pub(crate) fn run(&mut self, count: usize) -> Outcome<Duration> {
        for index in 0..count {
            // As a communication manager does it: the same address and user again.
            let (high, low) = (index / 250 + 1, index % 250 + 1);
            let uid = 5000 + index;
            let at = format!("ip=10.213.{high}.{low} uid={uid}");
            self.sim.write(&format!("instance {SERVICE} index={index} {at}"))?;
        }
        for _ in 0..count {
            self.sim.answered()?;
        }
        let begun = Instant::now();
        self.sim.write("run\nwait active 60s")?;
        self.sim.answered()?;
        let end = self.sim.answered()?;
        Ok(end.saturating_duration_since(begun))
    }

    /// Makes no instance wanted and waits until none is reported; returns the time from the
    /// request to that status.
    pub(crate) fn stop(&mut self) -> Outcome<Duration> {
        let begun = Instant::now();
        self.sim.write("stop\nwait gone 60s")?;
        self.sim.answered()?;
        let end = self.sim.answered()?;
        let left = self.instances()?;
        if left.is_empty() {
            return Ok(end.saturating_duration_since(begun));
        }
        Err(format!("{} instances are still there although reported as gone", left.len()).into())
    }

    /// Kills the init of an instance; the time until its end is reported.
    pub(crate) fn kill_init(&mut self, instance: &Instance) -> Outcome<Duration> {
        let from = self.sim.position();
        let begun = Instant::now();
        host::signal(instance.pid, SIGKILL)?;
        let line = self.sim.find(from, PATIENCE, |line| line.contains(" failed"));
        let line = line.ok_or("an exit is not reported")?;
        Ok(line.at.saturating_duration_since(begun))
    }

    /// The instances that have a container, in the order of their index.
    pub(crate) fn instances(&self) -> Outcome<Vec<Instance>> {
        let mut instances = Vec::new();
        let bundles = self.run_dir().join("runtime");
        let entries = match fs::read_dir(&bundles) {
            Ok(entries) => entries,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(instances),
            Err(e) => return Err(format!("{}: {e}", bundles.display()).into()),
        };
        for entry in entries {
            let entry = entry?;
            let Ok(text) = fs::read(entry.path().join("record.json")) else { continue };
            let record: Value = serde_json::from_slice(&text)?;
            let number = |key: &str| record[key].as_u64().ok_or(format!("record without {key}"));
            instances.push(Instance {
                id: entry.file_name().to_string_lossy().into_owned(),
                index: number("instance")?,
                pid: u32::try_from(number("pid")?)?,
            });
        }
        instances.sort_by_key(|instance| instance.index);
        Ok(instances)
    }

    pub(crate) fn run_dir(&self) -> PathBuf {
        self.dir.join("run")
    }

    /// Where the packages lie that the unit offers.
    pub(crate) fn packages(&self) -> PathBuf {
        self.dir.join("packages")
    }

    /// Everything that the daemons have logged.
    pub(crate) fn log(&self) -> Outcome<String> {
        Ok(fs::read_to_string(self.dir.join("daemon.log"))?)
    }

    /// The last lines that the daemon logged.
    pub(crate) fn log_tail(&self) -> String {
        let text = self.log().unwrap_or_default();
        let lines: Vec<_> = text.lines().collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    }
}

/// Instances that are missing, new, or have another process.
pub(crate) fn changed(before: &[Instance], after: &[Instance]) -> usize {
    let missing = before.iter().filter(|instance| !after.contains(instance)).count();
    missing.max(after.iter().filter(|instance| !before.contains(instance)).count())
}

/// Starts and stops `count` instances in batches and judges what has grown.
pub(crate) fn cycles(unit: &mut Unit, table: &mut Table, count: usize) -> Outcome<()> {
    unit.run(BATCH)?; // what is made once is there
    unit.stop()?;
    sleep(AFTERWARDS);
    let memory = Memory::of(unit.pid()?)?;
    let counts = Counts::of(unit.pid()?)?;
    for _ in 0..count.div_ceil(BATCH) {
        unit.run(BATCH)?;
        unit.stop()?;
    }
    sleep(AFTERWARDS);
    let (memory_after, after) = (Memory::of(unit.pid()?)?, Counts::of(unit.pid()?)?);
    let grown = |from: u64, to: u64| to as f64 - from as f64;
    // Pages of code come and go with the time since the daemon gave memory back; only anonymous
    // memory can leak.
    let anonymous = grown(memory.anonymous_kib, memory_after.anonymous_kib);
    let name = format!("growth of memory, {count} starts and stops");
    table.judge(name, "KiB", anonymous, (128.0, 512.0), Bar::Hard);
    let pss = grown(memory.pss_kib, memory_after.pss_kib);
    table.note("  of PSS, pages of code included", "KiB", pss);
    let mut judge = |what: &str, from: u64, to: u64| {
        table.judge(format!("  {what}"), "", grown(from, to), (0.0, 0.0), Bar::Hard);
    };
    judge("descriptors", counts.descriptors, after.descriptors);
    judge("threads", counts.threads, after.threads);
    judge("mounts", counts.mounts, after.mounts);
    judge("network namespaces", counts.network_namespaces, after.network_namespaces);
    if let (Some(from), Some(to)) = (counts.rules, after.rules) {
        judge("lines of the rule set", from, to);
    }
    judge("zombies", 0, after.zombies);
    Ok(())
}

/// Value below which this share of the sorted values lies.
pub(crate) fn percentile(values: &[Duration], share: f64) -> Duration {
    let mut sorted = values.to_vec();
    sorted.sort_unstable();
    // Nearest rank; the lists have a few thousand values at most.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    let rank = (share * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.clamp(1, sorted.len().max(1)) - 1).copied().unwrap_or_default()
}

pub(crate) fn median(values: &[Duration]) -> Duration {
    percentile(values, 0.5)
}

pub(crate) fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
