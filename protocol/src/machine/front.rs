//! The front: what a master does with a request, given its stance. The stance is an argument of each step.
//!
//! Owns the requests that are held back or forwarded to another master, and the rule that the requests of one
//! session keep their order through takeovers and handovers. Does not execute anything.
//!
//! A request is *served* here, *forwarded* to the active master, *held* while no master is known to serve, or *refused*
//! with STANDBY. A forwarded request that was refused is sent again under a higher generation, once nothing of its
//! session is outstanding. After its first refusal the other side refuses everything of the old generation. So a later
//! request can never overtake an earlier one that has to be sent twice.
//!
//! There may be links to several other masters. All outstanding requests of one session are on one link: nothing is sent
//! over another link before they are answered, or lost with theirs. So the end of a link concerns only the requests that
//! were sent over it.

use crate::command::{Command, ErrorWord, Reply};
use crate::ids::{LinkId, Millis, RequestId, SessionId};
use crate::machine::master::Asker;
use crate::machine::reign::Stance;
use crate::planted;
use smallvec::SmallVec;
use std::collections::{BTreeMap, HashMap, VecDeque};

/// How a session reached this master.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A client that does not know several masters: its requests are forwarded to the active one.
    Forwardable,
    /// A client that finds the active master by itself: it is told STANDBY.
    Native,
    /// Forwarded by another master: never forwarded again.
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
    /// The stance has changed.
    StanceChanged,
    /// The other masters tell which of them serves.
    PeerLeads {
        /// The link to it; `None` when none of them says that it serves.
        link: Option<LinkId>,
    },
    /// A link to another master is gone.
    PeerDown {
        /// The link that is gone.
        link: LinkId,
    },
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
    /// Another master answered a forwarded request.
    Response {
        /// The link that it came over. Only an answer over the link that carried the request counts.
        link: LinkId,
        /// The id under which it was forwarded.
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
    /// Send the request to another master.
    Forward {
        /// Over which link.
        link: LinkId,
        /// Its id, which is unique over all links.
        id: RequestId,
        /// The session's number there.
        stream: u64,
        /// The session's generation, which the other side compares with what it has refused.
        generation: u32,
        /// What the request is.
        command: Command,
    },
    /// Tell another master that a forwarded session is closed.
    StreamClosed {
        /// Over which link.
        link: LinkId,
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
    /// Close a session once its answers are sent: its later requests would run after an unknown write.
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

/// A session with requests that are held or forwarded.
#[derive(Clone, Debug, Default)]
struct Stream {
    generation: u32,
    queue: VecDeque<Queued>,
    outstanding: BTreeMap<RequestId, Queued>,
    /// The link over which all outstanding ones were sent; if there are none, the last link that was used.
    over: Option<LinkId>,
    /// Refused ones of the current generation, by the id under which they were forwarded.
    refused: BTreeMap<RequestId, Queued>,
    /// The open links over which other masters know the session.
    known: SmallVec<[LinkId; 1]>,
    /// The last write that the other master has executed: an earlier read must not see it.
    done: Option<RequestId>,
    /// The longest value among the session's waiting writes, in bytes. It is kept until nothing waits.
    longest: usize,
}

impl Stream {
    /// Whether nothing of the session waits.
    fn is_idle(&self) -> bool {
        self.queue.is_empty() && self.outstanding.is_empty() && self.refused.is_empty()
    }

    /// Whether a request is outstanding on another link: until it is answered or lost, nothing may be sent over this
    /// one.
    fn is_elsewhere(&self, link: LinkId) -> bool {
        self.over != Some(link) && !self.outstanding.is_empty()
    }
}

/// The front of one master.
#[derive(Clone, Debug)]
pub struct Front {
    config: Config,
    /// The link to the master that serves.
    leader: Option<LinkId>,
    active_address: Option<String>,
    streams: BTreeMap<SessionId, Stream>,
    /// Which session a forwarded request belongs to.
    forwarded: BTreeMap<RequestId, SessionId>,
    /// For sessions of other masters: the highest generation of which a request was refused.
    refused_generation: HashMap<SessionId, u32, foldhash::fast::FixedState>,
    next_id: RequestId,
    requests: usize,
    bytes: usize,
}

impl Front {
    /// A standby without a link to another master.
    pub fn new(config: Config) -> Self {
        Front {
            config,
            leader: None,
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

    /// The longest value, in bytes, that a read of `session` may see because of the session's own writes that wait here.
    pub fn longest_waiting(&self, session: SessionId) -> usize {
        let stream = if self.streams.is_empty() { None } else { self.streams.get(&session) };
        stream.filter(|stream| !stream.is_idle()).map_or(0, |stream| stream.longest)
    }

    /// Who asked what was forwarded under that id, while it is outstanding.
    pub fn asker_of(&self, id: RequestId) -> Option<Asker> {
        let stream = self.streams.get(self.forwarded.get(&id)?)?;
        stream.outstanding.get(&id).map(|queued| queued.asker)
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
            Event::PeerLeads { link } => {
                self.leader = link;
                self.pump_all(stance, effects);
            }
            Event::PeerDown { link } => self.peer_down(stance, link, effects),
            Event::Request { asker, kind, deadline, command } => {
                self.request(stance, (asker, kind), deadline, command, effects);
            }
            Event::Response { link, id, reply } => self.response(stance, (link, id), reply, effects),
            Event::SessionClosed { session } => {
                self.refused_generation.remove(&session);
                self.forget(session, effects);
            }
            Event::Tick => self.tick(now, stance, effects),
        }
    }

    fn stance_changed(&mut self, stance: Stance, effects: &mut Vec<Effect>) {
        match stance {
            Stance::Stopping => return self.refuse_all(effects),
            Stance::Serving => self.leader = None,
            Stance::Standby | Stance::Holding => {}
        }
        self.pump_all(stance, effects);
    }

    /// Refuses what waits here. The other master answers what was forwarded to it.
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
                    && self.leader.is_some()
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
        // One that is asked again keeps its place.
        let later = stream.queue.iter().rev().take_while(|other| other.asker.tag > queued.asker.tag).count();
        stream.queue.insert(stream.queue.len() - later, queued);
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
                self.forget(session, effects);
            }
            Stance::Standby => {
                let Some(link) = self.leader.filter(|_| !stream.queue.is_empty()) else { return };
                if stream.is_elsewhere(link) {
                    return;
                }
                stream.over = Some(link);
                if !stream.known.contains(&link) {
                    stream.known.push(link);
                }
                while let Some(queued) = stream.queue.pop_front() {
                    let id = self.next_id;
                    self.next_id = RequestId(id.0 + 1);
                    effects.push(Effect::Forward {
                        link,
                        id,
                        stream: session.0,
                        generation: stream.generation,
                        command: queued.command.clone(),
                    });
                    self.forwarded.insert(id, session);
                    stream.outstanding.insert(id, queued);
                }
            }
            Stance::Holding | Stance::Stopping => {}
        }
    }

    fn response(
        &mut self,
        stance: Stance,
        (link, id): (LinkId, RequestId),
        reply: Reply,
        effects: &mut Vec<Effect>,
    ) {
        let Some(session) = self.forwarded.get(&id).copied() else { return };
        let Some(stream) = self.streams.get_mut(&session).filter(|stream| stream.over == Some(link)) else {
            return;
        };
        self.forwarded.remove(&id);
        // Another leader may now get the requests that have waited for this answer.
        let goes_on = stance == Stance::Serving || self.leader.is_some_and(|leader| leader != link);
        let Some(queued) = stream.outstanding.remove(&id) else { return };
        let word = match &reply {
            Reply::Error(error) => Some(error.word),
            Reply::Done
            | Reply::Value(_)
            | Reply::NotFound
            | Reply::Values(_)
            | Reply::Count(_)
            | Reply::Integer(_)
            | Reply::Page { .. }
            | Reply::Text(_)
            | Reply::Many(_)
            | Reply::Versions(_)
            | Reply::Encoded(_) => None,
        };
        if word == Some(ErrorWord::Standby) && stance != Stance::Stopping {
            stream.refused.insert(id, queued);
            // While the other side still claims to serve, the next try waits for a tick.
            if goes_on {
                self.pump(stance, session, effects);
            }
            return;
        }
        if word.is_none() && queued.command.is_write() {
            stream.done = stream.done.max(Some(id));
        }
        self.requests -= 1;
        self.bytes -= queued.command.payload_bytes();
        let is_unknown = word == Some(ErrorWord::Unknown) && queued.command.is_write();
        let mut reply = reply;
        if let Reply::Error(error) = &mut reply {
            // A read changes nothing.
            if error.word == ErrorWord::Unknown && !is_unknown {
                error.word = ErrorWord::Bad;
            }
        }
        effects.push(Effect::Reply { to: queued.asker, reply });
        if is_unknown {
            self.close(session, effects);
        } else {
            self.drop_if_done(stance, session, effects);
            if goes_on {
                self.pump(stance, session, effects);
            }
        }
    }

    /// Ends the requests that were sent over a link that is gone. Requests that were sent over other links are not
    /// concerned.
    fn peer_down(&mut self, stance: Stance, link: LinkId, effects: &mut Vec<Effect>) {
        self.leader = self.leader.filter(|leader| *leader != link);
        let sessions: Vec<SessionId> = self.streams.keys().copied().collect();
        for session in sessions {
            let Some(stream) = self.streams.get_mut(&session) else { continue };
            stream.known.retain(|known| *known != link);
            if stream.over != Some(link) {
                continue;
            }
            let (mut unknown, mut overtaken) = (Vec::new(), Vec::new());
            for (id, queued) in std::mem::take(&mut stream.outstanding) {
                self.forwarded.remove(&id);
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
                // Sent again, the read would see a later write of its session.
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
            // Else a refused request would be sent again after its deadline, as nothing is outstanding.
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

    /// Ends a session after an unknown write. The end of the connection answers its other requests.
    fn close(&mut self, session: SessionId, effects: &mut Vec<Effect>) {
        self.forget(session, effects);
        effects.push(Effect::CloseSession { session });
    }

    /// Drops all that is kept of a session, and tells the masters that know it.
    fn forget(&mut self, session: SessionId, effects: &mut Vec<Effect>) {
        let Some(stream) = self.streams.remove(&session) else { return };
        for id in stream.outstanding.keys() {
            self.forwarded.remove(id);
        }
        let all = stream.outstanding.values().chain(stream.refused.values()).chain(&stream.queue);
        for queued in all {
            self.requests -= 1;
            self.bytes -= queued.command.payload_bytes();
        }
        effects.extend(stream.known.into_iter().map(|link| Effect::StreamClosed { link, stream: session.0 }));
    }

    /// Forgets a session of which nothing waits, if this master serves. Else its generation may still be needed.
    fn drop_if_done(&mut self, stance: Stance, session: SessionId, effects: &mut Vec<Effect>) {
        let done = self.streams.get(&session).is_some_and(Stream::is_idle);
        if stance == Stance::Serving && done {
            self.forget(session, effects);
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
