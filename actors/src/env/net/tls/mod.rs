//! TLS over TCP, for every port and every dial.
//!
//! Owns the certificates of a process, which may be read anew while it runs: connections that stand keep the old ones.
//!
//! | file | is |
//! |---|---|
//! | `chain` | which chains of certificates are verified at all, and which make a node |
//! | `fields` | what is read of a certificate's bytes |
//! | `material` | the files, and what is made of them |
//! | `stream` | one connection |
//! | `words` | errors in plain words |

mod chain;
mod fields;
mod material;
mod stream;
#[cfg(test)]
mod tests;
mod words;

pub use material::{ClientAuth, TlsError, TlsFiles};
pub(crate) use stream::channel_of;
pub use stream::TlsStream;

use super::super::threads::spawn_thread;
use material::Material;
use rustls::pki_types::ServerName;
use rustls::ClientConnection;
use std::io;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::sync::oneshot;

/// From so long before its certificate's end a node warns of it.
const WARNED_BEFORE: Duration = Duration::from_secs(14 * 24 * 60 * 60);

/// A process's certificates, as they were read last. Clones share them.
#[derive(Clone)]
pub struct Tls(Arc<Shared>);

struct Shared {
    files: TlsFiles,
    /// What clients must show, of those who accept any.
    client_auth: Option<ClientAuth>,
    /// Locked for as long as it takes to copy a pointer.
    material: Mutex<Arc<Material>>,
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tls").field("files", &self.0.files).finish_non_exhaustive()
    }
}

impl Tls {
    /// Reads the files of a node, which lets clients in as `client_auth` says. Waits for disks.
    ///
    /// # Errors
    /// The first file that is missing or of no use.
    pub fn for_node(files: &TlsFiles, client_auth: ClientAuth) -> Result<Self, TlsError> {
        Tls::read(files, Some(client_auth))
    }

    /// Reads the files of a client. Waits for disks.
    ///
    /// # Errors
    /// The first file that is missing or of no use.
    pub fn for_client(files: &TlsFiles) -> Result<Self, TlsError> {
        Tls::read(files, None)
    }

    fn read(files: &TlsFiles, client_auth: Option<ClientAuth>) -> Result<Self, TlsError> {
        let material = Mutex::new(Arc::new(read(files, client_auth)?));
        Ok(Tls(Arc::new(Shared { files: files.clone(), client_auth, material })))
    }

    /// Reads the files again, for connections from now on. What was read before stays if one of them is of no use.
    ///
    /// # Errors
    /// The first file that is missing or of no use.
    pub(crate) async fn read_again(&self) -> Result<(), String> {
        let (answer, answered) = oneshot::channel();
        let (files, client_auth) = (self.0.files.clone(), self.0.client_auth);
        // A disk may hang.
        spawn_thread("dsm-tls", move || drop(answer.send(read(&files, client_auth))))
            .map_err(|error| error.to_string())?;
        let found = answered.await.map_err(|_| "the thread that read the files has panicked".to_owned())?;
        let found = Arc::new(found.map_err(|error| error.to_string())?);
        *self.0.material.lock().unwrap_or_else(PoisonError::into_inner) = found;
        Ok(())
    }

    /// Until when the own certificate is valid, in seconds since 1970; `None` without one.
    pub(crate) fn expires(&self) -> Option<u64> {
        self.material().expires
    }

    /// How long the own certificate is still valid, if that is so short that a person must hear of it.
    pub(crate) fn expires_within(&self) -> Option<Duration> {
        let left = Duration::from_secs(self.expires()?.saturating_sub(material::now_s()));
        (left < WARNED_BEFORE).then_some(left)
    }

    fn material(&self) -> Arc<Material> {
        Arc::clone(&self.0.material.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// What a socket becomes that was accepted.
    ///
    /// # Errors
    /// `Unsupported` for a client, which accepts none.
    pub(super) fn accept(&self, socket: TcpStream) -> io::Result<TlsStream> {
        let configs = self.material().accept.clone().ok_or(io::ErrorKind::Unsupported)?;
        Ok(TlsStream::accepted(socket, configs))
    }

    /// What a socket becomes that is connected to `HOST:PORT`.
    ///
    /// # Errors
    /// `InvalidInput` when no certificate can name that host.
    pub(super) fn dial(&self, socket: TcpStream, address: &str) -> io::Result<TlsStream> {
        let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
        let host = host.trim_start_matches('[').trim_end_matches(']');
        // The zone of an IPv6 address means something on this machine alone.
        let host = host.split_once('%').map_or(host, |(host, _)| host);
        let name = ServerName::try_from(host.to_owned()).map_err(|_| {
            io::Error::new(io::ErrorKind::InvalidInput, format!("no certificate can name {host}"))
        })?;
        let config = Arc::clone(&self.material().dial);
        let is_node = self.0.client_auth.is_some();
        let connection = ClientConnection::new(config, name).map_err(io::Error::other)?;
        Ok(TlsStream::dialed(socket, connection, is_node))
    }

    /// The same for a client without a runtime, whose socket blocks.
    ///
    /// # Errors
    /// What rustls says.
    pub(crate) fn dial_blocking<S: io::Read + io::Write>(
        &self,
        socket: S,
        host: IpAddr,
    ) -> io::Result<rustls::StreamOwned<ClientConnection, S>> {
        let connection = ClientConnection::new(Arc::clone(&self.material().dial), ServerName::from(host));
        Ok(rustls::StreamOwned::new(connection.map_err(io::Error::other)?, socket))
    }
}

fn read(files: &TlsFiles, client_auth: Option<ClientAuth>) -> Result<Material, TlsError> {
    match client_auth {
        Some(client_auth) => material::for_node(files, client_auth),
        None => material::for_client(files),
    }
}
