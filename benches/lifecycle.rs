//! How fast instances start, stop and are missed, compared with the bare runtime on the same
//! bundles; what a crash of the daemon changes; whether many starts and stops leave something.
//!
//!     cargo bench --features sim --bench lifecycle [-- FLAGS]
//!
//! `--json FILE`, `--runtime NAMES` (crun,runc), `--count N` instances (64), `--rounds N` (3),
//! `--singles N` (30), `--watch SECONDS` (30), `--cycles N` starts and stops (96), `--disk` for the
//! database on a disk instead of a tmpfs, `--parts NAMES` (one,many,idle,exits,crash,cycles),
//! `--spans COUNTS` (such as 1,16,64,256): only show where the time goes when so many instances are
//! started, from the daemon's trace.
//!
//! A count above its bar fails; times depend on the machine and are only shown.
#![allow(clippy::print_stdout, clippy::print_stderr, clippy::disallowed_methods)] // not the daemon
#![allow(clippy::cast_precision_loss)]
#![allow(dead_code)] // the shared part has more than one bench needs

mod unit;

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::thread::sleep;
use std::time::{Duration, Instant};

use unit::bare::Bare;
use unit::host::{self, Host};
use unit::table::{Bar, Table};
use unit::{
    Outcome, PATIENCE, POLL_SECONDS, Unit, args, changed, median, milliseconds, percentile, proc,
    with_each,
};

/// After so long without output the captured logs are looked at less often.
const QUIET: Duration = Duration::from_secs(62);

fn main() -> ExitCode {
    host::isolated(measure)
}

fn measure(host: &Host) -> Outcome<bool> {
    with_each(host, "lifecycle", args::runtimes()?, parts)
}

fn parts(unit: &mut Unit, table: &mut Table) -> Outcome<()> {
    unit.run(1)?; // installs the package
    unit.stop()?;
    if let Some(counts) = args::value("--spans")? {
        return show_spans(unit, &counts);
    }
    if wanted("one")? {
        one(unit, table)?;
    }
    let count = args::number("--count", 64)?;
    if wanted("many")? {
        many(unit, table, count)?;
    }
    running(unit, table, count)?;
    if wanted("cycles")? {
        unit::cycles(unit, table, args::number("--cycles", 96)?)?;
    }
    table.note("SIGTERM to end, 0 instances", "ms", milliseconds(unit.stop_daemon()?));
    Ok(())
}

/// The trace makes everything a little slower: nothing is judged.
fn show_spans(unit: &mut Unit, counts: &str) -> Outcome<()> {
    unit.stop_daemon()?;
    unit.level = "trace";
    unit.start_daemon()?;
    for count in counts.split(',') {
        unit::spans::show(unit, count.parse()?)?;
    }
    unit.stop_daemon()?;
    Ok(())
}

/// Whether `--parts` names a part; without the flag it names all.
fn wanted(part: &str) -> Outcome<bool> {
    Ok(args::value("--parts")?.is_none_or(|parts| parts.split(',').any(|name| name == part)))
}

/// Many instances while they run.
fn running(unit: &mut Unit, table: &mut Table, count: usize) -> Outcome<()> {
    type Part = fn(&mut Unit, &mut Table, usize) -> Outcome<()>;
    let parts: [(&str, Part); 3] = [("idle", watch), ("exits", exits), ("crash", crash)];
    for (name, measure) in parts {
        if wanted(name)? {
            unit.run(count)?;
            measure(unit, table, count)?;
            unit.stop()?;
        }
    }
    Ok(())
}

/// One instance, its package installed.
fn one(unit: &mut Unit, table: &mut Table) -> Outcome<()> {
    let count: usize = args::number("--singles", 30)?;
    let (mut starts, mut stops) = (Vec::new(), Vec::new());
    for _ in 0..count {
        starts.push(unit.run(1)?);
        stops.push(unit.stop()?);
    }
    unit.run(1)?;
    unit.kill_daemon()?;
    let bare = Bare::take_over(unit)?;
    let bundles = unit.instances()?;
    let (mut bare_starts, mut bare_stops) = (Vec::new(), Vec::new());
    for _ in 0..count {
        let (running, took) = bare.start(&bundles)?;
        bare_starts.push(took);
        bare_stops.push(bare.remove(&running)?);
    }
    unit.start_daemon()?;
    unit.stop()?;

    let (active, alone) = (milliseconds(median(&starts)), milliseconds(median(&bare_starts)));
    table.judge("RunInstances to active, p50", "ms", active, (40.0, 100.0), Bar::Soft);
    table.note("  p99", "ms", milliseconds(percentile(&starts, 0.99)));
    table.note("  bare create and start, p50", "ms", alone);
    table.judge("  over the bare runtime, p50", "ms", active - alone, (8.0, 20.0), Bar::Soft);
    table.note("request to gone, p50", "ms", milliseconds(median(&stops)));
    table.note("  bare kill and delete, p50", "ms", milliseconds(median(&bare_stops)));
    Ok(())
}

/// The daemon and the bare runtime take turns, so that both meet the same machine.
fn many(unit: &mut Unit, table: &mut Table, count: usize) -> Outcome<()> {
    let rounds: usize = args::number("--rounds", 3)?;
    let (mut starts, mut stops) = (Vec::new(), Vec::new());
    let (mut bare_starts, mut bare_stops) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        starts.push(unit.run(count)?);
        stops.push(unit.stop()?);
        unit.run(count)?;
        unit.kill_daemon()?;
        let bare = Bare::take_over(unit)?;
        let (running, took) = bare.start(&unit.instances()?)?;
        bare_starts.push(took);
        bare_stops.push(bare.remove(&running)?);
        unit.start_daemon()?;
        unit.stop()?;
    }

    let mut compare = |what: &str, times: &[Duration], bare: &[Duration]| {
        let (ours, alone) = (milliseconds(median(times)), milliseconds(median(bare)));
        table.note(format!("{count} instances, {what}"), "ms", ours);
        table.note("  bare runtime", "ms", alone);
        table.judge("  ratio", "x", ours / alone, (1.3, 2.0), Bar::Soft);
    };
    compare("all active", &starts, &bare_starts);
    compare("all gone", &stops, &bare_stops);

    unit.run(count)?;
    let ended = unit.stop_daemon()?;
    table.note(format!("SIGTERM to end, {count} instances"), "ms", milliseconds(ended));
    unit.start_daemon()?;
    unit.stop()?;
    Ok(())
}

/// What running instances cost while nothing happens.
fn watch(unit: &mut Unit, table: &mut Table, count: usize) -> Outcome<()> {
    let seconds: u64 = args::number("--watch", 3 * POLL_SECONDS)?;
    sleep(QUIET);
    let pid = unit.pid()?;
    let (before, cpu) = (proc::switches(pid)?, proc::cpu_ms(pid)?);
    sleep(Duration::from_secs(seconds));
    let (after, cpu_after) = (proc::switches(pid)?, proc::cpu_ms(pid)?);
    let woken = after.values().sum::<u64>() - before.values().sum::<u64>();
    let wakeups = woken as f64 / seconds as f64;
    table.note(format!("wake-ups with {count} instances"), "1/s", wakeups);
    let total = |cpu: &BTreeMap<String, f64>| cpu.values().sum::<f64>();
    let per_second = (total(&cpu_after) - total(&cpu)) / seconds as f64;
    table.note("  CPU of all threads", "ms/s", per_second);
    let samples = (seconds / POLL_SECONDS).max(1) as f64 * count as f64;
    // From the counters of the kernel to the encrypted message.
    let sampling = ["monitor", "cm-tx", "grpc-0"];
    let spent = sampling.map(|name| cpu_after.get(name).copied().unwrap_or_default());
    let spent_before = sampling.map(|name| cpu.get(name).copied().unwrap_or_default());
    let micros = (spent.iter().sum::<f64>() - spent_before.iter().sum::<f64>()) * 1e3 / samples;
    table.judge(
        "CPU per instance and sample, sending included",
        "us",
        micros,
        (25.0, 100.0),
        Bar::Soft,
    );
    Ok(())
}

/// Kills each init once; the service restarts them.
fn exits(unit: &mut Unit, table: &mut Table, _count: usize) -> Outcome<()> {
    let mut times = Vec::new();
    for instance in unit.instances()? {
        times.push(unit.kill_init(&instance)?);
    }
    unit.sim.command("wait active 60s")?;
    let p99 = milliseconds(percentile(&times, 0.99));
    table.note("exit to status sent, p50", "ms", milliseconds(median(&times)));
    table.judge("exit to status sent, p99", "ms", p99, (10.0, 50.0), Bar::Soft);
    Ok(())
}

fn crash(unit: &mut Unit, table: &mut Table, count: usize) -> Outcome<()> {
    let before = unit.instances()?;
    let mut times = Vec::new();
    for _ in 0..args::number("--rounds", 3)? {
        unit.kill_daemon()?;
        let from = unit.sim.position();
        let begun = Instant::now();
        unit.start_daemon()?;
        let mut find = |what: &str| {
            let line = unit.sim.find(from, PATIENCE, |line| line.contains(what));
            line.ok_or(format!("the unit did not say {what}"))
        };
        let (connected, full) = (find(" as ")?.at, find("full status")?.at);
        times.push((full - begun, full.saturating_duration_since(connected)));
    }
    let after = unit.instances()?;
    let (whole, connected): (Vec<_>, Vec<_>) = times.into_iter().unzip();
    let name = format!("crash with {count}: instances not as before");
    table.judge(name, "", changed(&before, &after) as f64, (0.0, 0.0), Bar::Hard);
    let full = milliseconds(median(&connected));
    table.judge("  connected to full status", "ms", full, (300.0, 1000.0), Bar::Soft);
    table.note("  exec to full status", "ms", milliseconds(median(&whole)));
    Ok(())
}
