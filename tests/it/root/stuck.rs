//! A thread that is stuck ends the daemon; what runs goes on, and the next life adopts it.

use std::os::unix::net::UnixDatagram;

use crate::common::need::require;
use crate::common::unit::Setup;
use crate::common::{patience, slowness, wait_until};

/// What the service manager allows: long enough for a thread that only waits for a processor.
const ALLOWED_USEC: u32 = 2_000_000;

/// Where each thread is stopped: at its beginning, or as it goes on after its first wait.
const PLACES: [&str; 11] = [
    "core:2",
    "cm-rx:2",
    "cm-tx:2",
    "iam:2",
    "fetch:2",
    "exec-1:1",
    "exec-2:1",
    "net:2",
    "monitor:2",
    "log-in:2",
    "log-out:2",
];

#[test]
fn a_stuck_thread_is_named_and_ends_the_daemon_only() {
    require!(root, memory, runc, busybox);
    let mut unit = Setup::new().registered();
    unit.sleeper("web");
    unit.say("run");
    unit.say("wait active web");
    let pid = unit.pid_of("web/subject/0");
    unit.kill_daemon();

    let path = unit.path("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(patience())).unwrap();
    let expect = |text: &str| {
        let mut buffer = [0; 64];
        loop {
            let length = socket.recv(&mut buffer).unwrap_or_else(|e| panic!("{text}: {e}"));
            if &buffer[..length] == text.as_bytes() {
                return;
            }
        }
    };
    let allowed = (ALLOWED_USEC * slowness()).to_string();
    let supervised = [("NOTIFY_SOCKET", path.to_str().unwrap()), ("WATCHDOG_USEC", &allowed)];
    for place in PLACES {
        let [socket, watchdog] = supervised;
        unit.start_daemon_with(&[socket, watchdog, ("AOS_HANG_AT", place)]);
        expect("READY=1");
        let (thread, _) = place.split_once(':').unwrap();
        if thread == "log-out" {
            unit.say("wait registered");
            unit.try_say("logs system");
        }
        unit.expect_log(&format!("thread makes no progress thread={thread} "));
        assert_eq!(unit.daemon().end().code(), Some(1), "{place}");
        unit.bury_daemon();
        assert_eq!(unit.pid_of("web/subject/0"), pid);
    }

    // The next life goes on with what runs, and all its threads show that they do.
    unit.look();
    unit.start_daemon_with(&supervised);
    for text in ["READY=1", "WATCHDOG=1", "WATCHDOG=1"] {
        expect(text);
    }
    unit.say("wait registered");
    unit.expect("web/subject/0 version 1.0.0 active");
    assert_eq!(unit.pid_of("web/subject/0"), pid);
    unit.stop_daemon();
    unit.nothing_left();
}

/// Requests that may wait while one is answered.
const WAITING: usize = 8;

#[test]
fn log_requests_that_nobody_can_answer_are_refused() {
    require!(root, memory, runc);
    let mut unit = Setup::new().start();
    let path = unit.path("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    // The thread is stuck with the first request, for longer than this takes.
    unit.start_daemon_with(&[
        ("NOTIFY_SOCKET", path.to_str().unwrap()),
        ("WATCHDOG_USEC", "3600000000"),
        ("AOS_HANG_AT", "log-out:2"),
    ]);
    unit.say("wait registered");
    unit.look();
    for _ in 0..1 + WAITING + 1 {
        unit.say("logs system");
    }
    let is_refusal = |line: &str| line.contains("too many log requests at a time");
    wait_until("a refusal", || unit.seen().iter().any(|line| is_refusal(line)));
    // The others are not answered in any way. The first one takes a place until the thread has it.
    let mut answers = unit.seen();
    answers.retain(|line| line.contains(" part "));
    let refused = |line: &String| is_refusal(line) && line.contains(" 0/0 status error 0 bytes");
    assert!(answers.iter().all(refused), "{answers:?}");
    unit.stop_daemon();
    drop(socket);
}
