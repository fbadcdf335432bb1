//! R2, the representative ranking: which neurons' output weights stand for the others.
//!
//! The rows x_i of W2 are the data and the basis of a Semi-NMF in a Gaussian kernel space (Eq. 6 to 8 of the
//! paper): C ← C ∘ √(K ⊘ (K·C)) from C = 1/N, and the score of neuron i is C_ii. Only weights are looked at.

use std::collections::HashMap;
use std::sync::Arc;

use super::options::{Options, Stop};
use crate::error::{Error, Result};
use crate::exec::{Executor, ProgramId};
use crate::program::{Builder, Extent, Extents, Mode, Op, ParameterLayout, SlotId};
use crate::progress::Progress;
use crate::session::Device;

/// R2 of one layer.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Representatives {
    /// C_ii of each neuron.
    pub diagonal: Vec<f64>,
    /// δ of each iteration; as many as were done.
    pub growth: Vec<f64>,
}

/// The operations for layers of one shape: the kernel and the first update, then further updates one by one.
struct Prepared {
    id: ProgramId,
    rows: SlotId,
    c: SlotId,
    growth: SlotId,
}

/// Ranks layers on one executor, whose arena they share. Memory: three N×N matrices in f32.
pub struct Ranker {
    executor: Box<dyn Executor>,
    layout: Arc<ParameterLayout>,
    prepared: HashMap<(usize, usize), Prepared>,
}

impl Ranker {
    /// A ranker on `device`, in f32 whatever the device's precision for models is.
    pub fn new(device: Device) -> Result<Ranker> {
        let layout = Arc::new(ParameterLayout::new());
        let executor = device.for_similarities().executor(layout.clone())?;
        Ok(Ranker { executor, layout, prepared: HashMap::new() })
    }

    /// Bytes that ranking a layer of `neurons` takes beside its weights.
    pub fn bytes(neurons: usize) -> usize {
        3 * 4 * neurons * neurons
    }

    fn prepare(&mut self, neurons: usize, hidden: usize, scale: f32) -> Result<()> {
        if self.prepared.contains_key(&(neurons, hidden)) {
            return Ok(());
        }
        let name = format!("representative ranking {neurons}×{hidden}");
        let mut builder = Builder::new(name, self.layout.clone(), Mode::EVALUATE);
        let rows = builder.input("rows", Extent::Fixed(neurons), hidden);
        let kernel = builder.temporary("kernel", Extent::Fixed(neurons), neurons);
        let c = builder.temporary("C", Extent::Fixed(neurons), neurons);
        let growth = builder.temporary("growth", Extent::Fixed(1), 1);
        // The kernel too outlives a run: updates are run again and again.
        [kernel, c, growth].into_iter().for_each(|slot| builder.keep(slot));
        builder.emit(Op::GaussianKernel { x: rows, scale, out: kernel });
        builder.emit(Op::SemiNmfStart { kernel, c, growth });
        builder.emit(Op::SemiNmfUpdate { kernel, c, growth });
        let id = self.executor.prepare(Arc::new(builder.finish()), Extents::default())?;
        self.prepared.insert((neurons, hidden), Prepared { id, rows, c, growth });
        Ok(())
    }

    /// R2 of the neurons whose output weights are `rows [neurons, hidden]`.
    pub fn rank(
        &mut self,
        rows: &[f32],
        hidden: usize,
        options: &Options,
        progress: &Progress,
    ) -> Result<Representatives> {
        let neurons = rows.len() / hidden.max(1);
        if neurons == 0 {
            return Ok(Representatives::default());
        }
        self.prepare(neurons, hidden, options.kernel.scale())?;
        let Prepared { id, rows: input, c, growth } = self.prepared[&(neurons, hidden)];
        let (executor, extents) = (self.executor.as_mut(), Extents::default());
        executor.write(id, input, rows)?;
        let mut ranking = Representatives::default();
        let mut values = Vec::new();
        loop {
            progress.check(|| "the representative ranking was not finished; nothing was written".into())?;
            let operations = if ranking.growth.is_empty() { 0..2 } else { 2..3 };
            executor.run_range(id, operations, &extents)?;
            executor.read(id, growth, &extents, &mut values)?;
            let delta = f64::from(values[0]);
            if !delta.is_finite() {
                let place = format!("at iteration {}", ranking.growth.len() + 1);
                return Err(Error::NotFinite {
                    what: "the growth of the ranking".into(),
                    value: delta,
                    place,
                });
            }
            ranking.growth.push(delta);
            if ended(options, ranking.growth.len(), delta) {
                break;
            }
        }
        executor.read(id, c, &extents, &mut values)?;
        ranking.diagonal = (0..neurons).map(|i| f64::from(values[i * (neurons + 1)])).collect();
        Ok(ranking)
    }
}

/// Whether iteration `done`, in which ΣC grew by `delta`, was the last.
pub fn ended(options: &Options, done: usize, delta: f64) -> bool {
    match options.stop {
        Stop::Fixed(iterations) => done >= iterations,
        _ if done >= options.max_iterations => true,
        _ if done < options.min_iterations => false,
        Stop::Abs => delta.abs() <= options.alpha,
        Stop::Signed => delta <= options.alpha,
    }
}
