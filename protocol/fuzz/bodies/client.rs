//! The client's machine with masters that do anything: every request ends once and in time, and a write that may have
//! been executed is never sent again.

use super::Input;
use bytes::Bytes;
use dsm_protocol::command::{ErrorWord, Reply};
use dsm_protocol::ids::{LinkId, Millis, RequestId};
use dsm_protocol::machine::client::{ClientMachine, Effect, Event, Outcome, RequestKind, Settings};
use std::collections::{BTreeMap, BTreeSet};

const TIMEOUT_MS: u64 = 2000;

/// A request without an outcome.
struct Open {
    kind: RequestKind,
    begun: Millis,
    /// Whether a master may have executed it.
    in_doubt: bool,
}

/// The one link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Link {
    None,
    Connecting(LinkId),
    Open(LinkId),
    Closing(LinkId),
}

struct World {
    now: Millis,
    client: ClientMachine,
    open: BTreeMap<RequestId, Open>,
    /// Sent on the link that stands, and not answered.
    in_flight: BTreeSet<RequestId>,
    /// When the link last said something, or when there was first something to say.
    heard: Millis,
    link: Link,
    next: u64,
    masters: usize,
}

/// `MASTERS SEED` and then events; in the end time passes until every request must have ended.
pub(crate) fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let masters = 1 + input.below(3);
    let settings = Settings {
        masters: (0..masters).map(|place| format!("m:{place}")).collect(),
        request_timeout_ms: TIMEOUT_MS,
        connect_timeout_ms: 2000,
        backoff_min_ms: 10,
        backoff_max_ms: 2000,
        seed: u64::from(input.u8()),
    };
    let now = Millis(0);
    let client = ClientMachine::new(now, settings);
    let (open, in_flight) = (BTreeMap::new(), BTreeSet::new());
    let mut world = World { now, client, open, in_flight, heard: now, link: Link::None, next: 0, masters };
    while !input.is_empty() {
        world.act(&mut input);
        world.step(Event::Tick);
    }
    world.now = world.now.plus(TIMEOUT_MS);
    world.step(Event::Tick);
    assert!(world.open.is_empty(), "{} requests hang", world.open.len());
}

impl World {
    #[expect(clippy::too_many_lines, reason = "one arm for each choice, each short")]
    fn act(&mut self, input: &mut Input<'_>) {
        let choice = input.u8();
        match choice % 10 {
            0 | 1 => {
                self.next += 1;
                let kind = [RequestKind::Read, RequestKind::Write, RequestKind::Status, RequestKind::Write]
                    [usize::from(choice >> 6)];
                let request = RequestId(self.next);
                // Some have waited for their turn.
                let waited_ms = if choice & 0x20 == 0 { 0 } else { self.now.0.min(TIMEOUT_MS / 4) };
                let begun = Millis(self.now.0 - waited_ms);
                self.open.insert(request, Open { kind, begun, in_doubt: false });
                self.step(Event::Submitted { request, kind, waited_ms });
            }
            2 => {
                let (which, active) = (input.below(5), input.flag());
                let active_address = (which < 4).then(|| format!("m:{which}"));
                if let Link::Connecting(link) = self.link {
                    self.link = Link::Open(link);
                    self.step(Event::Opened { link, active, active_address });
                }
            }
            3 => {
                // The last ones sent may not have left.
                let unsent = input.below(8);
                let (Link::Connecting(link) | Link::Open(link) | Link::Closing(link)) = self.link else {
                    return;
                };
                let unsent: Vec<_> = self.in_flight.iter().rev().take(unsent).copied().collect();
                for request in &unsent {
                    if let Some(open) = self.open.get_mut(request) {
                        open.in_doubt = false;
                    }
                }
                self.link = Link::None;
                self.in_flight.clear();
                self.step(Event::Closed { link, unsent });
            }
            4..=6 => {
                let (which, word) = (input.below(8), input.u8());
                let link = match self.link {
                    Link::Open(link) | Link::Closing(link) => link,
                    // An answer to a request that was never sent is ignored.
                    Link::None | Link::Connecting(_) => LinkId(0),
                };
                let known = self.in_flight.iter().nth(which).copied();
                let request = known.unwrap_or(RequestId(u64::from(word)));
                let reply = match ErrorWord::ALL.get(usize::from(word)) {
                    Some(word) => Reply::error(*word, format!("m:{which}")),
                    None if word & 1 == 1 => Reply::Done,
                    None => Reply::Value(Bytes::from_static(b"v")),
                };
                let is_known = self.in_flight.contains(&request);
                let is_refusal = matches!(&reply, Reply::Error(error) if error.word.is_not_executed());
                if matches!(self.link, Link::Open(_)) {
                    self.heard = self.now;
                    self.in_flight.remove(&request);
                    if let Some(open) = self.open.get_mut(&request).filter(|_| is_known && is_refusal) {
                        open.in_doubt = false;
                    }
                }
                self.step(Event::Answered { link, request, reply });
            }
            7 if choice >> 6 == 3 => {
                if let Link::Open(link) = self.link {
                    self.heard = self.now;
                    self.step(Event::Heard { link });
                }
            }
            7 if choice >> 6 == 2 => {
                let (Link::Open(link) | Link::Connecting(link) | Link::Closing(link)) = self.link else {
                    return;
                };
                let which = input.below(5);
                if matches!(self.link, Link::Open(_)) {
                    self.heard = self.now;
                }
                let active_address = (which < 4).then(|| format!("m:{which}"));
                self.step(Event::StoodBy { link, active_address });
            }
            7 => self.now = self.now.plus(u64::from(input.u8()) * 8),
            8 => self.now = self.now.plus(u64::from(input.u8())),
            _ => {
                // Just when the machine wants to be woken.
                if let Some(wakeup) = self.client.wakeup() {
                    self.now = self.now.max(wakeup);
                }
            }
        }
    }

    fn step(&mut self, event: Event) {
        let is_tick = event == Event::Tick;
        let answer = match &event {
            Event::Answered { request, reply, .. } => Some((*request, reply.clone())),
            _ => None,
        };
        let mut effects = Vec::new();
        self.client.step(self.now, event, &mut effects);
        for effect in effects {
            self.performed(effect, answer.as_ref());
        }
        if is_tick {
            for (request, open) in &self.open {
                assert!(self.now.since(open.begun) < TIMEOUT_MS, "{request} is kept after its deadline");
            }
            // A machine that always asks to be woken at once would never sleep.
            let wakeup = self.client.wakeup();
            assert!(wakeup.is_none_or(|wakeup| wakeup > self.now), "{wakeup:?} is not after {:?}", self.now);
        }
        let serving = self.client.serving();
        assert!(serving.is_none_or(|place| place < self.masters && matches!(self.link, Link::Open(_))));
    }

    /// Requests without an outcome that were sent over the current link.
    fn awaited(&self) -> impl Iterator<Item = &Open> {
        self.in_flight.iter().filter_map(|request| self.open.get(request))
    }

    fn performed(&mut self, effect: Effect, answer: Option<&(RequestId, Reply)>) {
        match effect {
            Effect::Connect { link, master } => {
                assert_eq!(self.link, Link::None, "a second link");
                assert!(master < self.masters);
                self.link = Link::Connecting(link);
            }
            Effect::Close { link } => {
                assert!(matches!(self.link, Link::Connecting(l) | Link::Open(l) if l == link));
                let writes = self.awaited().filter(|open| open.kind == RequestKind::Write).count();
                let is_silent = self.now.since(self.heard) >= TIMEOUT_MS;
                assert!(writes == 0 || is_silent, "a link with a write in flight is left");
                self.link = Link::Closing(link);
            }
            Effect::Send { link, request } => {
                assert_eq!(self.link, Link::Open(link), "sent into nothing");
                if self.awaited().next().is_none() {
                    self.heard = self.now;
                }
                let open = self.open.get_mut(&request).expect("sent after its outcome");
                assert!(open.kind != RequestKind::Write || !open.in_doubt, "{request} may be executed twice");
                open.in_doubt = true;
                assert!(self.in_flight.insert(request), "sent twice over one link");
            }
            Effect::Finish { request, outcome } => {
                let open = self.open.remove(&request).expect("ended twice");
                let said = answer.filter(|(answered, _)| *answered == request).map(|(_, reply)| reply);
                match outcome {
                    Outcome::Result(reply) => {
                        assert!(!matches!(reply, Reply::Error(_)), "an error is no result");
                        assert_eq!(said, Some(&reply), "a result is made up");
                    }
                    Outcome::NotExecuted(cause) => {
                        let doubt = open.kind == RequestKind::Write && open.in_doubt;
                        assert!(!doubt, "{request} may have been executed: {cause:?}");
                    }
                    Outcome::Unknown(cause) => {
                        assert_eq!(open.kind, RequestKind::Write, "only writes end unknown: {cause:?}");
                        assert!(open.in_doubt, "{request} was never sent: {cause:?}");
                    }
                }
            }
        }
    }
}

/// A client that is served, one whose master dies, one that finds only standbys, and noise.
pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let served = vec![1, 0, 2, 0, 1, 64, 4, 0, 255, 0, 4, 0, 254, 8, 100, 128, 4, 0, 255];
    let dies = vec![1, 1, 64, 2, 4, 1, 3, 0, 2, 4, 1, 0, 4, 0, 255, 3, 7, 9, 9, 9, 9, 7, 255];
    let standbys = vec![1, 2, 64, 2, 1, 0, 3, 0, 2, 0, 0, 4, 0, 0, 9, 9, 4, 0, 2, 9, 9, 3, 0, 9, 9];
    vec![served, dies, standbys, super::noise(9, 200), super::noise(10, 600)]
}
