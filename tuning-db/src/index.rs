//! Owns the look-up structure over the journal: which line is current for each
//! slot, and the text of each key. sled in `index/`, or a map in memory.
//!
//! It holds nothing that the journal does not: any doubt about it ends in a
//! rebuild. sled is never shown bytes that it did not itself close: on a clean
//! close the folder is sealed (`index.seal`: a hash of its files, and the
//! journal length and tail it covers), and a folder without a matching seal is
//! thrown away unopened. So a kill, a truncation or a flipped bit costs one
//! rebuild, and no bug in sled's recovery can be met.

use crate::{
    hash::KeyId,
    journal::Journal,
    line::Head,
    record::{Key, Kind},
};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// Name of sled's folder in the database folder.
pub(crate) const FOLDER: &str = "index";
/// Name of the seal beside it.
pub(crate) const SEAL: &str = "index.seal";
/// Version of the layout below; another one is rebuilt.
const FORMAT: u32 = 1;
/// sled's cache.
const CACHE_BYTES: u64 = 32 << 20;
/// Longest wait for sled to let go of its files when it is closed.
const CLOSE_WAIT: Duration = Duration::from_secs(5);
/// Threads that sled starts.
const SLED_THREADS: usize = 7;
/// Entries per batch when sled is filled.
const BATCH: usize = 4096;

pub(crate) const WINNERS: u8 = b'w';
pub(crate) const TRIALS: u8 = b't';
pub(crate) const KEYS: u8 = b'k';

/// Why an index cannot be used; always answered by a rebuild, never passed on.
pub(crate) type Fault = String;
/// Slots and what they hold.
pub(crate) type Map = BTreeMap<Vec<u8>, Vec<u8>>;
pub(crate) type Pairs = Vec<(Vec<u8>, Vec<u8>)>;

/// Where the current record of a slot stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) at: u64,
    pub(crate) hash: [u8; 32],
    pub(crate) kind: Kind,
    pub(crate) offset: u64,
    pub(crate) len: u32,
}

const ENTRY_LEN: usize = 8 + 32 + 1 + 8 + 4;

impl Entry {
    /// The order of the records of one slot: by time, then by hash. It is total
    /// and knows nothing of arrival, so merges give one result in any order.
    pub(crate) fn beats(&self, other: &Entry) -> bool {
        (self.at, self.hash) > (other.at, other.hash)
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let kind = match self.kind {
            Kind::Winner => b'w',
            Kind::Withdrawn => b'x',
            Kind::Trial => b't',
        };
        let mut out = Vec::with_capacity(ENTRY_LEN);
        out.extend_from_slice(&self.at.to_be_bytes());
        out.extend_from_slice(&self.hash);
        out.push(kind);
        out.extend_from_slice(&self.offset.to_be_bytes());
        out.extend_from_slice(&self.len.to_be_bytes());
        out
    }

    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; ENTRY_LEN] = bytes.try_into().ok()?;
        Some(Self {
            at: u64::from_be_bytes(bytes[0..8].try_into().ok()?),
            hash: bytes[8..40].try_into().ok()?,
            kind: match bytes[40] {
                b'w' => Kind::Winner,
                b'x' => Kind::Withdrawn,
                b't' => Kind::Trial,
                _ => return None,
            },
            offset: u64::from_be_bytes(bytes[41..49].try_into().ok()?),
            len: u32::from_be_bytes(bytes[49..53].try_into().ok()?),
        })
    }
}

fn tagged(tag: u8, id: &KeyId) -> Vec<u8> {
    let mut out = vec![tag];
    out.extend_from_slice(id.as_bytes());
    out
}

/// The slot of a key's winner.
pub(crate) fn winner_slot(id: &KeyId) -> Vec<u8> {
    tagged(WINNERS, id)
}

/// What all slots of a key's trials start with.
pub(crate) fn trial_slots(id: &KeyId) -> Vec<u8> {
    tagged(TRIALS, id)
}

/// The slot of one trial.
pub(crate) fn trial_slot(id: &KeyId, sub: Option<&str>) -> Vec<u8> {
    let mut out = trial_slots(id);
    if let Some(sub) = sub {
        out.push(1);
        out.extend_from_slice(sub.as_bytes());
    }
    out
}

/// The slot that a record stands for.
pub(crate) fn slot_of(kind: Kind, id: &KeyId, sub: Option<&str>) -> Vec<u8> {
    match kind {
        Kind::Winner | Kind::Withdrawn => winner_slot(id),
        Kind::Trial => trial_slot(id, sub),
    }
}

/// Where the text of a key stands.
pub(crate) fn key_slot(id: &KeyId) -> Vec<u8> {
    tagged(KEYS, id)
}

pub(crate) fn decode_key(text: &[u8]) -> Option<Key> {
    serde_json::from_slice(text).ok()
}

/// The look-up structure.
#[derive(Debug)]
pub(crate) enum Index {
    Memory(Map),
    Sled(sled::Db),
}

impl Index {
    pub(crate) fn memory() -> Self {
        Self::Memory(Map::new())
    }

    pub(crate) fn get(&self, slot: &[u8]) -> Result<Option<Vec<u8>>, Fault> {
        match self {
            Self::Memory(map) => Ok(map.get(slot).cloned()),
            Self::Sled(db) => db.get(slot).map(|v| v.map(|v| v.to_vec())).map_err(|e| e.to_string()),
        }
    }

    /// All pairs whose slot starts with `prefix`, in order.
    pub(crate) fn prefix(&self, prefix: &[u8]) -> Result<Pairs, Fault> {
        match self {
            Self::Memory(map) => Ok(map
                .range(prefix.to_vec()..)
                .take_while(|(slot, _)| slot.starts_with(prefix))
                .map(|(slot, value)| (slot.clone(), value.clone()))
                .collect()),
            Self::Sled(db) => db
                .scan_prefix(prefix)
                .map(|pair| pair.map(|(s, v)| (s.to_vec(), v.to_vec())).map_err(|e| e.to_string()))
                .collect(),
        }
    }

    fn write(&mut self, pairs: Pairs) -> Result<(), Fault> {
        match self {
            Self::Memory(map) => {
                map.extend(pairs);
                Ok(())
            }
            Self::Sled(db) => {
                let mut batch = sled::Batch::default();
                for (slot, value) in pairs {
                    batch.insert(slot, value);
                }
                db.apply_batch(batch).map_err(|e| e.to_string())
            }
        }
    }

    /// Takes a record up; says whether it is now the current one of its slot.
    pub(crate) fn take_up(&mut self, head: &Head, hash: [u8; 32], offset: u64, len: usize) -> Result<bool, Fault> {
        let len = u32::try_from(len).map_err(|e| e.to_string())?;
        let entry = Entry { at: head.at, hash, kind: head.kind, offset, len };
        let text = head.key.canonical();
        let id = KeyId::of_canonical(&text);
        let slot = slot_of(head.kind, &id, head.sub.as_deref());
        let old = self.get(&slot)?.and_then(|v| Entry::decode(&v));
        if old.is_some_and(|old| !entry.beats(&old)) {
            return Ok(false);
        }
        let mut pairs = vec![(slot, entry.encode())];
        if old.is_none() {
            pairs.push((key_slot(&id), text.into_bytes()));
        }
        self.write(pairs)?;
        Ok(true)
    }
}

#[derive(Serialize, Deserialize, PartialEq)]
struct Seal {
    format: u32,
    /// Which records were current: those that this version of the caller's reader reads.
    #[serde(default)]
    reader: String,
    journal_len: u64,
    journal_tail: String,
    index: String,
}

/// Opens the sealed index of `dir` and says how much of the journal it covers;
/// or says why there is none to trust.
pub(crate) fn open_sealed(dir: &Path, journal: &Journal) -> Result<(Index, u64), Fault> {
    let seal_path = dir.join(SEAL);
    let folder = dir.join(FOLDER);
    let text = match fs::read_to_string(&seal_path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound && folder.exists() => {
            return Err("it was not closed cleanly".into());
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Err("there is none".into()),
        other => other.map_err(|e| format!("its seal cannot be read: {e}"))?,
    };
    let seal: Seal = serde_json::from_str(&text).map_err(|_| "its seal is damaged")?;
    if seal.format != FORMAT {
        return Err(format!("its format is {}, this program's is {FORMAT}", seal.format));
    }
    if seal.reader != journal.reader().version {
        return Err("it was made for another version of the program".into());
    }
    if seal.journal_len > journal.len() {
        return Err("it covers more than the journal holds".into());
    }
    if journal.tail_digest(seal.journal_len).as_ref() != Some(&seal.journal_tail) {
        return Err("it covers another journal".into());
    }
    if hash_folder(&folder).map_err(|e| e.to_string())? != seal.index {
        return Err("its files changed since it was closed".into());
    }
    let _ = fs::remove_file(&seal_path);
    let db = open_sled(&folder)?;
    Ok((Index::Sled(db), seal.journal_len))
}

/// Fills a fresh sled from a complete map; on any trouble keeps the map itself
/// and says why.
pub(crate) fn build_sled(dir: &Path, map: Map) -> (Index, Option<Fault>) {
    let fill = || -> Result<Index, Fault> {
        if !wait_closed(&dir.join(FOLDER).join("db")) {
            return Err("the old index is still open".into());
        }
        discard(dir).map_err(|e| e.to_string())?;
        let mut index = Index::Sled(open_sled(&dir.join(FOLDER))?);
        let mut pairs = map.iter().map(|(s, v)| (s.clone(), v.clone()));
        loop {
            let chunk: Pairs = pairs.by_ref().take(BATCH).collect();
            if chunk.is_empty() {
                return Ok(index);
            }
            index.write(chunk)?;
        }
    };
    match fill() {
        Ok(index) => (index, None),
        Err(why) => (Index::Memory(map), Some(why)),
    }
}

/// Removes whatever stands where the index goes.
fn discard(dir: &Path) -> io::Result<()> {
    for path in [dir.join(SEAL), dir.join(FOLDER)] {
        let result = match fs::symlink_metadata(&path) {
            Ok(meta) if meta.is_dir() => fs::remove_dir_all(&path),
            Ok(_) => fs::remove_file(&path),
            Err(e) => Err(e),
        };
        match result {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => (),
        }
    }
    Ok(())
}

fn open_sled(folder: &Path) -> Result<sled::Db, Fault> {
    threads_to_spare()?;
    // No periodic flush: the journal is what is durable, and an index that was
    // not closed is rebuilt.
    sled::Config::new().path(folder).cache_capacity(CACHE_BYTES).flush_every_ms(None).open().map_err(|e| e.to_string())
}

/// sled waits for its threads for ever when the system gives it none, so they are asked for before.
fn threads_to_spare() -> Result<(), Fault> {
    let (go, wait) = std::sync::mpsc::channel::<()>();
    let wait = std::sync::Arc::new(std::sync::Mutex::new(wait));
    let mut threads = Vec::new();
    let mut refused = None;
    for _ in 0..SLED_THREADS {
        let wait = wait.clone();
        // All of them stand at once: each ends when the sender is dropped.
        match std::thread::Builder::new().spawn(move || drop(wait.lock().map(|wait| wait.recv()))) {
            Ok(thread) => threads.push(thread),
            Err(e) => refused = Some(format!("the system gives no thread for it: {e}")),
        }
    }
    drop(go);
    for thread in threads {
        let _ = thread.join();
    }
    refused.map_or(Ok(()), Err)
}

/// Closes the index and, where it is sled, seals it. Without a seal the next
/// open rebuilds it, so nothing here can fail the caller.
pub(crate) fn close(index: Index, dir: &Path, journal: &Journal) {
    let Index::Sled(db) = index else { return };
    let flushed = db.flush().is_ok();
    drop(db);
    let folder = dir.join(FOLDER);
    if !flushed || !wait_closed(&folder.join("db")) {
        return;
    }
    let (Some(journal_tail), Ok(index)) = (journal.tail_digest(journal.len()), hash_folder(&folder)) else {
        return;
    };
    let reader = journal.reader().version.into();
    let seal = Seal { format: FORMAT, reader, journal_len: journal.len(), journal_tail, index };
    if let Ok(text) = serde_json::to_string(&seal) {
        let _ = fs::write(dir.join(SEAL), text + "\n");
    }
}

/// sled's threads may outlive its handle for a moment; its own file lock tells.
fn wait_closed(file: &Path) -> bool {
    let started = Instant::now();
    while started.elapsed() < CLOSE_WAIT {
        match fs::File::open(file).map(|f| f.try_lock()) {
            Ok(Ok(())) => return true,
            Ok(Err(fs::TryLockError::WouldBlock)) => std::thread::sleep(Duration::from_millis(2)),
            // Not there or not to be locked: nothing to wait for.
            _ => return true,
        }
    }
    false
}

/// One hash over the names and bytes of every file in a folder.
fn hash_folder(folder: &Path) -> io::Result<String> {
    let mut files = Vec::new();
    list_files(folder, &mut files)?;
    files.sort();
    let mut all = blake3::Hasher::new();
    for path in files {
        let mut one = blake3::Hasher::new();
        io::copy(&mut fs::File::open(&path)?, &mut one)?;
        let name = path.strip_prefix(folder).unwrap_or(&path).to_string_lossy().into_owned();
        all.update(&(name.len() as u64).to_le_bytes());
        all.update(name.as_bytes());
        all.update(one.finalize().as_bytes());
    }
    Ok(all.finalize().to_hex().to_string())
}

fn list_files(folder: &Path, out: &mut Vec<PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            list_files(&entry.path(), out)?;
        } else {
            out.push(entry.path());
        }
    }
    Ok(())
}
