//! What the Go service manager leaves when it is replaced: a `dnsmasq` per network, which holds the
//! address of our name server, and the state of its CNI plugins.
//!
//! Runs on the net thread, at the start, before networks are made. That the reference was here is
//! told by a directory of its own, which goes last: a sweep that was interrupted goes on at the next
//! start, and then there is none any more. Podman keeps its networks beside those of the reference,
//! so only what is about a bridge of the reference goes.

use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use log::{info, warn};
use nix::libc::SIGTERM;

use crate::sys::{pidfd, tree};

const DNSNAME: &str = "/run/containers/cni/dnsname";
const FIREWALL: &str = "/run/containers/cni/aos-firewall";
/// A file that all networks share.
const LOCK: &str = "lock";
/// Below the working directory.
const CNI: &str = "cni";
/// Of the number in a pidfile, with a line end.
const MAX_PID_BYTES: usize = 16;

/// Removes all of it; errors are logged, and it is tried again at the next start.
pub(super) fn sweep(working_dir: &Path) {
    let cni = working_dir.join(CNI);
    if working_dir.as_os_str().is_empty() || !cni.exists() {
        return;
    }
    let networks = std::fs::read_dir(DNSNAME).into_iter().flatten().flatten();
    let networks = networks.map(|entry| entry.path()).filter(|network| is_of_reference(network));
    let mut clean = true;
    for network in networks {
        if let Err(err) = end_dnsmasq(&network) {
            let path = network.display();
            warn!("dnsmasq of former service manager may run path={path} err={err}");
            clean = false;
        } else {
            clean &= remove(&network);
        }
    }
    // Nobody else has a network there.
    let left = std::fs::read_dir(DNSNAME).into_iter().flatten().flatten();
    if left.map(|entry| entry.file_name()).all(|name| name == LOCK) {
        clean &= remove(Path::new(DNSNAME));
    }
    clean &= remove(Path::new(FIREWALL));
    if clean {
        remove(&cni);
    }
}

/// False: it stays.
fn remove(place: &Path) -> bool {
    if !place.exists() {
        return true;
    }
    info!("removing state of former service manager path={}", place.display());
    let removed = tree::remove_tree(place);
    if let Err(err) = &removed {
        warn!("state of former service manager stays path={} err={err}", place.display());
    }
    removed.is_ok()
}

/// The state of a network whose bridge has the name that the reference gives to it.
fn is_of_reference(network: &Path) -> bool {
    let Some(id) = network.file_name().and_then(|name| name.to_str()) else { return false };
    let config = std::fs::read_to_string(network.join("dnsmasq.conf")).unwrap_or_default();
    config.lines().any(|line| line.strip_prefix("interface=br-") == Some(id))
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
    use crate::sys::fs::write_plain;
    use crate::sys::mount::{isolate, tmpfs, unmount};
    use crate::sys::testing::wait_until;
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

    /// A network with a process of this name.
    fn start(name: &str, network: &str, bridge: &str) -> Child {
        let directory = Path::new(DNSNAME).join(network);
        std::fs::create_dir_all(&directory).unwrap();
        let config = format!("domain={network}\ninterface={bridge}\n");
        write_plain(&directory.join("dnsmasq.conf"), config.as_bytes(), 0o700).unwrap();
        let mut command = Command::new("sh");
        command.arg0(name).args(["-c", "read line"]).arg(directory.join("dnsmasq.conf"));
        let child = command.stdin(Stdio::piped()).spawn().unwrap();
        let pid = child.id().to_string();
        write_plain(&directory.join("pidfile"), pid.as_bytes(), 0o644).unwrap();
        // Until the program runs its command line is that of the test.
        wait_until("the program", || {
            std::fs::read(format!("/proc/{pid}/cmdline")).unwrap().starts_with(name.as_bytes())
        });
        child
    }

    /// It was not told to end before it is now.
    fn ends_by_itself(mut child: Child) {
        assert!(child.try_wait().unwrap().is_none());
        drop(child.stdin.take());
        assert!(child.wait().unwrap().code().is_some());
    }

    fn in_a_place(test: &'static str, body: fn(&Path)) {
        let thread = spawn_sized("reference-test", 512 * 1024, move || {
            if isolate().and_then(|()| tmpfs(Path::new("/run"), None, 0o755)).is_err() {
                println!("SKIP {test}: needs CAP_SYS_ADMIN");
                return;
            }
            body(tempfile::tempdir().unwrap().path());
        });
        thread.unwrap().join().unwrap();
    }

    fn make_dir(path: &Path) {
        std::fs::create_dir_all(path).unwrap();
    }

    #[test]
    fn its_processes_and_files_go_and_others_stay() {
        in_a_place("its_processes_and_files_go_and_others_stay", |working| {
            make_dir(&working.join("cni/networks/net1"));
            let mut theirs = start("dnsmasq", "net1", "br-net1");
            let other = start("other", "net2", "br-net2");
            // Something keeps one directory: what tells of the reference stays for another sweep.
            let busy = Path::new(FIREWALL).join("busy");
            make_dir(&busy);
            tmpfs(&busy, None, 0o755).unwrap();
            sweep(working);
            assert_eq!(theirs.wait().unwrap().signal(), Some(SIGTERM));
            ends_by_itself(other);
            assert!(!Path::new(DNSNAME).exists() && working.join("cni").exists());
            unmount(&busy).unwrap();
            sweep(working);
            assert!(!Path::new(FIREWALL).exists() && !working.join("cni").exists());
            assert!(working.exists());
        });
    }

    /// Podman has its networks in the same place.
    #[test]
    fn what_is_not_of_the_reference_is_left_alone() {
        in_a_place("what_is_not_of_the_reference", |working| {
            let podman = start("dnsmasq", "podman", "cni-podman0");
            let similar = start("dnsmasq", "net1", "br-net1");
            let lock = Path::new(DNSNAME).join(LOCK);
            write_plain(&lock, b"", 0o750).unwrap();
            // It was never here.
            sweep(working);
            sweep(Path::new(""));
            ends_by_itself(similar);
            assert!(Path::new(DNSNAME).join("net1").exists());
            // It was.
            make_dir(&working.join("cni"));
            sweep(working);
            assert!(!working.join("cni").exists() && !Path::new(DNSNAME).join("net1").exists());
            assert!(Path::new(DNSNAME).join("podman/pidfile").exists() && lock.exists());
            ends_by_itself(podman);
        });
    }

    /// As the reference writes it.
    const CONFIG: &str = "all-servers\nstrict-order\nlocal=/prov0/\ndomain=prov0\nexpand-hosts\n\
        pid-file=/run/containers/cni/dnsname/prov0/pidfile\nexcept-interface=lo\nbind-dynamic\n\
        no-hosts\ninterface=br-prov0\n";

    #[test]
    fn networks_of_the_reference_are_recognised() {
        let place = tempfile::tempdir().unwrap();
        for (network, expect) in [("prov0", true), ("prov1", false), ("prov", false)] {
            let directory = place.path().join(network);
            make_dir(&directory);
            assert!(!is_of_reference(&directory));
            write_plain(&directory.join("dnsmasq.conf"), CONFIG.as_bytes(), 0o700).unwrap();
            assert_eq!(is_of_reference(&directory), expect);
        }
    }
}
