//! Downloads over TLS from a server with a certificate of its own.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;

use openssl::pkey::PKey;
use openssl::ssl::{SslAcceptor, SslMethod};
use openssl::x509::X509;

use super::*;
use crate::model::status::chain;

const CONTENT: &[u8] = b"content of the package";

/// Serves one connection for `host`; its address, its root and the end of its thread.
fn serve(dir: &Path, host: &str) -> (String, PathBuf, JoinHandle<bool>) {
    let made = rcgen::generate_simple_self_signed([host.to_owned()]).unwrap();
    let root = dir.join("root.pem");
    crate::sys::fs::write_plain(&root, made.cert.pem().as_bytes(), 0o600).unwrap();
    let mut builder = SslAcceptor::mozilla_intermediate_v5(SslMethod::tls_server()).unwrap();
    let key = PKey::private_key_from_pem(made.signing_key.serialize_pem().as_bytes()).unwrap();
    builder.set_private_key(&key).unwrap();
    builder.set_certificate(&X509::from_pem(made.cert.pem().as_bytes()).unwrap()).unwrap();
    let acceptor = builder.build();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let thread = crate::sys::thread::spawn("tls-server", move || {
        let (socket, _) = listener.accept().unwrap();
        let Ok(mut stream) = acceptor.accept(socket) else { return false };
        let mut request = [0; 4096];
        let length = stream.read(&mut request).unwrap();
        assert!(request[..length].starts_with(b"GET /package HTTP/1.1\r\n"));
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", CONTENT.len());
        stream.write_all(head.as_bytes()).unwrap();
        stream.write_all(CONTENT).unwrap();
        let _ = stream.shutdown();
        true
    });
    (address, root, thread.unwrap())
}

fn fetch(url: &str, ca_cert: &Path, limits: &TimeLimits) -> Result<Vec<u8>, String> {
    let text = |error: Error| chain(&error);
    let size_bytes = CONTENT.len() as u64;
    let halt = &|| false;
    let mut body = get(&Get { url, size_bytes, offset: 0, limits, ca_cert, halt }).map_err(text)?;
    let (mut content, mut buffer) = (Vec::new(), [0; 10]);
    loop {
        match body.read(&mut buffer).map_err(text)? {
            0 => return Ok(content),
            read => content.extend(&buffer[..read]),
        }
    }
}

#[test]
fn trusted_servers_only() {
    let dir = tempfile::tempdir().unwrap();
    let limits = TimeLimits::default();
    let (address, root, server) = serve(dir.path(), "127.0.0.1");
    let url = format!("https://{address}/package");
    assert_eq!(fetch(&url, &root, &limits).unwrap(), CONTENT);
    assert!(server.join().unwrap());

    // Nobody vouches for it.
    let (address, _, server) = serve(dir.path(), "127.0.0.1");
    let error = fetch(&format!("https://{address}/package"), Path::new(""), &limits).unwrap_err();
    assert!(error.contains("certificate refused: "), "{error}");
    assert!(error.starts_with(&format!("cannot make a secure connection to {address}")), "{error}");
    assert!(!server.join().unwrap());

    // It is somebody else.
    let (address, root, server) = serve(dir.path(), "other.example");
    let error = fetch(&format!("https://{address}/package"), &root, &limits).unwrap_err();
    assert!(error.contains("certificate refused: IP address mismatch"), "{error}");
    assert!(!server.join().unwrap());
}

#[test]
fn a_handshake_ends_in_time() {
    let limits =
        TimeLimits { stall: std::time::Duration::from_millis(200), ..TimeLimits::default() };
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("https://{}/package", listener.local_addr().unwrap());
    let begun = crate::sys::time::monotonic();
    // Silence.
    let error = fetch(&url, Path::new(""), &limits).unwrap_err();
    assert!(error.contains("timed out"), "{error}");
    // No TLS at all.
    let server = crate::sys::thread::spawn("plain-server", move || {
        let mut sockets: Vec<TcpStream> = Vec::new();
        for _ in 0..2 {
            let (mut socket, _) = listener.accept().unwrap();
            let _ = socket.write_all(b"HTTP/1.1 200 OK\r\n\r\n");
            sockets.push(socket);
        }
    });
    let error = fetch(&url, Path::new(""), &limits).unwrap_err();
    assert!(error.starts_with("cannot make a secure connection to "), "{error}");
    assert!(crate::sys::time::monotonic() - begun < std::time::Duration::from_secs(10));
    server.unwrap().join().unwrap();
}
