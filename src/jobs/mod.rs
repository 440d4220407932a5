//! Job scripts: every slow thing that core decides is one straight function here.
//!
//! Runs on the two exec threads and the fetch thread; one job at a time per thread, from one
//! inbox. In: `ExecJob`, `FetchJob`. Out: `Event::Done` with exactly one `JobDone` per job but for
//! `Cancel`, which the running install looks for in the inbox. A script sees the world only through the ports and keeps nothing between two jobs. A panic is
//! not caught: the process ends and the next one adopts what runs. Not here: deadlines of an
//! instance, retries and decisions (core).

pub mod adopt;
pub mod disk;
pub mod start;
pub mod stop;

#[cfg(test)]
pub(crate) mod fake;

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;

use crossbeam::channel::{Receiver, Sender, TryRecvError};

use crate::model::event::Event;
use crate::model::id::PackageKey;
use crate::model::job::{ExecJob, FetchJob, InstallPlan, JobDone};
use crate::ports::{Bundles, Halt, Images, InstanceData, LogSinks, Network, Runtime};
use crate::sys::{fault, progress};

/// What the scripts act on. A clone shares the adapters.
#[derive(Clone)]
pub struct Ports {
    pub runtime: Arc<dyn Runtime>,
    pub bundles: Arc<dyn Bundles>,
    pub data: Arc<dyn InstanceData>,
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
    while let Ok(job) = progress::waiting(|| inbox.recv()) {
        if events.send(Event::Done(exec(job, ports))).is_err() {
            return;
        }
    }
}

/// Body of the fetch thread: ends as `run_exec` does.
pub fn run_fetch(inbox: &Receiver<FetchJob>, ports: &Ports, events: &Sender<Event>) {
    let inbox = FetchInbox::new(inbox);
    while let Some(job) = inbox.next() {
        let halt = inbox.halt_of(&job);
        let Some(done) = fetch(job, ports, &|| halt.is_reached(&inbox)) else { continue };
        if events.send(Event::Done(done)).is_err() {
            return;
        }
    }
}

/// The inbox of the fetch thread, into which long work looks while it goes on.
struct FetchInbox<'a> {
    receiver: &'a Receiver<FetchJob>,
    /// Taken out of the channel, in order; no more than core lets be in flight.
    waiting: RefCell<VecDeque<FetchJob>>,
    /// The last sender is gone: the daemon ends.
    closed: Cell<bool>,
}

impl<'a> FetchInbox<'a> {
    fn new(receiver: &'a Receiver<FetchJob>) -> Self {
        Self { receiver, waiting: RefCell::default(), closed: Cell::new(false) }
    }

    fn next(&self) -> Option<FetchJob> {
        let waiting = self.waiting.borrow_mut().pop_front();
        waiting.or_else(|| progress::waiting(|| self.receiver.recv()).ok())
    }

    fn look(&self) {
        loop {
            match self.receiver.try_recv() {
                Ok(job) => self.waiting.borrow_mut().push_back(job),
                Err(TryRecvError::Empty) => return,
                Err(TryRecvError::Disconnected) => return self.closed.set(true),
            }
        }
    }

    fn halt_of(&self, job: &FetchJob) -> HaltRule {
        match job {
            FetchJob::Install(plan) => HaltRule::Cancelled(plan.package.key()),
            FetchJob::Check(_) => HaltRule::AnyJob,
            _ => HaltRule::Never,
        }
    }
}

/// What ends a running job before its time, besides the end of the daemon.
enum HaltRule {
    Never,
    Cancelled(PackageKey),
    AnyJob,
}

impl HaltRule {
    fn is_reached(&self, inbox: &FetchInbox<'_>) -> bool {
        progress::step();
        inbox.look();
        let cancels =
            |key: &PackageKey, job: &FetchJob| matches!(job, FetchJob::Cancel(one) if one == key);
        let waiting = inbox.waiting.borrow();
        let reached = match self {
            Self::Never => return false,
            Self::Cancelled(key) => waiting.iter().any(|job| cancels(key, job)),
            // Figures may be late; a check may not be ended each time they are asked for.
            Self::AnyJob => waiting.iter().any(|job| !matches!(job, FetchJob::LookAtDisks(_))),
        };
        reached || inbox.closed.get()
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
        ExecJob::Kill(ids) => {
            let failed = ports.runtime.kill(&ids);
            for (id, failure) in &failed {
                log::error!("cannot kill what is left instance={id} err={failure}");
            }
            JobDone::Killed { failed: failed.into_keys().collect() }
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

/// Does one job of the fetch thread. Long ones ask `halt`. `None` = the job has no answer.
pub fn fetch(job: FetchJob, ports: &Ports, halt: Halt<'_>) -> Option<JobDone> {
    fault::point("fetch job");
    let done = match job {
        FetchJob::Tidy { known, keep } => {
            let missing = ports.images.tidy(&known, &keep).unwrap_or_else(|failure| {
                log::warn!("cannot tidy the image directories err={failure}");
                Vec::new()
            });
            JobDone::Tidied { missing }
        }
        FetchJob::PrepareData(plan) => {
            JobDone::DataPrepared { result: ports.data.prepare_data(&plan), id: plan.id }
        }
        FetchJob::Discard { path } => {
            if let Err(failure) = ports.images.remove(&path) {
                log::warn!("cannot remove a damaged image, the next start will err={failure}");
            }
            JobDone::Discarded
        }
        FetchJob::Check(row) => {
            JobDone::Checked { key: row.key(), result: ports.images.verify(&row, halt) }
        }
        FetchJob::LookAtDisks(paths) => JobDone::LookedAtDisks(disk::look_at(ports, paths)),
        FetchJob::Install(plan) => install(ports, &plan, halt),
        FetchJob::Remove { key, path } => {
            let result = ports.images.remove(&path);
            JobDone::Removed { key, result }
        }
        // It came too late, the install has ended.
        FetchJob::Cancel(_) => return None,
    };
    fault::point("fetch job done");
    Some(done)
}

/// One attempt to install a package; core decides about another one.
fn install(ports: &Ports, plan: &InstallPlan, halt: Halt<'_>) -> JobDone {
    let key = plan.package.key();
    let mut evicted = Vec::new();
    let result = ports.images.install(plan, &mut evicted, halt);
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
            JobDone::Killed { failed } => format!("killed, {} failed", failed.len()),
            JobDone::Adopted { result, .. } => format!("adopted {}", result.is_ok()),
            JobDone::Tidied { missing } => format!("tidied {}", missing.len()),
            JobDone::Discarded => "discarded".to_owned(),
            JobDone::LookedAtDisks(figures) => format!("looked at {} disks", figures.len()),
            JobDone::DataPrepared { id, result } => format!("prepared {id} {}", result.is_ok()),
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
            ExecJob::Kill(vec![fake::plan().id]),
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
        let evictable = vec![old];
        let install = InstallPlan { package, evictable, used_bytes: 1, unfinished: Vec::new() };
        vec![
            FetchJob::Tidy { known: vec!["/a".into(), "/b".into()], keep: Keep::All },
            FetchJob::Install(Box::new(install)),
            FetchJob::Remove { key, path: "/old".into() },
            FetchJob::Discard { path: "/bad".into() },
            FetchJob::LookAtDisks(vec!["/".into()]),
            FetchJob::Cancel(PackageKey::Service(fake::plan().service.key.clone())),
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
             record-running(4242,77) start kill delete detach close remove kill adopt-network adopt \
             tidy(2) install remove-image(/old) remove-image(/bad) verify",
            &[
                "surveyed 0",
                "loaded svc-a 1.0.0 true",
                "started true",
                "stopped Everything 0",
                "killed, 0 failed",
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
            "load prepare remove kill delete detach close remove kill adopt-network adopt \
             tidy(2) install remove-image(/old) remove-image(/bad) verify",
            &[
                "surveyed 0",
                "loaded svc-a 1.0.0 false",
                "started false",
                "stopped Everything 1",
                "killed, 1 failed",
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

    /// Which of these jobs end at the look into the inbox, when these are waiting in it.
    fn halts(waiting: Vec<FetchJob>, closed: bool) -> Vec<bool> {
        let (send, receiver) = bounded(8);
        waiting.into_iter().for_each(|job| send.send(job).unwrap());
        let send = (!closed).then_some(send);
        let inbox = FetchInbox::new(&receiver);
        let halts: Vec<bool> =
            fetch_jobs().iter().map(|job| inbox.halt_of(job).is_reached(&inbox)).collect();
        drop(send);
        halts
    }

    #[test]
    fn long_jobs_look_into_the_inbox() {
        let cancel = |key: PackageKey| FetchJob::Cancel(key);
        let service = PackageKey::Service(fake::plan().service.key.clone());
        let digest = Digest::parse(&format!("sha256:{}", "0".repeat(64))).unwrap();
        // Tidy, Install, Remove, Discard, LookAtDisks, Cancel, Check.
        let none = [false; 7];
        let check_only = [false, false, false, false, false, false, true];
        let both = [false, true, false, false, false, false, true];
        assert_eq!(halts(vec![], false), none);
        assert_eq!(halts(vec![FetchJob::LookAtDisks(Vec::new())], false), none);
        assert_eq!(halts(vec![FetchJob::Discard { path: "/x".into() }], false), check_only);
        assert_eq!(halts(vec![cancel(PackageKey::Layer(digest))], false), check_only);
        assert_eq!(halts(vec![cancel(service)], false), both);
        assert_eq!(halts(vec![], true), both);
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
