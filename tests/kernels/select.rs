//! Selection of the largest and packed masks: the same bits from the sort and from the digits, ties included.

use proptest::prelude::*;
use secateur::ops::select::Matrix;
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

/// A matrix whose rows are padded with values that would win if they were scores.
pub struct Padded {
    pub values: Vec<f32>,
    pub cols: usize,
    pub ld: usize,
}

impl Padded {
    /// Matrices of these shapes, [`scores`] in them.
    pub fn random(random: &mut Random, shapes: &[(usize, usize)], levels: usize, odd: bool) -> Vec<Padded> {
        let matrix = |&(rows, cols): &(usize, usize)| {
            let ld = cols.next_multiple_of(8);
            let mut values = vec![f32::INFINITY; rows * ld];
            for row in values.chunks_mut(ld) {
                row[..cols].copy_from_slice(&scores(random, cols, levels, odd));
            }
            Padded { values, cols, ld }
        };
        shapes.iter().map(matrix).collect()
    }

    pub fn matrix<'a>(&'a self, keep: &'a mut [u64]) -> Matrix<'a, f32> {
        Matrix { scores: &self.values, cols: self.cols, ld: self.ld, keep }
    }

    /// Scores above `threshold`.
    pub fn above(&self, threshold: f32) -> usize {
        let rows = self.values.chunks(self.ld);
        rows.flat_map(|row| &row[..self.cols]).filter(|score| **score > threshold).count()
    }
}

/// Words of each matrix, and how many are kept.
pub fn by_sorting_together(matrices: &[Padded], magnitude: bool, count: usize) -> (Vec<Vec<u64>>, usize) {
    let values: Vec<Vec<f64>> = matrices.iter().map(|m| wide(&m.values)).collect();
    let mut words: Vec<Vec<u64>> = values.iter().map(|v| vec![u64::MAX; v.len().div_ceil(64)]).collect();
    let all = matrices.iter().zip(&values).zip(&mut words);
    let mut all: Vec<Matrix<f64>> =
        all.map(|((m, scores), keep)| Matrix { scores, cols: m.cols, ld: m.ld, keep }).collect();
    let kept = select::reference::keep_largest(&mut all, magnitude, count);
    (words, kept)
}

pub fn by_sorting(scores: &[f32], magnitude: bool, count: usize) -> Vec<u64> {
    let mut keep = vec![u64::MAX; scores.len().div_ceil(64)];
    select::reference::keep_largest(&mut [Matrix::dense(&wide(scores), &mut keep)], magnitude, count);
    keep
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn digits_choose_what_the_sort_chooses(seed: u64, len in prop_oneof![0usize..300, 65_500usize..65_600, 131_000usize..131_200], levels in 0usize..4, odd: bool, magnitude: bool, share in 0.0f64..1.2) {
        let scores = scores(&mut Random(seed), len, levels, odd);
        let count = (share * len as f64) as usize;
        let mut keep = vec![u64::MAX; len.div_ceil(64)];
        let kept = select::cpu::keep_largest(&mut [Matrix::dense(&scores, &mut keep)], magnitude, count);
        prop_assert_eq!(kept, count.min(len));
        prop_assert_eq!(keep.iter().map(|word| word.count_ones() as usize).sum::<usize>(), count.min(len));
        prop_assert_eq!(keep, by_sorting(&scores, magnitude, count));
    }

    #[test]
    fn matrices_with_padded_rows_share_one_budget(seed: u64, shapes in prop::collection::vec((0usize..40, 1usize..40), 0..4), levels in 0usize..4, odd: bool, magnitude: bool, share in 0.0f64..1.2, threshold in -2.0f32..2.0) {
        let matrices = Padded::random(&mut Random(seed), &shapes, levels, odd);
        let total: usize = shapes.iter().map(|(rows, cols)| rows * cols).sum();
        let count = (share * total as f64) as usize;
        let (exact, kept) = by_sorting_together(&matrices, magnitude, count);
        prop_assert_eq!(kept, count.min(total));
        let mut words: Vec<Vec<u64>> = matrices.iter().map(|m| vec![u64::MAX; m.values.len().div_ceil(64)]).collect();
        let mut ours: Vec<Matrix<f32>> = matrices.iter().zip(&mut words).map(|(m, keep)| m.matrix(keep)).collect();
        prop_assert_eq!(select::cpu::keep_largest(&mut ours, magnitude, count), kept);
        for (matrix, padded) in ours.iter().zip(&matrices) {
            prop_assert_eq!(select::cpu::count_above(matrix, threshold), padded.above(threshold));
        }
        prop_assert_eq!(words, exact);
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

/// Scores, and which of them are kept, written down by hand.
pub struct Case {
    pub name: &'static str,
    pub scores: Vec<f32>,
    pub magnitude: bool,
    pub count: usize,
    pub kept: Vec<usize>,
}

/// The edges of a selection; every version is run on all of them.
pub fn cases() -> Vec<Case> {
    let case = |name, scores: &[f32], count, kept: &[usize]| Case {
        name,
        scores: scores.to_vec(),
        magnitude: false,
        count,
        kept: kept.to_vec(),
    };
    let of_size = |case: Case| Case { magnitude: true, ..case };
    let (mixed, zeros) = ([0.5, -3.0, 7.0, 0.0, 2.0], [-0.0, 0.0, -0.0, 0.0]);
    let first = |count: usize| (0..count).collect::<Vec<usize>>();
    vec![
        case("none", &mixed, 0, &[]),
        case("all", &mixed, 5, &first(5)),
        case("more than there are", &mixed, 9, &first(5)),
        case("one of several", &mixed, 1, &[2]),
        case("none of one", &[-1.0], 0, &[]),
        case("the only one", &[-1.0], 1, &[0]),
        case("of nothing", &[], 0, &[]),
        case("two of nothing", &[], 2, &[]),
        // After one step of Adam every score is about ± the learning rate.
        case("all equal", &[0.02; 100], 70, &first(70)),
        case("all equal, a whole word", &[0.02; 128], 64, &first(64)),
        case("all equal, none", &[0.02; 100], 0, &[]),
        case("all equal, all", &[0.02; 100], 100, &first(100)),
        case("a tie at the cut", &[1.0, 3.0, 2.0, 2.0, 0.0, 2.0, 3.0], 4, &[1, 2, 3, 6]),
        case("a tie just above the cut", &[1.0, 3.0, 2.0, 2.0, 0.0, 2.0, 3.0], 5, &[1, 2, 3, 5, 6]),
        case("zero is above minus zero", &zeros, 2, &[1, 3]),
        case("of minus zeros the first", &zeros, 3, &[0, 1, 3]),
        case("around zero", &[-1e-45, -0.0, 0.0, 1e-45], 2, &[2, 3]),
        case("the smallest of both signs", &[-1e-45, 1e-45, -0.0, 0.0], 3, &[1, 2, 3]),
        of_size(case("zeros have no sign", &zeros, 2, &[0, 1])),
        of_size(case("sizes tie whatever the sign", &[1.0, -2.0, 2.0, -2.0], 2, &[1, 2])),
        of_size(case("all of one size", &[-0.02; 100], 33, &first(33))),
    ]
}

impl Case {
    /// As a matrix of one row, and as one of a score a row with padding behind it.
    pub fn matrices(&self) -> [Padded; 2] {
        let dense = Padded {
            values: self.scores.clone(),
            cols: self.scores.len().max(1),
            ld: self.scores.len().max(1),
        };
        let mut values = vec![f32::INFINITY; 8 * self.scores.len()];
        values.iter_mut().step_by(8).zip(&self.scores).for_each(|(value, score)| *value = *score);
        [dense, Padded { values, cols: 1, ld: 8 }]
    }

    /// The bits of such a matrix.
    pub fn words(&self, matrix: &Padded) -> Vec<u64> {
        let mut words = vec![0; matrix.values.len().div_ceil(64)];
        let step = matrix.ld / matrix.cols;
        self.kept.iter().for_each(|i| words[i * step / 64] |= 1 << (i * step % 64));
        words
    }
}

#[test]
fn the_edges_of_a_selection() {
    for case in cases() {
        for padded in case.matrices() {
            let Padded { values, cols, ld } = &padded;
            let (expected, wide) = (case.words(&padded), wide(values));
            let mut keep = vec![u64::MAX; expected.len()];
            let mut sorted = [Matrix { scores: &wide, cols: *cols, ld: *ld, keep: &mut keep }];
            let kept = select::reference::keep_largest(&mut sorted, case.magnitude, case.count);
            assert_eq!((kept, &keep), (case.kept.len(), &expected), "reference: {}, rows of {ld}", case.name);
            let mut keep = vec![u64::MAX; expected.len()];
            let kept = select::cpu::keep_largest(&mut [padded.matrix(&mut keep)], case.magnitude, case.count);
            assert_eq!((kept, &keep), (case.kept.len(), &expected), "cpu: {}, rows of {ld}", case.name);
        }
    }
}
