//! The operations beside the matrix products, at BERT-base sizes. Attention counts floating-point operations
//! (Gelem/s reads as GFLOP/s), the others bytes of memory traffic.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use secateur::ops::activation::{self, Activation};
use secateur::ops::dropout::{self, AppliedDropout, Dropout, DropoutKey};
use secateur::ops::optimizer::{self, AdamW, AdamWForm};
use secateur::ops::{View, ViewMut, attention, norm};

/// Tokens and hidden size of the memory-bound operations.
const SHAPE: (usize, usize) = (4096, 768);

/// Uniform in [-1, 1), from a linear congruential generator: random bits, but cheap.
fn random(count: usize, seed: u64) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / 8_388_608.0 - 1.0
    };
    (0..count).map(|_| next()).collect()
}

fn dropout_site() -> AppliedDropout {
    AppliedDropout { dropout: Dropout { probability: 0.1, site: 1 }, key: DropoutKey { seed: 1, draw: 2 } }
}

fn attention(criterion: &mut Criterion) {
    let (heads, head_dim) = (12, 64);
    let width = heads * head_dim;
    for (name, sequences, len, causal, dropout) in [
        ("32 of 128", 32, 128, false, None),
        ("32 of 128, dropout", 32, 128, false, Some(dropout_site())),
        ("11 of 384", 11, 384, false, None),
        ("4 of 512", 4, 512, false, None),
        ("4 of 512, causal", 4, 512, true, None),
        ("170 of 24", 170, 24, false, None),
    ] {
        let rows = sequences * len;
        let (qkv, dout) = (random(rows * 3 * width, 1), random(rows * width, 2));
        let cu_seqlens: Vec<i32> = (0..=sequences).map(|b| (b * len) as i32).collect();
        let third = |i| View::dense(&qkv, rows, 3 * width).cols_at(i * width, width);
        let (q, k, v) = (third(0), third(1), third(2));
        let (mut out, mut lse) = (vec![0.0; rows * width], vec![0.0; rows * heads]);
        let mut gradients = [vec![0.0; rows * width], vec![0.0; rows * width], vec![0.0; rows * width]];
        let scale = 1.0 / (head_dim as f32).sqrt();
        let flops = 4 * sequences * len * len * width / if causal { 2 } else { 1 };
        let mut group = criterion.benchmark_group(format!("attention {name}"));
        group.sample_size(20).throughput(Throughput::Elements(flops as u64));
        group.bench_function("forward", |bencher| {
            bencher.iter(|| {
                let out = ViewMut::dense(&mut out, rows, width);
                let lse = ViewMut::dense(&mut lse, rows, heads);
                attention::cpu::forward(
                    q,
                    k,
                    v,
                    &cu_seqlens,
                    heads,
                    head_dim,
                    scale,
                    causal,
                    None,
                    dropout,
                    out,
                    lse,
                    None,
                );
            });
        });
        group.throughput(Throughput::Elements(flops as u64 * 5 / 2));
        group.bench_function("backward", |bencher| {
            let (out, dout) = (View::dense(&out, rows, width), View::dense(&dout, rows, width));
            let lse = View::dense(&lse, rows, heads);
            bencher.iter(|| {
                let [dq, dk, dv] = gradients.each_mut().map(|x| ViewMut::dense(x, rows, width));
                attention::cpu::backward(
                    q,
                    k,
                    v,
                    out,
                    dout,
                    None,
                    lse,
                    None,
                    &cu_seqlens,
                    heads,
                    head_dim,
                    scale,
                    causal,
                    None,
                    dropout,
                    dq,
                    dk,
                    dv,
                    None,
                );
            });
        });
        group.finish();
    }
}

fn memory_bound(criterion: &mut Criterion) {
    let (rows, n) = SHAPE;
    let matrix = (rows * n * 4) as u64;
    let (x, dy, weight) = (random(rows * n, 1), random(rows * n, 2), random(n, 3));
    let (mut y, mut mean, mut rstd) = (vec![0.0; rows * n], vec![0.0; rows], vec![0.0; rows]);
    let (mut dgamma, mut dbeta) = (vec![0.0; n], vec![0.0; n]);
    let (x_view, dy_view) = (View::dense(&x, rows, n), View::dense(&dy, rows, n));
    let mut group = criterion.benchmark_group("4096 x 768");
    group.sample_size(20);

    group.throughput(Throughput::Bytes(2 * matrix));
    group.bench_function("layer norm forward", |bencher| {
        bencher.iter(|| {
            let y = ViewMut::dense(&mut y, rows, n);
            norm::cpu::layer_norm(x_view, &weight, &weight, 1e-5, y, &mut mean, &mut rstd);
        });
    });
    group.throughput(Throughput::Bytes(3 * matrix));
    group.bench_function("layer norm backward", |bencher| {
        bencher.iter(|| {
            let dx = ViewMut::dense(&mut y, rows, n);
            let (dgamma, dbeta) = (Some(&mut dgamma[..]), Some(&mut dbeta[..]));
            norm::cpu::layer_norm_backward(dy_view, x_view, &weight, &mean, &rstd, dx, false, dgamma, dbeta);
        });
    });
    for kind in [Activation::GeluErf, Activation::GeluTanh] {
        group.throughput(Throughput::Bytes(2 * matrix));
        group.bench_function(format!("{kind:?} forward"), |bencher| {
            bencher.iter(|| activation::cpu::forward(kind, x_view, None, ViewMut::dense(&mut y, rows, n)));
        });
        group.throughput(Throughput::Bytes(3 * matrix));
        group.bench_function(format!("{kind:?} backward"), |bencher| {
            bencher.iter(|| {
                let dx = ViewMut::dense(&mut y, rows, n);
                activation::cpu::backward(kind, dy_view, x_view, None, dx, false, None);
            });
        });
    }
    group.throughput(Throughput::Bytes(2 * matrix));
    group.bench_function("dropout", |bencher| {
        bencher.iter(|| dropout::cpu::dropout(x_view, ViewMut::dense(&mut y, rows, n), dropout_site()));
    });
    let settings = AdamW {
        lr: 1e-4,
        beta1: 0.9,
        beta2: 0.999,
        eps: 1e-8,
        weight_decay: 0.01,
        bias_correction1: 0.1,
        bias_correction2: 0.001,
        clip_factor: 0.5,
        form: AdamWForm::Torch,
    };
    let (mut param, mut m, mut v) = (x.clone(), vec![0.0; rows * n], vec![0.0; rows * n]);
    group.throughput(Throughput::Bytes(7 * matrix));
    group.bench_function("AdamW", |bencher| {
        bencher.iter(|| optimizer::cpu::adamw(&mut param, &dy, &mut m, &mut v, &settings, None));
    });
    group.finish();
}

criterion_group!(benches, attention, memory_bound);
criterion_main!(benches);
