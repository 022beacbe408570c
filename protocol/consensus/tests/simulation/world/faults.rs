//! What goes wrong, and when all is well again.

use super::{Happening, Node, World, CALM_US, FAULTS_US, HANGS_US};
use dsm_consensus::{Consensus, Event};

/// A disk that hangs whether its machine leads or not.
const ANY_LIFE: u64 = u64::MAX;

impl World {
    /// A member, the one that leads in every second draw.
    fn victim(&mut self) -> usize {
        let drawn = self.random.next() as usize;
        let leads = |node: &Node| node.machine.as_ref().is_some_and(|machine| machine.term().1);
        let leader = self.nodes.iter().position(leads);
        leader.filter(|_| drawn.is_multiple_of(2)).unwrap_or((drawn >> 1) % self.nodes.len())
    }

    pub(super) fn fault(&mut self) {
        if self.is_healed {
            return;
        }
        let us = self.random.between(20_000, 400_000);
        let (member, other) = (self.victim(), self.random.next() as usize % self.nodes.len());
        let kind = self.random.next() % 16;
        self.note(kind);
        let is_well = self.is_well();
        // The next one comes when the disk works again.
        self.later(if kind == 11 && is_well { CALM_US + 1 } else { us }, Happening::Fault);
        match kind {
            0 | 1 if !self.is_down(member) => self.ends(member, kind == 1),
            2 => {
                // The power of all goes at once.
                for member in 0..self.nodes.len() {
                    if !self.is_down(member) {
                        self.ends(member, true);
                    }
                }
            }
            3 => {
                for peer in (0..self.nodes.len()).filter(|peer| *peer != member) {
                    self.cut.extend([(member, peer), (peer, member)]);
                }
            }
            4 if member != other => {
                self.cut.insert((member, other));
            }
            // Both hear all others, but not each other.
            15 if member != other => self.cut.extend([(member, other), (other, member)]),
            5 | 6 => self.cut.clear(),
            7 => self.nodes[member].paused_until = self.now + self.random.between(1000, 900_000),
            8 => self.nodes[member].sync_us = self.random.between(0, 2) * self.random.between(1000, 400_000),
            9 if member != other => self.breaks(member, other, true),
            10 => {
                // The clock jumps: the ticks of a long time at once.
                let life = self.nodes[member].life;
                for _ in 0..self.random.between(2, 60) {
                    self.event(member, life, Event::Tick);
                }
            }
            11 if is_well => self.hangs(member),
            12 => self.transfers(member, other),
            13 => self.loses_disk(member),
            14 => self.operator_acts(),
            _ => {}
        }
    }

    /// Whether nothing is broken but for cuts, and there is time for a disk to hang.
    fn is_well(&self) -> bool {
        let now = self.now;
        now + CALM_US <= FAULTS_US
            && self.nodes.iter().all(|node| node.id.is_none() || node.machine.is_some())
            && self.nodes.iter().all(|node| node.paused_until <= now)
            && self.lost().is_none()
    }

    pub(super) fn transfers(&mut self, member: usize, other: usize) {
        let (life, ids) = (self.nodes[member].life, (self.nodes[member].id, self.nodes[other].id));
        if let ((Some(id), Some(to)), Some(_), false) =
            (ids, &self.nodes[member].machine, self.is_old(member) || self.is_old(other))
        {
            self.checks.transfers(id);
            self.event(member, life, Event::Transfer(to));
        }
    }

    /// A disk hangs while all else is well, for as long as a leader may take to notice it and be replaced.
    fn hangs(&mut self, member: usize) {
        self.counts.hung += 1;
        self.calm_until = self.now + CALM_US;
        self.cut.clear();
        self.nodes.iter_mut().for_each(|node| node.sync_us = 0);
        self.nodes[member].sync_us = HANGS_US;
        let life = self.nodes[member].life;
        self.later(CALM_US, Happening::DiskWorks { member, life });
    }

    /// The disk of one that gets a file hangs for a while, whatever else goes wrong.
    pub(super) fn receiver_hangs(&mut self, member: usize) {
        self.counts.hung_receivers += 1;
        self.nodes[member].sync_us = HANGS_US;
        let us = self.random.between(100_000, 800_000);
        self.later(us, Happening::DiskWorks { member, life: ANY_LIFE });
    }

    pub(super) fn disk_works(&mut self, member: usize, hung: u64) {
        let node = &mut self.nodes[member];
        if hung == ANY_LIFE && node.hangs() && self.now < self.calm_until {
            // It hangs anew.
            return;
        }
        let is_alone = |machine: &Consensus| machine.members().voters().count() == 1;
        let leads = node.machine.as_ref().is_some_and(|machine| machine.term().1 && !is_alone(machine));
        let life = node.life;
        if leads && life == hung {
            self.checks.fail(format!("{:?} leads although its disk has hung for long", node.id));
        }
        node.sync_us = 0;
        for event in std::mem::take(&mut node.stalled) {
            self.later(0, Happening::Event { member, life, event });
        }
        self.later(0, Happening::Synced { member, life });
    }

    pub(super) fn heal(&mut self) {
        self.is_healed = true;
        self.cut.clear();
        self.acknowledged_before = self.checks.acknowledged;
        for member in 0..self.nodes.len() {
            let (now, node) = (self.now, &mut self.nodes[member]);
            node.paused_until = node.paused_until.min(now);
            if node.hangs() {
                self.disk_works(member, ANY_LIFE);
            }
            self.nodes[member].sync_us = 0;
        }
    }
}
