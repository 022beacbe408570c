//! A log in memory that any number of masters share, with a leader by decree: the least that keeps the port's contract.
//!
//! Owns the lines, whose they are, and who queues. Everything is done a moment after it is asked, as on a disk, so that what
//! crosses it in the meantime crosses it here too. A leader that is asked to close the log for another master gives the
//! leadership to that one, so any number of masters may share it. Nobody is ousted: who ends or drops its part leads no more.
//! For tests alone.

use super::{no_members, rests_on_refused, NewRecord, Wording, Written, WrittenRecord};
use super::{Hindrance, Journal, LogEvent, LogId, LogRequest, ReadResult, Replay, ReplayPart, Sight, Unread};
use crate::node_error::NodeError;
use actix::prelude::*;
use bytes::Bytes;
use dsm_protocol::command::ErrorWord;
use dsm_protocol::ids::{ClusterId, Epoch, Millis, Reign, ReignId, Seq, UnixMillis, Version};
use dsm_protocol::machine::master::{Change, ReignRecord};
use dsm_protocol::machine::reign::LeaderSeen;
use dsm_protocol::record::{self, ClockMark, FileNumber, Place, Position, Trailer};
use dsm_protocol::stored_key::StoredKey;
use dsm_protocol::witness_file::WitnessText;
use smallvec::SmallVec;
use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::rc::Rc;
use std::time::Duration;

/// How often those who watch are told who leads.
const WATCH: Duration = Duration::from_millis(25);

/// Which log it is: there is one.
const ONLY: LogId = (1, 1);

/// The log that masters share. Clones are the same log.
#[derive(Clone, Default)]
pub struct MemoryLog(Rc<RefCell<LogInMemory>>);

/// One master's part in a [`MemoryLog`].
pub struct MemoryJournal {
    log: MemoryLog,
    member: usize,
}

#[derive(Default)]
struct LogInMemory {
    text: Vec<u8>,
    /// What each record does to the directory.
    records: Vec<Vec<Replay>>,
    end: Position,
    members: Vec<Participant>,
    /// Which of the masters leads, by its number; nobody if none does.
    leader: Option<usize>,
    /// How often a leader has said that it makes progress.
    beat: u64,
    queue: VecDeque<usize>,
    /// Whose log it was said to be last, and in which epoch.
    declared: Option<(ClusterId, Epoch)>,
    noted: WitnessText,
    is_full: bool,
}

struct Participant {
    address: String,
    events: Recipient<LogEvent>,
    stage: PartStage,
    /// Whether it wants to be told who leads.
    watches: bool,
    /// So many records are replayed or written here.
    replayed: usize,
    /// How many of its appends were refused in its reign.
    refusals: u64,
    /// What was asked for and is not done.
    asked: VecDeque<Unanswered>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum PartStage {
    Following,
    Idle,
    Open,
    Reigning,
    /// Closed as soon as all that was asked for is done.
    Closing,
    Deposed,
}

enum Unanswered {
    Change(NewRecord),
    Sync,
    Close,
    Abandon,
}

impl MemoryLog {
    /// A master joins, and begins to follow.
    pub fn join(&self, address: &str, events: Recipient<LogEvent>) -> MemoryJournal {
        let mut shared = self.0.borrow_mut();
        let (address, asked) = (address.to_owned(), VecDeque::new());
        let (stage, watches) = (PartStage::Following, false);
        shared.members.push(Participant { address, events, stage, watches, replayed: 0, refusals: 0, asked });
        let member = shared.members.len() - 1;
        shared.replay(member);
        MemoryJournal { log: self.clone(), member }
    }

    /// What those who share this log call it, and nobody else calls another one.
    pub(crate) fn identity(&self) -> String {
        format!("memory:{:p}", Rc::as_ptr(&self.0))
    }

    /// Whether there is room for no record more.
    pub fn set_full(&self, is_full: bool) {
        self.0.borrow_mut().is_full = is_full;
    }

    /// Takes the leadership from whoever has it.
    pub fn depose(&self) {
        let mut shared = self.0.borrow_mut();
        let Some(leader) = shared.leader.take() else { return };
        let member = &mut shared.members[leader];
        member.stage = PartStage::Deposed;
        member.events.do_send(LogEvent::Deposed(NodeError::Deposed));
        shared.elect();
    }

    /// Tells a member who leads, again and again, until it leads itself or wants it no more.
    fn watch(&self, member: usize) {
        if std::mem::replace(&mut self.0.borrow_mut().members[member].watches, true) {
            return;
        }
        let log = self.clone();
        actix::spawn(async move {
            while log.0.borrow().members[member].watches {
                log.0.borrow().tell_who_leads(member);
                tokio::time::sleep(WATCH).await;
            }
        });
    }

    fn soon(&self, member: usize) {
        let log = self.clone();
        actix::spawn(async move {
            tokio::task::yield_now().await;
            log.0.borrow_mut().work(member);
        });
    }
}

impl LogInMemory {
    fn tell(&self, member: usize, event: LogEvent) {
        self.members[member].events.do_send(event);
    }

    fn tell_who_leads(&self, member: usize) {
        let leads = self.leader.map(|_| LeaderSeen::Leads { beat: Some(self.beat) });
        self.tell(member, LogEvent::Looked(leads.unwrap_or(LeaderSeen::Nobody)));
    }

    /// Gives the leadership to the one who has waited longest, if nobody has it.
    fn elect(&mut self) {
        if self.leader.is_some() {
            return;
        }
        if let Some(next) = self.queue.pop_front() {
            self.leader = Some(next);
            self.members[next].watches = false;
            let declared = self.declared;
            let cluster = declared.map(|(cluster, _)| cluster);
            self.tell(next, LogEvent::Won { cluster, epoch: declared.map(|(_, epoch)| epoch) });
        }
    }

    /// Tells a member of what it has not replayed.
    fn replay(&mut self, index: usize) {
        let member = &mut self.members[index];
        let records = &self.records[member.replayed..];
        let from_start = member.replayed == 0 && !records.is_empty();
        member.replayed = self.records.len();
        let changes = records.iter().flatten().cloned().collect();
        let (end, log) = (self.end, Some(ONLY));
        let part = ReplayPart { from_start, changes, more: 0, end, durable: end, log, caught_up: true };
        self.tell(index, LogEvent::Replayed(part));
    }

    /// Tells those who follow of what this member has written.
    fn replay_to_followers(&mut self, writer: usize) {
        self.members[writer].replayed = self.records.len();
        let following = |member: &Participant| member.stage == PartStage::Following;
        let behind: Vec<usize> =
            (0..self.members.len()).filter(|other| following(&self.members[*other])).collect();
        behind.into_iter().for_each(|other| self.replay(other));
    }

    /// Does what a member has asked for.
    fn work(&mut self, index: usize) {
        let (mut writes, mut refused) = (Vec::new(), Vec::new());
        let asked = std::mem::take(&mut self.members[index].asked);
        let (stage, refusals) = (self.members[index].stage, self.members[index].refusals);
        let mut is_left = stage == PartStage::Closing;
        let mut rest = Vec::new();
        for asked in asked {
            match asked {
                Unanswered::Change(record) if stage == PartStage::Deposed || self.is_full => {
                    refused.push(record.write);
                }
                // What stands after what was refused is refused with it, so that the answers keep their order.
                Unanswered::Change(record) if !refused.is_empty() || record.is_stale(refusals) => {
                    refused.push(record.write);
                }
                Unanswered::Change(record) => {
                    is_left = true;
                    writes.push(self.append(&record));
                }
                other => rest.push(other),
            }
        }
        if !writes.is_empty() || !refused.is_empty() {
            let refusal = match stage {
                PartStage::Deposed => (ErrorWord::Unknown, "this master leads no more".to_owned()),
                _ if self.is_full => (ErrorWord::ReadOnly, "the log is full".to_owned()),
                _ => rests_on_refused(),
            };
            self.members[index].refusals += refused.len() as u64;
            let refusal = (!refused.is_empty()).then_some(refusal);
            let bytes = self.end.offset;
            self.tell(index, LogEvent::Written(Written { writes, refused, refusal, bytes }));
        }
        if is_left {
            self.replay_to_followers(index);
        }
        for asked in rest {
            match asked {
                Unanswered::Sync => self.tell(index, LogEvent::Synced),
                Unanswered::Close if stage == PartStage::Closing => {
                    self.members[index].stage = PartStage::Idle;
                    self.tell(index, LogEvent::Closed { log: ONLY, end: self.end });
                }
                Unanswered::Abandon if stage == PartStage::Deposed => self.tell(index, LogEvent::Abandoned),
                // Taken back, or asked by one who still leads.
                Unanswered::Close | Unanswered::Abandon | Unanswered::Change(..) => {}
            }
        }
    }

    fn append(&mut self, record: &NewRecord) -> WrittenRecord {
        let NewRecord { write, change, expires, .. } = record;
        let (write, expires) = (*write, *expires);
        let version = Version { epoch: self.end.epoch, seq: self.end.seq.next() };
        let trailer = Trailer { expires, ..Trailer::new(version.seq, version.epoch, self.end.seq) };
        let mut places: SmallVec<[Place; 1]> = SmallVec::new();
        let offset = self.text.len() as u64;
        let replays = match &**change {
            Change::Put(pairs) => {
                let mut line = Vec::new();
                record::encode_write_at(
                    pairs,
                    trailer,
                    (FileNumber::default(), offset),
                    &mut line,
                    &mut places,
                );
                self.text.extend(line);
                let keys = pairs.iter().map(|(key, _)| key.as_ref());
                let put = |(key, place): (&[u8], &Place)| Replay::Put {
                    key: key.into(),
                    version,
                    place: *place,
                    expires,
                };
                keys.zip(&places).map(put).collect()
            }
            Change::Delete(keys) => {
                record::encode_delete(keys, version.seq, version.epoch, self.end.seq, &mut self.text);
                keys.iter().map(|key| Replay::Delete { key: StoredKey::from(key.as_ref()) }).collect()
            }
            Change::Apply(mixed) => {
                let pairs = (&mixed.pairs[..], &mixed.expires[..]);
                let at = (FileNumber::default(), offset);
                let mut line = Vec::new();
                record::encode_apply_at(pairs, &mixed.deleted, trailer, at, &mut line, &mut places);
                self.text.extend(line);
                let put = |((key, _), (place, expires)): (&(Bytes, Bytes), (&Place, &Option<UnixMillis>))| {
                    Replay::Put {
                        key: StoredKey::from(key.as_ref()),
                        version,
                        place: *place,
                        expires: *expires,
                    }
                };
                let puts = mixed.pairs.iter().zip(places.iter().zip(&mixed.expires)).map(put);
                let deleted =
                    mixed.deleted.iter().map(|key| Replay::Delete { key: StoredKey::from(key.as_ref()) });
                puts.chain(deleted).collect()
            }
        };
        self.record(version.seq, replays);
        WrittenRecord { write, version, places }
    }

    fn record(&mut self, seq: Seq, replays: Vec<Replay>) {
        let offset = self.text.len() as u64;
        self.end = Position { seq, offset, line: self.end.line + 1, ..self.end };
        self.records.push(replays);
    }

    fn begin(&mut self, index: usize, epoch: Epoch, given_up: Vec<Reign>, time: UnixMillis) {
        if self.members[index].stage != PartStage::Open {
            return;
        }
        let epoch = epoch.max(self.end.epoch.next());
        let reign = Reign { epoch, id: ReignId(epoch.0) };
        let cluster = self.end.cluster.unwrap_or(ClusterId(1));
        self.end = Position { cluster: Some(cluster), epoch, reign, ..self.end };
        let seq = self.end.seq.next();
        let begun = Replay::Reign(ReignRecord { reign, first: seq, durable: true });
        // Whoever takes it in does so at once, by the same clock.
        let mark = ClockMark { time, uptime: Millis(0), boot: String::new() };
        let given_up = given_up.into_iter().map(Replay::GivenUp);
        let replays = std::iter::once(begun).chain(given_up).chain([Replay::Time(mark)]).collect();
        self.record(seq, replays);
        self.members[index].stage = PartStage::Reigning;
        self.members[index].refusals = 0;
        self.noted = WitnessText::default();
        let (version, bytes) = (Version { epoch, seq }, self.end.offset);
        self.tell(index, LogEvent::Begun { cluster, version, id: reign.id, bytes });
        self.replay_to_followers(index);
    }

    fn read(&self, index: usize, place: Place, version: Version) -> ReadResult {
        if !matches!(self.members[index].stage, PartStage::Reigning | PartStage::Closing) {
            return Err(Unread::Closed);
        }
        let from = usize::try_from(place.offset).unwrap_or(usize::MAX);
        let text = self.text.get(from..from.saturating_add(place.text_bytes as usize));
        let text = text.ok_or_else(|| Unread::Failed(io::ErrorKind::UnexpectedEof.into()))?;
        record::value_at(text.to_vec(), place, version.epoch)
            .map_err(|error| Unread::Failed(io::Error::other(error)))
    }

    /// Gives the leadership up, if it is this member's.
    fn give_up(&mut self, index: usize) {
        if self.leader == Some(index) {
            self.leader = None;
            if self.members[index].stage != PartStage::Following {
                self.members[index].stage = PartStage::Idle;
            }
            self.elect();
        }
    }

    fn set_stage(&mut self, index: usize, from: PartStage, to: PartStage) -> bool {
        let stage = &mut self.members[index].stage;
        let was = *stage == from;
        if was {
            *stage = to;
        }
        was
    }

    fn close(&mut self, index: usize, to: Option<&String>) -> bool {
        let closes = self.set_stage(index, PartStage::Reigning, PartStage::Closing);
        if closes {
            let next = |member: &usize| Some(&self.members[*member].address) == to;
            if let Some(at) = self.queue.iter().position(next) {
                self.queue.swap(0, at);
            }
            self.members[index].asked.push_back(Unanswered::Close);
        }
        closes
    }

    fn open(&mut self, index: usize) {
        let stage = &mut self.members[index].stage;
        if self.leader == Some(index) && matches!(stage, PartStage::Idle | PartStage::Open) {
            *stage = PartStage::Open;
            self.replay(index);
            let (log, noted) = (Some((ONLY, self.end)), self.noted.clone());
            self.tell(index, LogEvent::Opened { log, noted });
        }
    }

    /// Does what is answered at once.
    fn answer(&mut self, index: usize, request: LogRequest) {
        match request {
            LogRequest::Oust { .. } => self.tell_who_leads(index),
            LogRequest::Queue => {
                self.queue.push_back(index);
                self.elect();
            }
            LogRequest::LeaveQueue => {
                self.members[index].watches = false;
                self.queue.retain(|queued| *queued != index);
            }
            LogRequest::GiveUp => self.give_up(index),
            LogRequest::WhoLeads => {
                let leader = self.leader.map(|leader| self.members[leader].address.clone());
                self.tell(index, LogEvent::Leader(leader));
            }
            LogRequest::Follow => {
                if self.set_stage(index, PartStage::Idle, PartStage::Following) {
                    self.replay(index);
                }
            }
            LogRequest::FollowAnew => {
                self.members[index].replayed = 0;
                self.replay(index);
            }
            LogRequest::Look => self.tell(index, LogEvent::Sighted(Sight::Follows)),
            LogRequest::Halt => {
                if self.set_stage(index, PartStage::Following, PartStage::Idle) {
                    self.tell(index, LogEvent::Halted);
                }
            }
            LogRequest::Open { makes: _ } => self.open(index),
            LogRequest::PutAside => {
                self.set_stage(index, PartStage::Open, PartStage::Idle);
            }
            LogRequest::Find => self.tell(index, LogEvent::Found(Some((ONLY, self.end.offset)))),
            LogRequest::Note(text) => self.noted = text,
            LogRequest::Begin { epoch, given_up, time } => self.begin(index, epoch, given_up, time),
            LogRequest::Declare { serves } => {
                let epoch = self.end.epoch;
                self.declared = self.end.cluster.filter(|_| serves).map(|cluster| (cluster, epoch));
            }
            LogRequest::Read { place, version, answer } => answer.give(self.read(index, place, version)),
            LogRequest::Reopen => {
                if self.set_stage(index, PartStage::Closing, PartStage::Reigning) {
                    self.tell(index, LogEvent::Reopened);
                }
            }
            // It is gone before it is long.
            LogRequest::Confirm { round } => {
                let leads = self.members[index].stage == PartStage::Reigning;
                self.tell(index, LogEvent::Confirmed { round, leads });
            }
            LogRequest::ChangeMembers { asker, .. } => {
                self.tell(index, LogEvent::MembersChanged { asker, result: Err(no_members()) });
            }
            LogRequest::Weigh { .. }
            | LogRequest::Watch
            | LogRequest::Append { .. }
            | LogRequest::Sync
            | LogRequest::Close { .. }
            | LogRequest::Abandon => {}
        }
    }
}

impl Journal for MemoryJournal {
    fn ask(&mut self, request: LogRequest) {
        if let LogRequest::Watch = request {
            self.log.watch(self.member);
            return;
        }
        let mut log = self.log.0.borrow_mut();
        let asked = &mut log.members[self.member].asked;
        match request {
            LogRequest::Append { changes } => {
                asked.extend(changes.into_iter().map(Unanswered::Change));
            }
            LogRequest::Sync => asked.push_back(Unanswered::Sync),
            LogRequest::Abandon => asked.push_back(Unanswered::Abandon),
            LogRequest::Close { to } => {
                if !log.close(self.member, to.as_ref()) {
                    return;
                }
            }
            other => {
                log.answer(self.member, other);
                return;
            }
        }
        self.log.soon(self.member);
    }

    fn advance(&self) {
        let mut log = self.log.0.borrow_mut();
        if log.leader == Some(self.member) {
            log.beat += 1;
        }
    }

    fn confirms(&self) -> bool {
        false
    }

    fn words(&self, wording: Wording<'_>) -> String {
        match wording {
            Wording::Place => "memory".to_owned(),
            Wording::HowToShare => "one in memory, which is shared by joining it".to_owned(),
            Wording::Won => "leading".to_owned(),
            Wording::AnotherLog => "another log is there".to_owned(),
            Wording::WaitsFor(Hindrance::Barred { sight, seq })
            | Wording::DoesNotServe(Hindrance::Barred { sight, seq }) => {
                format!("what was replayed through seq {seq} is not in memory: {sight}")
            }
            Wording::WaitsFor(Hindrance::Lacks(lack)) | Wording::DoesNotServe(Hindrance::Lacks(lack)) => {
                format!("the log in memory lacks {lack:?}")
            }
        }
    }
}

impl Drop for MemoryJournal {
    fn drop(&mut self) {
        let mut shared = self.log.0.borrow_mut();
        let index = self.member;
        shared.queue.retain(|queued| *queued != index);
        shared.members[index].watches = false;
        shared.members[index].stage = PartStage::Idle;
        shared.give_up(index);
    }
}
