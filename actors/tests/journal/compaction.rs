//! A log that is compacted while masters write, follow and take it over, and while they end.

use crate::rigs::{OneFile, Rig};
use crate::suite::{value_of, Part, QUIET};
use dsm::env::sim::DiskFault;
use dsm::journal::LogRequest;
use dsm_protocol::ids::Version;
use dsm_protocol::record::{Body, Scanner, Step};
use std::cell::Cell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;
use tokio::time::sleep;

const KEYS: [&str; 6] = ["a", "b", "c", "d", "e", "f"];

/// Overwrites the same keys until most of the log is superseded.
async fn overwrite(part: &mut Part) {
    for _ in 0..20 {
        part.write(&KEYS).await;
    }
}

fn is_compacted(rig: &OneFile) -> bool {
    rig.content().is_some_and(|log| log.len() < 3000)
}

/// Everything can be read by the places that are known.
async fn reads_all(part: &mut Part) {
    for key in KEYS {
        let (version, place) = part.directory[key];
        assert_eq!(part.read(version, place).await.ok(), Some(value_of(key)), "{key} at {place:?}");
    }
}

#[test]
fn a_log_of_overwrites_becomes_short_and_values_are_read_before_and_after() {
    OneFile::run(|rig| async move {
        let mut part = Part::join(&rig, "one:1");
        part.lead().await;
        overwrite(&mut part).await;
        let before = rig.content().expect("there is a log").len();
        let old = part.directory.clone();
        part.answers_relocation = false;
        part.weigh(before);
        part.hear("compacted").await;
        part.hear("replaced").await;
        assert!(is_compacted(&rig), "{} of {before} bytes", rig.content().expect("a log").len());
        // By the places in the old file, which has no name any more.
        assert_eq!(part.directory, old);
        reads_all(&mut part).await;
        part.write(&["g"]).await;
        part.answers_relocation = true;
        part.until("relocated", |part| part.directory["a"].1 != old["a"].1).await;
        part.hear("unread").await;
        assert!(KEYS.iter().all(|key| part.directory[*key].0 == old[*key].0), "no version has changed");
        reads_all(&mut part).await;
        assert_eq!(part.read(old["a"].0, old["a"].1).await.ok(), None, "the old file is closed");
        // Somebody who comes later learns the same.
        let mut late = Part::join(&rig, "two:1");
        late.learns(&["a", "f", "g"]).await;
        assert_eq!(versions(&late), versions(&part));
        // And once more, in the new file.
        overwrite(&mut part).await;
        // The disk is asked for its room now and then.
        sleep(Duration::from_secs(1)).await;
        part.weigh(rig.content().expect("there is a log").len());
        part.hear("compacted").await;
        part.hear("unread").await;
        reads_all(&mut part).await;
    });
}

#[test]
fn no_place_is_told_before_all_that_is_in_the_old_file_is_taken_in() {
    OneFile::run(|rig| async move {
        let mut part = Part::join(&rig, "one:1");
        part.lead().await;
        overwrite(&mut part).await;
        part.settles = 1;
        part.weigh(rig.content().expect("there is a log").len());
        part.hear("compacted").await;
        sleep(QUIET).await;
        part.listen();
        let told = ["relocated", "unread"].map(|name| part.heard.contains(&name));
        assert_eq!(told, [false, false], "a record of many keys may still name the old file");
        reads_all(&mut part).await;
        part.settles = 1;
        part.hear("relocated").await;
        part.hear("unread").await;
        reads_all(&mut part).await;
    });
}

fn versions(part: &Part) -> Vec<(String, Version)> {
    part.directory.iter().map(|(key, (version, _))| (key.clone(), *version)).collect()
}

#[test]
fn a_follower_goes_on_behind_what_it_has_replayed_and_takes_over_with_the_places_of_both_files() {
    for takes_over_early in [true, false] {
        OneFile::run(|rig| async move {
            let mut leader = Part::join(&rig, "one:1");
            let mut follower = Part::join(&rig, "two:1");
            leader.lead().await;
            overwrite(&mut leader).await;
            follower.until("all replayed", |follower| follower.told.len() == 120).await;
            follower.told.clear();
            follower.answers_relocation = !takes_over_early;
            leader.weigh(rig.content().expect("there is a log").len());
            leader.hear("compacted").await;
            leader.write(&["g"]).await;
            follower.learns(&["g"]).await;
            assert_eq!(follower.told, ["g"], "what it has replayed it does not replay again");
            if !takes_over_early {
                follower.hear("unread").await;
            }
            leader.hand_over(&mut follower, "two:1").await;
            reads_all(&mut follower).await;
            follower.answers_relocation = true;
            follower.write(&["h"]).await;
            if takes_over_early {
                follower.hear("unread").await;
            }
            reads_all(&mut follower).await;
        });
    }
}

#[test]
fn whoever_comes_after_a_leader_that_ends_at_any_moment_of_a_compaction_finds_all_that_was_written() {
    let mut compacted = 0;
    for moment in 0..60 {
        let was_compacted = Rc::new(Cell::new(false));
        let noted = Rc::clone(&was_compacted);
        OneFile::run(|rig| async move {
            let mut leader = Part::join(&rig, "one:1");
            let mut follower = Part::join(&rig, "two:1");
            leader.lead().await;
            follower.journal.ask(LogRequest::Queue);
            overwrite(&mut leader).await;
            follower.until("all replayed", |follower| follower.told.len() == 120).await;
            rig.slow_disk();
            leader.weigh(rig.content().expect("there is a log").len());
            for _ in 0..moment {
                sleep(Duration::from_millis(1)).await;
                leader.listen();
            }
            let known = versions(&leader);
            drop(leader);
            follower.hear("won").await;
            follower.reign().await;
            assert_eq!(versions(&follower), known);
            reads_all(&mut follower).await;
            follower.write(&["h"]).await;
            let mut late = Part::join(&rig, "three:1");
            late.learns(&["h"]).await;
            assert_eq!(versions(&late).len(), known.len() + 1);
            noted.set(is_compacted(&rig));
        });
        compacted += usize::from(was_compacted.get());
    }
    assert!((5..55).contains(&compacted), "{compacted} of 60 moments were after the exchange");
}

/// The latest versions that a log names, as far as it can be read.
fn latest_in(log: &[u8]) -> BTreeMap<String, Version> {
    let mut latest = BTreeMap::new();
    let mut scanner = Scanner::new(1 << 20);
    while let Step::Record { record, .. } = scanner.next(&log[scanner.position().offset as usize..]) {
        if let Body::Write(pairs) = record.body {
            let version = Version { epoch: record.epoch, seq: record.seq };
            latest
                .extend(pairs.map(|(key, _)| (String::from_utf8_lossy(&key.decode()).into_owned(), version)));
        }
    }
    latest
}

#[test]
fn at_every_moment_of_a_compaction_the_disk_has_a_log_with_all_that_was_written() {
    let mut compacted = 0;
    for moment in 0..40u64 {
        let was_compacted = Rc::new(Cell::new(false));
        let noted = Rc::clone(&was_compacted);
        OneFile::run(|rig| async move {
            let mut leader = Part::join(&rig, "one:1");
            leader.lead().await;
            overwrite(&mut leader).await;
            rig.slow_disk();
            leader.weigh(rig.content().expect("there is a log").len());
            for _ in 0..moment {
                sleep(Duration::from_millis(1)).await;
                leader.listen();
            }
            // One more, for which the directory must be on disk by then.
            if moment % 2 == 0 {
                leader.write(&["g"]).await;
            }
            let log = rig.durable();
            let latest = latest_in(&log);
            let known: BTreeMap<String, Version> = versions(&leader).into_iter().collect();
            assert_eq!(latest, known, "{moment}: {}", String::from_utf8_lossy(&log));
            noted.set(log.len() < 3000);
        });
        compacted += usize::from(was_compacted.get());
    }
    assert!((5..35).contains(&compacted), "{compacted} of 40 moments were after the exchange");
}

#[test]
fn a_file_that_is_put_in_the_place_of_the_log_while_it_is_compacted_is_left_alone_and_so_is_the_log() {
    for moment in 0..40u64 {
        OneFile::run(|rig| async move {
            let mut leader = Part::join(&rig, "one:1");
            leader.lead().await;
            overwrite(&mut leader).await;
            rig.slow_disk();
            leader.weigh(rig.content().expect("there is a log").len());
            for _ in 0..moment {
                sleep(Duration::from_millis(1)).await;
                leader.listen();
            }
            let known: BTreeMap<String, Version> = versions(&leader).into_iter().collect();
            rig.replace(b"not a log");
            leader.hear("deposed").await;
            sleep(QUIET).await;
            assert_eq!(rig.content().as_deref(), Some(&b"not a log"[..]), "{moment}");
            assert_eq!(latest_in(&rig.elsewhere()), known, "{moment}");
            assert_eq!(rig.draft(), None, "{moment}");
        });
    }
}

#[test]
fn an_error_at_any_step_of_a_compaction_leaves_the_log_as_it_was() {
    let faults = [DiskFault::WriteFails, DiskFault::WriteFull, DiskFault::SyncFails, DiskFault::NameFails];
    for (fault, nth) in faults.into_iter().flat_map(|fault| (1..5).map(move |nth| (fault, nth))) {
        OneFile::run(|rig| async move {
            let mut part = Part::join(&rig, "one:1");
            part.lead().await;
            overwrite(&mut part).await;
            rig.fail(nth, fault);
            part.may_fail = true;
            part.weigh(rig.content().expect("there is a log").len());
            part.until("an end", |part| {
                ["compacted", "not compacted", "failed"].iter().any(|end| part.heard.contains(end))
            })
            .await;
            if part.heard.contains(&"failed") {
                // Nothing is known of which file a restart finds: the node ends, and the next one sees.
                drop(part);
                rig.mend();
                let mut next = Part::join(&rig, "two:1");
                next.lead().await;
                reads_all(&mut next).await;
                return;
            }
            rig.mend();
            reads_all(&mut part).await;
            part.write(&["g"]).await;
            let mut late = Part::join(&rig, "two:1");
            late.learns(&["a", "g"]).await;
            assert_eq!(versions(&late), versions(&part));
        });
    }
}

#[test]
fn a_compaction_is_given_up_when_the_log_is_to_be_handed_over() {
    OneFile::run(|rig| async move {
        let mut leader = Part::join(&rig, "one:1");
        let mut follower = Part::join(&rig, "two:1");
        leader.lead().await;
        overwrite(&mut leader).await;
        follower.learns(&KEYS).await;
        // It waits for an answer when it is told.
        leader.answers_questions = false;
        leader.weigh(rig.content().expect("there is a log").len());
        leader.hear("asked").await;
        leader.answers_questions = true;
        leader.hand_over(&mut follower, "two:1").await;
        leader.hear("given up").await;
        assert!(!is_compacted(&rig));
        assert_eq!(rig.draft(), None, "no copy is left");
        reads_all(&mut follower).await;
    });
}

#[test]
fn a_copy_that_a_master_has_left_is_removed_by_the_next_reign() {
    OneFile::run(|rig| async move {
        rig.leave_draft();
        let mut part = Part::join(&rig, "one:1");
        part.lead().await;
        part.write(&["a"]).await;
        part.until("removed", |_| rig.draft().is_none()).await;
    });
}
