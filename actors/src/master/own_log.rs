//! This master's log, as far as the master knows it: which one it is, where it ends, what of it is certainly on disk.
//!
//! Owns the port to it and the batch of a turn's appends, so that what is known changes together with what is asked. Never
//! knows what it is made of: [`journal`](crate::journal) does. Never judges whose log counts: the machine of the reign does.

use crate::journal::{CompactionNews, Hindrance, Journal, LogId, LogRequest, NewRecord, Sight, Wording};
use crate::node_error::NodeError;
use dsm_protocol::ids::{ClusterId, Epoch, Seq, Version};
use dsm_protocol::info::MemberInfo;
use dsm_protocol::machine::master::Master;
use dsm_protocol::machine::reign::Leadership;
use dsm_protocol::record::{FileNumber, Position};
use std::cell::Cell;
use std::rc::Rc;
use tokio::sync::oneshot;

/// The log of one master.
pub(super) struct OwnLog {
    journal: Box<dyn Journal>,
    /// What is to be appended at the end of the turn.
    appends: Vec<NewRecord>,
    /// Which cluster's it is, shared with the links to other masters.
    cluster: Rc<Cell<Option<ClusterId>>>,
    /// Which log was replayed or written last.
    followed: Option<LogId>,
    /// The place through which that is known to be on disk.
    durable: Position,
    /// What is seen of the log that is followed.
    sight: Sight,
    caught_up: bool,
    bytes: u64,
    seq: Seq,
    /// What keeps this master from having a part in it, in words.
    kept_out: Option<String>,
    /// Who keeps it, and what changes of that, where masters on several machines do.
    members: (Vec<MemberInfo>, String),
    /// Why this master leads no more, until it ends for that.
    deposed: Option<NodeError>,
    /// Who waits until all records through a seq are taken in.
    settling: Option<(Seq, oneshot::Sender<()>)>,
    /// Who waits until nothing is read from a file any more.
    unread: Vec<(FileNumber, oneshot::Sender<()>)>,
    compactions: Compactions,
}

/// What is known of compactions, for INFO.
#[derive(Clone, Debug, Default)]
pub(super) struct Compactions {
    /// How many bytes of how many are gone through, while one runs.
    pub(super) running: Option<(u64, u64)>,
    /// How many there were since the start.
    pub(super) done: u64,
    /// How many came to nothing.
    pub(super) failed: u64,
    /// How long the last one took, in milliseconds.
    pub(super) took_ms: u64,
    /// How long writes waited for it, in microseconds.
    pub(super) held_us: u64,
    /// Whether writes wait for one, or for what follows it.
    pub(super) paces: bool,
    /// Why the last try came to nothing.
    pub(super) hindrance: Option<String>,
}

impl OwnLog {
    /// A log of which nothing is replayed.
    pub(super) fn new(journal: Box<dyn Journal>, cluster: Rc<Cell<Option<ClusterId>>>) -> Self {
        OwnLog {
            journal,
            appends: Vec::new(),
            cluster,
            followed: None,
            durable: Position::default(),
            sight: Sight::Follows,
            caught_up: false,
            bytes: 0,
            seq: Seq::default(),
            kept_out: None,
            members: Default::default(),
            deposed: None,
            settling: None,
            unread: Vec::new(),
            compactions: Compactions::default(),
        }
    }

    /// Asks for something that changes nothing of what is known. [`follow`](Self::follow) and
    /// [`follow_anew`](Self::follow_anew) do, and appends go as one batch.
    pub(super) fn ask(&mut self, request: LogRequest) {
        debug_assert!(
            !matches!(request, LogRequest::Follow | LogRequest::FollowAnew | LogRequest::Append { .. }),
            "these have methods of their own"
        );
        self.journal.ask(request);
    }

    /// Says that this master makes progress: one that does not loses its leadership.
    pub(super) fn advance(&self) {
        self.journal.advance();
    }

    /// Whether answers wait until others confirm that this master leads.
    pub(super) fn confirms(&self) -> bool {
        self.journal.confirms()
    }

    /// What is said of it to people.
    pub(super) fn words(&self, wording: Wording<'_>) -> String {
        self.journal.words(wording)
    }

    /// What keeps a master that leads from serving: that its log was seen not to continue what was replayed, or lacks something.
    pub(super) fn hindrance<'a>(&'a self, reign: &'a Leadership) -> Option<Hindrance<'a>> {
        if reign.is_barred() && !self.follows() {
            return Some(self.barred());
        }
        reign.lacking().map(Hindrance::Lacks)
    }

    /// What is seen of the log, to be said as what keeps this master from serving.
    pub(super) fn barred(&self) -> Hindrance<'_> {
        Hindrance::Barred { sight: &self.sight, seq: self.seq }
    }

    /// Adds to what is appended at the end of the turn.
    pub(super) fn append(&mut self, record: NewRecord) {
        self.appends.push(record);
    }

    /// What is to be appended goes to the log as one batch.
    pub(super) fn send_appends(&mut self) {
        if self.appends.is_empty() {
            return;
        }
        let changes = std::mem::take(&mut self.appends);
        self.journal.ask(LogRequest::Append { changes });
    }

    /// Follows the log from where it was closed.
    pub(super) fn follow(&mut self) {
        self.caught_up = false;
        self.journal.ask(LogRequest::Follow);
    }

    /// Forgets what was replayed. Nor does this master name that log's epoch to others any more.
    pub(super) fn follow_anew(&mut self) {
        self.sight = Sight::Follows;
        (self.followed, self.durable) = (None, Position::default());
        // Whoever asks what is taken in waits until it is told again.
        self.seq = Seq(0);
        self.journal.ask(LogRequest::FollowAnew);
    }

    /// A part of a log is replayed.
    pub(super) fn note_replayed(&mut self, log: Option<LogId>, end: &Position, durable: Position) {
        (self.followed, self.durable) = (log, durable);
        (self.bytes, self.seq) = (end.offset, end.seq);
    }

    /// All that there is was replayed; whether that is new since this log is followed.
    pub(super) fn note_caught_up(&mut self) -> bool {
        !std::mem::replace(&mut self.caught_up, true)
    }

    /// What is seen of the log that is followed.
    pub(super) fn note_sight(&mut self, sight: Sight) {
        self.sight = sight;
    }

    /// The log is open, and on disk to its end.
    pub(super) fn note_opened(&mut self, log: LogId, end: Position) {
        (self.followed, self.durable) = (Some(log), end);
    }

    /// A reign has begun with the record of this version. Nobody hears of a new cluster before it is on disk.
    pub(super) fn note_begun(&mut self, cluster: ClusterId, version: Version, bytes: u64) {
        self.cluster.set(Some(cluster));
        (self.seq, self.bytes) = (version.seq, bytes);
    }

    /// The log has so many bytes by now.
    pub(super) fn note_bytes(&mut self, bytes: u64) {
        self.bytes = bytes;
    }

    /// The record of this seq is written.
    pub(super) fn note_written(&mut self, seq: Seq) {
        self.seq = seq;
    }

    /// Answers once all records through `through` are taken in.
    pub(super) fn settle(&mut self, through: Seq, answer: oneshot::Sender<()>) {
        self.settling = Some((through, answer));
    }

    /// Answers once nothing is read from that file any more.
    pub(super) fn await_unread(&mut self, file: FileNumber, answer: oneshot::Sender<()>) {
        self.unread.push((file, answer));
    }

    /// Answers those for whom it is time.
    pub(super) fn answer_waiting(&mut self, machine: &Master) {
        if let Some((through, _)) = &self.settling {
            if self.seq >= *through && machine.has_taken_in(*through) {
                if let Some((_, answer)) = self.settling.take() {
                    let _ = answer.send(());
                }
            }
        }
        let is_read = |(file, _): &mut (FileNumber, _)| !machine.reads_from(*file);
        for (_, answer) in self.unread.extract_if(.., is_read) {
            let _ = answer.send(());
        }
    }

    /// Whether this master's log is its own file, which it has compacted whoever leads.
    pub(super) fn is_own(&self) -> bool {
        self.journal.confirms() && self.caught_up
    }

    /// Has the log compacted if it is time for that.
    pub(super) fn weigh(&mut self, live_bytes: u64) {
        let log_bytes = self.bytes;
        self.journal.ask(LogRequest::Weigh { log_bytes, live_bytes });
    }

    /// The log was compacted.
    pub(super) fn note_replaced(&mut self, log: LogId, bytes: u64) {
        (self.followed, self.bytes) = (Some(log), bytes);
    }

    /// How a compaction goes.
    pub(super) fn note_compaction(&mut self, news: CompactionNews) {
        let known = &mut self.compactions;
        if let CompactionNews::Paces(paces) = news {
            known.paces = paces;
            return;
        }
        known.running = None;
        match news {
            CompactionNews::Paces(_) => {}
            CompactionNews::Copying { bytes, of } => known.running = Some((bytes, of)),
            CompactionNews::Done { took_ms, held_us } => {
                known.done += 1;
                (known.took_ms, known.held_us, known.hindrance) = (took_ms, held_us, None);
            }
            CompactionNews::Failed(why) => {
                known.failed += 1;
                known.hindrance = Some(why);
            }
            CompactionNews::GivenUp => {}
            CompactionNews::NoRoom { needed_bytes, free_bytes } => {
                known.hindrance =
                    Some(format!("a copy takes {needed_bytes} bytes, and the disk has {free_bytes}"));
            }
        }
    }

    /// What is known of compactions.
    pub(super) fn compactions(&self) -> &Compactions {
        &self.compactions
    }

    /// The log is closed, and on disk to its end, which is given with the cluster.
    pub(super) fn note_closed(&mut self, end: Position) -> Position {
        self.durable = end;
        (self.bytes, self.seq) = (end.offset, end.seq);
        Position { cluster: self.cluster.get(), ..end }
    }

    /// What keeps this master from having a part in it.
    pub(super) fn note_kept_out(&mut self, why: Option<String>) {
        self.kept_out = why;
    }

    /// Notes who keeps it with others, and what changes of that.
    pub(super) fn note_members(&mut self, members: Vec<MemberInfo>, change: String) {
        self.members = (members, change);
    }

    /// Who keeps it, and what changes of that, for INFO.
    pub(super) fn members(&self) -> (Vec<MemberInfo>, String) {
        self.members.clone()
    }

    /// The addresses of those who keep it, too, and are silent.
    pub(super) fn silent_members(&self) -> Vec<String> {
        let silent = self.members.0.iter().filter(|member| member.seen == MemberInfo::SILENT);
        silent.map(|member| member.address.clone()).collect()
    }

    /// What keeps this master from having a part in it, in words.
    pub(super) fn kept_out(&self) -> Option<&str> {
        self.kept_out.as_deref()
    }

    /// This master leads no more, for this reason.
    pub(super) fn note_deposed(&mut self, error: NodeError) {
        self.deposed = Some(error);
    }

    /// Why this master leads no more, for the node to end with.
    pub(super) fn take_deposed(&mut self) -> Option<NodeError> {
        self.deposed.take()
    }

    /// Names the cluster, as long as nobody has.
    pub(super) fn name_cluster(&mut self, cluster: ClusterId) {
        if self.cluster.get().is_none() {
            self.cluster.set(Some(cluster));
        }
    }

    /// Whose log it is, once that is on disk.
    pub(super) fn cluster(&self) -> Option<ClusterId> {
        self.cluster.get()
    }

    /// Which log was replayed or written last.
    pub(super) fn followed(&self) -> Option<LogId> {
        self.followed
    }

    /// The one that this master would take over from: not one that it has replayed and sees no more.
    pub(super) fn may_be_taken_over(&self) -> Option<LogId> {
        self.followed.filter(|_| self.follows())
    }

    /// Whether all that there was when the log was last followed anew is replayed.
    pub(super) fn is_caught_up(&self) -> bool {
        self.caught_up
    }

    /// What is seen of the log that is followed.
    pub(super) fn sight(&self) -> &Sight {
        &self.sight
    }

    /// Whether what is seen continues what was replayed.
    pub(super) fn follows(&self) -> bool {
        self.sight == Sight::Follows
    }

    /// The epoch of the last EPOCH record that is certainly on disk.
    pub(super) fn durable_epoch(&self) -> Epoch {
        self.durable.epoch
    }

    /// How long it is, in bytes.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The seq of its last record.
    pub(super) fn seq(&self) -> Seq {
        self.seq
    }
}
