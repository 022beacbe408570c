//! Certificates for tests, made anew for each: a CA, and whatever it signs, as files in PEM.

// Each test program uses its own part of this.
#![allow(dead_code, unreachable_pub)]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
#![allow(clippy::disallowed_methods, reason = "certificates are valid by the wall clock")]

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A certificate and its key, as files.
#[derive(Clone, Debug)]
pub struct Signed {
    pub cert: PathBuf,
    pub key: PathBuf,
}

/// A CA in a directory.
pub struct Authority {
    directory: PathBuf,
    issuer: Issuer<'static, KeyPair>,
    /// Its own certificate.
    pub ca: PathBuf,
}

impl Authority {
    /// A CA of this name, whose files are in `directory`.
    pub fn new(directory: &Path, name: &str) -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        let ca = directory.join(format!("{name}.pem"));
        std::fs::write(&ca, certificate.pem()).unwrap();
        Authority { directory: directory.to_owned(), issuer: Issuer::new(params, key), ca }
    }

    /// A CA of this name that this one has signed. Its files are called `file`.
    pub fn sign_authority(&self, name: &str, file: &str) -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let ca = self.directory.join(format!("{file}.pem"));
        std::fs::write(&ca, certificate.pem()).unwrap();
        Authority { directory: self.directory.clone(), issuer: Issuer::new(params, key), ca }
    }

    /// A certificate for the loopback that is valid for ten years.
    pub fn sign(&self, name: &str) -> Signed {
        self.sign_for(name, &["localhost", "127.0.0.1", "::1"], 3650)
    }

    /// One that is for clients alone.
    pub fn sign_client(&self, name: &str) -> Signed {
        let purposes = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth];
        self.sign_as(name, &["localhost", "127.0.0.1"], 3650, purposes)
    }

    /// One for these hosts, which ends in so many days; before today if that is below 0.
    pub fn sign_for(&self, name: &str, hosts: &[&str], days: i64) -> Signed {
        self.sign_as(name, hosts, days, Vec::new())
    }

    fn sign_as(
        &self,
        name: &str,
        hosts: &[&str],
        days: i64,
        purposes: Vec<rcgen::ExtendedKeyUsagePurpose>,
    ) -> Signed {
        let hosts: Vec<String> = hosts.iter().map(ToString::to_string).collect();
        let mut params = CertificateParams::new(hosts).unwrap();
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        let today = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        let until = today.checked_add_signed(days * 24 * 60 * 60).unwrap();
        params.not_after = rcgen::date_time_ymd(1970, 1, 1) + Duration::from_secs(until);
        params.extended_key_usages = purposes;
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let cert = self.directory.join(format!("{name}.crt"));
        let key_path = self.directory.join(format!("{name}.key"));
        std::fs::write(&cert, certificate.pem()).unwrap();
        write_private(&key_path, &key.serialize_pem());
        Signed { cert, key: key_path }
    }
}

/// Writes a file that its owner alone may read.
fn write_private(path: &Path, text: &str) {
    use std::io::Write as _;
    use std::os::unix::fs::OpenOptionsExt as _;
    let _ = std::fs::remove_file(path);
    let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).unwrap();
    file.write_all(text.as_bytes()).unwrap();
}
