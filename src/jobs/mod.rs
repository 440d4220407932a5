//! Job scripts: every slow thing that core decides is one straight function here.
//!
//! Runs on the two exec threads and the fetch thread; one job at a time per thread, from one
//! inbox. In: `ExecJob`, `FetchJob`. Out: `Event::Done` with exactly one `JobDone` per job. A
//! script sees the world only through the ports and keeps nothing between two jobs. A panic is
//! not caught: the process ends and the next one adopts what runs. Not here: deadlines of an
//! instance, retries and decisions (core).

pub mod adopt;
pub mod start;
pub mod stop;

#[cfg(test)]
pub(crate) mod fake;

use std::fmt;
use std::sync::Arc;

use crossbeam::channel::{Receiver, Sender};

use crate::model::event::Event;
use crate::model::job::{ExecJob, FetchJob, InstallPlan, JobDone, Package};
use crate::ports::{Bundles, Images, LogSinks, Network, Runtime};

/// What the scripts act on. A clone shares the adapters.
#[derive(Clone)]
pub struct Ports {
    pub runtime: Arc<dyn Runtime>,
    pub bundles: Arc<dyn Bundles>,
    pub network: Arc<dyn Network>,
    pub sinks: Arc<dyn LogSinks>,
    pub images: Arc<dyn Images>,
}

impl fmt::Debug for Ports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Ports")
    }
}

/// Body of an exec thread: ends when the last sender of `inbox` or the receiver of `events` is
/// gone.
pub fn run_exec(inbox: &Receiver<ExecJob>, ports: &Ports, events: &Sender<Event>) {
    for job in inbox {
        if events.send(Event::Done(exec(job, ports))).is_err() {
            return;
        }
    }
}

/// Body of the fetch thread: ends as `run_exec` does.
pub fn run_fetch(inbox: &Receiver<FetchJob>, ports: &Ports, events: &Sender<Event>) {
    for job in inbox {
        if events.send(Event::Done(fetch(job, ports))).is_err() {
            return;
        }
    }
}

/// Does one job of an exec thread.
pub fn exec(job: ExecJob, ports: &Ports) -> JobDone {
    match job {
        ExecJob::Survey => JobDone::Surveyed(adopt::survey(ports)),
        ExecJob::Load(service) => JobDone::Loaded {
            key: service.key.clone(),
            result: ports.images.load(&service).map(Box::new),
        },
        ExecJob::Start(plan) => {
            JobDone::Started { id: plan.id.clone(), result: start::start(ports, &plan) }
        }
        ExecJob::Stop(plan) => {
            let outcome = stop::stop(ports, &plan.id, plan.scope);
            JobDone::Stopped { id: plan.id, scope: plan.scope, outcome }
        }
        ExecJob::Adopt(plan) => {
            JobDone::Adopted { id: plan.id.clone(), result: adopt::adopt(ports, &plan) }
        }
    }
}

/// Does one job of the fetch thread.
pub fn fetch(job: FetchJob, ports: &Ports) -> JobDone {
    match job {
        FetchJob::Tidy { known } => {
            let missing = ports.images.tidy(&known).unwrap_or_else(|failure| {
                log::warn!("cannot tidy the image directories err=\"{failure}\"");
                Vec::new()
            });
            JobDone::Tidied { missing }
        }
        FetchJob::Discard { path } => {
            if let Err(failure) = ports.images.remove(&path) {
                log::warn!("cannot remove a damaged image, the next start will err=\"{failure}\"");
            }
            JobDone::Discarded
        }
        FetchJob::Install(plan) => install(ports, &plan),
        FetchJob::Remove { key, path } => {
            let result = ports.images.remove(&path);
            JobDone::Removed { key, result }
        }
    }
}

/// One attempt to install a package; core decides about another one.
fn install(ports: &Ports, plan: &InstallPlan) -> JobDone {
    let key = plan.package.key();
    log::info!("installing package={key:?} url={}", source_url(&plan.package));
    let mut evicted = Vec::new();
    let result = ports.images.install(plan, &mut evicted);
    JobDone::Installed { key, evicted, result }
}

fn source_url(package: &Package) -> &str {
    match package {
        Package::Service(service) => &service.source.url,
        Package::Layer(layer) => &layer.source.url,
    }
}
