//! Owns [`Db`]: opening, closing, storing and looking up, and the order in which
//! journal and index are touched (the journal first, always).
//!
//! It does not own how answers are found (`lookup`), how the folder comes up
//! (`opening`), nor the long operations (`exchange`, `gc`, `verify`).

use crate::{
    ArtifactHash, Error, Key, Kind, OpenOptions, OpenReport, Reader, Record, Result,
    artifacts::{self, Loaded},
    disk::Disk,
    error::io_at,
    files,
    index::{self, Fault, Index},
    journal::Journal,
    line,
    lock::Lock,
    opening::{IndexState, index_of, load},
    recover::{self, QUARANTINE},
};
use serde::Serialize;
use std::{
    fs,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

/// Sizes and counts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Stats {
    /// Length of the journal.
    pub journal_bytes: u64,
    /// Keys that have a winner.
    pub winners: u64,
    /// Keys whose winner was withdrawn.
    pub withdrawn: u64,
    /// Configs that have a verdict.
    pub trials: u64,
    /// Keys of any record.
    pub keys: u64,
    /// Stored artifacts.
    pub artifacts: u64,
    /// Their bytes.
    pub artifact_bytes: u64,
    /// Files in quarantine.
    pub quarantined: u64,
}

/// An open tuning database. It may be shared between threads.
///
/// Dropping it syncs what is not yet synced, closes the index and lets go of the
/// lock. [`Db::close`] does the same and reports a failure.
#[derive(Debug)]
pub struct Db {
    pub(crate) dir: PathBuf,
    state: Mutex<State>,
    pub(crate) disk: Disk,
    /// Held until the last field goes; `None` in read-only mode.
    lock: Option<Lock>,
}

/// Everything that changes, behind the one lock of the handle.
#[derive(Debug)]
pub(crate) struct State {
    pub(crate) journal: Journal,
    pub(crate) index: Index,
    pub(crate) report: OpenReport,
}

impl Db {
    /// Opens the database in the folder `path`, creating it unless read-only,
    /// and mends what a kill or a bad disk left behind (see [`Db::report`]).
    pub fn open(path: impl AsRef<Path>, options: OpenOptions) -> Result<Self> {
        let dir = path.as_ref().to_path_buf();
        if options.read_only {
            return Self::open_read_only(dir, options.reader);
        }
        if !options.create && !dir.join(files::JOURNAL).exists() {
            return Err(Error::Missing { path: dir });
        }
        create_folder(&dir)?;
        let lock = Lock::take(&dir, options.wait)?;
        let mut journal = Journal::open(&dir, false, options.reader)?;
        let (index, state, bad_lines) = load(&mut journal, &dir)?;
        let report = OpenReport { bad_lines, bad_artifacts: Vec::new(), index: state };
        let disk = journal.disk().clone();
        let state = Mutex::new(State { journal, index, report });
        Ok(Self { dir, state, disk, lock: Some(lock) })
    }

    fn open_read_only(dir: PathBuf, reader: Reader) -> Result<Self> {
        let journal = Journal::open(&dir, true, reader)?;
        let (index, bad_lines) = index_of(&journal)?;
        let made = IndexState::InMemory("the database was opened read-only".into());
        let report = OpenReport { bad_lines, bad_artifacts: Vec::new(), index: made };
        let disk = journal.disk().clone();
        let state = Mutex::new(State { journal, index, report });
        Ok(Self { dir, state, disk, lock: None })
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.dir
    }

    /// Whether it was opened read-only.
    pub fn is_read_only(&self) -> bool {
        self.lock.is_none()
    }

    /// What was found and mended since the database was opened.
    pub fn report(&self) -> OpenReport {
        self.state().report.clone()
    }

    /// Stores a winner (or, by its kind, withdraws one). It is durable when this
    /// returns, and it is what [`Db::winner`] answers from then on: where the
    /// slot already holds a record as new or newer, this one is dated one second
    /// after that one. Returns the date it was stored with.
    pub fn put_winner(&self, record: &Record) -> Result<u64> {
        if record.kind == Kind::Trial {
            return Err(Error::InvalidRecord { why: "it is a trial, not a winner".into() });
        }
        self.put(record, true)
    }

    /// Withdraws the winner of a key: look-ups miss until a newer one is stored.
    /// Durable when it returns.
    pub fn withdraw_winner(&self, key: &Key, body: serde_json::Value) -> Result<u64> {
        let mut record = Record::winner(key.clone(), body);
        record.kind = Kind::Withdrawn;
        self.put_winner(&record)
    }

    /// Stores a trial. It survives a kill at once; power loss may take it until
    /// the next winner, [`Db::sync`] or close. Dated like a winner.
    pub fn put_trial(&self, record: &Record) -> Result<u64> {
        if record.kind != Kind::Trial {
            return Err(Error::InvalidRecord { why: "it is not a trial".into() });
        }
        self.put(record, false)
    }

    fn put(&self, record: &Record, durable: bool) -> Result<u64> {
        self.writable("store a record")?;
        let mut state = self.state();
        if !(state.journal.reader().reads)(record) {
            return Err(Error::InvalidRecord { why: "the reader that the database was opened with refuses it".into() });
        }
        if record.merged {
            return Err(Error::InvalidRecord { why: "a merge brought it; only what was seen here is stored".into() });
        }
        let id = record.key.id();
        let slot = index::slot_of(record.kind, &id, record.sub.as_deref());
        let (mut bytes, mut hash) = line::encode(record)?;
        let mut at = record.at;
        if let Some(old) = state.entry(&slot) {
            if old.hash == hash && !self.current(&mut state, &slot)?.is_some_and(|there| there.merged) {
                // Already there; a trial put again as durable as asked.
                return if durable { state.journal.sync().map(|()| at) } else { Ok(at) };
            }
            if (at, hash) <= (old.at, old.hash) {
                at = old.at.saturating_add(1);
                (bytes, hash) = line::encode(&Record { at, ..record.clone() })?;
            }
        }
        self.append(&mut state, &bytes, hash, durable)?;
        Ok(at)
    }

    /// Appends a line to the journal, then tells the index.
    pub(crate) fn append(&self, state: &mut State, bytes: &[u8], hash: [u8; 32], durable: bool) -> Result<()> {
        let offset = state.journal.append(bytes, durable)?;
        let text = bytes.strip_suffix(b"\n").unwrap_or(bytes);
        let head = line::check(text).and_then(|sealed| sealed.head(&state.journal.reader()));
        match head {
            Ok(head) => drop(state.index.take_up(&head, hash, offset, text.len())),
            // It was checked before it was written, so the journal says something else than was written.
            Err(why) => self.reload(state, format!("a line just written does not read back: {why}"))?,
        }
        Ok(())
    }

    /// Stores bytes under their hash; durable when it returns.
    pub fn put_artifact(&self, bytes: &[u8]) -> Result<ArtifactHash> {
        self.writable("store an artifact")?;
        artifacts::put(&self.dir, &self.disk, bytes)
    }

    /// The bytes of an artifact, checked against the hash. Corrupt bytes go to
    /// quarantine (see [`Db::report`]) and read as missing.
    pub fn artifact(&self, hash: &ArtifactHash) -> Result<Option<Vec<u8>>> {
        match artifacts::load(&self.dir, hash)? {
            Loaded::Good(bytes) => Ok(Some(bytes)),
            Loaded::Missing => Ok(None),
            Loaded::Corrupt => {
                let mut path = self.artifact_path(hash);
                if !self.is_read_only() {
                    path = artifacts::quarantine(&self.dir, &self.disk, &path)?;
                }
                self.state().report.bad_artifacts.push(path);
                Ok(None)
            }
        }
    }

    /// Where an artifact is, if it is there. What is read from the path directly
    /// is not checked.
    pub fn artifact_path(&self, hash: &ArtifactHash) -> PathBuf {
        artifacts::path(&self.dir, hash)
    }

    /// Makes every stored trial durable.
    pub fn sync(&self) -> Result<()> {
        self.state().journal.sync()
    }

    /// Reads the whole journal and every artifact again, moves what is bad to
    /// quarantine and rebuilds the index. [`Db::verify`] says whether it is needed.
    pub fn repair(&self) -> Result<OpenReport> {
        self.writable("repair it")?;
        self.reload(&mut self.state(), "a repair was asked for".into())?;
        for path in self.check_artifacts()?.bad {
            let moved = artifacts::quarantine(&self.dir, &self.disk, &path)?;
            self.state().report.bad_artifacts.push(moved);
        }
        Ok(self.report())
    }

    /// Sizes and counts.
    pub fn stats(&self) -> Result<Stats> {
        let state = self.state();
        let winners = state.entries(&[index::WINNERS]);
        let live = winners.iter().filter(|(_, e)| e.kind == Kind::Winner).count() as u64;
        let files = artifacts::list(&self.dir)?;
        let stored = files.iter().filter(|f| f.hash.is_some());
        Ok(Stats {
            journal_bytes: state.journal.len(),
            winners: live,
            withdrawn: winners.len() as u64 - live,
            trials: state.entries(&[index::TRIALS]).len() as u64,
            keys: state.index.prefix(&[index::KEYS]).count() as u64,
            artifacts: stored.clone().count() as u64,
            artifact_bytes: stored.map(|f| f.bytes).sum(),
            quarantined: fs::read_dir(self.dir.join(QUARANTINE)).map_or(0, |d| d.count() as u64),
        })
    }

    /// Syncs, closes the index and lets go of the lock.
    pub fn close(self) -> Result<()> {
        self.sync()
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        // A panic elsewhere cannot leave the state half-changed in a way that the
        // checks on each look-up would not find.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn writable(&self, doing: &'static str) -> Result<()> {
        if self.is_read_only() {
            return Err(Error::ReadOnly { doing, path: self.dir.clone() });
        }
        self.disk.usable()
    }

    /// Cleans the journal and rebuilds the index.
    pub(crate) fn reload(&self, state: &mut State, why: Fault) -> Result<()> {
        if self.is_read_only() {
            (state.index, state.report.bad_lines) = index_of(&state.journal)?;
            return Ok(());
        }
        let bad = recover::clean(&mut state.journal, &self.dir, 0)?.bad;
        state.report.bad_lines.extend(bad);
        state.index = index_of(&state.journal)?.0;
        state.report.index = IndexState::Rebuilt(why);
        Ok(())
    }
}

impl Drop for Db {
    fn drop(&mut self) {
        if self.is_read_only() {
            return;
        }
        let mut state = self.state();
        if state.journal.sync().is_ok() {
            index::close(&state.index, &self.dir, &state.journal);
        }
    }
}

fn create_folder(dir: &Path) -> Result<()> {
    if dir.is_dir() {
        return Ok(());
    }
    fs::create_dir_all(dir).map_err(io_at("create the database folder", dir))?;
    // Best effort: the parent may be readable by others only.
    if let Some(parent) = dir.parent().filter(|p| !p.as_os_str().is_empty()) {
        let _ = Disk::of(parent).sync_dir(parent);
    }
    Ok(())
}
