//! What the benchmarks measure: a master machine that serves keys held by three slaves, and bytes as clients send them.
//!
//! Owns the state of that cluster and plays its slaves and its log, which answer at once.

use bytes::{Bytes, BytesMut};
use dsm_protocol::command::{Command, Reply};
use dsm_protocol::ids::{LinkId, Millis, ReignId, SessionId, SlaveId, Version};
use dsm_protocol::machine::master::{Asker, Config, Effect, Event, Master, ReadId, WriteId, READS_IN_A_ROW};
use dsm_protocol::record::Place;
use std::fmt::Write as _;

/// The epoch of the only reign.
pub const EPOCH: u64 = 1;

/// The identity of that reign.
pub const REIGN: ReignId = ReignId(7);

const SLAVES: u64 = 3;

/// No request's deadline passes.
const NEVER: Millis = Millis(u64::MAX);

/// The name of a key.
pub fn key(number: usize) -> Bytes {
    format!("key:{number:012}").into()
}

/// A value of 16 bytes.
pub fn value() -> Bytes {
    Bytes::from_static(b"a value of 16 by")
}

/// `requests` GETs of different keys, as a Redis client pipelines them.
pub fn pipelined_gets(requests: usize) -> BytesMut {
    let mut text = String::new();
    for number in 0..requests {
        let key = format!("key:{number:012}");
        let _ = write!(text, "*2\r\n$3\r\nGET\r\n${}\r\n{key}\r\n", key.len());
    }
    BytesMut::from(text.as_bytes())
}

/// A master with its slaves and its log.
pub struct Cluster {
    master: Master,
    effects: Vec<Effect>,
    now: Millis,
    seq: u64,
    tag: u64,
}

impl Cluster {
    /// A cluster that holds `keys` keys, each with a value of 16 bytes.
    pub fn with_keys(keys: usize) -> Self {
        let config = Config { reads_in_a_row: READS_IN_A_ROW, ..Config::default() };
        let mut cluster =
            Cluster { master: Master::new(config), effects: Vec::new(), now: Millis(0), seq: 1, tag: 0 };
        let version = Version::new(EPOCH, 1);
        cluster.step(Event::ReignBegan { version, id: REIGN });
        for number in 1..=SLAVES {
            let id = SlaveId::new(format!("slave{number}")).expect("a name");
            cluster.step(Event::SlaveJoined { id, link: LinkId(number), room_bytes: u64::MAX });
        }
        for number in 0..keys {
            cluster.write(key(number));
        }
        cluster
    }

    fn step(&mut self, event: Event) {
        self.effects.clear();
        self.master.step(self.now, event, &mut self.effects);
    }

    fn ask(&mut self, command: Command) {
        self.tag += 1;
        let asker = Asker { session: SessionId(1), tag: self.tag };
        self.step(Event::Request { asker, deadline: NEVER, command });
    }

    /// One read from the request to the answer.
    ///
    /// # Panics
    /// When the key is not there.
    pub fn read(&mut self, key: Bytes) -> Reply {
        self.ask(Command::Get { key });
        let (link, read, version) = self
            .effects
            .iter()
            .find_map(|effect| {
                let Effect::SendRead { link, read, version, .. } = effect else { return None };
                Some((*link, *read, *version))
            })
            .expect("a slave is asked");
        self.answer(link, read, version)
    }

    fn answer(&mut self, link: LinkId, read: ReadId, version: Version) -> Reply {
        self.step(Event::Value { link, read, version, reign: REIGN, value: value() });
        self.reply().expect("the read is answered")
    }

    /// One write from the request to the last ACK.
    ///
    /// # Panics
    /// When it is refused.
    pub fn write(&mut self, key: Bytes) -> Reply {
        self.ask(Command::Put { key, value: value() });
        let write = self.appended().expect("a record is appended");
        self.seq += 1;
        let version = Version::new(EPOCH, self.seq);
        let place = Place { offset: self.seq * 100, text_bytes: 16, bytes: 16, ..Place::default() };
        self.step(Event::Written { write, version, places: [place].into_iter().collect() });
        let sent: Vec<LinkId> = self
            .effects
            .iter()
            .filter_map(|effect| {
                let Effect::SendWrite { link, .. } = effect else { return None };
                Some(*link)
            })
            .collect();
        let mut reply = None;
        for link in sent {
            self.step(Event::Acked { link, writes: 1, room_bytes: u64::MAX });
            reply = reply.or_else(|| self.reply());
        }
        reply.expect("the write is answered")
    }

    fn appended(&self) -> Option<WriteId> {
        self.effects.iter().find_map(|effect| {
            let Effect::Append { write, .. } = effect else { return None };
            Some(*write)
        })
    }

    fn reply(&mut self) -> Option<Reply> {
        self.effects.drain(..).find_map(|effect| {
            let Effect::Reply { reply, .. } = effect else { return None };
            Some(reply)
        })
    }
}
