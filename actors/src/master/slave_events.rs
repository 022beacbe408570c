//! What a master hears of its slaves: registration, messages, the ends of their links.
//!
//! Owns no rule: `machine/welcome.rs` says who is taken in, what slaves have done goes to the master machine, and what they know
//! of the log to the machine of the reign.

use super::slave_link::{Herald, SlaveLink};
use super::{send, told, MasterActor};
use crate::batch::Outbox;
use crate::door::links::reject;
use crate::shown::shown_message;
use crate::slave_proxy::{EndReason, Parts, SlaveEnded, SlaveProxy};
use actix::prelude::*;
use dsm_protocol::command::KEY_MAX;
use dsm_protocol::ids::{LinkId, Millis, Reign, SlaveId};
use dsm_protocol::machine::link::{Life, Link, LinkLimits};
use dsm_protocol::machine::master::{Event, Leaving, ReadId, Testimony};
use dsm_protocol::machine::reign;
use dsm_protocol::machine::welcome::{judge_slave, SlaveReception, Unwelcome, Welcomed};
use dsm_protocol::message::{Control, Hello, HelloRole, Message, Seen};
use std::cell::RefCell;
use std::rc::Rc;

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
        let old = self.slaves.named(id);
        let here = SlaveReception {
            is_stopping: self.reign.is_closing() || self.reign.is_leaving(),
            cluster: self.log.cluster(),
            is_name_taken: old.is_some(),
            is_removed: self.slaves.sent_away(id) == Some(*incarnation)
                && self.machine.removal(id) == Some(Leaving::LetGo),
            slaves: self.machine.slave_count(),
        };
        match judge_slave(id, hello.cluster, here) {
            Welcomed::Yes => self.admit(link, hello, outbox, ctx),
            Welcomed::Waits => {
                if let Some(old) = old {
                    old.challenge(now, *incarnation);
                }
                let id = id.clone();
                if let Some(displaced) = self.slaves.park(link, hello, outbox) {
                    self.refuse_slave(&id, &displaced, Unwelcome::NameAskedAgain { id: id.clone() });
                }
            }
            Welcomed::No(why) => self.refuse_slave(id, &outbox, why),
        }
    }

    fn admit(&mut self, link: LinkId, hello: Hello, outbox: Outbox, ctx: &mut Context<Self>) {
        let HelloRole::Slave { id, incarnation, seen, .. } = hello.role else { return };
        let now = self.env.now();
        if self.slaves.sent_away(&id).is_some_and(|then| then != incarnation) {
            self.slaves.forget_sent_away(&id);
            self.step(now, Event::SlaveStartedAnew { id: id.clone() });
        }
        self.step_reign(now, reign::Event::SlaveCame { slave: id.clone(), cluster: hello.cluster });
        let life = Life { id, incarnation };
        let limits = LinkLimits {
            ack_timeout_ms: self.config.ack_timeout.as_millis() as u64,
            read_bytes_max: self.config.slave_window.as_u64() as usize,
            trial_bytes_max: (self.config.value_max() + KEY_MAX) as u64,
        };
        let book = Rc::new(RefCell::new(Link::new(life, limits, now)));
        let parts = Parts {
            id: link,
            outbox: outbox.clone(),
            link: Rc::clone(&book),
            doubt: self.silence.doubt(),
            ended: ctx.address().recipient(),
            turns: Rc::clone(&self.switchboard.turns),
        };
        let proxy = SlaveProxy::new(Rc::clone(&self.env), parts).start();
        let welcome = self.welcome();
        self.switchboard.welcome(link);
        send(&outbox, &Message::Control(Control::Welcome(welcome)));
        let slave =
            SlaveLink::new(book, outbox, proxy, (hello.cluster, seen), self.switchboard.turns.timings());
        log::debug!("slave connected slave={} link={link}", slave.id());
        self.slaves.insert(link, slave);
        self.announce_to(now, link);
    }

    /// What slaves are told of the reign, if there is one whose EPOCH record is durable.
    fn herald(&self) -> Option<Herald> {
        let (reign, cluster) = (self.reign.announced()?, self.log.cluster()?);
        let own = self.machine.reigns().last().filter(|own| own.reign == reign)?;
        let is_needed = self.machine.slave_count() < self.config.min_slaves.max(1);
        Some(Herald { cluster, own, is_needed })
    }

    /// Tells one slave of the reign.
    pub(super) fn announce_to(&mut self, now: Millis, link: LinkId) {
        if let Some(herald) = self.herald() {
            self.slaves.announce_to(now, link, &herald);
        }
    }

    /// Tells all connected slaves of the reign.
    pub(super) fn announce(&mut self, now: Millis) {
        if let Some(herald) = self.herald() {
            self.slaves.announce(now, &herald);
        }
    }

    /// Gives their places to the slaves that have accepted the reign so far.
    pub(super) fn enlist_all(&mut self, now: Millis) {
        for (link, id, room_bytes) in self.slaves.take_enlisted() {
            self.step(now, Event::SlaveJoined { id, link, room_bytes });
        }
        self.flush();
    }

    /// Tries the slaves whose quarantine is over, or without which there are too few.
    pub(super) fn admit_waiting(&mut self, now: Millis) {
        if let Some(herald) = self.herald() {
            self.slaves.announce_waiting(now, &herald);
        }
    }

    pub(super) fn slave_message(&mut self, now: Millis, link: LinkId, message: Message) {
        let Some(slave) = self.slaves.get(link) else { return };
        let is_active = slave.is_active();
        match (message, is_active) {
            (Message::Ack { through, room_bytes }, true) => {
                if let Some(writes) = slave.note_acked(now, through) {
                    self.step(now, Event::Acked { link, writes, room_bytes });
                } else {
                    slave.end(EndReason::Protocol(format!("ACK of {through}, which it cannot have")));
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
                let before = slave.refused(number);
                self.step(now, Event::Full { link, before });
            }
            (Message::Control(Control::Holdings { entries, last }), true) => {
                if slave.note_reported() {
                    self.step(now, Event::Holdings { link, entries, last });
                } else {
                    let what = "a part of a report that was not asked for".to_owned();
                    slave.end(EndReason::Protocol(what));
                }
            }
            (Message::Control(Control::Enlisted { reign, seen, room_bytes }), _) if slave.may_enlist() => {
                self.enlisted(now, link, reign, seen, room_bytes);
            }
            (Message::Control(Control::Outdated { seen }), _) => {
                // Who did not name this cluster cannot know of its reigns.
                if slave.cluster().is_some() && self.reign.announced().is_some() {
                    self.accuses(now, link, Some(seen));
                }
            }
            (Message::Control(Control::Alive), _) => {
                let id = slave.id().clone();
                self.refuse_parked(&id);
            }
            (Message::Control(Control::Took { .. }), _) if slave.is_on_trial() => {
                slave.took_trial();
                self.announce_to(now, link);
            }
            (Message::Control(Control::Probe), _) => slave.say_alive(),
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
                slave.end(EndReason::Protocol(format!("a slave must not send {said}")));
            }
        }
    }

    /// A slave has accepted a reign; what it had seen before.
    fn enlisted(&mut self, now: Millis, link: LinkId, reign: Reign, seen: Option<Seen>, room_bytes: u64) {
        if self.reign.announced() != Some(reign) || self.accuses(now, link, seen) {
            return;
        }
        let Some(slave) = self.slaves.get(link) else { return };
        log::debug!("slave enlisted slave={} reign={reign}", slave.id());
        if self.reign.holds_places_back() {
            slave.enlist(room_bytes);
        } else {
            let id = slave.id().clone();
            self.step(now, Event::SlaveJoined { id, link, room_bytes });
            // The slot is needed for what the slave says next in the same batch.
            self.flush();
        }
        self.tick_reign(now);
    }

    /// The machine has given a slave its slot.
    pub(super) fn slave_joined(&mut self, link: LinkId) {
        let Some(slave) = self.slaves.get(link) else { return };
        if let Some(own) = self.machine.reigns().last() {
            let reigns = self.machine.reigns().lineage();
            send(slave.outbox(), &Message::Control(Control::Lineage { reigns }));
            send(slave.outbox(), &Message::Control(Control::Admitted { reign: own.reign }));
        }
        let reads = slave.begin(self.env.now());
        // From now on it is asked for values and reports; before that, all it may say is short.
        self.switchboard.trust(link);
        log::info!("slave active slave={} slaves={}", slave.id(), self.machine.slave_count());
        self.refusals.forget(slave.id().as_str());
        self.slaves.give_up_reads(reads);
    }

    /// The other one with this name lives: the newcomer must take another.
    fn refuse_parked(&mut self, id: &SlaveId) {
        if let Some((_, _, outbox)) = self.slaves.unpark(id) {
            self.refuse_slave(id, &outbox, Unwelcome::NameInUse { id: id.clone() });
        }
    }

    /// Says no to a slave: to it, in the log and in INFO. It asks again, less and less often. That this master stops is only
    /// said to it.
    fn refuse_slave(&mut self, id: &SlaveId, outbox: &Outbox, why: Unwelcome) {
        reject(outbox, &why.to_string());
        if why == Unwelcome::Stopping {
            return;
        }
        self.slaves.note_refused();
        let cause = why.cause();
        match self.refusals.is_new(id.as_str(), why, self.env.now()) {
            Some(unsaid) => {
                let more = told::more(unsaid);
                log::warn!(
                    "slave refused slave={id} cause={cause}; its further attempts are not logged{more}"
                );
            }
            None => log::debug!("slave refused again slave={id} cause={cause}"),
        }
    }

    /// The machine has no slot for a slave that has enlisted: others were faster since its hello.
    pub(super) fn slave_without_slot(&mut self, link: LinkId) {
        let Some(slave) = self.slaves.get(link) else { return };
        let (id, outbox) = (slave.id().clone(), slave.outbox().clone());
        self.refuse_slave(&id, &outbox, Unwelcome::NoSlot);
        self.slaves.end(link, EndReason::Refused("all slots for slaves are taken".to_owned()));
    }

    /// An operator has removed a slave: it is drained.
    pub(super) fn slave_leaves(&mut self, link: LinkId) {
        self.slaves.note_sent_away(link);
        if let Some(slave) = self.slaves.get(link) {
            log::info!("slave leaves slave={}: its copies are made elsewhere", slave.id());
        }
    }

    /// A slave is drained: it is told to leave.
    pub(super) fn slave_let_go(&mut self, link: LinkId) {
        let Some(slave) = self.slaves.get(link) else { return };
        let id = slave.id().clone();
        log::info!("slave drained slave={id}: nothing is needed from it, its process may be stopped");
        reject(slave.outbox(), &Unwelcome::Removed { id }.to_string());
        self.slaves.end(link, EndReason::Refused("removed by REMOVE-SLAVE".to_owned()));
    }

    pub(super) fn slave_gone(&mut self, link: LinkId, reason: EndReason) {
        self.slaves.forget_parked(link);
        self.slaves.end(link, reason);
    }

    /// Whether what a slave has seen is not in the log. Then it gets no place in this reign: what it holds may be all that is
    /// left of records that were lost. Said once for each link, and seldom in all; nobody else notices.
    fn accuses(&mut self, now: Millis, link: LinkId, seen: Option<Seen>) -> bool {
        let Some(seen) = seen else { return false };
        let testimony = self.machine.reigns().testimony(&seen);
        let Some(slave) = self.slaves.get_mut(link) else { return false };
        if testimony == Testimony::Agrees {
            return false;
        }
        slave.note_seen(seen);
        // Who did not name this cluster by itself may have it from the announcement.
        if testimony == Testimony::LogIsShort && slave.cluster().is_some() && self.reign.may_doubt() {
            let slave = slave.id().clone();
            self.step_reign(now, reign::Event::Accused { slave, seen });
            return true;
        }
        if !slave.set_aside() {
            return true;
        }
        let id = slave.id().clone();
        if let Some(unsaid) = self.slaves.may_accuse(now) {
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
}

impl Handler<SlaveEnded> for MasterActor {
    type Result = ();

    fn handle(&mut self, ended: SlaveEnded, ctx: &mut Self::Context) {
        let turn = self.switchboard.turns.begin("slave lost");
        let now = self.env.now();
        let Some(slave) = self.slaves.remove(now, &ended) else { return };
        if slave.is_active() {
            self.step(now, Event::SlaveLost { link: ended.link });
            log::info!(
                "slave removed slave={} slaves={} cause={}",
                slave.id(),
                self.machine.slave_count(),
                ended.reason
            );
        }
        if let Some((link, hello, outbox)) = self.slaves.unpark(slave.id()) {
            self.slave_hello(now, link, hello, outbox, ctx);
        }
        self.work(&turn, ctx);
    }
}
