//! What machine this is, and what processor time this process, others and the whole machine have used.

use super::record::SystemRecord;
use std::fs;

/// The machine, as far as it tells.
pub(crate) fn describe() -> SystemRecord {
    let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kilobytes = field(&memory, "MemTotal").and_then(|text| text.split(' ').next()?.parse::<u64>().ok());
    let uname = rustix::system::uname();
    SystemRecord {
        cpu_model: field(&cpu, "model name").unwrap_or_default().to_owned(),
        cores: std::thread::available_parallelism().map_or(0, |cores| cores.get() as u64),
        memory_bytes: kilobytes.unwrap_or_default() * 1024,
        kernel: format!("{} {}", uname.sysname().to_string_lossy(), uname.release().to_string_lossy()),
        rustc: String::new(),
    }
}

/// The value of the first line `name : value`.
fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let mut fields = text.lines().filter_map(|line| line.split_once(':'));
    fields.find(|(found, _)| found.trim() == name).map(|(_, value)| value.trim())
}

/// Processor time of this process, without its children.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct CpuTime {
    /// In user mode, in seconds.
    pub user_s: f64,
    /// In the kernel, in seconds.
    pub system_s: f64,
}

impl CpuTime {
    /// So far; 0 when the kernel does not tell.
    pub(crate) fn now() -> CpuTime {
        let seconds = |time: nix::sys::time::TimeVal| time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6;
        match nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_SELF) {
            Ok(usage) => {
                CpuTime { user_s: seconds(usage.user_time()), system_s: seconds(usage.system_time()) }
            }
            Err(_) => CpuTime::default(),
        }
    }

    /// Since `before`.
    pub(crate) fn since(self, before: CpuTime) -> CpuTime {
        CpuTime {
            user_s: (self.user_s - before.user_s).max(0.0),
            system_s: (self.system_s - before.system_s).max(0.0),
        }
    }

    /// User mode and kernel together, in seconds.
    pub(crate) fn total_s(self) -> f64 {
        self.user_s + self.system_s
    }
}

/// A tick of the files in `/proc`: the kernel's USER_HZ is 100 on every architecture that this runs on.
pub(crate) const TICK_S: f64 = 0.01;

/// Ticks in user mode and in the kernel: fields 14 and 15 of `/proc/PID/stat`. The name in field 2 may hold anything.
pub(crate) fn process_ticks(stat: &str) -> Option<(u64, u64)> {
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_whitespace().skip(11);
    let user = fields.next()?.parse().ok()?;
    let kernel = fields.next()?.parse().ok()?;
    Some((user, kernel))
}

/// Ticks that were not idle in `/proc/stat`: `user nice system idle iowait irq softirq steal` of the line `name`, which is
/// `cpu` for the whole machine and `cpu0` for its first core.
pub(crate) fn busy_ticks(stat: &str, name: &str) -> Option<u64> {
    let line = stat.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))?;
    let fields: Vec<u64> = line.split_whitespace().map_while(|field| field.parse().ok()).collect();
    let [user, nice, system, _idle, _wait, irq, softirq, steal, ..] = fields[..] else { return None };
    Some(user + nice + system + irq + softirq + steal)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_read_whatever_the_process_is_called() {
        let stat = "42 (a ) b) S 1 2 3 4 5 6 7 8 9 10 700 30 0 0 20 0";
        assert_eq!(process_ticks(stat), Some((700, 30)));
        assert_eq!(process_ticks(""), None);
        let machine = "cpu  100 20 3 9999 8888 4 5 6 0 0\ncpu0 1 0 0 9 9 0 0 0 0 0\ncpu01 7";
        assert_eq!(busy_ticks(machine, "cpu"), Some(138));
        assert_eq!(busy_ticks(machine, "cpu0"), Some(1));
        assert_eq!(busy_ticks("intr 1", "cpu"), None);
    }

    #[test]
    fn the_machine_and_the_processor_time_are_reported() {
        let system = describe();
        assert!(system.cores > 0 && system.memory_bytes > 1 << 20, "{system:?}");
        assert!(system.kernel.starts_with("Linux "), "{system:?}");
        let before = CpuTime::now();
        let mut number = 1_u64;
        while CpuTime::now().since(before).total_s() < 0.01 {
            number = std::hint::black_box(number.wrapping_mul(3));
        }
        assert!(before.total_s() > 0.0 || number > 0);
    }
}
