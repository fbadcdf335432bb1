//! Selection of the largest and packed masks: the same bits from the sort and from the digits, ties included.

use proptest::prelude::*;
use secateur::ops::{select, weightmask};

use crate::common::{Random, wide};

/// Scores, of which `levels` > 0 leaves so many values, now and then with infinities, both zeros and NaN among them.
pub fn scores(random: &mut Random, len: usize, levels: usize, odd: bool) -> Vec<f32> {
    const ODD: [f32; 6] = [f32::INFINITY, f32::NEG_INFINITY, 0.0, -0.0, f32::NAN, f32::MIN_POSITIVE / 4.0];
    (0..len)
        .map(|_| match (odd && random.below(8) == 0, levels) {
            (true, _) => ODD[random.below(ODD.len())],
            (_, 0) => random.value(3.0),
            (_, levels) => random.below(levels) as f32 - (levels / 2) as f32,
        })
        .collect()
}

pub fn by_sorting(scores: &[f32], magnitude: bool, count: usize) -> Vec<u64> {
    let mut keep = vec![u64::MAX; scores.len().div_ceil(64)];
    select::reference::keep_largest(&wide(scores), magnitude, count, &mut keep);
    keep
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn digits_choose_what_the_sort_chooses(seed: u64, len in prop_oneof![0usize..300, 65_500usize..65_600, 131_000usize..131_200], levels in 0usize..4, odd: bool, magnitude: bool, share in 0.0f64..1.2) {
        let scores = scores(&mut Random(seed), len, levels, odd);
        let count = (share * len as f64) as usize;
        let mut keep = vec![u64::MAX; len.div_ceil(64)];
        select::cpu::keep_largest(&scores, magnitude, count, &mut keep);
        prop_assert_eq!(keep.iter().map(|word| word.count_ones() as usize).sum::<usize>(), count.min(len));
        prop_assert_eq!(keep, by_sorting(&scores, magnitude, count));
    }

    #[test]
    fn masked_weights_are_zero_and_the_others_untouched(seed: u64, len in prop_oneof![0usize..300, 40_000usize..40_100]) {
        let random = &mut Random(seed);
        let weights = scores(random, len, 0, true);
        let keep: Vec<u64> = (0..len.div_ceil(64)).map(|_| random.next()).collect();
        let (mut out, mut exact) = (vec![f32::NAN; len], vec![f64::NAN; len]);
        weightmask::cpu::apply(&weights, &keep, &mut out);
        weightmask::reference::apply(&wide(&weights), &keep, &mut exact);
        for i in 0..len {
            prop_assert!(f64::from(out[i]) == exact[i] || out[i].is_nan() && exact[i].is_nan());
            if keep[i / 64] >> (i % 64) & 1 == 0 {
                prop_assert_eq!(out[i].to_bits(), 0);
            }
        }
    }
}

/// After one step of Adam every score is about ± the learning rate: the first of the equal ones stay.
#[test]
fn of_equal_scores_the_first_are_kept() {
    let mut keep = [0u64; 2];
    select::cpu::keep_largest(&[0.02; 100], false, 70, &mut keep);
    assert_eq!(keep, [u64::MAX, (1 << 6) - 1]);
}
