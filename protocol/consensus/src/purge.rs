//! How far the log may be purged: which entries compaction may take out of it.
//!
//! Owns the rule alone. What is not committed stays; what a live follower lacks stays, as it would need the whole file otherwise;
//! but not more stays than the bound allows, so that one slow follower fills nobody's disk.

use dsm_protocol::ids::Seq;

/// Through where the log may be purged.
///
/// `committed` is what was told as committed. `kept_from` is the first entry that fits into the bound on what is kept. `have` says
/// through where each live follower has the log; a member that does not know, because it does not lead, passes seq 0.
pub fn purge_through(committed: Seq, kept_from: Seq, have: impl IntoIterator<Item = Seq>) -> Seq {
    let needless = have.into_iter().min().unwrap_or(committed);
    needless.max(Seq(kept_from.0.saturating_sub(1))).min(committed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn through(committed: u64, kept_from: u64, have: &[u64]) -> u64 {
        purge_through(Seq(committed), Seq(kept_from), have.iter().map(|seq| Seq(*seq))).0
    }

    #[test]
    fn what_a_live_follower_lacks_stays() {
        assert_eq!(through(100, 1, &[90, 70, 100]), 70);
        assert_eq!(through(100, 1, &[0]), 0);
    }

    #[test]
    fn no_more_stays_than_the_bound_allows() {
        assert_eq!(through(100, 81, &[90, 70, 100]), 80);
        assert_eq!(through(100, 81, &[0]), 80);
    }

    #[test]
    fn what_is_not_committed_stays_even_beyond_the_bound() {
        assert_eq!(through(100, 150, &[120]), 100);
        assert_eq!(through(100, 1, &[]), 100);
        assert_eq!(through(0, 0, &[]), 0);
    }
}
