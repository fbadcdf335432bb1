//! Products of BERT's shapes by our kernels and by the `gemm` crate; criterion's "elements" are floating-point operations, so
//! Gelem/s reads as GFLOP/s. For comparison with MKL, and on a shared machine, use the paired bench `peers`.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use secateur::ops::ViewMut;
use secateur::ops::gemm::{Epilogue, Factors, cpu};
use support::{PRODUCTS, random};

mod support;

fn products(criterion: &mut Criterion) {
    for product in PRODUCTS {
        let mut group = criterion.benchmark_group(product.name());
        group.throughput(Throughput::Elements(product.flop() as u64)).sample_size(10);
        let (a, b) = (random(product.m * product.k, 1), random(product.k * product.n, 2));
        let mut c = vec![0.0; product.m * product.n];
        group.bench_function("secateur", |bencher| {
            bencher.iter(|| {
                let mut c = ViewMut::dense(&mut c, product.m, product.n);
                let (a, b) = (product.a(&a), product.b(&b));
                cpu::gemm(a, product.transpose_a, b, product.transpose_b, &mut c, Epilogue::default());
            });
        });
        group.bench_function("secateur, bf16 factors", |bencher| {
            bencher.iter(|| {
                let mut c = ViewMut::dense(&mut c, product.m, product.n);
                let (a, b, none) = (product.a(&a), product.b(&b), Epilogue::default());
                let (ta, tb) = (product.transpose_a, product.transpose_b);
                cpu::gemm_of(Factors::Bf16, a, ta, b, tb, &mut c, none);
            });
        });
        group.bench_function("gemm crate", |bencher| bencher.iter(|| product.by_gemm_crate(&a, &b, &mut c)));
        group.finish();
    }
}

criterion_group!(benches, products);
criterion_main!(benches);
