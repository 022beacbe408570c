//! What the page shows of the last ten minutes: how many requests there were each second and how long they took, and the
//! failovers that this master saw.
//!
//! Owns both rings, which are bounded. Nothing in the node depends on them, and they end with it.

use super::HttpHost;
use crate::timings::Tally;
use dsm_protocol::ids::{Millis, UnixMillis};
use dsm_protocol::serving_view::ServingView;
use serde_json::{json, Value};
use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Duration;

/// How often a sample is taken.
const EVERY: Duration = Duration::from_secs(1);

/// The most samples that are kept: ten minutes of them.
const SAMPLES_MAX: usize = 600;

/// The most failovers that are kept.
const FAILOVERS_MAX: usize = 32;

/// The requests of about a second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RequestSample {
    /// When it ended, by the wall clock.
    at: UnixMillis,
    /// Requests in a second.
    per_second: u64,
    /// The bound below which half of them, and 99 % of them, were, in microseconds; `None` without any.
    p50_us: Option<u64>,
    p99_us: Option<u64>,
}

impl RequestSample {
    fn of(at: UnixMillis, tally: &Tally, ms: u64) -> Self {
        let per_second = tally.total() * 1000 / ms.max(1);
        RequestSample { at, per_second, p50_us: tally.quantile_us(500), p99_us: tally.quantile_us(990) }
    }

    fn json(&self) -> Value {
        json!([self.at.0, self.per_second, self.p50_us, self.p99_us])
    }
}

/// A time in which no master served, as one master saw it, or a move from one to the other without such a time.
#[derive(Clone, Debug, PartialEq, Eq)]
struct FailoverSeen {
    /// When it began, by the wall clock.
    at: UnixMillis,
    from: String,
    /// Who serves since; `None` as long as nobody does.
    to: Option<String>,
    /// How long nobody served, in milliseconds, so far.
    ms: u64,
}

/// What is remembered of who served.
#[derive(Debug, Default)]
struct ServedSeen {
    /// The last one that was known to serve.
    last: Option<String>,
    /// Since when nobody does.
    unserved_since: Option<Millis>,
    seen: VecDeque<FailoverSeen>,
}

impl ServedSeen {
    /// Notes who serves now.
    fn note(&mut self, now: Millis, at: UnixMillis, view: &ServingView) {
        let serving = view.master.clone().filter(|_| view.is_served);
        match (serving, &self.last) {
            (None, None) => {}
            (None, Some(last)) => {
                if self.unserved_since.is_none() {
                    self.unserved_since = Some(now);
                    let begun = FailoverSeen { at, from: last.clone(), to: None, ms: 0 };
                    self.push(begun);
                } else if let Some(open) = self.seen.back_mut() {
                    open.ms = now.since(self.unserved_since.unwrap_or(now));
                }
            }
            (Some(serving), _) => {
                if let Some(since) = self.unserved_since.take() {
                    if let Some(open) = self.seen.back_mut() {
                        (open.to, open.ms) = (Some(serving.clone()), now.since(since));
                    }
                } else if let Some(last) = self.last.take().filter(|last| *last != serving) {
                    self.push(FailoverSeen { at, from: last, to: Some(serving.clone()), ms: 0 });
                }
                self.last = Some(serving);
            }
        }
    }

    fn push(&mut self, failover: FailoverSeen) {
        self.seen.push_back(failover);
        if self.seen.len() > FAILOVERS_MAX {
            self.seen.pop_front();
        }
    }
}

/// Both rings of a node.
#[derive(Debug, Default)]
pub(super) struct NodeHistory {
    samples: RefCell<VecDeque<RequestSample>>,
    served: RefCell<ServedSeen>,
}

impl NodeHistory {
    fn add(&self, sample: RequestSample) {
        let mut samples = self.samples.borrow_mut();
        samples.push_back(sample);
        if samples.len() > SAMPLES_MAX {
            samples.pop_front();
        }
    }

    /// All samples, the oldest first: each the end by the wall clock in milliseconds, requests a second, and two quantiles in
    /// microseconds.
    pub(super) fn samples(&self) -> Value {
        self.samples.borrow().iter().map(RequestSample::json).collect()
    }

    /// The last sample.
    pub(super) fn last_sample(&self) -> Value {
        self.samples.borrow().back().map_or(Value::Null, RequestSample::json)
    }

    /// The failovers, the oldest first.
    pub(super) fn failovers(&self) -> Value {
        let served = self.served.borrow();
        let shown =
            |seen: &FailoverSeen| json!({"at": seen.at.0, "from": seen.from, "to": seen.to, "ms": seen.ms});
        served.seen.iter().map(shown).collect()
    }
}

/// Takes the samples of a node, for as long as this is polled.
pub(super) async fn sample(host: Rc<HttpHost>) {
    let timings = host.turns.timings();
    let (mut before, mut began) = (timings.all_requests(), host.env.now());
    loop {
        tokio::time::sleep(EVERY).await;
        let (tally, now) = (timings.all_requests(), host.env.now());
        let sample = RequestSample::of(host.env.wall_clock(), &tally.since(&before), now.since(began));
        host.history.add(sample);
        (before, began) = (tally, now);
    }
}

/// Notes who serves whenever that changes, at a master.
pub(super) async fn watch(host: Rc<HttpHost>) {
    let Some(board) = host.guard.switchboard() else { return };
    loop {
        // Before the look: what changes after that wakes it.
        let changed = board.view_changed.notified();
        let view = board.view.now();
        host.history.served.borrow_mut().note(host.env.now(), host.env.wall_clock(), &view);
        changed.await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn note(served: &mut ServedSeen, ms: u64, serving: Option<&str>) {
        let view = ServingView {
            master: Some(serving.unwrap_or("a:1").to_owned()),
            is_served: serving.is_some(),
            ..ServingView::default()
        };
        served.note(Millis(ms), UnixMillis(1_000_000 + ms), &view);
    }

    #[test]
    fn a_failover_lasts_from_the_loss_of_the_one_to_the_service_of_the_other() {
        let mut served = ServedSeen::default();
        note(&mut served, 10, None);
        assert!(served.seen.is_empty(), "nobody has served yet");
        note(&mut served, 20, Some("a:1"));
        note(&mut served, 500, None);
        note(&mut served, 600, None);
        assert_eq!((served.seen[0].to.clone(), served.seen[0].ms), (None, 100));
        note(&mut served, 750, Some("b:2"));
        let seen =
            FailoverSeen { at: UnixMillis(1_000_500), from: "a:1".into(), to: Some("b:2".into()), ms: 250 };
        assert_eq!(served.seen, [seen]);
        note(&mut served, 900, Some("b:2"));
        note(&mut served, 950, Some("a:1"));
        assert_eq!(
            (served.seen.len(), served.seen[1].ms),
            (2, 0),
            "a handover in which somebody always served"
        );
    }

    #[test]
    fn no_more_than_so_many_are_kept() {
        let mut served = ServedSeen::default();
        for round in 0..100 {
            note(&mut served, round * 10, Some(if round % 2 == 0 { "a:1" } else { "b:2" }));
        }
        assert_eq!(served.seen.len(), FAILOVERS_MAX);
        let history = NodeHistory::default();
        for at in 0..1_000 {
            history.add(RequestSample { at: UnixMillis(at), per_second: 1, p50_us: None, p99_us: None });
        }
        let samples = history.samples();
        assert_eq!(samples.as_array().map(Vec::len), Some(SAMPLES_MAX));
        assert_eq!((&samples[0][0], &history.last_sample()[0]), (&json!(400), &json!(999)));
    }
}
