//! What is refused of a chain of certificates before it is verified, and what a node's own must be for.
//!
//! Whoever connects may send any chain, and certificates of one name make many paths, each with its checks of signatures, on the
//! one thread of a node. So the search begins only where there is one path at most: with few certificates, none of which is called
//! like another one or like its issuer. What leads nowhere is left out: copies, and what is called like the CA, as its own
//! certificate, which some send along. All else is rustls'.

use super::fields::names;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{verify_server_cert_signed_by_trust_anchor, WebPkiServerVerifier};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError};
use rustls::{RootCertStore, SignatureScheme};
use std::sync::Arc;
use thiserror::Error;

/// The most certificates between the CA's and the other side's.
pub(super) const INTERMEDIATES_MAX: usize = 2;

/// The longest chain, in bytes.
const CHAIN_BYTES_MAX: usize = 16 * 1024;

/// A chain that is not verified.
#[derive(Debug, Error)]
enum ChainError {
    #[error(
        "the other side's chain of certificates is too long: it may have {INTERMEDIATES_MAX} between its own and the CA's, \
         and {CHAIN_BYTES_MAX} bytes"
    )]
    Long,
    #[error("the other side's chain of certificates is no chain: one of them is called like another one, or like its issuer")]
    Names,
}

impl From<ChainError> for Error {
    fn from(error: ChainError) -> Self {
        CertificateError::Other(OtherError(Arc::new(error))).into()
    }
}

/// The certificates between that of the other side and the CA's, for the search for a path.
///
/// # Errors
/// What makes it no chain that is verified.
fn between<'a>(
    end_entity: &CertificateDer<'_>,
    intermediates: &'a [CertificateDer<'_>],
    roots: &RootCertStore,
) -> Result<Vec<CertificateDer<'a>>, Error> {
    let bytes = end_entity.len() + intermediates.iter().map(|certificate| certificate.len()).sum::<usize>();
    if bytes > CHAIN_BYTES_MAX {
        return Err(ChainError::Long.into());
    }
    let bad = || Error::from(CertificateError::BadEncoding);
    let mut subjects = vec![names(end_entity).ok_or_else(bad)?.subject];
    let mut kept: Vec<CertificateDer<'a>> = Vec::new();
    for certificate in intermediates {
        let found = names(certificate).ok_or_else(bad)?;
        let is_copy = certificate == end_entity || kept.contains(certificate);
        if is_copy || roots.roots.iter().any(|root| root.subject.as_ref() == found.subject) {
            continue;
        }
        if kept.len() == INTERMEDIATES_MAX {
            return Err(ChainError::Long.into());
        }
        if found.issuer == found.subject || subjects.contains(&found.subject) {
            return Err(ChainError::Names.into());
        }
        subjects.push(found.subject);
        kept.push(CertificateDer::from(&**certificate));
    }
    Ok(kept)
}

/// Judges the certificates of those who are dialed.
#[derive(Debug)]
pub(super) struct DialedVerifier {
    pub(super) inner: Arc<WebPkiServerVerifier>,
    pub(super) roots: Arc<RootCertStore>,
}

impl ServerCertVerifier for DialedVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let intermediates = &between(end_entity, intermediates, &self.roots)?;
        self.inner.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

/// Judges the certificates of those who connect.
#[derive(Debug)]
pub(super) struct ComingVerifier {
    inner: Arc<dyn ClientCertVerifier>,
    roots: Arc<RootCertStore>,
    /// For nodes, which are dialed as well as they dial: by what their certificates must be good for that, too. One that was
    /// issued for a client is not.
    nodes: Option<WebPkiSupportedAlgorithms>,
}

impl ComingVerifier {
    pub(super) fn of_clients(inner: Arc<dyn ClientCertVerifier>, roots: &Arc<RootCertStore>) -> Self {
        ComingVerifier { inner, roots: Arc::clone(roots), nodes: None }
    }

    pub(super) fn of_nodes(
        inner: Arc<dyn ClientCertVerifier>,
        roots: &Arc<RootCertStore>,
        provider: &CryptoProvider,
    ) -> Self {
        let nodes = Some(provider.signature_verification_algorithms);
        ComingVerifier { inner, roots: Arc::clone(roots), nodes }
    }
}

impl ClientCertVerifier for ComingVerifier {
    fn offer_client_auth(&self) -> bool {
        self.inner.offer_client_auth()
    }

    fn client_auth_mandatory(&self) -> bool {
        self.inner.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.inner.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let intermediates = &between(end_entity, intermediates, &self.roots)?;
        let verified = self.inner.verify_client_cert(end_entity, intermediates, now)?;
        if let Some(algorithms) = &self.nodes {
            let parsed = ParsedCertificate::try_from(end_entity)?;
            let (roots, all) = (&self.roots, algorithms.all);
            verify_server_cert_signed_by_trust_anchor(&parsed, roots, intermediates, now, all)?;
        }
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}
