//! Being written.
#![allow(unused_crate_dependencies)]

mod unit;

fn main() {}
