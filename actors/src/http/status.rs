//! `/status`: what a node sees of itself, in JSON. `docs/FORMATS.md`, *Status*, has the schema.

use crate::timings::{Tally, Timings};
use crate::told::{NodeFacts, NodeTold};
use serde_json::{json, Value};

/// The whole answer.
pub(super) fn json(told: &NodeTold, timings: &Timings) -> Value {
    let verdict = told.verdict();
    let (node, info, removed_by) = match &told.node {
        NodeFacts::Master { info, removed_by } => ("master", info.json(), json!(removed_by)),
        NodeFacts::Slave(info) => ("slave", info.json(), json!({})),
    };
    let requests: serde_json::Map<String, Value> =
        timings.requests().iter().map(|(word, counted)| (word.clone(), times(counted))).collect();
    json!({
        "node": node,
        "state": verdict.state.to_string(),
        "ready": verdict.is_ready(),
        "why": verdict.why,
        "wall_clock_ms": told.wall_clock_ms,
        "slaves_removed_by": removed_by,
        "times_us": {
            "requests": requests,
            "turns": times(&timings.turns.counted()),
            "syncs": times(&timings.syncs.counted()),
            "acks": times(&timings.acks.counted()),
        },
        "info": info,
    })
}

/// How many there were, and the bounds below which half of them, 99 % and 99.9 % were, in microseconds.
fn times(counted: &Tally) -> Value {
    json!({
        "count": counted.total(),
        "p50": counted.quantile_us(500),
        "p99": counted.quantile_us(990),
        "p999": counted.quantile_us(999),
    })
}
