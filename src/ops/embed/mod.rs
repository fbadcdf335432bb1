//! Token, position and segment embeddings, summed.
//!
//! `out[t] = word[ids[t]] + position[positions[t]] + types_table[types[t]]`, summed in this order. The
//! backward adds `dy[t]` to each wanted table's row, with the fixed order of `gather`'s scatter-add. The caller has
//! checked every index against its table.
//!
//! Cost: memory only, `(1 + tables)·T·d` elements read, `T·d` written; the backward the reverse. A table's
//! row that c tokens name is a sum of c terms: error at most γ_c·Σ|dy|.

pub mod cpu;
pub mod cuda;
pub mod reference;
