//! What the machines want done: answers, frames, appends, reads of the log.

use super::agenda::{Allowance, STEP_BYTES};
use super::forwards::Foreknowledge;
use super::{long_answers, send, MasterActor};
use crate::door::links::REPORT_BYTES_MAX;
use crate::door::session::ANSWER_BYTES_FREE;
use crate::journal::{LogRequest, NewRecord};
use dsm_protocol::command::{Command, ErrorWord, Reply};
use dsm_protocol::ids::{LinkId, Millis, Stamp};
use dsm_protocol::machine::front;
use dsm_protocol::machine::link::WaitingRead;
use dsm_protocol::machine::master::{Asker, Effect, Leaving, RepairCause, RepairNews};
use dsm_protocol::machine::reign;
use dsm_protocol::message::{Message, Request, StreamUser};

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
        | Effect::Witnessed { .. }
        | Effect::Leaving { .. }
        | Effect::Repair(_) => 0,
    }
}

/// Logs what repair and rebalancing do. What slaves that come and go give it to do is for everybody; the rest follows from writes while
/// slaves are missing or full.
fn say_of_repair(news: RepairNews) {
    let level = |cause| if cause == RepairCause::Counted { log::Level::Debug } else { log::Level::Info };
    match news {
        RepairNews::Began { cause } => {
            let why = match cause {
                RepairCause::SlaveLost => "a slave was lost",
                RepairCause::SlaveJoined => "a slave has joined",
                RepairCause::SlaveLeaves => "a slave is to leave",
                RepairCause::Counted => "keys lack copies",
            };
            log::log!(level(cause), "repair began cause={why:?}");
        }
        RepairNews::Ended { cause, keys, bytes, ms, left } => {
            log::log!(level(cause), "repair ended keys={keys} bytes={bytes} ms={ms} left={left}");
        }
        RepairNews::RebalanceBegan { keys } => log::info!("rebalancing began keys={keys}"),
        RepairNews::RebalanceEnded { keys, bytes, surplus, ms, left } => {
            log::info!("rebalancing ended keys={keys} bytes={bytes} surplus={surplus} ms={ms} left={left}");
        }
    }
}

/// How long the values of an answer are, in bytes.
fn value_bytes(reply: &Reply) -> usize {
    match reply {
        Reply::Value(value) | Reply::Encoded(value) => value.len(),
        Reply::Values(values) => values.iter().flatten().map(bytes::Bytes::len).sum(),
        Reply::Page { keys, .. } => keys.iter().map(bytes::Bytes::len).sum(),
        Reply::Many(replies) => replies.0.iter().map(value_bytes).sum(),
        Reply::Done
        | Reply::NotFound
        | Reply::Count(_)
        | Reply::Integer(_)
        | Reply::Text(_)
        | Reply::Versions(_)
        | Reply::Error(_) => 0,
    }
}

impl MasterActor {
    /// Carries out everything that the machine wants, in order.
    pub(super) fn flush(&mut self) {
        let now = self.env.now();
        // What is performed may step the machine again.
        while let Some(effect) = self.wanted.next_of_master() {
            self.perform(now, effect);
        }
        self.send_to_log();
    }

    /// The same as far as the turn has time for it.
    pub(super) fn perform_within(&mut self, now: Millis, left: &mut Allowance<'_>) {
        while !left.is_spent() {
            let Some(effect) = self.wanted.next_of_master() else { return };
            left.spend(1 + bytes_of(&effect) / STEP_BYTES);
            self.perform(now, effect);
        }
    }

    fn perform(&mut self, now: Millis, effect: Effect) {
        match effect {
            Effect::Reply { to, reply } => self.answered(now, to, reply),
            Effect::Append { write, change, expires, after } => {
                self.log.append(NewRecord { write, change, expires, after });
            }
            Effect::Joined { link } => self.slave_joined(link),
            Effect::NoSlot { link } => self.slave_without_slot(link),
            Effect::SlotFree { link } => self.announce_to(now, link),
            Effect::SendWrite { link, version, reign, key, value } => {
                if let Some(slave) = self.slaves.active(link) {
                    slave.write(now, Stamp { version, reign }, &key, &value);
                }
            }
            Effect::SendRead { link, read, version, reign, key, bytes } => {
                if let Some(slave) = self.slaves.active(link) {
                    self.switchboard.expect(link, bytes as usize);
                    let stamp = Stamp { version, reign };
                    slave.ask(now, WaitingRead { read, stamp, key, bytes }, &mut self.machine);
                }
            }
            Effect::SendDrop { link, version, reign, key } => {
                if let Some(slave) = self.slaves.active(link) {
                    send(slave.outbox(), &Message::Drop { version, reign, key });
                }
            }
            Effect::SendHoldingsNext { link } => {
                if let Some(slave) = self.slaves.active(link) {
                    self.switchboard.expect(link, REPORT_BYTES_MAX);
                    slave.ask_for_report();
                }
            }
            Effect::ReadLog { read, place, version, key } => self.read_log(read, place, version, key),
            Effect::Repair(news) => say_of_repair(news),
            Effect::Leaving { link, state: Leaving::Draining } => self.slave_leaves(link),
            Effect::Leaving { link, state: Leaving::LetGo } => self.slave_let_go(link),
            Effect::Witnessed { link, stamp } => {
                let Some(id) = self.slaves.active(link).map(|slave| slave.id().clone()) else { return };
                if let Some(unsaid) = self.slaves.may_accuse(now) {
                    log::error!(
                        "slave holds a version that the log lacks: was the log replaced or cut? slave={id} version={stamp} unsaid={unsaid}"
                    );
                }
            }
        }
    }

    /// Sends an answer to its slot, with which the request's permit is given back.
    pub(super) fn reply(&mut self, to: Asker, reply: &Reply) {
        if self.clients.answer(to, reply) {
            self.switchboard.errors.note(reply);
            self.close_after_unknown(self.env.now(), to, reply);
        }
    }

    /// Sends an answer that may be longer than was foreseen: of another client's write that was in front of it, or of the
    /// other master, which knew its length before we did. What was not foreseen and has no room is not kept.
    pub(super) fn reply_if_it_fits(&mut self, to: Asker, reply: Reply) {
        let bytes = value_bytes(&reply);
        let bytes_max = self.config.max_pipeline_bytes.as_u64() as usize;
        // What was changed is told in any case: an error would say that it was not.
        let fits = || {
            let session = self.clients.get(to.session);
            session.is_none_or(|session| {
                session.may_have_changed(to.tag) || session.fits(to.tag, bytes, bytes_max)
            })
        };
        if bytes <= ANSWER_BYTES_FREE || fits() {
            match reply {
                Reply::Values(values) if long_answers::is_long(&values) => {
                    if let Some(values) = self.clients.begin_long_answer(to, values) {
                        self.reply(to, &Reply::Values(values));
                    }
                }
                other => self.reply(to, &other),
            }
        } else {
            let why = "earlier answers must be taken first (--max-pipeline-bytes)";
            self.reply(to, &Reply::error(ErrorWord::Busy, why));
        }
    }

    /// Does what the front wants; what it `releases` has its turn later, in front of all else.
    pub(super) fn perform_front(&mut self, now: Millis, effect: front::Effect, releases: bool) {
        match effect {
            front::Effect::Serve { asker, command: Command::Failover, .. } => self.failover(asker),
            front::Effect::Serve { asker, command: Command::ChangeMembers { order }, .. } => {
                self.log.ask(LogRequest::ChangeMembers { order, asker });
            }
            front::Effect::Serve { asker, deadline, command } if releases => {
                self.agenda.release(asker, deadline, command);
            }
            front::Effect::Serve { asker, deadline, command } => self.serve(now, asker, deadline, command),
            front::Effect::Forward { link, id, stream, generation, command } => {
                self.forward(link, Request { id, stream, generation, command });
            }
            front::Effect::StreamClosed { link, stream } => self.peers.close_stream(link, stream),
            front::Effect::Reply { to, reply } => self.reply_if_it_fits(to, reply),
            front::Effect::CloseSession { session } => {
                if let Some(session) = self.clients.get(session) {
                    session.close();
                }
            }
        }
    }

    /// Sends a request to another master.
    fn forward(&mut self, link: LinkId, request: Request) {
        let (board, machine) = (&*self.switchboard, &self.machine);
        // A master without users names none: the other one is to have the same.
        let user = self.switchboard.accounts.is_guarded().then(|| {
            let asker = self.front.asker_of(request.id);
            let session = asker.and_then(|asker| Some((self.clients.get(asker.session)?, asker.tag)));
            session.map_or(StreamUser::Anonymous, |(session, tag)| session.asks_for(tag))
        });
        self.peers.forward(link, (request, user), &Foreknowledge { board, machine });
    }

    /// Goes on with what is to be sent to other masters.
    pub(super) fn forward_on(&mut self, left: &mut Allowance<'_>) {
        let (board, machine) = (&*self.switchboard, &self.machine);
        self.peers.forward_on(&Foreknowledge { board, machine }, left);
    }

    /// An operator wants the standby to serve.
    fn failover(&mut self, asker: Asker) {
        let now = self.env.now();
        let deadline = now.plus(self.config.request_timeout.as_millis() as u64);
        self.step_reign(now, reign::Event::FailoverAsked { asker, deadline });
    }
}
