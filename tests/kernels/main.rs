//! Property tests of the operation families: every CPU path, and every kernel on the emulator, against the f64 reference.

#[path = "../support/mod.rs"]
mod support;

mod activation;
mod attention;
mod attention_case;
mod cache;
mod common;
mod contrastive;
mod cuda_activation;
mod cuda_attention;
mod cuda_attention_traffic;
mod cuda_convert;
mod cuda_gemm;
mod cuda_gemm_traffic;
mod cuda_loss;
mod cuda_norm;
mod cuda_optimizer;
mod cuda_rows;
mod cuda_select;
mod cuda_similarity;
mod device_rows;
mod dropout;
mod gemm;
mod gemm_case;
mod loss;
mod mapping;
mod norm;
mod optimizer;
mod record;
mod resources;
mod rows;
mod select;
mod seminmf;
mod similarity;
mod traffic;
mod weightmask;
