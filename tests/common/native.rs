//! A small blocking client of the native protocol that can also send what no client should: raw bytes, frames with a
//! right checksum and a wrong body, the HELLO of a slave.

use bytes::BytesMut;
use dsm_protocol::command::{Command, Reply};
use dsm_protocol::frame;
use dsm_protocol::ids::{ClusterId, Incarnation, RequestId, SlaveId};
use dsm_protocol::message::{Control, Hello, HelloRole, Message, Request, Welcome};
use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

/// One link.
pub(crate) struct Native {
    stream: TcpStream,
    received: BytesMut,
    next: u64,
}

impl Native {
    /// Connects and sends nothing; no read or write lasts longer than `timeout`.
    pub(crate) fn open(address: SocketAddr, timeout: Duration) -> Native {
        let stream = TcpStream::connect_timeout(&address, timeout).expect("the master accepts connections");
        stream.set_nodelay(true).expect("a socket option");
        stream.set_read_timeout(Some(timeout)).expect("a socket option");
        stream.set_write_timeout(Some(timeout)).expect("a socket option");
        Native { stream, received: BytesMut::new(), next: 1 }
    }

    /// Connects and shakes hands as a client.
    pub(crate) fn client(address: SocketAddr, timeout: Duration) -> Native {
        let mut link = Native::open(address, timeout);
        link.say_hello(None, HelloRole::Client).expect("the master reads");
        link.welcome().expect("a client is welcome");
        link
    }

    /// Sends preface and hello.
    ///
    /// # Errors
    /// What the socket says.
    pub(crate) fn say_hello(&mut self, cluster: Option<ClusterId>, role: HelloRole) -> io::Result<()> {
        let mut bytes = Vec::new();
        dsm_protocol::handshake::greet(Hello { cluster, role }, &mut bytes);
        self.send(&bytes)
    }

    /// Waits for the answer to a hello.
    ///
    /// # Errors
    /// The reason of a refusal, or what the socket says.
    pub(crate) fn welcome(&mut self) -> Result<Welcome, String> {
        match self.message() {
            Ok(Message::Control(Control::Welcome(welcome))) => Ok(welcome),
            Ok(Message::Control(Control::Reject { reason })) => Err(reason),
            other => Err(format!("{other:?}")),
        }
    }

    /// Sends bytes as they are.
    ///
    /// # Errors
    /// What the socket says.
    pub(crate) fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)
    }

    /// Sends a request without waiting; its id.
    ///
    /// # Errors
    /// What the socket says.
    pub(crate) fn ask(&mut self, command: Command) -> io::Result<RequestId> {
        let id = RequestId(self.next);
        self.next += 1;
        let mut bytes = Vec::new();
        frame::encode_request(&Request { id, stream: 0, generation: 0, command }, &mut bytes);
        self.send(&bytes)?;
        Ok(id)
    }

    /// One request and its answer.
    pub(crate) fn call(&mut self, command: Command) -> Reply {
        let asked = self.ask(command).expect("the master reads");
        let (id, reply) = self.answer();
        assert_eq!(id, asked);
        reply
    }

    /// The next answer.
    pub(crate) fn answer(&mut self) -> (RequestId, Reply) {
        match self.message().expect("an answer") {
            Message::Response { id, reply } => (id, reply),
            other => panic!("{other:?} is no answer"),
        }
    }

    /// The next frame.
    ///
    /// # Errors
    /// Errors of the socket; `UnexpectedEof` at the end.
    pub(crate) fn message(&mut self) -> io::Result<Message> {
        loop {
            let decoded = frame::decode(&mut self.received, 1 << 27);
            if let Some(message) = decoded.expect("a master speaks frames") {
                return Ok(message);
            }
            let mut chunk = vec![0; 256 * 1024];
            match self.stream.read(&mut chunk)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                read => self.received.extend_from_slice(&chunk[..read]),
            }
        }
    }

    /// Waits until the master ends the link; gives its reason, if it sends one.
    ///
    /// # Panics
    /// When it does not within the link's timeout.
    pub(crate) fn end(&mut self) -> Option<String> {
        let mut told = None;
        let begun = Instant::now();
        loop {
            match self.message() {
                Ok(Message::Control(Control::Reject { reason })) => told = Some(reason),
                Ok(_) => assert!(begun.elapsed() < super::seconds(20), "the link is still open, and busy"),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => panic!("the link is still open"),
                // If sent bytes were left unread, the end is a reset.
                Err(_) => return told,
            }
        }
    }
}

/// A frame with the right length and checksum, whatever its kind and body.
pub(crate) fn framed(kind: u8, body: &[u8]) -> Vec<u8> {
    let content = [&[kind], body].concat();
    let mut bytes = u32::try_from(body.len()).expect("short").to_le_bytes().to_vec();
    bytes.extend(crc32c::crc32c(&content).to_le_bytes());
    bytes.extend(content);
    bytes
}

/// A message as a frame.
pub(crate) fn encoded(message: &Message) -> Vec<u8> {
    let mut bytes = Vec::new();
    frame::encode(message, &mut bytes);
    bytes
}

/// The HELLO of a slave without values.
pub(crate) fn slave(id: &str) -> HelloRole {
    HelloRole::Slave {
        id: SlaveId::new(id).expect("a name"),
        incarnation: Incarnation(rand::random()),
        seen: None,
        room_bytes: u64::MAX,
    }
}
