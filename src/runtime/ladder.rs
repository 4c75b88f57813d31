//! The answer for a problem that was not tuned: of the nearest tuned ones whose kernels may run it, the one that is predicted
//! to run it fastest, or why there is none.
//!
//! Near is by the sum of |ln(asked / tuned)| over the dimensions, the same as the mean ratio; of two equally near the one
//! above, whose kernel was tuned for at least as much work. `Recipe::serves` decides who may run it. What a kernel is
//! predicted to take is what it took where it was tuned, times the ratio of the two costs by its description, times what
//! such a prediction has to be taken for the farther it reaches, and the more where a kernel is asked for more than it was
//! tuned for: a size just above a bucket may need another round of tiles, and what was tuned for more does not.

use super::RuntimeError;
use super::error::Refusal;
use super::kernel::{Answer, Code, Kernel};
use crate::backend::BackendError;
use crate::problem::{DimKind, Part, Problem};
use std::cmp::Reverse;
use std::sync::Arc;

/// Winners that an error names.
const NAMED: usize = 4;
/// The nearest winners that serve a problem among which the prediction decides.
const CONSIDERED: usize = 6;
/// By how much a prediction may be short for each e-fold between the sizes, where fewer are asked for than were tuned, and
/// where more are; and in any case where more are. Set so that of forty sizes on an H100 (docs/performance/sizes.md) those
/// whose neighbours' times were known there are answered by the fastest or one close to it.
const FEWER: f64 = 0.3;
const MORE: f64 = 1.0;
const ANY_MORE: f64 = 0.14;
/// Added for another dtype or another word: farther than any ratio of sizes.
const OTHER_KIND: f64 = 1e3;
/// Distances are compared in steps of this, so that 4 and 16 are equally far from 8.
const STEP: f64 = 1e-9;

/// The kernel for `asked` of a winner near it that serves it and whose launch the device takes.
pub(super) fn nearest(codes: &[Arc<Code>], asked: &Problem) -> Result<Kernel, RuntimeError> {
    let op = asked.op().name;
    // Portable code serves anything, slowly: it answers where nothing else does.
    let rank = |c: &Arc<Code>| (c.recipe.description.portable, Gap::new(&c.problem, asked).rank());
    let mut ranked: Vec<_> = codes.iter().filter(|c| c.problem.op().name == op).map(|c| (rank(c), c)).collect();
    ranked.sort_by_key(|(rank, _)| *rank);
    let mut ranked = ranked.into_iter().map(|(_, code)| code);
    let mut refused = Vec::new();
    let mut refuse = |code: &Code, why: String| {
        if refused.len() < NAMED {
            refused.push(Refusal { problem: code.problem, template: code.template().into(), why });
        }
    };
    loop {
        let mut serving = Vec::new();
        for code in ranked.by_ref() {
            match code.answer(asked) {
                Ok(answer) => serving.push((order(code, asked, &answer), code, answer)),
                Err(why) => refuse(code, why.to_string()),
            }
            if serving.len() == CONSIDERED {
                break;
            }
        }
        if serving.is_empty() {
            return Err(RuntimeError::Untuned { problem: *asked, nearest: refused });
        }
        // Of two that are predicted to take the same time, the nearer.
        serving.sort_by(|((a, a_us), ..), ((b, b_us), ..)| a.cmp(b).then(a_us.total_cmp(b_us)));
        for (_, code, answer) in serving {
            match Kernel::new(Arc::clone(code), *asked, answer, code.rung(asked)) {
                Ok(kernel) => return Ok(kernel),
                Err(BackendError::Launch { why } | BackendError::Load { why }) => refuse(code, why),
                Err(other) => return Err(other.into()),
            }
        }
    }
}

/// Portable code last, and of the rest what was tuned for this very bucket first; then the microseconds that it may take.
fn order(code: &Code, asked: &Problem, answer: &Answer) -> ((bool, bool), f64) {
    let exact = code.problem.bucket() == asked.bucket();
    let us = answer.us * Gap::new(&code.problem, asked).doubt();
    ((code.recipe.description.portable, !exact), us)
}

/// How far a tuned problem is from the asked one: sums of |ln(asked / tuned)|.
struct Gap {
    /// Over the dimensions of which less is asked for than was tuned.
    fewer: f64,
    /// Over those of which more is asked for.
    more: f64,
    /// Another dtype or word.
    kind: f64,
}

impl Gap {
    fn new(tuned: &Problem, asked: &Problem) -> Gap {
        let kind = if tuned.types() == asked.types() { 0.0 } else { OTHER_KIND };
        let mut gap = Gap { fewer: 0.0, more: 0.0, kind };
        for ((d, t), (_, a)) in tuned.dims().zip(asked.dims()) {
            match d.kind {
                _ if t == a => {}
                // Neither what a bucket is named by nor what code depends on.
                _ if matches!(d.part, Part::Capacity | Part::Workload) => {}
                DimKind::Required | DimKind::Optional(_) => {
                    let ratio = ((a as f64 + f64::from(a == 0)) / (t as f64 + f64::from(t == 0))).ln();
                    gap.more += ratio.max(0.0);
                    gap.fewer += (-ratio).max(0.0);
                }
                DimKind::Word(_) => gap.kind += OTHER_KIND,
                _ => {}
            }
        }
        gap
    }

    /// Less is nearer: the distance, then whether the tuned one lies below.
    fn rank(&self) -> (u64, Reverse<bool>) {
        (((self.fewer + self.more + self.kind) / STEP) as u64, Reverse(self.fewer > self.more))
    }

    /// By what a prediction over it is multiplied.
    fn doubt(&self) -> f64 {
        let any = if self.more > 0.0 { ANY_MORE } else { 0.0 };
        (FEWER * self.fewer + MORE * self.more + any).exp()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn products(list: &[i64]) -> Vec<Problem> {
        list.iter().map(|m| format!("matmul m={m} n=64 k=64 dtype=f32").parse().unwrap()).collect()
    }

    #[test]
    fn nearer_is_by_ratio_and_the_one_above_wins_a_tie() {
        // (asked, tuned ones, nearest first)
        for (asked, tuned, order) in [
            (8, vec![4, 16], vec![16, 4]),
            (7, vec![1, 4, 16, 32], vec![4, 16, 32, 1]),
            (100, vec![512, 32, 100], vec![100, 32, 512]),
            (1, vec![3, 2], vec![2, 3]),
        ] {
            let (asked, mut tuned) = (products(&[asked])[0], products(&tuned));
            tuned.sort_by_key(|t| Gap::new(t, &asked).rank());
            assert_eq!(tuned, products(&order), "{asked}");
        }
        let bf16: Problem = "matmul m=7 n=64 k=64 dtype=bf16".parse().unwrap();
        let [seven, far] = products(&[7, 1 << 20])[..] else { unreachable!() };
        assert!(Gap::new(&bf16, &seven).rank() > Gap::new(&far, &seven).rank());
    }

    #[test]
    fn a_prediction_for_more_is_doubted_most() {
        let p = products(&[96, 100, 104]);
        let doubt = |tuned: usize| Gap::new(&p[tuned], &p[1]).doubt();
        assert_eq!(doubt(1), 1.0);
        assert!(doubt(2) > 1.0 && doubt(2) < 1.02, "{}", doubt(2));
        assert!(doubt(0) > 1.15 && doubt(0) < 1.25, "{}", doubt(0));
        // Each dimension for itself: less of one does not make up for more of another.
        let q = |m, n| format!("matmul m={m} n={n} k=64 dtype=f32").parse::<Problem>().unwrap();
        assert!(Gap::new(&q(10, 40), &q(20, 20)).doubt() > 2.0);
    }
}
