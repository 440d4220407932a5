//! Takes over a database of the Go service manager: releases 8.x (schema 7) and 7.x (schema 6).
//!
//! Runs on core, once, at open. The old tables are read by the names of their columns, because
//! 8.0.1 may have left the layout of 7.x under its own version number; then, in the same
//! transaction, they are dropped and the rows are written to ours. An interruption leaves the old
//! file as it was. A file without any table just gets the schema.

use rusqlite::types::ValueRef;
use rusqlite::{Connection, Row, TransactionBehavior, named_params};

use super::changes::{self, Batch};
use super::rows::{self, Unreadable};
use super::{Error, json, schema};
use crate::document::{self, Object};
use crate::model::desired::{
    DesiredInstance, EnvOverride, EnvVariable, FirewallRule, InstanceFilter, InstanceNetwork,
    NetworkParams,
};
use crate::model::id::{
    Digest, InstanceId, InstanceIdent, NetworkId, ServiceId, ServiceKey, SubjectId,
};
use crate::model::service::{InstalledLayer, InstalledService};
use crate::model::status::chain;
use crate::model::store::{Change, Offline, StoredInstance};

/// Tables that only a file of the Go releases has together.
const MARKS: [&str; 2] = ["config", "services"];

/// A file with schema version 0 that has tables, but not those of the Go releases.
pub(super) fn is_foreign(db: &Connection) -> rusqlite::Result<bool> {
    let tables = tables(db)?;
    Ok(!tables.is_empty() && !MARKS.iter().all(|mark| tables.iter().any(|name| name == mark)))
}

/// Brings a file with schema version 0 that is not foreign to the newest schema.
///
/// `now_ms` is the present time (Unix time, milliseconds).
pub(super) fn run(db: &mut Connection, now_ms: i64) -> Result<(), Error> {
    let failed = |source| Error::TakeOver { source };
    let transaction =
        db.transaction_with_behavior(TransactionBehavior::Immediate).map_err(failed)?;
    let tables = tables(&transaction).map_err(failed)?;
    let mut old = read(&transaction, &tables)?;
    old.unused_from(now_ms);
    for table in &tables {
        let name = table.replace('"', "\"\"");
        transaction.execute_batch(&format!("DROP TABLE \"{name}\"")).map_err(failed)?;
    }
    schema::create(&transaction).map_err(failed)?;
    write(&mut Batch::new(&transaction), &old).map_err(failed)?;
    transaction.commit().map_err(failed)?;
    if !tables.is_empty() {
        log::info!("database of the previous service manager taken over {}", old.summary());
    }
    Ok(())
}

fn tables(db: &Connection) -> rusqlite::Result<Vec<String>> {
    let mut statement = db.prepare(
        "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite\\_%'
        ESCAPE '\\'",
    )?;
    statement.query_map([], |row| row.get(0))?.collect()
}

/// Content of an old file that we go on using.
#[derive(Default)]
struct Old {
    services: Vec<InstalledService>,
    layers: Vec<InstalledLayer>,
    instances: Vec<StoredInstance>,
    networks: Vec<OldNetwork>,
    traffic: Vec<Traffic>,
    config: Option<OldConfig>,
}

impl Old {
    /// The reference remembers when a package was installed, not since when it is unused. Its time
    /// to live begins now, so that the switch itself removes nothing.
    fn unused_from(&mut self, now_ms: i64) {
        let services = self.services.iter_mut().map(|s| &mut s.unused_since_ms);
        for since in services.chain(self.layers.iter_mut().map(|l| &mut l.unused_since_ms)) {
            *since = since.map(|installed| installed.max(now_ms));
        }
    }

    fn summary(&self) -> String {
        format!(
            "services={} layers={} instances={} networks={}",
            self.services.len(),
            self.layers.len(),
            self.instances.len(),
            self.networks.len()
        )
    }
}

struct OldNetwork {
    params: NetworkParams,
    vlan_interface: String,
}

struct Traffic {
    chain: String,
    time_ms: i64,
    value: i64,
}

struct OldConfig {
    cursor: String,
    overrides: Vec<EnvOverride>,
    online_ms: Option<i64>,
}

fn read(db: &Connection, tables: &[String]) -> Result<Old, Error> {
    Ok(Old {
        services: read_if(db, tables, "services", service)?,
        layers: read_if(db, tables, "layers", layer)?,
        instances: read_if(db, tables, "instances", instance)?,
        networks: read_if(db, tables, "network", network)?,
        traffic: read_if(db, tables, "trafficmonitor", traffic)?,
        config: read_if(db, tables, "config", config)?.pop(),
    })
}

fn read_if<T>(
    db: &Connection,
    tables: &[String],
    table: &'static str,
    decode: impl Fn(&Row<'_>) -> Result<T, Unreadable>,
) -> Result<Vec<T>, Error> {
    if !tables.iter().any(|name| name == table) {
        return Ok(Vec::new());
    }
    rows::read_table(db, table, decode)
}

fn write(batch: &mut Batch<'_>, old: &Old) -> rusqlite::Result<()> {
    for service in &old.services {
        changes::write(batch, &Change::PutService(service.clone()))?;
    }
    for layer in &old.layers {
        changes::write(batch, &Change::PutLayer(layer.clone()))?;
    }
    for instance in &old.instances {
        changes::write(batch, &Change::PutInstance(instance.clone()))?;
    }
    let params = old.networks.iter().map(|network| network.params.clone()).collect();
    changes::write(batch, &Change::SetNetworks(params))?;
    for network in &old.networks {
        batch.execute(
            "UPDATE networks SET vlan_interface = :name WHERE id = :id",
            named_params! { ":name": network.vlan_interface, ":id": network.params.id.as_str() },
        )?;
    }
    for traffic in &old.traffic {
        batch.execute(
            "INSERT INTO traffic (chain, time, value) VALUES (:chain, :time, :value)",
            named_params! {
                ":chain": traffic.chain,
                ":time": traffic.time_ms,
                ":value": traffic.value,
            },
        )?;
    }
    old.config.as_ref().map_or(Ok(()), |config| write_config(batch, config))
}

fn write_config(batch: &mut Batch<'_>, config: &OldConfig) -> rusqlite::Result<()> {
    if !config.overrides.is_empty() {
        changes::write(batch, &Change::SetEnvOverrides(config.overrides.clone()))?;
    }
    if let Some(at_ms) = config.online_ms {
        let offline = Offline { accumulated_ms: 0, at_ms, online: false };
        changes::write(batch, &Change::SetOffline(offline))?;
    }
    if !config.cursor.is_empty() {
        changes::put_meta(batch, rows::META_JOURNAL_CURSOR, &config.cursor)?;
    }
    Ok(())
}

fn service(row: &Row<'_>) -> Result<InstalledService, Unreadable> {
    let time_ms = time(row, "timestamp")?;
    Ok(InstalledService {
        key: ServiceKey { id: ServiceId::new(&text(row, "id")?), version: version(row)?.into() },
        provider_id: NetworkId::new(&text(row, "providerID")?),
        gid: row.get("GID")?,
        path: text(row, "imagePath")?.into(),
        manifest_digest: row.get("manifestDigest")?,
        tree_digest: String::new(),
        package_digest: Vec::new(),
        size_bytes: unsigned(row, "size")?,
        installed_at_ms: time_ms,
        unused_since_ms: row.get::<_, bool>("cached")?.then_some(time_ms),
        confirmed: false,
    })
}

fn layer(row: &Row<'_>) -> Result<InstalledLayer, Unreadable> {
    let time_ms = time(row, "timestamp")?;
    Ok(InstalledLayer {
        digest: Digest::parse(&text(row, "digest")?)?,
        layer_id: text(row, "layerId")?,
        version: version(row)?,
        os_version: text(row, "osVersion")?,
        path: text(row, "path")?.into(),
        package_digest: Vec::new(),
        tree_digest: String::new(),
        size_bytes: unsigned(row, "size")?,
        installed_at_ms: time_ms,
        unused_since_ms: row.get::<_, bool>("cached")?.then_some(time_ms),
    })
}

/// `version` of 8.x, or the number `aosVersion` of 7.x as decimal text.
fn version(row: &Row<'_>) -> Result<String, Unreadable> {
    match text(row, "version") {
        Err(Unreadable::Value(rusqlite::Error::InvalidColumnName(_))) => {
            Ok(row.get::<_, i64>("aosVersion")?.to_string())
        }
        other => other,
    }
}

fn instance(row: &Row<'_>) -> Result<StoredInstance, Unreadable> {
    let id = InstanceId::new(&text(row, "instanceID")?);
    Ok(StoredInstance {
        instance: DesiredInstance {
            ident: InstanceIdent {
                service_id: ServiceId::new(&text(row, "serviceID")?),
                subject_id: SubjectId::new(&text(row, "subjectID")?),
                instance: unsigned(row, "instance")?,
            },
            uid: row.get("uid")?,
            priority: unsigned(row, "priority")?,
            storage_path: text(row, "storagePath")?.into(),
            state_path: text(row, "statePath")?.into(),
            network: instance_network(&id, &text(row, "network")?),
        },
        id,
    })
}

/// An unreadable network does not cost the instance its id; the CM sends the parameters again.
fn instance_network(id: &InstanceId, text: &str) -> InstanceNetwork {
    parse_instance_network(text).unwrap_or_else(|error| {
        log::warn!("network of a stored instance ignored instance={id} err={}", chain(&error));
        InstanceNetwork::default()
    })
}

fn parse_instance_network(text: &str) -> Result<InstanceNetwork, document::Error> {
    let network = Object::parse(text)?;
    let rule = |rule: &Object<'_>| {
        Ok(FirewallRule {
            dst_ip: string(rule, "dstIp")?,
            dst_port: string(rule, "dstPort")?,
            proto: string(rule, "proto")?,
            src_ip: string(rule, "srcIp")?,
        })
    };
    let rules = network.objects("firewallRules")?.unwrap_or_default();
    Ok(InstanceNetwork {
        subnet: string(&network, "subnet")?,
        ip: string(&network, "ip")?,
        dns_servers: network.strings("dnsServers")?.unwrap_or_default(),
        rules: rules.iter().map(rule).collect::<Result<_, document::Error>>()?,
    })
}

fn network(row: &Row<'_>) -> Result<OldNetwork, Unreadable> {
    // A file that comes from a release before 7.2 has no such column.
    let vlan_interface = match text(row, "vlanIfName") {
        Err(Unreadable::Value(rusqlite::Error::InvalidColumnName(_))) => String::new(),
        other => other?,
    };
    Ok(OldNetwork {
        params: NetworkParams {
            id: NetworkId::new(&text(row, "networkID")?),
            subnet: text(row, "subnet")?,
            ip: text(row, "ip")?,
            vlan_id: unsigned(row, "vlanID")?,
        },
        vlan_interface,
    })
}

fn traffic(row: &Row<'_>) -> Result<Traffic, Unreadable> {
    Ok(Traffic {
        chain: text(row, "chain")?,
        time_ms: time(row, "time")?,
        value: row.get("value")?,
    })
}

fn config(row: &Row<'_>) -> Result<OldConfig, Unreadable> {
    let overrides = text(row, "envvars")?;
    Ok(OldConfig {
        cursor: text(row, "cursor")?,
        overrides: env_overrides(&overrides).unwrap_or_else(|error| {
            log::warn!("stored override variables ignored err={}", chain(&error));
            Vec::new()
        }),
        online_ms: time(row, "onlineTime")
            .inspect_err(|error| log::warn!("stored online time ignored err={}", chain(error)))
            .ok(),
    })
}

/// Why stored override variables are not used.
#[derive(Debug, thiserror::Error)]
enum OverrideError {
    #[error(transparent)]
    Document(#[from] document::Error),
    #[error(transparent)]
    Time(#[from] json::Error),
}

fn env_overrides(text: &str) -> Result<Vec<EnvOverride>, OverrideError> {
    if text.is_empty() {
        return Ok(Vec::new());
    }
    // The decoder reads objects, the column holds an array.
    let document = Object::parse(&format!("{{\"items\":{text}}}"))?;
    let items = document.objects("items")?.unwrap_or_default();
    items.iter().map(env_override).collect()
}

fn env_override(item: &Object<'_>) -> Result<EnvOverride, OverrideError> {
    let owned = |key| item.str(key).map(|text| text.map(str::to_owned));
    let variables = item.objects("variables")?.unwrap_or_default();
    let pairs = item.objects("envVars")?.unwrap_or_default();
    Ok(EnvOverride {
        filter: InstanceFilter {
            service_id: owned("serviceId")?,
            subject_id: owned("subjectId")?,
            instance: item.opt_u64("instance")?,
        },
        variables: variables
            .iter()
            .map(variable)
            .chain(pairs.iter().map(pair))
            .collect::<Result<_, _>>()?,
    })
}

/// Variable of 8.x.
fn variable(item: &Object<'_>) -> Result<EnvVariable, OverrideError> {
    Ok(EnvVariable {
        name: string(item, "name")?,
        value: string(item, "value")?,
        ttl_ms: ttl(item)?,
    })
}

/// Variable of 7.x: `NAME=value` in one string.
fn pair(item: &Object<'_>) -> Result<EnvVariable, OverrideError> {
    let text = string(item, "variable")?;
    let (name, value) = text.split_once('=').unwrap_or((&text, ""));
    Ok(EnvVariable { name: name.to_owned(), value: value.to_owned(), ttl_ms: ttl(item)? })
}

fn ttl(item: &Object<'_>) -> Result<Option<i64>, OverrideError> {
    Ok(item.str("ttl")?.map(json::read_time).transpose()?)
}

fn string(object: &Object<'_>, key: &str) -> Result<String, document::Error> {
    Ok(object.str(key)?.unwrap_or_default().to_owned())
}

/// Text, bytes that are text, or nothing.
fn text(row: &Row<'_>, column: &'static str) -> Result<String, Unreadable> {
    match row.get_ref(column)? {
        ValueRef::Null => Ok(String::new()),
        ValueRef::Text(bytes) | ValueRef::Blob(bytes) => String::from_utf8(bytes.to_vec())
            .map_err(|error| Unreadable::Range { column, value: error.to_string() }),
        ValueRef::Integer(number) => Ok(number.to_string()),
        ValueRef::Real(number) => Ok(number.to_string()),
    }
}

fn time(row: &Row<'_>, column: &'static str) -> Result<i64, Unreadable> {
    Ok(json::read_time(&text(row, column)?)?)
}

fn unsigned(row: &Row<'_>, column: &'static str) -> Result<u64, Unreadable> {
    let number: i64 = row.get(column)?;
    u64::try_from(number).map_err(|_| Unreadable::Range { column, value: number.to_string() })
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write;
    use std::path::{Path, PathBuf};

    use expect_test::{Expect, expect};

    use super::super::Store;
    use super::*;
    use crate::model::store::Snapshot;

    /// Databases that the real releases left behind.
    const GO_8_0_1: &[u8] = include_bytes!("../../tests/data/store/go-8.0.1.db");
    const GO_7_2_3: &[u8] = include_bytes!("../../tests/data/store/go-7.2.3.db");

    /// A copy of a database, changed.
    fn copy(of: &[u8], change: &str) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("servicemanager.db");
        fs::File::create(&path).unwrap().write_all(of).unwrap();
        Connection::open(&path).unwrap().execute_batch(change).unwrap();
        (dir, path)
    }

    /// The content in one line for each row.
    fn describe(path: &Path) -> String {
        let (store, snapshot) = Store::open(path).unwrap();
        let Snapshot { node_info, env_overrides, offline, services, layers, wanted, .. } =
            &snapshot;
        assert!(node_info.is_none() && wanted.is_empty());
        let now_ms = crate::sys::time::wall_ms();
        let minute_ms = 60_000;
        let since = |since: Option<i64>| match since {
            Some(at) if (now_ms - minute_ms..=now_ms).contains(&at) => "from now on",
            Some(_) => "wrong",
            None => "never",
        };
        let mut lines = vec![format!("{offline:?}")];
        for s in services {
            lines.push(format!(
                "service {} of {} gid {} at {} digest {:02x?}.. of {} size {} installed {} unused {}",
                s.key,
                s.provider_id,
                s.gid,
                s.path.display(),
                &s.manifest_digest[..2],
                s.manifest_digest.len(),
                s.size_bytes,
                s.installed_at_ms,
                since(s.unused_since_ms),
            ));
        }
        for l in layers {
            lines.push(format!(
                "layer {} version {} os {} at {} size {} installed {} unused {}",
                l.layer_id,
                l.version,
                l.os_version,
                l.path.display(),
                l.size_bytes,
                l.installed_at_ms,
                since(l.unused_since_ms),
            ));
        }
        for StoredInstance { id, instance: i } in &snapshot.instances {
            lines.push(format!(
                "instance {id} {} uid {} priority {} {} {} {} {} dns {:?}",
                i.ident,
                i.uid,
                i.priority,
                i.storage_path,
                i.state_path,
                i.network.subnet,
                i.network.ip,
                i.network.dns_servers,
            ));
            for r in &i.network.rules {
                lines.push(format!("  {} {} {} {}", r.src_ip, r.proto, r.dst_ip, r.dst_port));
            }
        }
        for item in env_overrides {
            lines.push(format!("{:?}", item.filter));
            for v in &item.variables {
                lines.push(format!("  {}={} {:?}", v.name, v.value, v.ttl_ms));
            }
        }
        lines.extend(snapshot.networks.iter().map(|network| format!("{network:?}")));
        let texts = "SELECT 'meta ' || key || ' ' || substr(value, 1, 12) FROM meta
            WHERE key = 'journal_cursor'
            UNION ALL SELECT chain || ' ' || time || ' ' || value FROM traffic
            UNION ALL SELECT 'vlan ' || vlan_interface FROM networks WHERE vlan_interface <> ''";
        let mut statement = store.db.prepare(texts).unwrap();
        let rows = statement.query_map([], |row| row.get::<_, String>(0)).unwrap();
        lines.extend(rows.map(Result::unwrap));
        lines.join("\n")
    }

    fn check(file: &[u8], expect: Expect) {
        let (_dir, path) = copy(file, "");
        let first = describe(&path);
        expect.assert_eq(&first);
        assert_eq!(describe(&path), first, "the second start reads the same");
        let db = Connection::open(&path).unwrap();
        let names = tables(&db).unwrap();
        assert!(!names.iter().any(|name| name == "config"), "{names:?}");
    }

    #[test]
    fn release_8() {
        check(
            GO_8_0_1,
            expect![[r#"
            Some(Offline { accumulated_ms: 0, at_ms: 1795348472832, online: false })
            service svc-a 1.0.0 of prov0 gid 5001 at /var/aos/workdirs/sm/services/3094419483 digest [53, 50].. of 32 size 18783 installed 1795348472863 unused from now on
            service svc-a 2.0.0 of prov0 gid 5001 at /var/aos/workdirs/sm/services/1302627177 digest [57, 8b].. of 32 size 18717 installed 1795348505784 unused never
            service svc-b 1.0.0 of prov1 gid 5002 at /var/aos/workdirs/sm/services/1175426968 digest [38, 26].. of 32 size 14612 installed 1795348480751 unused never
            layer layer0 version 1.0.0 os 1.0 at /var/aos/workdirs/sm/layers/sha256/7a97952c452eadd464e25d6d3bb6d0337f762c0b358f42afad9d6619838573f6 size 160 installed 1795348472875 unused never
            instance 2b7948a2-4e4e-4a96-999c-5d55af27027a svc-b:subj1:0 uid 10100 priority 100 svc-b_subj1_0/storage svc-b_subj1_0/state.dat 172.20.0.0/16 172.20.0.2 dns []
              172.20.0.2 tcp 172.19.0.2 8080
            instance 6762200d-5484-429c-bc0e-2ff9edb89a88 svc-a:subj0:1 uid 10001 priority 50 svc-a_subj0_1/storage svc-a_subj0_1/state.dat 172.19.0.0/16 172.19.0.3 dns ["10.9.0.53"]
              172.19.0.2 tcp 172.20.0.2 8080
            instance 723ab5c0-a37a-4dec-b344-c111f50e968f svc-a:subj0:0 uid 10000 priority 50 svc-a_subj0_0/storage svc-a_subj0_0/state.dat 172.19.0.0/16 172.19.0.2 dns ["10.9.0.53"]
              172.19.0.2 tcp 172.20.0.2 8080
            InstanceFilter { service_id: Some("svc-a"), subject_id: None, instance: None }
              OVR=yes Some(2110708489290)
              FOREVER=x None
            InstanceFilter { service_id: Some("svc-b"), subject_id: Some("subj1"), instance: Some(0) }
              ONLY0=1 None
            meta journal_cursor s=0000000000
            AOS_50b4712bacc8a1f2_IN 1795348592813 20627
            AOS_50b4712bacc8a1f2_OUT 1795348592813 558
            AOS_536397d04f2e4ac5_IN 1795348592813 20627
            AOS_536397d04f2e4ac5_OUT 1795348592813 506
            AOS_58e367aaced73e09_IN 1795348592813 20575
            AOS_58e367aaced73e09_OUT 1795348592813 558
            AOS_SYSTEM_IN 1795348592813 0
            AOS_SYSTEM_OUT 1795348592813 0"#]],
        );
    }

    #[test]
    fn release_7() {
        check(
            GO_7_2_3,
            expect![[r#"
            Some(Offline { accumulated_ms: 0, at_ms: 1795348804800, online: false })
            service svc-a 1 of prov0 gid 5001 at /var/aos/workdirs/sm/services/4181961903 digest [53, 50].. of 32 size 18783 installed 1795348804812 unused from now on
            service svc-a 2 of prov0 gid 5001 at /var/aos/workdirs/sm/services/1241803832 digest [57, 8b].. of 32 size 18717 installed 1795348827023 unused never
            service svc-b 1 of prov1 gid 5002 at /var/aos/workdirs/sm/services/3863084827 digest [38, 26].. of 32 size 14612 installed 1795348808616 unused never
            layer layer0 version 1 os 1.0 at /var/aos/workdirs/sm/layers/sha256/7a97952c452eadd464e25d6d3bb6d0337f762c0b358f42afad9d6619838573f6 size 160 installed 1795348804818 unused never
            instance 00c64433-04ce-459a-9ad4-5deedd71c120 svc-b:subj1:0 uid 10100 priority 100 svc-b_subj1_0/storage svc-b_subj1_0/state.dat 172.20.0.0/16 172.20.0.2 dns []
              172.20.0.2 tcp 172.19.0.2 8080
            instance d774876e-5e7c-4323-b3ee-613c87e367df svc-a:subj0:1 uid 10001 priority 50 svc-a_subj0_1/storage svc-a_subj0_1/state.dat 172.19.0.0/16 172.19.0.3 dns ["10.9.0.53"]
              172.19.0.2 tcp 172.20.0.2 8080
            instance d859a85b-48ae-4704-a086-74b2f7727dab svc-a:subj0:0 uid 10000 priority 50 svc-a_subj0_0/storage svc-a_subj0_0/state.dat 172.19.0.0/16 172.19.0.2 dns ["10.9.0.53"]
              172.19.0.2 tcp 172.20.0.2 8080
            InstanceFilter { service_id: Some("svc-a"), subject_id: None, instance: None }
              OVR=yes Some(2110708815066)
              FOREVER=x None
            InstanceFilter { service_id: Some("svc-b"), subject_id: Some("subj1"), instance: Some(0) }
              ONLY0=1 None
            meta journal_cursor s=0000000000
            AOS_6f6c7129c274ee9c_IN 1795348924794 20575
            AOS_6f6c7129c274ee9c_OUT 1795348924794 558
            AOS_9b0ec3ec7bf924e6_IN 1795348924794 20627
            AOS_9b0ec3ec7bf924e6_OUT 1795348924794 558
            AOS_SYSTEM_IN 1795348924794 0
            AOS_SYSTEM_OUT 1795348924794 0
            AOS_af701fdadf928ea9_IN 1795348924794 20575
            AOS_af701fdadf928ea9_OUT 1795348924794 558"#]],
        );
    }

    /// What 8.0.1 leaves after migrating a file of 7.2.2: its version number, the old layout.
    #[test]
    fn release_8_with_the_layout_of_release_7() {
        let (_dir, path) = copy(GO_7_2_3, "UPDATE schema_migrations SET version = 7");
        let (_, snapshot) = Store::open(&path).unwrap();
        assert_eq!(snapshot.services.len(), 3);
        assert_eq!(snapshot.instances.len(), 3);
    }

    #[test]
    fn bad_values_cost_only_what_they_are_in() {
        let count = |sql: &str| {
            let (_dir, path) = copy(GO_8_0_1, sql);
            let (_, s) = Store::open(&path).unwrap();
            let with_network =
                s.instances.iter().filter(|i| !i.instance.network.ip.is_empty()).count();
            (
                s.services.len(),
                s.layers.len(),
                s.instances.len(),
                with_network,
                s.env_overrides.len(),
            )
        };
        let check = |sql: &str, expect| assert_eq!(count(sql), expect, "{sql}");
        check("", (3, 1, 3, 3, 2));
        check("UPDATE services SET timestamp = 'noon' WHERE version = '2.0.0';", (2, 1, 3, 3, 2));
        check("UPDATE services SET GID = 'x' WHERE version = '2.0.0';", (2, 1, 3, 3, 2));
        check("UPDATE services SET GID = -1 WHERE version = '2.0.0';", (2, 1, 3, 3, 2));
        check("UPDATE layers SET digest = 'x\" OR \"1\"=\"1';", (3, 0, 3, 3, 2));
        check("UPDATE instances SET network = '{' WHERE uid = 10000;", (3, 1, 3, 2, 2));
        check("UPDATE instances SET network = NULL WHERE uid = 10000;", (3, 1, 3, 2, 2));
        check("UPDATE instances SET priority = -1 WHERE uid = 10000;", (3, 1, 2, 2, 2));
        // Two rows of one ident: the reference has no index against it.
        check("UPDATE instances SET instance = 0 WHERE uid = 10001;", (3, 1, 2, 2, 2));
        check("UPDATE config SET envvars = '[{';", (3, 1, 3, 3, 0));
        check("UPDATE config SET envvars = '';", (3, 1, 3, 3, 0));
        check("UPDATE config SET onlineTime = 'noon', cursor = NULL;", (3, 1, 3, 3, 2));
        check("DELETE FROM config;", (3, 1, 3, 3, 0));
        check("DROP TABLE instances; DROP TABLE trafficmonitor;", (3, 1, 0, 0, 2));
        check("ALTER TABLE services DROP COLUMN size;", (0, 1, 3, 3, 2));
        check("CREATE TABLE \"od\"\"d\" (a); INSERT INTO \"od\"\"d\" VALUES (1);", (3, 1, 3, 3, 2));
        check(
            "INSERT INTO network VALUES ('prov0', '172.17.0.1', '172.17.0.0/16', 5, 'vlan');",
            (3, 1, 3, 3, 2),
        );
    }

    #[test]
    fn networks_come_with_their_vlan() {
        let rows = "INSERT INTO network VALUES
            ('prov0', '172.17.0.1', '172.17.0.0/16', 5, 'vlan-x'), ('prov1', '', '', 0, NULL);";
        let (_dir, path) = copy(GO_8_0_1, rows);
        let described = describe(&path);
        assert!(described.contains("vlan_id: 5") && described.ends_with("vlan vlan-x"));
    }

    #[test]
    fn an_interrupted_take_over_leaves_the_old_file() {
        let (_dir, path) = copy(GO_8_0_1, "");
        let mut db = Connection::open(&path).unwrap();
        db.execute_batch("CREATE VIEW meta AS SELECT 1").unwrap();
        run(&mut db, 0).unwrap_err();
        let services: i64 =
            db.query_row("SELECT count(*) FROM services", [], |row| row.get(0)).unwrap();
        assert_eq!(services, 3);
        assert!(tables(&db).unwrap().contains(&"trafficmonitor".to_owned()));
        drop(db);
        assert!(fs::metadata(&path).unwrap().len() > 0);
    }
}
