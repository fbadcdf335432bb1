//! One workload, several contestants, many rounds.

use crate::machine::Usage;
use crate::worker::Worker;
use std::time::Instant;

/// One call of what is timed.
pub type Call = Box<dyn FnMut()>;

/// A contestant in the worker's process.
pub struct Peer {
    /// Name in the record.
    pub name: &'static str,
    /// Workload, as the worker is told.
    pub command: String,
    /// Least ratio of its time to ours that the project asks of itself, where it does.
    pub asked: Option<f64>,
}

/// What is timed.
pub struct Workload {
    pub name: String,
    /// Work of one call, the same for every contestant, in units of `unit`.
    pub work: f64,
    /// "GFLOP" or "tokens".
    pub unit: &'static str,
    /// Contestants in this process; the first is the one the others are compared with.
    pub ours: Vec<(&'static str, Call)>,
    pub peers: Vec<Peer>,
}

/// A workload that is set up when its turn comes: models are large.
pub struct Entry {
    pub name: String,
    pub build: Box<dyn FnOnce() -> Workload>,
}

/// How long to go on.
pub struct Contest {
    /// Aim of one contestant's share of a round.
    pub seconds: f64,
    /// Quiet rounds to collect.
    pub rounds: usize,
    /// Rounds after which to give up, quiet or not.
    pub most_rounds: usize,
    /// Seconds after which to stop, once there are three rounds.
    pub most_seconds: f64,
    /// Cores other processes may use in a round that counts.
    pub allowed_foreign: f64,
}

/// Rounds below which a median says nothing.
const FEWEST_ROUNDS: usize = 3;
/// Calls shorter than this are preceded by one that does not count, in every round.
const SHORT: f64 = 0.25;

struct Round {
    /// Median seconds of one call, in the order of the contestants.
    seconds: Vec<f64>,
    foreign: f64,
    quiet: bool,
}

/// Result of a contest.
pub struct Outcome {
    name: String,
    work: f64,
    unit: &'static str,
    /// Names, and what is asked of the ratio to each.
    contestants: Vec<(&'static str, Option<f64>)>,
    rounds: Vec<Round>,
}

/// Result of one contestant.
pub struct Line<'a> {
    pub workload: &'a str,
    pub contestant: &'static str,
    pub seconds: f64,
    /// Units of work a second.
    pub rate: f64,
    pub unit: &'static str,
    /// Median, least and largest ratio of its time to ours within a round.
    pub ratio: [f64; 3],
    pub asked: Option<f64>,
    pub quiet: usize,
    pub rounds: usize,
}

/// The middle value; the lower of two.
pub fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len().saturating_sub(1) / 2).copied().unwrap_or(f64::NAN)
}

/// Median of `repeats` calls after `untimed` that do not count, like the worker.
fn time(call: &mut dyn FnMut(), repeats: usize, untimed: usize) -> f64 {
    (0..untimed).for_each(|_| call());
    median((0..repeats).map(|_| {
        let start = Instant::now();
        call();
        start.elapsed().as_secs_f64()
    }))
}

impl Contest {
    pub fn run(&self, mut workload: Workload, worker: &mut Worker) -> Outcome {
        let ours = workload.ours.iter().map(|(name, _)| (*name, None));
        let peers = workload.peers.iter().map(|peer| (peer.name, peer.asked));
        let contestants: Vec<_> = ours.chain(peers).collect();
        // Everybody's first call sets up and grows buffers.
        for peer in &workload.peers {
            worker.time(&peer.command, 1, 0);
        }
        let once = workload.ours.iter_mut().map(|(_, call)| time(call, 1, 1)).fold(1e-7, f64::max);
        let untimed = usize::from(once < SHORT);
        let repeats = ((self.seconds / once) as usize).clamp(1, 100_000);
        let mut rounds: Vec<Round> = Vec::new();
        let mut state = 0x2545_f491_4f6c_dd1du64;
        let start = Instant::now();
        while rounds.iter().filter(|round| round.quiet).count() < self.rounds
            && rounds.len() < self.most_rounds
            && (rounds.len() < FEWEST_ROUNDS || start.elapsed().as_secs_f64() < self.most_seconds)
        {
            let before = Usage::now(worker.id());
            let mut seconds = vec![0.0; contestants.len()];
            let mut order: Vec<usize> = (0..contestants.len()).collect();
            for last in (1..order.len()).rev() {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                order.swap(last, (state >> 33) as usize % (last + 1));
            }
            for contestant in order {
                seconds[contestant] = match contestant.checked_sub(workload.ours.len()) {
                    None => time(&mut workload.ours[contestant].1, repeats, untimed),
                    Some(peer) => median(worker.time(&workload.peers[peer].command, repeats, untimed)),
                };
            }
            let foreign = Usage::now(worker.id()).foreign_since(&before);
            rounds.push(Round { seconds, foreign, quiet: foreign <= self.allowed_foreign });
        }
        worker.forget();
        Outcome { name: workload.name, work: workload.work, unit: workload.unit, contestants, rounds }
    }
}

impl Outcome {
    /// Medians over the quiet rounds, and of the ratios within them.
    pub fn lines(&self) -> impl Iterator<Item = Line<'_>> {
        let quiet: Vec<&Round> = self.rounds.iter().filter(|round| round.quiet).collect();
        self.contestants.iter().enumerate().map(move |(index, &(contestant, asked))| {
            let seconds = median(quiet.iter().map(|round| round.seconds[index]));
            let ratios = || quiet.iter().map(|round| round.seconds[index] / round.seconds[0]);
            Line {
                workload: &self.name,
                contestant,
                seconds,
                rate: self.work / seconds,
                unit: self.unit,
                ratio: [
                    median(ratios()),
                    ratios().fold(f64::NAN, f64::min),
                    ratios().fold(f64::NAN, f64::max),
                ],
                asked,
                quiet: quiet.len(),
                rounds: self.rounds.len(),
            }
        })
    }

    /// Every round as rows of the raw record.
    pub fn write(&self, writer: &mut csv::Writer<std::fs::File>, threads: usize) -> csv::Result<()> {
        for (number, round) in self.rounds.iter().enumerate() {
            for ((contestant, _), seconds) in self.contestants.iter().zip(&round.seconds) {
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
