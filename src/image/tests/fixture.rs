//! Builds packages.

use std::io::Write;

use ::tar::{Builder, EntryType, Header};
use flate2::Compression;
use flate2::write::GzEncoder;
use sha2::{Digest as _, Sha256};

use crate::image::digest::hex;

pub(super) fn gzip(content: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(content).unwrap();
    encoder.finish().unwrap()
}

pub(super) fn digest_of(content: &[u8]) -> String {
    format!("sha256:{}", hex(&Sha256::digest(content)))
}

/// An archive of members.
pub(super) struct Archive(Builder<Vec<u8>>);

impl Archive {
    pub(super) fn new() -> Self {
        Self(Builder::new(Vec::new()))
    }

    pub(super) fn member(
        mut self,
        name: &str,
        kind: EntryType,
        mode: u32,
        link: &str,
        content: &[u8],
    ) -> Self {
        let mut header = Header::new_gnu();
        let bytes = &mut header.as_old_mut().name;
        bytes[..name.len()].copy_from_slice(name.as_bytes());
        let bytes = &mut header.as_old_mut().linkname;
        bytes[..link.len()].copy_from_slice(link.as_bytes());
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(1000);
        header.set_gid(1000);
        header.set_mtime(1_000_000);
        header.set_size(content.len() as u64);
        header.set_cksum();
        self.0.append(&header, content).unwrap();
        self
    }

    pub(super) fn file(self, name: &str, content: &[u8]) -> Self {
        self.member(name, EntryType::Regular, 0o644, "", content)
    }

    pub(super) fn dir(self, name: &str, mode: u32) -> Self {
        self.member(name, EntryType::Directory, mode, "", b"")
    }

    pub(super) fn link(self, name: &str, target: &str) -> Self {
        self.member(name, EntryType::Symlink, 0o777, target, b"")
    }

    pub(super) fn hard(self, name: &str, target: &str) -> Self {
        self.member(name, EntryType::Link, 0o644, target, b"")
    }

    /// A file below so many components, its own included.
    pub(super) fn deep(mut self, depth: usize) -> Self {
        let mut header = Header::new_gnu();
        header.set_mode(0o644);
        header.set_size(0);
        let path = "d/".repeat(depth - 1) + "f";
        self.0.append_data(&mut header, path, &b""[..]).unwrap();
        self
    }

    pub(super) fn bytes(self) -> Vec<u8> {
        self.0.into_inner().unwrap()
    }
}

/// A service image; `package` packs it.
pub(super) struct Image {
    /// Archive of the root file system, packed or not.
    pub(super) rootfs: Vec<u8>,
    pub(super) image_config: String,
    pub(super) service_config: String,
    /// Digests after the one of the root file system.
    pub(super) layers: Vec<String>,
    pub(super) manifest_last: bool,
}

impl Image {
    pub(super) fn new(rootfs: Vec<u8>) -> Self {
        Self {
            rootfs,
            image_config: r#"{"os": "linux", "config": {"Entrypoint": ["/app"]}}"#.to_owned(),
            service_config: r#"{"hostname": "here"}"#.to_owned(),
            layers: Vec::new(),
            manifest_last: false,
        }
    }

    pub(super) fn manifest(&self) -> String {
        let rootfs = digest_of(&self.rootfs);
        let layers = std::iter::once(&rootfs).chain(&self.layers);
        let layers: Vec<_> = layers.map(|one| format!(r#"{{"digest": "{one}"}}"#)).collect();
        format!(
            r#"{{"schemaVersion": 2, "config": {{"digest": "{}"}},
                "aosService": {{"digest": "{}"}}, "layers": [{}]}}"#,
            digest_of(self.image_config.as_bytes()),
            digest_of(self.service_config.as_bytes()),
            layers.join(",")
        )
    }

    /// The package, not compressed.
    pub(super) fn package(&self) -> Vec<u8> {
        let manifest = self.manifest();
        let mut archive = Archive::new().dir("./", 0o755);
        if !self.manifest_last {
            archive = archive.file("./manifest.json", manifest.as_bytes());
        }
        archive = archive.dir("./blobs/", 0o755).dir("./blobs/sha256/", 0o755);
        let configs = [self.image_config.as_bytes(), self.service_config.as_bytes()];
        for blob in [configs[0], &self.rootfs, configs[1]] {
            let name = digest_of(blob).replace(':', "/");
            let (path, hex) = (format!("./blobs/{name}"), name);
            assert!(hex.len() < 100);
            archive = archive.file(&path, blob);
        }
        if self.manifest_last {
            archive = archive.file("./manifest.json", manifest.as_bytes());
        }
        archive.bytes()
    }
}

/// A layer package and the digest of its content.
pub(super) fn layer_package(content: &[u8]) -> (Vec<u8>, String) {
    let digest = digest_of(content);
    let about = format!(r#"{{"digest": "{digest}", "platform": {{"os.version": "1.0"}}}}"#);
    let hex = digest.trim_start_matches("sha256:");
    let archive = Archive::new().file("./layer.json", about.as_bytes());
    (archive.file(&format!("./{hex}"), content).bytes(), digest)
}
