//! The connection under HTTP: plain, or TLS by the shared OpenSSL.
//!
//! Fetch thread. Every read and write ends at the time limits that are set, so that neither a
//! silent server nor one that sends a byte now and then holds the thread, in the handshake
//! either. A server is trusted if its certificate leads to a root of the system or of `caCert` and
//! names the host; no client certificate is sent. Not here: HTTP.

use std::io::{self, Read, Write};
use std::net::TcpStream;
#[cfg(feature = "https")]
use std::path::Path;
use std::time::{Duration, Instant};

use crate::sys;

/// A socket that never waits beyond its limits.
#[derive(Debug)]
pub(super) struct Timed {
    socket: TcpStream,
    end: Instant,
    stall: Duration,
}

impl Timed {
    pub(super) fn new(socket: TcpStream, end: Instant, stall: Duration) -> Self {
        Self { socket, end, stall }
    }

    /// What a single call may take; an error when nothing is left.
    fn limit(&self) -> io::Result<Option<Duration>> {
        let left = self.end.saturating_duration_since(sys::time::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        Ok(Some(left.min(self.stall)))
    }
}

impl Read for Timed {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.socket.set_read_timeout(self.limit()?)?;
        self.socket.read(buffer)
    }
}

impl Write for Timed {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        self.socket.set_write_timeout(self.limit()?)?;
        self.socket.write(buffer)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A connection to a server.
#[derive(Debug)]
pub(super) enum Stream {
    Plain(Timed),
    #[cfg(feature = "https")]
    Tls(Box<openssl::ssl::SslStream<Timed>>),
}

impl Stream {
    /// No call lasts beyond this moment from now on.
    pub(super) fn end_at(&mut self, end: Instant) {
        match self {
            Self::Plain(timed) => timed.end = end,
            #[cfg(feature = "https")]
            Self::Tls(stream) => stream.get_mut().end = end,
        }
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(timed) => timed.read(buffer),
            #[cfg(feature = "https")]
            Self::Tls(stream) => stream.read(buffer),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(timed) => timed.write(buffer),
            #[cfg(feature = "https")]
            Self::Tls(stream) => stream.write(buffer),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Makes a TLS connection of a plain one. `ca_cert` adds roots to those of the system; empty =
/// none.
#[cfg(feature = "https")]
pub(super) fn secure(timed: Timed, host: &str, ca_cert: &Path) -> io::Result<Stream> {
    use openssl::ssl::{HandshakeError, SslConnector, SslMethod, SslVersion};

    let mut builder = SslConnector::builder(SslMethod::tls_client()).map_err(io::Error::other)?;
    builder.set_min_proto_version(Some(SslVersion::TLS1_2)).map_err(io::Error::other)?;
    if !ca_cert.as_os_str().is_empty()
        && let Err(error) = builder.set_ca_file(ca_cert)
    {
        // The roots of the system may do.
        log::warn!("cannot use the roots of caCert path={} err={error}", ca_cert.display());
    }
    match builder.build().connect(host, timed) {
        Ok(stream) => Ok(Stream::Tls(Box::new(stream))),
        Err(HandshakeError::SetupFailure(error)) => Err(io::Error::other(error)),
        // A read or write came to its limit.
        Err(HandshakeError::WouldBlock(_)) => Err(io::ErrorKind::TimedOut.into()),
        Err(HandshakeError::Failure(failed)) => {
            let verified = failed.ssl().verify_result();
            if verified == openssl::x509::X509VerifyResult::OK {
                Err(failed.into_error().into_io_error().unwrap_or_else(io::Error::other))
            } else {
                Err(io::Error::other(format!("certificate refused: {verified}")))
            }
        }
    }
}
