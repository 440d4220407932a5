//! What a poll of the monitor costs: the real thread on real control groups, with a clock that
//! makes every command a poll.

use std::fs::{self, File};
use std::iter;
use std::os::unix::fs::{FileExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use aos_servicemanager::model::event::Session;
use aos_servicemanager::model::failure::Failure;
use aos_servicemanager::model::id::{InstanceId, InstanceIdent, ServiceId, SubjectId};
use aos_servicemanager::model::node::{AlertRules, NodeInfo, Partition, PercentRule};
use aos_servicemanager::model::status::{Alert, NodeMonitoring};
use aos_servicemanager::model::traffic::{Traffic, Volume};
use aos_servicemanager::monitor::{
    self, MonitorCommand, MonitorOutput, MonitorSettings, RamFigure, Target,
};
use aos_servicemanager::ports::{Clock, Now, TrafficSource};
use crossbeam::channel::bounded;

use crate::common::need::{self, require};
use crate::common::space::{Groups, Space};
use crate::common::{allocations, host, program};

const PERIOD: Duration = Duration::from_secs(10);
const INSTANCES: u64 = 16;
/// Polls that are measured, after so many to warm up.
const POLLS: usize = 60;
const WARM_UP: usize = 20;

/// Each look finds the next poll due.
struct Steps(AtomicU32);

impl Clock for Steps {
    fn now(&self) -> Now {
        let mono = PERIOD * self.0.fetch_add(1, Ordering::Relaxed);
        Now { mono, boot: mono, wall_ms: 1_700_000_000_000 }
    }
}

/// Counters as net has them, without memory of their own.
struct Counters;

impl TrafficSource for Counters {
    fn traffic(&self, _: Duration, traffic: &mut Traffic) -> Result<(), Failure> {
        traffic.node = Volume { download_bytes: 1, upload_bytes: 2 };
        Ok(())
    }
}

/// What the thread had used when it handed a sample over.
#[derive(Clone, Copy, Debug)]
struct Used {
    allocations: u64,
    /// `None` = the kernel does not count them.
    reads: Option<u64>,
}

struct Taken {
    sample: Option<NodeMonitoring>,
    io: Option<File>,
    used: Vec<Used>,
    alerts: usize,
}

struct Output(Mutex<Taken>);

impl Output {
    fn new() -> Self {
        let used = Vec::with_capacity(POLLS + WARM_UP + 100);
        Self(Mutex::new(Taken { sample: None, io: None, used, alerts: 0 }))
    }
}

impl MonitorOutput for Output {
    fn spare(&self) -> Option<NodeMonitoring> {
        self.0.lock().unwrap().sample.take()
    }

    fn instant(&self, data: NodeMonitoring) {
        let allocations = allocations::of_this_thread();
        let mut taken = self.0.lock().unwrap();
        if taken.io.is_none() {
            taken.io = File::open("/proc/thread-self/io").ok();
        }
        let reads = taken.io.as_ref().and_then(reads);
        if taken.used.len() < taken.used.capacity() {
            taken.used.push(Used { allocations, reads });
        }
        taken.sample = Some(data);
    }

    fn average(&self, _: Session, _: NodeMonitoring) {}

    fn alert(&self, _: Alert) {
        self.0.lock().unwrap().alerts += 1;
    }

    fn look_at(&self, _: Vec<PathBuf>) {}
}

/// Read calls of the calling thread so far, this one left out.
fn reads(io: &File) -> Option<u64> {
    let mut buffer = [0; 256];
    let length = io.read_at(&mut buffer, 0).ok()?;
    let text = std::str::from_utf8(&buffer[..length]).ok()?;
    text.lines().find_map(|line| line.strip_prefix("syscr: "))?.parse().ok()
}

fn target(index: u64) -> Target {
    let rule = PercentRule { min_timeout: Duration::ZERO, min: 98.0, max: 99.0 };
    Target {
        id: InstanceId::new(&format!("i{index}")),
        ident: InstanceIdent {
            service_id: ServiceId::new("service"),
            subject_id: SubjectId::new("subject"),
            instance: index,
        },
        service_version: Arc::from("1.0.0"),
        uid: 5000,
        storage: Some("/tmp".into()),
        state: Some("/etc/passwd".into()),
        rules: AlertRules { ram: Some(rule), cpu: Some(rule), ..AlertRules::default() },
    }
}

/// Makes the groups of all instances in all hierarchies.
fn make_groups(parent: &str) -> std::io::Result<()> {
    for hierarchy in host::hierarchies() {
        let group = hierarchy.mount_point.join(parent.trim_start_matches('/'));
        fs::create_dir_all(&group)?;
        // Version 2 shows memory only below groups that pass the controller on.
        for above in [&hierarchy.mount_point, &group] {
            if let Ok(file) = File::options().write(true).open(above.join("cgroup.subtree_control"))
            {
                let _ = file.write_all_at(b"+memory", 0);
            }
        }
        for index in 0..INSTANCES {
            fs::create_dir_all(group.join(format!("aos-service@i{index}.service")))?;
        }
    }
    Ok(())
}

/// Runs the thread until it has taken all commands, with a poll after each.
fn run(parent: &str, output: &Output, given: impl IntoIterator<Item = MonitorCommand>) {
    let (commands, inbox) = bounded(monitor::INBOX);
    let settings = MonitorSettings {
        poll_period: PERIOD,
        average_window: 6 * PERIOD,
        ram_figure: RamFigure::Anonymous,
        cgroup_parent: parent.to_owned(),
    };
    let clock = Steps(AtomicU32::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| monitor::run(&settings, &inbox, &clock, &Counters, output));
        commands.send(MonitorCommand::Linked(true)).unwrap();
        given.into_iter().for_each(|command| commands.send(command).unwrap());
        commands.send(MonitorCommand::Stop).unwrap();
    });
}

/// Concerns nobody.
fn nothing() -> MonitorCommand {
    MonitorCommand::Unwatch(InstanceId::new("nobody"))
}

fn node_info() -> MonitorCommand {
    let partition = |name: &str, path: &str| Partition {
        name: name.to_owned(),
        types: Vec::new(),
        path: path.into(),
        total_bytes: 1 << 30,
    };
    let partitions = vec![partition("root", "/"), partition("missing", "/no/such/place")];
    MonitorCommand::NodeInfo(NodeInfo {
        max_dmips: 10_000,
        total_ram_bytes: 1 << 30,
        partitions,
        ..NodeInfo::default()
    })
}

#[test]
fn a_poll_allocates_nothing_and_reads_each_file_once() {
    require!(root);
    let parent = format!("/aos-test-sampling-{}", std::process::id());
    if let Err(error) = make_groups(&parent) {
        host::remove_groups(&parent);
        println!("SKIP a_poll_allocates_nothing_and_reads_each_file_once: {error}");
        return;
    }
    assert!(!Path::new("/no/such/place").exists());
    let output = Output::new();
    let watches = (0..INSTANCES).map(|index| MonitorCommand::Watch(Box::new(target(index))));
    let polls = (0..POLLS + WARM_UP).map(|_| nothing());
    run(&parent, &output, iter::once(node_info()).chain(watches).chain(polls));
    host::remove_groups(&parent);

    let taken = output.0.into_inner().unwrap();
    assert!(taken.used.len() >= POLLS, "{} polls", taken.used.len());
    let used = &taken.used[taken.used.len() - POLLS..];
    let sample = taken.sample.unwrap();
    assert_eq!(sample.instances.len(), usize::try_from(INSTANCES).unwrap());
    // When something is mounted or unmounted on this machine, the table of mounts is read again.
    let spent = used.windows(2).map(|pair| pair[1].allocations - pair[0].allocations);
    let free = spent.clone().filter(|allocations| *allocations == 0).count();
    assert!(free * 10 >= (POLLS - 1) * 9, "allocations: {:?}", spent.collect::<Vec<_>>());

    let most = 2 + 3 * INSTANCES;
    let reads = used.windows(2).filter_map(|pair| Some(pair[1].reads? - pair[0].reads? - 1));
    let mut reads: Vec<u64> = reads.collect();
    reads.sort_unstable();
    match reads.get(reads.len() / 2) {
        // Without the memory controller only one file of each instance is there.
        Some(median) => assert!((2 + INSTANCES..=most).contains(median), "reads: {reads:?}"),
        None => println!("SKIP the count of read calls: the kernel has none"),
    }
}

/// Runs a program; what it says when it fails.
fn call(name: &str, arguments: &[&str]) -> Result<(), String> {
    let mut command = Command::new(need::program(name)?);
    let (code, _, words) = program::run(command.args(arguments));
    if code == Some(0) { Ok(()) } else { Err(format!("{name}: {}", words.replace('\n', " "))) }
}

/// A small ext4 with quota for users and projects, mounted on `at`.
fn mount_with_quota(image: &Path, at: &Path) -> Result<(), String> {
    File::create(image).and_then(|file| file.set_len(32 << 20)).map_err(|e| e.to_string())?;
    fs::create_dir(at).map_err(|e| e.to_string())?;
    let (image, at) = (image.to_str().unwrap(), at.to_str().unwrap());
    call("mkfs.ext4", &["-q", "-O", "quota,project", "-E", "quotatype=usrquota:prjquota", image])?;
    call("mount", &["-o", "loop,usrquota,prjquota", image, at])
}

fn write_as(file: &Path, uid: u32, kib: usize) {
    let out = File::create(file).unwrap();
    chown(file, Some(uid), Some(uid)).unwrap();
    out.write_all_at(&vec![7; kib << 10], 0).unwrap();
    out.sync_all().unwrap();
}

/// Used bytes of storage and state after one poll.
fn stored(mut target: Target, storage: &Path, state: &Path) -> Vec<u64> {
    (target.storage, target.state) = (Some(storage.to_owned()), Some(state.to_owned()));
    let output = Output::new();
    let watch = MonitorCommand::Watch(Box::new(target));
    run("/aos-test-no-such-group", &output, [watch, nothing()]);
    let sample = output.0.into_inner().unwrap().sample.unwrap();
    sample.instances[0].1.partitions.iter().map(|(_, used)| *used).collect()
}

#[test]
fn quota_tells_what_an_instance_stores() {
    require!(root);
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    let disk = dir.path().join("disk");
    let space = Space::new(Groups::Host);
    let mounted = space.inside(|| mount_with_quota(&dir.path().join("image"), &disk));
    if let Err(why) = mounted {
        println!("SKIP quota_tells_what_an_instance_stores: {why}");
        return;
    }
    let [of_user, of_project] = space.inside(|| {
        let (storage, state) = (disk.join("storage"), disk.join("state.dat"));
        fs::create_dir(&storage).unwrap();
        write_as(&storage.join("mine"), 5000, 1024);
        write_as(&storage.join("other"), 5001, 2048);
        write_as(&state, 5000, 256);
        let of_user = stored(target(0), &storage, &state);
        // The integrator gives the storage a project: what is in it counts, and nothing else.
        let path = storage.to_str().unwrap();
        let given =
            call("chattr", &["-R", "-p", "77", path]).and_then(|()| call("chattr", &["+P", path]));
        given.unwrap();
        let of_project = stored(target(0), &storage, &state);
        call("umount", &[disk.to_str().unwrap()]).unwrap();
        [of_user, of_project]
    });
    let about = |used: u64, kib: u64| used >= kib << 10 && used <= (kib + 64) << 10;
    // User quota cannot tell storage and state apart.
    assert!(about(of_user[0], 1280) && about(of_user[1], 1280), "{of_user:?}");
    assert!(about(of_project[0], 3072) && about(of_project[1], 1280), "{of_project:?}");
}
