//! Attempts: candidates of one problem, compiled, checked and timed in this very process, so that a debugger, a profiler
//! or a memory checker sees them. Stores nothing.

use crate::artifact::ArtifactInfo;
use crate::backend::BackendError;
use crate::backend::session::{Session, Tried};
use crate::bench::{Bench, BenchError, Here};
use crate::problem::Problem;
use crate::recipe::Config;
use crate::space;
use crate::template::{Library, TemplateError};

/// Which candidates, and how.
#[derive(Clone, Debug)]
pub struct Options {
    /// This template alone.
    pub template: Option<String>,
    /// This config alone, in every template that is taken.
    pub config: Option<Config>,
    /// Configs of each template, the cheapest by prediction first.
    pub top: usize,
    /// Rounds of timing; 0 only checks.
    pub rounds: u32,
    /// Seed of the inputs.
    pub seed: u64,
}

impl Default for Options {
    /// The predicted best of each template, timed in five rounds.
    fn default() -> Options {
        Options { template: None, config: None, top: 1, rounds: 5, seed: 1 }
    }
}

/// A candidate, and what came of it.
#[derive(Debug)]
#[non_exhaustive]
pub struct Attempt {
    /// The template's name.
    pub template: String,
    /// The config.
    pub config: Config,
    /// What the compiler said, and what came of running it.
    pub outcome: Result<(ArtifactInfo, Tried), BackendError>,
}

impl Attempt {
    /// Its median time in microseconds, when it is right: NaN where it was not timed.
    pub fn right_us(&self) -> Option<f64> {
        let (_, tried) = self.outcome.as_ref().ok()?;
        let right = tried.check.wrong.is_none() && tried.doubt.is_none();
        right.then(|| tried.series.as_ref().map_or(f64::NAN, |s| s.median()))
    }
}

/// Tries candidates of a problem on an open session. An error means that nothing more can be tried: a problem that cannot
/// be prepared, a config that is illegal, a candidate that destroyed the session.
pub fn attempts(
    session: &mut dyn Session,
    library: &Library,
    problem: &Problem,
    options: &Options,
) -> Result<Vec<Attempt>, BenchError> {
    let here = Here::new()?;
    let bench = Bench::new(library, &here);
    let device = session.device().clone();
    session.prepare(&bench.setup(problem, &device, options.seed)?)?;
    let mut list = Vec::new();
    let templates = match &options.template {
        Some(name) => library.taking(problem, &device)?.into_iter().filter(|t| t.name() == name).collect(),
        None => library.for_problem(problem, &device)?,
    };
    for template in templates {
        let recipe = &template.recipe;
        let configs: Vec<Config> = match &options.config {
            Some(config) => {
                let instance = recipe.instance(problem, &device, config).map_err(TemplateError::from)?;
                instance.legal().map_err(|why| TemplateError::from(instance.illegal(&why)))?;
                vec![config.clone()]
            }
            None => {
                let space = space::enumerate(recipe, problem, &device).map_err(TemplateError::from)?;
                space.candidates.into_iter().take(options.top).map(|c| c.config).collect()
            }
        };
        for config in configs {
            let outcome = match bench.runnable(&template, problem, &device, &config) {
                Ok(runnable) => session.attempt(&runnable, options.rounds).map(|tried| (runnable.artifact.info, tried)),
                Err(BenchError::Target(e)) => Err(e),
                Err(e) => return Err(e),
            };
            let outcome = match outcome {
                Err(e) if e.is_fault() => return Err(e.into()),
                other => other,
            };
            list.push(Attempt { template: template.name().into(), config, outcome });
        }
    }
    Ok(list)
}
