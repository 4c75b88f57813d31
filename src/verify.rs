//! Verification of a bundle's winners on this machine: results against the reference on fresh inputs, and times against
//! the stored evidence.

use crate::artifact::{Artifact, ArtifactInfo};
use crate::backend::BackendError;
use crate::backend::session::{Runnable, Session, Setup};
use crate::bench::{Bench, Here};
use crate::bundle::Held;
use crate::problem::Problem;
use crate::recipe::{Config, Launch, Recipe};
use crate::runtime::{launch_on, served_on};
use crate::template::Library;
use std::cell::OnceCell;

/// Rounds of timing, as the tuner's finals have.
const ROUNDS: u32 = 15;
/// Series that a winner may have before it counts as slower: another process may have taken the machine once.
const TRIES: u32 = 3;

/// How to verify.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Seed of the inputs.
    pub seed: u64,
    /// How many times the stored time a winner may take.
    pub slack: f64,
    /// Whether it is timed.
    pub timing: bool,
}

impl Default for Options {
    /// Times winners, and lets them take 1.3 times as long as stored.
    fn default() -> Options {
        Options { seed: 1, slack: 1.3, timing: true }
    }
}

/// What was found of one winner.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
#[serde(tag = "verdict", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Finding {
    /// Right, and about as fast as stored.
    Good,
    /// Right, and slower than the slack allows.
    Slower,
    /// Its results differ.
    Wrong {
        /// How.
        why: String,
    },
    /// It does not run.
    Failed {
        /// Why.
        why: String,
    },
    /// It is not for this machine.
    Skipped {
        /// Why.
        why: String,
    },
}

impl Finding {
    /// Whether it speaks against the bundle.
    pub fn is_bad(&self) -> bool {
        matches!(self, Finding::Slower | Finding::Wrong { .. } | Finding::Failed { .. })
    }
}

/// A winner, on a problem, and what was found.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
#[non_exhaustive]
pub struct Verified {
    /// The problem.
    pub problem: Problem,
    /// The template.
    pub template: String,
    /// The architecture it was made for.
    pub arch: String,
    /// The problem that it was tuned for, where that is another.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tuned: Option<Problem>,
    /// The stored median in microseconds; absent for another problem than the tuned one.
    pub stored_us: Option<f64>,
    /// The median now; absent when it was not timed.
    pub now_us: Option<f64>,
    /// Root mean square error over that of the reference.
    pub error_rms: Option<f64>,
    /// The finding.
    #[serde(flatten)]
    pub finding: Finding,
}

/// Verifies winners on one device.
pub struct Verifier<'a> {
    session: &'a mut dyn Session,
    options: Options,
    here: Here,
    /// For winners whose bundle holds no reference.
    library: OnceCell<Library>,
}

impl<'a> Verifier<'a> {
    /// On the device of this session.
    pub fn new(session: &'a mut dyn Session, options: Options) -> Result<Verifier<'a>, BackendError> {
        Ok(Verifier { session, options, here: Here::new()?, library: OnceCell::new() })
    }

    /// Verifies a winner on the problem that it was tuned for.
    pub fn tuned(&mut self, held: &Held<'_>) -> Verified {
        let mut line = Verified { stored_us: Some(held.evidence().median_us), ..blank(held, held.problem()) };
        line.finding = match launch_on(held, self.session.device()) {
            Err(why) => Finding::Skipped { why },
            Ok(launch) => self.check(held, launch, &mut line).unwrap_or_else(|why| why),
        };
        line
    }

    /// Verifies the results of a winner at other sizes that it answers for: the least, and some around its own. Nothing
    /// of a winner that is not for this device.
    pub fn served(&mut self, held: &Held<'_>) -> Vec<Verified> {
        let served = served_on(held, self.session.device()).unwrap_or_default();
        let one = |(asked, launch)| {
            let mut line = Verified { tuned: Some(held.problem()), ..blank(held, asked) };
            line.finding = self.check(held, launch, &mut line).unwrap_or_else(|why| why);
            line
        };
        served.into_iter().map(one).collect()
    }

    /// Runs `launch` on the problem of `line`.
    fn check(&mut self, held: &Held<'_>, launch: Launch, line: &mut Verified) -> Result<Finding, Finding> {
        let setup = self.setup(held, line.problem)?;
        self.session.prepare(&setup).map_err(|e| match e {
            e @ BackendError::OutOfMemory { .. } => Finding::Skipped { why: e.to_string() },
            e => failed(&e),
        })?;
        let runnable = Runnable { artifact: self.put(held.artifact().bytes)?, launch };
        let tried = self.session.attempt(&runnable, 0).map_err(|e| failed(&e))?;
        line.error_rms = Some(tried.check.rms);
        if let Some(why) = tried.check.wrong {
            return Ok(Finding::Wrong { why });
        }
        let Some(stored_us) = line.stored_us.filter(|_| self.options.timing) else { return Ok(Finding::Good) };
        for _ in 0..TRIES {
            let series = self.session.finals(std::slice::from_ref(&runnable), ROUNDS).map_err(|e| failed(&e))?;
            let median = series.first().map_or(f64::INFINITY, |s| s.median());
            let best = line.now_us.map_or(median, |us| us.min(median));
            line.now_us = Some(best);
            if best <= stored_us * self.options.slack {
                return Ok(Finding::Good);
            }
        }
        Ok(Finding::Slower)
    }

    /// What the session needs to fill and compare: from the bundle, else made here, which for a GPU needs NVRTC.
    fn setup(&self, held: &Held<'_>, problem: Problem) -> Result<Setup, Finding> {
        let (device, seed) = (self.session.device(), self.options.seed);
        let (Some(support), Some((code, description))) = (held.support(), held.reference()) else {
            let skipped = |e: &dyn std::fmt::Display| Finding::Skipped {
                why: format!("the bundle holds no reference for it: {e}"),
            };
            let library = match self.library.get() {
                Some(library) => library,
                None => {
                    let library = Library::built_in().map_err(|e| skipped(&e))?;
                    self.library.get_or_init(|| library)
                }
            };
            return Bench::new(library, &self.here).setup(&problem, device, seed).map_err(|e| skipped(&e));
        };
        let recipe = Recipe::new(description.clone()).map_err(|e| failed(&e))?;
        if problem != held.problem() && recipe.serves(&held.problem(), &problem, device, &Config::default()).is_err() {
            return Err(Finding::Skipped { why: "the bundle's reference does not answer for this size".into() });
        }
        let launch = recipe.launch(&problem, device, &Config::default()).map_err(|e| failed(&e))?;
        let reference = Some(Runnable { artifact: self.put(code.bytes)?, launch });
        Ok(Setup { problem, seed, support: Some(self.put(support.bytes)?), reference })
    }

    fn put(&self, code: &[u8]) -> Result<Artifact, Finding> {
        Artifact::put(self.here.folder(), code, ArtifactInfo::default()).map_err(|e| failed(&e))
    }
}

fn failed(e: &dyn std::fmt::Display) -> Finding {
    Finding::Failed { why: e.to_string() }
}

fn blank(held: &Held<'_>, problem: Problem) -> Verified {
    Verified {
        problem,
        template: held.description().name.clone(),
        arch: held.device().arch.clone(),
        tuned: None,
        stored_us: None,
        now_us: None,
        error_rms: None,
        finding: Finding::Good,
    }
}
