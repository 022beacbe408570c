//! The faults of a run: their spelling, and their order.
//!
//! `kill-primary@10s,restart-primary@15s,pause-slave:2@20s+3s,failover-request@30s`

use dsm::launcher::Role;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FaultAction {
    /// SIGKILL.
    Kill(Role),
    /// Starts it again, after stopping it if it runs.
    Restart(Role),
    /// SIGSTOP.
    Pause(Role),
    /// SIGCONT.
    Resume(Role),
    /// Asks the master that serves to hand over.
    RequestFailover,
}

impl FaultAction {
    fn role(self) -> Option<Role> {
        match self {
            FaultAction::Kill(role)
            | FaultAction::Restart(role)
            | FaultAction::Pause(role)
            | FaultAction::Resume(role) => Some(role),
            FaultAction::RequestFailover => None,
        }
    }

    /// The action that undoes this one; nothing for one that cannot be undone.
    fn undone_by(self) -> Option<FaultAction> {
        match self {
            FaultAction::Kill(role) => Some(FaultAction::Restart(role)),
            FaultAction::Pause(role) => Some(FaultAction::Resume(role)),
            FaultAction::Restart(_) | FaultAction::Resume(_) | FaultAction::RequestFailover => None,
        }
    }
}

impl fmt::Display for FaultAction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verb = match self {
            FaultAction::Kill(_) => "kill",
            FaultAction::Restart(_) => "restart",
            FaultAction::Pause(_) => "pause",
            FaultAction::Resume(_) => "resume",
            FaultAction::RequestFailover => return f.write_str("failover-request"),
        };
        match self.role() {
            Some(role) => write!(f, "{verb}-{}", role.to_string().replace(' ', ":")),
            None => Ok(()),
        }
    }
}

/// Something that happens at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Strike {
    /// Since the start of the measurement.
    pub at: Duration,
    pub deed: FaultAction,
    /// The fault in the order of the plan, which this is or undoes.
    pub fault: usize,
    /// Whether it undoes the fault.
    pub undoes: bool,
}

/// `--fault`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct FaultPlan {
    faults: Vec<Fault>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Fault {
    deed: FaultAction,
    at: Duration,
    lasts: Option<Duration>,
}

impl FaultPlan {
    /// Whether nothing is to happen.
    pub(crate) fn is_empty(&self) -> bool {
        self.faults.is_empty()
    }

    /// Whether it needs the processes of a cluster.
    pub(crate) fn touches_processes(&self) -> bool {
        self.faults.iter().any(|fault| fault.deed.role().is_some())
    }

    /// What happens, in order.
    pub(crate) fn strikes(&self) -> Vec<Strike> {
        let strikes = self.faults.iter().enumerate().flat_map(|(number, fault)| {
            let strike = Strike { at: fault.at, deed: fault.deed, fault: number, undoes: false };
            let undone = fault.lasts.zip(fault.deed.undone_by());
            let undone = undone.map(|(lasts, deed)| Strike {
                at: fault.at.saturating_add(lasts),
                deed,
                undoes: true,
                ..strike
            });
            std::iter::once(strike).chain(undone)
        });
        let mut strikes: Vec<Strike> = strikes.collect();
        strikes.sort_by_key(|strike| strike.at);
        strikes
    }

    /// The first fault that would strike at `end` or later.
    pub(crate) fn first_after(&self, end: Duration) -> Option<FaultAction> {
        self.faults.iter().find(|fault| fault.at >= end).map(|fault| fault.deed)
    }

    /// Whether all slaves that are named are there.
    ///
    /// # Errors
    /// One that is not.
    pub(crate) fn validate(&self, slaves: u32) -> Result<(), String> {
        for fault in &self.faults {
            match fault.deed.role() {
                Some(Role::Slave(number)) if number > slaves as usize => {
                    return Err(format!("--fault names slave:{number}, and there are {slaves} slaves"));
                }
                Some(role @ Role::Master(_)) if ![Role::PRIMARY, Role::BACKUP].contains(&role) => {
                    return Err(format!("--fault names {role}, and there are a primary and a backup"));
                }
                Some(Role::Slave(_) | Role::Master(_)) | None => {}
            }
        }
        Ok(())
    }
}

impl fmt::Display for FaultPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, fault) in self.faults.iter().enumerate() {
            let comma = if number == 0 { "" } else { "," };
            let time = |duration: Duration| humantime::format_duration(duration).to_string().replace(' ', "");
            write!(f, "{comma}{}@{}", fault.deed, time(fault.at))?;
            if let Some(lasts) = fault.lasts {
                write!(f, "+{}", time(lasts))?;
            }
        }
        Ok(())
    }
}

impl FromStr for FaultPlan {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let faults = text.split(',').map(str::trim).filter(|part| !part.is_empty()).map(str::parse);
        let mut faults = faults.collect::<Result<Vec<Fault>, String>>()?;
        faults.sort_by_key(|fault| fault.at);
        Ok(FaultPlan { faults })
    }
}

impl FromStr for Fault {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (what, when) = text
            .split_once('@')
            .ok_or_else(|| format!("{text:?} does not say when, as in kill-primary@10s"))?;
        let duration = |text: &str| {
            humantime::parse_duration(text).map_err(|error| format!("{text:?} is no time as in 10s: {error}"))
        };
        let (at, lasts) = match when.split_once('+') {
            Some((at, lasts)) => (duration(at)?, Some(duration(lasts)?)),
            None => (duration(when)?, None),
        };
        let deed: FaultAction = what.parse()?;
        if lasts.is_some() && deed.undone_by().is_none() {
            return Err(format!("{what} cannot be undone: +TIME is for kill and pause"));
        }
        Ok(Fault { deed, at, lasts })
    }
}

impl FromStr for FaultAction {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "failover-request" {
            return Ok(FaultAction::RequestFailover);
        }
        let unknown = || {
            format!(
                "{text:?} is no fault: kill, restart, pause or resume, a dash, and primary, backup or slave:N; or \
                 failover-request"
            )
        };
        let (verb, role) = text.split_once('-').ok_or_else(unknown)?;
        let role: Role = role.replacen(':', " ", 1).parse().map_err(|_| unknown())?;
        match verb {
            "kill" => Ok(FaultAction::Kill(role)),
            "restart" => Ok(FaultAction::Restart(role)),
            "pause" => Ok(FaultAction::Pause(role)),
            "resume" => Ok(FaultAction::Resume(role)),
            _ => Err(unknown()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(seconds: f64) -> Duration {
        Duration::from_secs_f64(seconds)
    }

    #[test]
    fn faults_strike_in_the_order_of_their_times_and_are_undone() {
        let plan: FaultPlan =
            "pause-slave:2@2s+500ms, kill-primary@1s ,failover-request@2100ms".parse().unwrap();
        let told: Vec<_> =
            plan.strikes().iter().map(|s| (s.at, s.deed.to_string(), s.fault, s.undoes)).collect();
        assert_eq!(
            told,
            [
                (seconds(1.0), "kill-primary".to_owned(), 0, false),
                (seconds(2.0), "pause-slave:2".to_owned(), 1, false),
                (seconds(2.1), "failover-request".to_owned(), 2, false),
                (seconds(2.5), "resume-slave:2".to_owned(), 1, true),
            ]
        );
    }

    #[test]
    fn a_plan_is_read_as_it_is_written() {
        let text = "kill-primary@1s500ms+2m3s,failover-request@2s";
        let plan: FaultPlan = text.parse().unwrap();
        assert_eq!(plan.to_string(), text);
        assert_eq!(FaultPlan::default().to_string(), "");
    }

    #[test]
    fn every_deed_is_read_as_it_is_written() {
        for text in ["kill-primary", "restart-backup", "pause-slave:1", "resume-slave:12", "failover-request"]
        {
            assert_eq!(text.parse::<FaultAction>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn what_is_no_fault_is_refused() {
        for text in [
            "kill-primary",
            "kill-primary@",
            "kill-primary@soon",
            "kill@1s",
            "kill-nobody@1s",
            "stop-primary@1s",
            "kill-slave@1s",
            "kill-slave:0@1s",
            "restart-primary@1s+1s",
            "pause-primary@1s+",
        ] {
            assert!(text.parse::<FaultPlan>().is_err(), "{text}");
        }
        assert_eq!("".parse(), Ok(FaultPlan::default()));
    }

    #[test]
    fn a_slave_that_is_not_there_is_named() {
        let plan: FaultPlan = "kill-slave:3@1s".parse().unwrap();
        assert!(plan.validate(3).is_ok());
        assert!(plan.validate(2).unwrap_err().contains("slave:3"));
    }
}
