//! Start of one instance, from bundle to running container, and its undo.
//!
//! Runs on an exec thread. In: `StartPlan`, complete; nothing is looked up here. Out: the pid of
//! the init, or the failure of the first step that failed, after everything that this attempt had
//! made was undone in reverse order. Whether the instance counts as active is core's business.

use std::path::Path;

use crate::jobs::{Ports, stop};
use crate::model::failure::Failure;
use crate::model::id::InstanceId;
use crate::model::job::{Doubt, Record, StartKind, StartPlan, Started};
use crate::ports::{Init, NetworkPlan, Stdio};
use crate::sys::fault;
use crate::sys::span::span;

/// What came of a start.
#[derive(Debug, PartialEq)]
pub struct Outcome {
    pub result: Result<Started, Failure>,
    /// It failed and its processes are still there: nothing was removed below them.
    pub unkillable: bool,
}

/// Starts an instance: completely, or after an automatic restart only its container.
pub fn start(ports: &Ports, plan: &StartPlan) -> Outcome {
    let mut undo = Undo::new(ports, &plan.id);
    let result = span("start", &plan.id, || match plan.kind {
        StartKind::Fresh => fresh(ports, plan, &mut undo),
        StartKind::Again => again(ports, plan, &mut undo),
    });
    let unkillable = result.is_err() && !undo.run();
    Outcome { result, unkillable }
}

/// Bundle, sink, network, root file system, container. A failure leaves nothing behind.
fn fresh(ports: &Ports, plan: &StartPlan, undo: &mut Undo<'_>) -> Result<Started, Failure> {
    let id = &plan.id;
    span("check", id, || ports.images.check(plan))?;
    ports.data.check(plan)?;

    undo.note("remove bundle", |ports, id| ports.bundles.remove(id));
    let bundle = span("prepare", id, || ports.bundles.prepare(id))?;
    ports.bundles.record(id, &starting(plan))?;

    undo.note("close log sink", |ports, id| ports.sinks.close(id));
    let stdio = span("sink", id, || ports.sinks.open(plan))?;

    undo.note("detach network", |ports, id| ports.network.detach(id));
    span("attach", id, || ports.network.attach(&network_plan(plan, &bundle)))?;

    fault::point("start step");
    let doubt = span("build", id, || ports.bundles.build(plan))?;
    match container(ports, plan, &bundle, stdio, undo) {
        Ok(started) => {
            let doubt = doubt.and_then(|doubt| match doubt {
                // The runtime has found it after all, in something that it has mounted itself.
                Doubt::Refused(_) => None,
                Doubt::Unloadable(why) => Some(why),
            });
            Ok(Started { doubt, ..started })
        }
        Err(failure) => Err(explained(ports, failure, plan, doubt)),
    }
}

/// A runtime that refuses a program may not say which one, or what is wrong with it.
fn explained(ports: &Ports, failure: Failure, plan: &StartPlan, doubt: Option<Doubt>) -> Failure {
    let image = &plan.image.image;
    let program = image.entrypoint.first().or(image.cmd.first());
    let reason = match (doubt, program) {
        (Some(Doubt::Refused(why) | Doubt::Unloadable(why)), _) => why.into_string(),
        (None, Some(program))
            if ports.runtime.blames_program(&failure) && !failure.message.contains(program) =>
        {
            format!("{program:?}")
        }
        (None, _) => return failure,
    };
    Failure { message: format!("{}: {reason}", failure.message), ..failure }
}

/// Sink and container on the bundle, mounts and network that are still there. A failure takes
/// back the container only: core ends the instance or tries again.
fn again(ports: &Ports, plan: &StartPlan, undo: &mut Undo<'_>) -> Result<Started, Failure> {
    ports.bundles.record(&plan.id, &starting(plan))?;
    let stdio = ports.sinks.open(plan)?;
    let started = container(ports, plan, &ports.bundles.path(&plan.id), stdio, undo);
    started.map_err(|failure| explained(ports, failure, plan, None))
}

fn container(
    ports: &Ports,
    plan: &StartPlan,
    bundle: &Path,
    stdio: Stdio,
    undo: &mut Undo<'_>,
) -> Result<Started, Failure> {
    fault::point("start step");
    undo.created = true;
    let init = span("create", &plan.id, || ports.runtime.create(&plan.id, bundle, stdio))?;
    fault::point("start step");
    ports.bundles.record(&plan.id, &running(plan, init))?;
    fault::point("start step");
    span("run", &plan.id, || ports.runtime.start(&plan.id))?;
    fault::point("start step");
    Ok(Started { pid: init.pid, doubt: None })
}

/// What the network needs to know of an instance, for a start as for an adoption.
pub(crate) fn network_plan(plan: &StartPlan, bundle: &Path) -> NetworkPlan {
    NetworkPlan {
        id: plan.id.clone(),
        ident: plan.instance.ident.clone(),
        network_id: plan.service.provider_id.clone(),
        params: plan.instance.network.clone(),
        hostname: plan.image.service.hostname.clone(),
        hosts: plan.resources.iter().flat_map(|resource| resource.hosts.clone()).collect(),
        exposed_ports: plan.image.image.exposed_ports.clone(),
        quotas: plan.image.service.quotas,
        etc_dir: bundle.join("mounts").join("etc"),
    }
}

/// The record while the container does not exist yet: without a pid nobody adopts it.
fn starting(plan: &StartPlan) -> Record {
    Record { pid: 0, start_time: 0, ..plan.record.clone() }
}

fn running(plan: &StartPlan, init: Init) -> Record {
    Record { pid: init.pid, start_time: init.start_time, ..plan.record.clone() }
}

type Step = fn(&Ports, &InstanceId) -> Result<(), Failure>;

/// Steps that take back what a start has made, last one first.
///
/// A step is noted before its act, because an act that fails half-way may leave something; all
/// of them succeed when there is nothing to take back.
struct Undo<'a> {
    ports: &'a Ports,
    id: &'a InstanceId,
    steps: Vec<(&'static str, Step)>,
    /// A container may exist.
    created: bool,
}

impl<'a> Undo<'a> {
    fn new(ports: &'a Ports, id: &'a InstanceId) -> Self {
        Self { ports, id, steps: Vec::new(), created: false }
    }

    fn note(&mut self, name: &'static str, step: Step) {
        fault::point("start step");
        self.steps.push((name, step));
    }

    /// Takes everything back; goes on after errors. False = processes survive, so that nothing was
    /// removed below them.
    fn run(self) -> bool {
        if self.created {
            let killed = self.step("kill container", stop::kill);
            let deleted = self.step("delete container", |ports, id| ports.runtime.delete(id));
            // Either success proves that the control group has no process left.
            if !killed && !deleted {
                return false;
            }
        }
        for (name, step) in self.steps.iter().rev() {
            self.step(name, *step);
        }
        true
    }

    fn step(&self, name: &str, step: Step) -> bool {
        let result = step(self.ports, self.id);
        if let Err(failure) = &result {
            log::error!("undo of a start: cannot {name} instance={} err={failure}", self.id);
        }
        result.is_ok()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::jobs::fake::{self, Fake};
    use crate::model::node::{Host, Resource};

    /// Starts with one call failing; the calls that were made after all.
    fn check(kind: StartKind, failing: &[&'static str], expect: &str) {
        let plan = StartPlan { kind, ..fake::plan() };
        let (outcome, calls) = Fake::failing(failing).run(|ports| start(ports, &plan));
        assert_eq!(calls, expect, "{kind:?} {failing:?}");
        let unkillable = failing.contains(&"kill") && failing.contains(&"delete");
        assert_eq!(outcome.unkillable, unkillable, "{kind:?} {failing:?}");
        let expect = match failing.first() {
            None => Ok(Started { pid: 4242, doubt: None }),
            Some(first) => Err(Failure::text(format!("{first} failed"))),
        };
        assert_eq!(outcome.result, expect);
    }

    #[test]
    fn a_fresh_start_and_its_undo_at_every_step() {
        let check =
            |failing: &[&'static str], expect: &str| check(StartKind::Fresh, failing, expect);
        let record = "record-starting(0,0)";
        check(
            &[],
            "prepare record-starting(0,0) open attach build create record-running(4242,77) start",
        );
        check(&["check"], "check");
        check(&["check-data"], "check-data");
        check(&["prepare"], "prepare remove");
        check(&["record-starting"], &format!("prepare {record} remove"));
        check(&["open"], &format!("prepare {record} open close remove"));
        check(&["attach"], &format!("prepare {record} open attach detach close remove"));
        check(&["build"], &format!("prepare {record} open attach build detach close remove"));
        let undo = "kill delete detach close remove";
        check(&["create"], &format!("prepare {record} open attach build create {undo}"));
        let created = format!("prepare {record} open attach build create record-running(4242,77)");
        check(&["record-running"], &format!("{created} {undo}"));
        check(&["start"], &format!("{created} start {undo}"));
    }

    #[test]
    fn an_undo_goes_on_after_its_own_errors() {
        let begin = "prepare record-starting(0,0) open attach build create \
                     record-running(4242,77) start kill delete";
        let all = format!("{begin} detach close remove");
        check(StartKind::Fresh, &["start", "kill", "detach", "close", "remove"], &all);
        check(StartKind::Fresh, &["start", "delete", "detach", "close", "remove"], &all);
    }

    #[test]
    fn an_undo_takes_nothing_away_below_living_processes() {
        let begin = "record-starting(0,0) open";
        let end = "create record-running(4242,77) start kill delete";
        let fresh = format!("prepare {begin} attach build {end}");
        check(StartKind::Fresh, &["start", "kill", "delete"], &fresh);
        check(StartKind::Again, &["start", "kill", "delete"], &format!("{begin} {end}"));
    }

    #[test]
    fn another_start_replaces_the_container_only() {
        let check =
            |failing: &[&'static str], expect: &str| check(StartKind::Again, failing, expect);
        let begin = "record-starting(0,0) open";
        check(&[], "record-starting(0,0) open create record-running(4242,77) start");
        check(&["record-starting"], "record-starting(0,0)");
        check(&["open"], begin);
        check(&["create"], &format!("{begin} create kill delete"));
        let created = format!("{begin} create record-running(4242,77)");
        check(&["record-running"], &format!("{created} kill delete"));
        check(&["start"], &format!("{created} start kill delete"));
    }

    #[test]
    fn a_program_that_is_refused_is_named() {
        let check = |doubt: Option<Doubt>, failing: &[&'static str], expect: Result<&str, &str>| {
            let mut fake = Fake::failing(failing);
            fake.doubt = doubt;
            let (outcome, _) = fake.run(|ports| start(ports, &fake::plan()));
            let told = match &outcome.result {
                Ok(started) => Ok(started.doubt.as_deref().unwrap_or_default()),
                Err(failure) => Err(failure.message.as_str()),
            };
            assert_eq!(told, expect);
        };
        let refused = || Some(Doubt::Refused("it is locked".into()));
        let unloadable = || Some(Doubt::Unloadable("it is empty".into()));
        check(unloadable(), &[], Ok("it is empty"));
        check(unloadable(), &["create"], Err("create failed: it is empty"));
        check(refused(), &["create"], Err("create failed: it is locked"));
        check(refused(), &["start"], Err("start failed: it is locked"));
        // The runtime knows better.
        check(refused(), &[], Ok(""));
        check(None, &["create"], Err("create failed"));
    }

    #[test]
    fn a_program_of_which_nothing_is_known_is_named() {
        let mut plan = fake::plan();
        let check = |plan: &StartPlan, message: &str, expect: &str| {
            let failure = Failure { transient: true, ..Failure::text(message) };
            let told = |ports: &Ports| explained(ports, failure.clone(), plan, None);
            let (told, _) = Fake::default().run(told);
            assert_eq!(told, Failure { message: expect.to_owned(), ..failure });
        };
        let denied = "open executable: Permission denied";
        let set = |plan: &mut StartPlan, entrypoint: &[&str], cmd: &[&str]| {
            let image = &mut Arc::make_mut(&mut plan.image).image;
            image.entrypoint = entrypoint.iter().map(|word| (*word).to_owned()).collect();
            image.cmd = cmd.iter().map(|word| (*word).to_owned()).collect();
        };
        set(&mut plan, &["/storage/run", "-x"], &["y"]);
        check(&plan, denied, "open executable: Permission denied: \"/storage/run\"");
        let named = "executable file `/storage/run` not found";
        check(&plan, named, named);
        check(&plan, "no space", "no space");
        set(&mut plan, &[], &["run"]);
        check(&plan, denied, "open executable: Permission denied: \"run\"");
        set(&mut plan, &[], &[]);
        check(&plan, denied, denied);
    }

    #[test]
    fn the_network_gets_what_service_and_resources_say() {
        let mut plan = fake::plan();
        let image = Arc::make_mut(&mut plan.image);
        image.service.hostname = "name".into();
        image.service.quotas.upload_kbit = Some(5);
        image.image.exposed_ports = vec!["80/tcp".into()];
        let host = |ip: &str| Host { ip: ip.into(), hostname: "h".into() };
        let resource =
            |ips: [&str; 2]| Resource { hosts: ips.map(host).into(), ..Default::default() };
        plan.resources = vec![resource(["1.1.1.1", "2.2.2.2"]), resource(["3.3.3.3", "4.4.4.4"])];
        let network = network_plan(&plan, Path::new("/b"));
        assert_eq!(network.id, plan.id);
        assert_eq!(network.ident, plan.instance.ident);
        assert_eq!(network.network_id.as_str(), "prov1");
        assert_eq!(network.hostname, "name");
        assert_eq!(network.hosts, ["1.1.1.1", "2.2.2.2", "3.3.3.3", "4.4.4.4"].map(host));
        assert_eq!(network.exposed_ports, ["80/tcp"]);
        assert_eq!(network.quotas.upload_kbit, Some(5));
        assert_eq!(network.etc_dir, Path::new("/b/mounts/etc"));
    }
}
