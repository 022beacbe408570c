//! The links between masters and slaves, and what arrives over them.

use super::*;
use dsm_protocol::machine::master::Testimony;
use dsm_protocol::message::Seen;

impl World {
    pub(super) fn slave_of(&self, m: usize, link: LinkId) -> usize {
        self.links[m].iter().position(|l| l.id == link).expect("the machine names a link that it was told of")
    }

    pub(super) fn send_to_slave(&mut self, m: usize, link: LinkId, message: ToSlave) {
        let Some(s) = self.links[m].iter().position(|l| l.id == link && l.count.is_some()) else {
            self.wrong(format!("master {m} sends over {link:?}, where nobody is"));
            return;
        };
        if let (ToSlave::Write { .. }, Some(count)) = (&message, &mut self.links[m][s].change().count) {
            count.write();
        }
        if self.links[m][s].slave_up {
            self.links[m][s].change().to_slave.push_back(message);
        }
    }

    pub(super) fn connect(&mut self, m: usize, s: usize) {
        if self.links[m][s].master_up {
            self.slave_ended(m, s);
        }
        let link = self.links[m][s].change();
        let id = LinkId(link.id.0.max((10 * m + s) as u64) + 100);
        *link = Link { id, master_up: true, slave_up: true, ..Link::default() };
        self.slaves[s].change().machine.step(slave::Event::LinkUp { link: id }, &mut Vec::new());
        self.announce(m, s);
    }

    pub(super) fn announce(&mut self, m: usize, s: usize) {
        let Some(Reign { epoch, .. }) = self.masters[m].reign.announced() else { return };
        let durable = self.disk.log[..self.disk.synced]
            .iter()
            .any(|record| record.change.is_none() && record.version.epoch == epoch);
        if !durable {
            self.wrong(format!("epoch {epoch} is announced before it is durable"));
        }
        if self.links[m][s].master_up && self.links[m][s].slave_up {
            let own = self.masters[m].core.reigns().last().expect("an announced reign is in the table");
            self.links[m][s].change().to_slave.push_back(ToSlave::Announce(own.reign, own.first));
        }
    }

    /// No slave may ever testify that the log lacks a record: everything that it has seen is there.
    fn no_witness(&mut self, m: usize, seen: Option<&Seen>) {
        let testimony = seen.map_or(Testimony::Agrees, |seen| self.masters[m].core.reigns().testimony(seen));
        if testimony != Testimony::Agrees {
            self.wrong(format!("a slave's {seen:?} means {testimony:?} to a whole log"));
        }
    }

    /// The master removes a slave. Messages to it may still arrive.
    pub(super) fn slave_ended(&mut self, m: usize, s: usize) {
        if !self.links[m][s].master_up {
            return;
        }
        let (link, was_active) = (self.links[m][s].id, self.links[m][s].count.is_some());
        self.master_side_ends(m, s);
        if was_active && !self.bug(Bug::LostSlaveKept) {
            self.tell(|| format!("slave {s} is removed at master {m}"));
            self.core(m, master::Event::SlaveLost { link });
        }
    }

    pub(super) fn master_side_ends(&mut self, m: usize, s: usize) {
        let link = self.links[m][s].change();
        link.master_up = false;
        link.count = None;
        link.enlisted = None;
        link.to_master.clear();
        self.end_if_drained(m, s);
    }

    /// A slave sees the end of a link after the last message of it.
    pub(super) fn end_if_drained(&mut self, m: usize, s: usize) {
        let link = &self.links[m][s];
        if !link.master_up && link.slave_up && link.to_slave.is_empty() {
            let id = link.id;
            self.links[m][s].change().slave_up = false;
            self.slaves[s].change().machine.step(slave::Event::LinkDown { link: id }, &mut Vec::new());
        }
    }

    pub(super) fn slave_takes(&mut self, m: usize, s: usize) {
        let link = self.links[m][s].change();
        let id = link.id;
        let message = link.to_slave.pop_front().unwrap();
        self.tell(|| format!("{message:?}"));
        let event = match message {
            ToSlave::Announce(reign, seq) => slave::Event::Announced { link: id, reign, seq, durable: true },
            ToSlave::Admitted(reign) => slave::Event::Admitted { link: id, reign },
            ToSlave::Write { version, reign, key, value } => {
                slave::Event::Write { link: id, version, reign, key, value }
            }
            ToSlave::Read { tag, version, reign, key } => {
                slave::Event::Read { link: id, tag, version, reign, key }
            }
            ToSlave::Drop { version, reign, key } => slave::Event::Drop { link: id, version, reign, key },
            ToSlave::HoldingsNext => slave::Event::HoldingsNext { link: id },
        };
        let mut effects = Vec::new();
        let machine = &mut self.slaves[s].change().machine;
        machine.step(event, &mut effects);
        machine.step(slave::Event::BatchEnded { link: id }, &mut effects);
        if self.links[m][s].master_up {
            self.links[m][s].change().to_master.extend(effects);
        } else {
            self.end_if_drained(m, s);
        }
    }

    pub(super) fn master_takes(&mut self, m: usize, s: usize) {
        let link = self.links[m][s].change();
        let id = link.id;
        let Some(message) = link.to_master.pop_front() else {
            self.slave_ended(m, s);
            return;
        };
        self.tell(|| format!("{message:?}"));
        let event = match (message, self.links[m][s].change().count.as_mut()) {
            (slave::Effect::Enlisted { reign, seen, room_bytes, .. }, None) => {
                if self.masters[m].reign.announced() != Some(reign) {
                    return;
                }
                self.no_witness(m, seen.as_ref());
                if self.masters[m].reign.holds_places_back() {
                    self.links[m][s].change().enlisted = Some(room_bytes);
                    return;
                }
                master::Event::SlaveJoined { id: slave_id(s), link: id, room_bytes }
            }
            (slave::Effect::Outdated { seen, .. }, _) => {
                if self.masters[m].reign.announced().is_some() {
                    self.no_witness(m, Some(&seen));
                }
                return;
            }
            (slave::Effect::Ack { through, room_bytes, .. }, Some(count)) => {
                let Some(writes) = count.ack(through) else {
                    self.wrong(format!("slave {s} acknowledges {through}, which it was not sent"));
                    return;
                };
                master::Event::Acked { link: id, writes, room_bytes }
            }
            (slave::Effect::Full { number, .. }, Some(count)) => {
                master::Event::Full { link: id, before: count.writes_before(number) }
            }
            (slave::Effect::Value { tag, version, reign, value, .. }, Some(_)) => {
                let read = ReadId::from_tag(tag);
                master::Event::Value { link: id, read, version, reign, value }
            }
            (slave::Effect::Missing { tag, .. }, Some(_)) => {
                master::Event::Missing { link: id, read: ReadId::from_tag(tag) }
            }
            (slave::Effect::Holdings { entries, last, .. }, Some(_)) => {
                let entries = if self.bug(Bug::ReportIgnored) { Vec::new() } else { entries };
                master::Event::Holdings { link: id, entries, last }
            }
            // A slave's message to a reign that has ended since.
            (
                slave::Effect::Enlisted { .. }
                | slave::Effect::Ack { .. }
                | slave::Effect::Full { .. }
                | slave::Effect::Value { .. }
                | slave::Effect::Missing { .. }
                | slave::Effect::Holdings { .. },
                _,
            ) => return,
        };
        self.core(m, event);
    }

    /// What slave `s` holds of the key.
    pub(super) fn held(&self, s: usize) -> Option<(Version, Bytes)> {
        let mut machine = self.slaves[s].machine.clone();
        let link = LinkId(u64::MAX);
        let obeyed = machine.seen().map(|seen| seen.reign).unwrap_or_default();
        let mut effects = Vec::new();
        machine.step(slave::Event::LinkUp { link }, &mut effects);
        let (seq, version, reign) = (Seq(0), Version::default(), ReignId(0));
        machine.step(slave::Event::Announced { link, reign: obeyed, seq, durable: true }, &mut effects);
        machine.step(slave::Event::Admitted { link, reign: obeyed }, &mut effects);
        machine.step(slave::Event::Read { link, tag: 0, version, reign, key: key() }, &mut effects);
        match effects.pop() {
            Some(slave::Effect::Value { version, value, .. }) => Some((version, value)),
            Some(slave::Effect::Missing { held: None, .. }) => None,
            other => panic!("{other:?}"),
        }
    }
}
