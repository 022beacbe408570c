//! The slaves' side of a master: registration, messages, removal.

use super::{send, told, MasterActor, Phase, ReadWindow, Role, SlaveLink};
use crate::batch::Outbox;
use crate::door::links::reject;
use crate::shown::shown_message;
use crate::slave_proxy::{End, EndReason, Owed, Parts, PingWanted, Ports, SlaveEnded, SlaveProxy};
use actix::prelude::*;
use dsm_protocol::command::KEY_MAX;
use dsm_protocol::ids::{LinkId, Millis, SlaveId};
use dsm_protocol::machine::link::{Admission, Ending, Link, Standing};
use dsm_protocol::machine::master::{Event, ReadId, ReignRecord, Slot, Testimony, SLAVES_MAX};
use dsm_protocol::message::{Control, Hello, HelloRole, Message, Seen};
use dsm_protocol::planted;
use std::cell::RefCell;
use std::rc::Rc;

/// How often it is said that a slave accuses the log, in milliseconds: anybody can pose as one.
const ACCUSED_EVERY_MS: u64 = 10_000;

impl MasterActor {
    /// A slave wants to register.
    pub(super) fn slave_hello(
        &mut self,
        now: Millis,
        link: LinkId,
        hello: Hello,
        outbox: Outbox,
        ctx: &mut Context<Self>,
    ) {
        let HelloRole::Slave { id, incarnation, .. } = &hello.role else { return };
        if self.is_closing() || self.is_leaving() {
            reject(&outbox, "this master is stopping");
            return;
        }
        if let (Some(ours), Some(theirs)) = (self.cluster.get(), hello.cluster) {
            if ours != theirs {
                let reason = format!("slave {id} belongs to cluster {theirs}, this is cluster {ours}");
                self.refuse_slave(id, &outbox, &format!("other-cluster theirs={theirs}"), &reason);
                return;
            }
        }
        let same_name = self.slaves.iter().find(|(_, slave)| slave.id == *id).map(|(link, _)| *link);
        if let Some(old) = same_name {
            let old_slave = &self.slaves[&old];
            if old_slave.incarnation == *incarnation {
                // The same process came back over a new connection: the old one is dead even if we do not see it.
                old_slave.proxy.do_send(End(EndReason::Replaced));
            } else {
                old_slave.question(now, &Message::Control(Control::Probe));
            }
            if let Some((waiting, _)) = self.parked.iter().find(|(_, (hello, _))| name(hello) == Some(id)) {
                let waiting = *waiting;
                if let Some((_, outbox)) = self.parked.remove(&waiting) {
                    let reason = format!("another slave named {id} has registered since");
                    self.refuse_slave(id, &outbox, "registered-again", &reason);
                }
            }
            self.parked.insert(link, (hello, outbox));
            return;
        }
        if self.machine.slave_count() >= SLAVES_MAX {
            self.refuse_for_want_of_a_slot(id, &outbox);
            return;
        }
        self.admit(link, hello, outbox, ctx);
    }

    fn admit(&mut self, link: LinkId, hello: Hello, outbox: Outbox, ctx: &mut Context<Self>) {
        let HelloRole::Slave { id, incarnation, seen, .. } = hello.role else { return };
        let now = self.env.now();
        if !self.serves() {
            self.note_slave_of(&id, hello.cluster);
        }
        let window = Rc::new(RefCell::new(Link::new(self.config.ack_timeout.as_millis() as u64, now)));
        let owed = Owed::default();
        let parts = Parts {
            link,
            id: id.clone(),
            outbox: outbox.clone(),
            window: Rc::clone(&window),
            owed: Rc::clone(&owed),
            doubt: Rc::clone(&self.doubt),
            ports: Ports { ended: ctx.address().recipient(), ping: ctx.address().recipient() },
            turns: Rc::clone(&self.turns),
        };
        let proxy = SlaveProxy::new(Rc::clone(&self.env), parts).start();
        let welcome = self.welcome();
        send(&outbox, &Message::Control(Control::Welcome(welcome)));
        log::debug!("slave connected slave={id} link={link}");
        self.slaves.insert(
            link,
            SlaveLink {
                id,
                incarnation,
                outbox,
                window,
                owed,
                proxy,
                standing: Standing::Connected,
                slot: None,
                cluster: hello.cluster,
                seen,
                enlisted: None,
                disputes: false,
                active_since: None,
                reads: ReadWindow::new(self.config.slave_window.as_u64() as usize),
                alive_end: 0,
                report_end: None,
            },
        );
        self.announce_to(now, link);
    }

    /// Tells one slave of the reign, if there is one whose EPOCH record is durable. One that has failed is told that it
    /// must wait, and then tried first.
    pub(super) fn announce_to(&mut self, now: Millis, link: LinkId) {
        if !self.reign_is_announced() {
            return;
        }
        let (Role::Reigning(reign), Some(cluster)) = (&self.role, self.cluster.get()) else { return };
        let Some(own) = self.machine.reigns().last().filter(|own| own.reign == reign.reign) else { return };
        let is_needed = self.machine.slave_count() < self.config.min_slaves.max(1);
        let Some(slave) = self.slaves.get_mut(&link) else { return };
        if slave.standing == Standing::OnTrial {
            return;
        }
        let is_proven = match slave.standing {
            Standing::Proven => true,
            Standing::Quarantined => planted!(LateSlaveUntried),
            Standing::Connected | Standing::OnTrial => false,
        };
        let admission = if is_proven {
            Admission::Free
        } else {
            self.quarantine.admission(now, &slave.id, slave.incarnation, is_needed)
        };
        match admission {
            Admission::Free => {
                slave.standing = Standing::Proven;
                slave.disputes = false;
                let ReignRecord { reign, first: seq, durable } = own;
                let announced = Control::Announce { cluster, reign, seq, durable };
                slave.question(now, &Message::Control(announced));
            }
            Admission::Trial { bytes } => {
                log::debug!("slave on trial slave={} bytes={bytes}", slave.id);
                slave.standing = Standing::OnTrial;
                // No longer than what the slave must take anyway.
                let bytes = (bytes as usize).min(self.config.value_max() + KEY_MAX);
                slave.question(now, &Message::Trial { bytes: trial(bytes) });
            }
            Admission::Wait { ms } => {
                if slave.standing != Standing::Quarantined {
                    slave.standing = Standing::Quarantined;
                    let record = self.quarantine.of(&slave.id, slave.incarnation);
                    let reason = record.map_or_else(String::new, |record| record.cause.to_string());
                    send(&slave.outbox, &Message::Control(Control::Quarantined { ms, reason }));
                }
            }
        }
    }

    /// Tells all connected slaves of the reign.
    pub(super) fn announce(&mut self, now: Millis) {
        for link in self.slaves.keys().copied().collect::<Vec<_>>() {
            self.announce_to(now, link);
        }
    }

    /// Tries the slaves whose quarantine is over, or without which there are too few.
    pub(super) fn admit_waiting(&mut self, now: Millis) {
        let waiting = self.slaves.iter().filter(|(_, slave)| slave.standing == Standing::Quarantined);
        for link in waiting.map(|(link, _)| *link).collect::<Vec<_>>() {
            self.announce_to(now, link);
        }
    }

    #[expect(clippy::too_many_lines, reason = "one arm for each message, each short")]
    pub(super) fn slave_message(&mut self, now: Millis, link: LinkId, message: Message) {
        let Some(slave) = self.slaves.get_mut(&link) else { return };
        let slot = slave.slot;
        match (message, slot) {
            (Message::Ack { through, room_bytes }, Some(slot)) => {
                if slave.window.borrow_mut().note_acked(now, through, slave.outbox.reached()) {
                    self.step(now, Event::Acked { slot, link, through, room_bytes });
                } else {
                    self.end_slave(
                        link,
                        EndReason::Protocol(format!("ACK of {through}, which it cannot have")),
                    );
                }
            }
            (Message::Value { tag, version, reign, value }, Some(slot)) => {
                let read = ReadId::from_tag(tag);
                slave.read_answered(&self.machine);
                self.step(now, Event::Value { slot, link, read, version, reign, value });
            }
            (Message::Missing { tag, .. }, Some(slot)) => {
                slave.read_answered(&self.machine);
                self.step(now, Event::Missing { slot, link, read: ReadId::from_tag(tag) });
            }
            (Message::Control(Control::Full { number }), Some(slot)) => {
                self.step(now, Event::Full { slot, link, number });
            }
            (Message::Control(Control::Holdings { entries, last }), Some(slot)) => {
                // One that reports unasked, and reads nothing, would be sent, and kept, ever more drops.
                if slave.report_end.take().is_some_and(|end| end <= slave.outbox.reached()) {
                    self.step(now, Event::Holdings { slot, link, entries, last });
                } else {
                    let what = "a part of a report that was not asked for".to_owned();
                    self.end_slave(link, EndReason::Protocol(what));
                }
            }
            (Message::Control(Control::Enlisted { reign, seen, room_bytes }), None) => {
                let id = slave.id.clone();
                let ours = matches!(&self.role, Role::Reigning(own) if own.reign == reign);
                if ours && self.reign_is_announced() && !self.accuses(now, link, seen) {
                    log::debug!("slave enlisted slave={id} reign={reign}");
                    if self.holds_places_back() {
                        if let Some(slave) = self.slaves.get_mut(&link) {
                            slave.enlisted = Some(room_bytes);
                        }
                        self.tick_role(now);
                        return;
                    }
                    self.step(now, Event::SlaveJoined { id, link, room_bytes });
                    // The slot is needed for what the slave says next in the same batch.
                    self.flush();
                    self.tick_role(now);
                }
            }
            (Message::Control(Control::Outdated { seen }), _) => {
                // Who did not name this cluster cannot know of its reigns.
                if slave.cluster.is_some() && self.reign_is_announced() {
                    self.accuses(now, link, Some(seen));
                }
            }
            (Message::Control(Control::Alive), _) => {
                let id = slave.id.clone();
                self.refuse_parked(&id);
            }
            (Message::Control(Control::Took { .. }), None) if slave.standing == Standing::OnTrial => {
                slave.standing = Standing::Proven;
                self.announce_to(now, link);
            }
            (Message::Control(Control::Probe), _) => {
                // One that waits for the socket is enough, however often it is asked for.
                if slave.alive_end <= slave.outbox.taken() {
                    send(&slave.outbox, &Message::Control(Control::Alive));
                    slave.alive_end = slave.outbox.queued();
                }
            }
            // What a slave said to a reign that has ended since.
            (
                Message::Ack { .. }
                | Message::Value { .. }
                | Message::Missing { .. }
                | Message::Control(Control::Full { .. } | Control::Holdings { .. } | Control::Enlisted { .. }),
                _,
            ) => {}
            (other, _) => {
                let said = shown_message(&other);
                self.end_slave(link, EndReason::Protocol(format!("a slave does not say {said}")));
            }
        }
    }

    fn reign_is_announced(&self) -> bool {
        match &self.role {
            Role::Reigning(reign) => match reign.phase {
                Phase::Announcing { .. }
                | Phase::Serving
                | Phase::Preparing { .. }
                | Phase::Yielding { .. }
                | Phase::Closing { .. } => true,
                Phase::Opening | Phase::Doubting | Phase::Stopping | Phase::Departing | Phase::Ending => {
                    false
                }
            },
            Role::Standby { .. }
            | Role::Barred { .. }
            | Role::Halting { .. }
            | Role::Recovering { .. }
            | Role::Waiting(_)
            | Role::Ended => false,
        }
    }

    /// Sends the pings that are wanted. Both ends count: none may overtake what the machine has counted in front of it.
    pub(super) fn send_pings(&mut self) {
        if !self.effects.is_empty() {
            return;
        }
        for link in std::mem::take(&mut self.pings) {
            let Some(slave) = self.slaves.get(&link) else { continue };
            let Some(slot) = slave.slot else { continue };
            self.machine.pinged(slot);
            send(&slave.outbox, &Message::Ping);
            slave.note_sent(self.env.now());
        }
    }

    /// The machine has given a slave its slot.
    pub(super) fn slave_joined(&mut self, link: LinkId, slot: Slot) {
        let Some(slave) = self.slaves.get_mut(&link) else { return };
        slave.slot = Some(slot);
        if let Some(own) = self.machine.reigns().last() {
            send(&slave.outbox, &Message::Control(Control::Admitted { reign: own.reign }));
        }
        slave.report_end = Some(slave.outbox.queued());
        slave.active_since = Some(self.env.now());
        let reads =
            std::mem::replace(&mut slave.reads, ReadWindow::new(self.config.slave_window.as_u64() as usize));
        slave.owed.set(0);
        slave.window.borrow_mut().begin();
        self.slots[usize::from(slot.0)] = Some(link);
        // From now on it is asked for values and reports; before that, all it may say is short.
        self.switchboard.trust(link);
        log::info!("slave active slave={} slaves={}", slave.id, self.machine.slave_count());
        self.refusals.forget(slave.id.as_str());
        self.give_up_reads(reads);
    }

    /// The other one with this name lives: the newcomer must take another.
    fn refuse_parked(&mut self, id: &SlaveId) {
        let parked = self.parked.iter().find(|(_, (hello, _))| name(hello) == Some(id)).map(|(l, _)| *l);
        if let Some((_, outbox)) = parked.and_then(|link| self.parked.remove(&link)) {
            let reason = format!("a slave named {id} is registered and answers: choose another --id");
            self.refuse_slave(id, &outbox, "id-in-use", &reason);
        }
    }

    /// Says no to a slave: to it, in the log and in INFO. It asks again, less and less often.
    fn refuse_slave(&mut self, id: &SlaveId, outbox: &Outbox, cause: &str, reason: &str) {
        self.slaves_refused += 1;
        if let Some(unsaid) = self.refusals.is_new(id.as_str(), cause, self.env.now()) {
            let more = told::more(unsaid);
            log::warn!("slave refused slave={id} cause={cause}; it asks again, which is not told{more}");
        }
        reject(outbox, reason);
    }

    fn refuse_for_want_of_a_slot(&mut self, id: &SlaveId, outbox: &Outbox) {
        let reason = format!("{SLAVES_MAX} slaves are active, which is the most: stop one first");
        self.refuse_slave(id, outbox, &format!("no-slot max={SLAVES_MAX}"), &reason);
    }

    /// The machine has no slot for a slave that has enlisted: others were faster since its hello.
    pub(super) fn slave_without_slot(&mut self, link: LinkId) {
        let Some(slave) = self.slaves.get(&link) else { return };
        let (id, outbox) = (slave.id.clone(), slave.outbox.clone());
        self.refuse_for_want_of_a_slot(&id, &outbox);
        self.end_slave(link, EndReason::Refused("all slots for slaves are taken".to_owned()));
    }

    pub(super) fn slave_gone(&mut self, link: LinkId, reason: EndReason) {
        self.switchboard.forget(link);
        self.parked.remove(&link);
        self.end_slave(link, reason);
    }

    /// Whether what a slave has seen is not in the log. Then it gets no place in this reign: what it holds may be all that is
    /// left of records that were lost. Said once for each link, and seldom in all; nobody else notices.
    fn accuses(&mut self, now: Millis, link: LinkId, seen: Option<Seen>) -> bool {
        let Some(seen) = seen else { return false };
        let testimony = self.machine.reigns().testimony(&seen);
        let Some(slave) = self.slaves.get_mut(&link) else { return false };
        if testimony == Testimony::Agrees {
            return false;
        }
        slave.seen = Some(seen);
        // Who did not name this cluster by itself may have it from the announcement.
        if testimony == Testimony::LogIsShort && slave.cluster.is_some() && self.doubt(link, seen) {
            return true;
        }
        let Some(slave) = self.slaves.get_mut(&link) else { return false };
        if std::mem::replace(&mut slave.disputes, true) {
            return true;
        }
        let id = slave.id.clone();
        if let Some(unsaid) = self.may_accuse(now) {
            log::error!(
                "slave set aside slave={id} cause=\"it has seen reign {} through seq {}, which this log lacks: the log was \
                 restored from an older copy, or the slave serves another copy of it (`dsm-log new-cluster`); restart the \
                 slave to give up what it holds\" unsaid={unsaid}",
                seen.reign,
                seen.seq
            );
        }
        true
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

    /// Holds a link's end against its slave, if it is to blame.
    fn judge(&mut self, now: Millis, slave: &SlaveLink, reason: &EndReason) {
        let ending = ending(reason, slave.window.borrow().bytes_ahead());
        let is_on_trial = slave.standing == Standing::OnTrial;
        let (id, incarnation) = (&slave.id, slave.incarnation);
        let failed = self.quarantine.ended(now, id, incarnation, slave.active_since, is_on_trial, ending);
        let Some(failed) = failed else { return };
        let (ms, failures, cause) = (failed.quarantine_ms(), failed.failures, failed.cause);
        let level = if failures == 1 { log::Level::Warn } else { log::Level::Info };
        log::log!(level, "slave quarantined slave={id} ms={ms} failures={failures} cause={cause}");
    }
}

impl SlaveLink {
    /// Whether it has failed and does not count yet.
    pub(super) fn is_in_quarantine(&self) -> bool {
        matches!(self.standing, Standing::Quarantined | Standing::OnTrial)
    }
}

/// The name in a slave's HELLO.
fn name(hello: &Hello) -> Option<&SlaveId> {
    match &hello.role {
        HelloRole::Slave { id, .. } => Some(id),
        HelloRole::Client | HelloRole::Master { .. } => None,
    }
}

/// Bytes that no link between here and there makes shorter.
fn trial(bytes: usize) -> bytes::Bytes {
    let mut word = 0x9e37_79b9_7f4a_7c15_u64;
    let mut padding = Vec::with_capacity(bytes + 8);
    while padding.len() < bytes {
        word = word.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        padding.extend_from_slice(&(word ^ (word >> 32)).to_le_bytes());
    }
    padding.truncate(bytes);
    padding.into()
}

/// What the end of a link says of its slave.
fn ending(reason: &EndReason, bytes: u64) -> Ending {
    match reason {
        EndReason::AckTimeout => Ending::Late { bytes },
        EndReason::Closed(_) | EndReason::Replaced | EndReason::Protocol(_) => Ending::Broken,
        EndReason::Dismissed(_) | EndReason::Refused(_) => Ending::Ours,
    }
}

impl Handler<SlaveEnded> for MasterActor {
    type Result = ();

    fn handle(&mut self, ended: SlaveEnded, ctx: &mut Self::Context) {
        let turn = self.turns.begin("slave lost");
        let now = self.env.now();
        let Some(slave) = self.slaves.remove(&ended.link) else { return };
        self.judge(now, &slave, &ended.reason);
        if let Some(slot) = slave.slot {
            self.step(now, Event::SlaveLost { link: ended.link });
            self.slots[usize::from(slot.0)] = None;
            self.slaves_removed += 1;
            log::info!(
                "slave removed slave={} slaves={} cause={}",
                slave.id,
                self.machine.slave_count(),
                ended.reason
            );
        }
        self.give_up_reads(slave.reads);
        let waiting =
            self.parked.iter().find(|(_, (hello, _))| name(hello) == Some(&slave.id)).map(|(link, _)| *link);
        if let Some(link) = waiting {
            if let Some((hello, outbox)) = self.parked.remove(&link) {
                self.slave_hello(now, link, hello, outbox, ctx);
            }
        }
        self.work(&turn, ctx);
    }
}

impl Handler<PingWanted> for MasterActor {
    type Result = ();

    fn handle(&mut self, wanted: PingWanted, _: &mut Self::Context) {
        if !self.pings.contains(&wanted.link) {
            self.pings.push(wanted.link);
        }
        self.send_pings();
    }
}
