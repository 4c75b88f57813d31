//! Owns how [`Db`] answers: the index says where a record stands, the line there
//! is checked, and whatever does not fit leads to one rebuild from the journal.
//!
//! It stores nothing.

use crate::{
    Db, FieldDiff, Key, Kind, Record, Result,
    db::State,
    hash::KeyId,
    index::{self, Entry},
    journal::Journal,
    line,
};

impl Db {
    /// The winner of a key.
    pub fn winner(&self, key: &Key) -> Result<Option<Record>> {
        self.winner_by_id(&key.id())
    }

    /// The winner of the key with this id.
    pub fn winner_by_id(&self, id: &KeyId) -> Result<Option<Record>> {
        let record = self.current(&mut self.state(), &index::winner_slot(id))?;
        Ok(record.filter(|r| r.kind == Kind::Winner))
    }

    /// All winners, oldest in the journal first.
    pub fn winners(&self) -> Result<impl Iterator<Item = Result<Record>> + '_> {
        let slots = self.state().slots(&[index::WINNERS]);
        Ok(slots
            .into_iter()
            .filter_map(|slot| self.current(&mut self.state(), &slot).transpose())
            .filter(|r| r.as_ref().map_or(true, |r| r.kind == Kind::Winner)))
    }

    /// The latest verdict on the config `sub`.
    pub fn trial(&self, key: &Key, sub: &str) -> Result<Option<Record>> {
        self.current(&mut self.state(), &index::trial_slot(&key.id(), Some(sub)))
    }

    /// The latest verdict on every config tried for a key, oldest first.
    pub fn trials(&self, key: &Key) -> Result<Vec<Record>> {
        let mut state = self.state();
        let slots = state.slots(&index::trial_slots(&key.id()));
        slots.iter().filter_map(|slot| self.current(&mut state, slot).transpose()).collect()
    }

    /// The stored keys nearest to one that missed, with the fields that differ:
    /// fewest differences first, then newest. Only keys whose values of the
    /// fields in `share` are the same are listed; the record is the key's winner,
    /// or its newest trial. A full pass over the distinct keys: for people.
    pub fn near(&self, key: &Key, share: &[&str], limit: usize) -> Result<Vec<(Record, Vec<FieldDiff>)>> {
        let mut state = self.state();
        let id = key.id();
        let keys: Vec<Key> =
            state.index.prefix(&[index::KEYS]).filter_map(|(_, text)| index::decode_key(text)).collect();
        let mut found = Vec::new();
        for stored in keys {
            let other = stored.id();
            if other == id || share.iter().any(|name| stored.get(name) != key.get(name)) {
                continue;
            }
            if let Some((slot, at)) = newest_of(&state, &other) {
                found.push((key.diff(&stored), at, other, slot));
            }
        }
        found.sort_by_key(|(diff, at, id, _)| (diff.len(), std::cmp::Reverse(*at), *id));
        let mut out = Vec::new();
        for (diff, _, _, slot) in found.into_iter().take(limit) {
            if let Some(record) = self.current(&mut state, &slot)? {
                out.push((record, diff));
            }
        }
        Ok(out)
    }

    /// The current record of a slot. The line is checked each time; where it is
    /// not what the index says, the journal is read again, once.
    pub(crate) fn current(&self, state: &mut State, slot: &[u8]) -> Result<Option<Record>> {
        let Some(entry) = state.entry(slot) else { return Ok(None) };
        if let Some(record) = fetch(&state.journal, slot, &entry) {
            return Ok(Some(record));
        }
        self.reload(state, "a line is not what the index says".into())?;
        Ok(state.entry(slot).and_then(|entry| fetch(&state.journal, slot, &entry)))
    }
}

impl State {
    pub(crate) fn entry(&self, slot: &[u8]) -> Option<Entry> {
        self.index.get(slot).and_then(Entry::decode)
    }

    /// The slots that start with `prefix` and where each one's record stands.
    pub(crate) fn entries(&self, prefix: &[u8]) -> Vec<(Vec<u8>, Entry)> {
        self.index.prefix(prefix).filter_map(|(slot, v)| Some((slot.clone(), Entry::decode(v)?))).collect()
    }

    /// The slots that start with `prefix`, in the order of the journal.
    fn slots(&self, prefix: &[u8]) -> Vec<Vec<u8>> {
        let mut entries = self.entries(prefix);
        entries.sort_by_key(|(_, e)| e.offset);
        entries.into_iter().map(|(slot, _)| slot).collect()
    }
}

/// The slot and date of a key's winner, or else of its newest trial.
fn newest_of(state: &State, id: &KeyId) -> Option<(Vec<u8>, u64)> {
    let slot = index::winner_slot(id);
    if let Some(entry) = state.entry(&slot).filter(|e| e.kind == Kind::Winner) {
        return Some((slot, entry.at));
    }
    let trials = state.entries(&index::trial_slots(id));
    trials.into_iter().max_by_key(|(_, e)| (e.at, e.hash)).map(|(slot, e)| (slot, e.at))
}

/// The record at an entry, if it is the one that the entry means.
pub(crate) fn fetch(journal: &Journal, slot: &[u8], entry: &Entry) -> Option<Record> {
    let bytes = journal.read(entry.offset, entry.len as usize)?;
    let sealed = line::check(&bytes).ok()?;
    let record = sealed.record().filter(|record| sealed.hash == entry.hash && (journal.reader().reads)(record))?;
    let own = index::slot_of(record.kind, &record.key.id(), record.sub.as_deref());
    (own == slot).then_some(record)
}
