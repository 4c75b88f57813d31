//! Owns how a database comes up: the options, what was found and mended, and
//! bringing the index up to the journal.
//!
//! It does not own what is done with an open database (`db`, `lookup`).

use crate::{
    Result,
    files::lossy,
    index::{self, Index},
    journal::Journal,
    record::Reader,
    recover::{self, BadLine, Cleaned, Survey},
};
use serde::Serialize;
use std::{
    fmt,
    path::{Path, PathBuf},
    time::Duration,
};

/// How a database is opened.
#[derive(Clone, Copy, Debug)]
pub struct OpenOptions {
    /// How long to wait for another process to let go of it.
    pub wait: Duration,
    /// Only look: takes no lock, writes nothing, works on a folder without write
    /// access and beside a running writer. It sees the journal as it was at the
    /// moment of opening.
    pub read_only: bool,
    /// Whether a database is made where there is none; [`Error::Missing`](crate::Error::Missing) otherwise.
    pub create: bool,
    /// Which records the caller can make sense of; every one by default.
    pub reader: Reader,
}

impl Default for OpenOptions {
    fn default() -> Self {
        Self { wait: Duration::from_secs(10), read_only: false, create: true, reader: Reader::default() }
    }
}

impl OpenOptions {
    /// Options for looking only.
    pub fn read_only() -> Self {
        Self { read_only: true, ..Self::default() }
    }
}

/// What became of the index.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub enum IndexState {
    /// It covered the whole journal.
    Current,
    /// It covered a part; this many lines were added to it.
    CaughtUp(u64),
    /// It was rebuilt from the journal, for this reason.
    Rebuilt(String),
    /// It was made from the journal for this handle alone, for this reason.
    InMemory(String),
}

impl fmt::Display for IndexState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Current => f.write_str("the index is current"),
            Self::CaughtUp(n) => write!(f, "{n} journal line(s) were added to the index"),
            Self::Rebuilt(why) => write!(f, "the index was rebuilt from the journal: {why}"),
            Self::InMemory(why) => write!(f, "the index is in memory: {why}"),
        }
    }
}

/// What was found and mended since the database was opened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct OpenReport {
    /// Bad lines of the journal. Each cost that line alone.
    pub bad_lines: Vec<BadLine>,
    /// Corrupt artifacts that were moved to quarantine.
    #[serde(serialize_with = "lossy::list")]
    pub bad_artifacts: Vec<PathBuf>,
    /// What became of the index.
    pub index: IndexState,
}

/// Opens the index and brings it up to the journal.
pub(crate) fn load(journal: &mut Journal, dir: &Path) -> Result<(Index, IndexState, Vec<BadLine>)> {
    let (mut index, covered) = match index::open_sealed(dir, journal) {
        Ok(opened) => opened,
        Err(why) => {
            let bad = recover::clean(journal, dir, 0)?.bad;
            return Ok((index_of(journal)?.0, IndexState::Rebuilt(why), bad));
        }
    };
    let Cleaned { bad, rewritten } = recover::clean(journal, dir, covered)?;
    if rewritten {
        return Ok((index_of(journal)?.0, IndexState::Rebuilt("the journal was mended".into()), bad));
    }
    let found = take_up(&mut index, journal, covered)?;
    let state = match found.lines {
        0 => IndexState::Current,
        n => IndexState::CaughtUp(n),
    };
    Ok((index, state, bad))
}

/// The whole index, from the journal alone.
pub(crate) fn index_of(journal: &Journal) -> Result<(Index, Vec<BadLine>)> {
    let mut index = Index::default();
    let found = take_up(&mut index, journal, 0)?;
    Ok((index, found.bad))
}

/// Takes up every record from `from` on.
fn take_up(index: &mut Index, journal: &Journal, from: u64) -> Result<Survey> {
    recover::survey(journal, from, |good| {
        if let Some(head) = good.head() {
            let range = good.range();
            index.take_up(&head, good.sealed.hash, range.start, (range.end - range.start) as usize);
        }
    })
}
