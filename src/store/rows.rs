//! Rows of the database as model types: reads all of them at start.
//!
//! Runs on core. In: an open database of the newest schema; out: a `Snapshot`. A row that cannot be read is left out with a warning, because one bad value must
//! not cost the node all its services; the next request of the CM writes it anew. Damage of the
//! file itself is an error.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use rusqlite::types::{FromSql, FromSqlResult, ValueRef};
use rusqlite::{Connection, Row};

use super::{Error, json};
use crate::model::desired::{DesiredInstance, DesiredLayer, DesiredService};
use crate::model::desired::{NetworkParams, PackageSource};
use crate::model::id::{
    Digest, InstanceId, InstanceIdent, MalformedDigest, NetworkId, ServiceId, ServiceKey, SubjectId,
};
use crate::model::job::Package;
use crate::model::service::{InstalledLayer, InstalledService};
use crate::model::status::chain;
use crate::model::store::{NetworkLinks, Snapshot, StoredInstance, Wanted};
use crate::model::traffic::TrafficRow;

/// Kinds of wanted packages.
pub(super) const SERVICE: &str = "service";
pub(super) const LAYER: &str = "layer";

pub(super) const META_NODE_INFO: &str = "node_info";
pub(super) const META_ENV_OVERRIDES: &str = "env_overrides";
pub(super) const META_LEAVING: &str = "leaving";
pub(super) const META_REFUSED: &str = "refused";
pub(super) const META_OFFLINE: &str = "offline";
pub(super) const META_JOURNAL_CURSOR: &str = "journal_cursor";

/// Why one row is left out.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unreadable {
    #[error("unexpected value")]
    Value(#[from] rusqlite::Error),
    #[error("column with a text of its own")]
    Json(#[from] json::Error),
    #[error(transparent)]
    Digest(#[from] MalformedDigest),
    #[error("{column} holds {value}")]
    Range { column: &'static str, value: String },
}

/// Everything that core needs at start.
pub(super) fn read_all(db: &Connection) -> Result<Snapshot, Error> {
    Ok(Snapshot {
        node_info: read_meta(db, META_NODE_INFO, json::read_node_info)?,
        env_overrides: read_meta(db, META_ENV_OVERRIDES, json::read_overrides)?.unwrap_or_default(),
        offline: read_meta(db, META_OFFLINE, json::read_offline)?,
        services: read_table(db, "services", service)?,
        layers: read_table(db, "layers", layer)?,
        wanted: read_table(db, "wanted", wanted)?,
        instances: read_table(db, "instances", instance)?,
        leaving: read_meta(db, META_LEAVING, json::read_leaving)?.unwrap_or_default(),
        refused: read_meta(db, META_REFUSED, json::read_refused)?.unwrap_or_default(),
        networks: read_table(db, "networks", network)?,
        network_links: read_links(db)?,
        traffic: read_table(db, "traffic", traffic)?,
        alert_position: read_meta(db, META_JOURNAL_CURSOR, |text| Ok(text.into()))?,
    })
}

/// All readable rows of a table.
pub(super) fn read_table<T>(
    db: &Connection,
    table: &'static str,
    decode: impl Fn(&Row<'_>) -> Result<T, Unreadable>,
) -> Result<Vec<T>, Error> {
    let failed = |source| Error::Read { table, source };
    let mut statement = db.prepare(&format!("SELECT * FROM {table}")).map_err(failed)?;
    let mut rows = statement.query([]).map_err(failed)?;
    let mut decoded = Vec::new();
    while let Some(row) = rows.next().map_err(failed)? {
        match decode(row) {
            Ok(value) => decoded.push(value),
            Err(error) => log::warn!("database row ignored table={table} err={}", chain(&error)),
        }
    }
    Ok(decoded)
}

fn read_meta<T>(
    db: &Connection,
    key: &'static str,
    decode: impl Fn(&str) -> Result<T, json::Error>,
) -> Result<Option<T>, Error> {
    let failed = |source| Error::Read { table: "meta", source };
    let mut statement = db.prepare("SELECT value FROM meta WHERE key = ?1").map_err(failed)?;
    let mut rows = statement.query([key]).map_err(failed)?;
    let Some(row) = rows.next().map_err(failed)? else { return Ok(None) };
    let text: String = row.get(0).map_err(failed)?;
    match decode(&text) {
        Ok(value) => Ok(Some(value)),
        Err(error) => {
            log::warn!("database entry ignored key={key} err={}", chain(&error));
            Ok(None)
        }
    }
}

fn service(row: &Row<'_>) -> Result<InstalledService, Unreadable> {
    Ok(InstalledService {
        key: ServiceKey {
            id: ServiceId::new(&row.get::<_, Box<str>>("id")?),
            version: row.get("version")?,
        },
        provider_id: NetworkId::new(&row.get::<_, Box<str>>("provider_id")?),
        gid: row.get("gid")?,
        path: row.get::<_, PathColumn>("path")?.0,
        manifest_digest: row.get("manifest_digest")?,
        tree_digest: row.get("tree_digest")?,
        package_digest: row.get("package_digest")?,
        size_bytes: bits(row, "size")?,
        installed_at_ms: row.get("installed_at")?,
        unused_since_ms: row.get("unused_since")?,
        confirmed: row.get("confirmed")?,
    })
}

fn layer(row: &Row<'_>) -> Result<InstalledLayer, Unreadable> {
    Ok(InstalledLayer {
        digest: Digest::parse(&row.get::<_, Box<str>>("digest")?)?,
        layer_id: row.get("layer_id")?,
        version: row.get("version")?,
        os_version: row.get("os_version")?,
        path: row.get::<_, PathColumn>("path")?.0,
        package_digest: row.get("package_digest")?,
        tree_digest: row.get("tree_digest")?,
        size_bytes: bits(row, "size")?,
        installed_at_ms: row.get("installed_at")?,
        unused_since_ms: row.get("unused_since")?,
    })
}

fn wanted(row: &Row<'_>) -> Result<Wanted, Unreadable> {
    let id: Box<str> = row.get("id")?;
    let source = PackageSource {
        url: row.get("url")?,
        sha3_256: row.get("sha3_256")?,
        sha3_512: row.get("sha3_512")?,
        size_bytes: bits(row, "size")?,
    };
    let package = match row.get::<_, Box<str>>("kind")?.as_ref() {
        SERVICE => Package::Service(DesiredService {
            key: ServiceKey { id: ServiceId::new(&id), version: row.get("version")? },
            provider_id: NetworkId::new(&row.get::<_, Box<str>>("provider_id")?),
            gid: row.get("gid")?,
            source,
        }),
        LAYER => Package::Layer(DesiredLayer {
            digest: Digest::parse(&id)?,
            layer_id: row.get("layer_id")?,
            version: row.get("layer_version")?,
            source,
        }),
        other => return Err(Unreadable::Range { column: "kind", value: format!("{other:?}") }),
    };
    Ok(Wanted {
        package,
        attempts_begun: row.get("attempts_begun")?,
        last_error: row.get("last_error")?,
    })
}

fn instance(row: &Row<'_>) -> Result<StoredInstance, Unreadable> {
    Ok(StoredInstance {
        id: InstanceId::new(&row.get::<_, Box<str>>("id")?),
        instance: DesiredInstance {
            ident: InstanceIdent {
                service_id: ServiceId::new(&row.get::<_, Box<str>>("service_id")?),
                subject_id: SubjectId::new(&row.get::<_, Box<str>>("subject_id")?),
                instance: bits(row, "instance")?,
            },
            uid: row.get("uid")?,
            priority: bits(row, "priority")?,
            storage_path: row.get("storage_path")?,
            state_path: row.get("state_path")?,
            network: json::read_network(&row.get::<_, Box<str>>("network")?)?,
        },
    })
}

fn network(row: &Row<'_>) -> Result<NetworkParams, Unreadable> {
    Ok(NetworkParams {
        id: NetworkId::new(&row.get::<_, Box<str>>("id")?),
        subnet: row.get("subnet")?,
        ip: row.get("ip")?,
        vlan_id: bits(row, "vlan_id")?,
    })
}

/// Those of networks that have some.
fn read_links(db: &Connection) -> Result<Vec<NetworkLinks>, Error> {
    let mut links = read_table(db, "networks", |row| {
        Ok(NetworkLinks {
            network: NetworkId::new(&row.get::<_, Box<str>>("id")?),
            vlan: row.get("vlan_interface")?,
            bridge: row.get("bridge_interface")?,
        })
    })?;
    links.retain(|links| !links.vlan.is_empty() || !links.bridge.is_empty());
    Ok(links)
}

fn traffic(row: &Row<'_>) -> Result<TrafficRow, Unreadable> {
    Ok(TrafficRow {
        chain: row.get("chain")?,
        time_ms: row.get("time")?,
        bytes: bits(row, "value")?,
    })
}

/// The unsigned number whose bits the column holds.
fn bits(row: &Row<'_>, column: &str) -> rusqlite::Result<u64> {
    row.get::<_, i64>(column).map(i64::cast_unsigned)
}

/// A path as text, or as a blob when it is no UTF-8.
struct PathColumn(PathBuf);

impl FromSql for PathColumn {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
        Ok(Self(PathBuf::from(OsStr::from_bytes(value.as_bytes()?))))
    }
}
