//! Override variables: the list of the CM, its limits and its end of life.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::model::desired::{EnvOverride, EnvVariable};
use crate::model::id::InstanceIdent;
use crate::model::status::{EnvStatus, ErrorInfo};

/// Override variables of one instance (R26).
pub const MAX_VARIABLES: usize = 256;
/// Bytes of a name (R26).
pub const MAX_NAME_BYTES: usize = 256;
/// Bytes of a value (R26).
pub const MAX_VALUE_BYTES: usize = 32 * 1024;
/// Bytes of all names and values of a list: what one instance may have.
pub const MAX_LIST_BYTES: usize = MAX_VARIABLES * (MAX_NAME_BYTES + MAX_VALUE_BYTES);
/// Items of a list; each is compared with each instance.
pub const MAX_ITEMS: usize = 4096;
/// Different lists of instances that are remembered.
const MAX_REMEMBERED: usize = 1024;

/// The list in force.
#[derive(Debug, Default)]
pub struct Overrides {
    list: Vec<EnvOverride>,
    /// What an instance gets to which these items of the list apply; most get the same.
    remembered: BTreeMap<Vec<usize>, Arc<[String]>>,
}

impl Overrides {
    /// The stored list; expired variables go with the first `expire`.
    pub fn new(list: Vec<EnvOverride>) -> Self {
        Self { list, remembered: BTreeMap::new() }
    }

    pub fn list(&self) -> &[EnvOverride] {
        &self.list
    }

    /// Replaces the whole list. Variables that are refused or already expired are not applied, nor
    /// those that are too many for one of `idents`, the instances of this node; the answer has a
    /// status for each, in the order of the request.
    pub fn replace<'a>(
        &mut self,
        list: Vec<EnvOverride>,
        idents: impl Iterator<Item = &'a InstanceIdent>,
        now_ms: i64,
    ) -> Vec<EnvStatus> {
        let all_verdicts = verdicts(&list, idents, now_ms);
        let mut answer = Vec::with_capacity(list.len());
        self.remembered.clear();
        self.list.clear();
        for (item, verdicts) in list.into_iter().zip(all_verdicts) {
            let names = item.variables.iter().map(|v| v.name.clone());
            let variables = names.zip(verdicts.iter().cloned()).collect();
            answer.push(EnvStatus { filter: item.filter.clone(), variables });
            let mut verdict = verdicts.iter();
            let mut kept = item;
            kept.variables.retain(|_| verdict.next().is_some_and(Option::is_none));
            if !kept.variables.is_empty() {
                self.list.push(kept);
            }
        }
        answer
    }

    /// Drops what has expired; true = something was dropped.
    pub fn expire(&mut self, now_ms: i64) -> bool {
        let count = |list: &[EnvOverride]| list.iter().map(|i| i.variables.len()).sum::<usize>();
        let before = count(&self.list);
        for item in &mut self.list {
            item.variables.retain(|v| v.ttl_ms.is_none_or(|ttl| ttl >= now_ms));
        }
        self.list.retain(|item| !item.variables.is_empty());
        let has_dropped = count(&self.list) != before;
        if has_dropped {
            self.remembered.clear();
        }
        has_dropped
    }

    /// Unix time in milliseconds at which the next variable expires.
    pub fn next_expiry(&self) -> Option<i64> {
        self.list.iter().flat_map(|item| &item.variables).filter_map(|v| v.ttl_ms).min()
    }

    /// `NAME=value` of all that apply to an instance, in list order. Of equal names the last one
    /// counts. What is too many for an instance that has come later is left out.
    pub fn of(&mut self, ident: &InstanceIdent) -> Arc<[String]> {
        let items = matching(&self.list, ident);
        if let Some(known) = self.remembered.get(&items) {
            return known.clone();
        }
        let mut places = BTreeMap::new();
        let mut chosen: Vec<&EnvVariable> = Vec::new();
        for variable in items.iter().flat_map(|at| &self.list[*at].variables) {
            let place = *places.entry(variable.name.as_str()).or_insert(chosen.len());
            match chosen.get_mut(place) {
                Some(earlier) => *earlier = variable,
                None => chosen.push(variable),
            }
        }
        if chosen.len() > MAX_VARIABLES {
            let count = chosen.len();
            log::warn!("more than {MAX_VARIABLES} override variables ident={ident} count={count}");
            chosen.truncate(MAX_VARIABLES);
        }
        let texts: Arc<[String]> =
            chosen.iter().map(|v| format!("{}={}", v.name, v.value)).collect();
        if self.remembered.len() >= MAX_REMEMBERED {
            self.remembered.clear();
        }
        self.remembered.insert(items, texts.clone());
        texts
    }
}

/// The items of a list that apply to an instance.
fn matching(list: &[EnvOverride], ident: &InstanceIdent) -> Vec<usize> {
    let items = list.iter().take(MAX_ITEMS).enumerate();
    items.filter(|(_, item)| item.filter.matches(ident)).map(|(at, _)| at).collect()
}

/// Why a variable is not applied, for each of each item.
fn verdicts<'a>(
    list: &[EnvOverride],
    idents: impl Iterator<Item = &'a InstanceIdent>,
    now_ms: i64,
) -> Vec<Vec<Option<ErrorInfo>>> {
    // Names that instances get to which the same items apply.
    let mut groups: BTreeMap<Vec<usize>, BTreeSet<&str>> =
        idents.map(|ident| (matching(list, ident), BTreeSet::new())).collect();
    let mut list_bytes = 0;
    let mut all = Vec::with_capacity(list.len());
    for (at, item) in list.iter().enumerate() {
        let mut nobody = BTreeSet::new();
        let reached = groups.iter_mut().filter(|(items, _)| items.binary_search(&at).is_ok());
        let mut reached: Vec<_> = reached.map(|(_, names)| names).collect();
        if reached.is_empty() {
            reached.push(&mut nobody);
        }
        let verdict = |variable| {
            let refused = refusal(variable, now_ms);
            refused.or_else(|| surplus(at, variable, &mut reached, &mut list_bytes))
        };
        all.push(item.variables.iter().map(verdict).collect());
    }
    all
}

/// Why there is no room for a variable, or takes its room.
fn surplus<'a>(
    at: usize,
    variable: &'a EnvVariable,
    reached: &mut [&mut BTreeSet<&'a str>],
    list_bytes: &mut usize,
) -> Option<ErrorInfo> {
    let name = variable.name.as_str();
    let is_full = |names: &BTreeSet<&str>| names.len() >= MAX_VARIABLES && !names.contains(name);
    let with_it = *list_bytes + name.len() + variable.value.len();
    let text = if at >= MAX_ITEMS {
        format!("more than {MAX_ITEMS} items")
    } else if reached.iter().any(|names| is_full(names)) {
        format!("more than {MAX_VARIABLES} variables")
    } else if with_it > MAX_LIST_BYTES {
        format!("more than {MAX_LIST_BYTES} bytes of variables")
    } else {
        *list_bytes = with_it;
        for names in reached {
            names.insert(name);
        }
        return None;
    };
    Some(ErrorInfo::text(text))
}

fn refusal(variable: &EnvVariable, now_ms: i64) -> Option<ErrorInfo> {
    let EnvVariable { name, value, ttl_ms } = variable;
    let text = if ttl_ms.is_some_and(|ttl| ttl < now_ms) {
        "environment variable expired".to_owned()
    } else if name.trim().is_empty() || name.contains(['=', '\0']) {
        format!("invalid variable name {name:?}")
    } else if name.len() > MAX_NAME_BYTES {
        format!("variable name of {} bytes, at most {MAX_NAME_BYTES} are allowed", name.len())
    } else if value.len() > MAX_VALUE_BYTES {
        format!("value of {} bytes, at most {MAX_VALUE_BYTES} are allowed", value.len())
    } else if value.contains('\0') {
        "value contains a NUL character".to_owned()
    } else if name.trim() == "AOS_SECRET" {
        "AOS_SECRET cannot be overridden".to_owned()
    } else {
        return None;
    };
    Some(ErrorInfo::text(text))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::desired::InstanceFilter;
    use crate::model::id::{ServiceId, SubjectId};

    fn variable(name: &str, value: &str, ttl_ms: Option<i64>) -> EnvVariable {
        EnvVariable { name: name.into(), value: value.into(), ttl_ms }
    }

    fn item(service: Option<&str>, variables: Vec<EnvVariable>) -> EnvOverride {
        let filter = InstanceFilter { service_id: service.map(Into::into), ..Default::default() };
        EnvOverride { filter, variables }
    }

    fn ident(service: &str) -> InstanceIdent {
        InstanceIdent {
            service_id: ServiceId::new(service),
            subject_id: SubjectId::new("s"),
            instance: 0,
        }
    }

    #[test]
    fn filters_order_and_expiry() {
        let mut overrides = Overrides::default();
        let status = overrides.replace(
            vec![
                item(None, vec![variable("A", "1", None), variable("OLD", "x", Some(99))]),
                item(Some("b"), vec![variable("A", "2", Some(200))]),
            ],
            [].iter(),
            100,
        );
        assert_eq!(status[0].variables[1].1, Some(ErrorInfo::text("environment variable expired")));
        assert_eq!(*overrides.of(&ident("a")), ["A=1"]);
        assert_eq!(*overrides.of(&ident("b")), ["A=2"]);
        assert_eq!(overrides.next_expiry(), Some(200));
        assert!(!overrides.expire(200));
        assert!(overrides.expire(201));
        assert_eq!(*overrides.of(&ident("b")), ["A=1"]);
    }

    #[test]
    fn limits() {
        let check = |v: EnvVariable, expect: Option<&str>| {
            let status = Overrides::default().replace(vec![item(None, vec![v])], [].iter(), 0);
            let got = status[0].variables[0].1.as_ref().map(|e| e.message.as_str());
            assert_eq!(got, expect);
        };
        check(variable("A", "", None), None);
        check(variable(&"n".repeat(MAX_NAME_BYTES), &"v".repeat(MAX_VALUE_BYTES), None), None);
        check(
            variable(&"n".repeat(257), "", None),
            Some("variable name of 257 bytes, at most 256 are allowed"),
        );
        check(
            variable("A", &"v".repeat(32769), None),
            Some("value of 32769 bytes, at most 32768 are allowed"),
        );
        check(variable("", "", None), Some("invalid variable name \"\""));
        check(variable("A=B", "", None), Some("invalid variable name \"A=B\""));
        check(variable("A", "\0", None), Some("value contains a NUL character"));
        check(variable("AOS_SECRET", "x", None), Some("AOS_SECRET cannot be overridden"));
    }

    fn many(from: usize, count: usize, value: &str) -> Vec<EnvVariable> {
        (from..from + count).map(|i| variable(&format!("V{i}"), value, None)).collect()
    }

    fn errors(status: &[EnvStatus]) -> Vec<String> {
        let error = |(name, error): &(String, Option<ErrorInfo>)| {
            error.as_ref().map(|error| format!("{name}: {}", error.message))
        };
        status.iter().flat_map(|item| &item.variables).filter_map(error).collect()
    }

    #[test]
    fn what_is_too_much_for_an_instance_is_refused_and_not_only_left_out() {
        let (a, b) = (ident("a"), ident("b"));
        let mut overrides = Overrides::default();
        let list = || {
            vec![
                item(Some("a"), many(0, 200, "1")),
                item(Some("b"), many(200, 200, "1")),
                item(None, many(400, 57, "1")),
                item(None, many(400, 1, "2")),
            ]
        };
        for idents in [&[&a, &b][..], &[&a]] {
            let status = overrides.replace(list(), idents.iter().copied(), 0);
            assert_eq!(errors(&status), ["V456: more than 256 variables"]);
            assert_eq!((overrides.of(&a).len(), overrides.of(&b).len()), (256, 256));
            assert!(overrides.of(&b).contains(&"V400=2".to_owned()), "the last one wins");
        }
        // Nobody is there: each item has to keep the limit by itself.
        let status = overrides.replace(list(), [].iter(), 0);
        assert!(errors(&status).is_empty());
        assert_eq!(overrides.of(&a).len(), 256, "an instance that came later");
        let status = overrides.replace(vec![item(None, many(0, 257, ""))], [].iter(), 0);
        assert_eq!(errors(&status), ["V256: more than 256 variables"]);
    }

    #[test]
    fn the_whole_list_has_a_limit() {
        let a = ident("a");
        let value = "v".repeat(MAX_VALUE_BYTES);
        let services = ["a", "b", "c"].map(|service| item(Some(service), many(0, 100, &value)));
        let status = Overrides::default().replace(services.into(), [&a].into_iter(), 0);
        let errors_of_list = errors(&status);
        assert_eq!(errors_of_list.len(), 43);
        assert_eq!(
            errors_of_list[0],
            format!("V57: more than {MAX_LIST_BYTES} bytes of variables")
        );

        let items = (0..=MAX_ITEMS).map(|_| item(None, many(0, 1, ""))).collect();
        let status = Overrides::default().replace(items, [&a].into_iter(), 0);
        assert_eq!(errors(&status), [format!("V0: more than {MAX_ITEMS} items")]);
    }

    #[test]
    fn instances_with_equal_variables_share_them() {
        let mut overrides = Overrides::default();
        let list = vec![item(None, many(0, 3, "1")), item(Some("b"), many(0, 1, "2"))];
        overrides.replace(list, [].iter(), 0);
        let of_a = overrides.of(&ident("a"));
        assert!(Arc::ptr_eq(&of_a, &overrides.of(&ident("c"))));
        assert!(!Arc::ptr_eq(&of_a, &overrides.of(&ident("b"))));
    }
}
