//! Services and layers: wanted, installing, installed, unused, removed.
//!
//! A package is used by its key. What the last request names is wanted: either there is a row of an
//! installed package with no "unused since", or a row of a wanted one that is still to be installed.
//! One package is installed at a time; a failure concerns that package alone. One that may go away
//! by itself is tried again after pauses that grow, behind the packages that were not tried yet; any
//! other lasts until the next request. Not here: damage of what is installed (`care`).

mod care;
mod room;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::core::version;
use crate::model::desired::RunRequest;
use crate::model::failure::Failure;
use crate::model::id::{Digest, PackageKey, ServiceId, ServiceKey};
use crate::model::job::{InstallPlan, Installed, Keep, Package};
use crate::model::service::{InstalledLayer, InstalledService, ServiceImage};
use crate::model::store::{Change, Wanted};
use crate::ports::Now;

pub use room::Removal;

/// An install that was begun so often without an end crashes the daemon (D33).
pub const MAX_CRASHED_ATTEMPTS: u32 = 2;
/// Attempts to install a package for one request, if all of them fail by something transient.
pub const MAX_ATTEMPTS: u32 = 5;
/// Pauses between them; each is longer by up to a quarter, so that nodes do not ask in step. Also
/// those between attempts to read an image that the disk does not give; after the last one it is
/// damaged.
const PAUSES: [Duration; 4] = [
    Duration::from_secs(5),
    Duration::from_secs(15),
    Duration::from_secs(45),
    Duration::from_secs(120),
];
/// Instances wait silently for so long after the first failure; then they are reported as failed,
/// although the attempts go on.
pub const PATIENCE: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub struct Service {
    pub row: Arc<InstalledService>,
    pub image: Image,
    /// Times in a row that the disk did not give the image.
    failed_reads: usize,
}

impl Service {
    fn new(row: InstalledService, image: Image) -> Self {
        Self { row: Arc::new(row), image, failed_reads: 0 }
    }
}

/// The content of an installed service, read when an instance needs it.
#[derive(Debug)]
pub enum Image {
    Unread,
    Reading,
    Read(Arc<ServiceImage>),
    /// The disk does not give it at the moment.
    Unreadable {
        failure: Failure,
        /// Next try, CLOCK_MONOTONIC.
        again: Duration,
    },
}

#[derive(Debug)]
struct Pending {
    wanted: Wanted,
    /// Place in the request.
    order: usize,
    /// Failure of the last attempt; `None` = to be tried.
    failure: Option<Failure>,
    retry: Retry,
    /// Attempts that failed since the request.
    failed_attempts: u32,
    /// Until then (CLOCK_MONOTONIC) nobody is told of failures that may go away.
    quiet_until: Option<Duration>,
    /// It did not fit beside the old version, which goes before the next attempt.
    needs_room: bool,
    /// There was not enough space although all of these could have been evicted.
    offered: Option<BTreeSet<PackageKey>>,
}

/// Is there another attempt after a failure?
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Retry {
    Never,
    /// CLOCK_MONOTONIC.
    At(Duration),
    Running,
}

impl Pending {
    fn new(wanted: Wanted, order: usize) -> Self {
        Self {
            wanted,
            order,
            failure: None,
            retry: Retry::Never,
            failed_attempts: 0,
            quiet_until: None,
            needs_room: false,
            offered: None,
        }
    }

    /// What those that wait for the package are told.
    fn verdict(&self) -> Option<&Failure> {
        let hidden = self.quiet_until.is_some() && self.retry != Retry::Never;
        self.failure.as_ref().filter(|_| !hidden)
    }

    /// Whether an attempt is due.
    fn is_open(&self, key: &PackageKey, now: Duration, in_use: &BTreeSet<PackageKey>) -> bool {
        match (&self.failure, self.retry) {
            (None, _) => !(self.needs_room && runs_in_any_version(key, in_use)),
            (Some(_), Retry::At(at)) => now >= at,
            (Some(_), Retry::Never | Retry::Running) => false,
        }
    }

    fn fail(&mut self, failure: Failure, now: Duration, replaces: bool) {
        let key = self.wanted.package.key();
        self.failed_attempts += 1;
        self.needs_room = failure.no_space && replaces && !self.needs_room;
        let again = failure.transient && self.failed_attempts < MAX_ATTEMPTS;
        if again {
            let pause = pause(&key, self.failed_attempts);
            let (attempt, wait_s) = (self.failed_attempts, pause.as_secs());
            log::warn!(
                "cannot install, will be tried again package={key} attempt={attempt} \
                 wait_s={wait_s} err={failure}"
            );
            self.retry = Retry::At(now + pause);
            if self.failed_attempts == 1 {
                self.quiet_until = Some(now + PATIENCE);
            }
        } else {
            log::error!("cannot install package={key} err={failure}");
            self.retry = Retry::Never;
        }
        self.wanted.attempts_begun = 0;
        self.wanted.last_error.clone_from(&failure.message);
        self.failure = (!self.needs_room).then_some(failure);
    }
}

/// The pause after so many failed attempts.
fn pause(key: &PackageKey, failed_attempts: u32) -> Duration {
    let at = usize::try_from(failed_attempts.saturating_sub(1)).unwrap_or(usize::MAX);
    let pause = PAUSES[at.min(PAUSES.len() - 1)];
    // Core has no source of chance; the names differ from package to package, and that is enough.
    let mix = key
        .to_string()
        .bytes()
        .fold(failed_attempts, |mix, byte| mix.wrapping_mul(31).wrapping_add(byte.into()));
    pause + pause / 4 * (mix % 256) / 256
}

/// The install that the fetch thread is at.
#[derive(Debug)]
struct Installing {
    package: Package,
    /// Nobody wants it any more, or from elsewhere: how it ends says nothing.
    cancelled: bool,
    /// The fetch thread has to be told so.
    tell: bool,
}

/// What there is of a service id.
#[derive(Debug)]
pub enum Lookup<'a> {
    Installed(&'a Service),
    Pending(&'a ServiceKey),
    /// As pending, but what runs of the service has to go first.
    NeedsRoom(&'a ServiceKey),
    Failed(&'a ServiceKey, &'a Failure),
    Unknown,
}

/// What there is of a layer.
#[derive(Debug)]
pub enum LayerLookup<'a> {
    Installed(&'a InstalledLayer),
    Pending,
    Failed(&'a Failure),
    Damaged(&'a Failure),
    Unknown,
}

#[derive(Debug, Default)]
pub struct Packages {
    services: BTreeMap<ServiceKey, Service>,
    layers: BTreeMap<Digest, InstalledLayer>,
    pending: BTreeMap<PackageKey, Pending>,
    installing: Option<Installing>,
    removing: Option<PackageKey>,
    /// Directories without a row, to be removed as soon as nothing runs from them.
    discard: Vec<(PackageKey, PathBuf)>,
    /// A job removes one of them.
    discarding: bool,
    /// What the running install may evict: not to be relied on until it has ended.
    at_risk: BTreeSet<PackageKey>,
    /// Images of earlier databases may be on disk, and no request has come yet.
    unclaimed: bool,
    tidy_due: bool,
    care: care::Care,
}

impl Packages {
    pub fn new(
        services: Vec<InstalledService>,
        layers: Vec<InstalledLayer>,
        wanted: Vec<Wanted>,
    ) -> Self {
        let service = |row: InstalledService| (row.key.clone(), Service::new(row, Image::Unread));
        let pending = |(order, wanted): (usize, Wanted)| {
            let crashed = wanted.attempts_begun >= MAX_CRASHED_ATTEMPTS;
            let text = "installation crashed: the daemon ended twice while installing it";
            let failure = crashed.then(|| Failure::text(text));
            (wanted.package.key(), Pending { failure, ..Pending::new(wanted, order) })
        };
        Self {
            unclaimed: services.is_empty() && layers.is_empty() && wanted.is_empty(),
            tidy_due: false,
            care: care::Care::new(&wanted),
            services: services.into_iter().map(service).collect(),
            layers: layers.into_iter().map(|row| (row.digest.clone(), row)).collect(),
            pending: wanted.into_iter().enumerate().map(pending).collect(),
            installing: None,
            removing: None,
            discard: Vec::new(),
            discarding: false,
            at_risk: BTreeSet::new(),
        }
    }

    /// Directories of all installed packages.
    pub fn paths(&self) -> Vec<PathBuf> {
        let services = self.services.values().map(|s| s.row.path.clone());
        services.chain(self.layers.values().map(|l| l.path.clone())).collect()
    }

    /// Takes over what a request names; the first entry of a key wins. Every request tries failed
    /// installs anew.
    pub fn want(&mut self, request: &RunRequest, now_ms: i64, changes: &mut Vec<Change>) {
        let services = request.services.iter().cloned().map(Package::Service);
        let layers = request.layers.iter().cloned().map(Package::Layer);
        let mut named = BTreeSet::new();
        let mut pending = BTreeMap::new();
        self.tidy_due |= std::mem::take(&mut self.unclaimed);
        self.care.forget_sources();
        for (order, package) in services.chain(layers).enumerate() {
            let key = package.key();
            self.care.add_source(&key, order, &package);
            if !named.insert(key.clone()) {
                log::warn!("package named twice, the first entry is used package={key}");
                continue;
            }
            if self.is_installed(&key) {
                self.note_origin(&key, package.source(), changes);
                continue;
            }
            // What is being installed may still crash the daemon.
            let attempts_begun = u32::from(self.is_installing(&key));
            let wanted = Wanted { package, attempts_begun, last_error: String::new() };
            changes.push(Change::PutWanted(wanted.clone()));
            pending.insert(key, Pending::new(wanted, order));
        }
        for key in self.pending.keys().filter(|key| !pending.contains_key(key)) {
            changes.push(Change::RemoveWanted(key.clone()));
        }
        self.pending = pending;
        self.cancel_unwanted();
        self.mark_unused(&named, now_ms, changes);
    }

    fn is_installing(&self, key: &PackageKey) -> bool {
        self.installing.as_ref().is_some_and(|one| one.package.key() == *key)
    }

    /// A running install ends if the newest request does not want exactly that.
    fn cancel_unwanted(&mut self) {
        let Some(running) = &mut self.installing else { return };
        let pending = self.pending.get(&running.package.key());
        let wanted = pending.is_some_and(|pending| pending.wanted.package == running.package);
        if !wanted && !running.cancelled {
            log::info!("no longer wanted, giving up package={}", running.package.key());
            (running.cancelled, running.tell) = (true, true);
        }
    }

    /// The install that is to be given up, once.
    pub fn take_cancelled(&mut self) -> Option<PackageKey> {
        let running = self.installing.as_mut().filter(|running| running.tell)?;
        running.tell = false;
        Some(running.package.key())
    }

    fn is_installed(&self, key: &PackageKey) -> bool {
        let there = match key {
            PackageKey::Service(key) => self.services.contains_key(key),
            PackageKey::Layer(digest) => self.layers.contains_key(digest),
        };
        there && self.removing.as_ref() != Some(key) && !self.at_risk.contains(key)
    }

    fn mark_unused(
        &mut self,
        named: &BTreeSet<PackageKey>,
        now_ms: i64,
        changes: &mut Vec<Change>,
    ) {
        // A clock that is not set yet must not make a package look old once it is.
        let now_ms = self.newest_time().map_or(now_ms, |newest| newest.max(now_ms));
        let next =
            |wanted: bool, old: Option<i64>| if wanted { None } else { old.or(Some(now_ms)) };
        for (key, service) in &mut self.services {
            let since = next(
                named.contains(&PackageKey::Service(key.clone())),
                service.row.unused_since_ms,
            );
            if since != service.row.unused_since_ms {
                Arc::make_mut(&mut service.row).unused_since_ms = since;
                changes.push(Change::PutService((*service.row).clone()));
            }
        }
        for (digest, row) in &mut self.layers {
            let since =
                next(named.contains(&PackageKey::Layer(digest.clone())), row.unused_since_ms);
            if since != row.unused_since_ms {
                row.unused_since_ms = since;
                changes.push(Change::PutLayer(row.clone()));
            }
        }
    }

    /// The newest time of all rows: the clock has been there once.
    fn newest_time(&self) -> Option<i64> {
        let services = self.services.values();
        let services = services.map(|s| (s.row.installed_at_ms, s.row.unused_since_ms));
        let layers = self.layers.values().map(|l| (l.installed_at_ms, l.unused_since_ms));
        services.chain(layers).map(|(at, since)| since.map_or(at, |since| since.max(at))).max()
    }

    /// The version of a service that instances are to run: the highest wanted one.
    pub fn service(&self, id: &ServiceId) -> Lookup<'_> {
        let of_id = |key: &ServiceKey| key.id == *id;
        let safe = |key: &ServiceKey| !self.at_risk.contains(&PackageKey::Service(key.clone()));
        let installed = self
            .services
            .iter()
            .filter(|(k, s)| of_id(k) && safe(k) && s.row.unused_since_ms.is_none());
        let installed = installed.map(|(key, s)| (key, Lookup::Installed(s)));
        let pending = self.pending.iter().filter_map(|(key, p)| match key {
            PackageKey::Service(key) if of_id(key) => Some((
                key,
                match p.verdict() {
                    Some(failure) => Lookup::Failed(key, failure),
                    None if p.needs_room => Lookup::NeedsRoom(key),
                    None => Lookup::Pending(key),
                },
            )),
            _ => None,
        });
        let newest = installed
            .chain(pending)
            .max_by(|(a, _), (b, _)| version::compare(&a.version, &b.version));
        newest.map_or(Lookup::Unknown, |(_, lookup)| lookup)
    }

    /// The version is to be installed, and there is still an attempt to be made.
    pub fn is_coming(&self, key: &ServiceKey) -> bool {
        let pending = self.pending.get(&PackageKey::Service(key.clone()));
        pending.is_some_and(|p| p.failure.is_none() || p.retry != Retry::Never)
    }

    /// The database was empty at start and no request has come yet.
    pub fn is_unclaimed(&self) -> bool {
        self.unclaimed
    }

    /// A version that is on this host to stay, wanted or not.
    pub fn installed_service(&self, key: &ServiceKey) -> Option<&Service> {
        let service = self.services.get(key)?;
        let package = PackageKey::Service(key.clone());
        self.is_installed(&package).then_some(service)
    }

    /// Everything that is installed.
    pub fn keys(&self) -> BTreeSet<PackageKey> {
        let services = self.services.keys().cloned().map(PackageKey::Service);
        services.chain(self.layers.keys().cloned().map(PackageKey::Layer)).collect()
    }

    /// Layers are looked up by digest, unused ones as well.
    pub fn layer(&self, digest: &Digest) -> LayerLookup<'_> {
        let key = PackageKey::Layer(digest.clone());
        if let Some(row) = self.layers.get(digest).filter(|_| self.removing.as_ref() != Some(&key))
        {
            if self.at_risk.contains(&key) {
                return LayerLookup::Pending;
            }
            if let Some(failure) = self.damage(&key) {
                return LayerLookup::Damaged(failure);
            }
            return LayerLookup::Installed(row);
        }
        match self.pending.get(&key) {
            None => LayerLookup::Unknown,
            Some(pending) => pending.verdict().map_or(LayerLookup::Pending, LayerLookup::Failed),
        }
    }

    /// Marks the image as being read; the row for the job.
    pub fn begin_reading(&mut self, key: &ServiceKey) -> Option<Arc<InstalledService>> {
        let service = self.services.get_mut(key)?;
        service.image = Image::Reading;
        Some(service.row.clone())
    }

    pub fn read(
        &mut self,
        key: &ServiceKey,
        result: Result<Box<ServiceImage>, Failure>,
        now: Duration,
    ) {
        let Some(service) = self.services.get_mut(key) else { return };
        match result {
            Ok(image) => {
                service.image = Image::Read(Arc::new(*image));
                service.failed_reads = 0;
            }
            // A disk that is silent for a moment has not lost anything.
            Err(failure) if failure.transient && service.failed_reads < PAUSES.len() => {
                let again = now + PAUSES[service.failed_reads];
                log::warn!("cannot read image now package={key} err={failure}");
                service.failed_reads += 1;
                service.image = Image::Unreadable { failure, again };
            }
            Err(failure) => {
                service.image = Image::Unread;
                self.note_damage(&PackageKey::Service(key.clone()), failure);
            }
        }
    }

    /// Whether the image directories are to be tidied, which is told once.
    pub fn take_tidy_due(&mut self) -> bool {
        // What is being installed has no row yet and would be removed right after.
        self.installing.is_none() && std::mem::take(&mut self.tidy_due)
    }

    /// Which packages without a row may be installed once more.
    pub fn keep(&self) -> Keep {
        if self.unclaimed {
            return Keep::All;
        }
        let source = |p: &Pending| p.wanted.package.source().sha3_256.clone();
        Keep::Packages(self.pending.values().map(source).collect())
    }

    /// The next directory without a row that is to be removed; one at a time.
    pub fn next_discard(&mut self, in_use: &BTreeSet<PackageKey>) -> Option<PathBuf> {
        if self.discarding || self.installing.is_some() {
            return None;
        }
        let at = self.discard.iter().position(|(key, _)| !in_use.contains(key))?;
        self.discarding = true;
        Some(self.discard.swap_remove(at).1)
    }

    /// The removal of a directory has ended.
    pub fn discarded(&mut self) {
        self.discarding = false;
    }

    /// Nothing that an install or a removal could collide with is going on.
    fn is_idle(&self) -> bool {
        self.installing.is_none()
            && self.removing.is_none()
            && !self.discarding
            && self.discard.is_empty()
    }

    /// Rows whose directory does not exist: the daemon ended between an eviction and its record.
    pub fn forget_missing(&mut self, missing: &[PathBuf], changes: &mut Vec<Change>) {
        let services =
            self.services.values().map(|s| (&s.row.path, PackageKey::Service(s.row.key.clone())));
        let layers = self.layers.values().map(|l| (&l.path, PackageKey::Layer(l.digest.clone())));
        let gone = services.chain(layers).filter(|(path, _)| missing.contains(path));
        for key in gone.map(|(_, key)| key).collect::<Vec<_>>() {
            log::warn!("installed package is missing on disk package={key}");
            self.forget(&key, changes);
        }
    }

    /// One instance of the version has been up long enough (R3).
    pub fn confirm(&mut self, key: &ServiceKey, changes: &mut Vec<Change>) {
        let Some(service) = self.services.get_mut(key) else { return };
        if !service.row.confirmed {
            Arc::make_mut(&mut service.row).confirmed = true;
            changes.push(Change::PutService((*service.row).clone()));
        }
    }

    /// Is the version already known to stay up?
    pub fn is_confirmed(&self, key: &ServiceKey) -> bool {
        self.services.get(key).is_some_and(|s| s.row.confirmed)
    }

    /// The next install, if none is running. `in_use` is never evicted.
    pub fn next_install(
        &mut self,
        in_use: &BTreeSet<PackageKey>,
        now: Duration,
        changes: &mut Vec<Change>,
    ) -> Option<InstallPlan> {
        if !self.is_idle() {
            return None;
        }
        let evictable = self.evictable(in_use);
        let open = self.pending.iter_mut().filter(|(key, p)| p.is_open(key, now, in_use));
        // What has failed never stands in the way of what was not tried yet.
        let (key, pending) = open.min_by_key(|(_, p)| (p.failure.is_some(), p.order))?;
        pending.wanted.attempts_begun += 1;
        pending.retry = Retry::Running;
        changes.push(Change::PutWanted(pending.wanted.clone()));
        let package = pending.wanted.package.clone();
        log::info!("installing package={key} url={}", package.source().shown_url());
        self.installing =
            Some(Installing { package: package.clone(), cancelled: false, tell: false });
        self.at_risk = evictable.iter().map(|e| e.key.clone()).collect();
        let used_bytes = self.used_bytes(&package);
        let unfinished = self.pending.values().map(|p| p.wanted.package.source().clone());
        Some(InstallPlan { unfinished: unfinished.collect(), package, evictable, used_bytes })
    }

    /// When the next attempt after a failure is due, CLOCK_MONOTONIC.
    pub fn next_retry(&self) -> Option<Duration> {
        let at = self.pending.values().filter_map(|p| match p.retry {
            Retry::At(at) => Some(at),
            _ => None,
        });
        at.min()
    }

    /// Ends the silence about failures that last; true if there is something to tell or to try. `next` gets
    /// when to look again.
    pub fn note_time(&mut self, now: Duration, next: &mut Option<Duration>) -> bool {
        let mut told = self.note_reread(now, next);
        for pending in self.pending.values_mut() {
            match pending.quiet_until {
                Some(until) if now >= until => {
                    pending.quiet_until = None;
                    told = true;
                }
                Some(until) => *next = Some(next.map_or(until, |next| next.min(until))),
                None => {}
            }
        }
        told
    }

    /// What could not be read is tried again in time.
    fn note_reread(&mut self, now: Duration, next: &mut Option<Duration>) -> bool {
        let mut due = false;
        for service in self.services.values_mut() {
            let Image::Unreadable { again, .. } = service.image else { continue };
            if now >= again {
                service.image = Image::Unread;
                due = true;
            } else {
                *next = Some(next.map_or(again, |next| next.min(again)));
            }
        }
        due
    }

    /// The install has ended. What it made is kept even if a newer request no longer wants it.
    pub fn installed(
        &mut self,
        key: &PackageKey,
        evicted: &[PackageKey],
        result: Result<Installed, Failure>,
        now: Now,
        changes: &mut Vec<Change>,
    ) {
        let cancelled = self.installing.take().is_some_and(|running| running.cancelled);
        evicted.iter().for_each(|key| self.forget(key, changes));
        let offered = std::mem::take(&mut self.at_risk);
        for survivor in &offered {
            // A request that came meanwhile asked for it once more, to be on the safe side.
            if self.is_installed(survivor) && self.pending.remove(survivor).is_some() {
                changes.push(Change::RemoveWanted(survivor.clone()));
            }
        }
        match result {
            Ok(installed) => {
                let wanted = self.pending.remove(key).is_some();
                if wanted {
                    changes.push(Change::RemoveWanted(key.clone()));
                }
                self.add(installed, (!wanted).then_some(now.wall_ms), changes);
            }
            Err(failure) => {
                if failure.no_space {
                    self.log_room();
                }
                let replaces = self.has_other_version(key);
                let Some(pending) = self.pending.get_mut(key) else {
                    return log::info!("install given up package={key} err={failure}");
                };
                if cancelled {
                    pending.wanted.attempts_begun = 0;
                    return changes.push(Change::PutWanted(pending.wanted.clone()));
                }
                pending.offered = failure.no_space.then_some(offered);
                pending.fail(failure, now.mono, replaces);
                changes.push(Change::PutWanted(pending.wanted.clone()));
            }
        }
    }

    fn has_other_version(&self, key: &PackageKey) -> bool {
        let PackageKey::Service(key) = key else { return false };
        self.services.keys().any(|other| other.id == key.id)
    }

    /// The daemon stops in good order: the running install counts as not begun.
    pub fn interrupt(&mut self, changes: &mut Vec<Change>) {
        let running = self.installing.as_ref().map(|running| running.package.key());
        if let Some(pending) = running.and_then(|key| self.pending.get_mut(&key)) {
            pending.wanted.attempts_begun = 0;
            changes.push(Change::PutWanted(pending.wanted.clone()));
        }
    }

    fn add(
        &mut self,
        installed: Installed,
        unused_since_ms: Option<i64>,
        changes: &mut Vec<Change>,
    ) {
        match installed {
            Installed::Service(mut row, image) => {
                row.unused_since_ms = unused_since_ms;
                changes.push(Change::PutService((*row).clone()));
                let service = Service::new(*row, Image::Read(Arc::new(*image)));
                self.services.insert(service.row.key.clone(), service);
            }
            Installed::Layer(mut row) => {
                row.unused_since_ms = unused_since_ms;
                changes.push(Change::PutLayer((*row).clone()));
                self.layers.insert(row.digest.clone(), *row);
            }
        }
    }

    fn forget(&mut self, key: &PackageKey, changes: &mut Vec<Change>) {
        log::info!("removed package={key}");
        self.care.forget(key);
        match key {
            PackageKey::Service(key) => {
                self.services.remove(key);
                changes.push(Change::RemoveService(key.clone()));
            }
            PackageKey::Layer(digest) => {
                self.layers.remove(digest);
                changes.push(Change::RemoveLayer(digest.clone()));
            }
        }
    }
}

fn runs_in_any_version(key: &PackageKey, in_use: &BTreeSet<PackageKey>) -> bool {
    let PackageKey::Service(key) = key else { return false };
    in_use.iter().any(|used| matches!(used, PackageKey::Service(used) if used.id == key.id))
}
