//! The node configuration in force, its answers to the CM, and what instances get from it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use crate::core::instance::Goal;
use crate::core::state::State;
use crate::core::version;
use crate::model::event::Session;
use crate::model::failure::Failure;
use crate::model::node::{Device, DeviceFault, NodeConfig, Resource};
use crate::model::service::ServiceImage;
use crate::model::status::{AlertPayload, CmReport, ErrorInfo, NodeConfigStatus};
use crate::ports::Now;

/// Version when there is no configuration.
pub const NO_VERSION: &str = "0.0.0";

/// The same fault of a device is an alert again after so long (a CM repeats what it sets on every
/// connection).
const ALERT_PERIOD: Duration = Duration::from_secs(600);
/// Faults that are remembered as told.
const MAX_TOLD: usize = 64;

/// The configuration in force, and what is wrong with it.
#[derive(Clone, PartialEq, Debug)]
pub struct NodeConfigState {
    /// `0.0.0` without a file; as far as it could be read otherwise.
    pub version: String,
    /// The stored file cannot be used: the configuration is that of its backup, or there is none.
    pub error: Option<ErrorInfo>,
    /// Devices of `config` that this host did not have when it was looked at last. They are tried
    /// all the same when an instance starts: they may have come meanwhile.
    pub faults: Vec<DeviceFault>,
    /// What the CM was told of faults, and until when (CLOCK_MONOTONIC) that is not repeated.
    pub told: Vec<(DeviceFault, Duration)>,
    pub config: Arc<NodeConfig>,
    /// A check or set is being carried out; later requests wait.
    pub busy: bool,
    /// What is being set.
    pub candidate: Option<NodeConfig>,
}

impl Default for NodeConfigState {
    fn default() -> Self {
        Self {
            version: NO_VERSION.to_owned(),
            error: None,
            faults: Vec::new(),
            told: Vec::new(),
            config: Arc::default(),
            busy: false,
            candidate: None,
        }
    }
}

/// Why an instance does not get what its service asks for.
#[derive(Debug, PartialEq, thiserror::Error)]
pub enum Error {
    #[error("node configuration cannot be used: {0}")]
    Config(String),
    #[error("device is not available: {0}")]
    NoSuchDevice(String),
    #[error("no device available: {0}")]
    DeviceBusy(String),
    #[error("resource is not available: {0}")]
    NoSuchResource(String),
}

/// Users of the devices, counted while goals are worked out in priority order.
#[derive(Debug, Default)]
pub struct Allocation {
    users: BTreeMap<String, u64>,
}

impl Allocation {
    /// Counts an instance as a user of devices.
    pub fn hold(&mut self, devices: &[(Device, String)]) {
        let names: BTreeSet<&str> = devices.iter().map(|(d, _)| d.name.as_str()).collect();
        for name in names {
            *self.users.entry(name.to_owned()).or_default() += 1;
        }
    }
}

impl NodeConfig {
    /// Does the service ask for a device that not everybody can have?
    pub(crate) fn has_limited_device(&self, image: &ServiceImage) -> bool {
        let asked = |name: &str| image.service.devices.iter().any(|d| d.name == name);
        self.devices.iter().any(|d| d.shared_count != 0 && asked(&d.name))
    }
}

/// Devices with the access asked for, and resources.
pub type Granted = (Vec<(Device, String)>, Vec<Resource>);

impl NodeConfigState {
    /// Allocates what a service asks for, all or nothing. `Err` names the device for the alert.
    pub fn grant(
        &self,
        config: &NodeConfig,
        image: &ServiceImage,
        allocation: &mut Allocation,
    ) -> Result<Granted, (Option<String>, Error)> {
        let mut devices = Vec::new();
        for asked in &image.service.devices {
            let device =
                self.device(config, &asked.name).map_err(|e| (Some(asked.name.clone()), e))?;
            let users = allocation.users.get(&device.name).copied().unwrap_or(0);
            let taken_twice = devices.iter().any(|(d, _): &(Device, String)| d.name == device.name);
            if !taken_twice && device.shared_count != 0 && users >= device.shared_count {
                return Err((Some(asked.name.clone()), Error::DeviceBusy(asked.name.clone())));
            }
            devices.push((device.clone(), asked.permissions.clone()));
        }
        let find = |name: &String| {
            let found = config.resources.iter().find(|r| r.name == *name);
            found.cloned().ok_or_else(|| {
                (None, self.missing().unwrap_or_else(|| Error::NoSuchResource(name.clone())))
            })
        };
        let resources = image.service.resources.iter().map(find).collect::<Result<Vec<_>, _>>()?;
        allocation.hold(&devices);
        Ok((devices, resources))
    }

    fn device<'a>(&self, config: &'a NodeConfig, name: &str) -> Result<&'a Device, Error> {
        let found = config.devices.iter().find(|d| d.name == name);
        found.ok_or_else(|| self.missing().unwrap_or_else(|| Error::NoSuchDevice(name.to_owned())))
    }

    /// What is not found may stand in the file that cannot be used.
    fn missing(&self) -> Option<Error> {
        self.error.as_ref().map(|error| Error::Config(error.message.clone()))
    }

    /// The error for the registration and for `get`: the CM then sends its configuration again.
    pub fn status_error(&self) -> Option<ErrorInfo> {
        self.error.clone().or_else(|| not_valid(&self.faults))
    }

    /// Those of the faults that the CM was not told of lately; they count as told now.
    fn news(&mut self, now: Now, faults: &[DeviceFault]) -> Vec<DeviceFault> {
        self.told.retain(|(_, until)| now.mono < *until);
        let is_new = |fault: &&DeviceFault| self.told.iter().all(|(told, _)| told != *fault);
        let news: Vec<_> = faults.iter().filter(is_new).cloned().collect();
        self.told.extend(news.iter().cloned().map(|fault| (fault, now.mono + ALERT_PERIOD)));
        let surplus = self.told.len().saturating_sub(MAX_TOLD);
        self.told.drain(..surplus);
        news
    }
}

/// The error of a configuration with such devices; it lists all of them.
fn not_valid(faults: &[DeviceFault]) -> Option<ErrorInfo> {
    if faults.is_empty() {
        return None;
    }
    let list: Vec<_> =
        faults.iter().map(|f| format!("{}: {}", f.device, f.errors.join(", "))).collect();
    Some(ErrorInfo::text(format!("device resources are not valid: {}", list.join("; "))))
}

impl State {
    /// One alert for each bad device.
    fn alert_faults(&mut self, now: Now, faults: &[DeviceFault]) {
        for fault in self.node_config.news(now, faults) {
            log::warn!(
                "device cannot be used name={} err={}",
                fault.device,
                fault.errors.join(", ")
            );
            let errors = fault.errors.into_iter().map(ErrorInfo::text).collect();
            let payload = AlertPayload::ResourceValidate { name: fault.device, errors };
            self.alert(now.wall_ms, payload);
        }
    }

    /// The devices of the configuration in force were looked up on this host. Instances that have
    /// failed for want of one that is there now may start.
    pub(crate) fn devices_validated(&mut self, now: Now, faults: Vec<DeviceFault>) {
        self.alert_faults(now, &faults);
        let is_bad = |name: &str| faults.iter().any(|fault| fault.device == name);
        let before = std::mem::replace(&mut self.node_config.faults, faults.clone());
        let mended = |name: &str| before.iter().any(|f| f.device == name) && !is_bad(name);
        for instance in self.instances.values_mut() {
            if let Goal::Run(inputs) = &instance.goal
                && inputs.devices.iter().any(|(device, _)| mended(&device.name))
            {
                instance.cause_has_gone();
            }
        }
    }

    pub(crate) fn node_config_done(
        &mut self,
        now: Now,
        session: Session,
        faults: &[DeviceFault],
        result: Result<(), Failure>,
    ) {
        self.alert_faults(now, faults);
        self.node_config.busy = false;
        let candidate = self.node_config.candidate.take();
        let error = not_valid(faults).or_else(|| result.err().map(|e| ErrorInfo::text(e.message)));
        if let Some(config) = candidate.filter(|_| error.is_none()) {
            self.take_over(config);
        }
        let status = NodeConfigStatus { error, ..NodeConfigStatus::default() };
        self.cm.answers.push_back((session, CmReport::NodeConfigStatus(status)));
    }

    /// From now on this configuration counts; for instances that run, from the next request on.
    fn take_over(&mut self, config: NodeConfig) {
        let known = &mut self.node_config;
        log::info!("node configuration set version={}", config.version);
        if version::compare(&config.version, &known.version).is_lt() {
            log::warn!("its version is lower than the one before version={}", known.version);
        }
        known.version.clone_from(&config.version);
        known.config = Arc::new(config);
        known.error = None;
        known.faults.clear();
        let newest = known.config.clone();
        for instance in self.instances.values().filter(|i| i.is_present()) {
            if instance.inputs.as_ref().is_some_and(|inputs| inputs.differ_by(&newest)) {
                log::info!(
                    "concerned by the new node configuration, from the next request on instance={} \
                     ident={}",
                    instance.id,
                    instance.desired.ident
                );
            }
        }
        self.node_rules_due = true;
        self.stale_goals = true;
    }
}

impl crate::core::instance::Inputs {
    /// Are devices or resources in use not what this configuration says?
    fn differ_by(&self, config: &NodeConfig) -> bool {
        let device = |used: &Device| config.devices.iter().find(|d| d.name == used.name);
        let resource = |used: &Resource| config.resources.iter().find(|r| r.name == used.name);
        self.devices.iter().any(|(used, _)| device(used) != Some(used))
            || self.resources.iter().any(|used| resource(used) != Some(used))
    }
}
