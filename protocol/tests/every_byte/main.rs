//! A log of 1,000 records, cut and damaged at every byte: either every acknowledged record is there, or the log is
//! refused with the place of the damage.
//!
//! The log is written as the log writer writes it ([`log`]), in groups whose lines say what was synced when the group was
//! formed. The oracle is [`Crash`]: it knows which bytes were synced when the system stopped, and so which records may
//! have been acknowledged. It never looks at the lines. Every recovery must end in exactly one of
//!
//! * whole, with every acknowledged record,
//! * torn, and nothing from there on was ever acknowledged,
//! * corrupt, with the offset and the number of the damaged line,
//!
//! and every line that it accepts must be one that was written. Most recoveries begin at the last good line before the
//! damage, a few at the start of the file; the results must be the same.
//!
//! One loss cannot be seen in the file: that of the log's end, if no SYNCED follows it. A file that is cut at the end of
//! a line is whole. A file that is cut within a line, or damaged in its last group before any line said that the group
//! was synced, looks as after a crash, and is cut there, with a warning. Only a slave that holds a lost version can tell.
//! Also, lines of the original program have no checksum. The tests of invisible losses fix the limits of these cases, so
//! that they cannot grow unnoticed.
#![allow(clippy::unwrap_used)]

mod log;

use dsm_protocol::ids::{LinkId, Millis, ReignId, SlaveId, Stamp, Version};
use dsm_protocol::machine::master::{self, Effect, Master};
use dsm_protocol::record::{CrashKind, Judge, Operation, Scanner, Step, Verdict};
use log::{Log, Numbers, LINE_MAX};
use std::ops::Range;
use CrashKind::{MayHaveLostPower, SameBoot};

const RECORDS: u64 = 1_000;

/// How much is read at once. It is little, so that the rest of the log is not read for each of a million damages.
const CHUNK_BYTES: usize = 512;

/// One in this many recoveries is repeated from the start of the file, in chunks of another length.
const CHECK_EVERY: u64 = 4001;

/// The unit that reaches the disk as a whole, in bytes.
const SECTOR_BYTES: usize = 512;

/// All ways of damage.
const EVERY_WAY: usize = usize::MAX;

/// What replaces a byte, in addition to flips of each bit: bytes with a meaning in a line, and zero.
const REPLACEMENTS: [u8; 7] = [b'\n', b' ', b'%', b';', b'0', 0, 0xff];

/// What was on disk when the system stopped, and so what may have been acknowledged.
#[derive(Clone, Copy, Debug)]
struct Crash {
    kind: CrashKind,
    /// The file's length.
    file_end: usize,
    /// Everything before this was synced, so its records are acknowledged; nothing after it was.
    synced_end: usize,
}

impl Crash {
    /// How many records may not be lost.
    fn acknowledged(&self, log: &Log) -> u64 {
        log.records_before(log.line_at(self.synced_end))
    }
}

/// How a recovery ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    /// Nothing is wrong.
    Whole,
    /// Everything from here on is cut.
    Torn { offset: usize },
    /// The master does not start.
    Corrupt { offset: usize, line: u64 },
}

impl Outcome {
    fn is_torn(self) -> bool {
        matches!(self, Outcome::Torn { .. })
    }

    fn is_corrupt(self) -> bool {
        matches!(self, Outcome::Corrupt { .. })
    }
}

/// Does with `file` what a new holder of the lock does, from line `from` on: reads to the end, and judges a bad line.
/// Gives the number of lines before the place where it ended, and the outcome.
///
/// # Panics
/// When a line is accepted that was not written at that place.
fn recover(log: &Log, file: &[u8], from: usize, kind: CrashKind, chunk_bytes: usize) -> (usize, Outcome) {
    let mut scanner = Scanner::resume(log.positions[from], LINE_MAX);
    let mut reached = from;
    let mut length = chunk_bytes;
    let bad = loop {
        let offset = scanner.position().offset as usize;
        let read = &file[offset..file.len().min(offset + length)];
        let at_end = offset + read.len() == file.len();
        let step = if at_end { scanner.finish(read) } else { Some(scanner.next(read)) };
        match step {
            None => break None,
            Some(Step::Record { span, .. }) => {
                let line = log.lines.get(reached).expect("a line that was never written is accepted");
                let place = span.offset as usize..span.offset as usize + span.bytes as usize;
                assert_eq!(place, line.start..line.end, "a line that was never written is accepted");
                assert_eq!(file[place.clone()], log.bytes[place], "a damaged line is accepted");
                reached += 1;
                length = chunk_bytes;
            }
            Some(Step::Ignored) => panic!("a READ of the original program is found at {offset}"),
            Some(Step::Partial) => length *= 2,
            Some(Step::Bad(bad)) => break Some(bad),
        }
    };
    let Some(bad) = bad else { return (reached, Outcome::Whole) };
    assert_eq!((bad.offset, bad.line), (log.positions[reached].offset, log.positions[reached].line + 1));
    let rest = &file[bad.offset as usize..];
    let mut judge = Judge::new(bad, kind, LINE_MAX);
    for chunk in rest.chunks(chunk_bytes) {
        judge.push(chunk);
        if judge.is_decided() {
            break;
        }
    }
    let outcome = match judge.finish() {
        Verdict::Torn { offset, bytes, lines } => {
            assert_eq!(bytes, rest.len() as u64, "the warning tells how much is cut");
            let newlines = memchr::memchr_iter(b'\n', rest).count() as u64;
            assert_eq!(lines, newlines + u64::from(rest.last() != Some(&b'\n')));
            Outcome::Torn { offset: offset as usize }
        }
        Verdict::Corrupt { offset, line, .. } => Outcome::Corrupt { offset: offset as usize, line },
    };
    (reached, outcome)
}

/// Counts recoveries, and checks each of them.
#[derive(Default)]
struct Checked(u64);

impl Checked {
    /// Recovers `file` from line `from` on after `crash`, and checks the promise at the top of this file. Gives the line
    /// that was reached and the outcome.
    #[track_caller]
    fn recover(
        &mut self,
        log: &Log,
        file: &[u8],
        from: usize,
        crash: Crash,
        what: &dyn Fn() -> String,
    ) -> (usize, Outcome) {
        let (reached, outcome) = recover(log, file, from, crash.kind, CHUNK_BYTES);
        self.0 += 1;
        if self.0.is_multiple_of(CHECK_EVERY) {
            let chunk_bytes = [7, 4096, 1 << 20][(self.0 / CHECK_EVERY % 3) as usize];
            assert_eq!(
                recover(log, file, 0, crash.kind, chunk_bytes),
                (reached, outcome),
                "in chunks of {chunk_bytes}"
            );
        }
        let place = log.positions[reached].offset as usize;
        let nothing_lost = log.records_before(reached) >= crash.acknowledged(log);
        match outcome {
            Outcome::Whole => assert!(nothing_lost, "silent loss after {place}: {}, {crash:?}", what()),
            Outcome::Torn { offset } => {
                assert_eq!(offset, place, "{}, {crash:?}", what());
                assert!(nothing_lost, "acknowledged records are cut at {place}: {}, {crash:?}", what());
            }
            Outcome::Corrupt { offset, line } => {
                assert_eq!((offset, line), (place, reached as u64 + 1), "{}, {crash:?}", what());
            }
        }
        (reached, outcome)
    }

    /// Damages each byte of `range` in the first `ways` ways and recovers. `expected` restricts the allowed outcomes further.
    /// `file` is restored.
    fn damage_every_byte(
        &mut self,
        log: &Log,
        file: &mut [u8],
        crash: Crash,
        (range, ways): (Range<usize>, usize),
        expected: impl Fn(usize, Outcome) -> bool,
    ) {
        for at in range {
            let byte = file[at];
            let line = log.line_at(at);
            for damaged in damages(byte, at).take(ways) {
                file[at] = damaged;
                let what = || format!("byte {at}, {byte:#04x} became {damaged:#04x}");
                let (reached, outcome) = self.recover(log, &file[..crash.file_end], line, crash, &what);
                assert_eq!(reached, line, "a damaged line is accepted: {}", what());
                assert!(expected(at, outcome), "{outcome:?}: {}, {crash:?}", what());
            }
            file[at] = byte;
        }
    }
}

/// What the byte at `at` may become. First comes one flipped bit, another one at each place.
fn damages(byte: u8, at: usize) -> impl Iterator<Item = u8> {
    let flipped = (at..at + 8).map(move |bit| byte ^ 1 << (bit % 8));
    flipped.chain(REPLACEMENTS.into_iter().filter(move |other| *other != byte))
}

/// Whether the byte belongs to the head, by which the file is known to be a log. There a refusal is right even if
/// nothing was synced.
fn is_in_head(log: &Log, at: usize) -> bool {
    matches!(log.lines[log.line_at(at)].operation, Operation::Cluster(_))
}

/// Cuts a log at every byte while it was written; each time everything that was synced before must be there.
fn cut_at_every_byte(log: &Log) {
    let mut checked = Checked::default();
    for (number, unit) in log.units.iter().enumerate() {
        // A scan of everything before shows that the places between lines are right.
        let from = log.line_at(log.units[number.saturating_sub(1)].start);
        for file_end in unit.start.max(log.written_from)..=unit.end {
            let line = log.line_at(file_end);
            let start = log.positions[line].offset as usize;
            let expected = if start == file_end { Outcome::Whole } else { Outcome::Torn { offset: start } };
            let synced_end = if file_end == unit.end { unit.end } else { unit.start };
            for kind in [SameBoot, MayHaveLostPower] {
                let crash = Crash { kind, file_end, synced_end };
                let found = checked.recover(log, &log.bytes[..file_end], from, crash, &|| "cut".to_owned());
                assert_eq!(found, (line, expected), "{crash:?}");
            }
        }
    }
    assert!(checked.0 as usize >= 2 * (log.bytes.len() - log.written_from));
}

/// Damages every byte of a log that ends in a mark: only the mark itself, which is not a record, may be torn.
fn damage_what_a_mark_covers(log: &Log) {
    let mut checked = Checked::default();
    let mut file = log.bytes.clone();
    let (file_end, mark) = (log.bytes.len(), log.lines.last().unwrap().start);
    for kind in [SameBoot, MayHaveLostPower] {
        let crash = Crash { kind, file_end, synced_end: mark };
        checked.damage_every_byte(
            log,
            &mut file,
            crash,
            (log.checked_from..file_end, EVERY_WAY),
            |at, outcome| at >= mark || outcome.is_corrupt(),
        );
    }
    assert!(checked.0 as usize > 15 * (file_end - log.checked_from) && file == log.bytes);
}

/// For each sync, damages every byte of what was written after it, and of what it had covered. Of the latter only a
/// mark may be torn, which loses no record.
fn damage_what_was_under_way(log: &Log) {
    let mut checked = Checked::default();
    let mut file = log.bytes.clone();
    for (number, unit) in log.units.iter().enumerate().filter(|(_, unit)| unit.end > log.written_from) {
        let synced_end = unit.start.max(log.written_from);
        let crash = Crash { kind: MayHaveLostPower, file_end: unit.end, synced_end };
        // For earlier bytes only more lines follow that prove the loss.
        let range = log.units[number.saturating_sub(1)].start.max(log.checked_from)..unit.end;
        checked.damage_every_byte(log, &mut file, crash, (range.clone(), EVERY_WAY), |at, outcome| {
            if at < synced_end {
                outcome.is_corrupt() || log.is_mark(log.line_at(at))
            } else {
                outcome.is_torn() || is_in_head(log, at)
            }
        });
        // The machine kept running: a write that is cut short leaves no garbage before its end.
        let crash = Crash { kind: SameBoot, ..crash };
        checked.damage_every_byte(log, &mut file, crash, (range, 2), |at, outcome| {
            at + 1 == unit.end || outcome.is_corrupt()
        });
    }
    assert!(checked.0 as usize > 25 * (log.bytes.len() - log.written_from) && file == log.bytes);
}

#[test]
fn a_log_cut_at_any_byte_loses_only_what_was_being_written() {
    cut_at_every_byte(&Log::always(1, RECORDS));
    cut_at_every_byte(&Log::everysec(2, RECORDS));
    cut_at_every_byte(&Log::compacted(3, 100, 200));
    cut_at_every_byte(&Log::imported(4, 100));
}

#[test]
fn any_byte_damaged_in_a_log_that_a_mark_covers_is_refused_with_its_place() {
    damage_what_a_mark_covers(&Log::always(11, RECORDS));
    damage_what_a_mark_covers(&Log::everysec(12, 200));
    damage_what_a_mark_covers(&Log::compacted(13, 100, 200));
    damage_what_a_mark_covers(&Log::imported(14, 100));
}

#[test]
fn any_byte_damaged_while_something_was_under_way_tears_that_and_is_refused_before_it() {
    damage_what_was_under_way(&Log::always(21, RECORDS));
    damage_what_was_under_way(&Log::everysec(22, 200));
    damage_what_was_under_way(&Log::compacted(23, 100, 200));
    damage_what_was_under_way(&Log::imported(24, 100));
}

#[test]
fn a_tail_of_zeros_from_any_byte_on_is_torn() {
    let log = Log::always(31, RECORDS);
    let mut checked = Checked::default();
    let mut file = Vec::new();
    for unit in &log.units {
        let from = log.line_at(unit.start);
        file.clear();
        file.extend_from_slice(&log.bytes[..unit.start]);
        for zeros_from in unit.start..=unit.end {
            let line = log.line_at(zeros_from);
            let torn = Outcome::Torn { offset: log.positions[line].offset as usize };
            let synced_end = if zeros_from == unit.end { unit.end } else { unit.start };
            // As long as the group would have been, or to the end of a page of the file.
            for file_end in [unit.end, unit.end.next_multiple_of(4096)] {
                if file_end == zeros_from {
                    continue;
                }
                file.truncate(unit.start);
                file.extend_from_slice(&log.bytes[file.len()..zeros_from]);
                file.resize(file_end, 0);
                let crash = Crash { kind: MayHaveLostPower, file_end, synced_end };
                let what = || format!("zeros from {zeros_from} on");
                let found = checked.recover(&log, &file, from, crash, &what);
                assert!(found == (line, torn) || is_in_head(&log, zeros_from), "{found:?}, {crash:?}");
            }
        }
    }
}

/// The sectors of the disk that lie in `unit` and in nothing older.
fn sectors(unit: &log::Unit) -> Vec<Range<usize>> {
    let first = unit.start.next_multiple_of(SECTOR_BYTES);
    let sectors = (first..unit.end).step_by(SECTOR_BYTES);
    sectors.map(|start| start..(start + SECTOR_BYTES).min(unit.end)).collect()
}

#[test]
fn sectors_that_reached_the_disk_in_any_order_or_not_at_all_are_torn() {
    let mut checked = Checked::default();
    let mut numbers = Numbers(41);
    let mut swaps = 0;
    for log in [Log::always(42, RECORDS), Log::everysec(43, RECORDS)] {
        for unit in &log.units {
            let sectors = sectors(unit);
            let from = log.line_at(unit.start);
            let crash = Crash { kind: MayHaveLostPower, file_end: unit.end, synced_end: unit.start };
            let mut hold = |file: &[u8], damaged: Option<usize>, what: &dyn Fn() -> String| {
                let (reached, outcome) = checked.recover(&log, file, from, crash, what);
                match damaged {
                    Some(at) => {
                        assert!(outcome.is_torn(), "{outcome:?}: {}", what());
                        assert!(reached <= log.line_at(at), "{reached} lines: {}", what());
                    }
                    None => assert_eq!(outcome, Outcome::Whole, "{}", what()),
                }
            };
            let written = &log.bytes[..unit.end];
            let mut file = written.to_vec();
            for (index, one) in sectors.iter().enumerate() {
                for other in sectors[index + 1..].iter().filter(|other| other.len() == one.len()) {
                    for at in 0..one.len() {
                        file.swap(one.start + at, other.start + at);
                    }
                    let damaged = (one.start..unit.end).find(|at| file[*at] != written[*at]);
                    hold(&file, damaged, &|| format!("sectors {one:?} and {other:?} are swapped"));
                    file.copy_from_slice(written);
                    swaps += 1;
                }
            }
            // Each of them has arrived, or is a hole, or holds old bytes: lines of an earlier file.
            for _ in 0..sectors.len().pow(2).min(400) {
                let fates = numbers.next();
                for (number, sector) in sectors.iter().enumerate() {
                    match fates >> (2 * number % 64) & 3 {
                        0 => file[sector.clone()].fill(0),
                        1 => file[sector.clone()].copy_from_slice(&log.bytes[..sector.len()]),
                        _ => {}
                    }
                }
                let damaged = (unit.start..unit.end).find(|at| file[*at] != written[*at]);
                hold(&file, damaged, &|| format!("fates {fates:#x} of sectors {sectors:?}"));
                file.copy_from_slice(written);
            }
        }
    }
    assert!(swaps > 100 && checked.0 > 1_000, "{swaps} swaps, {} recoveries", checked.0);
}

#[test]
fn a_sector_lost_from_a_log_that_a_mark_covers_is_refused() {
    let log = Log::always(51, RECORDS);
    let mut checked = Checked::default();
    let mut numbers = Numbers(52);
    let mut file = log.bytes.clone();
    let mark = log.lines.last().unwrap().start;
    let crash = Crash { kind: MayHaveLostPower, file_end: log.bytes.len(), synced_end: mark };
    // Only the sectors before the mark: a loss together with its only proof is invisible.
    for start in (0..mark + 1 - SECTOR_BYTES).step_by(SECTOR_BYTES / 8) {
        let sector = start..start + SECTOR_BYTES;
        let elsewhere = numbers.below(mark - SECTOR_BYTES);
        let random = numbers.bytes(SECTOR_BYTES);
        for lost in [&[0; SECTOR_BYTES], &log.bytes[elsewhere..elsewhere + SECTOR_BYTES], &random[..]] {
            if *lost == log.bytes[sector.clone()] {
                continue;
            }
            file[sector.clone()].copy_from_slice(lost);
            let from = log.line_at(start);
            let (_, outcome) = checked.recover(&log, &file, from, crash, &|| format!("sector at {start}"));
            assert!(outcome.is_corrupt(), "{outcome:?}: sector at {start}");
            file[sector.clone()].copy_from_slice(&log.bytes[sector.clone()]);
        }
    }
    assert!(checked.0 as usize > 3 * log.bytes.len() / SECTOR_BYTES);
}

#[test]
fn two_or_three_bits_flipped_in_a_line_never_make_another_line() {
    let log = Log::always(61, RECORDS);
    let mut checked = Checked::default();
    let mut numbers = Numbers(62);
    let mut file = log.bytes.clone();
    let mark = log.lines.len() - 1;
    let crash =
        Crash { kind: MayHaveLostPower, file_end: log.bytes.len(), synced_end: log.lines[mark].start };
    for round in 0..200 * RECORDS as usize {
        let number = round % mark;
        let line = &log.lines[number];
        let bits = (line.end - 1 - line.start) * 8;
        let mut flipped = [numbers.below(bits), numbers.below(bits), numbers.below(bits)];
        flipped.sort_unstable();
        if flipped[0] == flipped[1] || flipped[1] == flipped[2] {
            continue;
        }
        let flipped = &flipped[round % 2..];
        flipped.iter().for_each(|bit| file[line.start + bit / 8] ^= 1 << (bit % 8));
        let what = || format!("bits {flipped:?} of line {}", number + 1);
        let (reached, outcome) = checked.recover(&log, &file, number, crash, &what);
        assert_eq!(reached, number, "a damaged line is accepted: {}", what());
        assert!(outcome.is_corrupt(), "{outcome:?}: {}", what());
        file[line.start..line.end].copy_from_slice(&log.bytes[line.start..line.end]);
    }
    assert!(checked.0 > 150 * RECORDS);
}

/// The invisible loss, within a group: no later line says yet that it was synced.
#[test]
fn only_damage_to_a_last_group_that_nothing_after_it_contradicts_counts_as_torn() {
    let log = Log::always(71, RECORDS);
    let mut file = log.bytes.clone();
    for unit in &log.units {
        for at in unit.start..unit.end {
            file[at] ^= 1 << (at % 8);
            let line = log.line_at(at);
            // It was synced and perhaps acknowledged, but the file looks as if it had not been.
            let (reached, outcome) = recover(&log, &file[..unit.end], line, MayHaveLostPower, CHUNK_BYTES);
            assert!(reached == line && (outcome.is_torn() || is_in_head(&log, at)), "{at}: {outcome:?}");
            // After the crash of only a process, the last newline is the only such byte.
            let (_, outcome) = recover(&log, &file[..unit.end], line, SameBoot, CHUNK_BYTES);
            assert_eq!(outcome.is_torn(), at + 1 == unit.end, "{at}: {outcome:?}");
            file[at] ^= 1 << (at % 8);
        }
    }
}

/// The invisible loss of an end that is cut off: whole lines leave no trace in the file, but slaves that hold their
/// values are witnesses.
#[test]
fn a_synced_log_cut_at_a_line_end_is_whole_until_a_slave_reports_what_is_lost() {
    let log = Log::always(81, RECORDS);
    let mut witnessed = 0;
    for (number, position) in log.positions.iter().enumerate().skip(2) {
        let end = position.offset as usize;
        assert_eq!(
            recover(&log, &log.bytes[..end], number - 1, MayHaveLostPower, CHUNK_BYTES).1,
            Outcome::Whole
        );
        // The next master reigns after the cut; a slave reports the first value that was lost.
        let lost = log.lines[number..].iter().find_map(|line| match &line.operation {
            Operation::Write(pairs) => Some((pairs[0].0.clone(), line.version())),
            _ => None,
        });
        let Some((key, version)) = lost else { continue };
        let mut master = Master::new(master::Config::default());
        let mut effects = Vec::new();
        let reign = Version { epoch: log.positions.last().unwrap().epoch.next(), seq: position.seq.next() };
        let (id, link) = (SlaveId::new("slave1").unwrap(), LinkId(1));
        let joined = master::Event::SlaveJoined { id, link, room_bytes: u64::MAX };
        for event in [master::Event::ReignBegan { version: reign, id: ReignId(9) }, joined] {
            master.step(Millis(0), event, &mut effects);
        }
        assert_eq!(effects, [Effect::Joined { link }]);
        effects.clear();
        let stamp = Stamp { version, reign: ReignId(7) };
        let entries = vec![(key, stamp)];
        let report = master::Event::Holdings { link, entries, last: true };
        master.step(Millis(0), report, &mut effects);
        assert_eq!(effects, [Effect::Witnessed { link, stamp }]);
        witnessed += 1;
    }
    assert!(witnessed > RECORDS / 2, "{witnessed}");
}

/// The invisible change: a line of the original program has no checksum, so any change that keeps its form is accepted.
#[test]
fn a_letter_changed_in_a_line_of_the_original_program_goes_unnoticed() {
    let log = Log::imported(91, 100);
    let mut file = log.bytes.clone();
    let read = |file: &[u8]| {
        let mut scanner = Scanner::resume(log.positions[0], LINE_MAX);
        let mut lines = 0;
        while let Some(step) = scanner.finish(&file[scanner.position().offset as usize..]) {
            assert!(matches!(step, Step::Record { .. }), "{step:?}");
            lines += 1;
        }
        lines
    };
    let originals = log.lines.iter().filter(|line| line.end <= log.checked_from);
    assert!(originals.clone().count() > 10);
    for line in originals {
        let at = line.start + "WRITE u".len();
        file[at] ^= 1;
        assert_eq!(read(&file), log.lines.len(), "{at}");
        file[at] ^= 1;
    }
}
