//! Digest of everything that a running instance was made from.
//!
//! Two starts with equal inputs give equal containers; a running instance whose digest no longer
//! matches is restarted, one that matches is left alone or adopted. Only inputs count, never the
//! generated text, so that an upgrade of the daemon restarts nothing: the fields below and their
//! order may be extended only in ways that leave the digest of existing inputs as it is.

use openssl::sha::{Sha256, sha256};

use crate::model::desired::{DesiredInstance, FirewallRule};
use crate::model::node::{Device, Host, Resource};
use crate::model::service::InstalledService;

/// Version of the list of fields.
const FORMAT: &str = "inputs-1";

/// What goes into the digest besides the instance and its service.
#[derive(Debug)]
pub struct Parts<'a> {
    pub instance: &'a DesiredInstance,
    pub service: &'a InstalledService,
    pub devices: &'a [(Device, String)],
    pub resources: &'a [Resource],
    /// Those of the configuration, in the `/etc/hosts` of every instance.
    pub hosts: &'a [Host],
    pub overrides: &'a [String],
    pub max_dmips: u64,
}

/// Lower-case hexadecimal SHA-256. Priority is no input; DNS servers and rules are multisets.
pub fn digest(parts: &Parts<'_>) -> String {
    let mut hash = Fields(Sha256::new());
    hash.text(FORMAT);
    let instance = parts.instance;
    hash.text(instance.ident.service_id.as_str());
    hash.text(instance.ident.subject_id.as_str());
    hash.number(instance.ident.instance);
    hash.number(instance.uid.into());
    hash.text(&instance.storage_path);
    hash.text(&instance.state_path);
    hash.text(&instance.network.subnet);
    hash.text(&instance.network.ip);
    hash.sorted(instance.network.dns_servers.iter().map(String::as_str));
    hash.rules(&instance.network.rules);
    hash.text(&parts.service.key.version);
    hash.text(parts.service.provider_id.as_str());
    hash.number(parts.service.gid.into());
    hash.bytes(&parts.service.manifest_digest);
    hash.number(parts.max_dmips);
    hash.devices(parts.devices);
    hash.resources(parts.resources);
    hash.list(parts.overrides);
    // Later than the others, so without any the digest is what it was.
    if !parts.hosts.is_empty() {
        hash.hosts(parts.hosts);
    }
    hex(&hash.0.finish())
}

/// Lower-case hexadecimal SHA-256 of a secret, for the record file; "" for none.
pub fn secret_hash(secret: Option<&str>) -> String {
    secret.map_or_else(String::new, |s| hex(&sha256(s.as_bytes())))
}

fn hex(bytes: &[u8]) -> String {
    bytes
        .iter()
        .flat_map(|b| [b >> 4, b & 15])
        .map(|n| char::from_digit(n.into(), 16).unwrap_or('0'))
        .collect()
}

/// Length-prefixed fields, so that no two lists of fields give the same bytes.
struct Fields(Sha256);

impl Fields {
    fn bytes(&mut self, bytes: &[u8]) {
        self.0.update(&(bytes.len() as u64).to_le_bytes());
        self.0.update(bytes);
    }

    fn text(&mut self, text: &str) {
        self.bytes(text.as_bytes());
    }

    fn texts(&mut self, texts: &[&str]) {
        texts.iter().for_each(|text| self.text(text));
    }

    fn number(&mut self, number: u64) {
        self.bytes(&number.to_le_bytes());
    }

    fn list(&mut self, list: &[String]) {
        self.number(list.len() as u64);
        list.iter().for_each(|text| self.text(text));
    }

    fn sorted<'a>(&mut self, list: impl Iterator<Item = &'a str>) {
        let mut list: Vec<&str> = list.collect();
        list.sort_unstable();
        self.number(list.len() as u64);
        list.iter().for_each(|text| self.text(text));
    }

    fn rules(&mut self, rules: &[FirewallRule]) {
        let mut rules: Vec<&FirewallRule> = rules.iter().collect();
        rules.sort_unstable();
        self.number(rules.len() as u64);
        for rule in rules {
            self.texts(&[&rule.dst_ip, &rule.dst_port, &rule.proto, &rule.src_ip]);
        }
    }

    fn devices(&mut self, devices: &[(Device, String)]) {
        self.number(devices.len() as u64);
        for (device, access) in devices {
            self.text(&device.name);
            self.list(&device.groups);
            self.list(&device.host_devices);
            self.text(access);
        }
    }

    fn resources(&mut self, resources: &[Resource]) {
        self.number(resources.len() as u64);
        for resource in resources {
            self.text(&resource.name);
            self.list(&resource.groups);
            self.list(&resource.env);
            self.number(resource.mounts.len() as u64);
            for mount in &resource.mounts {
                self.texts(&[&mount.destination, &mount.kind, &mount.source]);
                self.list(&mount.options);
            }
            self.hosts(&resource.hosts);
        }
    }

    fn hosts(&mut self, hosts: &[Host]) {
        self.number(hosts.len() as u64);
        for host in hosts {
            self.texts(&[&host.ip, &host.hostname]);
        }
    }
}
