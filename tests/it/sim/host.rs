//! A made-up host: what exists on it survives a crash of the daemon. Implements all ports.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use aos_servicemanager::model::event::{Event, Exit};
use aos_servicemanager::model::failure::Failure;
use aos_servicemanager::model::id::{InstanceId, NetworkId, PackageKey};
use aos_servicemanager::model::job::{
    Doubt, InstallPlan, Installed, Keep, Package, Record, Row, StartPlan, Started, Verified,
};
use aos_servicemanager::model::service::{
    InstalledLayer, InstalledService, ServiceConfig, ServiceImage,
};
use aos_servicemanager::ports::{
    Bundles, Halt, Images, Init, InstanceData, LogSinks, Network, NetworkPlan, Runtime, Stdio,
};

/// The daemon was killed in the middle of a port call.
pub struct Crash;

#[derive(Default)]
pub struct Host(Mutex<Inner>);

#[derive(Default)]
struct Inner {
    containers: BTreeMap<InstanceId, Container>,
    bundles: BTreeMap<InstanceId, Option<Record>>,
    /// What was built for an id: service version.
    built: BTreeMap<InstanceId, String>,
    /// And its image.
    rootfs: BTreeMap<InstanceId, PathBuf>,
    /// With the address.
    networks: BTreeMap<InstanceId, String>,
    sinks: BTreeSet<InstanceId>,
    images: BTreeSet<PathBuf>,
    /// Images that cannot be read, with the number of attempts that fail.
    unreadable: BTreeMap<PathBuf, u32>,
    /// Service configurations by service id.
    configs: BTreeMap<String, ServiceImage>,
    events: VecDeque<Event>,
    next_pid: u32,
    calls: u64,
    crash_at: Option<u64>,
    crashed: bool,
    fail_per_mille: u64,
    random: u64,
    broken_urls: BTreeSet<String>,
    /// Downloads that fail so many times more, as if the server was away.
    flaky_urls: BTreeMap<String, u32>,
    damaged: BTreeSet<PathBuf>,
    pub installs: Vec<String>,
    unkillable: BTreeSet<InstanceId>,
    /// Said of every program.
    doubt: Option<String>,
    fail_starts: bool,
    bad_networks: BTreeMap<NetworkId, String>,
    /// Images that the disk has room for.
    capacity: Option<usize>,
    /// Containers that end as soon as they are started.
    stillborn: u64,
    /// What each start got: the secret.
    secrets: BTreeMap<InstanceId, Option<String>>,
    pub starts: u64,
    attached: u64,
    /// Storage directories lie on a server; what is prepared there.
    remote_storage: bool,
    prepared: BTreeSet<InstanceId>,
    refuses_data: bool,
}

struct Container {
    pid: u32,
    running: bool,
}

fn failure(what: &str) -> Failure {
    Failure::text(format!("made-up failure of {what}"))
}

/// A small generator, good enough to mix things up: xorshift64*.
pub fn next_random(state: &mut u64) -> u64 {
    *state ^= *state >> 12;
    *state ^= *state << 25;
    *state ^= *state >> 27;
    state.wrapping_mul(0x2545_F491_4F6C_DD1D)
}

impl Inner {
    /// Every port call passes here: it may fail, and the daemon may die in it.
    fn call(&mut self, what: &str) -> Result<(), Failure> {
        if self.crashed {
            return Err(failure("a dead daemon"));
        }
        self.calls += 1;
        if self.crash_at == Some(self.calls) {
            self.crashed = true;
            std::panic::panic_any(Crash);
        }
        if next_random(&mut self.random) % 1000 < self.fail_per_mille {
            return Err(failure(what));
        }
        Ok(())
    }

    /// An image goes only when nothing runs from it.
    fn remove_image(&mut self, path: &Path) {
        self.images.remove(path);
        for (id, _) in self.containers.iter().filter(|(_, c)| c.running) {
            assert!(self.rootfs[id] != path, "{id} runs from {path:?}");
        }
    }

    /// Like `call`, but for what must not fail.
    fn sure(&mut self) -> bool {
        if self.crashed {
            return false;
        }
        self.calls += 1;
        if self.crash_at == Some(self.calls) {
            self.crashed = true;
            std::panic::panic_any(Crash);
        }
        true
    }
}

impl Host {
    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    pub fn seed(&self, seed: u64) {
        self.lock().random = seed | 1;
    }

    pub fn fail_per_mille(&self, per_mille: u64) {
        self.lock().fail_per_mille = per_mille;
    }

    /// The next `count` containers end as soon as they are started.
    /// From now on every program looks as if the kernel could not execute it.
    pub fn doubt_programs(&self, why: &str) {
        self.lock().doubt = Some(why.to_owned());
    }

    pub fn stillborn(&self, count: u64) {
        self.lock().stillborn = count;
    }

    pub fn fail_starts(&self, fail: bool) {
        self.lock().fail_starts = fail;
    }

    /// From now on just these networks cannot be set up, for these reasons.
    pub fn break_networks(&self, bad: &[(&str, &str)]) {
        let bad = bad.iter().map(|(id, reason)| (NetworkId::new(id), (*reason).to_owned()));
        self.lock().bad_networks = bad.collect();
    }

    pub fn bad_networks(&self) -> Vec<(NetworkId, Failure)> {
        let inner = self.lock();
        let bad = inner.bad_networks.iter();
        bad.map(|(id, reason)| (id.clone(), Failure::text(reason.clone()))).collect()
    }

    /// The daemon dies in its `calls`th port call from now.
    pub fn crash_in(&self, calls: u64) {
        let mut inner = self.lock();
        inner.crash_at = Some(inner.calls + calls);
    }

    /// The daemon has not made the call yet in which it dies.
    pub fn is_crash_due(&self) -> bool {
        let inner = self.lock();
        inner.crash_at.is_some_and(|at| inner.calls < at)
    }

    /// A new daemon lives.
    pub fn revive(&self) {
        let mut inner = self.lock();
        inner.crashed = false;
        inner.crash_at = None;
        inner.events.clear();
    }

    pub fn break_url(&self, url: &str) {
        self.lock().broken_urls.insert(url.to_owned());
    }

    /// The next attempts to fetch from there fail by something that goes away.
    pub fn make_flaky(&self, url: &str, attempts: u32) {
        self.lock().flaky_urls.insert(url.to_owned(), attempts);
    }

    /// Somebody alters the installed image below this path.
    pub fn damage(&self, path: &Path) {
        self.lock().damaged.insert(path.to_owned());
    }

    /// The disk does not give the image below this path the next times.
    pub fn make_unreadable(&self, path: &Path, times: u32) {
        self.lock().unreadable.insert(path.to_owned(), times);
    }

    /// URLs of all attempts to install since the last call.
    pub fn take_installs(&self) -> Vec<String> {
        std::mem::take(&mut self.lock().installs)
    }

    pub fn mend_url(&self, url: &str) {
        self.lock().broken_urls.remove(url);
    }

    pub fn make_unkillable(&self, id: &InstanceId) {
        self.lock().unkillable.insert(id.clone());
    }

    pub fn configure(&self, service: &str, change: impl FnOnce(&mut ServiceImage)) {
        let mut inner = self.lock();
        change(inner.configs.entry(service.to_owned()).or_default());
    }

    /// The content of the image of a service.
    pub fn config(&self, service: &str) -> ServiceImage {
        self.lock().configs.get(service).cloned().unwrap_or_default()
    }

    pub fn capacity(&self, images: usize) {
        self.lock().capacity = Some(images);
    }

    /// Do storage directories lie on a server from now on?
    pub fn remote_storage(&self, remote: bool) {
        self.lock().remote_storage = remote;
    }

    pub fn refuse_data(&self, refuse: bool) {
        self.lock().refuses_data = refuse;
    }

    pub fn attached(&self) -> u64 {
        self.lock().attached
    }

    pub fn starts(&self) -> u64 {
        self.lock().starts
    }

    /// The init of an instance ends by itself.
    pub fn exit(&self, id: &InstanceId, exit: Exit) {
        let mut inner = self.lock();
        let container = inner.containers.get_mut(id).expect("container exists");
        container.running = false;
        let pid = container.pid;
        inner.events.push_back(Event::Exited { id: id.clone(), pid, exit });
    }

    pub fn secret_of(&self, id: &InstanceId) -> Option<String> {
        self.lock().secrets.get(id).cloned().flatten()
    }

    pub fn has_events(&self) -> bool {
        !self.lock().events.is_empty()
    }

    pub fn next_event(&self) -> Option<Event> {
        self.lock().events.pop_front()
    }

    /// Running instances with the service version that each was built from.
    pub fn running(&self) -> BTreeMap<InstanceId, String> {
        let inner = self.lock();
        let running = inner.containers.iter().filter(|(_, c)| c.running);
        running
            .map(|(id, _)| (id.clone(), inner.built.get(id).cloned().unwrap_or_default()))
            .collect()
    }

    /// Running containers by instance.
    pub fn pids(&self) -> BTreeMap<InstanceId, u32> {
        let inner = self.lock();
        let running = inner.containers.iter().filter(|(_, c)| c.running);
        running.map(|(id, c)| (id.clone(), c.pid)).collect()
    }

    /// Ids of which anything exists.
    pub fn present(&self) -> BTreeSet<InstanceId> {
        let inner = self.lock();
        let containers = inner.containers.keys().chain(inner.bundles.keys());
        containers.chain(inner.networks.keys()).chain(inner.sinks.iter()).cloned().collect()
    }

    pub fn images(&self) -> BTreeSet<PathBuf> {
        self.lock().images.clone()
    }

    fn null() -> std::os::fd::OwnedFd {
        std::fs::File::open("/dev/null").expect("/dev/null opens").into()
    }
}

impl Runtime for Host {
    fn create(&self, id: &InstanceId, _: &Path, _: Stdio) -> Result<Init, Failure> {
        let mut inner = self.lock();
        inner.call("create")?;
        assert!(inner.bundles.contains_key(id), "a bundle before its container");
        assert!(inner.networks.contains_key(id), "a network before its container");
        // A stopped leftover is swept, as the real one does; a running one must never be there.
        let running = inner.containers.get(id).is_some_and(|c| c.running);
        assert!(!running, "one container for an id");
        inner.next_pid += 1;
        let pid = inner.next_pid + 100;
        inner.containers.insert(id.clone(), Container { pid, running: false });
        Ok(Init { pid, start_time: u64::from(pid) })
    }

    fn start(&self, id: &InstanceId) -> Result<(), Failure> {
        let mut inner = self.lock();
        inner.call("start")?;
        if inner.fail_starts {
            return Err(failure("start"));
        }
        inner.starts += 1;
        let stillborn = inner.stillborn > 0;
        let container = inner.containers.get_mut(id).expect("created before it starts");
        container.running = !stillborn;
        if stillborn {
            let pid = container.pid;
            inner.stillborn -= 1;
            inner.events.push_back(Event::Exited { id: id.clone(), pid, exit: Exit::Code(7) });
        }
        Ok(())
    }

    fn blames_program(&self, _: &Failure) -> bool {
        false
    }

    fn adopt(&self, id: &InstanceId, record: &Record) -> Result<Started, Failure> {
        let mut inner = self.lock();
        inner.call("adopt")?;
        let found = inner.containers.get(id).filter(|c| c.running && c.pid == record.pid);
        found.map(|c| Started { pid: c.pid, doubt: None }).ok_or_else(|| failure("identity"))
    }

    fn kill(&self, ids: &[InstanceId]) -> BTreeMap<InstanceId, Failure> {
        let mut inner = self.lock();
        if let Err(failure) = inner.call("kill") {
            return ids.iter().map(|id| (id.clone(), failure.clone())).collect();
        }
        let mut failed = BTreeMap::new();
        for id in ids {
            if inner.unkillable.contains(id) {
                failed.insert(id.clone(), failure("kill"));
            } else if let Some(container) = inner.containers.get_mut(id).filter(|c| c.running) {
                container.running = false;
                let pid = container.pid;
                let exit = Exit::Signal(9);
                inner.events.push_back(Event::Exited { id: id.clone(), pid, exit });
            }
        }
        failed
    }

    fn delete(&self, id: &InstanceId) -> Result<(), Failure> {
        let mut inner = self.lock();
        inner.call("delete")?;
        if inner.unkillable.contains(id) {
            return Err(failure("delete"));
        }
        inner.containers.remove(id);
        Ok(())
    }

    fn survey(&self) -> Vec<InstanceId> {
        let mut inner = self.lock();
        inner.sure();
        inner.containers.keys().cloned().collect()
    }
}

impl Bundles for Host {
    fn prepare(&self, id: &InstanceId) -> Result<PathBuf, Failure> {
        let mut inner = self.lock();
        inner.call("prepare")?;
        inner.bundles.insert(id.clone(), None);
        Ok(Bundles::path(self, id))
    }

    fn build(&self, plan: &StartPlan) -> Result<Option<Doubt>, Failure> {
        let mut inner = self.lock();
        inner.call("build")?;
        assert!(inner.images.contains(&plan.service.path), "the image of a started service exists");
        for layer in &plan.layers {
            assert!(inner.images.contains(layer), "the layers of a started service exist");
        }
        let secret = plan.secret.as_deref().map(str::to_owned);
        inner.rootfs.insert(plan.id.clone(), plan.service.path.clone());
        inner.secrets.insert(plan.id.clone(), secret);
        inner.built.insert(plan.id.clone(), plan.service.key.version.to_string());
        Ok(inner.doubt.as_deref().map(|why| Doubt::Unloadable(why.into())))
    }

    fn path(&self, id: &InstanceId) -> PathBuf {
        Path::new("/bundles").join(id.as_str())
    }

    fn record(&self, id: &InstanceId, record: &Record) -> Result<(), Failure> {
        let mut inner = self.lock();
        inner.call("record")?;
        inner.bundles.insert(id.clone(), Some(record.clone()));
        Ok(())
    }

    fn survey(&self) -> Vec<(InstanceId, Option<Record>)> {
        let mut inner = self.lock();
        inner.sure();
        inner.bundles.iter().map(|(id, record)| (id.clone(), record.clone())).collect()
    }

    fn remove(&self, id: &InstanceId) -> Result<(), Failure> {
        let mut inner = self.lock();
        inner.call("remove bundle")?;
        let running = inner.containers.get(id).is_some_and(|c| c.running);
        assert!(!running, "a root file system is not removed below a running container");
        inner.bundles.remove(id);
        Ok(())
    }
}

impl InstanceData for Host {
    fn check(&self, plan: &StartPlan) -> Result<(), Failure> {
        let inner = self.lock();
        let remote = inner.remote_storage && !plan.instance.storage_path.is_empty();
        assert!(!plan.data_ready || inner.prepared.contains(&plan.id), "ready without work");
        if remote && !plan.data_ready {
            return Err(Failure { remote_data: true, ..failure("data") });
        }
        Ok(())
    }

    fn prepare_data(&self, plan: &StartPlan) -> Result<bool, Failure> {
        let mut inner = self.lock();
        inner.call("prepare data")?;
        if !inner.remote_storage {
            return Ok(false);
        }
        if inner.refuses_data {
            return Err(failure("data"));
        }
        inner.prepared.insert(plan.id.clone());
        Ok(true)
    }

    fn used_bytes(&self, _: &Path) -> Result<u64, Failure> {
        Ok(0)
    }
}

impl Network for Host {
    fn attach(&self, plan: &NetworkPlan) -> Result<(), Failure> {
        let mut inner = self.lock();
        inner.call("attach")?;
        if let Some(reason) = inner.bad_networks.get(&plan.network_id) {
            return Err(Failure::text(reason.clone()));
        }
        inner.attached += 1;
        let ip = plan.params.ip.clone();
        let taken = |other: &String| !ip.is_empty() && *other == ip;
        assert!(!inner.networks.values().any(taken), "the address {ip} is still in use");
        inner.networks.insert(plan.id.clone(), ip);
        Ok(())
    }

    fn adopt(&self, plan: &NetworkPlan) -> Result<(), Failure> {
        let mut inner = self.lock();
        inner.call("adopt network")?;
        inner.networks.contains_key(&plan.id).then_some(()).ok_or_else(|| failure("network"))
    }

    fn detach(&self, id: &InstanceId) -> Result<(), Failure> {
        let mut inner = self.lock();
        inner.call("detach")?;
        inner.networks.remove(id);
        Ok(())
    }

    fn survey(&self) -> Vec<InstanceId> {
        let mut inner = self.lock();
        inner.sure();
        inner.networks.keys().cloned().collect()
    }
}

impl LogSinks for Host {
    fn open(&self, plan: &StartPlan) -> Result<Stdio, Failure> {
        let mut inner = self.lock();
        inner.call("open sink")?;
        inner.sinks.insert(plan.id.clone());
        Ok(Stdio { stdout: Self::null(), stderr: Self::null() })
    }

    fn close(&self, id: &InstanceId) -> Result<(), Failure> {
        let mut inner = self.lock();
        inner.call("close sink")?;
        inner.sinks.remove(id);
        Ok(())
    }

    fn survey(&self) -> Vec<InstanceId> {
        let mut inner = self.lock();
        inner.sure();
        inner.sinks.iter().cloned().collect()
    }
}

impl Images for Host {
    fn install(
        &self,
        plan: &InstallPlan,
        evicted: &mut Vec<PackageKey>,
        halt: Halt<'_>,
    ) -> Result<Installed, Failure> {
        let mut inner = self.lock();
        if halt() {
            return Err(Failure { transient: true, ..failure("cancelled install") });
        }
        let source = match &plan.package {
            Package::Service(service) => &service.source,
            Package::Layer(layer) => &layer.source,
        };
        inner.installs.push(source.url.clone());
        if inner.broken_urls.contains(&source.url) {
            return Err(failure("download"));
        }
        if let Some(left) = inner.flaky_urls.get_mut(&source.url).filter(|left| **left > 0) {
            *left -= 1;
            return Err(Failure { transient: true, ..failure("download") });
        }
        if let Some(evictable) = plan.evictable.first() {
            inner.remove_image(&evictable.path);
            evicted.push(evictable.key.clone());
        }
        inner.call("install")?;
        if inner.capacity.is_some_and(|capacity| inner.images.len() >= capacity) {
            return Err(Failure { no_space: true, ..failure("space") });
        }
        let path = PathBuf::from("/images").join(plan.package.key().to_string());
        inner.images.insert(path.clone());
        inner.damaged.remove(&path);
        Ok(match &plan.package {
            Package::Service(service) => {
                let image = inner.configs.get(service.key.id.as_str()).cloned().unwrap_or_default();
                let row = InstalledService {
                    key: service.key.clone(),
                    provider_id: service.provider_id.clone(),
                    gid: service.gid,
                    path,
                    manifest_digest: service.key.to_string().into_bytes(),
                    tree_digest: String::new(),
                    package_digest: Vec::new(),
                    size_bytes: source.size_bytes,
                    installed_at_ms: 0,
                    unused_since_ms: None,
                    confirmed: false,
                };
                Installed::Service(Box::new(row), Box::new(image))
            }
            Package::Layer(layer) => Installed::Layer(Box::new(InstalledLayer {
                digest: layer.digest.clone(),
                layer_id: layer.layer_id.clone(),
                version: layer.version.clone(),
                os_version: String::new(),
                path,
                package_digest: Vec::new(),
                tree_digest: String::new(),
                size_bytes: source.size_bytes,
                installed_at_ms: 0,
                unused_since_ms: None,
            })),
        })
    }

    fn load(&self, service: &InstalledService) -> Result<ServiceImage, Failure> {
        let mut inner = self.lock();
        inner.call("load")?;
        if let Some(left) = inner.unreadable.get_mut(&service.path).filter(|left| **left > 0) {
            *left -= 1;
            return Err(Failure { transient: true, ..failure("disk") });
        }
        if !inner.images.contains(&service.path) {
            return Err(failure("an image that is gone"));
        }
        let mut image = inner.configs.get(service.key.id.as_str()).cloned().unwrap_or_default();
        image.service = ServiceConfig { ..image.service };
        Ok(image)
    }

    fn remove(&self, path: &Path) -> Result<(), Failure> {
        let mut inner = self.lock();
        inner.call("remove image")?;
        inner.remove_image(path);
        Ok(())
    }

    fn check(&self, plan: &StartPlan) -> Result<(), Failure> {
        let inner = self.lock();
        match inner.damaged.contains(&plan.service.path) {
            true => Err(Failure {
                damaged: Some(PackageKey::Service(plan.service.key.clone())),
                ..failure("an altered image")
            }),
            false => Ok(()),
        }
    }

    fn verify(&self, row: &Row, _: Halt<'_>) -> Result<Verified, Failure> {
        let path = match row {
            Row::Service(row) => &row.path,
            Row::Layer(row) => &row.path,
        };
        let inner = self.lock();
        if inner.damaged.contains(path) {
            Err(failure("an altered image"))
        } else {
            Ok(Verified { tree_digest: format!("tree of {}", path.display()) })
        }
    }

    fn tidy(&self, known: &[PathBuf], keep: &Keep) -> Result<Vec<PathBuf>, Failure> {
        let mut inner = self.lock();
        inner.sure();
        inner.images.retain(|path| *keep == Keep::All || known.contains(path));
        Ok(known.iter().filter(|path| !inner.images.contains(*path)).cloned().collect())
    }
}
