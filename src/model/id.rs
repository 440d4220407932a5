//! Identities as newtypes: swapping two of them does not compile.

use std::fmt;
use std::sync::Arc;

macro_rules! text_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
        pub struct $name(Arc<str>);

        impl $name {
            /// Takes the text as it is.
            pub fn new(text: &str) -> Self {
                Self(Arc::from(text))
            }
            /// The text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

text_id!(
    /// Id of a service, chosen by the cloud.
    ServiceId
);
text_id!(
    /// Id of the subject (user, unit, group) a service runs for.
    SubjectId
);
text_id!(
    /// Id of a network; equals the id of the service provider.
    NetworkId
);
text_id!(
    /// Id of one instance on this node: a random UUID in lower case, also the name of its
    /// container, control group, network namespace and bundle directory.
    InstanceId
);

/// Digest of a layer or blob in OCI notation, checked: `sha256:`, `sha384:` or `sha512:` followed
/// by lower-case hexadecimal digits of the right number.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Digest(Arc<str>);

/// A text that is no digest in OCI notation.
#[derive(Debug, thiserror::Error)]
#[error("malformed digest {0:?}")]
pub struct MalformedDigest(pub String);

impl Digest {
    /// Checks and takes the text.
    pub fn parse(text: &str) -> Result<Self, MalformedDigest> {
        let malformed = || MalformedDigest(text.chars().take(200).collect());
        let (algorithm, hex) = text.split_once(':').ok_or_else(malformed)?;
        let digits = match algorithm {
            "sha256" => 64,
            "sha384" => 96,
            "sha512" => 128,
            _ => return Err(malformed()),
        };
        let lower_hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        if hex.len() != digits || !hex.bytes().all(lower_hex) {
            return Err(malformed());
        }
        Ok(Self(Arc::from(text)))
    }

    /// The whole text, `<algorithm>:<hex>`.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// `sha256`, `sha384` or `sha512`.
    pub fn algorithm(&self) -> &str {
        self.0.split_once(':').map_or("", |(a, _)| a)
    }

    /// The hexadecimal digits.
    pub fn hex(&self) -> &str {
        self.0.split_once(':').map_or("", |(_, h)| h)
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Which instance the CM means: the index alone is not unique.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct InstanceIdent {
    pub service_id: ServiceId,
    pub subject_id: SubjectId,
    pub instance: u64,
}

impl fmt::Display for InstanceIdent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.service_id, self.subject_id, self.instance)
    }
}

/// One version of a service: the unit of installation.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct ServiceKey {
    pub id: ServiceId,
    /// Semantic version in v4, decimal number in v3.
    pub version: Arc<str>,
}

impl fmt::Display for ServiceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.id, self.version)
    }
}

/// What is installed: a version of a service or a layer.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum PackageKey {
    Service(ServiceKey),
    /// The digest text as the manifest and the CM spell it.
    Layer(Digest),
}

impl fmt::Display for PackageKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Service(key) => write!(f, "service {key}"),
            Self::Layer(digest) => write!(f, "layer {digest}"),
        }
    }
}
