//! The text of `kv_store.log.lock`: the holder of the lock, for people and for fencing (`machine/fence.rs`).
//!
//! The lock itself is held in the kernel; this text only names its holder. It has lines of `key=value`; unknown keys
//! are ignored. See `docs/ARCHITECTURE.md`, *Fencing*.

use crate::ids::{ClusterId, Epoch, ReignId};
use std::fmt;

/// What the lock file says. Absent lines are `None`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LockText {
    /// The holder's process id.
    pub pid: Option<u32>,
    /// When that process started, in clock ticks since boot (field 22 of `/proc/PID/stat`).
    pub start: Option<u64>,
    /// The boot in which that process runs.
    pub boot: Option<String>,
    /// The pid name space in which that process has its id; absent where it is not known.
    pub pid_ns: Option<String>,
    /// The address at which the holder serves.
    pub address: Option<String>,
    /// The cluster of the log.
    pub cluster: Option<ClusterId>,
    /// The epoch of the holder's reign, or of the last one.
    pub epoch: Option<Epoch>,
    /// The identity of that reign.
    pub reign: Option<ReignId>,
    /// The boot in which the log was last known to be whole. It decides what can be torn: within the same boot only an
    /// unfinished last line.
    pub log_boot: Option<String>,
}

impl LockText {
    /// Reads the text. A line that is garbled or unfinished counts as absent: after a power cut the file may hold
    /// anything.
    pub fn parse(text: &str) -> Self {
        let mut parsed = LockText::default();
        for line in text.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n')) {
            let Some((key, value)) = line.split_once('=') else { continue };
            match key {
                "pid" => parsed.pid = value.parse().ok(),
                "start" => parsed.start = value.parse().ok(),
                "pid_ns" => parsed.pid_ns = Some(value.to_owned()),
                "boot" => parsed.boot = Some(value.to_owned()),
                "address" => parsed.address = Some(value.to_owned()),
                "cluster" => parsed.cluster = value.parse().ok(),
                "epoch" => parsed.epoch = value.parse().ok().map(Epoch),
                "reign" => parsed.reign = u64::from_str_radix(value, 16).ok().map(ReignId),
                "log_boot" => parsed.log_boot = Some(value.to_owned()),
                _ => {}
            }
        }
        parsed
    }
}

impl fmt::Display for LockText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fn line<T: fmt::Display>(f: &mut fmt::Formatter<'_>, key: &str, value: Option<&T>) -> fmt::Result {
            value.map_or(Ok(()), |value| writeln!(f, "{key}={value}"))
        }
        line(f, "pid", self.pid.as_ref())?;
        line(f, "start", self.start.as_ref())?;
        line(f, "boot", self.boot.as_ref())?;
        line(f, "pid_ns", self.pid_ns.as_ref())?;
        line(f, "address", self.address.as_ref())?;
        line(f, "cluster", self.cluster.as_ref())?;
        line(f, "epoch", self.epoch.as_ref())?;
        line(f, "reign", self.reign.as_ref())?;
        line(f, "log_boot", self.log_boot.as_ref())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_comes_back_and_garbage_is_absent() {
        let text = LockText {
            pid: Some(7),
            start: Some(123_456),
            boot: Some("b-1".into()),
            pid_ns: Some("4026531836".into()),
            address: Some("127.0.0.1:12345".into()),
            cluster: Some(ClusterId(0x7f3a)),
            epoch: Some(Epoch(9)),
            reign: Some(ReignId(0xab)),
            log_boot: None,
        };
        assert_eq!(LockText::parse(&text.to_string()), text);
        assert_eq!(LockText::parse("pid=x\n\0\0\0=\nepoch"), LockText::default());
        // A cut id would be the id of another cluster.
        assert_eq!(LockText::parse("cluster=7f3a"), LockText::default());
    }
}
