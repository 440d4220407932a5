//! The invariants of the architecture, checked by reading the sources. Each is true by the absence
//! of something, so each check looks for what must not be there.

use std::fs;
use std::path::{Path, PathBuf};

const ADAPTERS: [&str; 7] = ["cm", "iam", "image", "runtime", "network", "monitor", "logs"];
const MAX_LINES: usize = 700;

pub struct Source {
    /// Relative to `src/`.
    path: String,
    /// Without comments and without unit tests.
    pub code: String,
    lines: usize,
    first_line: String,
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

fn files(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap().map(Result::unwrap) {
        let path = entry.path();
        if path.is_dir() {
            files(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
}

/// All sources of the daemon; the simulated unit and files of tests are exempt.
pub fn sources() -> Vec<Source> {
    let mut found = Vec::new();
    files(&root(), &mut found);
    let daemon = found.into_iter().filter(|p| !p.starts_with(root().join("bin")));
    daemon.filter(|p| !is_test_file(p)).map(|p| source(&p)).collect()
}

fn is_test_file(path: &Path) -> bool {
    let stem = path.file_stem().unwrap().to_string_lossy();
    stem == "tests"
        || stem.ends_with("_tests")
        || stem == "fake"
        || stem == "double"
        || stem == "testing"
        || path.components().any(|c| c.as_os_str() == "tests")
}

fn source(path: &Path) -> Source {
    let text = fs::read_to_string(path).unwrap();
    let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap();
    let code: String = code
        .lines()
        .filter(|line| !line.trim_start().starts_with("//"))
        .flat_map(|line| [line, "\n"])
        .collect();
    Source {
        path: path.strip_prefix(root()).unwrap().to_string_lossy().into_owned(),
        code,
        lines: text.split("#[cfg(test)]\nmod tests {").next().unwrap().lines().count(),
        first_line: text.lines().next().unwrap_or_default().to_owned(),
    }
}

/// Fails with every place where one of `words` stands in a source that `concerns` picks.
fn absent(words: &[&str], concerns: impl Fn(&str) -> bool) {
    let mut places = Vec::new();
    for source in sources().iter().filter(|s| concerns(&s.path)) {
        for word in words {
            if source.code.contains(word) {
                places.push(format!("{}: {word}", source.path));
            }
        }
    }
    assert!(places.is_empty(), "must not stand there:\n{}", places.join("\n"));
}

fn below(path: &str, dir: &str) -> bool {
    path.starts_with(&format!("{dir}/")) || path == format!("{dir}.rs")
}

#[test]
fn decisions_touch_nothing() {
    let apis = [
        "grpcio",
        "neli",
        "nix::",
        "libc::",
        "mio::",
        "rusqlite",
        "std::process",
        "std::fs",
        "std::net",
        "std::thread",
        "std::io",
        "crate::sys",
        "Instant::now",
        "SystemTime",
    ];
    absent(&apis, |path| below(path, "core") || below(path, "model"));
}

#[test]
fn adapters_know_neither_each_other_nor_core() {
    for adapter in ADAPTERS {
        let others = ADAPTERS.iter().filter(|other| **other != adapter);
        let mut words: Vec<String> = others.map(|other| format!("crate::{other}::")).collect();
        words.extend(["core", "daemon", "jobs", "store"].map(|other| format!("crate::{other}::")));
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        absent(&words, |path| below(path, adapter));
    }
}

#[test]
fn wire_types_stay_with_their_adapters() {
    absent(&["cm::wire", "iam::wire", "OUT_DIR"], |path| !below(path, "cm") && !below(path, "iam"));
    let adapters = |path: &str| below(path, "cm") || below(path, "iam") || below(path, "rpc");
    absent(&["protobuf::"], |path| !adapters(path));
    absent(&["grpcio::", "use grpcio"], |path| {
        !below(path, "cm") && !below(path, "iam") && path != "rpc.rs"
    });
    absent(&["serde"], |path| below(path, "model"));
}

#[test]
fn unsafe_code_stays_in_sys() {
    absent(&["unsafe ", "unsafe(", "allow(unsafe_code)"], |path| !below(path, "sys"));
}

#[test]
fn processes_threads_and_raw_writes_stay_in_sys() {
    let words = [
        "thread::Builder",
        "std::thread::spawn",
        "std::process::Command",
        "process::Command::new",
        "fs::write(",
    ];
    absent(&words, |path| !below(path, "sys"));
}

#[test]
fn threads_and_channels_are_made_in_the_daemon() {
    absent(&["thread::spawn("], |path| path != "daemon.rs" && !below(path, "sys"));
    // The inbox of a thread that waits in gRPC or in a poll is made with its waker; a reply channel
    // has one slot and lives for one question.
    let inboxes = [
        "daemon.rs",
        "daemon/world.rs",
        "rpc.rs",
        "event_loop.rs",
        "logs/intake.rs",
        "network/channel.rs",
        "network/mod.rs",
    ];
    absent(&["unbounded"], |_| true);
    let mut places = Vec::new();
    for source in sources().iter().filter(|s| !inboxes.contains(&s.path.as_str())) {
        for line in
            source.code.lines().filter(|l| l.contains("bounded(") || l.contains("bounded::<"))
        {
            if !line.contains("bounded(1)") {
                places.push(format!("{}: {}", source.path, line.trim()));
            }
        }
    }
    assert!(places.is_empty(), "channels made elsewhere:\n{}", places.join("\n"));
}

#[test]
fn no_shared_mutable_state_between_threads() {
    absent(&["Arc<Mutex", "Arc<RwLock", "static mut"], |_| true);
}

#[test]
fn files_have_one_subject_and_say_which() {
    let mut bad = Vec::new();
    for source in sources() {
        let described = source.first_line.starts_with("//!") || source.path == "lib.rs";
        if !described {
            bad.push(format!("{}: does not begin with what it owns", source.path));
        }
        if source.lines > MAX_LINES {
            bad.push(format!("{}: {} lines, at most {MAX_LINES}", source.path, source.lines));
        }
    }
    assert!(bad.is_empty(), "{}", bad.join("\n"));
}

#[test]
fn nothing_unfinished() {
    absent(&["todo!(", "unimplemented!(", "dbg!("], |_| true);
    let mut found = Vec::new();
    files(&root(), &mut found);
    files(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests"), &mut found);
    let ignored = ["#[ign", "ore"].concat();
    for path in found {
        let text = fs::read_to_string(&path).unwrap();
        assert!(!text.contains(&ignored), "{} has an ignored test", path.display());
        let placeholder = ["Being ", "written."].concat();
        assert!(!text.contains(&placeholder), "{} is a placeholder", path.display());
    }
}

/// neli formats whole messages for them, and starts a thread of its own where it is asked to.
#[test]
fn trace_messages_are_for_debug_builds() {
    let manifest = fs::read_to_string(root().join("../Cargo.toml")).unwrap();
    let line = |name: &str| manifest.lines().find(|line| line.starts_with(name)).unwrap();
    assert!(line("log = ").contains("\"release_max_level_debug\""));
    assert!(line("neli = ").contains("default-features = false"));
    absent(&["NlRouter"], |_| true);
}
