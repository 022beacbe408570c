//! TLS of the load's connections, over any socket that does not block.
//!
//! It uses rustls as the store does, but nothing of the store: what is measured must not judge itself.

use anyhow::{bail, Context as _};
use rustls::client::Resumption;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore};
use std::io::{self, ErrorKind, Read, Write};
use std::path::Path;
use std::sync::Arc;

/// What connections are made with. Never shows its key.
#[derive(Clone, Debug)]
pub(crate) struct ClientTls(Arc<ClientConfig>);

impl ClientTls {
    /// Reads the CA of the store's certificate, and the own certificate with its key if one is to be shown.
    ///
    /// # Errors
    /// The first file that is missing or of no use.
    pub(crate) fn read(ca: &Path, own: Option<(&Path, &Path)>) -> anyhow::Result<ClientTls> {
        let mut roots = RootCertStore::empty();
        for certificate in certificates("--tls-ca", ca)? {
            roots.add(certificate).with_context(|| format!("--tls-ca {}", ca.display()))?;
        }
        let builder = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .context("TLS cannot be used")?
            .with_root_certificates(roots);
        let mut config = match own {
            None => builder.with_no_client_auth(),
            Some((cert, key)) => {
                let chain = certificates("--tls-cert", cert)?;
                // What the parser says might show a part of the key.
                let Ok(private) = PrivateKeyDer::from_pem_file(key) else {
                    bail!("--tls-key {}: it has no private key in PEM", key.display());
                };
                builder
                    .with_client_auth_cert(chain, private)
                    .with_context(|| format!("--tls-key {}", key.display()))?
            }
        };
        // Each connection is as expensive as the first.
        config.resumption = Resumption::disabled();
        Ok(ClientTls(Arc::new(config)))
    }

    /// The beginning of a session with `HOST:PORT`.
    ///
    /// # Errors
    /// That no certificate can name the host.
    pub(crate) fn session(&self, target: &str) -> io::Result<ClientConnection> {
        let host = target.rsplit_once(':').map_or(target, |(host, _)| host);
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let name = ServerName::try_from(host.to_owned()).map_err(|_| {
            io::Error::new(ErrorKind::InvalidInput, format!("no certificate can name {host}"))
        })?;
        ClientConnection::new(Arc::clone(&self.0), name).map_err(io::Error::other)
    }
}

fn certificates(flag: &str, path: &Path) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_file_iter(path).and_then(std::iter::Iterator::collect);
    let found = found.with_context(|| format!("{flag} {}", path.display()))?;
    if found.is_empty() {
        bail!("{flag} {}: it has no certificate in PEM", path.display());
    }
    Ok(found)
}

/// A session over a socket that does not block.
#[derive(Debug)]
pub(crate) struct TlsSession(Box<ClientConnection>);

impl TlsSession {
    pub(crate) fn new(connection: ClientConnection) -> TlsSession {
        TlsSession(Box::new(connection))
    }

    /// Gives the system what it takes of what was written.
    ///
    /// # Errors
    /// Those of the socket; `WouldBlock` when something is left.
    pub(crate) fn flush(&mut self, socket: &mut impl Write) -> io::Result<()> {
        while self.0.wants_write() {
            if self.0.write_tls(socket)? == 0 {
                return Err(ErrorKind::WriteZero.into());
            }
        }
        Ok(())
    }

    /// Takes some of the bytes. What the system does not take now leaves with the next call of anything.
    ///
    /// # Errors
    /// Those of the socket; `WouldBlock` while what was taken before is not with the system.
    pub(crate) fn write(&mut self, socket: &mut impl Write, bytes: &[u8]) -> io::Result<usize> {
        self.flush(socket)?;
        let taken = self.0.writer().write(bytes)?;
        self.flush_some(socket)?;
        Ok(taken)
    }

    /// Reads what has come; 0 at the end.
    ///
    /// # Errors
    /// Those of the socket, and what is wrong with the other side's TLS; `WouldBlock` when nothing is there.
    pub(crate) fn read(&mut self, socket: &mut (impl Read + Write), bytes: &mut [u8]) -> io::Result<usize> {
        self.flush_some(socket)?;
        loop {
            match self.0.reader().read(bytes) {
                Ok(read) => return Ok(read),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
            if self.hear(socket)? == 0 {
                return Ok(0);
            }
        }
    }

    /// Goes on with the handshake until it is over.
    ///
    /// # Errors
    /// As those of a read.
    pub(crate) fn shake_hands(&mut self, socket: &mut (impl Read + Write)) -> io::Result<()> {
        self.flush_some(socket)?;
        while self.0.is_handshaking() {
            if self.hear(socket)? == 0 {
                return Err(ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(())
    }

    /// Reads once of the socket.
    fn hear(&mut self, socket: &mut (impl Read + Write)) -> io::Result<usize> {
        let read = self.0.read_tls(socket)?;
        let heard = self.0.process_new_packets();
        // The handshake goes on, or the other side hears what is wrong.
        self.flush_some(socket)?;
        heard.map_err(|error| io::Error::new(ErrorKind::InvalidData, error))?;
        Ok(read)
    }

    fn flush_some(&mut self, socket: &mut impl Write) -> io::Result<()> {
        match self.flush(socket) {
            Err(error) if error.kind() != ErrorKind::WouldBlock => Err(error),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::credentials::RunCredentials;
    use rustls::{ServerConfig, ServerConnection};
    use std::collections::VecDeque;

    /// Two pipes between a session and a server, of which each takes `most` bytes at once.
    struct Pipe {
        to_server: VecDeque<u8>,
        to_client: VecDeque<u8>,
        most: usize,
    }

    impl Read for Pipe {
        fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
            if self.to_client.is_empty() {
                return Err(ErrorKind::WouldBlock.into());
            }
            let most = bytes.len().min(self.most);
            self.to_client.read(&mut bytes[..most])
        }
    }

    impl Write for Pipe {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let room = self.most.saturating_sub(self.to_server.len());
            if room == 0 {
                return Err(ErrorKind::WouldBlock.into());
            }
            self.to_server.write(&bytes[..bytes.len().min(room)])
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn server(credentials: &RunCredentials) -> ServerConnection {
        let own = certificates("", &credentials.cert).unwrap();
        let key = PrivateKeyDer::from_pem_file(&credentials.key).unwrap();
        let config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(own, key)
            .unwrap();
        let mut server = ServerConnection::new(Arc::new(config)).unwrap();
        server.set_buffer_limit(None);
        server
    }

    #[test]
    fn all_bytes_pass_through_a_socket_that_takes_few_at_once() {
        let directory = tempfile::tempdir().unwrap();
        let credentials = RunCredentials::make(directory.path()).unwrap();
        let tls = ClientTls::read(&credentials.ca, None).unwrap();
        let sent: Vec<u8> = (0..100_000_u32).map(|number| number as u8).collect();
        for most in [7, 5_000, 1 << 20] {
            let mut server = server(&credentials);
            let mut session = TlsSession::new(tls.session("127.0.0.1:1").unwrap());
            let mut pipe = Pipe { to_server: VecDeque::new(), to_client: VecDeque::new(), most };
            let (mut written, mut back) = (0, Vec::new());
            let mut room = vec![0; 1000];
            while back.len() < sent.len() {
                if written < sent.len() {
                    match session.write(&mut pipe, &sent[written..]) {
                        Ok(taken) => written += taken,
                        Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
                    }
                }
                match session.read(&mut pipe, &mut room) {
                    Ok(read) => back.extend_from_slice(&room[..read]),
                    Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
                }
                // The server says back whatever it hears.
                while server.wants_read() && !pipe.to_server.is_empty() {
                    server.read_tls(&mut pipe.to_server).unwrap();
                    server.process_new_packets().unwrap();
                    let mut heard = vec![0; 1 << 17];
                    if let Ok(length) = server.reader().read(&mut heard) {
                        server.writer().write_all(&heard[..length]).unwrap();
                    }
                }
                while server.wants_write() {
                    server.write_tls(&mut pipe.to_client).unwrap();
                }
            }
            assert_eq!(back, sent, "{most}");
            assert!(!session.0.wants_write());
        }
    }

    #[test]
    fn a_store_of_another_ca_is_refused() {
        let (ours, theirs) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let ours = RunCredentials::make(ours.path()).unwrap();
        let mut server = server(&RunCredentials::make(theirs.path()).unwrap());
        let mut session =
            TlsSession::new(ClientTls::read(&ours.ca, None).unwrap().session("localhost:1").unwrap());
        let mut pipe = Pipe { to_server: VecDeque::new(), to_client: VecDeque::new(), most: 1 << 20 };
        let error = loop {
            match session.read(&mut pipe, &mut [0; 10]) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                ended => break ended.unwrap_err(),
            }
            server.read_tls(&mut pipe.to_server).unwrap();
            server.process_new_packets().unwrap();
            while server.wants_write() {
                server.write_tls(&mut pipe.to_client).unwrap();
            }
        };
        assert_eq!(error.kind(), ErrorKind::InvalidData);
        assert!(error.to_string().contains("invalid peer certificate"), "{error}");
    }

    #[test]
    fn a_file_of_no_use_is_named_with_its_flag() {
        let directory = tempfile::tempdir().unwrap();
        let empty = directory.path().join("empty");
        std::fs::write(&empty, "").unwrap();
        let credentials = RunCredentials::make(directory.path()).unwrap();
        let told = |ca: &Path, own| format!("{:#}", ClientTls::read(ca, own).unwrap_err());
        assert!(told(&empty, None).starts_with("--tls-ca "));
        assert!(told(&credentials.ca, Some((&empty, &credentials.key))).starts_with("--tls-cert "));
        assert!(told(&credentials.ca, Some((&credentials.cert, &empty))).starts_with("--tls-key "));
        assert!(told(&directory.path().join("none"), None).starts_with("--tls-ca "));
    }
}
