//! What each part needs of the configuration and of the host.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::cm;
use crate::config::{Config, LogBackend, RamFigure, StartVerdict, TrafficPeriod};
use crate::core::state::{self, Policy};
use crate::daemon::Error;
use crate::daemon::world::Places;
use crate::document::{self, NumberUnit, node_config};
use crate::iam;
use crate::image::ImageSettings;
use crate::image::download::TimeLimits;
use crate::logs::alerts::AlertSettings;
use crate::logs::{self, LogSettings};
use crate::model::node::NodeConfig;
use crate::model::status::chain;
use crate::monitor::{self, MonitorSettings};
use crate::network::{self, NetworkSettings};
use crate::probe::HostCaps;
use crate::rpc::token::Tokens;
use crate::runtime::bundle::BundleSettings;
use crate::runtime::crun::{Program, RuntimeSettings};
use crate::runtime::limits;
use crate::runtime::spec::{self, HostLimits, SpecSettings};
use crate::sys::cgroups::Kind;
use crate::sys::mount::is_remote;

const PRIVATE: u32 = 0o700;
/// As the reference makes them.
const OPEN: u32 = 0o755;

/// Directories that must exist, with their mode if they are made.
pub(super) fn directories(config: &Config) -> Vec<(&Path, u32)> {
    let mut all: Vec<(&Path, u32)> = vec![
        (&config.run_dir, PRIVATE),
        (&config.working_dir, OPEN),
        (&config.services_dir, OPEN),
        (&config.layers_dir, OPEN),
        (&config.download_dir, OPEN),
    ];
    // A silent server must not hold up the start.
    let data: [&Path; 2] = [&config.storage_dir, &config.state_dir];
    all.extend(data.into_iter().filter(|dir| !is_remote(dir)).map(|dir| (dir, OPEN)));
    all
}

pub(super) fn policy(config: &Config, max_exec_jobs: usize) -> Policy {
    let instances = &config.instances;
    Policy {
        start_verdict: match instances.start_verdict {
            StartVerdict::ConfirmNew => state::StartVerdict::ConfirmNew,
            StartVerdict::Immediate => state::StartVerdict::Immediate,
            StartVerdict::Reference => state::StartVerdict::Reference,
        },
        keep_instances_on_exit: instances.keep_on_exit,
        stop_timeout: instances.stop_timeout,
        restart_on_secret_change: instances.restart_on_secret_change,
        max_instances: usize::try_from(instances.max_instances).unwrap_or(usize::MAX),
        service_ttl: config.service_ttl,
        layer_ttl: config.layer_ttl,
        max_exec_jobs,
        hosts: instances.hosts.clone(),
    }
}

pub(super) fn tokens(config: &Config) -> Tokens {
    let library = config.pkcs11_module.as_str();
    Tokens::new((!library.is_empty()).then_some(Path::new(library)))
}

pub(super) fn places(config: &Config) -> Places {
    Places {
        storage_dir: config.storage_dir.clone(),
        state_dir: config.state_dir.clone(),
        node_config_file: config.node_config_file.clone(),
    }
}

fn cgroup_parent(config: &Config) -> String {
    config.instances.cgroup_parent.to_string_lossy().into_owned()
}

pub(super) fn runtime(config: &Config, caps: &HostCaps) -> RuntimeSettings {
    RuntimeSettings {
        program: caps
            .runtime
            .clone()
            .map(|found| Program { binary: found.binary, flavour: found.flavour }),
        run_dir: config.run_dir.clone(),
        cgroup_parent: cgroup_parent(config),
        layout: caps.cgroups.clone(),
    }
}

pub(super) fn bundles(config: &Config, caps: &HostCaps) -> Result<BundleSettings, Error> {
    let instances = &config.instances;
    Ok(BundleSettings {
        spec: SpecSettings {
            run_dir: config.run_dir.clone(),
            cgroup_parent: cgroup_parent(config),
            seccomp: instances.seccomp_profile.as_deref().map(seccomp).transpose()?,
            host: limits(caps)?,
        },
        working_dir: config.working_dir.clone(),
        storage_dir: config.storage_dir.clone(),
        state_dir: config.state_dir.clone(),
        host_binds: instances.host_binds.clone(),
        allowed_devices: instances
            .allowed_devices
            .iter()
            .map(|p| p.to_string_lossy().into_owned())
            .collect(),
        host_root: PathBuf::from("/"),
    })
}

fn limits(caps: &HostCaps) -> Result<HostLimits, Error> {
    limits::read(caps.cgroups.kind() == Kind::V2).map_err(|source| Error::Limits { source })
}

fn seccomp(path: &Path) -> Result<Arc<serde_json::Value>, Error> {
    let refuse = |reason: String| Error::Seccomp { path: path.to_owned(), reason };
    let text = std::fs::read_to_string(path).map_err(|e| refuse(e.to_string()))?;
    spec::seccomp_profile(&text).map_err(|e| refuse(chain(&e)))
}

pub(super) fn network(config: &Config) -> NetworkSettings {
    let network = &config.network;
    NetworkSettings {
        working_dir: config.working_dir.clone(),
        run_dir: config.run_dir.clone(),
        hosts: config.instances.hosts.clone(),
        vlan_parent: network.vlan_parent.clone(),
        dns_responder: network.dns_builtin,
        dns_fallback: network.dns_fallback.clone(),
        firewall: network.firewall,
        open_inbound: network.open_inbound,
        bandwidth_optional: network.bandwidth_optional,
        traffic_period: traffic_period(network.traffic_period),
        traffic_store_period: network.traffic_persist_period,
        local_networks: network.local_networks.iter().map(|n| (n.address, n.prefix)).collect(),
        drain_timeout: network.drain_timeout,
    }
}

fn traffic_period(period: TrafficPeriod) -> network::TrafficPeriod {
    match period {
        TrafficPeriod::Minute => network::TrafficPeriod::Minute,
        TrafficPeriod::Hour => network::TrafficPeriod::Hour,
        TrafficPeriod::Day => network::TrafficPeriod::Day,
        TrafficPeriod::Month => network::TrafficPeriod::Month,
        TrafficPeriod::Year => network::TrafficPeriod::Year,
    }
}

pub(super) fn images(config: &Config) -> ImageSettings {
    ImageSettings {
        services_dir: config.services_dir.clone(),
        layers_dir: config.layers_dir.clone(),
        download_dir: config.download_dir.clone(),
        extract_dir: config.extract_dir.clone(),
        reserve_percent: config.disk_reserve_percent,
        services_percent: config.services_part_limit,
        layers_percent: config.layers_part_limit,
        max_entries: u32::try_from(config.install.max_entries).unwrap_or(u32::MAX),
        max_depth: usize::try_from(config.install.max_depth).unwrap_or(usize::MAX),
        times: TimeLimits::default(),
        ca_cert: config.ca_cert.clone(),
        number_unit: NumberUnit::Seconds,
    }
}

pub(super) fn monitor(config: &Config) -> MonitorSettings {
    MonitorSettings {
        poll_period: config.monitoring.poll_period,
        average_window: config.monitoring.average_window,
        ram_figure: match config.monitoring.ram_figure {
            RamFigure::Anonymous => monitor::RamFigure::Anonymous,
            RamFigure::Total => monitor::RamFigure::Total,
        },
        cgroup_parent: cgroup_parent(config),
    }
}

pub(super) fn logs(config: &Config) -> LogSettings {
    let logging = &config.logging;
    LogSettings {
        backend: match logging.backend {
            LogBackend::Auto => logs::Backend::Auto,
            LogBackend::Journal => logs::Backend::Journal,
            LogBackend::Store => logs::Backend::Store,
        },
        journal_dir: logging.journal_dir.clone(),
        cgroup_parent: cgroup_parent(config),
        run_dir: config.run_dir.clone(),
        working_dir: config.working_dir.clone(),
        spool_bytes: logging.spool_size_bytes,
        instance_store_bytes: logging.instance_store_size_bytes,
        store_bytes: logging.store_size_bytes,
        retention: logging.retention,
        sync_period: logging.sync_period,
        rate_lines: logging.rate_lines,
        rate_bytes: logging.rate_bytes,
        max_part_bytes: logging.max_part_size_bytes,
        max_part_count: logging.max_part_count,
        system_log_files: (!logging.system_log_files.is_empty())
            .then(|| logging.system_log_files.clone()),
        alerts: AlertSettings {
            filter: config.journal_alerts.filter.clone(),
            service_priority: config.journal_alerts.service_alert_priority,
            system_priority: config.journal_alerts.system_alert_priority,
            kernel: config.journal_alerts.kernel,
        },
    }
}

pub(super) fn iam(config: &Config) -> iam::Settings {
    iam::Settings {
        public_url: config.iam_public_server_url.clone(),
        protected_url: config.iam_protected_server_url.clone(),
        ca_cert: config.ca_cert.clone(),
        cert_type: config.cert_type.clone(),
        timing: iam::Timing::default(),
    }
}

pub(super) fn cm(config: &Config) -> cm::Settings {
    cm::Settings {
        url: config.cm_server_url.clone(),
        ca_cert: config.ca_cert.clone(),
        reconnect_cap: config.cm_reconnect_timeout,
        allow_root_uid: config.instances.allow_root_uid,
        timing: cm::Timing::default(),
    }
}

pub(super) fn decode_node_config(json: &str) -> Result<NodeConfig, document::Error> {
    node_config::parse(json, NumberUnit::Seconds)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::Compression;
    use flate2::write::GzEncoder;

    use crate::cm::dialect::Dialect;
    use crate::cm::v4::V4;
    use crate::config::MAX_PART_SIZE_BYTES;
    use crate::model::status::{CmReport, LogPart};
    use crate::sys::random;

    #[test]
    fn the_largest_part_of_a_log_fits_into_a_message() {
        let longest_line = 65 * 1024;
        let mut text = vec![0; usize::try_from(MAX_PART_SIZE_BYTES).unwrap() + longest_line];
        random::fill(&mut text).unwrap(); // cannot be compressed
        let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
        encoder.write_all(&text).unwrap();
        let data = encoder.finish().unwrap();
        assert!(data.len() > text.len());
        let log_id = "x".repeat(1024);
        let part = LogPart { log_id, data, ..LogPart::default() };
        V4::default().encode(CmReport::Log(part)).unwrap();
    }
}
