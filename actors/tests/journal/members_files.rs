//! Logs of members that are compacted, and a leader's file that takes the place of one.

use crate::rigs::ThreeMembers;
use crate::suite::{value_of, Part};
use dsm_protocol::ids::Version;
use std::time::Duration;
use tokio::time::sleep;

const KEYS: [&str; 6] = ["a", "b", "c", "d", "e", "f"];

/// Logs are compacted when so much is superseded.
const COMPACT_MIN: u64 = 4096;

/// How long a log is that has nothing to spare: what is live, and what it keeps of its entries.
const SHORT: usize = 3 * COMPACT_MIN as usize;

async fn overwrite(part: &mut Part) {
    for _ in 0..160 {
        part.write(&KEYS).await;
    }
}

/// Has the log compacted that this part's member has.
async fn compact(part: &mut Part) {
    // The disk is asked for its room now and then.
    sleep(Duration::from_secs(1)).await;
    part.weigh(0);
    part.hear("compacted").await;
    part.hear("unread").await;
}

async fn reads_all(part: &mut Part) {
    for key in KEYS {
        let (version, place) = part.directory[key];
        assert_eq!(part.read(version, place).await.ok(), Some(value_of(key)), "{key} at {place:?}");
    }
}

fn versions(part: &Part) -> Vec<(String, Version)> {
    part.directory.iter().map(|(key, (version, _))| (key.clone(), *version)).collect()
}

fn is_compacted(log: &[u8]) -> bool {
    log.len() < SHORT && String::from_utf8_lossy(log).contains(" base=")
}

#[test]
fn each_member_compacts_its_own_log_and_values_are_read_before_and_after() {
    ThreeMembers::run_compacting(COMPACT_MIN, |rig| async move {
        let mut leader = Part::join(&rig, "one:1");
        let mut follower = Part::join(&rig, "two:1");
        leader.lead().await;
        leader.write(&["once"]).await;
        overwrite(&mut leader).await;
        follower.until("all told", |follower| versions(follower) == versions(&leader)).await;
        let before = rig.content(0).len();
        assert!(before > 2 * SHORT, "{before}");
        compact(&mut leader).await;
        assert!(is_compacted(&rig.content(0)), "{} of {before} bytes", rig.content(0).len());
        reads_all(&mut leader).await;
        let (version, place) = leader.directory["once"];
        assert_eq!(
            leader.read(version, place).await.ok(),
            Some(value_of("once")),
            "what is old and live stays"
        );
        compact(&mut follower).await;
        assert!(is_compacted(&rig.content(1)), "{} of {before} bytes", rig.content(1).len());
        assert_eq!(versions(&follower), versions(&leader));
        // And once more, of a log that was compacted.
        overwrite(&mut leader).await;
        compact(&mut leader).await;
        assert!(is_compacted(&rig.content(0)), "{}", rig.content(0).len());
        follower.until("all told", |follower| versions(follower) == versions(&leader)).await;
        leader.hand_over(&mut follower, "two:1").await;
        reads_all(&mut follower).await;
    });
}

#[test]
fn a_member_that_lacks_what_was_compacted_gets_the_leaders_file_and_leads_with_it() {
    ThreeMembers::run_compacting(COMPACT_MIN, |rig| async move {
        let mut leader = Part::join(&rig, "one:1");
        leader.lead().await;
        leader.write(&["once"]).await;
        rig.cut(Some(2));
        overwrite(&mut leader).await;
        compact(&mut leader).await;
        overwrite(&mut leader).await;
        compact(&mut leader).await;
        let late = rig.content(2);
        assert!(late.len() < 2000, "it has nothing of it: {}", String::from_utf8_lossy(&late));
        rig.cut(None);
        leader.write(&["last"]).await;
        let mut late = Part::join(&rig, "three:1");
        late.until("all told", |late| versions(late) == versions(&leader)).await;
        assert!(is_compacted(&rig.content(2)), "{}", rig.content(2).len());
        leader.hand_over(&mut late, "three:1").await;
        reads_all(&mut late).await;
        late.write(&["more"]).await;
        overwrite(&mut late).await;
        compact(&mut late).await;
        reads_all(&mut late).await;
    });
}

#[test]
fn who_is_told_the_log_anew_while_it_is_compacted_loses_nothing_of_it() {
    ThreeMembers::run_compacting(COMPACT_MIN, |rig| async move {
        let mut leader = Part::join(&rig, "one:1");
        let mut follower = Part::join(&rig, "two:1");
        leader.lead().await;
        leader.write(&["once"]).await;
        overwrite(&mut leader).await;
        follower.until("all told", |follower| versions(follower) == versions(&leader)).await;
        sleep(Duration::from_secs(1)).await;
        follower.answers_questions = false;
        follower.weigh(0);
        follower.hear("asked").await;
        // The directory from which it would answer is emptied meanwhile.
        follower.follow_anew();
        follower.hear("given up").await;
        follower.answers_questions = true;
        let is_told =
            |follower: &Part| follower.told.len() > KEYS.len() && versions(follower) == versions(&leader);
        follower.until("all told", is_told).await;
        compact(&mut follower).await;
        follower.follow_anew();
        follower.until("all told", is_told).await;
        leader.hand_over(&mut follower, "two:1").await;
        reads_all(&mut follower).await;
        let (version, place) = follower.directory["once"];
        assert_eq!(follower.read(version, place).await.ok(), Some(value_of("once")));
    });
}
