//! What a poll of the monitor costs: the real thread on real control groups, with a clock that
//! makes every command a poll.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
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

use crate::common::need::require;
use crate::common::{allocations, host};

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
        for index in 0..INSTANCES {
            let group = hierarchy.mount_point.join(parent.trim_start_matches('/'));
            fs::create_dir_all(group.join(format!("aos-service@i{index}.service")))?;
        }
    }
    Ok(())
}

fn run(parent: &str, output: &Output) {
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
        let partition = |name: &str, path: &str| Partition {
            name: name.to_owned(),
            types: Vec::new(),
            path: path.into(),
            total_bytes: 1 << 30,
        };
        let partitions = vec![partition("root", "/"), partition("missing", "/no/such/place")];
        let info = NodeInfo {
            max_dmips: 10_000,
            total_ram_bytes: 1 << 30,
            partitions,
            ..NodeInfo::default()
        };
        commands.send(MonitorCommand::NodeInfo(info)).unwrap();
        commands.send(MonitorCommand::Linked(true)).unwrap();
        for index in 0..INSTANCES {
            commands.send(MonitorCommand::Watch(Box::new(target(index)))).unwrap();
        }
        for _ in 0..POLLS + WARM_UP {
            commands.send(MonitorCommand::Unwatch(InstanceId::new("nobody"))).unwrap();
        }
        commands.send(MonitorCommand::Stop).unwrap();
    });
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
    run(&parent, &output);
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
        Some(median) => assert_eq!(*median, most, "reads: {reads:?}"),
        None => println!("SKIP the count of read calls: the kernel has none"),
    }
}
