//! Runtimes that are missing, fail, or hang: the status says so, nothing else waits for them, and
//! when they work again so does the instance.

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::common::need::{self, require};
use crate::common::unit::{Setup, Unit};
use crate::common::wait_until;

/// A program that stands before the real runtime: it does `instead` for one of its commands.
fn wrapper(dir: &Path, command: &str, instead: &str) -> PathBuf {
    let runc = need::program("runc").unwrap();
    let path = dir.join("runtime.sh");
    let script = format!(
        "#!/bin/sh\nfor word in \"$@\"; do\n  [ \"$before\" = --log ] && log=$word\n  \
         before=$word\n  if [ \"$word\" = {command} ] && [ ! -e {}/good ]; then {instead}; fi\n\
         done\nexec {runc} \"$@\"\n",
        dir.display()
    );
    fs::File::create(&path).unwrap().write_all(script.as_bytes()).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path
}

/// A unit whose runtime is a wrapper, and the directory in which a file `good` repairs it.
fn wrapped(command: &str, instead: &str) -> (Unit, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let runtime = wrapper(dir.path(), command, instead);
    (Setup::new().set("runtime", runtime.to_str().unwrap()).registered(), dir)
}

/// What is said of an instance that has had its only try.
const GIVEN_UP: &str = "one/subject/0 version 1.0.0 failed error: start limit reached";

#[test]
fn a_missing_runtime() {
    require!(root, memory, busybox);
    let mut unit = Setup::new().set("runtime", "/nonexistent/runc").registered();
    unit.sleeper_with_one_try("one");
    unit.say("run");
    let line = unit.expect(GIVEN_UP);
    assert!(line.contains("/nonexistent/runc"), "{line}");
    unit.say("config get");
    unit.say("wait config");
    wait_until("the removal of a failed start", || unit.bundles().is_empty());
    unit.nothing_left();
    unit.stop_daemon();
    unit.nothing_left();
}

#[test]
fn a_runtime_that_fails() {
    require!(root, memory, runc, busybox);
    let (mut unit, dir) = wrapped(
        "create",
        "echo '{\"level\":\"error\",\"msg\":\"the moon is in the way\"}' >$log; exit 3",
    );
    unit.sleeper_with_one_try("one");
    unit.say("run");
    let line = unit.expect(GIVEN_UP);
    assert!(line.contains("the moon is in the way"), "{line}");
    wait_until("the removal of a failed start", || unit.bundles().is_empty());
    unit.nothing_left();

    fs::File::create(dir.path().join("good")).unwrap();
    unit.say("run");
    unit.say("wait active one");
    unit.stop_daemon();
    unit.nothing_left();
}

#[test]
fn a_runtime_that_fails_to_start_what_it_created() {
    require!(root, memory, runc, busybox);
    let (mut unit, dir) = wrapped("start", "echo '{\"msg\":\"no start today\"}' >$log; exit 1");
    unit.sleeper_with_one_try("one");
    unit.say("run");
    let line = unit.expect(GIVEN_UP);
    assert!(line.contains("no start today"), "{line}");
    wait_until("the removal of a failed start", || unit.bundles().is_empty());
    unit.nothing_left();
    fs::File::create(dir.path().join("good")).unwrap();
    unit.say("run");
    unit.say("wait active one");
    unit.stop_daemon();
    unit.nothing_left();
}

#[test]
fn a_runtime_that_hangs() {
    require!(root, memory, runc, busybox);
    // The sleeping child has the output too: only the whole process group ends it.
    let (mut unit, dir) = wrapped("create", "sleep 10000");
    unit.sleeper_with_one_try("one");
    unit.say("run");
    // Nothing else waits for it.
    unit.say("config get");
    unit.say("wait config");
    unit.expect(GIVEN_UP);
    wait_until("the removal of a failed start", || unit.bundles().is_empty());
    unit.nothing_left();
    fs::File::create(dir.path().join("good")).unwrap();
    // A request makes it try again at once, although its limit is reached.
    unit.say("run");
    unit.say("wait active one");
    unit.stop_daemon();
    unit.nothing_left();
}

#[test]
fn a_runtime_that_hangs_at_the_start_of_what_it_created() {
    require!(root, memory, runc, busybox);
    let (mut unit, dir) = wrapped("start", "sleep 10000");
    unit.sleeper_with_one_try("one");
    unit.sleeper("other");
    unit.say("run");
    unit.say("wait failed one 60s");
    let line = unit.expect("one/subject/0 version 1.0.0 failed error: ");
    assert!(line.contains("start took longer than 10s"), "{line}");
    fs::File::create(dir.path().join("good")).unwrap();
    unit.say("run");
    unit.say("wait active");
    unit.stop_daemon();
    unit.nothing_left();
}

#[test]
fn a_runtime_that_hangs_when_it_deletes() {
    require!(root, memory, runc, busybox);
    let (mut unit, _dir) = wrapped("delete", "sleep 10000");
    unit.sleeper("one");
    unit.say("run");
    unit.say("wait active one");
    // Its help is not needed: the control group is the authority.
    unit.say("stop");
    unit.say("wait gone 60s");
    unit.nothing_left();
    unit.say("instance one");
    unit.say("run");
    unit.say("wait active one 60s");
    unit.stop_daemon();
    unit.nothing_left();
}

#[test]
fn a_runtime_that_complains_on_its_error_output_only() {
    require!(root, memory, runc, busybox);
    for command in ["create", "start"] {
        let (mut unit, _dir) =
            wrapped(command, "echo a library is missing >&2; echo so it goes >&2; exit 127");
        unit.sleeper("one");
        unit.say("run");
        unit.say("wait failed one");
        let line = unit.expect("one/subject/0 version 1.0.0 failed error: ");
        // Whoever comes first, the start or the log thread, has the words.
        let (words, elsewhere) = ("a library is missing; so it goes", "in the log of the instance");
        assert!(line.contains(words) || line.contains(elsewhere), "{line}");
        unit.stop_daemon();
        unit.nothing_left();
    }
}

#[test]
fn a_program_that_does_not_exist() {
    require!(root, memory, runc, busybox);
    let mut unit = Setup::new().registered();
    let busybox = need::program("busybox").unwrap();
    let config = crate::common::unit::QUICK;
    unit.say(&format!("service one {busybox} entrypoint=/nonexistent config='{config}'"));
    unit.say("instance one");
    unit.sleeper("good");
    unit.say("run");
    unit.say("wait failed one");
    let line = unit.expect("one/subject/0 version 1.0.0 failed error: ");
    assert!(line.contains("/nonexistent"), "{line}");
    unit.say("wait active good");
    unit.stop_daemon();
    unit.nothing_left();
}
