//! Messages as they travelled between the reference and IAM, and answers that make no sense.

use std::collections::BTreeMap;
use std::path::Path;

use super::*;
use crate::model::id::{ServiceId, SubjectId};

/// Bytes of a recorded message.
fn recorded(name: &str) -> Vec<u8> {
    let line = include_str!("recorded.jsonl").lines().find(|line| line.contains(name)).unwrap();
    let json: serde_json::Value = serde_json::from_str(line).unwrap();
    let text = json["hex"].as_str().unwrap();
    let byte = |at: usize| u8::from_str_radix(&text[at..at + 2], 16).unwrap();
    (0..text.len()).step_by(2).map(byte).collect()
}

fn ident() -> InstanceIdent {
    InstanceIdent {
        service_id: ServiceId::new("svc-full"),
        subject_id: SubjectId::new("subj1"),
        instance: 0,
    }
}

#[test]
fn our_requests_are_those_of_the_reference() {
    assert_eq!(cert_request("sm"), recorded("getcertrequest"));
    assert_eq!(subscription("sm"), recorded("subscribecertchangedrequest"));
    assert_eq!(removal(&ident()), recorded("unregisterinstancerequest"));
    let map = |pairs: &[(&str, &str)]| -> BTreeMap<String, String> {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    };
    let permissions = Permissions::from([
        ("vis".to_owned(), map(&[("*", "rw"), ("Signal.Speed", "r")])),
        ("custom".to_owned(), map(&[("read", "r")])),
    ]);
    // Maps have no order on the wire.
    let parsed = |bytes: &[u8]| wire::RegisterInstanceRequest::parse_from_bytes(bytes).unwrap();
    assert_eq!(
        parsed(&registration(&ident(), &permissions)),
        parsed(&recorded("registerinstancerequest"))
    );
}

#[test]
fn answers_of_iam_are_understood() {
    assert_eq!(
        cert_urls(&recorded("certinfo")).unwrap(),
        CertUrls {
            cert_url: "file:///var/aos/workdirs/cm/pki/sm.cert.pem".to_owned(),
            key_url: "file:///var/aos/workdirs/cm/pki/sm.key.pem".to_owned(),
        }
    );
    assert_eq!(
        secret(&recorded("registerinstanceresponse")).unwrap(),
        "7a9340eae2bd5c451b3c11b396eb219c"
    );
    let info = node_info(&recorded("iam-to-sm-nodeinfo")).unwrap();
    assert_eq!((info.node_id.as_str(), info.node_type.as_str()), ("node0", "main"));
    assert_eq!((info.max_dmips, info.total_ram_bytes), (10_000, 2 << 30));
    assert_eq!(info.runners, ["crun", "runc"]);
    let names: Vec<_> = info.partitions.iter().map(|p| p.name.as_str()).collect();
    assert_eq!(names, ["workdirs", "storages", "states"]);
    assert_eq!(info.partitions[0].types, ["services", "layers", "generic"]);
    assert_eq!(info.partitions[1].path, Path::new("/var/aos/storages"));
    assert_eq!(info.partitions[2].total_bytes, 1 << 20);
}

#[test]
fn runners_come_from_the_attribute_or_the_default() {
    let check = |attributes: &[(&str, &str)], expect: &[&str]| {
        let attribute = |(name, value): &(&str, &str)| wire::NodeAttribute {
            name: (*name).to_owned(),
            value: (*value).to_owned(),
            ..Default::default()
        };
        let attributes: Vec<_> = attributes.iter().map(attribute).collect();
        assert_eq!(runners(&attributes), expect);
    };
    check(&[], &["crun", "runc"]);
    check(&[("MainNode", "")], &["crun", "runc"]);
    check(&[("NodeRunners", "")], &["crun", "runc"]);
    check(&[("NodeRunners", " runc , runx,")], &["runc", "runx"]);
    check(&[("noderunners", "crun")], &["crun"]);
}

#[test]
fn senseless_answers_are_errors() {
    let check = |error: Error, expect: &str| assert_eq!(error.to_string(), expect);
    check(cert_urls(b"").unwrap_err(), "answer without certificate and key URL");
    check(secret(b"").unwrap_err(), "answer without secret");
    check(node_info(b"").unwrap_err(), "answer without node id");
    check(cert_urls(b"\xff").unwrap_err(), "malformed answer of 1 bytes");
    check(secret(b"\x0a\x05a").unwrap_err(), "malformed answer of 3 bytes");
    check(node_info(b"\x0a\x01\xff").unwrap_err(), "malformed answer of 3 bytes");
}
