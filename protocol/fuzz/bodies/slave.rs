//! The slave machine under any events of any masters, against a model of what it must hold.

use super::Input;
use bytes::Bytes;
use dsm_protocol::ids::{Epoch, LinkId, Version};
use dsm_protocol::machine::slave::{Effect, Event, Slave, ENTRY_OVERHEAD_BYTES};
use std::collections::BTreeMap;

/// What a link has said and heard.
#[derive(Default)]
struct Link {
    announced: Option<Epoch>,
    counted: u64,
    acked: u64,
    told_outdated: bool,
}

struct Model {
    memory_max: Option<u64>,
    epoch: Epoch,
    highest: Version,
    held: BTreeMap<Bytes, (Version, Bytes)>,
    links: BTreeMap<LinkId, Link>,
}

/// `MEMORY` and then events.
pub(crate) fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let memory = input.u8();
    let memory_max = (memory < 128).then(|| 8 * u64::from(memory));
    let mut slave = Slave::new(memory_max, 1);
    let mut model = Model {
        memory_max,
        epoch: Epoch::default(),
        highest: Version::default(),
        held: BTreeMap::new(),
        links: BTreeMap::new(),
    };
    while !input.is_empty() {
        let choice = input.u8();
        let link = LinkId(u64::from(choice >> 6));
        let mut effects = Vec::new();
        let event = event(&mut input, choice & 0x3f, link);
        let expected = model.expect(&event);
        slave.step(event, &mut effects);
        // The order of a report is the table's; what it says is checked.
        let effects: Vec<_> = effects.into_iter().filter(|effect| !model.is_report(effect)).collect();
        assert_eq!(effects, expected);
        model.agrees(&slave);
    }
}

fn event(input: &mut Input<'_>, choice: u8, link: LinkId) -> Event {
    let version = |input: &mut Input<'_>| Version::new(input.number(), input.number());
    let key = |input: &mut Input<'_>| Bytes::from(vec![b'k'; input.below(5)]);
    match choice % 11 {
        0 => Event::LinkUp { link },
        1 => Event::LinkDown { link },
        2 => Event::Announced { link, epoch: Epoch(input.number()) },
        3..=5 => {
            let (version, key) = (version(input), key(input));
            Event::Write { link, version, key, value: Bytes::from(vec![b'v'; usize::from(input.u8())]) }
        }
        6 => Event::Ping { link },
        7 => Event::Read { link, tag: input.number(), version: version(input), key: key(input) },
        8 => Event::Drop { link, version: version(input), key: key(input) },
        9 => Event::HoldingsNext { link },
        _ => Event::BatchEnded { link },
    }
}

impl Model {
    fn memory_bytes(&self) -> u64 {
        let bytes = |(key, (_, value)): (&Bytes, &(Version, Bytes))| (key.len() + value.len()) as u64;
        self.held.iter().map(|entry| bytes(entry) + ENTRY_OVERHEAD_BYTES).sum()
    }

    fn room_bytes(&self) -> u64 {
        self.memory_max.map_or(u64::MAX, |max| max - self.memory_bytes())
    }

    /// Whether the link's master reigns; if not, what it is told, once.
    fn obeys(&mut self, id: LinkId) -> Result<&mut Link, Vec<Effect>> {
        let epoch = self.epoch;
        let Some(link) = self.links.get_mut(&id) else { return Err(Vec::new()) };
        if link.announced == Some(epoch) {
            return Ok(link);
        }
        let told = std::mem::replace(&mut link.told_outdated, true);
        Err(if told { Vec::new() } else { vec![Effect::Outdated { link: id, epoch }] })
    }

    /// What the slave must do, reports left out.
    fn expect(&mut self, event: &Event) -> Vec<Effect> {
        match event {
            Event::LinkUp { link } => {
                self.links.insert(*link, Link::default());
            }
            Event::LinkDown { link } => {
                self.links.remove(link);
            }
            Event::Announced { link, epoch } => {
                if *epoch < self.epoch {
                    return vec![Effect::Outdated { link: *link, epoch: self.epoch }];
                }
                self.epoch = *epoch;
                let (highest, room_bytes) = (self.highest, self.room_bytes());
                let Some(known) = self.links.get_mut(link) else { return Vec::new() };
                *known = Link { announced: Some(*epoch), ..Link::default() };
                return vec![Effect::Enlisted { link: *link, epoch: *epoch, highest, room_bytes }];
            }
            Event::Write { link, version, key, value } => {
                let number = match self.obeys(*link) {
                    Ok(link) => {
                        link.counted += 1;
                        link.counted
                    }
                    Err(told) => return told,
                };
                let held = self.held.get(key).cloned();
                if held.as_ref().is_some_and(|(held, _)| held >= version) {
                    return Vec::new();
                }
                self.held.insert(key.clone(), (*version, value.clone()));
                if self.memory_max.is_some_and(|max| self.memory_bytes() > max) {
                    match held {
                        Some(held) => self.held.insert(key.clone(), held),
                        None => self.held.remove(key),
                    };
                    return vec![Effect::Full { link: *link, number }];
                }
                self.highest = self.highest.max(*version);
            }
            Event::Ping { link } => match self.obeys(*link) {
                Ok(link) => link.counted += 1,
                Err(told) => return told,
            },
            Event::Read { link, tag, version, key } => {
                if let Err(told) = self.obeys(*link) {
                    return told;
                }
                let (link, tag) = (*link, *tag);
                return vec![match self.held.get(key).cloned() {
                    Some((held, value)) if held >= *version => {
                        Effect::Value { link, tag, version: held, value }
                    }
                    Some((held, _)) => Effect::Missing { link, tag, held: Some(held) },
                    None => Effect::Missing { link, tag, held: None },
                }];
            }
            Event::Drop { link, version, key } => {
                if let Err(told) = self.obeys(*link) {
                    return told;
                }
                if self.held.get(key).is_some_and(|(held, _)| held <= version) {
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
        assert_eq!(self.links[link].announced, Some(self.epoch), "a report to a master that does not reign");
        for (key, version) in entries {
            assert_eq!(self.held.get(key).map(|(held, _)| held), Some(version), "{key:?} is reported");
        }
        assert!(*last, "so few keys fit into one part");
        true
    }

    fn agrees(&self, slave: &Slave) {
        assert_eq!((slave.epoch(), slave.highest()), (self.epoch, self.highest));
        assert_eq!((slave.len(), slave.memory_bytes()), (self.held.len(), self.memory_bytes()));
        assert_eq!(slave.room_bytes(), self.room_bytes());
    }
}

/// A master that writes, reads, drops and is followed by another one; and noise.
pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let first = [0, 2, 1, 3, 1, 3, 1, 2, 3, 1, 4, 2, 200, 6, 10, 7, 9, 1, 3, 1, 8, 1, 3, 1, 9];
    let second = [64, 66, 2, 67, 2, 5, 1, 3, 3, 1, 9, 1, 2, 74, 1, 10, 2, 1];
    let calm = [&[255][..], &first, &second].concat();
    let tight = [&[40][..], &first, &second].concat();
    vec![calm, tight, super::noise(3, 150), super::noise(4, 400)]
}
