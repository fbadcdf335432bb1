//! The optimiser kernels on a device (emulated, or a GPU) over a block with gaps, frozen ranges and vectors.

use std::ops::Range;

use proptest::prelude::*;
use secateur::launch::ElementType::Bf16;
use secateur::launch::Pointer;
use secateur::ops::optimizer::cuda::{Blocks, PieceTable, Pieces};
use secateur::ops::optimizer::{AdamW, AdamWForm, bias_correction, clip_factor, cuda, reference};

use crate::common::{Random, U, assert_within, gamma, wide};
use crate::support::device::TestDevice;

/// One parameter of the block: where, whether a vector, whether trained.
#[derive(Clone, Debug)]
struct Parameter {
    range: Range<usize>,
    vector: bool,
    trained: bool,
}

/// A layout as the program makes them: starts on multiples of 64, lengths multiples of 8; and the block's length.
fn layout(random: &mut Random, count: usize, longest: usize) -> (Vec<Parameter>, usize) {
    let mut len = 0;
    let parameters = (0..count)
        .map(|_| {
            let start = len;
            let span = 8 * random.below(longest / 8 + 1);
            len += span.next_multiple_of(64);
            Parameter {
                range: start..start + span,
                vector: random.below(3) == 0,
                trained: random.below(4) != 0,
            }
        })
        .collect();
    (parameters, len)
}

fn trained(parameters: &[Parameter]) -> impl Iterator<Item = &Parameter> {
    parameters.iter().filter(|p| p.trained)
}

fn upload(device: &mut TestDevice, parameters: &[Parameter]) -> Pieces {
    let table = PieceTable::new(trained(parameters).map(|p| (p.range.clone(), p.vector)));
    let lengths: Vec<i32> = table.lengths.iter().map(|&n| n as i32).collect();
    let lengths = Pointer::new(device.ints(&lengths).address);
    table.on_device(device.words(&table.starts), lengths)
}

fn check_step(seed: u64, count: usize, longest: usize, step: u64, form: AdamWForm, masked: bool, clip: f32) {
    let random = &mut Random(seed);
    let (parameters, len) = layout(random, count, longest);
    let (param, grad, m) = (random.values(len, 1.0), random.values(len, 0.1), random.values(len, 0.1));
    let v: Vec<f32> = random.values(len, 0.1).iter().map(|x| x * x).collect();
    let keep: Option<Vec<u64>> = masked.then(|| (0..len.div_ceil(64)).map(|_| random.next()).collect());
    // As the executor has them: f32.
    let hyper: Vec<f32> =
        [2e-3, 0.9, 0.999, 1e-8, 0.01, bias_correction(0.9, step), bias_correction(0.999, step)]
            .map(|x| x as f32)
            .into();
    let settings = AdamW {
        lr: f64::from(hyper[0]),
        beta1: f64::from(hyper[1]),
        beta2: f64::from(hyper[2]),
        eps: f64::from(hyper[3]),
        weight_decay: 0.0,
        bias_correction1: f64::from(hyper[5]),
        bias_correction2: f64::from(hyper[6]),
        clip_factor: f64::from(clip),
        form,
    };
    let (mut exact_p, mut exact_m, mut exact_v) = (wide(&param), wide(&m), wide(&v));
    for Parameter { range, vector, .. } in trained(&parameters) {
        let weight_decay = if *vector { 0.0 } else { f64::from(hyper[4]) };
        // Ranges start on words of the bit set.
        let keep = keep.as_deref().map(|keep| &keep[range.start / 64..]);
        let [p, m, v] = [&mut exact_p, &mut exact_m, &mut exact_v].map(|block| &mut block[range.clone()]);
        reference::adamw(p, &wide(&grad[range.clone()]), m, v, &AdamW { weight_decay, ..settings }, keep);
    }

    let mut device = TestDevice::new();
    let pieces = upload(&mut device, &parameters);
    let copy = device.matrix(1, len, &vec![-7.0; len], Bf16);
    let blocks = Blocks {
        parameters: device.floats(&param),
        gradients: device.floats(&grad),
        first_moment: device.floats(&m),
        second_moment: device.floats(&v),
        copy: copy.bf16(),
        keep: keep.as_ref().map_or(Pointer::NULL, |keep| device.words(keep)),
    };
    let (on_hyper, on_norm) = (device.floats(&hyper), device.floats(&[f32::NAN, clip]));
    device.run(|queue| cuda::adamw(queue, blocks, pieces, form, on_hyper, on_norm));
    let [new_p, new_m, new_v] = [blocks.parameters, blocks.first_moment, blocks.second_moment]
        .map(|block| device.read_floats(block, len));
    let m_error = |i: usize| gamma(5) * (0.9 * f64::from(m[i]).abs() + 0.1 * f64::from(clip * grad[i]).abs());
    assert_within("m", &new_m, &exact_m, m_error);
    assert_within("v", &new_v, &exact_v, |i| gamma(7) * exact_v[i]);
    assert_within("p", &new_p, &exact_p, |i| {
        // The update: rate·m/(root·√v + ε); the root halves the relative error of v.
        let (rate, root) = match form {
            AdamWForm::Torch => {
                (settings.lr / settings.bias_correction1, settings.bias_correction2.sqrt().recip())
            }
            AdamWForm::HuggingFaceUncorrected => {
                (settings.lr * settings.bias_correction2.sqrt() / settings.bias_correction1, 1.0)
            }
        };
        let denominator = root * exact_v[i].sqrt() + settings.eps;
        let update = rate * exact_m[i].abs() / denominator;
        1.01 * (rate * m_error(i) / denominator + gamma(12) * update)
            + 4.0 * U * (f64::from(param[i]).abs() + update)
    });
    // Gaps and frozen parameters keep their bits; the copy is the rounded weight where there was an update.
    let new_copy = device.read(&copy);
    let mut updated = vec![false; len];
    trained(&parameters).for_each(|p| updated[p.range.clone()].fill(true));
    for i in 0..len {
        if updated[i] {
            assert_eq!(new_copy[i], half::bf16::from_f32(new_p[i]).to_f32(), "copy of {i}");
            let kept = keep.as_ref().is_none_or(|keep| keep[i / 64] >> (i % 64) & 1 == 1);
            assert!(kept || (new_p[i], new_m[i], new_v[i]) == (0.0, 0.0, 0.0), "{i} is masked");
        } else {
            assert_eq!(
                (new_p[i], new_m[i], new_v[i], new_copy[i]),
                (param[i], m[i], v[i], -7.0),
                "{i} is not trained"
            );
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn a_step_on_a_device_matches_the_reference(seed: u64, count in 0usize..8, longest in prop_oneof![4 => Just(800usize), 1 => Just(18_000)], step in 1u64..1000, hugging_face: bool, masked: bool, clip in 0.01f32..1.0) {
        let form = if hugging_face { AdamWForm::HuggingFaceUncorrected } else { AdamWForm::Torch };
        check_step(seed, count, longest, step, form, masked, clip);
    }

    #[test]
    fn the_norm_on_a_device_is_exact_to_one_rounding(seed: u64, count in 0usize..8, longest in prop_oneof![Just(800usize), Just(18_000)], scale in prop_oneof![Just(1e-3f32), Just(1e-30), Just(1e30)], max_norm in 0.01f32..2.0) {
        let random = &mut Random(seed);
        let (parameters, len) = layout(random, count, longest);
        let grad = random.values(len, scale);
        let wide_grad = wide(&grad);
        let blocks: Vec<&[f64]> = trained(&parameters).map(|p| &wide_grad[p.range.clone()]).collect();
        let exact = reference::global_norm(blocks.iter().copied());
        let mut device = TestDevice::new();
        let pieces = upload(&mut device, &parameters);
        let (gradients, norm) = (device.floats(&grad), device.output_floats(2));
        device.run(|queue| cuda::clip_factor(queue, &[(gradients, pieces)], max_norm, norm));
        let found = device.read_floats(norm, 2);
        // The sum is in f64; storing rounds once.
        let bound = 1.01 * U;
        assert_within("norm", &found[..1], &[exact], |_| bound * exact);
        let factor = clip_factor(f64::from(max_norm), exact);
        assert_within("factor", &found[1..], &[factor], |_| bound * factor);
    }
}
