//! A problem as peers are given it: input files that every peer reads, and what the outputs should be.

use crate::device::{Device, Target};
use crate::problem::{Expected, Inputs, Problem, Role, Storage, Tolerance, Variable, error_of, expected};
use jitune_peer::{Task, TaskTensor};
use rayon::prelude::*;
use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Most sets of tensors that calls rotate through.
const MAX_SETS: u64 = 32;
/// Memory that the sets of one peer may take: every set is filled by every peer.
const SET_BYTES: u64 = 1 << 30;
/// Input reads that the reference of one problem may cost.
const REFERENCE_BUDGET: u64 = 16 << 20;
/// Elements of a chunk of a file that is written at a time.
const CHUNK: usize = 1 << 18;

/// A problem made ready for peers.
pub struct Prepared {
    /// What they are given.
    pub task: Task,
    /// Sampled outputs in f64.
    pub expected: Vec<Expected>,
    /// How far off they may be.
    pub tolerance: Tolerance,
    /// Sampled elements of the product before its epilogue, for peers that compute only that.
    pub product: Vec<Expected>,
    /// What it computes them from.
    inputs: Inputs,
    /// Values among which an output is the index of one; none where outputs are no indices.
    among: Option<u64>,
}

impl Prepared {
    /// Whether two indices of an output point to equal values.
    fn equal(&self, output: u64, [a, b]: [f64; 2]) -> bool {
        self.among.is_some_and(|n| {
            let at = |v: f64| (v >= 0.0 && v < n as f64).then(|| self.inputs.get("x").at(output * n + v as u64));
            at(a).is_some_and(|a| at(b) == Some(a))
        })
    }
}

/// Writes the inputs of `problem` to `folder` and computes a sample of its outputs.
pub fn prepare(
    problem: &Problem,
    device: &Device,
    seed: u64,
    folder: &Path,
    round_us: f64,
    warm_s: f64,
) -> io::Result<Prepared> {
    let inputs = Inputs::new(problem, seed);
    let mut tensors = Vec::new();
    for t in problem.tensors() {
        let mut tensor = TaskTensor {
            name: t.name.into(),
            dtype: t.storage.name().into(),
            shape: t.shape.clone(),
            role: if t.role == Role::In { "in" } else { "out" }.into(),
            file: None,
        };
        if t.role == Role::In {
            let path = folder.join(t.name);
            let (file, input) = (File::create(&path)?, inputs.get(t.name));
            let size = |elements: usize| t.storage.bytes(elements as u64);
            let (elements, len) = (t.len() as usize, t.bytes());
            file.set_len(len)?;
            (0..elements.div_ceil(CHUNK)).into_par_iter().try_for_each(|i| {
                let mut bytes = vec![0; size(CHUNK.min(elements - i * CHUNK)) as usize];
                input.write((i * CHUNK) as u64, &mut bytes);
                file.write_all_at(&bytes, size(i * CHUNK))
            })?;
            tensor.file = Some(path);
        }
        tensors.push(tensor);
    }
    // As the tuner rotates: twice the last-level cache in all, or memory read in between.
    let cache = if device.target == Target::Cuda { device.l2 } else { device.l3.max(device.l2) };
    let bytes = problem.bytes().max(1);
    let allocated: u64 = problem.tensors().iter().map(|t| t.bytes()).sum();
    let sets = (2 * cache).div_ceil(bytes).clamp(1, MAX_SETS).min((SET_BYTES / allocated.max(1)).max(1));
    let flush_bytes = if sets * bytes < 2 * cache { 2 * cache + (32 << 20) } else { 0 };
    let (mut dims, mut words, mut reals) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
    for (name, value) in problem.variables() {
        match value {
            Variable::Int(v) => drop(dims.insert(name.to_string(), v)),
            Variable::Word(w) => drop(words.insert(name.to_string(), w.to_string())),
            Variable::Real(v) => drop(reals.insert(name.to_string(), v)),
        }
    }
    let product = match plain_product(problem) {
        Some(plain) => expected(&plain, &inputs, seed, REFERENCE_BUDGET),
        None => Vec::new(),
    };
    Ok(Prepared {
        task: Task {
            problem: problem.to_string(),
            op: problem.op().name.into(),
            dtype: problem.types().to_string(),
            dims,
            words,
            reals,
            tensors,
            sets: sets as usize,
            flush_bytes,
            round_us,
            warm_s,
            ways: Vec::new(),
        },
        expected: expected(problem, &inputs, seed, REFERENCE_BUDGET),
        tolerance: Tolerance::of(problem),
        product,
        among: (problem.op().name == "argmax").then(|| problem.dim("cols") as u64),
        inputs,
    })
}

/// The product of a fused one, on the same x and w.
fn plain_product(problem: &Problem) -> Option<Problem> {
    match problem.op().name {
        "matmul" if problem.word("epilogue") != "none" => {}
        "qkv" => {}
        _ => return None,
    }
    let [m, n, k] = ["m", "n", "k"].map(|name| problem.dim(name));
    format!("matmul m={m} n={n} k={k} dtype={}", problem.types()).parse().ok()
}

/// How far a peer's values are from the reference.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Distance {
    /// Root mean square error over that of the reference.
    pub rms: f64,
    /// Largest |error| / (|reference| + rms); infinite where a value is not finite.
    pub max: f64,
    /// Elements compared.
    pub compared: u64,
    /// Indices that point to another value than they should.
    pub wrong: u64,
    /// Indices that are others than they should be and point to an equal value.
    pub ties: u64,
}

impl Distance {
    /// Both together.
    pub fn and(self, other: Distance) -> Distance {
        Distance {
            rms: self.rms.max(other.rms),
            max: self.max.max(other.max),
            compared: self.compared + other.compared,
            wrong: self.wrong + other.wrong,
            ties: self.ties + other.ties,
        }
    }
}

/// Compares indices with what they should be.
pub fn indices(prepared: &Prepared, expected: &[&Expected], values: &[Option<f64>]) -> Distance {
    let mut found = Distance { compared: expected.len() as u64, ..Distance::default() };
    for (e, v) in expected.iter().zip(values) {
        match v {
            Some(v) if *v == e.value => {}
            Some(v) if prepared.equal(e.index, [*v, e.value]) => found.ties += 1,
            _ => found.wrong += 1,
        }
    }
    found
}

/// Compares values with what they should be.
pub fn distance(storage: &str, expected: &[&Expected], values: &[Option<f64>]) -> Distance {
    let squares: f64 = expected.iter().map(|e| e.value * e.value).sum();
    let rms = (squares / expected.len().max(1) as f64).sqrt();
    let mut found = Distance { compared: expected.len() as u64, ..Distance::default() };
    let mut errors = 0.0;
    let stored = [Storage::E4m3, Storage::Int8].into_iter().find(|s| s.name() == storage).unwrap_or(Storage::F32);
    for (e, v) in expected.iter().zip(values) {
        let error = match v {
            Some(v) => error_of(stored, *v, e.value),
            None => f64::INFINITY,
        };
        errors += error * error;
        found.max = found.max.max(error / (rms + e.value.abs()).max(f64::MIN_POSITIVE));
    }
    found.rms = (errors / squares.max(f64::MIN_POSITIVE)).sqrt();
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_value_is_far_and_a_rounded_one_near() {
        let list = [1.0, -2.0, 0.0].map(|value| Expected { tensor: "y", index: 0, value });
        let expected: Vec<&Expected> = list.iter().collect();
        let near = distance("f32", &expected, &[Some(1.001), Some(-2.0), Some(0.0)]);
        assert!(near.max < 1e-3 && near.rms < 1e-3 && near.compared == 3, "{near:?}");
        assert!(distance("f32", &expected, &[Some(1.0), Some(2.0), Some(0.0)]).max > 1.0);
        assert!(distance("f32", &expected, &[None, Some(-2.0), Some(0.0)]).max.is_infinite());
    }

    #[test]
    fn an_index_of_an_equal_value_is_told_from_a_wrong_one() {
        // Among so many values of so few bits the largest stands more than once.
        let problem: Problem = "argmax rows=2 cols=65536 dtype=bf16".parse().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let device = Device::ahead_of_time("sm_90a").unwrap();
        let prepared = prepare(&problem, &device, 1, folder.path(), 1.0, 0.0).unwrap();
        let mine: Vec<&Expected> = prepared.expected.iter().collect();
        let x = prepared.inputs.get("x");
        let alike = |at: usize| {
            let (row, first) = (mine[at].index * 65536, mine[at].value as u64);
            let other = (first + 1..65536).find(|i| x.at(row + i) == x.at(row + first)).unwrap();
            [first, other].map(|i| Some(i as f64))
        };
        let ([first, other], [second, _]) = (alike(0), alike(1));
        let of = |values: [Option<f64>; 2]| {
            let d = indices(&prepared, &mine, &values);
            (d.wrong, d.ties, d.compared)
        };
        assert_eq!(of([first, second]), (0, 0, 2));
        assert_eq!(of([other, second]), (0, 1, 2));
        assert_eq!(of([first.map(|v| v + 1.0), None]), (2, 0, 2));
        assert_eq!(of([Some(-1.0), Some(65536.0)]), (2, 0, 2));
    }
}
