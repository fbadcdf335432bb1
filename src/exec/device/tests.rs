//! What needs no kernel to run: memory that is counted before it is taken, and types that follow the activations.

use std::collections::{BTreeSet, HashMap};
use std::path::Path;
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};

use super::types::assign;
use super::*;
use crate::data::random::{Purpose, Stream};
use crate::launch::kernels::MODULES;
use crate::launch::{DeviceLimits, Step};
use crate::model::{Architecture, EmitOptions, Head, Logits, Model, ModelConfig};
use crate::program::{self, Mode, Storage};

/// A device that only counts its memory, and notes the sources that it is told to load.
struct Counting {
    limits: DeviceLimits,
    loaded: Arc<Mutex<BTreeSet<usize>>>,
    capacity: usize,
    held: HashMap<u64, usize>,
    next: u64,
}

impl Counting {
    fn new(capacity: usize) -> Counting {
        let limits = DeviceLimits { multiprocessors: 8, shared_bytes: 160 << 10, capability: (8, 0) };
        Counting { limits, loaded: Arc::default(), capacity, held: HashMap::new(), next: 256 }
    }
}

impl Device for Counting {
    fn name(&self) -> &str {
        "counting"
    }
    fn limits(&self) -> DeviceLimits {
        self.limits
    }
    fn free_bytes(&self) -> Result<Option<usize>> {
        Ok(Some(self.capacity - self.held.values().sum::<usize>()))
    }
    fn load(&mut self, modules: &[usize]) -> Result<()> {
        self.loaded.lock().unwrap().extend(modules);
        Ok(())
    }
    fn allocate(&mut self, bytes: usize, _: &str) -> Result<u64> {
        assert!(
            bytes <= self.capacity - self.held.values().sum::<usize>(),
            "taken without having been checked"
        );
        self.held.insert(self.next, bytes);
        self.next += bytes.next_multiple_of(256) as u64;
        Ok(self.next - bytes.next_multiple_of(256) as u64)
    }
    fn free(&mut self, address: u64) -> Result<()> {
        assert!(self.held.remove(&address).is_some());
        Ok(())
    }
    fn upload(&mut self, _: u64, _: &[u8]) -> Result<()> {
        Ok(())
    }
    fn download(&self, _: u64, _: &mut [u8]) -> Result<()> {
        Ok(())
    }
    fn fill(&mut self, _: u64, _: u8, _: usize) -> Result<()> {
        Ok(())
    }
    fn run(&mut self, steps: &[Step]) -> Result<()> {
        let loaded = self.loaded.lock().unwrap();
        for step in steps {
            if let Step::Launch(launch) = step {
                let kernel = launch.kernel();
                assert!(loaded.contains(&kernel.module), "{} would be compiled in mid-run", kernel.name);
            }
        }
        Ok(())
    }
    fn synchronize(&mut self) -> Result<()> {
        Ok(())
    }
}

fn model(kind: &str, head: Head) -> Model {
    let fields = match kind {
        "bert" => json!({"model_type": "bert", "vocab_size": 500, "hidden_size": 64, "num_hidden_layers": 2,
            "num_attention_heads": 2, "intermediate_size": 128, "max_position_embeddings": 512}),
        _ => json!({"model_type": "gpt2", "vocab_size": 500, "n_embd": 64, "n_layer": 2, "n_head": 2,
            "n_positions": 512}),
    };
    let Value::Object(fields) = fields else { unreachable!("a JSON object") };
    let config = ModelConfig::from_json(fields, Path::new("test")).unwrap();
    Model::from_config(config, head, 1).unwrap()
}

fn training(model: &Model, logits: Logits) -> Arc<Program> {
    let options = EmitOptions { loss: true, logits, ..EmitOptions::default() };
    Arc::new(model.architecture.emit(Mode::TRAIN, &options).unwrap().program)
}

fn capacity(tokens: usize) -> Extents {
    Extents { tokens, sequences: tokens.min(64), targets: tokens, samples: 0, longest: tokens.min(128) }
}

#[test]
fn a_program_that_does_not_fit_names_the_budget_that_does() {
    let model = model("bert", Head::Classification { labels: 2 });
    let program = training(&model, Logits::All);
    for precision in [Precision::F32, Precision::Bf16] {
        let executor = || {
            DeviceExecutor::new(Counting::new(24 << 20), "counting", model.layout().clone(), precision)
                .unwrap()
        };
        let error = executor().prepare(program.clone(), capacity(100_000)).expect_err("too large");
        let Error::OutOfMemory { needed, free, fitting: Some(tokens), .. } = error else { panic!("{error}") };
        assert!(needed > free);
        executor().prepare(program.clone(), capacity(tokens)).expect("what was named fits");
        executor().prepare(program.clone(), capacity(tokens + 64)).expect_err("and is about the largest");
    }
    let outcome =
        DeviceExecutor::new(Counting::new(1 << 10), "counting", model.layout().clone(), Precision::F32);
    assert!(matches!(outcome, Err(Error::OutOfMemory { fitting: None, .. })));
}

#[test]
fn heads_wider_than_the_kernels_are_refused() {
    let Value::Object(fields) = json!({"model_type": "gpt2", "vocab_size": 50, "n_embd": 256, "n_layer": 1, "n_head": 1,
        "n_positions": 64})
    else {
        unreachable!("a JSON object")
    };
    let config = ModelConfig::from_json(fields, Path::new("test")).unwrap();
    let model = Model::from_config(config, Head::CausalLm, 1).unwrap();
    let device = Counting::new(1 << 30);
    let layout = model.layout().clone();
    let mut executor = DeviceExecutor::new(device, "counting", layout, Precision::F32).unwrap();
    let error = executor.prepare(training(&model, Logits::None), capacity(64)).expect_err("too wide");
    assert!(error.to_string().contains("heads of 256 elements"), "{error}");
}

#[test]
fn activations_are_bf16_and_what_must_be_exact_is_f32() {
    for (kind, head, logits) in
        [("bert", Head::Classification { labels: 2 }, Logits::All), ("gpt2", Head::CausalLm, Logits::None)]
    {
        let program = training(&model(kind, head), logits);
        let types = assign(&program, Precision::Bf16);
        let of = |name: &str| types[program.find(name).unwrap_or_else(|| panic!("no slot {name}")).index()];
        let (mut narrow, mut wide) = (0, 0);
        for (id, slot) in program.slots() {
            let element = types[id.index()];
            assert_eq!(element, types[program.root(id).index()]);
            match (slot.storage, slot.rows) {
                (Storage::Temporary, program::Extent::Tokens) if slot.cols >= 64 => match element {
                    ElementType::Bf16 => narrow += 1,
                    ElementType::F32 => wide += 1,
                },
                (Storage::Temporary | Storage::Output | Storage::Alias { .. }, _) => {}
                _ => assert_eq!(element, ElementType::F32, "{}", slot.name),
            }
        }
        assert!(narrow > 20 && wide == 0, "{kind}: {narrow} activations in bf16, {wide} in f32");
        assert_eq!(of("losses"), ElementType::F32);
        for precision in [Precision::Tf32, Precision::F16] {
            assert!(assign(&program, precision).iter().all(|&t| t == ElementType::F32));
        }
    }
}

#[test]
fn f16_computes_no_gradients() {
    let model = model("bert", Head::Classification { labels: 2 });
    let device = Counting::new(1 << 30);
    let mut executor =
        DeviceExecutor::new(device, "counting", model.layout().clone(), Precision::F16).unwrap();
    let error = executor.prepare(training(&model, Logits::All), capacity(64)).expect_err("refused");
    assert!(matches!(&error, Error::Usage(text) if text.contains("would underflow in f16")), "{error}");
    let options = EmitOptions { logits: Logits::All, ..EmitOptions::default() };
    let forward = model.architecture.emit(Mode::EVALUATE, &options).unwrap().program;
    executor.prepare(Arc::new(forward), capacity(64)).expect("a forward pass");
}

/// BERT-base without its weights.
fn bert_base() -> Architecture {
    let Value::Object(fields) = json!({"model_type": "bert", "vocab_size": 30_522, "hidden_size": 768,
        "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072, "max_position_embeddings": 512})
    else {
        unreachable!("a JSON object")
    };
    let config = ModelConfig::from_json(fields, Path::new("test")).unwrap();
    Architecture::new(config, Head::Classification { labels: 2 }).unwrap()
}

/// Sources that a program of BERT-base is compiled from on an H100, by batches of up to 4,096 tokens; and the executor.
fn sources(mode: Mode, precision: Precision) -> (Vec<&'static str>, DeviceExecutor<Counting>) {
    let architecture = bert_base();
    let mut device = Counting::new(64 << 30);
    device.limits = DeviceLimits { multiprocessors: 132, shared_bytes: 227 << 10, capability: (9, 0) };
    let loaded = device.loaded.clone();
    let mut executor =
        DeviceExecutor::new(device, "counting", architecture.layout.clone(), precision).unwrap();
    let options = EmitOptions { loss: mode.differentiates(), logits: Logits::All, ..EmitOptions::default() };
    let program = Arc::new(architecture.emit(mode, &options).unwrap().program);
    let capacity = Extents { tokens: 4096, sequences: 256, targets: 256, samples: 0, longest: 512 };
    executor.prepare(program, capacity).unwrap();
    let files = loaded.lock().unwrap().iter().map(|&module| MODULES[module].file).collect();
    (files, executor)
}

#[test]
fn only_what_a_program_launches_from_is_compiled() {
    let forward = [
        "attention_bf16_64.cu",
        "convert.cu",
        "embed.cu",
        "gather.cu",
        "gemm_bf16_128x128.cu",
        "gemm_bf16_128x192.cu",
        "gemm_bf16_128x256.cu",
        "gemm_bf16_64x64.cu",
        "gemm_finish.cu",
        "norm.cu",
    ];
    let (found, _) = sources(Mode::EVALUATE, Precision::Bf16);
    assert_eq!(found, forward);
    let (found, _) = sources(Mode::TRAIN, Precision::Bf16);
    let more: Vec<_> = found.into_iter().filter(|file| !forward.contains(file)).collect();
    let backward =
        ["activation.cu", "attention.cu", "column_sums.cu", "dropout.cu", "loss.cu", "norm_backward_bf16.cu"];
    assert_eq!(more, backward);
}

#[test]
fn no_batch_waits_for_a_compiler() {
    for precision in [Precision::Bf16, Precision::F16, Precision::Tf32, Precision::F32] {
        let mode = if precision.differentiates() { Mode::TRAIN } else { Mode::EVALUATE };
        let (_, mut executor) = sources(mode, precision);
        let mut random = Stream::new(7, Purpose::Bench, 0);
        for turn in 0..60 {
            let tokens = 1 + random.below(if turn % 3 == 0 { 64 } else { 4096 });
            let sequences = 1 + random.below(tokens.min(256));
            let longest = tokens.div_ceil(sequences).min(512);
            let extents = Extents { tokens, sequences, targets: sequences, samples: 0, longest };
            // The device asserts that every source it launches from was loaded.
            executor.run(ProgramId(0), &extents).unwrap();
        }
    }
}
