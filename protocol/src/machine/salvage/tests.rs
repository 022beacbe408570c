//! What a repair from slaves takes, asks and notes.

use super::*;
use crate::ids::ReignId;
use crate::record::{encode_with, Operation, ReignMark, Scanner, Step, Trailer};
use crate::witness_file::NOTED_MAX;

const CLUSTER: ClusterId = ClusterId(7);
const WAIT_MS: u64 = 1000;
const WISHES: Wishes = Wishes {
    slaves: None,
    wait_ms: WAIT_MS,
    accept_missing: false,
    undecided: Undecided::Stop,
    dry_run: false,
};

/// A log, line by line.
#[derive(Clone, Default)]
struct Log {
    bytes: Vec<u8>,
    seq: u64,
    epoch: u64,
}

impl Log {
    /// Reign 1 (id 10), which has written keys a to d.
    fn new() -> Self {
        let mut log = Log { epoch: 1, ..Log::default() };
        log.add(&Operation::Cluster(CLUSTER), &[]);
        log.reign(1, "h:1", &[]);
        "abcd".chars().for_each(|key| log.write(&key.to_string()));
        log
    }

    fn add(&mut self, operation: &Operation, fields: &[(&str, &[u8])]) {
        self.seq += 1;
        let trailer = Trailer { fields, ..Trailer::new(Seq(self.seq), Epoch(self.epoch), Seq(0)) };
        encode_with(operation, trailer, &mut self.bytes);
    }

    fn reign(&mut self, epoch: u64, address: &str, given_up: &[Reign]) {
        self.epoch = epoch;
        let mark =
            ReignMark { id: ReignId(epoch * 10), fsync: SyncMode::Always, given_up: given_up.to_vec() };
        self.add(&Operation::Epoch { address: address.into(), mark: Some(mark) }, &[]);
    }

    fn write(&mut self, key: &str) {
        self.add(&Operation::Write(vec![(key.to_owned().into(), "old".into())]), &[]);
    }

    fn recovered(&mut self, key: &str, stamp: Stamp) {
        let was = show_stamp(stamp);
        self.add(
            &Operation::Write(vec![(key.to_owned().into(), "back".into())]),
            &[(RECOVERED, was.as_bytes())],
        );
    }

    /// A record that says which one is before it.
    fn write_after(&mut self, key: &str, left_out: u64) {
        let after = Some(Seq(self.seq));
        self.seq += left_out + 1;
        let trailer = Trailer { after, ..Trailer::new(Seq(self.seq), Epoch(self.epoch), Seq(0)) };
        let pairs = vec![(key.to_owned().into(), "old".into())];
        encode_with(&Operation::Write(pairs), trailer, &mut self.bytes);
    }

    /// A record behind one that was damaged and taken out.
    fn write_behind_a_loss(&mut self, key: &str) {
        let after = Some(Seq(self.seq));
        self.seq += 2;
        let fields: &[(&str, &[u8])] = &[(LOST, b"1")];
        let trailer = Trailer { after, fields, ..Trailer::new(Seq(self.seq), Epoch(self.epoch), Seq(0)) };
        let pairs = vec![(key.to_owned().into(), "old".into())];
        encode_with(&Operation::Write(pairs), trailer, &mut self.bytes);
    }

    /// A mark at the end of a copy that has left out the records before it.
    fn mark_after(&mut self, left_out: u64) {
        let after = Some(Seq(self.seq));
        self.seq += left_out;
        let trailer = Trailer { after, ..Trailer::new(Seq(self.seq), Epoch(self.epoch), Seq(0)) };
        encode_with(&Operation::Synced, trailer, &mut self.bytes);
    }

    /// Gives each record to `take`; gives the end.
    fn walk(&self, mut take: impl FnMut(&Record<'_>)) -> Position {
        let (mut scanner, mut rest) = (Scanner::new(1 << 20), &self.bytes[..]);
        while !rest.is_empty() {
            let before = scanner.position().offset;
            let step = scanner.next(rest);
            let Step::Record { record, .. } = step else { panic!("{step:?}") };
            take(&record);
            rest = &rest[(scanner.position().offset - before) as usize..];
        }
        scanner.position()
    }
}

fn slave(name: &str) -> SlaveId {
    SlaveId::new(name).unwrap()
}

fn stamp(epoch: u64, id: u64, seq: u64) -> Stamp {
    Stamp { version: Version::new(epoch, seq), reign: ReignId(id) }
}

fn seen(epoch: u64, id: u64, seq: u64) -> Option<Seen> {
    Some(Seen { reign: Reign::new(epoch, id), seq: Seq(seq), durable: true })
}

/// The reign of the repairs here.
const OWN: Reign = Reign { epoch: Epoch(50), id: ReignId(500) };

struct Bench {
    machine: Salvage,
    now: Millis,
    log: Log,
}

impl Bench {
    fn new(wishes: Wishes, log: Log, noted: WitnessText, lock: LockText) -> Self {
        let mut machine = Salvage::new(wishes, 1);
        let end = log.walk(|record| machine.read(record));
        machine.open(Millis(0), Known { cluster: CLUSTER, end, noted, lock });
        Bench { machine, now: Millis(0), log }
    }

    fn of(wishes: Wishes, log: Log) -> Self {
        Bench::new(wishes, log, WitnessText::default(), LockText::default())
    }

    fn step(&mut self, event: Event) -> Vec<Effect> {
        let mut effects = Vec::new();
        self.machine.step(self.now, event, &mut effects);
        effects
    }

    /// A slave comes, and tells of reigns that each began right after the one before: epoch, id, first seq. Gives what follows.
    fn comes_of(
        &mut self,
        link: u64,
        name: &str,
        seen: Option<Seen>,
        reigns: &[(u64, u64, u64)],
    ) -> Vec<Effect> {
        let (link, id, incarnation) = (LinkId(link), slave(name), Incarnation(1));
        let mut effects = self.step(Event::Came { link, id, incarnation, cluster: Some(CLUSTER), seen });
        if effects.contains(&Effect::AskLineage { link }) {
            let start = |(epoch, id, first): &(u64, u64, u64)| ReignStart {
                reign: Reign::new(*epoch, *id),
                first: Seq(*first),
            };
            effects.retain(|effect| *effect != Effect::AskLineage { link });
            effects.extend(self.step(Event::Lineage { link, reigns: reigns.iter().map(start).collect() }));
        }
        effects
    }

    /// The same of a slave of the log's first reign and of the one that it has seen, which began at the seq before.
    fn comes(&mut self, link: u64, name: &str, seen: Option<Seen>) -> Vec<Effect> {
        let last = seen.filter(|seen| seen.reign.epoch > Epoch(1)).map(|seen| {
            let Reign { epoch, id } = seen.reign;
            (epoch.0, id.0, 7)
        });
        let reigns: Vec<_> = std::iter::once((1, 10, 2)).chain(last).collect();
        self.comes_of(link, name, seen, &reigns)
    }

    fn after(&mut self, ms: u64) -> Vec<Effect> {
        self.now = self.now.plus(ms);
        self.step(Event::Tick)
    }

    /// Lets the time for slaves pass and the reign begin, with each of these links.
    fn begin(&mut self, links: &[(u64, Option<Seen>)]) {
        let effects = self.after(WAIT_MS);
        assert!(matches!(effects[..], [Effect::Note(_), Effect::Begin { .. }]), "{effects:?}");
        self.step(Event::Begun { reign: OWN, seq: Seq(1000) });
        for (link, seen) in links {
            let link = LinkId(*link);
            let admitted = self.step(Event::Enlisted { link, reign: OWN, seen: *seen });
            assert_eq!(admitted, [Effect::Admit { link, reign: OWN }]);
        }
    }

    fn reports(&mut self, link: u64, copies: &[(&'static str, Stamp)]) -> Vec<Effect> {
        let entries =
            copies.iter().map(|(key, stamp)| (Bytes::from_static(key.as_bytes()), *stamp)).collect();
        self.step(Event::Holdings { link: LinkId(link), entries, last: true })
    }

    fn surveyed(&mut self) -> Vec<Effect> {
        let Bench { machine, log, .. } = self;
        log.walk(|record| machine.touch(record));
        self.step(Event::Surveyed)
    }

    /// What is asked: link, key, version.
    fn asked(effects: &[Effect]) -> Vec<(u64, String, Stamp)> {
        let asked = effects.iter().filter_map(|effect| {
            let Effect::Read { link, stamp, key, .. } = effect else { return None };
            Some((link.0, String::from_utf8_lossy(key).into_owned(), *stamp))
        });
        let mut asked: Vec<_> = asked.collect();
        asked.sort_by(|one, other| one.1.cmp(&other.1));
        asked
    }
}

fn finish(given_up: &[Reign]) -> Effect {
    Effect::Finish { epoch: OWN.epoch.next(), given_up: given_up.to_vec() }
}

#[test]
fn the_newest_of_what_the_log_lacks_is_fetched_and_its_reigns_are_given_up() {
    let mut bench = Bench::of(WISHES, Log::new());
    let reigns = [(1, 10, 2), (2, 20, 10), (3, 30, 15)];
    let come = bench.comes_of(1, "one", seen(3, 30, 20), &reigns);
    assert_eq!(come, [Effect::Welcome { link: LinkId(1) }]);
    bench.comes_of(2, "two", seen(2, 20, 12), &reigns[..2]);
    bench.begin(&[(1, seen(3, 30, 20)), (2, seen(2, 20, 12))]);
    let (older, newer) = (stamp(2, 20, 11), stamp(3, 30, 20));
    // What the log has, what it lacks at its end, and in later reigns.
    assert_eq!(
        bench.reports(1, &[("a", newer), ("b", stamp(1, 10, 4)), ("e", stamp(1, 10, 8)), ("f", older)]),
        []
    );
    assert_eq!(bench.reports(2, &[("a", stamp(2, 20, 12)), ("c", older), ("f", older)]), [Effect::Survey]);
    let effects = bench.surveyed();
    let wanted = [("a", newer), ("c", older), ("e", stamp(1, 10, 8)), ("f", older)];
    let asked = Bench::asked(&effects);
    let told: Vec<_> = asked.iter().map(|(_, key, stamp)| (key.as_str(), *stamp)).collect();
    assert_eq!(told, wanted);
    assert_eq!((asked[0].0, asked[1].0, asked[2].0), (1, 2, 1));
    let mut last = Vec::new();
    for effect in effects {
        let Effect::Read { link, tag, stamp, key } = effect else { panic!("{effect:?}") };
        let value = Bytes::from_static(b"new");
        last = bench.step(Event::Value { link, tag, stamp, value: value.clone() });
        assert_eq!(last[0], Effect::Append { key, stamp, value, is_undecided: false });
    }
    assert_eq!(last[1], finish(&[Reign::new(1, 10), Reign::new(2, 20), Reign::new(3, 30)]));
    assert_eq!(bench.step(Event::Finished), [Effect::End(SalvageOutcome::Recovered)]);
    assert_eq!(bench.machine.findings().recovered_keys(), 4);
}

#[test]
fn witnesses_are_noted_before_a_reign_begins_above_all_that_anybody_has_seen() {
    let mut noted = WitnessText { cluster: Some(CLUSTER), ..WitnessText::default() };
    noted.note(slave("gone"), seen(6, 60, 9).unwrap());
    noted.accept(Reign::new(8, 80));
    noted.accepted_epoch = Some(Epoch(12));
    let lock = LockText {
        cluster: Some(CLUSTER),
        epoch: Some(Epoch(9)),
        reign: Some(ReignId(90)),
        ..LockText::default()
    };
    let wishes = Wishes { accept_missing: true, ..WISHES };
    let mut bench = Bench::new(wishes, Log::new(), noted, lock);
    bench.comes(1, "one", seen(7, 70, 20));
    let effects = bench.after(WAIT_MS);
    let [Effect::Note(text), Effect::Begin { epoch: Epoch(13) }] = &effects[..] else {
        panic!("{effects:?}")
    };
    let reigns: Vec<_> = text.seen.iter().map(|(id, seen)| (id.as_str(), seen.reign.epoch.0)).collect();
    assert_eq!(reigns, [("gone", 6), ("one", 7), (LOCK_FILE, 9)]);
    assert_eq!((text.cluster, &text.accepted[..]), (Some(CLUSTER), &[Reign::new(8, 80)][..]));
    assert_eq!(text.accepted_epoch, Some(Epoch(12)));
    // What was accepted is given up with the rest.
    bench.step(Event::Begun { reign: OWN, seq: Seq(1000) });
    bench.step(Event::Enlisted { link: LinkId(1), reign: OWN, seen: seen(7, 70, 20) });
    assert_eq!(bench.reports(1, &[]), [Effect::Survey]);
    let given_up = [(6, 60), (7, 70), (8, 80), (9, 90)].map(|(epoch, id)| Reign::new(epoch, id));
    assert_eq!(bench.surveyed(), [finish(&given_up)]);
}

#[test]
fn slaves_that_are_named_or_counted_are_waited_for_and_nothing_is_done_without_them() {
    let noted = || {
        let mut noted = WitnessText { cluster: Some(CLUSTER), ..WitnessText::default() };
        noted.note(slave("two"), seen(2, 20, 9).unwrap());
        noted
    };
    let of = |wishes, noted| Bench::new(wishes, Log::new(), noted, LockText::default());
    let missing = |named: &[&str], there| {
        let named = named.iter().map(|name| slave(name)).collect();
        [Effect::End(SalvageOutcome::Missing { named, there })]
    };
    let counted = Wishes { slaves: Some(1), ..WISHES };
    let mut bench = of(counted, noted());
    assert_eq!(bench.comes(1, "one", seen(2, 20, 8)).len(), 1, "the one that is noted is missing");
    assert_eq!(bench.after(WAIT_MS - 1), []);
    assert_eq!(bench.after(1), missing(&["two"], 1));
    let mut bench = of(counted, noted());
    let begins = bench.comes(1, "two", seen(2, 20, 9));
    assert!(matches!(begins[..], [_, Effect::Note(_), Effect::Begin { .. }]), "{begins:?}");
    assert_eq!(of(WISHES, noted()).after(WAIT_MS), missing(&["two"], 0));
    let mut bench = of(WISHES, WitnessText::default());
    bench.comes(1, "one", seen(2, 20, 9));
    bench.step(Event::Gone { link: LinkId(1) });
    bench.comes(2, "two", seen(2, 20, 9));
    assert_eq!(bench.after(WAIT_MS), missing(&["one"], 1));
}

#[test]
fn a_slave_that_has_seen_nothing_counts_for_no_slave_and_not_for_what_it_was() {
    let mut noted = WitnessText { cluster: Some(CLUSTER), ..WitnessText::default() };
    noted.note(slave("two"), seen(2, 20, 9).unwrap());
    let wishes = Wishes { slaves: Some(2), ..WISHES };
    let mut bench = Bench::new(wishes, Log::new(), noted.clone(), LockText::default());
    bench.comes(1, "one", seen(2, 20, 8));
    assert_eq!(bench.comes(2, "two", None).len(), 1, "it was restarted");
    bench.comes(3, "new", None);
    bench.comes(4, "three", seen(1, 10, 6));
    let missing = SalvageOutcome::Missing { named: vec![slave("two")], there: 2 };
    assert_eq!(bench.after(WAIT_MS), [Effect::End(missing)]);
    // It is not told of the reign if others are enough, and its end is nobody's loss.
    let wishes = Wishes { accept_missing: true, ..WISHES };
    let mut bench = Bench::new(wishes, Log::new(), noted, LockText::default());
    bench.comes(1, "one", seen(2, 20, 8));
    bench.comes(2, "two", None);
    bench.begin(&[(1, seen(2, 20, 8))]);
    assert_eq!(bench.reports(1, &[("a", stamp(2, 20, 8))]), [Effect::Survey]);
}

#[test]
fn a_slave_that_does_not_say_of_which_log_it_is_is_not_there() {
    let mut bench = Bench::of(Wishes { slaves: Some(1), ..WISHES }, Log::new());
    let (link, id, incarnation) = (LinkId(1), slave("one"), Incarnation(1));
    let came = Event::Came { link, id, incarnation, cluster: Some(CLUSTER), seen: seen(2, 20, 8) };
    assert_eq!(bench.step(came), [Effect::Welcome { link }, Effect::AskLineage { link }]);
    let mut silent = bench.machine.clone();
    let begins = bench.step(Event::Lineage { link, reigns: Vec::new() });
    assert!(matches!(begins[..], [Effect::Note(_), Effect::Begin { .. }]), "{begins:?}");
    let mut effects = Vec::new();
    silent.step(Millis(WAIT_MS), Event::Tick, &mut effects);
    let missing = SalvageOutcome::Missing { named: vec![slave("one")], there: 0 };
    assert_eq!(effects, [Effect::End(missing)]);
}

#[test]
fn each_witness_is_noted_by_its_name() {
    let mut bench = Bench::of(WISHES, Log::new());
    for (link, name, seq) in [(1, "one", 20), (2, "two", 12)] {
        bench.comes(link, name, seen(2, 20, seq));
    }
    // A repair that has begun keeps masters from serving whatever was owed.
    bench.comes(3, "three", seen(2, 20, 20).map(|seen| Seen { durable: false, ..seen }));
    bench.comes(4, "four", seen(1, 10, 6));
    let effects = bench.after(WAIT_MS);
    let [Effect::Note(text), Effect::Begin { .. }] = &effects[..] else { panic!("{effects:?}") };
    assert!(text.seen.iter().all(|(_, seen)| seen.durable), "{:?}", text.seen);
    let mut names: Vec<_> = text.seen.iter().map(|(id, seen)| (id.as_str(), seen.seq.0)).collect();
    names.sort_unstable();
    assert_eq!(names, [("one", 20), ("three", 20), ("two", 12)]);
}

#[test]
fn nothing_is_done_where_nothing_lacks_or_only_to_be_told() {
    let mut bench = Bench::of(WISHES, Log::new());
    bench.comes(1, "one", seen(1, 10, 6));
    bench.comes(2, "new", None);
    assert_eq!(bench.after(WAIT_MS), [Effect::End(SalvageOutcome::NothingLacks)]);
    let mut bench = Bench::of(Wishes { dry_run: true, ..WISHES }, Log::new());
    bench.comes(1, "one", seen(1, 10, 7));
    assert_eq!(bench.after(WAIT_MS), [Effect::End(SalvageOutcome::Told)]);
    assert!(bench.machine.findings().slaves[0].is_witness);
}

#[test]
fn of_two_slaves_that_disagree_about_one_version_neither_is_believed() {
    for (undecided, asked) in [(Undecided::Stop, 0), (Undecided::Log, 0), (Undecided::Slaves, 1)] {
        let mut bench = Bench::of(Wishes { undecided, ..WISHES }, Log::new());
        bench.comes(1, "one", seen(2, 20, 9));
        bench.comes(2, "two", seen(2, 21, 9));
        bench.begin(&[(1, seen(2, 20, 9)), (2, seen(2, 21, 9))]);
        bench.reports(1, &[("b", stamp(1, 10, 4)), ("e", stamp(2, 20, 9))]);
        bench.reports(2, &[("b", stamp(1, 10, 4)), ("e", stamp(2, 21, 9))]);
        let effects = bench.surveyed();
        assert_eq!(Bench::asked(&effects).len(), asked, "{undecided:?}");
        assert_eq!(bench.machine.findings().undecided, [b"e"]);
        let is_over = effects == [Effect::End(SalvageOutcome::Undecided)];
        assert_eq!(is_over, undecided == Undecided::Stop);
    }
}

#[test]
fn what_the_log_has_written_or_deleted_since_the_fork_does_not_come_back() {
    let mut log = Log::new();
    log.reign(2, "h:1", &[]);
    log.write("a");
    log.add(&Operation::Delete(vec!["b".into()]), &[]);
    let mut bench = Bench::of(Wishes { undecided: Undecided::Log, ..WISHES }, log);
    bench.comes(1, "one", seen(2, 22, 30));
    bench.begin(&[(1, seen(2, 22, 30))]);
    let theirs = stamp(2, 22, 30);
    bench.reports(1, &[("a", theirs), ("b", theirs), ("c", theirs), ("d", stamp(1, 10, 6)), ("e", theirs)]);
    let asked = Bench::asked(&bench.surveyed());
    let keys: Vec<_> = asked.iter().map(|(_, key, _)| key.as_str()).collect();
    assert_eq!(keys, ["c", "e"]);
    assert_eq!(bench.machine.findings().undecided_keys, 2);
}

#[test]
fn a_key_that_a_compacted_log_may_have_deleted_since_the_fork_is_not_decided() {
    let leave_out: [fn(&mut Log); 4] = [
        |log| log.write_after("x", 3),
        |log| log.write_after("x", 1),
        |log| log.mark_after(3),
        |log| log.mark_after(1),
    ];
    leave_out.into_iter().for_each(a_key_that_may_be_left_out_is_not_decided);
}

fn a_key_that_may_be_left_out_is_not_decided(leave_out: fn(&mut Log)) {
    let mut log = Log::new();
    log.reign(2, "h:1", &[]);
    leave_out(&mut log);
    let mut bench = Bench::of(Wishes { undecided: Undecided::Log, ..WISHES }, log);
    bench.comes(1, "one", seen(2, 22, 30));
    bench.begin(&[(1, seen(2, 22, 30))]);
    let theirs = stamp(2, 22, 30);
    bench.reports(1, &[("a", theirs), ("d", stamp(1, 10, 6)), ("e", theirs)]);
    let asked = Bench::asked(&bench.surveyed());
    // What is still there was not deleted.
    assert_eq!(asked.len(), 1);
    assert_eq!((asked[0].1.as_str(), &bench.machine.findings().undecided[..]), ("a", &[b"e".to_vec()][..]));
}

#[test]
fn after_a_record_that_was_damaged_and_taken_out_no_key_is_decided() {
    let mut log = Log::new();
    log.reign(2, "h:1", &[]);
    log.write_behind_a_loss("x");
    let mut bench = Bench::of(Wishes { undecided: Undecided::Log, ..WISHES }, log.clone());
    bench.comes(1, "one", seen(2, 22, 30));
    bench.begin(&[(1, seen(2, 22, 30))]);
    let theirs = stamp(2, 22, 30);
    bench.reports(1, &[("a", theirs), ("e", theirs)]);
    assert_eq!(Bench::asked(&bench.surveyed()), []);
    assert_eq!(bench.machine.findings().undecided_keys, 2);
    // A loss before the fork says nothing.
    let mut bench = Bench::of(WISHES, log);
    bench.comes_of(1, "one", seen(3, 30, 30), &[(1, 10, 2), (2, 20, 7), (3, 30, 10)]);
    bench.begin(&[(1, seen(3, 30, 30))]);
    bench.reports(1, &[("a", stamp(3, 30, 30))]);
    assert_eq!(Bench::asked(&bench.surveyed()).len(), 1);
}

#[test]
fn what_an_earlier_repair_put_back_and_somebody_served_comes_back_where_the_log_lost_it_again() {
    let mut log = Log::new();
    log.reign(5, BEGUN_AT, &[]);
    log.recovered("a", stamp(3, 30, 20));
    let copies = [("a", stamp(5, 50, 8)), ("b", stamp(5, 50, 9)), ("c", stamp(7, 70, 14))];
    let reigns = [(1, 10, 2), (5, 50, 7), (6, 60, 12), (7, 70, 13)];
    // Its list says so, or it is too short and only its copies do.
    for reigns in [&reigns[..], &reigns[3..]] {
        let mut bench = Bench::of(Wishes { undecided: Undecided::Log, ..WISHES }, log.clone());
        bench.comes_of(1, "one", seen(7, 70, 14), reigns);
        bench.begin(&[(1, seen(7, 70, 14))]);
        bench.reports(1, &copies);
        let asked = Bench::asked(&bench.surveyed());
        assert!(asked.contains(&(1, "b".into(), stamp(5, 50, 9))), "{asked:?}");
        let undecided = &bench.machine.findings().undecided;
        assert!(reigns.len() == 1 || (undecided.is_empty() && asked.len() == 2), "{undecided:?}");
    }
}

#[test]
fn a_reign_whose_epoch_record_is_lost_ends_the_one_before_it() {
    let mut log = Log::new();
    log.epoch = 5;
    log.recovered("a", stamp(3, 30, 20));
    let end = log.walk(|_| {});
    assert!(end.is_half_repaired, "no master may serve it");
    let mut bench = Bench::of(WISHES, log);
    bench.comes_of(1, "one", seen(3, 30, 25), &[(1, 10, 2), (3, 30, 9)]);
    bench.begin(&[(1, seen(3, 30, 25))]);
    bench.reports(1, &[("a", stamp(3, 30, 20)), ("b", stamp(3, 30, 21))]);
    let asked = Bench::asked(&bench.surveyed());
    assert_eq!(asked, [(1, "b".into(), stamp(3, 30, 21))]);
    assert_eq!(bench.machine.findings().done_before, 1);
    // One that was served: what it has written came after the end of reign 1.
    let mut log = Log::new();
    log.epoch = 2;
    log.write("a");
    assert!(!log.walk(|_| {}).is_half_repaired);
    let mut bench = Bench::of(Wishes { undecided: Undecided::Log, ..WISHES }, log);
    bench.comes_of(1, "one", seen(1, 10, 9), &[(1, 10, 2)]);
    bench.begin(&[(1, seen(1, 10, 9))]);
    bench.reports(1, &[("a", stamp(1, 10, 9)), ("b", stamp(1, 10, 8))]);
    assert_eq!(Bench::asked(&bench.surveyed()), [(1, "b".into(), stamp(1, 10, 8))]);
    assert_eq!(bench.machine.findings().undecided, [b"a".to_vec()]);
}

/// Otherwise no master would serve it, and a repair would find nothing to do.
#[test]
fn a_log_that_was_served_after_a_repair_is_not_half_repaired_though_the_epoch_records_since_are_lost() {
    for operation in [Operation::Write(vec![("a".into(), "new".into())]), Operation::Delete(vec!["a".into()])]
    {
        let mut log = Log::new();
        log.reign(3, BEGUN_AT, &[]);
        assert!(log.walk(|_| {}).is_half_repaired);
        log.epoch = 5;
        log.add(&operation, &[]);
        assert!(!log.walk(|_| {}).is_half_repaired, "{operation:?}: somebody has served it");
    }
}

#[test]
fn an_unfinished_repair_goes_on_with_what_is_newer_than_what_it_had() {
    let mut log = Log::new();
    log.reign(5, BEGUN_AT, &[]);
    log.recovered("a", stamp(3, 30, 20));
    log.recovered("b", stamp(3, 30, 21));
    let mut noted = WitnessText { cluster: Some(CLUSTER), ..WitnessText::default() };
    noted.note(slave("one"), seen(3, 30, 25).unwrap());
    let mut bench = Bench::new(WISHES, log, noted, LockText::default());
    // The slave remembers the reign of the repair only.
    bench.comes_of(1, "one", seen(5, 50, 7), &[(1, 10, 2), (3, 30, 9)]);
    bench.begin(&[(1, seen(5, 50, 7))]);
    let newer = stamp(3, 30, 25);
    bench.reports(1, &[("a", newer), ("b", stamp(3, 30, 21)), ("c", newer), ("d", stamp(1, 10, 6))]);
    let asked = Bench::asked(&bench.surveyed());
    let keys: Vec<_> = asked.iter().map(|(_, key, stamp)| (key.as_str(), *stamp)).collect();
    assert_eq!(keys, [("a", newer), ("c", newer)]);
    assert_eq!(bench.machine.findings().done_before, 1);
}

#[test]
fn a_slave_that_is_lost_is_replaced_by_another_holder_and_then_waited_for() {
    let mut bench = Bench::of(WISHES, Log::new());
    let witness = seen(2, 20, 9);
    bench.comes(1, "one", witness);
    bench.comes(2, "two", witness);
    bench.begin(&[(1, witness), (2, witness)]);
    let lost = stamp(2, 20, 9);
    bench.reports(1, &[("a", lost), ("d", stamp(1, 10, 6))]);
    bench.reports(2, &[("a", lost)]);
    let asked = Bench::asked(&bench.surveyed());
    assert_eq!(asked[0].0, 1);
    assert_eq!(Bench::asked(&bench.step(Event::Gone { link: LinkId(1) }))[0].0, 2);
    assert_eq!(bench.step(Event::Gone { link: LinkId(2) }), []);
    assert_eq!(bench.after(WAIT_MS - 1), []);
    // It comes back with what it has.
    let effects = bench.comes(3, "two", seen(50, 500, 1000));
    assert_eq!(effects[1], Effect::Announce { link: LinkId(3), reign: OWN, seq: Seq(1000) });
    let effects = bench.step(Event::Enlisted { link: LinkId(3), reign: OWN, seen: seen(50, 500, 1000) });
    assert_eq!(Bench::asked(&effects)[0].0, 3);
    bench.step(Event::Gone { link: LinkId(3) });
    let effects = bench.after(WAIT_MS);
    assert!(matches!(effects[..], [Effect::End(SalvageOutcome::Lost { .. })]), "{effects:?}");
}

#[test]
fn a_slave_without_what_it_has_reported_is_passed_over_and_one_that_says_nothing_is_cut_off() {
    let mut bench = Bench::of(WISHES, Log::new());
    let witness = seen(2, 20, 9);
    bench.comes(1, "one", witness);
    bench.begin(&[(1, witness)]);
    bench.reports(1, &[("a", stamp(2, 20, 9)), ("d", stamp(1, 10, 6))]);
    let effects = bench.surveyed();
    let Effect::Read { link, tag, .. } = effects[0] else { panic!("{effects:?}") };
    assert_eq!(bench.step(Event::Missing { link: LinkId(9), tag }), [], "it was not asked");
    let mut silent = bench.machine.clone();
    assert_eq!(
        bench.step(Event::Missing { link, tag }),
        [Effect::End(SalvageOutcome::Lost { id: slave("one") })]
    );
    let mut effects = Vec::new();
    silent.step(bench.now.plus(SILENT_MS), Event::Tick, &mut effects);
    assert_eq!(effects[0], Effect::Refuse { link, why: SalvageRefusal::Silent });
}

#[test]
fn strangers_latecomers_and_restarted_slaves_have_no_part_in_it() {
    let mut bench = Bench::of(WISHES, Log::new());
    let came = |link: u64, name: &str, incarnation, cluster| Event::Came {
        link: LinkId(link),
        id: slave(name),
        incarnation: Incarnation(incarnation),
        cluster: Some(ClusterId(cluster)),
        seen: None,
    };
    let refused = |effects: Vec<Effect>| {
        let Some(Effect::Refuse { why, .. }) = effects.first() else { return None };
        Some(why.clone())
    };
    let other = refused(bench.step(came(1, "other", 1, 8)));
    assert!(
        matches!(other, Some(SalvageRefusal::Unwelcome(Unwelcome::SlaveOfOtherCluster { .. }))),
        "{other:?}"
    );
    bench.comes(2, "one", seen(2, 20, 9));
    let twin = refused(bench.step(came(3, "one", 2, 7)));
    assert!(matches!(twin, Some(SalvageRefusal::Unwelcome(Unwelcome::NameInUse { .. }))), "{twin:?}");
    // A second link of the same process waits.
    assert_eq!(bench.comes(4, "one", seen(2, 20, 9)), [Effect::Welcome { link: LinkId(4) }]);
    bench.begin(&[(2, seen(2, 20, 9))]);
    assert_eq!(refused(bench.step(came(5, "late", 1, 7))), Some(SalvageRefusal::Late));
    let effects = bench.step(Event::Gone { link: LinkId(2) });
    assert_eq!(effects, [Effect::Announce { link: LinkId(4), reign: OWN, seq: Seq(1000) }]);
    assert_eq!(refused(bench.step(came(6, "one", 2, 7))), Some(SalvageRefusal::Restarted));
    let liar = bench.step(Event::Enlisted { link: LinkId(4), reign: OWN, seen: seen(3, 33, 9) });
    assert_eq!(refused(liar), Some(SalvageRefusal::OtherWitness));
}

#[test]
fn slaves_that_come_and_go_without_anything_new_do_not_hold_a_repair_for_ever() {
    let mut bench = Bench::of(WISHES, Log::new());
    let witness = seen(2, 20, 9);
    bench.comes(1, "one", witness);
    bench.comes(2, "two", witness);
    bench.begin(&[(1, witness), (2, witness)]);
    assert_eq!(bench.reports(2, &[]), []);
    let stalled = [Effect::End(SalvageOutcome::Stalled { named: vec![slave("one")] })];
    let part = |bench: &mut Bench, link, key: &'static str, last| {
        let entries = vec![(Bytes::from_static(key.as_bytes()), stamp(2, 20, 9))];
        bench.step(Event::Holdings { link: LinkId(link), entries, last })
    };
    // Its report begins anew each time, and comes no further than before.
    let mut flapping = 1;
    let mut flap = |bench: &mut Bench, parts: usize| {
        for _ in 0..parts {
            part(bench, flapping, "a", false);
        }
        bench.now = bench.now.plus(WAIT_MS / 2);
        let goes = bench.step(Event::Gone { link: LinkId(flapping) });
        flapping += 10;
        let comes = bench.comes(flapping, "one", seen(50, 500, 1000));
        let admits =
            bench.step(Event::Enlisted { link: LinkId(flapping), reign: OWN, seen: seen(50, 500, 1000) });
        [goes, comes, admits].concat()
    };
    let (mut last, mut flaps) = (Vec::new(), 0);
    // As long as there is something new it goes on.
    for parts in 1..200 {
        last = flap(&mut bench, parts);
        assert_eq!(last.len(), 3, "{last:?}");
    }
    while last.len() == 3 {
        last = flap(&mut bench, if flaps % 2 == 0 { 199 } else { 3 });
        flaps += 1;
        assert!(flaps < 1000, "it holds the repair for ever");
    }
    assert_eq!(last, stalled);
    assert_eq!(flaps, (WAIT_MS + STALLED_MS) / (WAIT_MS / 2) - 1);
}

#[test]
fn a_holder_that_comes_and_goes_does_not_hold_a_repair_for_ever() {
    let mut bench = Bench::of(WISHES, Log::new());
    let witness = seen(2, 20, 9);
    bench.comes(1, "one", witness);
    bench.begin(&[(1, witness)]);
    bench.reports(1, &[("a", stamp(2, 20, 9))]);
    assert_eq!(Bench::asked(&bench.surveyed()).len(), 1);
    let (mut link, mut flaps) = (1, 0);
    let last = loop {
        bench.now = bench.now.plus(WAIT_MS / 2);
        flaps += 1;
        let goes = bench.step(Event::Gone { link: LinkId(link) });
        if !goes.is_empty() {
            break goes;
        }
        link += 1;
        bench.comes(link, "one", seen(50, 500, 1000));
        let reads = bench.step(Event::Enlisted { link: LinkId(link), reign: OWN, seen: seen(50, 500, 1000) });
        assert!(matches!(reads[..], [Effect::Admit { .. }, Effect::Read { .. }]), "{reads:?}");
        assert!(flaps < 1000, "it holds the repair for ever");
    };
    assert_eq!(last, [Effect::End(SalvageOutcome::Stalled { named: vec![slave("one")] })]);
    assert_eq!(flaps, (WAIT_MS + STALLED_MS) / (WAIT_MS / 2));
}

#[test]
fn a_deletion_after_a_fork_inside_one_reign_does_not_come_undone() {
    // Reign 1 of the log goes on to seq 9. The slaves have copies through seq 6, and reign 2 began at 7 elsewhere.
    let mut log = Log::new();
    log.write("b");
    log.add(&Operation::Delete(vec!["d".into()]), &[]);
    log.write("c");
    let mut bench = Bench::of(Wishes { undecided: Undecided::Log, ..WISHES }, log);
    let theirs = stamp(2, 20, 12);
    bench.comes_of(1, "one", seen(2, 20, 12), &[(1, 10, 2), (2, 20, 7)]);
    bench.begin(&[(1, seen(2, 20, 12))]);
    bench.reports(1, &[("a", theirs), ("b", theirs), ("c", theirs), ("d", theirs), ("x", stamp(1, 10, 6))]);
    let asked = Bench::asked(&bench.surveyed());
    assert_eq!(asked, [(1, "a".to_owned(), theirs)]);
    assert_eq!(bench.machine.findings().undecided_keys, 3);
}

#[test]
fn two_copies_of_one_reign_that_went_on_apart_are_both_believed_only_where_they_agree() {
    // Reign 2 went on to 30 on one slave; on a copy of its log that ends at 19 reign 3 began.
    let mut bench = Bench::of(Wishes { undecided: Undecided::Log, ..WISHES }, Log::new());
    let (original, copy) = (seen(2, 20, 30), seen(3, 30, 25));
    bench.comes_of(1, "original", original, &[(1, 10, 2), (2, 20, 9)]);
    bench.comes_of(2, "copy", copy, &[(1, 10, 2), (2, 20, 9), (3, 30, 20)]);
    bench.begin(&[(1, original), (2, copy)]);
    let (before, after, there) = (stamp(2, 20, 15), stamp(2, 20, 28), stamp(3, 30, 25));
    bench.reports(1, &[("a", before), ("b", after), ("c", before), ("d", after)]);
    bench.reports(2, &[("a", there), ("b", there), ("e", there)]);
    let asked = Bench::asked(&bench.surveyed());
    let asked: Vec<_> = asked.iter().map(|(_, key, stamp)| (key.as_str(), *stamp)).collect();
    assert_eq!(asked, [("a", there), ("c", before), ("d", after), ("e", there)]);
    assert_eq!(bench.machine.findings().undecided, [b"b"]);
}

#[test]
fn of_copies_without_an_order_the_highest_epoch_is_taken_if_slaves_are_to_be_believed() {
    let reigns = [(1, 10, 2), (2, 20, 9), (3, 30, 20)];
    let (original, copy) = (seen(2, 20, 30), seen(3, 30, 25));
    for undecided in [Undecided::Log, Undecided::Slaves] {
        let mut bench = Bench::of(Wishes { undecided, ..WISHES }, Log::new());
        bench.comes_of(1, "original", original, &reigns[..2]);
        bench.comes_of(2, "copy", copy, &reigns);
        bench.comes_of(3, "older", copy, &reigns);
        bench.begin(&[(1, original), (2, copy), (3, copy)]);
        bench.reports(1, &[("b", stamp(2, 20, 28))]);
        // One between them changes nothing.
        bench.reports(3, &[("b", stamp(3, 30, 21))]);
        bench.reports(2, &[("b", stamp(3, 30, 25))]);
        let effects = bench.surveyed();
        let asked = Bench::asked(&effects);
        let wanted =
            if undecided == Undecided::Log { vec![] } else { vec![(2, "b".into(), stamp(3, 30, 25))] };
        assert_eq!(asked, wanted, "{undecided:?}");
        assert_eq!(bench.machine.findings().undecided, [b"b"]);
        for effect in effects {
            let Effect::Read { link, tag, stamp, key } = effect else { continue };
            let value = Bytes::from_static(b"theirs");
            let takes = bench.step(Event::Value { link, tag, stamp, value: value.clone() });
            assert_eq!(takes[0], Effect::Append { key, stamp, value, is_undecided: true });
        }
    }
}

#[test]
fn what_a_run_has_put_back_because_slaves_were_to_be_believed_binds_the_next_one() {
    let mut log = Log::new();
    log.reign(5, BEGUN_AT, &[]);
    log.recovered("a", stamp(3, 30, 20));
    let fields: [(&str, &[u8]); 2] = [(RECOVERED, b"3-000000000000001e.21"), (UNDECIDED, b"slaves")];
    log.add(&Operation::Write(vec![("b".into(), "back".into())]), &fields);
    let look = |undecided, log: &Log| {
        let mut bench = Bench::of(Wishes { undecided, ..WISHES }, log.clone());
        bench.comes_of(1, "one", seen(3, 30, 25), &[(1, 10, 2), (3, 30, 9)]);
        bench.after(WAIT_MS)
    };
    for other in [Undecided::Log, Undecided::Stop] {
        assert_eq!(look(other, &log), [Effect::End(SalvageOutcome::DecidedBefore)], "{other:?}");
    }
    let goes_on = look(Undecided::Slaves, &log);
    assert!(matches!(goes_on[..], [Effect::Note(_), Effect::Begin { .. }]), "{goes_on:?}");
    // Once that repair has come to its end, the next one is another one.
    log.reign(6, ENDED_AT, &[]);
    let begins = look(Undecided::Log, &log);
    assert!(matches!(begins[..], [Effect::Note(_), Effect::Begin { .. }]), "{begins:?}");
}

#[test]
fn nothing_is_done_if_not_all_witnesses_can_be_noted() {
    let mut noted = WitnessText { cluster: Some(CLUSTER), ..WitnessText::default() };
    for epoch in 0..NOTED_MAX as u64 {
        noted.note(slave("one"), seen(100 + epoch, 1, 9).unwrap());
    }
    let run = |name: &str, epoch| {
        let mut bench = Bench::new(WISHES, Log::new(), noted.clone(), LockText::default());
        if name != "one" {
            bench.comes(1, "one", seen(100, 1, 9));
        }
        bench.comes(2, name, seen(epoch, 1, 9));
        bench.after(WAIT_MS)
    };
    assert_eq!(run("two", 100), [Effect::End(SalvageOutcome::TooManyWitnesses)]);
    let all = run("one", 101);
    assert!(matches!(all[..], [Effect::Note(_), Effect::Begin { .. }]), "{all:?}");
}

#[test]
fn an_older_copy_that_is_astray_does_not_put_a_later_one_in_doubt() {
    // Reign 2 was followed by reign 4 on a copy of it, and its slave has an older record that this copy did not have.
    let mut bench = Bench::of(WISHES, Log::new());
    let (one, two) = (seen(4, 40, 30), seen(3, 30, 25));
    bench.comes_of(1, "one", one, &[(1, 10, 2), (2, 20, 9), (4, 40, 15)]);
    bench.comes_of(2, "two", two, &[(1, 10, 2), (2, 20, 9), (3, 30, 20)]);
    bench.begin(&[(1, one), (2, two)]);
    bench.reports(1, &[("a", stamp(2, 20, 17)), ("b", stamp(3, 30, 25))]);
    bench.reports(2, &[("a", stamp(3, 30, 25)), ("b", stamp(3, 30, 25))]);
    let effects = bench.surveyed();
    assert_eq!(effects, [Effect::End(SalvageOutcome::Undecided)]);
    assert_eq!(bench.machine.findings().undecided, [b"b"]);
}

#[test]
fn a_copy_that_the_log_of_its_slave_did_not_have_is_not_decided() {
    let mut bench = Bench::of(Wishes { undecided: Undecided::Log, ..WISHES }, Log::new());
    let witness = seen(3, 30, 25);
    bench.comes_of(1, "one", witness, &[(1, 10, 2), (2, 20, 9), (3, 30, 20)]);
    bench.begin(&[(1, witness)]);
    bench.reports(
        1,
        &[("a", stamp(2, 20, 19)), ("b", stamp(2, 20, 20)), ("c", stamp(2, 22, 12)), ("d", stamp(3, 30, 25))],
    );
    let asked = Bench::asked(&bench.surveyed());
    let asked: Vec<_> = asked.iter().map(|(_, key, _)| key.as_str()).collect();
    assert_eq!(asked, ["a", "d"]);
    assert_eq!(bench.machine.findings().undecided_keys, 2);
}

#[test]
fn what_an_earlier_repair_has_put_back_is_undecided_when_somebody_has_another_one() {
    let mut log = Log::new();
    log.reign(5, BEGUN_AT, &[]);
    log.recovered("a", stamp(3, 30, 20));
    log.recovered("b", stamp(3, 30, 21));
    for undecided in [Undecided::Log, Undecided::Slaves] {
        let mut bench = Bench::of(Wishes { undecided, ..WISHES }, log.clone());
        bench.comes_of(1, "one", seen(3, 30, 25), &[(1, 10, 2), (3, 30, 9)]);
        bench.comes_of(2, "two", seen(2, 20, 25), &[(1, 10, 2), (2, 20, 9)]);
        bench.begin(&[(1, seen(3, 30, 25)), (2, seen(2, 20, 25))]);
        bench.reports(1, &[]);
        bench.reports(2, &[("a", stamp(2, 20, 19))]);
        // It is there already, and nobody has it any more.
        assert_eq!(bench.surveyed(), [finish(&[Reign::new(2, 20), Reign::new(3, 30)])]);
        let findings = bench.machine.findings();
        assert_eq!((&findings.undecided[..], findings.done_before), (&[b"a".to_vec()][..], 1));
    }
}

#[test]
fn an_unfinished_repair_is_gone_on_with_though_nobody_knows_of_it_but_the_log() {
    let mut log = Log::new();
    log.reign(5, BEGUN_AT, &[]);
    let mut bench = Bench::of(WISHES, log);
    bench.comes(1, "one", seen(1, 10, 6));
    let effects = bench.after(WAIT_MS);
    assert!(matches!(effects[..], [Effect::Note(_), Effect::Begin { epoch: Epoch(6) }]), "{effects:?}");
}

#[test]
fn a_value_of_another_reign_is_not_the_one_that_was_reported() {
    let mut bench = Bench::of(WISHES, Log::new());
    let witness = seen(2, 20, 9);
    bench.comes(1, "one", witness);
    bench.begin(&[(1, witness)]);
    bench.reports(1, &[("a", stamp(2, 20, 9))]);
    let effects = bench.surveyed();
    let Effect::Read { link, tag, .. } = effects[0] else { panic!("{effects:?}") };
    let value = Event::Value { link, tag, stamp: stamp(2, 21, 9), value: Bytes::new() };
    assert_eq!(bench.step(value), [Effect::End(SalvageOutcome::Lost { id: slave("one") })]);
}
