//! What the IAM and the CM server share: raw methods, mutual TLS, start and stop.
//!
//! Methods carry bytes, not messages: tests can send what no encoder makes, and record what came.

use std::future::Future;
use std::io::Read;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::Duration;

use futures_channel::mpsc::UnboundedSender;
use grpcio::{
    CertificateRequestType, ChannelBuilder, EnvBuilder, Environment, GrpcSlice, Marshaller,
    MessageReader, Method, MethodType, RpcStatus, Server, ServerBuilder, ServerCredentials,
    ServerCredentialsBuilder, Service,
};

use super::certs::{self, Identity};

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot use the certificate")]
    Certificate(#[from] certs::Error),
    #[error("cannot listen on {address}")]
    Listen { address: String, source: Box<grpcio::Error> },
}

/// Where a server listens and as whom.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Endpoint {
    /// Address to listen on.
    pub host: String,
    /// 0 = the kernel chooses.
    pub port: u16,
    pub identity: Identity,
    /// PEM file of the authority whose clients are let in; `None` = clients need no certificate.
    pub client_ca: Option<std::path::PathBuf>,
}

/// What a handler is told to write.
#[derive(Debug)]
pub(super) enum Out {
    Message(Vec<u8>),
    /// The end of the stream with this status.
    End(RpcStatus),
}

/// Writing end of a stream to the peer.
pub(super) type Outbox = UnboundedSender<Out>;

pub(crate) type RawMethod = Method<Vec<u8>, Vec<u8>>;

/// A method whose requests and responses are bytes.
pub(crate) const fn method(ty: MethodType, name: &'static str) -> RawMethod {
    Method {
        ty,
        name,
        req_mar: Marshaller { ser: write_bytes, de: read_bytes },
        resp_mar: Marshaller { ser: write_bytes, de: read_bytes },
    }
}

#[allow(clippy::ptr_arg)] // the type is given by Marshaller
fn write_bytes(bytes: &Vec<u8>, out: &mut GrpcSlice) -> grpcio::Result<()> {
    *out = GrpcSlice::from(bytes.as_slice());
    Ok(())
}

fn read_bytes(mut reader: MessageReader) -> grpcio::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    reader.read_to_end(&mut bytes).map_err(|e| grpcio::Error::Codec(Box::new(e)))?;
    Ok(bytes)
}

/// The one thread that serves the calls of all servers of the process. It stays: C-core may lose
/// the wake-up of another thread when one of its poll threads ends.
pub(super) fn environment() -> Arc<Environment> {
    static ENVIRONMENT: OnceLock<Arc<Environment>> = OnceLock::new();
    let make = || Arc::new(EnvBuilder::new().cq_count(1).name_prefix("sim-grpc").build());
    ENVIRONMENT.get_or_init(make).clone()
}

/// Starts a server and returns it with its port.
pub(super) fn listen(
    env: &Arc<Environment>,
    endpoint: &Endpoint,
    services: Vec<Service>,
) -> Result<(Server, u16), Error> {
    // Two units on one port would share the connections: the second one shall fail.
    let args = ChannelBuilder::new(env.clone())
        .reuse_port(false)
        .max_receive_message_len(-1)
        .http2_min_recv_ping_interval_without_data(Duration::from_secs(300))
        .http2_max_ping_strikes(2)
        .build_args();
    let address = format!("{}:{}", endpoint.host, endpoint.port);
    let failed = |e| Error::Listen { address: address.clone(), source: Box::new(e) };
    let mut builder = ServerBuilder::new(env.clone()).channel_args(args);
    for service in services {
        builder = builder.register_service(service);
    }
    let mut server = builder.build().map_err(failed)?;
    let port = server.add_listening_port(&address, credentials(endpoint)?).map_err(failed)?;
    server.start();
    Ok((server, port))
}

fn credentials(endpoint: &Endpoint) -> Result<ServerCredentials, Error> {
    let (cert, key) = endpoint.identity.read()?;
    let mut builder = ServerCredentialsBuilder::new().add_cert(cert, key);
    if let Some(path) = &endpoint.client_ca {
        let ca = std::fs::read(path)
            .map_err(|source| certs::Error::Read { path: path.clone(), source })?;
        let require = CertificateRequestType::RequestAndRequireClientCertificateAndVerify;
        builder = builder.root_cert(ca, require);
    }
    Ok(builder.build())
}

/// Ends all calls of a server and closes its port.
pub(super) fn stop(mut server: Server) {
    let done = server.shutdown();
    server.cancel_all_calls();
    let _ = wait(done);
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Blocks the calling thread until the future is done.
pub(crate) fn wait<F: Future>(future: F) -> F::Output {
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut context = Context::from_waker(&waker);
    let mut future = pin!(future);
    loop {
        match future.as_mut().poll(&mut context) {
            Poll::Ready(output) => return output,
            Poll::Pending => thread::park(),
        }
    }
}
