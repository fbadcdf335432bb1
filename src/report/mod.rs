//! Run records, terminal tables, figures and the self-contained HTML page.
