//! The node configuration (v4) and the unit configuration (v3) of the CM.
//!
//! Pure; core calls it for a message and for the file at start. Not here: validation against the
//! host, and which version wins (the message's, never the document's).

use std::collections::BTreeSet;

use super::{Error, NumberUnit, Object, alert_rules};
use crate::model::node::{Device, Host, Mount, NodeConfig, Resource};

/// Largest document of a message, bytes.
pub const MAX_BYTES: usize = 1 << 20;
/// Devices and resources, each.
pub const MAX_ENTRIES: usize = 64;
/// Entries of one list inside them.
pub const MAX_LIST: usize = 64;
/// Bytes of the name of a device or a resource.
pub const MAX_NAME_BYTES: usize = 64;
/// Users that one device can have at a time.
pub const MAX_SHARED_COUNT: u64 = 65535;

/// Decodes the text; `unit` is what a bare number means as a duration.
pub fn parse(text: &str, unit: NumberUnit) -> Result<NodeConfig, Error> {
    let document = Object::parse_tolerant(text)?;
    // Not used here, but a wrong type rejects the document as it does in the reference.
    document.str("nodeId")?;
    document.object("resourceRatios")?;
    let version = match document.str("version")? {
        Some(version) => version,
        None => document.str("vendorVersion")?.unwrap_or_default(),
    };
    let devices = document.objects("devices")?.unwrap_or_default();
    let entries = document.objects("resources")?.unwrap_or_default();
    Ok(NodeConfig {
        node_type: text_of(&document, "nodeType")?,
        version: version.to_owned(),
        devices: devices.iter().map(device).collect::<Result<_, _>>()?,
        resources: entries.iter().map(resource).collect::<Result<_, _>>()?,
        alert_rules: alert_rules(&document, unit)?,
        labels: document.strings("labels")?.unwrap_or_default(),
        priority: document.u64_in("priority", 0..=u64::from(u32::MAX))?.unwrap_or_default(),
    })
}

fn device(entry: &Object<'_>) -> Result<Device, Error> {
    let shared = entry.opt_i64("sharedCount")?.unwrap_or_default();
    // A negative count means "never available" in the reference; nobody can want that.
    let shared_count = u64::try_from(shared)
        .map_err(|_| entry.refuse("sharedCount", "an integer that is not negative"))?;
    Ok(Device {
        name: text_of(entry, "name")?,
        shared_count,
        groups: entry.strings("groups")?.unwrap_or_default(),
        host_devices: entry.strings("hostDevices")?.unwrap_or_default(),
    })
}

fn resource(entry: &Object<'_>) -> Result<Resource, Error> {
    let mounts = entry.objects("mounts")?.unwrap_or_default();
    let hosts = entry.objects("hosts")?.unwrap_or_default();
    // The cloud's schema says `envs`, the reference `env`: both are in use.
    let mut env = entry.strings("env")?.unwrap_or_default();
    env.extend(entry.strings("envs")?.unwrap_or_default());
    Ok(Resource {
        name: text_of(entry, "name")?,
        groups: entry.strings("groups")?.unwrap_or_default(),
        mounts: mounts.iter().map(mount).collect::<Result<_, _>>()?,
        env,
        hosts: hosts.iter().map(host).collect::<Result<_, _>>()?,
    })
}

fn mount(entry: &Object<'_>) -> Result<Mount, Error> {
    Ok(Mount {
        destination: text_of(entry, "destination")?,
        kind: text_of(entry, "type")?,
        source: text_of(entry, "source")?,
        options: entry.strings("options")?.unwrap_or_default(),
    })
}

fn host(entry: &Object<'_>) -> Result<Host, Error> {
    Ok(Host { ip: text_of(entry, "ip")?, hostname: text_of(entry, "hostname")? })
}

/// Decodes what is about to be checked or set, within the limits. Stored ones are taken as they are: the
/// reference has no limits, and of several entries with one name the first wins.
pub fn parse_new(text: &str, unit: NumberUnit) -> Result<NodeConfig, Error> {
    if text.len() > MAX_BYTES {
        let allowed = format!("at most {MAX_BYTES}");
        return Err(refuse("document".to_owned(), format!("{} bytes", text.len()), allowed));
    }
    let config = parse(text, unit)?;
    check_limits(&config)?;
    Ok(config)
}

fn check_limits(config: &NodeConfig) -> Result<(), Error> {
    at_most("devices", config.devices.len(), MAX_ENTRIES)?;
    at_most("resources", config.resources.len(), MAX_ENTRIES)?;
    at_most("labels", config.labels.len(), MAX_LIST)?;
    check_names("devices", config.devices.iter().map(|device| &device.name))?;
    check_names("resources", config.resources.iter().map(|resource| &resource.name))?;
    for (index, device) in config.devices.iter().enumerate() {
        let path = |key: &str| format!("devices[{index}].{key}");
        at_most(&path("groups"), device.groups.len(), MAX_LIST)?;
        at_most(&path("hostDevices"), device.host_devices.len(), MAX_LIST)?;
        if device.shared_count > MAX_SHARED_COUNT {
            let allowed = format!("an integer from 0 to {MAX_SHARED_COUNT}");
            return Err(refuse(path("sharedCount"), device.shared_count.to_string(), allowed));
        }
    }
    for (index, resource) in config.resources.iter().enumerate() {
        let path = |key: &str| format!("resources[{index}].{key}");
        at_most(&path("groups"), resource.groups.len(), MAX_LIST)?;
        at_most(&path("mounts"), resource.mounts.len(), MAX_LIST)?;
        at_most(&path("env"), resource.env.len(), MAX_LIST)?;
        at_most(&path("hosts"), resource.hosts.len(), MAX_LIST)?;
    }
    Ok(())
}

fn at_most(key: &str, length: usize, most: usize) -> Result<(), Error> {
    if length <= most {
        return Ok(());
    }
    Err(refuse(key.to_owned(), format!("a list of {length}"), format!("at most {most} entries")))
}

fn check_names<'a>(list: &str, names: impl Iterator<Item = &'a String>) -> Result<(), Error> {
    let mut seen = BTreeSet::new();
    for (index, name) in names.enumerate() {
        let key = || format!("{list}[{index}].name");
        if name.is_empty() || name.len() > MAX_NAME_BYTES {
            let allowed = format!("a name of 1 to {MAX_NAME_BYTES} bytes");
            return Err(refuse(key(), format!("{} bytes", name.len()), allowed));
        }
        if !seen.insert(name) {
            let allowed = "a name that no other entry has".to_owned();
            return Err(refuse(key(), format!("{name:?}"), allowed));
        }
    }
    Ok(())
}

fn refuse(key: String, value: String, allowed: String) -> Error {
    Error::Value { key, value, allowed }
}

fn text_of(object: &Object<'_>, key: &str) -> Result<String, Error> {
    Ok(object.str(key)?.unwrap_or_default().to_owned())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::model::node::{PercentRule, PointsRule};

    fn read(text: &str) -> NodeConfig {
        parse(text, NumberUnit::Seconds).unwrap()
    }

    #[test]
    fn full_document_of_v4() {
        let config = read(
            r#"{"NodeType": "main", "nodeId": "n0", "version": "1.2.3", "priority": 7,
            "resourceRatios": {"cpu": 50, "ram": null}, "labels": ["a", "b"],
            "devices": [
              {"name": "camera0", "sharedCount": 2, "groups": ["video"],
               "hostDevices": ["/dev/video0", "/dev/media0:/dev/link0"]},
              {"name": "camera0", "sharedCount": 9}],
            "resources": [{"name": "dbus", "groups": ["bluetooth"],
              "mounts": [{"destination": "/run/s", "type": "bind", "source": "/run/t",
                          "options": ["rw", "bind"]}],
              "env": ["A=1"], "envs": ["B=2"], "hosts": [{"ip": "10.0.0.1", "hostName": "h"}]}],
            "alertRules": {"ram": {"minTimeout": "1m30s", "minThreshold": 10.5, "maxThreshold": 80},
              "cpu": {"maxThreshold": 0},
              "partitions": [{"name": "w", "minTimeout": 5, "minThreshold": 1, "maxThreshold": 9}],
              "download": {"minTimeout": "PT5S", "minThreshold": 1, "maxThreshold": 5000}}}"#,
        );
        assert_eq!((config.node_type.as_str(), config.version.as_str()), ("main", "1.2.3"));
        assert_eq!((config.priority, config.labels.len()), (7, 2));
        let camera = Device {
            name: "camera0".to_owned(),
            shared_count: 2,
            groups: vec!["video".to_owned()],
            host_devices: vec!["/dev/video0".to_owned(), "/dev/media0:/dev/link0".to_owned()],
        };
        assert_eq!(config.devices.first(), Some(&camera));
        let resource = &config.resources[0];
        assert_eq!(resource.env, ["A=1", "B=2"]);
        assert_eq!(resource.hosts[0].hostname, "h");
        assert_eq!(resource.mounts[0].options, ["rw", "bind"]);
        let rules = config.alert_rules;
        let ram = PercentRule { min_timeout: Duration::from_secs(90), min: 10.5, max: 80.0 };
        assert_eq!(rules.ram, Some(ram));
        assert_eq!(rules.cpu, None, "a maximum of 0 would alert for ever");
        assert_eq!(rules.partitions[0].1.min_timeout, Duration::from_secs(5));
        let download = PointsRule { min_timeout: Duration::from_secs(5), min: 1, max: 5000 };
        assert_eq!(rules.download, Some(download));
    }

    #[test]
    fn other_documents() {
        assert_eq!(read(r#"{"nodeType": ""}"#), NodeConfig::default());
        assert_eq!(read("\u{feff}{}\n"), NodeConfig::default());
        assert_eq!(read(r#"{"vendorVersion": "5"}"#).version, "5");
        assert_eq!(read(r#"{"devices": null, "labels": null}"#), NodeConfig::default());
    }

    #[test]
    fn limits() {
        let list = |count: usize, entry: &dyn Fn(usize) -> String| {
            (0..count).map(entry).collect::<Vec<_>>().join(",")
        };
        let device = |rest: &str| format!(r#"{{"devices": [{{"name": "d"{rest}}}]}}"#);
        let resource = |rest: &str| format!(r#"{{"resources": [{{"name": "r"{rest}}}]}}"#);
        let texts = |count: usize| list(count, &|_| r#""x""#.to_owned());
        let objects = |count: usize| list(count, &|_| "{}".to_owned());
        let named = |key: &str, count: usize| {
            format!(r#"{{"{key}": [{}]}}"#, list(count, &|i| format!(r#"{{"name": "n{i}"}}"#)))
        };
        let check = |text: &str, expect: Option<&str>| {
            let error = parse_new(text, NumberUnit::Seconds).err().map(|error| error.to_string());
            assert_eq!(error.as_deref(), expect, "{text}");
        };
        check("{}", None);
        let sized = |size: usize| format!("{{}}{}", " ".repeat(size - 2));
        check(&sized(MAX_BYTES), None);
        let expect = "document: 1048577 bytes is not allowed, expected at most 1048576";
        check(&sized(MAX_BYTES + 1), Some(expect));
        for key in ["devices", "resources"] {
            check(&named(key, MAX_ENTRIES), None);
            let expect = format!("{key}: a list of 65 is not allowed, expected at most 64 entries");
            check(&named(key, MAX_ENTRIES + 1), Some(&expect));
            let name = |length| format!(r#"{{"{key}": [{{"name": "{}"}}]}}"#, "n".repeat(length));
            check(&name(MAX_NAME_BYTES), None);
            for length in [0, MAX_NAME_BYTES + 1] {
                let expect = format!(
                    "{key}[0].name: {length} bytes is not allowed, expected a name of 1 to 64 bytes"
                );
                check(&name(length), Some(&expect));
            }
            let twice = format!(r#"{{"{key}": [{{"name": "a"}}, {{"name": "a"}}]}}"#);
            let expect = format!(
                "{key}[1].name: \"a\" is not allowed, expected a name that no other entry has"
            );
            check(&twice, Some(&expect));
        }
        check(&device(r#", "sharedCount": 65535"#), None);
        check(
            &device(r#", "sharedCount": 65536"#),
            Some(
                "devices[0].sharedCount: 65536 is not allowed, expected an integer from 0 to 65535",
            ),
        );
        let full = |key: &str, entries: String| format!(r#", "{key}": [{entries}]"#);
        for (key, of_device, is_text) in [
            ("groups", true, true),
            ("hostDevices", true, true),
            ("groups", false, true),
            ("mounts", false, false),
            ("env", false, true),
            ("hosts", false, false),
        ] {
            let whole = |count| {
                let entries = if is_text { texts(count) } else { objects(count) };
                let rest = full(key, entries);
                if of_device { device(&rest) } else { resource(&rest) }
            };
            check(&whole(MAX_LIST), None);
            let owner = if of_device { "devices" } else { "resources" };
            let expect = format!(
                "{owner}[0].{key}: a list of 65 is not allowed, expected at most 64 entries"
            );
            check(&whole(MAX_LIST + 1), Some(&expect));
        }
    }

    #[test]
    fn refused() {
        let check = |text: &str, expect: &str| {
            let error = parse(text, NumberUnit::Seconds).unwrap_err();
            assert_eq!(error.to_string(), expect, "{text}");
        };
        check("", "malformed JSON");
        check("[]", "document: an array is not allowed, expected an object");
        check(
            r#"{"devices": [{}, {"sharedCount": -1}]}"#,
            "devices[1].sharedCount: -1 is not allowed, expected an integer that is not negative",
        );
        check(
            r#"{"resources": [{"mounts": [{"type": 1}]}]}"#,
            "resources[0].mounts[0].type: 1 is not allowed, expected a string",
        );
        check(
            r#"{"alertRules": {"download": {"maxThreshold": 1.5}}}"#,
            "alertRules.download.maxThreshold: 1.5 is not allowed, expected an unsigned integer",
        );
        check(
            r#"{"priority": 4294967296}"#,
            "priority: 4294967296 is not allowed, expected an integer from 0 to 4294967295",
        );
    }
}
