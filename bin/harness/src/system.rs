//! What machine this is, and what processor time this process has used.

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

    /// In both modes.
    pub(crate) fn total_s(self) -> f64 {
        self.user_s + self.system_s
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machine_and_the_processor_time_are_told() {
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
