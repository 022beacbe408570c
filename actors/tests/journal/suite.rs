//! The rules. Each is told in the port's words alone.

use crate::rigs::Rig;
use dsm::journal::{
    CompactionNews, Hindrance, Journal, LogEvent, LogRequest, NewRecord, Replay, Sight, Unread, ValueAnswer,
    Wording, WrittenRecord,
};
use dsm::testing::{Probe, Received};
use dsm_protocol::command::{Command, ErrorWord};
use dsm_protocol::ids::{
    ClusterId, Epoch, LinkId, Millis, Reign, ReignId, Seq, SessionId, SlaveId, UnixMillis, Version,
};
use dsm_protocol::machine::master::{self, Asker, Effect, WriteId};
use dsm_protocol::machine::reign::may_begin::{Lack, Log, Source};
use dsm_protocol::message::Seen;
use dsm_protocol::record::{Place, Position};
use dsm_protocol::stored_key::StoredKey;
use dsm_protocol::witness_file::WitnessText;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;
use tokio::time::sleep;

/// How long anything may take, in virtual milliseconds.
const LIMIT_MS: u64 = 5_000;

/// What a master did not hear within so long it will not hear.
pub(crate) const QUIET: Duration = Duration::from_millis(700);

/// A master's part in a log, and what it has heard.
pub(crate) struct Part {
    pub(crate) journal: Box<dyn Journal>,
    events: Received<LogEvent>,
    /// What the log has told of each key, and in which order keys were told of.
    pub(crate) directory: BTreeMap<String, (Version, Place)>,
    pub(crate) told: Vec<String>,
    end: Position,
    written: Vec<WrittenRecord>,
    refused: Vec<(WriteId, ErrorWord)>,
    noted: WitnessText,
    reign: Option<Version>,
    /// The names of all the other events, in their order.
    pub(crate) heard: Vec<&'static str>,
    /// Names the writes: only a machine can.
    machine: master::Master,
    asked: u64,
    /// The keys of the writes that were asked for.
    /// When values expire, as it was replayed.
    expiries: Vec<(String, UnixMillis)>,
    /// What time it was, as it was replayed.
    times: Vec<UnixMillis>,
    keys: Vec<(WriteId, String)>,
    /// Whether it takes in where values stand by now, and other questions of a compaction.
    pub(crate) answers_relocation: bool,
    pub(crate) answers_questions: bool,
    unanswered: Vec<LogEvent>,
    /// How often it may say that it has taken in all.
    pub(crate) settles: usize,
    /// Whether the log may fail.
    pub(crate) may_fail: bool,
}

impl Part {
    pub(crate) fn join(rig: &impl Rig, address: &str) -> Self {
        let (port, events) = Probe::begin();
        let mut machine = master::Master::new(master::Config::default());
        let mut effects = Vec::new();
        let begun = master::Event::ReignBegan { version: Version::new(1, 2), id: ReignId(1) };
        machine.step(Millis(0), begun, &mut effects);
        let id = SlaveId::new("slave1").expect("a valid id");
        let joined = master::Event::SlaveJoined { id, link: LinkId(1), room_bytes: u64::MAX };
        machine.step(Millis(0), joined, &mut effects);
        Part {
            journal: rig.join(address, port),
            events,
            directory: BTreeMap::new(),
            told: Vec::new(),
            end: Position::default(),
            written: Vec::new(),
            refused: Vec::new(),
            noted: WitnessText::default(),
            reign: None,
            heard: Vec::new(),
            machine,
            asked: 0,
            expiries: Vec::new(),
            times: Vec::new(),
            keys: Vec::new(),
            answers_relocation: true,
            answers_questions: true,
            unanswered: Vec::new(),
            settles: usize::MAX,
            may_fail: false,
        }
    }

    /// Wants to be told the log from its start.
    pub(crate) fn follow_anew(&mut self) {
        self.told.clear();
        self.journal.ask(LogRequest::FollowAnew);
    }

    /// Says how long the log is, and what of it is live.
    pub(crate) fn weigh(&mut self, log_bytes: usize) {
        let live_bytes = self.directory.len() as u64 * 60;
        self.journal.ask(LogRequest::Weigh { log_bytes: log_bytes as u64, live_bytes });
    }

    /// Answers what a compaction asks a master.
    fn answer(&mut self, event: LogEvent) -> Option<&'static str> {
        match event {
            LogEvent::Settle { answer, .. } => {
                self.settles -= 1;
                answer.send(()).ok().map(|()| "settled")
            }
            LogEvent::WhichLive { keys, answer } => {
                let is_live = |(key, version): &(StoredKey, Version)| {
                    let known = self.directory.get(&*String::from_utf8_lossy(key));
                    known.is_some_and(|(known, _)| known == version)
                };
                answer.send(keys.iter().map(is_live).collect()).ok().map(|()| "asked")
            }
            LogEvent::Relocated(changes) => {
                for change in changes {
                    let Replay::Put { key, version, place, .. } = change else { panic!("{change:?}") };
                    let known = self.directory.get_mut(&*String::from_utf8_lossy(&key));
                    if let Some(known) = known.filter(|known| known.0 == version) {
                        known.1 = place;
                    }
                }
                Some("relocated")
            }
            LogEvent::Unread { answer, .. } => answer.send(()).ok().map(|()| "unread"),
            other => panic!("{other:?}"),
        }
    }
    /// Takes in what has come.
    #[expect(clippy::too_many_lines, reason = "one arm for each event, each short")]
    pub(crate) fn listen(&mut self) {
        let waiting = std::mem::take(&mut self.unanswered);
        for event in waiting.into_iter().chain(self.events.take()) {
            let name = match event {
                event @ (LogEvent::Relocated(_) | LogEvent::Unread { .. }) if !self.answers_relocation => {
                    self.unanswered.push(event);
                    continue;
                }
                event @ LogEvent::Settle { .. } if self.settles == 0 => {
                    self.unanswered.push(event);
                    continue;
                }
                event @ (LogEvent::Settle { .. } | LogEvent::WhichLive { .. }) if !self.answers_questions => {
                    self.unanswered.push(event);
                    "asked"
                }
                event @ (LogEvent::Relocated(_)
                | LogEvent::Unread { .. }
                | LogEvent::Settle { .. }
                | LogEvent::WhichLive { .. }) => match self.answer(event) {
                    Some(name) => name,
                    None => continue,
                },
                LogEvent::Replaced { .. } => "replaced",
                LogEvent::Compaction(CompactionNews::Copying { .. } | CompactionNews::Paces(_)) => continue,
                LogEvent::Compaction(CompactionNews::Done { .. }) => "compacted",
                LogEvent::Compaction(CompactionNews::Failed(_)) => "not compacted",
                LogEvent::Compaction(CompactionNews::GivenUp) => "given up",
                LogEvent::Compaction(CompactionNews::NoRoom { .. }) => "no room",
                LogEvent::Looked(_) | LogEvent::Leader(_) | LogEvent::Found(_) | LogEvent::KeptOut(_) => {
                    continue
                }
                LogEvent::Members { .. } => continue,
                LogEvent::MembersChanged { .. } => "members changed",
                LogEvent::Sighted(sight) => {
                    if sight == Sight::Follows {
                        "sighted"
                    } else {
                        "not sighted"
                    }
                }
                LogEvent::Replayed(part) => {
                    if part.from_start {
                        self.directory.clear();
                        self.told.clear();
                    }
                    self.end = part.end;
                    part.changes.into_iter().for_each(|change| self.replay(change));
                    continue;
                }
                LogEvent::Written(written) => {
                    let word = written.refusal.map(|(word, _)| word);
                    for record in &written.writes {
                        if let Some((_, key)) = self.keys.iter().find(|(write, _)| *write == record.write) {
                            self.directory.insert(key.clone(), (record.version, record.places[0]));
                        }
                    }
                    self.written.extend(written.writes);
                    let refused = written.refused.into_iter();
                    self.refused.extend(refused.map(|write| (write, word.expect("a refusal has a word"))));
                    "written"
                }
                LogEvent::Won { .. } => "won",
                LogEvent::Halted => "halted",
                LogEvent::Opened { noted, .. } => {
                    self.noted = noted;
                    "opened"
                }
                LogEvent::Begun { version, .. } => {
                    self.reign = Some(version);
                    "begun"
                }
                LogEvent::Synced => "synced",
                LogEvent::Closed { end, .. } => {
                    self.end = end;
                    "closed"
                }
                LogEvent::Reopened => "reopened",
                LogEvent::Deposed(_) | LogEvent::Lost => "deposed",
                LogEvent::Confirmed { leads: true, .. } => "confirmed",
                LogEvent::Confirmed { leads: false, .. } => "not confirmed",
                LogEvent::Abandoned => "abandoned",
                LogEvent::Failed(_) if self.may_fail => "failed",
                LogEvent::Failed(error) => panic!("the log failed: {error:?}"),
            };
            self.heard.push(name);
        }
    }

    fn replay(&mut self, change: Replay) {
        match change {
            Replay::Put { key, version, place, expires } => {
                let key = String::from_utf8_lossy(&key).into_owned();
                self.expiries.extend(expires.map(|expires| (key.clone(), expires)));
                self.told.push(key.clone());
                self.directory.insert(key, (version, place));
            }
            Replay::Delete { key } => {
                self.directory.remove(&*String::from_utf8_lossy(&key));
            }
            Replay::Reign(_) | Replay::GivenUp(_) => {}
            Replay::Time(mark) => self.times.push(mark.time),
        }
    }

    /// Waits until what has come satisfies `is_enough`.
    pub(crate) async fn until(&mut self, what: &str, is_enough: impl Fn(&Self) -> bool) {
        for _ in 0..LIMIT_MS {
            self.listen();
            if is_enough(self) {
                return;
            }
            sleep(Duration::from_millis(1)).await;
        }
        panic!("{what}: never; heard {:?}, told {:?}", self.heard, self.told);
    }

    /// Waits for an event that was not waited for yet.
    pub(crate) async fn hear(&mut self, name: &'static str) {
        self.until(name, |part| part.heard.contains(&name)).await;
        let at = self.heard.iter().position(|heard| *heard == name).expect("just heard");
        self.heard.remove(at);
    }

    /// Becomes the leader and begins a reign.
    pub(crate) async fn lead(&mut self) {
        self.journal.ask(LogRequest::Queue);
        self.hear("won").await;
        self.reign().await;
    }

    /// Begins a reign as the one who has just won.
    pub(crate) async fn reign(&mut self) {
        self.open().await;
        self.begin().await;
    }

    async fn open(&mut self) {
        self.journal.ask(LogRequest::Look);
        self.hear("sighted").await;
        self.journal.ask(LogRequest::Halt);
        self.hear("halted").await;
        self.journal.ask(LogRequest::Open { makes: true });
        self.hear("opened").await;
    }

    async fn begin(&mut self) {
        let epoch = self.end.epoch.next();
        self.journal.ask(LogRequest::Begin { epoch, given_up: Vec::new(), time: UnixMillis(1_000) });
        self.hear("begun").await;
        self.journal.ask(LogRequest::Declare { serves: true });
    }

    /// A write of a key.
    fn change(&mut self, key: &str) -> NewRecord {
        self.asked += 1;
        let asker = Asker { session: SessionId(1), tag: self.asked };
        let command = Command::Put { key: key.to_owned().into(), value: value_of(key).into() };
        let request = master::Event::Request { asker, deadline: Millis(1000), command };
        let mut effects = Vec::new();
        self.machine.step(Millis(0), request, &mut effects);
        match effects.pop() {
            Some(Effect::Append { write, change, expires, after }) => {
                NewRecord { write, change, expires, after }
            }
            other => panic!("{other:?}"),
        }
    }

    /// Asks for writes of these keys as one batch.
    fn append(&mut self, keys: &[&str]) -> Vec<WriteId> {
        self.append_after(keys, None)
    }

    /// The same, if no more appends were refused.
    fn append_after(&mut self, keys: &[&str], after: Option<u64>) -> Vec<WriteId> {
        let changes: Vec<_> = keys.iter().map(|key| NewRecord { after, ..self.change(key) }).collect();
        let names: Vec<WriteId> = changes.iter().map(|record| record.write).collect();
        self.keys.extend(names.iter().copied().zip(keys.iter().map(|key| (*key).to_owned())));
        self.journal.ask(LogRequest::Append { changes });
        names
    }

    /// Writes them, and waits for it.
    pub(crate) async fn write(&mut self, keys: &[&str]) {
        let before = self.written.len();
        self.append(keys);
        self.until("written", |part| part.written.len() == before + keys.len()).await;
    }

    pub(crate) async fn learns(&mut self, keys: &[&str]) {
        self.until("replayed", |part| keys.iter().all(|key| part.directory.contains_key(*key))).await;
    }

    /// Closes the log and gives the leadership to another master, which begins its reign.
    pub(crate) async fn hand_over(&mut self, other: &mut Part, address: &str) {
        other.journal.ask(LogRequest::Queue);
        self.journal.ask(LogRequest::Sync);
        self.hear("synced").await;
        self.journal.ask(LogRequest::Close { to: Some(address.to_owned()) });
        self.hear("closed").await;
        self.journal.ask(LogRequest::GiveUp);
        self.journal.ask(LogRequest::Follow);
        other.hear("won").await;
        other.reign().await;
    }

    /// Reads a value; `None` when it is not had.
    pub(crate) async fn read(&mut self, version: Version, place: Place) -> Result<String, Unread> {
        let read = Rc::new(RefCell::new(None));
        let given = Rc::clone(&read);
        let answer = ValueAnswer::new(move |result| *given.borrow_mut() = Some(result));
        self.journal.ask(LogRequest::Read { place, version, answer });
        for _ in 0..LIMIT_MS {
            if let Some(result) = read.take() {
                return result.map(|value| String::from_utf8_lossy(&value).into_owned());
            }
            sleep(Duration::from_millis(1)).await;
        }
        panic!("the read is never answered");
    }
}

pub(crate) fn value_of(key: &str) -> String {
    format!("value of {key}")
}

pub(crate) async fn an_acknowledged_append_is_seen_by_a_follower(rig: impl Rig) {
    let mut leader = Part::join(&rig, "one:1");
    let mut follower = Part::join(&rig, "two:1");
    leader.lead().await;
    leader.write(&["a", "b"]).await;
    follower.learns(&["a", "b"]).await;
    let told = leader.written.iter().map(|record| record.version).collect::<Vec<_>>();
    assert_eq!([follower.directory["a"].0, follower.directory["b"].0], told[..]);
}

pub(crate) async fn an_acknowledged_append_is_seen_by_the_next_leader(rig: impl Rig) {
    let mut leader = Part::join(&rig, "one:1");
    leader.lead().await;
    let mut next = Part::join(&rig, "two:1");
    next.journal.ask(LogRequest::Halt);
    next.hear("halted").await;
    // What it has not followed it must find when it opens the log.
    leader.write(&["a"]).await;
    next.journal.ask(LogRequest::Queue);
    // The leader is gone from one moment to the next, with all that it holds.
    drop(leader);
    next.hear("won").await;
    next.journal.ask(LogRequest::Open { makes: false });
    next.hear("opened").await;
    next.begin().await;
    assert!(next.directory.contains_key("a"), "lost: {:?}", next.told);
}

pub(crate) async fn appends_stand_in_the_order_in_which_they_were_asked_for(rig: impl Rig) {
    let mut leader = Part::join(&rig, "one:1");
    let mut follower = Part::join(&rig, "two:1");
    leader.lead().await;
    let keys: Vec<String> = (0..40).map(|key| format!("key{key}")).collect();
    let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
    let mut names = Vec::new();
    for batch in keys.chunks(3) {
        names.extend(leader.append(batch));
        tokio::task::yield_now().await;
    }
    leader.until("all written", |part| part.written.len() == 40).await;
    let written: Vec<_> = leader.written.iter().map(|record| record.write).collect();
    assert_eq!(written, names);
    let first = leader.written[0].version.seq;
    let seqs: Vec<_> = leader.written.iter().map(|record| record.version.seq).collect();
    assert_eq!(seqs, (first.0..first.0 + 40).map(Seq).collect::<Vec<_>>());
    follower.learns(&keys).await;
    assert_eq!(follower.told, keys);
}

pub(crate) async fn a_follower_that_comes_late_replays_everything(rig: impl Rig) {
    let mut leader = Part::join(&rig, "one:1");
    leader.lead().await;
    leader.write(&["a", "b", "c"]).await;
    let mut late = Part::join(&rig, "two:1");
    late.learns(&["a", "b", "c"]).await;
    late.told.clear();
    late.journal.ask(LogRequest::FollowAnew);
    late.until("told anew", |part| part.told == ["a", "b", "c"]).await;
    leader.write(&["d"]).await;
    late.learns(&["d"]).await;
}

pub(crate) async fn one_leads_at_a_time_and_each_reign_is_above_the_one_before(rig: impl Rig) {
    let (mut one, mut two, mut three) =
        (Part::join(&rig, "one:1"), Part::join(&rig, "two:1"), Part::join(&rig, "three:1"));
    one.lead().await;
    two.journal.ask(LogRequest::Queue);
    three.journal.ask(LogRequest::Queue);
    sleep(QUIET).await;
    two.listen();
    three.listen();
    assert!(!two.heard.contains(&"won") && !three.heard.contains(&"won"), "somebody leads");
    one.journal.ask(LogRequest::Close { to: None });
    one.hear("closed").await;
    one.journal.ask(LogRequest::GiveUp);
    sleep(QUIET).await;
    two.listen();
    three.listen();
    let won = [&two, &three].map(|part| part.heard.contains(&"won"));
    assert_eq!(won.iter().filter(|won| **won).count(), 1, "one of them leads: {won:?}");
    let next = if won[0] { &mut two } else { &mut three };
    next.hear("won").await;
    next.reign().await;
    let epochs = [&one, next].map(|part| part.reign.expect("it has reigned").epoch);
    assert!(epochs[0] < epochs[1], "{epochs:?}");
}

pub(crate) async fn nothing_is_written_after_leadership_is_lost(rig: impl Rig) {
    let mut leader = Part::join(&rig, "one:1");
    leader.lead().await;
    leader.write(&["a"]).await;
    rig.depose();
    leader.hear("deposed").await;
    let late = leader.append(&["late"]);
    leader.until("refused", |part| part.refused.iter().any(|(write, _)| *write == late[0])).await;
    assert_eq!(leader.written.len(), 1, "{:?}", leader.written);
}

pub(crate) async fn a_leader_that_is_deposed_hears_it_and_all_that_it_asked_for_is_answered(rig: impl Rig) {
    let mut leader = Part::join(&rig, "one:1");
    leader.lead().await;
    let before = leader.append(&["a", "b"]);
    rig.depose();
    let after = leader.append(&["c"]);
    leader.hear("deposed").await;
    leader.journal.ask(LogRequest::Abandon);
    leader.hear("abandoned").await;
    let written = leader.written.iter().map(|record| record.write);
    let mut answered: Vec<_> = written.chain(leader.refused.iter().map(|(write, _)| *write)).collect();
    answered.sort();
    let mut asked: Vec<_> = before.into_iter().chain(after).collect();
    asked.sort();
    assert_eq!(answered, asked, "each once");
    assert_eq!(leader.written.len(), 0, "no later leader replays what is written there");
}

pub(crate) async fn a_refused_append_is_in_nobodys_log(rig: impl Rig) {
    let mut leader = Part::join(&rig, "one:1");
    let mut follower = Part::join(&rig, "two:1");
    leader.lead().await;
    leader.write(&["a"]).await;
    rig.refuse();
    let refused = leader.append(&["refused"]);
    leader.until("refused", |part| !part.refused.is_empty()).await;
    assert_eq!(leader.refused, [(refused[0], ErrorWord::ReadOnly)]);
    rig.mend();
    leader.write(&["b"]).await;
    follower.learns(&["a", "b"]).await;
    let seqs: Vec<_> = leader.written.iter().map(|record| record.version.seq.0).collect();
    assert_eq!(seqs[1], seqs[0] + 1, "no seq is left out");
    leader.hand_over(&mut follower, "two:1").await;
    assert_eq!(follower.told, ["a", "b"]);
}

pub(crate) async fn who_replays_the_log_is_told_when_values_expire_and_what_time_it_was(rig: impl Rig) {
    let mut leader = Part::join(&rig, "one:1");
    let mut follower = Part::join(&rig, "two:1");
    leader.lead().await;
    let mut changes = Vec::new();
    for (key, expires) in
        [("early", Some(UnixMillis(0))), ("late", Some(UnixMillis(u64::MAX - 1))), ("never", None)]
    {
        let record = NewRecord { expires, ..leader.change(key) };
        leader.keys.push((record.write, key.to_owned()));
        changes.push(record);
    }
    leader.journal.ask(LogRequest::Append { changes });
    leader.until("written", |part| part.written.len() == 3).await;
    follower.learns(&["early", "late", "never"]).await;
    let told = [("early".to_owned(), UnixMillis(0)), ("late".to_owned(), UnixMillis(u64::MAX - 1))];
    assert_eq!(follower.expiries, told);
    assert_eq!(follower.times, [UnixMillis(1_000)]);
    for key in ["early", "late"] {
        let (version, place) = follower.directory[key];
        assert_eq!(leader.read(version, place).await.expect("it is there"), value_of(key));
    }
}

pub(crate) async fn what_rests_on_a_refused_append_is_refused_in_its_turn(rig: impl Rig) {
    let mut leader = Part::join(&rig, "one:1");
    leader.lead().await;
    leader.append(&["a"]);
    leader.append_after(&["on a"], Some(0));
    leader.until("written", |part| part.written.len() == 2).await;
    rig.refuse();
    let refused = leader.append(&["refused"]);
    leader.until("refused", |part| !part.refused.is_empty()).await;
    rig.mend();
    // Sent before that refusal was heard of.
    leader.append(&["b"]);
    let resting = leader.append_after(&["on the refused one", "on that one"], Some(0));
    leader.until("refused, too", |part| part.refused.len() == 3).await;
    assert_eq!(leader.written.len(), 3, "what was asked for before is answered before");
    let busy = |write: &WriteId| (*write, ErrorWord::Busy);
    assert_eq!(leader.refused, [(refused[0], ErrorWord::ReadOnly), busy(&resting[0]), busy(&resting[1])]);
    leader.append_after(&["after three refusals"], Some(3));
    leader.until("written again", |part| part.written.len() == 4).await;
    assert_eq!(leader.refused.len(), 3);
}

pub(crate) async fn a_sync_is_answered_and_does_not_stop_the_writing(rig: impl Rig) {
    let mut leader = Part::join(&rig, "one:1");
    leader.lead().await;
    leader.append(&["a"]);
    leader.journal.ask(LogRequest::Sync);
    leader.append(&["b"]);
    leader.hear("synced").await;
    leader.until("both written", |part| part.written.len() == 2).await;
    leader.journal.ask(LogRequest::Sync);
    leader.hear("synced").await;
}

pub(crate) async fn a_handover_loses_nothing(rig: impl Rig) {
    let mut one = Part::join(&rig, "one:1");
    let mut two = Part::join(&rig, "two:1");
    one.lead().await;
    one.write(&["a"]).await;
    // Asked for and not answered when the log is closed: in it or refused, and here there is no reason to refuse.
    one.append(&["b", "c"]);
    two.journal.ask(LogRequest::Queue);
    one.journal.ask(LogRequest::Close { to: Some("two:1".to_owned()) });
    one.hear("closed").await;
    one.journal.ask(LogRequest::GiveUp);
    one.journal.ask(LogRequest::Follow);
    two.hear("won").await;
    two.reign().await;
    one.listen();
    assert_eq!(one.written.len(), 3, "{:?}", one.refused);
    assert_eq!(two.told, ["a", "b", "c"]);
    two.write(&["d"]).await;
    one.learns(&["d"]).await;
    two.hand_over(&mut one, "one:1").await;
    one.write(&["e"]).await;
    two.learns(&["e"]).await;
    assert_eq!(two.told, ["a", "b", "c", "e"], "it is not told what it wrote itself");
}

pub(crate) async fn a_handover_may_be_asked_back(rig: impl Rig) {
    let mut one = Part::join(&rig, "one:1");
    let mut two = Part::join(&rig, "two:1");
    one.lead().await;
    two.journal.ask(LogRequest::Queue);
    one.append(&["a"]);
    one.journal.ask(LogRequest::Close { to: Some("two:1".to_owned()) });
    one.journal.ask(LogRequest::Reopen);
    one.hear("reopened").await;
    one.write(&["b"]).await;
    sleep(QUIET).await;
    one.listen();
    two.listen();
    assert!(!one.heard.contains(&"closed") && !two.heard.contains(&"won"), "it was taken back");
    two.learns(&["a", "b"]).await;
}

pub(crate) async fn a_log_is_closed_or_given_back_and_never_both(rig: impl Rig) {
    for patience in 0..12 {
        let mut one = Part::join(&rig, "one:1");
        one.lead().await;
        one.append(&["a"]);
        one.journal.ask(LogRequest::Close { to: None });
        for _ in 0..patience {
            tokio::task::yield_now().await;
        }
        sleep(Duration::from_millis(patience / 4)).await;
        one.journal.ask(LogRequest::Reopen);
        sleep(QUIET).await;
        one.listen();
        let heard = ["closed", "reopened"].map(|name| one.heard.contains(&name));
        assert_ne!(heard[0], heard[1], "{:?}", one.heard);
        one.journal.ask(LogRequest::LeaveQueue);
        one.journal.ask(LogRequest::GiveUp);
        drop(one);
        sleep(QUIET).await;
    }
}

pub(crate) async fn a_value_is_read_by_the_place_that_was_told(rig: impl Rig) {
    let mut one = Part::join(&rig, "one:1");
    let mut two = Part::join(&rig, "two:1");
    one.lead().await;
    one.write(&["a", "b"]).await;
    let record = one.written[1].clone();
    assert_eq!(one.read(record.version, record.places[0]).await.ok(), Some(value_of("b")));
    // By the place that a follower was told, once it leads.
    two.learns(&["a"]).await;
    one.hand_over(&mut two, "two:1").await;
    let (version, place) = two.directory["a"];
    assert_eq!(two.read(version, place).await.ok(), Some(value_of("a")));
    let wrong = Place { text_crc: place.text_crc ^ 1, ..place };
    let read = two.read(version, wrong).await;
    assert!(matches!(read, Err(Unread::Failed(_))), "{read:?}");
}

pub(crate) async fn a_value_is_not_read_from_a_log_that_is_closed(rig: impl Rig) {
    let mut one = Part::join(&rig, "one:1");
    one.lead().await;
    one.write(&["a"]).await;
    let record = one.written[0].clone();
    one.journal.ask(LogRequest::Close { to: None });
    one.hear("closed").await;
    let read = one.read(record.version, record.places[0]).await;
    assert!(matches!(read, Err(Unread::Closed)), "{read:?}");
}

pub(crate) async fn what_is_noted_is_told_until_a_reign_begins(rig: impl Rig) {
    let mut one = Part::join(&rig, "one:1");
    one.journal.ask(LogRequest::Queue);
    one.hear("won").await;
    one.open().await;
    assert!(one.noted.is_empty());
    let mut noted = WitnessText::default();
    let seen = Seen { reign: Reign { epoch: Epoch(3), id: ReignId(3) }, seq: Seq(9), durable: true };
    assert!(noted.note(SlaveId::new("slave1").expect("a valid id"), seen));
    one.journal.ask(LogRequest::Note(noted.clone()));
    sleep(QUIET).await;
    one.journal.ask(LogRequest::PutAside);
    one.journal.ask(LogRequest::Open { makes: false });
    one.hear("opened").await;
    assert_eq!(one.noted, noted);
    one.journal.ask(LogRequest::Note(WitnessText::default()));
    sleep(QUIET).await;
    one.journal.ask(LogRequest::Open { makes: false });
    one.hear("opened").await;
    assert!(one.noted.is_empty());
}

pub(crate) async fn who_leaves_the_queue_does_not_lead(rig: impl Rig) {
    let mut one = Part::join(&rig, "one:1");
    let mut two = Part::join(&rig, "two:1");
    one.lead().await;
    two.journal.ask(LogRequest::Queue);
    sleep(QUIET).await;
    two.journal.ask(LogRequest::LeaveQueue);
    sleep(QUIET).await;
    one.journal.ask(LogRequest::Close { to: None });
    one.hear("closed").await;
    one.journal.ask(LogRequest::GiveUp);
    sleep(QUIET).await;
    two.listen();
    assert!(!two.heard.contains(&"won"));
    let mut three = Part::join(&rig, "three:1");
    three.lead().await;
}

pub(crate) async fn what_keeps_a_leader_from_serving_is_told_in_one_line_with_its_cause(rig: impl Rig) {
    let part = Part::join(&rig, "one:1");
    let say = |wording| {
        let line = part.journal.words(wording);
        assert!(!line.is_empty() && !line.contains('\n'), "{line:?}");
        line
    };
    let (cluster, named) = (ClusterId(1), ClusterId(2));
    let (log, source) = (
        Log { cluster: Some(cluster), epoch: Epoch(3), end: Seq(7), is_half_repaired: false },
        Source::LastLeader,
    );
    let seen = Seen { reign: Reign::new(4, 40), seq: Seq(9), durable: true };
    let lacks = [
        Lack::NoLog { cluster, source: source.clone() },
        Lack::Unclaimed,
        Lack::OtherCluster { log: Some(cluster), named, source: source.clone() },
        Lack::Epoch { log, known: Epoch(4), source: source.clone() },
        Lack::HalfRepaired { log },
        Lack::Records { log, seen, source },
    ];
    let mut waits: Vec<String> = Vec::new();
    for lack in &lacks {
        waits.push(say(Wording::WaitsFor(Hindrance::Lacks(lack))));
        let line = say(Wording::DoesNotServe(Hindrance::Lacks(lack)));
        assert!(line.contains(waits.last().expect("just pushed")), "{line}");
    }
    let sight = Sight::Short("it ends too soon".to_owned());
    let barred = Hindrance::Barred { sight: &sight, seq: Seq(7) };
    waits.push(say(Wording::WaitsFor(barred)));
    for line in [say(Wording::WaitsFor(barred)), say(Wording::DoesNotServe(barred))] {
        assert!(line.contains("it ends too soon"), "{line}");
    }
    waits.sort();
    waits.dedup();
    assert_eq!(waits.len(), lacks.len() + 1, "each is told from the others: {waits:?}");
}

pub(crate) async fn who_leads_is_confirmed_and_who_was_cut_off_is_not(rig: impl Rig) {
    let mut leader = Part::join(&rig, "one:1");
    leader.lead().await;
    leader.journal.ask(LogRequest::Confirm { round: 1 });
    leader.hear("confirmed").await;
    rig.depose();
    leader.journal.ask(LogRequest::Confirm { round: 2 });
    leader.hear("deposed").await;
    leader.hear("not confirmed").await;
    // Nor does it count any more what others would say now.
    leader.journal.ask(LogRequest::Confirm { round: 3 });
    leader.hear("not confirmed").await;
    assert!(!leader.heard.contains(&"confirmed"), "{:?}", leader.heard);
}
