//! CPUs that go and come while the daemon runs.

use std::fs;
use std::path::Path;

use aos_servicemanager::sys::fs::{write_existing, write_plain};
use nix::mount::{MsFlags, mount};
use serde_json::Value;

use crate::common::need::{self, require};
use crate::common::unit::{Setup, Unit};
use crate::common::wait_until;

/// The kernel's list of CPUs that are online.
const ONLINE: &str = "/sys/devices/system/cpu/online";

/// CPU quota of an instance in its runtime configuration, in microseconds of each 100 ms; 0 when
/// there is none.
fn quota(unit: &Unit, instance: &str) -> u64 {
    let Some(id) = unit.find_id(instance) else { return 0 };
    let file = unit.path("run/runtime").join(id).join("config.json");
    let config = fs::read(file).unwrap_or_default();
    let config: Value = serde_json::from_slice(&config).unwrap_or_default();
    config["linux"]["resources"]["cpu"]["quota"].as_u64().unwrap_or_default()
}

#[test]
fn quotas_of_new_starts_follow_the_cpus_that_are_online() {
    require!(root, memory, runc, busybox);
    let mut unit = Setup::new().start();
    // What the kernel would say, for the daemon alone.
    let list = unit.path("online");
    write_plain(&list, b"0-3\n", 0o644).unwrap();
    let bind =
        || mount(Some(&list), Path::new(ONLINE), None::<&str>, MsFlags::MS_BIND, None::<&str>);
    unit.space.inside(bind).unwrap();
    unit.start_daemon();
    unit.say("wait registered");
    let busybox = need::program("busybox").unwrap();
    let config = r#"config='{"quotas":{"cpuDmipsLimit":1000}}'"#;
    for service in ["early", "late"] {
        let program = format!("{busybox} entrypoint=/busybox cmd=sleep cmd=10000");
        unit.say(&format!("service {service} {program} {config}"));
    }
    unit.say("instance early");
    unit.say("run");
    unit.say("wait active early");
    let (early, late) = ("early/subject/0", "late/subject/0");
    // A tenth of a node with 10 000 DMIPS.
    let with_four = quota(&unit, early);
    assert_eq!(with_four, 40_000);
    let pid = unit.pid_of(early);

    // Two go: what runs goes on as it is, what starts gets its share of what there is.
    write_existing(&list, "0,2\n").unwrap();
    unit.say("instance late");
    unit.say("run");
    unit.say("wait active");
    assert_eq!((unit.pid_of(early), quota(&unit, early)), (pid, with_four));
    assert_eq!(quota(&unit, late), with_four / 2);

    // The next life does not take that for a change.
    unit.kill_daemon();
    unit.start_daemon();
    unit.say("wait registered");
    unit.say("wait active");
    assert_eq!((unit.pid_of(early), quota(&unit, early)), (pid, with_four));

    write_existing(&list, "0-7\n").unwrap();
    unit.say("run force");
    wait_until("new starts", || [early, late].iter().all(|who| quota(&unit, who) == 2 * with_four));
    unit.say("wait active");
    unit.stop_daemon();
    unit.nothing_left();
}
