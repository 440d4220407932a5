//! Override variables: the list of the CM, its limits and its end of life.

use crate::model::desired::{EnvOverride, EnvVariable};
use crate::model::id::InstanceIdent;
use crate::model::status::{EnvStatus, ErrorInfo};

/// Override variables of one instance (R26).
pub const MAX_VARIABLES: usize = 256;
/// Bytes of a name (R26).
pub const MAX_NAME_BYTES: usize = 256;
/// Bytes of a value (R26).
pub const MAX_VALUE_BYTES: usize = 32 * 1024;

/// The list in force.
#[derive(Debug, Default)]
pub struct Overrides {
    list: Vec<EnvOverride>,
}

impl Overrides {
    /// The stored list; expired variables go with the first `expire`.
    pub fn new(list: Vec<EnvOverride>) -> Self {
        Self { list }
    }

    pub fn list(&self) -> &[EnvOverride] {
        &self.list
    }

    /// Replaces the whole list. Variables that are refused or already expired are not applied; the
    /// answer has a status for each, in the order of the request.
    pub fn replace(&mut self, list: Vec<EnvOverride>, now_ms: i64) -> Vec<EnvStatus> {
        let mut answer = Vec::with_capacity(list.len());
        self.list = Vec::with_capacity(list.len());
        for item in list {
            let verdicts: Vec<Option<ErrorInfo>> =
                item.variables.iter().enumerate().map(|(i, v)| refusal(v, i, now_ms)).collect();
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
        count(&self.list) != before
    }

    /// Unix time in milliseconds at which the next variable expires.
    pub fn next_expiry(&self) -> Option<i64> {
        self.list.iter().flat_map(|item| &item.variables).filter_map(|v| v.ttl_ms).min()
    }

    /// `NAME=value` of all that apply to an instance, in list order.
    pub fn of(&self, ident: &InstanceIdent) -> Vec<String> {
        let items = self.list.iter().filter(|item| item.filter.matches(ident));
        let texts =
            items.flat_map(|item| &item.variables).map(|v| format!("{}={}", v.name, v.value));
        texts.take(MAX_VARIABLES).collect()
    }
}

fn refusal(variable: &EnvVariable, index: usize, now_ms: i64) -> Option<ErrorInfo> {
    let EnvVariable { name, value, ttl_ms } = variable;
    let text = if ttl_ms.is_some_and(|ttl| ttl < now_ms) {
        "environment variable expired".to_owned()
    } else if index >= MAX_VARIABLES {
        format!("more than {MAX_VARIABLES} variables")
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
            100,
        );
        assert_eq!(status[0].variables[1].1, Some(ErrorInfo::text("environment variable expired")));
        assert_eq!(overrides.of(&ident("a")), ["A=1"]);
        assert_eq!(overrides.of(&ident("b")), ["A=1", "A=2"]);
        assert_eq!(overrides.next_expiry(), Some(200));
        assert!(!overrides.expire(200));
        assert!(overrides.expire(201));
        assert_eq!(overrides.of(&ident("b")), ["A=1"]);
    }

    #[test]
    fn limits() {
        let check = |v: EnvVariable, expect: Option<&str>| {
            let status = Overrides::default().replace(vec![item(None, vec![v])], 0);
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
        let many = (0..=MAX_VARIABLES).map(|i| variable(&format!("V{i}"), "", None)).collect();
        let status = Overrides::default().replace(vec![item(None, many)], 0);
        assert!(status[0].variables[MAX_VARIABLES - 1].1.is_none());
        assert!(status[0].variables[MAX_VARIABLES].1.is_some());
    }
}
