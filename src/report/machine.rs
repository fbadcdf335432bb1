//! What a run ran on.

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
