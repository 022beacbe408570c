//! Makes a copy of a log, or of its first records, that is a log of its own: a backup, or what is restored from one.
//!
//! Owns which lines of the log are in the copy, and whether a log can still tell what there was at a record. It is given every
//! line in order, and gives bytes. It does no IO, and never reads a key or a value.
//!
//! A line stays as it is, but for what is true only of the file that it stands in: marks that name files by their inodes, which
//! a later file may get again. The copy ends with a mark that all of it is on disk: whoever writes it syncs it before it gets its
//! name.

use super::{encode, encode_with, Body, Operation, Record, Trailer};
use crate::ids::{ClusterId, Epoch, Seq};
use thiserror::Error;

/// Fields of a mark that name the file that it stands in, or another one. Source: *Fields* in `docs/FORMATS.md`.
const OF_FILES: [&[u8]; 2] = [b"continued", b"continues"];

/// Why there is no such copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum NotCopied {
    /// It has no CLUSTER line: no master has served it yet.
    #[error("it names no cluster: no master has served it yet")]
    NoCluster,
    /// The log ends before that record.
    #[error("it ends with seq {0}")]
    TooShort(Seq),
    /// What was overwritten and deleted up to that record is gone, so nobody knows what there was before.
    #[error("it was compacted through seq {0}: what was overwritten or deleted before is gone, so that is the earliest")]
    Compacted(Seq),
    /// The CLUSTER line has fields that this version would lose.
    #[error("its CLUSTER line has fields that this version does not write")]
    ClusterLine,
}

/// What is in a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CopiedLog {
    /// The cluster of the log that was copied.
    pub cluster: ClusterId,
    /// The epoch of its last record.
    pub epoch: Epoch,
    /// Its last record.
    pub seq: Seq,
    /// How many records there are.
    pub records: u64,
}

/// Copies a log line by line. It is given each good line, in order.
#[derive(Clone, Debug)]
pub struct LogCopier {
    /// The last record to copy.
    until: Option<Seq>,
    /// The cluster of the copy, if it is another one.
    new_cluster: Option<ClusterId>,
    compacted: CompactedPart,
    cluster: Option<ClusterId>,
    seq: Seq,
    epoch: Epoch,
    records: u64,
    /// Whether the last line of the copy is a mark that all before it is on disk.
    ends_with_mark: bool,
    /// Whether a record after `until` was seen.
    is_past: bool,
}

impl LogCopier {
    /// A copier of all records, or of those through `until`. With `new_cluster` the copy is the log of that cluster.
    pub fn new(until: Option<Seq>, new_cluster: Option<ClusterId>) -> Self {
        LogCopier {
            until,
            new_cluster,
            compacted: CompactedPart::default(),
            cluster: None,
            seq: Seq(0),
            epoch: Epoch(0),
            records: 0,
            ends_with_mark: false,
            is_past: false,
        }
    }

    /// Takes the next line of the log, with its newline, and appends to `out` what is in the copy.
    ///
    /// # Errors
    /// [`NotCopied::ClusterLine`]. Nothing more may be asked then.
    pub fn take(&mut self, record: &Record<'_>, line: &[u8], out: &mut Vec<u8>) -> Result<(), NotCopied> {
        self.compacted.take(record);
        self.is_past |= self.until.is_some_and(|until| record.seq > until);
        if self.is_past {
            return Ok(());
        }
        match record.body {
            Body::Cluster(id) => {
                self.cluster = Some(id);
                self.put_cluster(record, line, out)?;
            }
            Body::Synced if names_files(record) => {
                // Where it bridges a gap, too, that is kept.
                let Some(after) = record.after else { return Ok(()) };
                let fields: Vec<_> = record
                    .fields
                    .filter(|(name, _)| !OF_FILES.contains(name) && *name != b"After")
                    .map(|(name, value)| (String::from_utf8_lossy(name).into_owned(), value.to_bytes()))
                    .collect();
                let fields: Vec<_> = fields.iter().map(|(name, value)| (&name[..], &value[..])).collect();
                let trailer = Trailer::new(record.seq, record.epoch, record.synced);
                let trailer = Trailer { after: Some(after), fields: &fields, ..trailer };
                encode_with(&Operation::Synced, trailer, out);
            }
            Body::Synced
            | Body::Epoch { .. }
            | Body::Write(_)
            | Body::Delete(_)
            | Body::Apply(_)
            | Body::Members(_) => out.extend_from_slice(line),
        }
        let is_mark = matches!(record.body, Body::Synced);
        self.records += u64::from(!is_mark);
        self.ends_with_mark = is_mark && record.synced == record.seq;
        (self.seq, self.epoch) = (record.seq, record.epoch);
        Ok(())
    }

    fn put_cluster(&self, record: &Record<'_>, line: &[u8], out: &mut Vec<u8>) -> Result<(), NotCopied> {
        let Some(new) = self.new_cluster else {
            out.extend_from_slice(line);
            return Ok(());
        };
        let before = out.len();
        encode(&Operation::Cluster(new), record.seq, record.epoch, record.synced, out);
        if out.len() - before == line.len() {
            return Ok(());
        }
        Err(NotCopied::ClusterLine)
    }

    /// Whether nothing that follows in the log changes the copy, or whether there is one.
    pub fn is_done(&self) -> bool {
        self.is_past && self.compacted.is_known()
    }

    /// Ends the copy: appends the mark that all of it is on disk. To be called after the log's last line, or once the copy is
    /// [done](Self::is_done).
    ///
    /// # Errors
    /// Why there is no copy through that record.
    pub fn end(&self, out: &mut Vec<u8>) -> Result<CopiedLog, NotCopied> {
        let Some(cluster) = self.cluster else { return Err(NotCopied::NoCluster) };
        if let Some(until) = self.until {
            let earliest = self.compacted.earliest();
            if until < earliest {
                return Err(NotCopied::Compacted(earliest));
            }
            if !self.is_past && until > self.seq {
                return Err(NotCopied::TooShort(self.seq));
            }
        }
        if !self.ends_with_mark {
            encode(&Operation::Synced, self.seq, self.epoch, self.seq, out);
        }
        Ok(CopiedLog { cluster, epoch: self.epoch, seq: self.seq, records: self.records })
    }
}

fn names_files(record: &Record<'_>) -> bool {
    let mut fields = record.fields;
    fields.any(|(name, _)| OF_FILES.contains(&name))
}

/// Finds out through which record a log may have been compacted.
///
/// Compaction leaves out what later records have overwritten, of a record of several keys also a part. So up to its end the log
/// says what there is, but not what there was. Where that end is stands nowhere. But no line that is written anew says that more
/// is on disk than the one before it ([`Rewriter`](super::Rewriter)), and those that a master has written do, from its first
/// group on.
#[derive(Clone, Copy, Debug, Default)]
struct CompactedPart {
    /// The highest SYNCED so far.
    synced: Seq,
    /// The last record before SYNCED has first risen.
    through: Seq,
    /// Whether it has risen.
    has_risen: bool,
}

impl CompactedPart {
    fn take(&mut self, record: &Record<'_>) {
        // Compaction keeps these two as they are.
        let says_nothing = matches!(record.body, Body::Cluster(_) | Body::Epoch { .. });
        self.has_risen |= record.synced > self.synced && !says_nothing;
        if !self.has_risen {
            self.synced = self.synced.max(record.synced);
            self.through = record.seq;
        }
    }

    /// Whether no further line changes the answer.
    fn is_known(&self) -> bool {
        self.has_risen
    }

    /// The first record at which the log certainly says what there was.
    fn earliest(&self) -> Seq {
        self.through
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{line_bytes_max, Scanner, Step, LOST};
    use bytes::Bytes;

    /// A log of these lines.
    #[derive(Default)]
    struct Log(Vec<u8>);

    impl Log {
        fn line(mut self, operation: &Operation, [seq, epoch, synced]: [u64; 3]) -> Log {
            encode(operation, Seq(seq), Epoch(epoch), Seq(synced), &mut self.0);
            self
        }

        fn write(self, key: &str, numbers: [u64; 3]) -> Log {
            let pair = (Bytes::copy_from_slice(key.as_bytes()), Bytes::from_static(b"value"));
            self.line(&Operation::Write(vec![pair]), numbers)
        }

        fn mark(mut self, [seq, synced]: [u64; 2], after: Option<u64>, fields: &[(&str, &[u8])]) -> Log {
            let trailer =
                Trailer { after: after.map(Seq), fields, ..Trailer::new(Seq(seq), Epoch(1), Seq(synced)) };
            encode_with(&Operation::Synced, trailer, &mut self.0);
            self
        }

        /// Its first lines, as a master begins it.
        fn begun() -> Log {
            let epoch = Operation::Epoch { address: "a:1".into(), mark: None };
            Log::default().line(&Operation::Cluster(ClusterId(0xabc)), [1, 1, 0]).line(&epoch, [2, 1, 0])
        }

        /// Gives all lines to a copier.
        fn copy(&self, mut copier: LogCopier) -> Result<(CopiedLog, String), NotCopied> {
            let (mut scanner, mut rest, mut out) =
                (Scanner::new(line_bytes_max(1000)), &self.0[..], Vec::new());
            while let Step::Record { record, span } = scanner.next(rest) {
                copier.take(&record, &rest[..span.bytes as usize], &mut out)?;
                rest = &rest[span.bytes as usize..];
                if copier.is_done() {
                    rest = &[];
                }
            }
            assert!(rest.is_empty(), "a good log: {}", String::from_utf8_lossy(rest));
            let copied = copier.end(&mut out)?;
            Ok((copied, String::from_utf8(out).expect("text")))
        }
    }

    fn text(log: Log) -> String {
        String::from_utf8(log.0).expect("text")
    }

    fn all() -> LogCopier {
        LogCopier::new(None, None)
    }

    fn until(seq: u64) -> LogCopier {
        LogCopier::new(Some(Seq(seq)), None)
    }

    #[test]
    fn a_copy_has_every_line_and_ends_with_a_mark_that_it_is_on_disk() {
        let log = || Log::begun().mark([2, 2], None, &[]).write("a", [3, 1, 2]).write("b", [4, 1, 2]);
        let (copied, out) = log().copy(all()).expect("a copy");
        assert_eq!(copied, CopiedLog { cluster: ClusterId(0xabc), epoch: Epoch(1), seq: Seq(4), records: 4 });
        assert_eq!(out, text(log().mark([4, 4], None, &[])));
        assert_eq!(log().mark([4, 4], None, &[]).copy(all()), Ok((copied, out)), "no second mark");
    }

    #[test]
    fn a_copy_until_a_record_has_what_there_was_then() {
        let begun = || Log::begun().mark([2, 2], None, &[]).write("a", [3, 1, 2]);
        let log = || begun().mark([3, 3], None, &[]).write("a", [4, 1, 3]).write("c", [5, 1, 3]);
        let (copied, out) = log().copy(until(3)).expect("a copy");
        assert_eq!((copied.seq, copied.records), (Seq(3), 3));
        assert_eq!(out, text(begun().mark([3, 3], None, &[])));
        assert_eq!(log().copy(until(5)).expect("a copy").1, text(log().mark([5, 5], None, &[])));
        assert_eq!(log().copy(until(6)), Err(NotCopied::TooShort(Seq(5))));
        assert_eq!(log().copy(until(1)), Err(NotCopied::Compacted(Seq(2))));
    }

    #[test]
    fn what_a_compacted_log_cannot_tell_any_more_is_refused() {
        // Seqs 3 and 4 are left out, and of 5 perhaps a part; 6 and 7 are live, and 8 was written in the meantime.
        let head = || Log::begun().mark([4, 0], Some(2), &[]).write("b", [5, 1, 0]).write("c", [6, 1, 0]);
        let log = || head().write("d", [7, 1, 0]).write("e", [8, 1, 6]).write("f", [9, 1, 7]);
        for seq in 2..7 {
            assert_eq!(log().copy(until(seq)), Err(NotCopied::Compacted(Seq(7))), "{seq}");
        }
        let (copied, out) = log().copy(until(7)).expect("a copy");
        assert_eq!((copied.seq, copied.records), (Seq(7), 5));
        assert!(out.contains("WRITE d ") && !out.contains("WRITE e "), "{out}");
        // All that stands in such a log is in a copy of it.
        assert_eq!(log().copy(all()).expect("a copy").1, text(log().mark([9, 9], None, &[])));
        // It may have been compacted as a whole.
        assert_eq!(head().copy(until(5)), Err(NotCopied::Compacted(Seq(6))));
    }

    #[test]
    fn marks_that_name_files_are_left_out_but_not_the_gap_before_them() {
        let log = Log::begun()
            .mark([2, 2], None, &[("continues", b"1:2")])
            .write("a", [3, 1, 2])
            .mark([5, 3], Some(3), &[(LOST, b"2"), ("continues", b"1:2")])
            .write("b", [6, 1, 3])
            .mark([6, 5], None, &[("continued", b"1:3:4:5")]);
        let (copied, out) = log.copy(all()).expect("a copy");
        assert_eq!((copied.seq, copied.records), (Seq(6), 4));
        let wanted = Log::begun()
            .write("a", [3, 1, 2])
            .mark([5, 3], Some(3), &[(LOST, b"2")])
            .write("b", [6, 1, 3])
            .mark([6, 6], None, &[]);
        assert_eq!(out, text(wanted));
    }

    #[test]
    fn a_copy_can_be_the_log_of_another_cluster() {
        let log = || Log::begun().write("a", [3, 1, 0]);
        let (copied, out) = log().copy(LogCopier::new(None, Some(ClusterId(0xdef)))).expect("a copy");
        assert_eq!(copied.cluster, ClusterId(0xabc));
        assert!(out.starts_with("CLUSTER 0000000000000def % ;1 1 0 "), "{out}");
        assert_eq!(out.len(), text(log().mark([3, 3], None, &[])).len());
        let legacy = Log(b"WRITE a 1\n".to_vec());
        assert_eq!(legacy.copy(all()), Err(NotCopied::NoCluster));
    }
}
