//! Owns the file `journal.jsonl`: appending with roll-back, syncing, reading,
//! walking line by line, replacing it as a whole.
//!
//! It does not know which line is current (`index`) nor what to do about bad
//! lines (`recover`).

use crate::{
    Error, Result,
    disk::Disk,
    error::io_at,
    files,
    line::{self, MAX_LINE},
    record::Reader,
};
use std::{
    fs::{File, OpenOptions},
    io::{self, BufRead, BufReader, BufWriter, Read, Seek, SeekFrom, Write},
    ops::Range,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

/// How much of the journal's end identifies a state of it.
const TAIL: u64 = 4096;
/// Suffix of the file that replaces the journal.
const NEW: &str = "journal.jsonl.new";

/// The open journal.
#[derive(Debug)]
pub(crate) struct Journal {
    file: File,
    path: PathBuf,
    len: u64,
    unsynced: bool,
    poisoned: bool,
    disk: Disk,
    reader: Reader,
}

/// One line as it was found.
pub(crate) struct RawLine<'a> {
    /// Where it starts.
    pub(crate) offset: u64,
    /// Its bytes without the newline; at most [`MAX_LINE`] + 1 of them.
    pub(crate) bytes: &'a [u8],
    /// Its true length without the newline.
    pub(crate) len: u64,
    /// Whether a newline ends it; only the last line can lack one.
    pub(crate) ended: bool,
}

impl Journal {
    /// Opens the journal in `dir`; creates it (and syncs the folder) unless read-only.
    pub(crate) fn open(dir: &Path, read_only: bool, reader: Reader) -> Result<Self> {
        Self::open_on(dir, read_only, reader, Disk::of(dir))
    }

    fn open_on(dir: &Path, read_only: bool, reader: Reader, disk: Disk) -> Result<Self> {
        let path = dir.join(files::JOURNAL);
        let file = if read_only {
            match File::open(&path) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => {
                    return Err(Error::Missing { path: dir.into() });
                }
                other => other.map_err(io_at("open the journal", &path))?,
            }
        } else {
            let file = OpenOptions::new()
                .read(true)
                .append(true)
                .create(true)
                .open(&path)
                .map_err(io_at("open the journal", &path))?;
            // Every time: whoever created it may have ended before its name was durable.
            disk.sync_dir(dir)?;
            let _ = std::fs::remove_file(dir.join(NEW));
            file
        };
        // A link leads to the journal: what replaces it takes its place, and not the link's.
        let path = path.canonicalize().map_err(io_at("find", &path))?;
        let len = file.metadata().map_err(io_at("read the size of", &path))?.len();
        // A killed writer may have left lines that no one has synced yet.
        Ok(Self { file, path, len, unsynced: !read_only, poisoned: false, disk, reader })
    }

    /// Which records the caller reads.
    pub(crate) fn reader(&self) -> Reader {
        self.reader
    }

    /// The syncing that all writers in this folder share.
    pub(crate) fn disk(&self) -> &Disk {
        &self.disk
    }

    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    /// Appends one line (with its newline) by one write; `durable` syncs it too.
    /// After a failure the journal is as it was before.
    pub(crate) fn append(&mut self, line: &[u8], durable: bool) -> Result<u64> {
        self.disk.usable()?;
        if self.poisoned {
            return Err(Error::Poisoned { path: self.path.clone() });
        }
        let ours = File::open(&self.path).is_ok_and(|there| same_file(&there, &self.file));
        if !ours {
            return Err(Error::JournalReplaced { path: self.path.clone() });
        }
        let found = self.file.metadata().map_err(io_at("read the size of", &self.path))?.len();
        if found != self.len {
            return Err(Error::JournalChanged { path: self.path.clone(), expected: self.len, found });
        }
        // write_all is one write(2), unless the system takes a part only (a full
        // disk does that); then the next one brings the error to report.
        if let Err(source) = self.file.write_all(line) {
            let rolled_back = self.file.set_len(self.len).is_ok();
            self.poisoned = !rolled_back;
            return Err(Error::Append { path: self.path.clone(), source, rolled_back });
        }
        let offset = self.len;
        self.len += line.len() as u64;
        self.unsynced = true;
        if durable {
            self.sync()?;
        }
        Ok(offset)
    }

    /// Makes every appended line durable.
    pub(crate) fn sync(&mut self) -> Result<()> {
        self.disk.usable()?;
        if self.unsynced {
            self.disk.sync(&self.file).map_err(io_at("sync", &self.path))?;
            self.unsynced = false;
        }
        Ok(())
    }

    /// The bytes at `offset`, or `None` where the file cannot give them.
    pub(crate) fn read(&self, offset: u64, len: usize) -> Option<Vec<u8>> {
        if len > MAX_LINE || offset.checked_add(len as u64)? > self.len {
            return None;
        }
        let mut bytes = vec![0; len];
        self.file.read_exact_at(&mut bytes, offset).ok()?;
        Some(bytes)
    }

    /// A hash of the last bytes before `len`: two journals that agree on it and
    /// on `len` are taken to agree up to there (each look-up checks its line).
    pub(crate) fn tail_digest(&self, len: u64) -> Option<String> {
        let start = len.saturating_sub(TAIL);
        let bytes = self.read(start, (len - start) as usize)?;
        Some(blake3::hash(&bytes).to_hex().to_string())
    }

    /// Calls `visit` with every line from `from` on. Blank lines are passed over.
    pub(crate) fn walk(&self, from: u64, visit: impl FnMut(RawLine<'_>)) -> Result<()> {
        let fail = || io_at("read", &self.path);
        let mut file = File::open(&self.path).map_err(fail())?;
        // The path may have been replaced under a reader: then read our own file.
        if !same_file(&file, &self.file) {
            file = self.file.try_clone().map_err(fail())?;
        }
        file.seek(SeekFrom::Start(from)).map_err(fail())?;
        // A reader stops where the journal ended when it was opened.
        let file = file.take(self.len.saturating_sub(from));
        let mut reader = BufReader::with_capacity(1 << 16, file);
        walk_lines(&mut reader, from, visit).map_err(fail())
    }

    /// Cuts the journal back to `len`.
    pub(crate) fn truncate(&mut self, len: u64) -> Result<()> {
        self.file.set_len(len).map_err(io_at("cut the torn tail off", &self.path))?;
        self.len = len;
        self.disk.sync(&self.file).map_err(io_at("sync", &self.path))
    }

    /// Replaces the journal by the given stretches of it, each a line without its
    /// newline: a new file, synced, renamed over the old one.
    pub(crate) fn rewrite(&mut self, keep: &[Range<u64>]) -> Result<()> {
        let dir = self.path.parent().map(Path::to_path_buf).unwrap_or_default();
        let new = dir.join(NEW);
        let result = self.write_new(&new, keep);
        if result.is_err() {
            let _ = std::fs::remove_file(&new);
        }
        result?;
        std::fs::rename(&new, &self.path).map_err(io_at("replace", &self.path))?;
        // Until the new file is the open one, a line would go to the old one, which has no name any more.
        *self = Self::open_on(&dir, false, self.reader, self.disk.clone()).inspect_err(|_| self.disk.fail())?;
        Ok(())
    }

    fn write_new(&self, new: &Path, keep: &[Range<u64>]) -> Result<()> {
        let fail = || io_at("write", new);
        let mut out = BufWriter::new(File::create(new).map_err(fail())?);
        for range in keep {
            let len = (range.end - range.start) as usize;
            let bytes = self
                .read(range.start, len)
                .ok_or_else(|| io_at("read", &self.path)(io::Error::from(io::ErrorKind::UnexpectedEof)))?;
            line::check(&bytes).map_err(|why| io_at("copy a line of", &self.path)(io::Error::other(why)))?;
            out.write_all(&bytes).and_then(|()| out.write_all(b"\n")).map_err(fail())?;
        }
        let file = out.into_inner().map_err(|e| fail()(e.into_error()))?;
        self.disk.sync(&file).map_err(fail())
    }
}

fn same_file(a: &File, b: &File) -> bool {
    use std::os::unix::fs::MetadataExt;
    match (a.metadata(), b.metadata()) {
        (Ok(a), Ok(b)) => (a.dev(), a.ino()) == (b.dev(), b.ino()),
        _ => false,
    }
}

/// Splits a stream into lines without ever holding more than one of at most
/// [`MAX_LINE`] bytes.
pub(crate) fn walk_lines(reader: &mut impl BufRead, from: u64, mut visit: impl FnMut(RawLine<'_>)) -> io::Result<()> {
    let mut offset = from;
    let mut bytes = Vec::new();
    let mut len = 0u64;
    loop {
        let chunk = match reader.fill_buf() {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            other => other?,
        };
        let newline = chunk.iter().position(|&b| b == b'\n');
        let take = newline.unwrap_or(chunk.len());
        let room = (MAX_LINE + 1).saturating_sub(bytes.len());
        bytes.extend_from_slice(&chunk[..take.min(room)]);
        len += take as u64;
        let at_end = chunk.is_empty();
        reader.consume(take + usize::from(newline.is_some()));
        if newline.is_none() && !at_end {
            continue;
        }
        if len > 0 {
            visit(RawLine { offset, bytes: &bytes, len, ended: newline.is_some() });
        }
        if at_end {
            return Ok(());
        }
        offset += len + 1;
        bytes.clear();
        len = 0;
    }
}
