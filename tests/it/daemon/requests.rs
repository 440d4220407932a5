//! What the CM asks, and what it gets: registration, node configuration, figures, logs and
//! variables, also too much of them, and messages that nobody should send.

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;

use aos_servicemanager::cm::wire::v4::{common, servicemanager as wire};
use aos_servicemanager::logs::serve;

use crate::common::need::require;
use crate::common::unit::Setup;

#[test]
fn registration_and_an_empty_full_status() {
    require!(root, memory, runc);
    let mut unit = Setup::new().registered();
    unit.expect("node config status: node node0 type main version 0.0.0");
    unit.expect("full status: 0 instances");
    let links = unit.seen().iter().filter(|line| line.contains("stream 1 from")).count();
    assert_eq!(links, 0, "one stream is enough");
    unit.say("run");
    unit.say("wait full");
    unit.stop_daemon();
    unit.expect("stream 1 closed");
    unit.no_links_left();
}

#[test]
fn node_configuration() {
    require!(root, memory, runc);
    let mut unit = Setup::new().registered();
    unit.expect("full status");
    let file = unit.path("node.json");
    let set = |unit: &mut crate::common::unit::Unit, command: &str, content: &str| {
        fs::File::create(&file).and_then(|mut f| f.write_all(content.as_bytes())).unwrap();
        unit.say(&command.replace("FILE", file.to_str().unwrap()));
        unit.say("wait config");
        unit.expect("<- sm  node config status")
    };
    let good = r#"{"nodeType": "main", "priority": 5}"#;
    // An answer has the error and nothing else.
    let nothing = "node config status: node  type  version ";
    let line = set(&mut unit, "config check FILE 1.0.0", good);
    assert!(line.ends_with(nothing), "{line}");
    let line = set(&mut unit, "config set FILE 1.0.0", good);
    assert!(line.ends_with(nothing), "{line}");
    let line = set(&mut unit, "config get", good);
    assert!(
        line.contains("node node0 type main version 1.0.0") && !line.contains("error"),
        "{line}"
    );

    let line = set(&mut unit, "config check FILE 2.0.0", "{not json");
    assert!(line.contains(nothing) && line.contains("error: "), "{line}");
    let line = set(&mut unit, "config set FILE 2.0.0", r#"{"nodeType": 5}"#);
    assert!(line.contains(nothing) && line.contains("error: "), "{line}");
    assert!(line.contains("nodeType"), "{line}");
    let line = set(&mut unit, "config get", good);
    assert!(line.contains("version 1.0.0"), "{line}");

    // What a CM sends when it has nothing for this node; and a version that is not the message's.
    for (json, version) in [(r#"{"nodeType": ""}"#, "3.0.0"), (r#"{"version": "9.9.9"}"#, "1.0.0")]
    {
        let line = set(&mut unit, &format!("config set FILE {version}"), json);
        assert!(line.ends_with(nothing), "{line}");
        let line = set(&mut unit, "config get", json);
        assert!(line.ends_with(&format!("version {version}")), "{line}");
    }

    // It is there in the next life too.
    unit.kill_daemon();
    unit.look();
    unit.start_daemon();
    unit.say("wait registered");
    unit.expect("node config status: node node0 type main version 1.0.0");
    unit.stop_daemon();
}

#[test]
fn monitoring_logs_and_variables() {
    require!(root, memory, runc);
    let mut unit = Setup::new().set("monitoring.pollPeriod", "1s").registered();
    unit.say("stats");
    unit.say("wait stats");
    let line = unit.expect("average monitoring: node ram ");
    assert!(line.contains("cpu") && line.contains("workdirs"), "{line}");

    unit.say("logs nobody");
    unit.say("wait logs");
    unit.expect("log log-1 part 1/1 status ");
    unit.say("logs crash nobody");
    unit.say("wait logs");
    unit.expect("log log-2 part 1/1 status ");
    unit.say("logs system");
    unit.say("wait logs");
    unit.expect("log log-3 part 1/");

    unit.say("env nobody A=1 B=2");
    unit.say("wait env");
    unit.expect("override env var status");
    unit.expect("nobody/*/* A ok");
    unit.expect("nobody/*/* B ok");
    unit.say("env clear");
    unit.say("wait env");
    unit.say("cloud down");
    unit.say("cloud up");
    unit.stop_daemon();
}

/// While one is served, the next ones wait; what is beyond that is answered at once.
#[test]
fn too_many_log_requests_are_refused() {
    require!(root, memory, runc);
    let mut unit = Setup::new().set("logging.backend", "journal").start();
    // A journal that never answers, for as long as the daemon lives.
    let program = unit.path("programs/journalctl");
    fs::create_dir(program.parent().unwrap()).unwrap();
    let script = b"#!/bin/sh\nwhile kill -0 $PPID; do sleep 0.1; done\n";
    fs::File::create(&program).and_then(|mut file| file.write_all(script)).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let path = format!("{}:{}", program.parent().unwrap().display(), env!("PATH"));
    unit.start_daemon_with(&[("PATH", &path)]);
    unit.say("wait registered");
    for _ in 0..serve::INBOX + 2 {
        unit.say("logs system");
    }
    unit.expect("too many log requests at a time");
    unit.say("config get");
    unit.say("wait config");
    unit.kill_daemon();
}

#[test]
fn garbage_and_unknown_messages_do_no_harm() {
    require!(root, memory, runc);
    let mut unit = Setup::new().registered();
    for bytes in [
        "",                             // no member of the oneof
        "fa3f00",                       // an unknown member of the oneof, empty
        "fa3f03616263",                 // and with content
        "ff",                           // cut off
        "0a05",                         // a length without content
        "ffffffffffffffffffffffffffff", // no field number
    ] {
        unit.say("wait registered");
        // The empty message has no digits.
        unit.say(&format!("raw {}", if bytes.is_empty() { "''" } else { bytes }));
        unit.look();
        // Either the stream goes on, or the next one does.
        unit.say("wait registered");
    }
    let mut message = wire::SMIncomingMessages::new();
    let mut run = wire::RunInstances::new();
    let mut broken = wire::InstanceInfo::new();
    broken.storage_path = "../../../etc".into();
    broken.instance = Some(common::InstanceIdent::new()).into();
    run.instances.push(broken);
    run.instances.push(wire::InstanceInfo::new()); // without an ident
    message.set_run_instances(run);
    unit.look();
    unit.send(&message);
    unit.expect("full status");
    unit.say("config get");
    unit.say("wait config");
    unit.stop_daemon();
}

#[test]
fn a_thousand_instances_of_nothing() {
    require!(root, memory, runc);
    let mut unit = Setup::new().registered();
    unit.say("instance nothing count=1000 ip=none");
    unit.say("run");
    unit.say("wait failed nothing");
    unit.expect("full status: 1000 instances");
    unit.expect("nothing/subject/0 version  failed error: service not exist");
    unit.say("stop");
    unit.say("wait gone");
    unit.stop_daemon();
    unit.no_links_left();
}

#[test]
fn instances_above_the_limit_are_refused_one_by_one() {
    require!(root, memory, runc);
    let mut unit = Setup::new().set("maxInstances", "2").registered();
    unit.say("instance nothing count=5 ip=none");
    unit.say("run");
    unit.say("wait failed nothing");
    let lines = unit.seen();
    let count = |text: &str| lines.iter().filter(|line| line.contains(text)).count();
    assert_eq!(count("failed error: more than 2 instances"), 3, "{lines:?}");
    assert_eq!(count("failed error: service not exist"), 2, "{lines:?}");
    unit.stop_daemon();
}
