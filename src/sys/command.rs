//! Creation of child processes, without a shell and without code of ours in the child.
//!
//! The standard library then uses `posix_spawn`, whose cost does not grow with our memory, and
//! gives the child an empty signal mask. What the child gets: its own process group, `PATH` and
//! what the caller names as environment, `/dev/null` as stdin, no descriptor besides the three.

use std::ffi::{OsStr, OsString};
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::sys::retry;
use crate::sys::time::monotonic;

/// Where programs are looked for, and the environment variable that every child gets.
pub const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Longest output that `output` returns, in bytes.
pub const OUTPUT_MAX: usize = 16 * 1024;

/// What is to be executed.
#[derive(Clone, Copy, Debug)]
pub struct Program<'a> {
    pub argv: &'a [OsString],
    /// `None` = the file that the first word names.
    pub file: Option<&'a Path>,
    /// Variables beside `PATH`.
    pub environment: &'a [(&'static str, OsString)],
}

impl<'a> From<&'a [OsString]> for Program<'a> {
    fn from(argv: &'a [OsString]) -> Self {
        Self { argv, file: None, environment: &[] }
    }
}

/// Starts a program and returns its number; the caller (the process manager) has to reap it.
/// `None` as output = `/dev/null`. Takes about 1 ms.
pub fn spawn_program(
    program: &Program<'_>,
    stdout: Option<OwnedFd>,
    stderr: Option<OwnedFd>,
) -> io::Result<u32> {
    Ok(start(program, output_to(stdout), output_to(stderr))?.id())
}

/// The same for words alone.
pub fn spawn(
    argv: &[OsString],
    stdout: Option<OwnedFd>,
    stderr: Option<OwnedFd>,
) -> io::Result<u32> {
    spawn_program(&argv.into(), stdout, stderr)
}

/// Runs a program to its end and returns the beginning of its output. Only for the time before
/// the process manager exists: this waits for the child itself.
pub fn output(argv: &[OsString], deadline: Duration) -> io::Result<String> {
    let mut child = start(&argv.into(), Stdio::piped(), Stdio::null())?;
    let text = child.stdout.take().map(|pipe| read_until(pipe.into(), deadline));
    // Ends a child that still runs; one that has ended is not reaped yet and takes no harm.
    let killed = child.kill();
    let status = child.wait()?;
    killed?;
    let text = text.transpose()?.ok_or(io::ErrorKind::TimedOut)?;
    if text.is_empty() && !status.success() {
        return Err(io::Error::other(format!("no output, {status}")));
    }
    Ok(text)
}

fn read_until(pipe: OwnedFd, deadline: Duration) -> io::Result<String> {
    let end = monotonic() + deadline;
    let mut content = Vec::new();
    let mut file = std::fs::File::from(pipe);
    while content.len() < OUTPUT_MAX {
        let left = end.saturating_sub(monotonic()).as_millis();
        let left = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        let mut fds = [PollFd::new(file.as_fd(), PollFlags::POLLIN)];
        if retry(|| poll(&mut fds, left))? == 0 {
            return Err(io::ErrorKind::TimedOut.into());
        }
        let mut buffer = [0; 1024];
        let length = file.read(&mut buffer)?;
        if length == 0 {
            break;
        }
        content.extend_from_slice(&buffer[..length]);
    }
    Ok(String::from_utf8_lossy(&content).into_owned())
}

fn start(program: &Program<'_>, stdout: Stdio, stderr: Stdio) -> io::Result<Child> {
    let (name, arguments) = program.argv.split_first().ok_or(io::ErrorKind::InvalidInput)?;
    // Without a path the standard library would fork instead, because PATH is changed.
    let file = find(program.file.map_or(name, Path::as_os_str)).ok_or_else(|| {
        let text = format!("{} is no executable program", name.display());
        io::Error::new(io::ErrorKind::NotFound, text)
    })?;
    let mut command = Command::new(file);
    if program.file.is_some() {
        command.arg0(name);
    }
    command.args(arguments).env_clear().env("PATH", PATH).process_group(0);
    command.envs(program.environment.iter().map(|(name, value)| (name, value)));
    command.stdin(Stdio::null()).stdout(stdout).stderr(stderr).spawn()
}

fn output_to(fd: Option<OwnedFd>) -> Stdio {
    fd.map_or_else(Stdio::null, Stdio::from)
}

/// The program file for a name or path; `None` = not there, or not executable.
pub fn find(program: &OsStr) -> Option<PathBuf> {
    let executable = |path: &Path| {
        let metadata = path.metadata();
        metadata.is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
    };
    if program.as_bytes().contains(&b'/') {
        return Some(PathBuf::from(program)).filter(|path| executable(path));
    }
    PATH.split(':').map(|dir| Path::new(dir).join(program)).find(|path| executable(path))
}

/// Keeps descriptors that we inherited ourselves away from our children. Called once at start;
/// our own are close-on-exec from the beginning.
pub fn seal_inherited() -> io::Result<()> {
    for entry in std::fs::read_dir("/proc/self/fd")? {
        let Some(fd) = entry?.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else {
            continue;
        };
        if fd > 2 {
            // SAFETY: numbers only. The one descriptor that may be gone already, that of the
            // directory we read, makes the call fail and nothing else.
            unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) };
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;
    use crate::model::event::Exit;
    use crate::sys::pidfd;
    use crate::sys::testing::in_own_process;

    fn argv(script: &str) -> Vec<OsString> {
        ["/bin/sh", "-c", script].map(Into::into).into()
    }

    #[test]
    fn programs_are_found() {
        assert!(find(OsStr::new("sh")).is_some_and(|path| path.is_absolute()));
        assert_eq!(find(OsStr::new("/bin/sh")), Some(PathBuf::from("/bin/sh")));
        for missing in ["no-such-program", "/no/such", "/etc/passwd", "/etc", ""] {
            assert_eq!(find(OsStr::new(missing)), None, "{missing}");
        }
        let error = spawn(&["no-such-program".into()], None, None).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        spawn(&[], None, None).unwrap_err();
    }

    #[test]
    fn output_is_bounded_in_size_and_time() {
        in_own_process("sys::command::tests::output_is_bounded_in_size_and_time", || {
            let check =
                |script: &str, millis: u64| output(&argv(script), Duration::from_millis(millis));
            assert_eq!(check("echo one; echo two >&2", 10_000).unwrap(), "one\n");
            check("exit 3", 10_000).unwrap_err();
            let long = check("while :; do echo 0123456789abcdef; done", 10_000).unwrap();
            assert!(long.len() >= OUTPUT_MAX && long.len() < OUTPUT_MAX + 1024);
            let late = check("exec sleep 1000", 50).unwrap_err();
            assert_eq!(late.kind(), io::ErrorKind::TimedOut);
        });
    }

    #[test]
    fn a_child_inherits_nothing() {
        in_own_process("sys::command::tests::a_child_inherits_nothing", || {
            crate::sys::thread::block_signals().unwrap();
            let dir = tempfile::tempdir().unwrap();
            let out = File::create(dir.path().join("out")).unwrap();
            let leaky = nix::unistd::dup(&out).unwrap();
            seal_inherited().unwrap();
            let script = "tr '\\0' '\\n' </proc/$$/environ; readlink /proc/self/fd/0
                grep SigBlk /proc/self/status; ls /proc/$$/fd
                [ $(cut -d' ' -f5 /proc/$$/stat) = $$ ] && echo own group";
            let pid = spawn(&argv(script), Some(out.into()), None).unwrap();
            let pidfd = pidfd::open(pid).unwrap();
            let mut fds = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
            poll(&mut fds, PollTimeout::from(10_000_u16)).unwrap();
            assert_eq!(pidfd::reap(pid).unwrap(), Some(Exit::Code(0)));
            drop(leaky);
            let text = std::fs::read_to_string(dir.path().join("out")).unwrap();
            let mask = "SigBlk:\t0000000000000000";
            let expect = format!("PATH={PATH}\n/dev/null\n{mask}\n0\n1\n2\nown group\n");
            assert_eq!(text, expect);
        });
    }
}
