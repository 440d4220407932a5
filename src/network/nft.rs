//! Pure: nf_tables messages and rule expressions as bytes. What the rules say stands in `rules`,
//! what is sent when in `firewall`, the reading of lists in `listing`.

use super::channel;
use super::expressions::Program;
use super::wire::{Messages, Payload};

/// Numbers of the messages.
pub(super) mod message {
    pub(in crate::network) const NEWTABLE: u16 = 0;
    pub(in crate::network) const GETTABLE: u16 = 1;
    pub(in crate::network) const DELTABLE: u16 = 2;
    pub(in crate::network) const NEWCHAIN: u16 = 3;
    pub(in crate::network) const GETCHAIN: u16 = 4;
    pub(in crate::network) const DELCHAIN: u16 = 5;
    pub(in crate::network) const NEWRULE: u16 = 6;
    pub(in crate::network) const GETRULE: u16 = 7;
    pub(in crate::network) const DELRULE: u16 = 8;
    pub(in crate::network) const NEWSET: u16 = 9;
    pub(in crate::network) const GETSET: u16 = 10;
    pub(in crate::network) const DELSET: u16 = 11;
    pub(in crate::network) const NEWSETELEM: u16 = 12;
    pub(in crate::network) const GETSETELEM: u16 = 13;
    pub(in crate::network) const DELSETELEM: u16 = 14;
    pub(in crate::network) const NEWGEN: u16 = 15;
    pub(in crate::network) const GETGEN: u16 = 16;
    pub(in crate::network) const BATCH_BEGIN: u16 = 16;
    pub(in crate::network) const BATCH_END: u16 = 17;
    pub(in crate::network) const NEWOBJ: u16 = 18;
    pub(in crate::network) const GETOBJ: u16 = 19;
    pub(in crate::network) const DELOBJ: u16 = 20;
    pub(in crate::network) const GETOBJ_RESET: u16 = 21;
}
pub(super) const SUBSYSTEM: u16 = 10;

pub(super) const FAMILY_UNSPEC: u8 = 0;
pub(super) const FAMILY_INET: u8 = 1;

/// Kinds of attributes; each message has a numbering of its own.
pub(super) mod table {
    pub(in crate::network) const NAME: u16 = 1;
    pub(in crate::network) const FLAGS: u16 = 2;
    pub(in crate::network) const USE: u16 = 3;
}
pub(super) mod chain {
    pub(in crate::network) const TABLE: u16 = 1;
    pub(in crate::network) const NAME: u16 = 3;
    pub(in crate::network) const HOOK: u16 = 4;
    pub(in crate::network) const POLICY: u16 = 5;
    pub(in crate::network) const TYPE: u16 = 7;
    pub(in crate::network) const HOOK_NUMBER: u16 = 1;
    pub(in crate::network) const HOOK_PRIORITY: u16 = 2;
}
pub(super) mod rule {
    pub(in crate::network) const TABLE: u16 = 1;
    pub(in crate::network) const CHAIN: u16 = 2;
    pub(in crate::network) const HANDLE: u16 = 3;
    pub(in crate::network) const EXPRESSIONS: u16 = 4;
    pub(in crate::network) const USER_DATA: u16 = 7;
}
pub(super) mod set {
    pub(in crate::network) const TABLE: u16 = 1;
    pub(in crate::network) const NAME: u16 = 2;
    pub(in crate::network) const FLAGS: u16 = 3;
    pub(in crate::network) const KEY_TYPE: u16 = 4;
    pub(in crate::network) const KEY_LENGTH: u16 = 5;
    pub(in crate::network) const DESCRIPTION: u16 = 9;
    pub(in crate::network) const DESCRIPTION_SIZE: u16 = 1;
    pub(in crate::network) const ID: u16 = 10;
    pub(in crate::network) const OBJECT_TYPE: u16 = 15;
    pub(in crate::network) const FLAG_INTERVAL: u32 = 4;
    pub(in crate::network) const FLAG_OBJECTS: u32 = 0x40;
    pub(in crate::network) const USER_DATA: u16 = 13;
}
pub(super) mod element {
    pub(in crate::network) const TABLE: u16 = 1;
    pub(in crate::network) const SET: u16 = 2;
    pub(in crate::network) const LIST: u16 = 3;
    pub(in crate::network) const KEY: u16 = 1;
    pub(in crate::network) const FLAGS: u16 = 3;
    pub(in crate::network) const OBJECT: u16 = 9;
    /// The interval that began before ends here.
    pub(in crate::network) const INTERVAL_END: u32 = 1;
}
pub(super) mod object {
    pub(in crate::network) const TABLE: u16 = 1;
    pub(in crate::network) const NAME: u16 = 2;
    pub(in crate::network) const TYPE: u16 = 3;
    pub(in crate::network) const DATA: u16 = 4;
    pub(in crate::network) const COUNTER: u32 = 1;
    pub(in crate::network) const QUOTA: u32 = 2;
    pub(in crate::network) const LIMIT: u32 = 4;
    pub(in crate::network) const COUNTER_BYTES: u16 = 1;
    pub(in crate::network) const QUOTA_BYTES: u16 = 1;
    pub(in crate::network) const QUOTA_FLAGS: u16 = 2;
    pub(in crate::network) const QUOTA_CONSUMED: u16 = 4;
    pub(in crate::network) const LIMIT_RATE: u16 = 1;
    pub(in crate::network) const LIMIT_UNIT: u16 = 2;
    pub(in crate::network) const LIMIT_BURST: u16 = 3;
    pub(in crate::network) const LIMIT_TYPE: u16 = 4;
    pub(in crate::network) const LIMIT_FLAGS: u16 = 5;
    /// The rate is one of bytes.
    pub(in crate::network) const LIMIT_BYTES: u32 = 1;
    /// Matches what goes beyond the rate.
    pub(in crate::network) const LIMIT_OVER: u32 = 1;
    /// Matches what goes beyond the quota.
    pub(in crate::network) const QUOTA_OVER: u32 = 1;
}
pub(super) const LIST_ELEMENT: u16 = 1;
pub(super) const DATA_VALUE: u16 = 1;
pub(super) const DATA_VERDICT: u16 = 2;
pub(super) const EXPRESSION_NAME: u16 = 1;
pub(super) const EXPRESSION_DATA: u16 = 2;

/// Where a base chain is hooked in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Hook {
    /// `filter` or `nat`.
    pub(super) kind: &'static str,
    pub(super) number: u32,
    pub(super) priority: i32,
}

pub(super) const HOOK_INPUT: u32 = 1;
pub(super) const HOOK_FORWARD: u32 = 2;
pub(super) const HOOK_OUTPUT: u32 = 3;
pub(super) const HOOK_POSTROUTING: u32 = 4;
pub(super) const POLICY_DROP: u32 = 0;
const POLICY_ACCEPT: u32 = 1;

const BATCH_GENERATION: u16 = 1;

/// Begins a batch: everything up to `end` happens or nothing.
pub(super) fn begin() -> Messages {
    let mut batch = Messages::new();
    batch.add("commit firewall changes", message::BATCH_BEGIN, channel::REQUEST, batch_header);
    batch
}

/// The same, refused if anybody has changed anything since `generation`.
pub(super) fn begin_after(generation: u32) -> Messages {
    let mut batch = Messages::new();
    batch.add("commit firewall changes", message::BATCH_BEGIN, channel::REQUEST, |p| {
        batch_header(p);
        p.be32(BATCH_GENERATION, generation);
    });
    batch
}

pub(super) fn end(batch: &mut Messages) {
    batch.add("commit firewall changes", message::BATCH_END, channel::REQUEST, batch_header);
}

fn batch_header(p: &mut Payload<'_>) {
    let [high, low] = SUBSYSTEM.to_be_bytes();
    p.raw(&[FAMILY_UNSPEC, 0, high, low]);
}

pub(super) fn add(
    batch: &mut Messages,
    operation: &'static str,
    number: u16,
    flags: u16,
    body: impl FnOnce(&mut Payload<'_>),
) {
    batch.add(operation, SUBSYSTEM << 8 | number, flags, |p| {
        p.raw(&[FAMILY_INET, 0, 0, 0]);
        body(p);
    });
}

pub(super) fn new_table(batch: &mut Messages, name: &str) {
    add(batch, "create firewall table", message::NEWTABLE, channel::CREATE, |p| {
        p.text(table::NAME, name);
        p.be32(table::FLAGS, 0);
    });
}

/// With everything in it, so not for our own table as long as something of the OS may be there.
pub(super) fn delete_table(batch: &mut Messages, name: &str) {
    add(batch, "delete firewall table", message::DELTABLE, channel::REQUEST, |p| {
        p.text(table::NAME, name);
    });
}

/// A chain; with a hook it is a base chain with policy accept.
pub(super) fn new_chain(batch: &mut Messages, table: &str, name: &str, hook: Option<&Hook>) {
    add(batch, "create firewall chain", message::NEWCHAIN, channel::CREATE, |p| {
        p.text(chain::TABLE, table);
        p.text(chain::NAME, name);
        if let Some(hook) = hook {
            p.nested(chain::HOOK, |p| {
                p.be32(chain::HOOK_NUMBER, hook.number);
                p.attribute(chain::HOOK_PRIORITY, &hook.priority.to_be_bytes());
            });
            p.be32(chain::POLICY, POLICY_ACCEPT);
            p.text(chain::TYPE, hook.kind);
        }
    });
}

pub(super) fn delete_chain(batch: &mut Messages, table: &str, name: &str) {
    add(batch, "delete firewall chain", message::DELCHAIN, channel::REQUEST, |p| {
        p.text(chain::TABLE, table);
        p.text(chain::NAME, name);
    });
}

/// Where a new rule goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Place {
    Head,
    Tail,
}

/// A rule with a comment, or without if it is empty.
pub(super) fn new_rule(
    batch: &mut Messages,
    table: &str,
    chain: &str,
    place: Place,
    comment: &str,
    program: impl FnOnce(&mut Program<'_, '_>),
) {
    let flags = match place {
        Place::Head => channel::CREATE,
        Place::Tail => channel::APPEND,
    };
    add(batch, "create firewall rule", message::NEWRULE, flags, |p| {
        p.text(rule::TABLE, table);
        p.text(rule::CHAIN, chain);
        p.nested(rule::EXPRESSIONS, |p| program(&mut Program(p)));
        if !comment.is_empty() {
            p.attribute(rule::USER_DATA, &comment_data(comment));
        }
    });
}

/// A comment as the `nft` tool stores and prints it.
pub(super) fn comment_data(comment: &str) -> Vec<u8> {
    let length = u8::try_from(comment.len() + 1).expect("comments are constants below 128 bytes");
    let mut data = vec![0, length];
    data.extend_from_slice(comment.as_bytes());
    data.push(0);
    data
}

/// Deletes one rule, or with `None` all rules of the chain.
pub(super) fn delete_rule(batch: &mut Messages, table: &str, chain: &str, handle: Option<u64>) {
    add(batch, "delete firewall rule", message::DELRULE, channel::REQUEST, |p| {
        p.text(rule::TABLE, table);
        p.text(rule::CHAIN, chain);
        if let Some(handle) = handle {
            p.be64(rule::HANDLE, handle);
        }
    });
}

/// What a set holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct NewSet {
    pub(super) name: &'static str,
    /// Type number for the `nft` tool; the kernel only needs the length.
    pub(super) key_type: u32,
    pub(super) key_bytes: u32,
    /// Number within the batch.
    pub(super) id: u32,
    pub(super) content: Content,
}

/// What kind of elements a set has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Content {
    Keys,
    /// Sorted, without overlaps.
    Intervals,
    /// Each key leads to an object. A map of which the kernel knows how many there may be is the
    /// quickest one.
    Objects {
        kind: u32,
        capacity: u32,
    },
}

pub(super) const TYPE_IPV4: u32 = 7;
pub(super) const TYPE_IPV6: u32 = 8;
pub(super) const TYPE_INTERFACE: u32 = 41;
pub(super) const TYPE_PROTOCOL: u32 = 12;
pub(super) const TYPE_PORT: u32 = 13;

/// Type number of a concatenation.
pub(super) const fn concatenated(types: &[u32]) -> u32 {
    let (mut number, mut at) = (0, 0);
    while at < types.len() {
        number = number << 6 | types[at];
        at += 1;
    }
    number
}

pub(super) fn new_set(batch: &mut Messages, table: &str, new: &NewSet) {
    // Key byte order = host: otherwise `nft list` prints empty interface names.
    const HOST_ORDER: [u8; 6] = [0, 4, 1, 0, 0, 0];
    add(batch, "create firewall set", message::NEWSET, channel::CREATE, |p| {
        p.text(set::TABLE, table);
        p.text(set::NAME, new.name);
        let flags = match new.content {
            Content::Keys => 0,
            Content::Intervals => set::FLAG_INTERVAL,
            Content::Objects { .. } => set::FLAG_OBJECTS,
        };
        p.be32(set::FLAGS, flags);
        p.be32(set::KEY_TYPE, new.key_type);
        p.be32(set::KEY_LENGTH, new.key_bytes);
        if let Content::Objects { capacity, .. } = new.content {
            p.nested(set::DESCRIPTION, |p| p.be32(set::DESCRIPTION_SIZE, capacity));
        }
        p.be32(set::ID, new.id);
        if let Content::Objects { kind, .. } = new.content {
            p.be32(set::OBJECT_TYPE, kind);
        }
        if new.key_type == TYPE_INTERFACE {
            p.attribute(set::USER_DATA, &HOST_ORDER);
        }
    });
}

pub(super) fn delete_set(batch: &mut Messages, table: &str, name: &str) {
    add(batch, "delete firewall set", message::DELSET, channel::REQUEST, |p| {
        p.text(set::TABLE, table);
        p.text(set::NAME, name);
    });
}

/// Adds keys to a set; one that is there stays.
pub(super) fn new_elements<'a>(
    batch: &mut Messages,
    table: &str,
    set: &str,
    keys: impl Iterator<Item = &'a [u8]>,
) {
    add(batch, "add firewall entries", message::NEWSETELEM, channel::CREATE, |p| {
        element_list(p, table, set, keys);
    });
}

/// Deletes keys of a set; one that is missing refuses the batch.
pub(super) fn delete_elements<'a>(
    batch: &mut Messages,
    table: &str,
    set: &str,
    keys: impl Iterator<Item = &'a [u8]>,
) {
    add(batch, "delete firewall entries", message::DELSETELEM, channel::REQUEST, |p| {
        element_list(p, table, set, keys);
    });
}

fn element_list<'a>(
    p: &mut Payload<'_>,
    table: &str,
    set: &str,
    keys: impl Iterator<Item = &'a [u8]>,
) {
    p.text(element::TABLE, table);
    p.text(element::SET, set);
    p.nested(element::LIST, |p| {
        for key in keys {
            p.nested(LIST_ELEMENT, |p| {
                p.nested(element::KEY, |p| p.attribute(DATA_VALUE, key));
            });
        }
    });
}

/// Fills a set of intervals: first and last key of each, sorted, without overlaps.
pub(super) fn new_intervals(
    batch: &mut Messages,
    table: &str,
    set: &str,
    intervals: &[(Vec<u8>, Vec<u8>)],
) {
    let element = |p: &mut Payload<'_>, key: &[u8], end: bool| {
        p.nested(LIST_ELEMENT, |p| {
            p.nested(element::KEY, |p| p.attribute(DATA_VALUE, key));
            if end {
                p.be32(element::FLAGS, element::INTERVAL_END);
            }
        });
    };
    add(batch, "add firewall entries", message::NEWSETELEM, channel::CREATE, |p| {
        p.text(element::TABLE, table);
        p.text(element::SET, set);
        p.nested(element::LIST, |p| {
            // What lies before the first interval is outside.
            if let Some((first, _)) = intervals.first().filter(|(first, _)| !is_zero(first)) {
                element(p, &vec![0; first.len()], true);
            }
            for (first, last) in intervals {
                element(p, first, false);
                if let Some(end) = successor(last) {
                    element(p, &end, true);
                }
            }
        });
    });
}

fn is_zero(key: &[u8]) -> bool {
    key.iter().all(|byte| *byte == 0)
}

/// The next key; `None` behind the last one.
fn successor(key: &[u8]) -> Option<Vec<u8>> {
    let mut next = key.to_vec();
    for byte in next.iter_mut().rev() {
        let overflow;
        (*byte, overflow) = byte.overflowing_add(1);
        if !overflow {
            return Some(next);
        }
    }
    None
}

/// Adds keys to a map, each with the name of its object.
pub(super) fn new_mappings<'a>(
    batch: &mut Messages,
    table: &str,
    map: &str,
    mappings: impl Iterator<Item = (&'a [u8], &'a str)>,
) {
    add(batch, "add traffic counters", message::NEWSETELEM, channel::CREATE, |p| {
        p.text(element::TABLE, table);
        p.text(element::SET, map);
        p.nested(element::LIST, |p| {
            for (key, object) in mappings {
                p.nested(LIST_ELEMENT, |p| {
                    p.nested(element::KEY, |p| p.attribute(DATA_VALUE, key));
                    p.text(element::OBJECT, object);
                });
            }
        });
    });
}

/// A counter that begins with a value.
pub(super) fn new_counter(batch: &mut Messages, table: &str, name: &str, bytes: u64) {
    add(batch, "create traffic counter", message::NEWOBJ, channel::CREATE, |p| {
        p.text(object::TABLE, table);
        p.text(object::NAME, name);
        p.be32(object::TYPE, object::COUNTER);
        p.nested(object::DATA, |p| p.be64(object::COUNTER_BYTES, bytes));
    });
}

/// Name of the operation, by which a kernel without quotas is recognised.
pub(super) const NEW_QUOTA: &str = "create traffic limit";

/// Most bytes of a quota; the kernel refuses more.
const MAX_QUOTA: u64 = i64::MAX.cast_unsigned();

/// A quota of which a part is used up. The kernel refuses one of which more is used than it has, as
/// happens when a limit is lowered; such a one is used up.
pub(super) fn new_quota(batch: &mut Messages, table: &str, name: &str, limit: u64, used: u64) {
    let limit = limit.min(MAX_QUOTA);
    let used = used.min(limit);

    add(batch, NEW_QUOTA, message::NEWOBJ, channel::CREATE, |p| {
        p.text(object::TABLE, table);
        p.text(object::NAME, name);
        p.be32(object::TYPE, object::QUOTA);
        p.nested(object::DATA, |p| {
            p.be64(object::QUOTA_BYTES, limit);
            p.be32(object::QUOTA_FLAGS, object::QUOTA_OVER);
            p.be64(object::QUOTA_CONSUMED, used);
        });
    });
}

/// Name of the operation, by which a kernel without limits is recognised.
pub(super) const NEW_LIMIT: &str = "create speed limit";

/// A limit of speed, in bytes per second and bytes at once.
pub(super) fn new_limit(batch: &mut Messages, table: &str, name: &str, rate: u64, burst: u32) {
    add(batch, NEW_LIMIT, message::NEWOBJ, channel::CREATE, |p| {
        p.text(object::TABLE, table);
        p.text(object::NAME, name);
        p.be32(object::TYPE, object::LIMIT);
        p.nested(object::DATA, |p| {
            p.be64(object::LIMIT_RATE, rate);
            p.be64(object::LIMIT_UNIT, 1);
            p.be32(object::LIMIT_BURST, burst);
            p.be32(object::LIMIT_TYPE, object::LIMIT_BYTES);
            p.be32(object::LIMIT_FLAGS, object::LIMIT_OVER);
        });
    });
}

pub(super) fn delete_object(batch: &mut Messages, table: &str, kind: u32, name: &str) {
    add(batch, "delete traffic counter", message::DELOBJ, channel::REQUEST, |p| {
        p.text(object::TABLE, table);
        p.text(object::NAME, name);
        p.be32(object::TYPE, kind);
    });
}
