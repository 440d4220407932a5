//! Netlink sockets: opening with the options that we always want, sending and receiving whole
//! buffers. Any thread; a socket belongs to the network namespace of the thread that opened it.
//!
//! neli's `NlSocket` is the base. What it lacks is added here: forced buffer sizes and the capped
//! acknowledgement. Messages are encoded in `network::wire`.
//!
//! The kernel carries out requests while they are sent, and makes the next part of a list while one
//! is fetched: the answer is there before anybody asks for it, and nothing here ever waits.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};

use neli::consts::socket::{Msg, NlFamily};
use neli::socket::NlSocket;
use neli::utils::Groups;
use nix::sys::socket::{setsockopt, sockopt};

/// Holds the largest transaction and the acknowledgements of a failing one.
const BUFFER_BYTES: usize = 1024 * 1024;

/// Subsystem that a socket talks to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Family {
    /// Links, addresses, routes, queueing disciplines.
    Route,
    /// nf_tables.
    Netfilter,
}

impl From<Family> for NlFamily {
    fn from(family: Family) -> Self {
        match family {
            Family::Route => Self::Route,
            Family::Netfilter => Self::Netfilter,
        }
    }
}

/// A netlink socket, close-on-exec.
pub struct Netlink {
    socket: NlSocket,
}

impl std::fmt::Debug for Netlink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Netlink").field("fd", &self.socket.as_raw_fd()).finish()
    }
}

impl AsFd for Netlink {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor is owned by `self.socket`, is open as long as that lives, and the
        // borrow ends with `self`.
        unsafe { BorrowedFd::borrow_raw(self.socket.as_raw_fd()) }
    }
}

impl AsRawFd for Netlink {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

impl Netlink {
    /// A socket for requests: texts of errors, large buffers.
    pub fn for_requests(family: Family) -> io::Result<Self> {
        let netlink = Self::connect(family, Groups::empty())?;
        netlink.socket.enable_ext_ack(true)?;
        netlink.cap_acknowledgements()?;
        // A kernel without strict checking (before 4.20) filters nothing, which we do anyway.
        let _ = netlink.socket.enable_strict_checking(true);
        setsockopt(&netlink, sockopt::SndBufForce, &BUFFER_BYTES)?;
        setsockopt(&netlink, sockopt::RcvBufForce, &BUFFER_BYTES)?;
        Ok(netlink)
    }

    /// The same with the fewest system calls, for a handful of messages; it has no port before the
    /// first of them.
    pub fn for_few_requests(family: Family) -> io::Result<Self> {
        let socket = NlSocket::new(family.into())?;
        socket.enable_ext_ack(true)?;
        Ok(Self { socket })
    }

    /// A socket that hears what the kernel announces to these groups; it never blocks.
    pub fn for_notices(family: Family, groups: &[u32]) -> io::Result<Self> {
        let netlink = Self::connect(family, Groups::new_groups(groups))?;
        netlink.socket.nonblock()?;
        setsockopt(&netlink, sockopt::RcvBufForce, &BUFFER_BYTES)?;
        Ok(netlink)
    }

    /// Lets in only what the program (classic BPF) lets pass, on the way into the buffer.
    pub fn filter(&self, program: &[libc::sock_filter]) -> io::Result<()> {
        let too_long = |_| io::Error::from(io::ErrorKind::InvalidInput);
        let len = u16::try_from(program.len()).map_err(too_long)?;
        // The kernel only reads it.
        let program = libc::sock_fprog { len, filter: program.as_ptr().cast_mut() };
        let length = libc::socklen_t::try_from(size_of_val(&program)).map_err(too_long)?;
        // SAFETY: `program` is a live `sock_fprog` of `length` bytes whose pointer and count are
        // those of a live slice; the kernel copies both and keeps neither.
        let result = unsafe {
            libc::setsockopt(
                self.socket.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_ATTACH_FILTER,
                (&raw const program).cast(),
                length,
            )
        };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    fn connect(family: Family, groups: Groups) -> io::Result<Self> {
        Ok(Self { socket: NlSocket::connect(family.into(), None, groups)? })
    }

    /// Sends one or more messages in one call.
    pub fn send(&self, messages: &[u8]) -> io::Result<()> {
        loop {
            match self.socket.send(messages, Msg::empty()) {
                Ok(sent) if sent == messages.len() => return Ok(()),
                Ok(_) => return Err(io::ErrorKind::WriteZero.into()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Receives one datagram and returns its length. `WouldBlock` = there is none.
    pub fn receive(&self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.socket.recv(&mut *buffer, Msg::DONTWAIT) {
                Ok((length, _)) => return Ok(length),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Makes the send buffer as large as one send that exceeds it.
    pub fn make_room(&self, bytes: usize) -> io::Result<()> {
        // The kernel doubles what it is told, and needs some of it for itself.
        if bytes <= BUFFER_BYTES {
            return Ok(());
        }
        setsockopt(self, sockopt::SndBufForce, &bytes).map_err(io::Error::from)
    }

    /// Number by which the kernel calls this socket in its namespace.
    pub fn port(&self) -> u32 {
        self.socket.pid().unwrap_or(0)
    }

    /// Errors do not carry a copy of the request: a refused batch of 500 kB fits the buffer.
    fn cap_acknowledgements(&self) -> io::Result<()> {
        let on: libc::c_int = 1;
        let length = libc::socklen_t::try_from(size_of::<libc::c_int>())
            .expect("the size of an int fits any integer type");
        // SAFETY: `on` is a live int and `length` is its size; the kernel only reads it.
        let result = unsafe {
            libc::setsockopt(
                self.socket.as_raw_fd(),
                libc::SOL_NETLINK,
                libc::NETLINK_CAP_ACK,
                (&raw const on).cast(),
                length,
            )
        };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}
