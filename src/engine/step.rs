//! A pass bound to memory: its kernels, one after the other, or as one graph.

use super::EngineError;
use super::arena::{ALIGNMENT, Arena, arena};
use super::measure::KernelTime;
use super::plan::MemoryPlan;
use super::request::{Logprobs, Sampling, Token};
use crate::backend::cuda::{Event, Graph, Stream};
use crate::backend::{BackendError, Bounds, Metadata, Tables};
use crate::device::Target;
use crate::model::{Cache, Model, ModelError, Pass, Shape, Tail, with_norms_in_products};
use crate::problem::{Dtype, Problem, SETTINGS, Storage};
use crate::program::{self, Life, Named, Program};
use crate::runtime::{Bound, Kernel, Match, Memory, Queue, Runtime, View, Workspace};
use crate::weights::Filler;
use std::borrow::Cow;
use std::cell::OnceCell;
use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// Outputs that the host reads.
pub(super) const RESULTS: [&str; 4] = ["logits", "tokens", "logprobs", "likely"];
const LOGITS: usize = 0;
const TOKENS: usize = 1;
const LOGPROBS: usize = 2;
const LIKELY: usize = 3;
/// The flags of the tokens that are penalised, which few steps need: not among the tables that each is told.
pub(super) const SEEN: &str = "seen";

/// What lies on the device as long as the engine does; all steps share it, one at a time.
pub(super) struct Stores {
    /// Weights and caches, by their names in programs: parts of one memory.
    kept: BTreeMap<String, View>,
    activations: Memory,
    /// Those that the host reads.
    results: [Memory; 4],
    seen: Memory,
    /// Memory that the host shares: what a step is told, and the tokens of the step before.
    told: Memory,
    said: Memory,
    /// Where each step has its tables, and the number of those that lie there.
    tables: Memory,
    there: Arc<AtomicU64>,
    /// Scratch of kernels: what they leave as they found it is zeros in the second.
    workspaces: [Workspace; 2],
}

impl Stores {
    /// Allocates what was planned, and fills the weights of `program` in; `loaded` hears of the bytes that are there, and of all.
    pub fn new(
        runtime: &Runtime,
        program: &Program,
        mut weights: Filler<'_>,
        plan: &MemoryPlan,
        loaded: &mut dyn FnMut(u64, u64),
    ) -> Result<Stores, EngineError> {
        // Zeros: what no token has written yet is finite.
        let memory = runtime.zeroed(plan.weights + plan.cache)?;
        let (mut kept, mut at, mut there) = (BTreeMap::new(), 0, 0);
        for tensor in program.tensors.iter().filter(|t| matches!(t.life, Life::Weight | Life::State)) {
            if tensor.life == Life::Weight {
                // Given back at once: the largest may be a fifth of all.
                let mut bytes = vec![0; tensor.bytes() as usize];
                weights.fill(tensor, &mut bytes)?;
                memory.write(at, &bytes)?;
                there += placed(tensor);
                loaded(there, plan.weights);
            }
            kept.insert(tensor.name.clone(), memory.view().slice(at..at + tensor.bytes())?);
            at += placed(tensor);
        }
        let [logits, tokens, logprobs, likely] = plan.results.map(|bytes| runtime.allocate(bytes));
        let said = plan.results[TOKENS] + 4;
        Ok(Stores {
            kept,
            activations: runtime.allocate(plan.activations)?,
            results: [logits?, tokens?, logprobs?, likely?],
            seen: runtime.allocate(plan.seen)?,
            told: runtime.shared(plan.tables)?,
            said: runtime.shared(said)?,
            tables: runtime.allocate(plan.tables)?,
            there: Arc::new(AtomicU64::new(u64::MAX)),
            workspaces: [
                runtime.workspace_of(plan.workspaces[0], false)?,
                runtime.workspace_of(plan.workspaces[1], true)?,
            ],
        })
    }

    /// Whether there is scratch for a kernel.
    pub fn has_room(&self, kernel: &Kernel) -> bool {
        kernel.workspace_bytes() <= self.workspaces[usize::from(kernel.needs_zeroed_workspace())].len()
    }

    /// Rows that tokens are chosen for at most.
    fn rows(&self) -> i64 {
        (self.results[TOKENS].len() / 4) as i64
    }

    /// What these rows of the last step led to, once it is done; what has log-probabilities says how many a row has.
    pub fn chosen(&self, tail: Tail, rows: &[usize]) -> Result<Vec<Token>, EngineError> {
        let count = rows.iter().map(|row| row + 1).max().unwrap_or(0);
        let read = |result: usize, each: usize| -> Result<Vec<[u8; 4]>, EngineError> {
            let mut bytes = vec![0; count * each * 4];
            self.results[result].download(&mut bytes)?;
            Ok(bytes.as_chunks().0.to_vec())
        };
        let tokens = read(TOKENS, 1)?;
        let top = match tail {
            Tail::Argmax => None,
            Tail::Sample { top } => Some(top as usize),
        };
        let logprobs = top.map_or(Ok(Vec::new()), |top| read(LOGPROBS, 1 + top))?;
        let likely = top.filter(|top| *top > 0).map_or(Ok(Vec::new()), |top| read(LIKELY, top))?;
        let one = |row: &usize| {
            let id = i32::from_le_bytes(*tokens.get(*row)?);
            let logprobs = match top {
                None => None,
                Some(top) => {
                    let mut these = logprobs.get(row * (1 + top)..)?.iter().map(|b| f32::from_le_bytes(*b));
                    let chosen = these.next()?;
                    let ids = likely.get(row * top..)?.iter().map(|b| i32::from_le_bytes(*b));
                    Some(Logprobs { chosen, top: ids.zip(these).take(top).collect() })
                }
            };
            Some(Token { id, logprobs })
        };
        rows.iter().map(one).collect::<Option<_>>().ok_or_else(no_token)
    }

    /// The tokens of these rows of the step before the one of that number, once that one's tables are where its kernels read them.
    pub fn said(&self, number: i32, rows: &[usize], stream: Option<&Stream>) -> Result<Vec<i32>, EngineError> {
        self.heard(number, stream)?;
        let mut bytes = vec![0; self.rows() as usize * 4];
        self.said.download(&mut bytes)?;
        let (tokens, _) = bytes.as_chunks();
        let one = |row: &usize| tokens.get(*row).map(|b| i32::from_le_bytes(*b));
        rows.iter().map(one).collect::<Option<_>>().ok_or_else(no_token)
    }

    /// Waits until the tables of the step of that number are where its kernels read them; then others may be told.
    pub fn heard(&self, number: i32, stream: Option<&Stream>) -> Result<(), EngineError> {
        let at = self.rows() as u64 * 4;
        let mut turns = 0u32;
        while self.said.word(at)? != number {
            std::hint::spin_loop();
            turns = turns.wrapping_add(1);
            // What comes over the bus is seen at once; a device that is lost, or a step that ended without a word, is asked for now and then.
            if turns.is_multiple_of(4096) && stream.map_or(Ok(true), Stream::is_done)? && self.said.word(at)? != number
            {
                return Err(EngineError::Program { why: "a step has ended and its tables were not read".into() });
            }
        }
        Ok(())
    }
}

fn no_token() -> EngineError {
    EngineError::Program { why: "it gives no token".into() }
}

/// Kernels that steps run in the places of those that the runtime answers with; none where a problem is to have none.
pub(super) type Instead = HashMap<Problem, Option<Arc<Kernel>>>;

/// Where the kernels of steps come from.
#[derive(Clone, Copy)]
pub(super) struct Answers<'r> {
    pub runtime: &'r Runtime,
    pub instead: &'r Instead,
}

impl Answers<'_> {
    /// The kernel for a problem.
    pub fn lookup(&self, problem: &Problem) -> Result<Arc<Kernel>, EngineError> {
        match self.instead.get(problem) {
            Some(Some(kernel)) => Ok(Arc::clone(kernel)),
            Some(None) => Err(EngineError::Program { why: format!("{problem} has no kernel here") }),
            None => {
                let kernel = self.runtime.lookup(problem)?;
                // What stands in for the winner of another size answers for this one too, as it will from a bundle.
                Ok(self.in_place_of(&kernel).and_then(|other| other.serving(problem)).map_or(kernel, Arc::new))
            }
        }
    }

    /// What stands in for the winner whose code a kernel runs for another size than it was tuned for.
    fn in_place_of(&self, kernel: &Kernel) -> Option<&Arc<Kernel>> {
        let Match::Bucket { tuned } = kernel.rung() else { return None };
        let (_, other) = self.instead.iter().find(|(problem, _)| problem.bucket() == tuned.bucket())?;
        other.as_ref()
    }
}

/// By what a row's token is chosen.
#[derive(Clone, Copy)]
pub(super) struct Choice<'a> {
    pub sampling: &'a Sampling,
    /// From 0 to below 1.
    pub u: f32,
    /// Flags of the tokens that are penalised, 32 a number; nothing where none is.
    pub seen: &'a [u32],
}

/// The attention of a decode begins behind the product before it where it is predicted to take as long as this. To begin early spares a
/// microsecond. But its blocks are then placed while that product still fills a part of the device, all on the rest of it, and where they
/// all run at once none is placed better later: on an H200 a step of 32 sequences of 4096 tokens took 2.25 ms so, and takes 1.92
/// (docs/performance/engine.md).
const BEHIND_FROM_US: f64 = 11.0;

/// The kernels of a pass that are alike but for their tensors.
struct Kind {
    /// What they are, without times.
    what: KernelTime,
    places: Vec<usize>,
    /// Microseconds that each is predicted to take.
    each_us: f64,
    /// All of them in a row, [`repeats`] times; made when they are timed first.
    graph: OnceCell<Graph>,
}

/// What is timed together at least, in launches and in microseconds: a graph takes up to 5 µs to begin, which its kernels would be
/// charged with.
const LEAST_LAUNCHES: usize = 32;
const LEAST_US: f64 = 500.0;

/// How often so many kernels are launched in a row that take so many microseconds each.
fn repeats(kernels: usize, each_us: f64) -> usize {
    // No launch takes less than a microsecond, whatever was predicted.
    let launches = (LEAST_US / each_us.max(1.0)).ceil() as usize;
    launches.max(LEAST_LAUNCHES).div_ceil(kernels.max(1))
}

/// A pass that runs.
pub(super) struct Step {
    kernels: Vec<Bound>,
    /// Of each whether it begins behind the one before it rather than while that one ends.
    behind: Vec<bool>,
    kinds: Vec<Kind>,
    graph: Option<Graph>,
    bounds: Bounds,
    /// What the kernels are told; set before each run.
    metadata: Metadata,
    /// Puts what it is told in its place; the first node of the graph.
    advance: Bound,
    told: Memory,
    /// The number of the tables that `advance` put in their place last.
    there: Arc<AtomicU64>,
    logits: Memory,
    seen: Memory,
    tail: Tail,
    /// The type of the logits, and how many a row has.
    storage: Storage,
    vocab: u64,
    /// Whether the pass gathers the tokens that get logits (`last_rows`); otherwise all have some, in their order.
    gathers: bool,
    /// Rows that the step before may have chosen tokens for.
    last: i64,
}

impl Step {
    /// Looks the kernels of a pass up, and binds them; none where their scratch is more than was planned. With a stream to
    /// capture on they become a graph.
    pub fn new(
        answers: Answers<'_>,
        stores: &Stores,
        model: &Model,
        cache: Cache,
        pass: &Pass,
        capture: Option<&Stream>,
    ) -> Result<Option<Step>, EngineError> {
        let program = &*fused(answers, &pass.program);
        program.check()?;
        let found = lookup(answers, program)?;
        let wanted = scratch(&found);
        if (0..2).any(|i| wanted[i] > stores.workspaces[i].len()) {
            return Ok(None);
        }
        let (shape, bounds) = (pass.shape, bounds(model, cache, &pass.shape));
        let places = RESULTS.map(|name| program.tensor(name));
        let kept: Vec<usize> = places.iter().flatten().copied().collect();
        let Arena { places: activations, .. } = arena(program, &kept);
        let metadata = Metadata::new(&stores.tables, bounds)?;
        let view = |at: usize| -> Result<View, EngineError> {
            let tensor = &program.tensors[at];
            let unknown = || EngineError::Program { why: format!("nobody has the tensor {}", tensor.name) };
            if let Some(result) = places.iter().position(|p| *p == Some(at)) {
                return Ok(stores.results[result].view().slice(0..tensor.bytes())?);
            }
            if tensor.name == SEEN {
                return Ok(stores.seen.view().slice(0..tensor.bytes())?);
            }
            match tensor.life {
                Life::Activation => {
                    Ok(stores.activations.view().slice(activations[at].clone().ok_or_else(unknown)?)?)
                }
                Life::Weight | Life::State => stores.kept.get(&tensor.name).cloned().ok_or_else(unknown),
                Life::Metadata => metadata.view(&tensor.name).ok_or_else(unknown),
            }
        };
        let mut kernels = Vec::with_capacity(program.steps.len());
        for step in &program.steps {
            let Some(kernel) = found.get(&step.problem) else { continue };
            let views = step.tensors.iter().map(|&t| view(t)).collect::<Result<Vec<View>, _>>()?;
            let workspace = match kernel.workspace_bytes() {
                0 => View::none(),
                _ => (&stores.workspaces[usize::from(kernel.needs_zeroed_workspace())]).into(),
            };
            kernels.push(kernel.bind(views, workspace)?);
        }
        let (tables, words, ids) = metadata.whole();
        let last = stores.rows();
        let advance = answers.lookup(&advance(words, ids, last, pass)?)?;
        let workspace = match advance.workspace_bytes() {
            0 => View::none(),
            _ => (&stores.workspaces[usize::from(advance.needs_zeroed_workspace())]).into(),
        };
        let told = stores.told.view().slice(0..tables.len())?;
        let advance = advance.bind([told, stores.results[TOKENS].view(), tables, stores.said.view()], workspace)?;
        let long = |step: &program::Step| {
            let us = || found.get(&step.problem).map_or(0.0, |kernel| kernel.predicted_us());
            step.problem.op().name == "decode" && us() >= BEHIND_FROM_US
        };
        let behind: Vec<bool> = program.steps.iter().map(long).collect();
        let graph = match capture {
            Some(stream) => {
                let all = || kernels.iter().zip(&behind).try_for_each(|(k, behind)| launch(k, *behind, stream));
                let graph = Graph::capture(stream, || advance.launch(stream).and_then(|()| all()))?;
                graph.upload(stream)?;
                Some(graph)
            }
            None => None,
        };
        let mut kinds: Vec<Kind> = Vec::new();
        for (place, step) in program.steps.iter().enumerate() {
            let (Some(kernel), problem) = (found.get(&step.problem), step.problem) else { continue };
            let (template, portable) = (kernel.template().to_string(), kernel.is_portable());
            let known = kinds.iter().position(|kind| kind.what.problem == problem);
            let at = known.unwrap_or_else(|| {
                let what =
                    KernelTime { role: step.role.clone(), problem, template, portable, calls: 0, us: Vec::new() };
                let each_us = kernel.predicted_us();
                kinds.push(Kind { what, places: Vec::new(), each_us, graph: OnceCell::new() });
                kinds.len() - 1
            });
            kinds[at].what.calls += 1;
            kinds[at].places.push(place);
        }
        let storage = places[LOGITS].map_or(Storage::F32, |t| program.tensors[t].storage);
        Ok(Some(Step {
            kernels,
            behind,
            kinds,
            graph,
            bounds,
            metadata,
            advance,
            told: stores.told.clone(),
            there: Arc::clone(&stores.there),
            logits: stores.results[LOGITS].clone(),
            seen: stores.seen.clone(),
            tail: shape.tail,
            storage,
            vocab: model.vocab as u64,
            gathers: program.tensor("last_rows").is_some(),
            last,
        }))
    }

    /// Runs it with these tables, made as long as the pass has them ([`Step::pad`]). As soon as they are where the kernels read them, and
    /// the tokens of the step before where the host does, `number` is said ([`Stores::heard`]); until then no other step is told anything.
    pub fn run(&self, tables: &Tables, number: i32, stream: Option<&Stream>) -> Result<(), EngineError> {
        self.metadata.tell(tables, number, self.last, &self.told)?;
        self.there.store(self.metadata.number(), Ordering::Relaxed);
        match (stream, &self.graph) {
            (None, _) => {
                self.advance.launch(Queue::Host)?;
                self.kernels.iter().try_for_each(|k| k.launch(Queue::Host))?;
            }
            (Some(stream), Some(graph)) => graph.launch(stream)?,
            (Some(stream), None) => {
                self.advance.launch(stream)?;
                self.kernels.iter().zip(&self.behind).try_for_each(|(k, behind)| launch(k, *behind, stream))?;
            }
        }
        Ok(())
    }

    /// Bytes that a run is told.
    pub fn told(&self) -> u64 {
        self.metadata.whole().0.len()
    }

    /// Launches by the host of one run.
    pub fn launches(&self) -> u64 {
        if self.graph.is_some() { 1 } else { 1 + self.kernels.len() as u64 }
    }

    /// Portable kernels, which answer where nothing tuned does, and all.
    pub fn kernels(&self) -> (usize, usize) {
        let portable = self.kinds.iter().filter(|kind| kind.what.portable).map(|kind| kind.what.calls).sum();
        (portable, self.kernels.len())
    }

    /// Runs its kernels kind by kind, with the tables of the last run, which was its own, and times each kind.
    pub fn kinds(&self, stream: Option<&Stream>) -> Result<Vec<KernelTime>, EngineError> {
        if self.there.load(Ordering::Relaxed) != self.metadata.number() {
            return Err(EngineError::Program { why: "another step ran last, so it has no tables".into() });
        }
        let mut timed = Vec::with_capacity(self.kinds.len());
        for kind in &self.kinds {
            let kernels = || kind.places.iter().filter_map(|at| self.kernels.get(*at));
            let us = match stream {
                None => {
                    let begun = Instant::now();
                    kernels().try_for_each(|k| k.launch(Queue::Host))?;
                    begun.elapsed().as_secs_f64() * 1e6
                }
                Some(stream) => {
                    // What one launch writes the next one writes again.
                    let repeats = repeats(kind.places.len(), kind.each_us);
                    let all = || (0..repeats).try_for_each(|_| kernels().try_for_each(|k| k.launch(stream)));
                    let graph = match kind.graph.get() {
                        Some(graph) => graph,
                        None => {
                            let graph = Graph::capture(stream, all)?;
                            kind.graph.get_or_init(|| graph)
                        }
                    };
                    let events = [Event::new(stream)?, Event::new(stream)?];
                    events[0].record(stream)?;
                    graph.launch(stream)?;
                    events[1].record(stream)?;
                    stream.synchronize()?;
                    events[1].seconds_since(&events[0])? * 1e6 / repeats as f64
                }
            };
            timed.push(KernelTime { us: vec![us], ..kind.what.clone() });
        }
        Ok(timed)
    }

    /// Makes tables longer, up to what the pass is over: by tokens of nobody, which are written nowhere, and by sequences of none.
    pub fn pad(&self, tables: &mut Tables) {
        tables.pad(&self.bounds);
    }

    /// The row of the results that belongs to an entry of the tables' last rows.
    pub fn row(&self, tables: &Tables, entry: usize) -> usize {
        if self.gathers { entry } else { tables.last_rows.get(entry).map_or(entry, |row| *row as usize) }
    }

    /// Says in the tables by what the tokens of their last rows are chosen; those of a pass that takes the most likely one need not be.
    pub fn choose(&self, tables: &mut Tables, choices: &[Choice<'_>]) -> Result<(), EngineError> {
        if self.tail == Tail::Argmax {
            return Ok(());
        }
        let (rows, words) = (self.bounds.logits as usize, self.vocab.div_ceil(32) as usize);
        let mut seen = Vec::new();
        for (entry, choice) in choices.iter().enumerate() {
            let row = self.row(tables, entry);
            let Sampling { temperature, top_p, min_p, repetition_penalty, .. } = *choice.sampling;
            let these = [temperature, top_p, min_p, repetition_penalty, choice.u, 0.0].map(|v| v.to_bits() as i32);
            tables.settings.iter_mut().skip(row * SETTINGS).zip(these).for_each(|(to, v)| *to = v);
            tables.top_k.iter_mut().skip(row).take(1).for_each(|to| *to = choice.sampling.top_k);
            if !choice.seen.is_empty() {
                seen.resize(rows * words * 4, 0u8);
                let bytes = choice.seen.iter().flat_map(|word| word.to_le_bytes());
                seen.iter_mut().skip(row * words * 4).zip(bytes).for_each(|(to, v)| *to = v);
            }
        }
        match seen.is_empty() {
            // Nobody looks at what is not penalised, and a copy waits.
            true => Ok(()),
            false => Ok(self.seen.upload(&seen)?),
        }
    }

    /// The logits of the first `count` entries of the tables' last rows in the last run, row by row.
    pub fn logits(&self, tables: &Tables, count: usize) -> Result<Vec<f32>, EngineError> {
        let mut bytes = vec![0; self.storage.bytes(self.bounds.logits as u64 * self.vocab) as usize];
        self.logits.download(&mut bytes)?;
        let row = |entry| {
            let at = self.row(tables, entry) as u64 * self.vocab;
            (at..at + self.vocab).map(|i| self.storage.value(&bytes, i) as f32)
        };
        Ok((0..count).flat_map(row).collect())
    }
}

fn launch(kernel: &Bound, behind: bool, stream: &Stream) -> Result<(), BackendError> {
    if behind { kernel.launch_behind(stream) } else { kernel.launch(stream) }
}

/// What puts so many words in the place of a pass's tables, of which the first are ids that may ask for tokens of so many rows.
fn advance(words: i64, ids: i64, rows: i64, pass: &Pass) -> Result<Problem, EngineError> {
    let types = pass.program.steps.first().map_or(Dtype::F32.into(), |step| step.problem.types().unscaled());
    let problem = Problem::advance(words, ids, rows).types(types).build();
    Ok(problem.map_err(ModelError::Problem)?)
}

/// The kernels of a program, by their problems.
fn lookup(answers: Answers<'_>, program: &Program) -> Result<HashMap<Problem, Arc<Kernel>>, EngineError> {
    let mut found = HashMap::new();
    for step in &program.steps {
        if let Entry::Vacant(place) = found.entry(step.problem) {
            place.insert(answers.lookup(&step.problem)?);
        }
    }
    Ok(found)
}

/// The scratch of kernels of which one runs at a time: of those that take it as it is, and of those that need zeros.
fn scratch(found: &HashMap<Problem, Arc<Kernel>>) -> [u64; 2] {
    [false, true].map(|zeroed| {
        let mine = found.values().filter(|k| k.needs_zeroed_workspace() == zeroed);
        mine.map(|k| k.workspace_bytes()).max().unwrap_or(0)
    })
}

/// The program with its norms in the products behind them: where whole steps chose the kernel for both and not that of the product, and
/// where neither or both were chosen, if it is predicted to take less than the two.
pub(super) fn fused<'p>(answers: Answers<'_>, program: &'p Program) -> Cow<'p, Program> {
    with_norms_in_products(program, |norm, product, both| {
        let of = |p: &Problem| answers.lookup(p).ok();
        let Some((both_k, (norm_k, product_k))) = of(both).zip(of(norm).zip(of(product))) else { return false };
        if answers.instead.contains_key(both) {
            return true;
        }
        match (both_k.in_steps(), product_k.in_steps() || answers.instead.contains_key(product)) {
            (true, false) => true,
            (false, true) => false,
            _ => both_k.predicted_us() < norm_k.predicted_us() + product_k.predicted_us(),
        }
    })
}

/// What the kernels of a step of a shape can take.
pub(super) fn bounds(model: &Model, cache: Cache, shape: &Shape) -> Bounds {
    Bounds {
        tokens: shape.tokens,
        sequences: shape.sequences,
        logits: shape.logits,
        chosen: if shape.tail == Tail::Argmax { 0 } else { shape.logits },
        vocab: model.vocab,
        max_pos: cache.max_pos,
        page: cache.page,
        pages: cache.pages,
        max_pages: cache.max_pages,
        context: shape.context,
    }
}

/// The scratch that the kernels of a program need.
pub(super) fn workspaces(runtime: &Runtime, program: &Program) -> Result<[u64; 2], EngineError> {
    let answers = Answers { runtime, instead: &Instead::new() };
    Ok(scratch(&lookup(answers, &fused(answers, program))?))
}

/// Bytes of a tensor beside others in one memory.
fn placed(tensor: &Named) -> u64 {
    tensor.bytes().next_multiple_of(ALIGNMENT)
}

/// Bytes of the tensors of one life, beside each other.
pub(super) fn bytes_of(program: &Program, life: Life) -> u64 {
    program.tensors.iter().filter(|t| t.life == life && t.name != SEEN).map(placed).sum()
}

/// Whether launches go to a stream.
pub(super) fn stream(runtime: &Runtime) -> Result<Option<Stream>, EngineError> {
    match runtime.target() {
        Target::Cuda => Ok(Some(runtime.stream()?)),
        Target::Cpu => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_timed_is_long_beside_the_start_of_a_graph() {
        for (kernels, each_us) in [(1, 0.0), (1, 2.5), (1, 200.0), (16, 2.0), (16, 21.0), (33, 4.0), (80, f64::NAN)] {
            let launches = repeats(kernels, each_us) * kernels;
            assert!(launches >= LEAST_LAUNCHES, "{kernels}, {each_us}");
            assert!(launches as f64 * each_us.max(1.0) >= LEAST_US, "{kernels}, {each_us}");
            // And no longer than it has to be.
            let fewer = launches - kernels;
            assert!(fewer < LEAST_LAUNCHES || fewer as f64 * each_us.max(1.0) < LEAST_US, "{kernels}, {each_us}");
        }
    }
}
