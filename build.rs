//! Turns the CUDA sources of `kernels/` into Rust: their texts, and a typed launch function for every entry point.
//!
//! Needs no CUDA toolkit, no GPU and no network: sources are read as text here and compiled by NVRTC at run time.

#[allow(dead_code)] // The library compiles it for its tests.
#[path = "src/launch/signature.rs"]
mod signature;

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use signature::Entry;

fn main() {
    println!("cargo::rerun-if-changed=kernels");
    println!("cargo::rerun-if-changed=src/launch/signature.rs");
    match generate(Path::new("kernels")) {
        Ok(code) => {
            let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
            std::fs::write(out.join("kernels.rs"), code).expect("OUT_DIR can be written");
        }
        Err(message) => {
            println!("cargo::error={message}");
            std::process::exit(1);
        }
    }
}

fn generate(folder: &Path) -> Result<String, String> {
    let listing = std::fs::read_dir(folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    let mut paths: Vec<PathBuf> = listing.filter_map(|entry| Some(entry.ok()?.path())).collect();
    paths.sort();
    let with = |extension: &str| {
        let wanted = paths.iter().filter(move |p| p.extension().is_some_and(|e| e == extension));
        wanted.cloned().collect::<Vec<_>>()
    };
    let mut headers = String::new();
    for path in with("cuh") {
        writeln!(headers, "    ({:?}, include_str!({:?})),", name(&path, false), absolute(&path)).unwrap();
    }
    let (mut table, mut modules) = (String::new(), String::new());
    for (number, path) in with("cu").iter().enumerate() {
        let source = std::fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))?;
        let entries = signature::entries(&source)
            .map_err(|mistake| format!("{}:{}: {}", path.display(), mistake.line, mistake.message))?;
        let stem = name(path, true);
        write!(table, "    Module {{ file: {:?}, source: {stem}::SOURCE, kernels: &[", name(path, false))
            .unwrap();
        for (index, entry) in entries.iter().enumerate() {
            write!(table, "\n        {},", kernel(number, index, entry)).unwrap();
        }
        writeln!(table, "] }},").unwrap();
        modules.push_str(&module(&stem, path, number, &entries));
    }
    Ok(format!(
        "use super::{{Argument, Grid, Kernel, Launch, Module, Pointer}};\n\
         #[allow(unused_imports)]\nuse super::{{Bf16, F16}};\n\n\
         /// Headers of the kernels: name in an `#include`, and text.\n\
         pub static HEADERS: &[(&str, &str)] = &[\n{headers}];\n\n\
         /// Every kernel source.\npub static MODULES: &[Module] = &[\n{table}];\n{modules}"
    ))
}

fn kernel(module: usize, index: usize, entry: &Entry) -> String {
    let names: Vec<&str> = entry.parameters.iter().map(|p| p.name.as_str()).collect();
    format!(
        "Kernel {{ module: {module}, index: {index}, name: {:?}, line: {}, parameters: &{names:?} }}",
        entry.name, entry.line
    )
}

fn module(stem: &str, path: &Path, number: usize, entries: &[Entry]) -> String {
    let file = name(path, false);
    let mut code = format!(
        "\n/// Kernels of `kernels/{file}`.\npub mod {stem} {{\n    #[allow(unused_imports)]\n    use super::*;\n\n    \
         /// The source.\n    pub const SOURCE: &str = include_str!({:?});\n",
        absolute(path)
    );
    for (index, entry) in entries.iter().enumerate() {
        code.push('\n');
        if entry.doc.is_empty() {
            writeln!(code, "    /// `{}`, line {} of `kernels/{file}`.", entry.name, entry.line).unwrap();
        }
        for line in &entry.doc {
            // Shapes in brackets are not links.
            writeln!(code, "    /// {}", line.replace('[', "\\[").replace(']', "\\]")).unwrap();
        }
        let mut declared = String::from("grid: Grid");
        let mut passed = String::new();
        for p in &entry.parameters {
            let kind = if p.pointer { format!("Pointer<{}>", p.rust) } else { p.rust.to_string() };
            write!(declared, ", r#{}: {kind}", p.name).unwrap();
            write!(passed, "Argument::from(r#{}), ", p.name).unwrap();
        }
        writeln!(
            code,
            "    pub fn r#{}({declared}) -> Launch {{\n        \
             Launch::new(&MODULES[{number}].kernels[{index}], grid, vec![{passed}])\n    }}",
            entry.name
        )
        .unwrap();
    }
    code.push_str("}\n");
    code
}

fn name(path: &Path, stem: bool) -> String {
    let part = if stem { path.file_stem() } else { path.file_name() };
    part.expect("listed files have names").to_string_lossy().into_owned()
}

fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).expect("the working directory is known")
}
