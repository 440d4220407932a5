//! Keys of the configuration file, section by section, with their defaults and limits.
//!
//! Pure: a parsed document and the directory for relative paths in, `Config` and warnings out.

use std::net::IpAddr;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use crate::document::{Error, NumberUnit, Object, Value, duration};
use crate::image::MOST_ENTRIES;
use crate::model::node::{Host, Partition};

use super::{
    Cidr, Config, Install, Instances, JournalAlerts, LogBackend, Logging, MAX_PART_SIZE_BYTES,
    Monitoring, Network, RamFigure, StartVerdict, TrafficPeriod,
};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(86_400);
/// Far beyond any use, and safe to add to a clock.
const TEN_YEARS: Duration = Duration::from_secs(3650 * 86_400);

const DEFAULT_TTL_DAYS: u64 = 30;
const DEFAULT_CERT_TYPE: &str = "sm";
const DEFAULT_CGROUP_PARENT: &str = r"/system.slice/system-aos\x2dservice.slice";
const DEFAULT_RUN_DIR: &str = "/run/aos";
const DEFAULT_JOURNAL_DIR: &str = "/run/systemd/journal";
const DEFAULT_HOST_BINDS: [&str; 5] = ["bin", "sbin", "lib", "lib64", "usr"];
const DEFAULT_DNS_FALLBACK: [&str; 1] = ["8.8.8.8"];
const DEFAULT_LOCAL_NETWORKS: [&str; 4] =
    ["10.0.0.0/8", "127.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"];

/// Each is compared with every packet.
const MAX_LOCAL_NETWORKS: usize = 64;
/// Bytes of an interface name, as the kernel has it.
const INTERFACE_NAME_MAX: usize = 15;
/// Two segments of 128 KiB.
const STORE_SIZE_MIN: u64 = 256 * KIB;
const STORE_SIZE_MAX: u64 = 1 << 40;

/// Decodes the whole file. `base` completes relative paths.
pub(super) fn config(file: &Object<'_>, base: &Path) -> Result<(Config, Vec<String>), Error> {
    let mut reader = Reader { base, warnings: Vec::new() };
    let config = reader.config(file)?;
    Ok((config, reader.warnings))
}

struct Reader<'a> {
    base: &'a Path,
    /// What was corrected.
    warnings: Vec<String>,
}

impl Reader<'_> {
    fn config(&mut self, file: &Object<'_>) -> Result<Config, Error> {
        let working_dir = self.path(file, "workingDir", Path::new(""))?;
        let below = |name: &str| working_dir.join(name);
        let (node_config_file, unit_config_file) = self.node_files(file, &working_dir)?;
        Ok(Config {
            ca_cert: self.optional_path(file, "caCert")?.unwrap_or_default(),
            cert_type: self.cert_type(file)?,
            cm_server_url: target(file, "cmServerUrl")?,
            iam_protected_server_url: target(file, "iamProtectedServerUrl")?,
            iam_public_server_url: target(file, "iamPublicServerUrl")?,
            cm_reconnect_timeout: self.duration_in(
                file,
                "cmReconnectTimeout",
                10 * SECOND,
                SECOND,
                HOUR,
            )?,
            storage_dir: self.path(file, "storageDir", &below("storages"))?,
            state_dir: self.path(file, "stateDir", &below("states"))?,
            services_dir: self.path(file, "servicesDir", &below("services"))?,
            layers_dir: self.path(file, "layersDir", &below("layers"))?,
            download_dir: self.path(file, "downloadDir", &below("download"))?,
            extract_dir: self.path(file, "extractDir", &below("extract"))?,
            node_config_file,
            unit_config_file,
            run_dir: self.path(file, "runDir", Path::new(DEFAULT_RUN_DIR))?,
            services_part_limit: file.u64_in("servicesPartLimit", 0..=100)?.unwrap_or(0),
            layers_part_limit: file.u64_in("layersPartLimit", 0..=100)?.unwrap_or(0),
            service_ttl: days(file, "serviceTtlDays")?,
            layer_ttl: days(file, "layerTtlDays")?,
            disk_reserve_percent: file.u64_in("diskReservePercent", 0..=50)?.unwrap_or(2),
            install: install(file)?,
            instances: self.instances(file)?,
            network: self.network(file)?,
            monitoring: self.monitoring(file)?,
            logging: self.logging(file)?,
            journal_alerts: self.journal_alerts(file)?,
            pkcs11_module: plain(file, "pkcs11Module")?,
            remote_node: file.opt_bool("remoteNode")?.unwrap_or(false),
            runner_features: file.strings("runnerFeatures")?.unwrap_or_default(),
            working_dir,
        })
        .and_then(|config| self.without_effect(file).map(|()| config))
    }

    /// The default of the Go releases is a directory; the key has long been a certificate type.
    fn cert_type(&mut self, file: &Object<'_>) -> Result<String, Error> {
        let text = plain(file, "certStorage")?;
        if text.contains('/') {
            self.warnings.push(format!(
                "certStorage {text:?} is a path, but a certificate type is needed: using \
                {DEFAULT_CERT_TYPE:?}"
            ));
        }
        let usable = !text.is_empty() && !text.contains('/');
        Ok(if usable { text } else { DEFAULT_CERT_TYPE.to_owned() })
    }

    /// v4 and v3 file. A file written for 7.x says only where the latter is.
    fn node_files(&self, file: &Object<'_>, dir: &Path) -> Result<(PathBuf, PathBuf), Error> {
        let unit = self.optional_path(file, "unitConfigFile")?;
        let node_dir = unit.as_deref().and_then(Path::parent).unwrap_or(dir);
        let node = self.path(file, "nodeConfigFile", &node_dir.join("aos_node.cfg"))?;
        Ok((node, unit.unwrap_or_else(|| dir.join("aos_unit.cfg"))))
    }

    fn instances(&mut self, file: &Object<'_>) -> Result<Instances, Error> {
        let verdicts = ["confirm-new", "immediate", "reference"];
        Ok(Instances {
            runtime: absolute(file, "runtime")?,
            cgroup_parent: cgroup_parent(file)?,
            start_verdict: match file.word("startVerdict", &verdicts)? {
                Some("immediate") => StartVerdict::Immediate,
                Some("reference") => StartVerdict::Reference,
                _ => StartVerdict::ConfirmNew,
            },
            keep_on_exit: file.opt_bool("keepInstancesOnExit")?.unwrap_or(false),
            stop_timeout: self.duration_in(
                file,
                "stopTimeout",
                5 * SECOND,
                Duration::ZERO,
                HOUR,
            )?,
            restart_on_secret_change: file.opt_bool("restartOnSecretChange")?.unwrap_or(true),
            max_instances: file.u64_in("maxInstances", 1..=65_535)?.unwrap_or(1024),
            allow_root_uid: file.opt_bool("allowRootUid")?.unwrap_or(false),
            seccomp_profile: self.optional_path(file, "seccompProfile")?,
            allowed_devices: allowed_devices(file)?,
            host_binds: self.host_binds(file)?,
            hosts: hosts(file)?,
        })
    }

    /// Names that are no single directory of `/` hide nothing and show nothing.
    fn host_binds(&mut self, file: &Object<'_>) -> Result<Vec<String>, Error> {
        let names = file.strings("hostBinds")?.unwrap_or_default();
        let (good, bad): (Vec<_>, Vec<_>) = names.into_iter().partition(|name| {
            let mut components = Path::new(name).components();
            matches!(components.next(), Some(Component::Normal(_))) && components.next().is_none()
        });
        for name in bad {
            self.warnings
                .push(format!("hostBinds {name:?} is no name of a directory of /: ignored"));
        }
        let default = || DEFAULT_HOST_BINDS.map(str::to_owned).to_vec();
        Ok(if good.is_empty() { default() } else { good })
    }

    fn network(&mut self, file: &Object<'_>) -> Result<Network, Error> {
        let empty = Object::parse("{}")?;
        let section = file.object("network")?.unwrap_or(empty.clone());
        let dns = section.object("dns")?.unwrap_or(empty);
        let periods = ["minute", "hour", "day", "month", "year"];
        Ok(Network {
            vlan_parent: interface(&section, "vlanParent")?,
            dns_builtin: dns.word("mode", &["builtin", "none"])? != Some("none"),
            dns_fallback: parsed(
                &dns,
                "fallback",
                "IP addresses",
                &DEFAULT_DNS_FALLBACK,
                |text| text.parse().ok(),
            )?,
            firewall: section.word("firewall", &["nft", "none"])? != Some("none"),
            open_inbound: section.opt_bool("openInbound")?.unwrap_or(false),
            bandwidth_optional: section.opt_bool("bandwidthOptional")?.unwrap_or(false),
            traffic_period: match section.word("trafficPeriod", &periods)? {
                Some("minute") => TrafficPeriod::Minute,
                Some("hour") => TrafficPeriod::Hour,
                Some("month") => TrafficPeriod::Month,
                Some("year") => TrafficPeriod::Year,
                _ => TrafficPeriod::Day,
            },
            traffic_persist_period: self.duration_in(
                &section,
                "trafficPersistPeriod",
                60 * SECOND,
                SECOND,
                DAY,
            )?,
            local_networks: local_networks(&section)?,
            drain_timeout: self.duration_in(
                &section,
                "drainTimeout",
                60 * SECOND,
                Duration::ZERO,
                DAY,
            )?,
        })
    }

    fn monitoring(&mut self, file: &Object<'_>) -> Result<Monitoring, Error> {
        let empty = Object::parse("{}")?;
        let section = file.object("monitoring")?.unwrap_or(empty);
        if section.str("source")? == Some("xentop") {
            self.warnings.push(
                "monitoring.source \"xentop\" is not supported: control groups are used".to_owned(),
            );
        }
        let poll_period = self.clamped(&section, "pollPeriod", 10 * SECOND, SECOND, HOUR)?;
        Ok(Monitoring {
            poll_period,
            average_window: self.clamped(
                &section,
                "averageWindow",
                60 * SECOND,
                poll_period,
                DAY,
            )?,
            send_period: self.clamped(&section, "sendPeriod", 60 * SECOND, SECOND, DAY)?,
            ram_figure: match section.word("ramFigure", &["anonymous", "total"])? {
                Some("total") => RamFigure::Total,
                _ => RamFigure::Anonymous,
            },
            partitions: partitions(&section)?,
        })
    }

    fn logging(&mut self, file: &Object<'_>) -> Result<Logging, Error> {
        let empty = Object::parse("{}")?;
        let section = file.object("logging")?.unwrap_or(empty);
        let number = |key: &str, default: u64, min: u64, max: u64| {
            section.u64_in(key, min..=max).map(|number| number.unwrap_or(default))
        };
        let files = section.strings("systemLogFiles")?;
        let files = files.unwrap_or_default();
        Ok(Logging {
            max_part_size_bytes: self.part_size(&section)?,
            max_part_count: number("maxPartCount", 20, 1, u32::MAX.into())?,
            backend: match section.word("backend", &["auto", "journal", "store"])? {
                Some("journal") => LogBackend::Journal,
                Some("store") => LogBackend::Store,
                _ => LogBackend::Auto,
            },
            journal_dir: self.path(&section, "journalDir", Path::new(DEFAULT_JOURNAL_DIR))?,
            spool_size_bytes: number("spoolSize", 256 * KIB, 64 * KIB, 4 * MIB)?,
            instance_store_size_bytes: number(
                "instanceStoreSize",
                2 * MIB,
                STORE_SIZE_MIN,
                STORE_SIZE_MAX,
            )?,
            store_size_bytes: number("storeSize", 32 * MIB, STORE_SIZE_MIN, STORE_SIZE_MAX)?,
            retention: self.duration_in(
                &section,
                "retention",
                7 * DAY,
                Duration::ZERO,
                TEN_YEARS,
            )?,
            sync_period: self.duration_in(
                &section,
                "syncPeriod",
                30 * SECOND,
                Duration::ZERO,
                DAY,
            )?,
            rate_lines: number("rateLines", 10_000, 1, u32::MAX.into())?,
            rate_bytes: number("rateBytes", 4 * MIB, KIB, u32::MAX.into())?,
            system_log_files: files.iter().map(|file| self.base.join(file)).collect(),
        })
    }

    fn journal_alerts(&mut self, file: &Object<'_>) -> Result<JournalAlerts, Error> {
        let empty = Object::parse("{}")?;
        let section = file.object("journalAlerts")?.unwrap_or(empty);
        Ok(JournalAlerts {
            filter: section.strings("filter")?.unwrap_or_default(),
            service_alert_priority: self.syslog_level(&section, "serviceAlertPriority", 4)?,
            system_alert_priority: self.syslog_level(&section, "systemAlertPriority", 3)?,
            kernel: section.opt_bool("kernel")?,
        })
    }

    /// Keys that are accepted so that old files stay valid; their types count all the same.
    fn without_effect(&mut self, file: &Object<'_>) -> Result<(), Error> {
        if let Some(migration) = file.object("migration")? {
            migration.str("migrationPath")?;
            migration.str("mergedMigrationPath")?;
        }
        file.duration_ns("serviceHealthCheckTimeout", NumberUnit::Auto).map(drop)
    }

    /// Outside of the range the default counts, as in the Go releases.
    fn syslog_level(&mut self, section: &Object<'_>, key: &str, default: u8) -> Result<u8, Error> {
        let Some(number) = section.opt_i64(key)? else { return Ok(default) };
        Ok(u8::try_from(number).ok().filter(|level| *level <= 7).unwrap_or_else(|| {
            let key = section.path_of(key);
            self.warnings.push(format!("{key} {number} is not 0 to 7: using {default}"));
            default
        }))
    }

    /// Duration that must lie within limits.
    fn duration_in(
        &mut self,
        section: &Object<'_>,
        key: &str,
        default: Duration,
        min: Duration,
        max: Duration,
    ) -> Result<Duration, Error> {
        let Some(ns) = self.duration_ns(section, key)? else { return Ok(default) };
        let value = u64::try_from(ns).map(Duration::from_nanos);
        value.ok().filter(|value| (min..=max).contains(value)).ok_or_else(|| {
            section.refuse(key, &format!("a duration from {} to {}", go(min), go(max)))
        })
    }

    /// What no message can hold is brought within the limit.
    fn part_size(&mut self, section: &Object<'_>) -> Result<u64, Error> {
        let key = "maxPartSize";
        let given = section.u64_in(key, 1..=u32::MAX.into())?.unwrap_or(512 * KIB);
        let used = given.min(MAX_PART_SIZE_BYTES);
        if used != given {
            let key = section.path_of(key);
            self.warnings.push(format!("{key} {given} is too much for a message: using {used}"));
        }
        Ok(used)
    }

    /// Duration that is brought within limits, unless it made the Go releases crash.
    fn clamped(
        &mut self,
        section: &Object<'_>,
        key: &str,
        default: Duration,
        min: Duration,
        max: Duration,
    ) -> Result<Duration, Error> {
        let given = match self.duration_ns(section, key)? {
            Some(ns) if ns <= 0 => {
                let allowed = format!("a duration from {} to {}", go(min), go(max));
                return Err(section.refuse(key, &allowed));
            }
            Some(ns) => Duration::from_nanos(ns.unsigned_abs()),
            None => return Ok(default.clamp(min, max)),
        };
        let used = given.clamp(min, max);
        if used != given {
            let key = section.path_of(key);
            self.warnings.push(format!(
                "{key} {} is not {} to {}: using {}",
                go(given),
                go(min),
                go(max),
                go(used)
            ));
        }
        Ok(used)
    }

    fn duration_ns(&mut self, section: &Object<'_>, key: &str) -> Result<Option<i64>, Error> {
        let value = section.duration_ns(key, NumberUnit::Auto)?;
        if let (Some(ns), Some(given)) = (value, section.get(key).filter(|v| !is_text(v))) {
            self.warnings.push(format!(
                "{} {given} is a bare number, which each release reads in its own way: using {}",
                section.path_of(key),
                duration::format_ns(ns)
            ));
        }
        Ok(value)
    }

    /// Absolute path; unset and empty mean the default.
    fn path(&self, object: &Object<'_>, key: &str, default: &Path) -> Result<PathBuf, Error> {
        let given = self.optional_path(object, key)?;
        Ok(given.unwrap_or_else(|| self.join(default)))
    }

    fn optional_path(&self, object: &Object<'_>, key: &str) -> Result<Option<PathBuf>, Error> {
        let text = plain(object, key)?;
        Ok((!text.is_empty()).then(|| self.join(Path::new(&text))))
    }

    /// Without trailing slash, which `Path::join` leaves behind an empty path.
    fn join(&self, path: &Path) -> PathBuf {
        self.base.join(path).components().collect()
    }
}

fn is_text(value: &Value) -> bool {
    matches!(value, Value::Text(_))
}

fn go(duration: Duration) -> String {
    duration::format_ns(i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX))
}

/// Text without control characters, for paths and for C libraries that end at a NUL.
fn plain(object: &Object<'_>, key: &str) -> Result<String, Error> {
    let text = object.str(key)?.unwrap_or_default();
    if text.chars().any(char::is_control) {
        return Err(object.refuse(key, "text without control characters"));
    }
    Ok(text.to_owned())
}

/// Address of a gRPC server.
fn target(file: &Object<'_>, key: &str) -> Result<String, Error> {
    let text = plain(file, key)?;
    if text.contains(char::is_whitespace) {
        return Err(file.refuse(key, "host:port"));
    }
    Ok(text)
}

fn absolute(file: &Object<'_>, key: &str) -> Result<Option<PathBuf>, Error> {
    let text = plain(file, key)?;
    if !text.is_empty() && !text.starts_with('/') {
        return Err(file.refuse(key, "an absolute path"));
    }
    Ok((!text.is_empty()).then(|| text.into()))
}

fn cgroup_parent(file: &Object<'_>) -> Result<PathBuf, Error> {
    const KEY: &str = "cgroupParent";
    let path = absolute(file, KEY)?.unwrap_or_else(|| DEFAULT_CGROUP_PARENT.into());
    let below_root = path.components().skip(1).all(|c| matches!(c, Component::Normal(_)));
    if !below_root || path.components().nth(1).is_none() {
        return Err(file.refuse(KEY, "an absolute path of a control group below the root"));
    }
    Ok(path.components().collect())
}

fn allowed_devices(file: &Object<'_>) -> Result<Vec<PathBuf>, Error> {
    const KEY: &str = "allowedDevices";
    let device = |text: &str| {
        let plain = Path::new(text).components().all(|c| c != Component::ParentDir);
        (text.starts_with("/dev/") && plain).then(|| PathBuf::from(text))
    };
    parsed(file, KEY, "paths below /dev", &[], device)
}

fn interface(section: &Object<'_>, key: &str) -> Result<String, Error> {
    let text = plain(section, key)?;
    let usable = text.len() <= INTERFACE_NAME_MAX
        && !text.contains(|c: char| c == '/' || c.is_whitespace())
        && text != "."
        && text != "..";
    if usable { Ok(text) } else { Err(section.refuse(key, "the name of a network interface")) }
}

/// Every element of an array of strings by one parser.
fn parsed<T>(
    section: &Object<'_>,
    key: &str,
    what: &str,
    default: &[&str],
    parse: impl Fn(&str) -> Option<T>,
) -> Result<Vec<T>, Error> {
    let Some(texts) = section.strings(key)? else {
        return Ok(default.iter().filter_map(|text| parse(text)).collect());
    };
    let element = |(index, text): (usize, &String)| {
        parse(text).ok_or_else(|| Error::Value {
            key: section.path_of(&format!("{key}[{index}]")),
            value: Value::Text(text.clone()).to_string(),
            allowed: what.to_owned(),
        })
    };
    texts.iter().enumerate().map(element).collect()
}

fn local_networks(section: &Object<'_>) -> Result<Vec<Cidr>, Error> {
    const KEY: &str = "localNetworks";
    let what = "networks such as \"10.0.0.0/8\"";
    let networks = parsed(section, KEY, what, &DEFAULT_LOCAL_NETWORKS, cidr)?;
    if networks.len() > MAX_LOCAL_NETWORKS {
        let value = format!("a list of {}", networks.len());
        let allowed = format!("at most {MAX_LOCAL_NETWORKS} networks");
        return Err(Error::Value { key: section.path_of(KEY), value, allowed });
    }
    Ok(networks)
}

fn cidr(text: &str) -> Option<Cidr> {
    let (address, prefix) = text.split_once('/')?;
    let address: IpAddr = address.parse().ok()?;
    let prefix: u8 = prefix.parse().ok()?;
    let clean = match address {
        IpAddr::V4(v4) => prefix <= 32 && v4.to_bits().checked_shl(prefix.into()).unwrap_or(0) == 0,
        IpAddr::V6(v6) => {
            prefix <= 128 && v6.to_bits().checked_shl(prefix.into()).unwrap_or(0) == 0
        }
    };
    clean.then_some(Cidr { address, prefix })
}

fn days(file: &Object<'_>, key: &str) -> Result<Duration, Error> {
    let days = file.opt_u64(key)?.unwrap_or(DEFAULT_TTL_DAYS);
    Ok(Duration::from_secs(days.saturating_mul(DAY.as_secs())))
}

fn install(file: &Object<'_>) -> Result<Install, Error> {
    let empty = Object::parse("{}")?;
    let section = file.object("install")?.unwrap_or(empty);
    Ok(Install {
        max_entries: section.u64_in("maxEntries", 1..=u64::from(MOST_ENTRIES))?.unwrap_or(200_000),
        max_depth: section.u64_in("maxDepth", 1..=1_000)?.unwrap_or(128),
    })
}

/// What stands in `/etc/hosts` must not be able to add lines.
fn hosts(file: &Object<'_>) -> Result<Vec<Host>, Error> {
    let mut hosts = Vec::new();
    for entry in file.objects("hosts")?.unwrap_or_default() {
        let (ip, hostname) = (plain(&entry, "ip")?, plain(&entry, "hostname")?);
        if ip.parse::<IpAddr>().is_err() {
            return Err(entry.refuse("ip", "an IP address"));
        }
        if hostname.trim().is_empty() {
            return Err(entry.refuse("hostname", "a host name"));
        }
        hosts.push(Host { ip, hostname });
    }
    Ok(hosts)
}

fn partitions(section: &Object<'_>) -> Result<Vec<Partition>, Error> {
    let mut partitions = Vec::new();
    for entry in section.objects("partitions")?.unwrap_or_default() {
        partitions.push(Partition {
            name: plain(&entry, "name")?,
            types: entry.strings("types")?.unwrap_or_default(),
            path: plain(&entry, "path")?.into(),
            total_bytes: 0,
        });
    }
    Ok(partitions)
}
