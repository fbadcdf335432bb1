//! The f64 reference of each operation family against NumPy restatements and PyTorch autograd in f64.
//!
//! Both sides are f64 arithmetic of the same formulas in different orders, with sums of at most a few hundred
//! terms: |Δ| ≤ γ_2000·(largest magnitude that enters), with γ_2000 ≈ 2000·2⁻⁵³ ≈ 2.2e-13. The f32 kernels
//! are compared with this reference in `tests/kernels`.

use std::path::Path;

use safetensors::{Dtype, SafeTensors};
use secateur::ops::activation::{self, Activation};
use secateur::ops::optimizer::{self, AdamW, AdamWForm, bias_correction, clip_factor, linear_schedule};
use secateur::ops::{View, ViewMut, attention, loss, norm};

use crate::support::{reference, shared};

const GAMMA_2000: f64 = 2000.0 / (1u64 << 53) as f64;

/// A safetensors file in memory.
struct Fixture(Vec<u8>);

impl Fixture {
    fn committed(name: &str) -> Fixture {
        Fixture::read(&reference(&format!("optim_and_ops/{name}.safetensors")))
    }

    fn read(path: &Path) -> Fixture {
        Fixture(std::fs::read(path).unwrap())
    }

    fn bytes(&self, name: &str, dtype: Dtype) -> Vec<u8> {
        let tensors = SafeTensors::deserialize(&self.0).unwrap();
        let tensor = tensors.tensor(name).unwrap();
        assert_eq!(tensor.dtype(), dtype, "{name}");
        tensor.data().to_vec()
    }

    fn f64(&self, name: &str) -> Vec<f64> {
        let bytes = self.bytes(name, Dtype::F64);
        bytes.chunks_exact(8).map(|b| f64::from_le_bytes(b.try_into().unwrap())).collect()
    }

    fn i32(&self, name: &str) -> Vec<i32> {
        let bytes = self.bytes(name, Dtype::I32);
        bytes.chunks_exact(4).map(|b| i32::from_le_bytes(b.try_into().unwrap())).collect()
    }

    fn shape(&self, name: &str) -> Vec<usize> {
        SafeTensors::deserialize(&self.0).unwrap().tensor(name).unwrap().shape().to_vec()
    }

    /// Cases in the file: numbers n with a tensor `{prefix}{n}.{tensor}`.
    fn cases(&self, prefix: &str, tensor: &str) -> Vec<String> {
        let names = SafeTensors::deserialize(&self.0).unwrap();
        let cases: Vec<String> = (0..10)
            .map(|n| format!("{prefix}{n}"))
            .filter(|case| names.tensor(&format!("{case}.{tensor}")).is_ok())
            .collect();
        assert!(!cases.is_empty(), "no cases of {prefix}");
        cases
    }

    /// Asserts that `ours` is the tensor `name`, the largest magnitude being at least `magnitude`.
    fn assert_close(&self, name: &str, ours: &[f64], magnitude: f64) {
        let theirs = self.f64(name);
        assert_eq!(ours.len(), theirs.len(), "{name}");
        let largest = theirs.iter().fold(magnitude, |m, x| m.max(x.abs()));
        for (i, (a, b)) in ours.iter().zip(&theirs).enumerate() {
            assert!((a - b).abs() <= GAMMA_2000 * largest, "{name}[{i}]: {a} is not {b}");
        }
    }
}

#[test]
fn layer_norm_and_its_gradients_match_torch() {
    let file = Fixture::committed("layernorm");
    for case in file.cases("case", "x") {
        let get = |name: &str| file.f64(&format!("{case}.{name}"));
        let shape = file.shape(&format!("{case}.x"));
        let (rows, n) = (shape[0], shape[1]);
        let (x, gamma, beta, dy) = (get("x"), get("gamma"), get("beta"), get("dy"));
        let (mut y, mut mean, mut rstd) = (vec![f64::NAN; rows * n], vec![0.0; rows], vec![0.0; rows]);
        norm::reference::layer_norm(
            View::dense(&x, rows, n),
            &gamma,
            &beta,
            get("eps")[0],
            ViewMut::dense(&mut y, rows, n),
            &mut mean,
            &mut rstd,
        );
        let (mut dx, mut dgamma, mut dbeta) = (vec![f64::NAN; rows * n], vec![0.0; n], vec![0.0; n]);
        norm::reference::layer_norm_backward(
            View::dense(&dy, rows, n),
            View::dense(&x, rows, n),
            &gamma,
            &mean,
            &rstd,
            ViewMut::dense(&mut dx, rows, n),
            false,
            Some(&mut dgamma),
            Some(&mut dbeta),
        );
        // A single column has variance 0, so its rstd of 1/√ε is the largest number around.
        let largest = rstd.iter().fold(1.0, |m: f64, x| m.max(*x));
        for (name, ours) in
            [("y", &y), ("mean", &mean), ("rstd", &rstd), ("dx", &dx), ("dgamma", &dgamma), ("dbeta", &dbeta)]
        {
            file.assert_close(&format!("{case}.{name}"), ours, largest);
        }
    }
}

#[test]
fn activations_and_their_derivatives_match_torch() {
    let file = Fixture::committed("activation");
    let kinds = [
        ("gelu_erf", Activation::GeluErf),
        ("gelu_tanh", Activation::GeluTanh),
        ("relu", Activation::Relu),
        ("tanh", Activation::Tanh),
    ];
    for case in file.cases("case", "x") {
        let (x, dy) = (file.f64(&format!("{case}.x")), file.f64(&format!("{case}.dy")));
        for (name, kind) in kinds {
            let y: Vec<f64> = x.iter().map(|&x| activation::reference::value(kind, x)).collect();
            let dx: Vec<f64> =
                x.iter().zip(&dy).map(|(&x, dy)| dy * activation::reference::derivative(kind, x)).collect();
            file.assert_close(&format!("{case}.{name}"), &y, 1.0);
            file.assert_close(&format!("{case}.{name}_dx"), &dx, 1.0);
        }
    }
}

fn attention_matches(file: &Fixture) {
    for case in file.cases("case", "q") {
        let shape = file.shape(&format!("{case}.q"));
        let (rows, width) = (shape[0], shape[1]);
        let heads = file.i32(&format!("{case}.heads"))[0] as usize;
        let head_dim = width / heads;
        let cu_seqlens = file.i32(&format!("{case}.cu_seqlens"));
        let sequences = cu_seqlens.len() - 1;
        let [q, k, v, dout, mask] =
            ["q", "k", "v", "do", "head_mask"].map(|name| file.f64(&format!("{case}.{name}")));
        let scale = 1.0 / (head_dim as f64).sqrt();
        for (kind, causal, masked) in [
            ("full", false, false),
            ("causal", true, false),
            ("full_masked", false, true),
            ("causal_masked", true, true),
        ] {
            let head_mask = masked.then_some(&mask[..]);
            let mut buffers = vec![vec![f64::NAN; rows * width]; 5];
            let [out, unmasked, dq, dk, dv] = &mut buffers[..] else { unreachable!() };
            let mut lse = vec![f64::NAN; rows * heads];
            let mut dmask = vec![f64::NAN; sequences * heads];
            attention::reference::forward(
                View::dense(&q, rows, width),
                View::dense(&k, rows, width),
                View::dense(&v, rows, width),
                &cu_seqlens,
                heads,
                head_dim,
                scale,
                causal,
                head_mask,
                None,
                ViewMut::dense(out, rows, width),
                ViewMut::dense(&mut lse, rows, heads),
                Some(ViewMut::dense(unmasked, rows, width)),
            );
            attention::reference::backward(
                View::dense(&q, rows, width),
                View::dense(&k, rows, width),
                View::dense(&v, rows, width),
                View::dense(out, rows, width),
                View::dense(&dout, rows, width),
                None,
                View::dense(&lse, rows, heads),
                Some(View::dense(unmasked, rows, width)),
                &cu_seqlens,
                heads,
                head_dim,
                scale,
                causal,
                head_mask,
                None,
                ViewMut::dense(dq, rows, width),
                ViewMut::dense(dk, rows, width),
                ViewMut::dense(dv, rows, width),
                Some(ViewMut::dense(&mut dmask, sequences, heads)),
            );
            for (name, ours) in [("o", &*out), ("dq", dq), ("dk", dk), ("dv", dv)] {
                file.assert_close(&format!("{case}.{kind}.{name}"), ours, 1.0);
            }
            if masked {
                file.assert_close(&format!("{case}.{kind}.dmask_per_seq"), &dmask, 1.0);
                let total: Vec<f64> = (0..heads).map(|h| dmask.iter().skip(h).step_by(heads).sum()).collect();
                file.assert_close(&format!("{case}.{kind}.dmask"), &total, 1.0);
            } else {
                file.assert_close(&format!("{case}.{kind}.lse"), &lse, 1.0);
            }
        }
    }
}

#[test]
fn attention_and_its_gradients_match_torch() {
    attention_matches(&Fixture::committed("attention_small"));
}

#[test]
fn attention_and_its_gradients_match_torch_in_every_case() {
    if let Some(path) = shared("fixtures/optim_and_ops/attention.safetensors") {
        attention_matches(&Fixture::read(&path));
    }
}

#[test]
fn losses_and_their_gradients_match_torch() {
    let file = Fixture::committed("loss");
    for case in file.cases("ce", "logits") {
        let shape = file.shape(&format!("{case}.logits"));
        let (rows, classes) = (shape[0], shape[1]);
        let logits = file.f64(&format!("{case}.logits"));
        let labels = file.i32(&format!("{case}.labels"));
        // The mean over the rows that count.
        let counted = labels.iter().filter(|&&label| label >= 0).count();
        let weights: Vec<f64> = labels.iter().map(|_| 1.0 / counted as f64).collect();
        let (mut losses, mut dlogits) = (vec![f64::NAN; rows], vec![f64::NAN; rows * classes]);
        loss::reference::cross_entropy(
            View::dense(&logits, rows, classes),
            &labels,
            &weights,
            &mut losses,
            Some(ViewMut::dense(&mut dlogits, rows, classes)),
            false,
        );
        let total: f64 = losses.iter().zip(&weights).map(|(loss, weight)| loss * weight).sum();
        let largest = logits.iter().fold(1.0, |m: f64, z| m.max(z.abs()));
        file.assert_close(&format!("{case}.loss"), &[total], largest);
        file.assert_close(&format!("{case}.dlogits"), &dlogits, largest);
    }
    for case in file.cases("kl", "student") {
        let shape = file.shape(&format!("{case}.student"));
        let (rows, classes) = (shape[0], shape[1]);
        let [student, teacher] = ["student", "teacher"].map(|name| file.f64(&format!("{case}.{name}")));
        let weights = vec![1.0 / rows as f64; rows];
        let (mut losses, mut dstudent) = (vec![f64::NAN; rows], vec![f64::NAN; rows * classes]);
        loss::reference::distillation(
            View::dense(&student, rows, classes),
            View::dense(&teacher, rows, classes),
            2.0,
            &weights,
            &mut losses,
            Some(ViewMut::dense(&mut dstudent, rows, classes)),
            false,
        );
        let largest = student.iter().chain(&teacher).fold(1.0, |m: f64, z| m.max(z.abs()));
        file.assert_close(&format!("{case}.loss"), &[losses.iter().sum::<f64>() / rows as f64], largest);
        file.assert_close(&format!("{case}.dstudent"), &dstudent, largest);
    }
    for case in file.cases("mse", "x") {
        let (x, y) = (file.f64(&format!("{case}.x")), file.f64(&format!("{case}.y")));
        let weights = vec![1.0 / x.len() as f64; x.len()];
        let (mut losses, mut dx) = (vec![f64::NAN; x.len()], vec![f64::NAN; x.len()]);
        loss::reference::mean_squared_error(
            View::dense(&x, x.len(), 1),
            &y,
            &weights,
            &mut losses,
            Some(ViewMut::dense(&mut dx, x.len(), 1)),
            false,
        );
        file.assert_close(&format!("{case}.loss"), &[losses.iter().sum::<f64>() / x.len() as f64], 1.0);
        file.assert_close(&format!("{case}.dx"), &dx, 1.0);
    }
}

#[test]
fn adamw_matches_torch_over_four_steps() {
    let file = Fixture::committed("adamw");
    for case in file.cases("case", "param0") {
        let hyper = file.f64(&format!("{case}.hyper"));
        let [lr, beta1, beta2, eps, weight_decay, max_norm] = hyper[..] else { unreachable!() };
        let mut param = file.f64(&format!("{case}.param0"));
        let (mut m, mut v) = (vec![0.0; param.len()], vec![0.0; param.len()]);
        for step in 1..=4 {
            let grad = file.f64(&format!("{case}.grad{step}"));
            let settings = AdamW {
                lr,
                beta1,
                beta2,
                eps,
                weight_decay,
                bias_correction1: bias_correction(beta1, step),
                bias_correction2: bias_correction(beta2, step),
                clip_factor: clip_factor(max_norm, optimizer::reference::global_norm([&grad[..]])),
                form: AdamWForm::Torch,
            };
            optimizer::reference::adamw(&mut param, &grad, &mut m, &mut v, &settings, None);
            for (name, ours) in [("param", &param), ("m", &m), ("v", &v)] {
                file.assert_close(&format!("{case}.{name}{step}"), ours, 0.0);
            }
        }
    }
}

#[test]
fn the_linear_schedule_matches() {
    let file = Fixture::committed("adamw");
    let [warmup, total] = file.i32("linear.warmup_total")[..] else { unreachable!() };
    let steps = file.shape("linear.lr_factor")[0] as u64;
    let ours: Vec<f64> = (0..steps).map(|step| linear_schedule(step, warmup as u64, total as u64)).collect();
    file.assert_close("linear.lr_factor", &ours, 1.0);
}
