//! What any node says of its process: memory and processor time, as the system tells.

use crate::env::Env;
use dsm_protocol::info::{human_bytes, CpuInfo, CpuSeconds, MemoryInfo};

/// What the process has in memory.
pub(crate) fn memory_info(env: &Env) -> MemoryInfo {
    let (private, resident) = (env.private_bytes(), env.resident_bytes());
    MemoryInfo {
        used_memory: private,
        used_memory_human: human_bytes(private),
        used_memory_rss: resident,
        used_memory_rss_human: human_bytes(resident),
        maxmemory: 0,
        maxmemory_policy: "noeviction".to_owned(),
    }
}

/// For how long its threads have computed.
pub(crate) fn cpu_info(env: &Env) -> CpuInfo {
    let used = env.processor_time_us();
    CpuInfo {
        used_cpu_sys: used.map(|(_, kernel)| CpuSeconds(kernel)),
        used_cpu_user: used.map(|(program, _)| CpuSeconds(program)),
    }
}
