//! The stream of a file: how a follower catches up that needs entries which the leader's log has no more.
//!
//! Owns both ends. The leader offers its own file as far as it is compacted, through the base; the receiver asks for one chunk after
//! the other and writes each to a new file. Once that is whole and synced, the engine hears of it, and the new file takes the place
//! of the log ([`LogBatch::install`]). Never tells the engine of a file that is not on disk.
//!
//! Whatever gets lost is asked for again. The receiver begins from the start with another leader, in another term, and after its own
//! crash. The leader offers anew when it was not asked for long, or when its log was compacted further.

use super::{Consensus, Effect};
use crate::ids::MemberId;
use crate::members::Members;
use crate::mutant::planted;
use crate::storage::snapshot_at;
use crate::wire::stream::{StreamMessage, StreamWord};
use bytes::Bytes;
use dsm_protocol::ids::{Epoch, Millis, Version};
use raft::eraftpb::{Message, MessageType};
use raft::{ProgressState, SnapshotStatus, StateRole};

/// The number of a stream that this member gets: later ones have higher numbers. It names the new file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamNumber(pub u64);

/// How far the receiver is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reception {
    /// A chunk was asked for.
    Asks,
    /// A chunk is being written.
    Writes { is_last: bool },
    /// The whole file is being synced.
    Syncs,
    /// The engine has heard of the file.
    Told,
}

/// A stream that this member gets.
#[derive(Debug)]
pub(super) struct ArrivingFile {
    pub(super) number: StreamNumber,
    from: MemberId,
    term: u64,
    base: Version,
    /// The members at the base, and where their record is.
    pub(super) members: Members,
    pub(super) members_since: u64,
    /// Where the next chunk begins.
    next: u64,
    asked: Millis,
    reception: Reception,
}

/// A stream that this member gives.
#[derive(Debug)]
pub(super) struct Given {
    base: Version,
    /// When the receiver was heard last, or the stream was offered first.
    heard: Millis,
    offered: Millis,
    is_asked: bool,
}

impl Consensus {
    /// The engine wants to give this member the whole file.
    pub(super) fn offer(&mut self, snapshot: &Message, effects: &mut Vec<Effect>) {
        let Some(to) = MemberId::new(snapshot.to) else { return };
        let metadata = snapshot.get_snapshot().get_metadata();
        let base = Version::new(metadata.term, metadata.index);
        let given = Given { base, heard: self.now, offered: self.now, is_asked: false };
        self.given.insert(to, given);
        effects.push(self.offers(to, base));
    }

    /// Offers the file, with the members at its base.
    fn offers(&self, to: MemberId, base: Version) -> Effect {
        let view = self.engine.0.store();
        let (members, since) = (view.base_members().to_string(), view.members_since(base.seq.0));
        self.says(StreamWord::Offer, to, base, since, members.into(), false)
    }

    fn says(
        &self,
        word: StreamWord,
        to: MemberId,
        base: Version,
        offset: u64,
        data: Bytes,
        is_last: bool,
    ) -> Effect {
        let (from, cluster) = (self.config.member, self.cluster);
        let term = Epoch(self.engine.0.raft.term);
        Effect::SendStream(StreamMessage { word, to, from, cluster, term, base, offset, is_last, data })
    }

    pub(super) fn hear_stream(&mut self, from: MemberId, message: StreamMessage, effects: &mut Vec<Effect>) {
        let is_here = message.from == from && message.to == self.config.member;
        if !self.is_heard(from, effects) || !is_here || message.cluster != self.cluster {
            return;
        }
        match message.word {
            StreamWord::Offer => self.hear_offer(&message, effects),
            StreamWord::Ask => {
                let is_current = self.is_leader() && message.term.0 == self.engine.0.raft.term;
                let Some(given) = self.given.get_mut(&from).filter(|given| given.base == message.base) else {
                    return;
                };
                if is_current && self.engine.0.store().base() == message.base {
                    given.heard = self.now;
                    given.is_asked = true;
                    let StreamMessage { base, offset, .. } = message;
                    let bytes_max = self.config.message_bytes_max;
                    effects.push(Effect::ReadChunk { to: from, base, offset, bytes_max });
                }
            }
            StreamWord::Chunk => self.hear_chunk(message, effects),
        }
    }

    fn hear_offer(&mut self, offer: &StreamMessage, effects: &mut Vec<Effect>) {
        let raft = &self.engine.0.raft;
        let (term, base) = (offer.term.0, offer.base);
        let Some(members) = Members::parse(&offer.data) else { return };
        // Of a later term the heartbeats tell, and the offer comes again.
        if term != raft.term || raft.state == StateRole::Leader || raft.leader_id != offer.from.get() {
            return;
        }
        let has_it =
            base.seq <= self.committed() || self.engine.0.store().term_at(base.seq.0) == Some(base.epoch.0);
        if self.restoring.is_some() {
            return;
        }
        if has_it {
            // The engine says so to the leader.
            self.tell_engine(offer.from, term, base, &members);
            return;
        }
        let is_same =
            |stream: &ArrivingFile| (stream.from, stream.term, stream.base) == (offer.from, term, base);
        if self.incoming.as_ref().is_some_and(is_same) {
            return;
        }
        let before = self.incoming.take();
        if let Some(stream) = before.as_ref().filter(|_| planted!(StreamGoesOnElsewhere)) {
            let (number, next, reception) = (stream.number, stream.next, stream.reception);
            let (from, asked, members_since) = (offer.from, self.now, offer.offset);
            self.incoming = Some(ArrivingFile {
                number,
                from,
                term,
                base,
                members,
                members_since,
                next,
                asked,
                reception,
            });
            return;
        }
        effects.extend(before.map(|stream| Effect::DropStream(stream.number)));
        self.last_stream += 1;
        self.incoming = Some(ArrivingFile {
            number: StreamNumber(self.last_stream),
            from: offer.from,
            term,
            base,
            members,
            members_since: offer.offset,
            next: 0,
            asked: self.now,
            reception: Reception::Asks,
        });
        self.ask(effects);
    }

    fn ask(&mut self, effects: &mut Vec<Effect>) {
        let now = self.now;
        let Some(stream) = &mut self.incoming else { return };
        stream.asked = now;
        let (from, base, next) = (stream.from, stream.base, stream.next);
        effects.push(self.says(StreamWord::Ask, from, base, next, Bytes::new(), false));
    }

    fn hear_chunk(&mut self, chunk: StreamMessage, effects: &mut Vec<Effect>) {
        let Some(stream) = &mut self.incoming else { return };
        let is_its = (stream.from, stream.term, stream.base) == (chunk.from, chunk.term.0, chunk.base);
        let is_next = stream.next == chunk.offset || planted!(AnyChunkTaken);
        if !is_its || !is_next || stream.reception != Reception::Asks {
            return;
        }
        stream.reception = Reception::Writes { is_last: chunk.is_last };
        let (number, offset) = (stream.number, stream.next);
        stream.next += chunk.data.len() as u64;
        if planted!(LastChunkLost) && chunk.is_last {
            let empty = Bytes::new();
            effects.push(Effect::WriteChunk { stream: number, offset, data: empty });
            return;
        }
        effects.push(Effect::WriteChunk { stream: number, offset, data: chunk.data });
    }

    /// The caller has read a chunk of its own file.
    pub(super) fn chunk_read(
        &mut self,
        (to, base, offset): (MemberId, Version, u64),
        data: Bytes,
        is_last: bool,
        effects: &mut Vec<Effect>,
    ) {
        let is_given = self.given.get(&to).is_some_and(|given| given.base == base);
        if self.is_leader() && is_given {
            effects.push(self.says(StreamWord::Chunk, to, base, offset, data, is_last));
        }
    }

    pub(super) fn chunk_written(&mut self, number: StreamNumber, effects: &mut Vec<Effect>) {
        let Some(stream) = self.incoming.as_mut().filter(|stream| stream.number == number) else { return };
        match stream.reception {
            Reception::Writes { is_last: false } => {
                stream.reception = Reception::Asks;
                self.ask(effects);
            }
            Reception::Writes { is_last: true } => {
                stream.reception = Reception::Syncs;
                if planted!(SwapBeforeSync) {
                    self.stream_synced(number);
                } else {
                    effects.push(Effect::SyncStream(number));
                }
            }
            Reception::Asks | Reception::Syncs | Reception::Told => {}
        }
    }

    /// The new file is whole and on disk: now the engine may hear of it.
    pub(super) fn stream_synced(&mut self, number: StreamNumber) {
        let is_its =
            |stream: &&mut ArrivingFile| stream.number == number && stream.reception == Reception::Syncs;
        let Some(stream) = self.incoming.as_mut().filter(is_its) else { return };
        stream.reception = Reception::Told;
        let (from, term, base, members) = (stream.from, stream.term, stream.base, stream.members.clone());
        self.tell_engine(from, term, base, &members);
    }

    /// The new file came to nothing. The leader hears nothing of it, and offers it again after a while.
    pub(super) fn stream_failed(&mut self, number: StreamNumber) {
        self.incoming.take_if(|stream| stream.number == number && stream.reception != Reception::Told);
    }

    fn tell_engine(&mut self, from: MemberId, term: u64, base: Version, members: &Members) {
        let mut state = members.conf_state();
        if members.get(self.config.member).is_none() {
            // It became a member after the base, or is none any more. The engine takes no file without a part for it.
            state.learners.push(self.config.member.get());
        }
        let message = Message {
            msg_type: MessageType::MsgSnapshot,
            from: from.get(),
            to: self.config.member.get(),
            term,
            snapshot: Some(snapshot_at(base, state)).into(),
            ..Message::default()
        };
        // What the engine refuses is as good as lost.
        let _ = self.engine.0.step(message);
    }

    /// Asks and offers again what may have got lost.
    pub(super) fn stream_ticks(&mut self, effects: &mut Vec<Effect>) {
        let again = |since: Millis| since.plus(self.config.stream_retry_ms) <= self.now;
        if self.incoming.as_ref().is_some_and(|it| it.reception == Reception::Asks && again(it.asked)) {
            self.ask(effects);
        }
        let (now, quiet_max) = (self.now, self.config.stream_quiet_max_ms);
        let is_quiet = |given: &Given| given.heard.plus(quiet_max) <= now;
        let quiet: Vec<MemberId> =
            self.given.iter().filter(|(_, given)| is_quiet(given)).map(|(to, _)| *to).collect();
        for to in quiet {
            self.given.remove(&to);
            self.engine.0.report_snapshot(to.get(), SnapshotStatus::Failure);
        }
        let mut offers = Vec::new();
        for (to, given) in &mut self.given {
            if !given.is_asked && given.offered.plus(self.config.stream_retry_ms) <= now {
                given.offered = now;
                offers.push((*to, given.base));
            }
        }
        for (to, base) in offers {
            effects.push(self.offers(to, base));
        }
    }

    /// The log was compacted further: a stream of the file before comes to nothing, as the receiver would lack what follows it. The
    /// engine offers the new one.
    pub(super) fn end_old_streams(&mut self) {
        let base = self.engine.0.store().base();
        let is_old = |(to, given): (&MemberId, &Given)| (given.base != base).then_some(*to);
        let old: Vec<MemberId> = self.given.iter().filter_map(is_old).collect();
        for to in old {
            self.given.remove(&to);
            self.engine.0.report_snapshot(to.get(), SnapshotStatus::Failure);
        }
    }

    /// Ends the streams that came to nothing, and those that are done.
    pub(super) fn settle_streams(&mut self, effects: &mut Vec<Effect>) {
        let raft = &self.engine.0.raft;
        if let Some(stream) = &self.incoming {
            let leader = raft.leader_id;
            let is_over = raft.term != stream.term
                || (leader != raft::INVALID_ID && leader != stream.from.get())
                || stream.reception == Reception::Told;
            if is_over && !(planted!(StreamGoesOnElsewhere) && stream.reception != Reception::Told) {
                effects.push(Effect::DropStream(stream.number));
                self.incoming = None;
            }
        }
        let leads = self.is_leader();
        let prs = self.engine.0.raft.prs();
        self.given.retain(|to, _| {
            leads && prs.get(to.get()).is_some_and(|progress| progress.state == ProgressState::Snapshot)
        });
    }
}

#[cfg(test)]
mod tests;
