//! Makes the logs that are damaged: written as the log writer writes them, with the facts about every line beside the
//! bytes.

use bytes::Bytes;
use dsm_protocol::ids::{ClusterId, Epoch, Seq, Version};
use dsm_protocol::record::{
    encode_with, line_bytes_max, KeyEffect, Operation, Position, Scanner, Step, Trailer,
};

/// The longest line that a scan takes.
pub(crate) const LINE_MAX: usize = line_bytes_max(1 << 20);

/// A small random generator with a seed (splitmix64), so that every run gets the same log.
pub(crate) struct Numbers(pub(crate) u64);

impl Numbers {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    /// A number below `end`.
    pub(crate) fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    pub(crate) fn one_in(&mut self, chances: usize) -> bool {
        self.below(chances) == 0
    }

    pub(crate) fn bytes(&mut self, length: usize) -> Bytes {
        (0..length).map(|_| self.next() as u8).collect()
    }

    fn key(&mut self) -> Bytes {
        match self.below(10) {
            0 => {
                let length = 1 + self.below(12);
                self.bytes(length)
            }
            1 => Bytes::from_static(b";% \n\0\x7f"),
            2 => Bytes::from("größe\u{30ad}\u{30fc}"),
            3 => Bytes::from_static(b"WRITE"),
            4 => Bytes::new(),
            _ => Bytes::from(format!("user{}", self.below(200))),
        }
    }

    fn value(&mut self) -> Bytes {
        match self.below(12) {
            0 => {
                let length = self.below(60);
                self.bytes(length)
            }
            1 => Bytes::new(),
            2 => Bytes::from_static(b"SYNCED % % ;9 9 9"),
            3 => Bytes::from_static(b"two words, 100%\n"),
            _ => Bytes::from("v".repeat(self.below(40)) + &self.below(1000).to_string()),
        }
    }

    fn operation(&mut self) -> Operation {
        let keys = if self.one_in(8) { 2 + self.below(3) } else { 1 };
        if self.one_in(6) {
            return Operation::Delete((0..keys).map(|_| self.key()).collect());
        }
        if self.one_in(8) {
            let effect = |numbers: &mut Self| match numbers.one_in(3) {
                true => KeyEffect::Del { key: numbers.key() },
                false => KeyEffect::Set { key: numbers.key(), value: numbers.value(), expires: None },
            };
            return Operation::Apply((0..keys + 1).map(|_| effect(self)).collect());
        }
        Operation::Write((0..keys).map(|_| (self.key(), self.value())).collect())
    }

    /// Fields for some lines: those of a client's retry and of an expiry, and an unknown one.
    fn fields(&mut self) -> Vec<(&'static str, Bytes)> {
        let mut fields = Vec::new();
        if self.one_in(4) {
            fields.push(("client", Bytes::from(self.below(99).to_string())));
            fields.push(("request", Bytes::from(self.next().to_string())));
        }
        if self.one_in(12) {
            fields.push(("expires", Bytes::from("1790000000000")));
            fields.push(("note", self.value()));
        }
        fields
    }
}

/// One line as it was written.
pub(crate) struct Line {
    pub(crate) start: usize,
    pub(crate) end: usize,
    pub(crate) operation: Operation,
    /// The number of records before it; marks do not count.
    pub(crate) records_before: u64,
    fields: Vec<(&'static str, Bytes)>,
    after: Option<Seq>,
    /// Seq, epoch and SYNCED; `None` for a line of the original program.
    trailer: Option<(Seq, Epoch, Seq)>,
}

impl Line {
    /// The version of what the line writes.
    pub(crate) fn version(&self) -> Version {
        let (seq, epoch, _) = self.trailer.unwrap_or_default();
        Version { epoch, seq }
    }
}

/// The lines that are written between two syncs: under `--fsync always` one group of lines, under `everysec` many. A
/// mark is a unit of its own, for which no client waits.
pub(crate) struct Unit {
    pub(crate) start: usize,
    pub(crate) end: usize,
}

/// A log that is being written.
pub(crate) struct Log {
    pub(crate) bytes: Vec<u8>,
    pub(crate) lines: Vec<Line>,
    pub(crate) units: Vec<Unit>,
    /// A scanner's place before each line, and at the end.
    pub(crate) positions: Vec<Position>,
    /// Where the first line with a checksum begins.
    pub(crate) checked_from: usize,
    /// Everything before this was synced before the log was first opened, so no crash can have interrupted its write.
    pub(crate) written_from: usize,
    seq: u64,
    epoch: u64,
    synced: u64,
    records: u64,
    unit_start: usize,
    numbers: Numbers,
}

impl Log {
    fn empty(seed: u64) -> Log {
        Log {
            bytes: Vec::new(),
            lines: Vec::new(),
            units: Vec::new(),
            positions: Vec::new(),
            checked_from: 0,
            written_from: 0,
            seq: 0,
            epoch: 1,
            synced: 0,
            records: 0,
            unit_start: 0,
            numbers: Numbers(seed),
        }
    }

    /// `records` records and a few more under `--fsync always`: each group is on disk before the next one begins. The
    /// last line is a mark that covers all of it.
    pub(crate) fn always(seed: u64, records: u64) -> Log {
        let mut log = Log::empty(seed);
        log.begin();
        while log.records < records {
            log.group();
            log.sync();
            if log.numbers.one_in(12) {
                log.mark();
            }
        }
        log.mark();
        log.finished()
    }

    /// The same under `--fsync everysec`: many groups are written from one sync to the next.
    pub(crate) fn everysec(seed: u64, records: u64) -> Log {
        let mut log = Log::empty(seed);
        log.begin();
        while log.records < records {
            for _ in 0..1 + log.numbers.below(12) {
                log.group();
            }
            log.sync();
        }
        log.mark();
        log.finished()
    }

    /// A log whose first `live` records are what a compaction left: gaps in the seqs, one sync for all of them.
    pub(crate) fn compacted(seed: u64, live: u64, records: u64) -> Log {
        let mut log = Log::empty(seed);
        log.line(Operation::Cluster(ClusterId(7)));
        while log.records < live {
            let before = log.seq;
            log.epoch += u64::from(log.numbers.one_in(10));
            log.seq += log.numbers.below(4) as u64;
            let operation = log.numbers.operation();
            log.line_after((log.seq != before).then_some(Seq(before)), operation);
        }
        // Records that were left out at the end count too.
        let before = log.seq;
        log.seq += 5;
        log.sync();
        log.line_after(Some(Seq(before)), Operation::Synced);
        log.sync();
        log.written_from = log.bytes.len();
        while log.records < records {
            log.group();
            log.sync();
        }
        log.mark();
        log.finished()
    }

    /// A log that begins with lines of the original program.
    pub(crate) fn imported(seed: u64, records: u64) -> Log {
        let mut log = Log::empty(seed);
        for number in 0..30 {
            let start = log.bytes.len();
            let (key, value) = (format!("user{number}"), "words of a value ".repeat(number % 4));
            log.bytes.extend_from_slice(format!("WRITE {key} {value}\n").as_bytes());
            log.seq += 1;
            let operation = Operation::Write(vec![(key.into(), value.into())]);
            log.note(start, operation, Vec::new(), None, None);
        }
        log.checked_from = log.bytes.len();
        log.written_from = log.bytes.len();
        log.sync();
        log.begin();
        while log.records < records {
            log.group();
            log.sync();
        }
        log.mark();
        log.finished()
    }

    /// The first group of a log.
    fn begin(&mut self) {
        self.line(Operation::Cluster(ClusterId(0x7f3a_9c0e_51d2_4b88)));
        self.line(epoch());
        self.sync();
    }

    /// Writes a group of new records, at a takeover with EPOCH first. Its lines carry the seq of the last sync.
    fn group(&mut self) {
        if self.numbers.one_in(60) {
            self.epoch += 1 + self.numbers.below(3) as u64;
            self.line(epoch());
        }
        // One client, some clients, and now and then a group of several sectors and pages.
        let writes = match self.numbers.below(40) {
            0..=19 => 1,
            20..=38 => 2 + self.numbers.below(5),
            _ => 40 + self.numbers.below(40),
        };
        for _ in 0..writes {
            let operation = self.numbers.operation();
            self.line(operation);
        }
    }

    /// Everything so far is on disk, and the next lines will say so.
    fn sync(&mut self) {
        self.synced = self.seq;
        if self.unit_start < self.bytes.len() {
            self.units.push(Unit { start: self.unit_start, end: self.bytes.len() });
            self.unit_start = self.bytes.len();
        }
    }

    fn mark(&mut self) {
        self.line(Operation::Synced);
        self.sync();
    }

    fn line(&mut self, operation: Operation) {
        self.line_after(None, operation);
    }

    fn line_after(&mut self, after: Option<Seq>, operation: Operation) {
        let start = self.bytes.len();
        self.seq += u64::from(operation != Operation::Synced);
        let fields = match operation {
            Operation::Write(_) | Operation::Delete(_) | Operation::Apply(_) => self.numbers.fields(),
            _ => Vec::new(),
        };
        let borrowed: Vec<_> = fields.iter().map(|(name, value)| (*name, &value[..])).collect();
        let (seq, epoch, synced) = (Seq(self.seq), Epoch(self.epoch), Seq(self.synced));
        let trailer = Trailer { after, fields: &borrowed, ..Trailer::new(seq, epoch, synced) };
        encode_with(&operation, trailer, &mut self.bytes);
        self.note(start, operation, fields, after, Some((seq, epoch, synced)));
    }

    fn note(
        &mut self,
        start: usize,
        operation: Operation,
        fields: Vec<(&'static str, Bytes)>,
        after: Option<Seq>,
        trailer: Option<(Seq, Epoch, Seq)>,
    ) {
        let records_before = self.records;
        self.records += u64::from(operation != Operation::Synced);
        let end = self.bytes.len();
        self.lines.push(Line { start, end, operation, records_before, fields, after, trailer });
    }

    /// Scans the log from the start, compares every line with what was written, and keeps the places between lines.
    fn finished(mut self) -> Log {
        let mut scanner = Scanner::new(LINE_MAX);
        for line in &self.lines {
            self.positions.push(scanner.position());
            let Step::Record { record, span } = scanner.next(&self.bytes[line.start..]) else {
                panic!("the line at {} is not good", line.start)
            };
            assert_eq!((span.offset as usize, span.bytes as usize), (line.start, line.end - line.start));
            assert_eq!(record.to_operation(), line.operation);
            match line.trailer {
                Some(trailer) => assert_eq!((record.seq, record.epoch, record.synced), trailer),
                None => assert_eq!((record.seq.0, record.epoch.0), (line.records_before + 1, 0)),
            }
            assert_eq!(record.after, line.after);
            let mut fields = record.fields.filter(|(name, _)| *name != b"After");
            for (name, value) in &line.fields {
                let (found, found_value) = fields.next().expect("a field is missing");
                assert_eq!((found, &found_value.decode()[..]), (name.as_bytes(), &value[..]));
            }
            assert!(fields.next().is_none(), "a field too many");
        }
        self.positions.push(scanner.position());
        assert!(scanner.finish(&[]).is_none());
        assert_eq!(scanner.position().offset as usize, self.bytes.len());
        self
    }

    /// The number, from 0, of the line that holds the byte at `at`.
    pub(crate) fn line_at(&self, at: usize) -> usize {
        self.lines.partition_point(|line| line.end <= at)
    }

    /// Whether a line is a mark.
    pub(crate) fn is_mark(&self, line: usize) -> bool {
        self.lines[line].operation == Operation::Synced
    }

    /// How many records are before the line with this number.
    pub(crate) fn records_before(&self, line: usize) -> u64 {
        self.lines.get(line).map_or(self.records, |line| line.records_before)
    }
}

fn epoch() -> Operation {
    Operation::Epoch { address: "127.0.0.1:12345".to_owned(), mark: None }
}
