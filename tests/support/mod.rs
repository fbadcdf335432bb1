//! Where tests find reference data.
//!
//! A small set is committed under `tests/reference` and always there. The full set lies in `../shared/fixtures` beside
//! the checkout, never beside a stranger's clone: a test that needs it says that it was not run, and fails where the
//! environment promises it (CI=true), so that nothing passes by having been skipped.

#![allow(dead_code)] // Each test binary uses its part.

pub mod device;
pub mod numbers;
pub mod tensors;

use std::io::Write as _;
use std::path::{Path, PathBuf};

/// The checkout that the tests were built in, or the working directory where prebuilt tests run without it.
fn root() -> &'static Path {
    let checkout = Path::new(env!("CARGO_MANIFEST_DIR"));
    if checkout.is_dir() { checkout } else { Path::new(".") }
}

/// A file or folder of the committed reference data, by its path relative to `tests/reference`.
pub fn reference(relative: &str) -> PathBuf {
    let path = root().join("tests/reference").join(relative);
    assert!(path.exists(), "{} is part of the repository but missing", path.display());
    path
}

/// A file or folder of `../shared`, by its path relative to it ("fixtures/models", "data/glue"), or `None` where
/// `../shared` is absent, which is then reported as not run. Panics on absence when CI=true, and when `../shared` is
/// there but the path is not.
pub fn shared(relative: &str) -> Option<PathBuf> {
    let root = root().join("../shared");
    if root.is_dir() {
        let path = root.join(relative);
        assert!(path.exists(), "../shared is there, but {relative} is not in it");
        return Some(path);
    }
    let test = std::thread::current().name().unwrap_or("a test").to_string();
    assert!(
        std::env::var("CI").as_deref() != Ok("true"),
        "{test}: CI=true, but ../shared/{relative} is absent"
    );
    let line = format!("{}::{test} needs {relative}", env!("CARGO_CRATE_NAME"));
    println!("not run: {line}");
    // Output of passing tests is captured; `tools/test` collects the list through this file.
    if let Some(list) = std::env::var_os("SECATEUR_NOT_RUN") {
        let mut file =
            std::fs::OpenOptions::new().append(true).create(true).open(list).expect("SECATEUR_NOT_RUN");
        writeln!(file, "{line}").expect("SECATEUR_NOT_RUN");
    }
    None
}
