//! The production half: a bundle's winners loaded on the device at hand, a table from problem to kernel, and launches.
//!
//! Owns which winners fit the device and the look-up with its ladder (exact, a tuned bucket near it, typed error). It compiles
//! nothing, tunes nothing and opens no file; loading, binding and launching live in `backend`.
//!
//! Everything is made ready when the bundle is loaded: expressions are compiled, modules loaded and their functions found,
//! the launches of the tuned problems evaluated and checked against the device. So an artifact that does not load is found when the process starts rather than at the first
//! request, the first request is as fast as the next, and nothing is loaded inside a graph capture.
//!
//! ```no_run
//! use jitune::{bundle::Bundle, problem::Problem, runtime::{Queue, Runtime}};
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let runtime = Runtime::cpu(&Bundle::open("model.jitune")?, None)?;
//! let problem: Problem = "matmul m=4 n=2048 k=2048 dtype=f32".parse()?;
//! let kernel = runtime.lookup(&problem)?;
//! let tensors = runtime.allocate_all(&problem)?; // or memory of your own: `View::from_raw`
//! let workspace = runtime.workspace(&kernel)?;
//! let bound = kernel.bind(&tensors, &workspace)?;
//! bound.launch(Queue::Host)?; // on a GPU: a CUDA stream, also while it captures
//! # Ok(()) }
//! ```
#![forbid(unsafe_code)]

mod error;
mod fit;
mod kernel;
mod ladder;
mod table;

pub use crate::backend::{Bound, Memory, Queue, View, Workspace};
pub use error::{Refusal, RuntimeError};
pub use fit::{launch_on, served_on};
pub use kernel::{Kernel, Match};

use crate::backend::{BackendError, Machine, Module, cpu, cuda};
use crate::bundle::{Bundle, Held};
use crate::device::{Device, Target};
use crate::problem::Problem;
use crate::recipe::Recipe;
use crate::sync::{read, write};
use fit::{Fitted, fitted};
use kernel::Code;
use std::collections::HashMap;
use std::sync::{Arc, RwLock};
use table::{Recent, Table};

/// Resolved answers for untuned problems that are kept; past it those that are not asked for give way.
const MAX_RESOLVED: usize = 4096;

/// A bundle on a device, ready to launch. May be shared between threads; none of them needs a CUDA context of its own, and
/// one that a thread has stays as it is.
pub struct Runtime {
    exact: Table<Arc<Kernel>>,
    codes: Vec<Arc<Code>>,
    resolved: RwLock<Recent<Arc<Kernel>>>,
    skipped: Vec<Refusal>,
    device: Device,
    machine: Machine,
}

impl Runtime {
    /// Loads what fits the GPU of that ordinal, into its primary context. Code of a bundle is run as it is: open only
    /// bundles of those whose programs you would run.
    pub fn cuda(bundle: &Bundle<'_>, ordinal: usize) -> Result<Runtime, RuntimeError> {
        let (context, device) = cuda::open(ordinal)?;
        Runtime::load(bundle, device, Machine::Cuda(context))
    }

    /// Loads what fits the host's processor, with a pool of `threads`, or of as many as the process may use. Of the code the
    /// same is true as for [`Runtime::cuda`].
    pub fn cpu(bundle: &Bundle<'_>, threads: Option<usize>) -> Result<Runtime, RuntimeError> {
        let device = cpu::describe(threads);
        let pool = Arc::new(cpu::Pool::new(device.units as usize)?);
        Runtime::load(bundle, device, Machine::Cpu(pool))
    }

    fn load(bundle: &Bundle<'_>, device: Device, machine: Machine) -> Result<Runtime, RuntimeError> {
        let mut skipped = Vec::new();
        // Of each problem the winners for such code, the closest to this device first. Problems stay in the order of the
        // file, so that equal distances are decided alike everywhere.
        let mut problems: Vec<Vec<(usize, Held<'_>)>> = Vec::new();
        let mut places: HashMap<Problem, usize> = HashMap::new();
        for (number, held) in bundle.winners().enumerate() {
            if let Err(why) = fit::arch(held.device(), &device) {
                skipped.push(Refusal::of(&held, why));
                continue;
            }
            let place = *places.entry(held.problem()).or_insert(problems.len());
            if place == problems.len() {
                problems.push(Vec::new());
            }
            let list = &mut problems[place];
            let at =
                list.iter().position(|(_, h)| fit::closer(held.device(), h.device(), &device)).unwrap_or(list.len());
            list.insert(at, (number, held));
        }
        let (mut recipes, mut modules) = (HashMap::new(), HashMap::new());
        let (mut exact, mut codes) = (Table::default(), Vec::new());
        for list in problems {
            // The first that fits; those after it are not needed.
            for (number, held) in list {
                let recipe = match recipes.get(&held.description_index()) {
                    Some(found) => Arc::clone(found),
                    None => {
                        let new = Recipe::new(held.description().clone());
                        let new = Arc::new(new.map_err(|source| RuntimeError::recipe(&held, source))?);
                        recipes.insert(held.description_index(), Arc::clone(&new));
                        new
                    }
                };
                let Fitted { device: on, constants, launch } = match fitted(&recipe, &held, &device) {
                    Ok(found) => found,
                    Err(why) => {
                        skipped.push(Refusal::of(&held, why));
                        continue;
                    }
                };
                let artifact = held.artifact();
                let module = match modules.get(&(artifact.index, held.description_index())) {
                    Some(found) => Arc::clone(found),
                    None => {
                        // Those that other sizes need too: nothing is loaded later, when a stream may be captured.
                        let entries = held.description().launches.iter().map(|l| l.entry.as_str());
                        let new = Module::load(&artifact, entries, &machine);
                        let new = Arc::new(new.map_err(|source| RuntimeError::load(&held, source))?);
                        modules.insert((artifact.index, held.description_index()), Arc::clone(&new));
                        new
                    }
                };
                let code = Arc::new(Code::new(number, &held, recipe, on, constants, module));
                match Kernel::new(Arc::clone(&code), held.problem(), code.tuned(launch), Match::Exact) {
                    Ok(kernel) => exact.insert(held.problem(), Arc::new(kernel)),
                    Err(BackendError::Launch { why }) => {
                        skipped.push(Refusal::of(&held, why));
                        continue;
                    }
                    Err(source) => return Err(RuntimeError::load(&held, source)),
                };
                codes.push(code);
                break;
            }
        }
        if codes.is_empty() {
            return Err(RuntimeError::no_fit(bundle, &device, skipped));
        }
        Ok(Runtime { exact, codes, resolved: RwLock::new(Recent::new(MAX_RESOLVED)), skipped, device, machine })
    }

    /// Loads another bundle on the same device.
    pub fn beside(&self, bundle: &Bundle<'_>) -> Result<Runtime, RuntimeError> {
        Runtime::load(bundle, self.device.clone(), self.machine.clone())
    }

    /// The kernel for a problem. An exact hit costs one look-up in a table; an untuned problem is resolved once through
    /// the ladder (of the nearest tuned buckets whose artifacts may run it, the fastest by prediction) and then remembered. Where nothing serves, the error
    /// names the nearest winners and why each was refused.
    pub fn lookup(&self, problem: &Problem) -> Result<Arc<Kernel>, RuntimeError> {
        match self.exact.get(problem) {
            Some(kernel) => Ok(Arc::clone(kernel)),
            None => self.resolve(problem),
        }
    }

    #[cold]
    fn resolve(&self, problem: &Problem) -> Result<Arc<Kernel>, RuntimeError> {
        let known = read(&self.resolved);
        if let Some(kernel) = known.get(problem) {
            return Ok(Arc::clone(kernel));
        }
        drop(known);
        let kernel = Arc::new(ladder::nearest(&self.codes, problem)?);
        let mut known = write(&self.resolved);
        known.insert(*problem, Arc::clone(&kernel));
        Ok(kernel)
    }

    /// The problems that have a kernel of their own, in the order of the bundle.
    pub fn problems(&self) -> impl ExactSizeIterator<Item = Problem> + '_ {
        self.codes.iter().map(|c| c.problem)
    }

    /// The bundle's winners that are not used on this device, and why.
    pub fn skipped(&self) -> &[Refusal] {
        &self.skipped
    }

    /// The device.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The kind of device.
    pub fn target(&self) -> Target {
        self.device.target
    }

    /// A stream on the runtime's GPU, for those who have none. It does not wait for the default one.
    pub fn stream(&self) -> Result<cuda::Stream, RuntimeError> {
        match &self.machine {
            Machine::Cuda(context) => Ok(cuda::Stream::new(context)?),
            Machine::Cpu(_) => Err(BackendError::WrongQueue { kernel: Target::Cpu, queue: Target::Cuda }.into()),
        }
    }

    /// Leaves the GPU's context current on the calling thread, for libraries that take the current one; nothing to do on a
    /// processor. jitune itself does not need it.
    pub fn make_current(&self) -> Result<(), RuntimeError> {
        match &self.machine {
            Machine::Cuda(context) => Ok(context.make_current()?),
            Machine::Cpu(_) => Ok(()),
        }
    }

    /// Memory of `bytes` on the runtime's device, with undefined contents.
    pub fn allocate(&self, bytes: u64) -> Result<Memory, RuntimeError> {
        Ok(Memory::new(&self.machine, bytes)?)
    }

    /// Bytes that may be allocated on the runtime's device.
    #[cfg(feature = "engine")]
    pub(crate) fn available(&self) -> Result<u64, RuntimeError> {
        Ok(self.machine.available()?)
    }

    /// Memory that holds zeros.
    #[cfg(feature = "engine")]
    pub(crate) fn zeroed(&self, bytes: u64) -> Result<Memory, RuntimeError> {
        Ok(Memory::zeroed(&self.machine, bytes)?)
    }

    /// Memory that the host and kernels share, of zeros; who copies knows that no kernel is at it.
    #[cfg(feature = "engine")]
    pub(crate) fn shared(&self, bytes: u64) -> Result<Memory, RuntimeError> {
        Ok(Memory::shared(&self.machine, bytes)?)
    }

    /// Memory for every tensor of a problem, in order.
    pub fn allocate_all(&self, problem: &Problem) -> Result<Vec<Memory>, RuntimeError> {
        problem.tensors().iter().map(|t| self.allocate(t.bytes())).collect()
    }

    /// The scratch that a kernel needs, zeroed if it asks for that. Launches that share it take turns.
    pub fn workspace(&self, kernel: &Kernel) -> Result<Workspace, RuntimeError> {
        self.workspace_of(kernel.workspace_bytes(), kernel.needs_zeroed_workspace())
    }

    /// Scratch of so many bytes for several kernels, which all want it zeroed ([`Kernel::needs_zeroed_workspace`]) or all do not.
    pub fn workspace_of(&self, bytes: u64, zeroed: bool) -> Result<Workspace, RuntimeError> {
        Ok(Workspace::new(&self.machine, bytes, zeroed)?)
    }
}
