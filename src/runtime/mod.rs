//! The production half: a bundle's winners loaded on the device at hand, a table from problem to kernel, and launches.
//!
//! Owns which winners fit the device, the look-up with its ladder (exact, nearest tuned bucket, typed error) and the
//! binding of addresses. It compiles nothing, tunes nothing and opens no file; the driver calls live in `target`.
//!
//! Everything is made ready when the bundle is loaded: expressions are compiled, modules loaded, the launches of the
//! tuned problems evaluated. So an artifact that does not load is found when the process starts rather than at the first
//! request, the first request is as fast as the next, and nothing is loaded inside a graph capture.
//!
//! ```no_run
//! use jitune::{bundle::Bundle, problem::Problem, runtime::{Queue, Runtime}};
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let runtime = Runtime::cpu(&Bundle::open("model.jitune")?, None)?;
//! let problem: Problem = "matmul m=4 n=2048 k=2048 dtype=f32".parse()?;
//! let kernel = runtime.lookup(&problem)?;
//! let tensors = runtime.allocate_all(&problem)?; // or addresses of your own
//! let workspace = runtime.workspace(&kernel)?;
//! let addresses: Vec<u64> = tensors.iter().map(|t| t.address()).collect();
//! let bound = kernel.bind(&addresses, workspace.address())?;
//! bound.launch(Queue::Host)?; // on a GPU: a CUDA stream, also while it captures
//! # Ok(()) }
//! ```
#![forbid(unsafe_code)]

mod error;
mod fit;
mod kernel;
mod ladder;
mod memory;
mod table;

pub use error::{Refusal, RuntimeError};
pub use fit::{launch_on, served_on};
pub use kernel::{Bound, Found, Kernel, Match, Queue};
pub use memory::Memory;

use crate::backend::{cpu, cuda};
use crate::bundle::{Bundle, Held};
use crate::device::{Device, Target};
use crate::problem::Problem;
use crate::recipe::Launch;
use fit::{Described, device_for};
use kernel::{Code, Module};
use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};
use table::Table;

/// Resolved answers for untuned problems that are kept; past it they are forgotten and resolved again.
const MAX_CACHED: usize = 4096;

/// A bundle on a device, ready to launch. May be shared between threads.
pub struct Runtime {
    exact: Table<Kernel>,
    codes: Vec<Arc<Code>>,
    resolved: RwLock<Table<Arc<Kernel>>>,
    skipped: Vec<Refusal>,
    device: Device,
    machine: Machine,
}

/// What kernels run on.
enum Machine {
    Cuda(Arc<cuda::Gpu>),
    Cpu(Arc<cpu::Pool>),
}

impl Runtime {
    /// Loads what fits the GPU of that ordinal, and makes its primary context current on this thread.
    pub fn cuda(bundle: &Bundle<'_>, ordinal: usize) -> Result<Runtime, RuntimeError> {
        let gpu = cuda::Gpu::open(ordinal)?;
        let device = gpu.device.clone();
        Runtime::load(bundle, device, Machine::Cuda(Arc::new(gpu)))
    }

    /// Loads what fits the host's processor, with a pool of `threads`, or of as many as the process may use.
    pub fn cpu(bundle: &Bundle<'_>, threads: Option<usize>) -> Result<Runtime, RuntimeError> {
        let device = cpu::describe(threads);
        let pool = Arc::new(cpu::Pool::new(device.units as usize));
        Runtime::load(bundle, device, Machine::Cpu(pool))
    }

    fn load(bundle: &Bundle<'_>, device: Device, machine: Machine) -> Result<Runtime, RuntimeError> {
        let mut skipped = Vec::new();
        let mut chosen: HashMap<Problem, Held<'_>> = HashMap::new();
        for held in bundle.winners() {
            if let Err(why) = fit::arch(held.device(), &device) {
                skipped.push(Refusal::of(&held, why));
                continue;
            }
            let closer = |other: &Held<'_>| fit::closer(held.device(), other.device(), &device);
            if chosen.get(&held.problem()).is_none_or(closer) {
                chosen.insert(held.problem(), held);
            }
        }
        // In the order of the file, so that equal distances are decided alike everywhere.
        let fitting = bundle.winners().filter(|h| chosen.get(&h.problem()).is_some_and(|c| c.same(h)));
        let (mut described, mut modules) = (HashMap::new(), HashMap::new());
        let (mut exact, mut codes) = (Table::default(), Vec::new());
        for held in fitting {
            let recipe = match described.get(&held.description_index()) {
                Some(found) => Arc::clone(found),
                None => {
                    let new = Described::new(held.description().clone());
                    let new = Arc::new(new.map_err(|source| RuntimeError::recipe(&held, source))?);
                    described.insert(held.description_index(), Arc::clone(&new));
                    new
                }
            };
            let (on, launch) = match device_for(&recipe, &held, &device) {
                Ok(found) => found,
                Err(why) => {
                    skipped.push(Refusal::of(&held, why));
                    continue;
                }
            };
            let artifact = held.artifact();
            let module = match modules.get(&artifact.index) {
                Some(found) => Arc::clone(found),
                None => {
                    let new = Module::load(artifact.bytes, &machine);
                    let new = Arc::new(new.map_err(|source| RuntimeError::load(&held, source))?);
                    modules.insert(artifact.index, Arc::clone(&new));
                    new
                }
            };
            let code = Arc::new(Code::new(&held, recipe, on, module));
            exact.insert(held.problem(), Kernel::new(Arc::clone(&code), held.problem(), launch, Match::Exact));
            codes.push(code);
        }
        if codes.is_empty() {
            return Err(RuntimeError::no_fit(bundle, &device, skipped));
        }
        Ok(Runtime { exact, codes, resolved: RwLock::default(), skipped, device, machine })
    }

    /// The kernel for a problem. An exact hit costs one look-up in a table; an untuned problem is resolved once through
    /// the ladder (nearest tuned bucket whose artifact may run it) and then remembered. Where nothing serves, the error
    /// names the nearest winners and why each was refused.
    pub fn lookup(&self, problem: &Problem) -> Result<Found<'_>, RuntimeError> {
        match self.exact.get(problem) {
            Some(kernel) => Ok(Found::Held(kernel)),
            None => self.resolve(problem),
        }
    }

    #[cold]
    fn resolve(&self, problem: &Problem) -> Result<Found<'_>, RuntimeError> {
        let known = self.resolved.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(kernel) = known.get(problem) {
            return Ok(Found::Shared(Arc::clone(kernel)));
        }
        drop(known);
        let (code, launch) = ladder::nearest(&self.codes, problem)?;
        let tuned = code.problem;
        let kernel = Arc::new(Kernel::new(code, *problem, launch, Match::Bucket { tuned }));
        let mut known = self.resolved.write().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= MAX_CACHED {
            known.clear();
        }
        known.insert(*problem, Arc::clone(&kernel));
        Ok(Found::Shared(kernel))
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

    /// Makes the GPU's context current on the calling thread; nothing to do on the CPU. Every thread that binds,
    /// launches or allocates on a GPU needs it, unless it has that context from elsewhere.
    pub fn make_current(&self) -> Result<(), RuntimeError> {
        match &self.machine {
            Machine::Cuda(gpu) => Ok(gpu.make_current()?),
            Machine::Cpu(_) => Ok(()),
        }
    }

    /// Memory of `bytes` on the device, with undefined contents.
    pub fn allocate(&self, bytes: u64) -> Result<Memory, RuntimeError> {
        Memory::new(bytes, self.target())
    }

    /// Memory for every tensor of a problem, in order.
    pub fn allocate_all(&self, problem: &Problem) -> Result<Vec<Memory>, RuntimeError> {
        problem.tensors().iter().map(|t| self.allocate(t.bytes())).collect()
    }

    /// The scratch memory that a kernel needs, zeroed if it asks for that. One launch at a time may use it.
    pub fn workspace(&self, kernel: &Kernel) -> Result<Memory, RuntimeError> {
        let memory = self.allocate(kernel.workspace_bytes())?;
        if kernel.needs_zeroed_workspace() {
            return memory.zeroed();
        }
        Ok(memory)
    }
}

/// What is known of a launch before it has addresses, for those who inspect.
impl Kernel {
    /// Grids, blocks and arguments.
    pub fn launch_spec(&self) -> &Launch {
        &self.launch
    }
}
