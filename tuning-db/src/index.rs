//! Owns the look-up structure over the journal: which line is current for each
//! slot, and the text of each key. A map in memory; `index.bin` keeps it between
//! runs.
//!
//! It holds nothing that the journal does not: any doubt about it ends in a
//! rebuild. The file begins with one line of JSON, its seal: the journal length
//! and tail that it covers, and a hash of all that follows. It is written whole
//! on a clean close, beside the old one and renamed over it, and never changed;
//! so a kill leaves the one before, to which the newer lines are added, and a
//! truncation or a flipped bit costs one rebuild. It is not synced: what it says
//! is checked.

use crate::{
    hash::KeyId,
    journal::Journal,
    line::Head,
    record::{Key, Kind},
};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, fs, io, path::Path};

/// Name of the file in the database folder.
pub(crate) const FILE: &str = "index.bin";
/// What it is written as before it has that name.
const NEW: &str = "index.bin.new";
/// What versions before this one left: removed, and never read.
const OLDER: [&str; 2] = ["index", "index.seal"];
/// Version of the layout below; another one is rebuilt.
const FORMAT: u32 = 2;

pub(crate) const WINNERS: u8 = b'w';
pub(crate) const TRIALS: u8 = b't';
pub(crate) const KEYS: u8 = b'k';

/// Why an index cannot be used; always answered by a rebuild, never passed on.
pub(crate) type Fault = String;
/// Slots and what they hold.
pub(crate) type Map = BTreeMap<Vec<u8>, Vec<u8>>;

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
#[derive(Debug, Default)]
pub(crate) struct Index {
    map: Map,
    /// How much of the journal the file covers, where it holds the same; `None` where there is none.
    covered: Option<u64>,
}

impl Index {
    pub(crate) fn get(&self, slot: &[u8]) -> Option<&[u8]> {
        self.map.get(slot).map(Vec::as_slice)
    }

    /// All pairs whose slot starts with `prefix`, in order.
    pub(crate) fn prefix<'a>(&'a self, prefix: &'a [u8]) -> impl Iterator<Item = (&'a Vec<u8>, &'a Vec<u8>)> {
        self.map.range(prefix.to_vec()..).take_while(move |(slot, _)| slot.starts_with(prefix))
    }

    /// Everything in it.
    pub(crate) fn map(&self) -> &Map {
        &self.map
    }

    /// Takes a record up; says whether it is now the current one of its slot.
    pub(crate) fn take_up(&mut self, head: &Head, hash: [u8; 32], offset: u64, len: usize) -> bool {
        // A line is at most `line::MAX_LINE` long.
        let entry = Entry { at: head.at, hash, kind: head.kind, offset, len: len as u32 };
        let text = head.key.canonical();
        let id = KeyId::of_canonical(&text);
        let slot = slot_of(head.kind, &id, head.sub.as_deref());
        let old = self.get(&slot).and_then(Entry::decode);
        if old.is_some_and(|old| !entry.beats(&old)) {
            return false;
        }
        if old.is_none() {
            self.map.insert(key_slot(&id), text.into_bytes());
        }
        self.map.insert(slot, entry.encode());
        true
    }
}

#[derive(Serialize, Deserialize, PartialEq)]
struct Seal {
    format: u32,
    /// Which records were current: those that this version of the caller's reader reads.
    reader: String,
    journal_len: u64,
    journal_tail: String,
    hash: String,
}

/// Reads the index of `dir` and says how much of the journal it covers; or says
/// why there is none to trust.
pub(crate) fn open_sealed(dir: &Path, journal: &Journal) -> Result<(Index, u64), Fault> {
    let bytes = match fs::read(dir.join(FILE)) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Err("there is none".into()),
        other => other.map_err(|e| format!("it cannot be read: {e}"))?,
    };
    let end = bytes.iter().position(|b| *b == b'\n').ok_or("its seal is damaged")?;
    let (seal, body) = (&bytes[..end], &bytes[end + 1..]);
    let seal: Seal = serde_json::from_slice(seal).map_err(|_| "its seal is damaged")?;
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
    if blake3::hash(body).to_hex().as_str() != seal.hash {
        return Err("it is damaged".into());
    }
    let map = decode(body).ok_or("it is damaged")?;
    Ok((Index { map, covered: Some(seal.journal_len) }, seal.journal_len))
}

/// Leaves the index for the next run, where it is not there already. Without it the next open
/// rebuilds it, so nothing here can fail the caller.
pub(crate) fn close(index: &Index, dir: &Path, journal: &Journal) {
    for older in OLDER {
        let path = dir.join(older);
        let _ = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    }
    if index.covered == Some(journal.len()) {
        return;
    }
    let Some(journal_tail) = journal.tail_digest(journal.len()) else { return };
    let body = encode(&index.map);
    let seal = Seal {
        format: FORMAT,
        reader: journal.reader().version.into(),
        journal_len: journal.len(),
        journal_tail,
        hash: blake3::hash(&body).to_hex().to_string(),
    };
    let Ok(mut bytes) = serde_json::to_vec(&seal) else { return };
    bytes.push(b'\n');
    bytes.extend_from_slice(&body);
    let new = dir.join(NEW);
    if fs::write(&new, bytes).and_then(|()| fs::rename(&new, dir.join(FILE))).is_err() {
        let _ = fs::remove_file(&new);
    }
}

/// Each text, a slot and its value in turn, after its length in four bytes.
fn encode(map: &Map) -> Vec<u8> {
    let mut out = Vec::new();
    for text in map.iter().flat_map(|(slot, value)| [slot, value]) {
        out.extend_from_slice(&(text.len() as u32).to_le_bytes());
        out.extend_from_slice(text);
    }
    out
}

fn decode(mut bytes: &[u8]) -> Option<Map> {
    let empty = bytes.is_empty();
    let mut next = || {
        let (len, rest) = bytes.split_first_chunk::<4>()?;
        let (text, rest) = rest.split_at_checked(u32::from_le_bytes(*len) as usize)?;
        bytes = rest;
        Some((text.to_vec(), rest.is_empty()))
    };
    let mut map = Map::new();
    if empty {
        return Some(map);
    }
    loop {
        let (slot, _) = next()?;
        let (value, last) = next()?;
        map.insert(slot, value);
        if last {
            return Some(map);
        }
    }
}
