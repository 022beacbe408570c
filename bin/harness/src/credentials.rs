//! The certificates, secrets and the password of a cluster that lives for one run, made anew and as files.

use anyhow::Context as _;
use dsm::config::TlsFiles;
use rand::RngExt as _;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use std::fs::File;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

/// What a certificate of a run is for: everything here runs on the loopback.
const HOSTS: [&str; 3] = ["localhost", "127.0.0.1", "::1"];

/// The files.
#[derive(Clone, Debug)]
pub(crate) struct RunCredentials {
    /// The CA's certificate.
    pub ca: PathBuf,
    /// The certificate of all nodes and clients, and its key.
    pub cert: PathBuf,
    pub key: PathBuf,
    /// The secret of masters and slaves, that of native clients, and the password.
    pub secret: PathBuf,
    pub client_secret: PathBuf,
    pub password: PathBuf,
}

impl RunCredentials {
    /// Makes them in `directory`.
    ///
    /// # Errors
    /// When a file cannot be written, or a key not be made.
    pub(crate) fn make(directory: &Path) -> anyhow::Result<RunCredentials> {
        let made = RunCredentials {
            ca: directory.join("ca.pem"),
            cert: directory.join("node.crt"),
            key: directory.join("node.key"),
            secret: directory.join("nodes.secret"),
            client_secret: directory.join("clients.secret"),
            password: directory.join("password"),
        };
        made.make_certificates().context("cannot make certificates")?;
        for path in [&made.secret, &made.client_secret, &made.password] {
            let random: [u128; 2] = rand::rng().random();
            write_private(path, &format!("{:032x}{:032x}\n", random[0], random[1]))?;
        }
        Ok(made)
    }

    /// The files of a node or a client.
    pub(crate) fn tls(&self) -> TlsFiles {
        let [cert, key, ca] = [&self.cert, &self.key, &self.ca].map(|file| Some(file.clone()));
        TlsFiles { cert, key, ca }
    }

    fn make_certificates(&self) -> anyhow::Result<()> {
        let mut params = CertificateParams::new(Vec::new())?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "dsm-test-harness");
        let key = KeyPair::generate()?;
        write_private(&self.ca, &params.self_signed(&key)?.pem())?;
        let issuer = Issuer::new(params, key);
        let mut params = CertificateParams::new(HOSTS.map(str::to_owned))?;
        params.distinguished_name.push(DnType::CommonName, "node");
        let key = KeyPair::generate()?;
        write_private(&self.cert, &params.signed_by(&key, &issuer)?.pem())?;
        write_private(&self.key, &key.serialize_pem())
    }
}

/// Writes a file that its owner alone may read.
fn write_private(path: &Path, text: &str) -> anyhow::Result<()> {
    let written = || -> std::io::Result<()> {
        let mut file: File = File::options().write(true).create_new(true).mode(0o600).open(path)?;
        file.write_all(text.as_bytes())
    };
    written().with_context(|| format!("cannot write {}", path.display()))
}
