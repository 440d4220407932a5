//! The identity and access manager of this node: where the certificate is, who the node is,
//! secrets of instances.
//!
//! Runs on the iam thread; the question for the certificate is also asked by cm-rx, through
//! `rpc::CertSource`. Everything is asked of IAM's public server but the secrets, which need
//! mutual TLS. Deliberately not here: who gets a secret and when (core).

pub mod v5;
pub mod watch;

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use crate::model::status::chain;
use crate::rpc::token::Tokens;
use crate::rpc::{self, CertSource, Certificate, Connection, Pending};

/// Messages of IAM, generated. Only this module and the simulated unit use them.
#[doc(hidden)]
#[allow(unreachable_pub, missing_docs, clippy::all, clippy::pedantic)]
pub mod wire {
    pub mod v5 {
        include!(concat!(env!("OUT_DIR"), "/iam_v5/mod.rs"));
    }
    pub mod version {
        include!(concat!(env!("OUT_DIR"), "/iam_version/mod.rs"));
    }
}

/// Deadline of one call.
pub const CALL_LIMIT: Duration = Duration::from_secs(10);

/// Where IAM is and what we are to it.
#[derive(Clone, Debug)]
pub struct Settings {
    /// `host:port`
    pub public_url: String,
    /// `host:port`
    pub protected_url: String,
    /// PEM bundle with the root certificates.
    pub ca_cert: PathBuf,
    /// Type of our certificate, usually `sm` (configuration key `certStorage`).
    pub cert_type: String,
    pub timing: Timing,
}

/// Times that tests shorten.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// Deadline of one call.
    pub call: Duration,
    /// First and longest pause before trying again; it doubles.
    pub pause: (Duration, Duration),
    /// Between questions about the node: IAM does not tell when it changes.
    pub node_info: Duration,
    /// Life of an unused protected connection. It serves a burst of calls and is closed then:
    /// when idle it would not notice that IAM went away.
    pub idle: Duration,
    pub keepalive: rpc::Keepalive,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            call: CALL_LIMIT,
            pause: (Duration::from_secs(1), Duration::from_secs(10)),
            node_info: Duration::from_secs(600),
            idle: Duration::from_secs(30),
            keepalive: rpc::Keepalive::default(),
        }
    }
}

impl Settings {
    fn public(&self, env: &rpc::Env) -> Result<Connection, rpc::Error> {
        Connection::new(env, &self.public_url, &self.ca_cert, None, self.timing.keepalive)
    }

    fn protected(
        &self,
        env: &rpc::Env,
        certificate: &Certificate,
    ) -> Result<Connection, rpc::Error> {
        let certificate = Some(certificate);
        let keepalive = self.timing.keepalive;
        Connection::new(env, &self.protected_url, &self.ca_cert, certificate, keepalive)
    }
}

/// The certificate as IAM knows it. Every question opens a connection of its own: it is asked
/// rarely, and an idle connection would not notice that IAM went away.
#[derive(Debug)]
pub struct Certificates {
    settings: Settings,
    env: rpc::Env,
    tokens: Arc<Tokens>,
    /// Fingerprint of the first one that anybody got.
    first: Arc<OnceLock<u64>>,
}

impl Certificates {
    /// Asks nothing yet.
    pub fn new(settings: Settings, env: rpc::Env, tokens: Tokens) -> Arc<Self> {
        Arc::new(Self { settings, env, tokens: Arc::new(tokens), first: Arc::default() })
    }

    /// Whether somebody got another one before.
    fn is_later(&self, certificate: &Certificate) -> bool {
        self.first.get().is_some_and(|first| *first != certificate.fingerprint())
    }

    fn ask(&self) -> Result<Pending<Vec<u8>>, rpc::Error> {
        let request = v5::cert_request(&self.settings.cert_type);
        self.settings.public(&self.env)?.unary(v5::GET_CERT, request, self.settings.timing.call)
    }
}

impl CertSource for Certificates {
    fn certificate(&self) -> Pending<Certificate> {
        let asked = self.ask();
        let (tokens, first) = (self.tokens.clone(), self.first.clone());
        Box::pin(async move {
            let answer = asked?.await?;
            let urls = v5::cert_urls(&answer).map_err(|e| malformed(v5::GET_CERT, &e))?;
            let certificate = Certificate::load(&tokens, &urls.cert_url, &urls.key_url)?;
            first.get_or_init(|| certificate.fingerprint());
            Ok(certificate)
        })
    }
}

fn malformed(call: &'static str, error: &v5::Error) -> rpc::Error {
    rpc::Error::Answer { call, reason: chain(error) }
}

#[cfg(test)]
mod tests;
