//! secateur and its peers, timed in the same minutes: contestants alternate in random order, round after round, and only
//! ratios within a round are compared, so that a machine's changing mood falls on all of them.
//!
//! ```text
//! tools/peers/setup                                    once: the Python packages
//! cargo bench --bench peers -- gemm MRPC               all workloads whose name contains "gemm" or "MRPC"
//! cargo bench --bench peers -- --threads 1 --rounds 21 --csv gemm.csv gemm
//! ```
//!
//! A round counts only if other processes used no more of the processors this one may run on than we leave them, plus 4 %
//! of one; the raw file has every round, with what was used. The built bench needs nothing beside it but a Python with torch,
//! transformers, onnxruntime and onnxscript, named by `SECATEUR_PEERS_PYTHON`.

mod contest;
mod dual_cp;
mod gemm;
mod machine;
mod model;
mod record;
#[path = "../support/mod.rs"]
mod support;
mod worker;

use clap::Parser;
use contest::Contest;
use std::path::PathBuf;
use worker::Worker;

/// Times secateur against its peers.
#[derive(Parser)]
struct Arguments {
    /// Only workloads whose name contains one of these; all if there is none.
    filters: Vec<String>,
    /// Quiet rounds to collect for each workload.
    #[arg(long, default_value_t = 11)]
    rounds: usize,
    /// Give up on a workload after this many rounds, quiet or not.
    #[arg(long, default_value_t = 60)]
    most_rounds: usize,
    /// Go on to the next workload after this many seconds, once there are three rounds.
    #[arg(long, default_value_t = f64::INFINITY)]
    most_seconds: f64,
    /// Threads of every contestant; all processors this process may run on if not given.
    #[arg(long)]
    threads: Option<usize>,
    /// Processors that others may use in a round that counts; those we leave free plus 0.04 if not given.
    #[arg(long)]
    foreign: Option<f64>,
    /// Seconds each contestant gets in a round.
    #[arg(long, default_value_t = 0.4)]
    seconds: f64,
    /// Every round, quiet or not, as CSV.
    #[arg(long)]
    csv: Option<PathBuf>,
    /// The record, as Markdown.
    #[arg(long)]
    record: Option<PathBuf>,
    /// Names of the workloads, nothing else.
    #[arg(long)]
    list: bool,
    /// Passed by cargo.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() {
    let arguments = Arguments::parse();
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = arguments.threads.unwrap_or(cores);
    rayon::ThreadPoolBuilder::new().num_threads(threads).build_global().expect("first use of rayon");
    // On a worker of the pool, where executors run operations too.
    rayon::scope(|_| run(&arguments, cores, threads));
}

fn run(arguments: &Arguments, cores: usize, threads: usize) {
    if arguments.filters == [dual_cp::ONCE] {
        return dual_cp::once();
    }
    let wanted = |name: &str| {
        arguments.filters.is_empty() || arguments.filters.iter().any(|filter| name.contains(filter))
    };
    let entries = gemm::entries().chain(model::entries()).filter(|entry| wanted(&entry.name));
    if arguments.list {
        entries.for_each(|entry| println!("{}", entry.name));
        println!("{}", dual_cp::NAME);
        return;
    }
    let contest = Contest {
        seconds: arguments.seconds,
        rounds: arguments.rounds,
        most_rounds: arguments.most_rounds,
        most_seconds: arguments.most_seconds,
        allowed_foreign: arguments.foreign.unwrap_or((cores - threads.min(cores)) as f64 + 0.04),
    };
    let mut worker = Worker::start(threads);
    let mut text = record::header(&machine::describe(), threads, &worker.versions());
    print!("{text}");
    let mut show = |section: String| {
        print!("{section}");
        text += &section;
        if let Some(path) = &arguments.record {
            record::write(path, &text);
        }
    };
    let mut raw = arguments.csv.as_ref().map(|path| {
        let mut writer = csv::Writer::from_path(path).expect("the CSV file can be created");
        writer
            .write_record(["workload", "threads", "round", "contestant", "seconds", "foreign_cores", "quiet"])
            .expect("write");
        writer
    });
    for entry in entries {
        let outcome = contest.run((entry.build)(), &mut worker);
        show(record::rows(&outcome));
        if let Some(writer) = &mut raw {
            outcome.write(writer, threads).expect("write");
        }
    }
    drop(worker);
    if wanted(dual_cp::NAME) {
        show(dual_cp::report(arguments.rounds.min(3), threads));
    }
}
