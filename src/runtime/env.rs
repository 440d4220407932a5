//! Environment of an instance: the merge rule and who may set what.
//!
//! Pure, any thread. Variables are compared by the trimmed text before the first `=` (all of it
//! when there is none); a later one takes the place of an earlier one. `AOS_SECRET` comes from the
//! daemon alone; resources of the node set no `AOS_*` variable at all; the image and the override
//! variables may.

/// Bytes that the variables of one resource may have together.
pub const MAX_RESOURCE_ENV_BYTES: usize = 32 * 1024;

const SECRET: &str = "AOS_SECRET";
const OWN_PREFIX: &str = "AOS_";

/// A variable that cannot be handed to a process.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("environment variable {name:?} contains a NUL character")]
    Nul { name: String },
    #[error("resource {resource} has a malformed environment variable name {name:?}")]
    Name { resource: String, name: String },
    #[error("resource {resource} has more than {MAX_RESOURCE_ENV_BYTES} bytes of environment")]
    TooLong { resource: String },
}

/// Variables in order, each name once.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Env(Vec<String>);

impl Env {
    /// Sets a variable of the daemon itself.
    pub fn set(&mut self, name: &str, value: &str) -> Result<(), Error> {
        self.put(format!("{name}={value}"))
    }

    /// Merges variables of the image or of the override list; an attempt to set the secret is
    /// ignored, and so is an entry without a name.
    pub fn merge(&mut self, entries: &[String]) -> Result<(), Error> {
        for entry in entries {
            match name(entry) {
                "" => log::warn!("environment variable without a name is ignored"),
                SECRET => log::warn!("{SECRET} is set by the daemon alone, other value ignored"),
                _ => self.put(entry.clone())?,
            }
        }
        Ok(())
    }

    /// Merges the variables of a resource of the node.
    pub fn merge_resource(&mut self, resource: &str, entries: &[String]) -> Result<(), Error> {
        if entries.iter().map(String::len).sum::<usize>() > MAX_RESOURCE_ENV_BYTES {
            return Err(Error::TooLong { resource: resource.to_owned() });
        }
        for entry in entries {
            let name = name(entry);
            if !is_identifier(name) || !entry.contains('=') {
                let name = name.to_owned();
                return Err(Error::Name { resource: resource.to_owned(), name });
            }
            if name.starts_with(OWN_PREFIX) {
                log::warn!("resource {resource} must not set {name}, ignored");
                continue;
            }
            self.put(entry.clone())?;
        }
        Ok(())
    }

    /// The entries, `NAME=value`. A name without a value is no variable: a runtime refuses it.
    pub fn into_entries(mut self) -> Vec<String> {
        self.0.retain(|entry| {
            let is_variable = entry.contains('=');
            if !is_variable {
                log::warn!("variable without a value ignored name={entry}");
            }
            is_variable
        });
        self.0
    }

    fn put(&mut self, entry: String) -> Result<(), Error> {
        if entry.contains('\0') {
            return Err(Error::Nul { name: name(&entry).to_owned() });
        }
        match self.0.iter_mut().find(|old| name(old) == name(&entry)) {
            Some(old) => *old = entry,
            None => self.0.push(entry),
        }
        Ok(())
    }
}

fn name(entry: &str) -> &str {
    entry.split_once('=').map_or(entry, |(name, _)| name).trim()
}

fn is_identifier(name: &str) -> bool {
    let mut bytes = name.bytes();
    bytes.next().is_some_and(|b| b.is_ascii_alphabetic() || b == b'_')
        && bytes.all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owned(entries: &[&str]) -> Vec<String> {
        entries.iter().map(|&entry| entry.to_owned()).collect()
    }

    fn check_merge(start: &[&str], more: &[&str], expect: &[&str]) {
        let mut env = Env(owned(start));
        env.merge(&owned(more)).unwrap();
        assert_eq!(env.into_entries(), owned(expect), "{start:?} + {more:?}");
    }

    #[test]
    fn a_later_variable_takes_the_place_of_an_earlier_one() {
        check_merge(
            &["PATH=/a", "TERM=xterm"],
            &[" TERM =vt100", "X", "X=1", "PATH=/b"],
            &["PATH=/b", " TERM =vt100", "X=1"],
        );
        check_merge(&[], &["A=1=2", "A=3"], &["A=3"]);
        check_merge(&["AB=1"], &["A=2"], &["AB=1", "A=2"]);
        check_merge(&["A=1"], &[], &["A=1"]);
        check_merge(&["A=1", "B=1"], &["A", "C"], &["B=1"]);
        check_merge(&["A=1"], &["a=2", "", "=3", "  =4"], &["A=1", "a=2"]);
    }

    #[test]
    fn nothing_replaces_the_secret() {
        check_merge(
            &["AOS_SERVICE_ID=s", "AOS_SECRET=x"],
            &["AOS_SECRET=y", " AOS_SECRET =z", "AOS_SECRET", "AOS_SERVICE_ID=t"],
            &["AOS_SERVICE_ID=t", "AOS_SECRET=x"],
        );
        check_merge(&["A=1"], &["AOS_SECRET=y"], &["A=1"]);
    }

    #[test]
    fn a_nul_is_refused() {
        let result = Env::default().merge(&owned(&["A=1", "B=\0"]));
        assert_eq!(result, Err(Error::Nul { name: "B".into() }));
        assert!(Env::default().set("AOS_SECRET", "a\0").is_err());
    }

    #[test]
    fn resources_set_well_named_variables_of_their_own() {
        let check = |entry: &str, expect: Option<&[&str]>| {
            let mut env = Env(owned(&["AOS_SECRET=x", "AOS_INSTANCE_ID=i", "MODE=a"]));
            let result = env.merge_resource("res", &owned(&[entry]));
            assert_eq!(result.is_ok(), expect.is_some(), "{entry:?}");
            if let Some(expect) = expect {
                assert_eq!(env.into_entries(), owned(expect), "{entry:?}");
            }
        };
        let same: &[&str] = &["AOS_SECRET=x", "AOS_INSTANCE_ID=i", "MODE=a"];
        check("MODE=b", Some(&["AOS_SECRET=x", "AOS_INSTANCE_ID=i", "MODE=b"]));
        check("_9=", Some(&["AOS_SECRET=x", "AOS_INSTANCE_ID=i", "MODE=a", "_9="]));
        check("AOS_SECRET=y", Some(same));
        check("AOS_INSTANCE_ID=y", Some(same));
        check("AOS_NEW=y", Some(same));
        for bad in ["", "=1", "9A=1", "A-B=1", "A B=1", "Ä=1", "NAME", "A=\0"] {
            check(bad, None);
        }
        let longest = format!("A={}", "x".repeat(MAX_RESOURCE_ENV_BYTES - 2));
        check(&longest, Some(&["AOS_SECRET=x", "AOS_INSTANCE_ID=i", "MODE=a", &longest]));
        check(&format!("{longest}x"), None);
    }
}
