//! Traffic counters: what the monitor asks for, and what the database keeps of them.

use crate::model::id::InstanceId;

/// Bytes of the present period, local networks left out.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Traffic {
    pub node: Volume,
    /// Instances with an address, in the order of their ids.
    pub instances: Vec<(InstanceId, Volume)>,
}

impl Traffic {
    /// Volume of an instance, if it is counted.
    pub fn instance(&self, id: &InstanceId) -> Option<Volume> {
        let at = self.instances.binary_search_by(|(known, _)| known.cmp(id)).ok()?;
        Some(self.instances[at].1)
    }
}

/// Bytes in both directions, seen from the node or from the instance.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Volume {
    pub download_bytes: u64,
    pub upload_bytes: u64,
}

/// A stored counter.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TrafficRow {
    /// Name of the counter as the reference has it, such as `AOS_SYSTEM_IN`.
    pub chain: Box<str>,
    /// Unix time of the value in milliseconds; tells the period that it belongs to.
    pub time_ms: i64,
    pub bytes: u64,
}
