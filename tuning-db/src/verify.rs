//! Owns [`Db::verify`]: reading every byte of a database and saying what is wrong.
//!
//! It changes nothing: [`Db::repair`] mends the journal and the index, and moves
//! corrupt artifacts to quarantine.

use crate::{
    ArtifactHash, Db, KeyId, Kind, Result,
    artifacts::{self, Loaded},
    files::lossy,
    gc::artifact_names,
    index,
    opening::index_of,
    recover::BadLine,
};
use serde::Serialize;
use std::{collections::HashSet, path::PathBuf};

/// An artifact that a winner names and the database does not hold.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct MissingArtifact {
    /// The winner's key.
    pub key: KeyId,
    /// What is missing.
    pub artifact: ArtifactHash,
}

/// What a verification read and found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct VerifyReport {
    /// Slots (winners and trials) that the journal holds a current record for.
    pub records: u64,
    /// Length of the journal.
    pub journal_bytes: u64,
    /// Lines that are damaged.
    pub bad_lines: Vec<BadLine>,
    /// Index entries that differ from the journal's.
    pub index_differences: u64,
    /// Artifacts read.
    pub artifacts: u64,
    /// Artifacts whose bytes are not those of their name, and files under
    /// `artifacts/` that are no artifacts.
    #[serde(serialize_with = "lossy::list")]
    pub bad_artifacts: Vec<PathBuf>,
    /// Artifacts that winners name and that are not there. They can be built
    /// again, so this alone is no damage.
    pub missing_artifacts: Vec<MissingArtifact>,
}

/// What lies under `artifacts/`.
#[derive(Default)]
pub(crate) struct Checked {
    good: HashSet<ArtifactHash>,
    pub(crate) bad: Vec<PathBuf>,
    read: u64,
}

impl VerifyReport {
    /// Whether nothing is damaged.
    pub fn is_clean(&self) -> bool {
        self.bad_lines.is_empty() && self.index_differences == 0 && self.bad_artifacts.is_empty()
    }
}

impl Db {
    /// Checks every line, every artifact, and the index against the journal.
    pub fn verify(&self) -> Result<VerifyReport> {
        let state = self.state();
        let (want, bad_lines) = index_of(&state.journal)?;
        let (want, have) = (want.map(), state.index.map());
        let differs = |(slot, value): &(&Vec<u8>, &Vec<u8>)| have.get(*slot) != Some(*value);
        let extra = have.keys().filter(|slot| !want.contains_key(*slot)).count();
        let mut report = VerifyReport {
            records: want.keys().filter(|slot| slot.first() != Some(&index::KEYS)).count() as u64,
            journal_bytes: state.journal.len(),
            bad_lines,
            index_differences: (want.iter().filter(differs).count() + extra) as u64,
            ..VerifyReport::default()
        };
        drop(state);
        let found = self.check_artifacts()?;
        (report.artifacts, report.bad_artifacts) = (found.read, found.bad);
        for winner in self.winners()? {
            let winner = winner?;
            debug_assert_eq!(winner.kind, Kind::Winner);
            let mut named = HashSet::new();
            artifact_names(&winner.body, false, &mut named);
            let mut missing: Vec<_> = named.difference(&found.good).copied().collect();
            missing.sort();
            let key = winner.key.id();
            let missing = missing.into_iter().map(|artifact| MissingArtifact { key, artifact });
            report.missing_artifacts.extend(missing);
        }
        Ok(report)
    }

    pub(crate) fn check_artifacts(&self) -> Result<Checked> {
        let mut checked = Checked::default();
        for file in artifacts::list(&self.dir)? {
            let Some(hash) = file.hash else {
                if !file.temp {
                    checked.bad.push(file.path);
                }
                continue;
            };
            checked.read += 1;
            match artifacts::load(&self.dir, &hash)? {
                Loaded::Good(_) => {
                    checked.good.insert(hash);
                }
                Loaded::Corrupt => checked.bad.push(file.path),
                Loaded::Missing => (),
            }
        }
        Ok(checked)
    }
}
