//! Forward passes and training steps of whole models with random weights, through the same session and trainer that the
//! commands use: feeding a batch, checks of its tokens and reading the loss are part of what is timed.
//!
//! Padded-equal work: all rows have the length they are padded to, so that both sides compute the same. Real lengths: rows
//! drawn from MRPC's training set, without padding here; with padding to 128, or to the longest of the batch, there.

use crate::contest::{Call, Entry, Peer, Workload};
use secateur::data::{Batch, Cursor, Dataset, Example, Step, Target, sampling};
use secateur::model::{EmitOptions, Head, Logits, Model, ModelConfig};
use secateur::program::{Extents, Mode};
use secateur::session::{Device, Session, Weighting};
use secateur::train::stepper::Stepper as _;
use secateur::train::{Recipe, Trainer};
use serde_json::{Value, json};
use std::path::Path;

/// Shape of a model.
#[derive(Clone, Copy)]
pub struct Shape {
    pub name: &'static str,
    pub layers: usize,
    pub hidden: usize,
    pub heads: usize,
    pub intermediate: usize,
    pub vocabulary: usize,
}

pub const BERT_BASE: Shape =
    Shape { name: "BERT-base", layers: 12, hidden: 768, heads: 12, intermediate: 3072, vocabulary: 30522 };
const MINILM: Shape =
    Shape { name: "MiniLM", layers: 6, hidden: 384, heads: 12, intermediate: 1536, vocabulary: 30522 };
const GPT2: Shape =
    Shape { name: "GPT-2", layers: 12, hidden: 768, heads: 12, intermediate: 3072, vocabulary: 50257 };

/// Tokens of the rows of MRPC's training set, in its order: BERT's uncased WordPiece, both sentences and three special tokens.
const MRPC_LENGTHS: &str = include_str!("mrpc_lengths.txt");

/// What a call does with each batch.
#[derive(Clone, Copy, PartialEq)]
enum Work {
    Forward,
    /// One optimiser step.
    Train,
}

impl Work {
    fn name(self) -> &'static str {
        match self {
            Work::Forward => "forward",
            Work::Train => "train",
        }
    }
}

pub fn entries() -> Vec<Entry> {
    use Work::{Forward, Train};
    vec![
        padded_equal(BERT_BASE, Forward, 8, [Some(1.0), Some(1.0)]),
        padded_equal(BERT_BASE, Train, 16, [Some(1.2), None]),
        padded_equal(MINILM, Forward, 32, [Some(1.2), None]),
        padded_equal(MINILM, Train, 32, [Some(1.5), None]),
        real_lengths(MINILM, Forward, 4),
        real_lengths(MINILM, Train, 4),
        real_lengths(BERT_BASE, Forward, 1),
        real_lengths(BERT_BASE, Train, 1),
        language_model(Forward, 1.1),
        language_model(Train, 1.5),
    ]
}

/// `rows` rows of 128 tokens; `asked`: of the ratio to PyTorch, and to ONNX Runtime.
fn padded_equal(shape: Shape, work: Work, rows: usize, asked: [Option<f64>; 2]) -> Entry {
    let name = format!("{} {} {rows}x128", shape.name, work.name());
    let build = move |name: String| {
        let lengths = vec![vec![128; rows]];
        let peer = |name, what, attention, asked| Peer {
            name,
            command: bert_command(shape, what, attention, "128", &lengths),
            asked,
        };
        let mut peers = vec![
            peer("PyTorch eager", work.name(), "eager", asked[0]),
            peer("PyTorch SDPA", work.name(), "sdpa", asked[0]),
        ];
        if work == Work::Forward {
            peers.push(peer("ONNX Runtime", "onnx", "eager", asked[1]));
        }
        classifier(name, shape, work, &lengths, peers)
    };
    Entry { name: name.clone(), build: Box::new(move || build(name)) }
}

/// `batches` batches of 16 rows of MRPC's lengths; PyTorch with its default attention.
fn real_lengths(shape: Shape, work: Work, batches: usize) -> Entry {
    let name = format!("{} {} MRPC {batches}x16", shape.name, work.name());
    let build = move |name: String| {
        let all = mrpc_lengths();
        let rows = sampling::choose_rows(all.len(), 16 * batches, 0);
        let lengths: Vec<usize> = rows.iter().map(|&row| all[row]).collect();
        let lengths: Vec<Vec<usize>> = lengths.chunks(16).map(<[usize]>::to_vec).collect();
        let peer = |name, padding, asked| Peer {
            name,
            command: bert_command(shape, work.name(), "sdpa", padding, &lengths),
            asked: Some(asked),
        };
        let peers =
            vec![peer("PyTorch, padded to 128", "128", 2.0), peer("PyTorch, dynamic", "longest", 1.1)];
        classifier(name, shape, work, &lengths, peers)
    };
    Entry { name: name.clone(), build: Box::new(move || build(name)) }
}

/// GPT-2 small: logits of all positions, or a step of predicting every next token.
fn language_model(work: Work, asked: f64) -> Entry {
    const ROWS: usize = 2;
    const LENGTH: usize = 512;
    let Shape { layers, hidden, heads, vocabulary, .. } = GPT2;
    let name = format!("{} {} {ROWS}x{LENGTH}", GPT2.name, work.name());
    let build = move |name: String| {
        let config = json!({
            "model_type": "gpt2", "n_layer": layers, "n_embd": hidden, "n_head": heads, "vocab_size": vocabulary,
            "n_positions": 1024,
        });
        let target = if work == Work::Train { Target::NextToken } else { Target::None };
        let examples = examples(&[vec![LENGTH; ROWS]], vocabulary, |_| target.clone());
        let model = Model::from_config(parse(config), Head::CausalLm, 0).expect("a valid model");
        let peer = |name, attention| Peer {
            name,
            command: format!(
                "gpt2 {} {attention} {layers} {hidden} {heads} {vocabulary} {ROWS} {LENGTH}",
                work.name()
            ),
            asked: Some(asked),
        };
        let peers = vec![peer("PyTorch eager", "eager"), peer("PyTorch SDPA", "sdpa")];
        workload(name, model, work, examples, peers)
    };
    Entry { name: name.clone(), build: Box::new(move || build(name)) }
}

/// Lengths of MRPC's training rows.
pub fn mrpc_lengths() -> Vec<usize> {
    MRPC_LENGTHS.split_whitespace().map(|word| word.parse().expect("a length")).collect()
}

/// A classifier or backbone with fresh weights.
pub fn bert(shape: Shape, head: Head) -> Model {
    let config = json!({
        "model_type": "bert", "num_hidden_layers": shape.layers, "hidden_size": shape.hidden,
        "num_attention_heads": shape.heads, "intermediate_size": shape.intermediate, "vocab_size": shape.vocabulary,
        "max_position_embeddings": 512, "type_vocab_size": 2, "num_labels": 2,
    });
    Model::from_config(parse(config), head, 0).expect("a valid model")
}

fn parse(config: Value) -> ModelConfig {
    let Value::Object(fields) = config else { unreachable!("written above as an object") };
    ModelConfig::from_json(fields, Path::new("config of the bench")).expect("a valid configuration")
}

fn bert_command(shape: Shape, what: &str, attention: &str, padding: &str, lengths: &[Vec<usize>]) -> String {
    let Shape { layers, hidden, heads, intermediate, vocabulary, .. } = shape;
    let row = |rows: &Vec<usize>| rows.iter().map(usize::to_string).collect::<Vec<_>>().join(",");
    let lengths = lengths.iter().map(row).collect::<Vec<_>>().join(";");
    format!(
        "bert {what} {attention} {layers} {hidden} {heads} {intermediate} {vocabulary} {padding} {lengths}"
    )
}

fn classifier(name: String, shape: Shape, work: Work, lengths: &[Vec<usize>], peers: Vec<Peer>) -> Workload {
    let model = bert(shape, Head::Classification { labels: 2 });
    workload(
        name,
        model,
        work,
        examples(lengths, shape.vocabulary, |row| Target::Class(row as u32 % 2)),
        peers,
    )
}

/// Rows of random tokens, batch by batch.
pub fn examples(
    lengths: &[Vec<usize>],
    vocabulary: usize,
    target: impl Fn(usize) -> Target,
) -> Vec<Vec<Example>> {
    let mut state = 1u64;
    let mut token = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        1 + ((state >> 33) as usize % (vocabulary - 1)) as i32
    };
    let mut example = |row: usize, length: usize| Example {
        input_ids: (0..length).map(|_| token()).collect(),
        token_type_ids: vec![0; length],
        target: target(row),
    };
    let batch = |rows: &Vec<usize>| rows.iter().enumerate().map(|(row, &n)| example(row, n)).collect();
    lengths.iter().map(batch).collect()
}

fn workload(
    name: String,
    model: Model,
    work: Work,
    batches: Vec<Vec<Example>>,
    peers: Vec<Peer>,
) -> Workload {
    let length = |rows: &[Example]| rows.iter().map(Example::length).sum::<usize>();
    let capacity = Extents {
        tokens: batches.iter().map(|rows| length(rows)).max().unwrap_or(0),
        sequences: batches.iter().map(Vec::len).max().unwrap_or(0),
        targets: batches.iter().map(|rows| length(rows)).max().unwrap_or(0),
        samples: 0,
        longest: batches.iter().flatten().map(Example::length).max().unwrap_or(0),
    };
    let tokens: usize = batches.iter().map(|rows| length(rows)).sum();
    let session = Session::new(model, Device::Cpu).expect("the parameters fit their block");
    let call = match work {
        Work::Forward => forward(session, batches, capacity),
        Work::Train => train(session, batches, capacity),
    };
    Workload { name, work: tokens as f64, unit: "tokens", ours: vec![("secateur", call)], peers }
}

/// Logits of every batch; a classifier's are read, a language model's stay in the executor's memory, as PyTorch's do in a
/// tensor.
fn forward(mut session: Session, batches: Vec<Vec<Example>>, capacity: Extents) -> Call {
    let options = EmitOptions { logits: Logits::All, ..EmitOptions::default() };
    let program = session.prepare(Mode::EVALUATE, &options, capacity).expect("the model has a head");
    let logits = program.slots.logits.expect("asked for");
    let small = session.model().architecture.head != Head::CausalLm;
    let (mut batch, mut values) = (Batch::default(), Vec::new());
    Box::new(move || {
        for rows in &batches {
            batch.refill(rows.iter().enumerate()).expect("rows of one kind");
            let extents = session.feed(&program, &batch, Weighting::EachRow).expect("valid tokens");
            session.run(&program, &extents).expect("within the capacity");
            if small {
                session.read(&program, logits, &extents, &mut values).expect("host memory");
            }
        }
    })
}

/// One optimiser step for each batch, as in fine-tuning.
fn train(mut session: Session, batches: Vec<Vec<Example>>, capacity: Extents) -> Call {
    let ends: Vec<usize> = batches
        .iter()
        .scan(0, |end, rows| {
            *end += rows.len();
            Some(*end)
        })
        .collect();
    let steps: Vec<Step> = batches
        .iter()
        .zip(&ends)
        .map(|(rows, &end)| Step {
            cursor: Cursor::default(),
            micro_batches: vec![(end - rows.len()..end).collect()],
        })
        .collect();
    let data = Dataset { examples: batches.into_iter().flatten().collect(), ..Dataset::default() };
    let mut trainer =
        Trainer::new(&mut session, &Recipe::default(), 0, u64::MAX, capacity).expect("a valid recipe");
    Box::new(move || {
        for step in &steps {
            trainer.run(&mut session, &data, step).expect("finite losses");
        }
    })
}
