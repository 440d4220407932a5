//! A small HTTP/1.1 client for one thing: GET a file of known size, within time limits.
//!
//! Fetch thread, blocking. In: a URL. Out: a `Body`. One connection per request; redirects stay
//! within http and https; a connection that breaks in the middle is taken up again by a range
//! request. No credentials, no cookies, no proxy, no compression of its own. Not here: TLS
//! (`transport.rs`); names are resolved by the C library, whose time limits are those of
//! `resolv.conf`.

use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::image::download::TimeLimits;
#[cfg(feature = "https")]
use crate::image::transport;
use crate::image::transport::{Stream, Timed};
use crate::image::url::Url;
use crate::ports::Halt;
use crate::sys;

/// Redirects that are followed.
pub(super) const MAX_REDIRECTS: usize = 5;
/// Times that a broken download is taken up again.
pub(super) const MAX_RESUMES: usize = 4;
/// Status line and header fields of an answer, in bytes.
pub(super) const MAX_HEAD_BYTES: usize = 16 << 10;
/// Line with the size of a chunk, and each line after the last one, in bytes.
pub(super) const MAX_LINE_BYTES: usize = 1 << 10;
/// Addresses of a name that are tried.
const MAX_ADDRESSES: usize = 8;
/// Interim answers (1xx) before the real one.
const MAX_INTERIM: usize = 8;
const BUFFER_BYTES: usize = 16 << 10;
const USER_AGENT: &str = concat!("aos_servicemanager/", env!("CARGO_PKG_VERSION"));

/// Why a download failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the URL is malformed: {reason}")]
    Url { reason: &'static str },
    #[error("cannot resolve {host}")]
    Resolve {
        host: String,
        #[source]
        source: io::Error,
    },
    #[error("cannot connect to {host}")]
    Connect {
        host: String,
        #[source]
        source: io::Error,
    },
    #[error("cannot make a secure connection to {host}")]
    Tls {
        host: String,
        #[source]
        source: io::Error,
    },
    #[error("the connection failed")]
    Connection {
        #[source]
        source: io::Error,
    },
    #[error("no data for {} s", .limit.as_secs_f64())]
    Stalled { limit: Duration },
    #[error("not finished after {} s", .limit.as_secs_f64())]
    TooSlow { limit: Duration },
    #[error("the connection ended after {received} of {expected} bytes")]
    Broken { received: u64, expected: u64 },
    #[error("the server answered {status}")]
    Status { status: u16 },
    #[error("malformed answer: {what}")]
    Malformed { what: &'static str },
    #[error("more than {MAX_REDIRECTS} redirects")]
    Redirects,
    #[error("the server redirects to {location:?}")]
    Redirect { location: String },
    #[error("it is no longer wanted")]
    Halted,
}

impl Error {
    pub(super) fn is_transient(&self) -> bool {
        match self {
            Self::Url { .. } | Self::Redirects | Self::Redirect { .. } => false,
            Self::Status { status } => matches!(status, 408 | 425 | 429 | 500..),
            _ => true,
        }
    }
}

/// What is asked for, and within which limits.
pub(super) struct Get<'a> {
    pub(super) url: &'a str,
    pub(super) size_bytes: u64,
    /// So much of it is there already.
    pub(super) offset: u64,
    pub(super) limits: &'a TimeLimits,
    pub(super) ca_cert: &'a Path,
    pub(super) halt: Halt<'a>,
}

/// Asks for a file from the offset on. A server that cannot do that sends all of it.
pub(super) fn get<'a>(get: &Get<'a>) -> Result<Body<'a>, Error> {
    let url = Url::parse(get.url).map_err(|reason| Error::Url { reason })?;
    let rate = get.limits.min_bytes_per_s.max(1);
    let total = get.limits.base.saturating_add(Duration::from_secs(get.size_bytes / rate));
    let end = sys::time::now() + total;
    let clock = Clock { stall: get.limits.stall, total, end, halt: get.halt };
    let trust = Trust { connect: get.limits.connect, ca_cert: get.ca_cert.to_owned() };
    let (mut wire, mut head, mut found) = request(url.clone(), get.offset, "", clock, &trust)?;
    let partial = head.status == 206 && head.range == Some((get.offset, get.size_bytes));
    if get.offset > 0 && matches!(head.status, 206 | 416) && !partial {
        // Another file than before, or a confused server: all of it, then.
        (wire, head, found) = request(url, 0, "", clock, &trust)?;
    }
    if head.status != 200 && !partial {
        return Err(Error::Status { status: head.status });
    }
    Ok(Body {
        wire,
        framing: head.framing,
        url: found,
        validator: head.validator,
        trust,
        received: if partial { get.offset } else { 0 },
        expected: get.size_bytes,
        resumes_left: MAX_RESUMES,
    })
}

/// Deadlines of a whole download.
#[derive(Clone, Copy)]
struct Clock<'a> {
    stall: Duration,
    total: Duration,
    end: Instant,
    halt: Halt<'a>,
}

/// How the end of a body is recognised.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Framing {
    /// This much is left.
    Length(u64),
    /// This much of the chunk is left; `None` = before the size line of the first chunk.
    Chunks(Option<u64>),
    /// All of it was read.
    Done,
    UntilClose,
}

/// The content of the file while it arrives.
pub(super) struct Body<'a> {
    wire: Wire<'a>,
    framing: Framing,
    url: Url,
    /// Strong entity tag: what is sent must still be the same file when it is resumed.
    validator: String,
    trust: Trust,
    received: u64,
    expected: u64,
    resumes_left: usize,
}

impl Body<'_> {
    /// Size of the whole as the server states it, before anything was read.
    pub(super) fn length(&self) -> Option<u64> {
        match self.framing {
            Framing::Length(length) => self.received.checked_add(length),
            _ => None,
        }
    }

    /// How much of the file was received, or skipped at the beginning.
    pub(super) fn received(&self) -> u64 {
        self.received
    }

    /// Some of the content; 0 = the end.
    pub(super) fn read(&mut self, buffer: &mut [u8]) -> Result<usize, Error> {
        loop {
            let missing = self.received < self.expected;
            match read_framed(&mut self.wire, &mut self.framing, buffer) {
                Ok(0) if missing && self.framing == Framing::UntilClose => {}
                Ok(read) => {
                    self.received += read as u64;
                    return Ok(read);
                }
                // Stalled servers are left to the next attempt: other packages wait.
                Err(Error::Connection { source }) => {
                    log::debug!("download was interrupted err={source}");
                }
                Err(error) => return Err(error),
            }
            if self.resumes_left == 0 {
                return Err(Error::Broken { received: self.received, expected: self.expected });
            }
            self.resumes_left -= 1;
            self.resume()?;
        }
    }

    /// Goes on where the connection broke.
    fn resume(&mut self) -> Result<(), Error> {
        log::info!("resuming download received={} size={}", self.received, self.expected);
        let clock = self.wire.clock;
        let (mut wire, head, url) =
            request(self.url.clone(), self.received, &self.validator, clock, &self.trust)?;
        let mut framing = head.framing;
        match head.status {
            206 if head.range == Some((self.received, self.expected)) => {}
            206 => return Err(Error::Malformed { what: "another range than asked for" }),
            // The server knows no ranges: the checksum will tell whether it is the same file.
            200 => skip(&mut wire, &mut framing, self.received)?,
            status => return Err(Error::Status { status }),
        }
        (self.wire, self.framing, self.url) = (wire, framing, url);
        Ok(())
    }
}

fn skip(wire: &mut Wire<'_>, framing: &mut Framing, bytes: u64) -> Result<(), Error> {
    let mut scratch = vec![0; BUFFER_BYTES];
    let mut left = bytes;
    while left > 0 {
        let length = usize::try_from(left).unwrap_or(usize::MAX).min(scratch.len());
        match read_framed(wire, framing, &mut scratch[..length])? {
            0 => return Err(Error::Malformed { what: "the file has become shorter" }),
            read => left -= read as u64,
        }
    }
    Ok(())
}

fn read_framed(
    wire: &mut Wire<'_>,
    framing: &mut Framing,
    buffer: &mut [u8],
) -> Result<usize, Error> {
    if let Framing::Chunks(left @ (None | Some(0))) = framing {
        *framing = wire.next_chunk(left.is_some())?;
    }
    let limit = match framing {
        Framing::Done | Framing::Length(0) => return Ok(0),
        Framing::Length(left) | Framing::Chunks(Some(left)) => *left,
        Framing::Chunks(None) | Framing::UntilClose => u64::MAX,
    };
    let limit = usize::try_from(limit).unwrap_or(usize::MAX).min(buffer.len());
    let read = wire.read(&mut buffer[..limit])?;
    match framing {
        Framing::Length(left) | Framing::Chunks(Some(left)) => {
            if read == 0 && limit > 0 {
                let source = io::ErrorKind::UnexpectedEof.into();
                return Err(Error::Connection { source });
            }
            *left -= read as u64;
        }
        _ => {}
    }
    Ok(read)
}

/// Sends a request and follows redirects; returns the answer's head and where it came from.
fn request<'a>(
    mut url: Url,
    offset: u64,
    validator: &str,
    clock: Clock<'a>,
    trust: &Trust,
) -> Result<(Wire<'a>, Head, Url), Error> {
    for _ in 0..=MAX_REDIRECTS {
        let mut wire = Wire::new(connect(&url, trust, clock)?, clock);
        wire.send(&url, offset, validator)?;
        let head = wire.head()?;
        if !matches!(head.status, 301 | 302 | 303 | 307 | 308) {
            return Ok((wire, head, url));
        }
        let target = url.join(&head.location);
        url = target.map_err(|_| Error::Redirect { location: head.location })?;
    }
    Err(Error::Redirects)
}

/// How a connection is made.
struct Trust {
    connect: Duration,
    /// See `transport::secure`.
    #[cfg_attr(not(feature = "https"), allow(dead_code))]
    ca_cert: PathBuf,
}

fn connect<'a>(url: &Url, trust: &Trust, clock: Clock<'a>) -> Result<Stream<'a>, Error> {
    let socket = connect_plain(url, trust.connect, clock.halt)?;
    if !url.secure {
        return Ok(Stream::Plain(Timed::new(socket, clock.end, clock.stall, clock.halt)));
    }
    #[cfg(feature = "https")]
    {
        // A handshake is an answer that must be complete in the time of a stall.
        let end = clock.end.min(sys::time::now() + clock.stall);
        let timed = Timed::new(socket, end, clock.stall, clock.halt);
        transport::secure(timed, &url.host, &trust.ca_cert).map_err(|source| {
            let host = format!("{}:{}", url.host, url.port);
            Error::Tls { host, source }
        })
    }
    #[cfg(not(feature = "https"))]
    Err(Error::Url { reason: "https is not built in" })
}

fn connect_plain(url: &Url, limit: Duration, halt: Halt<'_>) -> Result<TcpStream, Error> {
    let host = || format!("{}:{}", url.host, url.port);
    let addresses = (url.host.as_str(), url.port).to_socket_addrs();
    let addresses = addresses.map_err(|source| Error::Resolve { host: host(), source })?;
    let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
    for address in addresses.take(MAX_ADDRESSES) {
        if halt() {
            return Err(Error::Halted);
        }
        match TcpStream::connect_timeout(&address, limit) {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(Error::Connect { host: host(), source: last })
}

/// What is used of the head of an answer.
#[derive(Debug)]
struct Head {
    status: u16,
    framing: Framing,
    location: String,
    validator: String,
    /// First byte and size of the whole.
    range: Option<(u64, u64)>,
}

/// A connection with its read buffer and deadlines.
struct Wire<'a> {
    stream: Stream<'a>,
    clock: Clock<'a>,
    buffer: Vec<u8>,
    start: usize,
    end: usize,
}

impl<'a> Wire<'a> {
    fn new(stream: Stream<'a>, clock: Clock<'a>) -> Self {
        Self { stream, clock, buffer: vec![0; BUFFER_BYTES], start: 0, end: 0 }
    }

    fn send(&mut self, url: &Url, offset: u64, validator: &str) -> Result<(), Error> {
        let mut text = format!(
            "GET {} HTTP/1.1\r\nHost: {}\r\nUser-Agent: {USER_AGENT}\r\nAccept: */*\r\n\
             Accept-Encoding: identity\r\nConnection: close\r\n",
            url.target,
            url.authority()
        );
        if offset > 0 {
            text.push_str(&format!("Range: bytes={offset}-\r\n"));
            if !validator.is_empty() {
                text.push_str(&format!("If-Range: {validator}\r\n"));
            }
        }
        text.push_str("\r\n");
        self.stream.end_at(self.clock.end);
        let sent = self.stream.write_all(text.as_bytes());
        sent.map_err(|source| self.error(source))
    }

    fn error(&self, source: io::Error) -> Error {
        match source.kind() {
            _ if (self.clock.halt)() => Error::Halted,
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
                if sys::time::now() >= self.clock.end {
                    Error::TooSlow { limit: self.clock.total }
                } else {
                    Error::Stalled { limit: self.clock.stall }
                }
            }
            _ => Error::Connection { source },
        }
    }

    /// Bytes that were received; 0 = the peer closed.
    fn read(&mut self, buffer: &mut [u8]) -> Result<usize, Error> {
        if buffer.is_empty() || (self.start == self.end && self.fill(self.clock.end)? == 0) {
            return Ok(0);
        }
        let length = buffer.len().min(self.end - self.start);
        buffer[..length].copy_from_slice(&self.buffer[self.start..self.start + length]);
        self.start += length;
        Ok(length)
    }

    /// Receives into the empty buffer, for the time of a stall and not beyond `end`.
    fn fill(&mut self, end: Instant) -> Result<usize, Error> {
        let left = end.saturating_duration_since(sys::time::now());
        if left.is_zero() {
            return Err(Error::TooSlow { limit: self.clock.total });
        }
        self.stream.end_at(end);
        (self.start, self.end) = (0, 0);
        loop {
            match self.stream.read(&mut self.buffer) {
                Ok(read) => {
                    self.end = read;
                    return Ok(read);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(self.error(error)),
            }
        }
    }

    /// A line without its end. It must be complete before `end`.
    fn line(&mut self, limit: usize, end: Instant) -> Result<String, Error> {
        let mut line = Vec::new();
        loop {
            if self.start == self.end && self.fill(end)? == 0 {
                let source = io::ErrorKind::UnexpectedEof.into();
                return Err(Error::Connection { source });
            }
            let byte = self.buffer[self.start];
            self.start += 1;
            if byte == b'\n' {
                break;
            }
            if line.len() >= limit {
                return Err(Error::Malformed { what: "too long" });
            }
            line.push(byte);
        }
        if line.last() == Some(&b'\r') {
            line.pop();
        }
        String::from_utf8(line).map_err(|_| Error::Malformed { what: "not text" })
    }

    fn head(&mut self) -> Result<Head, Error> {
        let end = self.clock.end.min(sys::time::now() + self.clock.stall);
        for _ in 0..MAX_INTERIM {
            let mut left = MAX_HEAD_BYTES;
            let status = status_of(&self.line(left, end)?)?;
            let mut fields = Vec::new();
            loop {
                let line = self.line(left, end)?;
                if line.is_empty() {
                    break;
                }
                left = left.saturating_sub(line.len() + 2);
                fields.push(line);
            }
            if status >= 200 {
                return head(status, &fields);
            }
        }
        Err(Error::Malformed { what: "too many interim answers" })
    }

    /// Reads the size line of the next chunk, after the end of the one before if there was one.
    fn next_chunk(&mut self, after_chunk: bool) -> Result<Framing, Error> {
        let end = self.clock.end.min(sys::time::now() + self.clock.stall);
        if after_chunk && !self.line(MAX_LINE_BYTES, end)?.is_empty() {
            return Err(Error::Malformed { what: "chunk" });
        }
        let line = self.line(MAX_LINE_BYTES, end)?;
        let digits = line.split(';').next().unwrap_or_default().trim();
        let plain = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
        let size = u64::from_str_radix(digits, 16).ok().filter(|_| plain);
        match size.ok_or(Error::Malformed { what: "chunk size" })? {
            // What may follow is of no interest: the connection is not used again.
            0 => Ok(Framing::Done),
            size => Ok(Framing::Chunks(Some(size))),
        }
    }
}

fn status_of(line: &str) -> Result<u16, Error> {
    let rest = line.strip_prefix("HTTP/1.").and_then(|rest| rest.split_once(' '));
    let code = rest.and_then(|(_, rest)| rest.get(..3)).and_then(|code| code.parse().ok());
    code.filter(|code| (100..600).contains(code)).ok_or(Error::Malformed { what: "status line" })
}

fn head(status: u16, fields: &[String]) -> Result<Head, Error> {
    let mut head = Head {
        status,
        framing: Framing::UntilClose,
        location: String::new(),
        validator: String::new(),
        range: None,
    };
    let mut chunked = false;
    let mut length = None;
    for field in fields {
        let (name, value) =
            field.split_once(':').ok_or(Error::Malformed { what: "header field" })?;
        let value = value.trim();
        match name.to_ascii_lowercase().as_str() {
            "content-length" => {
                let digits = !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit());
                let parsed = value.parse::<u64>().ok().filter(|_| digits);
                let parsed = parsed.ok_or(Error::Malformed { what: "Content-Length" })?;
                if length.is_some_and(|length| length != parsed) {
                    return Err(Error::Malformed { what: "two values of Content-Length" });
                }
                length = Some(parsed);
            }
            "transfer-encoding" if value.eq_ignore_ascii_case("chunked") => chunked = true,
            "transfer-encoding" => return Err(Error::Malformed { what: "Transfer-Encoding" }),
            "location" => value.clone_into(&mut head.location),
            "etag" if value.starts_with('"') => value.clone_into(&mut head.validator),
            "content-range" => head.range = content_range(value),
            _ => {}
        }
    }
    head.framing = match length {
        _ if chunked => Framing::Chunks(None),
        Some(length) => Framing::Length(length),
        None => Framing::UntilClose,
    };
    Ok(head)
}

/// `bytes <first>-<last>/<size>`: first and size, if the range reaches to the end.
fn content_range(value: &str) -> Option<(u64, u64)> {
    let (range, size) = value.strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let (first, last, size) = (first.parse().ok()?, last.parse::<u64>().ok()?, size.parse().ok()?);
    (first <= last && last.checked_add(1) == Some(size)).then_some((first, size))
}

#[cfg(any(test, fuzzing))]
pub mod fuzzing;

#[cfg(test)]
pub(super) mod tests;

#[cfg(test)]
#[cfg(feature = "https")]
mod tls_tests;
