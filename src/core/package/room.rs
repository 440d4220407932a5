//! Room: what may be evicted, and what goes because its time is over.
//!
//! A package that no request names and no instance uses may be evicted, the one that has been
//! unused longest first, and goes by itself when its time to live has passed since it became
//! unused. Not here: how much room is needed (the image store).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use crate::core::package::Packages;
use crate::model::failure::Failure;
use crate::model::id::PackageKey;
use crate::model::job::{Evictable, Package};
use crate::model::store::Change;

/// Answer of `next_removal`.
#[derive(Debug, PartialEq)]
pub enum Removal {
    Now(Evictable),
    /// Unix time in milliseconds.
    At(i64),
    None,
}

impl Packages {
    /// Size of all installed packages of the same kind.
    pub(super) fn used_bytes(&self, like: &Package) -> u64 {
        match like {
            Package::Service(_) => self.services.values().map(|s| s.row.size_bytes).sum(),
            Package::Layer(_) => self.layers.values().map(|l| l.size_bytes).sum(),
        }
    }

    /// Unused packages, the one that has been unused longest first.
    pub(super) fn evictable(&self, in_use: &BTreeSet<PackageKey>) -> Vec<Evictable> {
        let services = self.services.iter().filter_map(|(key, s)| {
            let since = s.row.unused_since_ms?;
            let key = PackageKey::Service(key.clone());
            Some((since, Evictable { key, path: s.row.path.clone(), size_bytes: s.row.size_bytes }))
        });
        let layers = self.layers.iter().filter_map(|(digest, row)| {
            let key = PackageKey::Layer(digest.clone());
            Some((
                row.unused_since_ms?,
                Evictable { key, path: row.path.clone(), size_bytes: row.size_bytes },
            ))
        });
        let mut list: Vec<(i64, Evictable)> =
            services.chain(layers).filter(|(_, e)| !in_use.contains(&e.key)).collect();
        list.sort_by_key(|(since, _)| *since);
        list.into_iter().map(|(_, evictable)| evictable).collect()
    }

    /// What did not fit is tried again when more could be evicted than before: an instance has been
    /// stopped since. True if there is something to try.
    pub fn reconsider(&mut self, in_use: &BTreeSet<PackageKey>) -> bool {
        if self.pending.values().all(|pending| pending.offered.is_none()) {
            return false;
        }
        let evictable = self.evictable(in_use);
        let mut found = false;
        for pending in self.pending.values_mut() {
            let Some(offered) = &pending.offered else { continue };
            if evictable.iter().any(|one| !offered.contains(&one.key)) {
                pending.offered = None;
                pending.failure = None;
                found = true;
            }
        }
        found
    }

    /// Tells who has taken the room that is missing, one line for each provider.
    pub(super) fn log_room(&self) {
        let mut taken: BTreeMap<&str, (u32, u64)> = BTreeMap::new();
        for service in self.services.values() {
            let entry = taken.entry(service.row.provider_id.as_str()).or_default();
            *entry = (entry.0 + 1, entry.1.saturating_add(service.row.size_bytes));
        }
        for (provider, (services, size)) in taken {
            log::info!("taken by services provider={provider} services={services} size={size}");
        }
        let size: u64 = self.layers.values().map(|layer| layer.size_bytes).sum();
        log::info!("taken by layers layers={} size={size}", self.layers.len());
    }

    /// A package whose time is over, if nothing else is going on. Otherwise when to look again
    /// (Unix time, milliseconds).
    pub fn next_removal(
        &mut self,
        in_use: &BTreeSet<PackageKey>,
        service_ttl: Duration,
        layer_ttl: Duration,
        now_ms: i64,
    ) -> Removal {
        if !self.is_idle() {
            return Removal::None;
        }
        let mut next = None;
        for evictable in self.evictable(in_use) {
            let ttl = match evictable.key {
                PackageKey::Service(_) => service_ttl,
                PackageKey::Layer(_) => layer_ttl,
            };
            let ttl_ms = i64::try_from(ttl.as_millis()).unwrap_or(i64::MAX);
            let due = self.unused_since(&evictable.key).unwrap_or(now_ms).saturating_add(ttl_ms);
            if due < now_ms {
                self.removing = Some(evictable.key.clone());
                return Removal::Now(evictable);
            }
            next = Some(next.map_or(due, |n: i64| n.min(due)));
        }
        next.map_or(Removal::None, |due| Removal::At(due.saturating_add(1)))
    }

    fn unused_since(&self, key: &PackageKey) -> Option<i64> {
        match key {
            PackageKey::Service(key) => self.services.get(key)?.row.unused_since_ms,
            PackageKey::Layer(digest) => self.layers.get(digest)?.unused_since_ms,
        }
    }

    pub fn removed(
        &mut self,
        key: &PackageKey,
        result: Result<(), Failure>,
        now_ms: i64,
        changes: &mut Vec<Change>,
    ) {
        self.removing = None;
        match result {
            Ok(()) => self.forget(key, changes),
            Err(failure) => {
                log::error!("cannot remove package={key} err={failure}");
                self.postpone(key, now_ms, changes);
            }
        }
    }

    /// A directory that cannot be removed is not tried again before its time to live has passed
    /// once more.
    fn postpone(&mut self, key: &PackageKey, now_ms: i64, changes: &mut Vec<Change>) {
        match key {
            PackageKey::Service(key) => {
                if let Some(service) = self.services.get_mut(key) {
                    Arc::make_mut(&mut service.row).unused_since_ms = Some(now_ms);
                    changes.push(Change::PutService((*service.row).clone()));
                }
            }
            PackageKey::Layer(digest) => {
                if let Some(row) = self.layers.get_mut(digest) {
                    row.unused_since_ms = Some(now_ms);
                    changes.push(Change::PutLayer(row.clone()));
                }
            }
        }
    }
}
