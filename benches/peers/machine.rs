//! What the machine is, and how much of it others use. Linux only, like the comparison.

use std::fs;
use std::time::Instant;

/// CPU time so far, in ticks of 10 ms: all, and that of this process and the worker.
pub struct Usage {
    at: Instant,
    machine: u64,
    own: u64,
}

impl Usage {
    pub fn now(worker: u32) -> Usage {
        let read = |path: String| fs::read_to_string(path).unwrap_or_default();
        // "cpu user nice system idle iowait irq softirq steal": everything but idle and iowait.
        let total: Vec<u64> = read("/proc/stat".into())
            .lines()
            .next()
            .map(|line| line.split_whitespace().skip(1).filter_map(|word| word.parse().ok()).collect())
            .unwrap_or_default();
        let machine = total
            .iter()
            .enumerate()
            .filter(|(i, _)| *i < 8 && *i != 3 && *i != 4)
            .map(|(_, ticks)| ticks)
            .sum();
        let process = |id: u32| -> u64 {
            // Fields 14 and 15, utime and stime; the second field is a name in parentheses.
            let stat = read(format!("/proc/{id}/stat"));
            let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
            fields.skip(11).take(2).filter_map(|word| word.parse::<u64>().ok()).sum()
        };
        Usage { at: Instant::now(), machine, own: process(std::process::id()) + process(worker) }
    }

    /// Cores used by all other processes since `before`.
    pub fn foreign_since(&self, before: &Usage) -> f64 {
        let ticks = (self.machine - before.machine).saturating_sub(self.own - before.own);
        ticks as f64 / 100.0 / (self.at - before.at).as_secs_f64()
    }
}

/// Processor, cores, memory.
pub fn describe() -> String {
    let field = |path: &str, name: &str| {
        let text = fs::read_to_string(path).unwrap_or_default();
        let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_default();
        line.split_once(':').map_or(String::new(), |(_, value)| value.trim().to_string())
    };
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let cpu = "/proc/cpuinfo";
    format!(
        "{} (family {}, model {}), {cores} cores, {}",
        field(cpu, "model name"),
        field(cpu, "cpu family"),
        field(cpu, "model\t"),
        field("/proc/meminfo", "MemTotal")
    )
}
