//! The f64 reference: which outputs are computed, and how far a result may be from them.

use super::{Compute, Inputs, Problem, Storage, Tensor, error_of, hash_uniform};
use rayon::prelude::*;

/// Input reads that one thread does in a few milliseconds.
const LITTLE: u64 = 1 << 20;

/// One output element as the reference has it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Expected {
    /// The output tensor.
    pub tensor: &'static str,
    /// Flat index in it.
    pub index: u64,
    /// The value in f64.
    pub value: f64,
}

impl Expected {
    pub(super) fn new(tensor: &'static str, index: u64, value: f64) -> Expected {
        Expected { tensor, index, value }
    }

    /// How far a result that is stored so is from it, for a [`Tolerance`]. Integers are right or not. A code is held to what was rounded
    /// to it: 0 where the value rounds to it, whatever becomes of ties, and infinite where the two are more than a code apart.
    pub fn error(&self, storage: Storage, got: f64) -> f64 {
        match storage {
            Storage::I32 if got == self.value => 0.0,
            Storage::I32 => f64::INFINITY,
            _ if !got.is_finite() => f64::INFINITY,
            _ => error_of(storage, got, self.value),
        }
    }
}

/// The reference of the whole problem where that costs at most `budget` input reads, else of a sample that always has
/// the first and the last units and otherwise depends on `seed`.
pub fn expected(problem: &Problem, inputs: &Inputs, seed: u64, budget: u64) -> Vec<Expected> {
    let units = units(problem, seed, budget);
    // Where compilers have every core, waking threads takes longer than little work.
    if (problem.op().unit_cost)(problem).saturating_mul(units.len() as u64) <= LITTLE {
        return here(problem, inputs, units);
    }
    units.into_par_iter().flat_map_iter(|unit| of_unit(problem, inputs, unit)).collect()
}

/// The same, computed by this thread alone: a process that only tells others what to do need not have more.
#[cfg(feature = "tuner")]
pub(crate) fn expected_here(problem: &Problem, inputs: &Inputs, seed: u64, budget: u64) -> Vec<Expected> {
    here(problem, inputs, units(problem, seed, budget))
}

fn here(problem: &Problem, inputs: &Inputs, units: Vec<u64>) -> Vec<Expected> {
    units.into_iter().flat_map(|unit| of_unit(problem, inputs, unit)).collect()
}

fn of_unit(problem: &Problem, inputs: &Inputs, unit: u64) -> Vec<Expected> {
    let mut out = Vec::new();
    (problem.op().unit)(problem, inputs, unit, &mut out);
    out
}

/// The units that are computed.
fn units(problem: &Problem, seed: u64, budget: u64) -> Vec<u64> {
    let op = problem.op();
    let (units, cost) = ((op.units)(problem), (op.unit_cost)(problem).max(1));
    let affordable = (budget / cost).max(16);
    if units <= affordable {
        (0..units).collect()
    } else {
        // Stratified: one unit at random from each of equally long stretches, and both ends.
        let pick = |i: u64| {
            let (lo, hi) = (i * units / affordable, (i + 1) * units / affordable);
            lo + ((f64::from(hash_uniform(seed, i)) + 1.0) / 2.0 * (hi - lo) as f64) as u64
        };
        let mut v: Vec<u64> = (0..affordable).map(pick).chain([0, units - 1]).collect();
        v.sort_unstable();
        v.dedup();
        v
    }
}

/// How far an output may be from the reference.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tolerance {
    /// Largest root mean square of the errors over that of the reference.
    pub rms: f64,
    /// Largest single |error| over (|reference| + root mean square of the reference).
    pub max: f64,
}

impl Tolerance {
    /// The limits of a problem: a few roundings of its results, or of a factor in TF32 where that is coarser. f32 sums of
    /// thousands of terms lose some bits more.
    pub fn of(problem: &Problem) -> Tolerance {
        Tolerance::of_values(problem, problem.types().y)
    }

    /// Those of values that are stored so.
    fn of_values(problem: &Problem, storage: Storage) -> Tolerance {
        let (rms, max) = match (storage, problem.types().compute) {
            (Storage::Bf16, _) => (4e-3, 2e-2),
            (Storage::F16, Compute::F32) => (6e-4, 4e-3),
            (Storage::F16 | Storage::F32, Compute::Tf32) => (1e-3, 6e-3),
            // Integers are compared whole, and codes by another rule.
            _ => (5e-6, 5e-5),
        };
        let slack = problem.op().slack;
        Tolerance { rms: rms * slack, max: max * slack }
    }

    /// Those of one of its outputs. Codes are held to what was rounded to them, which f32 knows to some bits, and so are scales.
    pub fn of_tensor(problem: &Problem, tensor: &Tensor) -> Tolerance {
        match tensor.storage {
            Storage::E4m3 | Storage::Int8 => Tolerance { rms: 1e-6, max: 1e-5 },
            // Beside codes.
            Storage::F32 if problem.has("codes") => Tolerance { rms: 5e-6, max: 5e-5 },
            // Caches in a type of their own.
            Storage::Bf16 | Storage::F16 => Tolerance::of_values(problem, tensor.storage),
            _ => Tolerance::of(problem),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_problems_are_covered_whole_and_once() {
        for text in [
            "matmul m=3 n=8 k=5 epilogue=swiglu",
            "matmul m=3 n=8 k=5 epilogue=bias_swiglu",
            "matmul m=3 n=8 k=5 epilogue=bias_residual",
            "qkv m=3 k=5 heads=2 kv_heads=1 head_dim=4 page=2 pages=4 bias=1",
            "qkv m=9 k=5 heads=2 kv_heads=1 head_dim=4 page=4 padding=some qk_norm=1",
            "attention batch=2 q=3 kv=5 heads=2 kv_heads=1 head_dim=4",
            "decode batch=2 context=5 heads=2 kv_heads=1 head_dim=4 page=2 lens=mixed",
            "paged_attention tokens=9 batch=3 context=5 heads=2 kv_heads=1 head_dim=4 page=2 lens=mixed",
            "paged_attention tokens=6 batch=3 context=5 heads=2 kv_heads=1 head_dim=4 page=2 lens=chunk",
            "layernorm rows=3 cols=7 residual=1",
            "rope tokens=3 heads=2 head_dim=4",
            "argmax rows=3 cols=9",
            "sample rows=3 cols=9",
            "sample rows=7 cols=40 top=3",
            "advance words=9 ids=4 rows=2",
            "quantize rows=3 cols=300 to=e4m3-g128",
            "norm_quantize rows=3 cols=7",
            "rope_kv m=9 heads=2 kv_heads=1 head_dim=4 page=4 kv=e4m3 padding=some",
            "rope_kv m=3 heads=2 kv_heads=1 head_dim=4 page=4 qk_norm=1",
            "decode batch=2 context=5 heads=2 kv_heads=1 head_dim=4 page=2 kv=e4m3 lens=mixed",
            "rope_kv m=9 heads=2 kv_heads=1 head_dim=4 page=4 dtype=f32 kv=f16 padding=some",
            "decode batch=2 context=5 heads=2 kv_heads=1 head_dim=4 page=2 dtype=f32 kv=bf16 lens=mixed",
        ] {
            let p: Problem = text.parse().unwrap();
            let all = expected(&p, &Inputs::new(&p, 1), 1, u64::MAX / 2);
            let touched: u64 =
                p.tensors().iter().filter(|t| t.role == super::super::Role::Out).map(|t| t.touched).sum();
            assert_eq!(all.len() as u64, touched, "{text}");
            let places: std::collections::BTreeSet<_> = all.iter().map(|e| (e.tensor, e.index)).collect();
            assert_eq!(places.len(), all.len(), "{text}");
        }
    }

    #[test]
    fn samples_hold_both_ends_and_depend_on_the_seed() {
        let p: Problem = "matmul m=64 n=64 k=64".parse().unwrap();
        let inputs = Inputs::new(&p, 1);
        let a = expected(&p, &inputs, 1, 128 * 50);
        assert!(a.len() < 60 && a.iter().any(|e| e.index == 0) && a.iter().any(|e| e.index == 64 * 64 - 1));
        assert_ne!(a, expected(&p, &inputs, 2, 128 * 50));
    }

    #[test]
    fn causal_attention_ignores_later_keys() {
        let p: Problem = "attention batch=1 q=2 kv=2 heads=1 kv_heads=1 head_dim=2 dtype=f32".parse().unwrap();
        let inputs = Inputs::new(&p, 1);
        let out = expected(&p, &inputs, 1, u64::MAX / 2);
        assert_eq!(out[0].value, inputs.get("v").at(0));
        assert_eq!(out[1].value, inputs.get("v").at(1));
    }
}
