//! How fast packages are installed, compared with `tar xf` and `sha256sum` on the same data, and
//! what memory it takes.
//!
//!     cargo bench --features sim --bench install [-- FLAGS]
//!
//! `--json FILE`, `--runtime NAME`, `--mib N` of one package (64), `--images N` (16), `--disk` for
//! the store on a disk instead of a tmpfs.
//!
//! Memory above its bar fails; throughput depends on the machine and is only shown, as time per
//! 100 MB, so that smaller is better as everywhere.
#![allow(clippy::print_stdout, clippy::print_stderr, clippy::disallowed_methods)] // not the daemon
#![allow(clippy::cast_precision_loss)]
#![allow(dead_code)] // the shared part has more than one bench needs

mod unit;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{sleep, spawn};
use std::time::{Duration, Instant};

use aos_servicemanager::document::NumberUnit;
use aos_servicemanager::image::{ImageSettings, ImageStore, TimeLimits};
use aos_servicemanager::model::desired::{DesiredService, PackageSource};
use aos_servicemanager::model::id::{NetworkId, ServiceId, ServiceKey};
use aos_servicemanager::model::job::{InstallPlan, Installed, Package};
use aos_servicemanager::ports::Images;
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike as _;
use sha2::{Digest as _, Sha256};
use sha3::Sha3_256;
use unit::host::{self, Host};
use unit::proc::Memory;
use unit::table::{Bar, Table};
use unit::{Outcome, Unit, args, median};

const MIB: usize = 1 << 20;
/// Files in a package, so that it is not only one long write.
const FILES: usize = 64;
const ROUNDS: usize = 5;
/// Size of the packages during whose installs memory is watched.
const WATCHED_MIB: usize = 16;
const SAMPLE_PERIOD: Duration = Duration::from_millis(5);

fn main() -> ExitCode {
    host::isolated(measure)
}

fn measure(host: &Host) -> Outcome<bool> {
    let mut table = Table::new("install");
    let on_disk = args::is_set("--disk");
    let place = if on_disk { &host.disk } else { &host.dir }.join("install");
    fs::create_dir_all(&place)?;
    let mib: usize = args::number("--mib", 64)?;
    println!("packages of {mib} MiB, on a {}", if on_disk { "disk" } else { "tmpfs" });
    speed(&place, mib, &mut table)?;
    memory(host, &place, &mut table)?;
    table.finish(args::value("--json")?.as_deref())
}

/// Milliseconds for 100 MB at this many bytes in this time.
fn per_100_mb(bytes: usize, time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0 * 100e6 / bytes as f64
}

fn speed(place: &Path, mib: usize, table: &mut Table) -> Outcome<()> {
    let root = root(mib, 1);
    let packed = gzip(place, &root)?;
    let bytes = mib * MIB;
    // DESIGN: bar 120 and 60 MB/s, goal 350 and 150 MB/s.
    for (name, root, limits) in [
        ("plain tar", &root, (100e3 / 350.0, 100e3 / 120.0)),
        ("gzip", &packed, (100e3 / 150.0, 100e3 / 60.0)),
    ] {
        table.about(name);
        let (package, archive) = (place.join("package.tar"), place.join("root.tar"));
        fs::write(&package, service(root))?;
        fs::write(&archive, root)?;
        let (mut ours, mut computing, mut theirs) = (Vec::new(), Vec::new(), Vec::new());
        // In turn, so that both meet the same load.
        for _ in 0..ROUNDS {
            let (took, computed) = install(place, &package)?;
            ours.push(took);
            computing.push(computed);
            theirs.push(tools(place, &archive, &package)?);
        }
        let ours = per_100_mb(bytes, median(&ours));
        table.judge("install, 100 MB of content", "ms", ours, limits, Bar::Soft);
        let computing = per_100_mb(bytes, median(&computing));
        table.note("  of it processor time", "ms", computing);
        let theirs = per_100_mb(bytes, median(&theirs));
        table.note("tar xf and sha256sum, 100 MB of content", "ms", theirs);
        table.note("  ours over theirs", "x", ours / theirs);
        println!("{name}: {:.0} MB/s", 100e3 / ours);
    }
    table.about("");
    Ok(())
}

/// Installs once into an empty store; returns the time that passed and the time of the processor.
fn install(place: &Path, package: &Path) -> Outcome<(Duration, Duration)> {
    let dir = place.join("store");
    let store = ImageStore::new(ImageSettings {
        services_dir: dir.join("services"),
        layers_dir: dir.join("layers"),
        download_dir: dir.join("download"),
        extract_dir: PathBuf::new(),
        max_entries: 200_000,
        max_depth: 128,
        reserve_percent: 0,
        services_percent: 0,
        layers_percent: 0,
        times: TimeLimits::default(),
        ca_cert: PathBuf::new(),
        number_unit: NumberUnit::Seconds,
    });
    let content = fs::read(package)?;
    let wanted = DesiredService {
        key: ServiceKey { id: ServiceId::new("bench"), version: "1.0.0".into() },
        provider_id: NetworkId::new("bench"),
        gid: 5000,
        source: PackageSource {
            url: format!("file://{}", package.display()),
            sha3_256: Sha3_256::digest(&content).to_vec(),
            sha3_512: Vec::new(),
            size_bytes: content.len() as u64,
        },
    };
    let package = Package::Service(wanted);
    let (evictable, unfinished) = (Vec::new(), Vec::new());
    let plan = InstallPlan { package, evictable, used_bytes: 0, unfinished };
    let (begun, computed) = (Instant::now(), processor_time()?);
    let installed = store.install(&plan, &mut Vec::new(), &|| false)?;
    let took = (begun.elapsed(), processor_time()?.saturating_sub(computed));
    if let Installed::Service(row, _) = installed {
        store.remove(&row.path)?;
    }
    Ok(took)
}

/// What this process has computed, in the kernel too.
fn processor_time() -> Outcome<Duration> {
    let usage = getrusage(UsageWho::RUSAGE_SELF)?;
    let microseconds = (usage.user_time() + usage.system_time()).num_microseconds();
    Ok(Duration::from_micros(u64::try_from(microseconds)?))
}

/// What the reference does at least: hash the package, unpack the archive, hash the content.
fn tools(place: &Path, archive: &Path, package: &Path) -> Outcome<Duration> {
    let target = place.join("unpacked");
    fs::create_dir_all(&target)?;
    let begun = Instant::now();
    run(Command::new("sha256sum").arg(package))?;
    run(Command::new("tar").arg("xf").arg(archive).arg("-C").arg(&target))?;
    run(Command::new("sync").arg("-f").arg(&target))?;
    let took = begun.elapsed();
    fs::remove_dir_all(&target)?;
    Ok(took)
}

fn run(command: &mut Command) -> Outcome<()> {
    let status = command.stdout(Stdio::null()).status()?;
    if status.success() { Ok(()) } else { Err(format!("{command:?}: {status}").into()) }
}

/// Peak of the whole daemon while it installs many images.
fn memory(host: &Host, place: &Path, table: &mut Table) -> Outcome<()> {
    let runtimes = args::runtimes()?;
    let Some(runtime) = runtimes.first() else { return Err("no runtime".into()) };
    host.prepare_for(runtime)?;
    let count: usize = args::number("--images", 16)?;
    let mut unit = Unit::start(host, runtime, Some(&host.disk.join("work")))?;
    // The unit's server offers what lies there.
    let packages = unit.packages();
    for nth in 0..count {
        let root = gzip(place, &root(WATCHED_MIB, nth as u64 + 2))?;
        let package = packages.join(format!("image{nth}.tar"));
        fs::write(&package, service(&root))?;
        unit.sim.command(&format!("service image{nth} package={}", package.display()))?;
    }
    unit.start_daemon()?;
    sleep(Duration::from_secs(5));
    let pid = unit.pid()?;
    let idle = Memory::of(pid)?;
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = stop.clone();
    let watcher = spawn(move || {
        let mut peak = idle;
        while !stopped.load(Ordering::Relaxed) {
            if let Ok(memory) = Memory::of(pid) {
                peak = if memory.pss_kib > peak.pss_kib { memory } else { peak };
            }
            sleep(SAMPLE_PERIOD);
        }
        peak
    });
    let begun = Instant::now();
    unit.sim.command("run")?;
    let services = host.disk.join("work/services");
    let complete = |name: &fs::DirEntry| !name.file_name().to_string_lossy().starts_with('.');
    let installed = || -> usize {
        fs::read_dir(&services).map_or(0, |dir| dir.flatten().filter(complete).count())
    };
    // The unit's own service comes with them.
    while installed() < count + 1 {
        if begun.elapsed() > Duration::from_secs(120) {
            let log = unit.log_tail();
            return Err(format!("only {} of {count} images came:\n{log}", installed()).into());
        }
        sleep(Duration::from_millis(20));
    }
    let took = begun.elapsed();
    stop.store(true, Ordering::Relaxed);
    let peak = watcher.join().map_err(|_| "the watcher panicked")?;
    let grown = |from: u64, to: u64| to as f64 - from as f64;
    let growth = grown(idle.pss_kib, peak.pss_kib);
    let name = format!("peak PSS over idle, {count} images of {WATCHED_MIB} MiB");
    table.judge(name, "KiB", growth, (2048.0, 6144.0), Bar::Hard);
    let anonymous = grown(idle.anonymous_kib, peak.anonymous_kib);
    table.note("  of it anonymous", "KiB", anonymous);
    table.note(format!("{count} images installed over HTTP"), "ms", took.as_secs_f64() * 1e3);
    unit.stop_daemon()?;
    Ok(())
}

/// An archive of files with content that neither compresses to nothing nor not at all.
fn root(mib: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let size = mib * MIB / FILES;
    let mut members = Vec::new();
    for nth in 0..FILES {
        let mut content = Vec::with_capacity(size);
        while content.len() < size {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            // As programs are: some noise, some repetition.
            content.extend(state.to_le_bytes());
            content.extend(b"mov rax, [rsp]; ");
        }
        content.truncate(size);
        members.push((format!("usr/lib/file{nth}"), content));
    }
    archive(&members)
}

fn archive(members: &[(String, Vec<u8>)]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, content) in members {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        // Writing to memory cannot fail.
        let _ = builder.append_data(&mut header, name, content.as_slice());
    }
    builder.into_inner().unwrap_or_default()
}

fn service(root: &[u8]) -> Vec<u8> {
    let digest = |content: &[u8]| -> String {
        Sha256::digest(content).iter().map(|byte| format!("{byte:02x}")).collect()
    };
    let config = br#"{"os":"linux","config":{"Entrypoint":["/app"]}}"#;
    let manifest = format!(
        r#"{{"schemaVersion":2,"config":{{"digest":"sha256:{}"}},"layers":[{{"digest":"sha256:{}"}}]}}"#,
        digest(config),
        digest(root)
    );
    archive(&[
        ("manifest.json".to_owned(), manifest.into_bytes()),
        (format!("blobs/sha256/{}", digest(config)), config.to_vec()),
        (format!("blobs/sha256/{}", digest(root)), root.to_vec()),
    ])
}

/// Packed by the real program, as packages are.
fn gzip(place: &Path, content: &[u8]) -> Outcome<Vec<u8>> {
    let plain = place.join("plain");
    fs::write(&plain, content)?;
    let packed = Command::new("gzip").args(["-6", "-c"]).arg(&plain).output()?;
    fs::remove_file(&plain)?;
    Ok(packed.stdout)
}
