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

/// What a kernel lacks that can limit speed in no way.
const SPEED_LIMITS: &str = "tbf and limits of nf_tables";
const NO_SPEED_LIMITS: &str = "speed is not limited: kernel lacks tbf and limits of nf_tables";

impl Domain {
    /// The speed limits that are set at the links; without tbf the rules have them.
    pub(super) fn shaped_speed(
        &mut self,
        attachment: &Attachment,
    ) -> Result<(Option<u64>, Option<u64>), Error> {
        let speed = (attachment.download_kbit, attachment.upload_kbit);
        if self.caps.tbf || speed == (None, None) {
            return Ok(speed);
        }
        if self.settings.firewall && self.caps.limit {
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
