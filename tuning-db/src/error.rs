//! Owns the one error type of the crate. Each variant carries its evidence and
//! says what to do next.
//!
//! It does not hold the findings that cost one entry only (a bad line, a torn
//! tail, a corrupt artifact): those are reports, not errors, because the store
//! goes on without the entry. Nor does the index have errors: one that cannot be
//! read is made again from the journal.

use crate::{files, holder::Holder};
use std::{io, path::PathBuf, time::Duration};

/// What the store returns when it cannot do what was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused an operation on a file or folder.
    #[error(
        "cannot {doing} {}: {source}; {}, or choose another folder with --db or JITUNE_DB",
        path.display(),
        first_aid(source)
    )]
    Io {
        /// What was tried, as a verb phrase.
        doing: &'static str,
        /// On which path.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },

    /// Another process holds the database and did not let go in time.
    #[error(
        "the database {} is held by {holder}; waited {:.1} s; wait for that run to end, give --db another folder, or only read",
        path.display(), waited.as_secs_f64()
    )]
    Locked {
        /// The database folder.
        path: PathBuf,
        /// Who holds it, as far as the lock file says.
        holder: Holder,
        /// How long this process waited.
        waited: Duration,
    },

    /// A change was asked of a database that was opened read-only.
    #[error("cannot {doing}: the database {} was opened read-only", path.display())]
    ReadOnly {
        /// What was asked.
        doing: &'static str,
        /// The database folder.
        path: PathBuf,
    },

    /// There is no database, and none is to be made.
    #[error("no tuning database at {} (it has no {}); run `jitune tune` first, or point --db or JITUNE_DB at one", path.display(), files::JOURNAL)]
    Missing {
        /// The folder that was asked for.
        path: PathBuf,
    },

    /// A record could not be stored: disk full, quota, file size limit, device
    /// error. The record is not in the database; everything stored before is.
    #[error(
        "cannot append to {}: {source}; the record was not stored, {}; free space on that disk and run again",
        path.display(),
        if *rolled_back { "the journal is as it was before and nothing in it is lost" }
        else { "the half-written line could not be cut off and will be at the next open" }
    )]
    Append {
        /// The journal.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
        /// Whether the half-written line was cut off again.
        rolled_back: bool,
    },

    /// An earlier append failed and could not be rolled back, so nothing more is
    /// appended through this handle.
    #[error("{} had a failed write that could not be rolled back; close the database and open it again: opening cuts the half-written line off", path.display())]
    Poisoned {
        /// The journal.
        path: PathBuf,
    },

    /// Something that does not take the lock changed the journal while it was open.
    #[error(
        "{} is {found} bytes long, but this process, which holds the lock, left it at {expected}; something else wrote to it: close the database and open it again (use `jitune db merge` to add a file)",
        path.display()
    )]
    JournalChanged {
        /// The journal.
        path: PathBuf,
        /// The length this process left.
        expected: u64,
        /// The length it found.
        found: u64,
    },

    /// Another file has taken the journal's place while it was open.
    #[error(
        "{} is another file than the one this process, which holds the lock, opened; nothing was written: close the database and open it again (use `jitune db merge` to add a file)",
        path.display()
    )]
    JournalReplaced {
        /// The journal.
        path: PathBuf,
    },

    /// A sync failed earlier, so what this handle has written since the sync
    /// before may not be on the disk, and nothing more is promised through it.
    #[error(
        "{} could not be synced to the disk earlier, so nothing more is written through this handle; look after the disk, then open the database again: what was acknowledged before is in it, and `jitune db verify` reads every byte",
        path.display()
    )]
    SyncFailed {
        /// The database folder.
        path: PathBuf,
    },

    /// What was to be merged holds no record that this program reads.
    #[error(
        "no line is a record that this version reads ({lines} of them; line {line}: {why}); `jitune db export-journal` writes a file that merges"
    )]
    NotAJournal {
        /// How many lines it has.
        lines: u64,
        /// The first of them, from 1.
        line: u64,
        /// What is wrong with that.
        why: String,
    },

    /// What was to be merged goes on without a record.
    #[error(
        "more than {bytes} bytes of it hold no record that this version reads, and what follows was not looked at; `jitune db export-journal` writes a file that merges"
    )]
    Endless {
        /// How many bytes were looked at in vain.
        bytes: u64,
    },

    /// What was to be merged is empty.
    #[error("there is no record in it; `jitune db export-journal` writes a file that merges")]
    NoRecord,

    /// The record cannot be stored so that it reads back the same.
    #[error("cannot store this record: {why}")]
    InvalidRecord {
        /// The reason.
        why: String,
    },

    /// Text that should be a hash is not 64 lower-case hex digits.
    #[error("{text:?} is not a hash: 64 lower-case hex digits are expected")]
    BadHash {
        /// The text.
        text: String,
    },

    /// No environment variable says where the database goes.
    #[error("cannot tell where the database goes: JITUNE_DB, XDG_DATA_HOME and HOME are unset; give --db a folder")]
    NoHome,
}

/// The result type of the crate.
pub type Result<T> = std::result::Result<T, Error>;

/// Turns an `io::Error` into [`Error::Io`] with its evidence.
pub(crate) fn io_at(doing: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Error {
    let path = path.into();
    move |source| Error::Io { doing, path, source }
}

fn first_aid(source: &io::Error) -> &'static str {
    match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
            "free space on that disk"
        }
        io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::PermissionDenied => "make it writable, only read from it",
        _ => "check the path and its permissions",
    }
}
