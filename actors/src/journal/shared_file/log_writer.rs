//! `LogWriter`: appends records to the log, in groups with one sync each.
//!
//! Owns the log's end: the next seq, what is known to be durable, the space set aside. Everything that waits while a
//! group is at the disk becomes the next group, and its lines are made only then, so that each can say through which
//! seq the log was durable when its sync began. Never retries a failed sync: after one, nothing is known of what was
//! written, and the node must end. Looks, with each group and twice a second in any case, whether the file stands at its
//! path as it was left there: what is written into a file that no restart finds is not kept.

use crate::config::Fsync;
use crate::env::{Appended, Displaced, Env, File, FileIdentity, Group, Post};
use crate::journal::mending::{is_full, ROOM_EVERY};
use crate::journal::{rests_on_refused, LogEvent, NewRecord, Written, WrittenRecord};
use crate::node_error::LogStep;
use crate::supervision::PanicGuard;
use crate::turns::{Turn, TurnLengths};
use actix::prelude::*;
use dsm_protocol::command::ErrorWord;
use dsm_protocol::ids::{Epoch, Reign, Seq, Version};
use dsm_protocol::machine::grouping::Grouping;
use dsm_protocol::machine::master::{Change, WriteId};
use dsm_protocol::planted;
use dsm_protocol::record::{
    self, ClockMark, FileNumber, Operation, Place, Position, ReignMark, SyncMode, Trailer,
};
use smallvec::SmallVec;
use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::time::Instant;

/// Space that is kept free after the log's end, so that a takeover can write its EPOCH on a full disk.
const RESERVE_BYTES: u64 = 64 * 1024;

/// How much more is set aside at a time.
const RESERVE_STEP_BYTES: u64 = 4 * 1024 * 1024;

/// A group is closed when the keys and values in it reach this size, or with so many entries.
const GROUP_BYTES_MAX: usize = 8 * 1024 * 1024;
const GROUP_ENTRIES_MAX: usize = 16 * 1024;

/// Bytes of a line beside its keys and values, about.
const LINE_BYTES: usize = 64;

/// A byte of a key or value takes at most so many in a line.
const TEXT_BYTES_MAX: u64 = 3;

/// So long after [`Sync`] nothing is paced: the log is about to be handed over.
const UNPACED: Duration = Duration::from_secs(2);

/// The lines of a group of so many bytes are made on the disk's thread: below, the way there costs more.
const LONG_BYTES_MIN: usize = 64 * 1024;

/// How many bytes before the end of a log are told when it is closed.
const TAIL_BYTES: u64 = 64;

/// After so long without writes a SYNCED mark covers the last group.
const MARK_AFTER: Duration = Duration::from_millis(10);

/// After so long without a look at the log's path there is one.
const LOOK_AFTER: Duration = Duration::from_millis(500);

/// How often it is looked whether there is to be one.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// How often `--fsync everysec` syncs.
const SYNC_EVERY: Duration = Duration::from_secs(1);

/// Asks for records to be appended, in this order. Answered by `Written` for all of them, in the same order.
#[derive(Message, Debug)]
#[rtype(result = "()")]
pub struct Append {
    /// The writes and what they change.
    pub changes: Vec<NewRecord>,
}

/// Says that the reign's EPOCH record is durable.
#[derive(Message, Debug)]
#[rtype(result = "()")]
pub struct EpochWritten {
    /// The EPOCH record's version.
    pub version: Version,
    /// The end of the log after it.
    pub offset: u64,
}

/// Says that the log cannot be trusted any more. The writes that were in flight are unknown; the node must end.
#[derive(Message, Debug)]
#[rtype(result = "()")]
pub struct LogFailed {
    /// At which step it failed.
    pub step: LogStep,
    /// What the system said.
    pub cause: Arc<io::Error>,
}

/// Says that the log does not stand any more where it is to. Nothing is appended any more: what was not is refused, what
/// was at the disk then is unknown. The node must end once [`Abandoned`] has come.
#[derive(Message, Debug)]
#[rtype(result = "()")]
pub struct LogDisplaced {
    /// What is at the log's path now.
    pub found: Displaced,
}

/// Asks for a sync, for `--fsync everysec`.
#[derive(Message, Debug)]
#[rtype(result = "()")]
struct SyncOften;

/// Asks for a look at the log's path, if one is due.
#[derive(Message, Debug)]
#[rtype(result = "()")]
struct Look;

/// Asks to say when all appends that were asked for before are refused, once the log is displaced.
#[derive(Message, Debug)]
#[rtype(result = "()")]
pub struct Abandon;

/// Answers [`Abandon`].
#[derive(Message, Debug)]
#[rtype(result = "()")]
pub struct Abandoned;

/// Asks to bring to the disk what is written so far, while records are appended: what [`Close`] finds is little then.
/// Answered by [`Synced`], once for all that ask before the sync begins.
#[derive(Message, Debug)]
#[rtype(result = "()")]
pub struct Sync;

/// Answers [`Sync`].
#[derive(Message, Debug)]
#[rtype(result = "()")]
pub struct Synced;

/// Asks to bring everything to the disk and to let go of the file. Nothing may be appended after it, unless
/// [`Reopen`] takes it back.
#[derive(Message, Debug)]
#[rtype(result = "()")]
pub struct Close;

/// Takes [`Close`] back. Answered by [`Reopened`], unless [`Closed`] was said first.
#[derive(Message, Debug)]
#[rtype(result = "()")]
pub struct Reopen;

/// Answers [`Reopen`]: the log is still this writer's, and records may be appended.
#[derive(Message, Debug)]
#[rtype(result = "()")]
pub struct Reopened;

/// Answers [`Close`]: the log is durable and marked as such.
#[derive(Message, Debug)]
#[rtype(result = "()")]
pub struct Closed {
    /// The end of the log.
    pub position: Position,
    /// The bytes before it, by which the file is known again.
    pub tail: Vec<u8>,
}

/// Asks where the log ends: what is written, and told to be.
#[derive(Message, Debug)]
#[rtype(result = "()")]
pub struct WhereEnds {
    /// Gets the answer.
    pub answer: oneshot::Sender<LogEnd>,
}

/// Asks to write nothing more until [`GoOn`], and to say where the log ends then. There is no answer from a writer that closes
/// the log, or cannot write it any more.
#[derive(Message, Debug)]
#[rtype(result = "()")]
pub struct Hold {
    /// Gets the answer.
    pub answer: oneshot::Sender<LogEnd>,
}

/// After [`Hold`]: go on, in the file that is handed over, or in the same one.
#[derive(Message, Debug)]
#[rtype(result = "()")]
pub struct GoOn {
    /// How many bytes of a mark were appended to the same file meanwhile.
    pub grown: u64,
}

/// Asks to write nothing beyond this place of the file until this is said again: what copies the log has fallen behind.
#[derive(Message, Debug)]
#[rtype(result = "()")]
pub struct MayGrow {
    /// How long the log may be, in bytes; an entry that begins before that is written whole. `None`: as long as it likes.
    pub to: Option<u64>,
}

/// Where a log ends.
#[derive(Clone, Copy, Debug)]
pub struct LogEnd {
    /// The end in the file, in bytes.
    pub offset: u64,
    /// The seq of the last record.
    pub seq: Seq,
    /// The epoch that is written.
    pub epoch: Epoch,
    /// The seq through which it is on disk.
    pub synced: Seq,
}

/// The file in which the log goes on.
pub struct NextLog {
    /// It, locked.
    pub file: Rc<dyn File>,
    /// A second handle, for syncs beside writes.
    pub sync_file: Rc<dyn File>,
    /// Which file it is.
    pub identity: FileIdentity,
    /// Its number in the places of values.
    pub number: FileNumber,
    /// Its end: all before is on disk, and the last line says so.
    pub offset: u64,
    /// Lines before that.
    pub lines: u64,
}

/// What a writer that is held and whoever holds it give each other.
#[derive(Default)]
pub struct Handoff {
    /// The file that is written, with its lock: the lock is not free before this is dropped.
    pub locked: Option<Rc<dyn File>>,
    /// The file in which to go on.
    pub next: Option<NextLog>,
    /// Whether the disk was full since this was last set to false: then room that is set aside elsewhere is wanted here.
    pub is_full: bool,
}

/// Whom a [`LogWriter`] tells what.
#[derive(Clone)]
pub struct Ports {
    /// Hears of written records.
    pub written: Recipient<LogEvent>,
    /// Hears of the EPOCH record.
    pub epoch: Recipient<EpochWritten>,
    /// Hears that the log failed.
    pub failed: Recipient<LogFailed>,
    /// Hears that the log is not at its path.
    pub displaced: Recipient<LogDisplaced>,
    /// Hears that what it asks for is refused by now.
    pub abandoned: Recipient<Abandoned>,
    /// Hears that what was written is durable.
    pub synced: Recipient<Synced>,
    /// Hears that the log is closed.
    pub closed: Recipient<Closed>,
    /// Hears that it is not.
    pub reopened: Recipient<Reopened>,
}

/// Where and how a [`LogWriter`] goes on.
pub struct Start {
    /// The world's clocks.
    pub env: Env,
    /// The log's file, which this master has locked.
    pub file: Rc<dyn File>,
    /// A second handle of the same file, for syncs beside writes.
    pub sync_file: Rc<dyn File>,
    /// Which file must stand at which path.
    pub post: Post,
    /// The number of that file in the places of values.
    pub number: FileNumber,
    /// By which another file is handed over.
    pub handoff: Rc<RefCell<Handoff>>,
    /// Its end. All of it is durable.
    pub position: Position,
    /// The reign that begins with the next record.
    pub reign: Reign,
    /// Reigns whose loss is accepted with it.
    pub given_up: Vec<Reign>,
    /// What time it is.
    pub clock: ClockMark,
    /// What stands in front of the EPOCH record: CLUSTER in a new log.
    pub head: Option<Operation>,
    /// The EPOCH record's text.
    pub address: String,
    /// When a record counts as written.
    pub fsync: Fsync,
}

/// The actor. See the module.
pub struct LogWriter {
    start: Start,
    ports: Ports,
    queue: VecDeque<Queued>,
    /// How many appends were refused.
    refusals: u64,
    buffer: Vec<u8>,
    busy: bool,
    /// When what waits becomes a group.
    grouping: Grouping,
    /// What ends a pause in which more may arrive.
    pause: Option<SpawnHandle>,
    /// Whether a sync beside the writes is under way.
    syncing: bool,
    /// Whether another one was asked for since it began.
    sync_asked: bool,
    failed: bool,
    /// What is at the log's path instead of it.
    displaced: Option<Displaced>,
    /// When it was last seen at its path.
    looked_at: Instant,
    /// Whether it was said that the path cannot be checked.
    is_unseen: bool,
    closing: bool,
    holding: Holding,
    /// How long the log may be for now, in bytes.
    ceiling: Option<u64>,
    /// Until then there is no such bound: the log is about to be handed over.
    unpaced_until: Instant,
    /// Whether an EPOCH record found no room: it is tried again, nobody else could write it either.
    waits_for_room: bool,
    /// Whether it was said that the disk is full.
    is_full: bool,
    offset: u64,
    /// Lines in front of the end.
    lines: u64,
    reserved_to: u64,
    seq: Seq,
    synced: Seq,
    /// Whether the last line is a SYNCED mark.
    marked: bool,
    mark_timer: Option<SpawnHandle>,
    guard: PanicGuard,
    /// Where its turns are counted.
    turns: Option<Rc<TurnLengths>>,
}

#[derive(Debug)]
enum Queued {
    Change(NewRecord),
    /// Begins the reign, as the only entry of its group.
    Epoch,
}

/// Whether somebody wants nothing to be written.
enum Holding {
    No,
    /// As soon as the disk has done what it is at.
    Asked(oneshot::Sender<LogEnd>),
    Held,
}

/// One entry of a group.
struct Encoded {
    queued: Queued,
    /// How long its lines are, in bytes.
    length: u32,
    /// Where its values stand.
    places: SmallVec<[Place; 1]>,
}

/// What closes a log: how long its last mark is, if one was written for that, and the last bytes of the file.
type LastBytes = (Option<u64>, Vec<u8>);

/// What a group at the disk consists of.
struct InFlight {
    /// When it was closed, in microseconds.
    closed_us: u64,
    entries: Vec<Encoded>,
    first_seq: Seq,
    epoch: Epoch,
    offset: u64,
    durable: bool,
}

impl LogWriter {
    /// A writer that begins its reign with an EPOCH record.
    pub fn new(start: Start, ports: Ports, guard: PanicGuard) -> Self {
        let (offset, seq, lines) = (start.position.offset, start.position.seq, start.position.line);
        LogWriter {
            start,
            ports,
            queue: VecDeque::from([Queued::Epoch]),
            refusals: 0,
            buffer: Vec::new(),
            busy: false,
            grouping: Grouping::default(),
            pause: None,
            syncing: false,
            sync_asked: false,
            failed: false,
            displaced: None,
            looked_at: Instant::now(),
            is_unseen: false,
            closing: false,
            holding: Holding::No,
            ceiling: None,
            unpaced_until: Instant::now(),
            waits_for_room: false,
            is_full: false,
            offset,
            lines,
            reserved_to: 0,
            seq,
            synced: seq,
            marked: false,
            mark_timer: None,
            guard,
            turns: None,
        }
    }

    /// Counts its turns among those of its node.
    pub(crate) fn counting(self, turns: Rc<TurnLengths>) -> Self {
        LogWriter { turns: Some(turns), ..self }
    }

    fn begin_turn(&self) -> Option<Turn> {
        self.turns.as_ref().map(|turns| turns.begin("log writer"))
    }

    /// Counts how long a sync took, in microseconds, if there was one.
    fn note_sync(&self, us: Option<u64>) {
        if let Some((turns, us)) = self.turns.as_ref().zip(us) {
            turns.timings().syncs.note(us);
        }
    }

    /// Sends what waits to the disk, unless a group is there already.
    fn next_group(&mut self, ctx: &mut Context<Self>) {
        if self.busy || self.failed || self.is_held() {
            return;
        }
        if std::mem::take(&mut self.waits_for_room) {
            self.busy = true;
            ctx.run_later(ROOM_EVERY, |writer, ctx| {
                writer.busy = false;
                writer.next_group(ctx);
            });
            return;
        }
        self.refuse_stale();
        if self.queue.is_empty() {
            if self.closing {
                self.close(ctx);
            } else if !self.marked && self.mark_timer.is_none() {
                self.mark_timer = Some(ctx.run_later(MARK_AFTER, |writer, ctx| {
                    writer.mark_timer = None;
                    writer.mark(ctx);
                }));
            }
            return;
        }
        if let Some(timer) = self.mark_timer.take() {
            ctx.cancel_future(timer);
        }
        if self.is_at_ceiling() || self.waits_for_more(ctx) {
            return;
        }
        let mut queued = Vec::new();
        let mut payload_bytes = 0;
        let bytes_max = self.group_bytes_max();
        while let Some(next) = self.queue.pop_front() {
            let is_epoch = matches!(next, Queued::Epoch);
            let bytes = next.payload_bytes();
            if payload_bytes > 0 && payload_bytes + bytes > bytes_max {
                self.queue.push_front(next);
                break;
            }
            payload_bytes += bytes;
            queued.push(next);
            // One group has one epoch, and an EPOCH record is one by itself.
            let is_last =
                is_epoch || matches!(self.queue.front(), Some(Queued::Epoch)) || self.is_next_stale();
            if is_last || payload_bytes >= bytes_max || queued.len() >= GROUP_ENTRIES_MAX {
                break;
            }
        }
        let has_epoch = matches!(queued.first(), Some(Queued::Epoch));
        let draft = Draft {
            queued,
            bytes: std::mem::take(&mut self.buffer),
            last: self.seq,
            synced: self.synced,
            synced_too_high: planted!(SyncedTooHigh),
            offset: self.offset,
            number: self.start.number,
            reign: self.start.reign,
            given_up: if has_epoch { self.start.given_up.clone() } else { Vec::new() },
            clock: has_epoch.then(|| self.start.clock.to_string()),
            fsync: self.start.fsync.into(),
            address: self.start.address.clone(),
            head: self.start.head.clone(),
        };
        self.busy = true;
        self.write(draft, payload_bytes >= LONG_BYTES_MIN, has_epoch, ctx);
    }

    /// Whether the first of what waits rests on what was refused.
    fn is_next_stale(&self) -> bool {
        matches!(self.queue.front(), Some(Queued::Change(record)) if record.is_stale(self.refusals))
    }

    /// Refuses the first of what waits that rest on what was refused. Everything before them is answered.
    fn refuse_stale(&mut self) {
        let mut refused = Vec::new();
        while self.is_next_stale() {
            if let Some(Queued::Change(record)) = self.queue.pop_front() {
                self.refusals += 1;
                refused.push(record.write);
            }
        }
        if !refused.is_empty() {
            let refusal = Some(rests_on_refused());
            let written = Written { writes: Vec::new(), refused, refusal, bytes: self.offset };
            self.ports.written.do_send(LogEvent::Written(written));
        }
    }

    /// Whether what waits must wait for a copy of the log. A reign that begins or ends does not.
    fn is_at_ceiling(&self) -> bool {
        let must_go = self.closing || matches!(self.queue.front(), Some(Queued::Epoch));
        !must_go && self.ceiling.is_some_and(|to| self.offset >= to)
    }

    /// How much one group may have, in bytes of keys and values: no more than the log may grow by, each byte counted as the most
    /// that it takes as text. One entry may have more.
    fn group_bytes_max(&self) -> usize {
        let room = self.ceiling.map(|to| to.saturating_sub(self.offset) / TEXT_BYTES_MAX);
        room.and_then(|room| usize::try_from(room).ok())
            .map_or(GROUP_BYTES_MAX, |room| room.min(GROUP_BYTES_MAX))
    }

    fn end(&self) -> LogEnd {
        LogEnd { offset: self.offset, seq: self.seq, epoch: self.start.reign.epoch, synced: self.synced }
    }

    /// Whether nothing may be written for now. Lets whoever has asked for that know.
    fn is_held(&mut self) -> bool {
        match std::mem::replace(&mut self.holding, Holding::No) {
            Holding::No => false,
            Holding::Held => {
                self.holding = Holding::Held;
                true
            }
            Holding::Asked(answer) => {
                if self.closing {
                    return false;
                }
                self.start.handoff.borrow_mut().locked = Some(Rc::clone(&self.start.file));
                let is_held = answer.send(self.end()).is_ok();
                if is_held {
                    self.holding = Holding::Held;
                } else {
                    self.start.handoff.borrow_mut().locked = None;
                }
                is_held
            }
        }
    }

    /// Whoever has asked for a hold waits for nothing.
    fn refuse_hold(&mut self) {
        if let Holding::Asked(_) = self.holding {
            self.holding = Holding::No;
        }
    }

    /// Goes on in the file that was handed over, if one was.
    fn go_on(&mut self, grown: u64, ctx: &mut Context<Self>) {
        if !matches!(self.holding, Holding::Held) {
            return;
        }
        self.holding = Holding::No;
        let Handoff { locked, next, .. } = std::mem::take(&mut *self.start.handoff.borrow_mut());
        drop(locked);
        match next {
            Some(NextLog { file, sync_file, identity, number, offset, lines }) => {
                self.start.file = file;
                self.start.sync_file = sync_file;
                self.start.post.identity = identity;
                self.start.number = number;
                (self.offset, self.lines, self.reserved_to) = (offset, lines, 0);
                (self.synced, self.marked, self.ceiling) = (self.seq, true, None);
                self.looked_at = Instant::now();
            }
            None => {
                self.offset += grown;
                self.lines += u64::from(grown > 0);
                // A cut may have freed what was set aside.
                self.reserved_to = 0;
            }
        }
        self.next_group(ctx);
    }

    /// Whether what waits is no group yet, as more is about to arrive. Sees to it that this is asked again.
    fn waits_for_more(&mut self, ctx: &mut Context<Self>) -> bool {
        let is_whole =
            self.queue.len() >= GROUP_ENTRIES_MAX || matches!(self.queue.front(), Some(Queued::Epoch));
        let must_go = self.closing || !self.is_durable() || is_whole;
        let env = &self.start.env;
        let pause_us = if must_go { 0 } else { self.grouping.pause_us(env.clock_us(), self.queue.len()) };
        if pause_us == 0 {
            if let Some(pause) = self.pause.take() {
                ctx.cancel_future(pause);
            }
            return false;
        }
        if self.pause.is_some() {
            return true;
        }
        let pause = env.pause(Duration::from_micros(pause_us));
        self.pause = Some(ctx.spawn(pause.into_actor(self).map(|(), writer, ctx| {
            writer.pause = None;
            writer.next_group(ctx);
        })));
        true
    }

    /// Notes how the group at the disk went, so that the next one is closed in time.
    fn note_group(&mut self, in_flight: &InFlight) {
        let now_us = self.start.env.clock_us();
        if self.grouping.is_look_due(now_us) {
            self.grouping.look(now_us, self.start.env.waited_us());
        }
        let took_us = now_us.saturating_sub(in_flight.closed_us);
        self.grouping.done(now_us, took_us, in_flight.entries.len(), self.queue.len());
    }

    /// Where the log is to stand.
    fn post(&self) -> Option<Post> {
        (!planted!(LogPathNotWatched)).then(|| self.start.post.clone())
    }

    fn is_durable(&self) -> bool {
        self.start.fsync == Fsync::Always
    }

    /// Makes the lines of a group and writes them. Those of a long one are made on the disk's thread: to encode and to
    /// checksum megabytes would hold up everybody.
    fn write(&self, draft: Draft, is_long: bool, has_epoch: bool, ctx: &mut Context<Self>) {
        let file = Rc::clone(&self.start.file);
        let (first_seq, epoch, offset) = (self.seq.next(), self.start.reign.epoch, self.offset);
        let durable = self.is_durable() || has_epoch;
        let is_broken = [planted!(GroupNotSynced), planted!(EpochNotSynced)];
        let sync = durable && !is_broken[usize::from(has_epoch)];
        let reserved = self.reserved_to;
        let post = self.post();
        let closed_us = self.start.env.clock_us();
        let writing = async move {
            let mut in_flight =
                InFlight { closed_us, entries: Vec::new(), first_seq, epoch, offset, durable };
            let made = if is_long {
                let (answer, answered) = oneshot::channel();
                let work = Box::new(move || drop(answer.send(draft.encode())));
                match file.compute(work).await {
                    Ok(()) => answered.await.map_err(io::Error::other),
                    Err(error) => Err(error),
                }
            } else {
                Ok(draft.encode())
            };
            let (bytes, entries) = match made {
                Ok(made) => made,
                Err(error) => {
                    let appended = Appended { sync_error: Some(error), ..Appended::nothing(Vec::new()) };
                    return (appended, None, in_flight);
                }
            };
            in_flight.entries = entries;
            let end = offset + bytes.len() as u64;
            let least = end + RESERVE_BYTES;
            let reserve_to = (least > reserved && !has_epoch).then_some(least + RESERVE_STEP_BYTES);
            let group = Group { offset, bytes, sync, reserve_to, post: post.clone() };
            let mut appended = file.append(group).await;
            let mut reserved_to = reserve_to;
            // The big step does not fit: the disk is nearly full. Take what this group needs, or nothing.
            if appended.written == 0 && reserve_to.is_some() && is_full(appended.write_error.as_ref()) {
                reserved_to = Some(least);
                let bytes = std::mem::take(&mut appended.bytes);
                let group = Group { offset, bytes, sync: durable, reserve_to: reserved_to, post };
                appended = file.append(group).await;
            }
            (appended, reserved_to, in_flight)
        };
        ctx.spawn(writing.into_actor(self).map(|(appended, reserved_to, in_flight), writer, ctx| {
            writer.group_done(appended, reserved_to, in_flight, ctx);
        }));
    }

    fn group_done(
        &mut self,
        appended: Appended,
        reserved_to: Option<u64>,
        in_flight: InFlight,
        ctx: &mut Context<Self>,
    ) {
        let _turn = self.begin_turn();
        self.busy = false;
        let Appended { bytes, written, write_error, sync_error, displaced, unseen, sync_us } = appended;
        self.note_sync(sync_us);
        if let Some(error) = sync_error {
            planted!(FailedSyncNotExecuted => {
                self.answer(in_flight, 0, Some((ErrorWord::ReadOnly, error.to_string())));
                self.next_group(ctx);
                return;
            });
            if !planted!(FailedSyncRetried) {
                self.fail(LogStep::Sync, error);
                return;
            }
        }
        if let Some(found) = displaced {
            let (unknown, refused) =
                if written == 0 { (Vec::new(), in_flight.entries) } else { (in_flight.entries, Vec::new()) };
            self.abandon(found, unknown, refused);
            return;
        }
        self.seen(unseen.as_ref());
        self.buffer = bytes;
        if self.buffer.capacity() > 2 * GROUP_BYTES_MAX {
            // To give a hundred megabytes back takes its time, too.
            let (long, file) = (std::mem::take(&mut self.buffer), Rc::clone(&self.start.file));
            actix::spawn(async move {
                let _ = file.compute(Box::new(move || drop(long))).await;
            });
        }
        match write_error {
            None => {
                self.reserved_to = self.reserved_to.max(reserved_to.unwrap_or(0));
                let whole = in_flight.entries.len();
                if std::mem::take(&mut self.is_full) {
                    log::info!("log is written again, the disk has room");
                }
                self.note_group(&in_flight);
                self.answer(in_flight, whole, None);
                self.next_group(ctx);
            }
            Some(error) if is_full(Some(&error)) => self.cut_short(written, &error, in_flight, ctx),
            Some(error) => self.fail(LogStep::Write, error),
        }
    }

    /// The disk is full: whole lines stand, the rest of the file is cut, and what was after is not executed.
    fn cut_short(&mut self, written: usize, error: &io::Error, in_flight: InFlight, ctx: &mut Context<Self>) {
        let mut whole = 0;
        let mut end = in_flight.offset;
        for Encoded { length, .. } in &in_flight.entries {
            if end + u64::from(*length) > in_flight.offset + written as u64 {
                break;
            }
            end += u64::from(*length);
            whole += 1;
        }
        self.start.handoff.borrow_mut().is_full = true;
        if !std::mem::replace(&mut self.is_full, true) {
            log::warn!("log not written cause=disk-full whole={whole} of={}", in_flight.entries.len());
        }
        let refusal = (ErrorWord::ReadOnly, format!("the log's disk is full: {error}"));
        planted!(ShortWriteWhole => {
            let whole = in_flight.entries.len();
            self.answer(in_flight, whole, None);
            self.next_group(ctx);
            return;
        });
        planted!(HalfLineStays => {
            let half = in_flight.offset + written as u64 - end;
            self.answer(in_flight, whole, Some(refusal));
            self.offset += half;
            self.next_group(ctx);
            return;
        });
        if written == 0 {
            self.answer(in_flight, 0, Some(refusal));
            self.next_group(ctx);
            return;
        }
        self.busy = true;
        let file = Rc::clone(&self.start.file);
        let cutting = async move {
            // The cut must be durable too: a torn line would outlive a crash of the machine.
            file.truncate(end).await?;
            file.sync().await
        };
        ctx.spawn(cutting.into_actor(self).map(move |cut, writer, ctx| {
            writer.busy = false;
            match cut {
                Ok(()) => {
                    writer.reserved_to = 0;
                    writer.answer(in_flight, whole, Some(refusal));
                    writer.next_group(ctx);
                }
                Err(error) => writer.fail(LogStep::Cut, error),
            }
        }));
    }

    /// Tells the outcome of a group of which the first `whole` entries stand.
    fn answer(&mut self, in_flight: InFlight, whole: usize, refusal: Option<(ErrorWord, String)>) {
        let InFlight { entries, first_seq, epoch, mut offset, durable, closed_us: _ } = in_flight;
        let mut writes = Vec::with_capacity(whole);
        let mut refused = Vec::new();
        let mut epochs = Vec::new();
        let mut seq = Seq(first_seq.0 - 1);
        let mut epoch_written = false;
        for (index, Encoded { queued, length, places }) in entries.into_iter().enumerate() {
            match queued {
                Queued::Change(NewRecord { write, .. }) if index < whole => {
                    seq = seq.next();
                    let version = Version { epoch, seq };
                    writes.push(WrittenRecord { write, version, places });
                }
                Queued::Change(record) => refused.push(record.write),
                Queued::Epoch if index < whole => {
                    seq = seq.next();
                    if let Some(head) = self.start.head.take() {
                        seq = seq.next();
                        self.lines += 1;
                        if let Operation::Cluster(id) = head {
                            self.start.position.cluster = Some(id);
                        }
                    }
                    epoch_written = true;
                }
                epoch @ Queued::Epoch => epochs.push(epoch),
            }
            if index < whole {
                offset += u64::from(length);
                self.lines += 1;
            }
        }
        if refusal.is_some() {
            // What waits stands after what was refused.
            for queued in std::mem::take(&mut self.queue) {
                match queued {
                    Queued::Change(record) => refused.push(record.write),
                    epoch @ Queued::Epoch => epochs.push(epoch),
                }
            }
            self.waits_for_room = !epochs.is_empty();
            self.queue = epochs.into();
        }
        self.refusals += refused.len() as u64;
        self.seq = seq;
        self.offset = offset;
        // A group of which nothing stands needs no mark: on a full disk marks would use up the reserve.
        if whole > 0 {
            self.marked = false;
        }
        if durable || (whole > 0 && refusal.is_some()) {
            self.synced = seq;
        }
        if epoch_written {
            let version = Version { epoch, seq: self.seq };
            self.ports.epoch.do_send(EpochWritten { version, offset: self.offset });
        }
        if !writes.is_empty() || !refused.is_empty() {
            let written = Written { writes, refused, refusal, bytes: offset };
            self.ports.written.do_send(LogEvent::Written(written));
        }
    }

    /// Covers the last group with a SYNCED mark, which itself need not be durable.
    fn mark(&mut self, ctx: &mut Context<Self>) {
        let is_held = matches!(self.holding, Holding::Held);
        let is_in_vain = self.marked || !self.queue.is_empty() || self.synced < self.seq;
        if self.busy || self.failed || is_held || is_in_vain {
            return;
        }
        let mut bytes = std::mem::take(&mut self.buffer);
        bytes.clear();
        record::encode(&Operation::Synced, self.seq, self.start.reign.epoch, self.synced, &mut bytes);
        self.busy = true;
        let file = Rc::clone(&self.start.file);
        let post = self.post();
        let group = Group { offset: self.offset, bytes, post, ..Group::default() };
        let offset = self.offset;
        let marking = async move {
            let appended = file.append(group).await;
            let whole = appended.written == appended.bytes.len();
            // Half a mark must not stay in front of what is appended next.
            let cut = if whole || appended.written == 0 { Ok(()) } else { file.truncate(offset).await };
            (appended, whole, cut)
        };
        ctx.spawn(marking.into_actor(self).map(|(appended, whole, cut), writer, ctx| {
            writer.busy = false;
            if let Some(found) = appended.displaced {
                writer.abandon(found, Vec::new(), Vec::new());
                return;
            }
            writer.seen(appended.unseen.as_ref());
            if let Some(error) = appended.write_error.filter(|error| !is_full(Some(error))) {
                writer.fail(LogStep::Write, error);
                return;
            }
            if let Err(error) = cut.and(appended.sync_error.map_or(Ok(()), Err)) {
                writer.fail(LogStep::Cut, error);
                return;
            }
            if whole {
                writer.offset += appended.bytes.len() as u64;
                writer.lines += 1;
            } else {
                // The cut may have freed what was set aside.
                writer.reserved_to = 0;
            }
            // On a full disk the mark is left out: the next group says the same.
            writer.marked = true;
            writer.buffer = appended.bytes;
            writer.next_group(ctx);
        }));
    }

    /// The last steps of a reign: everything durable, a mark that says so, and no handle left.
    fn close(&mut self, ctx: &mut Context<Self>) {
        self.busy = true;
        let file = Rc::clone(&self.start.file);
        let (offset, seq, epoch, marked) = (self.offset, self.seq, self.start.reign.epoch, self.marked);
        let post = self.post();
        let closing = async move {
            // The mark may only be written once what it covers is known to be on disk.
            file.sync().await?;
            let mut bytes = Vec::new();
            if !marked {
                record::encode(&Operation::Synced, seq, epoch, seq, &mut bytes);
            }
            let length = bytes.len();
            // Whoever gets the reign opens the file that is at the path: it must be this one, to the last moment.
            let group = Group { offset, bytes, sync: true, post, ..Group::default() };
            let appended = file.append(group).await;
            if let Some(error) = appended.sync_error {
                return Err(error);
            }
            if let Some(found) = appended.displaced {
                return Ok(Err(found));
            }
            let whole = appended.written == length;
            if !whole {
                file.truncate(offset).await?;
            }
            let mark = (whole && !marked).then_some(length as u64);
            let end = offset + mark.unwrap_or(0);
            let from = end.saturating_sub(TAIL_BYTES);
            let tail = file.read_at(from, (end - from) as usize).await?;
            Ok(Ok((mark, tail)))
        };
        ctx.spawn(closing.into_actor(self).map(
            |settled: io::Result<Result<LastBytes, Displaced>>, writer, ctx| match settled {
                Ok(Ok((mark, tail))) => writer.let_go(mark, tail, ctx),
                Ok(Err(found)) => writer.abandon(found, Vec::new(), Vec::new()),
                Err(error) => writer.fail(LogStep::Sync, error),
            },
        ));
    }

    /// Everything is durable and covered by a mark of so many bytes, or by one that stood there.
    fn let_go(&mut self, mark: Option<u64>, tail: Vec<u8>, ctx: &mut Context<Self>) {
        if self.failed {
            return;
        }
        let position = Position {
            offset: self.offset + mark.unwrap_or(0),
            line: self.lines + u64::from(mark.is_some()),
            seq: self.seq,
            epoch: self.start.reign.epoch,
            reign: self.start.reign,
            is_half_repaired: false,
            synced: if mark.is_some() { self.seq } else { self.synced },
            cluster: self.start.position.cluster,
            seen_trailer: true,
            ends_with_mark: mark.is_some(),
            mark_offset: if mark.is_some() { self.offset } else { 0 },
            unsynced_offset: self.offset + mark.unwrap_or(0),
            lacks_newline: false,
        };
        (self.offset, self.lines, self.synced) = (position.offset, position.line, self.seq);
        if mark.is_none() && !self.marked {
            // The cut may have freed what was set aside. On a full disk the mark is left out.
            self.reserved_to = 0;
        }
        self.marked = true;
        self.busy = false;
        // Within one turn, so that whoever asks for the log again is told in time or finds it closed, never both.
        if !self.closing || !self.queue.is_empty() {
            self.next_group(ctx);
            return;
        }
        match self.start.file.unlock() {
            Ok(()) => {
                self.ports.closed.do_send(Closed { position, tail });
                ctx.stop();
            }
            Err(error) => self.fail(LogStep::Unlock, error),
        }
    }

    /// Reminds this actor of something again and again. No timer of its own does that: it would keep the actor, and with it
    /// the log and its lock, beyond the last one who knows it.
    fn every<M>(period: Duration, message: impl Fn() -> M + 'static, ctx: &mut Context<Self>)
    where
        M: Message<Result = ()> + Send + 'static,
        Self: Handler<M>,
    {
        let writer = ctx.address().downgrade();
        actix::spawn(async move {
            loop {
                tokio::time::sleep(period).await;
                let Some(writer) = writer.upgrade() else { return };
                writer.do_send(message());
            }
        });
    }

    /// Syncs beside the writes.
    fn sync_beside(&mut self, ctx: &mut Context<Self>) {
        self.syncing = true;
        let asked = std::mem::take(&mut self.sync_asked);
        let file = Rc::clone(&self.start.sync_file);
        let through = self.seq;
        let began_us = self.start.env.clock_us();
        let syncing = async move { file.sync().await };
        ctx.spawn(syncing.into_actor(self).map(move |result, writer, ctx| {
            writer.syncing = false;
            writer.note_sync(Some(writer.start.env.clock_us().saturating_sub(began_us)));
            match result {
                Ok(()) => {
                    writer.synced = writer.synced.max(through);
                    if writer.sync_asked && !writer.failed {
                        writer.sync_beside(ctx);
                    } else if asked {
                        writer.ports.synced.do_send(Synced);
                    }
                    writer.next_group(ctx);
                }
                Err(error) => writer.fail(LogStep::Sync, error),
            }
        }));
    }

    /// Looks at the log's path if no group has done so for a while.
    fn look(&mut self, ctx: &mut Context<Self>) {
        // A group that is at the disk looks itself.
        let is_held = matches!(self.holding, Holding::Held);
        if self.failed || self.busy || is_held || self.looked_at.elapsed() < LOOK_AFTER {
            return;
        }
        let Some(post) = self.post() else { return };
        self.busy = true;
        let (file, length) = (Rc::clone(&self.start.file), self.offset);
        let looking = async move { file.look(post, length).await };
        ctx.spawn(looking.into_actor(self).map(|looked, writer, ctx| {
            writer.busy = false;
            match looked {
                Ok(None) => writer.seen(None),
                Ok(Some(found)) => {
                    writer.abandon(found, Vec::new(), Vec::new());
                    return;
                }
                Err(error) => writer.seen(Some(&error)),
            }
            writer.next_group(ctx);
        }));
    }

    /// Notes that the log was seen at its path, or that the path could not be looked at. That ends nobody: the file is open,
    /// and what cannot be looked at for lack of a right or of memory may be looked at later.
    fn seen(&mut self, unseen: Option<&io::Error>) {
        self.looked_at = Instant::now();
        let was_unseen = std::mem::replace(&mut self.is_unseen, unseen.is_some());
        let path = self.start.post.path.display();
        match unseen {
            Some(error) if !was_unseen => {
                log::warn!("the log's path cannot be checked, still writing path={path} error={error}");
            }
            None if was_unseen => log::info!("the log's path can be checked again path={path}"),
            Some(_) | None => {}
        }
    }

    /// The log is not at its path: nothing more is appended. What became of `unknown` nobody knows, for it stands in a file
    /// that may be found again or not; `refused`, and what waits, are not executed.
    fn abandon(&mut self, found: Displaced, unknown: Vec<Encoded>, refused: Vec<Encoded>) {
        if std::mem::replace(&mut self.failed, true) {
            return;
        }
        self.refuse_hold();
        let queued = |entries: Vec<Encoded>| entries.into_iter().map(|entry| entry.queued);
        let waits = std::mem::take(&mut self.queue);
        self.displaced = Some(found.clone());
        self.refuse(ErrorWord::Unknown, queued(unknown));
        self.refuse(ErrorWord::ReadOnly, queued(refused).chain(waits));
        self.ports.displaced.do_send(LogDisplaced { found });
    }

    /// Answers with `word`, for the log is displaced.
    fn refuse(&self, word: ErrorWord, queued: impl Iterator<Item = Queued>) {
        let Some(found) = &self.displaced else { return };
        let writes = queued.filter_map(|queued| match queued {
            Queued::Change(record) => Some(record.write),
            Queued::Epoch => None,
        });
        let refused: Vec<WriteId> = writes.collect();
        if !refused.is_empty() {
            let why = format!("the log is not at its path any more and this master ends: {found}");
            let refusal = Some((word, why));
            let written = Written { writes: Vec::new(), refused, refusal, bytes: self.offset };
            self.ports.written.do_send(LogEvent::Written(written));
        }
    }

    fn fail(&mut self, step: LogStep, error: io::Error) {
        if !std::mem::replace(&mut self.failed, true) {
            self.refuse_hold();
            log::error!("log failed error=\"the log cannot be {step}: {error}\"");
            self.ports.failed.do_send(LogFailed { step, cause: Arc::new(error) });
        }
    }
}

impl Queued {
    /// Bytes of keys and values, and what a line has beside them.
    fn payload_bytes(&self) -> usize {
        let keys_and_values: usize = match self {
            Queued::Change(record) => {
                let pairs = record.change.pairs().iter().map(|(key, value)| key.len() + value.len());
                pairs.chain(record.change.deleted().iter().map(|key| key.len())).sum()
            }
            Queued::Epoch => 0,
        };
        keys_and_values + LINE_BYTES
    }
}

/// A group whose lines are to be made: all that they depend on.
struct Draft {
    queued: Vec<Queued>,
    /// Where to write them; what is in it goes.
    bytes: Vec<u8>,
    /// The seq in front.
    last: Seq,
    synced: Seq,
    synced_too_high: bool,
    offset: u64,
    number: FileNumber,
    reign: Reign,
    given_up: Vec<Reign>,
    /// The text of the time, if it begins the reign.
    clock: Option<String>,
    fsync: SyncMode,
    address: String,
    head: Option<Operation>,
}

impl Draft {
    fn encode(self) -> (Vec<u8>, Vec<Encoded>) {
        let Draft { queued, mut bytes, mut last, .. } = self;
        let epoch = self.reign.epoch;
        bytes.clear();
        let mut entries = Vec::with_capacity(queued.len());
        for queued in queued {
            let before = bytes.len();
            let synced = if self.synced_too_high { last } else { self.synced };
            let mut places = SmallVec::new();
            last = last.next();
            let trailer = Trailer::new(last, epoch, synced);
            match &queued {
                Queued::Change(record) => match &*record.change {
                    Change::Put(pairs) => {
                        let offset = self.offset + before as u64;
                        let at = (self.number, offset);
                        let trailer = Trailer { expires: record.expires, ..trailer };
                        record::encode_write_at(pairs, trailer, at, &mut bytes, &mut places);
                    }
                    Change::Delete(keys) => record::encode_delete(keys, last, epoch, synced, &mut bytes),
                    Change::Apply(mixed) => {
                        let at = (self.number, self.offset + before as u64);
                        let pairs = (&mixed.pairs[..], &mixed.expires[..]);
                        record::encode_apply_at(pairs, &mixed.deleted, trailer, at, &mut bytes, &mut places);
                    }
                },
                Queued::Epoch => {
                    if let Some(head) = &self.head {
                        record::encode(head, last, epoch, synced, &mut bytes);
                        last = last.next();
                    }
                    let mark =
                        ReignMark { id: self.reign.id, fsync: self.fsync, given_up: self.given_up.clone() };
                    let begun = Operation::Epoch { address: self.address.clone(), mark: Some(mark) };
                    let clock = self.clock.as_ref().map(|text| (ClockMark::FIELD, text.as_bytes()));
                    let trailer = Trailer { fields: clock.as_slice(), ..Trailer::new(last, epoch, synced) };
                    record::encode_with(&begun, trailer, &mut bytes);
                }
            }
            let length =
                u32::try_from(bytes.len() - before).expect("no request is longer than PAYLOAD_BYTES_MAX");
            entries.push(Encoded { queued, length, places });
        }
        (bytes, entries)
    }
}

impl Actor for LogWriter {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        if self.start.fsync == Fsync::Everysec {
            Self::every(SYNC_EVERY, || SyncOften, ctx);
        }
        Self::every(LOOK_EVERY, || Look, ctx);
        self.next_group(ctx);
    }

    fn stopped(&mut self, _: &mut Self::Context) {
        self.guard.stopped_cleanly();
    }
}

impl Handler<Append> for LogWriter {
    type Result = ();

    fn handle(&mut self, append: Append, ctx: &mut Self::Context) {
        let changes = append.changes.into_iter().map(Queued::Change);
        if self.displaced.is_some() {
            self.refuse(ErrorWord::ReadOnly, changes);
            return;
        }
        self.queue.extend(changes);
        self.next_group(ctx);
    }
}

impl Handler<WhereEnds> for LogWriter {
    type Result = ();

    fn handle(&mut self, asked: WhereEnds, _: &mut Self::Context) {
        if !self.failed && !self.closing {
            let _ = asked.answer.send(self.end());
        }
    }
}

impl Handler<Hold> for LogWriter {
    type Result = ();

    fn handle(&mut self, hold: Hold, ctx: &mut Self::Context) {
        if !self.failed && !self.closing {
            self.holding = Holding::Asked(hold.answer);
            self.next_group(ctx);
        }
    }
}

impl Handler<GoOn> for LogWriter {
    type Result = ();

    fn handle(&mut self, go_on: GoOn, ctx: &mut Self::Context) {
        self.go_on(go_on.grown, ctx);
    }
}

impl Handler<MayGrow> for LogWriter {
    type Result = ();

    fn handle(&mut self, may: MayGrow, ctx: &mut Self::Context) {
        self.ceiling = may.to.filter(|_| Instant::now() >= self.unpaced_until);
        self.next_group(ctx);
    }
}

impl Handler<SyncOften> for LogWriter {
    type Result = ();

    fn handle(&mut self, _: SyncOften, ctx: &mut Self::Context) {
        if !self.failed && !self.syncing && self.synced != self.seq {
            self.sync_beside(ctx);
        }
    }
}

impl Handler<Look> for LogWriter {
    type Result = ();

    fn handle(&mut self, _: Look, ctx: &mut Self::Context) {
        self.look(ctx);
    }
}

impl Handler<Abandon> for LogWriter {
    type Result = ();

    fn handle(&mut self, _: Abandon, _: &mut Self::Context) {
        self.ports.abandoned.do_send(Abandoned);
    }
}

impl Handler<Sync> for LogWriter {
    type Result = ();

    fn handle(&mut self, _: Sync, ctx: &mut Self::Context) {
        self.sync_asked = true;
        // What is to be handed over must come to its end.
        (self.ceiling, self.unpaced_until) = (None, Instant::now() + UNPACED);
        self.next_group(ctx);
        if !self.syncing && !self.failed {
            self.sync_beside(ctx);
        }
    }
}

impl Handler<Reopen> for LogWriter {
    type Result = ();

    fn handle(&mut self, _: Reopen, ctx: &mut Self::Context) {
        if self.closing && !self.failed {
            self.closing = false;
            self.ports.reopened.do_send(Reopened);
            self.next_group(ctx);
        }
    }
}

impl Handler<Close> for LogWriter {
    type Result = ();

    fn handle(&mut self, _: Close, ctx: &mut Self::Context) {
        self.closing = true;
        self.next_group(ctx);
    }
}
