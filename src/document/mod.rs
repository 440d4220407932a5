//! JSON documents as the Go releases decode them: configuration file, node configuration, service
//! and image configuration, manifests, columns of a database that is taken over.
//!
//! Pure; any thread. Rules: keys match without regard to case, of several the later one wins,
//! `null` is absent, a wrong type is an error that names key and value, unknown keys are ignored,
//! nothing may follow the top-level value. Not here: defaults and meanings, which belong to the
//! reader of a document.

pub mod duration;
pub mod node_config;
mod rules;
mod value;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::time::Duration;

pub use duration::NumberUnit;
pub use rules::alert_rules;
pub use value::{MAX_DEPTH, MAX_VALUES, Value};

/// Largest document, in bytes.
pub const MAX_SIZE_BYTES: usize = 4 << 20;

const BOM: &str = "\u{feff}";

/// Why a document was refused.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("document of {size} bytes is larger than {MAX_SIZE_BYTES}")]
    TooLarge { size: usize },
    #[error("malformed JSON")]
    Syntax {
        #[source]
        source: serde_json::Error,
    },
    #[error("{key}: {value} is not allowed, expected {allowed}")]
    Value { key: String, value: String, allowed: String },
    #[error("{key} is missing, expected {allowed}")]
    Missing { key: String, allowed: String },
}

type Members = [(String, Value)];

/// A JSON object with its place in the document.
#[derive(Clone, Debug)]
pub struct Object<'a> {
    /// Path of the object as a prefix of its keys: empty or ending with a dot.
    path: String,
    members: Cow<'a, Members>,
}

impl Object<'static> {
    /// Parses a file: no byte order mark.
    pub fn parse(text: &str) -> Result<Self, Error> {
        if text.len() > MAX_SIZE_BYTES {
            return Err(Error::TooLarge { size: text.len() });
        }
        match Value::parse(text).map_err(|source| Error::Syntax { source })? {
            Value::Object(members) => {
                Ok(Self { path: String::new(), members: Cow::Owned(members) })
            }
            other => Err(Error::Value {
                key: "document".to_owned(),
                value: other.to_string(),
                allowed: "an object".to_owned(),
            }),
        }
    }

    /// Parses the text of a message or of a package: a leading byte order mark is tolerated.
    pub fn parse_tolerant(text: &str) -> Result<Self, Error> {
        Self::parse(text.strip_prefix(BOM).unwrap_or(text))
    }
}

impl Object<'_> {
    /// The value of a key; `null` counts as absent.
    pub fn get(&self, key: &str) -> Option<&Value> {
        let (_, value) = self.members.iter().rev().find(|(name, _)| same_key(name, key))?;
        (*value != Value::Null).then_some(value)
    }

    /// Whether the key has a value.
    pub fn has(&self, key: &str) -> bool {
        self.get(key).is_some()
    }

    /// Path of a key within the document, for messages.
    pub fn path_of(&self, key: &str) -> String {
        format!("{}{key}", self.path)
    }

    /// The error for a value that has the right type but is not allowed.
    pub fn refuse(&self, key: &str, allowed: &str) -> Error {
        match self.get(key) {
            Some(value) => wrong(self.path_of(key), value, allowed),
            None => Error::Missing { key: self.path_of(key), allowed: allowed.to_owned() },
        }
    }

    pub fn str(&self, key: &str) -> Result<Option<&str>, Error> {
        self.typed(key, "a string", |value| match value {
            Value::Text(text) => Some(text.as_str()),
            _ => None,
        })
    }

    /// Text that is one of the listed words, compared exactly. Empty = absent.
    pub fn word(&self, key: &str, words: &[&'static str]) -> Result<Option<&'static str>, Error> {
        let Some(text) = self.str(key)?.filter(|text| !text.is_empty()) else { return Ok(None) };
        let found = words.iter().copied().find(|word| *word == text);
        found.map(Some).ok_or_else(|| self.refuse(key, &format!("one of {}", words.join(", "))))
    }

    pub fn opt_bool(&self, key: &str) -> Result<Option<bool>, Error> {
        self.typed(key, "true or false", |value| match value {
            Value::Bool(value) => Some(*value),
            _ => None,
        })
    }

    /// Integer literal without sign, fraction or exponent.
    pub fn opt_u64(&self, key: &str) -> Result<Option<u64>, Error> {
        self.typed(key, "an unsigned integer", as_u64)
    }

    /// As `opt_u64`, within a range.
    pub fn u64_in(&self, key: &str, range: RangeInclusive<u64>) -> Result<Option<u64>, Error> {
        let allowed = format!("an integer from {} to {}", range.start(), range.end());
        self.typed(key, &allowed, |value| as_u64(value).filter(|number| range.contains(number)))
    }

    /// Integer literal without fraction or exponent.
    pub fn opt_i64(&self, key: &str) -> Result<Option<i64>, Error> {
        self.typed(key, "an integer", |value| match value {
            Value::Unsigned(number) => i64::try_from(*number).ok(),
            Value::Negative(number) => Some(*number),
            _ => None,
        })
    }

    /// Any number.
    pub fn opt_f64(&self, key: &str) -> Result<Option<f64>, Error> {
        self.typed(key, "a number", |value| match value {
            // Thresholds and ratios: the 53 bits of a double are enough, as they are in Go.
            Value::Unsigned(number) => Some(*number as f64),
            Value::Negative(number) => Some(*number as f64),
            Value::Float(number) => Some(*number),
            _ => None,
        })
    }

    /// Duration in nanoseconds, perhaps negative.
    pub fn duration_ns(&self, key: &str, unit: NumberUnit) -> Result<Option<i64>, Error> {
        self.typed(key, "a duration such as \"1m30s\", \"PT90S\" or a number", |value| {
            duration::parse_value(value, unit)
        })
    }

    /// Duration that must not be negative.
    pub fn duration(&self, key: &str, unit: NumberUnit) -> Result<Option<Duration>, Error> {
        let Some(ns) = self.duration_ns(key, unit)? else { return Ok(None) };
        let ns = u64::try_from(ns);
        ns.map(|ns| Some(Duration::from_nanos(ns)))
            .map_err(|_| self.refuse(key, "a duration that is not negative"))
    }

    /// Array of strings; `null` elements are empty strings, as in Go.
    pub fn strings(&self, key: &str) -> Result<Option<Vec<String>>, Error> {
        let Some(elements) = self.array(key)? else { return Ok(None) };
        let mut texts = Vec::with_capacity(elements.len());
        for (index, element) in elements.iter().enumerate() {
            match element {
                Value::Text(text) => texts.push(text.clone()),
                Value::Null => texts.push(String::new()),
                other => {
                    return Err(wrong(self.path_of(&format!("{key}[{index}]")), other, "a string"));
                }
            }
        }
        Ok(Some(texts))
    }

    /// Nested object.
    pub fn object(&self, key: &str) -> Result<Option<Object<'_>>, Error> {
        let members = self.typed(key, "an object", |value| match value {
            Value::Object(members) => Some(members),
            _ => None,
        })?;
        let path = || format!("{}{key}.", self.path);
        Ok(members.map(|members| Object { path: path(), members: Cow::Borrowed(members) }))
    }

    /// Array of objects; `null` elements are empty objects, as in Go.
    pub fn objects(&self, key: &str) -> Result<Option<Vec<Object<'_>>>, Error> {
        let Some(elements) = self.array(key)? else { return Ok(None) };
        let mut objects = Vec::with_capacity(elements.len());
        for (index, element) in elements.iter().enumerate() {
            let place = format!("{key}[{index}]");
            let members: &Members = match element {
                Value::Object(members) => members,
                Value::Null => &[],
                other => return Err(wrong(self.path_of(&place), other, "an object")),
            };
            let path = format!("{}{place}.", self.path);
            objects.push(Object { path, members: Cow::Borrowed(members) });
        }
        Ok(Some(objects))
    }

    /// Object used as a map from text to text. Keys keep their case; the later of two equal wins.
    pub fn string_map(&self, key: &str) -> Result<Option<BTreeMap<String, String>>, Error> {
        let Some(object) = self.object(key)? else { return Ok(None) };
        let mut map = BTreeMap::new();
        for (name, value) in object.members.iter() {
            match value {
                Value::Text(text) => map.insert(name.clone(), text.clone()),
                Value::Null => map.insert(name.clone(), String::new()),
                other => return Err(wrong(object.path_of(name), other, "a string")),
            };
        }
        Ok(Some(map))
    }

    /// The member names of this object in order, exactly as they are written.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.members.iter().map(|(name, _)| name.as_str())
    }

    fn array(&self, key: &str) -> Result<Option<&[Value]>, Error> {
        self.typed(key, "an array", |value| match value {
            Value::Array(elements) => Some(elements.as_slice()),
            _ => None,
        })
    }

    fn typed<'s, T>(
        &'s self,
        key: &str,
        allowed: &str,
        convert: impl FnOnce(&'s Value) -> Option<T>,
    ) -> Result<Option<T>, Error> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match convert(value) {
            Some(converted) => Ok(Some(converted)),
            None => Err(wrong(self.path_of(key), value, allowed)),
        }
    }
}

fn wrong(key: String, value: &Value, allowed: &str) -> Error {
    Error::Value { key, value: value.to_string(), allowed: allowed.to_owned() }
}

fn as_u64(value: &Value) -> Option<u64> {
    match value {
        Value::Unsigned(number) => Some(*number),
        _ => None,
    }
}

/// Go folds case in ASCII, and two letters of other scripts fold into ASCII as well.
fn same_key(left: &str, right: &str) -> bool {
    let fold = |c: char| match c {
        '\u{17f}' => 's',
        '\u{212a}' => 'k',
        other => other.to_ascii_lowercase(),
    };
    left.chars().map(fold).eq(right.chars().map(fold))
}

#[cfg(test)]
mod tests;
