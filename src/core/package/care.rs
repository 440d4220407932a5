//! Care for what is installed: checks in the background, damage, fetching anew.
//!
//! A damaged package is not used any more. As soon as no instance is left on it, its row goes, its
//! directory is set aside, and it is fetched again if the last request told where from; else the
//! next request brings it back. Within one request a package is fetched anew once: a disk that
//! damages everything must not make the daemon load for ever.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use crate::core::package::{Image, Packages, Pending};
use crate::model::desired::PackageSource;
use crate::model::failure::Failure;
use crate::model::id::{PackageKey, ServiceKey};
use crate::model::job::{Package, Row, Verified};
use crate::model::store::{Change, Wanted};

/// A package is read completely after so long, and again each time it has passed. The first time is
/// short enough for a vehicle that is seldom on for longer than an hour.
const FIRST_CHECK: Duration = Duration::from_secs(600);
/// See `FIRST_CHECK`.
const CHECK_PERIOD: Duration = Duration::from_secs(24 * 3600);
/// Shortest time between two checks: they must not be noticed.
const CHECK_PAUSE: Duration = Duration::from_secs(30);

/// What is remembered about the health of packages.
#[derive(Debug, Default)]
pub(super) struct Care {
    damaged: BTreeMap<PackageKey, Failure>,
    /// What the last request named, with its place.
    sources: BTreeMap<PackageKey, (usize, Package)>,
    /// Fetched anew since the last request.
    renewed: BTreeSet<PackageKey>,
    checking: Option<PackageKey>,
    /// When each package was checked, or seen first, CLOCK_MONOTONIC.
    due: BTreeMap<PackageKey, Duration>,
    not_before: Duration,
}

impl Care {
    pub(super) fn new(wanted: &[Wanted]) -> Self {
        let source = |(order, wanted): (usize, &Wanted)| {
            (wanted.package.key(), (order, wanted.package.clone()))
        };
        let sources = wanted.iter().enumerate().map(source).collect();
        Self { sources, ..Self::default() }
    }

    pub(super) fn forget_sources(&mut self) {
        self.sources.clear();
        self.renewed.clear();
    }

    /// The first entry of a key wins.
    pub(super) fn add_source(&mut self, key: &PackageKey, order: usize, package: &Package) {
        self.sources.entry(key.clone()).or_insert_with(|| (order, package.clone()));
    }

    pub(super) fn forget(&mut self, key: &PackageKey) {
        self.damaged.remove(key);
        self.due.remove(key);
    }
}

impl Packages {
    pub fn has_damaged(&self) -> bool {
        !self.care.damaged.is_empty()
    }

    /// Why an installed package must not be used.
    pub(super) fn damage(&self, key: &PackageKey) -> Option<&Failure> {
        self.care.damaged.get(key)
    }

    /// As `damage`, of a service.
    pub fn damage_of_service(&self, key: &ServiceKey) -> Option<&Failure> {
        // Most of the time nothing is damaged, and no key has to be made.
        if self.care.damaged.is_empty() {
            return None;
        }
        self.damage(&PackageKey::Service(key.clone()))
    }

    /// A package is not what it was when it was installed.
    pub fn note_damage(&mut self, key: &PackageKey, failure: Failure) {
        if !self.has(key) {
            return;
        }
        log::error!("installed package cannot be used package={key} err={failure}");
        if let PackageKey::Service(key) = key
            && let Some(service) = self.services.get_mut(key)
        {
            service.image = Image::Unread;
        }
        self.care.damaged.insert(key.clone(), failure);
    }

    /// Gives up damaged packages that no instance uses any more and that can be fetched again.
    /// True if there was one.
    pub fn renew_damaged(
        &mut self,
        in_use: &BTreeSet<PackageKey>,
        changes: &mut Vec<Change>,
    ) -> bool {
        if self.removing.is_some() {
            return false;
        }
        let care = &self.care;
        let ready = |key: &&PackageKey| {
            !in_use.contains(key)
                && !self.at_risk.contains(key)
                && care.checking.as_ref() != Some(key)
                && care.sources.contains_key(key)
                && !care.renewed.contains(key)
        };
        let ready: Vec<PackageKey> = care.damaged.keys().filter(ready).cloned().collect();
        for key in &ready {
            self.renew(key, changes);
        }
        !ready.is_empty()
    }

    fn renew(&mut self, key: &PackageKey, changes: &mut Vec<Change>) {
        let Some((order, package)) = self.care.sources.get(key).cloned() else { return };
        let path = match key {
            PackageKey::Service(key) => self.services.get(key).map(|s| s.row.path.clone()),
            PackageKey::Layer(digest) => self.layers.get(digest).map(|l| l.path.clone()),
        };
        self.discard.extend(path.map(|path| (key.clone(), path)));
        self.forget(key, changes);
        self.care.renewed.insert(key.clone());
        let wanted = Wanted { package, attempts_begun: 0, last_error: String::new() };
        changes.push(Change::PutWanted(wanted.clone()));
        self.pending.insert(key.clone(), Pending::new(wanted, order));
    }

    /// The next package to be read completely, if nothing else is going on; `next` gets when to
    /// ask again (CLOCK_MONOTONIC).
    pub fn next_check(&mut self, now: Duration, next: &mut Option<Duration>) -> Option<Row> {
        if !self.is_idle() || self.care.checking.is_some() {
            return None;
        }
        self.note_new(now);
        let (key, at) = self.care.due.iter().min_by_key(|(_, at)| **at)?;
        // What was taken over is described at once, the rest must not be noticed.
        let at = if at.is_zero() { *at } else { (*at).max(self.care.not_before) };
        if now < at {
            *next = Some(next.map_or(at, |next| next.min(at)));
            return None;
        }
        let row = match key {
            PackageKey::Service(key) => Row::Service(self.services.get(key)?.row.clone()),
            PackageKey::Layer(digest) => Row::Layer(self.layers.get(digest)?.clone()),
        };
        self.care.checking = Some(row.key());
        Some(row)
    }

    /// What was just installed or found needs no check for a while.
    fn note_new(&mut self, now: Duration) {
        let due = &mut self.care.due;
        // What is forgotten leaves the list as well, so equal sizes mean equal keys.
        if due.len() == self.services.len() + self.layers.len() {
            return;
        }
        let services = self.services.keys().cloned().map(PackageKey::Service);
        for key in services.chain(self.layers.keys().cloned().map(PackageKey::Layer)) {
            due.entry(key).or_insert(now + FIRST_CHECK);
        }
    }

    /// A check has ended; true if the package turned out to be damaged.
    pub fn checked(
        &mut self,
        key: &PackageKey,
        result: Result<Verified, Failure>,
        now: Duration,
        changes: &mut Vec<Change>,
    ) -> bool {
        self.care.checking = None;
        self.care.not_before = now + CHECK_PAUSE;
        if !self.has(key) {
            return false;
        }
        self.care.due.insert(key.clone(), now + CHECK_PERIOD);
        match result {
            Ok(verified) => {
                log::debug!("checked package={key}");
                self.note_tree(key, verified.tree_digest, changes);
            }
            Err(failure) if failure.transient => {
                // The disk may give it later, or another job was more urgent.
                log::info!("cannot check now package={key} err={failure}");
                self.care.due.insert(key.clone(), now + FIRST_CHECK);
            }
            Err(failure) => {
                self.note_damage(key, failure);
                return true;
            }
        }
        false
    }

    /// What was taken over has a digest of ours after its first check.
    fn note_tree(&mut self, key: &PackageKey, digest: String, changes: &mut Vec<Change>) {
        match key {
            PackageKey::Service(key) => {
                let Some(service) = self.services.get_mut(key) else { return };
                if service.row.tree_digest.is_empty() && !digest.is_empty() {
                    Arc::make_mut(&mut service.row).tree_digest = digest;
                    changes.push(Change::PutService((*service.row).clone()));
                }
            }
            PackageKey::Layer(key) => {
                let Some(row) = self.layers.get_mut(key) else { return };
                if row.tree_digest.is_empty() && !digest.is_empty() {
                    row.tree_digest = digest;
                    changes.push(Change::PutLayer(row.clone()));
                }
            }
        }
    }

    /// What was taken over gets to know from which package file it came: the same version was
    /// checked against the same hash when it was installed. With that it survives its row, so it
    /// is checked and described at once.
    pub(super) fn note_origin(
        &mut self,
        key: &PackageKey,
        source: &PackageSource,
        changes: &mut Vec<Change>,
    ) {
        let hash = &source.sha3_256;
        let known = match key {
            _ if hash.is_empty() => return,
            PackageKey::Service(key) => self.services.get(key).map(|s| &s.row.package_digest),
            PackageKey::Layer(digest) => self.layers.get(digest).map(|l| &l.package_digest),
        };
        if known.is_none_or(|known| !known.is_empty()) {
            return;
        }
        self.care.due.insert(key.clone(), Duration::ZERO);
        match key {
            PackageKey::Service(key) => {
                let Some(service) = self.services.get_mut(key) else { return };
                Arc::make_mut(&mut service.row).package_digest.clone_from(hash);
                changes.push(Change::PutService((*service.row).clone()));
            }
            PackageKey::Layer(digest) => {
                let Some(row) = self.layers.get_mut(digest) else { return };
                row.package_digest.clone_from(hash);
                changes.push(Change::PutLayer(row.clone()));
            }
        }
    }

    fn has(&self, key: &PackageKey) -> bool {
        match key {
            PackageKey::Service(key) => self.services.contains_key(key),
            PackageKey::Layer(digest) => self.layers.contains_key(digest),
        }
    }
}
