//! What the product kernels move and how long they take: traffic counted by the emulator, and a sweep for a GPU.

use secateur::launch::ElementType::{Bf16, F32};
use secateur::launch::{DeviceLimits, Factor, FactorType, Matrix, Precision, Queue, Step};
use secateur::ops::gemm::cuda::{self, Choice, tiles};

use crate::common::Random;
use crate::support::device::TestDevice;
use crate::traffic::Traffic;

/// The main loops move no byte twice and never wait for a bank: what a deeper product adds to the traffic of a shallower
/// one is free of conflicts, and touches no more sectors than its bytes fill.
#[test]
fn main_loops_have_no_bank_conflicts_and_whole_sectors() {
    let limits = DeviceLimits { multiprocessors: 4, shared_bytes: 163 << 10, capability: (8, 0) };
    let counted = |precision: Precision, tile: usize, transpose: (bool, bool), k: usize| {
        let shape = tiles(precision)[tile];
        let element = precision.factors().unwrap_or(FactorType::F32);
        let mut traffic = Traffic::new();
        let (m, n) = (shape.rows, shape.columns);
        let mut factor = |transposed: bool, rows: usize, cols: usize| {
            let (rows, cols) = if transposed { (cols, rows) } else { (rows, cols) };
            Factor { address: traffic.zeros(rows * cols * element.bytes()), element, rows, cols, ld: cols }
        };
        let (a, b) = (factor(transpose.0, m, k), factor(transpose.1, k, n));
        let c = Matrix { address: traffic.zeros(m * n * 4), element: F32, rows: m, cols: n, ld: n };
        let mut queue = Queue::measuring(limits, precision);
        let choice = Some(Choice { tile, splits: 1 });
        cuda::gemm_with(&mut queue, choice, a, transpose.0, b, transpose.1, c, cuda::Epilogue::default());
        let [Step::Launch(launch)] = queue.steps() else { panic!("one launch") };
        traffic.launch(launch)
    };
    for precision in [Precision::Bf16, Precision::F16, Precision::Tf32, Precision::F32] {
        for (tile, shape) in tiles(precision).iter().enumerate() {
            for transpose in [(false, true), (false, false), (true, false)] {
                let (short, long) =
                    (counted(precision, tile, transpose, 64), counted(precision, tile, transpose, 192));
                let element = precision.factors().map_or(4, FactorType::bytes);
                let bytes = 128 * (shape.rows + shape.columns) * element;
                let what = format!("{precision:?} {}×{} {transpose:?}", shape.rows, shape.columns);
                assert!(long.shared_accesses > short.shared_accesses, "{what}");
                assert_eq!(long.bank_conflict_replays - short.bank_conflict_replays, 0, "{what}");
                assert_eq!(long.sectors - short.sectors, bytes as u64 / 32, "{what}");
                let products = (128 * shape.rows * shape.columns) as u64;
                let each = match precision {
                    Precision::Bf16 | Precision::F16 => 16 * 8 * 16,
                    Precision::Tf32 => 16 * 8 * 8,
                    Precision::F32 => u64::MAX,
                };
                assert_eq!(long.mma - short.mma, products / each, "{what}");
            }
        }
    }
}

/// Times every tile and number of parts at the products of a BERT-base training step, to tune the model of
/// `gemm/cuda/choice.rs` by: run with `--ignored --nocapture` and SECATEUR_TEST_DEVICE=cuda. Prints a table of
/// comma-separated values. Operands stay in L2 from one turn to the next as far as they fit.
#[test]
#[ignore = "a measurement; needs a GPU"]
fn sweep_of_tiles() {
    let tokens = 4096;
    println!("precision,layout,m,n,k,tile,splits,chosen,microseconds,tflops");
    for precision in [Precision::Bf16, Precision::Tf32, Precision::F32] {
        let element = if precision == Precision::Bf16 { Bf16 } else { F32 };
        for (out, inner) in [(768, 768), (2304, 768), (3072, 768), (768, 3072)] {
            for (layout, (m, n, k), transpose) in [
                ("nt", (tokens, out, inner), (false, true)),
                ("nn", (tokens, inner, out), (false, false)),
                ("tn", (out, inner, tokens), (true, false)),
            ] {
                let device = &mut TestDevice::with_precision(precision);
                let random = &mut Random(1);
                let mut matrix = |transposed: bool, rows: usize, cols: usize| {
                    let (rows, cols) = if transposed { (cols, rows) } else { (rows, cols) };
                    device.matrix(rows, cols, &random.values(rows * cols, 1.0), element)
                };
                let (a, b) = (matrix(transpose.0, m, k), matrix(transpose.1, k, n));
                let gradient = layout == "tn";
                let c = device.matrix(m, n, &vec![0.0; m * n], if gradient { F32 } else { element });
                let epilogue = cuda::Epilogue { accumulate: gradient, ..cuda::Epilogue::default() };
                let limits = device.limits();
                for (tile, shape) in tiles(precision).iter().enumerate().filter(|(_, tile)| tile.fits(limits))
                {
                    for splits in [1, 2, 3, 4, 5, 6, 8, 11, 16].into_iter().filter(|s| gradient || *s <= 2) {
                        let chosen = std::cell::Cell::new(false);
                        let mut seconds = |turns: usize| {
                            let start = std::time::Instant::now();
                            device.run(|queue| {
                                let choice = Choice { tile, splits };
                                chosen.set(cuda::choose(queue.device(), precision, m, n, k) == choice);
                                for _ in 0..turns {
                                    cuda::gemm_with(
                                        queue,
                                        Some(choice),
                                        a,
                                        transpose.0,
                                        b,
                                        transpose.1,
                                        c,
                                        epilogue,
                                    );
                                    queue.end_operation();
                                }
                            });
                            start.elapsed().as_secs_f64()
                        };
                        seconds(3);
                        // The difference removes what does not grow with the number of turns.
                        let each =
                            (0..3).map(|_| seconds(60) - seconds(10)).fold(f64::INFINITY, f64::min) / 50.0;
                        println!(
                            "{},{layout},{m},{n},{k},{}x{},{splits},{},{:.2},{:.1}",
                            precision.name(),
                            shape.rows,
                            shape.columns,
                            u8::from(chosen.get()),
                            each * 1e6,
                            2.0 * (m * n * k) as f64 / each / 1e12
                        );
                    }
                }
            }
        }
    }
}
