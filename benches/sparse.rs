//! A step that learns masks beside a plain fine-tuning step of the same model on the same rows, CPU executor: 32 rows of
//! 40 tokens. Printed before the times: the memory of each beyond the model's own block, activations apart.

use std::time::Duration;

use criterion::{Criterion, criterion_group, criterion_main};
use secateur::bench::Shape;
use secateur::data::random::{Purpose, Stream};
use secateur::data::{Cursor, Dataset, Example, Step, Target, Task};
use secateur::exec::Block;
use secateur::model::Model;
use secateur::program::Extents;
use secateur::prune::sparse::options::Setting;
use secateur::prune::sparse::{Head, Masking, Method, Options, Profile};
use secateur::session::{Device, Session};
use secateur::train::masked::{self, MaskedTrainer};
use secateur::train::stepper::{RunSize, Stepper};
use secateur::train::{Recipe, Trainer};

const ROWS: usize = 32;
const TOKENS: usize = 40;

fn data(vocabulary: usize) -> Dataset {
    let mut stream = Stream::new(1, Purpose::Generation, 0);
    let mut row = |row: usize| Example {
        input_ids: (0..TOKENS).map(|_| (stream.uniform() * vocabulary as f64) as i32).collect(),
        token_type_ids: vec![0; TOKENS],
        target: Target::Class(row as u32 % 2),
    };
    Dataset { examples: (0..ROWS).map(&mut row).collect(), ..Dataset::default() }
}

/// Bytes of the blocks beside the parameters.
fn blocks(session: &mut Session) -> usize {
    let executor = session.executor();
    Block::ALL[1..].iter().map(|&block| 4 * executor.block_len(block)).sum()
}

fn steps(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("step");
    group.sample_size(10).warm_up_time(Duration::from_secs(1)).measurement_time(Duration::from_secs(12));
    let rows = vec![(0..ROWS).collect::<Vec<_>>()];
    let capacity =
        Extents { tokens: ROWS * TOKENS, sequences: ROWS, targets: ROWS, samples: 0, longest: TOKENS };
    let step = Step { cursor: Cursor::default(), micro_batches: rows };
    let task = Task::by_name("mrpc").expect("a known task");
    let recipe = Recipe::default();
    for shape in [Shape::MiniLm, Shape::BertBase] {
        let model = || shape.model(1).expect("a model");
        let data = data(model().config().vocab);
        let mut session = Session::new(model(), Device::Cpu).expect("a session");
        let mut plain = Trainer::new(&mut session, &recipe, 0, 1 << 40, capacity).expect("a trainer");
        let name = shape.name();
        println!("{name}, fine-tuning: {:.2} GB of blocks", blocks(&mut session) as f64 / 1e9);
        group.bench_function(format!("{name}/fine-tuning"), |b| {
            b.iter(|| plain.run(&mut session, &data, &step).expect("finite"));
        });
        drop((plain, session));
        for (method, masking, label) in [
            (Method::Smp, Masking::Local, "smp, local"),
            (Method::Smp, Masking::Fractions { temperature: 1.0 }, "smp, fractions"),
            (Method::Movement, Masking::Local, "movement"),
        ] {
            let setting = Setting { keep: 0.1, task: "mrpc", distilled: false };
            let options = Options::new(method, Profile::Default, setting).expect("options");
            let options = Options { masking, head: Head::LabelWords, prune_steps: Some(1 << 20), ..options };
            let mut masked: Model = model();
            masked::prepare_model(&mut masked, &options);
            let mut session = Session::new(masked, Device::Cpu).expect("a session");
            let size = RunSize { total_steps: 1 << 40, epoch_steps: 1, capacity };
            let mut trainer =
                MaskedTrainer::new(&mut session, &recipe, &options, &task, None, 0, size).expect("a trainer");
            println!("{name}, {label}: {:.3} GB of blocks", blocks(&mut session) as f64 / 1e9);
            group.bench_function(format!("{name}/{label}"), |b| {
                b.iter(|| trainer.run(&mut session, &data, &step).expect("finite"));
            });
        }
    }
    group.finish();
}

criterion_group!(benches, steps);
criterion_main!(benches);
