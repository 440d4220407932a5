//! Networks: bridge, address, VLAN, and their changes when the CM sends another list.
//!
//! Runs on the net thread. A network that the CM no longer lists lives on until its last instance
//! has gone, so that services can still talk while they terminate. A failure of one network never
//! stops the others; it is tried again with the next list and with the next attach.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::Path;
use std::time::Duration;

use log::{error, info, warn};
use nix::errno::Errno;

use super::domain::{Bridged, Domain, Role, Standing, chain};
use super::error::Error;
use super::firewall::Share;
use super::naming::{self, LinkName};
use super::plan::{self, Subnet, Wanted};
use super::rtnl::{self, Index, LINK_GROUP, Link, LinkAddress, NewBridge, NewVlan, Route};
use super::rules;
use super::wire::Messages;
use crate::model::desired::NetworkParams;
use crate::model::event::Event;
use crate::model::id::NetworkId;
use crate::model::store::NetworkLinks;
use crate::sys;
use crate::sys::time::monotonic;

/// Collisions of names or indices before a creation is given up.
pub(super) const LINK_ATTEMPTS: u32 = 16;
const ETHERNET_MTU: u32 = 1500;
const IP_FORWARD: &str = "/proc/sys/net/ipv4/ip_forward";

/// The links of the host at one moment.
#[derive(Debug)]
pub(super) struct View {
    links: Vec<Link>,
    addresses: Vec<LinkAddress>,
    routes: Vec<Route>,
}

impl Domain {
    /// Makes the list the set of networks; returns those that could not be set up.
    pub(super) fn update_networks(&mut self, list: &[NetworkParams]) -> Vec<(NetworkId, Error)> {
        let stands = |new: &Wanted| {
            let known = self.networks.get(&new.id);
            known.is_some_and(|known| known.standing.is_some() && known.wanted.subnet == new.subnet)
        };
        let (wanted, mut failed) = plan::check_networks(list, stands);
        for (id, err) in &failed {
            // No error: core makes the alert.
            warn!("ignoring network network={id} err={}", chain(err));
        }
        self.refused = failed.iter().map(|(id, err)| (id.clone(), chain(err))).collect();
        // Also an invalid entry names its network: what stands is not torn down for it.
        let listed: BTreeMap<&NetworkId, ()> = list.iter().map(|params| (&params.id, ())).collect();
        self.retire(|id| !listed.contains_key(id), &wanted);
        // First: others may want the addresses that these give up.
        for network in &wanted {
            let known = self.networks.get(&network.id);
            if known.is_some_and(|known| known.wanted.subnet != network.subnet) {
                self.remove_network(&network.id);
            }
        }
        for network in wanted {
            let id = network.id.clone();
            if let Err(err) = self.set_network(network) {
                warn!("cannot set up network network={id} err={}", chain(&err));
                failed.push((id, err));
            }
        }
        failed
    }

    /// Lets go of the networks that are no longer listed.
    fn retire(&mut self, unlisted: impl Fn(&NetworkId) -> bool, wanted: &[Wanted]) {
        let until = monotonic() + self.settings.drain_timeout;
        let ids: Vec<NetworkId> = self.networks.keys().filter(|id| unlisted(id)).cloned().collect();
        for id in ids {
            if !self.is_in_use(&id) || wanted.iter().any(|new| self.is_needed(&id, new)) {
                self.remove_network(&id);
            } else if let Some(network) = self.networks.get_mut(&id)
                && !matches!(network.role, Role::Draining { .. })
            {
                info!("network is no longer listed; it goes with its last instance network={id}");
                network.role = Role::Draining { until };
            }
        }
    }

    /// Networks that are no longer listed and still have instances.
    pub(super) fn draining(&self) -> Vec<NetworkId> {
        let is_draining = |network: &&Bridged| matches!(network.role, Role::Draining { .. });
        let draining = self.networks.values().filter(is_draining);
        draining.map(|network| network.wanted.id.clone()).collect()
    }

    /// Some instance has its link there, or had it in an earlier life and may be adopted yet.
    fn is_in_use(&self, id: &NetworkId) -> bool {
        let standing = self.networks.get(id).and_then(|network| network.standing.as_ref());
        let left = |link: &Link| standing.is_some_and(|standing| standing.index == link.master);
        self.instances.values().any(|instance| instance.network == *id)
            || self.left.instances.values().flatten().any(left)
    }

    /// A network that is new or changes wants addresses or the VLAN of this one.
    fn is_needed(&self, id: &NetworkId, new: &Wanted) -> bool {
        let Some(old) = self.networks.get(id) else { return false };
        let is_unchanged = self.networks.get(&new.id).is_some_and(|known| known.wanted == *new);
        let has_vlan = old.standing.as_ref().is_some_and(|standing| standing.vlan.is_some());
        let wants_vlan = new.wants_vlan() && new.vlan_id == old.wanted.vlan_id;
        !is_unchanged && (new.subnet.overlaps(&old.wanted.subnet) || (has_vlan && wants_vlan))
    }

    /// Creates a network or changes it to what is wanted; its subnet is the same.
    fn set_network(&mut self, wanted: Wanted) -> Result<(), Error> {
        let id = wanted.id.clone();
        if let Some(known) = self.networks.get_mut(&id) {
            known.role = Role::Listed;
            if known.standing.is_some() {
                return if known.wanted == wanted { Ok(()) } else { self.change_network(wanted) };
            }
        }
        info!("new network network={id} subnet={} address={}", wanted.subnet, wanted.gateway);
        self.networks.insert(id.clone(), Bridged::new(wanted, Role::Listed));
        self.raise_network(&id).map(|_| ())
    }

    /// Another VLAN or another address of the node in the same subnet.
    fn change_network(&mut self, wanted: Wanted) -> Result<(), Error> {
        let id = wanted.id.clone();
        let Some(known) = self.networks.get_mut(&id) else { return Ok(()) };
        let old = std::mem::replace(&mut known.wanted, wanted);
        let Some(mut standing) = known.standing.take() else { return Ok(()) };
        info!(
            "network changes network={id} address={} vlan={}",
            known.wanted.gateway, known.wanted.vlan_id
        );
        let wanted = known.wanted.clone();
        if old.vlan_id != wanted.vlan_id {
            self.delete_links(&standing.vlan.take().into_iter().collect::<Vec<_>>());
        }
        // From here on a failure leaves the network to be raised again.
        self.raise_network(&id).map(|_| ())
    }

    /// Makes sure that a network stands, with the instances that are in it; returns its links. Core
    /// hears if it could not be set up before.
    pub(super) fn raise_network(&mut self, id: &NetworkId) -> Result<Standing, Error> {
        if let Some(standing) = self.networks.get(id).and_then(|known| known.standing.as_ref()) {
            return Ok(standing.clone());
        }
        let result = self.build_network(id);
        if let Ok(standing) = &result {
            self.rejoin(id, standing);
        }
        if let Some(network) = self.networks.get_mut(id)
            && std::mem::replace(&mut network.failed, result.is_err())
            && result.is_ok()
        {
            info!("network stands now network={id}");
            self.outbox.push(Event::NetworkReady(id.clone()));
        }
        result
    }

    fn build_network(&mut self, id: &NetworkId) -> Result<Standing, Error> {
        let Some(network) = self.networks.get(id) else {
            return Err(Error::Vanished("network"));
        };
        let wanted = network.wanted.clone();
        self.check_others(&wanted)?;
        let mut view = self.view()?;
        if self.remove_rivals(&wanted, &view) {
            view = self.view()?;
        }
        let found = self.find_bridge(&wanted, &view)?;
        check_routes(&wanted, &view, found.map(|link| link.index))?;
        let standing_vlan = self.standing_vlan(&wanted, &view, found.map(|link| link.index));
        let parent = match standing_vlan {
            Some((_, parent)) => Some(parent),
            None => self.vlan_parent(&wanted, &view),
        };
        let mut mtu = parent.map_or(ETHERNET_MTU, |link| link.mtu);
        let links = [found, standing_vlan.map(|(vlan, _)| vlan)];
        let mut other_mtu = links.into_iter().flatten().any(|link| link.mtu != mtu);
        let created = found.is_none();
        let (index, bridge) = match found {
            Some(link) => self.repair_bridge(&wanted, link, &view)?,
            None => self.create_bridge(&wanted, mtu, &view)?,
        };
        if let Err(err) = self.open_for_traffic(&bridge) {
            if created {
                self.remove_remains(id, &[index], &bridge);
            }
            return Err(err);
        }
        let standing_vlan = standing_vlan.map(|(vlan, _)| vlan);
        self.remove_other_vlans(&wanted, standing_vlan, &view);
        let vlan = match standing_vlan {
            Some(vlan) => self.repair_vlan(&wanted, vlan, index),
            None => parent.and_then(|parent| self.raise_vlan(&wanted, parent.index, index, &view)),
        };
        if vlan.is_none() && mtu != ETHERNET_MTU {
            (mtu, other_mtu) = (ETHERNET_MTU, true);
        }
        self.dns.open_zone(id, &bridge, wanted.gateway);
        if self.dns.is_enabled() && self.dns.responder(id) != Some(wanted.gateway) {
            self.degrade(format!("names of network {id} are not served: the address is in use"));
        }
        let parent = vlan.and(parent).map(|link| link.index);
        let standing = Standing { bridge, index, mtu, vlan, parent };
        if let Some(network) = self.networks.get_mut(id) {
            network.standing = Some(standing.clone());
            (network.retry_at, network.pause) = (Duration::ZERO, Duration::ZERO);
        }
        if other_mtu {
            self.set_mtu(id, mtu);
        }
        Ok(standing)
    }

    /// Also a network of which the CM says nonsense now has its addresses.
    fn check_others(&self, wanted: &Wanted) -> Result<(), Error> {
        let overlaps = |other: &&Bridged| {
            other.standing.is_some()
                && other.wanted.id != wanted.id
                && other.wanted.subnet.overlaps(&wanted.subnet)
        };
        let other = self.networks.values().find(overlaps);
        other.map_or(Ok(()), |other| Err(wanted.overlap(&other.wanted)))
    }

    pub(super) fn view(&mut self) -> Result<View, Error> {
        Ok(View {
            links: rtnl::links(&mut self.links)?,
            addresses: rtnl::addresses(&mut self.links)?,
            routes: rtnl::routes(&mut self.links)?,
        })
    }

    /// Removes bridges that a former life left for a network that is no longer known, if they
    /// have addresses of this one. True = there were some.
    fn remove_rivals(&mut self, wanted: &Wanted, view: &View) -> bool {
        let rival = |link: &&Link| {
            naming::network_of_alias(&link.alias).is_some_and(|id| !self.networks.contains_key(&id))
                && view
                    .addresses
                    .iter()
                    .any(|a| a.index == link.index && wanted.subnet.contains(a.address))
        };
        let rivals: Vec<Index> = view.links.iter().filter(rival).map(|link| link.index).collect();
        self.delete_links(&rivals);
        !rivals.is_empty()
    }

    /// A link that an earlier service manager has left, by its name in the database.
    fn is_stored(&self, wanted: &Wanted, link: &Link) -> bool {
        self.stored_links.get(&wanted.id).is_some_and(|stored| is_left(stored, link))
    }

    /// The name that the database has for a link, if it is a name.
    fn stored_name(
        &self,
        id: &NetworkId,
        pick: impl Fn(&NetworkLinks) -> &String,
    ) -> Option<LinkName> {
        let name = pick(self.stored_links.get(id)?);
        naming::is_plain(name).then(|| LinkName::try_from(name.as_str()).ok()).flatten()
    }

    /// The bridge of a network if it exists: ours by alias, one of which the database has the name,
    /// or one that the reference left under the plain name, which has no other address than ours.
    fn find_bridge<'a>(&self, wanted: &Wanted, view: &'a View) -> Result<Option<&'a Link>, Error> {
        let alias = naming::network_alias(&wanted.id);
        if let Some(link) = view.links.iter().find(|l| l.alias == alias && l.kind == "bridge") {
            return Ok(Some(link));
        }
        let stored = |link: &&Link| link.kind == "bridge" && self.is_stored(wanted, link);
        if let Some(link) = view.links.iter().find(stored) {
            return Ok(Some(link));
        }
        let name = naming::bridge(&wanted.id, 0);
        let Some(link) = view.links.iter().find(|link| link.name == name.as_str()) else {
            return Ok(None);
        };
        if naming::network_of_alias(&link.alias).is_some() {
            // Another network of ours hashes to the same name: `create_bridge` takes another one.
            return Ok(None);
        }
        let mut addresses = view.addresses.iter().filter(|a| a.index == link.index);
        let alike = link.alias.is_empty()
            && link.kind == "bridge"
            && addresses.all(|a| a.address == wanted.gateway);
        if alike { Ok(Some(link)) } else { Err(Error::ForeignLink { name: name.to_string() }) }
    }

    fn create_bridge(
        &mut self,
        wanted: &Wanted,
        mtu: u32,
        view: &View,
    ) -> Result<(Index, LinkName), Error> {
        let taken = |name: &LinkName| view.links.iter().any(|link| link.name == name.as_str());
        let stored = self.stored_name(&wanted.id, |links| &links.bridge);
        let own = (0..=u8::MAX).map(|variant| naming::bridge(&wanted.id, variant));
        let name = stored.into_iter().chain(own).find(|name| !taken(name));
        let name = name.ok_or(Error::NoFreeLink { attempts: u32::from(u8::MAX) + 1 })?;
        for _ in 0..LINK_ATTEMPTS {
            let index = self.take_index();
            let mac = naming::mac(wanted.gateway);
            let mut messages = Messages::new();
            rtnl::new_bridge(&mut messages, &NewBridge { index, name: &name, mac, mtu });
            rtnl::set_alias(&mut messages, index, &naming::network_alias(&wanted.id));
            rtnl::new_address(
                &mut messages,
                &bridge_address(wanted, index),
                wanted.subnet.broadcast(),
            );
            match self.links.execute(&mut messages) {
                Ok(()) => return Ok((index, name)),
                Err(Error::Kernel(refusal))
                    if refusal.index == 0 && refusal.errno == Errno::EBUSY => {}
                Err(err) => {
                    let created = !matches!(&err, Error::Kernel(refusal) if refusal.index == 0);
                    if created {
                        self.delete_links(&[index]);
                    }
                    return Err(err.lacking("bridge"));
                }
            }
        }
        Err(Error::NoFreeLink { attempts: LINK_ATTEMPTS })
    }

    /// Brings a bridge that exists to what is wanted.
    fn repair_bridge(
        &mut self,
        wanted: &Wanted,
        link: &Link,
        view: &View,
    ) -> Result<(Index, LinkName), Error> {
        let index = link.index;
        let address = bridge_address(wanted, index);
        let mut messages = Messages::new();
        if link.alias.is_empty() {
            rtnl::set_alias(&mut messages, index, &naming::network_alias(&wanted.id));
        }
        if !link.up {
            rtnl::set_up(&mut messages, index);
        }
        if link.group != LINK_GROUP {
            rtnl::set_group(&mut messages, index, LINK_GROUP);
        }
        // Of another address of the node, which an instance may get now.
        let mac = naming::mac(wanted.gateway);
        if naming::is_own_mac(link.mac) && link.mac != mac {
            rtnl::set_mac(&mut messages, index, mac);
        }
        let own: Vec<&LinkAddress> = view.addresses.iter().filter(|a| a.index == index).collect();
        for other in own.iter().filter(|other| ***other != address) {
            rtnl::delete_address(&mut messages, other);
        }
        // The kernel deletes younger addresses of the subnet together with the oldest one.
        if own != [&address] {
            rtnl::new_address(&mut messages, &address, wanted.subnet.broadcast());
        }
        self.links.execute(&mut messages)?;
        let name = LinkName::try_from(link.name.as_str())
            .map_err(|_| Error::ForeignLink { name: link.name.clone() })?;
        Ok((index, name))
    }

    /// Rules, forwarding and no router advertisements on the bridge.
    fn open_for_traffic(&mut self, bridge: &LinkName) -> Result<(), Error> {
        self.firewall.add(&network_share(bridge))?;
        let path = Path::new(IP_FORWARD);
        let forwards = std::fs::read_to_string(path).is_ok_and(|text| text.trim() == "1");
        if !forwards {
            sys::fs::write_existing(path, "1").map_err(|source| Error::File {
                operation: "enable forwarding in",
                path: path.to_owned(),
                source,
            })?;
        }
        let accept_ra = format!("/proc/sys/net/ipv6/conf/{bridge}/accept_ra");
        if self.ipv6
            && let Err(err) = sys::fs::write_existing(Path::new(&accept_ra), "0")
        {
            warn!("bridge may take router advertisements bridge={bridge} err={err}");
        }
        Ok(())
    }

    /// The interface on which the network gets its VLAN; `None` = the network has none, which
    /// matters on units with several nodes only.
    fn vlan_parent<'a>(&mut self, wanted: &Wanted, view: &'a View) -> Option<&'a Link> {
        let id = &wanted.id;
        if wanted.vlan_id == 0 {
            return None;
        }
        if !wanted.wants_vlan() {
            error!("no VLAN for network: id is not 1 to 4094 network={id} vlan={}", wanted.vlan_id);
            return None;
        }
        if !self.caps.vlan {
            self.miss_vlans();
            return None;
        }
        let parent = self.way_out(view);
        if parent.is_none() {
            warn!("no VLAN for network: no Ethernet interface leads out network={id}");
        }
        parent
    }

    /// The Ethernet interface that leads to other nodes: the configured one, or that of the best
    /// default route.
    pub(super) fn way_out<'a>(&self, view: &'a View) -> Option<&'a Link> {
        let uplink = view.routes.iter().filter(|r| r.prefix == 0).min_by_key(|route| route.metric);
        let parent = if self.settings.vlan_parent.is_empty() {
            view.links.iter().find(|link| uplink.is_some_and(|route| route.link == link.index))
        } else {
            view.links.iter().find(|link| link.name == self.settings.vlan_parent)
        };
        parent.filter(|link| link.ethernet && naming::network_of_alias(&link.alias).is_none())
    }

    /// The VLAN of a network that exists, and what carries it: ours by alias, one of which the
    /// database has the name, or one that the reference left in the bridge of this network. It stays where it is when the default route
    /// moves: the link to other nodes is wired.
    pub(super) fn standing_vlan<'a>(
        &self,
        wanted: &Wanted,
        view: &'a View,
        bridge: Option<Index>,
    ) -> Option<(&'a Link, &'a Link)> {
        let alias = naming::network_alias(&wanted.id);
        let vlan = view.links.iter().find(|link| {
            let ours = link.alias == alias || self.is_stored(wanted, link);
            let left = link.alias.is_empty() && Some(link.master) == bridge;
            link.kind == "vlan" && u64::from(link.vlan_id) == wanted.vlan_id && (ours || left)
        })?;
        let parent = view.links.iter().find(|link| link.index == vlan.parent)?;
        let fixed = &self.settings.vlan_parent;
        (fixed.is_empty() || *fixed == parent.name).then_some((vlan, parent))
    }

    /// VLANs with another id or on another parent, from an earlier life.
    fn remove_other_vlans(&mut self, wanted: &Wanted, standing: Option<&Link>, view: &View) {
        let alias = naming::network_alias(&wanted.id);
        let other = |link: &&Link| {
            link.kind == "vlan"
                && (link.alias == alias || self.is_stored(wanted, link))
                && standing.is_none_or(|standing| standing.index != link.index)
        };
        let others: Vec<Index> = view.links.iter().filter(other).map(|link| link.index).collect();
        self.delete_links(&others);
    }

    fn repair_vlan(&mut self, wanted: &Wanted, vlan: &Link, bridge: Index) -> Option<Index> {
        let mut messages = Messages::new();
        if vlan.alias.is_empty() {
            rtnl::set_alias(&mut messages, vlan.index, &naming::network_alias(&wanted.id));
        }
        if vlan.master != bridge || !vlan.up {
            rtnl::enslave(&mut messages, vlan.index, bridge);
        }
        if let Err(err) = self.links.execute(&mut messages) {
            error!("VLAN of network is not repaired network={} err={}", wanted.id, chain(&err));
        }
        Some(vlan.index)
    }

    /// Creates the VLAN; without it the network works on this node only.
    pub(super) fn raise_vlan(
        &mut self,
        wanted: &Wanted,
        parent: Index,
        bridge: Index,
        view: &View,
    ) -> Option<Index> {
        match self.create_vlan(wanted, parent, bridge, view) {
            Ok(index) => Some(index),
            Err(Error::Unsupported { .. }) => {
                self.caps.vlan = false;
                self.miss_vlans();
                None
            }
            Err(err) => {
                let vlan = wanted.vlan_id;
                error!("no VLAN for network network={} vlan={vlan} err={}", wanted.id, chain(&err));
                None
            }
        }
    }

    fn miss_vlans(&mut self) {
        self.degrade("no networks between nodes: kernel lacks 8021q (VLAN)".to_owned());
    }

    fn create_vlan(
        &mut self,
        wanted: &Wanted,
        parent: Index,
        bridge: Index,
        view: &View,
    ) -> Result<Index, Error> {
        let vlan_id = u16::try_from(wanted.vlan_id).unwrap_or(0);
        let alias = naming::network_alias(&wanted.id);
        let taken = |name: &LinkName| {
            // What was ours was removed a moment ago.
            view.links.iter().any(|link| link.name == name.as_str() && link.alias != alias)
        };
        let stored = self.stored_name(&wanted.id, |links| &links.vlan);
        let own = (0..=u8::MAX).map(|variant| naming::vlan(&wanted.id, variant));
        let mut names = stored.into_iter().chain(own);
        // If all are taken, the kernel says so.
        let name = names.find(|name| !taken(name)).unwrap_or_else(|| naming::vlan(&wanted.id, 0));
        let index = self.take_index();
        let mut messages = Messages::new();
        rtnl::new_vlan(&mut messages, &NewVlan { index, name: &name, parent, bridge, vlan_id });
        rtnl::set_alias(&mut messages, index, &naming::network_alias(&wanted.id));
        let result = self.links.execute(&mut messages);
        if let Err(Error::Kernel(refusal)) = &result
            && refusal.index != 0
        {
            self.delete_links(&[index]);
        }
        result.map(|()| index).map_err(|err| err.lacking("8021q (VLAN)"))
    }

    /// Removes a network with everything in it; errors are logged. Instances keep running without.
    pub(super) fn remove_network(&mut self, id: &NetworkId) {
        let inside: Vec<_> = self
            .instances
            .iter()
            .filter(|(_, instance)| instance.network == *id)
            .map(|(instance, _)| instance.clone())
            .collect();
        for instance in inside {
            if let Err(err) = self.detach_only(&instance) {
                error!("cannot detach instance instance={instance} err={}", chain(&err));
            }
        }
        self.dns.remove_zone(id);
        let Some(network) = self.networks.remove(id) else { return };
        self.outbox.push(Event::NetworkGone(id.clone()));
        if let Some(Standing { bridge, index, vlan, .. }) = network.standing {
            info!("removing network network={id}");
            let links: Vec<Index> = vlan.into_iter().chain([index]).collect();
            return self.remove_remains(id, &links, &bridge);
        }
        // It may have stood before it could not be made again.
        let links = match rtnl::links(&mut self.links) {
            Ok(links) => links,
            Err(err) => return error!("cannot list links network={id} err={}", chain(&err)),
        };
        let alias = naming::network_alias(id);
        for link in links.iter().filter(|link| link.alias == alias) {
            if let Ok(name) = LinkName::try_from(link.name.as_str()) {
                self.remove_remains(id, &[link.index], &name);
            }
        }
    }

    /// Removes links of a network and what its bridge has in the rules; errors are logged.
    fn remove_remains(&mut self, id: &NetworkId, links: &[Index], bridge: &LinkName) {
        if let Err(err) = self.firewall.remove(&network_share(bridge)) {
            error!("cannot remove rules of network network={id} err={}", chain(&err));
        }
        self.delete_links(links);
    }

    /// After its last instance has gone: a network that is not listed goes, too.
    pub(super) fn remove_if_done(&mut self, id: &NetworkId) {
        let listed = self.networks.get(id).is_none_or(|network| network.role == Role::Listed);
        if !self.is_in_use(id) && !listed {
            self.remove_network(id);
        }
    }
}

/// It has the name that the database tells, and nobody has claimed it since.
fn is_left(stored: &NetworkLinks, link: &Link) -> bool {
    let name = match link.kind.as_str() {
        "bridge" => &stored.bridge,
        "vlan" => &stored.vlan,
        _ => return false,
    };
    link.alias.is_empty() && !name.is_empty() && link.name == *name
}

/// What a network has in the rules.
fn network_share(bridge: &LinkName) -> Share {
    Share { entries: rules::network_entries(bridge).to_vec(), meters: Vec::new() }
}

fn bridge_address(wanted: &Wanted, index: Index) -> LinkAddress {
    LinkAddress { index, address: wanted.gateway, prefix: wanted.subnet.prefix() }
}

/// A subnet that the host already reaches elsewhere would cut the host off.
fn check_routes(wanted: &Wanted, view: &View, own: Option<Index>) -> Result<(), Error> {
    let ours = |index: Index| {
        let link = view.links.iter().find(|link| link.index == index);
        Some(index) == own || link.is_some_and(|l| naming::network_of_alias(&l.alias).is_some())
    };
    let clash = view.routes.iter().find(|route| {
        let subnet = Subnet::of_route(route.destination, route.prefix);
        route.connected
            && route.destination != Ipv4Addr::UNSPECIFIED
            && subnet.overlaps(&wanted.subnet)
            && !ours(route.link)
    });
    let Some(route) = clash else { return Ok(()) };
    let link = view.links.iter().find(|link| link.index == route.link);
    let name = link.map_or("an interface", |link| link.name.as_str());
    let subnet = Subnet::of_route(route.destination, route.prefix);
    Err(Error::Overlap { subnet: wanted.subnet.to_string(), other: format!("{subnet} on {name}") })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_recognised_by_the_names_of_the_database() {
        let stored = NetworkLinks {
            network: NetworkId::new("net1"),
            vlan: "vlan-00c0ffee".to_owned(),
            bridge: String::new(),
        };
        let link = |kind: &str, name: &str, alias: &str| Link {
            kind: kind.to_owned(),
            name: name.to_owned(),
            alias: alias.to_owned(),
            ..Link::default()
        };
        for (kind, name, alias, expect) in [
            ("vlan", "vlan-00c0ffee", "", true),
            // Claimed by somebody, or by another network of ours.
            ("vlan", "vlan-00c0ffee", "theirs", false),
            ("vlan", "vlan-00c0ffee", "aos:net:net2", false),
            ("vlan", "vlan-00c0ffed", "", false),
            ("bridge", "vlan-00c0ffee", "", false),
            ("veth", "vlan-00c0ffee", "", false),
            ("bridge", "", "", false),
        ] {
            assert_eq!(is_left(&stored, &link(kind, name, alias)), expect, "{kind} {name} {alias}");
        }
    }
}
