//! Decompression: what kind of archive a stream is, and that it ends where it should.
//!
//! Fetch thread. In: a raw stream. Out: a tar stream. Memory: the window of gzip and three
//! buffers, whatever the archive holds. Not here: hashes (they are taken on the raw stream).

use std::io::{self, BufReader, Cursor, Read};

use flate2::bufread::MultiGzDecoder;

use crate::image::error::Error;
use crate::image::tar;

/// Decompressed bytes after the end mark of an archive that are read, to see the checksum of the
/// compression: padding of large records. Trailing zeros compress a thousandfold, so there is an
/// end.
pub(super) const MAX_TRAILING_BYTES: u64 = 16 << 20;
const BUFFER_BYTES: usize = 64 << 10;
const MAGIC_BYTES: usize = 6;

/// A tar stream with the name of the part of the package it is, for messages.
pub(super) struct Archive<'a> {
    part: &'static str,
    input: Box<dyn Read + 'a>,
}

impl<'a> Archive<'a> {
    /// Looks at the first bytes. What is neither gzip nor another known compression is taken as
    /// plain tar, whose reader refuses what it is not.
    pub(super) fn open(mut input: impl Read + 'a, part: &'static str) -> Result<Self, Error> {
        let mut magic = Vec::with_capacity(MAGIC_BYTES);
        let peeked = input.by_ref().take(MAGIC_BYTES as u64).read_to_end(&mut magic);
        peeked.map_err(|source| read_error(part, source))?;
        if let Some(name) = unsupported(&magic) {
            return Err(Error::Compression { part, name });
        }
        let gzip = magic.starts_with(&[0x1f, 0x8b]);
        let raw = BufReader::with_capacity(BUFFER_BYTES, Cursor::new(magic).chain(input));
        let input: Box<dyn Read + 'a> = if gzip {
            Box::new(BufReader::with_capacity(BUFFER_BYTES, MultiGzDecoder::new(raw)))
        } else {
            Box::new(raw)
        };
        Ok(Self { part, input })
    }

    /// Reads behind the end mark to the end of the stream. Padding of any content is fine there,
    /// a damaged compression is not.
    pub(super) fn finish(mut self) -> Result<(), Error> {
        let mut rest = self.input.by_ref().take(MAX_TRAILING_BYTES + 1);
        let read = io::copy(&mut rest, &mut io::sink());
        let read = read.map_err(|source| read_error(self.part, source))?;
        if read > MAX_TRAILING_BYTES {
            return Err(Error::Trailing { part: self.part, limit: MAX_TRAILING_BYTES });
        }
        Ok(())
    }

    pub(super) fn part(&self) -> &'static str {
        self.part
    }
}

impl Read for Archive<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.input.read(buffer)
    }
}

/// An error while an archive is read, as the error of that archive.
pub(super) fn read_error(part: &'static str, source: io::Error) -> Error {
    Error::Archive { part, source: tar::read_error(source) }
}

fn unsupported(magic: &[u8]) -> Option<&'static str> {
    let known: [(&[u8], &str); 5] = [
        (b"\xfd7zXZ\0", "xz"),
        (b"BZh", "bzip2"),
        (b"\x28\xb5\x2f\xfd", "zstd"),
        (b"\x04\x22\x4d\x18", "lz4"),
        (b"\x1f\x9d", "compress"),
    ];
    known.iter().find(|(start, _)| magic.starts_with(start)).map(|(_, name)| *name)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::Compression;
    use flate2::write::GzEncoder;

    use super::*;

    fn gzip(content: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(content).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn streams() {
        let check = |bytes: &[u8], expect: Result<&[u8], &str>| {
            let read = || {
                let mut archive = Archive::open(bytes, "package")?;
                let mut content = Vec::new();
                let read = archive.read_to_end(&mut content);
                read.map_err(|source| read_error("package", source))?;
                archive.finish().map(|()| content)
            };
            let got = read().map_err(|error| crate::model::status::chain(&error));
            match expect {
                Ok(content) => assert_eq!(got.unwrap(), content),
                Err(text) => assert!(got.unwrap_err().contains(text), "{text}"),
            }
        };
        check(b"plain", Ok(b"plain"));
        check(b"", Ok(b""));
        check(&gzip(b"packed"), Ok(b"packed"));
        check(&[gzip(b"two "), gzip(b"members")].concat(), Ok(b"two members"));
        let mut garbage = gzip(b"packed");
        garbage.extend(b"garbage");
        check(&garbage, Err("malformed package archive"));
        let packed = gzip(b"packed");
        check(&packed[..packed.len() - 3], Err("malformed package archive"));
        let mut altered = packed.clone();
        let last = altered.len() - 5;
        altered[last] ^= 1;
        check(&altered, Err("malformed package archive"));
        check(b"\xfd7zXZ\0abc", Err("package: compression xz is not supported"));
        check(b"BZh9abc", Err("compression bzip2"));
        check(b"\x28\xb5\x2f\xfdabc", Err("compression zstd"));
    }

    #[test]
    fn padding_has_a_limit() {
        let zeros = |count: u64| io::repeat(0).take(count);
        let finish = |count| Archive::open(zeros(count), "package").unwrap().finish();
        assert!(finish(MAX_TRAILING_BYTES).is_ok());
        let error = finish(MAX_TRAILING_BYTES + 1).unwrap_err().to_string();
        assert_eq!(error, "package: more than 16777216 bytes after the end of the archive");
    }
}
