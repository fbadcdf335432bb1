//! A search for the λ at which a threshold method keeps the fraction asked for.
//!
//! Soft movement and L0 choose what survives by a threshold, so the fraction follows from the weight of the regulariser,
//! and only after a training. More weight keeps less: from the published λ the search goes up or down by factors of 4
//! until the fraction is enclosed, then halves the interval, in logarithms.

/// The trials so far.
#[derive(Clone, Debug, PartialEq)]
pub struct LambdaSearch {
    target: f64,
    tolerance: f64,
    most: usize,
    start: f64,
    /// λ and fraction kept of each trial.
    trials: Vec<(f64, f64)>,
}

/// Factor between two trials while the target is not enclosed.
const STRIDE: f64 = 4.0;

impl LambdaSearch {
    /// A search for `target` that begins at λ = `start`, ends within `tolerance`·`target` of it, or after `most` trials.
    pub fn new(target: f64, tolerance: f64, start: f64, most: usize) -> LambdaSearch {
        LambdaSearch { target, tolerance, most, start, trials: Vec::new() }
    }

    /// λ of the next trial; `None` when the search has ended.
    pub fn next_lambda(&self) -> Option<f64> {
        if self.trials.is_empty() {
            return Some(self.start);
        }
        let (_, (_, kept)) = self.best()?;
        if self.trials.len() >= self.most || (kept - self.target).abs() <= self.tolerance * self.target {
            return None;
        }
        let too_many = self.trials.iter().filter(|(_, kept)| *kept > self.target).map(|(lambda, _)| *lambda);
        let too_few = self.trials.iter().filter(|(_, kept)| *kept <= self.target).map(|(lambda, _)| *lambda);
        let (low, high) = (too_many.fold(f64::NEG_INFINITY, f64::max), too_few.fold(f64::INFINITY, f64::min));
        Some(match (low.is_finite(), high.is_finite()) {
            (true, true) => (low * high).sqrt(),
            (true, false) => low * STRIDE,
            _ => high / STRIDE,
        })
    }

    /// Notes the fraction that a trial kept.
    pub fn record(&mut self, lambda: f64, kept: f64) {
        self.trials.push((lambda, kept));
    }

    /// Number, λ and fraction of the trial nearest to the target, the earlier of equals.
    pub fn best(&self) -> Option<(usize, (f64, f64))> {
        let distance = |trial: &(f64, f64)| (trial.1 - self.target).abs();
        self.trials.iter().copied().enumerate().min_by(|a, b| distance(&a.1).total_cmp(&distance(&b.1)))
    }

    /// All trials.
    pub fn trials(&self) -> &[(f64, f64)] {
        &self.trials
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A fraction that falls from 1 towards 0 with λ.
    fn kept(lambda: f64) -> f64 {
        1.0 / (1.0 + lambda / 40.0)
    }

    #[test]
    fn a_fraction_between_two_weights_is_found() {
        for (target, start) in [(0.1, 1.0), (0.1, 1e5), (0.5, 40.0), (0.03, 400.0)] {
            let mut search = LambdaSearch::new(target, 0.02, start, 40);
            while let Some(lambda) = search.next_lambda() {
                search.record(lambda, kept(lambda));
            }
            let (_, (_, found)) = search.best().unwrap();
            assert!((found - target).abs() <= 0.02 * target, "{target}: {search:?}");
        }
        let mut search = LambdaSearch::new(0.1, 0.0, 1.0, 3);
        while let Some(lambda) = search.next_lambda() {
            search.record(lambda, kept(lambda));
        }
        assert_eq!(search.trials().len(), 3);
    }
}
