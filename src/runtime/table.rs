//! The table from problem to kernel: a hash map whose hash costs a few multiplications.
//!
//! Keys come from the program itself, never from a peer, so the hash need not resist chosen collisions.

use crate::problem::Problem;
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

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

#[cfg(test)]
mod tests {
    use super::*;
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
