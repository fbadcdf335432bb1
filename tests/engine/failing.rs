//! A device that is lost or full in mid-run: training returns an error that says what failed, what was saved stays whole
//! and continues, and nothing panics.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;

use secateur::data::{Dataset, Task};
use secateur::exec::{Block, DeviceExecutor, Emulated, Executor};
use secateur::launch::{Device, DeviceLimits, Precision, Step};
use secateur::model::{EmitOptions, Head, Logits};
use secateur::program::{Extents, Mode};
use secateur::progress::Progress;
use secateur::session::Session;
use secateur::train::checkpoint::FILE_NAME;
use secateur::train::{Recipe, finetune};
use secateur::{Error, Result};

use crate::models;

/// A device with memory whose kernels do nothing: for what depends on no result.
#[derive(Default)]
struct Hollow {
    memory: BTreeMap<u64, Vec<u8>>,
    next: u64,
}

impl Hollow {
    fn at(&self, address: u64, bytes: usize) -> (u64, usize) {
        let (&start, memory) =
            self.memory.range(..=address).next_back().expect("an address that was given out");
        let first = (address - start) as usize;
        assert!(first + bytes <= memory.len(), "beyond an allocation");
        (start, first)
    }
}

impl Device for Hollow {
    fn name(&self) -> &str {
        "hollow"
    }
    fn limits(&self) -> DeviceLimits {
        DeviceLimits { multiprocessors: 4, shared_bytes: 160 << 10, capability: (8, 0) }
    }
    fn free_bytes(&self) -> Result<Option<usize>> {
        Ok(None)
    }
    fn load(&mut self, _: &[usize]) -> Result<()> {
        Ok(())
    }
    fn allocate(&mut self, bytes: usize, _: &str) -> Result<u64> {
        self.next += 1 << 32;
        self.memory.insert(self.next, vec![0; bytes]);
        Ok(self.next)
    }
    fn free(&mut self, address: u64) -> Result<()> {
        self.memory.remove(&address).expect("allocated");
        Ok(())
    }
    fn upload(&mut self, address: u64, data: &[u8]) -> Result<()> {
        if !data.is_empty() {
            let (start, first) = self.at(address, data.len());
            self.memory.get_mut(&start).expect("found above")[first..first + data.len()]
                .copy_from_slice(data);
        }
        Ok(())
    }
    fn download(&self, address: u64, data: &mut [u8]) -> Result<()> {
        if !data.is_empty() {
            let (start, first) = self.at(address, data.len());
            data.copy_from_slice(&self.memory[&start][first..first + data.len()]);
        }
        Ok(())
    }
    fn fill(&mut self, address: u64, value: u8, bytes: usize) -> Result<()> {
        if bytes > 0 {
            let (start, first) = self.at(address, bytes);
            self.memory.get_mut(&start).expect("found above")[first..first + bytes].fill(value);
        }
        Ok(())
    }
    fn run(&mut self, _: &[Step]) -> Result<()> {
        Ok(())
    }
    fn synchronize(&mut self) -> Result<()> {
        Ok(())
    }
}

/// When a device fails.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Fault {
    Never,
    /// At its n-th launch, copy, allocation or wait, and ever after.
    Lost(u64),
    /// At its n-th allocation.
    Full(u64),
}

/// A device that fails, and how much it was asked for.
struct Failing<D> {
    inner: D,
    fault: Fault,
    calls: Rc<Cell<u64>>,
    allocations: Rc<Cell<u64>>,
}

impl<D: Device> Failing<D> {
    fn call(&self, what: &str) -> Result<()> {
        self.calls.set(self.calls.get() + 1);
        match self.fault {
            Fault::Lost(n) if self.calls.get() >= n => {
                Err(Error::device(self.inner.name(), format!("{what}: the device was lost")))
            }
            _ => Ok(()),
        }
    }
}

impl<D: Device> Device for Failing<D> {
    fn name(&self) -> &str {
        self.inner.name()
    }
    fn limits(&self) -> DeviceLimits {
        self.inner.limits()
    }
    fn is_hardware(&self) -> bool {
        false
    }
    fn free_bytes(&self) -> Result<Option<usize>> {
        self.call("asking for free memory")?;
        self.inner.free_bytes()
    }
    fn load(&mut self, modules: &[usize]) -> Result<()> {
        self.call("loading")?;
        self.inner.load(modules)
    }
    fn allocate(&mut self, bytes: usize, label: &str) -> Result<u64> {
        self.call("allocating")?;
        self.allocations.set(self.allocations.get() + 1);
        if self.fault == Fault::Full(self.allocations.get()) {
            return Err(Error::device(
                self.inner.name(),
                format!("allocating {bytes} bytes for {label}: out of memory"),
            ));
        }
        self.inner.allocate(bytes, label)
    }
    fn free(&mut self, address: u64) -> Result<()> {
        self.call("freeing")?;
        self.inner.free(address)
    }
    fn upload(&mut self, address: u64, data: &[u8]) -> Result<()> {
        self.call("copying")?;
        self.inner.upload(address, data)
    }
    fn download(&self, address: u64, data: &mut [u8]) -> Result<()> {
        self.call("copying")?;
        self.inner.download(address, data)
    }
    fn fill(&mut self, address: u64, value: u8, bytes: usize) -> Result<()> {
        self.call("setting")?;
        self.inner.fill(address, value, bytes)
    }
    fn run(&mut self, steps: &[Step]) -> Result<()> {
        for step in steps {
            self.call("launching")?;
            self.inner.run(std::slice::from_ref(step))?;
        }
        Ok(())
    }
    fn synchronize(&mut self) -> Result<()> {
        self.call("waiting")?;
        self.inner.synchronize()
    }
}

/// What a run did: its history and parameters, or why it stopped; calls and allocations.
struct Outcome {
    result: Result<(finetune::History, Vec<f32>)>,
    calls: u64,
    allocations: u64,
}

/// A few steps of fine-tuning with an evaluation, a checkpoint after each step.
fn train<D: Device + 'static>(inner: D, fault: Fault, steps: u64, folder: &Path) -> Outcome {
    let head = Head::Classification { labels: 2 };
    let (calls, allocations) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(0)));
    let device = Failing { inner, fault, calls: calls.clone(), allocations: allocations.clone() };
    let run = || {
        let model = models::model("bert", head, 0.1);
        let executor = DeviceExecutor::new(device, "failing", model.layout().clone(), Precision::F32)?;
        let mut session = Session::on(model, Box::new(executor))?;
        let task = Task::by_name("mrpc")?;
        let examples = models::examples("bert", head, 8, 5);
        let data = Dataset { examples, ..Dataset::default() };
        let recipe = Recipe { learning_rate: 2e-3, batch_size: 4, epochs: 2, ..Recipe::default() };
        let options = finetune::Options {
            max_steps: Some(steps),
            checkpoints: Some(folder.to_path_buf()),
            checkpoint_seconds: 0.0,
            ..finetune::Options::default()
        };
        let progress = Progress::silent();
        let mut history =
            finetune::train(&mut session, &task, &data, Some(&data), &recipe, &options, &progress)?;
        history.seconds = 0.0;
        Ok((history, session.into_model()?.values))
    };
    let result = run();
    Outcome { result, calls: calls.get(), allocations: allocations.get() }
}

/// Names in `folder`.
fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).expect("lists");
    let mut names: Vec<String> =
        entries.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// The error of a run that a fault ended; nothing half-written is left beside the checkpoint.
fn stopped(outcome: Outcome, folder: &Path, fault: Fault) {
    let error = outcome.result.err().unwrap_or_else(|| panic!("{fault:?} went unnoticed"));
    assert!(matches!(&error, Error::Device { .. }), "{fault:?}: {error}");
    for name in names(folder) {
        assert!([FILE_NAME, "best_parameters.f32"].contains(&name.as_str()), "{fault:?} left {name}");
    }
}

#[test]
fn every_failure_of_a_device_is_an_error_and_the_checkpoint_stays() {
    let whole = tempfile::tempdir().expect("a folder");
    let healthy = train(Hollow::default(), Fault::Never, 2, whole.path());
    let expected = healthy.result.expect("trains");
    let lost = (1..=healthy.calls).map(Fault::Lost);
    let full = (1..=healthy.allocations).map(Fault::Full);
    let mut continued = 0;
    for (number, fault) in lost.chain(full).enumerate() {
        let folder = tempfile::tempdir().expect("a folder");
        stopped(train(Hollow::default(), fault, 2, folder.path()), folder.path(), fault);
        let saved = folder.path().join(FILE_NAME).exists();
        if saved && number % 5 == 0 {
            let again = train(Hollow::default(), Fault::Never, 2, folder.path()).result;
            assert!(again.expect("continues") == expected, "{fault:?}");
            continued += 1;
        }
    }
    assert!(continued > 0, "no run had a checkpoint to continue from");
}

/// With kernels that compute: what continues after the device was lost ends with the bits of a run that was not.
#[test]
fn training_continues_after_a_lost_device_to_the_same_bits() {
    let emulated = || Emulated::new(3).unwrap_or_else(|error| panic!("{error}"));
    let whole = tempfile::tempdir().expect("a folder");
    let healthy = train(emulated(), Fault::Never, 3, whole.path());
    let (history, parameters) = healthy.result.expect("trains");
    for part in [5, 8] {
        let (folder, fault) = (tempfile::tempdir().expect("a folder"), Fault::Lost(healthy.calls * part / 9));
        stopped(train(emulated(), fault, 3, folder.path()), folder.path(), fault);
        assert!(folder.path().join(FILE_NAME).exists(), "{fault:?}: no checkpoint yet");
        let (again, values) = train(emulated(), Fault::Never, 3, folder.path()).result.expect("continues");
        assert_eq!(again.epochs, history.epochs, "{fault:?}");
        assert!(values == parameters, "{fault:?}: other bits");
    }
}

/// Programs share an arena: where it could not be replaced by a larger one, none of them runs on.
#[test]
fn programs_whose_memory_was_given_up_do_not_run() {
    let head = Head::Classification { labels: 2 };
    let model = models::model("bert", head, 0.0);
    let options = EmitOptions { logits: Logits::All, ..EmitOptions::default() };
    let program = Arc::new(model.architecture.emit(Mode::EVALUATE, &options).expect("emits").program);
    let capacity = |tokens: usize| Extents { tokens, sequences: 4, targets: 4, samples: 0, longest: tokens };
    let attempt = |fault: Fault| {
        let (calls, allocations) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(0)));
        let device = Failing { inner: Hollow::default(), fault, calls, allocations: allocations.clone() };
        let mut executor = DeviceExecutor::new(device, "failing", model.layout().clone(), Precision::F32)?;
        executor.write_block(Block::Parameters, &model.values)?;
        let small = executor.prepare(program.clone(), capacity(8))?;
        executor.run(small, &capacity(8))?;
        let before = allocations.get();
        let large = executor.prepare(program.clone(), capacity(500)).map(|_| ());
        Ok::<_, Error>((before, large, executor.run(small, &capacity(8))))
    };
    let (before, large, run) = attempt(Fault::Never).expect("prepares");
    large.and(run).expect("a device with room");
    let (_, large, run) = attempt(Fault::Full(before + 1)).expect("prepares the small one");
    assert!(matches!(large, Err(Error::Device { .. })));
    let error = run.expect_err("its memory is gone");
    assert!(error.to_string().contains("has lost its memory"), "{error}");
}
