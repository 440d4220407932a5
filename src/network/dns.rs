//! Name server of the instances: per network one socket for datagrams and one for connections on
//! the address of its bridge. It knows the instances of this node and asks the servers of the CM and
//! of the host for everything else.
//!
//! Runs on the net thread, from its poll; no thread, no cache. Every datagram costs microseconds,
//! upstream queries never block. Limits: `MAX_PENDING` upstream queries (more are refused with
//! "server failure"), `MAX_DATAGRAMS` per socket and round, those of connections in `tcp`.

pub(super) mod tcp;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::time::Duration;

use log::{debug, error, warn};
use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrIn, bind, listen as listen_on, setsockopt,
    socket, sockopt,
};

use self::tcp::{Connection, MAX_CONNECTIONS, MAX_OF_ONE, Turn};
use super::naming::LinkName;
use super::packet::{self, Answer, Query, Unfit};
use super::plan::MAX_SERVERS;
use crate::model::id::{InstanceId, InstanceIdent, NetworkId};
use crate::sys::random;

/// Upstream queries at one time.
pub(super) const MAX_PENDING: usize = 64;
/// Datagrams of one socket in one round, so that a flood of one network starves nobody.
const MAX_DATAGRAMS: usize = 32;
/// Largest datagram that is passed on.
const DATAGRAM: usize = 4096;
const PORT: u16 = 53;
/// Connections that wait to be taken; they are taken at once.
const LISTEN_BACKLOG: i32 = 8;
/// One server has this long, all servers together `GIVE_UP`.
const TRY_NEXT: Duration = Duration::from_secs(1);
const GIVE_UP: Duration = Duration::from_secs(5);
/// Servers of one query that may still answer; who was asked before is not heard any more.
const MAX_ASKED: usize = 3;
/// Silent servers are named no more often: instances decide how much is asked.
const COMPLAINT_PAUSE: Duration = Duration::from_secs(60);
/// Tokens of the poll: zones from here, upstream queries and connections from there. A zone has two
/// of them, a connection as well.
const FIRST_ZONE: usize = 1;
const FIRST_PENDING: usize = 1 << 20;
const FIRST_CONNECTION: usize = 1 << 21;

/// All zones and what is asked upstream at the moment.
#[derive(Debug)]
pub(super) struct Dns {
    registry: Registry,
    enabled: bool,
    zones: BTreeMap<NetworkId, Zone>,
    pending: Vec<Option<Pending>>,
    connections: [Option<Connection>; MAX_CONNECTIONS],
    next_token: usize,
    /// A socket had more than one round takes.
    backlog: Vec<Token>,
    /// Until then nothing is said about silent servers.
    silent_until: Duration,
}

/// Names of one network.
#[derive(Debug)]
struct Zone {
    address: Ipv4Addr,
    socket: UdpSocket,
    /// `None`: answers fit a datagram or are not given.
    listener: Option<TcpListener>,
    /// Of the socket; that of the listener is the next one.
    token: Token,
    records: BTreeMap<InstanceId, Record>,
    /// Lower-case name, without the domain of the network, to address, of all instances.
    names: BTreeMap<Box<str>, Ipv4Addr>,
}

/// Names of one instance.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Record {
    pub(super) ident: InstanceIdent,
    pub(super) address: Ipv4Addr,
    /// Servers that the CM named for it.
    pub(super) servers: Vec<IpAddr>,
}

/// A question that was passed on.
#[derive(Debug)]
struct Pending {
    /// Of the servers that were asked and may still answer, oldest first.
    sockets: Vec<UdpSocket>,
    zone: NetworkId,
    client: SocketAddr,
    query: Vec<u8>,
    id: u16,
    servers: Vec<IpAddr>,
    next_server: usize,
    try_next: Duration,
    give_up: Duration,
}

/// What becomes of a packet.
enum Verdict {
    Ignored,
    Answered(Vec<u8>),
    /// Servers are asked; without any, this is the answer.
    PassedOn {
        refusal: Vec<u8>,
    },
}

/// Where the answer to a question is found.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Found {
    /// Here: with a record, or the name exists without one of this type.
    Here(Option<Answer>),
    /// Perhaps upstream; `known_domain` = it lies in the domain of a network of this node.
    Upstream { known_domain: bool },
}

impl Zone {
    /// The address of the instance that has this canonical name. Its host name and its id are for
    /// its own network.
    fn canonical(&self, name: &str) -> Option<Ipv4Addr> {
        let address = *self.names.get(name)?;
        let owner = self.records.values().find(|record| record.address == address)?;
        let mut canonical = super::names::canonical(&owner.ident);
        canonical.any(|own| own.eq_ignore_ascii_case(name)).then_some(address)
    }
}

impl Dns {
    pub(super) fn new(registry: Registry, enabled: bool) -> Self {
        let pending = std::iter::repeat_with(|| None).take(MAX_PENDING).collect();
        let (zones, connections) = (BTreeMap::new(), std::array::from_fn(|_| None));
        let (next_token, backlog, silent_until) = (FIRST_ZONE, Vec::new(), Duration::ZERO);
        Self { registry, enabled, zones, pending, connections, next_token, backlog, silent_until }
    }

    /// Starts to serve a network. Without the responder its instances use other servers.
    pub(super) fn open_zone(&mut self, id: &NetworkId, bridge: &LinkName, address: Ipv4Addr) {
        if !self.enabled {
            return;
        }
        let token = Token(self.next_token);
        let opened = bound(bridge, address, SockType::Datagram).and_then(|socket| {
            self.watch(socket.as_raw_fd(), token, Interest::READABLE)?;
            Ok(UdpSocket::from(socket))
        });
        let socket = match opened {
            Ok(socket) => socket,
            Err(err) => return error!("no name server for network network={id} err={err}"),
        };
        self.next_token = (self.next_token + 2) % FIRST_PENDING;
        let old = self.close_zone(id);
        let (records, names) = old.map(|zone| (zone.records, zone.names)).unwrap_or_default();
        let opened = bound(bridge, address, SockType::Stream).and_then(|socket| {
            listen_on(&socket, Backlog::new(LISTEN_BACKLOG)?)?;
            self.watch(socket.as_raw_fd(), Token(token.0 + 1), Interest::READABLE)?;
            Ok(TcpListener::from(socket))
        });
        let listener = opened
            .inspect_err(|err| warn!("name server takes datagrams only network={id} err={err}"))
            .ok();
        let zone = Zone { address, socket, listener, token, records, names };
        self.zones.insert(id.clone(), zone);
    }

    fn watch(&self, descriptor: RawFd, token: Token, interest: Interest) -> io::Result<()> {
        self.registry.register(&mut SourceFd(&descriptor), token, interest)
    }

    /// Ends the service of a network.
    pub(super) fn remove_zone(&mut self, id: &NetworkId) {
        self.close_zone(id);
        let ended = |connection: &Connection| connection.zone == *id;
        self.connections.iter_mut().for_each(|slot| drop(slot.take_if(|c| ended(c))));
    }

    /// Closing sockets takes them out of the poll.
    fn close_zone(&mut self, id: &NetworkId) -> Option<Zone> {
        self.zones.remove(id)
    }

    /// The configuration wants a responder.
    pub(super) fn is_enabled(&self) -> bool {
        self.enabled
    }

    /// Address of the responder of a network, if it runs.
    pub(super) fn responder(&self, id: &NetworkId) -> Option<Ipv4Addr> {
        self.zones.get(id).map(|zone| zone.address)
    }

    /// Makes an instance known under these keys, as `names::keys` gives them.
    pub(super) fn add(
        &mut self,
        network: &NetworkId,
        id: &InstanceId,
        keys: &[Box<str>],
        record: Record,
    ) {
        self.remove(network, id);
        let Some(zone) = self.zones.get_mut(network) else { return };
        zone.names.extend(keys.iter().map(|key| (key.clone(), record.address)));
        zone.records.insert(id.clone(), record);
    }

    pub(super) fn remove(&mut self, network: &NetworkId, id: &InstanceId) {
        if let Some(zone) = self.zones.get_mut(network)
            && let Some(record) = zone.records.remove(id)
        {
            // Addresses are unique in a network.
            zone.names.retain(|_, address| *address != record.address);
        }
    }

    /// Serves a socket that has become readable.
    pub(super) fn ready(&mut self, token: Token, now: Duration) {
        if let Some(number) = token.0.checked_sub(FIRST_CONNECTION) {
            return self.go_on_with(number / 2, now);
        }
        if let Some(slot) = token.0.checked_sub(FIRST_PENDING) {
            return self.take_upstream(slot);
        }
        let of_listener = |zone: &Zone| zone.token.0 + 1 == token.0;
        let mut zones = self.zones.iter();
        let zone = zones.find(|(_, zone)| zone.token == token || of_listener(zone));
        let Some((id, zone)) = zone.map(|(id, zone)| (id.clone(), zone)) else { return };
        if of_listener(zone) { self.accept(&id, token, now) } else { self.take_datagrams(&id, now) }
    }

    fn take_datagrams(&mut self, id: &NetworkId, now: Duration) {
        let mut buffer = [0; DATAGRAM];
        for _ in 0..MAX_DATAGRAMS {
            let Some(zone) = self.zones.get(id) else { return };
            match zone.socket.recv_from(&mut buffer) {
                Ok((length, client)) => self.serve(id, client, &buffer[..length], now),
                Err(err) if err.kind() == io::ErrorKind::WouldBlock => return,
                // An earlier answer could not be delivered.
                Err(err) => debug!("name query lost network={id} err={err}"),
            }
        }
        self.backlog.extend(self.zones.get(id).map(|zone| zone.token));
    }

    fn serve(&mut self, id: &NetworkId, client: SocketAddr, packet: &[u8], now: Duration) {
        match self.consider(id, packet) {
            Verdict::Ignored => {}
            Verdict::Answered(response) => self.reply(id, client, &response),
            Verdict::PassedOn { refusal } => match self.pass_on(id, client, packet, now) {
                Ok(true) => {}
                Ok(false) => self.reply(id, client, &refusal),
                Err(err) => {
                    debug!("name query cannot be passed on network={id} err={err}");
                    self.reply(id, client, &refused(packet, packet::SERVER_FAILURE));
                }
            },
        }
    }

    fn consider(&self, id: &NetworkId, packet: &[u8]) -> Verdict {
        let query = match packet::parse(packet) {
            Ok(query) => query,
            Err(Unfit::Silent) => return Verdict::Ignored,
            Err(Unfit::Code(code)) => return Verdict::Answered(packet::bare_refusal(packet, code)),
        };
        match self.find(id, &query) {
            Found::Here(answer) => Verdict::Answered(query.answer(answer.as_ref())),
            Found::Upstream { known_domain } => {
                let code = if known_domain { packet::NO_SUCH_NAME } else { packet::REFUSED };
                Verdict::PassedOn { refusal: query.refuse(code) }
            }
        }
    }

    /// Takes new connections; who has as many as it may gets no more.
    fn accept(&mut self, id: &NetworkId, token: Token, now: Duration) {
        for _ in 0..MAX_DATAGRAMS {
            let listener = self.zones.get(id).and_then(|zone| zone.listener.as_ref());
            let Some(listener) = listener else { return };
            match listener.accept() {
                Ok((client, peer)) => {
                    if let Err(err) = self.connect(id, client, peer.ip(), now) {
                        debug!("name server takes no connection network={id} err={err}");
                    }
                }
                Err(err) if err.kind() == io::ErrorKind::WouldBlock => return,
                Err(err) => debug!("connection to name server lost network={id} err={err}"),
            }
        }
        self.backlog.push(token);
    }

    fn connect(
        &mut self,
        id: &NetworkId,
        client: TcpStream,
        peer: IpAddr,
        now: Duration,
    ) -> io::Result<()> {
        client.set_nonblocking(true)?;
        let same = self.connections.iter().flatten().filter(|other| other.peer == peer).count();
        let slot = self.connections.iter().position(Option::is_none);
        let slot = slot.filter(|_| same < MAX_OF_ONE);
        let slot = slot.ok_or_else(|| io::Error::other("too many connections"))?;
        let connection = Connection::new(id.clone(), peer, client, now);
        let token = Token(FIRST_CONNECTION + 2 * slot);
        let interest = Interest::READABLE | Interest::WRITABLE;
        self.watch(connection.client_descriptor(), token, interest)?;
        self.connections[slot] = Some(connection);
        self.go_on_with(slot, now);
        Ok(())
    }

    /// A connection is not kept if it fails: whoever is at its other end notices.
    fn go_on_with(&mut self, slot: usize, now: Duration) {
        let taken = self.connections.get_mut(slot).and_then(Option::take);
        let Some(mut connection) = taken else { return };
        loop {
            match connection.advance(now) {
                Ok(Turn::Blocked) => break,
                Ok(Turn::More) => {
                    self.backlog.push(Token(FIRST_CONNECTION + 2 * slot));
                    break;
                }
                Ok(Turn::Question) => match self.consider(&connection.zone, connection.query()) {
                    Verdict::Ignored => return,
                    Verdict::Answered(response) => connection.answer(&response),
                    Verdict::PassedOn { refusal } => {
                        let servers = self.upstream_servers(&connection.zone);
                        if servers.is_empty() {
                            connection.answer(&refusal);
                        } else {
                            let asked = connection.ask(servers, now);
                            self.wait_for_server(slot, &mut connection, asked);
                        }
                    }
                },
                Ok(Turn::NoServer) => {
                    let asked = connection.ask_next(now);
                    self.wait_for_server(slot, &mut connection, asked);
                }
                Err(err) => {
                    return debug!(
                        "connection of {} to name server ends err={err}",
                        connection.peer
                    );
                }
            }
        }
        self.connections[slot] = Some(connection);
    }

    fn wait_for_server(&self, slot: usize, connection: &mut Connection, asked: Option<RawFd>) {
        let token = Token(FIRST_CONNECTION + 2 * slot + 1);
        let interest = Interest::READABLE | Interest::WRITABLE;
        if asked.is_none_or(|socket| self.watch(socket, token, interest).is_err()) {
            let answer = self.answer_without_servers(&connection.zone, connection.query());
            connection.answer(&answer);
        }
    }

    /// Servers that are silent are passed over, connections that take too long end.
    fn tick_connections(&mut self, now: Duration) {
        for slot in 0..MAX_CONNECTIONS {
            let Some(connection) = &mut self.connections[slot] else { continue };
            if connection.is_over(now) {
                self.connections[slot] = None;
            } else if connection.is_silent(now)
                && let Some(mut connection) = self.connections[slot].take()
            {
                let asked = connection.ask_next(now);
                self.wait_for_server(slot, &mut connection, asked);
                self.connections[slot] = Some(connection);
                self.go_on_with(slot, now);
            }
        }
    }

    fn reply(&self, id: &NetworkId, client: SocketAddr, response: &[u8]) {
        let Some(zone) = self.zones.get(id) else { return };
        if let Err(err) = zone.socket.send_to(response, client) {
            debug!("name answer lost network={id} client={client} err={err}");
        }
    }

    /// Own network, then the domain of another network of this node, then addresses.
    fn find(&self, id: &NetworkId, query: &Query<'_>) -> Found {
        let name = query.name.as_str();
        let domain = self.zones.iter().find_map(|(network, zone)| {
            let domain = network.as_str().to_ascii_lowercase();
            Some((zone, super::names::strip_domain(name, &domain)?.to_owned()))
        });
        let own = self.zones.get(id).and_then(|zone| zone.names.get(name));
        let qualified = domain.as_ref().and_then(|(zone, short)| zone.names.get(short.as_str()));
        if let Some(address) = own.or(qualified) {
            let wanted = query.kind == packet::TYPE_A;
            return Found::Here(wanted.then_some(Answer::Address(*address)));
        }
        if query.kind == packet::TYPE_PTR
            && let Some(name) = packet::reverse_address(name).and_then(|ip| self.name_of(ip))
        {
            return Found::Here(Some(Answer::Name(name)));
        }
        Found::Upstream { known_domain: domain.is_some() }
    }

    fn name_of(&self, address: Ipv4Addr) -> Option<String> {
        self.zones.iter().find_map(|(network, zone)| {
            let owner = zone.records.iter().find(|(_, record)| record.address == address);
            owner.map(|(id, _)| format!("{id}.{network}"))
        })
    }

    /// Asks the first server that can be asked; `false` = there are none.
    fn pass_on(
        &mut self,
        id: &NetworkId,
        client: SocketAddr,
        packet: &[u8],
        now: Duration,
    ) -> io::Result<bool> {
        let servers = self.upstream_servers(id);
        if servers.is_empty() {
            return Ok(false);
        }
        let slot = self.pending.iter().position(Option::is_none);
        let slot = slot.ok_or_else(|| io::Error::other("too many queries are under way"))?;
        let mut number = [0; 2];
        random::fill(&mut number)?;
        let pending = Pending {
            sockets: Vec::new(),
            zone: id.clone(),
            client,
            query: packet.to_vec(),
            id: u16::from_ne_bytes(number),
            servers,
            next_server: 0,
            try_next: now,
            give_up: now + GIVE_UP,
        };
        self.go_on(slot, pending, now);
        Ok(true)
    }

    /// Sends a query from a socket of its own, whose port nobody can guess.
    fn ask(&self, slot: usize, server: IpAddr, query: &[u8]) -> io::Result<UdpSocket> {
        let any = match server {
            IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        };
        let socket = UdpSocket::bind((any, 0))?;
        socket.set_nonblocking(true)?;
        socket.connect((server, PORT))?;
        let token = Token(FIRST_PENDING + slot);
        self.registry.register(&mut SourceFd(&socket.as_raw_fd()), token, Interest::READABLE)?;
        socket.send(query)?;
        Ok(socket)
    }

    /// Servers of the CM for the instances of the network, then those of the host; never ourselves.
    fn upstream_servers(&self, id: &NetworkId) -> Vec<IpAddr> {
        let records = self.zones.get(id).into_iter().flat_map(|zone| zone.records.values());
        let mut servers: Vec<IpAddr> = Vec::new();
        let candidates = records.flat_map(|record| record.servers.iter().copied());
        for server in candidates.chain(super::names::host_servers()) {
            let ourselves = self.zones.values().any(|zone| server == IpAddr::V4(zone.address));
            if !ourselves && !servers.contains(&server) {
                servers.push(server);
            }
            if servers.len() == MAX_SERVERS {
                break;
            }
        }
        servers
    }

    fn take_upstream(&mut self, slot: usize) {
        let Some(mut pending) = self.pending.get_mut(slot).and_then(Option::take) else { return };
        let Ok(query) = packet::parse(&pending.query) else { return };
        let mut buffer = [0; DATAGRAM + 1];
        let mut at = 0;
        while let Some(socket) = pending.sockets.get(at) {
            match socket.recv(&mut buffer) {
                Ok(length) if packet::answers(&buffer[..length], pending.id, query.question) => {
                    if length > query.payload().min(DATAGRAM) {
                        self.reply(&pending.zone, pending.client, &query.truncated());
                    } else {
                        packet::set_id(&mut buffer, packet::id(&pending.query));
                        self.reply(&pending.zone, pending.client, &buffer[..length]);
                    }
                    return;
                }
                Ok(_) => {}
                Err(err) if err.kind() == io::ErrorKind::WouldBlock => at += 1,
                // Port unreachable: the next server is asked at once.
                Err(_) => {
                    pending.sockets.remove(at);
                    pending.try_next = Duration::ZERO;
                }
            }
        }
        self.pending[slot] = Some(pending);
    }

    /// When `tick` has something to do; zero = at once.
    pub(super) fn next_deadline(&self) -> Option<Duration> {
        if !self.backlog.is_empty() {
            return Some(Duration::ZERO);
        }
        let connections = self.connections.iter().flatten().map(Connection::deadline);
        let pending = self.pending.iter().flatten();
        pending.map(|pending| pending.try_next.min(pending.give_up)).chain(connections).min()
    }

    /// Goes on with full sockets and asks the next server where one was silent.
    pub(super) fn tick(&mut self, now: Duration) {
        for token in std::mem::take(&mut self.backlog) {
            self.ready(token, now);
        }
        self.tick_connections(now);
        for slot in 0..MAX_PENDING {
            let due = |pending: &Pending| pending.try_next <= now || pending.give_up <= now;
            if self.pending[slot].as_ref().is_some_and(due)
                && let Some(pending) = self.pending[slot].take()
            {
                self.go_on(slot, pending, now);
            }
        }
    }

    /// Asks the next server. Whoever was asked before may still answer until the end.
    fn go_on(&mut self, slot: usize, mut pending: Pending, now: Duration) {
        if now < pending.give_up {
            self.ask_next(slot, &mut pending, now);
            if !pending.sockets.is_empty() {
                self.pending[slot] = Some(pending);
                return;
            }
        }
        if now >= self.silent_until {
            self.silent_until = now + COMPLAINT_PAUSE;
            warn!("no name server answers network={}", pending.zone);
        }
        let response = self.answer_without_servers(&pending.zone, &pending.query);
        self.reply(&pending.zone, pending.client, &response);
    }

    /// Passes over servers to which no way leads.
    fn ask_next(&self, slot: usize, pending: &mut Pending, now: Duration) {
        let mut query = pending.query.clone();
        packet::set_id(&mut query, pending.id);
        pending.try_next = pending.give_up;
        while let Some(server) = pending.servers.get(pending.next_server) {
            pending.next_server += 1;
            match self.ask(slot, *server, &query) {
                Ok(socket) => {
                    if pending.sockets.len() == MAX_ASKED {
                        pending.sockets.remove(0);
                    }
                    pending.sockets.push(socket);
                    pending.try_next = now + TRY_NEXT;
                    return;
                }
                Err(err) => debug!("name server cannot be asked server={server} err={err}"),
            }
        }
    }

    /// All servers are silent: perhaps the node of the CM restarts. The name may be one that the CM
    /// would have found in another network of this node; else the query has failed.
    fn answer_without_servers(&self, zone: &NetworkId, packet: &[u8]) -> Vec<u8> {
        let Ok(query) = packet::parse(packet) else {
            return packet::bare_refusal(packet, packet::FORMAT_ERROR);
        };
        let mut zones = self.zones.values();
        let Some(address) = zones.find_map(|zone| zone.canonical(&query.name)) else {
            debug!("no name server answers network={zone} name={}", query.name);
            return query.refuse(packet::SERVER_FAILURE);
        };
        let wanted = query.kind == packet::TYPE_A;
        query.answer(wanted.then_some(Answer::Address(address)).as_ref())
    }
}

fn refused(packet: &[u8], code: u16) -> Vec<u8> {
    match packet::parse(packet) {
        Ok(query) => query.refuse(code),
        Err(_) => packet::bare_refusal(packet, code),
    }
}

/// A socket that hears only what comes over the bridge.
fn bound(bridge: &LinkName, address: Ipv4Addr, kind: SockType) -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket: OwnedFd = socket(AddressFamily::Inet, kind, flags, None)?;
    setsockopt(&socket, sockopt::ReuseAddr, &true)?;
    setsockopt(&socket, sockopt::BindToDevice, &OsString::from(bridge.as_str()))?;
    let [a, b, c, d] = address.octets();
    bind(socket.as_raw_fd(), &SockaddrIn::new(a, b, c, d, PORT))?;
    Ok(socket)
}
