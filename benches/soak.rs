//! Whether thousands of starts and stops leave something behind, and what very many instances at
//! once cost.
//!
//!     cargo bench --features sim --bench soak [-- FLAGS]
//!
//! `--cycles N` starts and stops (10000), `--warm-up N` of them before the first look (320),
//! `--many N` instances at once (256), `--runtime NAMES` (the first of crun, runc), `--json FILE`,
//! `--disk` for the database on a disk instead of a tmpfs.
//!
//! Every fourth batch is restarted by a request, and one instance of every eighth is killed, so that
//! these ways are gone thousands of times too. Growth above its bar fails.
#![allow(clippy::print_stdout, clippy::print_stderr, clippy::disallowed_methods)] // not the daemon
#![allow(clippy::cast_precision_loss)]
#![allow(dead_code)] // the shared part has more than one bench needs

mod unit;

use std::process::ExitCode;
use std::thread::sleep;
use std::time::{Duration, Instant};

use unit::host::{self, Host};
use unit::proc::{Counts, Memory};
use unit::table::{Bar, Table};
use unit::{Outcome, Unit, args, milliseconds, with_each};

/// Instances that are started and stopped together.
const BATCH: usize = 16;
/// Looks at the daemon on the way.
const REPORTS: usize = 10;
/// Captured output is put away after an instance has been reported as gone, and the daemon gives
/// back what only a burst has needed.
const AFTERWARDS: Duration = Duration::from_secs(12);

fn main() -> ExitCode {
    host::isolated(measure)
}

fn measure(host: &Host) -> Outcome<bool> {
    let mut runtimes = args::runtimes()?;
    if !args::is_set("--runtime") {
        runtimes.truncate(1);
    }
    with_each(host, "soak", runtimes, |unit, table| {
        cycles(unit, table)?;
        many(unit, table)?;
        unit.stop_daemon().map(drop)
    })
}

/// The daemon at rest.
#[derive(Clone, Copy)]
struct Look {
    memory: Memory,
    counts: Counts,
}

impl Look {
    fn at(unit: &mut Unit) -> Outcome<Self> {
        sleep(AFTERWARDS);
        let pid = unit.pid()?;
        Ok(Self { memory: Memory::of(pid)?, counts: Counts::of(pid)? })
    }

    fn print(&self, cycles: usize) {
        let Self { memory, counts } = self;
        println!(
            "{cycles:>6} starts and stops: PSS {} KiB, anonymous {} KiB, {} descriptors, {} threads, \
             {} mounts",
            memory.pss_kib, memory.anonymous_kib, counts.descriptors, counts.threads, counts.mounts
        );
    }
}

fn cycles(unit: &mut Unit, table: &mut Table) -> Outcome<()> {
    let count: usize = args::number("--cycles", 10_000)?;
    let warm_up: usize = args::number("--warm-up", 320)?;
    batches(unit, warm_up)?;
    let first = Look::at(unit)?;
    first.print(0);
    let begun = Instant::now();
    let (mut done, mut last) = (0, first);
    for part in 1..=REPORTS {
        let target = count * part / REPORTS;
        done += batches(unit, target.saturating_sub(done))?;
        last = Look::at(unit)?;
        last.print(done);
    }
    let each = milliseconds(begun.elapsed() - AFTERWARDS * 10) / done as f64;
    table.note("starts and stops", "", done as f64);
    table.note("  time of each, in batches", "ms", each);
    judge(table, &first, &last);
    Ok(())
}

fn judge(table: &mut Table, first: &Look, last: &Look) {
    let grown = |from: u64, to: u64| to as f64 - from as f64;
    let (before, after) = (first.memory, last.memory);
    let limits = (128.0, 512.0);
    let pss = grown(before.pss_kib, after.pss_kib);
    table.judge("growth of PSS", "KiB", pss, limits, Bar::Hard);
    let anonymous = grown(before.anonymous_kib, after.anonymous_kib);
    table.judge("  of anonymous memory", "KiB", anonymous, limits, Bar::Hard);
    let (before, after) = (first.counts, last.counts);
    let mut none = |what: &str, from: u64, to: u64| {
        table.judge(format!("growth of {what}"), "", grown(from, to), (0.0, 0.0), Bar::Hard);
    };
    none("descriptors", before.descriptors, after.descriptors);
    none("threads", before.threads, after.threads);
    none("mounts", before.mounts, after.mounts);
    none("network namespaces", before.network_namespaces, after.network_namespaces);
    if let (Some(from), Some(to)) = (before.rules, after.rules) {
        none("lines of the rule set", from, to);
    }
    none("zombies", before.zombies, after.zombies);
}

/// Starts and stops at least `count` instances; how many it were.
fn batches(unit: &mut Unit, count: usize) -> Outcome<usize> {
    let (mut done, mut number) = (0, 0);
    while done < count {
        unit.run(BATCH)?;
        done += BATCH;
        if number % 4 == 1 && done < count {
            unit.sim.command("run force")?;
            unit.sim.command("wait active 60s")?;
            done += BATCH;
        }
        if number % 8 == 2 {
            killed(unit)?;
            done += 1;
        }
        unit.stop()?;
        number += 1;
    }
    Ok(done)
}

/// Kills an init; the instance is started again.
fn killed(unit: &mut Unit) -> Outcome<()> {
    let instances = unit.instances()?;
    let Some(instance) = instances.first() else { return Err("nothing runs".into()) };
    unit.kill_init(instance)?;
    unit.sim.command("wait active 60s")?;
    Ok(())
}

fn many(unit: &mut Unit, table: &mut Table) -> Outcome<()> {
    let count: usize = args::number("--many", 256)?;
    let before = Look::at(unit)?;
    let took = unit.run(count)?;
    let running = unit.instances()?.len();
    let missing = count.abs_diff(running) as f64;
    table.judge(format!("{count} at once: missing"), "", missing, (0.0, 0.0), Bar::Hard);
    table.note("  all active", "ms", milliseconds(took));
    let with = Look::at(unit)?;
    let pss = with.memory.pss_kib as f64 - before.memory.pss_kib as f64;
    table.judge("  PSS of each", "KiB", pss / count as f64, (8.0, 32.0), Bar::Hard);
    let threads = with.counts.threads as f64 - before.counts.threads as f64;
    table.judge("  more threads", "", threads, (0.0, 0.0), Bar::Hard);
    table.note("  all gone", "ms", milliseconds(unit.stop()?));
    let after = Look::at(unit)?;
    let left = after.counts.descriptors as f64 - before.counts.descriptors as f64;
    table.judge("  descriptors left", "", left, (0.0, 0.0), Bar::Hard);
    let mounts = after.counts.mounts as f64 - before.counts.mounts as f64;
    table.judge("  mounts left", "", mounts, (0.0, 0.0), Bar::Hard);
    Ok(())
}
