//! A kernel that was found, and its binding to addresses.

use super::fit::{Case, Described};
use super::{Machine, RuntimeError};
use crate::backend::{BackendError, cpu, cuda};
use crate::bundle::Held;
use crate::device::{Device, Target};
use crate::problem::Problem;
use crate::recipe::{Config, Launch};
use std::ops::Deref;
use std::sync::Arc;

/// One winner, loaded.
pub(super) struct Code {
    pub problem: Problem,
    pub config: Config,
    pub described: Arc<Described>,
    /// What its expressions are evaluated for.
    pub device: Device,
    module: Arc<Module>,
    median_us: f64,
}

impl Code {
    pub fn new(held: &Held<'_>, described: Arc<Described>, device: Device, module: Arc<Module>) -> Code {
        let (problem, config) = (held.problem(), held.config().clone());
        Code { problem, config, described, device, module, median_us: held.evidence().median_us }
    }

    /// The case it was tuned for, on the device at hand.
    pub fn tuned(&self) -> Case<'_> {
        Case { problem: &self.problem, device: &self.device, config: &self.config }
    }
}

/// Loaded code. The context outlives it.
pub(super) enum Module {
    Cuda { module: cuda::Module, _gpu: Arc<cuda::Gpu> },
    Cpu { module: cpu::Module, pool: Arc<cpu::Pool> },
}

impl Module {
    pub fn load(bytes: &[u8], machine: &Machine) -> Result<Module, BackendError> {
        Ok(match machine {
            Machine::Cuda(gpu) => Module::Cuda { module: cuda::Module::load(bytes)?, _gpu: Arc::clone(gpu) },
            Machine::Cpu(pool) => Module::Cpu { module: cpu::Module::load(bytes)?, pool: Arc::clone(pool) },
        })
    }
}

/// Which rung of the ladder an answer stands on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Match {
    /// Tuned for this very problem.
    Exact,
    /// Tuned for the nearest problem whose kernel may run this one.
    Bucket {
        /// The problem it was tuned for.
        tuned: Problem,
    },
}

/// The kernel for one problem on the device at hand.
pub struct Kernel {
    code: Arc<Code>,
    problem: Problem,
    pub(super) launch: Launch,
    rung: Match,
}

impl Kernel {
    pub(super) fn new(code: Arc<Code>, problem: Problem, launch: Launch, rung: Match) -> Kernel {
        Kernel { code, problem, launch, rung }
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
        &self.code.described.recipe.description.name
    }

    /// Its config.
    pub fn config(&self) -> &Config {
        &self.code.config
    }

    /// The median time in microseconds of the problem it was tuned for, as measured by the tuner.
    pub fn tuned_us(&self) -> f64 {
        self.code.median_us
    }

    /// Scratch bytes that a launch needs; 0 for none.
    pub fn workspace_bytes(&self) -> u64 {
        self.launch.workspace
    }

    /// Whether the scratch must be zeroed before the first launch. Every launch leaves it zeroed again.
    pub fn needs_zeroed_workspace(&self) -> bool {
        self.launch.zero && self.launch.workspace > 0
    }

    /// Binds it to the address of each tensor of its problem, in order, and to a workspace (any value where none is
    /// needed). The memory must be of the sizes that [`Problem::tensors`] says, and live and keep its place while
    /// launches run. A workspace serves one launch at a time.
    pub fn bind(&self, tensors: &[u64], workspace: u64) -> Result<Bound, RuntimeError> {
        let bind = |why: String| RuntimeError::Bind { problem: self.problem, why };
        let described = self.problem.tensors();
        if described.len() != tensors.len() {
            return Err(bind(format!("it has {} tensors and {} addresses are given", described.len(), tensors.len())));
        }
        if let Some((t, _)) = described.iter().zip(tensors).find(|(_, address)| **address == 0) {
            return Err(bind(format!("the address of {} is null", t.name)));
        }
        if self.launch.workspace > 0 && workspace == 0 {
            return Err(bind(format!("it needs a workspace of {} bytes", self.launch.workspace)));
        }
        let kind = match &*self.code.module {
            Module::Cuda { module, .. } => {
                Kind::Cuda(cuda::Bound::new(module, &self.launch, &self.problem, tensors, workspace)?)
            }
            Module::Cpu { module, pool } => {
                Kind::Cpu(cpu::Bound::new(module, &self.launch, tensors, workspace)?, Arc::clone(pool))
            }
        };
        Ok(Bound { kind, _module: Arc::clone(&self.code.module) })
    }
}

/// A kernel that was looked up; one reads it as a [`Kernel`].
pub enum Found<'r> {
    /// Tuned for the problem: borrowed from the runtime's table.
    Held(&'r Kernel),
    /// Resolved through the ladder and kept for the next time.
    Shared(Arc<Kernel>),
}

impl Deref for Found<'_> {
    type Target = Kernel;

    fn deref(&self) -> &Kernel {
        match self {
            Found::Held(kernel) => kernel,
            Found::Shared(kernel) => kernel,
        }
    }
}

/// Where a launch goes.
#[derive(Clone, Copy)]
pub enum Queue {
    /// A CUDA stream of the current context, capturing or not.
    Cuda(cuda::RawStream),
    /// The runtime's pool of threads; the launch returns when it is done.
    Host,
}

impl From<cuda::RawStream> for Queue {
    fn from(stream: cuda::RawStream) -> Queue {
        Queue::Cuda(stream)
    }
}

impl From<&cuda::Stream> for Queue {
    fn from(stream: &cuda::Stream) -> Queue {
        Queue::Cuda(stream.into())
    }
}

/// A kernel with its addresses: launched again and again, and captured into graphs.
pub struct Bound {
    kind: Kind,
    _module: Arc<Module>,
}

enum Kind {
    Cuda(cuda::Bound),
    Cpu(cpu::Bound, Arc<cpu::Pool>),
}

impl Bound {
    /// Launches it. On a stream it is enqueued, or captured; on the host it has run when this returns.
    pub fn launch(&self, queue: impl Into<Queue>) -> Result<(), RuntimeError> {
        match (&self.kind, queue.into()) {
            (Kind::Cuda(bound), Queue::Cuda(stream)) => Ok(bound.launch(stream)?),
            (Kind::Cpu(bound, pool), Queue::Host) => {
                bound.run(pool);
                Ok(())
            }
            (Kind::Cuda(_), Queue::Host) => Err(RuntimeError::WrongQueue { kernel: Target::Cuda, queue: Target::Cpu }),
            (Kind::Cpu(..), Queue::Cuda(_)) => {
                Err(RuntimeError::WrongQueue { kernel: Target::Cpu, queue: Target::Cuda })
            }
        }
    }
}
