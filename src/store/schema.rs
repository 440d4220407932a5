//! Schema of the database: the steps that lead to it, each applied once in one transaction.
//!
//! Runs on core, at open. `PRAGMA user_version` counts from 100; 0 is an empty file or one of the
//! Go releases, which `takeover` reads. A released step is never edited, only followed by another.

use rusqlite::{Connection, TransactionBehavior};

use super::Error;

/// Each step leads from the version before to this one.
const STEPS: &[(i32, &str)] = &[(100, BASE), (101, LAYER_TREES)];

/// Version that the newest step leads to.
pub(super) const VERSION: i32 = STEPS[STEPS.len() - 1].0;

/// Version of the first step; smaller ones but 0 are foreign.
pub(super) const FIRST_VERSION: i32 = STEPS[0].0;

/// Unsigned 64-bit values without a natural limit (instance index, priority) are stored as the
/// signed number with the same bits; sizes and times fit anyway. Paths are text, or blobs when
/// they are no UTF-8. Times are Unix milliseconds.
const BASE: &str = "
CREATE TABLE meta (
    key TEXT NOT NULL PRIMARY KEY,
    value TEXT NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE services (
    id TEXT NOT NULL,
    version TEXT NOT NULL,
    provider_id TEXT NOT NULL,
    gid INTEGER NOT NULL,
    path ANY NOT NULL,
    manifest_digest BLOB NOT NULL,
    tree_digest TEXT NOT NULL,
    package_digest BLOB NOT NULL,
    size INTEGER NOT NULL,
    installed_at INTEGER NOT NULL,
    unused_since INTEGER,
    confirmed INTEGER NOT NULL,
    PRIMARY KEY (id, version)
) STRICT, WITHOUT ROWID;
CREATE TABLE layers (
    digest TEXT NOT NULL PRIMARY KEY,
    layer_id TEXT NOT NULL,
    version TEXT NOT NULL,
    os_version TEXT NOT NULL,
    path ANY NOT NULL,
    package_digest BLOB NOT NULL,
    size INTEGER NOT NULL,
    installed_at INTEGER NOT NULL,
    unused_since INTEGER
) STRICT, WITHOUT ROWID;
-- A layer has its digest as id, an empty version in the key, and the version in layer_version.
CREATE TABLE wanted (
    kind TEXT NOT NULL,
    id TEXT NOT NULL,
    version TEXT NOT NULL,
    provider_id TEXT NOT NULL,
    gid INTEGER NOT NULL,
    layer_id TEXT NOT NULL,
    layer_version TEXT NOT NULL,
    url TEXT NOT NULL,
    sha3_256 BLOB NOT NULL,
    sha3_512 BLOB NOT NULL,
    size INTEGER NOT NULL,
    attempts_begun INTEGER NOT NULL,
    last_error TEXT NOT NULL,
    PRIMARY KEY (kind, id, version)
) STRICT, WITHOUT ROWID;
CREATE TABLE instances (
    id TEXT NOT NULL PRIMARY KEY,
    service_id TEXT NOT NULL,
    subject_id TEXT NOT NULL,
    instance INTEGER NOT NULL,
    uid INTEGER NOT NULL,
    priority INTEGER NOT NULL,
    storage_path TEXT NOT NULL,
    state_path TEXT NOT NULL,
    network TEXT NOT NULL
) STRICT, WITHOUT ROWID;
CREATE UNIQUE INDEX instances_ident ON instances (service_id, subject_id, instance);
CREATE TABLE networks (
    id TEXT NOT NULL PRIMARY KEY,
    ip TEXT NOT NULL,
    subnet TEXT NOT NULL,
    vlan_id INTEGER NOT NULL,
    vlan_interface TEXT NOT NULL DEFAULT '',
    bridge_interface TEXT NOT NULL DEFAULT ''
) STRICT, WITHOUT ROWID;
CREATE TABLE traffic (
    chain TEXT NOT NULL PRIMARY KEY,
    time INTEGER NOT NULL,
    value INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
";

/// What a layer looks like unpacked, to notice damage.
const LAYER_TREES: &str = "
ALTER TABLE layers ADD COLUMN tree_digest TEXT NOT NULL DEFAULT '';
";

/// Applies the steps that the file lacks.
pub(super) fn migrate(db: &mut Connection, from: i32) -> Result<(), Error> {
    for (version, step) in STEPS.iter().filter(|(version, _)| *version > from) {
        apply(db, *version, step).map_err(|source| Error::Migrate { version: *version, source })?;
    }
    Ok(())
}

fn apply(db: &mut Connection, version: i32, step: &str) -> rusqlite::Result<()> {
    let transaction = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
    transaction.execute_batch(step)?;
    transaction.pragma_update(None, "user_version", version)?;
    transaction.commit()
}

/// Makes the newest schema inside an open transaction whose database has no tables.
pub(super) fn create(db: &Connection) -> rusqlite::Result<()> {
    for (_, step) in STEPS {
        db.execute_batch(step)?;
    }
    db.pragma_update(None, "user_version", VERSION)
}
