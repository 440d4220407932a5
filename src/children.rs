//! Process manager: every child of the daemon is created and reaped here, and nowhere else.
//!
//! Owned by the event loop on the main thread, which brings commands to run, inits to watch, the
//! news that something ended, and the time; out go replies to workers and the ends of instances.
//! Deliberately not here: polling, signals, any decision about an instance.
//!
//! A watched init goes through
//!
//! ```text
//! running ── readable ──> status taken ──> Ended
//!    │                        ^
//!    └── readable, no status ─┴─ reaped by its parent, or time is up (Lost)
//! ```

use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use crossbeam::channel::Sender;
use nix::errno::Errno;

use crate::model::event::Exit;
use crate::model::failure::Failure;
use crate::model::id::InstanceId;
use crate::ports::{Command, CommandEnd, Watch};
use crate::sys::command::Program;
use crate::sys::{command, is_errno, pidfd, process};

/// Most commands at a time: the workers that may ask are fewer.
pub const MAX_COMMANDS: usize = 16;

/// Most statuses of unknown orphans that are kept for a registration to come.
pub const MAX_PARKED: usize = 64;

/// How long the status of an unknown orphan is kept.
pub const PARKED_FOR: Duration = Duration::from_secs(10);

/// How long an init of ours may still belong to a runtime process in between.
pub const HANDOVER: Duration = Duration::from_secs(1);

/// How long the parent of an adopted init may take to reap it.
pub const FOREIGN_REAP: Duration = Duration::from_secs(5);

/// Why a command or a watch could not be taken.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot start {program}")]
    Spawn {
        program: String,
        #[source]
        source: io::Error,
    },
    #[error("more than {MAX_COMMANDS} commands at a time")]
    Busy,
    #[error("instance {0} is not watched")]
    Unknown(InstanceId),
    #[error("cannot signal instance {id}")]
    Signal {
        id: InstanceId,
        #[source]
        source: io::Error,
    },
}

/// Where the end of a command goes; has one slot.
pub type Reply = Sender<Result<CommandEnd, Failure>>;

/// Names a watched init; never used twice.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Key(pub usize);

/// The init of an instance has ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Ended {
    pub key: Key,
    pub id: InstanceId,
    pub pid: u32,
    pub exit: Exit,
}

/// What became of a registration.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Registered {
    Watching(Key),
    /// The init had ended before, and its status was parked.
    Ended(Ended),
}

/// All children, and the inits that are watched without being children.
#[derive(Debug, Default)]
pub struct Children {
    commands: BTreeMap<u32, Running>,
    watches: BTreeMap<Key, Watched>,
    parked: VecDeque<Parked>,
    last_key: usize,
}

#[derive(Debug)]
struct Running {
    deadline: Duration,
    timed_out: bool,
    reply: Reply,
}

#[derive(Debug)]
struct Watched {
    watch: Watch,
    /// The init has ended without a status so far; when this is over, the status is lost.
    until: Option<Duration>,
}

#[derive(Debug)]
struct Parked {
    pid: u32,
    exit: Exit,
    at: Duration,
}

impl Children {
    /// Starts a command; its end, or the reason why there is none, goes to `reply`.
    pub fn spawn(&mut self, command: Command, reply: Reply, now: Duration) {
        let deadline = now + command.deadline;
        match self.start(command) {
            Ok(pid) => {
                self.commands.insert(pid, Running { deadline, timed_out: false, reply });
            }
            Err(error) => answer(&reply, Err(Failure::lasting(&error))),
        }
    }

    fn start(&self, command: Command) -> Result<u32, Error> {
        if self.commands.len() >= MAX_COMMANDS {
            return Err(Error::Busy);
        }
        let program = command.argv.first().map(|name| name.to_string_lossy().into_owned());
        let file = command.program.as_deref();
        let what = Program { argv: &command.argv, file, environment: &command.environment };
        command::spawn_program(&what, command.stdout, command.stderr)
            .map_err(|source| Error::Spawn { program: program.unwrap_or_default(), source })
    }

    /// Supervises an init; the caller polls its descriptor, if the answer has a key.
    pub fn watch(&mut self, watch: Watch, now: Duration) -> Registered {
        self.last_key += 1;
        let key = Key(self.last_key);
        // A number that is parked but alive belongs to a later process.
        let parked = self.take_parked(watch.pid, now);
        if let Some(exit) = parked.filter(|_| pidfd::is_reaped(watch.pidfd.as_fd())) {
            let exit = verdict(exit, watch.oom.as_ref());
            return Registered::Ended(Ended { key, pid: watch.pid, id: watch.id, exit });
        }
        self.watches.insert(key, Watched { watch, until: None });
        Registered::Watching(key)
    }

    fn take_parked(&mut self, pid: u32, now: Duration) -> Option<Exit> {
        self.drop_old(now);
        let index = self.parked.iter().position(|parked| parked.pid == pid)?;
        self.parked.remove(index).map(|parked| parked.exit)
    }

    fn drop_old(&mut self, now: Duration) {
        self.parked.retain(|parked| now < parked.at + PARKED_FOR);
    }

    /// The descriptor to poll of a watched init.
    pub fn pidfd(&self, key: Key) -> Option<BorrowedFd<'_>> {
        self.watches.get(&key).map(|watched| watched.watch.pidfd.as_fd())
    }

    /// Key of the watched init of an instance.
    pub fn key_of(&self, id: &InstanceId) -> Option<Key> {
        self.watches.iter().find(|(_, watched)| watched.watch.id == *id).map(|(key, _)| *key)
    }

    /// Forgets an init without reporting its end; closes its descriptor.
    pub fn unwatch(&mut self, key: Key) {
        self.watches.remove(&key);
    }

    /// Sends a stop signal to the init of an instance. An init without a handler would ignore it
    /// as the first process of its namespace, so it gets SIGKILL at once.
    pub fn signal(&self, id: &InstanceId, signal: i32) -> Result<(), Error> {
        let key = self.key_of(id).ok_or_else(|| Error::Unknown(id.clone()))?;
        let watch = &self.watches[&key].watch;
        let caught = process::caught_signals(watch.pid).unwrap_or(u64::MAX);
        let bit = u32::try_from(signal - 1).ok().and_then(|bit| 1_u64.checked_shl(bit));
        let handled = bit.is_some_and(|bit| caught & bit != 0);
        let signal = if handled { signal } else { libc::SIGKILL };
        match pidfd::send_signal(watch.pidfd.as_fd(), signal) {
            // Already over: its end is on the way.
            Err(source) if !is_errno(&source, Errno::ESRCH) => {
                Err(Error::Signal { id: id.clone(), source })
            }
            _ => Ok(()),
        }
    }

    /// Reaps every child that has ended, after a SIGCHLD.
    pub fn reap(&mut self, now: Duration) -> Vec<Ended> {
        let mut ended = Vec::new();
        loop {
            match pidfd::ended_child() {
                Ok(Some(pid)) => ended.extend(self.reap_one(pid, now)),
                Ok(None) => return ended,
                Err(error) => {
                    log::error!("cannot wait for children err={error}");
                    return ended;
                }
            }
        }
    }

    fn reap_one(&mut self, pid: u32, now: Duration) -> Option<Ended> {
        let exit = match pidfd::reap(pid) {
            Ok(exit) => exit?,
            Err(error) => {
                log::error!("cannot reap a child pid={pid} err={error}");
                return None;
            }
        };
        if let Some(running) = self.commands.remove(&pid) {
            answer(&running.reply, Ok(CommandEnd { exit, timed_out: running.timed_out }));
            return None;
        }
        // The number alone could be that of an adopted init that ended long ago.
        let same = |watched: &Watched| {
            watched.watch.pid == pid && pidfd::is_reaped(watched.watch.pidfd.as_fd())
        };
        let key = self.watches.iter().find(|(_, watched)| same(watched)).map(|(key, _)| *key);
        let Some(key) = key else {
            self.park(pid, exit, now);
            return None;
        };
        self.end(key, exit)
    }

    fn park(&mut self, pid: u32, exit: Exit, now: Duration) {
        log::debug!("reaped an orphan pid={pid} exit={exit}");
        self.drop_old(now);
        if self.parked.len() >= MAX_PARKED {
            self.parked.pop_front();
        }
        self.parked.push_back(Parked { pid, exit, at: now });
    }

    /// The descriptor of a watched init is readable: takes the status if there is one by now.
    pub fn readable(&mut self, key: Key, now: Duration) -> Option<Ended> {
        let watched = self.watches.get_mut(&key)?;
        let fd = watched.watch.pidfd.as_fd();
        if !pidfd::has_ended(fd).unwrap_or(true) {
            return None;
        }
        let status = if watched.watch.adopted {
            foreign_status(watched)
        } else {
            match pidfd::reap_fd(fd) {
                Ok(status) => status,
                Err(_) => pidfd::exit_info(fd).ok().flatten(),
            }
        };
        if let Some(exit) = status {
            return self.end(key, exit);
        }
        let patience = if watched.watch.adopted { FOREIGN_REAP } else { HANDOVER };
        watched.until.get_or_insert(now + patience);
        None
    }

    fn end(&mut self, key: Key, exit: Exit) -> Option<Ended> {
        let watch = self.watches.remove(&key)?.watch;
        Some(Ended { key, exit: verdict(exit, watch.oom.as_ref()), pid: watch.pid, id: watch.id })
    }

    /// Kills the commands whose time is over and gives up statuses that did not come.
    pub fn expire(&mut self, now: Duration) -> Vec<Ended> {
        for (pid, running) in &mut self.commands {
            if !running.timed_out && running.deadline <= now {
                running.timed_out = true;
                log::warn!("command killed at its deadline pid={pid}");
                if let Err(error) = pidfd::kill_group(*pid) {
                    log::error!("cannot kill a command pid={pid} err={error}");
                }
            }
        }
        let over = |watched: &Watched| watched.until.is_some_and(|until| until <= now);
        let late: Vec<Key> =
            self.watches.iter().filter(|(_, watched)| over(watched)).map(|(key, _)| *key).collect();
        late.into_iter().filter_map(|key| self.end(key, self.last_resort(key))).collect()
    }

    fn last_resort(&self, key: Key) -> Exit {
        let info = self.pidfd(key).and_then(|fd| pidfd::exit_info(fd).ok().flatten());
        info.unwrap_or(Exit::Lost)
    }

    /// When `expire` has something to do next.
    pub fn next_deadline(&self) -> Option<Duration> {
        let commands = self.commands.values().filter(|running| !running.timed_out);
        let watches = self.watches.values().filter_map(|watched| watched.until);
        commands.map(|running| running.deadline).chain(watches).min()
    }
}

/// Status of an ended init that is not our child: from `/proc` while it is a zombie, else from
/// the kernel once its parent has reaped it. `None` = not yet.
fn foreign_status(watched: &Watched) -> Option<Exit> {
    let fd = watched.watch.pidfd.as_fd();
    let stat = process::stat(watched.watch.pid).ok().filter(|stat| stat.state == 'Z');
    // Not reaped even now: so what was read is of this process, and no later one's.
    if let Some(stat) = stat.filter(|_| !pidfd::is_reaped(fd)) {
        return Some(pidfd::exit_of(stat.wait_status));
    }
    match pidfd::exit_info(fd) {
        Ok(status) => status,
        // The kernel will never tell.
        Err(_) => Some(Exit::Lost),
    }
}

/// A kill is one for want of memory, if the counter of such kills has risen; a code that is not 0
/// may come of such a kill of another process.
fn verdict(exit: Exit, oom: Option<&(File, u64)>) -> Exit {
    let risen =
        |(file, before): &(File, u64)| process::oom_kills(file).is_ok_and(|after| after > *before);
    match exit {
        Exit::Signal(_) if oom.is_some_and(risen) => Exit::OutOfMemory,
        Exit::Code(code) if code != 0 && oom.is_some_and(risen) => Exit::CodeAfterKills(code),
        other => other,
    }
}

fn answer(reply: &Reply, end: Result<CommandEnd, Failure>) {
    if reply.try_send(end).is_err() {
        log::debug!("nobody waits for a command any more");
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;
    use std::io::Write;

    use crossbeam::channel::{Receiver, bounded};

    use super::*;
    use crate::sys::testing::{PATIENCE, in_own_process, wait_until};

    const START: Duration = Duration::from_secs(1000);

    fn argv(script: &str) -> Vec<OsString> {
        ["/bin/sh", "-c", script].map(Into::into).into()
    }

    fn spawn(children: &mut Children, script: &str) -> Receiver<Result<CommandEnd, Failure>> {
        let (reply, end) = bounded(1);
        children.spawn(Command::new(argv(script), PATIENCE), reply, START);
        end
    }

    /// Lets the kernel work until a command has ended.
    fn end_of(
        children: &mut Children,
        end: &Receiver<Result<CommandEnd, Failure>>,
    ) -> Result<CommandEnd, Failure> {
        let mut result = None;
        wait_until("the end of a command", || {
            assert_eq!(children.reap(START), []);
            result = end.try_recv().ok();
            result.is_some()
        });
        result.unwrap()
    }

    fn watch_of(pid: u32, adopted: bool) -> Watch {
        let id = InstanceId::new("one");
        Watch { id, pid, pidfd: pidfd::open(pid).unwrap(), oom: None, adopted }
    }

    /// A grandchild that ends with code 9 when the returned file is written; its parent neither
    /// ends nor reaps it. Numbers of parent and grandchild.
    fn grandchild(dir: &std::path::Path) -> (u32, u32, File) {
        let (fifo, number) = (dir.join("fifo"), dir.join("number"));
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let script = format!(
            "(read line < {0}; exit 9) & echo $! > {1}.tmp; mv {1}.tmp {1}; kill -STOP $$",
            fifo.display(),
            number.display()
        );
        let parent = command::spawn(&argv(&script), None, None).unwrap();
        let state = |pid| process::stat(pid).map(|stat| stat.state);
        wait_until("a grandchild", || number.exists() && state(parent).is_ok_and(|s| s == 'T'));
        let pid = std::fs::read_to_string(&number).unwrap().trim().parse().unwrap();
        (parent, pid, File::options().write(true).open(&fifo).unwrap())
    }

    #[test]
    fn ends_of_commands() {
        in_own_process("children::tests::ends_of_commands", || {
            let mut children = Children::default();
            let mut check = |script: &str, expect: Exit| {
                let end = spawn(&mut children, script);
                let expect = CommandEnd { exit: expect, timed_out: false };
                assert_eq!(end_of(&mut children, &end), Ok(expect), "{script}");
            };
            for code in [0, 1, 42, 255] {
                check(&format!("exit {code}"), Exit::Code(code));
            }
            for signal in [9, 15, 35] {
                check(&format!("kill -{signal} $$"), Exit::Signal(signal));
            }
            assert_eq!(children.next_deadline(), None);
        });
    }

    #[test]
    fn a_command_is_killed_at_its_deadline_with_its_children() {
        let name = "children::tests::a_command_is_killed_at_its_deadline_with_its_children";
        in_own_process(name, || {
            pidfd::become_subreaper().unwrap();
            let mut children = Children::default();
            let end = spawn(&mut children, "sleep 1000 & sleep 1001 & wait");
            let pid = *children.commands.keys().next().unwrap();
            let task = format!("/proc/{pid}/task/{pid}/children");
            wait_until("two children", || {
                std::fs::read_to_string(&task).unwrap().split_whitespace().count() == 2
            });
            assert_eq!(children.next_deadline(), Some(START + PATIENCE));
            let just_before = START + PATIENCE - Duration::from_nanos(1);
            assert_eq!(children.expire(just_before), []);
            assert_eq!(children.reap(just_before), []);
            assert!(end.try_recv().is_err());
            children.expire(START + PATIENCE);
            assert_eq!(children.next_deadline(), None);
            let expect = CommandEnd { exit: Exit::Signal(9), timed_out: true };
            assert_eq!(end_of(&mut children, &end), Ok(expect));
            wait_until("two orphans", || {
                children.reap(START);
                children.parked.len() == 2
            });
        });
    }

    #[test]
    fn commands_that_cannot_start() {
        in_own_process("children::tests::commands_that_cannot_start", || {
            let mut children = Children::default();
            let (reply, end) = bounded(1);
            let argv = vec!["/no/such/program".into()];
            children.spawn(Command::new(argv, PATIENCE), reply, START);
            let failure = end.try_recv().unwrap().unwrap_err();
            assert!(failure.message.starts_with("cannot start /no/such/program: "), "{failure}");
            let ends: Vec<_> =
                (0..MAX_COMMANDS).map(|_| spawn(&mut children, "exec sleep 1000")).collect();
            let refused = spawn(&mut children, "exit 0").try_recv().unwrap().unwrap_err();
            assert_eq!(refused.message, "more than 16 commands at a time");
            children.expire(START + PATIENCE);
            for end in ends {
                assert!(end_of(&mut children, &end).unwrap().timed_out);
            }
        });
    }

    #[test]
    fn a_watched_child_ends() {
        in_own_process("children::tests::a_watched_child_ends", || {
            let mut children = Children::default();
            let dir = tempfile::tempdir().unwrap();
            let counter = dir.path().join("oom");
            let mut check = |script: &str, by_fd: bool, kills: &str, expect: Exit| {
                let pid = command::spawn(&argv(script), None, None).unwrap();
                let mut watch = watch_of(pid, false);
                crate::sys::fs::write_plain(&counter, kills.as_bytes(), 0o600).unwrap();
                watch.oom = Some((File::open(&counter).unwrap(), 1));
                let Registered::Watching(key) = children.watch(watch, START) else {
                    panic!("{script} was parked");
                };
                let mut ended = None;
                wait_until("an end", || {
                    ended = if by_fd {
                        children.readable(key, START)
                    } else {
                        children.reap(START).pop()
                    };
                    ended.is_some()
                });
                let expect = Ended { key, id: InstanceId::new("one"), pid, exit: expect };
                assert_eq!(ended, Some(expect), "{script}");
                assert!(children.watches.is_empty() && children.parked.is_empty());
            };
            for by_fd in [false, true] {
                check("exit 0", by_fd, "oom_kill 1\n", Exit::Code(0));
                check("exit 0", by_fd, "oom_kill 2\n", Exit::Code(0));
                check("exit 42", by_fd, "oom_kill 1\n", Exit::Code(42));
                check("exit 42", by_fd, "oom_kill 2\n", Exit::CodeAfterKills(42));
                check("kill -9 $$", by_fd, "oom_kill 1\n", Exit::Signal(9));
                check("kill -9 $$", by_fd, "oom_kill 2\n", Exit::OutOfMemory);
                check("kill -9 $$", by_fd, "", Exit::Signal(9));
            }
        });
    }

    #[test]
    fn a_status_waits_for_its_registration() {
        in_own_process("children::tests::a_status_waits_for_its_registration", || {
            let mut children = Children::default();
            let check = |children: &mut Children, later: Duration, expect: Option<Exit>| {
                let pid = command::spawn(&argv("exit 7"), None, None).unwrap();
                let watch = watch_of(pid, false);
                wait_until("an orphan", || {
                    assert_eq!(children.reap(START), []);
                    pidfd::is_reaped(watch.pidfd.as_fd())
                });
                let found = match children.watch(watch, START + later) {
                    Registered::Ended(ended) => Some(ended.exit),
                    Registered::Watching(key) => {
                        children.unwatch(key);
                        None
                    }
                };
                assert_eq!(found, expect);
                assert!(children.parked.is_empty());
            };
            check(&mut children, Duration::ZERO, Some(Exit::Code(7)));
            check(&mut children, PARKED_FOR - Duration::from_nanos(1), Some(Exit::Code(7)));
            check(&mut children, PARKED_FOR, None);
        });
    }

    #[test]
    fn a_parked_number_of_a_live_process_is_not_its_status() {
        in_own_process(
            "children::tests::a_parked_number_of_a_live_process_is_not_its_status",
            || {
                let mut children = Children::default();
                children.park(std::process::id(), Exit::Code(1), START);
                let registered = children.watch(watch_of(std::process::id(), true), START);
                assert!(matches!(registered, Registered::Watching(_)));
            },
        );
    }

    #[test]
    fn parked_statuses_are_bounded() {
        let mut children = Children::default();
        let numbers = 1_u32..;
        for pid in numbers.take(MAX_PARKED + 1) {
            children.park(pid, Exit::Code(0), START);
        }
        assert_eq!(children.parked.len(), MAX_PARKED);
        assert_eq!(children.take_parked(1, START), None);
        assert_eq!(children.take_parked(2, START), Some(Exit::Code(0)));
        assert_eq!(children.take_parked(3, START + PARKED_FOR), None);
        assert!(children.parked.is_empty());
    }

    #[test]
    fn an_init_handed_over_late_keeps_its_status() {
        let name = "children::tests::an_init_handed_over_late_keeps_its_status";
        in_own_process(name, || {
            pidfd::become_subreaper().unwrap();
            let check = |hand_over: bool, expect: Exit| {
                let dir = tempfile::tempdir().unwrap();
                let mut children = Children::default();
                let (parent, pid, mut trigger) = grandchild(dir.path());
                let Registered::Watching(key) = children.watch(watch_of(pid, false), START) else {
                    panic!("was parked");
                };
                writeln!(trigger).unwrap();
                wait_until("an end without a status", || {
                    assert_eq!(children.readable(key, START), None);
                    children.next_deadline().is_some()
                });
                assert_eq!(children.next_deadline(), Some(START + HANDOVER));
                let mut ended = None;
                if hand_over {
                    pidfd::kill(parent).unwrap();
                    wait_until("the handover", || {
                        ended = children.reap(START).pop();
                        ended.is_some()
                    });
                } else {
                    ended = children.expire(START + HANDOVER).pop();
                    pidfd::kill(parent).unwrap();
                }
                assert_eq!(ended.map(|ended| ended.exit), Some(expect));
                wait_until("two reaped", || {
                    children.reap(START);
                    process::stat(parent).is_err() && process::stat(pid).is_err()
                });
            };
            check(true, Exit::Code(9));
            check(false, Exit::Lost);
        });
    }

    #[test]
    fn the_status_of_an_adopted_init_is_found() {
        let name = "children::tests::the_status_of_an_adopted_init_is_found";
        in_own_process(name, || {
            let dir = tempfile::tempdir().unwrap();
            let mut children = Children::default();
            let (parent, pid, mut trigger) = grandchild(dir.path());
            let Registered::Watching(key) = children.watch(watch_of(pid, true), START) else {
                panic!("was parked");
            };
            assert_eq!(children.readable(key, START), None);
            writeln!(trigger).unwrap();
            let mut ended = None;
            wait_until("an end", || {
                ended = children.readable(key, START);
                ended.is_some()
            });
            assert_eq!(ended.unwrap().exit, Exit::Code(9));
            pidfd::kill(parent).unwrap();
        });
    }

    #[test]
    fn an_adopted_init_reaped_by_its_parent() {
        in_own_process("children::tests::an_adopted_init_reaped_by_its_parent", || {
            if !pidfd::tells_exit_status() {
                println!("SKIP an_adopted_init_reaped_by_its_parent: kernel before 6.15");
                return;
            }
            let mut children = Children::default();
            let pid = command::spawn(&argv("exit 7"), None, None).unwrap();
            let Registered::Watching(key) = children.watch(watch_of(pid, true), START) else {
                panic!("was parked");
            };
            // Taken by somebody else: here by the test.
            wait_until("the reaper", || matches!(pidfd::reap(pid), Ok(Some(_))));
            assert_eq!(children.readable(key, START).unwrap().exit, Exit::Code(7));
        });
    }

    #[test]
    fn stop_signals_respect_handlers() {
        in_own_process("children::tests::stop_signals_respect_handlers", || {
            let dir = tempfile::tempdir().unwrap();
            let ready = dir.path().join("ready");
            let check = |script: &str, expect: Exit| {
                let mut children = Children::default();
                let script = script.replace("READY", &format!("> {}", ready.display()));
                let pid = command::spawn(&argv(&script), None, None).unwrap();
                wait_until("a start", || ready.exists());
                std::fs::remove_file(&ready).unwrap();
                let watch = watch_of(pid, false);
                let id = watch.id.clone();
                children.watch(watch, START);
                children.signal(&id, libc::SIGTERM).unwrap();
                let mut ended = None;
                wait_until("an end", || {
                    ended = children.reap(START).pop();
                    ended.is_some()
                });
                assert_eq!(ended.unwrap().exit, expect, "{script}");
                children.signal(&id, libc::SIGTERM).unwrap_err();
            };
            let waits = "while :; do sleep 0.01; done";
            check(&format!("trap 'exit 3' TERM; : READY; {waits}"), Exit::Code(3));
            check(&format!("trap '' TERM; : READY; {waits}"), Exit::Signal(9));
            check(&format!(": READY; {waits}"), Exit::Signal(9));
        });
    }
}
