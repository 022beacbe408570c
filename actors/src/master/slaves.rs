//! The slaves that are connected to this master, those that wait for a name, and what became of those that are gone.
//!
//! Owns their links, the quarantine of those that have failed, and what INFO counts of them. Never decides what a slave is
//! to the keys: the master machine does, and `slave_events.rs` tells it what slaves say.

use super::agenda::Allowance;
use super::slave_link::{Herald, SlaveLink};
use crate::batch::Outbox;
use crate::slave_proxy::{EndReason, SlaveEnded};
use dsm_protocol::ids::{Incarnation, LinkId, Millis, SlaveId};
use dsm_protocol::machine::link::{MissRecord, Quarantine, ReadWindow, WaitingRead};
use dsm_protocol::machine::master::{Master, Reigns};
use dsm_protocol::machine::reign::Hearsay;
use dsm_protocol::message::{Hello, HelloRole, Message};
use std::collections::{BTreeMap, VecDeque};

/// How often it is said that a slave accuses the log, in milliseconds: anybody can pose as one.
const ACCUSED_EVERY_MS: u64 = 10_000;

/// To look at reads of a slave that have waited counts as so many steps.
const LOOKED_AT_STEPS: usize = 64;

/// So many entries of what is given up are freed at once.
const FREED_AT_ONCE: usize = 512;

/// All slaves.
#[derive(Default)]
pub(super) struct Slaves {
    links: BTreeMap<LinkId, SlaveLink>,
    /// Those that have failed and must wait before they count again.
    quarantine: Quarantine,
    /// Those whose name is taken, until it is known whether the other one lives. One for each name.
    parked: BTreeMap<LinkId, (Hello, Outbox)>,
    removed: u64,
    /// The same by the reason.
    removed_by: BTreeMap<&'static str, u64>,
    refused: u64,
    /// Which processes the slaves are that were removed by command in this reign. The machine bounds them.
    sent_away: BTreeMap<SlaveId, Incarnation>,
    /// When it was last said that a slave accuses the log, and how often it was not said since.
    accused: (Option<Millis>, u64),
    /// Reads that had to wait for room in the windows of slaves that are gone.
    reads_waited: u64,
    /// What such windows leave behind, to be freed.
    litter: Vec<VecDeque<WaitingRead>>,
}

impl Slaves {
    /// The slave on `link`.
    pub(super) fn get(&self, link: LinkId) -> Option<&SlaveLink> {
        self.links.get(&link)
    }

    /// The same, to change it.
    pub(super) fn get_mut(&mut self, link: LinkId) -> Option<&mut SlaveLink> {
        self.links.get_mut(&link)
    }

    /// The slave on `link` if it has a place in the reign: nobody else is sent what the machine wants sent.
    pub(super) fn active(&self, link: LinkId) -> Option<&SlaveLink> {
        self.get(link).filter(|slave| slave.is_active())
    }

    /// The one of that name.
    pub(super) fn named(&self, id: &SlaveId) -> Option<&SlaveLink> {
        self.links.values().find(|slave| slave.id() == id)
    }

    /// All of them.
    pub(super) fn iter(&self) -> impl Iterator<Item = &SlaveLink> {
        self.links.values()
    }

    /// How many are connected.
    pub(super) fn len(&self) -> usize {
        self.links.len()
    }

    /// A slave is admitted.
    pub(super) fn insert(&mut self, link: LinkId, slave: SlaveLink) {
        self.links.insert(link, slave);
    }

    /// A link has ended: forgets it, holds the end against its slave if that is to blame, and keeps what is to be freed.
    pub(super) fn remove(&mut self, now: Millis, ended: &SlaveEnded) -> Option<SlaveLink> {
        let slave = self.links.remove(&ended.link)?;
        let failed = slave.with_book(|book| self.quarantine.ended(now, book, ended.reason.ending()));
        if let Some(failed) = failed {
            let (ms, failures, cause) = (failed.quarantine_ms(), failed.failures, failed.cause);
            let level = if failures == 1 { log::Level::Warn } else { log::Level::Info };
            let id = slave.id();
            log::log!(level, "slave quarantined slave={id} ms={ms} failures={failures} cause={cause}");
        }
        if slave.is_active() {
            self.removed += 1;
            *self.removed_by.entry(ended.reason.word()).or_default() += 1;
        }
        self.give_up_reads(slave.take_reads());
        Some(slave)
    }

    /// Has the link of a slave ended.
    pub(super) fn end(&self, link: LinkId, reason: EndReason) {
        if let Some(slave) = self.get(link) {
            slave.end(reason);
        }
    }

    /// Lets a slave wait whose name is taken. Gives the one that has waited for the name so far.
    pub(super) fn park(&mut self, link: LinkId, hello: Hello, outbox: Outbox) -> Option<Outbox> {
        let displaced = slave_name(&hello).and_then(|id| self.unpark(id));
        self.parked.insert(link, (hello, outbox));
        displaced.map(|(_, _, outbox)| outbox)
    }

    /// Takes the one out that waits for this name.
    pub(super) fn unpark(&mut self, id: &SlaveId) -> Option<(LinkId, Hello, Outbox)> {
        let is_of = |(_, (hello, _)): &(&LinkId, &(Hello, Outbox))| slave_name(hello) == Some(id);
        let link = self.parked.iter().find(is_of).map(|(link, _)| *link)?;
        let (hello, outbox) = self.parked.remove(&link)?;
        Some((link, hello, outbox))
    }

    /// A connection is over: whoever waited on it for a name waits no more.
    pub(super) fn forget_parked(&mut self, link: LinkId) {
        self.parked.remove(&link);
    }

    /// Notes that the slave on `link` was removed by command.
    pub(super) fn note_sent_away(&mut self, link: LinkId) {
        let life = self.get(link).map(|slave| slave.with_book(|book| book.life().clone()));
        if let Some(life) = life {
            self.sent_away.insert(life.id, life.incarnation);
        }
    }

    /// Which process the slave of this name was when it was removed by command.
    pub(super) fn sent_away(&self, id: &SlaveId) -> Option<Incarnation> {
        self.sent_away.get(id).copied()
    }

    /// A slave that was removed by command is wanted again.
    pub(super) fn forget_sent_away(&mut self, id: &SlaveId) {
        self.sent_away.remove(id);
    }

    /// Notes that one was refused.
    pub(super) fn note_refused(&mut self) {
        self.refused += 1;
    }

    /// Tells one of the reign.
    pub(super) fn announce_to(&mut self, now: Millis, link: LinkId, herald: &Herald) {
        if let Some(slave) = self.links.get_mut(&link) {
            slave.announce(now, &self.quarantine, herald);
        }
    }

    /// Tells all of the reign.
    pub(super) fn announce(&mut self, now: Millis, herald: &Herald) {
        for slave in self.links.values_mut() {
            slave.announce(now, &self.quarantine, herald);
        }
    }

    /// Tries those whose quarantine is over, or without which there are too few.
    pub(super) fn announce_waiting(&mut self, now: Millis, herald: &Herald) {
        for slave in self.links.values_mut().filter(|slave| slave.waits_for_trial()) {
            slave.announce(now, &self.quarantine, herald);
        }
    }

    /// Those that have accepted the reign so far and wait for their places, with the room that they have.
    pub(super) fn take_enlisted(&mut self) -> Vec<(LinkId, SlaveId, u64)> {
        let enlisted = self.links.iter().filter_map(|(link, slave)| {
            let room_bytes = slave.take_enlisted()?;
            Some((*link, slave.id().clone(), room_bytes))
        });
        enlisted.collect()
    }

    /// The reign is over: none has a place any more.
    pub(super) fn end_reign(&mut self) {
        self.sent_away.clear();
        self.iter().for_each(SlaveLink::end_reign);
    }

    /// How many have not accepted the reign.
    pub(super) fn undecided(&self) -> usize {
        self.iter().filter(|slave| !slave.has_accepted()).count()
    }

    /// What they say of the log, beside what it says itself.
    pub(super) fn hearsay<'a>(&self, reigns: &'a Reigns) -> Hearsay<'a> {
        Hearsay {
            slaves: self
                .iter()
                .filter_map(|slave| Some((slave.id().clone(), slave.cluster()?, slave.seen())))
                .collect(),
            has_newcomer: self.iter().any(|slave| slave.cluster().is_none()),
            reigns,
        }
    }

    /// What a slave has acknowledged or answered is no longer owed.
    pub(super) fn note_arrived(&self, now: Millis, link: LinkId, message: &Message) {
        if let Some(slave) = self.get(link) {
            slave.note_arrived(now, message);
        }
    }

    /// Whether it may be said that a slave accuses the log; if so, how often it was not said since the last time.
    pub(super) fn may_accuse(&mut self, now: Millis) -> Option<u64> {
        let (said_at, unsaid) = &mut self.accused;
        if said_at.is_some_and(|at| now.since(at) < ACCUSED_EVERY_MS) {
            *unsaid += 1;
            return None;
        }
        *said_at = Some(now);
        Some(std::mem::take(unsaid))
    }

    /// Gives up a window of reads.
    pub(super) fn give_up_reads(&mut self, reads: ReadWindow) {
        self.reads_waited += reads.waited();
        let waiting = reads.into_waiting();
        if !waiting.is_empty() {
            self.litter.push(waiting);
        }
    }

    /// Whether reads are to be passed over or freed.
    pub(super) fn is_behind(&self) -> bool {
        !self.litter.is_empty() || self.iter().any(SlaveLink::is_behind)
    }

    /// Goes on with the reads of slaves that wait behind many that have gone elsewhere.
    pub(super) fn read_on(&self, machine: &Master, left: &mut Allowance<'_>) {
        for slave in self.iter().filter(|slave| slave.is_behind()) {
            slave.read_on(machine);
            left.spend(LOOKED_AT_STEPS);
        }
    }

    /// Frees a part of what slaves that are gone have left behind.
    pub(super) fn tidy(&mut self, left: &mut Allowance<'_>) {
        while !left.is_spent() {
            let Some(reads) = self.litter.last_mut() else { return };
            let rest = reads.len().saturating_sub(FREED_AT_ONCE);
            reads.truncate(rest);
            if rest == 0 {
                self.litter.pop();
            }
            left.spend(FREED_AT_ONCE / 8);
        }
    }

    /// The active one that takes longest to acknowledge, and how long, in milliseconds.
    pub(super) fn slowest(&self, now: Millis) -> Option<(&str, u64)> {
        let waits = self.iter().filter(|slave| slave.is_active());
        waits.map(|slave| (slave.id().as_str(), slave.ack_ms(now))).max_by_key(|(_, ms)| *ms)
    }

    /// Those that are connected and do not count yet for having failed.
    pub(super) fn quarantined(&self) -> impl Iterator<Item = &SlaveLink> {
        self.iter().filter(|slave| slave.is_in_quarantine())
    }

    /// How one has failed so far, if it is remembered.
    pub(super) fn failures(&self, slave: &SlaveLink) -> Option<&MissRecord> {
        slave.with_book(|book| self.quarantine.of(book.life()))
    }

    /// How many were removed from a reign since the start.
    pub(super) fn removed(&self) -> u64 {
        self.removed
    }

    /// The same by the reason, in one word.
    pub(super) fn removed_by(&self) -> &BTreeMap<&'static str, u64> {
        &self.removed_by
    }

    /// How many were refused since the start.
    pub(super) fn refused(&self) -> u64 {
        self.refused
    }

    /// How many have seen what the log lacks.
    pub(super) fn disputing(&self) -> usize {
        self.iter().filter(|slave| slave.disputes()).count()
    }

    /// Reads that had to wait for room in a slave's window since the start.
    pub(super) fn reads_waited(&self) -> u64 {
        self.reads_waited + self.iter().map(SlaveLink::reads_waited).sum::<u64>()
    }
}

/// The name in a slave's HELLO.
pub(super) fn slave_name(hello: &Hello) -> Option<&SlaveId> {
    match &hello.role {
        HelloRole::Slave { id, .. } => Some(id),
        HelloRole::Client | HelloRole::Master { .. } | HelloRole::Member { .. } => None,
    }
}
