//! Where the bytes of a package come from: a file, or an HTTP server.
//!
//! Fetch thread. In: the URL of the request. Out: a `Source` that is read once, front to back,
//! straight into the unpacker. Nothing is kept on disk. Not here: size and hashes (`digest.rs`),
//! HTTP itself (`http.rs`).

use std::fs::OpenOptions;
use std::io::{self, Read};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::image::http;
use crate::image::listing::regular;

/// Time limits of a download.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TimeLimits {
    /// One attempt to connect to one address.
    pub connect: Duration,
    /// Longest time without a byte, and longest time until an answer is complete.
    pub stall: Duration,
    /// Whole download: this much,
    pub base: Duration,
    /// and this many bytes must come per second on top of it.
    pub min_bytes_per_s: u64,
}

impl Default for TimeLimits {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(10),
            stall: Duration::from_secs(30),
            base: Duration::from_secs(600),
            min_bytes_per_s: 32 << 10,
        }
    }
}

/// Why a source cannot be opened or read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the URL is malformed: {reason}")]
    Url { reason: &'static str },
    #[error("URLs with {scheme:?} are not supported")]
    Scheme { scheme: String },
    #[error("https is not built in")]
    HttpsNotBuiltIn,
    #[error("cannot open {path}")]
    Open {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot read")]
    Read {
        #[source]
        source: io::Error,
    },
    #[error("download failed")]
    Http {
        #[source]
        source: http::Error,
    },
}

impl Error {
    pub(super) fn is_transient(&self) -> bool {
        match self {
            Self::Http { source } => source.is_transient(),
            // A file that the CM is about to put there, or a network file system.
            Self::Open { .. } | Self::Read { .. } => true,
            Self::Url { .. } | Self::Scheme { .. } | Self::HttpsNotBuiltIn => false,
        }
    }
}

/// The bytes of a package.
pub(super) struct Source {
    stream: Stream,
    /// Size of the whole, where it is known before reading.
    length: Option<u64>,
}

enum Stream {
    Plain(Box<dyn Read>),
    Http(Box<http::Body>),
}

impl Source {
    /// Opens a URL of which `size_bytes` bytes are expected.
    /// `ca_cert` names additional roots for https.
    pub(super) fn open(
        url: &str,
        size_bytes: u64,
        limits: &TimeLimits,
        ca_cert: &Path,
    ) -> Result<Self, Error> {
        let (scheme, rest) = url.split_once(':').ok_or(Error::Url { reason: "no scheme" })?;
        match scheme.to_ascii_lowercase().as_str() {
            "file" => Self::open_file(rest),
            "https" if !cfg!(feature = "https") => Err(Error::HttpsNotBuiltIn),
            "http" | "https" => {
                let body = http::get(url, size_bytes, limits, ca_cert);
                let body = body.map_err(|source| Error::Http { source })?;
                let length = body.length();
                Ok(Self { stream: Stream::Http(Box::new(body)), length })
            }
            other => Err(Error::Scheme { scheme: other.chars().take(20).collect() }),
        }
    }

    /// `file:/p`, `file:///p` and `file://host/p`, whose host is ignored.
    fn open_file(rest: &str) -> Result<Self, Error> {
        let path = file_path(rest)?;
        // A pipe or device must not block, and a link may be swapped between check and use.
        let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_CLOEXEC;
        let opened = OpenOptions::new().read(true).custom_flags(flags).open(&path);
        let opened = opened.and_then(regular).and_then(|file| Ok((file.metadata()?.len(), file)));
        let (length, file) = opened.map_err(|source| Error::Open { path, source })?;
        Ok(Self { stream: Stream::Plain(Box::new(file)), length: Some(length) })
    }

    #[cfg(test)]
    pub(super) fn from_reader(reader: impl Read + 'static) -> Self {
        Self { stream: Stream::Plain(Box::new(reader)), length: None }
    }

    pub(super) fn length(&self) -> Option<u64> {
        self.length
    }

    pub(super) fn read(&mut self, buffer: &mut [u8]) -> Result<usize, Error> {
        match &mut self.stream {
            Stream::Http(body) => body.read(buffer).map_err(|source| Error::Http { source }),
            Stream::Plain(reader) => loop {
                match reader.read(buffer) {
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    other => return other.map_err(|source| Error::Read { source }),
                }
            },
        }
    }
}

fn file_path(rest: &str) -> Result<PathBuf, Error> {
    let path = match rest.strip_prefix("//") {
        Some(after) => &after[after.find('/').ok_or(Error::Url { reason: "no path" })?..],
        None => rest,
    };
    let path = path.split(['?', '#']).next().unwrap_or_default();
    if !path.starts_with('/') {
        return Err(Error::Url { reason: "the path is not absolute" });
    }
    let bytes = percent_decode(path)?;
    if bytes.contains(&0) {
        return Err(Error::Url { reason: "the path holds a NUL byte" });
    }
    Ok(PathBuf::from(std::ffi::OsString::from_vec(bytes)))
}

fn percent_decode(text: &str) -> Result<Vec<u8>, Error> {
    let mut decoded = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        rest = after;
        if *first != b'%' {
            decoded.push(*first);
            continue;
        }
        let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|d| u8::try_from(d).ok());
        let byte = match after {
            [high, low, ..] => digit(*high).zip(digit(*low)).map(|(high, low)| high << 4 | low),
            _ => None,
        };
        decoded.push(byte.ok_or(Error::Url { reason: "bad percent escape" })?);
        rest = &after[2..];
    }
    Ok(decoded)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_urls() {
        let check = |url: &str, expect: Option<&[u8]>| {
            let path = file_path(url.strip_prefix("file:").unwrap()).ok();
            let bytes = path.map(|path| path.into_os_string().into_vec());
            assert_eq!(bytes.as_deref(), expect, "{url}");
        };
        check("file:/p/a", Some(b"/p/a"));
        check("file:///p/a", Some(b"/p/a"));
        check("file://host/p/a", Some(b"/p/a"));
        check("file:///p/a%20b%2Fc%ff", Some(b"/p/a b/c\xff"));
        check("file:///p/a=_-b", Some(b"/p/a=_-b"));
        check("file:///p?query", Some(b"/p"));
        check("file:///p#fragment", Some(b"/p"));
        for url in ["file:p", "file:", "file://host", "file:///p%", "file:///p%2", "file:///p%zz"] {
            check(url, None);
        }
        check("file:///p%00", None);
    }

    #[test]
    fn what_is_opened() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a b");
        crate::sys::fs::write_plain(&file, b"content", 0o600).unwrap();
        std::os::unix::fs::symlink(&file, dir.path().join("link")).unwrap();
        let fifo = dir.path().join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRUSR).unwrap();
        let open = |url: String| Source::open(&url, 7, &TimeLimits::default(), Path::new(""));
        let url = |name: &str| format!("file://{}/{name}", dir.path().display());
        let mut source = open(url("a%20b")).ok().unwrap();
        assert_eq!(source.length(), Some(7));
        let mut buffer = [0; 20];
        assert_eq!(source.read(&mut buffer).unwrap(), 7);
        for name in ["link", "fifo", "", "missing"] {
            let error = open(url(name)).err().unwrap();
            assert!(error.is_transient() && matches!(error, Error::Open { .. }), "{name}");
        }
        let check = |url: &str, expect: &str| {
            let error = open(url.to_owned()).err().unwrap();
            assert_eq!((error.to_string().as_str(), error.is_transient()), (expect, false));
        };
        check("ftp://h/p", "URLs with \"ftp\" are not supported");
        check("", "the URL is malformed: no scheme");
        check("/path", "the URL is malformed: no scheme");
    }
}
