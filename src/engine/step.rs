//! A pass bound to memory: its kernels, one after the other, or as one graph.

use super::arena::{Arena, arena};
use super::{EngineError, Stores};
use crate::backend::cuda::{Graph, Stream};
use crate::backend::{Bounds, Metadata, Tables};
use crate::device::Target;
use crate::model::Pass;
use crate::problem::Storage;
use crate::program::{Life, Program};
use crate::runtime::{Bound, Memory, Queue, Runtime, View};
use std::collections::BTreeMap;

/// Outputs that the host reads.
const LOGITS: &str = "logits";
const TOKENS: &str = "tokens";

/// A pass that runs.
pub(super) struct Step {
    kernels: Vec<Bound>,
    graph: Option<Graph>,
    /// What the kernels are told; set before each run.
    metadata: Metadata,
    logits: Memory,
    storage: Storage,
    tokens: Memory,
    rows: usize,
    /// Bytes on the device beside weights and caches.
    pub bytes: u64,
    /// Portable kernels, which answer where nothing tuned does, and all.
    pub portable: (usize, usize),
}

impl Step {
    /// Looks the kernels of a pass up, and binds them. On a GPU they are captured into a graph where they run more than once.
    pub fn new(
        runtime: &Runtime,
        stores: &Stores,
        pass: &Pass,
        bounds: Bounds,
        tables: &Tables,
        stream: Option<&Stream>,
        again: bool,
    ) -> Result<Step, EngineError> {
        let program = &pass.program;
        program.check()?;
        let named = |name: &str| program.tensor(name).map(|t| (t, &program.tensors[t]));
        let (Some((logits_at, logits)), Some((tokens_at, tokens))) = (named(LOGITS), named(TOKENS)) else {
            return Err(EngineError::Program { why: format!("it has no {LOGITS} or no {TOKENS}") });
        };
        let rows = tokens.shape.first().copied().unwrap_or(0) as usize;
        let storage = logits.storage;
        let (logits, tokens) = (runtime.allocate(logits.bytes())?, runtime.allocate(tokens.bytes())?);
        let Arena { places, bytes: arena_bytes } = arena(program, &[logits_at, tokens_at]);
        let activations = runtime.allocate(arena_bytes)?;
        let metadata = runtime.metadata(bounds, tables)?;
        let view = |at: usize| -> Result<View, EngineError> {
            let tensor = &program.tensors[at];
            let unknown = || EngineError::Program { why: format!("nobody has the tensor {}", tensor.name) };
            match tensor.life {
                _ if at == logits_at => Ok(logits.view()),
                _ if at == tokens_at => Ok(tokens.view()),
                Life::Activation => Ok(activations.view().slice(places[at].clone().ok_or_else(unknown)?)?),
                Life::Weight => stores.weights.get(&tensor.name).map(Memory::view).ok_or_else(unknown),
                Life::State => stores.states.get(&tensor.name).map(Memory::view).ok_or_else(unknown),
                Life::Metadata => metadata.view(&tensor.name).ok_or_else(unknown),
            }
        };
        let mut found = Vec::with_capacity(program.steps.len());
        for step in &program.steps {
            found.push(runtime.lookup(&step.problem)?);
        }
        // One launch at a time uses a workspace; those that leave it as zeros share one of their own.
        let most = |zeroed: bool| {
            let mine = found.iter().filter(|k| k.needs_zeroed_workspace() == zeroed);
            mine.map(|k| k.workspace_bytes()).max().unwrap_or(0)
        };
        let workspaces = [runtime.allocate(most(false))?, runtime.zeroed(most(true))?];
        let mut kernels = Vec::with_capacity(found.len());
        for (step, kernel) in program.steps.iter().zip(&found) {
            let views = step.tensors.iter().map(|&t| view(t)).collect::<Result<Vec<View>, _>>()?;
            let workspace = match kernel.workspace_bytes() {
                0 => View::none(),
                _ => workspaces[usize::from(kernel.needs_zeroed_workspace())].view(),
            };
            kernels.push(kernel.bind(views, workspace)?);
        }
        let graph = match stream.filter(|_| again) {
            Some(stream) => Some(Graph::capture(stream, || kernels.iter().try_for_each(|k| k.launch(stream)))?),
            None => None,
        };
        let own =
            [logits.len(), tokens.len(), activations.len(), metadata.bytes(), workspaces[0].len(), workspaces[1].len()];
        let portable = (found.iter().filter(|k| k.is_portable()).count(), found.len());
        Ok(Step { kernels, graph, metadata, logits, storage, tokens, rows, bytes: own.iter().sum(), portable })
    }

    /// Runs it with these tables, and reads the token of each row.
    pub fn run(&self, tables: &Tables, stream: Option<&Stream>) -> Result<Vec<i32>, EngineError> {
        self.metadata.set(tables)?;
        match (stream, &self.graph) {
            (None, _) => self.kernels.iter().try_for_each(|k| k.launch(Queue::Host))?,
            (Some(stream), Some(graph)) => graph.launch(stream)?,
            (Some(stream), None) => self.kernels.iter().try_for_each(|k| k.launch(stream))?,
        }
        let mut bytes = vec![0; self.rows * 4];
        self.tokens.download(&mut bytes)?;
        Ok(bytes.as_chunks().0.iter().map(|b| i32::from_le_bytes(*b)).collect())
    }

    /// The logits of the last run, row by row.
    pub fn logits(&self) -> Result<Vec<f32>, EngineError> {
        let mut bytes = vec![0; self.logits.len() as usize];
        self.logits.download(&mut bytes)?;
        let count = bytes.len() as u64 * 8 / self.storage.bits();
        Ok((0..count).map(|i| self.storage.value(&bytes, i) as f32).collect())
    }
}

/// Weights and caches by name, in the shapes of a program.
pub(super) fn tensors(program: &Program, life: Life) -> BTreeMap<&str, u64> {
    program.tensors.iter().filter(|t| t.life == life).map(|t| (t.name.as_str(), t.bytes())).collect()
}

/// Whether launches go to a stream.
pub(super) fn stream(runtime: &Runtime) -> Result<Option<Stream>, EngineError> {
    match runtime.target() {
        Target::Cuda => Ok(Some(runtime.stream()?)),
        Target::Cpu => Ok(None),
    }
}
