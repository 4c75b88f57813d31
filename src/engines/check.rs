//! Whether an engine computes the model that it was given: its logits beside a reference's.

use super::http::Server;
use super::process::{Engine, Unanswered};
use super::rows::{Check, State};
pub use crate::logits::Divergence;
use crate::logits::{best, kl, log_sum};
use jitune_peer::Refusal;
use std::path::Path;

/// Prompts that logits are compared on.
const PROMPTS: usize = 4;
/// Tokens of each.
const TOKENS: usize = 48;
/// Most likely tokens that a server is asked for.
const LIKELY: usize = 20;
/// The least context of an engine that is asked for logits.
pub const CONTEXT: usize = TOKENS + 1;
/// The divergence that any two ways of adding up in f32 may have.
const LEAST: f64 = 1e-6;
/// How many times the divergence of its precision an engine may have.
const TIMES: f64 = 2.0;
/// The divergence allowed where the precision's own is not known: block formats of 4 bits and more round activations to 8 bits.
const UNKNOWN: f64 = 0.02;

/// Logits of the model in f32.
pub struct Reference {
    /// Who computed them.
    pub name: String,
    vocab: usize,
    prompts: Vec<Vec<u32>>,
    logits: Vec<Vec<f32>>,
}

/// Prompts of random tokens, from a seed of their own.
fn prompts(vocab: u64) -> Vec<Vec<u32>> {
    let mut state = 0x5eed_u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((state >> 33) % vocab.max(1)) as u32
    };
    (0..PROMPTS).map(|_| (0..TOKENS).map(|_| next()).collect()).collect()
}

impl Reference {
    /// Asks an engine that has loaded the model in f32; logits come by way of a file in `scratch`.
    pub fn of(engine: &mut Engine, vocab: u64, scratch: &Path) -> Result<Reference, Unanswered> {
        let prompts = prompts(vocab);
        let logits = ask(engine, &prompts, scratch)?;
        Ok(Reference { name: engine.about.engine.clone(), vocab: vocab as usize, prompts, logits })
    }

    /// How far an engine that has loaded the model is from it.
    pub fn divergence(&self, engine: &mut Engine, scratch: &Path) -> Result<Divergence, Unanswered> {
        let logits = ask(engine, &self.prompts, scratch)?;
        let mut sum = Divergence::default();
        for (ours, theirs) in self.logits.iter().zip(&logits) {
            if ours.len() != theirs.len() {
                let why = format!("it has {} logits where there are {}", theirs.len(), ours.len());
                return Err(Unanswered::Refused(Refusal::failed(why)));
            }
            for (p, q) in ours.chunks(self.vocab).zip(theirs.chunks(self.vocab)) {
                sum.add(kl(p, q), best(p) == best(q));
            }
        }
        Ok(sum.mean())
    }
}

impl Reference {
    /// How far a server is from it that tells of some likely tokens alone: of each position that it tells of, the divergence of these tokens
    /// and of all others together, which is at most that of all tokens.
    pub fn divergence_of_likely(&self, server: &mut Server) -> Result<Divergence, Unanswered> {
        let mut sum = Divergence::default();
        for (prompt, logits) in self.prompts.iter().zip(&self.logits) {
            for position in server.logprobs(prompt, LIKELY)? {
                let Some(p) = logits.chunks(self.vocab).nth(position.at) else { continue };
                let mut told = Vec::new();
                for likely in &position.top {
                    let Some(id) = likely.id.map(|id| id as usize).filter(|id| *id < self.vocab) else {
                        let why = "its log-probabilities name no tokens by their ids";
                        return Err(Unanswered::Refused(Refusal::unsupported(why)));
                    };
                    told.push((id, f64::from(likely.logprob)));
                }
                sum.add(kl_of_some(p, &told), told.first().is_some_and(|(id, _)| *id == best(p)));
            }
        }
        if sum.positions == 0 {
            return Err(Unanswered::Refused(Refusal::unsupported("it tells of no log-probabilities")));
        }
        Ok(sum.mean())
    }
}

/// KL of a softmax and the log-probabilities of some tokens, all others taken together.
fn kl_of_some(p: &[f32], told: &[(usize, f64)]) -> f64 {
    let log_sum = log_sum(p);
    let (mut sum, mut rest, mut other) = (0.0, 1.0, 1.0);
    for (id, q) in told {
        let p = f64::from(p[*id]) - log_sum;
        sum += p.exp() * (p - q);
        rest -= p.exp();
        other -= q.exp();
    }
    // What is left of either is never quite nothing; rounding may make it less.
    let (rest, other) = (rest.max(1e-12), other.max(1e-12));
    let sum = sum + rest * (rest / other).ln();
    if sum.is_nan() { f64::INFINITY } else { sum.max(0.0) }
}

fn ask(engine: &mut Engine, prompts: &[Vec<u32>], scratch: &Path) -> Result<Vec<Vec<f32>>, Unanswered> {
    let file = scratch.join("logits.f32");
    prompts.iter().map(|prompt| engine.logits(prompt, &file).map(|(_, logits)| logits)).collect()
}

/// What a divergence says of an engine; `own` is the divergence of the precision itself, where it is known.
pub fn verdict(engine: &str, dtype: &str, reference: &str, got: Divergence, own: Option<f64>) -> Check {
    let limit = match own {
        Some(own) => TIMES * own + LEAST,
        None => UNKNOWN,
    };
    let wrong = got.kl.is_nan() || got.kl > limit;
    let why = wrong.then(|| {
        let basis = own.map_or("of a precision whose own divergence is not known".into(), |own| {
            format!("since {dtype} itself has {own:.2e}")
        });
        format!("its logits diverge by {:.2e} from {reference}'s in f32, and {limit:.2e} is allowed, {basis}", got.kl)
    });
    Check {
        engine: engine.into(),
        dtype: dtype.into(),
        state: if wrong { State::Wrong } else { State::Ok },
        why,
        reference: reference.into(),
        kl: Some(got.kl),
        own_kl: own,
        top1: Some(got.top1),
        positions: got.positions,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn divergence_is_that_of_two_coins() {
        // Logits may be shifted.
        let (p, q) = ([0.0, 0.0], [5.0, 5.0 + 3f32.ln()]);
        let wanted = 0.5 * (0.5f64 / 0.25).ln() + 0.5 * (0.5f64 / 0.75).ln();
        assert!((kl(&p, &q) - wanted).abs() < 1e-7, "{}", kl(&p, &q));
        assert_eq!(kl(&p, &p), 0.0);
        assert_eq!(kl(&p, &[f32::NAN, 0.0]), f64::INFINITY);
        assert_eq!(kl(&p, &[f32::INFINITY, 0.0]), f64::INFINITY);
        assert_eq!(best(&[1.0, 3.0, 3.0]), 1);
    }

    #[test]
    fn some_tokens_and_all_others_diverge_at_most_as_all_do() {
        let (p, q) = ([0.0f32, 1.0, 2.0, -1.0], [0.5f32, 1.0, 1.5, 0.0]);
        let told = |ids: &[usize]| ids.iter().map(|id| (*id, f64::from(q[*id]) - log_sum(&q))).collect::<Vec<_>>();
        let whole = kl(&p, &q);
        assert!((kl_of_some(&p, &told(&[0, 1, 2])) - whole).abs() < 1e-6);
        let some = kl_of_some(&p, &told(&[2]));
        assert!(some > 0.0 && some < whole, "{some} {whole}");
        assert!(kl_of_some(&p, &[(2, -20.0)]) > 5.0);
    }

    #[test]
    fn an_engine_may_diverge_twice_as_far_as_its_precision() {
        let check =
            |kl, own| verdict("x", "bf16", "transformers", Divergence { kl, top1: 1.0, positions: 1 }, own).state;
        assert_eq!(check(1.9e-3, Some(1e-3)), State::Ok);
        assert_eq!(check(2.1e-3, Some(1e-3)), State::Wrong);
        assert_eq!(check(f64::INFINITY, Some(1e-3)), State::Wrong);
        assert_eq!(check(5e-7, Some(0.0)), State::Ok);
        assert_eq!(check(0.5, None), State::Wrong);
    }
}
