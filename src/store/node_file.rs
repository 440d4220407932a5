//! The node configuration file: the JSON document of the CM with its version as a member.
//!
//! Read and written by core alone; one small file, so that the CM's answer waits for no worker.
//! In and out: JSON text and version. A power cut leaves the old file or the new one, and the one
//! before stays as `<file>.bak`. Deliberately not here: what the document means (`document`), and
//! whether a version is acceptable (core).

use std::io;
use std::path::{Path, PathBuf};

use crate::document::{self, Object};
use crate::model::status::chain;
use crate::sys::fs;

/// Largest document in bytes.
pub const MAX_SIZE_BYTES: u64 = 1 << 20;

/// Version that is reported while there is no file, or none in it.
pub const NO_VERSION: &str = "0.0.0";

const MODE: u32 = 0o600;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot read node configuration {path}")]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot write node configuration {path}")]
    Write {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("node configuration of {size} bytes is larger than {MAX_SIZE_BYTES}")]
    TooLarge { size: u64 },
    #[error("node configuration is no JSON object")]
    Document {
        #[source]
        source: document::Error,
    },
    #[error("node configuration is not valid")]
    Content {
        #[source]
        source: document::Error,
    },
}

/// A stored node configuration.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NodeFile {
    /// The whole document, with its version.
    pub json: String,
    pub version: String,
    /// The file was unusable and this is the backup: why, for the registration at the CM, which
    /// then sends the configuration again.
    pub damage: Option<String>,
}

impl NodeFile {
    /// Reads and decodes the file, or its backup when the file cannot be used. `None` = no file. An
    /// error = neither is usable; its text is for the registration at the CM.
    pub fn read_decoded<T>(
        path: &Path,
        decode: impl Fn(&str) -> Result<T, document::Error>,
    ) -> Result<Option<(Self, T)>, Error> {
        let load = |path: &Path| {
            let Some(file) = load(path)? else { return Ok(None) };
            let decoded = decode(&file.json).map_err(|source| Error::Content { source })?;
            Ok(Some((file, decoded)))
        };
        let error = match load(path) {
            Err(error) => error,
            other => return other,
        };
        match load(&backup(path)) {
            Ok(Some((file, decoded))) => {
                log::error!("node configuration replaced by its backup err={}", chain(&error));
                Ok(Some((Self { damage: Some(chain(&error)), ..file }, decoded)))
            }
            Ok(None) | Err(_) => Err(error),
        }
    }

    /// Replaces the file; what it held becomes the backup if it was usable. On an error the old
    /// file is still in place.
    pub fn write(path: &Path, json: &str, version: &str) -> Result<(), Error> {
        let text = with_version(json, version)?;
        let size = text.len() as u64;
        if size > MAX_SIZE_BYTES {
            return Err(Error::TooLarge { size });
        }
        if let Ok(Some(old)) = load(path) {
            write(&backup(path), &old.json)?;
        }
        write(path, &text)
    }

    /// Removes file and backup, for `-reset`; missing ones are fine.
    pub fn remove(path: &Path) -> Result<(), Error> {
        for file in [path.to_owned(), backup(path)] {
            match std::fs::remove_file(&file) {
                Err(source) if source.kind() != io::ErrorKind::NotFound => {
                    return Err(Error::Write { path: file, source });
                }
                _ => {}
            }
        }
        Ok(())
    }
}

fn backup(path: &Path) -> PathBuf {
    super::with_suffix(path, ".bak")
}

fn load(path: &Path) -> Result<Option<NodeFile>, Error> {
    let failed = |source| Error::Read { path: path.to_owned(), source };
    let size = match std::fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other.map_err(failed)?.len(),
    };
    if size > MAX_SIZE_BYTES {
        return Err(Error::TooLarge { size });
    }
    let json = std::fs::read_to_string(path).map_err(failed)?;
    let version = version_of(&json).map_err(|source| Error::Document { source })?;
    Ok(Some(NodeFile { json, version, damage: None }))
}

/// Member `version`, or `vendorVersion` of 7.x.
fn version_of(json: &str) -> Result<String, document::Error> {
    let document = Object::parse_tolerant(json)?;
    let version = match document.str("version")? {
        Some(version) => Some(version),
        None => document.str("vendorVersion")?,
    };
    Ok(version.unwrap_or(NO_VERSION).to_owned())
}

/// The document with the version as its last member: of several spellings the last one counts.
fn with_version(json: &str, version: &str) -> Result<String, Error> {
    let document = Object::parse_tolerant(json).map_err(|source| Error::Document { source })?;
    let text = json.trim_end();
    let members = text.strip_suffix('}').unwrap_or(text);
    let comma = if document.names().next().is_some() { "," } else { "" };
    let version = serde_json::Value::from(version);
    Ok(format!("{members}{comma}\"version\":{version}}}"))
}

fn write(path: &Path, text: &str) -> Result<(), Error> {
    fs::write_atomic(path, text.as_bytes(), MODE)
        .map_err(|source| Error::Write { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    fn place() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("aos_node.cfg");
        (dir, path)
    }

    fn read(path: &Path) -> Result<Option<NodeFile>, Error> {
        Ok(NodeFile::read_decoded(path, |_| Ok(()))?.map(|(file, ())| file))
    }

    fn put(path: &Path, text: &str) {
        fs::write_plain(path, text.as_bytes(), 0o644).unwrap();
    }

    #[test]
    fn documents_get_their_version() {
        let check = |json: &str, version: &str, expect: &str| {
            let (_dir, path) = place();
            NodeFile::write(&path, json, version).unwrap();
            let file = read(&path).unwrap().unwrap();
            assert_eq!(file.json, expect);
            assert_eq!((file.version.as_str(), file.damage), (version, None), "{json}");
            assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        };
        check("{}", "1.0.0", r#"{"version":"1.0.0"}"#);
        check(" { } \n", "", " { \"version\":\"\"}");
        check(
            r#"{"nodeType":"main","priority":18446744073709551615}"#,
            "2",
            r#"{"nodeType":"main","priority":18446744073709551615,"version":"2"}"#,
        );
        check(
            r#"{"Version":"9","vendorVersion":"8"}"#,
            "a\"b\\\n",
            "{\"Version\":\"9\",\"vendorVersion\":\"8\",\"version\":\"a\\\"b\\\\\\n\"}",
        );
    }

    #[test]
    fn files_of_the_releases_are_read() {
        let check = |text: &str, expect: Option<&str>| {
            let (_dir, path) = place();
            put(&path, text);
            let read = read(&path);
            assert_eq!(read.ok().flatten().map(|f| f.version).as_deref(), expect, "{text}");
        };
        check(r#"{"nodeType":"main","version":"1.0.0"}"#, Some("1.0.0"));
        check(r#"{"nodeType":"main","vendorVersion":"7"}"#, Some("7"));
        check(r#"{"VendorVersion":"7","VERSION":"8"}"#, Some("8"));
        check("\u{feff}{\"version\":\"1\"}", Some("1"));
        check("{}", Some(NO_VERSION));
        check(r#"{"version":null}"#, Some(NO_VERSION));
        check(r#"{"version":5}"#, None);
        check("", None);
        check("{", None);
        check("[]", None);
        check("{} x", None);
    }

    #[test]
    fn no_file_is_no_error() {
        let (_dir, path) = place();
        assert_eq!(read(&path).unwrap(), None);
        put(&backup(&path), "{}");
        assert_eq!(read(&path).unwrap(), None, "somebody removed the file on purpose");
    }

    #[test]
    fn damage_is_answered_with_the_backup() {
        for damage in ["", "{\"nodeType\":", "\u{0}\u{0}\u{0}"] {
            let (_dir, path) = place();
            NodeFile::write(&path, "{}", "1").unwrap();
            NodeFile::write(&path, r#"{"a":1}"#, "2").unwrap();
            put(&path, damage);
            let file = read(&path).unwrap().unwrap();
            assert_eq!(file.version, "1");
            assert!(file.damage.unwrap().starts_with("node configuration is no JSON object: "));
            // The damaged file does not become the backup.
            NodeFile::write(&path, "{}", "3").unwrap();
            assert_eq!(load(&backup(&path)).unwrap().unwrap().version, "1");
            assert_eq!(read(&path).unwrap().unwrap().damage, None);
        }
        let (_dir, path) = place();
        put(&path, "{");
        put(&backup(&path), "{");
        assert!(matches!(read(&path).unwrap_err(), Error::Document { .. }));
    }

    #[test]
    fn a_document_that_means_nothing_is_answered_with_the_backup() {
        let decode = |json: &str| document::node_config::parse(json, document::NumberUnit::Seconds);
        let (_dir, path) = place();
        NodeFile::write(&path, r#"{"labels":["old"]}"#, "1").unwrap();
        NodeFile::write(&path, r#"{"labels":["new"]}"#, "2").unwrap();
        let read = || NodeFile::read_decoded(&path, decode);
        assert_eq!(read().unwrap().unwrap().1.labels, ["new"]);
        put(&path, r#"{"labels":5,"version":"2"}"#);
        let (file, config) = read().unwrap().unwrap();
        assert_eq!((file.version.as_str(), &*config.labels), ("1", &["old".to_owned()][..]));
        let expect = "node configuration is not valid: labels: 5 is not allowed, expected an array";
        assert_eq!(file.damage.as_deref(), Some(expect));
        put(&backup(&path), "{");
        assert!(matches!(read().unwrap_err(), Error::Content { .. }));
    }

    #[test]
    fn limits_and_failures_leave_the_old_file() {
        let (_dir, path) = place();
        NodeFile::write(&path, "{}", "1").unwrap();
        let fits = |size: usize| format!("{{\"a\":\"{}\"}}", "x".repeat(size));
        let overhead = with_version(&fits(0), "2").unwrap().len();
        let most = usize::try_from(MAX_SIZE_BYTES).unwrap() - overhead;
        let error = NodeFile::write(&path, &fits(most + 1), "2").unwrap_err();
        assert!(matches!(error, Error::TooLarge { size } if size == MAX_SIZE_BYTES + 1));
        for bad in ["", "[]", "null", "{} {}"] {
            let error = NodeFile::write(&path, bad, "2").unwrap_err();
            assert!(matches!(error, Error::Document { .. }), "{bad}");
        }
        assert_eq!(read(&path).unwrap().unwrap().version, "1");
        assert!(!backup(&path).exists());
        NodeFile::write(&path, &fits(most), "2").unwrap();
        assert_eq!(read(&path).unwrap().unwrap().version, "2");
        put(&path, &"x".repeat(usize::try_from(MAX_SIZE_BYTES).unwrap() + 1));
        let damage = read(&path).unwrap().unwrap().damage.unwrap();
        assert_eq!(damage, "node configuration of 1048577 bytes is larger than 1048576");
        let nowhere = path.join("nowhere");
        assert!(matches!(NodeFile::write(&nowhere, "{}", "1"), Err(Error::Write { .. })));
    }

    #[test]
    fn reset_removes_both() {
        let (dir, path) = place();
        NodeFile::write(&path, "{}", "1").unwrap();
        NodeFile::write(&path, "{}", "2").unwrap();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2);
        NodeFile::remove(&path).unwrap();
        NodeFile::remove(&path).unwrap();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
