//! Models named like on the Hugging Face hub, found in the local cache of its tools. Nothing is downloaded.

use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// Directory of the model `name`: a local directory, or the cached snapshot of a hub model.
pub fn resolve(name: &str) -> Result<PathBuf> {
    resolve_in(name, &caches(|variable| std::env::var_os(variable).map(PathBuf::from)))
}

/// Directories that hold cached hub models, the most specific setting first.
fn caches(variable: impl Fn(&str) -> Option<PathBuf>) -> Vec<PathBuf> {
    let set = |name: &str| variable(name).filter(|path| !path.as_os_str().is_empty());
    let explicit = set("HF_HUB_CACHE").or_else(|| set("HUGGINGFACE_HUB_CACHE"));
    let cache = set("XDG_CACHE_HOME").or_else(|| set("HOME").map(|home| home.join(".cache")));
    let home = set("HF_HOME").or_else(|| cache.map(|cache| cache.join("huggingface")));
    explicit.or_else(|| home.map(|home| home.join("hub"))).into_iter().collect()
}

fn resolve_in(name: &str, caches: &[PathBuf]) -> Result<PathBuf> {
    let local = Path::new(name);
    if local.is_dir() {
        return Ok(local.to_path_buf());
    }
    if local.is_file() {
        return Err(Error::usage(format!("{name} is a file; a model is the directory with its config.json")));
    }
    let plain = |part: &str| {
        let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        !part.is_empty() && !part.starts_with('.') && part.chars().all(allowed)
    };
    let parts: Vec<&str> = name.split('/').collect();
    if parts.len() > 2 || !parts.iter().all(|part| plain(part)) {
        return Err(Error::usage(format!("{name} is not a directory")));
    }
    let folder = format!("models--{}", parts.join("--"));
    for cache in caches {
        if let Some(snapshot) = snapshot(&cache.join(&folder)) {
            return Ok(snapshot);
        }
    }
    let looked = caches.iter().map(|cache| cache.display().to_string()).collect::<Vec<_>>().join(", ");
    Err(Error::usage(format!(
        "{name} is neither a directory nor in the local Hugging Face cache ({looked}); nothing is downloaded here. \
         Get it with `hf download {name}`, or give the directory that holds config.json and model.safetensors"
    )))
}

/// The snapshot `refs/main` points to, if it is complete enough to have a configuration.
fn snapshot(folder: &Path) -> Option<PathBuf> {
    let revision = std::fs::read_to_string(folder.join("refs").join("main")).ok()?;
    let revision = revision.trim();
    let is_hash = !revision.is_empty() && revision.bytes().all(|b| b.is_ascii_alphanumeric());
    let snapshot = folder.join("snapshots").join(revision);
    (is_hash && snapshot.join("config.json").is_file()).then_some(snapshot)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_snapshot_that_main_points_to() {
        let cache = tempfile::tempdir().unwrap();
        let folder = cache.path().join("models--org--tiny");
        std::fs::create_dir_all(folder.join("refs")).unwrap();
        std::fs::write(folder.join("refs/main"), "0a1b2c\n").unwrap();
        let caches = [cache.path().to_path_buf()];
        assert!(resolve_in("org/tiny", &caches).is_err(), "a reference without a snapshot");
        let snapshot = folder.join("snapshots/0a1b2c");
        std::fs::create_dir_all(&snapshot).unwrap();
        std::fs::write(snapshot.join("config.json"), "{}").unwrap();
        assert_eq!(resolve_in("org/tiny", &caches).unwrap(), snapshot);
    }

    #[test]
    fn says_how_to_get_what_is_absent() {
        let message = resolve_in("bert-base-uncased", &[PathBuf::from("/nowhere")]).unwrap_err().to_string();
        assert!(
            message.contains("/nowhere") && message.contains("hf download bert-base-uncased"),
            "{message}"
        );
    }

    #[test]
    fn refuses_names_that_climb_out_of_the_cache() {
        for name in ["../etc", "a/../b", "a/b/c", "", "models/.."] {
            assert!(resolve_in(name, &[std::env::temp_dir()]).is_err(), "{name}");
        }
    }

    #[test]
    fn the_most_specific_variable_wins() {
        let with = |set: &[(&str, &str)]| {
            let set: Vec<(String, PathBuf)> = set.iter().map(|(k, v)| (k.to_string(), v.into())).collect();
            caches(|name| set.iter().find(|(k, _)| k == name).map(|(_, v)| v.clone()))
        };
        assert_eq!(with(&[("HOME", "/h")]), [PathBuf::from("/h/.cache/huggingface/hub")]);
        assert_eq!(with(&[("HOME", "/h"), ("HF_HOME", "/f")]), [PathBuf::from("/f/hub")]);
        assert_eq!(with(&[("HF_HUB_CACHE", "/c"), ("HF_HOME", "/f")]), [PathBuf::from("/c")]);
        assert_eq!(with(&[("XDG_CACHE_HOME", "/x"), ("HOME", "/h")]), [PathBuf::from("/x/huggingface/hub")]);
        assert!(with(&[]).is_empty());
    }
}
