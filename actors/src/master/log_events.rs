//! What a master hears of its log.
//!
//! Owns no rule: what is written or read goes to the master machine, what is replayed too, and the rest to the machine of
//! the reign.

use super::agenda::Todo;
use super::MasterActor;
use crate::door::switchboard::Arrived;
use crate::journal::{LogEvent, LogId, LogRequest, Replay, ReplayPart, Unread, ValueAnswer, Written};
use crate::node_error::NodeError;
use crate::shown::shown_key;
use actix::prelude::*;
use bytes::Bytes;
use dsm_protocol::command::{ErrorWord, Reply};
use dsm_protocol::ids::{ClusterId, Millis, ReignId, Version};
use dsm_protocol::machine::master::{Asker, ReadId};
use dsm_protocol::machine::reign::{Event, StoredLog};
use dsm_protocol::record::{Place, Position};
use dsm_protocol::stored_key::StoredKey;
use std::rc::Rc;

/// For so many changes of a log at once the machine fetches from memory what they touch: few enough that it is still in a
/// cache when they are taken in.
const EXPECTED_CHANGES: usize = 64;

impl MasterActor {
    /// Reads a value from the log.
    pub(super) fn read_log(&mut self, read: ReadId, place: Place, version: Version, key: Bytes) {
        let board = Rc::clone(&self.switchboard);
        let answer = ValueAnswer::new(move |result| {
            let result = result.map_err(|unread| match unread {
                Unread::Closed | Unread::Panicked => unread.to_string(),
                Unread::Failed(error) => {
                    let (key, offset) = (shown_key(&key), place.offset);
                    log::error!(
                        "value not read from the log key={key} version={version} offset={offset} error={error}"
                    );
                    format!("the log does not give the value of {version} at byte {offset}: {error}")
                }
            });
            board.push(Arrived::LogRead { read, result });
        });
        self.log.ask(LogRequest::Read { place, version, answer });
    }

    fn written(&mut self, written: Written, ctx: &mut Context<Self>) {
        let turn = self.switchboard.turns.begin("written");
        self.log.note_bytes(written.bytes);
        self.agenda.extend(written.writes.into_iter().map(Todo::Written));
        if let Some((word, detail)) = written.refusal {
            let refused = written.refused.into_iter();
            self.agenda.extend(refused.map(|write| Todo::Refused(write, word, detail.clone())));
        }
        self.work(&turn, ctx);
    }

    fn replayed(&mut self, part: ReplayPart, ctx: &mut Context<Self>) {
        let _turn = self.switchboard.turns.begin("replay");
        self.log.advance();
        let ReplayPart { from_start, changes, more, end, durable, log, caught_up } = part;
        if from_start {
            self.machine.replay_from_start();
        }
        self.machine.expect_keys(more);
        for group in changes.chunks(EXPECTED_CHANGES) {
            self.machine.expect_replay(group.iter().filter_map(Replay::key));
            for change in group {
                match change {
                    Replay::Put { key, version, place, expires } => {
                        self.machine.replay_put(key, *version, *place, *expires);
                    }
                    Replay::Delete { key } => self.machine.replay_delete(key),
                    Replay::Reign(record) => self.machine.replay_reign(*record),
                    Replay::GivenUp(reign) => self.machine.replay_given_up(*reign),
                    Replay::Time(mark) => {
                        // In this order: a pause between them must not count twice.
                        let (uptime, now) = (self.env.uptime(), self.env.now());
                        let continued = mark.continued(uptime, &self.boot);
                        self.machine.replay_time(now, uptime, mark.time, continued);
                    }
                }
            }
        }
        let now = self.env.now();
        let event = Event::Replayed { end, durable, reigns: self.machine.reigns() };
        self.wanted.step_reign(&mut self.reign, now, event);
        self.log.note_replayed(log, &end, durable);
        if caught_up && self.log.note_caught_up() && self.reign.is_standby() {
            let keys = self.machine.directory().len();
            log::info!("standby has replayed the log keys={keys} seq={}", self.log.seq());
            self.step_reign(now, Event::CaughtUp);
        }
        self.perform_reign(now);
        self.resume_later(ctx);
    }

    fn begun(&mut self, cluster: ClusterId, version: Version, id: ReignId, bytes: u64) {
        let now = self.env.now();
        self.log.note_begun(cluster, version, bytes);
        self.heard_of_log(Event::EpochWritten { version, id });
        self.tick_reign(now);
        self.perform_reign(now);
    }

    fn closed(&mut self, log: LogId, end: Position) {
        let now = self.env.now();
        // Nothing may be answered once another master may lead.
        self.flush();
        let end = self.log.note_closed(end);
        let log = Some(StoredLog { id: log, bytes: end.offset });
        let event = Event::Closed { end, log, reigns: self.machine.reigns() };
        self.wanted.step_reign(&mut self.reign, now, event);
        self.perform_reign(now);
        self.tick_reign(now);
        self.perform_reign(now);
        self.flush();
    }

    fn lost(&mut self) {
        self.log.note_deposed(NodeError::Deposed);
        self.heard_of_log(Event::Lost);
    }

    fn synced(&mut self, now: Millis) {
        self.heard_of_log(Event::Synced);
        self.turn_ended(now);
        self.perform_reign(now);
    }

    fn reopened(&mut self, now: Millis) {
        self.heard_of_log(Event::Reopened);
        self.tick_reign(now);
        self.perform_reign(now);
    }

    /// Answers whoever wanted the members changed.
    fn members_changed(&mut self, asker: Asker, result: Result<(), (ErrorWord, String)>) {
        let reply = match result {
            Ok(()) => Reply::Done,
            Err((word, why)) => Reply::error(word, why),
        };
        self.reply(asker, &reply);
    }

    /// Lets the machine of the reign know, and carries out what it wants.
    fn heard_of_log(&mut self, event: Event<'_>) {
        let now = self.env.now();
        self.step_reign(now, event);
        self.perform_reign(now);
    }

    fn opened(&mut self, event: Event<'_>) {
        let now = self.env.now();
        self.step_reign(now, event);
        self.hear(now);
        self.perform_reign(now);
    }

    /// What the log has to say of who leads, what is followed, and how a reign begins and ends.
    fn log_event(&mut self, event: LogEvent, ctx: &mut Context<Self>) {
        let turn = self.switchboard.turns.begin("role");
        let now = self.env.now();
        match event {
            LogEvent::Written(_) | LogEvent::Replayed(_) => {}
            LogEvent::Looked(seen) => self.heard_of_log(Event::Looked(seen)),
            LogEvent::Won { cluster, epoch } => {
                self.heard_of_log(Event::Won { cluster, epoch });
                if !self.reign.is_barred() {
                    // It came too late for this one.
                    self.log.ask(LogRequest::GiveUp);
                }
            }
            LogEvent::Leader(leader) => self.health.leader_seen(leader),
            LogEvent::KeptOut(why) => self.log.note_kept_out(why),
            LogEvent::Members { members, change } => self.log.note_members(members, change),
            LogEvent::MembersChanged { asker, result } => self.members_changed(asker, result),
            LogEvent::Sighted(sight) => {
                self.log.note_sight(sight);
                self.heard_of_log(Event::Sighted { follows: self.log.follows() });
            }
            LogEvent::Halted => self.heard_of_log(Event::Halted),
            LogEvent::Opened { log, noted } => {
                if let Some((id, end)) = log {
                    self.log.note_opened(id, end);
                }
                let read = log.map(|(id, end)| StoredLog { id, bytes: end.offset });
                let log = log.as_ref().map(|(_, end)| end.into());
                self.opened(Event::Recovered { log, read, noted });
            }
            LogEvent::Found(found) => {
                let found = found.map(|(id, bytes)| StoredLog { id, bytes });
                self.heard_of_log(Event::LogFound(found));
            }
            LogEvent::Begun { cluster, version, id, bytes } => self.begun(cluster, version, id, bytes),
            LogEvent::Settle { through, answer } => self.log.settle(through, answer),
            LogEvent::WhichLive { keys, answer } => {
                let is_live = |(key, version): &(StoredKey, Version)| self.machine.is_latest(key, *version);
                // Nobody is left to hear it when the log was let go meanwhile.
                let _ = answer.send(keys.iter().map(is_live).collect());
            }
            LogEvent::Relocated(changes) => {
                for change in changes {
                    if let Replay::Put { key, version, place, .. } = change {
                        self.machine.relocate(&key, version, place);
                    }
                }
            }
            LogEvent::Unread { file, answer } => self.log.await_unread(file, answer),
            LogEvent::Replaced { log, bytes } => self.log.note_replaced(log, bytes),
            LogEvent::Compaction(news) => self.log.note_compaction(news),
            LogEvent::Synced => self.synced(now),
            LogEvent::Closed { log, end } => self.closed(log, end),
            LogEvent::Reopened => self.reopened(now),
            LogEvent::Deposed(error) => {
                self.log.note_deposed(error);
                self.heard_of_log(Event::Deposed);
            }
            LogEvent::Confirmed { round, leads } => {
                self.confirmed(now, round, leads);
                self.work(&turn, ctx);
            }
            LogEvent::Lost => self.lost(),
            LogEvent::Abandoned => {
                self.agenda.extend(std::iter::once(Todo::Depart));
                self.work(&turn, ctx);
            }
            // What was in flight stays unanswered: to the clients a lost connection during a write is *unknown*, which
            // is the truth. The process must not live on with a log of which nothing is known.
            LogEvent::Failed(error) => self.fail(error),
        }
    }
}

impl Handler<LogEvent> for MasterActor {
    type Result = ();

    fn handle(&mut self, event: LogEvent, ctx: &mut Self::Context) {
        match event {
            LogEvent::Written(written) => self.written(written, ctx),
            LogEvent::Replayed(part) => self.replayed(part, ctx),
            other => self.log_event(other, ctx),
        }
    }
}
