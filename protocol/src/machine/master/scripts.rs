//! Scripts: what their commands do, at one place in the log.
//!
//! A script is executed where its session's turn comes, on what its keys hold then, as the commands of a transaction are
//! (`transactions.rs`): what becomes of the keys in the end is one record. This machine holds no values. So a script that needs one
//! which is not in memory is stopped, the value is fetched, and the script begins anew: of the first time nothing remains.
//!
//! A script that ends with an error, or that is cut off, has no effect. It is given so many steps, whatever it does, so a step of this
//! machine is bounded.

use super::outlook::{Outlook, WantedValues, FETCHED_AHEAD_MAX};
use super::transactions::{Interruption, Scene};
use super::{Asker, Effect, Master};
use crate::command::{
    find_command, find_subcommand, transaction_bytes_max, Command, Does, ErrorWord, Excerpt, Judgement,
    Lengths, Operands, Own, Reply, ScriptCall, ScriptName, ScriptRequest, ScriptRights, Spec, Words, KEY_MAX,
};
use crate::resp::{answer_in_script, encode_reply, say_unfit, Protocol, Shape};
use crate::script::{self, Called, Over, Run, RunAllowance, RunEnd, ScriptHost, ScriptText};
use bytes::Bytes;
use smallvec::SmallVec;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// So many steps of the interpreter count as one key in the budget of a step.
const STEPS_FOR_ONE: u64 = 5_000;

/// What a script may hold in memory, in bytes, in addition to some values of the longest kind.
const MEMORY_BYTES: usize = 8 << 20;
const VALUES_IN_MEMORY: usize = 3;

/// The scripts that are known have at most so many bytes in all; those that were used last stay.
const KNOWN_BYTES_MAX: usize = 16 << 20;

/// What one of them counts in addition to its text, in bytes.
const KNOWN_OVERHEAD_BYTES: usize = 256;

/// Whether a command of a script is allowed is found out in so many steps.
const JUDGED_STEPS: usize = 100_000;

const NO_SCRIPT: &[u8] = b"-NOSCRIPT No matching script. Please use EVAL.\r\n";
const NOT_ALLOWED: &str = "ERR This Redis command is not allowed from script";

/// The scripts that are known by their digests. A new reign knows none.
#[derive(Clone, Debug, Default)]
pub(super) struct Scripts {
    /// Never iterated.
    known: HashMap<String, (Arc<ScriptText>, u64), foldhash::fast::FixedState>,
    /// The digests in the order of their last use.
    used: BTreeMap<u64, String>,
    uses: u64,
    bytes: usize,
    /// As how many requests the scripts count that were executed since it was asked last.
    work: usize,
}

impl Scripts {
    /// Forgets all of them.
    pub(super) fn forget(&mut self) {
        *self = Scripts { work: self.work, ..Scripts::default() };
    }

    /// As how many requests the scripts count that were executed since this was asked last.
    pub(super) fn take_work(&mut self) -> usize {
        std::mem::take(&mut self.work)
    }

    fn find(&mut self, digest: &str) -> Option<Arc<ScriptText>> {
        let (text, used) = self.known.get_mut(digest)?;
        let text = Arc::clone(text);
        let digest = self.used.remove(used)?;
        self.uses += 1;
        *used = self.uses;
        self.used.insert(self.uses, digest);
        Some(text)
    }

    fn keep(&mut self, text: Arc<ScriptText>) {
        if self.find(&text.digest).is_some() {
            return;
        }
        self.uses += 1;
        self.used.insert(self.uses, text.digest.clone());
        self.bytes += text.whole.len() + KNOWN_OVERHEAD_BYTES;
        self.known.insert(text.digest.clone(), (text, self.uses));
        while self.bytes > KNOWN_BYTES_MAX {
            let Some((_, digest)) = self.used.pop_first() else { return };
            if let Some((text, _)) = self.known.remove(&digest) {
                self.bytes -= text.whole.len() + KNOWN_OVERHEAD_BYTES;
            }
        }
    }
}

impl Master {
    /// Decides a script, if all that it needs is at hand; appends what it does or answers it then.
    pub(super) fn evaluate(
        &mut self,
        asker: Asker,
        call: &ScriptCall,
        wanted: Option<&WantedValues>,
        is_next: bool,
        effects: &mut Vec<Effect>,
    ) -> Outlook {
        let mut scene = Scene::new(asker);
        let ran = self.run_script(call, &mut scene, (wanted, is_next), effects).and_then(|reply| {
            let excess = self.excess(&scene).filter(|_| !scene.lacks);
            excess.map_or(Ok(reply), |why| Err(Interruption::Refused(why)))
        });
        self.conclude(asker, ran, scene, is_next, effects)
    }

    /// Executes one script, and gives its answer.
    pub(super) fn run_script(
        &mut self,
        call: &ScriptCall,
        scene: &mut Scene,
        (wanted, is_next): (Option<&WantedValues>, bool),
        effects: &mut Vec<Effect>,
    ) -> Result<Reply, Interruption> {
        if scene.lacks {
            // It might be misled by what the commands before it could not do.
            self.want_keys(call, scene, wanted, effects)?;
            return Ok(Reply::NotFound);
        }
        let text = match self.text_of(&call.script) {
            Ok(text) => text,
            Err(reply) => return Ok(reply),
        };
        let value_max = self.config.value_max;
        let answer_bytes = self.config.gather_bytes_max.min(transaction_bytes_max(value_max));
        let values = value_max.min(answer_bytes).saturating_mul(VALUES_IN_MEMORY);
        let allowance = RunAllowance {
            steps: scene.steps,
            memory_bytes: values.saturating_add(MEMORY_BYTES),
            answer_bytes,
            cpu_time: self.config.cpu_time,
        };
        let answered = scene.answered_so_far();
        scene.begin_undo();
        let asked =
            Run { body: text.body(), keys: &call.keys, args: &call.args, allowance, seed: scene.seed };
        let is_read_only = call.is_read_only || text.is_read_only;
        let mut calls = CallsOf {
            master: self,
            scene,
            wanted,
            is_next,
            effects,
            rights: &call.rights,
            is_read_only,
            interruption: None,
        };
        let (ended, left) = script::run(&asked, &mut calls);
        let interruption = calls.interruption;
        self.scripts.work += (scene.steps.saturating_sub(left) / STEPS_FOR_ONE) as usize + 1;
        scene.steps = left;
        if let (RunEnd::Over(Over::Stopped), Some(interruption)) = (&ended, interruption) {
            return Err(interruption);
        }
        scene.end_undo(matches!(ended, RunEnd::Answer(_)));
        // What it has read it need not have answered.
        scene.answer_again(answered);
        let over = |why: &str| Err(Interruption::Refused(format!("the script is cut off: {why}")));
        match ended {
            RunEnd::Answer(answer) => {
                self.scripts.keep(text);
                scene.answer(answer.len() as u64);
                Ok(Reply::Encoded(Bytes::from(answer)))
            }
            RunEnd::Failed(error, place) => {
                let reply = failed(&error, place, &text.digest);
                self.scripts.keep(text);
                Ok(reply)
            }
            RunEnd::NotCompiled(why) => {
                Ok(Reply::error(ErrorWord::Bad, format!("Error compiling script (new function): {why}")))
            }
            RunEnd::Over(Over::Stopped) => {
                self.want_keys(call, scene, wanted, effects)?;
                Ok(Reply::NotFound)
            }
            RunEnd::Over(Over::Steps) => over("it takes too long"),
            RunEnd::Over(Over::Memory) => over("it takes too much memory"),
            RunEnd::Over(Over::Answer) => over(&format!("it answers more than {answer_bytes} bytes")),
        }
    }

    /// Wants the short values of the keys that a script is told of, so that it is not stopped for each of them.
    fn want_keys(
        &mut self,
        call: &ScriptCall,
        scene: &mut Scene,
        wanted: Option<&WantedValues>,
        effects: &mut Vec<Effect>,
    ) -> Result<(), Interruption> {
        for key in &call.keys {
            let at = self.enter(key, scene, wanted, effects)?;
            scene.want(at, u64::from(FETCHED_AHEAD_MAX));
        }
        Ok(())
    }

    /// The text of a script; else the answer.
    fn text_of(&mut self, name: &ScriptName) -> Result<Arc<ScriptText>, Reply> {
        match name {
            ScriptName::Text(text) => match self.scripts.find(&script::sha1hex(text)) {
                Some(text) => Ok(text),
                None => ScriptText::read(text).map(Arc::new).map_err(|why| Reply::error(ErrorWord::Bad, why)),
            },
            ScriptName::Digest(digest) => {
                let digest = String::from_utf8_lossy(digest).to_ascii_lowercase();
                self.scripts.find(&digest).ok_or_else(|| Reply::Encoded(Bytes::from_static(NO_SCRIPT)))
            }
        }
    }

    /// What is answered about the scripts that are known.
    pub(super) fn answer_of_scripts(&mut self, request: &ScriptRequest) -> Reply {
        match request {
            ScriptRequest::Load(text) => {
                let text = match ScriptText::read(text) {
                    Ok(text) => Arc::new(text),
                    Err(why) => return Reply::error(ErrorWord::Bad, why),
                };
                if let Err(why) = script::check(text.body()) {
                    let why = format!("Error compiling script (new function): {why}");
                    return Reply::error(ErrorWord::Bad, why);
                }
                let digest = Bytes::from(text.digest.clone());
                self.scripts.keep(text);
                Reply::Value(digest)
            }
            ScriptRequest::Known(digests) => {
                let mut answer = format!("*{}\r\n", digests.len());
                for digest in digests {
                    let digest = String::from_utf8_lossy(digest).to_ascii_lowercase();
                    let is_known = self.scripts.known.contains_key(&digest);
                    answer.push_str(if is_known { ":1\r\n" } else { ":0\r\n" });
                }
                Reply::Encoded(Bytes::from(answer))
            }
            ScriptRequest::Forget => {
                self.scripts.forget();
                Reply::Done
            }
        }
    }

    /// What time it is in the cluster.
    pub(super) fn what_time(&self) -> Reply {
        let text = |number: u64| Some(Bytes::from(number.to_string()));
        Reply::Values(vec![text(self.time.0 / 1000), text(self.time.0 % 1000 * 1000)])
    }
}

/// The answer to a script that has ended with an error.
fn failed(error: &[u8], place: Option<(String, u64)>, digest: &str) -> Reply {
    let error = String::from_utf8_lossy(error);
    let told = match place {
        Some((source, line)) => format!("{error} script: {digest}, on {source}:{line}."),
        None => format!("{error} script: {digest}"),
    };
    let told = told.replace(['\r', '\n'], " ");
    match told.strip_prefix("ERR ") {
        Some(detail) => Reply::error(ErrorWord::Bad, detail),
        None => Reply::Encoded(Bytes::from(format!("-{told}\r\n"))),
    }
}

/// The calls of one script.
struct CallsOf<'a> {
    master: &'a mut Master,
    scene: &'a mut Scene,
    wanted: Option<&'a WantedValues>,
    is_next: bool,
    effects: &'a mut Vec<Effect>,
    rights: &'a ScriptRights,
    is_read_only: bool,
    /// Why the script was stopped, if that is not for a value.
    interruption: Option<Interruption>,
}

/// What is to be done for a call.
enum Task {
    Answer(Vec<u8>),
    Ask(Command, Shape),
}

impl CallsOf<'_> {
    /// What a request means; the error is the answer of Redis to it within a script.
    fn task(&self, words: Vec<Bytes>) -> Result<Task, String> {
        let spec = spec_of(&words).ok_or("ERR Unknown Redis command called from script")?;
        let least = spec.arity.unsigned_abs() as usize;
        if words.len() < least || (spec.arity > 0 && words.len() != least) {
            return Err("ERR Wrong number of args calling Redis command from script".to_owned());
        }
        if spec.flags.contains(&"noscript") {
            return Err(NOT_ALLOWED.to_owned());
        }
        match self.rights.judge(spec.name, &words, JUDGED_STEPS) {
            Judgement::Allowed => {}
            Judgement::NotTheCommand => {
                return Err(
                    "ERR The user executing the script can't run this command or subcommand".to_owned()
                );
            }
            Judgement::NotTheKeys => {
                let why = "ERR The user executing the script can't access at least one of the keys mentioned in the command \
                           arguments";
                return Err(why.to_owned());
            }
            Judgement::TakesLonger => {
                return Err("ERR the rights of the user take too long to judge".to_owned())
            }
        }
        if self.is_read_only && spec.flags.contains(&"write") {
            return Err("ERR Write commands are not allowed from read-only scripts.".to_owned());
        }
        let value_max = self.master.config.value_max;
        let mut left =
            Words::after_name(SmallVec::from_vec(words.clone()), Lengths { key_max: KEY_MAX, value_max });
        let asked = match spec.does {
            Does::Ask(read) => read(&mut left).map(|command| (command, Shape::Plain)),
            Does::AskFor(read) => read(&mut left)
                .map(|(command, excerpt): (Command, Excerpt)| (command, Shape::Excerpt(excerpt))),
            Does::Own(own @ (Own::Ping | Own::Echo | Own::Select)) => {
                let mut out = Vec::new();
                answer_in_script(own, spec.name, &words[1..], &mut out);
                return Ok(Task::Answer(out));
            }
            Does::Own(_) | Does::Describe | Does::Quit => return Err(NOT_ALLOWED.to_owned()),
        };
        match asked {
            Ok((command, shape)) if command.is_queueable() => Ok(Task::Ask(command, shape)),
            Ok(_) => Err(NOT_ALLOWED.to_owned()),
            Err(unfit) => {
                let mut out = Vec::new();
                say_unfit(spec.name, &unfit, &mut out);
                Ok(Task::Answer(out))
            }
        }
    }

    /// Executes a command; `None` if the script is stopped.
    fn ask(&mut self, command: &Command) -> Option<Reply> {
        let brought = match command.operands() {
            Operands::KeyAndValue(_, value) => value.len(),
            Operands::Compared(_, change) => change.value().map_or(0, Bytes::len),
            Operands::Pairs(pairs) => pairs.iter().map(|(_, value)| value.len()).sum(),
            Operands::None
            | Operands::Key(_)
            | Operands::Keys(_)
            | Operands::All(_)
            | Operands::Script(_)
            | Operands::Words(_) => 0,
        };
        // No request has brought what a script writes.
        self.scene.made_bytes += brought as u64;
        let at_hand = (self.wanted, self.is_next);
        let ran = if self.master.lines.may_make(self.scene.made_bytes, self.is_next) {
            self.master.run(command, self.scene, at_hand, self.effects)
        } else {
            Err(Interruption::Crowded)
        };
        let ran = ran.and_then(|reply| match self.master.excess(self.scene) {
            Some(why) if !self.scene.lacks => Err(Interruption::Refused(why)),
            Some(_) | None => Ok(reply),
        });
        match ran {
            Ok(_) if self.scene.lacks => None,
            Ok(reply) => {
                self.scene.note_made(command);
                Some(reply)
            }
            Err(interruption) => {
                self.interruption = Some(interruption);
                None
            }
        }
    }
}

impl ScriptHost for CallsOf<'_> {
    fn call(&mut self, words: Vec<Bytes>, resp3: bool, _: u64) -> Called {
        let protocol = if resp3 { Protocol::Resp3 } else { Protocol::Resp2 };
        match self.task(words) {
            Err(error) => Called::Answer(format!("-{error}\r\n").into_bytes(), 0),
            Ok(Task::Answer(answer)) => Called::Answer(answer, 0),
            Ok(Task::Ask(command, shape)) => {
                // A key that is looked up takes longer than a word.
                let steps = 100 * command.keys() as u64;
                let Some(reply) = self.ask(&command) else { return Called::Stop };
                let mut out = Vec::new();
                encode_reply(protocol, &shape, &reply, &mut out);
                Called::Answer(out, steps)
            }
        }
    }

    fn may(&mut self, words: &[Bytes]) -> Option<bool> {
        let spec = spec_of(words)?;
        Some(self.rights.judge(spec.name, words, JUDGED_STEPS) == Judgement::Allowed)
    }
}

/// The command of a request, or its subcommand.
fn spec_of(words: &[Bytes]) -> Option<&'static Spec> {
    let spec = find_command(words.first()?)?;
    match words.get(1) {
        Some(word) if !spec.subcommands.is_empty() => find_subcommand(spec, word),
        Some(_) | None => Some(spec),
    }
}

#[cfg(test)]
mod tests {
    use super::super::writes::tests::{key, World};
    use super::super::Event;
    use super::*;
    use crate::command::Transaction;
    use crate::ids::{LinkId, ReignId};

    fn script(text: &'static str, keys: &[usize]) -> Command {
        let keys = keys.iter().map(|number| key(*number)).collect();
        let (script, rights) =
            (ScriptName::Text(Bytes::from_static(text.as_bytes())), ScriptRights::default());
        let call = ScriptCall { script, keys, args: Vec::new(), is_read_only: false, rights };
        Command::Evaluate { call: Box::new(call) }
    }

    fn known(digest: &str) -> Command {
        let script = ScriptName::Digest(Bytes::copy_from_slice(digest.as_bytes()));
        let (keys, args, rights) = (Vec::new(), Vec::new(), ScriptRights::default());
        Command::Evaluate { call: Box::new(ScriptCall { script, keys, args, is_read_only: false, rights }) }
    }

    fn encoded(text: &'static str) -> Reply {
        Reply::Encoded(Bytes::from_static(text.as_bytes()))
    }

    /// The only slave sends this for all that it was asked for.
    fn bring(world: &mut World, value: &'static str) {
        for read in world.master.reads_in_flight() {
            let version = world.master.reads.get(read).expect("it is in flight").wanted;
            let (link, reign, value) = (LinkId(0), ReignId(1), Bytes::from_static(value.as_bytes()));
            world.step(Event::Value { link, read, version, reign, value });
        }
    }

    fn written_and_acked(world: &mut World) {
        world.written();
        world.chores();
        world.ack_all(0);
        world.chores();
    }

    fn put(world: &mut World, number: usize, value: &'static str) {
        world.ask(9, Command::Put { key: key(number), value: Bytes::from_static(value.as_bytes()) });
        written_and_acked(world);
    }

    #[test]
    fn a_script_is_one_record_of_what_remains_in_the_end() {
        let mut world = World::new(1);
        let text = "redis.call('SET', KEYS[1], 'a') redis.call('INCR', KEYS[2]) redis.call('DEL', KEYS[1]) \
                    redis.call('SET', KEYS[1], 'b') return redis.call('INCR', KEYS[2])";
        let asked = world.ask(1, script(text, &[1, 2]));
        assert_eq!(world.appended.len(), 1);
        let pair = |number, value: &'static str| (key(number), Bytes::from_static(value.as_bytes()));
        assert_eq!(world.last_appended, [pair(1, "b"), pair(2, "2")]);
        assert_eq!(world.answer(asked), None, "nothing is told before it is safe");
        written_and_acked(&mut world);
        assert_eq!(world.answer(asked), Some(&encoded(":2\r\n")));
        assert_eq!((world.master.in_flight(), world.master.lines.is_quiet()), (0, true));
    }

    #[test]
    fn a_script_begins_anew_with_each_value_that_it_needs_and_nothing_of_before_remains() {
        let mut world = World::new(1);
        put(&mut world, 1, "5");
        put(&mut world, 2, "7");
        let text = "redis.call('INCR', 'count') local a = redis.call('GET', KEYS[1]) \
                    return a + redis.call('GET', KEYS[1] == 'x' and 'y' or KEYS[2] or 'none')";
        let asked = world.ask(1, script(text, &[1, 2]));
        assert_eq!((world.read.len(), world.appended.len()), (2, 0), "all that it is told of");
        // Another session changes one of them meanwhile.
        world.ask(2, Command::Put { key: key(2), value: Bytes::from_static(b"20") });
        world.written();
        bring(&mut world, "5");
        assert_eq!(world.last_appended, [(Bytes::from_static(b"count"), Bytes::from_static(b"1"))]);
        written_and_acked(&mut world);
        assert_eq!(world.answer(asked), Some(&encoded(":25\r\n")), "by what they hold at its place");
        assert_eq!((world.master.in_flight(), world.master.lines.is_quiet()), (0, true));
    }

    #[test]
    fn a_script_that_fails_has_no_effect_and_what_stands_beside_it_has() {
        let mut world = World::new(1);
        let failing = "redis.call('SET', KEYS[1], 'x') redis.call('INCR', KEYS[2]) redis.call('DEL', KEYS[3]) error('no')";
        let alone = world.ask(1, script(failing, &[1, 2, 3]));
        assert!(world.appended.is_empty());
        let Some(Reply::Error(error)) = world.answer(alone) else { panic!("no error") };
        assert!(error.to_string().starts_with("ERR user_script:1: no script: "), "{error}");
        let set = |number, value: &'static str| Command::Put {
            key: key(number),
            value: Bytes::from_static(value.as_bytes()),
        };
        let commands = vec![
            set(2, "10"),
            set(3, "kept"),
            script(failing, &[1, 2, 3]),
            script("return {redis.call('EXISTS', KEYS[1]), redis.call('INCR', KEYS[2]), redis.call('GET', KEYS[3])}", &[1, 2, 3]),
        ];
        let asked = world.ask(
            1,
            Command::Transact { transaction: Box::new(Transaction { watched: Vec::new(), commands }) },
        );
        let pair = |number, value: &'static str| (key(number), Bytes::from_static(value.as_bytes()));
        assert_eq!(world.last_appended, [pair(2, "11"), pair(3, "kept")]);
        written_and_acked(&mut world);
        let Some(Reply::Many(replies)) = world.answer(asked) else { panic!("no answers") };
        assert_eq!(replies.0[3], encoded("*3\r\n:0\r\n:11\r\n$4\r\nkept\r\n"));
    }

    #[test]
    fn scripts_that_take_too_long_are_cut_off_and_share_what_a_step_has() {
        let mut world = World::new(1);
        let endless = "redis.call('SET', 'k', 'v') while true do pcall(error) end";
        let asked = world.ask(1, script(endless, &[]));
        let Some(Reply::Error(error)) = world.answer(asked) else { panic!("no error") };
        assert_eq!(error.to_string(), "ERR the script is cut off: it takes too long");
        assert!(world.appended.is_empty());
        // Many sessions at once: each step executes few of them.
        let busy = "for i = 1, 400000 do end return 1";
        let asked: Vec<_> = (1..9).map(|session| script(busy, &[session as usize])).collect();
        let mut effects = Vec::new();
        for (session, command) in (1..9).zip(asked) {
            let asker = Asker { session: crate::ids::SessionId(session), tag: 77 };
            world.master.line_up_for_tests(asker, command);
        }
        world.master.step(world.now, Event::Chore, &mut effects);
        let told = effects.iter().filter(|effect| matches!(effect, Effect::Reply { .. })).count();
        assert!((1..=4).contains(&told), "{told} in one step");
    }

    #[test]
    fn scripts_are_known_by_their_digests_until_the_reign_ends_or_others_take_their_place() {
        let mut world = World::new(1);
        let digest = "e0e1f9fabfc9d4800c877a703b823ac0578ff8db";
        let unknown = encoded("-NOSCRIPT No matching script. Please use EVAL.\r\n");
        let asked = world.ask(1, known(digest));
        assert_eq!(world.answer(asked), Some(&unknown));
        let load = Command::ScriptCache { request: ScriptRequest::Load(Bytes::from_static(b"return 1")) };
        let asked = world.ask(1, load);
        assert_eq!(world.answer(asked), Some(&Reply::Value(Bytes::from_static(digest.as_bytes()))));
        let asked = world.ask(1, known(&digest.to_uppercase()));
        assert_eq!(world.answer(asked), Some(&encoded(":1\r\n")));
        let mut scripts = Scripts::default();
        let text = |number: usize| {
            let text = format!("return {number} -- {}", "x".repeat(100_000));
            Arc::new(ScriptText::read(&Bytes::from(text)).expect("it is one"))
        };
        let first = text(0);
        (0..1000).for_each(|number| {
            scripts.keep(text(number));
            assert!(scripts.find(&first.digest).is_some(), "it is in use");
            assert!(scripts.bytes <= KNOWN_BYTES_MAX && scripts.known.len() == scripts.used.len());
        });
        assert!(scripts.find(&text(1).digest).is_none() && scripts.find(&text(999).digest).is_some());
        world.step(Event::ReignEnded);
        assert!(world.master.scripts.known.is_empty());
    }
}
