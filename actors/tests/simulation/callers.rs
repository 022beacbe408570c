//! The machine of the client library among masters of which some hang: each of them has its part of a request's time, and
//! the one that serves is reached within the rest.
//!
//! Owns a world as small as that: links that open, are refused or hang, and requests at any moment. It is drawn from the
//! seed alone, and draws nothing from the simulated world.

use crate::seed::{Check, Failure};
use bytes::Bytes;
use dsm_protocol::command::{ErrorWord, Reply};
use dsm_protocol::ids::{LinkId, Millis, RequestId};
use dsm_protocol::machine::client::{ClientMachine, Effect, Effects, Event, Outcome, RequestKind, Settings};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use std::collections::{BTreeMap, BTreeSet};

/// From a request to its end, and from the first packet to a master's welcome, in milliseconds: the defaults.
const TIMEOUT_MS: u64 = 2000;

/// How many requests there are.
const REQUESTS: u64 = 4;

/// Within so many milliseconds they begin.
const BEGIN_WITHIN_MS: u64 = 1000;

/// How long an answer takes, in milliseconds.
const ANSWER_MS: std::ops::RangeInclusive<u64> = 1..=5;

/// How a master behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Master {
    Serves,
    /// It takes connections and says nothing, or its machine is gone.
    Hangs,
    /// Nobody listens there.
    Refuses,
    /// It answers, and does not serve.
    StandsBy,
}

/// Requests of one client, which must all have results.
#[expect(clippy::too_many_lines, reason = "one step after the other, each with its check")]
pub(crate) fn check(seed: u64) -> Result<(), Failure> {
    let mut random = StdRng::seed_from_u64(seed);
    let count = random.random_range(2..=4);
    let mut masters: Vec<Master> = (0..count)
        .map(|_| [Master::Hangs, Master::Hangs, Master::Refuses, Master::StandsBy][random.random_range(0..4)])
        .collect();
    masters[random.random_range(0..count)] = Master::Serves;
    let settings = Settings {
        masters: (0..count).map(|place| format!("master{place}:1")).collect(),
        request_timeout_ms: TIMEOUT_MS,
        connect_timeout_ms: TIMEOUT_MS,
        backoff_min_ms: 10,
        backoff_max_ms: 2000,
        seed,
    };
    let mut client = ClientMachine::new(Millis(0), settings);
    // What happens, by its time and in its order.
    let mut coming: BTreeMap<(u64, u64), Event> = BTreeMap::new();
    let mut order = 0;
    let mut happens = |coming: &mut BTreeMap<(u64, u64), Event>, at: u64, event| {
        order += 1;
        coming.insert((at, order), event);
    };
    let mut times: Vec<u64> = (0..REQUESTS).map(|_| random.random_range(0..=BEGIN_WITHIN_MS)).collect();
    times.sort_unstable();
    for (number, at) in times.into_iter().enumerate() {
        let kind = if random.random_bool(0.5) { RequestKind::Write } else { RequestKind::Read };
        let request = RequestId(number as u64 + 1);
        happens(&mut coming, at, Event::Submitted { request, kind, waited_ms: 0 });
    }
    let mut links: BTreeMap<LinkId, Master> = BTreeMap::new();
    let mut open: BTreeSet<RequestId> = (1..=REQUESTS).map(RequestId).collect();
    let mut now = Millis(0);
    while !open.is_empty() {
        let mut effects = Effects::new();
        while let Some(((at, _), event)) = coming.first_key_value().map(|(key, event)| (*key, event.clone()))
        {
            if at > now.0 {
                break;
            }
            coming.pop_first();
            client.step(now, event, &mut effects);
        }
        client.step(now, Event::Tick, &mut effects);
        for effect in effects {
            let soon = now.0 + random.random_range(ANSWER_MS);
            match effect {
                Effect::Connect { link, master } => {
                    links.insert(link, masters[master]);
                    let opened = |active| Event::Opened { link, active, active_address: None };
                    match masters[master] {
                        Master::Serves => happens(&mut coming, soon, opened(true)),
                        Master::StandsBy => happens(&mut coming, soon, opened(false)),
                        Master::Refuses => {
                            happens(&mut coming, soon, Event::Closed { link, unsent: Vec::new() });
                        }
                        Master::Hangs => {}
                    }
                }
                Effect::Close { link } => {
                    happens(&mut coming, now.0, Event::Closed { link, unsent: Vec::new() });
                }
                Effect::Send { link, request } => {
                    let reply = match links[&link] {
                        Master::Serves => Reply::Value(Bytes::from_static(b"v")),
                        Master::StandsBy | Master::Hangs | Master::Refuses => {
                            Reply::error(ErrorWord::Standby, "")
                        }
                    };
                    happens(&mut coming, soon, Event::Answered { link, request, reply });
                }
                Effect::Finish { request, outcome } => {
                    open.remove(&request);
                    if !matches!(outcome, Outcome::Result(_)) {
                        let what = format!(
                            "of {masters:?} one serves, and {request} ends with {outcome:?} at {now}"
                        );
                        return Check::Reaches.failed(what);
                    }
                }
            }
        }
        let next = coming.first_key_value().map(|((at, _), _)| *at);
        let wakeup = client.wakeup().map(|at| at.0.max(now.0));
        let Some(at) = next.into_iter().chain(wakeup).min() else {
            if open.is_empty() {
                break;
            }
            return Check::Reaches
                .failed(format!("of {masters:?} one serves, and {open:?} wait for nothing"));
        };
        now = Millis(at);
    }
    Ok(())
}
