//! Runs the PTX that NVRTC emits, without a GPU, and checks every access, barrier and race.
//!
//! ```
//! use ptxsim::{Argument, Machine, Module, Options};
//!
//! let module = Module::parse(
//!     ".version 8.0
//!      .target sm_80
//!      .address_size 64
//!      .visible .entry double_it(.param .u64 x)
//!      {
//!          .reg .b64 %rd<4>;
//!          .reg .b32 %r<2>;
//!          .reg .f32 %f<3>;
//!          ld.param.u64 %rd1, [x];
//!          mov.u32 %r1, %tid.x;
//!          mul.wide.u32 %rd2, %r1, 4;
//!          add.s64 %rd3, %rd1, %rd2;
//!          ld.global.f32 %f1, [%rd3];
//!          add.f32 %f2, %f1, %f1;
//!          st.global.f32 [%rd3], %f2;
//!          ret;
//!      }",
//! )?;
//! let mut machine = Machine::new(Options::default());
//! let x = machine.allocate(4 * 32, "x");
//! machine.write(x, &1.5f32.to_le_bytes().repeat(32))?;
//! let report = machine.launch(&module, "double_it", [1, 1, 1], [32, 1, 1], 0, &[Argument::U64(x)])?;
//! assert!(report.findings.is_empty());
//! assert_eq!(machine.read(x, 4)?, 3f32.to_le_bytes());
//! # Ok::<(), ptxsim::Error>(())
//! ```

mod access;
mod async_copy;
mod block;
mod checks;
mod collective;
mod counters;
mod decode;
mod error;
mod execute;
mod findings;
mod instruction;
mod lexer;
mod machine;
mod memory;
mod module;
mod parser;
mod registers;
mod shadow;
mod step;
mod syntax;
mod traffic;
mod types;
mod warp;

pub use counters::Counters;
pub use error::{Error, Result};
pub use findings::{Finding, FindingKind};
pub use machine::{Approximations, Argument, Checks, Machine, Options, Report};
pub use module::Module;
pub use types::Type;
