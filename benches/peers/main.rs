//! secateur and its peers, timed in the same minutes: contestants alternate in random order, round after round, and only
//! ratios within a round are compared, so that a machine's changing mood falls on all of them.
//!
//! ```text
//! tools/peers/setup                                    once: the Python packages
//! cargo bench --bench peers -- gemm                    all workloads whose name contains "gemm"
//! cargo bench --bench peers -- --threads 1 --rounds 21 --csv gemm.csv gemm
//! ```
//!
//! A round counts only if other processes used no more of the machine than the cores we leave them, plus 4 % of one; the
//! raw file has every round, with what was used.

mod contest;
mod gemm;
mod machine;
#[path = "../support/mod.rs"]
mod support;
mod worker;

use clap::Parser;
use contest::{Contest, Outcome};
use std::path::PathBuf;
use worker::Worker;

/// Times secateur against its peers.
#[derive(Parser)]
struct Arguments {
    /// Only workloads whose name contains this.
    #[arg(default_value = "")]
    filter: String,
    /// Quiet rounds to collect for each workload.
    #[arg(long, default_value_t = 11)]
    rounds: usize,
    /// Give up on a workload after this many rounds, quiet or not.
    #[arg(long, default_value_t = 60)]
    most_rounds: usize,
    /// Threads of every contestant; all cores if not given.
    #[arg(long)]
    threads: Option<usize>,
    /// Cores that other processes may use in a round that counts; those we leave free plus 0.04 if not given.
    #[arg(long)]
    foreign: Option<f64>,
    /// Seconds each contestant gets in a round.
    #[arg(long, default_value_t = 0.4)]
    seconds: f64,
    /// Every round, quiet or not, as CSV.
    #[arg(long)]
    csv: Option<PathBuf>,
    /// Passed by cargo.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() {
    let arguments = Arguments::parse();
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = arguments.threads.unwrap_or(cores);
    rayon::ThreadPoolBuilder::new().num_threads(threads).build_global().expect("first use of rayon");
    let mut worker = Worker::start(threads);
    println!("{}; {threads} threads; {}", machine::describe(), worker.versions());
    println!("{:<28} {:>16} {:>10} {:>9} {:>17}", "workload", "contestant", "median", "rate", "time / ours");
    let mut raw = arguments.csv.as_ref().map(|path| {
        let mut writer = csv::Writer::from_path(path).expect("the CSV file can be created");
        writer
            .write_record(["workload", "threads", "round", "contestant", "seconds", "foreign_cores", "quiet"])
            .expect("write");
        writer
    });
    for workload in gemm::workloads().filter(|workload| workload.name.contains(&arguments.filter)) {
        let contest = Contest {
            seconds: arguments.seconds,
            rounds: arguments.rounds,
            most_rounds: arguments.most_rounds,
            allowed_foreign: arguments.foreign.unwrap_or((cores - threads.min(cores)) as f64 + 0.04),
        };
        let outcome: Outcome = contest.run(workload, &mut worker);
        outcome.print();
        if let Some(writer) = &mut raw {
            outcome.write(writer, threads).expect("write");
        }
    }
}
