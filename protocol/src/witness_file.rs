//! The text of `kv_store.log.witness`: the slaves that have seen records which the log lacks, and the losses that an
//! operator has accepted.
//!
//! Lines of `key=value`, as in the lock file; unknown keys, and lines that cannot be read, are ignored.

use crate::ids::{ClusterId, Epoch, Reign, Seq, SlaveId};
use crate::message::Seen;
use std::fmt;

/// The most entries of witnesses that are kept: a few of each slave.
pub const NOTED_MAX: usize = 256;

/// The most reigns that are given up that are kept.
pub const ACCEPTED_MAX: usize = 64;

/// What the file says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WitnessText {
    /// The cluster of the log.
    pub cluster: Option<ClusterId>,
    /// What slaves have seen of the log, noted while no master served.
    pub seen: Vec<(SlaveId, Seen)>,
    /// Reigns whose loss is accepted, in part or whole: the next EPOCH record names them.
    pub accepted: Vec<Reign>,
    /// The highest epoch whose loss is accepted, where only its number is known.
    pub accepted_epoch: Option<Epoch>,
}

impl WitnessText {
    /// Reads the text of the file. Lines that cannot be read are skipped.
    pub fn parse(text: &str) -> Self {
        let mut parsed = WitnessText::default();
        for line in text.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n')) {
            let Some((key, value)) = line.split_once('=') else { continue };
            match key {
                "cluster" => parsed.cluster = value.parse().ok(),
                "seen" => {
                    if let Some((slave, seen)) = parse_seen(value) {
                        parsed.note(slave, seen);
                    }
                }
                "accepted" => {
                    if let Some(reign) = Reign::from_text(value) {
                        parsed.accept(reign);
                    }
                }
                "accepted_epoch" => parsed.accepted_epoch = value.parse().ok().map(Epoch),
                _ => {}
            }
        }
        parsed
    }

    /// Notes what a slave has seen, unless as much of that reign is noted of it already, or there is no room. Returns whether
    /// it is new.
    pub fn note(&mut self, slave: SlaveId, seen: Seen) -> bool {
        let same = |(id, noted): &(SlaveId, Seen)| *id == slave && noted.reign == seen.reign;
        if let Some((_, noted)) = self.seen.iter_mut().find(|noted| same(noted)) {
            let is_more = seen.seq > noted.seq || (seen.durable && !noted.durable);
            if is_more {
                *noted =
                    Seen { seq: seen.seq.max(noted.seq), durable: seen.durable || noted.durable, ..seen };
            }
            return is_more;
        }
        let has_room = self.seen.len() < NOTED_MAX;
        if has_room {
            self.seen.push((slave, seen));
        }
        has_room
    }

    /// Whether that slave is noted as a witness of that reign.
    pub fn has(&self, slave: &SlaveId, reign: Reign) -> bool {
        self.seen.iter().any(|(id, noted)| id == slave && noted.reign == reign)
    }

    /// Notes that the loss of a reign is accepted, unless there is no room.
    pub fn accept(&mut self, reign: Reign) {
        if !self.accepted.contains(&reign) && self.accepted.len() < ACCEPTED_MAX {
            self.accepted.push(reign);
        }
    }

    /// Whether it says nothing.
    pub fn is_empty(&self) -> bool {
        self.seen.is_empty() && self.accepted.is_empty() && self.accepted_epoch.is_none()
    }
}

fn parse_seen(value: &str) -> Option<(SlaveId, Seen)> {
    let mut words = value.splitn(4, ' ');
    let reign = Reign::from_text(words.next()?)?;
    let seq = Seq(words.next()?.parse().ok()?);
    let durable = words.next()? == "durable";
    let slave = SlaveId::new(words.next()?).ok()?;
    Some((slave, Seen { reign, seq, durable }))
}

impl fmt::Display for WitnessText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(cluster) = self.cluster {
            writeln!(f, "cluster={cluster}")?;
        }
        for (slave, Seen { reign, seq, durable }) in &self.seen {
            let durable = if *durable { "durable" } else { "written" };
            writeln!(f, "seen={reign} {seq} {durable} {slave}")?;
        }
        for reign in &self.accepted {
            writeln!(f, "accepted={reign}")?;
        }
        if let Some(epoch) = self.accepted_epoch {
            writeln!(f, "accepted_epoch={epoch}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(epoch: u64, seq: u64) -> Seen {
        Seen { reign: Reign::new(epoch, 0xab), seq: Seq(seq), durable: true }
    }

    fn slave(name: &str) -> SlaveId {
        SlaveId::new(name).unwrap()
    }

    #[test]
    fn the_text_comes_back_and_garbage_is_ignored() {
        let mut text = WitnessText { cluster: Some(ClusterId(7)), ..WitnessText::default() };
        assert!(text.is_empty());
        assert!(text.note(slave("s1"), seen(2, 15)));
        assert!(text.note(slave("s2"), Seen { durable: false, ..seen(3, 1) }));
        text.accept(Reign::new(4, 9));
        text.accepted_epoch = Some(Epoch(5));
        assert!(!text.is_empty());
        assert_eq!(WitnessText::parse(&text.to_string()), text);
        let garbage =
            "seen=2-ab 15 durable s1\nseen=2-00000000000000ab x durable s1\naccepted=\n=\n\0\0cluster=7";
        assert_eq!(WitnessText::parse(garbage), WitnessText::default());
    }

    #[test]
    fn each_witness_is_kept_by_its_name_with_the_most_that_it_has_seen_of_each_reign() {
        let mut text = WitnessText::default();
        assert!(text.note(slave("s1"), seen(2, 15)));
        assert!(!text.note(slave("s1"), seen(2, 14)));
        assert!(text.note(slave("s2"), seen(2, 14)));
        assert!(text.note(slave("s1"), seen(2, 16)));
        assert!(text.note(slave("s1"), seen(3, 20)));
        let noted = [(slave("s1"), seen(2, 16)), (slave("s2"), seen(2, 14)), (slave("s1"), seen(3, 20))];
        assert_eq!(text.seen, noted);
        // What was durable once stays so.
        assert!(!text.note(slave("s2"), Seen { durable: false, ..seen(2, 14) }));
        assert!(text.note(slave("s2"), Seen { durable: false, ..seen(2, 18) }));
        assert_eq!(text.seen[1].1, seen(2, 18));
        let noted = (4..1000).filter(|epoch| text.note(slave("s1"), seen(*epoch, 1))).count();
        assert_eq!((noted, text.seen.len()), (NOTED_MAX - 3, NOTED_MAX));
    }
}
