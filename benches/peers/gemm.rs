//! Products of BERT's shapes, plain and with the epilogue of the feed-forward block; thin ones.

use crate::contest::{Entry, Peer, Workload};
use crate::support::{PRODUCTS, Product, random};
use secateur::ops::ViewMut;
use secateur::ops::activation::Activation;
use secateur::ops::gemm::{Epilogue, cpu};
use std::cell::RefCell;
use std::rc::Rc;

/// The smaller ones: one sentence, one token, a question-answering head and its gradient.
const SMALL: [Product; 6] = [
    Product { transpose_a: false, transpose_b: true, m: 128, n: 768, k: 768 },
    Product { transpose_a: false, transpose_b: true, m: 16, n: 3072, k: 768 },
    Product { transpose_a: false, transpose_b: true, m: 1, n: 3072, k: 768 },
    Product { transpose_a: false, transpose_b: false, m: 1, n: 768, k: 3072 },
    Product { transpose_a: false, transpose_b: true, m: 4096, n: 2, k: 768 },
    Product { transpose_a: true, transpose_b: false, m: 2, n: 768, k: 4096 },
];

pub fn entries() -> impl Iterator<Item = Entry> {
    let entry = |product: Product, asked| Entry {
        name: format!("gemm {}", product.name()),
        build: Box::new(move || self::product(product, asked)),
    };
    let linear = |(m, n, k)| Entry {
        name: format!("linear-gelu {m} {n} {k}"),
        build: Box::new(move || linear_gelu(m, n, k)),
    };
    let large = PRODUCTS.into_iter().map(move |product| entry(product, Some(0.9)));
    let small = SMALL.into_iter().map(move |product| entry(product, None));
    large.chain(small).chain([(4096, 3072, 768), (4096, 1536, 384)].map(linear))
}

fn product(product: Product, asked: Option<f64>) -> Workload {
    let a = Rc::new(random(product.m * product.k, 1));
    let b = Rc::new(random(product.k * product.n, 2));
    let c = Rc::new(RefCell::new(vec![0.0; product.m * product.n]));
    let (a_peer, b_peer, c_peer) = (a.clone(), b.clone(), c.clone());
    let name = format!("gemm {}", product.name());
    Workload {
        work: product.flop() / 1e9,
        unit: "GFLOP",
        ours: vec![
            (
                "secateur",
                Box::new(move || {
                    let mut c = c.borrow_mut();
                    let mut c = ViewMut::dense(&mut c, product.m, product.n);
                    let (a, b) = (product.a(&a), product.b(&b));
                    cpu::gemm(a, product.transpose_a, b, product.transpose_b, &mut c, Epilogue::default());
                }),
            ),
            (
                "gemm crate",
                Box::new(move || product.by_gemm_crate(&a_peer, &b_peer, &mut c_peer.borrow_mut())),
            ),
        ],
        peers: vec![Peer { name: "PyTorch", command: name.clone(), asked }],
        name,
    }
}

fn linear_gelu(m: usize, n: usize, k: usize) -> Workload {
    let product = Product { transpose_a: false, transpose_b: true, m, n, k };
    let (x, weight, bias) = (random(m * k, 1), random(n * k, 2), random(n, 3));
    let mut y = vec![0.0; m * n];
    let name = format!("linear-gelu {m} {n} {k}");
    Workload {
        work: product.flop() / 1e9,
        unit: "GFLOP",
        ours: vec![(
            "secateur",
            Box::new(move || {
                let mut y = ViewMut::dense(&mut y, m, n);
                let epilogue = Epilogue {
                    bias: Some(&bias),
                    activation: Some(Activation::GeluErf),
                    ..Epilogue::default()
                };
                cpu::gemm(product.a(&x), false, product.b(&weight), true, &mut y, epilogue);
            }),
        )],
        peers: vec![Peer { name: "PyTorch", command: name.clone(), asked: None }],
        name,
    }
}
