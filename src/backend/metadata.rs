//! What a step says to its kernels: which tokens, where they stand, which pages they read and write, by what the next are chosen.
//!
//! Kernels that gather and scatter check none of it, so it is checked here as a whole, each time before it reaches the device.
//! It is written into memory that host and device share, from where the kernel `advance` puts it where the others read it; the ids
//! that ask for them are tokens of the step before, which a kernel of the model's chose among those that it knows.
//! Other kernels read it alone: a view of it is bound only where the range that it was checked for lies in the kernel's own, and beside
//! other tables of the same step.

use super::BackendError;
use super::memory::{Memory, View};
use crate::problem::SETTINGS;
use std::sync::atomic::{AtomicU64, Ordering};

/// What the kernels of a step can take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Tokens of the step: rows of its activations.
    pub tokens: i64,
    /// Sequences that they belong to.
    pub sequences: i64,
    /// Tokens that get logits.
    pub logits: i64,
    /// Those among them whose next token is chosen by settings: all or none.
    pub chosen: i64,
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
    /// Bytes of the tables of a step within these bounds.
    pub fn bytes(&self) -> u64 {
        self.ranges().map(|(count, _)| bytes(count).next_multiple_of(ALIGNMENT)).iter().sum::<u64>() + 4
    }

    /// Of each table how many entries it has, the first value that may stand there, and the first after these that may not.
    fn ranges(&self) -> [(i64, (i64, i64)); TABLES] {
        let most = self.context.min(self.max_pages.saturating_mul(self.page));
        let slots = self.pages.saturating_mul(self.page);
        let (tokens, sequences) = (self.tokens, self.sequences);
        let any = (i64::from(i32::MIN), i64::from(i32::MAX) + 1);
        [
            (tokens, (0, self.vocab)),
            (tokens, (0, self.max_pos)),
            (tokens, (-1, slots)),
            (sequences + 1, (0, tokens + 1)),
            (sequences, (1, most + 1)),
            (self.logits, (0, tokens)),
            (self.chosen.saturating_mul(SETTINGS as i64), any),
            (self.chosen, any),
            (sequences.saturating_mul(self.max_pages), (0, self.pages)),
        ]
    }
}

/// The integers of a step.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tables {
    /// The id of each token; -1 - row where it is the token that the step before chose for that row.
    pub ids: Vec<i32>,
    /// Where each token stands in its sequence.
    pub positions: Vec<i32>,
    /// Where in the cache its keys and values go: page × tokens of a page + place in the page; -1 for nowhere.
    pub slots: Vec<i32>,
    /// The first token of each sequence in the step, and the number of all.
    pub q_starts: Vec<i32>,
    /// Tokens that each sequence has in the cache, those of this step included.
    pub kv_lens: Vec<i32>,
    /// The tokens that get logits.
    pub last_rows: Vec<i32>,
    /// By what the token after each is chosen: the bits of f32 numbers, so many a token (`sample`).
    pub settings: Vec<i32>,
    /// How many of the most likely tokens are left.
    pub top_k: Vec<i32>,
    /// The pages of each sequence, in order.
    pub block_table: Vec<i32>,
}

const TABLES: usize = 9;
/// The names of the tables in programs, in the order in which they lie in memory.
const NAMES: [&str; TABLES] =
    ["ids", "positions", "slots", "q_starts", "kv_lens", "last_rows", "settings", "top_k", "block_table"];
/// Each begins at a multiple of this many bytes.
const ALIGNMENT: u64 = 256;

/// Bytes of so many entries of a table.
fn bytes(count: i64) -> u64 {
    count.max(0) as u64 * 4
}

impl Tables {
    /// Makes each table as long as a step of these bounds has it: by tokens that are written nowhere, and by sequences that have
    /// none of the step. A sequence of a step of one token each sees the first token of the cache.
    pub fn pad(&mut self, bounds: &Bounds) {
        let counts = bounds.ranges().map(|(count, _)| count.max(0) as usize);
        let used = self.q_starts.last().copied().unwrap_or(0);
        let fills = [0, 0, -1, used, 1, 0, 0, 0, 0];
        for ((list, count), fill) in self.all_mut().into_iter().zip(counts).zip(fills) {
            list.resize(count, fill);
        }
    }

    fn all(&self) -> [&Vec<i32>; TABLES] {
        let Tables { ids, positions, slots, q_starts, kv_lens, last_rows, settings, top_k, block_table } = self;
        [ids, positions, slots, q_starts, kv_lens, last_rows, settings, top_k, block_table]
    }

    fn all_mut(&mut self) -> [&mut Vec<i32>; TABLES] {
        let Tables { ids, positions, slots, q_starts, kv_lens, last_rows, settings, top_k, block_table } = self;
        [ids, positions, slots, q_starts, kv_lens, last_rows, settings, top_k, block_table]
    }

    /// Whether kernels within these bounds stay inside their memory, where the step before chose tokens for so many rows.
    fn check(&self, b: &Bounds, last: i64) -> Result<(), String> {
        let mut ranges = b.ranges();
        ranges[0].1.0 -= last;
        for ((name, list), (count, (from, to))) in NAMES.iter().zip(self.all()).zip(ranges) {
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

    /// As they lie in memory, with a number behind them.
    fn bytes(&self, number: i32) -> Vec<u8> {
        let mut all = Vec::new();
        for list in self.all() {
            all.extend(list.iter().flat_map(|v| v.to_le_bytes()));
            all.resize(all.len().next_multiple_of(ALIGNMENT as usize), 0);
        }
        all.extend(number.to_le_bytes());
        all
    }
}

/// The tables of a step on its device, where those of other steps lie at other times: kernels run behind `advance`, which has put what
/// was told last there.
pub struct Metadata {
    place: View,
    bounds: Bounds,
    number: u64,
}

impl Metadata {
    /// Tables of steps within these bounds at the beginning of `memory`, which has [`Bounds::bytes`] at least.
    pub fn new(memory: &Memory, bounds: Bounds) -> Result<Metadata, BackendError> {
        static LAST: AtomicU64 = AtomicU64::new(0);
        let number = LAST.fetch_add(1, Ordering::Relaxed);
        Ok(Metadata { place: memory.view().slice(0..bounds.bytes())?, bounds, number })
    }

    /// Which they are of all: no others have this number.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// Writes tables where `advance` reads them, and a number that it says when it has: into memory that is shared, and at which no
    /// kernel is. `last` is the number of rows for which the step before chose tokens. Where a table is out of its bounds nothing is
    /// written.
    pub fn tell(&self, tables: &Tables, number: i32, last: i64, told: &Memory) -> Result<(), BackendError> {
        tables.check(&self.bounds, last).map_err(|why| BackendError::Metadata { why })?;
        told.upload(&tables.bytes(number))
    }

    /// All of it, which `advance` writes; and as how many words, of which the first so many are ids.
    pub fn whole(&self) -> (View, i64, i64) {
        (self.place.clone(), (self.place.len() / 4) as i64, self.bounds.tokens)
    }

    /// What a kernel reads as the program's tensor of that name.
    pub fn view(&self, name: &str) -> Option<View> {
        let place = NAMES.iter().position(|n| *n == name)?;
        let ranges = self.bounds.ranges();
        let at: u64 = ranges[..place].iter().map(|(count, _)| bytes(*count).next_multiple_of(ALIGNMENT)).sum();
        let (count, range) = ranges[place];
        Some(self.place.slice(at..at + bytes(count)).ok()?.checked(range, self.number))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: Bounds = Bounds {
        tokens: 5,
        sequences: 2,
        logits: 2,
        chosen: 0,
        vocab: 100,
        max_pos: 64,
        page: 4,
        pages: 9,
        max_pages: 3,
        context: 10,
    };

    fn good() -> Tables {
        Tables {
            ids: vec![0, 99, 5, 5, 7],
            positions: vec![0, 1, 2, 8, 63],
            slots: vec![35, 0, -1, 4, 5],
            block_table: vec![8, 0, 1, 2, 3, 4],
            q_starts: vec![0, 3, 5],
            kv_lens: vec![3, 10],
            last_rows: vec![2, 4],
            ..Tables::default()
        }
    }

    #[test]
    fn tables_are_as_long_as_their_bounds_say() {
        for bounds in
            [BOUNDS, Bounds { tokens: 65, chosen: 2, ..BOUNDS }, Bounds { logits: 0, sequences: 200, ..BOUNDS }]
        {
            let mut tables = Tables::default();
            tables.pad(&bounds);
            assert_eq!(tables.bytes(0).len() as u64, bounds.bytes());
        }
    }

    #[test]
    fn what_leaves_its_bounds_is_refused() {
        assert_eq!(good().check(&BOUNDS, 3), Ok(()));
        // Tokens of the step before, as far as it had rows.
        assert_eq!(Tables { ids: vec![-3, 99, -1, 5, 7], ..good() }.check(&BOUNDS, 3), Ok(()));
        let refused = |change: fn(&mut Tables), part: &str| {
            let mut tables = good();
            change(&mut tables);
            let why = tables.check(&BOUNDS, 3).unwrap_err();
            assert!(why.contains(part), "{why}");
        };
        refused(|t| t.ids[1] = 100, "ids holds 100");
        refused(|t| t.ids[1] = -4, "ids holds -4, and -3 to 99");
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
        assert!(tables.check(&wide, 0).unwrap_err().contains("1 to 12"));
    }
}
