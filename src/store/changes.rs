//! Changes of the database: model types to rows, one statement or a few for each `Change`.
//!
//! Runs on core. In: changes of one transaction, which the caller has begun and commits; out:
//! nothing but rows. Statements are compiled once per batch and dropped with it, so that nothing
//! is kept while the daemon is idle.

use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rusqlite::types::{ToSqlOutput, ValueRef};
use rusqlite::{Connection, Statement, ToSql, named_params};

use super::{json, rows};
use crate::model::desired::{DesiredInstance, NetworkParams};
use crate::model::id::PackageKey;
use crate::model::job::Package;
use crate::model::service::{InstalledLayer, InstalledService};
use crate::model::store::{Change, StoredInstance, Wanted};
use crate::model::traffic::TrafficRow;

/// The statements of one transaction.
pub(super) struct Batch<'db> {
    db: &'db Connection,
    compiled: Vec<(&'static str, Statement<'db>)>,
}

impl<'db> Batch<'db> {
    pub(super) fn new(db: &'db Connection) -> Self {
        Self { db, compiled: Vec::new() }
    }

    pub(super) fn execute(
        &mut self,
        sql: &'static str,
        params: &[(&str, &dyn ToSql)],
    ) -> rusqlite::Result<()> {
        self.statement(sql)?.execute(params).map(drop)
    }

    fn statement(&mut self, sql: &'static str) -> rusqlite::Result<&mut Statement<'db>> {
        let at = match self.compiled.iter().position(|(known, _)| *known == sql) {
            Some(at) => at,
            None => {
                self.compiled.push((sql, self.db.prepare(sql)?));
                self.compiled.len() - 1
            }
        };
        Ok(&mut self.compiled[at].1)
    }
}

/// Writes one change.
pub(super) fn write(batch: &mut Batch<'_>, change: &Change) -> rusqlite::Result<()> {
    match change {
        Change::PutService(service) => put_service(batch, service),
        Change::RemoveService(key) => batch.execute(
            "DELETE FROM services WHERE id = :id AND version = :version",
            named_params! { ":id": key.id.as_str(), ":version": key.version },
        ),
        Change::PutLayer(layer) => put_layer(batch, layer),
        Change::RemoveLayer(digest) => batch.execute(
            "DELETE FROM layers WHERE digest = :digest",
            named_params! { ":digest": digest.as_str() },
        ),
        Change::PutWanted(wanted) => put_wanted(batch, wanted),
        Change::RemoveWanted(key) => remove_wanted(batch, key),
        Change::PutInstance(stored) => put_instance(batch, stored),
        Change::RemoveInstance(id) => batch
            .execute("DELETE FROM instances WHERE id = :id", named_params! { ":id": id.as_str() }),
        Change::SetLeaving(list) => put_meta(batch, rows::META_LEAVING, &json::write_leaving(list)),
        Change::SetRefused(list) => put_meta(batch, rows::META_REFUSED, &json::write_refused(list)),
        Change::SetNetworks(networks) => set_networks(batch, networks),
        Change::SetNodeInfo(node) => {
            put_meta(batch, rows::META_NODE_INFO, &json::write_node_info(node))
        }
        Change::SetEnvOverrides(overrides) => {
            put_meta(batch, rows::META_ENV_OVERRIDES, &json::write_overrides(overrides))
        }
        Change::SetOffline(offline) => {
            put_meta(batch, rows::META_OFFLINE, &json::write_offline(offline))
        }
        Change::SetAlertPosition(text) => put_meta(batch, rows::META_JOURNAL_CURSOR, text),
        Change::PutTraffic(rows) => rows.iter().try_for_each(|row| put_traffic(batch, row)),
        Change::RemoveTraffic(chains) => chains.iter().try_for_each(|chain| {
            batch.execute(
                "DELETE FROM traffic WHERE chain = :chain",
                named_params! { ":chain": chain },
            )
        }),
    }
}

/// Name of a change for messages.
pub(super) fn name_of(change: &Change) -> &'static str {
    match change {
        Change::PutService(_) => "put service",
        Change::RemoveService(_) => "remove service",
        Change::PutLayer(_) => "put layer",
        Change::RemoveLayer(_) => "remove layer",
        Change::PutWanted(_) => "put wanted package",
        Change::RemoveWanted(_) => "remove wanted package",
        Change::PutInstance(_) => "put instance",
        Change::RemoveInstance(_) => "remove instance",
        Change::SetLeaving(_) => "set leaving instances",
        Change::SetRefused(_) => "set refused instances",
        Change::SetNetworks(_) => "set networks",
        Change::SetNodeInfo(_) => "set node info",
        Change::SetEnvOverrides(_) => "set override variables",
        Change::SetOffline(_) => "set offline time",
        Change::SetAlertPosition(_) => "set position of alerts",
        Change::PutTraffic(_) => "put traffic counters",
        Change::RemoveTraffic(_) => "remove traffic counters",
    }
}

pub(super) fn put_meta(batch: &mut Batch<'_>, key: &str, value: &str) -> rusqlite::Result<()> {
    batch.execute(
        "INSERT OR REPLACE INTO meta (key, value) VALUES (:key, :value)",
        named_params! { ":key": key, ":value": value },
    )
}

fn put_service(batch: &mut Batch<'_>, service: &InstalledService) -> rusqlite::Result<()> {
    batch.execute(
        "INSERT OR REPLACE INTO services (id, version, provider_id, gid, path, manifest_digest,
            tree_digest, package_digest, size, installed_at, unused_since, confirmed)
        VALUES (:id, :version, :provider_id, :gid, :path, :manifest_digest,
            :tree_digest, :package_digest, :size, :installed_at, :unused_since, :confirmed)",
        named_params! {
            ":id": service.key.id.as_str(),
            ":version": service.key.version,
            ":provider_id": service.provider_id.as_str(),
            ":gid": service.gid,
            ":path": PathParam(&service.path),
            ":manifest_digest": service.manifest_digest,
            ":tree_digest": service.tree_digest,
            ":package_digest": service.package_digest,
            ":size": service.size_bytes.cast_signed(),
            ":installed_at": service.installed_at_ms,
            ":unused_since": service.unused_since_ms,
            ":confirmed": service.confirmed,
        },
    )
}

fn put_layer(batch: &mut Batch<'_>, layer: &InstalledLayer) -> rusqlite::Result<()> {
    batch.execute(
        "INSERT OR REPLACE INTO layers (digest, layer_id, version, os_version, path,
            package_digest, tree_digest, size, installed_at, unused_since)
        VALUES (:digest, :layer_id, :version, :os_version, :path,
            :package_digest, :tree_digest, :size, :installed_at, :unused_since)",
        named_params! {
            ":digest": layer.digest.as_str(),
            ":layer_id": layer.layer_id,
            ":version": layer.version,
            ":os_version": layer.os_version,
            ":path": PathParam(&layer.path),
            ":package_digest": layer.package_digest,
            ":tree_digest": layer.tree_digest,
            ":size": layer.size_bytes.cast_signed(),
            ":installed_at": layer.installed_at_ms,
            ":unused_since": layer.unused_since_ms,
        },
    )
}

fn put_wanted(batch: &mut Batch<'_>, wanted: &Wanted) -> rusqlite::Result<()> {
    let (source, provider_id, gid, layer_id, layer_version) = match &wanted.package {
        Package::Service(s) => (&s.source, s.provider_id.as_str(), s.gid, "", ""),
        Package::Layer(l) => (&l.source, "", 0, l.layer_id.as_str(), l.version.as_str()),
    };
    let key = wanted.package.key();
    let (kind, id, version) = wanted_key(&key);
    batch.execute(
        "INSERT OR REPLACE INTO wanted (kind, id, version, provider_id, gid, layer_id,
            layer_version, url, sha3_256, sha3_512, size, attempts_begun, last_error)
        VALUES (:kind, :id, :version, :provider_id, :gid, :layer_id,
            :layer_version, :url, :sha3_256, :sha3_512, :size, :attempts_begun, :last_error)",
        named_params! {
            ":kind": kind,
            ":id": id,
            ":version": version,
            ":provider_id": provider_id,
            ":gid": gid,
            ":layer_id": layer_id,
            ":layer_version": layer_version,
            ":url": source.url,
            ":sha3_256": source.sha3_256,
            ":sha3_512": source.sha3_512,
            ":size": source.size_bytes.cast_signed(),
            ":attempts_begun": wanted.attempts_begun,
            ":last_error": wanted.last_error,
        },
    )
}

fn remove_wanted(batch: &mut Batch<'_>, key: &PackageKey) -> rusqlite::Result<()> {
    let (kind, id, version) = wanted_key(key);
    batch.execute(
        "DELETE FROM wanted WHERE kind = :kind AND id = :id AND version = :version",
        named_params! { ":kind": kind, ":id": id, ":version": version },
    )
}

fn wanted_key(key: &PackageKey) -> (&'static str, &str, &str) {
    match key {
        PackageKey::Service(key) => (rows::SERVICE, key.id.as_str(), &key.version),
        PackageKey::Layer(digest) => (rows::LAYER, digest.as_str(), ""),
    }
}

/// Replaces also another row with the same ident: the newer id is the one that core uses.
fn put_instance(batch: &mut Batch<'_>, stored: &StoredInstance) -> rusqlite::Result<()> {
    let DesiredInstance { ident, uid, priority, storage_path, state_path, network } =
        &stored.instance;
    batch.execute(
        "INSERT OR REPLACE INTO instances (id, service_id, subject_id, instance, uid, priority,
            storage_path, state_path, network)
        VALUES (:id, :service_id, :subject_id, :instance, :uid, :priority,
            :storage_path, :state_path, :network)",
        named_params! {
            ":id": stored.id.as_str(),
            ":service_id": ident.service_id.as_str(),
            ":subject_id": ident.subject_id.as_str(),
            ":instance": ident.instance.cast_signed(),
            ":uid": uid,
            ":priority": priority.cast_signed(),
            ":storage_path": storage_path,
            ":state_path": state_path,
            ":network": json::write_network(network),
        },
    )
}

/// Rows that stay keep their interface names.
fn set_networks(batch: &mut Batch<'_>, networks: &[NetworkParams]) -> rusqlite::Result<()> {
    for id in obsolete_networks(batch, networks)? {
        batch.execute("DELETE FROM networks WHERE id = :id", named_params! { ":id": id })?;
    }
    for network in networks {
        put_network(batch, network)?;
    }
    Ok(())
}

fn obsolete_networks(
    batch: &mut Batch<'_>,
    keep: &[NetworkParams],
) -> rusqlite::Result<Vec<String>> {
    let statement = batch.statement("SELECT id FROM networks")?;
    let ids: Vec<String> = statement.query_map([], |row| row.get(0))?.collect::<Result<_, _>>()?;
    let kept = |id: &str| keep.iter().any(|network| network.id.as_str() == id);
    Ok(ids.into_iter().filter(|id| !kept(id)).collect())
}

fn put_network(batch: &mut Batch<'_>, network: &NetworkParams) -> rusqlite::Result<()> {
    batch.execute(
        "INSERT INTO networks (id, ip, subnet, vlan_id) VALUES (:id, :ip, :subnet, :vlan_id)
        ON CONFLICT (id) DO UPDATE SET ip = :ip, subnet = :subnet, vlan_id = :vlan_id",
        named_params! {
            ":id": network.id.as_str(),
            ":ip": network.ip,
            ":subnet": network.subnet,
            ":vlan_id": network.vlan_id.cast_signed(),
        },
    )
}

fn put_traffic(batch: &mut Batch<'_>, row: &TrafficRow) -> rusqlite::Result<()> {
    batch.execute(
        "INSERT OR REPLACE INTO traffic (chain, time, value) VALUES (:chain, :time, :value)",
        named_params! {
            ":chain": row.chain,
            ":time": row.time_ms,
            ":value": row.bytes.cast_signed(),
        },
    )
}

/// A path as text, or as a blob when it is no UTF-8.
struct PathParam<'a>(&'a Path);

impl ToSql for PathParam<'_> {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        let bytes = self.0.as_os_str().as_bytes();
        Ok(ToSqlOutput::Borrowed(match self.0.to_str() {
            Some(_) => ValueRef::Text(bytes),
            None => ValueRef::Blob(bytes),
        }))
    }
}
