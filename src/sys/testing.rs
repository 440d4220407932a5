//! Tests that change or observe the whole process get one of their own.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::sys::time::monotonic;

/// Longest wait of a test for something that has to happen.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

/// Set in the process that runs one test alone.
const MARK: &str = "AOS_TEST_ALONE";

/// Runs `body` in a new process of this test program, which runs nothing but the test with this
/// full name. Needed where signals, all children, or the process's own state matter.
pub(crate) fn in_own_process(name: &str, body: impl FnOnce()) {
    in_own_process_with(name, &[], body);
}

/// `in_own_process` with additional environment variables.
pub(crate) fn in_own_process_with(name: &str, env: &[(&str, &Path)], body: impl FnOnce()) {
    if std::env::var_os(MARK).is_some_and(|alone| alone == name) {
        return body();
    }
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", name, "--nocapture", "--test-threads=1"]).env(MARK, name);
    command.envs(env.iter().copied());
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let output = child.unwrap().wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{name}: {text}\n{errors}");
    assert!(text.contains("1 passed"), "{name} did not run: {text}");
    for line in text.lines().filter(|line| line.starts_with("SKIP")) {
        println!("{line}");
    }
}

/// Waits for a state of the kernel that nothing announces.
pub(crate) fn wait_until(what: &str, mut reached: impl FnMut() -> bool) {
    let end = monotonic() + PATIENCE;
    while !reached() {
        assert!(monotonic() < end, "{what} does not happen");
        std::thread::yield_now();
    }
}
