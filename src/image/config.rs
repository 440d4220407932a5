//! The two configurations of a service image: OCI image configuration and Aos service
//! configuration.
//!
//! Pure; fetch and exec threads. Unused members are checked for their type all the same, as in the
//! reference, so that a package that is refused by one is refused by the other. Not here: whether
//! the values make sense for a start.

use crate::document::{Error as Malformed, NumberUnit, Object, Value, alert_rules};
use crate::image::error::Error;
use crate::image::manifest::{invalid, parse};
use crate::model::service::{ImageConfig, Quotas, RunParameters, ServiceConfig, ServiceDevice};

/// Largest configuration, in bytes.
pub(super) const MAX_CONFIG_BYTES: u64 = 1 << 20;

/// Parses the image configuration; `{}` is fine here and refused at a start.
pub(super) fn image_config(bytes: &[u8]) -> Result<ImageConfig, Error> {
    const WHAT: &str = "image config";
    let document = parse(WHAT, bytes)?;
    read_image(&document).map_err(invalid(WHAT))
}

fn read_image(document: &Object<'_>) -> Result<ImageConfig, Malformed> {
    let mut image = ImageConfig { os: text(document, "os")?, ..ImageConfig::default() };
    let Some(config) = document.object("config")? else { return Ok(image) };
    image.entrypoint = config.strings("Entrypoint")?.unwrap_or_default();
    image.cmd = config.strings("Cmd")?.unwrap_or_default();
    image.working_dir = text(&config, "WorkingDir")?;
    image.env = config.strings("Env")?.unwrap_or_default();
    if let Some(ports) = config.object("ExposedPorts")? {
        image.exposed_ports = ports.names().map(str::to_owned).collect();
    }
    image.stop_signal = text(&config, "StopSignal")?;
    Ok(image)
}

/// Parses the service configuration; `unit` is what a bare number means as a duration.
pub(super) fn service_config(bytes: &[u8], unit: NumberUnit) -> Result<ServiceConfig, Error> {
    const WHAT: &str = "Aos service config";
    let document = parse(WHAT, bytes)?;
    read_service(&document, unit).map_err(invalid(WHAT))
}

fn read_service(document: &Object<'_>, unit: NumberUnit) -> Result<ServiceConfig, Malformed> {
    check_unused(document)?;
    // 0 and absent both mean that there is no limit.
    let offline_ttl = document.duration("offlineTtl", unit)?.filter(|ttl| !ttl.is_zero());
    Ok(ServiceConfig {
        hostname: text(document, "hostname")?,
        sysctl: document.string_map("sysctl")?.unwrap_or_default(),
        run_parameters: run_parameters(document, unit)?,
        offline_ttl,
        quotas: quotas(document)?,
        devices: devices(document)?,
        resources: document.strings("resources")?.unwrap_or_default(),
        permissions: permissions(document)?,
        alert_rules: alert_rules(document, unit)?,
    })
}

fn run_parameters(document: &Object<'_>, unit: NumberUnit) -> Result<RunParameters, Malformed> {
    let Some(object) = document.object("runParameters")? else {
        return Ok(RunParameters::default());
    };
    let interval = |key| Ok(object.duration_ns(key, unit)?.filter(|interval| *interval != 0));
    Ok(RunParameters {
        start_interval_ns: interval("startInterval")?,
        start_burst: object.opt_u64("startBurst")?.filter(|burst| *burst != 0),
        restart_interval_ns: interval("restartInterval")?,
    })
}

fn quotas(document: &Object<'_>) -> Result<Quotas, Malformed> {
    let Some(object) = document.object("quotas")? else { return Ok(Quotas::default()) };
    Ok(Quotas {
        cpu_dmips: object.opt_u64("cpuDmipsLimit")?,
        cpu_percent: object.opt_u64("cpuLimit")?,
        ram_bytes: object.opt_u64("ramLimit")?,
        pids: object.opt_u64("pidsLimit")?,
        open_files: object.opt_u64("noFileLimit")?,
        tmp_bytes: object.opt_u64("tmpLimit")?,
        state_bytes: object.opt_u64("stateLimit")?,
        storage_bytes: object.opt_u64("storageLimit")?,
        upload_kbit: object.opt_u64("uploadSpeed")?,
        download_kbit: object.opt_u64("downloadSpeed")?,
        upload_bytes: object.opt_u64("uploadLimit")?,
        download_bytes: object.opt_u64("downloadLimit")?,
    })
}

fn devices(document: &Object<'_>) -> Result<Vec<ServiceDevice>, Malformed> {
    let entries = document.objects("devices")?.unwrap_or_default();
    let device = |entry: &Object<'_>| {
        Ok(ServiceDevice { name: text(entry, "name")?, permissions: text(entry, "permissions")? })
    };
    entries.iter().map(device).collect()
}

/// Functional server to path to mode string. An empty object registers without permissions.
fn permissions(document: &Object<'_>) -> Result<Option<crate::model::job::Permissions>, Malformed> {
    let Some(object) = document.object("permissions")? else { return Ok(None) };
    let mut permissions = crate::model::job::Permissions::new();
    for server in object.names() {
        permissions.insert(server.to_owned(), object.string_map(server)?.unwrap_or_default());
    }
    Ok(Some(permissions))
}

/// Types of members that only the CM uses.
fn check_unused(document: &Object<'_>) -> Result<(), Malformed> {
    let created = document.str("created")?;
    if created.is_some_and(|created| !is_rfc3339(created)) {
        return Err(document.refuse("created", "a time such as 2024-01-31T12:00:00Z"));
    }
    document.str("author")?;
    document.opt_bool("skipResourceLimits")?;
    document.str("balancingPolicy")?;
    document.strings("runners")?;
    document.str("runner")?;
    if let Some(requested) = document.object("requestedResources")? {
        for key in ["cpu", "ram", "storage", "state"] {
            requested.opt_u64(key)?;
        }
    }
    check_connections(document)
}

/// The names of connections are an object's in the reference, whose values say nothing; the schema
/// of the cloud has an array of them, too.
fn check_connections(document: &Object<'_>) -> Result<(), Malformed> {
    const KEY: &str = "allowedConnections";
    if let Some(Value::Array(_)) = document.get(KEY) {
        document.strings(KEY)?;
    } else if let Some(connections) = document.object(KEY)? {
        for name in connections.names() {
            connections.object(name)?;
        }
    }
    Ok(())
}

/// Whether Go's decoder takes the text as a time.
fn is_rfc3339(text: &str) -> bool {
    let bytes = text.as_bytes();
    let shape = |pattern: &str, bytes: &[u8]| {
        bytes.len() == pattern.len()
            && pattern.bytes().zip(bytes).all(|(pattern, byte)| match pattern {
                b'0' => byte.is_ascii_digit(),
                other => other == *byte,
            })
    };
    let Some((head, mut rest)) = bytes.split_at_checked(19) else { return false };
    if !shape("0000-00-00T00:00:00", head) {
        return false;
    }
    if let Some(fraction) = rest.strip_prefix(b".") {
        let digits = fraction.iter().take_while(|byte| byte.is_ascii_digit()).count();
        if digits == 0 {
            return false;
        }
        rest = &fraction[digits..];
    }
    let zone = rest == b"Z" || shape("+00:00", rest) || shape("-00:00", rest);
    let number = |at: usize| u32::from(bytes[at] - b'0') * 10 + u32::from(bytes[at + 1] - b'0');
    zone && (1..=12).contains(&number(5))
        && (1..=31).contains(&number(8))
        && number(11) < 24
        && number(14) < 60
        && number(17) < 60
}

fn text(object: &Object<'_>, key: &str) -> Result<String, Malformed> {
    Ok(object.str(key)?.unwrap_or_default().to_owned())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::model::status::chain;

    #[test]
    fn image_configs() {
        let image = image_config(
            br#"{"os": "linux", "architecture": "amd64", "config": {"Entrypoint": ["/bin/a"],
                "cmd": null, "WorkingDir": "/w", "Env": ["A=1"], "StopSignal": "SIGTERM",
                "ExposedPorts": {"80/tcp": {}, "90-92/udp": {}}}}"#,
        );
        let expect = ImageConfig {
            os: "linux".to_owned(),
            entrypoint: vec!["/bin/a".to_owned()],
            cmd: Vec::new(),
            working_dir: "/w".to_owned(),
            env: vec!["A=1".to_owned()],
            exposed_ports: vec!["80/tcp".to_owned(), "90-92/udp".to_owned()],
            stop_signal: "SIGTERM".to_owned(),
        };
        assert_eq!(image.unwrap(), expect);
        assert_eq!(image_config(b"{}").unwrap(), ImageConfig::default());
        assert!(image_config(br#"{"config": {"Cmd": "sh"}}"#).is_err());
    }

    fn service(text: &str) -> Result<ServiceConfig, String> {
        service_config(text.as_bytes(), NumberUnit::Seconds).map_err(|error| chain(&error))
    }

    #[test]
    fn full_service_config() {
        let config = service(
            r#"{"created": "2024-01-31T12:00:00.5+02:00", "author": "a", "skipResourceLimits": true,
            "hostName": "h", "balancingPolicy": "disabled", "runners": ["crun"],
            "runParameters": {"startInterval": "PT7S", "startBurst": 0, "restartInterval": -1},
            "sysctl": {"net.ipv4.ip_forward": "1"}, "offlineTtl": "1h",
            "quotas": {"cpuDmipsLimit": 1000, "ramLimit": 5, "uploadSpeed": 3, "noFileLimit": null},
            "requestedResources": {"cpu": 1}, "allowedConnections": {"s/80/tcp": {}},
            "devices": [{"name": "camera", "permissions": "rw"}], "resources": ["dbus"],
            "permissions": {"vis": {"*": "rw"}},
            "alertRules": {"ram": {"minTimeout": 5, "minThreshold": 10, "maxThreshold": 20}}}"#,
        )
        .unwrap();
        assert_eq!(config.hostname, "h");
        let run = config.run_parameters;
        assert_eq!(run.start_interval_ns, Some(7_000_000_000));
        assert_eq!((run.start_burst, run.restart_interval_ns), (None, Some(-1_000_000_000)));
        assert_eq!(config.offline_ttl, Some(Duration::from_secs(3600)));
        assert_eq!(config.quotas.cpu_dmips, Some(1000));
        assert_eq!(config.quotas.open_files, None);
        assert_eq!(config.devices[0].permissions, "rw");
        assert_eq!(config.permissions.unwrap()["vis"]["*"], "rw");
        assert_eq!(config.alert_rules.ram.unwrap().min_timeout, Duration::from_secs(5));
        assert_eq!(config.sysctl["net.ipv4.ip_forward"], "1");
    }

    #[test]
    fn other_service_configs() {
        assert_eq!(service("{}").unwrap(), ServiceConfig::default());
        assert_eq!(service(r#"{"offlineTtl": null}"#).unwrap().offline_ttl, None);
        assert_eq!(service(r#"{"offlineTtl": "0s"}"#).unwrap().offline_ttl, None);
        for connections in [r#"["s/80/tcp"]"#, "[]", r#"{"s/1-2/udp": {}, "t": null}"#, "null"] {
            let text = format!(r#"{{"allowedConnections": {connections}}}"#);
            assert_eq!(service(&text).unwrap(), ServiceConfig::default(), "{text}");
        }
        let check = |text: &str, expect: &str| {
            let error = service(text).unwrap_err();
            assert!(error.starts_with("invalid Aos service config: "), "{error}");
            assert!(error.contains(expect), "{error}");
        };
        check("", "malformed JSON");
        check(r#"{"created": "not a time"}"#, r#"created: "not a time" is not allowed"#);
        check(r#"{"quotas": {"ramLimit": "5"}}"#, "quotas.ramLimit");
        check(r#"{"runParameters": {"startInterval": "x"}}"#, "runParameters.startInterval");
        check(r#"{"permissions": {"vis": {"a": 1}}}"#, "permissions.vis.a: 1");
        check(r#"{"skipResourceLimits": 1}"#, "skipResourceLimits");
        check(r#"{"allowedConnections": 1}"#, "allowedConnections: 1");
        check(r#"{"AllowedConnections": "s/80/tcp"}"#, "allowedConnections: \"s/80/tcp\"");
        check(r#"{"allowedConnections": [80]}"#, "allowedConnections[0]: 80");
        check(r#"{"allowedConnections": {"s/80/tcp": 1}}"#, "allowedConnections.s/80/tcp: 1");
    }

    #[test]
    fn times() {
        for text in ["2024-01-31T12:00:00Z", "0001-01-01T00:00:00.123456789-08:00"] {
            assert!(is_rfc3339(text), "{text}");
        }
        for text in [
            "",
            "2024-01-31",
            "2024-01-31T12:00:00",
            "2024-01-31 12:00:00Z",
            "2024-13-31T12:00:00Z",
            "2024-01-31T24:00:00Z",
            "2024-01-31T12:00:00.Z",
            "2024-01-31T12:00:00z",
        ] {
            assert!(!is_rfc3339(text), "{text}");
        }
    }
}
