//! The linearizability checker: takes what concurrent clients saw of single keys, and tells whether one order of their
//! operations explains all of it.
//!
//! Owns the recorded [`History`], the search, and the counter-example that a person can read. Never reads a clock, never
//! talks to a cluster, and does not know how a history was made: tests, harness and simulation give the times. No serving
//! code depends on this crate. Written by hand, because other checkers (Porcupine, Knossos) are not in Rust, or do not
//! allow an outcome that stays unknown.
//!
//! Linearizability is local (Herlihy and Wing, 1990): a history is linearizable if each key's part is. Each
//! part is searched as Wing and Gong (1993) and Lowe (2017) describe: linearize one operation after the other,
//! remember which (set of linearized operations, state) was seen, go back when nothing fits. On top of it:
//!
//! * An operation whose outcome is unknown returns at infinity, and may or may not have happened.
//! * An operation that was answered *not executed* must not have happened: it is left out, so that a read of
//!   its value has no explanation.
//! * A read that fits the present state is linearized at once, without a branch: it changes nothing. So is a write that
//!   was never read, once no operation needs the present state.
//! * A state is not left while another operation still needs it and no open operation can produce it again.
//! * A conditional write that did nothing is a read: it says whether the key was there. One whose outcome is unknown may
//!   only have happened while its condition held.
//!
//! The set of linearized operations is remembered as a 128 bit sum of random numbers, one for each operation.
//!
//! A key that is only incremented needs no search: [`check_counter`].
//!
//! ```
//! use dsm_history::{Action, History, OperationOutcome, Violation};
//!
//! // One client writes; the answer comes at 20 ns. Another one reads while the write is under way.
//! let mut history = History::new();
//! let write = history.begin(1, "k".into(), Action::Write("new".into()), 10);
//! let early = history.begin(2, "k".into(), Action::Read(None), 15);
//! history.finish(write, OperationOutcome::Done, 20);
//! history.finish_read(early, None, 25);
//! assert_eq!(history.check().expect("the read happened first").done, 2);
//!
//! // A third one asks later, and is told that there is nothing: no order explains that.
//! let late = history.begin(3, "k".into(), Action::Read(None), 30);
//! history.finish_read(late, None, 35);
//! assert!(matches!(history.check(), Err(Violation::NotLinearizable(_))));
//! ```

#![deny(clippy::disallowed_methods)]
#![deny(clippy::wildcard_enum_match_arm)]

mod counter;

pub use counter::{check_counter, CounterStats, CounterViolation, Increment};

use bytes::Bytes;
use foldhash::fast::FixedState;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;

/// The default of [`SearchLimits::steps_max`].
pub const STEPS_MAX_DEFAULT: u64 = 20_000_000;

/// How many smaller histories are tried, at most, to make a counter-example small.
const SHRINK_TRIALS_MAX: u32 = 4_000;

/// The steps of the search that one such trial may take.
const SHRINK_STEPS_MAX: u64 = 200_000;

/// The columns of the drawn timeline.
const TIMELINE_COLUMNS_MAX: usize = 60;

/// The bytes of a key or value that a counter-example prints.
const PRINTED_BYTES_MAX: usize = 48;

/// What a client asked of one key, with the answer's content if it has one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Writes the value. Values that are unique within a key make the check sharp and fast.
    Write(Bytes),
    /// Deletes the key; the answer says whether it existed.
    Delete {
        /// Whether the answer said that the key existed; `None` when it did not say.
        existed: Option<bool>,
    },
    /// Reads the key: the value that was answered, `None` for a missing key. Without meaning unless the
    /// outcome is [`OperationOutcome::Done`].
    Read(Option<Bytes>),
    /// Reads the key and replaces what is there, in one step (`SET key value GET`, `GETDEL key`).
    Swap {
        /// What it leaves; `None`: the key is gone.
        value: Option<Bytes>,
        /// What was there, `None` for a missing key. Without meaning unless the outcome is
        /// [`OperationOutcome::Done`].
        seen: Option<Bytes>,
    },
    /// Writes the value if the key is there, or if it is not (`SET key value XX`, `SET key value NX`).
    WriteIf {
        /// What it writes.
        value: Bytes,
        /// Whether it writes only to a key that is there; else only to one that is not.
        if_present: bool,
        /// Whether the answer said that it wrote. Without meaning unless the outcome is
        /// [`OperationOutcome::Done`].
        done: bool,
    },
}

/// How an operation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OperationOutcome {
    /// It was answered with a result: it happened, once, between invocation and return.
    Done,
    /// It was answered with an error that means *not executed*: it must not have happened.
    NotExecuted,
    /// It may have happened, at any time after its invocation, or not.
    Unknown,
}

/// One operation of one client on one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientOperation {
    /// Which client, for people only: a client may have several operations open.
    pub client: u64,
    /// The key that it is about.
    pub key: Bytes,
    /// What was asked of the store.
    pub action: Action,
    /// How it ended, as the client knows.
    pub outcome: OperationOutcome,
    /// Nanoseconds on a clock that all clients share: before the request left.
    pub invoked_ns: u64,
    /// Nanoseconds on the same clock: after the answer came. Without meaning when the outcome is unknown.
    pub returned_ns: u64,
}

/// Names an operation that was begun at a [`History`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Begun(usize);

/// Records operations. Concurrent clients keep one each and [`merge`](History::merge) them at the end.
#[derive(Clone, Debug, Default)]
pub struct History {
    operations: Vec<ClientOperation>,
}

impl History {
    /// A history without operations.
    pub fn new() -> Self {
        History::default()
    }

    /// Notes that a request is about to leave. Until it is finished its outcome is unknown.
    pub fn begin(&mut self, client: u64, key: Bytes, action: Action, now_ns: u64) -> Begun {
        self.operations.push(ClientOperation {
            client,
            key,
            action,
            outcome: OperationOutcome::Unknown,
            invoked_ns: now_ns,
            returned_ns: u64::MAX,
        });
        Begun(self.operations.len() - 1)
    }

    /// Notes how an operation ended. `begun` must come from this history.
    pub fn finish(&mut self, begun: Begun, outcome: OperationOutcome, now_ns: u64) {
        let operation = &mut self.operations[begun.0];
        operation.outcome = outcome;
        operation.returned_ns = now_ns;
    }

    /// Notes what a read was answered. `begun` must come from this history.
    pub fn finish_read(&mut self, begun: Begun, value: Option<Bytes>, now_ns: u64) {
        self.operations[begun.0].action = Action::Read(value);
        self.finish(begun, OperationOutcome::Done, now_ns);
    }

    /// Notes that a delete was done, and whether the key existed. `begun` must come from this history.
    pub fn finish_delete(&mut self, begun: Begun, existed: bool, now_ns: u64) {
        self.operations[begun.0].action = Action::Delete { existed: Some(existed) };
        self.finish(begun, OperationOutcome::Done, now_ns);
    }

    /// Notes that a swap was done, and what it saw. `begun` must come from this history. A conditional write that was
    /// answered with what it replaced (`SET key value XX GET`) becomes a swap.
    pub fn finish_swap(&mut self, begun: Begun, seen: Option<Bytes>, now_ns: u64) {
        let operation = &mut self.operations[begun.0];
        operation.action = Action::Swap { value: asked_value(&operation.action).cloned(), seen };
        self.finish(begun, OperationOutcome::Done, now_ns);
    }

    /// Notes that a conditional write was answered, and whether it wrote. `begun` must come from this history.
    ///
    /// # Panics
    /// When another action was begun.
    pub fn finish_write_if(&mut self, begun: Begun, done: bool, now_ns: u64) {
        let Action::WriteIf { done: wrote, .. } = &mut self.operations[begun.0].action else {
            panic!("only a conditional write says whether it wrote");
        };
        *wrote = done;
        self.finish(begun, OperationOutcome::Done, now_ns);
    }

    /// Adds the operations that another client recorded on the same clock.
    pub fn merge(&mut self, other: History) {
        self.operations.extend(other.operations);
    }

    /// The operations in the order in which they were begun.
    pub fn operations(&self) -> &[ClientOperation] {
        &self.operations
    }

    /// Checks what was recorded, with the default limits.
    ///
    /// # Errors
    /// As [`check`].
    pub fn check(&self) -> Result<Stats, Violation> {
        check(&self.operations)
    }
}

/// Bounds of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SearchLimits {
    /// How many operations the search may linearize for one key, including those that it takes back.
    pub steps_max: u64,
}

impl Default for SearchLimits {
    fn default() -> Self {
        SearchLimits { steps_max: STEPS_MAX_DEFAULT }
    }
}

/// What a check that passed looked at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Operations in the history.
    pub operations: usize,
    /// How many different keys were used.
    pub keys: usize,
    /// Operations with a result.
    pub done: usize,
    /// Operations that were answered *not executed*.
    pub not_executed: usize,
    /// Operations whose outcome is unknown.
    pub unknown: usize,
    /// Steps of the search over all keys.
    pub steps: u64,
}

impl fmt::Display for Stats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} operations on {} keys are linearizable ({} done, {} not executed, {} unknown; {} steps)",
            self.operations, self.keys, self.done, self.not_executed, self.unknown, self.steps
        )
    }
}

/// Why a history did not pass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Violation {
    /// No order of the operations explains the answers.
    NotLinearizable(CounterExample),
    /// The search took more steps than it may: nothing is known about this key.
    GaveUp {
        /// The key whose history is too long to judge.
        key: Bytes,
        /// How many operations that has.
        operations: usize,
        /// The steps that were taken.
        steps: u64,
    },
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Violation::NotLinearizable(example) => example.fmt(f),
            Violation::GaveUp { key, operations, steps } => {
                write!(f, "gave up on key {} with {operations} operations after {steps} steps", Printed(key))
            }
        }
    }
}

impl std::error::Error for Violation {}

/// A part of one key's history that has no explanation by itself. No operation can be left out of it without
/// changing that (unless the bound on the search for a smaller one was reached).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CounterExample {
    /// The key whose history no order explains.
    pub key: Bytes,
    /// The operations that contradict each other, by the time of their invocation.
    pub operations: Vec<ClientOperation>,
    /// How many operations the key's whole history has.
    pub of: usize,
    /// One sentence that says what is wrong.
    pub reason: String,
}

impl fmt::Display for CounterExample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "key {} is not linearizable: {} ({} of its {} operations suffice)",
            Printed(&self.key),
            self.reason,
            self.operations.len(),
            self.of
        )?;
        let origin = self.operations.iter().map(|o| o.invoked_ns).min().unwrap_or(0);
        let milliseconds = |ns: u64| ns.saturating_sub(origin) as f64 / 1e6;
        let columns = Columns::new(&self.operations);
        writeln!(f, "{:>8} {:>12} {:>12}  {}", "client", "from ms", "to ms", columns.blank())?;
        for operation in &self.operations {
            let to = match operation.outcome {
                OperationOutcome::Unknown => "?".to_string(),
                OperationOutcome::Done | OperationOutcome::NotExecuted => {
                    format!("{:.3}", milliseconds(operation.returned_ns))
                }
            };
            writeln!(
                f,
                "{:>8} {:>12.3} {:>12}  {}  {}",
                operation.client,
                milliseconds(operation.invoked_ns),
                to,
                columns.bar(operation),
                Described(operation),
            )?;
        }
        Ok(())
    }
}

/// Checks that one order of the operations on each key explains all answers, with the default [`SearchLimits`].
///
/// One operation precedes another if it returned at an earlier nanosecond than the other was invoked.
///
/// # Errors
/// The first key, in the order of the keys, whose history is not linearizable, with a small counter-example; or
/// for which the search gave up.
pub fn check(operations: &[ClientOperation]) -> Result<Stats, Violation> {
    check_within(operations, SearchLimits::default())
}

/// [`check`] with bounds of the caller's choice.
///
/// # Errors
/// As [`check`].
pub fn check_within(operations: &[ClientOperation], limits: SearchLimits) -> Result<Stats, Violation> {
    let mut stats = Stats { operations: operations.len(), ..Stats::default() };
    for operation in operations {
        match operation.outcome {
            OperationOutcome::Done => stats.done += 1,
            OperationOutcome::NotExecuted => stats.not_executed += 1,
            OperationOutcome::Unknown => stats.unknown += 1,
        }
    }
    let mut gave_up = None;
    for (key, part) in by_key(operations) {
        stats.keys += 1;
        match search(&part, limits.steps_max) {
            Verdict::Linearizable { steps } => stats.steps += steps,
            Verdict::Not => return Err(Violation::NotLinearizable(counter_example(key, part))),
            // A proven contradiction of one key is reported before a search that gave up.
            Verdict::GaveUp { steps } => {
                gave_up.get_or_insert(Violation::GaveUp { key: key.clone(), operations: part.len(), steps });
            }
        }
    }
    gave_up.map_or(Ok(stats), Err)
}

/// What a key may hold once all its operations are over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Readable {
    /// The possible values: written, and not certainly overwritten or deleted.
    pub values: Vec<Bytes>,
    /// Whether the key may be missing.
    pub missing: bool,
}

impl Readable {
    /// Whether `value` (`None`: missing) may be what is read.
    pub fn allows(&self, value: Option<&Bytes>) -> bool {
        match value {
            Some(value) => self.values.contains(value),
            None => self.missing,
        }
    }
}

/// For each key, what may be read when nothing is in flight any more: the acknowledged writes that no later one
/// replaced. Weaker than [`check`] with the final reads in the history, but so simple that it is easily seen to be
/// right, and it names the write that is lost.
pub fn readable_after(operations: &[ClientOperation]) -> BTreeMap<Bytes, Readable> {
    by_key(operations)
        .into_iter()
        .map(|(key, part)| {
            // A change is certainly replaced by one that was invoked after it had returned.
            let last_invoked_ns = part
                .iter()
                .filter(|o| o.outcome == OperationOutcome::Done && is_change(o))
                .map(|o| o.invoked_ns)
                .max();
            let mut readable = Readable { values: Vec::new(), missing: last_invoked_ns.is_none() };
            for operation in part {
                let stands = match operation.outcome {
                    OperationOutcome::Done => Some(operation.returned_ns) >= last_invoked_ns,
                    OperationOutcome::Unknown => true,
                    OperationOutcome::NotExecuted => false,
                };
                if !stands || !is_change(&operation) {
                    continue;
                }
                match operation.action {
                    Action::Write(value)
                    | Action::WriteIf { value, .. }
                    | Action::Swap { value: Some(value), .. } => readable.values.push(value),
                    Action::Delete { .. } | Action::Swap { value: None, .. } => readable.missing = true,
                    Action::Read(_) => {}
                }
            }
            (key, readable)
        })
        .collect()
}

fn is_change(operation: &ClientOperation) -> bool {
    match operation.action {
        // A delete that found nothing changed nothing.
        Action::Delete { existed } => operation.outcome != OperationOutcome::Done || existed != Some(false),
        Action::WriteIf { done, .. } => operation.outcome != OperationOutcome::Done || done,
        Action::Write(_) | Action::Swap { .. } => true,
        Action::Read(_) => false,
    }
}

/// The operations of each key, by the time of their invocation.
fn by_key(operations: &[ClientOperation]) -> BTreeMap<Bytes, Vec<ClientOperation>> {
    let mut parts: BTreeMap<Bytes, Vec<ClientOperation>> = BTreeMap::new();
    for operation in operations {
        parts.entry(operation.key.clone()).or_default().push(operation.clone());
    }
    for part in parts.values_mut() {
        part.sort_by_key(|o| o.invoked_ns);
    }
    parts
}

enum Verdict {
    Linearizable { steps: u64 },
    Not,
    GaveUp { steps: u64 },
}

/// The state of a key, numbered: missing, some value that was never read, or one of the values that were read.
type State = usize;

const MISSING: State = 0;
const UNREAD: State = 1;
const FIRST_VALUE: State = 2;

/// An operation as the search sees it.
#[derive(Clone, Copy)]
struct Step {
    effect: Effect,
    invoked_ns: u64,
    /// `None` when the outcome is unknown: it returns at infinity.
    returned_ns: Option<u64>,
}

/// What an operation needs to find.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Needs {
    Nothing,
    /// The key, with any value.
    Present,
    /// This state.
    State(State),
}

impl Needs {
    fn allow(self, state: State) -> bool {
        match self {
            Needs::Nothing => true,
            Needs::Present => state != MISSING,
            Needs::State(needed) => state == needed,
        }
    }
}

#[derive(Clone, Copy)]
enum Effect {
    /// Leaves what it finds.
    Read(Needs),
    /// Leaves `to`.
    Set { to: State, needs: Needs },
}

impl Effect {
    fn needs(self) -> Needs {
        match self {
            Effect::Read(needs) | Effect::Set { needs, .. } => needs,
        }
    }
}

/// Numbers the states, and leaves out operations without information: failed reads, and those that were not executed.
fn steps_of(part: &[ClientOperation]) -> (Vec<Step>, usize) {
    let mut numbers: HashMap<&Bytes, State, FixedState> = HashMap::default();
    for value in part.iter().filter_map(read_value) {
        let next = FIRST_VALUE + numbers.len();
        numbers.entry(value).or_insert(next);
    }
    let steps = part
        .iter()
        .filter_map(|operation| {
            let done = operation.outcome == OperationOutcome::Done;
            let returned_ns = done.then_some(operation.returned_ns.max(operation.invoked_ns));
            let effect = effect_of(operation, &numbers)?;
            Some(Step { effect, invoked_ns: operation.invoked_ns, returned_ns })
        })
        .collect();
    (steps, FIRST_VALUE + numbers.len())
}

fn effect_of(operation: &ClientOperation, numbers: &HashMap<&Bytes, State, FixedState>) -> Option<Effect> {
    let done = match operation.outcome {
        OperationOutcome::Done => true,
        OperationOutcome::Unknown => false,
        OperationOutcome::NotExecuted => return None,
    };
    let number = |value: &Bytes| numbers.get(value).copied().unwrap_or(UNREAD);
    let state = |value: &Option<Bytes>| value.as_ref().map_or(MISSING, number);
    Some(match &operation.action {
        Action::Write(value) => Effect::Set { to: number(value), needs: Needs::Nothing },
        Action::Delete { existed: Some(false) } if done => Effect::Read(Needs::State(MISSING)),
        Action::Delete { existed: Some(true) } if done => Effect::Set { to: MISSING, needs: Needs::Present },
        Action::Delete { .. } => Effect::Set { to: MISSING, needs: Needs::Nothing },
        Action::Read(value) if done => Effect::Read(Needs::State(state(value))),
        Action::Read(_) => return None,
        // One that leaves what it saw is a read, which needs no branch.
        Action::Swap { value, seen } if done && value == seen => Effect::Read(Needs::State(state(seen))),
        Action::Swap { value, seen } => {
            let needs = if done { Needs::State(state(seen)) } else { Needs::Nothing };
            Effect::Set { to: state(value), needs }
        }
        Action::WriteIf { value, if_present, done: wrote } => {
            let to = number(value);
            match (*if_present, !done || *wrote) {
                // If it happened, nobody can tell.
                (true, _) if !done && to == UNREAD => return None,
                (true, true) => Effect::Set { to, needs: Needs::Present },
                (false, true) => Effect::Set { to, needs: Needs::State(MISSING) },
                (true, false) => Effect::Read(Needs::State(MISSING)),
                (false, false) => Effect::Read(Needs::Present),
            }
        }
    })
}

fn search(part: &[ClientOperation], steps_max: u64) -> Verdict {
    let (steps, states) = steps_of(part);
    Search::new(steps, states).run(steps_max)
}

/// The search for an order: the present place in it, and what leads back.
///
/// Calls and returns are in one doubly linked list by time, from which the two events of a linearized operation are
/// unlinked. The candidates for the next operation are the calls before the first return.
struct Search {
    steps: Vec<Step>,
    next: Vec<usize>,
    previous: Vec<usize>,
    state: State,
    /// Operations with a return that are not linearized.
    open: usize,
    /// What open operations need that were done.
    needed: Needed,
    /// What open operations with unknown outcome need, should they happen.
    needed_perhaps: Needed,
    /// By state: open operations that leave it, those with unknown outcome included.
    producers: Vec<usize>,
    /// The operations that are linearized, in order.
    trail: Vec<usize>,
    /// The sum of their numbers.
    sum: u128,
    numbers: Vec<u128>,
}

/// How many operations need what.
struct Needed {
    /// By state: those that need it.
    states: Vec<usize>,
    /// Those that need the key to be there, with any value.
    present: usize,
}

impl Needed {
    fn new(states: usize) -> Self {
        Needed { states: vec![0; states], present: 0 }
    }

    fn count(&mut self, needs: Needs) -> Option<&mut usize> {
        match needs {
            Needs::Nothing => None,
            Needs::Present => Some(&mut self.present),
            Needs::State(state) => Some(&mut self.states[state]),
        }
    }

    fn add(&mut self, needs: Needs) {
        if let Some(count) = self.count(needs) {
            *count += 1;
        }
    }

    fn remove(&mut self, needs: Needs) {
        if let Some(count) = self.count(needs) {
            *count -= 1;
        }
    }
}

/// A choice that can be taken back.
struct Branch {
    step: usize,
    state: State,
    trail: usize,
}

impl Search {
    fn new(steps: Vec<Step>, states: usize) -> Self {
        let count = steps.len();
        // Calls come in front of returns of the same nanosecond: only an earlier return precedes.
        let mut events: Vec<(u64, bool, usize)> = Vec::with_capacity(2 * count);
        let mut open = 0;
        let mut numbers = Vec::with_capacity(count);
        for (index, step) in steps.iter().enumerate() {
            events.push((step.invoked_ns, false, index));
            if let Some(returned_ns) = step.returned_ns {
                events.push((returned_ns, true, index));
                open += 1;
            }
            numbers.push(random_number(class(index, step, count, states) as u64));
        }
        events.sort_unstable();
        let head = 2 * count;
        let mut next = vec![head; head + 1];
        let mut previous = vec![head; head + 1];
        let mut last = head;
        for (_, is_return, index) in events {
            let event = 2 * index + usize::from(is_return);
            next[last] = event;
            previous[event] = last;
            last = event;
        }
        next[last] = head;
        previous[head] = last;
        let mut search = Search {
            steps,
            next,
            previous,
            state: MISSING,
            open,
            needed: Needed::new(states),
            needed_perhaps: Needed::new(states),
            producers: vec![0; states],
            trail: Vec::with_capacity(count),
            sum: 0,
            numbers,
        };
        for index in 0..count {
            search.add_needs(index);
        }
        search
    }

    fn run(mut self, steps_max: u64) -> Verdict {
        let head = 2 * self.steps.len();
        let mut seen: HashSet<(u128, State), FixedState> = HashSet::default();
        let mut branches: Vec<Branch> = Vec::new();
        let mut taken = 0;
        self.absorb();
        let mut cursor = self.next[head];
        while self.open > 0 {
            let candidate = self.candidate(&mut cursor);
            let back = match candidate {
                Some((step, to)) => {
                    taken += 1;
                    if taken > steps_max {
                        return Verdict::GaveUp { steps: taken };
                    }
                    branches.push(Branch { step, state: self.state, trail: self.trail.len() });
                    self.linearize(step);
                    self.state = to;
                    self.absorb();
                    !seen.insert((self.sum, self.state))
                }
                None => true,
            };
            if !back {
                cursor = self.next[head];
                continue;
            }
            let Some(branch) = branches.pop() else { return Verdict::Not };
            while self.trail.len() > branch.trail {
                self.take_back();
            }
            self.state = branch.state;
            cursor = self.next[2 * branch.step];
        }
        Verdict::Linearizable { steps: taken }
    }

    /// The first change at or after `cursor` that may come next and is of use; moves `cursor` to its call.
    fn candidate(&self, cursor: &mut usize) -> Option<(usize, State)> {
        let head = 2 * self.steps.len();
        while *cursor != head && cursor.is_multiple_of(2) {
            let index = *cursor / 2;
            let step = &self.steps[index];
            if let Effect::Set { to, needs } = step.effect {
                let leaves_needed = to != self.state && self.is_needed_by_others(step);
                let is_useful = step.returned_ns.is_some() || self.is_wanted(to);
                if needs.allow(self.state) && !leaves_needed && is_useful {
                    return Some((index, to));
                }
            }
            *cursor = self.next[*cursor];
        }
        None
    }

    /// Whether an operation that was done, other than this one, can only find its state now.
    fn is_needed_by_others(&self, step: &Step) -> bool {
        let own = step.returned_ns.is_some() && step.effect.needs() == Needs::State(self.state);
        self.producers[self.state] == 0 && self.needed.states[self.state] > usize::from(own)
    }

    /// Whether a change that need not happen would be of use.
    fn is_wanted(&self, to: State) -> bool {
        let state = self.needed.states[to] > 0 || self.needed_perhaps.states[to] > 0;
        let present = self.needed.present > 0 || self.needed_perhaps.present > 0;
        to != self.state && (state || (present && to != MISSING && self.state == MISSING))
    }

    /// Linearizes operations that exclude no choice: reads that fit and, when no operation needs the present state or
    /// the key's existence, writes that were never read.
    fn absorb(&mut self) {
        let head = 2 * self.steps.len();
        loop {
            let mut cursor = self.next[head];
            let mut writes = false;
            while cursor != head && cursor.is_multiple_of(2) {
                let index = cursor / 2;
                cursor = self.next[cursor];
                match self.steps[index].effect {
                    Effect::Read(needs) if needs.allow(self.state) => {
                        // The event after the call can be the read's own return.
                        if cursor == 2 * index + 1 {
                            cursor = self.next[cursor];
                        }
                        self.linearize(index);
                    }
                    Effect::Read(_) | Effect::Set { .. } => writes |= self.is_never_read(index),
                }
            }
            // What an operation with unknown outcome needs counts too: it could no longer happen.
            let is_needed = [&self.needed, &self.needed_perhaps]
                .into_iter()
                .any(|needed| needed.present > 0 || needed.states[self.state] > 0);
            if !writes || is_needed {
                return;
            }
            let mut cursor = self.next[head];
            while cursor != head && cursor.is_multiple_of(2) {
                let index = cursor / 2;
                cursor = self.next[cursor];
                if self.is_never_read(index) {
                    if cursor == 2 * index + 1 {
                        cursor = self.next[cursor];
                    }
                    self.linearize(index);
                    self.state = UNREAD;
                }
            }
        }
    }

    /// Whether this write was done, needed nothing, and left a value that nobody saw.
    fn is_never_read(&self, index: usize) -> bool {
        let step = &self.steps[index];
        let unread = matches!(step.effect, Effect::Set { to: UNREAD, needs: Needs::Nothing });
        unread && step.returned_ns.is_some()
    }

    /// Counts what an open operation needs and leaves.
    fn add_needs(&mut self, index: usize) {
        let step = self.steps[index];
        let is_sure = step.returned_ns.is_some();
        let needed = if is_sure { &mut self.needed } else { &mut self.needed_perhaps };
        needed.add(step.effect.needs());
        if let Effect::Set { to, .. } = step.effect {
            self.producers[to] += 1;
        }
    }

    fn remove_needs(&mut self, index: usize) {
        let step = self.steps[index];
        let is_sure = step.returned_ns.is_some();
        let needed = if is_sure { &mut self.needed } else { &mut self.needed_perhaps };
        needed.remove(step.effect.needs());
        if let Effect::Set { to, .. } = step.effect {
            self.producers[to] -= 1;
        }
    }

    fn linearize(&mut self, index: usize) {
        self.unlink(2 * index);
        if self.steps[index].returned_ns.is_some() {
            self.unlink(2 * index + 1);
            self.open -= 1;
        }
        self.remove_needs(index);
        self.sum = self.sum.wrapping_add(self.numbers[index]);
        self.trail.push(index);
    }

    fn take_back(&mut self) {
        let index = self.trail.pop().expect("only what was linearized is taken back");
        self.sum = self.sum.wrapping_sub(self.numbers[index]);
        self.add_needs(index);
        if self.steps[index].returned_ns.is_some() {
            self.relink(2 * index + 1);
            self.open += 1;
        }
        self.relink(2 * index);
    }

    fn unlink(&mut self, event: usize) {
        let (before, behind) = (self.previous[event], self.next[event]);
        self.next[before] = behind;
        self.previous[behind] = before;
    }

    /// Undoes the latest [`unlink`](Self::unlink) that was not undone: the event still has its links.
    fn relink(&mut self, event: usize) {
        let (before, behind) = (self.previous[event], self.next[event]);
        self.next[before] = event;
        self.previous[behind] = event;
    }
}

/// Operations of one class are interchangeable: those with unknown outcome that need and leave the same. None of them
/// has to return, and both were invoked if both could be chosen.
fn class(index: usize, step: &Step, count: usize, states: usize) -> usize {
    match (step.effect, step.returned_ns) {
        (Effect::Set { to, needs }, None) => {
            let needs = match needs {
                Needs::Nothing => 0,
                Needs::Present => 1,
                Needs::State(state) => 2 + state,
            };
            count + to * (2 + states) + needs
        }
        (Effect::Set { .. } | Effect::Read(_), _) => index,
    }
}

/// Two rounds of splitmix64: fixed, so that the same history takes the same steps.
fn random_number(seed: u64) -> u128 {
    let mix = |seed: u64| {
        let mut z = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(0x9e37_79b9_7f4a_7c15);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    };
    u128::from(mix(2 * seed)) << 64 | u128::from(mix(2 * seed + 1))
}

/// Makes a history without an explanation as small as possible, and says what is wrong with it.
fn counter_example(key: Bytes, part: Vec<ClientOperation>) -> CounterExample {
    let of = part.len();
    let whole = part.clone();
    let mut operations = shrink(part);
    let reason = reason(&operations, &whole);
    // The write that should not have happened is shown, though it proves nothing.
    let read: Vec<Bytes> = operations.iter().filter_map(|o| read_value(o).cloned()).collect();
    let mut refused: Vec<ClientOperation> = whole
        .into_iter()
        .filter(|o| written_value(o).is_none() && asked_value(&o.action).is_some_and(|v| read.contains(v)))
        .filter(|o| !operations.contains(o))
        .collect();
    operations.append(&mut refused);
    operations.sort_by_key(|o| o.invoked_ns);
    CounterExample { key, operations, of, reason }
}

/// The value that the answer names.
fn read_value(operation: &ClientOperation) -> Option<&Bytes> {
    match (&operation.action, operation.outcome) {
        (Action::Read(value) | Action::Swap { seen: value, .. }, OperationOutcome::Done) => value.as_ref(),
        _ => None,
    }
}

/// The value that it was asked to leave.
fn asked_value(action: &Action) -> Option<&Bytes> {
    match action {
        Action::Write(value) | Action::WriteIf { value, .. } => Some(value),
        Action::Swap { value, .. } => value.as_ref(),
        Action::Delete { .. } | Action::Read(_) => None,
    }
}

/// The value that it left, or may have left.
fn written_value(operation: &ClientOperation) -> Option<&Bytes> {
    match (&operation.action, operation.outcome) {
        (_, OperationOutcome::NotExecuted) => None,
        (Action::WriteIf { done: false, .. }, OperationOutcome::Done) => None,
        (action, OperationOutcome::Done | OperationOutcome::Unknown) => asked_value(action),
    }
}

fn reason(operations: &[ClientOperation], whole: &[ClientOperation]) -> String {
    for value in operations.iter().filter_map(read_value) {
        let writers = || whole.iter().filter(|o| asked_value(&o.action) == Some(value));
        if writers().any(|o| written_value(o).is_some()) {
            continue;
        }
        let value = Printed(value);
        if writers().any(|o| o.outcome == OperationOutcome::NotExecuted) {
            return format!("{value} was read, but its write was answered 'not executed'");
        }
        if writers().next().is_some() {
            return format!("{value} was read, but its conditional write was answered 'not written'");
        }
        return format!("nobody wrote {value}");
    }
    "no order of the operations explains the answers".to_string()
}

/// Leaves out operations while the rest still has no explanation.
///
/// Only an omission that cannot itself create a contradiction is allowed (any order that explains the whole must
/// explain the part): a read always, and so a conditional write that did nothing; what a delete says about the key's
/// existence, what a swap saw, and the condition of a write: a plain delete or write is left; a value with all its writes
/// and reads, if no operation is left that needs the key to exist; a delete, if no operation is left that may have found
/// the key missing because of it.
fn shrink(part: Vec<ClientOperation>) -> Vec<ClientOperation> {
    // It does not affect the search.
    let mut kept: Vec<ClientOperation> = part
        .into_iter()
        .filter(|o| match (&o.action, o.outcome) {
            (_, OperationOutcome::NotExecuted) | (Action::Read(_), OperationOutcome::Unknown) => false,
            (_, OperationOutcome::Unknown | OperationOutcome::Done) => true,
        })
        .collect();
    let mut trials = 0;
    let mut chunk = kept.len();
    loop {
        let mut shrunk = false;
        let mut from = 0;
        while from < kept.len() && trials < SHRINK_TRIALS_MAX {
            let to = (from + chunk).min(kept.len());
            trials += 1;
            match without(&kept, from, to) {
                Some(smaller) if matches!(search(&smaller, SHRINK_STEPS_MAX), Verdict::Not) => {
                    kept = smaller;
                    shrunk = true;
                }
                Some(_) | None => from = to,
            }
        }
        if trials >= SHRINK_TRIALS_MAX || (chunk == 1 && !shrunk) {
            return kept;
        }
        chunk = (chunk / 2).max(1);
    }
}

/// `kept` without the operations `from..to` and those that must go with them, except those that must stay; `None` when
/// nothing would change.
fn without(kept: &[ClientOperation], from: usize, to: usize) -> Option<Vec<ClientOperation>> {
    let mut gone = vec![false; kept.len()];
    let mut rest = kept.to_vec();
    // The values whose writes say nothing more.
    let mut values: HashSet<&Bytes, FixedState> = HashSet::default();
    for index in from..to {
        match weakened(&kept[index]) {
            Weakened::Gone => gone[index] = true,
            Weakened::To(action) => rest[index].action = action,
            Weakened::Not => values.extend(written_value(&kept[index])),
        }
    }
    if !(0..kept.len()).any(|i| !gone[i] && needs_present(&rest[i])) {
        let is_one = |value: Option<&Bytes>| value.is_some_and(|value| values.contains(value));
        for (index, operation) in kept.iter().enumerate() {
            if is_one(written_value(operation)) {
                gone[index] = true;
            } else if is_one(read_value(operation)) {
                match weakened(operation) {
                    Weakened::To(action) => rest[index].action = action,
                    Weakened::Gone | Weakened::Not => gone[index] = true,
                }
            }
        }
    }
    for index in from..to {
        // First only its statement is dropped; the next time the whole delete may go.
        let is_plain = deletes(&kept[index]) && matches!(weakened(&kept[index]), Weakened::Not);
        gone[index] |= is_plain && !may_be_seen(index, kept, &rest, &gone);
    }
    let smaller: Vec<ClientOperation> =
        rest.into_iter().zip(gone).filter(|(_, gone)| !gone).map(|(operation, _)| operation).collect();
    (smaller != kept).then_some(smaller)
}

/// What is left of an operation without what it says.
enum Weakened {
    /// It only said something.
    Gone,
    /// The plain write or delete that it also is.
    To(Action),
    /// It says nothing but that it happened, or may have happened.
    Not,
}

fn weakened(operation: &ClientOperation) -> Weakened {
    let done = operation.outcome == OperationOutcome::Done;
    match &operation.action {
        Action::Read(_) => Weakened::Gone,
        Action::Delete { existed: Some(false) } if done => Weakened::Gone,
        Action::Delete { existed: Some(true) } if done => Weakened::To(Action::Delete { existed: None }),
        Action::Swap { value, seen } if done && value == seen => Weakened::Gone,
        Action::Swap { value: Some(value), .. } if done => Weakened::To(Action::Write(value.clone())),
        Action::Swap { value: None, .. } if done => Weakened::To(Action::Delete { existed: None }),
        Action::WriteIf { done: false, .. } if done => Weakened::Gone,
        Action::WriteIf { value, .. } => Weakened::To(Action::Write(value.clone())),
        Action::Write(_) | Action::Delete { .. } | Action::Swap { .. } => Weakened::Not,
    }
}

/// Whether it says that the key was there, or may only happen then. What names the value that it found does not count.
fn needs_present(operation: &ClientOperation) -> bool {
    let done = operation.outcome == OperationOutcome::Done;
    match operation.action {
        Action::Delete { existed } => done && existed == Some(true),
        Action::WriteIf { if_present, done: wrote, .. } => if_present == (!done || wrote),
        Action::Write(_) | Action::Read(_) | Action::Swap { .. } => false,
    }
}

/// Whether it says that the key was missing, or may only happen then.
fn needs_missing(operation: &ClientOperation) -> bool {
    let done = operation.outcome == OperationOutcome::Done;
    match &operation.action {
        Action::Read(value) | Action::Swap { seen: value, .. } => done && value.is_none(),
        Action::Delete { existed } => done && *existed == Some(false),
        Action::WriteIf { if_present, done: wrote, .. } => *if_present != (!done || *wrote),
        Action::Write(_) => false,
    }
}

/// Whether it left the key missing, or may have.
fn deletes(operation: &ClientOperation) -> bool {
    match operation.action {
        Action::Delete { .. } | Action::Swap { value: None, .. } => true,
        Action::Write(_) | Action::Read(_) | Action::Swap { .. } | Action::WriteIf { .. } => false,
    }
}

/// Whether an operation of `rest` may have found the key missing because of the delete at `index`.
fn may_be_seen(index: usize, kept: &[ClientOperation], rest: &[ClientOperation], gone: &[bool]) -> bool {
    let done = |operation: &ClientOperation| operation.outcome == OperationOutcome::Done;
    let delete = &kept[index];
    let left = || (0..kept.len()).filter(|&i| i != index && !gone[i]);
    // What comes after a write that itself is after the delete does not see the delete.
    let replaced_ns = left()
        .filter(|&i| done(delete) && done(&kept[i]) && written_value(&kept[i]).is_some())
        .filter(|&i| delete.returned_ns < kept[i].invoked_ns)
        .map(|i| kept[i].returned_ns)
        .min()
        .unwrap_or(u64::MAX);
    left().filter(|&i| needs_missing(&rest[i])).any(|i| {
        let ends_before = done(&kept[i]) && kept[i].returned_ns < delete.invoked_ns;
        !ends_before && kept[i].invoked_ns <= replaced_ns
    })
}

/// The columns of the events on the timeline of a counter-example: by rank, because only the order counts.
struct Columns {
    times: Vec<u64>,
}

impl Columns {
    fn new(operations: &[ClientOperation]) -> Self {
        let mut times: Vec<u64> = operations
            .iter()
            .flat_map(|o| {
                [Some(o.invoked_ns), (o.outcome != OperationOutcome::Unknown).then_some(o.returned_ns)]
            })
            .flatten()
            .collect();
        times.sort_unstable();
        times.dedup();
        Columns { times }
    }

    fn width(&self) -> usize {
        (self.times.len() * 2 + 1).min(TIMELINE_COLUMNS_MAX)
    }

    fn column(&self, time_ns: u64) -> usize {
        let rank = self.times.partition_point(|&t| t < time_ns);
        rank * (self.width() - 1) / self.times.len().max(1)
    }

    fn blank(&self) -> String {
        " ".repeat(self.width())
    }

    fn bar(&self, operation: &ClientOperation) -> String {
        let from = self.column(operation.invoked_ns);
        let to = match operation.outcome {
            OperationOutcome::Unknown => self.width() - 1,
            OperationOutcome::Done | OperationOutcome::NotExecuted => self.column(operation.returned_ns),
        };
        (0..self.width())
            .map(|column| match column {
                _ if column == from => '|',
                _ if column == to && operation.outcome == OperationOutcome::Unknown => '>',
                _ if column == to => '|',
                _ if column > from && column < to => '-',
                _ => ' ',
            })
            .collect()
    }
}

struct Described<'a>(&'a ClientOperation);

impl fmt::Display for Described<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0.action {
            Action::Write(value) => write!(f, "WRITE {}", Printed(value))?,
            Action::WriteIf { value, if_present: true, .. } => {
                write!(f, "WRITE {} IF PRESENT", Printed(value))?;
            }
            Action::WriteIf { value, if_present: false, .. } => {
                write!(f, "WRITE {} IF MISSING", Printed(value))?;
            }
            Action::Delete { .. } => f.write_str("DELETE")?,
            Action::Read(_) => f.write_str("READ")?,
            Action::Swap { value: Some(value), .. } => write!(f, "READ AND WRITE {}", Printed(value))?,
            Action::Swap { value: None, .. } => f.write_str("READ AND DELETE")?,
        }
        match self.0.outcome {
            OperationOutcome::NotExecuted => return f.write_str(" -> not executed"),
            OperationOutcome::Unknown => return f.write_str(" -> unknown"),
            OperationOutcome::Done => {}
        }
        match &self.0.action {
            Action::Read(Some(value)) | Action::Swap { seen: Some(value), .. } => {
                write!(f, " -> {}", Printed(value))
            }
            Action::Read(None) | Action::Swap { seen: None, .. } => f.write_str(" -> not found"),
            Action::Delete { existed: Some(true) } => f.write_str(" -> ok, it existed"),
            Action::Delete { existed: Some(false) } => f.write_str(" -> ok, it did not exist"),
            Action::WriteIf { done: false, .. } => f.write_str(" -> not written"),
            Action::Write(_) | Action::Delete { existed: None } | Action::WriteIf { done: true, .. } => {
                f.write_str(" -> ok")
            }
        }
    }
}

/// A key or value as text, escaped and cut.
struct Printed<'a>(&'a [u8]);

impl fmt::Display for Printed<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = &self.0[..self.0.len().min(PRINTED_BYTES_MAX)];
        write!(f, "\"{}\"", shown.escape_ascii())?;
        if shown.len() < self.0.len() {
            write!(f, "... ({} bytes)", self.0.len())?;
        }
        Ok(())
    }
}
