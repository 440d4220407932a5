//! Name server of the instances: per network one socket on the address of its bridge. It knows the
//! instances of this node and asks the servers of the CM and of the host for everything else.
//!
//! Runs on the net thread, from its poll; no thread, no cache. Every datagram costs microseconds,
//! upstream queries never block. Limits: `MAX_PENDING` upstream queries (more are refused with
//! "server failure"), `MAX_DATAGRAMS` per socket and round. Not here: TCP.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use log::{debug, error, warn};
use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrIn, bind, setsockopt, socket, sockopt,
};

use super::naming::LinkName;
use super::packet::{self, Answer, Query, Unfit};
use crate::model::id::{InstanceId, NetworkId};
use crate::sys::random;

/// Upstream queries at one time.
pub(super) const MAX_PENDING: usize = 64;
/// Datagrams of one socket in one round, so that a flood of one network starves nobody.
const MAX_DATAGRAMS: usize = 32;
/// Largest datagram that is passed on.
const DATAGRAM: usize = 4096;
const PORT: u16 = 53;
/// One server has this long, all servers together `GIVE_UP`.
const TRY_NEXT: Duration = Duration::from_secs(1);
const GIVE_UP: Duration = Duration::from_secs(5);
/// Tokens of the poll: zones from here, upstream queries from there.
const FIRST_ZONE: usize = 1;
const FIRST_PENDING: usize = 1 << 20;

/// All zones and what is asked upstream at the moment.
#[derive(Debug)]
pub(super) struct Dns {
    registry: Registry,
    enabled: bool,
    zones: BTreeMap<NetworkId, Zone>,
    pending: Vec<Option<Pending>>,
    next_token: usize,
    /// A socket had more datagrams than one round takes.
    backlog: Vec<Token>,
}

/// Names of one network.
#[derive(Debug)]
struct Zone {
    address: Ipv4Addr,
    socket: UdpSocket,
    token: Token,
    records: BTreeMap<InstanceId, Record>,
    /// Lower-case name, without the domain of the network, to address, of all instances.
    names: BTreeMap<Box<str>, Ipv4Addr>,
}

/// Names of one instance.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Record {
    pub(super) address: Ipv4Addr,
    /// Servers that the CM named for it.
    pub(super) servers: Vec<IpAddr>,
}

/// A question that was passed on.
#[derive(Debug)]
struct Pending {
    socket: UdpSocket,
    zone: NetworkId,
    client: SocketAddr,
    query: Vec<u8>,
    id: u16,
    servers: Vec<IpAddr>,
    next_server: usize,
    try_next: Duration,
    give_up: Duration,
}

/// Where the answer to a question is found.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Found {
    /// Here: with a record, or the name exists without one of this type.
    Here(Option<Answer>),
    /// Perhaps upstream; `known_domain` = it lies in the domain of a network of this node.
    Upstream { known_domain: bool },
}

impl Dns {
    pub(super) fn new(registry: Registry, enabled: bool) -> Self {
        let pending = std::iter::repeat_with(|| None).take(MAX_PENDING).collect();
        let zones = BTreeMap::new();
        Self { registry, enabled, zones, pending, next_token: FIRST_ZONE, backlog: Vec::new() }
    }

    /// Starts to serve a network. Without the responder its instances use other servers.
    pub(super) fn open_zone(&mut self, id: &NetworkId, bridge: &LinkName, address: Ipv4Addr) {
        if !self.enabled {
            return;
        }
        let token = Token(self.next_token);
        let opened = listen(bridge, address).and_then(|socket| {
            let interest = Interest::READABLE;
            self.registry.register(&mut SourceFd(&socket.as_raw_fd()), token, interest)?;
            Ok(socket)
        });
        match opened {
            Ok(socket) => {
                self.next_token = (self.next_token + 1) % FIRST_PENDING;
                let old = self.close_zone(id);
                let (records, names) =
                    old.map(|zone| (zone.records, zone.names)).unwrap_or_default();
                let zone = Zone { address, socket, token, records, names };
                self.zones.insert(id.clone(), zone);
            }
            Err(err) => error!("no name server for network network={id} err={err}"),
        }
    }

    /// Ends the service of a network.
    pub(super) fn remove_zone(&mut self, id: &NetworkId) {
        self.close_zone(id);
    }

    fn close_zone(&mut self, id: &NetworkId) -> Option<Zone> {
        let zone = self.zones.remove(id)?;
        // Closing the socket takes it out of the poll anyway.
        let _ = self.registry.deregister(&mut SourceFd(&zone.socket.as_raw_fd()));
        Some(zone)
    }

    /// Address of the responder of a network, if it runs.
    pub(super) fn responder(&self, id: &NetworkId) -> Option<Ipv4Addr> {
        self.zones.get(id).map(|zone| zone.address)
    }

    /// Makes an instance known under its id and these names, as `names::of_instance` gives them.
    pub(super) fn add(
        &mut self,
        network: &NetworkId,
        id: &InstanceId,
        names: &[String],
        record: Record,
    ) {
        self.remove(network, id);
        let Some(zone) = self.zones.get_mut(network) else { return };
        let domain = network.as_str().to_ascii_lowercase();
        for name in names.iter().map(String::as_str).chain([id.as_str()]) {
            let name = name.to_ascii_lowercase();
            let short = strip_domain(&name, &domain).unwrap_or(&name);
            zone.names.insert(short.into(), record.address);
        }
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
        if let Some(slot) = token.0.checked_sub(FIRST_PENDING) {
            self.take_upstream(slot);
            return;
        }
        let zone = self.zones.iter().find(|(_, zone)| zone.token == token);
        let Some(id) = zone.map(|(id, _)| id.clone()) else { return };
        let mut buffer = [0; DATAGRAM];
        for _ in 0..MAX_DATAGRAMS {
            let Some(zone) = self.zones.get(&id) else { return };
            match zone.socket.recv_from(&mut buffer) {
                Ok((length, client)) => self.serve(&id, client, &buffer[..length], now),
                Err(err) if err.kind() == io::ErrorKind::WouldBlock => return,
                // An earlier answer could not be delivered.
                Err(err) => debug!("name query lost network={id} err={err}"),
            }
        }
        self.backlog.push(token);
    }

    fn serve(&mut self, id: &NetworkId, client: SocketAddr, packet: &[u8], now: Duration) {
        let query = match packet::parse(packet) {
            Ok(query) => query,
            Err(Unfit::Silent) => return,
            Err(Unfit::Code(code)) => {
                return self.reply(id, client, &packet::bare_refusal(packet, code));
            }
        };
        match self.find(id, &query) {
            Found::Here(answer) => self.reply(id, client, &query.answer(answer.as_ref())),
            Found::Upstream { known_domain } => {
                let refusal = match self.pass_on(id, client, packet, now) {
                    Ok(true) => return,
                    Ok(false) if known_domain => packet::NO_SUCH_NAME,
                    Ok(false) => packet::REFUSED,
                    Err(err) => {
                        debug!("name query cannot be passed on network={id} err={err}");
                        packet::SERVER_FAILURE
                    }
                };
                self.reply(id, client, &query.refuse(refusal));
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
            Some((zone, strip_domain(name, &domain)?.to_owned()))
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

    /// Asks the first server; `false` = there is none.
    fn pass_on(
        &mut self,
        id: &NetworkId,
        client: SocketAddr,
        packet: &[u8],
        now: Duration,
    ) -> io::Result<bool> {
        let servers = self.upstream_servers(id);
        let Some(server) = servers.first() else { return Ok(false) };
        let slot = self.pending.iter().position(Option::is_none);
        let slot = slot.ok_or_else(|| io::Error::other("too many queries are under way"))?;
        let mut number = [0; 2];
        random::fill(&mut number)?;
        let number = u16::from_ne_bytes(number);
        let mut query = packet.to_vec();
        let client_id = packet::id(&query);
        packet::set_id(&mut query, number);
        let socket = self.ask(slot, *server, &query)?;
        packet::set_id(&mut query, client_id);
        self.pending[slot] = Some(Pending {
            socket,
            zone: id.clone(),
            client,
            query,
            id: number,
            servers,
            next_server: 1,
            try_next: now + TRY_NEXT,
            give_up: now + GIVE_UP,
        });
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
        }
        servers
    }

    fn take_upstream(&mut self, slot: usize) {
        let Some(Some(pending)) = self.pending.get(slot) else { return };
        let mut buffer = [0; DATAGRAM];
        loop {
            let length = match pending.socket.recv(&mut buffer) {
                Ok(length) => length,
                Err(err) if err.kind() == io::ErrorKind::WouldBlock => return,
                // Port unreachable: the next server is asked at once.
                Err(_) => return self.ask_next_now(slot),
            };
            let question = packet::parse(&pending.query).map(|query| query.question);
            let fits = question.is_ok_and(|q| packet::answers(&buffer[..length], pending.id, q));
            if fits {
                packet::set_id(&mut buffer, packet::id(&pending.query));
                self.reply(&pending.zone, pending.client, &buffer[..length]);
                self.pending[slot] = None;
                return;
            }
        }
    }

    fn ask_next_now(&mut self, slot: usize) {
        if let Some(Some(pending)) = self.pending.get_mut(slot) {
            pending.try_next = Duration::ZERO;
        }
    }

    /// When `tick` has something to do; zero = at once.
    pub(super) fn next_deadline(&self) -> Option<Duration> {
        if !self.backlog.is_empty() {
            return Some(Duration::ZERO);
        }
        self.pending.iter().flatten().map(|pending| pending.try_next.min(pending.give_up)).min()
    }

    /// Goes on with full sockets and asks the next server where one was silent.
    pub(super) fn tick(&mut self, now: Duration) {
        for token in std::mem::take(&mut self.backlog) {
            self.ready(token, now);
        }
        for slot in 0..MAX_PENDING {
            let due = |pending: &Pending| pending.try_next <= now || pending.give_up <= now;
            if self.pending[slot].as_ref().is_some_and(due)
                && let Some(pending) = self.pending[slot].take()
            {
                self.go_on(slot, pending, now);
            }
        }
    }

    fn go_on(&mut self, slot: usize, mut pending: Pending, now: Duration) {
        let server = pending.servers.get(pending.next_server).copied();
        let Some(server) = server.filter(|_| now < pending.give_up) else {
            // The last server may still answer until the end.
            if now < pending.give_up && pending.try_next != Duration::ZERO {
                pending.try_next = pending.give_up;
                self.pending[slot] = Some(pending);
            } else {
                self.answer_without_servers(&pending);
            }
            return;
        };
        pending.next_server += 1;
        pending.try_next = now + TRY_NEXT;
        let client_id = packet::id(&pending.query);
        packet::set_id(&mut pending.query, pending.id);
        match self.ask(slot, server, &pending.query) {
            Ok(socket) => pending.socket = socket,
            Err(err) => {
                debug!("name server cannot be asked server={server} err={err}");
                pending.try_next = Duration::ZERO;
            }
        }
        packet::set_id(&mut pending.query, client_id);
        self.pending[slot] = Some(pending);
    }

    /// All servers are silent: perhaps the node of the CM restarts. The name may be one of another
    /// network of this node; else the query has failed.
    fn answer_without_servers(&self, pending: &Pending) {
        let Ok(query) = packet::parse(&pending.query) else { return };
        let mut zones = self.zones.values();
        let address = zones.find_map(|zone| zone.names.get(query.name.as_str()).copied());
        let response = match address {
            Some(address) => {
                let wanted = query.kind == packet::TYPE_A;
                query.answer(wanted.then_some(Answer::Address(address)).as_ref())
            }
            None => query.refuse(packet::SERVER_FAILURE),
        };
        if address.is_none() {
            warn!("no name server answers network={} name={}", pending.zone, query.name);
        }
        self.reply(&pending.zone, pending.client, &response);
    }
}

/// What stands before the domain; the domain itself is an empty name in it.
fn strip_domain<'a>(name: &'a str, domain: &str) -> Option<&'a str> {
    let rest = name.strip_suffix(domain)?;
    if rest.is_empty() { Some(rest) } else { rest.strip_suffix('.') }
}

/// A socket that hears only what comes over the bridge.
fn listen(bridge: &LinkName, address: Ipv4Addr) -> io::Result<UdpSocket> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket: OwnedFd = socket(AddressFamily::Inet, SockType::Datagram, flags, None)?;
    setsockopt(&socket, sockopt::ReuseAddr, &true)?;
    setsockopt(&socket, sockopt::BindToDevice, &OsString::from(bridge.as_str()))?;
    let [a, b, c, d] = address.octets();
    bind(socket.as_raw_fd(), &SockaddrIn::new(a, b, c, d, PORT))?;
    Ok(socket.into())
}
