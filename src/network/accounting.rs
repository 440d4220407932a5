//! Pure: the rules that count traffic and stop it at a limit, and what an instance has in them:
//! a counter for each direction and, if it is limited, a quota. Local networks are not counted.
//!
//! The chains stand before all others, where no verdict of somebody else hides bytes. Quotas stand
//! before counters, so that what is dropped is not reported. Each packet pays for what stands here:
//! the group of a link tells which end of a packet belongs to an instance, and only the other end is
//! compared with the local networks, one by one, which takes the kernel less time than a look into a
//! set of intervals. Each rule says for which protocol it is, so that `nft list` can show its meaning.
//! What is counted is the packet at layer 3. Counters of the node leave out what it forwards, those of
//! instances what the node itself sends. A kernel without quotas has sets in their place, of the
//! addresses that have used up what they may.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::expressions::Program;
use super::nft::{self, Content, Hook, NewSet, object};
use super::rules::{PREFIX, Policy, TABLE, append_rule};
use super::shaping;
use super::wire::Messages;
use crate::model::id::InstanceId;
use crate::model::traffic::Volume;

const CHAIN_FORWARD: &str = "aos_acct_fwd";
/// What comes from the outside to an instance, and what goes there.
const CHAIN_TO: &str = "aos_acct_to";
const CHAIN_FROM: &str = "aos_acct_from";
const CHAIN_INPUT: &str = "aos_acct_in";
const CHAIN_OUTPUT: &str = "aos_acct_out";
const CHAIN_INPUT6: &str = "aos_acct_in6";
const CHAIN_OUTPUT6: &str = "aos_acct_out6";
const PRIORITY: i32 = -10;
const LOCAL6: &str = "aos_local6";
const LOOPBACK: (Ipv4Addr, u8) = (Ipv4Addr::new(127, 0, 0, 0), 8);
/// Loopback, unique local, link-local, multicast.
const LOCAL6_NETWORKS: [(Ipv6Addr, u8); 4] = [
    (Ipv6Addr::LOCALHOST, 128),
    (Ipv6Addr::new(0xfc00, 0, 0, 0, 0, 0, 0, 0), 7),
    (Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0), 10),
    (Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0), 8),
];
/// Counters of the node, download first.
pub(super) const NODE_COUNTERS: [&str; 2] = ["aos_sys_in", "aos_sys_out"];
/// Packets that the rules refused.
pub(super) const DENIED: &str = "aos_denied";
/// Mappings of one message; with the longest ids they stay below the 64 KiB of an attribute.
pub(super) const MAPPINGS_PER_MESSAGE: usize = 128;

/// What an instance counts, and where its limit is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Gauge {
    Download,
    Upload,
    DownloadLimit,
    UploadLimit,
    /// Only where the kernel cannot delay packets.
    DownloadSpeed,
    UploadSpeed,
}

impl Gauge {
    pub(super) const ALL: [Self; 6] = [
        Self::Download,
        Self::Upload,
        Self::DownloadLimit,
        Self::UploadLimit,
        Self::DownloadSpeed,
        Self::UploadSpeed,
    ];

    /// The map from addresses to objects.
    pub(super) fn map(self) -> &'static str {
        match self {
            Self::Download => "aos_cin4",
            Self::Upload => "aos_cout4",
            Self::DownloadLimit => "aos_qin4",
            Self::UploadLimit => "aos_qout4",
            Self::DownloadSpeed => "aos_lin4",
            Self::UploadSpeed => "aos_lout4",
        }
    }

    fn prefix(self) -> &'static str {
        match self {
            Self::Download => "in_",
            Self::Upload => "out_",
            Self::DownloadLimit => "qin_",
            Self::UploadLimit => "qout_",
            Self::DownloadSpeed => "lin_",
            Self::UploadSpeed => "lout_",
        }
    }

    /// Type of the objects.
    pub(super) fn kind(self) -> u32 {
        match self {
            Self::Download | Self::Upload => object::COUNTER,
            Self::DownloadLimit | Self::UploadLimit => object::QUOTA,
            Self::DownloadSpeed | Self::UploadSpeed => object::LIMIT,
        }
    }

    /// Name of the object of an instance; its id is a plain name.
    pub(super) fn object(self, id: &InstanceId) -> String {
        format!("{}{id}", self.prefix())
    }

    /// The instance to which an object of this name belongs.
    pub(super) fn owner(self, object: &str) -> Option<InstanceId> {
        object.strip_prefix(self.prefix()).map(InstanceId::new)
    }
}

/// Whether an object in our table is ours.
pub(super) fn is_ours(kind: u32, object: &str) -> bool {
    object.starts_with(PREFIX)
        || Gauge::ALL.iter().any(|gauge| gauge.kind() == kind && gauge.owner(object).is_some())
}

/// The counters of one instance.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Meter {
    pub(super) address: Ipv4Addr,
    pub(super) limits: Limits,
    /// What is known of the counters: at first the value with which they begin.
    pub(super) volume: Volume,
}

/// What is let through.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Limits {
    /// Bytes per period.
    pub(super) download_bytes: Option<u64>,
    pub(super) upload_bytes: Option<u64>,
    /// kbit/s; what is faster is dropped.
    pub(super) download_kbit: Option<u64>,
    pub(super) upload_kbit: Option<u64>,
}

impl Meter {
    /// What of a kind there is: the bytes used, and for a quota those allowed, for a speed the rate.
    fn part(&self, gauge: Gauge) -> Option<(u64, u64)> {
        let Volume { download_bytes, upload_bytes } = self.volume;
        match gauge {
            Gauge::Download => Some((download_bytes, 0)),
            Gauge::Upload => Some((upload_bytes, 0)),
            Gauge::DownloadLimit => Some((download_bytes, self.limits.download_bytes?)),
            Gauge::UploadLimit => Some((upload_bytes, self.limits.upload_bytes?)),
            Gauge::DownloadSpeed => Some((0, self.limits.download_kbit?)),
            Gauge::UploadSpeed => Some((0, self.limits.upload_kbit?)),
        }
    }

    /// Has the same objects and keys.
    pub(super) fn is_like(&self, other: &Self) -> bool {
        (self.address, self.limits) == (other.address, other.limits)
    }

    pub(super) fn has(&self, gauge: Gauge) -> bool {
        self.part(gauge).is_some()
    }
}

/// A direction in which an instance has used up its volume.
pub(super) type Stop = (Gauge, Ipv4Addr);

/// Where volume is looked at from time to time: who has used up his.
pub(super) fn stops<'a>(meters: impl Iterator<Item = &'a Meter>) -> BTreeSet<Stop> {
    let mut stops = BTreeSet::new();
    for meter in meters {
        for gauge in [Gauge::DownloadLimit, Gauge::UploadLimit] {
            if meter.part(gauge).is_some_and(|(used, limit)| used >= limit) {
                stops.insert((gauge, meter.address));
            }
        }
    }
    stops
}

/// Turns the set of those who are stopped into another one.
pub(super) fn change_stops(batch: &mut Messages, old: &BTreeSet<Stop>, new: &BTreeSet<Stop>) {
    for (gauge, address) in old.difference(new) {
        let key = [address.octets()];
        nft::delete_elements(batch, TABLE, gauge.map(), key.iter().map(<[u8; 4]>::as_slice));
    }
    for (gauge, address) in new.difference(old) {
        let key = [address.octets()];
        nft::new_elements(batch, TABLE, gauge.map(), key.iter().map(<[u8; 4]>::as_slice));
    }
}

/// The kinds of which instances have objects.
fn gauges(polled: bool) -> impl Iterator<Item = Gauge> {
    let used = move |gauge: &Gauge| !(polled && gauge.kind() == object::QUOTA);
    Gauge::ALL.into_iter().filter(used)
}

/// Adds the objects and mappings of some instances.
pub(super) fn add<'a>(
    batch: &mut Messages,
    polled: bool,
    meters: impl Iterator<Item = (&'a InstanceId, &'a Meter)> + Clone,
) {
    for gauge in gauges(polled) {
        let mut mappings: Vec<([u8; 4], String)> = Vec::new();
        for (id, meter) in meters.clone() {
            let Some((used, limit)) = meter.part(gauge) else { continue };
            let name = gauge.object(id);
            match gauge.kind() {
                object::COUNTER => nft::new_counter(batch, TABLE, &name, used),
                object::LIMIT => {
                    let (rate, burst) = shaping::police(limit);
                    nft::new_limit(batch, TABLE, &name, rate, burst);
                }
                _ => nft::new_quota(batch, TABLE, &name, limit, used),
            }
            mappings.push((meter.address.octets(), name));
        }
        for portion in mappings.chunks(MAPPINGS_PER_MESSAGE) {
            let pairs = portion.iter().map(|(key, name)| (key.as_slice(), name.as_str()));
            nft::new_mappings(batch, TABLE, gauge.map(), pairs);
        }
    }
}

/// Removes the mappings and objects of some instances.
pub(super) fn remove<'a>(
    batch: &mut Messages,
    polled: bool,
    meters: impl Iterator<Item = (&'a InstanceId, &'a Meter)> + Clone,
) {
    for gauge in gauges(polled) {
        let having = meters.clone().filter(|(_, meter)| meter.has(gauge));
        let keys: Vec<[u8; 4]> = having.clone().map(|(_, meter)| meter.address.octets()).collect();
        for portion in keys.chunks(MAPPINGS_PER_MESSAGE) {
            let keys = portion.iter().map(<[u8; 4]>::as_slice);
            nft::delete_elements(batch, TABLE, gauge.map(), keys);
        }
        for (id, _) in having {
            nft::delete_object(batch, TABLE, gauge.kind(), &gauge.object(id));
        }
    }
}

/// Adds sets, maps for so many instances, counters of the node and the chains, with set numbers from
/// `id` on.
pub(super) fn install(batch: &mut Messages, id: u32, policy: &Policy, node: Volume, capacity: u32) {
    install_sets(batch, id, policy, capacity);
    let values = [node.download_bytes, node.upload_bytes];
    for (name, bytes) in NODE_COUNTERS.into_iter().zip(values) {
        nft::new_counter(batch, TABLE, name, bytes);
    }
    nft::new_counter(batch, TABLE, DENIED, 0);
    for name in [CHAIN_TO, CHAIN_FROM, CHAIN_INPUT6, CHAIN_OUTPUT6] {
        nft::new_chain(batch, TABLE, name, None);
    }
    for (name, number) in [
        (CHAIN_FORWARD, nft::HOOK_FORWARD),
        (CHAIN_INPUT, nft::HOOK_INPUT),
        (CHAIN_OUTPUT, nft::HOOK_OUTPUT),
    ] {
        let hook = Hook { kind: "filter", number, priority: PRIORITY };
        nft::new_chain(batch, TABLE, name, Some(&hook));
    }
    install_rules(batch, policy);
}

fn install_sets(batch: &mut Messages, id: u32, policy: &Policy, capacity: u32) {
    let Policy { local, police, polled, .. } = policy;
    let new = |batch: &mut Messages, name, id, (key_type, key_bytes), content| {
        nft::new_set(batch, TABLE, &NewSet { name, key_type, key_bytes, id, content });
    };
    let (v4, v6) = ((nft::TYPE_IPV4, 4), (nft::TYPE_IPV6, 16));
    new(batch, LOCAL6, id, v6, Content::Intervals);
    let used = |gauge: &Gauge| *police || gauge.kind() != object::LIMIT;
    for (gauge, id) in Gauge::ALL.into_iter().filter(used).zip(id + 1..) {
        let content = match gauge.kind() {
            object::QUOTA if *polled => Content::Keys,
            kind => Content::Objects { kind, capacity },
        };
        new(batch, gauge.map(), id, v4, content);
    }
    if !local.v6.is_empty() {
        nft::new_intervals(batch, TABLE, LOCAL6, &local.v6);
    }
}

fn install_rules(batch: &mut Messages, policy: &Policy) {
    let stop = |p: &mut Program<'_, '_>, gauge: Gauge| match policy.polled {
        true => p.in_set(gauge.map()).drop(),
        false => p.count_in(gauge.map()).drop(),
    };
    let chain = CHAIN_FORWARD;
    if policy.police {
        // All traffic, whoever is at its other end; what is dropped counts nowhere.
        append_rule(batch, chain, |p| {
            p.ipv4().destination().count_in(Gauge::DownloadSpeed.map()).drop();
        });
        append_rule(batch, chain, |p| p.ipv4().source().count_in(Gauge::UploadSpeed.map()).drop());
    }
    // Who sends has sent, whatever becomes of it at the limit of the other end.
    append_rule(batch, chain, |p| p.in_by_own_link().jump(CHAIN_FROM));
    append_rule(batch, chain, |p| p.out_by_own_link().jump(CHAIN_TO));
    for network in policy.local.forwarded() {
        append_rule(batch, CHAIN_FROM, |p| p.ipv4().destination_in(network).back());
        append_rule(batch, CHAIN_TO, |p| p.ipv4().source_in(network).back());
    }
    append_rule(batch, CHAIN_TO, |p| stop(p.ipv4().destination(), Gauge::DownloadLimit));
    append_rule(batch, CHAIN_FROM, |p| stop(p.ipv4().source(), Gauge::UploadLimit));
    append_rule(batch, CHAIN_TO, |p| {
        p.ipv4().destination().count_in(Gauge::Download.map());
    });
    append_rule(batch, CHAIN_FROM, |p| {
        p.ipv4().source().count_in(Gauge::Upload.map());
    });
    node_rules(batch, &policy.local);
}

/// What the node itself receives and sends.
fn node_rules(batch: &mut Messages, local: &LocalNetworks) {
    let [download, upload] = NODE_COUNTERS;
    append_rule(batch, CHAIN_INPUT, |p| p.ipv6().go_to(CHAIN_INPUT6));
    append_rule(batch, CHAIN_OUTPUT, |p| p.ipv6().go_to(CHAIN_OUTPUT6));
    for network in &local.v4 {
        append_rule(batch, CHAIN_INPUT, |p| p.ipv4().source_in(*network).back());
        append_rule(batch, CHAIN_OUTPUT, |p| p.ipv4().destination_in(*network).back());
    }
    append_rule(batch, CHAIN_INPUT, |p| {
        p.count(download);
    });
    append_rule(batch, CHAIN_OUTPUT, |p| {
        p.count(upload);
    });
    append_rule(batch, CHAIN_INPUT6, |p| {
        p.ipv6().source6().not_in_set(LOCAL6).count(download);
    });
    append_rule(batch, CHAIN_OUTPUT6, |p| {
        p.ipv6().destination6().not_in_set(LOCAL6).count(upload);
    });
}

/// Networks to which traffic is not counted.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct LocalNetworks {
    /// Sorted, none within another.
    v4: Vec<(Ipv4Addr, u8)>,
    /// First and last addresses, sorted, without overlaps: the kernel refuses those in a set.
    v6: Vec<(Vec<u8>, Vec<u8>)>,
}

impl LocalNetworks {
    /// From addresses and prefix lengths; those of IPv6 that never lead out are added.
    pub(super) fn new(networks: &[(IpAddr, u8)]) -> Self {
        let fixed = LOCAL6_NETWORKS.map(|(address, prefix)| (IpAddr::V6(address), prefix));
        Self::of(&[networks, &fixed].concat())
    }

    fn of(networks: &[(IpAddr, u8)]) -> Self {
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        for (address, prefix) in networks {
            match address {
                IpAddr::V4(a) => v4.push((*a, *prefix)),
                IpAddr::V6(a) => v6.push(range(a.to_bits(), 128, *prefix)),
            }
        }
        // The widest one of those that begin alike comes first.
        v4.sort_unstable();
        v4.dedup_by(|inner, outer| contains(*outer, *inner));
        Self { v4, v6: merged(v6) }
    }

    /// Those that a packet which is passed on may have an address of.
    fn forwarded(&self) -> impl Iterator<Item = (Ipv4Addr, u8)> {
        self.v4.iter().copied().filter(|network| !contains(LOOPBACK, *network))
    }
}

/// Whether one network is within the other.
fn contains(outer: (Ipv4Addr, u8), inner: (Ipv4Addr, u8)) -> bool {
    let range = |(address, prefix): (Ipv4Addr, u8)| range(address.to_bits().into(), 32, prefix);
    let ((first, last), (from, to)) = (range(outer), range(inner));
    first <= from && to <= last
}

fn range(address: u128, bits: u32, prefix: u8) -> (u128, u128) {
    let host_bits = bits.saturating_sub(u32::from(prefix));
    let hosts = 1u128.checked_shl(host_bits).map_or(u128::MAX, |size| size - 1);
    (address & !hosts, address | hosts)
}

fn merged(mut ranges: Vec<(u128, u128)>) -> Vec<(Vec<u8>, Vec<u8>)> {
    ranges.sort_unstable();
    let mut merged: Vec<(u128, u128)> = Vec::new();
    for (first, last) in ranges {
        match merged.last_mut() {
            // Neighbours become one, too: the end of one interval is the beginning of the next.
            Some(before) if first <= before.1.saturating_add(1) => before.1 = before.1.max(last),
            _ => merged.push((first, last)),
        }
    }
    let key = |address: u128| address.to_be_bytes().to_vec();
    merged.into_iter().map(|(first, last)| (key(first), key(last))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_become_intervals() {
        let parsed = |network: &&str| -> (IpAddr, u8) {
            let (address, prefix) = network.split_once('/').unwrap();
            (address.parse().unwrap(), prefix.parse().unwrap())
        };
        let check = |networks: &[&str], v4: &[&str], v6: &[(&str, &str)]| {
            let networks: Vec<_> = networks.iter().map(parsed).collect();
            let keys = |pairs: &[(&str, &str)]| -> Vec<(Vec<u8>, Vec<u8>)> {
                let key = |text: &str| text.parse::<Ipv6Addr>().unwrap().octets().to_vec();
                pairs.iter().map(|(first, last)| (key(first), key(last))).collect()
            };
            let v4 = v4.iter().map(parsed).map(|(address, prefix)| match address {
                IpAddr::V4(address) => (address, prefix),
                IpAddr::V6(_) => panic!("{address} is of the other family"),
            });
            let expect = LocalNetworks { v4: v4.collect(), v6: keys(v6) };
            assert_eq!(LocalNetworks::of(&networks), expect);
        };
        check(&[], &[], &[]);
        check(&["10.0.0.0/8"], &["10.0.0.0/8"], &[]);
        check(
            &["172.17.0.0/16", "172.16.0.0/12", "172.16.0.0/16", "172.32.0.0/16", "10.0.0.1/32"],
            &["10.0.0.1/32", "172.16.0.0/12", "172.32.0.0/16"],
            &[],
        );
        check(&["0.0.0.0/0", "10.0.0.0/8"], &["0.0.0.0/0"], &[]);
        let all = ("::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff");
        check(&["::/0", "fe80::/10"], &[], &[all]);
        check(&["::1/128"], &[], &[("::1", "::1")]);
    }

    #[test]
    fn what_is_passed_on_has_no_loopback_address() {
        let networks = ["127.0.0.0/8", "10.0.0.0/8"].map(|text| {
            let (address, prefix) = text.split_once('/').unwrap();
            (address.parse().unwrap(), prefix.parse().unwrap())
        });
        let forwarded: Vec<_> = LocalNetworks::of(&networks).forwarded().collect();
        assert_eq!(forwarded, [(Ipv4Addr::new(10, 0, 0, 0), 8)]);
    }

    #[test]
    fn objects_tell_their_owner() {
        let id = InstanceId::new("in_x");
        for gauge in Gauge::ALL {
            assert_eq!(gauge.owner(&gauge.object(&id)), Some(id.clone()));
        }
        assert_eq!(Gauge::Download.owner("aos_sys_in"), None);
    }
}
