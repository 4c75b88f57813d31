//! The answer for a problem that was not tuned: the nearest tuned one whose kernel may run it, or why there is none.
//!
//! Near is by the sum of |ln(asked / tuned)| over the dimensions, the same as the mean ratio; of two equally near the one
//! above, whose kernel was tuned for at least as much work. `Recipe::serves` decides, nearest first.

use super::RuntimeError;
use super::error::Refusal;
use super::kernel::Code;
use crate::problem::{DimKind, Part, Problem};
use crate::recipe::{Launch, RecipeError};
use std::cmp::Reverse;
use std::sync::Arc;

/// Winners that an error names.
const NAMED: usize = 4;
/// Added for another dtype or another word: farther than any ratio of sizes.
const OTHER_KIND: f64 = 1e3;
/// Distances are compared in steps of this, so that 4 and 16 are equally far from 8.
const STEP: f64 = 1e-9;

/// The winner that serves `asked` and its launch.
pub(super) fn nearest(codes: &[Arc<Code>], asked: &Problem) -> Result<(Arc<Code>, Launch), RuntimeError> {
    let op = asked.op().name;
    let mut ranked: Vec<_> =
        codes.iter().filter(|c| c.problem.op().name == op).map(|c| (rank(&c.problem, asked), c)).collect();
    ranked.sort_by_key(|(rank, _)| *rank);
    let mut refused = Vec::new();
    for (_, code) in ranked {
        let why = match serves(code, asked) {
            Ok(launch) => return Ok((Arc::clone(code), launch)),
            Err(why) => why,
        };
        if refused.len() < NAMED {
            let template = code.described.recipe.description.name.clone();
            refused.push(Refusal { problem: code.problem, template, why });
        }
    }
    Err(RuntimeError::Untuned { problem: *asked, nearest: refused })
}

/// How far a tuned problem is from the asked one, then whether it lies above; less is nearer.
fn rank(tuned: &Problem, asked: &Problem) -> (u64, Reverse<bool>) {
    let mut distance = if tuned.dtype == asked.dtype { 0.0 } else { OTHER_KIND };
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

/// The launch of `asked` with this winner's code, or why it may not run.
fn serves(code: &Code, asked: &Problem) -> Result<Launch, String> {
    code.described.answer(code.tuned(), asked)?.ok_or_else(|| refusal(code, asked))
}

/// Which of the conditions of `Recipe::serves` does not hold.
fn refusal(code: &Code, asked: &Problem) -> String {
    let (tuned, d) = (&code.problem, &code.described.recipe.description);
    if tuned.dtype != asked.dtype {
        return format!("it is for {}", tuned.dtype);
    }
    let fixed = |name: &str| code.described.recipe.fixes(tuned, name);
    let differ: Vec<String> = tuned
        .variables()
        .into_iter()
        .zip(asked.variables())
        .filter(|((name, t), (_, a))| fixed(name) && t != a)
        .map(|((name, _), _)| match tuned.word(name) {
            "" => format!("{name}={}", tuned.dim(name)),
            word => format!("{name}={word}"),
        })
        .collect();
    if !differ.is_empty() {
        return format!("its code is for {} alone", differ.join(" "));
    }
    if !code.described.recipe.takes(asked, &code.device).unwrap_or(false) {
        return format!("its template takes only problems with {}", d.when.0);
    }
    match code.described.recipe.check(asked, &code.device, &code.config) {
        Err(RecipeError::Illegal { constraint, .. }) => format!("its config breaks the rule '{constraint}'"),
        Err(other) => other.to_string(),
        Ok(()) => format!("it serves only {}", d.reuse.legal.0),
    }
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
