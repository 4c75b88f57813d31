//! The table from problem to kernel: a hash map whose hash costs a few multiplications.
//!
//! Keys come from the program itself, never from a peer, so the hash need not resist chosen collisions.

use crate::problem::Problem;
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::atomic::{AtomicBool, Ordering};

/// From a problem to what is kept for it.
pub(super) type Table<T> = HashMap<Problem, T, BuildHasherDefault<Fold>>;

/// Folds 8 bytes a step by a widening multiplication whose halves are xored.
#[derive(Clone, Copy, Default)]
pub(super) struct Fold(u64);

/// An odd number without structure: the fraction of the golden ratio.
const FACTOR: u64 = 0x9E37_79B9_7F4A_7C15;

impl Fold {
    fn fold(&mut self, word: u64) {
        let wide = u128::from(self.0 ^ word ^ FACTOR) * u128::from(FACTOR);
        self.0 = (wide as u64) ^ (wide >> 64) as u64;
    }
}

impl Hasher for Fold {
    fn write(&mut self, bytes: &[u8]) {
        let (words, rest) = bytes.as_chunks::<8>();
        words.iter().for_each(|w| self.fold(u64::from_le_bytes(*w)));
        if !rest.is_empty() {
            let mut last = [0; 8];
            last[..rest.len()].copy_from_slice(rest);
            self.fold(u64::from_le_bytes(last));
        }
    }

    fn write_u8(&mut self, v: u8) {
        self.fold(v.into());
    }

    fn write_usize(&mut self, v: usize) {
        self.fold(v as u64);
    }

    fn write_isize(&mut self, v: isize) {
        self.fold(v as u64);
    }

    fn write_u64(&mut self, v: u64) {
        self.fold(v);
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

/// A table that holds so many and no more: what was not asked for since the hand came by last gives way, one at a time
/// (the clock algorithm).
pub(super) struct Recent<T> {
    places: Table<usize>,
    entries: Vec<Entry<T>>,
    hand: usize,
    most: usize,
}

struct Entry<T> {
    problem: Problem,
    value: T,
    asked: AtomicBool,
}

impl<T> Recent<T> {
    pub fn new(most: usize) -> Recent<T> {
        Recent { places: Table::default(), entries: Vec::new(), hand: 0, most: most.max(1) }
    }

    pub fn get(&self, problem: &Problem) -> Option<&T> {
        let entry = &self.entries[*self.places.get(problem)?];
        // Only where it changes something: threads that ask for the same entry would else write to one cache line.
        if !entry.asked.load(Ordering::Relaxed) {
            entry.asked.store(true, Ordering::Relaxed);
        }
        Some(&entry.value)
    }

    pub fn insert(&mut self, problem: Problem, value: T) {
        let entry = Entry { problem, value, asked: AtomicBool::new(false) };
        if let Some(place) = self.places.get(&problem) {
            self.entries[*place] = entry;
        } else if self.entries.len() < self.most {
            self.places.insert(problem, self.entries.len());
            self.entries.push(entry);
        } else {
            while self.entries[self.hand].asked.swap(false, Ordering::Relaxed) {
                self.hand = (self.hand + 1) % self.most;
            }
            self.places.remove(&self.entries[self.hand].problem);
            self.places.insert(problem, self.hand);
            self.entries[self.hand] = entry;
            self.hand = (self.hand + 1) % self.most;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_for_stays_and_the_rest_gives_way_one_by_one() {
        let p = |m: i64| -> Problem { format!("matmul m={m} n=64 k=64 dtype=f32").parse().unwrap() };
        let mut table = Recent::new(8);
        let held = |table: &Recent<i64>| table.entries.iter().map(|e| e.value).collect::<BTreeSet<i64>>();
        for m in 1..=1000 {
            let before = held(&table);
            table.insert(p(m), m);
            assert_eq!(table.get(&p(1)), Some(&1), "after {m}");
            let after = held(&table);
            assert!(after.contains(&m) && after.len() == m.min(8) as usize);
            assert!(before.difference(&after).count() <= 1, "{before:?} became {after:?}");
        }
        assert_eq!((table.places.len(), table.get(&p(2))), (8, None));
        table.insert(p(1), -1);
        assert_eq!((table.places.len(), table.get(&p(1))), (8, Some(&-1)));
    }
    use std::collections::BTreeSet;
    use std::hash::BuildHasher;

    #[test]
    fn problems_that_differ_little_are_spread() {
        let build = BuildHasherDefault::<Fold>::default();
        let (mut whole, mut low, mut high) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
        let mut count = 0;
        for m in 1..=64 {
            for n in [64, 128, 2048, 2049] {
                for dtype in ["f32", "bf16"] {
                    let p: Problem = format!("matmul m={m} n={n} k=64 dtype={dtype}").parse().unwrap();
                    let h = build.hash_one(p);
                    whole.insert(h);
                    low.insert(h & 0xffff);
                    high.insert(h >> 57);
                    count += 1;
                }
            }
        }
        assert_eq!(whole.len(), count);
        assert!(low.len() > count - 16, "{} of {count} low halves", low.len());
        assert!(high.len() > 100, "{} of 128 tags", high.len());
    }
}
