//! Run records, terminal tables, figures and the self-contained HTML page.
//!
//! [`record::RunRecord`] is what a run leaves behind: everything shown anywhere, on the terminal, in `--json` or in
//! `report.html`, is read from it, so that the views cannot disagree. `docs/run-record.md` documents its fields.

pub mod density;
pub mod figures;
pub mod format;
pub mod html;
pub mod listener;
pub mod machine;
pub mod ordered;
pub(crate) mod page;
pub mod record;
pub mod svg;
pub mod table;

pub use ordered::Ordered;
pub use record::RunRecord;
