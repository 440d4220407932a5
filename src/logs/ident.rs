//! Which instance a log store belongs to: `<workingDir>/logs/<id>/ident`.
//!
//! Written by `log-in` at the first start of an instance and when it is removed, read by `log-out`
//! to resolve the filter of a request; so logs of removed instances can still be asked for.

use std::fs;
use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::model::id::{InstanceIdent, ServiceId, SubjectId};
use crate::sys::fs::{make_dirs, write_volatile};

const FILE: &str = "ident";

/// Content of the file.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct StoredIdent {
    service_id: String,
    subject_id: String,
    instance: u64,
    pub(crate) version: String,
    /// Unix time in milliseconds; missing = the instance exists.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) removed_ms: Option<i64>,
}

impl StoredIdent {
    pub(crate) fn new(ident: &InstanceIdent, version: &str) -> Self {
        Self {
            service_id: ident.service_id.as_str().to_owned(),
            subject_id: ident.subject_id.as_str().to_owned(),
            instance: ident.instance,
            version: version.to_owned(),
            removed_ms: None,
        }
    }

    /// `None` = there is none, or it is damaged.
    pub(crate) fn read(dir: &Path) -> Option<Self> {
        serde_json::from_slice(&fs::read(dir.join(FILE)).ok()?).ok()
    }

    /// Writes the file unless it says this already.
    pub(crate) fn write(&self, dir: &Path) -> io::Result<()> {
        if Self::read(dir).as_ref() == Some(self) {
            return Ok(());
        }
        make_dirs(dir, 0o700)?;
        let text = serde_json::to_vec(self)?;
        // Not flushed: a file that a power cut damages is written anew at the next start.
        write_volatile(&dir.join(FILE), &text, 0o600)
    }

    pub(crate) fn ident(&self) -> InstanceIdent {
        InstanceIdent {
            service_id: ServiceId::new(&self.service_id),
            subject_id: SubjectId::new(&self.subject_id),
            instance: self.instance,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trip_and_damage() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("i1");
        assert_eq!(StoredIdent::read(&dir), None);
        let ident = InstanceIdent {
            service_id: ServiceId::new("a\"b'"),
            subject_id: SubjectId::new(""),
            instance: u64::MAX,
        };
        let mut stored = StoredIdent::new(&ident, "1.0.0");
        stored.write(&dir).unwrap();
        assert_eq!(StoredIdent::read(&dir), Some(stored.clone()));
        stored.removed_ms = Some(5);
        stored.write(&dir).unwrap();
        assert_eq!(
            StoredIdent::read(&dir).map(|s| (s.ident(), s.removed_ms)),
            Some((ident, Some(5)))
        );
        crate::sys::fs::write_plain(&dir.join(FILE), b"{\"serviceId\":", 0o600).unwrap();
        assert_eq!(StoredIdent::read(&dir), None);
    }
}
