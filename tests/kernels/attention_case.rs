//! A call of attention, what it gives exactly, and how far from that an implementation may be.
//!
//! The CPU's tests and the kernels' share it. Bounds are of first order and propagated through the softmax from the roundings
//! that an implementation states ([`Rounding`]); nothing in them is fitted to results.

use secateur::ops::ViewMut;
use secateur::ops::attention::{cpu, reference};
use secateur::ops::dropout::{AppliedDropout, Dropout, DropoutKey};

use crate::common::{Matrix, Random, U, Wide, gamma, wide};

/// What one call is given.
#[derive(Clone, Debug)]
pub struct Case {
    /// q, k and v side by side, as a fused projection leaves them.
    pub qkv: Matrix,
    pub dout: Matrix,
    /// Of each sequence the only token whose `dout` is not zero.
    pub answers: Option<Vec<i32>>,
    pub cu_seqlens: Vec<i32>,
    pub heads: usize,
    pub head_dim: usize,
    pub causal: bool,
    pub mask: Option<Vec<f32>>,
    pub dropout: Option<AppliedDropout>,
    pub want_mask_gradient: bool,
}

/// Everything forward and backward wrote.
#[derive(Clone, Debug)]
pub struct Results<M> {
    pub out: M,
    pub lse: M,
    pub unmasked: Option<M>,
    pub dq: M,
    pub dk: M,
    pub dv: M,
    pub dmask: Option<M>,
}

/// Where an implementation rounds, beyond what every one of them does.
#[derive(Clone, Copy, Debug)]
pub struct Rounding {
    /// Unit roundoff of what is stored and of probabilities and score gradients as factors of products, beyond f32.
    pub stored: f64,
    /// Roundings of one step of an inner product: 2 where sums are truncated, as tensor cores may.
    pub product: usize,
    /// Keys between two corrections of the running maximum, each of which costs another exponential; `None` where the
    /// maximum of a whole row comes first.
    pub streamed: Option<usize>,
    /// Probabilities below this may become 0.
    pub underflow: f64,
}

impl Rounding {
    /// The CPU's.
    pub const WHOLE_ROWS: Rounding = Rounding { stored: 0.0, product: 1, streamed: None, underflow: 0.0 };

    /// Most roundings, in units of U, of the corrected exponent of a row of `terms` keys whose scores are up to `range`.
    fn exponents(&self, terms: usize, range: f64) -> f64 {
        // One exponential: the factor log₂e·scale, the product with it, the offset, the difference; 2 ulp of 2^x.
        self.streamed.map_or(0.0, |keys| (terms.div_ceil(keys) + 1) as f64 * (6.0 * range + 8.0))
    }

    /// Roundings of the log-sum in an exponent: of its product with log₂e too, where that is taken apart.
    fn log_sums(&self) -> f64 {
        self.streamed.map_or(1.0, |_| 4.0)
    }

    /// Length of the longest chain of a row's sum of exponentials.
    fn row_sum(&self, terms: usize) -> usize {
        // 16 keys of a thread, then a product and a sum for each step, then the threads of a row.
        self.streamed.map_or(terms.div_ceil(32) + 6, |keys| 22 + 3 * terms.div_ceil(keys))
    }
}

impl Case {
    pub fn random(
        random: &mut Random,
        sequences: usize,
        longest: usize,
        heads: usize,
        head_dim: usize,
    ) -> Case {
        let cu_seqlens = random.cu_seqlens(sequences, longest);
        let (rows, width) = (cu_seqlens[sequences] as usize, heads * head_dim);
        let mask = match random.below(4) {
            0 => None,
            1 => Some(vec![0.0; heads]),
            _ => Some(random.mask(heads)),
        };
        let applied = AppliedDropout {
            dropout: Dropout { probability: 0.25, site: 3 },
            key: DropoutKey { seed: random.next(), draw: 9 },
        };
        let mut dout = Matrix::random(random, rows, width, 1, 1.0);
        let mut answer = |pair: &[i32]| pair[0] + random.below((pair[1] - pair[0]).max(1) as usize) as i32;
        let answers: Vec<i32> = cu_seqlens.windows(2).map(&mut answer).collect();
        let answers = (random.below(3) == 0).then_some(answers);
        for (pair, answer) in cu_seqlens.windows(2).zip(answers.iter().flatten()) {
            let others = (pair[0]..pair[1]).filter(|row| row != answer);
            others.for_each(|row| dout.view_mut().row_mut(row as usize).fill(0.0));
        }
        Case {
            qkv: Matrix::random(random, rows, 3 * width, 2, 2.0),
            dout,
            answers,
            cu_seqlens,
            heads,
            head_dim,
            causal: random.below(2) == 0,
            mask,
            dropout: (random.below(2) == 0).then_some(applied),
            want_mask_gradient: random.below(2) == 0,
        }
    }

    pub fn rows(&self) -> usize {
        self.cu_seqlens[self.cu_seqlens.len() - 1] as usize
    }
    pub fn width(&self) -> usize {
        self.heads * self.head_dim
    }
    pub fn scale(&self) -> f32 {
        1.0 / (self.head_dim as f32).sqrt()
    }
    pub fn sequences(&self) -> usize {
        self.cu_seqlens.len() - 1
    }

    pub fn run(&self) -> Results<Matrix> {
        let (rows, width) = (self.rows(), self.width());
        let third = |i| self.qkv.view().cols_at(i * width, width);
        let mut out = Matrix::poisoned(rows, width, 3);
        let mut lse = Matrix::poisoned(rows, self.heads, 1);
        let mut unmasked = self.want_mask_gradient.then(|| Matrix::poisoned(rows, width, 0));
        cpu::forward(
            third(0),
            third(1),
            third(2),
            &self.cu_seqlens,
            self.heads,
            self.head_dim,
            self.scale(),
            self.causal,
            self.mask.as_deref(),
            self.dropout,
            out.view_mut(),
            lse.view_mut(),
            unmasked.as_mut().map(Matrix::view_mut),
        );
        // The gradients are thirds of one buffer whose rows interleave, as the fused projection wants them.
        let mut dqkv = vec![f32::NAN; rows * 3 * width];
        let mut dmask = self.want_mask_gradient.then(|| Matrix::poisoned(self.sequences(), self.heads, 2));
        let start = dqkv.as_mut_ptr();
        // SAFETY: the thirds share no element, and the buffer outlives the call.
        let [dq, dk, dv] = [0, 1, 2]
            .map(|i| unsafe { ViewMut::from_raw(start.wrapping_add(i * width), rows, width, 3 * width) });
        cpu::backward(
            third(0),
            third(1),
            third(2),
            out.view(),
            self.dout.view(),
            self.answers.as_deref(),
            lse.view(),
            unmasked.as_ref().map(Matrix::view),
            &self.cu_seqlens,
            self.heads,
            self.head_dim,
            self.scale(),
            self.causal,
            self.mask.as_deref(),
            self.dropout,
            dq,
            dk,
            dv,
            dmask.as_mut().map(Matrix::view_mut),
        );
        let gradient = |i: usize| {
            let mut part = Matrix::poisoned(rows, width, 0);
            for t in 0..rows {
                part.view_mut().row_mut(t).copy_from_slice(&dqkv[(3 * t + i) * width..][..width]);
            }
            part
        };
        Results { out, lse, unmasked, dq: gradient(0), dk: gradient(1), dv: gradient(2), dmask }
    }

    pub fn exact(&self) -> Results<Wide> {
        let qkv = self.qkv.wide();
        self.exact_with(&qkv, self.mask.as_deref().map(wide).as_deref())
    }

    /// The reference of all queries, with q, k, v and the mask replaced.
    pub fn exact_with(&self, qkv: &Wide, mask: Option<&[f64]>) -> Results<Wide> {
        self.exact_of(qkv, mask, None)
    }

    /// The same, of the queries of `answers` alone where given.
    pub fn exact_of(&self, qkv: &Wide, mask: Option<&[f64]>, answers: Option<&[i32]>) -> Results<Wide> {
        let (rows, width) = (self.rows(), self.width());
        let third = |i| qkv.view().cols_at(i * width, width);
        let (dout, scale) = (self.dout.wide(), f64::from(self.scale()));
        let mut out = Wide::poisoned(rows, width);
        let mut lse = Wide::poisoned(rows, self.heads);
        let mut unmasked = self.want_mask_gradient.then(|| Wide::poisoned(rows, width));
        reference::forward(
            third(0),
            third(1),
            third(2),
            &self.cu_seqlens,
            self.heads,
            self.head_dim,
            scale,
            self.causal,
            mask,
            self.dropout,
            out.view_mut(),
            lse.view_mut(),
            unmasked.as_mut().map(Wide::view_mut),
        );
        let mut gradients = vec![Wide::poisoned(rows, width); 3];
        let [dq, dk, dv] = &mut gradients[..] else { unreachable!() };
        let mut dmask = self.want_mask_gradient.then(|| Wide::poisoned(self.sequences(), self.heads));
        reference::backward(
            third(0),
            third(1),
            third(2),
            out.view(),
            dout.view(),
            answers,
            lse.view(),
            unmasked.as_ref().map(Wide::view),
            &self.cu_seqlens,
            self.heads,
            self.head_dim,
            scale,
            self.causal,
            mask,
            self.dropout,
            dq.view_mut(),
            dk.view_mut(),
            dv.view_mut(),
            dmask.as_mut().map(Wide::view_mut),
        );
        let [dq, dk, dv] = <[Wide; 3]>::try_from(gradients).unwrap();
        Results { out, lse, unmasked, dq, dk, dv, dmask }
    }

    /// First-order error bounds of everything `run` writes, with 1 % for the higher orders.
    pub fn bounds(&self, exact: &Results<Wide>, rounding: Rounding) -> Results<Wide> {
        let (rows, width, dim) = (self.rows(), self.width(), self.head_dim);
        let Rounding { stored, product, underflow, .. } = rounding;
        let qkv = self.qkv.wide();
        let dout = self.dout.wide();
        let scale = f64::from(self.scale());
        let zeros = || Wide::zeros(rows, width);
        let (mut out, mut unmasked, mut dq, mut dk, mut dv) = (zeros(), zeros(), zeros(), zeros(), zeros());
        let mut lse = Wide::zeros(rows, self.heads);
        let mut dmask = Wide::zeros(self.sequences(), self.heads);
        for b in 0..self.sequences() {
            let (start, end) = (self.cu_seqlens[b] as usize, self.cu_seqlens[b + 1] as usize);
            let terms = end - start;
            for h in 0..self.heads {
                let mask = self.mask.as_ref().map_or(1.0, |mask| f64::from(mask[h]).abs());
                let q = |t: usize, j: usize| qkv.at(t, h * dim + j);
                let k = |t: usize, j: usize| qkv.at(t, width + h * dim + j);
                let v = |t: usize, j: usize| qkv.at(t, 2 * width + h * dim + j);
                let g = |t: usize, j: usize| mask * dout.at(t, h * dim + j);
                for t in start..end {
                    let keys = start..if self.causal { t + 1 } else { end };
                    let score = |key| scale * (0..dim).map(|j| q(t, j) * k(key, j)).sum::<f64>();
                    let size = |key| scale * (0..dim).map(|j| (q(t, j) * k(key, j)).abs()).sum::<f64>();
                    let scores: Vec<f64> = keys.clone().map(score).collect();
                    let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                    let log_sum = max + scores.iter().map(|s| (s - max).exp()).sum::<f64>().ln();
                    let p: Vec<f64> = scores.iter().map(|s| (s - log_sum).exp()).collect();
                    // A score: the product, the scaling of q, the subtraction of the maximum, exp itself.
                    let range = scores.iter().fold(max.abs(), |m, s| m.max(s.abs()));
                    let delta =
                        keys.clone().map(|key| gamma(product * dim + 2) * size(key)).fold(0.0, f64::max)
                            + U * (2.0 * range + 4.0 + rounding.exponents(terms, range));
                    let sum_error = delta + gamma(rounding.row_sum(terms));
                    let lse_error = sum_error + U * (2.0 * log_sum.abs() + 2.0 * (terms as f64).ln() + 2.0);
                    lse.data[t * self.heads + h] = 1.01 * lse_error;
                    let mut factors = vec![1.0; p.len()];
                    if let Some(dropout) = self.dropout {
                        dropout.scale_row_f64(t * self.heads + h, 0, &mut factors);
                    }
                    let weights: Vec<f64> = p.iter().zip(&factors).map(|(p, f)| p * f).collect();
                    let mut mean_error = 0.0;
                    let mut mean_size = 0.0;
                    for j in 0..dim {
                        let sizes: f64 = keys.clone().zip(&weights).map(|(key, w)| w * v(key, j).abs()).sum();
                        let lost = |(key, f): (usize, &f64)| underflow * f * v(key, j).abs();
                        let error =
                            1.01 * (delta + sum_error + gamma(product * terms + 6) + 2.0 * stored) * sizes
                                + keys.clone().zip(&factors).map(lost).sum::<f64>();
                        unmasked.data[t * width + h * dim + j] = error;
                        out.data[t * width + h * dim + j] = mask * (error + 2.0 * U * sizes);
                        mean_error += g(t, j).abs() * (error + (gamma(dim) + 2.0 * U) * sizes);
                        mean_size += g(t, j).abs() * sizes;
                        dmask.data[b * self.heads + h] += dout.at(t, h * dim + j).abs()
                            * (error + 1.01 * gamma(row_terms(dim) + terms) * sizes);
                    }
                    let p_error = delta + lse_error + U * (rounding.log_sums() * log_sum.abs() + range);
                    for (i, key) in keys.enumerate() {
                        let dp_size: f64 =
                            factors[i] * (0..dim).map(|j| (g(t, j) * v(key, j)).abs()).sum::<f64>();
                        let ds_size = p[i] * (dp_size + mean_size);
                        let ds_error = p[i] * (gamma(product * dim + 4) * dp_size + mean_error)
                            + (p_error + 4.0 * U + 2.0 * stored) * ds_size
                            + underflow * (dp_size + mean_size);
                        for j in 0..dim {
                            let (at_t, at_key) = (t * width + h * dim + j, key * width + h * dim + j);
                            let error = 1.01 * scale * (ds_error + gamma(product * terms + 3) * ds_size);
                            dq.data[at_t] += error * k(key, j).abs();
                            dk.data[at_key] += error * q(t, j).abs();
                            let relative = 1.01 * (p_error + gamma(product * terms + 5) + 2.0 * stored);
                            dv.data[at_key] +=
                                (weights[i] * relative + underflow * factors[i]) * g(t, j).abs();
                        }
                    }
                }
            }
        }
        let wanted = |m| exact.unmasked.as_ref().map(|_| m);
        Results {
            out,
            lse,
            unmasked: wanted(unmasked),
            dq,
            dk,
            dv,
            dmask: exact.dmask.as_ref().map(|_| dmask),
        }
    }

    /// Asserts everything within its bound.
    pub fn check(&self, results: &Results<Matrix>, rounding: Rounding) {
        let exact = self.exact();
        let bounds = self.bounds(&exact, rounding);
        let all = [
            ("out", &results.out, &exact.out, &bounds.out),
            ("lse", &results.lse, &exact.lse, &bounds.lse),
            ("dq", &results.dq, &exact.dq, &bounds.dq),
            ("dk", &results.dk, &exact.dk, &bounds.dk),
            ("dv", &results.dv, &exact.dv, &bounds.dv),
        ];
        for (name, ours, exact, bound) in all {
            ours.assert_within(name, exact, |r, c| bound.at(r, c));
        }
        if let (Some(ours), Some(exact), Some(bound)) = (&results.unmasked, &exact.unmasked, &bounds.unmasked)
        {
            ours.assert_within("unmasked", exact, |r, c| bound.at(r, c));
        }
        if let (Some(ours), Some(exact), Some(bound)) = (&results.dmask, &exact.dmask, &bounds.dmask) {
            ours.assert_within("dmask", exact, |r, c| bound.at(r, c));
        }
    }
}

fn row_terms(dim: usize) -> usize {
    dim.div_ceil(32) + 8
}

pub fn bits(results: &Results<Matrix>) -> Vec<u32> {
    let Results { out, lse, unmasked, dq, dk, dv, dmask } = results;
    let always = [out, lse, dq, dk, dv].into_iter();
    always.chain(unmasked).chain(dmask).flat_map(Matrix::bits).collect()
}
