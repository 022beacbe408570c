//! What the machines want done: answers, frames, appends, reads of the log.

use super::agenda::{Allowance, STEP_BYTES};
use super::forwards::Forward;
use super::{long_answers, send, MasterActor, SlaveLink};
use crate::batch::Outbox;
use crate::door::session::ANSWER_BYTES_FREE;
use crate::slave_proxy::{End, EndReason};
use dsm_protocol::command::{Command, ErrorWord, Reply};
use dsm_protocol::frame;
use dsm_protocol::ids::{LinkId, Millis, Stamp};
use dsm_protocol::machine::front;
use dsm_protocol::machine::link::{ReadWindow, WaitingRead};
use dsm_protocol::machine::master::{Asker, Effect, Event, Master};
use dsm_protocol::machine::reign;
use dsm_protocol::message::{Control, Message, Request};
use std::collections::BTreeMap;

/// To look at reads of a slave that have waited counts as so many steps.
const LOOKED_AT_STEPS: usize = 64;

/// So many entries of what is given up are freed at once.
const FREED_AT_ONCE: usize = 512;

/// Bytes that are gone through to carry an effect out.
fn bytes_of(effect: &Effect) -> usize {
    match effect {
        Effect::SendWrite { value, .. } => value.len(),
        Effect::Reply { reply: Reply::Value(value), .. } => value.len(),
        Effect::Reply { .. }
        | Effect::Append { .. }
        | Effect::Joined { .. }
        | Effect::NoSlot { .. }
        | Effect::SlotFree { .. }
        | Effect::SendRead { .. }
        | Effect::SendDrop { .. }
        | Effect::SendHoldingsNext { .. }
        | Effect::ReadLog { .. }
        | Effect::Witnessed { .. } => 0,
    }
}

impl SlaveLink {
    /// Notes that the write that was appended last is on its way.
    fn note_write(&self, now: Millis) {
        self.link.borrow_mut().note_write(now, self.outbox.queued());
    }

    /// Asks for an answer outside the count.
    pub(super) fn question(&self, now: Millis, message: &Message) {
        send(&self.outbox, message);
        self.link.borrow_mut().note_question(now, self.outbox.queued());
    }

    /// Sends a read, or lets it wait for room in the window.
    fn ask(&self, now: Millis, read: WaitingRead, machine: &mut Master) {
        let mut book = self.link.borrow_mut();
        if book.reads_mut().send_now(&read, |read| machine.is_reading(read)) {
            send_read(&self.outbox, &read);
        } else {
            let id = read.read;
            let bytes = book.reads_mut().wait(read);
            machine.read_waits(now, id, bytes);
        }
    }

    /// Notes the answer to the oldest read, and sends what has waited for it and is still wanted.
    pub(super) fn read_answered(&self, machine: &Master) {
        let was_asked = self.link.borrow_mut().reads_mut().answered();
        if was_asked {
            self.read_on(machine);
        }
    }

    /// Sends what has waited for room and is still wanted, as far as that is found in one step.
    fn read_on(&self, machine: &Master) {
        let mut book = self.link.borrow_mut();
        book.reads_mut().go_on(|read| machine.is_reading(read), |read| send_read(&self.outbox, read));
    }
}

/// The slave on `link` if it has a place in the reign: nobody else is sent what the machine wants sent.
fn active(slaves: &BTreeMap<LinkId, SlaveLink>, link: LinkId) -> Option<&SlaveLink> {
    slaves.get(&link).filter(|slave| slave.link.borrow().is_active())
}

fn send_read(outbox: &Outbox, read: &WaitingRead) {
    outbox.append(|out| frame::encode_read(read.read.tag(), read.stamp, &read.key, out));
}

impl MasterActor {
    /// Carries out everything that the machine wants, in order.
    pub(super) fn flush(&mut self) {
        let now = self.env.now();
        // What is performed may step the machine again.
        while let Some(effect) = self.wanted.next_of_master() {
            self.perform(now, effect);
        }
        self.log.send_appends();
    }

    /// The same as far as the turn has time for it.
    pub(super) fn perform_within(&mut self, now: Millis, left: &mut Allowance<'_>) {
        while !left.is_spent() {
            let Some(effect) = self.wanted.next_of_master() else { return };
            left.spend(1 + bytes_of(&effect) / STEP_BYTES);
            self.perform(now, effect);
        }
    }

    /// Goes on with the reads of slaves that wait behind many that have gone elsewhere.
    pub(super) fn read_on(&mut self, left: &mut Allowance<'_>) {
        let is_behind = |slave: &&SlaveLink| slave.link.borrow().reads().is_behind();
        for slave in self.slaves.values().filter(is_behind) {
            slave.read_on(&self.machine);
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

    /// Gives up a slave's window of reads.
    pub(super) fn give_up_reads(&mut self, reads: ReadWindow) {
        self.reads_waited += reads.waited();
        let waiting = reads.into_waiting();
        if !waiting.is_empty() {
            self.litter.push(waiting);
        }
    }

    fn perform(&mut self, now: Millis, effect: Effect) {
        match effect {
            Effect::Reply { to, reply } => self.reply_if_it_fits(to, reply),
            Effect::Append { write, change } => self.log.append(write, change),
            Effect::Joined { link } => self.slave_joined(link),
            Effect::NoSlot { link } => self.slave_without_slot(link),
            Effect::SlotFree { link } => self.announce_to(now, link),
            Effect::SendWrite { link, version, reign, key, value } => {
                if let Some(slave) = active(&self.slaves, link) {
                    let stamp = Stamp { version, reign };
                    slave.outbox.append_pieces(|out| frame::encode_write(stamp, &key, &value, out));
                    slave.note_write(now);
                }
            }
            Effect::SendRead { link, read, version, reign, key, bytes } => {
                if let Some(slave) = active(&self.slaves, link) {
                    if bytes as usize > self.config.value_max() {
                        self.switchboard.expect(link, bytes as usize);
                    }
                    let stamp = Stamp { version, reign };
                    slave.ask(now, WaitingRead { read, stamp, key, bytes }, &mut self.machine);
                }
            }
            Effect::SendDrop { link, version, reign, key } => {
                if let Some(slave) = active(&self.slaves, link) {
                    send(&slave.outbox, &Message::Drop { version, reign, key });
                }
            }
            Effect::SendHoldingsNext { link } => {
                if let Some(slave) = active(&self.slaves, link) {
                    send(&slave.outbox, &Message::Control(Control::HoldingsNext));
                    slave.link.borrow_mut().note_report_asked(slave.outbox.queued());
                }
            }
            Effect::ReadLog { read, place, version, key } => self.read_log(read, place, version, key),
            Effect::Witnessed { link, stamp } => {
                let Some(id) = active(&self.slaves, link).map(|slave| slave.id.clone()) else { return };
                if let Some(unsaid) = self.may_accuse(now) {
                    log::error!(
                        "slave holds a version that the log lacks: was the log replaced or cut? slave={id} version={stamp} unsaid={unsaid}"
                    );
                }
            }
        }
    }

    /// Sends an answer to its slot, with which the request's permit is given back.
    pub(super) fn reply(&mut self, to: Asker, reply: &Reply) {
        let Some(session) = self.sessions.get(&to.session) else { return };
        if session.answer(to.tag, reply) {
            self.switchboard.errors.note(reply);
        }
    }

    /// Sends an answer that may be longer than was foreseen: of another client's write that was in front of it, or of the
    /// other master, which knew its length before we did. What was not foreseen and has no room is not kept.
    fn reply_if_it_fits(&mut self, to: Asker, reply: Reply) {
        let bytes = match &reply {
            Reply::Value(value) => value.len(),
            Reply::Values(values) => values.iter().flatten().map(bytes::Bytes::len).sum(),
            Reply::Done | Reply::NotFound | Reply::Count(_) | Reply::Text(_) | Reply::Error(_) => 0,
        };
        let bytes_max = self.config.max_pipeline_bytes.as_u64() as usize;
        let fits =
            || self.sessions.get(&to.session).is_none_or(|session| session.fits(to.tag, bytes, bytes_max));
        if bytes <= ANSWER_BYTES_FREE || fits() {
            match reply {
                Reply::Values(values) if long_answers::is_long(&values) => self.begin_long_answer(to, values),
                other => self.reply(to, &other),
            }
        } else {
            let why = "earlier answers must be taken first (--max-pipeline-bytes)";
            self.reply(to, &Reply::error(ErrorWord::Busy, why));
        }
    }

    pub(super) fn end_slave(&self, link: LinkId, reason: EndReason) {
        if let Some(slave) = self.slaves.get(&link) {
            slave.proxy.do_send(End(reason));
        }
    }

    /// Does what the front wants; what it `releases` has its turn later, in front of all else.
    pub(super) fn perform_front(&mut self, now: Millis, effect: front::Effect, releases: bool) {
        match effect {
            front::Effect::Serve { asker, command: Command::Failover, .. } => self.failover(asker),
            front::Effect::Serve { asker, deadline, command } if releases => {
                self.agenda.release(asker, deadline, command);
            }
            front::Effect::Serve { asker, deadline, command } => {
                self.step(now, Event::Request { asker, deadline, command });
            }
            front::Effect::Forward { id, stream, generation, command } => {
                self.forward(Forward::Request(Request { id, stream, generation, command }));
            }
            front::Effect::StreamClosed { stream } => self.forward(Forward::StreamClosed { stream }),
            front::Effect::Reply { to, reply } => self.reply_if_it_fits(to, reply),
            front::Effect::CloseSession { session } => {
                if let Some(session) = self.sessions.get(&session) {
                    session.close();
                }
            }
        }
    }

    /// An operator wants the standby to serve.
    fn failover(&mut self, asker: Asker) {
        let now = self.env.now();
        let deadline = now.plus(self.config.request_timeout.as_millis() as u64);
        let standbys = self.peers.len();
        self.step_reign(now, reign::Event::FailoverAsked { asker, deadline, standbys });
    }
}
