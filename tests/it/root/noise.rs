//! Instances and peers that make capture and alerts difficult: output opened by its path, floods, an
//! outage longer than the spool, a stream to the CM that fails, messages of the kernel.

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;

use aos_servicemanager::sys::fs::write_plain;
use nix::libc;

use super::logs::{CRASHES, Journald, SOCKETS, has, logs_with, with_journal};
use crate::common::need::{self, require};
use crate::common::unit::{Setup, Unit};
use crate::common::{host, program, wait_until};

/// Starts one instance of a service that is busybox with this script.
fn start(unit: &mut Unit, service: &str, script: &str) {
    unit.service(service, script, "");
    unit.say(&format!("instance {service}"));
    unit.say("run");
    unit.say(&format!("wait active {service}"));
}

/// What a script waits for with `until [ -e /storage/<word> ]`.
fn tell(unit: &Unit, service: &str, word: &str) {
    let file = unit.path("sm/storages").join(format!("{service}_subject_0")).join(word);
    write_plain(&file, b"", 0o644).unwrap();
}

fn until(word: &str) -> String {
    format!("until [ -e /storage/{word} ]; do /busybox usleep 20000; done")
}

/// Alerts of all kinds that have this text.
fn alerts(unit: &Unit, text: &str) -> Vec<String> {
    let mut lines = unit.seen();
    lines
        .retain(|line| line.contains("<- sm  ") && line.contains("Alert: ") && line.contains(text));
    lines
}

#[test]
fn output_is_opened_by_its_path() {
    require!(root, memory, runc, busybox);
    let mut unit = Setup::new().registered();
    let script = [
        "echo user $(/busybox id -u), a line that is longer than the next one",
        &until("anew"),
        "echo written anew > /dev/stdout",
        "echo appended >> /dev/stdout",
        "echo added as error >> /dev/stderr",
        &until("a"),
        // Each as long as the one before it.
        "echo tick a > /dev/stdout",
        &until("b"),
        "echo tick b > /dev/stdout",
        &until("c"),
        "echo tick c > /dev/stdout",
        &until("end"),
        "echo as at first",
        "exec /busybox sleep 10000",
    ];
    start(&mut unit, "web", &script.join("; "));
    let pid = unit.pid_of("web/subject/0");
    let lines = logs_with(&mut unit, "web", " user ");
    assert!(!has(&lines, " user 0,"), "{lines:?}");
    tell(&unit, "web", "anew");
    let lines = logs_with(&mut unit, "web", "added as error");
    for text in ["written anew", " appended ", "output was lost: the output was truncated"] {
        assert!(has(&lines, text), "{text}: {lines:?}");
    }
    for word in ["a", "b", "c"] {
        tell(&unit, "web", word);
        logs_with(&mut unit, "web", &format!(" tick {word} "));
    }
    tell(&unit, "web", "end");
    let lines = logs_with(&mut unit, "web", " as at first ");
    let count = |text: &str| lines.iter().filter(|line| line.contains(text)).count();
    for text in [" user ", "written anew", " appended ", "tick a", "tick b", "tick c"] {
        assert_eq!(count(text), 1, "{text}: {lines:?}");
    }
    assert_eq!(unit.pid_of("web/subject/0"), pid);
    unit.stop_daemon();
    unit.nothing_left();
}

#[test]
fn an_outage_that_is_longer_than_the_spool() {
    require!(root, memory, runc, busybox);
    let mut unit = Setup::new().registered();
    let filler = "x".repeat(100);
    let script = [
        "echo the first line",
        &until("go"),
        &format!("i=0; while echo number $i {filler}; do i=$((i+1)); done"),
        "echo it is full > /storage/full",
        &until("end"),
        "echo the last line",
        "exec /busybox sleep 10000",
    ];
    start(&mut unit, "web", &script.join("; "));
    let before = unit.pid_of("web/subject/0");
    logs_with(&mut unit, "web", "the first line");
    unit.kill_daemon();
    tell(&unit, "web", "go");
    // It neither waits nor dies.
    unit.expect_stored("web/subject/0", "full", "it is full");
    unit.start_daemon();
    unit.say("wait registered");
    logs_with(&mut unit, "web", "output was lost: the spool was full");
    tell(&unit, "web", "end");
    let lines = logs_with(&mut unit, "web", "the last line");
    for text in ["the first line", "were written while nothing captured them", " number 1000 x"] {
        assert!(has(&lines, text), "{text}");
    }
    assert_eq!(unit.pid_of("web/subject/0"), before);
    unit.stop_daemon();
    unit.nothing_left();
}

/// Lines between two moments of a daemon; a spool has room for them.
const PHASE_LINES: u32 = 25_000;
/// What a spool holds at most, by default.
const SPOOL_BYTES: u64 = 256 << 10;

/// What of it may wait for its turn.
const DRAINED_BYTES: u64 = SPOOL_BYTES / 8;

/// Memory that the spools of all instances take.
fn spooled_bytes(unit: &Unit) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let spools = unit.path("run/log");
    unit.space.inside(|| {
        let files = host::tree(&spools).into_iter().map(|path| spools.join(path));
        let files = files.filter_map(|path| fs::metadata(path).ok());
        files.filter(|file| file.is_file()).map(|file| file.blocks() * 512).sum()
    })
}

/// Lets the instance write the lines of one phase; it waits for nobody, nor takes too much.
fn write_lines(unit: &Unit, phase: u32) {
    tell(unit, "web", &format!("go{phase}"));
    unit.expect_stored("web/subject/0", &format!("done{phase}"), "done");
    assert!(spooled_bytes(unit) <= SPOOL_BYTES);
}

#[test]
fn a_hundred_thousand_lines_while_the_daemon_stands_still_or_is_gone() {
    require!(root, memory, runc, busybox);
    let mut unit = Setup::new().registered();
    let phases = (1..=4).map(|phase| {
        let (first, last) = ((phase - 1) * PHASE_LINES + 1, phase * PHASE_LINES);
        let wait = until(&format!("go{phase}"));
        format!("{wait}; /busybox seq {first} {last}; echo done >/storage/done{phase}")
    });
    let script: Vec<String> = phases.collect();
    start(&mut unit, "web", &format!("{}; exec /busybox sleep 10000", script.join("; ")));
    let before = unit.pid_of("web/subject/0");
    let drained = |unit: &Unit| {
        wait_until("an empty spool", || spooled_bytes(unit) <= DRAINED_BYTES);
    };

    unit.daemon().signal(libc::SIGSTOP);
    write_lines(&unit, 1);
    unit.daemon().signal(libc::SIGCONT);
    drained(&unit);
    unit.kill_daemon();
    write_lines(&unit, 2);
    unit.start_daemon();
    unit.say("wait registered");
    drained(&unit);
    write_lines(&unit, 3);
    drained(&unit);
    unit.kill_daemon();
    write_lines(&unit, 4);
    unit.start_daemon();
    unit.say("wait registered");
    drained(&unit);

    let lines = logs_with(&mut unit, "web", &format!(" {} ", 4 * PHASE_LINES));
    let last_word = |line: &String| line.split_whitespace().last()?.parse().ok();
    let found: BTreeSet<u32> = lines.iter().filter_map(last_word).collect();
    let missing: Vec<u32> = (1..=4 * PHASE_LINES).filter(|n| !found.contains(n)).collect();
    assert!(missing.is_empty(), "{} lines, from {:?} on", missing.len(), missing.first());
    assert_eq!(unit.pid_of("web/subject/0"), before);
    unit.stop_daemon();
    unit.nothing_left();
}

/// Words instead of numbers, which would be taken for repetitions.
fn a_flood_of_errors(mut unit: Unit) -> Unit {
    let digits = "a b c d e f g h i j";
    let script = format!(
        "{}; for a in {digits}; do for b in {digits}; do for c in {digits}; do for d in {digits}; \
         do echo \"<3>flood $a$b$c$d\"; done; done; done; done; echo done > /storage/done; \
         exec /busybox sleep 10000",
        until("go")
    );
    start(&mut unit, "loud", &script);
    let quiet = format!("{}; echo \"<3>a single error\"; exec /busybox sleep 10000", until("go"));
    start(&mut unit, "quiet", &quiet);
    unit.look();
    tell(&unit, "loud", "go");
    unit.expect_stored("loud/subject/0", "done", "done");
    // Noise does not hide what others have to say.
    tell(&unit, "quiet", "go");
    unit.say("wait text 'quiet/subject/0 version 1.0.0: a single error'");
    wait_until("alerts of the flood", || alerts(&unit, "loud/subject/0").len() >= 10);
    wait_until("the end of the flood", || {
        unit.say("logs loud");
        unit.say("wait logs");
        has(&unit.seen(), " flood jjjj ")
    });
    // Ten at once, then one in six seconds: the test does not take minutes.
    let found = alerts(&unit, "loud/subject/0").len();
    assert!(found < 60, "{found} alerts");
    unit
}

#[test]
fn a_flood_of_errors_without_a_journal() {
    require!(root, memory, runc, busybox);
    let mut unit = a_flood_of_errors(Setup::new().registered());
    unit.stop_daemon();
    unit.nothing_left();
}

#[test]
fn a_flood_of_errors_with_a_journal() {
    require!(root, memory, runc, busybox, journald);
    let (unit, journald) = with_journal();
    let mut unit = a_flood_of_errors(unit);
    unit.stop_daemon();
    unit.nothing_left();
    journald.stop();
}

/// The daemon's errors while nobody takes them: each is told once, and none about the stream.
/// With `-j` the daemon's errors go to the journal that it follows.
#[test]
fn own_errors_in_the_journal_make_one_alert() {
    require!(root, memory, runc, busybox, journald);
    let mut unit = Setup::new().set("logging.journalDir", SOCKETS).start();
    let journald = Journald::start(&unit);
    unit.space.inside(|| std::os::unix::fs::symlink(SOCKETS, "/run/systemd/journal").unwrap());
    unit.start_daemon_as(&["-j"], &[]);
    unit.say("wait registered");
    let config = r#"config='{"runParameters":{"startInterval":"60s","restartInterval":"50ms"}}'"#;
    let busybox = need::program("busybox").unwrap();
    unit.say(&format!(
        "service web {busybox} entrypoint=/busybox cmd=sh cmd=-c cmd='{CRASHES}' {config}"
    ));
    unit.say("instance web");
    unit.look();
    unit.say("run");
    let own = "coreAlert: aos-servicemanager: gives up instance=";
    wait_until("the alert", || !alerts(&unit, own).is_empty());
    // It stands in the journal, with the mark of what is known.
    let mut export = Command::new("journalctl");
    export.args(["--namespace=aosit", "-o", "json", "SYSLOG_IDENTIFIER=aos_servicemanager"]);
    let mut entry = String::new();
    wait_until("the entry", || {
        let (_, lines, _) = unit.space.inside(|| program::run(&mut export));
        let found = lines.lines().find(|line| line.contains("gives up instance="));
        entry = found.unwrap_or_default().to_owned();
        !entry.is_empty()
    });
    assert!(
        entry.contains(r#""AOS_NO_ALERT":"1""#) && entry.contains(r#""PRIORITY":"3""#),
        "{entry}"
    );
    // What is read after it makes an alert: by then it has been judged.
    start(&mut unit, "mark", "echo \"<3>and this one\"; exec /busybox sleep 10000");
    wait_until("the mark", || !alerts(&unit, "and this one").is_empty());
    assert_eq!(alerts(&unit, "gives up instance=").len(), 1);
    unit.stop_daemon();
    unit.nothing_left();
    journald.stop();
}

#[test]
fn errors_while_the_stream_fails_do_not_multiply() {
    require!(root, memory, runc, busybox);
    let mut unit = Setup::new().registered();
    let busybox = need::program("busybox").unwrap();
    let config = r#"config='{"runParameters":{"startInterval":"60s","restartInterval":"50ms"}}'"#;
    unit.say(&format!(
        "service web {busybox} entrypoint=/busybox cmd=sh cmd=-c \
         cmd='{}; echo \"<3>cannot go on\"; exit 3' {config}",
        until("go")
    ));
    unit.say("instance web");
    unit.say("run");
    unit.say("wait active web");
    unit.look();
    unit.say("link refuse");
    unit.say("link end");
    unit.expect("refused: ");
    tell(&unit, "web", "go");
    unit.expect_log("msg=\"gives up\"");
    unit.expect("refused: ");
    unit.say("link down");
    unit.say("link accept");
    unit.look();
    unit.say("link up");
    unit.say("wait registered");
    unit.say("wait text 'coreAlert: aos-servicemanager: gives up instance='");
    for _ in 0..3 {
        unit.say("link end");
        unit.say("wait disconnected");
        unit.say("wait registered");
    }
    let core = alerts(&unit, "coreAlert");
    assert!(core.len() == 1, "{core:?}");
    let all = alerts(&unit, "");
    assert!(all.len() < 20, "{all:?}");
    unit.stop_daemon();
    unit.nothing_left();
}

#[test]
fn messages_of_the_kernel_become_alerts() {
    require!(root, memory, runc, busybox);
    let mut unit = Setup::new().registered();
    let Ok(mut kernel) = fs::OpenOptions::new().write(true).open("/dev/kmsg") else {
        println!("SKIP {}: no /dev/kmsg", need::test_name());
        unit.stop_daemon();
        return;
    };
    unit.look();
    // The kernel notes that a program has written it.
    std::io::Write::write_all(&mut kernel, b"<2>aos test: of a program").unwrap();
    // The kernel itself, by a name that no other process has: digits do not count.
    let program = unit.path("busybox-kmsg");
    fs::copy(need::program("busybox").unwrap(), &program).unwrap();
    unit.say(&format!(
        "service hungry {} entrypoint=/busybox-kmsg cmd=sh cmd=-c cmd='{}' \
         config='{{\"quotas\":{{\"ramLimit\":16777216}}}}'",
        program.display(),
        "/busybox-kmsg sleep 0.5; exec /busybox-kmsg dd if=/dev/zero of=/dev/null bs=64M count=1",
    ));
    unit.say("instance hungry");
    unit.say("run");
    // All that run on this kernel share its messages, other tests too.
    let is_ours = |line: &String| {
        line.contains("systemAlert: Memory cgroup out of memory: Killed process")
            && line.contains("(busybox-kmsg)")
    };
    wait_until("the alert", || unit.seen().iter().any(is_ours));
    assert!(!has(&unit.seen(), "of a program"));
    unit.stop_daemon();
    unit.nothing_left();
}
