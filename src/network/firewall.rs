//! The rules of the node in nf_tables, changed in transactions: an instance appears or vanishes
//! with all its entries at once, and the whole state can be made anew without a gap.
//!
//! Runs on the net thread. `entries` mirrors what our sets hold. At a start the entries found in
//! the kernel are carried over, so that instances that outlived the daemon lose no packet; `retain`
//! drops what nobody claimed. Foreign tables, chains and rules are never touched.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::Ipv4Addr;

use log::{debug, warn};
use nix::errno::Errno;

use super::accounting::{self, Gauge, Meter, Stop};
use super::channel::{Channel, RETRY_PAUSES};
use super::conntrack;
use super::domain::chain;
use super::error::{Error, Refusal};
use super::found::{self, left_entries, left_meters, list};
use super::listing::{self, Afterwards, Count};
use super::nft::{self, object};
use super::rules::{self, BASE_CHAINS, Entry, Key, Policy, Set, TABLE};
use super::wire::Messages;
use crate::model::id::InstanceId;
use crate::model::traffic::{Traffic, Volume};
use crate::sys::is_errno;
use crate::sys::netlink::Family;

/// Keys of one message: 256 keys of 32 bytes stay below the 64 KiB of an attribute.
const KEYS_PER_MESSAGE: usize = 256;
/// Room for meters at first; 4 KiB of each of four maps.
const MIN_CAPACITY: u32 = 256;
/// How often the rules are made anew while others change theirs.
const MAX_REBUILDS: u32 = 8;
/// Tables of the older packet filter, which nf_tables does not list.
const LEGACY_TABLES: &str = "/proc/thread-self/net/ip_tables_names";
/// Name of a table that exists within one batch only.
const PROBE: &str = "aos-probe";
/// What a kernel without it lacks.
const FEATURE: &str = "nf_tables with nat, masquerade and conntrack";

/// The firewall of the node; without a channel it is switched off by configuration.
#[derive(Debug)]
pub(super) struct Firewall {
    /// `None` = switched off, or missing.
    channel: Option<Channel>,
    /// The kernel does not even have the protocol: everything that needs rules fails.
    missing: bool,
    policy: Policy,
    /// Our rules stand in the kernel.
    installed: bool,
    entries: BTreeSet<Entry>,
    meters: BTreeMap<InstanceId, Meter>,
    /// So many meters have room in the kernel's maps; for more the rules are made anew.
    capacity: u32,
    /// Who is stopped, where that is not for the kernel to notice.
    stopped: BTreeSet<Stop>,
    /// Number of the last change of nf_tables, if it was ours and nobody else's came between.
    settled: Option<u32>,
    /// What the node has counted, when it was looked at last.
    node: Volume,
}

/// What comes and goes with an instance or a network.
#[derive(Clone, Debug, Default)]
pub(super) struct Share {
    pub(super) entries: Vec<Entry>,
    pub(super) meters: Vec<(InstanceId, Meter)>,
}

/// The kernel has no netlink of this family.
fn lacks_protocol(error: &io::Error) -> bool {
    is_errno(error, Errno::EPROTONOSUPPORT)
}

fn open_channel() -> Result<Channel, Error> {
    Channel::open(Family::Netfilter)
}

impl Firewall {
    /// Opens the channel; nothing is changed yet.
    pub(super) fn open(enabled: bool, policy: Policy) -> Result<Self, Error> {
        let (channel, missing) = match enabled.then(open_channel) {
            None => (None, false),
            Some(Ok(channel)) => (Some(channel), false),
            Some(Err(Error::Socket { source, .. })) if lacks_protocol(&source) => (None, true),
            Some(Err(error)) => return Err(error),
        };
        let (entries, meters) = (BTreeSet::new(), BTreeMap::new());
        let (settled, node, stopped) = (None, Volume::default(), BTreeSet::new());
        Ok(Self {
            channel,
            missing,
            policy,
            installed: false,
            entries,
            meters,
            capacity: MIN_CAPACITY,
            stopped,
            settled,
            node,
        })
    }

    fn check_missing(&self) -> Result<(), Error> {
        let (operation, errno) = ("open netlink socket", Errno::EPROTONOSUPPORT);
        let refusal = Refusal { index: 0, operation, errno, text: String::new() };
        if self.missing { Err(Error::Kernel(refusal).naming(FEATURE)) } else { Ok(()) }
    }

    /// Installs the rules, with the entries and counters that an earlier life of the daemon has
    /// left; the node has counted at least `node` before.
    pub(super) fn start(&mut self, node: Volume) -> Result<(), Error> {
        self.node = node;
        self.check_missing()?;
        // Rules of a life that had them would know none of the instances to come.
        let Some(channel) = &mut self.channel else { return self.withdraw() };
        self.entries = left_entries(channel).map_err(|error| error.lacking(FEATURE))?;
        self.meters = left_meters(channel).map_err(|error| error.lacking(FEATURE))?;
        let legacy = std::fs::read_to_string(LEGACY_TABLES).unwrap_or_default();
        if legacy.lines().any(|table| table == "filter") {
            warn!("rules of legacy iptables may drop packets, too table=filter");
        }
        self.rebuild()
    }

    /// Port number under which the kernel announces our own changes; `None` = switched off.
    pub(super) fn own_port(&self) -> Option<u32> {
        self.channel.as_ref().map(Channel::port)
    }

    /// Makes everything anew in one transaction. Counters go on with what they have counted. If
    /// somebody changes something between the look at what stands and the commit, such as the boot
    /// scripts of the OS, that begins again.
    pub(super) fn rebuild(&mut self) -> Result<(), Error> {
        for _ in 0..MAX_REBUILDS {
            let before = self.channel.as_mut().and_then(generation);
            match self.rebuild_after(before) {
                Err(Error::Kernel(refusal)) if refusal.errno == Errno::ERESTART => {}
                other => return other,
            }
        }
        self.rebuild_after(None)
    }

    /// `before`: number of the last change; `None` = whatever was changed.
    fn rebuild_after(&mut self, before: Option<u32>) -> Result<(), Error> {
        self.check_missing()?;
        let Some(channel) = &mut self.channel else { return Ok(()) };
        (self.installed, self.settled) = (false, None);
        let found = found::survey(channel).map_err(|error| error.lacking(FEATURE))?;
        // As late as possible: what passes between here and the commit is not counted.
        if let Err(err) = self.read_counters() {
            warn!("counters begin with values of some time ago err={}", chain(&err));
        }
        let Some(channel) = &mut self.channel else { return Ok(()) };
        let mut batch = before.map_or_else(nft::begin, nft::begin_after);
        nft::new_table(&mut batch, TABLE);
        found::remove_found(&mut batch, &found);
        let missing: Vec<&str> = BASE_CHAINS
            .iter()
            .map(|(name, _)| *name)
            .filter(|name| !found.base.iter().any(|base| base == name))
            .collect();
        self.capacity = capacity_for(self.meters.len());
        rules::install(&mut batch, &missing, &self.policy, self.node, self.capacity);
        add_entries(&mut batch, self.entries.iter());
        accounting::add(&mut batch, self.policy.polled, self.meters.iter());
        let stopped = stops(&self.policy, self.meters.values());
        accounting::change_stops(&mut batch, &BTreeSet::new(), &stopped);
        nft::end(&mut batch);
        commit(channel, &mut batch).map_err(|error| lacking_parts(error.lacking(FEATURE)))?;
        (self.installed, self.stopped) = (true, stopped);
        let after = generation(channel);
        self.settled = after.filter(|after| before.map(|b| b.wrapping_add(1)) == Some(*after));
        Ok(())
    }

    /// Takes all our rules out of the kernel, whichever life of the daemon made them, and makes none
    /// any more; with them goes our table, if nothing of the OS is in it.
    pub(super) fn withdraw(&mut self) -> Result<(), Error> {
        let mut channel = match self.channel.take().map_or_else(open_channel, Ok) {
            Err(Error::Socket { source, .. }) if lacks_protocol(&source) => return Ok(()),
            other => other?,
        };
        self.installed = false;
        self.entries.clear();
        self.meters.clear();
        for _ in 1..MAX_REBUILDS {
            match remove_all(&mut channel) {
                Err(Error::Kernel(refusal)) if refusal.errno == Errno::ERESTART => {}
                other => return other,
            }
        }
        remove_all(&mut channel)
    }

    /// Nobody has changed anything in nf_tables since all rules were made anew.
    pub(super) fn is_settled(&mut self) -> bool {
        let now = self.channel.as_mut().and_then(generation);
        self.settled.is_some() && self.settled == now
    }

    /// From now on speed is limited by dropping packets.
    pub(super) fn police(&mut self) -> Result<(), Error> {
        let new = !std::mem::replace(&mut self.policy.police, true);
        if new && self.installed { self.rebuild() } else { Ok(()) }
    }

    /// The kernel compares volumes with limits by itself.
    pub(super) fn has_quotas(&mut self) -> bool {
        self.has_objects(object::QUOTA, nft::NEW_QUOTA, |batch| {
            nft::new_quota(batch, PROBE, PROBE, 1, 0);
        })
    }

    /// The kernel can drop what is too fast.
    pub(super) fn has_limits(&mut self) -> bool {
        self.has_objects(object::LIMIT, nft::NEW_LIMIT, |batch| {
            nft::new_limit(batch, PROBE, PROBE, 1, 1);
        })
    }

    /// Makes an object for a moment. A kernel that knows none of its kind says "no such entry", as
    /// it does where somebody has deleted our rules; so that is asked apart from them.
    fn has_objects(
        &mut self,
        kind: u32,
        operation: &'static str,
        add: impl FnOnce(&mut Messages),
    ) -> bool {
        let Some(channel) = &mut self.channel else { return true };
        let mut batch = nft::begin();
        nft::new_table(&mut batch, PROBE);
        add(&mut batch);
        nft::delete_object(&mut batch, PROBE, kind, PROBE);
        nft::delete_table(&mut batch, PROBE);
        nft::end(&mut batch);
        let lacks = |refusal: &Refusal| {
            refusal.operation == operation
                && (refusal.errno == Errno::ENOENT || refusal.is_unsupported())
        };
        !matches!(commit(channel, &mut batch), Err(Error::Kernel(refusal)) if lacks(&refusal))
    }

    /// The kernel cannot carry out these operations, once each.
    #[cfg(test)]
    pub(super) fn refuse(&mut self, operations: &[(&'static str, Errno)]) {
        if let Some(channel) = &mut self.channel {
            channel.refused = operations.to_vec();
        }
    }

    /// Before `start`: volumes are compared with limits in `stop_and_release` alone.
    pub(super) fn poll_limits(&mut self) {
        self.policy.polled = true;
    }

    /// Somebody must look at volumes from time to time.
    pub(super) fn has_polled_limits(&self) -> bool {
        let limited =
            |meter: &Meter| meter.has(Gauge::DownloadLimit) || meter.has(Gauge::UploadLimit);
        self.policy.polled && self.meters.values().any(limited)
    }

    /// After the counters were read: stops who has used up his volume, and releases who may go on.
    /// Returns how many are stopped that were not.
    pub(super) fn stop_and_release(&mut self) -> Result<usize, Error> {
        let stopped = stops(&self.policy, self.meters.values());
        let Some(channel) = self.channel.as_mut().filter(|_| self.installed) else { return Ok(0) };
        if stopped == self.stopped {
            return Ok(0);
        }
        let mut batch = nft::begin();
        accounting::change_stops(&mut batch, &self.stopped, &stopped);
        nft::end(&mut batch);
        commit(channel, &mut batch)?;
        let new = stopped.difference(&self.stopped).count();
        self.stopped = stopped;
        Ok(new)
    }

    /// Gives an instance another share of the rules in one transaction; counters go on.
    pub(super) fn replace(&mut self, old: &Share, new: &Share) -> Result<(), Error> {
        let is_obsolete = |entry: &&Entry| !new.entries.contains(entry);
        let entries = old.entries.iter().filter(is_obsolete).cloned().collect();
        self.change(new, &Share { entries, meters: Vec::new() })
    }

    /// Adds entries and counters in one transaction; those that are there stay.
    pub(super) fn add(&mut self, share: &Share) -> Result<(), Error> {
        self.change(share, &Share::default())
    }

    /// Removes entries and counters in one transaction.
    pub(super) fn remove(&mut self, share: &Share) -> Result<(), Error> {
        self.change(&Share::default(), share)
    }

    /// Removes all but these.
    pub(super) fn retain(
        &mut self,
        wanted: &BTreeSet<Entry>,
        instances: &BTreeSet<InstanceId>,
    ) -> Result<(), Error> {
        let others = self.meters.iter().filter(|(id, _)| !instances.contains(*id));
        let extra = Share {
            entries: self.entries.difference(wanted).cloned().collect(),
            meters: others.map(|(id, meter)| (id.clone(), *meter)).collect(),
        };
        let missing = Share {
            entries: wanted.difference(&self.entries).cloned().collect(),
            meters: Vec::new(),
        };
        self.change(&missing, &extra)
    }

    /// Reads all counters of the kernel.
    pub(super) fn read_counters(&mut self) -> Result<(), Error> {
        let Some(channel) = &mut self.channel else { return Ok(()) };
        let mut request = listing::list_objects(TABLE, object::COUNTER, Afterwards::Keep);
        for (name, count) in list(channel, &mut request, listing::parse_object)? {
            self.note(&name, count);
        }
        Ok(())
    }

    /// Reads the counters of some instances, as long as they have some.
    pub(super) fn read_counters_of(&mut self, ids: &[InstanceId]) -> Result<(), Error> {
        let Some(channel) = &mut self.channel else { return Ok(()) };
        let mut request = Messages::new();
        for id in ids.iter().filter(|id| self.meters.contains_key(*id)) {
            for gauge in [Gauge::Download, Gauge::Upload] {
                listing::get_object(&mut request, TABLE, gauge.kind(), &gauge.object(id));
            }
        }
        for (name, count) in channel.collect(&mut request, listing::parse_object)? {
            self.note(&name, count);
        }
        Ok(())
    }

    /// A period has ended: counters begin again, and who was stopped at a limit goes on.
    pub(super) fn reset_counters(&mut self) -> Result<(), Error> {
        let Some(channel) = &mut self.channel else { return Ok(()) };
        // In this order a quota never counts less than its counter, with which it is made anew.
        for kind in [object::QUOTA, object::COUNTER] {
            list(
                channel,
                &mut listing::list_objects(TABLE, kind, Afterwards::Reset),
                listing::parse_object,
            )?;
        }
        self.node = Volume::default();
        self.meters.values_mut().for_each(|meter| meter.volume = Volume::default());
        Ok(())
    }

    /// Lets nothing of the connections of these addresses reach their next owners. `false`: the
    /// kernel takes no filter, and should be asked `without_filter`.
    pub(super) fn forget_flows(&mut self, addresses: &[Ipv4Addr]) -> bool {
        let Some(channel) = &mut self.channel else { return true };
        let mut messages = Messages::new();
        addresses.iter().for_each(|address| conntrack::forget(&mut messages, *address));
        match channel.execute(&mut messages) {
            Err(Error::Kernel(refusal)) if refusal.errno == Errno::EINVAL => return false,
            Err(err) => debug!("old connections are not forgotten err={}", chain(&err)),
            Ok(()) => {}
        }
        true
    }

    /// The same on a kernel that takes no filter.
    pub(super) fn forget_flows_without_filter(&mut self, addresses: &[Ipv4Addr]) {
        let Some(channel) = &mut self.channel else { return };
        let mut request = conntrack::list_flows();
        let flows =
            match channel.dump(&mut request, |message| conntrack::parse_flow(message, addresses)) {
                Ok(flows) => flows,
                Err(err) => return debug!("old connections are not listed err={}", chain(&err)),
            };
        for portion in flows.chunks(conntrack::FLOWS_PER_SEND) {
            let mut messages = Messages::new();
            portion.iter().for_each(|flow| conntrack::delete_flow(&mut messages, flow));
            // One that has ended by itself is an error of its own, and the others go all the same.
            if let Err(err) = channel.execute(&mut messages) {
                debug!("an old connection is not forgotten err={}", chain(&err));
            }
        }
    }

    fn note(&mut self, object: &str, count: Count) {
        let Count::Counter { bytes } = count else { return };
        let [node_download, node_upload] = accounting::NODE_COUNTERS;
        if object == node_download {
            self.node.download_bytes = bytes;
        } else if object == node_upload {
            self.node.upload_bytes = bytes;
        } else if let Some(id) = Gauge::Download.owner(object) {
            if let Some(meter) = self.meters.get_mut(&id) {
                meter.volume.download_bytes = bytes;
            }
        } else if let Some(id) = Gauge::Upload.owner(object)
            && let Some(meter) = self.meters.get_mut(&id)
        {
            meter.volume.upload_bytes = bytes;
        }
    }

    /// What the counters of an instance said when they were read last.
    pub(super) fn volume(&self, id: &InstanceId) -> Option<Volume> {
        self.meters.get(id).map(|meter| meter.volume)
    }

    /// What the counters said when they were read last.
    pub(super) fn traffic(&self) -> Traffic {
        let instances = self.meters.iter().map(|(id, meter)| (id.clone(), meter.volume));
        Traffic { node: self.node, instances: instances.collect() }
    }

    fn change(&mut self, added: &Share, removed: &Share) -> Result<(), Error> {
        if !added.entries.is_empty() || !added.meters.is_empty() {
            self.check_missing()?;
        }
        if self.channel.is_none() {
            return Ok(());
        }
        if !self.installed {
            return self.change_and_rebuild(added, removed);
        }
        self.read_replaced(added);
        let Some(channel) = &mut self.channel else { return Ok(()) };
        let new = added.entries.iter().filter(|entry| !self.entries.contains(*entry));
        let old = removed.entries.iter().filter(|entry| self.entries.contains(*entry));
        let new: Vec<&Entry> = new.collect();
        let old: Vec<&Entry> = old.collect();
        let known = |id: &InstanceId| self.meters.get_key_value(id);
        let mut gone: Vec<_> = removed.meters.iter().filter_map(|(id, _)| known(id)).collect();
        let mut fresh: Vec<(InstanceId, Meter)> = Vec::new();
        for (id, meter) in &added.meters {
            match known(id) {
                Some((_, old)) if old.is_like(meter) => {}
                Some((key, old)) => {
                    gone.push((key, old));
                    fresh.push((id.clone(), Meter { volume: old.volume, ..*meter }));
                }
                None => fresh.push((id.clone(), *meter)),
            }
        }
        if new.is_empty() && old.is_empty() && gone.is_empty() && fresh.is_empty() {
            return Ok(());
        }
        let meters = self.meters.len() + fresh.len() - gone.len();
        if capacity_for(meters) > self.capacity {
            return self.change_and_rebuild(added, removed);
        }
        let polled = self.policy.polled;
        let is_gone = |id: &InstanceId| gone.iter().any(|(other, _)| *other == id);
        let staying = self.meters.iter().filter(|(id, _)| !is_gone(id)).map(|(_, meter)| meter);
        let stopped = stops(&self.policy, staying.chain(fresh.iter().map(|(_, meter)| meter)));
        let mut batch = nft::begin();
        delete_entries(&mut batch, old.into_iter());
        accounting::remove(&mut batch, polled, gone.into_iter());
        add_entries(&mut batch, new.into_iter());
        accounting::add(&mut batch, polled, fresh.iter().map(|(id, meter)| (id, meter)));
        accounting::change_stops(&mut batch, &self.stopped, &stopped);
        nft::end(&mut batch);
        let result = commit(channel, &mut batch);
        if result.is_ok() {
            self.stopped = stopped;
        }
        self.settle(added, removed, result)
    }

    /// Reads the counters that are about to be made anew, with limits of another height.
    fn read_replaced(&mut self, added: &Share) {
        let is_replaced = |(id, new): &&(InstanceId, Meter)| {
            self.meters.get(id).is_some_and(|known| !known.is_like(new))
        };
        let replaced = added.meters.iter().filter(is_replaced).map(|(id, _)| id.clone());
        let replaced: Vec<InstanceId> = replaced.collect();
        if !replaced.is_empty()
            && let Err(err) = self.read_counters_of(&replaced)
        {
            warn!("counters begin with values of some time ago err={}", chain(&err));
        }
    }

    /// After a commit: the mirror follows. If the kernel does not have what the mirror says,
    /// somebody flushed the rules: all of them are made anew.
    fn settle(
        &mut self,
        added: &Share,
        removed: &Share,
        result: Result<(), Error>,
    ) -> Result<(), Error> {
        match result {
            Ok(()) => {
                self.mirror(added, removed);
                Ok(())
            }
            Err(Error::Kernel(refusal)) if refusal.errno == Errno::ENOENT => {
                warn!("firewall rules were changed by somebody else; making them anew");
                self.change_and_rebuild(added, removed)
            }
            other => other,
        }
    }

    fn mirror(&mut self, added: &Share, removed: &Share) {
        for entry in &removed.entries {
            self.entries.remove(entry);
        }
        self.entries.extend(added.entries.iter().cloned());
        for (id, _) in &removed.meters {
            self.meters.remove(id);
        }
        for (id, meter) in &added.meters {
            let volume = self.meters.get(id).map_or(meter.volume, |known| known.volume);
            self.meters.insert(id.clone(), Meter { volume, ..*meter });
        }
    }

    /// What could not be added is not remembered, what was to be removed is forgotten anyway.
    fn change_and_rebuild(&mut self, added: &Share, removed: &Share) -> Result<(), Error> {
        self.mirror(added, removed);
        let rebuilt = self.rebuild();
        if rebuilt.is_err() {
            for entry in &added.entries {
                self.entries.remove(entry);
            }
            for (id, _) in &added.meters {
                self.meters.remove(id);
            }
        }
        rebuilt
    }
}

/// Doubled as often as it takes.
fn capacity_for(meters: usize) -> u32 {
    let meters = u32::try_from(meters).unwrap_or(u32::MAX);
    meters.checked_next_power_of_two().map_or(u32::MAX, |capacity| capacity.max(MIN_CAPACITY))
}

/// Who is to be stopped; nobody where the kernel notices by itself.
fn stops<'a>(policy: &Policy, meters: impl Iterator<Item = &'a Meter>) -> BTreeSet<Stop> {
    if policy.polled { accounting::stops(meters) } else { BTreeSet::new() }
}

/// Removes what is ours, unless somebody changes something meanwhile.
fn remove_all(channel: &mut Channel) -> Result<(), Error> {
    let before = generation(channel);
    let found = match found::survey(channel).map_err(|error| error.lacking(FEATURE)) {
        // Then there are none.
        Err(Error::Unsupported { .. }) => return Ok(()),
        other => other?,
    };
    let mut batch = before.map_or_else(nft::begin, nft::begin_after);
    let begun = batch.len();
    found::remove_all(&mut batch, &found);
    if batch.len() == begun {
        return Ok(());
    }
    nft::end(&mut batch);
    commit(channel, &mut batch)
}

/// Number of the last change; an unknown one is none.
fn generation(channel: &mut Channel) -> Option<u32> {
    let answers = channel.collect(&mut listing::get_generation(), listing::parse_generation);
    answers.ok()?.first().copied()
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

#[cfg(test)]
#[path = "firewall_tests.rs"]
mod tests;
