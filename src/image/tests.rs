use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use sha3::{Digest as _, Sha3_256, Sha3_512};

use super::*;
use crate::model::desired::{DesiredLayer, DesiredService, PackageSource};
use crate::model::id::{NetworkId, ServiceId, ServiceKey};
use crate::model::service::InstalledLayer;
use crate::sys::mount::{isolate, tmpfs};

mod fixture;
mod given;
mod hostile;
mod made;
mod network;
mod raw;
mod care;
mod room;

/// A store in a directory of its own.
pub(super) struct Store {
    dir: PathBuf,
    pub(super) store: ImageStore,
}

const GID: u32 = 5001;

impl Store {
    pub(super) fn new(dir: &Path) -> Self {
        Self::with(dir, |_| {})
    }

    fn with(dir: &Path, change: impl FnOnce(&mut ImageSettings)) -> Self {
        let mut settings = ImageSettings {
            services_dir: dir.join("services"),
            layers_dir: dir.join("layers"),
            download_dir: dir.join("download"),
            extract_dir: dir.join("extract"),
            max_entries: 200_000,
            max_depth: 128,
            reserve_percent: 2,
            services_percent: 0,
            layers_percent: 0,
            times: TimeLimits::default(),
            ca_cert: PathBuf::new(),
            number_unit: NumberUnit::Seconds,
        };
        change(&mut settings);
        Self { dir: dir.to_owned(), store: ImageStore::new(settings) }
    }

    fn install(&self, package: Package) -> Result<Installed, String> {
        let plan =
            InstallPlan { package, evictable: Vec::new(), used_bytes: 0, unfinished: Vec::new() };
        self.store.install(&plan, &mut Vec::new(), &|| false).map_err(|failure| failure.message)
    }

    pub(super) fn settings(&self) -> &ImageSettings {
        &self.store.settings
    }

    pub(super) fn service(
        &self,
        source: PackageSource,
    ) -> Result<(InstalledService, ServiceImage), String> {
        match self.install(service_package(source))? {
            Installed::Service(row, image) => Ok((*row, *image)),
            Installed::Layer(_) => Err("a layer".to_owned()),
        }
    }

    fn layer(&self, digest: &str, source: PackageSource) -> Result<InstalledLayer, String> {
        let digest = Digest::parse(digest).map_err(|error| error.to_string())?;
        let (layer_id, version) = ("layer0".to_owned(), "1.0.0".to_owned());
        match self.install(Package::Layer(DesiredLayer { digest, layer_id, version, source }))? {
            Installed::Layer(row) => Ok(*row),
            Installed::Service(..) => Err("a service".to_owned()),
        }
    }

    /// Names of everything that services and layers left, without the empty places.
    fn content(&self) -> Vec<String> {
        let mut found = Vec::new();
        for place in ["services", "layers", "layers/sha256", "download"] {
            for name in names(&self.dir.join(place)) {
                if name != "sha256" {
                    found.push(format!("{place}/{name}"));
                }
            }
        }
        found
    }
}

fn service_package(source: PackageSource) -> Package {
    Package::Service(DesiredService {
        key: ServiceKey { id: ServiceId::new("svc"), version: "1.0.0".into() },
        provider_id: NetworkId::new("prov"),
        gid: GID,
        source,
    })
}

/// What the message says about a package file.
fn announce(url: String, content: &[u8]) -> PackageSource {
    PackageSource {
        url,
        sha3_256: Sha3_256::digest(content).to_vec(),
        sha3_512: Sha3_512::digest(content).to_vec(),
        size_bytes: content.len() as u64,
    }
}

fn file_source(path: &Path, content: &[u8]) -> PackageSource {
    sys::fs::write_plain(path, content, 0o600).unwrap();
    announce(format!("file://{}", path.display()), content)
}

/// A package for whose content every right of the fetch thread is needed.
pub(super) fn everything_package(dir: &Path) -> PackageSource {
    let archive = fixture::Archive::new()
        .dir("d", 0o000)
        .file("d/below", b"x")
        .file("d/.wh.gone", b"")
        .file("opaque/.wh..wh..opq", b"")
        .link("l", "/etc/passwd")
        .hard("h", "d/below");
    let package = fixture::Image::new(archive.bytes()).package();
    file_source(&dir.join("package"), &package)
}

fn names(dir: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    let mut names: Vec<_> =
        entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

thread_local! {
    /// Where `scratch` makes directories, if not in the usual place.
    static PRIVATE: std::cell::RefCell<Option<PathBuf>> = const { std::cell::RefCell::new(None) };
}

/// A directory that goes with the value; within `in_private_tmp` on its file system.
fn scratch() -> tempfile::TempDir {
    match PRIVATE.with_borrow(Clone::clone) {
        Some(dir) => tempfile::tempdir_in(dir).unwrap(),
        None => tempfile::tempdir().unwrap(),
    }
}

/// A path on the file system of `in_private_tmp`.
fn private(name: &str) -> PathBuf {
    PRIVATE.with_borrow(|dir| dir.as_ref().expect("within in_private_tmp").join(name))
}

/// Runs a test in a thread like the one that fetches, with private mounts and a `/tmp` of its own
/// of this size, where packages find nothing to harm. `None` = that is not possible here.
fn in_private_tmp<T: Send + 'static>(
    name: &'static str,
    size_bytes: u64,
    test: impl FnOnce() -> T + Send + 'static,
) -> Option<T> {
    let thread = sys::thread::spawn(name, move || {
        let mounted = isolate().and_then(|()| tmpfs(Path::new("/tmp"), Some(size_bytes), 0o1777));
        match mounted {
            Ok(()) => {
                PRIVATE.set(Some(PathBuf::from("/tmp")));
                Some(test())
            }
            Err(error) => {
                println!("SKIP {name}: no private mounts: {error}");
                None
            }
        }
    });
    thread.unwrap().join().unwrap()
}
