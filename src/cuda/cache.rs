//! Compiled kernels, kept on disk: compiling takes seconds, a warm start should not.
//!
//! A file is named by everything its content depends on (source, the headers it includes, options, NVRTC version) and starts with a
//! hash of its content, so that a torn or altered file is compiled again instead of being run. Files appear by rename.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use super::nvrtc::{Nvrtc, Target};
use crate::error::{Error, Result};
use crate::launch::Module;
use crate::launch::kernels::HEADERS;

/// A folder of compiled kernels, or none.
#[derive(Clone, Debug)]
pub struct Cache {
    folder: Option<PathBuf>,
}

impl Cache {
    /// The user's: `$XDG_CACHE_HOME/secateur/kernels` or `~/.cache/secateur/kernels`.
    pub fn of_user() -> Cache {
        let variable = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
        let base = variable("XDG_CACHE_HOME").or_else(|| variable("HOME").map(|home| home.join(".cache")));
        Cache { folder: base.map(|base| base.join("secateur").join("kernels")) }
    }

    /// In `folder`.
    pub fn at(folder: impl Into<PathBuf>) -> Cache {
        Cache { folder: Some(folder.into()) }
    }

    /// Where it is.
    pub fn folder(&self) -> Option<&Path> {
        self.folder.as_deref()
    }

    /// Whether files can be written there: the reason if not.
    pub fn check(&self) -> Result<()> {
        let Some(folder) = &self.folder else {
            return Err(Error::usage("neither XDG_CACHE_HOME nor HOME is set"));
        };
        std::fs::create_dir_all(folder).map_err(Error::io(folder, "creating"))?;
        tempfile::NamedTempFile::new_in(folder).map_err(Error::io(folder, "writing to"))?;
        Ok(())
    }

    /// The compiled source, from the folder or made and put there. Whether it was found is the second result. A folder
    /// that cannot be written to only costs time.
    pub fn compile(&self, nvrtc: &Nvrtc, module: &Module, target: Target) -> Result<(Vec<u8>, bool)> {
        let path = self.folder.as_ref().map(|folder| folder.join(key(nvrtc, module, target)));
        if let Some(found) = path.as_deref().and_then(load) {
            return Ok((found, true));
        }
        let made = nvrtc.compile(module, target)?;
        if let Some(path) = path
            && let Err(error) = store(&path, &made)
        {
            use std::sync::Once;
            static WARN: Once = Once::new();
            WARN.call_once(|| eprintln!("warning: kernels are compiled anew every time: {error}"));
        }
        Ok((made, false))
    }
}

/// A name for the compiled source: by its content, the headers that it includes and they include, the options and NVRTC's
/// version.
pub fn key(nvrtc: &Nvrtc, module: &Module, target: Target) -> String {
    let mut hash = blake3::Hasher::new();
    let mut add = |text: &str| {
        hash.update(&(text.len() as u64).to_le_bytes());
        hash.update(text.as_bytes());
    };
    add(module.source);
    for (name, text) in included(module.source, HEADERS) {
        add(name);
        add(text);
    }
    Nvrtc::options(target).iter().for_each(|option| add(option));
    add(&format!("{:?}", nvrtc.version()));
    format!("{}-{}-{}", module.file, target.name(), &hash.finalize().to_hex()[..32])
}

/// The headers that a source includes, and those that they include, each once and in the order of their names.
fn included<'a>(source: &str, headers: &'a [(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
    let mut wanted = vec![source];
    let mut found: Vec<(&str, &str)> = Vec::new();
    while let Some(text) = wanted.pop() {
        let names = text.lines().filter_map(|line| line.trim_start().strip_prefix("#include"));
        for name in names.map(|rest| rest.trim().trim_matches('"')) {
            let header = headers.iter().find(|(known, _)| *known == name);
            if let Some(&header) = header.filter(|header| !found.contains(header)) {
                found.push(header);
                wanted.push(header.1);
            }
        }
    }
    found.sort_unstable();
    found
}

fn load(path: &Path) -> Option<Vec<u8>> {
    let mut content = std::fs::read(path).ok()?;
    if content.len() < 32 {
        return None;
    }
    let body = content.split_off(32);
    (blake3::hash(&body).as_bytes()[..] == content[..]).then_some(body)
}

fn store(path: &Path, body: &[u8]) -> Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder).map_err(Error::io(folder, "creating"))?;
    let mut file = tempfile::NamedTempFile::new_in(folder).map_err(Error::io(folder, "writing to"))?;
    file.write_all(blake3::hash(body).as_bytes())
        .and_then(|()| file.write_all(body))
        .map_err(Error::io(path, "writing"))?;
    file.persist(path).map_err(|e| Error::io(path, "renaming")(e.error))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_counts_where_it_is_included_however_far_away() {
        let headers =
            [("a.cuh", "int a;"), ("b.cuh", "#pragma once\n#include \"a.cuh\""), ("c.cuh", "int c;")];
        assert_eq!(included("// none", &headers), []);
        assert_eq!(included("#include \"b.cuh\"\nint x;", &headers), [headers[0], headers[1]]);
        // Sources include by name and in no other way, or their headers would be missed.
        for (_, text) in
            HEADERS.iter().copied().chain(crate::launch::kernels::MODULES.iter().map(|m| (m.file, m.source)))
        {
            for line in text.lines().filter(|line| line.contains("#include")) {
                assert_eq!(included(line, HEADERS).is_empty(), line.starts_with("//"), "{line}");
            }
        }
    }

    #[test]
    fn an_altered_file_is_not_used() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("kernel");
        assert_eq!(load(&path), None);
        store(&path, b"machine code").unwrap();
        assert_eq!(load(&path).as_deref(), Some(&b"machine code"[..]));
        let mut content = std::fs::read(&path).unwrap();
        *content.last_mut().unwrap() ^= 1;
        std::fs::write(&path, &content).unwrap();
        assert_eq!(load(&path), None);
        std::fs::write(&path, &content[..20]).unwrap();
        assert_eq!(load(&path), None);
    }
}
