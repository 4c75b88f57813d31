//! Owns the names of the files in a database's folder that more than one module knows.

/// The journal.
pub(crate) const JOURNAL: &str = "journal.jsonl";
/// The lock file.
pub(crate) const LOCK: &str = "LOCK";
