//! What the kernel can do for networks, and what is said when it cannot: once in the log, and once
//! as an alert of the node, so that whoever looks at the unit knows what it does without.
//!
//! Runs on the net thread. The questions are asked at the start, by requests that the kernel refuses
//! in any case: one that knows what they are about finds fault with them, one that does not says so.
//! They create nothing, and let the kernel load modules where there are some. Real operations answer
//! the same question later, by the same errors.

use log::{debug, info};
use nix::errno::Errno;

use super::channel::Channel;
use super::domain::{Domain, chain};
use super::error::Error;
use super::rtnl;
use super::shaping;
use super::wire::Messages;
use crate::model::event::Event;
use crate::model::status::{Alert, AlertPayload};
use crate::sys::time::wall_ms;

/// Name under which the CM knows us.
const COMPONENT: &str = "aos-servicemanager";
/// Different things that are said; more are not remembered, and not said.
const MAX_SAID: usize = 64;

/// What there is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct NetCaps {
    pub(super) bridge: bool,
    pub(super) veth: bool,
    pub(super) vlan: bool,
    /// The queueing discipline for speed limits.
    pub(super) tbf: bool,
    /// Limits of speed in the rules; asked for where there is no tbf.
    pub(super) limit: bool,
    /// Limits of volume; known once the firewall was asked.
    pub(super) quota: bool,
    /// Connections are deleted by address; noticed when it is first needed.
    pub(super) flow_filter: bool,
}

impl NetCaps {
    /// Until somebody has looked.
    pub(super) const ALL: Self = Self {
        bridge: true,
        veth: true,
        vlan: true,
        tbf: true,
        limit: true,
        quota: true,
        flow_filter: true,
    };

    /// Asks the kernel.
    pub(super) fn detect(links: &mut Channel) -> Self {
        let mut knows = |name: &str, unknown: Errno, ask: &dyn Fn(&mut Messages)| {
            let mut messages = Messages::new();
            ask(&mut messages);
            match links.execute(&mut messages) {
                Err(Error::Kernel(refusal)) if refusal.errno == unknown => {
                    info!("kernel lacks a feature for networks feature={name}");
                    false
                }
                Err(Error::Kernel(_)) => true,
                other => {
                    debug!("no clear answer about a feature feature={name} answer={other:?}");
                    true
                }
            }
        };
        let mut knows_link = |kind: &str| {
            knows(kind, Errno::EOPNOTSUPP, &|messages| rtnl::ask_for_kind(messages, kind))
        };
        let (bridge, veth, vlan) = (knows_link("bridge"), knows_link("veth"), knows_link("vlan"));
        let tbf = knows("tbf", Errno::ENOENT, &shaping::ask_for_tbf);
        Self { bridge, veth, vlan, tbf, ..Self::ALL }
    }
}

impl Domain {
    /// Looks at the kernel, and says what no instance can do without.
    pub(super) fn detect(&mut self) {
        let quota = self.firewall.has_quotas();
        self.caps = NetCaps { quota, ..NetCaps::detect(&mut self.links) };
        #[cfg(test)]
        if let Some(pretended) = self.pretended {
            self.caps = pretended;
        }
        for (there, feature) in [(self.caps.bridge, "bridge"), (self.caps.veth, "veth")] {
            if !there {
                self.degrade(format!("instances get no network: kernel lacks {feature}"));
            }
        }
    }

    /// The kernel cannot compare volumes with limits.
    pub(super) fn poll_limits(&mut self) {
        self.firewall.poll_limits();
        self.degrade("limits of traffic act late: kernel lacks quotas of nf_tables".to_owned());
    }

    /// Without these nothing can be done for an instance with an address.
    pub(super) fn check_caps(&self) -> Result<(), Error> {
        let NetCaps { bridge, veth, .. } = self.caps;
        match [(bridge, "bridge"), (veth, "veth")].into_iter().find(|(there, _)| !there) {
            Some((_, feature)) => Err(Error::Missing(feature)),
            None => Ok(()),
        }
    }

    /// The kernel cannot delay packets.
    pub(super) fn police_speed(&mut self) {
        self.caps.tbf = false;
        self.caps.limit = self.firewall.has_limits();
        if !self.caps.limit {
            return;
        }
        if let Err(err) = self.firewall.police() {
            self.degrade_for("speed is not limited", &err);
        }
    }

    /// Says once what this node does without.
    pub(super) fn degrade(&mut self, message: String) {
        if self.said.len() >= MAX_SAID || self.said.contains(&message) {
            return;
        }
        // No error: that would be another alert.
        log::warn!("network is degraded: {message}");
        let payload = AlertPayload::Core {
            component: COMPONENT.to_owned(),
            message: format!("network is degraded: {message}"),
        };
        self.said.insert(message);
        self.outbox.push(Event::Alert(Alert { time_ms: wall_ms(), payload }));
    }

    /// The same with the reason.
    pub(super) fn degrade_for(&mut self, what: &str, error: &Error) {
        self.degrade(format!("{what}: {}", chain(error)));
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::naming::LinkName;
    use super::super::rtnl::{NewBridge, NewVlan};
    use super::*;
    use crate::sys::mount::{isolate, tmpfs};
    use crate::sys::netlink::Family;
    use crate::sys::thread::spawn_sized;

    /// What the questions say is what real requests say, and they leave nothing.
    #[test]
    fn questions_and_real_requests_agree() {
        let thread = spawn_sized("caps-test", 512 * 1024, || {
            if isolate().and_then(|()| tmpfs(Path::new("/run"), None, 0o755)).is_err() {
                println!("SKIP questions_and_real_requests_agree: needs CAP_NET_ADMIN");
                return;
            }
            let mut links = Channel::open(Family::Route).unwrap();
            let caps = NetCaps::detect(&mut links);
            assert_eq!(rtnl::links(&mut links).unwrap().len(), 1);
            assert_eq!(caps, NetCaps::detect(&mut links));
            let mut real = |ask: &dyn Fn(&mut Messages)| {
                let mut messages = Messages::new();
                ask(&mut messages);
                links.execute(&mut messages).is_ok()
            };
            let name = LinkName::try_from("one").unwrap();
            let bridge = NewBridge { index: 50, name: &name, mac: [2; 6], mtu: 1500 };
            assert_eq!(caps.bridge, real(&|messages| rtnl::new_bridge(messages, &bridge)));
            assert_eq!(caps.tbf, real(&|messages| shaping::limit(messages, 50, 1000)));
            let name = LinkName::try_from("two").unwrap();
            let vlan = NewVlan { index: 51, name: &name, parent: 50, bridge: 0, vlan_id: 5 };
            assert_eq!(caps.vlan, real(&|messages| rtnl::new_vlan(messages, &vlan)));
            let mut messages = Messages::new();
            rtnl::ask_for_kind(&mut messages, "no such kind");
            let refused = links.execute(&mut messages).unwrap_err();
            assert!(matches!(refused, Error::Kernel(r) if r.errno == Errno::EOPNOTSUPP));
        });
        thread.unwrap().join().unwrap();
    }
}
