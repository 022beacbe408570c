//! What a member's compaction and the streams of files do to its disk, and what goes wrong meanwhile.

use super::{Happening, World};
use dsm_consensus::wire::stream::StreamMessage;
use dsm_consensus::{Effect, Event};
use dsm_protocol::ids::Seq;

impl World {
    /// A member is to compact its log, between two batches.
    pub(super) fn compacts(&mut self) {
        let us = self.random.between(20_000, 120_000);
        self.later(us, Happening::Compacts);
        let member = self.random.next() as usize % self.nodes.len();
        let kept = self.random.between(0, 40);
        self.compacts_member(member, kept);
    }

    fn compacts_member(&mut self, member: usize, kept: u64) {
        self.nodes[member].keeps = Some(kept);
        if self.nodes[member].disk.is_idle() {
            self.compacts_now(member);
        }
    }

    /// Compacts, if it is to: nothing is being written.
    pub(super) fn compacts_now(&mut self, member: usize) {
        let (now, node) = (self.now, &mut self.nodes[member]);
        let (Some(kept), Some(machine), Some(id)) = (node.keeps.take(), &node.machine, node.id) else {
            return;
        };
        if node.paused_until > now || node.hangs() {
            return;
        }
        let kept_from = Seq(machine.committed().0.saturating_sub(kept));
        let base = machine.purgeable(kept_from);
        if base.seq <= node.disk.base.seq {
            return;
        }
        let lacks = machine.progress().into_iter().find(|progress| {
            progress.is_live && !progress.gets_file && progress.has < base.seq && kept_from <= base.seq
        });
        if let Some(lacks) = lacks {
            self.checks.fail(format!("{id} is purged through {base}, and {lacks:?}"));
        }
        self.counts.compacted += 1;
        node.disk.compact(member, base);
        let life = node.life;
        self.checks_file(member);
        if self.random.next().is_multiple_of(20) && !self.is_healed && self.now >= self.calm_until {
            return self.ends(member, true);
        }
        self.event(member, life, Event::Compacted(base));
    }

    /// The file has what is committed.
    pub(super) fn checks_file(&mut self, member: usize) {
        let node = &self.nodes[member];
        if let (Some(id), false) = (node.id, self.is_old(member)) {
            self.checks.has_file(id, node.disk.base, node.disk.compacted_lines());
        }
    }

    /// What a stream does to the disk.
    pub(super) fn stream_effect(&mut self, member: usize, effect: Effect) {
        let (us, node) = (self.random.between(50, 3000), &mut self.nodes[member]);
        let (Some(id), life) = (node.id, node.life) else { return };
        let event = match effect {
            Effect::ReadChunk { to, base, offset, bytes_max } if node.disk.base == base => {
                let (data, is_last) = node.disk.chunk(offset, bytes_max);
                if let Some(peer) = self.machine_of(member, to) {
                    self.stream_is_disturbed(member, peer);
                }
                Event::ChunkRead { to, base, offset, data: data.into(), is_last }
            }
            Effect::WriteChunk { stream, offset, data } => {
                node.disk.write_chunk(stream, offset, &data);
                if self.random.next().is_multiple_of(40) && !self.is_healed && self.now >= self.calm_until {
                    self.receiver_hangs(member);
                }
                Event::ChunkWritten(stream)
            }
            Effect::SyncStream(stream) => {
                node.disk.sync_stream(stream);
                Event::StreamSynced(stream)
            }
            Effect::DropStream(stream) => {
                self.counts.dropped += 1;
                return node.disk.drop_stream(stream);
            }
            Effect::Restored(base) => {
                if node.disk.base != base {
                    let what = format!("{id} says it has a file through {base}, and has {}", node.disk.base);
                    self.checks.fail(what);
                }
                return self.checks_file(member);
            }
            _ => return,
        };
        if self.random.next().is_multiple_of(40) {
            self.later(us, Happening::PowerFails { member, life });
        }
        let node = &mut self.nodes[member];
        if node.life == life && node.hangs() {
            node.stalled.push(event);
        } else {
            self.later(us, Happening::Event { member, life, event });
        }
    }

    /// In the middle of a stream its connection breaks, its leader loses the reign, or its file gives way to a newer one.
    fn stream_is_disturbed(&mut self, member: usize, peer: usize) {
        let drawn = self.random.next() % 90;
        if self.is_healed || self.now < self.calm_until || drawn > 3 {
            return;
        }
        self.counts.disturbed += 1;
        match drawn {
            0 => self.breaks(member, peer, true),
            1 => {
                self.cut.insert((member, peer));
            }
            2 => self.later(0, Happening::Transfers { member, other: peer }),
            _ => self.later(0, Happening::CompactsAll { member }),
        }
    }

    /// A member compacts whatever it may.
    pub(super) fn compacts_all(&mut self, member: usize) {
        self.compacts_member(member, 0);
    }

    pub(super) fn send_stream(&mut self, from: usize, message: &StreamMessage) {
        let mut bytes = Vec::new();
        message.encode(&mut bytes);
        if let Some(to) = self.machine_of(from, message.to) {
            self.send_bytes(from, to, bytes);
        }
    }
}
