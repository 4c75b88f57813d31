//! Test inputs as a function of a seed: any element can be computed on its own, alike on the host and on a GPU.
//!
//! A value is a hash of (seed, tensor, index), so a reference of a few outputs of a gigabyte product costs only the
//! rows it reads, and a GPU fills its own memory with the same numbers.

use super::tensor::IndexFill;
use super::types::e4m3_from_f32;
use super::{Fill, Layout, Problem, Role, Storage, Tensor};
use std::ops::Range;

/// The uniform value in [-1, 1) at `index` of the stream `seed`: the top 24 bits of SplitMix64's output function
/// (Steele, Lea and Flood 2014) of `seed + (index + 1)·0x9E3779B97F4A7C15`, so it is exact in f32.
#[inline]
pub fn hash_uniform(seed: u64, index: u64) -> f32 {
    const STEP: f32 = 1.0 / (1 << 23) as f32;
    (hash(seed, index) >> 40) as f32 * STEP - 1.0
}

#[inline]
pub(crate) fn hash(seed: u64, index: u64) -> u64 {
    let mut z = seed.wrapping_add((index.wrapping_add(1)).wrapping_mul(0x9E37_79B9_7F4A_7C15));
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// One input tensor's values.
pub struct Input {
    /// Its description.
    pub tensor: Tensor,
    values: Values,
}

enum Values {
    Uniform { seed: u64, scale: f32, round: Storage },
    Between { seed: u64, low: f32, high: f32, round: Storage },
    Codes { seed: u64, bits: u32, stored: Storage },
    Ints(Vec<i32>),
    Floats(Vec<f32>),
}

impl Input {
    /// The value at a flat index, as the kernel sees it (after rounding to storage).
    #[inline]
    pub fn at(&self, index: u64) -> f64 {
        match &self.values {
            Values::Uniform { seed, scale, round } => f64::from(round.round(hash_uniform(*seed, index) * scale)),
            Values::Between { seed, low, high, round } => {
                f64::from(round.round(between(hash_uniform(*seed, index), *low, *high)))
            }
            Values::Codes { seed, bits, stored } => match stored {
                Storage::Int8 => f64::from(code(*seed, *bits, index) as i8),
                _ => f64::from(code(*seed, *bits, index)),
            },
            Values::Ints(v) => f64::from(v[index as usize]),
            Values::Floats(v) => f64::from(v[index as usize]),
        }
    }

    /// The stream's seed and scale when the values are uniform, so that a device can fill the tensor itself.
    pub fn uniform(&self) -> Option<(u64, f32)> {
        match self.values {
            Values::Uniform { seed, scale, .. } => Some((seed, scale)),
            _ => None,
        }
    }

    /// The seed whose words its bytes are.
    #[cfg(feature = "tuner")]
    pub(crate) fn words(&self) -> Option<u64> {
        match self.values {
            Values::Codes { seed, bits, stored } if u64::from(bits) == stored.bits() => Some(seed),
            _ => None,
        }
    }

    /// Writes elements `start..` to `bytes` in storage form. Where a byte holds two, `start` is even.
    pub fn write(&self, start: u64, bytes: &mut [u8]) {
        let from = start as usize;
        match self.values {
            Values::Ints(ref v) => store(bytes, &v[from..], |v| v.to_le_bytes()),
            Values::Floats(ref v) => store(bytes, &v[from..], |v| v.to_le_bytes()),
            Values::Uniform { seed, scale, round } => floats(bytes, seed, start, round, |u| u * scale),
            Values::Between { seed, low, high, round } => floats(bytes, seed, start, round, |u| between(u, low, high)),
            // A byte of a word of the stream holds one code, or two as they are stored.
            Values::Codes { seed, bits, stored } if u64::from(bits) == stored.bits() => {
                let first = start * u64::from(bits) / 8;
                bytes.iter_mut().zip(first..).for_each(|(to, i)| *to = code(seed, 8, i));
            }
            Values::Codes { seed, bits, .. } => {
                bytes.iter_mut().zip(start..).for_each(|(to, i)| *to = code(seed, bits, i));
            }
        }
    }
}

/// The number in [low, high) that is as far between them as `u` is between -1 and 1.
#[inline]
fn between(u: f32, low: f32, high: f32) -> f32 {
    (low + high) * 0.5 + u * ((high - low) * 0.5)
}

/// The code of so many bits at `index`: a word of the stream has several, the lowest bits first.
#[inline]
fn code(seed: u64, bits: u32, index: u64) -> u8 {
    let per = u64::from(64 / bits);
    (hash(seed, index / per) >> (index % per * u64::from(bits)) & ((1 << bits) - 1)) as u8
}

fn floats(bytes: &mut [u8], seed: u64, start: u64, stored: Storage, value: impl Fn(f32) -> f32) {
    match stored {
        Storage::Bf16 => stream(bytes, seed, start, |u| half::bf16::from_f32(value(u)).to_le_bytes()),
        Storage::F16 => stream(bytes, seed, start, |u| half::f16::from_f32(value(u)).to_le_bytes()),
        Storage::E4m3 => stream(bytes, seed, start, |u| [e4m3_from_f32(value(u))]),
        Storage::F32 => stream(bytes, seed, start, |u| value(u).to_le_bytes()),
        Storage::I32 => stream(bytes, seed, start, |u| (value(u).round() as i32).to_le_bytes()),
        // Codes are filled by `Fill::Codes` alone.
        Storage::Int4 | Storage::Int8 | Storage::U8 => {}
    }
}

fn store<T: Copy, const SIZE: usize>(bytes: &mut [u8], values: &[T], bits: impl Fn(T) -> [u8; SIZE]) {
    for (to, v) in bytes.as_chunks_mut::<SIZE>().0.iter_mut().zip(values) {
        *to = bits(*v);
    }
}

/// Each type has a loop of its own: a gigabyte of weights must not take longer than the kernels that read it.
fn stream<const SIZE: usize>(bytes: &mut [u8], seed: u64, start: u64, bits: impl Fn(f32) -> [u8; SIZE]) {
    for (to, i) in bytes.as_chunks_mut::<SIZE>().0.iter_mut().zip(start..) {
        *to = bits(hash_uniform(seed, i));
    }
}

/// Most elements of inputs that are extreme.
#[cfg(feature = "tuner")]
const EXTREMES: u64 = 8 << 20;

/// The inputs of one problem under one seed.
pub struct Inputs {
    list: Vec<Input>,
}

impl Inputs {
    /// Inputs of `problem`; another seed gives other values of the same kind.
    pub fn new(problem: &Problem, seed: u64) -> Inputs {
        let tensors = problem.tensors().into_iter().filter(|t| t.role == Role::In);
        let list = tensors.enumerate().map(|(i, tensor)| {
            let seed = hash(seed, i as u64);
            let values = match tensor.fill {
                Fill::Uniform { scale } => Values::Uniform { seed, scale, round: tensor.storage },
                Fill::Between { low, high } => Values::Between { seed, low, high, round: tensor.storage },
                Fill::Codes { bits } => Values::Codes { seed, bits, stored: tensor.storage },
                Fill::Index(kind) => Values::Ints(indices(kind, tensor.len(), seed)),
                Fill::CosSin => Values::Floats(cos_sin(tensor.shape[0], tensor.shape[1])),
                Fill::Settings(turns) => Values::Floats(turns.settings(tensor.shape[0], seed)),
                Fill::Output => Values::Ints(Vec::new()),
            };
            Input { tensor, values }
        });
        Inputs { list: list.collect() }
    }

    /// The input of that name.
    ///
    /// # Panics
    /// When the problem has no such input: a mistake in an op's own file.
    pub fn get(&self, name: &str) -> &Input {
        self.list.iter().find(|i| i.tensor.name == name).unwrap_or_else(|| unreachable!("no input named {name}"))
    }

    /// Puts these values in place of those of an f32 or i32 input, so that a test can ask for what random ones hardly have; false
    /// where there is no such input, or it has another number of elements.
    pub fn replace(&mut self, name: &str, values: &[f64]) -> bool {
        let named = |i: &&mut Input| i.tensor.name == name && i.tensor.len() == values.len() as u64;
        let Some(input) = self.list.iter_mut().find(named) else { return false };
        input.values = match input.tensor.storage {
            Storage::F32 => Values::Floats(values.iter().map(|v| *v as f32).collect()),
            Storage::I32 => Values::Ints(values.iter().map(|v| *v as i32).collect()),
            _ => return false,
        };
        true
    }

    /// Inputs that those of [`Inputs::new`] hardly are, of ops whose results hang on it: numbers far from 0, whose exponentials no type
    /// holds, and rows of negatives of which many are equal.
    #[cfg(feature = "tuner")]
    pub(crate) fn extreme(problem: &Problem, seed: u64) -> Option<Inputs> {
        let mut inputs = Inputs::new(problem, seed);
        let x = inputs.list.iter_mut().find(|i| i.tensor.name == "x").filter(|x| x.tensor.len() <= EXTREMES)?;
        let (len, storage, seed) = (x.tensor.len(), x.tensor.storage, hash(seed, 0));
        x.values = match (problem.op().name, storage) {
            ("gelu" | "silu_mul" | "softmax", round) => Values::Uniform { seed, scale: 120.0, round },
            ("argmax", Storage::F32) => {
                Values::Floats((0..len).map(|i| -1.0 - (hash(seed, i) % 8) as f32 / 8.0).collect())
            }
            // Of 8 bits of mantissa and fewer.
            ("argmax", round) => Values::Between { seed, low: -2.0, high: -1.0, round },
            _ => return None,
        };
        Some(inputs)
    }

    /// Gives an input these values, which its type holds exactly.
    #[cfg(test)]
    pub fn set(&mut self, name: &str, values: Vec<f64>) {
        let input = self.list.iter_mut().find(|i| i.tensor.name == name).unwrap();
        assert_eq!(input.tensor.len(), values.len() as u64);
        input.values = Values::Floats(values.into_iter().map(|v| v as f32).collect());
    }

    /// The elements of each paged cache that hold no token of any sequence, in order: memory of others, or that nobody wrote.
    /// Whoever tests a kernel fills them with NaN, which is 0xff in each byte of any float.
    pub fn unused(&self) -> Vec<Range<u64>> {
        let named = |names: &[&str]| self.list.iter().find(|i| names.contains(&i.tensor.name));
        let cache = self.list.iter().find(|i| i.tensor.layout == Layout::Paged);
        let (Some(cache), Some(table), Some(lens)) = (cache, named(&["block_table"]), named(&["lens", "kv_lens"]))
        else {
            return Vec::new();
        };
        let &[pages, kv_heads, page, head_dim] = &cache.tensor.shape[..] else { return Vec::new() };
        let mut tokens = vec![0; pages as usize];
        let width = table.tensor.shape[1];
        for sequence in 0..lens.tensor.len() {
            let length = lens.at(sequence) as u64;
            for i in 0..length.div_ceil(page).min(width) {
                let held = &mut tokens[table.at(sequence * width + i) as usize];
                *held = page.min(length - i * page).max(*held);
            }
        }
        let mut list: Vec<Range<u64>> = Vec::new();
        for (head, held) in (0..).zip(tokens.into_iter().flat_map(|held| (0..kv_heads).map(move |_| held))) {
            let (start, end) = ((head * page + held) * head_dim, (head + 1) * page * head_dim);
            match list.last_mut().filter(|last| last.end == start) {
                Some(last) => last.end = end,
                None if start < end => list.push(start..end),
                None => {}
            }
        }
        list
    }

    /// All inputs in order.
    pub fn iter(&self) -> impl Iterator<Item = &Input> {
        self.list.iter()
    }
}

fn indices(kind: IndexFill, len: u64, seed: u64) -> Vec<i32> {
    match kind {
        IndexFill::Full(v) => vec![v as i32; len as usize],
        IndexFill::Below(n) => (0..len).map(|i| (hash(seed, i) % n as u64) as i32).collect(),
        IndexFill::Lengths(n) => (0..len).map(|b| super::decode::length(n, len as i64, b as i64) as i32).collect(),
        IndexFill::QueryStarts(spread) => spread.starts(),
        IndexFill::KvLengths(spread) => spread.lengths(),
        IndexFill::TopK(turns) => turns.top_k(len, seed),
        IndexFill::Bits => (0..len).map(|i| (hash(seed, 2 * i) & hash(seed, 2 * i + 1)) as i32).collect(),
        IndexFill::Told { ids, rows } => {
            let asks = |i| i < ids as u64 && hash(seed, 2 * i).is_multiple_of(2);
            let row = |i| (hash(seed, 2 * i + 1) % rows.max(1) as u64) as i32;
            (0..len).map(|i| if asks(i) { -1 - row(i) } else { hash(seed, 2 * i + 1) as i32 & 0xffff }).collect()
        }
        IndexFill::Padded(n) => {
            let mut slots = indices(IndexFill::Distinct(n), len, seed);
            super::qkv::padded(&mut slots);
            slots
        }
        IndexFill::Distinct(n) => {
            // A Fisher-Yates shuffle stopped after the values that are needed.
            let mut all: Vec<i32> = (0..n as i32).collect();
            for i in 0..len.min(n as u64) {
                let j = i + hash(seed, i) % (n as u64 - i);
                all.swap(i as usize, j as usize);
            }
            // A table with more places than there are pages names some of them again.
            all.into_iter().cycle().take(if n > 0 { len as usize } else { 0 }).collect()
        }
    }
}

/// cos and sin of position · 10000^(-2j/d) for `half` = d/2 pairs a position (Su et al. 2021, RoFormer).
fn cos_sin(positions: u64, half: u64) -> Vec<f32> {
    let mut table = Vec::with_capacity((positions * half * 2) as usize);
    for position in 0..positions {
        for j in 0..half {
            let angle = position as f64 * 10000f64.powf(-(j as f64) / half as f64);
            table.push(angle.cos() as f32);
            table.push(angle.sin() as f32);
        }
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_element_is_what_write_stores() {
        for (x, w) in [("bf16", "f16"), ("f16", "f32"), ("f32", "e4m3"), ("e4m3", "bf16")] {
            let p: Problem = format!("matmul m=3 n=3 k=5 dtype={x} w={w}").parse().unwrap();
            let inputs = Inputs::new(&p, 7);
            for (name, stored) in [("x", x), ("w", w)] {
                let input = inputs.get(name);
                assert_eq!(input.tensor.storage.name(), stored);
                let mut bytes = vec![0; input.tensor.bytes() as usize];
                input.write(0, &mut bytes);
                for i in 0..15 {
                    assert_eq!(input.tensor.storage.value(&bytes, i), input.at(i));
                }
                assert!(input.tensor.storage.value(&bytes, 15).is_nan(), "beyond the end");
            }
        }
    }

    #[test]
    fn what_no_token_lies_in_is_unused() {
        // Lengths 7, 6, 4 and 2 in pages of 4: six of the eight pages hold tokens, three of them in part.
        let p: Problem = "decode batch=4 context=7 heads=2 kv_heads=2 head_dim=3 page=4 | lens=mixed".parse().unwrap();
        let inputs = Inputs::new(&p, 5);
        let (table, lens) = (inputs.get("block_table"), inputs.get("lens"));
        let mut used = vec![false; inputs.get("k_cache").tensor.len() as usize];
        for b in 0..4 {
            for token in 0..lens.at(b) as u64 {
                let page = table.at(b * 2 + token / 4) as u64;
                for head in 0..2 {
                    let row = (page * 2 + head) * 4 + token % 4;
                    used[(row * 3) as usize..(row * 3 + 3) as usize].fill(true);
                }
            }
        }
        let mut unused = vec![false; used.len()];
        for range in inputs.unused() {
            unused[range.start as usize..range.end as usize].fill(true);
        }
        assert!(used.iter().zip(&unused).all(|(a, b)| a != b));
        assert_eq!(used.iter().filter(|u| **u).count(), (7 + 6 + 4 + 2) * 2 * 3);
        let full: Problem = "decode batch=4 context=8 heads=2 kv_heads=2 head_dim=3 page=4".parse().unwrap();
        assert_eq!(Inputs::new(&full, 5).unused(), []);
    }

    #[test]
    fn distinct_indices_are_distinct_and_in_range() {
        let v = indices(IndexFill::Distinct(100), 60, 3);
        let set: std::collections::BTreeSet<_> = v.iter().collect();
        assert_eq!(set.len(), 60);
        assert!(v.iter().all(|i| (0..100).contains(i)));
    }

    #[test]
    fn seeds_change_values_and_the_mean_is_near_zero() {
        let mean: f64 = (0..100_000).map(|i| f64::from(hash_uniform(1, i))).sum::<f64>() / 1e5;
        assert!(mean.abs() < 0.01, "{mean}");
        assert_ne!(hash_uniform(1, 0), hash_uniform(2, 0));
    }
}
