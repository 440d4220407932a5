//! Entrances for the fuzz targets of texts. Only in tests and in builds for fuzzing; see
//! `image::fuzzing`.

use super::{NumberUnit, duration, node_config};
use crate::calendar;

type Entrance = fn(&[u8]);

/// All entrances by the names of their targets.
pub const TARGETS: [(&str, Entrance); 3] =
    [("duration", duration), ("node_config", node_config), ("time", time)];

/// A duration in any of its notations.
pub fn duration(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let Some(ns) = duration::parse_text(text) else { return };
    let written = duration::format_ns(ns);
    assert_eq!(duration::parse_text(&written), Some(ns), "{text:?} becomes {written:?}");
}

/// The node configuration of the CM.
pub fn node_config(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let _ = node_config::parse(text, NumberUnit::Seconds);
    let _ = node_config::parse_new(text, NumberUnit::Auto);
}

/// A time as databases, documents and the kernel log have it.
pub fn time(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let Some(ms) = calendar::parse(text) else { return };
    let written = calendar::to_rfc3339(ms);
    assert_eq!(calendar::parse(&written), Some(ms), "{text:?} becomes {written:?}");
}

#[cfg(test)]
#[test]
fn corpus() {
    crate::sys::testing::replay(&TARGETS);
}
