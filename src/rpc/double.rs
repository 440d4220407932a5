//! For tests: a certificate authority, servers over TLS whose calls the test answers itself, and
//! a gate in front of a server that can refuse, pass or swallow what comes.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, OnceLock};
use std::time::Duration;

use crossbeam::channel::{Receiver, Sender, bounded};
use futures_util::{Sink, Stream};
use grpcio::{
    CertificateRequestType, DuplexSink, RequestStream, RpcContext, RpcStatus, Server,
    ServerBuilder, ServerCredentialsBuilder, ServerStreamingSink, Service, ServiceBuilder,
};
use rcgen::{CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};

use super::*;
use crate::sys::thread::spawn;

/// No test waits longer for anything.
pub(crate) const LONG: Duration = Duration::from_secs(10);
/// Calls that a test has not looked at yet.
const WAITING_CALLS: usize = 64;

/// The environment of the code under test, one for all tests as in the daemon.
pub(crate) fn env() -> Env {
    static ENV: OnceLock<Env> = OnceLock::new();
    ENV.get_or_init(Env::start).clone()
}

/// A poll thread of their own for the servers.
fn server_env() -> Arc<Environment> {
    static ENV: OnceLock<Arc<Environment>> = OnceLock::new();
    ENV.get_or_init(|| Arc::new(EnvBuilder::new().cq_count(1).build())).clone()
}

/// Issues certificates and keeps them in files of its own.
pub(crate) struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    dir: tempfile::TempDir,
}

impl Authority {
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "authority");
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let authority = Self { issuer, dir: tempfile::tempdir().unwrap() };
        authority.write("ca.pem", &authority.issuer.pem());
        authority
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.dir.path().join(name);
        std::fs::File::create(&path).unwrap().write_all(text.as_bytes()).unwrap();
        path
    }

    pub(crate) fn ca_file(&self) -> PathBuf {
        self.dir.path().join("ca.pem")
    }

    /// Certificate and key of this name, in PEM.
    fn issue(&self, name: &str) -> (String, String) {
        let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        (certificate.pem(), key.serialize_pem())
    }

    /// URLs of a new certificate of this name and of its key; the files of an older one of the
    /// same name are overwritten.
    pub(crate) fn urls(&self, name: &str) -> (String, String) {
        let (certificate, key) = self.issue(name);
        let url = |path: &Path| format!("file://{}", path.display());
        (
            url(&self.write(&format!("{name}.cert.pem"), &certificate)),
            url(&self.write(&format!("{name}.key.pem"), &key)),
        )
    }

    pub(crate) fn certificate(&self, name: &str) -> Certificate {
        let (cert_url, key_url) = self.urls(name);
        Certificate::load(&Tokens::default(), &cert_url, &key_url).unwrap()
    }

    /// Starts a server on a port that the kernel chooses.
    pub(crate) fn server(&self, service: Service, mutual: bool) -> Running {
        let (certificate, key) = self.issue("server");
        let mut credentials =
            ServerCredentialsBuilder::new().add_cert(certificate.into_bytes(), key.into_bytes());
        if mutual {
            credentials = credentials.root_cert(
                self.issuer.pem(),
                CertificateRequestType::RequestAndRequireClientCertificateAndVerify,
            );
        }
        let mut server =
            ServerBuilder::new(server_env()).register_service(service).build().unwrap();
        let port = server.add_listening_port("127.0.0.1:0", credentials.build()).unwrap();
        server.start();
        Running { server, port }
    }
}

/// A server; gone with the value.
pub(crate) struct Running {
    server: Server,
    pub(crate) port: u16,
}

impl Drop for Running {
    fn drop(&mut self) {
        let shutdown = self.server.shutdown();
        self.server.cancel_all_calls();
        let _ = wait(shutdown, LONG);
    }
}

fn common_name(ctx: &RpcContext<'_>) -> String {
    let property = ctx.auth_context().and_then(|auth| {
        auth.into_iter()
            .find(|p| p.name() == "x509_common_name")
            .and_then(|p| p.value_str().ok().map(str::to_owned))
    });
    property.unwrap_or_default()
}

/// One stream in both directions, held by the test.
pub(crate) struct DuplexCall {
    /// Name in the client's certificate.
    pub(crate) client: String,
    requests: RequestStream<Vec<u8>>,
    answers: DuplexSink<Vec<u8>>,
}

impl DuplexCall {
    /// The next message; `None` = the client has closed its half; an error = it is gone.
    pub(crate) fn recv(&mut self) -> Option<grpcio::Result<Vec<u8>>> {
        wait(poll_fn(|cx| Pin::new(&mut self.requests).poll_next(cx)), LONG)
            .expect("the client neither sends nor ends")
    }

    pub(crate) fn message(&mut self) -> Vec<u8> {
        self.recv().expect("a message and not the end").expect("a message")
    }

    pub(crate) fn send(&mut self, message: &[u8]) {
        self.offer(message).expect("the client is there");
    }

    /// Sends what the client may refuse.
    pub(crate) fn offer(&mut self, message: &[u8]) -> grpcio::Result<()> {
        put(&mut self.answers, message)
    }

    /// Ends the call with this status.
    pub(crate) fn fail(self, code: RpcStatusCode, text: &str) {
        let status = RpcStatus::with_message(code, text.to_owned());
        let _ = wait(self.answers.fail(status), LONG);
    }

    /// Ends the call without an error.
    pub(crate) fn end(mut self) {
        let _ = wait(poll_fn(|cx| Pin::new(&mut self.answers).poll_close(cx)), LONG);
    }
}

/// A stream from the server, held by the test.
pub(crate) struct StreamCall {
    answers: ServerStreamingSink<Vec<u8>>,
}

impl StreamCall {
    pub(crate) fn send(&mut self, message: &[u8]) {
        put(&mut self.answers, message).expect("the client is there");
    }
}

fn put<S>(sink: &mut S, message: &[u8]) -> grpcio::Result<()>
where
    S: Sink<(Vec<u8>, WriteFlags), Error = grpcio::Error> + Unpin,
{
    let mut message = Some((message.to_vec(), WriteFlags::default()));
    let sent = wait(
        poll_fn(|cx| {
            let mut sink = Pin::new(&mut *sink);
            if message.is_some() {
                ready!(sink.as_mut().poll_ready(cx))?;
                sink.as_mut().start_send(message.take().unwrap())?;
            }
            sink.poll_flush(cx)
        }),
        LONG,
    );
    sent.expect("the client takes the message or ends")
}

/// Serves one stream in both directions; each call arrives at the receiver.
pub(crate) fn duplex_service(path: &'static str) -> (Service, Receiver<DuplexCall>) {
    let (calls, arrived) = bounded(WAITING_CALLS);
    let handler = move |ctx: RpcContext<'_>, requests, answers| {
        let _ = calls.try_send(DuplexCall { client: common_name(&ctx), requests, answers });
    };
    let service = ServiceBuilder::new()
        .add_duplex_streaming_handler(&method(MethodType::Duplex, path), handler)
        .build();
    (service, arrived)
}

/// Adds a stream from the server; each call arrives at the sender's other end.
pub(crate) fn with_stream(
    builder: ServiceBuilder,
    path: &'static str,
    calls: Sender<StreamCall>,
) -> ServiceBuilder {
    let handler = move |_: RpcContext<'_>, _request, answers| {
        let _ = calls.try_send(StreamCall { answers });
    };
    builder.add_server_streaming_handler(&method(MethodType::ServerStreaming, path), handler)
}

/// What a unary call gets.
pub(crate) enum Reply {
    Message(Vec<u8>),
    Refused(RpcStatusCode, &'static str),
    /// The end without an error, and no message before it.
    Nothing,
    /// Nothing, ever.
    Silence,
}

/// Adds a unary call; `answer` sees the client's name and the request. The handler is one of
/// streams, which looks the same on the wire, because a unary one always sends a message.
pub(crate) fn with_unary(
    builder: ServiceBuilder,
    path: &'static str,
    answer: impl Fn(&str, &[u8]) -> Reply + Clone + Send + Sync + 'static,
) -> ServiceBuilder {
    let handler =
        move |ctx: RpcContext<'_>, request: Vec<u8>, mut sink: ServerStreamingSink<Vec<u8>>| {
            let mut message = match answer(&common_name(&ctx), &request) {
                Reply::Message(message) => Some((message, WriteFlags::default())),
                Reply::Nothing => None,
                Reply::Silence => return std::mem::forget(sink),
                Reply::Refused(code, text) => {
                    let refused = sink.fail(RpcStatus::with_message(code, text.to_owned()));
                    return ctx.spawn(async move { refused.await.unwrap_or_default() });
                }
            };
            ctx.spawn(async move {
                let _ = poll_fn(|cx| {
                    let mut sink = Pin::new(&mut sink);
                    if message.is_some() {
                        ready!(sink.as_mut().poll_ready(cx))?;
                        sink.as_mut().start_send(message.take().unwrap())?;
                    }
                    sink.poll_close(cx)
                })
                .await;
            });
        };
    builder.add_server_streaming_handler(&method(MethodType::ServerStreaming, path), handler)
}

#[derive(Clone, Copy, PartialEq)]
enum Mode {
    Closed,
    Open(u16),
    Frozen,
}

struct Passage {
    mode: Mutex<Mode>,
    changed: Condvar,
    streams: Mutex<Vec<TcpStream>>,
}

/// A listening port that stays the same while what is behind it changes.
pub(crate) struct Gate {
    port: u16,
    passage: Arc<Passage>,
}

impl Gate {
    /// Refuses at first.
    pub(crate) fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let passage = Arc::new(Passage {
            mode: Mutex::new(Mode::Closed),
            changed: Condvar::new(),
            streams: Mutex::new(Vec::new()),
        });
        let inside = Arc::downgrade(&passage);
        spawn("gate", move || {
            for outer in listener.incoming().map_while(Result::ok) {
                let Some(passage) = inside.upgrade() else { return };
                let mode = *passage.mode.lock().unwrap();
                if let Mode::Open(port) = mode {
                    passage.connect(outer, port);
                }
            }
        })
        .unwrap();
        Self { port, passage }
    }

    pub(crate) fn target(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// New connections go to this port.
    pub(crate) fn open(&self, port: u16) {
        self.set(Mode::Open(port));
    }

    /// Nothing passes any more, and nobody is told.
    pub(crate) fn freeze(&self) {
        self.set(Mode::Frozen);
    }

    /// Cuts all connections and refuses new ones.
    pub(crate) fn close(&self) {
        self.set(Mode::Closed);
        for stream in self.passage.streams.lock().unwrap().drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    fn set(&self, mode: Mode) {
        *self.passage.mode.lock().unwrap() = mode;
        self.passage.changed.notify_all();
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.close();
        // The listening thread looks up once more and ends.
        let target = self.target();
        self.passage = Arc::new(Passage {
            mode: Mutex::new(Mode::Closed),
            changed: Condvar::new(),
            streams: Mutex::new(Vec::new()),
        });
        let _ = TcpStream::connect(target);
    }
}

impl Passage {
    fn connect(self: &Arc<Self>, outer: TcpStream, port: u16) {
        let Ok(inner) = TcpStream::connect(("127.0.0.1", port)) else { return };
        let ways = [
            (outer.try_clone().unwrap(), inner.try_clone().unwrap()),
            (inner.try_clone().unwrap(), outer.try_clone().unwrap()),
        ];
        self.streams.lock().unwrap().extend([outer, inner]);
        for (from, to) in ways {
            let passage = self.clone();
            spawn("pump", move || passage.pump(from, to)).unwrap();
        }
    }

    fn pump(&self, mut from: TcpStream, mut to: TcpStream) {
        let mut buffer = vec![0; 16 << 10];
        while let Ok(count @ 1..) = from.read(&mut buffer) {
            let mut mode = self.mode.lock().unwrap();
            while *mode == Mode::Frozen {
                mode = self.changed.wait(mode).unwrap();
            }
            drop(mode);
            if to.write_all(&buffer[..count]).is_err() {
                break;
            }
        }
        let _ = to.shutdown(Shutdown::Both);
        let _ = from.shutdown(Shutdown::Both);
    }
}
