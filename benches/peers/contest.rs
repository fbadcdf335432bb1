//! One workload, several contestants, many rounds.

use crate::machine::Usage;
use crate::worker::Worker;
use std::time::Instant;

/// One call of what is timed.
pub type Call = Box<dyn FnMut()>;

/// What is timed.
pub struct Workload {
    /// As the worker knows it.
    pub name: String,
    /// Operations of one call, for the rate.
    pub flop: f64,
    /// Contestants in this process; the first is the one the others are compared with.
    pub ours: Vec<(&'static str, Call)>,
    /// Name of the worker's contestant.
    pub peer: &'static str,
}

/// How long to go on.
pub struct Contest {
    /// Aim of one contestant's share of a round.
    pub seconds: f64,
    pub rounds: usize,
    pub most_rounds: usize,
    /// Cores other processes may use in a round that counts.
    pub allowed_foreign: f64,
}

struct Round {
    /// Median seconds of one call, in the order of the contestants.
    seconds: Vec<f64>,
    foreign: f64,
    quiet: bool,
}

/// Result of a contest.
pub struct Outcome {
    name: String,
    flop: f64,
    contestants: Vec<&'static str>,
    rounds: Vec<Round>,
}

fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Median of `repeats` calls after one that does not count, like the worker.
fn time(call: &mut dyn FnMut(), repeats: usize) -> f64 {
    call();
    median((0..repeats).map(|_| {
        let start = Instant::now();
        call();
        start.elapsed().as_secs_f64()
    }))
}

impl Contest {
    pub fn run(&self, mut workload: Workload, worker: &mut Worker) -> Outcome {
        let contestants: Vec<&str> =
            workload.ours.iter().map(|(name, _)| *name).chain([workload.peer]).collect();
        let once = time(&mut workload.ours[0].1, 1).max(1e-7);
        let repeats = ((self.seconds / once) as usize).clamp(1, 100_000);
        let mut rounds: Vec<Round> = Vec::new();
        let mut state = 0x2545_f491_4f6c_dd1du64;
        while rounds.iter().filter(|round| round.quiet).count() < self.rounds
            && rounds.len() < self.most_rounds
        {
            let before = Usage::now(worker.id());
            let mut seconds = vec![0.0; contestants.len()];
            let mut order: Vec<usize> = (0..contestants.len()).collect();
            for last in (1..order.len()).rev() {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                order.swap(last, (state >> 33) as usize % (last + 1));
            }
            for contestant in order {
                seconds[contestant] = match workload.ours.get_mut(contestant) {
                    Some((_, call)) => time(call, repeats),
                    None => median(worker.time(&workload.name, repeats)),
                };
            }
            let foreign = Usage::now(worker.id()).foreign_since(&before);
            rounds.push(Round { seconds, foreign, quiet: foreign <= self.allowed_foreign });
        }
        Outcome { name: workload.name, flop: workload.flop, contestants, rounds }
    }
}

impl Outcome {
    /// Medians over the quiet rounds, and of the ratios within them.
    pub fn print(&self) {
        let quiet: Vec<&Round> = self.rounds.iter().filter(|round| round.quiet).collect();
        for (index, contestant) in self.contestants.iter().enumerate() {
            let seconds = median(quiet.iter().map(|round| round.seconds[index]));
            let ratios = || quiet.iter().map(|round| round.seconds[index] / round.seconds[0]);
            let (low, high) = (ratios().fold(f64::NAN, f64::min), ratios().fold(f64::NAN, f64::max));
            println!(
                "{:<28} {contestant:>16} {:>7.3} ms {:>5.0} G/s {:>5.3} ({low:.3}–{high:.3})  n={} of {} best {:.0}",
                if index == 0 { &self.name } else { "" },
                seconds * 1e3,
                self.flop / seconds / 1e9,
                median(ratios()),
                quiet.len(),
                self.rounds.len(),
                self.flop
                    / self.rounds.iter().map(|round| round.seconds[index]).fold(f64::NAN, f64::min)
                    / 1e9,
            );
        }
    }

    pub fn write(&self, writer: &mut csv::Writer<std::fs::File>, threads: usize) -> csv::Result<()> {
        for (number, round) in self.rounds.iter().enumerate() {
            for (contestant, seconds) in self.contestants.iter().zip(&round.seconds) {
                writer.write_record([
                    self.name.clone(),
                    threads.to_string(),
                    number.to_string(),
                    (*contestant).to_string(),
                    format!("{seconds:.9}"),
                    format!("{:.3}", round.foreign),
                    round.quiet.to_string(),
                ])?;
            }
        }
        writer.flush()?;
        Ok(())
    }
}
