//! A kernel that was found, and its binding to memory.

use super::RuntimeError;
use crate::backend::{BackendError, Bound, Executable, Module, View};
use crate::bundle::Held;
use crate::device::Device;
use crate::problem::{Problem, Tensor};
use crate::recipe::{Config, Constants, Launch, Recipe, Refused};
use std::sync::Arc;

/// One winner, loaded.
pub(super) struct Code {
    pub problem: Problem,
    pub config: Config,
    pub recipe: Arc<Recipe>,
    /// What its expressions are evaluated for.
    pub device: Device,
    /// What it was compiled with.
    pub constants: Constants,
    pub module: Arc<Module>,
    winner: usize,
    median_us: f64,
    #[cfg(feature = "engine")]
    in_steps: bool,
    /// Microseconds by its description for the problem that it was tuned for.
    cost_us: Option<f64>,
}

/// The launch of a problem by some code, and the microseconds that it is predicted to take.
pub(super) struct Answer {
    pub launch: Launch,
    pub us: f64,
}

impl Code {
    /// Of the bundle's winner at place `winner`.
    pub fn new(
        winner: usize,
        held: &Held<'_>,
        recipe: Arc<Recipe>,
        device: Device,
        constants: Constants,
        module: Arc<Module>,
    ) -> Code {
        let (problem, config, median_us) = (held.problem(), held.config().clone(), held.evidence().median_us);
        let cost_us = recipe.instance(&problem, &device, &config).and_then(|i| i.cost_us()).ok();
        Code {
            problem,
            config,
            recipe,
            device,
            constants,
            module,
            winner,
            median_us,
            #[cfg(feature = "engine")]
            in_steps: held.evidence().step.is_some(),
            cost_us,
        }
    }

    /// How it runs another problem, or why it may not. The time is the one that it took where it was tuned, times the ratio of what its
    /// description predicts for the two.
    pub fn answer(&self, asked: &Problem) -> Result<Answer, Refused> {
        let instance = self.recipe.serves(&self.problem, asked, &self.device, &self.config)?;
        self.constants.agree(&instance.constants()?)?;
        let ratio = instance.cost_us().ok().zip(self.cost_us).map(|(asked, tuned)| asked / tuned);
        let us = self.median_us * ratio.filter(|r| r.is_finite() && *r > 0.0).unwrap_or(1.0);
        Ok(Answer { launch: instance.launch()?, us })
    }

    /// Its answer for the problem that it was tuned for, whose launch is known.
    pub fn tuned(&self, launch: Launch) -> Answer {
        Answer { launch, us: self.median_us }
    }

    /// Where its answer for a problem stands.
    pub fn rung(&self, asked: &Problem) -> Match {
        let tuned = self.problem;
        if tuned.bucket() == asked.bucket() { Match::Exact } else { Match::Bucket { tuned } }
    }

    /// Its template's name.
    pub fn template(&self) -> &str {
        &self.recipe.description.name
    }
}

/// Which rung of the ladder an answer stands on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Match {
    /// Tuned for this very problem, whatever its capacities and its workload were.
    Exact,
    /// Tuned for a problem near this one, by a kernel that may run this one too.
    Bucket {
        /// The problem it was tuned for.
        tuned: Problem,
    },
}

/// The kernel for one problem on the device at hand.
pub struct Kernel {
    code: Arc<Code>,
    problem: Problem,
    tensors: Vec<Tensor>,
    launch: Launch,
    #[cfg(feature = "engine")]
    predicted_us: f64,
    executable: Arc<Executable>,
    rung: Match,
}

impl Kernel {
    /// Finds what the launch needs in the code, and checks it against the device.
    pub(super) fn new(code: Arc<Code>, problem: Problem, answer: Answer, rung: Match) -> Result<Kernel, BackendError> {
        let (tensors, launch) = (problem.tensors(), answer.launch);
        let executable = Arc::new(Executable::new(&code.module, &launch, &tensors)?);
        Ok(Kernel {
            code,
            problem,
            tensors,
            launch,
            #[cfg(feature = "engine")]
            predicted_us: answer.us,
            executable,
            rung,
        })
    }

    /// The problem it runs.
    pub fn problem(&self) -> &Problem {
        &self.problem
    }

    /// How it was found.
    pub fn rung(&self) -> Match {
        self.rung
    }

    /// Its template's name.
    pub fn template(&self) -> &str {
        self.code.template()
    }

    /// The place in its bundle of the winner whose code it runs.
    pub fn winner(&self) -> usize {
        self.code.winner
    }

    /// Whether it is the portable kernel of its op, which answers where nothing tuned does. What was tuned for a problem of a model's own is
    /// none, whichever template won.
    pub fn is_portable(&self) -> bool {
        self.code.recipe.description.portable && self.code.problem.is_probe()
    }

    /// Its config.
    pub fn config(&self) -> &Config {
        &self.code.config
    }

    /// The median time in microseconds of the problem it was tuned for, as measured by the tuner.
    pub fn tuned_us(&self) -> f64 {
        self.code.median_us
    }

    /// The microseconds that its problem is predicted to take.
    #[cfg(feature = "engine")]
    pub(crate) fn predicted_us(&self) -> f64 {
        self.predicted_us
    }

    /// The same code for another problem, if it serves it.
    #[cfg(feature = "engine")]
    pub(crate) fn serving(&self, asked: &Problem) -> Option<Kernel> {
        let answer = self.code.answer(asked).ok()?;
        Kernel::new(Arc::clone(&self.code), *asked, answer, self.code.rung(asked)).ok()
    }

    /// Whether whole steps chose it for this very problem.
    #[cfg(feature = "engine")]
    pub(crate) fn in_steps(&self) -> bool {
        self.code.in_steps && self.code.problem.bucket() == self.problem.bucket()
    }

    /// Scratch bytes that a launch needs; 0 for none.
    pub fn workspace_bytes(&self) -> u64 {
        self.launch.workspace
    }

    /// Whether the scratch must be zeroed before the first launch. Every launch leaves it zeroed again.
    pub fn needs_zeroed_workspace(&self) -> bool {
        self.launch.zero && self.launch.workspace > 0
    }

    /// The problem's tensors, in the order in which [`Kernel::bind`] takes them.
    pub fn tensors(&self) -> &[Tensor] {
        &self.tensors
    }

    /// Grids, blocks and arguments, for those who inspect.
    pub fn launch_spec(&self) -> &Launch {
        &self.launch
    }

    /// Binds it to memory for each tensor of its problem, in order, and to a [`Workspace`](super::Workspace) ([`View::none`] where
    /// none is needed). Each must be of the runtime's device and at least of the size that
    /// [`Kernel::tensors`] says; what is written shares no byte with anything else; indices are promised to be in range
    /// ([`View::assume_in_range`]). Memory of others comes in by [`View::from_raw`].
    pub fn bind<V: Into<View>>(
        &self,
        tensors: impl IntoIterator<Item = V>,
        workspace: impl Into<View>,
    ) -> Result<Bound, RuntimeError> {
        let bound = self.executable.bind(tensors.into_iter().map(Into::into).collect(), workspace.into());
        bound.map_err(|e| match e {
            BackendError::Bind { why } => RuntimeError::Bind { problem: self.problem, why },
            other => other.into(),
        })
    }
}
