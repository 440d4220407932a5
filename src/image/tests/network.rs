//! Packages that come over the network.

use super::fixture::{Archive, Image, gzip};
use super::*;
use crate::image::http::tests::{Reply, Server, limits, ok, sized};

fn package() -> Vec<u8> {
    // Incompressible enough to need many reads.
    let noise: Vec<u8> =
        (0..50_000_u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_be_bytes()).collect();
    gzip(&Image::new(gzip(&Archive::new().file("noise", &noise).bytes())).package())
}

/// Installs what a server sends; `change` sees the announcement.
fn install(
    replies: Vec<Reply>,
    content: &[u8],
    change: impl FnOnce(&mut PackageSource),
) -> (Result<Vec<u8>, String>, bool) {
    let dir = scratch();
    let store = Store::with(dir.path(), |settings| settings.times = limits());
    let server = Server::start(|_| replies);
    let mut source = announce(server.url(), content);
    change(&mut source);
    let package = service_package(source);
    let plan = InstallPlan { package, evictable: Vec::new(), used_bytes: 0 };
    let result = store.store.install(&plan, &mut Vec::new());
    server.requests();
    let transient = result.as_ref().is_err_and(|failure| failure.transient);
    let result = match result {
        Ok(Installed::Service(row, _)) => {
            store.store.verify_service(&row).unwrap();
            Ok(row.package_digest)
        }
        Ok(Installed::Layer(_)) => Err("a layer".to_owned()),
        Err(failure) => {
            assert!(store.content().is_empty(), "{:?}", store.content());
            let message = failure.message;
            // The port differs each time.
            Err(message.split_once("package: ").map_or(message.clone(), |(_, why)| why.to_owned()))
        }
    };
    (result, transient)
}

#[test]
fn installs_while_downloading() {
    let content = package();
    let digest = Sha3_256::digest(&content).to_vec();
    let check = |replies: Vec<Reply>| {
        assert_eq!(install(replies, &content, |_| {}).0, Ok(digest.clone()));
    };
    check(vec![Reply::Send(sized(&content))]);
    check(vec![Reply::Send(ok("", &content))]);
    let (head, tail) = content.split_at(50_000);
    let mut chunked = Vec::new();
    for chunk in [head, tail] {
        chunked.extend(format!("{:x}\r\n", chunk.len()).into_bytes());
        chunked.extend(chunk);
        chunked.extend(b"\r\n");
    }
    chunked.extend(b"0\r\n\r\n");
    check(vec![Reply::Send(ok("Transfer-Encoding: chunked\r\n", &chunked))]);
    // Broken in the middle, and the file is the same.
    let torn = ok(&format!("Content-Length: {}\r\n", content.len()), head);
    check(vec![Reply::Send(torn), Reply::Send(sized(&content))]);
}

#[test]
fn failed_downloads_leave_nothing() {
    let content = package();
    let size = content.len();
    let check = |replies: Vec<Reply>, expect: (&str, bool)| {
        let (result, transient) = install(replies, &content, |_| {});
        assert_eq!((result.unwrap_err().as_str(), transient), expect);
    };
    let length = format!("Content-Length: {size}\r\n");
    let half = &content[..size / 2];
    check(vec![Reply::Hold(ok(&length, half))], ("download failed: no data for 0.3 s", true));
    let torn = || Reply::Send(ok(&length, half));
    let refused = Reply::Send(b"HTTP/1.1 503 x\r\n\r\n".to_vec());
    check(vec![torn(), refused], ("download failed: the server answered 503", true));
    check(
        vec![Reply::Send(sized(half))],
        (&format!("file size mismatch: {size} bytes announced, {} found", half.len()), false),
    );
    let mut longer = content.clone();
    longer.push(0);
    check(
        vec![Reply::Send(ok("", &longer))],
        (&format!("file size mismatch: {size} bytes announced, {} or more found", size + 1), false),
    );
    let empty = ok("Transfer-Encoding: chunked\r\n", b"0\r\n\r\n");
    check(
        vec![Reply::Send(empty)],
        (&format!("file size mismatch: {size} bytes announced, 0 found"), false),
    );
    let mut altered = content.clone();
    altered[size / 2] ^= 1;
    check(vec![Reply::Send(sized(&altered))], ("checksum sha256 mismatch", false));
    // Another server has another file of the same size where the first one broke off.
    check(vec![torn(), Reply::Send(sized(&altered))], ("checksum sha256 mismatch", false));
}

#[test]
fn an_announcement_that_is_too_small_ends_the_download() {
    let content = package();
    let endless = ok("", &content);
    let (result, _) = install(vec![Reply::Endless(endless)], &content, |source| {
        source.size_bytes = 1000;
    });
    let error = result.unwrap_err();
    assert!(error.starts_with("file size mismatch: 1000 bytes announced, "), "{error}");
}
