//! What the device can do at all: the figures every other one is a share of.

use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::{Seconds, Settings, Shape};
use crate::error::Result;
use crate::launch::{Device, Grid, Pointer, Step, kernels};
use crate::progress::Progress;
use crate::session::Session;

/// Rates measured with the kernels of `kernels/ceiling.cu`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Ceilings {
    /// FLOPs a second of bf16 products (`mma.sync`, f32 sums).
    pub mma_bf16: f64,
    /// The same with f16 factors.
    pub mma_f16: f64,
    /// The same with tf32 factors.
    pub mma_tf32: f64,
    /// FLOPs a second of f32 multiply-adds.
    pub fma_f32: f64,
    /// Bytes a second of a large copy, read and written.
    pub copy: f64,
    /// Seconds a kernel that does nothing takes in a long row of them.
    pub launch: f64,
}

/// Threads of a block and accumulator tiles of a warp in `kernels/ceiling.cu`.
const THREADS: u32 = 256;
const ACCUMULATORS: u64 = 8;
/// Turns of the multiply loops: milliseconds on any card.
const TURNS: i32 = 4096;
/// Floats of the copied buffer: 512 MiB, beyond every cache.
const COPIED: usize = 128 << 20;
/// Empty kernels in a row.
const LAUNCHES: usize = 1000;

/// The name of the device that `settings` ask for, and its ceilings if it is a real one (the emulator has none worth
/// telling, the host runs no kernels).
pub(super) fn measure(settings: &Settings, progress: &Progress) -> Result<(String, Option<Ceilings>)> {
    let mut session = Session::new(Shape::Tiny.model(settings.seed)?, settings.device)?;
    let name = session.executor().name().to_owned();
    let Some(device) = session.executor().device() else {
        return Ok((name, None));
    };
    let name = device.name().to_owned();
    if !device.is_hardware() {
        return Ok((name, None));
    }
    let stage = progress.stage("ceilings", 0, "");
    let ceilings = of_device(device)?;
    stage.finish();
    Ok((name, Some(ceilings)))
}

fn of_device(device: &mut dyn Device) -> Result<Ceilings> {
    let blocks = device.limits().multiprocessors * 4;
    let sink = device.allocate(blocks as usize * THREADS as usize * 4, "sink")?;
    let grid = Grid { blocks: [blocks, 1, 1], threads: [THREADS, 1, 1], shared: 0 };
    let warps = u64::from(blocks) * u64::from(THREADS) / 32;
    let instructions = warps * TURNS as u64 * ACCUMULATORS;
    let sink_pointer = Pointer::new(sink);
    let mut rate = |launch, flops_each: u64| -> Result<f64> {
        let seconds = median(device, &[Step::Launch(launch)])?;
        Ok((instructions * flops_each) as f64 / seconds)
    };
    let mma_bf16 = rate(kernels::ceiling::mma_bf16(grid, sink_pointer, TURNS), 2 * 16 * 8 * 16)?;
    let mma_f16 = rate(kernels::ceiling::mma_f16(grid, sink_pointer, TURNS), 2 * 16 * 8 * 16)?;
    let mma_tf32 = rate(kernels::ceiling::mma_tf32(grid, sink_pointer, TURNS), 2 * 16 * 8 * 8)?;
    // Four multiply-adds a lane stand for one instruction of the loops above.
    let fma_f32 = rate(kernels::ceiling::fma_f32(grid, sink_pointer, TURNS), 2 * 4 * 32)?;

    let [from, to] = [device.allocate(COPIED * 4, "copied")?, device.allocate(COPIED * 4, "copy")?];
    device.fill(from, 0x3f, COPIED * 4)?;
    let wide = Grid { blocks: [blocks * 4, 1, 1], threads: [THREADS, 1, 1], shared: 0 };
    let copy = kernels::ceiling::copy(wide, Pointer::new(from), Pointer::new(to), COPIED as u64 / 4);
    let copy = (2 * 4 * COPIED) as f64 / median(device, &[Step::Launch(copy)])?;

    let one = Grid { blocks: [1, 1, 1], threads: [32, 1, 1], shared: 0 };
    let empty: Vec<Step> = (0..LAUNCHES).map(|_| Step::Launch(kernels::ceiling::nothing(one))).collect();
    let launch = median(device, &empty)? / LAUNCHES as f64;
    for address in [sink, from, to] {
        device.free(address)?;
    }
    Ok(Ceilings { mma_bf16, mma_f16, mma_tf32, fma_f32, copy, launch })
}

/// Median seconds of the steps, with the device idle before and after.
fn median(device: &mut dyn Device, steps: &[Step]) -> Result<f64> {
    let mut seconds = Vec::new();
    for run in 0..12 {
        device.synchronize()?;
        let start = Instant::now();
        device.run(steps)?;
        device.synchronize()?;
        if run >= 2 {
            seconds.push(start.elapsed().as_secs_f64());
        }
    }
    Ok(Seconds::of(seconds).median)
}
