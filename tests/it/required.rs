//! Tests by name: what ties requirements to the tests that stand for them.

use std::fs;
use std::path::Path;

/// A requirement, and its tests: files from the top of the tree, and functions in each.
pub type Row = (&'static str, &'static [(&'static str, &'static [&'static str])]);

/// Each of the tests exists.
pub fn check(rows: &[Row]) {
    for (requirement, tests) in rows {
        for (file, functions) in *tests {
            for function in *functions {
                assert!(is_test(file, function), "{requirement}: {function} is no test of {file}");
            }
        }
    }
}

/// Whether a file has a test of this name, by itself or made by the macro `real!`.
fn is_test(file: &str, name: &str) -> bool {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
    let text = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{file}: {e}"));
    let made = text.split_once("\nreal! {").is_some_and(|(_, rest)| {
        rest.lines()
            .any(|line| line.trim_start().strip_prefix(name).is_some_and(|r| r.starts_with(':')))
    });
    made || text.split("#[test]").skip(1).any(|rest| {
        let next = rest.split_once("fn ").map_or("", |(_, rest)| rest);
        next.strip_prefix(name).is_some_and(|rest| rest.starts_with('('))
    })
}

#[test]
fn a_name_is_a_test_or_none() {
    let here = "tests/it/required.rs";
    assert!(is_test(here, "a_name_is_a_test_or_none"));
    assert!(is_test("src/runtime/crun/tests.rs", "runc_hangs"));
    for none in ["is_test", "check", "a_name_is_a_test", "a_name_is_a_test_or_none_"] {
        assert!(!is_test(here, none), "{none}");
    }
}
