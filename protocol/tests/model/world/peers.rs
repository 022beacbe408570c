//! The links between the masters: announcements of who serves, forwarded requests, handovers.

use super::*;

impl World {
    pub(super) fn dial(&mut self, m: usize) {
        let state = self.state(1 - m);
        let link = self.peers[m].change();
        let generation = link.generation + 1;
        *link = PeerLink { generation, dialer_up: true, other_up: true, ..PeerLink::default() };
        link.from.push_back(state);
        self.reign(1 - m, reign::Event::StandbyCame { link: STANDBY });
    }

    /// What a master says of itself.
    fn state(&self, m: usize) -> FromPeer {
        let node = &self.masters[m];
        let own = node.reign.reign().map(|reign| reign.epoch);
        let replayed = node.core.reigns().last().map(|last| last.reign.epoch);
        FromPeer::State { active: node.serves(), epoch: own.or(replayed).unwrap_or_default() }
    }

    pub(super) fn tell_state(&mut self, m: usize) {
        if self.peers[1 - m].other_up {
            let state = self.state(m);
            self.peers[1 - m].change().from.push_back(state);
        }
    }

    /// Master `m` handles a message from the link that it has dialed.
    pub(super) fn peer_answers(&mut self, m: usize) {
        let link = self.peers[m].change();
        let id = LinkId(link.generation);
        let Some(message) = link.from.pop_front() else {
            link.dialer_up = false;
            link.to.clear();
            self.front(m, front::Event::PeerDown { link: id });
            self.reign(m, reign::Event::PeerLost { link: id });
            return;
        };
        self.tell(|| format!("{message:?}"));
        match message {
            FromPeer::State { active, epoch } => {
                let believed = active && !self.masters[m].serves();
                self.front(m, front::Event::PeerLeads { link: believed.then_some(id) });
                let cluster = (epoch > Epoch(0)).then_some(CLUSTER);
                self.reign(m, reign::Event::PeerNamed { cluster });
                self.reign(m, reign::Event::PeerSaid { link: id, active, epoch });
            }
            FromPeer::Response { id: request, reply } => {
                self.front(m, front::Event::Response { link: id, id: request, reply });
            }
            FromPeer::HandoverRefused => {
                self.reign(m, reign::Event::HandoverRefused { link: id });
            }
        }
    }

    /// The other master handles a message that `m` sent over the link that it has dialed.
    pub(super) fn peer_asks(&mut self, m: usize) {
        let link = self.peers[m].change();
        let generation = link.generation;
        let session = |stream: u64| SessionId(generation * FORWARDED + stream);
        let Some(message) = link.to.pop_front() else {
            link.other_up = false;
            link.from.clear();
            for stream in std::mem::take(&mut link.streams) {
                self.front(1 - m, front::Event::SessionClosed { session: session(stream) });
            }
            self.reign(1 - m, reign::Event::StandbyGone { link: STANDBY });
            return;
        };
        self.tell(|| format!("{message:?}"));
        match message {
            ToPeer::Request { id, stream, generation, command } => {
                self.peers[m].change().streams.insert(stream);
                let asker = Asker { session: session(stream), tag: id.0 };
                let kind = Kind::Forwarded { generation };
                self.front(1 - m, front::Event::Request { asker, kind, deadline: DEADLINE, command });
            }
            ToPeer::StreamClosed { stream } => {
                self.peers[m].change().streams.remove(&stream);
                self.front(1 - m, front::Event::SessionClosed { session: session(stream) });
            }
            ToPeer::HandoverRequest { slaves, forced } => {
                let active = (0..self.slaves.len()).filter(|s| self.links[1 - m][*s].count.is_some());
                let ready = active.into_iter().all(|s| slaves.contains(&s));
                let from = STANDBY;
                self.reign(1 - m, reign::Event::HandoverRequested { from, follows: true, ready, forced });
            }
        }
    }
}
