//! Where the bytes of a package come from: a file, or an HTTP server.
//!
//! Fetch thread. In: the URL of the request. Out: a `Source` that is read once, front to back,
//! straight into the unpacker; what comes over the network is kept beside until the package is
//! installed (`part.rs`). Not here: size and hashes (`digest.rs`), HTTP itself (`http.rs`).

use std::fs::OpenOptions;
use std::io::{self, Read};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::image::http;
use crate::image::listing::regular;
use crate::image::part::Part;
use crate::ports::Halt;

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
    /// Time between two lines in the log about a package that takes long.
    pub progress: Duration,
}

impl Default for TimeLimits {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(10),
            stall: Duration::from_secs(30),
            base: Duration::from_secs(600),
            min_bytes_per_s: 32 << 10,
            progress: Duration::from_secs(10),
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
    #[error("what was kept of the download is gone")]
    PartLost,
}

impl Error {
    pub(super) fn is_transient(&self) -> bool {
        match self {
            Self::Http { source } => source.is_transient(),
            // A file that the CM is about to put there, or a network file system.
            Self::Open { .. } | Self::Read { .. } | Self::PartLost => true,
            Self::Url { .. } | Self::Scheme { .. } | Self::HttpsNotBuiltIn => false,
        }
    }
}

/// What is opened, and how.
pub(super) struct Opening<'a> {
    pub(super) url: &'a str,
    pub(super) size_bytes: u64,
    pub(super) times: &'a TimeLimits,
    /// Additional roots for https.
    pub(super) ca_cert: &'a Path,
    /// Where what arrives is kept; `None` = nowhere.
    pub(super) part: Option<&'a Path>,
    /// Percent of the file system that a part leaves free.
    pub(super) reserve_percent: u64,
    pub(super) halt: Halt<'a>,
}

/// The bytes of a package.
pub(super) struct Source<'a> {
    stream: Stream<'a>,
    /// Size of the whole, where it is known before reading.
    length: Option<u64>,
}

enum Stream<'a> {
    Plain(Box<dyn Read + 'a>),
    Http(Box<Download<'a>>),
}

/// A file that an earlier attempt may have got the beginning of.
struct Download<'a> {
    /// `None` = all of it is there.
    body: Option<http::Body<'a>>,
    part: Option<Part<'a>>,
    /// So much of it comes from the part.
    kept: u64,
    read: u64,
}

impl<'a> Download<'a> {
    fn open(opening: &Opening<'a>) -> Result<Self, http::Error> {
        let open = |path| Part::open(path, opening.size_bytes, opening.reserve_percent);
        let mut part = opening.part.and_then(open);
        let mut kept = part.as_ref().map_or(0, Part::length);
        if kept > 0 && kept == opening.size_bytes {
            return Ok(Self { body: None, part, kept, read: 0 });
        }
        let body = http::get(&http::Get {
            url: opening.url,
            size_bytes: opening.size_bytes,
            offset: kept,
            limits: opening.times,
            ca_cert: opening.ca_cert,
            halt: opening.halt,
        })?;
        if body.received() == 0 && kept > 0 {
            kept = 0;
            part = part.and_then(|mut part| part.restart().then_some(part));
        }
        if kept > 0 {
            let size = opening.size_bytes;
            log::info!("taking up download url={} received={kept} size={size}", opening.url);
        }
        Ok(Self { body: Some(body), part, kept, read: 0 })
    }

    fn read(&mut self, buffer: &mut [u8]) -> Result<usize, Error> {
        if self.read < self.kept {
            let left = usize::try_from(self.kept - self.read).unwrap_or(usize::MAX);
            let limit = left.min(buffer.len());
            let part = self.part.as_ref().ok_or(Error::PartLost)?;
            let read = part.read_at(&mut buffer[..limit], self.read);
            let read = read.ok().filter(|read| *read > 0 || limit == 0).ok_or(Error::PartLost)?;
            self.read += read as u64;
            return Ok(read);
        }
        let Some(body) = &mut self.body else { return Ok(0) };
        let read = body.read(buffer).map_err(|source| Error::Http { source })?;
        if self.part.as_mut().is_some_and(|part| !part.append(&buffer[..read])) {
            self.part = None;
        }
        Ok(read)
    }
}

impl<'a> Source<'a> {
    pub(super) fn open(opening: &Opening<'a>) -> Result<Self, Error> {
        let url = opening.url;
        let (scheme, rest) = url.split_once(':').ok_or(Error::Url { reason: "no scheme" })?;
        match scheme.to_ascii_lowercase().as_str() {
            "file" => Self::open_file(rest),
            "https" if !cfg!(feature = "https") => Err(Error::HttpsNotBuiltIn),
            "http" | "https" => {
                let download = Download::open(opening);
                let download = download.map_err(|source| Error::Http { source })?;
                let length = match &download.body {
                    Some(body) => body.length(),
                    None => Some(download.kept),
                };
                Ok(Self { stream: Stream::Http(Box::new(download)), length })
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
    pub(super) fn from_reader(reader: impl Read + 'a) -> Self {
        Self { stream: Stream::Plain(Box::new(reader)), length: None }
    }

    pub(super) fn length(&self) -> Option<u64> {
        self.length
    }

    pub(super) fn read(&mut self, buffer: &mut [u8]) -> Result<usize, Error> {
        match &mut self.stream {
            Stream::Http(download) => download.read(buffer),
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

    fn open(url: &str) -> Result<Source<'_>, Error> {
        static TIMES: TimeLimits = TimeLimits {
            connect: Duration::ZERO,
            stall: Duration::ZERO,
            base: Duration::ZERO,
            min_bytes_per_s: 1,
            progress: Duration::ZERO,
        };
        Source::open(&Opening {
            url,
            size_bytes: 7,
            times: &TIMES,
            ca_cert: Path::new(""),
            part: None,
            reserve_percent: 0,
            halt: &|| false,
        })
    }

    #[test]
    fn what_is_opened() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a b");
        crate::sys::fs::write_plain(&file, b"content", 0o600).unwrap();
        std::os::unix::fs::symlink(&file, dir.path().join("link")).unwrap();
        let fifo = dir.path().join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRUSR).unwrap();
        let url = |name: &str| format!("file://{}/{name}", dir.path().display());
        let good = url("a%20b");
        let mut source = open(&good).ok().unwrap();
        assert_eq!(source.length(), Some(7));
        let mut buffer = [0; 20];
        assert_eq!(source.read(&mut buffer).unwrap(), 7);
        for name in ["link", "fifo", "", "missing"] {
            let url = url(name);
            let error = open(&url).err().unwrap();
            assert!(error.is_transient() && matches!(error, Error::Open { .. }), "{name}");
        }
        let check = |url: &str, expect: &str| {
            let error = open(url).err().unwrap();
            assert_eq!((error.to_string().as_str(), error.is_transient()), (expect, false));
        };
        check("ftp://h/p", "URLs with \"ftp\" are not supported");
        check("", "the URL is malformed: no scheme");
        check("/path", "the URL is malformed: no scheme");
    }
}
