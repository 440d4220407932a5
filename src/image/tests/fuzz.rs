//! Mutated input for every parser of foreign data: whatever comes, it ends, and without a panic.
//!
//! Each run starts from the seeds below and keeps what a parser took, so that later mutations get
//! deeper. `FUZZ_SECONDS` (default 1) is the time for each parser; `ci/fuzz` takes a minute. A
//! failing input is printed in hexadecimal and belongs into `SEEDS` of its parser then.

use std::time::Duration;

use super::fixture::{Archive, Image};
use super::*;
use crate::document::duration;
use crate::image::manifest::LayerDescriptor;
use crate::image::tar::Reader;

/// Longest input.
const MAX_INPUT: usize = 16 << 10;
/// Inputs that are kept.
const MAX_KEPT: usize = 256;
const WORDS: [&[u8]; 12] = [
    b"null",
    b"-1",
    b"18446744073709551616",
    b"1e999",
    b"{}",
    b"[]",
    b"\"\"",
    b"\\u0000",
    b"\0\0",
    b"sha256:",
    b"digest",
    b"\xff\xff\xff\xff",
];

struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let value = self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 32;
        usize::try_from(value).unwrap() % limit.max(1)
    }

    fn mutate(&mut self, input: &mut Vec<u8>) {
        for _ in 0..=self.below(4) {
            let at = self.below(input.len());
            let length = self.below(32).min(input.len() - at.min(input.len()));
            match self.below(6) {
                0 if !input.is_empty() => input[at] ^= 1 << self.below(8),
                1 if !input.is_empty() => input[at] = u8::try_from(self.below(256)).unwrap(),
                2 => drop(input.drain(at..at + length)),
                3 => {
                    let copy = input[at..at + length].to_vec();
                    let to = self.below(input.len() + 1);
                    input.splice(to..to, copy);
                }
                4 => input.truncate(at),
                _ => {
                    let word = WORDS[self.below(WORDS.len())];
                    input.splice(at..at, word.iter().copied());
                }
            }
        }
        input.truncate(MAX_INPUT);
    }
}

/// Feeds `parse` until the time is over; it says whether it took the input.
fn fuzz(seeds: &[&[u8]], parse: fn(&[u8]) -> bool) {
    let seconds = std::env::var("FUZZ_SECONDS").ok().and_then(|text| text.parse().ok());
    let end = sys::time::monotonic() + Duration::from_secs(seconds.unwrap_or(1));
    let mut kept: Vec<Vec<u8>> = seeds.iter().map(|seed| seed.to_vec()).collect();
    for seed in seeds {
        parse(seed);
    }
    let mut random = Random(0x5EED);
    let (mut runs, mut taken) = (0u64, 0u64);
    while sys::time::monotonic() < end {
        let mut input = kept[random.below(kept.len())].clone();
        random.mutate(&mut input);
        let shown = input.clone();
        let took = std::panic::catch_unwind(move || parse(&input))
            .unwrap_or_else(|_| panic!("failing input: {}", digest::hex(&shown)));
        runs += 1;
        if took {
            taken += 1;
            let at = random.below(MAX_KEPT);
            if kept.len() < MAX_KEPT { kept.push(shown) } else { kept[at] = shown }
        }
    }
    println!("inputs={runs} taken={taken}");
    assert!(taken > 0, "nothing was ever taken: the seeds are wrong");
}

#[test]
fn tar_archives() {
    let archive = Archive::new().dir("d/", 0o755).file("d/f", b"content").link("l", "f");
    let archive = archive.hard("h", "d/f").deep(60).bytes();
    fuzz(&[&archive], |input| {
        let mut reader = Reader::new(input);
        loop {
            match reader.next() {
                Ok(Some(_)) => {
                    let mut sink = [0; 512];
                    while matches!(reader.read(&mut sink), Ok(1..)) {}
                }
                Ok(None) => return true,
                Err(_) => return false,
            }
        }
    });
}

#[test]
fn manifests() {
    let manifest = Image::new(Vec::new()).manifest();
    fuzz(&[manifest.as_bytes()], |input| Manifest::parse(input).is_ok());
}

#[test]
fn layer_descriptors() {
    let text = format!(
        r#"{{"digest":"sha256:{}","size":1,"platform":{{"os.version":"1"}}}}"#,
        "0".repeat(64)
    );
    fuzz(&[text.as_bytes()], |input| LayerDescriptor::parse(input).is_ok());
}

#[test]
fn service_configurations() {
    let text = br#"{"created":"2020-01-01T00:00:00Z","hostname":"h","sysctl":{"a":"b"},
        "runParameters":{"startInterval":"PT1M","startBurst":3},"offlineTTL":"10h",
        "quotas":{"cpuLimit":10,"ramLimit":"1024","pidsLimit":5},"devices":[{"name":"d",
        "permissions":"rwm"}],"resources":["r"],"permissions":{"s":{"f":"rw"}},
        "alertRules":{"ram":{"minTimeout":"PT1S","minThreshold":1.5,"maxThreshold":80}}}"#;
    fuzz(&[text, b"{}"], |input| config::service_config(input, NumberUnit::Seconds).is_ok());
}

#[test]
fn durations() {
    fuzz(&[b"1h2m3s", b"PT1H2M", b"P1DT2S", b"1.5ms"], |input| {
        std::str::from_utf8(input).is_ok_and(|text| duration::parse_text(text).is_some())
    });
}
