//! Making problems ready: memory, inputs and references, what must stay as it is, and what is kept of problems whose turn comes again.

use super::CudaSession;
use crate::backend::BackendError;
use crate::backend::cuda::driver::{self, Buffer};
use crate::backend::cuda::support::Ranges;
use crate::backend::session::Setup;
use crate::problem::{Input, Inputs, Layout, Problem, Role, Tensor, expected};
use rayon::prelude::*;
use std::cell::Cell;

/// Poisoned bytes around every tensor: a read outside gives NaN, a write is seen.
pub(super) const GUARD: u64 = 4096;
/// Most input sets: more make graphs slow to build and gain nothing beside the flush.
const MAX_SETS: u64 = 32;
/// Reference elements that are compared with the host's own reference when a problem is prepared.
const SPOT_CHECKS: usize = 64;
/// Host reads that these may cost.
const SPOT_BUDGET: u64 = 4 << 20;
/// The share of the memory that problems put by may take, and one of them alone.
const PUT_BY: f64 = 0.1;
const PUT_BY_EACH: f64 = 0.025;
/// How much larger than needed the arena of a problem before may be.
const SPARE: u64 = 2;

/// Allocations, and how many bytes of each are used.
type Memory = Vec<(Buffer, u64)>;

/// One prepared problem.
pub(super) struct State {
    pub(super) setup: Setup,
    pub(super) tensors: Vec<Tensor>,
    pub(super) sets: Vec<Vec<u64>>,
    /// The memory behind the sets.
    memory: Memory,
    pub(super) references: Vec<Option<Reference>>,
    pub(super) cold: bool,
    watched: Watched,
    /// Whether the sets hold other inputs than the seed's.
    pub(super) strange: bool,
    /// Seconds a launch of the best candidate so far.
    pub(super) best_s: Cell<f64>,
}

/// What an output should hold.
pub(super) struct Reference {
    pub(super) values: Buffer,
    pub(super) stats: Buffer,
    /// The stats as they were first found: sums on the device need not come to the same bits again.
    pub(super) known: Option<[u8; 16]>,
}

/// What no candidate may change.
struct Watched {
    ranges: Ranges,
    /// Of each range, what is said of a candidate that changed it.
    blame: Vec<String>,
    /// The sums of what they hold.
    sums: Vec<u64>,
}

impl State {
    /// The device memory that it holds.
    fn bytes(&self) -> u64 {
        let arenas = self.memory.iter().map(|(m, _)| m.len());
        arenas.chain(self.references.iter().flatten().map(|r| r.values.len())).sum()
    }
}

impl CudaSession {
    /// Makes a problem's inputs and references.
    pub(super) fn make(&mut self, setup: &Setup) -> Result<State, BackendError> {
        let problem = setup.problem;
        let tensors = problem.tensors();
        let twice_l2 = 2 * self.device.l2;
        let (memory, sets) = self.layout(&problem, &tensors, setup.single)?;
        let cold = problem.bytes() * sets.len() as u64 >= twice_l2;
        if self.flush.is_none() && !setup.single {
            let flush = Buffer::new(&self.context, twice_l2 + (32 << 20))?;
            flush.fill(1, &self.stream)?;
            self.flush = Some(flush);
        }
        let reference = |t: &Tensor| match t.role {
            Role::In => Ok(None),
            Role::Out => {
                let values = Buffer::new(&self.context, t.len() * 8)?;
                Ok(Some(Reference { values, stats: Buffer::new(&self.context, 16)?, known: None }))
            }
        };
        let references = tensors.iter().map(reference).collect::<Result<_, BackendError>>()?;
        let watched = Watched { ranges: Ranges::new(&self.context, &[])?, blame: Vec::new(), sums: Vec::new() };
        let strange = false;
        let best_s = Cell::new(self.bests.get(&problem).copied().unwrap_or(f64::INFINITY));
        let mut state =
            State { setup: setup.clone(), tensors, sets, memory, references, cold, watched, strange, best_s };
        self.fill(&state)?;
        for r in state.references.iter_mut().flatten() {
            let mut known = [0; 16];
            r.stats.read(0, &mut known)?;
            r.known = Some(known);
        }
        let (ranges, blame) = self.watch(&state);
        let ranges = Ranges::new(&self.context, &ranges)?;
        if let Some((_, support)) = &self.support {
            let sums = support.sums(&ranges, &self.stream)?;
            state.watched = Watched { ranges, blame, sums };
        }
        Ok(state)
    }

    /// Memory for the tensors, how much of it is used, and their addresses in each set: all sets in one arena, every tensor between guards and
    /// aligned to 1 KiB as bulk copies like it; or one set of exact allocations.
    fn layout(
        &mut self,
        problem: &Problem,
        tensors: &[Tensor],
        single: bool,
    ) -> Result<(Memory, Vec<Vec<u64>>), BackendError> {
        if self.exact {
            let exact = |t: &Tensor| Ok((Buffer::new(&self.context, t.bytes())?, t.bytes()));
            let memory: Memory = tensors.iter().map(exact).collect::<Result<_, BackendError>>()?;
            let set = memory.iter().map(|(m, _)| m.address()).collect();
            return Ok((memory, vec![set]));
        }
        let mut offsets = Vec::new();
        let mut stride = GUARD;
        for t in tensors {
            offsets.push(stride);
            stride = (stride + t.bytes() + GUARD).next_multiple_of(1024);
        }
        let sets = (2 * self.device.l2).div_ceil(problem.bytes().max(1)).clamp(1, MAX_SETS);
        let sets = if single { 1 } else { sets.min((self.device.memory / 3 / stride).max(1)) };
        let used = stride * sets + GUARD;
        // What is put by must not hold much more than it needs; what is too large for that gives it back at its end.
        let each = self.share(PUT_BY_EACH);
        let fits = |spare: &mut Buffer| used <= spare.len() && (spare.len() <= SPARE * used || used > each);
        let arena = match self.spare.take_if(fits) {
            Some(spare) => spare,
            None => Buffer::new(&self.context, used)?,
        };
        let set = |s| offsets.iter().map(|o| arena.address() + s * stride + o).collect();
        let sets = (0..sets).map(set).collect();
        Ok((vec![(arena, used)], sets))
    }

    /// Makes what a state holds: poison everywhere, then inputs and references.
    fn fill(&self, state: &State) -> Result<(), BackendError> {
        state.memory.iter().try_for_each(|(m, used)| m.fill_first(*used, 0xff, &self.stream))?;
        let Setup { problem, seed, .. } = state.setup;
        self.fill_inputs(state, &Inputs::new(&problem, seed), seed, &state.sets)
    }

    /// Puts inputs into these sets and makes their references, which are compared with the host's in part.
    pub(super) fn fill_inputs(
        &self,
        state: &State,
        inputs: &Inputs,
        seed: u64,
        sets: &[Vec<u64>],
    ) -> Result<(), BackendError> {
        let (State { setup, tensors, references, .. }, Some((_, support))) = (state, &self.support) else {
            return Err(BackendError::Measurement("no support code is loaded".into()));
        };
        let problem = setup.problem;
        let unused = inputs.unused();
        for input in inputs.iter() {
            let Some(i) = tensors.iter().position(|t| t.name == input.tensor.name) else { continue };
            let mut host = None;
            for set in sets {
                if !support.fill(input, problem.types().y, set[i], &self.stream)? {
                    let host = host.get_or_insert_with(|| written(input));
                    // SAFETY: the tensor lies inside its set's memory.
                    unsafe { driver::copy_in(&self.context, set[i], host) }?;
                }
                for range in if input.tensor.layout == Layout::Paged { &unused[..] } else { &[] } {
                    let bytes = |elements| input.tensor.storage.bytes(elements);
                    let (at, len) = (set[i] + bytes(range.start), bytes(range.end - range.start));
                    // NaN in any float: a kernel that lets them into a sum is wrong.
                    // SAFETY: the range lies inside the tensor, and the state keeps its memory.
                    unsafe { driver::fill(at, len, 0xff, &self.stream) }?;
                }
            }
        }
        let mut addresses = sets[0].clone();
        for (address, r) in addresses.iter_mut().zip(references) {
            if let Some(Reference { values, .. }) = r {
                values.fill(0xff, &self.stream)?;
                *address = values.address();
            }
        }
        let Some(runnable) = &setup.reference else {
            return Err(BackendError::Measurement("a CUDA session needs the reference's code".into()));
        };
        let executable = self.executable(runnable, tensors)?;
        let workspace = Buffer::new(&self.context, runnable.launch.workspace)?;
        // SAFETY: inputs and references of the problem's sizes, which outlive the one launch: it is waited for.
        let bound = unsafe { executable.bind(&addresses, workspace.address()) }?;
        bound.launch(&self.stream)?;
        self.stream.synchronize()?;
        spot_check(state, inputs, seed)?;
        for (t, r) in tensors.iter().zip(references) {
            match r {
                Some(Reference { stats, known: Some(known), .. }) => stats.write(0, known)?,
                Some(Reference { values, stats, known: None }) => {
                    support.reference_stats(values.address(), t.len(), stats, &self.stream)?;
                }
                None => {}
            }
        }
        self.stream.synchronize()
    }

    /// All that is looked after of a state: between tensors, the inputs, and the references.
    fn watch(&self, state: &State) -> (Vec<(u64, u64)>, Vec<String>) {
        let (mut ranges, mut blame) = (Vec::new(), Vec::new());
        let mut add = |at: u64, end: u64, what: String| {
            ranges.push((at, end - at));
            blame.push(what);
        };
        let outside = |t: &Tensor| format!("{}: wrote outside its memory", t.name);
        for set in &state.sets {
            for (i, (t, at)) in state.tensors.iter().zip(set).enumerate() {
                let end = at + t.bytes();
                if t.role == Role::In {
                    add(*at, end, format!("{}: an input was changed", t.name));
                }
                if self.exact {
                    continue;
                }
                if i == 0 {
                    add(at - GUARD, *at, outside(t));
                }
                // All bytes from the last of a tensor to the first of the next.
                add(end, set.get(i + 1).copied().unwrap_or(end + GUARD), outside(t));
            }
        }
        for (t, r) in state.tensors.iter().zip(&state.references) {
            for buffer in r.iter().flat_map(|r| [&r.values, &r.stats]) {
                add(buffer.address(), buffer.address() + buffer.len(), outside(t));
            }
        }
        (ranges, blame)
    }

    /// What is to be said of a candidate that changed what it must not; it is as it was afterwards.
    pub(super) fn look_after(&self) -> Result<Option<String>, BackendError> {
        let (state, _) = self.parts()?;
        Ok(self.made_good(state)?.map(|at| state.watched.blame[at].clone()))
    }

    /// The first of what is looked after of a state that is not as it was; it is afterwards.
    pub(super) fn made_good(&self, state: &State) -> Result<Option<usize>, BackendError> {
        let Some((_, support)) = &self.support else { return Ok(None) };
        let sums = || support.sums(&state.watched.ranges, &self.stream);
        let Some(at) = sums()?.iter().zip(&state.watched.sums).position(|(now, then)| now != then) else {
            return Ok(None);
        };
        self.fill(state)?;
        if sums()? != state.watched.sums {
            return Err(BackendError::Measurement("inputs that were changed cannot be made again".into()));
        }
        Ok(Some(at))
    }

    /// Makes inputs and references again, where others came into their memory.
    pub(super) fn restore(&mut self) -> Result<(), BackendError> {
        if let Some(state) = self.state.as_ref().filter(|state| state.strange) {
            self.fill(state)?;
        }
        if let Some(state) = &mut self.state {
            state.strange = false;
        }
        Ok(())
    }

    fn share(&self, of: f64) -> u64 {
        (self.device.memory as f64 * of) as u64
    }

    /// Puts the last problem by for when its turn comes again.
    pub(super) fn put_by(&mut self) {
        let Some(state) = self.state.take() else { return };
        if self.exact || state.setup.single || state.bytes() > self.share(PUT_BY_EACH) {
            return self.let_go(state);
        }
        self.put_by.push(state);
    }

    /// Lets those go that have waited longest, as far as what is put by takes too much.
    pub(super) fn let_oldest_go(&mut self) {
        let most = self.share(PUT_BY);
        while self.put_by.iter().map(State::bytes).sum::<u64>() > most {
            let oldest = self.put_by.remove(0);
            self.let_go(oldest);
        }
    }

    /// Lets a problem go; the largest arena stays.
    pub(super) fn let_go(&mut self, state: State) {
        self.bests.insert(state.setup.problem, state.best_s.get());
        if !self.exact {
            self.spare = state.memory.into_iter().map(|(m, _)| m).chain(self.spare.take()).max_by_key(Buffer::len);
        }
    }
}

/// What an input holds, made here: its size may be that of a large product's weights.
fn written(input: &Input) -> Vec<u8> {
    const EACH: u64 = 1 << 18;
    let mut bytes = vec![0; input.tensor.bytes() as usize];
    let chunks = bytes.par_chunks_mut(input.tensor.storage.bytes(EACH) as usize).enumerate();
    chunks.for_each(|(i, chunk)| input.write(i as u64 * EACH, chunk));
    bytes
}

/// Compares a few elements of the device's reference with the host's: the two are written apart from each other.
fn spot_check(state: &State, inputs: &Inputs, seed: u64) -> Result<(), BackendError> {
    let mut host = expected(
        &state.setup.problem,
        inputs,
        seed,
        SPOT_BUDGET.min((state.setup.problem.op().unit_cost)(&state.setup.problem) * 16),
    );
    let step = (host.len() / SPOT_CHECKS).max(1);
    host = host.into_iter().step_by(step).collect();
    for e in host {
        let Some(i) = state.tensors.iter().position(|t| t.name == e.tensor) else { continue };
        let Some(r) = &state.references[i] else { continue };
        let mut raw = [0u8; 8];
        r.values.read(e.index * 8, &mut raw)?;
        let device = f64::from_le_bytes(raw);
        // Both are f64; they differ only in the order of sums.
        let error = (device - e.value).abs();
        if error.is_nan() || error > 1e-6 * (1.0 + e.value.abs()) {
            return Err(BackendError::Measurement(format!(
                "{}: the reference on the device has {}[{}] = {device}, the host has {}",
                state.setup.problem, e.tensor, e.index, e.value
            )));
        }
    }
    Ok(())
}
