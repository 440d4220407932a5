//! systemd as process 1: instances in a subtree that it leaves alone, the daemon as a unit of its
//! own. `ci/test-uml` boots such a system.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::common::need::{self, on_platform, require};
use crate::common::program;
use crate::common::unit::{self, Setup, Unit};
use crate::common::wait_until;

fn systemctl(words: &str) -> String {
    let (code, out, error) = program::run(Command::new("systemctl").args(words.split(' ')));
    assert_eq!(code, Some(0), "systemctl {words}: {error}");
    out
}

/// A unit that goes with the test.
struct Service {
    name: String,
}

impl Service {
    fn new(name: &str, lines: &str) -> Self {
        let name = format!("aos-test-{}-{name}.service", std::process::id());
        let mut file = fs::File::create(Self::path(&name)).unwrap();
        write!(file, "[Unit]\nDefaultDependencies=no\n\n[Service]\n{lines}").unwrap();
        systemctl("daemon-reload");
        Self { name }
    }

    fn path(name: &str) -> PathBuf {
        Path::new("/run/systemd/system").join(name)
    }

    fn tell(&self, verb: &str) {
        systemctl(&format!("{verb} {}", self.name));
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let stop = ["kill", "-s", "KILL", &self.name];
        program::run(Command::new("systemctl").args(stop));
        program::run(Command::new("systemctl").args(["stop", &self.name]));
        let _ = fs::remove_file(Self::path(&self.name));
    }
}

/// The daemon's command line, in the namespaces of the unit.
fn inside(unit: &Unit, flags: &str) -> String {
    let (pid, config) = (unit.simulator_pid(), unit.config());
    format!(
        "/usr/bin/nsenter --mount=/proc/{pid}/ns/mnt --net=/proc/{pid}/ns/net -- {} -c {} {flags}",
        unit::daemon_program().display(),
        config.display()
    )
}

fn control_group(pid: u32) -> String {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    text.lines().find_map(|line| line.strip_prefix("0::")).unwrap().to_owned()
}

#[test]
fn instances_live_in_a_delegated_subtree_beside_the_daemon() {
    on_platform!(systemd, pure_v2);
    require!(root, memory, crun, busybox);
    let holder = format!("aos-test-{}-instances.service", std::process::id());
    let parent = format!("/system.slice/{holder}/aos");
    let setup = Setup::new().set("cgroupParent", &parent).set("keepInstancesOnExit", "true");
    let mut unit = setup.start();
    let instances = Service::new(
        "instances",
        &format!(
            "Type=oneshot\nRemainAfterExit=yes\nDelegate=yes\nExecStart=/bin/true\nExecStop={}\n",
            inside(&unit, "-stop-instances")
        ),
    );
    let daemon = Service::new(
        "daemon",
        &format!("Type=exec\nKillMode=process\nExecStart={}\n", inside(&unit, "-v debug")),
    );
    instances.tell("start");
    daemon.tell("start");
    unit.say("wait registered");
    let busybox = need::program("busybox").unwrap();
    let config = r#"config='{"quotas":{"ramLimit":33554432,"cpuLimit":5000,"pidsLimit":17}}'"#;
    unit.say(&format!("service web {busybox} entrypoint=/busybox cmd=sleep cmd=10000 {config}"));
    unit.say("instance web");
    unit.say("run");
    unit.say("wait active web");
    let pid = unit.pid_of("web/subject/0");
    let group = control_group(pid);
    let id = unit.id_of("web/subject/0");
    assert_eq!(group, format!("{parent}/aos-service@{id}.service"));
    let file = |name: &str| {
        let path = Path::new("/sys/fs/cgroup").join(group.trim_start_matches('/')).join(name);
        fs::read_to_string(path).unwrap().trim().to_owned()
    };
    let limits = || ["memory.max", "pids.max", "cpu.max"].map(file);
    let set = limits();
    assert_eq!([&set[0], &set[1]], ["33554432", "17"]);
    assert!(!set[2].starts_with("max"), "{set:?}");

    // A reload takes no controller and no limit away.
    systemctl("daemon-reload");
    assert_eq!(limits(), set);

    // The end of the daemon by an orderly stop, a restart and a crash is no end of the instance.
    let adopted = |unit: &mut Unit| {
        unit.say("wait registered");
        unit.expect("web/subject/0 version 1.0.0 active");
        assert_eq!(unit.pid_of("web/subject/0"), pid);
        assert_eq!((control_group(pid), limits()), (group.clone(), set.clone()));
    };
    daemon.tell("stop");
    assert!(Path::new(&format!("/proc/{pid}")).exists());
    unit.say("wait disconnected");
    unit.look();
    daemon.tell("start");
    adopted(&mut unit);
    unit.look();
    daemon.tell("restart");
    adopted(&mut unit);
    unit.look();
    daemon.tell("kill -s KILL");
    unit.say("wait disconnected");
    wait_until("the end of the unit", || {
        let show = format!("show -p ActiveState {}", daemon.name);
        systemctl(&show).contains("failed")
    });
    assert!(Path::new(&format!("/proc/{pid}")).exists());
    daemon.tell("start");
    adopted(&mut unit);

    // The companion unit ends them.
    daemon.tell("stop");
    instances.tell("stop");
    wait_until("the end of the instance", || !Path::new(&format!("/proc/{pid}")).exists());
    unit.nothing_left();
}
