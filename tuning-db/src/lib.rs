//! The tuning database of jitune: what was measured, durable, once it is said
//! to be stored.
//!
//! This crate owns durability and knows nothing of kernels. A database is a
//! folder:
//!
//! ```text
//! journal.jsonl      the truth: one checksummed JSON line a record, append-only
//! index/ index.seal  look-ups (sled); rebuilt from the journal on any doubt
//! artifacts/ab/<hex> content-addressed bytes, checked on every load
//! quarantine/        what was damaged, moved aside
//! LOCK               one writer at a time; says who
//! ```
//!
//! A record is a [`Winner`](Kind::Winner), a [`Withdrawn`](Kind::Withdrawn)
//! winner or a [`Trial`](Kind::Trial), filed under a [`Key`]. Records of one slot
//! (a key's winner; a key's trial of one `sub`) are ordered by `(at, hash)`, and
//! the greatest counts; so merging journals gives one result in any order.
//!
//! ```
//! use jitune_db::{Db, Key, OpenOptions, Record};
//! use serde_json::json;
//!
//! # fn main() -> jitune_db::Result<()> {
//! # let folder = tempfile::tempdir().expect("a folder");
//! # let dir = folder.path().join("db");
//! let db = Db::open(&dir, OpenOptions::default())?;
//! let cubin = db.put_artifact(b"bytes of a cubin")?;
//! let key = Key::new([("arch", "sm_90a"), ("problem", "matmul m=7")], [("driver", "580")]);
//! db.put_winner(&Record::winner(key.clone(), json!({"artifact": cubin, "us": 12.5})))?;
//! // Durable from here on: kill -9 and power loss do not take it back.
//! assert_eq!(db.winner(&key)?.map(|r| r.body["us"].clone()), Some(json!(12.5)));
//!
//! // A miss, explained: the nearest stored key and the fields that differ.
//! let asked = Key::new([("arch", "sm_90a"), ("problem", "matmul m=7")], [("driver", "590")]);
//! let (_, diff) = db.near(&asked, &["problem"], 1)?.remove(0);
//! assert_eq!(diff[0].to_string(), "timing.driver: asked \"590\", stored \"580\"");
//! # Ok(()) }
//! ```
//!
//! How big it may grow: a rebuild (after a kill, or on any doubt about the index)
//! reads the journal through and holds one index entry a slot in memory, not the
//! bodies; read-only mode does so on every open. With 100,000 trials of 10,000
//! keys (82 MB), on two cores busy with other builds: opening with a current
//! index 0.3 s, a rebuild 4.6 s, read-only 2.1 s, a look-up 13 µs, a winner
//! 2 ms (fdatasync), a trial 0.25 ms. Past some hundred MB, run [`Db::gc`] with
//! [`GcOptions::trials_before`].

#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod artifacts;
mod clock;
mod db;
mod error;
mod exchange;
mod files;
mod gc;
mod hash;
mod holder;
mod index;
mod journal;
mod line;
mod lock;
mod lookup;
mod opening;
mod record;
mod recover;
mod verify;

pub use clock::now;
pub use db::{Db, Stats};
pub use error::{Error, Result};
pub use exchange::{MergeReport, SkippedLine};
pub use gc::{GcOptions, GcReport};
pub use hash::{ArtifactHash, KeyId};
pub use holder::Holder;
pub use opening::{IndexState, OpenOptions, OpenReport};
pub use record::{FieldDiff, Key, KeyPart, Kind, Record};
pub use recover::BadLine;
pub use verify::{MissingArtifact, VerifyReport};

use std::path::PathBuf;

/// Where the database goes when the caller was not told: `JITUNE_DB`, else
/// `$XDG_DATA_HOME/jitune`, else `~/.local/share/jitune`.
///
/// Empty variables count as unset, and so does an `XDG_DATA_HOME` that is not
/// absolute, as its specification asks.
pub fn default_dir() -> Result<PathBuf> {
    default_dir_from(|name| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from))
}

fn default_dir_from(var: impl Fn(&str) -> Option<PathBuf>) -> Result<PathBuf> {
    if let Some(dir) = var("JITUNE_DB") {
        return Ok(dir);
    }
    if let Some(data) = var("XDG_DATA_HOME").filter(|dir| dir.is_absolute()) {
        return Ok(data.join("jitune"));
    }
    var("HOME").map(|home| home.join(".local/share/jitune")).ok_or(Error::NoHome)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn default_dir_follows_the_order() {
        let check = |set: &[(&str, &str)], want: Option<&str>| {
            let got = default_dir_from(|name| set.iter().find(|(n, _)| *n == name).map(|(_, v)| PathBuf::from(v)));
            assert_eq!(got.ok(), want.map(PathBuf::from), "{set:?}");
        };
        check(&[("JITUNE_DB", "a"), ("XDG_DATA_HOME", "/x"), ("HOME", "/h")], Some("a"));
        check(&[("XDG_DATA_HOME", "/x"), ("HOME", "/h")], Some("/x/jitune"));
        check(&[("XDG_DATA_HOME", "x"), ("HOME", "/h")], Some("/h/.local/share/jitune"));
        check(&[("HOME", "/h")], Some("/h/.local/share/jitune"));
        check(&[], None);
    }
}
