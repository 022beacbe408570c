//! Listens to what masters and slaves say to each other, and holds it against what they must never say.
//!
//! The store is built so that one mistake is often made good by another rule: a slave that lost a value costs a read
//! from the log, and no client sees it. Here it is seen. Owns what it has heard; never says a word itself.

use crate::cluster::{Cluster, LOG};
use crate::moved::MOVED;
use crate::seed::{Check, Failure};
use bytes::{Bytes, BytesMut};
use dsm::config::Fsync;
use dsm::env::sim::{Machine, Passing, World};
use dsm_protocol::frame::{self, PREFACE};
use dsm_protocol::ids::{Epoch, Reign as Name, Seq, SlaveId, Version};
use dsm_protocol::machine::master::Master;
use dsm_protocol::message::{Control, HelloRole, Message};
use dsm_protocol::record::parse_line;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::Path;
use std::rc::Rc;

/// The longest frame here.
const BODY_BYTES_MAX: usize = 1 << 24;

/// What passes right now, as far as faults are aimed at it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Talk {
    /// A write on its way to a slave, at either end.
    Write,
    /// A slave's acknowledgement of a write, at either end.
    Ack,
    /// Anything else.
    Other,
}

/// What masters say to each other about a handover.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Handover {
    /// The standby asks for the reign.
    Asked,
    /// The active master keeps it.
    Refused,
}

/// The witness. Clones are the same one.
#[derive(Clone, Default)]
pub(crate) struct Witness(Rc<RefCell<State>>);

#[derive(Default)]
struct State {
    /// Where the log is, if it is to be synced before anything is told.
    log_machine: Option<Machine>,
    connections: BTreeMap<u64, Connection>,
    /// Whose process announced an epoch.
    reigns: BTreeMap<Epoch, u32>,
    /// What masters said a version is.
    values: BTreeMap<(Version, Bytes), Bytes>,
    /// Versions that were seen on the disk.
    durable: BTreeSet<Version>,
    /// What at least one slave has acknowledged.
    acknowledged: BTreeSet<(Bytes, Bytes)>,
    /// By process.
    slaves: BTreeMap<u32, Slave>,
    /// The process of each name that has reported last.
    members: BTreeMap<String, u32>,
    failure: Option<Failure>,
    /// Writes that a slave had no room for.
    refused: u64,
    /// Whether a write may be done without a copy, as the slaves with room for it have left.
    is_room_scarce: bool,
    talk: Option<Talk>,
    handover: Option<Handover>,
}

/// What is known of a slave's process.
#[derive(Default)]
struct Slave {
    epoch: Epoch,
    /// What it has acknowledged and was not told to drop.
    holds: BTreeMap<Bytes, Version>,
    /// What it has reported: it may have been sent that when nobody could hear its acknowledgement any more.
    reported: BTreeMap<Bytes, Version>,
    /// The highest version that it was told to drop.
    dropped: BTreeMap<Bytes, Version>,
    /// The highest version that it has acknowledged, or reported, of each key; and what it was told to drop of that and not sent
    /// again since.
    had: BTreeMap<Bytes, Version>,
    gave_up: BTreeMap<Bytes, Version>,
}

enum Connection {
    /// The dialer has not yet said who it is.
    New(BytesMut),
    /// Between a slave, which dialed, and a master.
    OfSlave(Box<Link>),
    /// Between two masters: what the dialer sends, and the other one.
    OfMasters(Box<[BytesMut; 2]>),
    /// Of no interest.
    Other,
}

#[derive(Default)]
struct Link {
    from_slave: BytesMut,
    from_master: BytesMut,
    /// Bytes that the master has sent, and that the slave has received.
    sent: u64,
    received: u64,
    /// Where writes that the slave has not received end in what the master has sent.
    write_ends: VecDeque<u64>,
    /// The same of acknowledgements, the other way.
    acks_sent: u64,
    acks_received: u64,
    ack_ends: VecDeque<u64>,
    /// The slave's process, and its name.
    slave: u32,
    host: String,
    /// Whether it was told that it is in quarantine, and has not taken a trial since.
    is_untried: bool,
    /// The reign that the slave has enlisted with.
    now: Reign,
    /// Those that were announced since. Both sides count anew for each.
    coming: VecDeque<Reign>,
    /// The reign for which it has enlisted without having a place in it yet.
    enlisting: Option<Epoch>,
}

/// What was said on a link in one reign.
#[derive(Default)]
struct Reign {
    epoch: Epoch,
    /// Where each counted message and each read ends in what the master has sent.
    counted_ends: Vec<u64>,
    read_ends: Vec<u64>,
    /// The counted messages; a ping is `None`.
    counted: Vec<Option<(Bytes, Version)>>,
    acked: usize,
    reads: BTreeMap<u64, (Bytes, Version)>,
    answers: usize,
    /// The counted messages and reads that may still be obeyed, once the slave has enlisted with a later reign.
    limits: Option<(usize, usize)>,
}

impl Link {
    /// The reign of what the master says now.
    fn latest(&mut self) -> &mut Reign {
        self.coming.back_mut().unwrap_or(&mut self.now)
    }
}

impl Witness {
    /// A witness of a cluster, from now on.
    pub(crate) fn listen(world: &World, cluster: &Cluster) -> Self {
        let is_log_first = cluster.shape().fsync == Fsync::Always;
        let log_machine = is_log_first.then(|| cluster.log_machine().clone());
        let witness = Witness(Rc::new(RefCell::new(State { log_machine, ..State::default() })));
        let listening = witness.clone();
        world.set_tap(Some(Box::new(move |_, passing| listening.0.borrow_mut().passing(passing))));
        witness
    }

    /// What was wrong first.
    pub(crate) fn verdict(&self) -> Result<(), Failure> {
        self.0.borrow().failure.clone().map_or(Ok(()), Err)
    }

    /// How many writes slaves had no room for.
    pub(crate) fn refused(&self) -> u64 {
        self.0.borrow().refused
    }

    /// What passes right now: to be asked in the moment in which something is sent or received.
    pub(crate) fn talk(&self) -> Talk {
        self.0.borrow().talk.unwrap_or(Talk::Other)
    }

    /// What was said of a handover in what passes right now, once.
    pub(crate) fn take_handover(&self) -> Option<Handover> {
        self.0.borrow_mut().handover.take()
    }

    /// How many of these slaves' processes hold the latest value of a key that any of them was sent.
    pub(crate) fn copies(&self, key: &Bytes, pids: &[u32]) -> usize {
        let state = self.0.borrow();
        let versions = state.values.keys().filter(|(_, of)| of == key).map(|(version, _)| *version);
        let Some(latest) = versions.max() else { return 0 };
        let holds = |slave: &Slave| {
            let is_dropped = slave.dropped.get(key).is_some_and(|dropped| *dropped >= latest);
            !is_dropped && [&slave.holds, &slave.reported].iter().any(|held| held.get(key) == Some(&latest))
        };
        pids.iter().filter_map(|pid| state.slaves.get(pid)).filter(|slave| holds(slave)).count()
    }

    /// The process of a slave that has reported last.
    pub(crate) fn member(&self, id: &SlaveId) -> Option<u32> {
        self.0.borrow().members.get(id.as_str()).copied()
    }

    /// What an active slave has and would be missed: a key of which those that stay, as `master` counts them, have acknowledged
    /// fewer copies than it is to have.
    pub(crate) fn needs(&self, master: &Master, id: &SlaveId) -> Option<String> {
        let (_, slot, ..) = master.slaves().find(|(of, ..)| *of == id)?;
        let staying: Vec<&SlaveId> =
            master.slaves().map(|(of, ..)| of).filter(|of| master.removal(of).is_none()).collect();
        let wanted = master.copies_wanted();
        let state = self.0.borrow();
        for (key, entry) in master.directory().iter().filter(|(_, entry)| entry.holders.contains(slot)) {
            let key = Bytes::copy_from_slice(key);
            let has = |of: &&&SlaveId| {
                let slave = state.members.get(of.as_str()).and_then(|pid| state.slaves.get(pid));
                slave.is_some_and(|slave| {
                    slave.had.get(&key) == Some(&entry.version)
                        && slave.gave_up.get(&key).is_none_or(|gave_up| *gave_up < entry.version)
                })
            };
            let copies = staying.iter().filter(has).count();
            if copies < wanted {
                let version = entry.version;
                return Some(format!(
                    "{id} is let go and holds {key:?} at {version}, of which {staying:?} have acknowledged {copies} copies \
                     of {wanted}"
                ));
            }
        }
        None
    }

    /// Somebody else has found something wrong.
    pub(crate) fn hear(&self, check: Check, what: String) {
        self.0.borrow_mut().fail(check, || what);
    }

    /// From now on slaves may lack room.
    pub(crate) fn room_is_scarce(&self) {
        self.0.borrow_mut().is_room_scarce = true;
    }

    /// A client was told that its write is done.
    pub(crate) fn done(&self, key: &Bytes, value: &Bytes) {
        let mut state = self.0.borrow_mut();
        if !state.is_room_scarce && !state.acknowledged.contains(&(key.clone(), value.clone())) {
            state.fail(Check::DoneIsAcknowledged, || {
                format!("the write of {key:?} is done, and no slave has acknowledged it")
            });
        }
    }
}

/// Whether a line of a compacted log says that this record was left out before it: it was superseded.
fn is_left_out(line: &[u8], seq: Seq) -> bool {
    const AFTER: &[u8] = b" After=";
    line.windows(AFTER.len()).any(|part| part == AFTER)
        && parse_line(line)
            .is_ok_and(|record| record.after.is_some_and(|after| after < seq && seq <= record.seq))
}

impl State {
    fn fail(&mut self, check: Check, what: impl FnOnce() -> String) {
        if self.failure.is_none() {
            self.failure = Some(Failure { check, what: what() });
        }
    }

    fn passing(&mut self, passing: &Passing<'_>) {
        self.talk = None;
        let id = passing.connection;
        let connection = self.connections.remove(&id).unwrap_or_else(|| Connection::New(BytesMut::default()));
        let connection = match connection {
            Connection::New(mut start) if passing.is_dialer && passing.is_sent => {
                start.extend_from_slice(passing.bytes);
                Self::introduced(start, passing)
            }
            Connection::OfSlave(mut link) => {
                self.on_link(&mut link, passing);
                Connection::OfSlave(link)
            }
            Connection::OfMasters(mut ways) => {
                if passing.is_sent {
                    let way = &mut ways[usize::from(!passing.is_dialer)];
                    way.extend_from_slice(passing.bytes);
                    while let Ok(Some(message)) = frame::decode(way, BODY_BYTES_MAX) {
                        match message {
                            Message::Control(Control::HandoverRequest { .. }) => {
                                self.handover = Some(Handover::Asked);
                            }
                            Message::Control(Control::HandoverRefused { .. }) => {
                                self.handover = Some(Handover::Refused);
                            }
                            _ => {}
                        }
                    }
                }
                Connection::OfMasters(ways)
            }
            other @ (Connection::New(_) | Connection::Other) => other,
        };
        self.connections.insert(id, connection);
    }

    /// Finds out from the first bytes who has dialed.
    fn introduced(mut start: BytesMut, passing: &Passing<'_>) -> Connection {
        let length = start.len().min(PREFACE.len());
        if start[..length] != PREFACE[..length] {
            return Connection::Other;
        }
        let mut frames = BytesMut::from(&start[length..]);
        match frame::decode(&mut frames, BODY_BYTES_MAX) {
            Ok(Some(Message::Control(Control::Hello(hello)))) => match hello.role {
                HelloRole::Slave { .. } => {
                    let (slave, host) = (passing.process.pid(), passing.process.host().to_owned());
                    Connection::OfSlave(Box::new(Link { from_slave: frames, slave, host, ..Link::default() }))
                }
                HelloRole::Master { .. } => Connection::OfMasters(Box::new([frames, BytesMut::new()])),
                HelloRole::Client | HelloRole::Member { .. } => Connection::Other,
            },
            Ok(Some(_)) | Err(_) => Connection::Other,
            Ok(None) => Connection::New(start.split()),
        }
    }

    fn on_link(&mut self, link: &mut Link, passing: &Passing<'_>) {
        match (passing.is_dialer, passing.is_sent) {
            (true, false) => {
                link.received += passing.bytes.len() as u64;
                self.arrived(&mut link.write_ends, link.received, Talk::Write);
            }
            (false, false) => {
                link.acks_received += passing.bytes.len() as u64;
                self.arrived(&mut link.ack_ends, link.acks_received, Talk::Ack);
            }
            (true, true) => {
                link.from_slave.extend_from_slice(passing.bytes);
                link.acks_sent += passing.bytes.len() as u64;
                while let Ok(Some(message)) = frame::decode(&mut link.from_slave, BODY_BYTES_MAX) {
                    self.slave_says(link, message);
                }
            }
            (false, true) => {
                link.from_master.extend_from_slice(passing.bytes);
                link.sent += passing.bytes.len() as u64;
                while let Ok(Some(message)) = frame::decode(&mut link.from_master, BODY_BYTES_MAX) {
                    let end = link.sent - link.from_master.len() as u64;
                    self.master_says(link, passing.process.pid(), end, message);
                }
            }
        }
    }

    /// Something has come to an end of a link: what it was, if the whole of it is there.
    fn arrived(&mut self, ends: &mut VecDeque<u64>, received: u64, talk: Talk) {
        while ends.front().is_some_and(|end| *end <= received) {
            ends.pop_front();
            self.talk = Some(talk);
        }
    }

    fn master_says(&mut self, link: &mut Link, master: u32, end: u64, message: Message) {
        match message {
            Message::Control(Control::Announce { reign: Name { epoch, .. }, .. }) => {
                let first = *self.reigns.entry(epoch).or_insert(master);
                if first != master {
                    self.fail(Check::OneReign, || {
                        format!("epoch {epoch} is announced by process {master} after {first}")
                    });
                }
                if link.is_untried {
                    self.fail(Check::Tried, || {
                        format!("a slave in quarantine hears of the reign {epoch} and has taken no trial")
                    });
                }
                link.coming.push_back(Reign { epoch, ..Reign::default() });
            }
            Message::Control(Control::Quarantined { .. }) => link.is_untried = true,
            Message::Write { version, key, value, .. } => {
                self.check_durable(version);
                let known = self.values.entry((version, key.clone())).or_insert_with(|| value.clone());
                if *known != value {
                    self.fail(Check::OneValue, || format!("version {version} of {key:?} has two values"));
                }
                self.talk = Some(Talk::Write);
                let slave = self.slaves.entry(link.slave).or_default();
                if slave.gave_up.get(&key).is_some_and(|gave_up| *gave_up <= version) {
                    slave.gave_up.remove(&key);
                }
                link.write_ends.push_back(end);
                link.latest().counted_ends.push(end);
                link.latest().counted.push(Some((key, version)));
            }
            Message::Ping => {
                link.latest().counted_ends.push(end);
                link.latest().counted.push(None);
            }
            Message::Read { tag, version, key, .. } => {
                link.latest().read_ends.push(end);
                link.latest().reads.insert(tag, (key, version));
            }
            Message::Drop { version, key, .. } => {
                let slave = self.slaves.entry(link.slave).or_default();
                if slave.holds.get(&key).is_some_and(|held| *held <= version) {
                    slave.holds.remove(&key);
                }
                let gave_up = slave.gave_up.entry(key.clone()).or_default();
                *gave_up = version.max(*gave_up);
                let dropped = slave.dropped.entry(key).or_default();
                *dropped = version.max(*dropped);
            }
            Message::Request(_)
            | Message::Response { .. }
            | Message::Ack { .. }
            | Message::Value { .. }
            | Message::Missing { .. }
            | Message::Trial { .. }
            | Message::Member { .. }
            | Message::Control(_) => {}
        }
    }

    /// Log first: what a slave is told must survive a power cut.
    fn check_durable(&mut self, version: Version) {
        let Some(machine) = self.log_machine.clone() else { return };
        if self.durable.contains(&version) {
            return;
        }
        let trailer = format!(" ;{} {} ", version.seq, version.epoch);
        // What was synced just before the log was moved away is there all the same.
        let is_durable = [LOG, MOVED].into_iter().any(|path| {
            let found = machine.read_durable(Path::new(path), |log| {
                log.rsplit(|byte| *byte == b'\n').any(|line| {
                    line.windows(trailer.len()).any(|part| part == trailer.as_bytes())
                        || is_left_out(line, version.seq)
                })
            });
            found == Some(true)
        });
        if is_durable {
            self.durable.insert(version);
        } else {
            self.fail(Check::LogFirst, || {
                format!("version {version} is sent to a slave and is not on the log's disk")
            });
        }
    }

    #[expect(clippy::too_many_lines, reason = "one arm for each message, each short")]
    fn slave_says(&mut self, link: &mut Link, message: Message) {
        match message {
            Message::Control(Control::Enlisted { reign: Name { epoch, .. }, .. }) => {
                link.enlisting = Some(epoch);
            }
            // The first part of a report says that the slave has got its place.
            Message::Control(Control::Holdings { entries, .. }) => {
                let slave = self.slaves.entry(link.slave).or_default();
                for (key, stamp) in &entries {
                    let had = slave.had.entry(key.clone()).or_default();
                    *had = stamp.version.max(*had);
                }
                slave.reported.extend(entries.into_iter().map(|(key, stamp)| (key, stamp.version)));
                let Some(epoch) = link.enlisting.take() else { return };
                self.members.insert(link.host.clone(), link.slave);
                while let Some(reign) = link.coming.pop_front() {
                    link.now = reign;
                    if link.now.epoch == epoch {
                        break;
                    }
                }
                self.enlisted(link.slave, epoch);
            }
            Message::Control(Control::Took { .. }) => link.is_untried = false,
            Message::Control(Control::Full { .. }) => self.refused += 1,
            Message::Ack { through, .. } => {
                let reign = &mut link.now;
                let through = through as usize;
                if through > reign.counted.len() || reign.limits.is_some_and(|(counted, _)| through > counted)
                {
                    let epoch = reign.epoch;
                    self.fail(Check::SlaveObeys, || format!("a slave obeys the reign {epoch} that is over"));
                }
                let through = through.min(reign.counted.len());
                let slave = self.slaves.entry(link.slave).or_default();
                let mut has_write = false;
                for (key, version) in reign.counted[reign.acked.min(through)..through].iter().flatten() {
                    self.talk = Some(Talk::Ack);
                    has_write = true;
                    if let Some(value) = self.values.get(&(*version, key.clone())) {
                        self.acknowledged.insert((key.clone(), value.clone()));
                    }
                    let had = slave.had.entry(key.clone()).or_default();
                    *had = (*version).max(*had);
                    if slave.dropped.get(key).is_none_or(|dropped| dropped < version) {
                        let held = slave.holds.entry(key.clone()).or_default();
                        *held = (*version).max(*held);
                    }
                }
                reign.acked = through;
                if has_write {
                    link.ack_ends.push_back(link.acks_sent - link.from_slave.len() as u64);
                }
            }
            Message::Value { tag, version, value, .. } => {
                let Some((key, wanted)) = self.answered(link, tag) else { return };
                if version < wanted {
                    self.fail(Check::SlaveAnswers, || {
                        format!("a slave answers version {version} of {key:?}, and {wanted} was asked for")
                    });
                }
                if self.values.get(&(version, key.clone())).is_some_and(|known| *known != value) {
                    self.fail(Check::OneValue, || {
                        format!("a slave answers another value for version {version} of {key:?}")
                    });
                }
            }
            Message::Missing { tag, held } => {
                let Some((key, wanted)) = self.answered(link, tag) else { return };
                let slave = self.slaves.entry(link.slave).or_default();
                if let Some(acked) = slave.holds.get(&key).copied().filter(|acked| *acked >= wanted) {
                    self.fail(Check::SlaveKeeps, || {
                        format!("a slave has {held:?} of {key:?}: it had acknowledged {acked}")
                    });
                }
            }
            Message::Request(_)
            | Message::Response { .. }
            | Message::Write { .. }
            | Message::Ping
            | Message::Trial { .. }
            | Message::Member { .. }
            | Message::Read { .. }
            | Message::Drop { .. }
            | Message::Control(_) => {}
        }
    }

    /// A read was answered; what it was for.
    fn answered(&mut self, link: &mut Link, tag: u64) -> Option<(Bytes, Version)> {
        let reign = &mut link.now;
        reign.answers += 1;
        if reign.limits.is_some_and(|(_, reads)| reign.answers > reads) {
            let epoch = reign.epoch;
            self.fail(Check::SlaveObeys, || format!("a slave answers the reign {epoch} that is over"));
        }
        reign.reads.remove(&tag)
    }

    /// From here on the slave obeys only what has reached it already, on links of earlier reigns.
    fn enlisted(&mut self, pid: u32, epoch: Epoch) {
        let slave = self.slaves.entry(pid).or_default();
        if epoch < slave.epoch {
            let highest = slave.epoch;
            self.fail(Check::SlaveObeys, || format!("a slave enlists for {epoch} after {highest}"));
            return;
        }
        slave.epoch = epoch;
        for connection in self.connections.values_mut() {
            if let Connection::OfSlave(link) = connection {
                if link.slave == pid && link.now.epoch < epoch && link.now.limits.is_none() {
                    let arrived = |ends: &[u64]| ends.partition_point(|end| *end <= link.received);
                    link.now.limits = Some((arrived(&link.now.counted_ends), arrived(&link.now.read_ends)));
                }
            }
        }
    }
}
