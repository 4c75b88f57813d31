//! Owns [`Db::gc`]: dropping what no look-up can reach any more.
//!
//! It runs only under the exclusive lock, since a read-only handle is refused,
//! and it makes the shorter journal durable before it deletes an artifact.

use crate::{ArtifactHash, Db, Kind, Result, artifacts, db::State, error::io_at, index, line::Sealed, recover};
use serde::Serialize;
use serde_json::Value;
use std::{
    collections::{BTreeMap, HashSet},
    fs,
    ops::Range,
    time::{Duration, SystemTime},
};

/// Name of the body fields that name artifacts.
const ARTIFACT_FIELD: &str = "artifact";

/// What to drop beside superseded records.
#[derive(Clone, Copy, Debug)]
pub struct GcOptions {
    /// Drop trials dated before this (seconds since 1970) too.
    pub trials_before: Option<u64>,
    /// Keep artifacts that no record names when they are younger than this: a
    /// tuner stores an artifact first and names it in a winner later.
    pub artifact_grace: Duration,
    /// Only count.
    pub dry_run: bool,
}

impl Default for GcOptions {
    fn default() -> Self {
        Self { trials_before: None, artifact_grace: Duration::from_secs(3600), dry_run: false }
    }
}

/// What was dropped and kept (or would be, in a dry run).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct GcReport {
    /// Journal lines kept.
    pub lines_kept: u64,
    /// Journal lines dropped.
    pub lines_dropped: u64,
    /// Length of the journal before.
    pub journal_bytes_before: u64,
    /// Length of the journal after.
    pub journal_bytes_after: u64,
    /// Artifacts kept.
    pub artifacts_kept: u64,
    /// Artifacts dropped.
    pub artifacts_dropped: u64,
    /// Bytes of the artifacts dropped.
    pub artifact_bytes_dropped: u64,
    /// Leftovers of killed writes that were dropped.
    pub temp_files_dropped: u64,
}

impl Db {
    /// Compacts the journal (a new file, synced, renamed over the old) and
    /// deletes the artifacts that no kept record names. Withdrawals stay, or a
    /// merge would bring the withdrawn winner back; so do lines that a newer
    /// version of the store wrote.
    pub fn gc(&self, options: GcOptions) -> Result<GcReport> {
        self.writable("collect garbage")?;
        let mut state = self.state();
        // Decide from a clean journal and an index known to be right.
        self.reload(&mut state, "garbage was collected".into())?;
        let live = live(&state, &options);
        let mut keep: Vec<Range<u64>> = Vec::new();
        let mut named = HashSet::new();
        let mut report = GcReport { journal_bytes_before: state.journal.len(), ..GcReport::default() };
        recover::survey(&state.journal, 0, |good| {
            // The same line twice (a hand-made merge) is kept once.
            let kept = match good.head() {
                None => true,
                Some(_) => live.get(&good.offset) == Some(&good.sealed.hash),
            };
            if kept {
                keep.push(good.range());
                names_in(&good.sealed, &mut named);
                report.lines_kept += 1;
            } else {
                report.lines_dropped += 1;
            }
        })?;
        report.journal_bytes_after = keep.iter().map(|r| r.end - r.start + 1).sum();
        if !options.dry_run && report.lines_dropped > 0 {
            state.journal.sync()?;
            state.journal.rewrite(&keep)?;
            self.reload(&mut state, "garbage was collected".into())?;
        }
        self.sweep(&named, &options, &mut report)?;
        Ok(report)
    }

    fn sweep(&self, named: &HashSet<ArtifactHash>, options: &GcOptions, report: &mut GcReport) -> Result<()> {
        let now = SystemTime::now();
        for file in artifacts::list(&self.dir)? {
            let age = now.duration_since(file.modified).unwrap_or_default();
            let drop_it = match file.hash {
                // The lock is ours, so no temporary file is in use by another process;
                // the grace covers those of this one.
                None => file.temp && age >= options.artifact_grace,
                Some(hash) => !named.contains(&hash) && age >= options.artifact_grace,
            };
            match (drop_it, file.hash.is_some()) {
                (true, true) => {
                    report.artifacts_dropped += 1;
                    report.artifact_bytes_dropped += file.bytes;
                }
                (true, false) => report.temp_files_dropped += 1,
                (false, true) => report.artifacts_kept += 1,
                (false, false) => (),
            }
            if drop_it && !options.dry_run {
                fs::remove_file(&file.path).map_err(io_at("delete", &file.path))?;
            }
        }
        if !options.dry_run && report.artifacts_dropped > 0 {
            self.disk.sync_dir(&self.dir.join(artifacts::FOLDER))?;
        }
        Ok(())
    }
}

/// Offset and hash of each line to keep.
fn live(state: &State, options: &GcOptions) -> BTreeMap<u64, [u8; 32]> {
    let mut live = BTreeMap::new();
    for tag in [index::WINNERS, index::TRIALS] {
        for (_, entry) in state.entries(&[tag]) {
            let old = options.trials_before.is_some_and(|limit| entry.at < limit);
            if entry.kind != Kind::Trial || !old {
                live.insert(entry.offset, entry.hash);
            }
        }
    }
    live
}

fn names_in(sealed: &Sealed<'_>, out: &mut HashSet<ArtifactHash>) {
    if let Ok(value) = serde_json::from_slice::<Value>(sealed.rec) {
        artifact_names(&value, false, out);
    }
}

/// Collects every hash that stands under a field called `artifact`, at any depth.
pub(crate) fn artifact_names(value: &Value, under: bool, out: &mut HashSet<ArtifactHash>) {
    match value {
        Value::String(text) if under => out.extend(text.parse::<ArtifactHash>().ok()),
        Value::Array(items) => items.iter().for_each(|item| artifact_names(item, under, out)),
        Value::Object(map) => {
            for (name, item) in map {
                artifact_names(item, under || name == ARTIFACT_FIELD, out);
            }
        }
        _ => (),
    }
}
