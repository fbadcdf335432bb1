//! Memory of this process: what it holds, what it held at most, and what a piece of work will take, known before the
//! work starts.
//!
//! Everything large is allocated by plan (`program::plan`, the flat blocks), so the peak is a sum: what is resident
//! when the plan is made, and what the work adds. It is printed before the first step, and the run record has it
//! beside the peak that the system measured.

use std::fmt;

/// Bytes of working memory of one thread: panels of packed operands of matrix products, tiles of attention.
const THREAD_BYTES: usize = 2 << 20;

/// A line of `/proc/self/status`, in bytes; `None` where the system has no such file.
fn status(field: &str) -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let value = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))?;
    let kilobytes: u64 = value.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kilobytes * 1024)
}

/// Bytes of memory this process has resident now (Linux: `VmRSS`); `None` where the system does not say.
pub fn resident_bytes() -> Option<u64> {
    status("VmRSS")
}

/// Most bytes of memory this process has had resident so far (Linux: `VmHWM`); `None` where the system does not say.
pub fn peak_bytes() -> Option<u64> {
    status("VmHWM")
}

/// What a piece of work will take at most.
#[derive(Clone, Debug)]
pub struct MemoryPlan {
    held: u64,
    reached: u64,
    parts: Vec<(&'static str, u64)>,
}

impl MemoryPlan {
    /// Counts what is resident now; where the system does not say, nothing.
    pub fn begin() -> MemoryPlan {
        let scratch = (rayon::current_num_threads() * THREAD_BYTES) as u64;
        MemoryPlan {
            held: resident_bytes().unwrap_or(0),
            reached: peak_bytes().unwrap_or(0),
            parts: vec![("working memory of the threads", scratch)],
        }
    }

    /// Adds what the work will hold at its peak, in bytes.
    pub fn add(&mut self, part: &'static str, bytes: usize) {
        self.parts.push((part, bytes as u64));
    }

    /// Most bytes resident at once.
    pub fn peak(&self) -> u64 {
        self.held + self.parts.iter().map(|(_, bytes)| bytes).sum::<u64>()
    }

    /// Most bytes resident at once before the work begins.
    pub fn reached(&self) -> u64 {
        self.reached
    }
}

impl fmt::Display for MemoryPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let megabytes = |bytes: u64| format!("{:.0} MB", bytes as f64 / 1e6);
        write!(f, "memory: at most {}: held already {}", megabytes(self.peak()), megabytes(self.held))?;
        self.parts.iter().try_for_each(|(part, bytes)| write!(f, ", {part} {}", megabytes(*bytes)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_os = "linux")]
    fn the_peak_grows_with_touched_memory() {
        let before = peak_bytes().unwrap();
        // Well above what is resident, so that the high-water mark must move.
        let touched = vec![1u8; before as usize + (64 << 20)];
        let after = peak_bytes().unwrap();
        assert!(
            std::hint::black_box(&touched)[7] == 1 && after >= before + (32 << 20),
            "{before} to {after}"
        );
    }

    #[test]
    fn a_plan_is_the_sum_of_its_parts() {
        let parts = vec![("a", 7_000_000), ("b", 2_000_000)];
        let plan = MemoryPlan { held: 1_000_000, reached: 3_000_000, parts };
        assert_eq!(plan.peak(), 10_000_000);
        assert_eq!(plan.to_string(), "memory: at most 10 MB: held already 1 MB, a 7 MB, b 2 MB");
    }
}
