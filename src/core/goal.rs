//! Works out what should become of each instance, in priority order: the only place that says
//! whether an instance can run and with what.

use std::sync::Arc;

use crate::core::Effect;
use crate::core::inputs::{Parts, digest};
use crate::core::instance::{Goal, Inputs};
use crate::core::limiter::RunRules;
use crate::core::node_config::Allocation;
use crate::core::package::{Image, LayerLookup, Lookup};
use crate::core::state::State;
use crate::model::id::{InstanceId, ServiceKey};
use crate::model::job::ExecJob;
use crate::model::service::ServiceImage;
use crate::model::status::{AlertPayload, ErrorInfo};
use crate::ports::Now;

impl State {
    /// Renews all goals. Images that are needed and not read yet are asked for.
    pub(crate) fn work_out_goals(&mut self, now: Now, effects: &mut Vec<Effect>) {
        self.stale_goals = false;
        let mut allocation = Allocation::default();
        let mut unread = Vec::new();
        for id in self.by_priority() {
            let (goal, version) = self.goal(now, &id, &mut allocation, &mut unread);
            let Some(instance) = self.instances.get_mut(&id) else { continue };
            if let (Goal::Run(new), Goal::Run(old)) = (&goal, &instance.goal)
                && new.digest != old.digest
            {
                instance.retry = true;
            }
            if let (Goal::Run(_), Goal::Blocked { .. }) = (&goal, &instance.goal) {
                instance.retry = true;
            }
            instance.goal = goal;
            instance.goal_version = version;
        }
        unread.sort();
        unread.dedup();
        for key in unread {
            if let Some(row) = self.packages.begin_reading(&key) {
                self.exec_jobs += 1;
                effects.push(Effect::Exec(ExecJob::Load(row)));
            }
        }
    }

    fn goal(
        &mut self,
        now: Now,
        id: &InstanceId,
        allocation: &mut Allocation,
        unread: &mut Vec<ServiceKey>,
    ) -> (Goal, Arc<str>) {
        let unknown = || Arc::from("");
        let Some(instance) = self.instances.get(id) else { return (Goal::Gone, unknown()) };
        if !instance.wanted || (self.stopping && !self.policy.keep_instances_on_exit) {
            return (Goal::Gone, instance.goal_version.clone());
        }
        let service = match self.packages.service(&instance.desired.ident.service_id) {
            Lookup::Unknown => return (blocked("service not exist"), unknown()),
            Lookup::Pending(key) => return (Goal::Wait, key.version.clone()),
            Lookup::Failed(key, failure) => {
                let error = ErrorInfo::text(format!("cannot install service {key}: {failure}"));
                return (Goal::Blocked { error, keep: true }, key.version.clone());
            }
            Lookup::Installed(service) => service,
        };
        let version = service.row.key.version.clone();
        let image = match &service.image {
            Image::Read(image) => image.clone(),
            Image::Broken(failure) => return (blocked(failure.to_string()), version),
            Image::Reading => return (Goal::Wait, version),
            Image::Unread => {
                unread.push(service.row.key.clone());
                return (Goal::Wait, version);
            }
        };
        let row = service.row.clone();
        (self.goal_with_image(now, id, row, image, allocation), version)
    }

    fn goal_with_image(
        &mut self,
        now: Now,
        id: &InstanceId,
        service: Arc<crate::model::service::InstalledService>,
        image: Arc<ServiceImage>,
        allocation: &mut Allocation,
    ) -> Goal {
        let layers = match self.layer_paths(&image) {
            Ok(layers) => layers,
            Err(goal) => return goal,
        };
        let Some(rules) = RunRules::new(&image.service.run_parameters) else {
            return blocked("invalid parameters");
        };
        if self.offline_too_long(now, &image) {
            return blocked("offline timeout");
        }
        if let Some(node) = &self.node
            && !can_run_containers(&node.runners)
        {
            return blocked(format!(
                "no runner for containers on this node: {}",
                node.runners.join(", ")
            ));
        }
        let Some(instance) = self.instances.get(id) else { return Goal::Gone };
        let (desired, ident) = (instance.desired.clone(), instance.desired.ident.clone());
        let known_fault = matches!(&instance.goal, Goal::Blocked { .. });
        let (devices, resources) = match self.node_config.grant(&image, allocation) {
            Ok(granted) => granted,
            Err((device, error)) => {
                let error = ErrorInfo::of(&error);
                if let Some(device) = device.filter(|_| !known_fault) {
                    let message = error.message.clone();
                    self.alert(
                        now.wall_ms,
                        AlertPayload::DeviceAllocate { ident, device, message },
                    );
                }
                return Goal::Blocked { error, keep: false };
            }
        };
        let max_dmips = self.node.as_ref().map_or(0, |node| node.max_dmips);
        let overrides = self.overrides.of(&ident);
        let digest = digest(&Parts {
            instance: &desired,
            service: &service,
            devices: &devices,
            resources: &resources,
            overrides: &overrides,
            // Without a CPU quota it makes no difference to the container.
            max_dmips: image.service.quotas.cpu_dmips.map_or(0, |_| max_dmips),
        });
        Goal::Run(Arc::new(Inputs {
            service,
            image,
            layers,
            devices,
            resources,
            overrides,
            max_dmips,
            rules,
            digest,
        }))
    }

    fn layer_paths(&self, image: &ServiceImage) -> Result<Vec<std::path::PathBuf>, Goal> {
        let mut paths = Vec::with_capacity(image.layers.len());
        for digest in &image.layers {
            match self.packages.layer(digest) {
                LayerLookup::Installed(layer) => paths.push(layer.path.clone()),
                LayerLookup::Pending => return Err(Goal::Wait),
                LayerLookup::Failed(failure) => {
                    let error =
                        ErrorInfo::text(format!("cannot install layer {digest}: {failure}"));
                    return Err(Goal::Blocked { error, keep: true });
                }
                LayerLookup::Unknown => {
                    return Err(blocked(format!("layer does not exist: {digest}")));
                }
            }
        }
        Ok(paths)
    }

    /// Has the cloud been away longer than the service may run without it?
    fn offline_too_long(&mut self, now: Now, image: &ServiceImage) -> bool {
        let Some(ttl) = image.service.offline_ttl.filter(|ttl| !ttl.is_zero()) else {
            return false;
        };
        if self.cloud.online {
            return false;
        }
        let offline = self.cloud.offline_for(now.boot);
        if offline >= ttl {
            return true;
        }
        let at = now.boot + (ttl - offline);
        self.offline_deadline = Some(self.offline_deadline.map_or(at, |d| d.min(at)));
        false
    }
}

fn blocked(text: impl Into<String>) -> Goal {
    Goal::Blocked { error: ErrorInfo::text(text), keep: false }
}

/// IAM lists what may run instances on this node; nothing listed means crun and runc.
fn can_run_containers(runners: &[String]) -> bool {
    runners.is_empty() || runners.iter().any(|r| r == "crun" || r == "runc")
}
