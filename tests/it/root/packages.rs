//! Packages that must not be installed, and what becomes of the others meanwhile.

use std::fs;
use std::io::Write;
use std::path::Path;

use crate::common::host;
use crate::common::image::{self, Member, Package};
use crate::common::need::require;
use crate::common::unit::{Setup, Unit, with_a_good_one};
use crate::common::wait_until;

/// Offers a package, and spoils the file afterwards.
fn offer(unit: &mut Unit, id: &str, bytes: &[u8], spoil: impl FnOnce(&Path)) {
    let path = image::write(&unit.path("packages"), &format!("{id}.tar"), bytes);
    unit.say(&format!("service {id} package={}", path.display()));
    unit.say(&format!("instance {id}"));
    spoil(&path);
}

/// The service cannot be installed, for this reason; the good one does not notice and nothing of
/// the bad one is left.
fn is_refused(unit: &mut Unit, id: &str, reason: &str) {
    let good = unit.pid_of("good/subject/0");
    let before = (images(unit), outside(unit));
    unit.look();
    unit.say("run");
    unit.say(&format!("wait failed {id}"));
    let line = unit.expect(&format!("{id}/subject/0 version 1.0.0 failed error: "));
    assert!(line.contains(reason), "{id}: {reason:?} is missing in {line}");
    assert_eq!(unit.pid_of("good/subject/0"), good, "{id}");
    unit.say("wait active good");
    assert_eq!((images(unit), outside(unit)), before, "{id}");
    // What has arrived may be of use to the next attempt.
    let kept = host::tree(&unit.path("sm/work/download"));
    assert!(kept.iter().all(|name| name.ends_with(".part")), "{id}: {kept:?}");
    unit.say(&format!("stop {id}"));
    unit.say(&format!("wait gone {id}"));
}

/// Installed images, once nothing is being installed: the unit goes on naming every service, so
/// each request makes the daemon try the bad ones again.
fn images(unit: &Unit) -> Vec<String> {
    let mut names = Vec::new();
    wait_until("the end of the installs", || {
        names = unit.installed();
        !names.iter().any(|name| name.starts_with(".staging-"))
    });
    names
}

/// Where a member that leaves its directory would appear.
fn outside(unit: &Unit) -> Vec<String> {
    let all = host::tree(&unit.path("sm"));
    all.into_iter().filter(|path| path.contains("escape")).collect()
}

#[test]
fn damaged_packages() {
    require!(root, memory, runc, busybox);
    let mut unit = with_a_good_one(Setup::new());
    let package = Package::good().bytes();

    offer(&mut unit, "longer", &package, |path| {
        fs::OpenOptions::new().append(true).open(path).unwrap().write_all(b"more").unwrap();
    });
    is_refused(&mut unit, "longer", "size mismatch");
    offer(&mut unit, "altered", &package, |path| {
        let mut bytes = fs::read(path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::File::create(path).unwrap().write_all(&bytes).unwrap();
    });
    is_refused(&mut unit, "altered", "mismatch");
    let packed = image::gzip(&package);
    offer(&mut unit, "cut", &packed[..packed.len() * 2 / 3], |_| {});
    is_refused(&mut unit, "cut", "malformed");
    offer(&mut unit, "text", b"this is no archive", |_| {});
    is_refused(&mut unit, "text", "malformed");
    offer(&mut unit, "absent", &package, |path| fs::remove_file(path).unwrap());
    is_refused(&mut unit, "absent", "404");

    let without_blob = Package { with_root_blob: false, ..Package::good() };
    offer(&mut unit, "blobless", &without_blob.bytes(), |_| {});
    is_refused(&mut unit, "blobless", "is missing");
    let without_layers = Package { with_layers: false, ..Package::good() };
    offer(&mut unit, "layerless", &without_layers.bytes(), |_| {});
    is_refused(&mut unit, "layerless", "no layers in image");

    // The same content, undamaged, is welcome.
    offer(&mut unit, "sound", &packed, |_| {});
    unit.say("run");
    unit.say("wait active sound");
    unit.stop_daemon();
    unit.nothing_left();
}

#[test]
fn a_server_that_does_not_deliver() {
    require!(root, memory, runc, busybox);
    let mut unit = with_a_good_one(Setup::new());
    let package = Package::good().bytes();
    offer(&mut unit, "late", &package, |_| {});
    unit.say("fault /late.tar status=503");
    is_refused(&mut unit, "late", "503");
    // Again and again less than the whole of it.
    unit.say("fault /late.tar break=1000");
    unit.say("instance late");
    is_refused(&mut unit, "late", "the connection ended after");
    unit.say("fault /late.tar clear");
    unit.say("instance late");
    unit.say("run");
    unit.say("wait active late");
    unit.stop_daemon();
    unit.nothing_left();
}

#[test]
fn hostile_packages() {
    require!(root, memory, runc, busybox);
    let mut unit = with_a_good_one(Setup::new());
    let victim = unit.path("sm/victim");
    fs::create_dir(&victim).unwrap();
    let target = victim.to_str().unwrap().to_owned();
    let escape = |name: &str| Member::file(name, b"escaped");
    let absolute = format!("{target}/escape");

    let mut check = |id: &str, package: &Package, reason: &str| {
        offer(&mut unit, id, &package.bytes(), |_| {});
        is_refused(&mut unit, id, reason);
        assert!(host::names(&victim).is_empty(), "{id}");
    };
    check("dotdot", &Package::with_root(&[escape("../escape")]), "refused");
    check("inner", &Package::with_root(&[escape("a/../../escape")]), "refused");
    check("absolute", &Package::with_root(&[escape(&absolute)]), "refused");
    let device = Package::with_root(&[Member::device("null")]);
    check("device", &device, "refused");
    let outer = Package { extra: vec![escape("../escape")], ..Package::good() };
    check("outer", &outer, "refused");

    // A link may lead anywhere, but nothing is written through it: both outcomes are right.
    let through = [Member::symlink("d", &target), escape("d/escape")];
    offer(&mut unit, "through", &Package::with_root(&through).bytes(), |_| {});
    unit.say("run");
    unit.say("wait full");
    assert!(host::names(&victim).is_empty(), "something was written through a link");
    unit.say("wait active good");
    unit.stop_daemon();
    unit.nothing_left();
}

#[test]
fn what_the_cm_names_but_does_not_exist() {
    require!(root, memory, runc, busybox);
    let mut unit = with_a_good_one(Setup::new());
    let good = unit.pid_of("good/subject/0");
    unit.say("instance nothing");
    unit.say("run");
    unit.say("wait failed nothing");
    unit.expect("nothing/subject/0 version  failed error: service not exist");
    unit.say("stop nothing");

    let digest = format!("sha256:{}", "a5".repeat(32));
    unit.service("layered", "exec /busybox sleep 10000", &format!("layer={digest}"));
    unit.say("instance layered");
    unit.say("run");
    unit.say("wait failed layered");
    unit.expect("layered/subject/0 version 1.0.0 failed error: layer does not exist");
    assert_eq!(unit.pid_of("good/subject/0"), good);
    unit.say("wait active good");
    unit.stop_daemon();
    unit.nothing_left();
}

#[test]
fn an_instance_named_twice_runs_once() {
    use aos_servicemanager::cm::wire::v4::{common, servicemanager as wire};

    require!(root, memory, runc, busybox);
    let mut unit = with_a_good_one(Setup::new());
    let mut ident = common::InstanceIdent::new();
    (ident.service_id, ident.subject_id) = ("good".into(), "subject".into());
    let mut run = wire::RunInstances::new();
    for uid in [5000, 5001] {
        let mut instance = wire::InstanceInfo::new();
        instance.instance = Some(ident.clone()).into();
        instance.uid = uid;
        run.instances.push(instance);
    }
    let mut message = wire::SMIncomingMessages::new();
    message.set_run_instances(run);
    unit.look();
    unit.send(&message);
    // The request names no service, but the installed one is still there.
    unit.expect("full status: 1 instances");
    let groups = unit.groups();
    assert!(groups.len() <= 1, "{groups:?}");
    unit.stop_daemon();
    unit.nothing_left();
}

#[test]
fn a_full_disk() {
    require!(root, memory, runc, busybox);
    const SMALL: u64 = 24 << 20;
    let setup = Setup::new().small("sm/small", SMALL);
    let mut unit = setup.flag("--set").flag("servicesDir=PLACEHOLDER").start();
    // The configuration names a directory on the small file system.
    let small = unit.path("sm/small");
    let config = fs::read_to_string(unit.config()).unwrap();
    let config = config.replace("PLACEHOLDER", small.join("services").to_str().unwrap());
    fs::File::create(unit.config()).unwrap().write_all(config.as_bytes()).unwrap();
    unit.start_daemon();
    unit.say("wait registered");
    unit.sleeper("good");
    unit.say("run");
    unit.say("wait active good");

    let names = |unit: &Unit| unit.space.inside(|| host::tree(&small));
    let before = names(&unit);
    let big = Package::with_root(&[Member::file("big", &vec![0x5a; 32 << 20])]);
    offer(&mut unit, "big", &big.bytes(), |_| {});
    unit.look();
    unit.say("run");
    unit.say("wait failed big");
    let line = unit.expect("big/subject/0 version 1.0.0 failed error: ");
    assert!(line.contains("space"), "{line}");
    assert_eq!(names(&unit), before);
    unit.say("stop big");
    unit.say("wait active good");
    unit.stop_daemon();
    unit.nothing_left();
}
