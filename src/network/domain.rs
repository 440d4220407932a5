//! State of all networks on this host, and what happens to it over time.
//!
//! Runs on the net thread. `networks` and `instances` are what this life of the daemon has set up
//! or taken over; `left` is what it found in the kernel at its start and nobody has claimed yet.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::time::Duration;

use log::{debug, error, info, warn};
use mio::Registry;
use nix::errno::Errno;

use super::accounting::LocalNetworks;
use super::attach::{Inside, Place};
use super::caps::NetCaps;
use super::channel::Channel;
use super::dns::Dns;
use super::ending::{self, Ending};
use super::error::Error;
use super::firewall::{Firewall, Share};
use super::names;
use super::naming::{self, LinkName};
use super::notices::Notices;
use super::plan::Wanted;
use super::reference;
use super::rtnl::{self, Index, Link};
use super::rules::{self, Entry, Policy};
use super::settings::NetworkSettings;
use super::traffic::{Ledger, Owner};
use super::wire::Messages;
use crate::model::event::Event;
use crate::model::id::{InstanceId, InstanceIdent, NetworkId};
use crate::model::store::NetworkLinks;
use crate::sys::netlink::Family;
use crate::sys::netns::{self, HostNs};
use crate::sys::time::monotonic;

/// Our interfaces have indices that the kernel does not give out by itself, so that one send can
/// create a link and name it in the messages that follow.
const FIRST_INDEX: Index = 1_000_000;
/// Interface index of `eth0` in a new namespace.
pub(super) const PEER_INDEX: Index = 2;
/// A network that cannot be set up is tried again with growing pauses.
const RAISE_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(300);
/// The kernel takes a veth apart some 50 ms after its namespace; if it has not by then, something
/// holds the namespace and the link is deleted.
const FADE_TIME: Duration = ending::LONGEST.saturating_add(Duration::from_secs(2));

/// Everything on the host that has to do with networks.
#[derive(Debug)]
pub(super) struct Domain {
    pub(super) settings: NetworkSettings,
    pub(super) host: HostNs,
    pub(super) links: Channel,
    pub(super) firewall: Firewall,
    pub(super) dns: Dns,
    pub(super) notices: Notices,
    pub(super) ledger: Ledger,
    /// When the counters were read last.
    pub(super) counted_at: Duration,
    /// A period has ended, and the counters of the kernel still go on.
    pub(super) reset_due: bool,
    /// News for core.
    pub(super) outbox: Vec<Event>,
    pub(super) networks: BTreeMap<NetworkId, Bridged>,
    /// Networks that the CM lists with nonsense, and what it is.
    pub(super) refused: BTreeMap<NetworkId, String>,
    pub(super) instances: BTreeMap<InstanceId, Attached>,
    /// Interfaces of networks under names of an earlier service manager.
    pub(super) stored_links: BTreeMap<NetworkId, NetworkLinks>,
    pub(super) left: Left,
    pub(super) peer_index: Index,
    pub(super) ipv6: bool,
    pub(super) generation: u16,
    pub(super) caps: NetCaps,
    /// What was said about missing features.
    pub(super) said: BTreeSet<String>,
    /// A test wants to see what happens without some features.
    #[cfg(test)]
    pub(super) pretended: Option<NetCaps>,
    /// How far the wall clock of a test is ahead, in milliseconds.
    #[cfg(test)]
    pub(super) ahead_ms: std::sync::Arc<std::sync::atomic::AtomicI64>,
    next_index: Index,
    /// Cut off links that the kernel is about to delete.
    fading: Vec<(Index, Duration)>,
    pub(super) ending: Ending,
    /// A namespace for the next instance, and when another one may be made.
    pub(super) spare: Option<Inside>,
    pub(super) spare_after: Duration,
    /// Addresses that were given up, of which the kernel still has connections.
    pub(super) stale_flows: Vec<Ipv4Addr>,
}

/// A network of this node.
#[derive(Clone, Debug)]
pub(super) struct Bridged {
    pub(super) wanted: Wanted,
    pub(super) role: Role,
    /// `None`: it could not be set up yet and is tried again.
    pub(super) standing: Option<Standing>,
    /// It could not be set up, which core was told or will be.
    pub(super) failed: bool,
    /// Not before then without being asked: a failed attempt is announced by the kernel, too.
    pub(super) retry_at: Duration,
    pub(super) pause: Duration,
}

impl Bridged {
    pub(super) fn new(wanted: Wanted, role: Role) -> Self {
        let (retry_at, pause) = (Duration::ZERO, Duration::ZERO);
        Self { wanted, role, standing: None, failed: false, retry_at, pause }
    }

    /// It failed once more.
    pub(super) fn put_off(&mut self, now: Duration) {
        self.pause = (self.pause * 2).clamp(RAISE_PAUSE, LONGEST_PAUSE);
        self.retry_at = now + self.pause;
    }
}

/// Why a network exists.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Role {
    /// The CM lists it.
    Listed,
    /// The CM never listed it, but an instance needed it.
    Implicit,
    /// No longer listed; goes with its last instance, at this time at the latest.
    Draining { until: Duration },
}

/// The links of a network.
#[derive(Clone, Debug)]
pub(super) struct Standing {
    pub(super) bridge: LinkName,
    pub(super) index: Index,
    pub(super) mtu: u32,
    pub(super) vlan: Option<Index>,
    /// Link that carries the VLAN.
    pub(super) parent: Option<Index>,
}

/// What an instance has.
#[derive(Clone, Debug)]
pub(super) struct Attached {
    pub(super) network: NetworkId,
    pub(super) ident: InstanceIdent,
    /// `None`: loopback only.
    pub(super) wired: Option<Wired>,
    /// By which the responder of its network knows it.
    pub(super) keys: Vec<Box<str>>,
    pub(super) dns_servers: Vec<IpAddr>,
    pub(super) etc_dir: PathBuf,
}

/// Link and address of an instance.
#[derive(Clone, Debug)]
pub(super) struct Wired {
    pub(super) address: Ipv4Addr,
    /// Where its default route leads.
    pub(super) gateway: Ipv4Addr,
    pub(super) veth: Index,
    /// Somebody deleted the link.
    pub(super) is_lost: bool,
    pub(super) share: Share,
    /// What the link lets through, kbit/s.
    pub(super) download_kbit: Option<u64>,
    pub(super) upload_kbit: Option<u64>,
}

impl Wired {
    pub(super) fn new(place: &Place, veth: Index, share: Share) -> Self {
        let Place { address, gateway, download_kbit, upload_kbit, .. } = *place;
        Self { address, gateway, veth, is_lost: false, share, download_kbit, upload_kbit }
    }
}

/// What an earlier life of the daemon left in the kernel.
#[derive(Debug, Default)]
pub(super) struct Left {
    pub(super) instances: BTreeMap<InstanceId, Vec<Link>>,
    pub(super) networks: BTreeMap<NetworkId, Vec<Link>>,
}

impl Domain {
    /// Opens sockets and the namespace of the host; changes nothing.
    pub(super) fn open(mut settings: NetworkSettings, registry: Registry) -> Result<Self, Error> {
        settings.hosts.retain(|host| {
            let checked = names::check_host(host);
            if let Err(err) = &checked {
                warn!("ignoring configured host err={err}");
            }
            checked.is_ok()
        });
        let host = HostNs::open()
            .map_err(|source| Error::Socket { operation: "open own network namespace", source })?;
        let policy = Policy {
            open_inbound: settings.open_inbound,
            police: false,
            polled: false,
            local: LocalNetworks::new(&settings.local_networks),
        };
        let firewall = Firewall::open(settings.firewall, policy)?;
        Ok(Self {
            host,
            links: Channel::open(Family::Route)?,
            notices: Notices::open(&registry, firewall.own_port())?,
            dns: Dns::new(registry, settings.dns_responder),
            firewall,
            ledger: Ledger::new(settings.traffic_period, settings.traffic_store_period),
            counted_at: Duration::ZERO,
            reset_due: false,
            outbox: Vec::new(),
            settings,
            networks: BTreeMap::new(),
            refused: BTreeMap::new(),
            instances: BTreeMap::new(),
            stored_links: BTreeMap::new(),
            left: Left::default(),
            peer_index: PEER_INDEX,
            ipv6: std::path::Path::new("/proc/sys/net/ipv6").exists(),
            generation: 0,
            caps: NetCaps::ALL,
            said: BTreeSet::new(),
            #[cfg(test)]
            pretended: None,
            #[cfg(test)]
            ahead_ms: Default::default(),
            next_index: FIRST_INDEX,
            fading: Vec::new(),
            ending: Ending::default(),
            spare: None,
            spare_after: Duration::ZERO,
            stale_flows: Vec::new(),
        })
    }

    /// Finds what is left of an earlier life and installs the rules. Errors are not fatal: what
    /// needs the missing part fails with its reason, and each attach tries again.
    pub(super) fn start(&mut self) {
        reference::sweep(&self.settings.working_dir);
        self.detect();
        if !self.caps.tbf {
            // Before the rules are installed, so that those of instances that run stay.
            self.police_speed();
        }
        if !self.caps.quota {
            self.poll_limits();
        }
        if let Err(err) = netns::prepare() {
            error!("cannot prepare {} err={err}", netns::DIR);
        }
        match rtnl::links(&mut self.links) {
            Ok(links) => self.find_left(links),
            Err(err) => error!("cannot list links err={err}"),
        }
        if let Err(err) = self.firewall.start(self.ledger.volume(&Owner::Node)) {
            self.degrade_for("instances get no network: cannot install firewall rules", &err);
        }
        self.store_traffic(monotonic());
    }

    fn find_left(&mut self, links: Vec<Link>) {
        for link in links {
            if let Some(id) = naming::instance_of_alias(&link.alias) {
                self.next_index = self.next_index.max(link.index + 1);
                self.left.instances.entry(id).or_default().push(link);
            } else if let Some(id) = naming::network_of_alias(&link.alias) {
                self.next_index = self.next_index.max(link.index + 1);
                self.left.networks.entry(id).or_default().push(link);
            }
        }
        let (instances, networks) = (self.left.instances.len(), self.left.networks.len());
        debug!("links of an earlier life instances={instances} networks={networks}");
    }

    pub(super) fn take_index(&mut self) -> Index {
        let index = self.next_index;
        self.next_index =
            index.checked_add(1).filter(|i| *i <= i32::MAX as u32).unwrap_or(FIRST_INDEX);
        index
    }

    /// Instances of which a namespace or a link exists. A namespace alone counts only if it has
    /// the name of an instance that also has a bundle: others make namespaces, too.
    pub(super) fn survey(&self) -> Vec<InstanceId> {
        let mut ids: BTreeSet<InstanceId> = self.left.instances.keys().cloned().collect();
        ids.extend(self.instances.keys().cloned());
        let bundles = self.settings.run_dir.join("runtime");
        match netns::list() {
            Ok(names) => ids.extend(
                names
                    .iter()
                    .filter(|name| naming::is_instance_id(name) && bundles.join(name).exists())
                    .map(|name| InstanceId::new(name)),
            ),
            Err(err) => error!("cannot list network namespaces err={err}"),
        }
        ids.into_iter().collect()
    }

    /// Removes what was left and claimed by nobody.
    pub(super) fn keep(&mut self, keep: &[InstanceId]) {
        // What belongs to nobody goes, but its traffic is remembered.
        self.count_traffic(monotonic());
        for id in self.survey() {
            if !keep.contains(&id) && !self.instances.contains_key(&id) {
                info!("removing network of a former instance instance={id}");
                if let Err(err) = self.detach(&id) {
                    error!(
                        "cannot remove network of a former instance instance={id} err={}",
                        chain(&err)
                    );
                }
            }
        }
        let networks: Vec<NetworkId> = self.networks.keys().cloned().collect();
        networks.iter().for_each(|id| self.remove_if_done(id));
        self.remove_left_networks();
        let mut wanted: BTreeSet<Entry> = BTreeSet::new();
        for standing in self.networks.values().filter_map(|network| network.standing.as_ref()) {
            wanted.extend(rules::network_entries(&standing.bridge));
        }
        for wired in self.instances.values().filter_map(|instance| instance.wired.as_ref()) {
            wanted.extend(wired.share.entries.iter().cloned());
        }
        let instances = self.instances.keys().cloned().collect();
        if let Err(err) = self.firewall.retain(&wanted, &instances) {
            error!("cannot remove firewall entries of former instances err={}", chain(&err));
        }
    }

    /// After the last instance for a long time: removes everything of ours.
    pub(super) fn clear(&mut self) {
        self.keep(&[]);
        self.spare = None;
        if let Err(err) = self.firewall.withdraw() {
            error!("cannot remove firewall rules err={}", chain(&err));
        }
        if let Err(err) = netns::give_up() {
            debug!("{} stays err={err}", netns::DIR);
        }
    }

    fn remove_left_networks(&mut self) {
        let left = std::mem::take(&mut self.left.networks);
        for (id, links) in left {
            let standing = self.networks.get(&id).and_then(|network| network.standing.as_ref());
            let used = |index| standing.is_some_and(|s| s.index == index || s.vlan == Some(index));
            let unused: Vec<Index> =
                links.iter().map(|link| link.index).filter(|index| !used(*index)).collect();
            if !unused.is_empty() {
                info!("removing links of a former network network={id}");
                self.delete_links(&unused);
            }
        }
    }

    /// Deletes links; errors are logged, a missing link is success.
    pub(super) fn delete_links(&mut self, indices: &[Index]) {
        for index in indices {
            let mut messages = Messages::new();
            rtnl::delete_link(&mut messages, *index);
            match self.links.execute(&mut messages) {
                Err(Error::Kernel(refusal)) if refusal.errno == Errno::ENODEV => {}
                Err(err) => error!("cannot delete link index={index} err={}", chain(&err)),
                Ok(()) => {}
            }
        }
    }

    /// The kernel is about to delete this link; looks after it later.
    pub(super) fn watch_fading(&mut self, index: Index) {
        self.fading.push((index, monotonic() + FADE_TIME));
    }

    /// The kernel has deleted a link.
    pub(super) fn fading_gone(&mut self, gone: Index) {
        self.fading.retain(|(index, _)| *index != gone);
    }

    /// Links whose end would be noticed.
    pub(super) fn known_links(&self) -> Vec<Index> {
        let standing = self.networks.values().filter_map(|network| network.standing.as_ref());
        let networks = standing.flat_map(|standing| [Some(standing.index), standing.vlan]);
        let wired = self.instances.values().filter_map(|instance| instance.wired.as_ref());
        let fading = self.fading.iter().map(|(index, _)| *index);
        networks.flatten().chain(wired.map(|wired| wired.veth)).chain(fading).collect()
    }

    /// When `tick` has something to do.
    pub(super) fn next_deadline(&self) -> Option<Duration> {
        let draining = self.networks.values().filter_map(|network| match network.role {
            Role::Draining { until } => Some(until),
            _ => None,
        });
        let doubtful = self.networks.values().filter(|network| network.standing.is_none());
        let draining = draining.chain(doubtful.map(|network| network.retry_at));
        let dns = self.dns.next_deadline();
        let traffic = self.traffic_deadline().into_iter().chain(self.notices.next_deadline());
        let ending = self.ending.deadline().into_iter().chain(self.spare_deadline());
        self.fading
            .iter()
            .map(|(_, at)| *at)
            .chain(ending)
            .chain(draining)
            .chain(dns)
            .chain(traffic)
            .min()
    }

    /// Does what is due.
    pub(super) fn tick(&mut self, now: Duration) {
        let due = |at: &Duration| *at <= now;
        if !self.next_deadline().is_some_and(|at| due(&at)) {
            return;
        }
        self.dns.tick(now);
        // First: whoever makes a namespace waits while the kernel takes others apart.
        self.make_spare(now);
        self.ending.tick(now);
        self.restore_rules(now);
        self.seek_vlans(now);
        self.raise_doubtful(now);
        if self.traffic_deadline().is_some_and(|at| due(&at)) {
            self.store_traffic(now);
        }
        let (gone, fading) = self.fading.drain(..).partition(|(_, at)| due(at));
        self.fading = fading;
        let gone: Vec<(Index, Duration)> = gone;
        self.delete_links(&gone.iter().map(|(index, _)| *index).collect::<Vec<_>>());
        let drained: Vec<NetworkId> = self
            .networks
            .iter()
            .filter(|(_, network)| matches!(network.role, Role::Draining { until } if until <= now))
            .map(|(id, _)| id.clone())
            .collect();
        for id in drained {
            warn!("removed network still has instances; detaching them network={id}");
            self.remove_network(&id);
        }
    }
}

/// An error with its causes, for the log.
pub(super) fn chain(error: &Error) -> String {
    crate::model::status::chain(error)
}
