//! Owns how records move between databases: [`Db::merge`] and
//! [`Db::export_journal`]. Both speak journal lines.
//!
//! It does not move artifacts: a winner that arrives without its artifact is
//! built again by whoever needs it (`verify` lists those).

use crate::{
    Db, Error, Kind, Record, Result,
    clock::now,
    db::State,
    error::io_at,
    gc::artifact_names,
    index::{self, Entry},
    journal::walk_lines,
    line,
    lookup::fetch,
};
use serde::Serialize;
use std::{
    cell::Cell,
    collections::{BTreeMap, HashSet},
    io::{self, BufReader, Read, Write},
};

/// A line of a merged file that was not taken.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct SkippedLine {
    /// Its number in the file, from 1.
    pub line: u64,
    /// What is wrong with it.
    pub why: String,
}

/// What a merge did, line by line.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct MergeReport {
    /// Records taken: new, or newer than what was there.
    pub added: u64,
    /// Records that were already there.
    pub same: u64,
    /// Records passed over for a newer one of the same slot.
    pub older: u64,
    /// Records that are newer than the one there, which was seen here and whose artifacts are here, if it names some: it stays, until
    /// something is measured that is newer still.
    pub kept: u64,
    /// Lines that were not taken: damaged, not of this store, dated in the future, or without sense to the caller.
    pub skipped: u64,
    /// The first hundred of them.
    pub bad_lines: Vec<SkippedLine>,
}

/// How far ahead of this machine's clock a merged record may be dated: clocks differ, and time zones are mistaken.
const CLOCKS_DIFFER: u64 = 86_400;
/// Most bytes of a merged file that may go by without a record: a file without end is none of ours.
const MOST_WITHOUT: u64 = 256 << 20;
/// Most skipped lines that are told one by one.
const TOLD: usize = 100;

/// A stream that ends where nothing of it was of use for long.
struct Patient<'a, R> {
    reader: R,
    /// Bytes since the last record.
    without: &'a Cell<u64>,
}

impl<R: Read> Read for Patient<'_, R> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        if self.without.get() > MOST_WITHOUT {
            return Ok(0);
        }
        let read = self.reader.read(bytes)?;
        self.without.set(self.without.get() + read as u64);
        Ok(read)
    }
}

impl MergeReport {
    fn skip(&mut self, line: u64, why: &str) {
        self.skipped += 1;
        if self.bad_lines.len() < TOLD {
            self.bad_lines.push(SkippedLine { line, why: why.into() });
        }
    }
}

impl Db {
    /// Takes the records of another journal (or of an export of one), each as
    /// [merged](Record::merged). The result does not depend on the order of merges, nor
    /// on how often a file is merged; but what was seen here and whose artifacts are here
    /// stays, even where it is withdrawn elsewhere: what comes from elsewhere takes away
    /// nothing that can be used.
    /// Everything added is durable when it returns. A stream in which no line is a
    /// record that this program reads is no journal: [`Error::NotAJournal`], or
    /// [`Error::NoRecord`] where there is no line at all. One that goes on for long without
    /// a record is not read to its end: [`Error::Endless`].
    pub fn merge(&self, reader: impl Read) -> Result<MergeReport> {
        self.writable("merge into it")?;
        let mut state = self.state();
        let mut report = MergeReport::default();
        let mut number = 0;
        let mut records = 0;
        let mut failed = None;
        let latest = now().saturating_add(CLOCKS_DIFFER);
        let without = Cell::new(0);
        let mut reader = BufReader::new(Patient { reader, without: &without });
        let walked = walk_lines(&mut reader, 0, |raw| {
            number += 1;
            if failed.is_some() {
                return;
            }
            // Journals that went through other tools may have \r\n.
            let bytes = raw.bytes.strip_suffix(b"\r").unwrap_or(raw.bytes);
            let read = line::check(bytes).and_then(|sealed| {
                let head = sealed.head(&state.journal.reader())?;
                match head.at > latest {
                    true => Err("it is dated in the future; is a clock wrong, there or here?"),
                    false => Ok((sealed, head)),
                }
            });
            let (sealed, head) = match read {
                Ok(read) => read,
                Err(why) => return report.skip(number, why),
            };
            let line = match line::merged(sealed.rec, &state.journal.reader()) {
                Ok(line) => line,
                Err(why) => return report.skip(number, why),
            };
            records += 1;
            without.set(0);
            let slot = index::slot_of(head.kind, &head.key.id(), head.sub.as_deref());
            let mut take = || -> Result<()> {
                let old = state.entry(&slot);
                if let Some(old) = old {
                    if old.hash == sealed.hash {
                        report.same += 1;
                        return Ok(());
                    }
                    if (head.at, sealed.hash) < (old.at, old.hash) {
                        report.older += 1;
                        return Ok(());
                    }
                    if old.kind != Kind::Withdrawn && self.is_ours(&mut state, &slot)? {
                        report.kept += 1;
                        return Ok(());
                    }
                }
                self.append(&mut state, &line, sealed.hash, false)?;
                report.added += 1;
                Ok(())
            };
            failed = take().err();
        });
        if let Some(error) = failed {
            return Err(error);
        }
        walked.map_err(io_at("read the file to merge into", &self.dir))?;
        state.journal.sync()?;
        if without.get() > MOST_WITHOUT {
            return Err(Error::Endless { bytes: MOST_WITHOUT });
        }
        match report.bad_lines.first() {
            _ if records > 0 => Ok(report),
            Some(first) => Err(Error::NotAJournal { lines: report.skipped, line: first.line, why: first.why.clone() }),
            None => Err(Error::NoRecord),
        }
    }

    /// Whether the current record of a slot was seen here, and the artifacts that it names are all here.
    fn is_ours(&self, state: &mut State, slot: &[u8]) -> Result<bool> {
        let Some(record) = self.current(state, slot)?.filter(|record| !record.merged) else { return Ok(false) };
        let mut named = HashSet::new();
        artifact_names(&record.body, false, &mut named);
        Ok(named.iter().all(|hash| self.artifact_path(hash).is_file()))
    }

    /// Writes the current records that pass `filter` as journal lines, sorted by
    /// kind, key and sub: two databases with the same records export the same
    /// bytes. Returns how many were written.
    pub fn export_journal(&self, mut writer: impl Write, filter: impl Fn(&Record) -> bool) -> Result<u64> {
        let mut state = self.state();
        type Place = (u8, String, Option<String>);
        let mut sorted: BTreeMap<Place, (Vec<u8>, Entry)> = BTreeMap::new();
        for tag in [index::WINNERS, index::TRIALS] {
            for (slot, _) in state.entries(&[tag]) {
                // Through the checked look-up first: it mends what is damaged.
                let Some(record) = self.current(&mut state, &slot)? else { continue };
                let Some(entry) = state.entry(&slot) else { continue };
                if filter(&record) {
                    let place = u8::from(record.kind == Kind::Trial);
                    sorted.insert((place, record.key.canonical(), record.sub), (slot, entry));
                }
            }
        }
        let fail = |e: io::Error| io_at("write an export of", &self.dir)(e);
        let mut written = 0;
        for (slot, entry) in sorted.values() {
            if let Some(record) = fetch(&state.journal, slot, entry) {
                let (line, _) = line::encode(&Record { merged: false, ..record })?;
                writer.write_all(&line).map_err(fail)?;
                written += 1;
            }
        }
        writer.flush().map_err(fail)?;
        Ok(written)
    }
}
