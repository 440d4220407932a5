//! Arguments of a bench: `--flag VALUE`; cargo adds `--bench`.

use std::env;
use std::path::PathBuf;
use std::str::FromStr;

use super::{Outcome, host};

/// Value of a flag of the command line.
pub(crate) fn value(flag: &str) -> Outcome<Option<String>> {
    let mut arguments = env::args().skip_while(|argument| argument != flag).skip(1);
    match (is_set(flag), arguments.next()) {
        (false, _) => Ok(None),
        (true, Some(value)) => Ok(Some(value)),
        (true, None) => Err(format!("{flag} needs a value").into()),
    }
}

pub(crate) fn is_set(flag: &str) -> bool {
    env::args().any(|argument| argument == flag)
}

/// A number from the command line, or the default.
pub(crate) fn number<T: FromStr>(flag: &str, default: T) -> Outcome<T> {
    match value(flag)? {
        None => Ok(default),
        Some(text) => text.parse().map_err(|_| format!("{flag}: {text:?} is no number").into()),
    }
}

/// The installed ones of the runtimes named by `--runtime` (default: crun and runc).
pub(crate) fn runtimes() -> Outcome<Vec<PathBuf>> {
    let names = value("--runtime")?.unwrap_or_else(|| "crun,runc".to_owned());
    let found: Vec<_> = names.split(',').filter_map(|name| host::find(name).ok()).collect();
    if found.is_empty() {
        return Err(format!("none of {names} is installed").into());
    }
    Ok(found)
}
