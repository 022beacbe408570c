//! Requests that are decided by what their keys hold: conditions, swaps, numbers.
//!
//! An update is decided and appended in one step, at its place in the log: by what the last accepted write of its key gives
//! it, or else by the directory and the value that a holder or the log has sent. So nothing comes in between, and what is
//! logged is the result. Meanwhile the later requests of its session wait in its [`Line`]; other sessions never do.
//!
//! A decision that rests on a write that is not written yet may be wrong: that one may be refused. What is appended then is
//! refused with it (`after` of [`Effect::Append`]); an answer without a write waits until that one is written, and is decided
//! anew if it was refused.

use super::hash::hash_bytes;
use super::keyspace::{Sought, Walks};
use super::latest::Found;
use super::outlook::{kept, Holds, Outlook, WantedValues, FETCHED_AHEAD_MAX};
use super::reads::Destination;
use super::room::payload;
use super::work::{DistinctPairs, HeldRead, UpdateKey, WalkKey, Work, UNKNOWN_BEFORE};
use super::writes::Terms;
use super::{Asker, Change, Effect, Entry, Master, WriteId};
use crate::command::{
    Command, DecidedBy, Decision, ErrorWord, KnownValue, OneKey, Reply, Rule, CHECKED_KEYS_MAX,
};
use crate::ids::{Millis, SessionId, UnixMillis, Version};
use crate::planted;
use bytes::Bytes;
use slotmap::SlotMap;
use smallvec::SmallVec;
use std::collections::hash_map::Entry as Occupancy;
use std::collections::{HashMap, VecDeque};

/// Values that updates fetch, or have made longer than their requests, are in memory up to so many bytes in all, unless it is
/// one alone.
const MADE_BYTES_MAX: u64 = 64 << 20;

/// At most so many requests of one session have their values fetched before their turn.
const FETCHES_AHEAD_MAX: usize = 32;

/// Making a value of so many bytes counts as one request in the budget of a step.
const BYTES_FOR_ONE: u64 = 64 << 10;

/// A tick refuses at most so many late updates, each the first of its line; the lines then go on in steps of their own.
const EXPIRED_AT_ONCE: usize = 1024;

/// Why an update is refused that has waited too long.
const TOO_LATE: &str = "the writes before it take too long";

/// The updates that are not decided, and what waits behind them.
#[derive(Clone, Debug, Default)]
pub(super) struct Lines {
    /// By session. Never iterated.
    of: HashMap<SessionId, Line, foldhash::fast::FixedState>,
    updates: SlotMap<UpdateKey, Undecided>,
    /// The requests that look at all keys, each in the line of its session.
    pub(super) walks: Walks,
    /// How many requests are in all lines.
    requests: usize,
    /// The sessions whose lines may go on.
    ready: VecDeque<SessionId>,
    /// The sessions whose requests of many keys are done in slices, before their lines go on.
    resting: Vec<SessionId>,
    /// The sessions that wait until fewer values are in flight, in their order.
    crowded: VecDeque<SessionId>,
    /// Bytes of values that updates have made longer than their requests, in flight, or that are fetched for them.
    made_bytes: u64,
    /// Whether the first of `crowded` may try again.
    is_relieved: bool,
}

/// The requests of one session from the first update on that is not decided, in their order.
#[derive(Clone, Debug, Default)]
struct Line {
    queue: VecDeque<Waiter>,
    /// The longest value that was to be written by one of those, in bytes.
    longest: usize,
}

#[derive(Clone, Debug)]
enum Waiter {
    Update(UpdateKey),
    Walk(WalkKey),
    Request { asker: Asker, deadline: Millis, command: Command },
}

/// An update that is not decided.
#[derive(Clone, Debug)]
struct Undecided {
    asker: Asker,
    deadline: Millis,
    command: Command,
    /// The version whose value is under way.
    asked: Option<Version>,
    /// Bytes set aside for it.
    set_aside: u64,
    fetched: Option<(Version, Bytes)>,
    /// The values for a transaction.
    wanted: Option<Box<WantedValues>>,
    /// Whether it goes on only once a write is resolved.
    is_held: bool,
    /// The answer without a write, if that one is written and no more than so many were refused.
    rests: Option<(Reply, u64)>,
}

impl Undecided {
    /// Whether values for a transaction are under way.
    fn wants(&self) -> bool {
        self.wanted.as_ref().is_some_and(|wanted| !wanted.are_there())
    }
}

/// What has come of trying to decide an update.
struct Attempt {
    asker: Asker,
    deadline: Millis,
    /// How many keys it names.
    keys: usize,
    /// As how many requests counts what it has made.
    made: usize,
    outlook: Outlook,
}

impl Lines {
    /// Requests that no write or read of their own is in flight for.
    pub(super) fn requests(&self) -> usize {
        self.requests
    }

    /// Whether nothing of it can go on by itself.
    pub(super) fn is_quiet(&self) -> bool {
        let nobody_may_retry = !self.is_relieved || self.crowded.is_empty();
        self.ready.is_empty() && self.resting.is_empty() && nobody_may_retry
    }

    pub(super) fn has_of(&self, session: SessionId) -> bool {
        !self.of.is_empty() && self.of.contains_key(&session)
    }

    /// An upper bound of the longest value that a session is to write from its line, in bytes.
    pub(super) fn longest_of(&self, session: SessionId) -> usize {
        self.of.get(&session).map_or(0, |line| line.longest)
    }

    /// So many bytes are in memory no more.
    pub(super) fn unmake(&mut self, bytes: u64) {
        if bytes > 0 {
            self.made_bytes -= bytes;
            self.is_relieved = true;
        }
    }

    /// Whether so many more bytes may be in memory. Nobody overtakes those who wait: `is_next` is the first of them.
    pub(super) fn may_make(&self, bytes: u64, is_next: bool) -> bool {
        let has_room = self.made_bytes == 0 || self.made_bytes + bytes <= MADE_BYTES_MAX;
        bytes == 0 || (has_room && (is_next || self.crowded.is_empty()))
    }

    /// The values for a transaction whose turn it is, and who has asked for it.
    pub(super) fn wanted_of(&mut self, update: UpdateKey) -> Option<(Asker, &mut WantedValues)> {
        let session = self.updates.get(update)?.asker.session;
        if !self.is_first(session, update) {
            return None;
        }
        let undecided = self.updates.get_mut(update)?;
        Some((undecided.asker, undecided.wanted.as_deref_mut()?))
    }

    /// A session's line may go on.
    pub(super) fn ready_again(&mut self, session: SessionId) {
        self.ready.push_back(session);
    }

    /// Takes the first request out of a session's line: it is answered.
    pub(super) fn end_first(&mut self, session: SessionId) {
        self.pop(session);
    }

    /// Takes the first request out of a session's line.
    fn pop(&mut self, session: SessionId) -> Option<Waiter> {
        let Occupancy::Occupied(mut line) = self.of.entry(session) else { return None };
        let waiter = line.get_mut().queue.pop_front();
        if line.get().queue.is_empty() {
            line.remove();
        }
        if let Some(waiter) = &waiter {
            self.requests -= 1;
            // It may have been what the others wait for.
            self.is_relieved |= !self.crowded.is_empty();
            match waiter {
                Waiter::Update(update) => {
                    let set_aside = self.updates.remove(*update).map_or(0, |undecided| undecided.set_aside);
                    self.unmake(set_aside);
                }
                Waiter::Walk(walk) => self.walks.remove(*walk),
                Waiter::Request { .. } => {}
            }
        }
        waiter
    }

    /// The walk is done that is the first request of its session's line.
    pub(super) fn walk_ended(&mut self, session: SessionId) {
        self.pop(session);
        self.ready.push_back(session);
    }

    /// Whether this update is the first request of its session's line.
    fn is_first(&self, session: SessionId, update: UpdateKey) -> bool {
        let first = self.of.get(&session).and_then(|line| line.queue.front());
        matches!(first, Some(Waiter::Update(first)) if *first == update)
    }
}

impl Master {
    /// Decides an update, or begins its session's line.
    pub(super) fn update(
        &mut self,
        now: Millis,
        asker: Asker,
        deadline: Millis,
        command: Command,
        effects: &mut Vec<Effect>,
    ) {
        if command.has_scripts() {
            // It takes its time, as a part of a step that is counted.
            self.line_up(asker, deadline, command);
            self.lines.ready.push_back(asker.session);
            return;
        }
        match self.decide(asker, &command, (None, None), false, effects) {
            Outlook::Decided => {}
            outlook @ (Outlook::Fetch(..)
            | Outlook::FetchAll(..)
            | Outlook::Behind(_)
            | Outlook::RestsOn(..)
            | Outlook::Crowded) => {
                let update = self.line_up(asker, deadline, command);
                if self.hold(now, update, outlook, effects) {
                    self.lines.crowded.push_back(asker.session);
                }
            }
        }
    }

    /// Begins to look at all keys, and its session's line: what the session asks next must not be seen.
    pub(super) fn walk(&mut self, asker: Asker, deadline: Millis, sought: Sought, effects: &mut Vec<Effect>) {
        let walk = self.line_up_walk(asker, deadline, sought);
        self.begin_walk(walk, effects);
    }

    fn line_up_walk(&mut self, asker: Asker, deadline: Millis, sought: Sought) -> WalkKey {
        let walk = self.lines.walks.insert(asker, deadline, sought);
        self.push(asker.session, 0, Waiter::Walk(walk));
        walk
    }

    /// The outcome of the write is unknown for which a walk has waited, or it was refused.
    pub(super) fn walk_given_up(&mut self, walk: WalkKey, reply: Reply, effects: &mut Vec<Effect>) {
        let Some(to) = self.lines.walks.asker(walk) else { return };
        let (reply, is_unknown) = self.lines.walks.refused(walk, reply);
        effects.push(Effect::Reply { to, reply });
        self.lines.walk_ended(to.session);
        if is_unknown {
            self.give_up_line(to.session, effects);
        }
    }

    /// Puts a request behind those of its session that wait.
    pub(super) fn queue_up(
        &mut self,
        now: Millis,
        asker: Asker,
        deadline: Millis,
        command: Command,
        effects: &mut Vec<Effect>,
    ) {
        if Rule::of(&command).is_some() {
            let waiting = self.lines.of.get(&asker.session).map_or(0, |line| line.queue.len());
            let may_fetch = waiting < FETCHES_AHEAD_MAX;
            let ahead = may_fetch.then(|| self.fetched_ahead(&command)).flatten();
            let update = self.line_up(asker, deadline, command);
            if let Some(ahead) = ahead {
                self.fetch(now, update, ahead, 0, effects);
            }
        } else if let Command::Keys { pattern } = command {
            self.line_up_walk(asker, deadline, Sought::matching(pattern));
        } else if command == Command::RandomKey {
            self.line_up_walk(asker, deadline, Sought::any());
        } else if command == Command::DeleteAll {
            self.line_up_walk(asker, deadline, Sought::Everything);
        } else {
            let longest = self.longest_after(asker.session, &command);
            self.push(asker.session, longest, Waiter::Request { asker, deadline, command });
        }
    }

    /// An upper bound of the value that the command of this session leaves, in bytes, after those that wait.
    fn longest_after(&self, session: SessionId, command: &Command) -> usize {
        let (key, rule) = match Rule::of(command) {
            Some(Rule::One(key, rule)) => (key, rule),
            Some(Rule::Together(transaction)) => {
                let longest = self.lines.longest_of(session);
                return transaction
                    .commands
                    .iter()
                    .fold(longest, |longest, command| self.longest_of_one(longest, command));
            }
            Some(Rule::Transfer([from, _], _)) => {
                let written = self.directory.get(from).map_or(0, |entry| entry.place.bytes as usize);
                return written.max(self.lines.longest_of(session));
            }
            Some(Rule::IfNone(_) | Rule::Script(_)) | None => return command.operands().longest_value(),
        };
        self.longest_of_rule(self.lines.longest_of(session), key, rule)
    }

    /// The same after values of up to so many bytes.
    fn longest_of_one(&self, longest: usize, command: &Command) -> usize {
        match Rule::of(command) {
            Some(Rule::One(key, rule)) => longest.max(self.longest_of_rule(longest, key, rule)),
            Some(Rule::Transfer([from, _], _)) => {
                longest.max(self.directory.get(from).map_or(0, |entry| entry.place.bytes as usize))
            }
            Some(Rule::IfNone(_) | Rule::Together(_) | Rule::Script(_)) | None => {
                longest.max(command.operands().longest_value())
            }
        }
    }

    fn longest_of_rule(&self, longest: usize, key: &Bytes, rule: OneKey<'_>) -> usize {
        let written = self.directory.get(key).map_or(0, |entry| u64::from(entry.place.bytes));
        rule.longest_after(written.max(longest as u64), self.config.value_max) as usize
    }

    fn push(&mut self, session: SessionId, longest: usize, waiter: Waiter) {
        let line = self.lines.of.entry(session).or_default();
        line.longest = line.longest.max(longest);
        line.queue.push_back(waiter);
        self.lines.requests += 1;
    }

    /// A script that waits for its turn.
    #[cfg(test)]
    pub(super) fn line_up_for_tests(&mut self, asker: Asker, command: Command) {
        self.line_up(asker, Millis(u64::MAX), command);
        self.lines.ready.push_back(asker.session);
    }

    fn line_up(&mut self, asker: Asker, deadline: Millis, command: Command) -> UpdateKey {
        let longest = self.longest_after(asker.session, &command);
        let undecided = Undecided {
            asker,
            deadline,
            command,
            asked: None,
            set_aside: 0,
            fetched: None,
            wanted: None,
            is_held: false,
            rests: None,
        };
        let update = self.lines.updates.insert(undecided);
        self.push(asker.session, longest, Waiter::Update(update));
        update
    }

    /// What is to be fetched for an update whose turn has not come.
    fn fetched_ahead(&self, command: &Command) -> Option<(Bytes, Entry)> {
        let Some(Rule::One(key, rule)) = Rule::of(command) else { return None };
        match self.look(key) {
            Ok((Holds::Stored(entry), _)) if entry.place.bytes <= FETCHED_AHEAD_MAX => {
                let known = KnownValue::Bytes(u64::from(entry.place.bytes));
                let decision = rule.decide(&known, &self.setting(entry.expires));
                (decision == Decision::NeedsValue).then(|| (key.clone(), entry))
            }
            Ok(_) | Err(_) => None,
        }
    }

    fn fetch(
        &mut self,
        now: Millis,
        update: UpdateKey,
        (key, entry): (Bytes, Entry),
        bytes: u64,
        effects: &mut Vec<Effect>,
    ) {
        let Some(undecided) = self.lines.updates.get_mut(update) else { return };
        if undecided.asked == Some(entry.version) {
            return;
        }
        undecided.asked = Some(entry.version);
        if undecided.set_aside == 0 {
            undecided.set_aside = bytes;
            self.lines.made_bytes += bytes;
        }
        let deadline = undecided.deadline;
        self.read_entry(now, Destination::Update(update), deadline, key, entry, effects);
    }

    fn fetch_all(
        &mut self,
        now: Millis,
        update: UpdateKey,
        entries: Vec<(Bytes, Entry)>,
        bytes: u64,
        effects: &mut Vec<Effect>,
    ) {
        let Some(undecided) = self.lines.updates.get_mut(update) else { return };
        let wanted = undecided.wanted.get_or_insert_default();
        // With those that are there from an earlier time.
        let bytes = bytes + wanted.bytes();
        let (deadline, asked) = (undecided.deadline, wanted.want(entries));
        if undecided.set_aside == 0 {
            undecided.set_aside = bytes;
            self.lines.made_bytes += bytes;
        }
        for (place, key, entry) in asked {
            self.read_entry(now, Destination::Wanted(update, place), deadline, key, entry, effects);
        }
    }

    /// The value for an update has come, or why there is none.
    pub(super) fn fetched(
        &mut self,
        update: UpdateKey,
        version: Version,
        reply: Reply,
        effects: &mut Vec<Effect>,
    ) {
        let Some(undecided) = self.lines.updates.get_mut(update) else { return };
        if undecided.asked != Some(version) {
            return;
        }
        undecided.asked = None;
        let (asker, is_held) = (undecided.asker, undecided.is_held);
        let failed = match reply.into_value() {
            Ok(value) => {
                undecided.fetched = Some((version, kept(value)));
                None
            }
            Err(refusal) => Some(refusal),
        };
        if is_held || !self.lines.is_first(asker.session, update) {
            // What was not had ahead is asked for again when its turn comes.
            return;
        }
        if let Some(reply) = failed {
            self.lines.pop(asker.session);
            effects.push(Effect::Reply { to: asker, reply });
        }
        self.lines.ready.push_back(asker.session);
    }

    /// The write is resolved for which an update has waited.
    pub(super) fn line_resumed(&mut self, update: UpdateKey, written: bool, effects: &mut Vec<Effect>) {
        let Some(undecided) = self.lines.updates.get_mut(update) else { return };
        undecided.is_held = false;
        let (rests, asker) = (undecided.rests.take(), undecided.asker);
        let refusals = self.writes.refusals;
        if let Some((reply, _)) = rests.filter(|(_, since)| written && *since == refusals) {
            self.keep(asker, reply, effects);
            self.lines.pop(asker.session);
        }
        self.lines.ready.push_back(asker.session);
    }

    /// The outcome of the write is unknown for which an update has waited.
    pub(super) fn line_given_up(&mut self, update: UpdateKey, reply: Reply, effects: &mut Vec<Effect>) {
        let Some(undecided) = self.lines.updates.get(update) else { return };
        let to = undecided.asker;
        effects.push(Effect::Reply { to, reply });
        self.lines.pop(to.session);
        self.lines.ready.push_back(to.session);
    }

    /// Goes on with the lines that may, for a bounded number of requests.
    pub(super) fn go_on_with_lines(&mut self, now: Millis, effects: &mut Vec<Effect>) {
        let Master { lines, slices, .. } = self;
        lines.resting.retain(|session| {
            let rests = slices.has_of(*session);
            if !rests {
                lines.ready.push_back(*session);
            }
            rests
        });
        let mut left = self.config.slice_keys.max(1);
        while left > 0 {
            if let Some(session) = self.lines.ready.pop_front() {
                if self.advance(now, session, false, &mut left, effects) {
                    self.lines.crowded.push_back(session);
                }
                continue;
            }
            if !std::mem::take(&mut self.lines.is_relieved) {
                return;
            }
            let Some(session) = self.lines.crowded.front().copied() else { return };
            if !self.advance(now, session, true, &mut left, effects) {
                self.lines.crowded.pop_front();
                self.lines.is_relieved = true;
            }
        }
    }

    /// Refuses updates that are the first of their lines and have waited for other writes until their deadlines.
    pub(super) fn expire_lines(&mut self, now: Millis, effects: &mut Vec<Effect>) {
        let is_late = |(update, undecided): &(UpdateKey, &Undecided)| {
            let waits = undecided.is_held || (undecided.asked.is_none() && !undecided.wants());
            undecided.deadline <= now && waits && self.lines.is_first(undecided.asker.session, *update)
        };
        let late = self.lines.updates.iter().filter(is_late).take(EXPIRED_AT_ONCE);
        let late: Vec<Asker> = late.map(|(_, undecided)| undecided.asker).collect();
        for asker in late {
            self.refuse_late(asker, effects);
            self.lines.ready.push_back(asker.session);
        }
    }

    /// Refuses the first request of a line, which has waited too long.
    fn refuse_late(&mut self, to: Asker, effects: &mut Vec<Effect>) {
        self.lines.pop(to.session);
        effects.push(Effect::Reply { to, reply: Reply::error(ErrorWord::Busy, TOO_LATE) });
    }

    /// Refuses what a session has asked after a write whose outcome is unknown.
    pub(super) fn give_up_line(&mut self, session: SessionId, effects: &mut Vec<Effect>) {
        while let Some(first) = self.lines.of.get(&session).and_then(|line| line.queue.front()) {
            let to = match first {
                Waiter::Request { asker, .. } => Some(*asker),
                Waiter::Update(update) => self.lines.updates.get(*update).map(|undecided| undecided.asker),
                Waiter::Walk(walk) => self.lines.walks.asker(*walk),
            };
            self.lines.pop(session);
            let reply = Reply::error(ErrorWord::Busy, UNKNOWN_BEFORE);
            effects.extend(to.map(|to| Effect::Reply { to, reply }));
        }
    }

    /// Goes on with one session's line; whether it waits until fewer values are in flight.
    fn advance(
        &mut self,
        now: Millis,
        session: SessionId,
        is_next: bool,
        left: &mut usize,
        effects: &mut Vec<Effect>,
    ) -> bool {
        while let Some(first) = self.lines.of.get(&session).and_then(|line| line.queue.front()) {
            if *left == 0 {
                self.lines.ready.push_front(session);
                return false;
            }
            if self.slices.has_of(session) {
                self.lines.resting.push(session);
                return false;
            }
            *left -= 1;
            if let Waiter::Walk(walk) = first {
                let walk = *walk;
                self.begin_walk(walk, effects);
                return false;
            } else if let Waiter::Update(update) = first {
                let update = *update;
                let Some(Attempt { asker, deadline, keys, made, outlook }) =
                    self.attempt(update, is_next, effects)
                else {
                    return false;
                };
                match outlook {
                    Outlook::Behind(_) | Outlook::RestsOn(..) | Outlook::Crowded | Outlook::FetchAll(..)
                        if deadline <= now =>
                    {
                        self.refuse_late(asker, effects);
                    }
                    Outlook::Decided => {
                        self.lines.pop(session);
                        self.fetch_behind(now, session, effects);
                        *left = left.saturating_sub(keys + made);
                    }
                    outlook @ (Outlook::Fetch(..)
                    | Outlook::FetchAll(..)
                    | Outlook::Behind(_)
                    | Outlook::RestsOn(..)
                    | Outlook::Crowded) => {
                        // What was tried in vain took its time, too.
                        *left = left.saturating_sub(keys + made);
                        return self.hold(now, update, outlook, effects);
                    }
                }
            } else if let Some(Waiter::Request { asker, deadline, command }) = self.lines.pop(session) {
                self.fetch_behind(now, session, effects);
                if self.is_wide(&command) {
                    self.slices.push_back(Work::FromLine { asker, deadline, command });
                } else {
                    *left = left.saturating_sub(command.keys());
                    self.begin(now, asker, deadline, command, effects);
                }
            }
        }
        false
    }

    /// Tries to decide the first update of a line; `None` if it waits for something.
    fn attempt(&mut self, update: UpdateKey, is_next: bool, effects: &mut Vec<Effect>) -> Option<Attempt> {
        let undecided = self.lines.updates.get_mut(update)?;
        let may = undecided.asked.is_none() || undecided.set_aside == 0;
        if undecided.is_held || !may || undecided.wants() {
            return None;
        }
        let (asker, deadline) = (undecided.asker, undecided.deadline);
        let (fetched, wanted) = (undecided.fetched.take(), undecided.wanted.take());
        // It is put back if it is not decided.
        let command = std::mem::replace(&mut undecided.command, Command::KeyCount);
        // What it makes is counted when it is decided.
        let set_aside = std::mem::take(&mut undecided.set_aside);
        self.lines.unmake(set_aside);
        let (before, kept) = (self.lines.made_bytes, fetched.clone());
        let at_hand = (fetched, wanted.as_deref());
        let outlook = self.decide(asker, &command, at_hand, is_next || set_aside > 0, effects);
        let made_bytes = self.lines.made_bytes.saturating_sub(before);
        let is_kept = match &outlook {
            Outlook::Behind(_) => true,
            Outlook::Crowded => set_aside == 0,
            // Those that are fetched now are counted with them.
            Outlook::Decided | Outlook::Fetch(..) | Outlook::FetchAll(..) | Outlook::RestsOn(..) => false,
        };
        let keys = command.keys();
        if let Some(undecided) = self.lines.updates.get_mut(update) {
            undecided.command = command;
            if matches!(outlook, Outlook::FetchAll(..)) || (is_kept && wanted.is_some()) {
                undecided.wanted = wanted;
            }
            if is_kept && (kept.is_some() || undecided.wanted.is_some()) {
                (undecided.fetched, undecided.set_aside) = (kept, set_aside);
                self.lines.made_bytes += set_aside;
            }
        }
        let made = (made_bytes / BYTES_FOR_ONE) as usize + self.scripts.take_work();
        Some(Attempt { asker, deadline, keys, made, outlook })
    }

    /// Fetches ahead for the one that came near with the last step of the line.
    fn fetch_behind(&mut self, now: Millis, session: SessionId, effects: &mut Vec<Effect>) {
        let near = self.lines.of.get(&session).and_then(|line| line.queue.get(FETCHES_AHEAD_MAX - 1));
        let Some(Waiter::Update(update)) = near else { return };
        let update = *update;
        let Some(undecided) = self.lines.updates.get(update) else { return };
        if undecided.asked.is_none() && undecided.fetched.is_none() {
            if let Some(ahead) = self.fetched_ahead(&undecided.command) {
                self.fetch(now, update, ahead, 0, effects);
            }
        }
    }

    /// Sees to it that a line goes on when its first update can be decided; whether that is once fewer values are in flight.
    fn hold(&mut self, now: Millis, update: UpdateKey, outlook: Outlook, effects: &mut Vec<Effect>) -> bool {
        let (write, rests) = match outlook {
            Outlook::Decided => return false,
            Outlook::Fetch(key, entry, bytes) => {
                self.fetch(now, update, (key, entry), bytes, effects);
                return false;
            }
            Outlook::FetchAll(entries, bytes) => {
                self.fetch_all(now, update, entries, bytes, effects);
                return false;
            }
            Outlook::Crowded => return true,
            Outlook::Behind(write) => (write, None),
            Outlook::RestsOn(write, reply) => (write, Some((reply, self.writes.refusals))),
        };
        if let Some(undecided) = self.lines.updates.get_mut(update) {
            (undecided.is_held, undecided.rests) = (true, rests);
            self.writes.wait(write, HeldRead::Line { update });
        }
        false
    }

    /// What `key` holds by the last accepted write, and that one if it is not written yet.
    ///
    /// # Errors
    /// The write on which that depends.
    fn look(&self, key: &Bytes) -> Result<(Holds, Option<WriteId>), WriteId> {
        let stored = || self.directory.get(key).map_or(Holds::Nothing, Holds::Stored);
        let id = match self.writes.latest.of(hash_bytes(key)) {
            None => return Ok((stored(), None)),
            Some(Found::Perhaps(write)) => return Err(write),
            Some(Found::Here(write)) => write,
        };
        planted!(UpdateIgnoresUnwritten => { return Ok((stored(), None)); });
        let Some(write) = self.writes.all.get(id.0) else { return Ok((stored(), None)) };
        let change = &*write.change;
        let at = change.pairs().iter().position(|(k, _)| k == key);
        let value = |at: usize| {
            let expires = change.expires(at, write.expires);
            Holds::Value(change.pairs()[at].1.clone(), expires)
        };
        let deleted = || change.deleted().contains(key).then_some(Holds::Nothing);
        let given = at.map(value).or_else(deleted);
        if write.is_resolved {
            // A write of many keys may have come after it, and has been taken in.
            let is_latest = self.directory.get(key).is_some_and(|entry| entry.version == write.version);
            return Ok((given.filter(|_| is_latest).unwrap_or_else(stored), None));
        }
        // Another key has the same hash, and hides what comes before.
        given.map(|given| (given, Some(id))).ok_or(id)
    }

    /// The same of a key that is gone if its time has come: then it is deleted first, and that is its last accepted write.
    pub(super) fn look_now(
        &mut self,
        key: &Bytes,
        effects: &mut Vec<Effect>,
    ) -> Result<(Holds, Option<WriteId>), WriteId> {
        let (holds, unwritten) = self.look(key)?;
        if holds.expires().is_none_or(|expires| expires >= self.time) {
            return Ok((holds, unwritten));
        }
        let after = unwritten.is_some().then_some(self.writes.refusals);
        let deletion = self.append_expiry(SmallVec::from_iter([key.clone()]), after, effects);
        Ok((Holds::Nothing, Some(deletion)))
    }

    pub(super) fn setting(&self, expires: Option<UnixMillis>) -> DecidedBy {
        DecidedBy { time: self.time, expires, version: None, value_max: self.config.value_max }
    }

    /// Decides an update, if what it needs is at hand; appends it or answers it then.
    fn decide(
        &mut self,
        asker: Asker,
        command: &Command,
        (fetched, wanted): (Option<(Version, Bytes)>, Option<&WantedValues>),
        is_next: bool,
        effects: &mut Vec<Effect>,
    ) -> Outlook {
        let (key, rule) = match Rule::of(command) {
            Some(Rule::One(key, rule)) => (key, rule),
            Some(Rule::IfNone(pairs)) => return self.put_if_none(asker, pairs, effects),
            Some(Rule::Together(transaction)) => {
                return self.transact(asker, transaction, wanted, is_next, effects);
            }
            Some(Rule::Script(call)) => return self.evaluate(asker, call, wanted, is_next, effects),
            Some(Rule::Transfer(keys, transfer)) => {
                return self.transfer(asker, (keys, transfer), wanted, is_next, effects);
            }
            None => return Outlook::Decided,
        };
        let (holds, unwritten) = if rule.is_blind() {
            (Holds::Nothing, None)
        } else {
            match self.look_now(key, effects) {
                Ok(found) => found,
                Err(write) => return Outlook::Behind(write),
            }
        };
        let mut setting = self.setting(holds.expires());
        if rule.needs_version() {
            if let Some(write) = unwritten {
                // It has no version before it is written.
                return Outlook::Behind(write);
            }
            setting.version = self.directory.get(key).map(|entry| entry.version);
        }
        let (known, stored) = match holds {
            Holds::Nothing => (KnownValue::Missing, None),
            Holds::Value(value, _) => (KnownValue::Value(value), None),
            Holds::Stored(entry) => match fetched {
                Some((version, value)) if version == entry.version || planted!(UpdateOfOldValue) => {
                    (KnownValue::Value(value), None)
                }
                Some(_) | None => (KnownValue::Bytes(u64::from(entry.place.bytes)), Some(entry)),
            },
        };
        // Before it is made: that takes long.
        let present = known.length();
        let made = rule.made_bytes(present, self.config.value_max);
        if !self.lines.may_make(made, is_next) {
            return Outlook::Crowded;
        }
        match rule.decide(&known, &setting) {
            Decision::NeedsValue => {
                let entry = stored.expect("what is in memory is known");
                let is_short = entry.place.bytes <= FETCHED_AHEAD_MAX;
                let bytes = made.max(if is_short { 0 } else { present });
                if self.lines.may_make(bytes, is_next) {
                    Outlook::Fetch(key.clone(), entry, bytes)
                } else {
                    Outlook::Crowded
                }
            }
            Decision::Keep(reply) => self.keep_if_written(asker, reply, unwritten, effects),
            Decision::Put(value, expires, reply) => {
                let bytes = payload(key, &value);
                let change = Change::Put(SmallVec::from_iter([(key.clone(), value)]));
                let rests = unwritten.is_some();
                self.write_update(asker, (change, expires), (bytes, made), reply, rests, effects);
                Outlook::Decided
            }
            Decision::Delete(reply) => {
                let change = Change::Delete(SmallVec::from_iter([key.clone()]));
                self.write_update(asker, (change, None), (0, 0), reply, unwritten.is_some(), effects);
                Outlook::Decided
            }
        }
    }

    /// Writes all of the keys if none is there.
    fn put_if_none(&mut self, asker: Asker, pairs: &[(Bytes, Bytes)], effects: &mut Vec<Effect>) -> Outlook {
        if pairs.len() > CHECKED_KEYS_MAX {
            let reply = Reply::error(ErrorWord::Bad, format!("more than {CHECKED_KEYS_MAX} keys"));
            effects.push(Effect::Reply { to: asker, reply });
            return Outlook::Decided;
        }
        let mut rests = false;
        for (key, _) in pairs {
            match self.look_now(key, effects) {
                Err(write) => return Outlook::Behind(write),
                Ok((Holds::Nothing, unwritten)) => rests |= unwritten.is_some(),
                Ok((Holds::Value(..) | Holds::Stored(_), unwritten)) => {
                    return self.keep_if_written(asker, Reply::Count(0), unwritten, effects);
                }
            }
        }
        let (pairs, bytes) = DistinctPairs::from_iter(pairs.to_vec()).into_pairs();
        let change = (Change::Put(pairs), None);
        self.write_update(asker, change, (bytes, 0), Reply::Count(1), rests, effects);
        Outlook::Decided
    }

    /// Answers without a write, as soon as what that rests on is written.
    pub(super) fn keep_if_written(
        &mut self,
        asker: Asker,
        reply: Reply,
        unwritten: Option<WriteId>,
        effects: &mut Vec<Effect>,
    ) -> Outlook {
        match unwritten {
            Some(write) if !planted!(RefusalOfUnwritten) => Outlook::RestsOn(write, reply),
            Some(_) | None => {
                self.keep(asker, reply, effects);
                Outlook::Decided
            }
        }
    }

    fn keep(&mut self, asker: Asker, reply: Reply, effects: &mut Vec<Effect>) {
        self.counters.reads += 1;
        effects.push(Effect::Reply { to: asker, reply });
    }

    /// `bytes` as room is counted, and by how many the value is longer than its request.
    pub(super) fn write_update(
        &mut self,
        asker: Asker,
        (change, expires): (Change, Option<UnixMillis>),
        (bytes, made_bytes): (u64, u64),
        reply: Reply,
        rests: bool,
        effects: &mut Vec<Effect>,
    ) {
        let after = rests.then_some(self.writes.refusals);
        let terms = Terms { reply: Some(reply), after, made_bytes, expires };
        if self.write_on(asker, change, bytes, terms, effects) {
            self.lines.made_bytes += made_bytes;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::writes::tests::{key, put_many, World};
    use super::super::{Event, WriteId};
    use super::*;
    use crate::ids::SessionId;

    fn update(number: usize, update: crate::command::Update) -> Command {
        Command::Update { key: key(number), update }
    }

    fn increment(number: usize) -> Command {
        update(number, crate::command::Update::Add { number: 1 })
    }

    fn long_range(number: usize, offset: u64) -> Command {
        update(number, crate::command::Update::SetRange { offset, bytes: Bytes::from_static(b"x") })
    }

    fn word(world: &World, tag: u64) -> Option<ErrorWord> {
        match world.answer(tag) {
            Some(Reply::Error(error)) => Some(error.word),
            _ => None,
        }
    }

    fn next_append(world: &mut World) -> WriteId {
        world.appended.pop_front().expect("it is appended").0
    }

    /// A key whose value is with the only slave, and nothing in flight.
    fn with_a_stored_key() -> World {
        let mut world = World::new(1);
        world.ask(9, increment(0));
        world.written();
        world.ack_all(0);
        assert_eq!(world.master.in_flight(), 0);
        world
    }

    #[test]
    fn writes_of_some_hundred_keys_hold_up_no_update_of_another_key() {
        let mut world = World::new(1);
        world.ask(1, put_many(CHECKED_KEYS_MAX));
        world.chores();
        assert_eq!(world.appended.len(), 1);
        let own = world.ask(2, increment(7));
        let other = world.ask(3, increment(CHECKED_KEYS_MAX));
        assert_eq!(
            world.appended.len(),
            2,
            "what the many give the key is no number, and the other is not there"
        );
        world.written();
        world.chores();
        assert_eq!((word(&world, own), world.answer(other)), (Some(ErrorWord::Bad), None));
    }

    #[test]
    fn an_update_waits_for_a_write_of_very_many_keys_and_no_longer_than_its_deadline() {
        let mut world = World::new(1);
        world.ask(1, put_many(CHECKED_KEYS_MAX + 1));
        world.chores();
        let (late, behind) = (world.ask(2, increment(9999)), world.ask(2, Command::KeyCount));
        world.now = Millis(999);
        world.step(Event::Tick);
        assert_eq!((world.answer(late), world.answer(behind), world.appended.len()), (None, None, 1));
        world.now = Millis(1000);
        world.step(Event::Tick);
        assert_eq!(word(&world, late), Some(ErrorWord::Busy));
        assert_eq!(world.answer(behind), Some(&Reply::Count(0)));
        let timely = world.ask(3, increment(9998));
        world.written();
        world.chores();
        assert_eq!(world.appended.len(), 1, "the one that has waited goes on");
        world.written();
        (0..2).for_each(|_| world.ack_all(0));
        world.chores();
        assert_eq!(world.answer(timely), Some(&Reply::Integer(1)));
        assert_eq!(world.master.in_flight(), 0);
    }

    #[test]
    fn values_that_are_made_long_are_in_flight_within_a_bound_and_nobody_overtakes() {
        const HALF: u64 = MADE_BYTES_MAX / 2;
        let mut world = World::new(1);
        let first = world.ask(1, long_range(1, HALF));
        let second = world.ask(2, long_range(2, HALF + 10));
        let third = world.ask(3, long_range(3, 10));
        let short = world.ask(4, increment(4));
        assert_eq!(world.appended.len(), 2, "the first one, and the one that makes nothing long");
        world.written();
        world.written();
        assert_eq!((world.answer(first), world.appended.len()), (None, 0));
        world.ack_all(0);
        let length = |offset: u64| Some(Reply::Count(offset + 1));
        assert_eq!(world.answer(first).cloned(), length(HALF));
        assert_eq!(world.answer(short), Some(&Reply::Integer(1)));
        // The long one is as much as one step does.
        assert_eq!((world.appended.len(), world.chores()), (1, 1));
        assert_eq!(world.appended.len(), 2, "both that have waited");
        world.written();
        world.written();
        world.ack_all(0);
        assert_eq!([second, third].map(|tag| world.answer(tag).cloned()), [length(HALF + 10), length(10)]);
        assert_eq!((world.master.in_flight(), world.master.lines.made_bytes), (0, 0));
    }

    #[test]
    fn values_that_are_written_again_to_expire_are_in_flight_within_the_same_bound() {
        use crate::command::{ExpiryCondition, Lifetime, Update};
        let mut world = World::new(1);
        world.step(Event::Clock { wall: UnixMillis(1000), uptime: Millis(0) });
        let long = Bytes::from(vec![0; MADE_BYTES_MAX as usize / 2 + 1]);
        for number in 1..=2 {
            world.ask(number, Command::Put { key: key(number as usize), value: long.clone() });
        }
        let when = ExpiryCondition::default();
        let first = world.ask(3, update(1, Update::Expire { life: Lifetime::For(9), when }));
        let second = world.ask(4, Command::Renew { key: key(2), life: Lifetime::For(9) });
        assert_eq!(world.appended.len(), 3, "both are written again at once");
        assert_eq!(world.master.lines.made_bytes, long.len() as u64);
        for _ in 0..3 {
            world.written();
        }
        world.ack_all(0);
        assert_eq!((world.answer(first), world.answer(second)), (Some(&Reply::Count(1)), None));
        world.chores();
        let reads = world.read.len() + world.appended.len();
        assert_eq!(reads, 1, "the second one goes on");
    }

    #[test]
    fn what_a_line_has_set_aside_is_given_back_when_its_value_cannot_be_had() {
        let mut world = with_a_stored_key();
        let asked = world.ask(1, long_range(0, 1 << 20));
        assert_eq!((world.read.len(), world.master.lines.made_bytes), (1, (1 << 20) + 1));
        // Its slave is gone, and the log cannot be read.
        world.step(Event::SlaveLost { link: crate::ids::LinkId(0) });
        let read = world.master.reads_in_flight()[0];
        world.step(Event::LogRead { read, result: Err("the disk says no".to_owned()) });
        assert_eq!(word(&world, asked), Some(ErrorWord::Bad));
        assert_eq!((world.master.in_flight(), world.master.lines.made_bytes), (0, 0));
    }

    #[test]
    fn what_a_session_asks_after_a_write_of_unknown_outcome_is_not_executed() {
        let mut world = with_a_stored_key();
        let unknown = world.ask(1, Command::Put { key: key(1), value: Bytes::from_static(b"new") });
        let write = next_append(&mut world);
        let line = [
            world.ask(1, increment(0)),
            world.ask(1, Command::Get { key: key(1) }),
            world.ask(1, Command::Put { key: key(2), value: Bytes::new() }),
        ];
        let other = world.ask(2, increment(5));
        let detail = "the log was moved".to_owned();
        world.step(Event::NotWritten { write, word: ErrorWord::Unknown, detail });
        assert_eq!(word(&world, unknown), Some(ErrorWord::Unknown));
        assert_eq!(line.map(|tag| word(&world, tag)), [Some(ErrorWord::Busy); 3]);
        assert_eq!((world.appended.len(), world.answer(other)), (1, None), "only of the other session");
        assert!(!world.master.lines.has_of(SessionId(1)));
    }

    #[test]
    fn a_long_line_fetches_values_ahead_for_some_at_a_time() {
        const REQUESTS: usize = FETCHES_AHEAD_MAX * 3;
        let mut world = World::new(1);
        (0..REQUESTS).for_each(|number| {
            world.ask(9, increment(number));
            world.written();
        });
        world.ack_all(0);
        let mut asked = 0;
        for number in 0..REQUESTS {
            world.ask(1, increment(number));
            asked += world.read.len();
        }
        assert_eq!(asked, FETCHES_AHEAD_MAX, "one each, for as many as stand in front");
        assert_eq!(world.master.lines.requests(), REQUESTS);
    }
}
