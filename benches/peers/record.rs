//! The record in Markdown: what was measured, and what of it falls short of what is asked.

use crate::contest::{Line, Outcome};
use std::path::Path;

/// The head of the table.
pub fn header(machine: &str, threads: usize, versions: &str) -> String {
    let quoted = |word: String| if word.contains(' ') { format!("\"{word}\"") } else { word };
    let command = std::env::args().skip(1).map(quoted).collect::<Vec<_>>().join(" ");
    format!(
        "# secateur beside its peers\n\n{machine}; {threads} threads; {versions}.\n\n`peers {command}`\n\nContestants \
         alternate; ratios are paired within a round: median (least–largest) of the contestant's time over ours, above 1 where \
         secateur is faster.\n\n| workload | contestant | median | rate | time / ours | asked | quiet rounds |\n\
         | --- | --- | --- | --- | --- | --- | --- |\n"
    )
}

/// The rows of one workload.
pub fn rows(outcome: &Outcome) -> String {
    outcome.lines().map(|line| row(&line)).collect()
}

fn row(line: &Line) -> String {
    let [ratio, low, high] = line.ratio;
    let asked = match line.asked {
        Some(asked) if ratio >= asked => format!("≥ {asked}: met"),
        Some(asked) => format!("≥ {asked}: {:.0} % short", 100.0 * (1.0 - ratio / asked)),
        None => String::new(),
    };
    let time = if line.seconds < 1.0 {
        format!("{:.3} ms", 1e3 * line.seconds)
    } else {
        format!("{:.3} s", line.seconds)
    };
    format!(
        "| {} | {} | {time} | {:.0} {}/s | {ratio:.2} ({low:.2}–{high:.2}) | {asked} | {} of {} |\n",
        line.workload, line.contestant, line.rate, line.unit, line.quiet, line.rounds
    )
}

/// Replaces the file, so that a run that is cut off leaves what it has.
pub fn write(path: &Path, text: &str) {
    std::fs::write(path, text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
}
