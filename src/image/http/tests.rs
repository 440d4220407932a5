use std::net::TcpListener;
use std::thread::JoinHandle;

use super::*;
use crate::sys::thread::spawn;

/// What the server does with one connection after it read the request.
pub(crate) enum Reply {
    /// Sends this and closes.
    Send(Vec<u8>),
    /// Sends this and waits until the client gives up.
    Hold(Vec<u8>),
    /// Sends this again and again until the client gives up.
    Endless(Vec<u8>),
}

/// Serves one reply per connection, in order, and returns the requests.
pub(crate) struct Server {
    pub(crate) port: u16,
    thread: JoinHandle<Vec<String>>,
}

impl Server {
    pub(crate) fn start(replies: impl FnOnce(u16) -> Vec<Reply>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let replies = replies(port);
        let serve = move || replies.into_iter().map(|reply| one(&listener, &reply)).collect();
        Self { port, thread: spawn("http-test", serve).unwrap() }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://127.0.0.1:{}/package", self.port)
    }

    /// The requests, when all replies were sent.
    pub(crate) fn requests(self) -> Vec<String> {
        self.thread.join().unwrap()
    }
}

fn one(listener: &TcpListener, reply: &Reply) -> String {
    let (mut stream, _) = listener.accept().unwrap();
    let mut request = Vec::new();
    let mut byte = [0];
    while !request.ends_with(b"\r\n\r\n") && stream.read(&mut byte).unwrap() == 1 {
        request.push(byte[0]);
    }
    // The client may be gone before everything is sent.
    match reply {
        Reply::Send(bytes) => drop(stream.write_all(bytes)),
        Reply::Hold(bytes) => {
            let _ = stream.write_all(bytes);
            let _ = stream.read(&mut byte);
        }
        Reply::Endless(bytes) => while stream.write_all(bytes).is_ok() {},
    }
    String::from_utf8(request).unwrap()
}

pub(crate) fn ok(fields: &str, body: &[u8]) -> Vec<u8> {
    [format!("HTTP/1.1 200 OK\r\n{fields}\r\n").as_bytes(), body].concat()
}

pub(crate) fn sized(body: &[u8]) -> Vec<u8> {
    ok(&format!("Content-Length: {}\r\nETag: \"v1\"\r\n", body.len()), body)
}

/// Limits that a test reaches quickly, but not by accident where data flows.
pub(crate) fn limits() -> TimeLimits {
    TimeLimits {
        connect: Duration::from_secs(5),
        stall: Duration::from_secs(2),
        base: Duration::from_secs(20),
        min_bytes_per_s: 1 << 20,
        progress: Duration::ZERO,
    }
}

/// A request for all of a file.
fn whole<'a>(url: &'a str, size_bytes: u64, limits: &'a TimeLimits) -> Get<'a> {
    Get { url, size_bytes, offset: 0, limits, ca_cert: Path::new(""), halt: &|| false }
}

/// All content, or the error.
fn fetch(url: &str, size: u64, limits: &TimeLimits) -> Result<Vec<u8>, Error> {
    let mut body = get(&whole(url, size, limits))?;
    let mut content = Vec::new();
    // An odd size, so that no boundary falls together with one of the server.
    let mut buffer = [0; 7];
    loop {
        match body.read(&mut buffer)? {
            0 => return Ok(content),
            read => content.extend_from_slice(&buffer[..read]),
        }
    }
}

/// What `0123456789` becomes when the server answers so.
fn answer(replies: Vec<Reply>) -> (Result<String, String>, Vec<String>) {
    let server = Server::start(|_| replies);
    let result = fetch(&server.url(), 10, &limits());
    let result = result.map(|content| String::from_utf8(content).unwrap());
    (result.map_err(|error| crate::model::status::chain(&error)), server.requests())
}

fn one_answer(reply: &[u8]) -> Result<String, String> {
    answer(vec![Reply::Send(reply.to_vec())]).0
}

#[test]
fn framings() {
    let check = |reply: &[u8]| assert_eq!(one_answer(reply).as_deref(), Ok("0123456789"));
    check(&sized(b"0123456789"));
    check(&sized(b"0123456789 and more than was announced"[..10].as_ref()));
    check(&ok("content-LENGTH:10\n", b"0123456789"));
    check(&ok("", b"0123456789"));
    check(&ok(
        "Transfer-Encoding: chunked\r\nContent-Length: 3\r\n",
        b"4;name=value\r\n0123\r\n006\r\n456789\r\n0\r\nTrailer: x\r\n\r\n",
    ));
    check(&[b"HTTP/1.1 100 Continue\r\nX: y\r\n\r\n", &sized(b"0123456789")[..]].concat());
    check(b"HTTP/1.0 200\r\n\r\n0123456789");
}

#[test]
fn the_request() {
    let (_, requests) = answer(vec![Reply::Send(sized(b"0123456789"))]);
    let lines: Vec<&str> = requests[0].lines().collect();
    assert_eq!(lines[0], "GET /package HTTP/1.1");
    assert!(lines[1].starts_with("Host: 127.0.0.1:"));
    assert!(lines.contains(&"Accept-Encoding: identity"));
    assert!(lines.contains(&"Connection: close"));
    assert!(!requests[0].contains("Range"));
}

#[test]
fn malformed_answers() {
    let check = |reply: &[u8], expect: &str| {
        let expect = format!("malformed answer: {expect}");
        assert_eq!(one_answer(reply), Err(expect), "{}", reply.escape_ascii());
    };
    check(b"SSH-2.0-x\r\n\r\n", "status line");
    check(b"HTTP/1.1 abc\r\n\r\n", "status line");
    check(b"HTTP/1.1 999 x\r\n\r\n", "status line");
    check(b"HTTP/2 200\r\n\r\n", "status line");
    check(b"HTTP/1.1 200 \xff\r\n\r\n", "not text");
    check(&ok("no colon\r\n", b""), "header field");
    check(&ok("Content-Length: 1\r\nContent-Length: 2\r\n", b""), "two values of Content-Length");
    check(&ok("Content-Length: +5\r\n", b""), "Content-Length");
    check(&ok("Content-Length: 99999999999999999999\r\n", b""), "Content-Length");
    check(&ok("Transfer-Encoding: gzip, chunked\r\n", b""), "Transfer-Encoding");
    let chunked = |body: &[u8]| ok("Transfer-Encoding: chunked\r\n", body);
    check(&chunked(b"x\r\n"), "chunk size");
    check(&chunked(b"-1\r\n"), "chunk size");
    check(&chunked(b"\r\n"), "chunk size");
    check(&chunked(b"fffffffffffffffff\r\n"), "chunk size");
    check(&chunked(b"1\r\n0!\r\n"), "chunk");
    check(&chunked(&[b'0'; MAX_LINE_BYTES + 1]), "too long");
    check(&b"HTTP/1.1 100 x\r\n\r\n".repeat(8), "too many interim answers");
    let long =
        |bytes: usize| ok(&format!("X: {}\r\nContent-Length: 10\r\n", "y".repeat(bytes)), b"");
    check(&long(MAX_HEAD_BYTES), "too long");
    let lines = format!("X: {}\r\n", "y".repeat(1000)).repeat(17);
    check(&ok(&lines, b""), "too long");
    assert!(one_answer(&[long(MAX_HEAD_BYTES - 1000), b"0123456789".to_vec()].concat()).is_ok());
}

#[test]
fn statuses() {
    let check = |status: &str, transient: bool| {
        let reply = format!("HTTP/1.1 {status} x\r\nContent-Length: 0\r\n\r\n");
        let server = Server::start(|_| vec![Reply::Send(reply.into_bytes())]);
        let error = fetch(&server.url(), 10, &limits()).unwrap_err();
        assert_eq!(error.to_string(), format!("the server answered {status}"));
        assert_eq!(error.is_transient(), transient);
        server.requests();
    };
    for status in ["204", "206", "304", "400", "401", "403", "404", "410"] {
        check(status, false);
    }
    for status in ["408", "429", "500", "502", "503", "504"] {
        check(status, true);
    }
}

#[test]
fn redirects() {
    let redirect = |location: &str| {
        Reply::Send(format!("HTTP/1.1 302 Found\r\nLocation: {location}\r\n\r\n").into_bytes())
    };
    let content = || Reply::Send(sized(b"0123456789"));
    let path_of = |request: &String| request.split(' ').nth(1).unwrap().to_owned();

    let server = Server::start(|port| {
        let absolute = format!("http://127.0.0.1:{port}/abs?q");
        vec![redirect("/path"), redirect("other"), redirect(&absolute), content()]
    });
    assert_eq!(fetch(&server.url(), 10, &limits()).unwrap(), b"0123456789");
    let paths: Vec<_> = server.requests().iter().map(path_of).collect();
    assert_eq!(paths, ["/package", "/path", "/other", "/abs?q"]);

    let chain = |length: usize, last: Vec<Reply>| {
        let mut replies: Vec<_> = (0..length).map(|_| redirect("/again")).collect();
        replies.extend(last);
        answer(replies).0
    };
    assert!(chain(MAX_REDIRECTS, vec![content()]).is_ok());
    let expect = Err("more than 5 redirects".to_owned());
    assert_eq!(chain(MAX_REDIRECTS + 1, Vec::new()), expect);
    for target in ["ftp://h/p", "file:///etc/passwd", "http://u:p@h/", ""] {
        let (result, _) = answer(vec![redirect(target)]);
        assert_eq!(result, Err(format!("the server redirects to {target:?}")));
    }
}

#[test]
fn broken_downloads_are_resumed() {
    let first = || {
        let fields = "Content-Length: 10\r\nETag: \"v1\"\r\n";
        Reply::Send(ok(fields, b"0123"))
    };
    let part = |range: &str, body: &[u8]| {
        let head = format!(
            "HTTP/1.1 206 Partial\r\nContent-Range: bytes {range}\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        Reply::Send([head.as_bytes(), body].concat())
    };
    let check = |replies: Vec<Reply>, expect: Result<&str, &str>| {
        let (result, requests) = answer(replies);
        assert_eq!(result, expect.map(str::to_owned).map_err(str::to_owned));
        requests
    };
    let requests = check(vec![first(), part("4-9/10", b"456789")], Ok("0123456789"));
    assert!(requests[1].contains("\r\nRange: bytes=4-\r\n"), "{}", requests[1]);
    assert!(requests[1].contains("\r\nIf-Range: \"v1\"\r\n"));
    // The server knows no ranges, or the file is another one: from the start, past what is known.
    check(vec![first(), Reply::Send(sized(b"0123456789"))], Ok("0123456789"));
    let chunked = ok("Transfer-Encoding: chunked\r\n", b"5\r\n01234\r\n5\r\n56789\r\n0\r\n\r\n");
    check(vec![first(), Reply::Send(chunked)], Ok("0123456789"));
    let open = ok("", b"01234");
    check(vec![Reply::Send(open), part("5-9/10", b"56789")], Ok("0123456789"));
    // A chunk that ends too early.
    let torn = ok("Transfer-Encoding: chunked\r\n", b"a\r\n01");
    check(vec![Reply::Send(torn), part("2-9/10", b"23456789")], Ok("0123456789"));

    let other = Err("malformed answer: another range than asked for");
    check(vec![first(), part("3-9/10", b"3456789")], other);
    check(vec![first(), part("4-9/11", b"456789")], other);
    check(vec![first(), part("4-8/10", b"45678")], other);
    check(vec![first(), part("nonsense", b"45678")], other);
    let shorter = Reply::Send(sized(b"012"));
    check(vec![first(), shorter], Err("malformed answer: the file has become shorter"));
    let gone = Reply::Send(b"HTTP/1.1 404 x\r\n\r\n".to_vec());
    check(vec![first(), gone], Err("the server answered 404"));

    // Each time one byte more.
    let pieces = |count: usize| -> Vec<Reply> {
        let size = |at: usize| format!("{at}-9/10");
        let torn = |at: usize| {
            let head = format!(
                "HTTP/1.1 206 x\r\nContent-Range: bytes {}\r\nContent-Length: {}\r\n\r\n",
                size(at),
                10 - at
            );
            Reply::Send([head.as_bytes(), &b"0123456789"[at..=at]].concat())
        };
        std::iter::once(first()).chain((4..4 + count).map(torn)).collect()
    };
    let expect = "the connection ended after 8 of 10 bytes";
    check(pieces(MAX_RESUMES), Err(expect));
    let mut enough = pieces(MAX_RESUMES - 1);
    enough.push(part("7-9/10", b"789"));
    check(enough, Ok("0123456789"));
}

#[test]
fn time_limits() {
    let check = |reply: Reply, limits: TimeLimits, expect: &str| {
        let server = Server::start(|_| vec![reply]);
        let error = fetch(&server.url(), 1 << 40, &limits).unwrap_err();
        assert_eq!(error.to_string(), expect);
        assert!(error.is_transient());
        server.requests();
    };
    let short = TimeLimits { stall: Duration::from_millis(100), ..limits() };
    let stalled = "no data for 0.1 s";
    check(Reply::Hold(Vec::new()), short, stalled);
    check(Reply::Hold(b"HTTP/1.1 200 OK\r\nConte".to_vec()), short, stalled);
    check(Reply::Hold(ok("Content-Length: 1000\r\n", b"some")), short, stalled);
    check(Reply::Hold(ok("Transfer-Encoding: chunked\r\n", b"5\r\n01")), short, stalled);
    // Always a little, never enough.
    let total =
        TimeLimits { base: Duration::from_millis(100), min_bytes_per_s: u64::MAX, ..limits() };
    let endless = ok(&format!("Content-Length: {}\r\n", 1_u64 << 40), b"x");
    check(Reply::Endless(endless), total, "not finished after 0.1 s");
}

#[test]
fn unreachable_servers() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    drop(listener);
    let error = fetch(&format!("http://127.0.0.1:{port}/"), 1, &limits()).unwrap_err();
    assert_eq!(error.to_string(), format!("cannot connect to 127.0.0.1:{port}"));
    assert!(error.is_transient());
    let error = fetch("http://user@127.0.0.1/", 1, &limits()).unwrap_err();
    assert_eq!(error.to_string(), "the URL is malformed: credentials are not allowed");
    assert!(!error.is_transient());
}
