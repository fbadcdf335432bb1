//! What the machine is, and how much of it others use. Linux only, like the comparison.
//!
//! Only the processors this process may run on are looked at: pinned to two of many (`taskset`), the others do not matter.

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
        // "cpuN user nice system idle iowait irq softirq steal": everything but idle and iowait.
        let stat = read("/proc/stat".into());
        let busy = |cpu: usize| -> u64 {
            let name = format!("cpu{cpu} ");
            let line = stat.lines().find_map(|line| line.strip_prefix(&name)).unwrap_or_default();
            let ticks = line.split_whitespace().filter_map(|word| word.parse::<u64>().ok());
            ticks.enumerate().filter(|(i, _)| *i < 8 && *i != 3 && *i != 4).map(|(_, ticks)| ticks).sum()
        };
        let machine = processors().into_iter().map(busy).sum();
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

/// Numbers of the processors this process may run on.
pub fn processors() -> Vec<usize> {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let list = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).unwrap_or_default();
    let ranges = list.trim().split(',').filter_map(|range| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        Some(first.parse::<usize>().ok()?..=last.parse().ok()?)
    });
    ranges.flatten().collect()
}

/// Largest memory this process has held so far, in bytes.
pub fn peak_bytes() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or_default();
    line.trim().trim_end_matches(" kB").parse::<u64>().map_or(0, |kilobytes| 1024 * kilobytes)
}

/// Processor, cores, memory.
pub fn describe() -> String {
    let field = |path: &str, name: &str| {
        let text = fs::read_to_string(path).unwrap_or_default();
        let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_default();
        line.split_once(':').map_or(String::new(), |(_, value)| value.trim().to_string())
    };
    let cpu = "/proc/cpuinfo";
    format!(
        "{} (family {}, model {}), processors {:?}, {}",
        field(cpu, "model name"),
        field(cpu, "cpu family"),
        field(cpu, "model\t"),
        processors(),
        field("/proc/meminfo", "MemTotal")
    )
}
