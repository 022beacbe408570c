//! Which other masters and which slaves a master takes in, by what their HELLOs say.
//!
//! Owns the rules, what it means to be refused by others, and the reasons for a refusal, as [`Unwelcome`]: the Reject that is sent, the line of the log and the memory of
//! what was logged already are all made from that one value. Never sends or logs anything: the master does.
//! Sources: `docs/ARCHITECTURE.md`, *Decisions*, 9, 11 and 14; *What a log must hold*.

use super::master::SLAVES_MAX;
use crate::ids::{ClusterId, SlaveId};
use std::fmt;

/// Why a master or a slave is refused. Displayed, it is the text of the Reject that is sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unwelcome {
    /// Another master has this master's address: the link leads to this master itself, or two have the same address.
    OwnAddress {
        /// That address.
        address: String,
    },
    /// The other master uses another log, so that nothing keeps both from serving at once.
    OtherLog {
        /// The other master's address.
        address: String,
        /// This master's address.
        own_address: String,
        /// Which log this master uses, and how the other one comes to use it: the journal's words.
        how_to_share: String,
    },
    /// The other master belongs to another cluster.
    MasterOfOtherCluster {
        /// The other master's address.
        address: String,
        /// Its cluster.
        theirs: ClusterId,
        /// This master's cluster.
        ours: ClusterId,
    },
    /// The slave belongs to another cluster.
    SlaveOfOtherCluster {
        /// Its name.
        id: SlaveId,
        /// Its cluster.
        theirs: ClusterId,
        /// This master's cluster.
        ours: ClusterId,
    },
    /// This master is stopping: the slave is wanted by the next one. It says nothing about the slave.
    Stopping,
    /// Another slave has that name, and lives.
    NameInUse {
        /// The name.
        id: SlaveId,
    },
    /// While the slave waited for its name, another one came that wants the same.
    NameAskedAgain {
        /// The name.
        id: SlaveId,
    },
    /// The slave was removed, and is the same process as then.
    Removed {
        /// Its name.
        id: SlaveId,
    },
    /// As many slaves are active as there are slots.
    NoSlot,
}

impl Unwelcome {
    /// The cause in a line of the log, as a word with its facts.
    pub fn cause(&self) -> String {
        match self {
            Unwelcome::OwnAddress { .. } => "own-address".to_owned(),
            Unwelcome::OtherLog { .. } => "other-log".to_owned(),
            Unwelcome::MasterOfOtherCluster { theirs, .. }
            | Unwelcome::SlaveOfOtherCluster { theirs, .. } => {
                format!("other-cluster theirs={theirs}")
            }
            Unwelcome::Stopping => "stopping".to_owned(),
            Unwelcome::NameInUse { .. } => "id-in-use".to_owned(),
            Unwelcome::NameAskedAgain { .. } => "registered-again".to_owned(),
            Unwelcome::Removed { .. } => "removed".to_owned(),
            Unwelcome::NoSlot => format!("no-slot max={SLAVES_MAX}"),
        }
    }
}

impl fmt::Display for Unwelcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Unwelcome::OwnAddress { address } => write!(
                f,
                "master {address} is called by its own name, or dials itself: give the other master's address with --peer"
            ),
            Unwelcome::OtherLog { address, own_address, how_to_share } => write!(
                f,
                "master {address} uses another log than master {own_address}, which has {how_to_share}"
            ),
            Unwelcome::MasterOfOtherCluster { address, theirs, ours } => {
                write!(f, "master {address} belongs to cluster {theirs}, this is cluster {ours}")
            }
            Unwelcome::SlaveOfOtherCluster { id, theirs, ours } => {
                write!(f, "slave {id} belongs to cluster {theirs}, this is cluster {ours}")
            }
            Unwelcome::Stopping => f.write_str("this master is stopping"),
            Unwelcome::NameInUse { id } => {
                write!(f, "a slave named {id} is registered and answers: choose another --id")
            }
            Unwelcome::NameAskedAgain { id } => write!(f, "another slave named {id} has registered since"),
            Unwelcome::Removed { id } => {
                write!(f, "slave {id} was removed with REMOVE-SLAVE: stop it, or start it anew if it is to serve again")
            }
            Unwelcome::NoSlot => {
                write!(f, "{SLAVES_MAX} slaves are active, which is the most: stop one first")
            }
        }
    }
}

/// What a master is called, and where it belongs.
#[derive(Clone, Copy, Debug)]
pub struct MasterNames<'a> {
    /// The address at which others reach it.
    pub address: &'a str,
    /// Its cluster; `None` before its log has one.
    pub cluster: Option<ClusterId>,
    /// What all masters that use its log call that, and no others.
    pub log_identity: &'a str,
}

/// Judges another master. `how_to_share` gives the journal's words for [`Unwelcome::OtherLog`].
///
/// # Errors
/// Why it is refused.
pub fn judge_master(
    own: MasterNames<'_>,
    other: MasterNames<'_>,
    how_to_share: impl FnOnce() -> String,
) -> Result<(), Unwelcome> {
    let address = other.address.to_owned();
    if other.address == own.address {
        return Err(Unwelcome::OwnAddress { address });
    }
    // Only one log that both use keeps the two from serving at once.
    if other.log_identity != own.log_identity {
        let own_address = own.address.to_owned();
        return Err(Unwelcome::OtherLog { address, own_address, how_to_share: how_to_share() });
    }
    judge_cluster(other.address, own.cluster, other.cluster)
}

/// Judges the cluster of the master at `address`. Who belongs to none yet will belong to this one.
///
/// # Errors
/// [`Unwelcome::MasterOfOtherCluster`].
pub fn judge_cluster(
    address: &str,
    ours: Option<ClusterId>,
    theirs: Option<ClusterId>,
) -> Result<(), Unwelcome> {
    match (ours, theirs) {
        (Some(ours), Some(theirs)) if ours != theirs => {
            Err(Unwelcome::MasterOfOtherCluster { address: address.to_owned(), theirs, ours })
        }
        (Some(_) | None, _) => Ok(()),
    }
}

/// Whether a master that has not begun to write must end, as `refusing` of its `peers` other masters refuse it: with all that do not
/// it would be no majority. Of two masters that is so with the first refusal; one of three goes on without one of the others.
///
/// Where masters share one file there are two. Where a majority elects the leader, whoever has no majority cannot lead, and a
/// single master that is misled must not end the others.
pub fn is_outvoted(refusing: usize, peers: usize) -> bool {
    let masters = peers + 1;
    masters.saturating_sub(refusing) <= masters / 2
}

/// What decides about a slave beside its own words.
#[derive(Clone, Copy, Debug, Default)]
pub struct SlaveReception {
    /// Whether this master is stopping.
    pub is_stopping: bool,
    /// This master's cluster.
    pub cluster: Option<ClusterId>,
    /// Whether a slave with the same name is connected.
    pub is_name_taken: bool,
    /// Whether this very slave was removed, and is not needed any more.
    pub is_removed: bool,
    /// How many slaves are active.
    pub slaves: usize,
}

/// What becomes of a slave that says HELLO.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Welcomed {
    /// It is taken in.
    Yes,
    /// It waits until it is known whether the one with the same name lives.
    Waits,
    /// It is refused.
    No(Unwelcome),
}

/// Judges a slave of that name and cluster.
pub fn judge_slave(id: &SlaveId, cluster: Option<ClusterId>, here: SlaveReception) -> Welcomed {
    if here.is_stopping {
        return Welcomed::No(Unwelcome::Stopping);
    }
    if let (Some(ours), Some(theirs)) = (here.cluster, cluster) {
        if ours != theirs {
            return Welcomed::No(Unwelcome::SlaveOfOtherCluster { id: id.clone(), theirs, ours });
        }
    }
    if here.is_removed {
        Welcomed::No(Unwelcome::Removed { id: id.clone() })
    } else if here.is_name_taken {
        Welcomed::Waits
    } else if here.slaves >= SLAVES_MAX {
        Welcomed::No(Unwelcome::NoSlot)
    } else {
        Welcomed::Yes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OURS: ClusterId = ClusterId(1);
    const OTHERS: ClusterId = ClusterId(2);
    const OWN: MasterNames<'static> =
        MasterNames { address: "a:1", cluster: Some(OURS), log_identity: "boot:1:2" };
    const PEER: MasterNames<'static> = MasterNames { address: "b:1", ..OWN };

    fn judged(own: MasterNames<'_>, other: MasterNames<'_>) -> Result<(), String> {
        judge_master(own, other, || "LOG: use it".to_owned()).map_err(|why| why.to_string())
    }

    fn slave() -> SlaveId {
        SlaveId::new("s1").unwrap()
    }

    #[test]
    fn a_master_of_the_same_log_is_admitted_even_if_it_belongs_to_no_cluster_yet() {
        assert_eq!(judged(OWN, PEER), Ok(()));
        assert_eq!(judged(OWN, MasterNames { cluster: None, ..PEER }), Ok(()));
        assert_eq!(judged(MasterNames { cluster: None, ..OWN }, PEER), Ok(()));
    }

    #[test]
    fn a_master_is_refused_for_its_address_its_log_or_its_cluster_in_that_order() {
        let stranger = MasterNames { address: "b:1", cluster: Some(OTHERS), log_identity: "boot:1:3" };
        assert_eq!(
            judged(OWN, MasterNames { address: "a:1", ..stranger }),
            Err("master a:1 is called by its own name, or dials itself: give the other master's address with --peer"
                .to_owned())
        );
        assert_eq!(
            judged(OWN, stranger),
            Err("master b:1 uses another log than master a:1, which has LOG: use it".to_owned())
        );
        assert_eq!(
            judged(OWN, MasterNames { log_identity: OWN.log_identity, ..stranger }),
            Err("master b:1 belongs to cluster 0000000000000002, this is cluster 0000000000000001".to_owned())
        );
    }

    #[test]
    fn a_master_ends_when_refusals_leave_it_no_majority() {
        // Masters in all, and the refusals with which one of them ends.
        for (masters, enough) in [(2, 1), (3, 2), (4, 2), (5, 3)] {
            let first = (0..masters).find(|refusing| is_outvoted(*refusing, masters - 1));
            assert_eq!(first, Some(enough), "of {masters}");
        }
        assert!(!is_outvoted(0, 0), "one that is alone");
    }

    #[test]
    fn a_slave_is_admitted_if_it_belongs_here_has_its_own_name_and_finds_a_slot() {
        let here = SlaveReception { cluster: Some(OURS), ..SlaveReception::default() };
        let judged = |cluster, here| judge_slave(&slave(), cluster, here);
        for cluster in [None, Some(OURS)] {
            assert_eq!(judged(cluster, here), Welcomed::Yes);
        }
        assert_eq!(
            judged(Some(OTHERS), SlaveReception::default()),
            Welcomed::Yes,
            "this cluster has no name yet"
        );
        let full = SlaveReception { slaves: SLAVES_MAX, ..here };
        assert_eq!(judged(None, SlaveReception { slaves: SLAVES_MAX - 1, ..here }), Welcomed::Yes);
        assert_eq!(judged(None, full), Welcomed::No(Unwelcome::NoSlot));
        // Whoever restarts takes the slot that it had.
        assert_eq!(judged(None, SlaveReception { is_name_taken: true, ..full }), Welcomed::Waits);
        let other = Unwelcome::SlaveOfOtherCluster { id: slave(), theirs: OTHERS, ours: OURS };
        assert_eq!(judged(Some(OTHERS), SlaveReception { is_name_taken: true, ..full }), Welcomed::No(other));
        let removed = SlaveReception { is_removed: true, ..here };
        assert_eq!(judged(None, removed), Welcomed::No(Unwelcome::Removed { id: slave() }));
        let stopping = SlaveReception { is_stopping: true, ..full };
        assert_eq!(judged(Some(OTHERS), stopping), Welcomed::No(Unwelcome::Stopping));
    }

    #[test]
    fn what_a_slave_is_told_and_what_the_log_says_are_two_texts() {
        let (id, theirs, ours) = (slave(), OTHERS, OURS);
        let texts = [
            (
                Unwelcome::SlaveOfOtherCluster { id: id.clone(), theirs, ours },
                "slave s1 belongs to cluster 0000000000000002, this is cluster 0000000000000001",
                "other-cluster theirs=0000000000000002",
            ),
            (Unwelcome::Stopping, "this master is stopping", "stopping"),
            (
                Unwelcome::NameInUse { id: id.clone() },
                "a slave named s1 is registered and answers: choose another --id",
                "id-in-use",
            ),
            (
                Unwelcome::NameAskedAgain { id },
                "another slave named s1 has registered since",
                "registered-again",
            ),
            (Unwelcome::NoSlot, "64 slaves are active, which is the most: stop one first", "no-slot max=64"),
        ];
        for (why, reason, cause) in texts {
            assert_eq!((why.to_string().as_str(), why.cause().as_str()), (reason, cause));
        }
    }
}
