//! Dropout: the same elements in every implementation, and the statistics of a fair coin.

use proptest::prelude::*;
use secateur::ops::dropout::{AppliedDropout, Dropout, DropoutKey, cpu, reference};

use crate::common::{Matrix, Random, Wide, same_bits_on_any_threads};

fn applied(probability: f32, site: u32, seed: u64, draw: u32) -> AppliedDropout {
    AppliedDropout { dropout: Dropout { probability, site }, key: DropoutKey { seed, draw } }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_part_of_a_row_drops_what_the_definition_drops(
        seed: u64, draw: u32, site in 0u32..1000, row in 0usize..1_000_000, first in 0usize..300, len in 0usize..300,
        probability in prop_oneof![Just(0.0f32), Just(0.1), Just(0.5), Just(1.0), 0.0f32..1.0]
    ) {
        let dropout = applied(probability, site, seed, draw);
        let values = Random(seed).values(len, 3.0);
        let mut ours = values.clone();
        dropout.scale_row(row, first, &mut ours);
        let mut wide: Vec<f64> = values.iter().map(|&x| f64::from(x)).collect();
        dropout.scale_row_f64(row, first, &mut wide);
        for i in 0..len {
            let kept = dropout.keeps(row, first + i);
            let expected = if probability == 0.0 { values[i] } else if kept { values[i] * dropout.scale() } else { 0.0 };
            prop_assert_eq!(ours[i].to_bits(), expected.to_bits());
            // The f64 twin applies the same f32 factor to the same elements.
            prop_assert_eq!(wide[i] as f32, expected);
        }
    }

    #[test]
    fn matrices_match_on_any_number_of_threads(seed: u64, rows in 0usize..200, n in 1usize..200) {
        let dropout = applied(0.3, 5, seed, 2);
        let x = Matrix::random(&mut Random(seed), rows, n, 2, 1.0);
        let mut exact = Wide::poisoned(rows, n);
        reference::dropout(x.wide().view(), exact.view_mut(), dropout);
        let mut out = Matrix::poisoned(rows, n, 3);
        cpu::dropout(x.view(), out.view_mut(), dropout);
        out.assert_within("out", &exact, |t, j| crate::common::U * exact.at(t, j).abs());
        same_bits_on_any_threads(|| {
            let mut out = Matrix::poisoned(rows, n, 3);
            cpu::dropout(x.view(), out.view_mut(), dropout);
            out.bits()
        });
    }
}

/// The kept fraction of 200,000 independent coins lies within five standard deviations of 1 − p, for rows,
/// columns, sites and draws that differ only a little, and masks of neighbours agree no more than chance.
#[test]
fn the_kept_fraction_is_that_of_independent_coins() {
    for probability in [0.1f32, 0.5, 0.9] {
        let p = f64::from(probability);
        let (rows, cols) = (400, 500);
        let count = (rows * cols) as f64;
        let masks: Vec<Vec<bool>> = [
            applied(probability, 0, 1, 0),
            applied(probability, 1, 1, 0),
            applied(probability, 0, 1, 1),
            applied(probability, 0, 2, 0),
        ]
        .iter()
        .map(|dropout| {
            (0..rows)
                .flat_map(|row| {
                    let mut values = vec![1.0f32; cols];
                    dropout.scale_row(row, 0, &mut values);
                    values.into_iter().map(|x| x != 0.0)
                })
                .collect()
        })
        .collect();
        let check = |what: &str, found: usize, expected: f64| {
            let deviation = (count * expected * (1.0 - expected)).sqrt();
            assert!((found as f64 - count * expected).abs() < 5.0 * deviation, "{what}, p = {p}: {found}");
        };
        for mask in &masks {
            check("kept", mask.iter().filter(|&&kept| kept).count(), 1.0 - p);
        }
        let agreement = (1.0 - p) * (1.0 - p) + p * p;
        for other in &masks[1..] {
            check("agreeing", masks[0].iter().zip(other).filter(|(a, b)| a == b).count(), agreement);
        }
        // One row further down, and one column further right.
        for shift in [cols, 1] {
            let shifted = masks[0].iter().cycle().skip(shift);
            check(
                "agreeing, shifted",
                masks[0].iter().zip(shifted).filter(|(a, b)| a == b).count(),
                agreement,
            );
        }
    }
}
