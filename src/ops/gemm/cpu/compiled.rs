//! The generic kernels, compiled once for each level.

use super::block::{self, Compiled};
use super::job::{Job, Task};
use super::kernel::{self, Dots, Tile};
use super::registers::Portable;
#[cfg(target_arch = "x86_64")]
use super::registers::{Avx2, Avx512};

macro_rules! compile {
    ($set:ident, tile rows $rows:tt, vectors $($vectors:literal)*, dot rows $($dot_rows:literal)*, at most $dot_limit:literal $(, #[$feature:meta])?) => {
        impl Compiled for $set {
            const DOT_ROWS: usize = $dot_limit;

            unsafe fn tile(rows: usize, vectors: usize, tile: &Tile) {
                $(#[$feature])?
                unsafe fn compiled<const ROWS: usize, const VECTORS: usize>(tile: &Tile) {
                    // SAFETY: the caller's promises, passed on.
                    unsafe { kernel::tile::<$set, ROWS, VECTORS>(tile) }
                }
                match vectors {
                    $($vectors => compile!(@rows rows, $vectors, tile, $rows),)*
                    _ => unreachable!("no tile of {vectors} vectors"),
                }
            }

            unsafe fn dots(rows: usize, dots: &Dots) {
                $(#[$feature])?
                unsafe fn compiled<const ROWS: usize>(dots: &Dots) {
                    // SAFETY: the caller's promises, passed on.
                    unsafe { kernel::dots::<$set, ROWS>(dots) }
                }
                // SAFETY: as above.
                unsafe {
                    match rows {
                        $($dot_rows => compiled::<$dot_rows>(dots),)*
                        _ => unreachable!("no dot products of {rows} rows"),
                    }
                }
            }

            unsafe fn run(job: &Job, task: &Task) {
                $(#[$feature])?
                unsafe fn compiled(job: &Job, task: &Task) {
                    // SAFETY: the caller's promises, passed on.
                    unsafe { block::run::<$set>(job, task) }
                }
                // SAFETY: as above.
                unsafe { compiled(job, task) }
            }
        }
    };
    (@rows $count:ident, $vectors:literal, $tile:ident, [$($rows:literal)*]) => {
        match $count {
            // SAFETY: the caller's promises, passed on.
            $($rows => unsafe { compiled::<$rows, $vectors>($tile) },)*
            _ => unreachable!("no tile of {} rows", $count),
        }
    };
}

#[cfg(target_arch = "x86_64")]
compile!(Avx512, tile rows [1 2 3 4 5 6 7 8], vectors 1 2 3, dot rows 1 2 3 4 5 6, at most 6, #[target_feature(enable = "avx512f")]);
#[cfg(target_arch = "x86_64")]
compile!(Avx2, tile rows [1 2 3 4 5 6], vectors 1 2, dot rows 1 2 3, at most 3, #[target_feature(enable = "avx2,fma")]);
compile!(Portable, tile rows [1 2 3 4 5 6], vectors 1 2, dot rows 1 2 3, at most 3);
