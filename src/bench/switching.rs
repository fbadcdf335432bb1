//! How long a frozen model takes from one task's weight masks to another's.

use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::{Seconds, Settings, Shape};
use crate::data::random;
use crate::error::Result;
use crate::model::{Model, WeightMask, WeightMasks};
use crate::progress::Progress;
use crate::session::Session;

/// Switching one model between two tasks.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SwitchingTimes {
    /// Model.
    pub model: String,
    /// Weights under masks.
    pub weights: usize,
    /// Bytes of a task's bits.
    pub mask_bytes: usize,
    /// Seconds of a switch: bits in the host's memory to a model that can run.
    pub seconds: Seconds,
}

/// Masks that keep a random eighth of the layers' weights.
pub fn random_masks(model: &Model, seed: u64) -> Result<WeightMasks> {
    let architecture = &model.architecture;
    let mut stream = random::Stream::new(seed, random::Purpose::Bench, 2);
    let mut word = || (0..4).fold(0u64, |word, _| word << 16 | stream.below(1 << 16) as u64);
    let mut matrices = Vec::new();
    for matrix in architecture.layer_matrices() {
        let parameter = architecture.layout.get(matrix.id);
        let mut bits: Vec<u64> =
            (0..parameter.len().div_ceil(64)).map(|_| word() & word() & word()).collect();
        if let (Some(last), beyond @ 1..) = (bits.last_mut(), parameter.len() % 64) {
            *last &= (1 << beyond) - 1;
        }
        let name = architecture.mask_name(matrix.id);
        matrices.push(WeightMask::new(name, parameter.rows, parameter.cols, bits)?);
    }
    Ok(WeightMasks { matrices })
}

pub(super) fn measure(shape: Shape, settings: &Settings, progress: &Progress) -> Result<SwitchingTimes> {
    let model = shape.model(settings.seed)?;
    let stage = progress.stage(&format!("{} weight masks", shape.name()), 0, "");
    let tasks = [random_masks(&model, settings.seed)?, random_masks(&model, settings.seed ^ 1)?];
    let mut session = Session::frozen(model, settings.device)?;
    let mut seconds = Vec::new();
    // The first two prepare memory and, on a device, record launches.
    for run in 0..settings.repeats + 2 {
        let start = Instant::now();
        session.apply_weight_masks(&tasks[run % 2])?;
        session.executor().synchronize()?;
        if run >= 2 {
            seconds.push(start.elapsed().as_secs_f64());
        }
    }
    stage.finish();
    Ok(SwitchingTimes {
        model: shape.name().into(),
        weights: tasks[0].total(),
        mask_bytes: tasks[0].total().div_ceil(8),
        seconds: Seconds::of(seconds),
    })
}
