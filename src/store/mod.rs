//! The database of the daemon: `<workingDir>/servicemanager.db`.
//!
//! Owned by core, the only thread that reads or writes it. In: `Change` lists, one transaction
//! each, on disk when `apply` returns. Out: one `Snapshot` at start. A damaged file is set aside
//! and an empty one is made, because everything in it comes again from the CM; a file of the Go
//! releases is taken over (`takeover`). Deliberately not here: traffic counters of the net thread
//! and the journal cursor beyond their tables, and any decision about the content.

mod changes;
mod json;
pub mod node_file;
mod rows;
mod schema;
mod takeover;

use std::ffi::OsString;
use std::fs::{DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, OpenFlags, TransactionBehavior};

use self::changes::Batch;
use crate::model::status::chain;
use crate::model::store::{Change, Snapshot};
use crate::sys::fault;

/// Name of the file below the working directory.
pub const FILE_NAME: &str = "servicemanager.db";

/// How long a statement waits for somebody who looks into the file with another program. Core
/// waits as long, so this stays below the 5 s within which the CM expects an answer.
const BUSY_TIMEOUT: Duration = Duration::from_secs(3);

/// Small cache, no memory map; nothing that changes the file.
const PRAGMAS: &str = "
PRAGMA cache_size = -256;
PRAGMA temp_store = MEMORY;
PRAGMA mmap_size = 0;
PRAGMA trusted_schema = OFF;
PRAGMA synchronous = FULL;
";

/// The log is brought back into the file every 256 pages (1 MiB).
const LOG_PRAGMAS: &str = "
PRAGMA journal_mode = WAL;
PRAGMA wal_autocheckpoint = 256;
PRAGMA journal_size_limit = 1048576;
";

const SIDE_FILES: [&str; 2] = ["-wal", "-shm"];
const BROKEN: &str = ".broken";

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot create directory {path}")]
    Directory {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot open database {path}")]
    Open {
        path: PathBuf,
        #[source]
        source: rusqlite::Error,
    },
    #[error("cannot restrict access to database {path}")]
    Mode {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot set damaged database {path} aside")]
    SetAside {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot remove database file {path}")]
    Remove {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("integrity check of the database failed: {report}")]
    Damaged { report: String },
    #[error("database of another program, or of a newer release: schema version {version}")]
    Foreign { version: i32 },
    #[error("cannot bring the database to schema version {version}")]
    Migrate {
        version: i32,
        #[source]
        source: rusqlite::Error,
    },
    #[error("cannot take over the database of the previous service manager")]
    TakeOver {
        #[source]
        source: rusqlite::Error,
    },
    #[error("cannot read table {table} of the database")]
    Read {
        table: &'static str,
        #[source]
        source: rusqlite::Error,
    },
    #[error("cannot {change} in the database")]
    Write {
        change: &'static str,
        #[source]
        source: rusqlite::Error,
    },
    #[error("cannot begin a transaction of the database")]
    Begin {
        #[source]
        source: rusqlite::Error,
    },
    #[error("cannot commit to the database")]
    Commit {
        #[source]
        source: rusqlite::Error,
    },
}

impl Error {
    /// The same call may succeed later: no space, the file is in use, or an I/O error.
    pub fn is_transient(&self) -> bool {
        matches!(
            self.code(),
            Some(
                ErrorCode::DiskFull
                    | ErrorCode::DatabaseBusy
                    | ErrorCode::DatabaseLocked
                    | ErrorCode::SystemIoFailure
            )
        )
    }

    /// The content of the file is unusable, for ever.
    fn is_damage(&self) -> bool {
        if matches!(self, Self::Damaged { .. } | Self::Foreign { .. }) {
            return true;
        }
        // Our version, but not our tables.
        if matches!(self, Self::Read { .. }) && self.code() == Some(ErrorCode::Unknown) {
            return true;
        }
        // A page that ends before its time is reported as an I/O error.
        matches!(self.code(), Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase))
            || self
                .sqlite()
                .and_then(rusqlite::Error::sqlite_error)
                .is_some_and(|error| error.extended_code == rusqlite::ffi::SQLITE_IOERR_SHORT_READ)
    }

    fn code(&self) -> Option<ErrorCode> {
        self.sqlite().and_then(rusqlite::Error::sqlite_error_code)
    }

    fn sqlite(&self) -> Option<&rusqlite::Error> {
        match self {
            Self::Open { source, .. }
            | Self::Migrate { source, .. }
            | Self::TakeOver { source }
            | Self::Read { source, .. }
            | Self::Write { source, .. }
            | Self::Begin { source }
            | Self::Commit { source } => Some(source),
            Self::Directory { .. }
            | Self::Mode { .. }
            | Self::SetAside { .. }
            | Self::Remove { .. }
            | Self::Damaged { .. }
            | Self::Foreign { .. } => None,
        }
    }
}

/// The open database.
#[derive(Debug)]
pub struct Store {
    db: Connection,
}

impl Store {
    /// Opens or creates the database and reads all of it.
    ///
    /// A file that is damaged, foreign or from a newer release is renamed to `<path>.broken` and
    /// an empty one takes its place.
    pub fn open(path: &Path) -> Result<(Self, Snapshot), Error> {
        if let Some(dir) = path.parent().filter(|dir| !dir.as_os_str().is_empty()) {
            DirBuilder::new()
                .recursive(true)
                .mode(0o755)
                .create(dir)
                .map_err(|source| Error::Directory { path: dir.to_owned(), source })?;
        }
        match Self::try_open(path) {
            Err(error) if error.is_damage() => {
                let aside = set_aside(path)?;
                log::error!(
                    "database is unusable, starting with an empty one kept={} err={}",
                    aside.display(),
                    chain(&error)
                );
                Self::try_open(path)
            }
            other => other,
        }
    }

    /// Opens a database of ours that is there, and reads all of it. `None` = there is none, or it is
    /// that of the Go releases, which only `open` takes over. One that is unusable stays as it is.
    pub fn open_own(path: &Path) -> Result<Option<(Self, Snapshot)>, Error> {
        if !path.exists() {
            return Ok(None);
        }
        let failed = |source| Error::Open { path: path.to_owned(), source };
        if user_version(&connect(path)?).map_err(failed)? == 0 {
            return Ok(None);
        }
        Self::try_open(path).map(Some)
    }

    fn try_open(path: &Path) -> Result<(Self, Snapshot), Error> {
        let failed = |source| Error::Open { path: path.to_owned(), source };
        let mut db = connect(path)?;
        check(&db).map_err(failed)?.map_or(Ok(()), |report| Err(Error::Damaged { report }))?;
        let version = user_version(&db).map_err(failed)?;
        let ours = (schema::FIRST_VERSION..=schema::VERSION).contains(&version);
        if !ours && (version != 0 || takeover::is_foreign(&db).map_err(failed)?) {
            return Err(Error::Foreign { version });
        }
        db.execute_batch(LOG_PRAGMAS).map_err(failed)?;
        match version {
            0 => takeover::run(&mut db, crate::sys::time::wall_ms())?,
            version => schema::migrate(&mut db, version)?,
        }
        let snapshot = rows::read_all(&db)?;
        db.execute_batch("PRAGMA shrink_memory").map_err(failed)?;
        Ok((Self { db }, snapshot))
    }

    /// Writes all changes in one transaction; on return they survive a power cut. On an error
    /// nothing is changed.
    pub fn apply(&mut self, changes: &[Change]) -> Result<(), Error> {
        if changes.is_empty() {
            return Ok(());
        }
        let transaction = self
            .db
            .transaction_with_behavior(TransactionBehavior::Immediate)
            .map_err(|source| Error::Begin { source })?;
        let mut batch = Batch::new(&transaction);
        for change in changes {
            changes::write(&mut batch, change)
                .map_err(|source| Error::Write { change: changes::name_of(change), source })?;
        }
        drop(batch);
        fault::point("before commit");
        transaction.commit().map_err(|source| Error::Commit { source })?;
        fault::point("committed");
        Ok(())
    }
}

/// Removes the database with its side files, for `-reset`; missing files are fine.
pub fn remove(path: &Path) -> Result<(), Error> {
    for file in std::iter::once(path.to_owned()).chain(side_files(path)) {
        match std::fs::remove_file(&file) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                return Err(Error::Remove { path: file, source });
            }
            _ => {}
        }
    }
    Ok(())
}

fn connect(path: &Path) -> Result<Connection, Error> {
    let failed = |source| Error::Open { path: path.to_owned(), source };
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
        | OpenFlags::SQLITE_OPEN_CREATE
        | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let db = Connection::open_with_flags(path, flags).map_err(failed)?;
    // Before the side files exist: they get the mode of the file.
    std::fs::set_permissions(path, Permissions::from_mode(0o600))
        .map_err(|source| Error::Mode { path: path.to_owned(), source })?;
    configure(&db).map_err(failed)?;
    Ok(db)
}

fn configure(db: &Connection) -> rusqlite::Result<()> {
    db.busy_timeout(BUSY_TIMEOUT)?;
    // Text between double quotes is a name, never a value.
    db.set_db_config(DbConfig::SQLITE_DBCONFIG_DQS_DML, false)?;
    db.set_db_config(DbConfig::SQLITE_DBCONFIG_DQS_DDL, false)?;
    db.execute_batch(PRAGMAS)
}

/// The first complaint of SQLite about the structure of the file.
fn check(db: &Connection) -> rusqlite::Result<Option<String>> {
    let report: String = db.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
    Ok((report != "ok").then_some(report))
}

fn user_version(db: &Connection) -> rusqlite::Result<i32> {
    db.query_row("PRAGMA user_version", [], |row| row.get(0))
}

/// Renames the file and its side files; an older set is replaced.
fn set_aside(path: &Path) -> Result<PathBuf, Error> {
    let aside = with_suffix(path, BROKEN);
    let moves = std::iter::once((path.to_owned(), aside.clone()))
        .chain(side_files(path).zip(side_files(&aside)));
    for (from, to) in moves {
        let result = match std::fs::rename(&from, &to) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                // What an older set left must not be read together with the new one.
                std::fs::remove_file(&to).or_else(|error| match error.kind() {
                    io::ErrorKind::NotFound => Ok(()),
                    _ => Err(error),
                })
            }
            other => other,
        };
        result.map_err(|source| Error::SetAside { path: from, source })?;
    }
    Ok(aside)
}

fn side_files(path: &Path) -> impl Iterator<Item = PathBuf> {
    SIDE_FILES.iter().map(move |suffix| with_suffix(path, suffix))
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(suffix);
    name.into()
}

#[cfg(test)]
mod tests;
