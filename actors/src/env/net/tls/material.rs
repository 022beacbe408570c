//! What TLS needs of files: certificate, key and the CA, read and checked as a whole, and the settings of rustls that are made
//! of them.
//!
//! Owns every choice of the library: TLS 1.2 and 1.3, `ring` for the cryptography (it builds with a C compiler alone), no
//! resumption: connections are long, and one that is new is to be judged by the certificates of now. A private key is never
//! printed.

use super::chain::{ComingVerifier, DialedVerifier};
use super::fields::valid_until;
use super::words::sentence;
use crate::env::small_file;
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::crypto::{ring, CryptoProvider};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{ClientHello, NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};
use thiserror::Error;

/// The protocol by which a node says that it is one (ALPN): whoever accepts it demands a certificate.
const NODE_PROTOCOL: &[u8] = b"dsm-node/1";

/// The longest of the files, in bytes: the CAs of all the world are a quarter of it.
const FILE_BYTES_MAX: usize = 1 << 20;

/// The files that are read, of which some may be missing.
#[derive(Clone, Debug, Default, PartialEq, Eq, clap::Args)]
pub struct TlsFiles {
    /// Certificate of this node or client, with its chain, in PEM; turns TLS on
    #[arg(long = "tls-cert", env = "DSM_TLS_CERT", value_name = "FILE")]
    pub cert: Option<PathBuf>,

    /// Private key of --tls-cert, in PEM
    #[arg(long = "tls-key", env = "DSM_TLS_KEY", value_name = "FILE")]
    pub key: Option<PathBuf>,

    /// Certificates of the CA that the other side's must be of, in PEM; turns TLS on
    #[arg(long = "tls-ca", env = "DSM_TLS_CA", value_name = "FILE")]
    pub ca: Option<PathBuf>,
}

impl TlsFiles {
    /// Whether TLS is on.
    pub fn is_on(&self) -> bool {
        self.cert.is_some() || self.key.is_some() || self.ca.is_some()
    }
}

/// Whether clients must have a certificate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum ClientAuth {
    /// None is asked for.
    No,
    /// One that is shown must be of the CA.
    Optional,
    /// One of the CA must be shown.
    #[default]
    Yes,
}

/// Why TLS cannot be used: which file, and what is wrong with it.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum TlsError {
    /// A file that is needed is not named.
    #[error("{flag} is missing: {why}")]
    Missing {
        /// The flag that names it.
        flag: &'static str,
        /// What needs it.
        why: &'static str,
    },
    /// A file is of no use.
    #[error("{flag} {}: {why}", path.display())]
    File {
        /// The flag that names it.
        flag: &'static str,
        /// Its path.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
}

/// The settings of connections that are accepted, by who comes.
pub(super) struct AcceptConfigs {
    nodes: Arc<ServerConfig>,
    clients: Arc<ServerConfig>,
}

impl AcceptConfigs {
    /// Whether this is the beginning of a node's handshake.
    pub(super) fn is_for_nodes(hello: &ClientHello<'_>) -> bool {
        hello.alpn().is_some_and(|mut protocols| protocols.any(|protocol| protocol == NODE_PROTOCOL))
    }

    pub(super) fn of(&self, is_node: bool) -> Arc<ServerConfig> {
        Arc::clone(if is_node { &self.nodes } else { &self.clients })
    }
}

/// The files as they were read together, and what is made of them.
pub(super) struct Material {
    /// For connections that are accepted; `None` for those who accept none.
    pub(super) accept: Option<Arc<AcceptConfigs>>,
    /// For connections to other nodes, or of clients to masters.
    pub(super) dial: Arc<ClientConfig>,
    /// Until when the own certificate is valid, in seconds since 1970; `None` without one.
    pub(super) expires: Option<u64>,
}

/// The own certificate with its chain, and its key.
type Identity = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

/// Reads the files for a node, which accepts connections as `client_auth` says. Waits for disks.
///
/// # Errors
/// The first file that is missing or of no use.
pub(super) fn for_node(files: &TlsFiles, client_auth: ClientAuth) -> Result<Material, TlsError> {
    let needed = |file: &Option<PathBuf>, flag, why| file.clone().ok_or(TlsError::Missing { flag, why });
    needed(&files.cert, "--tls-cert", "with TLS a node shows its certificate to the others")?;
    let key = needed(&files.key, "--tls-key", "a certificate is of no use without its private key")?;
    let ca = needed(&files.ca, "--tls-ca", "with TLS a node checks the certificates of the others")?;
    let roots = Arc::new(roots(&ca)?);
    let (chain, private) =
        identity(files)?.ok_or(TlsError::Missing { flag: "--tls-cert", why: "no chain" })?;
    let expires = check_time(files, &chain)?;
    let provider = Arc::new(ring::default_provider());
    let mismatch =
        |error: rustls::Error| TlsError::File { flag: "--tls-key", path: key.clone(), why: sentence(&error) };
    let verifier = |auth, is_for_nodes| -> Result<Arc<dyn ClientCertVerifier>, TlsError> {
        let builder = WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots), Arc::clone(&provider));
        let built = match auth {
            ClientAuth::No => return Ok(WebPkiClientVerifier::no_client_auth()),
            ClientAuth::Optional => builder.allow_unauthenticated().build(),
            ClientAuth::Yes => builder.build(),
        };
        let built = built.map_err(|error| wrong("--tls-ca", &ca, error))?;
        Ok(Arc::new(if is_for_nodes {
            ComingVerifier::of_nodes(built, &roots, &provider)
        } else {
            ComingVerifier::of_clients(built, &roots)
        }))
    };
    let accepting = |auth, protocols: Vec<Vec<u8>>| {
        let is_for_nodes = !protocols.is_empty();
        let mut config = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(&mismatch)?
            .with_client_cert_verifier(verifier(auth, is_for_nodes)?)
            .with_single_cert(chain.clone(), private.clone_key())
            .map_err(&mismatch)?;
        config.alpn_protocols = protocols;
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(Arc::new(config))
    };
    let nodes = accepting(ClientAuth::Yes, vec![NODE_PROTOCOL.to_vec()])?;
    let clients = accepting(client_auth, Vec::new())?;
    let mut dial = dialing(&provider, &roots, Some((chain, private)), mismatch)?;
    dial.alpn_protocols = vec![NODE_PROTOCOL.to_vec()];
    let accept = Some(Arc::new(AcceptConfigs { nodes, clients }));
    Ok(Material { accept, dial: Arc::new(dial), expires: Some(expires) })
}

/// Reads the files for a client, which may have no certificate. Waits for disks.
///
/// # Errors
/// The first file that is missing or of no use.
pub(super) fn for_client(files: &TlsFiles) -> Result<Material, TlsError> {
    let why = "with TLS a client checks the certificates of the masters";
    let ca = files.ca.clone().ok_or(TlsError::Missing { flag: "--tls-ca", why })?;
    let roots = Arc::new(roots(&ca)?);
    let own = identity(files)?;
    let expires = own.as_ref().map(|(chain, _)| check_time(files, chain)).transpose()?;
    let key = files.key.clone().unwrap_or_default();
    let mismatch =
        |error: rustls::Error| TlsError::File { flag: "--tls-key", path: key.clone(), why: sentence(&error) };
    let dial = dialing(&Arc::new(ring::default_provider()), &roots, own, mismatch)?;
    Ok(Material { accept: None, dial: Arc::new(dial), expires })
}

fn dialing(
    provider: &Arc<CryptoProvider>,
    roots: &Arc<RootCertStore>,
    own: Option<Identity>,
    mismatch: impl Fn(rustls::Error) -> TlsError,
) -> Result<ClientConfig, TlsError> {
    let verifier =
        WebPkiServerVerifier::builder_with_provider(Arc::clone(roots), Arc::clone(provider)).build();
    let verifier = verifier.map_err(|error| mismatch(rustls::Error::General(error.to_string())))?;
    let builder = ClientConfig::builder_with_provider(Arc::clone(provider))
        .with_safe_default_protocol_versions()
        .map_err(&mismatch)?
        // It verifies what rustls would, of fewer chains.
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(DialedVerifier {
            inner: verifier,
            roots: Arc::clone(roots),
        }));
    let mut config = match own {
        Some((chain, private)) => builder.with_client_auth_cert(chain, private).map_err(&mismatch)?,
        None => builder.with_no_client_auth(),
    };
    config.resumption = Resumption::disabled();
    Ok(config)
}

/// The own certificate and its key, if they are named.
fn identity(files: &TlsFiles) -> Result<Option<Identity>, TlsError> {
    let (cert, key) = match (&files.cert, &files.key) {
        (Some(cert), Some(key)) => (cert, key),
        (None, None) => return Ok(None),
        (Some(_), None) => {
            let why = "a certificate is of no use without its private key";
            return Err(TlsError::Missing { flag: "--tls-key", why });
        }
        (None, Some(_)) => {
            let why = "a private key is of no use without its certificate";
            return Err(TlsError::Missing { flag: "--tls-cert", why });
        }
    };
    let chain = certificates("--tls-cert", cert)?;
    let private = PrivateKeyDer::from_pem_slice(&read("--tls-key", key)?);
    // What the parser says might show a part of the key.
    let private =
        private.map_err(|_| wrong("--tls-key", key, "it has no private key in PEM that is not encrypted"))?;
    warn_of_readers(key);
    Ok(Some((chain, private)))
}

fn roots(path: &Path) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates("--tls-ca", path)? {
        roots.add(certificate).map_err(|error| wrong("--tls-ca", path, sentence(&error)))?;
    }
    Ok(roots)
}

fn certificates(flag: &'static str, path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let text = read(flag, path)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    let found = found.map_err(|error| wrong(flag, path, format!("it is not PEM: {error}")))?;
    if found.is_empty() {
        return Err(wrong(flag, path, "it has no certificate in PEM"));
    }
    Ok(found)
}

fn read(flag: &'static str, path: &Path) -> Result<Vec<u8>, TlsError> {
    small_file::read(path, FILE_BYTES_MAX).map_err(|error| wrong(flag, path, error))
}

fn wrong(flag: &'static str, path: &Path, why: impl ToString) -> TlsError {
    TlsError::File { flag, path: path.to_owned(), why: why.to_string() }
}

/// Until when the first certificate is valid, if it still is.
fn check_time(files: &TlsFiles, chain: &[CertificateDer<'_>]) -> Result<u64, TlsError> {
    let path = files.cert.clone().unwrap_or_default();
    let until = chain.first().and_then(|certificate| valid_until(certificate));
    let until = until.ok_or_else(|| wrong("--tls-cert", &path, "it does not say until when it is valid"))?;
    if until < now_s() {
        let date = humantime::format_rfc3339_seconds(UNIX_EPOCH + std::time::Duration::from_secs(until));
        return Err(wrong("--tls-cert", &path, format!("it has expired, on {date}")));
    }
    Ok(until)
}

/// Seconds since 1970.
#[expect(
    clippy::disallowed_methods,
    reason = "certificates are valid by the wall clock, in the real world alone"
)]
pub(super) fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// A key that every user of the machine may read is not private.
fn warn_of_readers(path: &Path) {
    use std::os::unix::fs::PermissionsExt as _;
    let mode = std::fs::metadata(path).map_or(0, |found| found.permissions().mode());
    if mode & 0o004 != 0 {
        let mode = mode & 0o777;
        log::warn!(
            "every user of this machine may read the private key path={} mode={mode:03o}",
            path.display()
        );
    }
}
