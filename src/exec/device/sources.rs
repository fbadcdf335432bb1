//! Which sources a program launches from: compiled and loaded when it is prepared, all at once and in parallel, so that
//! no batch waits for a compiler. What no program launches from is not compiled.

use super::{DeviceExecutor, binding};
use crate::launch::{Device, ElementType, Queue, Step};
use crate::program::{Extents, Plan, Program};

/// Parts of the capacity that are looked at. Products have a kernel for each tile, and which is the fastest depends on the
/// size of the batch.
const PARTS: usize = 16;

impl<D: Device> DeviceExecutor<D> {
    /// Sources that `program` launches from, whatever the size of the batch, by their index in
    /// [`kernels::MODULES`](crate::launch::kernels::MODULES). The emulator compiles what it meets and is told of the
    /// largest batch only.
    pub(super) fn sources(&self, program: &Program, plan: &Plan, types: &[ElementType]) -> Vec<usize> {
        let mut queue = Queue::measuring(self.device.limits(), self.precision);
        let mut modules = Vec::new();
        let batches = if self.device.is_hardware() { batches(plan.capacity) } else { vec![plan.capacity] };
        for extents in batches {
            queue.clear();
            self.queue_all(&mut queue, program, plan, types, &extents);
            if let Some(element) = self.precision.factors() {
                binding::refresh_shadow(&mut queue, 1 << 40, 1 << 41, element, self.layout.block_len());
            }
            modules.extend(queue.steps().iter().filter_map(|step| match step {
                Step::Launch(launch) => Some(launch.kernel().module),
                Step::FillZero { .. } => None,
            }));
            modules.sort_unstable();
            modules.dedup();
        }
        modules
    }
}

/// Sizes of batches up to `capacity`: even parts of it, then halves of the smallest part down to one of everything.
fn batches(capacity: Extents) -> Vec<Extents> {
    let part = |numerator: usize, denominator: usize| {
        let of = |count: usize| (count * numerator).div_ceil(denominator);
        let tokens = of(capacity.tokens);
        Extents {
            tokens,
            sequences: of(capacity.sequences),
            targets: of(capacity.targets),
            samples: of(capacity.samples),
            longest: capacity.longest.min(tokens),
        }
    };
    let mut found: Vec<Extents> = (1..=PARTS).rev().map(|numerator| part(numerator, PARTS)).collect();
    let largest = [capacity.tokens, capacity.sequences, capacity.targets, capacity.samples].into_iter().max();
    let mut denominator = 2 * PARTS;
    while denominator < 2 * largest.unwrap_or(0) {
        found.push(part(1, denominator));
        denominator *= 2;
    }
    found
}
