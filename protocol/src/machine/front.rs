//! The front: where a master sends a request that reached it, whatever its stance is at the moment, which it is told each time.
//!
//! Owns the requests that are held back or forwarded to the other master, and the rule that the requests of one
//! session keep their order through takeovers and handovers. Does not execute anything.
//!
//! A request is *served* here, *forwarded* to the active master, *held* while nobody is known to serve, or
//! *refused* with STANDBY. What was forwarded and refused is sent again under a higher generation once nothing of
//! the session is outstanding; the other side refuses everything of the old generation from its first refusal on.
//! So a later request can never overtake an earlier one that has to be sent twice.

use crate::command::{Command, ErrorWord, Reply};
use crate::ids::{Millis, RequestId, SessionId};
use crate::machine::master::Asker;
use crate::machine::reign::Stance;
use crate::planted;
use std::collections::{BTreeMap, HashMap, VecDeque};

/// How a session reached this master.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A client that does not know of masters: it is forwarded to the active one.
    Forwardable,
    /// A client that finds the active master by itself: it is told STANDBY.
    Native,
    /// Forwarded by the other master: never forwarded again.
    Forwarded {
        /// The generation it came with.
        generation: u32,
    },
}

/// The settings of the machine.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// The most requests that may be held or forwarded at once.
    pub requests_max: usize,
    /// The most bytes of keys and values in them.
    pub bytes_max: usize,
}

impl Default for Config {
    fn default() -> Self {
        Config { requests_max: 100_000, bytes_max: 256 * 1024 * 1024 }
    }
}

/// What happens to the machine.
#[derive(Debug)]
pub enum Event {
    /// The stance is another one from now on.
    StanceChanged,
    /// The link to the other master stands, and says whether that one is active.
    PeerState {
        /// Whether the other master serves.
        active: bool,
    },
    /// The link to the other master is gone.
    PeerDown,
    /// A request has come.
    Request {
        /// Who is to get the answer.
        asker: Asker,
        /// How it got here.
        kind: Kind,
        /// When the asker stops waiting.
        deadline: Millis,
        /// What the request is.
        command: Command,
    },
    /// The other master answered a forwarded request.
    Response {
        /// The number it was forwarded under.
        id: RequestId,
        /// The other master's answer.
        reply: Reply,
    },
    /// A session is closed.
    SessionClosed {
        /// The session that is closed.
        session: SessionId,
    },
    /// Time passed. At least every 50 ms.
    Tick,
}

/// What the machine wants done, in this order.
#[derive(Debug, PartialEq, Eq)]
pub enum Effect {
    /// Execute the request here.
    Serve {
        /// Who is to get the answer.
        asker: Asker,
        /// When the asker stops waiting.
        deadline: Millis,
        /// What the request is.
        command: Command,
    },
    /// Send the request to the other master.
    Forward {
        /// Its number on that link.
        id: RequestId,
        /// The session's number there.
        stream: u64,
        /// The session's generation, which the other side compares with what it has refused.
        generation: u32,
        /// What the request is.
        command: Command,
    },
    /// Tell the other master that a forwarded session is closed.
    StreamClosed {
        /// The session's number there.
        stream: u64,
    },
    /// Answer a request without executing it.
    Reply {
        /// Who is to get the answer.
        to: Asker,
        /// The answer itself.
        reply: Reply,
    },
    /// Close a session once its answers are out: what it asked later would run after an unknown write.
    CloseSession {
        /// The session that is to be closed.
        session: SessionId,
    },
}

#[derive(Clone, Debug)]
struct Queued {
    asker: Asker,
    deadline: Millis,
    command: Command,
}

/// A session with requests that are not served here at once.
#[derive(Clone, Debug, Default)]
struct Stream {
    generation: u32,
    queue: VecDeque<Queued>,
    outstanding: BTreeMap<RequestId, Queued>,
    /// Refused ones of the current generation, by the number they were forwarded under.
    refused: BTreeMap<RequestId, Queued>,
    /// Whether the other master knows the session, on the link that stands.
    known: bool,
    /// The last write that the other master has done: what was asked in front of it may not see it.
    done: Option<RequestId>,
    /// How long the longest value is that the session writes with what waits, in bytes. It is kept until nothing waits.
    longest: usize,
}

impl Stream {
    /// Whether nothing of the session waits.
    fn is_idle(&self) -> bool {
        self.queue.is_empty() && self.outstanding.is_empty() && self.refused.is_empty()
    }
}

/// The front of one master.
#[derive(Clone, Debug)]
pub struct Front {
    config: Config,
    peer_active: bool,
    active_address: Option<String>,
    streams: BTreeMap<SessionId, Stream>,
    /// Which session a forwarded request belongs to.
    forwarded: BTreeMap<RequestId, SessionId>,
    /// For sessions of the other master: the highest generation of which something was refused.
    refused_generation: HashMap<SessionId, u32, foldhash::fast::FixedState>,
    next_id: RequestId,
    requests: usize,
    bytes: usize,
}

impl Front {
    /// A standby without a link to the other master.
    pub fn new(config: Config) -> Self {
        Front {
            config,
            peer_active: false,
            active_address: None,
            streams: BTreeMap::new(),
            forwarded: BTreeMap::new(),
            refused_generation: HashMap::default(),
            next_id: RequestId(1),
            requests: 0,
            bytes: 0,
        }
    }

    /// Requests that are held or forwarded.
    pub fn waiting(&self) -> usize {
        self.requests
    }

    /// How long a value may be that a session reads now because it writes it itself in front of that, with something that
    /// waits here: in bytes, at most.
    pub fn longest_waiting(&self, session: SessionId) -> usize {
        let stream = if self.streams.is_empty() { None } else { self.streams.get(&session) };
        stream.filter(|stream| !stream.is_idle()).map_or(0, |stream| stream.longest)
    }

    /// Names the address to put into STANDBY answers.
    pub fn set_active_address(&mut self, address: Option<String>) {
        self.active_address = address;
    }

    /// Advances the machine of a master whose stance is this one. The caller must perform the effects in the order returned,
    /// and tell of a new stance before anything else: [`Event::StanceChanged`].
    pub fn step(&mut self, now: Millis, stance: Stance, event: Event, effects: &mut Vec<Effect>) {
        match event {
            Event::StanceChanged => self.stance_changed(stance, effects),
            Event::PeerState { active } => {
                self.peer_active = active;
                self.pump_all(stance, effects);
            }
            Event::PeerDown => self.peer_down(stance, effects),
            Event::Request { asker, kind, deadline, command } => {
                self.request(stance, (asker, kind), deadline, command, effects);
            }
            Event::Response { id, reply } => self.response(stance, id, reply, effects),
            Event::SessionClosed { session } => {
                self.refused_generation.remove(&session);
                if self.forget(session) {
                    effects.push(Effect::StreamClosed { stream: session.0 });
                }
            }
            Event::Tick => self.tick(now, stance, effects),
        }
    }

    fn stance_changed(&mut self, stance: Stance, effects: &mut Vec<Effect>) {
        match stance {
            Stance::Stopping => return self.refuse_all(effects),
            Stance::Serving => self.peer_active = false,
            Stance::Standby | Stance::Holding => {}
        }
        self.pump_all(stance, effects);
    }

    /// What waits here is refused; what the other master has is answered by it.
    fn refuse_all(&mut self, effects: &mut Vec<Effect>) {
        let sessions: Vec<SessionId> = self.streams.keys().copied().collect();
        for session in sessions {
            let Some(stream) = self.streams.get_mut(&session) else { continue };
            let refused = std::mem::take(&mut stream.refused).into_values();
            for queued in refused.chain(std::mem::take(&mut stream.queue)).collect::<Vec<_>>() {
                self.requests -= 1;
                self.bytes -= queued.command.payload_bytes();
                effects.push(self.standby(queued.asker));
            }
        }
    }

    fn request(
        &mut self,
        stance: Stance,
        (asker, kind): (Asker, Kind),
        deadline: Millis,
        command: Command,
        effects: &mut Vec<Effect>,
    ) {
        let queued = Queued { asker, deadline, command };
        match kind {
            Kind::Forwarded { generation } => {
                let refused = self.refused_generation.get(&asker.session).is_some_and(|g| generation <= *g);
                if stance == Stance::Serving && !refused {
                    effects.push(serve(queued));
                } else {
                    let highest = self.refused_generation.entry(asker.session).or_default();
                    *highest = generation.max(*highest);
                    effects.push(self.standby(asker));
                }
            }
            Kind::Forwardable | Kind::Native if stance == Stance::Stopping => {
                effects.push(self.standby(asker));
            }
            Kind::Forwardable | Kind::Native => {
                let behind_others = !self.streams.is_empty()
                    && self.streams.get(&asker.session).is_some_and(|stream| !stream.is_idle());
                if stance == Stance::Serving && !behind_others {
                    effects.push(serve(queued));
                } else if kind == Kind::Native
                    && stance == Stance::Standby
                    && self.peer_active
                    && !behind_others
                {
                    effects.push(self.standby(asker));
                } else if stance == Stance::Standby
                    && matches!(queued.command, Command::Get { .. })
                    && planted!(StandbyAnswersReads)
                {
                    effects.push(Effect::Reply { to: asker, reply: Reply::NotFound });
                } else {
                    self.enqueue(stance, queued, effects);
                }
            }
        }
    }

    fn standby(&self, asker: Asker) -> Effect {
        let address = self.active_address.clone().unwrap_or_default();
        Effect::Reply { to: asker, reply: Reply::error(ErrorWord::Standby, address) }
    }

    fn enqueue(&mut self, stance: Stance, queued: Queued, effects: &mut Vec<Effect>) {
        let bytes = queued.command.payload_bytes();
        if self.requests >= self.config.requests_max || self.bytes + bytes > self.config.bytes_max {
            let reply = Reply::error(ErrorWord::Busy, "too many requests wait for an active master");
            effects.push(Effect::Reply { to: queued.asker, reply });
            return;
        }
        self.requests += 1;
        self.bytes += bytes;
        let session = queued.asker.session;
        let stream = self.streams.entry(session).or_default();
        stream.longest =
            if stream.is_idle() { 0 } else { stream.longest }.max(queued.command.operands().longest_value());
        stream.queue.push_back(queued);
        self.pump(stance, session, effects);
    }

    fn pump_all(&mut self, stance: Stance, effects: &mut Vec<Effect>) {
        let sessions: Vec<SessionId> = self.streams.keys().copied().collect();
        for session in sessions {
            self.pump(stance, session, effects);
        }
    }

    /// Moves a session's requests on as far as the stance allows.
    fn pump(&mut self, stance: Stance, session: SessionId, effects: &mut Vec<Effect>) {
        let Some(stream) = self.streams.get_mut(&session) else { return };
        if !stream.refused.is_empty() {
            if !stream.outstanding.is_empty() {
                return;
            }
            stream.generation += 1;
            for (_, queued) in std::mem::take(&mut stream.refused).into_iter().rev() {
                stream.queue.push_front(queued);
            }
        }
        match stance {
            Stance::Serving => {
                if !stream.outstanding.is_empty() {
                    return;
                }
                for queued in std::mem::take(&mut stream.queue) {
                    self.requests -= 1;
                    self.bytes -= queued.command.payload_bytes();
                    effects.push(serve(queued));
                }
                if self.forget(session) {
                    effects.push(Effect::StreamClosed { stream: session.0 });
                }
            }
            Stance::Standby if self.peer_active => {
                stream.known |= !stream.queue.is_empty();
                while let Some(queued) = stream.queue.pop_front() {
                    let id = self.next_id;
                    self.next_id = RequestId(id.0 + 1);
                    effects.push(Effect::Forward {
                        id,
                        stream: session.0,
                        generation: stream.generation,
                        command: queued.command.clone(),
                    });
                    self.forwarded.insert(id, session);
                    stream.outstanding.insert(id, queued);
                }
            }
            Stance::Standby | Stance::Holding | Stance::Stopping => {}
        }
    }

    fn response(&mut self, stance: Stance, id: RequestId, reply: Reply, effects: &mut Vec<Effect>) {
        let Some(session) = self.forwarded.remove(&id) else { return };
        let Some(stream) = self.streams.get_mut(&session) else { return };
        let Some(queued) = stream.outstanding.remove(&id) else { return };
        let word = match &reply {
            Reply::Error(error) => Some(error.word),
            Reply::Done
            | Reply::Value(_)
            | Reply::NotFound
            | Reply::Values(_)
            | Reply::Count(_)
            | Reply::Text(_) => None,
        };
        if word == Some(ErrorWord::Standby) && stance != Stance::Stopping {
            stream.refused.insert(id, queued);
            // While the other side still claims to serve, the next try waits for a tick.
            if stance == Stance::Serving {
                self.pump(stance, session, effects);
            }
            return;
        }
        if word.is_none() && queued.command.is_write() {
            stream.done = stream.done.max(Some(id));
        }
        self.requests -= 1;
        self.bytes -= queued.command.payload_bytes();
        effects.push(Effect::Reply { to: queued.asker, reply });
        if word == Some(ErrorWord::Unknown) {
            self.close(session, effects);
        } else {
            self.drop_if_done(stance, session, effects);
            if stance == Stance::Serving {
                self.pump(stance, session, effects);
            }
        }
    }

    fn peer_down(&mut self, stance: Stance, effects: &mut Vec<Effect>) {
        self.peer_active = false;
        self.forwarded.clear();
        let sessions: Vec<SessionId> = self.streams.keys().copied().collect();
        for session in sessions {
            let Some(stream) = self.streams.get_mut(&session) else { continue };
            stream.known = false;
            let (mut unknown, mut overtaken) = (Vec::new(), Vec::new());
            for (id, queued) in std::mem::take(&mut stream.outstanding) {
                if queued.command.is_write() && !planted!(ForwardedWriteRepeated) {
                    unknown.push(queued);
                } else if stream.done > Some(id) {
                    overtaken.push(queued);
                } else {
                    stream.refused.insert(id, queued);
                }
            }
            for queued in overtaken {
                self.requests -= 1;
                self.bytes -= queued.command.payload_bytes();
                // Asked again it would see what its session has written since.
                let reply = Reply::error(ErrorWord::Loading, "the active master was lost during the read");
                effects.push(Effect::Reply { to: queued.asker, reply });
            }
            if unknown.is_empty() {
                self.pump(stance, session, effects);
                continue;
            }
            for queued in unknown {
                self.requests -= 1;
                self.bytes -= queued.command.payload_bytes();
                let reply = Reply::error(ErrorWord::Unknown, "the active master was lost during the write");
                effects.push(Effect::Reply { to: queued.asker, reply });
            }
            self.close(session, effects);
        }
    }

    fn tick(&mut self, now: Millis, stance: Stance, effects: &mut Vec<Effect>) {
        let sessions: Vec<SessionId> = self.streams.keys().copied().collect();
        for session in sessions {
            let Some(stream) = self.streams.get_mut(&session) else { continue };
            let mut late = Vec::new();
            // With nothing left outstanding it would be sent again, even after its deadline.
            if stream.outstanding.values().all(|queued| queued.deadline <= now) {
                stream.refused.retain(|_, queued| keep_or_take(queued, now, &mut late));
            }
            stream.queue.retain_mut(|queued| keep_or_take(queued, now, &mut late));
            let unknown: Vec<RequestId> = stream
                .outstanding
                .iter()
                .filter(|(_, queued)| queued.deadline <= now)
                .map(|(id, _)| *id)
                .collect();
            for queued in late {
                self.requests -= 1;
                self.bytes -= queued.command.payload_bytes();
                let reply = Reply::error(ErrorWord::Loading, "no active master was found in time");
                effects.push(Effect::Reply { to: queued.asker, reply });
            }
            let mut lost_write = false;
            for id in unknown {
                let Some(stream) = self.streams.get_mut(&session) else { break };
                let Some(queued) = stream.outstanding.remove(&id) else { continue };
                self.forwarded.remove(&id);
                self.requests -= 1;
                self.bytes -= queued.command.payload_bytes();
                let write = queued.command.is_write();
                lost_write |= write;
                let reply = if write {
                    Reply::error(ErrorWord::Unknown, "the active master did not answer in time")
                } else {
                    Reply::error(ErrorWord::Loading, "the active master did not answer in time")
                };
                effects.push(Effect::Reply { to: queued.asker, reply });
            }
            if lost_write {
                self.close(session, effects);
            } else {
                self.pump(stance, session, effects);
                self.drop_if_done(stance, session, effects);
            }
        }
    }

    /// Ends a session after an unknown write; what it still waits for is answered by the connection's end.
    fn close(&mut self, session: SessionId, effects: &mut Vec<Effect>) {
        if self.forget(session) {
            effects.push(Effect::StreamClosed { stream: session.0 });
        }
        effects.push(Effect::CloseSession { session });
    }

    /// Drops all that is kept of a session; whether the other master knows it.
    fn forget(&mut self, session: SessionId) -> bool {
        let Some(stream) = self.streams.remove(&session) else { return false };
        for id in stream.outstanding.keys() {
            self.forwarded.remove(id);
        }
        let all = stream.outstanding.values().chain(stream.refused.values()).chain(&stream.queue);
        for queued in all {
            self.requests -= 1;
            self.bytes -= queued.command.payload_bytes();
        }
        stream.known
    }

    /// Forgets a session of which nothing waits, but not its generation while the other master may need it.
    fn drop_if_done(&mut self, stance: Stance, session: SessionId, effects: &mut Vec<Effect>) {
        let done = self.streams.get(&session).is_some_and(Stream::is_idle);
        if stance == Stance::Serving && done && self.forget(session) {
            effects.push(Effect::StreamClosed { stream: session.0 });
        }
    }
}

fn keep_or_take(queued: &mut Queued, now: Millis, late: &mut Vec<Queued>) -> bool {
    if queued.deadline > now {
        return true;
    }
    let command = std::mem::replace(&mut queued.command, Command::KeyCount);
    late.push(Queued { asker: queued.asker, deadline: queued.deadline, command });
    false
}

fn serve(queued: Queued) -> Effect {
    Effect::Serve { asker: queued.asker, deadline: queued.deadline, command: queued.command }
}
