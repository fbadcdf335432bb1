//! What a run ran on, and how much memory it took at most.

use serde::{Deserialize, Serialize};

/// The machine of a run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Machine {
    /// Operating system: "linux".
    pub os: String,
    /// Instruction set: "x86_64".
    pub architecture: String,
    /// Processor as it names itself; empty where that is not known.
    pub processor: String,
    /// Logical processors this process may use.
    pub logical_processors: usize,
    /// Vector extensions found at run time that the engine has code for, the widest last.
    pub vector_extensions: Vec<String>,
}

impl Machine {
    /// This machine.
    pub fn here() -> Machine {
        Machine {
            os: std::env::consts::OS.into(),
            architecture: std::env::consts::ARCH.into(),
            processor: processor().unwrap_or_default(),
            logical_processors: std::thread::available_parallelism().map_or(1, usize::from),
            vector_extensions: vector_extensions(),
        }
    }
}

fn processor() -> Option<String> {
    let text = std::fs::read_to_string("/proc/cpuinfo").ok()?;
    let line = text.lines().find(|line| line.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim().to_string())
}

fn vector_extensions() -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            found.push("avx2+fma".into());
        }
        if is_x86_feature_detected!("avx512f") {
            found.push("avx512f".into());
        }
    }
    #[cfg(target_arch = "aarch64")]
    found.push("neon".into());
    found
}

/// Most bytes of memory this process has had resident so far (Linux: `VmHWM`); `None` where the system does not say.
pub fn peak_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kilobytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kilobytes * 1024)
}

#[cfg(test)]
mod tests {
    #[test]
    #[cfg(target_os = "linux")]
    fn the_peak_grows_with_touched_memory() {
        let before = super::peak_bytes().unwrap();
        // Well above what is resident, so that the high-water mark must move.
        let touched = vec![1u8; before as usize + (64 << 20)];
        let after = super::peak_bytes().unwrap();
        assert!(
            std::hint::black_box(&touched)[7] == 1 && after >= before + (32 << 20),
            "{before} to {after}"
        );
    }
}
