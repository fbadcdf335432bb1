//! Records of numbers that a change of a kernel must not alter unseen.

use std::path::Path;

/// Whether records are written anew: `SECATEUR_UPDATE=1`.
pub fn updating() -> bool {
    std::env::var_os("SECATEUR_UPDATE").is_some()
}

/// Holds `found` against the committed file, or writes it.
pub fn compare(file: &str, found: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
    if updating() {
        std::fs::write(&path, found).expect("the record can be written");
        return;
    }
    let recorded = std::fs::read_to_string(&path).unwrap_or_default();
    let differing = diff(&recorded, found);
    assert!(
        differing.is_empty(),
        "{} lines differ from {file} (SECATEUR_UPDATE=1 writes it anew):\n{}",
        differing.len(),
        differing.join("\n")
    );
}

/// Lines of only one of the two texts.
fn diff(old: &str, new: &str) -> Vec<String> {
    let has = |text: &str, line: &str| text.lines().any(|other| other == line);
    let gone = old.lines().filter(|line| !has(new, line)).map(|line| format!("- {line}"));
    let added = new.lines().filter(|line| !has(old, line)).map(|line| format!("+ {line}"));
    gone.chain(added).collect()
}
