//! The front under any events: every request is answered, served or ended with its session, once; the requests of a
//! session keep their order; what waits is bounded. There are two links to other masters; the end of one must not affect
//! requests that were sent over the other.

use super::Input;
use bytes::Bytes;
use dsm_protocol::command::{Command, ErrorWord, Reply};
use dsm_protocol::ids::{LinkId, Millis, RequestId, SessionId};
use dsm_protocol::machine::front::{Config, Effect, Event, Front, Kind};
use dsm_protocol::machine::master::Asker;
use dsm_protocol::machine::reign::Stance;
use std::collections::{BTreeMap, BTreeSet};

const CONFIG: Config = Config { requests_max: 12, bytes_max: 60 };

/// A request without an outcome, and what may still happen to it.
struct Open {
    session: SessionId,
    deadline: Millis,
    command: Command,
    kind: Kind,
}

struct World {
    now: Millis,
    stance: Stance,
    /// The open links. When one ends, another follows at once.
    links: [LinkId; 2],
    leader: Option<LinkId>,
    next_tag: u64,
    /// By tag, which is unique.
    open: BTreeMap<u64, Open>,
    /// Forwarded and not answered, over which link and for whom.
    forwarded: BTreeMap<RequestId, (LinkId, Asker)>,
    /// The requests that were lost with the link that ends just now.
    lost: Vec<Asker>,
    last_forwarded: RequestId,
    /// The last request of a session that was served, in the order in which they were asked.
    last_served: BTreeMap<SessionId, u64>,
    /// The last write of each session that was done.
    done: BTreeMap<SessionId, u64>,
    closed: BTreeSet<SessionId>,
    generations: BTreeMap<(LinkId, u64), u32>,
}

/// Events, one after the other; then time passes until no request may wait any more.
pub(crate) fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let mut front = Front::new(CONFIG);
    let mut world = World::new();
    while !input.is_empty() {
        let Some(event) = world.event(&mut input) else { continue };
        world.step(&mut front, event);
    }
    world.now = world.now.plus(10_000);
    world.step(&mut front, Event::Tick);
    assert!(world.open.is_empty(), "{} requests are left without an answer", world.open.len());
    assert_eq!(front.waiting(), 0);
}

impl World {
    fn new() -> World {
        World {
            now: Millis(0),
            stance: Stance::Standby,
            links: [LinkId(1), LinkId(2)],
            leader: None,
            next_tag: 0,
            open: BTreeMap::new(),
            forwarded: BTreeMap::new(),
            lost: Vec::new(),
            last_forwarded: RequestId::default(),
            last_served: BTreeMap::new(),
            done: BTreeMap::new(),
            closed: BTreeSet::new(),
            generations: BTreeMap::new(),
        }
    }

    /// Takes a stance, except when the master is about to end: then its stance stays.
    fn takes(&mut self, stance: Stance) -> Option<Event> {
        if self.stance == Stance::Stopping {
            return None;
        }
        self.stance = stance;
        self.leader = self.leader.filter(|_| stance != Stance::Serving);
        Some(Event::StanceChanged)
    }

    fn event(&mut self, input: &mut Input<'_>) -> Option<Event> {
        let choice = input.u8();
        let event = match choice % 16 {
            0..=5 => self.request(choice, input)?,
            6..=8 => {
                let which = input.u8();
                let ids: Vec<_> = self.forwarded.iter().map(|(id, (link, _))| (*id, *link)).collect();
                let (id, mut link) = match ids.len() {
                    0 => (RequestId(u64::from(which)), self.links[0]),
                    some => ids[usize::from(which & 15) % some],
                };
                if which & 16 != 0 {
                    // Not the one that was asked.
                    link = self.links[usize::from(link == self.links[0])];
                }
                let reply = match which >> 5 {
                    0 | 1 => Reply::error(ErrorWord::Standby, ""),
                    2 => Reply::error(ErrorWord::Unknown, ""),
                    3 => Reply::NotFound,
                    _ => Reply::Done,
                };
                Event::Response { link, id, reply }
            }
            9 => {
                let which = input.u8();
                self.leader = (which & 1 != 0).then_some(self.links[usize::from(which >> 1 & 1)]);
                Event::PeerLeads { link: self.leader }
            }
            10 => {
                let which = usize::from(choice >> 4 & 1);
                let link = self.links[which];
                self.links[which] = LinkId(link.0 + 2);
                self.leader = self.leader.filter(|leader| *leader != link);
                let lost = self.forwarded.values().filter(|(over, _)| *over == link);
                self.lost = lost.map(|(_, asker)| *asker).collect();
                self.forwarded.retain(|_, (over, _)| *over != link);
                // The next link knows nothing of the streams of this one.
                self.generations.retain(|(over, _), _| *over != link);
                Event::PeerDown { link }
            }
            11 => self.takes(Stance::Serving)?,
            12 => self.takes(if input.flag() { Stance::Holding } else { Stance::Standby })?,
            13 => {
                let session = SessionId(u64::from(input.u8() & 3));
                self.end(session);
                Event::SessionClosed { session }
            }
            14 if input.u8() > 250 => self.takes(Stance::Stopping)?,
            _ => {
                self.now = self.now.plus(u64::from(choice) * 2);
                Event::Tick
            }
        };
        Some(event)
    }

    /// A request of one of few sessions.
    fn request(&mut self, choice: u8, input: &mut Input<'_>) -> Option<Event> {
        let who = input.u8();
        let forwarded = who & 0x30 == 0x30;
        // The other master's sessions are different from ours.
        let session = SessionId(u64::from(who & 3) + if forwarded { 100 } else { 0 });
        if self.closed.contains(&session) {
            return None;
        }
        let kind = match who >> 4 & 3 {
            3 => Kind::Forwarded { generation: u32::from(who >> 6) },
            // A session is of one kind.
            _ if session.0 & 1 == 1 => Kind::Native,
            _ => Kind::Forwardable,
        };
        self.next_tag += 1;
        let asker = Asker { session, tag: self.next_tag };
        let key = Bytes::from(vec![b'k'; usize::from(who >> 2 & 3)]);
        let command = if choice & 1 == 0 {
            Command::Get { key }
        } else {
            Command::Put { key, value: Bytes::from_static(b"value") }
        };
        let deadline = self.now.plus(u64::from(input.u8()) * 4);
        self.open.insert(asker.tag, Open { session, deadline, command: command.clone(), kind });
        Some(Event::Request { asker, kind, deadline, command })
    }

    /// The session is over: no answers are expected.
    fn end(&mut self, session: SessionId) {
        self.closed.insert(session);
        self.open.retain(|_, open| open.session != session);
        self.forwarded.retain(|_, (_, asker)| asker.session != session);
    }

    fn step(&mut self, front: &mut Front, event: Event) {
        let mut effects = Vec::new();
        let response = match &event {
            Event::Response { link, id, reply }
                if self.forwarded.get(id).is_some_and(|(over, _)| over == link) =>
            {
                self.forwarded.remove(id).map(|(_, asker)| (asker, reply.clone()))
            }
            _ => None,
        };
        front.step(self.now, self.stance, event, &mut effects);
        for effect in effects {
            self.performed(effect, response.as_ref());
        }
        self.lost.clear();
        assert!(front.waiting() <= CONFIG.requests_max, "{} wait", front.waiting());
        let own = self.open.values().filter(|open| !matches!(open.kind, Kind::Forwarded { .. })).count();
        assert_eq!(front.waiting(), own, "what waits is miscounted");
    }

    /// A request is sent to the other end of `link`, under the number `id`.
    fn sent(&mut self, (link, id): (LinkId, RequestId), stream: u64, generation: u32, command: &Command) {
        assert!(
            self.leader == Some(link) && self.stance == Stance::Standby,
            "forwarded to a master that does not lead"
        );
        let mut out = self.forwarded.values().filter(|(_, asker)| asker.session.0 == stream);
        assert!(out.all(|(over, _)| *over == link), "a session is on two links");
        assert!(id > self.last_forwarded, "a number is used twice");
        self.last_forwarded = id;
        let highest = self.generations.entry((link, stream)).or_default();
        assert!(generation >= *highest, "a generation falls");
        *highest = generation;
        // The oldest request of the session that is not forwarded already.
        let out: Vec<u64> = self.forwarded.values().map(|(_, asker)| asker.tag).collect();
        let next = self.open.iter().find(|(tag, open)| open.session.0 == stream && !out.contains(tag));
        let (tag, open) = next.expect("nobody asked for what is forwarded");
        assert_eq!(&open.command, command, "a session's order is lost");
        assert!(!matches!(open.kind, Kind::Forwarded { .. }), "forwarded a second time");
        self.forwarded.insert(id, (link, Asker { session: open.session, tag: *tag }));
    }

    fn performed(&mut self, effect: Effect, response: Option<&(Asker, Reply)>) {
        match effect {
            Effect::Serve { asker, deadline, command } => {
                let open = self.open.remove(&asker.tag).expect("served twice, or after its answer");
                assert_eq!((open.deadline, open.command), (deadline, command));
                assert!(self.stance == Stance::Serving, "served by a master that does not serve");
                let last = self.last_served.insert(asker.session, asker.tag);
                assert!(last < Some(asker.tag), "a session's order is lost: {asker:?} after {last:?}");
                assert!(
                    !self.forwarded.values().any(|(_, forwarded)| forwarded.session == asker.session),
                    "served here while earlier ones are out"
                );
            }
            Effect::Forward { link, id, stream, generation, command } => {
                self.sent((link, id), stream, generation, &command);
            }
            Effect::Reply { to, reply } => {
                let open = self.open.remove(&to.tag).expect("answered twice");
                let is_lost = self.lost.contains(&to);
                let was_out = self.forwarded.values().any(|(_, asker)| *asker == to) || is_lost;
                self.forwarded.retain(|_, (_, asker)| *asker != to);
                if open.command.is_write() && !matches!(reply, Reply::Error(_)) {
                    let last = self.done.entry(to.session).or_default();
                    *last = to.tag.max(*last);
                }
                match (response, &reply) {
                    // A read changes nothing: it has no unknown outcome.
                    (Some((asker, Reply::Error(answer))), Reply::Error(told))
                        if *asker == to && answer.word == ErrorWord::Unknown && !open.command.is_write() =>
                    {
                        assert_eq!((told.word, &told.detail), (ErrorWord::Bad, &answer.detail));
                    }
                    (Some((asker, answer)), _) if *asker == to => assert_eq!(*answer, reply),
                    (_, Reply::Error(error)) => match error.word {
                        ErrorWord::Unknown => {
                            assert!(open.command.is_write(), "a read is unknown");
                            assert!(
                                is_lost || (was_out && open.deadline <= self.now),
                                "unknown although its link stands"
                            );
                        }
                        ErrorWord::Loading => {
                            // Sent again over another link, it would see a later write of its session.
                            let is_overtaken = is_lost
                                && !open.command.is_write()
                                && self.done.get(&to.session).is_some_and(|done| *done > to.tag);
                            assert!(
                                open.deadline <= self.now || is_overtaken,
                                "given up before its deadline"
                            );
                            assert!(!(was_out && open.command.is_write()), "a write that is out is unknown");
                        }
                        ErrorWord::Standby | ErrorWord::Busy => assert!(!was_out, "refused while it is out"),
                        _ => panic!("{reply:?}"),
                    },
                    _ => panic!("{reply:?} is made up"),
                }
            }
            Effect::StreamClosed { link, stream } => {
                assert!(self.links.contains(&link), "sent over a closed link");
                self.generations.remove(&(link, stream));
            }
            Effect::CloseSession { session } => self.end(session),
        }
    }
}

/// A takeover, a handover, a lost link, two links of which the first is lost after the second leads, and noise.
pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let takeover = vec![0, 0, 90, 1, 4, 90, 9, 1, 6, 0, 6, 200, 11, 0, 0, 90, 12, 1, 1, 0, 90, 11];
    let handover = vec![11, 1, 0, 90, 12, 1, 1, 4, 90, 0, 0, 90, 12, 0, 9, 1, 6, 200, 6, 200];
    let lost = vec![9, 1, 1, 0, 90, 0, 2, 90, 10, 0, 2, 90, 9, 1, 6, 200, 13, 2, 14, 255, 0, 0, 9];
    let two = vec![9, 1, 1, 0, 90, 9, 3, 1, 0, 90, 1, 2, 90, 0, 2, 90, 10, 6, 200, 26, 9, 1, 0, 2, 90];
    vec![takeover, handover, lost, super::noise(7, 200), super::noise(8, 600), two]
}
