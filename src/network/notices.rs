//! What others do to links, routes and rules, and what the kernel reports by itself: a network whose
//! bridge was deleted is made again, a VLAN comes as soon as it can, rules that were flushed come
//! back at once, and core hears of a limit that was reached.
//!
//! Runs on the net thread, from its poll. Our own changes are announced, too; the kernel leaves most
//! of that out (`filter`). If the kernel had to drop announcements, everything is compared anew.

use std::io;
use std::os::fd::AsRawFd;
use std::time::Duration;

use libc::sock_filter;
use log::{error, warn};
use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};
use nix::errno::Errno;

use super::accounting::Gauge;
use super::domain::{Bridged, Domain, chain};
use super::error::Error;
use super::filter;
use super::listing::{self, Count};
use super::rtnl::{self, Index, LINK_GROUP, Link};
use super::rules::TABLE;
use super::vlans::Search;
use super::wire::{self, Messages};
use crate::model::id::NetworkId;
use crate::sys::is_errno;
use crate::sys::netlink::{Family, Netlink};

/// Tokens of the poll, far above those of the name server.
pub(super) const LINKS: Token = Token(usize::MAX - 1);
pub(super) const RULES: Token = Token(usize::MAX - 2);
/// Group of the kernel for nf_tables.
const RULE_GROUPS: [u32; 1] = [7];
/// Rules are made anew at once, then no more often than this: others may insist.
const REBUILD_PAUSE: Duration = Duration::from_secs(1);
/// Announcements are small; a batch of them is at most this large.
const RECEIVE_BYTES: usize = 32 * 1024;

/// The sockets on which the kernel announces changes.
#[derive(Debug)]
pub(super) struct Notices {
    links: Netlink,
    /// `None` = the firewall is switched off, or the kernel has none.
    rules: Option<Netlink>,
    /// Somebody changed our rules.
    pub(super) rules_changed: bool,
    rebuild_after: Duration,
    /// For the VLANs that are missing.
    pub(super) search: Search,
}

impl Notices {
    /// Begins to listen. `firewall`: port number of the socket that changes our rules, if there are
    /// any.
    pub(super) fn open(registry: &Registry, firewall: Option<u32>) -> Result<Self, Error> {
        let failed = |source| Error::Socket { operation: "listen to announcements", source };
        let listen = |family, groups: &[u32], filter: &[sock_filter], token| {
            let socket = Netlink::for_notices(family, groups)?;
            socket.filter(filter)?;
            registry.register(&mut SourceFd(&socket.as_raw_fd()), token, Interest::READABLE)?;
            Ok(socket)
        };
        let filter = rtnl::notice_filter();
        let links = listen(Family::Route, &rtnl::NOTICE_GROUPS, filter.as_ref(), LINKS);
        let links = links.map_err(failed)?;
        let rules = firewall.map(|own| {
            listen(Family::Netfilter, &RULE_GROUPS, &filter::without_sender(own), RULES)
        });
        let rules = rules.transpose().map_err(failed)?;
        let (rules_changed, rebuild_after) = (false, Duration::ZERO);
        Ok(Self { links, rules, rules_changed, rebuild_after, search: Search::default() })
    }

    /// When rules are to be made anew, or VLANs looked for.
    pub(super) fn next_deadline(&self) -> Option<Duration> {
        let rules = self.rules_changed.then_some(self.rebuild_after);
        rules.into_iter().chain(self.search.next_deadline()).min()
    }
}

/// What has come in.
struct Heard<T> {
    notices: Vec<T>,
    /// The kernel dropped some.
    lost: bool,
}

/// Reads until nothing is left.
fn hear<T>(
    socket: &Netlink,
    mut parse: impl FnMut(&wire::Message<'_>) -> Option<T>,
) -> io::Result<Heard<T>> {
    let mut heard = Heard { notices: Vec::new(), lost: false };
    let mut buffer = [0; RECEIVE_BYTES];
    loop {
        match socket.receive(&mut buffer) {
            Ok(length) => {
                heard.notices.extend(wire::messages(&buffer[..length]).filter_map(|m| parse(&m)));
            }
            Err(err) if err.kind() == io::ErrorKind::WouldBlock => return Ok(heard),
            Err(err) if is_errno(&err, Errno::ENOBUFS) => heard.lost = true,
            Err(err) => return Err(err),
        }
    }
}

impl Domain {
    /// The socket for rules is readable.
    pub(super) fn hear_rules(&mut self, now: Duration) {
        let Some(socket) = &self.notices.rules else { return };
        let heard = match hear(socket, listing::parse_notice) {
            Ok(heard) => heard,
            Err(err) => return error!("cannot hear of firewall changes err={err}"),
        };
        let mut limit_reached = false;
        for notice in heard.notices {
            match notice {
                listing::Notice::Deleted { table } if table == TABLE => {
                    self.notices.rules_changed = true;
                }
                listing::Notice::Counted { table, object, count: Count::Quota { limit, .. } }
                    if table == TABLE =>
                {
                    limit_reached |= report_limit(&object, limit);
                }
                _ => {}
            }
        }
        // Making many rules anew is announced in so many words that some are lost; that is no
        // reason to do it again.
        if heard.lost && !self.firewall.is_settled() {
            warn!("announcements of firewall changes were lost; making the rules anew");
            self.notices.rules_changed = true;
        }
        if limit_reached {
            self.store_all_traffic();
        }
        self.restore_rules(now);
    }

    /// Makes the rules anew if somebody changed them.
    pub(super) fn restore_rules(&mut self, now: Duration) {
        if !self.notices.rules_changed || now < self.notices.rebuild_after {
            return;
        }
        self.notices.rules_changed = false;
        self.notices.rebuild_after = now + REBUILD_PAUSE;
        warn!("firewall rules were changed by somebody else; making them anew");
        if let Err(err) = self.firewall.rebuild() {
            error!("cannot install firewall rules err={}", chain(&err));
            self.notices.rules_changed = true;
        }
    }

    /// The socket for links and routes is readable.
    pub(super) fn hear_links(&mut self, now: Duration) {
        let heard = match hear(&self.notices.links, rtnl::parse_notice) {
            Ok(heard) => heard,
            Err(err) => return error!("cannot hear of link changes err={err}"),
        };
        let mut way_out = false;
        for notice in heard.notices {
            match notice {
                rtnl::Notice::LinkGone { index, ours } => {
                    way_out |= !ours;
                    self.link_gone(index);
                }
                // Hardly ever of ours (`rtnl::notice_filter`).
                rtnl::Notice::Link(link) => {
                    way_out = true;
                    self.link_changed(&link);
                }
                rtnl::Notice::DefaultRoute => way_out = true,
            }
        }
        if heard.lost {
            warn!("announcements of link changes were lost; comparing all links");
            self.compare_links();
            way_out = true;
        }
        if way_out {
            self.way_out_changed(now);
        }
        self.raise_doubtful(now);
    }

    fn link_gone(&mut self, index: Index) {
        self.fading_gone(index);
        for network in self.networks.values_mut() {
            let Some(standing) = &network.standing else { continue };
            if standing.index == index || standing.vlan == Some(index) {
                warn!("link of network is gone; making it anew network={}", network.wanted.id);
                network.standing = None;
            }
        }
        for (id, instance) in &mut self.instances {
            if let Some(wired) = instance.wired.as_mut().filter(|wired| wired.veth == index) {
                warn!("somebody deleted the link of an instance; making it anew instance={id}");
                wired.is_lost = true;
            }
        }
    }

    fn compare_links(&mut self) {
        match rtnl::links(&mut self.links) {
            Ok(links) => {
                let gone: Vec<Index> = self
                    .known_links()
                    .into_iter()
                    .filter(|index| !links.iter().any(|link| link.index == *index))
                    .collect();
                gone.into_iter().for_each(|index| self.link_gone(index));
                links.iter().for_each(|link| self.link_changed(link));
            }
            Err(err) => error!("cannot list links err={}", chain(&err)),
        }
    }

    fn link_changed(&mut self, link: &Link) {
        self.keep_group(link);
        self.follow_mtu(link);
    }

    /// The rules know bridges by their group.
    fn keep_group(&mut self, link: &Link) {
        let mut standing = self.networks.values().filter_map(|network| network.standing.as_ref());
        if link.group == LINK_GROUP || !standing.any(|standing| standing.index == link.index) {
            return;
        }
        warn!("bridge was put into another group; putting it back bridge={}", link.name);
        let mut messages = Messages::new();
        rtnl::set_group(&mut messages, link.index, LINK_GROUP);
        if let Err(err) = self.links.execute(&mut messages) {
            error!("cannot put bridge back into its group err={}", chain(&err));
        }
    }

    /// Another MTU of the parent of a VLAN: frames between nodes must not vanish in it.
    fn follow_mtu(&mut self, link: &Link) {
        let concerned = self.networks.iter().filter_map(|(id, network)| {
            let standing = network.standing.as_ref()?;
            (standing.parent == Some(link.index) && standing.mtu != link.mtu).then(|| id.clone())
        });
        let concerned: Vec<NetworkId> = concerned.collect();
        for id in concerned {
            self.set_mtu(&id, link.mtu);
        }
    }

    /// Makes networks anew that do not stand, and links that somebody deleted.
    pub(super) fn raise_doubtful(&mut self, now: Duration) {
        let due = |network: &Bridged| network.standing.is_none() && network.retry_at <= now;
        let doubtful = self.networks.iter().filter(|(_, network)| due(network));
        let doubtful: Vec<NetworkId> = doubtful.map(|(id, _)| id.clone()).collect();
        for id in doubtful {
            if let Err(err) = self.raise_network(&id) {
                warn!("cannot set up network network={id} err={}", chain(&err));
                if let Some(network) = self.networks.get_mut(&id) {
                    network.put_off(now);
                }
            }
        }
        self.rewire_lost();
    }
}

/// Says who has reached a limit; false = the object is no limit of ours.
fn report_limit(object: &str, limit_bytes: u64) -> bool {
    for (gauge, direction) in [(Gauge::DownloadLimit, "download"), (Gauge::UploadLimit, "upload")] {
        if let Some(id) = gauge.owner(object) {
            warn!("traffic limit reached instance={id} direction={direction} limit={limit_bytes}");
            return true;
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::NetworkSettings;
    use super::super::channel::Channel;
    use super::super::naming::LinkName;
    use super::super::rtnl::NewBridge;
    use super::*;
    use crate::model::desired::NetworkParams;
    use crate::sys::mount::{isolate, tmpfs};
    use crate::sys::thread::spawn_sized;

    /// More announcements than a socket of 2 MiB holds.
    const FLOOD: u32 = 4000;

    #[test]
    fn lost_announcements_are_noticed() {
        let thread = spawn_sized("notices-test", 512 * 1024, || {
            if isolate().and_then(|()| tmpfs(Path::new("/run"), None, 0o755)).is_err() {
                println!("SKIP lost_announcements_are_noticed: needs CAP_NET_ADMIN");
                return;
            }
            let socket = Netlink::for_notices(Family::Route, &rtnl::NOTICE_GROUPS).unwrap();
            let mut channel = Channel::open(Family::Route).unwrap();
            let mut messages = Messages::new();
            let name = &LinkName::try_from("br-flood").unwrap();
            rtnl::new_bridge(
                &mut messages,
                &NewBridge { index: 500, name, mac: [2; 6], mtu: 1500 },
            );
            channel.execute(&mut messages).unwrap();
            let heard = hear(&socket, rtnl::parse_notice).unwrap();
            assert!(!heard.lost);
            let new = heard.notices.iter().any(
                |notice| matches!(notice, rtnl::Notice::Link(link) if link.name == "br-flood"),
            );
            assert!(new, "{:?}", heard.notices);
            for round in 0..FLOOD {
                let mut messages = Messages::new();
                rtnl::set_mtu(&mut messages, 500, 1400 + round % 2);
                channel.execute(&mut messages).unwrap();
            }
            assert!(hear(&socket, rtnl::parse_notice).unwrap().lost);
            // It is said once, and hearing goes on.
            let mut messages = Messages::new();
            rtnl::delete_link(&mut messages, 500);
            channel.execute(&mut messages).unwrap();
            let heard = hear(&socket, rtnl::parse_notice).unwrap();
            let gone = rtnl::Notice::LinkGone { index: 500, ours: true };
            assert!(heard.notices.contains(&gone) && !heard.lost);
        });
        thread.unwrap().join().unwrap();
    }

    /// What was not announced is found by comparing.
    #[test]
    fn lost_announcements_are_made_up_for() {
        let thread = spawn_sized("compare-test", 1024 * 1024, || {
            if isolate().and_then(|()| tmpfs(Path::new("/run"), None, 0o755)).is_err() {
                println!("SKIP lost_announcements_are_made_up_for: needs CAP_NET_ADMIN");
                return;
            }
            let poll = mio::Poll::new().unwrap();
            let settings = NetworkSettings { firewall: false, ..NetworkSettings::default() };
            let registry = poll.registry().try_clone().unwrap();
            let mut domain = Domain::open(settings, registry).unwrap();
            domain.start();
            let list = ["172.17", "172.18"].map(|net| NetworkParams {
                id: NetworkId::new(net),
                subnet: format!("{net}.0.0/16"),
                ip: format!("{net}.0.1"),
                vlan_id: 0,
            });
            assert!(domain.update_networks(&list).is_empty());
            let mut channel = Channel::open(Family::Route).unwrap();
            let names = |channel: &mut Channel| -> Vec<(String, Index)> {
                let links = rtnl::links(channel).unwrap().into_iter();
                links.filter(|l| l.kind == "bridge").map(|l| (l.name, l.index)).collect()
            };
            let before = names(&mut channel);
            assert_eq!(before.len(), 2);
            let mut messages = Messages::new();
            rtnl::delete_link(&mut messages, before[0].1);
            channel.execute(&mut messages).unwrap();
            while domain.notices.links.receive(&mut [0; RECEIVE_BYTES]).is_ok() {}
            domain.compare_links();
            domain.raise_doubtful(Duration::ZERO);
            let after = names(&mut channel);
            assert_eq!(after.len(), 2);
            // The one that was there is the same.
            assert!(after.contains(&before[1]) && !after.contains(&before[0]), "{after:?}");
        });
        thread.unwrap().join().unwrap();
    }

    /// Others change what is listed all the time: a list has everything that stays.
    #[test]
    fn interrupted_lists_are_repeated() {
        let thread = spawn_sized("lists-test", 512 * 1024, || {
            if isolate().is_err() {
                println!("SKIP interrupted_lists_are_repeated: needs CAP_NET_ADMIN");
                return;
            }
            let address = |last: u32| rtnl::LinkAddress {
                index: rtnl::LOOPBACK_INDEX,
                address: std::net::Ipv4Addr::from_bits(0x0a00_0000 + last),
                prefix: 32,
            };
            let mut channel = Channel::open(Family::Route).unwrap();
            for last in 1..=600 {
                let mut messages = Messages::new();
                let new = address(last);
                rtnl::new_address(&mut messages, &new, new.address);
                channel.execute(&mut messages).unwrap();
            }
            let mut other = Channel::open(Family::Route).unwrap();
            let (stop, stopped) = crossbeam::channel::bounded::<()>(0);
            let churn = crate::sys::thread::spawn("churn", move || {
                // Ends when the other end is dropped.
                while stopped.try_recv() == Err(crossbeam::channel::TryRecvError::Empty) {
                    let mut messages = Messages::new();
                    let passing = address(5000);
                    rtnl::new_address(&mut messages, &passing, passing.address);
                    rtnl::delete_address(&mut messages, &passing);
                    other.execute(&mut messages).unwrap();
                }
            });
            for _ in 0..50 {
                match rtnl::addresses(&mut channel) {
                    Ok(found) => {
                        let staying = found.iter().filter(|a| a.address < address(5000).address);
                        assert_eq!(staying.count(), 600);
                    }
                    // It was interrupted each time, and says so.
                    Err(Error::Kernel(refusal)) => assert_eq!(refusal.errno, Errno::EAGAIN),
                    Err(err) => panic!("{err}"),
                }
            }
            drop(stop);
            churn.unwrap().join().unwrap();
        });
        thread.unwrap().join().unwrap();
    }
}
