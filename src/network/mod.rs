//! Networks of the node and of its instances: bridges, namespaces, addresses, rules, names.
//!
//! The thread `net` owns everything on the host that has to do with networks and is the only one
//! that enters namespaces. In: `NetRequest`s through `NetHandle`, announcements of the kernel, jumps
//! of the wall clock, name queries of instances. Out: one-slot replies to exec jobs and monitor, and
//! to core `Event::NetworksUpdated`, `Event::Traffic` and `Event::TrafficCollected`. All kernel
//! changes go over netlink from this process; no program is ever started. What stands in the kernel
//! is recognised by aliases and by the prefix `aos_`, so that nothing foreign is touched and a crash
//! leaves nothing unknown.
//!
//! Reading order: `settings`, `caps` (what the kernel can do), `plan` (checks), `domain` (state), `bridge` (networks) with `vlans` and `rejoin`, `attach`
//! (instances) with `limits` and `files`, `counting` with `traffic` (volumes), `notices` (what others do), `names`, `dns` with
//! `packet`, `firewall` with `rules`, `accounting`, `found` and `conntrack`, `shaping`, then the encodings
//! `rtnl`, `nft` with `expressions`, `listing`, `filter`, `wire` and the socket `channel`. Not here: the decision what is attached
//! when (core, exec jobs).

mod accounting;
mod attach;
mod bridge;
mod caps;
mod channel;
mod conntrack;
mod counting;
mod dns;
mod domain;
mod ending;
mod error;
mod expressions;
mod files;
mod filter;
mod firewall;
mod found;
mod limits;
mod listing;
mod names;
mod naming;
mod nft;
mod notices;
mod packet;
mod plan;
mod reference;
mod rejoin;
mod rtnl;
mod rules;
mod settings;
mod shaping;
mod traffic;
mod vlans;
mod wire;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;

use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::Duration;

use crossbeam::channel::{Receiver, Sender, TryRecvError, TrySendError, bounded};
use log::{error, info};
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token, Waker};

use self::domain::Domain;
pub use self::error::{Error, Refusal};
pub use self::settings::NetworkSettings;
pub use self::traffic::TrafficPeriod;
use crate::model::desired::NetworkParams;
use crate::model::event::Event;
use crate::model::failure::Failure;
use crate::model::id::InstanceId;
use crate::model::store::NetworkLinks;
use crate::model::traffic::{Traffic, TrafficRow};
use crate::ports::{Network, NetworkPlan, TrafficSource};
use crate::sys;
use crate::sys::progress;
use crate::sys::span::span;
use crate::sys::time::ClockJumps;

/// Two exec threads, monitor and core have at most one request each in it.
const REQUESTS: usize = 8;
/// The longest kernel job is some 100 ms.
const REPLY_DEADLINE: Duration = Duration::from_secs(10);
const READY_SOCKETS: usize = 32;
const WAKER: Token = Token(0);
/// Those of the name server begin at 1 and end far below.
const CLOCK: Token = Token(usize::MAX);
/// Attaches that become one transaction.
const MAX_GROUP: usize = 64;

/// What the net thread can be asked.
#[derive(Debug)]
enum NetRequest {
    Attach { plan: Box<NetworkPlan>, reply: Sender<Result<(), Failure>> },
    Adopt { plan: Box<NetworkPlan>, reply: Sender<Result<(), Failure>> },
    Detach { id: InstanceId, reply: Sender<Result<(), Failure>> },
    Traffic { reply: Sender<Counted> },
    Survey { reply: Sender<Vec<InstanceId>> },
    Update(Vec<NetworkParams>),
    Keep(Vec<InstanceId>),
    Forget(Vec<InstanceId>),
    Collect,
    Clear,
    Stop,
}

/// Talks to the net thread. Cloneable; when the last one is dropped the thread ends.
#[derive(Clone, Debug)]
pub struct NetHandle(Arc<Sending>);

#[derive(Debug)]
struct Sending {
    /// `None` only while the last handle is dropped.
    requests: Option<Sender<NetRequest>>,
    waker: Arc<Waker>,
}

impl Drop for Sending {
    /// The thread must find the channel closed when it wakes up.
    fn drop(&mut self) {
        self.requests = None;
        // Fails only if the poll is gone, and then so is the thread.
        let _ = self.waker.wake();
    }
}

impl NetHandle {
    /// Replaces the set of networks; answered by `Event::NetworksUpdated`. `false` = the queue is
    /// full or the thread has ended; nothing happened.
    pub fn try_update(&self, networks: Vec<NetworkParams>) -> bool {
        self.try_send(NetRequest::Update(networks))
    }

    /// After the adoption: removes what earlier lives of the daemon left and that is not of an
    /// instance in the list. `false` as above.
    pub fn try_keep(&self, instances: Vec<InstanceId>) -> bool {
        self.try_send(NetRequest::Keep(instances))
    }

    /// Removes everything of ours, the rules and all networks included, because no instance is to
    /// come in this life. `false` as above.
    pub fn try_clear(&self) -> bool {
        self.try_send(NetRequest::Clear)
    }

    /// These instances are detached for good: drops what they have transferred, here and in the
    /// database. `false` as above.
    pub fn try_forget(&self, instances: Vec<InstanceId>) -> bool {
        self.try_send(NetRequest::Forget(instances))
    }

    /// Sends to core all that was counted and is not stored yet; answered by
    /// `Event::TrafficCollected`. `false` as above.
    pub fn try_collect(&self) -> bool {
        self.try_send(NetRequest::Collect)
    }

    /// Ends the thread after what is queued before. Links, namespaces and rules stay.
    pub fn stop(&self) {
        // If the queue is full, the thread still ends with its last handle.
        self.try_send(NetRequest::Stop);
    }

    fn requests(&self) -> Option<&Sender<NetRequest>> {
        self.0.requests.as_ref()
    }

    fn wake(&self) {
        if let Err(err) = self.0.waker.wake() {
            error!("cannot wake the network thread err={err}");
        }
    }

    fn try_send(&self, request: NetRequest) -> bool {
        let Some(requests) = self.requests() else { return false };
        match requests.try_send(request) {
            Ok(()) => {
                self.wake();
                true
            }
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => false,
        }
    }

    fn ask<T>(&self, request: impl FnOnce(Sender<T>) -> NetRequest) -> Result<T, Error> {
        self.ask_within(REPLY_DEADLINE, request)
    }

    fn ask_within<T>(
        &self,
        limit: Duration,
        request: impl FnOnce(Sender<T>) -> NetRequest,
    ) -> Result<T, Error> {
        let until = sys::time::now() + limit;
        let (reply, answer) = bounded(1);
        self.request(request(reply), until)?;
        let answered = progress::waiting(|| answer.recv_deadline(until));
        answered.map_err(|missing| lost(missing.is_timeout()))
    }

    fn request(&self, request: NetRequest, until: std::time::Instant) -> Result<(), Error> {
        let requests = self.requests().ok_or(Error::Closed)?;
        requests.send_deadline(request, until).map_err(|unsent| lost(unsent.is_timeout()))?;
        self.wake();
        Ok(())
    }

    /// For somebody who reads the counters again and again.
    pub fn traffic_reader(&self) -> TrafficReader {
        TrafficReader { net: self.clone(), answers: bounded(1) }
    }
}

fn lost(is_timeout: bool) -> Error {
    if is_timeout { Error::Timeout } else { Error::Closed }
}

type Counted = Result<Traffic, Failure>;

/// Reads the traffic counters; keeps its channel for the answers.
#[derive(Debug)]
pub struct TrafficReader {
    net: NetHandle,
    answers: (Sender<Counted>, Receiver<Counted>),
}

impl Network for NetHandle {
    fn attach(&self, plan: &NetworkPlan) -> Result<(), Failure> {
        let plan = Box::new(plan.clone());
        self.ask(|reply| NetRequest::Attach { plan, reply })?
    }

    fn adopt(&self, plan: &NetworkPlan) -> Result<(), Failure> {
        let plan = Box::new(plan.clone());
        self.ask(|reply| NetRequest::Adopt { plan, reply })?
    }

    fn detach(&self, id: &InstanceId) -> Result<(), Failure> {
        let id = id.clone();
        self.ask(|reply| NetRequest::Detach { id, reply })?
    }

    fn survey(&self) -> Vec<InstanceId> {
        match self.ask(|reply| NetRequest::Survey { reply }) {
            Ok(instances) => instances,
            Err(err) => {
                error!("cannot list the networks of instances err={err}");
                Vec::new()
            }
        }
    }
}

impl TrafficSource for TrafficReader {
    fn traffic(&self, limit: Duration, traffic: &mut Traffic) -> Result<(), Failure> {
        let (reply, answer) = &self.answers;
        // To a question that was given up.
        while answer.try_recv().is_ok() {}
        let until = sys::time::now() + limit;
        self.net.request(NetRequest::Traffic { reply: reply.clone() }, until)?;
        let counted = progress::waiting(|| answer.recv_deadline(until));
        *traffic = counted.map_err(|missing| lost(missing.is_timeout()))??;
        Ok(())
    }
}

/// The net thread before it runs.
#[derive(Debug)]
pub struct NetThread {
    poll: Poll,
    /// A waker that is dropped takes its pending wake-up along; this one outlives the handles.
    _waker: Arc<Waker>,
    inbox: Receiver<NetRequest>,
    /// Was taken out of the inbox in search of more attaches.
    postponed: Option<NetRequest>,
    clock: ClockJumps,
    domain: Domain,
}

impl NetThread {
    /// Opens what the thread needs; changes nothing in the kernel. The calling thread must be in
    /// the network namespace of the host.
    pub fn new(settings: NetworkSettings) -> Result<(Self, NetHandle), Error> {
        let failed = |source| Error::Socket { operation: "create poll", source };
        let poll = Poll::new().map_err(failed)?;
        let waker = Arc::new(Waker::new(poll.registry(), WAKER).map_err(failed)?);
        let (sender, inbox) = bounded(REQUESTS);
        let registry = poll.registry().try_clone().map_err(failed)?;
        let domain = Domain::open(settings, registry)?;
        let clock = ClockJumps::watch().map_err(failed)?;
        let source = &mut SourceFd(&clock.as_raw_fd());
        poll.registry().register(source, CLOCK, Interest::READABLE).map_err(failed)?;
        let handle = NetHandle(Arc::new(Sending { requests: Some(sender), waker: waker.clone() }));
        let postponed = None;
        Ok((Self { poll, _waker: waker, inbox, postponed, clock, domain }, handle))
    }

    /// Stored traffic counters, and all instances of the database. Without this call counters are
    /// not given to anybody for storing.
    pub fn restore(&mut self, rows: Vec<TrafficRow>, known: &[InstanceId]) {
        self.domain.ledger.restore(rows, known);
    }

    /// Names of interfaces that an earlier service manager has left, by its database: they are taken
    /// over, or go, as if they were ours.
    pub fn recognise(&mut self, links: Vec<NetworkLinks>) {
        let named = links.into_iter().map(|links| (links.network.clone(), links));
        self.domain.stored_links = named.collect();
    }

    /// Looks as if the kernel had no more than this.
    #[cfg(test)]
    fn pretend(&mut self, caps: Option<caps::NetCaps>) {
        self.domain.pretended = caps;
    }

    /// The kernel cannot carry out these operations on links of the host or in the rules, once each.
    #[cfg(test)]
    fn refuse(&mut self, operations: &[(&'static str, nix::errno::Errno)]) {
        self.domain.links.refused = operations.to_vec();
        self.domain.firewall.refuse(operations);
    }

    /// The wall clock of the thread.
    #[cfg(test)]
    fn follow(&mut self, ahead_ms: Arc<std::sync::atomic::AtomicI64>) {
        self.domain.ahead_ms = ahead_ms;
    }

    /// Serves until `Stop` or until the last handle is gone. Executed on the thread `net`.
    pub fn run(mut self, events: Sender<Event>) {
        self.domain.start();
        self.send_news(&events);
        let mut ready = Events::with_capacity(READY_SOCKETS);
        loop {
            let wait = self.wait();
            if let Err(err) = progress::waiting(|| self.poll.poll(&mut ready, wait))
                && err.kind() != std::io::ErrorKind::Interrupted
            {
                error!("network thread cannot poll err={err}");
                return;
            }
            // One request, then the sockets: name queries do not starve behind a queue.
            match self.next_request() {
                Ok(NetRequest::Stop) | Err(TryRecvError::Disconnected) => break,
                Ok(request) => {
                    self.serve(request, &events);
                    self.domain.forget_flows();
                }
                Err(TryRecvError::Empty) => {}
            }
            let now = sys::time::monotonic();
            for event in &ready {
                match event.token() {
                    WAKER => {}
                    CLOCK => self.clock_jumped(now),
                    notices::LINKS => self.domain.hear_links(now),
                    notices::RULES => self.domain.hear_rules(now),
                    token => self.domain.dns.ready(token, now),
                }
            }
            self.domain.tick(now);
            self.send_news(&events);
        }
        info!("network thread ended");
    }

    fn next_request(&mut self) -> Result<NetRequest, TryRecvError> {
        self.postponed.take().map_or_else(|| self.inbox.try_recv(), Ok)
    }

    /// Core stores rows before it hears that what they are about has ended.
    fn send_news(&mut self, events: &Sender<Event>) {
        for event in self.domain.outbox.drain(..) {
            // A core that is gone ends this thread soon as well.
            let _ = events.send(event);
        }
    }

    fn clock_jumped(&mut self, now: Duration) {
        match self.clock.take() {
            Ok(_) => self.domain.store_traffic(now),
            Err(err) => error!("cannot watch the wall clock err={err}"),
        }
    }

    fn wait(&self) -> Option<Duration> {
        if self.postponed.is_some() || !self.inbox.is_empty() {
            return Some(Duration::ZERO);
        }
        let deadline = self.domain.next_deadline()?;
        Some(deadline.saturating_sub(sys::time::monotonic()))
    }

    /// Whoever asked may have given up meanwhile: a reply that nobody takes is dropped.
    fn serve(&mut self, request: NetRequest, events: &Sender<Event>) {
        match request {
            NetRequest::Attach { plan, reply } => {
                self.attach((plan, reply));
            }
            NetRequest::Adopt { plan, reply } => {
                let _ = reply.try_send(self.domain.adopt(&plan).map_err(Failure::from));
            }
            NetRequest::Detach { id, reply } => {
                let result = self.domain.detach(&id).map_err(Failure::from);
                self.send_news(events);
                let _ = reply.try_send(result);
            }
            NetRequest::Traffic { reply } => {
                let _ = reply.try_send(self.domain.traffic().map_err(Failure::from));
            }
            NetRequest::Survey { reply } => {
                let _ = reply.try_send(self.domain.survey());
            }
            NetRequest::Update(list) => {
                let failed = self.domain.update_networks(&list);
                let failed = failed.into_iter().map(|(id, err)| (id, err.into())).collect();
                // A core that is gone ends this thread soon as well.
                let draining = self.domain.draining();
                let _ = events.send(Event::NetworksUpdated { failed, draining });
            }
            NetRequest::Keep(instances) => self.domain.keep(&instances),
            NetRequest::Forget(instances) => self.domain.ledger.forget(&instances),
            NetRequest::Collect => {
                self.domain.store_all_traffic();
                self.domain.outbox.push(Event::TrafficCollected);
            }
            NetRequest::Clear => self.domain.clear(),
            NetRequest::Stop => {}
        }
    }

    /// Takes along the attaches that wait behind the first one.
    fn attach(&mut self, first: (Box<NetworkPlan>, Sender<Result<(), Failure>>)) {
        let mut group = vec![first];
        while group.len() < MAX_GROUP {
            match self.inbox.try_recv() {
                Ok(NetRequest::Attach { plan, reply }) => group.push((plan, reply)),
                Ok(other) => {
                    self.postponed = Some(other);
                    break;
                }
                // If the handles are gone, the next look at the inbox says so again.
                Err(_) => break,
            }
        }
        let plans: Vec<&NetworkPlan> = group.iter().map(|(plan, _)| &**plan).collect();
        let results = span("network", &plans.len(), || self.domain.attach(&plans));
        for ((_, reply), result) in group.iter().zip(results) {
            let _ = reply.try_send(result.map_err(Failure::from));
        }
    }
}

#[cfg(test)]
mod tests;
