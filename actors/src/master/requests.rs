//! Requests from their arrival to the front: whether there is room for their answers, and what waits for it.
//!
//! Owns no rule of order: a session's requests wait in the session, the sessions in [`RoomLine`](super::room_line::RoomLine).

use super::room_line::RESUMED_MAX;
use super::MasterActor;
use crate::door::counters::count;
use crate::door::origin::Origin;
use crate::door::session::Room;
use crate::shown::shown_key;
use dsm_protocol::command::{AnswerLength, Command, ErrorWord, Operands, Reply};
use dsm_protocol::ids::{Millis, SessionId};
use dsm_protocol::machine::front::{self, Front};
use dsm_protocol::machine::master::{Asker, Master};
use std::rc::Rc;

/// What the read of one key among many takes beside its value until all are there, in bytes: what is known of it in the
/// machine, the question to the slave, and the value's place in the answer.
const PART_BYTES: usize = 512;

/// Of more keys than this the values are not foreseen one by one.
const FORESEEN_KEYS_MAX: usize = 2048;

/// About how long the answer to STATUS is, in bytes.
const STATUS_BYTES: usize = 8 * 1024;

impl MasterActor {
    /// A request has come: it is executed, or put aside until there is room for its answer.
    pub(super) fn request(&mut self, now: Millis, asker: Asker, command: Command) {
        let Some(session) = self.clients.get(asker.session) else { return };
        // Closed after an unknown write: what the client had pipelined after it must not run.
        if session.is_closed() && !matches!(session.origin(), Origin::Forwarded { .. }) {
            return;
        }
        let parked = &self.switchboard.gate.counters.parked;
        if session.has_parked() {
            count(parked);
            session.park(now, asker.tag, command, Room::NotHere);
            return;
        }
        let bytes_max = self.config.max_pipeline_bytes.as_u64() as usize;
        let gather_bytes_max = self.config.gather_bytes_max();
        // To look up more keys than that takes its time: it is found out when they are read.
        let is_narrow = (2..=FORESEEN_KEYS_MAX).contains(&command.keys());
        if is_narrow && written_bytes(&self.machine, &command) > gather_bytes_max {
            let why =
                format!("the values have more than {gather_bytes_max} bytes in all (--max-pipeline-bytes)");
            self.reply(asker, &Reply::error(ErrorWord::Bad, why));
            return;
        }
        let answer_bytes = foreseen((&self.machine, &self.front), asker.session, &command, bytes_max);
        if answer_bytes > 0 {
            match session.expect(asker.tag, answer_bytes, bytes_max) {
                Room::Yes => {}
                room @ (Room::NotHere | Room::NotInAll) => {
                    count(parked);
                    session.park(now, asker.tag, command, room);
                    self.line.set_aside(now, asker.session, room);
                    return;
                }
            }
        }
        self.execute(now, asker, command);
    }

    /// Goes on with sessions whose requests were put aside until earlier answers have left.
    pub(super) fn resume_congested(&mut self, now: Millis) {
        let mut round = self.line.round();
        while let Some(waiting) = self.line.next(&mut round) {
            let outcome = self.resume(now, waiting.session());
            self.line.resumed(now, waiting, outcome, &mut round);
        }
    }

    /// Executes the first request of a session that was put aside, if there is room for its answer; whether there may
    /// be more.
    fn resume(&mut self, now: Millis, id: SessionId) -> Result<bool, Room> {
        let session = match self.clients.get(id) {
            Some(session) if !session.is_closed() => Rc::clone(session),
            Some(_) | None => return Ok(false),
        };
        let bytes_max = self.config.max_pipeline_bytes.as_u64() as usize;
        let known = (&self.machine, &self.front);
        match session.unpark(now, bytes_max, |command| foreseen(known, id, command, bytes_max))? {
            Some((tag, command)) => {
                self.execute(now, Asker { session: id, tag }, command);
                Ok(true)
            }
            None => Ok(false),
        }
    }

    /// Cuts a client that has taken nothing for long while others wait for the room that its answers take, one at a time.
    pub(super) fn relieve(&mut self, now: Millis) {
        if self.line.has_waited(now) {
            self.clients.cut_deafest();
        }
    }

    /// Refuses what has waited for room among the answers of all for as long as a request may take: those who take theirs
    /// slowly, and yet take them, are not cut for it.
    pub(super) fn refuse_waiting(&mut self, now: Millis) {
        let limit_ms = self.config.request_timeout.as_millis() as u64;
        let has_waited = |id| self.clients.has_waited_for_others(id, now, limit_ms);
        let late = self.line.late(has_waited);
        let mut left = RESUMED_MAX;
        for id in late {
            while let Some(tag) = self.clients.get(id).and_then(|session| session.give_up(now, limit_ms)) {
                count(&self.switchboard.gate.counters.busy);
                let why = "the answers of others take all the room (--max-answer-bytes)";
                self.reply(Asker { session: id, tag }, &Reply::error(ErrorWord::Busy, why));
                // What stands after it may need no room.
                loop {
                    if left == 0 {
                        self.line.is_first_again(id);
                        return;
                    }
                    left -= 1;
                    match self.resume(now, id) {
                        Ok(true) => {}
                        // Who waits for others still stands in the line.
                        Ok(false) | Err(Room::NotInAll) => break,
                        Err(room) => {
                            self.line.set_aside(now, id, room);
                            break;
                        }
                    }
                }
            }
        }
    }

    fn execute(&mut self, now: Millis, asker: Asker, command: Command) {
        let Some(session) = self.clients.get(asker.session) else { return };
        let kind = session.origin().kind();
        if log::log_enabled!(log::Level::Debug) {
            log_operation(asker, &command);
        }
        if command == Command::Status {
            let reply = Reply::Text(self.status());
            self.reply(asker, &reply);
            return;
        }
        let deadline = now.plus(self.config.request_timeout.as_millis() as u64);
        self.step_front(now, front::Event::Request { asker, kind, deadline, command });
    }
}

/// How long the values that `command` asks for are, as far as they are written.
pub(super) fn written_bytes(machine: &Master, command: &Command) -> usize {
    let written =
        |key: &bytes::Bytes| machine.directory().get(key).map_or(0, |entry| entry.place.bytes as usize);
    match (command.facts().answer, command.operands()) {
        (AnswerLength::Values, Operands::Key(key) | Operands::KeyAndValue(key, _)) => written(key),
        (AnswerLength::Values, Operands::Compared(key, change)) if change.answers_old() => written(key),
        (AnswerLength::Values, Operands::Keys(keys)) => keys.iter().map(written).sum(),
        // What a script reads of them is its business.
        (AnswerLength::Values, Operands::Script(_)) => 0,
        // What its commands before have made of a key counts: the machine finds that out.
        (AnswerLength::Values, Operands::All(_)) => 0,
        (AnswerLength::Values | AnswerLength::Short | AnswerLength::Status, _) => 0,
    }
}

/// How much the answer to `command` will take while it waits at most, in bytes, as far as the directory and what the
/// session itself writes in front of it tell. The values of several keys together are refused above `bytes_max`.
fn foreseen(
    (machine, front): (&Master, &Front),
    session: SessionId,
    command: &Command,
    bytes_max: usize,
) -> usize {
    let value = |key: &bytes::Bytes| machine.foreseen_bytes(session, key).max(front.longest_waiting(session));
    match (command.facts().answer, command.operands()) {
        (AnswerLength::Values, Operands::Key(key) | Operands::KeyAndValue(key, _)) => value(key),
        (AnswerLength::Values, Operands::Compared(key, change)) if change.answers_old() => value(key),
        // To look up tens of thousands takes its time, and is done when they are read. More than that they are not.
        (AnswerLength::Values, Operands::Keys(keys)) if keys.len() > FORESEEN_KEYS_MAX => {
            bytes_max + keys.len() * PART_BYTES
        }
        (AnswerLength::Values, Operands::Keys(keys)) => {
            let values = keys.iter().map(value).sum::<usize>();
            let values = if keys.len() > 1 { values.min(bytes_max) } else { values };
            values + keys.len() * PART_BYTES
        }
        // About: it may answer something else.
        (AnswerLength::Values, Operands::Script(call)) => {
            let keys = call.keys.iter().take(FORESEEN_KEYS_MAX);
            keys.map(value).sum::<usize>().min(bytes_max) + PART_BYTES
        }
        (AnswerLength::Values, Operands::All(transaction)) => {
            let mut asked = transaction.commands.iter();
            let answers = asked.try_fold(0, |sum, command| {
                let sum = sum + foreseen((machine, front), session, command, bytes_max);
                if sum < bytes_max {
                    Ok(sum)
                } else {
                    Err(bytes_max)
                }
            });
            answers.unwrap_or_else(|most| most)
        }
        (AnswerLength::Status, _) => STATUS_BYTES,
        (AnswerLength::Values | AnswerLength::Short, _) => 0,
    }
}

fn log_operation(asker: Asker, command: &Command) {
    let (word, session) = (command.facts().log_word, asker.session);
    match command.operands() {
        Operands::None | Operands::Words(_) => log::debug!("{word} session={session}"),
        Operands::Key(key) | Operands::Compared(key, _) => {
            log::debug!("{word} key={} session={session}", shown_key(key))
        }
        Operands::KeyAndValue(key, value) => {
            log::debug!("{word} key={} bytes={} session={session}", shown_key(key), value.len());
        }
        operands @ (Operands::Keys(_) | Operands::Pairs(_) | Operands::All(_) | Operands::Script(_)) => {
            log::debug!("{word} keys={} session={session}", operands.keys());
        }
    }
}
