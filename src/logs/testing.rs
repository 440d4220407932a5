//! For tests: a real journald of a namespace of its own, and processes run as the process manager
//! runs them.

use std::io::{Read, Write};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;

use crate::logs::{Backend, LogSettings};
use crate::model::event::Exit;
use crate::model::failure::Failure;
use crate::ports::{self, CommandEnd, Processes, Watch};
use crate::sys::fs::write_plain;
use crate::sys::mount::tmpfs;
use crate::sys::testing::wait_until;

const PROGRAM: &str = "/lib/systemd/systemd-journald";

/// Below a `/run` and `/var/log` that only this thread sees.
pub(crate) struct Journald {
    namespace: String,
    child: Child,
}

impl Journald {
    /// `None` = there is none on this machine, which is said.
    pub(crate) fn start(test: &str) -> Option<Self> {
        if !Path::new(PROGRAM).exists() {
            println!("SKIP {test}: no journald");
            return None;
        }
        let namespace = "aostest".to_owned();
        for dir in ["/run", "/var/log"] {
            tmpfs(Path::new(dir), None, 0o755).unwrap();
        }
        let dropins = PathBuf::from(format!("/run/systemd/journald@{namespace}.conf.d"));
        std::fs::create_dir_all(&dropins).unwrap();
        let text = "[Journal]\nStorage=volatile\nRuntimeMaxUse=16M\nReadKMsg=no\nAudit=no\n\
            RateLimitIntervalSec=0\nMaxRetentionSec=1day\n";
        write_plain(&dropins.join("test.conf"), text.as_bytes(), 0o644).unwrap();
        let child = launch(&namespace);
        let journald = Self { namespace, child };
        journald.wait();
        Some(journald)
    }

    fn wait(&self) {
        let dir = self.dir();
        // It opens one after the other.
        wait_until("journald listens", || {
            let datagrams = UnixDatagram::unbound().unwrap();
            UnixStream::connect(dir.join("stdout")).is_ok()
                && datagrams.connect(dir.join("socket")).is_ok()
        });
    }

    /// Directory of its sockets.
    pub(crate) fn dir(&self) -> PathBuf {
        PathBuf::from(format!("/run/systemd/journal.{}", self.namespace))
    }

    pub(crate) fn settings(&self, root: &Path) -> LogSettings {
        LogSettings {
            backend: Backend::Auto,
            journal_dir: self.dir(),
            ..crate::logs::tests::settings(root)
        }
    }

    /// Writes an entry, as a native client does.
    pub(crate) fn say(&self, entry: &str) {
        let socket = UnixDatagram::unbound().unwrap();
        socket.send_to(entry.as_bytes(), self.dir().join("socket")).unwrap();
    }

    /// Writes a line as the service of a unit does: believed, because it has no unit of its own. By
    /// a process for each, because journald remembers what it knows of one.
    pub(crate) fn say_as(&self, unit: &str, text: &str) {
        let mut stream = UnixStream::connect(self.dir().join("stdout")).unwrap();
        write!(stream, "{unit}\n{unit}\n6\n1\n0\n0\n0\n").unwrap();
        let mut writer = Command::new("echo");
        writer.arg(text).stdout(Stdio::from(std::os::fd::OwnedFd::from(stream)));
        assert!(writer.status().unwrap().success());
    }

    /// `journalctl` with these arguments; its output.
    pub(crate) fn control(&self, arguments: &[&str]) -> String {
        let mut command = Command::new("journalctl");
        command.arg(format!("--namespace={}", self.namespace)).args(arguments);
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut output = Vec::new();
        child.stdout.take().unwrap().read_to_end(&mut output).unwrap();
        child.wait().unwrap();
        String::from_utf8_lossy(&output).into_owned()
    }

    pub(crate) fn stop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    pub(crate) fn restart(&mut self) {
        self.child = launch(&self.namespace);
        self.wait();
    }
}

fn launch(namespace: &str) -> Child {
    Command::new(PROGRAM).arg(namespace).stderr(Stdio::null()).spawn().unwrap()
}

impl Drop for Journald {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Stands for the process manager.
#[derive(Default)]
pub(crate) struct RealProcesses {
    started: Mutex<Vec<Child>>,
}

fn command(given: ports::Command) -> Command {
    let mut command = Command::new(&given.argv[0]);
    command.args(&given.argv[1..]).stderr(Stdio::null());
    command.stdin(Stdio::null()).stdout(given.stdout.unwrap());
    command
}

impl RealProcesses {
    /// Ends the newest of those that were started.
    pub(crate) fn kill_last(&self) {
        let mut child = self.started.lock().unwrap().pop().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }
}

impl Processes for RealProcesses {
    fn run(&self, given: ports::Command) -> Result<CommandEnd, Failure> {
        let code = command(given).status().unwrap().code().unwrap();
        Ok(CommandEnd { exit: Exit::Code(code), timed_out: false })
    }

    fn start(&self, given: ports::Command) -> Result<(), Failure> {
        let child = command(given).spawn().map_err(|error| Failure::text(error.to_string()))?;
        self.started.lock().unwrap().push(child);
        Ok(())
    }

    fn watch(&self, _: Watch) -> Result<(), Failure> {
        Err(Failure::text("not here"))
    }
}

impl Drop for RealProcesses {
    fn drop(&mut self) {
        // They end by themselves once nobody reads what they write.
        for child in self.started.get_mut().unwrap() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
