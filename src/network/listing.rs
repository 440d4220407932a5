//! Pure: what of ours, and of others, stands in nf_tables: requests for lists and the reading of
//! the answers. Answers are not trusted: what does not fit is left out.

use super::channel;
use super::expressions::CMP_DIFFERENT;
use super::nft::{
    DATA_VALUE, DATA_VERDICT, EXPRESSION_DATA, EXPRESSION_NAME, FAMILY_INET, FAMILY_UNSPEC,
    POLICY_DROP, SUBSYSTEM, add, chain, element, message, object, rule, set, table,
};
use super::wire::{Message, Messages, attributes, find, text};

const GENERATION_ID: u16 = 1;
const COMPARE_OPERATOR: u16 = 2;
const COMPARE_DATA: u16 = 3;

/// Request for all tables of our family.
pub(super) fn list_tables() -> Messages {
    let mut request = Messages::new();
    add(&mut request, "list firewall tables", message::GETTABLE, channel::DUMP, |_| {});
    request
}

/// Name of a table, and how many chains, sets and objects are in it.
pub(super) fn parse_table(message: &Message<'_>) -> Option<(String, u32)> {
    let attributes = body(message, message::NEWTABLE)?;
    let parts = find(attributes, table::USE).and_then(be32)?;
    Some((text(find(attributes, table::NAME)?).to_owned(), parts))
}

/// A chain as the kernel lists it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Chain {
    /// Of the family in which our table is.
    pub(super) inet: bool,
    pub(super) table: String,
    pub(super) name: String,
    /// Number of the hook of a base chain.
    pub(super) hook: Option<u32>,
    pub(super) drops: bool,
}

/// Request for all chains of all families.
pub(super) fn list_chains() -> Messages {
    let mut request = Messages::new();
    request.add("list firewall chains", SUBSYSTEM << 8 | message::GETCHAIN, channel::DUMP, |p| {
        p.raw(&[FAMILY_UNSPEC, 0, 0, 0]);
    });
    request
}

pub(super) fn parse_chain(message: &Message<'_>) -> Option<Chain> {
    let attributes = body(message, message::NEWCHAIN)?;
    let hook = find(attributes, chain::HOOK).and_then(|hook| find(hook, chain::HOOK_NUMBER));
    let policy = find(attributes, chain::POLICY).and_then(be32);
    Some(Chain {
        inet: message.body.first() == Some(&FAMILY_INET),
        table: text(find(attributes, chain::TABLE)?).to_owned(),
        name: text(find(attributes, chain::NAME)?).to_owned(),
        hook: hook.and_then(be32),
        drops: policy == Some(POLICY_DROP),
    })
}

/// Request for the number of the last change of nf_tables, whoever made it.
pub(super) fn get_generation() -> Messages {
    let mut request = Messages::new();
    add(&mut request, "read firewall generation", message::GETGEN, channel::REQUEST, |_| {});
    request
}

pub(super) fn parse_generation(message: &Message<'_>) -> Option<u32> {
    find(body(message, message::NEWGEN)?, GENERATION_ID).and_then(be32)
}

/// A rule as the kernel lists it, as far as we need to recognise it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Rule {
    pub(super) chain: String,
    pub(super) handle: u64,
    pub(super) comment: String,
    /// Chain that it jumps or goes to.
    pub(super) target: String,
    /// One of the successor generation: masquerades what leaves by another link than a bridge of it.
    pub(super) is_successor: bool,
}

/// Request for all rules of a table.
pub(super) fn list_rules(table: &str) -> Messages {
    let mut request = Messages::new();
    add(&mut request, "list firewall rules", message::GETRULE, channel::DUMP, |p| {
        p.text(rule::TABLE, table);
    });
    request
}

pub(super) fn parse_rule(message: &Message<'_>) -> Option<Rule> {
    let attributes = body(message, message::NEWRULE)?;
    let handle = find(attributes, rule::HANDLE)?;
    let expressions = find(attributes, rule::EXPRESSIONS).unwrap_or_default();
    Some(Rule {
        chain: text(find(attributes, rule::CHAIN)?).to_owned(),
        handle: u64::from_be_bytes(handle.try_into().ok()?),
        comment: find(attributes, rule::USER_DATA).map(comment_of).unwrap_or_default().to_owned(),
        target: target_of(expressions).unwrap_or_default(),
        is_successor: is_successor_masquerade(expressions),
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

fn is_successor_masquerade(expressions: &[u8]) -> bool {
    let name = |expression| find(expression, EXPRESSION_NAME).map(text).unwrap_or_default();
    let masquerades = attributes(expressions).any(|(_, expression)| name(expression) == "masq");
    let not_a_bridge = |expression| {
        let data = find(expression, EXPRESSION_DATA)?;
        let differs = find(data, COMPARE_OPERATOR).and_then(be32)? == CMP_DIFFERENT;
        let value = find(find(data, COMPARE_DATA)?, DATA_VALUE)?;
        Some(name(expression) == "cmp" && differs && value.starts_with(b"br-"))
    };
    let mut all = attributes(expressions);
    masquerades && all.any(|(_, expression)| not_a_bridge(expression) == Some(true))
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
    add(&mut request, "list firewall sets", message::GETSET, channel::DUMP, |p| {
        p.text(set::TABLE, table)
    });
    request
}

/// Name and key length.
pub(super) fn parse_set(message: &Message<'_>) -> Option<(String, u32)> {
    let attributes = body(message, message::NEWSET)?;
    let length = find(attributes, set::KEY_LENGTH).and_then(be32).unwrap_or(0);
    Some((text(find(attributes, set::NAME)?).to_owned(), length))
}

/// Request for all elements of a set.
pub(super) fn list_elements(table: &str, set: &str) -> Messages {
    let mut request = Messages::new();
    add(&mut request, "list firewall entries", message::GETSETELEM, channel::DUMP, |p| {
        p.text(element::TABLE, table);
        p.text(element::SET, set);
    });
    request
}

/// An element of a set.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Element {
    pub(super) key: Vec<u8>,
    /// Object that a map leads to; empty in a plain set.
    pub(super) object: String,
}

/// The elements in one message of a dump.
pub(super) fn parse_elements(message: &Message<'_>) -> Option<Vec<Element>> {
    let list = find(body(message, message::NEWSETELEM)?, element::LIST)?;
    let element = |(_, item)| {
        Some(Element {
            key: find(find(item, element::KEY)?, DATA_VALUE)?.to_vec(),
            object: find(item, element::OBJECT).map(text).unwrap_or_default().to_owned(),
        })
    };
    Some(attributes(list).filter_map(element).collect())
}

/// What a named object counts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Count {
    /// Bytes so far.
    Counter { bytes: u64 },
    /// Bytes so far, and how many are too many.
    Quota { bytes: u64, limit: u64 },
    /// Bytes per second.
    Speed { rate: u64 },
}

/// Request for all counters or all quotas of a table.
pub(super) fn list_objects(table: &str, kind: u32, then: Afterwards) -> Messages {
    let mut request = Messages::new();
    let number = match then {
        Afterwards::Keep => message::GETOBJ,
        Afterwards::Reset => message::GETOBJ_RESET,
    };
    add(&mut request, "list traffic counters", number, channel::DUMP, |p| {
        p.text(object::TABLE, table);
        p.be32(object::TYPE, kind);
    });
    request
}

/// What happens to counters that were read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Afterwards {
    Keep,
    /// They begin again, and a quota that was reached lets packets pass again.
    Reset,
}

/// Adds a request for one object.
pub(super) fn get_object(request: &mut Messages, table: &str, kind: u32, name: &str) {
    add(request, "read traffic counter", message::GETOBJ, channel::REQUEST, |p| {
        p.text(object::TABLE, table);
        p.text(object::NAME, name);
        p.be32(object::TYPE, kind);
    });
}

/// Name and count of an object; `None` = it counts nothing.
pub(super) fn parse_object(message: &Message<'_>) -> Option<(String, Count)> {
    let attributes = body(message, message::NEWOBJ)?;
    let name = text(find(attributes, object::NAME)?).to_owned();
    let data = find(attributes, object::DATA)?;
    let count = match find(attributes, object::TYPE).and_then(be32)? {
        object::COUNTER => {
            Count::Counter { bytes: find(data, object::COUNTER_BYTES).and_then(be64)? }
        }
        object::QUOTA => Count::Quota {
            bytes: find(data, object::QUOTA_CONSUMED).and_then(be64)?,
            limit: find(data, object::QUOTA_BYTES).and_then(be64)?,
        },
        object::LIMIT => Count::Speed { rate: find(data, object::LIMIT_RATE).and_then(be64)? },
        _ => return None,
    };
    Some((name, count))
}

/// What somebody did to nf_tables, as the kernel announces it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Notice {
    /// Something of this table was deleted.
    Deleted { table: String },
    /// A quota has been reached, or an object is new.
    Counted { table: String, object: String, count: Count },
}

/// `None`: of no interest.
pub(super) fn parse_notice(message: &Message<'_>) -> Option<Notice> {
    let number = message.kind.checked_sub(SUBSYSTEM << 8)?;
    let attributes = message.body.get(4..)?;
    // The name of the table has this number in all of them.
    let table = text(find(attributes, super::nft::table::NAME)?).to_owned();
    match number {
        message::DELTABLE
        | message::DELCHAIN
        | message::DELRULE
        | message::DELSET
        | message::DELSETELEM
        | message::DELOBJ => Some(Notice::Deleted { table }),
        message::NEWOBJ => {
            let (object, count) = parse_object(message)?;
            Some(Notice::Counted { table, object, count })
        }
        _ => None,
    }
}

fn body<'a>(message: &Message<'a>, number: u16) -> Option<&'a [u8]> {
    (message.kind == SUBSYSTEM << 8 | number).then_some(())?;
    message.body.get(4..)
}

fn be32(value: &[u8]) -> Option<u32> {
    Some(u32::from_be_bytes(value.try_into().ok()?))
}

fn be64(value: &[u8]) -> Option<u64> {
    Some(u64::from_be_bytes(value.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::nft::comment_data;
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
            for number in [number, message::NEWCHAIN, message::NEWRULE, message::NEWSET, message::NEWSETELEM, message::NEWOBJ] {
                let kind = SUBSYSTEM << 8 | number;
                let message = Message { kind, flags: 0, sequence: 0, body: &bytes };
                let _ = (parse_chain(&message), parse_rule(&message));
                let _ = (parse_set(&message), parse_elements(&message));
                let _ = (parse_object(&message), parse_notice(&message));
            }
        }
    }
}
