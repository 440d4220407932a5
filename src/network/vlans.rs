//! VLANs that are missing: a network without the one that it should have works on this node only,
//! until there is a way out on which it can be made.
//!
//! Runs on the net thread. It is looked for when a default route comes or goes, and when a link of
//! somebody else changes or goes: the kernel does not announce the routes that end with their link.
//! That costs three lists of the kernel, no more often than `PAUSE`, and nothing where no VLAN is
//! missing. Not here: how a network is set up at first (`bridge`).

use std::time::Duration;

use log::{error, info};

use super::domain::{Domain, chain};
use super::plan::Wanted;
use super::rtnl::{Index, Link};
use crate::model::id::NetworkId;

/// Others may change their links all the time.
const PAUSE: Duration = Duration::from_secs(1);
/// The same while the kernel refuses what is asked.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// When to look again.
#[derive(Debug, Default)]
pub(super) struct Search {
    due: bool,
    after: Duration,
    pause: Duration,
}

impl Search {
    /// When `seek_vlans` has something to do.
    pub(super) fn next_deadline(&self) -> Option<Duration> {
        self.due.then_some(self.after)
    }

    fn looked(&mut self, refused: bool, now: Duration) {
        self.pause = if refused { (self.pause * 2).clamp(PAUSE, LONGEST_PAUSE) } else { PAUSE };
        self.after = now + self.pause;
    }
}

impl Domain {
    /// Something has changed that may lead out.
    pub(super) fn way_out_changed(&mut self, now: Duration) {
        self.notices.search.due = true;
        self.seek_vlans(now);
    }

    /// Makes the VLANs that are missing, if it is time for that.
    pub(super) fn seek_vlans(&mut self, now: Duration) {
        let search = &mut self.notices.search;
        if !search.due || now < search.after {
            return;
        }
        search.due = false;
        let lacking = self.without_vlan();
        if lacking.is_empty() {
            return;
        }
        let refused = self.make_vlans(lacking);
        self.notices.search.looked(refused, now);
    }

    /// Networks that stand without the VLAN that they should have, and their bridges.
    fn without_vlan(&self) -> Vec<(Wanted, Index)> {
        if !self.caps.vlan {
            return Vec::new();
        }
        let wanting = self.networks.values().filter(|network| network.wanted.wants_vlan());
        let lacking = wanting.filter_map(|network| {
            let standing = network.standing.as_ref().filter(|standing| standing.vlan.is_none())?;
            Some((network.wanted.clone(), standing.index))
        });
        lacking.collect()
    }

    /// True = there is a way out, and the kernel refused one of them.
    fn make_vlans(&mut self, lacking: Vec<(Wanted, Index)>) -> bool {
        let view = match self.view() {
            Ok(view) => view,
            Err(err) => {
                error!("cannot look for a way out err={}", chain(&err));
                return true;
            }
        };
        let parent = self.way_out(&view).filter(|link| link.up);
        let mut refused = false;
        for (wanted, bridge) in lacking {
            if self.standing_vlan(&wanted, &view, Some(bridge)).is_some() {
                // Somebody has made it: the network is set up anew with it.
                self.networks.get_mut(&wanted.id).into_iter().for_each(|n| n.standing = None);
            } else if let Some(parent) = parent {
                match self.raise_vlan(&wanted, parent.index, bridge, &view) {
                    Some(vlan) => self.got_vlan(&wanted.id, vlan, parent),
                    None => refused = true,
                }
            }
        }
        refused
    }

    fn got_vlan(&mut self, id: &NetworkId, vlan: Index, parent: &Link) {
        let network = self.networks.get_mut(id);
        let Some(standing) = network.and_then(|network| network.standing.as_mut()) else { return };
        info!("network gets its VLAN network={id} parent={}", parent.name);
        (standing.vlan, standing.parent) = (Some(vlan), Some(parent.index));
        if standing.mtu != parent.mtu {
            self.set_mtu(id, parent.mtu);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::NetworkSettings;
    use super::super::channel::Channel;
    use super::super::rtnl;
    use super::super::wire::Messages;
    use super::*;
    use crate::model::desired::NetworkParams;
    use crate::sys::mount::{isolate, tmpfs};
    use crate::sys::netlink::Family;
    use crate::sys::thread::spawn_sized;

    #[test]
    fn pauses_grow_while_the_kernel_refuses() {
        let mut search = Search::default();
        let mut pause = |refused| {
            search.looked(refused, Duration::from_secs(100));
            search.after.as_secs() - 100
        };
        assert_eq!([true; 8].map(&mut pause), [1, 2, 4, 8, 16, 32, 60, 60]);
        assert_eq!([false, false, true].map(pause), [1, 1, 2]);
    }

    /// What is announced of our own links is no reason, and others are not followed at each step.
    #[test]
    fn ways_out_are_looked_for_when_others_change_something() {
        let thread = spawn_sized("vlans-test", 1024 * 1024, || {
            if isolate().and_then(|()| tmpfs(Path::new("/run"), None, 0o755)).is_err() {
                println!("SKIP ways_out_are_looked_for: needs CAP_NET_ADMIN");
                return;
            }
            let registry = mio::Poll::new().unwrap().registry().try_clone().unwrap();
            let settings = NetworkSettings { firewall: false, ..NetworkSettings::default() };
            let mut domain = Domain::open(settings, registry).unwrap();
            domain.caps.vlan = true;
            let network = |vlan_id| NetworkParams {
                id: NetworkId::new("net1"),
                subnet: "172.17.0.0/16".to_owned(),
                ip: "172.17.0.1".to_owned(),
                vlan_id,
            };
            let mut channel = Channel::open(Family::Route).unwrap();
            let mut change = |index: Index, group: u32| {
                let mut messages = Messages::new();
                rtnl::set_group(&mut messages, index, group);
                rtnl::set_up(&mut messages, index);
                rtnl::set_down(&mut messages, index);
                channel.execute(&mut messages).unwrap();
            };
            let at = Duration::from_secs;
            let state = |domain: &Domain| {
                let search = &domain.notices.search;
                (search.next_deadline(), search.after)
            };
            // Nothing is missing.
            assert!(domain.update_networks(&[network(0)]).is_empty());
            change(rtnl::LOOPBACK_INDEX, 0);
            domain.hear_links(at(1));
            assert_eq!(state(&domain), (None, at(0)));
            assert!(domain.update_networks(&[network(300)]).is_empty());
            domain.hear_links(at(1));
            assert_eq!(state(&domain), (None, at(0)));
            // Links of ours come and go.
            let (index, name) = (500, &"br-mine".try_into().unwrap());
            let mut messages = Messages::new();
            let bridge = rtnl::NewBridge { index, name, mac: [2; 6], mtu: 1500 };
            rtnl::new_bridge(&mut messages, &bridge);
            rtnl::set_down(&mut messages, index);
            rtnl::delete_link(&mut messages, index);
            Channel::open(Family::Route).unwrap().execute(&mut messages).unwrap();
            domain.hear_links(at(1));
            assert_eq!(state(&domain), (None, at(0)));
            // Somebody's link changes: at once, then a little later.
            change(rtnl::LOOPBACK_INDEX, 0);
            domain.hear_links(at(2));
            assert_eq!(state(&domain), (None, at(3)));
            change(rtnl::LOOPBACK_INDEX, 0);
            domain.hear_links(at(2));
            assert_eq!(state(&domain), (Some(at(3)), at(3)));
            domain.seek_vlans(at(3));
            assert_eq!(state(&domain), (None, at(4)));
        });
        thread.unwrap().join().unwrap();
    }
}
