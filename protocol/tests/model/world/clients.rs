//! Clients: their requests, the answers, and the check of each answer.

use super::*;

impl World {
    pub(super) fn session_of(&self, c: usize) -> SessionId {
        SessionId(c as u64 + 10 * self.clients.all[c].session)
    }

    pub(super) fn client_of(&self, m: usize, session: SessionId) -> Option<usize> {
        let found = (0..self.clients.all.len()).find(|c| self.session_of(*c) == session);
        found.filter(|c| self.clients.all[*c].at == Some(m))
    }

    pub(super) fn command_of(&self, c: usize, index: usize) -> Command {
        match self.setup.clients[c].wishes[index] {
            Wish::Write => Command::Put { key: key(), value: value_of(c, index) },
            Wish::Delete => Command::Delete { keys: vec![key()] },
            Wish::Read => Command::Get { key: key() },
        }
    }

    pub(super) fn send(&mut self, c: usize, m: usize) {
        let next = self.clients.all[c].requests.iter().position(|r| r.progress == Progress::Waiting).unwrap();
        let old = self.clients.all[c].at.filter(|at| *at != m);
        if let Some(old) = old.filter(|old| self.masters[*old].shell.life != Life::Down) {
            let session = self.session_of(c);
            self.front(old, front::Event::SessionClosed { session });
        }
        let session = self.session_of(c);
        let clients = self.clients.change();
        let floor = clients.floor;
        let client = &mut clients.all[c];
        client.at = Some(m);
        let request = &mut client.requests[next];
        request.progress = Progress::Asked;
        request.floor.get_or_insert(floor);
        let command = self.command_of(c, next);
        self.tell(|| format!("client {c}: {command:?}"));
        let asker = Asker { session, tag: next as u64 };
        let kind = self.setup.clients[c].kind;
        self.front(m, front::Event::Request { asker, kind, deadline: DEADLINE, command });
    }

    /// `first_hand`: master `m` has executed the request itself, and does not forward the other one's answer.
    pub(super) fn reply(&mut self, m: usize, to: Asker, reply: Reply, first_hand: bool) {
        if to.session.0 >= FORWARDED {
            let link = self.peers[1 - m].change();
            if link.other_up && to.session.0 / FORWARDED == link.generation {
                link.from.push_back(FromPeer::Response { id: RequestId(to.tag), reply });
            }
        } else if let Some(c) = self.client_of(m, to.session) {
            self.answered(c, usize::try_from(to.tag).unwrap(), reply, first_hand.then_some(m));
        }
    }

    #[expect(clippy::too_many_lines, reason = "one arm for each answer, each short")]
    pub(super) fn answered(&mut self, c: usize, index: usize, reply: Reply, by: Option<usize>) {
        self.tell(|| format!("client {c} hears {reply:?} to request {index}"));
        let wish = self.setup.clients[c].wishes[index];
        let value = value_of(c, index);
        if self.clients.all[c].requests[index].progress != Progress::Asked {
            self.wrong(format!("request {index} of client {c} is answered twice"));
            return;
        }
        let floor = self.clients.all[c].requests[index].floor.unwrap_or_default();
        let mut result = true;
        let progress = match (reply, wish) {
            (Reply::Done, Wish::Write) => {
                match self.place_of(|record| value_in(record, &key()) == Some(Some(value.clone())), 0) {
                    Some(place) => self.acknowledge(by, place),
                    None => self.wrong(format!("{value:?} is acknowledged and not in the log")),
                }
                Progress::Answered
            }
            (Reply::Count(count), Wish::Delete) => {
                match self.deletion_of(count, floor + 1) {
                    Some(place) => self.acknowledge(None, place),
                    None => {
                        self.wrong(format!("a deletion of {count} keys is acknowledged and not in the log"))
                    }
                }
                Progress::Answered
            }
            (Reply::Value(value), Wish::Read) => {
                match self.place_of(|record| value_in(record, &key()) == Some(Some(value.clone())), 0) {
                    Some(place) => self.has_read(place, floor),
                    None => self.wrong(format!("{value:?} is read and not in the log")),
                }
                Progress::Answered
            }
            (Reply::NotFound, Wish::Read) => {
                let never = (floor == 0).then_some(0);
                match never.or(self.place_of(|record| value_in(record, &key()) == Some(None), floor)) {
                    Some(place) => self.has_read(place, floor),
                    None => self.wrong(format!("nothing is read after place {floor} of the log")),
                }
                Progress::Answered
            }
            (Reply::Error(error), _) => {
                result = false;
                match error.word {
                    ErrorWord::Standby | ErrorWord::Loading => Progress::Waiting,
                    ErrorWord::Unknown if wish == Wish::Read => Progress::Waiting,
                    ErrorWord::Unknown if self.bug(Bug::UnknownSentAgain) => Progress::Waiting,
                    ErrorWord::Unknown => Progress::Unknown,
                    _ => {
                        if wish != Wish::Read {
                            self.not_executed(&value);
                        }
                        Progress::NotExecuted
                    }
                }
            }
            (reply, wish) => {
                self.wrong(format!("{reply:?} to {wish:?}"));
                Progress::Answered
            }
        };
        if self.setup.nothing_fails && matches!(progress, Progress::NotExecuted | Progress::Unknown) {
            self.wrong(format!("request {index} of client {c} fails although nothing has failed"));
        }
        let client = &mut self.clients.change().all[c];
        client.requests[index].progress = progress;
        if result {
            for earlier in &mut client.requests[..index] {
                earlier.overtaken |= earlier.progress == Progress::Asked;
            }
        }
    }

    pub(super) fn not_executed(&mut self, value: &Bytes) {
        if self.place_of(|record| value_in(record, &key()) == Some(Some(value.clone())), 0).is_some() {
            self.wrong(format!("{value:?} is answered 'not executed' and in the log"));
        }
    }

    /// The first place from `from` on (counted from 1) that `fits`.
    pub(super) fn place_of(&self, fits: impl Fn(&Record) -> bool, from: usize) -> Option<usize> {
        (from.max(1)..=self.disk.log.len()).find(|place| fits(&self.disk.log[place - 1]))
    }

    /// The first place from `from` on of a deletion that found `count` keys.
    pub(super) fn deletion_of(&self, count: u64, from: usize) -> Option<usize> {
        (from..=self.disk.log.len()).find(|place| {
            let (before, behind) = self.disk.log.split_at(place - 1);
            let last = before.iter().rev().find_map(|record| value_in(record, &key()));
            value_in(&behind[0], &key()) == Some(None) && u64::from(last.flatten().is_some()) == count
        })
    }

    pub(super) fn acknowledge(&mut self, by: Option<usize>, place: usize) {
        let clients = self.clients.change();
        clients.floor = clients.floor.max(place);
        clients.acknowledged.insert(place);
        if let Some(m) = by {
            self.somebody_holds(m, place);
        }
    }

    /// A slave that acknowledged a write holds it, unless a later version has replaced it.
    pub(super) fn somebody_holds(&mut self, m: usize, place: usize) {
        let version = self.disk.log[place - 1].version;
        if self.masters[m].core.directory().get(&key()).map(|entry| entry.version) != Some(version) {
            return;
        }
        let active = (0..self.slaves.len()).filter(|s| self.links[m][*s].count.is_some());
        // A slave that is gone may have held it: its last messages are still handled.
        let may_hold =
            |s: usize| !self.links[m][s].slave_up || self.held(s).is_some_and(|(held, _)| held == version);
        if !active.into_iter().any(may_hold) {
            self.wrong(format!("{version} is acknowledged, and no active slave holds it"));
        }
    }

    pub(super) fn has_read(&mut self, place: usize, floor: usize) {
        if place < floor {
            self.wrong(format!("a read shows place {place} of the log, after an answer that showed {floor}"));
        }
        if place > self.disk.synced {
            self.wrong(format!("a read shows place {place} of the log, which is not synced"));
        }
        let clients = self.clients.change();
        clients.floor = clients.floor.max(place);
    }

    /// A client's session is gone: its open requests get no answer.
    pub(super) fn session_lost(&mut self, c: usize, anew: bool) {
        let again = self.bug(Bug::UnknownSentAgain);
        let wishes = self.setup.clients[c].wishes.clone();
        let client = &mut self.clients.change().all[c];
        client.at = None;
        client.session += u64::from(anew);
        for (request, wish) in client.requests.iter_mut().zip(wishes) {
            if request.progress == Progress::Asked {
                let ask_again = wish == Wish::Read || again;
                request.progress = if ask_again { Progress::Waiting } else { Progress::Unknown };
            }
        }
    }
}
