//! The program before it serves anybody: flags, configurations that cannot be used, kernels that
//! are too old, the lock, and the errands that it runs for itself.

use std::fs;
use std::process::Command;

use crate::common::need::{program, require};
use crate::common::program::run;
use crate::common::unit::{Setup, daemon_program};

fn daemon(arguments: &[&str]) -> (Option<i32>, String, String) {
    run(Command::new(daemon_program()).args(arguments))
}

#[test]
fn version_and_help() {
    let (code, out, err) = daemon(&["-version"]);
    assert_eq!((code, err.as_str()), (Some(0), ""));
    assert!(out.starts_with("Version: ") && out.lines().count() == 1, "{out}");
    // The configuration is not read, other flags do not matter.
    assert_eq!(daemon(&["--version", "-c", "/nonexistent", "-v", "bogus"]).0, Some(0));
    let (code, out, err) = daemon(&["-h"]);
    assert_eq!(code, Some(0));
    let usage = format!("{out}{err}");
    for flag in ["-c", "-v", "-j", "-reset", "-stop-instances", "-version"] {
        assert!(usage.contains(&format!("  {flag}")), "{flag} is missing in {usage}");
    }
}

#[test]
fn usage_errors_end_with_2() {
    for (arguments, expect) in [
        (["-bogus"].as_slice(), "flag provided but not defined: -bogus"),
        (&["-c"], "flag needs an argument: -c"),
        (&["-reset=maybe"], "-reset"),
    ] {
        let (code, out, err) = daemon(arguments);
        assert_eq!((code, out.as_str()), (Some(2), ""), "{arguments:?}");
        assert!(err.contains(expect) && err.contains("Usage of"), "{arguments:?}: {err}");
    }
}

#[test]
fn a_configuration_that_cannot_be_used_ends_with_one_clear_line() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("aos.cfg");
    let check = |content: Option<&str>, expect: &[&str]| {
        let _ = fs::remove_file(&path);
        if let Some(content) = content {
            fs::File::create(&path)
                .and_then(|mut file| std::io::Write::write_all(&mut file, content.as_bytes()))
                .unwrap();
        }
        let (code, out, err) = daemon(&["-c", path.to_str().unwrap()]);
        assert_eq!(code, Some(1), "{content:?}: {out} {err}");
        let lines: Vec<_> = out.lines().chain(err.lines()).collect();
        assert_eq!(lines.len(), 1, "{content:?}: {lines:?}");
        for part in expect {
            assert!(lines[0].contains(part), "{content:?}: {:?} is missing in {lines:?}", part);
        }
    };
    let name = path.to_str().unwrap();
    check(None, &[name, "No such file"]);
    check(Some(""), &[name, "malformed JSON"]);
    check(Some("workingDir = /tmp"), &[name, "malformed JSON"]);
    check(Some("{} {}"), &[name, "malformed JSON"]);
    check(Some("[]"), &[name]);
    check(Some(r#"{"WORKINGDIR": 5}"#), &[name, "workingDir", "5", "a string"]);
    check(
        Some(r#"{"monitoring": {"pollPeriod": "10"}}"#),
        &["monitoring.pollPeriod", "10", "is not allowed", "duration"],
    );
    check(Some(r#"{"startVerdict": "soon"}"#), &["startVerdict", "soon", "confirm-new"]);
    check(Some(r#"{"servicesPartLimit": 101}"#), &["servicesPartLimit", "101", "100"]);
}

#[test]
fn an_unreadable_configuration_and_an_unknown_level_end_with_1() {
    let dir = tempfile::tempdir().unwrap();
    let (code, out, err) = daemon(&["-c", dir.path().to_str().unwrap()]);
    let text = format!("{out}{err}");
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("s a directory") || text.contains("not a regular file"), "{text}");
    let (code, out, err) = daemon(&["-v", "loud", "-c", "/nonexistent"]);
    let text = format!("{out}{err}");
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("loud"), "{text}");
}

/// The tracer answers for a kernel that is too old.
#[test]
fn an_old_kernel_is_refused() {
    require!(root, memory, runc, strace);
    let unit = Setup::new().start();
    let mut command = Command::new(program("strace").unwrap());
    command.args(["-f", "-qq", "-o", "/dev/null", "-e", "inject=pidfd_open:error=ENOSYS"]);
    command.arg(daemon_program()).arg("-c").arg(unit.config());
    let (code, out, err) = run(&mut command);
    assert_eq!(code, Some(1), "{out} {err}");
    assert!(out.contains("kernel cannot watch processes") && out.contains("5.4"), "{out} {err}");
}

/// The daemon executes itself with settings of its own for the C library, and nobody notices.
#[test]
fn settings_of_the_c_library() {
    require!(root, memory, runc);
    let mut unit = Setup::new().start();
    for given in ["", "glibc.malloc.perturb=1"] {
        unit.start_daemon_with(&[("GLIBC_TUNABLES", given)]);
        unit.say("wait registered");
        let pid = unit.daemon().pid();
        let read = |name: &str| fs::read_to_string(format!("/proc/{pid}/{name}")).unwrap();
        // The C library puts NUL in the place of colons.
        let environment = read("environ").replace('\0', " ");
        assert!(environment.contains("glibc.malloc.tcache_count=0 "), "{environment}");
        assert!(environment.contains(&format!("GLIBC_TUNABLES={given}")), "{environment}");
        assert_eq!(read("comm"), "aos_servicemana\n");
        let (program, config) = (daemon_program(), unit.config());
        let arguments = [program.to_str().unwrap(), "-v", "debug", "-c", config.to_str().unwrap()];
        assert!(read("cmdline").split('\0').eq(arguments.into_iter().chain([""])));
        unit.stop_daemon();
        unit.say("wait disconnected");
    }
}

#[test]
fn a_second_daemon_is_refused() {
    require!(root, memory, runc);
    let mut unit = Setup::new().registered();
    for flags in [[].as_slice(), &["-stop-instances"], &["-reset"]] {
        let (code, out, err) = unit.run_to_end(flags);
        assert_eq!(code, Some(1), "{flags:?}: {out} {err}");
        assert!(out.contains("sm.lock"), "{flags:?}: {out}");
    }
    // The first one goes on.
    unit.say("config get");
    unit.say("wait config");
    unit.stop_daemon();
}

/// What the daemon lets itself do where a server may be silent.
#[test]
fn errands() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().to_str().unwrap();
    let errand = |words: &[&str]| {
        let (code, out, err) = daemon(&[&["-errand"], words].concat());
        assert_eq!((code, err.as_str()), (Some(0), ""), "{words:?}");
        out
    };
    let used = errand(&["used", "/"]);
    assert!(used.strip_prefix("ok ").is_some_and(|n| n.parse::<u64>().is_ok()), "{used}");
    let [uid, gid] = [nix::unistd::getuid().to_string(), nix::unistd::getgid().to_string()];
    assert_eq!(errand(&["state", root, "a/state", &uid, &gid]), "ok 0");
    assert_eq!(errand(&["storage", root, "storage", &uid, &gid]), "ok 0");
    assert!(dir.path().join("a/state").is_file() && dir.path().join("storage").is_dir());
    let refused = errand(&["state", root, "storage", &uid, &gid]);
    assert!(refused.starts_with("failed ") && refused.contains("is no state file"), "{refused}");
    assert!(errand(&["used", "/no/such/place"]).contains("No such file"));
    assert!(errand(&["dance"]).starts_with("failed no errand"));
}
