//! Why a call of the client library, or of a program that embeds a master, has no result.
//!
//! Owns the two kinds of failures, which differ in what a caller may assume, and their causes.

use crate::dial::DialError;
use crate::env::TlsError;
use crate::secrets::SecretFileError;
use dsm_protocol::command::{ErrorWord, ReplyError};
use dsm_protocol::frame::FrameError;
use dsm_protocol::handshake::HandshakeFailure;
use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use thiserror::Error;

/// Why a call has no result. The two kinds differ in what the caller may assume.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ClientError {
    /// The request had no effect and never will have one.
    #[error("{cause}")]
    NotExecuted {
        /// Why it was not executed.
        cause: Failure,
    },
    /// The write may or may not take effect, now or later.
    #[error("{cause}; the write may or may not take effect")]
    Indeterminate {
        /// Why its outcome is not known.
        cause: Failure,
    },
}

/// What went wrong with a call.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum Failure {
    /// A master has answered with this error.
    #[error("{0}")]
    Refused(ReplyError),
    /// No master could be reached.
    #[error("no master answers ({0})")]
    Unreachable(Unreached),
    /// The link broke after the request was sent.
    #[error("the link to the master broke before the answer")]
    LinkLost,
    /// The deadline passed without an answer.
    #[error("no answer within {}", humantime::format_duration(*.0))]
    TimedOut(Duration),
    /// As many requests or bytes are in flight as the configuration allows.
    #[error("too many requests in flight")]
    Overloaded,
    /// The request is one that every master refuses.
    #[error("{0}")]
    Invalid(&'static str),
    /// The client's certificates, or those of the CA, are of no use.
    #[error(transparent)]
    Tls(TlsError),
    /// The file of the client's secret is of no use.
    #[error(transparent)]
    Secret(SecretFileError),
    /// The answer does not fit the request.
    #[error("the master's answer does not fit the request")]
    Protocol,
    /// The client's runtime is shutting down.
    #[error("the client is stopped")]
    Stopped,
}

impl ClientError {
    /// Whether the same request may be sent again without a second effect and may then succeed.
    pub fn is_retryable(&self) -> bool {
        match self {
            ClientError::Indeterminate { .. } => false,
            ClientError::NotExecuted { cause } => match cause {
                Failure::Refused(error) => match error.word {
                    ErrorWord::Standby
                    | ErrorWord::NoQuorum
                    | ErrorWord::Loading
                    | ErrorWord::ReadOnly
                    | ErrorWord::Busy
                    | ErrorWord::OutOfMemory => true,
                    ErrorWord::NoAuth
                    | ErrorWord::NoPermission
                    | ErrorWord::WrongType
                    | ErrorWord::Bad
                    | ErrorWord::Unknown => false,
                },
                Failure::Unreachable(_) | Failure::LinkLost | Failure::TimedOut(_) | Failure::Overloaded => {
                    true
                }
                Failure::Invalid(_)
                | Failure::Tls(_)
                | Failure::Secret(_)
                | Failure::Protocol
                | Failure::Stopped => false,
            },
        }
    }

    /// Whether the request may have taken effect.
    pub fn is_indeterminate(&self) -> bool {
        matches!(self, ClientError::Indeterminate { .. })
    }

    pub(crate) fn not_executed(cause: Failure) -> ClientError {
        ClientError::NotExecuted { cause }
    }
}

/// What happened at each master that was tried, in the order of the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unreached {
    masters: Vec<(String, MasterFailure)>,
}

impl Unreached {
    pub(crate) fn new(masters: Vec<(String, MasterFailure)>) -> Self {
        Unreached { masters }
    }

    /// Each master's address, as it was configured, and what happened there last.
    pub fn masters(&self) -> impl Iterator<Item = (&str, &MasterFailure)> {
        self.masters.iter().map(|(master, failure)| (master.as_str(), failure))
    }
}

impl fmt::Display for Unreached {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, (master, failure)) in self.masters().enumerate() {
            let gap = if number == 0 { "" } else { "; " };
            write!(f, "{gap}{master}: {}", crate::shown::shown_error(failure))?;
        }
        Ok(())
    }
}

/// What happened at one master.
#[derive(Clone, Debug, Error)]
#[non_exhaustive]
pub enum MasterFailure {
    /// Not tried: the time was spent on another master.
    #[error("not tried yet")]
    NotTried,
    /// It is being dialed.
    #[error("no answer so far")]
    NoAnswerYet,
    /// It did not accept the connection, or answer the handshake, in time.
    #[error("connecting timed out")]
    NotConnected,
    /// The link to it is established.
    #[error("connected, but did not answer")]
    NotAnswered,
    /// The client has left it for another one.
    #[error("does not serve or does not answer")]
    Left,
    /// It has closed the link.
    #[error("closed by the master")]
    Closed,
    /// It has ended the link for a reason in its own words.
    #[error("{0}")]
    Rejected(String),
    /// It has sent a message that is not for clients.
    #[error("sent a message that is not for clients")]
    NotForClients,
    /// Its bytes are no frames of this wire.
    #[error("does not speak the store's protocol")]
    Frame(#[source] FrameError),
    /// The handshake has failed in another way.
    #[error(transparent)]
    Handshake(HandshakeFailure),
    /// An error of the connection, from the system.
    #[error(transparent)]
    System(Arc<io::Error>),
}

impl MasterFailure {
    pub(crate) fn system(error: io::Error) -> Self {
        MasterFailure::System(Arc::new(error))
    }

    pub(crate) fn rejected(reason: &str) -> Self {
        MasterFailure::Rejected(one_line(reason))
    }
}

impl From<DialError> for MasterFailure {
    fn from(error: DialError) -> Self {
        match error {
            DialError::Io(error) => MasterFailure::system(error),
            DialError::Handshake(HandshakeFailure::Rejected { reason }) => MasterFailure::rejected(&reason),
            DialError::Handshake(HandshakeFailure::NotProved { flag, said }) => {
                let said = one_line(&said);
                MasterFailure::Handshake(HandshakeFailure::NotProved { flag, said })
            }
            DialError::Handshake(HandshakeFailure::Frame(error)) => MasterFailure::Frame(error),
            DialError::Handshake(HandshakeFailure::Ended) => MasterFailure::Closed,
            DialError::Handshake(
                failure @ (HandshakeFailure::OtherCluster { .. }
                | HandshakeFailure::SecretDemanded { .. }
                | HandshakeFailure::NoWelcome
                | HandshakeFailure::TimedOut),
            ) => MasterFailure::Handshake(failure),
        }
    }
}

/// Compares the texts, because errors of the system cannot be compared.
impl PartialEq for MasterFailure {
    fn eq(&self, other: &Self) -> bool {
        std::mem::discriminant(self) == std::mem::discriminant(other)
            && crate::shown::shown_error(self) == crate::shown::shown_error(other)
    }
}

impl Eq for MasterFailure {}

/// A peer's text on one line.
fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(200).collect()
}
