//! Pure: nf_tables messages and rule expressions as bytes. What the rules say stands in `rules`,
//! what is sent when in `firewall`.

use std::net::Ipv4Addr;

use super::channel;
use super::wire::{Message, Messages, Payload, attributes, find, text};

const NEWTABLE: u16 = 0;
const NEWCHAIN: u16 = 3;
const GETCHAIN: u16 = 4;
const DELCHAIN: u16 = 5;
const NEWRULE: u16 = 6;
const GETRULE: u16 = 7;
const DELRULE: u16 = 8;
const NEWSET: u16 = 9;
const GETSET: u16 = 10;
const DELSET: u16 = 11;
const NEWSETELEM: u16 = 12;
const GETSETELEM: u16 = 13;
const DELSETELEM: u16 = 14;
const BATCH_BEGIN: u16 = 16;
const BATCH_END: u16 = 17;
const SUBSYSTEM: u16 = 10;

const FAMILY_UNSPEC: u8 = 0;
const FAMILY_INET: u8 = 1;

/// Kinds of attributes; each message has a numbering of its own.
mod table {
    pub(super) const NAME: u16 = 1;
    pub(super) const FLAGS: u16 = 2;
}
mod chain {
    pub(super) const TABLE: u16 = 1;
    pub(super) const NAME: u16 = 3;
    pub(super) const HOOK: u16 = 4;
    pub(super) const POLICY: u16 = 5;
    pub(super) const TYPE: u16 = 7;
    pub(super) const HOOK_NUMBER: u16 = 1;
    pub(super) const HOOK_PRIORITY: u16 = 2;
}
mod rule {
    pub(super) const TABLE: u16 = 1;
    pub(super) const CHAIN: u16 = 2;
    pub(super) const HANDLE: u16 = 3;
    pub(super) const EXPRESSIONS: u16 = 4;
    pub(super) const USER_DATA: u16 = 7;
}
mod set {
    pub(super) const TABLE: u16 = 1;
    pub(super) const NAME: u16 = 2;
    pub(super) const FLAGS: u16 = 3;
    pub(super) const KEY_TYPE: u16 = 4;
    pub(super) const KEY_LENGTH: u16 = 5;
    pub(super) const ID: u16 = 10;
    pub(super) const USER_DATA: u16 = 13;
}
mod element {
    pub(super) const TABLE: u16 = 1;
    pub(super) const SET: u16 = 2;
    pub(super) const LIST: u16 = 3;
    pub(super) const KEY: u16 = 1;
}
const LIST_ELEMENT: u16 = 1;
const DATA_VALUE: u16 = 1;
const DATA_VERDICT: u16 = 2;
const EXPRESSION_NAME: u16 = 1;
const EXPRESSION_DATA: u16 = 2;

/// Where a base chain is hooked in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Hook {
    /// `filter` or `nat`.
    pub(super) kind: &'static str,
    pub(super) number: u32,
    pub(super) priority: i32,
}

pub(super) const HOOK_FORWARD: u32 = 2;
pub(super) const HOOK_POSTROUTING: u32 = 4;
const POLICY_DROP: u32 = 0;
const POLICY_ACCEPT: u32 = 1;

/// Begins a batch: everything up to `end` happens or nothing.
pub(super) fn begin() -> Messages {
    let mut batch = Messages::new();
    batch.add("commit firewall changes", BATCH_BEGIN, channel::REQUEST, batch_header);
    batch
}

pub(super) fn end(batch: &mut Messages) {
    batch.add("commit firewall changes", BATCH_END, channel::REQUEST, batch_header);
}

fn batch_header(p: &mut Payload<'_>) {
    let [high, low] = SUBSYSTEM.to_be_bytes();
    p.raw(&[FAMILY_UNSPEC, 0, high, low]);
}

fn add(
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
    add(batch, "create firewall table", NEWTABLE, channel::CREATE, |p| {
        p.text(table::NAME, name);
        p.be32(table::FLAGS, 0);
    });
}

/// Only for tests: everything of the OS in the table would go, too.
#[cfg(test)]
pub(super) fn delete_table(batch: &mut Messages, name: &str) {
    const DELTABLE: u16 = 2;
    add(batch, "delete firewall table", DELTABLE, channel::REQUEST, |p| {
        p.text(table::NAME, name);
    });
}

/// A chain; with a hook it is a base chain with policy accept.
pub(super) fn new_chain(batch: &mut Messages, table: &str, name: &str, hook: Option<&Hook>) {
    add(batch, "create firewall chain", NEWCHAIN, channel::CREATE, |p| {
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
    add(batch, "delete firewall chain", DELCHAIN, channel::REQUEST, |p| {
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
    add(batch, "create firewall rule", NEWRULE, flags, |p| {
        p.text(rule::TABLE, table);
        p.text(rule::CHAIN, chain);
        p.nested(rule::EXPRESSIONS, |p| program(&mut Program(p)));
        if !comment.is_empty() {
            p.attribute(rule::USER_DATA, &comment_data(comment));
        }
    });
}

/// A comment as the `nft` tool stores and prints it.
fn comment_data(comment: &str) -> Vec<u8> {
    let length = u8::try_from(comment.len() + 1).expect("comments are constants below 128 bytes");
    let mut data = vec![0, length];
    data.extend_from_slice(comment.as_bytes());
    data.push(0);
    data
}

/// Deletes one rule, or with `None` all rules of the chain.
pub(super) fn delete_rule(batch: &mut Messages, table: &str, chain: &str, handle: Option<u64>) {
    add(batch, "delete firewall rule", DELRULE, channel::REQUEST, |p| {
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
}

pub(super) const TYPE_IPV4: u32 = 7;
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
    add(batch, "create firewall set", NEWSET, channel::CREATE, |p| {
        p.text(set::TABLE, table);
        p.text(set::NAME, new.name);
        p.be32(set::FLAGS, 0);
        p.be32(set::KEY_TYPE, new.key_type);
        p.be32(set::KEY_LENGTH, new.key_bytes);
        p.be32(set::ID, new.id);
        if new.key_type == TYPE_INTERFACE {
            p.attribute(set::USER_DATA, &HOST_ORDER);
        }
    });
}

pub(super) fn delete_set(batch: &mut Messages, table: &str, name: &str) {
    add(batch, "delete firewall set", DELSET, channel::REQUEST, |p| {
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
    add(batch, "add firewall entries", NEWSETELEM, channel::CREATE, |p| {
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
    add(batch, "delete firewall entries", DELSETELEM, channel::REQUEST, |p| {
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

/// Expressions of one rule, in the order of evaluation.
pub(super) struct Program<'a, 'b>(&'a mut Payload<'b>);

/// Full registers of 16 bytes.
const REG_1: u32 = 1;
const REG_2: u32 = 2;
/// Parts of 4 bytes; `REG_1` is the parts 8 to 11.
const PART_9: u32 = 9;
const PART_10: u32 = 10;
const PART_11: u32 = 11;

const META_IN_NAME: u32 = 6;
const META_OUT_NAME: u32 = 7;
const META_FAMILY: u32 = 15;
const META_PROTOCOL: u32 = 16;
const PAYLOAD_NETWORK: u32 = 1;
const PAYLOAD_TRANSPORT: u32 = 2;
const SOURCE: u32 = 12;
const DESTINATION: u32 = 16;
const CMP_EQUAL: u32 = 0;
const CMP_DIFFERENT: u32 = 1;
/// `ct state` bits.
pub(super) const STATE_INVALID: u32 = 1;
pub(super) const STATE_REPLY: u32 = 2 | 4;

const VERDICT_DROP: i32 = 0;
const VERDICT_ACCEPT: i32 = 1;
const VERDICT_JUMP: i32 = -3;
const VERDICT_GOTO: i32 = -4;

impl Program<'_, '_> {
    fn expression(&mut self, name: &str, data: impl FnOnce(&mut Payload<'_>)) -> &mut Self {
        self.0.nested(LIST_ELEMENT, |p| {
            p.text(EXPRESSION_NAME, name);
            p.nested(EXPRESSION_DATA, data);
        });
        self
    }

    fn meta(&mut self, key: u32, register: u32) -> &mut Self {
        self.expression("meta", |p| {
            p.be32(1, register);
            p.be32(2, key);
        })
    }

    fn compare(&mut self, operator: u32, value: &[u8]) -> &mut Self {
        self.expression("cmp", |p| {
            p.be32(1, REG_1);
            p.be32(2, operator);
            p.nested(3, |p| p.attribute(DATA_VALUE, value));
        })
    }

    fn payload(&mut self, register: u32, base: u32, offset: u32, length: u32) -> &mut Self {
        self.expression("payload", |p| {
            p.be32(1, register);
            p.be32(2, base);
            p.be32(3, offset);
            p.be32(4, length);
        })
    }

    fn mask(&mut self, mask: [u8; 4]) -> &mut Self {
        self.expression("bitwise", |p| {
            p.be32(1, REG_1);
            p.be32(2, REG_1);
            p.be32(3, 4);
            p.nested(4, |p| p.attribute(DATA_VALUE, &mask));
            p.nested(5, |p| p.attribute(DATA_VALUE, &[0; 4]));
        })
    }

    fn verdict(&mut self, code: i32, target: &str) -> &mut Self {
        self.expression("immediate", |p| {
            p.be32(1, 0);
            p.nested(2, |p| {
                p.nested(DATA_VERDICT, |p| {
                    p.attribute(1, &code.to_be_bytes());
                    if !target.is_empty() {
                        p.text(2, target);
                    }
                });
            });
        })
    }

    /// Continues if what the registers hold from the first one on is a key of the set.
    pub(super) fn in_set(&mut self, set: &str) -> &mut Self {
        self.expression("lookup", |p| {
            p.text(1, set);
            p.be32(2, REG_1);
        })
    }

    /// Continues if it is no key of the set.
    pub(super) fn not_in_set(&mut self, set: &str) -> &mut Self {
        self.expression("lookup", |p| {
            p.text(1, set);
            p.be32(2, REG_1);
            p.be32(5, 1);
        })
    }

    pub(super) fn in_interface(&mut self) -> &mut Self {
        self.meta(META_IN_NAME, REG_1)
    }

    pub(super) fn out_interface(&mut self) -> &mut Self {
        self.meta(META_OUT_NAME, REG_1)
    }

    pub(super) fn both_interfaces(&mut self) -> &mut Self {
        self.meta(META_IN_NAME, REG_1).meta(META_OUT_NAME, REG_2)
    }

    /// Continues for IPv4 packets only.
    pub(super) fn ipv4(&mut self) -> &mut Self {
        self.meta(META_FAMILY, REG_1).compare(CMP_EQUAL, &[2])
    }

    pub(super) fn source(&mut self) -> &mut Self {
        self.payload(REG_1, PAYLOAD_NETWORK, SOURCE, 4)
    }

    pub(super) fn destination(&mut self) -> &mut Self {
        self.payload(REG_1, PAYLOAD_NETWORK, DESTINATION, 4)
    }

    pub(super) fn source_and_in_interface(&mut self) -> &mut Self {
        self.source().meta(META_IN_NAME, PART_9)
    }

    pub(super) fn source_and_out_interface(&mut self) -> &mut Self {
        self.source().meta(META_OUT_NAME, PART_9)
    }

    /// Source, destination, protocol, port.
    pub(super) fn flow(&mut self) -> &mut Self {
        self.source()
            .payload(PART_9, PAYLOAD_NETWORK, DESTINATION, 4)
            .meta(META_PROTOCOL, PART_10)
            .payload(PART_11, PAYLOAD_TRANSPORT, 2, 2)
    }

    /// Destination, protocol, port.
    pub(super) fn service(&mut self) -> &mut Self {
        self.destination().meta(META_PROTOCOL, PART_9).payload(PART_10, PAYLOAD_TRANSPORT, 2, 2)
    }

    /// Continues if the destination is in the network.
    pub(super) fn destination_in(&mut self, network: Ipv4Addr, mask: Ipv4Addr) -> &mut Self {
        self.destination().mask(mask.octets()).compare(CMP_EQUAL, &network.octets())
    }

    /// Continues if the connection is in one of these states.
    pub(super) fn state(&mut self, states: u32) -> &mut Self {
        self.expression("ct", |p| {
            p.be32(1, REG_1);
            p.be32(2, 0);
        })
        .mask(states.to_ne_bytes())
        .compare(CMP_DIFFERENT, &[0; 4])
    }

    pub(super) fn accept(&mut self) {
        self.verdict(VERDICT_ACCEPT, "");
    }

    pub(super) fn drop(&mut self) {
        self.verdict(VERDICT_DROP, "");
    }

    pub(super) fn jump(&mut self, chain: &str) {
        self.verdict(VERDICT_JUMP, chain);
    }

    pub(super) fn go_to(&mut self, chain: &str) {
        self.verdict(VERDICT_GOTO, chain);
    }

    pub(super) fn masquerade(&mut self) {
        self.expression("masq", |_| {});
    }

    /// Counts without a name.
    pub(super) fn count(&mut self) -> &mut Self {
        self.expression("counter", |_| {})
    }
}

/// A chain as the kernel lists it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Chain {
    pub(super) table: String,
    pub(super) name: String,
    /// Number of the hook of a base chain.
    pub(super) hook: Option<u32>,
    pub(super) drops: bool,
}

/// Request for all chains of the family.
pub(super) fn list_chains() -> Messages {
    let mut request = Messages::new();
    add(&mut request, "list firewall chains", GETCHAIN, channel::DUMP, |_| {});
    request
}

pub(super) fn parse_chain(message: &Message<'_>) -> Option<Chain> {
    let attributes = body(message, NEWCHAIN)?;
    let hook = find(attributes, chain::HOOK).and_then(|hook| find(hook, chain::HOOK_NUMBER));
    let policy = find(attributes, chain::POLICY).and_then(be32);
    Some(Chain {
        table: text(find(attributes, chain::TABLE)?).to_owned(),
        name: text(find(attributes, chain::NAME)?).to_owned(),
        hook: hook.and_then(be32),
        drops: policy == Some(POLICY_DROP),
    })
}

/// A rule as the kernel lists it, as far as we need to recognise it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Rule {
    pub(super) chain: String,
    pub(super) handle: u64,
    pub(super) comment: String,
    /// Chain that it jumps or goes to.
    pub(super) target: String,
}

/// Request for all rules of a table.
pub(super) fn list_rules(table: &str) -> Messages {
    let mut request = Messages::new();
    add(&mut request, "list firewall rules", GETRULE, channel::DUMP, |p| {
        p.text(rule::TABLE, table);
    });
    request
}

pub(super) fn parse_rule(message: &Message<'_>) -> Option<Rule> {
    let attributes = body(message, NEWRULE)?;
    let handle = find(attributes, rule::HANDLE)?;
    Some(Rule {
        chain: text(find(attributes, rule::CHAIN)?).to_owned(),
        handle: u64::from_be_bytes(handle.try_into().ok()?),
        comment: find(attributes, rule::USER_DATA).map(comment_of).unwrap_or_default().to_owned(),
        target: find(attributes, rule::EXPRESSIONS).and_then(target_of).unwrap_or_default(),
    })
}

/// The comment among the user data: records of type, length, value.
fn comment_of(mut data: &[u8]) -> &str {
    while let [kind, length, rest @ ..] = data {
        let Some(value) = rest.get(..usize::from(*length)) else { break };
        if *kind == 0 {
            return text(value);
        }
        data = &rest[value.len()..];
    }
    ""
}

fn target_of(expressions: &[u8]) -> Option<String> {
    attributes(expressions).find_map(|(_, expression)| {
        let data = find(expression, EXPRESSION_DATA)?;
        if text(find(expression, EXPRESSION_NAME)?) != "immediate" {
            return None;
        }
        Some(text(find(find(find(data, 2)?, DATA_VERDICT)?, 2)?).to_owned())
    })
}

/// Request for all sets of a table.
pub(super) fn list_sets(table: &str) -> Messages {
    let mut request = Messages::new();
    add(&mut request, "list firewall sets", GETSET, channel::DUMP, |p| p.text(set::TABLE, table));
    request
}

/// Name and key length.
pub(super) fn parse_set(message: &Message<'_>) -> Option<(String, u32)> {
    let attributes = body(message, NEWSET)?;
    let length = find(attributes, set::KEY_LENGTH).and_then(be32).unwrap_or(0);
    Some((text(find(attributes, set::NAME)?).to_owned(), length))
}

/// Request for all elements of a set.
pub(super) fn list_elements(table: &str, set: &str) -> Messages {
    let mut request = Messages::new();
    add(&mut request, "list firewall entries", GETSETELEM, channel::DUMP, |p| {
        p.text(element::TABLE, table);
        p.text(element::SET, set);
    });
    request
}

/// The keys in one message of a dump.
pub(super) fn parse_elements(message: &Message<'_>) -> Option<Vec<Vec<u8>>> {
    let list = find(body(message, NEWSETELEM)?, element::LIST)?;
    let key = |(_, item)| Some(find(find(item, element::KEY)?, DATA_VALUE)?.to_vec());
    Some(attributes(list).filter_map(key).collect())
}

fn body<'a>(message: &Message<'a>, number: u16) -> Option<&'a [u8]> {
    (message.kind == SUBSYSTEM << 8 | number).then_some(())?;
    message.body.get(4..)
}

fn be32(value: &[u8]) -> Option<u32> {
    Some(u32::from_be_bytes(value.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn comments_are_found_among_other_user_data() {
        for (data, expect) in [
            (comment_data("aos-sm"), "aos-sm"),
            ([&[1, 2, 9, 9][..], &comment_data("x")].concat(), "x"),
            (vec![0, 200, b'a'], ""),
            (vec![5], ""),
            (vec![], ""),
        ] {
            assert_eq!(comment_of(&data), expect, "{data:?}");
        }
    }

    proptest! {
        #[test]
        fn any_answer_is_survived(
            number in 0u16..32,
            bytes in proptest::collection::vec(any::<u8>(), 0..200),
        ) {
            for number in [number, NEWCHAIN, NEWRULE, NEWSET, NEWSETELEM] {
                let kind = SUBSYSTEM << 8 | number;
                let message = Message { kind, flags: 0, sequence: 0, body: &bytes };
                let _ = (parse_chain(&message), parse_rule(&message));
                let _ = (parse_set(&message), parse_elements(&message));
            }
        }
    }
}
