//! The node configuration (v4) and the unit configuration (v3) of the CM.
//!
//! Pure; core calls it for a message and for the file at start. Not here: validation against the
//! host, and which version wins (the message's, never the document's).

use super::{Error, NumberUnit, Object, alert_rules};
use crate::model::node::{Device, Host, Mount, NodeConfig, Resource};

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
    let mut devices: Vec<Device> = Vec::new();
    for entry in document.objects("devices")?.unwrap_or_default() {
        let device = device(&entry)?;
        // The first entry of a name wins.
        if devices.iter().all(|known| known.name != device.name) {
            devices.push(device);
        }
    }
    let entries = document.objects("resources")?.unwrap_or_default();
    Ok(NodeConfig {
        node_type: text_of(&document, "nodeType")?,
        version: version.to_owned(),
        devices,
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
        assert_eq!(config.devices, [camera]);
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
