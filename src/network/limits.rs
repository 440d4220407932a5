//! Speed limits of an instance: at its links where the kernel can delay packets, else in the rules,
//! which drop what is too much. A kernel that can do neither refuses the instance, unless the
//! configuration says that it runs without.
//!
//! Runs on the net thread.

use nix::errno::Errno;

use super::channel::Channel;
use super::domain::Domain;
use super::error::Error;
use super::plan::Attachment;
use super::rtnl::Index;
use super::shaping;
use super::wire::Messages;
use crate::model::id::InstanceId;

/// What a kernel lacks that can limit speed in no way.
const SPEED_LIMITS: &str = "tbf and limits of nf_tables";
const NO_SPEED_LIMITS: &str = "speed is not limited: kernel lacks tbf and limits of nf_tables";

impl Domain {
    /// The rules of one instance. A kernel that can limit speed in no way at all says so here.
    pub(super) fn add_rules(&mut self, id: &InstanceId) -> Result<(), Error> {
        let result = self.firewall.add(&self.share(id));
        let Err(err) = result else { return Ok(()) };
        if !err.is_missing_limit() {
            return Err(err);
        }
        if !self.settings.bandwidth_optional {
            return Err(err.naming(SPEED_LIMITS));
        }
        self.degrade(NO_SPEED_LIMITS.to_owned());
        let wired = self.instances.get_mut(id).and_then(|attached| attached.wired.as_mut());
        for (_, meter) in wired.into_iter().flat_map(|wired| &mut wired.share.meters) {
            (meter.limits.download_kbit, meter.limits.upload_kbit) = (None, None);
        }
        self.firewall.add(&self.share(id))
    }

    /// The speed limits that are set at the links; without tbf the rules have them.
    pub(super) fn shaped_speed(
        &mut self,
        attachment: &Attachment,
    ) -> Result<(Option<u64>, Option<u64>), Error> {
        let speed = (attachment.download_kbit, attachment.upload_kbit);
        if self.caps.tbf || speed == (None, None) {
            return Ok(speed);
        }
        if self.settings.firewall {
            self.degrade("limits of speed drop packets: kernel lacks tbf".to_owned());
        } else if self.settings.bandwidth_optional {
            self.degrade(NO_SPEED_LIMITS.to_owned());
        } else {
            return Err(Error::Missing(SPEED_LIMITS));
        }
        Ok((None, None))
    }
}

/// Sets the speed of what leaves through a link, or ends its limit.
pub(super) fn set_speed(
    channel: &mut Channel,
    link: Index,
    kbit: Option<u64>,
) -> Result<(), Error> {
    let mut messages = Messages::new();
    match kbit {
        Some(kbit) => shaping::limit(&mut messages, link, kbit),
        None => shaping::remove(&mut messages, link),
    }
    match channel.execute(&mut messages) {
        // There was none.
        Err(Error::Kernel(refusal))
            if kbit.is_none() && matches!(refusal.errno, Errno::ENOENT | Errno::EINVAL) =>
        {
            Ok(())
        }
        other => other,
    }
}
