//! What a cold start waits for: seconds that NVRTC takes for each kernel source, and for all of them on every thread.
//!
//! One run of each, no statistics: a compiler is not a kernel. Needs NVRTC and no GPU. Prints comma-separated values.
//!
//!     cargo bench --bench compile

use std::time::Instant;

use rayon::prelude::*;
use secateur::cuda::{Nvrtc, Target};
use secateur::launch::Module;
use secateur::launch::kernels::MODULES;

/// Hopper and Ada.
const ARCHITECTURES: [u32; 2] = [90, 89];

fn main() {
    let nvrtc = Nvrtc::get().unwrap_or_else(|error| panic!("{error}"));
    let compile = |module: &Module, architecture: u32| {
        nvrtc
            .compile(module, Target::Cubin(architecture))
            .unwrap_or_else(|error| panic!("{}: {error}", module.file));
    };
    let seconds = |work: &dyn Fn()| {
        let start = Instant::now();
        work();
        start.elapsed().as_secs_f64()
    };
    // The first compilation loads the library's own tables.
    compile(&MODULES[0], ARCHITECTURES[0]);
    println!("source,{}", ARCHITECTURES.map(|architecture| format!("sm_{architecture}")).join(","));
    for module in MODULES {
        let found =
            ARCHITECTURES.map(|architecture| format!("{:.2}", seconds(&|| compile(module, architecture))));
        println!("{},{}", module.file, found.join(","));
    }
    let all = || MODULES.par_iter().with_max_len(1).for_each(|module| compile(module, ARCHITECTURES[0]));
    println!("all on {} threads,{:.2},", rayon::current_num_threads(), seconds(&all));
}
