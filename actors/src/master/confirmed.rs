//! Answers that wait until others confirm that this master leads, where the log is kept by several.
//!
//! `dsm_protocol::machine::confirm` has the rules. Where who leads holds a lock, nothing here waits.

use super::MasterActor;
use crate::door::origin::Origin;
use crate::journal::LogRequest;
use dsm_protocol::command::{Command, ErrorWord, Reply};
use dsm_protocol::ids::Millis;
use dsm_protocol::machine::confirm::UnconfirmedFate;
use dsm_protocol::machine::front;
use dsm_protocol::machine::master::{self, Asker};

impl MasterActor {
    /// The front lets a request through.
    pub(super) fn serve(&mut self, now: Millis, asker: Asker, deadline: Millis, command: Command) {
        if self.log.confirms() {
            self.confirmations.request(asker, deadline, &command);
        }
        self.step(now, master::Event::Request { asker, deadline, command });
    }

    /// The machine has an answer.
    pub(super) fn answered(&mut self, now: Millis, to: Asker, reply: Reply) {
        if !self.log.confirms() {
            return self.reply_if_it_fits(to, reply);
        }
        let mut unheard = Vec::new();
        if let Some(reply) = self.confirmations.answered(to, reply, &mut unheard) {
            self.reply_if_it_fits(to, reply);
        }
        self.ask_again(now, unheard);
    }

    /// What the turn has for the log goes there: its appends, and a round for its answers.
    pub(super) fn send_to_log(&mut self) {
        self.log.send_appends();
        if let Some(round) = self.confirmations.ask() {
            self.log.ask(LogRequest::Confirm { round });
        }
    }

    /// Others have said whether this master led.
    pub(super) fn confirmed(&mut self, now: Millis, round: u64, leads: bool) {
        if leads {
            let mut answers = Vec::new();
            self.confirmations.confirmed(round, &mut answers);
            for (to, reply) in answers {
                self.reply_if_it_fits(to, reply);
            }
        } else {
            let mut unheard = Vec::new();
            self.confirmations.refused(round, &mut unheard);
            self.ask_again(now, unheard);
        }
    }

    /// Nobody knows what a write has changed: as over a link that is lost, what a Redis client has pipelined after it must not run.
    pub(super) fn close_after_unknown(&mut self, now: Millis, to: Asker, reply: &Reply) {
        let is_unknown = matches!(reply, Reply::Error(error) if error.word == ErrorWord::Unknown);
        if !is_unknown || !self.log.confirms() {
            return;
        }
        let Some(session) = self.clients.get(to.session) else { return };
        if let Origin::Resp = session.origin() {
            session.close();
            self.step_front(now, front::Event::SessionClosed { session: to.session });
        }
    }

    /// What nobody has confirmed is asked of whoever leads by now, if it only reads.
    fn ask_again(&mut self, now: Millis, unheard: Vec<UnconfirmedFate>) {
        for request in unheard {
            match request {
                UnconfirmedFate::Unknown(asker) => {
                    let why = "another master leads, and may have the write or not";
                    self.reply(asker, &Reply::error(ErrorWord::Unknown, why));
                }
                UnconfirmedFate::AskAgain(asker, deadline, command) => {
                    let Some(session) = self.clients.get(asker.session) else { continue };
                    let kind = session.origin().kind();
                    self.step_front(now, front::Event::Request { asker, kind, deadline, command });
                }
            }
        }
    }
}
