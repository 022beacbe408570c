//! The slave machine under any events of any masters, against a model of what it must hold.

use super::Input;
use bytes::Bytes;
use dsm_protocol::ids::{LinkId, Reign, ReignId, Seq, Stamp, Version};
use dsm_protocol::machine::slave::{Effect, Event, Slave, ENTRY_OVERHEAD_BYTES};
use dsm_protocol::message::Seen;
use std::collections::BTreeMap;

/// The state of a link.
#[derive(Default)]
struct Link {
    announced: Option<Seen>,
    reign: Option<Reign>,
    counted: u64,
    acked: u64,
    told_outdated: bool,
}

struct Model {
    memory_max: Option<u64>,
    /// The last reign that it was part of.
    seen: Option<Seen>,
    held: BTreeMap<Bytes, (Stamp, Bytes)>,
    links: BTreeMap<LinkId, Link>,
}

/// `MEMORY` and then events.
pub(crate) fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let memory = input.u8();
    let memory_max = (memory < 128).then(|| 8 * u64::from(memory));
    let mut slave = Slave::new(memory_max, 1);
    let mut model = Model { memory_max, seen: None, held: BTreeMap::new(), links: BTreeMap::new() };
    while !input.is_empty() {
        let choice = input.u8();
        let link = LinkId(u64::from(choice >> 6));
        let mut effects = Vec::new();
        let event = event(&mut input, choice & 0x3f, link);
        let expected = model.expect(&event);
        slave.step(event, &mut effects);
        // The order of a report is that of the table; its content is checked.
        let effects: Vec<_> = effects.into_iter().filter(|effect| !model.is_report(effect)).collect();
        assert_eq!(effects, expected);
        model.agrees(&slave);
    }
}

fn event(input: &mut Input<'_>, choice: u8, link: LinkId) -> Event {
    let version = |input: &mut Input<'_>| Version::new(input.number(), input.number());
    let key = |input: &mut Input<'_>| Bytes::from(vec![b'k'; input.below(5)]);
    // Few numbers, so that they repeat.
    let id = |input: &mut Input<'_>| ReignId(input.below(2) as u64);
    match choice % 12 {
        0 => Event::LinkUp { link },
        1 => Event::LinkDown { link },
        2 => {
            let reign = Reign { epoch: version(input).epoch, id: id(input) };
            Event::Announced { link, reign, seq: Seq(1), durable: true }
        }
        3..=5 => {
            let (version, reign, key) = (version(input), id(input), key(input));
            let value = Bytes::from(vec![b'v'; usize::from(input.u8())]);
            Event::Write { link, version, reign, key, value }
        }
        6 => Event::Ping { link },
        7 => {
            let (tag, version, reign) = (input.number(), version(input), id(input));
            Event::Read { link, tag, version, reign, key: key(input) }
        }
        8 => Event::Drop { link, version: version(input), reign: id(input), key: key(input) },
        9 => Event::HoldingsNext { link },
        10 => Event::Admitted { link, reign: Reign { epoch: version(input).epoch, id: id(input) } },
        _ => Event::BatchEnded { link },
    }
}

impl Model {
    fn memory_bytes(&self) -> u64 {
        let bytes = |(key, (_, value)): (&Bytes, &(Stamp, Bytes))| (key.len() + value.len()) as u64;
        self.held.iter().map(|entry| bytes(entry) + ENTRY_OVERHEAD_BYTES).sum()
    }

    fn room_bytes(&self) -> u64 {
        self.memory_max.map_or(u64::MAX, |max| max - self.memory_bytes())
    }

    /// Whether the link's master is obeyed; if not, the refusal that it gets, once.
    fn obeys(&mut self, id: LinkId) -> Result<&mut Link, Vec<Effect>> {
        let obeyed = self.seen;
        let Some(link) = self.links.get_mut(&id) else { return Err(Vec::new()) };
        let Some(seen) = obeyed else { return Err(Vec::new()) };
        if link.reign == Some(seen.reign) {
            return Ok(link);
        }
        let told = std::mem::replace(&mut link.told_outdated, true);
        Err(if told { Vec::new() } else { vec![Effect::Outdated { link: id, seen }] })
    }

    /// The refusal of a reign that does not follow the known one.
    fn refusal(&self, link: LinkId, reign: Reign) -> Option<Vec<Effect>> {
        let seen = self.seen?;
        let follows = reign == seen.reign || reign.epoch > seen.reign.epoch;
        (!follows).then(|| vec![Effect::Outdated { link, seen }])
    }

    /// What the slave must do, reports left out.
    #[expect(clippy::too_many_lines, reason = "one arm for each event, each short")]
    fn expect(&mut self, event: &Event) -> Vec<Effect> {
        match event {
            Event::LinkUp { link } => {
                self.links.insert(*link, Link::default());
            }
            Event::LinkDown { link } => {
                self.links.remove(link);
            }
            Event::Announced { link, reign, seq, durable } => {
                let (link, reign, seq, durable) = (*link, *reign, *seq, *durable);
                if let Some(refusal) = self.refusal(link, reign) {
                    return refusal;
                }
                let (seen, room_bytes) = (self.seen, self.room_bytes());
                let Some(known) = self.links.get_mut(&link) else { return Vec::new() };
                *known = Link { announced: Some(Seen { reign, seq, durable }), ..Link::default() };
                return vec![Effect::Enlisted { link, reign, seen, room_bytes }];
            }
            // Nothing follows from it but what a repair hears.
            Event::Lineage { .. } => {}
            Event::Admitted { link, reign } => {
                let Some(known) = self.links.get_mut(link) else { return Vec::new() };
                let announced = known.announced.take();
                let Some(announced) = announced.filter(|announced| announced.reign == *reign) else {
                    return Vec::new();
                };
                if let Some(refusal) = self.refusal(*link, *reign) {
                    return refusal;
                }
                if self.seen.map(|seen| seen.reign) != Some(*reign) {
                    self.seen = Some(announced);
                }
                self.links.insert(*link, Link { reign: Some(*reign), ..Link::default() });
            }
            Event::Write { link, version, reign, key, value } => {
                let stamp = Stamp { version: *version, reign: *reign };
                let number = match self.obeys(*link) {
                    Ok(link) => {
                        link.counted += 1;
                        link.counted
                    }
                    Err(told) => return told,
                };
                let held = self.held.get(key).cloned();
                if held.as_ref().is_some_and(|(held, _)| held.version >= *version && !is_other(*held, stamp))
                {
                    return Vec::new();
                }
                self.held.insert(key.clone(), (stamp, value.clone()));
                if self.memory_max.is_some_and(|max| self.memory_bytes() > max) {
                    match held {
                        Some(held) => self.held.insert(key.clone(), held),
                        None => self.held.remove(key),
                    };
                    return vec![Effect::Full { link: *link, number }];
                }
                if let Some(seen) = self.seen.as_mut().filter(|seen| seen.reign.epoch == version.epoch) {
                    if seen.reign.id == *reign {
                        seen.seq = seen.seq.max(version.seq);
                    }
                }
            }
            Event::Ping { link } => match self.obeys(*link) {
                Ok(link) => link.counted += 1,
                Err(told) => return told,
            },
            Event::Read { link, tag, version, reign, key } => {
                let wanted = Stamp { version: *version, reign: *reign };
                if let Err(told) = self.obeys(*link) {
                    return told;
                }
                let (link, tag) = (*link, *tag);
                return vec![match self.held.get(key).cloned() {
                    Some((held, value)) if held.version >= *version && !is_other(held, wanted) => {
                        Effect::Value {
                            link,
                            tag,
                            version: held.version,
                            reign: held.reign,
                            value,
                            checksum: None,
                        }
                    }
                    Some((held, _)) => Effect::Missing { link, tag, held: Some(held.version) },
                    None => Effect::Missing { link, tag, held: None },
                }];
            }
            Event::Drop { link, version, reign, key } => {
                let told_of = Stamp { version: *version, reign: *reign };
                if let Err(told) = self.obeys(*link) {
                    return told;
                }
                if self
                    .held
                    .get(key)
                    .is_some_and(|(held, _)| held.version <= *version && !is_other(*held, told_of))
                {
                    self.held.remove(key);
                }
            }
            Event::HoldingsNext { link } => {
                return self.obeys(*link).err().unwrap_or_default();
            }
            Event::BatchEnded { link } => {
                let room_bytes = self.room_bytes();
                if let Some(known) = self.links.get_mut(link).filter(|known| known.counted > known.acked) {
                    known.acked = known.counted;
                    return vec![Effect::Ack { link: *link, through: known.counted, room_bytes }];
                }
            }
        }
        Vec::new()
    }

    /// Whether an effect is a part of a report; it must be true.
    fn is_report(&self, effect: &Effect) -> bool {
        let Effect::Holdings { link, entries, last } = effect else { return false };
        let obeyed = self.seen.map(|seen| seen.reign);
        assert_eq!(self.links[link].reign, obeyed, "a report to a master that does not reign");
        for (key, stamp) in entries {
            assert_eq!(self.held.get(key).map(|(held, _)| held), Some(stamp), "{key:?} is reported");
        }
        assert!(*last, "so few keys fit into one part");
        true
    }

    fn agrees(&self, slave: &Slave) {
        assert_eq!(slave.seen(), self.seen);
        assert_eq!((slave.len(), slave.memory_bytes()), (self.held.len(), self.memory_bytes()));
        assert_eq!(slave.room_bytes(), self.room_bytes());
    }
}

/// Whether two stamps are of one epoch and two reigns.
fn is_other(a: Stamp, b: Stamp) -> bool {
    a.version.epoch == b.version.epoch && a.reign != b.reign
}

/// A master that writes, reads, drops and is followed by another one; and noise.
pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let first = [0, 2, 1, 3, 1, 3, 1, 2, 3, 1, 4, 2, 200, 6, 10, 7, 9, 1, 3, 1, 8, 1, 3, 1, 9];
    let second = [64, 66, 2, 67, 2, 5, 1, 3, 3, 1, 9, 1, 2, 74, 1, 10, 2, 1];
    let calm = [&[255][..], &first, &second].concat();
    let tight = [&[40][..], &first, &second].concat();
    vec![calm, tight, super::noise(3, 150), super::noise(4, 400)]
}
