//! Why a role has ended, in a sentence: what happened, and what a person can do about it with these programs and flags.

use dsm::env::{Displaced, Stands};
use dsm::node_error::{LogDamage, NodeError};
use std::path::Path;

/// The sentence for an error, without a line end.
pub(crate) fn sentence(error: &NodeError) -> String {
    match error {
        NodeError::Config(wrong) => wrong.to_string(),
        NodeError::Listen { cause, .. } => format!("{error}: {cause}; choose another address with --listen"),
        NodeError::File { cause, .. } | NodeError::LogFailed { cause, .. } => format!("{error}: {cause}"),
        NodeError::Corrupt { path, damage } => corrupt(path, damage),
        NodeError::LogDisplaced { path, found } => displaced(path, found),
        // Later variants are shown by their own text.
        other => other.to_string(),
    }
}

fn corrupt(path: &Path, damage: &LogDamage) -> String {
    let path = path.display();
    match damage {
        LogDamage::TornTooFar { bytes_max, .. } => format!(
            "{path}: {damage}; without --fsync always more than {bytes_max} bytes are not cut by themselves: look at them \
             with `dsm-log check {path}`, then cut them with `dsm-log repair {path}`"
        ),
        LogDamage::Foreign { .. } => {
            format!("{path} is no log of this program: {damage}; give the right file with --log")
        }
        LogDamage::Record { cause, evidence, .. } => {
            let proof = evidence.map_or_else(String::new, |evidence| {
                format!(
                    "; line {} at byte {} proves that it had been on disk (SYNCED {})",
                    evidence.line, evidence.offset, evidence.synced
                )
            });
            format!(
                "{path} is {damage}: {cause}{proof}; acknowledged data is damaged, so the master does not start: look with \
                 `dsm-log check {path}`, then restore the file from a copy; if there is none, `dsm-log repair {path}` takes \
                 the damaged lines out, keeps all others and lists what is lost"
            )
        }
    }
}

/// Says what is at the log's path, what that means and how to go on.
fn displaced(path: &Path, found: &Displaced) -> String {
    let path = path.display();
    let remedy = match &found.stands {
        Stands::Nothing | Stands::Dangling { .. } | Stands::Other if found.is_deleted => format!(
            "restore it: a standby that still runs has it open and says how to copy it, else put the newest copy at {path}"
        ),
        Stands::Nothing => {
            format!("put the file back (`mv` it back to {path}, or mount its volume)")
        }
        Stands::Dangling { .. } => {
            format!("put the file back (`mv` it back to where {path} points, or mount its volume)")
        }
        Stands::Other => format!(
            "put the file back (move the other file out of the way, and `mv` the log back to {path})"
        ),
        Stands::Shorter { .. } => {
            format!("put the file back (the newest copy that there is, as {path})")
        }
        Stands::Longer { .. } => format!(
            "end the other program that writes to it, stop the other master, look with `dsm-log check {path}`, and let `dsm-log repair \
             {path}` take out what is no record"
        ),
    };
    let before = match &found.stands {
        Stands::Shorter { .. } => "what was cut or overwritten is no longer in that file",
        Stands::Nothing | Stands::Dangling { .. } | Stands::Other | Stands::Longer { .. } => {
            "what was acknowledged before is in the file that it had open"
        }
    };
    format!(
        "the log is no longer the file at {path}: {found}; a restart would not find what is written now, so \
         nothing was acknowledged since this was noticed, and this master ends; {before}: {remedy}, then start the master again"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use dsm_protocol::ids::Seq;
    use dsm_protocol::record::{Evidence, RecordError};
    use std::path::PathBuf;

    fn told(damage: LogDamage) -> String {
        sentence(&NodeError::Corrupt { path: PathBuf::from("kv_store.log"), damage })
    }

    #[test]
    fn damage_is_reported_with_its_place_its_proof_and_a_remedy() {
        let evidence = Some(Evidence { offset: 155, line: 5, synced: Seq(4) });
        let cause = RecordError::Checksum;
        assert_eq!(
            told(LogDamage::Record { offset: 119, line: 4, cause, evidence }),
            "kv_store.log is corrupt at byte 119, line 4: the checksum does not match; line 5 at byte 155 proves that it had \
             been on disk (SYNCED 4); acknowledged data is damaged, so the master does not start: look with `dsm-log check \
             kv_store.log`, then restore the file from a copy; if there is none, `dsm-log repair kv_store.log` takes the \
             damaged lines out, keeps all others and lists what is lost"
        );
        assert_eq!(
            told(LogDamage::Foreign { offset: 0, line: 1 }),
            "kv_store.log is no log of this program: byte 0, line 1 is neither a record nor a line of the original program; \
             give the right file with --log"
        );
        assert_eq!(
            told(LogDamage::TornTooFar { offset: 7, bytes: 9, lines: 2, bytes_max: 8 }),
            "kv_store.log: the last 9 bytes (2 lines) from byte 7 on are torn; without --fsync always more than 8 bytes are \
             not cut by themselves: look at them with `dsm-log check kv_store.log`, then cut them with `dsm-log repair \
             kv_store.log`"
        );
    }
}
