//! The slaves' side of a master: registration, messages, removal.

use super::{send, told, MasterActor, SlaveLink};
use crate::batch::Outbox;
use crate::door::links::reject;
use crate::shown::shown_message;
use crate::slave_proxy::{End, EndReason, Parts, SlaveEnded, SlaveProxy};
use actix::prelude::*;
use dsm_protocol::command::KEY_MAX;
use dsm_protocol::ids::{LinkId, Millis, SlaveId};
use dsm_protocol::machine::link::{Announcement, Challenge, Life, Link, LinkLimits, Standing};
use dsm_protocol::machine::master::{Event, ReadId, ReignRecord, Testimony, SLAVES_MAX};
use dsm_protocol::machine::reign;
use dsm_protocol::message::{Control, Hello, HelloRole, Message, Seen};
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
        if self.reign.is_closing() || self.reign.is_leaving() {
            reject(&outbox, "this master is stopping");
            return;
        }
        if let (Some(ours), Some(theirs)) = (self.log.cluster(), hello.cluster) {
            if ours != theirs {
                let reason = format!("slave {id} belongs to cluster {theirs}, this is cluster {ours}");
                self.refuse_slave(id, &outbox, &format!("other-cluster theirs={theirs}"), &reason);
                return;
            }
        }
        let same_name = self.slaves.iter().find(|(_, slave)| slave.id == *id).map(|(link, _)| *link);
        if let Some(old) = same_name {
            let old_slave = &self.slaves[&old];
            let challenge = old_slave.link.borrow().challenged(*incarnation);
            match challenge {
                Challenge::Replaced => old_slave.proxy.do_send(End(EndReason::Replaced)),
                Challenge::Probed => old_slave.question(now, &Message::Control(Control::Probe)),
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
        self.step_reign(now, reign::Event::SlaveCame { slave: id.clone(), cluster: hello.cluster });
        let life = Life { id: id.clone(), incarnation };
        let limits = LinkLimits {
            ack_timeout_ms: self.config.ack_timeout.as_millis() as u64,
            read_bytes_max: self.config.slave_window.as_u64() as usize,
            trial_bytes_max: (self.config.value_max() + KEY_MAX) as u64,
        };
        let shared = Rc::new(RefCell::new(Link::new(life, limits, now)));
        let parts = Parts {
            id: link,
            outbox: outbox.clone(),
            link: Rc::clone(&shared),
            doubt: self.silence.doubt(),
            ended: ctx.address().recipient(),
            turns: Rc::clone(&self.switchboard.turns),
        };
        let proxy = SlaveProxy::new(Rc::clone(&self.env), parts).start();
        let welcome = self.welcome();
        send(&outbox, &Message::Control(Control::Welcome(welcome)));
        log::debug!("slave connected slave={id} link={link}");
        self.slaves.insert(
            link,
            SlaveLink { id, link: shared, outbox, proxy, cluster: hello.cluster, seen, disputes: false },
        );
        self.announce_to(now, link);
    }

    /// Tells one slave of the reign, if there is one whose EPOCH record is durable. One that has failed is told that it
    /// must wait, and then tried first.
    pub(super) fn announce_to(&mut self, now: Millis, link: LinkId) {
        let (Some(reign), Some(cluster)) = (self.reign.announced(), self.log.cluster()) else { return };
        let Some(own) = self.machine.reigns().last().filter(|own| own.reign == reign) else { return };
        let is_needed = self.machine.slave_count() < self.config.min_slaves.max(1);
        let Some(slave) = self.slaves.get_mut(&link) else { return };
        let told = slave.link.borrow_mut().announce(now, &self.quarantine, is_needed);
        match told {
            Announcement::Nothing => {}
            Announcement::Reign => {
                slave.disputes = false;
                let ReignRecord { reign, first: seq, durable } = own;
                let announced = Control::Announce { cluster, reign, seq, durable };
                slave.question(now, &Message::Control(announced));
            }
            Announcement::Trial { bytes } => {
                log::debug!("slave on trial slave={} bytes={bytes}", slave.id);
                slave.question(now, &Message::Trial { bytes: trial(bytes as usize) });
            }
            Announcement::Quarantined { ms, cause } => {
                let reason = cause.to_string();
                send(&slave.outbox, &Message::Control(Control::Quarantined { ms, reason }));
            }
        }
    }

    /// Tells all connected slaves of the reign.
    pub(super) fn announce(&mut self, now: Millis) {
        for link in self.slaves.keys().copied().collect::<Vec<_>>() {
            self.announce_to(now, link);
        }
    }

    /// Gives their places to the slaves that have accepted the reign so far.
    pub(super) fn enlist_all(&mut self, now: Millis) {
        let enlisted = self.slaves.iter().filter_map(|(link, slave)| {
            let room_bytes = slave.link.borrow_mut().take_enlisted()?;
            Some((*link, slave.id.clone(), room_bytes))
        });
        for (link, id, room_bytes) in enlisted.collect::<Vec<_>>() {
            self.step(now, Event::SlaveJoined { id, link, room_bytes });
        }
        self.flush();
    }

    /// Tries the slaves whose quarantine is over, or without which there are too few.
    pub(super) fn admit_waiting(&mut self, now: Millis) {
        let is_quarantined = |slave: &SlaveLink| slave.link.borrow().standing() == Standing::Quarantined;
        let waiting = self.slaves.iter().filter(|(_, slave)| is_quarantined(slave));
        for link in waiting.map(|(link, _)| *link).collect::<Vec<_>>() {
            self.announce_to(now, link);
        }
    }

    #[expect(clippy::too_many_lines, reason = "one arm for each message, each short")]
    pub(super) fn slave_message(&mut self, now: Millis, link: LinkId, message: Message) {
        let Some(slave) = self.slaves.get_mut(&link) else { return };
        let is_active = slave.link.borrow().is_active();
        match (message, is_active) {
            (Message::Ack { through, room_bytes }, true) => {
                let writes = slave.link.borrow_mut().note_acked(now, through, slave.outbox.reached());
                if let Some(writes) = writes {
                    self.step(now, Event::Acked { link, writes, room_bytes });
                } else {
                    self.end_slave(
                        link,
                        EndReason::Protocol(format!("ACK of {through}, which it cannot have")),
                    );
                }
            }
            (Message::Value { tag, version, reign, value }, true) => {
                let read = ReadId::from_tag(tag);
                slave.read_answered(&self.machine);
                self.step(now, Event::Value { link, read, version, reign, value });
            }
            (Message::Missing { tag, .. }, true) => {
                slave.read_answered(&self.machine);
                self.step(now, Event::Missing { link, read: ReadId::from_tag(tag) });
            }
            (Message::Control(Control::Full { number }), true) => {
                let before = slave.link.borrow().refused(number);
                self.step(now, Event::Full { link, before });
            }
            (Message::Control(Control::Holdings { entries, last }), true) => {
                if slave.link.borrow_mut().note_reported(slave.outbox.reached()) {
                    self.step(now, Event::Holdings { link, entries, last });
                } else {
                    let what = "a part of a report that was not asked for".to_owned();
                    self.end_slave(link, EndReason::Protocol(what));
                }
            }
            (Message::Control(Control::Enlisted { reign, seen, room_bytes }), _)
                if slave.link.borrow().may_enlist() =>
            {
                let id = slave.id.clone();
                if self.reign.announced() == Some(reign) && !self.accuses(now, link, seen) {
                    log::debug!("slave enlisted slave={id} reign={reign}");
                    if self.reign.holds_places_back() {
                        if let Some(slave) = self.slaves.get_mut(&link) {
                            slave.link.borrow_mut().enlist(room_bytes);
                        }
                        self.tick_reign(now);
                        return;
                    }
                    self.step(now, Event::SlaveJoined { id, link, room_bytes });
                    // The slot is needed for what the slave says next in the same batch.
                    self.flush();
                    self.tick_reign(now);
                }
            }
            (Message::Control(Control::Outdated { seen }), _) => {
                // Who did not name this cluster cannot know of its reigns.
                if slave.cluster.is_some() && self.reign.announced().is_some() {
                    self.accuses(now, link, Some(seen));
                }
            }
            (Message::Control(Control::Alive), _) => {
                let id = slave.id.clone();
                self.refuse_parked(&id);
            }
            (Message::Control(Control::Took { .. }), _)
                if slave.link.borrow().standing() == Standing::OnTrial =>
            {
                slave.link.borrow_mut().took();
                self.announce_to(now, link);
            }
            (Message::Control(Control::Probe), _) => {
                let mut book = slave.link.borrow_mut();
                if book.is_to_say_alive(slave.outbox.taken()) {
                    send(&slave.outbox, &Message::Control(Control::Alive));
                    book.note_alive(slave.outbox.queued());
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

    /// The machine has given a slave its slot.
    pub(super) fn slave_joined(&mut self, link: LinkId) {
        let Some(slave) = self.slaves.get_mut(&link) else { return };
        if let Some(own) = self.machine.reigns().last() {
            send(&slave.outbox, &Message::Control(Control::Admitted { reign: own.reign }));
        }
        let reads = slave.link.borrow_mut().begin(self.env.now(), slave.outbox.queued());
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
        if testimony == Testimony::LogIsShort && slave.cluster.is_some() && self.reign.may_doubt() {
            let slave = slave.id.clone();
            self.step_reign(now, reign::Event::Accused { slave, seen });
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
        let failed = self.quarantine.ended(now, &slave.link.borrow(), reason.ending());
        let Some(failed) = failed else { return };
        let (ms, failures, cause) = (failed.quarantine_ms(), failed.failures, failed.cause);
        let level = if failures == 1 { log::Level::Warn } else { log::Level::Info };
        log::log!(level, "slave quarantined slave={} ms={ms} failures={failures} cause={cause}", slave.id);
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

impl Handler<SlaveEnded> for MasterActor {
    type Result = ();

    fn handle(&mut self, ended: SlaveEnded, ctx: &mut Self::Context) {
        let turn = self.switchboard.turns.begin("slave lost");
        let now = self.env.now();
        let Some(slave) = self.slaves.remove(&ended.link) else { return };
        self.judge(now, &slave, &ended.reason);
        if slave.link.borrow().is_active() {
            self.step(now, Event::SlaveLost { link: ended.link });
            self.slaves_removed += 1;
            log::info!(
                "slave removed slave={} slaves={} cause={}",
                slave.id,
                self.machine.slave_count(),
                ended.reason
            );
        }
        let reads = slave.link.borrow_mut().take_reads();
        self.give_up_reads(reads);
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
