//! SIGKILL of the daemon at each step of writing the node configuration: the next life has the old
//! one or the new one, whole, and says so.

use std::fs;
use std::path::Path;

use aos_servicemanager::sys::fs::write_plain;

use crate::common::host;
use crate::common::need::require;
use crate::common::unit::{Setup, Unit};
use crate::common::wait_until;

/// Fault points of one file: begun, written, flushed, renamed, directory flushed.
const STEPS: u64 = 5;
/// Of these the last ones come after the rename.
const AFTER_RENAME: u64 = 2;

/// Text of the stored configuration with this version.
fn document(version: u64) -> String {
    format!(r#"{{"labels":["label {version}"]"#)
}

fn stored(unit: &Unit) -> Option<String> {
    fs::read_to_string(unit.path("sm/work/aos_node.cfg")).ok()
}

fn set(unit: &mut Unit, version: u64) -> String {
    let file = unit.path("node.json");
    write_plain(&file, format!("{}}}", document(version)).as_bytes(), 0o600).unwrap();
    format!("config set {} {version}.0.0", file.display())
}

/// What the unit is told of the configuration in force.
fn reported(unit: &mut Unit) -> String {
    unit.look();
    unit.say("config get");
    unit.say("wait config");
    unit.expect("<- sm  node config status")
}

/// A life that ends at this step of storing the next version; the life after it finds the old
/// configuration or the next one, and stores that.
fn killed_at(unit: &mut Unit, step: u64, old: u64, is_replaced: bool) {
    let next = old + 1;
    let before = stored(unit);
    unit.start_daemon_with(&[("AOS_FAULT_AT", &format!("file step:{step}"))]);
    unit.say("wait registered");
    let command = set(unit, next);
    unit.try_say(&command);
    wait_until("the death", || unit.daemon_is_dead());
    unit.bury_daemon();

    let new = format!(r#"{},"version":"{next}.0.0"}}"#, document(next));
    let expect = if is_replaced { Some(new.clone()) } else { before };
    assert_eq!(stored(unit), expect, "step {step} of version {next}");
    unit.start_daemon();
    unit.say("wait registered");
    let line = reported(unit);
    let version = if is_replaced { next } else { old };
    assert!(line.contains(&format!(" version {version}.0.0")), "{line}");
    assert!(!line.contains("error"), "{line}");

    unit.say(&command);
    unit.say("wait config");
    let line = reported(unit);
    assert!(line.contains(&format!(" version {next}.0.0")), "{line}");
    assert_eq!(stored(unit), Some(new));
    let names = host::names(Path::new(&unit.path("sm/work")));
    assert!(!names.iter().any(|name| name.ends_with(".tmp")), "{names:?}");
    unit.kill_daemon();
}

#[test]
fn killed_at_each_step_of_the_first_node_configuration() {
    require!(root, memory, runc);
    for step in 1..=STEPS {
        let mut unit = Setup::new().start();
        killed_at(&mut unit, step, 0, step > STEPS - AFTER_RENAME);
    }
}

#[test]
fn killed_at_each_step_of_another_node_configuration() {
    require!(root, memory, runc);
    let mut unit = Setup::new().start();
    killed_at(&mut unit, 1, 0, false);
    // The backup is written first.
    for step in 1..=2 * STEPS {
        killed_at(&mut unit, step, step, step > 2 * STEPS - AFTER_RENAME);
    }
}
