//! Devices of the host: in which forms a node configuration may name them, what is said of bad ones,
//! and what becomes of instances whose device goes away.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::PathBuf;

use aos_servicemanager::sys::fs::write_plain;

use crate::common::need::{self, require};
use crate::common::unit::{Setup, Unit, with_a_good_one};
use crate::common::wait_until;

const DEVICE: &str = "/dev/aos-test-device";

/// A node in `/dev` of the unit's own space: character device 1:3, which anybody may write to.
fn node(unit: &Unit, path: &str) -> PathBuf {
    use nix::sys::stat::{Mode, SFlag, makedev, mknod};
    let path = PathBuf::from(path);
    unit.space.inside(|| {
        let _ = fs::remove_file(&path);
        mknod(&path, SFlag::S_IFCHR, Mode::empty(), makedev(1, 3)).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).unwrap();
    });
    path
}

/// Sets a node configuration; the answer. What was printed since is what `seen` gives.
fn set(unit: &mut Unit, version: &str, json: &str) -> String {
    let file = unit.path("node.cfg");
    write_plain(&file, json.as_bytes(), 0o600).unwrap();
    unit.look();
    unit.say(&format!("config set {} {version}", file.display()));
    unit.say("wait config");
    let is_answer = |line: &String| line.contains("<- sm  node config status");
    unit.seen().into_iter().find(is_answer).unwrap()
}

#[test]
fn links_directories_and_names_of_their_own() {
    require!(root, memory, runc, busybox);
    let mut unit = Setup::new().with_own_dev().registered();
    node(&unit, DEVICE);
    unit.space.inside(|| {
        fs::create_dir("/dev/aos-test-tree").unwrap();
        symlink("aos-test-device", "/dev/aos-test-link").unwrap();
    });
    node(&unit, "/dev/aos-test-tree/inner");
    let json = r#"{"devices":[{"name":"all","hostDevices":["/dev/aos-test-device:/dev/own/name",
        "/dev/aos-test-tree:/dev/tree","/dev/aos-test-link"]}]}"#;
    let answer = set(&mut unit, "1.0.0", json);
    assert!(!answer.contains("error"), "{answer}");
    let busybox = need::program("busybox").unwrap();
    let script = "for node in /dev/own/name /dev/tree/inner /dev/aos-test-link; do \
        [ -c $node ] && echo x >$node && echo $node >>/storage/wrote; done; \
        echo all >>/storage/wrote; exec /busybox sleep 10000";
    let config = r#"config='{"devices":[{"name":"all","permissions":"rw"}]}'"#;
    unit.say(&format!(
        "service web {busybox} entrypoint=/busybox cmd=sh cmd=-c cmd='{script}' {config}"
    ));
    unit.say("instance web");
    unit.say("run");
    unit.say("wait active web");
    let wrote = unit.expect_stored("web/subject/0", "wrote", "all");
    assert_eq!(wrote, "/dev/own/name\n/dev/tree/inner\n/dev/aos-test-link\nall\n");
    unit.stop_daemon();
    unit.nothing_left();
}

#[test]
fn bad_devices_are_told_together_and_alerted_one_by_one() {
    require!(root, memory, runc, busybox);
    let mut unit = Setup::new().with_own_dev().registered();
    let json = format!(
        r#"{{"devices":[{{"name":"good","hostDevices":["/dev/null"]}},
        {{"name":"gone","hostDevices":["{DEVICE}:/dev/x"]}},
        {{"name":"closed","hostDevices":["/dev/null"],"groups":["no-such-group"]}}]}}"#
    );
    let (gone, closed) = (
        format!("gone: device {DEVICE} is not present on system"),
        "closed: no-such-group group is not present on system",
    );
    let answer = set(&mut unit, "1.0.0", &json);
    let both = format!("device resources are not valid: {gone}; {closed}");
    assert!(answer.contains(&both), "{answer}");
    // One alert for each, and none of them names another.
    let alert = |text: &str| {
        let is_alert = |line: &String| !line.contains("config status") && line.contains(text);
        unit.seen().into_iter().filter(is_alert).collect::<Vec<_>>()
    };
    wait_until("alerts", || !alert(&gone).is_empty() && !alert(closed).is_empty());
    let (of_gone, of_closed) = (alert(&gone), alert(closed));
    assert_eq!((of_gone.len(), of_closed.len()), (1, 1), "{of_gone:?} {of_closed:?}");
    assert!(!of_gone[0].contains("closed") && !of_closed[0].contains("gone"));
    // It appears later.
    node(&unit, DEVICE);
    let answer = set(&mut unit, "1.0.1", &json.replace("no-such-group", "root"));
    assert!(!answer.contains("error"), "{answer}");
    unit.stop_daemon();
    unit.nothing_left();
}

#[test]
fn a_device_that_disappears_fails_the_next_start_and_serves_again_when_it_is_back() {
    require!(root, memory, runc, busybox);
    let mut unit = Setup::new().with_own_dev().registered();
    let path = node(&unit, DEVICE);
    let file = unit.path("node.cfg");
    let json = r#"{"devices":[{"name":"thing","hostDevices":["/dev/aos-test-device:/dev/thing"]},
        {"name":"null","hostDevices":["/dev/null:/dev/other"]}]}"#;
    write_plain(&file, json.as_bytes(), 0o600).unwrap();
    unit.say(&format!("config set {} 1.0.0", file.display()));
    unit.say("wait config");
    let with = |name: &str| {
        format!(
            r#"config='{{"devices":[{{"name":"{name}","permissions":"rw"}}],
            "runParameters":{{"startInterval":"60s","restartInterval":"50ms"}}}}'"#
        )
        .replace("\n            ", "")
    };
    let busybox = need::program("busybox").unwrap();
    for (id, name, node) in [("uses", "thing", "/dev/thing"), ("other", "null", "/dev/other")] {
        unit.say(&format!(
            "service {id} {busybox} entrypoint=/busybox cmd=sh cmd=-c \
             cmd='echo x >{node} && echo wrote >/storage/wrote; exec /busybox sleep 10000' {}",
            with(name)
        ));
        unit.say(&format!("instance {id}"));
    }
    unit.say("run");
    unit.say("wait active");
    unit.expect_stored("uses/subject/0", "wrote", "wrote");
    // What runs goes on without the node; the next start needs it.
    unit.space.inside(|| fs::remove_file(&path).unwrap());
    unit.say("run");
    unit.say("wait active");
    unit.look();
    unit.say("run force");
    unit.say("wait failed uses 60s");
    let line = unit.expect("uses/subject/0 version 1.0.0 failed error: ");
    assert!(line.contains("device thing") && line.contains("/dev/aos-test-device"), "{line}");
    unit.say("wait active other");
    // A restart of the daemon tells it too, and serves the other device.
    unit.kill_daemon();
    unit.look();
    unit.start_daemon();
    unit.say("wait registered");
    unit.expect("device /dev/aos-test-device is not present on system");
    unit.say("wait active other");
    // It is back: SIGHUP is enough.
    node(&unit, DEVICE);
    unit.daemon().signal(nix::libc::SIGHUP);
    unit.say("wait active uses");
    unit.stop_daemon();
    unit.nothing_left();
}

#[test]
fn a_stored_node_configuration_that_cannot_be_used() {
    require!(root, memory, runc, busybox);
    let mut unit = with_a_good_one(Setup::new());
    let good = unit.pid_of("good/subject/0");
    unit.kill_daemon();
    let file = unit.path("sm/work/aos_node.cfg");
    write_plain(&file, b"{\"devices\": [{]", 0o600).unwrap();
    unit.look();
    unit.start_daemon();
    unit.say("wait registered");
    unit.expect("node configuration is no JSON object");
    unit.say("wait active good");
    assert_eq!(unit.pid_of("good/subject/0"), good, "adopted all the same");
    unit.stop_daemon();
    unit.nothing_left();
}
