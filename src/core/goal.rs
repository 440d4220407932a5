//! Works out what should become of each instance, in priority order: the only place that says
//! whether an instance can run and with what.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::core::Effect;
use crate::core::inputs::{Parts, digest};
use crate::core::instance::{Goal, Inputs, Phase};
use crate::core::limiter::RunRules;
use crate::core::node_config::{Allocation, Granted};
use crate::core::package::{Image, LayerLookup, Lookup};
use crate::core::state::State;
use crate::model::id::{InstanceId, ServiceKey};
use crate::model::job::ExecJob;
use crate::model::service::{InstalledService, ServiceImage};
use crate::model::status::{AlertPayload, ErrorInfo, one_line};
use crate::ports::Now;

/// One pass over all instances.
#[derive(Default)]
struct Pass {
    allocation: Allocation,
    /// What a more important instance asks for is not known yet: its image is being read.
    uncertain: bool,
    unread: BTreeSet<ServiceKey>,
}

impl State {
    /// Renews all goals. Images that are needed and not read yet are asked for.
    pub(crate) fn work_out_goals(&mut self, now: Now, effects: &mut Vec<Effect>) {
        self.stale_goals = false;
        let mut pass = Pass::default();
        for id in self.by_priority() {
            let (goal, version) = self.goal(now, &id, &mut pass);
            let stay = self.stay(now, &id, &goal, &mut pass);
            let Some(instance) = self.instances.get_mut(&id) else { continue };
            if goal.keeps()
                && let Some(inputs) = &instance.inputs
            {
                pass.allocation.hold(&inputs.devices);
            }
            match (&goal, &instance.goal) {
                (Goal::Run(new), Goal::Run(old)) => instance.retry |= new.digest != old.digest,
                (Goal::Run(_), Goal::Blocked { .. }) => instance.retry = true,
                _ => {}
            }
            instance.goal = goal;
            instance.stay = stay;
            instance.goal_version = version;
        }
        self.read_images(pass.unread, effects);
    }

    fn read_images(&mut self, unread: BTreeSet<ServiceKey>, effects: &mut Vec<Effect>) {
        for key in unread {
            if self.exec_jobs >= self.policy.max_exec_jobs {
                self.reads_left = true;
                return;
            }
            if let Some(row) = self.packages.begin_reading(&key) {
                self.exec_jobs += 1;
                effects.push(Effect::Exec(ExecJob::Load(row)));
            }
        }
    }

    fn goal(&mut self, now: Now, id: &InstanceId, pass: &mut Pass) -> (Goal, Arc<str>) {
        let unknown = || Arc::from("");
        let Some(instance) = self.instances.get(id) else { return (Goal::Gone, unknown()) };
        if !instance.wanted || (self.stopping && !self.policy.keep_instances_on_exit) {
            return (Goal::Gone, instance.goal_version.clone());
        }
        let key = match self.packages.service(&instance.desired.ident.service_id) {
            Lookup::Unknown => return (blocked("service not exist"), unknown()),
            Lookup::Pending(key) => return (Goal::Wait, key.version.clone()),
            Lookup::NeedsRoom(key) => return (Goal::MakeRoom, key.version.clone()),
            Lookup::Failed(key, failure) => {
                let error = ErrorInfo::text(format!("cannot install service {key}: {failure}"));
                return (Goal::Blocked { error, keep: true }, key.version.clone());
            }
            Lookup::Installed(service) => service.row.key.clone(),
        };
        let version = key.version.clone();
        (self.goal_of_version(now, id, &key, pass), version)
    }

    /// An earlier life left the instance running and what is wanted is not there yet: may it run
    /// on as it is?
    fn stay(&mut self, now: Now, id: &InstanceId, goal: &Goal, pass: &mut Pass) -> Goal {
        let Some(instance) = self.instances.get(id) else { return Goal::Gone };
        let Phase::Found(record) = &instance.phase else { return Goal::Wait };
        if !goal.keeps() {
            return Goal::Wait;
        }
        let key = record.service();
        // What it runs from may be found again on disk, or come anew.
        if self.packages.is_coming(&key) {
            return Goal::Wait;
        }
        self.goal_of_version(now, id, &key, pass)
    }

    fn goal_of_version(
        &mut self,
        now: Now,
        id: &InstanceId,
        key: &ServiceKey,
        pass: &mut Pass,
    ) -> Goal {
        let Some(service) = self.packages.installed_service(key) else { return Goal::Gone };
        if let Some(failure) = self.packages.damage_of_service(key) {
            return blocked(failure.to_string());
        }
        let image = match &service.image {
            Image::Read(image) => image.clone(),
            Image::Unreadable { failure, .. } => {
                pass.uncertain = true;
                let error = ErrorInfo::text(format!("cannot read image of {key}: {failure}"));
                let found = matches!(
                    self.instances.get(id).map(|instance| &instance.phase),
                    Some(Phase::Found(_))
                );
                // What runs from it can be taken over as soon as it can be read.
                return if found { Goal::Wait } else { Goal::Blocked { error, keep: true } };
            }
            image @ (Image::Reading | Image::Unread) => {
                if matches!(image, Image::Unread) {
                    pass.unread.insert(key.clone());
                }
                pass.uncertain = true;
                return Goal::Wait;
            }
        };
        let row = service.row.clone();
        self.goal_with_image(now, id, row, image, pass)
    }

    fn goal_with_image(
        &mut self,
        now: Now,
        id: &InstanceId,
        service: Arc<InstalledService>,
        image: Arc<ServiceImage>,
        pass: &mut Pass,
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
        if let Some(error) = self.no_runner() {
            return blocked(error);
        }
        let (devices, resources) = match self.grant(now, id, &image, pass) {
            Ok(granted) => granted,
            Err(goal) => return goal,
        };
        let Some(instance) = self.instances.get(id) else { return Goal::Gone };
        let max_dmips = self.node.as_ref().map_or(0, |node| node.max_dmips);
        let overrides = self.overrides.of(&instance.desired.ident);
        let digest = digest(&Parts {
            instance: &instance.desired,
            service: &service,
            devices: &devices,
            resources: &resources,
            hosts: &self.policy.hosts,
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

    /// IAM lists what may run instances on this node; nothing listed means crun and runc.
    fn no_runner(&self) -> Option<String> {
        let runners = &self.node.as_ref()?.runners;
        let usable = runners.is_empty() || runners.iter().any(|r| r == "crun" || r == "runc");
        (!usable).then(|| format!("no runner for containers on this node: {}", runners.join(", ")))
    }

    /// Devices and resources, from the node configuration that counts for the instance.
    fn grant(
        &mut self,
        now: Now,
        id: &InstanceId,
        image: &ServiceImage,
        pass: &mut Pass,
    ) -> Result<Granted, Goal> {
        let newest = &self.node_config.config;
        let Some(instance) = self.instances.get_mut(id) else { return Err(Goal::Gone) };
        let config = match &instance.node_config {
            Some(config) if instance.is_present() => config.clone(),
            _ => instance.node_config.insert(newest.clone()).clone(),
        };
        if pass.uncertain && config.has_limited_device(image) {
            return Err(Goal::Wait);
        }
        let (device, error) = match self.node_config.grant(&config, image, &mut pass.allocation) {
            Ok(granted) => {
                instance.alerted = false;
                return Ok(granted);
            }
            Err(refused) => refused,
        };
        let error = ErrorInfo::of(&error);
        let first = !std::mem::replace(&mut instance.alerted, true);
        let ident = instance.desired.ident.clone();
        if let Some(device) = device.filter(|_| first) {
            let (device, message) = (one_line(device), error.message.clone());
            self.alert(now.wall_ms, AlertPayload::DeviceAllocate { ident, device, message });
        }
        Err(Goal::Blocked { error, keep: false })
    }

    fn layer_paths(&self, image: &ServiceImage) -> Result<Vec<std::path::PathBuf>, Goal> {
        let mut paths = Vec::with_capacity(image.layers.len());
        for digest in &image.layers {
            match self.packages.layer(digest) {
                LayerLookup::Installed(layer) => paths.push(layer.path.clone()),
                LayerLookup::Pending => return Err(Goal::Wait),
                LayerLookup::Failed(failure) => {
                    let error =
                        ErrorInfo::text(format!("layer does not exist: {digest}: {failure}"));
                    return Err(Goal::Blocked { error, keep: true });
                }
                LayerLookup::Damaged(failure) => {
                    return Err(blocked(format!("layer {digest} is damaged: {failure}")));
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
        self.online_matters = true;
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
