//! The image store: services and layers on disk.
//!
//! Install, removal and tidying run on the fetch thread, one job at a time; `load` runs on exec
//! threads and only reads. In: what the CM wants, rows of what is installed. Out: directories
//! below `servicesDir` and `layersDir`, and what their rows say. Layout of a service (the manifest
//! and the configurations as the provider made them, the root file system unpacked):
//!
//! ```text
//! <servicesDir>/<number>/manifest.json
//! <servicesDir>/<number>/blobs/<algorithm>/<hex>
//! <servicesDir>/<number>/rootfs/
//! <layersDir>/<algorithm>/<hex>/
//! ```
//!
//! An image that the reference installed has its root file system below `blobs` and is loaded all
//! the same. Not here: which packages are wanted or may go (core), rows (store), mounts (runtime).

mod archive;
mod budget;
mod config;
mod confine;
mod digest;
pub mod download;
mod error;
pub mod http;
mod install;
mod listing;
mod manifest;
mod names;
mod origin;
mod part;
mod space;
mod staging;
mod stamp;
pub mod tar;
mod transport;
mod unpack;
mod url;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;

#[cfg(test)]
mod tests;

use std::fs;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;
use nix::sys::stat::Mode;
use openssl::sha::sha256;

use crate::document::NumberUnit;
use crate::model::failure::Failure;
use crate::model::id::{Digest, PackageKey};
use crate::model::job::{InstallPlan, Installed, Keep, Package, Row, StartPlan, Verified};
use crate::model::service::{InstalledLayer, InstalledService, ServiceConfig, ServiceImage};
use crate::model::status::chain;
use crate::ports::{Halt, Images};
use crate::sys;

pub use confine::confine;
pub use download::TimeLimits;
pub use error::Error;

use config::MAX_CONFIG_BYTES;
use install::Attempt;
use listing::regular;
use manifest::{MAX_MANIFEST_BYTES, Manifest};
use space::{Eviction, Limits, Space};
use staging::Places;

const MANIFEST: &str = "manifest.json";
const BLOBS: &str = "blobs";
/// The unpacked root file system of a service.
const ROOTFS: &str = "rootfs";

/// Most members of an archive that the configuration may allow.
pub const MOST_ENTRIES: u32 = 10_000_000;

/// What the configuration file says about images.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ImageSettings {
    pub services_dir: PathBuf,
    pub layers_dir: PathBuf,
    /// Packages are unpacked while they come in; what has arrived of large ones is kept here for
    /// the next attempt. Emptied at start.
    pub download_dir: PathBuf,
    /// Only emptied: used by the reference.
    pub extract_dir: PathBuf,
    /// Members of one archive, directories that it implies included (`install.maxEntries`).
    pub max_entries: u32,
    /// Components of a path in an archive (`install.maxDepth`).
    pub max_depth: usize,
    /// Percent of the file system that stays free (`diskReservePercent`), at least 16 MiB.
    pub reserve_percent: u64,
    /// Percent of their file system that services and layers may take; 0 = no limit
    /// (`servicesPartLimit`, `layersPartLimit`).
    pub services_percent: u64,
    pub layers_percent: u64,
    pub times: TimeLimits,
    /// File with roots for `https` besides those of the system; empty = none (`caCert`).
    pub ca_cert: PathBuf,
    /// What a bare number means as a duration in a service configuration.
    pub number_unit: NumberUnit,
}

/// The store.
#[derive(Debug)]
pub struct ImageStore {
    settings: ImageSettings,
    places: Places,
}

impl ImageStore {
    /// Touches nothing; directories are made by `tidy` and `install`.
    pub fn new(settings: ImageSettings) -> Self {
        let places =
            Places { services: settings.services_dir.clone(), layers: settings.layers_dir.clone() };
        Self { settings, places }
    }

    /// Reads all of an installed layer and compares it with its digest, if it has one. Slow.
    fn verify_layer(&self, layer: &InstalledLayer, halt: Halt<'_>) -> Result<Verified, Error> {
        if is_no_directory(&layer.path) {
            return Err(Error::LayerMissing);
        }
        let tree_digest = match listing::scan(&layer.path, install::LAYER_GID, halt) {
            Ok(listing) => listing.digest(install::LAYER_GID),
            // The reference leaves owners as they come, so its layers may look like no other.
            Err(Error::NotOurs { .. }) if layer.tree_digest.is_empty() => String::new(),
            Err(error) => return Err(error),
        };
        let matches = layer.tree_digest.is_empty() || tree_digest == layer.tree_digest;
        if matches { Ok(Verified { tree_digest }) } else { Err(Error::TreeMismatch) }
    }

    /// Reads all of an installed service and compares it with its digests. Slow.
    fn verify_service(
        &self,
        service: &InstalledService,
        halt: Halt<'_>,
    ) -> Result<Verified, Error> {
        let image = self.try_load(service)?;
        let listing = listing::scan(&image.rootfs, service.gid, halt)?;
        let tree_digest = listing.digest(service.gid);
        let matches = if service.tree_digest.is_empty() {
            // Taken over: the reference put the digest into the manifest and into the path.
            let found = listing.reference_digest();
            image.rootfs.file_name() == found.strip_prefix("sha256:").map(std::ffi::OsStr::new)
        } else {
            tree_digest == service.tree_digest
        };
        if matches { Ok(Verified { tree_digest }) } else { Err(Error::TreeMismatch) }
    }

    /// One attempt; if the disk turns out to be full in the middle of it, all of it is taken back,
    /// room is made, and it is made once more.
    fn try_install(
        &self,
        plan: &InstallPlan,
        evicted: &mut Vec<PackageKey>,
        halt: Halt<'_>,
    ) -> Result<Installed, Error> {
        if let Some(found) = self.find(&plan.package, halt) {
            return Ok(found);
        }
        match self.attempt(plan, evicted, halt) {
            Err(error @ (Error::DiskFull { .. } | Error::NoInodes)) => {
                if !self.make_way(plan, evicted)? {
                    return Err(error);
                }
                log::warn!("trying again package={} err={}", plan.package.key(), chain(&error));
                self.attempt(plan, evicted, halt)
            }
            other => other,
        }
    }

    fn attempt(
        &self,
        plan: &InstallPlan,
        evicted: &mut Vec<PackageKey>,
        halt: Halt<'_>,
    ) -> Result<Installed, Error> {
        let attempt = Attempt {
            settings: &self.settings,
            limits: self.limits(plan),
            eviction: self.eviction(plan, evicted),
            halt,
        };
        match &plan.package {
            Package::Service(wanted) => {
                let (row, image) = install::service(attempt, wanted)?;
                Ok(Installed::Service(Box::new(row), Box::new(image)))
            }
            Package::Layer(wanted) => {
                Ok(Installed::Layer(Box::new(install::layer(attempt, wanted)?)))
            }
        }
    }

    /// Keeps what has arrived of a download exactly as long as it can be of use.
    fn keeping_downloads(
        &self,
        plan: &InstallPlan,
        install: impl FnOnce() -> Result<Installed, Error>,
    ) -> Result<Installed, Failure> {
        let downloads = &self.settings.download_dir;
        let places = plan.unfinished.iter().filter_map(|source| part::place(downloads, source));
        part::retain(downloads, &places.collect::<Vec<_>>());
        let place = part::place(downloads, plan.package.source());
        let was_kept = place.as_ref().is_some_and(|place| place.exists());
        let result = install();
        if let Some(place) = place.filter(|_| !result.as_ref().is_err_and(Error::is_transient)) {
            part::remove(&place);
        }
        result.map_err(|error| {
            // With a part of another file in it, a package says nothing about its source.
            let again = was_kept && !error.is_no_space();
            let failure = Failure::from(error);
            Failure { transient: failure.transient || again, ..failure }
        })
    }

    fn limits(&self, plan: &InstallPlan) -> Limits {
        Limits {
            reserve_percent: self.settings.reserve_percent,
            services_percent: self.settings.services_percent,
            layers_percent: self.settings.layers_percent,
            used_bytes: plan.used_bytes,
        }
    }

    fn eviction<'a>(
        &'a self,
        plan: &'a InstallPlan,
        evicted: &'a mut Vec<PackageKey>,
    ) -> Eviction<'a> {
        Eviction {
            candidates: &plan.evictable,
            evicted,
            places: &self.places,
            downloads: &self.settings.download_dir,
        }
    }

    /// Evicts about what the package needs: itself and its content, which nobody knows before it
    /// was unpacked.
    fn make_way(&self, plan: &InstallPlan, evicted: &mut Vec<PackageKey>) -> Result<bool, Error> {
        let directory = match &plan.package {
            Package::Service(_) => &self.settings.services_dir,
            Package::Layer(_) => &self.settings.layers_dir,
        };
        let source = plan.package.source();
        let mut space = Space::new(directory, self.limits(plan), self.eviction(plan, evicted))?;
        space.make_way(source.size_bytes.saturating_mul(2))
    }

    /// Looks for a complete image of a package that has no row any more.
    fn find(&self, package: &Package, halt: Halt<'_>) -> Option<Installed> {
        let found = match package {
            Package::Service(wanted) => {
                let entries = fs::read_dir(&self.settings.services_dir).ok()?;
                let mut paths = entries.filter_map(|entry| entry.ok().map(|entry| entry.path()));
                let row =
                    paths.find_map(|path| origin::of_service(&path)?.service(wanted, &path))?;
                self.accept(&row.path, self.verify_service(&row, halt))?;
                let image = self.try_load(&row).ok()?;
                Installed::Service(Box::new(row), Box::new(image))
            }
            Package::Layer(wanted) => {
                let digest = &wanted.digest;
                let path = self.settings.layers_dir.join(digest.algorithm()).join(digest.hex());
                let row = origin::of_layer(&path)?.layer(wanted, &path)?;
                self.accept(&row.path, self.verify_layer(&row, halt))?;
                Installed::Layer(Box::new(row))
            }
        };
        log::info!("found on disk, not fetched again package={}", package.key());
        Some(found)
    }

    /// What was found but is not right goes.
    fn accept(&self, path: &Path, verified: Result<Verified, Error>) -> Option<()> {
        let error = match verified {
            Ok(_) => return Some(()),
            Err(error) if error.is_passing() => return None,
            Err(error) => error,
        };
        log::warn!("found on disk, but damaged path={} err={}", path.display(), chain(&error));
        if let Err(error) = staging::discard(path) {
            log::warn!("cannot remove path={} err={}", path.display(), chain(&error));
        }
        None
    }

    /// Compares stamps; what was touched is read anew.
    fn check_service(&self, service: &InstalledService, image: &ServiceImage) -> Result<(), Error> {
        let rootfs = image.rootfs.strip_prefix(&service.path).unwrap_or(&image.rootfs);
        let same = stamp::of(&service.path, rootfs) == image.stamp;
        if same && !image.stamp.is_empty() { Ok(()) } else { self.try_load(service).map(drop) }
    }

    fn try_load(&self, service: &InstalledService) -> Result<ServiceImage, Error> {
        let path = &service.path;
        let directory = sys::fs::open_dir(path).map_err(Error::io("open", path))?;
        let directory = directory.as_fd();
        let manifest = read_beneath(directory, path, MANIFEST, MAX_MANIFEST_BYTES)?;
        if sha256(&manifest) != *service.manifest_digest {
            return Err(Error::ManifestMismatch);
        }
        let manifest = Manifest::parse(&manifest)?;
        let blob = |digest: &Digest| {
            let relative = blob_path(digest);
            let content = read_beneath(directory, path, &relative, MAX_CONFIG_BYTES)?;
            digest::check_blob(&content, digest).map(|()| content)
        };
        let unit = self.settings.number_unit;
        let rootfs = rootfs(directory, path, &manifest.rootfs)?;
        Ok(ServiceImage {
            stamp: stamp::of(path, rootfs.strip_prefix(path).unwrap_or(&rootfs)),
            rootfs,
            image: config::image_config(&blob(&manifest.config)?)?,
            service: match &manifest.service_config {
                Some(digest) => config::service_config(&blob(digest)?, unit)?,
                None => ServiceConfig::default(),
            },
            layers: manifest.layers,
        })
    }

    fn try_remove(&self, path: &Path) -> Result<(), Error> {
        if !self.places.owns(path) {
            return Err(Error::NotOurs { path: path.to_owned() });
        }
        staging::discard(path)
    }

    /// Does all it can; what it cannot is logged, and costs space at most.
    fn do_tidy(&self, known: &[PathBuf], keep: &Keep) -> Vec<PathBuf> {
        for error in staging::tidy(&self.places, known, keep) {
            log::warn!("cannot tidy the image directories err={}", chain(&error));
        }
        self.warn_of_limits();
        for directory in [&self.settings.download_dir, &self.settings.extract_dir] {
            if directory.as_os_str().is_empty() {
                continue;
            }
            if let Err(error) = sys::fs::clear_dir(directory) {
                log::warn!("cannot empty path={} err={error}", directory.display());
            }
        }
        known.iter().filter(|path| is_no_directory(path)).cloned().collect()
    }
}

impl ImageStore {
    /// Limits that together are more than the whole each get their share of it.
    fn warn_of_limits(&self) {
        let (services, layers) = (self.settings.services_percent, self.settings.layers_percent);
        let shared =
            sys::fs::same_file_system(&self.places.services, &self.places.layers).unwrap_or(false);
        if shared && services + layers > 100 {
            log::warn!(
                "total part limit exceeds 100 %, both limits are lowered services={services} \
                 layers={layers}"
            );
        }
    }
}

/// Whether it is certain that no package is there.
fn is_no_directory(path: &Path) -> bool {
    match fs::symlink_metadata(path) {
        Ok(metadata) => !metadata.is_dir(),
        Err(error) => {
            matches!(error.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory)
        }
    }
}

/// An error while an installed package was read: only what was read and is different is damage,
/// what cannot be read now may be later.
fn reading(error: Error) -> Failure {
    Failure { transient: error.is_passing(), ..error.into() }
}

fn blob_path(digest: &Digest) -> String {
    format!("{BLOBS}/{}/{}", digest.algorithm(), digest.hex())
}

fn read_beneath(
    directory: BorrowedFd<'_>,
    path: &Path,
    relative: &str,
    limit: u64,
) -> Result<Vec<u8>, Error> {
    let shown = path.join(relative);
    let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK;
    let file = sys::fs::open_beneath(directory, Path::new(relative), flags, Mode::empty());
    let file = file.map(fs::File::from).and_then(regular).map_err(Error::io("open", &shown))?;
    let mut content = Vec::new();
    let read = file.take(limit + 1).read_to_end(&mut content);
    read.map_err(Error::io("read", &shown))?;
    if content.len() as u64 > limit {
        return Err(Error::TooLarge { what: shown.display().to_string(), limit });
    }
    Ok(content)
}

/// Ours, or where the reference keeps it: below the digest that its manifest names.
fn rootfs(directory: BorrowedFd<'_>, path: &Path, digest: &Digest) -> Result<PathBuf, Error> {
    for relative in [ROOTFS.to_owned(), blob_path(digest)] {
        let flags = OFlag::O_DIRECTORY | OFlag::O_PATH;
        let opened = sys::fs::open_beneath(directory, Path::new(&relative), flags, Mode::empty());
        if opened.is_ok() {
            return Ok(path.join(relative));
        }
    }
    Err(Error::Missing { what: "root file system" })
}

impl Images for ImageStore {
    fn install(
        &self,
        plan: &InstallPlan,
        evicted: &mut Vec<PackageKey>,
        halt: Halt<'_>,
    ) -> Result<Installed, Failure> {
        let begun = sys::time::monotonic();
        let installed = self.keeping_downloads(plan, || self.try_install(plan, evicted, halt))?;
        let ms = sys::time::monotonic().saturating_sub(begun).as_millis();
        let (path, size_bytes) = match &installed {
            Installed::Service(row, _) => (&row.path, row.size_bytes),
            Installed::Layer(row) => (&row.path, row.size_bytes),
        };
        let (key, path) = (plan.package.key(), path.display());
        log::info!("installed package={key} path={path} size={size_bytes} ms={ms}");
        Ok(installed)
    }

    fn load(&self, service: &InstalledService) -> Result<ServiceImage, Failure> {
        self.try_load(service).map_err(reading)
    }

    fn remove(&self, path: &Path) -> Result<(), Failure> {
        Ok(self.try_remove(path)?)
    }

    fn check(&self, plan: &StartPlan) -> Result<(), Failure> {
        let damaged = |key, error: Error| {
            let failure = reading(error);
            Failure { damaged: (!failure.transient).then_some(key), ..failure }
        };
        let service = PackageKey::Service(plan.service.key.clone());
        self.check_service(&plan.service, &plan.image).map_err(|error| damaged(service, error))?;
        let gone = |(_, path): &(&Digest, &PathBuf)| is_no_directory(path);
        match plan.image.layers.iter().zip(&plan.layers).find(gone) {
            Some((digest, _)) => {
                Err(damaged(PackageKey::Layer(digest.clone()), Error::LayerMissing))
            }
            None => Ok(()),
        }
    }

    fn verify(&self, row: &Row, halt: Halt<'_>) -> Result<Verified, Failure> {
        let verified = match row {
            Row::Service(service) => self.verify_service(service, halt),
            Row::Layer(layer) => self.verify_layer(layer, halt),
        };
        let verified = verified.map_err(reading)?;
        origin::complete(row, &verified);
        Ok(verified)
    }

    fn tidy(&self, known: &[PathBuf], keep: &Keep) -> Result<Vec<PathBuf>, Failure> {
        Ok(self.do_tidy(known, keep))
    }
}
