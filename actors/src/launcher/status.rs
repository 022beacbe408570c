//! Asks a master for its STATUS, over a new connection.

use super::config::LauncherConfig;
use super::error::LaunchError;
use crate::env::{tls_channel, Tls};
use crate::secrets::{self, Credential, Secret, SecretSource};
use bytes::BytesMut;
use dsm_protocol::command::{Command as StoreCommand, Reply};
use dsm_protocol::frame;
use dsm_protocol::handshake::{DialEffect, DialEvent, Dialing};
use dsm_protocol::ids::{Millis, RequestId};
use dsm_protocol::info::MasterInfo;
use dsm_protocol::message::{Hello, HelloRole, Message, Request};
use dsm_protocol::secret::Channel;
use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

/// The longest text of a STATUS, in bytes.
const STATUS_BYTES_MAX: usize = 1024 * 1024;

/// How masters are asked: with which certificates, and with which secret.
#[derive(Clone, Debug)]
pub(super) struct AskedBy {
    tls: Option<Tls>,
    secret: Option<Secret>,
}

impl AskedBy {
    /// As the settings say. Waits for disks.
    ///
    /// # Errors
    /// [`LaunchError::Tls`] and [`LaunchError::Secret`].
    pub(super) fn of(config: &LauncherConfig) -> Result<Self, LaunchError> {
        let tls = config.tls.is_on().then(|| Tls::for_client(&config.tls)).transpose()?;
        let source = config.client_secret_file.clone().map(SecretSource::File);
        Ok(AskedBy { tls, secret: secrets::of_client(source.as_ref())? })
    }
}

/// Asks a master for its STATUS, over a connection of its own.
///
/// # Errors
/// The error of the connection or the handshake, `TimedOut`, or that the answer is not from a master of this version.
pub(super) fn ask_info(address: SocketAddr, by: &AskedBy, limit: Duration) -> io::Result<MasterInfo> {
    let deadline = Instant::now() + limit;
    let socket = TcpStream::connect_timeout(&address, limit)?;
    socket.set_nodelay(true)?;
    socket.set_write_timeout(Some(limit))?;
    socket.set_read_timeout(Some(limit))?;
    let mut stream = match &by.tls {
        Some(tls) => Asked::Tls(Box::new(tls.dial_blocking(socket, address.ip())?)),
        None => Asked::Plain(socket),
    };
    let begun = Instant::now();
    let now = || Millis(begun.elapsed().as_millis() as u64);
    let hello = Hello { cluster: None, role: HelloRole::Client };
    let (mut out, mut input, mut effects) = (Vec::new(), BytesMut::new(), Vec::new());
    let mut dialing = Dialing::begin(now(), limit.as_millis() as u64, hello, &mut out);
    if let Some(secret) = &by.secret {
        let Credential { secret, nonce } = secrets::fresh_credential(secret.clone());
        dialing = dialing.with_secret(secret, nonce);
    }
    stream.write_all(&out)?;
    'shaking: loop {
        let event = match read_more(&mut stream, &mut input, deadline)? {
            0 => DialEvent::Ended,
            _ => {
                if by.secret.is_some() {
                    dialing.step(now(), DialEvent::Through(stream.channel()?), &mut effects);
                }
                DialEvent::Bytes { unread: &mut input, cluster: None }
            }
        };
        dialing.step(now(), event, &mut effects);
        for effect in effects.drain(..) {
            match effect {
                DialEffect::Welcomed(_) => break 'shaking,
                DialEffect::GiveUp(why) => return Err(io::Error::other(why)),
                DialEffect::Say(control) => {
                    out.clear();
                    frame::encode(&Message::Control(control), &mut out);
                    stream.write_all(&out)?;
                }
            }
        }
    }
    out.clear();
    let request = Request { id: RequestId(1), stream: 0, generation: 0, command: StoreCommand::Status };
    frame::encode_request(&request, &mut out);
    stream.write_all(&out)?;
    match receive(&mut stream, &mut input, deadline)? {
        Message::Response { reply: Reply::Text(text), .. } => {
            MasterInfo::parse(&text).map_err(io::Error::other)
        }
        Message::Response { reply: Reply::Error(error), .. } => Err(io::Error::other(error)),
        _ => Err(io::Error::other("did not answer the question")),
    }
}

/// A connection to a master.
enum Asked {
    Plain(TcpStream),
    Tls(Box<rustls::StreamOwned<rustls::ClientConnection, TcpStream>>),
}

impl Asked {
    fn socket(&self) -> &TcpStream {
        match self {
            Asked::Plain(socket) => socket,
            Asked::Tls(stream) => &stream.sock,
        }
    }

    /// What this connection is known by at both its ends.
    fn channel(&self) -> io::Result<Channel> {
        match self {
            Asked::Plain(socket) => Ok(Channel::tcp(socket.peer_addr()?)),
            Asked::Tls(stream) => tls_channel(stream.conn.protocol_version(), |label| {
                stream.conn.export_keying_material([0; 32], label, None)
            }),
        }
    }

    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Asked::Plain(socket) => socket.write_all(bytes),
            Asked::Tls(stream) => stream.write_all(bytes).and_then(|()| stream.flush()),
        }
    }

    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        match self {
            Asked::Plain(socket) => socket.read(bytes),
            Asked::Tls(stream) => stream.read(bytes),
        }
    }
}

fn receive(stream: &mut Asked, input: &mut BytesMut, deadline: Instant) -> io::Result<Message> {
    loop {
        if let Some(message) = frame::decode(input, STATUS_BYTES_MAX).map_err(io::Error::other)? {
            return Ok(message);
        }
        if read_more(stream, input, deadline)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}

/// Reads what is there by `deadline`; 0 at the end of the stream.
fn read_more(stream: &mut Asked, input: &mut BytesMut, deadline: Instant) -> io::Result<usize> {
    let mut chunk = [0; 4096];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        stream.socket().set_read_timeout(Some(left))?;
        match stream.read(&mut chunk) {
            Ok(read) => {
                input.extend_from_slice(&chunk[..read]);
                return Ok(read);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}
