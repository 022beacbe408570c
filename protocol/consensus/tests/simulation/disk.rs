//! A member's disk: what is synced, what is being synced, and what a power loss leaves of it.

use dsm_consensus::ids::MemberId;
use dsm_consensus::machine::{BatchNumber, LogBatch, StreamNumber};
use dsm_consensus::members::Members;
use dsm_consensus::vote::{VoteRecord, SLOT_BYTES};
use dsm_consensus::LogEntry;
use dsm_protocol::ids::{ClusterId, Epoch, Seq, Version};
use std::collections::VecDeque;

/// One thing that is written and, where the next rests on it, synced.
enum Step {
    Vote(VoteRecord),
    Install(StreamNumber, Version),
    CutAfter(Seq),
    Entry(LogEntry),
}

/// The new file of a stream.
struct NewFile {
    stream: StreamNumber,
    bytes: Vec<u8>,
    is_synced: bool,
}

pub(crate) struct Disk {
    pub(crate) vote_file: Vec<u8>,
    /// The compacted part of the log's file: a line with a name that no other file has, and one for each entry through the base.
    pub(crate) compacted: Vec<u8>,
    pub(crate) base: Version,
    /// The entries after it.
    pub(crate) log: Vec<LogEntry>,
    is_compacted_synced: bool,
    new_file: Option<NewFile>,
    files: u64,
    pub(crate) installed: u64,
    waiting: VecDeque<LogBatch>,
    syncing: Vec<LogBatch>,
    pub(crate) cuts: u64,
    pub(crate) torn: u64,
}

impl Disk {
    /// An empty disk.
    pub(crate) fn new() -> Self {
        Disk {
            vote_file: Vec::new(),
            compacted: Vec::new(),
            base: Version::default(),
            is_compacted_synced: true,
            new_file: None,
            files: 0,
            installed: 0,
            log: Vec::new(),
            waiting: VecDeque::new(),
            syncing: Vec::new(),
            cuts: 0,
            torn: 0,
        }
    }

    /// The disk of a member that has taken its number.
    pub(crate) fn takes_number(&mut self, cluster: ClusterId, member: MemberId, commit: Seq) {
        let vote = VoteRecord { number: 0, cluster, member, term: Epoch(1), vote: None, commit };
        self.vote_file = vote.new_file();
    }

    /// The log of the member that begins a cluster.
    pub(crate) fn begins_cluster(&mut self, members: &Members) {
        let entry =
            |seq, data: String| LogEntry { version: Version::new(1, seq), data: data.into_bytes().into() };
        self.log = vec![entry(1, "CLUSTER".to_owned()), entry(2, members.to_string())];
    }

    /// A file that was compacted through its last entry.
    pub(crate) fn has_file(&mut self, entries: &[LogEntry]) {
        self.compacted = b"file of old\n".to_vec();
        entries.iter().for_each(|entry| self.compacted.extend(Self::line(entry).into_bytes()));
        self.base = entries.last().map_or(Version::default(), |entry| entry.version);
    }

    /// All entries, those of the compacted part, too.
    pub(crate) fn entries(&self) -> Vec<LogEntry> {
        let lines = String::from_utf8_lossy(self.compacted_lines());
        let compacted = lines.lines().filter_map(|line| {
            let (version, data) = line.split_once('=')?;
            let (term, seq) = version.split_once('.')?;
            let version = Version::new(term.parse().ok()?, seq.parse().ok()?);
            Some(LogEntry { version, data: data.as_bytes().to_vec().into() })
        });
        compacted.chain(self.log.iter().cloned()).collect()
    }

    /// The log ends with this entry from now on.
    pub(crate) fn ends_with(&mut self, entry: &LogEntry) {
        self.log.truncate(self.place(entry.version.seq).unwrap_or(0));
        self.log.push(entry.clone());
    }

    /// The records of the members.
    pub(crate) fn records(&self) -> Vec<(Seq, Members)> {
        let entries = self.entries().into_iter();
        entries.filter_map(|entry| Some((entry.version.seq, Members::parse(&entry.data)?))).collect()
    }

    /// The members by the last of them.
    pub(crate) fn members(&self) -> Members {
        self.records().pop().map_or(Members::default(), |(_, members)| members)
    }

    /// The records of the members, through this seq or the base.
    pub(crate) fn records_through(&self, seq: Seq) -> Vec<(Seq, Members)> {
        let is_there = |at: &Seq| *at <= seq.max(self.base.seq);
        self.records().into_iter().filter(|(at, _)| is_there(at)).collect()
    }

    /// Whether a start would know of these members, or of later ones, that they are committed.
    pub(crate) fn knows_for_good(&self, members: &Members) -> bool {
        let commit = VoteRecord::of_file(&self.vote_file).map_or(Seq(0), |vote| vote.commit);
        self.records_through(commit).iter().any(|(_, known)| known == members)
    }

    /// How many records of the members are in the log, or on their way there, after this seq.
    pub(crate) fn records_after(&self, seq: Seq) -> usize {
        let batches = self.waiting.iter().chain(&self.syncing).flat_map(|batch| &batch.entries);
        let is_one = |entry: &&LogEntry| entry.version.seq > seq && Members::parse(&entry.data).is_some();
        self.log.iter().chain(batches).filter(is_one).count()
    }

    /// The line of an entry in the compacted part.
    pub(crate) fn line(entry: &LogEntry) -> String {
        format!("{}={}\n", entry.version, String::from_utf8_lossy(&entry.data))
    }

    /// The lines of the compacted part, without the file's name.
    pub(crate) fn compacted_lines(&self) -> &[u8] {
        let name = self.compacted.iter().position(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        &self.compacted[name..]
    }

    /// The place of an entry among those after the base.
    pub(crate) fn place(&self, seq: Seq) -> Option<usize> {
        (seq.0 as usize).checked_sub(self.base.seq.0 as usize + 1)
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.syncing.is_empty() && self.waiting.is_empty()
    }

    /// Compacts everything through this version: written beside the log, synced and swapped in.
    pub(crate) fn compact(&mut self, member: usize, base: Version) {
        let taken = self.place(base.seq).expect("it is after the base") + 1;
        self.files += 1;
        let mut compacted =
            format!("file {}{} of {member}\n", "x".repeat(self.files as usize % 7), self.files);
        compacted.push_str(&String::from_utf8_lossy(self.compacted_lines()));
        self.log.drain(..taken).for_each(|entry| compacted.push_str(&Self::line(&entry)));
        self.compacted = compacted.into_bytes();
        self.is_compacted_synced = true;
        self.base = base;
    }

    /// A chunk of the compacted part, and whether it is the last one.
    pub(crate) fn chunk(&self, offset: u64, bytes_max: u64) -> (Vec<u8>, bool) {
        let from = (offset as usize).min(self.compacted.len());
        let to = (from + bytes_max as usize).min(self.compacted.len());
        (self.compacted[from..to].to_vec(), to == self.compacted.len())
    }

    pub(crate) fn write_chunk(&mut self, stream: StreamNumber, offset: u64, data: &[u8]) {
        if offset == 0 {
            self.new_file = Some(NewFile { stream, bytes: Vec::new(), is_synced: false });
        }
        let file = self.new_file.as_mut().filter(|file| file.stream == stream);
        let file = file.expect("the new file is begun");
        file.bytes.resize(offset as usize, 0);
        file.bytes.extend_from_slice(data);
        file.is_synced = false;
    }

    pub(crate) fn sync_stream(&mut self, stream: StreamNumber) {
        if let Some(file) = self.new_file.as_mut().filter(|file| file.stream == stream) {
            file.is_synced = true;
        }
    }

    pub(crate) fn drop_stream(&mut self, stream: StreamNumber) {
        self.new_file.take_if(|file| file.stream == stream);
    }

    pub(crate) fn write(&mut self, batch: LogBatch) {
        self.waiting.push_back(batch);
    }

    /// Begins to sync everything that waits, unless it is busy. Returns whether it has begun.
    pub(crate) fn begins(&mut self) -> bool {
        if self.syncing.is_empty() && !self.waiting.is_empty() {
            self.syncing = self.waiting.drain(..).collect();
            return true;
        }
        false
    }

    /// Everything that was being synced is on disk.
    pub(crate) fn ends(&mut self) -> Option<BatchNumber> {
        let last = self.syncing.last()?.number;
        self.does(u64::MAX);
        Some(last)
    }

    /// The process dies; the system keeps what was being written.
    pub(crate) fn crash(&mut self) {
        self.does(u64::MAX);
        self.waiting.clear();
        self.new_file = None;
    }

    /// The power goes: of what was being synced there is only a part.
    pub(crate) fn power_loss(&mut self, drawn: u64) {
        self.does(drawn);
        self.waiting.clear();
        self.new_file = None;
        if !self.is_compacted_synced {
            self.compacted.truncate(self.compacted.len() / 2);
        }
    }

    /// Does the first steps of what is being synced: all, or as many as is drawn. The one after them may be half done.
    fn does(&mut self, drawn: u64) {
        let batches = std::mem::take(&mut self.syncing);
        let mut steps = Vec::new();
        if let Some((term, vote, commit)) = batches.iter().rev().find_map(|batch| batch.vote) {
            let before = VoteRecord::of_file(&self.vote_file).expect("one slot is whole");
            steps.push(Step::Vote(VoteRecord { number: before.number + 1, term, vote, commit, ..before }));
        }
        for batch in batches {
            steps.extend(batch.install.map(|(stream, base)| Step::Install(stream, base)));
            steps.extend(batch.cut_after.map(Step::CutAfter));
            steps.extend(batch.entries.into_iter().map(Step::Entry));
        }
        let all = drawn == u64::MAX;
        let whole = if all { steps.len() } else { drawn as usize % (steps.len() + 1) };
        for (at, step) in steps.into_iter().enumerate() {
            match step {
                Step::Vote(vote) => {
                    let (begin, slot) = vote.slot();
                    let bytes = if at < whole { SLOT_BYTES } else { (drawn >> 8) as usize % 130 };
                    self.vote_file[begin..begin + bytes].copy_from_slice(&slot[..bytes]);
                    self.torn += u64::from(at >= whole);
                }
                Step::Install(stream, base) if at < whole => self.install(stream, base),
                Step::CutAfter(seq) if at < whole => {
                    self.log.truncate((seq.0 - self.base.seq.0) as usize);
                    self.cuts += 1;
                }
                Step::Entry(entry) if at < whole => {
                    let place = self.place(entry.version.seq).expect("it is after the base");
                    if place < self.log.len() {
                        self.log[place] = entry;
                    } else {
                        assert_eq!(place, self.log.len(), "the file has a gap");
                        self.log.push(entry);
                    }
                }
                Step::Install(..) | Step::CutAfter(_) | Step::Entry(_) => {}
            }
            if at >= whole {
                return;
            }
        }
    }

    /// Renames the stream's file over the log.
    fn install(&mut self, stream: StreamNumber, base: Version) {
        let file = self.new_file.take().filter(|file| file.stream == stream);
        let file = file.expect("the new file is there");
        self.compacted = file.bytes;
        self.is_compacted_synced = file.is_synced;
        self.base = base;
        self.log.clear();
        self.installed += 1;
    }
}
