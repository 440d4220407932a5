//! Thread iam: keeps in touch with IAM, fetches and returns the secrets of instances.
//!
//! In: registrations and removals from core, notifications about certificates from IAM. Out:
//! `IamEvent`s to core. A registration that IAM refuses is answered with the error; one that IAM
//! cannot take because it is away waits here until it is back, so that no worker and no start
//! ever waits for IAM. A removal is tried twice. IAM keeps registrations in memory only: whoever
//! needs them again after a restart asks again (`Up { restarted: true }`).
//!
//! ```text
//! away ──dial, GetNodeInfo, subscribe, GetCert──> up ──stream or call breaks──> away
//!   └───────── pause 1, 2, 4 … 10 s ────────┘
//! ```
//!
//! An IAM that answers but refuses the subscription (an old release, a node without certificate)
//! counts as up; the subscription is tried again.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use crossbeam::channel::Sender;

use crate::iam::{Certificates, Settings, malformed, v5};
use crate::model::event::{Event, IamCommand, IamEvent};
use crate::model::failure::Failure;
use crate::model::id::{InstanceId, InstanceIdent};
use crate::model::job::Permissions;
use crate::model::node::NodeInfo;
use crate::model::status::chain;
use crate::rpc::{self, CertSource, Certificate, Connection, Inbox, Pending, ServerStream, Woken};
use crate::sys::time::now;

/// Commands that may wait for this thread.
pub const INBOX_CAPACITY: usize = 64;
/// Registrations, and as many removals, that wait for IAM: one for each possible instance.
pub const WAITING_LIMIT: usize = 1024;
/// A call ends by itself at its deadline; this is for what follows the answer.
const CALL_MARGIN: Duration = Duration::from_secs(2);

/// Everything the thread owns or reaches.
#[derive(Debug)]
pub struct Watching {
    pub settings: Settings,
    pub env: rpc::Env,
    pub certs: Arc<Certificates>,
    pub inbox: Inbox<IamCommand>,
    pub events: Sender<Event>,
}

impl Watching {
    /// Body of the thread; returns after `Stop` or when nobody can send commands any more.
    pub fn run(self) {
        let mut watch = Watch {
            parts: self,
            tasks: VecDeque::new(),
            task_failures: 0,
            retry_at: None,
            protected: None,
            certificate: None,
            node: None,
            been_up: false,
        };
        // The only error is the wish to stop.
        let Err(Stopped) = watch.live();
    }
}

/// The thread is to end.
struct Stopped;

enum Task {
    Register { id: InstanceId, ask: u64, ident: InstanceIdent, permissions: Arc<Permissions> },
    Unregister { id: InstanceId, ask: u64, ident: InstanceIdent, tried: bool },
}

impl Task {
    fn id(&self) -> &InstanceId {
        match self {
            Self::Register { id, .. } | Self::Unregister { id, .. } => id,
        }
    }

    fn is_registration(&self) -> bool {
        matches!(self, Self::Register { .. })
    }
}

struct Watch {
    parts: Watching,
    tasks: VecDeque<Task>,
    task_failures: u32,
    /// Tasks wait until then, because IAM did not take one.
    retry_at: Option<Instant>,
    /// Connection to the protected server and the time of its last use.
    protected: Option<(Connection, Instant)>,
    /// As it was last seen.
    certificate: Option<Certificate>,
    /// As it was last reported.
    node: Option<NodeInfo>,
    been_up: bool,
}

/// The subscription to certificate changes.
enum Subscription {
    Open(ServerStream),
    /// Refused; try again at this time.
    Refused(Instant),
}

impl Watch {
    fn live(&mut self) -> Result<std::convert::Infallible, Stopped> {
        let mut failures = 0;
        let mut last_reason = String::new();
        loop {
            match self.connect()? {
                Ok((public, stream)) => {
                    failures = 0;
                    let error = self.serve(&public, stream)?;
                    self.protected = None;
                    self.report(IamEvent::Down);
                    log::warn!("IAM lost err={}", chain(&error));
                }
                Err(error) => {
                    let reason = chain(&error);
                    // An absent IAM is reported once, not every ten seconds.
                    let level =
                        if reason == last_reason { log::Level::Debug } else { log::Level::Warn };
                    log::log!(level, "no IAM url={} err={reason:?}", self.settings().public_url);
                    last_reason = reason;
                }
            }
            self.sleep(self.pause(failures))?;
            failures += 1;
        }
    }

    fn settings(&self) -> &Settings {
        &self.parts.settings
    }

    fn report(&self, event: IamEvent) {
        let _ = self.parts.events.send(Event::Iam(event));
    }

    /// Doubles with each failure, from the first to the longest pause.
    fn pause(&self, failures: u32) -> Duration {
        let (first, longest) = self.settings().timing.pause;
        first.saturating_mul(2u32.saturating_pow(failures)).min(longest)
    }

    fn sleep(&mut self, pause: Duration) -> Result<(), Stopped> {
        let until = now() + pause;
        loop {
            match self.parts.inbox.wait(Some(until)) {
                Woken::Command(command) => self.accept(command)?,
                Woken::Closed => return Err(Stopped),
                Woken::TimedOut => return Ok(()),
                Woken::Done(never) => match never {},
            }
        }
    }

    /// Takes a command in; commands are taken during calls as well.
    fn accept(&mut self, command: IamCommand) -> Result<(), Stopped> {
        let task = match command {
            IamCommand::Stop => return Err(Stopped),
            IamCommand::Register { id, ask, ident, permissions } => {
                Task::Register { id, ask, ident, permissions }
            }
            IamCommand::Unregister { id, ask, ident } => {
                Task::Unregister { id, ask, ident, tried: false }
            }
        };
        // The newest wish for an instance replaces an older registration.
        self.tasks.retain(|t| !(t.is_registration() && t.id() == task.id()));
        let alike = self.tasks.iter().filter(|t| t.is_registration() == task.is_registration());
        if alike.count() < WAITING_LIMIT {
            self.tasks.push_back(task);
            return Ok(());
        }
        match task {
            Task::Register { id, ask, .. } => {
                let failure = Failure::text("too many registrations wait for IAM");
                self.report(IamEvent::Registered { id, ask, result: Err(failure) });
            }
            Task::Unregister { ask, ident, .. } => self.give_up_removal(ask, &ident),
        }
        Ok(())
    }

    /// Waits for an answer; commands that come meanwhile are taken in.
    fn answer<T>(&mut self, mut pending: Pending<T>) -> Result<Result<T, rpc::Error>, Stopped> {
        let limit = self.settings().timing.call + CALL_MARGIN;
        let until = Some(now() + limit);
        loop {
            match self.parts.inbox.wait_with(&mut pending, until) {
                Woken::Done(answer) => return Ok(answer),
                Woken::Command(command) => self.accept(command)?,
                Woken::Closed => return Err(Stopped),
                Woken::TimedOut => return Ok(Err(rpc::Error::TimedOut { call: "IAM", limit })),
            }
        }
    }

    fn call(
        &mut self,
        connection: &Connection,
        path: &'static str,
        request: Vec<u8>,
    ) -> Result<Result<Vec<u8>, rpc::Error>, Stopped> {
        match connection.unary(path, request, self.settings().timing.call) {
            Ok(pending) => self.answer(pending),
            Err(error) => Ok(Err(error)),
        }
    }

    fn connect(&mut self) -> Result<Result<(Connection, Subscription), rpc::Error>, Stopped> {
        let public = match self.settings().public(&self.parts.env) {
            Ok(public) => public,
            Err(error) => return Ok(Err(error)),
        };
        if let Err(error) = self.ask_node(&public, true)? {
            return Ok(Err(error));
        }
        let stream = match self.subscribe(&public) {
            Ok(stream) => stream,
            Err(error) => return Ok(Err(error)),
        };
        let first = !self.been_up;
        self.compare_certificate(!first)?;
        // Changes that nobody was told of, because nobody had subscribed.
        if first && self.certificate.as_ref().is_some_and(|own| self.parts.certs.is_later(own)) {
            log::info!("the certificate has changed");
            self.report(IamEvent::CertChanged);
        }
        self.been_up = true;
        self.retry_at = None;
        log::info!("IAM is up url={}", self.settings().public_url);
        self.report(IamEvent::Up { restarted: !first });
        Ok(Ok((public, stream)))
    }

    fn subscribe(&self, public: &Connection) -> Result<Subscription, rpc::Error> {
        let request = v5::subscription(&self.settings().cert_type);
        public.server_stream(v5::SUBSCRIBE_CERT_CHANGED, request).map(Subscription::Open)
    }

    /// Reports what IAM says about the node, if it is new or `always`.
    fn ask_node(
        &mut self,
        public: &Connection,
        always: bool,
    ) -> Result<Result<(), rpc::Error>, Stopped> {
        let answer = self.call(public, v5::GET_NODE_INFO, Vec::new())?;
        let info = answer.and_then(|answer| {
            v5::node_info(&answer).map_err(|error| malformed(v5::GET_NODE_INFO, &error))
        });
        Ok(info.map(|info| {
            if always || self.node.as_ref() != Some(&info) {
                self.node = Some(info.clone());
                self.report(IamEvent::NodeInfo(info));
            }
        }))
    }

    /// Asks for the certificate and looks at the content: IAM repeats notifications, and files
    /// change behind equal URLs.
    fn fetch_certificate(
        &mut self,
        report: bool,
    ) -> Result<Result<Certificate, rpc::Error>, Stopped> {
        let certificate = self.answer(self.parts.certs.certificate())?;
        if let Ok(certificate) = &certificate
            && self.certificate.as_ref() != Some(certificate)
        {
            self.certificate = Some(certificate.clone());
            self.protected = None;
            if report {
                log::info!("the certificate has changed");
                self.report(IamEvent::CertChanged);
            }
        }
        Ok(certificate)
    }

    fn compare_certificate(&mut self, report: bool) -> Result<(), Stopped> {
        if let Err(error) = self.fetch_certificate(report)? {
            // Normal on a node that is not provisioned; whoever needs the certificate complains.
            log::debug!("no certificate err={}", chain(&error));
        }
        Ok(())
    }

    /// While IAM is up; ends with the error that tells that it is not any more.
    fn serve(
        &mut self,
        public: &Connection,
        mut subscription: Subscription,
    ) -> Result<rpc::Error, Stopped> {
        let mut refresh_at = now() + self.settings().timing.node_info;
        loop {
            self.work()?;
            let until = self.next_deadline(refresh_at, &subscription);
            let mut message = poll_fn(|cx| match &mut subscription {
                Subscription::Open(stream) => stream.poll(cx),
                Subscription::Refused(_) => Poll::Pending,
            });
            match self.parts.inbox.wait_with(&mut message, Some(until)) {
                Woken::Done(Some(Ok(_urls))) => self.compare_certificate(true)?,
                Woken::Done(Some(Err(error))) if error.is_unreachable() => return Ok(error),
                Woken::Done(Some(Err(error))) => {
                    log::debug!("subscription refused err={}", chain(&error));
                    let never = error.is_unimplemented();
                    let pause = if never {
                        self.settings().timing.node_info
                    } else {
                        self.settings().timing.pause.1
                    };
                    subscription = Subscription::Refused(now() + pause);
                }
                Woken::Done(None) => {
                    return Ok(rpc::Error::Ended { call: v5::SUBSCRIBE_CERT_CHANGED });
                }
                Woken::Command(command) => self.accept(command)?,
                Woken::Closed => return Err(Stopped),
                Woken::TimedOut => {}
            }
            let time = now();
            if let Subscription::Refused(at) = subscription
                && at <= time
            {
                subscription = match self.subscribe(public) {
                    Ok(stream) => stream,
                    Err(error) => return Ok(error),
                };
                self.compare_certificate(true)?;
            }
            if refresh_at <= time {
                refresh_at = time + self.settings().timing.node_info;
                if let Err(error) = self.ask_node(public, false)?
                    && error.is_unreachable()
                {
                    return Ok(error);
                }
            }
            let idle = self.settings().timing.idle;
            self.protected.take_if(|(_, used)| *used + idle <= time);
        }
    }

    fn next_deadline(&self, refresh_at: Instant, subscription: &Subscription) -> Instant {
        let subscribe_at = match subscription {
            Subscription::Open(_) => None,
            Subscription::Refused(at) => Some(*at),
        };
        let idle_at = self.protected.as_ref().map(|(_, used)| *used + self.settings().timing.idle);
        let work_at = self.retry_at.filter(|_| !self.tasks.is_empty());
        [subscribe_at, idle_at, work_at].into_iter().flatten().fold(refresh_at, Instant::min)
    }

    /// Does what waits, one after another, until IAM does not take one.
    fn work(&mut self) -> Result<(), Stopped> {
        if self.retry_at.is_some_and(|at| at > now()) {
            return Ok(());
        }
        self.retry_at = None;
        while let Some(task) = self.tasks.pop_front() {
            let reused = self.protected.is_some();
            match self.attempt(&task)? {
                Ok(()) => self.task_failures = 0,
                // The connection broke while it was idle, which shows only now.
                Err(_) if reused => self.put_back(task),
                Err(error) => {
                    let pause = self.pause(self.task_failures);
                    self.task_failures += 1;
                    log::warn!("IAM takes no requests pause={pause:?} err={}", chain(&error));
                    self.retry_at = Some(now() + pause);
                    self.put_back_tried(task);
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// One call on the protected server. An error means that IAM was not reached.
    fn attempt(&mut self, task: &Task) -> Result<Result<(), rpc::Error>, Stopped> {
        let connection = match self.protected()? {
            Ok(connection) => connection,
            Err(error) => return Ok(Err(error)),
        };
        let answer = match task {
            Task::Register { ident, permissions, .. } => {
                let request = v5::registration(ident, permissions);
                self.call(&connection, v5::REGISTER_INSTANCE, request)?
            }
            Task::Unregister { ident, .. } => {
                self.call(&connection, v5::UNREGISTER_INSTANCE, v5::removal(ident))?
            }
        };
        match answer {
            Err(error) if error.is_unreachable() => return Ok(Err(error)),
            answer => self.finish(task, answer),
        }
        self.protected = Some((connection, now()));
        Ok(Ok(()))
    }

    fn protected(&mut self) -> Result<Result<Connection, rpc::Error>, Stopped> {
        if let Some((connection, _)) = self.protected.take() {
            return Ok(Ok(connection));
        }
        let certificate = self.fetch_certificate(true)?;
        Ok(certificate.and_then(|c| self.settings().protected(&self.parts.env, &c)))
    }

    fn finish(&self, task: &Task, answer: Result<Vec<u8>, rpc::Error>) {
        match task {
            Task::Register { id, ask, ident, .. } => {
                let secret = answer.and_then(|answer| {
                    v5::secret(&answer).map_err(|e| malformed(v5::REGISTER_INSTANCE, &e))
                });
                let result = secret.map(Arc::from).map_err(|error| {
                    log::error!("cannot register instance={ident} err={}", chain(&error));
                    Failure::lasting(&error)
                });
                self.report(IamEvent::Registered { id: id.clone(), ask: *ask, result });
            }
            Task::Unregister { ask, ident, .. } => {
                if let Err(error) = answer {
                    log::debug!("removal refused instance={ident} err={}", chain(&error));
                }
                self.report(IamEvent::Unregistered { ask: *ask, done: true });
            }
        }
    }

    /// Back to the front. A newer wish for the instance replaces a registration, but never a
    /// removal: without it the next registration would keep the old permissions.
    fn put_back(&mut self, task: Task) {
        if !(task.is_registration() && self.tasks.iter().any(|newer| newer.id() == task.id())) {
            self.tasks.push_front(task);
        }
    }

    /// A task that IAM did not take: a removal is repeated once.
    fn put_back_tried(&mut self, task: Task) {
        match task {
            Task::Register { .. } => self.put_back(task),
            Task::Unregister { id, ask, ident, tried: false } => {
                self.put_back(Task::Unregister { id, ask, ident, tried: true });
            }
            Task::Unregister { ask, ident, .. } => self.give_up_removal(ask, &ident),
        }
    }

    /// Core asks again when IAM comes back.
    fn give_up_removal(&self, ask: u64, ident: &InstanceIdent) {
        log::warn!("IAM was not reached for a removal instance={ident}");
        self.report(IamEvent::Unregistered { ask, done: false });
    }
}
