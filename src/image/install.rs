//! One attempt to install a package: read it once, unpack while reading, publish by rename.
//!
//! Fetch thread. In: what the CM wants, and what may be evicted. Out: the directory of the package
//! and what its row will say; or an error, and nothing is left. A package is unpacked before its
//! checksum is known, but into a staging directory that nothing else looks at, and it is published
//! only after checksum, digests and documents were found right. Where the order of the members
//! does not permit that (a blob before the manifest), blobs are staged as files. Not here: formats
//! (`tar.rs`, `archive.rs`), rules of trees (`unpack.rs`), another attempt (core).

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;
use openssl::sha::sha256;

use crate::image::archive::{Archive, read_error};
use crate::image::config::{MAX_CONFIG_BYTES, image_config, service_config};
use crate::image::digest::{BlobHash, Finish, Hashed, Package, check_blob};
use crate::image::download::{Opening, Source};
use crate::image::error::Error;
use crate::image::listing::Listing;
use crate::image::manifest::{LayerDescriptor, MAX_MANIFEST_BYTES, Manifest, Role};
use crate::image::names;
use crate::image::origin::{self, ORIGIN, Origin};
use crate::image::part;
use crate::image::space::{Eviction, Limits, Space};
use crate::image::staging::Staging;
use crate::image::stamp;
use crate::image::tar::{Kind, Member, Reader};
use crate::image::unpack::{Rules, unpack};
use crate::image::{BLOBS, ImageSettings, MANIFEST, ROOTFS};
use crate::model::desired::{DesiredLayer, DesiredService, PackageSource};
use crate::model::id::Digest;
use crate::model::service::{ImageConfig, InstalledLayer, InstalledService};
use crate::model::service::{ServiceConfig, ServiceImage};
use crate::ports::Halt;
use crate::sys;

/// Members of a package itself, of which a good one has about six.
pub(super) const MAX_PACKAGE_MEMBERS: u32 = 1024;
/// `blobs/<algorithm>/<hex>`.
const PACKAGE_DEPTH: usize = 3;
const LAYER_JSON: &[u8] = b"layer.json";
/// Blobs that came before the manifest.
const PARTS: &str = "parts";
/// Directories of ours above the tree, as its removal counts them.
const PLACE_DEPTH: usize = 4;
/// Layers belong to nobody in particular.
pub(super) const LAYER_GID: u32 = 0;

/// With what an attempt is made.
pub(super) struct Attempt<'a> {
    pub(super) settings: &'a ImageSettings,
    pub(super) limits: Limits,
    pub(super) eviction: Eviction<'a>,
    pub(super) halt: Halt<'a>,
}

/// Installs a service.
pub(super) fn service(
    attempt: Attempt<'_>,
    wanted: &DesiredService,
) -> Result<(InstalledService, ServiceImage), Error> {
    let part = part::place(&attempt.settings.download_dir, &wanted.source);
    let source = open_source(&attempt, &wanted.source, part.as_deref())?;
    service_from(attempt, wanted, source)
}

/// Installs a service whose package comes from `source`.
pub(super) fn service_from(
    attempt: Attempt<'_>,
    wanted: &DesiredService,
    source: Source<'_>,
) -> Result<(InstalledService, ServiceImage), Error> {
    let Attempt { settings, limits, eviction, halt } = attempt;
    let parent = &settings.services_dir;
    let staging = Staging::new(parent)?;
    let mut space = Space::new(parent, limits, eviction)?;
    let rules = rules(settings, wanted.gid);
    let mut parts = ServiceParts::new(&staging, rules);
    let package = Package::new(source, &wanted.source, settings.times.progress, halt)?;
    let package_digest =
        read_package(package, &mut space, |archive, space| parts.read(archive, space))?;
    let parts = parts.finish(settings, &mut space)?;
    let origin = Origin::of_service(wanted, &package_digest, &parts, space.charged_bytes());
    origin.write(&staging.path().join(ORIGIN))?;
    space.flush()?;
    let size_bytes = space.charged_bytes();
    let path = staging.publish(parent)?;
    let installed = InstalledService {
        key: wanted.key.clone(),
        provider_id: wanted.provider_id.clone(),
        gid: wanted.gid,
        path: path.clone(),
        manifest_digest: parts.manifest_digest,
        tree_digest: parts.tree_digest,
        package_digest,
        size_bytes,
        installed_at_ms: sys::time::wall_ms(),
        unused_since_ms: None,
        confirmed: false,
    };
    let image = ServiceImage {
        rootfs: path.join(ROOTFS),
        layers: parts.layers,
        image: parts.image,
        service: parts.service,
        stamp: stamp::of(&path, Path::new(ROOTFS)),
    };
    Ok((installed, image))
}

/// Installs a layer.
pub(super) fn layer(attempt: Attempt<'_>, wanted: &DesiredLayer) -> Result<InstalledLayer, Error> {
    let part = part::place(&attempt.settings.download_dir, &wanted.source);
    let source = open_source(&attempt, &wanted.source, part.as_deref())?;
    let Attempt { settings, limits, eviction, halt } = attempt;
    let parent = &settings.layers_dir;
    let staging = Staging::new(parent)?;
    let mut space = Space::new(parent, limits, eviction)?;
    let rules = rules(settings, LAYER_GID);
    let mut parts =
        LayerParts { staging: &staging, rules, digest: &wanted.digest, about: None, tree: None };
    let package = Package::new(source, &wanted.source, settings.times.progress, halt)?;
    let package_digest =
        read_package(package, &mut space, |archive, space| parts.read(archive, space))?;
    let about = parts.about.ok_or(Error::Missing { what: "layer.json" })?;
    let missing = || Error::BlobMissing { digest: wanted.digest.to_string() };
    let tree_digest = parts.tree.ok_or_else(missing)?.digest(LAYER_GID);
    let path = parent.join(wanted.digest.algorithm()).join(wanted.digest.hex());
    let installed = InstalledLayer {
        digest: wanted.digest.clone(),
        layer_id: wanted.layer_id.clone(),
        version: wanted.version.clone(),
        os_version: about.os_version,
        path,
        package_digest,
        tree_digest,
        size_bytes: space.charged_bytes(),
        installed_at_ms: sys::time::wall_ms(),
        unused_since_ms: None,
    };
    Origin::of_layer(&installed).write(&staging.path().join(ORIGIN))?;
    space.flush()?;
    staging.publish_part((ROOTFS, &installed.path), (ORIGIN, &origin::beside(&installed.path)))?;
    Ok(installed)
}

fn rules(settings: &ImageSettings, gid: u32) -> Rules {
    Rules {
        gid,
        max_entries: settings.max_entries,
        // What is installed must be removable.
        max_depth: settings.max_depth.min(sys::tree::MAX_DEPTH - PLACE_DEPTH),
        now_s: sys::time::wall_ms() / 1000,
    }
}

/// Opens the source of a package, unless what is known in advance already speaks against it.
fn open_source<'a>(
    attempt: &Attempt<'a>,
    announced: &'a PackageSource,
    part: Option<&'a Path>,
) -> Result<Source<'a>, Error> {
    let local = announced.url.get(..5).is_some_and(|scheme| scheme.eq_ignore_ascii_case("file:"));
    if !local && announced.sha3_256.is_empty() && announced.sha3_512.is_empty() {
        return Err(Error::NoChecksum);
    }
    let source = Source::open(&Opening {
        url: &announced.url,
        size_bytes: announced.size_bytes,
        times: &attempt.settings.times,
        ca_cert: &attempt.settings.ca_cert,
        part,
        reserve_percent: attempt.settings.reserve_percent,
        halt: attempt.halt,
    });
    let source = source
        .map_err(|source| Error::Source { url: announced.shown_url().into_owned(), source })?;
    match source.length() {
        Some(found) if found != announced.size_bytes => {
            let announced = announced.size_bytes;
            Err(Error::SizeMismatch { announced, found: found.to_string() })
        }
        _ => Ok(source),
    }
}

/// Reads a package through `read` and checks size and hashes of all of it; returns its SHA3-256.
fn read_package(
    mut package: Package<'_>,
    space: &mut Space<'_>,
    read: impl FnOnce(&mut Archive<'_>, &mut Space<'_>) -> Result<(), Error>,
) -> Result<Vec<u8>, Error> {
    // What is unpacked is hardly smaller than what it is packed in.
    space.check(package.announced_bytes())?;
    let outcome = Archive::open(&mut package, "package").and_then(|mut archive| {
        read(&mut archive, space)?;
        archive.finish()
    });
    if let Some(failure) = package.take_failure() {
        return Err(failure);
    }
    match outcome {
        Err(error) if error.is_local() => Err(error),
        // A damaged package looks malformed; that it is damaged is the better message.
        outcome => {
            let digest = package.finish()?;
            outcome.map(|()| digest)
        }
    }
}

/// Walks over the members of a package. Only plain files and directories exist there.
fn members(
    archive: &mut Archive<'_>,
    space: &mut Space<'_>,
    mut take: impl FnMut(
        &[u8],
        &Member,
        &mut Reader<&mut Archive<'_>>,
        &mut Space<'_>,
    ) -> Result<(), Error>,
) -> Result<(), Error> {
    let part = archive.part();
    let mut reader = Reader::new(archive);
    let mut seen = BTreeSet::new();
    let mut count = 0;
    while let Some(member) = reader.next().map_err(|source| Error::Archive { part, source })? {
        count += 1;
        if count > MAX_PACKAGE_MEMBERS {
            return Err(Error::Entries { part, limit: MAX_PACKAGE_MEMBERS });
        }
        let refused = |source| Error::Name { name: names::shown(&member.path), source };
        let path = names::normalise(&member.path, PACKAGE_DEPTH).map_err(refused)?;
        if member.kind == Kind::File && !seen.insert(path.clone()) {
            return Err(refuse(&member, "it occurs twice"));
        }
        // Also what is only skipped: nothing that the disk could not hold is worth decompressing.
        space.check(member.size)?;
        take(&path, &member, &mut reader, space)?;
    }
    Ok(())
}

fn refuse(member: &Member, reason: &'static str) -> Error {
    Error::Member { name: names::shown(&member.path), reason }
}

fn unexpected(member: &Member) -> Error {
    refuse(member, "it does not belong into a package")
}

fn read_small(input: &mut impl Read, member: &Member, limit: u64) -> Result<Vec<u8>, Error> {
    if member.size > limit {
        return Err(Error::TooLarge { what: names::shown(&member.path), limit });
    }
    let mut content = Vec::new();
    input.read_to_end(&mut content).map_err(|source| read_error("package", source))?;
    Ok(content)
}

/// Unpacks the archive that a blob is, and checks the digest of the blob on the way.
fn unpack_blob(
    blob: impl Read,
    digest: &Digest,
    part: &'static str,
    staging: &Staging,
    rules: Rules,
    space: &mut Space<'_>,
) -> Result<Listing, Error> {
    let root = (staging.make_dirs(ROOTFS)?, staging.path().join(ROOTFS));
    let mut hashed = Hashed::new(blob, digest);
    let outcome = Archive::open(&mut hashed, part).and_then(|mut archive| {
        let listing = unpack(&mut archive, root, rules, space)?;
        archive.finish()?;
        Ok(listing)
    });
    match outcome {
        Err(error) if error.is_local() => Err(error),
        // As with the package: a damaged blob is reported as such.
        outcome => match hashed.finish() {
            Ok(()) => outcome,
            Err(Finish::Wrong(mismatch)) => Err(mismatch),
            // The archive around it is broken.
            Err(Finish::Read(source)) => Err(read_error("package", source)),
        },
    }
}

/// What a service package is made of, as it comes in.
struct ServiceParts<'a> {
    staging: &'a Staging,
    rules: Rules,
    manifest: Option<Manifest>,
    manifest_digest: Vec<u8>,
    /// Contents of the configurations.
    configs: BTreeMap<Digest, Vec<u8>>,
    tree: Option<Listing>,
    /// Blobs in files with their sizes, because the manifest had not come yet.
    staged: BTreeMap<Digest, u64>,
}

/// What a complete service package gave.
pub(super) struct Service {
    pub(super) manifest_digest: Vec<u8>,
    pub(super) tree_digest: String,
    layers: Vec<Digest>,
    image: ImageConfig,
    service: ServiceConfig,
}

impl<'a> ServiceParts<'a> {
    fn new(staging: &'a Staging, rules: Rules) -> Self {
        Self {
            staging,
            rules,
            manifest: None,
            manifest_digest: Vec::new(),
            configs: BTreeMap::new(),
            tree: None,
            staged: BTreeMap::new(),
        }
    }

    fn read(&mut self, archive: &mut Archive<'_>, space: &mut Space<'_>) -> Result<(), Error> {
        members(archive, space, |path, member, content, space| {
            let components: Vec<&[u8]> = path.split(|byte| *byte == b'/').collect();
            match (member.kind, components.as_slice()) {
                (Kind::Directory, [b""] | [b"blobs"]) => Ok(()),
                (Kind::Directory, [b"blobs", b"sha256" | b"sha384" | b"sha512"]) => Ok(()),
                (Kind::File, [b"manifest.json"]) => self.take_manifest(member, content, space),
                (Kind::File, [b"blobs", algorithm, hex]) => {
                    let text = [*algorithm, b":", *hex].concat();
                    let digest = Digest::parse(&String::from_utf8_lossy(&text));
                    let digest = digest.map_err(|_| unexpected(member))?;
                    self.take_blob(digest, member, content, space)
                }
                _ => Err(unexpected(member)),
            }
        })
    }

    fn take_manifest(
        &mut self,
        member: &Member,
        content: &mut impl Read,
        space: &mut Space<'_>,
    ) -> Result<(), Error> {
        let bytes = read_small(content, member, MAX_MANIFEST_BYTES)?;
        self.manifest = Some(Manifest::parse(&bytes)?);
        self.manifest_digest = sha256(&bytes).to_vec();
        // Unchanged, so that its origin can be proved later.
        space.charge(bytes.len() as u64)?;
        self.write(self.staging.dir(), Path::new(MANIFEST), &bytes)
    }

    fn take_blob(
        &mut self,
        digest: Digest,
        member: &Member,
        content: &mut impl Read,
        space: &mut Space<'_>,
    ) -> Result<(), Error> {
        let Some(manifest) = &self.manifest else {
            return self.stage(digest, member.size, content, space);
        };
        match manifest.role(&digest) {
            Role::Rootfs => self.take_rootfs(&digest, content, space),
            Role::Config => {
                let bytes = read_small(content, member, MAX_CONFIG_BYTES)?;
                self.take_config(digest, bytes, space)
            }
            Role::Unused => Ok(()),
        }
    }

    fn take_rootfs(
        &mut self,
        digest: &Digest,
        content: impl Read,
        space: &mut Space<'_>,
    ) -> Result<(), Error> {
        let part = "root file system";
        let tree = unpack_blob(content, digest, part, self.staging, self.rules, space)?;
        self.tree = Some(tree);
        Ok(())
    }

    fn take_config(
        &mut self,
        digest: Digest,
        bytes: Vec<u8>,
        space: &mut Space<'_>,
    ) -> Result<(), Error> {
        check_blob(&bytes, &digest)?;
        space.charge(bytes.len() as u64)?;
        let directory = self.staging.make_dirs(&format!("{BLOBS}/{}", digest.algorithm()))?;
        self.write(directory.as_fd(), Path::new(digest.hex()), &bytes)?;
        self.configs.insert(digest, bytes);
        Ok(())
    }

    fn create(&self, directory: impl AsFd, name: &Path, mode: u32) -> Result<File, Error> {
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW;
        let flags = flags | OFlag::O_CLOEXEC;
        let mode = Mode::from_bits_truncate(mode);
        let created = sys::retry(|| openat(directory.as_fd(), name, flags, mode));
        created.map(File::from).map_err(Error::io("create", self.staging.path().join(name)))
    }

    fn write(&self, directory: impl AsFd, name: &Path, content: &[u8]) -> Result<(), Error> {
        let mut file = self.create(directory, name, 0o644)?;
        file.write_all(content).map_err(Error::io("write", self.staging.path().join(name)))
    }

    /// Keeps a blob in a file until the manifest says what it is.
    fn stage(
        &mut self,
        digest: Digest,
        size: u64,
        content: &mut impl Read,
        space: &mut Space<'_>,
    ) -> Result<(), Error> {
        space.charge(size)?;
        let directory: OwnedFd = self.staging.make_dirs(PARTS)?;
        let name = staged_name(&digest);
        let mut file = self.create(&directory, &name, 0o600)?;
        let failed = |source| Error::io("write", self.staging.path().join(&name))(source);
        let mut hash = BlobHash::of(&digest);
        let mut buffer = vec![0; 64 << 10];
        loop {
            let read = match content.read(&mut buffer) {
                Ok(0) => break,
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(source) => return Err(read_error("package", source)),
            };
            hash.update(&buffer[..read]);
            let written = file.write_all(&buffer[..read]);
            written.and_then(|()| space.wrote(file.as_fd(), read as u64)).map_err(failed)?;
        }
        hash.check(&digest)?;
        self.staged.insert(digest, size);
        Ok(())
    }

    /// The package is complete and verified: staged blobs, then the check that all is there.
    fn finish(mut self, settings: &ImageSettings, space: &mut Space<'_>) -> Result<Service, Error> {
        let manifest = self.manifest.take().ok_or(Error::Missing { what: "manifest.json" })?;
        let staged = std::mem::take(&mut self.staged).into_iter();
        let (rootfs, others): (Vec<_>, Vec<_>) =
            staged.partition(|(digest, _)| manifest.role(digest) == Role::Rootfs);
        // What is largest comes last, with nothing else beside it.
        for (digest, size) in others.into_iter().chain(rootfs) {
            self.take_staged(digest, &manifest, space)?;
            space.release(size);
        }
        let parts = self.staging.path().join(PARTS);
        sys::fs::remove_tree(&parts).map_err(Error::io("remove", parts))?;
        let missing = |digest: &Digest| Error::BlobMissing { digest: digest.to_string() };
        let bytes_of = |digest: &Digest| self.configs.get(digest).ok_or_else(|| missing(digest));
        let image = image_config(bytes_of(&manifest.config)?)?;
        let service = match &manifest.service_config {
            Some(digest) => service_config(bytes_of(digest)?, settings.number_unit)?,
            None => ServiceConfig::default(),
        };
        let tree = self.tree.ok_or_else(|| missing(&manifest.rootfs))?;
        Ok(Service {
            manifest_digest: self.manifest_digest,
            tree_digest: tree.digest(self.rules.gid),
            layers: manifest.layers,
            image,
            service,
        })
    }

    fn take_staged(
        &mut self,
        digest: Digest,
        manifest: &Manifest,
        space: &mut Space<'_>,
    ) -> Result<(), Error> {
        let path = self.staging.path().join(PARTS).join(staged_name(&digest));
        match manifest.role(&digest) {
            Role::Unused => {}
            Role::Rootfs => {
                let file = File::open(&path).map_err(Error::io("open", &path))?;
                self.take_rootfs(&digest, file, space)?;
            }
            Role::Config => {
                let size = fs::metadata(&path).map_err(Error::io("read", &path))?.len();
                if size > MAX_CONFIG_BYTES {
                    let what = digest.to_string();
                    return Err(Error::TooLarge { what, limit: MAX_CONFIG_BYTES });
                }
                let bytes = fs::read(&path).map_err(Error::io("read", &path))?;
                self.take_config(digest, bytes, space)?;
            }
        }
        fs::remove_file(&path).map_err(Error::io("remove", path))
    }
}

fn staged_name(digest: &Digest) -> PathBuf {
    PathBuf::from(format!("{}-{}", digest.algorithm(), digest.hex()))
}

/// What a layer package is made of, as it comes in. The digest of its archive is known from the
/// request, so the order of the members does not matter.
struct LayerParts<'a> {
    staging: &'a Staging,
    rules: Rules,
    digest: &'a Digest,
    about: Option<LayerDescriptor>,
    tree: Option<Listing>,
}

impl LayerParts<'_> {
    fn read(&mut self, archive: &mut Archive<'_>, space: &mut Space<'_>) -> Result<(), Error> {
        members(archive, space, |path, member, content, space| match member.kind {
            Kind::Directory if path.is_empty() => Ok(()),
            Kind::File if path == LAYER_JSON => {
                let bytes = read_small(content, member, MAX_MANIFEST_BYTES)?;
                self.take_about(&bytes)
            }
            Kind::File if path == self.digest.hex().as_bytes() => {
                let (digest, staging, rules) = (self.digest, self.staging, self.rules);
                let tree = unpack_blob(content, digest, "layer", staging, rules, space)?;
                self.tree = Some(tree);
                Ok(())
            }
            _ => Err(unexpected(member)),
        })
    }

    fn take_about(&mut self, bytes: &[u8]) -> Result<(), Error> {
        let about = LayerDescriptor::parse(bytes)?;
        if about.digest != *self.digest {
            let (found, announced) = (about.digest.to_string(), self.digest.to_string());
            return Err(Error::OtherLayer { found, announced });
        }
        self.about = Some(about);
        Ok(())
    }
}
