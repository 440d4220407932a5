//! Streaming hashes: SHA-3 and size of a package while it is read, SHA-2 of the blobs inside.
//!
//! Fetch thread. A package goes through `Package` once; whoever unpacks it reads from there, and
//! `finish` reads what nobody wanted and gives the verdict. Not here: where the bytes come from.

use std::fmt::Write as _;
use std::io::{self, Read};
use std::time::Duration;

use openssl::error::ErrorStack;
use openssl::hash::{Hasher, MessageDigest};
use openssl::sha::{Sha256, Sha384, Sha512};

use crate::image::download::{self, Source};
use crate::image::error::Error;
use crate::model::desired::PackageSource;
use crate::model::id::Digest;
use crate::ports::Halt;
use crate::sys;

/// Lower-case hexadecimal text.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// SHA-2 hash of the kind that a digest asks for.
#[derive(Clone)]
pub(super) enum BlobHash {
    Sha256(Sha256),
    Sha384(Sha384),
    Sha512(Sha512),
}

impl BlobHash {
    pub(super) fn of(digest: &Digest) -> Self {
        match digest.algorithm() {
            "sha384" => Self::Sha384(Sha384::new()),
            "sha512" => Self::Sha512(Sha512::new()),
            _ => Self::Sha256(Sha256::new()),
        }
    }

    pub(super) fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(hash) => hash.update(bytes),
            Self::Sha384(hash) => hash.update(bytes),
            Self::Sha512(hash) => hash.update(bytes),
        }
    }

    /// Compares with the digest that `of` got.
    pub(super) fn check(self, digest: &Digest) -> Result<(), Error> {
        let found = match self {
            Self::Sha256(hash) => hex(&hash.finish()),
            Self::Sha384(hash) => hex(&hash.finish()),
            Self::Sha512(hash) => hex(&hash.finish()),
        };
        if found == digest.hex() {
            Ok(())
        } else {
            Err(Error::BlobMismatch { digest: digest.to_string() })
        }
    }
}

/// Checks a blob that is in memory.
pub(super) fn check_blob(content: &[u8], digest: &Digest) -> Result<(), Error> {
    let mut hash = BlobHash::of(digest);
    hash.update(content);
    hash.check(digest)
}

/// A reader that hashes what passes through it.
pub(super) struct Hashed<'a, R> {
    input: R,
    hash: BlobHash,
    digest: &'a Digest,
}

impl<'a, R: Read> Hashed<'a, R> {
    pub(super) fn new(input: R, digest: &'a Digest) -> Self {
        Self { input, hash: BlobHash::of(digest), digest }
    }

    /// Reads the rest and checks the whole.
    pub(super) fn finish(mut self) -> Result<(), Finish> {
        let mut scratch = vec![0; 16 << 10];
        while self.read(&mut scratch).map_err(Finish::Read)? > 0 {}
        self.hash.check(self.digest).map_err(Finish::Wrong)
    }
}

/// How a blob that was read to its end failed.
pub(super) enum Finish {
    Read(io::Error),
    Wrong(Error),
}

impl<R: Read> Read for Hashed<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.input.read(buffer)?;
        self.hash.update(&buffer[..read]);
        Ok(read)
    }
}

/// A package on its way: counted, hashed, and never longer than announced.
pub(super) struct Package<'a> {
    source: Source<'a>,
    announced: &'a PackageSource,
    halt: Halt<'a>,
    read_bytes: u64,
    sha3_256: Hasher,
    /// Only where one is announced: v4 has none.
    sha3_512: Option<Hasher>,
    /// What an error that `read` returned really was.
    failure: Option<Error>,
    /// CLOCK_MONOTONIC at the last word about progress.
    told_at: Duration,
    /// See `TimeLimits::progress`.
    progress: Duration,
}

impl<'a> Package<'a> {
    pub(super) fn new(
        source: Source<'a>,
        announced: &'a PackageSource,
        progress: Duration,
        halt: Halt<'a>,
    ) -> Result<Self, Error> {
        let has_512 = !announced.sha3_512.is_empty();
        let sha3_512 = has_512.then(|| Hasher::new(MessageDigest::sha3_512()));
        Ok(Self {
            source,
            announced,
            halt,
            read_bytes: 0,
            sha3_256: Hasher::new(MessageDigest::sha3_256())?,
            sha3_512: sha3_512.transpose()?,
            failure: None,
            told_at: sys::time::monotonic(),
            progress,
        })
    }

    pub(super) fn announced_bytes(&self) -> u64 {
        self.announced.size_bytes
    }

    /// The error of the source behind an error that `read` returned.
    pub(super) fn take_failure(&mut self) -> Option<Error> {
        self.failure.take()
    }

    /// Reads the rest, compares size and hashes; returns the SHA3-256 of the package.
    pub(super) fn finish(mut self) -> Result<Vec<u8>, Error> {
        let mut scratch = vec![0; 64 << 10];
        loop {
            match self.read(&mut scratch) {
                Ok(0) => break,
                Ok(_) => {}
                Err(source) => {
                    let url = self.announced.url.clone();
                    let other = || Error::Source { url, source: download::Error::Read { source } };
                    return Err(self.failure.take().unwrap_or_else(other));
                }
            }
        }
        if self.read_bytes != self.announced.size_bytes {
            return Err(self.size_mismatch(self.read_bytes.to_string()));
        }
        let sha3_256 = self.sha3_256.finish()?.to_vec();
        if !self.announced.sha3_256.is_empty() && self.announced.sha3_256 != sha3_256 {
            return Err(Error::Sha256Mismatch);
        }
        let sha3_512 = self.sha3_512.as_mut().map(Hasher::finish).transpose()?;
        match sha3_512 {
            Some(found) if *found != *self.announced.sha3_512 => Err(Error::Sha512Mismatch),
            _ => Ok(sha3_256),
        }
    }

    fn size_mismatch(&self, found: String) -> Error {
        Error::SizeMismatch { announced: self.announced.size_bytes, found }
    }

    fn hash(&mut self, bytes: &[u8]) -> Result<(), ErrorStack> {
        self.sha3_256.update(bytes)?;
        self.sha3_512.as_mut().map_or(Ok(()), |hash| hash.update(bytes))
    }

    fn tell_progress(&mut self) {
        let now = sys::time::monotonic();
        if now.saturating_sub(self.told_at) >= self.progress {
            self.told_at = now;
            let (read, size) = (self.read_bytes, self.announced.size_bytes);
            log::info!(
                "package on its way url={} read={read} size={size}",
                self.announced.shown_url()
            );
        }
    }

    fn fail(&mut self, error: Error) -> io::Error {
        let text = error.to_string();
        self.failure = Some(error);
        io::Error::other(text)
    }
}

impl Read for Package<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.failure.is_some() {
            // Whoever reads on to explain a damage must not wait for the source once more.
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        if (self.halt)() {
            return Err(self.fail(Error::Halted));
        }
        let read = match self.source.read(buffer) {
            Ok(read) => read,
            Err(source) => {
                let url = self.announced.url.clone();
                return Err(self.fail(Error::Source { url, source }));
            }
        };
        self.read_bytes += read as u64;
        if self.read_bytes > self.announced.size_bytes {
            let more = self.size_mismatch(format!("{} or more", self.read_bytes));
            return Err(self.fail(more));
        }
        self.tell_progress();
        match self.hash(&buffer[..read]) {
            Ok(()) => Ok(read),
            Err(error) => Err(self.fail(error.into())),
        }
    }
}

#[cfg(test)]
mod tests {
    use sha2::Digest as _;

    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    fn digest(text: &str) -> Digest {
        Digest::parse(text).unwrap()
    }

    #[test]
    fn blobs() {
        let empty_object =
            "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a";
        assert!(check_blob(b"{}", &digest(empty_object)).is_ok());
        assert!(check_blob(b"{ }", &digest(empty_object)).is_err());
        let sha384 = format!("sha384:{}", hex(&sha2::Sha384::digest(b"x")));
        let sha512 = format!("sha512:{}", hex(&sha2::Sha512::digest(b"x")));
        for text in [sha384, sha512] {
            assert!(check_blob(b"x", &digest(&text)).is_ok());
            assert!(check_blob(b"y", &digest(&text)).is_err());
            assert!(Hashed::new(&b"x"[..], &digest(&text)).finish().is_ok());
            assert!(Hashed::new(&b"y"[..], &digest(&text)).finish().is_err());
        }
    }

    fn announce(size_bytes: u64) -> PackageSource {
        let bytes = |text: &str| -> Vec<u8> {
            let pair = |at| u8::from_str_radix(&text[at..at + 2], 16).unwrap();
            (0..text.len()).step_by(2).map(pair).collect()
        };
        PackageSource {
            url: "test".to_owned(),
            sha3_256: bytes("3a985da74fe225b2045c172d6bd390bd855f086e3e9d525b46bfe24511431532"),
            sha3_512: bytes(
                "b751850b1a57168a5693cd924b6b096e08f621827444f70d884f5d0240d2712e\
                 10e116e9192af3c91a7ec57647e3934057340b4cf408d5a56592f8274eec53f0",
            ),
            size_bytes,
        }
    }

    #[test]
    fn packages() {
        let check = |announced: &PackageSource, expect: Result<(), &str>| {
            let package =
                Package::new(Source::from_reader(&b"abc"[..]), announced, HOUR, &|| false).unwrap();
            let got = package.finish().map(drop).map_err(|error| error.to_string());
            assert_eq!(got, expect.map_err(str::to_owned));
        };
        check(&announce(3), Ok(()));
        check(&announce(4), Err("file size mismatch: 4 bytes announced, 3 found"));
        check(&announce(2), Err("file size mismatch: 2 bytes announced, 3 or more found"));
        let mut wrong = announce(3);
        wrong.sha3_512[5] ^= 1;
        check(&wrong, Err("checksum sha512 mismatch"));
        wrong.sha3_512.clear();
        check(&wrong, Ok(()));
        wrong.sha3_256.truncate(31);
        check(&wrong, Err("checksum sha256 mismatch"));
        wrong.sha3_256.clear();
        check(&wrong, Ok(()));
    }
}
