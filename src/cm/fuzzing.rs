//! Entrance for the fuzz target of messages. Only in tests and in builds for fuzzing; see
//! `image::fuzzing`.

use crate::cm::dialect::Dialect as _;
use crate::cm::v4::V4;

type Entrance = fn(&[u8]);

/// All entrances by the names of their targets.
pub const TARGETS: [(&str, Entrance); 1] = [("cm_message", message)];

/// A message of the CM.
pub fn message(input: &[u8]) {
    let _ = V4 { allow_root_uid: false }.decode(input);
}

#[cfg(test)]
#[test]
fn corpus() {
    crate::sys::testing::replay(&TARGETS);
}
