//! The record of a running instance as a file, `record.json` of its bundle.
//!
//! Runs on exec threads. In, out: `model::job::Record` and the text of the file, which is on tmpfs
//! and readable by root alone. A text of another format version or another boot is no record:
//! pids and monotonic times mean nothing then.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::model::id::{InstanceIdent, ServiceId, SubjectId};
use crate::model::job::{LimiterState, Record};

/// Version of the format; another one is not read.
pub const FORMAT: u32 = 1;

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct File {
    format: u32,
    boot_id: String,
    service_id: String,
    subject_id: String,
    instance: u64,
    service_version: String,
    inputs_digest: String,
    overrides: Vec<String>,
    secret_hash: String,
    pid: u32,
    start_time: u64,
    limiter_begin_ns: u64,
    limiter_count: u64,
    restarts: u64,
    started_at_ns: u64,
}

/// The text of a record.
pub fn encode(record: &Record, boot_id: &str) -> String {
    let file = File {
        format: FORMAT,
        boot_id: boot_id.to_owned(),
        service_id: record.ident.service_id.as_str().to_owned(),
        subject_id: record.ident.subject_id.as_str().to_owned(),
        instance: record.ident.instance,
        service_version: record.service_version.as_ref().to_owned(),
        inputs_digest: record.inputs_digest.clone(),
        overrides: record.overrides.to_vec(),
        secret_hash: record.secret_hash.clone(),
        pid: record.pid,
        start_time: record.start_time,
        limiter_begin_ns: record.limiter.begin_ns,
        limiter_count: record.limiter.count,
        restarts: record.restarts,
        started_at_ns: record.started_at_ns,
    };
    serde_json::to_string(&file).expect("a structure of texts and numbers can be written")
}

/// The record in a text; `None` = malformed, or of another format or boot.
pub fn decode(text: &[u8], boot_id: &str) -> Option<Record> {
    let file: File = serde_json::from_slice(text).ok()?;
    if file.format != FORMAT || file.boot_id != boot_id {
        return None;
    }
    Some(Record {
        ident: InstanceIdent {
            service_id: ServiceId::new(&file.service_id),
            subject_id: SubjectId::new(&file.subject_id),
            instance: file.instance,
        },
        service_version: Arc::from(file.service_version),
        inputs_digest: file.inputs_digest,
        overrides: file.overrides.into(),
        secret_hash: file.secret_hash,
        pid: file.pid,
        start_time: file.start_time,
        limiter: LimiterState { begin_ns: file.limiter_begin_ns, count: file.limiter_count },
        restarts: file.restarts,
        started_at_ns: file.started_at_ns,
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use expect_test::expect;

    use super::*;

    /// A record with a value of its own in every field.
    pub(crate) fn sample() -> Record {
        Record {
            ident: InstanceIdent {
                service_id: ServiceId::new("svc \"a\""),
                subject_id: SubjectId::new("subj-1"),
                instance: 3,
            },
            service_version: Arc::from("1.2.3"),
            inputs_digest: "d1".into(),
            overrides: ["A=1".into(), "B=\n".into()].into(),
            secret_hash: "5e".into(),
            pid: 4711,
            start_time: 99,
            limiter: LimiterState { begin_ns: 5, count: 2 },
            restarts: 7,
            started_at_ns: u64::MAX,
        }
    }

    #[test]
    fn a_record_survives_its_file() {
        let text = encode(&sample(), "boot");
        expect![[r#"{"format":1,"bootId":"boot","serviceId":"svc \"a\"","subjectId":"subj-1","instance":3,"serviceVersion":"1.2.3","inputsDigest":"d1","overrides":["A=1","B=\n"],"secretHash":"5e","pid":4711,"startTime":99,"limiterBeginNs":5,"limiterCount":2,"restarts":7,"startedAtNs":18446744073709551615}"#]]
            .assert_eq(&text);
        assert_eq!(decode(text.as_bytes(), "boot"), Some(sample()));
    }

    #[test]
    fn what_is_no_record_of_this_boot() {
        let text = encode(&sample(), "boot");
        assert_eq!(decode(text.as_bytes(), "other"), None);
        assert_eq!(decode(text.replace("\"format\":1", "\"format\":2").as_bytes(), "boot"), None);
        assert_eq!(decode(text.replace("\"pid\":4711", "\"pid\":-1").as_bytes(), "boot"), None);
        assert_eq!(decode(text.replace("\"restarts\":7,", "").as_bytes(), "boot"), None);
        for cut in [0, 1, text.len() / 2, text.len() - 1] {
            assert_eq!(decode(&text.as_bytes()[..cut], "boot"), None);
        }
        assert_eq!(decode(b"\xff\xfe", "boot"), None);
    }
}
