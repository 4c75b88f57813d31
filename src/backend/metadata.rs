//! What a step says to its kernels: which tokens, where they stand, which pages they read and write.
//!
//! Kernels that gather and scatter check none of it, so it is checked here as a whole, each time before it reaches the device.
//! Kernels read it alone: a view of it is bound only where the range that it was checked for lies in the kernel's own, and beside
//! other tables of the same step.

use super::memory::{Memory, View};
use super::{BackendError, Machine};

/// What the kernels of a step can take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Tokens of the step: rows of its activations.
    pub tokens: i64,
    /// Sequences that they belong to.
    pub sequences: i64,
    /// Tokens that the model knows.
    pub vocab: i64,
    /// Rows of the table of RoPE's cosines and sines.
    pub max_pos: i64,
    /// Tokens of a page of the cache.
    pub page: i64,
    /// Pages of the cache.
    pub pages: i64,
    /// Pages of a sequence: entries of its row of the block table.
    pub max_pages: i64,
    /// Tokens that a sequence may see.
    pub context: i64,
}

impl Bounds {
    /// Of each table the first value that may stand in it, and the first after these that may not.
    fn ranges(&self) -> [(i64, i64); 7] {
        let most = self.context.min(self.max_pages.saturating_mul(self.page));
        let slots = self.pages.saturating_mul(self.page);
        let tokens = self.tokens;
        [(0, self.vocab), (0, self.max_pos), (-1, slots), (0, self.pages), (0, tokens + 1), (1, most + 1), (0, tokens)]
    }
}

/// The integers of a step.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tables {
    /// The id of each token.
    pub ids: Vec<i32>,
    /// Where each token stands in its sequence.
    pub positions: Vec<i32>,
    /// Where in the cache its keys and values go: page × tokens of a page + place in the page; -1 for nowhere.
    pub slots: Vec<i32>,
    /// The pages of each sequence, in order.
    pub block_table: Vec<i32>,
    /// The first token of each sequence in the step, and the number of all.
    pub q_starts: Vec<i32>,
    /// Tokens that each sequence has in the cache, those of this step included.
    pub kv_lens: Vec<i32>,
    /// The tokens that get logits.
    pub last_rows: Vec<i32>,
}

/// The names of the tables in programs, in the order in which they lie in memory.
const NAMES: [&str; 7] = ["ids", "positions", "slots", "block_table", "q_starts", "kv_lens", "last_rows"];
/// Each begins at a multiple of this many bytes.
const ALIGNMENT: u64 = 256;

impl Tables {
    /// Those of a step that does nothing, with so many rows of logits.
    #[must_use]
    pub fn idle(bounds: &Bounds, rows: i64) -> Tables {
        let mut tables = Tables::default();
        tables.pad(bounds, rows);
        tables
    }

    /// Makes each table as long as a step of these bounds and rows of logits has it: by tokens that are written nowhere, and
    /// by sequences that have none of the step. A sequence of a step of one token each sees the first token of the cache.
    pub fn pad(&mut self, bounds: &Bounds, rows: i64) {
        let [tokens, sequences, rows] = [bounds.tokens, bounds.sequences, rows].map(|n| n.max(0) as usize);
        self.ids.resize(tokens, 0);
        self.positions.resize(tokens, 0);
        self.slots.resize(tokens, -1);
        self.block_table.resize(sequences * bounds.max_pages.max(0) as usize, 0);
        let used = self.q_starts.last().copied().unwrap_or(0);
        self.q_starts.resize(sequences + 1, used);
        self.kv_lens.resize(sequences, 1);
        self.last_rows.resize(rows, 0);
    }

    fn all(&self) -> [&[i32]; 7] {
        [&self.ids, &self.positions, &self.slots, &self.block_table, &self.q_starts, &self.kv_lens, &self.last_rows]
    }

    /// Whether kernels within these bounds stay inside their memory.
    fn check(&self, b: &Bounds) -> Result<(), String> {
        let (tokens, sequences) = (b.tokens, b.sequences);
        let lasts = self.last_rows.len() as i64;
        let counts = [tokens, tokens, tokens, sequences.saturating_mul(b.max_pages), sequences + 1, sequences, lasts];
        for (((name, list), count), (from, to)) in NAMES.iter().zip(self.all()).zip(counts).zip(b.ranges()) {
            if list.len() as i64 != count {
                return Err(format!("{name} has {} entries, and {count} are needed", list.len()));
            }
            if let Some(v) = list.iter().find(|v| !(from..to).contains(&i64::from(**v))) {
                return Err(format!("{name} holds {v}, and {from} to {} is its range", to - 1));
            }
        }
        if self.q_starts[0] != 0 {
            return Err(format!("q_starts begins with {}", self.q_starts[0]));
        }
        for (q, kv) in self.q_starts.windows(2).zip(&self.kv_lens) {
            if !(0..=*kv).contains(&(q[1] - q[0])) {
                return Err(format!("a sequence of {kv} tokens has the tokens {} to {} of the step", q[0], q[1]));
            }
        }
        Ok(())
    }
}

/// The tables of a step on its device.
pub struct Metadata {
    memory: Memory,
    bounds: Bounds,
    /// Bytes of each table.
    bytes: [u64; 7],
}

impl Metadata {
    pub(crate) fn new(machine: &Machine, bounds: Bounds, tables: &Tables) -> Result<Metadata, BackendError> {
        let bytes = tables.all().map(|list| list.len() as u64 * 4);
        let all = bytes.iter().map(|b| b.next_multiple_of(ALIGNMENT)).sum();
        let metadata = Metadata { memory: Memory::new(machine, all)?, bounds, bytes };
        metadata.set(tables)?;
        Ok(metadata)
    }

    /// Puts other tables of the same lengths in the place of those that are there; one copy. On a GPU it waits for the work
    /// of all streams. Where one is out of its bounds nothing changes.
    pub fn set(&self, tables: &Tables) -> Result<(), BackendError> {
        let refused = |why: String| Err(BackendError::Metadata { why });
        if let Err(why) = tables.check(&self.bounds) {
            return refused(why);
        }
        let mut all = Vec::with_capacity(self.memory.len() as usize);
        for ((name, list), bytes) in NAMES.iter().zip(tables.all()).zip(self.bytes) {
            if list.len() as u64 * 4 != bytes {
                return refused(format!("{name} has {} entries, and had {}", list.len(), bytes / 4));
            }
            all.extend(list.iter().flat_map(|v| v.to_le_bytes()));
            all.resize(all.len().next_multiple_of(ALIGNMENT as usize), 0);
        }
        self.memory.upload(&all)
    }

    /// What a kernel reads as the program's tensor of that name.
    pub fn view(&self, name: &str) -> Option<View> {
        let place = NAMES.iter().position(|n| *n == name)?;
        let at: u64 = self.bytes[..place].iter().map(|b| b.next_multiple_of(ALIGNMENT)).sum();
        View::checked(&self.memory, self.bounds.ranges()[place]).slice(at..at + self.bytes[place]).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: Bounds =
        Bounds { tokens: 5, sequences: 2, vocab: 100, max_pos: 64, page: 4, pages: 9, max_pages: 3, context: 10 };

    fn good() -> Tables {
        Tables {
            ids: vec![0, 99, 5, 5, 7],
            positions: vec![0, 1, 2, 8, 63],
            slots: vec![35, 0, -1, 4, 5],
            block_table: vec![8, 0, 1, 2, 3, 4],
            q_starts: vec![0, 3, 5],
            kv_lens: vec![3, 10],
            last_rows: vec![2, 4],
        }
    }

    #[test]
    fn what_leaves_its_bounds_is_refused() {
        assert_eq!(good().check(&BOUNDS), Ok(()));
        let refused = |change: fn(&mut Tables), part: &str| {
            let mut tables = good();
            change(&mut tables);
            let why = tables.check(&BOUNDS).unwrap_err();
            assert!(why.contains(part), "{why}");
        };
        refused(|t| t.ids[1] = 100, "ids holds 100");
        refused(|t| t.ids[1] = -1, "ids holds -1");
        refused(|t| t.ids.truncate(4), "ids has 4 entries, and 5");
        refused(|t| t.positions[0] = 64, "positions holds 64");
        refused(|t| t.slots[0] = 36, "slots holds 36, and -1 to 35");
        refused(|t| t.slots[0] = -2, "slots holds -2");
        refused(|t| t.block_table[5] = 9, "block_table holds 9");
        refused(|t| t.block_table.push(0), "block_table has 7");
        refused(|t| t.q_starts[2] = 6, "q_starts holds 6");
        refused(|t| t.q_starts[0] = 1, "q_starts begins with 1");
        refused(|t| t.q_starts[1] = 4, "a sequence of 3 tokens has the tokens 0 to 4");
        refused(|t| t.q_starts = vec![0, 2, 1], "a sequence of 10 tokens has the tokens 2 to 1");
        refused(|t| t.kv_lens[1] = 11, "kv_lens holds 11");
        refused(|t| t.kv_lens[1] = 0, "kv_lens holds 0");
        refused(|t| t.last_rows[0] = 5, "last_rows holds 5");
        // What the pages hold is a bound beside the context.
        let wide = Bounds { context: 1000, ..BOUNDS };
        let mut tables = good();
        tables.kv_lens[1] = 13;
        assert!(tables.check(&wide).unwrap_err().contains("1 to 12"));
    }
}
