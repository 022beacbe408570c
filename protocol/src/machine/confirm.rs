//! Answers that wait until it is certain that this master led when they were decided.
//!
//! Where the log is kept by several machines, another master may lead without this one knowing it yet: its process was stopped, or
//! nobody of the others hears it. What it says then may be old. So each answer waits for a round in which a majority of the
//! others has confirmed this leadership, and which was begun after the request had come. A round is begun at the end of a turn,
//! for all requests of the turn, beside whatever they ask of slaves and of the log: a write that is acknowledged has waited as
//! long for its record. No clock has a part in it.
//!
//! **Invariant:** an answer leaves only once a round is confirmed that was begun after its request had come.
//!
//! **Invariant:** a round that is refused ends all requests that wait for it or an earlier one: what only reads is asked again,
//! of whoever leads by now; of a write nobody knows.

use crate::command::{Command, ErrorWord, Reply};
use crate::ids::Millis;
use crate::machine::master::Asker;
use std::collections::{BTreeMap, HashMap, VecDeque};

/// So many rounds may be under way. Requests that come meanwhile share the next one.
const ROUNDS_MAX: u64 = 4;

/// A request whose answer is to be confirmed.
#[derive(Clone, Debug)]
struct Unconfirmed {
    /// The round that confirms it, or a later one.
    round: u64,
    /// How it is asked again; `None` for what may have changed something.
    again: Option<(Millis, Command)>,
}

/// What becomes of a request that nobody has confirmed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UnconfirmedFate {
    /// It has changed nothing: it is to be asked again, until this deadline.
    AskAgain(Asker, Millis, Command),
    /// Nobody knows what it has changed.
    Unknown(Asker),
}

/// The answers of one master that wait.
#[derive(Debug, Default)]
pub struct Confirmations {
    /// The last round that was asked for. Requests wait for the next one.
    asked: u64,
    /// The last one that was confirmed or refused.
    settled: u64,
    /// The last one that was confirmed.
    confirmed: u64,
    /// The last one that was refused.
    refused: u64,
    /// Whether requests wait for a round that is not asked for yet.
    is_due: bool,
    requests: HashMap<Asker, Unconfirmed, foldhash::fast::FixedState>,
    held: BTreeMap<u64, VecDeque<(Asker, Reply)>>,
    held_count: usize,
}

impl Confirmations {
    /// A request is executed from now on.
    pub fn request(&mut self, asker: Asker, deadline: Millis, command: &Command) {
        self.is_due = true;
        let again = (!command.is_write()).then(|| (deadline, command.clone()));
        self.requests.insert(asker, Unconfirmed { round: self.asked + 1, again });
    }

    /// A request has its answer, which is given back if it may leave at once. One that waits for a round which is refused already is
    /// told to `unheard`.
    pub fn answered(&mut self, to: Asker, reply: Reply, unheard: &mut Vec<UnconfirmedFate>) -> Option<Reply> {
        let Some(request) = self.requests.get(&to) else { return Some(reply) };
        let round = request.round;
        // What is refused because this master does not lead rests on nothing that it knows.
        let is_refusal = matches!(&reply, Reply::Error(error) if error.word == ErrorWord::Standby);
        if round <= self.confirmed || is_refusal {
            self.requests.remove(&to);
            return Some(reply);
        }
        if round <= self.refused {
            self.give_up(to, unheard);
            return None;
        }
        self.held.entry(round).or_default().push_back((to, reply));
        self.held_count += 1;
        None
    }

    /// The round that is to be asked for now, at the end of a turn, if one is.
    pub fn ask(&mut self) -> Option<u64> {
        if !self.is_due || self.asked - self.settled >= ROUNDS_MAX {
            return None;
        }
        self.is_due = false;
        self.asked += 1;
        Some(self.asked)
    }

    /// A round is confirmed, and each before it: gives the answers that may leave, in the order in which they were decided.
    pub fn confirmed(&mut self, round: u64, answers: &mut Vec<(Asker, Reply)>) {
        self.settled = self.settled.max(round);
        self.confirmed = self.confirmed.max(round);
        while let Some(first) = self.held.first_entry().filter(|first| *first.key() <= round) {
            for (to, reply) in first.remove() {
                self.held_count -= 1;
                self.requests.remove(&to);
                answers.push((to, reply));
            }
        }
    }

    /// A round is refused, and each before it that is not confirmed: this master leads no more. What has no answer yet is given up
    /// when it has one.
    pub fn refused(&mut self, round: u64, unheard: &mut Vec<UnconfirmedFate>) {
        self.settled = self.settled.max(round);
        self.refused = self.refused.max(round);
        while let Some(first) = self.held.first_entry().filter(|first| *first.key() <= round) {
            for (to, _) in first.remove() {
                self.held_count -= 1;
                self.give_up(to, unheard);
            }
        }
    }

    fn give_up(&mut self, asker: Asker, unheard: &mut Vec<UnconfirmedFate>) {
        let Some(request) = self.requests.remove(&asker) else { return };
        unheard.push(match request.again {
            Some((deadline, command)) => UnconfirmedFate::AskAgain(asker, deadline, command),
            None => UnconfirmedFate::Unknown(asker),
        });
    }

    /// How many answers wait.
    pub fn held(&self) -> usize {
        self.held_count
    }

    /// Nothing is executed any more: forgets requests that nobody has waited for.
    pub fn nothing_in_flight(&mut self) {
        if self.held_count == 0 {
            self.requests.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::SessionId;

    fn asker(tag: u64) -> Asker {
        Asker { session: SessionId(1), tag }
    }

    fn get() -> Command {
        Command::Get { key: "k".into() }
    }

    fn put() -> Command {
        Command::Put { key: "k".into(), value: "v".into() }
    }

    fn answered(all: &mut Confirmations, tag: u64) -> Option<Reply> {
        let mut unheard = Vec::new();
        let reply = all.answered(asker(tag), Reply::Done, &mut unheard);
        assert_eq!(unheard, []);
        reply
    }

    fn confirmed(all: &mut Confirmations, round: u64) -> Vec<u64> {
        let mut answers = Vec::new();
        all.confirmed(round, &mut answers);
        answers.into_iter().map(|(to, _)| to.tag).collect()
    }

    #[test]
    fn an_answer_waits_for_a_round_that_was_begun_after_its_request() {
        let mut all = Confirmations::default();
        assert_eq!(all.ask(), None, "nobody waits");
        all.request(asker(1), Millis(9), &get());
        assert_eq!(all.ask(), Some(1));
        all.request(asker(2), Millis(9), &get());
        assert_eq!((answered(&mut all, 1), answered(&mut all, 2), all.held()), (None, None, 2));
        assert_eq!(confirmed(&mut all, 1), [1], "the second one came after the round had begun");
        assert_eq!(all.ask(), Some(2));
        assert_eq!(all.ask(), None);
        assert_eq!(confirmed(&mut all, 2), [2]);
        assert_eq!(all.held(), 0);
    }

    #[test]
    fn an_answer_that_comes_after_its_round_is_confirmed_leaves_at_once() {
        let mut all = Confirmations::default();
        all.request(asker(1), Millis(9), &put());
        assert_eq!(all.ask(), Some(1));
        assert_eq!(confirmed(&mut all, 1), [0; 0]);
        assert_eq!(answered(&mut all, 1), Some(Reply::Done));
        // What was never executed waits for nothing.
        assert_eq!(answered(&mut all, 7), Some(Reply::Done));
    }

    #[test]
    fn a_round_confirms_those_before_it_and_few_are_under_way() {
        let mut all = Confirmations::default();
        for tag in 1..=ROUNDS_MAX + 2 {
            all.request(asker(tag), Millis(9), &get());
            assert_eq!(answered(&mut all, tag), None);
            assert_eq!(all.ask(), (tag <= ROUNDS_MAX).then_some(tag));
        }
        assert_eq!(confirmed(&mut all, ROUNDS_MAX - 1), (1..ROUNDS_MAX).collect::<Vec<_>>());
        assert_eq!(all.ask(), Some(ROUNDS_MAX + 1), "one for all that came meanwhile");
        assert_eq!(confirmed(&mut all, ROUNDS_MAX + 1), [ROUNDS_MAX, ROUNDS_MAX + 1, ROUNDS_MAX + 2]);
        all.nothing_in_flight();
        assert!(all.requests.is_empty());
    }

    #[test]
    fn what_is_not_confirmed_is_asked_again_or_unknown_answered_or_not() {
        let mut all = Confirmations::default();
        all.request(asker(1), Millis(9), &get());
        all.request(asker(2), Millis(9), &put());
        all.request(asker(3), Millis(8), &get());
        assert_eq!(all.ask(), Some(1));
        assert_eq!((answered(&mut all, 1), answered(&mut all, 2)), (None, None));
        let mut unheard = Vec::new();
        all.refused(1, &mut unheard);
        assert_eq!(
            unheard,
            [UnconfirmedFate::AskAgain(asker(1), Millis(9), get()), UnconfirmedFate::Unknown(asker(2))]
        );
        unheard.clear();
        assert_eq!(all.answered(asker(3), Reply::Done, &mut unheard), None);
        assert_eq!(unheard, [UnconfirmedFate::AskAgain(asker(3), Millis(8), get())]);
        assert_eq!((all.held(), all.requests.len()), (0, 0));
        // One that was confirmed before leaves, however late.
        all.request(asker(5), Millis(9), &get());
        assert_eq!((all.ask(), confirmed(&mut all, 2)), (Some(2), Vec::new()));
        all.request(asker(6), Millis(9), &put());
        assert_eq!(all.ask(), Some(3));
        all.refused(3, &mut Vec::new());
        assert_eq!(answered(&mut all, 5), Some(Reply::Done));
        let standby = Reply::error(ErrorWord::Standby, "elsewhere");
        assert_eq!(all.answered(asker(6), standby.clone(), &mut Vec::new()), Some(standby));
        // In the next reign rounds are counted on.
        all.request(asker(4), Millis(9), &get());
        assert_eq!(all.ask(), Some(4));
        assert_eq!(answered(&mut all, 4), None);
        assert_eq!(confirmed(&mut all, 4), [4]);
    }
}
