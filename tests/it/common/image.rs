//! Packages that the unit's builder does not make: damaged and hostile ones.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::json;
use sha2::{Digest, Sha256};

use super::need;

/// A member of an archive.
#[derive(Clone, Debug)]
pub struct Member {
    name: String,
    kind: u8,
    link: String,
    content: Vec<u8>,
}

impl Member {
    pub fn file(name: &str, content: &[u8]) -> Self {
        Self { name: name.to_owned(), kind: b'0', link: String::new(), content: content.to_vec() }
    }

    pub fn symlink(name: &str, target: &str) -> Self {
        Self { kind: b'2', link: target.to_owned(), ..Self::file(name, b"") }
    }

    /// The character device 1:3.
    pub fn device(name: &str) -> Self {
        Self { kind: b'3', ..Self::file(name, b"") }
    }
}

/// A tar archive with members as they are, harmless or not.
pub fn archive(members: &[Member]) -> Vec<u8> {
    const BLOCK: usize = 512;
    let mut bytes = Vec::new();
    for member in members {
        let mut header = tar::Header::new_ustar();
        header.set_size(member.content.len() as u64);
        header.set_mode(0o755);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_entry_type(tar::EntryType::new(member.kind));
        let ustar = header.as_ustar_mut().unwrap();
        ustar.name[..member.name.len()].copy_from_slice(member.name.as_bytes());
        ustar.linkname[..member.link.len()].copy_from_slice(member.link.as_bytes());
        if member.kind == b'3' {
            header.set_device_major(1).unwrap();
            header.set_device_minor(3).unwrap();
        }
        header.set_cksum();
        bytes.extend(header.as_bytes());
        bytes.extend(&member.content);
        bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
    }
    bytes.extend([0; 2 * BLOCK]);
    bytes
}

pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn digest(bytes: &[u8]) -> String {
    let hex: String = Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect();
    format!("sha256:{hex}")
}

/// A service package by its parts.
#[derive(Clone, Debug)]
pub struct Package {
    /// Members of the root file system besides busybox.
    pub root: Vec<Member>,
    pub with_root_blob: bool,
    pub with_layers: bool,
    /// Members of the package itself besides the regular ones.
    pub extra: Vec<Member>,
}

impl Package {
    pub fn good() -> Self {
        Self { root: Vec::new(), with_root_blob: true, with_layers: true, extra: Vec::new() }
    }

    pub fn with_root(members: &[Member]) -> Self {
        Self { root: members.to_vec(), ..Self::good() }
    }

    /// The package as a plain archive.
    pub fn bytes(&self) -> Vec<u8> {
        let busybox = fs::read(need::program("busybox").unwrap()).unwrap();
        let mut members = vec![Member::file("busybox", &busybox)];
        members.extend(self.root.iter().cloned());
        let root = gzip(&archive(&members));
        let image = json!({
            "architecture": "amd64", "os": "linux",
            "config": {"Entrypoint": ["/busybox"], "Cmd": ["sleep", "10000"]},
        });
        let image = image.to_string().into_bytes();
        let mut manifest = json!({
            "schemaVersion": 2,
            "config": {
                "mediaType": "application/vnd.oci.image.config.v1+json",
                "digest": digest(&image),
                "size": image.len(),
            },
            "layers": [],
        });
        if self.with_layers {
            manifest["layers"] = json!([{
                "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip",
                "digest": digest(&root),
                "size": root.len(),
            }]);
        }
        let blob = |bytes: &[u8]| {
            Member::file(&format!("blobs/{}", digest(bytes).replace(':', "/")), bytes)
        };
        let mut members =
            vec![Member::file("manifest.json", manifest.to_string().as_bytes()), blob(&image)];
        if self.with_root_blob {
            members.push(blob(&root));
        }
        members.extend(self.extra.iter().cloned());
        archive(&members)
    }
}

/// Writes a package beside others; its path.
pub fn write(dir: &Path, name: &str, bytes: &[u8]) -> PathBuf {
    let path = dir.join(name);
    File::create(&path).and_then(|mut file| file.write_all(bytes)).unwrap();
    path
}
