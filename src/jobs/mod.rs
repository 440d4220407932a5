//! Job scripts: every slow thing that core decides is one straight function here.
//!
//! Runs on the two exec threads and the fetch thread; one job at a time per thread, from one
//! inbox. In: `ExecJob`, `FetchJob`. Out: `Event::Done` with exactly one `JobDone` per job. A
//! script sees the world only through the ports and keeps nothing between two jobs. A panic is
//! not caught: the process ends and the next one adopts what runs. Not here: deadlines of an
//! instance, retries and decisions (core).

pub mod adopt;
pub mod disk;
pub mod start;
pub mod stop;

#[cfg(test)]
pub(crate) mod fake;

use std::fmt;
use std::sync::Arc;

use crossbeam::channel::{Receiver, Sender};

use crate::model::event::Event;
use crate::model::job::{ExecJob, FetchJob, InstallPlan, JobDone};
use crate::ports::{Bundles, Images, LogSinks, Network, Runtime};
use crate::sys::fault;

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
            let start::Outcome { result, unkillable } = start::start(ports, &plan);
            JobDone::Started { id: plan.id.clone(), result, unkillable }
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
    let done = do_fetch(job, ports);
    fault::point("fetch job done");
    done
}

fn do_fetch(job: FetchJob, ports: &Ports) -> JobDone {
    fault::point("fetch job");
    match job {
        FetchJob::Tidy { known, keep } => {
            let missing = ports.images.tidy(&known, &keep).unwrap_or_else(|failure| {
                log::warn!("cannot tidy the image directories err={failure}");
                Vec::new()
            });
            JobDone::Tidied { missing }
        }
        FetchJob::Discard { path } => {
            if let Err(failure) = ports.images.remove(&path) {
                log::warn!("cannot remove a damaged image, the next start will err={failure}");
            }
            JobDone::Discarded
        }
        FetchJob::Check(row) => {
            JobDone::Checked { key: row.key(), result: ports.images.verify(&row) }
        }
        FetchJob::LookAtDisks(paths) => JobDone::LookedAtDisks(disk::look_at(paths)),
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
    let mut evicted = Vec::new();
    let result = ports.images.install(plan, &mut evicted);
    JobDone::Installed { key, evicted, result }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use crossbeam::channel::bounded;

    use super::*;
    use crate::jobs::fake::Fake;
    use crate::model::desired::{DesiredService, PackageSource};
    use crate::model::id::{Digest, PackageKey};
    use crate::model::job::{AdoptPlan, Evictable, Keep, Package, Row, StopPlan, StopScope};

    /// Short text of an answer.
    fn text(event: Event) -> String {
        let Event::Done(done) = event else { return format!("{event:?}") };
        match done {
            JobDone::Surveyed(found) => format!("surveyed {}", found.len()),
            JobDone::Loaded { key, result } => format!("loaded {key} {}", result.is_ok()),
            JobDone::Started { result, .. } => format!("started {}", result.is_ok()),
            JobDone::Stopped { scope, outcome, .. } => {
                format!("stopped {scope:?} {}", outcome.errors.len())
            }
            JobDone::Adopted { result, .. } => format!("adopted {}", result.is_ok()),
            JobDone::Tidied { missing } => format!("tidied {}", missing.len()),
            JobDone::Discarded => "discarded".to_owned(),
            JobDone::LookedAtDisks(figures) => format!("looked at {} disks", figures.len()),
            JobDone::Checked { key, result } => format!("checked {key} {}", result.is_ok()),
            JobDone::Installed { key, evicted, result } => {
                format!("installed {key} {} {}", evicted.len(), result.is_ok())
            }
            JobDone::Removed { key, result } => format!("removed {key} {}", result.is_ok()),
        }
    }

    fn exec_jobs() -> Vec<ExecJob> {
        let plan = fake::plan();
        let mut adopt = AdoptPlan { id: plan.id.clone(), record: plan.record.clone(), plan };
        adopt.record.pid = 1;
        let stop = StopPlan { id: fake::plan().id, scope: StopScope::Everything };
        vec![
            ExecJob::Survey,
            ExecJob::Load(fake::plan().service),
            ExecJob::Start(Box::new(fake::plan())),
            ExecJob::Stop(stop),
            ExecJob::Adopt(Box::new(adopt)),
        ]
    }

    fn fetch_jobs() -> Vec<FetchJob> {
        let service = DesiredService {
            key: fake::plan().service.key.clone(),
            provider_id: fake::plan().service.provider_id.clone(),
            gid: 1,
            source: PackageSource::default(),
        };
        let digest = Digest::parse(&format!("sha256:{}", "0".repeat(64))).unwrap();
        let key = PackageKey::Layer(digest);
        let old = Evictable { key: key.clone(), path: PathBuf::new(), size_bytes: 1 };
        let package = Package::Service(service);
        let install = InstallPlan { package, evictable: vec![old], used_bytes: 1 };
        vec![
            FetchJob::Tidy { known: vec!["/a".into(), "/b".into()], keep: Keep::All },
            FetchJob::Install(Box::new(install)),
            FetchJob::Remove { key, path: "/old".into() },
            FetchJob::Discard { path: "/bad".into() },
            FetchJob::LookAtDisks(vec!["/".into()]),
            FetchJob::Check(Box::new(Row::Service(fake::plan().service))),
        ]
    }

    /// Runs both loops over all jobs until their inboxes are closed.
    fn check(failing: &[&'static str], calls: &str, answers: &[&str]) {
        let (seen, made) = Fake::failing(failing).run(|ports| {
            let (send_exec, exec_inbox) = bounded(8);
            let (send_fetch, fetch_inbox) = bounded(8);
            let (events, answers) = bounded(16);
            exec_jobs().into_iter().for_each(|job| send_exec.send(job).unwrap());
            fetch_jobs().into_iter().for_each(|job| send_fetch.send(job).unwrap());
            drop((send_exec, send_fetch));
            run_exec(&exec_inbox, ports, &events);
            run_fetch(&fetch_inbox, ports, &events);
            answers.try_iter().map(text).collect::<Vec<_>>()
        });
        assert_eq!(made, calls);
        assert_eq!(seen, answers);
    }

    #[test]
    fn every_job_has_one_answer() {
        let zeros = "0".repeat(64);
        check(
            &[],
            "load prepare record-starting(0,0) open attach build create \
             record-running(4242,77) start kill delete remove detach close adopt-network adopt \
             tidy(2) install remove-image(/old) remove-image(/bad) verify",
            &[
                "surveyed 0",
                "loaded svc-a 1.0.0 true",
                "started true",
                "stopped Everything 0",
                "adopted true",
                "tidied 1",
                "installed service svc-a 1.0.0 1 true",
                &format!("removed layer sha256:{zeros} true"),
                "discarded",
                "looked at 1 disks",
                "checked service svc-a 1.0.0 true",
            ],
        );
        check(
            &["load", "prepare", "kill", "adopt", "tidy", "install", "remove-image", "verify"],
            "load prepare remove kill delete remove detach close adopt-network adopt \
             tidy(2) install remove-image(/old) remove-image(/bad) verify",
            &[
                "surveyed 0",
                "loaded svc-a 1.0.0 false",
                "started false",
                "stopped Everything 1",
                "adopted false",
                "tidied 0",
                "installed service svc-a 1.0.0 1 false",
                &format!("removed layer sha256:{zeros} false"),
                "discarded",
                "looked at 1 disks",
                "checked service svc-a 1.0.0 false",
            ],
        );
    }

    #[test]
    fn a_loop_ends_when_nobody_hears_its_answers() {
        let ((), calls) = Fake::default().run(|ports| {
            let (send, inbox) = bounded(8);
            let (events, answers) = bounded(1);
            drop(answers);
            exec_jobs().into_iter().skip(1).for_each(|job| send.send(job).unwrap());
            run_exec(&inbox, ports, &events);
        });
        assert_eq!(calls, "load");
    }
}
