//! Owns what happens to damage in the journal: which lines are good, what is
//! moved to `quarantine/`, how the journal is made clean again.
//!
//! It does not own the index: whoever calls it rebuilds that where offsets moved.

use crate::{
    Result,
    disk::Disk,
    error::io_at,
    files::lossy,
    journal::{Journal, RawLine},
    line::{self, Head, Sealed},
    record::Reader,
};
use serde::Serialize;
use std::{
    fmt,
    fs::{self, File},
    io::Write,
    path::{Path, PathBuf},
};

/// Name of the folder for what was damaged.
pub(crate) const QUARANTINE: &str = "quarantine";

/// A line of the journal that could not be used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct BadLine {
    /// Its number, from 1; 0 where only a part of the journal was read.
    pub line: u64,
    /// Where it starts.
    pub offset: u64,
    /// Its length in bytes.
    pub bytes: u64,
    /// What is wrong with it.
    pub why: String,
    /// Whether it is the last line and no newline ends it: a write was cut short.
    pub torn: bool,
    /// Good records found inside it; they are kept.
    pub salvaged: usize,
    /// Where its bytes went, when it was moved.
    #[serde(serialize_with = "lossy::maybe")]
    pub moved_to: Option<PathBuf>,
}

impl fmt::Display for BadLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = if self.torn { "torn last line" } else { "bad line" };
        write!(f, "{what} at byte {} ({} bytes): {}", self.offset, self.bytes, self.why)?;
        if self.salvaged > 0 {
            write!(f, "; {} whole record(s) in it kept", self.salvaged)?;
        }
        if let Some(path) = &self.moved_to {
            write!(f, "; its bytes are in {}", path.display())?;
        }
        Ok(())
    }
}

/// A good line: where it stands and what it says.
pub(crate) struct Good<'a> {
    pub(crate) offset: u64,
    pub(crate) bytes: &'a [u8],
    pub(crate) sealed: Sealed<'a>,
    reader: Reader,
}

impl Good<'_> {
    pub(crate) fn range(&self) -> std::ops::Range<u64> {
        self.offset..self.offset + self.bytes.len() as u64
    }

    /// The head, or `None` where the record is never a current one.
    pub(crate) fn head(&self) -> Option<Head> {
        self.sealed.head(&self.reader).ok()
    }
}

/// What a walk found beside good lines.
#[derive(Default)]
pub(crate) struct Survey {
    pub(crate) lines: u64,
    pub(crate) bad: Vec<BadLine>,
    /// The last line is whole but lacks its newline.
    unended: bool,
}

/// Visits every good line from `from` on, those inside bad lines too.
pub(crate) fn survey(journal: &Journal, from: u64, mut visit: impl FnMut(Good<'_>)) -> Result<Survey> {
    let mut out = Survey::default();
    let reader = journal.reader();
    journal.walk(from, |raw| {
        out.lines += 1;
        match line::check(raw.bytes) {
            Ok(sealed) => {
                out.unended = !raw.ended;
                visit(Good { offset: raw.offset, bytes: raw.bytes, sealed, reader });
            }
            Err(why) => {
                let line = if from == 0 { out.lines } else { 0 };
                out.bad.push(judge_bad(&raw, line, why, reader, &mut visit));
            }
        }
    })?;
    Ok(out)
}

fn judge_bad(raw: &RawLine<'_>, line: u64, why: &str, reader: Reader, visit: &mut impl FnMut(Good<'_>)) -> BadLine {
    let inside = if raw.len == raw.bytes.len() as u64 { line::salvage(raw.bytes) } else { Vec::new() };
    for range in &inside {
        let bytes = &raw.bytes[range.clone()];
        if let Ok(sealed) = line::check(bytes) {
            visit(Good { offset: raw.offset + range.start as u64, bytes, sealed, reader });
        }
    }
    BadLine {
        line,
        offset: raw.offset,
        bytes: raw.len,
        why: why.into(),
        torn: !raw.ended,
        salvaged: inside.len(),
        moved_to: None,
    }
}

/// What [`clean`] did.
#[derive(Default)]
pub(crate) struct Cleaned {
    pub(crate) bad: Vec<BadLine>,
    /// The journal was written anew, so lines may stand elsewhere.
    pub(crate) rewritten: bool,
}

/// Makes the journal clean from `from` on: bad lines go to quarantine, a torn
/// tail is cut off.
pub(crate) fn clean(journal: &mut Journal, dir: &Path, from: u64) -> Result<Cleaned> {
    let mut found = survey(journal, from, |_| ())?;
    if found.bad.is_empty() && !found.unended {
        return Ok(Cleaned::default());
    }
    let cut_only = matches!(
        found.bad.as_slice(),
        [only] if only.torn && only.salvaged == 0
    );
    if from > 0 && !cut_only {
        // It will be written anew, so all of it has to be looked at.
        return clean(journal, dir, 0);
    }
    for bad in &mut found.bad {
        bad.moved_to = match quarantine_line(journal, dir, bad) {
            // A torn line was never acknowledged: a full disk must not bar the
            // database over keeping it.
            Err(_) if bad.torn && bad.salvaged == 0 => None,
            other => Some(other?),
        };
    }
    if cut_only {
        journal.truncate(found.bad[0].offset)?;
    } else {
        let mut keep = Vec::new();
        survey(journal, 0, |good| keep.push(good.range()))?;
        journal.rewrite(&keep)?;
    }
    Ok(Cleaned { bad: found.bad, rewritten: !cut_only })
}

fn quarantine_line(journal: &Journal, dir: &Path, bad: &BadLine) -> Result<PathBuf> {
    let kept = bad.bytes.min(line::MAX_LINE as u64) as usize;
    let bytes = journal.read(bad.offset, kept).unwrap_or_default();
    let name = format!("line-{}.txt", &blake3::hash(&bytes).to_hex()[..16]);
    let folder = quarantine_dir(dir, journal.disk())?;
    let path = folder.join(name);
    let write = || {
        let mut file = File::create(&path)?;
        file.write_all(&bytes)?;
        journal.disk().sync(&file)
    };
    write().map_err(io_at("write", &path))?;
    journal.disk().sync_dir(&folder)?;
    Ok(path)
}

/// The quarantine folder, made when it is first needed.
pub(crate) fn quarantine_dir(dir: &Path, disk: &Disk) -> Result<PathBuf> {
    let folder = dir.join(QUARANTINE);
    if !folder.is_dir() {
        fs::create_dir_all(&folder).map_err(io_at("create", &folder))?;
        disk.sync_dir(dir)?;
    }
    Ok(folder)
}
