//! What watching costs: CPU per instance and sample, wake-ups and flash writes when nothing
//! happens, with up to 256 instances; memory while a container floods its log, and whether a
//! container that writes a lot loses lines. The whole process is measured, against the simulated
//! unit over mutual TLS.
//!
//!     cargo bench --features sim --bench monitor [-- FLAGS]
//!
//! `--json FILE`, `--runtime NAME` (crun), `--counts N,…` instances (0,16,64,256), `--watch SECONDS`
//! (30), `--flood SECONDS` (60), `--only samples|logs`.
//!
//! Memory, wake-ups, writes and lost lines above their bar fail; times are only shown.
#![allow(clippy::print_stdout, clippy::print_stderr, clippy::disallowed_methods)] // not the daemon
#![allow(clippy::cast_precision_loss)]
#![allow(dead_code)] // the shared part has more than one bench needs

mod unit;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::ExitCode;
use std::thread::sleep;
use std::time::{Duration, Instant};

use unit::host::{self, Host};
use unit::proc::Memory;
use unit::table::{Bar, Table};
use unit::{Outcome, POLL_SECONDS, Unit, args, proc};

/// After so long without output the captured logs are looked at less often.
const QUIET: Duration = Duration::from_secs(62);
/// From the kernel's counters to the encrypted message.
const SAMPLING: [&str; 3] = ["monitor", "cm-tx", "grpc-0"];
/// Between the look at the idle daemon and the first lines.
const MARGIN: Duration = Duration::from_secs(3);
/// Memory is looked at so often while lines are written.
const LOOK: Duration = Duration::from_secs(1);
const MIB: f64 = 1024.0 * 1024.0;
/// Lines per second of the container that floods, and of the one of which none may be lost.
const FLOOD: u64 = 10_000;
const BUSY: u64 = 2_000;
/// Of the busy container; more than its lines with their times, so that the store drops none.
const STORE_BYTES: u64 = 32 << 20;

fn main() -> ExitCode {
    host::isolated(measure)
}

fn measure(host: &Host) -> Outcome<bool> {
    let runtimes = args::runtimes()?;
    let Some(runtime) = runtimes.first() else { return Err("no runtime".into()) };
    host.prepare_for(runtime)?;
    let mut table = Table::new("monitor");
    println!("runtime {}", runtime.display());
    let only = args::value("--only")?;
    if only.as_deref() != Some("logs") {
        samples(host, runtime, &mut table)?;
    }
    if only.as_deref() != Some("samples") {
        logs(host, runtime, &mut table)?;
    }
    table.finish(args::value("--json")?.as_deref())
}

/// What the daemon has used in a while.
#[derive(Clone, Debug)]
struct Cost {
    /// Milliseconds by thread.
    cpu: BTreeMap<String, f64>,
    /// By thread.
    wakeups: BTreeMap<String, u64>,
    /// Bytes dirtied on disks.
    written: u64,
}

impl Cost {
    /// Since the process began.
    fn so_far(pid: u32) -> Outcome<Self> {
        let names = proc::threads(pid)?;
        let mut wakeups = BTreeMap::new();
        for (tid, count) in proc::switches(pid)? {
            *wakeups.entry(names.get(&tid).cloned().unwrap_or_default()).or_default() += count;
        }
        Ok(Self { cpu: proc::cpu_ms(pid)?, wakeups, written: proc::written(pid)?.0 })
    }

    fn of(pid: u32, time: Duration) -> Outcome<Self> {
        let before = Self::so_far(pid)?;
        sleep(time);
        let mut cost = Self::so_far(pid)?;
        for (name, spent) in &mut cost.cpu {
            *spent -= before.cpu.get(name).copied().unwrap_or_default();
        }
        for (name, count) in &mut cost.wakeups {
            *count -= before.wakeups.get(name).copied().unwrap_or_default();
        }
        cost.written -= before.written;
        Ok(cost)
    }

    fn all(&self) -> f64 {
        self.cpu.values().sum()
    }

    fn sampling(&self) -> f64 {
        SAMPLING.iter().filter_map(|name| self.cpu.get(*name)).sum()
    }
}

fn samples(host: &Host, runtime: &Path, table: &mut Table) -> Outcome<()> {
    let counts = args::value("--counts")?.unwrap_or_else(|| "0,16,64,256".to_owned());
    let seconds: u64 = args::number("--watch", 3 * POLL_SECONDS)?;
    let mut unit = Unit::start(host, runtime, Some(&host.disk.join("work")))?;
    unit.start_daemon()?;
    let mut idle: Option<Cost> = None;
    for count in counts.split(',') {
        let count: usize = count.parse()?;
        if count > 0 {
            unit.run(count)?;
        }
        sleep(QUIET);
        let cost = Cost::of(unit.pid()?, Duration::from_secs(seconds))?;
        judge(table, count, seconds, &cost, idle.as_ref());
        if count == 0 {
            idle = Some(cost);
        }
    }
    unit.stop()?;
    unit.stop_daemon()?;
    Ok(())
}

fn judge(table: &mut Table, count: usize, seconds: u64, cost: &Cost, idle: Option<&Cost>) {
    let per_second = |amount: f64| amount / seconds as f64;
    let name = format!("idle with {count} instances, wake-ups");
    table.judge(
        name,
        "1/s",
        per_second(cost.wakeups.values().sum::<u64>() as f64),
        (1.0, 5.0),
        Bar::Hard,
    );
    let flash = cost.written as f64 / MIB * 86_400.0 / seconds as f64;
    table.judge("  flash writes", "MiB/day", flash, (1.0, 5.0), Bar::Hard);
    table.note("  CPU of all threads", "ms/s", per_second(cost.all()));
    if count > 0 {
        let samples = (seconds / POLL_SECONDS).max(1) as f64 * count as f64;
        let micros = |milliseconds: f64| milliseconds * 1e3 / samples;
        let name = "  CPU per instance and sample, sending included";
        table.judge(name, "us", micros(cost.sampling()), (25.0, 100.0), Bar::Soft);
        if let Some(idle) = idle {
            let more = micros(cost.all() - idle.all());
            table.note("  what an instance adds per sample, all threads", "us", more);
        }
    }
    let shown: Vec<_> = cost
        .cpu
        .iter()
        .filter(|(_, ms)| **ms >= 0.1)
        .map(|(n, ms)| format!("{n} {ms:.1}"))
        .collect();
    println!("  CPU ms in {seconds} s: {}", shown.join(", "));
    let woken = cost.wakeups.iter().filter(|(_, count)| **count > 0);
    let shown: Vec<_> = woken.map(|(name, count)| format!("{name} {count}")).collect();
    println!("  wake-ups in {seconds} s: {}", shown.join(", "));
}

/// Both with limits of the log that let everything through: they are about the capture.
fn logs(host: &Host, runtime: &Path, table: &mut Table) -> Outcome<()> {
    let seconds: u64 = args::number("--flood", 60)?;
    let lines = FLOOD * 30 * 10;
    let settings = [
        format!("logging.rateLines={lines}"),
        format!("logging.rateBytes={}", 1_u64 << 30),
        format!("logging.instanceStoreSize={STORE_BYTES}"),
        format!("logging.storeSize={}", 2 * STORE_BYTES),
        // An answer leaves out the oldest lines when it has too many parts.
        "logging.maxPartCount=1000".to_owned(),
    ];
    let mut unit = Unit::start_with(host, runtime, Some(&host.disk.join("logs")), &settings)?;
    unit.start_daemon()?;
    flood(&mut unit, table, seconds)?;
    busy(host, &mut unit, table, seconds)?;
    unit.stop()?;
    unit.stop_daemon()?;
    Ok(())
}

/// After a pause ten times a second numbered lines of ordinary length, from 1 on, then nothing more.
/// It falls behind by what its own programs need.
fn writer(pause: Duration, lines_per_second: u64, seconds: u64) -> String {
    let (step, last) = (lines_per_second / 10, lines_per_second * seconds);
    format!(
        "/busybox sleep {}; n=1; while [ $n -le {last} ]; do /busybox seq $n $((n + {step} - 1)) | \
         /busybox sed \"s/.*/what a service tells about its work in a line of the log, number &/\"; \
         n=$((n + {step})); /busybox usleep 85000; done; echo end; exec /busybox sleep 100000",
        pause.as_secs()
    )
}

fn service(unit: &mut Unit, name: &str, script: &str) -> Outcome<()> {
    let busybox = host::find("busybox")?;
    unit.sim.command(&format!(
        "service {name} {} provider=bench entrypoint=/busybox cmd=sh cmd=-c cmd='{script}'",
        busybox.display()
    ))?;
    unit.sim.command(&format!("instance {name} ip=10.213.9.9 uid=5900"))?;
    unit.sim.command("run")?;
    unit.sim.command(&format!("wait active {name} 60s"))?;
    Ok(())
}

fn flood(unit: &mut Unit, table: &mut Table, seconds: u64) -> Outcome<()> {
    // What the start has needed is given back before the lines begin.
    let pid = unit.pid()?;
    service(unit, "flood", &writer(QUIET + MARGIN, FLOOD, seconds))?;
    sleep(QUIET);
    let idle = Memory::of(pid)?;
    sleep(MARGIN);
    let (mut most, mut most_anonymous) = (0, 0);
    let end = Instant::now() + Duration::from_secs(seconds);
    let cpu = proc::cpu_ms(pid)?;
    while Instant::now() < end {
        sleep(LOOK);
        let memory = Memory::of(pid)?;
        most = most.max(memory.pss_kib);
        most_anonymous = most_anonymous.max(memory.anonymous_kib);
    }
    let used = |cpu: BTreeMap<String, f64>| cpu.values().sum::<f64>();
    let cpu = (used(proc::cpu_ms(pid)?) - used(cpu)) / seconds as f64;
    let name = format!("PSS over idle, {FLOOD} lines/s for {seconds} s");
    let over = most as f64 - idle.pss_kib as f64;
    table.judge(name, "KiB", over, (256.0, 1024.0), Bar::Hard);
    let anonymous = most_anonymous as f64 - idle.anonymous_kib as f64;
    table.note("  of it anonymous", "KiB", anonymous);
    table.note("  CPU", "ms/s", cpu);
    unit.sim.command("stop flood")?;
    unit.sim.command("wait gone flood 30s")?;
    Ok(())
}

/// All lines must be in the log afterwards.
fn busy(host: &Host, unit: &mut Unit, table: &mut Table, seconds: u64) -> Outcome<()> {
    service(unit, "busy", &writer(Duration::ZERO, BUSY, seconds))?;
    let file = host.dir.join("busy.log");
    let end = Instant::now() + Duration::from_secs(2 * seconds + 30);
    loop {
        sleep(Duration::from_secs(seconds.min(10)));
        unit.sim.command(&format!("logs busy from=1h to={}", file.display()))?;
        unit.sim.command("wait logs 60s")?;
        let text = fs::read_to_string(&file).unwrap_or_default();
        let words = text.lines().filter_map(|line| line.split_ascii_whitespace().last());
        let written = BUSY * seconds;
        if words.clone().any(|word| word == "end") || Instant::now() > end {
            let there: BTreeSet<u64> = words.filter_map(|word| word.parse().ok()).collect();
            let lost = (1..=written).filter(|number| !there.contains(number)).count();
            let name = format!("lines lost of {written} at {BUSY} lines/s");
            table.judge(name, "", lost as f64, (0.0, 0.0), Bar::Hard);
            return Ok(());
        }
    }
}
