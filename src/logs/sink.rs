//! What a container gets as stdout and stderr: a stream to journald, or a spool file.
//!
//! Runs on the exec threads. Either outlives the daemon and never blocks the container: journald
//! reads by itself, and a full spool makes writes fail with `ENOSPC`. Each start tells the thread
//! `log-in`, which alone removes spools.

use std::fs::{self, File};
use std::io::{self, Write};
use std::net::Shutdown;
use std::ops::RangeInclusive;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::mount::{MsFlags, mount};
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::stat::{Mode, fstat};
use nix::unistd::{Uid, fchown};

use crate::logs::capture::CaptureCommand;
use crate::logs::intake::CaptureHandle;
use crate::logs::journal::{self, Life};
use crate::logs::spool;
use crate::logs::{Backend, Error, LogSettings, ids_below, spool_dir, spool_root, unit};
use crate::model::failure::Failure;
use crate::model::id::InstanceId;
use crate::model::job::StartPlan;
use crate::ports::{Clock, LogSinks, Stdio};
use crate::sys::fs::{make_dirs, open_dir};
use crate::sys::is_errno;
use crate::sys::time::{SystemClock, monotonic};

/// Size of a spool in bytes.
pub const SPOOL_BYTES: RangeInclusive<u64> = 64 << 10..=4 << 20;
/// A spool takes at most this part of the RAM limit of its instance, to which it is charged.
const RAM_SHARE: u64 = 8;
/// Files of a spool: one for each start that has not been drained yet.
pub(crate) const SPOOL_FILES: u32 = 16;
/// journald blocks its writers only when this is full.
const JOURNAL_BUFFER_BYTES: usize = 8 << 20;
/// Longest wait for room in the inbox of `log-in`.
const TELL_TIMEOUT: Duration = Duration::from_secs(10);
/// A spool that is unmounted under our hands is mounted again this often.
const MOUNT_ATTEMPTS: usize = 3;

/// The port `LogSinks`.
#[derive(Clone, Debug)]
pub struct Sinks {
    settings: LogSettings,
    capture: CaptureHandle,
}

impl Sinks {
    /// `capture` leads to the thread `log-in`.
    pub fn new(settings: LogSettings, capture: CaptureHandle) -> Self {
        Self { settings, capture }
    }

    fn make(&self, plan: &StartPlan) -> Result<(Stdio, Option<u64>), Error> {
        match self.settings.backend {
            Backend::Journal => self.journal(&plan.id).map(|stdio| (stdio, None)),
            Backend::Store => self.spool(plan),
            Backend::Auto => match self.journal(&plan.id) {
                Ok(stdio) => Ok((stdio, None)),
                Err(_) => self.spool(plan),
            },
        }
    }

    fn journal(&self, id: &InstanceId) -> Result<Stdio, Error> {
        let path = self.settings.journal_dir.join("stdout");
        let connect = || -> io::Result<Stdio> {
            let mut stream = UnixStream::connect(&path)?;
            setsockopt(&stream, sockopt::SndBufForce, &JOURNAL_BUFFER_BYTES)
                .or_else(|_| setsockopt(&stream, sockopt::SndBuf, &JOURNAL_BUFFER_BYTES))?;
            // Identifier, unit, priority, honour `<N>`, forward to syslog, kernel log, console.
            stream.write_all(format!("{id}\n{}\n6\n1\n0\n0\n0\n", unit(id)).as_bytes())?;
            stream.shutdown(Shutdown::Read)?;
            both(stream.into())
        };
        connect().map_err(|source| Error::Journal { path: path.clone(), source })
    }

    fn spool(&self, plan: &StartPlan) -> Result<(Stdio, Option<u64>), Error> {
        let dir = spool_dir(&self.settings, &plan.id);
        let size = spool_bytes(&self.settings, plan);
        let make = || -> io::Result<(Stdio, Option<u64>)> {
            make_dirs(&dir, 0o700)?;
            let open = mounted(&dir, size)?;
            let newest = spool::generations(&dir).last().copied().unwrap_or(0);
            // Grows within a boot even when the directory was removed in the meantime.
            let clock = u64::try_from(monotonic().as_micros()).unwrap_or(u64::MAX);
            let generation = clock.max(newest.saturating_add(1));
            let uid = plan.instance.uid;
            let (file, generation) = match spool_file(&open, generation, O_NEW, uid) {
                // All files wait to be drained: the output goes on in the last one.
                Err(error) if newest > 0 && is_errno(&error, Errno::ENOSPC) => {
                    (spool_file(&open, newest, OFlag::empty(), uid)?, newest)
                }
                made => (made?, generation),
            };
            Ok((both(file.into())?, Some(generation)))
        };
        make().map_err(|source| Error::Spool { path: dir.clone(), source })
    }

    fn tell(&self, command: CaptureCommand) -> Result<(), Failure> {
        match self.capture.send_timeout(command, TELL_TIMEOUT) {
            true => Ok(()),
            false => Err(Failure::transient(&Error::NoCapture)),
        }
    }
}

impl LogSinks for Sinks {
    fn open(&self, plan: &StartPlan) -> Result<Stdio, Failure> {
        let at = SystemClock.now();
        let (stdio, spool) = self.make(plan).map_err(|error| Failure::transient(&error))?;
        if spool.is_none() {
            // From here, so that it stands before the first line of the instance.
            let text = format!("Starting {}...", unit(&plan.id));
            journal::tell(&self.settings, &plan.id, Life::Starting, 6, &text);
        }
        self.tell(CaptureCommand::Open {
            id: plan.id.clone(),
            ident: plan.instance.ident.clone(),
            version: plan.service.key.version.clone(),
            spool,
            at,
        })?;
        Ok(stdio)
    }

    fn close(&self, id: &InstanceId) -> Result<(), Failure> {
        let newest = spool::generations(&spool_dir(&self.settings, id)).last().copied();
        self.tell(CaptureCommand::Close { id: id.clone(), until: newest.unwrap_or(0) })
    }

    fn survey(&self) -> Vec<InstanceId> {
        ids_below(&spool_root(&self.settings))
    }
}

fn both(stdout: OwnedFd) -> io::Result<Stdio> {
    Ok(Stdio { stderr: stdout.try_clone()?, stdout })
}

fn spool_bytes(settings: &LogSettings, plan: &StartPlan) -> u64 {
    let share = plan.image.service.quotas.ram_bytes.map_or(u64::MAX, |limit| limit / RAM_SHARE);
    settings.spool_bytes.min(share).clamp(*SPOOL_BYTES.start(), *SPOOL_BYTES.end())
}

/// The spool directory, opened on its mount. As long as it is open nobody can unmount it.
fn mounted(dir: &Path, size: u64) -> io::Result<OwnedFd> {
    let parent = fs::metadata(dir.parent().ok_or(io::ErrorKind::InvalidInput)?)?.dev();
    for _ in 0..MOUNT_ATTEMPTS {
        let open = open_dir(dir)?;
        if fstat(&open)?.st_dev != parent {
            return Ok(open);
        }
        let data = format!("size={size},nr_inodes={},mode=0700", SPOOL_FILES + 1);
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        let name = Some("aos-log");
        drop(open);
        if let Err(err) = mount(name, dir, Some("tmpfs"), flags, Some(data.as_str())) {
            log::warn!("log spool without a hard limit path={} err={err}", dir.display());
            return open_dir(dir);
        }
    }
    Err(io::ErrorKind::ResourceBusy.into())
}

const O_NEW: OFlag = OFlag::O_CREAT.union(OFlag::O_EXCL);

fn spool_file(dir: &OwnedFd, generation: u64, flags: OFlag, uid: u32) -> io::Result<File> {
    let flags = flags | OFlag::O_WRONLY | OFlag::O_APPEND | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let mode = Mode::from_bits_truncate(0o600);
    let file = openat(dir, spool::file_name(generation).as_str(), flags, mode)?;
    // So that a process that opens `/dev/stdout` by its path may do so.
    fchown(file.as_fd(), Some(Uid::from_raw(uid)), None)?;
    Ok(file.into())
}
