//! Damage to what had been on disk: one bit of the log, while no master runs.
//!
//! Acknowledged data is broken, and nobody may pretend otherwise: each master must end, name the place, and leave the
//! file as it is. Restores the bit afterwards, so that the cluster goes on.

use crate::cluster::{Cluster, Node, LOG};
use crate::seed::{Check, Failure, LINE_BYTES_MAX};
use dsm::config::Fsync;
use dsm::env::sim::{Loss, World};
use dsm::node_error::{LogDamage, NodeError};
use dsm_protocol::ids::Seq;
use dsm_protocol::record::{Body, Scanner, Step};
use std::path::Path;
use std::time::Duration;

/// How long the masters may take to notice.
const NOTICE_LIMIT: Duration = Duration::from_secs(30);

/// A line of the log: where it is, which seq it must have on disk to be proven, and which it proves.
struct Line {
    offset: usize,
    bytes: usize,
    seq: Option<Seq>,
    synced: Seq,
}

/// One bit, and where the log becomes bad by it.
struct Flip {
    at: usize,
    mask: u8,
    bad_offset: u64,
}

/// Damages the log of a cluster, sees that the masters refuse it, and mends it. Whether there was a bit to damage.
pub(crate) async fn strike(cluster: &Cluster) -> Result<bool, Failure> {
    let world = cluster.world();
    cluster.hold_masters(true);
    // Where answers do not wait for the disk, a power cut may take what a failed sync has left out.
    let is_power_cut = cluster.shape().fsync == Fsync::Always && world.chance(500);
    if is_power_cut {
        world.power_off(cluster.log_machine(), Loss::Nothing);
        world.power_on(cluster.log_machine());
    } else {
        let processes: Vec<_> =
            [Node::Primary, Node::Backup].into_iter().filter_map(|node| cluster.process(node)).collect();
        processes.iter().for_each(|process| world.kill(process));
        // One that waits for a slow disk holds its sockets until then, and no other is started before.
        for process in &processes {
            process.gone().await;
        }
    }
    tokio::time::sleep(Duration::from_millis(50)).await;
    let log = cluster.log();
    let flip = choose(world, &log, is_power_cut);
    let has_struck = flip.is_some();
    if let Some(flip) = flip {
        let mend = |log: &mut Vec<u8>| log[flip.at] ^= flip.mask;
        world.say(|| {
            format!("bit {} of byte {} is flipped, in the line at {}", flip.mask, flip.at, flip.bad_offset)
        });
        cluster.log_machine().edit(Path::new(LOG), mend);
        let damaged = cluster.log();
        cluster.forget_ends();
        cluster.launch_masters();
        refused(cluster, &flip).await?;
        if cluster.log() != damaged {
            return Err(failure(format!("the damaged log was changed (bad at byte {})", flip.bad_offset)));
        }
        cluster.log_machine().edit(Path::new(LOG), mend);
        cluster.forget_ends();
    }
    cluster.hold_masters(false);
    cluster.launch_all();
    Ok(has_struck)
}

fn failure(what: String) -> Failure {
    Failure { check: Check::Damage, what }
}

/// Both masters end because of the damage, and say where it is.
async fn refused(cluster: &Cluster, flip: &Flip) -> Result<(), Failure> {
    let deadline = tokio::time::Instant::now() + NOTICE_LIMIT;
    let place = flip.bad_offset;
    while tokio::time::Instant::now() < deadline {
        let ends = cluster.ends();
        for (node, end) in &ends {
            match end {
                Err(NodeError::Corrupt { damage, .. }) if offset_of(damage) == place => {}
                other => {
                    return Err(failure(format!("{} ended with {other:?}, not at byte {place}", node.host())))
                }
            }
        }
        if ends.len() == 2 {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Err(failure(format!("a log that is damaged at byte {place} is accepted")))
}

fn offset_of(damage: &LogDamage) -> u64 {
    match damage {
        LogDamage::TornTooFar { offset, .. }
        | LogDamage::Foreign { offset, .. }
        | LogDamage::Record { offset, .. } => *offset,
    }
}

/// A bit whose damage no crash explains; `None` when there is none.
fn choose(world: &World, log: &[u8], is_power_cut: bool) -> Option<Flip> {
    let lines = lines(log);
    // A kill tears nothing but a last line. After a power cut only what later lines say of it tells damage from a
    // torn tail; the next line does not count, as it is damaged too when the newline is hit.
    let is_proven = |index: usize, line: &Line| {
        let proof = lines[index + 1..].iter().skip(1).map(|later| later.synced).max();
        line.seq.is_some_and(|seq| proof.is_some_and(|synced| synced >= seq))
    };
    let mut inexplicable: Vec<&Line> = lines
        .iter()
        .enumerate()
        .filter(|(index, line)| if is_power_cut { is_proven(*index, line) } else { index + 1 < lines.len() })
        .map(|(_, line)| line)
        .collect();
    if inexplicable.is_empty() {
        return None;
    }
    if world.chance(500) {
        // The last ones, which few lines or none speak for, are where it is hard.
        inexplicable.drain(..inexplicable.len().saturating_sub(4));
    }
    let line = inexplicable[world.random_within(0..=inexplicable.len() as u64 - 1) as usize];
    let at = line.offset + world.random_within(0..=line.bytes as u64 - 1) as usize;
    let mask = 1 << world.random_within(0..=7);
    let mut damaged = log.to_vec();
    damaged[at] ^= mask;
    let mut scanner = Scanner::new(LINE_BYTES_MAX);
    let bad_offset = loop {
        match scanner.next_past_marks(&damaged[scanner.position().offset as usize..]) {
            Step::Record { .. } | Step::Ignored => {}
            Step::Bad(bad) => break bad.offset,
            Step::Partial => return None,
        }
    };
    Some(Flip { at, mask, bad_offset })
}

fn lines(log: &[u8]) -> Vec<Line> {
    let mut scanner = Scanner::new(LINE_BYTES_MAX);
    let mut lines = Vec::new();
    while let Step::Record { record, span } =
        scanner.next_past_marks(&log[scanner.position().offset as usize..])
    {
        let seq = (!matches!(record.body, Body::Synced)).then_some(record.seq);
        let (offset, bytes) = (span.offset as usize, span.bytes as usize);
        lines.push(Line { offset, bytes, seq, synced: record.synced });
    }
    lines
}
