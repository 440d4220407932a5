//! The monitor over fake `/proc`, `/sys` and control group trees, with times as arguments.

use std::fs;
use std::sync::Mutex;

use crossbeam::channel::{Sender, bounded};
use tempfile::TempDir;

use super::meter::Meter;
use super::sampler::TRAFFIC_LIMIT;
use super::*;
use crate::model::failure::Failure;
use crate::model::id::{ServiceId, SubjectId};
use crate::model::node::{Partition, PercentRule, PointsRule};
use crate::model::status::{AlertPayload, MonitoringData, QuotaStatus};
use crate::model::traffic::{Traffic, Volume};
use crate::sys::cgroups::{Hierarchy, Layout};
use crate::sys::fs::write_plain;
use crate::sys::mount::Mounted;
use crate::sys::time::SystemClock;

const PARENT: &str = "/aos.slice";

/// A host with v1 hierarchies and 1000 KiB of RAM.
struct FakeHost {
    root: TempDir,
}

impl FakeHost {
    fn new() -> Self {
        let host = Self { root: tempfile::tempdir().unwrap() };
        host.write(
            "proc/meminfo",
            "MemTotal: 1000 kB\nMemFree: 400 kB\nBuffers: 0 kB\nCached: 0 kB\n",
        );
        host.write("proc/stat", "cpu  0 0 0 0 0 0 0 0 0 0\n");
        host
    }

    fn write(&self, path: &str, text: &str) {
        let path = self.root.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        write_plain(&path, text.as_bytes(), 0o600).unwrap();
    }

    fn set_group(&self, id: &str, cpu_ms: u64, rss: u64, oom_kills: u64) {
        let leaf = format!("aos.slice/aos-service@{id}.service");
        self.write(&format!("cpuacct/{leaf}/cpuacct.usage"), &format!("{}\n", cpu_ms * 1_000_000));
        self.write(&format!("memory/{leaf}/memory.stat"), &format!("total_rss {rss}\n"));
        self.write(
            &format!("memory/{leaf}/memory.oom_control"),
            &format!("oom_kill {oom_kills}\n"),
        );
    }

    fn monitor(&self) -> Sampler {
        self.monitor_with(&[])
    }

    fn monitor_with(&self, mounts: &[Mounted]) -> Sampler {
        let hierarchy = |name: &str| Hierarchy {
            mount: self.root.path().join(name),
            controllers: vec![name.to_owned()],
        };
        let layout = Layout { v1: vec![hierarchy("cpuacct"), hierarchy("memory")], v2: None };
        let host = Host::open(&self.root.path().join("proc"));
        let disks = disk::tests::fixed(mounts);
        Sampler::new(&settings(), host, disks, Hierarchies::of(&layout), at(0))
    }
}

fn instant(sampler: &Sampler) -> NodeMonitoring {
    let mut sample = NodeMonitoring::default();
    sampler.fill(&mut sample, Meter::instant);
    sample
}

fn average(sampler: &Sampler) -> NodeMonitoring {
    let mut sample = NodeMonitoring::default();
    sampler.fill(&mut sample, |meter, data| meter.average(7, data));
    sample
}

fn settings() -> MonitorSettings {
    MonitorSettings {
        poll_period: Duration::from_secs(10),
        average_window: Duration::from_secs(30),
        ram_figure: RamFigure::Anonymous,
        cgroup_parent: PARENT.to_owned(),
    }
}

fn at(seconds: u64) -> Now {
    let mono = Duration::from_secs(seconds);
    Now { mono, boot: mono, wall_ms: 1_000_000 + i64::try_from(mono.as_millis()).unwrap() }
}

fn ident(service: &str) -> InstanceIdent {
    InstanceIdent {
        service_id: ServiceId::new(service),
        subject_id: SubjectId::new("subject"),
        instance: 0,
    }
}

fn target(id: &str) -> Target {
    Target {
        id: InstanceId::new(id),
        ident: ident(id),
        service_version: Arc::from("1.0.0"),
        uid: 5000,
        storage: None,
        state: None,
        rules: AlertRules::default(),
    }
}

fn watch(target: Target) -> MonitorCommand {
    MonitorCommand::Watch(Box::new(target))
}

fn node_info(max_dmips: u64) -> NodeInfo {
    NodeInfo { max_dmips, total_ram_bytes: 1000 << 10, ..NodeInfo::default() }
}

/// Keeps what it gets.
#[derive(Default)]
struct Kept {
    alerts: Mutex<Vec<Alert>>,
    averages: Mutex<Vec<(Session, NodeMonitoring)>>,
    /// Sent, and given back at once.
    samples: Mutex<Vec<NodeMonitoring>>,
    looks: Mutex<Vec<Vec<PathBuf>>>,
}

impl MonitorOutput for Kept {
    fn spare(&self) -> Option<NodeMonitoring> {
        self.samples.lock().unwrap().last().cloned()
    }
    fn instant(&self, data: NodeMonitoring) {
        self.samples.lock().unwrap().push(data);
    }
    fn look_at(&self, paths: Vec<PathBuf>) {
        self.looks.lock().unwrap().push(paths);
    }
    fn average(&self, session: Session, data: NodeMonitoring) {
        self.averages.lock().unwrap().push((session, data));
    }
    fn alert(&self, alert: Alert) {
        self.alerts.lock().unwrap().push(alert);
    }
}

#[test]
fn node_figures() {
    let host = FakeHost::new();
    let mut monitor = host.monitor();
    let kept = Kept::default();
    let mut step = |seconds, command: Option<MonitorCommand>, stat: &str| {
        host.write("proc/stat", stat);
        if let Some(command) = command {
            monitor.apply(command, at(seconds), &kept);
        }
        monitor.sample(at(seconds), &kept);
        (instant(&monitor).node, average(&monitor).node)
    };
    // No node info: CPU is 0, and stays out of the average.
    let (instant, _) = step(10, None, "cpu 50 0 0 50\n");
    assert_eq!((instant.cpu_dmips, instant.ram_bytes, instant.time_ms), (0, 600 << 10, 1_010_000));
    let (instant, average) =
        step(20, Some(MonitorCommand::NodeInfo(node_info(4000))), "cpu 75 0 0 125\n");
    assert_eq!((instant.cpu_dmips, average.cpu_dmips, average.time_ms), (1000, 1000, 7));
    let (instant, average) = step(30, None, "cpu 175 0 0 125\n");
    assert_eq!((instant.cpu_dmips, average.cpu_dmips), (4000, 2500));
}

#[test]
fn instance_cpu_and_ram() {
    let host = FakeHost::new();
    let mut monitor = host.monitor();
    let kept = Kept::default();
    monitor.apply(MonitorCommand::NodeInfo(node_info(8000)), at(0), &kept);
    monitor.cpus = 4;
    host.set_group("i1", 500, 4096, 0);
    monitor.apply(watch(target("i1")), at(0), &kept);
    let mut tick = |seconds| {
        monitor.sample(at(seconds), &kept);
        let data = instant(&monitor);
        assert_eq!(data.instances.len(), 1);
        let (of, figures) = data.instances.into_iter().next().unwrap();
        assert_eq!(of, ident("i1"));
        (figures.cpu_dmips, figures.ram_bytes)
    };
    // 10 s of one of four CPUs is a quarter of the node.
    host.set_group("i1", 10_500, 8192, 0);
    assert_eq!(tick(10), (2000, 8192));
    // The counter ran backwards: what it shows now was used since.
    host.set_group("i1", 1000, 8192, 0);
    assert_eq!(tick(20), (200, 8192));
    // Unreadable: no CPU, the last RAM.
    host.write("cpuacct/aos.slice/aos-service@i1.service/cpuacct.usage", "");
    host.write("memory/aos.slice/aos-service@i1.service/memory.stat", "");
    assert_eq!(tick(30), (0, 8192));
    // More than all CPUs at once is a batch update of the kernel.
    host.set_group("i1", 1_000_000, 1, 0);
    assert_eq!(tick(40).0, 8000);
    monitor.apply(MonitorCommand::Unwatch(InstanceId::new("i1")), at(41), &kept);
    monitor.apply(MonitorCommand::Unwatch(InstanceId::new("unknown")), at(41), &kept);
    assert!(instant(&monitor).instances.is_empty());
}

#[test]
fn average_request_before_the_first_poll() {
    let host = FakeHost::new();
    let mut monitor = host.monitor();
    let kept = Kept::default();
    monitor.apply(MonitorCommand::Average { session: Session(4) }, at(1), &kept);
    let averages = kept.averages.into_inner().unwrap();
    assert_eq!(averages[0].0, Session(4));
    assert_eq!((averages[0].1.node.ram_bytes, averages[0].1.node.time_ms), (600 << 10, 1_001_000));
}

#[test]
fn partitions_and_storage() {
    let host = FakeHost::new();
    let mut monitor = host.monitor();
    let kept = Kept::default();
    let partition = |name: &str, path: &Path| Partition {
        name: name.to_owned(),
        path: path.to_owned(),
        types: Vec::new(),
        total_bytes: 1,
    };
    let partitions =
        vec![partition("var", host.root.path()), partition("lost", Path::new("/no/such/place"))];
    let info = NodeInfo { partitions, ..node_info(0) };
    monitor.apply(MonitorCommand::NodeInfo(info), at(0), &kept);
    let storage = Some(host.root.path().join("storage"));
    monitor.apply(watch(Target { storage, ..target("i1") }), at(0), &kept);
    monitor.sample(at(10), &kept);
    let data = instant(&monitor);
    let names: Vec<_> = data.node.partitions.iter().map(|(name, _)| &**name).collect();
    assert_eq!(names, ["var", "lost"]);
    assert!(data.node.partitions[0].1 > 0);
    assert_eq!(data.node.partitions[1].1, 0);
    assert_eq!(data.instances[0].1.partitions, [("storage".into(), 0)]);
}

#[test]
fn alerts_of_node_and_instance() {
    let host = FakeHost::new();
    let mut monitor = host.monitor();
    let kept = Kept::default();
    let rule = Some(PercentRule { min_timeout: Duration::from_secs(10), min: 10.0, max: 50.0 });
    let rules = AlertRules { ram: rule, ..AlertRules::default() };
    monitor.apply(MonitorCommand::NodeInfo(node_info(1000)), at(0), &kept);
    monitor.apply(MonitorCommand::NodeRules(rules.clone()), at(0), &kept);
    host.set_group("i1", 0, 600 << 10, 2);
    monitor.apply(watch(Target { rules, ..target("i1") }), at(0), &kept);
    monitor.sample(at(10), &kept);
    host.set_group("i1", 0, 700 << 10, 5);
    // Another configuration of the node leaves the instance's rules alone.
    monitor.apply(MonitorCommand::NodeRules(AlertRules::default()), at(15), &kept);
    monitor.sample(at(20), &kept);
    let alerts = kept.alerts.into_inner().unwrap();
    let expect = [
        AlertPayload::InstanceQuota {
            ident: ident("i1"),
            parameter: "ram".to_owned(),
            value: 700 << 10,
            status: QuotaStatus::Raise,
        },
        AlertPayload::Instance {
            ident: ident("i1"),
            service_version: Arc::from("1.0.0"),
            message: "out of memory: 3 processes of the instance were killed".to_owned(),
        },
    ];
    assert_eq!(alerts.iter().map(|a| a.time_ms).collect::<Vec<_>>(), [1_020_000; 2]);
    assert_eq!(alerts.into_iter().map(|alert| alert.payload).collect::<Vec<_>>(), expect);
}

/// Alerts about the node's RAM and an instance's, in words.
fn excursion(alerts: Vec<Alert>) -> Vec<String> {
    let word = |alert: Alert| match alert.payload {
        AlertPayload::SystemQuota { status, .. } => format!("node {status:?}"),
        AlertPayload::InstanceQuota { status, .. } => format!("instance {status:?}"),
        other => panic!("{other:?}"),
    };
    alerts.into_iter().map(word).collect()
}

#[test]
fn an_excursion_goes_on_over_new_configurations() {
    let host = FakeHost::new();
    let mut monitor = host.monitor();
    let kept = Kept::default();
    let rule = |max| {
        let ram = Some(PercentRule { min_timeout: Duration::from_secs(10), min: 10.0, max });
        AlertRules { ram, ..AlertRules::default() }
    };
    // Everything is said again, in the middle of what the detectors wait for.
    let configure = |monitor: &mut Sampler, max: f64, seconds: u64| {
        monitor.apply(MonitorCommand::NodeInfo(node_info(1000)), at(seconds), &kept);
        monitor.apply(MonitorCommand::NodeRules(rule(max)), at(seconds), &kept);
        monitor.apply(watch(Target { rules: rule(max), ..target("i1") }), at(seconds), &kept);
    };
    let told = || excursion(std::mem::take(&mut kept.alerts.lock().unwrap()));
    host.set_group("i1", 0, 600 << 10, 0);
    configure(&mut monitor, 50.0, 0);
    monitor.sample(at(10), &kept);
    configure(&mut monitor, 50.0, 15);
    assert_eq!(told(), [""; 0]);
    monitor.sample(at(20), &kept);
    assert_eq!(told(), ["instance Raise", "node Raise"]);
    // Other thresholds do not make it a new one.
    configure(&mut monitor, 55.0, 25);
    monitor.sample(at(30), &kept);
    assert_eq!(told(), [""; 0]);
    host.set_group("i1", 0, 50 << 10, 0);
    host.write("proc/meminfo", "MemTotal: 1000 kB\nMemFree: 950 kB\nBuffers: 0 kB\nCached: 0 kB\n");
    monitor.sample(at(40), &kept);
    configure(&mut monitor, 55.0, 45);
    monitor.sample(at(50), &kept);
    assert_eq!(told(), ["instance Fall", "node Fall"]);
}

#[test]
fn missed_ticks_are_skipped() {
    let check = |tick, now, expect| {
        let seconds = Duration::from_secs;
        assert_eq!(following(seconds(tick), seconds(10), seconds(now)), seconds(expect));
    };
    check(10, 10, 20);
    check(10, 19, 20);
    check(10, 20, 30);
    check(10, 3605, 3610);
}

#[test]
fn window_is_at_least_one_sample() {
    let check = |period, window, expect| {
        let (poll_period, average_window) =
            (Duration::from_secs(period), Duration::from_secs(window));
        assert_eq!(
            window_samples(&MonitorSettings { poll_period, average_window, ..settings() }),
            expect
        );
    };
    check(10, 60, 6);
    check(10, 5, 1);
    check(7, 20, 2);
    check(1, u64::MAX, 86400);
    check(0, 60, 60); // a poll period below the shortest one
    check(u64::MAX, 86400, 24);
}

/// Hands the messages of the thread to the test.
struct Channel(Sender<(Option<Session>, NodeMonitoring)>);

impl MonitorOutput for Channel {
    fn spare(&self) -> Option<NodeMonitoring> {
        None
    }
    fn look_at(&self, _: Vec<PathBuf>) {}
    fn instant(&self, data: NodeMonitoring) {
        self.0.send((None, data)).unwrap();
    }
    fn average(&self, session: Session, data: NodeMonitoring) {
        self.0.send((Some(session), data)).unwrap();
    }
    fn alert(&self, _: Alert) {}
}

/// Counters that never change.
struct Counted;

impl TrafficSource for Counted {
    fn traffic(&self, limit: Duration, traffic: &mut Traffic) -> Result<(), Failure> {
        assert_eq!(limit, TRAFFIC_LIMIT);
        let node = Volume { download_bytes: 7, upload_bytes: 8 };
        *traffic = Traffic { node, instances: vec![(InstanceId::new("a"), volume(1, 2))] };
        Ok(())
    }
}

/// Net does not answer.
struct Silent;

impl TrafficSource for Silent {
    fn traffic(&self, _: Duration, _: &mut Traffic) -> Result<(), Failure> {
        Err(Failure::transient(&std::io::Error::other("late")))
    }
}

fn volume(download_bytes: u64, upload_bytes: u64) -> Volume {
    Volume { download_bytes, upload_bytes }
}

#[test]
fn traffic_of_node_and_instances() {
    let host = FakeHost::new();
    let mut monitor = host.monitor();
    let kept = Kept::default();
    let rule = PointsRule { min_timeout: Duration::ZERO, min: 0, max: 1 };
    let rules = AlertRules { upload: Some(rule), ..AlertRules::default() };
    monitor.apply(watch(Target { rules, ..target("a") }), at(0), &kept);
    monitor.apply(watch(target("b")), at(0), &kept);
    let mut step = |seconds, source: &dyn TrafficSource| {
        monitor.read_traffic(source);
        monitor.sample(at(seconds), &kept);
        let data = instant(&monitor);
        let figures = |d: &MonitoringData| (d.download_bytes, d.upload_bytes);
        let instances: Vec<_> = data.instances.iter().map(|(_, data)| figures(data)).collect();
        (figures(&data.node), instances)
    };
    assert_eq!(step(10, &Counted), ((7, 8), vec![(1, 2), (0, 0)]));
    // What cannot be read stays as it was.
    assert_eq!(step(20, &Silent), ((7, 8), vec![(1, 2), (0, 0)]));
    let alerts = kept.alerts.lock().unwrap();
    assert_eq!(alerts.len(), 1, "{alerts:?}");
    let AlertPayload::InstanceQuota { parameter, value, .. } = &alerts[0].payload else {
        panic!("{alerts:?}")
    };
    assert_eq!((parameter.as_str(), *value), ("upload", 2));
}

#[test]
fn thread_polls_answers_and_stops() {
    let (sender, messages) = bounded(8);
    let (inbox, commands) = bounded(INBOX);
    let settings = MonitorSettings { poll_period: Duration::from_secs(1), ..settings() };
    std::thread::scope(|scope| {
        let thread = scope.spawn(move || {
            run(&settings, &commands, &SystemClock, &Counted, &Channel(sender));
        });
        let limit = Duration::from_secs(10);
        inbox.send(MonitorCommand::Average { session: Session(3) }).unwrap();
        let (session, data) = messages.recv_timeout(limit).unwrap();
        assert_eq!(session, Some(Session(3)));
        assert!(data.node.ram_bytes > 0); // the real host
        assert_eq!((data.node.download_bytes, data.node.upload_bytes), (7, 8));
        inbox.send(MonitorCommand::Linked(true)).unwrap();
        assert_eq!(messages.recv_timeout(limit).unwrap().0, None);
        inbox.send(MonitorCommand::Stop).unwrap();
        thread.join().unwrap();
    });
}

#[test]
fn averages_of_node_instances_and_partitions() {
    let host = FakeHost::new();
    let mut monitor = host.monitor();
    let kept = Kept::default();
    monitor.apply(MonitorCommand::NodeInfo(node_info(1000)), at(0), &kept);
    host.set_group("i1", 0, 0, 0);
    monitor.apply(watch(target("i1")), at(0), &kept);
    let mut seen = Vec::new();
    for (tick, value) in (1..).zip([100_u64, 200, 300, 500]) {
        let free = 1000 - value;
        host.write(
            "proc/meminfo",
            &format!("MemTotal: 1000 kB\nMemFree: {free} kB\nBuffers: 0 kB\nCached: 0 kB\n"),
        );
        host.set_group("i1", 0, value << 10, 0);
        monitor.sample(at(tick * 10), &kept);
        let now = average(&monitor);
        seen.push((now.node.ram_bytes >> 10, now.instances[0].1.ram_bytes >> 10));
    }
    assert_eq!(seen, [(100, 100), (150, 150), (200, 200), (300, 300)]);
}

/// Longer than the CM could be away: nothing grows, and what comes first afterwards is new.
#[test]
fn without_the_cm_nothing_piles_up() {
    let host = FakeHost::new();
    let mut monitor = host.monitor();
    let kept = Kept::default();
    host.set_group("i1", 0, 4096, 0);
    monitor.apply(watch(target("i1")), at(0), &kept);
    for tick in 1..=360 {
        monitor.sample(at(tick * 10), &kept);
        monitor.send(&kept);
    }
    assert!(kept.samples.lock().unwrap().is_empty());
    monitor.apply(MonitorCommand::Linked(true), at(3601), &kept);
    monitor.sample(at(3610), &kept);
    monitor.send(&kept);
    monitor.apply(watch(target("i2")), at(3611), &kept);
    monitor.sample(at(3620), &kept);
    monitor.send(&kept);
    monitor.apply(MonitorCommand::Unwatch(InstanceId::new("i1")), at(3621), &kept);
    monitor.sample(at(3630), &kept);
    monitor.send(&kept);
    monitor.apply(MonitorCommand::Linked(false), at(3631), &kept);
    monitor.send(&kept);
    let samples = kept.samples.into_inner().unwrap();
    let seen: Vec<_> = samples
        .iter()
        .map(|s| (s.node.time_ms, s.instances.iter().map(|(i, _)| i.clone()).collect::<Vec<_>>()))
        .collect();
    let expect = [
        (4_610_000, vec![ident("i1")]),
        (4_620_000, vec![ident("i1"), ident("i2")]),
        (4_630_000, vec![ident("i2")]),
    ];
    assert_eq!(seen, expect);
}

#[test]
fn a_hung_file_system_makes_figures_old_and_nothing_else() {
    let host = FakeHost::new();
    let (net, local) = (PathBuf::from("/net"), host.root.path().to_owned());
    let mut monitor = host.monitor_with(&[
        disk::tests::mount("/", "ext4", "/dev/a"),
        disk::tests::mount("/net", "nfs4", "server:/x"),
    ]);
    let kept = Kept::default();
    let partition = |name: &str, path: &Path| Partition {
        name: name.to_owned(),
        path: path.to_owned(),
        types: Vec::new(),
        total_bytes: 1000,
    };
    let partitions = vec![partition("states", &net), partition("var", &local)];
    let info = NodeInfo { partitions, ..node_info(0) };
    monitor.apply(MonitorCommand::NodeInfo(info), at(0), &kept);
    let rule = PercentRule { min_timeout: Duration::ZERO, min: 1.0, max: 50.0 };
    let rules =
        AlertRules { partitions: vec![("states".to_owned(), rule)], ..AlertRules::default() };
    monitor.apply(MonitorCommand::NodeRules(rules), at(0), &kept);
    let mut step = |seconds, answer: Option<Result<u64, String>>| {
        if let Some(answer) = answer {
            let figures = vec![(net.clone(), answer)];
            monitor.apply(MonitorCommand::Disks(figures), at(seconds), &kept);
        }
        monitor.sample(at(seconds), &kept);
        let data = instant(&monitor).node;
        assert!(data.partitions[1].1 > 0, "the local one is read here");
        (data.partitions[0].1, kept.looks.lock().unwrap().len())
    };
    assert_eq!(step(10, None), (0, 1));
    // No answer: no other question.
    assert_eq!(step(50, None), (0, 1));
    assert_eq!(step(60, Some(Ok(700))), (700, 1));
    assert_eq!(step(90, None), (700, 2));
    assert_eq!(step(100, Some(Err("stale".to_owned()))), (700, 2));
    assert_eq!(step(130, None), (700, 3));
    assert_eq!(kept.looks.into_inner().unwrap(), vec![vec![net.clone()]; 3]);
    let alerts = kept.alerts.into_inner().unwrap();
    assert!(matches!(
        &alerts[0].payload,
        AlertPayload::SystemQuota { parameter, value: 700, status: QuotaStatus::Raise }
            if parameter == "states"
    ));
}

#[test]
fn kills_are_told_once() {
    let host = FakeHost::new();
    let mut monitor = host.monitor();
    let kept = Kept::default();
    host.set_group("i1", 0, 0, 3);
    monitor.apply(watch(target("i1")), at(0), &kept);
    monitor.sample(at(10), &kept);
    assert!(kept.alerts.lock().unwrap().is_empty(), "kills from before");
    host.set_group("i1", 0, 0, 4);
    monitor.sample(at(20), &kept);
    assert_eq!(kept.alerts.lock().unwrap().len(), 1);
    monitor.sample(at(30), &kept);
    assert_eq!(kept.alerts.lock().unwrap().len(), 1);
}
