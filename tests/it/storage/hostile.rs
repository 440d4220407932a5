//! All hostile and damaged packages of the shared data, at once, in the running daemon; and URLs
//! that lead elsewhere.
//!
//! Between them stand good ones. Whatever becomes of the others: the daemon lives, what runs goes
//! on, the good ones are installed and start, and nothing outside of the store is touched.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};

use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use serde_json::Value;

use crate::common::host;
use crate::common::image::{self, Package};
use crate::common::need::require;
use crate::common::unit::{Setup, Unit};
use crate::common::wait_until;

/// Where the packages try to get.
const VICTIM: &str = "/tmp/aos-fixture-victim";

fn packages() -> Option<PathBuf> {
    let root = match std::env::var_os("SM_TEST_DATA") {
        Some(root) => PathBuf::from(root),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/data"),
    };
    let folder = root.join("images");
    folder.is_dir().then_some(folder)
}

/// Owner, mode, links, size and time of what no package may touch.
fn untouchables(unit: &Unit) -> Vec<String> {
    unit.space.inside(|| {
        let paths = ["/etc/passwd", "/etc/shadow", "/etc/hostname", VICTIM];
        let victim = host::names(Path::new(VICTIM)).into_iter().map(|n| format!("{VICTIM}/{n}"));
        let describe = |path: String| match fs::symlink_metadata(&path) {
            Err(error) => format!("{path} {error}"),
            Ok(stat) => format!(
                "{path} {:o} {}:{} {} {} {}",
                stat.mode(),
                stat.uid(),
                stat.gid(),
                stat.nlink(),
                stat.size(),
                stat.ctime()
            ),
        };
        paths.map(str::to_owned).into_iter().chain(victim).map(describe).collect()
    })
}

fn good(unit: &mut Unit, id: &str) {
    let path = image::write(&unit.path("packages"), &format!("{id}.tar"), &Package::good().bytes());
    unit.say(&format!("service {id} package={}", path.display()));
    unit.say(&format!("instance {id}"));
}

#[test]
fn all_of_them_at_once() {
    require!(root, memory, runc, busybox);
    let Some(data) = packages() else {
        println!("SKIP all_of_them_at_once: no test data (set SM_TEST_DATA)");
        return;
    };
    // The bomb and the lies about sizes find 64 MiB.
    let setup = Setup::new().small("sm/work", 96 << 20).set("allowRootUid", "true");
    let mut unit = setup.registered();
    unit.space.mount_small(Path::new("/tmp"), 1 << 20);
    unit.space.inside(|| {
        fs::create_dir(VICTIM).unwrap();
        fs::File::create(Path::new(VICTIM).join("file")).unwrap();
    });
    good(&mut unit, "a-first");
    unit.say("run");
    unit.say("wait active a-first");
    let (daemon, first) = (unit.daemon().pid(), unit.pid_of("a-first/subject/0"));
    let before = untouchables(&unit);

    let index = fs::read(data.join("index.json")).unwrap();
    let index: Vec<Value> = serde_json::from_slice(&index).unwrap();
    let services: Vec<&Value> = index.iter().filter(|case| case["kind"] == "service").collect();
    for case in &services {
        let file = data.join(case["file"].as_str().unwrap());
        let bytes = fs::read(file).unwrap();
        let name = case["name"].as_str().unwrap();
        let path = image::write(&unit.path("packages"), &format!("{name}.tar"), &bytes);
        unit.say(&format!("service {name} package={}", path.display()));
    }
    // Sorted by name, the good ones are the first, one in the middle and the last.
    good(&mut unit, "h5-middle");
    good(&mut unit, "z-last");
    unit.say("run");
    unit.say("wait active h5-middle 60s");
    unit.say("wait active z-last 60s");
    let lines = unit.daemon().output.all();
    for case in &services {
        let (name, expect) = (case["name"].as_str().unwrap(), case["expect"].as_str().unwrap());
        let key = format!("package=\"service {name} 1.0.0\"");
        let said = |text: &str| {
            let here = |line: &&String| line.contains(text) && line.contains(&key);
            lines.iter().any(|line| here(&line))
        };
        let (installed, refused) = (said("msg=installed"), said("msg=\"cannot install\""));
        assert!(installed != refused, "{name}: installed={installed} refused={refused}");
        // The other hash is not a part of this protocol.
        if name != "wrong-sha512" {
            assert!(!(expect == "must_reject" && installed), "{name}");
            assert!(!(expect == "must_accept" && refused), "{name}");
        }
    }
    assert_eq!(unit.daemon().pid(), daemon);
    assert!(!unit.daemon_is_dead());
    assert_eq!(unit.pid_of("a-first/subject/0"), first);
    assert_eq!(untouchables(&unit), before);
    let staging = unit.installed().into_iter().filter(|name| name.starts_with('.'));
    assert_eq!(staging.count(), 0);
    unit.stop_daemon();
    unit.nothing_left();
}

/// Waits for a request and answers it with a redirect.
fn redirect(listener: &TcpListener, location: &str) -> String {
    let mut connection = None;
    wait_until("a connection", || {
        connection = listener.accept().ok();
        connection.is_some()
    });
    let (mut stream, _) = connection.unwrap();
    stream.set_nonblocking(false).unwrap();
    let mut request = Vec::new();
    let mut byte = [0];
    while !request.ends_with(b"\r\n\r\n") && stream.read(&mut byte).unwrap() == 1 {
        request.push(byte[0]);
    }
    let answer = format!("HTTP/1.1 302 Found\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n");
    stream.write_all(answer.as_bytes()).unwrap();
    String::from_utf8(request).unwrap()
}

#[test]
fn urls_that_lead_elsewhere() {
    require!(root, memory, runc, busybox);
    let mut unit = Setup::new().registered();
    good(&mut unit, "good");
    unit.say("run");
    unit.say("wait active good");
    let (daemon, running) = (unit.daemon().pid(), unit.pid_of("good/subject/0"));
    let (before, installed) = (untouchables(&unit), unit.installed());

    let place = unit.path("place");
    fs::create_dir(&place).unwrap();
    let package = image::write(&place, "package.tar", &Package::good().bytes());
    symlink(&package, place.join("link")).unwrap();
    mkfifo(&place.join("fifo"), Mode::S_IRUSR).unwrap();
    // What the daemon connects to in its network.
    let listener = unit.space.inside(|| TcpListener::bind("127.0.0.1:0").unwrap());
    listener.set_nonblocking(true).unwrap();
    let port = listener.local_addr().unwrap().port();
    let local = |name: &str| format!("file://{}", place.join(name).display());
    let served = |rest: &str| format!("http://{rest}127.0.0.1:{port}/package.tar");
    let cases = [
        (String::new(), "no scheme"),
        (package.display().to_string(), "no scheme"),
        ("ftp://127.0.0.1/package.tar".to_owned(), "not supported"),
        ("file:package.tar".to_owned(), "not absolute"),
        (local("link"), "symbolic link"),
        (local("fifo"), "not a regular file"),
        (local(""), "not a regular file"),
        ("file:///dev/zero".to_owned(), "not a regular file"),
        ("file:///etc/passwd".to_owned(), "size mismatch"),
        (served("user:secret@"), "credentials are not allowed"),
        (served(""), "redirects to \"file:///etc/passwd\""),
    ];
    for (number, (url, _)) in cases.iter().enumerate() {
        let package = package.display();
        unit.say(&format!("service case{number:02} package={package} url='{url}'"));
        unit.say(&format!("instance case{number:02}"));
    }
    unit.say("run");
    let request = redirect(&listener, "file:///etc/passwd");
    assert!(!request.contains("Authorization") && !request.contains("secret"), "{request}");
    for number in 0..cases.len() {
        unit.say(&format!("wait failed case{number:02} 60s"));
    }
    let lines = unit.statuses();
    for (number, (url, reason)) in cases.iter().enumerate() {
        let name = format!("case{number:02}/");
        let line = lines.iter().find(|line| line.starts_with(&name)).unwrap();
        assert!(line.contains(reason) && !line.contains("secret"), "{url}: {line}");
    }
    let log = unit.daemon().output.all();
    assert!(!log.iter().any(|line| line.contains("secret")), "{log:?}");
    assert!(listener.accept().is_err(), "one URL of the two that lead here");
    assert_eq!((unit.daemon().pid(), unit.pid_of("good/subject/0")), (daemon, running));
    assert!(!unit.daemon_is_dead());
    assert_eq!((untouchables(&unit), unit.installed()), (before, installed));
    unit.stop_daemon();
    unit.nothing_left();
}
