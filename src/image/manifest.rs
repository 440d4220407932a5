//! `manifest.json` of a service package and `layer.json` of a layer package.
//!
//! Pure; fetch and exec threads. Every digest is checked right here, so that paths are only ever
//! built from well-formed ones. Media types and annotations are not looked at. Not here: the
//! configurations that the manifest names (`config.rs`).

use crate::document::{self, Object};
use crate::image::error::Error;
use crate::model::id::Digest;

/// Largest `manifest.json` and `layer.json`, in bytes.
pub(super) const MAX_MANIFEST_BYTES: u64 = 1 << 20;
/// Entries of `layers`, the root file system of the service included.
pub(super) const MAX_LAYERS: usize = 64;

/// What is used of the image manifest.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Manifest {
    pub(super) config: Digest,
    pub(super) service_config: Option<Digest>,
    pub(super) rootfs: Digest,
    /// Shared layers in their order, each once.
    pub(super) layers: Vec<Digest>,
}

/// What a blob of a package is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Role {
    /// One or both of the configurations.
    Config,
    Rootfs,
    Unused,
}

impl Manifest {
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, Error> {
        const WHAT: &str = "manifest";
        let document = parse(WHAT, bytes)?;
        let digest_of = |key: &str| -> Result<Option<Digest>, Error> {
            let object = document.object(key).map_err(invalid(WHAT))?;
            object.map(|object| described(WHAT, &object)).transpose()
        };
        let config = digest_of("config")?.ok_or_else(|| content(WHAT, "no config".into()))?;
        let service_config = digest_of("aosService")?;
        let entries = document.objects("layers").map_err(invalid(WHAT))?.unwrap_or_default();
        if entries.len() > MAX_LAYERS {
            return Err(content(WHAT, format!("more than {MAX_LAYERS} layers")));
        }
        let mut entries = entries.iter().map(|entry| described(WHAT, entry));
        let rootfs = entries.next().ok_or(Error::NoLayers)??;
        let mut layers: Vec<Digest> = Vec::new();
        for entry in entries {
            let digest = entry?;
            // overlayfs refuses the same directory twice.
            if !layers.contains(&digest) {
                layers.push(digest);
            }
        }
        let manifest = Self { config, service_config, rootfs, layers };
        manifest.check_rootfs()?;
        Ok(manifest)
    }

    /// The root file system is unpacked, so nothing else can be the same blob.
    fn check_rootfs(&self) -> Result<(), Error> {
        let rootfs = &self.rootfs;
        if self.configs().any(|one| one == rootfs) || self.layers.contains(rootfs) {
            let reason = format!("the root file system {rootfs} is named as something else, too");
            return Err(content("manifest", reason));
        }
        Ok(())
    }

    /// The one or two configurations.
    pub(super) fn configs(&self) -> impl Iterator<Item = &Digest> {
        std::iter::once(&self.config).chain(&self.service_config)
    }

    pub(super) fn role(&self, digest: &Digest) -> Role {
        if *digest == self.rootfs {
            Role::Rootfs
        } else if self.configs().any(|one| one == digest) {
            Role::Config
        } else {
            Role::Unused
        }
    }
}

/// `layer.json`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct LayerDescriptor {
    pub(super) digest: Digest,
    pub(super) os_version: String,
}

impl LayerDescriptor {
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, Error> {
        const WHAT: &str = "layer.json";
        let document = parse(WHAT, bytes)?;
        let platform = document.object("platform").map_err(invalid(WHAT))?;
        let os_version = match &platform {
            Some(platform) => platform.str("os.version").map_err(invalid(WHAT))?,
            None => None,
        };
        let os_version = os_version.unwrap_or_default().to_owned();
        Ok(Self { digest: described(WHAT, &document)?, os_version })
    }
}

/// The digest of an OCI descriptor. Its size is not believed: builders fill in different things,
/// and the digest says more.
fn described(what: &'static str, object: &Object<'_>) -> Result<Digest, Error> {
    object.opt_i64("size").map_err(invalid(what))?;
    let text = object.str("digest").map_err(invalid(what))?.unwrap_or_default();
    Digest::parse(text).map_err(|error| content(what, error.to_string()))
}

/// Parses a document of a package.
pub(super) fn parse(what: &'static str, bytes: &[u8]) -> Result<Object<'static>, Error> {
    let text = std::str::from_utf8(bytes).map_err(|_| content(what, "not UTF-8".into()))?;
    Object::parse_tolerant(text).map_err(invalid(what))
}

pub(super) fn invalid(what: &'static str) -> impl Fn(document::Error) -> Error {
    move |source| Error::Document { what, source }
}

pub(super) fn content(what: &'static str, reason: String) -> Error {
    Error::Content { what, reason }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::status::chain;

    fn digest(letter: char) -> String {
        format!("sha256:{}", letter.to_string().repeat(64))
    }

    fn layers(letters: &str) -> String {
        let entries: Vec<_> =
            letters.chars().map(|one| format!(r#"{{"digest": "{}"}}"#, digest(one))).collect();
        format!("[{}]", entries.join(","))
    }

    #[test]
    fn manifests() {
        let parse = |letters: &str| {
            let text = format!(
                r#"{{"schemaVersion": 2, "Config": {{"digest": "{}", "size": 5}},
                    "aosService": {{"digest": "{}"}}, "layers": {}}}"#,
                digest('a'),
                digest('b'),
                layers(letters)
            );
            Manifest::parse(text.as_bytes()).map_err(|error| chain(&error))
        };
        let manifest = parse("cdede").unwrap();
        assert_eq!(manifest.rootfs.as_str(), digest('c'));
        let shared: Vec<_> = manifest.layers.iter().map(Digest::as_str).collect();
        assert_eq!(shared, [digest('d'), digest('e')]);
        let role = |letter| manifest.role(&Digest::parse(&digest(letter)).unwrap());
        assert_eq!([role('a'), role('b')], [Role::Config, Role::Config]);
        assert_eq!([role('c'), role('d')], [Role::Rootfs, Role::Unused]);
        assert_eq!(parse("").unwrap_err(), "no layers in image");
        for letters in ["a", "b", "cc"] {
            let error = parse(letters).unwrap_err();
            assert!(error.contains("is named as something else"), "{error}");
        }
        let many = |count: usize| parse(&format!("c{}", "d".repeat(count - 1)));
        assert!(many(MAX_LAYERS).is_ok());
        assert_eq!(many(MAX_LAYERS + 1).unwrap_err(), "invalid manifest: more than 64 layers");
    }

    #[test]
    fn refused() {
        let check = |text: &[u8], expect: &str| {
            let error = chain(&Manifest::parse(text).unwrap_err());
            assert!(error.starts_with(expect), "{error}");
        };
        check(b"", "invalid manifest: malformed JSON");
        check(b"{\xff}", "invalid manifest: not UTF-8");
        check(b"{}", "invalid manifest: no config");
        check(br#"{"config": {}}"#, "invalid manifest: malformed digest \"\"");
        check(br#"{"config": {"digest": 5}}"#, "invalid manifest: config.digest: 5 is not allowed");
        check(br#"{"config": {"digest": "../..:x"}}"#, "invalid manifest: malformed digest");
        check(br#"{"config": []}"#, "invalid manifest: config: an array is not allowed");
    }

    #[test]
    fn layer_descriptors() {
        let text = format!(
            r#"{{"digest": "{}", "size": -7, "platform": {{"os.version": "1.0"}}}}"#,
            digest('a')
        );
        let layer = LayerDescriptor::parse(text.as_bytes()).unwrap();
        assert_eq!((layer.os_version.as_str(), layer.digest.as_str()), ("1.0", &*digest('a')));
        assert!(LayerDescriptor::parse(b"[]").is_err());
        assert!(LayerDescriptor::parse(b"{}").is_err());
    }
}
