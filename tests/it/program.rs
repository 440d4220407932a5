//! The program itself up to the point where it would begin to work: flags, exit codes, what is
//! printed, configuration errors, the lock of the one daemon.

#![allow(clippy::disallowed_methods)] // starting the program is what this is about

use std::path::Path;
use std::process::{Command, Stdio};

use aos_servicemanager::sys::fs;

struct Ended {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

fn run(dir: &Path, args: &[&str]) -> Ended {
    let output = Command::new(env!("CARGO_BIN_EXE_aos_servicemanager"))
        .args(args)
        .current_dir(dir)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    Ended { code: output.status.code(), stdout: text(&output.stdout), stderr: text(&output.stderr) }
}

fn put(dir: &Path, name: &str, text: &str) {
    fs::write_plain(&dir.join(name), text.as_bytes(), 0o600).unwrap();
}

#[test]
fn texts_that_were_asked_for_go_to_stdout() {
    let dir = tempfile::tempdir().unwrap();
    let version = run(dir.path(), &["-version", "-c", "nowhere"]);
    assert_eq!(version.code, Some(0));
    assert!(version.stdout.starts_with("Version: ") && version.stdout.lines().count() == 1);
    for flag in ["-h", "--help"] {
        let help = run(dir.path(), &[flag]);
        assert_eq!((help.code, help.stderr.as_str()), (Some(0), ""));
        assert!(help.stdout.starts_with("Usage of aos_servicemanager:\n"));
    }
}

#[test]
fn usage_errors_go_to_stderr() {
    let dir = tempfile::tempdir().unwrap();
    for args in [&["-bogus"][..], &["-j=maybe"], &["-c"], &["---c"]] {
        let ended = run(dir.path(), args);
        assert_eq!((ended.code, ended.stdout.as_str()), (Some(2), ""), "{args:?}");
        let (first, rest) = ended.stderr.split_once('\n').unwrap();
        assert!(!first.is_empty() && rest.starts_with("Usage of"), "{args:?}");
    }
}

#[test]
fn fatal_errors_are_one_line_in_the_log() {
    let dir = tempfile::tempdir().unwrap();
    put(dir.path(), "no-json", "{");
    put(dir.path(), "wrong-type", r#"{"Logging":{"MaxPartSize":"1"}}"#);
    put(dir.path(), "wrong-place", r#"{"runDir":"/proc/self/nowhere"}"#);
    let check = |args: &[&str], expect: &str| {
        let ended = run(dir.path(), args);
        assert_eq!((ended.code, ended.stderr.as_str()), (Some(1), ""), "{args:?}");
        assert_eq!(ended.stdout.lines().count(), 1, "{}", ended.stdout);
        assert!(ended.stdout.starts_with("time=\"20"), "{}", ended.stdout);
        let message = ended.stdout.split_once("level=error msg=ended err=\"");
        let message = message.and_then(|(_, text)| text.strip_suffix("\"\n"));
        assert_eq!(message, Some(expect), "{args:?}");
    };
    check(
        &[],
        "cannot read configuration file aos_servicemanager.cfg: No such file or directory (os \
        error 2)",
    );
    check(
        &["-v", "loud", "-c", "no-json"],
        "log level \\\"loud\\\" is not allowed, expected one of trace, debug, info, warn, error, \
        fatal, panic",
    );
    check(
        &["-reset", "-c", "no-json"],
        "configuration file no-json is not valid: malformed JSON: EOF while parsing an object at \
        line 1 column 1",
    );
    check(
        &["-c=wrong-type", "-v=PANIC"],
        "configuration file wrong-type is not valid: logging.maxPartSize: \\\"1\\\" is not \
        allowed, expected an integer from 1 to 4294967295",
    );
    check(
        &["-c", "wrong-place", "-stop-instances"],
        "cannot create /proc/self/nowhere: No such file or directory (os error 2)",
    );
}

#[test]
fn a_second_daemon_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    put(dir.path(), "aos_servicemanager.cfg", r#"{"runDir":"run"}"#);
    let run_dir = dir.path().join("run");
    fs::make_dirs(&run_dir, 0o700).unwrap();
    let lock = fs::try_lock(&run_dir.join("sm.lock"), 0o600).unwrap();
    assert!(lock.is_some());
    for args in [&[][..], &["-reset"], &["-stop-instances"]] {
        let ended = run(dir.path(), args);
        assert_eq!(ended.code, Some(1), "{args:?}");
        let expect = format!(
            "err=\"a daemon is running already: it holds {}\"\n",
            run_dir.canonicalize().unwrap().join("sm.lock").display()
        );
        assert!(ended.stdout.ends_with(&expect), "{}", ended.stdout);
    }
}
