//! A certificate authority in a directory, and the certificates it issues (P-256, PEM files).

use std::fs;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, date_time_ymd,
};

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot read {path}")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("cannot write {path}")]
    Write { path: PathBuf, source: std::io::Error },
    #[error("cannot make the certificate {name}")]
    Make { name: String, source: rcgen::Error },
}

/// A certificate authority. The same directory gives the same authority again.
#[derive(Debug)]
pub struct Authority {
    dir: PathBuf,
    params: CertificateParams,
    key: KeyPair,
}

/// A certificate with its private key, as files.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Identity {
    pub cert: PathBuf,
    pub key: PathBuf,
}

impl Authority {
    /// Takes over the authority in `dir`, or makes one (`ca.pem`, `ca.key`).
    pub fn open(dir: &Path) -> Result<Self, Error> {
        fs::create_dir_all(dir).map_err(|source| Error::Write { path: dir.into(), source })?;
        let key_file = dir.join("ca.key");
        let make = |source| Error::Make { name: "ca".to_owned(), source };
        let params = authority_params();
        if key_file.exists() {
            let pem = fs::read_to_string(&key_file)
                .map_err(|source| Error::Read { path: key_file.clone(), source })?;
            return Ok(Self {
                dir: dir.into(),
                params,
                key: KeyPair::from_pem(&pem).map_err(make)?,
            });
        }
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(make)?;
        let cert = params.self_signed(&key).map_err(make)?;
        write(&dir.join("ca.pem"), &cert.pem(), 0o644)?;
        write(&key_file, &key.serialize_pem(), 0o600)?;
        Ok(Self { dir: dir.into(), params, key })
    }

    /// The file that a peer trusts.
    pub fn ca_file(&self) -> PathBuf {
        self.dir.join("ca.pem")
    }

    /// Issues a certificate for a server that is reached by `names` (host names and addresses).
    pub fn server(&self, file_name: &str, names: &[String]) -> Result<Identity, Error> {
        let usage = ExtendedKeyUsagePurpose::ServerAuth;
        self.issue(file_name, "aos_unit_sim", names.to_vec(), usage)
    }

    /// Issues a client certificate with the common name `common_name`; each call replaces the
    /// files of the same `file_name`.
    pub fn client(&self, file_name: &str, common_name: &str) -> Result<Identity, Error> {
        self.issue(file_name, common_name, Vec::new(), ExtendedKeyUsagePurpose::ClientAuth)
    }

    fn issue(
        &self,
        file_name: &str,
        common_name: &str,
        names: Vec<String>,
        usage: ExtendedKeyUsagePurpose,
    ) -> Result<Identity, Error> {
        let make = |source| Error::Make { name: file_name.to_owned(), source };
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(make)?;
        let mut params = CertificateParams::new(names).map_err(make)?;
        params.distinguished_name.push(DnType::CommonName, common_name);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![usage];
        params.use_authority_key_identifier_extension = true;
        set_validity(&mut params);
        let issuer = Issuer::from_params(&self.params, &self.key);
        let cert = params.signed_by(&key, &issuer).map_err(make)?;
        let identity = Identity {
            cert: self.dir.join(format!("{file_name}.pem")),
            key: self.dir.join(format!("{file_name}.key")),
        };
        write(&identity.cert, &cert.pem(), 0o644)?;
        write(&identity.key, &key.serialize_pem(), 0o600)?;
        Ok(identity)
    }
}

impl Identity {
    /// Certificate chain and key as PEM.
    pub fn read(&self) -> Result<(Vec<u8>, Vec<u8>), Error> {
        Ok((read(&self.cert)?, read(&self.key)?))
    }

    /// `file://` URL of the certificate, as IAM hands it out.
    pub fn cert_url(&self) -> String {
        format!("file://{}", self.cert.display())
    }

    /// `file://` URL of the key, as IAM hands it out.
    pub fn key_url(&self) -> String {
        format!("file://{}", self.key.display())
    }
}

/// Parameters that depend on nothing, so that a stored key gives the same issuer again.
fn authority_params() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, "aos_unit_sim CA");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    set_validity(&mut params);
    params
}

/// Wide, because test units come up with any clock.
fn set_validity(params: &mut CertificateParams) {
    params.not_before = date_time_ymd(1990, 1, 1);
    params.not_after = date_time_ymd(2049, 12, 31);
}

fn read(path: &Path) -> Result<Vec<u8>, Error> {
    fs::read(path).map_err(|source| Error::Read { path: path.into(), source })
}

/// Replaces the file by rename: a reader sees the old text or the new one.
fn write(path: &Path, text: &str, mode: u32) -> Result<(), Error> {
    let failed = |source| Error::Write { path: path.into(), source };
    let temp = path.with_extension("new");
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(mode)
        .open(&temp)
        .map_err(failed)?;
    file.write_all(text.as_bytes()).map_err(failed)?;
    fs::rename(&temp, path).map_err(failed)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::process::{Command, Stdio};

    use super::*;

    fn openssl(args: &[&str]) -> Option<bool> {
        let status = Command::new("openssl")
            .args(args)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .ok()?;
        Some(status.success())
    }

    #[test]
    fn authority_is_reused_and_issues_what_it_signs() {
        let dir = tempfile::tempdir().unwrap();
        let first = Authority::open(dir.path()).unwrap();
        let ca = read(&first.ca_file()).unwrap();
        let old = first.client("old", "node0").unwrap();
        let second = Authority::open(dir.path()).unwrap();
        assert_eq!(ca, read(&second.ca_file()).unwrap());
        let new = second.server("new", &["localhost".to_owned(), "127.0.0.1".to_owned()]).unwrap();
        assert_ne!(old.read().unwrap(), new.read().unwrap());
        let mode = fs::metadata(&new.key).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(new.cert_url(), format!("file://{}/new.pem", dir.path().display()));

        let ca_file = first.ca_file();
        for (identity, purpose) in [(&old, "sslclient"), (&new, "sslserver")] {
            let verified = openssl(&[
                "verify",
                "-x509_strict",
                "-purpose",
                purpose,
                "-CAfile",
                ca_file.to_str().unwrap(),
                identity.cert.to_str().unwrap(),
            ]);
            match verified {
                Some(good) => assert!(good, "{purpose} certificate is refused by openssl"),
                None => println!("SKIP openssl verify: no openssl program"),
            }
        }
    }
}
