//! Databases that cannot be used: the daemon sets them aside, begins with an empty one, and what
//! the CM asks for next makes it whole again.

use std::fs;

use crate::common::need::require;
use crate::common::unit::Setup;

#[test]
fn a_damaged_database_is_set_aside() {
    require!(root, memory, runc);
    for damage in [b"this is no database".as_slice(), &[0xff; 8192], b""] {
        let mut unit = Setup::new().start();
        let path = unit.path("sm/work/servicemanager.db");
        fs::File::create(&path)
            .and_then(|mut file| std::io::Write::write_all(&mut file, damage))
            .unwrap();
        unit.start_daemon();
        unit.say("wait registered");
        unit.look();
        if !damage.is_empty() {
            let broken = fs::read(path.with_extension("db.broken")).unwrap();
            assert_eq!(broken, damage);
        }
        unit.say("config get");
        unit.say("wait config");
        unit.stop_daemon();
        let header = fs::read(&path).unwrap();
        assert!(header.starts_with(b"SQLite format 3\0"));
    }
}

#[test]
fn a_database_that_breaks_between_two_lives_is_rebuilt_from_the_request() {
    require!(root, memory, runc, busybox);
    let mut unit = Setup::new().registered();
    unit.sleeper("one");
    unit.say("run");
    unit.say("wait active one");
    unit.stop_daemon();
    unit.nothing_left();
    let path = unit.path("sm/work/servicemanager.db");
    let mut bytes = fs::read(&path).unwrap();
    bytes.iter_mut().skip(100).for_each(|byte| *byte = 0x5a);
    fs::File::create(&path)
        .and_then(|mut file| std::io::Write::write_all(&mut file, &bytes))
        .unwrap();
    unit.start_daemon();
    unit.say("wait registered");
    unit.expect("full status: 0 instances");
    unit.say("run");
    unit.say("wait active one");
    unit.stop_daemon();
    unit.nothing_left();
}
