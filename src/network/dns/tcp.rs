//! One connection of an instance to the name server: questions one after the other, each answered
//! here or passed on over a connection to a server, whose answer goes through in small pieces.
//!
//! Runs on the net thread. Nothing here waits: `advance` goes on until a socket would block. What
//! an instance can occupy is bounded: `MAX_CONNECTIONS` in all, `MAX_OF_ONE` of each address, one
//! question and one piece of an answer in memory, `PATIENCE` for a question with its answer. Not
//! here: who knows the answer (`dns`).

use std::io::{self, Read, Write};
use std::net::{IpAddr, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrStorage, connect as connect_socket, socket,
};

use super::{GIVE_UP, PORT, TRY_NEXT};
use crate::model::id::NetworkId;
use crate::network::packet::MAX_QUERY;

/// Connections at one time.
pub(in crate::network) const MAX_CONNECTIONS: usize = 8;
/// Of them from one address.
pub(in crate::network) const MAX_OF_ONE: usize = 2;
/// An instance has this long for a question, and gets its answer within it.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);
/// Bytes of an answer that are held at a time.
const PIECE: usize = 4096;
/// Pieces in one round, so that nobody else starves.
const MAX_PIECES: usize = 16;
/// A message follows its length.
const PREFIX: usize = 2;

/// Where a connection stands after it went on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Turn {
    /// A socket would block.
    Blocked,
    /// There is more to do in the next round.
    More,
    /// A question is complete: `answer` or `ask` comes next.
    Question,
    /// The server that was asked gave up before it answered: `ask` or `answer` comes next.
    NoServer,
}

/// A connection.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) zone: NetworkId,
    pub(super) peer: IpAddr,
    client: TcpStream,
    /// The question as far as it has come, with its length before it.
    query: Vec<u8>,
    phase: Phase,
    give_up: Duration,
}

#[derive(Debug)]
enum Phase {
    Reading,
    Answering(Outgoing),
    Asking(Upstream),
}

/// Bytes on their way to the instance.
#[derive(Debug, Default)]
struct Outgoing {
    bytes: Vec<u8>,
    sent: usize,
}

/// A server that is asked.
#[derive(Debug)]
struct Upstream {
    stream: TcpStream,
    servers: Vec<IpAddr>,
    next: usize,
    try_next: Duration,
    /// Bytes of the question that went out.
    sent: usize,
    piece: Outgoing,
    /// Bytes of the answer that have not come yet, once its length is known.
    left: Option<usize>,
}

impl Connection {
    pub(super) fn new(zone: NetworkId, peer: IpAddr, client: TcpStream, now: Duration) -> Self {
        let (query, phase, give_up) = (Vec::new(), Phase::Reading, now + PATIENCE);
        Self { zone, peer, client, query, phase, give_up }
    }

    /// Goes on until something is missing. An error ends the connection.
    pub(super) fn advance(&mut self, now: Duration) -> io::Result<Turn> {
        for _ in 0..MAX_PIECES {
            let turn = match &mut self.phase {
                Phase::Reading => read_query(&mut self.client, &mut self.query)?,
                Phase::Answering(outgoing) => match outgoing.send(&mut self.client)? {
                    Some(turn) => Some(turn),
                    None => self.next_question(now),
                },
                Phase::Asking(upstream) => match upstream.advance(&self.query, &mut self.client)? {
                    Progress::Stands(turn) => Some(turn),
                    Progress::Goes => None,
                    Progress::Done => self.next_question(now),
                },
            };
            if let Some(turn) = turn {
                return Ok(turn);
            }
        }
        Ok(Turn::More)
    }

    fn next_question(&mut self, now: Duration) -> Option<Turn> {
        self.query.clear();
        self.phase = Phase::Reading;
        self.give_up = now + PATIENCE;
        None
    }

    /// The question without its length.
    pub(super) fn query(&self) -> &[u8] {
        self.query.get(PREFIX..).unwrap_or_default()
    }

    pub(super) fn answer(&mut self, message: &[u8]) {
        let length = u16::try_from(message.len()).unwrap_or(0);
        let bytes = [&length.to_be_bytes(), message].concat();
        self.phase = Phase::Answering(Outgoing { bytes, sent: 0 });
    }

    /// Begins to ask the first of these servers that can be asked; returns the socket to watch.
    /// `None`: there is none (any more).
    pub(super) fn ask(&mut self, servers: Vec<IpAddr>, now: Duration) -> Option<i32> {
        self.ask_from(servers, 0, now)
    }

    /// The same with the servers behind the present one.
    pub(super) fn ask_next(&mut self, now: Duration) -> Option<i32> {
        let Phase::Asking(upstream) = &mut self.phase else { return None };
        let (servers, next) = (std::mem::take(&mut upstream.servers), upstream.next);
        self.ask_from(servers, next, now)
    }

    fn ask_from(&mut self, servers: Vec<IpAddr>, first: usize, now: Duration) -> Option<i32> {
        let (at, stream) = servers.iter().enumerate().skip(first).find_map(|(at, server)| {
            // What cannot be reached at all is passed over.
            connect(*server).ok().map(|stream| (at, stream))
        })?;
        let descriptor = stream.as_raw_fd();
        let patience = if at + 1 < servers.len() { TRY_NEXT } else { GIVE_UP };
        self.phase = Phase::Asking(Upstream {
            stream,
            servers,
            next: at + 1,
            try_next: now + patience,
            sent: 0,
            piece: Outgoing::default(),
            left: None,
        });
        Some(descriptor)
    }

    pub(super) fn client_descriptor(&self) -> i32 {
        self.client.as_raw_fd()
    }

    /// When `is_silent` or `is_over` become true.
    pub(super) fn deadline(&self) -> Duration {
        match &self.phase {
            Phase::Asking(upstream) if !upstream.has_answered() => {
                upstream.try_next.min(self.give_up)
            }
            _ => self.give_up,
        }
    }

    /// The server that was asked has had its time.
    pub(super) fn is_silent(&self, now: Duration) -> bool {
        matches!(&self.phase, Phase::Asking(u) if !u.has_answered() && u.try_next <= now)
    }

    /// The instance has had its time.
    pub(super) fn is_over(&self, now: Duration) -> bool {
        self.give_up <= now
    }
}

/// How far a server has come.
enum Progress {
    Stands(Turn),
    Goes,
    Done,
}

impl Upstream {
    fn has_answered(&self) -> bool {
        self.left.is_some()
    }

    fn advance(&mut self, query: &[u8], client: &mut TcpStream) -> io::Result<Progress> {
        match self.talk(query) {
            Ok(Some(progress)) => Ok(progress),
            Ok(None) => match self.piece.send(client)? {
                Some(turn) => Ok(Progress::Stands(turn)),
                None if self.left == Some(0) => Ok(Progress::Done),
                None => Ok(Progress::Goes),
            },
            // The instance has seen nothing of this server yet: it may be another one.
            Err(_) if !self.has_answered() => Ok(Progress::Stands(Turn::NoServer)),
            Err(err) => Err(err),
        }
    }

    /// Sends the question, then takes the next piece of the answer. `None`: there is a piece.
    fn talk(&mut self, query: &[u8]) -> io::Result<Option<Progress>> {
        while self.sent < query.len() {
            match self.stream.write(&query[self.sent..]) {
                Ok(count) => self.sent += count,
                Err(err) if err.kind() == io::ErrorKind::WouldBlock => {
                    return Ok(Some(Progress::Stands(Turn::Blocked)));
                }
                Err(err) => return Err(err),
            }
        }
        if !self.piece.is_sent() {
            return Ok(None);
        }
        // The length comes alone, so that nothing behind the answer is ever read.
        let missing = self.left.unwrap_or(PREFIX);
        let mut piece = vec![0; missing.min(PIECE)];
        match self.stream.read(&mut piece) {
            Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(length) => {
                self.left = Some(match (self.left, <[u8; PREFIX]>::try_from(&piece[..length])) {
                    (Some(left), _) => left - length,
                    (None, Ok(prefix)) => usize::from(u16::from_be_bytes(prefix)),
                    // Nobody sends half a length.
                    (None, Err(_)) => return Err(io::ErrorKind::InvalidData.into()),
                });
                piece.truncate(length);
                self.piece = Outgoing { bytes: piece, sent: 0 };
                Ok(None)
            }
            Err(err) if err.kind() == io::ErrorKind::WouldBlock => {
                Ok(Some(Progress::Stands(Turn::Blocked)))
            }
            Err(err) => Err(err),
        }
    }
}

impl Outgoing {
    fn is_sent(&self) -> bool {
        self.sent == self.bytes.len()
    }

    /// `None`: everything is out.
    fn send(&mut self, client: &mut TcpStream) -> io::Result<Option<Turn>> {
        while !self.is_sent() {
            match client.write(&self.bytes[self.sent..]) {
                Ok(count) => self.sent += count,
                Err(err) if err.kind() == io::ErrorKind::WouldBlock => {
                    return Ok(Some(Turn::Blocked));
                }
                Err(err) => return Err(err),
            }
        }
        Ok(None)
    }
}

/// Reads one question and nothing behind it. `None`: some of it has come.
fn read_query(client: &mut TcpStream, query: &mut Vec<u8>) -> io::Result<Option<Turn>> {
    let expected = match *query.as_slice() {
        [high, low, ..] => PREFIX + usize::from(u16::from_be_bytes([high, low])),
        _ => PREFIX,
    };
    if query.len() > PREFIX && query.len() == expected {
        return Ok(Some(Turn::Question));
    }
    if expected > PREFIX + MAX_QUERY || (query.len() == PREFIX && expected == PREFIX) {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut piece = [0; PREFIX + MAX_QUERY];
    match client.read(&mut piece[..expected - query.len()]) {
        Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
        Ok(length) => {
            query.extend_from_slice(&piece[..length]);
            Ok((query.len() > PREFIX && query.len() == expected).then_some(Turn::Question))
        }
        Err(err) if err.kind() == io::ErrorKind::WouldBlock => Ok(Some(Turn::Blocked)),
        Err(err) => Err(err),
    }
}

/// Begins to connect; success or failure shows when the socket is used.
fn connect(server: IpAddr) -> io::Result<TcpStream> {
    let family = if server.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket: OwnedFd = socket(family, SockType::Stream, flags, None)?;
    let address = SockaddrStorage::from(std::net::SocketAddr::from((server, PORT)));
    match connect_socket(socket.as_raw_fd(), &address) {
        Ok(()) | Err(Errno::EINPROGRESS) => Ok(socket.into()),
        Err(errno) => Err(errno.into()),
    }
}
