//! Start of one instance, from bundle to running container, and its undo.
//!
//! Runs on an exec thread. In: `StartPlan`, complete; nothing is looked up here. Out: the pid of
//! the init, or the failure of the first step that failed, after everything that this attempt had
//! made was undone in reverse order. Whether the instance counts as active is core's business.

use std::path::Path;

use crate::jobs::Ports;
use crate::model::failure::Failure;
use crate::model::id::InstanceId;
use crate::model::job::{Record, StartKind, StartPlan, Started};
use crate::ports::{Init, NetworkPlan};

/// Starts an instance: completely, or after an automatic restart only its container.
pub fn start(ports: &Ports, plan: &StartPlan) -> Result<Started, Failure> {
    match plan.kind {
        StartKind::Fresh => fresh(ports, plan),
        StartKind::Again => again(ports, plan),
    }
}

/// Bundle, sink, network, root file system, container. A failure leaves nothing behind.
fn fresh(ports: &Ports, plan: &StartPlan) -> Result<Started, Failure> {
    let id = &plan.id;
    let mut done = Undo::new(ports, id);

    done.will_undo("remove bundle", |ports, id| ports.bundles.remove(id));
    let bundle = ports.bundles.prepare(id)?;
    ports.bundles.record(id, &starting(plan))?;

    done.will_undo("close log sink", |ports, id| ports.sinks.close(id));
    let stdio = ports.sinks.open(plan)?;

    done.will_undo("detach network", |ports, id| ports.network.detach(id));
    ports.network.attach(&network_plan(plan, &bundle))?;

    ports.bundles.build(plan)?;

    done.will_undo("delete container", |ports, id| ports.runtime.delete(id));
    done.will_undo("kill container", |ports, id| ports.runtime.kill(id));
    let init = ports.runtime.create(id, &bundle, stdio)?;
    ports.bundles.record(id, &running(plan, init))?;
    ports.runtime.start(id)?;

    done.keep();
    Ok(Started { pid: init.pid })
}

/// Sink and container on the bundle, mounts and network that are still there. A failure takes
/// back the container only: core ends the instance or tries again.
fn again(ports: &Ports, plan: &StartPlan) -> Result<Started, Failure> {
    let id = &plan.id;
    let bundle = ports.bundles.path(id);
    let mut done = Undo::new(ports, id);

    ports.bundles.record(id, &starting(plan))?;
    let stdio = ports.sinks.open(plan)?;

    done.will_undo("delete container", |ports, id| ports.runtime.delete(id));
    done.will_undo("kill container", |ports, id| ports.runtime.kill(id));
    let init = ports.runtime.create(id, &bundle, stdio)?;
    ports.bundles.record(id, &running(plan, init))?;
    ports.runtime.start(id)?;

    done.keep();
    Ok(Started { pid: init.pid })
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

/// Steps that take back what a start has made; runs them, last one first, unless told to keep.
///
/// A step is noted before its act, because an act that fails half-way may leave something; all
/// of them succeed when there is nothing to take back.
struct Undo<'a> {
    ports: &'a Ports,
    id: &'a InstanceId,
    steps: Vec<(&'static str, Step)>,
}

impl<'a> Undo<'a> {
    fn new(ports: &'a Ports, id: &'a InstanceId) -> Self {
        Self { ports, id, steps: Vec::new() }
    }

    fn will_undo(&mut self, name: &'static str, step: Step) {
        self.steps.push((name, step));
    }

    fn keep(mut self) {
        self.steps.clear();
    }
}

impl Drop for Undo<'_> {
    fn drop(&mut self) {
        for (name, step) in self.steps.drain(..).rev() {
            if let Err(failure) = step(self.ports, self.id) {
                log::error!("undo of a start: cannot {name} instance={} err={failure:?}", self.id);
            }
        }
    }
}
