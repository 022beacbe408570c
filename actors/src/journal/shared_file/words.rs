//! What people are told of a log that is a file: where it is, what is wrong with it, and how to go on.
//!
//! Owns the sentences. Never judges: what a log lacks is `protocol/src/machine/reign/may_begin.rs`'s, whether it continues what was
//! replayed is `same_log`'s.

use super::super::{Hindrance, Sight, Wording};
use dsm_protocol::ids::Seq;
use dsm_protocol::machine::reign::may_begin::{Lack, Source};
use dsm_protocol::machine::salvage::LOCK_FILE;
use dsm_protocol::message::Seen;
use std::path::Path;

/// The words for it, of the log at `path`.
pub(super) fn of(path: &Path, wording: Wording<'_>) -> String {
    let shown = path.display().to_string();
    match wording {
        Wording::Place => shown,
        Wording::HowToShare => {
            let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
            format!("{}: both must name the same file with --log", absolute.display())
        }
        Wording::Won => "lock won".to_owned(),
        Wording::AnotherLog => format!("another file is there, reading it path={shown}"),
        Wording::WaitsFor(Hindrance::Barred { sight, .. }) => {
            format!("the log at {shown} does not continue what was replayed: {sight}")
        }
        Wording::WaitsFor(Hindrance::Lacks(lack)) => what_lacks(lack, &shown),
        Wording::DoesNotServe(Hindrance::Barred { sight, seq }) => barred(&shown, sight, seq),
        Wording::DoesNotServe(Hindrance::Lacks(lack)) => {
            format!("not serving: {}; {}", what_lacks(lack, &shown), way_on(lack, &shown))
        }
    }
}

fn barred(path: &str, sight: &Sight, seq: Seq) -> String {
    format!(
        "not serving, though no other master does: the log at its path does not continue what was replayed path={path} \
         cause=\"{sight}\" seq={seq}: put the file back, and this master goes on by itself; to give up what it has replayed, \
         restart it"
    )
}

/// Who knows something of the log.
fn who(source: &Source) -> String {
    match source {
        Source::LastLeader => "the lock file".to_owned(),
        Source::Memory => "this master, which has read it before,".to_owned(),
        Source::Peer => "the other master".to_owned(),
        Source::Slave(id) => format!("slave {id}"),
        Source::Noted(id) if id.as_str() == LOCK_FILE => {
            "the lock file, before a repair from slaves,".to_owned()
        }
        Source::Noted(id) => format!("slave {id}, by what is noted beside the log,"),
    }
}

/// What is missing, of the log at `path`.
pub(in crate::journal) fn what_lacks(lack: &Lack, path: &str) -> String {
    match lack {
        Lack::NoLog { cluster, source } => {
            format!("there is no log at {path}, and {} names cluster {cluster}", who(source))
        }
        Lack::Unclaimed => format!("there is no log at {path}, and no slave has come"),
        Lack::OtherCluster { log: None, named, source } => {
            format!("the log at {path} names no cluster, and {} names cluster {named}", who(source))
        }
        Lack::OtherCluster { log: Some(log), named, source } => {
            format!("the log at {path} is of cluster {log}, and {} names cluster {named}", who(source))
        }
        Lack::Epoch { log, known, source } => format!(
            "the log at {path} ends in epoch {} at seq {}, and {} knows of its epoch {known}: it is an older copy, \
             or was cut",
            log.epoch,
            log.end,
            who(source)
        ),
        Lack::HalfRepaired { log } => format!(
            "a repair of the log at {path} from slaves (epoch {}) has not come to its end: some keys may still have older values \
             than a slave holds",
            log.epoch
        ),
        Lack::Records { log, seen, source } => {
            let Seen { reign, seq, .. } = seen;
            let missing = seq.0.saturating_sub(log.end.0);
            let many = if missing > 0 { format!(", so that {missing} records or more are missing") } else { String::new() };
            format!(
                "the log at {path} ends in epoch {} at seq {}, and {} has seen reign {reign} through seq \
                 {seq}{many}: it is an older copy, or was cut",
                log.epoch,
                log.end,
                who(source)
            )
        }
    }
}

/// How to go on.
fn way_on(lack: &Lack, path: &str) -> String {
    match lack {
        Lack::NoLog { .. } => format!(
            "put the file back at {path} (is its volume mounted?), and this master goes on by itself; if it is lost for \
             good and an empty cluster is meant, stop masters and slaves, run `dsm-log forget {path}`, and start again"
        ),
        Lack::Unclaimed => {
            format!("a new log begins with the first slave, or with --new; if there was one, put it at {path}")
        }
        Lack::OtherCluster { .. } => format!(
            "put the right file at {path}, and this master goes on by itself; if this one is meant, stop masters and \
             slaves, run `dsm-log forget {path}`, and start again"
        ),
        Lack::HalfRepaired { .. } => format!(
            "stop the masters, leave the slaves running, run `dsm-log repair {path} --from-slaves` again, and start them; what it \
             has not put back is given up with `dsm-log accept-loss {path}`"
        ),
        Lack::Epoch { .. } | Lack::Records { .. } => format!(
            "put the newer file back at {path}, and this master goes on by itself; if there is none, stop the masters, leave \
             the slaves running, run `dsm-log repair {path} --from-slaves`, and start them again; what no slave has either is \
             given up with `dsm-log accept-loss {path}`"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dsm_protocol::ids::{ClusterId, Epoch, Reign, SlaveId};
    use dsm_protocol::machine::reign::may_begin::Log;

    fn waits_for(lack: &Lack) -> String {
        of(Path::new("kv.log"), Wording::WaitsFor(Hindrance::Lacks(lack)))
    }

    #[test]
    fn what_a_file_lacks_is_named_with_who_knows_of_it() {
        let source = Source::LastLeader;
        assert_eq!(
            waits_for(&Lack::NoLog { cluster: ClusterId(1), source: source.clone() }),
            "there is no log at kv.log, and the lock file names cluster 0000000000000001"
        );
        let log = Log { cluster: Some(ClusterId(1)), epoch: Epoch(2), end: Seq(2), is_half_repaired: false };
        assert_eq!(
            waits_for(&Lack::Epoch { log, known: Epoch(4), source }),
            "the log at kv.log ends in epoch 2 at seq 2, and the lock file knows of its epoch 4: it is an older copy, or was \
             cut"
        );
        let seen = Seen { reign: Reign::new(1, 10), seq: Seq(9), durable: true };
        let source = Source::Noted(SlaveId::new("s1").unwrap());
        assert_eq!(
            waits_for(&Lack::Records { log, seen, source }),
            "the log at kv.log ends in epoch 2 at seq 2, and slave s1, by what is noted beside the log, has seen reign \
             1-000000000000000a through seq 9, so that 7 records or more are missing: it is an older copy, or was cut"
        );
        let named = Lack::OtherCluster { log: None, named: ClusterId(5), source: Source::Peer };
        assert_eq!(
            waits_for(&named),
            "the log at kv.log names no cluster, and the other master names cluster 0000000000000005"
        );
    }

    #[test]
    fn a_sentence_of_the_log_names_what_is_missing_and_the_command_that_gives_it_up() {
        let say = |lack| of(Path::new("kv.log"), Wording::DoesNotServe(Hindrance::Lacks(lack)));
        assert_eq!(
            say(&Lack::Unclaimed),
            "not serving: there is no log at kv.log, and no slave has come; a new log begins with the first slave, or with \
             --new; if there was one, put it at kv.log"
        );
        let lost = say(&Lack::NoLog { cluster: ClusterId(1), source: Source::Memory });
        assert!(
            lost.contains("this master, which has read it before, names")
                && lost.contains("`dsm-log forget kv.log`")
        );
        let sight = Sight::Short("the file is shorter".to_owned());
        let barred = Hindrance::Barred { sight: &sight, seq: Seq(7) };
        let line = of(Path::new("kv.log"), Wording::DoesNotServe(barred));
        assert!(
            line.contains("path=kv.log cause=\"the file is shorter\" seq=7: put the file back"),
            "{line}"
        );
        let info = of(Path::new("kv.log"), Wording::WaitsFor(barred));
        assert_eq!(info, "the log at kv.log does not continue what was replayed: the file is shorter");
    }

    #[test]
    fn another_master_is_told_the_whole_path_and_the_flag() {
        let whole = of(Path::new("/data/kv.log"), Wording::HowToShare);
        assert_eq!(whole, "/data/kv.log: both must name the same file with --log");
        let relative = of(Path::new("kv.log"), Wording::HowToShare);
        assert!(relative.starts_with('/') && relative.contains("/kv.log: both"), "{relative}");
    }
}
