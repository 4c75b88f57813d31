//! Owns the names of the files in a database's folder that more than one module knows.

/// The journal.
pub(crate) const JOURNAL: &str = "journal.jsonl";
/// The lock file.
pub(crate) const LOCK: &str = "LOCK";

/// Paths in reports, which are text: what is no character of a name is shown as one that stands for it.
pub(crate) mod lossy {
    use serde::{Serialize, Serializer};
    use std::path::PathBuf;

    pub(crate) fn list<S: Serializer>(paths: &[PathBuf], to: S) -> Result<S::Ok, S::Error> {
        to.collect_seq(paths.iter().map(|path| path.to_string_lossy()))
    }

    pub(crate) fn maybe<S: Serializer>(path: &Option<PathBuf>, to: S) -> Result<S::Ok, S::Error> {
        path.as_ref().map(|path| path.to_string_lossy()).serialize(to)
    }
}
