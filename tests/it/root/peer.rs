//! What the CM is told when it takes a version back, when the cloud is away, and when the node is
//! configured anew.

use aos_servicemanager::sys::fs::write_plain;

use crate::common::need::{self, require};
use crate::common::unit::{Setup, Unit};
use crate::common::wait_until;

/// A busybox that sleeps, with members of its service configuration.
fn configured(unit: &mut Unit, id: &str, members: &str) {
    let busybox = need::program("busybox").unwrap();
    unit.say(&format!(
        "service {id} {busybox} entrypoint=/busybox cmd=sleep cmd=10000 config='{{{members}}}'"
    ));
    unit.say(&format!("instance {id}"));
}

#[test]
fn a_bad_version_is_failed_and_the_one_before_comes_back() {
    require!(root, memory, runc, busybox);
    let mut unit = Setup::new().set("startVerdict", "confirm-new").registered();
    unit.sleeper("web");
    unit.sleeper("other");
    unit.say("run");
    unit.say("wait active");
    let (id, other) = (unit.id_of("web/subject/0"), unit.pid_of("other/subject/0"));
    let busybox = need::program("busybox").unwrap();
    // So that the start limit is reached on a slow machine too.
    let config = r#"{"runParameters":{"startInterval":"60s","restartInterval":"50ms"}}"#;
    unit.say(&format!(
        "service web {busybox} version=2.0.0 entrypoint=/busybox cmd=sh cmd=-c cmd='exit 3' \
         config='{config}'"
    ));
    unit.look();
    unit.say("run");
    unit.expect("full status: 2 instances");
    // The one full status after the request names the new version: upon this a CM reverts.
    let line = unit.expect("web/subject/0 version 2.0.0 failed error: ");
    assert!(line.contains("exited with code 3"), "{line}");
    unit.look();
    unit.sleeper("web");
    unit.say("run");
    unit.expect("full status: 2 instances");
    unit.say("wait active");
    unit.expect("web/subject/0 version 1.0.0 active");
    assert_eq!(unit.id_of("web/subject/0"), id);
    assert_eq!(unit.pid_of("other/subject/0"), other);
    unit.stop_daemon();
    unit.nothing_left();
}

#[test]
fn an_instance_that_needs_the_cloud_ends_without_it_and_comes_back_with_it() {
    require!(root, memory, runc, busybox);
    let mut unit = Setup::new().registered();
    configured(&mut unit, "bound", r#""offlineTtl":"1s""#);
    configured(&mut unit, "patient", r#""offlineTtl":"1h""#);
    unit.say("run");
    unit.say("wait active");
    let patient = unit.pid_of("patient/subject/0");
    unit.look();
    unit.say("cloud down");
    unit.expect("bound/subject/0 version 1.0.0 failed error: offline timeout");
    wait_until("the end of what needs it", || unit.groups().len() == 1);
    // A request does not bring it back, nor does another life of the daemon.
    unit.look();
    unit.say("run");
    unit.say("wait full");
    unit.expect("bound/subject/0 version 1.0.0 failed error: offline timeout");
    unit.kill_daemon();
    unit.look();
    unit.start_daemon();
    unit.say("wait registered");
    unit.expect("bound/subject/0 version 1.0.0 failed error: offline timeout");
    // The cloud does, without a request.
    unit.look();
    unit.say("cloud up");
    unit.expect("bound/subject/0 version 1.0.0 active");
    assert_eq!(unit.pid_of("patient/subject/0"), patient);
    unit.stop_daemon();
    unit.nothing_left();
}

fn configure_node(unit: &mut Unit, version: &str, value: &str) {
    let file = unit.path("node.json");
    let json = format!(
        r#"{{"devices":[{{"name":"null","hostDevices":["/dev/null:/dev/thing"]}}],
            "resources":[{{"name":"colour","env":["COLOUR={value}"]}},{{"name":"same"}}]}}"#
    );
    write_plain(&file, json.as_bytes(), 0o600).unwrap();
    unit.look();
    unit.say(&format!("config set {} {version}", file.display()));
    unit.say("wait config");
    let line = unit.expect("<- sm  node config status");
    assert!(!line.contains("error"), "{line}");
}

#[test]
fn a_new_node_configuration_restarts_those_that_it_concerns_with_the_next_request() {
    require!(root, memory, runc, busybox);
    let mut unit = Setup::new().registered();
    configure_node(&mut unit, "1.0.0", "red");
    configured(&mut unit, "uses", r#""resources":["colour"]"#);
    configured(&mut unit, "same", r#""resources":["same"]"#);
    let device = r#""devices":[{"name":"null","permissions":"rw"}]"#;
    configured(&mut unit, "device", device);
    configured(&mut unit, "late", r#""resources":["late"]"#);
    unit.say("run");
    unit.say("wait failed late");
    unit.expect("late/subject/0 version 1.0.0 failed error: resource is not available: late");
    for id in ["uses", "same", "device"] {
        unit.say(&format!("wait active {id}"));
    }
    let pids =
        |unit: &Unit| ["uses", "same", "device"].map(|id| unit.pid_of(&format!("{id}/subject/0")));
    // Before its program has begun, a process has the environment of the runtime.
    let has_colour = |unit: &Unit, colour: &str| {
        let of_service = pids(unit)[0];
        wait_until(colour, || {
            let environment = std::fs::read(format!("/proc/{of_service}/environ")).unwrap();
            let text = String::from_utf8_lossy(&environment);
            text.split('\0').find_map(|v| v.strip_prefix("COLOUR=")) == Some(colour)
        });
    };
    let before = pids(&unit);
    has_colour(&unit, "red");
    configure_node(&mut unit, "2.0.0", "green");
    // The CM chooses the time of restarts: its next request.
    let id = unit.id_of("uses/subject/0");
    let line = unit.expect_log("from the next request on");
    assert!(line.contains(&format!("instance={id}")), "{line}");
    assert_eq!(pids(&unit), before);
    unit.say("run");
    unit.say("wait full");
    unit.say("wait active uses");
    let after = pids(&unit);
    assert_ne!(after[0], before[0]);
    assert_eq!(after[1..], before[1..]);
    has_colour(&unit, "green");
    unit.stop_daemon();
    unit.nothing_left();
}
