//! gRPC for threads that block: one environment, connections with mutual TLS, calls with
//! deadlines, and the inbox that can wake a thread out of a call.
//!
//! Runs on cm-rx, cm-tx and iam. Messages pass as bytes; what they mean is known to the dialects
//! under `cm/` and `iam/`. A gRPC call cannot be cancelled by another thread, so every blocking
//! wait here is merged with the thread's inbox: stop, reconnect and commands arrive that way.
//! Deliberately not here: retries, plaintext connections, async tasks.

pub mod keys;
pub mod token;

use std::fmt;
use std::future::{Future, poll_fn};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker, ready};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, SendError, Sender, TryRecvError, TrySendError, bounded};
use futures_util::task::AtomicWaker;
use futures_util::{Sink as _, Stream as _};
use grpcio::{
    CallOption, Channel, ChannelBuilder, ChannelCredentialsBuilder, Client, ClientDuplexReceiver,
    ClientDuplexSender, ClientSStreamReceiver, ConnectivityState, EnvBuilder, Environment,
    GrpcSlice, Marshaller, MessageReader, Method, MethodType, RpcStatusCode, WriteFlags,
};

use crate::rpc::token::Tokens;
use crate::sys::time::now;
use crate::sys::{pkcs11, progress};

/// Largest message that is accepted.
pub const RECEIVE_LIMIT_BYTES: i32 = 64 << 20;
/// Also the time limit of TCP connect and TLS handshake; a key in a slow token needs seconds.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);
/// One DNS query; a missing AAAA answer must not stall the attempt.
const DNS_QUERY_MS: i32 = 2000;
/// A watch on the state of a channel keeps the channel alive until it ends.
const STATE_WATCH: Duration = Duration::from_secs(1);

/// Why a connection or a call failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot read {path}")]
    Read {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("{path}: {reason}")]
    Content { path: PathBuf, reason: &'static str },
    #[error("bad URL {url:?}: {reason}")]
    Url { url: String, reason: &'static str },
    #[error("cannot use {url:?}")]
    Token {
        url: String,
        #[source]
        source: pkcs11::Error,
    },
    #[error("there is no {what} {url:?}, or it is not readable with this PIN")]
    NoObject { url: String, what: &'static str },
    #[error("OpenSSL cannot use {url:?}: neither a provider nor an engine named pkcs11")]
    Engine {
        url: String,
        #[source]
        source: std::io::Error,
    },
    #[error("bad address {target:?}: {reason}")]
    Target { target: String, reason: &'static str },
    #[error("{call}: {code}: {message}")]
    Status { call: &'static str, code: RpcStatusCode, message: String },
    #[error("{call}")]
    Call {
        call: &'static str,
        #[source]
        source: grpcio::Error,
    },
    #[error("{call}: no answer within {} ms", .limit.as_millis())]
    TimedOut { call: &'static str, limit: Duration },
    #[error("{call}: the peer ended the stream")]
    Ended { call: &'static str },
    #[error("{call}: the answer is malformed: {reason}")]
    Answer { call: &'static str, reason: String },
}

impl Error {
    fn of(call: &'static str, source: grpcio::Error) -> Self {
        match source {
            grpcio::Error::RpcFailure(status) | grpcio::Error::RpcFinished(Some(status)) => {
                Self::Status { call, code: status.code(), message: status.message().to_owned() }
            }
            source => Self::Call { call, source },
        }
    }

    /// The peer was not reached or went away, in contrast to an answer that refuses.
    pub fn is_unreachable(&self) -> bool {
        match self {
            Self::Status { code, .. } => matches!(
                *code,
                RpcStatusCode::UNAVAILABLE
                    | RpcStatusCode::DEADLINE_EXCEEDED
                    | RpcStatusCode::CANCELLED
            ),
            Self::Call { .. } | Self::TimedOut { .. } | Self::Ended { .. } => true,
            Self::Read { .. }
            | Self::Content { .. }
            | Self::Url { .. }
            | Self::Token { .. }
            | Self::NoObject { .. }
            | Self::Engine { .. }
            | Self::Target { .. }
            | Self::Answer { .. } => false,
        }
    }

    /// The peer does not have this call.
    pub fn is_unimplemented(&self) -> bool {
        matches!(self, Self::Status { code, .. } if *code == RpcStatusCode::UNIMPLEMENTED)
    }
}

/// Certificate chain and key of this node, checked as far as that is possible without using them.
#[derive(Clone, PartialEq, Eq)]
pub struct Certificate {
    chain_pem: Vec<u8>,
    key_pem: Vec<u8>,
}

impl Certificate {
    /// Reads what the URLs name, files or objects in tokens.
    pub fn load(tokens: &Tokens, cert_url: &str, key_url: &str) -> Result<Self, Error> {
        let chain_pem = keys::chain_for_core(tokens, cert_url)?;
        Ok(Self { chain_pem, key_pem: keys::key_for_core(tokens, key_url)? })
    }

    /// Tells it from another one, within this life of the process.
    pub fn fingerprint(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        (&self.chain_pem, &self.key_pem).hash(&mut hasher);
        hasher.finish()
    }
}

impl fmt::Debug for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Certificate({} bytes)", self.chain_pem.len())
    }
}

/// A value that a peer still owes. Waited for with [`wait`], never spawned.
pub type Pending<T> = Pin<Box<dyn Future<Output = Result<T, Error>> + Send>>;

/// Where the certificate for mutual TLS comes from.
pub trait CertSource: Send + Sync + fmt::Debug {
    /// Asks anew at each call, because certificates are renewed. Ends within ten seconds.
    fn certificate(&self) -> Pending<Certificate>;
}

/// The gRPC library with its one completion queue; lives as long as the process.
#[derive(Clone)]
pub struct Env(Arc<Environment>);

impl Env {
    /// Starts the library. Signals must be blocked and `GRPC_*` variables set before.
    pub fn start() -> Self {
        grpcio::redirect_log();
        Self(Arc::new(EnvBuilder::new().cq_count(1).name_prefix("grpc").build()))
    }
}

impl fmt::Debug for Env {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Env")
    }
}

/// Liveness of a connection. The defaults suit Go servers, which allow one ping in five minutes.
#[derive(Clone, Copy, Debug)]
pub struct Keepalive {
    /// Silence after which the peer is pinged while a call is active.
    pub time: Duration,
    /// Wait for the answer; C-core makes it the limit for unacknowledged data as well.
    pub timeout: Duration,
}

impl Default for Keepalive {
    fn default() -> Self {
        Self { time: Duration::from_secs(310), timeout: Duration::from_secs(20) }
    }
}

/// One connection to a peer. Dropping it and all of its calls closes it.
pub struct Connection {
    client: Client,
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Connection")
    }
}

impl Connection {
    /// Prepares a connection; nothing is sent yet. Roots are read from `ca_file`; without
    /// `certificate` the peer learns nothing about us.
    pub fn new(
        env: &Env,
        target: &str,
        ca_file: &Path,
        certificate: Option<&Certificate>,
        keepalive: Keepalive,
    ) -> Result<Self, Error> {
        let target = normalise(target)?;
        let mut credentials =
            ChannelCredentialsBuilder::new().root_cert(keys::roots_for_core(ca_file)?);
        if let Some(certificate) = certificate {
            credentials =
                credentials.cert(certificate.chain_pem.clone(), certificate.key_pem.clone());
        }
        let limit_ms = i32::try_from(CONNECT_LIMIT.as_millis()).unwrap_or(i32::MAX);
        let channel = ChannelBuilder::new(env.0.clone())
            .keepalive_time(keepalive.time)
            .keepalive_timeout(keepalive.timeout)
            .raw_cfg_int(c"grpc.min_reconnect_backoff_ms".into(), limit_ms)
            .max_reconnect_backoff(CONNECT_LIMIT)
            .max_receive_message_len(RECEIVE_LIMIT_BYTES)
            .enable_http_proxy(false)
            .enable_retry(false)
            .http2_bdp_probe(false)
            .raw_cfg_int(c"grpc.service_config_disable_resolution".into(), 1)
            .raw_cfg_int(c"grpc.dns_ares_query_timeout".into(), DNS_QUERY_MS)
            .set_credentials(credentials.build())
            .connect(&target);
        Ok(Self { client: Client::new(channel) })
    }

    /// Starts a unary call that fails at `limit`.
    ///
    /// It is issued as a stream from the peer, which looks the same on the wire: the library's own
    /// unary call panics at a peer that ends it without an error and without an answer.
    pub fn unary(
        &self,
        path: &'static str,
        request: Vec<u8>,
        limit: Duration,
    ) -> Result<Pending<Vec<u8>>, Error> {
        let option = CallOption::default().timeout(limit);
        let mut stream = self.stream(path, request, option)?;
        Ok(Box::pin(async move {
            let answer = poll_fn(|cx| stream.poll(cx)).await;
            let malformed = |reason: &str| Error::Answer { call: path, reason: reason.to_owned() };
            let answer = answer.ok_or_else(|| malformed("it has no message"))??;
            // The status comes last, and may still refuse.
            match poll_fn(|cx| stream.poll(cx)).await {
                None => Ok(answer),
                Some(Err(error)) => Err(error),
                Some(Ok(_)) => Err(malformed("it has more than one message")),
            }
        }))
    }

    /// Opens a stream from the peer.
    pub fn server_stream(
        &self,
        path: &'static str,
        request: Vec<u8>,
    ) -> Result<ServerStream, Error> {
        self.stream(path, request, CallOption::default())
    }

    fn stream(
        &self,
        path: &'static str,
        request: Vec<u8>,
        option: CallOption,
    ) -> Result<ServerStream, Error> {
        let method = method(MethodType::ServerStreaming, path);
        let receiver = self
            .client
            .server_streaming(&method, &request, option)
            .map_err(|e| Error::of(path, e))?;
        Ok(ServerStream { path, receiver, _channel: self.client.channel().clone() })
    }

    /// Opens a stream in both directions.
    pub fn duplex(&self, path: &'static str) -> Result<(Sink, Source), Error> {
        let method = method(MethodType::Duplex, path);
        let (sender, receiver) = self
            .client
            .duplex_streaming(&method, CallOption::default())
            .map_err(|e| Error::of(path, e))?;
        let channel = self.client.channel().clone();
        let sink = Sink { path, sender, _channel: channel.clone() };
        Ok((sink, Source { path, receiver, _channel: channel }))
    }

    /// Ends when the peer has accepted the TLS connection. Says nothing about failures: the
    /// first call on the connection reports those.
    pub fn connected(&self) -> impl Future<Output = ()> + Send + use<> {
        let channel = self.client.channel().clone();
        async move {
            loop {
                let state = channel.check_connectivity_state(true);
                if state == ConnectivityState::GRPC_CHANNEL_READY {
                    return;
                }
                channel.wait_for_state_change(state, STATE_WATCH).await;
            }
        }
    }
}

fn method(ty: MethodType, name: &'static str) -> Method<Vec<u8>, Vec<u8>> {
    let bytes = || Marshaller { ser: put_bytes, de: take_bytes };
    Method { ty, name, req_mar: bytes(), resp_mar: bytes() }
}

// The signature is grpcio's.
#[allow(clippy::ptr_arg)]
fn put_bytes(message: &Vec<u8>, to: &mut GrpcSlice) -> grpcio::Result<()> {
    *to = GrpcSlice::from(message.as_slice());
    Ok(())
}

fn take_bytes(mut from: MessageReader) -> grpcio::Result<Vec<u8>> {
    let mut message = Vec::with_capacity(from.len());
    std::io::Read::read_to_end(&mut from, &mut message)
        .map_err(|e| grpcio::Error::Codec(Box::new(e)))?;
    Ok(message)
}

/// Parses a whole message. Unlike the library's own function it takes no truncated one: there a
/// submessage that is shorter than it says counts, with what is left of it.
pub fn parse<M: protobuf::Message>(message: &[u8]) -> protobuf::Result<M> {
    let mut stream = protobuf::CodedInputStream::from_bytes(message);
    stream.push_limit(message.len() as u64)?;
    let mut parsed = M::new();
    parsed.merge_from(&mut stream)?;
    Ok(parsed)
}

/// A configured address as C-core understands it: shipped configurations leave the host out.
fn normalise(target: &str) -> Result<String, Error> {
    let bad = |reason| Error::Target { target: target.to_owned(), reason };
    let target = target.trim();
    if target.contains('\0') {
        return Err(bad("contains a NUL byte"));
    }
    let (scheme, address) = match target.strip_prefix("dns:///") {
        Some(address) => ("dns:///", address),
        None => ("", target),
    };
    match address {
        "" => Err(bad("is empty")),
        port if port.starts_with(':') => Ok(format!("{scheme}localhost{port}")),
        _ => Ok(target.to_owned()),
    }
}

/// The sending half of a stream. Dropping it cancels the call.
pub struct Sink {
    path: &'static str,
    sender: ClientDuplexSender<Vec<u8>>,
    /// A call ends when the last reference to its channel goes.
    _channel: Channel,
}

impl fmt::Debug for Sink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Sink({})", self.path)
    }
}

impl Sink {
    /// Hands one message to the transport. After an error the stream is of no use.
    pub fn send(&mut self, message: Vec<u8>, limit: Duration) -> Result<(), Error> {
        let sender = &mut self.sender;
        let mut message = Some((message, WriteFlags::default()));
        let sent = wait(
            poll_fn(|cx| {
                let mut sender = Pin::new(&mut *sender);
                if message.is_some() {
                    ready!(sender.as_mut().poll_ready(cx))?;
                    if let Some(message) = message.take() {
                        sender.as_mut().start_send(message)?;
                    }
                }
                sender.poll_flush(cx)
            }),
            limit,
        );
        match sent {
            Some(result) => result.map_err(|e| Error::of(self.path, e)),
            None => {
                self.sender.cancel(); // a half-written message would block the next one
                Err(Error::TimedOut { call: self.path, limit })
            }
        }
    }

    /// Tells the peer that nothing follows. It may still send; the other half sees the end.
    pub fn close(mut self, limit: Duration) {
        let sender = &mut self.sender;
        let _ = wait(poll_fn(|cx| Pin::new(&mut *sender).poll_close(cx)), limit);
    }
}

/// The receiving half of a stream in both directions.
pub struct Source {
    path: &'static str,
    receiver: ClientDuplexReceiver<Vec<u8>>,
    _channel: Channel,
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Source({})", self.path)
    }
}

impl Source {
    /// The next message; `None` = the peer ended the stream without an error.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Vec<u8>, Error>>> {
        let next = ready!(Pin::new(&mut self.receiver).poll_next(cx));
        Poll::Ready(next.map(|message| message.map_err(|e| Error::of(self.path, e))))
    }

    /// Cancels the call and waits for its end, so that no trace of it meets the next one. What has
    /// arrived all the same goes to `late`.
    pub fn finish(mut self, limit: Duration, mut late: impl FnMut(Vec<u8>)) {
        self.receiver.cancel();
        let _ = wait(
            poll_fn(|cx| {
                // An error comes before the messages that were there when it happened.
                while let Some(next) = ready!(self.poll(cx)) {
                    let _ = next.map(&mut late);
                }
                Poll::Ready(())
            }),
            limit,
        );
    }
}

/// A stream from the peer.
pub struct ServerStream {
    path: &'static str,
    receiver: ClientSStreamReceiver<Vec<u8>>,
    _channel: Channel,
}

impl fmt::Debug for ServerStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ServerStream({})", self.path)
    }
}

impl ServerStream {
    /// The next message; `None` = the peer ended the stream without an error.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Vec<u8>, Error>>> {
        let next = ready!(Pin::new(&mut self.receiver).poll_next(cx));
        Poll::Ready(next.map(|message| message.map_err(|e| Error::of(self.path, e))))
    }
}

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Blocks the thread until the future is done; `None` = not within `limit`.
pub fn wait<F: Future>(future: F, limit: Duration) -> Option<F::Output> {
    block(pin!(future), Some(now() + limit))
}

fn block<F: Future>(mut future: Pin<&mut F>, until: Option<Instant>) -> Option<F::Output> {
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut cx = Context::from_waker(&waker);
    loop {
        if let Poll::Ready(value) = future.as_mut().poll(&mut cx) {
            return Some(value);
        }
        let Some(until) = until else {
            progress::waiting(thread::park);
            continue;
        };
        match until.checked_duration_since(now()) {
            Some(left) if !left.is_zero() => progress::waiting(|| thread::park_timeout(left)),
            _ => return None,
        }
    }
}

/// Makes the inbox of a thread that waits in gRPC. `capacity` ≥ 1.
pub fn inbox<T>(capacity: usize) -> (InboxSender<T>, Inbox<T>) {
    let (sender, receiver) = bounded(capacity);
    let waker = Arc::new(AtomicWaker::new());
    (InboxSender { queue: sender, end: WakeAtEnd(waker.clone()) }, Inbox { queue: receiver, waker })
}

/// Field order matters: the queue is dropped first, so that the woken thread sees its end.
pub struct InboxSender<T> {
    queue: Sender<T>,
    end: WakeAtEnd,
}

struct WakeAtEnd(Arc<AtomicWaker>);

impl Drop for WakeAtEnd {
    fn drop(&mut self) {
        self.0.wake();
    }
}

impl<T> InboxSender<T> {
    /// Never blocks.
    pub fn try_send(&self, item: T) -> Result<(), TrySendError<T>> {
        self.queue.try_send(item)?;
        self.end.0.wake();
        Ok(())
    }

    /// Blocks while the inbox is full.
    pub fn send(&self, item: T) -> Result<(), SendError<T>> {
        self.queue.send(item)?;
        self.end.0.wake();
        Ok(())
    }
}

impl<T> Clone for InboxSender<T> {
    fn clone(&self) -> Self {
        Self { queue: self.queue.clone(), end: WakeAtEnd(self.end.0.clone()) }
    }
}

impl<T> fmt::Debug for InboxSender<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "InboxSender({} waiting)", self.queue.len())
    }
}

/// The receiving end; one thread owns it.
pub struct Inbox<T> {
    queue: Receiver<T>,
    waker: Arc<AtomicWaker>,
}

impl<T> fmt::Debug for Inbox<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Inbox({} waiting)", self.queue.len())
    }
}

/// What ended a wait.
#[derive(Debug)]
pub enum Woken<T, C> {
    /// The future is done.
    Done(T),
    /// A command arrived first; the future can be waited for again.
    Command(C),
    /// Every sender of the inbox is gone.
    Closed,
    /// The deadline came first.
    TimedOut,
}

impl<T> Inbox<T> {
    fn poll(&self, cx: &mut Context<'_>) -> Poll<Option<T>> {
        match self.queue.try_recv() {
            Ok(item) => return Poll::Ready(Some(item)),
            Err(TryRecvError::Disconnected) => return Poll::Ready(None),
            Err(TryRecvError::Empty) => self.waker.register(cx.waker()),
        }
        // Something may have come between the look and the registration.
        match self.queue.try_recv() {
            Ok(item) => Poll::Ready(Some(item)),
            Err(TryRecvError::Disconnected) => Poll::Ready(None),
            Err(TryRecvError::Empty) => Poll::Pending,
        }
    }

    /// Blocks until the future is done, a command arrives or the deadline comes. Commands go
    /// first, so that a busy stream cannot hide them.
    pub fn wait_with<F: Future + Unpin>(
        &self,
        future: &mut F,
        until: Option<Instant>,
    ) -> Woken<F::Output, T> {
        let merged = poll_fn(|cx| match self.poll(cx) {
            Poll::Ready(Some(command)) => Poll::Ready(Woken::Command(command)),
            Poll::Ready(None) => Poll::Ready(Woken::Closed),
            Poll::Pending => Pin::new(&mut *future).poll(cx).map(Woken::Done),
        });
        block(pin!(merged), until).unwrap_or(Woken::TimedOut)
    }

    /// Blocks until a command arrives or the deadline comes.
    pub fn wait(&self, until: Option<Instant>) -> Woken<std::convert::Infallible, T> {
        self.wait_with(&mut std::future::pending(), until)
    }
}

#[cfg(test)]
pub(crate) mod double;
#[cfg(test)]
mod tests;
