//! Why a cluster's process could not be started, ended or waited for, in a sentence.

use dsm::launcher::{describe_exit, LaunchError};
use std::error::Error as _;

/// The sentence for an error, with its cause, without a line end.
pub fn sentence(error: &LaunchError) -> String {
    match error {
        LaunchError::Ended { status, output, .. } => {
            format!("{error} ({}): {output}", describe_exit(*status))
        }
        LaunchError::NotReady { waited, output, .. } => {
            format!("{error} after {}, see {}", humantime::format_duration(*waited), output.display())
        }
        // Later variants are shown by their own text.
        other => match other.source() {
            Some(cause) => format!("{other}: {cause}"),
            None => other.to_string(),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dsm::launcher::{Awaited, Role};
    use std::io;
    use std::os::unix::process::ExitStatusExt as _;
    use std::process::ExitStatus;
    use std::time::Duration;

    #[test]
    fn a_failed_launch_is_reported_with_its_cause_and_where_to_look() {
        let output = "ERROR the log is corrupt".to_owned();
        let ended = LaunchError::Ended { role: Role::PRIMARY, status: ExitStatus::from_raw(3 << 8), output };
        assert_eq!(
            sentence(&ended),
            "primary ended before it was ready (exit code 3): ERROR the log is corrupt"
        );
        let not_ready = |awaited| {
            let (waited, output) = (Duration::from_secs(30), "data/backup.out".into());
            sentence(&LaunchError::NotReady { awaited, waited, output })
        };
        for (awaited, told) in [
            (Awaited::Answers(Role::BACKUP), "backup"),
            (Awaited::HasLog(Role::PRIMARY), "primary at the log"),
            (Awaited::Serves(Role::PRIMARY), "primary serving"),
            (Awaited::Pause(Role::Slave(2)), "pause of slave 2"),
            (Awaited::Slaves { count: 3, active: 1 }, "only 1 of 3 slaves active: the cluster"),
        ] {
            assert_eq!(not_ready(awaited), format!("{told} not ready after 30s, see data/backup.out"));
        }
        let source = io::Error::other("no such program");
        let spawn = LaunchError::Spawn { role: Role::Slave(1), program: "dsm".into(), source };
        assert_eq!(sentence(&spawn), "cannot start dsm as slave 1: no such program");
    }
}
