//! Dimension mapping: the sort-and-sweep against the paper's loop, ties and zeros included.

use proptest::prelude::*;
use secateur::ops::mapping::{cpu, reference};
use secateur::ops::{View, ViewMut};

use crate::support;
use crate::support::numbers::{Random, U32, U64, gamma};
use crate::support::tensors::Tensors;

fn widen(x: &[f32]) -> Vec<f64> {
    x.iter().map(|v| f64::from(*v)).collect()
}

/// A symmetric [n, n] matrix in [0, 1]; `levels` > 0 rounds to that many values, so that ties abound.
pub fn similarity(random: &mut Random, n: usize, levels: usize) -> Vec<f32> {
    let mut matrix = vec![1.0; n * n];
    for i in 0..n {
        for j in 0..i {
            let value = random.unit();
            let value =
                if levels > 0 { (value * levels as f64).floor() / levels as f64 } else { value } as f32;
            matrix[i * n + j] = value;
            matrix[j * n + i] = value;
        }
    }
    matrix
}

#[test]
fn matching_equals_the_restated_steps() {
    let tensors = Tensors::read(&support::reference("optim_and_ops/mapping.safetensors"));
    let cases = tensors.names().iter().filter(|name| name.ends_with(".pairs")).count();
    assert!(cases >= 5, "{cases} cases");
    for case in 0..cases {
        let block = tensors.f64(&format!("case{case}.abs_cos"));
        let n = tensors.shape(&format!("case{case}.abs_cos"))[0];
        let pairs = tensors.f64(&format!("case{case}.pairs"));
        let mean = tensors.f64(&format!("case{case}.mean"))[0];
        let steps = reference::greedy_matching(View::dense(&block, n, n));
        let found: Vec<f64> = steps.iter().flat_map(|s| [s.row as f64, s.column as f64, s.value]).collect();
        assert_eq!(found, pairs, "case {case}");
        let sum: f64 = steps.iter().map(|step| step.value).sum();
        assert!((sum / n as f64 - mean).abs() <= gamma(n + 1, U64) * mean);

        let narrow: Vec<f32> = block.iter().map(|v| *v as f32).collect();
        let wide = widen(&narrow);
        let expected = reference::greedy_matching(View::dense(&wide, n, n));
        for (fast, slow) in cpu::greedy_matching(View::dense(&narrow, n, n)).iter().zip(&expected) {
            assert_eq!(
                (fast.row, fast.column, f64::from(fast.value)),
                (slow.row, slow.column, slow.value),
                "case {case}"
            );
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn sweep_equals_the_loop(seed: u64, heads in 1usize..5, head_dim in 1usize..17, levels in 0usize..5) {
        let n = heads * head_dim;
        let matrix = similarity(&mut Random(seed), n, levels);
        let wide = widen(&matrix);
        for a in 0..heads {
            for b in 0..heads {
                let narrow = View::dense(&matrix, n, n).rows_at(a * head_dim, head_dim).cols_at(b * head_dim, head_dim);
                let exact = View::dense(&wide, n, n).rows_at(a * head_dim, head_dim).cols_at(b * head_dim, head_dim);
                let fast = cpu::greedy_matching(narrow);
                let slow = reference::greedy_matching(exact);
                prop_assert_eq!(fast.len(), head_dim);
                for (f, s) in fast.iter().zip(&slow) {
                    prop_assert_eq!((f.row, f.column, f64::from(f.value)), (s.row, s.column, s.value));
                }
            }
        }
        let (mut fast, mut exact) = (vec![f32::NAN; heads * heads], vec![f64::NAN; heads * heads]);
        cpu::dimension_mapping(View::dense(&matrix, n, n), head_dim, &mut ViewMut::dense(&mut fast, heads, heads));
        reference::dimension_mapping(View::dense(&wide, n, n), head_dim, &mut ViewMut::dense(&mut exact, heads, heads));
        for i in 0..heads {
            prop_assert_eq!(fast[i * heads + i], 1.0);
            for j in 0..heads {
                let (f, e) = (f64::from(fast[i * heads + j]), exact[i * heads + j]);
                prop_assert_eq!(fast[i * heads + j], fast[j * heads + i]);
                prop_assert!((f - e).abs() <= e * (U32 + gamma(head_dim + 1, U64)));
            }
        }
    }
}

#[test]
fn permuted_dimensions_are_the_same_head() {
    // Head 1 has head 0's dimensions in another order: cosine 1 for each true partner, less elsewhere.
    let (heads, head_dim) = (2, 8);
    let n = heads * head_dim;
    let mut matrix = vec![0.3f32; n * n];
    for k in 0..head_dim {
        let partner = head_dim + (3 * k + 5) % head_dim;
        matrix[k * n + partner] = 1.0;
        matrix[partner * n + k] = 1.0;
    }
    let mut out = vec![0.0; 4];
    cpu::dimension_mapping(View::dense(&matrix, n, n), head_dim, &mut ViewMut::dense(&mut out, 2, 2));
    assert_eq!(out, vec![1.0; 4]);
}

#[test]
fn nan_gives_nan_for_its_pair_only() {
    let (heads, head_dim) = (3, 4);
    let n = heads * head_dim;
    let mut matrix = vec![0.5f32; n * n];
    matrix[2 * n + 5] = f32::NAN;
    let mut out = vec![0.0; 9];
    cpu::dimension_mapping(View::dense(&matrix, n, n), head_dim, &mut ViewMut::dense(&mut out, 3, 3));
    let undefined: Vec<bool> = out.iter().map(|v| v.is_nan()).collect();
    assert_eq!(undefined, [false, true, false, true, false, false, false, false, false]);
}
