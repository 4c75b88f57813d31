//! The tuning database of jitune: what was measured, durable, once it is said
//! to be stored.
//!
//! # What is assumed of the disk
//! (In short in `docs/architecture.md`, section "The database".)
//!
//! - A write that `fsync` (`fdatasync` for the journal) called done outlives power loss, and so do a new name and a
//!   rename once the folder was synced. A drive that acknowledges from a cache that it loses breaks this, and no
//!   program can know. Nothing is assumed of the order in which unsynced writes arrive, nor that a write is atomic: a
//!   line that is there in part has a wrong checksum and costs itself.
//! - `rename` in a folder is atomic: whoever opens the journal has the old one or the new one, whole.
//! - A failed `fsync` says that anything since the one before may be lost, though the page cache still shows it. So it
//!   is sticky: the handle writes no more ([`Error::SyncFailed`]) and seals no index until the database is opened
//!   again. A kill needs less: what `write` took is there for the next process.
//! - `flock` excludes other processes of this machine, and the kernel lets go when the holder dies. On NFS since Linux
//!   2.6.12 it excludes other clients too; on file systems where it works for one machine alone (some FUSE and
//!   cluster file systems, `local_lock`, `nolock`), one machine at a time may write, and merging journals
//!   ([`Db::merge`]) is how several work together. A lock that is lost in spite of this shows as
//!   [`Error::JournalChanged`] or [`Error::JournalReplaced`] before anything is written over.
//! - Readers take no lock. They rely on appends and renames alone, and on a network file system may see the journal a
//!   little late.
//! - Bytes rot: every line and every artifact is checked on every read.
//!
//! # Which version reads what
//! The form of the journal's lines has no number: a line is read by what stands in it. Fields may be added and are passed
//! over by versions that do not know them; a [`Kind`] that a version does not know, or a body that its [`Reader`] makes no
//! sense of, is kept on its line, never current, and never merged. No field changes its meaning: what means something else has another name,
//! or another `schema` in its [`Key`]. So every version opens every journal, newer ones included, and finds in it what it
//! can use. The index is of one version and rebuilt by any other. (A bundle is the opposite: one number, and any other
//! one is refused, because what it holds is run.)
//!
//! # What it is
//! This crate owns durability and knows nothing of kernels. A database is a
//! folder:
//!
//! ```text
//! journal.jsonl      the truth: one checksummed JSON line a record, append-only
//! index.bin          look-ups, kept between runs; rebuilt from the journal on any doubt
//! artifacts/ab/<hex> content-addressed bytes, checked on every load
//! quarantine/        what was damaged, moved aside
//! LOCK               one writer at a time; says who
//! ```
//!
//! A record is a [`Winner`](Kind::Winner), a [`Withdrawn`](Kind::Withdrawn)
//! winner or a [`Trial`](Kind::Trial), filed under a [`Key`]. Records of one slot
//! (a key's winner; a key's trial of one `sub`) are ordered by `(at, hash)`, and
//! the greatest counts; so merging journals gives one result in any order, but for what
//! was seen here and whose artifacts are here, which a merge leaves alone. What a merge
//! brought [says so](Record::merged). A date past [`MAX_DATE`] never counts, and a
//! merge takes none from the future.
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
//! How big it may grow: the index, one entry a slot, is held in memory, not the bodies. With 100,000 trials of 10,000 keys
//! (75 MB), on two cores: opening with a current index 0.15 s, a rebuild (on any doubt about the index) 1.3 s, read-only,
//! which reads the journal through on every open, 0.85 s, a look-up 5 µs, a winner 4 ms (fdatasync), a trial 17 µs. Past
//! some hundred MB, run [`Db::gc`] with [`GcOptions::trials_before`].

#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod artifacts;
mod clock;
mod db;
mod disk;
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
#[cfg(fuzzing)]
pub use line::fuzz_line;
pub use opening::{IndexState, OpenOptions, OpenReport};
pub use record::{FieldDiff, Key, KeyPart, Kind, MAX_DATE, Reader, Record};
pub use recover::BadLine;
pub use verify::{MissingArtifact, VerifyReport};

use std::path::{Path, PathBuf};

/// Where the database goes when the caller was not told: `JITUNE_DB`, else
/// `$XDG_DATA_HOME/jitune`, else `~/.local/share/jitune`.
///
/// Empty variables count as unset, and so does an `XDG_DATA_HOME` that is not
/// absolute, as its specification asks.
pub fn default_dir() -> Result<PathBuf> {
    default_dir_from(|name| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from))
}

/// Whether a folder is a database that something was written to.
pub fn is_database(folder: &Path) -> bool {
    [files::JOURNAL, files::LOCK].iter().all(|name| folder.join(name).is_file())
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
