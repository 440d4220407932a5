//! Builder of service and layer packages.
//!
//! A package is written in one pass after its blobs: trees are packed in sorted order with owner
//! 0:0 and time 0, so that the same input gives the same bytes and digests.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::io::{self, BufWriter, Seek, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use flate2::Compression as Level;
use flate2::write::GzEncoder;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use sha3::Sha3_256;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot read {path}")]
    Read { path: PathBuf, source: io::Error },
    #[error("cannot write {path}")]
    Write { path: PathBuf, source: io::Error },
    #[error("{path} is a device, socket or pipe: packages hold files, directories and links")]
    Special { path: PathBuf },
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Compression {
    Plain,
    #[default]
    Gzip,
}

/// What goes into a service package.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct ServicePackage {
    /// A directory = the root file system; a file = the only program of an otherwise empty one.
    pub root: PathBuf,
    /// OCI image configuration (JSON), see `Image::to_json`.
    pub image: Vec<u8>,
    /// Aos service configuration (JSON); `None` = the package has none.
    pub config: Option<Vec<u8>>,
    /// Digests of the shared layers in order, earlier ones hide later ones.
    pub layers: Vec<String>,
    /// Of the package itself.
    pub compression: Compression,
    /// Of the root file system inside it.
    pub root_compression: Compression,
}

/// What an OCI image configuration says about the process.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Image {
    pub entrypoint: Vec<String>,
    pub cmd: Vec<String>,
    pub env: Vec<String>,
    pub working_dir: String,
    /// `8080/tcp` and so on.
    pub exposed_ports: Vec<String>,
    pub stop_signal: Option<String>,
}

/// A package file with what the CM tells about it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Package {
    pub path: PathBuf,
    pub size_bytes: u64,
    /// SHA3-256 of the file.
    pub sha3_256: Vec<u8>,
}

/// A layer package and the digest by which services name it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LayerPackage {
    pub package: Package,
    /// `sha256:<hex>` of the layer archive inside.
    pub digest: String,
}

impl Image {
    /// The OCI image configuration for this machine's architecture.
    pub fn to_json(&self) -> Vec<u8> {
        let mut config = serde_json::Map::new();
        let mut put = |key: &str, value: Value| {
            config.insert(key.to_owned(), value);
        };
        if !self.entrypoint.is_empty() {
            put("Entrypoint", json!(self.entrypoint));
        }
        if !self.cmd.is_empty() {
            put("Cmd", json!(self.cmd));
        }
        if !self.env.is_empty() {
            put("Env", json!(self.env));
        }
        if !self.working_dir.is_empty() {
            put("WorkingDir", json!(self.working_dir));
        }
        if !self.exposed_ports.is_empty() {
            let ports: BTreeMap<_, _> = self.exposed_ports.iter().map(|p| (p, json!({}))).collect();
            put("ExposedPorts", json!(ports));
        }
        if let Some(signal) = &self.stop_signal {
            put("StopSignal", json!(signal));
        }
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        json!({"architecture": architecture, "os": "linux", "config": config}).to_string().into()
    }
}

/// Builds a service package at `out`.
pub fn build_service(service: &ServicePackage, out: &Path) -> Result<Package, Error> {
    let scratch = Scratch::beside(out, "root")?;
    let root = pack_tree(&service.root, service.root_compression, &scratch.0)?;

    let mut layers = vec![json!({
        "mediaType": layer_type("application/vnd.oci.image.layer.v1.tar", service.root_compression),
        "digest": root.sha256,
        "size": root.size_bytes,
    })];
    for digest in &service.layers {
        layers.push(json!({
            "mediaType": "application/vnd.aos.image.layer.v1.tar+gzip",
            "digest": digest,
            "size": 0,
        }));
    }
    let image_digest = sha256(&service.image);
    let mut manifest = json!({
        "schemaVersion": 2,
        "config": {
            "mediaType": "application/vnd.oci.image.config.v1+json",
            "digest": image_digest,
            "size": service.image.len(),
        },
        "layers": layers,
    });
    // Blobs by digest: two that are the same are one file.
    let mut blobs = BTreeMap::from([(blob_path(&image_digest), Blob::Bytes(&service.image))]);
    if let Some(config) = &service.config {
        let digest = sha256(config);
        blobs.insert(blob_path(&digest), Blob::Bytes(config));
        manifest["aosService"] = json!({
            "mediaType": "application/vnd.aos.service.config.v1+json",
            "digest": digest,
            "size": config.len(),
        });
    }
    blobs.insert(blob_path(&root.sha256), Blob::File(&scratch.0));
    let manifest = manifest.to_string();
    let first = std::iter::once(("manifest.json".to_owned(), Blob::Bytes(manifest.as_bytes())));
    pack_members(first.chain(blobs), service.compression, out)
}

/// Builds a layer package of the directory `root` at `out`.
pub fn build_layer(
    root: &Path,
    compression: Compression,
    os_version: &str,
    out: &Path,
) -> Result<LayerPackage, Error> {
    let scratch = Scratch::beside(out, "layer")?;
    let layer = pack_tree(root, compression, &scratch.0)?;
    let descriptor = json!({
        "mediaType": layer_type("application/vnd.aos.image.layer.v1.tar", compression),
        "digest": layer.sha256,
        "size": layer.size_bytes,
        "platform": {"os.version": os_version},
    })
    .to_string();
    let name = layer.sha256.trim_start_matches("sha256:").to_owned();
    let members = [
        ("layer.json".to_owned(), Blob::Bytes(descriptor.as_bytes())),
        (name, Blob::File(&scratch.0)),
    ];
    // The archive inside is compressed already.
    let package = pack_members(members, Compression::Plain, out)?;
    Ok(LayerPackage { package, digest: layer.sha256 })
}

/// Size and checksum of an existing package, whatever is in it.
pub fn describe(path: &Path) -> Result<Package, Error> {
    let read = |source| Error::Read { path: path.into(), source };
    let mut file = File::open(path).map_err(read)?;
    let mut hashing = Hashing::new(io::sink());
    io::copy(&mut file, &mut hashing).map_err(read)?;
    let path = fs::canonicalize(path).map_err(read)?;
    let written = hashing.finish();
    Ok(Package { path, size_bytes: written.size_bytes, sha3_256: written.sha3_256 })
}

/// `sha256:<hex>` of some bytes.
pub fn sha256(bytes: &[u8]) -> String {
    format!("sha256:{}", hex(&Sha256::digest(bytes)))
}

/// Lower-case hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn layer_type(base: &str, compression: Compression) -> String {
    match compression {
        Compression::Plain => base.to_owned(),
        Compression::Gzip => format!("{base}+gzip"),
    }
}

fn blob_path(digest: &str) -> String {
    format!("blobs/{}", digest.replacen(':', "/", 1))
}

/// A temporary file beside the package, removed when dropped.
struct Scratch(PathBuf);

impl Scratch {
    fn beside(out: &Path, kind: &str) -> Result<Self, Error> {
        let dir = out.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        fs::create_dir_all(dir).map_err(|source| Error::Write { path: dir.into(), source })?;
        let name = out.file_name().unwrap_or_default().to_string_lossy();
        Ok(Self(dir.join(format!(".{name}.{kind}.{}", std::process::id()))))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// Content of a member of a package.
enum Blob<'a> {
    Bytes(&'a [u8]),
    File(&'a Path),
}

/// Size and digest of a written file.
struct Written {
    size_bytes: u64,
    sha256: String,
    sha3_256: Vec<u8>,
}

/// Counts and hashes what passes.
struct Hashing<W> {
    inner: W,
    size_bytes: u64,
    sha2: Sha256,
    sha3: Sha3_256,
}

impl<W> Hashing<W> {
    fn new(inner: W) -> Self {
        Self { inner, size_bytes: 0, sha2: Sha256::new(), sha3: Sha3_256::default() }
    }

    fn finish(self) -> Written {
        Written {
            size_bytes: self.size_bytes,
            sha256: format!("sha256:{}", hex(&self.sha2.finalize())),
            sha3_256: sha3::Digest::finalize(self.sha3).to_vec(),
        }
    }
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.inner.write(bytes)?;
        self.sha2.update(&bytes[..n]);
        sha3::Digest::update(&mut self.sha3, &bytes[..n]);
        self.size_bytes += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// The writer under an archive, with or without compression.
enum Sink {
    Plain(Hashing<BufWriter<File>>),
    Gzip(GzEncoder<Hashing<BufWriter<File>>>),
}

impl Sink {
    fn create(path: &Path, compression: Compression) -> io::Result<Self> {
        let inner = BufWriter::new(File::create(path)?);
        let hashing = Hashing::new(inner);
        Ok(match compression {
            Compression::Plain => Self::Plain(hashing),
            Compression::Gzip => Self::Gzip(GzEncoder::new(hashing, Level::default())),
        })
    }

    fn finish(self) -> io::Result<Written> {
        let mut hashing = match self {
            Self::Plain(hashing) => hashing,
            Self::Gzip(encoder) => encoder.finish()?,
        };
        hashing.flush()?;
        Ok(hashing.finish())
    }
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(inner) => inner.write(bytes),
            Self::Gzip(inner) => inner.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(inner) => inner.flush(),
            Self::Gzip(inner) => inner.flush(),
        }
    }
}

fn pack_members<'a>(
    members: impl IntoIterator<Item = (String, Blob<'a>)>,
    compression: Compression,
    out: &Path,
) -> Result<Package, Error> {
    let failed = |source| Error::Write { path: out.into(), source };
    let sink = Sink::create(out, compression).map_err(failed)?;
    let mut archive = tar::Builder::new(sink);
    for (name, blob) in members {
        let mut header = header(tar::EntryType::Regular, 0o644);
        match blob {
            Blob::Bytes(bytes) => {
                header.set_size(bytes.len() as u64);
                archive.append_data(&mut header, name, bytes).map_err(failed)?;
            }
            Blob::File(path) => {
                let read = |source| Error::Read { path: path.into(), source };
                let mut file = File::open(path).map_err(read)?;
                header.set_size(file.seek(io::SeekFrom::End(0)).map_err(read)?);
                file.rewind().map_err(read)?;
                archive.append_data(&mut header, name, file).map_err(failed)?;
            }
        }
    }
    let written = archive.into_inner().and_then(Sink::finish).map_err(failed)?;
    let path = fs::canonicalize(out).map_err(failed)?;
    Ok(Package { path, size_bytes: written.size_bytes, sha3_256: written.sha3_256 })
}

/// Packs a directory, or a single program at the top of an empty one.
fn pack_tree(source: &Path, compression: Compression, out: &Path) -> Result<Written, Error> {
    let read = |source_error| Error::Read { path: source.into(), source: source_error };
    let failed = |source| Error::Write { path: out.into(), source };
    let sink = Sink::create(out, compression).map_err(failed)?;
    let mut tree = Tree { archive: tar::Builder::new(sink), seen: HashMap::new() };
    let meta = fs::metadata(source).map_err(read)?;
    if meta.is_dir() {
        tree.directory(source, Path::new(""))?;
    } else {
        let name = source.file_name().unwrap_or_default();
        tree.file(source, Path::new(name), &meta, 0o755)?;
    }
    tree.archive.into_inner().and_then(Sink::finish).map_err(failed)
}

/// An archive of a file tree that is being written.
struct Tree {
    archive: tar::Builder<Sink>,
    /// First name of each file with several links.
    seen: HashMap<(u64, u64), PathBuf>,
}

impl Tree {
    fn directory(&mut self, source: &Path, name: &Path) -> Result<(), Error> {
        let read = |e| Error::Read { path: source.into(), source: e };
        let meta = fs::symlink_metadata(source).map_err(read)?;
        let mut head = header(tar::EntryType::Directory, meta.mode());
        head.set_size(0);
        let shown = if name.as_os_str().is_empty() { PathBuf::from("./") } else { name.join("") };
        self.append(source, data_step(&mut head, &shown, io::empty()))?;

        let mut entries = fs::read_dir(source)
            .and_then(|dir| dir.collect::<io::Result<Vec<_>>>())
            .map_err(read)?;
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            self.entry(&entry.path(), &name.join(entry.file_name()))?;
        }
        Ok(())
    }

    fn entry(&mut self, source: &Path, name: &Path) -> Result<(), Error> {
        let read = |e| Error::Read { path: source.into(), source: e };
        let meta = fs::symlink_metadata(source).map_err(read)?;
        let kind = meta.file_type();
        if kind.is_dir() {
            return self.directory(source, name);
        }
        if kind.is_symlink() {
            let target = fs::read_link(source).map_err(read)?;
            return self.link(source, tar::EntryType::Symlink, name, &target);
        }
        if kind.is_fifo() || kind.is_socket() || kind.is_block_device() || kind.is_char_device() {
            return Err(Error::Special { path: source.into() });
        }
        self.file(source, name, &meta, meta.mode())
    }

    fn file(
        &mut self,
        source: &Path,
        name: &Path,
        meta: &fs::Metadata,
        mode: u32,
    ) -> Result<(), Error> {
        if meta.nlink() > 1 {
            let id = (meta.dev(), meta.ino());
            if let Some(first) = self.seen.get(&id).cloned() {
                return self.link(source, tar::EntryType::Link, name, &first);
            }
            self.seen.insert(id, name.into());
        }
        let read = |e| Error::Read { path: source.into(), source: e };
        let file = File::open(source).map_err(read)?;
        let mut head = header(tar::EntryType::Regular, mode);
        head.set_size(meta.len());
        self.append(source, data_step(&mut head, name, file))
    }

    fn link(
        &mut self,
        source: &Path,
        kind: tar::EntryType,
        name: &Path,
        target: &Path,
    ) -> Result<(), Error> {
        let mut head = header(kind, 0o777);
        head.set_size(0);
        self.append(source, |archive| archive.append_link(&mut head, name, target))
    }

    fn append(
        &mut self,
        source: &Path,
        step: impl FnOnce(&mut tar::Builder<Sink>) -> io::Result<()>,
    ) -> Result<(), Error> {
        step(&mut self.archive).map_err(|e| Error::Read { path: source.into(), source: e })
    }
}

fn data_step(
    head: &mut tar::Header,
    name: &Path,
    data: impl io::Read,
) -> impl FnOnce(&mut tar::Builder<Sink>) -> io::Result<()> {
    move |archive| archive.append_data(head, name, data)
}

fn header(kind: tar::EntryType, mode: u32) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode & 0o7777);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::process::Command;

    use super::*;

    /// Names as `tar` lists them.
    fn listing(archive: &Path) -> Vec<String> {
        let output = Command::new("tar").arg("-tf").arg(archive).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
    }

    fn unpack(archive: &Path, into: &Path) {
        fs::create_dir_all(into).unwrap();
        let status = Command::new("tar")
            .args(["--no-same-owner", "-xpf"])
            .arg(archive)
            .arg("-C")
            .arg(into)
            .status()
            .unwrap();
        assert!(status.success());
    }

    fn tree(dir: &Path) -> PathBuf {
        let root = dir.join("tree");
        fs::create_dir_all(root.join("bin")).unwrap();
        fs::write(root.join("bin/tool"), "#!/bin/sh\n").unwrap();
        fs::set_permissions(root.join("bin/tool"), fs::Permissions::from_mode(0o4755)).unwrap();
        fs::hard_link(root.join("bin/tool"), root.join("bin/twin")).unwrap();
        symlink("tool", root.join("bin/link")).unwrap();
        fs::write(root.join(".wh.gone"), "").unwrap();
        let long = "d".repeat(120);
        fs::create_dir(root.join(&long)).unwrap();
        fs::write(root.join(&long).join("file"), "long").unwrap();
        root
    }

    fn check_file(package: &Package) {
        let bytes = fs::read(&package.path).unwrap();
        assert_eq!(package.size_bytes, bytes.len() as u64);
        assert_eq!(package.sha3_256, <Sha3_256 as sha3::Digest>::digest(&bytes).to_vec());
    }

    #[test]
    fn layer_holds_its_tree() {
        for compression in [Compression::Plain, Compression::Gzip] {
            let dir = tempfile::tempdir().unwrap();
            let root = tree(dir.path());
            let out = dir.path().join("layer.tar");
            let layer = build_layer(&root, compression, "12", &out).unwrap();
            check_file(&layer.package);

            let hex = layer.digest.strip_prefix("sha256:").unwrap();
            assert_eq!(listing(&out), ["layer.json", hex]);
            let unpacked = dir.path().join("unpacked");
            unpack(&out, &unpacked);
            let blob = unpacked.join(hex);
            assert_eq!(sha256(&fs::read(&blob).unwrap()), layer.digest);
            let descriptor: Value =
                serde_json::from_slice(&fs::read(unpacked.join("layer.json")).unwrap()).unwrap();
            assert_eq!(descriptor["digest"], layer.digest);
            assert_eq!(descriptor["size"], fs::metadata(&blob).unwrap().len());

            let content = dir.path().join("content");
            unpack(&blob, &content);
            let tool = fs::metadata(content.join("bin/tool")).unwrap();
            assert_eq!(tool.mode() & 0o7777, 0o4755);
            assert_eq!(tool.ino(), fs::metadata(content.join("bin/twin")).unwrap().ino());
            assert_eq!(fs::read_link(content.join("bin/link")).unwrap(), Path::new("tool"));
            assert!(content.join(".wh.gone").exists());
            assert_eq!(fs::read(content.join("d".repeat(120)).join("file")).unwrap(), b"long");
        }
    }

    #[test]
    fn service_names_its_blobs() {
        let dir = tempfile::tempdir().unwrap();
        let root = tree(dir.path());
        let image = Image {
            entrypoint: vec!["/bin/tool".into()],
            env: vec!["A=b c".into()],
            exposed_ports: vec!["80/tcp".into()],
            stop_signal: Some("SIGTERM".into()),
            ..Image::default()
        };
        let service = ServicePackage {
            root,
            image: image.to_json(),
            config: Some(br#"{"hostname":"web"}"#.to_vec()),
            layers: vec![sha256(b"shared")],
            compression: Compression::Plain,
            root_compression: Compression::Gzip,
        };
        let out = dir.path().join("new/service.tar");
        let package = build_service(&service, &out).unwrap();
        check_file(&package);
        let again = build_service(&service, &dir.path().join("again.tar")).unwrap();
        assert_eq!(package.sha3_256, again.sha3_256);

        let unpacked = dir.path().join("unpacked");
        unpack(&out, &unpacked);
        let manifest: Value =
            serde_json::from_slice(&fs::read(unpacked.join("manifest.json")).unwrap()).unwrap();
        let blob = |descriptor: &Value| {
            let digest = descriptor["digest"].as_str().unwrap();
            let bytes = fs::read(unpacked.join("blobs").join(digest.replace(':', "/"))).unwrap();
            assert_eq!(sha256(&bytes), digest);
            assert_eq!(descriptor["size"], bytes.len());
            bytes
        };
        assert_eq!(blob(&manifest["aosService"]), br#"{"hostname":"web"}"#);
        blob(&manifest["layers"][0]);
        assert_eq!(manifest["layers"][1]["digest"], sha256(b"shared"));
        let image: Value = serde_json::from_slice(&blob(&manifest["config"])).unwrap();
        assert_eq!(image["os"], "linux");
        assert_eq!(
            image["config"],
            json!({
                "Entrypoint": ["/bin/tool"],
                "Env": ["A=b c"],
                "ExposedPorts": {"80/tcp": {}},
                "StopSignal": "SIGTERM",
            })
        );
    }

    #[test]
    fn single_program_becomes_a_root() {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("prog");
        fs::write(&program, "x").unwrap();
        let out = dir.path().join("root.tar");
        pack_tree(&program, Compression::Plain, &out).unwrap();
        assert_eq!(listing(&out), ["prog"]);
        let content = dir.path().join("content");
        unpack(&out, &content);
        assert_eq!(fs::metadata(content.join("prog")).unwrap().mode() & 0o777, 0o755);
    }

    #[test]
    fn what_cannot_be_packed_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(dir.path().join("socket")).unwrap();
        let out = tempfile::tempdir().unwrap();
        let special = build_layer(dir.path(), Compression::Plain, "", &out.path().join("a.tar"));
        assert!(matches!(special, Err(Error::Special { path }) if path.ends_with("socket")));
        let missing = build_layer(
            &dir.path().join("none"),
            Compression::Plain,
            "",
            &out.path().join("a.tar"),
        );
        assert!(matches!(missing, Err(Error::Read { path, .. }) if path.ends_with("none")));
    }
}
