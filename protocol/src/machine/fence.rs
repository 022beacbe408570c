//! Which process a standby may kill when the holder of the lock makes no progress: only one that is proven to be the
//! holder.
//!
//! `reign/takeover.rs` decides when a holder is to be fenced. The caller reads the facts, and kills. See
//! `docs/ARCHITECTURE.md`, *Fencing*.

use crate::lock_file::LockText;
use crate::planted;
use std::fmt;

/// What the process that would kill knows of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Observer {
    /// Its process id.
    pub pid: u32,
    /// The boot in which it runs.
    pub boot: String,
    /// Its pid name space; `None` where the system does not tell.
    pub pid_ns: Option<String>,
}

/// The holders of the lock, as far as the kernel tells.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Holders {
    /// The ids of the holders that the observer can see. It may include processes whose lock is on a file with the same
    /// number on another device.
    pub pids: Vec<u32>,
    /// The progress counter that the holder publishes on the lock file, also from another pid name space; `None` if there
    /// is none.
    pub beat: Option<u64>,
}

/// What may be done about the holder of the lock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MayKill {
    /// This process holds the lock, without doubt.
    Yes {
        /// The process that may be killed.
        pid: u32,
    },
    /// The lock is free.
    Gone,
    /// It is not certain who holds it, or that process must not be killed.
    No(Spared),
}

/// Why a holder of the lock is not killed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Spared {
    /// It runs in another pid name space.
    Elsewhere,
    /// It is the process that would kill.
    Oneself,
    /// It makes progress again.
    Running,
    /// The lock file does not say who took the lock.
    Unnamed {
        /// Who holds it, by process id.
        holders: Vec<u32>,
    },
    /// The lock file names another process than the one that holds the lock.
    OtherNamed {
        /// Who holds it, by process id.
        holders: Vec<u32>,
        /// Whom the file names.
        named: u32,
    },
    /// The file was written in another boot, so its process id means nothing now.
    OtherBoot {
        /// Who holds it, by process id.
        holders: Vec<u32>,
    },
    /// The process that took the lock has ended, and another process has its id.
    IdReused {
        /// That id.
        pid: u32,
    },
}

impl fmt::Display for Spared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Spared::Elsewhere => f.write_str(
                "the holder is in another pid namespace: kill it by hand, and this master takes over",
            ),
            Spared::Oneself => f.write_str("the holder is this process"),
            Spared::Running => f.write_str("the holder makes progress again"),
            Spared::Unnamed { holders } => {
                write!(f, "pid {holders:?} holds the lock, but the lock file does not say who that is")
            }
            Spared::OtherNamed { holders, named } => {
                write!(f, "pid {holders:?} holds the lock, but the lock file names pid {named}")
            }
            Spared::OtherBoot { holders } => {
                write!(f, "pid {holders:?} holds the lock, but the lock file is of another boot")
            }
            Spared::IdReused { pid } => write!(f, "pid {pid} is not the process that took the lock"),
        }
    }
}

/// Whether the process that `text` names may be killed as the holder of the lock: only if every check passes.
///
/// `start` is when the process that has the named id now was started, in clock ticks since boot, or `None` if there is
/// none. `stood_at` is the value at which the holder's counter has stood still for too long. The caller must hold a pidfd
/// of that process from before `start` and `holders` were read until the signal is sent: then no other process can get the
/// id in between.
pub fn may_kill(
    text: &LockText,
    holders: &Holders,
    observer: &Observer,
    start: Option<u64>,
    stood_at: Option<u64>,
) -> MayKill {
    planted!(KillsUnproven => {
        if let Some(pid) = text.pid.filter(|_| holders.beat == stood_at) {
            return MayKill::Yes { pid };
        }
    });
    if holders.pids.is_empty() {
        return if holders.beat.is_some() { MayKill::No(Spared::Elsewhere) } else { MayKill::Gone };
    }
    let pids = || holders.pids.clone();
    let same_boot = text.boot.as_ref().map(|boot| *boot == observer.boot);
    if let (Some(theirs), Some(ours), Some(true)) = (&text.pid_ns, &observer.pid_ns, same_boot) {
        // Ids of another name space mean nothing here, even if one equals ours.
        if theirs != ours {
            return MayKill::No(Spared::Elsewhere);
        }
    }
    let (Some(pid), Some(named_start), Some(same_boot)) = (text.pid, text.start, same_boot) else {
        return MayKill::No(Spared::Unnamed { holders: pids() });
    };
    if !same_boot {
        return MayKill::No(Spared::OtherBoot { holders: pids() });
    }
    if !holders.pids.contains(&pid) {
        return MayKill::No(Spared::OtherNamed { holders: pids(), named: pid });
    }
    match start {
        None => MayKill::Gone,
        Some(start) if start != named_start => MayKill::No(Spared::IdReused { pid }),
        Some(_) if pid == observer.pid => MayKill::No(Spared::Oneself),
        // The disk may have taken its time to open the file.
        Some(_) if holders.beat != stood_at => MayKill::No(Spared::Running),
        Some(_) => MayKill::Yes { pid },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn observer() -> Observer {
        Observer { pid: 20, boot: "b-1".into(), pid_ns: Some("1".into()) }
    }

    /// A lock file of pid 10, started at 500 in this boot and name space.
    fn named() -> LockText {
        LockText {
            pid: Some(10),
            start: Some(500),
            boot: Some("b-1".into()),
            pid_ns: Some("1".into()),
            ..LockText::default()
        }
    }

    /// The counter at which the holder stood still.
    const STOOD_AT: Option<u64> = Some(77);

    fn held_by(pids: &[u32]) -> Holders {
        Holders { pids: pids.to_vec(), beat: STOOD_AT }
    }

    #[test]
    fn the_process_that_the_file_names_and_the_kernel_lists_may_be_killed() {
        let yes = MayKill::Yes { pid: 10 };
        assert_eq!(may_kill(&named(), &held_by(&[10]), &observer(), Some(500), STOOD_AT), yes);
        // A lock on a file with the same number on another device.
        assert_eq!(may_kill(&named(), &held_by(&[7, 10]), &observer(), Some(500), STOOD_AT), yes);
        // It holds the lock and has published nothing yet.
        let silent = Holders { beat: None, ..held_by(&[10]) };
        assert_eq!(may_kill(&named(), &silent, &observer(), Some(500), None), yes);
        // Where the system does not tell name spaces, the other checks must suffice.
        let unknown = Observer { pid_ns: None, ..observer() };
        assert_eq!(may_kill(&named(), &held_by(&[10]), &unknown, Some(500), STOOD_AT), yes);
    }

    #[test]
    fn nobody_is_killed_for_a_lock_that_is_free() {
        assert_eq!(may_kill(&named(), &Holders::default(), &observer(), Some(500), STOOD_AT), MayKill::Gone);
        // The holder has ended since the kernel was asked.
        assert_eq!(may_kill(&named(), &held_by(&[10]), &observer(), None, STOOD_AT), MayKill::Gone);
    }

    #[test]
    fn a_holder_that_makes_progress_again_is_not_killed() {
        for (beat, stood_at) in [(Some(78), STOOD_AT), (Some(77), None), (None, STOOD_AT)] {
            let holders = Holders { beat, ..held_by(&[10]) };
            let may = may_kill(&named(), &holders, &observer(), Some(500), stood_at);
            assert_eq!(may, MayKill::No(Spared::Running), "{beat:?} {stood_at:?}");
        }
    }

    #[test]
    fn a_process_that_is_not_proven_to_hold_the_lock_is_not_killed() {
        let spared = |text: LockText, holders: &[u32], start| match may_kill(
            &text,
            &held_by(holders),
            &observer(),
            start,
            STOOD_AT,
        ) {
            MayKill::No(why) => why,
            other @ (MayKill::Yes { .. } | MayKill::Gone) => panic!("{other:?}"),
        };
        assert_eq!(spared(named(), &[], Some(500)), Spared::Elsewhere);
        let elsewhere = LockText { pid_ns: Some("2".into()), ..named() };
        assert_eq!(spared(elsewhere, &[10], Some(500)), Spared::Elsewhere);
        for unnamed in [
            LockText::default(),
            LockText { pid: None, ..named() },
            LockText { start: None, ..named() },
            LockText { boot: None, ..named() },
        ] {
            assert_eq!(spared(unnamed, &[10], Some(500)), Spared::Unnamed { holders: vec![10] });
        }
        let other_boot = LockText { boot: Some("b-0".into()), ..named() };
        assert_eq!(spared(other_boot, &[10], Some(500)), Spared::OtherBoot { holders: vec![10] });
        // The holder has not written itself in yet.
        assert_eq!(spared(named(), &[11], Some(500)), Spared::OtherNamed { holders: vec![11], named: 10 });
        assert_eq!(spared(named(), &[10], Some(501)), Spared::IdReused { pid: 10 });
        let own = LockText { pid: Some(20), ..named() };
        assert_eq!(spared(own.clone(), &[20], Some(500)), Spared::Oneself);
        // We gave the lock away, and its new holder has not written itself in yet.
        assert_eq!(spared(own, &[10], Some(500)), Spared::OtherNamed { holders: vec![10], named: 20 });
    }
}
