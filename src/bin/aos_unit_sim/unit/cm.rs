//! A CM of generation v4: takes registrations of service managers and speaks when told to.

use std::sync::{Arc, Mutex};

use aos_servicemanager::cm::wire::v4::servicemanager::{
    ConnectionEnum, ConnectionStatus, SMIncomingMessages, SMOutgoingMessages,
    smincoming_messages::SMIncomingMessage,
};
use futures_channel::mpsc::{UnboundedReceiver, unbounded};
use futures_util::future::{Either, pending, select};
use futures_util::{SinkExt, StreamExt, TryStreamExt};
use grpcio::{
    DuplexSink, Environment, MethodType, RequestStream, RpcContext, RpcStatus, RpcStatusCode,
    Server, ServiceBuilder, WriteFlags,
};
use protobuf::Message;

use super::server::{self, Endpoint, Error, Out, Outbox, RawMethod, lock};

const REGISTER: RawMethod =
    server::method(MethodType::Duplex, "/servicemanager.v4.SMService/RegisterSM");

/// What happened on the streams. `link` numbers them from 1.
#[derive(Debug)]
pub enum CmEvent {
    Opened {
        link: u64,
        peer: String,
        common_name: Option<String>,
    },
    Message {
        link: u64,
        message: Box<SMOutgoingMessages>,
    },
    /// Bytes that are no message.
    Malformed {
        link: u64,
        bytes: Vec<u8>,
        error: String,
    },
    Refused {
        peer: String,
        text: String,
    },
    Closed {
        link: u64,
        reason: String,
    },
}

/// What a new stream meets.
#[derive(Clone, Debug, Default)]
pub enum Admission {
    /// Its first message is answered by the connection status.
    #[default]
    Accept,
    /// It is taken, and nothing is ever said by itself.
    Silent,
    /// It ends with this status.
    Refuse(RpcStatusCode, String),
}

/// Nobody is registered.
#[derive(Debug, thiserror::Error)]
#[error("no service manager is connected")]
pub struct NotConnected;

/// The server; dropping it ends all streams.
pub struct CmServer {
    env: Arc<Environment>,
    endpoint: Endpoint,
    server: Option<Server>,
    shared: Arc<Shared>,
}

impl std::fmt::Debug for CmServer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CmServer").field("endpoint", &self.endpoint).finish_non_exhaustive()
    }
}

type OnEvent = dyn Fn(CmEvent) + Send + Sync;

struct Shared {
    state: Mutex<State>,
    on_event: Box<OnEvent>,
}

struct State {
    links: u64,
    /// The newest stream.
    current: Option<(u64, Outbox)>,
    admission: Admission,
    cloud_online: bool,
}

impl CmServer {
    /// Starts to listen. `on_event` is called on the server's thread and must not block.
    pub fn start(
        endpoint: Endpoint,
        on_event: impl Fn(CmEvent) + Send + Sync + 'static,
    ) -> Result<Self, Error> {
        let state =
            State { links: 0, current: None, admission: Admission::Accept, cloud_online: true };
        let shared = Arc::new(Shared { state: Mutex::new(state), on_event: Box::new(on_event) });
        let env = server::environment();
        let mut cm = Self { env, endpoint, server: None, shared };
        cm.up()?;
        Ok(cm)
    }

    /// Port of the server, also while it is down.
    pub fn port(&self) -> u16 {
        self.endpoint.port
    }

    /// Listens again on the same port. Nothing to do when it does.
    pub fn up(&mut self) -> Result<(), Error> {
        if self.server.is_some() {
            return Ok(());
        }
        let shared = self.shared.clone();
        let service = ServiceBuilder::new()
            .add_duplex_streaming_handler(&REGISTER, move |context, rx, tx| {
                accept(&shared, &context, rx, tx);
            })
            .build();
        let (server, port) = server::listen(&self.env, &self.endpoint, vec![service])?;
        self.endpoint.port = port;
        self.server = Some(server);
        Ok(())
    }

    /// Ends all streams and closes the port.
    pub fn down(&mut self) {
        if let Some(server) = self.server.take() {
            server::stop(server);
        }
        lock(&self.shared.state).current = None;
    }

    /// Uses other certificates from the next `up` on.
    pub fn set_identity(&mut self, identity: super::certs::Identity) {
        self.endpoint.identity = identity;
    }

    pub fn set_admission(&self, admission: Admission) {
        lock(&self.shared.state).admission = admission;
    }

    pub fn is_connected(&self) -> bool {
        lock(&self.shared.state).current.as_ref().is_some_and(|(_, out)| !out.is_closed())
    }

    /// Sends a message on the newest stream.
    pub fn send(&self, message: SMIncomingMessage) -> Result<(), NotConnected> {
        self.send_bytes(encode(message))
    }

    /// Sends bytes as a message on the newest stream.
    pub fn send_bytes(&self, bytes: Vec<u8>) -> Result<(), NotConnected> {
        self.out(Out::Message(bytes))
    }

    /// Ends the newest stream with a status; `None` = regularly.
    pub fn end_stream(&self, status: Option<(RpcStatusCode, String)>) -> Result<(), NotConnected> {
        let status = status.map_or_else(RpcStatus::ok, |(c, t)| RpcStatus::with_message(c, t));
        self.out(Out::End(status))
    }

    /// Tells the service manager whether the cloud is reachable, now and at each registration.
    pub fn set_cloud(&self, online: bool) -> Result<(), NotConnected> {
        lock(&self.shared.state).cloud_online = online;
        self.send(connection_status(online))
    }

    fn out(&self, out: Out) -> Result<(), NotConnected> {
        let state = lock(&self.shared.state);
        let (_, outbox) = state.current.as_ref().ok_or(NotConnected)?;
        outbox.unbounded_send(out).map_err(|_| NotConnected)
    }
}

impl Drop for CmServer {
    fn drop(&mut self) {
        self.down();
    }
}

fn connection_status(online: bool) -> SMIncomingMessage {
    let status = if online { ConnectionEnum::CONNECTED } else { ConnectionEnum::DISCONNECTED };
    let mut message = ConnectionStatus::new();
    message.cloud_status = status.into();
    SMIncomingMessage::ConnectionStatus(message)
}

fn encode(message: SMIncomingMessage) -> Vec<u8> {
    let mut outer = SMIncomingMessages::new();
    outer.SMIncomingMessage = Some(message);
    outer.write_to_bytes().unwrap_or_default() // fails for missing proto2 fields only
}

/// A new stream: runs on the server's thread.
fn accept(
    shared: &Arc<Shared>,
    context: &RpcContext<'_>,
    rx: RequestStream<Vec<u8>>,
    tx: DuplexSink<Vec<u8>>,
) {
    let peer = context.peer();
    let mut state = lock(&shared.state);
    if let Admission::Refuse(code, text) = state.admission.clone() {
        drop(state);
        (shared.on_event)(CmEvent::Refused { peer, text: text.clone() });
        let failure = tx.fail(RpcStatus::with_message(code, text));
        context.spawn(async move {
            let _ = failure.await;
            drop(rx); // dropped before, it would cancel the call
        });
        return;
    }
    let (outbox, inbox) = unbounded();
    state.links += 1;
    let link = state.links;
    let greets = matches!(state.admission, Admission::Accept);
    state.current = Some((link, outbox.clone()));
    drop(state);
    let common_name = context.auth_context().and_then(|auth| {
        let name = auth.into_iter().find(|p| p.name() == "x509_common_name")?;
        name.value_str().ok().map(str::to_owned)
    });
    (shared.on_event)(CmEvent::Opened { link, peer, common_name });
    let reader = read(shared.clone(), link, rx, outbox, greets);
    let writer = write(inbox, tx);
    let shared = shared.clone();
    context.spawn(async move {
        let reason = match select(Box::pin(reader), Box::pin(writer)).await {
            Either::Left((reason, _)) | Either::Right((reason, _)) => reason,
        };
        let mut state = lock(&shared.state);
        if state.current.as_ref().is_some_and(|(current, _)| *current == link) {
            state.current = None;
        }
        drop(state);
        (shared.on_event)(CmEvent::Closed { link, reason });
    });
}

/// Ends only when the stream is broken: after a regular end the writer closes the call.
async fn read(
    shared: Arc<Shared>,
    link: u64,
    mut rx: RequestStream<Vec<u8>>,
    outbox: Outbox,
    mut greets: bool,
) -> String {
    loop {
        match rx.try_next().await {
            Ok(Some(bytes)) => {
                let event = match SMOutgoingMessages::parse_from_bytes(&bytes) {
                    Ok(message) => CmEvent::Message { link, message: Box::new(message) },
                    Err(e) => CmEvent::Malformed { link, bytes, error: e.to_string() },
                };
                (shared.on_event)(event);
                if std::mem::take(&mut greets) {
                    let online = lock(&shared.state).cloud_online;
                    let _ = outbox.unbounded_send(Out::Message(encode(connection_status(online))));
                }
            }
            Ok(None) => {
                let _ = outbox.unbounded_send(Out::End(RpcStatus::ok()));
                return pending().await;
            }
            Err(e) => return e.to_string(),
        }
    }
}

async fn write(mut inbox: UnboundedReceiver<Out>, mut tx: DuplexSink<Vec<u8>>) -> String {
    while let Some(out) = inbox.next().await {
        let end = match out {
            Out::Message(bytes) => match tx.send((bytes, WriteFlags::default())).await {
                Ok(()) => continue,
                Err(e) => Err(e),
            },
            Out::End(status) if status.code() == RpcStatusCode::OK => {
                tx.close().await.map(|()| "end of stream".to_owned())
            }
            Out::End(status) => {
                let text = format!("ended with {}: {}", status.code(), status.message());
                tx.fail(status).await.map(|()| text)
            }
        };
        return end.unwrap_or_else(|e| e.to_string());
    }
    "forgotten".to_owned()
}
