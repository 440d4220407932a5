//! One download that goes badly, and what the rest of a request does meanwhile.

use crate::common::image::{self, Member, Package};
use crate::common::need::require;
use crate::common::unit::{Setup, Unit};
use crate::common::{host, wait_until};

/// A package too large for the buffers of a connection, and large enough to be kept.
fn large() -> Package {
    let mut word = 1_u32;
    let mut noise = Vec::with_capacity(3 << 20);
    while noise.len() < 3 << 20 {
        word = word.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        noise.extend(word.to_be_bytes());
    }
    Package::with_root(&[Member::file("noise", &noise)])
}

fn offer(unit: &mut Unit, id: &str, package: &Package) {
    let path = image::write(&unit.path("packages"), &format!("{id}.tar"), &package.bytes());
    unit.say(&format!("service {id} package={}", path.display()));
    unit.say(&format!("instance {id}"));
}

fn downloads(unit: &Unit) -> Vec<u64> {
    let dir = unit.path("sm/work/download");
    let size = |name: &String| std::fs::metadata(dir.join(name)).map_or(0, |m| m.len());
    host::names(&dir).iter().map(size).collect()
}

#[test]
fn what_is_there_starts_while_a_server_is_silent_and_a_new_request_ends_the_wait() {
    require!(root, memory, runc, busybox);
    let mut unit = Setup::new().registered();
    unit.sleeper("early");
    unit.say("run");
    unit.say("wait active early");
    unit.say("stop early");
    unit.say("wait gone early");

    offer(&mut unit, "silent", &large());
    unit.say("fault /silent.tar hang");
    unit.say("instance early");
    unit.say("run");
    // Nobody waits for the one that does not come. (The CM gets to know when all has settled.)
    wait_until("the second start", || {
        let lines = unit.daemon().output.all();
        let started = |line: &&String| line.contains("msg=started") && line.contains("early:");
        lines.iter().filter(started).count() == 2
    });
    unit.expect_log("msg=installing package=\"service silent 1.0.0\"");
    offer(&mut unit, "late", &Package::good());
    unit.look();
    // The newest request does without it: the fetch thread is free at once.
    unit.say("clear");
    offer(&mut unit, "late", &Package::good());
    unit.say("run");
    unit.expect_log("no longer wanted, giving up");
    unit.say("wait active late 20s");
    assert!(downloads(&unit).is_empty(), "{:?}", downloads(&unit));
    unit.stop_daemon();
    unit.nothing_left();
}

#[test]
fn a_silent_server_holds_the_next_package_no_longer_than_its_time_limit() {
    require!(root, memory, runc, busybox);
    let mut unit = Setup::new().registered();
    offer(&mut unit, "a-silent", &large());
    unit.say("fault /a-silent.tar hang");
    offer(&mut unit, "b-next", &Package::good());
    unit.say("run");
    unit.say("wait active b-next 80s");
    // One attempt without a byte; the other ones come behind what was not tried yet.
    let lines = unit.daemon().output.all();
    let at = |texts: [&str; 2]| {
        lines.iter().position(|line| texts.iter().all(|text| line.contains(text))).unwrap()
    };
    let failed = at(["will be tried again", "service a-silent"]);
    assert!(lines[failed].contains("no data for 30 s"), "{}", lines[failed]);
    assert!(failed < at(["msg=installing", "service b-next"]));
    unit.stop_daemon();
    unit.nothing_left();
}

#[test]
fn a_stop_does_not_wait_for_a_download() {
    require!(root, memory, runc);
    let mut unit = Setup::new().registered();
    offer(&mut unit, "silent", &large());
    unit.say("fault /silent.tar hang");
    unit.say("run");
    unit.expect_log("msg=installing package=\"service silent 1.0.0\"");
    unit.stop_daemon();
    assert!(unit.installed().iter().all(|name| !name.starts_with(".staging-")));
    unit.nothing_left();
}

#[test]
fn a_broken_download_goes_on_where_it_broke() {
    require!(root, memory, runc, busybox);
    let mut unit = Setup::new().registered();
    offer(&mut unit, "torn", &large());
    // Each connection breaks after so much, more often than one attempt puts up with.
    unit.say("fault /torn.tar break=300000");
    unit.say("run");
    unit.expect_log("will be tried again");
    wait_until("a part of the download", || downloads(&unit).iter().any(|size| *size > 0));
    unit.say("fault /torn.tar clear");
    unit.say("wait active torn");
    unit.expect_log("taking up download");
    wait_until("the end of the part", || downloads(&unit).is_empty());
    unit.stop_daemon();
    unit.nothing_left();
}
