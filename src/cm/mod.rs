//! Thread cm-rx: the connection to the communication manager and its receiving half.
//!
//! In: the stream from the CM, and commands to connect anew or to stop. Out: `CmConnected`, `Cm`
//! and `CmLost` to core, the sending half of each stream to cm-tx. The thread dials for ever: no
//! CM is never a reason to give up. There is at most one stream: the old one has ended, with its
//! last status, before the next is opened.
//!
//! ```text
//! certificate ──> dial ──> registering ──first message──> receiving
//!      ^            │           │ 10 s                        │
//!      └── pause <──┴───────────┴──── stream ends ────────────┘
//! ```
//!
//! Deliberately not here: what a command means (core), when something is sent (core, monitor).

pub mod dialect;
pub mod sender;
pub mod v4;
#[cfg(test)]
pub mod fuzzing;

use std::future::poll_fn;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Poll, ready};
use std::time::{Duration, Instant};

use crossbeam::channel::Sender;

use crate::cm::dialect::Dialect;
use crate::cm::sender::CmTxCommand;
use crate::model::command::CmCommand;
use crate::model::event::{Event, Session};
use crate::model::status::chain;
use crate::rpc::{self, CertSource, Certificate, Connection, Inbox, Pending, Sink, Source, Woken};
use crate::sys::time::now;
use crate::sys::{random, span};

/// Messages of the CM, generated. Only this module and the simulated unit use them.
#[doc(hidden)]
#[allow(unreachable_pub, missing_docs, clippy::all, clippy::pedantic)]
pub mod wire {
    pub mod v4 {
        include!(concat!(env!("OUT_DIR"), "/cm_v4/mod.rs"));
    }
}

/// Commands that may wait for this thread.
pub const INBOX_CAPACITY: usize = 8;
/// For the certificate; IAM has ten seconds, reading files some more.
const CERTIFICATE_LIMIT: Duration = Duration::from_secs(12);
/// For TCP, TLS and the stream; the library reports a silent host after ten seconds.
const DIAL_LIMIT: Duration = Duration::from_secs(15);
/// For the CM to end a stream whose other half we have closed.
const FAREWELL_LIMIT: Duration = Duration::from_secs(2);
/// For what has arrived on a stream whose other half cannot be closed.
const DRAIN_LIMIT: Duration = Duration::from_millis(200);
/// For the last status of a cancelled stream.
const FINISH_LIMIT: Duration = Duration::from_secs(5);
/// The CM still holds our old stream; only trying again helps.
const ALREADY_EXISTS_PAUSE: Duration = Duration::from_secs(10);
/// Pauses before the second, third and fourth attempt; then the configured cap.
const PAUSES: [Duration; 3] =
    [Duration::from_secs(1), Duration::from_secs(2), Duration::from_secs(5)];
/// A pause varies by this part of it in both directions.
const JITTER_PERCENT: u32 = 20;

/// What cm-rx is asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CmRxCommand {
    /// The certificate may be another one; a stream that uses the same goes on.
    Reconnect,
    /// Something meant for the stream was lost, or it is registered as another node: begin a new
    /// one, which gets the full picture.
    Resynchronise,
    Stop,
}

/// Where and how to connect.
#[derive(Clone, Debug)]
pub struct Settings {
    /// `host:port` of the CM.
    pub url: String,
    /// PEM bundle with the root certificates.
    pub ca_cert: PathBuf,
    /// Longest pause between attempts.
    pub reconnect_cap: Duration,
    /// Instances may run as root.
    pub allow_root_uid: bool,
    pub timing: Timing,
}

/// Times that tests shorten.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// From the open stream to the first message of the CM.
    pub first_message: Duration,
    /// Age of a stream at whose end the pauses begin anew.
    pub settled: Duration,
    pub keepalive: rpc::Keepalive,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            first_message: Duration::from_secs(10),
            settled: Duration::from_secs(60),
            keepalive: rpc::Keepalive::default(),
        }
    }
}

/// Everything the thread owns or reaches.
#[derive(Debug)]
pub struct Receiving {
    pub settings: Settings,
    pub env: rpc::Env,
    pub certs: Arc<dyn CertSource>,
    pub inbox: Inbox<CmRxCommand>,
    pub events: Sender<Event>,
    pub tx: Sender<CmTxCommand>,
}

/// Why an attempt or a stream is over.
enum End {
    Stop,
    /// Begin anew at once.
    Reconnect,
    Lost(Lost),
}

struct Lost {
    reason: String,
    pause: Option<Duration>,
    /// The stream lived long enough to count as a success.
    settled: bool,
    /// It was our wish.
    wanted: bool,
}

impl End {
    fn lost(error: &rpc::Error) -> Self {
        let reason = chain(error);
        let pause = reason.contains("already exist").then_some(ALREADY_EXISTS_PAUSE);
        Self::Lost(Lost { reason, pause, settled: false, wanted: false })
    }

    fn text(reason: &str) -> Self {
        let reason = reason.to_owned();
        Self::Lost(Lost { reason, pause: None, settled: false, wanted: false })
    }

    fn wanted(reason: &str) -> Self {
        let reason = reason.to_owned();
        Self::Lost(Lost { reason, pause: None, settled: false, wanted: true })
    }

    fn is_wanted(&self) -> bool {
        match self {
            Self::Stop | Self::Reconnect => true,
            Self::Lost(lost) => lost.wanted,
        }
    }

    /// After a stream that has existed for `age`.
    fn settled(self, age: Duration, settled: Duration) -> Self {
        match self {
            Self::Lost(lost) => Self::Lost(Lost { settled: age > settled, ..lost }),
            other => other,
        }
    }
}

/// What outlives a stream.
#[derive(Default)]
struct Progress {
    session: Session,
    /// The last one that IAM named.
    certificate: Option<Certificate>,
}

/// A stream with its session, after cm-tx has got the other half.
struct Stream {
    session: Session,
    source: Source,
    /// What the connection was made with.
    certificate: Certificate,
    /// Came before the connection was known to stand.
    early: Option<Vec<u8>>,
    opened: Instant,
}

/// What a receiving thread can hear.
enum Heard {
    Message(Option<Result<Vec<u8>, rpc::Error>>),
    Certificate(Result<Certificate, rpc::Error>),
}

impl Receiving {
    /// Body of the thread; returns after `Stop` or when nobody can send commands any more.
    pub fn run(self) {
        let dialect: Arc<dyn Dialect> =
            Arc::new(v4::V4 { allow_root_uid: self.settings.allow_root_uid });
        let mut progress = Progress::default();
        let mut failures = 0;
        let mut last_reason = String::new();
        loop {
            let lost = match self.attempt(&dialect, &mut progress) {
                End::Stop => return,
                End::Reconnect => {
                    failures = 0;
                    continue;
                }
                End::Lost(lost) => lost,
            };
            if lost.settled {
                failures = 0;
            }
            let pause = varied(lost.pause.unwrap_or_else(|| self.pause(failures)));
            failures += 1;
            // An absent CM is reported once, not every ten seconds.
            let level =
                if lost.reason == last_reason { log::Level::Debug } else { log::Level::Warn };
            log::log!(
                level,
                "no CM url={} pause={pause:?} err={:?}",
                self.settings.url,
                lost.reason
            );
            last_reason = if lost.settled { String::new() } else { lost.reason };
            match self.inbox.wait(Some(now() + pause)) {
                Woken::Command(CmRxCommand::Stop) | Woken::Closed => return,
                Woken::Command(CmRxCommand::Reconnect) => failures = 0,
                Woken::Command(CmRxCommand::Resynchronise) => {}
                Woken::TimedOut => {}
                Woken::Done(never) => match never {},
            }
        }
    }

    fn pause(&self, failures: usize) -> Duration {
        let cap = self.settings.reconnect_cap;
        PAUSES.get(failures).map_or(cap, |pause| *pause.min(&cap))
    }

    fn attempt(&self, dialect: &Arc<dyn Dialect>, progress: &mut Progress) -> End {
        let certificate = match self.certificate(&mut progress.certificate) {
            Ok(certificate) => certificate,
            Err(end) => return end,
        };
        let (sink, source, early) = match self.dial(dialect.path(), &certificate) {
            Ok(dialled) => dialled,
            Err(end) => return end,
        };
        progress.session.0 += 1;
        let session = progress.session;
        log::info!("connected to the CM url={} session={}", self.settings.url, session.0);
        let handed = CmTxCommand::Stream { session, sink, dialect: dialect.clone() };
        if self.tx.send(handed).is_err() {
            return End::Stop;
        }
        let _ = self.events.send(Event::CmConnected { session });
        let mut stream = Stream { session, source, certificate, early, opened: now() };
        let end = self.receive(&mut stream, dialect.as_ref());
        let age = now().saturating_duration_since(stream.opened);
        let end = end.settled(age, self.settings.timing.settled);
        self.finish(stream, &end, dialect.as_ref());
        let _ = self.events.send(Event::CmLost { session });
        end
    }

    /// Asks for the certificate. While IAM is away the last one serves.
    fn certificate(&self, last: &mut Option<Certificate>) -> Result<Certificate, End> {
        let mut pending = self.certs.certificate();
        let answer = match self.inbox.wait_with(&mut pending, Some(now() + CERTIFICATE_LIMIT)) {
            Woken::Done(answer) => answer,
            Woken::TimedOut => {
                Err(rpc::Error::TimedOut { call: "certificate", limit: CERTIFICATE_LIMIT })
            }
            Woken::Command(CmRxCommand::Reconnect | CmRxCommand::Resynchronise) => {
                return Err(End::Reconnect);
            }
            Woken::Command(CmRxCommand::Stop) | Woken::Closed => return Err(End::Stop),
        };
        match (answer, &last) {
            (Ok(certificate), _) => {
                *last = Some(certificate.clone());
                Ok(certificate)
            }
            (Err(error), Some(certificate)) if error.is_unreachable() => {
                log::debug!("the last certificate is used err={}", chain(&error));
                Ok(certificate.clone())
            }
            (Err(error), _) => Err(End::lost(&error)),
        }
    }

    /// Connects, so that core hears only of streams to a peer that is there.
    fn dial(
        &self,
        path: &'static str,
        certificate: &Certificate,
    ) -> Result<(Sink, Source, Option<Vec<u8>>), End> {
        let settings = &self.settings;
        let connection = Connection::new(
            &self.env,
            &settings.url,
            &settings.ca_cert,
            Some(certificate),
            settings.timing.keepalive,
        )
        .map_err(|error| End::lost(&error))?;
        let (sink, mut source) = connection.duplex(path).map_err(|error| End::lost(&error))?;
        let mut connected = pin!(connection.connected());
        let mut stands = poll_fn(|cx| match source.poll(cx) {
            Poll::Ready(message) => Poll::Ready(Some(message)),
            Poll::Pending => connected.as_mut().poll(cx).map(|()| None),
        });
        let early = match self.inbox.wait_with(&mut stands, Some(now() + DIAL_LIMIT)) {
            Woken::Done(None) => Ok(None),
            Woken::Done(Some(Some(Ok(message)))) => Ok(Some(message)),
            Woken::Done(Some(Some(Err(error)))) => Err(End::lost(&error)),
            Woken::Done(Some(None)) => Err(End::text("the CM ended the stream at once")),
            Woken::TimedOut => Err(End::text("the CM does not take the connection")),
            Woken::Command(CmRxCommand::Reconnect | CmRxCommand::Resynchronise) => {
                Err(End::Reconnect)
            }
            Woken::Command(CmRxCommand::Stop) | Woken::Closed => Err(End::Stop),
        };
        match early {
            Ok(early) => Ok((sink, source, early)),
            Err(end) => {
                drop(sink);
                // The node has not registered: nothing can have been sent to it.
                source.finish(FINISH_LIMIT, drop);
                Err(end)
            }
        }
    }

    fn receive(&self, stream: &mut Stream, dialect: &dyn Dialect) -> End {
        let session = stream.session;
        let mut first_until = Some(stream.opened + self.settings.timing.first_message);
        let mut renewal: Option<Pending<Certificate>> = None;
        if let Some(message) = stream.early.take() {
            first_until = None;
            self.accepted(session);
            self.deliver(session, &message, dialect);
        }
        loop {
            let mut next = poll_fn(|cx| {
                if let Some(pending) = &mut renewal
                    && let Poll::Ready(certificate) = pending.as_mut().poll(cx)
                {
                    return Poll::Ready(Heard::Certificate(certificate));
                }
                stream.source.poll(cx).map(Heard::Message)
            });
            match self.inbox.wait_with(&mut next, first_until) {
                Woken::Done(Heard::Message(Some(Ok(message)))) => {
                    if first_until.take().is_some() {
                        self.accepted(session);
                    }
                    self.deliver(session, &message, dialect);
                }
                Woken::Done(Heard::Message(ended)) => return ended_by_peer(ended),
                Woken::Done(Heard::Certificate(certificate)) => {
                    renewal = None;
                    if is_renewed(&stream.certificate, certificate) {
                        return End::Reconnect;
                    }
                }
                Woken::TimedOut => return End::text("the CM does not answer the registration"),
                Woken::Command(CmRxCommand::Reconnect) => {
                    renewal = Some(self.certs.certificate());
                }
                Woken::Command(CmRxCommand::Resynchronise) => {
                    return End::wanted("the CM does not know the newest of this node");
                }
                Woken::Command(CmRxCommand::Stop) | Woken::Closed => return End::Stop,
            }
        }
    }

    fn accepted(&self, session: Session) {
        let _ = self.events.send(Event::CmAccepted { session });
    }

    fn deliver(&self, session: Session, message: &[u8], dialect: &dyn Dialect) {
        match dialect.decode(message) {
            Ok(Some(command)) => {
                if matches!(command, CmCommand::RunInstances(_)) {
                    span::mark("request", &session.0);
                }
                let _ = self.events.send(Event::Cm { session, command });
            }
            Ok(None) => log::debug!("message of the CM ignored bytes={}", message.len()),
            Err(error) => log::warn!("message of the CM skipped err={}", chain(&error)),
        }
    }

    /// Ends the stream completely. The CM is told first if it was our wish, and what it has sent
    /// meanwhile counts: it does not repeat a request on the next stream.
    fn finish(&self, stream: Stream, end: &End, dialect: &dyn Dialect) {
        let Stream { session, mut source, .. } = stream;
        if end.is_wanted() {
            let close = CmTxCommand::Close { session };
            let told = self.tx.send_timeout(close, FAREWELL_LIMIT).is_ok();
            let ended = poll_fn(|cx| {
                while let Some(Ok(message)) = ready!(source.poll(cx)) {
                    self.deliver(session, &message, dialect);
                }
                Poll::Ready(())
            });
            let _ = rpc::wait(ended, if told { FAREWELL_LIMIT } else { DRAIN_LIMIT });
        }
        // Cancelled first: cm-tx may be blocked in a send, which ends with the call.
        source.finish(FINISH_LIMIT, |message| self.deliver(session, &message, dialect));
        let _ = self.tx.send(CmTxCommand::Lost { session });
    }
}

fn ended_by_peer(ended: Option<Result<Vec<u8>, rpc::Error>>) -> End {
    match ended {
        Some(Err(error)) => End::lost(&error),
        _ => End::text("the CM ended the stream"),
    }
}

/// Equal content is no renewal: IAM repeats notifications.
fn is_renewed(current: &Certificate, certificate: Result<Certificate, rpc::Error>) -> bool {
    match certificate {
        Ok(certificate) if certificate == *current => {
            log::debug!("the certificate is the same");
            false
        }
        Ok(_) => {
            log::info!("the certificate has been renewed, connecting anew");
            true
        }
        Err(error) => {
            log::warn!("cannot get the renewed certificate err={}", chain(&error));
            false
        }
    }
}

/// The pause, longer or shorter by chance, so that the nodes of a unit do not dial in step.
fn varied(pause: Duration) -> Duration {
    let mut chance = [u8::MAX / 2];
    // Without chance the pause stays about as it is.
    let _ = random::fill(&mut chance);
    let percent = 100 - JITTER_PERCENT + 2 * JITTER_PERCENT * u32::from(chance[0]) / 255;
    pause * percent / 100
}

#[cfg(test)]
mod tests;
