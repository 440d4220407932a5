//! Somebody in the network of a test, who connects, listens and is looked at.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use super::super::Error;
use super::super::channel::Channel;
use super::super::rtnl::{self, Link, LinkAddress};
use super::super::wire::Messages;
use super::rig::{PATIENCE, Rig, SILENCE};
use crate::sys::netlink::Family;

/// A place in the network from which connections are made.
pub(super) struct Peer<'a> {
    pub(super) rig: &'a Rig,
    pub(super) name: Option<String>,
}

impl Peer<'_> {
    pub(super) fn inside<T>(&self, act: impl FnOnce() -> T) -> T {
        match &self.name {
            Some(name) => self.rig.host.enter(name, act).unwrap(),
            None => act(),
        }
    }

    /// Content of a file that differs from namespace to namespace, if there is one.
    pub(super) fn file(&self, path: &str) -> Option<String> {
        self.inside(|| std::fs::read_to_string(path)).ok()
    }

    pub(super) fn writes(&self, path: &str, text: &str) -> io::Result<()> {
        self.inside(|| crate::sys::fs::write_existing(Path::new(path), text))
    }

    /// Changes links there.
    pub(super) fn changes(&self, write: impl FnOnce(&mut Messages)) -> Result<(), Error> {
        let mut channel = self.inside(|| Channel::open(Family::Route)).unwrap();
        let mut messages = Messages::new();
        write(&mut messages);
        channel.execute(&mut messages)
    }

    /// Runs a program there.
    pub(super) fn runs(&self, command: &mut Command) -> std::process::Output {
        let child = self.inside(|| command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn());
        child.unwrap().wait_with_output().unwrap()
    }

    pub(super) fn listen(&self, port: u16) -> TcpListener {
        self.inside(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))).unwrap()
    }

    pub(super) fn udp(&self, address: SocketAddr) -> UdpSocket {
        self.inside(|| UdpSocket::bind(address)).unwrap()
    }

    /// Connects to a service that somebody else has just opened at `target`; returns the address
    /// that it saw.
    pub(super) fn reaches(&self, target: &Peer<'_>, address: Ipv4Addr) -> io::Result<Ipv4Addr> {
        self.reaches_port(target, address, self.rig.take_port())
    }

    pub(super) fn reaches_port(
        &self,
        target: &Peer<'_>,
        address: Ipv4Addr,
        port: u16,
    ) -> io::Result<Ipv4Addr> {
        let listener = target.listen(port);
        let socket = SocketAddr::from((address, port));
        self.inside(|| TcpStream::connect_timeout(&socket, PATIENCE))?;
        match listener.accept()?.1 {
            SocketAddr::V4(seen) => Ok(*seen.ip()),
            SocketAddr::V6(_) => Err(io::ErrorKind::AddrNotAvailable.into()),
        }
    }

    /// Connects to what somebody listens at.
    pub(super) fn open(&self, address: Ipv4Addr, port: u16) -> io::Result<TcpStream> {
        let socket = SocketAddr::from((address, port));
        self.inside(|| TcpStream::connect_timeout(&socket, PATIENCE))
    }

    /// No connection comes about.
    pub(super) fn is_cut_off_from(&self, target: &Peer<'_>, address: Ipv4Addr, port: u16) {
        let _listener = target.listen(port);
        let socket = SocketAddr::from((address, port));
        let connected = self.inside(|| TcpStream::connect_timeout(&socket, SILENCE));
        assert!(connected.is_err(), "{socket} is reached");
    }

    pub(super) fn reaches6(&self, target: &Peer<'_>, address: &str) -> bool {
        self.connects6(target, address, PATIENCE)
    }

    pub(super) fn is_cut_off_from6(&self, target: &Peer<'_>, address: &str) {
        assert!(!self.connects6(target, address, SILENCE), "{address} is reached");
    }

    fn connects6(&self, target: &Peer<'_>, address: &str, limit: Duration) -> bool {
        let listener = target.inside(|| TcpListener::bind((Ipv6Addr::UNSPECIFIED, 0))).unwrap();
        let port = listener.local_addr().unwrap().port();
        let socket = SocketAddr::from((address.parse::<Ipv6Addr>().unwrap(), port));
        self.inside(|| TcpStream::connect_timeout(&socket, limit)).is_ok()
    }

    /// A connection and its other end.
    pub(super) fn connect(&self, target: &Peer<'_>, address: Ipv4Addr) -> Pair {
        let port = self.rig.take_port();
        let listener = target.listen(port);
        let socket = SocketAddr::from((address, port));
        let client = self.inside(|| TcpStream::connect_timeout(&socket, PATIENCE)).unwrap();
        Pair(client, listener.accept().unwrap().0)
    }

    pub(super) fn add_address(&self, address: LinkAddress) {
        let mut channel = self.inside(|| Channel::open(Family::Route)).unwrap();
        let mut messages = Messages::new();
        rtnl::new_address(&mut messages, &address, Ipv4Addr::BROADCAST);
        channel.execute(&mut messages).unwrap();
    }

    pub(super) fn addresses(&self) -> Vec<LinkAddress> {
        self.inside(|| rtnl::addresses(&mut Channel::open(Family::Route).unwrap())).unwrap()
    }

    pub(super) fn routes(&self) -> Vec<rtnl::Route> {
        self.inside(|| rtnl::routes(&mut Channel::open(Family::Route).unwrap())).unwrap()
    }

    pub(super) fn links(&self) -> Vec<Link> {
        self.inside(|| rtnl::links(&mut Channel::open(Family::Route).unwrap())).unwrap()
    }
}

/// Both ends of a connection.
pub(super) struct Pair(TcpStream, TcpStream);

impl Pair {
    pub(super) fn new(from: TcpStream, to: TcpStream) -> Self {
        Self(from, to)
    }

    pub(super) fn split(self) -> (TcpStream, TcpStream) {
        (self.0, self.1)
    }

    /// Bytes go both ways.
    pub(super) fn works(&mut self) {
        for (from, to) in [(&self.0, &self.1), (&self.1, &self.0)] {
            let (mut from, mut to) = (from, to);
            to.set_read_timeout(Some(PATIENCE)).unwrap();
            from.write_all(b"ping").unwrap();
            let mut received = [0; 4];
            to.read_exact(&mut received).unwrap();
            assert_eq!(&received, b"ping");
        }
    }
}
