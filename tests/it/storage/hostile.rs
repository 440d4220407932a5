//! All hostile and damaged packages of the shared data, at once, in the running daemon.
//!
//! Between them stand good ones. Whatever becomes of the others: the daemon lives, what runs goes
//! on, the good ones are installed and start, and nothing outside of the store is touched.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::common::host;
use crate::common::image::{self, Package};
use crate::common::need::require;
use crate::common::unit::{Setup, Unit};

/// Where the packages try to get.
const VICTIM: &str = "/tmp/aos-fixture-victim";

fn packages() -> Option<PathBuf> {
    let root = match std::env::var_os("SM_TEST_DATA") {
        Some(root) => PathBuf::from(root),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/data"),
    };
    let folder = root.join("images");
    folder.is_dir().then_some(folder)
}

/// Owner, mode, links, size and time of what no package may touch.
fn untouchables(unit: &Unit) -> Vec<String> {
    unit.space.inside(|| {
        let paths = ["/etc/passwd", "/etc/shadow", "/etc/hostname", VICTIM];
        let victim = host::names(Path::new(VICTIM)).into_iter().map(|n| format!("{VICTIM}/{n}"));
        let describe = |path: String| match fs::symlink_metadata(&path) {
            Err(error) => format!("{path} {error}"),
            Ok(stat) => format!(
                "{path} {:o} {}:{} {} {} {}",
                stat.mode(),
                stat.uid(),
                stat.gid(),
                stat.nlink(),
                stat.size(),
                stat.ctime()
            ),
        };
        paths.map(str::to_owned).into_iter().chain(victim).map(describe).collect()
    })
}

fn good(unit: &mut Unit, id: &str) {
    let path = image::write(&unit.path("packages"), &format!("{id}.tar"), &Package::good().bytes());
    unit.say(&format!("service {id} package={}", path.display()));
    unit.say(&format!("instance {id}"));
}

#[test]
fn all_of_them_at_once() {
    require!(root, memory, runc, busybox);
    let Some(data) = packages() else {
        println!("SKIP all_of_them_at_once: no test data (set SM_TEST_DATA)");
        return;
    };
    // The bomb and the lies about sizes find 64 MiB.
    let setup = Setup::new().small("sm/work", 96 << 20).set("allowRootUid", "true");
    let mut unit = setup.registered();
    unit.space.mount_small(Path::new("/tmp"), 1 << 20);
    unit.space.inside(|| {
        fs::create_dir(VICTIM).unwrap();
        fs::File::create(Path::new(VICTIM).join("file")).unwrap();
    });
    good(&mut unit, "a-first");
    unit.say("run");
    unit.say("wait active a-first");
    let (daemon, first) = (unit.daemon().pid(), unit.pid_of("a-first/subject/0"));
    let before = untouchables(&unit);

    let index = fs::read(data.join("index.json")).unwrap();
    let index: Vec<Value> = serde_json::from_slice(&index).unwrap();
    let services: Vec<&Value> = index.iter().filter(|case| case["kind"] == "service").collect();
    for case in &services {
        let file = data.join(case["file"].as_str().unwrap());
        let bytes = fs::read(file).unwrap();
        let name = case["name"].as_str().unwrap();
        let path = image::write(&unit.path("packages"), &format!("{name}.tar"), &bytes);
        unit.say(&format!("service {name} package={}", path.display()));
    }
    // Sorted by name, the good ones are the first, one in the middle and the last.
    good(&mut unit, "h5-middle");
    good(&mut unit, "z-last");
    unit.say("run");
    unit.say("wait active h5-middle 60s");
    unit.say("wait active z-last 60s");
    let lines = unit.daemon().output.all();
    for case in &services {
        let (name, expect) = (case["name"].as_str().unwrap(), case["expect"].as_str().unwrap());
        let key = format!("package=\"service {name} 1.0.0\"");
        let said = |text: &str| {
            let here = |line: &&String| line.contains(text) && line.contains(&key);
            lines.iter().any(|line| here(&line))
        };
        let (installed, refused) = (said("msg=installed"), said("msg=\"cannot install\""));
        assert!(installed != refused, "{name}: installed={installed} refused={refused}");
        // The other hash is not a part of this protocol.
        if name != "wrong-sha512" {
            assert!(!(expect == "must_reject" && installed), "{name}");
            assert!(!(expect == "must_accept" && refused), "{name}");
        }
    }
    assert_eq!(unit.daemon().pid(), daemon);
    assert!(!unit.daemon_is_dead());
    assert_eq!(unit.pid_of("a-first/subject/0"), first);
    assert_eq!(untouchables(&unit), before);
    let staging = unit.installed().into_iter().filter(|name| name.starts_with('.'));
    assert_eq!(staging.count(), 0);
    unit.stop_daemon();
    unit.nothing_left();
}
