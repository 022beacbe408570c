//! The client's machine: which master to talk to, when to try again, and what an outcome may be called.
//!
//! Owns the list of masters, the state of the one link, the requests without an outcome and their deadlines. Never sees
//! a key, a value or a socket. Source: `docs/ARCHITECTURE.md`, "The client".
//!
//! The rules:
//!
//! * There is one link at a time. When it breaks, the next master is tried at once. The machine pauses only when it has
//!   tried all masters: 5 to 20 ms while some master is alive but does not serve yet, 10 ms doubling to 2 s while none
//!   answers.
//! * A request that no master can have executed (not wholly written, or answered `STANDBY` or `LOADING`) is sent
//!   again until its deadline. So is a read, whatever happened to it.
//! * A write that was sent and got no answer is *unknown* and never sent again.
//! * A link is left for another master only when no write is in flight on it, unless it broke or fell silent.
//! * A silent master does not use up the whole time of the requests that wait. With `n` masters, a handshake for which a
//!   request waits, or reads in flight, may last the `n`th part of a request's time; then another master is tried.
//!   Nothing more is sent over a link that has been silent for that long, so that the client can still leave it.

use crate::command::{Command, ErrorWord, Reply, ReplyError};
use crate::ids::{LinkId, Millis, RequestId};
use crate::planted;
use std::collections::{BTreeMap, BTreeSet};

/// The shortest pause before a master that is alive but does not serve is asked again, in milliseconds.
const STANDBY_PAUSE_MS: u64 = 5;

/// How often [`STANDBY_PAUSE_MS`] doubles: 5, 10, 20, 20, ...
const STANDBY_DOUBLINGS_MAX: u32 = 2;

/// A new request never waits longer than this for the next attempt to connect, in milliseconds.
const FRESH_REQUEST_PAUSE_MS: u64 = 100;

/// The shortest time that a master has to send its Welcome, or anything, before another one is tried, in milliseconds.
const SILENCE_MIN_MS: u64 = 10;

/// A link that lasted this long counts as good even without an answer, in milliseconds.
const STABLE_LINK_MS: u64 = 1000;

/// The settings of the machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The masters' addresses, the primary's first.
    pub masters: Vec<String>,
    /// From the submission of a request to its end, in milliseconds.
    pub request_timeout_ms: u64,
    /// From the first packet to the master's Welcome, in milliseconds. It is less while a request waits and another
    /// master can be tried.
    pub connect_timeout_ms: u64,
    /// The first pause when no master answers, in milliseconds; it doubles.
    pub backoff_min_ms: u64,
    /// The longest pause when no master answers, in milliseconds.
    pub backoff_max_ms: u64,
    /// Spreads the pauses of many clients; any number.
    pub seed: u64,
}

/// What a request's loss means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestKind {
    /// Changes nothing: may be sent again at will. Only the active master answers it.
    Read,
    /// Changes the store: once it may have been executed, it is not sent again.
    Write,
    /// Changes nothing, and any master answers it for itself.
    Status,
}

impl RequestKind {
    /// The kind of `command`.
    pub fn of(command: &Command) -> RequestKind {
        if command.is_write() {
            RequestKind::Write
        } else if *command == Command::Status {
            RequestKind::Status
        } else {
            RequestKind::Read
        }
    }
}

/// What happens to the machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The application has submitted a request. Ids ascend.
    Submitted {
        /// The new request's id.
        request: RequestId,
        /// What its loss means.
        kind: RequestKind,
        /// How much of its time has passed already, in milliseconds.
        waited_ms: u64,
    },
    /// The link is connected and the master has welcomed us.
    Opened {
        /// The link that was asked for.
        link: LinkId,
        /// Whether this master serves.
        active: bool,
        /// The address of the one that does, if it is known.
        active_address: Option<String>,
    },
    /// The link could not be opened, broke, or was closed as asked.
    Closed {
        /// The link that is gone.
        link: LinkId,
        /// The requests of which at least the last byte was never handed to the kernel.
        unsent: Vec<RequestId>,
    },
    /// Some bytes have arrived: the master is not silent.
    Heard {
        /// The link over which they arrived.
        link: LinkId,
    },
    /// A response came in.
    Answered {
        /// The link that it came over.
        link: LinkId,
        /// The request that is answered.
        request: RequestId,
        /// The answer itself.
        reply: Reply,
    },
    /// The master has announced that it no longer serves, because it stops.
    StoodBy {
        /// The link that it came over.
        link: LinkId,
        /// The address of the one that serves, if it is known.
        active_address: Option<String>,
    },
    /// All events at hand have been given: judge deadlines, and choose the master. Every batch of events ends with a
    /// tick, so that an answer that has arrived already is never taken for a timeout.
    Tick,
}

/// What must be done, in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Open a link; tell `Opened` or `Closed`.
    Connect {
        /// The new link's id.
        link: LinkId,
        /// Place of the master in [`Settings::masters`].
        master: usize,
    },
    /// Close the link, whatever its state; tell `Closed`.
    Close {
        /// The link that is to be closed.
        link: LinkId,
    },
    /// Write the request to the link.
    Send {
        /// Which link; it is open.
        link: LinkId,
        /// The request that is to be sent.
        request: RequestId,
    },
    /// Tell the application. The machine has forgotten the request.
    Finish {
        /// The request that has ended.
        request: RequestId,
        /// What the caller is told.
        outcome: Outcome,
    },
}

/// The effects of one or more steps.
pub type Effects = Vec<Effect>;

/// How a request ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// A result; never [`Reply::Error`].
    Result(Reply),
    /// It had no effect and never will have one.
    NotExecuted(FailureCause),
    /// It may or may not take effect. Only writes end so.
    Unknown(FailureCause),
}

/// Why a request has no result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FailureCause {
    /// The master says so.
    Refused(ReplyError),
    /// No master could be reached until the deadline.
    Unreachable,
    /// The link broke after the request was sent.
    LinkLost,
    /// The deadline passed without an answer.
    TimedOut,
}

#[derive(Debug)]
struct Pending {
    kind: RequestKind,
    deadline: Millis,
    sent: bool,
    /// The last answer that meant "not now".
    refusal: Option<ReplyError>,
}

#[derive(Debug)]
enum Link {
    /// A pause: there is no link until then.
    Waiting { since: Millis, until: Millis },
    /// A link was asked for.
    Connecting { link: LinkId, since: Millis },
    /// The master has welcomed this client: requests may be sent.
    Open(Open),
    /// The caller has been told to close it.
    Closing { link: LinkId, prefer: Option<usize> },
}

#[derive(Debug)]
struct Open {
    link: LinkId,
    /// Whether the master serves, as far as we know.
    active: bool,
    since: Millis,
    /// Nothing is sent before this point.
    hold_until: Millis,
    /// When something last came in, or when the first of the requests in flight was sent.
    heard: Millis,
    /// It has been silent for too long: no further request is sent.
    silent: bool,
    /// It does not serve: leave it as soon as no write is in flight, for that master first.
    leaving: Option<Option<usize>>,
    /// It has announced that it no longer serves.
    stops: bool,
    /// When to look for the active master without a request.
    look_at: Millis,
    writes_in_flight: usize,
    in_flight: usize,
}

impl Open {
    /// Whether requests are in flight, and none of them becomes unknown when the link ends.
    fn may_be_left(&self) -> bool {
        self.leaving.is_none() && self.in_flight > 0 && self.writes_in_flight == 0
    }
}

/// The machine of one client, which talks to one master at a time.
#[derive(Debug)]
pub struct ClientMachine {
    settings: Settings,
    random: u64,
    requests: BTreeMap<RequestId, Pending>,
    /// When each of `requests` ends.
    deadlines: BTreeSet<(Millis, RequestId)>,
    /// Those of `requests` that wait to be sent.
    queued: BTreeSet<RequestId>,
    link: Link,
    /// The master that `link` leads to, or that was tried last.
    master: usize,
    /// The masters that were tried in vain since the last pause.
    tried: BTreeSet<usize>,
    /// Whether one of them was alive, only not serving.
    alive: bool,
    /// Pauses since a master last served.
    pauses: u32,
    links: u64,
}

impl ClientMachine {
    /// Builds a client that connects to the first master on its first tick.
    ///
    /// # Panics
    /// When there are no masters.
    pub fn new(now: Millis, settings: Settings) -> ClientMachine {
        assert!(!settings.masters.is_empty(), "a client needs the address of a master");
        ClientMachine {
            random: settings.seed,
            requests: BTreeMap::new(),
            deadlines: BTreeSet::new(),
            queued: BTreeSet::new(),
            link: Link::Waiting { since: now, until: now },
            // The one after the last is the first.
            master: settings.masters.len() - 1,
            tried: BTreeSet::new(),
            alive: false,
            pauses: 0,
            links: 0,
            settings,
        }
    }

    /// Whether a request may have changed something; one that is not known any more may.
    pub fn is_write(&self, request: RequestId) -> bool {
        self.requests.get(&request).is_none_or(|pending| pending.kind == RequestKind::Write)
    }

    /// The place of the master that serves us, in [`Settings::masters`]; `None` while we look for one.
    pub fn serving(&self) -> Option<usize> {
        match &self.link {
            Link::Open(open) if open.active => Some(self.master),
            Link::Open(_) | Link::Waiting { .. } | Link::Connecting { .. } | Link::Closing { .. } => None,
        }
    }

    /// When the next [`Event::Tick`] is due if nothing happens; `None` if only an event makes one necessary.
    pub fn wakeup(&self) -> Option<Millis> {
        let deadline = self.deadlines.first().map(|(deadline, _)| *deadline);
        let link = match &self.link {
            Link::Waiting { until, .. } => Some(*until),
            Link::Connecting { since, .. } => Some(since.plus(self.welcome_ms())),
            // The link is left when the last write in flight ends, and no timer causes that.
            Link::Open(open) if open.leaving.is_some() => None,
            Link::Open(open) => {
                let can_send = !self.queued.is_empty() && !open.silent;
                let is_idle = self.queued.is_empty() && open.in_flight == 0;
                let send = can_send.then_some(open.hold_until);
                let look = (is_idle && !open.active).then_some(open.look_at);
                let leave = open.may_be_left().then(|| self.silence_ms().map(|ms| open.heard.plus(ms)));
                [send, look, leave.flatten()].into_iter().flatten().min()
            }
            Link::Closing { .. } => None,
        };
        match (deadline, link) {
            (Some(deadline), Some(link)) => Some(deadline.min(link)),
            (deadline, link) => deadline.or(link),
        }
    }

    /// Advances the machine. The caller must perform the effects in the order returned.
    pub fn step(&mut self, now: Millis, event: Event, effects: &mut Effects) {
        match event {
            Event::Submitted { request, kind, waited_ms } => {
                let deadline = now.plus(self.settings.request_timeout_ms.saturating_sub(waited_ms));
                self.submitted(now, request, kind, deadline, effects);
            }
            Event::Opened { link, active, active_address } => {
                self.opened(now, link, active, active_address.as_deref());
            }
            Event::Closed { link, unsent } => self.closed(now, link, &unsent, effects),
            Event::Heard { link } => self.heard(now, link),
            Event::Answered { link, request, reply } => self.answered(now, link, request, reply, effects),
            Event::StoodBy { link, active_address } => match &mut self.link {
                Link::Open(open) if open.link == link => {
                    open.heard = now;
                    open.stops = true;
                    self.stands_by(active_address.as_deref());
                }
                Link::Open(_) | Link::Waiting { .. } | Link::Connecting { .. } | Link::Closing { .. } => {}
            },
            Event::Tick => {
                self.expire(now, effects);
                self.decide(now, effects);
            }
        }
    }

    fn submitted(
        &mut self,
        now: Millis,
        request: RequestId,
        kind: RequestKind,
        deadline: Millis,
        effects: &mut Effects,
    ) {
        let last = self.requests.last_key_value().map(|(id, _)| *id);
        assert!(last < Some(request), "request ids ascend: {request} after {last:?}");
        self.deadlines.insert((deadline, request));
        self.requests.insert(request, Pending { kind, deadline, sent: false, refusal: None });
        self.queued.insert(request);
        match &mut self.link {
            Link::Waiting { since, until } => {
                *until = (*until).min(since.plus(FRESH_REQUEST_PAUSE_MS));
                if self.requests.len() == 1 {
                    // No request has waited so far: the pause was meant for idle times.
                    self.pauses = 0;
                    *until = (*until).min(since.plus(self.settings.backoff_min_ms));
                }
            }
            Link::Open(_) => self.send(now, effects),
            Link::Connecting { .. } | Link::Closing { .. } => {}
        }
    }

    fn opened(&mut self, now: Millis, opened: LinkId, active: bool, active_address: Option<&str>) {
        match &self.link {
            Link::Connecting { link, .. } if *link == opened => {}
            Link::Connecting { .. } | Link::Waiting { .. } | Link::Open(_) | Link::Closing { .. } => return,
        }
        let mut leaving = None;
        if !active {
            self.alive = true;
            let hint = active_address.and_then(|address| self.place_of(address));
            // What the master says may be older than what we have just seen ourselves.
            if hint.is_some_and(|place| place != self.master && !self.tried.contains(&place)) {
                leaving = Some(hint);
            }
        }
        let look_at = now.plus(self.backoff_ms());
        self.link = Link::Open(Open {
            link: opened,
            active,
            since: now,
            hold_until: now,
            heard: now,
            silent: false,
            leaving,
            stops: false,
            look_at,
            writes_in_flight: 0,
            in_flight: 0,
        });
    }

    fn closed(&mut self, now: Millis, closed: LinkId, unsent: &[RequestId], effects: &mut Effects) {
        let mut prefer = None;
        match &self.link {
            Link::Connecting { link, .. } if *link == closed => {}
            Link::Open(open) if open.link == closed => {
                // The search begins anew. It does not after a short link: masters that welcome us and then hang up
                // would make it endless.
                if open.active && now.since(open.since) >= STABLE_LINK_MS {
                    self.found();
                }
            }
            Link::Closing { link, prefer: chosen } if *link == closed => prefer = *chosen,
            Link::Connecting { .. } | Link::Open(_) | Link::Closing { .. } | Link::Waiting { .. } => return,
        }
        let (queued, deadlines) = (&mut self.queued, &mut self.deadlines);
        self.requests.retain(|request, pending| {
            if !pending.sent {
                return true;
            }
            if pending.kind == RequestKind::Write && !unsent.contains(request) {
                let outcome = Outcome::Unknown(FailureCause::LinkLost);
                deadlines.remove(&(pending.deadline, *request));
                effects.push(Effect::Finish { request: *request, outcome });
                return false;
            }
            pending.sent = false;
            queued.insert(*request);
            true
        });
        self.tried.insert(self.master);
        match self.next_untried(prefer) {
            Some(place) => self.connect(now, place, effects),
            None => {
                let pause = self.pause_ms();
                self.link = Link::Waiting { since: now, until: now.plus(pause) };
            }
        }
    }

    fn heard(&mut self, now: Millis, heard: LinkId) {
        match &mut self.link {
            Link::Open(open) if open.link == heard => {
                open.heard = now;
                open.silent = false;
            }
            Link::Open(_) | Link::Waiting { .. } | Link::Connecting { .. } | Link::Closing { .. } => {}
        }
    }

    fn answered(
        &mut self,
        now: Millis,
        link: LinkId,
        request: RequestId,
        reply: Reply,
        effects: &mut Effects,
    ) {
        self.heard(now, link);
        let open = match &mut self.link {
            Link::Open(open) if open.link == link => open,
            Link::Open(_) | Link::Waiting { .. } | Link::Connecting { .. } | Link::Closing { .. } => return,
        };
        // The request has timed out, or the master has answered something that was never asked.
        let Some(pending) = self.requests.get_mut(&request).filter(|pending| pending.sent) else { return };
        open.in_flight -= 1;
        if pending.kind == RequestKind::Write {
            open.writes_in_flight -= 1;
        }
        let (kind, deadline) = (pending.kind, pending.deadline);
        let outcome = match reply {
            Reply::Error(error) => match (error.word, kind) {
                (ErrorWord::Standby, _) => {
                    let place = error.detail.split_whitespace().next().map(str::to_owned);
                    self.requeue(request, error);
                    self.stands_by(place.as_deref());
                    return;
                }
                (ErrorWord::Loading, _) | (ErrorWord::Unknown, RequestKind::Read | RequestKind::Status) => {
                    self.requeue(request, error);
                    self.hold(now);
                    return;
                }
                (ErrorWord::Unknown, RequestKind::Write) => Outcome::Unknown(FailureCause::Refused(error)),
                (
                    ErrorWord::NoQuorum
                    | ErrorWord::ReadOnly
                    | ErrorWord::Busy
                    | ErrorWord::OutOfMemory
                    | ErrorWord::NoAuth
                    | ErrorWord::NoPermission
                    | ErrorWord::WrongType
                    | ErrorWord::Bad,
                    _,
                ) => Outcome::NotExecuted(FailureCause::Refused(error)),
            },
            result @ (Reply::Done
            | Reply::Value(_)
            | Reply::NotFound
            | Reply::Values(_)
            | Reply::Count(_)
            | Reply::Integer(_)
            | Reply::Page { .. }
            | Reply::Text(_)
            | Reply::Many(_)
            | Reply::Versions(_)
            | Reply::Encoded(_)) => {
                // A master that stops has answered all earlier requests.
                if kind != RequestKind::Status && !open.stops {
                    open.active = true;
                    open.leaving = None;
                    self.found();
                }
                Outcome::Result(result)
            }
        };
        self.requests.remove(&request);
        self.deadlines.remove(&(deadline, request));
        effects.push(Effect::Finish { request, outcome });
    }

    /// A master served: the next search starts from scratch.
    fn found(&mut self) {
        self.tried.clear();
        self.alive = false;
        self.pauses = 0;
    }

    fn requeue(&mut self, request: RequestId, refusal: ReplyError) {
        let pending = self.requests.get_mut(&request).expect("the caller has just looked it up");
        pending.sent = false;
        pending.refusal = Some(refusal);
        self.queued.insert(request);
    }

    /// The master at the open link has answered that it does not serve.
    fn stands_by(&mut self, active_address: Option<&str>) {
        let hint = active_address.and_then(|address| self.place_of(address));
        let Link::Open(open) = &mut self.link else { return };
        if open.active {
            open.active = false;
            self.tried.clear();
            self.pauses = 0;
        }
        open.leaving = Some(hint);
        self.alive = true;
    }

    /// The master at the open link is about to serve: ask it again in a moment.
    fn hold(&mut self, now: Millis) {
        self.alive = true;
        let Link::Open(open) = &self.link else { return };
        if open.hold_until > now {
            return;
        }
        let pause = self.pause_ms();
        if let Link::Open(open) = &mut self.link {
            open.hold_until = now.plus(pause);
        }
    }

    fn expire(&mut self, now: Millis, effects: &mut Effects) {
        let mut unanswered = false;
        while let Some((_, request)) =
            self.deadlines.first().copied().filter(|(deadline, _)| *deadline <= now)
        {
            self.deadlines.pop_first();
            let Some(pending) = self.requests.remove(&request) else { continue };
            self.queued.remove(&request);
            let mut connected = false;
            if let Link::Open(open) = &mut self.link {
                connected = true;
                if pending.sent {
                    unanswered = true;
                    open.in_flight -= 1;
                    if pending.kind == RequestKind::Write {
                        open.writes_in_flight -= 1;
                    }
                }
            }
            let outcome = match (pending.kind, pending.sent, pending.refusal) {
                (RequestKind::Write, true, _) => Outcome::Unknown(FailureCause::TimedOut),
                (_, _, Some(error)) if error.word.is_not_executed() => {
                    Outcome::NotExecuted(FailureCause::Refused(error))
                }
                (_, sent, _) if sent || connected => Outcome::NotExecuted(FailureCause::TimedOut),
                (RequestKind::Read | RequestKind::Write | RequestKind::Status, _, _) => {
                    Outcome::NotExecuted(FailureCause::Unreachable)
                }
            };
            effects.push(Effect::Finish { request, outcome });
        }
        if let Link::Open(open) = &mut self.link {
            // A master that answers others is slow, not gone.
            if unanswered && now.since(open.heard) >= self.settings.request_timeout_ms {
                let link = open.link;
                self.found();
                self.link = Link::Closing { link, prefer: None };
                effects.push(Effect::Close { link });
            }
        }
    }

    fn decide(&mut self, now: Millis, effects: &mut Effects) {
        let welcome_ms = self.welcome_ms();
        match &mut self.link {
            Link::Waiting { until, .. } => {
                if *until <= now {
                    self.tried.clear();
                    self.alive = false;
                    let place = self.next_untried(None).expect("there is a master, and none has been tried");
                    self.connect(now, place, effects);
                }
            }
            Link::Connecting { link, since } => {
                if now.since(*since) >= welcome_ms {
                    let link = *link;
                    self.link = Link::Closing { link, prefer: None };
                    effects.push(Effect::Close { link });
                }
            }
            Link::Open(open) => {
                let idle = self.queued.is_empty() && open.in_flight == 0;
                if !open.active && open.leaving.is_none() && idle && open.look_at <= now {
                    open.leaving = Some(None);
                }
                self.leave_or_send(now, effects);
                self.leave_silent(now, effects);
            }
            Link::Closing { .. } => {}
        }
    }

    fn leave_or_send(&mut self, now: Millis, effects: &mut Effects) {
        let Link::Open(open) = &self.link else { return };
        if let (Some(hint), 0) = (open.leaving, open.writes_in_flight) {
            let link = open.link;
            self.tried.insert(self.master);
            if let Some(place) = self.next_untried(hint) {
                self.link = Link::Closing { link, prefer: Some(place) };
                effects.push(Effect::Close { link });
                return;
            }
            // All masters have been asked: stay, this one may be about to serve.
            let pause = self.pause_ms();
            let look = self.backoff_ms();
            self.tried.clear();
            if let Link::Open(open) = &mut self.link {
                open.leaving = None;
                open.hold_until = now.plus(pause);
                open.look_at = now.plus(look);
            }
        }
        self.send(now, effects);
    }

    /// Leaves a silent master while only reads are in flight: they may be sent to another one.
    fn leave_silent(&mut self, now: Millis, effects: &mut Effects) {
        let Link::Open(open) = &self.link else { return };
        let is_silent = self.silence_ms().is_some_and(|limit| now.since(open.heard) >= limit);
        if open.may_be_left() && is_silent {
            let (link, was_active) = (open.link, open.active);
            if was_active {
                self.found();
            }
            self.link = Link::Closing { link, prefer: None };
            effects.push(Effect::Close { link });
        }
    }

    /// Sends the queued requests, if the link takes them now.
    fn send(&mut self, now: Millis, effects: &mut Effects) {
        let silence_ms = self.silence_ms();
        let Link::Open(open) = &mut self.link else { return };
        if open.leaving.is_some() || open.hold_until > now {
            return;
        }
        if open.in_flight > 0 && silence_ms.is_some_and(|limit| now.since(open.heard) >= limit) {
            open.silent = true;
            return;
        }
        open.silent = false;
        while let Some(request) = self.queued.pop_first() {
            let pending = self.requests.get_mut(&request).expect("what is queued has no outcome yet");
            pending.sent = true;
            if open.in_flight == 0 {
                open.heard = now;
            }
            open.in_flight += 1;
            if pending.kind == RequestKind::Write {
                open.writes_in_flight += 1;
            }
            effects.push(Effect::Send { link: open.link, request });
        }
    }

    fn connect(&mut self, now: Millis, master: usize, effects: &mut Effects) {
        self.links += 1;
        let link = LinkId(self.links);
        self.master = master;
        self.link = Link::Connecting { link, since: now };
        effects.push(Effect::Connect { link, master });
    }

    /// How long a master may be silent while requests wait and there is another master; `None` when there is no other.
    fn silence_ms(&self) -> Option<u64> {
        let count = self.settings.masters.len() as u64;
        (count > 1).then(|| (self.settings.request_timeout_ms / count).max(SILENCE_MIN_MS))
    }

    /// How long the master to which we connect has for its Welcome.
    fn welcome_ms(&self) -> u64 {
        let timeout = self.settings.connect_timeout_ms;
        let others = (0..self.settings.masters.len())
            .any(|place| place != self.master && !self.tried.contains(&place));
        match self.silence_ms() {
            Some(limit) if others && !self.requests.is_empty() && !planted!(HangTakesAllTime) => {
                limit.min(timeout)
            }
            Some(_) | None => timeout,
        }
    }

    fn place_of(&self, address: &str) -> Option<usize> {
        self.settings.masters.iter().position(|master| master == address)
    }

    /// `prefer`, or the next master after the last one, that was not tried since the last pause.
    fn next_untried(&self, prefer: Option<usize>) -> Option<usize> {
        let count = self.settings.masters.len();
        prefer
            .into_iter()
            .chain((1..=count).map(|step| (self.master + step) % count))
            .find(|place| !self.tried.contains(place))
    }

    /// The length of the pause that begins now.
    fn pause_ms(&mut self) -> u64 {
        let waited_for = !self.requests.is_empty();
        let pause = if self.alive && waited_for {
            let full = STANDBY_PAUSE_MS << self.pauses.min(STANDBY_DOUBLINGS_MAX);
            full - self.random_below(full / 4 + 1)
        } else {
            self.backoff_ms()
        };
        self.pauses = self.pauses.saturating_add(1);
        pause
    }

    /// `backoff_min_ms` doubled for every pause so far, at most `backoff_max_ms`, less up to a half at random.
    fn backoff_ms(&mut self) -> u64 {
        let full = self.settings.backoff_min_ms.saturating_mul(1 << self.pauses.min(20));
        let full = full.min(self.settings.backoff_max_ms);
        full - self.random_below(full / 2 + 1)
    }

    /// SplitMix64: small, and the same for the same seed.
    fn random_below(&mut self, bound: u64) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.random;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % bound
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PRIMARY: usize = 0;
    const BACKUP: usize = 1;

    struct Rig {
        machine: ClientMachine,
        now: Millis,
    }

    impl Rig {
        fn new() -> Rig {
            let settings = Settings {
                masters: vec!["p:1".to_owned(), "b:2".to_owned()],
                request_timeout_ms: 2000,
                connect_timeout_ms: 2000,
                backoff_min_ms: 10,
                backoff_max_ms: 2000,
                seed: 7,
            };
            Rig { machine: ClientMachine::new(Millis(0), settings), now: Millis(0) }
        }

        /// Connected to the primary, which serves, over link 1.
        fn connected() -> Rig {
            let mut rig = Rig::new();
            assert_eq!(rig.tick(), [connect(1, PRIMARY)]);
            assert_eq!(rig.batch([opened(1, true, None)]), []);
            assert_eq!(rig.machine.serving(), Some(PRIMARY));
            rig
        }

        fn batch<const N: usize>(&mut self, events: [Event; N]) -> Effects {
            let mut effects = Effects::new();
            for event in events {
                self.machine.step(self.now, event, &mut effects);
            }
            self.machine.step(self.now, Event::Tick, &mut effects);
            effects
        }

        fn tick(&mut self) -> Effects {
            self.batch([])
        }

        fn wait_for_wakeup(&mut self) -> u64 {
            let wakeup = self.machine.wakeup().expect("something is due");
            let waited = wakeup.since(self.now);
            self.now = self.now.max(wakeup);
            waited
        }
    }

    fn connect(link: u64, master: usize) -> Effect {
        Effect::Connect { link: LinkId(link), master }
    }

    fn close(link: u64) -> Effect {
        Effect::Close { link: LinkId(link) }
    }

    fn send(link: u64, request: u64) -> Effect {
        Effect::Send { link: LinkId(link), request: RequestId(request) }
    }

    fn finish(request: u64, outcome: Outcome) -> Effect {
        Effect::Finish { request: RequestId(request), outcome }
    }

    fn opened(link: u64, active: bool, active_address: Option<&str>) -> Event {
        Event::Opened { link: LinkId(link), active, active_address: active_address.map(str::to_owned) }
    }

    fn closed(link: u64, unsent: &[u64]) -> Event {
        Event::Closed { link: LinkId(link), unsent: unsent.iter().copied().map(RequestId).collect() }
    }

    fn submit(request: u64, kind: RequestKind) -> Event {
        Event::Submitted { request: RequestId(request), kind, waited_ms: 0 }
    }

    fn answer(link: u64, request: u64, reply: Reply) -> Event {
        Event::Answered { link: LinkId(link), request: RequestId(request), reply }
    }

    fn refusal(word: ErrorWord, detail: &str) -> ReplyError {
        ReplyError { word, detail: detail.to_owned() }
    }

    #[test]
    fn a_broken_link_makes_sent_writes_unknown_and_moves_the_rest_to_the_other_master_at_once() {
        let mut rig = Rig::connected();
        let sent = rig.batch([
            submit(1, RequestKind::Write),
            submit(2, RequestKind::Read),
            submit(3, RequestKind::Write),
        ]);
        assert_eq!(sent, [send(1, 1), send(1, 2), send(1, 3)]);
        let effects = rig.batch([closed(1, &[3])]);
        assert_eq!(effects, [finish(1, Outcome::Unknown(FailureCause::LinkLost)), connect(2, BACKUP)]);
        assert_eq!(rig.batch([opened(2, true, None)]), [send(2, 2), send(2, 3)]);
        assert_eq!(rig.machine.serving(), Some(BACKUP));
        let effects = rig.batch([answer(2, 3, Reply::Done), answer(2, 2, Reply::NotFound)]);
        assert_eq!(
            effects,
            [finish(3, Outcome::Result(Reply::Done)), finish(2, Outcome::Result(Reply::NotFound))]
        );
    }

    #[test]
    fn a_standby_in_a_takeover_is_asked_again_after_5_to_20_ms() {
        let mut rig = Rig::connected();
        rig.batch([submit(1, RequestKind::Read)]);
        assert_eq!(rig.batch([closed(1, &[])]), [connect(2, BACKUP)]);
        // The backup still believes in the primary, which we have just seen die.
        assert_eq!(rig.batch([opened(2, false, Some("p:1"))]), [send(2, 1)]);
        let standby = || answer(2, 1, Reply::error(ErrorWord::Standby, "p:1"));
        assert_eq!(rig.batch([standby()]), []);
        let waited = rig.wait_for_wakeup();
        assert!((4..=5).contains(&waited), "{waited}");
        assert_eq!(rig.tick(), [send(2, 1)]);
        // A second refusal after the pause: perhaps the primary is back.
        assert_eq!(rig.batch([standby()]), [close(2)]);
        assert_eq!(rig.batch([closed(2, &[])]), [connect(3, PRIMARY)]);
        assert_eq!(rig.batch([closed(3, &[])]), []);
        let waited = rig.wait_for_wakeup();
        assert!((8..=10).contains(&waited), "{waited}");
        assert_eq!(rig.tick(), [connect(4, BACKUP)]);
        assert_eq!(rig.batch([opened(4, true, None)]), [send(4, 1)]);
    }

    #[test]
    fn a_standby_that_names_the_active_master_redirects_at_once() {
        let mut rig = Rig::connected();
        rig.batch([closed(1, &[]), opened(2, true, None)]);
        assert_eq!(rig.batch([submit(1, RequestKind::Write), submit(2, RequestKind::Write)]).len(), 2);
        // Not before the second write is answered: it would become unknown.
        let standby = |request| answer(2, request, Reply::error(ErrorWord::Standby, "p:1"));
        assert_eq!(rig.batch([standby(1)]), []);
        assert_eq!(rig.machine.serving(), None);
        assert_eq!(rig.batch([standby(2)]), [close(2)]);
        assert_eq!(rig.batch([closed(2, &[])]), [connect(3, PRIMARY)]);
        assert_eq!(rig.batch([opened(3, true, None)]), [send(3, 1), send(3, 2)]);
    }

    #[test]
    fn a_loading_master_is_asked_again_over_the_same_link() {
        let mut rig = Rig::connected();
        rig.batch([submit(1, RequestKind::Write)]);
        assert_eq!(rig.batch([answer(1, 1, Reply::error(ErrorWord::Loading, ""))]), []);
        assert_eq!(rig.tick(), []);
        assert!(rig.wait_for_wakeup() <= 5);
        assert_eq!(rig.tick(), [send(1, 1)]);
    }

    #[test]
    fn a_welcome_that_names_the_active_master_redirects_before_anything_is_sent() {
        let mut rig = Rig::new();
        rig.batch([submit(1, RequestKind::Write)]);
        assert_eq!(rig.batch([opened(1, false, Some("b:2"))]), [close(1)]);
        assert_eq!(rig.batch([closed(1, &[])]), [connect(2, BACKUP)]);
        assert_eq!(rig.batch([opened(2, true, None)]), [send(2, 1)]);
    }

    /// Be it a path of this machine: a master cannot make its client open one.
    #[test]
    fn a_redirect_to_an_address_that_is_none_of_the_settings_leads_to_the_next_master_of_the_settings() {
        let elsewhere = "unix:/run/other.sock";
        let mut rig = Rig::new();
        rig.batch([submit(1, RequestKind::Read)]);
        assert_eq!(rig.batch([opened(1, false, Some(elsewhere))]), [send(1, 1)]);
        let standby = |link| answer(link, 1, Reply::error(ErrorWord::Standby, elsewhere));
        assert_eq!(rig.batch([standby(1)]), [close(1)]);
        assert_eq!(rig.batch([closed(1, &[])]), [connect(2, BACKUP)]);
        assert_eq!(rig.batch([opened(2, true, Some(elsewhere))]), [send(2, 1)]);
    }

    #[test]
    fn with_no_master_the_pauses_double_and_the_request_ends_as_unreachable() {
        let mut rig = Rig::new();
        assert_eq!(rig.batch([submit(1, RequestKind::Write)]), [connect(1, PRIMARY)]);
        let (mut link, mut attempts, mut pauses) = (1, 1, Vec::new());
        let outcome = loop {
            let effects = rig.batch([closed(link, &[])]);
            if effects.is_empty() {
                pauses.push(rig.wait_for_wakeup());
            }
            let effects = if effects.is_empty() { rig.tick() } else { effects };
            match effects.first() {
                Some(Effect::Connect { link: next, .. }) => (link, attempts) = (next.0, attempts + 1),
                other => break other.cloned(),
            }
        };
        assert_eq!(outcome, Some(finish(1, Outcome::NotExecuted(FailureCause::Unreachable))));
        assert_eq!(rig.now, Millis(2000));
        assert!((5..=10).contains(&pauses[0]) && (80..=160).contains(&pauses[4]), "{pauses:?}");
        assert!((14..=22).contains(&attempts), "{attempts}");
    }

    #[test]
    fn a_fresh_request_does_not_wait_for_the_end_of_a_long_pause() {
        let mut rig = Rig::new();
        rig.tick();
        let mut link = 1;
        for _ in 0..40 {
            let mut effects = rig.batch([closed(link, &[])]);
            if effects.is_empty() {
                rig.wait_for_wakeup();
                effects = rig.tick();
            }
            let [Effect::Connect { link: next, .. }] = effects[..] else { panic!("{effects:?}") };
            link = next.0;
        }
        if let [Effect::Connect { link: next, .. }] = rig.batch([closed(link, &[])])[..] {
            link = next.0;
            rig.batch([closed(link, &[])]);
        }
        assert!(rig.machine.wakeup().unwrap().since(rig.now) >= 1000);
        rig.now = rig.now.plus(500);
        let effects = rig.batch([submit(1, RequestKind::Read)]);
        assert!(matches!(effects[..], [Effect::Connect { .. }]), "{effects:?}");
    }

    #[test]
    fn every_request_gets_an_attempt_soon_even_when_others_have_waited_long() {
        let mut rig = Rig::new();
        let (mut link, mut pauses) = (1, 0);
        rig.batch([submit(1, RequestKind::Read)]);
        // No master answers until the pauses are long.
        while pauses < 6 {
            let mut effects = rig.batch([closed(link, &[])]);
            if effects.is_empty() {
                pauses += 1;
                rig.wait_for_wakeup();
                effects = rig.tick();
            }
            let [Effect::Connect { link: next, .. }] = effects[..] else { panic!("{effects:?}") };
            link = next.0;
        }
        let effects = rig.batch([closed(link, &[])]);
        let [Effect::Connect { link: next, .. }] = effects[..] else { panic!("{effects:?}") };
        assert_eq!(rig.batch([closed(next.0, &[])]), []);
        assert!(rig.machine.wakeup().unwrap().since(rig.now) > FRESH_REQUEST_PAUSE_MS);
        rig.batch([submit(2, RequestKind::Read)]);
        assert_eq!(rig.wait_for_wakeup(), FRESH_REQUEST_PAUSE_MS);
        assert!(matches!(rig.tick()[..], [Effect::Connect { .. }]));
    }

    #[test]
    fn an_idle_link_is_left_alone() {
        let mut rig = Rig::connected();
        assert_eq!(rig.machine.wakeup(), None);
        rig.now = Millis(3_600_000);
        assert_eq!(rig.tick(), []);
        rig.batch([submit(1, RequestKind::Write)]);
        assert_eq!(rig.machine.wakeup(), Some(Millis(3_602_000)));
    }

    #[test]
    fn a_silent_master_is_left_after_the_deadline_and_what_it_may_have_done_is_unknown() {
        let mut rig = Rig::connected();
        rig.batch([submit(1, RequestKind::Write)]);
        rig.now = Millis(1000);
        rig.batch([submit(2, RequestKind::Read)]);
        rig.now = Millis(2000);
        assert_eq!(rig.tick(), [finish(1, Outcome::Unknown(FailureCause::TimedOut)), close(1)]);
        assert_eq!(rig.batch([closed(1, &[])]), [connect(2, BACKUP)]);
        assert_eq!(rig.batch([opened(2, true, None)]), [send(2, 2)]);
    }

    #[test]
    fn a_master_that_answers_others_is_not_left_for_one_slow_request() {
        let mut rig = Rig::connected();
        rig.batch([submit(1, RequestKind::Write), submit(2, RequestKind::Read)]);
        rig.now = Millis(1500);
        rig.batch([answer(1, 2, Reply::NotFound)]);
        rig.now = Millis(2000);
        assert_eq!(rig.tick(), [finish(1, Outcome::Unknown(FailureCause::TimedOut))]);
        assert_eq!(rig.machine.serving(), Some(PRIMARY));
    }

    #[test]
    fn an_answer_in_the_same_batch_comes_before_the_deadline() {
        let mut rig = Rig::connected();
        rig.batch([submit(1, RequestKind::Write)]);
        rig.now = Millis(9000);
        assert_eq!(rig.batch([answer(1, 1, Reply::Done)]), [finish(1, Outcome::Result(Reply::Done))]);
    }

    #[test]
    fn a_write_refused_until_its_deadline_was_not_executed() {
        let mut rig = Rig::connected();
        rig.batch([submit(1, RequestKind::Write)]);
        rig.batch([answer(1, 1, Reply::error(ErrorWord::Loading, "soon"))]);
        rig.now = Millis(2000);
        let cause = FailureCause::Refused(refusal(ErrorWord::Loading, "soon"));
        assert_eq!(rig.tick()[0], finish(1, Outcome::NotExecuted(cause)));
    }

    #[test]
    fn the_words_of_an_error_decide_the_outcome() {
        for word in ErrorWord::ALL {
            let mut rig = Rig::connected();
            rig.batch([submit(1, RequestKind::Write), submit(2, RequestKind::Read)]);
            let error = refusal(word, "");
            let effects = rig.batch([answer(1, 1, Reply::Error(error.clone()))]);
            let read_effects = rig.batch([answer(1, 2, Reply::Error(error.clone()))]);
            let cause = FailureCause::Refused(error);
            match word {
                ErrorWord::Standby => assert_eq!(read_effects, []),
                ErrorWord::Loading => assert_eq!(read_effects, []),
                ErrorWord::Unknown => {
                    assert_eq!(effects, [finish(1, Outcome::Unknown(cause))]);
                    assert_eq!(read_effects, [], "a read is asked again");
                }
                ErrorWord::NoQuorum
                | ErrorWord::ReadOnly
                | ErrorWord::Busy
                | ErrorWord::OutOfMemory
                | ErrorWord::NoAuth
                | ErrorWord::NoPermission
                | ErrorWord::WrongType
                | ErrorWord::Bad => {
                    assert_eq!(effects, [finish(1, Outcome::NotExecuted(cause.clone()))]);
                    assert_eq!(read_effects, [finish(2, Outcome::NotExecuted(cause))]);
                }
            }
        }
    }

    #[test]
    fn a_connect_that_hangs_ends_after_its_timeout() {
        let mut rig = Rig::new();
        rig.tick();
        assert_eq!(rig.wait_for_wakeup(), 2000);
        assert_eq!(rig.tick(), [close(1)]);
        assert_eq!(rig.batch([closed(1, &[])]), [connect(2, BACKUP)]);
    }

    #[test]
    fn a_first_master_that_says_nothing_leaves_the_other_one_its_part_of_the_time() {
        let mut rig = Rig::new();
        assert_eq!(rig.batch([submit(1, RequestKind::Write)]), [connect(1, PRIMARY)]);
        assert_eq!(rig.wait_for_wakeup(), 1000);
        assert_eq!(rig.tick(), [close(1)]);
        assert_eq!(rig.batch([closed(1, &[])]), [connect(2, BACKUP)]);
        // No other master is left to try: this one has all the remaining time.
        assert_eq!(rig.machine.wakeup(), Some(Millis(2000)));
        rig.now = Millis(1900);
        assert_eq!(rig.batch([opened(2, true, None)]), [send(2, 1)]);
    }

    #[test]
    fn a_read_leaves_a_link_that_falls_silent_while_there_is_time_for_another_master() {
        let mut rig = Rig::connected();
        rig.batch([submit(1, RequestKind::Read)]);
        rig.now = Millis(900);
        // A part of a long answer.
        assert_eq!(rig.batch([Event::Heard { link: LinkId(1) }]), []);
        assert_eq!(rig.machine.wakeup(), Some(Millis(1900)));
        rig.now = Millis(1900);
        assert_eq!(rig.tick(), [close(1)]);
        assert_eq!(rig.batch([closed(1, &[])]), [connect(2, BACKUP)]);
        assert_eq!(rig.batch([opened(2, true, None)]), [send(2, 1)]);
    }

    #[test]
    fn nothing_more_is_sent_to_a_silent_master() {
        let mut rig = Rig::connected();
        rig.batch([submit(1, RequestKind::Write)]);
        rig.now = Millis(1500);
        assert_eq!(rig.batch([submit(2, RequestKind::Write)]), []);
        assert_eq!(rig.machine.wakeup(), Some(Millis(2000)), "the deadline alone");
        // It was slow, and goes on.
        assert_eq!(rig.batch([Event::Heard { link: LinkId(1) }]), [send(1, 2)]);
        rig.now = Millis(2600);
        let finished = rig.batch([submit(3, RequestKind::Write)]);
        assert_eq!(finished, [finish(1, Outcome::Unknown(FailureCause::TimedOut))]);
        // The time of the second one has passed. The third was never sent, so another master may execute it.
        rig.now = Millis(3500);
        assert_eq!(rig.tick(), [finish(2, Outcome::Unknown(FailureCause::TimedOut)), close(1)]);
        assert_eq!(rig.batch([closed(1, &[])]), [connect(2, BACKUP)]);
        assert_eq!(rig.batch([opened(2, true, None)]), [send(2, 3)]);
    }

    #[test]
    fn masters_that_welcome_and_hang_up_are_dialed_with_pauses() {
        let mut rig = Rig::connected();
        assert_eq!(rig.batch([closed(1, &[])]), [connect(2, BACKUP)]);
        assert_eq!(rig.batch([opened(2, true, None), closed(2, &[])]), []);
        assert!(rig.wait_for_wakeup() >= 5);
        assert_eq!(rig.tick(), [connect(3, PRIMARY)]);
    }

    #[test]
    fn a_standby_that_is_to_be_left_sets_no_time_that_has_passed() {
        let mut rig = Rig::connected();
        let sent = rig.batch([submit(1, RequestKind::Write), submit(2, RequestKind::Write)]);
        assert_eq!(sent, [send(1, 1), send(1, 2)]);
        // The first one is refused, and the second may still be executed here: the link must stay.
        assert_eq!(rig.batch([answer(1, 1, Reply::error(ErrorWord::Standby, "b:2"))]), []);
        rig.now = rig.now.plus(500);
        assert_eq!(rig.tick(), []);
        // Else the caller would loop.
        assert_eq!(rig.machine.wakeup(), Some(Millis(2000)), "the deadline alone");
        let refused = Reply::error(ErrorWord::Standby, "b:2");
        assert_eq!(rig.batch([answer(1, 2, refused)]), [close(1)]);
    }

    #[test]
    fn an_idle_client_at_a_standby_looks_for_the_active_master_by_itself() {
        let mut rig = Rig::new();
        rig.tick();
        rig.batch([closed(1, &[])]);
        assert_eq!(rig.batch([opened(2, false, None)]), []);
        assert!(rig.wait_for_wakeup() <= 10);
        // The primary was tried just before: stay for a moment, then go round.
        assert_eq!(rig.tick(), []);
        rig.wait_for_wakeup();
        assert_eq!(rig.tick(), [close(2)]);
        assert_eq!(rig.batch([closed(2, &[])]), [connect(3, PRIMARY)]);
    }

    #[test]
    fn status_is_asked_of_a_standby_too_and_says_nothing_about_who_serves() {
        let mut rig = Rig::new();
        rig.batch([submit(1, RequestKind::Status)]);
        rig.batch([closed(1, &[])]);
        assert_eq!(rig.batch([opened(2, false, None)]), [send(2, 1)]);
        let text = Reply::Text("dsm_role:standby".to_owned());
        assert_eq!(rig.batch([answer(2, 1, text.clone())]), [finish(1, Outcome::Result(text))]);
        assert_eq!(rig.machine.serving(), None);
    }

    #[test]
    fn answers_of_an_older_link_or_to_nobody_are_ignored() {
        let mut rig = Rig::connected();
        rig.batch([submit(1, RequestKind::Read)]);
        rig.batch([closed(1, &[]), opened(2, true, None)]);
        assert_eq!(rig.batch([answer(1, 1, Reply::NotFound), answer(2, 9, Reply::Done)]), []);
        assert_eq!(rig.batch([answer(2, 1, Reply::NotFound)]), [finish(1, Outcome::Result(Reply::NotFound))]);
    }
}
