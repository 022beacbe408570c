//! How much of what a log says a master is told in one message, so that no turn is long.

use super::Replay;

/// So many keys are handed to the master at once.
const CHANGES_MAX: usize = 1024;

/// Or keys of so many bytes, and one more.
const KEY_BYTES_MAX: usize = 256 * 1024;

/// Takes off as many changes as one turn may take in.
pub(super) fn next_piece(changes: &mut std::vec::IntoIter<Replay>) -> Vec<Replay> {
    let mut piece = Vec::with_capacity(changes.len().min(CHANGES_MAX));
    let mut bytes = 0;
    while piece.len() < CHANGES_MAX && bytes < KEY_BYTES_MAX {
        let Some(change) = changes.next() else { break };
        bytes += match &change {
            Replay::Put { key, .. } | Replay::Delete { key } => key.len(),
            Replay::Reign(_) | Replay::GivenUp(_) | Replay::Time(_) => 0,
        };
        piece.push(change);
    }
    piece
}

#[cfg(test)]
mod tests {
    use super::*;

    fn deletions(keys: usize, key_bytes: usize) -> std::vec::IntoIter<Replay> {
        let deletion = |_| Replay::Delete { key: vec![b'k'; key_bytes].as_slice().into() };
        (0..keys).map(deletion).collect::<Vec<_>>().into_iter()
    }

    #[test]
    fn a_part_is_handed_over_in_pieces_of_bounded_keys_and_bytes() {
        for (keys, key_bytes) in [(5 * CHANGES_MAX + 1, 10), (300, 64 * 1024), (1, 1), (0, 0)] {
            let mut changes = deletions(keys, key_bytes);
            let mut taken = 0;
            while changes.len() > 0 {
                let piece = next_piece(&mut changes);
                assert!(!piece.is_empty() && piece.len() <= CHANGES_MAX, "{} changes", piece.len());
                let in_front = (piece.len() - 1) * key_bytes;
                assert!(in_front < KEY_BYTES_MAX, "{in_front} bytes and one key more");
                taken += piece.len();
            }
            assert_eq!(taken, keys);
        }
    }
}
