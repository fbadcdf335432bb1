//! Attention on the CPU against its definition: every combination of mask, dropout and causality, odd shapes, sequences of
//! one token and of none.

use proptest::prelude::*;
use secateur::ops::View;

use crate::attention_case::{Case, Results, Rounding, bits};
use crate::common::{Matrix, Random, Wide, assert_gradient, same_bits_on_any_threads, wide};

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn forward_and_backward_match_the_reference(seed: u64, sequences in 1usize..6, longest in 1usize..90, heads in 1usize..5, head_dim in 1usize..40) {
        let case = Case::random(&mut Random(seed), sequences, longest, heads, head_dim);
        case.check(&case.run(), Rounding::WHOLE_ROWS);
        same_bits_on_any_threads(|| bits(&case.run()));
    }
}

/// Head sizes of real models, sequences across several tiles of queries and panels of keys.
#[test]
fn long_sequences_and_wide_heads_match_the_reference() {
    for (seed, longest, head_dim) in [(1, 300, 64), (2, 150, 128), (3, 400, 80), (4, 130, 32)] {
        let mut random = Random(seed);
        let mut case = Case::random(&mut random, 2, longest, 2, head_dim);
        for causal in [false, true] {
            case.causal = causal;
            case.check(&case.run(), Rounding::WHOLE_ROWS);
        }
    }
}

/// Scores far outside the range of exp: the maximum is subtracted first.
#[test]
fn huge_scores_stay_finite_and_exact() {
    let mut case = Case::random(&mut Random(5), 3, 40, 2, 16);
    case.mask = None;
    for t in 0..case.rows() {
        case.qkv.view_mut().row_mut(t).iter_mut().for_each(|x| *x *= 20.0);
    }
    case.check(&case.run(), Rounding::WHOLE_ROWS);
}

#[test]
fn a_mask_of_ones_changes_no_bit_and_a_mask_of_zeros_leaves_zeros() {
    let mut case = Case::random(&mut Random(11), 4, 60, 3, 16);
    case.mask = None;
    let without = bits(&case.run());
    case.mask = Some(vec![1.0; 3]);
    assert_eq!(bits(&case.run()), without);
    case.mask = Some(vec![0.0; 3]);
    case.want_mask_gradient = false;
    let Results { out, lse, dq, dk, dv, .. } = case.run();
    assert!([out, lse, dq, dk, dv].iter().flat_map(Matrix::bits).all(|bits| bits == 0));
}

/// A sequence's results do not depend on what else is in the batch.
#[test]
fn sequences_do_not_see_each_other() {
    let mut case = Case::random(&mut Random(21), 3, 50, 2, 16);
    (case.dropout, case.mask, case.answers) = (None, None, None);
    let together = case.run();
    let width = case.width();
    for pair in case.cu_seqlens.windows(2) {
        let (start, rows) = (pair[0] as usize, (pair[1] - pair[0]) as usize);
        let part = |from: &Matrix, cols: usize| {
            let mut to = Matrix::poisoned(rows, cols, 0);
            for t in 0..rows {
                to.view_mut().row_mut(t).copy_from_slice(from.view().row(start + t));
            }
            to
        };
        let alone = Case {
            qkv: part(&case.qkv, 3 * width),
            dout: part(&case.dout, width),
            cu_seqlens: vec![0, rows as i32],
            ..case.clone()
        };
        let results = alone.run();
        for (alone, together) in [
            (&results.out, &together.out),
            (&results.dq, &together.dq),
            (&results.dk, &together.dk),
            (&results.dv, &together.dv),
        ] {
            assert_eq!(alone.bits(), part(together, width).bits());
        }
    }
}

/// One query of each sequence, wherever it stands: the reference of it alone is the reference of all queries, and the CPU's
/// gradients are within their bounds, zero where a causal query sees nothing.
#[test]
fn one_query_of_each_sequence_gives_the_whole_gradient() {
    for seed in 0..40 {
        let mut random = Random(300 + seed);
        let mut case = Case::random(&mut random, 4, [7, 40, 130][seed as usize % 3], 2, 16);
        case.causal = seed % 2 == 0;
        let Some(answers) = &case.answers else { continue };
        let mask = case.mask.as_deref().map(wide);
        let (all, alone) = (
            case.exact_of(&case.qkv.wide(), mask.as_deref(), None),
            case.exact_of(&case.qkv.wide(), mask.as_deref(), Some(answers)),
        );
        for (all, alone) in [(&all.dq, &alone.dq), (&all.dk, &alone.dk), (&all.dv, &alone.dv)] {
            assert_eq!(all.data, alone.data);
        }
        case.check(&case.run(), Rounding::WHOLE_ROWS);
    }
}

#[test]
fn the_reference_backward_is_the_difference_quotient() {
    for seed in 0..6 {
        let mut random = Random(100 + seed);
        let mut case = Case::random(&mut random, 3, 6, 2, 3);
        case.want_mask_gradient = true;
        case.causal = seed % 2 == 0;
        let mask = wide(&[0.7, if seed < 3 { 0.0 } else { 1.3 }]);
        case.mask = Some(vec![1.0; 2]);
        let dout = case.dout.wide();
        let loss = |qkv: &Wide, mask: &[f64]| -> f64 {
            let out = case.exact_with(qkv, Some(mask)).out;
            out.data.iter().zip(&dout.data).map(|(out, dout)| out * dout).sum()
        };
        let qkv = case.qkv.wide();
        let results = case.exact_with(&qkv, Some(&mask));
        let mut gradient = Wide::zeros(qkv.rows, qkv.cols);
        for t in 0..qkv.rows {
            for (i, part) in [&results.dq, &results.dk, &results.dv].into_iter().enumerate() {
                let row: View<f64> = part.view();
                gradient.view_mut().row_mut(t)[i * case.width()..][..case.width()]
                    .copy_from_slice(row.row(t));
            }
        }
        assert_gradient("dqkv", &qkv.data, &gradient.data, |data| {
            loss(&Wide { data: data.to_vec(), ..qkv }, &mask)
        });
        let dmask = results.dmask.unwrap();
        let total: Vec<f64> = (0..2).map(|h| (0..dmask.rows).map(|b| dmask.at(b, h)).sum()).collect();
        assert_gradient("dmask", &mask, &total, |mask| loss(&qkv, mask));
    }
}
