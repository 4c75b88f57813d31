//! Where Hugging Face's tools keep what they downloaded.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// The folder of that cache, by the variables that its tools read.
fn cache(variable: impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    let set = |name: &str| variable(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let home = || set("XDG_CACHE_HOME").or_else(|| set("HOME").map(|home| home.join(".cache")));
    let hub = || set("HF_HOME").or_else(|| home().map(|home| home.join("huggingface"))).map(|home| home.join("hub"));
    set("HF_HUB_CACHE").or_else(hub)
}

/// Whether it may be the name of a repository.
pub(super) fn is_name(name: &str) -> bool {
    let plain = |part: &str| !part.is_empty() && !part.starts_with('.') && !part.contains('\\');
    name.split('/').count() <= 2 && name.split('/').all(plain)
}

/// The snapshot of a repository that a cache has: of its main branch, or the only one there is.
fn snapshot(cache: &Path, name: &str) -> Option<PathBuf> {
    if !is_name(name) {
        return None;
    }
    let repository = cache.join(format!("models--{}", name.replace('/', "--")));
    let snapshots = repository.join("snapshots");
    let main = std::fs::read_to_string(repository.join("refs/main")).ok();
    if let Some(found) = main.map(|revision| snapshots.join(revision.trim())).filter(|path| path.is_dir()) {
        return Some(found);
    }
    let mut all = std::fs::read_dir(snapshots).ok()?.flatten().map(|entry| entry.path());
    all.next().filter(|path| path.is_dir() && all.next().is_none())
}

/// The folder of a repository in the cache of this machine.
pub(super) fn find(name: &str) -> Option<PathBuf> {
    snapshot(&cache(|name| std::env::var_os(name))?, name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cache_is_where_its_tools_have_it() {
        let with = |set: &[(&str, &str)]| {
            let value = |name: &str| set.iter().find(|(n, _)| *n == name).map(|(_, v)| OsString::from(v));
            cache(value).map(|path| path.display().to_string()).unwrap_or_default()
        };
        assert_eq!(with(&[("HOME", "/h")]), "/h/.cache/huggingface/hub");
        assert_eq!(with(&[("HOME", "/h"), ("XDG_CACHE_HOME", "/x")]), "/x/huggingface/hub");
        assert_eq!(with(&[("HOME", "/h"), ("HF_HOME", "/f")]), "/f/hub");
        assert_eq!(with(&[("HF_HUB_CACHE", "/c"), ("HF_HOME", "/f")]), "/c");
        assert_eq!(with(&[("HOME", "")]), "");
    }

    #[test]
    fn a_repository_is_its_main_snapshot_or_its_only_one() {
        let place = tempfile::tempdir().unwrap();
        let repository = place.path().join("models--org--name");
        let make = |revision: &str| std::fs::create_dir_all(repository.join("snapshots").join(revision)).unwrap();
        let found = || snapshot(place.path(), "org/name").and_then(|p| Some(p.file_name()?.to_str()?.to_string()));
        assert_eq!(found(), None);
        make("aaa");
        assert_eq!(found().as_deref(), Some("aaa"));
        make("bbb");
        assert_eq!(found(), None);
        std::fs::create_dir(repository.join("refs")).unwrap();
        std::fs::write(repository.join("refs/main"), "bbb\n").unwrap();
        assert_eq!(found().as_deref(), Some("bbb"));
        for name in ["other/name", "../models--org--name", "org/name/more", "org/", "/org", ""] {
            assert_eq!(snapshot(place.path(), name), None, "{name}");
        }
    }
}
