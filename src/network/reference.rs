//! What the Go service manager leaves when it is replaced: a `dnsmasq` per network, which holds the
//! address of our name server, and the state of its CNI plugins.
//!
//! Runs on the net thread, once at the start, before networks are made. Where nothing is left this
//! is two looks at directories.

use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use log::{info, warn};
use nix::libc::SIGTERM;

use crate::sys::{pidfd, tree};

const DNSNAME: &str = "/run/containers/cni/dnsname";
const FIREWALL: &str = "/run/containers/cni/aos-firewall";
/// Below the working directory.
const CNI: &str = "cni";
/// A path in a command line is at most this long.
const MAX_PID_BYTES: usize = 16;

/// Removes all of it; errors are logged.
pub(super) fn sweep(working_dir: &Path) {
    let networks = std::fs::read_dir(DNSNAME).into_iter().flatten().flatten();
    for network in networks {
        if let Err(err) = end_dnsmasq(&network.path()) {
            let path = network.path();
            warn!("dnsmasq of former service manager may run path={} err={err}", path.display());
        }
    }
    let cni = working_dir.join(CNI);
    let places = [Path::new(DNSNAME), Path::new(FIREWALL)];
    let cni = (!working_dir.as_os_str().is_empty()).then_some(cni.as_path());
    for place in places.into_iter().chain(cni).filter(|place| place.exists()) {
        info!("removing state of former service manager path={}", place.display());
        if let Err(err) = tree::remove_tree(place) {
            warn!("state of former service manager stays path={} err={err}", place.display());
        }
    }
}

/// The process of one network, if its number was not given to another one meanwhile.
fn end_dnsmasq(directory: &Path) -> io::Result<()> {
    let text = match std::fs::read_to_string(directory.join("pidfile")) {
        Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    let Some(pid) = text.get(..text.len().min(MAX_PID_BYTES)).and_then(|t| t.trim().parse().ok())
    else {
        return Ok(());
    };
    let process = match pidfd::open(pid) {
        Err(err) if err.raw_os_error() == Some(nix::libc::ESRCH) => return Ok(()),
        other => other?,
    };
    // Looked at behind the descriptor: it is this process that is ended, or none.
    let command = std::fs::read(format!("/proc/{pid}/cmdline"))?;
    if is_dnsmasq(&command, directory) {
        info!("ending dnsmasq of former service manager pid={pid}");
        pidfd::send_signal(process.as_fd(), SIGTERM)?;
    }
    Ok(())
}

/// The program, with its configuration in this directory.
fn is_dnsmasq(command: &[u8], directory: &Path) -> bool {
    let Some(directory) = directory.to_str() else { return false };
    let mut words = command.split(|byte| *byte == 0).map(String::from_utf8_lossy);
    let program = words.next().unwrap_or_default();
    program.rsplit('/').next() == Some("dnsmasq") && words.any(|word| word.contains(directory))
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::{CommandExt, ExitStatusExt};
    use std::process::{Child, Command, Stdio};

    use super::*;
    use crate::sys::mount::{isolate, tmpfs};
    use crate::sys::thread::spawn_sized;

    #[test]
    fn command_lines() {
        let directory = Path::new("/run/containers/cni/dnsname/net1");
        let check = |words: &[&str], expect: bool| {
            assert_eq!(is_dnsmasq(words.join("\0").as_bytes(), directory), expect, "{words:?}");
        };
        let file = "--conf-file=/run/containers/cni/dnsname/net1/dnsmasq.conf";
        check(&["/usr/sbin/dnsmasq", "-u", "root", file], true);
        check(&["dnsmasq", file], true);
        check(&["dnsmasq", "--conf-file=/etc/dnsmasq.conf"], false);
        check(&["/usr/bin/less", file], false);
        check(&[], false);
    }

    #[test]
    fn its_processes_and_files_go_and_others_stay() {
        let thread = spawn_sized("reference-test", 512 * 1024, || {
            if isolate().and_then(|()| tmpfs(Path::new("/run"), None, 0o755)).is_err() {
                println!("SKIP its_processes_and_files_go_and_others_stay: needs CAP_SYS_ADMIN");
                return;
            }
            let working = tempfile::tempdir().unwrap();
            std::fs::create_dir_all(working.path().join("cni/networks/net1")).unwrap();
            let start = |name: &str, network: &str| -> Child {
                let directory = Path::new(DNSNAME).join(network);
                std::fs::create_dir_all(&directory).unwrap();
                let mut command = Command::new("sh");
                command.arg0(name).args(["-c", "read line"]).arg(directory.join("dnsmasq.conf"));
                let child = command.stdin(Stdio::piped()).spawn().unwrap();
                let pid = child.id().to_string();
                let file = directory.join("pidfile");
                crate::sys::fs::write_plain(&file, pid.as_bytes(), 0o644).unwrap();
                // Until the program runs its command line is that of the test.
                crate::sys::testing::wait_until("the program", || {
                    std::fs::read(format!("/proc/{pid}/cmdline"))
                        .unwrap()
                        .starts_with(name.as_bytes())
                });
                child
            };
            let (mut theirs, mut other) = (start("dnsmasq", "net1"), start("other", "net2"));
            sweep(working.path());
            assert_eq!(theirs.wait().unwrap().signal(), Some(SIGTERM));
            assert!(other.try_wait().unwrap().is_none());
            drop(other.stdin.take());
            other.wait().unwrap();
            assert!(!Path::new(DNSNAME).exists() && !working.path().join("cni").exists());
            assert!(working.path().exists());
            sweep(working.path());
        });
        thread.unwrap().join().unwrap();
    }
}
