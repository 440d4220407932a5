//! Signals, ends of commands and inits, the service manager, as the main thread sees them.

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::net::UnixDatagram;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::*;
use crate::model::event::Exit;
use crate::sys::testing::{PATIENCE, in_own_process, in_own_process_with, wait_until};

/// Runs a loop on a thread of its own for as long as `body` takes.
fn with_loop(body: impl FnOnce(&LoopHandle, &Receiver<Event>)) {
    thread::block_signals().unwrap();
    let (event_loop, handle) = EventLoop::new().unwrap();
    let (core, events) = bounded(8);
    let main = thread::spawn("main", move || event_loop.run(&core, &Board::default())).unwrap();
    body(&handle, &events);
    handle.stop();
    main.join().unwrap().unwrap();
}

fn shell(script: &str) -> Command {
    Command::new(["/bin/sh", "-c", script].map(Into::into).into(), PATIENCE)
}

fn start(script: &str) -> (u32, OwnedFd) {
    let pid = command::spawn(&shell(script).argv, None, None).unwrap();
    (pid, pidfd::open(pid).unwrap())
}

fn watch(id: &str, pid: u32, pidfd: OwnedFd) -> Watch {
    Watch { id: InstanceId::new(id), pid, pidfd, oom: None, adopted: false }
}

/// The next event but a jump of the clock, which another test may make at any time.
fn next(events: &Receiver<Event>) -> Event {
    loop {
        match events.recv_timeout(PATIENCE).unwrap() {
            Event::ClockChanged => {}
            event => return event,
        }
    }
}

/// As for `next`, there is no event.
fn nothing_more(events: &Receiver<Event>) {
    let mut left = events.try_iter().filter(|event| !matches!(event, Event::ClockChanged));
    let event = left.next();
    assert!(event.is_none(), "{event:?}");
}

fn expect_exit(events: &Receiver<Event>, expect_id: &str, expect: Exit) {
    match next(events) {
        Event::Exited { id, exit, .. } => assert_eq!((id.as_str(), exit), (expect_id, expect)),
        other => panic!("{other:?}"),
    }
}

#[test]
fn tokens_keep_their_meaning() {
    for token in [Token::Inbox, Token::Signals, Token::Clock, Token::Init(Key(0))] {
        assert_eq!(Token::from(mio::Token::from(token)), token);
    }
    assert_eq!(Token::from(mio::Token::from(Token::Init(Key(99)))), Token::Init(Key(99)));
}

#[test]
fn a_stop_is_seen_although_its_sender_is_gone() {
    in_own_process("event_loop::tests::a_stop_is_seen_although_its_sender_is_gone", || {
        thread::block_signals().unwrap();
        let (event_loop, handle) = EventLoop::new().unwrap();
        let (core, _events) = bounded(8);
        handle.stop();
        drop(handle);
        event_loop.run(&core, &Board::default()).unwrap();
    });
}

#[test]
fn commands_run_to_their_end() {
    in_own_process("event_loop::tests::commands_run_to_their_end", || {
        with_loop(|handle, _| {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("out");
            let mut command = shell("echo text; exit 42");
            command.stdout = Some(File::create(&path).unwrap().into());
            let expect = CommandEnd { exit: Exit::Code(42), timed_out: false };
            assert_eq!(handle.run(command), Ok(expect));
            assert_eq!(std::fs::read_to_string(&path).unwrap(), "text\n");
            let mut slow = shell("sleep 1000; sleep 1000");
            slow.deadline = Duration::from_millis(50);
            let expect = CommandEnd { exit: Exit::Signal(9), timed_out: true };
            assert_eq!(handle.run(slow), Ok(expect));
            let mut missing = shell("");
            missing.argv = vec!["no-such-program".into()];
            assert!(handle.run(missing).unwrap_err().message.contains("no-such-program"));
        });
    });
}

#[test]
fn ends_of_inits_reach_core() {
    in_own_process("event_loop::tests::ends_of_inits_reach_core", || {
        with_loop(|handle, events| {
            let (pid, fd) = start("exec sleep 1000");
            let killer = fd.try_clone().unwrap();
            handle.watch(watch("killed", pid, fd)).unwrap();
            pidfd::send_signal(killer.as_fd(), 9).unwrap();
            expect_exit(events, "killed", Exit::Signal(9));

            // Over before it is registered. The loop reaps it as soon as it ends.
            let (pid, fd) = start("kill -STOP $$; exit 7");
            let is_stopped = || process::stat(pid).is_ok_and(|stat| stat.state == 'T');
            wait_until("a stopped process", is_stopped);
            pidfd::send_signal(fd.as_fd(), libc::SIGCONT).unwrap();
            wait_until("the reaper", || pidfd::is_reaped(fd.as_fd()));
            handle.watch(watch("early", pid, fd)).unwrap();
            expect_exit(events, "early", Exit::Code(7));

            let (pid, fd) = start("exec sleep 1000");
            handle.watch(watch("asked", pid, fd)).unwrap();
            assert!(handle.try_signal(&InstanceId::new("asked"), libc::SIGTERM));
            assert!(handle.try_signal(&InstanceId::new("unknown"), libc::SIGTERM));
            expect_exit(events, "asked", Exit::Signal(9));

            let (pid, fd) = start("exec sleep 1000");
            let killer = fd.try_clone().unwrap();
            handle.watch(watch("forgotten", pid, fd)).unwrap();
            assert!(handle.try_unwatch(&InstanceId::new("forgotten")));
            handle.run(shell("exit 0")).unwrap();
            pidfd::send_signal(killer.as_fd(), 9).unwrap();
            wait_until("the reaper", || pidfd::is_reaped(killer.as_fd()));
            handle.run(shell("exit 0")).unwrap();
            nothing_more(events);
        });
    });
}

#[test]
fn two_hundred_inits_at_once() {
    in_own_process("event_loop::tests::two_hundred_inits_at_once", || {
        with_loop(|handle, events| {
            let mut killers = Vec::new();
            for index in 0..200 {
                let (pid, fd) = start("exec sleep 1000");
                killers.push(fd.try_clone().unwrap());
                handle.watch(watch(&index.to_string(), pid, fd)).unwrap();
            }
            for killer in &killers {
                pidfd::send_signal(killer.as_fd(), 9).unwrap();
            }
            let mut seen = std::collections::BTreeSet::new();
            for _ in &killers {
                match next(events) {
                    Event::Exited { id, exit: Exit::Signal(9), .. } => assert!(seen.insert(id)),
                    other => panic!("{other:?}"),
                }
            }
            assert_eq!(seen.len(), 200);
        });
    });
}

#[test]
fn signals_stop_once() {
    in_own_process("event_loop::tests::signals_stop_once", || {
        with_loop(|handle, events| {
            kill(Pid::this(), Signal::SIGHUP).unwrap();
            assert!(matches!(next(events), Event::Reload));
            for signal in [Signal::SIGUSR1, Signal::SIGTERM] {
                kill(Pid::this(), signal).unwrap();
            }
            assert!(matches!(next(events), Event::Stop));
            for signal in [Signal::SIGTERM, Signal::SIGINT] {
                kill(Pid::this(), signal).unwrap();
            }
            // The loop goes on, and says nothing more.
            handle.run(shell("exit 0")).unwrap();
            nothing_more(events);
        });
    });
}

#[test]
fn a_clock_jump_reaches_core() {
    in_own_process("event_loop::tests::a_clock_jump_reaches_core", || {
        with_loop(|_, events| {
            let clock = nix::time::ClockId::CLOCK_REALTIME;
            // Set to what it is: a jump of some nanoseconds.
            let now = nix::time::clock_gettime(clock).unwrap();
            if nix::time::clock_settime(clock, now).is_err() {
                println!("SKIP a_clock_jump_reaches_core: needs CAP_SYS_TIME");
                return;
            }
            let event = events.recv_timeout(PATIENCE).unwrap();
            assert!(matches!(event, Event::ClockChanged), "{event:?}");
        });
    });
}

#[test]
fn the_service_manager_hears_from_core() {
    let name = "event_loop::tests::the_service_manager_hears_from_core";
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("notify");
    let env = [("NOTIFY_SOCKET", path.as_path()), ("WATCHDOG_USEC", "3000000".as_ref())];
    in_own_process_with(name, &env, || {
        let socket = UnixDatagram::bind(std::env::var_os("NOTIFY_SOCKET").unwrap()).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        let expect = |text: &str| {
            let mut buffer = [0; 64];
            let length = socket.recv(&mut buffer).unwrap();
            assert_eq!(std::str::from_utf8(&buffer[..length]), Ok(text));
        };
        let (event_loop, handle) = EventLoop::new().unwrap();
        assert!(event_loop.is_supervised());
        let (core, events) = bounded(8);
        thread::block_signals().unwrap();
        let run = move || event_loop.run(&core, &Board::default());
        let main = thread::spawn("main", run).unwrap();
        assert!(handle.ready());
        expect("READY=1");
        kill(Pid::this(), Signal::SIGTERM).unwrap();
        expect("STOPPING=1");
        assert!(matches!(next(&events), Event::Stop));
        let is_asked = || {
            let event = next(&events);
            assert!(matches!(event, Event::Ping), "{event:?}");
        };
        for _ in 0..2 {
            is_asked();
            assert!(handle.pong());
            expect("WATCHDOG=1");
        }
        // Without an answer there is neither another question nor a sign of life, and the end.
        is_asked();
        let end = main.join().unwrap();
        assert!(matches!(end, Err(Error::Stuck { thread: "core", .. })), "{end:?}");
        nothing_more(&events);
        socket.set_nonblocking(true).unwrap();
        assert!(socket.recv(&mut [0; 64]).is_err());
    });
}

#[test]
fn an_idle_loop_has_no_timer() {
    in_own_process("event_loop::tests::an_idle_loop_has_no_timer", || {
        let (mut event_loop, handle) = EventLoop::new().unwrap();
        let (core, _events) = bounded(8);
        let (reply, _answer) = bounded(1);
        let (pid, fd) = start("exec sleep 1000");
        let killer = fd.try_clone().unwrap();
        event_loop.obey(LoopCmd::Watch { watch: watch("one", pid, fd), reply }, &core);
        assert_eq!(event_loop.timeout(), None);
        let (reply, _end) = bounded(1);
        event_loop.obey(LoopCmd::Spawn { command: shell("exit 0"), reply }, &core);
        assert!(event_loop.timeout().is_some_and(|left| left <= PATIENCE));
        wait_until("the end", || {
            event_loop.children.reap(monotonic());
            event_loop.timeout().is_none()
        });
        pidfd::send_signal(killer.as_fd(), 9).unwrap();
        // Nobody empties the inbox: a worker may wait, core must not.
        for _ in 0..INBOX {
            assert!(handle.pong());
        }
        assert!(!handle.pong());
        drop(event_loop);
        let failure = handle.run(shell("exit 0")).unwrap_err();
        assert_eq!(failure.message, "process manager has stopped");
    });
}
