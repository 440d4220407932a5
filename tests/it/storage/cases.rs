//! The cases of desired lists in the storage document, with the real daemon: what is kept, restored,
//! replaced and evicted.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use rusqlite::Connection;

use crate::common::host;
use crate::common::image::{self, Member, Package};
use crate::common::need::require;
use crate::common::unit::{Setup, Unit};

const MIB: usize = 1 << 20;
/// The file system with the services.
const DISK_BYTES: u64 = 80 << 20;
/// Percent of it that services may take: 8 MiB.
const LIMIT_PERCENT: &str = "10";

/// A package with busybox (two MiB) and so much more.
fn package(unit: &Unit, name: &str, more_bytes: usize) -> PathBuf {
    let content = Package::with_root(&[Member::file("more", &vec![0x5a; more_bytes])]);
    image::write(&unit.path("packages"), &format!("{name}.tar"), &content.bytes())
}

/// Makes the unit want exactly these services in these versions, each with one instance.
fn want(unit: &mut Unit, services: &[(&str, &str)]) {
    unit.say("clear");
    unit.say("network provider 10.213.0.0/24 10.213.0.1");
    for (id, version) in services {
        // As a real CM: the same user and address every time.
        let number = id.trim_start_matches('s');
        let path = unit.path("packages").join(format!("{id}-{version}.tar"));
        unit.say(&format!("service {id} version={version} package={}", path.display()));
        unit.say(&format!("instance {id} uid=600{number} ip=10.213.0.10{number}"));
    }
    unit.look();
    unit.say("run");
}

/// `id version` of all rows, with a star for those that are wanted.
fn rows(unit: &Unit) -> BTreeSet<String> {
    let path = unit.path("sm/work/servicemanager.db");
    let sql = "SELECT id || ' ' || version || iif(unused_since IS NULL, '*', '') FROM services";
    unit.space.inside(|| {
        let db = Connection::open(path).unwrap();
        let mut statement = db.prepare(sql).unwrap();
        let rows = statement.query_map([], |row| row.get(0)).unwrap();
        rows.map(Result::unwrap).collect()
    })
}

fn set(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

/// Packages that the daemon began to install so far.
fn installs(unit: &mut Unit) -> usize {
    let lines = unit.daemon().output.all();
    lines.iter().filter(|line| line.contains("msg=installing ")).count()
}

#[test]
fn kept_restored_and_updated() {
    require!(root, memory, runc, busybox);
    let mut unit = Setup::new().registered();
    for name in ["s1-1", "s2-1", "s2-2"] {
        // So that no two of them are the same.
        package(&unit, name, name.len() + usize::from(name.as_bytes()[1] + name.as_bytes()[3]));
    }
    want(&mut unit, &[("s1", "1"), ("s2", "1")]);
    unit.say("wait active");
    assert_eq!((rows(&unit), installs(&mut unit)), (set(&["s1 1*", "s2 1*"]), 2));
    let installed = unit.installed();

    want(&mut unit, &[("s2", "1")]);
    unit.say("wait gone s1");
    assert_eq!((rows(&unit), unit.installed()), (set(&["s1 1", "s2 1*"]), installed.clone()));

    want(&mut unit, &[("s1", "1"), ("s2", "1")]);
    unit.say("wait active");
    assert_eq!((rows(&unit), installs(&mut unit)), (set(&["s1 1*", "s2 1*"]), 2));
    assert_eq!(unit.installed(), installed);

    want(&mut unit, &[("s2", "2")]);
    unit.say("wait active s2");
    unit.expect("s2/subject/0 version 2 active");
    assert_eq!((rows(&unit), installs(&mut unit)), (set(&["s1 1", "s2 1", "s2 2*"]), 3));

    // A row without its directory is dropped, and the package comes again.
    unit.stop_daemon();
    let services = unit.path("sm/work/services");
    let new = unit.installed().into_iter().find(|name| !installed.contains(name)).unwrap();
    fs::remove_dir_all(services.join(new)).unwrap();
    unit.start_daemon();
    unit.say("wait registered");
    unit.expect_log("installed package is missing on disk\" package=\"service s2 2\"");
    want(&mut unit, &[("s2", "2")]);
    unit.say("wait active s2");
    assert_eq!((rows(&unit), installs(&mut unit)), (set(&["s1 1", "s2 1", "s2 2*"]), 1));
    unit.stop_daemon();
    unit.nothing_left();
}

#[test]
fn the_limit_of_services() {
    require!(root, memory, runc, busybox);
    let setup = Setup::new().small("sm/work", DISK_BYTES);
    let mut unit = setup.set("servicesPartLimit", LIMIT_PERCENT).registered();
    package(&unit, "s1-1", 5 * MIB / 2);
    package(&unit, "s2-1", 5 * MIB / 2 + 1);
    package(&unit, "s3-1", 5 * MIB);
    want(&mut unit, &[("s1", "1")]);
    unit.say("wait active s1");
    let services = unit.path("sm/work/services");
    let on_disk = |unit: &Unit| unit.space.inside(|| host::names(&services));

    // Not beside what is not needed any more: that goes.
    want(&mut unit, &[("s2", "1")]);
    unit.say("wait active s2");
    assert_eq!((rows(&unit), on_disk(&unit).len()), (set(&["s2 1*"]), 1));

    // Not beside what is needed: that stays.
    let running = unit.pid_of("s2/subject/0");
    want(&mut unit, &[("s2", "1"), ("s3", "1")]);
    unit.say("wait failed s3");
    let line = unit.expect("s3/subject/0 version 1 failed error: ");
    assert!(line.contains("not enough space"), "{line}");
    unit.expect_log("taken by services\" provider=provider services=1 size=");
    assert_eq!((rows(&unit), on_disk(&unit).len()), (set(&["s2 1*"]), 1));
    assert_eq!(unit.pid_of("s2/subject/0"), running);

    // As soon as it does not run any more, its room is used.
    want(&mut unit, &[("s3", "1")]);
    unit.say("wait active s3");
    assert_eq!((rows(&unit), on_disk(&unit).len()), (set(&["s3 1*"]), 1));
    unit.stop_daemon();
    unit.nothing_left();
}

#[test]
fn limits_of_more_than_the_whole_are_lowered_with_a_warning() {
    require!(root, memory, runc);
    let setup = Setup::new().set("servicesPartLimit", "60").set("layersPartLimit", "60");
    let mut unit = setup.registered();
    unit.expect_log("total part limit exceeds 100 %");
    unit.stop_daemon();
}
