//! What is wrong with TLS, in words for people: rustls' own name its types.

use rustls::{AlertDescription as Alert, CertificateError as Bad, Error, InvalidMessage};

/// One line about an error. It is about the other side, unless it is told so.
pub(super) fn sentence(error: &Error) -> String {
    match error {
        Error::InvalidMessage(InvalidMessage::InvalidContentType) => {
            "the other side does not speak TLS here".to_owned()
        }
        Error::NoCertificatesPresented => "the other side has shown no certificate".to_owned(),
        Error::InvalidCertificate(Bad::UnknownIssuer | Bad::BadSignature) => {
            "the other side's certificate is not of the CA in --tls-ca".to_owned()
        }
        Error::InvalidCertificate(Bad::Expired | Bad::ExpiredContext { .. }) => {
            "the other side's certificate has expired".to_owned()
        }
        Error::InvalidCertificate(Bad::NotValidYet | Bad::NotValidYetContext { .. }) => {
            "the other side's certificate is not valid yet".to_owned()
        }
        Error::InvalidCertificate(Bad::NotValidForName | Bad::NotValidForNameContext { .. }) => {
            "the other side's certificate does not name the host of this address".to_owned()
        }
        Error::InvalidCertificate(Bad::InvalidPurpose | Bad::InvalidPurposeContext { .. }) => {
            "the other side's certificate is for another purpose: a node's is for serverAuth and clientAuth \
             (extendedKeyUsage)"
                .to_owned()
        }
        Error::InvalidCertificate(Bad::Other(why)) => why.0.to_string(),
        Error::AlertReceived(Alert::UnsupportedCertificate) => {
            "this side's certificate is for another purpose, says the other side: a node's is for serverAuth and \
             clientAuth (extendedKeyUsage)"
                .to_owned()
        }
        Error::AlertReceived(Alert::CertificateRequired) => {
            "the other side asks for a certificate: give --tls-cert and --tls-key".to_owned()
        }
        Error::AlertReceived(Alert::UnknownCA | Alert::DecryptError) => {
            "this side's certificate is not of the CA of the other side".to_owned()
        }
        Error::AlertReceived(Alert::CertificateExpired) => {
            "this side's certificate has expired, says the other side".to_owned()
        }
        Error::InconsistentKeys(_) => "it is not the key of the certificate in --tls-cert".to_owned(),
        other => format!("TLS fails: {other}"),
    }
}
