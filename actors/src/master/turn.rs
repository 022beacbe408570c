//! A turn of the master: what it does, in which order, and what it leaves for the next one.
//!
//! Owns no state: [`Agenda`](super::agenda::Agenda) has what waits. However much there is, a turn ends after a bounded number
//! of steps and bytes, and everybody else has theirs before the next.

use super::agenda::{Allowance, Todo, STEPS_A_LOOK};
use super::{MasterActor, Resume};
use crate::door::switchboard::Arrived;
use crate::journal::WrittenRecord;
use crate::turns::Turn;
use actix::prelude::*;
use dsm_protocol::ids::{Millis, SessionId};
use dsm_protocol::machine::{front, master, reign};
use dsm_protocol::message::{Control, Message as Wire};
use std::time::Duration;

/// How often the master looks at its clock, its deadlines and its role.
const TICK: Duration = Duration::from_millis(25);

impl MasterActor {
    /// Looks at the clock, the deadlines and the role.
    pub(super) fn tick(&mut self, ctx: &mut Context<Self>) {
        let turn = self.switchboard.turns.begin("tick");
        let now = self.env.now();
        self.observe(now);
        self.silence.tick();
        self.log.advance();
        self.step(now, master::Event::Tick);
        if self.reign.is_settled() {
            let (wall, uptime) = (self.env.wall_clock(), self.env.uptime());
            // After them: a pause since this turn began must not count as sleep.
            let then = self.env.now();
            self.step(then, master::Event::Clock { wall, uptime });
            if !self.reign.is_stopping() {
                self.step(now, master::Event::Expire);
            }
        }
        #[cfg(feature = "testing")]
        crate::test_hooks::looked_at_clock(&self.machine);
        self.step_front(now, front::Event::Tick);
        self.tick_reign(now);
        self.perform_reign(now);
        self.hear(now);
        self.perform_reign(now);
        self.relieve(now);
        self.refuse_waiting(now);
        self.admit_waiting(now);
        self.look_after_health(now);
        self.tell_seq(now);
        self.tell_view();
        self.ops.note(now, self.switchboard.gate.counters.commands.get());
        self.log.answer_waiting(&self.machine);
        if self.reign.is_settled() || self.log.is_own() {
            self.log.weigh(self.machine.directory().live_bytes());
        }
        self.work(&turn, ctx);
        ctx.run_later(TICK, Self::tick);
    }

    /// Does what has come, in its order, for as long as a turn may take; the rest is done in turns of its own.
    pub(super) fn work(&mut self, turn: &Turn, ctx: &mut Context<Self>) {
        let _flushing = self.switchboard.flusher.turn();
        let now = self.env.now();
        self.observe(now);
        self.log.advance();
        let mut left = Allowance::new(turn);
        self.clients.encode_part(&mut left);
        self.forward_on(&mut left);
        self.perform_within(now, &mut left);
        self.slaves.read_on(&self.machine, &mut left);
        while !left.is_spent() {
            let Some(todo) = self.agenda.next() else { break };
            left.spend(if is_short(&todo) { 1 } else { STEPS_A_LOOK });
            match todo {
                Todo::Arrived(arrived) => self.arrived(now, arrived, ctx),
                Todo::Written(WrittenRecord { write, version, places }) => {
                    self.log.note_written(version.seq);
                    self.step(now, master::Event::Written { write, version, places });
                }
                Todo::Refused(write, word, detail) => {
                    self.step(now, master::Event::NotWritten { write, word, detail });
                }
                Todo::Serve { asker, deadline, command } => self.serve(now, asker, deadline, command),
                Todo::Depart => {
                    self.step_reign(now, reign::Event::Answered);
                    self.perform_reign(now);
                }
            }
            self.perform_within(now, &mut left);
        }
        self.resume_congested(now);
        self.perform_within(now, &mut left);
        while !left.is_spent() && self.clients.is_behind() {
            self.clients.encode_part(&mut left);
        }
        self.slaves.tidy(&mut left);
        self.send_to_log();
        self.log.advance();
        self.turn_ended(now);
        self.perform_reign(now);
        self.look_after_reads(now, ctx);
        self.resume_later(ctx);
    }

    /// Whether something that has come is not done yet.
    pub(super) fn is_behind(&self) -> bool {
        self.agenda.is_behind() || self.wanted.is_behind()
    }

    /// Sees to it that there is another turn if something is left to be done, once everybody else has had one.
    pub(super) fn resume_later(&mut self, ctx: &mut Context<Self>) {
        let is_left = self.is_behind()
            || self.machine.has_chores()
            || self.clients.is_behind()
            || self.peers.is_behind()
            || self.slaves.is_behind();
        if is_left && self.agenda.call_for_turn() {
            let master = ctx.address();
            // Not from here: actix empties the mailbox before it lets anybody else run.
            actix::spawn(async move {
                tokio::task::yield_now().await;
                master.do_send(Resume);
            });
        }
    }

    /// Notes that the process runs.
    pub(super) fn observe(&mut self, now: Millis) {
        if self.silence.observe(now) {
            self.machine.restart_read_timeouts(now);
            self.peers.restart_lags(now);
        }
    }

    /// Advances the master machine and keeps what it wants done for the end of the turn.
    pub(super) fn step(&mut self, now: Millis, event: master::Event) {
        self.wanted.step_master(&mut self.machine, now, event);
    }

    /// Advances the front and carries out at once what it wants done.
    pub(super) fn step_front(&mut self, now: Millis, event: front::Event) {
        // What the front holds back is served in its turn: there may be thousands.
        let releases = matches!(event, front::Event::StanceChanged);
        let mut effects = self.wanted.take_front();
        self.front.step(now, self.reign.stance(), event, &mut effects);
        for effect in effects.drain(..) {
            self.perform_front(now, effect, releases);
        }
        self.wanted.give_back(effects);
    }

    fn arrived(&mut self, now: Millis, arrived: Arrived, ctx: &mut Context<Self>) {
        match arrived {
            Arrived::Opened(session) => {
                if session.origin().kind() == front::Kind::Native {
                    let welcome = self.welcome();
                    session.send(&Wire::Control(Control::Welcome(welcome)));
                }
                self.let_go_if_leaving(&session);
                self.clients.open(session);
            }
            Arrived::Request { asker, command } => self.request(now, asker, command),
            Arrived::Closed(session) => self.session_closed(now, session),
            // Each of them is heard, with the drop of `said`, once it is dealt with.
            Arrived::SlaveHello { link, hello, outbox, said: _said } => {
                self.slave_hello(now, link, hello, outbox, ctx);
            }
            Arrived::Slave { link, message, said: _said } => self.slave_message(now, link, message),
            Arrived::SlaveGone { link, reason } => self.slave_gone(link, reason),
            Arrived::PeerHello { link, hello, outbox, identity, said: _said } => {
                self.peer_hello(link, hello, outbox, identity);
            }
            Arrived::Peer { link, message, said: _said } => self.peer_message(now, link, message),
            Arrived::PeerGone { link } => self.peer_gone(now, link),
            Arrived::DialedUp { generation, address, welcome, outbox } => {
                self.dialed_up(now, (generation, address), welcome, outbox);
            }
            Arrived::Dialed { generation, message, said: _said } => {
                self.dialed_message(now, generation, message);
            }
            Arrived::DialRefused { address, reason } => self.dial_refused(now, address, reason),
            Arrived::DialedDown { generation } => self.dialed_down(now, generation),
            Arrived::LogRead { read, result } => self.step(now, master::Event::LogRead { read, result }),
        }
        self.perform_reign(now);
    }

    /// A session is over.
    pub(super) fn session_closed(&mut self, now: Millis, session: SessionId) {
        if self.clients.close(session) {
            self.step_reign(now, reign::Event::SessionClosed { session });
        }
        self.step_front(now, front::Event::SessionClosed { session });
    }
}

/// Whether this takes some microseconds, as all that is frequent does. After anything else the turn looks at the clock.
fn is_short(todo: &Todo) -> bool {
    match todo {
        Todo::Arrived(
            Arrived::Slave { message, .. } | Arrived::Peer { message, .. } | Arrived::Dialed { message, .. },
        ) => !matches!(message, Wire::Control(Control::Holdings { .. })),
        Todo::Arrived(arrived) => matches!(arrived, Arrived::Request { .. }),
        Todo::Written(_) | Todo::Refused(..) | Todo::Serve { .. } => true,
        Todo::Depart => false,
    }
}
