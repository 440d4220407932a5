//! Process descriptors: a process that cannot be mistaken for another one, and what its end was.
//!
//! The wait functions belong to the process manager (`children.rs`); nobody else may call them,
//! because whoever waits takes the status away from everybody else.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::model::event::Exit;
use crate::sys::{is_errno, retry};

/// `PIDFD_INFO_EXIT`, bit 3 of the mask: the exit status is wanted, or there.
const INFO_EXIT: u64 = 1 << 3;

/// What `PIDFD_GET_INFO` fills: the first published layout, which later kernels still take.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Info {
    mask: u64,
    cgroup_id: u64,
    ids: [u32; 11],
    exit_code: i32,
}

mod ioctl {
    nix::ioctl_readwrite!(get_info, 0xff, 11, super::Info);
}

/// Opens the process with this number. `ESRCH` = there is none.
pub fn open(pid: u32) -> io::Result<OwnedFd> {
    let pid = libc::pid_t::try_from(pid).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: numbers only.
    let fd = retry(|| Errno::result(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) }))?;
    let fd = i32::try_from(fd).map_err(|_| io::ErrorKind::InvalidData)?;
    // SAFETY: the kernel has just created this descriptor (close-on-exec) and nobody knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Sends a signal; 0 only checks. `ESRCH` = the process has ended and was reaped.
pub fn send_signal(pidfd: BorrowedFd<'_>, signal: i32) -> io::Result<()> {
    let (fd, no_info) = (pidfd.as_raw_fd(), std::ptr::null::<libc::siginfo_t>());
    // SAFETY: a null information block is what the call documents for a plain signal.
    Errno::result(unsafe { libc::syscall(libc::SYS_pidfd_send_signal, fd, signal, no_info, 0) })?;
    Ok(())
}

/// True from the moment when the process is a zombie; does not wait.
pub fn has_ended(pidfd: BorrowedFd<'_>) -> io::Result<bool> {
    let mut fds = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
    Ok(retry(|| poll(&mut fds, PollTimeout::ZERO))? > 0)
}

/// Waits until the process is a zombie or gone; false = `limit` was over before. Rounded up to
/// milliseconds.
pub fn wait_end(pidfd: BorrowedFd<'_>, limit: Duration) -> io::Result<bool> {
    let millis = limit.as_micros().div_ceil(1000);
    let limit = PollTimeout::try_from(millis).unwrap_or(PollTimeout::MAX);
    let mut fds = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
    Ok(retry(|| poll(&mut fds, limit))? > 0)
}

/// True when somebody has taken the status of the process.
pub fn is_reaped(pidfd: BorrowedFd<'_>) -> bool {
    matches!(send_signal(pidfd, 0), Err(error) if is_errno(&error, Errno::ESRCH))
}

/// Number of a child that has ended and is not reaped yet. `None` = none, or no children.
pub fn ended_child() -> io::Result<Option<u32>> {
    let options = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
    match wait(libc::P_ALL, 0, options) {
        Ok(child) => Ok(child.map(|(pid, _)| pid)),
        Err(error) if is_errno(&error, Errno::ECHILD) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Takes the status of a child by number. `None` = still running, `ECHILD` = not our child.
pub fn reap(pid: u32) -> io::Result<Option<Exit>> {
    Ok(wait(libc::P_PID, pid, libc::WEXITED | libc::WNOHANG)?.map(|(_, exit)| exit))
}

/// Takes the status of a child by descriptor. `None` = still running, `ECHILD` = not our child
/// (yet: a runtime in between may still be its parent).
pub fn reap_fd(pidfd: BorrowedFd<'_>) -> io::Result<Option<Exit>> {
    let fd = u32::try_from(pidfd.as_raw_fd()).map_err(|_| io::ErrorKind::InvalidInput)?;
    Ok(wait(libc::P_PIDFD, fd, libc::WEXITED | libc::WNOHANG)?.map(|(_, exit)| exit))
}

fn wait(kind: libc::idtype_t, id: u32, options: libc::c_int) -> io::Result<Option<(u32, Exit)>> {
    let mut info = std::mem::MaybeUninit::<libc::siginfo_t>::zeroed();
    retry(|| {
        // SAFETY: `info` is writable memory of the type that the call fills.
        Errno::result(unsafe { libc::waitid(kind, id, info.as_mut_ptr(), options) })
    })?;
    // SAFETY: all bytes were zero, a valid value, before the call filled some of them.
    let info = unsafe { info.assume_init() };
    // SAFETY: after a successful wait the block is one of a child, or still zero.
    let (pid, status) = unsafe { (info.si_pid(), info.si_status()) };
    let Some(pid) = u32::try_from(pid).ok().filter(|pid| *pid != 0) else { return Ok(None) };
    let exit = match info.si_code {
        libc::CLD_EXITED => Exit::Code(status),
        _ => Exit::Signal(status),
    };
    Ok(Some((pid, exit)))
}

/// The status of a process that is not our child, after its parent has reaped it. `None` = not
/// yet, `ENOTTY` = the kernel (before 6.15) does not tell.
pub fn exit_info(pidfd: BorrowedFd<'_>) -> io::Result<Option<Exit>> {
    let mut info = Info { mask: INFO_EXIT, ..Info::default() };
    retry(|| {
        // SAFETY: the descriptor is open and `info` has the layout and size of this request.
        unsafe { ioctl::get_info(pidfd.as_raw_fd(), &raw mut info) }
    })?;
    Ok((info.mask & INFO_EXIT != 0).then(|| exit_of(info.exit_code)))
}

/// Decodes a status in the layout of wait.
pub fn exit_of(status: i32) -> Exit {
    match status & 0x7f {
        0 => Exit::Code(status >> 8 & 0xff),
        signal => Exit::Signal(signal),
    }
}

/// Makes orphans among our descendants, containers' inits above all, our children.
pub fn become_subreaper() -> io::Result<()> {
    // SAFETY: numbers only.
    Errno::result(unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) })?;
    Ok(())
}

/// Kills every process of a group. `ESRCH` = there is none.
pub fn kill_group(leader: u32) -> io::Result<()> {
    let leader = i32::try_from(leader).map_err(|_| io::ErrorKind::InvalidInput)?;
    let group = nix::unistd::Pid::from_raw(leader);
    nix::sys::signal::killpg(group, nix::sys::signal::Signal::SIGKILL).map_err(io::Error::from)
}

/// Kills one process by number: only for one that cannot have been reaped in between.
pub fn kill(pid: u32) -> io::Result<()> {
    let pid = i32::try_from(pid).map_err(|_| io::ErrorKind::InvalidInput)?;
    let pid = nix::unistd::Pid::from_raw(pid);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).map_err(io::Error::from)
}

/// Fails when the kernel lacks process descriptors or waiting on them (before 5.4).
pub fn check_support() -> io::Result<()> {
    let own = open(std::process::id())?;
    match reap_fd(own.as_fd()) {
        // We are not our own child: the expected answer of a kernel that knows the request.
        Err(error) if is_errno(&error, Errno::ECHILD) => Ok(()),
        Err(error) => Err(error),
        Ok(_) => Ok(()),
    }
}

/// True when the kernel tells the status of processes that are not our children (6.15).
pub fn tells_exit_status() -> bool {
    let Ok(own) = open(std::process::id()) else { return false };
    // Of a live process there is none, but a kernel that knows the request answers it.
    exit_info(own.as_fd()).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::command;
    use crate::sys::testing::in_own_process;

    #[test]
    fn layouts_of_wait_statuses() {
        for (status, expect) in [
            (0, Exit::Code(0)),
            (1792, Exit::Code(7)),
            (0xff00, Exit::Code(255)),
            (9, Exit::Signal(9)),
            (0x80 | 11, Exit::Signal(11)),
            (64, Exit::Signal(64)),
        ] {
            assert_eq!(exit_of(status), expect, "{status}");
        }
        assert_eq!(size_of::<Info>(), 64);
    }

    #[test]
    fn support() {
        check_support().unwrap();
        let own = open(std::process::id()).unwrap();
        assert!(!has_ended(own.as_fd()).unwrap());
        assert!(!is_reaped(own.as_fd()));
        open(u32::MAX).unwrap_err();
    }

    #[test]
    fn a_child_ends_is_seen_and_is_reaped() {
        in_own_process("sys::pidfd::tests::a_child_ends_is_seen_and_is_reaped", || {
            let check = |script: &str, expect: Exit| {
                let argv = ["/bin/sh", "-c", script].map(Into::into);
                let pid = command::spawn(&argv, None, None).unwrap();
                let pidfd = open(pid).unwrap();
                let mut fds = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
                poll(&mut fds, PollTimeout::from(10_000_u16)).unwrap();
                assert!(has_ended(pidfd.as_fd()).unwrap());
                assert!(!is_reaped(pidfd.as_fd()));
                assert_eq!(ended_child().unwrap(), Some(pid));
                assert_eq!(reap_fd(pidfd.as_fd()).unwrap(), Some(expect), "{script}");
                assert!(is_reaped(pidfd.as_fd()));
                assert_eq!(ended_child().unwrap(), None);
                assert!(is_errno(&reap(pid).unwrap_err(), Errno::ECHILD));
                if tells_exit_status() {
                    assert_eq!(exit_info(pidfd.as_fd()).unwrap(), Some(expect), "{script}");
                }
            };
            check("exit 0", Exit::Code(0));
            check("exit 42", Exit::Code(42));
            check("kill -9 $$", Exit::Signal(9));
            check("kill -35 $$", Exit::Signal(35));
        });
    }

    #[test]
    fn a_running_child_is_signalled() {
        in_own_process("sys::pidfd::tests::a_running_child_is_signalled", || {
            let argv = ["/bin/sleep", "1000"].map(Into::into);
            let pid = command::spawn(&argv, None, None).unwrap();
            let pidfd = open(pid).unwrap();
            assert_eq!(reap(pid).unwrap(), None);
            send_signal(pidfd.as_fd(), libc::SIGTERM).unwrap();
            let mut fds = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
            poll(&mut fds, PollTimeout::from(10_000_u16)).unwrap();
            assert_eq!(reap(pid).unwrap(), Some(Exit::Signal(libc::SIGTERM)));
            assert!(send_signal(pidfd.as_fd(), libc::SIGTERM).is_err());
        });
    }
}
