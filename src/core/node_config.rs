//! The node configuration in force, its answers to the CM, and what instances get from it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::model::node::{Device, NodeConfig, Resource};
use crate::model::service::ServiceImage;
use crate::model::status::ErrorInfo;

/// Version when there is no configuration.
pub const NO_VERSION: &str = "0.0.0";

/// The stored configuration, or why it cannot be used.
#[derive(Clone, PartialEq, Debug)]
pub struct NodeConfigState {
    /// `0.0.0` without a file; as far as it could be read otherwise.
    pub version: String,
    /// The stored file cannot be used.
    pub error: Option<ErrorInfo>,
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
            found.cloned().ok_or_else(|| (None, Error::NoSuchResource(name.clone())))
        };
        let resources = image.service.resources.iter().map(find).collect::<Result<Vec<_>, _>>()?;
        allocation.hold(&devices);
        Ok((devices, resources))
    }

    fn device<'a>(&self, config: &'a NodeConfig, name: &str) -> Result<&'a Device, Error> {
        if let Some(error) = &self.error {
            return Err(Error::Config(error.message.clone()));
        }
        let found = config.devices.iter().find(|d| d.name == name);
        found.ok_or_else(|| Error::NoSuchDevice(name.to_owned()))
    }
}
