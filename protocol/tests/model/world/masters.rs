//! The shell of a master: performs the effects of its machines, owns the log's end, its reign, and its own death.

use super::*;
use dsm_protocol::machine::master::ReignRecord;

impl World {
    pub(super) fn core(&mut self, m: usize, event: master::Event) {
        let mut effects = Vec::new();
        let now = self.masters[m].shell.now;
        self.masters[m].core.change().step(now, event, &mut effects);
        for effect in effects {
            self.perform_core(m, effect);
        }
    }

    pub(super) fn perform_core(&mut self, m: usize, effect: master::Effect) {
        match effect {
            master::Effect::Reply { to, reply } => {
                if !matches!(reply, Reply::Error(_)) && !self.may_serve(m) {
                    self.wrong(format!("master {m} answers {reply:?} without the lock"));
                }
                self.reply(m, to, reply, true);
            }
            master::Effect::Append { write, change, .. } => {
                let change = std::sync::Arc::unwrap_or_clone(change);
                self.masters[m].shell.change().queue.push_back(Queued::Change(write, change));
            }
            master::Effect::Joined { link } => {
                let s = self.slave_of(m, link);
                self.links[m][s].change().count = Some(Count::default());
                let reign = self.masters[m].core.reigns().last().expect("a slave joined a reign").reign;
                self.send_to_slave(m, link, ToSlave::Admitted(reign));
                self.tell(|| format!("slave {s} is active at master {m}"));
            }
            master::Effect::NoSlot { .. } | master::Effect::SlotFree { .. } => {
                self.wrong("no slot is left for a slave".to_owned())
            }
            master::Effect::SendWrite { link, version, reign, key, value } => {
                let place = usize::try_from(version.seq.0).unwrap();
                let durable = place <= self.disk.synced
                    && self.disk.log.get(place.wrapping_sub(1)).is_some_and(|record| {
                        record.version == version && value_in(record, &key) == Some(Some(value.clone()))
                    });
                if !durable {
                    self.wrong(format!("{version} is sent to a slave before it is durable in the log"));
                }
                self.send_to_slave(m, link, ToSlave::Write { version, reign, key, value });
            }
            master::Effect::SendRead { link, read, version, reign, key, .. } => {
                self.send_to_slave(m, link, ToSlave::Read { tag: read.tag(), version, reign, key });
            }
            master::Effect::SendDrop { link, version, reign, key } => {
                self.send_to_slave(m, link, ToSlave::Drop { version, reign, key });
            }
            master::Effect::SendHoldingsNext { link } => self.send_to_slave(m, link, ToSlave::HoldingsNext),
            master::Effect::ReadLog { read, place, version, key } => {
                self.masters[m].shell.change().log_reads.push((read, place, version, key));
            }
            master::Effect::Repair(_) | master::Effect::Leaving { .. } => {}
            master::Effect::Witnessed { stamp, .. } => {
                self.wrong(format!("a slave holds {stamp}, which the log lacks"));
            }
        }
    }

    pub(super) fn front(&mut self, m: usize, event: front::Event) {
        let mut effects = Vec::new();
        let now = self.masters[m].shell.now;
        let node = &mut self.masters[m];
        // What a neglected duty to hold requests back comes to.
        let stance = match node.reign.stance() {
            Stance::Holding if self.setup.bug == Some(Bug::YieldedWithoutHolding) => Stance::Serving,
            stance => stance,
        };
        node.front.change().step(now, stance, event, &mut effects);
        for effect in effects {
            match effect {
                front::Effect::Serve { asker, deadline, command } => {
                    self.core(m, master::Event::Request { asker, deadline, command });
                }
                front::Effect::Forward { link: _, id, stream, generation, command } => {
                    if self.peers[m].dialer_up {
                        self.peers[m].change().to.push_back(ToPeer::Request {
                            id,
                            stream,
                            generation,
                            command,
                        });
                    }
                }
                front::Effect::StreamClosed { link: _, stream } => {
                    if self.peers[m].dialer_up {
                        self.peers[m].change().to.push_back(ToPeer::StreamClosed { stream });
                    }
                }
                front::Effect::Reply { to, reply } => self.reply(m, to, reply, false),
                front::Effect::CloseSession { session } => {
                    if let Some(c) = self.client_of(m, session) {
                        self.session_lost(c, true);
                    }
                    self.front(m, front::Event::SessionClosed { session });
                }
            }
        }
    }

    /// Advances the machine of the reign, and does what it wants. Whether that was a fence.
    pub(super) fn reign(&mut self, m: usize, event: reign::Event<'_>) -> bool {
        let now = self.masters[m].shell.now;
        let mut effects = Vec::new();
        self.masters[m].reign.change().step(now, event, &mut effects);
        self.perform_reign(m, effects)
    }

    /// Lets the machine of the reign look at the time, which is so much later than it was.
    pub(super) fn tick(&mut self, m: usize, later_ms: u64) {
        let around = self.surroundings(m);
        let now = self.masters[m].shell.now.plus(later_ms);
        let mut effects = Vec::new();
        self.masters[m].reign.change().step(now, reign::Event::Tick(around), &mut effects);
        self.perform_reign(m, effects);
    }

    /// Tells a master that waits with the lock what others know of the log.
    pub(super) fn hear(&mut self, m: usize) {
        let (mut slaves, mut has_newcomer) = (Vec::new(), false);
        for s in (0..self.slaves.len()).filter(|s| self.links[m][*s].master_up) {
            match self.slaves[s].machine.seen() {
                Some(seen) => slaves.push((slave_id(s), CLUSTER, Some(seen))),
                None => has_newcomer = true,
            }
        }
        let node = &mut self.masters[m];
        let heard = reign::Event::Heard(Hearsay { slaves, has_newcomer, reigns: node.core.reigns() });
        let mut effects = Vec::new();
        node.reign.change().step(node.shell.now, heard, &mut effects);
        self.perform_reign(m, effects);
    }

    pub(super) fn surroundings(&self, m: usize) -> Surroundings {
        let undecided =
            |link: &&Part<Link>| link.master_up && link.count.is_none() && link.enlisted.is_none();
        let in_flight = self.masters[m].core.in_flight();
        Surroundings {
            in_flight: if self.bug(Bug::YieldedInFlight) { 0 } else { in_flight },
            has_dialed: self.peers[m].dialer_up,
            slaves_undecided: self.links[m].iter().filter(undecided).count(),
            log_follows: true,
            ..Surroundings::default()
        }
    }

    fn perform_reign(&mut self, m: usize, effects: Vec<reign::Effect>) -> bool {
        use reign::Effect;
        let mut fences = false;
        for effect in effects {
            match effect {
                Effect::Fence { .. } => fences = true,
                Effect::StopLeading => self.disk.change().lock = None,
                Effect::LookAtLog => {
                    self.reign(m, reign::Event::Sighted { follows: true });
                }
                Effect::StopFollowing => {
                    self.reign(m, reign::Event::Halted);
                }
                Effect::NoteWitnesses(text) => {
                    if !text.is_empty() {
                        self.wrong(format!("what slaves have seen is noted of a whole log: {text}"));
                    }
                }
                Effect::WriteEpoch { epoch, .. } => self.begin_log(m, epoch),
                Effect::Declare { serves } => {
                    if serves {
                        self.disk.change().lock_epoch = self.masters[m].shell.epoch;
                    }
                }
                Effect::BeginReign { version, id } => {
                    self.core(m, master::Event::ReignBegan { version, id });
                }
                Effect::Announce => (0..self.slaves.len()).for_each(|s| self.announce(m, s)),
                Effect::GivePlaces => self.give_places(m),
                Effect::EndReign => self.end_reign(m),
                Effect::StanceChanged => self.front(m, front::Event::StanceChanged),
                Effect::TellState => self.tell_state(m),
                Effect::AskForReign { to, forced } => {
                    assert_eq!(to, LinkId(self.peers[m].generation), "asks over another link");
                    let slaves = (0..self.slaves.len()).filter(|s| self.links[m][*s].master_up).collect();
                    if self.peers[m].dialer_up {
                        let request = ToPeer::HandoverRequest { slaves, forced };
                        self.peers[m].change().to.push_back(request);
                    }
                }
                Effect::RefuseHandover { .. } => self.refuse_handover(m),
                Effect::Say(saying) => self.tell(|| format!("master {m}: {saying:?}")),
                // Steps of their own, which the role allows.
                Effect::WatchLeader
                | Effect::QueueToLead
                | Effect::Recover { .. }
                | Effect::SyncLog
                | Effect::CloseLog
                | Effect::AskLogBack
                | Effect::Follow
                | Effect::NameCluster(_) => {}
                Effect::LeaveQueue
                | Effect::FollowAnew
                | Effect::LetGoOfLog
                | Effect::FindLog
                | Effect::AbandonLog
                | Effect::OfferReign
                | Effect::AnswerOperator { .. }
                | Effect::StopAccepting
                | Effect::AskForwarders
                | Effect::LetClientsGo { .. }
                | Effect::End(_) => self.wrong(format!("master {m} wants {effect:?}, for no reason here")),
            }
        }
        fences
    }

    fn begin_log(&mut self, m: usize, epoch: Epoch) {
        let found = Epoch(epoch.0.saturating_sub(1)).max(Epoch(1));
        let epoch = if self.bug(Bug::EpochNotRaised) { found } else { epoch };
        let shell = self.masters[m].shell.change();
        shell.epoch = epoch;
        shell.queue.push_back(Queued::Epoch);
    }

    fn give_places(&mut self, m: usize) {
        for s in 0..self.slaves.len() {
            if let Some(room_bytes) = self.links[m][s].enlisted {
                let link = self.links[m][s].change();
                link.enlisted = None;
                let link = link.id;
                self.core(m, master::Event::SlaveJoined { id: slave_id(s), link, room_bytes });
            }
        }
    }

    pub(super) fn log_write(&mut self, m: usize) {
        let queue = std::mem::take(&mut self.masters[m].shell.change().queue);
        for queued in queue {
            let place = self.disk.log.len() + 1;
            let epoch = self.masters[m].shell.epoch;
            let (record, done) = match queued {
                Queued::Change(write, change) => {
                    let version = Version::new(epoch.0, place as u64);
                    (Record { version, change: Some(change) }, InGroup::Change(write, place))
                }
                Queued::Epoch => (
                    Record { version: Version::new(epoch.0, place as u64), change: None },
                    InGroup::Epoch(place),
                ),
            };
            self.append(m, record);
            self.masters[m].shell.change().group.push(done);
        }
        if self.bug(Bug::WrittenBeforeSync) {
            let group = std::mem::take(&mut self.masters[m].shell.change().group);
            self.group_done(m, &group);
        } else if self.bug(Bug::AnnouncedBeforeEpoch) {
            let group = self.masters[m].shell.group.clone();
            if let [InGroup::Epoch(_)] = group[..] {
                self.masters[m].shell.change().group.clear();
                self.group_done(m, &group);
            }
        }
    }

    pub(super) fn append(&mut self, m: usize, record: Record) {
        let version = record.version;
        self.tell(|| format!("{version} {:?}", record.change));
        if !self.may_serve(m) {
            self.wrong(format!("master {m} writes to the log without the lock"));
        }
        let last = self.disk.log.last().map(|record| record.version).unwrap_or_default();
        if record.change.is_none() && version.epoch <= last.epoch {
            self.wrong(format!("epoch {} begins after epoch {}", version.epoch, last.epoch));
        }
        if version.epoch < last.epoch {
            self.wrong(format!("{version} is written after {last}"));
        }
        if let Some((_, value)) = record.change.as_ref().and_then(|change| change.pairs().first()) {
            if self.place_of(|old| value_in(old, &key()) == Some(Some(value.clone())), 0).is_some() {
                self.wrong(format!("{value:?} is executed twice"));
            }
            self.executed(value);
        }
        self.disk.change().log.push(record);
    }

    /// A write is executed now: nothing that its session asked for later may have been answered before.
    pub(super) fn executed(&mut self, value: &Bytes) {
        let all: Vec<(usize, usize)> = (0..self.clients.all.len())
            .flat_map(|c| (0..self.clients.all[c].requests.len()).map(move |index| (c, index)))
            .collect();
        for (c, index) in all {
            if value_of(c, index) != *value {
                continue;
            }
            let Request { overtaken, progress, .. } = self.clients.all[c].requests[index];
            if overtaken {
                self.wrong(format!("{value:?} is executed after what its session asked for later"));
            }
            if progress == Progress::NotExecuted {
                self.wrong(format!("{value:?} was answered 'not executed' and is executed"));
            }
        }
    }

    pub(super) fn log_sync(&mut self, m: usize) {
        let group = std::mem::take(&mut self.masters[m].shell.change().group);
        let (InGroup::Change(_, first) | InGroup::Epoch(first)) = group[0];
        let disk = self.disk.change();
        // What another process has written may be clean in memory and not on disk: its sync may have failed.
        if first <= disk.synced + 1 {
            disk.synced = disk.log.len();
        }
        self.group_done(m, &group);
    }

    pub(super) fn group_done(&mut self, m: usize, group: &[InGroup]) {
        for done in group {
            match *done {
                InGroup::Change(write, place) => {
                    let version = self.disk.log[place - 1].version;
                    let change = self.disk.log[place - 1].change.as_ref();
                    let pairs = change.map_or(0, |change| change.pairs().len());
                    let place = Place { offset: place as u64, bytes: 1, ..Place::default() };
                    let places = std::iter::repeat_n(place, pairs).collect();
                    self.core(m, master::Event::Written { write, version, places });
                }
                InGroup::Epoch(place) => self.epoch_written(m, self.disk.log[place - 1].version),
            }
        }
    }

    pub(super) fn epoch_written(&mut self, m: usize, version: Version) {
        self.reign(m, reign::Event::EpochWritten { version, id: reign_of(version).id });
    }

    pub(super) fn log_read(&mut self, m: usize) {
        let (read, place, version, key) = self.masters[m].shell.change().log_reads.remove(0);
        let record = &self.disk.log[usize::try_from(place.offset).unwrap() - 1];
        assert_eq!(record.version, version, "the place of a read names another version");
        let value = value_in(record, &key).flatten().expect("the place of a read names another key");
        self.core(m, master::Event::LogRead { read, result: Ok(value) });
    }

    pub(super) fn replay(&mut self, m: usize) {
        let node = &mut self.masters[m];
        let from = node.shell.replayed;
        for (index, record) in self.disk.log.iter().enumerate().skip(from) {
            let place = Place { offset: index as u64 + 1, bytes: 1, ..Place::default() };
            match &record.change {
                Some(change) => {
                    for (at, (key, _)) in change.pairs().iter().enumerate() {
                        let expires = change.expires(at, None);
                        node.core.change().replay_put(key, record.version, place, expires);
                    }
                    change.deleted().iter().for_each(|key| node.core.change().replay_delete(key));
                }
                None => {
                    let (reign, first) = (reign_of(record.version), record.version.seq);
                    node.core.change().replay_reign(ReignRecord { reign, first, durable: true });
                }
            }
        }
        node.shell.change().replayed = self.disk.log.len();
        let (end, durable) = (self.end_of(self.disk.log.len()), self.end_of(self.disk.synced));
        let node = &mut self.masters[m];
        let replayed = reign::Event::Replayed { end, durable, reigns: node.core.reigns() };
        let mut effects = Vec::new();
        node.reign.change().step(node.shell.now, replayed, &mut effects);
        self.perform_reign(m, effects);
    }

    /// The place after so many records of the log.
    fn end_of(&self, records: usize) -> Position {
        let log = &self.disk.log[..records.min(self.disk.log.len())];
        let Some(last) = log.last() else { return Position::default() };
        let began = log.iter().rev().find(|record| record.change.is_none());
        Position {
            offset: log.len() as u64,
            seq: last.version.seq,
            epoch: last.version.epoch,
            reign: began.map(|record| reign_of(record.version)).unwrap_or_default(),
            cluster: Some(CLUSTER),
            ..Position::default()
        }
    }

    pub(super) fn look(&mut self, m: usize) {
        match self.disk.lock {
            Some(_) => {
                self.reign(m, reign::Event::Looked(LeaderSeen::Leads { beat: Some(1) }));
            }
            None => {
                let until = self.masters[m].shell.now.plus(1100);
                while self.masters[m].shell.now < until && !self.masters[m].waits_for_lock() {
                    self.reign(m, reign::Event::Looked(LeaderSeen::Nobody));
                    let shell = self.masters[m].shell.change();
                    shell.now = shell.now.plus(100);
                }
            }
        }
    }

    pub(super) fn win_lock(&mut self, m: usize) {
        let disk = self.disk.change();
        disk.lock = Some(m);
        let named = Some(disk.lock_epoch).filter(|epoch| *epoch > Epoch(0));
        self.reign(m, reign::Event::Won { cluster: named.map(|_| CLUSTER), epoch: named });
    }

    pub(super) fn recover(&mut self, m: usize) {
        if !self.bug(Bug::TailNotRead) {
            self.replay(m);
        }
        if !self.bug(Bug::RecoveredWithoutSync) {
            let disk = self.disk.change();
            disk.synced = disk.log.len();
        }
        let end = self.end_of(self.disk.log.len());
        let read = StoredLog { id: (1, 1), bytes: end.offset };
        let noted = dsm_protocol::witness_file::WitnessText::default();
        self.reign(m, reign::Event::Recovered { log: Some((&end).into()), read: Some(read), noted });
        self.hear(m);
    }

    /// The other master stands still: its beat does, while our own clock runs.
    pub(super) fn suspect(&mut self, m: usize) {
        let looks = (0..60).any(|_| {
            let shell = self.masters[m].shell.change();
            shell.now = shell.now.plus(25);
            self.reign(m, reign::Event::Looked(LeaderSeen::Leads { beat: Some(7) }))
        });
        if !looks {
            self.wrong("a holder that stands still is not fenced".to_owned());
        } else if self.bug(Bug::FenceWithoutKill) {
            self.disk.change().lock = None;
        } else {
            self.tell(|| format!("master {} is fenced", 1 - m));
            self.crash(1 - m);
        }
    }

    pub(super) fn refuse_handover(&mut self, m: usize) {
        if self.peers[1 - m].other_up {
            self.peers[1 - m].change().from.push_back(FromPeer::HandoverRefused);
        }
    }

    /// The log is closed.
    pub(super) fn close(&mut self, m: usize) {
        if !self.bug(Bug::YieldedInFlight) {
            let disk = self.disk.change();
            disk.synced = disk.log.len();
        }
        let records = self.disk.log.len();
        let end = self.end_of(records);
        let log = Some(StoredLog { id: (1, 1), bytes: end.offset });
        let node = &mut self.masters[m];
        node.shell.change().replayed = records;
        let closed = reign::Event::Closed { end, log, reigns: node.core.reigns() };
        let mut effects = Vec::new();
        node.reign.change().step(node.shell.now, closed, &mut effects);
        self.perform_reign(m, effects);
    }

    fn end_reign(&mut self, m: usize) {
        if self.masters[m].core.in_flight() == 0 {
            self.core(m, master::Event::ReignEnded);
        } else if self.bug(Bug::YieldedInFlight) {
            // It goes on answering what it had.
            return;
        } else {
            self.wrong("a reign ends with requests in flight".to_owned());
        }
        for s in 0..self.slaves.len() {
            self.links[m][s].change().count = None;
        }
    }

    pub(super) fn crash(&mut self, m: usize) {
        self.masters[m] = Node::new(m, Life::Down);
        if self.disk.lock == Some(m) {
            self.disk.change().lock = None;
        }
        for s in 0..self.slaves.len() {
            if self.links[m][s].master_up {
                self.master_side_ends(m, s);
            }
        }
        for c in 0..self.clients.all.len() {
            if self.clients.all[c].at == Some(m) {
                self.session_lost(c, false);
            }
        }
        if self.peers[m].dialer_up {
            let link = self.peers[m].change();
            link.dialer_up = false;
            link.from.clear();
        }
        if self.peers[1 - m].other_up {
            let link = self.peers[1 - m].change();
            link.other_up = false;
            link.to.clear();
            link.streams.clear();
        }
    }
}
