//! Transactions: commands on several keys that are decided in one step, at one place in the log.
//!
//! Each command is decided by what the ones before it have made of its keys, and the first of a key by what the last accepted
//! write gives it, as in `updates.rs`. Only what becomes of the keys in the end is logged, as one record. Values that are not in
//! memory are fetched first, all at once; then everything is decided anew, so nothing of a first attempt remains.
//!
//! A key that is watched must have the version that was told: one that was written since has another one, whoever wrote it.

use super::outlook::{Holds, Outlook, WantedValues};
use super::room::payload;
use super::work::{HeldRead, UpdateKey};
use super::{Asker, Change, Effect, Entry, Master, MixedChange, WriteId};
use crate::command::{
    transaction_bytes_max, Command, Decision, ErrorWord, KnownValue, OneKey, Operands, Replies, Reply, Rule,
    Transaction, Transfer, CHECKED_KEYS_MAX,
};
use crate::ids::UnixMillis;
use crate::planted;
use crate::record::payload_bytes_max;
use bytes::Bytes;
use smallvec::SmallVec;
use std::collections::HashMap;

/// The values that one transaction makes longer than its requests have at most so many bytes in all, or as many as one value may
/// have: they are made in one step.
const MADE_IN_ONE_MAX: u64 = 32 << 20;

/// What all scripts of one decision may take, in steps of the interpreter: some milliseconds.
const SCRIPT_STEPS_MAX: u64 = 1_000_000;

/// What a key takes in the record beside its name and its value, in bytes, at most.
const EFFECT_BYTES: u64 = 32;

/// What the keys of a transaction hold between its commands.
#[derive(Debug, Default)]
pub(super) struct Scene {
    /// The place of each key in `keys`. Never iterated.
    places: HashMap<Bytes, usize, foldhash::fast::FixedState>,
    keys: Vec<SceneKey>,
    /// Whether anything rests on a write that is not written.
    rests: bool,
    /// Bytes of all values that were made longer than their requests.
    pub(super) made_bytes: u64,
    /// Bytes of all values that are answered, and how many these are.
    answered_bytes: u64,
    answered: usize,
    /// How many keys were looked up.
    looked_up: usize,
    /// Whether the value of a key must be fetched.
    pub(super) lacks: bool,
    /// What scripts may still take.
    pub(super) steps: u64,
    /// What the random numbers of scripts begin with: it stays when all is decided anew.
    pub(super) seed: u32,
    /// How to take back what a script does, in its order, while one is executed.
    undo: Option<Vec<Undo>>,
}

/// How to take back one change.
#[derive(Debug)]
enum Undo {
    /// The key at this place was so.
    Change { at: usize, known: KnownValue, expires: Option<UnixMillis>, made_bytes: u64, is_changed: bool },
    /// Nothing was known of it.
    Unknown { at: usize },
}

#[derive(Debug)]
struct SceneKey {
    key: Bytes,
    known: KnownValue,
    expires: Option<UnixMillis>,
    /// Where the value is that it had first, if that is not at hand.
    stored: Option<Entry>,
    /// Whether that value must be.
    is_lacking: bool,
    was_there: bool,
    is_changed: bool,
    /// Bytes of its value, if no request has brought that.
    made_bytes: u64,
}

/// Why a transaction is not decided now.
pub(super) enum Interruption {
    /// That depends on what becomes of this write.
    Behind(WriteId),
    /// Too many values are in flight.
    Crowded,
    /// Never: it is refused.
    Refused(String),
    /// What is needed so far is as much as is fetched at once.
    Enough,
}

impl Scene {
    /// Nothing is known yet of what this client's commands are about.
    pub(super) fn new(asker: Asker) -> Self {
        let seed = asker.session.0.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(asker.tag);
        Scene { steps: SCRIPT_STEPS_MAX, seed: seed as u32, ..Scene::default() }
    }

    /// From here on it may be taken back what is done.
    pub(super) fn begin_undo(&mut self) {
        self.undo = Some(Vec::new());
    }

    /// What was done since counts, or is taken back.
    pub(super) fn end_undo(&mut self, counts: bool) {
        let undo = self.undo.take().filter(|_| !counts);
        for undo in undo.into_iter().flatten().rev() {
            match undo {
                Undo::Change { at, known, expires, made_bytes, is_changed } => {
                    let key = &mut self.keys[at];
                    (key.known, key.expires) = (known, expires);
                    (key.made_bytes, key.is_changed) = (made_bytes, is_changed);
                }
                Undo::Unknown { at } => {
                    self.places.remove(&self.keys[at].key);
                }
            }
        }
    }

    fn note_undo(&mut self, at: usize) {
        if let Some(undo) = &mut self.undo {
            let SceneKey { known, expires, made_bytes, is_changed, .. } = &self.keys[at];
            let (known, expires) = (known.clone(), *expires);
            undo.push(Undo::Change { at, known, expires, made_bytes: *made_bytes, is_changed: *is_changed });
        }
    }

    /// What is answered so far.
    pub(super) fn answered_so_far(&self) -> (u64, usize) {
        (self.answered_bytes, self.answered)
    }

    /// No more than that is answered.
    pub(super) fn answer_again(&mut self, (bytes, answers): (u64, usize)) {
        (self.answered_bytes, self.answered) = (bytes, answers);
    }

    /// The value of a key must be fetched if it is not at hand, and not longer.
    pub(super) fn want(&mut self, at: usize, bytes_max: u64) {
        if matches!(self.keys[at].known, KnownValue::Bytes(bytes) if bytes <= bytes_max) {
            self.lack(at);
        }
    }

    /// The values that a command has written were brought by no request.
    pub(super) fn note_made(&mut self, command: &Command) {
        let keys = match command.operands() {
            Operands::KeyAndValue(key, _) | Operands::Compared(key, _) => {
                std::slice::from_ref(key).iter().collect()
            }
            Operands::Pairs(pairs) => pairs.iter().map(|(key, _)| key).collect(),
            Operands::None
            | Operands::Key(_)
            | Operands::Keys(_)
            | Operands::All(_)
            | Operands::Script(_)
            | Operands::Words(_) => Vec::new(),
        };
        for key in keys {
            if let Some(at) = self.places.get(key) {
                let key = &mut self.keys[*at];
                key.made_bytes = key.length();
            }
        }
    }

    fn add(&mut self, key: SceneKey) -> usize {
        let at = self.keys.len();
        self.places.insert(key.key.clone(), at);
        self.keys.push(key);
        at
    }

    /// Gives a key a value, whatever it holds.
    fn overwrite(&mut self, key: &Bytes, value: &Bytes) {
        let at = match self.places.get(key) {
            Some(at) => *at,
            // If it is deleted again, it may have been there.
            None => {
                let at = self.add(SceneKey { was_there: true, ..SceneKey::new(key) });
                self.undo.iter_mut().for_each(|undo| undo.push(Undo::Unknown { at }));
                at
            }
        };
        self.put(at, value.clone(), None, 0);
    }

    fn put(&mut self, at: usize, value: Bytes, expires: Option<UnixMillis>, made_bytes: u64) {
        self.note_undo(at);
        let key = &mut self.keys[at];
        (key.known, key.expires, key.made_bytes) = (KnownValue::Value(value), expires, made_bytes);
        key.is_changed = true;
    }

    /// Whether the key was there.
    fn delete(&mut self, at: usize) -> bool {
        self.note_undo(at);
        let key = &mut self.keys[at];
        let was_there = key.known != KnownValue::Missing;
        (key.known, key.expires, key.made_bytes) = (KnownValue::Missing, None, 0);
        key.is_changed |= was_there;
        was_there
    }

    /// Counts the bytes of an answer.
    fn answered(&mut self, reply: Reply) -> Reply {
        if let Reply::Value(value) = &reply {
            self.answer(value.len() as u64);
        }
        reply
    }

    pub(super) fn answer(&mut self, bytes: u64) {
        self.answered_bytes += bytes;
        self.answered += 1;
    }

    /// The value of a key must be fetched.
    fn lack(&mut self, at: usize) {
        self.keys[at].is_lacking = true;
        self.lacks = true;
    }

    fn is_there(&self, at: usize) -> bool {
        self.keys[at].known != KnownValue::Missing
    }

    /// The value of a key, for an answer. Empty if it is not at hand: then all of the answers are made again.
    fn value(&mut self, at: usize) -> Option<Bytes> {
        let key = &mut self.keys[at];
        let value = match &key.known {
            KnownValue::Missing => return None,
            KnownValue::Value(value) => value.clone(),
            KnownValue::Bytes(_) => Bytes::new(),
        };
        if matches!(key.known, KnownValue::Bytes(_)) {
            self.lack(at);
        }
        let bytes = self.keys[at].length();
        self.answer(bytes);
        Some(value)
    }

    /// The values that are still to be fetched, and their bytes.
    fn lacking(&self) -> (Vec<(Bytes, Entry)>, u64) {
        let lacking = self.keys.iter().filter(|key| key.is_lacking);
        let lacking: Vec<_> = lacking.filter_map(|key| Some((key.key.clone(), key.stored?))).collect();
        let bytes = lacking.iter().map(|(_, entry)| u64::from(entry.place.bytes)).sum();
        (lacking, bytes)
    }
}

impl SceneKey {
    /// One that is not there.
    fn new(key: &Bytes) -> Self {
        SceneKey {
            key: key.clone(),
            known: KnownValue::Missing,
            expires: None,
            stored: None,
            is_lacking: false,
            was_there: false,
            is_changed: false,
            made_bytes: 0,
        }
    }

    fn length(&self) -> u64 {
        self.known.length()
    }
}

/// What is to be written after a transaction.
struct Outcome {
    change: Change,
    /// When all values of a `Put` expire.
    expires: Option<UnixMillis>,
    /// As room is counted.
    bytes: u64,
    made_bytes: u64,
}

impl Outcome {
    /// `None` if nothing has changed.
    fn of(scene: Scene) -> Option<Self> {
        let (mut mixed, mut bytes, mut made_bytes) = (MixedChange::default(), 0, 0);
        for key in scene.keys.into_iter().filter(|key| key.is_changed) {
            match key.known {
                KnownValue::Value(value) => {
                    bytes += payload(&key.key, &value);
                    made_bytes += key.made_bytes;
                    mixed.pairs.push((key.key, value));
                    mixed.expires.push(key.expires);
                }
                // It came and went within the transaction.
                KnownValue::Missing if !key.was_there => {}
                KnownValue::Missing | KnownValue::Bytes(_) => mixed.deleted.push(key.key),
            }
        }
        let first = mixed.expires.first().copied().flatten();
        let is_uniform = mixed.expires.iter().all(|expires| *expires == first);
        let (change, expires) = match (mixed.pairs.is_empty(), mixed.deleted.is_empty()) {
            (true, true) => return None,
            (true, false) => (Change::Delete(SmallVec::from_vec(mixed.deleted)), None),
            (false, true) if is_uniform => (Change::Put(mixed.pairs), first),
            (false, _) => (Change::Apply(Box::new(mixed)), None),
        };
        Some(Outcome { change, expires, bytes, made_bytes })
    }
}

impl Master {
    /// Decides a transaction, if all that it needs is at hand; appends it or answers it then.
    pub(super) fn transact(
        &mut self,
        asker: Asker,
        transaction: &Transaction,
        wanted: Option<&WantedValues>,
        is_next: bool,
        effects: &mut Vec<Effect>,
    ) -> Outlook {
        let mut scene = Scene::new(asker);
        let ran = match self.are_as_watched(transaction, &mut scene, effects) {
            Ok(true) => self.run_all(transaction, &mut scene, (wanted, is_next), effects),
            Ok(false) => return self.keep_at_rest(asker, Reply::NotFound, scene.rests, effects),
            Err(write) => Err(Interruption::Behind(write)),
        };
        let ran = ran.map(|replies| Reply::Many(Replies(replies)));
        self.conclude(asker, ran, scene, is_next, effects)
    }

    /// Fetches what is needed, or appends what was done and answers.
    pub(super) fn conclude(
        &mut self,
        asker: Asker,
        ran: Result<Reply, Interruption>,
        scene: Scene,
        is_next: bool,
        effects: &mut Vec<Effect>,
    ) -> Outlook {
        let reply = match ran {
            Ok(reply) => reply,
            Err(Interruption::Behind(write)) => return Outlook::Behind(write),
            Err(Interruption::Crowded) => return Outlook::Crowded,
            Err(Interruption::Enough) => Reply::NotFound,
            Err(Interruption::Refused(why)) => {
                effects.push(Effect::Reply { to: asker, reply: Reply::error(ErrorWord::Bad, why) });
                return Outlook::Decided;
            }
        };
        let (made_bytes, (lacking, bytes)) = (scene.made_bytes, scene.lacking());
        if !lacking.is_empty() {
            // Room for what it makes then, too.
            let bytes = bytes.max(made_bytes.min(self.made_in_one_max()));
            let may_fetch = self.lines.may_make(bytes, is_next);
            return if may_fetch { Outlook::FetchAll(lacking, bytes) } else { Outlook::Crowded };
        }
        let rests = scene.rests;
        let Some(Outcome { change, expires, bytes, made_bytes }) = Outcome::of(scene) else {
            return self.keep_at_rest(asker, reply, rests, effects);
        };
        let bytes_max = payload_bytes_max(self.config.value_max) as u64;
        let pair_bytes = |(key, value): &(Bytes, Bytes)| (key.len() + value.len()) as u64 + EFFECT_BYTES;
        let deleted = change.deleted().iter().map(|key| key.len() as u64 + EFFECT_BYTES);
        if change.pairs().iter().map(pair_bytes).chain(deleted).sum::<u64>() > bytes_max {
            let why = format!("the values of the transaction have more than {bytes_max} bytes in all");
            effects.push(Effect::Reply { to: asker, reply: Reply::error(ErrorWord::Bad, why) });
            return Outlook::Decided;
        }
        self.write_update(asker, (change, expires), (bytes, made_bytes), reply, rests, effects);
        Outlook::Decided
    }

    /// Whether all keys that are watched are as they were.
    fn are_as_watched(
        &mut self,
        transaction: &Transaction,
        scene: &mut Scene,
        effects: &mut Vec<Effect>,
    ) -> Result<bool, WriteId> {
        for (key, watched) in &transaction.watched {
            let (holds, unwritten) = self.look_now(key, effects)?;
            scene.rests |= unwritten.is_some();
            let is_same = match (watched, holds) {
                (None, Holds::Nothing) => true,
                (Some(version), Holds::Value(..) | Holds::Stored(_)) => match unwritten {
                    None => self.is_latest(key, *version),
                    // What is not written has no version yet: it is another one. What is, and is not taken in, has one.
                    Some(write) => {
                        self.writes.all.get(write.0).is_some_and(|write| write.version == *version)
                    }
                },
                (Some(_), Holds::Nothing) | (None, Holds::Value(..) | Holds::Stored(_)) => false,
            };
            if !is_same && !planted!(WatchIgnored) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn run_all(
        &mut self,
        transaction: &Transaction,
        scene: &mut Scene,
        (wanted, is_next): (Option<&WantedValues>, bool),
        effects: &mut Vec<Effect>,
    ) -> Result<Vec<Reply>, Interruption> {
        let mut replies = Vec::with_capacity(transaction.commands.len());
        for command in &transaction.commands {
            replies.push(self.run(command, scene, (wanted, is_next), effects)?);
            if let Some(why) = self.excess(scene) {
                if scene.lacks {
                    // It may be less with the values that are known to be needed.
                    break;
                }
                return Err(Interruption::Refused(why));
            }
        }
        Ok(replies)
    }

    /// What of a transaction is too much for one step.
    pub(super) fn excess(&self, scene: &Scene) -> Option<String> {
        let (made_max, answered_max) = (self.made_in_one_max(), self.answered_in_one_max());
        if scene.made_bytes > made_max {
            Some(format!("the transaction makes values of more than {made_max} bytes in all"))
        } else if scene.answered > 1 && scene.answered_bytes > answered_max {
            Some(format!("the values have more than {answered_max} bytes in all (--max-pipeline-bytes)"))
        } else if scene.looked_up > CHECKED_KEYS_MAX {
            Some(format!("a transaction is decided by at most {CHECKED_KEYS_MAX} keys"))
        } else {
            None
        }
    }

    fn answered_in_one_max(&self) -> u64 {
        self.config.gather_bytes_max.min(transaction_bytes_max(self.config.value_max)) as u64
    }

    fn made_in_one_max(&self) -> u64 {
        MADE_IN_ONE_MAX.max(self.config.value_max as u64)
    }

    /// The place of a key in the scene.
    pub(super) fn enter(
        &mut self,
        key: &Bytes,
        scene: &mut Scene,
        wanted: Option<&WantedValues>,
        effects: &mut Vec<Effect>,
    ) -> Result<usize, Interruption> {
        if let Some(at) = scene.places.get(key) {
            return Ok(*at);
        }
        scene.looked_up += 1;
        if let Some(why) = self.excess(scene) {
            return Err(if scene.lacks { Interruption::Enough } else { Interruption::Refused(why) });
        }
        let (holds, unwritten) = self.look_now(key, effects).map_err(Interruption::Behind)?;
        scene.rests |= unwritten.is_some();
        let expires = holds.expires();
        let (known, stored) = match holds {
            Holds::Nothing => (KnownValue::Missing, None),
            Holds::Value(value, _) => (KnownValue::Value(value), None),
            Holds::Stored(entry) => match wanted.and_then(|wanted| wanted.of(key, entry.version)) {
                Some(value) => (KnownValue::Value(value.clone()), None),
                None => (KnownValue::Bytes(u64::from(entry.place.bytes)), Some(entry)),
            },
        };
        let was_there = known != KnownValue::Missing;
        Ok(scene.add(SceneKey { known, expires, stored, was_there, ..SceneKey::new(key) }))
    }

    /// Executes one command, and gives its answer.
    #[expect(clippy::too_many_lines, reason = "one arm for each command, each short")]
    pub(super) fn run(
        &mut self,
        command: &Command,
        scene: &mut Scene,
        (wanted, is_next): (Option<&WantedValues>, bool),
        effects: &mut Vec<Effect>,
    ) -> Result<Reply, Interruption> {
        match Rule::of(command) {
            Some(Rule::One(key, rule)) => {
                let at = self.enter(key, scene, wanted, effects)?;
                return self.run_rule(rule, at, scene, is_next);
            }
            Some(Rule::IfNone(pairs)) => {
                for (key, _) in pairs {
                    let at = self.enter(key, scene, wanted, effects)?;
                    if scene.is_there(at) {
                        return Ok(Reply::Count(0));
                    }
                }
                pairs.iter().for_each(|(key, value)| scene.overwrite(key, value));
                return Ok(Reply::Count(1));
            }
            Some(Rule::Script(call)) => return self.run_script(call, scene, (wanted, is_next), effects),
            Some(Rule::Transfer(keys, transfer)) => {
                return self.run_transfer((keys, transfer), scene, (wanted, is_next), effects);
            }
            Some(Rule::Together(_)) | None => {}
        }
        Ok(match command {
            Command::Put { key, value } => {
                scene.overwrite(key, value);
                Reply::Done
            }
            Command::PutMany { pairs } => {
                pairs.iter().for_each(|(key, value)| scene.overwrite(key, value));
                Reply::Done
            }
            Command::Delete { keys } => self.run_count(keys, scene, wanted, effects, Scene::delete)?,
            Command::Exists { keys } => {
                self.run_count(keys, scene, wanted, effects, |scene, at| scene.is_there(at))?
            }
            Command::Get { key } => {
                let at = self.enter(key, scene, wanted, effects)?;
                scene.value(at).map_or(Reply::NotFound, Reply::Value)
            }
            Command::GetMany { keys } => {
                let mut values = Vec::with_capacity(keys.len());
                for key in keys {
                    let at = self.enter(key, scene, wanted, effects)?;
                    values.push(scene.value(at));
                }
                Reply::Values(values)
            }
            Command::ValueLength { key } => {
                let at = self.enter(key, scene, wanted, effects)?;
                Reply::Count(scene.keys[at].length())
            }
            Command::TimeToLive { key, form } => {
                let at = self.enter(key, scene, wanted, effects)?;
                let known = Some(scene.keys[at].expires).filter(|_| scene.is_there(at));
                self.told_time(known, *form)
            }
            Command::ScriptCache { request } => self.answer_of_scripts(request),
            Command::Time => self.what_time(),
            Command::Update { .. }
            | Command::Swap { .. }
            | Command::Evaluate { .. }
            | Command::Transfer { .. }
            | Command::Take { .. }
            | Command::PutManyIfNone { .. }
            | Command::Renew { .. }
            | Command::Examine { .. }
            | Command::Compare { .. }
            | Command::GetVersioned { .. }
            | Command::KeyCount
            | Command::Scan { .. }
            | Command::Keys { .. }
            | Command::RandomKey
            | Command::DeleteAll
            | Command::Status
            | Command::Failover
            | Command::RemoveSlave { .. }
            | Command::ChangeMembers { .. }
            | Command::Transact { .. }
            | Command::Watch { .. } => {
                Reply::error(ErrorWord::Bad, "this command is not allowed inside a transaction")
            }
        })
    }

    /// Decides what goes from one key to another one, if all that it needs is at hand.
    pub(super) fn transfer(
        &mut self,
        asker: Asker,
        asked: (&[Bytes; 2], Transfer),
        wanted: Option<&WantedValues>,
        is_next: bool,
        effects: &mut Vec<Effect>,
    ) -> Outlook {
        let mut scene = Scene::new(asker);
        let ran = self.run_transfer(asked, &mut scene, (wanted, is_next), effects);
        self.conclude(asker, ran, scene, is_next, effects)
    }

    fn run_transfer(
        &mut self,
        ([from, to], transfer): (&[Bytes; 2], Transfer),
        scene: &mut Scene,
        (wanted, is_next): (Option<&WantedValues>, bool),
        effects: &mut Vec<Effect>,
    ) -> Result<Reply, Interruption> {
        if transfer.is_copy() && from == to {
            return Ok(Reply::error(ErrorWord::Bad, "source and destination objects are the same"));
        }
        let at = self.enter(from, scene, wanted, effects)?;
        if !scene.is_there(at) {
            return Ok(match transfer.is_copy() {
                true => Reply::Count(0),
                false => Reply::error(ErrorWord::Bad, "no such key"),
            });
        }
        let done = if transfer == Transfer::Rename { Reply::Done } else { Reply::Count(1) };
        let target = self.enter(to, scene, wanted, effects)?;
        if transfer.spares() && scene.is_there(target) {
            return Ok(Reply::Count(0));
        }
        if from == to {
            return Ok(done);
        }
        let SceneKey { known, expires, .. } = &scene.keys[at];
        let (KnownValue::Value(value), expires) = (known.clone(), *expires) else {
            scene.lack(at);
            return Ok(Reply::NotFound);
        };
        // No request has brought it.
        let made = value.len() as u64;
        scene.made_bytes += made;
        if !self.lines.may_make(scene.made_bytes, is_next) {
            return Err(Interruption::Crowded);
        }
        scene.put(target, value, expires, made);
        if !transfer.is_copy() {
            scene.delete(at);
        }
        Ok(done)
    }

    fn run_count(
        &mut self,
        keys: &[Bytes],
        scene: &mut Scene,
        wanted: Option<&WantedValues>,
        effects: &mut Vec<Effect>,
        counts: impl Fn(&mut Scene, usize) -> bool,
    ) -> Result<Reply, Interruption> {
        let mut count = 0;
        for key in keys {
            let at = self.enter(key, scene, wanted, effects)?;
            count += u64::from(counts(scene, at));
        }
        Ok(Reply::Count(count))
    }

    fn run_rule(
        &self,
        rule: OneKey<'_>,
        at: usize,
        scene: &mut Scene,
        is_next: bool,
    ) -> Result<Reply, Interruption> {
        let setting = self.setting(scene.keys[at].expires);
        let made = rule.made_bytes(scene.keys[at].length(), self.config.value_max);
        scene.made_bytes += made;
        if scene.made_bytes > self.made_in_one_max() {
            // Nothing more is made.
            return Ok(Reply::NotFound);
        }
        if !self.lines.may_make(scene.made_bytes, is_next) {
            return Err(Interruption::Crowded);
        }
        Ok(match rule.decide(&scene.keys[at].known, &setting) {
            Decision::NeedsValue => {
                if rule.answers_value() {
                    let bytes = scene.keys[at].length();
                    scene.answer(bytes);
                }
                scene.lack(at);
                Reply::NotFound
            }
            Decision::Keep(reply) => scene.answered(reply),
            Decision::Put(value, expires, reply) => {
                scene.put(at, value, expires, made);
                scene.answered(reply)
            }
            Decision::Delete(reply) => {
                scene.delete(at);
                scene.answered(reply)
            }
        })
    }

    /// Answers without a write, as soon as all that it rests on is written.
    fn keep_at_rest(
        &mut self,
        asker: Asker,
        reply: Reply,
        rests: bool,
        effects: &mut Vec<Effect>,
    ) -> Outlook {
        // With the last one, all are.
        let last = self.writes.unwritten.last().filter(|_| rests);
        self.keep_if_written(asker, reply, last, effects)
    }

    /// The value at that place for a transaction has come, or why there is none.
    pub(super) fn wanted_came(
        &mut self,
        update: UpdateKey,
        place: u32,
        reply: Reply,
        effects: &mut Vec<Effect>,
    ) {
        let Some((asker, wanted)) = self.lines.wanted_of(update) else { return };
        let failed = wanted.came(place, reply);
        if !wanted.are_there() {
            return;
        }
        if let Some(reply) = failed {
            self.lines.end_first(asker.session);
            effects.push(Effect::Reply { to: asker, reply });
        }
        self.lines.ready_again(asker.session);
    }

    /// Tells which versions keys have, after the writes of the same session.
    pub(super) fn watch(&mut self, asker: Asker, keys: Vec<Bytes>, effects: &mut Vec<Effect>) {
        if keys.len() > CHECKED_KEYS_MAX {
            let reply = Reply::error(ErrorWord::Bad, format!("more than {CHECKED_KEYS_MAX} keys"));
            effects.push(Effect::Reply { to: asker, reply });
            return;
        }
        match self.last_unwritten_of_any(asker, &keys) {
            Some(write) => self.wait(write, HeldRead::Watch { asker, keys }),
            None => self.tell_versions(asker, &keys, effects),
        }
    }

    /// A key whose time has come has none. That says so to nobody: if it were back, the transaction would not be executed.
    pub(super) fn tell_versions(&mut self, asker: Asker, keys: &[Bytes], effects: &mut Vec<Effect>) {
        let version = |key: &Bytes| {
            let entry = self.directory.get(key).filter(|entry| !self.is_expired(entry));
            entry.map(|entry| entry.version)
        };
        let reply = Reply::Versions(keys.iter().map(version).collect());
        self.counters.reads += 1;
        effects.push(Effect::Reply { to: asker, reply });
    }
}

#[cfg(test)]
mod tests {
    use super::super::writes::tests::{key, World};
    use super::super::Event;
    use super::*;
    use crate::command::Update;
    use crate::ids::{LinkId, Version};
    use crate::record::Place;

    fn put(number: usize, value: &'static str) -> Command {
        Command::Put { key: key(number), value: Bytes::from_static(value.as_bytes()) }
    }

    fn get(number: usize) -> Command {
        Command::Get { key: key(number) }
    }

    fn add(number: usize) -> Command {
        Command::Update { key: key(number), update: Update::Add { number: 1 } }
    }

    fn append(number: usize, tail: Bytes) -> Command {
        Command::Update { key: key(number), update: Update::Append { tail } }
    }

    fn watching(watched: Vec<(Bytes, Option<Version>)>, commands: Vec<Command>) -> Command {
        Command::Transact { transaction: Box::new(Transaction { watched, commands }) }
    }

    fn all(commands: Vec<Command>) -> Command {
        watching(Vec::new(), commands)
    }

    fn many(replies: Vec<Reply>) -> Option<Reply> {
        Some(Reply::Many(Replies(replies)))
    }

    /// The only slave sends this for all that it was asked for.
    fn bring(world: &mut World, value: &Bytes) {
        for read in world.master.reads_in_flight() {
            let version = world.master.reads.get(read).expect("it is in flight").wanted;
            let (link, reign, value) = (LinkId(0), crate::ids::ReignId(1), value.clone());
            world.step(Event::Value { link, read, version, reign, value });
        }
    }

    fn written_and_acked(world: &mut World) {
        world.written();
        world.chores();
        world.ack_all(0);
        world.chores();
    }

    #[test]
    fn a_transaction_is_one_record_of_what_remains_in_the_end() {
        let mut world = World::new(1);
        let delete = Command::Delete { keys: vec![key(1), key(9)] };
        let asked =
            world.ask(1, all(vec![add(0), add(0), put(1, "gone"), delete, get(1), put(2, "c"), get(0)]));
        assert_eq!(world.appended.len(), 1);
        let pair = |number, value: &'static str| (key(number), Bytes::from_static(value.as_bytes()));
        assert_eq!(world.last_appended, [pair(0, "2"), pair(2, "c")]);
        assert_eq!(world.answer(asked), None, "nothing is told before it is safe");
        written_and_acked(&mut world);
        let (integer, value) = (Reply::Integer, Reply::Value(Bytes::from_static(b"2")));
        let replies =
            vec![integer(1), integer(2), Reply::Done, Reply::Count(1), Reply::NotFound, Reply::Done, value];
        assert_eq!(world.answer(asked).cloned(), many(replies));
        assert_eq!((world.master.directory().len(), world.master.in_flight()), (2, 0));
    }

    #[test]
    fn the_values_that_it_needs_are_fetched_at_once_and_it_is_decided_by_those_of_its_place() {
        let mut world = World::new(1);
        for number in 0..3 {
            world.ask(9, add(number));
            written_and_acked(&mut world);
        }
        let asked = world.ask(1, all(vec![add(0), get(1), add(2), get(0)]));
        assert_eq!((world.read.len(), world.appended.len()), (3, 0));
        // Meanwhile another session changes one of them.
        let other = world.ask(2, put(1, "other"));
        world.written();
        assert_eq!(world.master.reads_in_flight().len(), 3);
        bring(&mut world, &Bytes::from_static(b"1"));
        let pair = |number, value: &'static str| (key(number), Bytes::from_static(value.as_bytes()));
        assert_eq!(world.last_appended, [pair(0, "2"), pair(2, "2")]);
        written_and_acked(&mut world);
        let value = |value: &'static str| Reply::Value(Bytes::from_static(value.as_bytes()));
        let replies = vec![Reply::Integer(2), value("other"), Reply::Integer(2), value("2")];
        assert_eq!(world.answer(asked).cloned(), many(replies));
        assert_eq!(world.answer(other), Some(&Reply::Done));
        assert_eq!((world.master.in_flight(), world.master.lines.is_quiet()), (0, true));
    }

    #[test]
    fn what_rests_on_a_write_that_the_log_refuses_is_decided_anew() {
        let mut world = World::new(1);
        let refused = world.ask(1, put(0, "refused"));
        let asked = world.ask(2, all(vec![get(0), get(1)]));
        let last = world.ask(3, put(1, "last"));
        let (write, _) = world.appended.pop_front().expect("it is appended");
        let word = ErrorWord::ReadOnly;
        world.step(Event::NotWritten { write, word, detail: String::new() });
        assert!(matches!(world.answer(refused), Some(Reply::Error(_))));
        assert_eq!(world.answer(asked), None, "it waits for all that it rests on");
        world.written();
        world.ack_all(0);
        world.chores();
        bring(&mut world, &Bytes::from_static(b"last"));
        let value = Reply::Value(Bytes::from_static(b"last"));
        assert_eq!(world.answer(asked).cloned(), many(vec![Reply::NotFound, value]));
        assert_eq!(world.answer(last), Some(&Reply::Done));
    }

    #[test]
    fn a_key_that_is_watched_must_have_the_version_that_was_told() {
        let mut world = World::new(1);
        let told = world.ask(1, Command::Watch { keys: vec![key(0), key(1)] });
        assert_eq!(world.answer(told), Some(&Reply::Versions(vec![None, None])));
        world.ask(2, put(0, "a"));
        let early = world.ask(1, watching(vec![(key(0), None)], vec![put(1, "b")]));
        assert_eq!(world.answer(early), None, "the other write may be refused yet");
        written_and_acked(&mut world);
        assert_eq!(world.answer(early), Some(&Reply::NotFound));
        let told = world.ask(1, Command::Watch { keys: vec![key(0), key(1)] });
        let version = Version::new(1, 2);
        assert_eq!(world.answer(told), Some(&Reply::Versions(vec![Some(version), None])));
        let watched = vec![(key(0), Some(version)), (key(1), None)];
        let asked = world.ask(1, watching(watched.clone(), vec![put(1, "b")]));
        written_and_acked(&mut world);
        assert_eq!(world.answer(asked).cloned(), many(vec![Reply::Done]));
        let late = world.ask(1, watching(watched, vec![put(1, "c")]));
        assert_eq!(world.answer(late), Some(&Reply::NotFound), "its own write counts, too");
        let unwritten = world.ask(1, put(0, "d"));
        let behind = world.ask(1, watching(vec![(key(0), Some(version))], vec![get(0)]));
        assert_eq!(world.appended.len(), 1);
        written_and_acked(&mut world);
        assert_eq!(world.answer(unwritten), Some(&Reply::Done));
        assert_eq!(world.answer(behind), Some(&Reply::NotFound));
    }

    #[test]
    fn values_that_are_made_in_one_step_are_bounded_and_nothing_of_them_remains() {
        let mut world = World::new(1);
        world.master.config.value_max = 16 << 20;
        let long = Bytes::from(vec![b'x'; 1 << 20]);
        let asked = world.ask(1, all((0..100).map(|_| append(0, long.clone())).collect()));
        assert!(matches!(world.answer(asked), Some(Reply::Error(error)) if error.word == ErrorWord::Bad));
        assert_eq!(
            (world.appended.len(), world.master.in_flight(), world.master.lines.is_quiet()),
            (0, 0, true)
        );
        let few = world.ask(1, all(vec![append(0, long.clone()), append(0, long)]));
        written_and_acked(&mut world);
        assert_eq!(world.answer(few).cloned(), many(vec![Reply::Count(1 << 20), Reply::Count(2 << 20)]));
        assert!(world.master.lines.may_make(64 << 20, true), "what it made is given back");
    }

    /// So many keys whose values of 12 MiB are with the only slave.
    fn with_long_values(keys: usize) -> World {
        let mut world = World::new(1);
        world.master.config.value_max = 16 << 20;
        world.master.config.gather_bytes_max = 32 << 20;
        for number in 0..keys {
            world.ask(9, put(number, "v"));
            let (write, _) = world.appended.pop_front().expect("it is appended");
            let places = SmallVec::from_elem(Place { bytes: LONG, ..Place::default() }, 1);
            world.step(Event::Written { write, version: Version::new(1, 2 + number as u64), places });
            world.ack_all(0);
        }
        world
    }

    const LONG: u32 = 12 << 20;

    #[test]
    fn of_values_that_are_too_many_no_more_are_fetched_than_a_transaction_may_answer() {
        let many_keys = Command::GetMany { keys: (0..9).map(key).collect() };
        let taken = (0..9).map(|number| Command::Take { key: key(number) });
        for commands in [vec![many_keys], taken.collect(), (0..9).map(get).collect()] {
            let mut world = with_long_values(9);
            let asked = world.ask(1, all(commands));
            assert_eq!(world.read.len(), 2, "two are too many already");
            bring(&mut world, &Bytes::from(vec![0; LONG as usize]));
            let refusal = world.answer(asked);
            assert!(
                matches!(refusal, Some(Reply::Error(error)) if error.word == ErrorWord::Bad),
                "{refusal:?}"
            );
            assert_eq!((world.master.in_flight(), world.master.lines.is_quiet()), (0, true));
            let alone = world.ask(1, all(vec![get(3)]));
            assert_eq!((world.read.len(), world.answer(alone)), (1, None), "a single one is never too long");
        }
    }

    #[test]
    fn a_transaction_is_decided_by_a_bounded_number_of_keys() {
        let mut world = World::new(1);
        let reads = |count: usize| all((0..count).map(get).collect());
        let too_many = world.ask(1, reads(CHECKED_KEYS_MAX + 1));
        assert!(matches!(world.answer(too_many), Some(Reply::Error(error)) if error.word == ErrorWord::Bad));
        let allowed = world.ask(1, reads(CHECKED_KEYS_MAX));
        assert_eq!(world.answer(allowed).cloned(), many(vec![Reply::NotFound; CHECKED_KEYS_MAX]));
    }

    #[test]
    fn a_transaction_of_very_many_commands_is_one_step_and_is_taken_in_by_slices() {
        use crate::command::TRANSACTION_COMMANDS_MAX;
        let mut world = World::new(1);
        let asked = world.ask(1, all((0..TRANSACTION_COMMANDS_MAX).map(|number| put(number, "v")).collect()));
        assert_eq!(world.appended.len(), 1);
        let reads = world.ask(1, all(vec![get(3), add(7)]));
        world.written();
        assert!(world.chores() > 8, "all at once");
        world.ack_all(0);
        world.chores();
        assert_eq!(world.answer(asked).cloned(), many(vec![Reply::Done; TRANSACTION_COMMANDS_MAX]));
        let bad = Reply::error(ErrorWord::Bad, "value is not an integer or out of range");
        bring(&mut world, &Bytes::from_static(b"v"));
        assert_eq!(world.answer(reads).cloned(), many(vec![Reply::Value(Bytes::from_static(b"v")), bad]));
        assert_eq!(world.master.in_flight(), 0);
    }
}
