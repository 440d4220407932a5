//! Packages that come over the network.

use std::cell::Cell;

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
    let plan =
        InstallPlan { package, evictable: Vec::new(), used_bytes: 0, unfinished: Vec::new() };
    let result = store.store.install(&plan, &mut Vec::new(), &|| false);
    server.requests();
    let transient = result.as_ref().is_err_and(|failure| failure.transient);
    let result = match result {
        Ok(Installed::Service(row, _)) => {
            store.store.verify_service(&row, &|| false).unwrap();
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
    check(vec![Reply::Hold(ok(&length, half))], ("download failed: no data for 2 s", true));
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

/// A package that is large enough for what arrives of it to be kept.
fn large_package() -> Vec<u8> {
    let mut word = 1_u32;
    let mut noise = || {
        word = word.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        word.to_be_bytes()
    };
    let noise: Vec<u8> = (0..400_000).flat_map(|_| noise()).collect();
    let archive = Archive::new().file("noise", &noise).file("last", b"last");
    let content = Image::new(archive.bytes()).package();
    assert!(content.len() as u64 > part::MIN_PACKAGE_BYTES);
    content
}

/// A store that keeps downloads.
fn keeping(dir: &Path) -> Store {
    let store = Store::with(dir, |settings| settings.times = limits());
    fs::create_dir_all(&store.store.settings.download_dir).unwrap();
    store
}

/// One attempt to install what the server sends; its requests.
fn attempt(
    store: &Store,
    content: &[u8],
    replies: Vec<Reply>,
) -> (Result<(), String>, Vec<String>) {
    let server = Server::start(|_| replies);
    let source = announce(server.url(), content);
    let unfinished = vec![source.clone()];
    let package = service_package(source);
    let plan = InstallPlan { package, evictable: Vec::new(), used_bytes: 0, unfinished };
    let result = store.store.install(&plan, &mut Vec::new(), &|| false);
    let requests = server.requests();
    let result = result.map_err(|failure| format!("{} {}", failure.transient, failure.message));
    (result.map(drop), requests)
}

/// The answer to a range request.
fn rest(content: &[u8], from: usize) -> Vec<u8> {
    let (size, last) = (content.len(), content.len() - 1);
    let head = format!(
        "HTTP/1.1 206 x\r\nContent-Range: bytes {from}-{last}/{size}\r\nContent-Length: {}\r\n\r\n",
        size - from
    );
    [head.as_bytes(), &content[from..]].concat()
}

fn parts(store: &Store) -> Vec<u64> {
    let dir = &store.store.settings.download_dir;
    names(dir).iter().map(|name| fs::metadata(dir.join(name)).unwrap().len()).collect()
}

#[test]
fn a_later_attempt_takes_up_what_an_earlier_one_received() {
    let content = large_package();
    let half = content.len() / 2;
    let stalled = ok(&format!("Content-Length: {}\r\n", content.len()), &content[..half]);
    let dir = scratch();
    let store = keeping(dir.path());
    let (result, _) = attempt(&store, &content, vec![Reply::Hold(stalled.clone())]);
    assert!(result.unwrap_err().contains("no data for"));
    assert_eq!(parts(&store), [half as u64]);
    assert!(names(&dir.path().join("services")).is_empty());
    let (result, requests) = attempt(&store, &content, vec![Reply::Send(rest(&content, half))]);
    assert_eq!(result, Ok(()));
    assert!(requests[0].contains(&format!("Range: bytes={half}-\r\n")), "{}", requests[0]);
    assert!(parts(&store).is_empty());
}

#[test]
fn a_server_without_ranges_begins_anew() {
    let content = large_package();
    let half = content.len() / 2;
    let stalled = || ok(&format!("Content-Length: {}\r\n", content.len()), &content[..half]);
    let refused = || b"HTTP/1.1 416 x\r\nContent-Length: 0\r\n\r\n".to_vec();
    let other = || {
        let size = content.len() + 7;
        format!("HTTP/1.1 206 x\r\nContent-Range: bytes {half}-{}/{size}\r\n\r\n", size - 1)
    };
    for replies in [
        vec![Reply::Send(sized(&content))],
        vec![Reply::Send(refused()), Reply::Send(sized(&content))],
        vec![Reply::Send(other().into_bytes()), Reply::Send(sized(&content))],
    ] {
        let dir = scratch();
        let store = keeping(dir.path());
        attempt(&store, &content, vec![Reply::Hold(stalled())]).0.unwrap_err();
        assert_eq!(parts(&store), [half as u64]);
        assert_eq!(attempt(&store, &content, replies).0, Ok(()));
        assert!(parts(&store).is_empty());
    }
}

#[test]
fn a_part_of_something_else_is_found_out_and_given_up() {
    let content = large_package();
    let half = content.len() / 2;
    let mut other = content.clone();
    other[half / 2] ^= 1;
    let stalled = ok(&format!("Content-Length: {}\r\n", content.len()), &other[..half]);
    let dir = scratch();
    let store = keeping(dir.path());
    attempt(&store, &content, vec![Reply::Hold(stalled)]).0.unwrap_err();
    let (result, _) = attempt(&store, &content, vec![Reply::Send(rest(&content, half))]);
    let error = result.unwrap_err();
    // The next attempt may be better: it begins with nothing.
    assert!(error.starts_with("true ") && error.contains("mismatch"), "{error}");
    assert!(store.content().is_empty(), "{:?}", store.content());
    let (result, requests) = attempt(&store, &content, vec![Reply::Send(sized(&content))]);
    assert_eq!((result, requests[0].contains("Range")), (Ok(()), false));
}

#[test]
fn a_complete_part_needs_no_server() {
    let content = large_package();
    let dir = scratch();
    let store = keeping(dir.path());
    let place = part::place(&store.store.settings.download_dir, &announce(String::new(), &content));
    let place = place.unwrap();
    sys::fs::write_plain(&place, &content, 0o600).unwrap();
    let source = announce("http://127.0.0.1:1/nobody".to_owned(), &content);
    store.service(source.clone()).unwrap_err();
    assert!(!place.exists(), "the plan does not name it");
    sys::fs::write_plain(&place, &content, 0o600).unwrap();
    let unfinished = vec![source.clone()];
    let package = service_package(source);
    let plan = InstallPlan { package, evictable: Vec::new(), used_bytes: 0, unfinished };
    store.store.install(&plan, &mut Vec::new(), &|| false).unwrap();
    assert!(!place.exists());
}

#[test]
fn small_packages_are_not_kept() {
    let content = package();
    assert!((content.len() as u64) < part::MIN_PACKAGE_BYTES);
    let stalled = ok(&format!("Content-Length: {}\r\n", content.len()), &content[..1000]);
    let dir = scratch();
    let store = keeping(dir.path());
    attempt(&store, &content, vec![Reply::Hold(stalled)]).0.unwrap_err();
    assert!(parts(&store).is_empty());
}

#[test]
fn what_is_kept_gives_way_to_what_is_installed() {
    const MIB: usize = 1 << 20;
    let content = large_package();
    let half = content.len() / 2;
    let big = {
        let archive = Archive::new().file("big", &vec![0; 3 * MIB + MIB / 2]);
        gzip(&Image::new(gzip(&archive.bytes())).package())
    };
    in_private_tmp("part-room", 20 * MIB as u64, move || {
        let store = keeping(&private("store"));
        let kept = announce("http://127.0.0.1/x".to_owned(), &content);
        let place = part::place(&store.store.settings.download_dir, &kept).unwrap();
        let mut part = part::Part::open(&place, kept.size_bytes, 2).unwrap();
        assert!(part.append(&content[..half]));
        assert_eq!(parts(&store), [half as u64]);
        let source = file_source(&private("big"), &big);
        let unfinished = vec![source.clone(), kept.clone()];
        let package = service_package(source);
        let plan = InstallPlan { package, evictable: Vec::new(), used_bytes: 0, unfinished };
        store.store.install(&plan, &mut Vec::new(), &|| false).unwrap();
        assert!(parts(&store).is_empty());
        // Whoever was about to go on notices, and without room nothing is kept.
        assert!(!part.append(&content[half..half + 1]));
        let mut part = part::Part::open(&place, kept.size_bytes, 2).unwrap();
        assert!(!part.append(&content[..half]));
    });
}

#[test]
fn what_nobody_wants_is_not_waited_for() {
    let content = large_package();
    let half = content.len() / 2;
    let stalled = ok(&format!("Content-Length: {}\r\n", content.len()), &content[..half]);
    let dir = scratch();
    // Without the halt this would take as long as the test may.
    let patient = TimeLimits { stall: std::time::Duration::from_secs(60), ..TimeLimits::default() };
    let store = Store::with(dir.path(), |settings| settings.times = patient);
    let server = Server::start(|_| vec![Reply::Hold(stalled)]);
    let plan = InstallPlan {
        package: service_package(announce(server.url(), &content)),
        evictable: Vec::new(),
        used_bytes: 0,
        unfinished: Vec::new(),
    };
    // At first it is wanted.
    let asked = Cell::new(0);
    let halt = || {
        asked.set(asked.get() + 1);
        asked.get() > content.len() / (16 << 10)
    };
    let failure = store.store.install(&plan, &mut Vec::new(), &halt).unwrap_err();
    assert!(failure.transient && failure.message.ends_with("it is no longer wanted"), "{failure}");
    assert!(store.content().is_empty(), "{:?}", store.content());
    server.requests();
    // A local file is not read on either.
    let local = file_source(&dir.path().join("package"), &content);
    let plan = InstallPlan { package: service_package(local), ..plan };
    let failure = store.store.install(&plan, &mut Vec::new(), &|| true).unwrap_err();
    assert_eq!(failure.message, "it is no longer wanted");
    assert!(store.content().is_empty());
}

#[test]
fn progress_is_told() {
    let content = package();
    let lines = crate::sys::testing::logged(|| {
        let (result, _) = install(vec![Reply::Send(sized(&content))], &content, |_| {});
        result.unwrap();
    });
    let line = lines.iter().find(|line| line.contains("package on its way"));
    let line = line.expect("a line about progress");
    assert!(line.contains(&format!("size={}", content.len())), "{line}");
}
