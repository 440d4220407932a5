//! Entrances for the fuzz targets: one function for each parser of what packages and servers send.
//!
//! Only in tests and in builds for fuzzing (`fuzz/`). In: any bytes. Out: nothing; a panic is a bug.
//! What a parser takes is checked against what the rest of the daemon relies on. `fuzz/corpus` has
//! inputs of which each reaches something new; `cargo test` feeds all of them again.

use std::io::{self, Read as _};

use crate::document::NumberUnit;
use crate::image::archive::Archive;
use crate::image::manifest::{LayerDescriptor, Manifest};
use crate::image::names::{self, Meaning};
use crate::image::tar::Reader;
use crate::image::url::Url;
use crate::image::{config, http};
use crate::model::id::Digest;

/// Decompressed content that is read of one input.
const MAX_CONTENT_BYTES: u64 = 1 << 20;
const MAX_DEPTH: usize = 128;

type Entrance = fn(&[u8]);

/// All entrances by the names of their targets.
pub const TARGETS: [(&str, Entrance); 7] = [
    ("archive", archive),
    ("manifest", manifest),
    ("layer_descriptor", layer_descriptor),
    ("image_config", image_config),
    ("service_config", service_config),
    ("http_answer", http::fuzzing::answer),
    ("url", url),
];

/// An archive, compressed or not: headers, names, whiteouts, content.
pub fn archive(input: &[u8]) {
    let Ok(mut archive) = Archive::open(input, "package") else { return };
    let mut reader = Reader::new((&mut archive).take(MAX_CONTENT_BYTES));
    while let Ok(Some(member)) = reader.next() {
        if let Ok(read) = io::copy(&mut reader, &mut io::sink()) {
            assert_eq!(read, member.size);
        }
        assert!(
            names::shown(&member.path)
                .bytes()
                .all(|b| b.is_ascii_graphic() || b == b' ' || b >= 0x80)
        );
        let Ok(path) = names::normalise(&member.path, MAX_DEPTH) else { continue };
        assert!(path.is_empty() || is_beneath(&path));
        if let Ok(Meaning::Whiteout(hidden)) = names::meaning(&path) {
            assert!(is_beneath(&hidden));
        }
    }
}

fn is_beneath(path: &[u8]) -> bool {
    let plain = |name: &[u8]| !matches!(name, b"" | b"." | b"..") && !name.contains(&0);
    path.split(|byte| *byte == b'/').all(plain)
}

/// Paths are made of digests.
fn check_digest(digest: &Digest) {
    assert!(matches!(digest.algorithm(), "sha256" | "sha384" | "sha512"));
    assert!(digest.hex().bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)));
}

/// `manifest.json` of a service.
pub fn manifest(input: &[u8]) {
    let Ok(manifest) = Manifest::parse(input) else { return };
    manifest.configs().chain([&manifest.rootfs]).chain(&manifest.layers).for_each(check_digest);
}

/// `layer.json`.
pub fn layer_descriptor(input: &[u8]) {
    if let Ok(descriptor) = LayerDescriptor::parse(input) {
        check_digest(&descriptor.digest);
    }
}

/// The image configuration of OCI.
pub fn image_config(input: &[u8]) {
    let _ = config::image_config(input);
}

/// The service configuration of Aos.
pub fn service_config(input: &[u8]) {
    let _ = config::service_config(input, NumberUnit::Seconds);
}

/// A URL of the CM, and a redirect on its second line.
pub fn url(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let (first, second) = text.split_once('\n').unwrap_or((text, ""));
    let Ok(url) = Url::parse(first) else { return };
    for url in [Some(&url), url.join(second).ok().as_ref()].into_iter().flatten() {
        // Both become part of a request.
        let safe = |text: &str| text.bytes().all(|byte| byte > b' ' && byte != 0x7f);
        assert!(safe(&url.target) && url.target.starts_with('/'), "{url:?}");
        assert!(safe(&url.authority()) && !url.host.is_empty(), "{url:?}");
    }
}

#[cfg(test)]
#[test]
fn corpus() {
    crate::sys::testing::replay(&TARGETS);
}
