//! The main thread: signals, ends of processes, jumps of the wall clock, the service manager.
//!
//! In come `LoopCmd`s through one bounded inbox with one waker; out go `Event`s to core and
//! replies into one-slot channels. This thread may wait while it sends to core; it waits for no
//! other thread. With nothing to do it sleeps without a timer.
//! Deliberately not here: what an event means (core), how processes are reaped (`children.rs`).

use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crossbeam::channel::{Receiver, RecvTimeoutError, Sender, bounded};
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Registry, Waker};
use signal_hook::SigId;
use signal_hook::consts::{SIGCHLD, SIGHUP, SIGINT, SIGTERM, SIGUSR1};
use signal_hook::low_level::{pipe, unregister};

use crate::children::{self, Children, Ended, Key, Registered};
use crate::model::event::Event;
use crate::model::failure::Failure;
use crate::model::id::InstanceId;
use crate::ports::{Command, CommandEnd, Processes, Watch};
use crate::sys::notify::{Notifier, watchdog_period};
use crate::sys::progress::Board;
use crate::sys::span::span;
use crate::sys::time::{ClockJumps, monotonic};
use crate::sys::{command, pidfd, process, progress, thread};

/// Length of the inbox.
pub const INBOX: usize = 64;

/// Events taken from the kernel at a time.
const EVENTS: usize = 64;

/// How long a worker waits beyond the deadline of its command, for the kill to take effect.
pub const KILL_GRACE: Duration = Duration::from_secs(5);

/// How long a worker waits for a watch to be registered.
pub const REGISTER_DEADLINE: Duration = Duration::from_secs(10);

/// Why the main thread cannot work.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot set up {what}")]
    Setup {
        what: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("cannot poll")]
    Poll(#[source] io::Error),
    #[error("cannot watch process {pid}")]
    Watch {
        pid: u32,
        #[source]
        source: io::Error,
    },
    #[error("thread makes no progress thread={thread} silent_ms={}", .silence.as_millis())]
    Stuck { thread: &'static str, silence: Duration },
    #[error("process manager has stopped")]
    Stopped,
    #[error("process manager does not answer")]
    Silent,
    #[error("command {program} cannot be killed")]
    Unkillable { program: String },
}

/// What the main thread is asked.
#[derive(Debug)]
pub enum LoopCmd {
    Spawn {
        command: Command,
        reply: children::Reply,
    },
    Watch {
        watch: Watch,
        /// Has one slot.
        reply: Sender<Result<(), Failure>>,
    },
    /// Asks an init to stop; one that has no handler for the signal is killed.
    Signal {
        id: InstanceId,
        signal: i32,
    },
    /// The end of this instance's init is of no interest any more.
    Unwatch {
        id: InstanceId,
    },
    /// The daemon is up: tell the service manager.
    Ready,
    /// Core's answer to `Event::Ping`.
    Pong,
    /// Leave the loop.
    Stop,
}

/// Way to the main thread.
#[derive(Clone, Debug)]
pub struct LoopHandle {
    inbox: Sender<LoopCmd>,
    waker: Arc<Waker>,
}

impl LoopHandle {
    /// Asks the init of an instance to stop. Never blocks; false = the inbox is full.
    pub fn try_signal(&self, id: &InstanceId, signal: i32) -> bool {
        self.offer(LoopCmd::Signal { id: id.clone(), signal })
    }

    /// Ends the supervision of an instance. Never blocks; false = the inbox is full.
    pub fn try_unwatch(&self, id: &InstanceId) -> bool {
        self.offer(LoopCmd::Unwatch { id: id.clone() })
    }

    /// Reports the daemon as ready. Never blocks; false = the inbox is full.
    pub fn ready(&self) -> bool {
        self.offer(LoopCmd::Ready)
    }

    /// Answers `Event::Ping`. Never blocks; false = the inbox is full.
    pub fn pong(&self) -> bool {
        self.offer(LoopCmd::Pong)
    }

    /// Ends the loop. Waits while the inbox is full.
    pub fn stop(&self) {
        // A loop that has gone has nothing to stop.
        let _ = self.send(LoopCmd::Stop);
    }

    fn offer(&self, command: LoopCmd) -> bool {
        self.inbox.try_send(command).is_ok() && self.waker.wake().is_ok()
    }

    fn send(&self, command: LoopCmd) -> Result<(), Error> {
        self.inbox.send(command).map_err(|_| Error::Stopped)?;
        self.waker.wake().map_err(Error::Poll)
    }
}

impl Processes for LoopHandle {
    fn run(&self, command: Command) -> Result<CommandEnd, Failure> {
        let program = command.argv.first().map(|name| name.to_string_lossy().into_owned());
        let patience = command.deadline + KILL_GRACE;
        let (reply, answer) = bounded(1);
        self.send(LoopCmd::Spawn { command, reply }).map_err(|error| Failure::lasting(&error))?;
        let silent = Error::Unkillable { program: program.unwrap_or_default() };
        wait_for(&answer, patience, &silent)
    }

    fn start(&self, command: Command) -> Result<(), Failure> {
        let (reply, _) = bounded(1);
        self.send(LoopCmd::Spawn { command, reply }).map_err(|error| Failure::lasting(&error))
    }

    fn watch(&self, watch: Watch) -> Result<(), Failure> {
        let (reply, answer) = bounded(1);
        self.send(LoopCmd::Watch { watch, reply }).map_err(|error| Failure::lasting(&error))?;
        wait_for(&answer, REGISTER_DEADLINE, &Error::Silent)
    }
}

fn wait_for<T>(
    answer: &Receiver<Result<T, Failure>>,
    patience: Duration,
    silent: &Error,
) -> Result<T, Failure> {
    match progress::waiting(|| answer.recv_timeout(patience)) {
        Ok(result) => result,
        Err(RecvTimeoutError::Timeout) => Err(Failure::lasting(silent)),
        Err(RecvTimeoutError::Disconnected) => Err(Failure::lasting(&Error::Stopped)),
    }
}

/// What the poller knows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Token {
    Inbox,
    Signals,
    Clock,
    Init(Key),
}

/// Tokens below are not inits.
const FIRST_INIT: usize = 3;

impl From<Token> for mio::Token {
    fn from(token: Token) -> Self {
        Self(match token {
            Token::Inbox => 0,
            Token::Signals => 1,
            Token::Clock => 2,
            Token::Init(key) => FIRST_INIT + key.0,
        })
    }
}

impl From<mio::Token> for Token {
    fn from(token: mio::Token) -> Self {
        match token.0 {
            0 => Self::Inbox,
            1 => Self::Signals,
            2 => Self::Clock,
            number => Self::Init(Key(number - FIRST_INIT)),
        }
    }
}

/// The main thread's state.
#[derive(Debug)]
pub struct EventLoop {
    poll: Poll,
    /// Kept open: closing it with the last handle would lose a wake-up that was not seen yet.
    _waker: Arc<Waker>,
    inbox: Receiver<LoopCmd>,
    signals: Signals,
    clock: ClockJumps,
    children: Children,
    notifier: Option<Notifier>,
    watchdog: Option<Watchdog>,
    /// The first SIGTERM or SIGINT was passed on.
    stop_sent: bool,
    /// `LoopCmd::Stop` was seen.
    stopped: bool,
}

/// The service manager's watchdog: it hears from us only while all threads make progress.
#[derive(Debug)]
struct Watchdog {
    /// Half of the time after which the service manager would act.
    period: Duration,
    next: Duration,
    /// Since when core owes an answer; `None` = it has given it.
    asked_at: Option<Duration>,
    /// The question is in its inbox.
    is_asked: bool,
}

impl Watchdog {
    /// A thread that has been silent for as long as the service manager allows. Core has to answer,
    /// too: that takes the whole way through its inbox.
    fn stuck(&self, board: &Board, now: Duration) -> Option<progress::Stuck> {
        let limit = 2 * self.period;
        let unanswered = self.asked_at.map(|at| now.saturating_sub(at));
        let core = unanswered.map(|silence| progress::Stuck { thread: "core", silence });
        board.stuck(limit, now).or(core.filter(|core| core.silence > limit))
    }
}

impl EventLoop {
    /// Takes over signals, children and descriptors of the process. Called once, before threads
    /// exist.
    pub fn new() -> Result<(Self, LoopHandle), Error> {
        let setup = |what| move |source| Error::Setup { what, source };
        command::seal_inherited().map_err(setup("inherited descriptors"))?;
        // Each watched init takes two descriptors.
        process::raise_open_files().map_err(setup("the limit of open files"))?;
        pidfd::become_subreaper().map_err(setup("reaping of orphans"))?;
        let poll = Poll::new().map_err(setup("polling"))?;
        let registry = poll.registry();
        let waker = Waker::new(registry, Token::Inbox.into()).map_err(setup("the inbox"))?;
        let signals = Signals::new().map_err(setup("signals"))?;
        let clock = ClockJumps::watch().map_err(setup("clock jumps"))?;
        for (fd, token) in
            [(signals.pipe.as_raw_fd(), Token::Signals), (clock.as_raw_fd(), Token::Clock)]
        {
            registry
                .register(&mut SourceFd(&fd), token.into(), Interest::READABLE)
                .map_err(setup("polling"))?;
        }
        let notifier = Notifier::from_env().map_err(setup("NOTIFY_SOCKET"))?;
        let watchdog = watchdog_period().filter(|_| notifier.is_some()).map(|period| Watchdog {
            period,
            next: monotonic() + period,
            asked_at: None,
            is_asked: false,
        });
        let (sender, inbox) = bounded(INBOX);
        let waker = Arc::new(waker);
        let event_loop = Self {
            poll,
            _waker: waker.clone(),
            inbox,
            signals,
            clock,
            children: Children::default(),
            notifier,
            watchdog,
            stop_sent: false,
            stopped: false,
        };
        Ok((event_loop, LoopHandle { inbox: sender, waker }))
    }

    /// Whether a service manager wants to know that all threads make progress.
    pub fn is_supervised(&self) -> bool {
        self.watchdog.is_some()
    }

    /// Runs until `LoopCmd::Stop`, or until a thread of `board` is stuck: then the process has to
    /// end, and the next one adopts what runs. Children that still run go on without us.
    pub fn run(mut self, core: &Sender<Event>, board: &Board) -> Result<(), Error> {
        thread::unblock_signals().map_err(|source| Error::Setup { what: "signals", source })?;
        let mut events = Events::with_capacity(EVENTS);
        while !self.stopped {
            match self.poll.poll(&mut events, self.timeout()) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                other => other.map_err(Error::Poll)?,
            }
            let now = monotonic();
            for event in &events {
                self.dispatch(event.token().into(), now, core);
            }
            let late = self.children.expire(now);
            report(late, core);
            self.tick_watchdog(now, core, board)?;
        }
        Ok(())
    }

    /// How long to sleep; `None` = until something happens.
    fn timeout(&self) -> Option<Duration> {
        let watchdog = self.watchdog.as_ref().map(|watchdog| watchdog.next);
        let next = self.children.next_deadline().into_iter().chain(watchdog).min()?;
        Some(next.saturating_sub(monotonic()))
    }

    fn dispatch(&mut self, token: Token, now: Duration, core: &Sender<Event>) {
        match token {
            Token::Inbox => {
                while let Ok(command) = self.inbox.try_recv() {
                    self.obey(command, core);
                }
            }
            Token::Signals => self.take_signals(now, core),
            Token::Clock => match self.clock.take() {
                Ok(true) => tell(core, Event::ClockChanged),
                Ok(false) => {}
                Err(error) => log::error!("cannot watch the wall clock err={error}"),
            },
            Token::Init(key) => {
                let ended = self.children.readable(key, now);
                report(ended, core);
            }
        }
    }

    fn obey(&mut self, command: LoopCmd, core: &Sender<Event>) {
        match command {
            LoopCmd::Spawn { command, reply } => {
                span("spawn", &"-", || self.children.spawn(command, reply, monotonic()));
            }
            LoopCmd::Watch { watch, reply } => {
                let result = self.watch(watch, core).map_err(|error| Failure::lasting(&error));
                if reply.try_send(result).is_err() {
                    log::warn!("nobody waits for a registration any more");
                }
            }
            LoopCmd::Signal { id, signal } => match self.children.signal(&id, signal) {
                Ok(()) => log::debug!("stop signal sent instance={id} signal={signal}"),
                Err(error) => log::warn!("{} instance={id}", crate::model::status::chain(&error)),
            },
            LoopCmd::Unwatch { id } => self.unwatch(&id),
            LoopCmd::Ready => self.notify("READY=1"),
            LoopCmd::Pong => {
                if let Some(watchdog) = &mut self.watchdog {
                    (watchdog.asked_at, watchdog.is_asked) = (None, false);
                    self.notify("WATCHDOG=1");
                }
            }
            LoopCmd::Stop => self.stopped = true,
        }
    }

    fn watch(&mut self, watch: Watch, core: &Sender<Event>) -> Result<(), Error> {
        self.unwatch(&watch.id);
        let pid = watch.pid;
        match self.children.watch(watch, monotonic()) {
            Registered::Ended(ended) => report([ended], core),
            Registered::Watching(key) => {
                if let Err(source) = self.poll_init(key) {
                    self.children.unwatch(key);
                    return Err(Error::Watch { pid, source });
                }
            }
        }
        Ok(())
    }

    fn poll_init(&self, key: Key) -> io::Result<()> {
        let Some(fd) = self.children.pidfd(key) else { return Ok(()) };
        let fd = fd.as_raw_fd();
        let registry: &Registry = self.poll.registry();
        registry.register(&mut SourceFd(&fd), Token::Init(key).into(), Interest::READABLE)
    }

    /// The poller forgets a descriptor when it is closed: there are no duplicates of it.
    fn unwatch(&mut self, id: &InstanceId) {
        if let Some(key) = self.children.key_of(id) {
            self.children.unwatch(key);
        }
    }

    fn take_signals(&mut self, now: Duration, core: &Sender<Event>) {
        for signal in self.signals.take() {
            match signal {
                SIGCHLD => {
                    let ended = self.children.reap(now);
                    report(ended, core);
                }
                SIGTERM | SIGINT if !self.stop_sent => {
                    log::info!("stopping signal={signal}");
                    self.stop_sent = true;
                    self.notify("STOPPING=1");
                    tell(core, Event::Stop);
                }
                SIGHUP => tell(core, Event::Reload),
                other => log::info!("signal ignored signal={other}"),
            }
        }
    }

    fn tick_watchdog(
        &mut self,
        now: Duration,
        core: &Sender<Event>,
        board: &Board,
    ) -> Result<(), Error> {
        let Some(watchdog) = self.watchdog.as_mut().filter(|watchdog| watchdog.next <= now) else {
            return Ok(());
        };
        watchdog.next = now + watchdog.period;
        if let Some(progress::Stuck { thread, silence }) = watchdog.stuck(board, now) {
            return Err(Error::Stuck { thread, silence });
        }
        watchdog.asked_at.get_or_insert(now);
        if !watchdog.is_asked {
            // A full inbox must not stop this thread; the next turn asks again.
            watchdog.is_asked = core.try_send(Event::Ping).is_ok();
        }
        Ok(())
    }

    fn notify(&self, state: &str) {
        let sent = self.notifier.as_ref().map(|notifier| notifier.send(state));
        if let Some(Err(error)) = sent {
            log::warn!("cannot notify the service manager state={state} err={error}");
        }
    }
}

fn report(ended: impl IntoIterator<Item = Ended>, core: &Sender<Event>) {
    for Ended { id, pid, exit, .. } in ended {
        tell(core, Event::Exited { id, pid, exit });
    }
}

/// Waits while core's inbox is full, as every thread may.
fn tell(core: &Sender<Event>, event: Event) {
    if let Err(error) = core.send(event) {
        log::debug!("core has ended event={:?}", error.0);
    }
}

/// Signals of the process: a flag each, and one pipe that wakes the poller.
#[derive(Debug)]
struct Signals {
    pipe: UnixStream,
    flags: [(i32, Arc<AtomicBool>); 5],
    actions: Vec<SigId>,
}

impl Signals {
    fn new() -> io::Result<Self> {
        let (pipe, wake) = UnixStream::pair()?;
        pipe.set_nonblocking(true)?;
        let flags = [SIGCHLD, SIGTERM, SIGINT, SIGHUP, SIGUSR1];
        let flags = flags.map(|signal| (signal, Arc::new(AtomicBool::new(false))));
        let mut signals = Self { pipe, flags, actions: Vec::new() };
        for (signal, flag) in &signals.flags {
            // In this order: the flag is up when the poller wakes.
            signals.actions.push(signal_hook::flag::register(*signal, Arc::clone(flag))?);
            let wake: OwnedFd = wake.try_clone()?.into();
            signals.actions.push(pipe::register(*signal, wake)?);
        }
        Ok(signals)
    }

    /// The signals that came since the last call.
    fn take(&mut self) -> Vec<i32> {
        let mut buffer = [0; 64];
        while matches!(self.pipe.read(&mut buffer), Ok(length) if length > 0) {}
        let came = self.flags.iter().filter(|(_, flag)| flag.swap(false, Ordering::AcqRel));
        came.map(|(signal, _)| *signal).collect()
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        for action in self.actions.drain(..) {
            unregister(action);
        }
    }
}

#[cfg(test)]
mod tests;
