//! A small HTTP/1.1 file server for packages: GET and HEAD, one byte range, bounded connections.
//!
//! Faults can be set per file, so that tests see how a client copes with a slow, broken or lying
//! server.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Component, Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// Connections that are served at the same time; more of them wait.
const WORKERS: usize = 8;
/// Accepted connections that may wait for a worker; more of them are closed.
const BACKLOG: usize = 64;
/// Longest request head in bytes.
const MAX_HEAD: u64 = 16 * 1024;
/// Longest silence of a client.
const CLIENT_TIMEOUT: Duration = Duration::from_secs(30);

/// How a file is delivered badly.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// The connection breaks after this many bytes of the body; each request goes so far.
    Break { after_bytes: u64 },
    /// This status instead of the file.
    Status(u16),
    /// Bytes per second, at least 1.
    Slow { bytes_per_second: u32 },
    /// Head only, then silence until the client gives up.
    Hang,
}

/// One answered request.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Served {
    pub method: String,
    pub path: String,
    pub status: u16,
    /// Bytes of the body that were sent.
    pub sent_bytes: u64,
}

/// A running server; dropping it stops it.
#[derive(Debug)]
pub struct FileServer {
    address: SocketAddr,
    shared: Arc<Shared>,
    acceptor: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    root: PathBuf,
    stop: AtomicBool,
    faults: Mutex<HashMap<String, Fault>>,
    on_served: OnServed,
}

/// Told about every answered request, on the worker's thread.
struct OnServed(Box<dyn Fn(Served) + Send + Sync>);

impl std::fmt::Debug for OnServed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("OnServed")
    }
}

impl FileServer {
    /// Serves the files below `root` at `address` (port 0: the kernel chooses). `on_served` is told
    /// about every answered request.
    pub fn start(
        root: &Path,
        address: &str,
        on_served: impl Fn(Served) + Send + Sync + 'static,
    ) -> io::Result<Self> {
        let listener = TcpListener::bind(address)?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            root: root.canonicalize()?,
            stop: AtomicBool::new(false),
            faults: Mutex::default(),
            on_served: OnServed(Box::new(on_served)),
        });
        let (queue, connections) = mpsc::sync_channel::<TcpStream>(BACKLOG);
        let connections = Arc::new(Mutex::new(connections));
        for n in 0..WORKERS {
            let (connections, shared) = (connections.clone(), shared.clone());
            thread::Builder::new().name(format!("sim-http-{n}")).spawn(move || {
                loop {
                    let next = lock(&connections).recv();
                    let Ok(stream) = next else { return };
                    let _ = serve(&shared, &stream); // the client sees what went wrong
                }
            })?;
        }
        let acceptor = {
            let shared = shared.clone();
            thread::Builder::new().name("sim-http".to_owned()).spawn(move || {
                for stream in listener.incoming() {
                    if shared.stop.load(Ordering::SeqCst) {
                        return;
                    }
                    if let Ok(stream) = stream {
                        let _ = queue.try_send(stream); // full: dropped = closed
                    }
                }
            })?
        };
        Ok(Self { address, shared, acceptor: Some(acceptor) })
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// URL of a file below the root, reached through `host`.
    pub fn url(&self, host: &str, file: &Path) -> Option<String> {
        let relative = file.strip_prefix(&self.shared.root).ok()?;
        let path: Vec<_> =
            relative.components().map(|c| escape(&c.as_os_str().to_string_lossy())).collect();
        Some(format!("http://{host}:{}/{}", self.address.port(), path.join("/")))
    }

    /// Sets or clears the fault of a path (`/name`).
    pub fn set_fault(&self, path: &str, fault: Option<Fault>) {
        let mut faults = lock(&self.shared.faults);
        match fault {
            Some(fault) => faults.insert(path.to_owned(), fault),
            None => faults.remove(path),
        };
    }
}

impl Drop for FileServer {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        // Wakes the acceptor; its end closes the queue and with it the workers.
        let _ = TcpStream::connect(self.address);
        if let Some(acceptor) = self.acceptor.take() {
            let _ = acceptor.join();
        }
    }
}

/// What a client asks for.
#[derive(Default)]
struct Request {
    method: String,
    path: String,
    /// First and last byte as the header has them.
    range: Option<(u64, Option<u64>)>,
}

fn serve(shared: &Shared, stream: &TcpStream) -> io::Result<()> {
    stream.set_read_timeout(Some(CLIENT_TIMEOUT))?;
    stream.set_write_timeout(Some(CLIENT_TIMEOUT))?;
    let request = read_request(stream)?;
    let fault = lock(&shared.faults).get(&request.path).copied();
    let (status, sent_bytes) = answer(shared, stream, &request, fault)?;
    let Request { method, path, .. } = request;
    (shared.on_served.0)(Served { method, path, status, sent_bytes });
    Ok(())
}

fn answer(
    shared: &Shared,
    stream: &TcpStream,
    request: &Request,
    fault: Option<Fault>,
) -> io::Result<(u16, u64)> {
    if let Some(Fault::Status(status)) = fault {
        return refuse(stream, status);
    }
    if request.method != "GET" && request.method != "HEAD" {
        return refuse(stream, 405);
    }
    let Some(mut file) = open(&shared.root, &request.path) else {
        return refuse(stream, 404);
    };
    let size = file.metadata()?.len();
    let (status, first, end) = match request.range {
        None => (200, 0, size),
        Some((first, _)) if first >= size => return refuse(stream, 416),
        Some((first, last)) => (206, first, last.map_or(size, |l| size.min(l.saturating_add(1)))),
    };
    let length = end.saturating_sub(first);
    let mut head = format!(
        "HTTP/1.1 {status} {}\r\nContent-Length: {length}\r\nAccept-Ranges: bytes\r\n\
         Content-Type: application/octet-stream\r\nConnection: close\r\n",
        reason(status)
    );
    if status == 206 {
        head += &format!("Content-Range: bytes {first}-{}/{size}\r\n", end.saturating_sub(1));
    }
    let mut out = stream;
    out.write_all(format!("{head}\r\n").as_bytes())?;
    if request.method == "HEAD" {
        return Ok((status, 0));
    }
    file.seek(SeekFrom::Start(first))?;
    Ok((status, send_body(shared, stream, &mut file.take(length), fault)?))
}

fn send_body(
    shared: &Shared,
    stream: &TcpStream,
    body: &mut impl Read,
    fault: Option<Fault>,
) -> io::Result<u64> {
    let mut out = stream;
    match fault {
        Some(Fault::Break { after_bytes }) => io::copy(&mut body.take(after_bytes), &mut out),
        Some(Fault::Hang) => {
            let mut byte = [0];
            let mut input = stream;
            while !shared.stop.load(Ordering::SeqCst) {
                match input.read(&mut byte) {
                    Ok(0) => break,
                    Ok(_) => {}
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                    Err(e) => return Err(e),
                }
            }
            Ok(0)
        }
        Some(Fault::Slow { bytes_per_second }) => {
            // Ten steps a second.
            let step = u64::from((bytes_per_second / 10).max(1));
            let mut sent = 0;
            loop {
                let n = io::copy(&mut body.take(step), &mut out)?;
                if n == 0 || shared.stop.load(Ordering::SeqCst) {
                    return Ok(sent);
                }
                sent += n;
                thread::sleep(Duration::from_millis(100));
            }
        }
        _ => io::copy(body, &mut out),
    }
}

fn refuse(mut stream: &TcpStream, status: u16) -> io::Result<(u16, u64)> {
    let head = format!(
        "HTTP/1.1 {status} {}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
        reason(status)
    );
    stream.write_all(head.as_bytes())?;
    Ok((status, 0))
}

fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        206 => "Partial Content",
        404 => "Not Found",
        405 => "Method Not Allowed",
        416 => "Range Not Satisfiable",
        503 => "Service Unavailable",
        _ => "Status",
    }
}

fn read_request(stream: &TcpStream) -> io::Result<Request> {
    let bad = |text: &str| io::Error::new(io::ErrorKind::InvalidData, text.to_owned());
    let mut lines = BufReader::new(stream.take(MAX_HEAD)).lines();
    let first = lines.next().ok_or_else(|| bad("empty request"))??;
    let mut words = first.split_ascii_whitespace();
    let (Some(method), Some(path)) = (words.next(), words.next()) else {
        return Err(bad("malformed request line"));
    };
    let path = path.split(['?', '#']).next().unwrap_or_default();
    let mut request = Request { method: method.to_owned(), path: unescape(path), range: None };
    for line in lines {
        let line = line?;
        if line.is_empty() {
            return Ok(request);
        }
        if let Some((name, value)) = line.split_once(':')
            && name.eq_ignore_ascii_case("range")
        {
            request.range = parse_range(value.trim());
        }
    }
    Err(bad("request head is too long or cut off"))
}

/// `bytes=first-[last]`; everything else is answered with the whole file.
fn parse_range(value: &str) -> Option<(u64, Option<u64>)> {
    let (first, last) = value.strip_prefix("bytes=")?.split_once('-')?;
    let last = if last.is_empty() { None } else { Some(last.parse().ok()?) };
    Some((first.parse().ok()?, last))
}

/// Opens a regular file below the root; a path that leads out of it does not exist.
fn open(root: &Path, path: &str) -> Option<File> {
    let relative = Path::new(path.trim_start_matches('/'));
    if !relative.components().all(|c| matches!(c, Component::Normal(_))) {
        return None;
    }
    let file = root.join(relative).canonicalize().ok()?;
    (file.starts_with(root) && file.is_file()).then(|| File::open(file).ok())?
}

fn escape(segment: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-._~".contains(&b);
    segment
        .bytes()
        .map(|b| if plain(b) { char::from(b).to_string() } else { format!("%{b:02X}") })
        .collect()
}

fn unescape(path: &str) -> String {
    let mut bytes = Vec::with_capacity(path.len());
    let mut rest = path.as_bytes();
    while let [first, tail @ ..] = rest {
        let code = tail.get(..2).and_then(|h| std::str::from_utf8(h).ok());
        match code.and_then(|h| u8::from_str_radix(h, 16).ok()) {
            Some(byte) if *first == b'%' => {
                bytes.push(byte);
                rest = &tail[2..];
            }
            _ => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn get(server: &FileServer, request: &str) -> (String, Vec<u8>) {
        let mut stream = TcpStream::connect(server.address()).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        let end = answer.windows(4).position(|w| w == b"\r\n\r\n").unwrap() + 4;
        (String::from_utf8(answer[..end].to_vec()).unwrap(), answer[end..].to_vec())
    }

    fn check(server: &FileServer, request: &str, status: u16, body: &[u8]) {
        let (head, got) = get(server, &format!("{request}\r\n\r\n"));
        assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{request}: {head}");
        assert_eq!(got, body, "{request}");
    }

    #[test]
    fn requests() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("sub")).unwrap();
        fs::write(dir.path().join("sub/a b"), "0123456789").unwrap();
        let server = FileServer::start(dir.path(), "127.0.0.1:0", |_| {}).unwrap();
        let name = "/sub/a%20b";
        let file = dir.path().canonicalize().unwrap().join("sub/a b");
        let url = format!("http://localhost:{}{name}", server.address().port());
        assert_eq!(server.url("localhost", &file), Some(url));
        assert_eq!(server.url("localhost", Path::new("/etc/passwd")), None);

        check(&server, &format!("GET {name} HTTP/1.1"), 200, b"0123456789");
        check(&server, &format!("GET {name}?x HTTP/1.1"), 200, b"0123456789");
        check(&server, &format!("HEAD {name} HTTP/1.1"), 200, b"");
        let range = |r: &str| format!("GET {name} HTTP/1.1\r\nRange: bytes={r}");
        check(&server, &range("4-"), 206, b"456789");
        check(&server, &range("4-5"), 206, b"45");
        check(&server, &range("8-99"), 206, b"89");
        check(&server, &range("10-"), 416, b"");
        check(&server, &range("x"), 200, b"0123456789");
        check(&server, "GET /none HTTP/1.1", 404, b"");
        check(&server, "GET /sub HTTP/1.1", 404, b"");
        check(&server, "GET /../etc/passwd HTTP/1.1", 404, b"");
        check(&server, "GET /sub/%2e%2e/%2e%2e/etc/passwd HTTP/1.1", 404, b"");
        check(&server, "PUT /sub HTTP/1.1", 405, b"");
    }

    #[test]
    fn faults() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("f"), "0123456789").unwrap();
        let (sender, served) = mpsc::channel();
        let tell = move |served| drop(sender.send(served));
        let server = FileServer::start(dir.path(), "127.0.0.1:0", tell).unwrap();
        let get = "GET /f HTTP/1.1";
        server.set_fault("/f", Some(Fault::Break { after_bytes: 3 }));
        check(&server, get, 200, b"012");
        server.set_fault("/f", Some(Fault::Status(503)));
        check(&server, get, 503, b"");
        server.set_fault("/f", Some(Fault::Slow { bytes_per_second: 50 }));
        check(&server, get, 200, b"0123456789");
        server.set_fault("/f", Some(Fault::Hang));
        let mut stream = TcpStream::connect(server.address()).unwrap();
        stream.write_all(b"GET /f HTTP/1.1\r\n\r\n").unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut head = Vec::new();
        stream.read_to_end(&mut head).unwrap();
        assert!(head.starts_with(b"HTTP/1.1 200 "));
        server.set_fault("/f", None);
        check(&server, get, 200, b"0123456789");
        let sent: Vec<_> = served.try_iter().map(|s| (s.status, s.sent_bytes)).collect();
        assert_eq!(sent[..3], [(200, 3), (503, 0), (200, 10)]);
    }

    #[test]
    fn a_dropped_server_closes_its_port() {
        let dir = tempfile::tempdir().unwrap();
        let server = FileServer::start(dir.path(), "127.0.0.1:0", |_| {}).unwrap();
        let address = server.address();
        drop(server);
        assert!(TcpListener::bind(address).is_ok());
    }
}
