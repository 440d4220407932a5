//! Certificates and keys in PKCS#11 tokens, named by the URLs of RFC 7512.
//!
//! Runs on cm-rx and iam whenever a certificate is asked for. The token is looked at by ourselves
//! first: C-core reports a missing key or a wrong PIN only by a connection that never comes up, and
//! tries the PIN again at every attempt until the token is locked. The key itself is then used by
//! OpenSSL, through a provider named `pkcs11` if its configuration has one, else through its
//! engine of that name. Deliberately not here: TPM handles, writing to tokens.

use std::collections::hash_map::DefaultHasher;
use std::ffi::{CStr, OsStr};
use std::hash::{Hash, Hasher};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use crate::rpc::Error;
use crate::rpc::keys::{CERTIFICATE, pem, percent_decoded, read};
use crate::sys::pkcs11::{self, Class, Module, Object, Query, Session, Token};

/// Name of OpenSSL's engine and of its provider.
const OPENSSL_NAME: &CStr = c"pkcs11";
/// Library when neither the URL nor the configuration names one, as in SM 9.
const DEFAULT_LIBRARY: &str = "/usr/lib/softhsm/libsofthsm2.so";
/// Certificates of one chain.
const MAX_CHAIN: usize = 8;
/// PINs that tokens refused and that are remembered.
const MAX_REFUSED: usize = 16;

/// Access to tokens: the configured library and what must not be tried again.
#[derive(Debug, Default)]
pub struct Tokens {
    library: Option<PathBuf>,
    /// Tokens and hashes of PINs that they refused. Two threads connect, and neither may try what
    /// the other one has seen refused; a channel would need a third thread to own it.
    refused: Mutex<Vec<u64>>,
}

impl Tokens {
    /// `library` is used for URLs that name none.
    pub fn new(library: Option<&Path>) -> Self {
        Self { library: library.map(Path::to_owned), refused: Mutex::default() }
    }

    /// The certificate that the URL names and those of its issuers that are on the same token.
    pub fn chain_for_core(&self, url: &str) -> Result<Vec<u8>, Error> {
        let url = self.parsed(url)?;
        let module = url.module()?;
        let token = url.token(&module)?;
        let session = module.session(&token).map_err(|source| url.failed(source))?;
        let leaf = match url.object(&session, Class::Certificate, "certificate") {
            // Most certificates are public; the PIN is for those that are not.
            Err(Error::NoObject { .. }) if token.needs_login() => {
                self.login(&session, &token, &url)?;
                url.object(&session, Class::Certificate, "certificate")?
            }
            found => found?,
        };
        chain(&session, leaf).map_err(|source| url.failed(source))
    }

    /// What C-core takes for the private key that the URL names.
    pub fn key_for_core(&self, url: &str) -> Result<Vec<u8>, Error> {
        let url = self.parsed(url)?;
        let module = url.module()?;
        let token = url.token(&module)?;
        let session = module.session(&token).map_err(|source| url.failed(source))?;
        if token.needs_login() {
            self.login(&session, &token, &url)?;
        }
        url.object(&session, Class::PrivateKey, "private key")?;
        let for_openssl = url.for_openssl(&url.pin()?);
        if pkcs11::has_provider(OPENSSL_NAME) {
            return Ok(provider_pem(&for_openssl));
        }
        pkcs11::set_up_engine(OPENSSL_NAME, &url.library)
            .map_err(|source| Error::Engine { url: url.public.clone(), source })?;
        Ok(format!("engine:pkcs11:{for_openssl}").into_bytes())
    }

    fn parsed(&self, text: &str) -> Result<Url, Error> {
        let mut url = Url::parse(text).map_err(|reason| refused(text, reason))?;
        if url.library.as_os_str().is_empty() {
            url.library = self.library.clone().unwrap_or_else(|| DEFAULT_LIBRARY.into());
        }
        Ok(url)
    }

    /// Tries a PIN once; a refused one is tried again only when it has changed.
    fn login(&self, session: &Session<'_>, token: &Token, url: &Url) -> Result<(), Error> {
        let pin = url.pin()?;
        let refuse = |reason| Err(Error::Url { url: url.public.clone(), reason });
        let known = fingerprint(token, &pin);
        let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        match () {
            () if token.is_locked() => return refuse("the PIN of the token is locked"),
            () if refused.contains(&known) => {
                return refuse("the token has refused this PIN; it is not tried again");
            }
            () if token.has_one_try_left() => {
                return refuse("one more wrong PIN would lock the token: log in by hand first");
            }
            () => {}
        }
        session.login(&pin).map_err(|source| {
            if source.is_bad_pin() {
                let surplus = (refused.len() + 1).saturating_sub(MAX_REFUSED);
                refused.drain(..surplus);
                refused.push(known);
            }
            url.failed(source)
        })
    }
}

/// Tells PINs apart without keeping them.
fn fingerprint(token: &Token, pin: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    (&token.label, pin).hash(&mut hasher);
    hasher.finish()
}

/// Follows the issuers on the token up to the root, which peers have anyway.
fn chain(session: &Session<'_>, leaf: Object) -> Result<Vec<u8>, pkcs11::Error> {
    let mut chain = pem(CERTIFICATE, &session.value(leaf)?);
    let mut last = leaf;
    for _ in 1..MAX_CHAIN {
        let issuer = session.issuer(last)?;
        if issuer.is_empty() || issuer == session.subject(last)? {
            break;
        }
        let query = Query { subject: Some(&issuer), ..Query::default() };
        let Some(next) = session.find(Class::Certificate, query)?.into_iter().next() else { break };
        if session.issuer(next)? == issuer {
            break; // a root
        }
        chain.extend(pem(CERTIFICATE, &session.value(next)?));
        last = next;
    }
    Ok(chain)
}

fn refused(url: &str, reason: &'static str) -> Error {
    Error::Url { url: public_part(url).to_owned(), reason }
}

/// The URL without its query and without a PIN that stands in the path.
pub(super) fn public_part(url: &str) -> &str {
    let path = url.split('?').next().unwrap_or_default();
    path.split(";pin-").next().unwrap_or_default()
}

/// A parsed `pkcs11:` URL.
#[derive(Debug, Default)]
struct Url {
    /// What may be shown of it.
    public: String,
    token: Option<Vec<u8>>,
    object: Option<Vec<u8>>,
    id: Option<Vec<u8>>,
    /// `module-path`; empty when there is none.
    library: PathBuf,
    pin_value: Option<Vec<u8>>,
    pin_source: Option<PathBuf>,
}

impl Url {
    /// Attributes that name something else than token, object, library and PIN are of no use for
    /// the search and are passed over, as both references do.
    fn parse(text: &str) -> Result<Self, &'static str> {
        let rest = text.strip_prefix("pkcs11:").ok_or("no pkcs11: URL")?;
        let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
        let mut url = Self { public: public_part(text).to_owned(), ..Self::default() };
        let attributes = path.split(';').chain(query.split('&'));
        for (name, value) in attributes.filter_map(|attribute| attribute.split_once('=')) {
            url.set(name, percent_decoded(value).ok_or("bad percent sign")?);
        }
        if url.object.is_none() && url.id.is_none() {
            return Err("names neither object nor id");
        }
        Ok(url)
    }

    fn set(&mut self, name: &str, value: Vec<u8>) {
        match name {
            "token" => self.token = Some(value),
            "object" => self.object = Some(value),
            "id" => self.id = Some(value),
            "module-path" => self.library = path(&value),
            "pin-value" => self.pin_value = Some(value),
            // RFC 7512 allows a URL of a file.
            "pin-source" => {
                let text = value.strip_prefix(b"file:").unwrap_or(&value);
                self.pin_source = Some(path(text.strip_prefix(b"//").unwrap_or(text)));
            }
            _ => {}
        }
    }

    fn failed(&self, source: pkcs11::Error) -> Error {
        Error::Token { url: self.public.clone(), source }
    }

    fn module(&self) -> Result<Module, Error> {
        Module::load(&self.library).map_err(|source| self.failed(source))
    }

    fn token(&self, module: &Module) -> Result<Token, Error> {
        let tokens = module.tokens().map_err(|source| self.failed(source))?;
        tokens
            .into_iter()
            .filter(Token::is_initialised)
            .find(|token| self.token.as_ref().is_none_or(|label| *label == token.label))
            .ok_or_else(|| refused(&self.public, "no slot holds this token"))
    }

    /// The value wins, as in the Go releases; without both the PIN is empty.
    fn pin(&self) -> Result<Vec<u8>, Error> {
        match (&self.pin_value, &self.pin_source) {
            (Some(pin), _) => Ok(pin.clone()),
            (None, Some(file)) => {
                let content = read(file)?;
                let pin = content.strip_suffix(b"\n").unwrap_or(&content);
                Ok(pin.strip_suffix(b"\r").unwrap_or(pin).to_vec())
            }
            (None, None) => Ok(Vec::new()),
        }
    }

    fn object(
        &self,
        session: &Session<'_>,
        class: Class,
        what: &'static str,
    ) -> Result<Object, Error> {
        let query =
            Query { label: self.object.as_deref(), id: self.id.as_deref(), ..Query::default() };
        let found = session.find(class, query).map_err(|source| self.failed(source))?;
        found.into_iter().next().ok_or_else(|| Error::NoObject { url: self.public.clone(), what })
    }

    /// The URL as OpenSSL's engine and provider read it. The library has been given to the engine,
    /// and stands in the configuration of the provider. A PIN file stays a file, so that the PIN is
    /// not in memory for as long as the connection, unless it ends in a newline: the engine would
    /// take that for a part of the PIN and make the token count a wrong one.
    fn for_openssl(&self, pin: &[u8]) -> String {
        let token = self.token.as_ref().map(|token| ("token", token));
        let object = self.object.as_ref().map(|object| ("object", object));
        let id = self.id.as_ref().map(|id| ("id", id));
        let mut text = "pkcs11:".to_owned();
        for (name, value) in [token, object, id].into_iter().flatten() {
            text.push_str(&format!("{name}={};", percent_encoded(value)));
        }
        text.push_str("type=private");
        match &self.pin_source {
            Some(file) if self.pin_value.is_none() && read(file).is_ok_and(|all| all == pin) => {
                text.push_str(&format!("?pin-source={}", file.display()));
            }
            _ if pin.is_empty() => {}
            _ => text.push_str(&format!("?pin-value={}", percent_encoded(pin))),
        }
        text
    }
}

fn path(bytes: &[u8]) -> PathBuf {
    PathBuf::from(OsStr::from_bytes(bytes))
}

fn percent_encoded(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for byte in bytes {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                text.push(char::from(*byte));
            }
            byte => text.push_str(&format!("%{byte:02X}")),
        }
    }
    text
}

/// A key as OpenSSL's PKCS#11 provider decodes it: a PEM block around a structure of its version
/// text (VisibleString) and the URL (UTF8String).
fn provider_pem(url: &str) -> Vec<u8> {
    pem("PKCS#11 PROVIDER URI", &provider_der(url))
}

fn provider_der(url: &str) -> Vec<u8> {
    let mut content = der(0x1a, b"PKCS#11 Provider URI v1.0");
    content.extend(der(0x0c, url.as_bytes()));
    der(0x30, &content)
}

/// One DER element of up to 64 KiB.
fn der(tag: u8, content: &[u8]) -> Vec<u8> {
    let [.., high, low] = content.len().to_be_bytes();
    let mut element = vec![tag];
    match (high, low) {
        (0, 0..=0x7f) => element.push(low),
        (0, _) => element.extend([0x81, low]),
        _ => element.extend([0x82, high, low]),
    }
    element.extend(content);
    element
}

#[cfg(test)]
mod tests;
