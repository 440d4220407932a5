//! What the daemon costs: size of the program, memory, threads, descriptors, wake-ups, writes, and
//! whether anything grows. The whole process is measured, against the simulated unit over mutual
//! TLS. Fails when size, memory or a count is above its bar; times are only shown.
//!
//!     cargo bench --features sim --bench footprint [-- FLAGS]
//!
//! `--json FILE`, `--runtime NAME` (crun), `--idle SECONDS` (60), `--most N` instances (64),
//! `--cycles N` starts and stops (96); `--since FILE` shows what has changed since the figures in that
//! file, `--keep FILE` writes them there, below a line with the text of `--origin TEXT`.
#![allow(clippy::print_stdout, clippy::print_stderr, clippy::disallowed_methods)] // not the daemon
#![allow(clippy::cast_precision_loss)]
#![allow(dead_code)] // the shared part has more than one bench needs

mod unit;

use std::collections::BTreeMap;
use std::fs;
use std::process::ExitCode;
use std::thread::sleep;
use std::time::Duration;

use unit::host::{self, Host};
use unit::proc::{Counts, Memory};
use unit::table::{Bar, Table};
use unit::{DAEMON, Outcome, POLL_SECONDS, Unit, args, changed, median, milliseconds, proc};

/// Starts of the daemon for the time to its first message.
const STARTS: usize = 11;
/// Until the idle daemon has done what it does after a registration.
const SETTLE: Duration = Duration::from_secs(5);
const MIB: f64 = 1024.0 * 1024.0;

fn main() -> ExitCode {
    host::isolated(measure)
}

fn measure(host: &Host) -> Outcome<bool> {
    let runtimes = args::runtimes()?;
    let Some(runtime) = runtimes.first() else { return Err("no runtime".into()) };
    host.prepare_for(runtime)?;
    let most: usize = args::number("--most", 64)?;
    let mut table = Table::new("footprint");
    if let Some(file) = args::value("--since")? {
        table.compare_with(&file)?;
    }
    println!("runtime {}", runtime.display());

    let size = fs::metadata(DAEMON)?.len() as f64 / MIB;
    table.judge("stripped binary", "MiB", size, (6.0, 10.0), Bar::Hard);
    // The database is on a disk, so that writes count.
    let mut unit = Unit::start(host, runtime, Some(&host.disk.join("work")))?;
    first_messages(&mut unit, &mut table)?;
    let idle = idle(host, &mut unit, &mut table)?;
    growth(&mut unit, &mut table, idle, most)?;
    crash(&mut unit, &mut table, most)?;
    unit::cycles(&mut unit, &mut table, args::number("--cycles", 96)?)?;
    let ended = unit.stop_daemon()?;
    table.note("SIGTERM to end, 0 instances", "ms", milliseconds(ended));
    if let Some(file) = args::value("--keep")? {
        table.keep(&file, &args::value("--origin")?.unwrap_or_default())?;
    }
    table.finish(args::value("--json")?.as_deref())
}

/// Leaves the last daemon running.
fn first_messages(unit: &mut Unit, table: &mut Table) -> Outcome<()> {
    let mut times = Vec::new();
    for nth in 1..=STARTS {
        times.push(unit.start_daemon()?);
        if nth < STARTS {
            unit.stop_daemon()?;
        }
    }
    times.remove(0); // makes database and directories
    let name = format!("exec to first CM message, median of {}", times.len());
    table.judge(name, "ms", milliseconds(median(&times)), (60.0, 250.0), Bar::Soft);
    Ok(())
}

fn idle(host: &Host, unit: &mut Unit, table: &mut Table) -> Outcome<Memory> {
    let pid = unit.pid()?;
    sleep(SETTLE);
    let seconds: u64 = args::number("--idle", 60)?;
    let (before, written) = (proc::switches(pid)?, proc::written(pid)?);
    let cpu = proc::cpu_ms(pid)?;
    sleep(Duration::from_secs(seconds));
    let (after, written_after) = (proc::switches(pid)?, proc::written(pid)?);
    let used = |cpu: BTreeMap<String, f64>| cpu.values().sum::<f64>();
    let cpu = (used(proc::cpu_ms(pid)?) - used(cpu)) / seconds as f64;
    let names = proc::threads(pid)?;
    let woken = |tid: &u32| after[tid] - before.get(tid).copied().unwrap_or(0);
    let wakeups = after.keys().map(woken).sum::<u64>() as f64 / seconds as f64;

    let memory = Memory::of(unit.pid()?)?;
    let mib = |kib: u64| kib as f64 / 1024.0;
    // The strict figure: as if nobody else on the ECU used the shared libraries.
    let alone = proc::pss_alone_kib(pid, &host.libraries)?;
    let name = "PSS idle, connected, 0 instances";
    table.judge(name, "MiB", mib(alone), (5.5, 9.0), Bar::Hard);
    table.note("  of it anonymous", "MiB", mib(memory.anonymous_kib));
    table.note("  with one other user of the shared libraries", "MiB", mib(memory.pss_kib));
    table.note("  RSS", "MiB", mib(memory.rss_kib));
    let counts = Counts::of(pid)?;
    judge_threads(table, 0, &counts);
    table.note("descriptors, 0 instances", "", counts.descriptors as f64);
    table.judge("wake-ups idle, monitoring every 10 s", "1/s", wakeups, (1.0, 5.0), Bar::Hard);
    let mut by_name: BTreeMap<&str, u64> = BTreeMap::new();
    for tid in after.keys() {
        *by_name.entry(&names[tid]).or_default() += woken(tid);
    }
    let busy = by_name.iter().filter(|(_, count)| **count > 0);
    let shown: Vec<_> = busy.map(|(name, count)| format!("{name} {count}")).collect();
    println!("  in {seconds} s: {}", shown.join(", "));
    table.note("CPU idle", "ms/s", cpu);
    let per_day = |bytes: u64| bytes as f64 / MIB * 86_400.0 / seconds as f64;
    let flash = per_day(written_after.0 - written.0);
    table.judge("flash writes idle", "MiB/day", flash, (1.0, 5.0), Bar::Hard);
    let passed = per_day(written_after.1 - written.1);
    table.note("  bytes passed to write (sockets, log included)", "MiB/day", passed);
    Ok(memory)
}

fn judge_threads(table: &mut Table, instances: usize, counts: &Counts) {
    let (own, all) = (counts.own_threads as f64, counts.threads as f64);
    table.judge(format!("own threads, {instances} instances"), "", own, (10.0, 12.0), Bar::Hard);
    table.judge(format!("all threads, {instances} instances"), "", all, (18.0, 22.0), Bar::Hard);
}

/// Leaves `most` instances running.
fn growth(unit: &mut Unit, table: &mut Table, idle: Memory, most: usize) -> Outcome<()> {
    let mut seen = Vec::new();
    for count in [16, 64, 256, 1024].into_iter().filter(|&count| count <= most) {
        unit.run(count)?;
        // The next sample of the monitor has them all; what the last start has needed is given
        // back once in a minute.
        let pause = if count == most { Duration::from_secs(60) } else { Duration::ZERO };
        sleep(pause + Duration::from_secs(POLL_SECONDS + 1));
        let memory = Memory::of(unit.pid()?)?;
        let name = format!("PSS with {count} instances");
        table.note(name, "MiB", memory.pss_kib as f64 / 1024.0);
        table.note("  of it anonymous", "MiB", memory.anonymous_kib as f64 / 1024.0);
        seen.push((count, memory));
    }
    let Some(last) = seen.last() else { return Err("--most must be at least 16".into()) };
    let per_instance = |from: u64, to: u64, count: usize| (to as f64 - from as f64) / count as f64;
    let all = per_instance(idle.pss_kib, last.1.pss_kib, last.0);
    let name = format!("PSS growth per instance, 0 to {}", last.0);
    table.judge(name, "KiB", all, (8.0, 32.0), Bar::Hard);
    let anonymous = per_instance(idle.anonymous_kib, last.1.anonymous_kib, last.0);
    table.note("  of it anonymous", "KiB", anonymous);
    let counts = Counts::of(unit.pid()?)?;
    judge_threads(table, last.0, &counts);
    table.note(format!("descriptors, {} instances", last.0), "", counts.descriptors as f64);
    Ok(())
}

/// Ends with no instance.
fn crash(unit: &mut Unit, table: &mut Table, most: usize) -> Outcome<()> {
    let before = unit.instances()?;
    unit.kill_daemon()?;
    unit.start_daemon()?;
    let name = format!("instances not as before after a crash with {most}");
    table.judge(name, "", changed(&before, &unit.instances()?) as f64, (0.0, 0.0), Bar::Hard);
    unit.stop()?;
    host::reap(before.iter().map(|instance| instance.pid));
    Ok(())
}
