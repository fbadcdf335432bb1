//! Which tile, and into how many parts k is cut: a small model of the time that a product takes.
//!
//! Times are cycles of a multiprocessor. A block needs the larger of what its multiply-adds and its reads of shared memory
//! take; a multiprocessor needs the sum over its blocks; the product needs what the multiprocessor with most blocks
//! needs. So the model sees what decides at BERT's shapes: how evenly the tiles fill the device. Its constants are fitted
//! to times of every tile on an H100, where it picks the fastest tile, or one within 5 % of it, at BERT-base's products.

use crate::launch::{DeviceLimits, FactorType, Precision};

/// A kernel that computes one tile of C a block.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Tile {
    /// Rows of C.
    pub rows: usize,
    /// Columns of C.
    pub columns: usize,
    /// Rows and columns of a warp's part.
    warp: (usize, usize),
    /// Slices of k in shared memory at a time.
    stages: usize,
    /// Bytes of k in a slice.
    slice: usize,
    /// Blocks for which a multiprocessor has registers; see [`Tile::resident`].
    resident: usize,
}

/// How a product is cut.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Choice {
    /// Index into [`tiles`].
    pub tile: usize,
    /// Parts of k, at least 1.
    pub splits: usize,
}

/// Most slices that a list of live ones holds: its entries are 16-bit and it shares the block's memory.
const MOST_LISTED: usize = 1023;
/// Most parts of k.
const MOST_SPLITS: usize = 32;
/// Fewest k in a part: below, the filling of the pipeline is most of the time.
const LEAST_DEPTH: usize = 256;
/// Bytes of partial sums that a product may use for each multiprocessor.
const PARTIAL_BYTES: usize = 256 << 10;

/// A tile for tensor cores.
const fn tile(rows: usize, columns: usize, warp: (usize, usize), stages: usize, resident: usize) -> Tile {
    Tile { rows, columns, warp, stages, slice: 128, resident }
}

/// The tiles that `kernels/gemm_*.cu` have for a precision, in the order of the launch tables.
pub const fn tiles(precision: Precision) -> &'static [Tile] {
    match precision {
        Precision::Bf16 | Precision::F16 => {
            const {
                &[
                    tile(128, 256, (64, 64), 4, 1),
                    tile(128, 192, (64, 48), 4, 1),
                    tile(128, 128, (64, 64), 3, 2),
                    tile(64, 64, (32, 32), 3, 4),
                ]
            }
        }
        Precision::Tf32 => {
            const {
                &[
                    tile(128, 192, (64, 48), 4, 1),
                    tile(128, 128, (64, 64), 3, 2),
                    tile(64, 64, (32, 32), 3, 4),
                ]
            }
        }
        Precision::F32 => const { &[Tile { slice: 64, ..tile(64, 128, (32, 64), 3, 3) }] },
    }
}

impl Tile {
    /// Warps of a block.
    fn warps(&self) -> usize {
        self.rows / self.warp.0 * (self.columns / self.warp.1)
    }

    /// Threads of a block.
    pub fn threads(&self) -> u32 {
        self.warps() as u32 * 32
    }

    /// Bytes of shared memory that the stages take.
    pub fn stage_bytes(&self) -> usize {
        self.stages * (self.rows + self.columns) * self.slice
    }

    /// Whether a block has the shared memory for the stages and a list of live slices.
    pub fn fits(&self, limits: DeviceLimits) -> bool {
        self.stage_bytes() + 2 * (MOST_LISTED + 1) <= limits.shared_bytes as usize
    }

    /// Blocks that a multiprocessor holds at a time. It has 1 KiB more than a block may use, and takes 1 KiB of each.
    fn resident(&self, limits: DeviceLimits) -> usize {
        let bytes = |used: usize| used + (1 << 10);
        (bytes(limits.shared_bytes as usize) / bytes(self.stage_bytes())).clamp(1, self.resident)
    }

    /// Tiles of an m×n matrix.
    pub fn count(&self, m: usize, n: usize) -> usize {
        m.div_ceil(self.rows) * n.div_ceil(self.columns)
    }

    /// Cycles for one k: the most of what its multiply-adds, their reads of shared memory and the tile's reads of L2 take.
    fn cycles(&self, limits: DeviceLimits, precision: Precision) -> f64 {
        /// Bytes a cycle: the share of 128 that is left beside the products.
        const SHARED_RATE: f64 = 96.0;
        let products = (self.rows * self.columns) as f64 / rate(limits, precision);
        let (element, reads) = match precision {
            Precision::Bf16 | Precision::F16 => (2, self.warps() * (self.warp.0 + self.warp.1)),
            Precision::Tf32 => (4, self.warps() * (self.warp.0 + self.warp.1)),
            // A warp's lanes share what they read.
            Precision::F32 => (4, 0),
        };
        let bytes = element * (reads + self.rows + self.columns);
        let from_l2 = (element * (self.rows + self.columns)) as f64 / l2_rate(limits);
        products.max(bytes as f64 / SHARED_RATE).max(from_l2)
    }
}

/// Multiply-adds a cycle of a multiprocessor with the instructions that the kernels use (`mma.sync`, f32 sums). GeForce
/// cards have half the rate of their f16 sums. An H100 reaches 1250, which is 0.62 of its asynchronous instructions' rate;
/// of that the main loops keep 1000.
fn rate(limits: DeviceLimits, precision: Precision) -> f64 {
    let bf16 = match limits.capability {
        (8, 0) => 1024.0,
        (9 | 10, _) => 1000.0,
        _ => 256.0,
    };
    match precision {
        Precision::Bf16 | Precision::F16 => bf16,
        Precision::Tf32 => bf16 / 2.0,
        Precision::F32 => match limits.capability {
            (8, 0) => 64.0,
            _ => 128.0,
        },
    }
}

/// Bytes of L2 that a multiprocessor reads in a cycle: what leaves the main loops of an H100 unhampered, and for GeForce
/// cards a cautious guess that makes large tiles pay; nothing was measured on those.
fn l2_rate(limits: DeviceLimits) -> f64 {
    match limits.capability {
        (8..=10, 0) => 32.0,
        _ => 12.0,
    }
}

/// Slices of `k`, the same for all tiles of a precision.
pub fn slices(precision: Precision, k: usize) -> usize {
    let element = precision.factors().map_or(4, FactorType::bytes);
    k.div_ceil(tiles(precision)[0].slice / element)
}

/// Whether the kernels can list the live slices of so long a k.
pub fn can_list(precision: Precision, k: usize) -> bool {
    slices(precision, k) <= MOST_LISTED
}

/// Elements of f32 that the parts of a product may take: more for a larger product, so that scratch memory measured for
/// the largest batch does for every batch.
pub fn partial_capacity(limits: DeviceLimits, m: usize, n: usize, k: usize) -> usize {
    let most = (k / LEAST_DEPTH).min(MOST_SPLITS);
    if most < 2 {
        return 0;
    }
    let whole = most * m * n.next_multiple_of(4);
    whole.min(limits.multiprocessors as usize * PARTIAL_BYTES / size_of::<f32>())
}

/// The fastest way to compute an m×n product over `k`, by the model. m, n > 0.
pub fn choose(limits: DeviceLimits, precision: Precision, m: usize, n: usize, k: usize) -> Choice {
    /// Cycles in which a block fills its pipeline and empties its registers.
    const BLOCK: f64 = 2500.0;
    /// Cycles of another launch.
    const LAUNCH: f64 = 3000.0;
    /// Bytes of scratch memory (which stays in L2) that a multiprocessor moves in a cycle.
    const SCRATCH_RATE: f64 = 24.0;
    /// Cycles that a slice waits if a scheduler has but one warp, which hides nothing.
    const WAIT: f64 = 500.0;
    let multiprocessors = limits.multiprocessors.max(1) as usize;
    let capacity = partial_capacity(limits, m, n, k);
    let elements = m * n.next_multiple_of(4);
    let mut best = Choice { tile: tiles(precision).len() - 1, splits: 1 };
    let mut least = f64::INFINITY;
    for (index, tile) in tiles(precision).iter().enumerate() {
        if !tile.fits(limits) {
            continue;
        }
        for splits in 1..=(k / LEAST_DEPTH).clamp(1, MOST_SPLITS) {
            if splits > 1 && splits * elements > capacity {
                break;
            }
            let blocks = tile.count(m, n) * splits;
            let rounds = blocks.div_ceil(multiprocessors);
            let resident = rounds.min(tile.resident(limits));
            // Two blocks overlap start and end.
            let overlap = if resident > 1 { 0.6 } else { 1.0 };
            let depth = k.div_ceil(splits);
            let waits =
                if tile.warps() * resident < 8 { slices(precision, depth) as f64 * WAIT } else { 0.0 };
            let mut cycles =
                rounds as f64 * (depth as f64 * tile.cycles(limits, precision) + waits + overlap * BLOCK);
            if splits > 1 {
                let bytes = (2 * splits * elements * size_of::<f32>()) as f64;
                cycles += LAUNCH + bytes / (SCRATCH_RATE * multiprocessors as f64);
            }
            if cycles < least {
                (best, least) = (Choice { tile: index, splits }, cycles);
            }
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    const H100: DeviceLimits =
        DeviceLimits { multiprocessors: 132, shared_bytes: 227 << 10, capability: (9, 0) };
    const RTX: DeviceLimits =
        DeviceLimits { multiprocessors: 128, shared_bytes: 99 << 10, capability: (8, 9) };

    /// Share of the multiprocessors' turns that have a block.
    fn filled(limits: DeviceLimits, choice: Choice, m: usize, n: usize) -> f64 {
        let blocks = tiles(Precision::Bf16)[choice.tile].count(m, n) * choice.splits;
        blocks as f64 / (blocks.next_multiple_of(limits.multiprocessors as usize)) as f64
    }

    /// What the choice is for: one tile of 128×128 and a whole k leave up to three quarters of a device idle at these
    /// shapes. (A fuller device is not always faster: parts of k cost another launch and traffic.)
    #[test]
    fn products_of_bert_fill_a_device_no_less_than_one_fixed_tile() {
        let fixed = tiles(Precision::Bf16).iter().position(|t| (t.rows, t.columns) == (128, 128)).unwrap();
        for limits in [H100, RTX] {
            let mut gained = 0;
            for (m, n, k) in [
                (4096, 768, 768),
                (4096, 2304, 768),
                (4096, 3072, 768),
                (4096, 768, 3072),
                (768, 768, 4096),
                (2304, 768, 4096),
                (3072, 768, 4096),
            ] {
                let chosen = filled(limits, choose(limits, Precision::Bf16, m, n, k), m, n);
                let plain = filled(limits, Choice { tile: fixed, splits: 1 }, m, n);
                assert!(chosen >= plain, "{m}×{n}×{k}: {chosen} against {plain}");
                gained += usize::from(chosen > 1.2 * plain);
            }
            assert!(gained >= 3, "{limits:?}: the choice hardly differs from a fixed tile");
        }
    }

    #[test]
    fn scratch_of_a_smaller_batch_fits_that_of_a_larger() {
        for (n, k) in [(768, 768), (768, 3072), (3, 768)] {
            let mut last = 0;
            for tokens in [1, 31, 256, 512, 513, 4096, 16384] {
                let weight = partial_capacity(H100, n, k, tokens);
                let forward = partial_capacity(H100, tokens, n, k);
                assert!(weight + forward >= last);
                last = weight + forward;
                for (m, n, k) in [(n, k, tokens), (tokens, n, k)] {
                    let choice = choose(H100, Precision::Bf16, m, n, k);
                    let used = if choice.splits > 1 { choice.splits * m * n.next_multiple_of(4) } else { 0 };
                    assert!(used <= partial_capacity(H100, m, n, k));
                }
            }
        }
    }

    #[test]
    fn every_choice_fits_its_device() {
        for precision in [Precision::Bf16, Precision::F16, Precision::Tf32, Precision::F32] {
            let slice = tiles(precision)[0].slice;
            assert!(tiles(precision).iter().all(|tile| tile.slice == slice), "`slices` asks no tile");
            for limits in [H100, RTX] {
                for (m, n, k) in [(64, 64, 64), (4096, 768, 3072), (768, 3072, 4096), (8192, 8192, 8192)] {
                    let tile = &tiles(precision)[choose(limits, precision, m, n, k).tile];
                    assert!(tile.fits(limits), "{limits:?}: {tile:?}");
                }
            }
        }
    }
}
