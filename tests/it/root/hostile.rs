//! Programs that cannot run or do not behave, and what becomes of them: the status says why, the
//! others go on, nothing is left.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use aos_servicemanager::sys::fs::{make_dirs, write_plain};

use crate::common::need::{self, require};
use crate::common::unit::{Setup, Unit};
use crate::common::wait_until;

/// A service whose root file system has these files beside busybox: name, content, mode.
fn service_with(unit: &mut Unit, id: &str, files: &[(&str, &[u8], u32)], more: &str) {
    let root = unit.path("roots").join(id);
    fs::create_dir_all(&root).unwrap();
    fs::copy(need::program("busybox").unwrap(), root.join("busybox")).unwrap();
    for (name, content, mode) in files {
        let path = root.join(name);
        write_plain(&path, content, *mode).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(*mode)).unwrap();
    }
    // So that the start limit is reached on a slow machine too.
    let config = r#"{"runParameters":{"startInterval":"60s","restartInterval":"20ms"}}"#;
    unit.say(&format!("service {id} {} config='{config}' {more}", root.display()));
    unit.say(&format!("instance {id}"));
}

/// A program for the processor of this machine, whose loader is this one.
fn program_with_loader(loader: &str) -> Vec<u8> {
    let mut bytes = fs::read(need::program("busybox").unwrap()).unwrap();
    bytes.truncate(64);
    // One program header: the name of the loader.
    bytes[32..40].copy_from_slice(&64_u64.to_le_bytes());
    bytes[54..58].copy_from_slice(&[56, 0, 1, 0]);
    let mut header = [0; 56];
    header[0] = 3;
    header[8] = 64 + 56;
    header[32] = u8::try_from(loader.len() + 1).unwrap();
    for part in [&header[..], loader.as_bytes(), b"\0"] {
        bytes.extend_from_slice(part);
    }
    bytes
}

/// Programs that no kernel executes.
fn programs_that_cannot_run(mut unit: Unit) {
    let loader = program_with_loader("/no/such/loader");
    let foreign = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\xff\xff";
    // Either the runtime refuses it, or its exec fails in the container.
    let cases: [(&str, &[u8], u32, &str); 6] = [
        ("text", b"just some text\n", 0o755, "\"/program\" is neither an ELF program nor"),
        ("foreign", foreign, 0o755, "\"/program\" is for another processor"),
        ("locked", b"#!/busybox sh\n", 0o644, "ermission denied: \"/program\" is not executable"),
        ("interpreter", b"#!/no/such\n", 0o755, "the interpreter \"/no/such\" of \"/program\" is"),
        ("windows", b"#!/busybox\r\n", 0o755, "the interpreter \"/busybox\\r\" of \"/program\" is"),
        ("loader", &loader, 0o755, "the loader \"/no/such/loader\" of \"/program\" is not there"),
    ];
    for (id, content, mode, _) in cases {
        service_with(&mut unit, id, &[("program", content, mode)], "entrypoint=/program");
    }
    let refused = [
        ("directory", "/usr"),
        ("missing", "/no/such/program"),
        ("unknown", "no-such-program"),
        ("stored", "/storage/program"),
    ];
    for (id, program) in refused {
        service_with(&mut unit, id, &[], &format!("entrypoint={program}"));
    }
    let storage = unit.path("sm/storages/stored_subject_0");
    make_dirs(&storage, 0o755).unwrap();
    write_plain(&storage.join("program"), b"#!/busybox sh\n", 0o644).unwrap();
    service_with(
        &mut unit,
        "nowhere",
        &[],
        "entrypoint=/busybox cmd=sleep cmd=1000 dir=/busybox/x",
    );
    unit.sleeper("good");
    unit.say("run");
    unit.say("wait active good");
    let expect = cases.map(|(id, .., text)| (id, text)).into_iter();
    let more = [
        ("directory", "\"/usr\" is not executable"),
        ("missing", "\"/no/such/program\" is not there"),
        ("unknown", "\"no-such-program\" is in no directory of PATH"),
        // It is on what the runtime mounts: nobody else can look.
        ("stored", "\"/storage/program\""),
        ("nowhere", "directory"),
    ];
    let expect: Vec<_> = expect.chain(more).collect();
    // Until then some are tried again, which makes them active for a moment.
    wait_until("the last try of each", || {
        let lines = unit.statuses();
        let gave_up = |id: &str| {
            let line = lines.iter().find(|line| line.starts_with(&format!("{id}/")));
            line.is_some_and(|line| line.contains(" failed (start limit reached"))
        };
        expect.iter().all(|(id, _)| gave_up(id))
    });
    let lines = unit.statuses();
    for (id, text) in expect {
        let line = lines.iter().find(|line| line.starts_with(&format!("{id}/"))).unwrap();
        let reason = line.split(" failed (").nth(1).unwrap_or_default();
        assert!(reason.contains(text) && !reason.contains("no message"), "{line}");
    }
    assert!(lines.iter().any(|line| line.starts_with("good/") && line.ends_with(" active")));
    let good = unit.id_of("good/subject/0");
    wait_until("the removal of failed starts", || unit.bundles() == [good.clone()]);
    unit.stop_daemon();
    unit.nothing_left();
}

#[test]
fn programs_that_cannot_run_with_runc() {
    require!(root, memory, runc, busybox);
    programs_that_cannot_run(Setup::new().registered());
}

#[test]
fn programs_that_cannot_run_with_crun() {
    require!(root, memory, crun, busybox);
    programs_that_cannot_run(Setup::crun().registered());
}

#[test]
fn an_instance_that_ignores_its_stop_signal_is_killed() {
    require!(root, memory, runc, busybox);
    let mut unit = Setup::new().set("stopTimeout", "3s").registered();
    let script = "trap \"echo heard >>/storage/heard\" TERM; echo up >/storage/up; \
        while :; do /busybox sleep 0.05; done";
    unit.service("stubborn", script, "stop-signal=SIGTERM");
    unit.say("instance stubborn");
    unit.sleeper("good");
    unit.say("run");
    unit.say("wait active");
    unit.expect_stored("stubborn/subject/0", "up", "up");
    unit.say("stop stubborn");
    unit.say("wait gone stubborn");
    assert_eq!(unit.stored("stubborn/subject/0", "heard").as_deref(), Some("heard\n"));
    assert_eq!(unit.groups().len(), 1);
    unit.stop_daemon();
    unit.nothing_left();
}

#[test]
fn a_fork_bomb_stays_within_its_limit() {
    require!(root, memory, runc, busybox);
    let mut unit = Setup::new().registered();
    let busybox = need::program("busybox").unwrap();
    let config = r#"config='{"quotas":{"pidsLimit":24}}'"#;
    // The inner shell ends when it cannot fork any more, what it has started stays.
    let bomb = "( while :; do /busybox sleep 10000 & done ); exec /busybox sleep 10000";
    unit.say(&format!(
        "service bomb {busybox} entrypoint=/busybox cmd=sh cmd=-c cmd='{bomb}' {config}"
    ));
    unit.say("instance bomb");
    unit.sleeper("good");
    unit.say("run");
    unit.say("wait active good");
    let good = unit.pid_of("good/subject/0");
    let id = unit.id_of("bomb/subject/0");
    let processes = |unit: &Unit| {
        let groups = unit.groups();
        groups.into_iter().find(|(of, _)| *of == id).map_or(0, |(_, pids)| pids.len())
    };
    wait_until("the limit", || processes(&unit) >= 20);
    for _ in 0..50 {
        assert!(processes(&unit) <= 24);
    }
    // It can be stopped, and nobody else was hurt.
    unit.say("stop bomb");
    unit.say("wait gone bomb");
    assert_eq!(unit.pid_of("good/subject/0"), good);
    assert_eq!(unit.groups().len(), 1);
    unit.stop_daemon();
    unit.nothing_left();
}

#[test]
fn an_instance_that_eats_memory_for_ever_ends_at_its_start_limit() {
    require!(root, memory, runc, busybox);
    let mut unit = Setup::new().registered();
    let busybox = need::program("busybox").unwrap();
    let config = r#"config='{"quotas":{"ramLimit":16777216},
        "runParameters":{"startInterval":"60s","restartInterval":"50ms"}}'"#;
    unit.say(&format!(
        "service eater {busybox} entrypoint=/busybox cmd=dd cmd=if=/dev/zero cmd=of=/dev/null \
         cmd=bs=64M cmd=count=1 {}",
        config.replace("\n        ", "")
    ));
    unit.say("instance eater");
    unit.sleeper("good");
    unit.look();
    unit.say("run");
    let line = unit.expect("failed error: start limit reached");
    assert!(line.contains("out of memory") && line.contains("(exit code 137)"), "{line}");
    unit.say("wait active good");
    unit.stop_daemon();
    unit.nothing_left();
}

#[test]
fn two_hundred_and_fifty_six_instances_at_once() {
    require!(root, memory, runc, busybox);
    const COUNT: usize = 256;
    let mut unit = Setup::new().registered();
    unit.service("web", "exec /busybox sleep 10000", "");
    unit.say("network provider 10.214.0.0/16 10.214.0.1");
    for index in 0..COUNT {
        let address = format!("10.214.{}.{}", 1 + index / 250, 1 + index % 250);
        unit.say(&format!("instance web index={index} uid={} ip={address}", 5000 + index));
    }
    unit.say("run");
    unit.say("wait active 80s");
    let all = unit.groups();
    assert_eq!(all.len(), COUNT);
    assert!(all.iter().all(|(_, pids)| pids.len() == 1));
    assert_eq!(unit.space.network_namespaces().len(), COUNT);
    // A crash of the daemon restarts none of them.
    unit.kill_daemon();
    unit.look();
    unit.start_daemon();
    unit.say("wait registered");
    unit.expect(&format!("full status: {COUNT} instances"));
    unit.say("wait active 60s");
    assert_eq!(unit.groups(), all);
    unit.say("stop");
    unit.say("wait gone 80s");
    unit.nothing_left();
    unit.stop_daemon();
    unit.nothing_left();
}
