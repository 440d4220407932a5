//! A whole simulated unit: directories, certificates, IAM, CM, file server, and a configuration
//! file with which a service manager finds them.

use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use aos_servicemanager::iam::wire::v5::iamanager::{
    CPUInfo, NodeAttribute, NodeInfo, PartitionInfo,
};
use serde_json::{Value, json};

use super::answers::Answers;
use super::catalog::{Catalog, Offer};
use super::certs::{self, Authority, Identity};
use super::cm::{CmEvent, CmServer};
use super::files::{FileServer, Served};
use super::iam::{IamEvent, IamServer};
use super::server::{self, Endpoint};

/// Certificate type that the service manager asks IAM for.
pub const CERT_STORAGE: &str = "sm";

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot prepare {path}")]
    Prepare { path: PathBuf, source: io::Error },
    #[error("cannot make the certificates")]
    Certificates(#[from] certs::Error),
    #[error("cannot start {server}")]
    Server { server: &'static str, source: server::Error },
    #[error("cannot start the file server on {address}")]
    Files { address: String, source: io::Error },
}

#[derive(Clone, Debug)]
pub struct Options {
    /// Everything lives below it.
    pub dir: PathBuf,
    /// Address to listen on.
    pub listen: String,
    /// Name or address under which the service manager reaches the servers.
    pub name: String,
    /// 0 = the kernel chooses.
    pub iam_public_port: u16,
    pub iam_protected_port: u16,
    pub cm_port: u16,
    pub http_port: u16,
    pub node_id: String,
    pub node_type: String,
    pub max_dmips: u64,
    /// Node attribute `NodeRunners`; empty = not there.
    pub runners: String,
    /// Packages by `file://` instead of `http://`.
    pub by_file: bool,
    /// Members of the configuration file that are set or replaced, with dotted keys.
    pub set: Vec<(String, Value)>,
}

impl Options {
    /// A unit in `dir` on the loopback interface.
    pub fn new(dir: &Path) -> Self {
        Self {
            dir: dir.into(),
            listen: "127.0.0.1".to_owned(),
            name: "127.0.0.1".to_owned(),
            iam_public_port: 0,
            iam_protected_port: 0,
            cm_port: 0,
            http_port: 0,
            node_id: "node0".to_owned(),
            node_type: "main".to_owned(),
            max_dmips: 10_000,
            runners: "crun,runc".to_owned(),
            by_file: false,
            set: Vec::new(),
        }
    }
}

/// What happened at one of the servers.
#[derive(Debug)]
pub enum Event {
    Cm(CmEvent),
    Iam(IamEvent),
    File(Served),
}

/// The running unit.
#[derive(Debug)]
pub struct World {
    pub cm: CmServer,
    pub iam: IamServer,
    /// `None` when packages are offered by path.
    pub files: Option<FileServer>,
    pub catalog: Catalog,
    /// Configuration of the service manager.
    pub config_file: PathBuf,
    /// Log answers, saved below the directory of the unit.
    pub answers: Answers,
    /// What the node is said to have.
    pub max_dmips: u64,
    authority: Authority,
    node_id: String,
    certs_made: u32,
}

impl World {
    /// Starts everything. `on_event` is called on the servers' threads and must not block.
    pub fn start(
        options: &Options,
        on_event: impl Fn(Event) + Send + Sync + 'static,
    ) -> Result<Self, Error> {
        let on_event = Arc::new(on_event);
        let dir = make_dir(&options.dir)?;
        for name in ["sm/work", "sm/storages", "sm/states", "packages", "run"] {
            make_dir(&dir.join(name))?;
        }
        let authority = Authority::open(&dir.join("certs"))?;
        let mut names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
        if !names.contains(&options.name) {
            names.push(options.name.clone());
        }
        let server = authority.server("server", &names)?;
        let client = authority.client("sm-1", &options.node_id)?;
        let endpoint = |port, mutual: bool| Endpoint {
            host: options.listen.clone(),
            port,
            identity: server.clone(),
            client_ca: mutual.then(|| authority.ca_file()),
        };
        let iam = {
            let on_event = on_event.clone();
            IamServer::start(
                endpoint(options.iam_public_port, false),
                endpoint(options.iam_protected_port, true),
                node_info(options, &dir),
                &client,
                move |event| on_event(Event::Iam(event)),
            )
            .map_err(|source| Error::Server { server: "IAM", source })?
        };
        let cm = {
            let on_event = on_event.clone();
            CmServer::start(endpoint(options.cm_port, true), move |e| on_event(Event::Cm(e)))
                .map_err(|source| Error::Server { server: "CM", source })?
        };
        let packages = dir.join("packages");
        let files = if options.by_file {
            None
        } else {
            let address = format!("{}:{}", options.listen, options.http_port);
            let files = FileServer::start(&packages, &address, move |s| on_event(Event::File(s)));
            Some(files.map_err(|source| Error::Files { address, source })?)
        };
        let offer = files.as_ref().map_or(Offer::File, |files| Offer::Http {
            base: format!("http://{}:{}", options.name, files.address().port()),
        });
        let config_file = dir.join("aos_servicemanager.cfg");
        let config = daemon_config(options, &dir, &authority.ca_file(), &iam, &cm);
        let text = format!("{config:#}\n");
        fs::write(&config_file, text)
            .map_err(|source| Error::Prepare { path: config_file.clone(), source })?;
        Ok(Self {
            cm,
            iam,
            files,
            catalog: Catalog::new(&packages, offer),
            config_file,
            answers: Answers::new(&dir.join("logs")),
            max_dmips: options.max_dmips,
            authority,
            node_id: options.node_id.clone(),
            certs_made: 1,
        })
    }

    /// Issues a new client certificate, hands it out from now on and tells the subscribers.
    pub fn renew_cert(&mut self) -> Result<Identity, Error> {
        self.certs_made += 1;
        let client = self.authority.client(&format!("sm-{}", self.certs_made), &self.node_id)?;
        self.iam.set_cert(client.cert_url(), client.key_url());
        Ok(client)
    }
}

fn make_dir(path: &Path) -> Result<PathBuf, Error> {
    fs::create_dir_all(path)
        .and_then(|()| fs::canonicalize(path))
        .map_err(|source| Error::Prepare { path: path.into(), source })
}

/// The configuration file of a service manager that belongs to this unit.
fn daemon_config(
    options: &Options,
    dir: &Path,
    ca_file: &Path,
    iam: &IamServer,
    cm: &CmServer,
) -> Value {
    let address = |port: u16| format!("{}:{port}", options.name);
    let mut hasher = DefaultHasher::new();
    dir.hash(&mut hasher);
    let mut config = json!({
        "caCert": ca_file,
        "certStorage": CERT_STORAGE,
        "iamPublicServerUrl": address(iam.public_port()),
        "iamProtectedServerUrl": address(iam.protected_port()),
        "cmServerUrl": address(cm.port()),
        "workingDir": dir.join("sm/work"),
        "storageDir": dir.join("sm/storages"),
        "stateDir": dir.join("sm/states"),
        "runDir": dir.join("run"),
        // Units beside each other must not share a group.
        "cgroupParent": format!("/aos_unit_sim-{:08x}", hasher.finish() & 0xffff_ffff),
        "monitoring": {"pollPeriod": "10s", "averageWindow": "1m"},
    });
    for (key, value) in &options.set {
        let mut place = &mut config;
        for part in key.split('.') {
            if !place.is_object() {
                *place = json!({});
            }
            place = &mut place[part];
        }
        *place = value.clone();
    }
    config
}

fn node_info(options: &Options, dir: &Path) -> NodeInfo {
    let mut node = NodeInfo::new();
    node.node_id.clone_from(&options.node_id);
    node.node_type.clone_from(&options.node_type);
    node.name.clone_from(&options.node_id);
    node.status = "provisioned".to_owned();
    node.os_type = "linux".to_owned();
    node.max_dmips = options.max_dmips;
    node.total_ram = total_ram_bytes();
    let mut cpu = CPUInfo::new();
    cpu.num_cores = std::thread::available_parallelism().map_or(1, |n| n.get() as u64);
    cpu.num_threads = cpu.num_cores;
    cpu.arch = std::env::consts::ARCH.to_owned();
    cpu.max_dmips = options.max_dmips;
    node.cpus.push(cpu);
    let partitions: [(&str, &[&str], &str); 3] = [
        ("workdirs", &["services", "layers", "generic"], "sm/work"),
        ("storages", &["storages"], "sm/storages"),
        ("states", &["states"], "sm/states"),
    ];
    for (name, types, path) in partitions {
        let mut partition = PartitionInfo::new();
        partition.name = name.to_owned();
        partition.types = types.iter().map(|&t| t.to_owned()).collect();
        let path = dir.join(path);
        partition.total_size = total_size_bytes(&path);
        partition.path = path.display().to_string();
        node.partitions.push(partition);
    }
    let mut attribute = |name: &str, value: &str| {
        let mut attribute = NodeAttribute::new();
        attribute.name = name.to_owned();
        attribute.value = value.to_owned();
        node.attrs.push(attribute);
    };
    attribute("MainNode", "");
    attribute("AosComponents", "iam,sm,cm");
    if !options.runners.is_empty() {
        attribute("NodeRunners", &options.runners);
    }
    node
}

fn total_ram_bytes() -> u64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib = text.lines().find_map(|line| {
        line.strip_prefix("MemTotal:")?.split_ascii_whitespace().next()?.parse::<u64>().ok()
    });
    kib.unwrap_or(0) * 1024
}

fn total_size_bytes(path: &Path) -> u64 {
    nix::sys::statvfs::statvfs(path).map_or(0, |s| s.blocks() * s.fragment_size())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn configuration_names_the_servers() {
        let dir = tempfile::tempdir().unwrap();
        let mut options = Options::new(dir.path());
        options.set.push(("monitoring.pollPeriod".to_owned(), json!("1s")));
        options.set.push(("logging.backend".to_owned(), json!("store")));
        let unit = World::start(&options, |_| {}).unwrap();
        let config: Value = serde_json::from_slice(&fs::read(&unit.config_file).unwrap()).unwrap();
        assert_eq!(config["cmServerUrl"], format!("127.0.0.1:{}", unit.cm.port()));
        assert_eq!(config["iamPublicServerUrl"], format!("127.0.0.1:{}", unit.iam.public_port()));
        assert_eq!(config["monitoring"], json!({"pollPeriod": "1s", "averageWindow": "1m"}));
        assert_eq!(config["logging"]["backend"], "store");
        assert!(Path::new(config["caCert"].as_str().unwrap()).is_file());
    }
}
