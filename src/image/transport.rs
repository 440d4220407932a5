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

use crate::ports::Halt;
use crate::sys;

/// A silent connection is looked at so often, whether it is still wanted.
const HALT_PERIOD: Duration = Duration::from_millis(500);

/// A socket that never waits beyond its limits, nor for what nobody wants.
pub(super) struct Timed<'a> {
    socket: TcpStream,
    end: Instant,
    stall: Duration,
    halt: Halt<'a>,
}

impl<'a> Timed<'a> {
    pub(super) fn new(socket: TcpStream, end: Instant, stall: Duration, halt: Halt<'a>) -> Self {
        Self { socket, end, stall, halt }
    }

    /// Calls `try_for` with what a single wait may take, until something happens or the time is
    /// over.
    fn wait(
        &mut self,
        mut try_for: impl FnMut(&mut TcpStream, Option<Duration>) -> io::Result<usize>,
    ) -> io::Result<usize> {
        let end = self.end.min(sys::time::now() + self.stall);
        loop {
            let left = end.saturating_duration_since(sys::time::now());
            if left.is_zero() || (self.halt)() {
                return Err(io::ErrorKind::TimedOut.into());
            }
            match try_for(&mut self.socket, Some(left.min(HALT_PERIOD))) {
                Err(error) if is_timeout(&error) => {}
                other => return other,
            }
        }
    }
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}

impl Read for Timed<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.wait(|socket, limit| {
            socket.set_read_timeout(limit)?;
            socket.read(buffer)
        })
    }
}

impl Write for Timed<'_> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        self.wait(|socket, limit| {
            socket.set_write_timeout(limit)?;
            socket.write(buffer)
        })
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A connection to a server.
pub(super) enum Stream<'a> {
    Plain(Timed<'a>),
    #[cfg(feature = "https")]
    Tls(Box<openssl::ssl::SslStream<Timed<'a>>>),
    /// What a server has sent, all at once.
    #[cfg(any(test, fuzzing))]
    Made(io::Cursor<Vec<u8>>),
}

impl Stream<'_> {
    /// No call lasts beyond this moment from now on.
    pub(super) fn end_at(&mut self, end: Instant) {
        match self {
            Self::Plain(timed) => timed.end = end,
            #[cfg(feature = "https")]
            Self::Tls(stream) => stream.get_mut().end = end,
            #[cfg(any(test, fuzzing))]
            Self::Made(_) => {}
        }
    }
}

impl Read for Stream<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(timed) => timed.read(buffer),
            #[cfg(feature = "https")]
            Self::Tls(stream) => stream.read(buffer),
            #[cfg(any(test, fuzzing))]
            Self::Made(bytes) => bytes.read(buffer),
        }
    }
}

impl Write for Stream<'_> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(timed) => timed.write(buffer),
            #[cfg(feature = "https")]
            Self::Tls(stream) => stream.write(buffer),
            #[cfg(any(test, fuzzing))]
            Self::Made(_) => Ok(buffer.len()),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Makes a TLS connection of a plain one. `ca_cert` adds roots to those of the system; empty =
/// none.
#[cfg(feature = "https")]
pub(super) fn secure<'a>(timed: Timed<'a>, host: &str, ca_cert: &Path) -> io::Result<Stream<'a>> {
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
