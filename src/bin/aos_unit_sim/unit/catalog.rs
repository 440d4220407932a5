//! What the unit knows and wants: layers, services, networks, instances; and the messages made of it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use aos_servicemanager::cm::wire::v4::{common, servicemanager as wire};

use super::package::{self, Compression, Image, Package, ServicePackage};
use super::script::{self, Choice, Selector};

/// First uid that instances get by themselves.
const FIRST_UID: u32 = 5000;
/// Addresses of one network: `10.213.<n>.0/24`, the node is 1, instances follow.
const MAX_AUTO_HOST: u8 = 254;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("unknown layer {0:?}")]
    UnknownLayer(String),
    #[error("unknown service {0:?}")]
    UnknownService(String),
    #[error("cannot read {path}")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{what} is neither JSON text nor a file")]
    NoJson { what: String },
    #[error("no addresses are left in the network of {0:?}")]
    NetworkFull(String),
    #[error("malformed rule {0:?}, expected ip:port:protocol")]
    Rule(String),
    #[error("cannot build the package of {name}")]
    Build { name: String, source: package::Error },
}

/// How packages are offered.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Offer {
    /// `file://` and the path.
    File,
    /// `http://host:port/` and the name below the package directory.
    Http { base: String },
}

#[derive(Clone, PartialEq, Debug)]
struct Layer {
    name: String,
    digest: String,
    version: String,
    package: Package,
}

#[derive(Clone, PartialEq, Debug)]
struct Service {
    id: String,
    version: String,
    provider: String,
    gid: u32,
    package: Package,
    /// Said instead of the real one.
    url: Option<String>,
}

/// One instance that the unit wants.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Instance {
    pub service: String,
    pub subject: String,
    pub index: u64,
    info: wire::InstanceInfo,
}

#[derive(Clone, PartialEq, Debug)]
struct Network {
    subnet: String,
    node_ip: String,
    vlan: u64,
    /// Host part of the next address given out, in networks of our own making.
    next: Option<(u8, u8)>,
}

/// Everything the unit was told.
#[derive(Debug)]
pub struct Catalog {
    packages: PathBuf,
    offer: Offer,
    layers: BTreeMap<String, Layer>,
    services: BTreeMap<String, Service>,
    networks: BTreeMap<String, Network>,
    instances: Vec<Instance>,
    next_uid: u32,
    /// Networks of our own making so far.
    made: u8,
}

impl Catalog {
    /// Packages are built in `packages`.
    pub fn new(packages: &Path, offer: Offer) -> Self {
        Self {
            packages: packages.into(),
            offer,
            layers: BTreeMap::new(),
            services: BTreeMap::new(),
            networks: BTreeMap::new(),
            instances: Vec::new(),
            next_uid: FIRST_UID,
            made: 0,
        }
    }

    /// Builds a layer; returns a line about it.
    pub fn add_layer(&mut self, layer: &script::Layer) -> Result<String, Error> {
        let out = self.packages.join(format!("layer-{}-{}.tar", layer.name, layer.version));
        let built = package::build_layer(Path::new(&layer.dir), compression(layer.plain), "", &out)
            .map_err(|source| Error::Build { name: layer.name.clone(), source })?;
        let line = format!("{} {}, {}", layer.name, built.digest, describe(&built.package));
        let layer = Layer {
            name: layer.name.clone(),
            digest: built.digest,
            version: layer.version.clone(),
            package: built.package,
        };
        self.layers.insert(layer.name.clone(), layer);
        Ok(line)
    }

    /// Builds a service, or takes a ready-made package; returns a line about it.
    pub fn add_service(&mut self, service: &script::Service) -> Result<String, Error> {
        let name = || service.id.clone();
        let package = if let Some(path) = &service.package {
            package::describe(Path::new(path))
        } else {
            let content = self.service_package(service)?;
            let out = self.packages.join(format!("service-{}-{}.tar", service.id, service.version));
            package::build_service(&content, &out)
        }
        .map_err(|source| Error::Build { name: name(), source })?;
        let line = format!("{} {}, {}", service.id, service.version, describe(&package));
        self.network(&service.provider);
        let service = Service {
            id: name(),
            version: service.version.clone(),
            provider: service.provider.clone(),
            gid: service.gid,
            package,
            url: service.url.clone(),
        };
        self.services.insert(service.id.clone(), service);
        Ok(line)
    }

    fn service_package(&self, service: &script::Service) -> Result<ServicePackage, Error> {
        let root = PathBuf::from(&service.root);
        let mut image = Image {
            entrypoint: service.entrypoint.clone(),
            cmd: service.cmd.clone(),
            env: service.env.clone(),
            working_dir: service.working_dir.clone(),
            exposed_ports: service.ports.clone(),
            stop_signal: service.stop_signal.clone(),
        };
        // A single program is what is run when nothing else is said.
        if image.entrypoint.is_empty() && root.is_file() {
            let name = root.file_name().unwrap_or_default().to_string_lossy();
            image.entrypoint.push(format!("/{name}"));
        }
        let digest_of = |name: &String| {
            let layer = self.layers.get(name).map(|l| l.digest.clone());
            // A digest text names a layer that comes from elsewhere, or from nowhere.
            let given = || name.contains(':').then(|| name.clone());
            layer.or_else(given).ok_or_else(|| Error::UnknownLayer(name.clone()))
        };
        Ok(ServicePackage {
            root,
            image: match &service.image_config {
                Some(text) => json_text(text)?,
                None => image.to_json(),
            },
            config: service.config.as_deref().map(json_text).transpose()?,
            layers: service.layers.iter().map(digest_of).collect::<Result<_, _>>()?,
            compression: compression(service.plain),
            root_compression: compression(service.plain),
        })
    }

    /// Sets the network of a provider.
    pub fn add_network(&mut self, network: &script::Network) {
        let entry = Network {
            subnet: network.subnet.clone(),
            node_ip: network.ip.clone(),
            vlan: network.vlan,
            next: None,
        };
        self.networks.insert(network.id.clone(), entry);
    }

    /// Adds instances to what the unit wants; those with the same ident are replaced. Returns
    /// one line for each.
    pub fn add_instances(&mut self, wanted: &script::Instance) -> Result<Vec<String>, Error> {
        // A service that nobody knows is what some tests are after; it has no network.
        let provider = self.services.get(&wanted.service).map(|s| s.provider.clone());
        let rules =
            wanted.rules.iter().map(|rule| firewall_rule(rule)).collect::<Result<_, _>>()?;
        let rules: Vec<wire::FirewallRule> = rules;
        let mut lines = Vec::new();
        for index in (wanted.index..).take(usize::try_from(wanted.count).unwrap_or(usize::MAX)) {
            let mut ident = common::InstanceIdent::new();
            ident.service_id.clone_from(&wanted.service);
            ident.subject_id.clone_from(&wanted.subject);
            ident.instance = index;
            let mut parameters = self.address(provider.as_deref(), wanted, index)?;
            parameters.rules.clone_from(&rules);
            parameters.dns_servers.clone_from(&wanted.dns);
            let name = format!("{}_{}_{index}", wanted.service, wanted.subject);
            let path = |choice: &Choice, auto: String| match choice {
                Choice::Auto => auto,
                Choice::None => String::new(),
                Choice::Given(path) => path.clone(),
            };
            let mut info = wire::InstanceInfo::new();
            info.uid = wanted.uid.unwrap_or(self.next_uid);
            if wanted.uid.is_none() {
                self.next_uid += 1;
            }
            info.priority = wanted.priority;
            info.storage_path = path(&wanted.storage, name.clone());
            info.state_path = path(&wanted.state, format!("{name}_state.dat"));
            lines.push(format!(
                "{}/{}/{index} uid {} address {}",
                wanted.service,
                wanted.subject,
                info.uid,
                if parameters.ip.is_empty() { "none" } else { &parameters.ip }
            ));
            info.instance = Some(ident).into();
            info.network_parameters = Some(parameters).into();
            let selector = Selector {
                service: Some(wanted.service.clone()),
                subject: Some(wanted.subject.clone()),
                index: Some(index),
            };
            self.instances.retain(|i| !i.is(&selector));
            self.instances.push(Instance {
                service: wanted.service.clone(),
                subject: wanted.subject.clone(),
                index,
                info,
            });
        }
        Ok(lines)
    }

    /// Removes instances from what the unit wants; returns how many.
    pub fn remove_instances(&mut self, selectors: &[Selector]) -> usize {
        let before = self.instances.len();
        let gone = |i: &Instance| selectors.is_empty() || selectors.iter().any(|s| i.is(s));
        self.instances.retain(|i| !gone(i));
        before - self.instances.len()
    }

    /// Forgets layers, services, networks and instances; the packages stay.
    pub fn clear(&mut self) {
        self.layers.clear();
        self.services.clear();
        self.networks.clear();
        self.instances.clear();
    }

    /// Instances that the unit wants.
    pub fn wanted(&self) -> &[Instance] {
        &self.instances
    }

    /// Version of a service as the unit wants it.
    pub fn version(&self, service: &str) -> Option<&str> {
        self.services.get(service).map(|s| s.version.as_str())
    }

    /// The complete desired state.
    pub fn run_instances(&self, force: bool) -> wire::RunInstances {
        let mut message = wire::RunInstances::new();
        message.force_restart = force;
        for service in self.services.values() {
            let mut info = wire::ServiceInfo::new();
            info.service_id.clone_from(&service.id);
            info.provider_id.clone_from(&service.provider);
            info.version.clone_from(&service.version);
            info.gid = service.gid;
            info.url = service.url.clone().unwrap_or_else(|| self.url(&service.package));
            info.sha256.clone_from(&service.package.sha3_256);
            info.size = service.package.size_bytes;
            message.services.push(info);
        }
        for layer in self.layers.values() {
            let mut info = wire::LayerInfo::new();
            info.layer_id.clone_from(&layer.name);
            info.digest.clone_from(&layer.digest);
            info.version.clone_from(&layer.version);
            info.url = self.url(&layer.package);
            info.sha256.clone_from(&layer.package.sha3_256);
            info.size = layer.package.size_bytes;
            message.layers.push(info);
        }
        message.instances = self.instances.iter().map(|i| i.info.clone()).collect();
        message
    }

    /// The networks of all providers.
    pub fn update_networks(&self) -> wire::UpdateNetworks {
        let mut message = wire::UpdateNetworks::new();
        for (id, network) in &self.networks {
            let mut parameters = wire::NetworkParameters::new();
            parameters.network_id.clone_from(id);
            parameters.subnet.clone_from(&network.subnet);
            parameters.ip.clone_from(&network.node_ip);
            parameters.vlan_id = network.vlan;
            message.networks.push(parameters);
        }
        message
    }

    fn url(&self, package: &Package) -> String {
        match &self.offer {
            Offer::File => format!("file://{}", package.path.display()),
            Offer::Http { base } => {
                let name = package.path.file_name().unwrap_or_default().to_string_lossy();
                format!("{base}/{name}")
            }
        }
    }

    /// The network of a provider, made when it has none.
    fn network(&mut self, provider: &str) -> &mut Network {
        let made = &mut self.made;
        self.networks.entry(provider.to_owned()).or_insert_with(|| {
            let third = *made;
            *made = made.wrapping_add(1);
            Network {
                subnet: format!("10.213.{third}.0/24"),
                node_ip: format!("10.213.{third}.1"),
                vlan: 0,
                next: Some((third, 2)),
            }
        })
    }

    fn address(
        &mut self,
        provider: Option<&str>,
        wanted: &script::Instance,
        index: u64,
    ) -> Result<wire::NetworkParameters, Error> {
        let mut parameters = wire::NetworkParameters::new();
        let (Some(provider), false) = (provider, wanted.ip == Choice::None) else {
            return Ok(parameters);
        };
        // An instance that is declared again keeps its address.
        let known = self.instances.iter().find(|i| {
            i.service == wanted.service && i.subject == wanted.subject && i.index == index
        });
        let known = known.map(|i| i.info.network_parameters.ip.clone()).filter(|ip| !ip.is_empty());
        let network = self.network(provider);
        parameters.subnet.clone_from(&network.subnet);
        parameters.ip = match (&wanted.ip, known, &mut network.next) {
            (Choice::Given(ip), _, _) => ip.clone(),
            (_, Some(ip), _) => ip,
            (_, None, Some((third, host))) if *host < MAX_AUTO_HOST => {
                let ip = format!("10.213.{third}.{host}");
                *host += 1;
                ip
            }
            _ => return Err(Error::NetworkFull(provider.to_owned())),
        };
        Ok(parameters)
    }
}

impl Instance {
    fn is(&self, selector: &Selector) -> bool {
        selector.matches(&self.service, &self.subject, self.index)
    }
}

/// Services and subjects of the wanted instances that a selector means.
pub fn selected<'a>(
    instances: &'a [Instance],
    selector: &Selector,
) -> BTreeSet<(&'a str, &'a str, u64)> {
    let matching = instances.iter().filter(|i| i.is(selector));
    matching.map(|i| (i.service.as_str(), i.subject.as_str(), i.index)).collect()
}

fn compression(plain: bool) -> Compression {
    if plain { Compression::Plain } else { Compression::Gzip }
}

fn describe(package: &Package) -> String {
    format!(
        "{} bytes, sha3-256 {}, {}",
        package.size_bytes,
        package::hex(&package.sha3_256),
        package.path.display()
    )
}

/// JSON that stands in the script itself, or in a file.
fn json_text(text: &str) -> Result<Vec<u8>, Error> {
    if text.trim_start().starts_with('{') {
        return Ok(text.as_bytes().to_vec());
    }
    let path = PathBuf::from(text);
    if !path.exists() {
        return Err(Error::NoJson { what: text.to_owned() });
    }
    fs::read(&path).map_err(|source| Error::Read { path, source })
}

fn firewall_rule(text: &str) -> Result<wire::FirewallRule, Error> {
    let mut parts = text.split(':');
    let mut rule = wire::FirewallRule::new();
    let mut next = || parts.next().map(str::to_owned);
    let (Some(ip), Some(port), Some(proto)) = (next(), next(), next()) else {
        return Err(Error::Rule(text.to_owned()));
    };
    rule.dst_ip = ip;
    rule.dst_port = port;
    rule.proto = proto;
    Ok(rule)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn catalog(dir: &Path) -> Catalog {
        fs::write(dir.join("prog"), "x").unwrap();
        let mut catalog = Catalog::new(&dir.join("packages"), Offer::File);
        let shared = dir.join("shared");
        fs::create_dir(&shared).unwrap();
        fs::write(shared.join("lib"), "y").unwrap();
        run(&mut catalog, &format!("layer base {} version=3.0.0", shared.display()));
        for id in ["a", "b"] {
            run(&mut catalog, &format!("service {id} {}/prog layer=base gid=70", dir.display()));
        }
        catalog
    }

    fn run(catalog: &mut Catalog, line: &str) -> Vec<String> {
        match script::parse(line).unwrap().unwrap() {
            script::Command::Layer(layer) => vec![catalog.add_layer(&layer).unwrap()],
            script::Command::Service(service) => vec![catalog.add_service(&service).unwrap()],
            script::Command::Instance(instance) => catalog.add_instances(&instance).unwrap(),
            script::Command::Network(network) => {
                catalog.add_network(&network);
                Vec::new()
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn desired_state_is_complete() {
        let dir = tempfile::tempdir().unwrap();
        let mut catalog = catalog(dir.path());
        run(&mut catalog, "instance a count=2 priority=9");
        run(
            &mut catalog,
            "instance b subject=user ip=none storage=none state=x rule=1.2.3.4:80:tcp",
        );
        let message = catalog.run_instances(true);
        assert!(message.force_restart);
        let service = &message.services[0];
        assert_eq!((service.service_id.as_str(), service.gid), ("a", 70));
        let path = PathBuf::from(service.url.strip_prefix("file://").unwrap());
        assert_eq!(service.size, fs::metadata(&path).unwrap().len());
        assert_eq!(service.sha256, package::describe(&path).unwrap().sha3_256);
        assert_eq!(message.layers[0].version, "3.0.0");
        let shown: Vec<_> = message
            .instances
            .iter()
            .map(|i| {
                (
                    i.instance.service_id.as_str(),
                    i.instance.instance,
                    i.uid,
                    i.priority,
                    i.network_parameters.ip.as_str(),
                    i.storage_path.as_str(),
                    i.state_path.as_str(),
                )
            })
            .collect();
        assert_eq!(
            shown,
            [
                ("a", 0, 5000, 9, "10.213.0.2", "a_subject_0", "a_subject_0_state.dat"),
                ("a", 1, 5001, 9, "10.213.0.3", "a_subject_1", "a_subject_1_state.dat"),
                ("b", 0, 5002, 0, "", "", "x"),
            ]
        );
        assert_eq!(message.instances[2].network_parameters.rules[0].dst_port, "80");
        let networks = catalog.update_networks().networks;
        assert_eq!(networks.len(), 1);
        assert_eq!(networks[0].ip, "10.213.0.1");
    }

    #[test]
    fn instances_come_and_go() {
        let dir = tempfile::tempdir().unwrap();
        let mut catalog = catalog(dir.path());
        run(&mut catalog, "instance a count=3");
        run(&mut catalog, "instance b");
        run(&mut catalog, "instance a index=1 priority=4"); // replaced, same address
        let ips = |c: &Catalog| -> Vec<String> {
            c.wanted().iter().map(|i| i.info.network_parameters.ip.clone()).collect()
        };
        assert_eq!(ips(&catalog), ["10.213.0.2", "10.213.0.4", "10.213.0.5", "10.213.0.3"]);
        assert_eq!(selected(catalog.wanted(), &Selector::parse("a").unwrap()).len(), 3);
        assert_eq!(catalog.remove_instances(&[Selector::parse("a/*/1").unwrap()]), 1);
        assert_eq!(catalog.remove_instances(&[]), 3);
        assert_eq!(catalog.run_instances(false).services.len(), 2);
        catalog.clear();
        assert_eq!(catalog.run_instances(false), wire::RunInstances::new());
        assert!(catalog.update_networks().networks.is_empty());
    }

    #[test]
    fn addresses_end() {
        let dir = tempfile::tempdir().unwrap();
        let mut catalog = catalog(dir.path());
        let full = script::Instance {
            service: "a".into(),
            subject: "s".into(),
            count: 253,
            ..script::Instance::default()
        };
        assert!(matches!(catalog.add_instances(&full), Err(Error::NetworkFull(_))));
        run(&mut catalog, "network provider 10.1.0.0/16 10.1.0.1 vlan=7");
        assert_eq!(catalog.update_networks().networks[0].vlan_id, 7);
        assert_eq!(run(&mut catalog, "instance b ip=10.1.2.3").len(), 1);
    }
}
