//! The container runtime alone, on the very bundles, mounts and network namespaces that the daemon
//! has made: what the daemon's own work is compared with.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::SIGKILL;

use super::{Instance, Outcome, Unit, host};

/// Runtime calls at a time, as many as the daemon makes.
const PARALLEL: usize = 2;

#[derive(Debug)]
pub(crate) struct Bare {
    runtime: PathBuf,
    run_dir: PathBuf,
    is_crun: bool,
}

impl Bare {
    /// For the bundles that a killed daemon has left behind; their containers are removed.
    pub(crate) fn take_over(unit: &Unit) -> Outcome<Self> {
        let runtime = unit.runtime.clone();
        let is_crun = runtime.file_name().is_some_and(|name| name == "crun");
        let bare = Self { runtime, run_dir: unit.run_dir(), is_crun };
        bare.remove(&unit.instances()?)?;
        Ok(bare)
    }

    /// Creates and starts containers; returns them with their processes, and the time it took.
    pub(crate) fn start(&self, bundles: &[Instance]) -> Outcome<(Vec<Instance>, Duration)> {
        let begun = Instant::now();
        in_parallel(bundles, |instance| {
            let bundle = self.bundle(instance);
            let pid_file = bundle.join("bare.pid");
            let create = ["create".into(), "--pid-file".into(), pid_file.into_os_string()];
            let at = ["--bundle".into(), bundle.into_os_string(), instance.id.clone().into()];
            self.call(instance, create.into_iter().chain(at))?;
            self.call(instance, ["start".into(), instance.id.clone().into()])
        })?;
        let took = begun.elapsed();
        let started = bundles.iter().map(|instance| {
            let pid = fs::read_to_string(self.bundle(instance).join("bare.pid"))?.trim().parse()?;
            Ok(Instance { pid, ..instance.clone() })
        });
        Ok((started.collect::<Outcome<_>>()?, took))
    }

    /// Kills containers, waits for their end and deletes them; returns the time it took.
    pub(crate) fn remove(&self, running: &[Instance]) -> Outcome<Duration> {
        let begun = Instant::now();
        in_parallel(running, |instance| {
            host::signal(instance.pid, SIGKILL)?;
            host::reap([instance.pid]);
            self.call(instance, ["delete".into(), "-f".into(), instance.id.clone().into()])
        })?;
        Ok(begun.elapsed())
    }

    fn bundle(&self, instance: &Instance) -> PathBuf {
        self.run_dir.join("runtime").join(&instance.id)
    }

    fn call(
        &self,
        instance: &Instance,
        arguments: impl IntoIterator<Item = std::ffi::OsString>,
    ) -> Outcome<()> {
        let log = self.bundle(instance).join("bare.log");
        let mut command = Command::new(&self.runtime);
        command.arg("--root").arg(self.run_dir.join("oci"));
        if self.is_crun {
            command.arg("--cgroup-manager=cgroupfs");
        }
        command.arg("--log").arg(&log).args(["--log-format", "json"]).args(arguments);
        command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let status = command.status()?;
        if status.success() {
            return Ok(());
        }
        let why = fs::read_to_string(&log).unwrap_or_default();
        Err(format!("{command:?} ended with {status}: {why}").into())
    }
}

/// Does `work` for all of them, `PARALLEL` at a time.
fn in_parallel(
    instances: &[Instance],
    work: impl Fn(&Instance) -> Outcome<()> + Sync,
) -> Outcome<()> {
    let share = |offset: usize| instances.iter().skip(offset).step_by(PARALLEL);
    let failures: Vec<String> = std::thread::scope(|scope| {
        let run = |offset| {
            let work = &work;
            scope.spawn(move || {
                share(offset).find_map(|instance| work(instance).err().map(|e| e.to_string()))
            })
        };
        let threads: Vec<_> = (0..PARALLEL).map(run).collect();
        threads.into_iter().filter_map(|thread| thread.join().unwrap_or_default()).collect()
    });
    match failures.into_iter().next() {
        None => Ok(()),
        Some(failure) => Err(failure.into()),
    }
}
