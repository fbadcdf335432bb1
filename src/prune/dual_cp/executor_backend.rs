//! The numeric steps of Dual-CP as programs on an executor: what runs on the CPU here runs on any device.

use std::collections::HashMap;
use std::sync::Arc;

use super::SimilarityBackend;
use crate::error::Result;
use crate::exec::{Executor, ProgramId};
use crate::ops::{View, ViewMut};
use crate::program::{Builder, Extent, Extents, Mode, Op, ParameterLayout, SlotId};

/// Which step a program is for.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Step {
    Cosine,
    Profile,
    Mapping { head_dim: usize },
    Magnitude { width: usize },
}

/// A prepared step for one shape.
#[derive(Clone, Copy, Debug)]
struct Prepared {
    id: ProgramId,
    x: SlotId,
    out: SlotId,
}

/// Runs the steps on `executor`, which holds no parameters. A program is prepared once for each shape, so layers of
/// equal width share it; all share the executor's arena.
pub struct ExecutorBackend<'a> {
    executor: &'a mut dyn Executor,
    layout: Arc<ParameterLayout>,
    programs: HashMap<(Step, usize, usize), Prepared>,
    dense: Vec<f32>,
}

impl<'a> ExecutorBackend<'a> {
    /// A backend on an executor made for the (empty) `layout`.
    pub fn new(executor: &'a mut dyn Executor, layout: Arc<ParameterLayout>) -> ExecutorBackend<'a> {
        ExecutorBackend { executor, layout, programs: HashMap::new(), dense: Vec::new() }
    }

    fn prepare(&mut self, step: Step, rows: usize, cols: usize) -> Result<Prepared> {
        if let Some(prepared) = self.programs.get(&(step, rows, cols)) {
            return Ok(*prepared);
        }
        let mut builder = Builder::new(format!("{step:?}"), self.layout.clone(), Mode::EVALUATE);
        let x = builder.input("x", Extent::Fixed(rows), cols);
        let (out_rows, out_cols) = match step {
            Step::Cosine | Step::Profile => (cols, cols),
            Step::Mapping { head_dim } => (cols / head_dim, cols / head_dim),
            Step::Magnitude { width } => (1, cols / width),
        };
        let out = builder.temporary("out", Extent::Fixed(out_rows), out_cols);
        builder.keep(out);
        builder.emit(match step {
            Step::Cosine => Op::AbsoluteCosine { x, out },
            Step::Profile => Op::ProfileDistance { cosine: x, out },
            Step::Mapping { head_dim } => Op::DimensionMapping { cosine: x, head_dim, out },
            Step::Magnitude { width } => Op::MeanAbsolute { x, group: width, out },
        });
        let id = self.executor.prepare(Arc::new(builder.finish()), Extents::default())?;
        let prepared = Prepared { id, x, out };
        self.programs.insert((step, rows, cols), prepared);
        Ok(prepared)
    }

    fn run(&mut self, step: Step, x: View<f32>, out: &mut ViewMut<f32>) -> Result<()> {
        let Prepared { id, x: input, out: output } = self.prepare(step, x.rows(), x.cols())?;
        self.dense.clear();
        for row in 0..x.rows() {
            self.dense.extend_from_slice(x.row(row));
        }
        let extents = Extents::default();
        self.executor.write(id, input, &self.dense)?;
        self.executor.run(id, &extents)?;
        self.executor.read(id, output, &extents, &mut self.dense)?;
        let cols = out.cols();
        for (row, values) in self.dense.chunks(cols.max(1)).enumerate() {
            out.row_mut(row).copy_from_slice(values);
        }
        Ok(())
    }
}

impl SimilarityBackend for ExecutorBackend<'_> {
    fn absolute_cosine(&mut self, x: View<f32>, out: &mut ViewMut<f32>) -> Result<()> {
        self.run(Step::Cosine, x, out)
    }
    fn profile_distance(&mut self, cosine: View<f32>, out: &mut ViewMut<f32>) -> Result<()> {
        self.run(Step::Profile, cosine, out)
    }
    fn dimension_mapping(
        &mut self,
        absolute_cosine: View<f32>,
        head_dim: usize,
        out: &mut ViewMut<f32>,
    ) -> Result<()> {
        self.run(Step::Mapping { head_dim }, absolute_cosine, out)
    }
    fn mean_absolute(&mut self, x: View<f32>, width: usize, out: &mut [f32]) -> Result<()> {
        let groups = out.len();
        self.run(Step::Magnitude { width }, x, &mut ViewMut::dense(out, 1, groups))
    }
}
