//! One instance: its namespace, its link, its addresses, its rules, its files; and all of it back.
//!
//! Runs on the net thread. An attach is a handful of system calls: the namespace, one send with
//! everything on the host, one send with everything inside, one firewall transaction, two files.
//! A failure undoes the steps done. A detach cuts the instance off at once and leaves the slow part
//! (some 20 ms per link) to the kernel. A third of what an attach takes is the kernel making a
//! namespace; one is made in a quiet moment, for the next attach.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;
use std::time::Duration;

use log::{debug, error, info, warn};
use nix::errno::Errno;

use super::bridge::LINK_ATTEMPTS;
use super::channel::Channel;
use super::domain::{Attached, Bridged, Domain, Role, Standing, Wired, chain};
use super::error::{Error, Refusal};
use super::firewall::Share;
use super::limits::set_speed;
use super::names;
use super::naming;
use super::plan::{Attachment, Subnet, Wanted};
use super::rtnl::{self, Index, LOOPBACK_INDEX, LinkAddress, NewVeth};
use super::rules;
use super::shaping;
use super::wire::Messages;
use crate::model::id::{InstanceId, NetworkId};
use crate::ports::NetworkPlan;
use crate::sys;
use crate::sys::fault;
use crate::sys::netlink::{Family, Netlink};
use crate::sys::netns;
use crate::sys::time::monotonic;

/// Until another namespace is made in reserve, after one could not be made.
const SPARE_PAUSE: Duration = Duration::from_secs(60);
/// Whether interfaces that are made later have IPv6, in the namespace of the calling thread.
const NEW_LINKS_WITHOUT_IPV6: &str = "/proc/sys/net/ipv6/conf/default/disable_ipv6";
/// A kernel with built-in tunnel devices has index 2 taken in a new namespace.
const OTHER_PEER_INDEX: Index = 0x1_0000;
/// `f_type` of a mounted namespace.
const NSFS_MAGIC: i64 = 0x6e73_6673;

/// A new namespace, entered by its socket only.
#[derive(Debug)]
pub(super) struct Inside {
    channel: Channel,
    namespace: File,
}

/// Where a link goes.
pub(super) struct Place {
    pub(super) download_kbit: Option<u64>,
    pub(super) upload_kbit: Option<u64>,
    pub(super) standing: Standing,
    pub(super) subnet: Subnet,
    pub(super) gateway: Ipv4Addr,
    pub(super) address: Ipv4Addr,
}

impl Domain {
    /// Attaches instances that start at the same time; what is left of an earlier attach under
    /// their ids is replaced. The rules of all are one transaction; if that fails, each gets one of
    /// its own, so that only those fail that are to blame.
    pub(super) fn attach(&mut self, plans: &[&NetworkPlan]) -> Vec<Result<(), Error>> {
        self.ending.busy(monotonic());
        let mut results: Vec<Result<(), Error>> =
            plans.iter().map(|plan| self.attach_links(plan)).collect();
        let built = |results: &[Result<(), Error>]| -> Vec<usize> {
            (0..plans.len()).filter(|index| results[*index].is_ok()).collect()
        };
        self.settle(built(&results).iter().map(|index| &plans[*index].id));
        // Of those that were replaced.
        self.forget_flows();
        fault::point("attach step");
        let mut all = Share::default();
        for index in built(&results) {
            let share = self.share(&plans[index].id);
            all.entries.extend(share.entries);
            all.meters.extend(share.meters);
        }
        if let Err(err) = self.firewall.add(&all) {
            debug!("rules of several instances refused err={}", chain(&err));
            for index in built(&results) {
                let id = &plans[index].id;
                results[index] = self.firewall.add(&self.share(id));
                if results[index].is_err() {
                    self.undo(id);
                }
            }
        }
        fault::point("attach step");
        for index in built(&results) {
            let NetworkPlan { id, network_id, params, .. } = plans[index];
            let address = if params.ip.is_empty() { "none" } else { params.ip.as_str() };
            info!("attached instance={id} network={network_id} address={address}");
        }
        results
    }

    /// Everything but the rules.
    fn attach_links(&mut self, plan: &NetworkPlan) -> Result<(), Error> {
        let attachment = Attachment::check(plan)?;
        let id = attachment.id.clone();
        let known = self.instances.contains_key(&id) || self.left.instances.contains_key(&id);
        if known && let Err(err) = self.detach(&id) {
            warn!("cannot remove old network of instance instance={id} err={}", chain(&err));
        }
        match self.place_and_build(&attachment) {
            Ok(wired) => {
                self.remember(attachment, wired);
                Ok(())
            }
            Err(err) => {
                self.remove_if_done(&attachment.network);
                Err(err)
            }
        }
    }

    pub(super) fn share(&self, id: &InstanceId) -> Share {
        let wired = self.instances.get(id).and_then(|attached| attached.wired.as_ref());
        wired.map(|wired| wired.share.clone()).unwrap_or_default()
    }

    /// The first failure is what matters; what goes wrong here is logged.
    fn undo(&mut self, id: &InstanceId) {
        if let Err(err) = self.detach(id) {
            error!("cannot undo attach instance={id} err={}", chain(&err));
        }
    }

    fn place_and_build(&mut self, attachment: &Attachment) -> Result<Option<Wired>, Error> {
        let place = self.find_place(attachment)?;
        let result = self.build(attachment, place.as_ref());
        let Err(err) = result else { return result };
        if err.is_missing_shaper() {
            self.police_speed();
            let place = self.find_place(attachment)?;
            return self.build(attachment, place.as_ref());
        }
        if self.is_in_doubt(&attachment.network) {
            let place = self.find_place(attachment)?;
            return self.build(attachment, place.as_ref());
        }
        Err(err)
    }

    /// Takes over what stands for an instance. Its links and addresses are not touched; limits and
    /// rules become those of the plan.
    pub(super) fn adopt(&mut self, plan: &NetworkPlan) -> Result<(), Error> {
        let attachment = Attachment::check(plan)?;
        let id = attachment.id.clone();
        let path = netns::path(id.as_str());
        if sys::mount::magic(&path).ok() != Some(NSFS_MAGIC) {
            return Err(Error::Vanished("network namespace"));
        }
        let known = self.instances.remove(&id);
        let adopted = self.find_place(&attachment).and_then(|place| match &place {
            Some(place) => self.adopt_link(&attachment, place, known.as_ref()).map(Some),
            None => Ok(None),
        });
        match adopted {
            Ok(wired) => {
                self.left.instances.remove(&id);
                debug!("adopted network instance={id} network={}", attachment.network);
                self.remember(attachment, wired);
                if let Some(instance) = self.instances.get(&id) {
                    self.rewrite_resolv_conf(&id, instance);
                }
                Ok(())
            }
            Err(err) => {
                self.instances.extend(known.map(|known| (id, known)));
                Err(err)
            }
        }
    }

    fn remember(&mut self, attachment: Attachment, wired: Option<Wired>) {
        let Attachment { id, ident, network, names, dns_servers, etc_dir, .. } = attachment;
        let keys = names::keys(&id, &names, &network);
        let attached = Attached { network, ident, wired, keys, dns_servers, etc_dir };
        self.instances.insert(id.clone(), attached);
        self.make_known(&id);
    }

    /// Finds or makes the network, and checks the instance against the others in it.
    fn find_place(&mut self, attachment: &Attachment) -> Result<Option<Place>, Error> {
        self.check_names(attachment)?;
        let Some((subnet, address)) = attachment.address else { return Ok(None) };
        self.check_caps()?;
        self.check_address(address)?;
        self.want_network(&attachment.network, subnet, address)?;
        let standing = self.raise_network(&attachment.network)?;
        let Some(network) = self.networks.get_mut(&attachment.network) else {
            return Err(Error::Vanished("network"));
        };
        let Wanted { subnet: actual, gateway, .. } = network.wanted;
        if actual != subnet {
            warn!(
                "subnet differs from that of the network; using the latter instance={} {subnet} {actual}",
                attachment.id
            );
            actual.check_host(address)?;
        }
        if address == gateway {
            let text = address.to_string();
            return Err(Error::invalid("ip", &text, "is the address of the node in this network"));
        }
        if matches!(network.role, Role::Draining { .. }) {
            network.role = Role::Implicit;
        }
        let (download_kbit, upload_kbit) = self.shaped_speed(attachment)?;
        let subnet = actual;
        Ok(Some(Place { download_kbit, upload_kbit, standing, subnet, gateway, address }))
    }

    /// An instance of a network that the CM does not list: the node keeps the address that it has
    /// there from an earlier life, or takes the first one.
    fn want_network(
        &mut self,
        id: &NetworkId,
        subnet: Subnet,
        address: Ipv4Addr,
    ) -> Result<(), Error> {
        if self.networks.contains_key(id) {
            return Ok(());
        }
        if let Some(reason) = self.refused.get(id) {
            return Err(Error::RefusedNetwork { id: id.clone(), reason: reason.clone() });
        }
        let gateway = self.left_gateway(id, subnet)?.unwrap_or(subnet.first());
        if gateway == address {
            let text = address.to_string();
            return Err(Error::invalid(
                "ip",
                &text,
                "is needed by the node: its network is unknown",
            ));
        }
        let wanted = Wanted { id: id.clone(), subnet, gateway, vlan_id: 0 };
        if let Some(other) = self.networks.values().find(|n| n.wanted.subnet.overlaps(&subnet)) {
            return Err(wanted.overlap(&other.wanted));
        }
        info!("instance needs a network that is not listed network={id} address={gateway}");
        self.networks.insert(id.clone(), Bridged::new(wanted, Role::Implicit));
        Ok(())
    }

    fn left_gateway(&mut self, id: &NetworkId, subnet: Subnet) -> Result<Option<Ipv4Addr>, Error> {
        let links = self.left.networks.get(id).map(Vec::as_slice).unwrap_or_default();
        let Some(bridge) = links.iter().find(|link| link.kind == "bridge") else { return Ok(None) };
        let addresses = rtnl::addresses(&mut self.links)?;
        let ours = |a: &&LinkAddress| a.index == bridge.index && subnet.contains(a.address);
        Ok(addresses.iter().find(ours).map(|found| found.address))
    }

    fn check_address(&self, address: Ipv4Addr) -> Result<(), Error> {
        let has = |wired: &Wired| wired.address == address;
        match self.instances.iter().find(|(_, other)| other.wired.as_ref().is_some_and(has)) {
            Some((owner, _)) => Err(Error::AddressInUse { address, owner: owner.clone() }),
            None => Ok(()),
        }
    }

    /// Names and ids are unique within a network, whatever their case, with and without its domain.
    fn check_names(&self, attachment: &Attachment) -> Result<(), Error> {
        let own = names::keys(&attachment.id, &attachment.names, &attachment.network);
        let others = self
            .instances
            .iter()
            .filter(|(id, other)| other.network == attachment.network && **id != attachment.id);
        for taken in others.flat_map(|(_, other)| &other.keys) {
            if let Some(at) = own.iter().position(|key| key == taken) {
                let name = attachment.names.get(at).cloned();
                return Err(Error::HostnameInUse(name.unwrap_or(attachment.id.to_string())));
            }
        }
        Ok(())
    }

    /// Everything that can fail half-way; undone in reverse.
    fn build(
        &mut self,
        attachment: &Attachment,
        place: Option<&Place>,
    ) -> Result<Option<Wired>, Error> {
        let id = &attachment.id;
        let mut inside = self.create_namespace(id)?;
        fault::point("attach step");
        let result = match place {
            Some(place) => self.wire(attachment, place, &mut inside).map(Some),
            None => raise_loopback(&mut inside.channel).map(|()| None),
        };
        let result = result.and_then(|wired| {
            let written = self.write_files(attachment, place);
            if let (Err(_), Some(wired)) = (&written, &wired) {
                self.delete_links(&[wired.veth]);
            }
            written.map(|()| wired)
        });
        if result.is_err() {
            remove_namespace(id);
        }
        result
    }

    fn create_namespace(&mut self, id: &InstanceId) -> Result<Inside, Error> {
        let path = netns::path(id.as_str());
        let failed = |source| Error::File { operation: "create network namespace", path, source };
        let inside = match self.spare.take() {
            Some(spare) => Ok(spare),
            None => self.unnamed_namespace(),
        };
        let inside = match inside {
            Ok(inside) => inside,
            Err(source) => return Err(failed(source)),
        };
        let name = || netns::give_name(id.as_str(), inside.namespace.as_fd());
        let named = match name() {
            // Left by an earlier life, which had got no further.
            Err(error) if netns::is_taken(&error) => {
                self.end_namespace(id)?;
                name()
            }
            other => other,
        };
        named.map(|()| inside).map_err(failed)
    }

    fn unnamed_namespace(&self) -> io::Result<Inside> {
        let (namespace, socket) = self.host.unnamed(|| {
            if self.ipv6 {
                disable_ipv6();
            }
            Netlink::for_few_requests(Family::Route)
        })?;
        Ok(Inside { channel: Channel::new(socket), namespace })
    }

    /// When nobody comes or goes, and somebody may come: when the next namespace is to be made.
    pub(super) fn spare_deadline(&self) -> Option<Duration> {
        let missing = self.spare.is_none() && !self.networks.is_empty();
        missing.then(|| self.ending.quiet_at().max(self.spare_after))
    }

    /// Makes the namespace of the next instance. Nothing but its two descriptors holds it.
    pub(super) fn make_spare(&mut self, now: Duration) {
        if self.spare_deadline().is_none_or(|at| at > now) {
            return;
        }
        match self.unnamed_namespace() {
            Ok(spare) => self.spare = Some(spare),
            // The attach that needs one tries again, and fails with the reason.
            Err(err) => {
                debug!("no namespace in reserve err={err}");
                self.spare_after = now + SPARE_PAUSE;
            }
        }
    }

    /// Link and addresses.
    fn wire(
        &mut self,
        attachment: &Attachment,
        place: &Place,
        inside: &mut Inside,
    ) -> Result<Wired, Error> {
        let veth = self.create_veth(&attachment.id, place, &inside.namespace)?;
        fault::point("attach step");
        if let Err(err) = self.configure(place, &mut inside.channel) {
            self.delete_links(&[veth]);
            return Err(err);
        }
        fault::point("attach step");
        Ok(Wired::new(place, veth, self.new_share(attachment, place)))
    }

    /// What an instance gets in the rules.
    fn new_share(&self, attachment: &Attachment, place: &Place) -> Share {
        let meter = self.meter(attachment, place.address);
        Share {
            entries: rules::instance_entries(attachment, place.address, &place.standing.bridge),
            meters: vec![(attachment.id.clone(), meter)],
        }
    }

    /// The pair, its alias and hairpin in one send.
    pub(super) fn create_veth(
        &mut self,
        id: &InstanceId,
        place: &Place,
        inside: &File,
    ) -> Result<Index, Error> {
        for _ in 0..LINK_ATTEMPTS {
            let index = self.take_index();
            self.generation = self.generation.wrapping_add(1);
            let mut messages = Messages::new();
            let veth = NewVeth {
                index,
                name: &naming::veth(id, self.generation),
                bridge: place.standing.index,
                mtu: place.standing.mtu,
                peer_index: self.peer_index,
                peer_mac: naming::mac(place.address),
                peer_namespace: inside.as_raw_fd(),
            };
            rtnl::new_veth(&mut messages, &veth);
            rtnl::set_alias(&mut messages, index, &naming::instance_alias(id));
            rtnl::set_hairpin(&mut messages, index);
            if let Some(kbit) = place.download_kbit {
                shaping::limit(&mut messages, index, kbit);
            }
            match self.links.execute(&mut messages) {
                Ok(()) => return Ok(index),
                Err(Error::Kernel(refusal)) if is_collision(&refusal) => {
                    // Which of the two indices it was, the kernel does not say.
                    if refusal.errno == Errno::EBUSY && self.peer_index != OTHER_PEER_INDEX {
                        self.peer_index = OTHER_PEER_INDEX;
                    }
                }
                Err(err) => {
                    let created = !matches!(&err, Error::Kernel(refusal) if refusal.index == 0);
                    if created {
                        self.delete_links(&[index]);
                    } else {
                        self.doubt_network(place.standing.index);
                    }
                    return Err(err.lacking("veth"));
                }
            }
        }
        Err(Error::NoFreeLink { attempts: LINK_ATTEMPTS })
    }

    pub(super) fn is_in_doubt(&self, network: &NetworkId) -> bool {
        self.networks.get(network).is_some_and(|network| network.standing.is_none())
    }

    /// A link could not be created: perhaps somebody deleted the bridge.
    fn doubt_network(&mut self, bridge: Index) {
        for network in self.networks.values_mut() {
            if network.standing.as_ref().is_some_and(|standing| standing.index == bridge) {
                network.standing = None;
            }
        }
    }

    /// Loopback, address and default route in one send.
    pub(super) fn configure(&mut self, place: &Place, inside: &mut Channel) -> Result<(), Error> {
        let index = self.peer_index;
        let prefix = place.subnet.prefix();
        let mut messages = Messages::new();
        rtnl::set_up(&mut messages, LOOPBACK_INDEX);
        rtnl::set_address_modes(&mut messages, index, self.ipv6);
        let address = LinkAddress { index, address: place.address, prefix };
        rtnl::new_address(&mut messages, &address, place.subnet.broadcast());
        rtnl::set_up(&mut messages, index);
        rtnl::set_default_route(&mut messages, place.gateway, index);
        if let Some(kbit) = place.upload_kbit {
            shaping::limit(&mut messages, index, kbit);
        }
        match inside.execute(&mut messages) {
            Err(Error::Kernel(refusal)) if refusal.errno == Errno::EAFNOSUPPORT && self.ipv6 => {
                self.ipv6 = false;
                self.configure(place, inside)
            }
            other => other,
        }
    }

    /// Both ends of new links are up: the ports, then the bridges may send.
    pub(super) fn settle<'a>(&mut self, ids: impl Iterator<Item = &'a InstanceId>) {
        let mut messages = Messages::new();
        let mut bridges: BTreeSet<Index> = BTreeSet::new();
        for attached in ids.filter_map(|id| self.instances.get(id)) {
            let Some(wired) = &attached.wired else { continue };
            rtnl::settle_carrier(&mut messages, wired.veth);
            let network = self.networks.get(&attached.network);
            bridges
                .extend(network.and_then(|n| n.standing.as_ref()).map(|standing| standing.index));
        }
        bridges.into_iter().for_each(|bridge| rtnl::settle_carrier(&mut messages, bridge));
        if let Err(err) = self.links.execute(&mut messages) {
            debug!("carrier of a new link is not settled err={}", chain(&err));
        }
    }

    fn adopt_link(
        &mut self,
        attachment: &Attachment,
        place: &Place,
        known: Option<&Attached>,
    ) -> Result<Wired, Error> {
        let id = &attachment.id;
        let left = self.left.instances.get(id).and_then(|links| {
            // A link that is down was given up and is about to vanish.
            links.iter().find(|link| link.master != 0 && link.up).or(links.last()).cloned()
        });
        let known = known.and_then(|known| known.wired.as_ref());
        let old = known.map(|wired| wired.share.clone()).unwrap_or_default();
        let known = known.map(|wired| wired.veth);
        let veth = known.or(left.as_ref().map(|link| link.index)).ok_or(Error::Vanished("link"))?;
        if left.as_ref().is_some_and(|link| link.master != place.standing.index || !link.up) {
            let mut messages = Messages::new();
            rtnl::enslave(&mut messages, veth, place.standing.index);
            rtnl::set_hairpin(&mut messages, veth);
            self.links.execute(&mut messages)?;
        }
        if left.is_some_and(|link| link.mtu != place.standing.mtu) {
            self.set_instance_mtu(id, veth, place.standing.mtu);
        }
        let index = self.enter(id, |inside| -> Result<Index, Error> {
            let addresses = rtnl::addresses(inside)?;
            let own = addresses.iter().find(|found| found.address == place.address);
            let index = own.ok_or(Error::Vanished("address"))?.index;
            set_gateway(inside, place.gateway, index)?;
            set_speed(inside, index, place.upload_kbit)?;
            Ok(index)
        })??;
        debug!("adopting link instance={id} veth={veth} inside={index}");
        set_speed(&mut self.links, veth, place.download_kbit)?;
        let share = self.new_share(attachment, place);
        self.firewall.replace(&old, &share)?;
        Ok(Wired::new(place, veth, share))
    }

    /// Asks something of the kernel inside the namespace of an instance.
    pub(super) fn enter<T>(
        &self,
        id: &InstanceId,
        act: impl FnOnce(&mut Channel) -> T,
    ) -> Result<T, Error> {
        self.channel_of(id).map(|mut channel| act(&mut channel))
    }

    pub(super) fn channel_of(&self, id: &InstanceId) -> Result<Channel, Error> {
        let path = netns::path(id.as_str());
        let opened = self.host.enter(id.as_str(), || Netlink::for_few_requests(Family::Route));
        let socket = opened.and_then(|socket| socket).map_err(|source| Error::File {
            operation: "enter network namespace",
            path,
            source,
        })?;
        Ok(Channel::new(socket))
    }

    /// Removes all that an instance has; an unknown one is success. Every step is attempted, the
    /// first error is returned.
    pub(super) fn detach(&mut self, id: &InstanceId) -> Result<(), Error> {
        let network = self.instances.get(id).map(|instance| instance.network.clone());
        let result = self.detach_only(id);
        if let Some(network) = network {
            self.remove_if_done(&network);
        }
        result
    }

    /// The same without a look at the network.
    pub(super) fn detach_only(&mut self, id: &InstanceId) -> Result<(), Error> {
        let attached = self.instances.remove(id);
        let passed = || {
            if attached.is_some() {
                fault::point("detach step");
            }
        };
        if let Some(attached) = &attached {
            self.dns.remove(&attached.network, id);
        }
        let wired = attached.as_ref().and_then(|attached| attached.wired.as_ref());
        let rules = match wired {
            Some(wired) => {
                self.take_traffic_of(std::slice::from_ref(id));
                self.stale_flows.push(wired.address);
                self.firewall.remove(&wired.share)
            }
            None => Ok(()),
        };
        passed();
        let mut links: Vec<Index> = wired.map(|wired| wired.veth).into_iter().collect();
        for left in self.left.instances.remove(id).unwrap_or_default() {
            if !links.contains(&left.index) {
                links.push(left.index);
            }
        }
        let cut = self.cut_off(&links);
        passed();
        let namespace = if naming::is_plain(id.as_str()) { self.end_namespace(id) } else { Ok(()) };
        passed();
        if attached.is_some() {
            info!("detached instance={id}");
        }
        rules.and(cut).and(namespace)
    }

    /// Forgets the connections of addresses that were given up, before somebody else gets one. The
    /// kernel looks through its whole table for that, and nobody has to wait for it.
    pub(super) fn forget_flows(&mut self) {
        let addresses = std::mem::take(&mut self.stale_flows);
        if addresses.is_empty() {
            return;
        }
        if self.caps.flow_filter {
            self.caps.flow_filter = self.firewall.forget_flows(&addresses);
        }
        if !self.caps.flow_filter {
            self.firewall.forget_flows_without_filter(&addresses);
        }
    }

    /// Takes the name away now and lets the kernel have the rest later.
    fn end_namespace(&mut self, id: &InstanceId) -> Result<(), Error> {
        let kept = match netns::open(id.as_str()) {
            Ok(None) => return Ok(()),
            other => other,
        };
        unmount_namespace(id)?;
        match kept {
            Ok(namespace) => {
                namespace.into_iter().for_each(|ns| self.ending.keep(ns, monotonic()));
            }
            Err(err) => debug!("namespace ends at once instance={id} err={err}"),
        }
        Ok(())
    }

    /// Sets links down in one send. A bridge forgets at once what was behind such a port: their
    /// addresses are free from here on.
    fn cut_off(&mut self, links: &[Index]) -> Result<(), Error> {
        let mut messages = Messages::new();
        for index in links {
            rtnl::set_down(&mut messages, *index);
            self.watch_fading(*index);
        }
        match self.links.execute(&mut messages) {
            // Somebody, or the end of the namespace, was faster.
            Err(Error::Kernel(refusal)) if refusal.errno == Errno::ENODEV => Ok(()),
            other => other,
        }
    }
}

fn is_collision(refusal: &Refusal) -> bool {
    refusal.index == 0 && matches!(refusal.errno, Errno::EBUSY | Errno::EEXIST)
}

/// No address and no router advertisement reaches an interface of an instance unless its own
/// configuration switches IPv6 on there. Loopback exists already and keeps its address.
fn disable_ipv6() {
    if let Err(err) = sys::fs::write_existing(Path::new(NEW_LINKS_WITHOUT_IPV6), "1") {
        warn!("an instance may take router advertisements err={err}");
    }
}

fn raise_loopback(inside: &mut Channel) -> Result<(), Error> {
    let mut messages = Messages::new();
    rtnl::set_up(&mut messages, LOOPBACK_INDEX);
    inside.execute(&mut messages)
}

pub(super) fn set_gateway(
    channel: &mut Channel,
    gateway: Ipv4Addr,
    link: Index,
) -> Result<(), Error> {
    let mut messages = Messages::new();
    rtnl::set_default_route(&mut messages, gateway, link);
    channel.execute(&mut messages)
}

fn unmount_namespace(id: &InstanceId) -> Result<(), Error> {
    netns::remove(id.as_str()).map_err(|source| Error::File {
        operation: "remove network namespace",
        path: netns::path(id.as_str()),
        source,
    })
}

fn remove_namespace(id: &InstanceId) {
    if let Err(err) = unmount_namespace(id) {
        error!("cannot remove network namespace instance={id} err={}", chain(&err));
    }
}
