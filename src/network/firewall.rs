//! The rules of the node in nf_tables, changed in transactions: an instance appears or vanishes
//! with all its entries at once, and the whole state can be made anew without a gap.
//!
//! Runs on the net thread. `entries` mirrors what our sets hold. At a start the entries found in
//! the kernel are carried over, so that instances that outlived the daemon lose no packet; `retain`
//! drops what nobody claimed. Foreign tables, chains and rules are never touched.

use std::collections::BTreeSet;
use std::time::Duration;

use log::{debug, warn};
use nix::errno::Errno;

use super::channel::Channel;
use super::error::{Error, Refusal};
use super::nft;
use super::rules::{self, BASE_CHAINS, Entry, Key, PREFIX, SUCCESSOR_PREFIX, Set, TABLE};
use super::wire::Messages;
use crate::sys::netlink::Family;

/// Keys of one message: 256 keys of 32 bytes stay below the 64 KiB of an attribute.
const KEYS_PER_MESSAGE: usize = 256;
/// Pauses before a commit that collided with another one is repeated.
const RETRY_PAUSES: [Duration; 3] =
    [Duration::from_millis(1), Duration::from_millis(5), Duration::from_millis(25)];
/// What a kernel without it lacks.
const FEATURE: &str = "nf_tables with nat, masquerade and conntrack";

/// The firewall of the node; without a channel it is switched off by configuration.
#[derive(Debug)]
pub(super) struct Firewall {
    channel: Option<Channel>,
    open_inbound: bool,
    /// Our rules stand in the kernel.
    installed: bool,
    entries: BTreeSet<Entry>,
}

/// What of ours stands in the kernel.
#[derive(Debug, Default)]
struct Found {
    /// Base chains that exist, ours or the OS's.
    base: Vec<String>,
    /// Rules to delete one by one: chain and handle.
    rules: Vec<(String, u64)>,
    chains: Vec<String>,
    sets: Vec<String>,
}

impl Firewall {
    /// Opens the channel; nothing is changed yet.
    pub(super) fn open(enabled: bool, open_inbound: bool) -> Result<Self, Error> {
        let channel = enabled.then(|| Channel::open(Family::Netfilter)).transpose()?;
        Ok(Self { channel, open_inbound, installed: false, entries: BTreeSet::new() })
    }

    /// Installs the rules, with the entries that an earlier life of the daemon has left.
    pub(super) fn start(&mut self) -> Result<(), Error> {
        let Some(channel) = &mut self.channel else { return Ok(()) };
        self.entries = left_entries(channel).map_err(|error| error.lacking(FEATURE))?;
        self.rebuild()
    }

    /// Makes everything anew in one transaction.
    pub(super) fn rebuild(&mut self) -> Result<(), Error> {
        let Some(channel) = &mut self.channel else { return Ok(()) };
        self.installed = false;
        let found = survey(channel).map_err(|error| error.lacking(FEATURE))?;
        let mut batch = nft::begin();
        nft::new_table(&mut batch, TABLE);
        remove_found(&mut batch, &found);
        let missing: Vec<&str> = BASE_CHAINS
            .iter()
            .map(|(name, _)| *name)
            .filter(|name| !found.base.iter().any(|base| base == name))
            .collect();
        rules::install(&mut batch, &missing, self.open_inbound);
        add_entries(&mut batch, self.entries.iter());
        nft::end(&mut batch);
        commit(channel, &mut batch).map_err(|error| lacking_parts(error.lacking(FEATURE)))?;
        self.installed = true;
        Ok(())
    }

    /// Adds entries in one transaction; those that are there stay.
    pub(super) fn add(&mut self, entries: &[Entry]) -> Result<(), Error> {
        self.change(entries, &[])
    }

    /// Removes entries in one transaction.
    pub(super) fn remove(&mut self, entries: &[Entry]) -> Result<(), Error> {
        self.change(&[], entries)
    }

    /// Removes all entries but these.
    pub(super) fn retain(&mut self, wanted: &BTreeSet<Entry>) -> Result<(), Error> {
        let extra: Vec<Entry> = self.entries.difference(wanted).cloned().collect();
        let missing: Vec<Entry> = wanted.difference(&self.entries).cloned().collect();
        self.change(&missing, &extra)
    }

    fn change(&mut self, added: &[Entry], removed: &[Entry]) -> Result<(), Error> {
        let Some(channel) = &mut self.channel else { return Ok(()) };
        let new: Vec<&Entry> = added.iter().filter(|e| !self.entries.contains(*e)).collect();
        let old: Vec<&Entry> = removed.iter().filter(|e| self.entries.contains(*e)).collect();
        if !self.installed {
            return self.change_and_rebuild(added, removed);
        }
        if new.is_empty() && old.is_empty() {
            return Ok(());
        }
        let mut batch = nft::begin();
        delete_entries(&mut batch, old.into_iter());
        add_entries(&mut batch, new.into_iter());
        nft::end(&mut batch);
        let result = commit(channel, &mut batch);
        self.settle(added, removed, result)
    }

    /// After a commit: the mirror follows. If the kernel does not have what the mirror says,
    /// somebody flushed the rules: all of them are made anew.
    fn settle(
        &mut self,
        added: &[Entry],
        removed: &[Entry],
        result: Result<(), Error>,
    ) -> Result<(), Error> {
        match result {
            Ok(()) => {
                self.entries.retain(|entry| !removed.contains(entry));
                self.entries.extend(added.iter().cloned());
                Ok(())
            }
            Err(Error::Kernel(refusal)) if refusal.errno == Errno::ENOENT => {
                warn!("firewall rules were changed by somebody else; making them anew");
                self.change_and_rebuild(added, removed)
            }
            other => other,
        }
    }

    /// What could not be added is not remembered, what was to be removed is forgotten anyway.
    fn change_and_rebuild(&mut self, added: &[Entry], removed: &[Entry]) -> Result<(), Error> {
        self.entries.retain(|entry| !removed.contains(entry));
        self.entries.extend(added.iter().cloned());
        let rebuilt = self.rebuild();
        if rebuilt.is_err() {
            self.entries.retain(|entry| !added.contains(entry));
        }
        rebuilt
    }
}

/// Commits a batch; a collision with somebody else's commit is repeated.
fn commit(channel: &mut Channel, batch: &mut Messages) -> Result<(), Error> {
    debug!("firewall transaction messages={} bytes={}", batch.len(), batch.size_bytes());
    for pause in RETRY_PAUSES {
        match channel.commit(batch) {
            Err(Error::Kernel(refusal)) if refusal.is_transient() => std::thread::sleep(pause),
            other => return other,
        }
    }
    channel.commit(batch)
}

/// A missing expression, chain type or table type is reported as "no such entry".
fn lacking_parts(error: Error) -> Error {
    match error {
        Error::Kernel(source @ Refusal { errno: Errno::ENOENT, .. }) => {
            Error::Unsupported { feature: FEATURE, source }
        }
        other => other,
    }
}

/// The entries of our sets in the kernel.
fn left_entries(channel: &mut Channel) -> Result<BTreeSet<Entry>, Error> {
    let mut entries = BTreeSet::new();
    for (name, key_bytes) in list(channel, &mut nft::list_sets(TABLE), nft::parse_set)? {
        let known = Set::ALL.into_iter().find(|set| set.name() == name);
        let Some(set) = known.filter(|set| set.key().1 == key_bytes) else { continue };
        let mut request = nft::list_elements(TABLE, set.name());
        for key in list(channel, &mut request, nft::parse_elements)?.iter().flatten() {
            entries.extend(Key::from_slice(key).ok().map(|key| (set, key)));
        }
    }
    Ok(entries)
}

/// A dump in which a missing table counts as empty.
fn list<T>(
    channel: &mut Channel,
    request: &mut Messages,
    parse: impl FnMut(&super::wire::Message<'_>) -> Option<T>,
) -> Result<Vec<T>, Error> {
    match channel.dump(request, parse) {
        Err(Error::Kernel(refusal)) if refusal.errno == Errno::ENOENT => Ok(Vec::new()),
        other => other,
    }
}

fn survey(channel: &mut Channel) -> Result<Found, Error> {
    let mut found = Found::default();
    for chain in list(channel, &mut nft::list_chains(), nft::parse_chain)? {
        if chain.table != TABLE {
            if chain.hook == Some(nft::HOOK_FORWARD) && chain.drops {
                warn!(
                    "a foreign chain drops forwarded packets table={} chain={}",
                    chain.table, chain.name
                );
            }
        } else if is_ours(&chain.name) {
            found.chains.push(chain.name);
        } else if chain.hook.is_some() {
            found.base.push(chain.name);
        }
    }
    for rule in list(channel, &mut nft::list_rules(TABLE), nft::parse_rule)? {
        let foreign_chain = !is_ours(&rule.chain);
        if foreign_chain && (rule.comment == rules::COMMENT || is_ours(&rule.target)) {
            found.rules.push((rule.chain, rule.handle));
        }
    }
    let sets = list(channel, &mut nft::list_sets(TABLE), nft::parse_set)?;
    found.sets = sets.into_iter().map(|(name, _)| name).filter(|n| n.starts_with(PREFIX)).collect();
    Ok(found)
}

fn is_ours(chain: &str) -> bool {
    chain.starts_with(PREFIX) || chain.starts_with(SUCCESSOR_PREFIX)
}

/// References first: rules, then the chains and sets that they used.
fn remove_found(batch: &mut Messages, found: &Found) {
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
}

fn add_entries<'a>(batch: &mut Messages, entries: impl Iterator<Item = &'a Entry>) {
    for_each_set(entries, |set, keys| {
        nft::new_elements(batch, TABLE, set.name(), keys.iter().map(|key| key.as_slice()));
    });
}

fn delete_entries<'a>(batch: &mut Messages, entries: impl Iterator<Item = &'a Entry>) {
    for_each_set(entries, |set, keys| {
        nft::delete_elements(batch, TABLE, set.name(), keys.iter().map(|key| key.as_slice()));
    });
}

/// Gathers the keys of each set, in portions that fit one message.
fn for_each_set<'a>(
    entries: impl Iterator<Item = &'a Entry>,
    mut act: impl FnMut(Set, &[&'a Key]),
) {
    let mut sorted: Vec<&Entry> = entries.collect();
    sorted.sort_unstable();
    for same in sorted.chunk_by(|a, b| a.0 == b.0) {
        for portion in same.chunks(KEYS_PER_MESSAGE) {
            let keys: Vec<&Key> = portion.iter().map(|(_, key)| key).collect();
            act(portion[0].0, &keys);
        }
    }
}
