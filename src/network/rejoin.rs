//! What the instances of a network have to follow: another bridge, another MTU, another address of
//! the node.
//!
//! Runs on the net thread. The links of instances that run are changed, never made anew; an error
//! of one is logged and does not stop the others.

use std::net::Ipv4Addr;

use log::{error, info};

use super::attach::set_gateway;
use super::dns::Record;
use super::domain::{Attached, Domain, Standing, chain};
use super::error::Error;
use super::rtnl::{self, INSTANCE_INTERFACE, Index};
use super::wire::Messages;
use crate::model::id::{InstanceId, NetworkId};

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
            self.dns.add(&instance.network, id, &instance.names, record);
        }
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
            .filter_map(|(id, instance)| Some((id.clone(), instance.wired.as_ref()?.veth)))
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
        let instance = self.instances.get_mut(id);
        if let Some(wired) = instance.and_then(|instance| instance.wired.as_mut()) {
            wired.gateway = gateway;
        }
        Ok(())
    }
}
