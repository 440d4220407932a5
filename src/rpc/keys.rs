//! Certificates and keys as C-core takes them: PEM text, checked before it gets there.
//!
//! C-core reports a bad certificate or key only by a connection that never comes up, and its
//! binding aborts on a NUL byte, so everything is looked through here. No cryptography: whether
//! key and certificate belong together shows in the handshake.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use crate::rpc::Error;
use crate::rpc::token::{Tokens, public_part};

/// Largest certificate or key file.
const FILE_LIMIT_BYTES: u64 = 1 << 20;
/// Characters of a line of PEM text.
const PEM_LINE: usize = 64;
const BEGIN: &str = "-----BEGIN ";
const END: &str = "-----END ";
pub(super) const CERTIFICATE: &str = "CERTIFICATE";

/// The root certificates of a bundle.
pub fn roots_for_core(path: &Path) -> Result<Vec<u8>, Error> {
    certificates(path)
}

/// The certificate chain that `cert_url` names, leaf first.
pub fn chain_for_core(tokens: &Tokens, cert_url: &str) -> Result<Vec<u8>, Error> {
    match scheme(cert_url) {
        "file" => certificates(&file_path(cert_url)?),
        "pkcs11" => tokens.chain_for_core(cert_url),
        _ => Err(refused(cert_url, "a certificate is named by file: or pkcs11:")),
    }
}

/// The private key that `key_url` names.
pub fn key_for_core(tokens: &Tokens, key_url: &str) -> Result<Vec<u8>, Error> {
    match scheme(key_url) {
        "file" => private_key(&file_path(key_url)?),
        "pkcs11" => tokens.key_for_core(key_url),
        "tpm" => Err(refused(key_url, "keys named by TPM handles are not supported")),
        _ => Err(refused(key_url, "a key is named by file: or pkcs11:")),
    }
}

fn scheme(url: &str) -> &str {
    url.split_once(':').map_or("", |(scheme, _)| scheme)
}

fn refused(url: &str, reason: &'static str) -> Error {
    Error::Url { url: public_part(url).to_owned(), reason }
}

/// `file:///p`, `file://host/p` (the host is ignored) and `file:/p`.
fn file_path(url: &str) -> Result<PathBuf, Error> {
    let rest = url.strip_prefix("file:").unwrap_or(url);
    let path = match rest.strip_prefix("//") {
        Some(authority) => authority.find('/').and_then(|at| authority.get(at..)).unwrap_or(""),
        None => rest,
    };
    if !path.starts_with('/') {
        return Err(refused(url, "has no absolute path"));
    }
    let path = percent_decoded(path).and_then(|bytes| String::from_utf8(bytes).ok());
    path.ok_or_else(|| refused(url, "bad percent sign")).map(PathBuf::from)
}

/// `None` for a percent sign without two digits.
pub(super) fn percent_decoded(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        if first != b'%' {
            bytes.push(first);
            rest = tail;
            continue;
        }
        let digits = std::str::from_utf8(tail.get(..2)?).ok()?;
        bytes.push(u8::from_str_radix(digits, 16).ok()?);
        rest = tail.get(2..)?;
    }
    Some(bytes)
}

pub(super) fn read(path: &Path) -> Result<Vec<u8>, Error> {
    let failed = |source| Error::Read { path: path.to_owned(), source };
    let file = File::open(path).map_err(failed)?;
    let mut content = Vec::new();
    file.take(FILE_LIMIT_BYTES + 1).read_to_end(&mut content).map_err(failed)?;
    if content.len() as u64 > FILE_LIMIT_BYTES {
        return Err(Error::Content { path: path.to_owned(), reason: "is too large" });
    }
    Ok(content)
}

/// All certificates of a PEM file, or the one of a DER file; other blocks are skipped.
fn certificates(path: &Path) -> Result<Vec<u8>, Error> {
    let bad = |reason| Error::Content { path: path.to_owned(), reason };
    let content = read(path)?;
    if is_der(&content) {
        return Ok(pem(CERTIFICATE, &content));
    }
    let mut chain = Vec::new();
    for block in blocks(&content).map_err(bad)? {
        if block.label == CERTIFICATE {
            if !is_der(&block.der) {
                return Err(bad("holds a certificate that is no DER structure"));
            }
            chain.extend(pem(CERTIFICATE, &block.der));
        }
    }
    if chain.is_empty() {
        return Err(bad("holds no certificate"));
    }
    Ok(chain)
}

/// The first private key of a PEM file, or the one of a DER file.
fn private_key(path: &Path) -> Result<Vec<u8>, Error> {
    let bad = |reason| Error::Content { path: path.to_owned(), reason };
    let content = read(path)?;
    if is_der(&content) {
        let label = key_label(&content).ok_or_else(|| bad("holds no private key"))?;
        return Ok(pem(label, &content));
    }
    for block in blocks(&content).map_err(bad)? {
        match block.label.as_str() {
            // Some tools write the curve in front of the key.
            CERTIFICATE | "EC PARAMETERS" | "PUBLIC KEY" => {}
            "ENCRYPTED PRIVATE KEY" => return Err(bad("holds an encrypted key")),
            _ if block.encrypted => return Err(bad("holds an encrypted key")),
            _ => {
                // The label may be wrong, the structure tells.
                let label = key_label(&block.der).ok_or_else(|| bad("holds no private key"))?;
                return Ok(pem(label, &block.der));
            }
        }
    }
    Err(bad("holds no private key"))
}

struct Block {
    label: String,
    der: Vec<u8>,
    /// It has the headers of an old-style encrypted key.
    encrypted: bool,
}

fn blocks(content: &[u8]) -> Result<Vec<Block>, &'static str> {
    let text = std::str::from_utf8(content).map_err(|_| "is neither PEM nor DER")?;
    if text.contains('\0') {
        return Err("contains a NUL byte");
    }
    let mut found = Vec::new();
    let mut lines = text.lines().map(str::trim);
    while let Some(line) = lines.next() {
        let Some(label) = line.strip_prefix(BEGIN).and_then(|l| l.strip_suffix("-----")) else {
            continue;
        };
        let mut block = Block { label: label.to_owned(), der: Vec::new(), encrypted: false };
        let mut body = String::new();
        loop {
            let line = lines.next().ok_or("holds a PEM block without an end")?;
            if line.starts_with(END) {
                break;
            }
            match line.contains(':') {
                true => block.encrypted |= line.contains("ENCRYPTED"),
                false => body.push_str(line),
            }
        }
        if !block.encrypted {
            block.der = base64_decoded(&body).ok_or("holds a PEM block that is not base64")?;
        }
        found.push(block);
    }
    Ok(found)
}

/// A DER SEQUENCE that is as long as it says.
fn is_der(content: &[u8]) -> bool {
    der_value(content, 0x30).is_some_and(|(_, rest)| rest.is_empty())
}

/// Value and rest of the element with this tag at the start of `der`.
fn der_value(der: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let [first, length, rest @ ..] = der else { return None };
    if *first != tag {
        return None;
    }
    let (length, rest) = match usize::from(*length) {
        short @ ..0x80 => (short, rest),
        long => {
            let digits = rest.get(..long & 0x7f).filter(|d| (1..=4).contains(&d.len()))?;
            let length = digits.iter().fold(0usize, |sum, d| (sum << 8) | usize::from(*d));
            (length, rest.get(digits.len()..)?)
        }
    };
    rest.split_at_checked(length)
}

/// PKCS#8 has an algorithm after the version, PKCS#1 a number, SEC1 an octet string.
fn key_label(der: &[u8]) -> Option<&'static str> {
    let (body, _) = der_value(der, 0x30)?;
    let (_version, rest) = der_value(body, 0x02)?;
    match rest.first()? {
        0x30 => Some("PRIVATE KEY"),
        0x02 => Some("RSA PRIVATE KEY"),
        0x04 => Some("EC PRIVATE KEY"),
        _ => None,
    }
}

pub(super) fn pem(label: &str, der: &[u8]) -> Vec<u8> {
    let mut text = format!("{BEGIN}{label}-----\n");
    for (at, symbol) in base64_encoded(der).chars().enumerate() {
        if at > 0 && at % PEM_LINE == 0 {
            text.push('\n');
        }
        text.push(symbol);
    }
    text.push_str(&format!("\n{END}{label}-----\n"));
    text.into_bytes()
}

const BASE64: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

fn base64_encoded(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let byte = |at: usize| u32::from(group.get(at).copied().unwrap_or(0));
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for at in 0..4 {
            let symbol = BASE64[(bits >> (18 - 6 * at)) as usize & 63];
            text.push(if at <= group.len() { char::from(symbol) } else { '=' });
        }
    }
    text
}

fn base64_decoded(text: &str) -> Option<Vec<u8>> {
    let symbols = text.trim_end_matches('=').as_bytes();
    let mut bytes = Vec::with_capacity(symbols.len() / 4 * 3 + 2);
    let (mut bits, mut count) = (0u32, 0u32);
    for symbol in symbols {
        let value = BASE64.iter().position(|s| s == symbol)?;
        bits = bits << 6 | u32::try_from(value).ok()?;
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push(u8::try_from(bits >> count & 0xff).ok()?);
        }
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The outer structure of a key: a version and then elements with these tags.
    fn der(tags: &[u8]) -> Vec<u8> {
        let mut body = vec![0x02, 0x01, 0x00];
        for tag in tags {
            body.extend([*tag, 0x01, 0x2a]);
        }
        let mut der = vec![0x30, u8::try_from(body.len()).unwrap()];
        der.extend(body);
        der
    }

    fn file(content: &[u8]) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::io::Write::write_all(&mut file.as_file(), content).unwrap();
        file
    }

    fn loaded(load: fn(&Tokens, &str) -> Result<Vec<u8>, Error>, content: &[u8]) -> String {
        let file = file(content);
        match load(&Tokens::default(), &format!("file://{}", file.path().display())) {
            Ok(text) => String::from_utf8(text).unwrap(),
            Err(Error::Content { reason, .. }) => format!("error: {reason}"),
            Err(error) => panic!("{error}"),
        }
    }

    #[test]
    fn keys_become_pem_with_the_label_of_their_structure() {
        let (pkcs8, pkcs1, sec1) = (der(&[0x30, 0x04]), der(&[0x02, 0x02]), der(&[0x04, 0xa0]));
        let check = |content: &[u8], expect: Vec<u8>| {
            assert_eq!(loaded(key_for_core, content).as_bytes(), expect);
        };
        check(&pkcs8, pem("PRIVATE KEY", &pkcs8));
        check(&pkcs1, pem("RSA PRIVATE KEY", &pkcs1));
        check(&sec1, pem("EC PRIVATE KEY", &sec1));
        check(&pem("EC PRIVATE KEY", &sec1), pem("EC PRIVATE KEY", &sec1));
        check(&pem("ANYTHING", &pkcs8), pem("PRIVATE KEY", &pkcs8));
        let curve = pem("EC PARAMETERS", &[0x06, 0x01, 0x00]);
        check(&[curve, pem("EC PRIVATE KEY", &sec1)].concat(), pem("EC PRIVATE KEY", &sec1));
        let crlf = String::from_utf8(pem("PRIVATE KEY", &pkcs8)).unwrap().replace('\n', "\r\n");
        check(crlf.as_bytes(), pem("PRIVATE KEY", &pkcs8));
    }

    #[test]
    fn bad_keys_are_refused_before_they_reach_the_library() {
        let check = |content: &[u8], reason: &str| {
            assert_eq!(loaded(key_for_core, content), format!("error: {reason}"));
        };
        check(b"", "holds no private key");
        check(b"\0\0", "contains a NUL byte");
        check(&[0xff, 0xfe], "is neither PEM nor DER");
        check(&pem("CERTIFICATE", &der(&[0x30])), "holds no private key");
        check(&pem("ENCRYPTED PRIVATE KEY", &der(&[0x30])), "holds an encrypted key");
        check(b"-----BEGIN PRIVATE KEY-----\nAAAA\n", "holds a PEM block without an end");
        check(
            b"-----BEGIN PRIVATE KEY-----\n!!\n-----END PRIVATE KEY-----\n",
            "holds a PEM block that is not base64",
        );
        check(
            b"-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\n\nAAAA\n-----END RSA PRIVATE KEY-----\n",
            "holds an encrypted key",
        );
        check(&vec![b' '; 1 + usize::try_from(FILE_LIMIT_BYTES).unwrap()], "is too large");
    }

    #[test]
    fn chains_keep_their_order_and_lose_everything_else() {
        let (leaf, issuer) = (der(&[0x30]), der(&[0x30, 0x30]));
        let check = |content: &[u8], expect: Vec<u8>| {
            assert_eq!(loaded(chain_for_core, content).as_bytes(), expect);
        };
        let chain = [pem(CERTIFICATE, &leaf), pem(CERTIFICATE, &issuer)].concat();
        check(&leaf, pem(CERTIFICATE, &leaf));
        check(&chain, chain.clone());
        check(&[b"text\n".to_vec(), pem("PRIVATE KEY", &leaf), chain.clone()].concat(), chain);
        assert_eq!(loaded(chain_for_core, b""), "error: holds no certificate");
        assert_eq!(
            loaded(chain_for_core, &pem(CERTIFICATE, b"no structure")),
            "error: holds a certificate that is no DER structure"
        );
    }

    #[test]
    fn urls_are_read_as_the_peers_write_them() {
        let check = |url: &str, expect: &str| {
            let text = match file_path(url) {
                Ok(path) => path.display().to_string(),
                Err(error) => error.to_string(),
            };
            assert_eq!(text, expect);
        };
        check("file:///var/aos/sm.pem", "/var/aos/sm.pem");
        check("file://host/var/aos/sm.pem", "/var/aos/sm.pem");
        check("file:/var/aos/sm.pem", "/var/aos/sm.pem");
        check("file:///var/a%20b%2Fc", "/var/a b/c");
        check("file:///var/%zz", r#"bad URL "file:///var/%zz": bad percent sign"#);
        check("file://var", r#"bad URL "file://var": has no absolute path"#);
    }

    #[test]
    fn other_schemes_are_refused_without_telling_the_pin() {
        let check = |url: &str, expect: &str| {
            assert_eq!(key_for_core(&Tokens::default(), url).unwrap_err().to_string(), expect);
        };
        check(
            "pkcs11:token=aos?pin-value=1234",
            r#"bad URL "pkcs11:token=aos": names neither object nor id"#,
        );
        check(
            "pkcs11:token=aos;pin-value=1234",
            r#"bad URL "pkcs11:token=aos": names neither object nor id"#,
        );
        check(
            "tpm:0x81000001",
            r#"bad URL "tpm:0x81000001": keys named by TPM handles are not supported"#,
        );
        check("", r#"bad URL "": a key is named by file: or pkcs11:"#);
        check("/var/key", r#"bad URL "/var/key": a key is named by file: or pkcs11:"#);
    }

    #[test]
    fn base64_survives_every_length() {
        for length in 0..70u8 {
            let bytes: Vec<u8> = (0..length).map(|b| b.wrapping_mul(37)).collect();
            assert_eq!(base64_decoded(&base64_encoded(&bytes)), Some(bytes));
        }
        assert_eq!(base64_encoded(b"ab"), "YWI=");
        assert_eq!(base64_decoded("YW\u{e9}"), None);
    }
}
