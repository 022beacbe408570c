//! One end of a connection over TLS. One task may read while another writes, as on every other connection.
//!
//! Owns the state of TLS between a socket and its plain bytes. Its handshake is driven by the first reads and writes, so that
//! whatever limits those in time limits it: a peer that never finishes it costs what a silent one costs.
//!
//! **What counts as taken.** A write encrypts some bytes, and says that they are taken only once the system has all of what
//! they became. Until then the caller comes back with the same bytes first, and they are not encrypted again. So nothing that
//! was told to be taken waits here, and whoever reads slowly is seen to do so.
//!
//! An end without TLS' own word of parting (`close_notify`) is an end: the protocols inside tell what is whole.

use super::super::{drain, taken};
use super::material::AcceptConfigs;
use super::words::sentence;
use bytes::{BufMut as _, BytesMut};
use dsm_protocol::handshake::{Security, TLS_FIRST_BYTE};
use dsm_protocol::secret::Channel;
use rustls::server::Acceptor;
use rustls::{Connection, ProtocolVersion};
use smallvec::SmallVec;
use std::cell::RefCell;
use std::io::{self, BufRead as _, IoSlice, Write as _};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::io::Interest;
use tokio::net::TcpStream;

/// Room for what is read of a socket before it is decrypted, in bytes. It is one for all connections of a thread.
const CIPHER_BYTES: usize = 64 * 1024;

/// No less is asked for, so that a record is not read in many parts: the longest one, about.
const CIPHER_BYTES_MIN: usize = 17 * 1024;

/// No more than this is encrypted before the system has taken it.
const ENCRYPTED_AT_ONCE: usize = 32 * 1024;

/// The beginning of a handshake that decides about the rest has at most so many bytes.
const HELLO_BYTES_MAX: usize = 16 * 1024;

/// A whole handshake has at most so many bytes of the other side: with the longest chain of certificates, half of it is left.
const HANDSHAKE_BYTES_MAX: usize = 40 * 1024;

/// After so much work a task lets others run. A byte is one, about.
const WORK_MAX: usize = 96 * 1024;

/// So much work is a record, however little is in it.
const RECORD_WORK: usize = 256;

/// So many parts are encrypted at once.
const PARTS_MAX: usize = 8;

/// So often one read asks the system again, while what comes is TLS' own.
const READS_MAX: usize = 8;

/// What a session is asked for by which both its ends know it.
const CHANNEL_LABEL: &[u8] = b"EXPORTER-dsm-secret";

thread_local! {
    /// What was read and is decrypted at once.
    static CIPHER: RefCell<Vec<u8>> = RefCell::new(vec![0; CIPHER_BYTES]);
}

/// A connection over TLS.
#[derive(Debug)]
pub struct TlsStream {
    socket: TcpStream,
    /// Locked for no longer than a call takes. Only the client library needs that it is a lock: its program may move its task
    /// from one thread to another.
    state: Mutex<State>,
}

/// What both ends of a session of TLS know it by. One before TLS 1.3 may be known to whoever has it in common with others.
///
/// # Errors
/// That its handshake is not over, or of another version.
pub(crate) fn channel_of(
    version: Option<ProtocolVersion>,
    export: impl FnOnce(&[u8]) -> Result<[u8; 32], rustls::Error>,
) -> io::Result<Channel> {
    if version != Some(ProtocolVersion::TLSv1_3) {
        return Err(io::Error::new(io::ErrorKind::Unsupported, "a secret is proved over TLS 1.3 alone"));
    }
    export(CHANNEL_LABEL).map(Channel::exported).map_err(io::Error::other)
}

/// How far a connection is.
enum Phase {
    /// Nothing has come, or a part of what decides about the rest.
    Accepting { acceptor: Box<Acceptor>, configs: Arc<AcceptConfigs>, heard: usize },
    /// What has come is no TLS: it is handed through, so that the other side can be told.
    Bare,
    /// It is TLS, be it that the handshake goes on.
    Tls { connection: Box<Connection>, is_node: bool },
    /// It has failed for this reason.
    Failed(String),
}

struct State {
    phase: Phase,
    /// Bytes that are encrypted, and not yet told to be taken.
    owed: usize,
    /// What was read when no more could be decrypted, or was to be in this turn.
    unfed: Vec<u8>,
    /// What was decrypted since others were let run; see [`WORK_MAX`].
    work: usize,
    /// Bytes of the handshake that were heard.
    handshake_bytes: usize,
    records: Records,
    /// What a connection that has failed says last.
    alert: Vec<u8>,
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self.phase {
            Phase::Accepting { .. } => "Accepting",
            Phase::Bare => "Bare",
            Phase::Tls { .. } => "Tls",
            Phase::Failed(_) => "Failed",
        })
    }
}

impl TlsStream {
    /// The side that has connected `socket`.
    pub(super) fn dialed(socket: TcpStream, connection: rustls::ClientConnection, is_node: bool) -> Self {
        TlsStream::new(socket, Phase::Tls { connection: Box::new(connection.into()), is_node })
    }

    /// The side that has accepted it.
    pub(super) fn accepted(socket: TcpStream, configs: Arc<AcceptConfigs>) -> Self {
        TlsStream::new(socket, Phase::Accepting { acceptor: Box::default(), configs, heard: 0 })
    }

    fn new(socket: TcpStream, phase: Phase) -> Self {
        TlsStream {
            socket,
            state: Mutex::new(State {
                phase,
                owed: 0,
                unfed: Vec::new(),
                work: 0,
                handshake_bytes: 0,
                records: Records::default(),
                alert: Vec::new(),
            }),
        }
    }

    pub(in crate::env::net) fn socket(&self) -> &TcpStream {
        &self.socket
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// See [`Stream::channel`](super::super::Stream::channel).
    ///
    /// # Errors
    /// As there.
    pub(in crate::env::net) fn channel(&self) -> io::Result<Channel> {
        match &self.state().phase {
            Phase::Tls { connection, .. } => channel_of(connection.protocol_version(), |label| {
                connection.export_keying_material([0; 32], label, None)
            }),
            Phase::Accepting { .. } | Phase::Bare | Phase::Failed(_) => {
                Err(io::Error::new(io::ErrorKind::Unsupported, "there is no TLS yet"))
            }
        }
    }

    /// What is known of the other side.
    pub(in crate::env::net) fn security(&self) -> Security {
        match self.state().phase {
            Phase::Bare => Security::Missing,
            Phase::Tls { is_node, .. } => Security::Tls { is_node },
            Phase::Accepting { .. } | Phase::Failed(_) => Security::Tls { is_node: false },
        }
    }

    /// Whether it is not known yet who the other side is.
    pub(in crate::env::net) fn is_in_handshake(&self) -> bool {
        self.state().is_handshaking()
    }

    /// Reads at most `bytes_max` bytes of what is there now into `buffer`; 0 at the end of the stream.
    ///
    /// # Errors
    /// What the system says, and what is wrong with the other side's TLS; `WouldBlock` when nothing is there.
    pub(in crate::env::net) fn try_read(&self, buffer: &mut BytesMut, bytes_max: usize) -> io::Result<usize> {
        let mut room = Room::new(buffer, bytes_max);
        let state = &mut *self.state();
        if state.pour(&mut room) && room.taken == 0 {
            return Ok(0);
        }
        for _ in 0..READS_MAX {
            if room.taken > 0 {
                return Ok(room.taken);
            }
            if let Phase::Failed(why) = &state.phase {
                return Err(failed(why));
            }
            if state.work >= WORK_MAX {
                break;
            }
            if !state.unfed.is_empty() {
                let unfed = std::mem::take(&mut state.unfed);
                // What is wrong is told once all that came before it is read.
                match state.hear(&unfed, &mut room) {
                    Ok(Next::End) => return Ok(room.taken),
                    Ok(Next::More) | Err(_) => continue,
                }
            }
            match self.advance(state, &mut room) {
                Ok(Next::More) => {}
                Ok(Next::End) => return Ok(room.taken),
                Err(error) if room.taken == 0 => return Err(error),
                Err(_) => {}
            }
        }
        if room.taken > 0 {
            return Ok(room.taken);
        }
        Err(io::ErrorKind::WouldBlock.into())
    }

    /// Whether what was decrypted is enough for one turn: there may be more that waits for nobody.
    pub(in crate::env::net) fn is_turn_over(&self) -> bool {
        self.state().work >= WORK_MAX
    }

    /// Lets others run if a turn's work is done. A task that reads calls it before it reads more.
    pub(in crate::env::net) async fn take_turn(&self) {
        if self.is_turn_over() {
            self.state().work = 0;
            tokio::task::yield_now().await;
        }
    }

    /// Reads once of the socket, and lets leave what TLS itself has to say.
    fn advance(&self, state: &mut State, room: &mut Room<'_>) -> io::Result<Next> {
        CIPHER.with_borrow_mut(|cipher| {
            let most = room.left.clamp(CIPHER_BYTES_MIN, CIPHER_BYTES);
            let read = match self.receive(&mut cipher[..most]) {
                Ok(0) => return Ok(Next::End),
                Ok(read) => read,
                Err(error) => {
                    // The next write tells why nothing leaves, if so.
                    let _ = state.flush(&self.socket);
                    return Err(error);
                }
            };
            let heard = state.hear(&cipher[..read], room);
            let _ = state.flush(&self.socket);
            heard
        })
    }

    fn receive(&self, cipher: &mut [u8]) -> io::Result<usize> {
        let mut drained = None;
        let most = cipher.len();
        let read = self
            .socket
            .try_io(Interest::READABLE, || drain(self.socket.try_read(cipher)?, most, &mut drained));
        drained.map_or(read, Ok)
    }

    /// Reads what the socket has into `buffer` without a look at it, to throw it away; 0 at the end of the stream.
    ///
    /// # Errors
    /// What the system says; `WouldBlock` when nothing is there.
    pub(in crate::env::net) fn try_read_off(&self, buffer: &mut BytesMut) -> io::Result<usize> {
        self.socket.try_read_buf(buffer)
    }

    /// Writes some of what is in several places; `None` when the system does not take all that it became now. Then the next
    /// write begins with the same bytes.
    ///
    /// # Errors
    /// What the system says, and what is wrong with the other side's TLS.
    pub(in crate::env::net) fn try_write(&self, parts: &[IoSlice<'_>]) -> io::Result<Option<usize>> {
        let state = &mut *self.state();
        match &mut state.phase {
            Phase::Bare => return taken(self.socket.try_write_vectored(parts)),
            Phase::Failed(why) => return Err(failed(why)),
            Phase::Accepting { .. } => return Ok(None),
            Phase::Tls { connection, .. } if connection.is_handshaking() => {}
            Phase::Tls { connection, .. } if state.owed == 0 => {
                state.owed = encrypt(connection, parts)?;
            }
            Phase::Tls { .. } => {}
        }
        if !state.flush(&self.socket)? || state.owed == 0 {
            return Ok(None);
        }
        // A caller that has more now may come with less at once.
        let offered: usize = parts.iter().map(|part| part.len()).sum();
        let taken = state.owed.min(offered);
        state.owed -= taken;
        Ok(Some(taken))
    }

    /// Waits until something may be there, or until what TLS itself has to say may leave.
    ///
    /// # Errors
    /// What the system says.
    pub(in crate::env::net) async fn readable(&self) -> io::Result<()> {
        let wants_write = {
            let mut state = self.state();
            // Whoever waits lets others run.
            state.work = 0;
            state.wants_write()
        };
        if !wants_write {
            return self.socket.readable().await;
        }
        tokio::select! {
            biased;
            readable = self.socket.readable() => readable,
            writable = self.socket.writable() => writable,
        }
    }

    /// Waits until the system may take something; before that, until the handshake is done. Until then no other task may
    /// read.
    ///
    /// # Errors
    /// What the system says, and what is wrong with the other side's TLS.
    pub(in crate::env::net) async fn writable(&self) -> io::Result<()> {
        while self.state().is_handshaking() {
            self.readable().await?;
            let mut nothing = BytesMut::new();
            let advanced = self.advance(&mut self.state(), &mut Room::new(&mut nothing, 0));
            match advanced {
                Ok(Next::More) => {}
                Ok(Next::End) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
        self.socket.writable().await
    }

    /// Says that nothing more will be written, in TLS' own words before it is said in those of TCP. A system that takes
    /// nothing now says it alone, which is an end, too.
    pub(in crate::env::net) fn shut_down_write(&self) {
        let _ = self.part();
        let _ = rustix::net::shutdown(&self.socket, rustix::net::Shutdown::Write);
    }

    /// The same, once the system has taken TLS' own words.
    ///
    /// # Errors
    /// What the system says.
    pub(in crate::env::net) async fn end_write(&self) -> io::Result<()> {
        while !self.part()? {
            self.socket.writable().await?;
        }
        let _ = rustix::net::shutdown(&self.socket, rustix::net::Shutdown::Write);
        Ok(())
    }

    /// Lets TLS say its last; whether the system has taken it.
    fn part(&self) -> io::Result<bool> {
        let state = &mut *self.state();
        if let Phase::Tls { connection, .. } = &mut state.phase {
            // It is said once.
            connection.send_close_notify();
        }
        state.flush(&self.socket)
    }
}

/// Whether there is more to come after a read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    More,
    End,
}

/// The place for plain bytes.
struct Room<'a> {
    buffer: &'a mut BytesMut,
    left: usize,
    taken: usize,
}

impl<'a> Room<'a> {
    fn new(buffer: &'a mut BytesMut, bytes_max: usize) -> Self {
        let left = buffer.limit(bytes_max).chunk_mut().len();
        Room { buffer, left, taken: 0 }
    }

    /// Takes as many of these as fit.
    fn take(&mut self, bytes: &[u8]) -> usize {
        let fitting = bytes.len().min(self.left);
        self.buffer.put_slice(&bytes[..fitting]);
        self.left -= fitting;
        self.taken += fitting;
        fitting
    }
}

/// Where the records of a stream begin: five bytes, of which the last two are how many follow.
#[derive(Debug, Default)]
struct Records {
    /// Bytes of a record that are still to come.
    left: usize,
    /// The last byte of a head of which some has come, and how much.
    head: (u8, u8),
}

impl Records {
    /// How many records begin in these bytes, which follow those that were seen before.
    fn begun_in(&mut self, mut bytes: &[u8]) -> usize {
        let mut begun = 0;
        loop {
            let passed = self.left.min(bytes.len());
            self.left -= passed;
            bytes = &bytes[passed..];
            let [next, rest @ ..] = bytes else { return begun };
            let (last, place) = self.head;
            bytes = rest;
            if place == 0 {
                begun += 1;
            }
            self.head = (*next, place + 1);
            if place == 4 {
                self.left = usize::from(u16::from_be_bytes([last, *next]));
                self.head = (0, 0);
            }
        }
    }
}

impl State {
    fn is_handshaking(&self) -> bool {
        match &self.phase {
            Phase::Accepting { .. } => true,
            Phase::Tls { connection, .. } => connection.is_handshaking(),
            Phase::Bare | Phase::Failed(_) => false,
        }
    }

    fn wants_write(&self) -> bool {
        match &self.phase {
            Phase::Tls { connection, .. } => connection.wants_write(),
            Phase::Accepting { .. } | Phase::Bare | Phase::Failed(_) => false,
        }
    }

    /// Gives what is decrypted; whether the other side has said its last.
    fn pour(&mut self, room: &mut Room<'_>) -> bool {
        let Phase::Tls { connection, .. } = &mut self.phase else { return false };
        pour(connection, room)
    }

    /// Takes in what was read of the socket.
    fn hear(&mut self, mut cipher: &[u8], room: &mut Room<'_>) -> io::Result<Next> {
        if let Phase::Accepting { heard: 0, .. } = self.phase {
            if cipher.first() != Some(&TLS_FIRST_BYTE) {
                self.phase = Phase::Bare;
            }
        }
        self.accept(&mut cipher)?;
        match &mut self.phase {
            Phase::Bare => {
                let taken = room.take(cipher);
                self.unfed.extend_from_slice(&cipher[taken..]);
            }
            Phase::Tls { .. } => return self.decrypt(cipher, room),
            Phase::Failed(why) => return Err(failed(why)),
            Phase::Accepting { .. } => {}
        }
        Ok(Next::More)
    }

    /// Decrypts as much as is work for a turn, and as there is room for. The rest stays.
    fn decrypt(&mut self, mut cipher: &[u8], room: &mut Room<'_>) -> io::Result<Next> {
        while !cipher.is_empty() {
            let Phase::Tls { connection, .. } = &mut self.phase else { break };
            let is_handshaking = connection.is_handshaking();
            if is_handshaking && self.handshake_bytes > HANDSHAKE_BYTES_MAX {
                return Err(self.fail("its handshake is too long", Vec::new()));
            }
            if !is_handshaking && self.work >= WORK_MAX {
                self.unfed.extend_from_slice(cipher);
                break;
            }
            let before = cipher;
            let heard = match connection.read_tls(&mut cipher) {
                // Nothing counts after its last.
                Ok(0) => return Ok(Next::End),
                Ok(heard) => heard,
                Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                    return Err(self.fail(&error.to_string(), Vec::new()));
                }
                // As much is decrypted and not read yet as may be.
                Err(_) => {
                    self.unfed.extend_from_slice(cipher);
                    break;
                }
            };
            self.work += heard + RECORD_WORK * self.records.begun_in(&before[..heard]);
            if is_handshaking {
                self.handshake_bytes += heard;
            }
            let processed = connection.process_new_packets();
            let is_over = pour(connection, room);
            if let Err(error) = processed {
                let mut alert = Vec::new();
                // A vector takes all.
                while connection.wants_write() && connection.write_tls(&mut alert).is_ok() {}
                return Err(self.fail(&sentence(&error), alert));
            }
            if is_over {
                return Ok(Next::End);
            }
        }
        Ok(Next::More)
    }

    /// Takes in the beginning of a handshake, up to where it is known which settings are for the other side.
    fn accept(&mut self, cipher: &mut &[u8]) -> io::Result<()> {
        while let Phase::Accepting { acceptor, configs, heard } = &mut self.phase {
            if cipher.is_empty() {
                return Ok(());
            }
            let before = *cipher;
            let taken = acceptor.read_tls(cipher)?;
            self.records.begun_in(&before[..taken]);
            *heard += taken;
            let is_long = *heard > HELLO_BYTES_MAX;
            let accepted = match acceptor.accept() {
                Ok(None) if is_long => return Err(self.fail("its first message is too long", Vec::new())),
                Ok(None) => continue,
                Ok(Some(accepted)) => accepted,
                Err((error, mut alert)) => {
                    let mut said = Vec::new();
                    let _ = alert.write_all(&mut said);
                    return Err(self.fail(&sentence(&error), said));
                }
            };
            let is_node = AcceptConfigs::is_for_nodes(&accepted.client_hello());
            match accepted.into_connection(configs.of(is_node)) {
                Ok(connection) => {
                    self.phase = Phase::Tls { connection: Box::new(connection.into()), is_node };
                }
                Err((error, mut alert)) => {
                    let mut said = Vec::new();
                    let _ = alert.write_all(&mut said);
                    return Err(self.fail(&sentence(&error), said));
                }
            }
        }
        Ok(())
    }

    /// Notes that the connection has failed. The `alert` is the last that it says.
    fn fail(&mut self, why: &str, alert: Vec<u8>) -> io::Error {
        self.unfed = Vec::new();
        self.alert = alert;
        self.phase = Phase::Failed(why.to_owned());
        failed(why)
    }

    /// Writes what is encrypted; whether the system has taken all of it.
    fn flush(&mut self, socket: &TcpStream) -> io::Result<bool> {
        match &mut self.phase {
            Phase::Tls { connection, .. } => {
                while connection.wants_write() {
                    match connection.write_tls(&mut Out(socket)) {
                        Ok(_) => {}
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                        Err(error) => return Err(error),
                    }
                }
                Ok(true)
            }
            Phase::Failed(_) => {
                // An alert that is not taken at once is lost with the connection.
                let alert = std::mem::take(&mut self.alert);
                if alert.is_empty() {
                    return Ok(true);
                }
                socket.try_write(&alert).map(|_| true)
            }
            Phase::Accepting { .. } | Phase::Bare => Ok(true),
        }
    }
}

/// Gives what is decrypted; whether the other side has said its last.
fn pour(connection: &mut Connection, room: &mut Room<'_>) -> bool {
    let mut reader = connection.reader();
    loop {
        let taken = match reader.fill_buf() {
            Ok([]) => return true,
            Ok(bytes) => room.take(bytes),
            Err(_) => return false,
        };
        if taken == 0 {
            return false;
        }
        reader.consume(taken);
    }
}

/// Encrypts some of what is to be written, as few records as it fits into; so many bytes of it.
fn encrypt(connection: &mut Connection, parts: &[IoSlice<'_>]) -> io::Result<usize> {
    let mut left = ENCRYPTED_AT_ONCE;
    let mut some = SmallVec::<[IoSlice<'_>; PARTS_MAX]>::new();
    for part in parts.iter().take(PARTS_MAX) {
        let bytes = part.len().min(left);
        some.push(IoSlice::new(&part[..bytes]));
        left -= bytes;
        if left == 0 {
            break;
        }
    }
    connection.writer().write_vectored(&some)
}

fn failed(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why.to_owned())
}

/// The socket, as something to write to.
struct Out<'a>(&'a TcpStream);

impl io::Write for Out<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.try_write(bytes)
    }

    fn write_vectored(&mut self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        self.0.try_write_vectored(parts)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_counted_wherever_what_was_read_is_cut() {
        let lengths = [0, 1, 300, 0, 17_000, 5];
        let stream: Vec<u8> = lengths
            .iter()
            .flat_map(|length: &u16| {
                let head = [0x17, 3, 3, (length >> 8) as u8, *length as u8];
                head.into_iter().chain(vec![0x17; usize::from(*length)])
            })
            .collect();
        for part in [1, 2, 3, 4, 5, 6, 7, 299, 4096, stream.len()] {
            let mut records = Records::default();
            let begun: usize = stream.chunks(part).map(|part| records.begun_in(part)).sum();
            assert_eq!(begun, lengths.len(), "in parts of {part}");
        }
    }
}
