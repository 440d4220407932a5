//! Recording fakes of all ports for the tests of the scripts.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use crate::jobs::Ports;
use crate::model::failure::Failure;
use crate::model::id::{InstanceId, PackageKey};
use crate::model::job::{
    Doubt, InstallPlan, Installed, Keep, Record, Row, StartPlan, Started, Verified,
};
use crate::model::service::{InstalledService, ServiceImage};
use crate::ports::{
    Bundles, Halt, Images, Init, InstanceData, LogSinks, Network, NetworkPlan, Runtime, Stdio,
};
use crate::runtime::spec::tests as sample;

/// Notes every call, in order, and fails those it is told to.
#[derive(Debug, Default)]
pub(crate) struct Fake {
    /// The mutex is here because ports are shared between threads; the tests use one.
    calls: Mutex<Vec<String>>,
    failing: BTreeSet<&'static str>,
    pub(crate) bundles: Vec<(&'static str, Option<Record>)>,
    pub(crate) containers: Vec<&'static str>,
    pub(crate) networks: Vec<&'static str>,
    pub(crate) sinks: Vec<&'static str>,
    /// Of the program of every instance.
    pub(crate) doubt: Option<Doubt>,
}

impl Fake {
    /// A world in which the named calls fail.
    pub(crate) fn failing(calls: &[&'static str]) -> Self {
        Self { failing: calls.iter().copied().collect(), ..Self::default() }
    }

    /// Runs a script against this world; returns its result and the calls it made.
    pub(crate) fn run<T>(self, script: impl FnOnce(&Ports) -> T) -> (T, String) {
        let fake = Arc::new(self);
        let ports = Ports {
            runtime: fake.clone(),
            bundles: fake.clone(),
            data: fake.clone(),
            network: fake.clone(),
            sinks: fake.clone(),
            images: fake.clone(),
        };
        let result = script(&ports);
        let calls = fake.calls.lock().unwrap().join(" ");
        (result, calls)
    }

    fn call(&self, name: &str) -> Result<(), Failure> {
        self.note(name, name)
    }

    fn note(&self, name: &str, text: &str) -> Result<(), Failure> {
        self.calls.lock().unwrap().push(text.to_owned());
        if self.failing.contains(name) {
            return Err(Failure::text(format!("{name} failed")));
        }
        Ok(())
    }
}

/// The plan of a start whose record says nothing of a container yet.
pub(crate) fn plan() -> StartPlan {
    let mut plan = sample::plan();
    plan.record.pid = 0;
    plan
}

const INIT: Init = Init { pid: 4242, start_time: 77 };

fn ids(names: &[&'static str]) -> Vec<InstanceId> {
    names.iter().map(|name| InstanceId::new(name)).collect()
}

impl Runtime for Fake {
    fn create(&self, _: &InstanceId, bundle: &Path, _: Stdio) -> Result<Init, Failure> {
        assert_eq!(bundle, Path::new("/bundle"));
        self.call("create").map(|()| INIT)
    }
    fn start(&self, _: &InstanceId) -> Result<(), Failure> {
        self.call("start")
    }
    fn blames_program(&self, failure: &Failure) -> bool {
        failure.message.contains("executable")
    }
    fn adopt(&self, _: &InstanceId, record: &Record) -> Result<Started, Failure> {
        self.call("adopt").map(|()| Started { pid: record.pid, doubt: None })
    }
    fn kill(&self, ids: &[InstanceId]) -> BTreeMap<InstanceId, Failure> {
        let failure = self.call("kill").err();
        failure
            .into_iter()
            .flat_map(|f| ids.iter().map(move |id| (id.clone(), f.clone())))
            .collect()
    }
    fn delete(&self, _: &InstanceId) -> Result<(), Failure> {
        self.call("delete")
    }
    fn survey(&self) -> Vec<InstanceId> {
        ids(&self.containers)
    }
}

impl Bundles for Fake {
    fn prepare(&self, _: &InstanceId) -> Result<PathBuf, Failure> {
        self.call("prepare").map(|()| "/bundle".into())
    }
    fn build(&self, _: &StartPlan) -> Result<Option<Doubt>, Failure> {
        self.call("build").map(|()| self.doubt.clone())
    }
    fn path(&self, _: &InstanceId) -> PathBuf {
        "/bundle".into()
    }
    fn record(&self, _: &InstanceId, record: &Record) -> Result<(), Failure> {
        let name = if record.pid == 0 { "record-starting" } else { "record-running" };
        self.note(name, &format!("{name}({},{})", record.pid, record.start_time))
    }
    fn survey(&self) -> Vec<(InstanceId, Option<Record>)> {
        self.bundles.iter().map(|(id, record)| (InstanceId::new(id), record.clone())).collect()
    }
    fn remove(&self, _: &InstanceId) -> Result<(), Failure> {
        self.call("remove")
    }
}

impl InstanceData for Fake {
    fn check(&self, _: &StartPlan) -> Result<(), Failure> {
        if self.failing.contains("check-data") { self.call("check-data") } else { Ok(()) }
    }
    fn prepare_data(&self, _: &StartPlan) -> Result<bool, Failure> {
        self.call("prepare-data").map(|()| true)
    }
    fn used_bytes(&self, path: &Path) -> Result<u64, Failure> {
        match path.ends_with("silent") {
            true => Err(Failure::text("made-up silence")),
            false => Ok(5),
        }
    }
}

impl Network for Fake {
    fn attach(&self, plan: &NetworkPlan) -> Result<(), Failure> {
        assert_eq!(plan.etc_dir, Path::new("/bundle/mounts/etc"));
        self.call("attach")
    }
    fn adopt(&self, plan: &NetworkPlan) -> Result<(), Failure> {
        assert_eq!(plan.etc_dir, Path::new("/bundle/mounts/etc"));
        self.call("adopt-network")
    }
    fn detach(&self, _: &InstanceId) -> Result<(), Failure> {
        self.call("detach")
    }
    fn survey(&self) -> Vec<InstanceId> {
        ids(&self.networks)
    }
}

impl LogSinks for Fake {
    fn open(&self, _: &StartPlan) -> Result<Stdio, Failure> {
        let null = || File::open("/dev/null").unwrap().into();
        self.call("open").map(|()| Stdio { stdout: null(), stderr: null() })
    }
    fn close(&self, _: &InstanceId) -> Result<(), Failure> {
        self.call("close")
    }
    fn survey(&self) -> Vec<InstanceId> {
        ids(&self.sinks)
    }
}

impl Images for Fake {
    fn install(
        &self,
        plan: &InstallPlan,
        evicted: &mut Vec<PackageKey>,
        _: Halt<'_>,
    ) -> Result<Installed, Failure> {
        evicted.extend(plan.evictable.iter().map(|evictable| evictable.key.clone()));
        self.call("install").map(|()| {
            let service = (*sample::plan().service).clone();
            Installed::Service(Box::new(service), Box::default())
        })
    }
    fn load(&self, _: &InstalledService) -> Result<ServiceImage, Failure> {
        self.call("load").map(|()| ServiceImage::default())
    }
    fn remove(&self, path: &Path) -> Result<(), Failure> {
        self.note("remove-image", &format!("remove-image({})", path.display()))
    }
    fn check(&self, _: &StartPlan) -> Result<(), Failure> {
        // Changes nothing, so that it is of no interest where it comes.
        if self.failing.contains("check") { self.call("check") } else { Ok(()) }
    }
    fn verify(&self, _: &Row, _: Halt<'_>) -> Result<Verified, Failure> {
        self.call("verify").map(|()| Verified::default())
    }
    fn tidy(&self, known: &[PathBuf], _: &Keep) -> Result<Vec<PathBuf>, Failure> {
        let missing = known.iter().take(1).cloned().collect();
        self.note("tidy", &format!("tidy({})", known.len())).map(|()| missing)
    }
}
