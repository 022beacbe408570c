//! One rule a test, on one member whose others are played by hand.

use super::*;
use crate::members::NewMachine;
use bytes::Bytes;
use dsm_protocol::ids::ClusterId;

pub(super) fn id(number: u64) -> MemberId {
    MemberId::new(number).unwrap()
}

/// So many members, all with a vote.
pub(super) fn members(count: u64) -> Members {
    let machine = |number| NewMachine { address: format!("10.0.0.{number}:12345"), token: number };
    Members::first(&(1..=count).map(machine).collect::<Vec<NewMachine>>()).unwrap()
}

/// What one of three members has on disk: the first entry, in term 1, and who the members are.
pub(super) fn start(member: u64) -> Start {
    start_of(member, 3)
}

fn start_of(member: u64, count: u64) -> Start {
    let vote = VoteRecord {
        number: 0,
        cluster: ClusterId(7),
        member: id(member),
        term: Epoch(1),
        vote: None,
        commit: Seq(1),
    };
    let first = LogEntry { version: Version::new(1, 1), data: Bytes::from_static(b"CLUSTER") };
    let records = vec![(Seq(1), members(count))];
    Start { vote, base: Version::default(), records, terms: vec![first.version], tail: vec![first] }
}

pub(super) struct TestMember {
    pub(super) machine: Consensus,
    pub(super) now: u64,
}

impl TestMember {
    pub(super) fn new(member: u64, members: u64) -> Self {
        Self::with(Config::new(id(member), 3), &start_of(member, members))
    }

    pub(super) fn with(config: Config, start: &Start) -> Self {
        TestMember { machine: Consensus::new(config, start).unwrap(), now: 0 }
    }

    pub(super) fn step(&mut self, event: Event) -> Vec<Effect> {
        let mut effects = Vec::new();
        self.machine.step(Millis(self.now), event, &mut effects);
        effects
    }

    pub(super) fn tick(&mut self) -> Vec<Effect> {
        self.now += 10;
        self.step(Event::Tick)
    }

    pub(super) fn hear(&mut self, message: Message) -> Vec<Effect> {
        let from = id(message.from);
        self.step(Event::Message { from, message: PeerMessage(message) })
    }

    /// Everything that is to be persisted is, and what follows from it.
    pub(super) fn persist(&mut self, effects: &[Effect]) -> Vec<Effect> {
        let mut then = Vec::new();
        for batch in batches(effects) {
            then.extend(self.step(Event::Persisted(batch.number)));
        }
        then
    }

    /// Elects the first of three members, by the votes of the second.
    fn elected(mut self) -> Self {
        let asked = (0..40).map(|_| self.tick()).find(|effects| !effects.is_empty()).unwrap();
        assert_eq!(words(&asked), ["pre-vote", "pre-vote"]);
        let effects = self.hear(message(MessageType::MsgRequestPreVoteResponse, 2, 2));
        assert_eq!(words(&effects), Vec::<&str>::new(), "a vote is asked for once the own is on disk");
        let asked = self.persist(&effects);
        assert_eq!(words(&asked), ["vote", "vote"]);
        let effects = self.hear(message(MessageType::MsgRequestVoteResponse, 2, 2));
        assert!(effects.contains(&Effect::Elected(Epoch(2))), "{effects:?}");
        self.persist(&effects);
        self
    }

    /// A leader whose first entry is committed.
    pub(super) fn reigning(self) -> Self {
        let mut member = self.elected();
        let effects = member.hear(appended(2, 2));
        assert_eq!(reigns(&effects), Some(Version::new(2, 2)));
        member
    }

    pub(super) fn propose(&mut self, tags: std::ops::Range<u64>) -> Vec<Effect> {
        let entry = |tag| (ProposalTag(tag), Bytes::from(format!("WRITE {tag}")));
        self.step(Event::Propose(tags.map(entry).collect()))
    }
}

pub(super) fn message(kind: MessageType, from: u64, term: u64) -> Message {
    let to = if from == 1 { 2 } else { 1 };
    Message { msg_type: kind, from, to, term, ..Message::default() }
}

/// The second member has the log through this index.
pub(super) fn appended(term: u64, index: u64) -> Message {
    Message { index, ..message(MessageType::MsgAppendResponse, 2, term) }
}

pub(super) fn batches(effects: &[Effect]) -> Vec<&LogBatch> {
    effects
        .iter()
        .filter_map(|effect| if let Effect::Persist(batch) = effect { Some(batch) } else { None })
        .collect()
}

pub(super) fn words(effects: &[Effect]) -> Vec<&'static str> {
    let word = |effect: &Effect| if let Effect::Send(sent) = effect { Some(sent.word()) } else { None };
    effects.iter().filter_map(word).collect()
}

fn reigns(effects: &[Effect]) -> Option<Version> {
    effects.iter().find_map(|effect| if let Effect::Reigns(version) = effect { Some(*version) } else { None })
}

fn tags(effects: &[Effect]) -> Vec<ProposalTag> {
    effects
        .iter()
        .filter_map(|effect| if let Effect::Committed(entries) = effect { Some(entries) } else { None })
        .flatten()
        .filter_map(|entry| entry.tag)
        .collect()
}

#[test]
fn a_member_alone_commits_only_what_is_on_its_disk() {
    let mut alone = TestMember::new(1, 1);
    let effects = (0..40).map(|_| alone.tick()).find(|effects| !effects.is_empty()).unwrap();
    assert!(effects.contains(&Effect::Elected(Epoch(2))), "{effects:?}");
    assert_eq!(reigns(&effects), None);
    let effects = alone.persist(&effects);
    assert_eq!(reigns(&effects), Some(Version::new(2, 2)));
    let proposed = alone.propose(1..3);
    assert_eq!(tags(&proposed), []);
    assert_eq!(tags(&alone.persist(&proposed)), [ProposalTag(1), ProposalTag(2)]);
}

#[test]
fn a_vote_is_answered_once_it_is_on_disk() {
    let mut member = TestMember::new(2, 3);
    let asks = Message { index: 1, log_term: 1, ..message(MessageType::MsgRequestVote, 1, 5) };
    let effects = member.hear(asks);
    assert_eq!(words(&effects), Vec::<&str>::new());
    let batch = batches(&effects)[0].clone();
    assert_eq!(batch.vote, Some((Epoch(5), Some(id(1)), Seq(1))));
    assert_eq!(words(&member.step(Event::Persisted(batch.number))), ["voted"]);
}

#[test]
fn a_leader_commits_with_a_majority_and_tells_what_was_proposed_here() {
    let mut leader = TestMember::new(1, 3).reigning();
    let proposed = leader.propose(1..3);
    assert_eq!(words(&proposed), ["append"], "only the second member has answered so far");
    assert_eq!(tags(&leader.hear(appended(2, 4))), [], "it is not on this disk yet");
    assert_eq!(tags(&leader.persist(&proposed)), [ProposalTag(1), ProposalTag(2)]);
}

#[test]
fn a_conflicting_suffix_is_cut_before_anything_is_appended() {
    let mut member = TestMember::new(2, 3);
    let entry = |term, index| Entry { term, index, data: "x".into(), ..Entry::default() };
    let append = |term: u64, entries: Vec<Entry>| Message {
        index: 1,
        log_term: 1,
        entries: entries.into(),
        ..message(MessageType::MsgAppend, 1, term)
    };
    let effects = member.hear(append(2, vec![entry(2, 2), entry(2, 3)]));
    let batch = batches(&effects)[0].clone();
    assert_eq!((batch.cut_after, batch.entries.len()), (None, 2));
    assert_eq!(words(&effects), Vec::<&str>::new(), "nothing is acknowledged before it is on disk");
    let effects = member.hear(append(4, vec![entry(3, 2)]));
    let batch = batches(&effects)[0].clone();
    assert_eq!((batch.cut_after, batch.entries.len()), (Some(Seq(1)), 1));
    assert_eq!(member.machine.last(), Seq(2));
}

#[test]
fn a_proposal_elsewhere_than_at_the_leader_is_refused_and_sent_nowhere() {
    let mut follower = TestMember::new(2, 3);
    follower.hear(Message { commit: 1, ..message(MessageType::MsgHeartbeat, 1, 2) });
    assert_eq!(follower.machine.leader(), Some(id(1)));
    let refused = Effect::Refused { tags: vec![ProposalTag(1)], why: RefusedBecause::NotLeader };
    assert_eq!(follower.propose(1..2), [refused]);
    assert_eq!(follower.step(Event::Read(ReadTag(1))), [Effect::ReadRefused(ReadTag(1))]);
}

#[test]
fn what_a_deposed_leader_proposed_is_unknown_and_its_reads_are_refused() {
    let mut leader = TestMember::new(1, 3).reigning();
    leader.propose(1..3);
    leader.step(Event::Read(ReadTag(9)));
    let effects = leader.hear(Message { commit: 1, ..message(MessageType::MsgHeartbeat, 2, 3) });
    assert_eq!(effects[0], Effect::Deposed { tags: vec![ProposalTag(1), ProposalTag(2)] });
    assert_eq!(effects[1], Effect::ReadRefused(ReadTag(9)));
    assert!(!leader.machine.term().1);
}

#[test]
fn proposals_beyond_the_bound_are_refused_and_so_are_those_during_a_transfer() {
    let mut config = Config::new(id(1), 3);
    config.message_bytes_max = 10;
    config.uncommitted_bytes_max = 10;
    let mut leader = TestMember::with(config, &start(1)).reigning();
    leader.propose(1..3);
    let refused = |tag, why| Effect::Refused { tags: vec![ProposalTag(tag)], why };
    assert_eq!(leader.propose(3..4), [refused(3, RefusedBecause::Full)]);
    leader.step(Event::Transfer(id(3)));
    assert_eq!(leader.propose(4..5), [refused(4, RefusedBecause::Transferring)]);
    leader.now += 150;
    let late = Effect::TransferFailed { to: id(3), why: TransferFailure::Late };
    assert!(leader.step(Event::Due).contains(&late));
    assert_eq!(leader.propose(5..6), [refused(5, RefusedBecause::Full)]);
}

#[test]
fn a_transfer_is_done_once_the_new_leader_is_heard() {
    let mut leader = TestMember::new(1, 3).reigning();
    assert_eq!(words(&leader.step(Event::Transfer(id(2)))), ["lead"]);
    let failed = |to, why| Effect::TransferFailed { to: id(to), why };
    assert_eq!(leader.step(Event::Transfer(id(3))), [failed(3, TransferFailure::Underway)]);
    let asks = Message {
        index: 2,
        log_term: 2,
        context: Bytes::from_static(b"CampaignTransfer"),
        ..message(MessageType::MsgRequestVote, 2, 3)
    };
    let effects = leader.hear(asks);
    let is_answered =
        |effects: &[Effect]| effects.iter().any(|effect| matches!(effect, Effect::Transferred { .. }));
    assert!(effects.contains(&Effect::Deposed { tags: vec![] }) && !is_answered(&effects), "{effects:?}");
    leader.persist(&effects);
    let effects = leader.hear(Message { commit: 2, ..message(MessageType::MsgHeartbeat, 2, 3) });
    assert!(effects.contains(&Effect::Transferred { to: id(2), term: Epoch(3) }), "{effects:?}");
    leader.now += 1000;
    assert_eq!(leader.step(Event::Due), [], "it is answered once");
}

#[test]
fn a_transfer_that_another_member_gets_in_front_of_has_failed() {
    let mut leader = TestMember::new(1, 3).reigning();
    leader.step(Event::Transfer(id(2)));
    let effects = leader.hear(Message { from: 3, commit: 2, ..message(MessageType::MsgHeartbeat, 2, 3) });
    let failed = Effect::TransferFailed { to: id(2), why: TransferFailure::OtherLeads };
    assert!(effects.contains(&failed), "{effects:?}");
}

#[test]
fn who_does_not_lead_transfers_nothing_and_nobody_transfers_to_itself() {
    let failed = |to, why| Effect::TransferFailed { to: id(to), why };
    let mut follower = TestMember::new(2, 3);
    assert_eq!(follower.step(Event::Transfer(id(1))), [failed(1, TransferFailure::NotLeader)]);
    let mut leader = TestMember::new(1, 3).reigning();
    assert_eq!(leader.step(Event::Transfer(id(1))), [failed(1, TransferFailure::NotEligible)]);
    assert_eq!(leader.step(Event::Transfer(id(9))), [failed(9, TransferFailure::NotEligible)]);
}

#[test]
fn a_leader_whose_disk_hangs_gives_the_leadership_to_who_has_the_most_of_the_log() {
    for hangs in [false, true] {
        let mut leader = TestMember::new(1, 3).reigning();
        let proposed = leader.propose(1..3);
        leader.hear(appended(2, 4));
        leader.hear(Message { from: 3, ..appended(2, 2) });
        if !hangs {
            leader.persist(&proposed);
        }
        let mut tick = || {
            let mut effects = leader.tick();
            effects.extend(leader.hear(message(MessageType::MsgHeartbeatResponse, 2, 2)));
            effects
                .extend(leader.hear(Message { from: 3, ..message(MessageType::MsgHeartbeatResponse, 2, 2) }));
            effects
        };
        assert!((1..100).all(|_| !words(&tick()).contains(&"lead")));
        let effects = tick();
        let asked = effects.iter().find_map(|effect| {
            let Effect::Send(sent) = effect else { return None };
            if sent.word() == "lead" {
                sent.to()
            } else {
                None
            }
        });
        assert_eq!(asked, hangs.then(|| id(2)), "{effects:?}");
        assert_eq!(effects.contains(&Effect::DiskStalls { to: id(2) }), hangs);
        let later: Vec<Effect> = (1..100).flat_map(|_| tick()).collect();
        assert!(!words(&later).contains(&"lead"), "it does not try again at once");
    }
}

#[test]
fn a_read_is_confirmed_by_a_majority_that_answers_after_it() {
    let mut leader = TestMember::new(1, 3).elected();
    assert_eq!(leader.step(Event::Read(ReadTag(1))), [Effect::ReadRefused(ReadTag(1))], "no reign yet");
    leader.hear(appended(2, 2));
    let asked = leader.step(Event::Read(ReadTag(2)));
    assert_eq!(words(&asked), ["heartbeat", "heartbeat"]);
    let heard = |context: &'static [u8]| Message {
        context: Bytes::from_static(context),
        ..message(MessageType::MsgHeartbeatResponse, 2, 2)
    };
    let confirmed = Effect::ReadConfirmed { read: ReadTag(2), through: Seq(2) };
    assert!(!leader.hear(heard(b"")).contains(&confirmed));
    assert!(leader.hear(heard(&[1, 0, 0, 0, 0, 0, 0, 0])).contains(&confirmed));
}

#[test]
fn older_entries_than_the_tail_come_from_the_disk() {
    let mut config = Config::new(id(1), 3);
    config.tail_bytes_max = 20;
    let mut leader = TestMember::with(config, &start(1)).reigning();
    let proposed = leader.propose(1..9);
    leader.persist(&proposed);
    leader.hear(appended(2, 10));
    assert!(leader.machine.tail_bytes() <= 20, "{}", leader.machine.tail_bytes());
    // The third member has nothing but the first entry.
    let effects = leader.hear(Message { from: 3, ..appended(2, 1) });
    let from =
        effects.iter().find_map(
            |effect| {
                if let Effect::Fetch { from, .. } = effect {
                    Some(*from)
                } else {
                    None
                }
            },
        );
    assert_eq!(from, Some(Seq(2)), "{effects:?}");
    let entries = vec![
        LogEntry { version: Version::new(2, 2), data: Bytes::new() },
        LogEntry { version: Version::new(2, 3), data: Bytes::from_static(b"WRITE 1") },
    ];
    let effects = leader.step(Event::Fetched { from: Seq(2), entries });
    assert_eq!(words(&effects)[0], "append");
}

#[test]
fn the_end_of_the_leaders_connection_starts_a_pre_vote_by_rank() {
    for (member, waits) in [(2, 0), (3, 15)] {
        let mut follower = TestMember::new(member, 3);
        let beat = Message { commit: 1, to: member, ..message(MessageType::MsgHeartbeat, 1, 2) };
        let heard = follower.hear(beat);
        follower.persist(&heard);
        let mut effects = follower.step(Event::LinkDown(id(1)));
        assert_eq!(follower.machine.leader(), None);
        if waits > 0 {
            assert_eq!(words(&effects), Vec::<&str>::new());
            assert_eq!(follower.machine.deadline(), Some(Millis(waits)));
            follower.now += waits;
            effects = follower.step(Event::Due);
        }
        assert_eq!(words(&effects), ["pre-vote", "pre-vote"], "member {member}");
        assert_eq!(follower.machine.term(), (Epoch(2), false), "a pre-vote begins no term");
    }
}

#[test]
fn a_member_whose_disk_lost_what_it_acknowledged_says_so_and_stops() {
    let mut member = TestMember::new(2, 3);
    let beat = Message { commit: 9, ..message(MessageType::MsgHeartbeat, 1, 2) };
    assert_eq!(member.hear(beat), [Effect::LogLost { last: Seq(1), committed: Seq(9) }]);
    assert_eq!((0..100).map(|_| member.tick().len()).sum::<usize>(), 0);
}

#[test]
fn who_claims_to_be_another_is_not_heard() {
    let mut member = TestMember::new(2, 3);
    let beat = Message { commit: 1, ..message(MessageType::MsgHeartbeat, 1, 2) };
    for (from, message) in [(3, beat.clone()), (2, beat.clone()), (1, Message { to: 3, ..beat })] {
        let effects = member.step(Event::Message { from: id(from), message: PeerMessage(message) });
        assert!(effects.is_empty(), "{effects:?}");
    }
}

#[test]
fn election_timeouts_are_functions_of_the_seed() {
    let ticks = |seed| {
        let mut member = TestMember::with(Config::new(id(1), seed), &start(1));
        (1..40).find(|_| !member.tick().is_empty()).unwrap()
    };
    let drawn: Vec<u64> = (0..20).map(ticks).collect();
    assert_eq!(drawn, (0..20).map(ticks).collect::<Vec<u64>>());
    assert!(drawn.iter().all(|ticks| (15..30).contains(ticks)), "{drawn:?}");
    assert!(drawn.iter().any(|ticks| *ticks != drawn[0]), "{drawn:?}");
}

#[test]
fn what_does_not_hang_together_is_not_started_with() {
    let begin = |change: &dyn Fn(&mut Start)| {
        let mut start = start(1);
        change(&mut start);
        Consensus::new(Config::new(id(1), 3), &start).err()
    };
    assert_eq!(begin(&|_| {}), None);
    let other = begin(&|start| start.vote.member = id(2));
    assert_eq!(other, Some(StartError::OtherMember { found: id(2), expected: id(1) }));
    let behind = begin(&|start| start.vote.term = Epoch(0));
    assert_eq!(behind, Some(StartError::VoteBehindLog { log: Epoch(1), vote: Epoch(0) }));
    let bad = begin(&|start| {
        let data = Bytes::from_static(b"MEMBERS of a club");
        start.tail.push(LogEntry { version: Version::new(1, 2), data });
    });
    assert_eq!(bad, Some(StartError::Members(Seq(2))));
    let short = begin(&|start| start.vote.commit = Seq(5));
    assert_eq!(short, Some(StartError::LogShort { last: Seq(1), commit: Seq(5) }));
    let gap = begin(&|start| {
        start.tail.push(LogEntry { version: Version::new(1, 3), data: Bytes::from_static(b"x") });
    });
    assert_eq!(gap, Some(StartError::Gap(Seq(3))));
    let mut config = Config::new(id(1), 3);
    config.uncommitted_bytes_max = 1;
    assert!(matches!(Consensus::new(config, &start(1)), Err(StartError::Settings(_))));
}
