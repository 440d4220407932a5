//! What of ours, and of earlier service managers, stands in nf_tables: for a start, which carries it
//! over, and for a rebuild, which replaces it.
//!
//! Runs on the net thread. Changes nothing by itself.

use std::collections::{BTreeMap, BTreeSet};

use log::warn;
use nix::errno::Errno;

use super::accounting::{self, Gauge, Limits, Meter};
use super::channel::Channel;
use super::error::Error;
use super::listing::{self, Afterwards, Count};
use super::nft::{self, object};
use super::rules::{self, Entry, Key, PREFIX, SUCCESSOR_PREFIX, Set, TABLE};
use super::shaping;
use super::wire::{Message, Messages};
use crate::model::id::InstanceId;
use crate::model::traffic::Volume;

/// How often a list is read that shows something new each time.
const MAX_LISTS: u32 = 8;
/// Types of our objects.
const OBJECTS: [u32; 3] = [object::COUNTER, object::QUOTA, object::LIMIT];

/// What of ours stands in the kernel.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// Base chains that exist, ours or the OS's.
    pub(super) base: Vec<String>,
    /// Our table has nothing but what we have put there.
    is_alone: bool,
    /// Rules to delete one by one: chain and handle.
    rules: Vec<(String, u64)>,
    chains: Vec<String>,
    /// Tables of the successor generation.
    tables: Vec<String>,
    sets: Vec<String>,
    /// Type and name.
    objects: Vec<(u32, String)>,
}

/// The entries of our sets in the kernel. A list of a set that the kernel enlarges at that moment
/// lacks some without any sign of it, so lists are read until they hold nothing new.
pub(super) fn left_entries(channel: &mut Channel) -> Result<BTreeSet<Entry>, Error> {
    let mut entries = BTreeSet::new();
    for (name, key_bytes) in list(channel, &mut listing::list_sets(TABLE), listing::parse_set)? {
        let known = Set::ALL.into_iter().find(|set| set.name() == name);
        let Some(set) = known.filter(|set| set.key().1 == key_bytes) else { continue };
        let mut request = listing::list_elements(TABLE, set.name());
        for _ in 0..MAX_LISTS {
            let before = entries.len();
            for found in list(channel, &mut request, listing::parse_elements)?.iter().flatten() {
                entries.extend(Key::from_slice(&found.key).ok().map(|key| (set, key)));
            }
            if entries.len() == before {
                break;
            }
        }
    }
    Ok(entries)
}

/// The counters and limits of instances in the kernel.
pub(super) fn left_meters(channel: &mut Channel) -> Result<BTreeMap<InstanceId, Meter>, Error> {
    let mut counts: BTreeMap<String, Count> = BTreeMap::new();
    for kind in OBJECTS {
        let mut request = listing::list_objects(TABLE, kind, Afterwards::Keep);
        counts.extend(list(channel, &mut request, listing::parse_object)?);
    }
    let mut meters: BTreeMap<InstanceId, Meter> = BTreeMap::new();
    for gauge in Gauge::ALL {
        let mut request = listing::list_elements(TABLE, gauge.map());
        for element in list(channel, &mut request, listing::parse_elements)?.iter().flatten() {
            let Ok(address) = <[u8; 4]>::try_from(element.key.as_slice()) else { continue };
            let Some(id) = gauge.owner(&element.object) else { continue };
            let (limits, volume) = (Limits::default(), Volume::default());
            let meter =
                meters.entry(id).or_insert(Meter { address: address.into(), limits, volume });
            match (gauge, counts.get(&element.object)) {
                (Gauge::Download, Some(Count::Counter { bytes })) => {
                    meter.volume.download_bytes = *bytes;
                }
                (Gauge::Upload, Some(Count::Counter { bytes })) => {
                    meter.volume.upload_bytes = *bytes;
                }
                (Gauge::DownloadLimit, Some(Count::Quota { limit, .. })) => {
                    meter.limits.download_bytes = Some(*limit);
                }
                (Gauge::UploadLimit, Some(Count::Quota { limit, .. })) => {
                    meter.limits.upload_bytes = Some(*limit);
                }
                (Gauge::DownloadSpeed, Some(Count::Speed { rate })) => {
                    meter.limits.download_kbit = Some(shaping::kbit(*rate));
                }
                (Gauge::UploadSpeed, Some(Count::Speed { rate })) => {
                    meter.limits.upload_kbit = Some(shaping::kbit(*rate));
                }
                _ => {}
            }
        }
    }
    Ok(meters)
}

/// A dump in which a missing table counts as empty.
pub(super) fn list<T>(
    channel: &mut Channel,
    request: &mut Messages,
    parse: impl FnMut(&Message<'_>) -> Option<T>,
) -> Result<Vec<T>, Error> {
    match channel.dump(request, parse) {
        Err(Error::Kernel(refusal)) if refusal.errno == Errno::ENOENT => Ok(Vec::new()),
        other => other,
    }
}

pub(super) fn survey(channel: &mut Channel) -> Result<Found, Error> {
    let mut found = Found::default();
    // The OS cares for the base chains.
    let mut shared = false;
    for chain in list(channel, &mut listing::list_chains(), listing::parse_chain)? {
        if chain.inet && chain.table == rules::SUCCESSOR_TABLE {
            if !found.tables.contains(&chain.table) {
                found.tables.push(chain.table);
            }
        } else if chain.table != TABLE || !chain.inet {
            if chain.hook == Some(nft::HOOK_FORWARD) && chain.drops {
                warn!(
                    "a foreign chain drops forwarded packets table={} chain={}",
                    chain.table, chain.name
                );
            }
        } else if is_ours(&chain.name) {
            found.chains.push(chain.name);
        } else if chain.hook.is_some() {
            shared |=
                chain.drops || !rules::BASE_CHAINS.iter().any(|(name, _)| *name == chain.name);
            found.base.push(chain.name);
        }
    }
    for rule in list(channel, &mut listing::list_rules(TABLE), listing::parse_rule)? {
        let foreign_chain = !is_ours(&rule.chain);
        let ours = rule.comment == rules::COMMENT || is_ours(&rule.target) || rule.is_successor;
        if foreign_chain && ours {
            found.rules.push((rule.chain, rule.handle));
        } else if foreign_chain {
            shared = true;
        }
    }
    let sets = list(channel, &mut listing::list_sets(TABLE), listing::parse_set)?;
    found.sets = sets.into_iter().map(|(name, _)| name).filter(|n| n.starts_with(PREFIX)).collect();
    for kind in OBJECTS {
        let mut request = listing::list_objects(TABLE, kind, Afterwards::Keep);
        let objects = list(channel, &mut request, listing::parse_object)?;
        let ours = objects.into_iter().filter(|(name, _)| accounting::is_ours(kind, name));
        found.objects.extend(ours.map(|(name, _)| (kind, name)));
    }
    let tables = list(channel, &mut listing::list_tables(), listing::parse_table)?;
    let parts = tables.into_iter().find(|(name, _)| name == TABLE).map(|(_, parts)| parts);
    let known = [&found.base, &found.chains, &found.sets].map(Vec::len).iter().sum::<usize>();
    let known = known + found.objects.len();
    found.is_alone = !shared && parts.is_some_and(|parts| usize::try_from(parts) == Ok(known));
    Ok(found)
}

fn is_ours(chain: &str) -> bool {
    chain.starts_with(PREFIX) || chain.starts_with(SUCCESSOR_PREFIX)
}

/// References first: rules, then the chains and sets that they used.
pub(super) fn remove_found(batch: &mut Messages, found: &Found) {
    for (chain, handle) in &found.rules {
        nft::delete_rule(batch, TABLE, chain, Some(*handle));
    }
    for chain in &found.chains {
        nft::delete_rule(batch, TABLE, chain, None);
    }
    for chain in &found.chains {
        nft::delete_chain(batch, TABLE, chain);
    }
    for set in &found.sets {
        nft::delete_set(batch, TABLE, set);
    }
    for (kind, name) in &found.objects {
        nft::delete_object(batch, TABLE, *kind, name);
    }
    for table in &found.tables {
        nft::delete_table(batch, table);
    }
}

/// For good: the table goes as well, unless something of the OS is in it.
pub(super) fn remove_all(batch: &mut Messages, found: &Found) {
    remove_found(batch, found);
    if found.is_alone {
        nft::delete_table(batch, TABLE);
    }
}
