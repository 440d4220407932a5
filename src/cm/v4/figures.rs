//! Monitoring as bytes of `InstantMonitoring` and `AverageMonitoring`, which are laid out alike.
//!
//! Written directly, without a message object: a sample goes out after every poll, with hundreds of
//! instances, and one buffer of the right size is all that it needs. Pure, runs on cm-tx.

use protobuf::rt::compute_raw_varint64_size as varint_size;

use crate::model::id::InstanceIdent;
use crate::model::status::{MonitoringData, NodeMonitoring};

/// Members of `SMOutgoingMessages`.
pub(super) const INSTANT: u32 = 7;
pub(super) const AVERAGE: u32 = 8;

const VARINT: u32 = 0;
const BYTES: u32 = 2;

/// The whole outgoing message with `sample` as its member.
pub(super) fn encode(member: u32, sample: &NodeMonitoring) -> Vec<u8> {
    let length = sample_size(sample);
    let mut out = Vec::with_capacity(nested_size(member, length));
    put_head(&mut out, member, length);
    put_head(&mut out, 1, data_size(&sample.node));
    put_data(&mut out, &sample.node);
    for (ident, data) in &sample.instances {
        put_head(&mut out, 2, instance_size(ident, data));
        put_head(&mut out, 1, ident_size(ident));
        put_text(&mut out, 1, ident.service_id.as_str());
        put_text(&mut out, 2, ident.subject_id.as_str());
        put_number(&mut out, 3, ident.instance);
        put_head(&mut out, 2, data_size(data));
        put_data(&mut out, data);
    }
    out
}

fn sample_size(sample: &NodeMonitoring) -> usize {
    let instances = sample.instances.iter();
    let instances = instances.map(|(ident, data)| nested_size(2, instance_size(ident, data)));
    nested_size(1, data_size(&sample.node)) + instances.sum::<usize>()
}

fn instance_size(ident: &InstanceIdent, data: &MonitoringData) -> usize {
    nested_size(1, ident_size(ident)) + nested_size(2, data_size(data))
}

fn ident_size(ident: &InstanceIdent) -> usize {
    text_size(1, ident.service_id.as_str())
        + text_size(2, ident.subject_id.as_str())
        + number_size(3, ident.instance)
}

/// Field numbers of `MonitoringData`.
mod field {
    pub(super) const RAM: u32 = 1;
    pub(super) const CPU: u32 = 2;
    pub(super) const PARTITIONS: u32 = 3;
    pub(super) const DOWNLOAD: u32 = 4;
    pub(super) const UPLOAD: u32 = 5;
    pub(super) const TIMESTAMP: u32 = 6;
}

fn data_size(data: &MonitoringData) -> usize {
    let partitions = data.partitions.iter();
    number_size(field::RAM, data.ram_bytes)
        + number_size(field::CPU, data.cpu_dmips)
        + partitions
            .map(|(name, used)| nested_size(field::PARTITIONS, partition_size(name, *used)))
            .sum::<usize>()
        + number_size(field::DOWNLOAD, data.download_bytes)
        + number_size(field::UPLOAD, data.upload_bytes)
        + nested_size(field::TIMESTAMP, time_size(data.time_ms))
}

fn put_data(out: &mut Vec<u8>, data: &MonitoringData) {
    put_number(out, field::RAM, data.ram_bytes);
    put_number(out, field::CPU, data.cpu_dmips);
    for (name, used) in &data.partitions {
        put_head(out, field::PARTITIONS, partition_size(name, *used));
        put_text(out, 1, name);
        put_number(out, 2, *used);
    }
    put_number(out, field::DOWNLOAD, data.download_bytes);
    put_number(out, field::UPLOAD, data.upload_bytes);
    let (seconds, nanos) = time(data.time_ms);
    put_head(out, field::TIMESTAMP, time_size(data.time_ms));
    put_number(out, 1, seconds);
    put_number(out, 2, nanos);
}

fn partition_size(name: &str, used_bytes: u64) -> usize {
    text_size(1, name) + number_size(2, used_bytes)
}

/// Seconds, as the wire shows a negative number, and nanoseconds.
fn time(unix_ms: i64) -> (u64, u64) {
    let nanos = unix_ms.rem_euclid(1000).unsigned_abs() * 1_000_000;
    (unix_ms.div_euclid(1000).cast_unsigned(), nanos)
}

fn time_size(unix_ms: i64) -> usize {
    let (seconds, nanos) = time(unix_ms);
    number_size(1, seconds) + number_size(2, nanos)
}

fn size_of(number: u64) -> usize {
    usize::try_from(varint_size(number)).unwrap_or(usize::MAX)
}

fn key(field: u32, kind: u32) -> u64 {
    u64::from(field << 3 | kind)
}

/// Zero is the default of a field and not sent.
fn number_size(field: u32, value: u64) -> usize {
    if value == 0 { 0 } else { size_of(key(field, VARINT)) + size_of(value) }
}

fn text_size(field: u32, text: &str) -> usize {
    if text.is_empty() { 0 } else { nested_size(field, text.len()) }
}

fn nested_size(field: u32, length: usize) -> usize {
    size_of(key(field, BYTES)) + size_of(length as u64) + length
}

fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(u8::try_from(value & 0x7f).unwrap_or(0) | 0x80);
        value >>= 7;
    }
    out.push(u8::try_from(value).unwrap_or(0));
}

fn put_number(out: &mut Vec<u8>, field: u32, value: u64) {
    if value != 0 {
        put_varint(out, key(field, VARINT));
        put_varint(out, value);
    }
}

fn put_text(out: &mut Vec<u8>, field: u32, text: &str) {
    if !text.is_empty() {
        put_head(out, field, text.len());
        out.extend_from_slice(text.as_bytes());
    }
}

/// What stands before `length` bytes of content.
fn put_head(out: &mut Vec<u8>, field: u32, length: usize) {
    put_varint(out, key(field, BYTES));
    put_varint(out, length as u64);
}

#[cfg(test)]
mod tests {
    use protobuf::Message;

    use super::*;
    use crate::cm::wire::v4::servicemanager as wire;
    use crate::model::id::{ServiceId, SubjectId};

    fn data(seed: u64) -> MonitoringData {
        MonitoringData {
            time_ms: i64::try_from(seed).unwrap_or(-1_500),
            ram_bytes: seed,
            cpu_dmips: seed / 7,
            partitions: vec![("storage".into(), seed), ("".into(), 0), ("x".repeat(200).into(), 1)],
            download_bytes: 0,
            upload_bytes: seed.saturating_mul(3),
        }
    }

    /// The generated code reads what was written, and writes it the same way.
    #[track_caller]
    fn check(sample: &NodeMonitoring) {
        for member in [INSTANT, AVERAGE] {
            let bytes = encode(member, sample);
            assert_eq!(bytes.capacity(), bytes.len());
            let parsed = wire::SMOutgoingMessages::parse_from_bytes(&bytes).unwrap();
            assert_eq!(parsed.write_to_bytes().unwrap(), bytes);
            assert!(parsed.SMOutgoingMessage.is_some());
        }
    }

    #[test]
    fn as_the_generated_code_has_it() {
        check(&NodeMonitoring::default());
        for seed in [0, 1, 127, 128, 300, 1_764_000_000_123, u64::MAX / 2, u64::MAX] {
            let ident = |service: &str, instance| InstanceIdent {
                service_id: ServiceId::new(service),
                subject_id: SubjectId::new(&"s".repeat(130)),
                instance,
            };
            let instances = vec![(ident("", 0), data(seed / 3)), (ident("web", seed), data(seed))];
            check(&NodeMonitoring { node: data(seed), instances });
        }
    }
}
