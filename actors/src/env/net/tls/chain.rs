//! What is refused of a chain of certificates before it is verified, and what a node's own must be for.
//!
//! Whoever connects may send any chain: the search for a path through certificates of one name, each with its checks of
//! signatures, takes long on the one thread of a node. So it begins only with few of them. All else is rustls'.

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
pub(super) const INTERMEDIATES_MAX: usize = 4;

/// The longest chain, in bytes.
const CHAIN_BYTES_MAX: usize = 16 * 1024;

/// A chain that is not verified.
#[derive(Debug, Error)]
#[error(
    "the other side's chain of certificates is too long: it may have {INTERMEDIATES_MAX} between its own and the CA's, \
     and {CHAIN_BYTES_MAX} bytes"
)]
struct LongChain;

fn bound(end_entity: &CertificateDer<'_>, intermediates: &[CertificateDer<'_>]) -> Result<(), Error> {
    let bytes = end_entity.len() + intermediates.iter().map(|certificate| certificate.len()).sum::<usize>();
    if intermediates.len() > INTERMEDIATES_MAX || bytes > CHAIN_BYTES_MAX {
        return Err(CertificateError::Other(OtherError(Arc::new(LongChain))).into());
    }
    Ok(())
}

/// Judges the certificates of those who are dialed.
#[derive(Debug)]
pub(super) struct DialedVerifier(pub(super) Arc<WebPkiServerVerifier>);

impl ServerCertVerifier for DialedVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        bound(end_entity, intermediates)?;
        self.0.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}

/// Judges the certificates of those who connect.
#[derive(Debug)]
pub(super) struct ComingVerifier {
    inner: Arc<dyn ClientCertVerifier>,
    /// For nodes, which are dialed as well as they dial: the CA, by which their certificates must be good for that, too. One that
    /// was issued for a client is not.
    nodes_of: Option<(Arc<RootCertStore>, WebPkiSupportedAlgorithms)>,
}

impl ComingVerifier {
    pub(super) fn of_clients(inner: Arc<dyn ClientCertVerifier>) -> Self {
        ComingVerifier { inner, nodes_of: None }
    }

    pub(super) fn of_nodes(
        inner: Arc<dyn ClientCertVerifier>,
        roots: &Arc<RootCertStore>,
        provider: &CryptoProvider,
    ) -> Self {
        let nodes_of = Some((Arc::clone(roots), provider.signature_verification_algorithms));
        ComingVerifier { inner, nodes_of }
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
        bound(end_entity, intermediates)?;
        let verified = self.inner.verify_client_cert(end_entity, intermediates, now)?;
        if let Some((roots, algorithms)) = &self.nodes_of {
            let parsed = ParsedCertificate::try_from(end_entity)?;
            verify_server_cert_signed_by_trust_anchor(&parsed, roots, intermediates, now, algorithms.all)?;
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
