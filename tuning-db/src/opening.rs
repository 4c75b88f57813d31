//! Owns how a database comes up: the options, what was found and mended, and
//! bringing the index up to the journal.
//!
//! It does not own what is done with an open database (`db`, `lookup`).

use crate::{
    Result,
    index::{self, Fault, Index, Map},
    journal::Journal,
    record::Reader,
    recover::{self, BadLine, Cleaned},
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
    /// Which records the caller can make sense of; every one by default.
    pub reader: Reader,
}

impl Default for OpenOptions {
    fn default() -> Self {
        Self { wait: Duration::from_secs(10), read_only: false, reader: Reader::default() }
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
    /// Look-ups go through a map in memory, for this reason.
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
            let (index, state) = rebuild(journal, dir, why)?;
            return Ok((index, state, bad));
        }
    };
    let Cleaned { bad, rewritten } = recover::clean(journal, dir, covered)?;
    if rewritten {
        drop(index);
        let (index, state) = rebuild(journal, dir, "the journal was mended".into())?;
        return Ok((index, state, bad));
    }
    let mut fault = None;
    let found = recover::survey(journal, covered, |good| {
        if let (None, Some(head)) = (&fault, good.head()) {
            let range = good.range();
            let len = (range.end - range.start) as usize;
            fault = index.take_up(&head, good.sealed.hash, range.start, len).err();
        }
    })?;
    if let Some(why) = fault {
        drop(index);
        let (index, state) = rebuild(journal, dir, why)?;
        return Ok((index, state, bad));
    }
    let state = match found.lines {
        0 => IndexState::Current,
        n => IndexState::CaughtUp(n),
    };
    Ok((index, state, bad))
}

pub(crate) fn rebuild(journal: &Journal, dir: &Path, why: Fault) -> Result<(Index, IndexState)> {
    let (map, _) = map_of(journal)?;
    Ok(match index::build_sled(dir, map) {
        (index, None) => (index, IndexState::Rebuilt(why)),
        (index, Some(fault)) => (index, IndexState::InMemory(fault)),
    })
}

/// The whole index as a map, from the journal alone.
pub(crate) fn map_of(journal: &Journal) -> Result<(Map, Vec<BadLine>)> {
    let mut index = Index::memory();
    let found = recover::survey(journal, 0, |good| {
        if let Some(head) = good.head() {
            let range = good.range();
            let len = (range.end - range.start) as usize;
            // A map takes everything.
            let _ = index.take_up(&head, good.sealed.hash, range.start, len);
        }
    })?;
    match index {
        Index::Memory(map) => Ok((map, found.bad)),
        Index::Sled(_) => Ok((Map::new(), found.bad)),
    }
}
