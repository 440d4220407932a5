//! Thread cm-tx: the only writer of the stream to the CM.
//!
//! In: reports of core, samples of the monitor, parts of a log answer, and from cm-rx each new
//! stream and the end of each. Out: messages, to core that an alert has left, and to the monitor
//! the memory of a sample that is not needed any more. Everything that
//! belongs to an older stream is dropped: after a registration core sends the full state anew.
//! Deliberately not here: reconnecting and `CmLost`, which are cm-rx's. A send that fails ends the
//! stream, which cm-rx sees.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use crossbeam::channel::{Receiver, Sender, TryRecvError};

use crate::cm::dialect::{self, Dialect};
use crate::model::event::{Event, Session};
use crate::model::failure::Failure;
use crate::model::status::{CmReport, LogPart, NodeMonitoring, chain};
use crate::rpc;
use crate::sys::progress;
use crate::sys::span::span;

/// Messages that may wait for this thread.
pub const INBOX_CAPACITY: usize = 64;
/// A message that the transport does not take for so long ends the stream.
pub const SEND_LIMIT: Duration = Duration::from_secs(30);
/// For the end of our half of the stream to leave.
const CLOSE_LIMIT: Duration = Duration::from_secs(1);

/// What cm-tx is asked.
#[derive(Debug)]
pub enum CmTxCommand {
    /// The sending half of a new stream; an older one ends.
    Stream {
        session: Session,
        sink: rpc::Sink,
        dialect: Arc<dyn Dialect>,
    },
    /// The first one of a session registers the node.
    Report {
        session: Session,
        report: CmReport,
    },
    /// Only the newest sample is sent; without a stream it is dropped.
    Monitoring(NodeMonitoring),
    /// Answered when the part has left or cannot leave.
    LogPart {
        session: Session,
        part: LogPart,
        reply: Sender<Result<(), Failure>>,
    },
    /// Is this stream still there?
    IsOpen {
        session: Session,
        reply: Sender<bool>,
    },
    /// Nothing follows on this stream: let the CM know.
    Close {
        session: Session,
    },
    /// This stream has ended.
    Lost {
        session: Session,
    },
    Stop,
}

/// Body of the thread. `send_limit` is [`SEND_LIMIT`] but in tests.
pub fn run(
    send_limit: Duration,
    inbox: &Receiver<CmTxCommand>,
    events: &Sender<Event>,
    spare: &Sender<NodeMonitoring>,
) {
    let mut writer = Writer { open: None, newest: None, send_limit, events, spare };
    loop {
        let next = match writer.newest {
            None => progress::waiting(|| inbox.recv()).map_err(|_| TryRecvError::Disconnected),
            Some(_) => inbox.try_recv(),
        };
        match next {
            Ok(command) => {
                if writer.take(command).is_break() {
                    return;
                }
            }
            Err(TryRecvError::Empty) => writer.send_newest(),
            Err(TryRecvError::Disconnected) => return,
        }
    }
}

struct Open {
    session: Session,
    sink: rpc::Sink,
    dialect: Arc<dyn Dialect>,
    /// The node has registered: other messages may follow.
    registered: bool,
}

struct Writer<'a> {
    open: Option<Open>,
    newest: Option<NodeMonitoring>,
    send_limit: Duration,
    events: &'a Sender<Event>,
    spare: &'a Sender<NodeMonitoring>,
}

impl Writer<'_> {
    fn take(&mut self, command: CmTxCommand) -> ControlFlow<()> {
        match command {
            CmTxCommand::Stream { session, sink, dialect } => {
                self.newest = None;
                self.open = Some(Open { session, sink, dialect, registered: false });
            }
            CmTxCommand::Report { session, report } => self.report(session, report),
            CmTxCommand::Monitoring(sample) => {
                let wanted = self.open.as_ref().is_some_and(|o| o.registered);
                let old = if wanted { self.newest.replace(sample) } else { Some(sample) };
                old.into_iter().for_each(|sample| self.give_back(sample));
            }
            CmTxCommand::LogPart { session, part, reply } => {
                let sent = self.log_part(session, part);
                // Whoever waited may have given up.
                let _ = reply.try_send(sent);
            }
            CmTxCommand::IsOpen { session, reply } => {
                let _ = reply.try_send(self.open.as_ref().is_some_and(|o| o.session == session));
            }
            CmTxCommand::Close { session } => {
                if let Some(open) = self.open.take_if(|o| o.session == session) {
                    open.sink.close(CLOSE_LIMIT);
                }
            }
            CmTxCommand::Lost { session } => {
                self.open.take_if(|o| o.session == session);
            }
            CmTxCommand::Stop => return ControlFlow::Break(()),
        }
        ControlFlow::Continue(())
    }

    fn report(&mut self, session: Session, report: CmReport) {
        let Some(open) = self.open.as_mut().filter(|o| o.session == session) else {
            log::debug!("report of an ended session dropped session={}", session.0);
            return;
        };
        open.registered = true;
        let is_alert = matches!(report, CmReport::Alert(_));
        let _ = span("send", &session.0, || self.send(report));
        // An alert that cannot be translated is gone as well.
        if is_alert && self.open.is_some() {
            let _ = self.events.send(Event::AlertSent { session });
        }
    }

    fn send_newest(&mut self) {
        let Some(sample) = self.newest.take() else { return };
        if let Some(open) = &self.open {
            let _ = match open.dialect.encode_instant(&sample) {
                Ok(message) => self.transmit(message),
                Err(error) => Err(untranslatable(&error)),
            };
        }
        self.give_back(sample);
    }

    /// The monitor fills it again; one is enough.
    fn give_back(&self, sample: NodeMonitoring) {
        let _ = self.spare.try_send(sample);
    }

    fn log_part(&mut self, session: Session, part: LogPart) -> Result<(), Failure> {
        match &self.open {
            Some(open) if open.session == session && open.registered => {
                self.send(CmReport::Log(part))
            }
            _ => Err(Failure::text("the stream to the CM has ended")),
        }
    }

    /// Sends on the open stream, which ends when the transport fails.
    fn send(&mut self, report: CmReport) -> Result<(), Failure> {
        let Some(open) = &self.open else {
            return Err(Failure::text("there is no stream to the CM"));
        };
        let message = open.dialect.encode(report).map_err(|error| untranslatable(&error))?;
        self.transmit(message)
    }

    fn transmit(&mut self, message: Vec<u8>) -> Result<(), Failure> {
        let Some(open) = &mut self.open else {
            return Err(Failure::text("there is no stream to the CM"));
        };
        let sent = open.sink.send(message, self.send_limit);
        sent.map_err(|error| {
            log::warn!("cannot send to the CM err={}", chain(&error));
            // Without its sending half the call is cancelled, and cm-rx learns of the end.
            self.open = None;
            Failure::transient(&error)
        })
    }
}

/// Must not stop the messages that follow.
fn untranslatable(error: &dialect::Error) -> Failure {
    log::error!("message to the CM dropped err={}", chain(error));
    Failure::lasting(error)
}
