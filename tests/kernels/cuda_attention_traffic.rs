//! What the attention kernels move, counted by the emulator at the strides of a model 768 wide and held against a
//! committed record.
//!
//! A sequence of t units of tokens makes a kernel do a·t + b·t² + c: each of its blocks owns some rows and goes once
//! through all rows of the other side. So the second difference over t is the traffic of the main loops alone, 2b, and its
//! least is known: every block reads the streamed operands once.

use std::fmt::Write as _;

use ptxsim::Counters;
use secateur::launch::{DeviceLimits, ElementType, Matrix, Pointer, Precision, Queue, Step};
use secateur::ops::attention::cuda;

use crate::record;
use crate::traffic::Traffic;

const RECORD: &str = "tests/kernels/attention_traffic.txt";
const WIDTH: usize = 768;

/// Counters of every kernel of forward and backward on one sequence of `tokens` tokens, by the kernel's name.
fn traffic(
    element: ElementType,
    head_dim: usize,
    tokens: usize,
    multiprocessors: u32,
) -> Vec<(&'static str, Counters)> {
    let limits = DeviceLimits { multiprocessors, shared_bytes: 227 << 10, capability: (8, 0) };
    let heads = WIDTH / head_dim;
    let mut traffic = Traffic::new();
    let mut zeros = |rows: usize, cols: usize, element: ElementType| Matrix {
        address: traffic.zeros(rows * cols * element.bytes()),
        element,
        rows,
        cols,
        ld: cols,
    };
    let (qkv, dqkv) = (zeros(tokens, 3 * WIDTH, element), zeros(tokens, 3 * WIDTH, element));
    let third = |of: Matrix, i: usize| Matrix {
        address: of.address + (i * WIDTH * element.bytes()) as u64,
        cols: WIDTH,
        ..of
    };
    let [q, k, v] = [0, 1, 2].map(|i| third(qkv, i));
    let [dq, dk, dv] = [0, 1, 2].map(|i| third(dqkv, i));
    let (out, dout) = (zeros(tokens, WIDTH, element), zeros(tokens, WIDTH, element));
    let lse = zeros(tokens, heads, ElementType::F32);
    let cu_seqlens = traffic.zeros(8);
    traffic.write(cu_seqlens, &[0, tokens as i32]);
    let cu_seqlens = Pointer::new(cu_seqlens);
    let scratch = traffic.zeros(2 * tokens * heads * 4);
    let mut queue = Queue::new(limits, Precision::F32, scratch, 2 * tokens * heads * 4);
    let scale = 0.125;
    cuda::forward(
        &mut queue, q, k, v, cu_seqlens, 1, heads, head_dim, scale, false, None, None, out, lse, None,
    );
    cuda::backward(
        &mut queue, q, k, v, out, dout, lse, None, cu_seqlens, 1, heads, head_dim, scale, false, None, None,
        dq, dk, dv, None,
    );
    let counted = queue.steps().iter().map(|step| match step {
        Step::Launch(launch) => (launch.kernel().name, traffic.launch(launch)),
        Step::FillZero { .. } => panic!("attention fills nothing"),
    });
    counted.collect()
}

/// Main loops have no bank conflicts, and read at most 1.1 times the sectors that the streamed operands fill. What does
/// not is named in the record's last column and may get no worse.
#[test]
fn main_loops_of_attention_cost_what_the_record_says() {
    let mut lines = String::from(
        "# kernel, main loops: replays, sectors, least sectors; whole kernel at 3 units: replays, sectors\n",
    );
    let mut faults = Vec::new();
    for (element, head_dim, unit, multiprocessors) in [
        (ElementType::Bf16, 16, 64, 4),
        (ElementType::Bf16, 32, 64, 4),
        (ElementType::Bf16, 64, 64, 4),
        (ElementType::Bf16, 96, 64, 4),
        (ElementType::Bf16, 128, 64, 4),
        (ElementType::Bf16, 64, 256, 1), // 128 queries a block
        (ElementType::F32, 32, 32, 4),
        (ElementType::F32, 64, 32, 4),
        (ElementType::F32, 128, 32, 4),
    ] {
        let counts = [1, 2, 3].map(|units| traffic(element, head_dim, units * unit, multiprocessors));
        for (i, (kernel, whole)) in counts[2].iter().enumerate() {
            if unit == 256 && !kernel.contains("long") {
                continue;
            }
            let second = |of: fn(&Counters) -> u64| {
                let [one, two, three] = [0, 1, 2].map(|t| of(&counts[t][i].1) as i64);
                three - 2 * two + one
            };
            let (replays, sectors) = (second(|c| c.bank_conflict_replays), second(|c| c.sectors));
            let least = least_sectors(kernel, element, head_dim, unit);
            let _ = writeln!(
                lines,
                "{kernel} {replays} {sectors} {least} {} {}",
                whole.bank_conflict_replays, whole.sectors
            );
            if replays != 0 {
                faults.push(format!("{kernel}: {replays} replays in the main loops"));
            }
            if sectors as f64 > 1.1 * least as f64 {
                faults.push(format!("{kernel}: {sectors} sectors in the main loops, {least} would do"));
            }
        }
    }
    record::compare(RECORD, &lines);
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

/// Second difference of the fewest sectors: two operands of `head_dim` columns for every block, and for the gradients of
/// keys two numbers a row and head; 0 where nothing is streamed.
fn least_sectors(kernel: &str, element: ElementType, head_dim: usize, unit: usize) -> i64 {
    let heads = WIDTH / head_dim;
    let rows = match element {
        ElementType::F32 => 32,
        ElementType::Bf16 if kernel.contains("long") => 128,
        ElementType::Bf16 => 64,
    };
    let streamed = 2 * head_dim * element.bytes() + if kernel.contains("keys") { 8 } else { 0 }; // their statistics
    if kernel.contains("row_statistics") {
        return 0;
    }
    (2 * heads * (unit / rows) * unit * streamed / 32) as i64
}
