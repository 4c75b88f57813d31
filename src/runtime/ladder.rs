//! The answer for a problem that was not tuned: the nearest tuned one whose kernel may run it, or why there is none.
//!
//! Near is by the sum of |ln(asked / tuned)| over the dimensions, the same as the mean ratio; of two equally near the one
//! above, whose kernel was tuned for at least as much work. `Recipe::serves` decides, nearest first.

use super::RuntimeError;
use super::error::Refusal;
use super::kernel::{Code, Kernel, Match};
use crate::backend::BackendError;
use crate::problem::{DimKind, Part, Problem};
use std::cmp::Reverse;
use std::sync::Arc;

/// Winners that an error names.
const NAMED: usize = 4;
/// Added for another dtype or another word: farther than any ratio of sizes.
const OTHER_KIND: f64 = 1e3;
/// Distances are compared in steps of this, so that 4 and 16 are equally far from 8.
const STEP: f64 = 1e-9;

/// The kernel of the nearest winner that serves `asked` and whose launch the device takes.
pub(super) fn nearest(codes: &[Arc<Code>], asked: &Problem) -> Result<Kernel, RuntimeError> {
    let op = asked.op().name;
    // Portable code serves anything, slowly: it answers where nothing else does.
    let rank = |c: &Arc<Code>| (c.recipe.description.portable, rank(&c.problem, asked));
    let mut ranked: Vec<_> = codes.iter().filter(|c| c.problem.op().name == op).map(|c| (rank(c), c)).collect();
    ranked.sort_by_key(|(rank, _)| *rank);
    let mut refused = Vec::new();
    for (_, code) in ranked {
        let why = match kernel(code, asked)? {
            Ok(kernel) => return Ok(kernel),
            Err(why) => why,
        };
        if refused.len() < NAMED {
            refused.push(Refusal { problem: code.problem, template: code.template().into(), why });
        }
    }
    Err(RuntimeError::Untuned { problem: *asked, nearest: refused })
}

/// A winner's kernel for `asked`, or why it has none: a rule, or a launch that the device refuses.
fn kernel(code: &Arc<Code>, asked: &Problem) -> Result<Result<Kernel, String>, RuntimeError> {
    let launch = match code.answer(asked) {
        Ok(launch) => launch,
        Err(why) => return Ok(Err(why.to_string())),
    };
    let tuned = code.problem;
    let rung = if tuned.bucket() == asked.bucket() { Match::Exact } else { Match::Bucket { tuned } };
    match Kernel::new(Arc::clone(code), *asked, launch, rung) {
        Ok(kernel) => Ok(Ok(kernel)),
        Err(BackendError::Launch { why } | BackendError::Load { why }) => Ok(Err(why)),
        Err(other) => Err(other.into()),
    }
}

/// How far a tuned problem is from the asked one, then whether it lies above; less is nearer.
fn rank(tuned: &Problem, asked: &Problem) -> (u64, Reverse<bool>) {
    let mut distance = if tuned.types() == asked.types() { 0.0 } else { OTHER_KIND };
    let mut above = 0.0;
    for d in tuned.op().dims {
        let (t, a) = (tuned.dim(d.name), asked.dim(d.name));
        match d.kind {
            // Neither what a bucket is named by nor what code depends on.
            _ if matches!(d.part, Part::Capacity | Part::Workload) => {}
            DimKind::Required | DimKind::Optional(_) => {
                let ratio = ((t as f64 + f64::from(t == 0)) / (a as f64 + f64::from(a == 0))).ln();
                distance += ratio.abs();
                above += ratio;
            }
            DimKind::Word(_) if t != a => distance += OTHER_KIND,
            _ => {}
        }
    }
    ((distance / STEP) as u64, Reverse(above > 0.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nearer_is_by_ratio_and_the_one_above_wins_a_tie() {
        let p = |m: i64| -> Problem { format!("matmul m={m} n=64 k=64 dtype=f32").parse().unwrap() };
        // (asked, tuned ones, nearest first)
        for (asked, mut tuned, order) in [
            (8, vec![4, 16], vec![16, 4]),
            (7, vec![1, 4, 16, 32], vec![4, 16, 32, 1]),
            (100, vec![512, 32, 100], vec![100, 32, 512]),
            (1, vec![3, 2], vec![2, 3]),
        ] {
            tuned.sort_by_key(|m| rank(&p(*m), &p(asked)));
            assert_eq!(tuned, order, "{asked}");
        }
        let bf16: Problem = "matmul m=7 n=64 k=64 dtype=bf16".parse().unwrap();
        assert!(rank(&bf16, &p(7)) > rank(&p(1 << 20), &p(7)));
    }
}
