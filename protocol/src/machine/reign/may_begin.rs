//! Whether a reign may begin on the log that is there.
//!
//! Owns the rule by which the log is held against all that others know of it: the last leader, what this master has read
//! itself, the other master, slaves. Whoever knows of a cluster, a reign or a record that the log lacks keeps it from
//! being served: an empty cluster in the place of a lost log answers every question wrongly. Asked again whenever
//! something may have changed. See `docs/ARCHITECTURE.md`, *What a log must hold*.

use super::super::master::{Reigns, Testimony};
use crate::ids::{ClusterId, Epoch, Reign, Seq, SlaveId};
use crate::message::Seen;
use crate::planted;

/// How long a master that has just started lets slaves and the other master reach it before it serves a log that nobody
/// has served since, or begins one because it was told to, in milliseconds. A slave that lives dials at least every
/// [`SLAVE_PAUSE_MAX_MS`], so its word is heard in time.
pub const HEAR_MS: u64 = 1000;

/// The longest pause of a slave between two attempts to reach a master, in milliseconds.
pub const SLAVE_PAUSE_MAX_MS: u64 = 500;

/// How long a slave of no cluster must be connected before a new log is begun for it, in milliseconds: those that come
/// with it may belong to one.
pub const SETTLE_MS: u64 = 100;

/// Who knows something of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// The last leader, by what he has declared.
    LastLeader,
    /// This master has read it in the log before.
    Memory,
    /// Another master.
    Peer,
    /// A slave, by its name.
    Slave(SlaveId),
    /// It is noted beside the log that a slave has seen it before anybody was served.
    Noted(SlaveId),
}

/// What somebody knows of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// Who says so.
    pub source: Source,
    /// Whose log it is.
    pub cluster: ClusterId,
    /// An epoch that it has.
    pub epoch: Option<Epoch>,
    /// A reign that it has, and how far that goes.
    pub seen: Option<Seen>,
}

/// The log that is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Log {
    /// Whose it is; `None` when it does not say, as one of the original program.
    pub cluster: Option<ClusterId>,
    /// The epoch of its last record.
    pub epoch: Epoch,
    /// The seq of its last record; 0 when there is none.
    pub end: Seq,
    /// Whether it ends in the reign of a repair from slaves, which has not come to its end.
    pub is_half_repaired: bool,
}

impl Log {
    /// Whether it is as good as none: it has no record.
    fn is_empty(&self) -> bool {
        self.cluster.is_none() && self.end == Seq(0)
    }
}

/// What the decision depends on beside the log and the claims.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Circumstances {
    /// Whether an empty cluster is meant where nobody names one (`--new`).
    pub new: bool,
    /// For how long others could reach this master, in milliseconds.
    pub heard_ms: u64,
    /// For how long a slave of no cluster is connected, in milliseconds; `None` without one.
    pub newcomer_ms: Option<u64>,
    /// Whether this log was served, by one of the two masters, since this one started: who has something to say has said
    /// it.
    pub is_warm: bool,
}

/// What an operator has given up with `dsm-log accept-loss`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Accepted {
    /// Reigns that count as given up, in part or whole.
    pub reigns: Vec<Reign>,
    /// What the last leader has declared counts no more up to this epoch.
    pub epoch: Epoch,
}

/// What keeps a reign from beginning. The words for it are the log's: how it is mended depends on what it is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lack {
    /// There is no log, but somebody knows of one.
    NoLog {
        /// The cluster that others are of.
        cluster: ClusterId,
        /// Who is of that cluster.
        source: Source,
    },
    /// There is no log, and nobody says what is meant.
    Unclaimed,
    /// The log is another cluster's.
    OtherCluster {
        /// The cluster that the log is of; nothing if it names none.
        log: Option<ClusterId>,
        /// Whose it should be.
        named: ClusterId,
        /// Who is of another one.
        source: Source,
    },
    /// The log ends before an epoch that it once had.
    Epoch {
        /// Where the log ends.
        log: Log,
        /// The epoch that the log lacks.
        known: Epoch,
        /// Who knows that epoch.
        source: Source,
    },
    /// A repair from slaves has begun on the log and has not come to its end: of some keys the log has older values than a slave.
    HalfRepaired {
        /// Where the log ends.
        log: Log,
    },
    /// The log lacks records of a reign, or all of it.
    Records {
        /// Where the log ends.
        log: Log,
        /// What somebody has seen.
        seen: Seen,
        /// Who has seen more than that.
        source: Source,
    },
}

/// Whether a reign may begin on the log that is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MayBegin {
    /// It may; where there is no log, with a new one.
    Yes,
    /// Others may still have something to say.
    NotYet,
    /// Not before this is mended.
    No(Lack),
}

/// Holds the log that is there (`None`: nothing) against what others know. `reigns` are those of the log.
pub fn judge(
    log: Option<&Log>,
    reigns: &Reigns,
    claims: &[Claim],
    accepted: &Accepted,
    now: Circumstances,
) -> MayBegin {
    match log.filter(|log| !log.is_empty()) {
        None => judge_nothing(claims, now),
        Some(log) => {
            if let Some(lack) = lacks(log, reigns, claims, accepted).next() {
                MayBegin::No(lack)
            } else if now.is_warm || now.heard_ms >= HEAR_MS {
                MayBegin::Yes
            } else {
                MayBegin::NotYet
            }
        }
    }
}

fn judge_nothing(claims: &[Claim], now: Circumstances) -> MayBegin {
    if let Some(claim) = claims.first().filter(|_| !planted!(BeginsNewLogOverCluster)) {
        return MayBegin::No(Lack::NoLog { cluster: claim.cluster, source: claim.source.clone() });
    }
    let is_asked_for = now.new && now.heard_ms >= HEAR_MS;
    if is_asked_for || now.newcomer_ms.is_some_and(|ms| ms >= SETTLE_MS) {
        MayBegin::Yes
    } else if now.newcomer_ms.is_some() || now.heard_ms < HEAR_MS {
        MayBegin::NotYet
    } else {
        MayBegin::No(Lack::Unclaimed)
    }
}

/// All that is known to be missing in the log that is there. The log itself says whether it is half repaired.
pub(super) fn lacks<'a>(
    log: &'a Log,
    reigns: &'a Reigns,
    claims: &'a [Claim],
    accepted: &'a Accepted,
) -> impl Iterator<Item = Lack> + 'a {
    let is_accepted = reigns.last().is_some_and(|last| accepted.reigns.contains(&last.reign));
    let half = (log.is_half_repaired && !is_accepted).then_some(Lack::HalfRepaired { log: *log });
    half.into_iter().chain(claims.iter().filter_map(|claim| lack(log, reigns, claim, accepted)))
}

/// What the log lacks of one claim.
fn lack(log: &Log, reigns: &Reigns, claim: &Claim, accepted: &Accepted) -> Option<Lack> {
    let Claim { source, cluster, epoch, seen } = claim;
    let (is_slave, is_noted) = (matches!(source, Source::Slave(_)), matches!(source, Source::Noted(_)));
    if log.cluster != Some(*cluster) {
        // A slave that belongs elsewhere is refused when it registers. It cannot keep a log that names its cluster from
        // being served.
        let lacks = !(is_slave || is_noted) || log.cluster.is_none();
        return lacks.then(|| Lack::OtherCluster {
            log: log.cluster,
            named: *cluster,
            source: source.clone(),
        });
    }
    if let Some(known) = epoch.filter(|known| *known > log.epoch && *known > accepted.epoch) {
        return Some(Lack::Epoch { log: *log, known, source: source.clone() });
    }
    let seen = seen.filter(|seen| !accepted.reigns.contains(&seen.reign))?;
    let is_short = match reigns.testimony_at(log.end, &seen) {
        Testimony::Agrees => false,
        Testimony::LogIsShort => !((is_slave || is_noted) && planted!(WitnessIgnored)),
        // For all that a slave knows, the log was restored and has served since: it is set aside alone. What is noted was
        // said before that.
        Testimony::Elsewhere => !is_slave,
    };
    is_short.then(|| Lack::Records { log: *log, seen, source: source.clone() })
}

#[cfg(test)]
mod tests {
    use super::super::super::master::ReignRecord;
    use super::*;

    const OURS: ClusterId = ClusterId(1);
    const OTHERS: ClusterId = ClusterId(2);
    const LATE: Circumstances =
        Circumstances { new: false, heard_ms: HEAR_MS, newcomer_ms: None, is_warm: false };

    /// A log of reigns 1 (id 10) from seq 2 and 2 (id 20) from seq 8, which ends at seq 11.
    fn log() -> (Log, Reigns) {
        let mut reigns = Reigns::default();
        for (epoch, first) in [(1, 2), (2, 8)] {
            let reign = Reign::new(epoch, epoch * 10);
            reigns.begin(ReignRecord { reign, first: Seq(first), durable: true });
        }
        (Log { cluster: Some(OURS), epoch: Epoch(2), end: Seq(11), is_half_repaired: false }, reigns)
    }

    fn claim(source: Source, cluster: ClusterId) -> Claim {
        Claim { source, cluster, epoch: None, seen: None }
    }

    fn slave() -> Source {
        Source::Slave(SlaveId::new("s1").unwrap())
    }

    fn seen(epoch: u64, id: u64, seq: u64) -> Option<Seen> {
        Some(Seen { reign: Reign::new(epoch, id), seq: Seq(seq), durable: true })
    }

    fn verdict_on_nothing(claims: &[Claim], now: Circumstances) -> MayBegin {
        judge(None, &Reigns::default(), claims, &Accepted::default(), now)
    }

    fn verdict(claims: &[Claim], now: Circumstances) -> MayBegin {
        let (log, reigns) = log();
        judge(Some(&log), &reigns, claims, &Accepted::default(), now)
    }

    #[test]
    fn no_log_is_begun_where_anybody_names_a_cluster() {
        for source in [Source::LastLeader, Source::Memory, Source::Peer, slave()] {
            let claims = [claim(source.clone(), OURS)];
            for now in [
                LATE,
                Circumstances { new: true, ..LATE },
                Circumstances { newcomer_ms: Some(SETTLE_MS), ..LATE },
            ] {
                let lack = Lack::NoLog { cluster: OURS, source: source.clone() };
                assert_eq!(verdict_on_nothing(&claims, now), MayBegin::No(lack));
            }
            // A log without a record is as good as none.
            let empty = Log { cluster: None, epoch: Epoch(0), end: Seq(0), is_half_repaired: false };
            let verdict = judge(Some(&empty), &Reigns::default(), &claims, &Accepted::default(), LATE);
            assert!(matches!(verdict, MayBegin::No(Lack::NoLog { .. })));
        }
    }

    #[test]
    fn a_new_log_begins_with_a_slave_of_no_cluster_or_when_it_is_asked_for() {
        let early = Circumstances { heard_ms: HEAR_MS - 1, ..LATE };
        assert_eq!(verdict_on_nothing(&[], early), MayBegin::NotYet);
        assert_eq!(verdict_on_nothing(&[], LATE), MayBegin::No(Lack::Unclaimed));
        assert_eq!(verdict_on_nothing(&[], Circumstances { new: true, ..early }), MayBegin::NotYet);
        assert_eq!(verdict_on_nothing(&[], Circumstances { new: true, ..LATE }), MayBegin::Yes);
        let newcomer = |ms| Circumstances { newcomer_ms: Some(ms), ..early };
        assert_eq!(verdict_on_nothing(&[], newcomer(SETTLE_MS - 1)), MayBegin::NotYet);
        assert_eq!(verdict_on_nothing(&[], newcomer(SETTLE_MS)), MayBegin::Yes);
    }

    #[test]
    fn a_log_of_another_cluster_is_not_served_unless_a_slave_alone_says_so() {
        for source in [Source::LastLeader, Source::Memory, Source::Peer] {
            let lack = Lack::OtherCluster { log: Some(OURS), named: OTHERS, source: source.clone() };
            assert_eq!(verdict(&[claim(source, OTHERS)], LATE), MayBegin::No(lack));
        }
        assert_eq!(verdict(&[claim(slave(), OTHERS)], LATE), MayBegin::Yes);
        // A log of the original program names none: then the slave's word counts.
        let legacy = Log { cluster: None, epoch: Epoch(0), end: Seq(7), is_half_repaired: false };
        let claims = [claim(slave(), OTHERS)];
        let verdict = judge(Some(&legacy), &Reigns::default(), &claims, &Accepted::default(), LATE);
        assert!(matches!(verdict, MayBegin::No(Lack::OtherCluster { log: None, .. })));
    }

    #[test]
    fn a_log_that_ends_before_what_is_known_is_not_served() {
        let epoch = |epoch| Claim { epoch: Some(Epoch(epoch)), ..claim(Source::LastLeader, OURS) };
        assert_eq!(verdict(&[epoch(2)], LATE), MayBegin::Yes);
        assert!(matches!(verdict(&[epoch(3)], LATE), MayBegin::No(Lack::Epoch { known: Epoch(3), .. })));
        let (log, reigns) = log();
        let accepted = Accepted { epoch: Epoch(3), reigns: Vec::new() };
        assert_eq!(judge(Some(&log), &reigns, &[epoch(3)], &accepted, LATE), MayBegin::Yes);
        for source in [Source::Memory, slave()] {
            let saw = |seen| Claim { seen, ..claim(source.clone(), OURS) };
            assert_eq!(verdict(&[saw(seen(2, 20, 11))], LATE), MayBegin::Yes);
            assert_eq!(verdict(&[saw(seen(1, 10, 7))], LATE), MayBegin::Yes);
            for more in [seen(2, 20, 12), seen(3, 30, 1)] {
                assert!(matches!(verdict(&[saw(more)], LATE), MayBegin::No(Lack::Records { .. })));
                let accepted = Accepted { epoch: Epoch(0), reigns: vec![more.unwrap().reign] };
                assert_eq!(judge(Some(&log), &reigns, &[saw(more)], &accepted, LATE), MayBegin::Yes);
            }
        }
    }

    #[test]
    fn a_half_repaired_log_is_not_served_whoever_is_there_unless_that_is_accepted() {
        let (log, reigns) = log();
        let log = Log { is_half_repaired: true, ..log };
        let (warm, new) = (Circumstances { is_warm: true, ..LATE }, Circumstances { new: true, ..LATE });
        let accepted = |reigns| Accepted { reigns, epoch: Epoch(9) };
        for now in [LATE, warm, new] {
            for others in [vec![], vec![Reign::new(1, 10)]] {
                let verdict = judge(Some(&log), &reigns, &[], &accepted(others), now);
                assert_eq!(verdict, MayBegin::No(Lack::HalfRepaired { log }));
            }
            let verdict = judge(Some(&log), &reigns, &[], &accepted(vec![Reign::new(2, 20)]), now);
            assert_eq!(verdict, MayBegin::Yes);
        }
    }

    #[test]
    fn no_slave_of_another_branch_holds_up_a_log_that_has_served_since() {
        let branched = |source| Claim { seen: seen(2, 21, 9), ..claim(source, OURS) };
        assert_eq!(verdict(&[branched(slave())], LATE), MayBegin::Yes);
        let noted = Source::Noted(SlaveId::new("s1").unwrap());
        for source in [Source::Memory, noted] {
            assert!(matches!(verdict(&[branched(source)], LATE), MayBegin::No(Lack::Records { .. })));
        }
    }

    #[test]
    fn a_cold_log_is_served_once_others_could_say_what_they_know() {
        let early = Circumstances { heard_ms: 0, ..LATE };
        assert_eq!(verdict(&[], early), MayBegin::NotYet);
        assert_eq!(verdict(&[], LATE), MayBegin::Yes);
        assert_eq!(verdict(&[], Circumstances { is_warm: true, ..early }), MayBegin::Yes);
    }
}
