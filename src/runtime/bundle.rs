//! Bundles of instances on disk: the port `Bundles`.
//!
//! Runs on exec threads, both at a time, for different instances. In: plans and records. Out:
//! `<runDir>/runtime/<id>/` with `config.json`, `record.json`, `mounts/` and the mounted `rootfs/`,
//! all of it on tmpfs and for root alone. The store keeps no state: what exists is on disk. Not
//! here: what the configuration says (`spec`), `.pid` and `runtime.log` (the runtime).

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use crate::model::failure::Failure;
use crate::model::id::InstanceId;
use crate::model::job::{Doubt, Record, StartPlan};
use crate::ports::Bundles;
use crate::runtime::spec::{self, Resolved, SpecSettings};
use crate::runtime::storage::{self, Owner, Place};
use crate::runtime::{devices, program, record, rootfs};
use crate::sys::{fs as files, mount, process};

/// Entries of `/` that instances see when the configuration names none.
pub const DEFAULT_HOST_BINDS: [&str; 5] = ["bin", "sbin", "lib", "lib64", "usr"];

/// Entries of `/etc` that instances share with the host.
const SHARED_ETC: [&str; 2] = ["nsswitch.conf", "ssl"];

/// Link in a bundle to the directory below `whiteouts/` that its root file system uses.
const HOST_LINK: &str = "host";

const DIR_MODE: u32 = 0o700;
/// Of directories that instances see.
const OPEN_DIR_MODE: u32 = 0o755;
const FILE_MODE: u32 = 0o600;

/// What the store needs of the configuration and of the host.
#[derive(Clone, Debug)]
pub struct BundleSettings {
    pub spec: SpecSettings,
    /// Its `etc/` goes before that of the host.
    pub working_dir: PathBuf,
    pub storage_dir: PathBuf,
    pub state_dir: PathBuf,
    /// Names of entries of `/`; empty = `DEFAULT_HOST_BINDS`.
    pub host_binds: Vec<String>,
    /// Host devices that are refused otherwise.
    pub allowed_devices: Vec<String>,
    /// `/`; another one in tests.
    pub host_root: PathBuf,
}

/// Why a bundle is not as it should be.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("malformed instance id {0:?}")]
    Id(InstanceId),
    #[error("cannot read the boot id")]
    BootId(#[source] io::Error),
    #[error("cannot create {path}")]
    Create {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot unmount what is below {path}")]
    Unmount {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot remove {path}")]
    Remove {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{path} lies on a file system that may hang and is not prepared")]
    Remote { path: PathBuf },
    #[error(transparent)]
    Spec(#[from] spec::Error),
    #[error(transparent)]
    Devices(#[from] devices::Error),
    #[error(transparent)]
    Storage(#[from] storage::Error),
    #[error(transparent)]
    Rootfs(#[from] rootfs::Error),
}

/// All bundles below one run directory.
#[derive(Debug)]
pub struct BundleStore {
    settings: BundleSettings,
    devices: devices::Places,
    host: rootfs::HostView,
    /// `<runDir>/runtime`
    dir: PathBuf,
    boot_id: String,
}

impl BundleStore {
    /// Creates the directories where they are missing.
    pub fn new(mut settings: BundleSettings) -> Result<Self, Error> {
        let create = |path: &Path| {
            files::make_dirs(path, DIR_MODE)
                .map_err(|source| Error::Create { path: path.to_owned(), source })
        };
        create(&settings.spec.run_dir)?;
        // The table of mounts has real paths, and clean-up finds its mounts there.
        if let Ok(real) = settings.spec.run_dir.canonicalize() {
            settings.spec.run_dir = real;
        }
        let dir = settings.spec.run_dir.join("runtime");
        let host = rootfs::HostView {
            root: settings.host_root.clone(),
            visible: visible(&settings.host_binds),
            whiteouts: settings.spec.run_dir.join("whiteouts"),
        };
        create(&dir)?;
        create(&host.whiteouts)?;
        let devices = devices::Places {
            dev: settings.host_root.join("dev"),
            group_file: settings.host_root.join("etc/group"),
            allowed: settings.allowed_devices.clone(),
        };
        let boot_id = process::boot_id().map_err(Error::BootId)?;
        Ok(Self { settings, devices, host, dir, boot_id })
    }

    /// Directory of a bundle; refuses an id that is no plain name.
    fn bundle(&self, id: &InstanceId) -> Result<PathBuf, Error> {
        let name = id.as_str();
        if name.is_empty() || name.starts_with('.') || name.contains(['/', '\0']) {
            return Err(Error::Id(id.clone()));
        }
        Ok(self.dir.join(name))
    }

    fn prepare_bundle(&self, id: &InstanceId) -> Result<PathBuf, Error> {
        self.remove_bundle(id)?;
        let bundle = self.bundle(id)?;
        create_dir(&bundle, DIR_MODE)?;
        for open in ["mounts", "mounts/etc", "rootfs"] {
            create_dir(&bundle.join(open), OPEN_DIR_MODE)?;
        }
        Ok(bundle)
    }

    fn build_bundle(&self, plan: &StartPlan) -> Result<Option<Doubt>, Error> {
        let bundle = self.bundle(&plan.id)?;
        let spec = spec::build(plan, &self.settings.spec, &self.resolve(plan)?)?;
        let mounts = bundle.join("mounts");
        let mut layers = vec![plan.image.rootfs.clone()];
        layers.extend(plan.layers.iter().cloned());
        let known = self.prepared(plan);
        rootfs::make_mount_points(&mounts, &spec.mounts, &layers, &self.host, &known)?;
        layers.insert(0, mounts);
        let root = bundle.join("rootfs");
        let used = rootfs::mount(&layers, &self.host, &root)?;
        let link = bundle.join(HOST_LINK);
        symlink(&used, &link).map_err(|source| Error::Create { path: link, source })?;
        self.write(&bundle.join("config.json"), &spec.to_json())?;
        Ok(program::doubt(&root, &spec.process, &spec.mounts))
    }

    /// Looks up on the host what the plan only names, and makes what is missing of its data.
    fn resolve(&self, plan: &StartPlan) -> Result<Resolved, Error> {
        let (state, storage) = if plan.data_ready {
            (self.state_path(plan), self.storage_path(plan))
        } else {
            self.make_data(plan)?
        };
        let groups = plan
            .devices
            .iter()
            .flat_map(|(device, _)| &device.groups)
            .chain(plan.resources.iter().flat_map(|resource| &resource.groups));
        Ok(Resolved {
            cpus: process::online_cpus() as u64,
            etc: self.shared_etc(),
            devices: devices::resolve(&plan.devices, &self.devices)?,
            gids: devices::groups(groups.map(String::as_str), &self.devices)?,
            state,
            storage,
            device_sources: device_sources(plan),
        })
    }

    /// Paths of state file and storage directory; what is missing of them is made.
    fn make_data(&self, plan: &StartPlan) -> Result<(Option<PathBuf>, Option<PathBuf>), Error> {
        let [state, storage] = self.data_of(plan);
        let state = state.map(|data| storage::state_file(&data.root, &data.relative, data.owner));
        let storage =
            storage.map(|data| storage::storage_dir(&data.root, &data.relative, data.owner));
        Ok((state.transpose()?, storage.transpose()?))
    }

    /// State file and storage directory that the plan names.
    pub(super) fn data_of(&self, plan: &StartPlan) -> [Option<Place>; 2] {
        let owner = Owner { uid: plan.instance.uid, gid: plan.service.gid };
        let place = |root: &Path, relative: &str| {
            let (root, relative) = (root.to_owned(), relative.to_owned());
            (!relative.is_empty()).then_some(Place { root, relative, owner })
        };
        let (settings, instance) = (&self.settings, &plan.instance);
        [
            place(&settings.state_dir, &instance.state_path),
            place(&settings.storage_dir, &instance.storage_path),
        ]
    }

    fn state_path(&self, plan: &StartPlan) -> Option<PathBuf> {
        let path = &plan.instance.state_path;
        (!path.is_empty()).then(|| self.settings.state_dir.join(&**path))
    }

    fn storage_path(&self, plan: &StartPlan) -> Option<PathBuf> {
        let path = &plan.instance.storage_path;
        (!path.is_empty()).then(|| self.settings.storage_dir.join(&**path))
    }

    /// What of the data lies on a file system with a server.
    pub(super) fn remote_path(&self, plan: &StartPlan) -> Option<PathBuf> {
        let paths = [self.state_path(plan), self.storage_path(plan)];
        paths.into_iter().flatten().find(|path| mount::is_remote(path))
    }

    /// Bind sources that must not be touched, and whether they are directories.
    fn prepared(&self, plan: &StartPlan) -> Vec<(PathBuf, bool)> {
        if !plan.data_ready {
            return Vec::new();
        }
        let state = self.state_path(plan).map(|path| (path, false));
        state.into_iter().chain(self.storage_path(plan).map(|path| (path, true))).collect()
    }

    fn shared_etc(&self) -> Vec<(String, PathBuf)> {
        let places = [self.settings.working_dir.join("etc"), self.settings.host_root.join("etc")];
        let find = |name: &str| places.iter().map(|dir| dir.join(name)).find(|path| path.exists());
        SHARED_ETC.iter().filter_map(|&name| Some((name.to_owned(), find(name)?))).collect()
    }

    fn write(&self, path: &Path, text: &str) -> Result<(), Error> {
        files::write_volatile(path, text.as_bytes(), FILE_MODE)
            .map_err(|source| Error::Create { path: path.to_owned(), source })
    }

    fn remove_bundle(&self, id: &InstanceId) -> Result<(), Error> {
        let bundle = self.bundle(id)?;
        if !bundle.exists() {
            return Ok(());
        }
        let failed = |source| Error::Unmount { path: bundle.clone(), source };
        // With all that is mounted on it; what is mounted elsewhere makes the removal fail.
        mount::detach(&bundle.join("rootfs")).map_err(failed)?;
        if files::remove_tree(&bundle).is_ok() {
            return Ok(());
        }
        let unmounted = mount::unmount_below(&bundle).map_err(failed);
        // Goes around what is still mounted, so it may follow a failure.
        let removed = files::remove_tree(&bundle)
            .map_err(|source| Error::Remove { path: bundle.clone(), source });
        unmounted.and(removed)
    }

    /// Names of the bundle directories.
    fn ids(&self) -> Vec<InstanceId> {
        let entries = match fs::read_dir(&self.dir) {
            Ok(entries) => entries,
            Err(error) => {
                log::error!("cannot read path={} err={error}", self.dir.display());
                return Vec::new();
            }
        };
        let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        names.map(|name| InstanceId::new(&name)).filter(|id| self.bundle(id).is_ok()).collect()
    }

    /// The record of a bundle, if it is of this boot and the root file system is mounted.
    fn read_record(&self, id: &InstanceId, mounted: &BTreeSet<PathBuf>) -> Option<Record> {
        let bundle = self.bundle(id).ok()?;
        let text = fs::read(bundle.join("record.json")).ok()?;
        let record = record::decode(&text, &self.boot_id)?;
        mounted.contains(&bundle.join("rootfs")).then_some(record)
    }

    /// Removes the views of the host that no bundle uses.
    fn sweep_whiteouts(&self, ids: &[InstanceId]) {
        let used: BTreeSet<PathBuf> = ids
            .iter()
            .filter_map(|id| fs::read_link(self.bundle(id).ok()?.join(HOST_LINK)).ok())
            .collect();
        let Ok(entries) = fs::read_dir(&self.host.whiteouts) else { return };
        for path in entries.filter_map(|entry| Some(entry.ok()?.path())) {
            if used.contains(&path) {
                continue;
            }
            if let Err(error) = files::remove_tree(&path) {
                log::warn!("cannot remove path={} err={error}", path.display());
            }
        }
    }
}

impl Bundles for BundleStore {
    fn prepare(&self, id: &InstanceId) -> Result<PathBuf, Failure> {
        self.prepare_bundle(id).map_err(|error| Failure::lasting(&error))
    }

    fn build(&self, plan: &StartPlan) -> Result<Option<Doubt>, Failure> {
        self.build_bundle(plan).map_err(|error| Failure::lasting(&error))
    }

    fn path(&self, id: &InstanceId) -> PathBuf {
        self.dir.join(id.as_str())
    }

    fn record(&self, id: &InstanceId, record: &Record) -> Result<(), Failure> {
        let written = self.bundle(id).and_then(|bundle| {
            self.write(&bundle.join("record.json"), &record::encode(record, &self.boot_id))
        });
        written.map_err(|error| Failure::lasting(&error))
    }

    fn survey(&self) -> Vec<(InstanceId, Option<Record>)> {
        let mounted = mount::mounts().unwrap_or_else(|error| {
            log::error!("cannot read the table of mounts err={error}");
            Vec::new()
        });
        let mounted: BTreeSet<PathBuf> = mounted.into_iter().map(|entry| entry.target).collect();
        let ids = self.ids();
        self.sweep_whiteouts(&ids);
        let found = |id: InstanceId| {
            let record = self.read_record(&id, &mounted);
            (id, record)
        };
        ids.into_iter().map(found).collect()
    }

    fn remove(&self, id: &InstanceId) -> Result<(), Failure> {
        self.remove_bundle(id).map_err(|error| Failure::lasting(&error))
    }
}

fn visible(binds: &[String]) -> BTreeSet<OsString> {
    let default = DEFAULT_HOST_BINDS.map(str::to_owned);
    let names = if binds.is_empty() { &default[..] } else { binds };
    // The key takes names; a leading slash is a frequent mistake.
    let names = names.iter().map(|name| name.trim_matches('/'));
    names.filter(|name| !name.is_empty() && !name.contains('/')).map(OsString::from).collect()
}

/// Creates a directory with exactly this mode, whatever the umask.
fn create_dir(path: &Path, mode: u32) -> Result<(), Error> {
    let created =
        fs::create_dir(path).and_then(|()| fs::set_permissions(path, Permissions::from_mode(mode)));
    created.map_err(|source| Error::Create { path: path.to_owned(), source })
}

/// Bind sources of resources that are device nodes.
fn device_sources(plan: &StartPlan) -> Vec<String> {
    use std::os::unix::fs::FileTypeExt;
    let is_device = |source: &str| {
        fs::metadata(source).is_ok_and(|meta| {
            meta.file_type().is_char_device() || meta.file_type().is_block_device()
        })
    };
    let mounts = plan.resources.iter().flat_map(|resource| &resource.mounts);
    mounts.map(|mount| &mount.source).filter(|source| is_device(source)).cloned().collect()
}

#[cfg(test)]
pub(crate) mod tests;
