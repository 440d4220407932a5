//! Pure: speed limits as token bucket filters, one for each direction at the end that sends: what
//! an instance downloads is queued at the host end of its link, what it uploads inside its
//! namespace, where its sockets feel it as back-pressure. Both see all traffic of the link.

use super::channel;
use super::rtnl::Index;
use super::wire::Messages;

const RTM_NEWQDISC: u16 = 36;
const RTM_DELQDISC: u16 = 37;
const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
const TCA_TBF_PARMS: u16 = 1;
const TCA_TBF_RATE64: u16 = 4;
const TCA_TBF_BURST: u16 = 6;
const PARENT_ROOT: u32 = 0xffff_ffff;
/// 1:0
const HANDLE: u32 = 0x0001_0000;
/// Link layer of the rate: Ethernet; without it the kernel wants a table of transmission times.
const LINK_LAYER: u8 = 1;

/// The reference's 12800; below it TCP stays a quarter under the rate.
const MIN_BURST_BYTES: u64 = 12_800;
const MAX_BURST_BYTES: u64 = 1024 * 1024;
/// The kernel counts time in units of 64 ns.
const TICK_SHIFT: u32 = 6;

/// Parameters of one filter.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Bucket {
    bytes_per_second: u64,
    burst_bytes: u32,
    /// What waits, 50 ms at this rate beyond the burst.
    limit_bytes: u32,
    /// Time that the burst takes at this rate.
    burst_ticks: u32,
}

impl Bucket {
    /// From kbit/s, 1 kbit = 1000 bit; at least 1.
    fn new(rate_kbit: u64) -> Self {
        let rate = rate_kbit.max(1).saturating_mul(125);
        let burst = (rate / 100).clamp(MIN_BURST_BYTES, MAX_BURST_BYTES);
        let ticks = (u128::from(burst) * 1_000_000_000 / u128::from(rate)) >> TICK_SHIFT;
        Self {
            bytes_per_second: rate,
            burst_bytes: u32::try_from(burst).unwrap_or(u32::MAX),
            limit_bytes: u32::try_from(burst.saturating_add(rate / 20)).unwrap_or(u32::MAX),
            burst_ticks: u32::try_from(ticks).unwrap_or(u32::MAX),
        }
    }

    /// `struct tc_tbf_qopt`: rate, peak rate (none), limit, buffer, mtu.
    fn options(&self) -> [u8; 36] {
        let rate = u32::try_from(self.bytes_per_second).unwrap_or(u32::MAX);
        let mut options = [0; 36];
        options[1] = LINK_LAYER;
        options[8..12].copy_from_slice(&rate.to_ne_bytes());
        options[24..28].copy_from_slice(&self.limit_bytes.to_ne_bytes());
        options[28..32].copy_from_slice(&self.burst_ticks.to_ne_bytes());
        options
    }
}

/// Limits what leaves through a link; replaces an earlier limit.
pub(super) fn limit(messages: &mut Messages, link: Index, rate_kbit: u64) {
    let bucket = Bucket::new(rate_kbit);
    messages.add(LIMIT_SPEED, RTM_NEWQDISC, channel::CREATE_OR_REPLACE, |p| {
        p.raw(&root_of(link));
        p.text(TCA_KIND, "tbf");
        p.group(TCA_OPTIONS, |p| {
            p.attribute(TCA_TBF_PARMS, &bucket.options());
            p.u32(TCA_TBF_BURST, bucket.burst_bytes);
            if bucket.bytes_per_second > u64::from(u32::MAX) {
                p.attribute(TCA_TBF_RATE64, &bucket.bytes_per_second.to_ne_bytes());
            }
        });
    });
}

/// A limit without a rate, which the kernel refuses in any case; one without the filter says so.
pub(super) fn ask_for_tbf(messages: &mut Messages) {
    messages.add("ask for tbf", RTM_NEWQDISC, channel::CREATE_OR_REPLACE, |p| {
        p.raw(&root_of(super::rtnl::LOOPBACK_INDEX));
        p.text(TCA_KIND, "tbf");
    });
}

/// Ends the limit of a link that has one.
pub(super) fn remove(messages: &mut Messages, link: Index) {
    messages.add("remove speed limit", RTM_DELQDISC, channel::REQUEST, |p| p.raw(&root_of(link)));
}

/// `struct tcmsg`
fn root_of(link: Index) -> [u8; 20] {
    let mut header = [0; 20];
    header[4..8].copy_from_slice(&link.to_ne_bytes());
    header[8..12].copy_from_slice(&HANDLE.to_ne_bytes());
    header[12..16].copy_from_slice(&PARENT_ROOT.to_ne_bytes());
    header
}

/// Rate and burst of a limit that drops what is too much instead of delaying it, in bytes per second
/// and bytes. TCP needs room for what it sends in one round trip.
pub(super) fn police(rate_kbit: u64) -> (u64, u32) {
    let bucket = Bucket::new(rate_kbit);
    (bucket.bytes_per_second, bucket.limit_bytes)
}

/// The rate that `police` gave, in kbit/s.
pub(super) fn kbit(bytes_per_second: u64) -> u64 {
    bytes_per_second / 125
}

/// Name of the operation, by which a kernel without the filter is recognised.
pub(super) const LIMIT_SPEED: &str = "limit speed";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets() {
        let check = |rate_kbit, expect: (u64, u32, u32, u32)| {
            let Bucket { bytes_per_second, burst_bytes, limit_bytes, burst_ticks } =
                Bucket::new(rate_kbit);
            assert_eq!((bytes_per_second, burst_bytes, limit_bytes, burst_ticks), expect);
        };
        check(1200, (150_000, 12_800, 20_300, 1_333_333));
        check(20_000, (2_500_000, 25_000, 150_000, 156_250));
        check(1_000_000, (125_000_000, 1_048_576, 7_298_576, 131_072));
        // One bit below nothing: the burst takes longer than the kernel can count.
        check(0, (125, 12_800, 12_806, 1_600_000_000));
        check(u64::MAX, (u64::MAX, 1_048_576, u32::MAX, 0));
    }

    #[test]
    fn message_bytes() {
        let mut messages = Messages::new();
        limit(&mut messages, 7, 1200);
        let bytes = messages.stamp(1, 0).to_vec();
        let body = super::super::wire::messages(&bytes).next().unwrap().body.to_vec();
        let expect = [
            &[0, 0, 0, 0, 7, 0, 0, 0, 0, 0, 1, 0, 255, 255, 255, 255, 0, 0, 0, 0][..],
            &[8, 0, 1, 0, b't', b'b', b'f', 0, 52, 0, 2, 0, 40, 0, 1, 0],
            &[0, 1, 0, 0, 0, 0, 0, 0, 0xf0, 0x49, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            &[0x4c, 0x4f, 0, 0, 0x55, 0x58, 0x14, 0, 0, 0, 0, 0],
            &[8, 0, 6, 0, 0, 0x32, 0, 0],
        ]
        .concat();
        assert_eq!(body, expect);
    }
}
