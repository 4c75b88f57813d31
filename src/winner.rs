//! Winners: the config that was chosen for a problem on a device, its code, and why it may be believed.

use crate::artifact::ArtifactInfo;
use crate::device::Device;
use crate::problem::Problem;
use crate::recipe::{Config, Description, Launch, Recipe, RecipeError};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The best config of a problem on a device. It carries all that a launch needs but the code itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Winner {
    /// The problem it was tuned for.
    pub problem: Problem,
    /// The config.
    pub config: Config,
    /// The blake3 hash of the artifact, in hex.
    pub artifact: String,
    /// The template's description, from which launches are evaluated.
    pub description: Description,
    /// The device it was measured on.
    pub device: Device,
    /// Why it may be believed.
    pub evidence: Evidence,
}

impl Winner {
    /// The template's name.
    pub fn template(&self) -> &str {
        &self.description.name
    }

    /// Floating-point operations a second, of the median.
    pub fn flops(&self) -> f64 {
        self.problem.flops() / (self.evidence.median_us * 1e-6)
    }

    /// Compulsory bytes a second, of the median.
    pub fn bytes_per_s(&self) -> f64 {
        self.problem.bytes() as f64 / (self.evidence.median_us * 1e-6)
    }

    /// Its launch, where all that it says of itself goes together: a description within the bounds of what comes from elsewhere, which
    /// is a kernel's that takes the problem on the device, and a config that this allows.
    pub(crate) fn launch(&self) -> Result<Launch, RecipeError> {
        let recipe = Recipe::new(self.description.clone())?;
        let invalid = |why: String| Err(RecipeError::Invalid { template: recipe.description.name.clone(), why });
        if !recipe.description.role.is_run() {
            return invalid("it is no kernel".into());
        }
        if !recipe.takes(&self.problem, &self.device)? {
            return invalid(format!("it does not take '{}' on {}", self.problem, self.device.arch));
        }
        let instance = recipe.instance(&self.problem, &self.device, &self.config)?;
        let tunables = &recipe.description.tunables;
        if let Some((name, value)) = self.config.0.iter().find(|(n, v)| tunables.get(*n).is_none_or(|l| !l.contains(v)))
        {
            return invalid(format!("tunable {name} has no value {value}"));
        }
        instance.legal().map_err(|why| instance.illegal(&why))?;
        instance.launch()
    }
}

/// Whether a number is microseconds that a kernel can have taken: from a picosecond to an hour.
pub(crate) fn is_time(us: f64) -> bool {
    (1e-6..=3.6e9).contains(&us)
}

/// What was seen when a winner was chosen.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Evidence {
    /// Microseconds of each round of the finals.
    pub samples_us: Vec<f64>,
    /// The clock of each round in MHz; empty where it cannot be read.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub clocks_mhz: Vec<u32>,
    /// Rounds dropped because the clock had moved.
    #[serde(default)]
    pub dropped_rounds: u32,
    /// The median of the samples.
    pub median_us: f64,
    /// The least time that the device's ceilings allow.
    pub roofline_us: f64,
    /// `roofline_us / median_us`.
    pub roofline_share: f64,
    /// Whether bytes rather than operations set the roofline.
    pub memory_bound: bool,
    /// Root mean square error over that of the f64 reference, before timing and after.
    pub error_rms: f64,
    /// Largest scaled error.
    pub error_max: f64,
    /// Output elements compared.
    pub compared: u64,
    /// Configs within noise of it, written `template config`.
    #[serde(default)]
    pub ties: Vec<String>,
    /// Candidates that were tried.
    pub trials: u32,
    /// Candidates that were rejected, by reason.
    #[serde(default)]
    pub rejected: BTreeMap<String, u32>,
    /// Legal configs of all templates together.
    pub space: u64,
    /// Whether the search was cut off before its end, by time, an interruption or a machine that failed: the next run goes
    /// on with it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub cut_off: bool,
    /// Whether only what was measured for others of its family was tried, the best by prediction.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub narrow: bool,
    /// What the compiler said.
    pub compiler_report: ArtifactInfo,
    /// Compiler, driver, operating system, version of jitune.
    pub environment: BTreeMap<String, String>,
    /// Seconds of wall time that this problem took.
    pub seconds: f64,
    /// Unix seconds when it was chosen.
    pub at: u64,
    /// Where whole steps of a model chose it, whatever it takes by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step: Option<InStep>,
}

/// Why a kernel runs in whole steps in the place of the winner, or of what was predicted to be faster.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct InStep {
    /// The step that was timed, in words.
    pub step: String,
    /// Median microseconds of it with all that was chosen, and with the winners, in turn.
    pub us: f64,
    /// The same with the winners.
    pub before_us: f64,
    /// The hash of the artifact of the winner in whose place it runs, which may be its own; it counts as long as that is the winner.
    pub over: String,
}
