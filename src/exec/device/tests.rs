//! What needs no kernel to run: memory that is counted before it is taken, and types that follow the activations.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use serde_json::{Value, json};

use super::types::assign;
use super::*;
use crate::launch::DeviceLimits;
use crate::model::{EmitOptions, Head, Logits, Model, ModelConfig};
use crate::program::{self, Mode};

/// A device that only counts its memory.
struct Counting {
    capacity: usize,
    held: HashMap<u64, usize>,
    next: u64,
}

impl Counting {
    fn new(capacity: usize) -> Counting {
        Counting { capacity, held: HashMap::new(), next: 256 }
    }
}

impl Device for Counting {
    fn name(&self) -> &str {
        "counting"
    }
    fn limits(&self) -> DeviceLimits {
        DeviceLimits { multiprocessors: 8, shared_bytes: 160 << 10, capability: (8, 0) }
    }
    fn free_bytes(&self) -> Result<Option<usize>> {
        Ok(Some(self.capacity - self.held.values().sum::<usize>()))
    }
    fn load(&mut self, _: &[usize]) -> Result<()> {
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
    fn run(&mut self, _: &[Step]) -> Result<()> {
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
        assert!(assign(&program, Precision::Tf32).iter().all(|&t| t == ElementType::F32));
    }
}
