//! What the instances of a network have to follow: another bridge, another MTU, another address of
//! the node; and another link, if somebody deleted theirs.
//!
//! Runs on the net thread. The instances run on; an error of one is logged and does not stop the
//! others.

use std::net::Ipv4Addr;

use log::{error, info};

use super::attach::{Place, set_gateway};
use super::dns::Record;
use super::domain::{Attached, Domain, Standing, Wired, chain};
use super::error::Error;
use super::rtnl::{self, INSTANCE_INTERFACE, Index};
use super::wire::Messages;
use crate::model::id::{InstanceId, NetworkId};
use crate::sys::netns;

impl Domain {
    /// Puts the instances of a network back into it: its bridge may be a new one, and the node may
    /// have another address there.
    pub(super) fn rejoin(&mut self, id: &NetworkId, standing: &Standing) {
        let ports = self.wired_in(id);
        if ports.is_empty() {
            return;
        }
        let mut messages = Messages::new();
        for (instance, veth) in ports {
            // The name server may be a new one as well.
            self.make_known(&instance);
            rtnl::enslave(&mut messages, veth, standing.index);
            rtnl::set_hairpin(&mut messages, veth);
        }
        if let Err(err) = self.links.execute(&mut messages) {
            error!("cannot put instances back network={id} err={}", chain(&err));
        }
        self.set_mtu(id, standing.mtu);
        self.move_gateway(id);
    }

    /// Its names in its network.
    pub(super) fn make_known(&mut self, id: &InstanceId) {
        let Some(instance) = self.instances.get(id) else { return };
        if let Some(wired) = &instance.wired {
            let (ident, servers) = (instance.ident.clone(), instance.dns_servers.clone());
            let record = Record { ident, address: wired.address, servers };
            self.dns.add(&instance.network, id, &instance.keys, record);
        }
    }

    /// Makes the links anew that somebody deleted, in networks that stand.
    pub(super) fn rewire_lost(&mut self) {
        let is_lost = |instance: &Attached| instance.wired.as_ref().is_some_and(|w| w.is_lost);
        let lost = self.instances.iter().filter(|(_, instance)| is_lost(instance));
        let lost: Vec<(InstanceId, NetworkId)> =
            lost.map(|(id, instance)| (id.clone(), instance.network.clone())).collect();
        for (id, network) in lost {
            if self.is_in_doubt(&network) {
                continue;
            }
            let Err(err) = self.rewire(&id) else { continue };
            // Without its bridge: once more when that is there again.
            if !self.is_in_doubt(&network) {
                error!("instance stays without network instance={id} err={}", chain(&err));
                self.set_wired(&id, |wired| wired.is_lost = false);
            }
        }
    }

    fn set_wired(&mut self, id: &InstanceId, change: impl FnOnce(&mut Wired)) {
        let instance = self.instances.get_mut(id);
        instance.and_then(|instance| instance.wired.as_mut()).map(change);
    }

    /// Makes the link of an instance anew; its rules know it by its address.
    fn rewire(&mut self, id: &InstanceId) -> Result<(), Error> {
        let Some(Attached { network, wired: Some(wired), .. }) = self.instances.get(id).cloned()
        else {
            return Err(Error::Vanished("instance"));
        };
        let standing = self.raise_network(&network)?;
        let known = self.networks.get(&network).ok_or(Error::Vanished("network"))?;
        let (subnet, gateway) = (known.wanted.subnet, known.wanted.gateway);
        let Wired { address, download_kbit, upload_kbit, .. } = wired;
        let place = Place { download_kbit, upload_kbit, standing, subnet, gateway, address };
        let mut inside = self.channel_of(id)?;
        let namespace = netns::open(id.as_str()).ok().flatten();
        let namespace = namespace.ok_or(Error::Vanished("network namespace"))?;
        let veth = self.create_veth(id, &place, &namespace)?;
        if let Err(err) = self.configure(&place, &mut inside) {
            self.delete_links(&[veth]);
            return Err(err);
        }
        self.set_wired(id, |wired| {
            (wired.veth, wired.gateway, wired.is_lost) = (veth, gateway, false);
        });
        self.settle(std::iter::once(id));
        Ok(())
    }

    /// Changes VLAN, bridge and both ends of all links of its instances.
    pub(super) fn set_mtu(&mut self, id: &NetworkId, mtu: u32) {
        let Some(network) = self.networks.get_mut(id) else { return };
        let Some(standing) = &mut network.standing else { return };
        if std::mem::replace(&mut standing.mtu, mtu) != mtu {
            info!("network gets another MTU network={id} mtu={mtu}");
        }
        let mut messages = Messages::new();
        for index in standing.vlan.into_iter().chain([standing.index]) {
            rtnl::set_mtu(&mut messages, index, mtu);
        }
        if let Err(err) = self.links.execute(&mut messages) {
            error!("cannot change MTU of network network={id} err={}", chain(&err));
        }
        for (instance, veth) in self.wired_in(id) {
            self.set_instance_mtu(&instance, veth, mtu);
        }
    }

    /// Both ends of one link; errors are logged.
    pub(super) fn set_instance_mtu(&mut self, id: &InstanceId, veth: Index, mtu: u32) {
        let mut messages = Messages::new();
        rtnl::set_mtu(&mut messages, veth, mtu);
        let outside = self.links.execute(&mut messages);
        let inside = self.enter(id, |channel| {
            let links = rtnl::links(channel)?;
            let link = links.iter().find(|link| link.name == INSTANCE_INTERFACE);
            let mut messages = Messages::new();
            link.iter().for_each(|link| rtnl::set_mtu(&mut messages, link.index, mtu));
            channel.execute(&mut messages)
        });
        if let Err(err) = outside.and(inside.and_then(|result| result)) {
            error!("cannot change MTU of instance instance={id} err={}", chain(&err));
        }
    }

    /// Host ends of the links of a network.
    fn wired_in(&self, network: &NetworkId) -> Vec<(InstanceId, Index)> {
        let inside = self.instances.iter().filter(|(_, instance)| instance.network == *network);
        inside
            .filter_map(|(id, instance)| Some((id, instance.wired.as_ref()?)))
            .filter(|(_, wired)| !wired.is_lost)
            .map(|(id, wired)| (id.clone(), wired.veth))
            .collect()
    }

    /// The node may have another address in a network: the default route and the name server of each
    /// instance follow.
    fn move_gateway(&mut self, network: &NetworkId) {
        let known = self.networks.get(network);
        let Some(gateway) = known.map(|known| known.wanted.gateway) else { return };
        for (id, _) in self.wired_in(network) {
            if let Err(err) = self.set_gateway_of(&id, gateway) {
                error!("cannot change default route instance={id} err={}", chain(&err));
            } else if let Some(instance) = self.instances.get(&id) {
                self.rewrite_resolv_conf(&id, instance);
            }
        }
    }

    fn set_gateway_of(&mut self, id: &InstanceId, gateway: Ipv4Addr) -> Result<(), Error> {
        let wired = |instance: &Attached| instance.wired.as_ref().map(|wired| wired.gateway);
        if self.instances.get(id).and_then(wired) == Some(gateway) {
            return Ok(());
        }
        self.enter(id, |channel| {
            let links = rtnl::links(channel)?;
            let link = links.iter().find(|link| link.name == INSTANCE_INTERFACE);
            set_gateway(channel, gateway, link.ok_or(Error::Vanished("link"))?.index)
        })??;
        self.set_wired(id, |wired| wired.gateway = gateway);
        Ok(())
    }
}
