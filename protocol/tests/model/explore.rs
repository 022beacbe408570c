//! The search: every state that the actions of a world can reach, nearest first.
//!
//! Owns the set of visited states and the path to each. Knows nothing of masters and slaves.

use crate::part::Digest;
use foldhash::fast::FixedState;
use std::collections::HashSet;
use std::fmt::Display;
use std::panic::{catch_unwind, AssertUnwindSafe};

/// A system that can be searched.
pub(crate) trait Model: Clone {
    /// One step.
    type Action: Copy + Display;

    /// Every step that can be taken from here, in an order that depends on nothing but the state.
    fn actions(&self) -> Vec<Self::Action>;

    /// Takes a step.
    fn act(&mut self, action: Self::Action);

    /// What is wrong with this state, or with how it was reached.
    fn violation(&self) -> Option<String>;

    /// What is wrong with this state, by checks that are too costly for each step; called once for each state. Also
    /// tells whether only faults can happen in it. Lines after the first tell how the violation was found.
    fn inspect(&self, digest: Digest) -> (bool, Option<String>);

    /// Identifies the state: states with the same digest have the same future.
    fn digest(&self, text: &mut String) -> Digest;

    /// Begins to record what happens.
    fn narrate(&mut self);

    /// What has happened since the last call.
    fn told(&mut self) -> Vec<String>;
}

/// What a search has found.
#[derive(Debug)]
pub(crate) struct Report {
    /// Different states.
    pub(crate) states: usize,
    /// Steps taken, to new states and to known ones.
    pub(crate) steps: usize,
    /// Length of the shortest path to the farthest state.
    pub(crate) depth: usize,
    /// States in which only faults can happen.
    pub(crate) quiet: usize,
    /// Whether every state was visited.
    pub(crate) complete: bool,
    /// The nearest state in which something is wrong.
    pub(crate) violation: Option<Violation>,
}

/// Something wrong, with one of the shortest paths to it.
#[derive(Debug)]
pub(crate) struct Violation {
    /// What is wrong.
    pub(crate) what: String,
    /// Number of steps of the path.
    pub(crate) length: usize,
    /// The path, for people.
    pub(crate) trace: String,
}

impl Report {
    /// One line of numbers.
    pub(crate) fn summary(&self) -> String {
        let Report { states, steps, depth, quiet, complete, .. } = self;
        let how = if *complete { "all" } else { "NOT ALL" };
        format!("{how} of {states} states, {steps} steps, depth {depth}, {quiet} quiet")
    }
}

/// Visits all states that can be reached from `initial`, at most `states_max` of them.
pub(crate) fn explore<M: Model>(initial: &M, states_max: usize) -> Report {
    let mut text = String::new();
    let mut visited: HashSet<Digest, FixedState> = HashSet::default();
    // For each state, the state from which it was reached first, and the step.
    let mut ways: Vec<(u32, Option<M::Action>)> = vec![(0, None)];
    let mut report = Report { states: 1, steps: 0, depth: 0, quiet: 0, complete: true, violation: None };
    let digest = initial.digest(&mut text);
    visited.insert(digest);
    let mut layer = vec![(0u32, digest, initial.clone())];
    while !layer.is_empty() {
        let mut next = Vec::new();
        for (number, digest, state) in layer {
            let (quiet, wrong) = inspected(&state, digest);
            report.quiet += usize::from(quiet);
            if let Some(what) = wrong {
                report.states = ways.len();
                report.violation = Some(retell(initial, &ways, number, None, what));
                return report;
            }
            for action in state.actions() {
                let mut successor = state.clone();
                report.steps += 1;
                let acted = catch_unwind(AssertUnwindSafe(|| {
                    successor.act(action);
                    successor.violation()
                }));
                if let Some(what) = acted.unwrap_or_else(|panic| Some(panicked(&*panic))) {
                    report.states = ways.len();
                    report.violation = Some(retell(initial, &ways, number, Some(action), what));
                    return report;
                }
                let digest = successor.digest(&mut text);
                if !visited.insert(digest) {
                    continue;
                }
                if ways.len() >= states_max {
                    report.complete = false;
                    continue;
                }
                ways.push((number, Some(action)));
                let number = u32::try_from(ways.len() - 1).unwrap();
                next.push((number, digest, successor));
            }
        }
        report.states = ways.len();
        report.depth += usize::from(!next.is_empty());
        layer = next;
    }
    report
}

fn inspected<M: Model>(state: &M, digest: Digest) -> (bool, Option<String>) {
    catch_unwind(AssertUnwindSafe(|| state.inspect(digest)))
        .unwrap_or_else(|panic| (false, Some(panicked(&*panic))))
}

fn panicked(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
    format!("a machine panicked: {}", text.unwrap_or("without a text"))
}

/// Repeats the path to a state, and records it.
fn retell<M: Model>(
    initial: &M,
    ways: &[(u32, Option<M::Action>)],
    mut number: u32,
    last: Option<M::Action>,
    what: String,
) -> Violation {
    let mut actions: Vec<M::Action> = last.into_iter().collect();
    while let (from, Some(action)) = ways[number as usize] {
        actions.push(action);
        number = from;
    }
    actions.reverse();
    let mut world = initial.clone();
    world.narrate();
    let (what, more) = what.split_once('\n').unwrap_or((&what, ""));
    let mut trace = format!("{what}\n");
    for (index, action) in actions.iter().enumerate() {
        trace.push_str(&format!("{:3}  {action}\n", index + 1));
        let panic = catch_unwind(AssertUnwindSafe(|| world.act(*action))).is_err();
        for line in world.told() {
            trace.push_str(&format!("         {line}\n"));
        }
        if panic {
            break;
        }
    }
    trace.push_str(more);
    Violation { what: what.to_owned(), length: actions.len(), trace }
}
