//! A frozen BERT-base from one task's weight masks to another's (85 million weights, 10.6 MB of bits), and how masks are
//! packed. Goal: a switch in less than 50 ms on two cores.

use std::hint::black_box;
use std::time::Duration;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use secateur::bench::{Shape, random_masks};
use secateur::export::packed;
use secateur::session::{Device, Session};

fn masks(criterion: &mut Criterion) {
    let model = Shape::BertBase.model(1).expect("a model");
    let tasks = [random_masks(&model, 1).expect("masks"), random_masks(&model, 2).expect("masks")];
    let mut group = criterion.benchmark_group("weight masks of BERT-base");
    group
        .sample_size(20)
        .warm_up_time(Duration::from_secs(1))
        .throughput(Throughput::Elements(tasks[0].total() as u64));
    group.bench_function("pack as released", |bencher| {
        bencher.iter(|| packed::encode(black_box(&tasks[0]), &model.architecture).expect("a file"));
    });
    let file = packed::encode(&tasks[0], &model.architecture).expect("a file");
    group.bench_function("unpack", |bencher| {
        bencher.iter(|| {
            packed::decode("masks.npy".as_ref(), black_box(&file), &model.architecture).expect("masks")
        });
    });
    let mut session = Session::frozen(model, Device::Cpu).expect("a session");
    let mut turn = 0;
    group.bench_function("switch", |bencher| {
        bencher.iter(|| {
            turn += 1;
            session.apply_weight_masks(black_box(&tasks[turn % 2])).expect("masks of this model");
        });
    });
    group.finish();
}

criterion_group!(benches, masks);
criterion_main!(benches);
